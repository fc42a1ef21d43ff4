"""The SMTP of the removed ``smtpd``: its states, its replies, its attributes, one method a verb.

The protocol core of this package is not used: subclasses override how input is collected, set
terminators, push replies of their own and add states, and all that works only on an interpreter
like the old one, so this is one, written anew. A thread behind it waits for the client (see
`backstage`); its methods run in the thread that is inside ``asyncore.loop()``. What was wrong is
mended: an empty message, one too large, and text that is not UTF-8 get a reply, and so does a
command that our own side could not carry out.
"""

from __future__ import annotations

import codecs
import collections
import contextlib
import socket
from typing import Any, DefaultDict, Dict, List, Optional

from ..limits import DEFAULT_LIMITS
from ..reply import Reject, Reply
from . import asynchat
from .backstage import Backstage, Line
from .polling import FATAL, Map

__all__ = ["DATA_SIZE_DEFAULT", "Channel"]

DATA_SIZE_DEFAULT = 33_554_432
VERSION = "Python SMTP proxy version 0.3"
END_OF_DATA = b"\r\n.\r\n"
BOTH_FLAGS = "decode_data and enable_SMTPUTF8 cannot be set to True at the same time"


class Progress:
    """Where a channel stands, beside what its subclasses know: they have names of their own."""

    def __init__(self) -> None:
        self.at_start = False
        """Whether what comes is the first of mail data."""
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.undecodable = False
        """Whether what was collected is not UTF-8."""
        self.replied = False
        """Whether the command at hand has its reply."""
        self.spared = False
        """Whether the fault at hand is answered, and closes nothing."""
        self.most_recipients = DEFAULT_LIMITS.recipients


class Channel(asynchat.async_chat):
    """A conversation with one client."""

    COMMAND = 0
    DATA = 1

    command_size_limit = 512
    command_size_limits: DefaultDict[str, int] = collections.defaultdict(lambda: 512)
    smtp_state: Any = COMMAND
    seen_greeting: Any = ""
    mailfrom: Optional[str] = None
    require_SMTPUTF8 = False
    _smtp_line: Optional[Line] = None

    _progress: Progress

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        """Begin; subclasses may not call our `__init__`, but that of `async_chat`."""
        channel = super().__new__(cls)
        channel._progress = Progress()
        return channel

    def __init__(
        self,
        server: Any,
        conn: Any,
        addr: Any,
        data_size_limit: Optional[int] = DATA_SIZE_DEFAULT,
        map: Optional[Map] = None,
        enable_SMTPUTF8: bool = False,
        decode_data: bool = False,
    ) -> None:
        if enable_SMTPUTF8 and decode_data:
            raise ValueError(BOTH_FLAGS)
        super().__init__(conn, map=map)
        self.smtp_server = server
        self.conn = conn
        self.addr = addr
        self.data_size_limit = data_size_limit
        self.enable_SMTPUTF8 = enable_SMTPUTF8
        self._decode_data = decode_data
        as_text: Any = ("", "\r\n", ".", "\n")
        as_octets: Any = (b"", b"\r\n", ord("."), b"\n")
        pieces = as_text if decode_data else as_octets
        self._emptystring, self._linesep, self._dotsep, self._newline = pieces
        # Of this session: a common one would change under its hands.
        self.command_size_limits = collections.defaultdict(lambda: self.command_size_limit)
        self.mail_options: List[str] = []
        self.rcpt_options: List[str] = []
        self.extended_smtp = False
        self._set_rset_state()
        try:
            self.peer = conn.getpeername()
        except OSError:
            self.close()  # the client has gone already
            return
        self.fqdn = self._find_fqdn()
        self._print_debug("Peer:", repr(self.peer))
        self._begin_session()

    def _begin_session(self) -> None:
        """Greet, and have a thread wait for what the client says."""
        greeting = f"220 {self.fqdn} {VERSION}"
        if not isinstance(self.socket, socket.socket):
            self.push(greeting)  # whoever made it feeds it
            return
        if self.socket.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):  # the client has gone already
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        backstage = getattr(self.smtp_server, "_backstage", None)
        passing = None
        if not isinstance(backstage, Backstage):  # a server of another kind
            backstage = passing = Backstage(DEFAULT_LIMITS)
        concurrent = bool(getattr(self.smtp_server, "concurrent", False))
        self._progress.most_recipients = backstage.limits.recipients
        try:
            self._smtp_line = backstage.seat(self, concurrent)
        except Reject as reject:
            self.turn_away(reject.reply)
        else:
            if self._fileno is None:  # another thread has closed it meanwhile
                self._smtp_line.release()
                return
            self.push(greeting)
            self._smtp_line.begin()
        if passing is not None:
            passing.retire()

    def _find_fqdn(self) -> str:
        return socket.getfqdn()

    def _print_debug(self, *words: object) -> None:
        """Say something to who debugs."""

    @property
    def max_command_size_limit(self) -> int:
        """The octets of the longest command."""
        return max(self.command_size_limits.values(), default=self.command_size_limit)

    # -- its state ---------------------------------------------------------------------------

    def _set_post_data_state(self) -> None:
        """Be between two messages."""
        self.smtp_state = self.COMMAND
        self.mailfrom = None
        self.rcpttos: List[str] = []
        self.require_SMTPUTF8 = False
        self.num_bytes = 0
        self.set_terminator(b"\r\n")

    def _set_rset_state(self) -> None:
        """Forget all but who greeted."""
        self._set_post_data_state()
        self.received_data: Any = ""
        self.received_lines: List[Any] = []

    def set_terminator(self, term: Any) -> None:
        """Read up to this; the line behind which it is set counts for the first of mail data."""
        super().set_terminator(term)
        self._progress.at_start = term == END_OF_DATA

    # -- octets ------------------------------------------------------------------------------

    def readable(self) -> bool:
        """Tell whether the loop is to wait for input: not where a thread does."""
        return self._smtp_line is None

    def writable(self) -> bool:
        """Tell whether the loop is to wait for room: not where turns are taken in the thread."""
        alone = self._smtp_line is None or not self._smtp_line.concurrent
        return alone and super().writable()

    def recv(self, buffer_size: int) -> bytes:
        """Give what has come."""
        if self._smtp_line is None:
            return super().recv(buffer_size)
        data = self._smtp_line.take()
        if not data:
            self.handle_close()
        return data

    def close(self) -> None:
        """Close it: the thread hangs up, so that the last reply arrives."""
        if self._smtp_line is None:
            super().close()
        else:
            self.connected = self.accepting = self.connecting = False
            self.del_channel()
        # Looked at again: the loop may have just begun the session that another thread closes.
        if self._smtp_line is not None:
            self._smtp_line.release()

    def push(self, msg: str) -> None:
        """Send a reply: a line without its end."""
        self._progress.replied = True
        if self._smtp_line is not None:
            self._smtp_line.replied = True
        octets = f"{msg}\r\n".encode("utf-8" if self.require_SMTPUTF8 else "ascii", "replace")
        super().push(octets)

    def turn_away(self, reply: Reply) -> None:
        """Say a last word, and close."""
        self.push(f"{reply.code} {reply.text}")
        self.close_when_done()

    def hand_on(self) -> bool:
        """Hand on what can be; tell whether there may be more."""
        if self._smtp_line is not None and self._smtp_line.over:
            return False
        if self._progress.at_start:
            empty = END_OF_DATA[2:]
            if len(self.ac_in_buffer) < len(empty) and empty.startswith(self.ac_in_buffer):
                return False
            self._progress.at_start = False
            if self.ac_in_buffer.startswith(empty):
                self.ac_in_buffer = self.ac_in_buffer[len(empty) :]
                self.carry_out()
                return True
        return super().hand_on()

    def carry_out(self) -> None:
        """Call `found_terminator`; what it raises is for `handle_error`, and 451 for the client."""
        self._progress.replied = False
        try:
            self.found_terminator()
        except FATAL:
            raise
        except Exception:
            if self._progress.replied:  # a second reply would pass for that to the next command
                self.handle_error()
                return
            self.push("451 Error: local error in processing")
            if self.smtp_state == self.DATA:
                self._set_post_data_state()
            self._progress.spared = True
            try:
                self.handle_error()
            finally:
                self._progress.spared = False

    def handle_error(self) -> None:
        """Override this to learn of the exception at hand, ``sys.exc_info()``."""
        if self._progress.spared:
            self.log_exception("answered 451 on channel")
        else:
            super().handle_error()

    # -- lines -------------------------------------------------------------------------------

    def collect_incoming_data(self, data: bytes) -> None:
        """Keep what comes, as much as may be."""
        if self.smtp_state == self.COMMAND:
            limit, count = self.max_command_size_limit, self.num_bytes
        elif self.smtp_state == self.DATA:
            limit, count = self.data_size_limit or 0, self.num_bytes
        else:  # a state of a subclass, that counts nothing
            limit, count = self.data_size_limit or 0, sum(map(len, self.received_lines))
        if limit and count > limit:
            return
        if limit and self.smtp_state in (self.COMMAND, self.DATA):
            self.num_bytes += len(data)
        self.received_lines.append(self._decode_piece(data) if self._decode_data else data)

    def _decode_piece(self, data: bytes, final: bool = False) -> str:
        try:
            return self._progress.decoder.decode(data, final)
        except UnicodeDecodeError:
            self._progress.undecodable = True
            self._progress.decoder.reset()
            return data.decode("utf-8", "replace")

    def found_terminator(self) -> None:
        """Carry out a command, or take a message."""
        if self._decode_data:
            self.received_lines.append(self._decode_piece(b"", final=True))
        line = self._emptystring.join(self.received_lines)
        self._print_debug("Data:", repr(line))
        self.received_lines = []
        undecodable, self._progress.undecodable = self._progress.undecodable, False
        size, self.num_bytes = self.num_bytes, 0
        if self.smtp_state == self.COMMAND:
            self._take_command(line, size, undecodable)
        elif self.smtp_state != self.DATA:
            self.push("451 Internal confusion")
        elif self.data_size_limit and size > self.data_size_limit:
            self._set_post_data_state()
            self.push("552 Error: Too much mail data")
        elif undecodable:
            self._set_post_data_state()
            self.push("554 Error: the message is not UTF-8")
        else:
            self._take_message(line)

    def _take_command(self, line: Any, size: int, undecodable: bool) -> None:
        if not self._decode_data:
            try:
                line = line.decode()
            except UnicodeDecodeError:
                undecodable = True
        word, space, rest = ("", "", "") if undecodable else line.partition(" ")
        verb = word.upper()
        longest = self.command_size_limits[verb] if self.extended_smtp else self.command_size_limit
        if size > longest:
            self.push("500 Error: line too long")
        elif not (verb.isascii() and verb.isprintable()) or not line or undecodable:
            self.push("500 Error: bad syntax")
        else:
            method = getattr(self, f"smtp_{verb}", None)
            if method is None:
                self.push(f'500 Error: command "{verb}" not recognized')
            else:
                method(rest.strip() if space else None)

    def _take_message(self, line: Any) -> None:
        separator, newline = self._linesep, self._newline
        dot = "." if self._decode_data else b"."
        lines = (separator + line).replace(separator + dot, separator)  # RFC 5321 4.5.2
        self.received_data = lines[len(separator) :].replace(separator, newline)
        options: Dict[str, Any] = {}
        if not self._decode_data:
            options = {"mail_options": self.mail_options, "rcpt_options": self.rcpt_options}
        message = self.peer, self.mailfrom, self.rcpttos, self.received_data
        status = self.smtp_server.process_message(*message, **options)
        self._set_post_data_state()
        if self._smtp_line is not None and not str(status or 250).startswith(("4", "5")):
            self._smtp_line.accepted += 1
        self.push(status or "250 OK")
