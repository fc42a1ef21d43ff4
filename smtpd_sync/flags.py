"""The flags of the command line: how they are called, how they are read, how help shows them.

The server's options come from their table. Every flag can also be set in the environment.
"""

from __future__ import annotations

import argparse
import shlex
from typing import Any, Dict, List, Mapping, NoReturn, Optional, Tuple

from . import __version__
from .faultflags import READERS
from .flagvalues import (
    address,
    auth,
    count,
    handler_class,
    next_hop,
    seconds,
    server_name,
    size,
    web_place,
)
from .handler import SMTPHandler
from .limits import DEFAULT_LIMITS
from .options import OPTIONS

__all__ = ["DEFAULT_ADDRESS", "NEEDS_CODE", "from_environment", "parser"]

DEFAULT_ADDRESS = "127.0.0.1:8025"
DEFAULT_WEB = "127.0.0.1:8026"
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


ENVIRONMENT = "SMTPD_SYNC_"
YES, NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")

Group = Tuple[Tuple[str, ...], Dict[str, Any]]

DELIVERIES: Tuple[Group, ...] = (
    (("--maildir",), {"metavar": "DIR", "help": "keep it in a Maildir"}),
    (("--mbox",), {"metavar": "FILE", "help": "append it to an mbox"}),
    (("--files",), {"metavar": "DIR", "help": "write it to a file for each recipient"}),
    (("--jsonl",), {"metavar": "FILE", "help": "append it, parsed, as a line of JSON"}),
    (
        ("--pipe",),
        {"metavar": "COMMAND", "help": "run a command, with {sender} and {recipients}, for it"},
    ),
    (
        ("--relay",),
        {"metavar": "HOST[:PORT]", "type": next_hop, "help": "send it on (default port: 25)"},
    ),
    (("--discard",), {"nargs": 0, "help": "take it and keep none"}),
)
"""Where mail goes; repeatable, and each gets it, in the order of the command line."""


class Deliver(argparse.Action):
    """Notes where mail goes: ``(flag, value)``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: Optional[str] = None,
    ) -> None:
        """Put it behind those that were said before."""
        said = getattr(namespace, "deliveries", None) or []
        namespace.deliveries = [*said, (self.option_strings[0].lstrip("-"), values)]


FAULT: Dict[str, Any] = {"action": "append", "default": [], "dest": "faults"}
FAULTS: Tuple[Group, ...] = (
    (
        ("--fail",),
        {"metavar": "COMMAND=CODE[ TEXT][WHEN]", "help": "refuse RCPT, DATA, EOM and so on"},
    ),
    (
        ("--chance",),
        {"metavar": "P:COMMAND=CODE[ TEXT][WHEN]", "help": "refuse it with probability P"},
    ),
    (
        ("--delay",),
        {"metavar": "COMMAND=S[WHEN]", "help": "wait so many seconds before looking at it"},
    ),
    (("--drop",), {"metavar": "COMMAND[WHEN]", "help": "close without a word"}),
    (("--faults",), {"metavar": "FILE", "help": "what a file of JSON says; see the manual"}),
)
"""What goes wrong, in the order of the command line."""


GROUPS: Dict[str, Tuple[Group, ...]] = {
    "where it listens": (
        (
            ("--unix",),
            {
                "metavar": "PATH",
                "action": "append",
                "default": [],
                "help": "a Unix socket, beside HOST:PORT if that is given (repeatable)",
            },
        ),
        (("--systemd",), {"action": "store_true", "help": "the sockets that systemd opened"}),
        (("--port-file",), {"metavar": "FILE", "help": "write the port to a file, for port 0"}),
    ),
    "where mail goes (repeatable and combinable; printed if nowhere else)": (
        (
            ("--print",),
            {
                "choices": ("human", "raw", "json"),
                "default": None,
                "dest": "show",
                "help": "print it (default: human)",
            },
        ),
        *((flags, {"action": Deliver, "dest": "deliveries", **more}) for flags, more in DELIVERIES),
        (
            ("--web",),
            {
                "metavar": "HOST:PORT",
                "nargs": "?",
                "const": DEFAULT_WEB,
                "type": web_place,
                "help": "show it in a browser: the last 1,000 messages, 256 MiB at most "
                f"(default: {DEFAULT_WEB})",
            },
        ),
        (
            ("--spool",),
            {"metavar": "DIR", "help": "accept it now, and hand it over later, until it is taken"},
        ),
        (
            ("--rewrite-to",),
            {"metavar": "MAILBOX", "help": "--relay: send everything to this mailbox alone"},
        ),
        (
            ("--handler",),
            {
                "metavar": "MODULE:CLASS",
                "type": handler_class,
                "default": SMTPHandler,
                "help": "a handler of yours, with its hooks",
            },
        ),
    ),
    "TLS and AUTH": (
        (("--tls-cert",), {"metavar": "FILE", "help": "certificate (PEM): offers STARTTLS"}),
        (("--tls-key",), {"metavar": "FILE", "help": "its key, if not in the same file"}),
        (
            ("--sni",),
            {
                "metavar": "NAME=CERT[,KEY]",
                "type": server_name,
                "action": "append",
                "default": [],
                "help": "certificate for clients that ask for NAME (repeatable)",
            },
        ),
        (
            ("--auth",),
            {
                "metavar": "any|USER:PASSWORD|FILE",
                "type": auth,
                "action": "append",
                "default": [],
                "help": "offer AUTH: to anybody, to a user, to those of a file (repeatable)",
            },
        ),
    ),
    "protocol": (
        (
            ("--max-size",),
            {
                "metavar": "SIZE",
                "type": size,
                "default": DEFAULT_LIMITS.message_size,
                "help": "octets of a message, such as 10M; 0: no limit (default: 32M)",
            },
        ),
    ),
    "process": (
        (("--user",), {"metavar": "NAME", "help": "give up root for this user, once it listens"}),
        (("--pid-file",), {"metavar": "FILE", "help": "write the process id to a file"}),
        (
            ("--exit-after",),
            {"metavar": "N", "type": count, "help": "stop after so many messages"},
        ),
        (("--duration",), {"metavar": "S", "type": seconds, "help": "stop after so many seconds"}),
    ),
    "log": (
        (("--log-file",), {"metavar": "FILE", "help": "log to a file, not to standard error"}),
        (
            ("--stats",),
            {
                "action": "store_true",
                "help": "print counts on standard error: at SIGUSR1, at the end",
            },
        ),
        (
            ("-v", "--verbose"),
            {"action": "count", "default": 0, "help": "log sessions; twice: log all"},
        ),
        (("-q", "--quiet"), {"action": "store_true", "help": "print no mail, log errors only"}),
    ),
    "faults, for tests (repeatable and combinable; [WHEN]: [@PATTERN][:TIMES])": (
        *((flags, {**FAULT, "type": READERS[flags[0]], **more}) for flags, more in FAULTS),
        (
            ("--seed",),
            {"metavar": "N", "type": int, "default": 0, "help": "for --chance (default: 0)"},
        ),
    ),
}
"""Groups of ``--help``: their title, and the flags that no option of the server makes."""

OPTIONS_OF = {
    "TLS and AUTH": (
        *("implicit_tls", "require_tls", "mechanisms", "require_auth", "auth_require_tls"),
    ),
    "process": ("workers", "cpu_affinity", "spool_directory"),
    "log": ("transcript",),
}
"""Group of each option; of the others, "protocol"."""


def parser() -> Parser:
    """Make the parser."""
    made = Parser(
        prog="smtpd-sync",
        usage="%(prog)s [OPTION ...] [HOST:PORT]\n       %(prog)s queue DIR [COMMAND ...]",
        description="An SMTP server that prints each message it gets, or takes it elsewhere.",
        epilog=f"Every flag can be set in the environment, too: {ENVIRONMENT}MAX_SIZE=10M.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=100),
    )
    made.add_argument(
        "address",
        nargs="?",
        metavar="HOST:PORT",
        type=address,
        default=None,
        help=f"where to listen (default: {DEFAULT_ADDRESS})",
    )
    made.add_argument("--version", action="version", version=f"smtpd-sync {__version__}")
    grouped = {name for names in OPTIONS_OF.values() for name in names}
    for title, flags in GROUPS.items():
        group = made.add_argument_group(title)
        for names, settings in flags:
            group.add_argument(*names, **settings)
        mine = OPTIONS_OF.get(title, ())
        for name in OPTIONS:
            ours = name in mine or (title == "protocol" and name not in grouped)
            if ours and name not in NEEDS_CODE:
                _add_option(group, name)
    return made


def _add_option(made: argparse._ArgumentGroup, name: str) -> None:
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


def from_environment(made: argparse.ArgumentParser, environment: Mapping[str, str]) -> List[str]:
    """Give the flags that the environment sets; ``SMTPD_SYNC_MAILDIR`` is ``--maildir``.

    A flag that needs no value takes 1 or 0; one that is repeatable takes words, as a shell reads
    them.
    """
    flags: List[str] = []
    for action in made._actions:
        flag = action.option_strings[-1] if action.option_strings else ""
        name = (flag or action.dest).strip("-").replace("-", "_").upper()
        value = environment.get(ENVIRONMENT + name)
        if value is None:
            continue
        if not flag:
            made.set_defaults(**{action.dest: value})
        elif isinstance(action, argparse._AppendAction):
            flags.extend(f"{flag}={word}" for word in shlex.split(value))
        elif action.nargs != 0 and (action.nargs != "?" or value.lower() not in (*YES, *NO)):
            flags.append(f"{flag}={value}")
        elif value.lower() in YES:
            flags.append(flag)
        elif value.lower() not in NO:
            made.error(f"the environment: {ENVIRONMENT}{name} is 1 or 0, not {value!r}")
    return flags
