"""What the tests of the stores share: mail, envelopes, faults of the system, small disks."""

import contextlib
import errno
import io
import os
import random
import re
import shutil
import subprocess
import sys
import threading

import pytest
from support import DEADLINE, Client

from smtpd_sync import Envelope, Peer, Session
from smtpd_sync.limits import DEFAULT_LIMITS
from smtpd_sync.rules import rules
from smtpd_sync.syntax import Mailbox

MAIL = b"Subject: hi\r\n\r\nhello\r\n\r\n.dot\r\nFrom here\r\n>From there\r\n"
LARGE = b"Subject: large\r\n\r\n" + b"".join(
    b"line %d of mail data, long enough to fill\r\n" % n for n in range(4_000)
)
UNIX = MAIL.replace(b"\r\n", b"\n")
SENDER, RECIPIENT = "a@x.example", "b@y.example"


def mailbox(text):
    return Mailbox.parse(text) if text else Mailbox()


def envelope_of(data=MAIL, sender=SENDER, recipients=(RECIPIENT,), lmtp=False, **parameters):
    """An envelope around octets, as the handler makes it."""
    session = Session(rules=rules(DEFAULT_LIMITS, lmtp=lmtp), peer=Peer("192.0.2.1", 4711))
    session.helo, session.esmtp = "client.example", True
    made = Envelope(session, mailbox(sender), parameters)
    made.id = "id4711"
    made.recipients = [mailbox(recipient) for recipient in recipients]
    made.recipient_parameters = [{} for _ in recipients]
    made.sink = io.BytesIO(data)
    return made


def front(sender=SENDER, recipients=(RECIPIENT,), end="\n"):
    """What a store puts before a message."""
    lines = [f"Return-Path: <{sender}>", *(f"Delivered-To: {each}" for each in recipients)]
    return "".join(line + end for line in lines).encode()


def stuffed(data):
    return b"." * data.startswith(b".") + data.replace(b"\r\n.", b"\r\n..")


def send(client, data=MAIL, sender=SENDER, recipients=(RECIPIENT,)):
    """Send a message in a session that is open; give the first reply that is no success."""
    for line in (f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{each}>" for each in recipients)):
        reply = client.ask(line)
        assert reply.startswith("250 "), reply
    reply = client.ask("DATA")
    if not reply.startswith("354 "):
        assert client.ask("RSET").startswith("250 ")
        return reply
    client.send(stuffed(data) + b".\r\n")
    return client.reply()


def files(directory):
    """All files below a directory, hidden ones too: {path below it: octets}."""
    found = {}
    for above, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(above, name)
            with contextlib.suppress(FileNotFoundError):  # it has just gone
                found[os.path.relpath(path, directory)] = read(path)
    return found


def read(path):
    with open(path, "rb") as file:
        return file.read()


def unquoted(octets):
    """Undo the quoting of mboxrd."""
    return re.sub(rb"(?m)^>(>*From )", rb"\1", octets)


def mbox_messages(octets):
    """Take an mbox apart as mboxrd says: [octets of a message, unquoted]."""
    assert octets == b"" or octets.startswith(b"From ")
    assert octets == b"" or octets.endswith(b"\n\n")
    found = re.split(rb"(?m)\nFrom [^\n]*\n", b"\n" + octets[:-1])[1:]
    return [unquoted(one) for one in found]


# -- many clients ----------------------------------------------------------------------------


def body(token):
    """A message that says which it is, whatever happens to it: CRLF lines, any octets."""
    chance = random.Random(token)
    size = chance.choice((0, 1, 100, 5_000, 20_000))
    octets = bytes(chance.choices(range(32, 256), k=size))
    lines = [octets[at : at + 70] for at in range(0, size, 70)]
    return b"Subject: %s\r\n\r\n" % token.encode() + b"".join(b"%s\r\n" % one for one in lines)


def token_of(octets):
    return re.search(rb"(?m)^Subject: ([a-z0-9-]+)\r?$", octets)[1].decode()


def flood(place, clients, each, recipients=(RECIPIENT,), prefix="m"):
    """Send ``each`` messages from each of many clients at a time; give the tokens."""
    failures, tokens = [], []

    def work(number):
        try:
            with Client(place, timeout=3 * DEADLINE) as client:
                client.hello()
                for count in range(each):
                    token = f"{prefix}-{number}-{count}"
                    reply = send(client, body(token), recipients=recipients)
                    assert reply.startswith("250 "), reply
                    tokens.append(token)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(6 * DEADLINE)
    assert not failures, failures[0]
    assert len(tokens) == clients * each
    return tokens


# -- faults ----------------------------------------------------------------------------------


class Faults:
    """Counts what is asked of the system, and lets one call fail."""

    CALLS = ("open", "fsync", "replace", "link", "unlink")

    def __init__(self, monkeypatch):
        self.arm()
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._failing(name, getattr(os, name)))

        faults = self

        class FileIO(io.FileIO):
            def write(self, octets):
                if faults.full:
                    faults._raise()
                if faults._fails("write"):
                    if not faults.short:
                        faults._raise()
                    # A disk that fills takes a part, and then nothing more.
                    faults.full = True
                    octets = bytes(octets)[: len(octets) // 2]
                return super().write(octets)

        monkeypatch.setattr(io, "FileIO", FileIO)

    def arm(self, name="", nth=0, number=errno.EIO, short=False):
        """Let the ``nth`` call of ``name`` from here fail; by default none."""
        self.name, self.nth, self.number, self.short = name, nth, number, short
        self.calls, self.full, self.struck = [], False, False

    def _fails(self, name):
        self.calls.append(name)
        fails = name == self.name and self.calls.count(name) == self.nth
        self.struck = self.struck or fails
        return fails

    def _raise(self):
        raise OSError(self.number, os.strerror(self.number))

    def _failing(self, name, call):
        def wrapper(*arguments, **keywords):
            if self._fails(name):
                self._raise()
            return call(*arguments, **keywords)

        return wrapper


KINDS = {
    # A write that fails while mail data comes in is 452 to the handler, whatever the reason.
    "EIO": (errno.EIO, False, ("451 4.3.0 ", "452 4.3.1 ")),
    "ENOSPC": (errno.ENOSPC, False, "452 4.3.1 "),
    "EDQUOT": (getattr(errno, "EDQUOT", errno.ENOSPC), False, "452 4.3.1 "),
    "a short write, then ENOSPC": (errno.ENOSPC, True, "452 4.3.1 "),
}
kinds = pytest.mark.parametrize("fault", KINDS.values(), ids=KINDS)


NAMES = (*Faults.CALLS, "write")


def every_fault(faults, fault, client, look, recipients=(RECIPIENT,), names=NAMES):
    """Let each call of a delivery fail, one in each delivery; give how many of each name did.

    ``look()`` gives the messages that are stored, and raises if there is anything else.
    """
    number, short, told = fault
    failed = {}
    for name in names:
        for nth in range(1, 100):
            stored = look()
            faults.arm(name, nth, number, short)
            reply = send(client, LARGE, recipients=recipients)
            struck, calls = faults.struck, faults.calls
            faults.arm()
            now = look()
            where = (name, nth, calls, reply)
            assert now[: len(stored)] == stored, where  # what was there is as it was
            assert len(now) - len(stored) == reply.startswith("250 "), where
            if not struck:
                assert reply.startswith("250 "), where
                break
            assert reply.startswith(told), where
            failed[name] = nth
    return failed


# -- disks -----------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(directory, options):
    """A directory on a file system of its own."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a tmpfs")
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def remount(directory, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(directory)], check=True)


def left(disk):
    stat = os.statvfs(disk)
    return stat.f_bavail * stat.f_frsize
