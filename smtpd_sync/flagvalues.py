"""The values of the command line's flags: how each is read.

What cannot be read is an ``ArgumentTypeError``, which argparse shows behind the flag's name.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from typing import Dict, Optional, Tuple, Type

from .handler import SMTPHandler

__all__ = [
    "address",
    "auth",
    "count",
    "handler_class",
    "next_hop",
    "seconds",
    "server_name",
    "size",
    "web_place",
]


def address(text: str, default_port: int = 8025) -> Tuple[str, int]:
    """Read ``HOST:PORT``, ``HOST`` or ``:PORT``; an IPv6 host stands in brackets."""
    match = re.fullmatch(r"(?:\[([^]]*)\]|([^:]*))(?::([0-9]{1,5}))?", text)
    if match is None or int(match[3] or 0) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    host = match[1] if match[1] is not None else match[2]
    return host, int(match[3]) if match[3] else default_port


def next_hop(text: str) -> Tuple[str, int]:
    """Read ``HOST:PORT`` of a server to send to."""
    return address(text, default_port=25)


def web_place(text: str) -> Tuple[str, int]:
    """Read where the page is to be: ``HOST:PORT`` or a port."""
    from .web import place_of  # seldom needed

    try:
        return place_of(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT") from None


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


def count(text: str) -> int:
    """Read a number from 1 on."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def seconds(text: str) -> float:
    """Read a time in seconds."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return float(text)
