"""Plays a session without a socket, as the handler of a connection does, and keeps the record."""

import contextlib
import functools
from typing import Any, List, NamedTuple, Tuple

import smtpd_sync.authreading
from smtpd_sync import Peer, Reply
from smtpd_sync import reply as replies
from smtpd_sync.command import VERBS
from smtpd_sync.envelope import TLS
from smtpd_sync.sasl import ScramKeys
from smtpd_sync.session import END, NEED_DATA, Session
from smtpd_sync.states import State

from .feedings import FEEDINGS, segments
from .grammar import HOSTNAME, ITERATIONS, NONCE, PASSWORD, SALT, TOKEN, USER

PEER = Peer("127.0.0.1", 40000)
KEYS = ScramKeys.of(PASSWORD, SALT, ITERATIONS)
ANSWERS = {
    "connection": Reply(220, f"{HOSTNAME} ESMTP"),
    "HELO": Reply(250, HOSTNAME),
    "STARTTLS": replies.START_TLS,
    "MAIL": replies.SENDER_OK,
    "RCPT": replies.RECIPIENT_OK,
    "DATA": replies.START_INPUT,
    "BDAT": replies.START_INPUT,
    "message": Reply(250, "Taken"),
    "RSET": replies.OK,
    "NOOP": replies.OK,
    "QUIT": replies.BYE,
    "VRFY": replies.NO_VERIFY,
    "EXPN": replies.NOT_IMPLEMENTED,
}
NOT_ASKED = frozenset({"STARTTLS", "QUIT", "NOOP", "RSET"})
"""What no hook decides on."""
POSTMASTERS = frozenset({"postmaster", f"postmaster@{HOSTNAME}"})
"""Are always accepted (RFC 5321 4.5.1)."""


@contextlib.contextmanager
def known_nonce():
    """Let the server's nonce be known, so that clients can prove their password."""
    kept = smtpd_sync.authreading.new_nonce
    smtpd_sync.authreading.new_nonce = lambda: NONCE
    try:
        yield
    finally:
        smtpd_sync.authreading.new_nonce = kept


class Move(NamedTuple):
    """What one reply did to the state."""

    before: State
    verb: str
    event: bool
    """Whether it answered an event, and not a command that may not come now."""
    code: int
    said: int
    """The code that went out."""
    after: State


@functools.cache
def watched(base):
    """Make a session class that records what its replies do to its state."""

    class Watched(base):
        def _answer(self, verb, reply, event=None):
            before = self.state
            result = super()._answer(verb, reply, event)
            said = int(self.outbox[-1][:3])
            self.moves.append(Move(before, verb, event is not None, reply.code, said, self.state))
            return result

    return Watched


class Delivery(NamedTuple):
    """A message that was delivered; addresses as they were sent."""

    sender: str
    recipients: Tuple[str, ...]
    data: bytes


class Run(NamedTuple):
    """The record of one session under one feeding."""

    feeding: str
    pieces: List[bytes]
    heard: List[bytes]
    """What was said before the first piece, behind each, and at the end of input."""
    closed_at: int
    """How many pieces had come when it closed."""
    said: bytes
    deliveries: List[Delivery]
    judged: List[bool]
    """Of each message: whether the session found fault with it."""
    moves: List[Move]
    end: Tuple[Any, ...]
    retained: int
    """The most octets it held while it waited, beyond what it had just got."""
    heard_in_clear: bool
    """Whether anything that came before TLS was kept behind it."""
    afterwards: bytes
    """What it said when it was over."""


class Player:
    """Answers the events of a session."""

    def __init__(self, case, base=Session):
        self.case = case
        self.session = watched(base)(case.rules(), PEER)
        self.session.moves = []
        self.deliveries: List[Delivery] = []
        self.judged: List[bool] = []
        self.retained = 0
        self.heard_in_clear = False
        self._content: List[bytes] = []
        if case.inside:
            self.session.tls_started(self._tls())

    def _tls(self):
        certificate = {"subject": ()} if self.case.inside == "certificate" else None
        return TLS("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256, certificate, None, b"binding")

    def feed(self, octets):
        """Let the session have octets; give what it says."""
        self.session.receive_data(octets)
        said = self.pull()
        if octets and self.session.state is not State.CLOSED:
            self.retained = max(self.retained, held_by(self.session) - len(octets))
        return said

    def pull(self):
        """Answer until the session needs input or is over; give what it says."""
        session, said = self.session, []
        while True:
            event = session.next_event()
            if event is END or event is NEED_DATA:
                said.append(session.data_to_send())
                return b"".join(said)
            verb = event.verb
            if verb == "content":
                self._content.append(event.argument)
            elif verb == "secret":
                self._tell(event.argument)
            else:
                session.reply(self._answer(event))
                said.append(session.data_to_send())
                if session.state is State.TLS:
                    session.tls_started(self._tls())
                    known = (session.helo, session.esmtp, session.user, session.envelope)
                    self.heard_in_clear |= bool(
                        session._inbox.waiting or session.forwarded or any(known)
                    )

    def _tell(self, request):
        request.fault = self.case.owner.verdict("secret", request.username)
        if request.username == USER:
            request.secret = PASSWORD if request.mechanism == "CRAM-MD5" else KEYS

    def _answer(self, event):
        verb = event.verb
        if verb == "message":
            return self._deliver(event.argument)
        if verb == "credentials":
            return self._authenticate(event.argument)
        if verb in ("DATA", "BDAT"):
            self._content = []
        if verb == "HELP":
            return self._help(event.argument.upper())
        if verb == "RCPT" and event.argument.lower() in POSTMASTERS:
            return replies.RECIPIENT_OK
        if verb not in NOT_ASKED:
            asked = "" if verb == "connection" else str(event.argument)
            refusal = self.case.owner.verdict(verb, asked)
            if refusal is not None:
                return refusal
        if verb in ("EHLO", "LHLO"):
            return Reply(250, "\n".join((HOSTNAME, *self.session.keywords)))
        return ANSWERS[verb]

    def _help(self, topic):
        refused = self.session.rules.refused
        known = not topic or (topic in VERBS and topic not in refused)
        return Reply(214, "Commands:\nHELP") if known else Reply(504)

    def _authenticate(self, credentials):
        refusal = None
        if not credentials.verified:
            refusal = self.case.owner.verdict("credentials", credentials.username)
        if refusal is not None:
            return refusal
        if not may_enter(credentials):
            return replies.AUTH_FAILED
        self.session.user = credentials.username
        return replies.AUTH_OK

    def _deliver(self, fault):
        data, self._content = b"".join(self._content), []
        self.judged.append(fault is not None)
        if fault is not None:
            return fault
        envelope, owner = self.session.envelope, self.case.owner
        lmtp = self.session.rules.lmtp
        asked = envelope.recipients if lmtp else envelope.recipients[:1]
        each = [owner.verdict("message", name) or ANSWERS["message"] for name in asked]
        taken = envelope.recipients
        if lmtp:
            taken = [name for name, reply in zip(taken, each) if reply.code < 400]
        elif each[0].code >= 400:
            taken = []
        if taken:
            names = tuple(name.original for name in taken)
            self.deliveries.append(Delivery(envelope.sender.original, names, data))
        return each if lmtp else each[0]


def may_enter(credentials):
    """Tell whether the owner knows who shows these credentials."""
    if credentials.mechanism in ("PLAIN", "LOGIN"):
        known = credentials.username == USER and credentials.check(PASSWORD)
    else:
        known = credentials.verified or credentials.token == TOKEN or credentials.certificate
    itself = credentials.username and credentials.authzid in ("", credentials.username)
    return bool(known and itself)


def held_by(session):
    """Count the octets that a session holds, while it waits."""
    inbox, mail = session._inbox, session._mail
    held = len(inbox._data) + len(inbox._head) + sum(map(len, session.outbox))
    return (
        held
        if mail is None
        else held + len(mail._data._held) + len(mail._chunks._held if mail._chunks else b"")
    )


# -- a whole session ----------------------------------------------------------------------------


def play(case, feeding, chance, base=Session):
    """Hold the session; give its record."""
    player = Player(case, base)
    said, fed, closed_at = [], [], 0
    if feeding == "early":
        fed.append(next(iter(segments(case.octets)), b""))
        player.session.receive_data(fed[0])
    said.append(player.pull())
    rest = case.octets[sum(map(len, fed)) :]
    for piece in FEEDINGS[feeding](rest, chance, player.session):
        fed.append(piece)
        said.append(player.feed(piece))
        if not closed_at and player.session.state is State.CLOSED:
            closed_at = len(fed)
    said.append(player.feed(b""))
    session = player.session
    afterwards = player.feed(b"NOOP\r\n")
    return Run(
        feeding,
        fed,
        said,
        closed_at or len(fed),
        b"".join(said),
        player.deliveries,
        player.judged,
        session.moves,
        (session.state, session.helo, session.user, session.esmtp),
        player.retained,
        player.heard_in_clear,
        afterwards,
    )
