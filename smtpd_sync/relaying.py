"""What a relay does for one connection: a transaction with the next hop, in step with our client's.

Whatever was said before the message came, `Relaying.deliver_envelope` sees to it that the next hop
has exactly the recipients that our client was told are accepted, and asks for those that are
missing. So in step and afterwards are one case.
"""

from __future__ import annotations

import io
import logging
import re
from collections import Counter
from typing import IO, TYPE_CHECKING, List, Optional

from . import dsn
from .envelope import NO_PARAMETERS, Envelope, Parameters
from .logs import log, pairs
from .nexthop import LOST, Lost, NextHop, connect
from .passing import mail_parameters, rcpt_parameters
from .reply import Reject, Reply
from .syntax import Mailbox

if TYPE_CHECKING:
    from .handler import SMTPHandler
    from .hooks import Receipts, Verdict
    from .relay import Relay

__all__ = ["Relaying"]

LOOP = Reply(554, "Too many hops: the message is in a loop", "5.4.6")
NOT_7BIT = Reply(554, "The next hop takes 7bit mail only", "5.6.3")
NO_REPORT = Reply(451, "The sender cannot be told what was refused, try again later", "4.4.0")

MOST_HOPS = 100  # RFC 5321 6.3
HEADER = 262_144  # octets: trace fields stand at the top
CHUNK = 262_144

_END_OF_HEADER = re.compile(rb"\n\r?\n")
_RECEIVED = re.compile(rb"\nReceived[ \t]*:", re.IGNORECASE)


class Relaying:
    """Serves one connection of our client, over one of its own, which is opened when needed."""

    def __init__(self, relay: Relay, handler: Optional[SMTPHandler] = None) -> None:
        self._relay = relay
        self._handler = handler
        self._hop: Optional[NextHop] = None
        self._envelope: Optional[Envelope] = None  # whose transaction is open there
        self._taken: List[Mailbox] = []  # by the next hop, in that transaction

    # -- hooks -------------------------------------------------------------------------------

    def validate_sender(self, mailbox: Mailbox) -> Verdict:
        """Say MAIL to the next hop."""
        return self._begin(self._current)

    def validate_recipient(self, mailbox: Mailbox) -> Verdict:
        """Say RCPT to the next hop."""
        assert self._handler is not None, "hooks are called where it is attached"
        envelope = self._current
        refused = None if self._envelope is envelope else self._begin(envelope)
        return refused or self._add(mailbox, self._handler.command.parameters)

    def deliver_envelope(self, envelope: Envelope) -> Receipts:
        """Send the message to the next hop, and give its verdict."""
        if hops(envelope.open()) >= MOST_HOPS:
            return LOOP
        refused = None if self._envelope is envelope else self._begin(envelope)
        if refused is not None:
            return refused
        refusals = self._complete(envelope)
        lmtp = envelope.session.rules.lmtp
        if None not in refusals or (not lmtp and any(map(is_transient, refusals))):
            # Nobody has got it yet, so that the client may try again for all of them.
            return list(refusals) if lmtp else worst(refusals)
        notice = None
        if not lmtp:
            try:
                notice = self._notice(envelope, failures(envelope, refusals, self._relay.host))
            except Reject as reject:
                return worst(refusals) if reject.reply.code >= 500 else NO_REPORT
        try:
            reply = self._send(envelope)
            if reply.code < 400 and notice is not None:
                notice.send()
        finally:
            if notice is not None:
                notice.drop()
        if reply.code >= 400:
            return [refusal or reply for refusal in refusals] if lmtp else reply
        self._report_relayed(envelope, refusals, reply)
        receipt = reply.text.partition("\n")[0]
        return [refusal or receipt for refusal in refusals] if lmtp else receipt

    def session_ended(self, reason: str) -> None:
        """Take leave of the next hop."""
        if self._hop is not None:
            self._hop.part()

    # -- the transaction ---------------------------------------------------------------------

    @property
    def _current(self) -> Envelope:
        assert self._handler is not None, "hooks are called where it is attached"
        return self._handler.envelope

    def _hostname(self, envelope: Envelope) -> str:
        return self._relay.hostname or envelope.session.rules.hostname

    def _begin(self, envelope: Envelope) -> Optional[Reply]:
        """Open a transaction at the next hop; give its refusal."""
        self._envelope = None
        kept = self._hop if self._hop is not None and self._hop.alive else None
        if kept is not None:
            kept.rest()
        try:
            return self._mail(envelope)
        except Lost:
            if kept is None:
                raise
        # It had gone while it was idle, as a server may (RFC 5321 4.5.3.2.7): once again.
        return self._mail(envelope)

    def _mail(self, envelope: Envelope) -> Optional[Reply]:
        if self._hop is None or not self._hop.alive:
            self._hop = connect(self._relay, self._hostname(envelope))
        parameters = mail_parameters(envelope, self._hop)
        if isinstance(parameters, Reply):
            return parameters
        reply = self._hop.mail(envelope.sender, parameters, envelope.smtputf8)
        if reply.code >= 400:
            return reply
        self._envelope, self._taken = envelope, []
        return None

    def _add(self, mailbox: Mailbox, parameters: Parameters) -> Optional[Reply]:
        """Name a recipient to the next hop; give its refusal."""
        hop, target = self._open_hop, self._relay.rewrite_to or mailbox
        if self._relay.unique and target in self._taken:
            return None
        rewritten = target is not mailbox
        reply = hop.rcpt(target, rcpt_parameters(parameters, hop, rewritten))
        if reply.code >= 400:
            return reply
        self._taken.append(target)
        return None

    @property
    def _open_hop(self) -> NextHop:
        """Where the transaction is open; if its connection is lost, it stays so to its end."""
        if self._hop is None or not self._hop.alive:
            raise Lost(*LOST)
        return self._hop

    def _complete(self, envelope: Envelope) -> List[Optional[Reply]]:
        """Have the next hop know all recipients, and no others; give the refusal of each."""
        targets = [self._relay.rewrite_to or mailbox for mailbox in envelope.recipients]
        if Counter(self._taken) - Counter(targets):
            # It took one that our client was then refused, by somebody else.
            refused = self._begin(envelope)
            if refused is not None:
                return [refused] * len(targets)
        known = Counter(self._taken)
        refusals: List[Optional[Reply]] = []
        for number, target in enumerate(targets):
            if known[target]:
                known[target] -= 1
                refusals.append(None)
                continue
            refusals.append(self._add(envelope.recipients[number], parameters_of(envelope, number)))
        return refusals

    def _send(self, envelope: Envelope) -> Reply:
        hop, content = self._open_hop, envelope.open()
        if not hop.has_extn("8BITMIME") and not is_ascii(content):
            return NOT_7BIT  # we do not convert (RFC 6152 3)
        self._envelope = None  # it is over, and what it holds in memory is not held by us
        return hop.message(content, envelope.binary)

    # -- reports -----------------------------------------------------------------------------

    def _notice(self, envelope: Envelope, outcomes: List[dsn.Outcome]) -> Optional[Notice]:
        """Have the next hop ready to take a report for the sender; ``Reject`` if it does not."""
        if not outcomes:
            return None
        notice = Notice(self._relay, envelope, self._hostname(envelope), outcomes)
        notice.prepare()
        return notice

    def _report_relayed(
        self, envelope: Envelope, refusals: List[Optional[Reply]], reply: Reply
    ) -> None:
        """Tell the sender that its mail went to where no report comes from, if that is wanted."""
        assert self._hop is not None, "it has taken the message"
        if self._hop.has_extn("DSN") or not envelope.sender:
            return
        outcomes = [
            outcome_of(envelope, number, "relayed", reply, self._relay.host)
            for number, refusal in enumerate(refusals)
            if refusal is None and dsn.wanted(parameters_of(envelope, number), "relayed")
        ]
        try:
            notice = self._notice(envelope, outcomes)
        except Reject as reject:
            log.warning(pairs(message=envelope.id, report_refused=reject.reply))
            return
        if notice is not None:
            notice.send()
            notice.drop()


class Notice:
    """A report that the next hop is ready to take, before the message itself is sent.

    It goes over a connection of its own, as the transaction of the message is open.
    """

    def __init__(
        self, relay: Relay, envelope: Envelope, hostname: str, outcomes: List[dsn.Outcome]
    ) -> None:
        self._relay = relay
        self._envelope = envelope
        self._hostname = hostname
        self._outcomes = outcomes

    def prepare(self) -> None:
        """Say MAIL and RCPT; ``Reject`` if it is not wanted."""
        envelope, sender = self._envelope, self._envelope.sender
        given, utf8 = envelope.sender_parameters, not sender.isascii()
        self._hop = hop = connect(self._relay, self._hostname)
        full = str(given.get("RET", "")).upper() == "FULL" and hop.has_extn("8BITMIME")
        self._report = dsn.report(
            self._outcomes,
            sender=sender,
            reporting_mta=self._hostname,
            original=envelope.open(),
            envelope_id=str(given["ENVID"]) if "ENVID" in given else None,
            full=full,
        )
        reply = hop.mail("", " BODY=8BITMIME" * full + " SMTPUTF8" * utf8, utf8)
        if reply.code < 400:
            reply = hop.rcpt(self._relay.rewrite_to or sender)
        if reply.code >= 400:
            hop.part()
            raise Reject(*reply)

    def send(self) -> None:
        """Send it. If nobody can be told after all, the log is: the message itself has gone."""
        try:
            try:
                reply = self._hop.message(io.BytesIO(self._report))
            except Lost:  # the message took longer than the next hop would wait
                self.prepare()
                reply = self._hop.message(io.BytesIO(self._report))
        except Reject as reject:
            reply = reject.reply
        level = logging.ERROR if reply.code >= 400 else logging.INFO
        about = {"message": self._envelope.id, "report_to": f"<{self._envelope.sender}>"}
        log.log(level, pairs(**about, verdict=reply))

    def drop(self) -> None:
        """Take leave, whether it was sent or not."""
        self._hop.part()


def failures(
    envelope: Envelope, refusals: List[Optional[Reply]], remote_mta: str
) -> List[dsn.Outcome]:
    """Give what the sender is to be told of the recipients that were refused."""
    outcomes = []
    for number, refusal in enumerate(refusals):
        if refusal is None:
            continue
        mailbox = envelope.recipients[number]
        told = bool(envelope.sender) and dsn.wanted(parameters_of(envelope, number), "failed")
        log.warning(pairs(message=envelope.id, refused=f"<{mailbox}>", by=refusal, told=told))
        if told:
            outcomes.append(outcome_of(envelope, number, "failed", refusal, remote_mta))
    return outcomes


def outcome_of(
    envelope: Envelope, number: int, action: str, reply: Reply, remote_mta: str
) -> dsn.Outcome:
    """Give what became of the recipient with a number."""
    given = parameters_of(envelope, number)
    original = str(given["ORCPT"]) if "ORCPT" in given else None
    return dsn.Outcome(envelope.recipients[number], action, reply, original, remote_mta)


def parameters_of(envelope: Envelope, number: int) -> Parameters:
    """Give the parameters of the recipient with a number."""
    each = envelope.recipient_parameters
    return each[number] if number < len(each) else NO_PARAMETERS


def worst(refusals: List[Optional[Reply]]) -> Reply:
    """Give the first refusal that is transient, or else the first: what may pass is not final."""
    each = [refusal for refusal in refusals if refusal is not None]
    return next(filter(is_transient, each), each[0])


def is_transient(reply: Optional[Reply]) -> bool:
    """Tell whether it is a 4yz."""
    return reply is not None and reply.code < 500


def hops(content: IO[bytes]) -> int:
    """Count the ``Received`` fields of the header."""
    head = b"\n" + content.read(HEADER)
    end = _END_OF_HEADER.search(head)
    return len(_RECEIVED.findall(head, 0, end.start() + 1 if end else len(head)))


def is_ascii(content: IO[bytes]) -> bool:
    """Tell whether no octet has its eighth bit set."""
    return all(chunk.isascii() for chunk in iter(lambda: content.read(CHUNK), b""))
