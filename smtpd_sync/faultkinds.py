"""The tables of scripted faults: where they strike, what they do, when.

Values and checks only. What a check gives is used; a ``ValueError`` says what it takes.
"""

from __future__ import annotations

import fnmatch
import os
import re
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterable,
    Mapping,
    NamedTuple,
    Optional,
    Pattern,
    Tuple,
    Union,
)

if TYPE_CHECKING:
    import sys

    if sys.version_info >= (3, 12):
        from typing import TypedDict
        from typing import Unpack as Unpack
    else:
        from typing_extensions import TypedDict
        from typing_extensions import Unpack as Unpack

    class When(TypedDict, total=False):
        """When a fault fires, as keywords; ``None`` is as if it were not there."""

        to: Union[str, Pattern[str], None]
        sender: Union[str, Pattern[str], None]
        helo: Union[str, Pattern[str], None]
        user: Union[str, Pattern[str], None]
        times: Optional[int]
        skip: Optional[int]
        chance: Optional[float]
        seed: Optional[int]


__all__ = ["COMMANDS", "CONDITIONS", "IN_SESSION", "KINDS", "Facts", "as_data", "text"]

Facts = Mapping[str, Iterable[str]]
"""What is known of a client at a command: ``helo``, ``user``, ``sender``, ``to``."""

IN_SESSION = ("helo", "user", "sender", "to")

COMMANDS: Dict[str, Tuple[str, ...]] = {
    "CONNECT": (),
    "HELO": ("helo",),
    "EHLO": ("helo",),
    "STARTTLS": ("helo",),
    "TLS": ("helo",),
    "AUTH": ("helo", "user"),
    "MAIL": ("helo", "user", "sender"),
    **dict.fromkeys(("RCPT", "DATA", "BDAT", "EOM", "RSET", "NOOP", "QUIT"), IN_SESSION),
}
"""Where a fault may strike -> what it can be matched with there. What the command itself brings
stands last. ``TLS`` is the handshake, ``EOM`` the end of mail data."""


# -- what a fault does ---------------------------------------------------------------------------


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _code(value: Any) -> int:
    if not _is_count(value, 400) or value > 599:
        raise ValueError(f"a reply code from 400 to 599, not {value!r}")
    return int(value)


def _seconds(value: Any) -> float:
    if not _is_number(value) or not 0 <= value <= 1_000_000:
        raise ValueError(f"seconds, from 0 to 1000000, not {value!r}")
    return float(value)


def _rate(value: Any) -> float:
    if not _is_number(value) or not 0 < value < float("inf"):
        raise ValueError(f"octets per second, more than 0, not {value!r}")
    return float(value)


def _true(value: Any) -> bool:
    if value is not True:
        raise ValueError(f"True, not {value!r}")
    return True


def _octets(value: Any) -> Optional[int]:
    if value is True:
        return None
    if not _is_count(value, 0):
        raise ValueError(f"how many octets are sent, or True for half of them, not {value!r}")
    return int(value)


def _keywords(value: Any) -> Tuple[str, ...]:
    words = value if isinstance(value, (list, tuple)) else ()
    if not words or not all(isinstance(w, str) and re.fullmatch("[A-Za-z0-9-]+", w) for w in words):
        raise ValueError(f"a list of EHLO keywords, such as ['STARTTLS', 'SIZE'], not {value!r}")
    return tuple(word.upper() for word in words)


def _certificate(value: Any) -> Any:
    """Give a context that no client should like: with a bad certificate, or (``True``) with none.

    Without one the handshake fails with an alert, whatever the client would accept.
    """
    if value is True:
        import ssl

        return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    from .tls import context_of

    return context_of(tuple(value) if isinstance(value, list) else value)


class Kind(NamedTuple):
    """What there is to know of a kind of fault."""

    check: Callable[[Any], Any]
    """Gives the value as it is used; ``ValueError`` says what it takes."""
    slot: str
    """Of the faults of one slot only the first that is due strikes."""
    commands: Tuple[str, ...]
    """Where it may strike; if that is one place, it need not be named."""
    anywhere: bool = False
    """Whether it strikes at all of them where none is named."""


REPLIED = tuple(name for name in COMMANDS if name != "TLS")

KINDS: Dict[str, Kind] = {
    "fail": Kind(_code, "outcome", REPLIED),
    "drop": Kind(_true, "outcome", tuple(COMMANDS)),
    "delay": Kind(_seconds, "delay", tuple(COMMANDS)),
    "stall": Kind(_rate, "stall", REPLIED, anywhere=True),
    # What answers a chunk is not known when its command is read; the last chunk is EOM.
    "truncate_reply": Kind(_octets, "cut", tuple(n for n in REPLIED if n != "BDAT")),
    "bad_certificate": Kind(_certificate, "certificate", ("TLS",)),
    "hide": Kind(_keywords, "hide", ("EHLO",)),
}


# -- when it strikes -----------------------------------------------------------------------------

LETTERS = {"a": re.ASCII, "i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}


def _pattern(value: Any) -> Pattern[str]:
    """Give what a value is searched for: a shell pattern, or a regular expression."""
    if isinstance(value, str):
        return re.compile(rf"\A{fnmatch.translate(value)}", re.IGNORECASE)
    if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
        return value
    if isinstance(value, Mapping) and {"re"} <= set(value) <= {"re", "flags"}:
        text, flags = value["re"], value.get("flags", "")
        if isinstance(text, str) and isinstance(flags, str) and set(flags) <= set(LETTERS):
            try:
                return re.compile(text, sum(LETTERS[letter] for letter in set(flags)))
            except re.error as error:
                raise ValueError(f"{text!r} is no regular expression: {error}") from None
    raise ValueError(
        f"a pattern such as 'bad@*', a re.Pattern or {{'re': ..., 'flags': 'i'}}, not {value!r}"
    )


def as_data(value: Any) -> Any:
    """Give a value of an entry as JSON can hold it; ``ValueError`` if it cannot."""
    if isinstance(value, re.Pattern):
        flags = "".join(letter for letter, flag in LETTERS.items() if value.flags & flag)
        return {"re": value.pattern, **({"flags": flags} if flags else {})}
    if isinstance(value, (list, tuple)):
        return [as_data(each) for each in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, (str, int, float, Mapping)):
        return value
    raise ValueError(f"{value!r} cannot be data; a certificate can, as a (certfile, keyfile) pair")


def _at_least(least: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if not _is_count(value, least):
            raise ValueError(f"a number from {least} on, not {value!r}")
        return int(value)

    return check


def _probability(value: Any) -> float:
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"a probability from 0 to 1, not {value!r}")
    return float(value)


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"a whole number, not {value!r}")
    return value


def text(value: Any) -> str:
    """Check the text of a reply."""
    if not isinstance(value, str):
        raise ValueError(f"a str, not {value!r}")
    return value


CONDITIONS: Dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(IN_SESSION, _pattern),
    "times": _at_least(1),
    "skip": _at_least(0),
    "chance": _probability,
    "seed": _seed,
}
