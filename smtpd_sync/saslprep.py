"""SASLprep (RFC 4013): names and passwords that look the same are the same, however typed."""

from __future__ import annotations

from . import reply as replies
from .reply import Reject

__all__ = ["prepared"]


def prepared(text: str) -> str:
    """Prepare a name or password with SASLprep (RFC 4013), so that two ways to type it are one."""
    if text.isascii() and text.isprintable():
        return text
    import stringprep
    import unicodedata

    mapped = "".join(
        " " if stringprep.in_table_c12(c) else c for c in text if not stringprep.in_table_b1(c)
    )
    normal = unicodedata.normalize("NFKC", mapped)
    forbidden = (
        stringprep.in_table_c12,
        stringprep.in_table_c21_c22,
        stringprep.in_table_c3,
        stringprep.in_table_c4,
        stringprep.in_table_c5,
        stringprep.in_table_c6,
        stringprep.in_table_c7,
        stringprep.in_table_c8,
        stringprep.in_table_c9,
    )
    if any(table(c) for c in normal for table in forbidden) or not _one_way(normal):
        raise Reject(*replies.BAD_RESPONSE)
    return normal


def _one_way(text: str) -> bool:
    """Tell whether text runs right to left at both ends and nowhere else left (RFC 3454 6)."""
    from stringprep import in_table_d1, in_table_d2

    if not any(map(in_table_d1, text)):
        return True
    return in_table_d1(text[0]) and in_table_d1(text[-1]) and not any(map(in_table_d2, text))
