"""The mail data of one message on its way in: decoded, counted, and judged at its end."""

from __future__ import annotations

from typing import NamedTuple, Optional

from . import reply as replies
from .data import ChunkDecoder, DataDecoder, Decoded
from .limits import Limits
from .reply import Reply

__all__ = ["Chunk", "MailData"]

FAR_BEYOND = 4
"""Mail data is drained up to this many times the size limit; then the session is closed."""


NO_LIMIT = float("inf")


class Chunk(NamedTuple):
    """A BDAT command whose octets are being read (RFC 3030 2)."""

    size: int
    left: int
    last: bool
    refusal: Optional[Reply]
    """What its reply will be, once its octets are read and dropped."""


class MailData:
    """Content comes out of `data` or `chunk`; beyond the size limit it is dropped and counted on.

    The stream stays in step whatever it holds: `fault` says at the end what is wrong with it.
    """

    __slots__ = (
        "_chunk_rules",
        "_chunks",
        "_data",
        "_longest",
        "_most",
        "_reject_bare",
        "ended",
        "refusal",
        "size",
    )

    def __init__(self, limits: Limits, bare_newline: str, binary: bool = False) -> None:
        measure = limits.text_line is not None
        self._longest = limits.text_line or 0
        self._most = limits.message_size or NO_LIMIT
        self._reject_bare = bare_newline == "reject"
        self._data = DataDecoder(bare_newline, measure)
        self._chunks: Optional[ChunkDecoder] = None
        self._chunk_rules = bare_newline, measure, binary
        self.size = 0
        """Octets of content (RFC 1870 3: with each CRLF, without the added dots)."""
        self.refusal: Optional[Reply] = None
        """Why one of its chunks was refused: then the rest is, too."""
        self.ended = False
        """Whether its end was seen."""

    def data(self, octets: bytes) -> Decoded:
        """Take octets that follow DATA."""
        decoded = self._data.feed(octets)
        content, rest = decoded
        self.ended = rest is not None
        taken = self._count(content)
        return decoded if taken is content else Decoded(taken, rest)

    def chunk(self, octets: bytes, end: bool) -> bytes:
        """Take octets that follow BDAT; ``end``: they are the last."""
        if self._chunks is None:
            self._chunks = ChunkDecoder(*self._chunk_rules)
        content = self._chunks.feed(octets, end)
        self.ended = end
        return self._count(content)

    def _count(self, content: bytes) -> bytes:
        self.size += len(content)
        return b"" if self.size > self._most or self.refusal else content

    @property
    def too_big(self) -> bool:
        """Whether it is beyond the size limit."""
        return self.size > self._most

    @property
    def far_too_big(self) -> bool:
        """Whether it is not worth to read on."""
        return self.size > FAR_BEYOND * self._most

    @property
    def fault(self) -> Optional[Reply]:
        """What is wrong with what has come so far."""
        if self.refusal is not None:
            return self.refusal
        if self.size > self._most:
            return replies.MESSAGE_TOO_BIG
        decoder = self._chunks or self._data
        if decoder.bare_newlines and self._reject_bare:
            return replies.BARE_NEWLINE
        # Where lines have no limit they are not measured: that is no octet.
        if decoder.longest_line > self._longest:
            return replies.TEXT_LINE_TOO_LONG
        return None
