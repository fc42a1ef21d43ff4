"""Files that are whole or not there, whatever happens: what a store writes its mail to.

A draft is written under a temporary name. `Draft.commit` syncs it, renames it and syncs the
directory: once it has returned, the file survives a crash of the machine. A draft that is closed
before leaves nothing behind.
"""

from __future__ import annotations

import errno
import io
import os
from typing import Union

from . import reply as replies
from .logs import log
from .reply import Reject

__all__ = ["Draft", "Path", "refusal", "sync_directory"]

Path = Union[str, "os.PathLike[str]"]

PRIVATE = 0o600  # mail is its owner's alone
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


class Draft(io.BufferedRandom):
    """A new binary file at ``path``, to be written, read, and then kept or dropped.

    ``FileExistsError`` where there is one already.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(os.open(path, _FLAGS, PRIVATE), "r+"))
        self.path = os.fspath(path)
        """Where the file is now."""
        self._names = [self.path]
        self._kept = False

    def commit(self, target: Path, replace: bool = True) -> None:
        """Keep it, at ``target`` of the same file system, durably.

        Without ``replace`` it is a ``FileExistsError`` where ``target`` is there already, and the
        draft can be committed elsewhere. After any other ``OSError`` neither file is left behind
        once it is closed.
        """
        self.flush()
        os.fsync(self.fileno())
        if replace:
            os.replace(self.path, target)
        else:
            os.link(self.path, target)
            self._names.append(os.fspath(target))
            os.unlink(self.path)
        self.path = os.fspath(target)
        self._names = [self.path]
        sync_directory(os.path.dirname(self.path) or os.curdir)
        self._kept = True

    def close(self) -> None:
        """Close it; unless it was committed, remove it."""
        if self.closed:
            return
        if self._kept:
            super().close()
            return
        # What waits in the buffer is nobody's any more, and on a full disk could not be written.
        self.raw.close()
        for name in self._names:
            try:
                os.unlink(name)
            except OSError:
                pass  # the directory has gone, or may not be written any more


def sync_directory(path: Path) -> None:
    """Have the names of a directory survive a crash; where the platform can do that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refusal(error: OSError) -> Reject:
    """Log why a store failed, and give what to tell the client: 452 for no room, else 451."""
    log.error("mail could not be stored", exc_info=error)
    full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    reply = replies.NO_STORAGE if full else replies.LOCAL_ERROR
    return Reject(reply.code, reply.text, reply.status)
