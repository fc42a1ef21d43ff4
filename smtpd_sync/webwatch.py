"""Those who watch for mail: each is told what happens as it happens, as server-sent events.

Nobody asks again and again: a watcher waits for the condition of the `Catch`.
"""

from __future__ import annotations

import contextlib
import json
from typing import Iterator, List, Tuple

from .catch import Catch
from .caught import CaughtMail
from .webview import Rows

__all__ = ["Watchers"]

MOST_WATCHERS = 24
HEARTBEAT = 15.0
"""Seconds after which a watcher that has gone is noticed."""


class Watcher:
    """One of them, and how far it has got."""

    def __init__(self, catch: Catch) -> None:
        self._catch = catch
        self._seen = self._now()
        self.over = False

    def _now(self) -> Tuple[int, int]:
        return self._catch.arrived, self._catch.cleared

    def _is_due(self) -> bool:
        return self.over or self._now() != self._seen

    def wait(self) -> Tuple[bool, List[CaughtMail]]:
        """Wait for news, or a while; give whether all was cleared, and what came after."""
        catch = self._catch
        with catch.news:
            catch.news.wait_for(self._is_due, HEARTBEAT)
            (arrived, cleared), self._seen = self._seen, self._now()
            new = catch.messages[max(0, len(catch.messages) + arrived - catch.arrived) :]
            return cleared != catch.cleared, new


class Watchers:
    """All of them; there are so many at most, and of more the oldest goes."""

    def __init__(self, catch: Catch, rows: Rows) -> None:
        self._catch = catch
        self._rows = rows
        self._all: List[Watcher] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[Iterator[bytes]]:
        """Give what happens from now on, as it is sent."""
        with self._catch.news:
            if len(self._all) >= MOST_WATCHERS:
                self._end(self._all[0])
            watcher = Watcher(self._catch)
            self._all.append(watcher)
        try:
            yield self._events(watcher)
        finally:
            with self._catch.news:
                self._end(watcher)

    def end(self) -> None:
        """Have all of them go."""
        with self._catch.news:
            for watcher in self._all[:]:
                self._end(watcher)

    def _end(self, watcher: Watcher) -> None:
        watcher.over = True
        if watcher in self._all:
            self._all.remove(watcher)
        self._catch.news.notify_all()

    def _events(self, watcher: Watcher) -> Iterator[bytes]:
        yield b"retry: 1000\n\n"
        while True:
            cleared, new = watcher.wait()
            if watcher.over:
                return
            events = [b"event: clear\ndata: {}\n\n"] if cleared else []
            rows = (json.dumps(self._rows.row(mail)).encode() for mail in new)
            events.extend(b"event: mail\ndata: " + row + b"\n\n" for row in rows)
            yield b"".join(events) or b": still here\n\n"
