"""How the octets of a session come: in which pieces, and what a client waits for."""

import re
from typing import List

from smtpd_sync.states import State

# A client that asks for TLS waits for the answer: what it says then comes behind the handshake.
_STARTTLS = re.compile(rb"STARTTLS[ \t]*\r\n", re.IGNORECASE)
_LINES = re.compile(rb"[^\n]*\n|[^\n]+")


def segments(octets):
    """Cut behind each STARTTLS."""
    ends = [0, *(match.end() for match in _STARTTLS.finditer(octets)), len(octets)]
    return [octets[start:end] for start, end in zip(ends, ends[1:]) if start < end]


def whole(octets, chance, session):
    return segments(octets)


def lines(octets, chance, session):
    return _LINES.findall(octets)


def single(octets, chance, session):
    """Octet by octet; of long input only a part, for the time it takes."""
    for one in segments(octets):
        start = chance.randrange(len(one) - 400) if len(one) > 500 else 0
        if start:
            yield from _LINES.findall(one[:start])
        for at in range(start, min(len(one), start + 500)):
            yield one[at : at + 1]
        yield from _LINES.findall(one[start + 500 :])


def pieces(octets, chance, session):
    for one in segments(octets):
        start = 0
        while start < len(one):
            end = start + chance.choice((1, 2, 3, 5, 8, 21, 80, 200))
            yield one[start:end]
            start = end


def parts_of_lines(octets, chance, session):
    """Cut each line at random: what the client sends never runs over the end of a line."""
    for one in _LINES.findall(octets):
        at = chance.randrange(len(one))
        if at:
            yield one[:at]
        yield one[at:]


def groups(octets, chance, session):
    """As a client with PIPELINING: a group ends behind what must be last (RFC 2920 3.1)."""
    group: List[bytes] = []
    fresh = True  # at the start of a line
    for one in _LINES.findall(octets):
        group.append(one)
        verb = one[:4].upper().decode("latin-1")
        waits = verb in ("MAIL", "RCPT", "RSET") and one[4:5] in (b" ", b"\r")
        may = session.esmtp and session.state in MAY_GATHER and not session.receiving_mail
        whole_line, fresh = fresh and one.endswith(b"\r\n"), one.endswith(b"\r\n")
        if not (waits and may and whole_line):
            yield b"".join(group)
            group = []
    if group:
        yield b"".join(group)


MAY_GATHER = frozenset({State.READY, State.MAIL, State.RCPT})


def rude(octets, chance, session):
    """All at once, whatever must wait."""
    return [octets]


FORGIVING = {"whole": whole, "lines": lines, "single": single, "pieces": pieces, "early": whole}
"""Feedings that give the same outcome where early input is forgiven ..."""
STRICT = {"lines": lines, "single": single, "parts": parts_of_lines, "groups": groups}
"""... and where it is not."""
FEEDINGS = {**FORGIVING, **STRICT, "rude": rude}
