"""One attempt to deliver a message of the spool: what the hook says, and what follows from it."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional

from . import reply as replies
from .envelope import Envelope, Peer
from .hooks import battery_hooks, delivery_of, hand_over, receipt
from .logs import log, pairs
from .options import OPTIONS
from .reply import Disconnect, Reject, Reply
from .spooled import Message, Origin, Recipient
from .storage import close_sink, write_all
from .syntax import Mailbox
from .trace import new_id

if TYPE_CHECKING:
    from .hooks import Receipts
    from .spoolfiles import Claim

__all__ = ["Attempts"]

PIECE = 262_144
DOUBLINGS = 30  # more would be no number


class Plain:
    """What has a callable for its hook ``deliver``."""

    def __init__(self, deliver: Any) -> None:
        self.deliver = deliver


class Attempts:
    """Knows the hook, how long to wait between two attempts, and when to give up."""

    def __init__(
        self,
        deliver: Any,
        first_pause: float,
        longest_pause: float,
        give_up: float,
        hostname: Optional[str],
    ) -> None:
        if not 0 < first_pause <= longest_pause < 1e9:
            raise ValueError("spool: 0 < first_pause <= longest_pause, in seconds")
        if not 0 <= give_up < 1e9:
            raise ValueError("spool: give_up is a number of seconds")
        if isinstance(deliver, (list, tuple)):
            raise ValueError("spool: deliver is one callable or battery; make a spool for each")
        self.taker: Any = Plain(deliver) if callable(deliver) else deliver
        hooks = battery_hooks(self.taker)
        self._hook = delivery_of(hooks)
        self._own_sink = "open_sink" in hooks
        if not hasattr(self.taker, self._hook):
            raise ValueError(f"spool: {deliver!r} delivers for a connection only")
        self._first_pause = first_pause
        self._longest_pause = longest_pause
        self._give_up = give_up
        try:
            self._hostname = hostname and str(OPTIONS["hostname"].check(hostname))
        except ValueError as error:
            raise ValueError(f"spool: hostname: {error}") from None

    def is_due(self, message: Message) -> bool:
        """Tell whether it is time. No pause is longer than the longest, but by a wrong clock."""
        return not 0 < message.next - time.time() <= self._longest_pause

    def make(self, claim: Claim) -> None:
        """Ask the hook, and see what that makes of the message. Writes nothing."""
        message, began = claim.message, time.time()
        with claim.open() as data:
            verdicts = self._ask(message.envelope(data))
        now = time.time()
        end = message.arrived + self._give_up
        later: List[Recipient] = []
        for recipient, verdict in zip(message.recipients, verdicts):
            if verdict.code >= 500 or (verdict.code >= 400 and now >= end):
                message.failed.append((recipient, verdict))
            elif verdict.code >= 400:
                later.append(recipient._replace(reply=str(verdict)))
        message.recipients = later
        message.attempts += 1
        pause = self._first_pause * 2.0 ** min(message.attempts - 1, DOUBLINGS)
        # Less up to a fifth, so that what failed together does not come back together.
        pause = min(pause, self._longest_pause) * random.uniform(0.8, 1)  # noqa: S311
        message.next = min(now + pause, end)
        log.info(
            pairs(
                spool=message.name,
                message=message.id,
                attempt=message.attempts,
                sender=f"<{message.sender}>",
                delivered=len(verdicts) - len(later) - len(message.failed),
                deferred=len(later),
                failed=len(message.failed),
                verdict=",".join(sorted({str(verdict) for verdict in verdicts})),
                seconds=now - began,
            )
        )

    def _ask(self, envelope: Envelope) -> List[Reply]:
        """Call the hook; give what it says of each recipient."""
        count = len(envelope.recipients)
        try:
            result = self._hand_over(envelope)
        except (Reject, Disconnect) as refused:
            return [refused.reply] * count
        except (Exception, SystemExit):
            log.exception("spool: %s failed for %s", self._hook, envelope.id)
            return [replies.LOCAL_ERROR] * count
        each = result if isinstance(result, list) else [result] * count
        if len(each) != count:
            log.error("spool: %s gave %d receipts for %d", self._hook, len(each), count)
            return [replies.LOCAL_ERROR] * count
        return [self._receipt(one) for one in each]

    def _hand_over(self, envelope: Envelope) -> Receipts:
        if not self._own_sink:
            return hand_over(self.taker, self._hook, envelope)
        data, sink = envelope.open(), self.taker.open_sink(envelope)
        try:
            while True:
                octets = data.read(PIECE)
                if not octets:
                    break
                write_all(sink, octets)
            sink.flush()
            envelope.sink = sink
            return hand_over(self.taker, self._hook, envelope)
        finally:
            close_sink(sink)

    def _receipt(self, result: object) -> Reply:
        try:
            return receipt(self._hook, result, replies.OK, replies.MESSAGE_REFUSED)
        except TypeError as error:
            log.error("spool: %s", error)
            return replies.LOCAL_ERROR

    def settle(self, claim: Claim, send: Callable[[Envelope, bytes], None]) -> None:
        """Write down what has become of a message; ``send`` spools a report of who failed."""
        message = claim.message
        if message.failed and not message.sender:
            # Never to the null sender (RFC 5321 6.1).
            lost = [f"<{recipient.mailbox}>: {verdict}" for recipient, verdict in message.failed]
            log.warning("spool: dropped %s", pairs(message=message.id, recipients=",".join(lost)))
        elif message.failed:
            self._report(claim, send)
        message.failed = []
        if message.recipients:
            claim.save()
        else:
            claim.remove()

    def _report(self, claim: Claim, send: Callable[[Envelope, bytes], None]) -> None:
        """Have the sender told of those that failed, if it wants to know (RFC 3464, RFC 3461)."""
        from .dsn import Outcome, report, wanted  # not cheap, and seldom needed

        message = claim.message
        outcomes = [
            Outcome(recipient.mailbox, "failed", verdict, _text(recipient.parameters.get("ORCPT")))
            for recipient, verdict in message.failed
            if wanted(recipient.parameters, "failed")
        ]
        if not outcomes:
            return
        hostname = self._hostname or message.session.rules.hostname
        with claim.open() as original:
            octets = report(
                outcomes,
                sender=message.sender,
                reporting_mta=hostname,
                original=original,
                envelope_id=_text(message.parameters.get("ENVID")),
                arrival=message.arrived,
                full=str(message.parameters.get("RET")).upper() == "FULL",
            )
        session: Any = Origin(Peer("", 0), hostname, hostname)
        parameters: Dict[str, Any] = {} if octets.isascii() else {"BODY": "8BITMIME"}
        if not message.sender.isascii():
            parameters["SMTPUTF8"] = True
        envelope = Envelope(session, Mailbox(), parameters)
        envelope.id = new_id()
        envelope.recipients = [message.sender]
        envelope.recipient_parameters = [{}]
        send(envelope, octets)


def _text(value: object) -> Optional[str]:
    return value if isinstance(value, str) else None
