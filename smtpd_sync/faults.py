"""Scripted faults: a server that fails on purpose, always in the same way.

For tests of what sends mail: a plan says at which command something goes wrong, and a handler class
made of any other, by `Faults.handler`, does it.
"""

from __future__ import annotations

import threading
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Type,
    Union,
)

from .faultplan import Fault, entries_of, faults_of
from .handler import SMTPHandler
from .reply import Reply

if TYPE_CHECKING:
    import ssl

    from .command import Command
    from .faultkinds import Facts, Unpack, When
    from .tls import TLSSetting

__all__ = ["Fault", "Faults"]

BEAT = 0.05  # seconds between two pieces of a reply that drips
BROKEN_OFF = "broken off by a fault"


class Faults:
    """A plan of faults, for any number of servers; it may change while they serve.

    ``faults`` is a list of entries as `to_data` gives them, or JSON text of one; ``seed`` is that
    of the faults that strike by chance and name none. A method that adds a fault gives it back:
    ``fault.fired`` tells how often it fired, ``fault.remove()`` ends it, and so does the end of a
    block ``with plan.drop("EOM"):``. Of several that are due at once, the first that refuses or
    drops strikes, and so does the first of each other kind.

    When: ``to=``, ``sender=``, ``helo=`` and ``user=`` are shell patterns, in any case, or regular
    expressions to search for; ``skip=`` so many matches pass first, ``times=`` it fires so often,
    ``chance=`` with this probability. All is counted over all sessions. Raises ``ValueError`` for
    what cannot be.
    """

    def __init__(
        self, faults: Union[str, Iterable[Mapping[str, Any]]] = (), *, seed: int = 0
    ) -> None:
        self._faults = faults_of(entries_of(faults), seed)
        self._faults_lock = threading.Lock()
        self._seed = seed

    # -- what may go wrong -------------------------------------------------------------------

    def fail(self, command: str, code: int = 451, text: str = "", **when: Unpack[When]) -> Fault:
        """Refuse the command: no hook is asked, nothing is delivered.

        The text may begin with an enhanced status code, ``"5.1.1 no such user"``. 421 closes.
        """
        return self._add({"on": command, "fail": code, "text": text or None, **when})

    failing = fail  # how it reads best behind "with"

    def chance(
        self,
        probability: float,
        command: str,
        code: int = 451,
        text: str = "",
        **when: Unpack[When],
    ) -> Fault:
        """Refuse the command with this probability; the same seed makes the same choices."""
        when["chance"] = probability
        return self.fail(command, code, text, **when)

    def drop(self, command: str, **when: Unpack[When]) -> Fault:
        """Close the connection without a word; no hook is asked, nothing is delivered."""
        return self._add({"on": command, "drop": True, **when})

    def delay(self, command: str, seconds: float, **when: Unpack[When]) -> Fault:
        """Wait before the command is looked at; the end of the server ends it."""
        return self._add({"on": command, "delay": seconds, **when})

    def stall(
        self, bytes_per_second: float, command: Optional[str] = None, **when: Unpack[When]
    ) -> Fault:
        """Let the replies drip, those to one command or all; what the client sends is read."""
        return self._add({"on": command, "stall": bytes_per_second, **when})

    def truncate_reply(
        self, command: str, octets: Optional[int] = None, **when: Unpack[When]
    ) -> Fault:
        """Carry the command out, send only some octets of the reply, or half of it, and close.

        At ``EOM`` with 0 octets: the message is delivered, and the client does not know.
        """
        cut = True if octets is None else octets
        return self._add({"on": command, "truncate_reply": cut, **when})

    def bad_certificate(self, tls: Union[TLSSetting, None] = None, **when: Unpack[When]) -> Fault:
        """Show this certificate in the handshake, one that is expired or of another name.

        It is what the option ``tls`` takes. Without one the handshake fails with an alert.
        """
        return self._add({"bad_certificate": True if tls is None else tls, **when})

    def hide(self, *keywords: str, **when: Unpack[When]) -> Fault:
        """Leave these extensions out of the reply to EHLO. What is not offered still works."""
        return self._add({"hide": keywords, **when})

    def helo_only(self, **when: Unpack[When]) -> Fault:
        """Refuse EHLO with 502, as a server that knows HELO alone."""
        return self.fail("EHLO", 502, **when)

    def no_faults(self) -> None:
        """Remove them all."""
        with self._faults_lock:
            for fault in self._faults:
                fault.remove()

    # -- the plan ----------------------------------------------------------------------------

    def to_data(self) -> List[Dict[str, Any]]:
        """Give the plan as data; ``Faults(data)`` and JSON of it make the same again."""
        with self._faults_lock:
            return [fault.to_data() for fault in self._faults if not fault.removed]

    def handler(self, base: Type[SMTPHandler] = SMTPHandler) -> Type[SMTPHandler]:
        """Make a handler class that does as ``base`` does, where the plan does not say otherwise.

        ``SMTPServer(address, plan.handler(), deliver=deliver)``
        """
        members = {"plan": self, "__doc__": base.__doc__, "__module__": base.__module__}
        return type(base.__name__, (FaultyHandler, base), members)

    def _due(self, command: str, facts: Facts) -> Dict[str, Fault]:
        """Give what strikes at a command, by its slot, and count it."""
        found: Dict[str, Fault] = {}
        with self._faults_lock:
            for fault in self._faults:
                if fault.slot not in found and fault.is_due(command, facts):
                    found[fault.slot] = fault
        return found

    def _add(self, entry: Mapping[str, Any]) -> Fault:
        fault = Fault(entry, self._seed)
        with self._faults_lock:
            self._faults = [each for each in self._faults if not each.removed] + [fault]
        return fault


COMMAND_OF = {"connection": "CONNECT", "credentials": "AUTH", "message": "EOM", "LHLO": "EHLO"}
HELLO = frozenset({"HELO", "EHLO", "LHLO"})


class FaultyHandler(SMTPHandler):
    """Asks the plan before each answer. What the session refuses by itself comes to no plan."""

    plan: Faults

    def setup(self) -> None:
        """Take the connection over from the server."""
        self._roused = threading.Event()
        self._rate: Optional[float] = None
        self._certificate: Optional[ssl.SSLContext] = None
        self._broken_off = False
        super().setup()

    def answer(self, event: Command) -> Union[Reply, List[Reply]]:
        """Decide on an event, or let the plan decide."""
        due = self.plan._due(COMMAND_OF.get(event.verb, event.verb), self._facts(event))
        if "delay" in due:
            self._wait(due["delay"].value)
        if "stall" in due:
            self._rate = due["stall"].value
        outcome = due.get("outcome")
        reply = super().answer(event) if outcome is None else self._refuse(event, outcome.reply)
        if outcome is not None and outcome.kind == "drop":
            return self._break_off(event, reply, 0)
        if "hide" in due and isinstance(reply, Reply):
            reply = without(due["hide"].value, reply)
        if "cut" in due:
            return self._break_off(event, reply, due["cut"].value)
        return reply

    def _facts(self, event: Command) -> Facts:
        session, verb, argument = self.session, event.verb, event.argument
        envelope = session.envelope
        user = argument.username if verb == "credentials" else session.user
        return {
            "helo": (argument if verb in HELLO else session.helo,),
            "user": () if user is None else (user,),
            "sender": () if envelope is None else (envelope.sender,),
            "to": (argument,) if verb == "RCPT" else envelope.recipients if envelope else (),
        }

    def _refuse(self, event: Command, reply: Reply) -> Union[Reply, List[Reply]]:
        if event.verb == "message":
            # As a message that has something wrong with it: it is dropped, and counted as refused.
            return super().answer(event._replace(argument=reply))
        self.command = event
        return reply

    def _break_off(
        self, event: Command, reply: Union[Reply, List[Reply]], octets: Optional[int]
    ) -> Reply:
        self._hanging_up = self._broken_off = True
        self._reason = BROKEN_OFF
        if isinstance(reply, Reply):
            each = self.settings.lmtp and event.verb == "message"  # RFC 2033 4.2
            reply = [reply] * (len(self.envelope.recipients) if each else 1)
        return Fragment(reply, octets)

    def finish(self) -> None:
        """Close the connection; where it breaks off, without TLS's word of goodbye."""
        if self._broken_off:
            self._stream = self.request
        super().finish()

    # -- time --------------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        if not self.server.stopping:
            self._roused.wait(seconds)

    def stop(self) -> None:
        """The server stops: no delay goes on."""
        super().stop()
        self._roused.set()

    def _send(self, data: bytes) -> None:
        rate = self._rate
        if rate is None or not data:
            super()._send(data)
            return
        self._rate = None
        size = max(1, int(rate * BEAT))
        for start in range(0, len(data), size):
            if start:
                self._wait(size / rate)
            super()._send(data[start : start + size])
            if self._reason == "lost":
                return  # nobody is there to wait for the rest

    # -- TLS ---------------------------------------------------------------------------------

    def _start_tls(self) -> bool:
        due = self.plan._due("TLS", {"helo": (self.session.helo,)})
        if "delay" in due:
            self._wait(due["delay"].value)
        if "outcome" in due:
            self._broken_off, self._reason = True, BROKEN_OFF
            self.session.close()
            return False
        self._certificate = due["certificate"].value if "certificate" in due else None
        return super()._start_tls()

    def _context(self) -> ssl.SSLContext:
        return self._certificate or super()._context()


class Fragment(Reply):
    """Replies of which only the first octets are sent."""

    __slots__ = ("_octets", "_whole")

    def __init__(self, whole: Sequence[Reply], octets: Optional[int]) -> None:
        super().__init__(whole[-1].code)
        self._whole = whole
        self._octets = octets

    def render(self, extended: bool = True) -> bytes:
        """Give so many of the octets, ``None``: half of them."""
        data = b"".join(reply.render(extended) for reply in self._whole)
        return data[: len(data) // 2 if self._octets is None else self._octets]


def without(keywords: Sequence[str], reply: Reply) -> Reply:
    """Give the reply to EHLO without some of its keywords."""
    name, *lines = reply.text.split("\n")
    kept = [line for line in lines if line.split(" ")[0].upper() not in keywords]
    return Reply(reply.code, "\n".join((name, *kept)))
