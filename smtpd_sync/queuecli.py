"""``python3 -m smtpd_sync queue DIR``: what waits in a spool, for its operator.

Works beside a server and without one. What a client sent is shown without its control characters.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, Tuple, Union

from .flags import Parser
from .spooled import Message, Unreadable
from .spoolfiles import Claim, Directory, Held

__all__ = ["main"]

PATIENCE = 2.0
"""Seconds to wait for a message that somebody has."""

Found = Tuple[str, Union[Message, Exception]]


def parser() -> Parser:
    """Make the parser."""
    made = Parser(
        prog="smtpd-sync queue",
        usage="%(prog)s DIR [list|retry|remove] [OPTION ...] [ID ...]",
        description="Look after the messages that wait in the spool DIR.",
        epilog="list: show them (all, or those with an ID). retry: try them now (all, or those "
        "with an ID); a server that runs begins within seconds. remove: drop those with an ID, "
        "or --all; nobody is told. The status is 0, 1 if something could not be done, 2 if the "
        "command cannot be.",
    )
    made.add_argument("directory", metavar="DIR", help="the directory of a spool")
    made.add_argument(
        "command",
        nargs="?",
        choices=("list", "retry", "remove"),
        default="list",
        metavar="list|retry|remove",
        help="what to do (default: list)",
    )
    made.add_argument("names", nargs="*", metavar="ID", help="a message, as list names it")
    made.add_argument("--all", action="store_true", help="remove: all messages")
    made.add_argument("--json", action="store_true", help="list: one JSON object on each line")
    return made


def main(argv: List[str]) -> int:
    """Run the command line of the queue; give the status to exit with."""
    made = parser()
    arguments = made.parse_intermixed_args(argv)
    if not os.path.isdir(arguments.directory):
        made.error(f"{plain(arguments.directory)} is no directory")
    if arguments.command == "remove" and bool(arguments.names) == arguments.all:
        made.error("remove needs the ID of each message, or --all")
    if arguments.all and arguments.command != "remove":
        made.error("--all is for remove")
    if arguments.json and arguments.command != "list":
        made.error("--json is for list")
    try:
        return COMMANDS[arguments.command](Directory(arguments.directory), arguments)
    except BrokenPipeError:
        # Who reads has seen enough; what is left must not be written at our end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return complain(arguments.directory, error)


def found(directory: Directory, wanted: List[str]) -> Iterator[Found]:
    """Give the messages, or what is wrong with them, the oldest first."""
    names = [name for name, change in directory.names() if change is not None]
    for name in sorted(names, key=lambda name: (len(name), name)):
        if wanted and name not in wanted:
            continue
        try:
            yield name, directory.read(name)
        except FileNotFoundError:
            continue  # delivered, right now
        except (OSError, Unreadable) as error:
            yield name, error
    for name in wanted:
        if name not in names:
            yield name, Unreadable("there is no such message")


def list_messages(directory: Directory, arguments: argparse.Namespace) -> int:
    """Show the messages."""
    status, count, now = 0, 0, time.time()
    for name, message in found(directory, arguments.names):
        if isinstance(message, Exception):
            status = complain(name, message)
            continue
        count += 1
        show(as_json(message) if arguments.json else human(message, now))
    if not arguments.json:
        show(f"{count} message{'s' * (count != 1)}")
    return status


def retry(claim: Claim) -> None:
    """Have a message tried at once."""
    claim.message.next = time.time()
    claim.save()


def remove(claim: Claim) -> None:
    """Drop a message."""
    claim.remove()


def change(directory: Directory, arguments: argparse.Namespace) -> int:
    """Retry or remove messages."""
    act: Callable[[Claim], None] = retry if arguments.command == "retry" else remove
    status = 0
    for name, message in found(directory, arguments.names):
        if isinstance(message, Exception):
            status = complain(name, message)
            continue
        try:
            claim = take(directory, name)
        except FileNotFoundError:
            continue  # delivered, right now
        except (OSError, Held, Unreadable) as error:
            status = complain(name, error)
            continue
        try:
            act(claim)
        except OSError as error:
            status = complain(name, error)
        finally:
            claim.close()
    return status


COMMANDS: Dict[str, Callable[[Directory, argparse.Namespace], int]] = {
    "list": list_messages,
    "retry": change,
    "remove": change,
}


def take(directory: Directory, name: str) -> Claim:
    """Claim a message, when whoever delivers it lets it go soon."""
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            return directory.claim(name)
        except Held:
            if time.monotonic() > give_up:
                raise Held("it is being delivered now") from None
            time.sleep(0.05)


def human(message: Message, now: float) -> str:
    """Show a message to a person."""
    wait = message.next - now
    lines = [
        f"{message.name}  {span(now - message.arrived)} old  {message.size} octets  "
        f"{message.attempts} attempt{'s' * (message.attempts != 1)}  "
        f"next {f'in {span(wait)}' if wait > 0 else 'now'}  from <{plain(message.sender)}>"
    ]
    for each in message.recipients:
        lines.append(f"    <{plain(each.mailbox)}>")
        if each.reply:
            lines.append(f"        {plain(each.reply)}")
    return "\n".join(lines)


def as_json(message: Message) -> str:
    """Show a message to a program."""
    shown: Dict[str, Any] = {
        "id": message.name,
        "message": message.id,
        "arrived": message.arrived,
        "size": message.size,
        "attempts": message.attempts,
        "next": message.next,
        "sender": message.sender,
        "recipients": [
            {"mailbox": each.mailbox, "reply": each.reply or None} for each in message.recipients
        ],
        "peer": message.session.peer.address,
        "helo": message.session.helo,
        "user": message.session.user,
    }
    return json.dumps(shown)  # ASCII, and no control character


def span(seconds: float) -> str:
    """Write a time in its largest unit that says enough."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"


def plain(text: str) -> str:
    """Give text of the network on one line, without what moves a cursor."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text.replace("\n", " "))


def show(text: str) -> None:
    """Print, whatever the terminal can show."""
    encoding = sys.stdout.encoding or "ascii"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)


def complain(what: str, error: Exception) -> int:
    """Say on standard error what is wrong, in one line; give the status."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = f"smtpd-sync queue: {plain(what)}: {plain(reason)}"
    print(text.encode("ascii", "backslashreplace").decode(), file=sys.stderr)
    return 1
