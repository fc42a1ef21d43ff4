"""SMTP servers in plain, blocking Python: one thread per connection, hooks as functions or methods.

::

    from smtpd_sync import SMTPServer

    def deliver(sender, recipients, data):
        print(sender, recipients, data.decode(errors="replace"))

    SMTPServer(("127.0.0.1", 8025), deliver=deliver).serve_forever()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List

if TYPE_CHECKING:
    from .envelope import TLS, Envelope, Peer
    from .extensions import Extension, Parameter, deliver_by, future_release, mt_priority
    from .handler import SMTPHandler
    from .hooks import discard
    from .limits import Limits
    from .listening import UnixSocket, systemd_sockets
    from .mailbox import JsonLines, Mbox
    from .pipe import Pipe
    from .relay import Relay
    from .reply import Disconnect, Reject, Reply
    from .sasl import Credentials, ScramKeys
    from .server import SMTPServer
    from .service import cget, configure, start, stop, stopped
    from .session import Session
    from .spool import Spool
    from .store import Files, Maildir, Memory
    from .syntax import Mailbox

__all__ = [
    "TLS",
    "Credentials",
    "Disconnect",
    "Envelope",
    "Extension",
    "Files",
    "JsonLines",
    "Limits",
    "Mailbox",
    "Maildir",
    "Mbox",
    "Memory",
    "Parameter",
    "Peer",
    "Pipe",
    "Reject",
    "Relay",
    "Reply",
    "SMTPHandler",
    "SMTPServer",
    "ScramKeys",
    "Session",
    "Spool",
    "UnixSocket",
    "__version__",
    "cget",
    "configure",
    "deliver_by",
    "discard",
    "future_release",
    "mt_priority",
    "start",
    "stop",
    "stopped",
    "systemd_sockets",
]

__version__ = "0.1.0"

BATTERIES = {
    "Files": "store",
    "JsonLines": "mailbox",
    "Maildir": "store",
    "Mbox": "mailbox",
    "Memory": "store",
    "Pipe": "pipe",
    "Relay": "relay",
    "Spool": "spool",
}
"""Battery -> the module it is in."""

HOMES = {
    **BATTERIES,
    **dict.fromkeys(("Envelope", "Peer", "TLS"), "envelope"),
    **dict.fromkeys(("Extension", "Parameter"), "extensions"),
    **dict.fromkeys(("deliver_by", "future_release", "mt_priority"), "extensions"),
    "SMTPHandler": "handler",
    "discard": "hooks",
    "Limits": "limits",
    **dict.fromkeys(("UnixSocket", "systemd_sockets"), "listening"),
    **dict.fromkeys(("Disconnect", "Reject", "Reply"), "reply"),
    **dict.fromkeys(("Credentials", "ScramKeys"), "sasl"),
    "SMTPServer": "server",
    **dict.fromkeys(("cget", "configure", "start", "stop", "stopped"), "service"),
    "Session": "session",
    "Mailbox": "syntax",
}
"""Public name -> the module it is in. Each is imported when it is asked for (PEP 562)."""


def __getattr__(name: str) -> Any:
    """Import a public name."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(f".{HOMES[name]}", __name__), name)
    return found


def __dir__() -> List[str]:
    """Name what is public, imported or not."""
    return sorted({*globals(), *__all__})
