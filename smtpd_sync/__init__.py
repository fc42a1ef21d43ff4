"""SMTP servers in plain, blocking Python: one thread per connection, hooks as functions or methods.

::

    from smtpd_sync import SMTPServer

    def deliver(sender, recipients, data):
        print(sender, recipients, data.decode(errors="replace"))

    SMTPServer(("127.0.0.1", 8025), deliver=deliver).serve_forever()
"""

from __future__ import annotations

from .envelope import TLS, Envelope, Peer
from .handler import SMTPHandler
from .hooks import discard
from .limits import Limits
from .reply import Disconnect, Reject, Reply
from .server import SMTPServer
from .service import cget, configure, start, stop, stopped
from .session import Session
from .syntax import Mailbox

__all__ = [
    "TLS",
    "Disconnect",
    "Envelope",
    "Limits",
    "Mailbox",
    "Peer",
    "Reject",
    "Reply",
    "SMTPHandler",
    "SMTPServer",
    "Session",
    "__version__",
    "cget",
    "configure",
    "discard",
    "start",
    "stop",
    "stopped",
]

__version__ = "0.1.0"
