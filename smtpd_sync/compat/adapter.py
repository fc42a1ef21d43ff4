"""What the hooks of an aiosmtpd handler know as session and envelope, and how they are asked.

Nothing of aiosmtpd is imported. The library keeps the books, here as everywhere; what a hook did
write into the envelope stands.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Union

from ..command import Command
from ..envelope import Parameters
from ..handler import SMTPHandler
from ..reply import Disconnect, Reject, Reply
from ..sasl import Credentials
from ..syntax import Mailbox

if TYPE_CHECKING:
    from .. import envelope as core
    from ..hooks import Receipt, Verdict

__all__ = ["Adapter", "AuthResult", "Envelope", "LoginPassword", "Session"]

STATUS_LINE = re.compile(
    r"(?P<code>([245])[0-9]{2})"
    r"(?:[ -](?:(?P<status>\2\.(?:0|[1-9][0-9]{0,2})\.(?:0|[1-9][0-9]{0,2}))(?: |$))?(?P<text>.*))?"
)


class LoginPassword(NamedTuple):
    """What a client gave by PLAIN or LOGIN; ``repr`` does not show the password."""

    login: bytes
    password: bytes

    def __repr__(self) -> str:
        return f"LoginPassword(login={self.login!r}, password=...)"


class AuthResult(NamedTuple):
    """What an authenticator gives."""

    success: bool
    handled: bool = True
    """Of no meaning here: a client always gets one reply."""
    message: Optional[str] = None
    """The status of a refusal."""
    auth_data: Any = None
    """What ``session.auth_data`` is to be."""


class Session:
    """What a hook knows as ``session``: of one connection, until TLS begins it anew."""

    def __init__(self, handler: SMTPHandler) -> None:
        self._handler = handler
        self.host_name: Optional[str] = None
        """What the client called itself in HELO or EHLO."""
        self.extended_smtp = False
        """Whether it said EHLO."""
        self.authenticated: Optional[bool] = None
        """Whether the last AUTH succeeded."""
        self.auth_data: Any = None
        """What the authenticator said of the client."""
        self.login_data: Any = None
        """As ``auth_data``, by its older name."""
        self.proxy_data: Any = None
        self.loop: Any = None
        """There is none."""

    @property
    def peer(self) -> Tuple[str, int]:
        """The client: its address and port."""
        address, port = self._handler.peer
        return address, port

    @property
    def ssl(self) -> Optional[Dict[str, Any]]:
        """What is known of the TLS in use: ``peercert`` and ``cipher``."""
        tls = self._handler.session.tls
        if tls is None:
            return None
        return {"peercert": tls.peer_certificate, "cipher": (tls.cipher, tls.version, tls.bits)}


class Envelope:
    """What a hook knows as ``envelope``: one mail transaction."""

    def __init__(self) -> None:
        self.mail_from: Optional[str] = None
        """The reverse-path as it was sent; ``"<>"`` is the null one."""
        self.mail_options: List[str] = []
        self.smtp_utf8 = False
        self.rcpt_tos: List[str] = []
        self.rcpt_options: List[str] = []
        self.content: Optional[bytes] = None
        self.original_content: Optional[bytes] = None


Authenticator = Callable[[Any, Session, Envelope, str, LoginPassword], Union[AuthResult, bool]]


def reply_of(name: str, result: object) -> Reply:
    """Read what a hook gave: a status such as ``"250 OK"``, of several lines too."""
    if isinstance(result, Reply):
        return result
    if inspect.isawaitable(result):
        getattr(result, "close", str)()  # else Python warns that it was never awaited
        raise TypeError(f"{name} gave an awaitable; there is no loop here")
    lines = re.split("\r?\n", result) if isinstance(result, str) else []
    found = [STATUS_LINE.fullmatch(line) for line in lines]
    matches = [match for match in found if match is not None]
    if len(matches) != len(lines) or len({match["code"] for match in matches}) != 1:
        raise TypeError(f'{name} must give a status such as "250 OK", not {result!r}')
    text = "\n".join(match["text"] or "" for match in matches)
    return Reply(int(matches[0]["code"]), text, matches[0]["status"])


def options_of(parameters: Parameters) -> List[str]:
    """Write parameters as a list: ``["SIZE=20", "BODY=8BITMIME", "SMTPUTF8"]``."""
    return [written(keyword, value) for keyword, value in parameters.items()]


def written(keyword: str, value: Union[str, bool]) -> str:
    """Write a parameter."""
    if value is True:
        return keyword
    # In capitals as aiosmtpd has it, where case has no meaning.
    return f"{keyword}={str(value).upper() if keyword == 'BODY' else value}"


class Adapter(SMTPHandler):
    """Asks the hooks of ``target``."""

    target: Any
    edits_responses: bool
    """Whether its handle_EHLO is given the lines of the reply, and gives them back."""
    authenticator: Authenticator

    trace = False  # the content is what the client sent

    def setup(self) -> None:
        """Begin with nothing known."""
        super().setup()
        self._view = Session(self), self.session.tls
        self._books: Tuple[Envelope, Optional[core.Envelope]] = Envelope(), None

    @property
    def view(self) -> Session:
        """What hooks know as session. TLS begins it anew (RFC 3207 4.2)."""
        if self._view[1] is not self.session.tls:
            self._view = Session(self), self.session.tls
        return self._view[0]

    @property
    def books(self) -> Envelope:
        """What hooks know as envelope, of the transaction in course."""
        if self._books[1] is not self.session.envelope:
            self._books = Envelope(), self.session.envelope
        return self._books[0]

    def ask(
        self, name: str, *arguments: Any, envelope: Optional[Envelope] = None
    ) -> Optional[Reply]:
        """Ask a hook; ``None`` where there is none."""
        hook = getattr(self.target, name, None)
        if hook is None:
            return None
        try:
            result = hook(self.server, self.view, envelope or self.books, *arguments)
            if isinstance(result, list) and name == "handle_EHLO":
                result = "\n".join(result)
            return reply_of(name, result)
        except (Reject, Disconnect):
            raise
        except Exception as error:
            explain = getattr(self.target, "handle_exception", None)
            if explain is None:
                raise
            self._fault(f"{name} failed")
            reply = reply_of("handle_exception", explain(error))
            if reply.code < 400:
                raise TypeError(f"handle_exception must refuse, not say {reply}") from error
            return reply

    def validate_helo(self, name: str) -> Verdict:
        """Ask handle_HELO or handle_EHLO."""
        view = self.view
        before = view.host_name, view.extended_smtp
        view.host_name, view.extended_smtp = None, self.command.verb != "HELO"
        reply: Optional[Reply] = None
        accepted = False
        try:
            reply = self._hello(name)
            accepted = reply is None or reply.code < 400
        finally:
            if not accepted:
                view.host_name, view.extended_smtp = before
        if view.host_name is None:
            view.host_name = name
        return reply

    def _hello(self, name: str) -> Optional[Reply]:
        if self.command.verb == "HELO":
            return self.ask("handle_HELO", name, envelope=Envelope())
        lines = [self.settings.hostname, *self.session.keywords]
        if self.edits_responses:
            *first, last = lines
            responses = [*(f"250-{line}" for line in first), f"250 {last}"]
            return self.ask("handle_EHLO", name, responses, envelope=Envelope())
        reply = self.ask("handle_EHLO", name, envelope=Envelope())
        if reply is None or reply.code >= 400:
            return reply
        # The older form gives one more line to what was said before.
        others = [line for line in lines if line != reply.text]
        return Reply(reply.code, "\n".join((*others, reply.text)))

    def validate_sender(self, mailbox: Mailbox) -> Verdict:
        """Ask handle_MAIL, and keep the books where it did not."""
        books, address = self.books, mailbox.original or "<>"
        books.smtp_utf8 = self.envelope.smtputf8
        options = options_of(self.envelope.sender_parameters)
        reply = self.ask("handle_MAIL", address, options)
        if books.mail_from is None:
            books.mail_from = address
            books.mail_options.extend(options)
        return reply

    def do_RCPT(self, event: Command) -> Reply:
        """Keep the books where handle_RCPT did not, or was not asked, or refused."""
        books = self.books
        before = list(books.rcpt_tos), list(books.rcpt_options)
        accepted = False
        try:
            reply = super().do_RCPT(event)
            accepted = reply.code < 400
        finally:
            if not accepted:
                books.rcpt_tos, books.rcpt_options = before
        if accepted and books.rcpt_tos == before[0]:
            books.rcpt_tos.append(event.argument.original)
            books.rcpt_options.extend(options_of(event.parameters))
        return reply

    def validate_recipient(self, mailbox: Mailbox) -> Verdict:
        """Ask handle_RCPT."""
        return self.ask("handle_RCPT", mailbox.original, options_of(self.command.parameters))

    def verify(self, text: str) -> Receipt:
        """Ask handle_VRFY."""
        bare = text[1:-1] if text.startswith("<") and text.endswith(">") else text
        return self.ask("handle_VRFY", bare)

    def do_RSET(self, event: Command) -> Reply:
        """Ask handle_RSET."""
        return self.ask("handle_RSET", envelope=Envelope()) or super().do_RSET(event)

    def do_NOOP(self, event: Command) -> Reply:
        """Ask handle_NOOP."""
        return self.ask("handle_NOOP", event.argument) or super().do_NOOP(event)

    def do_QUIT(self, event: Command) -> Reply:
        """Ask handle_QUIT; whatever it says, the client goes."""
        reply = self.ask("handle_QUIT")
        if reply is not None and reply.code >= 400:
            raise Disconnect(*reply)
        bye = super().do_QUIT(event)
        return reply or bye


def deliver(self: Adapter, sender: Mailbox, recipients: List[Mailbox], data: bytes) -> Receipt:
    """Ask handle_DATA."""
    self.books.content = self.books.original_content = data
    return self.ask("handle_DATA")


def authenticate(self: Adapter, credentials: Credentials) -> Union[bool, Reply]:
    """Ask the authenticator."""
    if credentials.password is None:
        return False  # no password is no empty one
    given = LoginPassword(credentials.username.encode(), credentials.password.encode())
    view = self.view
    view.authenticated = False
    result = self.authenticator(self.server, view, self.books, credentials.mechanism, given)
    message = getattr(result, "message", None)
    if getattr(result, "success", result) is not True:
        return reply_of("authenticator", message) if message else False
    view.authenticated = True
    view.auth_data = view.login_data = getattr(result, "auth_data", None)
    return True
