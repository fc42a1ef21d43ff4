"""Caught mail: messages that a test looks at, and waiting for those that are to come."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence as AbstractSequence
from datetime import datetime, timezone
from functools import cached_property
from html.parser import HTMLParser
from time import monotonic
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Pattern, Sequence, Union

from .reading import Attachment, headers, hidden, leaves, parsed, parts, text_of

if TYPE_CHECKING:
    import sys
    from email.message import EmailMessage

    from .envelope import TLS, Envelope, Parameters, Peer
    from .syntax import Mailbox

    if sys.version_info >= (3, 12):
        from typing import TypedDict
        from typing import Unpack as Unpack
    else:
        from typing_extensions import TypedDict
        from typing_extensions import Unpack as Unpack

    Wanted = Union[str, Pattern[str], None]

    class Filters(TypedDict, total=False):
        """Which messages are meant: all these hold. ``None`` is as if it were not there."""

        to: Wanted
        sender: Wanted
        subject: Wanted
        text: Wanted
        where: Optional[Callable[[CaughtMessage], Any]]


__all__ = ["CaughtMail", "CaughtMessage", "NoMessage"]

SHOWN = 20  # messages that an error lists


class NoMessage(TimeoutError, AssertionError):
    """A message did not come in time; the text lists those that did."""


class CaughtMessage:
    """One message: its envelope as it was, and its content as it was sent.

    What has to be parsed is parsed when it is asked for, and nothing that was sent raises.
    """

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self.id: str = envelope.id
        """Its name in the 250."""
        self.sender: Mailbox = envelope.sender
        """The reverse-path; ``""`` is the null one."""
        self.recipients: List[Mailbox] = list(envelope.recipients)
        """All of them, in order: also those in no header field."""
        self.sender_parameters: Parameters = dict(envelope.sender_parameters)
        """Parameters of MAIL, such as ``{"SIZE": "512"}``."""
        self.recipient_parameters: List[Parameters] = list(envelope.recipient_parameters)
        """Parameters of each RCPT."""
        self.raw: bytes = envelope.content
        """The mail data as it was sent; nothing is added to it."""
        self.peer: Peer = envelope.peer
        """The client: ``.address`` and ``.port``."""
        self.helo: str = envelope.helo
        """The name that the client gave."""
        self.user: Optional[str] = envelope.user
        """Who it authenticated as."""
        self.tls: Optional[TLS] = envelope.tls
        """The TLS that it came over: ``.version`` and ``.cipher``."""
        self.received_at: datetime = datetime.now(timezone.utc)
        """When all of it had come."""

    @property
    def session(self) -> List[str]:
        """The lines of its session so far: ``"C: QUIT"``, ``"S: 221 2.0.0 Bye"``."""
        return self._envelope.session.transcript

    @cached_property
    def message(self) -> EmailMessage:
        """It, parsed."""
        return parsed(self.raw)

    @cached_property
    def headers(self) -> Dict[str, str]:
        """Its header fields, decoded: name in lower case -> value; of several, the first."""
        found: Dict[str, str] = {}
        for name, value in headers(self.message):
            found.setdefault(name.lower(), value)
        return found

    @property
    def subject(self) -> str:
        """Its ``Subject``, decoded; ``""`` where it has none."""
        return self.headers.get("subject", "")

    @cached_property
    def text(self) -> str:
        """Its plain text, with LF line ends; ``""`` where it has none."""
        return self._body("text/plain")

    @cached_property
    def html(self) -> str:
        """Its HTML, with LF line ends; ``""`` where it has none."""
        return self._body("text/html")

    def _body(self, kind: str) -> str:
        for part in leaves(self.message):
            if part.get_content_type() == kind and not part.is_attachment():
                return text_of(part).replace("\r\n", "\n")
        return ""

    @cached_property
    def attachments(self) -> List[Attachment]:
        """What it has beside its text: ``.name``, ``.type`` and ``.content`` of each."""
        return parts(self.message)[1]

    @property
    def bcc(self) -> List[Mailbox]:
        """The recipients that no ``To`` or ``Cc`` names."""
        return hidden(self.recipients, self.message)

    def links(self) -> List[str]:
        """Give the addresses of its links, those of the text first, each once."""
        found = [match[0].rstrip(".,;:!?'\")]>") for match in _LINK.finditer(self.text)]
        return list(dict.fromkeys([*found, *Links(self.html).found]))

    def matches(
        self,
        to: Wanted = None,
        sender: Wanted = None,
        subject: Wanted = None,
        text: Wanted = None,
        where: Optional[Callable[[CaughtMessage], Any]] = None,
    ) -> bool:
        """Tell whether it is meant: a str is a part of it, a pattern is searched for.

        ``to`` is one of the recipients; addresses are compared in any case. ``text`` is in its
        plain text or its HTML.
        """
        return (
            (to is None or any(_holds(each, to, any_case=True) for each in self.recipients))
            and (sender is None or _holds(self.sender, sender, any_case=True))
            and (subject is None or _holds(self.subject, subject))
            and (text is None or _holds(self.text, text) or _holds(self.html, text))
            and (where is None or bool(where(self)))
        )

    def __str__(self) -> str:
        recipients = ", ".join(f"<{recipient}>" for recipient in self.recipients)
        return f"<{self.sender}> -> {recipients}: {self.subject!r}"

    def __repr__(self) -> str:
        return f"<CaughtMessage {self}>"


_LINK = re.compile(r"\bhttps?://[^\s<>\"]+", re.IGNORECASE)


class Links(HTMLParser):
    """Finds what an HTML text links to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: List[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """Note the address of a link."""
        if tag == "a":
            self.found.extend(value for name, value in attrs if name == "href" and value)


def _holds(whole: str, wanted: Union[str, Pattern[str]], any_case: bool = False) -> bool:
    if isinstance(wanted, str):
        return wanted.lower() in whole.lower() if any_case else wanted in whole
    return wanted.search(whole) is not None


class Messages(AbstractSequence):  # type: ignore[type-arg]
    """The messages that were caught, as they are now: what comes and goes is seen at once."""

    def __init__(self, kept: List[CaughtMessage]) -> None:
        self._kept = kept

    def __getitem__(self, index: Any) -> Any:
        return self._kept[index]

    def __len__(self) -> int:
        return len(self._kept)

    def __eq__(self, other: object) -> bool:
        return list(self._kept) == (list(other) if isinstance(other, AbstractSequence) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._kept)


class CaughtMail:
    """What was caught: many threads add to it, and many may wait for it."""

    def __init__(self, most: Optional[int] = None) -> None:
        if most is not None and most < 1:
            raise ValueError(f"max_messages: a number from 1 on, or None, not {most!r}")
        self._most = most
        self._kept: List[CaughtMessage] = []
        self._change = threading.Condition()
        self.changes = 0
        """Grows with each change; see `wait_for_change`."""

    @property
    def messages(self) -> Sequence[CaughtMessage]:
        """The messages, the oldest first: a live sequence."""
        return Messages(self._kept)

    def add(self, message: CaughtMessage) -> None:
        """Keep a message; beyond the most that are kept the oldest goes."""
        with self._change:
            self._kept.append(message)
            if self._most is not None:
                del self._kept[: -self._most]
            self._changed()

    def clear(self) -> None:
        """Forget all messages, in place."""
        with self._change:
            self._kept.clear()
            self._changed()

    def _changed(self) -> None:
        self.changes += 1
        self._change.notify_all()

    def wait_for_change(self, seen: int, timeout: Optional[float] = None) -> bool:
        """Wait until `changes` is not ``seen`` any more; ``False`` if it still is in the end."""
        with self._change:
            return self._change.wait_for(lambda: self.changes != seen, timeout)

    def find(self, **filters: Unpack[Filters]) -> List[CaughtMessage]:
        """Give the messages that are meant, see `CaughtMessage.matches`; the oldest first."""
        with self._change:
            kept = list(self._kept)
        return [message for message in kept if message.matches(**filters)]

    def latest(self, **filters: Unpack[Filters]) -> Optional[CaughtMessage]:
        """Give the last message that is meant, or ``None``."""
        found = self.find(**filters)
        return found[-1] if found else None

    def wait(
        self, n: int = 1, *, timeout: float = 5.0, **filters: Unpack[Filters]
    ) -> List[CaughtMessage]:
        """Wait until ``n`` messages that are meant are there, and give all of them.

        Those that came before count. Raises `NoMessage` after ``timeout`` seconds.
        """
        if n < 1:
            raise ValueError("n: a number from 1 on; assert_none() waits for no message")
        end = monotonic() + timeout
        while True:
            seen = self.changes
            found = self.find(**filters)
            if len(found) >= n:
                return found
            if not self.wait_for_change(seen, max(0.0, end - monotonic())):
                wanted = f"waited {timeout:g} s for {_count(n)}{_meant(filters)}"
                raise NoMessage(f"{wanted}, of which {len(found)} came; {self._there()}")

    def wait_one(self, *, timeout: float = 5.0, **filters: Unpack[Filters]) -> CaughtMessage:
        """Wait for a message that is meant, and give the first of them."""
        return self.wait(timeout=timeout, **filters)[0]

    def assert_sent(
        self, n: Optional[int] = None, **filters: Unpack[Filters]
    ) -> List[CaughtMessage]:
        """Give the messages that are meant; ``AssertionError`` unless there are ``n``, or one."""
        found = self.find(**filters)
        if len(found) != n if n is not None else not found:
            wanted = "a message" if n is None else _count(n)
            meant = _meant(filters)
            raise AssertionError(f"wanted {wanted}{meant}, found {len(found)}; {self._there()}")
        return found

    def assert_none(self, *, within: float = 0.0, **filters: Unpack[Filters]) -> None:
        """Watch for so many seconds that no message comes which is meant; none may be there."""
        end = monotonic() + within
        while True:
            seen = self.changes
            found = self.find(**filters)
            if found:
                raise AssertionError(f"wanted no message{_meant(filters)}; {self._there()}")
            if not self.wait_for_change(seen, max(0.0, end - monotonic())):
                return

    def _there(self) -> str:
        kept = self.find()
        if not kept:
            return "nothing was caught"
        lines = [f"\n  {message}" for message in kept[-SHOWN:]]
        more = f"\n  and {len(kept) - SHOWN} before" if len(kept) > SHOWN else ""
        return f"caught:{''.join(lines)}{more}"


def _count(number: int) -> str:
    return "1 message" if number == 1 else f"{number} messages"


def _meant(filters: Filters) -> str:
    given: Dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
    if not given:
        return ""
    shown = (value.pattern if isinstance(value, re.Pattern) else value for value in given.values())
    return " with " + ", ".join(f"{name} {value!r}" for name, value in zip(given, shown))
