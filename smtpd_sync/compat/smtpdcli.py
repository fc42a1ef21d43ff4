"""The command line of the removed ``smtpd``: ``python3 -m smtpd_sync.compat.smtpd``."""

from __future__ import annotations

import getopt
import importlib
import os
import sys
from typing import Any, NoReturn, Optional, Tuple

from . import channel, smtpd
from .asyncore import loop

__all__ = ["Options", "main", "parseargs"]

USAGE = """\
An SMTP server, or a proxy of one, with SIZE (RFC 1870) and SMTPUTF8 (RFC 6531).

Usage: {program} [options] [localhost:localport [remotehost:remoteport]]

Options:

    -n, --nosetuid
        Stay who you are. Without it, the program becomes the user "nobody" once it listens, which
        only root can.

    -V, --version
        Print the version and exit.

    -c CLASS, --class CLASS
        The class that serves: PureProxy, which is the default, DebuggingServer, or any other by
        its dotted name.

    -s LIMIT, --size LIMIT
        The octets that a message may have; 33554432 by default.

    -u, --smtputf8
        Offer SMTPUTF8.

    -d, --debug
        Say on stderr what goes on.

    -h, --help
        Print this and exit.

It listens at localhost:8025 unless told otherwise. A proxy passes mail on to remotehost:remoteport,
by default localhost:25.

{version}
"""
FLAGS = "nVhc:s:du"
LONG = ["class=", "nosetuid", "version", "help", "size=", "debug", "smtputf8"]
PLACES = ("localhost:8025", "localhost:25")


class Options:
    """What the command line says."""

    setuid = True
    classname = "PureProxy"
    size_limit: Optional[int] = channel.DATA_SIZE_DEFAULT
    enable_SMTPUTF8 = False
    localhost, localport = "localhost", 8025
    remotehost, remoteport = "localhost", 25


def usage(status: int, message: object = "") -> NoReturn:
    """Say how it is used, and exit."""
    print(USAGE.format(program=sys.argv[0], version=channel.VERSION), file=sys.stderr)
    if message:
        print(message, file=sys.stderr)
    sys.exit(status)


def parseargs() -> Options:
    """Read the command line."""
    try:
        found, places = getopt.getopt(sys.argv[1:], FLAGS, LONG)
    except getopt.GetoptError as error:
        usage(1, error)
    options = Options()
    for flag, value in found:
        if flag in ("-h", "--help"):
            usage(0)
        elif flag in ("-V", "--version"):
            print(channel.VERSION)
            sys.exit(0)
        elif flag in ("-n", "--nosetuid"):
            options.setuid = False
        elif flag in ("-c", "--class"):
            options.classname = value
        elif flag in ("-d", "--debug"):
            smtpd.DEBUGSTREAM = sys.stderr
        elif flag in ("-u", "--smtputf8"):
            options.enable_SMTPUTF8 = True
        else:
            options.size_limit = _size(value)
    if len(places) > len(PLACES):
        usage(1, f"Invalid arguments: {smtpd.COMMASPACE.join(places)}")
    local, remote = [*places, *PLACES[len(places) :]]
    options.localhost, options.localport = _place("local", local)
    options.remotehost, options.remoteport = _place("remote", remote)
    return options


def _size(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        print(f"Invalid size: {text}", file=sys.stderr)
        sys.exit(1)


def _place(which: str, text: str) -> Tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon:
        usage(1, f"Bad {which} spec: {text}")
    try:
        return host, int(port)
    except ValueError:
        usage(1, f"Bad {which} port: {text}")


def _find(name: str) -> Any:
    module, dot, name = name.rpartition(".")
    if dot:
        return getattr(importlib.import_module(module), name)
    return getattr(smtpd, name)


def _become_nobody() -> None:
    try:
        import pwd
    except ImportError:
        _fail('Cannot import module "pwd"; try running with -n option.')
    user = pwd.getpwnam("nobody")
    try:
        if os.getuid() == 0:  # else setuid() alone says what is wrong
            os.setgroups([])
            os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    except PermissionError:
        _fail('Cannot setuid "nobody"; try running with -n option.')


def _fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(1)


def main() -> None:
    """Serve until Ctrl-C."""
    options = parseargs()
    server = _find(options.classname)(
        (options.localhost, options.localport),
        (options.remotehost, options.remoteport),
        options.size_limit,
        enable_SMTPUTF8=options.enable_SMTPUTF8,
    )
    try:
        if options.setuid:
            _become_nobody()
        loop()
    except KeyboardInterrupt:
        pass
    finally:
        server.close()
