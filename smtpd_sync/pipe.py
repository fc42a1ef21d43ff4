"""A store that hands each message to a command, as sendmail and Postfix do: a battery.

The message is on the command's standard input, and what it exits with is the client's reply
(sysexits.h). No shell is run, and nothing that a client sends can become an option.
"""

from __future__ import annotations

import errno
import logging
import os
import selectors
import signal
import time
from typing import (
    IO,
    TYPE_CHECKING,
    Any,
    Dict,
    FrozenSet,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from . import reply as replies
from .envelope import Envelope
from .lineends import Text, each_recipient, pieces
from .logs import log, pairs
from .reply import Reject, Reply
from .store import storing
from .syntax import Mailbox

if TYPE_CHECKING:
    from subprocess import Popen

    from .hooks import Receipts

__all__ = ["EXITS", "Pipe"]

SHOWN = 4_096
"""Octets of a command's output that are logged."""
LONGEST_PAUSE = 0.05

EXITS: Mapping[int, Reply] = {
    64: Reply(554, "Command line usage error", "5.3.0"),
    65: Reply(554, "Data format error", "5.6.0"),
    66: Reply(554, "Cannot open input", "5.3.0"),
    67: Reply(550, "User unknown", "5.1.1"),
    68: Reply(550, "Host name unknown", "5.1.2"),
    69: Reply(554, "Service unavailable", "5.3.0"),
    70: Reply(554, "Internal software error", "5.3.0"),
    71: Reply(451, "System resource problem", "4.3.0"),
    72: Reply(451, "Critical system file missing", "4.3.0"),
    73: Reply(451, "Cannot create output file", "4.3.0"),
    74: Reply(451, "Input/output error", "4.3.0"),
    75: Reply(451, "Temporary failure", "4.3.0"),
    76: Reply(554, "Remote error in protocol", "5.5.0"),
    77: Reply(550, "Permission denied", "5.7.0"),
    78: Reply(451, "Local configuration error", "4.3.5"),
}
"""Exit code (sysexits.h) -> reply: as Postfix's pipe(8), but that mail may be sent again where our
machine is at fault and not the message or its recipient (72, 73, 74, 78). Any other is 451."""

FIELDS = frozenset({"sender", "recipient", "recipients", "id", "user", "helo", "peer"})
OPTION = Reply(553, "Address begins with a hyphen", "5.1.3")


class Pipe:
    """Runs ``command`` for each message; 250 if it exits with 0, else what `EXITS` says.

    ``command`` is a list of arguments, or text that ``shlex`` splits; no shell is run. In its
    arguments may stand ``{sender}``, ``{id}``, ``{user}``, ``{helo}``, ``{peer}``, and one of
    ``{recipients}``, an argument of its own that becomes one for each recipient, and
    ``{recipient}``: then the command is run for each. If that fails for some, the client is told of
    the first failure, and those who have the message get it again when the client tries again; in
    LMTP each recipient has a reply of its own.

    On standard input is the message, with LF line ends, behind ``Return-Path`` and a
    ``Delivered-To`` for each recipient. After ``timeout`` seconds the command and all that it
    started is killed, and the client told 451. Its output goes to the log. The null sender is
    ``null_sender``.
    """

    def __init__(
        self,
        command: Union[str, Sequence[str]],
        timeout: float = 60,
        null_sender: str = "MAILER-DAEMON",
    ) -> None:
        if os.name != "posix":
            raise ValueError("Pipe needs a system with process groups (POSIX)")
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
            raise ValueError(f"Pipe: timeout is a positive number of seconds, not {timeout!r}")
        if not isinstance(null_sender, str) or "\0" in null_sender or null_sender[:1] == "-":
            raise ValueError(f"Pipe: null_sender is text without a hyphen first: {null_sender!r}")
        self.command = _split(command)
        """The command, as a list of arguments."""
        self.timeout = timeout
        self.null_sender = null_sender
        self._fields = [_fields(argument) for argument in self.command]
        self._each = any("recipient" in fields for fields in self._fields)
        _check(self.command, self._fields)

    def deliver_envelope(self, envelope: Envelope) -> Receipts:
        """Run the command, and wait for it."""
        recipients = each_recipient(envelope)
        if not self._each:
            return self._run(envelope, recipients)
        verdicts: Dict[Mailbox, Optional[Reply]] = {}
        for recipient in recipients:
            try:
                verdicts[recipient] = self._run(envelope, [recipient])
            except Reject as reject:  # a fault of the system
                verdicts[recipient] = reject.reply
        if envelope.session.rules.lmtp:
            return [verdicts[recipient] for recipient in envelope.recipients]
        failures = [reply for reply in verdicts.values() if reply is not None]
        if failures and len(recipients) > 1:
            codes = {f"<{each}>": reply.code if reply else 250 for each, reply in verdicts.items()}
            log.warning("message %s was not delivered to all: %s", envelope.id, codes)
        return failures[0] if failures else None

    def __repr__(self) -> str:
        return f"Pipe({self.command!r})"

    def _run(self, envelope: Envelope, recipients: List[Mailbox]) -> Optional[Reply]:
        """Run it for some recipients; give what the client is told if it fails."""
        import tempfile

        arguments = self._arguments(envelope, recipients)
        if arguments is None:
            return OPTION
        with storing(), tempfile.TemporaryFile() as file:
            text = Text(envelope, recipients, unix=True)
            for octets in pieces(envelope.open()):
                file.write(text.feed(octets))
            file.write(text.end())
            file.seek(0)  # writes what waits in the buffer, too
            began = time.monotonic()
            status, output = run(arguments, file, self.timeout)
        failed = status != 0
        if failed or output:
            told = pairs(
                message=envelope.id,
                command=self.command[0],
                status="killed" if status is None else status,
                seconds=time.monotonic() - began,
                output=output.decode("utf-8", "replace").strip(),
            )
            log.log(logging.WARNING if failed else logging.INFO, "pipe %s", told)
        if not failed:
            return None
        return replies.LOCAL_ERROR if status is None else EXITS.get(status, replies.LOCAL_ERROR)

    def _arguments(self, envelope: Envelope, recipients: List[Mailbox]) -> Optional[List[str]]:
        """Fill in the command; ``None`` if what a client sent would become an option."""
        values = {
            "sender": envelope.sender or self.null_sender,
            "recipient": recipients[0],
            "id": envelope.id,
            "user": envelope.user or "",
            "helo": envelope.helo,
            "peer": envelope.peer.address,
        }
        filled: List[str] = []
        for argument, fields in zip(self.command, self._fields):
            if "recipients" in fields:
                made: List[str] = list(recipients)
            else:
                made = [argument.format(**values)]
            if argument.startswith("{") and fields and any(each[:1] == "-" for each in made):
                return None
            filled.extend(made)
        return filled


def run(arguments: List[str], file: IO[bytes], timeout: float) -> Tuple[Optional[int], bytes]:
    """Run a command on a file; give its status, and the first of what it prints.

    The status is ``None`` where it took too long, and was killed with all of its group.
    """
    import subprocess

    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        raise OSError(errno.ECHILD, "SIGCHLD is ignored: no command tells how it ended")
    deadline = time.monotonic() + timeout
    process = subprocess.Popen(  # noqa: S603 - that is what it is for
        # As octets: an address may hold what the locale cannot write.
        [argument.encode("utf-8", "surrogateescape") for argument in arguments],
        stdin=file,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None, "it is a pipe"
    with process.stdout as pipe:
        try:
            output = _read(process, pipe, deadline)
            try:
                return process.wait(max(0.0, deadline - time.monotonic())), output
            except subprocess.TimeoutExpired:
                return None, output
        finally:
            if process.returncode is None:
                # Nobody has waited for it: so its number is nobody else's.
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except OSError:
                    pass  # it has just ended
                process.wait()


def _read(process: Popen[bytes], pipe: IO[bytes], deadline: float) -> bytes:
    """Read what a command prints until it ends, and give the first of it.

    What it started may go on, and hold the pipe.
    """
    shown, pause, ended = b"", 0.001, False
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not (ended and len(shown) == SHOWN):
            left = deadline - time.monotonic()
            ready = left > 0 and selector.select(0 if ended else min(pause, left))
            if ready:
                octets = os.read(pipe.fileno(), 65_536)
                if not octets:
                    break
                shown += octets[: SHOWN - len(shown)]
            elif ended or left <= 0:
                break
            else:
                pause = min(pause * 2, LONGEST_PAUSE)
            ended = process.poll() is not None
    return shown


# -- the command -----------------------------------------------------------------------------


def _split(command: Any) -> List[str]:
    if isinstance(command, str):
        import shlex

        try:
            command = shlex.split(command)
        except ValueError as error:
            raise ValueError(f"Pipe: {command!r} cannot be split: {error}") from None
    arguments = list(command) if isinstance(command, (list, tuple)) else []
    if not arguments or not all(isinstance(each, str) and "\0" not in each for each in arguments):
        raise ValueError(f"Pipe needs a command, as text or as a list of texts, not {command!r}")
    if not arguments[0]:
        raise ValueError(f"Pipe: {command!r} names no program")
    return arguments


def _fields(argument: str) -> FrozenSet[str]:
    """Name the fields of an argument."""
    import string

    try:
        parts = list(string.Formatter().parse(argument))
    except ValueError as error:
        raise ValueError(f"Pipe: {argument!r}: {error}; a brace is written twice") from None
    for _, name, form, conversion in parts:
        if name is not None and (name not in FIELDS or form or conversion):
            known = " ".join(f"{{{field}}}" for field in sorted(FIELDS))
            raise ValueError(
                f"Pipe: {argument!r}: the fields are {known}; a brace is written twice"
            )
    return frozenset(name for _, name, _, _ in parts if name is not None)


def _check(command: List[str], fields: List[FrozenSet[str]]) -> None:
    if fields[0]:
        raise ValueError(f"Pipe: {command[0]!r}: no client may choose the program")
    for argument, names in zip(command, fields):
        if "recipients" in names and argument != "{recipients}":
            raise ValueError(f"Pipe: {argument!r}: {{recipients}} is an argument of its own")
    if {"recipient", "recipients"} <= frozenset().union(*fields):
        raise ValueError("Pipe: {recipient} and {recipients} are not for one command")
