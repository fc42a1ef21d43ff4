"""Trace information (RFC 5321 4.4): the ``Received`` field that a server adds to each message.

Nothing a client sends can break out of the field: its words are reduced to what a header may hold.
"""

from __future__ import annotations

import functools
import itertools
import re
import threading
import time
from typing import Optional

from .envelope import TLS, Envelope
from .patterns import Pattern

__all__ = ["new_id", "received"]

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

# In a comment and in an Extended-Domain: no parentheses, backslashes, quotes, controls. The second
# pattern takes milliseconds to compile, and is for names that are not ASCII.
_SAFE = Pattern(r"[!#-'*-\[\]-~]+")
_UNSAFE = r"[^!#-'*-\[\]-~\u00a1-\u2027\u202a-\ud7ff\ue000-\U0010ffff]"

_counter = itertools.count(int(time.time() * 1000) << 10)


_suffix = ""
_lock = threading.Lock()


def new_id() -> str:
    """Give a short name that no other session or message of this server has."""
    with _lock:  # without the GIL two threads might be given the same
        number = next(_counter)
    return f"{number:x}{_suffix}"


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


def with_protocol(esmtp: bool, lmtp: bool, utf8: bool, tls: bool, auth: bool) -> str:
    """Give the WITH keyword: SMTP, ESMTPS, UTF8SMTPSA ... (RFC 3848, RFC 6531 4.3)."""
    if not esmtp:
        return "SMTP"
    name = f"UTF8{'LMTP' if lmtp else 'SMTP'}" if utf8 else "LMTP" if lmtp else "ESMTP"
    return name + "S" * tls + "A" * auth


@functools.lru_cache(maxsize=64)  # the messages of a session share it
def _origin(helo: str, address: str, hostname: str, *protocol: bool) -> str:
    """Give what the field says up to the id: where the message is from, and how it came here."""
    literal = f"[IPv6:{address}]" if ":" in address else f"[{address}]"
    if not _SAFE.fullmatch(helo):
        helo = re.sub(_UNSAFE, "?", helo) or "unknown"
    return (
        f"Received: from {helo} ({literal if address else 'local'})\r\n"
        f"\tby {hostname} with {with_protocol(*protocol)} id "
    )


def received(envelope: Envelope, hostname: str) -> bytes:
    """Give the ``Received`` field of a message, folded, with its CRLF."""
    session, recipients = envelope.session, envelope.recipients
    tls = session.tls
    origin = _origin(
        session.helo,
        session.peer.address,
        hostname,
        session.esmtp,
        session.rules.lmtp,
        envelope.smtputf8,
        tls is not None,
        session.user is not None,
    )
    secured = f"\r\n\t({_cipher(tls)})" if tls else ""
    # With several recipients "for" would show each of them the others (RFC 5321 7.2).
    lone = f"\r\n\tfor <{recipients[0]}>" if len(recipients) == 1 else ""
    return f"{origin}{envelope.id}{secured}{lone};\r\n\t{date()}\r\n".encode()


def _cipher(tls: TLS) -> str:
    return f"version={tls.version} cipher={tls.cipher} bits={tls.bits}"
