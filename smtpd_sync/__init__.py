"""SMTP servers in plain, blocking Python: one thread per connection, hooks as functions or methods.

::

    from smtpd_sync import SMTPServer

    def deliver(sender, recipients, data):
        print(sender, recipients, data.decode(errors="replace"))

    SMTPServer(("127.0.0.1", 8025), deliver=deliver).serve_forever()
"""

from __future__ import annotations

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

__all__ = [
    "TLS",
    "Credentials",
    "Disconnect",
    "Envelope",
    "Extension",
    "Limits",
    "Mailbox",
    "Parameter",
    "Peer",
    "Reject",
    "Reply",
    "SMTPHandler",
    "SMTPServer",
    "ScramKeys",
    "Session",
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
