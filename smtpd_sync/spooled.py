"""A message in the spool: who sent it to whom, what has been tried, and the JSON that says so."""

from __future__ import annotations

import functools
import time
from typing import IO, Any, Dict, List, NamedTuple, Optional, Tuple

from .envelope import TLS, Envelope, Parameters, Peer
from .reply import Reply
from .rules import Rules, rules
from .syntax import Mailbox

__all__ = ["Message", "Origin", "Recipient", "Unreadable"]

VERSION = 1


class Unreadable(Exception):
    """Files that are no message."""


@functools.lru_cache(maxsize=16)
def _lmtp(hostname: str) -> Rules:
    return rules(lmtp=True, hostname=hostname)


class Origin:
    """What an envelope knows of its session, once that is over. A hook is asked as LMTP is."""

    id = ""

    def __init__(self, peer: Peer, helo: str, hostname: str = "localhost") -> None:
        self.peer = peer
        self.helo = helo
        self.hostname = hostname
        """What the server called itself."""
        self.esmtp = True
        self.tls: Optional[TLS] = None
        self.user: Optional[str] = None
        self.forwarded: Dict[str, str] = {}
        self.envelope: Optional[Envelope] = None

    @property
    def rules(self) -> Rules:
        """As in a session."""
        return _lmtp(self.hostname)


class Recipient(NamedTuple):
    """One that is still to be served."""

    mailbox: Mailbox
    parameters: Parameters
    reply: str = ""
    """What was said at the last attempt."""


class Message:
    """What is known of a message in the spool, but for its mail data."""

    def __init__(
        self, name: str, session: Any, sender: Mailbox, parameters: Parameters, arrived: float
    ) -> None:
        self.name = name
        """That of its files."""
        self.id = name
        """That of the transaction, as the client was told it."""
        self.session = session
        self.sender = sender
        self.parameters = parameters
        self.recipients: List[Recipient] = []
        self.failed: List[Tuple[Recipient, Reply]] = []
        """Those for whom all is over, and whose sender was not told yet. Not written."""
        self.arrived = arrived
        """Seconds since the epoch, as all times here."""
        self.next = arrived
        """When it is tried again."""
        self.attempts = 0
        self.size = 0
        """Octets of the mail data."""

    @classmethod
    def of(cls, envelope: Envelope, name: str) -> Message:
        """Make that of a new message."""
        message = cls(
            name, envelope.session, envelope.sender, envelope.sender_parameters, time.time()
        )
        message.id = envelope.id or name
        message.recipients = [
            Recipient(mailbox, parameters)
            for mailbox, parameters in zip(envelope.recipients, envelope.recipient_parameters)
        ]
        return message

    def envelope(self, sink: Optional[IO[bytes]] = None) -> Envelope:
        """Make the envelope anew, of those who are still to be served."""
        envelope = Envelope(self.session, self.sender, self.parameters)
        envelope.recipients = [each.mailbox for each in self.recipients]
        envelope.recipient_parameters = [each.parameters for each in self.recipients]
        envelope.id = self.id
        envelope.sink = sink
        return envelope

    def encode(self) -> bytes:
        """Give the JSON."""
        import json  # not cheap

        session, tls = self.session, self.session.tls
        fields = {
            "version": VERSION,
            "id": self.id,
            "sender": _spelled(self.sender),
            "sender_parameters": _written(self.parameters),
            "recipients": [
                {
                    **_spelled(each.mailbox),
                    "parameters": _written(each.parameters),
                    "reply": each.reply,
                }
                for each in self.recipients
            ],
            "peer": [session.peer.address, int(session.peer.port)],
            "helo": session.helo,
            "hostname": session.rules.hostname,
            "esmtp": session.esmtp,
            "tls": tls and [tls.version, tls.cipher, tls.bits],
            "user": session.user,
            "arrived": self.arrived,
            "attempts": self.attempts,
            "next": self.next,
            "size": self.size,
        }
        return json.dumps(fields, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, name: str, octets: bytes) -> Message:
        """Read it again; `Unreadable` for what `encode` would not have written."""
        import json

        try:
            return cls._decode(name, json.loads(octets))
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from None
        except (RecursionError, OverflowError) as error:
            raise Unreadable(str(error)) from None

    @classmethod
    def _decode(cls, name: str, fields: Any) -> Message:
        if fields["version"] != VERSION:
            raise ValueError("it is of another version of the program")
        address, port = fields["peer"]
        session = Origin(
            Peer(_text(address), int(port)), _text(fields["helo"]), _text(fields["hostname"])
        )
        session.esmtp = bool(fields["esmtp"])
        session.user = None if fields["user"] is None else _text(fields["user"])
        if fields["tls"] is not None:
            version, cipher, bits = fields["tls"]
            session.tls = TLS(_text(version), _text(cipher), int(bits))
        parameters = _parameters(fields["sender_parameters"])
        arrived = _number(fields["arrived"])
        message = cls(name, session, _mailbox(fields["sender"]), parameters, arrived)
        message.id = _text(fields["id"])
        message.recipients = [
            Recipient(_mailbox(row), _parameters(row["parameters"]), _text(row["reply"]))
            for row in fields["recipients"]
        ]
        if not message.recipients:
            raise ValueError("there is no recipient")
        message.attempts = int(_number(fields["attempts"]))
        message.next = _number(fields["next"])
        message.size = int(_number(fields["size"]))
        return message


def _spelled(mailbox: Mailbox) -> Dict[str, str]:
    return {"local": mailbox.local, "domain": mailbox.domain, "original": mailbox.original}


def _mailbox(row: Any) -> Mailbox:
    return Mailbox(_text(row["local"]), _text(row["domain"]), _text(row["original"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not 0 <= value < 1e12:  # NaN is not, either
        raise ValueError(f"{value!r:.60} cannot be")
    return float(value)


def _written(parameters: Parameters) -> Dict[str, Any]:
    # An extension of the user's may decode a value to what JSON does not know.
    return {key: True if value is True else str(value) for key, value in parameters.items()}


def _parameters(values: Any) -> Dict[str, Any]:
    return {
        _text(keyword): True if value is True else _text(value) for keyword, value in values.items()
    }
