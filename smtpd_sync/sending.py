"""To send without letting the GIL go: a trick for many threads of one interpreter, on many cores.

A thread that calls ``socket.send`` lets the GIL go for it, another takes it, and the first has to
wait for it again: asleep, until a core is woken for it. That takes several times as long as the
call, which only puts the octets of a reply into a buffer of the kernel.
"""

from __future__ import annotations

import socket
import sys
from typing import Callable, Optional

__all__ = ["FLAGS", "SendAtOnce", "send_at_once", "sendall"]

SendAtOnce = Callable[[int, bytes, int, int], int]
"""``send(fd, octets, len(octets), FLAGS)``: gives how many octets were taken, or -1."""

FLAGS = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)
"""Not to wait for room, which would hold all threads up."""


def send_at_once() -> Optional[SendAtOnce]:
    """Give ``send`` of the C library, for calls that keep the GIL; ``None`` where it cannot be."""
    if sys.platform != "linux":
        return None
    try:
        from ctypes import PyDLL, c_char_p, c_int, c_size_t, c_ssize_t

        send = PyDLL(None).send
    except (ImportError, OSError, AttributeError):
        return None
    send.argtypes = (c_int, c_char_p, c_size_t, c_int)
    send.restype = c_ssize_t
    found: SendAtOnce = send
    return found


def sendall(sock: socket.socket, octets: bytes, at_once: Optional[SendAtOnce]) -> None:
    """Send all: what the kernel takes now by ``at_once``, the rest when it has room."""
    if at_once is not None:
        sent = at_once(sock.fileno(), octets, len(octets), FLAGS)
        if sent == len(octets):
            return
        octets = octets[max(0, sent) :]
    sock.sendall(octets)
