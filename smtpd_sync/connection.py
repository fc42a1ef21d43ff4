"""One connection: octets between the socket and the session, in one blocking thread.

Knows sockets, TLS and deadlines; which reply an event gets is the handler's.
"""

from __future__ import annotations

import logging
import socket
import socketserver
from time import monotonic
from typing import TYPE_CHECKING, Callable, List, Optional, Union

from . import reply as replies
from .command import Command
from .envelope import Peer
from .reply import Reply
from .session import END, NEED_DATA, Session
from .states import State
from .trace import new_id

if TYPE_CHECKING:
    from .sasl import SecretRequest
    from .server import SMTPServer
    from .tls import TLSStream

__all__ = ["Connection"]

log = logging.getLogger("smtpd_sync")

RECEIVE = 65_536
RECEIVE_MAIL = 262_144
NEVER = float("inf")
LINGER = 1.0
LINGER_OCTETS = 1_048_576


class Connection(socketserver.BaseRequestHandler):
    """Drives one session over one socket: the base of `SMTPHandler`, which answers its events."""

    server: SMTPServer
    request: socket.socket
    session: Session

    # -- what the handler adds ---------------------------------------------------------------

    def answer(self, event: Command) -> Union[Reply, List[Reply]]:
        """Decide on an event."""
        raise NotImplementedError

    def store(self, content: bytes) -> None:
        """Take mail data."""
        raise NotImplementedError

    def find_secret(self, request: SecretRequest) -> None:
        """Fill in what a SASL mechanism asks for."""
        raise NotImplementedError

    def over(self) -> None:
        """The connection is over."""

    # -- the life of a connection ------------------------------------------------------------

    def setup(self) -> None:
        """Take the connection over from the server."""
        # Of a Unix socket the address is a path, mostly none.
        known = isinstance(self.client_address, tuple)
        address, port = self.client_address[:2] if known else ("", 0)
        peer = Peer(address[7:] if address.startswith("::ffff:") else address, port)
        self.settings = self.server.settings  # as they are now: configure() is for others
        self.session = Session(self.settings.rules_for(peer), peer)
        self.session.id = new_id()
        self.stream: Union[socket.socket, TLSStream] = self.request
        self.deadline = NEVER  # of what the thread waits for; the reaper ends the wait then
        self.waiting = False  # for the client to say something
        self.negotiating = False  # with a proxy, or TLS: nothing can be said meanwhile
        self.closing = False
        self.last_words: Optional[Reply] = None  # why the wait was ended
        self.reason = "closed"  # why it ended
        self._command_due: Optional[float] = None
        self.linger = True  # at the close, for the client to read our last reply
        self.hanging_up = False  # after the reply at hand
        self.server.session_started(self)

    def handle(self) -> None:
        """Hold the conversation to its end."""
        session = self.session
        if self.settings.is_proxy(self.peer) and not self._hear_proxy():
            return
        if self.settings.implicit_tls and not self._start_tls():
            return
        self._hear_early_talker()
        while (event := session.next_event()) is not END:
            if event is NEED_DATA:
                self.send(session.data_to_send())
                session.receive_data(self.receive())
            elif event.verb == "content":
                self.store(event.argument)
            elif event.verb == "secret":
                self.find_secret(event.argument)
            else:
                reply = self.answer(event)
                if self.hanging_up and isinstance(reply, Reply):
                    session.close(reply)
                else:
                    session.reply(reply)
                self.send(session.data_to_send())
                if session.state is State.TLS and not self._start_tls():
                    return
        self.send(session.data_to_send())

    def finish(self) -> None:
        """Close the connection so that the last reply arrives, and tell the hook."""
        self.closing = True
        session = self.session
        log.info(
            "session=%s peer=%s helo=%r end=%s",
            session.id,
            self.peer.address,
            session.helo,
            self.reason,
        )
        try:
            self._close()
        except OSError:
            pass  # the client closed first
        try:
            self.over()
        finally:
            self.server.session_over(self)

    @property
    def peer(self) -> Peer:
        """The client, as a trusted proxy named it if there is one."""
        return self.session.peer

    # -- octets ------------------------------------------------------------------------------

    def receive(self) -> bytes:
        """Give what the client sends; ``b""`` at the end of input, or when it is to end."""
        session, limits = self.session, self.settings.limits
        receiving_mail = session.receiving_mail
        if self._command_due is None:
            self._command_due = monotonic() + limits.command_timeout
        self.deadline = self._command_due
        self.waiting = True
        if self.server.stopping and not session.in_transaction:
            self.last_words, data = replies.SHUTTING_DOWN, b""
        else:
            try:
                data = self.stream.recv(RECEIVE_MAIL if receiving_mail else RECEIVE)
            except OSError:
                data = b""  # reset by the client, or no TLS any more
        self.waiting, self.deadline = False, NEVER
        if not data:
            if self.last_words is not None:
                self.reason = self.last_words.text
                session.close(self.last_words)
            else:
                self.reason, self.linger = "lost", False
        elif receiving_mail:
            # Each octet wins time, but never more than the whole time-out (as Postfix does).
            won = self._command_due + len(data) / limits.data_rate
            self._command_due = min(won, monotonic() + limits.command_timeout)
        return data

    def send(self, data: bytes) -> None:
        """Send replies, in one call, and give the client its full time for what comes next."""
        if not data:
            return
        self._command_due = None
        self.deadline = monotonic() + self.settings.limits.command_timeout
        try:
            self.stream.sendall(data)
        except OSError:
            self.reason, self.linger = "lost", False
            self.session.close()
        self.deadline = NEVER

    # -- called from other threads -----------------------------------------------------------

    def expire(self) -> None:
        """The deadline has passed: end the wait, with a last word if the client may hear it."""
        if self.deadline > monotonic():
            return  # the wait has ended meanwhile
        if self.waiting and self.last_words is None:
            self.deadline = monotonic() + LINGER
            self._wake(replies.TIMED_OUT)
        else:
            self.abort()

    def stop(self) -> None:
        """The server stops: let a transaction go on, end any other wait."""
        if self.closing:
            self.abort()
        elif self.negotiating:
            self.deadline = min(self.deadline, monotonic() + LINGER)  # to hear 421 behind it
        elif self.waiting and not self.session.in_transaction:
            self._wake(replies.SHUTTING_DOWN)

    def _wake(self, last_words: Reply) -> None:
        self.last_words = last_words
        self._shut(socket.SHUT_RD)

    def abort(self) -> None:
        """End every wait, and the connection."""
        self._shut(socket.SHUT_RDWR)

    def _shut(self, how: int) -> None:
        try:
            self.request.shutdown(how)
        except OSError:
            pass  # it is closed already

    def _negotiate(self, what: str, level: int, timeout: float, talk: Callable[[], None]) -> bool:
        """Talk with a proxy or TLS; close without a word, and ``False``, if that fails."""
        self.deadline = monotonic() + timeout
        self.negotiating = True
        if self.server.stopping:
            self.stop()
        try:
            talk()
        except (OSError, ValueError) as error:
            log.log(level, "%s: %s %s: %s", self.session.id, what, self.peer.address, error)
            self.reason, self.linger = f"{what} failed", False
            self.session.close()
            return False
        finally:
            self.negotiating, self.deadline = False, NEVER
        return True

    def _hear_proxy(self) -> bool:
        """Read who the client is from the proxy."""
        from .proxy import read_header

        def talk() -> None:
            peer = read_header(self._read_exactly)
            if peer is not None:
                self.session.peer = peer
                self.session.rules = self.settings.rules_for(peer)

        return self._negotiate("proxy", logging.WARNING, self.settings.limits.proxy_timeout, talk)

    def _read_exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.request.recv(count - len(data))
            if not more:
                raise ValueError("PROXY header cut short")
            data += more
        return data

    def _hear_early_talker(self) -> None:
        """Let the session see what came before the greeting (RFC 5321 3.1)."""
        if self.session.tls is None and self.settings.strict_pipelining:
            self.request.setblocking(False)
            try:
                early = self.request.recv(RECEIVE)
            except OSError:
                early = b""  # nothing yet, as it should be
            self.request.setblocking(True)
            if early:
                self.session.receive_data(early)

    def _start_tls(self) -> bool:
        """Do the handshake; ``False`` if there is nobody to talk to any more."""
        from .tls import TLSStream

        # The certificate of now, where it was renewed since the connection began.
        context = self.server.settings.context or self.settings.context
        assert context is not None, "STARTTLS is offered only where there is one"
        stream = TLSStream(self.request, context)

        def talk() -> None:
            self.session.tls_started(stream.handshake())
            self.stream = stream

        return self._negotiate(
            "TLS handshake", logging.INFO, self.settings.limits.handshake_timeout, talk
        )

    def _close(self) -> None:
        """Close; linger where what the client still sends would reset the connection."""
        self.deadline = monotonic() + LINGER
        if not isinstance(self.stream, socket.socket):
            self.stream.close_notify()
        self.request.shutdown(socket.SHUT_WR)
        if self.linger and not self.server.stopping:
            self.request.settimeout(LINGER)
            room = LINGER_OCTETS
            while room > 0 and (octets := len(self.request.recv(RECEIVE))):
                room -= octets
