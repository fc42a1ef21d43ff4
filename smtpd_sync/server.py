"""The server: listens, gives each client a thread and a handler, reaps the late, stops in order.

Knows sockets and threads; what is said on a connection is the handler's and the session's.
"""

from __future__ import annotations

import os
import selectors
import socket
import socketserver
import threading
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Tuple, Type, Union

from . import reply as replies
from .crowd import Crowd, reaper_period
from .extensions import Extension
from .handler import SMTPHandler
from .limits import DEFAULT_LIMITS, Limits
from .listening import Address, listen, peer_of
from .logs import log, name_sessions, pairs
from .options import OPTIONS
from .reply import Reply
from .settings import Settings, resolve
from .stats import Counters
from .storage import Storage

if TYPE_CHECKING:
    from .proxy import Networks
    from .settings import Keywords, Unpack
    from .tls import TLSSetting

__all__ = ["SMTPServer"]

PAUSE = 0.1  # after accept() failed for want of descriptors
FAREWELL = 1.0  # for threads whose connection was cut at the deadline
TROUBLES = ("turned_away", "turned_away_by_address", "failed_accepts")
LMTP_AT_25 = "lmtp: port 25 is for SMTP (RFC 2033 5)"
AF_UNIX = getattr(socket, "AF_UNIX", None)  # Windows has none


class SMTPServer(socketserver.ThreadingTCPServer):
    """An SMTP server with one thread for each connection.

    ``address`` is ``(host, port)``, the path of a Unix socket, a socket that listens already, or a
    list of those; the sockets are bound and listening when the constructor returns.
    ``options`` are those of the table `smtpd_sync.options.OPTIONS`; each is also a class attribute,
    of the server or of the handler, that a subclass may set. ``hooks`` are callables named after
    the methods of `SMTPHandler`. Raises ``ValueError`` for an option or hook that cannot be, and
    ``OSError`` for an address that cannot be bound.
    """

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
    limits: Limits = DEFAULT_LIMITS
    trace: bool = True

    def __init__(
        self,
        address: Union[Address, List[Address]],
        handler: Type[SMTPHandler] = SMTPHandler,
        **options: Unpack[Keywords],
    ) -> None:
        self._handler = handler
        self._hooks: Dict[str, Any] = {}
        self._salt_key = os.urandom(32)
        self._set_up(options)
        name_sessions()
        self.crowd = Crowd()
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
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_sender.setblocking(False)
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

    # -- options -----------------------------------------------------------------------------

    def configure(self, **options: Unpack[Keywords]) -> None:
        """Set options and hooks, for the connections to come; as the constructor does."""
        if options.get("lmtp") and self._at_port_25:
            raise ValueError(LMTP_AT_25)
        self._set_up(options)

    def _set_up(self, options: Mapping[str, Any]) -> None:
        inherited = {name: getattr(self._handler, name, getattr(self, name)) for name in OPTIONS}
        inherited.update({name: vars(self)[name] for name in OPTIONS if name in vars(self)})
        settings = resolve(self._handler, {**inherited, **self._hooks}, options, self._salt_key)
        vars(self).update({name: getattr(settings, name) for name in OPTIONS})
        self._hooks = settings.hooks
        self.RequestHandlerClass = settings.handler
        self.settings: Settings = settings

    def reload_tls(self) -> None:
        """Read the certificates again, for the handshakes to come; sessions live on.

        Raises ``ValueError`` for a file that cannot be used, and keeps what it had; also where
        ``tls`` is a bare context, of which we do not know where it came from.
        """
        if self.tls is None or not (isinstance(self.tls, tuple) or callable(self.tls)):
            raise ValueError("reload_tls() needs tls= as a (certfile, keyfile) pair or a callable")
        self._set_up({})

    # -- where it listens --------------------------------------------------------------------

    @property
    def _at_port_25(self) -> bool:
        return any(where[-1] == 25 for where in self._addresses)

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
        reaper = threading.Thread(target=self._reap, name="smtpd-reaper", daemon=True)
        reaper.start()
        try:
            self._accept()
        finally:
            self.stopping = True
            self._deadline = min(self._deadline, monotonic() + 10)
            try:
                self._drain()
            finally:
                self._tell_troubles()
                self._close()

    def start(self) -> SMTPServer:
        """Serve in a background thread; give the server back."""
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
        self._wake()
        current = threading.current_thread()
        if self._serving is None:
            self._close()
        elif current is not self._serving and current not in self.crowd.threads:
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

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            for listener in self._listeners:
                listener.socket.setblocking(False)
                selector.register(listener.socket, selectors.EVENT_READ, listener.socket)
            selector.register(self._wake_receiver, selectors.EVENT_READ)
            while not self.stopping:
                for key, _ in selector.select():
                    if key.data is not None:
                        self._accept_waiting(key.data)

    def _accept_waiting(self, listener: socket.socket) -> None:
        """Take all clients that wait at a listener."""
        while not self.stopping:
            try:
                request, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Out of descriptors, or the client has gone: neither ends the server.
                self._last_error = error
                self.counters.add(failed_accepts=1)
                self._over.wait(PAUSE)
                return
            if not self.verify_request(request, address):
                request.close()
            elif self.crowd.is_full(self.limits):
                self.counters.add(turned_away=1)
                self._turn_away(request, replies.TOO_BUSY)
            elif not self._count_in(address):
                self.counters.add(turned_away_by_address=1)
                self._turn_away(request, replies.TOO_MANY_OF_YOU)
            else:
                self.process_request(request, address)

    def _count_in(self, client_address: Any) -> bool:
        """Count a connection to its client's, unless that has too many. Proxies have no limit."""
        peer = peer_of(client_address)
        most = None if self.settings.is_trusted(peer) else self.limits.connections_per_address
        return self.crowd.census.enter(peer.address, most)

    def _count_out(self, client_address: Any) -> None:
        self.crowd.census.leave(peer_of(client_address).address)

    def _turn_away(self, request: socket.socket, reply: Reply) -> None:
        """Say 421 to a client that gets no thread, and do not wait for it."""
        request.setblocking(False)
        try:
            request.send(reply.render(extended=False))
        except OSError:
            pass  # it need not listen
        request.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the thread of a connection."""
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True
        )
        self.crowd.add(thread)
        try:
            thread.start()
        except RuntimeError as error:
            self._last_error = error
            self.counters.add(failed_accepts=1)
            self.crowd.remove(thread)
            self._count_out(client_address)
            self._turn_away(request, replies.TOO_BUSY)
        else:
            self.counters.add(connections=1)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client, in its thread."""
        try:
            request.setblocking(True)
            if request.family != AF_UNIX:
                request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.finish_request(request, client_address)
        except Exception:
            log.exception("a session failed")
        finally:
            request.close()
            self._count_out(client_address)
            self.crowd.remove(threading.current_thread())

    def stats(self) -> Dict[str, int]:
        """Give what the server has done, as `smtpd_sync.stats.COUNTERS` has it, and what it holds.

        That are ``sessions``, the clients served now, and ``memory`` and ``spool``, the octets of
        mail data that wait now.
        """
        return {
            **self.counters.snapshot(),
            "sessions": len(self.crowd.sessions),
            "memory": self.storage.memory.used,
            "spool": self.storage.spool.used,
        }

    # -- deadlines and the end ---------------------------------------------------------------

    def _reap(self) -> None:
        """Look at all deadlines now and then, in one thread, and tell of troubles."""
        while not self._over.wait(reaper_period(self.limits)):
            self.crowd.reap(self.limits)
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
        self.crowd.stop()
        if not self.crowd.wait(lambda: self._deadline):
            log.warning("stop: %d sessions are cut off", self.crowd.abort())
            farewell = monotonic() + FAREWELL
            self.crowd.wait(lambda: farewell)

    def _wake(self) -> None:
        try:
            self._wake_sender.send(b"\0")
        except OSError:
            pass  # it is awake, or over

    def _close_listeners(self) -> None:
        # Once: by the second time the path of a Unix socket may be another server's.
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.socket.close()
            listener.release()

    def _close(self) -> None:
        self._close_listeners()
        self._wake_receiver.close()
        self._wake_sender.close()
        self._over.set()
