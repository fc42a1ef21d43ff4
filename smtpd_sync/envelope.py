"""Who sent what to whom: one transaction's :class:`Envelope`, and the :class:`Peer` it came from.

Values only. The mail data is in a *sink*, a binary file that the handler opened and wrote.
"""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING, Any, Dict, List, Mapping, NamedTuple, Optional, Union

from .syntax import Mailbox

if TYPE_CHECKING:
    from .session import Session

__all__ = ["TLS", "Envelope", "Parameters", "Peer"]

Parameters = Mapping[str, Union[str, bool]]
"""ESMTP parameters: keyword in capitals -> value as it was sent, ``True`` where it has none."""

NO_PARAMETERS: Parameters = {}


class Peer(NamedTuple):
    """The client's end of the connection."""

    address: str
    """Text of its IP address; of an IPv4 client at a dual-stack listener, the IPv4 address."""
    port: int


class TLS(NamedTuple):
    """What TLS gives to know of a connection (RFC 8446)."""

    version: str
    """``"TLSv1.3"`` or ``"TLSv1.2"``."""
    cipher: str
    """Name of the cipher suite."""
    bits: int
    """Secret bits of the cipher."""
    peer_certificate: Optional[Dict[str, Any]] = None
    """The client's certificate, verified, as ``ssl.SSLSocket.getpeercert()`` has it."""
    server_name: Optional[str] = None
    """The name the client asked for (SNI)."""
    end_point: Optional[bytes] = None
    """The ``tls-server-end-point`` channel binding (RFC 5929 4)."""


class Envelope:
    """One mail transaction (RFC 5321 3.3): sender, recipients, parameters, and the mail data."""

    __slots__ = (
        "id",
        "recipient_parameters",
        "recipients",
        "sender",
        "sender_parameters",
        "session",
        "sink",
    )

    def __init__(
        self, session: Session, sender: Mailbox, parameters: Parameters = NO_PARAMETERS
    ) -> None:
        self.session = session
        """The session it belongs to."""
        self.sender = sender
        """The reverse-path; ``""`` is the null one."""
        self.sender_parameters = parameters
        """Parameters of MAIL."""
        self.recipients: List[Mailbox] = []
        """The forward-paths that were accepted, in order, duplicates included."""
        self.recipient_parameters: List[Parameters] = []
        """Parameters of each RCPT, in the order of ``recipients``."""
        self.id = ""
        """Names the message in the 250, in ``Received`` and in the log."""
        self.sink: Optional[IO[bytes]] = None
        """The file that holds the mail data once it has all come."""

    @property
    def peer(self) -> Peer:
        """The client that sent it."""
        return self.session.peer

    @property
    def helo(self) -> str:
        """The name the client gave in HELO or EHLO."""
        return self.session.helo

    @property
    def tls(self) -> Optional[TLS]:
        """The TLS it came over, or ``None``."""
        return self.session.tls

    @property
    def smtputf8(self) -> bool:
        """Whether the sender declared it internationalized (RFC 6531)."""
        return "SMTPUTF8" in self.sender_parameters

    @property
    def user(self) -> Optional[str]:
        """Who the client authenticated as."""
        return self.session.user

    @property
    def binary(self) -> bool:
        """Whether the sender declared it BODY=BINARYMIME (RFC 3030 3)."""
        parameters = self.sender_parameters
        return "BODY" in parameters and str(parameters["BODY"]).upper() == "BINARYMIME"

    def open(self) -> IO[bytes]:
        """Give the mail data as a binary file, at its first octet. Do not close it."""
        if self.sink is None:
            raise ValueError("the mail data has not come yet")
        self.sink.seek(0)
        return self.sink

    @property
    def content(self) -> bytes:
        """The mail data, as octets. Made when asked for: large mail is better read by `open`."""
        if isinstance(self.sink, io.BytesIO):
            return self.sink.getvalue()  # shares the buffer: no copy
        return self.open().read()
