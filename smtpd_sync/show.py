"""Messages made readable: what the command line prints of each.

Mail is hostile text: nothing here lets a control character through to a terminal.
"""

from __future__ import annotations

import json
from typing import Callable, Mapping

from .envelope import Envelope
from .reading import headers, hidden, parsed, parts

__all__ = ["FORMATS"]


def printable(text: str) -> str:
    """Keep lines and tabs, and show every other control character as U+FFFD."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(
        "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in line) for line in lines
    )


def human(envelope: Envelope) -> bytes:
    """Show a message to a person."""
    message = parsed(envelope.content)
    texts, attachments = parts(message)
    unnamed = set(hidden(envelope.recipients, message))
    lines = [f"---------- {envelope.id} from {envelope.peer.address} ({envelope.helo})"]
    lines.append(f"sender:     <{envelope.sender}>")
    for recipient in envelope.recipients:
        note = "  (in no header field)" if recipient in unnamed else ""
        lines.append(f"recipient:  <{recipient}>{note}")
    lines.append("")
    lines.extend(f"{name}: {value}" for name, value in headers(message))
    for text in texts:
        lines.extend(("", text.replace("\r\n", "\n").rstrip("\n")))
    if attachments:
        lines.append("")
    for name, kind, content in attachments:
        lines.append(f"attachment: {name or 'unnamed'}, {kind}, {len(content)} octets")
    return (printable("\n".join(lines)) + "\n\n").encode("utf-8", "replace")


def as_json(envelope: Envelope) -> bytes:
    """Show a message to a program: one object, on one line."""
    message = parsed(envelope.content)
    texts, attachments = parts(message)
    shown = {
        "id": envelope.id,
        "peer": envelope.peer.address,
        "helo": envelope.helo,
        "tls": envelope.tls and envelope.tls.version,
        "sender": envelope.sender,
        "recipients": envelope.recipients,
        "hidden_recipients": hidden(envelope.recipients, message),
        "sender_parameters": envelope.sender_parameters,
        "size": len(envelope.content),
        "headers": list(headers(message)),
        "text": "\n".join(texts),
        "attachments": [
            {"name": name, "type": kind, "size": len(content)}
            for name, kind, content in attachments
        ],
    }
    return json.dumps(shown).encode() + b"\n"


def raw(envelope: Envelope) -> bytes:
    """Show a message as it is."""
    return envelope.content


FORMATS: Mapping[str, Callable[[Envelope], bytes]] = {"human": human, "raw": raw, "json": as_json}
"""Name of each way to show a message -> the octets it makes."""
