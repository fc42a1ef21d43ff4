"""The extensions of SMTP that are offered only when asked for: ``extensions=("DSN", ...)``.

An EHLO keyword promises that the application acts on what it brings; so these are off until
switched on. A row of your own is an `Extension` like these.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Tuple

from .command import Extension, Parameter, xtext

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["EXTENSIONS", "Extension", "Parameter", "deliver_by", "future_release", "mt_priority"]

_DATE_TIME = (
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]+)?"
    r"(?:Z|([+-])([0-9]{2}):([0-9]{2}))"
)
DATE_TIME = r"[0-9T:.Z+-]{20,35}"


def date_time(text: str) -> Optional[datetime]:
    """Read a date-time of RFC 3339; ``None`` if it is none."""
    from datetime import datetime, timedelta, timezone  # not cheap, and seldom needed

    match = re.fullmatch(_DATE_TIME, text, re.IGNORECASE | re.ASCII)
    if match is None:
        return None
    try:
        offset = timedelta(hours=int(match[8] or 0), minutes=int(match[9] or 0))
        zone = timezone(-offset if match[7] == "-" else offset)
        year, month, day, hour, minute, second = map(int, match.groups()[:6])
        return datetime(year, month, day, hour, minute, second, tzinfo=zone)
    except ValueError:
        return None


def _is_graphic(text: str) -> bool:
    return text.isascii() and text.isprintable()  # RFC 3461 4.2 and 4.4


def _envid(text: str) -> Optional[str]:
    decoded = xtext(text)
    return decoded if decoded and _is_graphic(decoded) and len(text) <= 100 else None


def _orcpt(text: str) -> Optional[str]:
    kind, _, address = text.partition(";")
    if kind.lower() == "utf-8":  # its address has an encoding of its own (RFC 6533 3)
        return text
    decoded = xtext(address)
    return f"{kind};{decoded}" if decoded and _is_graphic(decoded) else None


_NOTIFY = "SUCCESS|FAILURE|DELAY"

DSN = Extension(
    "DSN",
    rfc="RFC 3461",
    parameters=(
        Parameter("MAIL", "RET", "FULL|HDRS", 9),
        Parameter("MAIL", "ENVID", ".+", 107, _envid),
        Parameter("RCPT", "NOTIFY", f"NEVER|(?:{_NOTIFY})(?:,(?:{_NOTIFY}))*", 29),
        Parameter("RCPT", "ORCPT", "[A-Za-z0-9-]+;.+", 507, _orcpt),
    ),
)
REQUIRETLS = Extension(
    "REQUIRETLS",
    rfc="RFC 8689",
    parameters=(Parameter("MAIL", "REQUIRETLS", None, 11),),
    inside_tls=True,
)


def _rrvs(text: str) -> Optional[str]:
    return text if date_time(text.partition(";")[0]) else None


RRVS = Extension(
    "RRVS",
    rfc="RFC 7293",
    parameters=(Parameter("RCPT", "RRVS", f"{DATE_TIME}(?:;[CR])?", 50, _rrvs),),
)


def mt_priority(profile: str = "") -> Extension:
    """Offer MT-PRIORITY (RFC 6710), -9 to 9, with the name of a priority assignment policy."""
    return Extension(
        "MT-PRIORITY",
        profile,
        rfc="RFC 6710",
        parameters=(Parameter("MAIL", "MT-PRIORITY", "[1-9]|-[1-9]|0", 15),),
    )


def _by(minimum: int) -> Callable[[str], Optional[str]]:
    def check(text: str) -> Optional[str]:
        seconds, _, mode = text.partition(";")
        # "Return" makes no sense for a time that has passed, or is too short for us (RFC 2852 4).
        may_be = "R" not in mode.upper() or int(seconds) >= max(1, minimum)
        return text if may_be else None

    return check


def deliver_by(minimum: int = 0) -> Extension:
    """Offer DELIVERBY (RFC 2852); ``minimum``: the shortest time in seconds that we promise."""
    return Extension(
        "DELIVERBY",
        str(minimum or ""),
        rfc="RFC 2852",
        parameters=(Parameter("MAIL", "BY", "[+-]?[0-9]{1,9};[NR]T?", 17, _by(minimum)),),
    )


def future_release(max_interval: int) -> Extension:
    """Offer FUTURERELEASE (RFC 4865); ``max_interval``: the longest wait in seconds that we take.

    The envelope has HOLDFOR in seconds or HOLDUNTIL as date-time, never both.
    """
    if not 0 < max_interval < 1_000_000_000:
        raise ValueError(f"max_interval is 1 to 999999999 seconds, not {max_interval!r}")

    def latest() -> datetime:
        from datetime import datetime, timedelta, timezone

        return datetime.now(timezone.utc) + timedelta(seconds=max_interval)

    def hold_for(text: str) -> Optional[str]:
        return text if int(text) <= max_interval else None

    def hold_until(text: str) -> Optional[str]:
        until = date_time(text)
        return text if until and until <= latest() else None

    return Extension(
        "FUTURERELEASE",
        lambda: f"{max_interval} {latest():%Y-%m-%dT%H:%M:%SZ}",
        rfc="RFC 4865",
        parameters=(
            Parameter("MAIL", "HOLDFOR", "[1-9][0-9]{0,8}", 34, hold_for, "HOLDUNTIL"),
            Parameter("MAIL", "HOLDUNTIL", DATE_TIME, 34, hold_until, "HOLDFOR"),
        ),
    )


EXTENSIONS: Dict[str, Extension] = {
    extension.keyword: extension
    for extension in (DSN, REQUIRETLS, RRVS, mt_priority(), deliver_by())
}
"""Those that are switched on by name."""


def check_extensions(value: Any) -> Tuple[Extension, ...]:
    """Give the rows that ``extensions=`` stands for; ``ValueError`` for an unknown name."""
    if isinstance(value, (str, Extension)):
        raise ValueError(f"a sequence of names and Extensions, not {value!r}")
    found = []
    for item in value:
        extension = EXTENSIONS.get(item.upper()) if isinstance(item, str) else item
        if not isinstance(extension, Extension):
            raise ValueError(
                f"no extension {item!r}; by name: {', '.join(EXTENSIONS)}; by call: "
                "future_release(max_interval), deliver_by(minimum), mt_priority(profile); "
                "or an Extension of your own"
            )
        found.append(extension)
    return tuple(found)
