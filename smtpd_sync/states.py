"""The protocol as data (RFC 5321 4.1.4): states, what may come in each, and where it leads.

Tables and sets only; the session walks them, and a test walks every cell.
"""

from __future__ import annotations

import enum
from typing import Dict, FrozenSet, Tuple

from . import reply as replies
from .command import VERBS
from .reply import Reply

__all__ = ["ON_REFUSAL", "TRANSITIONS", "State"]


class State(enum.IntEnum):
    """Where a session stands."""

    NEW = enum.auto()
    """Connected, not greeted."""
    REFUSED = enum.auto()
    """Greeted with 554: may only QUIT (RFC 5321 3.1)."""
    GREETED = enum.auto()
    """Before HELO or EHLO."""
    READY = enum.auto()
    """Between transactions."""
    TLS = enum.auto()
    """220 to STARTTLS was given; the handshake is due."""
    MAIL = enum.auto()
    """In a transaction without a recipient."""
    RCPT = enum.auto()
    """In a transaction with one."""
    DATA = enum.auto()
    """What comes is mail data."""
    BDAT = enum.auto()
    """Between two chunks of mail data, or inside one (RFC 3030)."""
    AUTH = enum.auto()
    """In an exchange: what comes are responses (RFC 4954)."""
    CLOSED = enum.auto()
    """Nothing more is read."""


NEW, REFUSED, GREETED, READY, TLS_DUE, MAIL, RCPT, DATA, BDAT, AUTH, CLOSED = State

IDLE = (GREETED, READY, MAIL, RCPT, BDAT)
STAY = {state: state for state in IDLE}

# Every change of state is here. Event: {state it may come in: state after a positive reply}.
TRANSITIONS: Dict[str, Dict[State, State]] = {
    "connection": {NEW: GREETED},
    "HELO": dict.fromkeys(IDLE, READY),
    "EHLO": dict.fromkeys(IDLE, READY),  # again: as RSET (RFC 5321 4.1.4)
    "LHLO": dict.fromkeys(IDLE, READY),
    "STARTTLS": {READY: TLS_DUE},
    "tls": {TLS_DUE: GREETED, NEW: NEW},  # forget everything (RFC 3207 4.2)
    "AUTH": {READY: AUTH},  # not inside a transaction (RFC 4954 4)
    "secret": {AUTH: AUTH},
    "credentials": {AUTH: READY},
    "XCLIENT": {GREETED: NEW, READY: NEW},  # as if the client had just connected
    "XFORWARD": {READY: READY},
    "MAIL": {READY: MAIL},
    "RCPT": {MAIL: RCPT, RCPT: RCPT},
    "DATA": {RCPT: DATA},
    "BDAT": {RCPT: BDAT, BDAT: BDAT},
    "content": {DATA: DATA, BDAT: BDAT},
    "message": {DATA: READY, BDAT: READY},
    "RSET": {GREETED: GREETED, READY: READY, MAIL: READY, RCPT: READY, BDAT: READY},
    "NOOP": STAY,
    "HELP": STAY,
    "VRFY": STAY,
    "EXPN": STAY,
    "QUIT": {REFUSED: CLOSED, **dict.fromkeys(IDLE, CLOSED)},
}

# The state after a negative reply; what is not here leaves it as it was, and 421 always closes.
ON_REFUSAL: Dict[str, State] = {
    "connection": REFUSED,
    "credentials": READY,
    "BDAT": READY,  # what is left of the message must not pass for the whole
    "message": READY,
}

# What 503 says, where the state alone does not say it better.
OUT_OF_TURN: Dict[Tuple[str, State], Reply] = {
    ("MAIL", MAIL): replies.NESTED_MAIL,
    ("MAIL", RCPT): replies.NESTED_MAIL,
    ("RCPT", READY): replies.MAIL_FIRST,
    ("DATA", READY): replies.MAIL_FIRST,
    ("DATA", MAIL): replies.RECIPIENT_NEEDED,
    ("BDAT", READY): replies.MAIL_FIRST,
    ("BDAT", MAIL): replies.RECIPIENT_NEEDED,
}

# Replies that may wait for the end of a pipelined group (RFC 2920 3.2; XFORWARD_README) ...
GATHER: FrozenSet[str] = frozenset({"MAIL", "RCPT", "RSET", "BDAT", "XFORWARD"})
# ... and commands that must end one: their client has to see the reply before it goes on. Not
# among them are QUIT, behind which nothing is read, and STARTTLS, at which it is forgotten.
LAST: FrozenSet[str] = frozenset(VERBS) - GATHER - {"QUIT", "STARTTLS"}
# Commands that bring no mail; too many of them end the session.
JUNK: FrozenSet[str] = frozenset({"HELO", "EHLO", "LHLO", "RSET", "NOOP", "HELP", "VRFY", "EXPN"})
# Before TLS, where it is required (RFC 3207 4).
WITHOUT_TLS: FrozenSet[str] = frozenset({"EHLO", "LHLO", "NOOP", "QUIT", "STARTTLS"})
# With AUTH first, where it is required (RFC 4954 6).
WITH_AUTH: FrozenSet[str] = frozenset({"MAIL", "VRFY", "EXPN"})
# Their replies carry no enhanced status code (RFC 2034 4).
BARE: FrozenSet[str] = frozenset({"connection", "HELO", "EHLO", "LHLO"})
# Verbs the RFCs know and we do not serve: 502, not 500 (RFC 5321 4.2.4).
UNSERVED: FrozenSet[str] = frozenset({"SEND", "SOML", "SAML", "TURN", "ETRN", "ATRN", "BURL"})
# What a browser or a proxy says when it is made to speak to us: a cross-protocol attack.
OTHER_PROTOCOLS: FrozenSet[bytes] = frozenset(
    b"GET POST PUT HEAD OPTIONS CONNECT DELETE PATCH TRACE PRI".split()
)
TLS_RECORD = b"\x16\x03"  # the head of a ClientHello, on a port that speaks in the clear
