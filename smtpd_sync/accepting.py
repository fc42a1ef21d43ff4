"""Taking clients: the loop that accepts them, counts them, and gives each a thread.

It never waits for a client: who cannot be served is told so in one call, and closed.
"""

from __future__ import annotations

import contextlib
import itertools
import selectors
import socket
import socketserver
import sys
import threading
from typing import Any, List, Optional

from . import reply as replies
from .crew import Crew
from .crowd import Crowd
from .limits import Limits
from .listening import Listener, peer_of, without_delay
from .logs import log
from .reply import Reply
from .settings import Settings
from .stats import Counters
from .waker import Waker

__all__ = ["Accepting"]

PAUSE = 0.1  # after accept() failed for want of descriptors
INHERITS = sys.platform == "linux"
"""Whether an accepted socket has TCP_NODELAY of its listener, and blocks whatever that does."""


class Accepting(socketserver.ThreadingTCPServer):
    """The part of `SMTPServer` that takes clients."""

    limits: Limits
    settings: Settings
    crew: Crew
    crowd: Crowd
    counters: Counters
    stopping: bool
    _listeners: List[Listener]
    waker: Waker
    _control: Optional[socket.socket]
    _over: threading.Event
    _last_error: Optional[Exception]

    def obey(self) -> None:
        """Do what the supervisor says, in a worker process."""

    def _accept(self) -> None:
        with contextlib.ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            stack.enter_context(self.waker.woken_by_signals())
            keep_with_crew = stack.enter_context(self.crew.accompanied())
            for listener in self._listeners:
                listener.socket.setblocking(False)
                selector.register(listener.socket, selectors.EVENT_READ, listener.socket)
            selector.register(self.waker, selectors.EVENT_READ)
            if self._control is not None:
                selector.register(self._control, selectors.EVENT_READ)
            while not self.stopping:
                keep_with_crew()
                for key, _ in selector.select():
                    if key.data is not None:
                        self._accept_waiting(key.data)
                    elif key.fileobj is self._control:
                        self.obey()
                    else:
                        self.waker.rest()

    def _accept_waiting(self, listener: socket.socket) -> None:
        """Take who waits at a listener: all, or in a worker one, who leaves others theirs."""
        among_others = self._control is not None
        for _ in range(1) if among_others else itertools.count():
            if self.stopping:
                return
            try:
                request, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Out of descriptors, or the client has gone: neither ends the server.
                self._last_error = error
                self.counters.add(failed_accepts=1)
                self._over.wait(PAUSE)
                return
            if not self.verify_request(request, address):
                request.close()
            elif self.crowd.is_full(self.limits):
                self.counters.add(turned_away=1)
                self._turn_away(request, replies.TOO_BUSY)
            elif not self._count_in(address):
                self.counters.add(turned_away_by_address=1)
                self._turn_away(request, replies.TOO_MANY_OF_YOU)
            else:
                self.process_request(request, address)

    def _count_in(self, client_address: Any) -> bool:
        """Count a connection to its client's, unless that has too many. Proxies have no limit."""
        peer = peer_of(client_address)
        most = None if self.settings.is_trusted(peer) else self.limits.connections_per_address
        return self.crowd.census.enter(peer.address, most)

    def _count_out(self, client_address: Any) -> None:
        self.crowd.census.leave(peer_of(client_address).address)

    def _turn_away(self, request: socket.socket, reply: Reply) -> None:
        """Say 421 to a client that gets no thread, and do not wait for it."""
        request.setblocking(False)
        try:
            request.send(reply.render(extended=False))
        except OSError:
            pass  # it need not listen
        request.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the thread of a connection."""
        try:
            self.crew.hand_over(request, client_address)
        except RuntimeError as error:
            self._last_error = error
            self.counters.add(failed_accepts=1)
            self._count_out(client_address)
            self._turn_away(request, replies.TOO_BUSY)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client, in its thread."""
        self.counters.add(connections=1)
        try:
            if not INHERITS:
                request.setblocking(True)
                without_delay(request)
            self.finish_request(request, client_address)
        except Exception:
            log.exception("a session failed")
        finally:
            request.close()
            self._count_out(client_address)
            if self.stopping:
                self.crowd.tell()
