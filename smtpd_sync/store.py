"""Stores that keep each message in a file of its own, or in memory: batteries for ``deliver=``.

A file is written under a temporary name, synced, renamed, and its directory synced, before the
client is told 250. Whatever fails before that leaves nothing behind, and the client is told 451, or
452 where there is no room. All may be used by many threads and processes at a time.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import stat
import time
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
)

from .durable import Draft, Path, refusal, sync_directory
from .envelope import TLS, Envelope, Parameters, Peer
from .lineends import Text, each_recipient, pieces
from .naming import Numbers, Template
from .storage import AnySink
from .syntax import Mailbox

if TYPE_CHECKING:
    from .handler import SMTPHandler

__all__ = ["Files", "Maildir", "Memory", "Message", "checked_path", "storing"]

OLD = 36 * 60 * 60
"""Seconds after which a temporary file is nobody's any more (as the Maildir description has it)."""
HIDDEN = ".smtpd_sync-"


@contextlib.contextmanager
def storing() -> Iterator[None]:
    """Turn a fault of the system into what the client is to be told of it."""
    try:
        yield
    except OSError as error:
        raise refusal(error) from None


# -- directories and names -------------------------------------------------------------------


def checked_path(what: str, path: Path) -> str:
    """Give a path that holds wherever the process goes to; ``ValueError`` for what is none."""
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{what} needs the path of where to write to, not {path!r}")
    return os.path.abspath(text)


def make_directory(what: str, path: str) -> None:
    """Make a directory where there is none, and those above it, as its owner's alone; durably."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    if above != path:
        make_directory(what, above)
    try:
        os.mkdir(path, 0o700)
        sync_directory(above)
    except OSError as error:
        if not os.path.isdir(path):  # else another process was first
            raise ValueError(f"{what}: {path} cannot be made: {error.strerror}") from None


def remove_old(directory: str, prefix: str = "") -> None:
    """Remove the temporary files that writers which died have left behind long ago."""
    try:
        names = os.listdir(directory)
    except OSError:
        return  # that it can be written to shows when mail comes
    for name in names:
        path = os.path.join(directory, name)
        try:
            about = os.lstat(path)
            old = max(about.st_atime, about.st_mtime) < time.time() - OLD
            if old and name.startswith(prefix) and stat.S_ISREG(about.st_mode):
                os.unlink(path)
        except OSError:
            pass  # it has gone, or is another's


_counter = itertools.count(1)


def unique_name() -> str:
    """Give a name that no other file has, as Maildir makes them: time, process, count, machine."""
    import socket

    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    host = socket.gethostname().replace("/", r"\057").replace(":", r"\072")
    return f"{seconds}.M{microseconds:06}P{os.getpid()}Q{next(_counter)}.{host}"


class StoredMail(Draft):
    """A draft of mail data as it is kept; see `Text`."""

    def __init__(self, path: str, owner: object, text: Text) -> None:
        super().__init__(path)
        self.owner = owner
        """The store that opened it."""
        self._text = text

    def write(self, octets: Any) -> int:
        """Write mail data."""
        super().write(self._text.feed(bytes(octets)))
        return len(octets)

    def commit(self, target: Path, replace: bool = True) -> None:
        """Keep it, durably."""
        super().write(self._text.end())
        super().commit(target, replace)


# -- a directory of Maildir ------------------------------------------------------------------


class Maildir:
    """Keeps each message in the Maildir ``path``, which is made where it is missing.

    A message is one file in ``new/``, with LF line ends, ``Return-Path`` and a ``Delivered-To`` for
    each recipient; `mailbox.Maildir` and every mail program of Unix read it. It is written to
    ``tmp/`` as it comes in, whatever its size.
    """

    def __init__(self, path: Path) -> None:
        self.path = checked_path("Maildir", path)
        """Where it is."""
        for name in ("tmp", "new", "cur"):
            make_directory("Maildir", os.path.join(self.path, name))
        remove_old(os.path.join(self.path, "tmp"))

    def open_sink(self, envelope: Envelope) -> StoredMail:
        """Open a file in ``tmp/`` that the mail data is written to."""
        with storing():
            path = os.path.join(self.path, "tmp", unique_name())
            return StoredMail(path, self, Text(envelope, each_recipient(envelope), unix=True))

    def deliver_envelope(self, envelope: Envelope) -> None:
        """Move the file to ``new/``, durably."""
        make = functools.partial(self.open_sink, envelope)
        with storing(), opened(self, envelope, make) as draft:
            draft.commit(os.path.join(self.path, "new", os.path.basename(draft.path)))

    def __repr__(self) -> str:
        return f"Maildir({self.path!r})"


@contextlib.contextmanager
def opened(
    store: object, envelope: Envelope, make: Callable[[], StoredMail]
) -> Iterator[StoredMail]:
    """Give the draft that holds the message: the envelope's sink, or a copy where that is not ours.

    The sink is another's where the user has an `open_sink`, or calls the store himself.
    """
    sink = envelope.sink
    if isinstance(sink, StoredMail) and sink.owner is store:
        yield sink  # the handler closes it
        return
    with make() as draft:
        for octets in pieces(envelope.open()):
            draft.write(octets)
        yield draft


# -- plain files -----------------------------------------------------------------------------


class Files:
    """Keeps messages as files in the directory ``path``, which is made where it is missing.

    ``name`` says how they are called: text with ``{recipient}``, ``{sender}``, ``{n}``, ``{id}``
    and ``{time}``. With ``{recipient}`` there is a file for each recipient, else one for all.
    ``{n}`` counts up from 1 and takes a number that is free: no file is overwritten. The octets are
    as they came (CRLF), behind ``Return-Path`` and ``Delivered-To``.

    A message for several recipients is stored for all of them or, where that fails, for none.
    """

    hooks = ("open_sink", "deliver_envelope")

    def __init__(self, path: Path, name: str = "{recipient}.{n}") -> None:
        self.path = checked_path("Files", path)
        """Where they are."""
        try:
            self._template = Template(name)
        except ValueError as error:
            raise ValueError(f"Files: {error}") from None
        self._numbers = Numbers()
        make_directory("Files", self.path)
        remove_old(self.path, HIDDEN)

    def attach(self, handler: SMTPHandler) -> AttachedFiles:
        """Give what serves one connection."""
        return AttachedFiles(self, handler)

    def groups(self, envelope: Envelope) -> List[List[Mailbox]]:
        """Give the recipients of each file."""
        each = each_recipient(envelope)
        return [[one] for one in each] if "recipient" in self._template.names else [each]

    def draft(self, envelope: Envelope, recipients: List[Mailbox]) -> StoredMail:
        """Open a hidden file for some recipients."""
        path = os.path.join(self.path, HIDDEN + unique_name())
        return StoredMail(path, self, Text(envelope, recipients, unix=False))

    def deliver_envelope(self, envelope: Envelope) -> None:
        """Store it, durably."""
        kept: List[str] = []
        with storing():
            try:
                for group in self.groups(envelope):
                    make = functools.partial(self.draft, envelope, group)
                    with opened(self, envelope, make) as draft:
                        kept.append(self._keep(draft, envelope, group))
            except BaseException:
                for path in kept:
                    with contextlib.suppress(OSError):
                        os.unlink(path)
                raise

    def _keep(self, draft: StoredMail, envelope: Envelope, recipients: List[Mailbox]) -> str:
        values = {
            "recipient": recipients[0],
            "sender": envelope.sender,
            "id": envelope.id,
            "time": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
        }

        def path(n: int) -> str:
            return os.path.join(self.path, self._template.filled(values, n))

        if "n" not in self._template.names:
            # The id may be that of another process; with its next one the client has more luck.
            draft.commit(path(0), replace=False)
            return path(0)
        n = 0
        while True:
            n = self._numbers.take(path(0), n, lambda number: os.path.lexists(path(number)))
            try:
                draft.commit(path(n), replace=False)
                return path(n)
            except FileExistsError:
                pass  # another process was first

    def __repr__(self) -> str:
        return f"Files({self.path!r})"


class AttachedFiles:
    """What serves one connection."""

    def __init__(self, files: Files, handler: SMTPHandler) -> None:
        self._files = files
        self._handler = handler

    def open_sink(self, envelope: Envelope) -> AnySink:
        """Open the file itself where there will be one; several are copied from a common one."""
        groups = self._files.groups(envelope)
        if len(groups) > 1:
            return self._handler.own_sink(envelope)
        with storing():
            return self._files.draft(envelope, groups[0])

    def deliver_envelope(self, envelope: Envelope) -> None:
        """Store it, durably."""
        self._files.deliver_envelope(envelope)


# -- memory ----------------------------------------------------------------------------------


class Message(NamedTuple):
    """A message that `Memory` holds."""

    id: str
    peer: Peer
    helo: str
    tls: Optional[TLS]
    user: Optional[str]
    sender: Mailbox
    recipients: Tuple[Mailbox, ...]
    sender_parameters: Parameters
    recipient_parameters: Tuple[Parameters, ...]
    data: bytes
    """The mail data, as it came."""


class Memory:
    """Keeps messages in memory, in the list ``messages``: for tests, in one process.

    They are lost when the process ends.
    """

    one_process = True

    def __init__(self) -> None:
        self.messages: List[Message] = []
        """What has come, in order."""

    def deliver_envelope(self, envelope: Envelope) -> None:
        """Keep a message."""
        message = Message(
            *(envelope.id, envelope.peer, envelope.helo, envelope.tls, envelope.user),
            envelope.sender,
            tuple(envelope.recipients),
            _kept(envelope.sender_parameters),
            tuple(_kept(each) for each in envelope.recipient_parameters),
            envelope.content,
        )
        self.messages.append(message)  # threads may: it is one step

    def clear(self) -> None:
        """Forget all messages."""
        self.messages.clear()


def _kept(parameters: Mapping[str, Any]) -> Parameters:
    return dict(parameters)
