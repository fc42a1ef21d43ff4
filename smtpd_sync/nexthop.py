"""The client's side of SMTP: one connection to the next hop, which is not trusted to be sane.

Built on the standard library's client, whose EHLO and AUTH serve. Its replies do not: here they are
bounded in size and in time, and one that nobody asked for is never taken for the answer to the next
command. What goes wrong with the connection itself is `Lost`, and the connection is closed then.
"""

from __future__ import annotations

import logging
import re
import smtplib
import socket
import ssl
from time import monotonic
from typing import IO, TYPE_CHECKING, Iterator, NoReturn, Tuple

from . import reply as replies
from .data import ChunkDecoder
from .logs import log, pairs
from .reply import Reject, Reply

if TYPE_CHECKING:
    from .relay import Relay

__all__ = ["Lost", "NextHop", "connect", "stuffed"]

UNREACHABLE = Reply(451, "The next hop cannot be reached", "4.4.1")
LOST = Reply(451, "The connection to the next hop was lost", "4.4.2")
TOO_SLOW = Reply(451, "The next hop did not answer in time", "4.4.2")
GARBLED = Reply(451, "The next hop does not speak SMTP", "4.5.0")
NOT_SECURE = Reply(451, "There is no trusted TLS to the next hop", "4.7.5")
NOT_LET_IN = Reply(451, "The next hop does not let us in", "4.7.0")

CHUNK = 262_144
RECEIVE = 8_192
MOST_REPLY = 65_536  # octets, of all its lines
MOST_TEXT = 2_000  # characters of a reply that are passed on
PARTING = 1.0
# The end of mail data may take ten minutes (RFC 5321 4.5.3.2.6) where others take one.
PATIENCE_AT_END = 10

_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])(.*))?", re.DOTALL)
_STATUS = re.compile(r"([245])(\.[0-9]{1,3}\.[0-9]{1,3})(?: |\Z)")


class Lost(Reject):
    """There is no connection to the next hop, or no more; what to tell our client (451)."""


class TLSFailed(Lost):
    """The handshake failed, or the certificate is not trusted."""


def connect(relay: Relay, hostname: str) -> NextHop:
    """Connect, and go as far as MAIL; ``Lost`` if that cannot be."""
    try:
        return NextHop(relay, hostname, encrypted=relay.tls is not False)
    except TLSFailed:
        if relay.tls is not None:
            raise
    # Where TLS is not required, what cannot be encrypted goes in the clear (RFC 7435 3).
    return NextHop(relay, hostname, encrypted=False)


class NextHop(smtplib.SMTP):
    """A connection to the next hop, ready for MAIL once it is made."""

    def __init__(self, relay: Relay, hostname: str, encrypted: bool) -> None:
        super().__init__(local_hostname=hostname, timeout=relay.timeout)
        self.verified = False
        """Whether its certificate was verified."""
        self.logged_in = False
        self.in_transaction = False
        """Whether it has heard MAIL, and not the end of that."""
        self._where = relay.host, relay.port
        self._patience = relay.timeout
        self._buffer = b""
        self._may_end = False  # and nobody need look into it
        try:
            self._begin(relay, encrypted)
        except (OSError, UnicodeError) as error:  # the name of a host may be no name
            self._lose(UNREACHABLE, error)

    # -- the beginning -----------------------------------------------------------------------

    def _begin(self, relay: Relay, encrypted: bool) -> None:
        self.sock = socket.create_connection(self._where, relay.timeout)
        # A command is one send, and its reply is waited for.
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if relay.tls == "implicit":
            self._encrypt(relay)
        greeting = self.hear()
        if greeting.code >= 400:
            # It is the hop that is not there for us now, and not the mail that is bad.
            self._lose(UNREACHABLE, f"greeted with {greeting}")
        self._hello()
        if encrypted and relay.tls != "implicit":
            self._start_tls(relay)
        if relay.auth is not None:
            self._log_in(*relay.auth)

    def _hello(self) -> None:
        code, text = self.ehlo()
        if code in (500, 501, 502, 504, 550, 554):  # it may know nothing of ESMTP (RFC 5321 3.2)
            code, text = self.helo()
        if code != 250:
            self._lose(UNREACHABLE, f"answered our name with {code} {text!r}")

    def _start_tls(self, relay: Relay) -> None:
        if self.has_extn("STARTTLS"):
            reply = self.ask("STARTTLS")
            if reply.code == 220:
                if self._buffer:
                    # Somebody on the way would have us take this for said inside TLS.
                    self._lose(GARBLED, "it spoke on in the clear behind STARTTLS")
                self._encrypt(relay)
                self._hello()  # all that was said in the clear is forgotten (RFC 3207 4.2)
                return
        if relay.tls is not None:
            self._lose(NOT_SECURE, "it offers no STARTTLS")

    def _encrypt(self, relay: Relay) -> None:
        assert self.sock is not None, "it is connected"
        self.sock.settimeout(relay.timeout)
        try:
            self.sock = relay.context.wrap_socket(self.sock, server_hostname=relay.host)
        except (OSError, ValueError) as error:  # ssl.CertificateError is both
            self.close()
            self._warn(f"TLS: {error}")
            raise TLSFailed(*NOT_SECURE) from error
        self.verified = relay.context.verify_mode == ssl.CERT_REQUIRED

    def _log_in(self, user: str, password: str) -> None:
        try:
            self.login(user, password)
        except smtplib.SMTPAuthenticationError as error:
            # What it says may repeat what we said.
            self._lose(NOT_LET_IN, f"AUTH: {error.smtp_code}")
        except (smtplib.SMTPException, ValueError) as error:
            self._lose(NOT_LET_IN, f"AUTH: {type(error).__name__}")
        self.logged_in = True

    # -- commands ----------------------------------------------------------------------------

    def rest(self) -> None:
        """Be idle now: a server may well end the connection (RFC 5321 4.5.3.2.7)."""
        self._may_end = True

    @property
    def alive(self) -> bool:
        """Whether there still is a connection, as far as we know."""
        return self.sock is not None

    def ask(self, command: str, positive: int = 2) -> Reply:
        """Send a command, and give its reply: of ``positive`` hundred, 4yz or 5yz."""
        self._be_in_step()
        try:
            self.putcmd(command)
        except UnicodeEncodeError:
            raise Reject(*replies.UTF8_NEEDED) from None
        return self.hear(positive)

    def mail(  # type: ignore[override]
        self, sender: str, parameters: str = "", smtputf8: bool = False
    ) -> Reply:
        """Begin a transaction, after the end of one that was left open."""
        if self.in_transaction:
            reset = self.ask("RSET")
            if reset.code >= 400:
                self._lose(GARBLED, f"answered RSET with {reset}")
        self.command_encoding = "utf-8" if smtputf8 else "ascii"
        self.in_transaction = True  # also where it is refused: Postfix remembers the SIZE then
        reply = self.ask(f"MAIL FROM:<{sender}>{parameters}")
        self._may_end = False
        return reply

    def rcpt(self, recipient: str, parameters: str = "") -> Reply:  # type: ignore[override]
        """Name a recipient."""
        return self.ask(f"RCPT TO:<{recipient}>{parameters}")

    def message(self, content: IO[bytes], binary: bool = False) -> Reply:
        """Send the mail data; give the reply to its end, or to DATA."""
        size = content.seek(0, 2)
        content.seek(0)
        if binary:  # in one chunk, as it is (RFC 3030 3)
            self._be_in_step()
            self.putcmd(f"BDAT {size} LAST")
            pieces: Iterator[bytes] = iter(lambda: content.read(CHUNK), b"")
        else:
            reply = self.ask("DATA", positive=3)
            if reply.code >= 400:
                return reply
            if reply.code != 354:
                self._lose(GARBLED, f"answered DATA with {reply}")
            pieces = stuffed(content)
        try:
            for piece in pieces:
                self.send(piece)
        except BaseException:
            self.close()  # what has no end must never look whole
            raise
        self._patience *= PATIENCE_AT_END
        try:
            reply = self.hear()
        finally:
            self._patience /= PATIENCE_AT_END
        self.in_transaction = reply.code >= 400  # no doubt is left by another RSET
        return reply

    def part(self) -> None:
        """Say goodbye, and wait but shortly for the answer."""
        if not self.alive:
            return
        self._patience = PARTING
        self.rest()
        try:
            self.ask("QUIT")
        except Reject:
            pass  # it was gone already
        self.close()

    def close(self) -> None:
        """Close the connection."""
        super().close()
        self._buffer = b""

    # -- octets ------------------------------------------------------------------------------

    def send(self, s: object) -> None:
        """Send a command or a piece of mail data."""
        octets = s.encode(self.command_encoding) if isinstance(s, str) else s
        if self.sock is None:
            raise Lost(*LOST)
        try:
            self.sock.settimeout(self._patience)
            self.sock.sendall(octets)  # type: ignore[arg-type]
        except OSError as error:
            self._lose(LOST, error)

    def hear(self, positive: int = 2) -> Reply:
        """Give a reply; ``Lost`` for 421, for none, and for what is none."""
        code, octets = self.getreply()
        reply = reply_of(code, octets)
        if code == 421:
            self._lose(LOST, reply)
        if code // 100 not in (positive, 4, 5):
            self._lose(GARBLED, f"said what makes no sense here: {reply}")
        return reply

    def getreply(self) -> Tuple[int, bytes]:
        """Read a reply: its code, and its lines without it."""
        due = monotonic() + self._patience
        room, code, texts = MOST_REPLY, b"", []
        while True:
            line = self._line(due, room)
            room -= len(line) + 1
            match = _LINE.fullmatch(line.rstrip(b"\r\n"))
            if match is None or (code and match[1] != code):
                self._lose(GARBLED, f"{line[:100]!r}")
            code = match[1]
            texts.append((match[3] or b"").strip())
            if match[2] != b"-":
                return int(code), b"\n".join(texts)

    def _line(self, due: float, room: int) -> bytes:
        if self.sock is None:
            raise Lost(*LOST)
        while b"\n" not in self._buffer[:room]:
            if len(self._buffer) >= room:
                self._lose(GARBLED, "a reply without end")
            left = due - monotonic()
            if left <= 0:
                self._lose(TOO_SLOW, "time-out")
            try:
                self.sock.settimeout(left)
                data = self.sock.recv(RECEIVE)
            except socket.timeout:
                self._lose(TOO_SLOW, "time-out")
            except OSError as error:
                self._lose(LOST, error)
            if not data:
                self._lose(LOST, "it closed the connection")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _be_in_step(self) -> None:
        """See that nothing came unasked: it would be taken for the reply to what is asked now."""
        if self.sock is None:
            raise Lost(*LOST)
        unasked = self._buffer
        if not unasked:
            self.sock.settimeout(0)
            try:
                unasked = self.sock.recv(RECEIVE) or b"the end"
            except (BlockingIOError, ssl.SSLWantReadError):
                return
            except OSError as error:
                self._lose(LOST, error)
        self._lose(LOST, f"unasked: {unasked[:100]!r}")

    def _lose(self, reply: Reply, why: object) -> NoReturn:
        self.close()
        self._warn(why)
        raise Lost(*reply)

    def _warn(self, why: object) -> None:
        host, port = self._where
        level = logging.INFO if self._may_end else logging.WARNING
        log.log(level, pairs(next_hop=f"{host}:{port}", trouble=why))


def reply_of(code: int, octets: bytes) -> Reply:
    """Make a `Reply` of what was heard: its status is taken out of its lines (RFC 2034 4)."""
    status, texts = "", []
    for line in octets.decode("utf-8", "replace").split("\n"):
        match = _STATUS.match(line)
        if match is not None and int(match[1]) == code // 100:
            status = status or "".join(match.groups())
            line = line[match.end() :]
        texts.append(line)
    text = "\n".join(texts)[:MOST_TEXT]
    try:
        return Reply(code, text, status or None)
    except ValueError:  # 5.07.1
        return Reply(code, text)


def stuffed(content: IO[bytes]) -> Iterator[bytes]:
    """Give content as it follows DATA: with its dots doubled, its CRLF and its end.

    What has no CRLF at its end gets one. A bare CR or LF becomes CRLF: some would take LF . LF for
    the end of mail data, and what follows for commands (RFC 5321 2.3.8 forbids to send it).
    """
    decoder = ChunkDecoder()
    tail = b"\r\n"  # mail data starts at the start of a line
    more = True
    while more:
        chunk = content.read(CHUNK)
        more = bool(chunk)
        piece = decoder.feed(chunk, end=not more)
        if piece:
            joined = tail + piece
            tail = joined[-2:]
            yield joined.replace(b"\r\n.", b"\r\n..")[2:]
    yield b".\r\n" if tail == b"\r\n" else b"\r\n.\r\n"
