"""Serves the hooks of a handler object that was written for aiosmtpd, once they are synchronous.

::

    class Mine:
        def handle_RCPT(self, server, session, envelope, address, rcpt_options):
            ...
            return "250 OK"

    SMTPServer(("127.0.0.1", 8025), compat.handler(Mine())).serve_forever()

Nothing of aiosmtpd is imported. What would not work here is refused here, with a word on what does.
"""

from __future__ import annotations

import inspect
import re
from typing import Any, Dict, Optional, Type

from ..handler import SMTPHandler
from .adapter import (
    Adapter,
    Authenticator,
    AuthResult,
    Envelope,
    LoginPassword,
    Session,
    authenticate,
    deliver,
)

__all__ = ["AuthResult", "Envelope", "LoginPassword", "Session", "handler"]

_CONTEXT = ("server", "session", "envelope")
HOOKS = {
    "handle_HELO": (*_CONTEXT, "hostname"),
    "handle_EHLO": (*_CONTEXT, "hostname", "responses"),
    "handle_MAIL": (*_CONTEXT, "address", "mail_options"),
    "handle_RCPT": (*_CONTEXT, "address", "rcpt_options"),
    "handle_DATA": _CONTEXT,
    "handle_RSET": _CONTEXT,
    "handle_NOOP": (*_CONTEXT, "arg"),
    "handle_QUIT": _CONTEXT,
    "handle_VRFY": (*_CONTEXT, "address"),
    "handle_exception": ("error",),
}
"""The hooks, and what they are called with. An older ``handle_EHLO`` takes no responses."""
INSTEAD = {
    "handle_AUTH": "give authenticator=, or users= to the server",
    "handle_PROXY": "give proxy_protocol= to the server",
    "handle_STARTTLS": "give tls= to the server; session.ssl tells what came of it",
}
"""What has another place here."""
OF_A_MECHANISM = re.compile(r"auth_[A-Z0-9_]+")


def handler(obj: object, *, authenticator: Optional[Authenticator] = None) -> Type[SMTPHandler]:
    """Give the handler class that serves the hooks of ``obj``.

    Sessions run in threads of their own, and call the one ``obj`` at the same time. Raises
    ``ValueError`` for a hook that is a coroutine function, that there is not, or that takes other
    arguments. Without ``handle_DATA`` the server needs ``deliver=``.
    """
    check(obj)
    edits = takes(getattr(obj, "handle_EHLO", None), 5)
    members: Dict[str, Any] = {"target": obj, "edits_responses": edits}
    if getattr(obj, "handle_DATA", None) is not None:
        members["deliver"] = deliver
    if authenticator is not None:
        refuse_coroutine("authenticator", authenticator)
        members.update(
            authenticator=staticmethod(authenticator),
            authenticate=authenticate,
            mechanisms=("PLAIN", "LOGIN"),
        )
    return type(type(obj).__name__, (Adapter,), {"__doc__": type(obj).__doc__, **members})


def check(obj: object) -> None:
    """Raise ``ValueError`` for an object that cannot be served."""
    if isinstance(obj, type):
        raise ValueError(f"handler() takes an object: {obj.__name__}(), not the class")
    names = [name for name in dir(obj) if name.startswith("handle_")]
    if not names:
        raise ValueError(f"{obj!r} has no method handle_DATA, handle_RCPT or the like")
    for name in dir(obj):
        if OF_A_MECHANISM.fullmatch(name) and callable(getattr(obj, name)):
            raise ValueError(f"{name}: {INSTEAD['handle_AUTH']}")
    for name in names:
        hook = getattr(obj, name)
        if name not in HOOKS:
            others = f"the hooks are {', '.join(HOOKS)}"
            raise ValueError(f"{name} is no hook: {INSTEAD.get(name, others)}")
        if hook is None:
            continue  # as if it were not there
        refuse_coroutine(name, hook)
        count = len(HOOKS[name])
        if not takes(hook, count) and not (name == "handle_EHLO" and takes(hook, count - 1)):
            raise ValueError(f"{name} is to take the arguments ({', '.join(HOOKS[name])})")


def takes(hook: Any, count: int) -> bool:
    """Tell whether a hook can be called with so many arguments."""
    try:
        inspect.signature(hook).bind(*range(count))
    except TypeError:  # or it cannot be called at all
        return False
    return True


def refuse_coroutine(name: str, hook: Any) -> None:
    """Raise ``ValueError`` for what would have to be awaited."""
    for each in (hook, getattr(hook, "__call__", None)):  # noqa: B004
        if inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each):
            raise ValueError(f"{name} is asynchronous; there is no loop here: make it a plain def")
