"""The spool on disk: a message is two files, and whoever works on it holds a lock.

``ID.eml`` is the mail data as it came, ``ID.json`` its metadata. The rename of ``ID.tmp`` to
``ID.json`` is what accepts the message: mail data without it that nobody holds is the rest of a
crash. The lock is the kernel's, on the mail data, which is written once: it ends with the process
that has it, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import stat
import threading
from typing import IO, Callable, Dict, Iterator, List, Optional, Set, Tuple

from .durable import Draft, Path, sync_directory
from .spooled import Message, Unreadable
from .trace import new_id

try:
    import fcntl
except ImportError:  # Windows: one process only
    fcntl = None  # type: ignore[assignment]

__all__ = ["ONE_PROCESS", "Claim", "Data", "Directory", "Held"]

DATA, META, DRAFT = ".eml", ".json", ".tmp"
MOST = 16 * 1024 * 1024
"""Octets of the largest metadata that is read."""
OWNER_ONLY = 0o700
ONE_PROCESS = fcntl is None

# What `trace.new_id` gives. Only what is so named is ours to remove.
_NAME = re.compile(r"[0-9a-f]{8,32}(?:w[0-9]+)?")
# No link is followed, and a FIFO does not block.
_FLAGS = [getattr(os, name, 0) for name in ("O_BINARY", "O_NOFOLLOW", "O_NONBLOCK")]
_READ = functools.reduce(int.__or__, _FLAGS, os.O_RDONLY)
_HOLD = functools.reduce(int.__or__, _FLAGS, os.O_RDWR)


class Held(Exception):
    """Somebody else works on the message."""


# -- locks -----------------------------------------------------------------------------------

_held: Set[str] = set()  # where the platform has no locks that a crash ends
_guard = threading.Lock()


def _hold(descriptor: int, path: str) -> bool:
    """Lock the open file at ``path`` and tell whether it is ours, and still there."""
    if fcntl is None:
        with _guard:
            if path in _held:
                return False
            _held.add(path)
            return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(descriptor).st_nlink > 0


def _let_go(descriptor: int, path: str) -> None:
    """Unlock: a process that a hook has forked may have the file open for long."""
    if fcntl is None:
        with _guard:
            _held.discard(path)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


class Lock:
    """The file at ``path``, ours until it is closed; `Held` if it is another's, or is no more."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = _open(path, _HOLD)
        if not _hold(self._descriptor, path):
            os.close(self._descriptor)
            raise Held(path)
        self._held = True

    def close(self) -> None:
        """Let others have it."""
        if self._held:
            self._held = False
            _let_go(self._descriptor, self.path)
            os.close(self._descriptor)


# -- the files -------------------------------------------------------------------------------


class Data(Draft):
    """Mail data on its way in, ours alone until it is closed; then gone, unless it was kept."""

    def __init__(self, path: str, closed: Callable[[str], None]) -> None:
        super().__init__(path)
        self.message = os.path.basename(path)[: -len(DATA)]
        self._closed = closed

    def hold(self) -> bool:
        """Lock it. ``False`` if it was cleaned away before."""
        return _hold(self.fileno(), self.path)

    def keep(self) -> None:
        """Have it survive its closing."""
        self._kept = True

    def close(self) -> None:
        """Close it, and tell who waits for it to be free."""
        if self.closed:
            return
        if self._kept:
            _let_go(self.fileno(), self.path)
        super().close()
        if self._kept:
            self._closed(self.message)
        elif fcntl is None:
            _let_go(-1, self.path)


class Revision(Draft):
    """Metadata written anew. Those that were there are not lost, whatever fails."""

    def put(self, target: str) -> None:
        """Put it in the place of ``target``."""
        self.flush()
        os.fsync(self.fileno())
        os.replace(self.path, target)
        self._kept = True


class Directory:
    """The directory of a spool. What in it is not ours is left alone."""

    def __init__(self, path: Path) -> None:
        self.path = os.path.abspath(os.fspath(path))

    def make(self) -> None:
        """Make it, for its owner alone, and see that it can be used; ``ValueError`` if not."""
        missing, path = [], self.path
        while not os.path.isdir(path):
            path = os.path.dirname(path)
            missing.append(path)
        try:
            os.makedirs(self.path, OWNER_ONLY, exist_ok=True)
            for path in missing:
                sync_directory(path)  # so that what is in it can be found after a crash
        except OSError as error:
            raise ValueError(f"spool: {error}") from None
        if hasattr(os, "geteuid") and os.stat(self.path).st_mode & stat.S_IWOTH:
            raise ValueError(f"spool: anybody can write to {self.path}; chmod it to 0700")

    def _file(self, name: str, kind: str) -> str:
        return os.path.join(self.path, name + kind)

    def new(self, wanted: str, closed: Callable[[str], None]) -> Data:
        """Open mail data, named as the message where that can be; ``closed(name)`` once kept."""
        name = wanted if _NAME.fullmatch(wanted) else new_id()
        while True:
            try:
                data = Data(self._file(name, DATA), closed)
            except FileExistsError:
                name = new_id()
                continue
            try:
                if data.hold():
                    return data
            except BaseException:
                data.close()
                raise
            data.close()
            name = new_id()  # who cleans may still remove what has the old one

    def commit(self, data: Data, message: Message) -> None:
        """Accept a message, durably. After an ``OSError`` nothing is left once ``data`` is closed.

        Its metadata are there before anybody else can lock its mail data, or not at all.
        """
        data.flush()
        os.fsync(data.fileno())
        message.size = os.fstat(data.fileno()).st_size
        with contextlib.closing(Draft(self._file(message.name, DRAFT))) as draft:
            draft.write(message.encode())
            draft.commit(self._file(message.name, META))
        data.keep()

    def read(self, name: str) -> Message:
        """Read the metadata of a message; `Unreadable` or ``OSError`` if that cannot be."""
        with open(_open(self._file(name, META), _READ), "rb") as file:
            octets = file.read(MOST)
        message = Message.decode(name, octets)
        try:
            size = os.lstat(self._file(name, DATA)).st_size
        except FileNotFoundError:
            if os.path.lexists(self._file(name, META)):
                raise Unreadable("the mail data are missing") from None
            raise  # it was removed right now
        if size != message.size:
            raise Unreadable(f"there are {size} octets of mail data, not {message.size}")
        return message

    def claim(self, name: str) -> Claim:
        """Take a message: see `Claim`."""
        return Claim(self, name)

    def names(self) -> Iterator[Tuple[str, Optional[Tuple[int, int]]]]:
        """Give the name of each message and what changes when its metadata do.

        Of a foreign file it is its whole name, and ``None``.
        """
        with os.scandir(self.path) as entries:
            for entry in entries:
                name, kind = os.path.splitext(entry.name)
                if kind not in (DATA, META, DRAFT) or not _NAME.fullmatch(name):
                    yield entry.name, None
                elif kind == META:
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # delivered, right now
                    yield name, (entry.inode(), found.st_mtime_ns)

    def clean(self) -> List[str]:
        """Remove what crashes have left, and name it."""
        left: Dict[str, Set[str]] = {}
        for entry in os.listdir(self.path):
            name, kind = os.path.splitext(entry)
            if _NAME.fullmatch(name):
                left.setdefault(name, set()).add(kind)
        return [
            name
            for name, kinds in left.items()
            if DATA in kinds and kinds != {DATA, META} and self._clean(name)
        ]

    def _clean(self, name: str) -> bool:
        try:
            lock = Lock(self._file(name, DATA))
        except (OSError, Held, Unreadable):
            return False
        try:
            _remove(self._file(name, DRAFT))
            whole = os.path.lexists(self._file(name, META))
            if not whole:
                _remove(lock.path)
            return not whole
        finally:
            lock.close()


class Claim:
    """A message that nobody else works on, until it is closed.

    `Held` if somebody does, ``FileNotFoundError`` if it is no more, and as `Directory.read`.
    """

    def __init__(self, directory: Directory, name: str) -> None:
        self._directory = directory
        self._name = name
        try:
            self._lock = Lock(self._file(DATA))
        except FileNotFoundError:
            directory.read(name)  # which may have more to say
            raise
        try:
            self.message = directory.read(name)
        except BaseException:
            self.close()
            raise

    def _file(self, kind: str) -> str:
        return os.path.join(self._directory.path, self._name + kind)

    def open(self) -> IO[bytes]:
        """Open the mail data to read. The lock is no part of that file."""
        return open(_open(self._file(DATA), _READ), "rb")

    def save(self) -> None:
        """Write the metadata anew, durably. After an ``OSError`` the old or the new are there."""
        _remove(self._file(DRAFT))  # of a crash
        with contextlib.closing(Revision(self._file(DRAFT))) as draft:
            draft.write(self.message.encode())
            self._give(draft)
            draft.put(self._file(META))
        sync_directory(self._directory.path)

    def _give(self, file: IO[bytes]) -> None:
        """Leave the file to the owner of the mail data: root may have been asked to retry."""
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            owner = os.stat(self._file(DATA))
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)

    def remove(self) -> None:
        """Remove the message, durably. What is left of it after a crash is not delivered."""
        _remove(self._file(META))
        sync_directory(self._directory.path)
        _remove(self._file(DATA))

    def close(self) -> None:
        """Let others have it."""
        self._lock.close()


def _open(path: str, flags: int) -> int:
    """Open a file; `Unreadable` for what is none."""
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise Unreadable("it is no file") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable("it is no file")
    return descriptor


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
