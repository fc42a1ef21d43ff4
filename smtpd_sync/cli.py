"""The command line: ``python3 -m smtpd_sync [HOST:PORT]`` prints the mail it gets."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import signal
import sys
import threading
from typing import Any, Dict, List, NoReturn, Optional, Tuple, Type

from . import __version__
from .envelope import Envelope
from .handler import SMTPHandler
from .limits import DEFAULT_LIMITS
from .listening import Address, systemd_sockets
from .logs import pairs
from .options import OPTIONS
from .sasl import Credentials
from .server import SMTPServer

__all__ = ["main"]

DEFAULT_ADDRESS = "127.0.0.1:8025"
NEEDS_CODE = {"tls", "limits", "users", "sni"}  # options that flags of their own make


REPEATABLE = {
    "local_domains": "NAME",
    "extensions": "NAME",
    "mechanisms": "NAME",
    "proxy_protocol": "NET",
    "xclient": "NET",
}


# How the value of a flag is read, where it is not any text.
SHAPES: Dict[str, Dict[str, Any]] = {
    "spool_directory": {"metavar": "DIR"},
    "workers": {"metavar": "N", "type": int},
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def address(text: str) -> Tuple[str, int]:
    """Read ``HOST:PORT``, ``HOST`` or ``:PORT``; an IPv6 host stands in brackets."""
    match = re.fullmatch(r"(?:\[([^]]*)\]|([^:]*))(?::([0-9]{1,5}))?", text)
    if match is None or int(match[3] or 0) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    host = match[1] if match[1] is not None else match[2]
    return host, int(match[3]) if match[3] else 8025


def size(text: str) -> Optional[int]:
    """Read octets, with K, M or G; 0 is no limit."""
    match = re.fullmatch(r"([0-9]+)([KMG]?)", text.upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of octets, such as 10M")
    return int(match[1]) * 1024 ** " KMG".index(match[2] or " ") or None


def handler_class(text: str) -> Type[SMTPHandler]:
    """Import ``MODULE:CLASS``, from the current directory too."""
    module, _, name = text.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module may raise anything
        what = f"{type(error).__name__}: {error}"
        raise argparse.ArgumentTypeError(f"cannot import {text!r}: {what}") from None
    if not (isinstance(found, type) and issubclass(found, SMTPHandler)):
        raise argparse.ArgumentTypeError(f"{text!r} is no subclass of smtpd_sync.SMTPHandler")
    return found


def auth(text: str) -> Optional[Dict[str, str]]:
    """Read ``USER:PASSWORD``, or a file of such lines; ``any`` is ``None``: everybody."""
    if text == "any":
        return None
    name, colon, password = text.partition(":")
    if colon and not os.path.isfile(text):
        return {name: password}
    try:
        with open(text, encoding="utf-8") as file:
            lines = [line.rstrip("\n").partition(":") for line in file if ":" in line]
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {text!r}: {error.strerror}") from None
    if not lines:
        raise argparse.ArgumentTypeError(f"{text!r} has no line USER:PASSWORD")
    return {name: password for name, _, password in lines}


def server_name(text: str) -> Tuple[str, Tuple[str, Optional[str]]]:
    """Read ``NAME=CERT[,KEY]``."""
    name, _, files = text.partition("=")
    cert, _, key = files.partition(",")
    if not name or not cert:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=CERT[,KEY]")
    return name, (cert, key or None)


def any_credentials(credentials: Credentials) -> str:
    """Let everybody in: for tests of clients."""
    return credentials.username or "anybody"


def parser() -> Parser:
    """Make the parser; the server's options come from their table."""
    made = Parser(
        prog="smtpd-sync",
        usage="%(prog)s [OPTION ...] [HOST:PORT]",
        description="An SMTP server that prints each message it gets.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=100),
    )
    add = made.add_argument
    add(
        "address",
        nargs="?",
        metavar="HOST:PORT",
        type=address,
        default=None,
        help=f"where to listen (default: {DEFAULT_ADDRESS})",
    )
    add(
        "--print",
        choices=("human", "raw", "json"),
        default="human",
        dest="show",
        help="how to show a message (default: human)",
    )
    add(
        "--handler",
        metavar="MODULE:CLASS",
        type=handler_class,
        default=SMTPHandler,
        help="a handler of yours, with its hooks; what it delivers is not printed",
    )
    add("--tls-cert", metavar="FILE", help="certificate (PEM): offers STARTTLS")
    add("--tls-key", metavar="FILE", help="its key, if not in the same file")
    add(
        "--max-size",
        metavar="SIZE",
        type=size,
        default=DEFAULT_LIMITS.message_size,
        help="octets of a message, such as 10M; 0: no limit (default: 32M)",
    )
    add(
        "--sni",
        metavar="NAME=CERT[,KEY]",
        type=server_name,
        action="append",
        default=[],
        help="certificate for clients that ask for NAME (repeatable)",
    )
    add(
        "--unix",
        metavar="PATH",
        action="append",
        default=[],
        help="listen at a Unix socket, beside HOST:PORT if that is given (repeatable)",
    )
    add("--systemd", action="store_true", help="listen at the sockets that systemd opened")
    add(
        "--auth",
        metavar="any|USER:PASSWORD|FILE",
        type=auth,
        action="append",
        default=[],
        help="offer AUTH: to anybody, to a user, to those of a file (repeatable)",
    )
    for option in OPTIONS.values():
        if option.name not in NEEDS_CODE:
            _add_option(made, option.name)
    add(
        "--stats",
        action="store_true",
        help="print counts on standard error: at SIGUSR1, at the end",
    )
    add("-v", "--verbose", action="count", default=0, help="log sessions; twice: log all")
    add("-q", "--quiet", action="store_true", help="print no messages, log errors only")
    add("--version", action="version", version=f"smtpd-sync {__version__}")
    return made


def _add_option(made: Parser, name: str) -> None:
    option = OPTIONS[name]
    flag = name.replace("_", "-")
    settings: Dict[str, Any] = {"dest": name, "default": option.default, "help": option.help}
    if option.default is True:
        flag = f"no-{flag}"
        settings.update(action="store_false", help=f"turn off: {option.help}")
    elif option.default is False:
        settings.update(action="store_true")
    elif name in REPEATABLE:
        flag = flag.rstrip("s")
        settings.update(action="append", default=None, metavar=REPEATABLE[name])
        settings["help"] += " (repeatable)"
    else:
        shape = {"choices": option.choices} if option.choices else {"metavar": "TEXT"}
        settings.update(SHAPES.get(name, shape))
        settings["help"] += f" (default: {option.default})" if option.default else ""
    made.add_argument(f"--{flag}", **settings)


def _listen_at(arguments: argparse.Namespace) -> List[Address]:
    places: List[Address] = list(arguments.unix)
    if arguments.systemd:
        places.extend(systemd_sockets())
    if arguments.address is not None or not places:
        places.append(arguments.address or address(DEFAULT_ADDRESS))
    return places


def printer(show: str) -> Any:
    """Make the delivery hook that prints; one message at a time."""
    from .show import FORMATS

    form, lock = FORMATS[show], threading.Lock()

    def deliver_envelope(envelope: Envelope) -> None:
        octets = form(envelope)
        with lock:
            sys.stdout.buffer.write(octets)
            sys.stdout.buffer.flush()

    return deliver_envelope


def no_print(envelope: Envelope) -> None:
    """Deliver nowhere."""


def raise_descriptors(connections: int) -> None:
    """Let the process open what its connections and their hooks need."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + 64
    if resource.RLIM_INFINITY not in (soft, hard) and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def make_server(arguments: argparse.Namespace) -> SMTPServer:
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
    if arguments.max_size != DEFAULT_LIMITS.message_size:
        options["limits"] = DEFAULT_LIMITS._replace(message_size=arguments.max_size)
    if arguments.handler.delivery is None:
        hook = no_print if arguments.quiet else printer(arguments.show)
        options["deliver_envelope"] = hook
    raise_descriptors(DEFAULT_LIMITS.connections)
    return SMTPServer(_listen_at(arguments), arguments.handler, **options)


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
    """Run the command line; exits with 0 after a stop, with 2 for what cannot be."""
    made = parser()
    arguments = made.parse_args(argv)
    levels = [logging.WARNING, logging.INFO, logging.DEBUG]
    level = logging.ERROR if arguments.quiet else levels[min(arguments.verbose, 2)]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    try:
        server = make_server(arguments)
    except (ValueError, OSError) as error:
        host, port = arguments.address or address(DEFAULT_ADDRESS)
        at_port = arguments.address or not (arguments.unix or arguments.systemd)
        unnamed = isinstance(error, OSError) and error.filename is None
        where = f"cannot listen on {host}:{port}: " if unnamed and at_port else ""
        made.error(f"{where}{error}")
    stop_at_signals(server)
    if arguments.stats and hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lambda number, frame: print_stats(server))
    for place in server.addresses:
        print(f"listening on {shown(place)}", flush=True)
    server.serve_forever()
    if arguments.stats:
        print_stats(server)
    sys.exit(0)
