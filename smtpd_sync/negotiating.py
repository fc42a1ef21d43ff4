"""What is settled before a session, or in the middle of it: a proxy's header, and TLS.

Nothing can be said to the client meanwhile; a failure ends the connection without a word.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Callable

from . import reply as replies
from .connection import NEVER, Connection
from .logs import INFO, WARNING, log

if TYPE_CHECKING:
    import ssl

__all__ = ["Negotiating"]


class Negotiating(Connection):
    """The part of a connection that talks with a proxy and does handshakes."""

    def _negotiate(self, what: str, level: int, timeout: float, talk: Callable[[], None]) -> bool:
        """Talk with a proxy or TLS; close without a word, and ``False``, if that fails."""
        hurry, self._hurry = self._hurry, max(0.0, timeout - self._limits.stress_timeout)
        self._deadline = monotonic() + timeout
        self._negotiating = True
        if self.server.stopping:
            self.stop()
        try:
            talk()
        except (OSError, ValueError) as error:
            where = self.session.id, self.peer.address
            log.log(level, "session=%s peer=%s %s failed: %s", *where, what, error)
            self._reason, self._linger = f"{what} failed", False
            self.session.close()
            return False
        finally:
            self._negotiating, self._deadline, self._hurry = False, NEVER, hurry
        return True

    def _hear_proxy(self) -> bool:
        """Read who the client is from the proxy; ``False`` if there is nobody to talk to."""
        from .proxy import read_header

        def talk() -> None:
            peer = read_header(self._read_exactly)
            if peer is not None:
                self.session.peer = peer
                self.session.rules = self.settings.rules_for(peer)
                self._count_client()

        return self._negotiate("proxy", WARNING, self._limits.proxy_timeout, talk)

    def _count_client(self) -> None:
        """Count the client of a proxy, which the accept loop could not know."""
        limits = self._limits
        if self.server.crowd.census.enter(self.peer.address, limits.connections_per_address):
            self._counted = self.peer.address
        else:
            self.server.counters.add(turned_away_by_address=1)
            self._part(replies.TOO_MANY_OF_YOU)

    def _read_exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.request.recv(count - len(data))
            if not more:
                raise ValueError("PROXY header cut short")
            data += more
        return data

    def _start_tls(self) -> bool:
        """Do the handshake; ``False`` if there is nobody to talk to any more."""
        from .tls import TLSStream

        stream = TLSStream(self.request, self._context(), self._at_once)

        def talk() -> None:
            self.session.tls_started(stream.handshake())
            self._stream, self._at_once = stream, None

        timeout = self._limits.handshake_timeout
        done = self._negotiate("TLS handshake", INFO, timeout, talk)
        self.server.counters.add(**{"tls" if done else "failed_tls": 1})
        return done

    def _context(self) -> ssl.SSLContext:
        # The certificate of now, where it was renewed since the connection began.
        context = self.server.settings.context or self.settings.context
        assert context is not None, "STARTTLS is offered only where there is one"
        return context
