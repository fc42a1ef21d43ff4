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
        "_limits",
        "_reject_bare",
        "ended",
        "refusal",
        "size",
    )

    def __init__(self, limits: Limits, bare_newline: str, binary: bool = False) -> None:
        measure = limits.text_line is not None
        self._limits = limits
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
        content, rest = self._data.feed(octets)
        self.ended = rest is not None
        return Decoded(self._count(content), rest)

    def chunk(self, octets: bytes, end: bool) -> bytes:
        """Take octets that follow BDAT; ``end``: they are the last."""
        if self._chunks is None:
            self._chunks = ChunkDecoder(*self._chunk_rules)
        content = self._chunks.feed(octets, end)
        self.ended = end
        return self._count(content)

    def _count(self, content: bytes) -> bytes:
        self.size += len(content)
        return b"" if self.too_big or self.refusal else content

    @property
    def too_big(self) -> bool:
        """Whether it is beyond the size limit."""
        limit = self._limits.message_size
        return limit is not None and self.size > limit

    @property
    def far_too_big(self) -> bool:
        """Whether it is not worth to read on."""
        return self.too_big and self.size > FAR_BEYOND * (self._limits.message_size or 0)

    @property
    def fault(self) -> Optional[Reply]:
        """What is wrong with what has come so far."""
        text_line = self._limits.text_line
        if self.refusal is not None:
            return self.refusal
        if self.too_big:
            return replies.MESSAGE_TOO_BIG
        decoder = self._chunks or self._data
        if self._reject_bare and decoder.bare_newlines:
            return replies.BARE_NEWLINE
        if text_line is not None and decoder.longest_line > text_line:
            return replies.TEXT_LINE_TOO_LONG
        return None
