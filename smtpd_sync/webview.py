"""Caught messages as the page gets them: values for JSON, documents for the frame, attachments.

What came over the wire may be broken or huge: it is shown up to the sizes below, and ``notes`` say
what is not. A message is taken apart when somebody opens it, one at a time, in the thread that
asks; SMTP goes on.
"""

from __future__ import annotations

import base64
import re
import threading
from email.parser import BytesHeaderParser
from typing import Any, Callable, Dict, Iterator, List, Tuple
from urllib.parse import quote, unquote
from weakref import WeakKeyDictionary

from .catch import Catch
from .caught import CaughtMail, clean, links_of
from .webhtml import harmless
from .webparts import BRIEF, FIELD_READ, Apart, Clock, header_of, take_apart

__all__ = ["Rows", "Viewed", "Viewer", "file_name_of"]

HEAD_LOOKED_AT = 65_536
"""Octets of a message in which its subject is looked for, for the list."""
SEARCHED = 131_072
"""Octets of a message in which a search looks for text."""
TEXT_KEPT = 4_096
"""Characters of a text that are kept for the next search, where that is all of it."""
SEARCH_SECONDS, SEARCH_SECONDS_EACH = 5.0, 0.5
"""Of processor time for a search, and of that for one message."""
ROW_TEXT = 300
ROW_RECIPIENTS = 5
TEXT_SHOWN = 524_288
"""Characters of text, and of HTML, that are shown."""
PARTS_SHOWN = 500
RECIPIENTS_SHOWN = 1_000
LINKS_SHOWN = 100
IMAGES_INLINE = 8_388_608
"""Octets of images that a document for the frame holds."""
RASTER = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp"})
KEPT = 4
"""Messages that stay taken apart, for the requests that follow the first."""
KEPT_OCTETS = 67_108_864
"""Octets of them; the last stays, however large."""

Row = Dict[str, Any]


class Rows:
    """What the list says of each message, made once."""

    def __init__(self) -> None:
        self._made: WeakKeyDictionary[CaughtMail, Row] = WeakKeyDictionary()
        self._texts: WeakKeyDictionary[CaughtMail, str] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._searching = threading.Lock()

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
        """Give messages, newest first; those older than the one with the id ``before``.

        ``complete`` is false where the search took too long to look into all texts.
        """
        mails = list(catch.messages)[::-1]
        total = len(mails)
        if before:
            at = next((n for n, mail in enumerate(mails) if mail.id == before), total)
            mails = mails[at + 1 :]
        complete = True
        if words := query.lower().split():
            with self._searching:
                clock = Clock(SEARCH_SECONDS)
                mails = [mail for mail in mails if self._has(mail, words, clock)]
                complete = not clock.is_over()
        return {
            "messages": [self.row(mail) for mail in mails[:most]],
            "more": len(mails) > most,
            "found": len(mails),
            "total": total,
            "complete": complete,
        }

    def _has(self, mail: CaughtMail, words: List[str], clock: Clock) -> bool:
        subject = self.row(mail)["subject"]
        known = " ".join((mail.sender, *mail.recipients, subject)).lower()
        missing = [word for word in words if word not in known]
        if not missing or clock.is_over():
            return not missing
        text = self._text(mail)
        return all(word in text for word in missing)

    def _text(self, mail: CaughtMail) -> str:
        text = self._texts.get(mail)
        if text is None:
            apart = take_apart(mail.raw[:SEARCHED], seconds=SEARCH_SECONDS_EACH)
            text = f"{apart.text}\n{apart.html}".lower()
            if len(text) <= TEXT_KEPT:
                self._texts[mail] = text
        return text


def row_of(mail: CaughtMail) -> Row:
    """Say of a message what stands in the list."""
    head = mail.raw[:HEAD_LOOKED_AT].partition(b"\r\n\r\n")[0]
    message = BytesHeaderParser(policy=BRIEF).parsebytes(head)
    return {
        "id": mail.id,
        "sender": mail.sender,
        "recipients": mail.recipients[:ROW_RECIPIENTS],
        "recipients_total": len(mail.recipients),
        "subject": clean(header_of(message, "subject"))[:ROW_TEXT],
        "received_at": mail.received_at.isoformat(),
        "size": len(mail.raw),
    }


class Viewed:
    """A message, taken apart. It does not keep the message itself."""

    def __init__(self, mail: CaughtMail, row: Row) -> None:
        apart = take_apart(mail.raw, mail.recipients)
        self.attachments = apart.attachments
        self._session = mail.session
        self._images = {clean(name): each for name, each in apart.images.items()}
        self._html = apart.html[:TEXT_SHOWN]
        self._value = {**row, **dict(described(mail, apart))}
        self.octets = 2 * TEXT_SHOWN + sum(len(each.content) for each in self.attachments)
        """About what it takes."""

    def value(self) -> Dict[str, Any]:
        """Give all but the attachments' content, and the dialogue up to now."""
        return {**self._value, "dialogue": self._session.transcript}

    def document(self) -> str:
        """Write the HTML for the frame."""
        left = [IMAGES_INLINE]

        def image(content_id: str) -> str:
            found = self._images.get(content_id) or self._images.get(unquote(content_id))
            if found is None or found.type not in RASTER or len(found.content) > left[0]:
                return ""
            left[0] -= len(found.content)
            return f"data:{found.type};base64,{base64.b64encode(found.content).decode()}"

        return harmless(self._html, image)


def described(mail: CaughtMail, apart: Apart) -> Iterator[Tuple[str, Any]]:
    """Say of a message what its views show, but for the dialogue."""
    notes: List[str] = []
    cut = cutter(notes)
    bcc = set(apart.bcc)
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
    yield "headers", [[clean(name)[:ROW_TEXT], clean(value)] for name, value in apart.headers]
    text = cut("characters of the text", apart.text, TEXT_SHOWN)
    html = cut("characters of the HTML", apart.html, TEXT_SHOWN)
    yield "text", text
    yield "html", bool(html)
    yield "links", [each[:FIELD_READ] for each in links_of(text, html)[:LINKS_SHOWN]]
    yield (
        "attachments",
        [
            {"name": each.name[:ROW_TEXT], "type": each.type[:ROW_TEXT], "size": len(each.content)}
            for each in cut("attachments", apart.attachments, PARTS_SHOWN)
        ],
    )
    yield "notes", [*apart.notes, *notes]


def cutter(notes: List[str]) -> Callable[[str, Any, int], Any]:
    """Make what cuts a text or a list, and notes it."""

    def cut(what: str, whole: Any, most: int) -> Any:
        if len(whole) > most:
            notes.append(f"The first {most:,} of {len(whole):,} {what} are shown.")
        return whole[:most]

    return cut


class Viewer:
    """Takes messages apart, one at a time, and keeps the last few while they are there."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._lock = threading.Lock()
        self._kept: WeakKeyDictionary[CaughtMail, Viewed] = WeakKeyDictionary()

    def view(self, mail: CaughtMail) -> Viewed:
        """Give a message, taken apart."""
        with self._lock:
            found = self._kept.pop(mail, None) or Viewed(mail, self._rows.row(mail))
            self._kept[mail] = found
            self._drop()
            return found

    def _drop(self) -> None:
        octets = 0
        for number, (mail, viewed) in enumerate(reversed(list(self._kept.items()))):
            octets += viewed.octets
            if number and (number >= KEPT or octets > KEPT_OCTETS):
                self._kept.pop(mail, None)


def file_name_of(name: str, otherwise: str) -> str:
    """Write the parameters of Content-Disposition that name a file (RFC 6266).

    Of a path the last part counts; nothing that cannot be seen is left in it.
    """
    last = re.split(r"[/\\]", name)[-1]
    shown = "".join(c for c in last if c.isprintable()).strip(". ")[:100] or otherwise
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", shown)
    return f"filename=\"{plain}\"; filename*=UTF-8''{quote(shown, safe='')}"
