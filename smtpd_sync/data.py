"""Mail data: its transparency (RFC 5321 4.1.1.4 and 4.5.2) and its chunks (RFC 3030).

Octets in, content out, a chunk at a time, without a loop over lines. Knows nothing of sessions.
"""

from __future__ import annotations

import io
from typing import NamedTuple, Optional

__all__ = ["BARE_NEWLINE_RULES", "ChunkDecoder", "DataDecoder", "Decoded"]

END_OF_DATA = b"\r\n.\r\n"

BARE_NEWLINE_RULES = ("normalize", "reject", "keep")
"""What to do with a CR or LF that stands alone in the content."""


class Decoded(NamedTuple):
    """What one chunk gave: ``content``, and what follows the end of mail data once it was seen."""

    content: bytes
    rest: Optional[bytes]


new_decoded = tuple.__new__  # as Decoded(...), and a third quicker


class ContentDecoder:
    """Watches content for bare newlines and long lines: what DATA and BDAT have in common.

    It must be given content in which no CRLF is split, so that a bare CR or LF is found exactly.
    """

    __slots__ = ("_bare_newline", "_held", "_line", "bare_newlines", "longest_line")

    def __init__(self, bare_newline: str = "normalize", measure_lines: bool = False) -> None:
        self.bare_newlines = False
        """Whether a CR or LF stood alone somewhere."""
        self.longest_line = 0
        """Octets of the longest line with its CRLF; counted if ``measure_lines``."""
        self._bare_newline = bare_newline
        self._line = 0 if measure_lines else None
        self._held = b""  # of what came, for the next chunk to decide

    def _watch(self, content: bytes) -> bytes:
        if has_bare_newline(content):
            self.bare_newlines = True
            if self._bare_newline == "normalize":
                content = normalize(content)
        if self._line is not None:
            self._measure(content)
        return content

    def _measure(self, content: bytes) -> None:
        first, *others = content.split(b"\r\n")
        self._line = (self._line or 0) + len(first)
        self.longest_line = max(self.longest_line, self._line + 2 * bool(others))
        if others:
            self.longest_line = max(self.longest_line, 2 + max(map(len, others)))
            self._line = len(others[-1])


class DataDecoder(ContentDecoder):
    """Find the end of mail data, take the added dots away, and watch the content (DATA).

    **Only CRLF . CRLF ends mail data**, and a dot is removed only behind a real CRLF. A tail that
    could be the head of the end is held back until the next chunk, so that no CRLF is ever split.
    """

    __slots__ = ("_skip",)

    def __init__(self, bare_newline: str = "normalize", measure_lines: bool = False) -> None:
        ContentDecoder.__init__(self, bare_newline, measure_lines)
        self._held = b"\r\n"  # mail data starts at the start of a line ...
        self._skip = 2  # ... but the CRLF before it is not content

    def feed(self, chunk: bytes) -> Decoded:
        """Take the next octets from the network."""
        wire = self._held + chunk
        rest: Optional[bytes] = None
        # rfind() proves absence three times as fast as find().
        end = wire.rfind(END_OF_DATA)
        if end >= 0:
            if wire.rfind(END_OF_DATA, 0, end + 4) >= 0:
                end = wire.find(END_OF_DATA)  # not the last: the first
            content, rest = wire[self._skip : end + 2], wire[end + 5 :]
            dots = wire.rfind(b"\r\n.", 0, end) >= 0
        else:
            keep = next((n for n in (4, 3, 2, 1) if wire.endswith(END_OF_DATA[:n])), 0)
            cut = len(wire) - keep
            if cut <= self._skip:
                self._held = wire
                return Decoded(b"", None)
            content, self._held = wire[self._skip : cut], wire[cut:]
            dots = wire.rfind(b"\r\n.", 0, cut) >= 0
        if dots:
            # The CRLF that opens a chunk was skipped, the dot behind it was not.
            if self._skip and wire.startswith(b"\r\n."):
                content = content[1:]
            content = b"\r\n".join(content.split(b"\r\n."))
        self._skip = 0
        return new_decoded(Decoded, (self._watch(content), rest))


class ChunkDecoder(ContentDecoder):
    """Watch content that is counted (BDAT, RFC 3030); binary content is left as it came."""

    __slots__ = ("_binary",)

    def __init__(
        self, bare_newline: str = "normalize", measure_lines: bool = False, binary: bool = False
    ) -> None:
        super().__init__(bare_newline, measure_lines)
        self._binary = binary

    def feed(self, chunk: bytes, end: bool = False) -> bytes:
        """Take the next octets of the chunks; ``end``: there are no more."""
        if self._binary:
            return chunk
        content = self._held + chunk
        # A last CR waits for its LF, which may come with the next chunk.
        self._held = b"\r" if content.endswith(b"\r") and not end else b""
        return self._watch(content[:-1] if self._held else content)


def has_bare_newline(content: bytes) -> bool:
    """Tell whether a CR or an LF stands alone."""
    # The scanner behind text files notes which newlines it saw: three times as fast as to count
    # CR, LF and CRLF. It knows text, so each octet becomes one character.
    scanner = io.IncrementalNewlineDecoder(None, translate=False)
    scanner.decode(content.decode("latin-1"), final=True)
    return scanner.newlines not in (None, "\r\n")


def normalize(content: bytes) -> bytes:
    """Turn each bare CR and each bare LF into CRLF."""
    lines = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return lines.replace(b"\n", b"\r\n")
