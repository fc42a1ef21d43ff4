"""Threads that serve one connection after another.

A thread that has served its client parks, and waits for the next: to make one takes as long as a
whole short session. A connection still has one thread from its first octet to its last.
"""

from __future__ import annotations

import contextvars
import os
import threading
from typing import Any, Callable, FrozenSet, List, Optional, Set, Tuple

__all__ = ["Crew"]

PARKED = 128
CROWDED = 3
Job = Tuple[Any, ...]


class Crew:
    """The threads of a server, and which of them are at work.

    Where it is ``adaptive``: while three or more are at work, they keep to one core. Threads of one
    interpreter run one at a time, and to hand over from core to core costs more than it is worth.
    """

    def __init__(self, serve: Callable[..., None]) -> None:
        self.busy: Set[threading.Thread] = set()
        """Those at work."""
        self._serve = serve
        self._parked: List[Hand] = []
        self._lock = threading.Lock()
        self._closed = False
        self.adaptive = False
        self.cores: Optional[FrozenSet[int]] = None
        """Those of the process, once it is asked to be adaptive and may bind its threads."""

    def adapt(self, adaptive: bool) -> None:
        """Have the jobs to come done on one core while it is crowded, or no longer."""
        if adaptive and not self.adaptive:
            # Of the process: the thread that calls may be one of ours, and bound.
            self.cores = frozenset(os.sched_getaffinity(os.getpid()))
        self.adaptive = adaptive

    def hand_over(self, *job: Any) -> None:
        """Have a thread do the job; ``RuntimeError`` if none can be had."""
        try:
            hand = self._parked.pop()
        except IndexError:
            hand = Hand(self, job)
            self.busy.add(hand)
            try:
                hand.start()
            except BaseException:
                self.busy.discard(hand)
                raise
        else:
            self.busy.add(hand)
            hand.go_on(job)

    def do(self, hand: Hand, job: Job) -> bool:
        """Do a job in its thread; tell whether the thread may wait for another."""
        try:
            # What a hook leaves in context variables is not for the next client.
            contextvars.Context().run(self._serve, *job)
        finally:
            self.busy.discard(hand)
        with self._lock:
            if self._closed or len(self._parked) >= PARKED:
                return False
            self._parked.append(hand)
        return True

    def close(self) -> None:
        """Let the parked threads go, and those that are at work when their work is done."""
        with self._lock:
            self._closed = True
            parked, self._parked = self._parked, []
        for hand in parked:
            hand.go_on(None)
        for hand in parked:
            hand.join()


class Hand(threading.Thread):
    """One thread of a crew."""

    def __init__(self, crew: Crew, job: Job) -> None:
        super().__init__(daemon=True)
        self._crew = crew
        self._job: Optional[Job] = job
        self._gate = threading.Lock()
        self._gate.acquire()
        self._cores = crew.cores  # as the thread that makes it, which is bound to none

    def go_on(self, job: Optional[Job]) -> None:
        """Do another job; ``None`` is the end."""
        self._job = job
        self._gate.release()

    def run(self) -> None:
        """Do jobs until there is no more."""
        crew = self._crew
        while self._job is not None:
            job, self._job = self._job, None
            if crew.cores is not None:
                self._choose_cores(crew.cores)
            if not crew.do(self, job):
                return
            del job  # it holds the socket of a client that has gone
            self._gate.acquire()

    def _choose_cores(self, cores: FrozenSet[int]) -> None:
        if self._crew.adaptive and len(self._crew.busy) >= CROWDED:
            cores = frozenset((min(cores),))
        if cores != self._cores:
            try:
                os.sched_setaffinity(0, cores)  # of this thread
                self._cores = cores
            except OSError:
                self._crew.cores = None  # they were taken from the process meanwhile
