"""Trace information (RFC 5321 4.4): the ``Received`` field that a server adds to each message.

Nothing a client sends can break out of the field: its words are reduced to what a header may hold.
"""

from __future__ import annotations

import functools
import itertools
import re
import time
from typing import Optional

from .envelope import TLS, Envelope

__all__ = ["new_id", "received"]

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

# In a comment and in an Extended-Domain: no parentheses, backslashes, quotes, controls. The second
# pattern takes milliseconds to compile, and is for names that are not ASCII.
_SAFE = re.compile(r"[!#-'*-\[\]-~]+")
_UNSAFE = r"[^!#-'*-\[\]-~\u00a1-\u2027\u202a-\ud7ff\ue000-\U0010ffff]"

_counter = itertools.count(int(time.time() * 1000) << 10)


_suffix = ""


def new_id() -> str:
    """Give a short name that no other session or message of this server has."""
    return f"{next(_counter):x}{_suffix}"


def tell_apart(number: int) -> None:
    """Have the names of this process end so that no other worker gives the same."""
    global _counter, _suffix
    _counter, _suffix = itertools.count(int(time.time() * 1000) << 10), f"w{number}"


def date(seconds: Optional[float] = None) -> str:
    """Give a date-time of RFC 5322 3.3 in local time, in English whatever the locale."""
    return _date(int(time.time() if seconds is None else seconds))


@functools.lru_cache(maxsize=2)  # many messages have the same second
def _date(seconds: int) -> str:
    now = time.localtime(seconds)
    offset = (now.tm_gmtoff or 0) // 60
    sign, minutes = "-" if offset < 0 else "+", abs(offset)
    return (
        f"{_DAYS[now.tm_wday]}, {now.tm_mday} {_MONTHS[now.tm_mon - 1]} {now.tm_year} "
        f"{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02} "
        f"{sign}{minutes // 60:02}{minutes % 60:02}"
    )


def with_protocol(envelope: Envelope) -> str:
    """Give the WITH keyword: SMTP, ESMTPS, UTF8SMTPSA ... (RFC 3848, RFC 6531 4.3)."""
    session = envelope.session
    lmtp = session.rules.lmtp
    if not session.esmtp:
        return "SMTP"
    if envelope.smtputf8:
        name = "UTF8LMTP" if lmtp else "UTF8SMTP"
    else:
        name = "LMTP" if lmtp else "ESMTP"
    return name + "S" * (session.tls is not None) + "A" * (session.user is not None)


def received(envelope: Envelope, hostname: str) -> bytes:
    """Give the ``Received`` field of a message, folded, with its CRLF."""
    peer, tls = envelope.peer, envelope.tls
    address = f"[IPv6:{peer.address}]" if ":" in peer.address else f"[{peer.address}]"
    helo = envelope.helo
    if not _SAFE.fullmatch(helo):
        helo = re.sub(_UNSAFE, "?", helo) or "unknown"
    secured = f"\r\n\t({_cipher(tls)})" if tls else ""
    # With several recipients "for" would show each of them the others (RFC 5321 7.2).
    lone = envelope.recipients[0] if len(envelope.recipients) == 1 else ""
    field = (
        f"Received: from {helo} ({address if peer.address else 'local'})\r\n"
        f"\tby {hostname} with {with_protocol(envelope)} id {envelope.id}"
        f"{secured}"
        f"{lone and f'{chr(13)}{chr(10)}{chr(9)}for <{lone}>'};\r\n"
        f"\t{date()}\r\n"
    )
    return field.encode()


def _cipher(tls: TLS) -> str:
    return f"version={tls.version} cipher={tls.cipher} bits={tls.bits}"
