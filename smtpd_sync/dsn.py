"""Delivery status notifications (RFC 3464): what became of a message, told to its sender.

A report is a value: `report` takes facts and gives octets, and sends nothing. It goes with the null
reverse-path, so that no report is ever answered by another (RFC 5321 6.1). Nothing that an address
or the reply of a remote server holds can break out of its field.
"""

from __future__ import annotations

import re
import time
from typing import IO, List, NamedTuple, Optional, Tuple

from .data import normalize
from .envelope import Parameters
from .reply import Reply
from .syntax import is_address
from .trace import date

__all__ = ["ACTIONS", "Outcome", "report", "wanted"]

ACTIONS = ("failed", "delayed", "relayed", "delivered", "expanded")
"""What can have become of a recipient (RFC 3464 2.3.3), the worst first."""

MOST_HEADER = 262_144
MOST_RETURNED = 1_048_576
LONGEST_FIELD = 900  # of a line's 998 octets (RFC 5322 2.1.1)
LONGEST_DIAGNOSTIC = 2_000

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NOT_ASCII = re.compile(r"[^ -~]")
_NOT_IN_DOMAIN = re.compile(r"[^A-Za-z0-9.:\[\]_-]")
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9-]+")
_END_OF_HEADER = re.compile(rb"\n\r?\n")

# What the sender reads: the subject, by the worst action, and the sentence above the recipients.
_WORDS = {
    "failed": (
        "Undelivered mail returned to sender",
        "Your message could not be delivered to:",
    ),
    "delayed": (
        "Delayed mail, still being tried",
        "Your message has not been delivered yet, and need not be sent again, to:",
    ),
    "relayed": (
        "Your mail was relayed",
        "Your message was passed on, to where no report may come from, for:",
    ),
    "delivered": ("Your mail was delivered", "Your message was delivered to:"),
    "expanded": ("Your mail was delivered", "Your message was delivered to the list:"),
}


class Outcome(NamedTuple):
    """What became of one recipient."""

    recipient: str
    action: str
    """One of `ACTIONS`."""
    reply: Reply
    """What decided it: the last server's reply, or our own."""
    original_recipient: Optional[str] = None
    """The value of ORCPT as an envelope has it: ``type;address``, its xtext decoded."""
    remote_mta: Optional[str] = None
    """The name of the host whose reply it is; ``None``: it is ours."""
    will_retry_until: Optional[float] = None
    """When a delayed message will be given up."""


def wanted(parameters: Parameters, action: str) -> bool:
    """Tell whether the sender wants to hear of ``action``, by the parameters of its RCPT.

    Who says no NOTIFY hears of failures and of delays (RFC 3461 4.1).
    """
    notify = str(parameters.get("NOTIFY", "FAILURE,DELAY")).upper().split(",")
    return {"failed": "FAILURE", "delayed": "DELAY"}.get(action, "SUCCESS") in notify


def report(
    outcomes: List[Outcome],
    *,
    sender: str,
    reporting_mta: str,
    original: IO[bytes],
    envelope_id: Optional[str] = None,
    arrival: Optional[float] = None,
    full: bool = False,
    now: Optional[float] = None,
) -> bytes:
    """Give the message that tells ``sender`` what became of its mail. Send it with MAIL FROM:<>.

    ``original`` is that mail, read from its start: its header is returned, and where it ``full``
    (RET=FULL) and something failed, all of it, if that is not beyond 1 MiB. ``reporting_mta`` is
    our own name, ``envelope_id`` the decoded ENVID, ``arrival`` and ``now`` are in seconds since
    the epoch. Raises ``ValueError`` for the null sender: nobody is told.

    Without ``full`` the report is ASCII, but for the address of a sender that is not; then it needs
    SMTPUTF8. In full it may be 8bit (RFC 6152).
    """
    if not sender:
        raise ValueError("no report goes to the null reverse-path (RFC 5321 6.1)")
    actions = {outcome.action for outcome in outcomes}
    if not outcomes or not actions <= set(ACTIONS):
        raise ValueError(f"outcomes with an action of {', '.join(ACTIONS)}, not {outcomes!r}")
    now = time.time() if now is None else now
    host = _host(reporting_mta)
    worst = next(action for action in ACTIONS if action in actions)
    status = _per_message(host, envelope_id, arrival)
    status += "".join(f"\r\n{_per_recipient(outcome, now)}" for outcome in outcomes)
    parts = [
        _text(host, outcomes),
        _part("message/delivery-status", "Delivery report", status.encode("ascii")),
        _returned(original, full and "failed" in actions),
    ]
    # A multipart says what its parts need (RFC 2045 6.4).
    eight_bit = not all(part.isascii() for part in parts)
    encoding = "Content-Transfer-Encoding: 8bit\r\n" if eight_bit else ""
    mark = _mark(parts, sender, now)
    header = (
        f"From: Mail Delivery System <MAILER-DAEMON@{host}>\r\n"
        f"To: <{_plain(sender)}>\r\n"
        f"Subject: {_WORDS[worst][0]}\r\n"
        f"Date: {date(now)}\r\n"
        f"Message-ID: <{mark}@{host}>\r\n"
        "Auto-Submitted: auto-replied\r\n"  # RFC 3834 5.1
        "MIME-Version: 1.0\r\n"
        "Content-Type: multipart/report; report-type=delivery-status;\r\n"
        f'\tboundary="{mark}"\r\n'
        f"{encoding}"
        "\r\n"
    )
    body = b"".join(b"--%s\r\n%s\r\n" % (mark.encode(), part) for part in parts)
    return header.encode() + body + b"--%s--\r\n" % mark.encode()


def _mark(parts: List[bytes], sender: str, now: float) -> str:
    """Give a name that no other report has. No part can hold it, as it is a hash of them all."""
    import hashlib

    seed = f"{sender} {now!r} ".encode(errors="replace")
    return hashlib.sha256(seed + b"".join(parts)).hexdigest()[:40]


# -- the parts ---------------------------------------------------------------------------------


def _part(kind: str, description: str, content: bytes, encoding: str = "") -> bytes:
    head = f"Content-Description: {description}\r\nContent-Type: {kind}\r\n"
    if encoding:
        head += f"Content-Transfer-Encoding: {encoding}\r\n"
    return head.encode() + b"\r\n" + content


def _quoted_printable(content: bytes) -> bytes:
    import binascii

    # It gives a soft break the kind of line end that it sees first.
    return normalize(binascii.b2a_qp(content, istext=True))


def _text(host: str, outcomes: List[Outcome]) -> bytes:
    """Give the part for people."""
    lines = [f"This is the mail system at {host}."]
    for action, (_, sentence) in _WORDS.items():
        told = [outcome for outcome in outcomes if outcome.action == action]
        lines += ["", sentence] if told else []
        for outcome in told:
            said = f"{_plain(outcome.remote_mta)} said: " if outcome.remote_mta else ""
            lines += ["", f"<{_plain(outcome.recipient)}>"]
            lines += [f"    {line}" for line in _wrapped(f"{said}{_diagnostic(outcome.reply)}")]
            if outcome.will_retry_until is not None and action == "delayed":
                lines.append(f"    It will be tried until {date(outcome.will_retry_until)}.")
    text = "".join(f"{line}\r\n" for line in lines)
    if text.isascii():
        return _part("text/plain; charset=us-ascii", "Notification", text.encode())
    content = _quoted_printable(text.encode(errors="replace"))
    return _part("text/plain; charset=utf-8", "Notification", content, "quoted-printable")


def _per_message(host: str, envelope_id: Optional[str], arrival: Optional[float]) -> str:
    """Give the fields of the whole message (RFC 3464 2.2)."""
    fields = []
    if envelope_id:
        fields.append(("Original-Envelope-Id", _ascii(envelope_id)))
    fields.append(("Reporting-MTA", f"dns; {host}"))
    if arrival is not None:
        fields.append(("Arrival-Date", date(arrival)))
    return _fields(fields)


def _per_recipient(outcome: Outcome, now: float) -> str:
    """Give the fields of one recipient (RFC 3464 2.3)."""
    reply = outcome.reply
    fields = []
    if outcome.original_recipient is not None:
        kind, _, address = outcome.original_recipient.partition(";")
        if _ADDRESS_TYPE.fullmatch(kind) and address:
            # Of the type utf-8 it is encoded already, or is UTF-8 (RFC 6533 3).
            utf8 = kind.lower() == "utf-8"
            shown = _embedded("[^ -~]", address) if utf8 else _ascii(address)
            fields.append(("Original-Recipient", f"{kind}; {shown}"))
    ascii_only = outcome.recipient.isascii()
    final = _ascii(outcome.recipient) if ascii_only else _utf8_address(outcome.recipient)
    fields.append(("Final-Recipient", f"{'rfc822' if ascii_only else 'utf-8'}; {final}"))
    fields.append(("Action", outcome.action))
    fields.append(("Status", reply.status or f"{reply.code // 100}.0.0"))
    if outcome.remote_mta:
        fields.append(("Remote-MTA", f"dns; {_host(outcome.remote_mta)}"))
    fields.append(("Diagnostic-Code", _folded(f"smtp; {_diagnostic(reply)}")))
    fields.append(("Last-Attempt-Date", date(now)))
    if outcome.will_retry_until is not None and outcome.action == "delayed":
        fields.append(("Will-Retry-Until", date(outcome.will_retry_until)))  # RFC 3464 2.3.9
    return _fields(fields)


def _returned(original: IO[bytes], full: bool) -> bytes:
    """Give the part that holds the original, or its header (RFC 6522 3)."""
    original.seek(0)
    octets = original.read(MOST_RETURNED + 1 if full else MOST_HEADER)
    # The body of a message may follow an empty header.
    end = _END_OF_HEADER.search(b"\n" + octets)
    header = octets[: end.start()] if end else octets
    # Of binary mail nothing but the header can go where there are lines.
    lines = normalize(octets) == octets and b"\0" not in octets
    if full and len(octets) <= MOST_RETURNED and lines:
        kind = "message/rfc822" if header.isascii() else "message/global"
        encoding = "" if octets.isascii() else "8bit"
        return _part(kind, "Undelivered message", octets, encoding)
    header = normalize(header[:MOST_HEADER])
    if not header.endswith(b"\r\n"):
        header += b"\r\n"
    about = "Header of the message"
    if header.isascii():
        return _part("text/rfc822-headers", about, header)
    # As 8bit it could not go by every way (RFC 6533 4.3).
    return _part("message/global-headers", about, _quoted_printable(header), "quoted-printable")


# -- text that stays where it is put -----------------------------------------------------------


def _plain(text: str) -> str:
    """Give text that is one line, and no more than a line may hold."""
    return _CONTROL.sub("?", text)[:LONGEST_FIELD]


def _host(name: str) -> str:
    """Give a domain, or an address literal."""
    if is_address(name):
        return f"[IPv6:{name}]" if ":" in name else f"[{name}]"
    return _NOT_IN_DOMAIN.sub("?", name)[:LONGEST_FIELD] or "localhost"


def _ascii(text: str) -> str:
    return _NOT_ASCII.sub("?", text)[:LONGEST_FIELD]


def _utf8_address(mailbox: str) -> str:
    """Write a mailbox in ASCII, as the address type ``utf-8`` has it (RFC 6533 3)."""
    return _embedded(r"[^!-*,-<>-\[\]-~]", mailbox)


def _embedded(pattern: str, text: str) -> str:
    def embed(match: re.Match[str]) -> str:
        return rf"\x{{{ord(match[0]):X}}}"

    return re.sub(pattern, embed, _CONTROL.sub("?", text))[:LONGEST_FIELD]


def _diagnostic(reply: Reply) -> str:
    """Give a reply on one line of ASCII."""
    text = " ".join(str(reply).split("\n"))
    return _NOT_ASCII.sub("?", text)[:LONGEST_DIAGNOSTIC]


def _fields(fields: List[Tuple[str, str]]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in fields)


def _folded(text: str) -> str:
    return "\r\n\t".join(_wrapped(text))


def _wrapped(text: str) -> List[str]:
    """Break text at spaces, and a word only that no line could hold."""
    lines: List[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= 72:
            lines[-1] += f" {word}"
            continue
        lines.extend(word[at : at + LONGEST_FIELD] for at in range(0, len(word), LONGEST_FIELD))
    return lines
