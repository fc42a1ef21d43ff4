"""What the server answers: events of the session <-> hooks of the user.

The session says what the client may ask, a hook decides, the reply goes out. Everything that a user
of the library overrides is a method of :class:`SMTPHandler`.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, List, Optional, Union

from . import reply as replies
from .command import VERBS, Command
from .hooks import DELIVERIES, overridden, receipt, verdict
from .mailtaking import MailTaking
from .reply import Disconnect, Reject, Reply, shared
from .sasl import Credentials, ScramKeys
from .storage import AnySink
from .syntax import Mailbox
from .trace import new_id

if TYPE_CHECKING:
    from .sasl import SecretRequest

__all__ = ["SMTPHandler"]

# What is done once a reply is known: a message is counted; what was sent of one that will have no
# end is forgotten.
AFTER = {
    "message": "_account",
    **dict.fromkeys(("RSET", "HELO", "EHLO", "LHLO"), "_forget"),
}

# What the client is told of a fault of ours.
FAULTS = {"connection": replies.NO_SERVICE, "credentials": replies.AUTH_ERROR}


# The method that answers an event.
METHODS = {verb: f"do_{verb}" for verb in (*VERBS, "connection", "credentials", "message")}


class SMTPHandler(MailTaking):
    """Serves one client; override the hooks. There is one object for each connection.

    In a hook, ``self.session`` is the conversation, ``self.envelope`` the mail transaction in
    course, ``self.peer`` the client, ``self.command`` what it just said and ``self.server`` the
    server. To refuse, return ``False`` or a :class:`Reply`, or raise :class:`Reject`.
    """

    battery: Any = None
    """What serves the hooks of a battery, for this connection."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        names = overridden(cls, SMTPHandler)
        cls.overridden = frozenset(names)
        cls.delivery = next((name for name in names if name in DELIVERIES), None)

    # -- the life of a connection ------------------------------------------------------------

    def setup(self) -> None:
        """Take the connection over from the server."""
        super().setup()
        self.command = Command("connection")
        self._sink: Optional[AnySink] = None
        self._sink_fault: Optional[Reply] = None
        self._traced = False
        self._mail_began = 0.0

    def attach_battery(self) -> None:
        """Get what serves this connection from the battery, where there is one."""

    def over(self) -> None:
        """Tell the hook, once."""
        self._drop_sink()
        try:
            self.session_ended(self._reason)
        except Exception:
            self._fault("session_ended failed")

    # -- events ------------------------------------------------------------------------------

    def answer(self, event: Command) -> Union[Reply, List[Reply]]:
        """Decide on an event: the method ``do_`` and its verb, and what it raises."""
        self.command = event
        verb = event.verb
        try:
            reply: Union[Reply, List[Reply]] = getattr(self, METHODS[verb])(event)
        except Reject as reject:
            reply = reject.reply
        except Disconnect as disconnect:
            self._hanging_up = True
            reply = disconnect.reply
        except Exception:
            # What it says is for the log alone: the client gets no detail.
            self._fault(f"do_{verb} failed")
            reply = FAULTS.get(verb, replies.LOCAL_ERROR)
        except SystemExit:
            self._fault(f"do_{verb} called exit(), which ends no more than its session")
            reply = replies.NO_SERVICE
        after = AFTER.get(verb)
        if after is not None:
            getattr(self, after)(reply)
        return reply

    def do_connection(self, event: Command) -> Reply:
        """Greet, or refuse the host (RFC 5321 3.1)."""
        self.attach_battery()
        greeting = shared(220, f"{self.settings.hostname} {self.settings.banner}".rstrip())
        allowed = self.validate_host(self.peer.address)
        return verdict("validate_host", allowed, greeting, replies.HOST_REFUSED)

    def do_HELO(self, event: Command) -> Reply:
        """Answer with our name (RFC 5321 4.1.1.1)."""
        hello = shared(250, self.settings.hostname)
        allowed = self.validate_helo(event.argument)
        return verdict("validate_helo", allowed, hello, replies.NAME_REFUSED)

    def do_EHLO(self, event: Command) -> Reply:
        """Answer with our name and what we offer."""
        hello = shared(250, "\n".join((self.settings.hostname, *self.session.keywords)))
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
            self._fault("secret failed")
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
            self.server.counters.add(auth=1)
            return replies.AUTH_OK
        if not isinstance(allowed, (bool, str, type(None))):
            raise TypeError("authenticate must give True, the identity, False or a Reply")
        return replies.AUTH_FAILED

    def do_MAIL(self, event: Command) -> Reply:
        """Open a transaction, if the sender may."""
        self.envelope.id = new_id()
        self._mail_began = monotonic()
        size = event.parameters.get("SIZE")
        if size is not None and not self._has_room(int(size)):
            return replies.NO_STORAGE  # RFC 1870 6.1
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

    def do_RSET(self, event: Command) -> Reply:
        """Forget the transaction."""
        return replies.OK

    def do_NOOP(self, event: Command) -> Reply:
        """Do nothing, well."""
        return replies.OK

    def do_QUIT(self, event: Command) -> Reply:
        """Say goodbye."""
        self._reason, self._linger = "quit", False
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
