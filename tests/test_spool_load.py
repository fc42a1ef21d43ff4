"""A spool whose server is killed under load, again and again: no 250 may have been a lie."""

import collections
import contextlib
import hashlib
import os
import pathlib
import random
import signal
import textwrap
import threading
import time

import pytest
from support import DEADLINE, Client, Program, until

pytestmark = [
    pytest.mark.load,
    pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX"),
]

LONG = os.environ.get("SMTPD_SYNC_LONG") == "1"
KILLS = 200 if LONG else 20
CLIENTS = 4
LONGEST = 0.4
"""Seconds that a server may live once it has said where it listens."""
DRAIN = 60.0

# Writes down what is delivered, one line at a time, in one system call; defers half of the
# recipients at first, so that metadata are written anew while it is killed.
SERVER = """
    import hashlib, os, re, signal, sys
    from smtpd_sync import Reply, SMTPServer
    from smtpd_sync.spool import Spool

    spool, journal, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    tried = set()

    class Hook:
        def deliver_envelope(self, envelope):
            number, digest, body = envelope.content.split(b"\\r\\n", 2)
            whole = hashlib.sha256(body).hexdigest().encode() == digest
            receipts = []
            for recipient in envelope.recipients:
                key = number, recipient
                later = recipient.local == "later" and key not in tried
                tried.add(key)
                receipts.append(Reply(450, "later") if later else None)
                if not later:
                    line = b"%s %s %d\\n" % (number, recipient.encode(), whole)
                    assert os.write(file, line) == len(line)
            return receipts

    battery = Spool(spool, Hook(), first_pause=0.05, longest_pause=0.2, threads=3)
    server = SMTPServer(("127.0.0.1", 0), deliver=battery, trace=False, workers=workers)
    signal.signal(signal.SIGTERM, lambda number, frame: server.stop(5))
    print(f"listening on 127.0.0.1:{server.port}", flush=True)
    server.serve_forever()
"""


class Sender(threading.Thread):
    """Sends messages until the connection is lost, and notes those that were accepted."""

    def __init__(self, port, number, dice):
        super().__init__(name="sender")
        self.port, self.number, self.dice = port, number, dice
        self.accepted = []
        self.trouble = None

    def run(self):
        # A refused connection, a reset, or the end in the middle of a reply: it was killed.
        with contextlib.suppress(OSError, AssertionError), self.client() as client:
            client.hello()
            for n in range(100_000):
                if not self.send(client, f"{self.number}.{n}"):
                    return

    def client(self):
        return Client(("127.0.0.1", self.port))

    def send(self, client, name):
        body = self.dice.randbytes(self.dice.choice((50, 3_000, 100_000))).hex().encode() + b"\r\n"
        digest = hashlib.sha256(body).hexdigest().encode()
        data = b"%s\r\n%s\r\n%s" % (name.encode(), digest, body)
        group = (
            b"MAIL FROM:<>\r\nRCPT TO:<now@y.example>\r\nRCPT TO:<later@y.example>\r\n"
            b"BDAT %d LAST\r\n" % len(data)
        )
        client.send(group + data)
        replies = [client.reply() for _ in range(4)]
        if "" in replies:
            return False
        if not all(reply.startswith("250 ") for reply in replies):
            self.trouble = replies
            return False
        self.accepted.append(name)
        return True


def journal_of(file):
    """Count the deliveries of each message to each recipient, and those not whole."""
    counts, broken = collections.Counter(), []
    for line in file.read_bytes().splitlines():
        name, recipient, whole = line.decode().split()
        counts[name, recipient] += 1
        if whole != "1":
            broken.append(name)
    return counts, broken


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_server_has_delivered_what_it_accepted(tmp_path, no_leaks, workers):
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")  # shown where it fails
    dice = random.Random(seed)
    spool, journal = tmp_path / "spool", tmp_path / "journal"
    arguments = "-c", textwrap.dedent(SERVER), str(spool), str(journal), str(workers)
    accepted, began, number = [], time.monotonic(), 0
    # With workers there is one more process to start and to wait for.
    kills = KILLS if workers == 1 else max(5, KILLS // 4)
    for _ in range(kills):
        with Program(*arguments) as program:
            port = program.port()
            senders = []
            for _ in range(CLIENTS):
                number += 1
                senders.append(Sender(port, number, random.Random(dice.random())))
            for sender in senders:
                sender.start()
            time_to_live = dice.uniform(0, LONGEST)
            threading.Event().wait(time_to_live)
            kill(program, workers, dice)
            program.finish()
            for sender in senders:
                sender.join(DEADLINE)
                assert not sender.is_alive()
                assert sender.trouble is None
                accepted += sender.accepted
    took = time.monotonic() - began
    assert len(accepted) > kills, "there was no load"
    with Program(*arguments) as program:
        program.port()
        until(lambda: not os.listdir(spool), "an empty spool", DRAIN)
        program.signal(signal.SIGTERM)
        assert program.finish() == 0, program.errors
        errors = program.errors
    counts, broken = journal_of(journal)
    for recipient in ("now@y.example", "later@y.example"):
        lost = [name for name in accepted if not counts[name, recipient]]
        assert lost == []
    assert broken == []
    assert "Traceback" not in errors
    twice = sum(count - 1 for count in counts.values())
    print(f"{kills} kills in {took:.1f} s, {len(accepted)} accepted, {twice} delivered again")
    # Only what was being delivered when it was killed comes again.
    assert twice <= kills * workers * 3 * 2


def workers_of(program):
    file = pathlib.Path(f"/proc/{program.process.pid}/task/{program.process.pid}/children")
    if not file.exists():
        pytest.skip("/proc does not show the workers")
    return [int(pid) for pid in file.read_text().split()]


def kill(program, workers, dice):
    """Kill the server; of several workers one alone, at times, and the rest a little later."""
    if workers > 1:
        if dice.random() < 0.5:
            os.kill(dice.choice(workers_of(program)), signal.SIGKILL)
            threading.Event().wait(dice.uniform(0, LONGEST))
        program.signal(signal.SIGSTOP)  # so that it makes no more of them
        for pid in workers_of(program):
            os.kill(pid, signal.SIGKILL)
    program.signal(signal.SIGKILL)
