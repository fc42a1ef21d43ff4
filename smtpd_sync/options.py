"""The options of a server, as one table.

Keywords of `SMTPServer`, its class attributes, `configure`, the command line and the README's table
all come from here.
"""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Tuple

from .data import BARE_NEWLINE_RULES
from .extensions import check_extensions
from .limits import DEFAULT_LIMITS, Limits
from .patterns import Pattern
from .sasl import MECHANISMS
from .syntax import is_domain

__all__ = ["OPTIONS", "Option", "check_options"]


class Option(NamedTuple):
    """A row: an option's name, its default, what checks a value, and what it is for."""

    name: str
    default: Any
    check: Callable[[Any], Any]
    """Gives the value as it is kept; ``ValueError`` says what is wrong with it."""
    help: str
    choices: Tuple[str, ...] = ()
    """The values it takes, where they can be listed."""


def _hostname(value: Any) -> str:
    if value and not (isinstance(value, str) and value.isascii() and is_domain(value)):
        raise ValueError(f"not a domain or an address literal (RFC 5321 2.3.5): {value!r}")
    return value or ""


_LINE = Pattern(r"[ -~]*\Z")


def _line(value: Any) -> str:
    if not isinstance(value, str) or not _LINE.match(value):
        raise ValueError(f"not one line of printable ASCII: {value!r}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"True or False, not {value!r}")
    return value


def _one_of(*values: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in values:
            raise ValueError(f"one of {', '.join(map(repr, values))}, not {value!r}")
        return str(value)

    return check


def _domains(value: Any) -> Tuple[str, ...]:
    if isinstance(value, str):
        raise ValueError(f"a sequence of domains, not the text {value!r}")
    return tuple(_hostname(domain).lower().rstrip(".") for domain in value)


def _directory(value: Any) -> Any:
    if value is not None and not os.path.isdir(value):
        raise ValueError(f"not a directory: {value!r}")
    return value


def _workers(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"a number of processes from 1 on, not {value!r}")
    if value > 1 and not hasattr(os, "fork"):
        raise ValueError("this platform cannot fork")
    return value


def _affinity(value: Any) -> Optional[str]:
    if value not in (None, "adaptive"):
        raise ValueError(f"None or 'adaptive', not {value!r}")
    if value and not hasattr(os, "sched_setaffinity"):
        raise ValueError("this platform cannot bind threads to a core")
    return str(value) if value else None


def _limits(value: Any) -> Limits:
    if not isinstance(value, Limits):
        raise ValueError(f"a Limits, not {value!r}")
    return value.check()


def _tls(value: Any) -> Any:
    if value is None or callable(value) or hasattr(value, "wrap_bio"):
        return value
    if isinstance(value, tuple) and len(value) == 2:
        return value
    raise ValueError(
        f"an SSLContext, a (certfile, keyfile) pair or a callable that gives a context: {value!r}"
    )


def _names(value: Any) -> Dict[str, Any]:
    return {_hostname(name).lower(): _tls(setting) for name, setting in dict(value or {}).items()}


def _networks(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"a sequence of networks, not the text {value!r}")
    if not value:
        return ()
    from .proxy import check_networks  # ipaddress is not cheap

    return check_networks(str(network) for network in value)


def _users(value: Any) -> Dict[str, str]:
    users = dict(value or {})
    for name, password in users.items():
        if not (isinstance(name, str) and isinstance(password, str) and name and password):
            raise ValueError("a mapping of names to passwords, neither empty")
    return users


def _mechanisms(value: Any) -> Optional[Tuple[str, ...]]:
    if value is None:
        return None
    if isinstance(value, str):
        raise ValueError(f"a sequence of names, not the text {value!r}")
    names = tuple(str(name).upper() for name in value)
    for name in names:
        if name not in MECHANISMS:
            raise ValueError(f"no mechanism {name!r}; there are: {', '.join(MECHANISMS)}")
    return names


OPTIONS: Dict[str, Option] = {
    option.name: option
    for option in (
        Option("hostname", "", _hostname, "our name; the machine's where empty"),
        Option("banner", "ESMTP", _line, "text of the greeting, behind the name"),
        Option("tls", None, _tls, "context, (certfile, keyfile) or callable; offers STARTTLS"),
        Option("implicit_tls", False, _flag, "TLS from the first octet (RFC 8314)"),
        Option("require_tls", False, _flag, "530 to all that needs STARTTLS first"),
        Option("users", {}, _users, "name -> password of who may AUTH"),
        Option(
            "mechanisms", None, _mechanisms, "SASL mechanisms; those the hooks can serve if None"
        ),
        Option("require_auth", False, _flag, "530 to MAIL without AUTH"),
        Option("auth_require_tls", True, _flag, "offer AUTH inside TLS only"),
        Option("extensions", (), check_extensions, "extensions to offer beside those always on"),
        Option("ignore_parameters", False, _flag, "accept and record unknown parameters"),
        Option("sni", {}, _names, "server name -> its certificate, as tls takes it (SNI)"),
        Option("proxy_protocol", (), _networks, "networks whose PROXY header is believed"),
        Option("xclient", (), _networks, "networks that may use XCLIENT and XFORWARD"),
        Option("lmtp", False, _flag, "speak LMTP (RFC 2033): a reply for each recipient"),
        Option(
            "strict", False, _flag, "the grammar to the letter: no space after FROM:, no bare a@b"
        ),
        Option("strict_pipelining", True, _flag, "554 to input before its turn (RFC 2920)"),
        Option(
            "bare_newline",
            "normalize",
            _one_of(*BARE_NEWLINE_RULES),
            "what to do with a lone CR or LF in mail data",
            BARE_NEWLINE_RULES,
        ),
        Option("local_domains", (), _domains, "domains whose postmaster is always accepted"),
        Option("spool_directory", None, _directory, "where large mail waits; the system's if None"),
        Option("transcript", False, _flag, "keep what each session said, without mail data"),
        Option("workers", 1, _workers, "processes that serve, each on a core of its own"),
        Option(
            "cpu_affinity",
            None,
            _affinity,
            "adaptive: threads keep to one core while three or more are busy",
            ("adaptive",),
        ),
        Option("limits", DEFAULT_LIMITS, _limits, "a Limits(...)"),
        Option("trace", True, _flag, "put a Received field before each message"),
    )
}


def check_options(values: Mapping[str, Any]) -> Dict[str, Any]:
    """Give the values as they are kept; ``ValueError`` names the option and what it takes."""
    checked = {}
    for name, value in values.items():
        if name not in OPTIONS:
            raise ValueError(f"unknown option {name!r}; the options are: {', '.join(OPTIONS)}")
        try:
            checked[name] = OPTIONS[name].check(value)
        except (TypeError, ValueError) as error:
            text = str(error)
            raise ValueError(text if text.startswith(f"{name}:") else f"{name}: {text}") from None
    return checked
