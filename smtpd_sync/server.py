"""The server: listens, gives each client a thread and a handler, reaps the late, stops in order.

Knows sockets and threads; what is said on a connection is the handler's and the session's.
"""

from __future__ import annotations

import os
import socket
import socketserver
import threading
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple, Type, Union

from .accepting import Accepting
from .configured import LMTP_AT_25, Configured
from .crew import Crew
from .crowd import Crowd, reaper_period
from .handler import SMTPHandler
from .limits import Limits
from .listening import Address, Listener, listen, nothing
from .logs import WARNING, log, name_sessions, pairs
from .stats import Counters
from .storage import Storage
from .waker import Waker

if TYPE_CHECKING:
    from .settings import Keywords, Unpack
    from .workers import Supervisor

__all__ = ["SMTPServer"]

FAREWELL = 1.0  # for threads whose connection was cut at the deadline
TROUBLES = ("turned_away", "turned_away_by_address", "failed_accepts")


class SMTPServer(Configured, Accepting):
    """An SMTP server with one thread for each connection.

    ``address`` is ``(host, port)``, the path of a Unix socket, a socket that listens already, or a
    list of those; the sockets are bound and listening when the constructor returns.
    ``options`` are those of the table `smtpd_sync.options.OPTIONS`; each is also a class attribute,
    of the server or of the handler, that a subclass may set. ``hooks`` are callables named after
    the methods of `SMTPHandler`. Raises ``ValueError`` for an option or hook that cannot be, and
    ``OSError`` for an address that cannot be bound.
    """

    cut_off_level = WARNING
    """How it is logged that clients did not go in time, as `logging` has it."""

    def __init__(
        self,
        address: Union[Address, List[Address]],
        handler: Type[SMTPHandler] = SMTPHandler,
        **options: Unpack[Keywords],
    ) -> None:
        self._handler = handler
        self._hooks: Dict[str, Any] = {}
        self._batteries: List[Any] = []
        self._salt_key = os.urandom(32)
        self.crew = Crew(self.process_request_thread)
        self._set_up(options)
        name_sessions()
        self._supervisor: Optional[Supervisor] = None
        self._control: Optional[socket.socket] = None
        self.crowd = Crowd(self.crew)
        self.storage = Storage()
        self.counters = Counters()
        self._told = self.counters.snapshot()
        self._last_error: Optional[Exception] = None
        self._change = threading.Lock()
        self._serving: Optional[threading.Thread] = None
        self._deadline = float("inf")
        self._over = threading.Event()
        self.stopping = False
        """Whether `stop` was called."""
        self.waker = Waker()
        """Ends the wait for clients, to look at what has changed, such as `stopping`."""
        try:
            self._listeners = listen(address)
        except BaseException:
            self._listeners = []
            self._close()
            raise
        names = [listener.socket.getsockname() for listener in self._listeners]
        self._addresses = [(each,) if isinstance(each, str) else tuple(each[:2]) for each in names]
        if self.lmtp and self._at_port_25:
            self._close()
            raise ValueError(LMTP_AT_25)
        self._address = self._addresses[0]
        self.socket = self._listeners[0].socket
        self.address_family = self.socket.family
        handler_class: Any = self.RequestHandlerClass
        socketserver.BaseServer.__init__(self, self.socket.getsockname(), handler_class)

    # -- where it listens --------------------------------------------------------------------

    @property
    def addresses(self) -> List[Tuple[Any, ...]]:
        """Where it listens: ``(host, port)`` of each socket, ``(path,)`` of a Unix socket."""
        return list(self._addresses)

    @property
    def address(self) -> Tuple[Any, ...]:
        """The first of `addresses`; the port is the real one where 0 was asked for."""
        return self._address

    @property
    def port(self) -> int:
        """The port of `address`; ``ValueError`` where that is a Unix socket."""
        if len(self._address) < 2:
            raise ValueError("a Unix socket has no port")
        return int(self._address[1])

    # -- serving -----------------------------------------------------------------------------

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve until `stop`, or an exception such as ``KeyboardInterrupt``; then drain.

        ``poll_interval`` is that of ``socketserver`` and not needed: nothing is polled.
        """
        with self._change:
            current = threading.current_thread()
            began = self._serving is not None
            if self._serving not in (None, current) or (began and self._over.is_set()):
                raise RuntimeError("a server serves once; make a new one")
            self._serving = current
        if self._over.is_set():
            return  # a signal came first
        try:
            if self.workers > 1:
                from .workers import Supervisor  # seldom needed

                self._supervisor = Supervisor(self, self.workers)
                self._supervisor.run()
            else:
                self._serve()
        finally:
            self.stopping = True
            self._deadline = min(self._deadline, monotonic() + 10)
            try:
                self._drain()
            finally:
                self._tell_troubles()
                self._close()

    def _serve(self) -> None:
        """Take clients until `stop`."""
        self._start_battery()
        threading.Thread(target=self._reap, name="smtpd-reaper", daemon=True).start()
        self._accept()

    def become_worker(self, number: int, limits: Limits, control: socket.socket) -> None:
        """Serve as one of several processes, in a fork of the one that was to serve."""
        self._supervisor = None
        self._control = control
        self.workers = 1
        self._serving = threading.current_thread()
        self.waker.close()  # the supervisor has the other
        self.waker = Waker()
        # The path of a Unix socket is the supervisor's to remove.
        self._listeners = [Listener(each.socket, nothing) for each in self._listeners]
        # No other setting is worked out anew: who gave up privileges cannot read its key again.
        self.limits = self.settings.limits = limits
        self._told = self.counters.snapshot()
        self.crew.stay()  # the supervisor chose a core
        self.send_at_once = None
        hooks = object.__new__(self.settings.handler)
        hooks.server = self
        hooks.worker_started()
        try:
            self._serve()
        finally:
            self.stopping = True
            self._drain()
            self._close()

    def obey(self) -> None:
        """Do what the supervisor says."""
        from .workers import obey

        assert self._control is not None, "this is a worker"
        obey(self, self._control)

    def start(self) -> SMTPServer:
        """Serve in a background thread; give the server back.

        With ``workers`` that is a ``ValueError``: a process with threads must not fork.
        """
        if self.workers > 1:
            raise ValueError("workers: start() serves in a thread; use serve_forever()")
        thread = threading.Thread(target=self.serve_forever, name="smtpd-accept", daemon=True)
        with self._change:
            if self._serving is not None or self._over.is_set():
                raise RuntimeError("a server serves once; make a new one")
            self._serving = thread
        thread.start()
        return self

    def stop(self, timeout: float = 10) -> None:
        """Stop: refuse new clients, say 421 to idle ones, let transactions and deliveries end.

        What lives after ``timeout`` seconds is cut off. Returns when all is over; but called in a
        hook, a signal handler or the serving thread it only asks for it, and `serve_forever`
        drains before it returns. A second call can only shorten the time.
        """
        self._deadline = min(self._deadline, monotonic() + timeout)
        self.stopping = True
        self.waker.wake()
        current = threading.current_thread()
        if self._serving is None:
            self._close()
        elif current is not self._serving and current not in self.crew.busy:
            self._over.wait()

    def __enter__(self) -> SMTPServer:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.stop()

    def shutdown(self) -> None:
        """As `stop`: the name that ``socketserver`` has for it."""
        self.stop()

    def server_close(self) -> None:
        """As `stop`: ``socketserver`` would wait for an idle client for ever."""
        self.stop()

    def stats(self) -> Dict[str, int]:
        """Give what the server has done, as `smtpd_sync.stats.COUNTERS` has it, and what it holds.

        That are ``sessions``, the clients served now, and ``memory`` and ``spool``, the octets of
        mail data that wait now.
        """
        if self._supervisor is not None:
            return self._supervisor.counts()
        return {**self.counters.snapshot(), **self._gauges()}

    def _gauges(self) -> Dict[str, int]:
        return {
            "sessions": len(self.crowd.sessions),
            "memory": self.storage.memory.used,
            "spool": self.storage.spool.used,
        }

    # -- deadlines and the end ---------------------------------------------------------------

    def _reap(self) -> None:
        """Look at all deadlines now and then, in one thread, and tell of troubles."""
        while not self._over.wait(reaper_period(self.limits)):
            self.crowd.reap(self.limits)
            self.counters.show(self._gauges())
            self._tell_troubles()

    def _tell_troubles(self) -> None:
        """Log, in one line, how many clients got no session since it was told last."""
        counts, told = self.counters.snapshot(), self._told
        self._told = counts
        news = {name: counts[name] - told[name] for name in TROUBLES}
        if any(news.values()):
            log.warning("clients had to go: %s", pairs(**news, last_error=self._last_error))

    def _drain(self) -> None:
        """Wait for the sessions to end, until the deadline; then cut them off."""
        self._close_listeners()
        if self._supervisor is not None:
            self._supervisor.end(lambda: self._deadline)
        self.crowd.stop()
        if not self.crowd.wait(self._due):
            log.log(self.cut_off_level, "stop: %d sessions are cut off", self.crowd.abort())
            farewell = monotonic() + FAREWELL
            self.crowd.wait(lambda: farewell)
        self.crew.close()
        for battery in self._batteries:
            if hasattr(battery, "stop"):
                try:
                    battery.stop(max(0.0, self._deadline - monotonic()))
                except Exception:
                    log.exception("%r could not stop", battery)

    def _due(self) -> float:
        """Give the end of the time to drain, which the supervisor may shorten."""
        if self._control is not None:
            self.obey()
        return self._deadline

    def _close_listeners(self) -> None:
        # Once: by the second time the path of a Unix socket may be another server's.
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.socket.close()
            listener.release()

    def _close(self) -> None:
        self._close_listeners()
        self.waker.close()
        self._over.set()
