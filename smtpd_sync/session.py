"""The server's side of one SMTP conversation (RFC 5321), without I/O.

The state machine is the table ``TRANSITIONS``. The driver pulls: `Session.next_event` says what the
client asks and may ask now, the driver decides, and `Session.reply` moves the state. No sockets,
clocks, threads, logs or hooks in here: octets in, events and octets out.
"""

from __future__ import annotations

import enum
from typing import Final, List, Optional, Union

from . import reply as replies
from .command import VERBS, Command, parse_argument
from .data import DataDecoder
from .envelope import TLS, Envelope, Peer
from .reply import Reject, Reply
from .rules import DEFAULT_RULES, Rules
from .states import (
    BARE,
    CLOSED,
    DATA,
    GATHER,
    GREETED,
    JUNK,
    LAST,
    MAIL,
    NEW,
    ON_REFUSAL,
    OTHER_PROTOCOLS,
    OUT_OF_TURN,
    RCPT,
    REFUSED,
    TLS_DUE,
    TLS_RECORD,
    TRANSITIONS,
    UNSERVED,
    WITHOUT_TLS,
)

__all__ = ["END", "NEED_DATA", "Session", "Signal"]

FAR_BEYOND = 4
"""Mail data is drained up to this many times the size limit; then the session is closed."""

VERB_OF = {verb.encode(): verb for verb in VERBS}


class Signal(enum.Enum):
    """What `Session.next_event` gives when it has no command."""

    NEED_DATA = enum.auto()
    """Send what is to send, and receive."""
    END = enum.auto()
    """The session is over: send what is to send, and close."""


NEED_DATA: Final = Signal.NEED_DATA
END: Final = Signal.END


class Session:
    """One conversation. Six methods, called by one thread, in a loop::

    while (event := session.next_event()) is not END:
        if event is NEED_DATA:
            send(session.data_to_send())
            session.receive_data(receive())      # b"" is the end of input
        else:
            session.reply(decide(event))         # but for "content", which has no reply
    """

    def __init__(self, rules: Rules = DEFAULT_RULES, peer: Optional[Peer] = None) -> None:
        self.rules = rules
        self.peer = peer or Peer("", 0)
        """The client."""
        self.tls: Optional[TLS] = None
        """The TLS in use, or ``None``."""
        self.state = NEW
        self.helo = ""
        """The name the client gave."""
        self.esmtp = False
        """Whether it said EHLO."""
        self.user: Optional[str] = None
        """Who it authenticated as."""
        self.envelope: Optional[Envelope] = None
        """The transaction in course. At MAIL's event it is the one that is asked for."""
        self.id = ""
        """Names the session in the log."""
        self._inbox = b""
        self._position = 0
        self._outbox: List[bytes] = []
        self._gathering = False
        self._pending: Optional[Command] = None
        self._ended = False
        self._skipped = b""  # the head of a line that is too long
        self._starved = False
        self._decoder: Optional[DataDecoder] = None
        self._size = 0
        self._message_due = False
        self._errors = 0
        self._junk = 0

    # -- what the driver calls ---------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Take octets from the client; ``b""`` is the end of input, never the end of mail data."""
        self._starved = False
        if not data:
            self._ended = True
        elif self._position == len(self._inbox):
            self._inbox, self._position = data, 0
        else:
            self._inbox, self._position = self._inbox[self._position :] + data, 0

    def next_event(self) -> Union[Command, Signal]:
        """Say what the client asks for and may ask for now, or `NEED_DATA`, or `END`.

        An event waits for its `reply`; only ``content`` has none. What the client may not ask is
        answered here and never seen by the driver.
        """
        if self._pending is not None:
            raise RuntimeError(f"{self._pending.verb} still waits for its reply")
        while self.state is not CLOSED:
            event: Optional[Command]
            if self.state is DATA:
                event = self._read_mail_data()
            elif self.state is NEW:
                event = self._connection()
            elif self.state is TLS_DUE:
                raise RuntimeError("STARTTLS was accepted: tls_started() is due")
            else:
                event = self._read_command()
            if event is not None:
                return event
            if self._starved:
                if not self._ended:
                    self._gathering = False
                    return NEED_DATA
                # A peer that has gone needs no reply, and delivers nothing (RFC 5321 4.1.1.10).
                self.state = CLOSED
        return END

    def reply(self, reply: Reply) -> None:
        """Answer the event at hand: the reply goes to the client and moves the state."""
        event = self._pending
        if event is None:
            raise RuntimeError("no event waits for a reply")
        self._pending = None
        self._answer(event.verb, reply, event)

    def data_to_send(self) -> bytes:
        """Give the octets that are due; none while the replies of a pipelined group gather."""
        if self._gathering or not self._outbox:
            return b""
        data = self._outbox[0] if len(self._outbox) == 1 else b"".join(self._outbox)
        self._outbox.clear()
        return data

    def tls_started(self, tls: TLS) -> None:
        """The handshake is done: forget all that came in the clear (RFC 3207 4.2)."""
        self.state = TRANSITIONS["tls"][self.state]
        self._inbox, self._position = b"", 0  # else an attacker's commands would run inside TLS
        self.tls = tls
        self.helo, self.esmtp, self.user, self.envelope = "", False, None, None

    def close(self, reply: Optional[Reply] = None) -> None:
        """End the session from outside (time-out, limit, stop), with a last ``reply`` if given."""
        if reply is not None and self.state not in (CLOSED, TLS_DUE):
            self._outbox.append(reply.render(extended=self.state is not NEW))
        self.state = CLOSED
        self._pending = None
        self._gathering = False

    # -- what the driver asks ----------------------------------------------------------------

    @property
    def keywords(self) -> List[str]:
        """The lines of the EHLO reply, behind the first (RFC 5321 4.1.1.1)."""
        hidden = "STARTTLS" if self.tls else ""  # RFC 3207 4.2
        offered = self.rules.keywords.items()
        return [f"{word} {value}".rstrip() for word, value in offered if word != hidden]

    @property
    def in_transaction(self) -> bool:
        """Whether mail is on its way, which a stopping server lets arrive."""
        return self.state in (MAIL, RCPT, DATA)

    # -- commands ----------------------------------------------------------------------------

    def _connection(self) -> Optional[Command]:
        if self._more_input and self.rules.strict_pipelining:
            # Who talks before the greeting does not listen to replies (RFC 5321 3.1).
            self._hang_up("connection", replies.OUT_OF_SYNC)
            return None
        self._pending = Command("connection")
        return self._pending

    def _read_command(self) -> Optional[Command]:
        """Read one line; give its command, or ``None`` if it was answered here or has not come."""
        inbox, start = self._inbox, self._position
        end = inbox.find(b"\r\n", start)
        if end < 0:
            self._wait_for_line()
            return None
        self._position = end + 2
        if self._skipped:
            # However it came, a line that is too long is refused by what it begins with.
            line, length, self._skipped = self._skipped, self.rules.longest_line, b""
        else:
            line, length = inbox[start:end], end - start
        word, _, octets = line[: self.rules.longest_line].partition(b" ")
        verb = VERB_OF.get(word) or VERB_OF.get(word.upper().rstrip(b"\t"))
        if verb is None:
            self._unknown(word.upper(), length)
            return None
        if self._more_input and self._must_be_last(verb):
            self._hang_up(verb, replies.OUT_OF_SYNC)
            return None
        refusal = self._refusal(verb, length)
        if refusal is None:
            try:
                event = parse_argument(verb, octets.rstrip(b" \t"), self.rules.grammar)
                check = CHECKS.get(verb)
                if check is not None:
                    check(self, event)
            except Reject as reject:
                refusal = reject.reply
            else:
                self._pending = event
                return event
        self._answer(verb, refusal)
        return None

    def _wait_for_line(self) -> None:
        waiting = self._inbox[self._position :]
        if waiting.startswith(TLS_RECORD) and not self._skipped:
            self._hang_up("", replies.NOT_SMTP)
            return
        self._starved = True
        if self._skipped or len(waiting) > self.rules.longest_line:
            # Nothing of a line that is too long is run or kept, but for its head, by which it is
            # refused, and the CR of its CRLF.
            self._skipped = self._skipped or waiting[: self.rules.longest_line]
            self._inbox, self._position = b"\r" if waiting.endswith(b"\r") else b"", 0

    @property
    def _more_input(self) -> bool:
        return self._position < len(self._inbox)

    def _must_be_last(self, verb: str) -> bool:
        # Without EHLO there is no PIPELINING at all.
        lone = verb in LAST or (not self.esmtp and verb != "QUIT")
        return lone and self.rules.strict_pipelining

    def _refusal(self, verb: str, length: int) -> Optional[Reply]:
        """Say why ``verb`` may not come now, or ``None``."""
        rules = self.rules
        if length + 2 > rules.line_lengths[verb]:
            return replies.LINE_TOO_LONG
        if self.state is REFUSED and verb != "QUIT":
            return replies.BAD_SEQUENCE  # whatever it is (RFC 5321 3.1)
        if verb == "STARTTLS" and verb not in rules.keywords:
            return replies.NOT_IMPLEMENTED
        if rules.require_tls and self.tls is None and verb not in WITHOUT_TLS:
            return replies.TLS_NEEDED
        if self.state not in TRANSITIONS[verb]:
            by_default = replies.HELO_FIRST if self.state is GREETED else replies.BAD_SEQUENCE
            return OUT_OF_TURN.get((verb, self.state), by_default)
        if verb == "STARTTLS" and self.tls is not None:
            return replies.TLS_ACTIVE
        return None

    def _unknown(self, word: bytes, length: int) -> None:
        """Answer a line whose first word is no verb of ours."""
        if word in OTHER_PROTOCOLS or word.endswith(b":") or word.startswith(TLS_RECORD):
            self._hang_up("", replies.NOT_SMTP)
        elif length + 2 > self.rules.limits.command_line:
            self._answer("", replies.LINE_TOO_LONG)
        elif word.decode("latin-1") in UNSERVED:
            self._answer("", replies.NOT_IMPLEMENTED)
        else:
            self._answer("", replies.UNRECOGNIZED)

    def _check_mail(self, event: Command) -> None:
        sender, parameters = event.argument, event.parameters
        if not sender.isascii() and "SMTPUTF8" not in parameters:
            raise Reject(*replies.UTF8_NEEDED)
        limit = self.rules.limits.message_size
        if limit is not None and int(parameters.get("SIZE", 0)) > limit:
            raise Reject(*replies.MESSAGE_TOO_BIG)
        self.envelope = Envelope(self, sender, parameters)

    def _check_rcpt(self, event: Command) -> None:
        envelope = self._open_envelope()
        if not event.argument.isascii() and not envelope.smtputf8:
            raise Reject(*replies.UTF8_NEEDED)
        if len(envelope.recipients) >= self.rules.limits.recipients:
            raise Reject(*replies.TOO_MANY_RECIPIENTS)

    # -- replies -----------------------------------------------------------------------------

    def _answer(self, verb: str, reply: Reply, event: Optional[Command] = None) -> None:
        """Put ``reply`` in the outbox, count, and if it answers an ``event``, move the state."""
        code = reply.code
        limits = self.rules.limits
        if verb in JUNK:
            self._junk += 1
            if self._junk > limits.junk_commands:
                reply = replies.TOO_MANY_COMMANDS
        if code >= 500:  # 4yz is a fault of ours, or of the hour: not the client's
            self._errors += 1
            if self._errors > limits.errors:
                reply = replies.TOO_MANY_ERRORS
        self._outbox.append(reply.render(extended=verb not in BARE))
        if event is not None:
            if code < 400:
                self.state = TRANSITIONS[verb][self.state]
                effect = EFFECTS.get(verb)
                if effect is not None:
                    effect(self, event)
            else:
                self.state = ON_REFUSAL.get(verb, self.state)
                if verb == "MAIL" or verb == "message":
                    self.envelope = None
        if reply.code == 421:
            self.state = CLOSED
        self._gathering = verb in GATHER and self._more_input and self.state is not CLOSED

    def _hang_up(self, verb: str, reply: Reply) -> None:
        """Answer and close; nothing of what else has come is read."""
        self._outbox.append(reply.render(extended=verb not in BARE))
        self._inbox, self._position = b"", 0
        self.state = CLOSED
        self._gathering = False

    def _greet(self, event: Command) -> None:
        self.helo = event.argument
        self.esmtp = event.verb != "HELO"
        self.envelope = None

    def _add_recipient(self, event: Command) -> None:
        envelope = self._open_envelope()
        envelope.recipients.append(event.argument)
        envelope.recipient_parameters.append(event.parameters)

    def _reset(self, event: Command) -> None:
        self.envelope = None

    def _start_data(self, event: Command) -> None:
        rules = self.rules
        self._decoder = DataDecoder(rules.bare_newline, rules.limits.text_line is not None)
        self._size = 0
        self._message_due = False

    def _delivered(self, event: Command) -> None:
        self.envelope = None
        self._errors = self._junk = 0

    def _open_envelope(self) -> Envelope:
        assert self.envelope is not None, "the table lets no RCPT in without MAIL"
        return self.envelope

    # -- mail data ---------------------------------------------------------------------------

    def _read_mail_data(self) -> Optional[Command]:
        decoder = self._decoder
        assert decoder is not None, "the table lets no mail data in without DATA"
        if self._more_input and not self._message_due:
            chunk = self._inbox[self._position :] if self._position else self._inbox
            content, rest = decoder.feed(chunk)
            self._message_due = rest is not None
            self._inbox, self._position = rest or b"", 0
            self._size += len(content)
            limit = self.rules.limits.message_size
            if limit is not None and self._size > limit:
                content = b""  # dropped, but read on: the stream stays in step
                if self._size > limit * FAR_BEYOND:
                    self._hang_up("content", replies.FAR_TOO_BIG)
                    return None
            if content:
                return Command("content", content)
        if not self._message_due:
            self._starved = True
            return None
        self._pending = Command("message", self._fault(decoder))
        return self._pending

    def _fault(self, decoder: DataDecoder) -> Optional[Reply]:
        """Say what is wrong with the mail data that has come, or ``None``."""
        limits = self.rules.limits
        if limits.message_size is not None and self._size > limits.message_size:
            return replies.MESSAGE_TOO_BIG
        if decoder.bare_newlines and self.rules.bare_newline == "reject":
            return replies.BARE_NEWLINE
        if limits.text_line is not None and decoder.longest_line > limits.text_line:
            return replies.TEXT_LINE_TOO_LONG
        return None


# What reaches beyond a command's own grammar, before the driver sees it ...
CHECKS = {"MAIL": Session._check_mail, "RCPT": Session._check_rcpt}
# ... and what a positive reply does, beside moving the state.
EFFECTS = {
    "HELO": Session._greet,
    "EHLO": Session._greet,
    "RCPT": Session._add_recipient,
    "RSET": Session._reset,
    "DATA": Session._start_data,
    "message": Session._delivered,
}
