"""Tests of code that sends mail: a server that catches all of it, in the background.

::

    from smtpd_sync.testing import MailCatcher

    with MailCatcher() as mail:
        send_welcome("bob@example.com", host=mail.host, port=mail.port)
        assert mail.wait_one(to="bob@example.com").subject == "Welcome"
"""

from __future__ import annotations

import sys
from types import SimpleNamespace, TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Type,
    Union,
)

from .catch import Catch, Catching, NoMail
from .caught import CaughtMail
from .faults import Faults
from .handler import SMTPHandler
from .hooks import DELIVERIES, any_credentials
from .limits import Limits
from .logs import INFO
from .server import SMTPServer

if TYPE_CHECKING:
    import ssl
    import unittest

    from .sasl import Credentials
    from .tls import TLSSetting
    from .web import Web

    Auth = Union[None, bool, str, Mapping[str, str], Callable[[Credentials], Any]]
    TestCase = unittest.TestCase
else:
    TestCase = object

__all__ = ["CaughtMail", "MailCatcher", "MailCatcherMixin", "NoMail"]

GRACE = 0.003
"""Seconds for an idle client to hear 421 when the catcher stops."""
LINES_SHOWN = 100
OCTETS_SHOWN = 4_000


class CatchingServer(SMTPServer):
    """Takes mail as it comes, and bears with every client."""

    auth_require_tls = False
    bare_newline = "keep"
    cut_off_level = INFO  # a test that ends does not wait for its clients
    limits = Limits(errors=sys.maxsize, junk_commands=sys.maxsize, auth_failures=sys.maxsize)
    strict_pipelining = False
    trace = False
    transcript = True


class MailCatcher(Catch, Faults):
    """An SMTP server of its own that catches mail, for tests: ``with MailCatcher() as mail:``.

    It listens on a free port of 127.0.0.1 when it is made, and answers when it is entered.

    ``auth``: ``None``, no AUTH; ``True`` or ``"any"``, everybody is let in; a dict of names and
    passwords; or a callable as the hook ``authenticate``. AUTH needs no TLS.
    ``starttls``, ``tls``: ``True`` offers STARTTLS, or speaks TLS from the first octet, with a
    throw-away certificate for localhost; or what the option ``tls`` of `SMTPServer` takes.
    ``max_messages``: the oldest go when there are more; no mail is ever refused for it.
    ``web``: ``True``, a port or ``"HOST:PORT"``: a page in a browser, at ``web_url``, shows it all.
    ``faults``, ``seed``: a plan as `smtpd_sync.faults.Faults` takes it.
    ``options`` are those of `SMTPServer`, hooks too. What a delivery hook of yours refuses is not
    caught. ``workers`` cannot be: another process would catch the mail.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        auth: Auth = None,
        starttls: Union[bool, TLSSetting] = False,
        tls: Union[bool, TLSSetting] = False,
        max_messages: Optional[int] = None,
        web: Union[bool, int, str] = False,
        faults: Union[str, Iterable[Mapping[str, Any]]] = (),
        seed: int = 0,
        handler: Type[SMTPHandler] = SMTPHandler,
        **options: Any,
    ) -> None:
        if starttls and tls:
            raise ValueError("starttls=, or tls= for TLS from the first octet; not both")
        Catch.__init__(self, max_messages)
        Faults.__init__(self, faults, seed=seed)
        setting = starttls or tls
        if setting is True:
            from .certificates import throwaway  # costs a process

            setting = throwaway()
        self._certificate: Union[bool, TLSSetting] = setting
        if setting:
            options.update(tls=setting, implicit_tls=bool(tls))
        self._scheme = "smtps" if tls else "smtp"
        takers = [*taken_from(options), Catching(self)]
        options = {**login(auth), **options, "deliver": takers}
        self._web = None if web is False else page_of(self, web)
        try:
            self.server = CatchingServer((host, port), self.handler(handler), **options)
            """The server; `SMTPServer.configure` and ``stats`` are there."""
        except BaseException:
            if self._web is not None:
                self._web.stop()
            raise

    def __repr__(self) -> str:
        return f"<MailCatcher {self.url}, messages: {len(self.messages)}>"

    # -- where it listens --------------------------------------------------------------------

    @property
    def host(self) -> str:
        """The address it listens at."""
        return str(self.server.address[0])

    @property
    def port(self) -> int:
        """The port, a free one if none was asked for."""
        return self.server.port

    @property
    def url(self) -> str:
        """``smtp://127.0.0.1:40123``; ``smtps`` where TLS is from the first octet."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self._scheme}://{host}:{self.port}"

    @property
    def web_url(self) -> str:
        """Where the page is that shows the mail; ``""`` without ``web``."""
        return self._web.url if self._web is not None else ""

    def env(self, prefix: str = "SMTP_") -> Dict[str, str]:
        """Give the variables SMTP_HOST and SMTP_PORT, for the environment of a program."""
        return {f"{prefix}HOST": self.host, f"{prefix}PORT": str(self.port)}

    def client_context(self) -> ssl.SSLContext:
        """Make a context for a client, that trusts the catcher's certificate and no other.

        Raises ``ValueError`` where there is none, or what was given is no pair of files.
        """
        if not isinstance(self._certificate, tuple):
            raise ValueError("client_context() needs starttls or tls: True, or a pair of files")
        from .certificates import client_context

        return client_context(self._certificate[0])

    # -- its life ----------------------------------------------------------------------------

    def start(self) -> MailCatcher:
        """Serve in the background; give the catcher back."""
        self.server.start()
        if self._web is not None:
            self._web.start()
        return self

    def stop(self, timeout: float = GRACE) -> None:
        """Free the port, and close the sessions that live. What was caught can be looked at."""
        self.server.stop(timeout)
        if self._web is not None:
            self._web.stop()

    def __enter__(self) -> MailCatcher:
        return self.start()

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.stop()

    # -- for a report ------------------------------------------------------------------------

    def report(self) -> str:
        """Write down the dialogue of each session, and the mail that was caught, for people."""
        from .show import printable  # seldom needed

        sections = []
        for number, session in enumerate(self.sessions, 1):
            lines = session.transcript[-LINES_SHOWN:]
            sections.append("\n".join((f"-- session {number}, {session.peer.address}", *lines)))
        for number, mail in enumerate(self.messages, 1):
            octets = mail.raw[:OCTETS_SHOWN].decode("utf-8", "replace")
            sections.append(printable(f"-- mail {number}: {mail.summary}\n{octets.rstrip()}"))
        return "\n\n".join(sections) or "-- no session"


def page_of(catch: Catch, web: Union[bool, int, str]) -> Web:
    """Make the page for what is caught; it listens."""
    from .web import Web, place_of  # seldom needed

    return Web(catch, *place_of(web))


def taken_from(options: Dict[str, Any]) -> List[Any]:
    """Take the delivery hooks out of the options, each as a battery or a callable."""
    takers: List[Any] = []
    for name in DELIVERIES:
        hook = options.pop(name, None)
        if isinstance(hook, (list, tuple)):
            takers.extend(hook)
        elif hook is not None:
            takers.append(hook if name == "deliver" else SimpleNamespace(**{name: hook}))
    return takers


def login(auth: Auth) -> Dict[str, Any]:
    """Give the options that AUTH needs; ``ValueError`` for what says nothing of it."""
    if auth is None or auth is False:
        return {}
    if auth is True or auth == "any":
        return {"authenticate": any_credentials}
    if callable(auth):
        return {"authenticate": auth}
    if isinstance(auth, Mapping):
        return {"users": auth}
    raise ValueError(
        'auth: None, True or "any", a dict of names and passwords, or a callable that gets the '
        f"credentials; not {auth!r}"
    )


class MailCatcherMixin(TestCase):
    """A `MailCatcher` for each test, as ``self.mail``: ``class Tests(MailCatcherMixin, TestCase)``.

    ``mail_options`` of the class are what it is made with.
    """

    mail_options: Mapping[str, Any] = {}
    mail: MailCatcher

    def setUp(self) -> None:
        """Start it; it stops when the test is over."""
        super().setUp()
        self.mail = MailCatcher(**self.mail_options).start()
        self.addCleanup(self.mail.stop)
