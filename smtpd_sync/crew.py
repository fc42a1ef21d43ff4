"""Threads that serve one connection after another.

A thread that has served its client parks, and waits for the next: to make one takes as long as a
whole short session. A connection still has one thread from its first octet to its last.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import threading
from typing import Any, Callable, FrozenSet, Iterator, List, Optional, Set, Tuple

from .place import Place

__all__ = ["Crew"]

PARKED = 128
CROWDED = 3
Job = Tuple[Any, ...]


class Crew:
    """The threads of a server, and which of them are at work.

    Where it is ``adaptive``: while three or more are at work, they and the thread that accepts keep
    to one core. Threads of one interpreter run one at a time, and to hand over from core to core
    costs more than it is worth.
    """

    def __init__(self, serve: Callable[..., None]) -> None:
        self.busy: Set[threading.Thread] = set()
        """Those at work."""
        self._serve = serve
        self._parked: List[Hand] = []
        self._lock = threading.Lock()
        self._closed = False
        self.adaptive = False
        # Once it is asked to be adaptive: the cores of the process, and the one for a crowd.
        self._places: Optional[Tuple[FrozenSet[int], FrozenSet[int]]] = None

    def adapt(self, adaptive: bool) -> None:
        """Have the jobs to come done on one core while it is crowded, or no longer."""
        if adaptive and self._places is None:
            # Of the process: the thread that calls may be one of ours, and bound.
            cores = frozenset(os.sched_getaffinity(os.getpid()))
            self._places = cores, frozenset((min(cores),))
        self.adaptive = adaptive

    def stay(self) -> None:
        """Move no thread, now or later, unless it is asked to `adapt` again."""
        self.adaptive, self._places = False, None

    def place(self, place: Place) -> None:
        """Have the thread that calls, and whose ``place`` it is, work where the crew works now."""
        if self._places is not None:
            anywhere, one = self._places
            crowded = self.adaptive and len(self.busy) >= CROWDED
            self._move(place, one if crowded else anywhere, crowded)

    @contextlib.contextmanager
    def accompanied(self) -> Iterator[Callable[[], None]]:
        """Give what keeps the thread that calls where the crew works, at each call of it."""
        place = Place()
        try:
            yield functools.partial(self.place, place)
        finally:
            if self._places is not None:
                self._move(place, self._places[0], False)

    def _move(self, place: Place, cores: FrozenSet[int], crowded: bool) -> None:
        try:
            place.move(cores, crowded)
        except OSError:
            self.stay()  # the cores were taken from the process meanwhile

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
        self._place = Place()

    def go_on(self, job: Optional[Job]) -> None:
        """Do another job; ``None`` is the end."""
        self._job = job
        self._gate.release()

    def run(self) -> None:
        """Do jobs until there is no more."""
        crew = self._crew
        while self._job is not None:
            job, self._job = self._job, None
            crew.place(self._place)
            if not crew.do(self, job):
                return
            del job  # it holds the socket of a client that has gone
            self._gate.acquire()
