"""The face of tcllib's ``smtpd``: one server of the module, driven by functions.

For scripts that want no objects: ``configure``, ``cget``, ``start``, ``stop`` and ``stopped``.
"""

from __future__ import annotations

import threading
from typing import Any, Dict, Optional

from .hooks import HOOKS
from .options import OPTIONS, check_options
from .server import SMTPServer

__all__ = ["cget", "configure", "start", "stop", "stopped"]

ALIASES = {"deliver_mime": "deliver_message"}  # tcllib's deliverMIME

stopped = threading.Event()
"""Set while no server runs: before the first `start` and after `stop`."""
stopped.set()


class ModuleServer(SMTPServer):
    """Sets `stopped` when all is over, also where `stop` could only ask for it."""

    def _close(self) -> None:
        global _server
        if _server is self:
            _server = None
            stopped.set()  # before stop() returns, which waits for what follows
        super()._close()


_lock = threading.RLock()  # a signal handler may come in between
_settings: Dict[str, Any] = {}
_server: Optional[SMTPServer] = None


def _known(name: str) -> str:
    name = ALIASES.get(name, name)
    if name not in OPTIONS and name not in HOOKS:
        valid = ", ".join((*OPTIONS, *HOOKS, *ALIASES))
        raise ValueError(f"unknown option {name!r}; the options are: {valid}")
    return name


def configure(**options: Any) -> Dict[str, Any]:
    """Set options and hooks; give all of them with their values.

    While the server runs they apply to new connections. A hook set to ``None`` is taken away.
    Raises ``ValueError`` for an unknown option or a value that cannot be, and sets none.
    """
    changes = {_known(name): value for name, value in options.items()}
    checked = check_options({name: value for name, value in changes.items() if name in OPTIONS})
    for name, value in changes.items():
        if name in HOOKS and value is not None and not callable(value) and name != "deliver":
            raise ValueError(f"{name} takes a callable, not {value!r}")
    with _lock:
        settings = {**_settings, **changes, **checked}
        if _server is not None:
            _server.configure(**settings)
        _settings.update(settings)
        return {name: _value(name) for name in (*OPTIONS, *HOOKS)}


def cget(option: str) -> Any:
    """Give the value of one option or hook; ``ValueError`` for an unknown one."""
    return _value(_known(option))


def _value(name: str) -> Any:
    default = OPTIONS[name].default if name in OPTIONS else None
    return _settings.get(name, default)


def start(address: str = "127.0.0.1", port: int = 8025) -> SMTPServer:
    """Start serving in the background; give the server, whose ``port`` is the real one.

    Raises ``RuntimeError`` if it runs already, ``OSError`` if the address cannot be bound, and
    ``ValueError`` if no ``deliver`` hook was configured.
    """
    global _server
    with _lock:
        if _server is not None:
            raise RuntimeError(f"the server runs already, at {_server.address}; stop() it first")
        settings = {name: value for name, value in _settings.items() if value is not None}
        _server = server = ModuleServer((address, port), **settings)
        stopped.clear()
        try:
            return server.start()
        except BaseException:
            server.stop()
            raise


def stop(timeout: float = 10) -> None:
    """Stop the server as `SMTPServer.stop` does; nothing if none runs."""
    server = _server  # no lock: a signal handler may call this
    if server is not None:
        server.stop(timeout)
