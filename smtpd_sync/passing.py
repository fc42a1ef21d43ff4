"""Which ESMTP parameters a relay passes on: a parameter goes where its extension is offered.

Where it is not, it is left out if the mail is none the worse for it, and else the mail is refused:
what we offered our client is a promise. DELIVERBY is always refused: its time runs while we hold
the mail, and what is left of it would be ours to count and to report (RFC 2852 4.1).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Dict, NamedTuple, Optional, Union

from .envelope import Envelope, Parameters
from .reply import Reply

if TYPE_CHECKING:
    from .nexthop import NextHop

__all__ = ["mail_parameters", "rcpt_parameters"]

NOT_PASSED = Reply(555, "The next hop does not serve that parameter", "5.5.4")
NO_BINARY = Reply(554, "The next hop takes no binary mail", "5.6.1")
NO_UTF8 = Reply(550, "The next hop takes no internationalized mail", "5.6.7")
NO_TLS_REQUIRED = Reply(550, "The next hop gives no REQUIRETLS over verified TLS", "5.7.30")


class Passing(NamedTuple):
    """How a parameter goes along."""

    extension: str
    """The EHLO keyword it needs."""
    otherwise: Optional[Reply] = None
    """The refusal where that is not offered; ``None``: it is left out."""


BODY: Dict[str, Passing] = {
    # What is declared 8bit may be 7bit: that is seen when it has come.
    "7BIT": Passing("8BITMIME"),
    "8BITMIME": Passing("8BITMIME"),
    "BINARYMIME": Passing("BINARYMIME", NO_BINARY),
}
MAIL: Dict[str, Passing] = {
    "SMTPUTF8": Passing("SMTPUTF8", NO_UTF8),  # RFC 6531 3.5
    "REQUIRETLS": Passing("REQUIRETLS", NO_TLS_REQUIRED),  # RFC 8689 4.2.1
    "RET": Passing("DSN"),
    "ENVID": Passing("DSN"),
    "MT-PRIORITY": Passing("MT-PRIORITY"),
    "HOLDFOR": Passing("FUTURERELEASE", NOT_PASSED),
    "HOLDUNTIL": Passing("FUTURERELEASE", NOT_PASSED),
    "BY": Passing("", NOT_PASSED),
}
RCPT: Dict[str, Passing] = {
    "NOTIFY": Passing("DSN"),
    "ORCPT": Passing("DSN"),
    "RRVS": Passing("RRVS"),
}


def mail_parameters(envelope: Envelope, hop: NextHop) -> Union[str, Reply]:
    """Give the parameters of MAIL, each behind a space; or why the mail cannot go there."""
    given, words = envelope.sender_parameters, []
    size = size_of(envelope)
    if size and hop.has_extn("SIZE"):
        words.append(f"SIZE={size}")
    rows = dict(MAIL)
    if "BODY" in given:
        rows["BODY"] = BODY.get(str(given["BODY"]).upper(), BODY["8BITMIME"])
    for keyword, row in rows.items():
        if keyword not in given:
            continue
        if offered(hop, row.extension):
            words.append(written(keyword, given[keyword]))
        elif row.otherwise is not None:
            return row.otherwise
    if "AUTH" in given and hop.logged_in:
        words.append(submitter(str(given["AUTH"])))
    return "".join(f" {word}" for word in words)


def rcpt_parameters(given: Parameters, hop: NextHop, rewritten: bool = False) -> str:
    """Give the parameters of RCPT, each behind a space."""
    words = [
        written(keyword, given[keyword])
        for keyword, row in RCPT.items()
        if keyword in given and offered(hop, row.extension)
        # That a mailbox has been the same person's says nothing of another (RFC 7293).
        if not (rewritten and keyword == "RRVS")
    ]
    smtputf8 = hop.command_encoding == "utf-8"
    # An address in UTF-8 can be shown to nobody else (RFC 6533 3).
    return "".join(f" {word}" for word in words if word.isascii() or smtputf8)


def offered(hop: NextHop, extension: str) -> bool:
    """Tell whether the next hop serves what an extension promises."""
    if extension == "BINARYMIME":
        return hop.has_extn(extension) and hop.has_extn("CHUNKING")  # RFC 3030 3
    if extension == "REQUIRETLS":
        return hop.has_extn(extension) and hop.verified
    return hop.has_extn(extension)


def size_of(envelope: Envelope) -> int:
    """Give the octets of the message, as far as they are known; 0 where they are not."""
    if envelope.sink is not None:
        return envelope.open().seek(0, 2)
    return int(str(envelope.sender_parameters.get("SIZE", 0)))


def written(keyword: str, value: Union[str, bool]) -> str:
    """Write a parameter as it was read (an envelope holds it decoded)."""
    if value is True:
        return keyword
    text = str(value)
    if keyword == "ENVID":
        text = xtext(text)
    elif keyword == "ORCPT":
        kind, _, address = text.partition(";")
        text = text if kind.lower() == "utf-8" else f"{kind};{xtext(address)}"
    return f"{keyword}={text}"


def submitter(mailbox: str) -> str:
    """Write who submitted the mail, or that it is not said (RFC 4954 5)."""
    known = mailbox != "<>" and mailbox.isascii()
    return f"AUTH={xtext(mailbox) if known else '<>'}"


def xtext(text: str) -> str:
    """Encode as xtext (RFC 3461 4)."""
    return re.sub(r"[^!-*,-<>-~]", lambda match: f"+{ord(match[0]):02X}", text)
