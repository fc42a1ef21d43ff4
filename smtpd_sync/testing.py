"""For tests of code that sends mail: a server that catches what is sent, and says what it got.

::

    with MailCatcher() as mail:
        send_a_newsletter(mail.host, mail.port)
        assert mail.wait_one(to="bob@").subject == "News"
"""

from __future__ import annotations

import ssl
import sys
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Union

from .caught import CaughtMail, CaughtMessage, NoMessage
from .handler import SMTPHandler
from .hooks import DELIVERIES, any_credentials
from .limits import DEFAULT_LIMITS
from .logs import INFO
from .server import SMTPServer

if TYPE_CHECKING:
    from .envelope import Envelope
    from .session import Session
    from .tls import TLSSetting

__all__ = ["CaughtMessage", "MailCatcher", "MailCatcherMixin", "NoMessage"]

STOP = 0.002  # seconds for idle clients to hear 421
FORGIVING: Dict[str, Any] = {
    "bare_newline": "keep",
    "trace": False,
    "transcript": True,
    "strict_pipelining": False,
    "auth_require_tls": False,
    "limits": DEFAULT_LIMITS._replace(
        errors=sys.maxsize, junk_commands=sys.maxsize, auth_failures=sys.maxsize
    ),
}
"""Options that differ from a server's: mail stays as it was sent, and nobody is sent away."""


class CatchingHandler(SMTPHandler):
    """Hands over what it gets to its catcher."""

    catcher: MailCatcher

    def setup(self) -> None:
        """Take the connection over from the server."""
        super().setup()
        self.catcher._sessions.append(self.session)

    def deliver_envelope(self, envelope: Envelope) -> None:
        """Keep a message."""
        self.catcher.add(CaughtMessage(envelope))


class CatchingServer(SMTPServer):
    """Parts from its clients at once, as a test that ends wants it."""

    cut_off_level = INFO


class MailCatcher(CaughtMail):
    """A server on a free port of this machine that keeps the mail it gets, in memory.

    ``auth``: ``"any"`` lets everybody in, a ``{user: password}`` those, a callable is the hook
    ``authenticate``. ``starttls`` and ``tls`` (from the first octet on): ``True`` makes a
    certificate for the process, or give one as the option ``tls`` of `SMTPServer` takes it. Beyond
    ``max_messages`` the oldest goes. All other options and hooks of `SMTPServer` are taken, too,
    but for what delivers. It listens from `start`, or the head of a ``with`` block, on.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        auth: Union[str, bool, Mapping[str, str], Callable[..., Any], None] = None,
        starttls: Union[bool, TLSSetting] = False,
        tls: Union[bool, TLSSetting] = False,
        max_messages: Optional[int] = None,
        **server_options: Any,
    ) -> None:
        super().__init__(max_messages)
        for name in ("workers", *DELIVERIES):
            if name in server_options:
                raise ValueError(f"{name}: a MailCatcher keeps the mail itself, in one process")
        if tls and starttls:
            raise ValueError("tls and starttls: TLS begins at once, or later; give one of them")
        self._place = host, port
        self._certificate = tls or starttls
        self._options = {**FORGIVING, **_auth(auth), **server_options, "implicit_tls": bool(tls)}
        self._sessions: List[Session] = []
        self._server: Optional[SMTPServer] = None

    # -- the server --------------------------------------------------------------------------

    def start(self) -> MailCatcher:
        """Listen; ``OSError`` where the port cannot be had, ``ValueError`` for a wrong option."""
        if self._server is not None:
            raise RuntimeError("the catcher was started already")
        options = dict(self._options)
        if self._certificate is True:
            from .certificates import server_context

            options["tls"] = server_context()
        elif self._certificate:
            options["tls"] = self._certificate
        self._server = CatchingServer(self._place, self._handler(), **options).start()
        return self

    def _handler(self) -> Any:
        return type("CatchingHandler", (CatchingHandler,), {"catcher": self})

    def stop(self) -> None:
        """Close the port and all connections, at once; what was caught stays. May come twice."""
        server, self._server = self._server, None
        if server is not None:
            server.stop(STOP)

    def __enter__(self) -> MailCatcher:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def server(self) -> SMTPServer:
        """The server behind it; ``RuntimeError`` while it does not listen."""
        if self._server is None:
            raise RuntimeError("the catcher does not listen: use it in a with block, or start() it")
        return self._server

    @property
    def host(self) -> str:
        """Where it listens: the address."""
        return str(self.server.address[0])

    @property
    def port(self) -> int:
        """Where it listens: the port."""
        return self.server.port

    @property
    def url(self) -> str:
        """Where it listens, as ``smtp://127.0.0.1:40123``; ``smtps`` where TLS begins at once."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"smtp{'s' if self._options['implicit_tls'] else ''}://{host}:{self.port}"

    def env(self, prefix: str = "SMTP_") -> Dict[str, str]:
        """Give variables for the environment of a program: ``SMTP_HOST, SMTP_PORT, SMTP_URL``."""
        values = {"HOST": self.host, "PORT": str(self.port), "URL": self.url}
        return {f"{prefix}{name}": value for name, value in values.items()}

    def client_context(self) -> ssl.SSLContext:
        """Make a context for a client that trusts the catcher's own certificate, and no other."""
        if self._certificate is True:
            from .certificates import client_context

            return client_context()
        if not isinstance(self._certificate, tuple):
            raise ValueError("client_context() needs tls=True, starttls=True, or a pair of files")
        return ssl.create_default_context(cafile=self._certificate[0])

    # -- what it got -------------------------------------------------------------------------

    @property
    def sessions(self) -> List[List[str]]:
        """The lines of each session, ``"C: QUIT"`` and ``"S: 221 2.0.0 Bye"``, the oldest first."""
        return [session.transcript for session in self._sessions]

    def clear(self) -> None:
        """Forget messages and sessions, in place; clients stay connected."""
        self._sessions.clear()
        super().clear()


def _auth(auth: Union[str, bool, Mapping[str, str], Callable[..., Any], None]) -> Dict[str, Any]:
    if auth is None or auth is False:
        return {}
    if auth is True or auth == "any":
        return {"authenticate": any_credentials}
    if isinstance(auth, Mapping):
        return {"users": auth}
    if callable(auth):
        return {"authenticate": auth}
    raise ValueError(f"auth: 'any', a dict of users, or a callable, not {auth!r}")


class MailCatcherMixin:
    """For ``unittest``: each test has an empty catcher, ``self.mail``.

    Set ``mail_options`` on the class to give it options.
    """

    mail: MailCatcher
    mail_options: Mapping[str, Any] = {}

    def setUp(self) -> None:
        """Start the catcher."""
        self.mail = MailCatcher(**self.mail_options).start()
        self.addCleanup(self.mail.stop)  # type: ignore[attr-defined]
        super().setUp()  # type: ignore[misc]
