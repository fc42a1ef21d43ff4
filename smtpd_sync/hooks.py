"""Hooks: the code of the user, and what its answers mean.

A hook is a method of the handler class. A plain callable becomes such a method, on a subclass made
on the spot, and so do the methods of a *battery*, an object given as ``deliver=``: one mechanism.
"""

from __future__ import annotations

from typing import (
    IO,
    TYPE_CHECKING,
    Any,
    Callable,
    Collection,
    Dict,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Type,
    Union,
)

from . import reply as replies
from .logs import log
from .reply import Reply
from .sasl import MECHANISMS

if TYPE_CHECKING:
    import sys
    from email.message import EmailMessage

    from .envelope import Envelope
    from .handler import SMTPHandler
    from .sasl import Credentials, Secret
    from .syntax import Mailbox

    if sys.version_info >= (3, 12):
        from typing import Protocol, TypedDict
    else:
        from typing_extensions import Protocol, TypedDict

    Verdict = Union[None, bool, Reply]
    """``None`` and ``True`` accept, ``False`` refuses with the hook's own reply."""
    Receipt = Union[None, bool, str, Reply]
    """A `Verdict`, or the text of the 250."""
    Receipts = Union[Receipt, List[Receipt]]
    """A `Receipt`; in LMTP also one for each recipient, in order."""

    class Battery(Protocol):
        """An object whose methods are hooks; `attach` gives what serves one connection."""

        def attach(self, handler: SMTPHandler) -> Any: ...

    class Store(Protocol):
        """A battery without `attach`, that serves all connections itself."""

        def deliver_envelope(self, envelope: Envelope) -> Receipts: ...

    class Taker(Protocol):
        """What has a delivery hook."""

        @property
        def deliver(self) -> Callable[[Mailbox, List[Mailbox], bytes], Receipts]: ...
        @property
        def deliver_message(self) -> Callable[..., Receipts]: ...
        @property
        def deliver_envelope(self) -> Callable[[Envelope], Receipts]: ...

    Delivery = Callable[[Mailbox, List[Mailbox], bytes], Receipts]

    class Hooks(TypedDict, total=False):
        """The hooks as keywords: what each is called with, and may give back."""

        validate_host: Callable[[str], Verdict]
        validate_helo: Callable[[str], Verdict]
        authenticate: Callable[[Credentials], Union[bool, str, Reply, None]]
        secret: Callable[[str, str], Secret]
        validate_sender: Callable[[Mailbox], Verdict]
        validate_recipient: Callable[[Mailbox], Verdict]
        validate_data: Callable[[Mailbox, List[Mailbox]], Verdict]
        deliver: Union[Delivery, Battery, Store, Sequence[Union[Delivery, Battery, Store]]]
        deliver_message: Callable[[EmailMessage, Mailbox, List[Mailbox]], Receipts]
        deliver_envelope: Callable[[Envelope], Receipts]
        open_sink: Callable[[Envelope], IO[bytes]]
        verify: Callable[[str], Receipt]
        expand: Callable[[str], Receipt]
        worker_started: Callable[[], None]
        session_ended: Callable[[str], None]


__all__ = ["HOOKS", "discard", "hooked"]

HOOKS: Mapping[str, str] = {
    "validate_host": "address",
    "validate_helo": "name",
    "authenticate": "credentials",
    "secret": "mechanism, username",
    "validate_sender": "mailbox",
    "validate_recipient": "mailbox",
    "validate_data": "sender, recipients",
    "deliver": "sender, recipients, data",
    "deliver_message": "message, sender, recipients",
    "deliver_envelope": "envelope",
    "open_sink": "envelope",
    "verify": "text",
    "expand": "text",
    "worker_started": "",
    "session_ended": "reason",
}
"""Name of each hook -> its arguments. The lists never grow: context is on the handler."""

DELIVERIES = ("deliver_envelope", "deliver_message", "deliver")
"""The hooks that take a message: one of them is needed. The first that a class has is called."""

HOOKS_BY_REACH = (*DELIVERIES, *(name for name in HOOKS if name not in DELIVERIES))


def discard(sender: Mailbox, recipients: List[Mailbox], data: bytes) -> None:
    """Take each message and keep none: ``SMTPServer(address, deliver=smtpd_sync.discard)``."""


def any_credentials(credentials: Credentials) -> str:
    """Let everybody in: the hook ``authenticate`` for tests of clients."""
    return credentials.authzid or credentials.username or "anybody"


def hooked(base: Type[SMTPHandler], hooks: Mapping[str, Any]) -> Type[SMTPHandler]:
    """Make a subclass of ``base`` whose methods are ``hooks``; ``ValueError`` if one cannot be."""
    methods: Dict[str, Any] = {}
    # The methods of a battery come first: a keyword wins, wherever it stands.
    for name, hook in sorted(hooks.items(), key=lambda item: item[0] != "deliver"):
        if name not in HOOKS:
            raise ValueError(f"{name!r} is no hook; the hooks are: {', '.join(HOOKS)}")
        if name == "deliver" and not callable(hook):
            methods.update(_battery_methods(hook))
        elif not callable(hook):
            raise ValueError(f"{name}= takes a callable, not {hook!r}")
        else:
            methods[name] = staticmethod(hook)
    return type(base.__name__, (base,), {"__doc__": base.__doc__, **methods}) if methods else base


def _battery_methods(battery: Any) -> Dict[str, Any]:
    names = battery_hooks(battery)

    def attach(self: SMTPHandler) -> None:
        self.battery = battery.attach(self) if hasattr(battery, "attach") else battery

    def method(name: str) -> Callable[..., Any]:
        def call(self: SMTPHandler, *arguments: Any) -> Any:
            if self.battery is None and name == "session_ended":
                return None  # it ended before anything was attached
            # Workers start before there is a connection to attach to.
            served_by = battery if name == "worker_started" else self.battery
            return getattr(served_by, name)(*arguments)

        call.__name__ = name
        return call

    return {**{name: method(name) for name in names}, "attach_battery": attach}


def hooks_of(battery: Any) -> Tuple[str, ...]:
    """Name the hooks of a battery: those of its methods, or what its attribute ``hooks`` names.

    That attribute is for a battery whose `attach` gives an object with other methods.
    """
    named: Optional[Tuple[str, ...]] = getattr(battery, "hooks", None)
    if named is None:
        named = tuple(name for name in HOOKS if callable(getattr(battery, name, None)))
    return named


def battery_hooks(battery: Any) -> Tuple[str, ...]:
    """As `hooks_of`; ``ValueError`` for what would take no mail."""
    names = hooks_of(battery)
    if not any(name in DELIVERIES for name in names):
        raise ValueError(
            "deliver= takes a callable, an object with a method "
            f"{' or '.join(DELIVERIES)}, or a list of those; {battery!r} is none of them"
        )
    return names


def delivery_of(names: Collection[str]) -> str:
    """Give the delivery hook that is called where there are ``names``."""
    return next(name for name in DELIVERIES if name in names)


def hand_over(taker: Taker, name: str, envelope: Envelope) -> Receipts:
    """Call the delivery hook ``name`` of ``taker`` as it wants to be called."""
    if name == "deliver_envelope":
        return taker.deliver_envelope(envelope)
    sender, recipients = envelope.sender, list(envelope.recipients)
    if name == "deliver":
        return taker.deliver(sender, recipients, envelope.content)
    from email import message_from_bytes, policy

    try:
        message: Any = message_from_bytes(envelope.content, policy=policy.SMTPUTF8)
    except Exception:  # the email package raises all sorts; no retry would mend it
        log.exception("the message cannot be parsed")
        return replies.UNPARSABLE
    return taker.deliver_message(message, sender, recipients)


def overridden(handler: Type[SMTPHandler], base: Type[SMTPHandler]) -> List[str]:
    """Name the hooks that a handler class overrides, those of its most derived class first."""
    classes = handler.__mro__[: handler.__mro__.index(base)]
    return [name for cls in classes for name in HOOKS_BY_REACH if name in vars(cls)]


NEEDS = {
    "password": "the hook authenticate, or users=",
    "token": "the hook authenticate",
    "certificate": "the hook authenticate",
    "secret": "the hook secret, or users=",
}


def mechanisms_of(handler: Type[SMTPHandler], options: Mapping[str, Any]) -> Tuple[str, ...]:
    """Name the SASL mechanisms that a handler class and the options can serve.

    Raises ``ValueError`` where one was asked for that cannot be, or AUTH is required and none is.
    """
    overridden = handler.overridden
    decides, users = "authenticate" in overridden, bool(options["users"])
    can = {
        "password": decides or users,
        "token": decides,  # a password has no token
        "certificate": decides,
        "secret": "secret" in overridden or users,
    }
    asked = options["mechanisms"]
    if asked is None:
        found = tuple(n for n, row in MECHANISMS.items() if row.by_default and can[row.needs])
    else:
        found = asked
        for name in asked:
            if not can[MECHANISMS[name].needs]:
                raise ValueError(f"mechanisms: {name} needs {NEEDS[MECHANISMS[name].needs]}")
    if options["require_auth"] and not found:
        raise ValueError("require_auth needs users=, or the hook authenticate or secret")
    if found and options["auth_require_tls"] and options["tls"] is None:
        raise ValueError(
            "AUTH is offered inside TLS only: give a certificate (tls), or auth_require_tls=False "
            "where passwords may cross the network in the clear"
        )
    return found


def verdict(name: str, result: object, accepted: Reply, refused: Reply) -> Reply:
    """Turn what a ``validate_*`` hook gave into a reply; ``TypeError`` for what means nothing."""
    if result is None or result is True:
        return accepted
    if result is False:
        return refused
    if isinstance(result, Reply) and result.code // 100 in (2, 4, 5):
        return result
    raise TypeError(f"{name} must give None, True, False or a Reply of 2yz, 4yz or 5yz: {result!r}")


def receipt(name: str, result: object, accepted: Reply, refused: Reply) -> Reply:
    """As `verdict`, for the hooks that may also give the text of a 250."""
    if result is None:
        return accepted
    if isinstance(result, str):
        return Reply(250, result, accepted.status if accepted.code == 250 else None)
    return verdict(name, result, accepted, refused)
