"""What has come from the client and was not read yet: lines and counted octets.

**Only CRLF ends a line.** Memory is bounded: of a line that is too long nothing is kept.
"""

from __future__ import annotations

from typing import Optional

__all__ = ["Inbox"]


class Inbox:
    """A buffer with one reader."""

    __slots__ = ("_data", "_head", "_position")

    def __init__(self) -> None:
        self._data = b""
        self._position = 0
        self._head = b""  # of a line that is too long and has not ended yet

    def __bool__(self) -> bool:
        return self._position < len(self._data)

    def add(self, data: bytes) -> None:
        """Append what has come."""
        rest = self._data[self._position :]
        self._data, self._position = rest + data if rest else data, 0

    def clear(self) -> None:
        """Forget all."""
        self._data, self._position, self._head = b"", 0, b""

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
            self._position = end + 2
            self._head = b""
            return head or self._data[start : min(end, start + longest + 1)]
        if head or len(self._data) - start > longest + 1:  # one more may be the CR
            self._head = head or self._data[start : start + longest + 1]
            # The last octet may be the CR of the CRLF.
            self._data, self._position = b"\r" if self._data.endswith(b"\r") else b"", 0
        return None

    def take(self, most: Optional[int] = None) -> bytes:
        """Take what is there, at most ``most`` octets."""
        start = self._position
        end = len(self._data) if most is None else min(start + most, len(self._data))
        data = self._data if start == 0 and end == len(self._data) else self._data[start:end]
        self._position = end
        return data

    def put_back(self, rest: bytes) -> None:
        """Let ``rest``, the end of what was taken, be read again."""
        self._position -= len(rest)
