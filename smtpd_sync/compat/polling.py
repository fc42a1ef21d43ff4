"""Serving a map of dispatchers: the loop, and one round of it.

A part of `asyncore`, whose names these are.
"""

from __future__ import annotations

import errno
import itertools
import math
import select
import sys
import traceback
from typing import Any, Dict, Optional, Tuple

from .desk import open_desk

__all__ = [
    "ExitNow",
    "close_all",
    "compact_traceback",
    "loop",
    "poll",
    "poll2",
    "poll3",
    "read",
    "readwrite",
    "socket_map",
    "write",
]

Map = Dict[int, Any]

socket_map: Map = {}
"""The dispatchers that are served where no other map is named: descriptor -> dispatcher."""


class ExitNow(Exception):
    """Raised in a handler, it ends the loop."""


FATAL = (ExitNow, KeyboardInterrupt, SystemExit)
"""What no handler of errors gets."""
GONE = frozenset(
    {
        *(errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN),
        *(errno.ECONNABORTED, errno.EPIPE, errno.EBADF),
    }
)
"""What a socket says when there is nobody at the other end."""

READ = getattr(select, "POLLIN", 1)
URGENT = getattr(select, "POLLPRI", 2)
WRITE = getattr(select, "POLLOUT", 4)
OVER = sum(getattr(select, name, 0) for name in ("POLLERR", "POLLHUP", "POLLNVAL"))

EVENTS = ((READ, "handle_read_event"), (WRITE, "handle_write_event"), (URGENT, "handle_expt_event"))


def loop(
    timeout: float = 30.0,
    use_poll: bool = False,
    map: Optional[Map] = None,
    count: Optional[int] = None,
) -> None:
    """Serve the dispatchers of ``map`` until all are closed, or for ``count`` rounds.

    A round ends after ``timeout`` seconds in which nothing happened. ``use_poll`` means nothing.
    """
    if map is None:
        map = socket_map
    with open_desk(map):
        for _ in itertools.repeat(None) if count is None else itertools.repeat(None, count):
            if not map:
                return
            poll(timeout, map)


def poll(timeout: Optional[float] = 0.0, map: Optional[Map] = None) -> None:
    """Serve one round: wait for something to do, at most ``timeout`` seconds, and do it."""
    if map is None:
        map = socket_map
    if not map:
        return
    with open_desk(map) as desk:
        wanted = {desk.fileno(): READ}
        for descriptor, channel in list(map.items()):
            flags = READ | URGENT if channel.readable() else 0
            if channel.writable() and not channel.accepting:
                flags |= WRITE
            if flags:
                wanted[descriptor] = flags
        ready = wait(wanted, timeout)
        working = ready.pop(desk.fileno(), 0)
        for descriptor, flags in ready.items():
            channel = map.get(descriptor)
            if channel is not None:  # it was closed by one before it
                readwrite(channel, flags)
        if working:
            desk.work()


poll2 = poll3 = poll


def wait(wanted: Dict[int, int], timeout: Optional[float]) -> Dict[int, int]:
    """Wait until one of the descriptors is ready; give those that are."""
    if hasattr(select, "poll"):
        poller = select.poll()
        for descriptor, flags in wanted.items():
            poller.register(descriptor, flags)
        return dict(poller.poll(None if timeout is None else math.ceil(timeout * 1000)))
    readers = [descriptor for descriptor, flags in wanted.items() if flags & READ]
    writers = [descriptor for descriptor, flags in wanted.items() if flags & WRITE]
    ready: Dict[int, int] = {}
    for flag, found in zip(
        (READ, WRITE, URGENT), select.select(readers, writers, list(wanted), timeout)
    ):
        for descriptor in found:
            ready[descriptor] = ready.get(descriptor, 0) | flag
    return ready


def read(channel: Any) -> None:
    """Have a dispatcher read; what it raises is for its `handle_error`."""
    _handle(channel, "handle_read_event")


def write(channel: Any) -> None:
    """Have a dispatcher write."""
    _handle(channel, "handle_write_event")


def readwrite(channel: Any, flags: int) -> None:
    """Tell a dispatcher what its socket is ready for."""
    for flag, event in EVENTS:
        if flags & flag and not _handle(channel, event):
            return
    # What can be read comes first: the end of it is seen by who reads.
    if flags & OVER and not flags & (READ | WRITE):
        _handle(channel, "handle_close")


def _handle(channel: Any, event: str) -> bool:
    """Call a handler; tell whether it went well."""
    try:
        getattr(channel, event)()
    except FATAL:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in GONE:
            channel.handle_close()
        else:
            channel.handle_error()
        return False
    return True


def compact_traceback() -> Tuple[Tuple[str, str, str], Any, Any, str]:
    """Give the exception at hand: where it was raised, its type, itself, and the way there."""
    kind, value, trace = sys.exc_info()
    if trace is None:
        raise AssertionError("there is no exception at hand")
    steps = [(step.filename, step.name, str(step.lineno)) for step in traceback.extract_tb(trace)]
    return steps[-1], kind, value, " ".join(f"[{'|'.join(step)}]" for step in steps)


def close_all(map: Optional[Map] = None, ignore_all: bool = False) -> None:
    """Close the dispatchers of ``map``; ``ignore_all`` forgives what they raise."""
    if map is None:
        map = socket_map
    for descriptor, channel in list(map.items()):
        try:
            channel.close()
        except FATAL:
            raise
        except Exception as error:
            if not ignore_all and getattr(error, "errno", None) != errno.EBADF:
                raise
        # One by one: what a loop in another thread adds meanwhile is not closed, and stays.
        map.pop(descriptor, None)
