"""Mail data in a session: what follows DATA, and the chunks that follow BDAT (RFC 3030)."""

from __future__ import annotations

from typing import Optional

from . import reply as replies
from .answering import Answering
from .checks import refusal
from .command import Command, new_command, parse_argument
from .envelope import NO_PARAMETERS
from .maildata import FAR_BEYOND, Chunk, MailData
from .reply import Reject, Reply
from .states import BDAT, RCPT, TRANSITIONS

__all__ = ["MailReading"]


MESSAGE = Command("message", None)
"""Mail data has ended, and nothing is wrong with it."""


class MailReading(Answering):
    """The part of `Session` that reads mail data."""

    @property
    def _open_mail(self) -> MailData:
        assert self._mail is not None, "the table lets no mail data in without DATA or BDAT"
        return self._mail

    @property
    def mail_size(self) -> int:
        """Octets of the mail data that came last (RFC 1870 3)."""
        return self._mail.size if self._mail is not None else 0

    def _read_mail_data(self) -> Optional[Command]:
        """Read what follows DATA."""
        mail, inbox = self._open_mail, self._inbox
        if inbox.waiting and not mail.ended:
            content, rest = mail.data(inbox.take())
            if rest:
                inbox.put_back(rest)
            if mail.far_too_big:
                return self._hang_up("content", replies.FAR_TOO_BIG)
            if content:
                return new_command(Command, ("content", content, NO_PARAMETERS))
        if mail.ended:
            return self._message(mail.fault)
        self._starved = True
        return None

    def _message(self, fault: Optional[Reply]) -> Command:
        if self.recorder is not None:
            self.recorder.mail_data(self._open_mail.size)
        self._pending = event = MESSAGE if fault is None else Command("message", fault)
        return event

    def _begin_chunk(self, octets: bytes, length: int) -> Optional[Command]:
        """Read a BDAT line (RFC 3030 2). Whatever its reply, its octets are read before it."""
        try:
            event = parse_argument("BDAT", octets.rstrip(b" \t"), self.rules.grammar)
        except Reject as reject:
            # Of how many octets it speaks nobody knows: they must not be taken for commands.
            return self._hang_up("BDAT", reject.reply)
        size, word = event.argument
        limit = self.rules.limits.message_size
        if limit is not None and size > FAR_BEYOND * limit:
            return self._hang_up("BDAT", replies.FAR_TOO_BIG)
        refused = refusal(self, "BDAT", length)
        if refused is None and word not in ("", "LAST"):
            refused = replies.BAD_CHUNK
        self._chunk = Chunk(size, size, word == "LAST", refused)
        if refused is None and self.state is RCPT:
            self._pending = event
        return self._pending

    def _open_chunk(self, event: Command, reply: Reply) -> None:
        """Take the driver's word on the first chunk; the client hears it behind the octets."""
        assert self._chunk is not None, "it was begun"
        if reply.code < 400:
            self.state = TRANSITIONS["BDAT"][self.state]
            self._start_mail_data(event)
        else:
            self._chunk = self._chunk._replace(refusal=reply)

    def _read_chunk(self) -> Optional[Command]:
        """Read the octets of a chunk, and then answer it."""
        chunk = self._chunk
        assert chunk is not None, "it was begun"
        if chunk.left >= 0:
            octets = self._inbox.take(chunk.left)
            left = chunk.left - len(octets)
            if left and not octets:
                self._starved = True
                return None
            self._chunk = chunk = chunk._replace(left=left or -1)  # -1: all was read
            if chunk.refusal is None:
                mail = self._open_mail
                content = mail.chunk(octets, end=left == 0 and chunk.last)
                if mail.far_too_big:
                    return self._hang_up("BDAT", replies.FAR_TOO_BIG)
                if content:
                    return Command("content", content)
            return None
        self._chunk = None
        if self.state is not BDAT:
            assert chunk.refusal is not None, "without one there would be a transaction"
            if self.state is not RCPT:
                return self._answer("BDAT", chunk.refusal)
            if chunk.last and self.rules.lmtp:
                # One reply for each recipient, whatever it is (RFC 2033 4.3).
                others = len(self._open_envelope.recipients) - 1
                self.outbox.extend([chunk.refusal.render()] * others)
            return self._answer("BDAT", chunk.refusal, Command("BDAT"))
        mail = self._open_mail
        # A message that has lost a chunk stays lost until RSET, and says so at each chunk.
        mail.refusal = (
            mail.refusal or chunk.refusal or (replies.MESSAGE_TOO_BIG if mail.too_big else None)
        )
        if chunk.last:
            return self._message(mail.fault)
        if chunk.size == 0:
            self._junk += 1  # it brings no mail
        received = Reply(250, f"{chunk.size} octets received")
        return self._answer("BDAT", mail.refusal or received)
