"""Several batteries as one: each gets every message, in order, and the first refusal wins.

What stood before it keeps the message, and gets it again when the client tries again.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Tuple

from . import reply as replies
from .envelope import Envelope
from .hooks import HOOKS, battery_hooks, delivery_of, hand_over, hooks_of, receipt
from .reply import Reject, Reply
from .storage import AnySink, Sink, Tee, file_of

if TYPE_CHECKING:
    from .handler import SMTPHandler
    from .hooks import Receipts

__all__ = ["Several"]

REFUSED = replies.MESSAGE_REFUSED

SHARED = frozenset(name for name in HOOKS if name.startswith("validate_")) | {
    *("deliver", "deliver_message", "deliver_envelope", "open_sink"),
    *("worker_started", "session_ended"),
}
"""The hooks that more than one member may have."""


class Plain:
    """A battery of one callable."""

    def __init__(self, deliver: Any) -> None:
        self.deliver = deliver


class Several:
    """The battery that ``deliver=[...]`` makes of batteries and ``deliver`` callables."""

    def __init__(self, members: Sequence[Any]) -> None:
        self.members = [Plain(member) if callable(member) else member for member in members]
        if not members:
            raise ValueError("deliver=[] would take no mail: give callables or batteries")
        every = [name for member in self.members for name in battery_hooks(member)]
        for name in every:
            if every.count(name) > 1 and name not in SHARED:
                raise ValueError(f"deliver=[...]: only one of them may have the hook {name}")
        # However a member takes mail, the whole takes envelopes.
        self.hooks: Tuple[str, ...] = tuple({*every, "deliver_envelope"})
        """The hooks that `attach` gives."""
        self.one_process = any(getattr(each, "one_process", False) for each in self.members)
        """Whether a member keeps what other processes would not see."""

    def attach(self, handler: SMTPHandler) -> Attached:
        """Give what serves one connection."""
        return Attached(handler, self.members)

    def worker_started(self) -> None:
        """Tell all."""
        self._tell("worker_started")

    def start(self) -> None:
        """Start all that want it."""
        self._tell("start")

    def stop(self, timeout: float) -> None:
        """Stop all that want it."""
        self._tell("stop", timeout)

    def _tell(self, name: str, *arguments: Any) -> None:
        for member in self.members:
            if hasattr(member, name):
                getattr(member, name)(*arguments)


class Attached:
    """What serves one connection."""

    def __init__(self, handler: SMTPHandler, members: Sequence[Any]) -> None:
        self._handler = handler
        self._members: List[Tuple[Any, Any]] = []
        try:
            for member in members:
                attach = getattr(member, "attach", None)
                self._members.append((member, attach(handler) if attach else member))
        except BaseException:
            self.session_ended("failed")
            raise

    def __getattr__(self, name: str) -> Any:
        """Give a hook that asks each member that has it."""
        if name not in HOOKS:
            raise AttributeError(name)
        return functools.partial(self._ask, name)

    def _ask(self, name: str, *arguments: Any) -> Any:
        answer = None
        for member, attached in self._members:
            if name in hooks_of(member):
                result = getattr(attached, name)(*arguments)
                if result is False or (isinstance(result, Reply) and result.code >= 400):
                    return result
                answer = result if answer in (None, True) else answer
        return answer

    def session_ended(self, reason: str) -> None:
        """Tell all, and raise what the last that failed raised."""
        fault: Optional[Exception] = None
        for member, attached in self._members:
            if "session_ended" in hooks_of(member):
                try:
                    attached.session_ended(reason)
                except Exception as error:
                    fault = error
        if fault is not None:
            raise fault

    def open_sink(self, envelope: Envelope) -> AnySink:
        """Give each member its own file, and those that have none of their own one together."""
        sinks: List[AnySink] = []
        shared: Optional[Sink] = None
        try:
            for member, attached in self._members:
                if "open_sink" in hooks_of(member):
                    sinks.append(attached.open_sink(envelope))
                    continue
                shared = shared or self._handler.own_sink(envelope)
                sinks.append(shared)
        except BaseException:
            Tee(sinks).close()
            raise
        return Tee(sinks)

    def deliver_envelope(self, envelope: Envelope) -> Receipts:
        """Deliver to one after the other; in LMTP each recipient has a verdict of its own."""
        whole: Any = envelope.sink
        sinks = whole.sinks if isinstance(whole, Tee) else [whole] * len(self._members)
        lmtp = self._handler.settings.lmtp
        verdicts = [Reply(250, f"OK {envelope.id}")] * (len(envelope.recipients) if lmtp else 1)
        for (member, attached), sink in zip(self._members, sinks):
            envelope.sink = file_of(sink)
            name = delivery_of(hooks_of(member))
            try:
                results = hand_over(attached, name, envelope)
            except Reject as reject:
                results = reject.reply
            each = results if lmtp and isinstance(results, list) else [results] * len(verdicts)
            if len(each) != len(verdicts):
                raise TypeError(f"{name} gave {len(each)} receipts, not one for each recipient")
            verdicts = [
                verdict if verdict.code >= 400 else receipt(name, result, verdict, REFUSED)
                for verdict, result in zip(verdicts, each)
            ]
            if all(verdict.code >= 400 for verdict in verdicts):
                break
        envelope.sink = whole
        return list(verdicts) if lmtp else verdicts[0]
