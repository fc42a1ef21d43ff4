"""Where a server listens, and what the machine lets it open. Sockets only; nothing of SMTP."""

from __future__ import annotations

import logging
import socket

from .limits import Limits
from .options import OPTIONS

__all__ = ["listen", "own_name", "within_descriptors"]

log = logging.getLogger("smtpd_sync")

BACKLOG = 1_024  # 5, socketserver's, hangs clients at twenty at once


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen. ``""`` is every address, IPv6 and IPv4 where the platform has both."""
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
        )
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # A name such as localhost may have two; IPv4 is where every client looks.
    found.sort(key=lambda info: info[0] != socket.AF_INET)
    family, _, _, _, address = found[0]
    dualstack = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(
        (str(address[0]), int(address[1])),
        family=family,
        backlog=BACKLOG,
        dualstack_ipv6=dualstack,
    )


def own_name() -> str:
    """Give the machine's name, without asking the DNS; ``localhost`` if it is no domain."""
    name = socket.gethostname()
    try:
        return str(OPTIONS["hostname"].check(name)) or "localhost"
    except ValueError:
        return "localhost"


def within_descriptors(limits: Limits, asked_for: bool) -> Limits:
    """Cut ``connections`` to half of what the process may open, so that hooks can open files."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return limits
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY or limits.connections <= allowed // 2:
        return limits
    log.log(
        logging.WARNING if asked_for else logging.INFO,
        "limits: connections cut from %d to %d, half of RLIMIT_NOFILE",
        limits.connections,
        allowed // 2,
    )
    return limits._replace(connections=max(1, allowed // 2))
