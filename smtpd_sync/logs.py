"""The log: one line for each session and each message, and the session's id on every record.

All goes to the logger ``smtpd_sync``. Nothing that a client sent can break a line or forge a value.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any, Callable

from .patterns import Pattern

__all__ = ["current_session", "log", "name_sessions", "pairs"]

log = logging.getLogger("smtpd_sync")

current_session: ContextVar[str] = ContextVar("smtp_session", default="-")
"""The id of the session that the thread serves."""

_PLAIN = Pattern(r"[!#-&(-<>-\[\]-~]+")  # printable, but for space, quotes, = and backslash


class RecordFactory:
    """Makes log records with an attribute ``smtp_session``, for every logger of the process."""

    def __init__(self, inner: Callable[..., logging.LogRecord]) -> None:
        self._inner = inner

    def __call__(self, *arguments: Any, **keywords: Any) -> logging.LogRecord:
        record = self._inner(*arguments, **keywords)
        record.smtp_session = current_session.get()
        return record


def name_sessions() -> None:
    """Have the id of the session put on each record that is logged in its thread, by anybody."""
    factory = logging.getLogRecordFactory()
    if not isinstance(factory, RecordFactory):
        logging.setLogRecordFactory(RecordFactory(factory))


def pairs(**values: object) -> str:
    """Write ``key=value`` pairs on one line; what is not plain is quoted, ``None`` is ``-``."""
    return " ".join(f"{key}={_value(value)}" for key, value in values.items())


def _value(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else ascii(text)
