"""Names of files that are made from what clients send: safe and distinct by construction.

Knows text only: no file is looked at.
"""

from __future__ import annotations

import re
import threading
from typing import Callable, Dict, FrozenSet, Mapping, Optional, Tuple

__all__ = ["Numbers", "Template", "safe_name"]

NAME_LENGTH = 255
"""Octets that file systems allow in a name."""
TEXT_LENGTH = 120
LEAST = 40

REMEMBERED = 10_000

HASH = 12  # octets: so many that nobody finds two texts with the same
MARK = ","  # stands before the hash, and in no name without one

_UNSAFE = re.compile(r"[^A-Za-z0-9@._+=-]")
# Lower case alone: where case is ignored no two of these are the same.
_PLAIN = re.compile(r"[a-z0-9@_+][a-z0-9@._+=-]*(?<!\.)")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|\Z)", re.IGNORECASE)


def safe_name(text: str, most: int = TEXT_LENGTH) -> str:
    """Turn any text into (a part of) a file's name, at most ``most`` octets long.

    No separator, control character or leading dot is in it, and it is no device of Windows. Texts
    that differ have names that differ, also where the file system ignores case or the form of
    Unicode: what is not plain lower case, or too long, ends with a comma and a hash.
    """
    if most < LEAST:
        raise ValueError(f"safe_name needs {LEAST} octets, not {most}")
    if len(text) <= most and _PLAIN.fullmatch(text) and not _RESERVED.match(text):
        return text
    import hashlib

    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=HASH).hexdigest()
    kept = _UNSAFE.sub("_", text)[: most - len(MARK) - len(digest)]
    if not kept or kept[0] in ".-=" or _RESERVED.match(kept):
        kept = f"_{kept[1:]}"
    return f"{kept}{MARK}{digest}"


_IN_NO_NAME = r'[/\\:*?"<>|]'

# The fields of a template: octets that each takes at most; None: what is left is shared.
FIELDS: Mapping[str, Optional[int]] = {
    "recipient": None,
    "sender": None,
    "n": 20,
    "id": 32,
    "time": 16,
}


class Template:
    """The name of a file with fields in braces, such as ``{recipient}.{n}``.

    ``ValueError`` where what it makes would not be the name of one file in a directory.
    """

    def __init__(self, text: str) -> None:
        literal, self.fields = _parsed(text)
        texts = [name for name in self.fields if FIELDS[name] is None]
        fixed = len(literal.encode()) + sum(FIELDS[name] or 0 for name in self.fields)
        self._most = min(TEXT_LENGTH, (NAME_LENGTH - fixed) // max(1, len(texts)))
        if self._most < LEAST:
            raise ValueError(f"the name {text!r} would be too long")
        if not {"n", "id"} & set(self.fields):
            raise ValueError(f"each file needs a name of its own: put {{n}} or {{id}} in {text!r}")
        self._text = text
        self.names: FrozenSet[str] = frozenset(self.fields)

    def filled(self, values: Mapping[str, str], n: int) -> str:
        """Give the name that the values make."""
        texts = {
            name: safe_name(value, self._most) if FIELDS[name] is None else value
            for name, value in values.items()
            if name in self.names
        }
        return self._text.format(n=n, **texts)


def _parsed(text: str) -> Tuple[str, Tuple[str, ...]]:
    """Give what stands between the fields of a template, and their names."""
    import string

    if not isinstance(text, str):
        raise ValueError(f"the name is text such as '{{recipient}}.{{n}}', not {text!r}")
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"the name {text!r}: {error}") from None
    fields = []
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if name not in FIELDS or conversion:
            known = " ".join(f"{{{field}}}" for field in FIELDS)
            raise ValueError(f"the name {text!r}: there is no {{{name}}}, but {known}")
        if form and not (name == "n" and re.fullmatch("0?[1-9]", form)):
            raise ValueError(
                f"the name {text!r}: {{{name}:{form}}}; only {{n:03}} and such is known"
            )
        fields.append(name)
    literal = "".join(part[0] for part in parts)
    if not literal.isprintable() or re.search(_IN_NO_NAME, literal) or text.startswith("."):
        raise ValueError(f'the name {text!r}: no / \\ : * ? " < > | and no dot in front')
    return literal, tuple(fields)


class Numbers:
    """The next number of each series of files, as far as one process remembers them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: Dict[str, int] = {}

    def take(self, series: str, failed: int, taken: Callable[[int], bool]) -> int:
        """Give a number beyond ``failed`` that nobody has had from here and no file has."""
        with self._lock:
            number = self._next.pop(series, 0)
            if failed or not number:  # another process counts, too; or we have forgotten
                number = first_free(max(number, failed + 1), taken)
            self._next[series] = number + 1
            if len(self._next) > REMEMBERED:
                del self._next[next(iter(self._next))]  # the one that was used the longest ago
            return number


def first_free(start: int, taken: Callable[[int], bool]) -> int:
    """Give a number from ``start`` on that is not taken, though the one before it is; in few steps.

    Where the numbers that are taken have no gaps, that is the first.
    """
    step = 1
    while taken(start + step - 1):
        step *= 2
    low, high = start + step // 2 - 1, start + step - 1  # low is taken, or before the start
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if taken(middle) else (low, middle)
    return high
