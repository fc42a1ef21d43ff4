"""Regular expressions that are compiled when they are first used.

To compile one takes as long as many a session, and a program that starts needs few of them.
"""

from __future__ import annotations

import re
from typing import Callable, Optional

__all__ = ["Pattern"]


class Pattern:
    """As ``re.compile(text, flags)``, whose methods these are."""

    match: Callable[[str], Optional[re.Match[str]]]
    fullmatch: Callable[[str], Optional[re.Match[str]]]
    search: Callable[[str], Optional[re.Match[str]]]
    sub: Callable[[str, str], str]

    def __init__(self, text: str, flags: int = 0) -> None:
        self.text = text
        self._flags = flags

    def __getattr__(self, name: str) -> object:
        """Compile it, and never come here again."""
        if name not in METHODS:
            raise AttributeError(name)
        compiled = re.compile(self.text, self._flags)
        for method in METHODS:
            setattr(self, method, getattr(compiled, method))
        return getattr(self, name)


METHODS = ("match", "fullmatch", "search", "sub")
