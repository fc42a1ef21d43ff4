"""A relay: mail goes to one next hop, which our client hears recipient by recipient.

A battery (``deliver=Relay("mx.example")``) works in step with our client: the next hop is asked
at MAIL and at RCPT, and its refusals are ours, before the body is sent. As a hook only
(``deliver_envelope=Relay("mx.example").deliver_envelope``) it asks when the message has come. The
conversation itself is in `relaying`, the connection in `nexthop`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional, Tuple, Union

from .envelope import Envelope
from .syntax import CONTROL, Mailbox, is_domain

if TYPE_CHECKING:
    import ssl

    from .handler import SMTPHandler
    from .hooks import Receipts
    from .relaying import Relaying

__all__ = ["Relay"]

TLS_WORDS = (
    "None (STARTTLS where it is offered), 'require' or an SSLContext (STARTTLS with a certificate "
    "that can be trusted), 'implicit' (TLS from the start), or False (never)"
)


class Relay:
    """Passes mail on to ``host``, and says 250 only when it has.

    ``tls``: ``None`` is STARTTLS where it is offered, with whatever certificate, and in the clear
    where that fails (RFC 7435); ``"require"`` is STARTTLS with a certificate for ``host`` that the
    system trusts, an ``SSLContext`` is the same with its own trust; ``"implicit"`` is TLS from the
    start (RFC 8314), verified; ``False`` is none.

    ``auth`` is ``(user, password)``; a password goes to a verified host only, or in the clear where
    ``tls=False`` says so. ``timeout``: seconds to connect and for each reply, ten times that for
    the end of mail data. ``hostname`` is our name in EHLO; by default the server's.

    ``unique``: one RCPT for several recipients that are the same; each of them hears 250.
    ``rewrite_to``: every recipient becomes this one.

    One relay serves any number of connections. Raises ``ValueError`` for what cannot be.
    """

    hooks = ("validate_sender", "validate_recipient", "deliver_envelope", "session_ended")
    """What `attach` gives."""

    def __init__(
        self,
        host: str,
        port: int = 25,
        *,
        tls: Union[bool, str, ssl.SSLContext, None] = None,
        auth: Optional[Tuple[str, str]] = None,
        timeout: float = 60,
        unique: bool = True,
        rewrite_to: Optional[str] = None,
        hostname: Optional[str] = None,
    ) -> None:
        if not isinstance(host, str) or not host or CONTROL.search(host) or " " in host:
            raise ValueError(f"Relay: host is a name or an address, not {host!r}")
        if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65_536:
            raise ValueError(f"Relay: port is a number from 1 to 65535, not {port!r}")
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
            raise ValueError(f"Relay: timeout is a number of seconds, not {timeout!r}")
        if hostname is not None and not (hostname.isascii() and is_domain(hostname)):
            raise ValueError(f"Relay: hostname is a domain, not {hostname!r}")
        self.host = host
        self.port = port
        self.tls = tls
        self.context = context_of(tls)
        self.auth = checked(auth, tls)
        self.timeout = float(timeout)
        self.unique = unique
        self.rewrite_to = None if rewrite_to is None else Mailbox.parse(rewrite_to)
        if self.rewrite_to is not None and not self.rewrite_to.isascii():
            # Mail whose sender does not declare SMTPUTF8 could never go there.
            raise ValueError(f"Relay: rewrite_to is an address in ASCII, not {rewrite_to!r}")
        self.hostname = hostname

    def __repr__(self) -> str:
        return f"Relay({self.host!r}, {self.port})"

    def attach(self, handler: SMTPHandler) -> Relaying:
        """Give what serves one connection, in step with its client."""
        from .relaying import Relaying

        return Relaying(self, handler)

    def deliver_envelope(self, envelope: Envelope) -> Receipts:
        """Pass a message on that has come already, in a transaction of its own.

        Where the next hop takes some of the recipients and refuses others for good, it is accepted,
        and the sender gets a report of the others by the same next hop, if it is to get reports
        at all (RFC 3461). Where that report would not be taken, or a refusal is but for now,
        nobody gets the mail yet, and the client hears the refusal: so nobody gets it twice. In
        LMTP there is a receipt for each recipient, and no report.
        """
        from .relaying import Relaying

        relaying = Relaying(self)
        try:
            return relaying.deliver_envelope(envelope)
        finally:
            relaying.session_ended("delivered")


def context_of(tls: Any) -> ssl.SSLContext:
    """Give the context for TLS to the next hop; ``ValueError`` for what means none."""
    import ssl

    if isinstance(tls, ssl.SSLContext):
        if tls.protocol == ssl.PROTOCOL_TLS_SERVER:
            raise ValueError("Relay: tls is a context of a server; we are the client here")
        return tls
    if not (tls is None or tls is False or tls in ("require", "implicit")):
        raise ValueError(f"Relay: tls is {TLS_WORDS}, not {tls!r}")
    if tls:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
    return context


def checked(auth: Any, tls: object) -> Optional[Tuple[str, str]]:
    """Give the user and the password; ``ValueError`` where there can be none."""
    if auth is None:
        return None
    pair = isinstance(auth, tuple) and len(auth) == 2 and all(isinstance(s, str) for s in auth)
    # The standard library's client sends no other. What it is stays unsaid.
    if not pair or not all(text and text.isascii() for text in auth):
        raise ValueError("Relay: auth is (user, password), both in ASCII")
    if tls is None:
        raise ValueError(
            "Relay: auth needs tls='require', 'implicit' or an SSLContext: else anybody could pose "
            "as the next hop and get the password; or tls=False, where it may go in the clear"
        )
    return auth[0], auth[1]
