"""Caught messages as the page gets them: values for JSON, documents for the frame, attachments.

What came over the wire may be broken or huge: it is shown up to the sizes below, and ``notes`` say
what is not. A message is parsed when somebody opens it, one at a time, and the parsed form is not
kept: the thread that asks waits, and SMTP goes on.
"""

from __future__ import annotations

import base64
import copy
import re
import threading
from email.parser import BytesHeaderParser
from typing import Any, Callable, Dict, Iterator, List, Tuple
from urllib.parse import quote, unquote
from weakref import WeakKeyDictionary

from .catch import Catch
from .caught import Attachment, CaughtMail, attachment_of, body_type, clean
from .reading import FORGIVING, headers, leaves
from .webhtml import harmless

__all__ = ["Rows", "Viewed", "Viewer", "file_name_of"]

HEAD_LOOKED_AT = 65_536
"""Octets of a message in which its subject is looked for, for the list."""
SEARCHED = 131_072
"""Octets of a message in which a search looks for text."""
ROW_TEXT = 300
ROW_RECIPIENTS = 5
TEXT_SHOWN = 524_288
"""Characters of text, and of HTML, that are shown."""
FIELDS_SHOWN = 500
FIELD_TEXT = 8_192
PARTS_SHOWN = 500
RECIPIENTS_SHOWN = 1_000
LINKS_SHOWN = 100
IMAGES_INLINE = 8_388_608
"""Octets of images that a document for the frame holds."""
RASTER = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp"})
KEPT = 4
"""Messages that stay taken apart, for the requests that follow the first."""

Row = Dict[str, Any]


class Rows:
    """What the list says of each message, made once."""

    def __init__(self) -> None:
        self._made: WeakKeyDictionary[CaughtMail, Row] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def row(self, mail: CaughtMail) -> Row:
        """Give what the list shows."""
        with self._lock:
            found = self._made.get(mail)
            if found is None:
                found = self._made[mail] = row_of(mail)
            return found

    def page(
        self, catch: Catch, query: str = "", before: str = "", most: int = 200
    ) -> Dict[str, Any]:
        """Give messages, newest first; those older than the one with the id ``before``."""
        with catch.news:
            mails = list(reversed(list(catch.messages)))
        total = len(mails)
        if before:
            at = next((n for n, mail in enumerate(mails) if mail.id == before), total)
            mails = mails[at + 1 :]
        words = query.lower().split()
        found = [mail for mail in mails if not words or self._has(mail, words)] if words else mails
        return {
            "messages": [self.row(mail) for mail in found[:most]],
            "more": len(found) > most,
            "found": len(found),
            "total": total,
        }

    def _has(self, mail: CaughtMail, words: List[str]) -> bool:
        row = self.row(mail)
        known = " ".join((mail.sender, *mail.recipients, row["subject"])).lower()
        missing = [word for word in words if word not in known]
        if not missing:
            return True
        text = searched_text(mail).lower()
        return all(word in text for word in missing)


def row_of(mail: CaughtMail) -> Row:
    """Say of a message what stands in the list."""
    head = mail.raw[:HEAD_LOOKED_AT]
    end = head.find(b"\r\n\r\n")
    message = BytesHeaderParser(policy=FORGIVING).parsebytes(head[:end] if end >= 0 else head)
    return {
        "id": mail.id,
        "sender": mail.sender,
        "recipients": mail.recipients[:ROW_RECIPIENTS],
        "recipients_total": len(mail.recipients),
        "subject": clean(str(message.get("subject", "")))[:ROW_TEXT],
        "received_at": mail.received_at.isoformat(),
        "size": len(mail.raw),
    }


def searched_text(mail: CaughtMail) -> str:
    """Give the text of the beginning of a message."""
    part = copy.copy(mail)
    vars(part).pop("message", None)
    if len(mail.raw) > SEARCHED or "text" not in vars(mail):
        part.raw = mail.raw[:SEARCHED]
    return f"{part.text}\n{part.html}"


class Viewed:
    """A message, taken apart."""

    def __init__(self, mail: CaughtMail, row: Row) -> None:
        self.mail = mail
        self._row = row
        opened = copy.copy(mail)  # keeps what is made of it until we are done, not for ever
        vars(opened).pop("message", None)
        parts = [
            (part, attachment_of(part))
            for part in leaves(opened.message, forwarded=False)
            if not body_type(part)
        ]
        self.attachments: List[Attachment] = [attachment for _, attachment in parts]
        self._images = {
            clean(str(part.get("content-id", ""))).strip().strip("<>"): attachment
            for part, attachment in parts
            if attachment.type in RASTER
        }
        self._html = opened.html
        self._value = dict(self._described(opened))

    def _described(self, mail: CaughtMail) -> Iterator[Tuple[str, Any]]:
        notes: List[str] = []
        cut = cutter(notes)
        yield from self._row.items()
        bcc = set(mail.bcc)
        yield (
            "recipients",
            [
                {"address": address, "bcc": address in bcc, "parameters": parameters}
                for address, parameters in cut(
                    "recipients",
                    list(zip(mail.recipients, mail.recipient_parameters)),
                    RECIPIENTS_SHOWN,
                )
            ],
        )
        yield "sender_parameters", mail.sender_parameters
        yield "peer", {"address": mail.peer.address, "port": mail.peer.port}
        yield "helo", clean(mail.helo)
        yield "user", mail.user
        yield "tls", mail.tls and {"version": mail.tls.version, "cipher": mail.tls.cipher}
        fields = cut("header fields", list(headers(mail.message)), FIELDS_SHOWN)
        yield "headers", [[clean(name), clean(value)[:FIELD_TEXT]] for name, value in fields]
        yield "text", cut("characters of the text", mail.text, TEXT_SHOWN)
        yield "html", bool(cut("characters of the HTML", mail.html, TEXT_SHOWN))
        yield "links", mail.links()[:LINKS_SHOWN] if len(mail.raw) < TEXT_SHOWN else []
        yield (
            "attachments",
            [
                {"name": each.name, "type": each.type, "size": len(each.content)}
                for each in cut("attachments", self.attachments, PARTS_SHOWN)
            ],
        )
        defects = {type(each).__name__ for part in [mail.message] for each in part.defects}
        notes.extend(f"The message is broken: {name}." for name in sorted(defects))
        yield "notes", notes

    def value(self) -> Dict[str, Any]:
        """Give all but the attachments' content, and the dialogue up to now."""
        return {**self._value, "dialogue": self.mail.session.transcript}

    def document(self) -> str:
        """Write the HTML for the frame."""
        left = [IMAGES_INLINE]

        def image(content_id: str) -> str:
            found = self._images.get(content_id) or self._images.get(unquote(content_id))
            if found is None or len(found.content) > left[0]:
                return ""
            left[0] -= len(found.content)
            return f"data:{found.type};base64,{base64.b64encode(found.content).decode()}"

        return harmless(self._html[:TEXT_SHOWN], image)


def cutter(notes: List[str]) -> Callable[[str, Any, int], Any]:
    """Make what cuts a text or a list, and notes it."""

    def cut(what: str, whole: Any, most: int) -> Any:
        if len(whole) > most:
            notes.append(f"The first {most:,} of {len(whole):,} {what} are shown.")
        return whole[:most]

    return cut


class Viewer:
    """Takes messages apart, one at a time, and keeps the last few."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._lock = threading.Lock()
        self._kept: Dict[CaughtMail, Viewed] = {}

    def view(self, mail: CaughtMail) -> Viewed:
        """Give a message, taken apart."""
        with self._lock:
            found = self._kept.pop(mail, None) or Viewed(mail, self._rows.row(mail))
            self._kept[mail] = found
            while len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
            return found

    def forget(self) -> None:
        """Keep none."""
        with self._lock:
            self._kept.clear()


def file_name_of(name: str, otherwise: str) -> str:
    """Write the parameters of Content-Disposition that name a file (RFC 6266)."""
    last = re.split(r"[/\\]", name)[-1]
    shown = "".join(c for c in last if c.isprintable()).strip(". ")[:100] or otherwise
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", shown)
    return f"filename=\"{plain}\"; filename*=UTF-8''{quote(shown, safe='')}"
