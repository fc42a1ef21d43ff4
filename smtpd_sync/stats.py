"""What a server has done and holds, in numbers."""

from __future__ import annotations

import threading
from typing import Dict, Mapping

__all__ = ["COUNTERS", "Counters"]

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


class Counters:
    """Counts that many threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(COUNTERS, 0)

    def add(self, **amounts: int) -> None:
        """Add to some of them."""
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] += amount

    def snapshot(self) -> Dict[str, int]:
        """Give them as they are. Takes no lock: a signal handler may ask."""
        return dict(self._counts)
