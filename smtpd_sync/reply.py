"""Replies (RFC 5321 4.2) with enhanced status codes (RFC 2034, RFC 3463), and how a hook refuses.

A :class:`Reply` is a value. It is turned into octets in one function, which is the only way text
reaches a client: no CR, LF or control character of a hook's text can start a line of its own.
"""

from __future__ import annotations

import functools
import re
from typing import Any, Iterator, Optional

from .patterns import Pattern

__all__ = ["Disconnect", "Reject", "Reply"]

LINE_LENGTH = 512  # octets with CRLF, RFC 5321 4.5.3.1.5

_STATUS = re.compile(r"[245]\.(?:0|[1-9][0-9]{0,2})\.(?:0|[1-9][0-9]{0,2})\Z")
_UNPRINTABLE = Pattern(r"[^ -~]")

_STATUS_OF_CLASS = {2: "2.0.0", 3: "", 4: "4.0.0", 5: "5.0.0"}

# What a code says when its author says nothing (RFC 5321 4.2.3).
_TEXTS = {
    214: "Help",
    220: "Service ready",
    221: "Bye",
    250: "OK",
    252: "Cannot VRFY user, but will accept message and attempt delivery",
    334: "",  # an empty challenge
    354: "Start mail input; end with <CRLF>.<CRLF>",
    421: "Service not available, closing transmission channel",
    450: "Requested mail action not taken: mailbox unavailable",
    451: "Requested action aborted: local error in processing",
    452: "Requested action not taken: insufficient system storage",
    500: "Syntax error, command unrecognized",
    501: "Syntax error in parameters or arguments",
    502: "Command not implemented",
    503: "Bad sequence of commands",
    550: "Requested action not taken: mailbox unavailable",
    552: "Requested mail action aborted: exceeded storage allocation",
    553: "Requested action not taken: mailbox name not allowed",
    554: "Transaction failed",
}


class Reply:
    """One reply: ``code`` (200 to 599), ``text`` (its lines split by LF) and ``status``.

    ``status`` is an enhanced status code such as ``"5.1.1"`` whose class is the first digit of the
    code (RFC 2034 4); without one it is ``X.0.0``. Raises ``ValueError`` for what can be neither.
    Replies are compared by value and never change, so they can be shared.
    """

    __slots__ = ("_bare", "_extended", "code", "status", "text")

    def __init__(self, code: int, text: str = "", status: Optional[str] = None) -> None:
        if not isinstance(code, int) or not 200 <= code <= 599:
            raise ValueError(f"a reply code is a number from 200 to 599, not {code!r}")
        if not isinstance(text, str):
            raise ValueError(f"the text of a reply is a str, not {text!r}")
        if status is None:
            status = _STATUS_OF_CLASS[code // 100]
        elif not _STATUS.match(status) or int(status[0]) != code // 100:
            raise ValueError(
                f"{status!r} is no enhanced status code of a {code} reply (RFC 2034 4)"
            )
        self.code = code
        self.text = text or _TEXTS.get(code, "OK" if code < 400 else "Refused")
        self.status = status
        self._bare: Optional[bytes] = None
        self._extended: Optional[bytes] = None

    def render(self, extended: bool = True) -> bytes:
        """Give the octets of the reply; ``extended``: with the status on every line."""
        # Constants are sent a million times: each form is made once and kept.
        if extended and self.status:
            if self._extended is None:
                self._extended = self._lines(f"{self.status} ")
            return self._extended
        if self._bare is None:
            self._bare = self._lines("")
        return self._bare

    def _lines(self, status: str) -> bytes:
        room = LINE_LENGTH - len(status) - 6  # the code, a space or hyphen, and CRLF
        # Nearly all replies are one line of printable ASCII (what is printable holds no LF).
        if len(self.text) <= room and self.text.isascii() and self.text.isprintable():
            return f"{self.code} {status}{self.text}\r\n".encode("ascii")
        texts = []
        for line in self.text.replace("\r\n", "\n").split("\n"):
            text = _UNPRINTABLE.sub("?", line)
            while len(text) > room:
                cut = text.rfind(" ", 1, room + 1)
                if cut < 0:
                    cut = room
                texts.append(text[:cut])
                text = text[cut:].lstrip(" ")
            texts.append(text)
        *first, last = texts
        head = "".join(f"{self.code}-{status}{text}\r\n" for text in first)
        return f"{head}{self.code} {status}{last}\r\n".encode("ascii")

    def __iter__(self) -> Iterator[Any]:
        return iter((self.code, self.text, self.status or None))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reply):
            return NotImplemented
        return (self.code, self.text, self.status) == (other.code, other.text, other.status)

    def __hash__(self) -> int:
        return hash((self.code, self.text, self.status))

    def __str__(self) -> str:
        return " ".join(filter(None, (str(self.code), self.status, self.text)))

    def __repr__(self) -> str:
        return f"Reply({self.code}, {self.text!r}, {self.status!r})"


class Reject(Exception):
    """Raised by a hook, from any depth: refuse what the client asks.

    ``raise Reject(550, "no such mailbox", "5.1.1")``. The code is 4yz (try again) or 5yz.
    """

    def __init__(self, code: int, text: str = "", status: Optional[str] = None) -> None:
        self.reply = Reply(code, text, status)
        if code < 400:
            raise ValueError(f"Reject takes a 4yz or 5yz code, not {code}")
        super().__init__(code, self.reply.text, self.reply.status)


class Disconnect(Exception):
    """Raised by a hook: answer, and close the connection. Default: 421 4.7.0."""

    def __init__(self, code: int = 421, text: str = "", status: Optional[str] = None) -> None:
        if code == 421:
            status = status or "4.7.0"
        self.reply = Reply(code, text, status)
        super().__init__(code, self.reply.text, self.reply.status)


@functools.lru_cache(maxsize=64)
def shared(code: int, text: str) -> Reply:
    """Give a reply that is the same for many sessions: it is made, and turned into octets, once.

    Only for texts of the server's own making, so that no client fills the cache.
    """
    return Reply(code, text)


# The server's own replies, by what happened. The status of each is from RFC 3463 and RFC 5248.
OK = Reply(250, "OK")
BYE = Reply(221, "Bye")
SENDER_OK = Reply(250, "Sender OK", "2.1.0")
RECIPIENT_OK = Reply(250, "Recipient OK", "2.1.5")
START_INPUT = Reply(354)
START_TLS = Reply(220, "Ready to start TLS")
NO_VERIFY = Reply(252, "Cannot VRFY user, but will accept message and attempt delivery", "2.5.2")

HOST_REFUSED = Reply(554, "No SMTP service here for you", "5.7.1")
NAME_REFUSED = Reply(550, "Name refused", "5.7.1")
SENDER_REFUSED = Reply(550, "Sender refused", "5.7.1")
RECIPIENT_REFUSED = Reply(550, "No such mailbox", "5.1.1")
DATA_REFUSED = Reply(554, "Message refused", "5.7.1")
MESSAGE_REFUSED = Reply(554, "Message refused", "5.0.0")
UNPARSABLE = Reply(554, "Message cannot be parsed", "5.6.0")
LOCAL_ERROR = Reply(451, "Local error, please try again later", "4.3.0")
NO_STORAGE = Reply(452, "Insufficient system storage", "4.3.1")

UNRECOGNIZED = Reply(500, "Command unrecognized", "5.5.2")
LINE_TOO_LONG = Reply(500, "Line too long", "5.5.2")
BAD_OCTETS = Reply(501, "Control characters or invalid UTF-8 in the command", "5.5.2")
NO_ARGUMENT = Reply(501, "No argument is allowed", "5.5.4")
ARGUMENT_NEEDED = Reply(501, "An argument is needed", "5.5.4")
BAD_DOMAIN = Reply(501, "A domain or an address literal is needed", "5.5.4")
BAD_SENDER = Reply(501, "Bad sender address syntax", "5.1.7")
BAD_RECIPIENT = Reply(501, "Bad recipient address syntax", "5.1.3")
BAD_PARAMETER = Reply(501, "Bad parameter syntax", "5.5.4")
BAD_PARAMETER_VALUE = Reply(501, "Bad parameter value", "5.5.4")
REPEATED_PARAMETER = Reply(501, "Parameter given twice", "5.5.4")
UNKNOWN_PARAMETER = Reply(555, "Parameter not recognized", "5.5.4")
UTF8_NEEDED = Reply(553, "Non-ASCII address without SMTPUTF8", "5.6.7")
NOT_IMPLEMENTED = Reply(502, "Command not implemented", "5.5.1")
BAD_SEQUENCE = Reply(503, "Bad sequence of commands", "5.5.1")
HELO_FIRST = Reply(503, "Say HELO or EHLO first", "5.5.1")
MAIL_FIRST = Reply(503, "Need MAIL first", "5.5.1")
NESTED_MAIL = Reply(503, "A transaction is open already", "5.5.1")
RECIPIENT_NEEDED = Reply(503, "Need a valid recipient first", "5.5.1")
TLS_NEEDED = Reply(530, "Must issue a STARTTLS command first", "5.7.0")
TLS_ACTIVE = Reply(503, "TLS is active already", "5.5.1")
OUT_OF_SYNC = Reply(554, "Input arrived before its turn", "5.5.0")
NOT_SMTP = Reply(554, "This is an SMTP server", "5.5.0")
AUTH_OK = Reply(235, "Authentication successful", "2.7.0")
AUTH_FAILED = Reply(535, "Authentication credentials invalid", "5.7.8")
AUTH_ERROR = Reply(454, "Temporary authentication failure", "4.7.0")
AUTH_NEEDED = Reply(530, "Authentication required", "5.7.0")
AUTH_DONE = Reply(503, "Already authenticated", "5.5.1")
AUTH_CANCELLED = Reply(501, "Authentication cancelled", "5.7.0")
ENCRYPTION_NEEDED = Reply(538, "Encryption required for authentication", "5.7.11")
UNKNOWN_MECHANISM = Reply(504, "Unrecognized authentication type", "5.5.4")
BAD_AUTH = Reply(501, "AUTH needs a mechanism, and at most one response", "5.5.4")
BAD_BASE64 = Reply(501, "Cannot decode base64", "5.5.2")
BAD_RESPONSE = Reply(501, "Malformed authentication response", "5.5.2")
SERVER_FIRST = Reply(501, "This mechanism takes no initial response", "5.5.4")
AUTH_LINE_TOO_LONG = Reply(500, "Authentication exchange line too long", "5.5.6")
TOO_MANY_FAILURES = Reply(421, "Too many authentication failures", "4.7.0")
BAD_ATTRIBUTE = Reply(501, "Bad attribute", "5.5.4")
BAD_CHUNK = Reply(501, "BDAT needs a size, and LAST at the end", "5.5.4")
BINARY_DATA = Reply(503, "BODY=BINARYMIME needs BDAT", "5.5.1")
TOO_MANY_RECIPIENTS = Reply(452, "Too many recipients", "4.5.3")
MESSAGE_TOO_BIG = Reply(552, "Message size exceeds the limit", "5.3.4")
BARE_NEWLINE = Reply(550, "Bare CR or LF in the message", "5.6.11")
TEXT_LINE_TOO_LONG = Reply(500, "Line too long in the message", "5.6.0")
FAR_TOO_BIG = Reply(421, "Message far beyond the size limit", "4.3.4")
TOO_MANY_ERRORS = Reply(421, "Too many errors", "4.7.0")
TOO_MANY_COMMANDS = Reply(421, "Too many commands without mail", "4.7.0")
TIMED_OUT = Reply(421, "Timed out waiting for the client", "4.4.2")
NO_SERVICE = Reply(421, "Service not available", "4.3.0")
SHUTTING_DOWN = Reply(421, "Service shutting down", "4.3.2")
TOO_BUSY = Reply(421, "Too many connections, try again later", "4.3.2")
TOO_MANY_OF_YOU = Reply(421, "Too many connections from your address", "4.7.0")
SESSION_TOO_LONG = Reply(421, "The session has lasted too long", "4.4.2")
