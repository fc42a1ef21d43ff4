"""One connection: octets between the socket and the session, in one blocking thread.

Knows sockets, TLS and deadlines; which reply an event gets is the handler's.
"""

from __future__ import annotations

import socket
import socketserver
from time import monotonic
from typing import TYPE_CHECKING, Dict, List, Optional, Union

from . import reply as replies
from .command import Command
from .envelope import Peer
from .listening import peer_of
from .logs import DEBUG, INFO, current_session, log, pairs
from .reply import Reply
from .sending import FLAGS
from .session import END, NEED_DATA, Session
from .states import CLOSED, TLS_DUE
from .trace import new_id
from .transcript import Transcript

if TYPE_CHECKING:
    from .sasl import SecretRequest
    from .server import SMTPServer
    from .tls import TLSStream

__all__ = ["Connection"]

RECEIVE_FIRST = 1_024  # a thread that waits holds the room that it asked for
RECEIVE = 65_536
# For mail data that fills the room. It is more than malloc() has at hand: to map and unmap it for a
# small message interrupts the other cores, and takes longer than all else that is done for it.
RECEIVE_MUCH = 262_144
MSG_DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)
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

    def _store(self, content: bytes) -> None:
        """Take mail data."""
        raise NotImplementedError

    def find_secret(self, request: SecretRequest) -> None:
        """Fill in what a SASL mechanism asks for."""
        raise NotImplementedError

    def over(self) -> None:
        """The connection is over."""

    def _hear_proxy(self) -> bool:
        """Read who the client is from the proxy; ``False`` if there is nobody to talk to."""
        raise NotImplementedError

    def _start_tls(self) -> bool:
        """Do the handshake; ``False`` if there is nobody to talk to any more."""
        raise NotImplementedError

    # -- the life of a connection ------------------------------------------------------------

    def setup(self) -> None:
        """Take the connection over from the server."""
        peer = peer_of(self.client_address)
        self.settings = settings = self.server.settings  # of now: configure() is for others
        self._limits = limits = settings.limits
        self.session = Session(settings.rules_for(peer), peer)
        self.session.id = new_id()
        current_session.set(self.session.id)
        self._followed = log.isEnabledFor(DEBUG)
        if self._followed or settings.transcript:
            lines = limits.transcript if settings.transcript else 0
            self.session.recorder = Transcript(lines, self._followed)
        self._stream: Union[socket.socket, TLSStream] = self.request
        self._at_once = self.server.send_at_once
        self._began = monotonic()
        self._accepted = 0
        """How many messages were accepted."""
        self._deadline = NEVER  # of what the thread waits for; the reaper ends the wait then
        self._hurry = max(0.0, limits.command_timeout - limits.stress_timeout)
        """Seconds that the deadline is earlier under stress."""
        self._bounded = limits.session_time is not None
        self._session_due = self._began + (limits.session_time or NEVER)
        self._farewell_due = NEVER  # that time, while it may end a wait; no stress makes it earlier
        self._counted = ""  # the address, where it is not the accept loop that counted it
        self._waiting = False  # for the client to say something
        self._negotiating = False  # with a proxy, or TLS: nothing can be said meanwhile
        self._closing = False
        self._last_words: Optional[Reply] = None  # why the wait was ended
        self._reason = "closed"  # why it ended
        self._command_due: Optional[float] = None
        self._room, self._mail_room = RECEIVE_FIRST, RECEIVE
        self._linger = True  # at the close, for the client to read our last reply
        self._hanging_up = False  # after the reply at hand
        self.server.crowd.sessions.add(self)

    def handle(self) -> None:
        """Hold the conversation to its end."""
        session = self.session
        if self.settings.is_proxy(self.peer) and not self._hear_proxy():
            return
        greetable = session.state is not CLOSED  # not one too many of the proxy's client
        if greetable and self.settings.implicit_tls and not self._start_tls():
            return
        self._hear_early_talker()
        while (event := session.next_event()) is not END:
            if self._followed:
                self._log_dialogue()
            if event is NEED_DATA:
                if session.outbox:
                    self._send(session.data_to_send())
                session.receive_data(self._receive())
            elif (verb := event.verb) == "content":
                self._store(event.argument)
            elif verb == "secret":
                self.find_secret(event.argument)
            elif verb == "MAIL" and self.server.stopping:
                # Who sends the next MAIL right behind each message is never seen waiting.
                self._part(replies.SHUTTING_DOWN)
            else:
                self._reply(event)
                if session.state is TLS_DUE and not self._start_tls():
                    return
        self._send(session.data_to_send())

    def _reply(self, event: Command) -> None:
        """Answer an event. No local name of `handle` holds the reply while the thread waits."""
        session, reply = self.session, self.answer(event)
        if self._hanging_up and isinstance(reply, Reply):
            session.close(reply)
        else:
            session.reply(reply)
        self._send(session.data_to_send())

    def _part(self, reply: Reply) -> None:
        """End the session with a last word."""
        self._reason = reply.text
        self.session.close(reply)

    def finish(self) -> None:
        """Close the connection so that the last reply arrives, and tell the hook."""
        self._closing = True
        session = self.session
        if self._followed:
            self._log_dialogue()
        if log.isEnabledFor(INFO):
            seconds = monotonic() - self._began
            who = self._who()
            log.info(pairs(**who, messages=self._accepted, end=self._reason, seconds=seconds))
        if session.failures:
            self.server.counters.add(failed_auth=session.failures)
        try:
            self._close()
        except OSError:
            pass  # the client closed first
        try:
            self.over()
        finally:
            if self._counted:
                self.server.crowd.census.leave(self._counted)
            self.server.crowd.sessions.discard(self)

    def _who(self) -> Dict[str, object]:
        """Name the session and its client, for the log."""
        session = self.session
        return {
            "session": session.id,
            "peer": session.peer.address or None,
            "helo": session.helo or None,
            "user": session.user,
            "tls": session.tls and session.tls.version,
        }

    def _fault(self, what: str) -> None:
        """Log what our own side did wrong, with the traceback of the exception at hand."""
        self.server.counters.add(faults=1)
        log.exception("session=%s %s", self.session.id, what)

    def _log_dialogue(self) -> None:
        """Log what was said since the last time."""
        recorder = self.session.recorder
        assert recorder is not None, "it is made where the log is at DEBUG"
        for line in recorder.news():
            log.debug("session=%s %s", self.session.id, line)

    @property
    def peer(self) -> Peer:
        """The client, as a trusted proxy named it if there is one."""
        return self.session.peer

    # -- octets ------------------------------------------------------------------------------

    def _receive(self) -> bytes:
        """Give what the client sends; ``b""`` at the end of input, or when it is to end."""
        receiving_mail = self.session.receiving_mail
        due = self._command_due
        if due is None:
            self._command_due = due = monotonic() + self._limits.command_timeout
        self._deadline, self._waiting = due, True
        farewell = self._farewell() if self._bounded or self.server.stopping else None
        if farewell is not None:
            self._last_words, data = farewell, b""
        else:
            try:
                data = self._stream.recv(self._mail_room if receiving_mail else self._room)
            except OSError:
                data = b""  # reset by the client, or no TLS any more
        self._deadline, self._waiting = NEVER, False
        if self._bounded:
            self._farewell_due = NEVER
        if not data:
            if self._last_words is not None:
                self._part(self._last_words)
            else:
                self._reason, self._linger = "lost", False
        elif receiving_mail:
            # Each octet wins time, but never more than the whole time-out (as Postfix does).
            limits = self._limits
            won = due + len(data) / limits.data_rate
            self._command_due = min(won, monotonic() + limits.command_timeout)
            self._mail_room = RECEIVE_MUCH if len(data) >= RECEIVE else RECEIVE
        else:
            self._room = RECEIVE if len(data) >= RECEIVE_FIRST else RECEIVE_FIRST
        return data

    def _farewell(self) -> Optional[Reply]:
        """Give the reason why the session ends here, if there is one; never in a transaction."""
        if self.session.in_transaction:
            return None
        if self.server.stopping:
            return replies.SHUTTING_DOWN
        if self._session_due < NEVER:
            if self._session_due <= monotonic():
                return replies.SESSION_TOO_LONG
            self._farewell_due = self._session_due
        return None

    def _send(self, data: bytes) -> None:
        """Send replies, in one call, and give the client its full time for what comes next."""
        if not data:
            return
        self._command_due = None
        if self._at_once is not None:
            # The number is asked for each time: a hook that closed the socket may have made it
            # that of another client.
            sent = self._at_once(self.request.fileno(), data, len(data), FLAGS)
            if sent == len(data):
                return
            data = data[max(0, sent) :]
        self._deadline = monotonic() + self._limits.command_timeout
        try:
            self._stream.sendall(data)
        except OSError:
            self._reason, self._linger = "lost", False
            self.session.close()
        self._deadline = NEVER

    # -- called from other threads -----------------------------------------------------------

    def is_late(self, now: float, stressed: bool) -> bool:
        """Tell whether the deadline has passed; ``stressed``: that of a server nearly full."""
        patience = self._deadline - (self._hurry if stressed else 0)
        return patience <= now or self._farewell_due <= now

    def expire(self, stressed: bool) -> None:
        """The deadline has passed: end the wait, with a last word if the client may hear it."""
        now = monotonic()
        if not self.is_late(now, stressed):
            return  # the wait has ended meanwhile
        if self._last_words is None and not self._closing:
            self.server.counters.add(timeouts=1)
        if self._waiting and self._last_words is None:
            too_long = self._farewell_due <= now
            self._deadline, self._hurry, self._farewell_due = now + LINGER, 0.0, NEVER
            self._wake(replies.SESSION_TOO_LONG if too_long else replies.TIMED_OUT)
        else:
            self._deadline = NEVER
            self.abort()

    def stop(self) -> None:
        """The server stops: let a transaction go on, end any other wait."""
        if self._negotiating:
            # To hear 421 behind it.
            self._deadline, self._hurry = min(self._deadline, monotonic() + LINGER), 0.0
        elif self._waiting and not self.session.in_transaction:
            self._wake(replies.SHUTTING_DOWN)

    def _wake(self, last_words: Reply) -> None:
        self._last_words = last_words
        self._shut(socket.SHUT_RD)

    def abort(self) -> None:
        """End every wait, and the connection."""
        self._shut(socket.SHUT_RDWR)

    def _shut(self, how: int) -> None:
        try:
            self.request.shutdown(how)
        except OSError:
            pass  # it is closed already

    def _hear_early_talker(self) -> None:
        """Let the session see what came before the greeting (RFC 5321 3.1)."""
        if self.session.tls is None and self.settings.strict_pipelining:
            try:
                early = self.request.recv(RECEIVE, MSG_DONTWAIT)
            except OSError:
                return  # nothing yet, as it should be
            if early:
                self.session.receive_data(early)

    def _close(self) -> None:
        """Close; linger where what the client still sends would reset the connection."""
        self._deadline, self._hurry = monotonic() + LINGER, 0.0
        if not isinstance(self._stream, socket.socket):
            self._stream.close_notify()
        if self._linger:
            self.request.shutdown(socket.SHUT_WR)
            # A server that stops waits only for a client that talks: to close on what it sends
            # would reset the connection, and the reply that it has not read would be lost.
            self.request.settimeout(0 if self.server.stopping else LINGER)
            room = LINGER_OCTETS
            while room > 0 and (octets := len(self.request.recv(RECEIVE))):
                room -= octets
                self.request.settimeout(LINGER)
