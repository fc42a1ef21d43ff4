"""A message taken apart for the page: its texts, its attachments, and what cannot be shown.

Mail is hostile: headers on which the email package is slow, parts by the million, parts in parts in
parts. So there are bounds of size and of processor time, and ``notes`` say what lies beyond. What
was read of a message is not the message: its source can always be had.

The functions `show` and `searched` are called in a process of its own; see `webelsewhere`.
"""

from __future__ import annotations

import base64
import codecs
import re
from email.feedparser import BytesFeedParser
from email.message import EmailMessage, Message
from email.parser import BytesHeaderParser
from itertools import islice
from time import thread_time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple
from urllib.parse import unquote

from .caught import Attachment, attachment_of, body_type, clean, joined, links_of
from .reading import ADDRESSED, Forgiving, described, leaves, octets_of, text_of, unnamed
from .webhtml import harmless

__all__ = [
    "NAME_SHOWN",
    "Apart",
    "Brief",
    "Job",
    "Shown",
    "cutter",
    "header_of",
    "searched",
    "show",
    "take_apart",
]

SECONDS = 5.0
"""Of processor time, for one message."""
LINES_READ = 1_000_000
PARTS_READ = 10_000
FIELDS_READ = 500
FIELD_READ = 8_192
"""Characters of a header field that are decoded: the time for it may grow with their square."""
ADDRESSES_READ = 1_048_576
"""Characters of the fields To and Cc in which a recipient is looked for."""
PIECE = 65_536
SEARCH_SECONDS = 0.5
"""Of processor time, for one message in a search."""

NAME_SHOWN = 300
TEXT_SHOWN = 524_288
"""Characters of text, and of HTML, that are shown."""
PARTS_SHOWN = 500
LINKS_SHOWN = 100
IMAGES_INLINE = 8_388_608
"""Octets of images that a document for the frame holds."""
RASTER = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp"})


class Brief(Forgiving):
    """Reads no more of a header field than takes a moment."""

    most = FIELD_READ

    def header_fetch_parse(self, name: str, value: str) -> Any:
        """Give a field's value."""
        return super().header_fetch_parse(name, value[: self.most])


BRIEF = Brief(utf8=True, linesep="\r\n")


class Apart(NamedTuple):
    """A message, as far as it could be read."""

    headers: List[Tuple[str, str]]
    text: str
    html: str
    attachments: List[Attachment]
    images: Dict[str, Attachment]
    """Those with a Content-ID."""
    bcc: List[str]
    notes: List[str]
    """What is broken, and what was not read."""


class Shown(NamedTuple):
    """What a job found in a message."""

    value: Dict[str, Any]
    """As JSON has it."""
    blobs: List[bytes]


Job = Callable[..., Shown]


class Clock:
    """Tells when enough time was spent, in this thread and whatever else the machine does."""

    def __init__(self, seconds: float) -> None:
        self._due = thread_time() + seconds

    def is_over(self) -> bool:
        """Tell whether it is time to stop."""
        return thread_time() >= self._due


def show(octets: bytes, recipients: Sequence[str] = ()) -> Shown:
    """Give what the page shows of a message, the HTML for its frame, and each attachment."""
    apart = take_apart(octets, recipients)
    notes = apart.notes
    cut = cutter(notes)
    text = cut("characters of the text", apart.text, TEXT_SHOWN)
    html = cut("characters of the HTML", apart.html, TEXT_SHOWN)
    attachments = cut("attachments", apart.attachments, PARTS_SHOWN)
    value = {
        "headers": [[clean(name)[:NAME_SHOWN], clean(value)] for name, value in apart.headers],
        "text": text,
        "html": bool(html),
        "links": [each[:FIELD_READ] for each in links_of(text, html)[:LINKS_SHOWN]],
        "attachments": [
            {"name": name[:NAME_SHOWN], "type": kind[:NAME_SHOWN], "size": len(content)}
            for name, kind, content in attachments
        ],
        "bcc": apart.bcc,
        "notes": notes,
    }
    document = document_of(html, apart.images).encode("utf-8", "replace")
    return Shown(value, [document, *(each.content for each in attachments)])


def searched(octets: bytes) -> Shown:
    """Give the texts of a message, for a search."""
    apart = take_apart(octets, seconds=SEARCH_SECONDS)
    return Shown({"text": f"{apart.text}\n{apart.html}".lower()}, [])


def document_of(html: str, images: Dict[str, Attachment]) -> str:
    """Write the HTML for the frame, with the images that came along."""
    named = {clean(name): each for name, each in images.items()}
    left = [IMAGES_INLINE]

    def image(content_id: str) -> str:
        found = named.get(content_id) or named.get(unquote(content_id))
        if found is None or found.type not in RASTER or len(found.content) > left[0]:
            return ""
        left[0] -= len(found.content)
        return f"data:{found.type};base64,{base64.b64encode(found.content).decode()}"

    return harmless(html, image)


def cutter(notes: List[str]) -> Callable[[str, Any, int], Any]:
    """Make what cuts a text or a list, and notes it."""

    def cut(what: str, whole: Any, most: int) -> Any:
        if len(whole) > most:
            notes.append(f"The first {most:,} of {len(whole):,} {what} are shown.")
        return whole[:most]

    return cut


def take_apart(octets: bytes, recipients: Sequence[str] = (), seconds: float = SECONDS) -> Apart:
    """Take a message apart; nothing that is in it raises."""
    notes: List[str] = []
    message = _parsed(octets, Clock(seconds / 2), notes)
    clock = Clock(seconds / 2)  # so that of what was parsed something is shown
    fields = list(_fields(message, clock))
    if len(fields) < len(message):
        notes.append(f"The first {len(fields):,} of {len(message):,} header fields are shown.")
    if any(len(str(raw)) > FIELD_READ for _, raw in message.raw_items()):
        notes.append(f"Of a long header field {FIELD_READ:,} characters are shown.")
    texts: Dict[str, List[str]] = {"text/plain": [], "text/html": []}
    attachments: List[Attachment] = []
    images: Dict[str, Attachment] = {}
    defects = list(message.defects)
    for part in () if _is_torn(message) else leaves(message, forwarded=False):
        if clock.is_over():
            notes.append("It takes too long to read: not all of its parts are shown.")
            break
        kind = body_type(part)
        if kind:
            texts[kind].append(text_of(part))
            notes.extend(_doubts(part, texts[kind][-1]))
        else:
            attachments.append(Attachment(*attachment_of(part)))
            if part.is_multipart() and not attachments[-1].content:
                notes.append("A message within it cannot be read: only the source has it.")
            images.setdefault(header_of(part, "content-id").strip("<>"), attachments[-1])
        defects.extend(part.defects)
    notes.extend(f"Broken: {_said(defect)}" for defect in defects)
    return Apart(
        fields,
        joined(texts["text/plain"]),
        joined(texts["text/html"]),
        attachments,
        images,
        _bcc(message, recipients, notes),
        list(dict.fromkeys(notes)),
    )


def header_of(message: Message, name: str) -> str:
    """Give a header field on one line; ``""`` where it is missing or says nothing."""
    try:
        return " ".join(str(message.get(name, "")).split())
    except Exception:  # the email package raises all sorts for broken fields
        return ""


def _parsed(octets: bytes, clock: Clock, notes: List[str]) -> EmailMessage:
    end, position = _extent(octets), 0
    parser = BytesFeedParser(policy=BRIEF)
    try:
        while position < end and not clock.is_over():
            parser.feed(octets[position : min(position + PIECE, end)])
            position = min(position + PIECE, end)
        message: Message = parser.close()
    except Exception:  # such as RecursionError, for a thousand parts in one another
        notes.append("Its parts are too deep in one another: only the source has them.")
        head = octets.partition(b"\r\n\r\n")[0]
        position, message = len(octets), BytesHeaderParser(policy=BRIEF).parsebytes(head)
    if position < len(octets):
        notes.append(
            f"The first {position:,} of its {len(octets):,} octets are taken apart: "
            "it has too many lines or parts."
        )
    assert isinstance(message, EmailMessage), "the policy makes it one"
    return message


def _is_torn(message: EmailMessage) -> bool:
    """Tell whether there is the header alone of what has parts."""
    is_whole = message.is_multipart() or octets_of(message)
    return not is_whole and described(message)[1].startswith("multipart/")


def _extent(octets: bytes) -> int:
    """Tell how many octets have no more lines and parts than we take."""
    bounds = ((end + more, most) for end in (b"\n", b"\r") for more, most in _MOST)
    return min(_position(octets, what, most) for what, most in bounds)


_MOST = ((b"", LINES_READ), (b"--", PARTS_READ))


def _position(octets: bytes, what: bytes, number: int) -> int:
    if octets.count(what) <= number:
        return len(octets)
    return next(islice(re.finditer(re.escape(what), octets), number, None)).start()


def _fields(message: EmailMessage, clock: Clock) -> Iterator[Tuple[str, str]]:
    for name, raw in islice(message.raw_items(), FIELDS_READ):
        value = str(raw)[:FIELD_READ]
        if not clock.is_over():
            value = str(BRIEF.header_fetch_parse(name, value))
        yield name, " ".join(value.split())


def _bcc(message: EmailMessage, recipients: Sequence[str], notes: List[str]) -> List[str]:
    addressed = [str(raw) for name, raw in message.raw_items() if name.lower() in ADDRESSED]
    if sum(map(len, addressed)) > ADDRESSES_READ:
        notes.append("The fields To and Cc are too long to tell which recipients they lack.")
        return []
    return list(unnamed(recipients, addressed))


def _doubts(part: EmailMessage, text: str) -> Iterator[str]:
    """Say what may be wrong with a text."""
    try:
        charset = part.get_content_charset("utf-8")
        codecs.lookup(charset)
    except Exception:
        yield "The charset of a text is not known: it is read as ISO-8859-1."
    if "\ufffd" in text:
        yield "What is not of a text's charset is shown as \ufffd."


def _said(defect: Any) -> str:
    words = type(defect).__doc__ or type(defect).__name__
    return " ".join(words.split()).rstrip(".") + "."
