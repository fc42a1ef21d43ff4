"""The removed ``asyncore``: one thread serves the dispatchers of a map, in turns.

It is written anew, and does what public programs ask of it. What differs: `poll` and `poll2` are
one function, without a limit on descriptors; a loop that waits notices at once what other threads
add to its map or close; and it does what the session threads of `smtpd` leave for it.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import Any, FrozenSet, Optional, Tuple

from .desk import wake
from .polling import (
    GONE,
    ExitNow,
    Map,
    close_all,
    compact_traceback,
    loop,
    poll,
    poll2,
    poll3,
    read,
    readwrite,
    socket_map,
    write,
)

__all__ = [
    "ExitNow",
    "close_all",
    "compact_traceback",
    "dispatcher",
    "dispatcher_with_send",
    "loop",
    "poll",
    "poll2",
    "poll3",
    "read",
    "readwrite",
    "socket_map",
    "write",
]

LATER = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EINPROGRESS, errno.EALREADY})
CONNECTING = LATER | {errno.EINVAL} if os.name == "nt" else LATER


class dispatcher:
    """A socket in a map, and what is called when something happens to it: to be overridden."""

    debug = False
    connected = False
    accepting = False
    connecting = False
    closing = False
    addr: Any = None
    ignore_log_types: FrozenSet[str] = frozenset({"warning"})
    socket: Any
    _fileno: Optional[int] = None
    _map: Map

    def __init__(self, sock: Any = None, map: Optional[Map] = None) -> None:
        self._map = socket_map if map is None else map
        self._fileno = None
        self.socket = None
        if sock:
            sock.setblocking(False)
            self.set_socket(sock, map)
            self.connected = True
            try:
                self.addr = sock.getpeername()
            except OSError as error:
                if error.errno not in (errno.ENOTCONN, errno.EINVAL):
                    self.del_channel(map)
                    raise
                self.connected = False

    def __repr__(self) -> str:
        kind = type(self)
        words = [f"{kind.__module__}.{kind.__qualname__}"]
        if self.accepting and self.addr:
            words.append("listening")
        elif self.connected:
            words.append("connected")
        if self.addr is not None:
            plain = isinstance(self.addr, tuple) and len(self.addr) == 2
            words.append("{}:{}".format(*self.addr) if plain else repr(self.addr))
        return f"<{' '.join(words)} at {id(self):#x}>"

    # -- its place in the map ----------------------------------------------------------------

    def add_channel(self, map: Optional[Map] = None) -> None:
        """Be served."""
        map = self._map if map is None else map
        assert self._fileno is not None, "set_socket() comes first"
        map[self._fileno] = self
        wake(map)

    def del_channel(self, map: Optional[Map] = None) -> None:
        """Be served no longer."""
        map = self._map if map is None else map
        descriptor, self._fileno = self._fileno, None
        if descriptor in map:
            del map[descriptor]
            wake(map)

    def readable(self) -> bool:
        """Tell whether to wait for something to read."""
        return True

    def writable(self) -> bool:
        """Tell whether to wait until something can be written."""
        return True

    # -- its socket --------------------------------------------------------------------------

    def create_socket(self, family: int = socket.AF_INET, type: int = socket.SOCK_STREAM) -> None:
        """Make its socket."""
        self.family_and_type = family, type
        made = socket.socket(family, type)
        made.setblocking(False)
        self.set_socket(made)

    def set_socket(self, sock: Any, map: Optional[Map] = None) -> None:
        """Take a socket for its own."""
        self.socket = sock
        self._fileno = sock.fileno()
        self.add_channel(map)

    def set_reuse_addr(self) -> None:
        """Listen at a port that was in use a moment ago."""
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except OSError:
            pass  # bind() will say what is wrong

    def bind(self, addr: Any) -> None:
        """Bind to an address."""
        self.addr = addr
        self.socket.bind(addr)

    def listen(self, num: int) -> None:
        """Listen."""
        self.accepting = True
        self.socket.listen(num)

    def accept(self) -> Optional[Tuple[Any, Any]]:
        """Give a connection and its address; ``None`` if there is none after all."""
        try:
            conn, addr = self.socket.accept()
        except TypeError:
            return None
        except OSError as error:
            if error.errno in LATER or error.errno == errno.ECONNABORTED:
                return None
            raise
        return conn, addr

    def connect(self, address: Any) -> None:
        """Begin to connect."""
        self.connected, self.connecting = False, True
        number = self.socket.connect_ex(address)
        if number and number not in CONNECTING and number != errno.EISCONN:
            raise OSError(number, os.strerror(number))
        self.addr = address
        if number in (0, errno.EISCONN):
            self.handle_connect_event()

    def send(self, data: Any) -> Any:
        """Send what can be sent now; give how much that was."""
        try:
            return self.socket.send(data)
        except OSError as error:
            if error.errno in LATER:
                return 0
            if error.errno in GONE:
                self.handle_close()
                return 0
            raise

    def recv(self, buffer_size: int) -> bytes:
        """Give what has come; nothing at the end, after `handle_close` was called."""
        try:
            data: bytes = self.socket.recv(buffer_size)
        except OSError as error:
            if error.errno not in GONE:
                raise
            data = b""
        if not data:
            self.handle_close()
        return data

    def close(self) -> None:
        """Close it."""
        self.connected = self.accepting = self.connecting = False
        self.del_channel()
        if self.socket is not None:
            try:
                self.socket.close()
            except OSError as error:
                if error.errno not in GONE:
                    raise

    # -- what happens ------------------------------------------------------------------------

    def handle_read_event(self) -> None:
        """There is something to read, or somebody to accept."""
        if self.accepting:
            self.handle_accept()
            return
        if self.connecting and not self.connected:
            self.handle_connect_event()
        self.handle_read()

    def handle_write_event(self) -> None:
        """There is room to write."""
        if self.accepting:
            return
        if self.connecting and not self.connected:
            self.handle_connect_event()
        self.handle_write()

    def handle_connect_event(self) -> None:
        """It is connected, or cannot be."""
        number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
        self.handle_connect()
        self.connected, self.connecting = True, False

    def handle_expt_event(self) -> None:
        """There are urgent data, or there is an error."""
        if self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.handle_close()
        else:
            self.handle_expt()

    def handle_accept(self) -> None:
        """Take a connection."""
        pair = self.accept()
        if pair is not None:
            self.handle_accepted(*pair)

    def handle_accepted(self, sock: Any, addr: Any) -> None:
        """Override this to do something with a connection."""
        sock.close()
        self.log_info("unhandled accepted event", "warning")

    def handle_read(self) -> None:
        """Override this to read."""
        self.log_info("unhandled read event", "warning")

    def handle_write(self) -> None:
        """Override this to write."""
        self.log_info("unhandled write event", "warning")

    def handle_connect(self) -> None:
        """Override this to learn that it is connected."""
        self.log_info("unhandled connect event", "warning")

    def handle_expt(self) -> None:
        """Override this to take urgent data."""
        self.log_info("unhandled incoming priority event", "warning")

    def handle_close(self) -> None:
        """Override this to learn that the other end has closed."""
        self.log_info("unhandled close event", "warning")
        self.close()

    def handle_error(self) -> None:
        """Override this to learn of the exception at hand, ``sys.exc_info()``."""
        self.log_exception("closing channel")
        self.handle_close()

    # -- logging -----------------------------------------------------------------------------

    def log(self, message: object) -> None:
        """Write a line on stderr."""
        sys.stderr.write(f"log: {message}\n")

    def log_info(self, message: object, type: str = "info") -> None:
        """Print a line, unless its type is not wanted."""
        if type not in self.ignore_log_types:
            print(f"{type}: {message}")

    def log_exception(self, outcome: str) -> None:
        """Print the exception at hand in one line, and what comes of it."""
        try:
            name = repr(self)
        except Exception:
            name = f"<__repr__(self) failed for object at {id(self):0x}>"
        _, kind, value, trace = compact_traceback()
        what = f"uncaptured python exception, {outcome} {name} ({kind}:{value} {trace})"
        self.log_info(what, "error")


class dispatcher_with_send(dispatcher):
    """A dispatcher that sends later what it cannot send now."""

    def __init__(self, sock: Any = None, map: Optional[Map] = None) -> None:
        super().__init__(sock, map)
        self.out_buffer = b""

    def initiate_send(self) -> None:
        """Send what can be sent now."""
        sent = dispatcher.send(self, self.out_buffer[:65536])
        self.out_buffer = self.out_buffer[sent:]

    def handle_write(self) -> None:
        """Send some more."""
        self.initiate_send()

    def writable(self) -> bool:
        """Tell whether there is something to send."""
        return not self.connected or bool(self.out_buffer)

    def send(self, data: bytes) -> None:
        """Send it, as soon as may be."""
        if self.debug:
            self.log_info(f"sending {data!r}")
        self.out_buffer += data
        self.initiate_send()


if os.name == "posix":
    __all__ += ["file_dispatcher", "file_wrapper"]

    from .filewrapper import file_wrapper

    class file_dispatcher(dispatcher):
        """A dispatcher of a file: a pipe, a terminal."""

        def __init__(self, fd: Any, map: Optional[Map] = None) -> None:
            super().__init__(None, map)
            self.connected = True
            self.set_file(fd.fileno() if hasattr(fd, "fileno") else fd)

        def set_file(self, fd: int) -> None:
            """Take a descriptor for its own."""
            os.set_blocking(fd, False)
            self.set_socket(file_wrapper(fd))
