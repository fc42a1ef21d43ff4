"""What was said in a session, line by line, for logs and for tests.

Mail data is counted and not kept, and nothing that may be a password or a token is ever written.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Deque, List

from .sasl import MECHANISMS

__all__ = ["Transcript"]

LONGEST = 1_024
HIDDEN = "(not shown)"
_AUTH = re.compile(rb"[^!-~]*AUTH", re.IGNORECASE)
_MECHANISM = rf"(AUTH (?:{'|'.join(MECHANISMS)}))(?: (.+))?"


def shown(octets: bytes) -> str:
    """Give a line as text, with backslashes for all that is no printable ASCII."""
    text = octets[:LONGEST].decode("latin-1").encode("unicode_escape").decode("ascii")
    return text if len(octets) <= LONGEST else text + "..."


class Transcript:
    """Lines ``"C: EHLO x"`` of the client and ``"S: 250 OK"`` of the server, without their CRLF."""

    __slots__ = ("_followed", "_guarded", "_news", "lines")

    def __init__(self, longest: int, followed: bool = False) -> None:
        self.lines: Deque[str] = deque(maxlen=longest)
        """The last ``longest`` lines."""
        self._followed = followed
        self._news: List[str] = []
        self._guarded = False

    def news(self) -> List[str]:
        """Give the lines that came since it was asked last, if it is ``followed``."""
        news, self._news = self._news, []
        return news

    def command(self, line: bytes, known: bool) -> None:
        """Write down a line of the client; ``known``: its first word is a verb."""
        text = shown(line)
        if _AUTH.match(line):
            self._guarded = True
            named = re.fullmatch(_MECHANISM, text, re.IGNORECASE)
            said = named[1] if named else "AUTH"
            text = said if named and not named[2] else f"{said} {HIDDEN}"
        elif self._guarded and not known:
            text = HIDDEN  # a response, of a client that did not wait for the challenge
        self._add(f"C: {text}")

    def response(self) -> None:
        """Write down that the client went on with AUTH."""
        self._add(f"C: {HIDDEN}")

    def mail_data(self, size: int) -> None:
        """Write down the end of mail data."""
        self._add(f"C: ({size} octets of mail data)")

    def replies(self, octets: bytes) -> None:
        """Write down what the server sends."""
        for line in filter(None, octets.split(b"\r\n")):
            self._add(f"S: {shown(line)}")

    def _add(self, line: str) -> None:
        self.lines.append(line)
        if self._followed:
            self._news.append(line)
