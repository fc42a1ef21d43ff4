"""Messages taken apart: header fields, texts, attachments.

Mail is hostile, and the email package raises all sorts of exceptions: here nothing does.
"""

from __future__ import annotations

from email import message_from_bytes, policy
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from email.utils import getaddresses
from typing import Any, Iterable, Iterator, List, NamedTuple, Optional, Tuple, TypeVar

__all__ = [
    "ADDRESSED",
    "Attachment",
    "Forgiving",
    "headers",
    "hidden",
    "leaves",
    "parsed",
    "parts",
    "text_of",
    "unnamed",
]

ADDRESSED = ("to", "cc", "resent-to", "resent-cc")
"""The header fields that name recipients."""

Recipient = TypeVar("Recipient", bound=str)


class Forgiving(policy.EmailPolicy):
    """Reads a field that the email package breaks at without its parameters."""

    def header_fetch_parse(self, name: str, value: str) -> Any:
        """Give a field's value: the package's, or plain text where it raises."""
        try:
            return super().header_fetch_parse(name, value)
        except Exception:  # it raises all sorts
            return "".join(c if " " <= c <= "~" else "?" for c in value.partition(";")[0])


FORGIVING = Forgiving(utf8=True, linesep="\r\n")


def parsed(octets: bytes) -> EmailMessage:
    """Parse mail data; broken mail gives what can be made of it."""
    try:
        message = message_from_bytes(octets, policy=FORGIVING)
    except Exception:  # such as RecursionError, for a thousand messages in one another
        message = BytesHeaderParser(policy=FORGIVING).parsebytes(octets)
    assert isinstance(message, EmailMessage), "the policy makes it one"
    return message


def headers(message: EmailMessage) -> Iterator[Tuple[str, str]]:
    """Give the header fields, decoded; one that cannot be is given as it came."""
    for name, raw in message.raw_items():
        try:
            value = str(policy.SMTPUTF8.header_fetch_parse(name, raw))
        except Exception:  # the email package raises all sorts for broken fields
            value = str(raw)
        yield name, " ".join(value.split())


def hidden(recipients: Iterable[Recipient], message: EmailMessage) -> List[Recipient]:
    """Give the recipients that no header field names."""
    fields = [value for name, value in headers(message) if name.lower() in ADDRESSED]
    return unnamed(recipients, fields)


def unnamed(recipients: Iterable[Recipient], fields: List[str]) -> List[Recipient]:
    """Give the recipients that are in none of the fields."""
    try:
        named = {address.lower() for _, address in getaddresses(fields)}
    except RecursionError:  # comments in comments in comments ...
        named = set()
    return [recipient for recipient in recipients if recipient.lower() not in named]


def leaves(message: EmailMessage, *, forwarded: bool = True) -> Iterator[EmailMessage]:
    """Give the parts that have no parts, in order; those of a ``forwarded`` message, too.

    Else that is one part.
    """
    waiting = [message]
    while waiting:
        part = waiting.pop()
        if part.is_multipart() and (forwarded or not is_forwarded(part)):
            waiting.extend(reversed(part.get_payload()))  # type: ignore[arg-type]
        else:
            yield part


def is_forwarded(part: EmailMessage) -> bool:
    """Tell whether a part holds a message, or several, as in a report of delivery."""
    return described(part)[1].startswith("message/")


def text_of(part: EmailMessage) -> str:
    """Decode a text part, whatever charset it claims."""
    octets = octets_of(part)
    try:
        return octets.decode(part.get_content_charset("utf-8"), "replace")
    except Exception:  # a charset that is none, such as idna; or the email package
        return octets.decode("latin-1")


def octets_of(part: EmailMessage) -> bytes:
    """Give the content of a part, with its transfer encoding undone where that can be."""
    try:
        payload = part.get_payload(decode=True)
    except Exception:
        payload = None
    if isinstance(payload, bytes):
        return payload
    try:
        return str(part.get_payload() or "").encode("utf-8", "surrogateescape")
    except Exception:  # it decodes, too, and not every codec can replace
        return b""


def described(part: EmailMessage) -> Tuple[Optional[str], str]:
    """Give the file name and the type of a part, as far as its fields can be read."""
    try:
        return part.get_filename(), part.get_content_type()
    except Exception:
        return None, "text/plain"


class Attachment(NamedTuple):
    """A part of a message that is not its text."""

    name: str
    """The name of its file; ``""`` where it has none."""
    type: str
    content: bytes


def parts(message: EmailMessage) -> Tuple[List[str], List[Attachment]]:
    """Split a message into its texts and its attachments."""
    texts: List[str] = []
    attachments: List[Attachment] = []
    for part in leaves(message):
        name, kind = described(part)
        if kind.startswith("text/") and name is None:
            if kind == "text/plain" or not texts:
                texts.append(text_of(part))
        else:
            attachments.append(Attachment(name or "", kind, octets_of(part)))
    return texts, attachments
