"""The log: one line for each session and each message, and the session's id on every record.

All goes to the logger ``smtpd_sync``. Nothing that a client sent can break a line or forge a value.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Callable

from .patterns import Pattern

if TYPE_CHECKING:
    import logging

__all__ = ["DEBUG", "INFO", "WARNING", "current_session", "log", "name_sessions", "pairs"]

DEBUG, INFO, WARNING = 10, 20, 30  # as logging has them


class Log:
    """The logger ``smtpd_sync``, fetched when it is first used: logging is slow to import."""

    def __getattr__(self, name: str) -> Any:
        """Give a method of the logger, and never come here again for it."""
        import logging

        method = getattr(logging.getLogger("smtpd_sync"), name)
        setattr(self, name, method)
        return method


log: logging.Logger
log = Log()  # type: ignore[assignment]

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
    import logging

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
