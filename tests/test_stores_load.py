"""Stores under load: many clients and two processes, and a server that is killed at any moment."""

import contextlib
import json
import os
import random
import re
import textwrap
import threading
import time

import pytest
from storing import body, envelope_of, files, flood, front, mbox_messages, read, send, token_of
from support import DEADLINE, Client, Program, until

from smtpd_sync.mailbox import JsonLines, Mbox
from smtpd_sync.reading import parsed, parts
from smtpd_sync.store import Files, Maildir, Memory

pytestmark = [
    pytest.mark.load,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork"),
]

LONG = os.environ.get("SMTPD_SYNC_LONG") == "1"

SERVER = """
import signal, sys
from smtpd_sync import SMTPServer
from smtpd_sync.mailbox import JsonLines, Mbox
from smtpd_sync.pipe import Pipe
from smtpd_sync.store import Files, Maildir

path, workers = sys.argv[2], int(sys.argv[3])
store = {
    "Maildir": lambda: Maildir(path),
    "Files": lambda: Files(path),
    "Mbox": lambda: Mbox(path + "/box"),
    "JsonLines": lambda: JsonLines(path + "/box"),
    "Pipe": lambda: Pipe(["dd", "status=none", "of=" + path + "/{id}"]),
}[sys.argv[1]]()
server = SMTPServer(("127.0.0.1", 0), deliver=store, trace=False, workers=workers)
signal.signal(signal.SIGTERM, lambda number, frame: server.stop())
print(f"listening on 127.0.0.1:{server.port}", flush=True)
server.serve_forever()
"""


def as_stored(name, token):
    """What a store makes of a message."""
    if name == "JsonLines":
        return "".join(parts(parsed(body(token)))[0])
    if name == "Files":
        return front(end="\r\n") + body(token)
    return front() + body(token).replace(b"\r\n", b"\n")


def stored(name, path, strict=True):
    """What a store holds: [(token, message)]; where not ``strict``, whole messages alone."""
    if name == "JsonLines":
        found = []
        for line in read(path / "box").splitlines():
            with contextlib.suppress(*(() if strict else (ValueError,))):
                one = json.loads(line)
                found.append((dict(one["headers"])["Subject"], one["text"]))
        return found
    if name == "Mbox":
        octets = read(path / "box")
        each = mbox_messages(octets) if strict else crashed_mbox(octets)
    elif name == "Maildir":
        each = [octets for where, octets in files(path).items() if where.startswith("new/")]
    else:
        each = [octets for where, octets in files(path).items() if not where.startswith(".")]
    return [(token_of(octets), octets) for octets in each]


def crashed_mbox(octets):
    """The messages of an mbox that have a subject: a crash may have cut one before it."""
    each = mbox_messages(octets if octets[-2:] in (b"", b"\n\n") else octets + b"\n\n")
    return [one for one in each if re.search(rb"(?m)^Subject: [a-z]+-[0-9]+-[0-9]+-[0-9]+$", one)]


@pytest.mark.parametrize("name", ["Maildir", "Files", "Mbox", "JsonLines", "Pipe"])
def test_thousand_messages_by_fifty_clients_into_two_workers(no_leaks, tmp_path, name):
    with Program("-W", "error", "-c", SERVER, name, str(tmp_path), "2") as program:
        begin = time.monotonic()
        tokens = flood(("127.0.0.1", program.port()), 50, 20)
        print(f"{name}: {len(tokens) / (time.monotonic() - begin):.0f} messages a second")
        program.process.terminate()
        assert program.finish() == 0
        assert program.errors == ""
    found = stored(name, tmp_path)
    assert len(tokens) == 1_000
    assert sorted(token for token, _ in found) == sorted(tokens)
    for token, message in found:
        assert message == as_stored(name, token), token
    assert not [path for path in files(tmp_path) if path.startswith((".", "tmp/"))]


def test_thousand_messages_by_fifty_clients_into_memory(serve):
    store = Memory()
    tokens = flood(serve(deliver=store, trace=False).address, 50, 20)
    found = {message.data for message in store.messages}
    assert found == {body(token) for token in tokens}
    assert len(store.messages) == len(tokens) == 1_000


# -- kill -9 ---------------------------------------------------------------------------------

CLIENTS = 6
ROUNDS = {"Maildir": 7, "Files": 7, "Mbox": 3, "JsonLines": 3}
"""20 rounds; ten times as many where there is time."""


def send_until_it_dies(place, prefix, told):
    """Send messages as fast as can be; put the token of each that got its 250 into ``told``."""
    try:
        with Client(place) as client:
            client.hello()
            for count in range(100_000):
                token = f"{prefix}-{count}"
                if not send(client, body(token)).startswith("250 "):
                    return
                told.append(token)
    except (OSError, AssertionError):
        return  # it was killed; no reply is no 250


@pytest.mark.parametrize("name", ROUNDS)
def test_each_250_has_its_message_whatever_moment_the_server_is_killed(no_leaks, tmp_path, name):
    rounds = ROUNDS[name] * (10 if LONG else 1)
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    told = []
    for number in range(rounds):
        before = len(told)
        with Program("-c", SERVER, name, str(tmp_path), "1") as program:
            place = ("127.0.0.1", program.port())
            threads = [
                threading.Thread(
                    target=send_until_it_dies, args=(place, f"k-{number}-{client}", told)
                )
                for client in range(CLIENTS)
            ]
            for thread in threads:
                thread.start()
            until(lambda before=before: len(told) > before, "a first message")
            time.sleep(chance.uniform(0, 0.3))
            program.process.kill()
            program.finish()
        for thread in threads:
            thread.join(DEADLINE)
    found = stored(name, tmp_path, strict=False)
    seen = {token for token, message in found if message == as_stored(name, token)}
    assert set(told) <= seen, f"{len(set(told) - seen)} of {len(told)} messages are lost"
    if name in ("Maildir", "Files"):
        # What has a name is whole, and what was not told of is one that was on its way.
        assert len(seen) == len(found)
        assert len(found) <= len(told) + rounds * CLIENTS
    else:
        # Of those that were on their way one at a time may be cut.
        assert len(found) - len(seen) <= rounds
    print(f"{name}: {rounds} rounds, {len(told)} messages told, {len(found)} found")
    leftovers = [path for path in files(tmp_path) if path.startswith((".", "tmp/"))]
    assert len(leftovers) <= rounds * CLIENTS


def test_what_a_kill_left_behind_is_removed_when_it_is_old(tmp_path):
    for name, make in (("Maildir", Maildir), ("Files", Files)):
        path = tmp_path / name
        with (
            Program("-c", SERVER, name, str(path), "1") as program,
            Client(("127.0.0.1", program.port())) as client,
        ):
            client.to_data()
            client.send(body("m-1-1") * 100)
            until(lambda path=path: files(path), "a temporary file")
            program.process.kill()
            program.finish()
        (left,) = files(path)
        make(path)
        assert list(files(path)) == [left]
        long_ago = time.time() - 40 * 60 * 60
        os.utime(path / left, (long_ago, long_ago))
        make(path)
        assert files(path) == {}


def test_locks_of_a_process_that_was_killed_do_not_stay(tmp_path):
    for kind in (Mbox, JsonLines):
        path = tmp_path / kind.__name__
        script = f"""
        import sys, time
        from smtpd_sync.mailbox import {kind.__name__} as Kind
        def slow(last):
            yield b"From x"
            print("inside", flush=True)
            time.sleep(300)
        Kind(sys.argv[1]).append(slow)
        """
        with Program("-c", textwrap.dedent(script), str(path)) as program:
            assert program.line() == "inside"
            program.process.kill()
            program.finish()
        store = kind(path)
        store.lock_timeout = 5.0
        store.deliver_envelope(envelope_of())
        assert not os.path.exists(f"{path}.lock")
        assert len(read(path)) > len(b"From x")
