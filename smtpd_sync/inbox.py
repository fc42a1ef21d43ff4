"""What has come from the client and was not read yet: lines and counted octets.

**Only CRLF ends a line.** Memory is bounded: of a line that is too long nothing is kept.
"""

from __future__ import annotations

from typing import Optional

__all__ = ["Inbox"]


class Inbox:
    """A buffer with one reader."""

    __slots__ = ("_data", "_end", "_head", "_position", "waiting")

    def __init__(self) -> None:
        self._data = b""
        self._position = self._end = 0
        self._head = b""  # of a line that is too long and has not ended yet
        self.waiting = False
        """Whether there is something to read, be it a part of a line."""

    def add(self, data: bytes) -> None:
        """Append what has come."""
        if self.waiting:
            data = self._data[self._position :] + data
        self._data, self._position, self._end = data, 0, len(data)
        self.waiting = True

    def clear(self) -> None:
        """Forget all."""
        self._data, self._position, self._end, self._head = b"", 0, 0, b""
        self.waiting = False

    def starts_with(self, octets: bytes) -> bool:
        """Tell whether the line to come begins with ``octets``."""
        return not self._head and self._data.startswith(octets, self._position)

    def line(self, longest: int) -> Optional[bytes]:
        """Take a line without its CRLF, or ``None`` while it has not all come.

        Of a line with more than ``longest`` octets one more than those is given, in whatever pieces
        it came: enough to refuse it by.
        """
        start, head = self._position, self._head
        end = self._data.find(b"\r\n", start)
        if end >= 0:
            self._position = position = end + 2
            self.waiting = position < self._end
            self._head = b""
            return (
                head or self._data[start : end if end - start <= longest else start + longest + 1]
            )
        if head or self._end - start > longest + 1:  # one more may be the CR
            self._head = head or self._data[start : start + longest + 1]
            # The last octet may be the CR of the CRLF.
            self._data = b"\r" if self._data.endswith(b"\r") else b""
            self._end = len(self._data)
            self._move(0)
        return None

    def _move(self, position: int) -> None:
        self._position = position
        self.waiting = position < self._end

    def take(self, most: Optional[int] = None) -> bytes:
        """Take what is there, at most ``most`` octets."""
        start = self._position
        if start == 0 and most is None:
            self._position, self.waiting = self._end, False
            return self._data
        end = self._end if most is None else min(start + most, self._end)
        data = self._data[start:end]
        self._move(end)
        return data

    def put_back(self, rest: bytes) -> None:
        """Let ``rest``, the end of what was taken, be read again."""
        self._move(self._position - len(rest))
