"""What a reply does: it goes to the outbox, it is counted, and it moves the state.

The base of `Session`: all that is kept of a conversation, and the one place that changes its state.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from . import reply as replies
from .command import Command
from .envelope import TLS, Envelope, Peer
from .exchange import AuthExchange
from .inbox import Inbox
from .maildata import Chunk, MailData
from .reply import Reply
from .rules import Rules, default_rules
from .sasl import SecretRequest
from .states import BARE, CLOSED, GATHER, JUNK, NEW, ON_REFUSAL, TRANSITIONS, State
from .transcript import Transcript

__all__ = ["Answering"]

Effect = Callable[["Answering", Command], None]
Answer = Tuple[bool, bool, Mapping[State, State], Optional[Effect], bool]


class Answering:
    """The state of one conversation."""

    def __init__(self, rules: Optional[Rules] = None, peer: Optional[Peer] = None) -> None:
        self.rules = rules or default_rules()
        self.peer = peer or Peer("", 0)
        """The client."""
        self.tls: Optional[TLS] = None
        """The TLS in use, or ``None``."""
        self.state = NEW
        self.helo = ""
        """The name the client gave."""
        self.esmtp = False
        """Whether it said EHLO or LHLO."""
        self.user: Optional[str] = None
        """Who it authenticated as."""
        self.envelope: Optional[Envelope] = None
        """The transaction in course. At MAIL's event it is the one that is asked for."""
        self.id = ""
        """Names the session in the log."""
        self.forwarded: Dict[str, str] = {}
        """What a trusted proxy said by XFORWARD of the client of this transaction."""
        self.recorder: Optional[Transcript] = None
        """Writes down what is said, where that is wanted."""
        self._inbox = Inbox()
        self.outbox: List[bytes] = []
        """Replies, rendered, that were not sent yet."""
        self._pending: Optional[Command] = None
        self._gathering = False
        self._ended = False
        self._starved = False
        self._mail: Optional[MailData] = None
        self._chunk: Optional[Chunk] = None
        self._exchange: Optional[AuthExchange] = None
        self._request: Optional[SecretRequest] = None
        self._errors = 0
        self._deferred = 0
        self._junk = 0
        self.failures = 0
        """How many AUTH exchanges have failed."""

    # -- replies -----------------------------------------------------------------------------

    def _answer(
        self, verb: str, reply: Reply, event: Optional[Command] = None
    ) -> Optional[Command]:
        """Put ``reply`` in the outbox, count, and if it answers an ``event``, move the state.

        Gives no event to the driver: ``return self._answer(...)``.
        """
        junk, extended, states, effect, gathers = ANSWERS[verb]
        code = reply.code
        if junk:
            self._junk += 1
        if self._junk and self._junk > self.rules.limits.junk_commands:
            reply = replies.TOO_MANY_COMMANDS
        if code >= 400:
            limits = self.rules.limits
            self._count_refusal(code)
            if self._errors > limits.errors:
                reply = replies.TOO_MANY_ERRORS
            if verb == "credentials" and code >= 502:  # 500 and 501 broke off
                self.failures += 1
                if self.failures > limits.auth_failures:
                    reply = replies.TOO_MANY_FAILURES
        self.outbox.append(reply.render(extended))
        if event is not None:
            if code < 400:
                self.state = states[self.state]
                if effect is not None:
                    effect(self, event)
            else:
                self.state = ON_REFUSAL.get(verb, self.state)
                if verb in CLOSES_TRANSACTION:
                    self.envelope = None
                    if verb != "MAIL":
                        self.forwarded = {}
        if reply.code == 421:
            self.state = CLOSED
        self._gathering = gathers and self._inbox.waiting and self.state is not CLOSED
        return None

    def _count_refusal(self, code: int) -> None:
        if code < 500:
            # A fault of ours, or of the hour. But who is put off for ever goes on for ever.
            self._deferred += 1
        if code >= 500 or self._deferred > self.rules.limits.recipients:
            self._errors += 1

    def _answer_message(self, event: Command, reply: Union[Reply, Sequence[Reply]]) -> None:
        """Answer the end of mail data: once, or in LMTP for each recipient."""
        if isinstance(reply, Reply) and not self.rules.lmtp:
            if reply.code < 400:
                self._errors = self._junk = self._deferred = 0
            self._answer("message", reply, event)
            return
        count = len(self._open_envelope.recipients) if self.rules.lmtp else 1
        each = [reply] * count if isinstance(reply, Reply) else list(reply)
        if len(each) != count:
            raise ValueError(f"{len(each)} replies for {count} recipients")
        if any(one.code < 400 for one in each):
            self._errors = self._junk = self._deferred = 0
        self.outbox.extend(one.render() for one in each[:-1])
        self._answer("message", each[-1], event)
        if any(one.code == 421 for one in each):
            self.state = CLOSED

    def _hang_up(self, verb: str, reply: Reply) -> Optional[Command]:
        """Answer and close; nothing of what else has come is read."""
        self.outbox.append(reply.render(extended=verb not in BARE))
        self._inbox.clear()
        self.state = CLOSED
        self._gathering = False
        return None

    def _greet(self, event: Command) -> None:
        self.helo = event.argument
        self.esmtp = event.verb != "HELO"
        self._reset(event)

    def _add_recipient(self, event: Command) -> None:
        envelope = self.envelope
        assert envelope is not None, "the table lets no recipient in without MAIL"
        envelope.recipients.append(event.argument)
        envelope.recipient_parameters.append(event.parameters)

    def _reset(self, event: Command) -> None:
        self.envelope = None
        self.forwarded = {}  # it is of one transaction (XFORWARD_README); a hook may keep the dict

    def _start_mail_data(self, event: Command) -> None:
        rules = self.rules
        self._mail = MailData(rules.limits, rules.bare_newline, self._open_envelope.binary)

    @property
    def _open_envelope(self) -> Envelope:
        assert self.envelope is not None, "the table lets none of this in without MAIL"
        return self.envelope


# What a positive reply does, beside moving the state ...
EFFECTS = {
    "HELO": Answering._greet,
    "EHLO": Answering._greet,
    "LHLO": Answering._greet,
    "RCPT": Answering._add_recipient,
    "RSET": Answering._reset,
    "DATA": Answering._start_mail_data,
    "message": Answering._reset,
}
# ... and the commands whose refusal ends the transaction.
CLOSES_TRANSACTION = frozenset({"MAIL", "BDAT", "message"})
# What answering a command means, all that does not depend on the reply: whether it brings no mail,
# whether its replies have a status, where it leads, its effect, and whether its reply may wait.
ANSWERS: Dict[str, Answer] = {
    verb: (
        verb in JUNK,
        verb not in BARE,
        TRANSITIONS.get(verb, {}),
        EFFECTS.get(verb),
        verb in GATHER,
    )
    for verb in (*TRANSITIONS, "")  # "": no verb of ours
}
