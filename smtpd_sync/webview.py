"""Caught messages as the page gets them: values for JSON, documents for the frame, attachments.

What came over the wire may be broken or huge: it is shown up to bounds, and ``notes`` say what is
not. A message is taken apart when somebody opens it, one at a time, and elsewhere; SMTP goes on.
"""

from __future__ import annotations

import re
import threading
from email.parser import BytesHeaderParser
from time import monotonic
from typing import Any, Dict, List, Tuple
from urllib.parse import quote
from weakref import WeakKeyDictionary

from .catch import Catch
from .caught import CaughtMail, clean
from .webelsewhere import Elsewhere, Gone
from .webparts import NAME_SHOWN, Brief, Shown, cutter, header_of, show

__all__ = ["Rows", "Viewed", "Viewer", "file_name_of"]

HEAD_LOOKED_AT = 32_768
"""Octets of a message in which its subject is looked for, for the list."""
SEARCHED = 131_072
"""Octets of a message in which a search looks for text."""
TEXT_KEPT = 4_096
"""Characters of a text that are kept for the next search, where that is all of it."""
SEARCH_SECONDS = 5.0
"""For a search."""
ROW_RECIPIENTS = 5
RECIPIENTS_SHOWN = 1_000
KEPT = 4
"""Messages that stay taken apart, for the requests that follow the first."""
KEPT_OCTETS = 67_108_864
"""Octets of them; the last stays, however large."""

Row = Dict[str, Any]


class Briefer(Brief):
    """Reads what a row has room for."""

    most = 1_000


BRIEFER = Briefer(utf8=True, linesep="\r\n")


class Rows:
    """What the list says of each message, made once."""

    def __init__(self, elsewhere: Elsewhere) -> None:
        self._elsewhere = elsewhere
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
                due = monotonic() + SEARCH_SECONDS
                mails = [mail for mail in mails if self._has(mail, words, due)]
                complete = monotonic() < due
        return {
            "messages": [self.row(mail) for mail in mails[:most]],
            "more": len(mails) > most,
            "found": len(mails),
            "total": total,
            "complete": complete,
        }

    def _has(self, mail: CaughtMail, words: List[str], due: float) -> bool:
        subject = self.row(mail)["subject"]
        known = " ".join((mail.sender, *mail.recipients, subject)).lower()
        missing = [word for word in words if word not in known]
        if not missing or monotonic() >= due:
            return not missing
        text = self._text(mail)
        return all(word in text for word in missing)

    def _text(self, mail: CaughtMail) -> str:
        text = self._texts.get(mail)
        if text is None:
            try:
                text = str(self._elsewhere.call("searched", mail.raw[:SEARCHED]).value["text"])
            except Gone:
                text = ""
            if len(text) <= TEXT_KEPT:
                self._texts[mail] = text
        return text


def row_of(mail: CaughtMail) -> Row:
    """Say of a message what stands in the list."""
    head = mail.raw[:HEAD_LOOKED_AT].partition(b"\r\n\r\n")[0]
    message = BytesHeaderParser(policy=BRIEFER).parsebytes(head)
    return {
        "id": mail.id,
        "sender": mail.sender,
        "recipients": mail.recipients[:ROW_RECIPIENTS],
        "recipients_total": len(mail.recipients),
        "subject": clean(header_of(message, "subject"))[:NAME_SHOWN],
        "received_at": mail.received_at.isoformat(),
        "size": len(mail.raw),
    }


class Viewed:
    """What is shown of a message. It does not keep the message itself."""

    def __init__(self, mail: CaughtMail, row: Row, shown: Shown) -> None:
        self.document, *self.contents = shown.blobs
        self._session = mail.session
        self._value = {**row, **with_envelope(shown.value, mail)}
        self.octets = sum(map(len, shown.blobs))
        """About what it takes."""

    def value(self) -> Dict[str, Any]:
        """Give all but the attachments' content, and the dialogue up to now."""
        return {**self._value, "dialogue": self._session.transcript}

    def attachment(self, number: int) -> Tuple[str, bytes]:
        """Give its name and content; raises ``IndexError``."""
        return self._value["attachments"][number]["name"], self.contents[number]


def shown_of(mail: CaughtMail, elsewhere: Elsewhere) -> Shown:
    """Take a message apart."""
    try:
        return elsewhere.call("show", mail.raw, mail.recipients)
    except Gone:
        shown = show(b"")
        shown.value["notes"] = ["It takes too long or too much to read: only the source has it."]
        return shown


def with_envelope(value: Dict[str, Any], mail: CaughtMail) -> Dict[str, Any]:
    """Add to what is shown of a message how it came."""
    bcc, notes = set(value["bcc"]), list(value["notes"])
    recipients = list(zip(mail.recipients, mail.recipient_parameters))
    return {
        **{name: value[name] for name in value.keys() - {"bcc"}},
        "recipients": [
            {"address": address, "bcc": address in bcc, "parameters": parameters}
            for address, parameters in cutter(notes)("recipients", recipients, RECIPIENTS_SHOWN)
        ],
        "sender_parameters": mail.sender_parameters,
        "peer": {"address": mail.peer.address, "port": mail.peer.port},
        "helo": clean(mail.helo),
        "user": mail.user,
        "tls": mail.tls and {"version": mail.tls.version, "cipher": mail.tls.cipher},
        "notes": notes,
    }


class Viewer:
    """Takes messages apart, one at a time, and keeps the last few while they are there."""

    def __init__(self, rows: Rows, elsewhere: Elsewhere) -> None:
        self._rows = rows
        self._elsewhere = elsewhere
        self._lock = threading.Lock()
        self._kept: WeakKeyDictionary[CaughtMail, Viewed] = WeakKeyDictionary()

    def view(self, mail: CaughtMail) -> Viewed:
        """Give a message, taken apart."""
        with self._lock:
            found = self._kept.pop(mail, None)
            if found is None:
                found = Viewed(mail, self._rows.row(mail), shown_of(mail, self._elsewhere))
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
