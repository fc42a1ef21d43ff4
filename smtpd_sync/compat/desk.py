"""Where threads leave work for the thread that is inside ``asyncore.loop()``.

There is one desk for each map of dispatchers, while somebody loops over it or works for it.
"""

from __future__ import annotations

import collections
import socket
import threading
from typing import Any, Callable, Deque, Dict

__all__ = ["Desk", "open_desk", "wake"]

_desks: Dict[int, Desk] = {}
_lock = threading.Lock()


def open_desk(map: Dict[int, Any]) -> Desk:
    """Give the desk of a map; whoever opens it closes it."""
    with _lock:
        desk = _desks.get(id(map))
        if desk is None:
            desk = _desks[id(map)] = Desk(map)
        desk.users += 1
    return desk


def wake(map: Dict[int, Any]) -> None:
    """Have a thread that waits in a loop over the map look at it again."""
    with _lock:  # nobody closes it meanwhile
        desk = _desks.get(id(map))
        if desk is not None:
            desk.wake()


class Desk:
    """A queue, and a socket pair that a loop finds readable once something lies there."""

    def __init__(self, map: Dict[int, Any]) -> None:
        self.users = 0
        self._map = map  # held, so that its id stays its own
        self._jobs: Deque[Callable[[], None]] = collections.deque()
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave it; with the last one it is gone, and so is what lies there."""
        with _lock:
            self.users -= 1
            if self.users == 0:
                del _desks[id(self._map)]
                self._receiver.close()
                self._sender.close()

    def fileno(self) -> int:
        """Give what a loop waits for."""
        return self._receiver.fileno()

    def leave(self, job: Callable[[], None]) -> None:
        """Leave a job, from any thread that has opened the desk."""
        self._jobs.append(job)
        self.wake()

    def wake(self) -> None:
        """End the wait of a loop."""
        try:
            self._sender.send(b"\0")
        except OSError:
            pass  # it is awake

    def work(self) -> None:
        """Do what lies there; what an exception keeps from being done is done the next time."""
        try:
            self._receiver.recv(4096)
        except BlockingIOError:
            pass
        try:
            for _ in range(len(self._jobs)):
                try:
                    job = self._jobs.popleft()
                except IndexError:
                    return  # another thread loops over this map, too
                job()
        finally:
            if self._jobs:
                self.wake()
