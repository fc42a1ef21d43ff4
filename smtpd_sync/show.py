"""Messages made readable: what the command line prints of each.

Mail is hostile text: nothing here lets a control character through to a terminal.
"""

from __future__ import annotations

import json
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import getaddresses
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

from .envelope import Envelope

__all__ = ["FORMATS"]


class Forgiving(policy.EmailPolicy):
    """Reads a field that the email package breaks at without its parameters."""

    def header_fetch_parse(self, name: str, value: str) -> Any:
        """Give a field's value: the package's, or plain text where it raises."""
        try:
            return super().header_fetch_parse(name, value)
        except Exception:  # it raises all sorts
            return "".join(c if " " <= c <= "~" else "?" for c in value.partition(";")[0])


FORGIVING = Forgiving(utf8=True, linesep="\r\n")


def parsed(envelope: Envelope) -> EmailMessage:
    """Parse the mail data; broken mail gives what can be made of it."""
    message = message_from_bytes(envelope.content, policy=FORGIVING)
    assert isinstance(message, EmailMessage), "the policy makes it one"
    return message


def printable(text: str) -> str:
    """Keep lines and tabs, and show every other control character as U+FFFD."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(
        "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in line) for line in lines
    )


def headers(message: EmailMessage) -> Iterator[Tuple[str, str]]:
    """Give the header fields, decoded; one that cannot be is given as it came."""
    for name, raw in message.raw_items():
        try:
            value = str(policy.SMTPUTF8.header_fetch_parse(name, raw))
        except Exception:  # the email package raises all sorts for broken fields
            value = str(raw)
        yield name, " ".join(value.split())


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
        payload = str(part.get_payload()).encode("utf-8", "surrogateescape")
    return payload if isinstance(payload, bytes) else b""


def described(part: EmailMessage) -> Tuple[Optional[str], str]:
    """Give the file name and the type of a part, as far as its fields can be read."""
    try:
        return part.get_filename(), part.get_content_type()
    except Exception:
        return None, "text/plain"


def parts(message: EmailMessage) -> Tuple[List[str], List[Dict[str, Any]]]:
    """Split a message into its texts and a description of each attachment."""
    texts: List[str] = []
    attachments: List[Dict[str, Any]] = []
    for part in message.walk():
        if part.is_multipart():
            continue
        assert isinstance(part, EmailMessage), "the policy makes it one"
        name, kind = described(part)
        if kind.startswith("text/") and name is None:
            if kind == "text/plain" or not texts:
                texts.append(text_of(part))
        else:
            attachments.append({"name": name or "", "type": kind, "size": len(octets_of(part))})
    return texts, attachments


def hidden_recipients(envelope: Envelope, message: EmailMessage) -> List[str]:
    """Give the recipients that no header field names."""
    fields = [
        value
        for name, value in headers(message)
        if name.lower() in ("to", "cc", "resent-to", "resent-cc")
    ]
    try:
        named = {address.lower() for _, address in getaddresses(fields)}
    except RecursionError:  # comments in comments in comments ...
        named = set()
    return [recipient for recipient in envelope.recipients if recipient.lower() not in named]


def human(envelope: Envelope) -> bytes:
    """Show a message to a person."""
    message = parsed(envelope)
    texts, attachments = parts(message)
    hidden = set(hidden_recipients(envelope, message))
    lines = [f"---------- {envelope.id} from {envelope.peer.address} ({envelope.helo})"]
    lines.append(f"sender:     <{envelope.sender}>")
    for recipient in envelope.recipients:
        note = "  (in no header field)" if recipient in hidden else ""
        lines.append(f"recipient:  <{recipient}>{note}")
    lines.append("")
    lines.extend(f"{name}: {value}" for name, value in headers(message))
    for text in texts:
        lines.extend(("", text.replace("\r\n", "\n").rstrip("\n")))
    if attachments:
        lines.append("")
    for each in attachments:
        lines.append(
            f"attachment: {each['name'] or 'unnamed'}, {each['type']}, {each['size']} octets"
        )
    return (printable("\n".join(lines)) + "\n\n").encode("utf-8", "replace")


def as_json(envelope: Envelope) -> bytes:
    """Show a message to a program: one object, on one line."""
    message = parsed(envelope)
    texts, attachments = parts(message)
    shown = {
        "id": envelope.id,
        "peer": envelope.peer.address,
        "helo": envelope.helo,
        "tls": envelope.tls and envelope.tls.version,
        "sender": envelope.sender,
        "recipients": envelope.recipients,
        "hidden_recipients": hidden_recipients(envelope, message),
        "sender_parameters": envelope.sender_parameters,
        "size": len(envelope.content),
        "headers": list(headers(message)),
        "text": "\n".join(texts),
        "attachments": attachments,
    }
    return json.dumps(shown).encode() + b"\n"


def raw(envelope: Envelope) -> bytes:
    """Show a message as it is."""
    return envelope.content


FORMATS: Mapping[str, Callable[[Envelope], bytes]] = {"human": human, "raw": raw, "json": as_json}
"""Name of each way to show a message -> the octets it makes."""
