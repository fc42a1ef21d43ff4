"""What the server answers: events of the session <-> hooks of the user.

The session says what the client may ask, a hook decides, the reply goes out. Everything that a user
of the library overrides is a method of :class:`SMTPHandler`.
"""

from __future__ import annotations

import io
import logging
from typing import IO, TYPE_CHECKING, Any, FrozenSet, List, Optional, Union

from . import reply as replies
from .command import VERBS, Command
from .connection import Connection
from .envelope import Envelope
from .hooks import DELIVERIES, overridden, receipt, verdict
from .reply import Disconnect, Reject, Reply
from .sasl import Credentials, ScramKeys
from .syntax import Mailbox
from .trace import new_id, received

if TYPE_CHECKING:
    from email.message import EmailMessage

    from .hooks import Receipt, Receipts, Verdict
    from .sasl import Secret, SecretRequest

__all__ = ["SMTPHandler"]

log = logging.getLogger("smtpd_sync")


# What the client is told of a fault of ours.
FAULTS = {"connection": replies.NO_SERVICE, "credentials": replies.AUTH_ERROR}


class SMTPHandler(Connection):
    """Serves one client; override the hooks. There is one object for each connection.

    In a hook, ``self.session`` is the conversation, ``self.envelope`` the mail transaction in
    course, ``self.peer`` the client, ``self.command`` what it just said and ``self.server`` the
    server. To refuse, return ``False`` or a :class:`Reply`, or raise :class:`Reject`.
    """

    battery: Any = None
    """What serves the hooks of a battery, for this connection."""
    overridden: FrozenSet[str] = frozenset()
    """The hooks that the class overrides."""
    delivery: Optional[str] = None
    """The delivery hook that the class overrides."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        names = overridden(cls, SMTPHandler)
        cls.overridden = frozenset(names)
        cls.delivery = next((name for name in names if name in DELIVERIES), None)

    # -- hooks -------------------------------------------------------------------------------

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

    def open_sink(self, envelope: Envelope) -> IO[bytes]:
        """Called before 354: give the binary file that the mail data is written to."""
        return io.BytesIO()

    def verify(self, text: str) -> Receipt:
        """Called at VRFY; a str is the text of the 250, ``None`` answers 252."""
        return None

    def expand(self, text: str) -> Receipt:
        """Called at EXPN; a str is the text of the 250, a line a member; ``None`` answers 502."""
        return None

    def session_ended(self, reason: str) -> None:
        """Called once, whatever happened, when the connection is over."""

    # -- the life of a connection ------------------------------------------------------------

    def setup(self) -> None:
        """Take the connection over from the server."""
        super().setup()
        self.command = Command("connection")
        self._sink: Optional[IO[bytes]] = None
        self._sink_fault: Optional[Reply] = None
        self._traced = False

    def attach_battery(self) -> None:
        """Get what serves this connection from the battery, where there is one."""

    def over(self) -> None:
        """Tell the hook, once."""
        self._drop_sink()
        try:
            self.session_ended(self.reason)
        except Exception:
            log.exception("%s: session_ended failed", self.session.id)

    # -- events ------------------------------------------------------------------------------

    @property
    def envelope(self) -> Envelope:
        """The mail transaction in course; ``RuntimeError`` where there is none."""
        if self.session.envelope is None:
            raise RuntimeError("there is no mail transaction now")
        return self.session.envelope

    def answer(self, event: Command) -> Union[Reply, List[Reply]]:
        """Decide on an event: the method ``do_`` and its verb, and what it raises."""
        self.command = event
        reply = self._decide(event)
        log.debug("session=%s %s %s", self.session.id, event.verb, reply)
        return reply

    def _decide(self, event: Command) -> Union[Reply, List[Reply]]:
        try:
            reply: Union[Reply, List[Reply]] = getattr(self, "do_" + event.verb)(event)
            return reply
        except Reject as reject:
            return reject.reply
        except Disconnect as disconnect:
            self.hanging_up = True
            return disconnect.reply
        except Exception:
            # What it says is for the log alone: the client gets no detail.
            log.exception("%s: do_%s failed", self.session.id, event.verb)
            return FAULTS.get(event.verb, replies.LOCAL_ERROR)

    def do_connection(self, event: Command) -> Reply:
        """Greet, or refuse the host (RFC 5321 3.1)."""
        self.attach_battery()
        greeting = Reply(220, f"{self.settings.hostname} {self.settings.banner}".rstrip())
        allowed = self.validate_host(self.peer.address)
        return verdict("validate_host", allowed, greeting, replies.HOST_REFUSED)

    def do_HELO(self, event: Command) -> Reply:
        """Answer with our name (RFC 5321 4.1.1.1)."""
        hello = Reply(250, self.settings.hostname)
        allowed = self.validate_helo(event.argument)
        return verdict("validate_helo", allowed, hello, replies.NAME_REFUSED)

    def do_EHLO(self, event: Command) -> Reply:
        """Answer with our name and what we offer."""
        hello = Reply(250, "\n".join((self.settings.hostname, *self.session.keywords)))
        allowed = self.validate_helo(event.argument)
        return verdict("validate_helo", allowed, hello, replies.NAME_REFUSED)

    do_LHLO = do_EHLO  # RFC 2033 4.1

    def do_STARTTLS(self, event: Command) -> Reply:
        """Let the handshake begin (RFC 3207 4)."""
        return replies.START_TLS

    def find_secret(self, request: SecretRequest) -> None:
        """Ask the hook for what SCRAM and CRAM-MD5 need."""
        try:
            secret = self.secret(request.mechanism, request.username)
            if not (secret is None or isinstance(secret, (str, ScramKeys))):
                raise TypeError("secret must give a str, ScramKeys or None")
            request.secret = secret
        except Reject as reject:
            request.fault = reject.reply
        except Disconnect as disconnect:
            self.session.close(disconnect.reply)
        except Exception:
            log.exception("%s: secret failed", self.session.id)
            request.fault = replies.AUTH_ERROR

    def do_credentials(self, event: Command) -> Reply:
        """Let in who shows good credentials (RFC 4954 4), and nobody else."""
        credentials: Credentials = event.argument
        allowed = True if credentials.verified else self.authenticate(credentials)
        if isinstance(allowed, Reply) and allowed.code >= 400:
            return allowed
        if allowed is True and credentials.authzid in ("", credentials.username):
            allowed = credentials.username
        if isinstance(allowed, str) and allowed:  # "" is nobody's identity
            self.session.user = allowed
            return replies.AUTH_OK
        if not isinstance(allowed, (bool, str, type(None))):
            raise TypeError("authenticate must give True, the identity, False or a Reply")
        return replies.AUTH_FAILED

    def do_MAIL(self, event: Command) -> Reply:
        """Open a transaction, if the sender may."""
        self.envelope.id = new_id()
        allowed = self.validate_sender(event.argument)
        return verdict("validate_sender", allowed, replies.SENDER_OK, replies.SENDER_REFUSED)

    def do_RCPT(self, event: Command) -> Reply:
        """Take a recipient, if it may be."""
        mailbox: Mailbox = event.argument
        if mailbox.lower() in self.settings.postmasters:
            return replies.RECIPIENT_OK
        return verdict(
            "validate_recipient",
            self.validate_recipient(mailbox),
            replies.RECIPIENT_OK,
            replies.RECIPIENT_REFUSED,
        )

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
            log.exception("%s: no room for mail data", self.session.id)
            return replies.NO_STORAGE
        if not callable(getattr(sink, "write", None)):
            raise TypeError(f"open_sink must give a binary file: {sink!r}")
        self._sink = sink
        self._sink_fault, self._traced = None, not self.settings.trace
        return replies.START_INPUT

    do_BDAT = do_DATA

    def store(self, content: bytes, last: bool = False) -> None:
        """Write mail data to the sink, behind our trace field."""
        sink = self._sink
        if sink is None:
            return  # it failed: the rest is read, and dropped
        try:
            if not self._traced:
                self._traced = True
                write_all(sink, received(self.envelope, self.settings.hostname))
                if content[:1] in (b" ", b"\t"):
                    write_all(sink, b"\r\n")  # else the first line would fold into our field
            write_all(sink, content)
            if last:
                sink.flush()  # what waits in its buffer may find no room: no 250 before
        except Exception as error:  # a sink is code of the user
            log.exception("%s: mail data could not be stored", self.session.id)
            no_room = isinstance(error, OSError)
            self._sink_fault = replies.NO_STORAGE if no_room else replies.LOCAL_ERROR
            self._drop_sink()

    def do_message(self, event: Command) -> Union[Reply, List[Reply]]:
        """Deliver what has come, or say why not."""
        self.store(b"", last=True)  # an empty message has a trace, too
        refusal: Optional[Reply] = event.argument or self._sink_fault
        try:
            if refusal is not None:
                return refusal
            envelope = self.envelope
            envelope.sink = self._sink
            accepted = Reply(250, f"OK {envelope.id}")
            name = self.delivery or "deliver"
            result = self._deliver(name, envelope)
            if not (self.settings.lmtp and isinstance(result, list)):
                return receipt(name, result, accepted, replies.MESSAGE_REFUSED)
            if len(result) != len(envelope.recipients):
                raise TypeError(f"{name} gave {len(result)} receipts, not one for each recipient")
            return [receipt(name, each, accepted, replies.MESSAGE_REFUSED) for each in result]
        finally:
            self._drop_sink()

    def _deliver(self, name: str, envelope: Envelope) -> Receipts:
        """Call the delivery hook that the class has."""
        if name == "deliver_envelope":
            return self.deliver_envelope(envelope)
        sender, recipients = envelope.sender, list(envelope.recipients)
        if name == "deliver_message":
            from email import message_from_bytes, policy

            try:
                message: Any = message_from_bytes(envelope.content, policy=policy.SMTPUTF8)
            except Exception:  # the email package raises all sorts; no retry would mend it
                log.exception("%s: the message cannot be parsed", self.session.id)
                return replies.UNPARSABLE
            return self.deliver_message(message, sender, recipients)
        return self.deliver(sender, recipients, envelope.content)

    def do_RSET(self, event: Command) -> Reply:
        """Forget the transaction."""
        return replies.OK

    def do_NOOP(self, event: Command) -> Reply:
        """Do nothing, well."""
        return replies.OK

    def do_QUIT(self, event: Command) -> Reply:
        """Say goodbye."""
        self.reason, self.linger = "quit", False
        return replies.BYE

    def do_VRFY(self, event: Command) -> Reply:
        """Verify a user, if a hook does (RFC 5321 3.5)."""
        found = Reply(250, event.argument, "2.1.5")
        result = self.verify(event.argument)
        return replies.NO_VERIFY if not result else receipt("verify", result, found, replies.OK)

    def do_EXPN(self, event: Command) -> Reply:
        """Expand a list, if a hook does."""
        found = Reply(250, event.argument, "2.1.5")
        result = self.expand(event.argument)
        return replies.NOT_IMPLEMENTED if not result else receipt("expand", result, found, found)

    def do_HELP(self, event: Command) -> Reply:
        """List the commands, or show one (RFC 5321 4.1.1.8)."""
        topic = event.argument.upper()
        served = [verb for verb in VERBS if verb not in self.session.rules.refused]
        if not topic:
            return Reply(214, f"Commands: {' '.join(served)}\nHELP <verb> shows its syntax")
        if topic not in served:
            return Reply(504, f"No such topic; topics: {' '.join(served)}", "5.5.4")
        return Reply(214, VERBS[topic].usage)

    def _drop_sink(self) -> None:
        sink, self._sink = self._sink, None
        if sink is None or isinstance(sink, io.BytesIO):
            return  # memory goes with the envelope, which a hook may keep
        try:
            sink.close()
        except Exception:
            log.exception("%s: a sink could not be closed", self.session.id)


def write_all(sink: IO[bytes], octets: bytes) -> None:
    """Write all of ``octets``: an unbuffered file on a disk that fills may take only a part."""
    written = sink.write(octets)
    while written is not None and written < len(octets):
        octets = octets[written:]
        written = sink.write(octets)
        if not written:
            raise OSError("the sink takes no more")
