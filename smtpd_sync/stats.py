"""What a server has done and holds, in numbers."""

from __future__ import annotations

import threading
from typing import Dict, Mapping, MutableSequence, Union

__all__ = ["COUNTERS", "GAUGES", "NAMES", "Counters"]

COUNTERS: Mapping[str, str] = {
    "connections": "connections that were taken",
    "turned_away": "clients told 421 4.3.2, for too many connections",
    "turned_away_by_address": "clients told 421 4.7.0, for too many of their own",
    "failed_accepts": "times that no descriptor or no thread could be had",
    "messages": "messages that were accepted",
    "recipients": "their recipients",
    "octets": "octets of their mail data",
    "refused_messages": "messages refused at the end of mail data",
    "tls": "TLS handshakes that succeeded",
    "failed_tls": "TLS handshakes that failed",
    "auth": "AUTH exchanges that let somebody in",
    "failed_auth": "AUTH exchanges that did not, of sessions that are over",
    "timeouts": "waits that the server ended, for a deadline",
    "faults": "hooks and sinks that failed",
}
"""What is counted from the start on: name -> meaning."""

GAUGES: Mapping[str, str] = {
    "sessions": "clients that are served now",
    "memory": "octets of mail data in memory now",
    "spool": "octets of mail data in temporary files now",
}
"""What there is now: name -> meaning."""

NAMES = (*COUNTERS, *GAUGES)
PLACES = {name: place for place, name in enumerate(NAMES)}
MESSAGES, RECIPIENTS, OCTETS = (PLACES[name] for name in ("messages", "recipients", "octets"))


class Counters:
    """Counts that many threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Union[MutableSequence[int], memoryview[int]] = [0] * len(NAMES)

    def use(self, counts: memoryview[int]) -> None:
        """Count there from now on: in memory that the supervisor of a worker sees."""
        self._counts = counts

    def add(self, **amounts: int) -> None:
        """Add to some of them."""
        counts = self._counts
        with self._lock:
            for name in amounts:
                counts[PLACES[name]] += amounts[name]

    def add_message(self, recipients: int, octets: int) -> None:
        """Add a message that was accepted: the one sum that is due for each of them."""
        counts = self._counts
        with self._lock:
            counts[MESSAGES] += 1
            counts[RECIPIENTS] += recipients
            counts[OCTETS] += octets

    def show(self, gauges: Mapping[str, int]) -> None:
        """Say what there is now."""
        for name, value in gauges.items():
            self._counts[PLACES[name]] = value

    def snapshot(self) -> Dict[str, int]:
        """Give them as they are. Takes no lock: a signal handler may ask."""
        return dict(zip(NAMES, self._counts))
