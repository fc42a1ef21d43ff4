"""The public face with types. Read by ``mypy --strict``, not run: see test_typing.py."""

from __future__ import annotations

import re
import ssl
import sys
import threading
from email.message import EmailMessage
from typing import IO, TYPE_CHECKING, Any, Dict, List, Optional, Tuple, Type

import smtpd_sync
from smtpd_sync import (
    TLS,
    Disconnect,
    Envelope,
    Limits,
    Mailbox,
    Peer,
    Reject,
    Reply,
    Session,
    SMTPHandler,
    SMTPServer,
    discard,
)
from smtpd_sync.faults import Faults

if TYPE_CHECKING:
    if sys.version_info >= (3, 12):
        from typing import override
    else:
        from typing_extensions import override

    from smtpd_sync.hooks import Hooks, Receipt, Verdict


# Hooks as callables. Those with narrower results fit, too.
def validate_host(address: str) -> bool:
    return address.startswith("127.")


def validate_recipient(mailbox: Mailbox) -> None:
    local: str = mailbox.local
    domain: str = mailbox.domain
    original: str = mailbox.original
    if local == "bogus" or domain == "example.net" or not original:
        raise Reject(550, "no such mailbox", "5.1.1")


def validate_sender(mailbox: Mailbox) -> Optional[Reply]:
    return None if mailbox else Reply(550, "no bounces here", "5.7.1")


def takes_plain_text(mailbox: str) -> bool:
    return mailbox.endswith("@example.com")


def validate_data(sender: Mailbox, recipients: List[Mailbox]) -> Verdict:
    return len(recipients) < 3


def deliver(sender: Mailbox, recipients: List[Mailbox], data: bytes) -> str:
    octets: int = data.count(b"\n")
    text: str = sender.upper() + recipients[0].lower()
    return f"queued as {octets}{text}"


def deliver_plainly(sender: str, recipients: List[Mailbox], data: bytes) -> None:
    print(sender, recipients, data)


def deliver_message(message: EmailMessage, sender: Mailbox, recipients: List[Mailbox]) -> Receipt:
    return bool(message["Subject"])


def deliver_envelope(envelope: Envelope) -> None:
    sender: Mailbox = envelope.sender
    recipients: List[Mailbox] = envelope.recipients
    size = envelope.sender_parameters.get("SIZE")
    file: IO[bytes] = envelope.open()
    content: bytes = envelope.content
    peer: Peer = envelope.peer
    tls: Optional[TLS] = envelope.tls
    session: Session = envelope.session
    print(sender, recipients, size, file, content, peer.address, peer.port, envelope.id)
    print(tls.version if tls else "", envelope.helo, session.id, envelope.recipient_parameters)


def session_ended(reason: str) -> None:
    raise Disconnect(421, reason)


# Hooks as overrides, with state.
class Handler(SMTPHandler):
    banner = "hello"
    limits = Limits(message_size=None, recipients=100)

    @override
    def setup(self) -> None:
        super().setup()
        self.count = 0

    @override
    def validate_host(self, address: str) -> bool:
        return address != "192.0.2.1"

    @override
    def validate_recipient(self, mailbox: Mailbox) -> Verdict:
        self.count += 1
        return None

    @override
    def deliver(self, sender: Mailbox, recipients: List[Mailbox], data: bytes) -> str:
        peer: Peer = self.peer
        session: Session = self.session
        envelope: Envelope = self.envelope
        server: SMTPServer = self.server
        verb: str = self.command.verb
        user: Optional[str] = session.user
        helo: str = session.helo
        print(peer.address, envelope.id, server.hostname, verb, user, helo, session.tls)
        return "queued"

    @override
    def open_sink(self, envelope: Envelope) -> IO[bytes]:
        return open(envelope.id, "w+b")

    @override
    def verify(self, text: str) -> Receipt:
        return f"<{text}@example.com>"


class Battery:
    def attach(self, handler: SMTPHandler) -> Battery:
        return self

    def deliver(self, sender: Mailbox, recipients: List[Mailbox], data: bytes) -> None: ...


class Server(SMTPServer):
    trace = False
    hostname = "mx.example.com"
    local_domains: Tuple[str, ...] = ("example.com",)


def make_context() -> ssl.SSLContext:
    return ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)


def run() -> None:
    hooks: Hooks = {
        "validate_host": validate_host,
        "validate_sender": validate_sender,
        "validate_recipient": takes_plain_text,
        "validate_data": validate_data,
        "deliver": deliver_plainly,
        "deliver_message": deliver_message,
        "deliver_envelope": deliver_envelope,
        "session_ended": session_ended,
    }
    battery: Hooks = {"deliver": Battery()}
    handler: Type[SMTPHandler] = Handler
    with SMTPServer(("127.0.0.1", 8025), deliver=deliver, tls=make_context) as server:
        address: Tuple[str, int] = server.address
        port: int = server.port
        server.configure(tls=("cert.pem", "key.pem"), limits=Limits(errors=5))
        started: SMTPServer = server.start()
        started.stop(timeout=1.5)
        print(address, port)
    SMTPServer(("::1", 0), handler, **hooks).serve_forever()
    Server(("", 0), require_tls=True, **battery).start()


def run_module() -> None:
    values: Dict[str, Any] = smtpd_sync.configure(deliver=deliver, banner="my mail")
    server: SMTPServer = smtpd_sync.start("127.0.0.1", 0)
    event: threading.Event = smtpd_sync.stopped
    smtpd_sync.stop(timeout=2)
    event.wait()
    print(values, server.port, smtpd_sync.cget("banner"), smtpd_sync.__version__)


def values() -> None:
    mailbox: Mailbox = Mailbox.parse("bob@example.com")
    text: str = mailbox
    reply: Reply = Reject(450, "busy").reply
    code: int = reply.code
    size: Optional[int] = Limits().message_size
    print(text, code, reply.text, reply.status, size, mailbox in {"bob@example.com"})


def faults() -> None:
    plan = Faults([{"on": "RCPT", "fail": 550}], seed=1)
    with plan.failing("RCPT", 450, "busy", to="bad@*", times=1) as fault:
        SMTPServer(("127.0.0.1", 0), plan.handler(Handler), tls=None)
    plan.drop("EOM", sender=re.compile("^a"), skip=2)
    data: List[Dict[str, Any]] = plan.to_data()
    fired: int = fault.fired
    print(data, fired)


# What must not pass: mypy would say that the "ignore" is not needed.
wrong_arguments: Hooks = {"validate_host": validate_data}  # type: ignore[typeddict-item]
wrong_name: Hooks = {"validate_recipents": validate_recipient}  # type: ignore[typeddict-unknown-key]


class Wrong(SMTPHandler):
    @override
    def deliver(self, sender: Mailbox, data: bytes) -> None: ...  # type: ignore[override]

    @override
    def validate_recipents(self, mailbox: Mailbox) -> None: ...  # type: ignore[misc]


def wrong_keywords() -> None:
    SMTPServer(("", 0), deliver=3)  # type: ignore[arg-type]
    SMTPServer(("", 0), deliver=discard, banana=1)  # type: ignore[call-arg]
    SMTPServer(("", 0), deliver=discard, hostname=1)  # type: ignore[arg-type]
