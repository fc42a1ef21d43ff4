"""The options of a server: where they come from, and how they change while it serves."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Tuple, Type, Union

from .crew import Crew
from .extensions import Extension
from .handler import SMTPHandler
from .limits import DEFAULT_LIMITS, Limits
from .options import OPTIONS
from .sending import SendAtOnce, send_at_once
from .settings import Settings, resolve

if TYPE_CHECKING:
    from .proxy import Networks
    from .settings import Keywords, Unpack
    from .tls import TLSSetting
    from .waker import Waker
    from .workers import Supervisor

__all__ = ["Configured"]

LMTP_AT_25 = "lmtp: port 25 is for SMTP (RFC 2033 5)"


class Configured:
    """The part of `SMTPServer` that has options."""

    hostname: str = ""
    banner: str = "ESMTP"
    tls: Optional[TLSSetting] = None
    implicit_tls: bool = False
    require_tls: bool = False
    users: Mapping[str, str] = {}
    mechanisms: Optional[Tuple[str, ...]] = None
    require_auth: bool = False
    auth_require_tls: bool = True
    extensions: Tuple[Union[str, Extension], ...] = ()
    ignore_parameters: bool = False
    sni: Mapping[str, TLSSetting] = {}
    proxy_protocol: Networks = ()
    xclient: Networks = ()
    lmtp: bool = False
    strict: bool = False
    strict_pipelining: bool = True
    bare_newline: str = "normalize"
    local_domains: Tuple[str, ...] = ()
    spool_directory: Optional[Union[str, os.PathLike[str]]] = None
    transcript: bool = False
    workers: int = 1
    cpu_affinity: Optional[str] = None
    limits: Limits = DEFAULT_LIMITS
    trace: bool = True

    crew: Crew
    settings: Settings
    send_at_once: Optional[SendAtOnce]
    RequestHandlerClass: Any
    _addresses: List[Tuple[Any, ...]]
    _handler: Type[SMTPHandler]
    _hooks: Dict[str, Any]
    _salt_key: bytes
    _batteries: List[Any]
    _serving: Optional[threading.Thread]
    _supervisor: Optional[Supervisor]
    waker: Waker

    def configure(self, **options: Unpack[Keywords]) -> None:
        """Set options and hooks, for the connections to come; as the constructor does."""
        if options.get("lmtp") and self._at_port_25:
            raise ValueError(LMTP_AT_25)
        if self._supervisor is not None:
            raise RuntimeError("workers: configure before the workers are there")
        if "workers" in options and self._serving is not None:
            raise RuntimeError("workers: configure them before the server serves")
        self._set_up(options)
        if self._serving is not None:
            self._start_battery()

    @property
    def _at_port_25(self) -> bool:
        return any(where[-1] == 25 for where in self._addresses)

    def _start_battery(self) -> None:
        """Have a battery begin what it does beside the sessions, once."""
        battery = self.settings.battery
        if battery is not None and not any(battery is each for each in self._batteries):
            self._batteries.append(battery)
            if hasattr(battery, "start"):
                battery.start()

    def _set_up(self, options: Mapping[str, Any]) -> None:
        inherited = {name: getattr(self._handler, name, getattr(self, name)) for name in OPTIONS}
        inherited.update({name: vars(self)[name] for name in OPTIONS if name in vars(self)})
        settings = resolve(self._handler, {**inherited, **self._hooks}, options, self._salt_key)
        vars(self).update({name: getattr(settings, name) for name in OPTIONS})
        self._hooks = settings.hooks
        self.RequestHandlerClass = settings.handler
        self.settings = settings
        self.crew.adapt(self.cpu_affinity == "adaptive")
        # Threads that keep to one core do not wake another.
        self.send_at_once = None if self.crew.adaptive else send_at_once()

    def reload_tls(self) -> None:
        """Read the certificates again, for the handshakes to come; sessions live on.

        Raises ``ValueError`` for a file that cannot be used, and keeps what it had; also where
        ``tls`` is a bare context, of which we do not know where it came from.
        """
        if self.tls is None or not (isinstance(self.tls, tuple) or callable(self.tls)):
            raise ValueError("reload_tls() needs tls= as a (certfile, keyfile) pair or a callable")
        self._set_up({})
        if self._supervisor is not None:
            self._supervisor.reloading = True
            self.waker.wake()
