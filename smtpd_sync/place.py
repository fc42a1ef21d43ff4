"""Where a thread runs, and whom it lets run: what the scheduler of Linux is told.

A thread that wakes takes the core from the one that runs there, as a rule, and so from the one that
holds the GIL: for nothing, since it has to wait for the GIL. SCHED_BATCH is for threads that wait
until the core is free (sched(7)).
"""

from __future__ import annotations

import os
from typing import FrozenSet, Optional

__all__ = ["Place", "wait_for_the_core"]


def wait_for_the_core(waits: bool = True) -> None:
    """Have the calling thread, and those that it makes, wait for a core of which another has hold.

    Not where the thread was given a policy that somebody chose, or the system knows none.
    """
    try:
        before, after = os.SCHED_OTHER, os.SCHED_BATCH
        if not waits:
            before, after = after, before
        if os.sched_getscheduler(0) == before:
            os.sched_setscheduler(0, after, os.sched_param(0))
    except (AttributeError, OSError):
        pass  # it is faster with it, and right without


class Place:
    """Where one thread is bound to; each thread has its own, and alone moves it."""

    def __init__(self) -> None:
        self._cores: Optional[FrozenSet[int]] = None  # as the thread that made it

    def move(self, cores: FrozenSet[int], crowded: bool) -> None:
        """Bind the thread to ``cores``; ``OSError`` where it may not be."""
        if cores is not self._cores:
            os.sched_setaffinity(0, cores)
            wait_for_the_core(crowded)
            self._cores = cores
