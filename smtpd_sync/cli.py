"""The command line: ``python3 -m smtpd_sync [HOST:PORT]`` prints the mail it gets."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NoReturn, Optional, Tuple

from .envelope import Envelope
from .flags import DEFAULT_ADDRESS, NEEDS_CODE, from_environment, parser
from .flagvalues import address
from .hooks import any_credentials, discard
from .limits import DEFAULT_LIMITS
from .listening import Address, listen, systemd_sockets
from .logs import pairs
from .mailbox import JsonLines, Mbox
from .options import OPTIONS
from .pipe import Pipe
from .process import become, end_after, raise_descriptors, write_file
from .relay import Relay
from .server import SMTPServer
from .spool import Spool
from .store import Files, Maildir
from .tls import context_of

if TYPE_CHECKING:
    from .web import Page

__all__ = ["main"]

MAKERS: Dict[str, Callable[[str], Any]] = {
    "maildir": Maildir,
    "files": Files,
    "mbox": Mbox,
    "jsonl": JsonLines,
    "pipe": Pipe,
}
"""What takes mail, by its flag."""


def _listen_at(arguments: argparse.Namespace) -> List[Address]:
    places: List[Address] = list(arguments.unix)
    if arguments.systemd:
        places.extend(systemd_sockets())
    if arguments.address is not None or not places:
        places.append(arguments.address or address(DEFAULT_ADDRESS))
    return places


class Printer:
    """The battery that prints; one message at a time."""

    def __init__(self, show: str) -> None:
        from .show import FORMATS

        self._form = FORMATS[show]
        self._lock = threading.Lock()

    def deliver_envelope(self, envelope: Envelope) -> None:
        """Print a message."""
        octets = self._form(envelope)
        with self._lock:
            sys.stdout.buffer.write(octets)
            sys.stdout.buffer.flush()


def make_page(arguments: argparse.Namespace) -> Optional[Page]:
    """Make the page that shows mail, if it is asked for; ``OSError`` if it cannot listen."""
    if arguments.web is None:
        return None
    if arguments.workers > 1:
        raise ValueError("--workers: --web is for one process, which has all the mail")
    from .web import Page  # seldom needed

    return Page(*arguments.web)


def make_server(arguments: argparse.Namespace, page: Optional[Page] = None) -> SMTPServer:
    """Make the server of a command line; ``ValueError`` or ``OSError`` say what is wrong."""
    options: Dict[str, Any] = {
        name: getattr(arguments, name)
        for name, option in OPTIONS.items()
        if name not in NEEDS_CODE and getattr(arguments, name) not in (None, option.default)
    }
    if arguments.sni:
        options["sni"] = dict(arguments.sni)
    if None in arguments.auth:
        options["authenticate"] = any_credentials
    users = {name: word for each in arguments.auth for name, word in (each or {}).items()}
    if users:  # else those of the handler stay
        options["users"] = users
    if arguments.tls_cert:
        options["tls"] = (arguments.tls_cert, arguments.tls_key)
    elif arguments.tls_key:
        raise ValueError("--tls-key needs --tls-cert")
    if arguments.workers > 1 and (arguments.exit_after or arguments.duration is not None):
        raise ValueError("--workers: --exit-after and --duration are for one process")
    if arguments.max_size != DEFAULT_LIMITS.message_size:
        options["limits"] = DEFAULT_LIMITS._replace(message_size=arguments.max_size)
    raise_descriptors(DEFAULT_LIMITS.connections)
    places: Any = _listen_at(arguments)
    if arguments.user:
        # What needs root comes first; what is made after belongs to the user.
        if "tls" in options:
            options["tls"] = context_of(options["tls"], {})
        places = [listener.socket for listener in listen(places)]
        become(arguments.user)
    deliver = batteries(arguments, page)
    if page is not None:
        options["transcript"] = True
    if deliver:
        options["deliver"] = deliver
    handler = arguments.handler
    if arguments.faults:
        from .faults import Faults

        script = [entry for entries in arguments.faults for entry in entries]
        handler = Faults(script, seed=arguments.seed).handler(handler)
    return SMTPServer(places, handler, **options)


def batteries(arguments: argparse.Namespace, page: Optional[Page]) -> List[Any]:
    """Make what takes the mail, in the order of the command line; the page shows what was taken."""
    said: List[Tuple[str, Any]] = arguments.deliveries or []
    if arguments.rewrite_to and not any(kind == "relay" for kind, _ in said):
        raise ValueError("--rewrite-to needs --relay")
    flag = said[0][0] if said else "print" if arguments.show else "web" if page else ""
    if arguments.handler.delivery and flag:
        raise ValueError(f"--{flag}: the handler delivers by itself")
    if arguments.spool and not said:
        raise ValueError("--spool needs another way that mail goes, such as --relay")
    made = [_battery(kind, value, arguments) for kind, value in said]
    if arguments.spool:
        os.makedirs(arguments.spool, 0o700, exist_ok=True)
        # One for each, so that what one has taken it does not get again for the other's sake.
        kinds = [kind for kind, _ in said]
        names = [f"{kind}-{kinds[:n].count(kind) + 1}" for n, kind in enumerate(kinds)]
        made = [Spool(os.path.join(arguments.spool, name), each) for name, each in zip(names, made)]
    if arguments.show or not (said or page or arguments.handler.delivery):
        made.insert(0, discard if arguments.quiet else Printer(arguments.show or "human"))
    return [*made, page] if page else made


def _battery(kind: str, value: Any, arguments: argparse.Namespace) -> Any:
    """Make one of those of `flags.DELIVERIES`."""
    if kind == "discard":
        return discard
    if kind == "relay":
        return Relay(*value, rewrite_to=arguments.rewrite_to)
    return MAKERS[kind](value)


def stop_at_signals(server: SMTPServer) -> None:
    """Let SIGINT and SIGTERM stop the server: the first in order, the second at once."""
    patience = [10.0]

    def stop(number: int, frame: object) -> None:
        server.stop(patience.pop() if patience else 0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    if server.tls is not None and hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda number, frame: reload(server))


def reload(server: SMTPServer) -> None:
    """Read the certificates again; a bad file is logged, and the old ones stay."""
    try:
        server.reload_tls()
    except ValueError as error:
        logging.error("SIGHUP: %s", error)


def print_stats(server: SMTPServer) -> None:
    """Print what the server has done; in one system call, since a signal may come anywhere."""
    os.write(2, f"{pairs(**server.stats())}\n".encode())


def shown(place: Tuple[Any, ...]) -> str:
    """Write an address as the command line takes it."""
    host, *port = place
    return ":".join((f"[{host}]" if ":" in host else host, *map(str, port)))


def main(argv: Optional[List[str]] = None) -> NoReturn:
    """Run the command line; exits with 0 after a stop, with 2 for what cannot be.

    With 1 where fewer messages came than ``--exit-after`` waits for.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["queue"]:
        from .queuecli import main as queue

        sys.exit(queue(argv[1:]))
    made = parser()
    arguments = made.parse_args([*from_environment(made, os.environ), *argv])
    page = None
    try:
        set_up_log(arguments)
        page = make_page(arguments)  # first: else mail would be taken, and then not be
        server = make_server(arguments, page)
    except (ValueError, OSError) as error:
        if page is not None:
            page.stop(0)
        host, port = arguments.address or address(DEFAULT_ADDRESS)
        at_port = arguments.address or not (arguments.unix or arguments.systemd)
        unnamed = isinstance(error, OSError) and error.filename is None
        where = f"cannot listen on {host}:{port}: " if unnamed and at_port else ""
        made.error(f"{where}{error}")
    stop_at_signals(server)
    if arguments.stats and hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lambda number, frame: print_stats(server))
    try:
        tell_of_it(arguments, server, page)
    except OSError as error:
        server.stop()
        if page is not None:
            page.stop(0)
        made.error(str(error))
    ends = arguments.exit_after is not None or arguments.duration is not None
    if ends:
        end_after(server, arguments.exit_after, arguments.duration)
    server.serve_forever()
    if arguments.stats:
        print_stats(server)
    for path in (arguments.pid_file, arguments.port_file):
        if path:
            with contextlib.suppress(OSError):
                os.unlink(path)
    sys.exit(server.stats()["messages"] < (arguments.exit_after or 0))


def set_up_log(arguments: argparse.Namespace) -> None:
    """Log as the flags say; a log file may be moved away and is made anew then."""
    levels = [logging.WARNING, logging.INFO, logging.DEBUG]
    level = logging.ERROR if arguments.quiet else levels[min(arguments.verbose, 2)]
    where: Dict[str, Any] = {}
    if arguments.log_file:
        from logging.handlers import WatchedFileHandler

        where["handlers"] = [WatchedFileHandler(arguments.log_file, encoding="utf-8")]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", **where)


def tell_of_it(arguments: argparse.Namespace, server: SMTPServer, page: Optional[Page]) -> None:
    """Say where the server listens, and write the files that others wait for."""
    if arguments.pid_file:
        write_file(arguments.pid_file, f"{os.getpid()}\n")
    if arguments.port_file:
        write_file(arguments.port_file, f"{server.port}\n")
    for place in server.addresses:
        print(f"listening on {shown(place)}", flush=True)
    if page is not None:
        print(f"showing mail at {page.web.url}", flush=True)
