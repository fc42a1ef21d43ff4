"""SMTP servers in plain, blocking Python: one thread per connection, hooks as functions or methods.

::

    from smtpd_sync import SMTPServer

    def deliver(sender, recipients, data):
        print(sender, recipients, data.decode(errors="replace"))

    SMTPServer(("127.0.0.1", 8025), deliver=deliver).serve_forever()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .envelope import TLS, Envelope, Peer
from .extensions import Extension, Parameter, deliver_by, future_release, mt_priority
from .handler import SMTPHandler
from .hooks import discard
from .limits import Limits
from .listening import UnixSocket, systemd_sockets
from .reply import Disconnect, Reject, Reply
from .sasl import Credentials, ScramKeys
from .server import SMTPServer
from .service import cget, configure, start, stop, stopped
from .session import Session
from .syntax import Mailbox

if TYPE_CHECKING:
    from .mailbox import JsonLines, Mbox
    from .pipe import Pipe
    from .relay import Relay
    from .spool import Spool
    from .store import Files, Maildir, Memory

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
"""Imported when they are asked for: class -> module."""


def __getattr__(name: str) -> Any:
    """Import a battery."""
    if name not in BATTERIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(f".{BATTERIES[name]}", __name__), name)
    return found
