"""Stores that append each message to one file: batteries for ``deliver=``.

The file is locked against other threads, processes and programs, written to its end and synced
before the client is told 250. Whatever fails before that is cut off again; what a crash has left of
a message stays by itself.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import re
import stat
import threading
import time
from typing import Callable, Dict, Iterator, Optional

from .durable import Path, sync_directory
from .envelope import Envelope
from .lineends import FromQuoting, Text, each_recipient, pieces
from .logs import log
from .reply import Reject
from .storage import write_all
from .store import checked_path, make_directory, storing

__all__ = ["JsonLines", "Mbox"]

STALE = 300.0
"""Seconds after which a lock file is that of a program which died (as liblockfile has it)."""
LONGEST_PAUSE = 0.5
PRIVATE = 0o600
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
_NO_WRITING = (errno.EACCES, errno.EPERM, errno.EROFS)

# A lock of fcntl(2) is the process's, and gone when any descriptor of the file is closed: of one
# process one thread has the file, whatever the number of stores that write to it.
_own: Dict[str, threading.Lock] = {}


class Appended:
    """A file that messages are appended to, whole or not at all."""

    lock_timeout = 30.0
    """Seconds to wait for others that hold the file; then the client is told 451."""
    dot_lock = False
    """Whether others expect a lock file beside it, too."""

    def __init__(self, path: Path) -> None:
        what = type(self).__name__
        self.path = checked_path(what, path)
        """Where it is."""
        make_directory(what, os.path.dirname(self.path))
        self._own = _own.setdefault(os.path.realpath(self.path), threading.Lock())
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise ValueError(f"{what}: {self.path} is there, and not a plain file")
        try:
            self._open().close()
        except OSError as error:
            raise ValueError(f"{what}: {self.path} cannot be written: {error.strerror}") from None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"

    def _open(self) -> io.FileIO:
        return io.FileIO(os.open(self.path, _FLAGS, PRIVATE), "r+")

    def append(self, make: Callable[[bytes], Iterator[bytes]]) -> None:
        """Append what ``make`` gives, of the last two octets that are there now; durably."""
        with storing(), self._locked() as file:
            size = os.fstat(file.fileno()).st_size
            try:
                file.seek(max(0, size - 2))
                last = file.read(2)
                file.seek(size)
                for octets in make(last):
                    write_all(file, octets)
                os.fsync(file.fileno())
                if not size:
                    sync_directory(os.path.dirname(self.path))  # it may be new
            except BaseException:
                self._take_back(file, size)
                raise

    def _take_back(self, file: io.FileIO, size: int) -> None:
        try:
            file.truncate(size)
            os.fsync(file.fileno())
        except OSError:
            log.exception("a part of a message may be left in %s", self.path)

    # -- locks -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[io.FileIO]:
        give_up = time.monotonic() + self.lock_timeout
        if not self._own.acquire(timeout=self.lock_timeout):
            raise _locked_out(self.path)
        try:
            pause = 0.001
            # Others may take the two locks the other way round: nobody waits while he holds one.
            while (file := self._try()) is None:
                if time.monotonic() > give_up:
                    raise _locked_out(self.path)
                time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311
                pause = min(pause * 2, LONGEST_PAUSE)
            try:
                yield file
            finally:
                if self.dot_lock:
                    with contextlib.suppress(OSError):  # we were let in without one
                        os.unlink(f"{self.path}.lock")
                file.close()
        finally:
            self._own.release()

    def _try(self) -> Optional[io.FileIO]:
        """Open the file and lock it; ``None`` where somebody else has it."""
        file = self._open()
        try:
            if _lock(file) and _is_at(file, self.path) and self._lock_beside():
                return file
        except BaseException:
            file.close()
            raise
        file.close()
        return None

    def _lock_beside(self) -> bool:
        return not self.dot_lock or _make_lock(f"{self.path}.lock")


def _locked_out(path: str) -> Reject:
    log.error("%s is locked by others", path)
    return Reject(451, "Mailbox is locked, please try again later", "4.2.0")


def _lock(file: io.FileIO) -> bool:
    """Lock a file against other processes; where the platform can do that."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _is_at(file: io.FileIO, path: str) -> bool:
    """Tell whether it is still the file at ``path``: mail programs put a new one in its place."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _make_lock(path: str) -> bool:
    """Make the lock file ``path``, as mail programs of Unix do; tell whether it is ours now.

    It says from its first moment on whose it is: an empty one, of a process that was killed before
    it could write that, would keep everybody out for minutes.
    """
    draft = f"{path}-new"  # one of our processes is here at a time: it has locked the mailbox
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
        try:
            with open(descriptor, "wb") as file:
                file.write(f"{os.getpid()} {_host()}\n".encode())
            os.link(draft, path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(draft)
    except FileExistsError:
        _remove_stale(path)
        return False
    except OSError as error:
        if error.errno in _NO_WRITING:  # in this directory nobody like us can make one
            return not os.path.lexists(path)
        raise
    return True


def _remove_stale(path: str) -> None:
    """Remove a lock file whose owner is dead.

    One of our processes is here at a time: it has locked the mailbox.
    """
    try:
        about = os.lstat(path)
        with open(path, "rb") as file:
            words = file.read(300).split()
    except OSError:
        return  # it has gone
    dead = time.time() - about.st_mtime > STALE
    if len(words) == 2 and words[1] == _host().encode() and words[0].isdigit():
        dead = dead or _is_dead(int(words[0]))
    if dead and stat.S_ISREG(about.st_mode):
        log.warning("%s is of a process that died: it is removed", path)
        with contextlib.suppress(OSError):
            os.unlink(path)


def _is_dead(process: int) -> bool:
    if os.name != "posix":
        return False  # to ask would be to kill
    if process == os.getpid():
        return True  # of another life: none of our threads has it, else we were not here
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        pass
    return False


def _host() -> str:
    import socket

    return socket.gethostname()


# -- mbox ------------------------------------------------------------------------------------


class Mbox(Appended):
    """Appends each message to the mbox ``path``, which is made where it is missing.

    The format is mboxrd (RFC 4155, with ``>`` before each line of ``>*From ``), with LF line ends,
    ``Return-Path`` and a ``Delivered-To`` for each recipient; `mailbox.mbox` reads it. It is locked
    by ``fcntl.lockf`` and a lock file, as `mailbox.mbox` and the mail programs of Unix do.
    """

    dot_lock = True

    def deliver_envelope(self, envelope: Envelope) -> None:
        """Append a message, durably."""
        self.append(lambda last: _as_mbox(envelope, last))


def _as_mbox(envelope: Envelope, last: bytes) -> Iterator[bytes]:
    # What a crash left of a message is ended: readers look for "From " behind a blank line.
    yield b"" if last in (b"", b"\n", b"\n\n") else b"\n" if last.endswith(b"\n") else b"\n\n"
    # Readers of this line know ASCII, and split it at spaces; the sender is in Return-Path, too.
    sender = re.sub("[^!-~]", "?", envelope.sender) or "MAILER-DAEMON"
    yield f"From {sender} {time.asctime(time.gmtime())}\n".encode()
    text, quoting = Text(envelope, each_recipient(envelope), unix=True), FromQuoting()
    for octets in pieces(envelope.open()):
        yield quoting.feed(text.feed(octets))
    yield quoting.feed(text.end())
    yield quoting.end()


# -- lines of JSON ---------------------------------------------------------------------------


class JsonLines(Appended):
    """Appends each message to the file ``path`` as one line, a JSON object.

    Its keys are ``id``, ``time`` (UTC, ISO 8601), ``peer``, ``helo``, ``tls`` (the version, or
    null), ``user``, ``sender``, ``recipients``, ``sender_parameters``, ``size``, ``headers`` (pairs
    of name and value), ``text`` and ``attachments``: objects with ``name``, ``type``, ``size`` and
    ``content`` (base64). Texts are decoded; a message that cannot be parsed is all text.
    """

    def deliver_envelope(self, envelope: Envelope) -> None:
        """Append a message, durably."""
        line = _as_json(envelope)  # before the file is locked: it takes its time
        self.append(lambda last: iter((b"" if last[-1:] in (b"", b"\n") else b"\n", line)))


def _as_json(envelope: Envelope) -> bytes:
    import json
    from base64 import b64encode

    from .reading import headers, parsed, parts

    try:
        message = parsed(envelope.content)
        fields = list(headers(message))
        texts, attachments = parts(message)
    except Exception:  # the email package raises all sorts
        log.warning("message %s cannot be parsed: it is stored as text", envelope.id, exc_info=True)
        fields, texts, attachments = [], [envelope.content.decode("utf-8", "replace")], []
    shown = {
        "id": envelope.id,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "peer": envelope.peer.address,
        "helo": envelope.helo,
        "tls": envelope.tls and envelope.tls.version,
        "user": envelope.user,
        "sender": envelope.sender,
        "recipients": envelope.recipients,
        "sender_parameters": dict(envelope.sender_parameters),
        "size": len(envelope.content),
        "headers": [(_clean(name), _clean(value)) for name, value in fields],
        "text": _clean("\n".join(texts)),
        "attachments": [
            {
                "name": _clean(name),
                "type": _clean(kind),
                "size": len(content),
                "content": b64encode(content).decode("ascii"),
            }
            for name, kind, content in attachments
        ],
    }
    return json.dumps(shown).encode("ascii") + b"\n"


def _clean(text: str) -> str:
    """Replace what is no character, which most readers of JSON refuse."""
    return text.encode("utf-8", "replace").decode()
