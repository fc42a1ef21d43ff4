"""Taking a message: its mail data goes to a sink, and at its end to the delivery hook.

A 250 after the end is a promise (RFC 5321 6.1): it is said only when the hook has returned.
"""

from __future__ import annotations

from time import monotonic
from typing import List, Optional, Union

from . import reply as replies
from .command import Command
from .envelope import Envelope
from .hooks import hand_over, receipt, verdict
from .logs import INFO, log, pairs
from .overrides import Hookable
from .reply import Reply
from .storage import AnySink, close_sink, file_of, write_all
from .syntax import Mailbox
from .trace import received

__all__ = ["MailTaking"]

RECIPIENTS_SHOWN = 20
SMALL = 16_384


class MailTaking(Hookable):
    """The part of `SMTPHandler` that takes mail data."""

    _sink: Optional[AnySink]
    _sink_fault: Optional[Reply]
    _traced: bool
    _mail_began: float

    @property
    def envelope(self) -> Envelope:
        """The mail transaction in course; ``RuntimeError`` where there is none."""
        envelope = self.session.envelope
        if envelope is None:
            raise RuntimeError("there is no mail transaction now")
        return envelope

    def _has_room(self, octets: int) -> bool:
        """Tell whether a message of ``octets`` could be held."""
        own = "open_sink" not in self.overridden
        return not own or self.server.storage.has_room(octets, self.settings.limits)

    def do_DATA(self, event: Command) -> Reply:
        """Ask for the mail data, and make room for it; also at the first BDAT (RFC 3030)."""
        envelope = self.envelope
        reply = verdict(
            "validate_data",
            self.validate_data(envelope.sender, list(envelope.recipients)),
            replies.START_INPUT,
            replies.DATA_REFUSED,
        )
        if reply.code >= 400:
            return reply
        try:
            sink = self.open_sink(envelope)
        except OSError:
            self._fault("no room for mail data")
            return replies.NO_STORAGE
        if not callable(getattr(sink, "write", None)):
            raise TypeError(f"open_sink must give a binary file: {sink!r}")
        self._sink = sink
        self._sink_fault, self._traced = None, not self.settings.trace
        return replies.START_INPUT

    do_BDAT = do_DATA

    def _store(self, content: bytes, last: bool = False) -> None:
        """Write mail data to the sink, behind our trace field."""
        sink = self._sink
        if sink is None:
            return  # it failed: the rest is read, and dropped
        try:
            if not self._traced:
                self._traced = True
                field = received(self.envelope, self.settings.hostname)
                if content.startswith((b" ", b"\t")):
                    field += b"\r\n"  # else the first line would fold into our field
                # One call of the sink costs more than to copy what is small.
                if len(content) < SMALL:
                    content = field + content
                else:
                    write_all(sink, field)
            if content:
                write_all(sink, content)
            if last:
                sink.flush()  # what waits in its buffer may find no room: no 250 before
        except Exception as error:  # a sink is code of the user
            self._fault("mail data could not be stored")
            no_room = isinstance(error, OSError)
            self._sink_fault = replies.NO_STORAGE if no_room else replies.LOCAL_ERROR
            self._drop_sink()

    def do_message(self, event: Command) -> Union[Reply, List[Reply]]:
        """Deliver what has come, or say why not."""
        self._store(b"", last=True)  # an empty message has a trace, too
        refusal: Optional[Reply] = event.argument or self._sink_fault
        try:
            if refusal is not None:
                return refusal
            envelope = self.envelope
            assert self._sink is not None, "without one there is a fault"
            envelope.sink = file_of(self._sink)
            accepted = Reply(250, f"OK {envelope.id}")
            name = self.delivery or "deliver"
            result = hand_over(self, name, envelope)
            if not (self.settings.lmtp and isinstance(result, list)):
                return receipt(name, result, accepted, replies.MESSAGE_REFUSED)
            if len(result) != len(envelope.recipients):
                raise TypeError(f"{name} gave {len(result)} receipts, not one for each recipient")
            return [receipt(name, each, accepted, replies.MESSAGE_REFUSED) for each in result]
        finally:
            self._drop_sink()

    def _drop_sink(self) -> None:
        sink, self._sink = self._sink, None
        if sink is None:
            return
        try:
            close_sink(sink)
        except Exception:
            self._fault("a sink could not be closed")

    def _forget(self, reply: Union[Reply, List[Reply]]) -> None:
        """Drop what has come of a message, if the command that ends its transaction is accepted."""
        if isinstance(reply, Reply) and reply.code < 400:
            self._drop_sink()

    def _account(self, reply: Union[Reply, List[Reply]]) -> None:
        """Count a message and log it, with what the client is told of it."""
        envelope, size = self.envelope, self.session.mail_size
        if isinstance(reply, Reply):
            count = len(envelope.recipients) if reply.code < 400 else 0
        else:
            count = sum(one.code < 400 for one in reply)
        if count:
            self._accepted += 1
            self.server.counters.add_message(count, size)
        else:
            self.server.counters.add(refused_messages=1)
        if log.isEnabledFor(INFO):
            each = [reply] if isinstance(reply, Reply) else reply
            verdict = str(each[0]) if len(each) == 1 else ",".join(str(one.code) for one in each)
            log.info(
                pairs(
                    message=envelope.id,
                    **self._who(),
                    sender=f"<{envelope.sender}>",
                    recipients=shortened(envelope.recipients),
                    size=size,
                    verdict=verdict,
                    seconds=monotonic() - self._mail_began,
                )
            )


def shortened(recipients: List[Mailbox]) -> str:
    """Write recipients for a log line: the first, and how many more."""
    shown = ",".join(recipients[:RECIPIENTS_SHOWN])
    more = len(recipients) - RECIPIENTS_SHOWN
    return f"{shown},+{more}" if more > 0 else shown
