"""What was caught, as tests ask for it: look, wait, assert. Threads deliver while others wait.

`Catch` holds the messages; `Catching` is the battery that puts them there, for any server.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Mapping, Optional, TypeVar, Union

from .caught import CaughtMail

if TYPE_CHECKING:
    import sys
    from typing import Pattern, TypedDict

    from .envelope import Envelope
    from .handler import SMTPHandler
    from .session import Session

    if sys.version_info >= (3, 12):
        from typing import Unpack
    else:
        from typing_extensions import Unpack

    Wanted = Union[str, Pattern[str]]

    class Filters(TypedDict, total=False):
        """Which messages are meant: all that is given must hold."""

        to: Wanted
        sender: Wanted
        subject: Wanted
        text: Wanted
        where: Callable[[CaughtMail], object]


__all__ = ["Catch", "Catching", "NoMail"]

Item = TypeVar("Item")
SHOWN = 20
ADDRESSES = frozenset({"to", "sender"})

FIELDS: Mapping[str, Callable[[CaughtMail], Sequence[str]]] = {
    "to": lambda mail: mail.recipients,
    "sender": lambda mail: (mail.sender,),
    "subject": lambda mail: (mail.subject,),
    "text": lambda mail: (mail.text, mail.html),
}
"""Filter -> the texts of a message of which one must have it."""


class NoMail(TimeoutError, AssertionError):
    """What was waited for did not come; the text lists what did."""


class View(Sequence[Item]):
    """A list to look at while it grows. Iteration is over what is there when it begins."""

    def __init__(self, items: List[Item]) -> None:
        self._items = items

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items[:])

    def __eq__(self, other: object) -> bool:
        return self._items == (other._items if isinstance(other, View) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._items)


class Catch:
    """Messages and the sessions they came in, in order.

    With ``max_messages`` the oldest go when more come, of both; with ``max_octets`` also when the
    messages, with recipients and dialogues, are larger together, but for the newest. Of each method
    below the filters are ``to=`` (one of the recipients), ``sender=``, ``subject=`` and ``text=``
    (or the HTML): a str is looked for in it, addresses in any case; a compiled pattern is searched
    for; and ``where=``, a callable that says of a message whether it is meant.
    """

    def __init__(
        self, max_messages: Optional[int] = None, max_octets: Optional[int] = None
    ) -> None:
        for name, most in (("max_messages", max_messages), ("max_octets", max_octets)):
            if most is not None and (not isinstance(most, int) or most < 1):
                raise ValueError(f"{name}: a number from 1 on, or None, not {most!r}")
        self._most = inf if max_messages is None else max_messages
        self._most_octets = inf if max_octets is None else max_octets
        self._octets = 0
        self._weights: List[int] = []  # of them, for each message
        self._messages: List[CaughtMail] = []
        self._sessions: List[Session] = []
        self.messages: View[CaughtMail] = View(self._messages)
        """What was caught, live, oldest first."""
        self.sessions: View[Session] = View(self._sessions)
        """The sessions that began or brought mail; of each, ``.transcript`` is what was said."""
        self.news = threading.Condition()
        """Notified when anything changes; its lock guards all of it."""
        self.changes = 0
        """How often anything has changed."""
        self.arrived = 0
        """How many messages came, those that have gone included."""
        self.cleared = 0
        """How often all was cleared."""

    # -- what comes and goes -----------------------------------------------------------------

    def keep(self, mail: CaughtMail) -> None:
        """Take a message in."""
        with self.news:
            self.arrived += 1
            self._messages.append(mail)
            self._weights.append(weight_of(mail) if self._most_octets < inf else 0)
            self._octets += self._weights[-1]
            while self._are_too_many():
                del self._messages[0]
                self._octets -= self._weights.pop(0)
            if not any(each is mail.session for each in reversed(self._sessions)):
                self._take(mail.session)  # it began before all was cleared
            self._changed()

    def began(self, session: Session) -> None:
        """Take a session in."""
        with self.news:
            self._take(session)
            self._changed()

    def clear(self) -> None:
        """Forget messages and sessions; the lists stay the same objects, and nothing is closed."""
        with self.news:
            self._messages.clear()
            self._octets = 0
            self._weights.clear()
            self._sessions.clear()
            self.cleared += 1
            self._changed()

    def _take(self, session: Session) -> None:
        self._sessions.append(session)
        if len(self._sessions) > self._most:
            del self._sessions[0]

    def _are_too_many(self) -> bool:
        number = len(self._messages)
        return number > self._most or (number > 1 and self._octets > self._most_octets)

    def _changed(self) -> None:
        self.changes += 1
        self.news.notify_all()

    # -- looking -----------------------------------------------------------------------------

    def find(self, **filters: Unpack[Filters]) -> List[CaughtMail]:
        """Give the messages that are there now."""
        return list(filter(sieve(filters), self.messages))

    def latest(self, **filters: Unpack[Filters]) -> Optional[CaughtMail]:
        """Give the newest message that is there now, or ``None``."""
        return next(filter(sieve(filters), reversed(list(self.messages))), None)

    # -- waiting; what fails is shown by pytest where it was called ----------------------------

    def wait(
        self, n: int = 1, *, timeout: float = 5.0, **filters: Unpack[Filters]
    ) -> List[CaughtMail]:
        """Wait until there are ``n`` messages, or more; those that are there already count.

        Raises `NoMail`, a ``TimeoutError`` and an ``AssertionError``, after ``timeout`` seconds.
        """
        __tracebackhide__ = True
        found = self._collect(n, timeout, filters)
        if len(found) < n:
            waited = f"waited {timeout:g} s for {counted(n)}{described(filters)}"
            raise NoMail(f"{waited}; {len(found)} came{self._listed()}")
        return found

    def wait_one(self, *, timeout: float = 5.0, **filters: Unpack[Filters]) -> CaughtMail:
        """Wait for a message; give the first."""
        __tracebackhide__ = True
        return self.wait(1, timeout=timeout, **filters)[0]

    def assert_sent(
        self, count: int = 1, *, within: float = 0.0, **filters: Unpack[Filters]
    ) -> List[CaughtMail]:
        """Assert that just so many messages came, now or ``within`` so many seconds; give them."""
        __tracebackhide__ = True
        found = self._collect(count, within, filters)
        if len(found) != count:
            wanted = f"{counted(count)}{described(filters)}"
            raise AssertionError(f"expected {wanted}; {len(found)} came{self._listed()}")
        return found

    def assert_none(self, *, within: float = 0.0, **filters: Unpack[Filters]) -> None:
        """Assert that no message came, and that none comes ``within`` so many seconds."""
        __tracebackhide__ = True
        if self._collect(1, within, filters):
            raise AssertionError(f"expected no mail{described(filters)}{self._listed()}")

    def _collect(self, n: int, seconds: float, filters: Mapping[str, Any]) -> List[CaughtMail]:
        is_meant = sieve(filters)
        due = monotonic() + seconds
        found: List[CaughtMail] = []
        seen = 0
        while True:
            with self.news:
                while len(found) < n and self.arrived == seen and (left := due - monotonic()) > 0:
                    self.news.wait(left)
                # What was cleared or dropped before anybody looked at it has not come.
                new = self._messages[max(0, len(self._messages) + seen - self.arrived) :]
                seen = self.arrived
            # Without the lock: who delivers does not wait for a filter.
            found.extend(filter(is_meant, new))
            if len(found) >= n or monotonic() >= due:
                return found

    def _listed(self) -> str:
        messages = list(self.messages)
        if not messages:
            return f"; nothing was caught, in {counted(len(self.sessions), 'session')}"
        lines = [f"\n  {mail.summary}" for mail in messages[-SHOWN:]]
        return f"; caught, oldest first:{''.join(lines)}"


class Catching:
    """The battery that puts mail into a `Catch`: ``SMTPServer(address, deliver=Catching(catch))``.

    The server's option ``transcript`` should be on.
    """

    one_process = True

    def __init__(self, catch: Catch) -> None:
        self._catch = catch

    def attach(self, handler: SMTPHandler) -> Catching:
        """A session begins."""
        self._catch.began(handler.session)
        return self

    def deliver_envelope(self, envelope: Envelope) -> None:
        """Catch a message."""
        self._catch.keep(CaughtMail(envelope))


def weight_of(mail: CaughtMail) -> int:
    """Give about the octets that it takes to keep a message."""
    return len(mail.raw) + sum(map(len, (*mail.recipients, *mail.session.transcript)))


def sieve(filters: Mapping[str, Any]) -> Callable[[CaughtMail], bool]:
    """Make one test of the filters; ``TypeError`` for what is none."""
    for name, wanted in filters.items():
        if name == "where" and callable(wanted):
            continue
        if name not in FIELDS:
            raise TypeError(f"{name!r} is no filter; the filters are: {', '.join(FIELDS)}, where")
        if not isinstance(wanted, (str, re.Pattern)):
            raise TypeError(f"{name}= takes a str or a compiled pattern, not {wanted!r}")

    def is_meant(mail: CaughtMail) -> bool:
        return all(
            bool(wanted(mail))
            if name == "where"
            else any(has(text, wanted, name in ADDRESSES) for text in FIELDS[name](mail))
            for name, wanted in filters.items()
        )

    return is_meant


def has(text: str, wanted: Wanted, any_case: bool) -> bool:
    """Tell whether a text has what is wanted in it."""
    if isinstance(wanted, str):
        return wanted.lower() in text.lower() if any_case else wanted in text
    return wanted.search(text) is not None


def counted(number: int, what: str = "message") -> str:
    """Write a number of things."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def described(filters: Mapping[str, Any]) -> str:
    """Write filters as they were given."""
    return "".join(f" {name}={wanted!r}" for name, wanted in filters.items())
