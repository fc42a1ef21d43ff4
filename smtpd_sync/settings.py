"""What the options and hooks of a server come to: a handler class, rules, a TLS context.

Worked out once, when the server is made or configured; what cannot be is a ``ValueError`` here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Sequence, Tuple, Type, Union

from .envelope import Peer
from .handler import SMTPHandler
from .hooks import HOOKS, hooked, mechanisms_of
from .limits import Limits
from .listening import own_name, within_descriptors
from .options import OPTIONS, check_options
from .rules import Rules, rules

if TYPE_CHECKING:
    import os
    import ssl
    import sys

    from .extensions import Extension
    from .hooks import Hooks
    from .proxy import Networks
    from .tls import TLSSetting

    if sys.version_info >= (3, 12):
        from typing import Unpack as Unpack
    else:
        from typing_extensions import Unpack as Unpack

    class Keywords(Hooks, total=False):
        """The options and hooks as keywords."""

        hostname: str
        banner: str
        tls: Optional[TLSSetting]
        implicit_tls: bool
        require_tls: bool
        users: Mapping[str, str]
        mechanisms: Optional[Sequence[str]]
        require_auth: bool
        auth_require_tls: bool
        extensions: Sequence[Union[str, Extension]]
        ignore_parameters: bool
        sni: Mapping[str, TLSSetting]
        proxy_protocol: Sequence[str]
        xclient: Sequence[str]
        lmtp: bool
        strict: bool
        strict_pipelining: bool
        bare_newline: str
        local_domains: Sequence[str]
        spool_directory: Union[str, os.PathLike[str], None]
        transcript: bool
        workers: int
        cpu_affinity: Optional[str]
        limits: Limits
        trace: bool


__all__ = ["Settings", "resolve"]


class Settings:
    """Of one server, until it is configured anew; a connection keeps those it began with.

    Each option is an attribute.
    """

    hostname: str
    banner: str
    implicit_tls: bool
    users: Mapping[str, str]
    strict_pipelining: bool
    lmtp: bool
    limits: Limits
    trace: bool
    spool_directory: Optional[Union[str, os.PathLike[str]]]
    transcript: bool
    proxy_protocol: Networks
    xclient: Networks

    def __init__(
        self,
        options: Mapping[str, Any],
        hooks: Dict[str, Any],
        handler: Type[SMTPHandler],
        mechanisms: Tuple[str, ...],
        salt_key: bytes,
    ) -> None:
        vars(self).update(options)
        self.hooks = hooks
        deliver = hooks.get("deliver")
        self.battery: Any = None if callable(deliver) else deliver
        """What ``deliver=`` is, where it is more than a callable."""
        self.handler = handler
        self.context = _context(options)
        """Of the TLS handshakes."""
        names = (self.hostname.lower().rstrip("."), *options["local_domains"])
        self.postmasters = frozenset({"postmaster", *(f"postmaster@{name}" for name in names)})
        """The mailboxes that are always accepted (RFC 5321 4.5.1)."""
        self._rules, self._proxy_rules = (
            rules(
                self.limits,
                starttls=self.context is not None and not self.implicit_tls,
                mechanisms=mechanisms,
                salt_key=salt_key,
                xclient=xclient,
                **{name: options[name] for name in RULES},
            )
            for xclient in (False, True)
        )

    def rules_for(self, peer: Peer) -> Rules:
        """Give the rules of a session with ``peer``."""
        return self._proxy_rules if _is_in(peer, self.xclient) else self._rules

    def is_trusted(self, peer: Peer) -> bool:
        """Tell whether ``peer`` speaks for others, so that its connections are not its own."""
        return _is_in(peer, self.proxy_protocol) or _is_in(peer, self.xclient)

    def is_proxy(self, peer: Peer) -> bool:
        """Tell whether ``peer`` begins with a PROXY header."""
        return _is_in(peer, self.proxy_protocol)


def _is_in(peer: Peer, networks: Networks) -> bool:
    if not networks:
        return False
    from .proxy import is_in  # ipaddress is not cheap

    return is_in(peer.address, networks)


def resolve(
    handler: Type[SMTPHandler],
    inherited: Mapping[str, Any],
    given: Mapping[str, Any],
    salt_key: bytes,
) -> Settings:
    """Put together what was ``inherited``, from classes or before, and what is ``given`` now."""
    for name in given:
        if name not in HOOKS and name not in OPTIONS:
            raise ValueError(
                f"unknown option {name!r}; the options are: {', '.join(OPTIONS)}; "
                f"the hooks are: {', '.join(HOOKS)}"
            )
    both = {**inherited, **given}
    hooks = {name: both[name] for name in HOOKS if both.get(name) is not None}
    if isinstance(hooks.get("deliver"), (list, tuple)):
        from .several import Several  # seldom needed

        hooks["deliver"] = Several(hooks["deliver"])
    made = hooked(handler, hooks)
    if made.delivery is None:
        raise ValueError(
            "nothing would take the mail: give deliver=, or override deliver in the handler; "
            "deliver=smtpd_sync.discard takes it and keeps none"
        )
    options = check_options({name: both[name] for name in OPTIONS})
    mechanisms = mechanisms_of(made, options)
    options["hostname"] = options["hostname"] or own_name()
    options["limits"] = within_descriptors(options["limits"], "limits" in given)
    settings = Settings(options, hooks, made, mechanisms, salt_key)
    if options["workers"] > 1 and getattr(settings.battery, "one_process", False):
        raise ValueError("workers: what is delivered would be seen by its own worker alone")
    return settings


RULES = (
    "require_tls",
    "require_auth",
    "auth_require_tls",
    "hostname",
    "lmtp",
    "strict",
    "strict_pipelining",
    "bare_newline",
    "extensions",
    "ignore_parameters",
)
"""The options that are rules of a session."""


def _context(options: Mapping[str, Any]) -> Optional[ssl.SSLContext]:
    if options["tls"] is not None:
        from .tls import context_of  # ssl is not cheap

        return context_of(options["tls"], options["sni"])
    for name in ("implicit_tls", "require_tls", "sni"):
        if options[name]:
            raise ValueError(f"{name} needs tls=, a certificate to serve with")
    return None
