"""Where mail data waits for its end: in memory while there is room, else in an unlinked file.

All sessions of a server share two budgets, `Limits.memory` and `Limits.spool`. Knows files; what
they hold is the handler's.
"""

from __future__ import annotations

import errno
import io
import os
import threading
from typing import IO, Any, List, Optional, Union

from .limits import Limits

__all__ = ["AnySink", "Sink", "Storage", "Tee", "close_sink", "file_of", "write_all"]


class Budget:
    """Octets in use, of a number that all sessions share."""

    __slots__ = ("_lock", "used")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.used = 0

    def take(self, octets: int, most: int) -> bool:
        """Count ``octets`` in, unless that would be more than ``most``."""
        with self._lock:
            if self.used + octets > most:
                return False
            self.used += octets
            return True

    def give_back(self, octets: int) -> None:
        """Count ``octets`` out."""
        with self._lock:
            self.used -= octets


class Storage:
    """What the sinks of a server hold at a time, in octets."""

    def __init__(self) -> None:
        self.memory = Budget()
        self.spool = Budget()

    def has_room(self, octets: int, limits: Limits) -> bool:
        """Tell whether a message of ``octets`` could be held now."""
        if octets <= limits.memory - self.memory.used:
            return True
        return octets <= limits.spool - self.spool.used


class Sink:
    """A binary file to write one message to.

    At most ``in_memory`` octets of it are held in memory, and none beyond `Limits.memory`; then it
    becomes a temporary file in ``directory``, which no name leads to and no crash leaves behind. A
    write beyond `Limits.spool` is an ``OSError`` as of a full disk.
    """

    def __init__(
        self,
        storage: Storage,
        limits: Limits,
        in_memory: int,
        directory: Union[str, os.PathLike[str], None] = None,
    ) -> None:
        self.file: IO[bytes] = io.BytesIO()
        """What holds the message: a ``BytesIO``, or the temporary file."""
        self._storage = storage
        self._limits = limits
        self._in_memory = in_memory
        self._directory = directory
        self._spooled = False
        self._size = 0

    def write(self, octets: bytes) -> int:
        """Write, and give the number of octets written; ``OSError`` if there is no room."""
        size = len(octets)
        if not self._spooled:
            whole = self._size + size
            if whole <= self._in_memory and self._storage.memory.take(size, self._limits.memory):
                self._size = whole
                return self.file.write(octets)
            self._move_to_file()
        self._take_spool(size)
        self._size += size
        return self.file.write(octets)

    def _move_to_file(self) -> None:
        import tempfile  # not cheap, and seldom needed

        memory = self.file
        assert isinstance(memory, io.BytesIO), "it moves once"
        self._take_spool(self._size)
        self._storage.memory.give_back(self._size)
        self._spooled = True
        self.file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115
        self.file.write(memory.getbuffer())

    def _take_spool(self, octets: int) -> None:
        if not self._storage.spool.take(octets, self._limits.spool):
            raise OSError(errno.ENOSPC, "limits: memory and spool are full")

    def flush(self) -> None:
        """See that the file holds all that was written."""
        self.file.flush()

    def close(self) -> None:
        """Give the room back; a temporary file is gone. Memory stays, for a hook that keeps it."""
        budget = self._storage.spool if self._spooled else self._storage.memory
        budget.give_back(self._size)
        self._size = 0
        if not isinstance(self.file, io.BytesIO):
            try:
                self.file.close()
            except OSError:
                pass  # the disk is full; what the buffer still holds is nobody's any more


class Tee:
    """A file that is written to several; each is read for itself."""

    def __init__(self, sinks: List[AnySink]) -> None:
        self.sinks = sinks
        """The file of each member; members may have one together."""
        self._files = list({id(sink): sink for sink in sinks}.values())

    def write(self, octets: bytes) -> int:
        """Write to all."""
        for file in self._files:
            write_all(file, octets)
        return len(octets)

    def flush(self) -> None:
        """Flush all."""
        for file in self._files:
            file.flush()

    def close(self) -> None:
        """Close all, and raise what the last that failed raised."""
        fault: Optional[Exception] = None
        for file in self._files:
            try:
                close_sink(file)
            except Exception as error:
                fault = error
        if fault is not None:
            raise fault


AnySink = Union[IO[bytes], Sink, Tee]
"""What mail data is written to."""


def file_of(sink: AnySink) -> Any:
    """Give the binary file that holds what was written to ``sink``."""
    return sink.file if isinstance(sink, Sink) else sink


def write_all(sink: AnySink, octets: bytes) -> None:
    """Write all of ``octets``: an unbuffered file on a disk that fills may take only a part."""
    written = sink.write(octets)
    while written is not None and written < len(octets):
        octets = octets[written:]
        written = sink.write(octets)
        if not written:
            raise OSError("the sink takes no more")


def close_sink(sink: AnySink) -> None:
    """Close what mail data was written to; memory goes with the envelope, which a hook may keep."""
    if not isinstance(sink, io.BytesIO):
        sink.close()
