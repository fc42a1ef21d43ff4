"""Where a server listens, and what the machine lets it open. Sockets only; nothing of SMTP."""

from __future__ import annotations

import os
import socket
import stat
from typing import Any, Callable, List, NamedTuple, Tuple, Union

from .envelope import Peer
from .limits import Limits
from .logs import INFO, WARNING, log
from .options import OPTIONS

__all__ = [
    "Address",
    "Listener",
    "UnixSocket",
    "listen",
    "peer_of",
    "systemd_sockets",
    "within_descriptors",
]


AF_UNIX = getattr(socket, "AF_UNIX", None)  # Windows has none
BACKLOG = 1_024  # 5, socketserver's, hangs clients at twenty at once
SYSTEMD_FIRST = 3  # sd_listen_fds(3)


class UnixSocket(NamedTuple):
    """A Unix socket to listen at: its path, and the mode of the file."""

    path: str
    mode: int = 0o600


Address = Union[Tuple[str, int], str, UnixSocket, socket.socket]
"""``(host, port)``, the path of a Unix socket, a `UnixSocket`, or a socket that listens already."""


class Listener(NamedTuple):
    """A socket that listens, and what is to be done when it is closed."""

    socket: socket.socket
    release: Callable[[], None]


def listen(address: Union[Address, List[Address]]) -> List[Listener]:
    """Listen at one address or at several; ``OSError`` if one cannot be had, and then at none."""
    listeners: List[Listener] = []
    try:
        for each in address if isinstance(address, list) else [address]:
            listeners.append(_listen(each))
    except BaseException:
        for listener in listeners:
            listener.socket.close()
            listener.release()
        raise
    if not listeners:
        raise ValueError("no address to listen at")
    for listener in listeners:
        without_delay(listener.socket)  # on Linux, what it accepts inherits that
    return listeners


def without_delay(sock: socket.socket) -> None:
    """Have small replies sent at once, and not held back for more (RFC 896)."""
    if sock.family != AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _listen(address: object) -> Listener:
    if isinstance(address, socket.socket):
        listens = getattr(socket, "SO_ACCEPTCONN", None)
        if listens is not None and not address.getsockopt(socket.SOL_SOCKET, listens):
            raise ValueError(f"the socket does not listen: {address!r}")
        return Listener(address, nothing)
    if isinstance(address, str):
        address = UnixSocket(address)
    if isinstance(address, UnixSocket):
        return _listen_unix(address)
    if isinstance(address, tuple) and len(address) >= 2:
        return Listener(_listen_tcp(*address[:2]), nothing)
    raise ValueError(
        f"an address is (host, port), a path, a UnixSocket, a socket, or a list: {address!r}"
    )


def nothing() -> None:
    """Leave things as they are."""


def _listen_tcp(host: str, port: int) -> socket.socket:
    """Bind and listen. ``""`` is every address, IPv6 and IPv4 where the platform has both."""
    if (
        not isinstance(port, int) or not 0 <= port <= 65_535
    ):  # the C library would take the rest of a division
        raise ValueError(f"a port is a number from 0 to 65535, not {port!r}")
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
        )
    # As octets: text would be encoded by IDNA, which is a large module, also where it is ASCII.
    where = host.encode("ascii") if host.isascii() else host
    found = socket.getaddrinfo(
        where or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    # A name such as localhost may have two; IPv4 is where every client looks.
    found.sort(key=lambda info: info[0] != socket.AF_INET)
    family, _, _, _, address = found[0]
    dualstack = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(
        (str(address[0]), int(address[1])),
        family=family,
        backlog=BACKLOG,
        dualstack_ipv6=dualstack,
    )


def _listen_unix(address: UnixSocket) -> Listener:
    if not hasattr(socket, "AF_UNIX"):
        raise ValueError("this platform has no Unix sockets")
    path = os.fspath(address.path)
    _remove_stale(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(path)
        os.chmod(path, address.mode)  # before it listens: nobody gets in meanwhile
        made.listen(BACKLOG)
        own = os.stat(path)
    except OSError as error:
        made.close()
        raise OSError(error.errno, error.strerror or str(error), path) from None  # which it is
    except BaseException:
        made.close()
        raise

    def release() -> None:
        try:
            if os.path.samestat(os.stat(path), own):  # not another server's by now
                os.unlink(path)
        except OSError:
            pass  # it is gone already

    return Listener(made, release)


def _remove_stale(path: str) -> None:
    """Remove the socket of a server that is dead; leave a file, and the socket of one alive."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except socket.timeout:
            pass  # it is alive, and busy


def systemd_sockets() -> List[Address]:
    """Give the sockets that systemd opened for us (``LISTEN_FDS``, sd_listen_fds(3)).

    Raises ``ValueError`` if there are none.
    """
    number = os.environ.get("LISTEN_FDS", "")
    count = int(number) if number.isdecimal() else 0
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or count < 1:
        raise ValueError("systemd gave no sockets: LISTEN_PID and LISTEN_FDS are not for us")
    return [socket.socket(fileno=SYSTEMD_FIRST + n) for n in range(count)]


def peer_of(client_address: Any) -> Peer:
    """Give the client at the other end; of a Unix socket the address is a path, mostly none."""
    if not isinstance(client_address, tuple):
        return Peer("", 0)
    address, port = client_address[:2]
    return Peer(address[7:] if address.startswith("::ffff:") else address, port)


def own_name() -> str:
    """Give the machine's name, without asking the DNS; ``localhost`` if it is no domain."""
    name = socket.gethostname()
    try:
        return str(OPTIONS["hostname"].check(name)) or "localhost"
    except ValueError:
        return "localhost"


def within_descriptors(limits: Limits, asked_for: bool) -> Limits:
    """Cut ``connections`` to half of what the process may open, so that hooks can open files."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return limits
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY or limits.connections <= allowed // 2:
        return limits
    log.log(
        WARNING if asked_for else INFO,
        "limits: connections cut from %d to %d, half of RLIMIT_NOFILE",
        limits.connections,
        allowed // 2,
    )
    return limits._replace(connections=max(1, allowed // 2))
