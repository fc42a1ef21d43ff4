"""For code that was written against the standard library's ``smtpd``, which left with Python 3.12.

::

    from smtpd_sync.compat import asyncore, smtpd

Nothing is imported before it is asked for.
"""

from __future__ import annotations

from typing import Any

__all__ = ["AuthResult", "LoginPassword", "asynchat", "asyncore", "handler", "smtpd"]

NAMES = dict.fromkeys(("AuthResult", "LoginPassword", "handler"), "handlers")
"""What is in a module, and not one: name -> module."""
MODULES = ("asynchat", "asyncore", "smtpd")


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in NAMES and name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f".{NAMES.get(name, name)}", __name__)
    found = globals()[name] = getattr(module, name) if name in NAMES else module
    return found
