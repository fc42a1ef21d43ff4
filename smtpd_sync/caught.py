"""One caught message: the whole envelope, and the mail data as a test wants to look at it.

What came over the wire may be broken in any way: nothing here raises for it.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from email.message import EmailMessage
from functools import cached_property
from typing import TYPE_CHECKING, List, Optional

from .envelope import TLS, Envelope, Parameters, Peer
from .reading import FORGIVING, Attachment, described, hidden, leaves, octets_of, parsed, text_of

if TYPE_CHECKING:
    from .session import Session
    from .syntax import Mailbox

__all__ = ["Attachment", "CaughtMail"]

URL = re.compile(r"https?://[\w\[][^\s<>\"'`{}|\\^]+", re.IGNORECASE)
HREF = re.compile(r"""\bhref\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>"']+))""", re.IGNORECASE)
ENDS_A_SENTENCE = ".,;:!?"
AS_IT_CAME = FORGIVING.clone(refold_source="none")


class CaughtMail:
    """A message, as it came and when."""

    def __init__(self, envelope: Envelope) -> None:
        self.id: str = envelope.id
        """Names it in the 250 and in the log."""
        self.sender: Mailbox = envelope.sender
        """The reverse-path; ``""`` is the null one."""
        self.recipients: List[Mailbox] = list(envelope.recipients)
        """The forward-paths that were accepted, in order."""
        self.sender_parameters: Parameters = dict(envelope.sender_parameters)
        """Parameters of MAIL."""
        self.recipient_parameters: List[Parameters] = [
            dict(each) for each in envelope.recipient_parameters
        ]
        """Parameters of each RCPT, in the order of ``recipients``."""
        self.raw: bytes = envelope.content
        """The mail data, as sent: nothing is added."""
        self.peer: Peer = envelope.peer
        """The client: ``.address`` and ``.port``."""
        self.helo: str = envelope.helo
        """The name the client gave itself."""
        self.user: Optional[str] = envelope.user
        """Who it authenticated as."""
        self.tls: Optional[TLS] = envelope.tls
        """The TLS it came over, or ``None``."""
        self.received_at: datetime = datetime.now(timezone.utc)
        """When its end came, in UTC."""
        self.session: Session = envelope.session
        """The conversation; ``.transcript`` is what was said."""

    def __repr__(self) -> str:
        return f"<CaughtMail {self.summary}>"

    @property
    def summary(self) -> str:
        """Who sent what to whom, on one line."""
        return f"{self.sender or '<>'} -> {', '.join(self.recipients)} {self.subject!r}"

    @cached_property
    def message(self) -> EmailMessage:
        """The mail data, parsed."""
        return parsed(self.raw)

    @cached_property
    def bcc(self) -> List[Mailbox]:
        """The recipients that no field To or Cc names, in order."""
        unnamed = set(hidden(self.recipients, self.message))
        return [each for each in self.recipients if each in unnamed]

    @cached_property
    def subject(self) -> str:
        """The field Subject, decoded; ``""`` where there is none."""
        return clean(str(self.message.get("subject", "")))

    @cached_property
    def text(self) -> str:
        """What there is as text/plain, decoded; lines end with LF. ``""`` where there is none."""
        return self._body("text/plain")

    @cached_property
    def html(self) -> str:
        """What there is as text/html, as ``text``."""
        return self._body("text/html")

    @cached_property
    def attachments(self) -> List[Attachment]:
        """The parts that are no body, in order: each has ``name``, ``type`` and ``content``."""
        return [
            Attachment(*attachment_of(part))
            for part in leaves(self.message, forwarded=False)
            if not body_type(part)
        ]

    def links(self) -> List[str]:
        """Give the URLs, each once: those of the text, then where the HTML links to."""
        return links_of(self.text, self.html)

    def _body(self, kind: str) -> str:
        texts = [
            text_of(part)
            for part in leaves(self.message, forwarded=False)
            if body_type(part) == kind
        ]
        return joined(texts)


def body_type(part: EmailMessage) -> str:
    """Give text/plain or text/html where a part is text to be read, else nothing."""
    name, kind = described(part)
    try:
        attached = part.get_content_disposition() == "attachment"
    except Exception:  # the email package raises all sorts for broken fields
        attached = False
    return "" if name or attached or kind not in ("text/plain", "text/html") else kind


def attachment_of(part: EmailMessage) -> Attachment:
    """Read a part that is no body."""
    name, kind = described(part)
    if part.is_multipart():
        content = b"".join(written(each) for each in part.get_payload())  # type: ignore[arg-type]
    else:
        content = octets_of(part)
    return Attachment(clean(name or ""), kind, content)


def written(message: EmailMessage) -> bytes:
    """Write a message inside another out again."""
    try:
        return message.as_bytes(policy=AS_IT_CAME)
    except Exception:  # the email package cannot write all that it reads
        return b""


def clean(text: str) -> str:
    """Give text that can be encoded: what is no Unicode becomes U+FFFD."""
    try:
        octets = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair, as UTF-7 can bring it
        octets = text.encode("utf-8", "surrogatepass")
    return octets.decode("utf-8", "replace")


def joined(texts: List[str]) -> str:
    """Make one text of several; its lines end with LF."""
    return clean("\n".join(texts)).replace("\r\n", "\n")


def links_of(text: str, html: str) -> List[str]:
    """Give the URLs of a text, then where HTML links to; each once."""
    found = [trimmed(match[0]) for match in URL.finditer(text)]
    if html:
        from html import unescape  # its table is large

        targets = (unescape("".join(m.groups(""))).strip() for m in HREF.finditer(html))
        found.extend(target for target in targets if target)
    return list(dict.fromkeys(found))


def trimmed(url: str) -> str:
    """Leave out what ends the sentence, not the URL."""
    url = url.rstrip(ENDS_A_SENTENCE)
    for opening, closing in ("()", "[]"):
        if opening not in url:
            url = url.rstrip(closing + ENDS_A_SENTENCE)
    return url
