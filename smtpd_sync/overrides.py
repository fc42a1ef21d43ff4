"""The hooks as methods of a handler: all that a user of the library overrides.

Each says what it means when it is not there. When they are called, and what their answers do, is
said in `handler` and `mailtaking`; the table is `hooks.HOOKS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, FrozenSet, List, Optional, Union

from .envelope import Envelope
from .negotiating import Negotiating
from .reply import Reply
from .sasl import Credentials
from .storage import AnySink, Sink
from .syntax import Mailbox

if TYPE_CHECKING:
    from email.message import EmailMessage

    from .hooks import Receipt, Receipts, Verdict
    from .sasl import Secret

__all__ = ["Hookable"]


class Hookable(Negotiating):
    """The hooks, in the order in which a session comes to them."""

    overridden: FrozenSet[str] = frozenset()
    """The hooks that the class overrides."""
    delivery: Optional[str] = None
    """The delivery hook that the class overrides."""

    def validate_host(self, address: str) -> Verdict:
        """Called before the greeting with the text of the client's IP address."""
        return None

    def validate_helo(self, name: str) -> Verdict:
        """Called at HELO and EHLO with the name that the client gives itself."""
        return None

    def authenticate(self, credentials: Credentials) -> Union[bool, str, Reply, None]:
        """Called when AUTH is complete: ``True`` or the identity lets in, and nothing else does.

        By default it asks the option ``users``. What SCRAM or CRAM-MD5 proved by `secret` does not
        come here.
        """
        return credentials.check(self.settings.users.get(credentials.username))

    def secret(self, mechanism: str, username: str) -> Secret:
        """Called for SCRAM and CRAM-MD5: give the password, or for SCRAM its stored keys.

        ``None`` is a user that is not known; the client cannot tell it from a wrong password.
        """
        return self.settings.users.get(username)

    def validate_sender(self, mailbox: Mailbox) -> Verdict:
        """Called at MAIL with the reverse-path; ``""`` is the null one (RFC 5321 4.5.5)."""
        return None

    def validate_recipient(self, mailbox: Mailbox) -> Verdict:
        """Called at RCPT with a forward-path; not for the postmaster (RFC 5321 4.5.1)."""
        return None

    def validate_data(self, sender: Mailbox, recipients: List[Mailbox]) -> Verdict:
        """Called at DATA, before any mail data is read."""
        return None

    def deliver(self, sender: Mailbox, recipients: List[Mailbox], data: bytes) -> Receipts:
        """Called with the whole message. To return is to take responsibility for it."""
        raise NotImplementedError

    def deliver_message(
        self, message: EmailMessage, sender: Mailbox, recipients: List[Mailbox]
    ) -> Receipts:
        """Called instead of `deliver`, with the message parsed."""
        raise NotImplementedError

    def deliver_envelope(self, envelope: Envelope) -> Receipts:
        """Called instead of both; ``envelope.open()`` gives the mail data as a file."""
        raise NotImplementedError

    def open_sink(self, envelope: Envelope) -> AnySink:
        """Called before 354: give the binary file that the mail data is written to."""
        return self.own_sink(envelope)

    def own_sink(self, envelope: Envelope) -> Sink:
        """Give a sink of the library: memory, or a temporary file, within the limits."""
        limits, settings = self.settings.limits, self.settings
        reads_file = self.delivery == "deliver_envelope"
        in_memory = limits.message_memory if reads_file else limits.memory
        return Sink(self.server.storage, limits, in_memory, settings.spool_directory)

    def verify(self, text: str) -> Receipt:
        """Called at VRFY; a str is the text of the 250, ``None`` answers 252."""
        return None

    def expand(self, text: str) -> Receipt:
        """Called at EXPN; a str is the text of the 250, a line a member; ``None`` answers 502."""
        return None

    def worker_started(self) -> None:
        """Called once in each worker process, before it serves; there is no session yet."""

    def session_ended(self, reason: str) -> None:
        """Called once, whatever happened, when the connection is over."""
