"""The server's side of one SMTP conversation (RFC 5321), without I/O.

The state machine is the table ``TRANSITIONS``. The driver pulls: `Session.next_event` says what the
client asks and may ask now, the driver decides, and `Session.reply` moves the state. No sockets,
clocks, threads, logs or hooks in here: octets in, events and octets out.
"""

from __future__ import annotations

import enum
import re
from typing import Final, List, Mapping, Optional, Sequence, Tuple, Union

from . import reply as replies
from .authreading import AuthReading
from .checks import CHECKS, refusal
from .command import VERBS, Command, parse_argument
from .envelope import TLS, Peer
from .mailreading import MailReading
from .reply import Reject, Reply
from .rules import offers
from .states import (
    AUTH,
    BARE,
    BDAT,
    CLOSED,
    DATA,
    LAST,
    MAIL,
    NEW,
    OTHER_PROTOCOLS,
    RCPT,
    TLS_DUE,
    TLS_RECORD,
    TRANSITIONS,
    UNSERVED,
    State,
)
from .syntax import is_address

__all__ = ["END", "NEED_DATA", "Session", "Signal"]

# 0 to 65535, in ASCII.
_PORT = "[0-5]?[0-9]{1,4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
VERB_OF = {word.encode(): verb for verb in VERBS for word in (verb, verb.lower())}
NOT_FREE: Tuple[int, Mapping[State, State]] = (0, {})


class Signal(enum.Enum):
    """What `Session.next_event` gives when it has no command."""

    NEED_DATA = enum.auto()
    """Send what is to send, and receive."""
    END = enum.auto()
    """The session is over: send what is to send, and close."""


NEED_DATA: Final = Signal.NEED_DATA
END: Final = Signal.END


class Session(MailReading, AuthReading):
    """One conversation. Six methods, called by one thread, in a loop::

        while (event := session.next_event()) is not END:
            if event is NEED_DATA:
                send(session.data_to_send())
                session.receive_data(receive())      # b"" is the end of input
            elif event.verb == "content":
                store(event.argument)                # mail data: the one event without a reply
            else:
                session.reply(decide(event))

    With AUTH there is a second event without a reply: ``secret``, a `SecretRequest` to fill in.
    """

    # -- what the driver calls ---------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Take octets from the client; ``b""`` is the end of input, never the end of mail data."""
        self._starved = False
        if data and self.state is not CLOSED:
            self._inbox.add(data)
        else:
            self._ended = True

    def next_event(self) -> Union[Command, Signal]:
        """Say what the client asks for and may ask for now, or `NEED_DATA`, or `END`.

        What the client may not ask is answered here and never seen by the driver.
        """
        if self._pending is not None:
            raise RuntimeError(f"{self._pending.verb} still waits for its reply")
        while self.state is not CLOSED:
            event = self._read_chunk() if self._chunk is not None else READERS[self.state](self)
            if event is not None:
                return event
            if self._starved:
                if not self._ended:
                    self._gathering = False
                    return NEED_DATA
                # A peer that has gone needs no reply, and delivers nothing (RFC 5321 4.1.1.10).
                self.state = CLOSED
        return END

    def reply(self, reply: Union[Reply, Sequence[Reply]]) -> None:
        """Answer the event at hand: the reply goes to the client and moves the state.

        Of LMTP's ``message`` there may be one reply for each recipient, in order (RFC 2033 4.2).
        """
        event = self._pending
        if event is None:
            raise RuntimeError("no event waits for a reply")
        self._pending = None
        verb = event.verb
        if verb == "message":
            self._answer_message(event, reply)
            return
        assert isinstance(reply, Reply), "only a message has several replies"
        if verb == "BDAT":
            self._open_chunk(event, reply)
        elif verb == "credentials" and reply.code >= 400:
            self._step(self._open_exchange.refuse(reply))
        else:
            self._answer(verb, reply, event)

    def data_to_send(self) -> bytes:
        """Give the octets that are due; none while the replies of a pipelined group gather."""
        outbox = self.outbox
        if self._gathering or not outbox:
            return b""
        data = outbox[0] if len(outbox) == 1 else b"".join(outbox)
        outbox.clear()
        if self.recorder is not None:
            self.recorder.replies(data)
        return data

    def tls_started(self, tls: TLS) -> None:
        """The handshake is done: forget all that came in the clear (RFC 3207 4.2).

        Also called before the greeting, where TLS is implicit (RFC 8314).
        """
        self.state = TRANSITIONS["tls"][self.state]
        self._inbox.clear()  # else an attacker's commands would run inside TLS
        self.tls = tls
        self.helo, self.esmtp, self.user, self.envelope = "", False, None, None
        self.forwarded = {}

    def close(self, reply: Optional[Reply] = None) -> None:
        """End the session from outside (time-out, limit, stop), with a last ``reply`` if given."""
        if reply is not None and self.state not in (CLOSED, TLS_DUE):
            bare = self.state is NEW or (self._pending and self._pending.verb in BARE)
            self.outbox.append(reply.render(extended=not bare))
        self.state = CLOSED
        self._pending = None
        self._gathering = False

    # -- what the driver asks ----------------------------------------------------------------

    @property
    def keywords(self) -> List[str]:
        """The lines of the EHLO reply, behind the first (RFC 5321 4.1.1.1)."""
        rules, encrypted = self.rules, self.tls is not None
        lines = [*(rules.offers.get(encrypted) or offers(rules.extensions, encrypted))]
        if rules.mechanisms and (mechanisms := self.mechanisms):
            lines.append(f"AUTH {' '.join(mechanisms)}")
        return lines

    @property
    def transcript(self) -> List[str]:
        """The lines that were said, where the option ``transcript`` is on: ``"C: QUIT"``."""
        return list(self.recorder.lines) if self.recorder is not None else []

    @property
    def in_transaction(self) -> bool:
        """Whether mail is on its way, which a stopping server lets arrive."""
        return self.state in (MAIL, RCPT, DATA, BDAT)

    @property
    def receiving_mail(self) -> bool:
        """Whether what comes next is mail data."""
        return self.state is DATA or self._chunk is not None

    # -- commands ----------------------------------------------------------------------------

    def _connection(self) -> Optional[Command]:
        if self._inbox.waiting and self.rules.strict_pipelining:
            # Who talks before the greeting does not listen to replies (RFC 5321 3.1).
            return self._hang_up("connection", replies.OUT_OF_SYNC)
        self._pending = Command("connection")
        return self._pending

    def _tls_is_due(self) -> Optional[Command]:
        raise RuntimeError("STARTTLS was accepted: tls_started() is due")

    def _read_command(self) -> Optional[Command]:
        """Read one line; give its command, or ``None`` if it was answered here or has not come."""
        line = self._inbox.line(self.rules.longest_line) if self._inbox.waiting else None
        if line is None:
            if self._inbox.waiting and self._inbox.starts_with(TLS_RECORD):
                return self._hang_up("", replies.NOT_SMTP)
            self._starved = True
            return None
        inbox, rules = self._inbox, self.rules
        word, _, octets = line.partition(b" ")
        verb = VERB_OF.get(word) or VERB_OF.get(word.upper().rstrip(b"\t"))
        if self.recorder is not None:
            self.recorder.command(line, verb is not None)
        if verb is None:
            return self._unknown(word.upper(), len(line))
        if inbox.waiting and self._must_be_last(verb):
            return self._hang_up(verb, replies.OUT_OF_SYNC)
        if verb == "BDAT":
            return self._begin_chunk(octets, len(line))
        longest, states = rules.free.get(verb, NOT_FREE)
        if self.state not in states or len(line) > longest:
            refused = refusal(self, verb, len(line))
            if refused is not None:
                return self._answer(verb, refused)
        try:
            event = parse_argument(verb, octets.rstrip(b" \t"), rules.grammar)
            check = CHECKS.get(verb)
            if check is not None:
                check(self, event)
        except Reject as reject:
            return self._answer(verb, reject.reply)
        if verb in INTERNAL:
            return INTERNAL[verb](self, event)
        self._pending = event
        return event

    def _must_be_last(self, verb: str) -> bool:
        # Without EHLO there is no PIPELINING at all. What follows BDAT are its octets.
        lone = verb in LAST or (not self.esmtp and verb not in ("QUIT", "BDAT"))
        return lone and self.rules.strict_pipelining

    def _unknown(self, word: bytes, length: int) -> Optional[Command]:
        """Answer a line whose first word is no verb of ours."""
        if word in OTHER_PROTOCOLS or word.endswith(b":") or word.startswith(TLS_RECORD):
            return self._hang_up("", replies.NOT_SMTP)
        if length + 2 > self.rules.limits.command_line:
            return self._answer("", replies.LINE_TOO_LONG)
        known = word.decode("latin-1") in UNSERVED
        return self._answer("", replies.NOT_IMPLEMENTED if known else replies.UNRECOGNIZED)

    def _take_client(self, event: Command) -> Optional[Command]:
        """Begin again with the client that a proxy speaks for; the greeting is the reply."""
        attributes = event.argument
        address = attributes.get("ADDR", self.peer.address)
        # The attributes may come in several commands.
        port = attributes.get("PORT", "" if "ADDR" in attributes else str(self.peer.port))
        if address[:5].upper() == "IPV6:" and ":" in address[5:]:
            address = address[5:]
        if (address and not is_address(address)) or (port and not re.fullmatch(_PORT, port)):
            return self._answer("XCLIENT", replies.BAD_ATTRIBUTE)
        self.peer = Peer(address, int(port or 0))
        self.state = TRANSITIONS["XCLIENT"][self.state]
        self.helo, self.esmtp, self.envelope = attributes.get("HELO", ""), False, None
        self.user = attributes.get("LOGIN") or None
        return None

    def _take_forwarded(self, event: Command) -> Optional[Command]:
        """Record what a proxy says of the client; nothing is decided by it."""
        self.forwarded.update(event.argument)
        return self._answer("XFORWARD", replies.OK, event)


# How input is read, where it is no command ...
READERS = {
    **dict.fromkeys(State, Session._read_command),
    NEW: Session._connection,
    TLS_DUE: Session._tls_is_due,
    DATA: Session._read_mail_data,
    AUTH: Session._read_response,
}
# ... commands that the driver never sees ...
INTERNAL = {
    "AUTH": Session._begin_exchange,
    "XCLIENT": Session._take_client,
    "XFORWARD": Session._take_forwarded,
}
