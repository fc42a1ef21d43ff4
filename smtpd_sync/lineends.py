"""Mail as stores write it: trace fields in front, line ends of Unix, ``From`` lines of an mbox.

All is done on the pieces that a message comes in, never on its lines: so a message costs the memory
of one piece, however long its lines are.
"""

from __future__ import annotations

import functools
import re
from typing import IO, Iterator, List

from .envelope import Envelope
from .syntax import Mailbox

__all__ = ["PIECE", "FromQuoting", "Text", "each_recipient", "pieces"]

PIECE = 65_536
"""Octets that are read of a message at a time."""


def each_recipient(envelope: Envelope) -> List[Mailbox]:
    """Give the recipients, each once, in order."""
    return list(dict.fromkeys(envelope.recipients))


class Text:
    """Turns the mail data of an envelope, piece by piece, into what is kept at final delivery.

    ``Return-Path`` and a ``Delivered-To`` for each of ``recipients`` stand in front (RFC 5321 4.4).
    With ``unix`` each CRLF becomes LF; but never in BODY=BINARYMIME mail.
    """

    def __init__(self, envelope: Envelope, recipients: List[Mailbox], unix: bool) -> None:
        self._unix = unix and not envelope.binary
        fields = [f"Return-Path: <{envelope.sender}>"]
        fields.extend(f"Delivered-To: {recipient}" for recipient in recipients)
        end = "\n" if self._unix else "\r\n"
        self._front = "".join(f"{field}{end}" for field in fields).encode()
        self._blank = end.encode()
        self._begun = False
        self._held = b""

    def feed(self, octets: bytes) -> bytes:
        """Take octets of the mail data; give octets to write."""
        if not octets:
            return b""
        if not self._begun:
            self._begun = True
            if octets[:1] in (b" ", b"\t"):
                self._front += self._blank  # else it would fold into our last field
            return self._front + self._converted(octets)
        return self._converted(octets)

    def _converted(self, octets: bytes) -> bytes:
        if not self._unix:
            return octets
        if self._held:
            octets = self._held + octets
            self._held = b""
        if octets.endswith(b"\r"):  # its LF may come with the next piece
            octets, self._held = octets[:-1], b"\r"
        return octets.replace(b"\r\n", b"\n")

    def end(self) -> bytes:
        """Give what is still to write once all mail data has come."""
        front = b"" if self._begun else self._front
        held, self._begun, self._held = self._held, True, b""
        return front + held


class FromQuoting:
    """Quotes the lines of a message that an mbox reader could take for the start of another.

    ``>`` is put before each line of ``>*From `` (mboxrd), so that it can be undone exactly.
    """

    def __init__(self) -> None:
        # What was given away last: a line end stands for "at the start of a line, or behind the
        # > of one". As one > more may stand anywhere among them, none needs to be held back.
        self._before = b"\n"
        self._held = b""
        self._ended = True

    def feed(self, octets: bytes) -> bytes:
        """Take octets of a message with line ends of Unix; give octets to write."""
        if not octets:
            return b""
        octets = self._before + self._held + octets
        self._held = b""
        for part in (b"From", b"Fro", b"Fr", b"F"):
            if octets.endswith(part):
                octets, self._held = octets[: -len(part)], part
                break
        self._before = b"\n" if _at_start(octets) else b"-"
        self._ended = not self._held and octets.endswith(b"\n")
        if b"From " in octets:
            octets = re.sub(rb"\n(?=>*From )", b"\n>", octets)
        return octets[1:]

    def end(self) -> bytes:
        """Give what is still to write: the message ends with a line end, then comes a blank one."""
        return self._held + (b"\n" if self._ended else b"\n\n")


def _at_start(octets: bytes) -> bool:
    """Tell whether what follows is at the start of a line, or behind the ``>`` of one."""
    return octets.endswith(b"\n") or (octets.endswith(b">") and octets.rstrip(b">")[-1:] == b"\n")


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    """Iterate over the octets of a file, from where it stands."""
    return iter(functools.partial(file.read, PIECE), b"")
