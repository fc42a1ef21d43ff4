"""Who is connected: the threads and sessions of a server, their caps, their deadlines, their end.

Knows threads and clocks; sockets are the connections' own.
"""

from __future__ import annotations

import socket
import threading
from time import monotonic
from typing import TYPE_CHECKING, Callable, Dict, Optional, Set, Union

from .crew import Crew
from .limits import Limits

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["Census", "Crowd"]

REAPER_PERIOD = 0.5
PATIENCE = 0.02  # who leaves may do so unheard


def network_of(address: str) -> Union[str, bytes, None]:
    """Give what counts as one client: an IPv4 address, an IPv6 /64; ``None`` is our own machine.

    Who has one IPv6 address has its whole /64 (RFC 6177).
    """
    if not address or address.startswith("127.") or address == "::1":
        return None
    if ":" not in address:
        return address
    return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:8]


class Census:
    """How many connections each client has."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Dict[Union[str, bytes], int] = {}

    def enter(self, address: str, most: Optional[int]) -> bool:
        """Count a connection in, unless its client has ``most`` already."""
        network = network_of(address)
        if network is None:
            return True
        with self._lock:
            count = self._counts.get(network, 0)
            if most is not None and count >= most:
                return False
            self._counts[network] = count + 1
        return True

    def leave(self, address: str) -> None:
        """Count a connection out."""
        network = network_of(address)
        if network is None:
            return
        with self._lock:
            self._counts[network] -= 1
            if not self._counts[network]:
                del self._counts[network]


class Crowd:
    """The live threads and sessions."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self.sessions: Set[Connection] = set()
        self.census = Census()
        self._change = threading.Condition()

    @property
    def threads(self) -> Set[threading.Thread]:
        """The threads that serve a client."""
        return self._crew.busy

    def tell(self) -> None:
        """Tell who waits that somebody leaves."""
        with self._change:
            self._change.notify_all()

    def is_full(self, limits: Limits) -> bool:
        """Tell whether nobody else may come."""
        return len(self._crew.busy) >= limits.connections

    def is_stressed(self, limits: Limits) -> bool:
        """Tell whether four fifths of the places are taken."""
        return len(self._crew.busy) * 5 >= limits.connections * 4

    def reap(self, limits: Limits) -> None:
        """End the waits whose deadline has passed."""
        stressed = self.is_stressed(limits)
        now = monotonic()
        for session in list(self.sessions):
            if session.is_late(now, stressed):
                session.expire(stressed)

    def stop(self) -> None:
        """Let each session know that the server stops."""
        for session in list(self.sessions):
            session.stop()

    def abort(self) -> int:
        """Cut off the sessions that live; tell how many."""
        sessions = list(self.sessions)
        for session in sessions:
            session.abort()
        return len(sessions)

    def wait(self, deadline: Callable[[], float]) -> bool:
        """Wait until nobody is here any more; ``False`` at the ``deadline``, which may change."""
        with self._change:
            while self.threads:
                left = deadline() - monotonic()
                if left <= 0:
                    return False
                self._change.wait(min(left, PATIENCE))
        return True


def reaper_period(limits: Limits) -> float:
    """Give the seconds between two looks at the deadlines."""
    times = (
        limits.command_timeout,
        limits.handshake_timeout,
        limits.stress_timeout,
        limits.session_time or REAPER_PERIOD * 4,
    )
    return min(REAPER_PERIOD, min(times) / 4)
