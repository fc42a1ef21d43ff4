"""Stores that append to one file: whole messages, locked against all who write to it."""

import base64
import datetime
import email.policy
import errno
import json
import mailbox
import os
import pathlib
import random
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from email.message import EmailMessage

import pytest
from storing import (
    LARGE,
    MAIL,
    UNIX,
    Faults,
    body,
    envelope_of,
    every_fault,
    files,
    flood,
    front,
    kinds,
    left,
    mbox_messages,
    mounted,
    read,
    remount,
    send,
    token_of,
    unquoted,
)
from support import DEADLINE, SOON, until

from smtpd_sync import Reject
from smtpd_sync.mailbox import STALE, JsonLines, Mbox

fcntl = pytest.importorskip("fcntl", reason="the platform has no fcntl")

KINDS = {"Mbox": Mbox, "JsonLines": JsonLines}
stores = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mail" / "box"


@pytest.fixture
def session(serve, connect):
    """Open a session with a server of a store: ``session(store)``."""

    def make(store, **options):
        client = connect(serve(deliver=store, trace=False, **options))
        client.hello()
        return client

    return make


def objects(octets):
    """The objects of lines of JSON."""
    assert octets == b"" or octets.endswith(b"\n")
    return [json.loads(line) for line in octets.splitlines()]


def messages(kind, path):
    """What is stored: octets of each message, or its object."""
    return mbox_messages(read(path)) if kind is Mbox else objects(read(path))


def alone(path):
    """Whether nothing is beside the file."""
    return os.listdir(path.parent) == [path.name]


# -- mbox ------------------------------------------------------------------------------------


def test_mbox_holds_the_message_with_its_fields(session, path):
    client = session(Mbox(path))
    before = int(time.time())
    assert send(client).startswith("250 2.0.0 OK ")
    line, _, rest = read(path).partition(b"\n")
    assert rest == front() + UNIX.replace(b"\n>From", b"\n>>From").replace(
        b"\nFrom", b"\n>From"
    ) + (b"\n")
    match = re.fullmatch(r"From a@x\.example (... ... .. ..:..:.. ....)", line.decode())
    when = datetime.datetime.strptime(match[1], "%a %b %d %H:%M:%S %Y")
    when = when.replace(tzinfo=datetime.timezone.utc).timestamp()
    assert before - 1 <= when <= time.time()  # time(2) may lag by a tick
    assert mbox_messages(read(path)) == [front() + UNIX]
    assert alone(path)


def test_mbox_is_read_by_the_library(session, path):
    client = session(Mbox(path))
    sent = [body(f"m-{number}") for number in range(8)]
    for data in (MAIL, *sent):
        assert send(client, data).startswith("250 ")
    box = mailbox.mbox(path, create=False)
    expected = [front() + data.replace(b"\r\n", b"\n") for data in (MAIL, *sent)]
    assert [unquoted(box.get_bytes(key)) for key in box.keys()] == expected  # noqa: SIM118
    assert [message.get_from().split()[0] for message in box] == ["a@x.example"] * 9
    box.close()


def test_library_and_store_append_to_one_mbox(session, path):
    client = session(Mbox(path))
    assert send(client).startswith("250 ")
    box = mailbox.mbox(path)
    box.lock()
    box.add(b"Subject: theirs\n\nFrom them\n")
    box.flush()
    box.unlock()
    assert send(client).startswith("250 ")
    box.close()
    box = mailbox.mbox(path)
    assert [message["Subject"] for message in box] == ["hi", "theirs", "hi"]
    box.close()


@pytest.mark.parametrize("seed", range(4))
def test_any_message_comes_back_exactly(path, seed):
    chance = random.Random(seed)
    words = [b"From ", b">", b">>From ", b"\r\n", b"\r\n\r\n", b"x", b"From", b"F", b"\0", b"\xff"]
    store, sent = Mbox(path), []
    for _ in range(100):
        data = b"X: y\r\n\r\n" + b"".join(chance.choices(words, k=30)) + b"\r\n"
        store.deliver_envelope(envelope_of(data))
        sent.append(front() + data.replace(b"\r\n", b"\n"))
    assert mbox_messages(read(path)) == sent
    box = mailbox.mbox(path, create=False)
    assert [unquoted(box.get_bytes(key)) for key in box.keys()] == sent  # noqa: SIM118
    box.close()


def test_from_line_over_the_edge_of_a_piece_is_quoted(path):
    store, sent = Mbox(path), []
    for size in range(65_520, 65_545):
        data = b"x" * size + b"\r\nFrom here\r\n" + b">" * 200_000 + b"From there\r\n"
        store.deliver_envelope(envelope_of(data))
        sent.append(front() + data.replace(b"\r\n", b"\n"))
    assert mbox_messages(read(path)) == sent


@pytest.mark.parametrize(
    ("sender", "shown"),
    [
        ("", "MAILER-DAEMON"),
        ('"a b"@x.example', '"a?b"@x.example'),
        ("j\u00fc@x.example", "j?@x.example"),
        ("\u3000@x.example", "?@x.example"),
    ],
)
def test_from_line_is_ascii_and_has_one_word_for_the_sender(path, sender, shown):
    Mbox(path).deliver_envelope(envelope_of(sender=sender))
    assert read(path).startswith(f"From {shown} ".encode())
    (message,) = mbox_messages(read(path))
    assert message == front(sender) + UNIX
    box = mailbox.mbox(path, create=False)
    assert box[0].get_from().startswith(f"{shown} ")
    box.close()


def test_message_without_a_last_line_end_gets_one(path):
    store = Mbox(path)
    for data in (b"X: y\r\n\r\nend", b"X: y\r\n\r\nFrom", b"X: y\r\n\r\n>", b"X: y\r\n\r\nx\r"):
        store.deliver_envelope(envelope_of(data))
    ends = [b"end", b"From", b">", b"x\r"]
    assert mbox_messages(read(path)) == [front() + b"X: y\n\n" + end + b"\n" for end in ends]


def test_binary_mail_keeps_its_line_ends(path):
    octets = b"X: y\r\n\r\nFrom me\r\n\0\r\n"
    Mbox(path).deliver_envelope(envelope_of(octets, BODY="BINARYMIME"))
    assert mbox_messages(read(path)) == [front(end="\r\n") + octets]


TAILS = [
    b"From a@x Thu Jan  1 00:00:00 1970\nSubject: half",
    b"From a@x Thu Jan  1 00:00:00 1970\nSubject: half\n",
    b"From a@x Thu Jan  1 00:00:00 1970\nSubject: half\n\nFrom",
    b"From a@x Thu Jan  1 00:00:00 1970\nSubject: half\n\n",
    b"From a@x Thu",
    b"F",
    b"\n",
    b"",
]


@pytest.mark.parametrize("tail", TAILS, ids=ascii)
@pytest.mark.parametrize("whole", [0, 1])
def test_what_a_crash_left_does_not_merge_with_the_next_message(path, tail, whole):
    store = Mbox(path)
    for _ in range(whole):
        store.deliver_envelope(envelope_of())
    with open(path, "ab") as file:
        file.write(tail)
    store.deliver_envelope(envelope_of(b"Subject: next\r\n\r\nx\r\n"))
    box = mailbox.mbox(path, create=False)
    found = [box.get_bytes(key) for key in box.keys()]  # noqa: SIM118
    assert re.search(rb"(\A\n?|\n\n)From a@x\.example ", read(path)[-200:])
    assert found[-1] == front() + b"Subject: next\n\nx\n"
    assert len(found) == whole + 1 + tail.startswith(b"From ")
    if whole:
        assert unquoted(found[0]).startswith(front() + UNIX)
    box.close()


def test_large_mail_is_not_read_into_memory(path):
    tracemalloc = pytest.importorskip("tracemalloc")

    class Endless:
        """A file of one line that is never in memory as a whole."""

        def __init__(self, size):
            self.left = size

        def seek(self, where):
            assert where == 0

        def read(self, size):
            size = min(size, self.left)
            self.left -= size
            return b">" * size

    envelope = envelope_of()
    envelope.sink = Endless(64 * 1_048_576)
    store = Mbox(path)
    tracemalloc.start()
    try:
        store.deliver_envelope(envelope)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 64 * 1_048_576
    assert peak < 2 * 1_048_576


# -- lines of JSON ---------------------------------------------------------------------------


def multipart():
    message = EmailMessage(policy=email.policy.SMTP)
    message["From"] = "Jo <a@x.example>"
    message["To"] = "B <b@y.example>"
    message["Subject"] = "Gr\u00fc\u00dfe\u2028"
    message.set_content("the text, gr\u00fcn\n")
    message.add_alternative("<p>the markup</p>\n", subtype="html")
    message.add_attachment(bytes(range(256)) * 10, "image", "png", filename="b\u00fcro.png")
    message.add_attachment("a,b\n", "csv", filename="table.csv")
    return message.as_bytes()


def test_line_of_json_holds_all_of_a_message(serve, connect, path, certificate):
    server = serve(
        deliver=JsonLines(path),
        trace=False,
        tls=certificate,
        users={"jo": "secret"},
    )
    client = connect(server)
    client.hello()
    client.starttls(certificate)
    client.ask("EHLO client.example")
    plain = base64.b64encode(b"\0jo\0secret").decode()
    assert client.ask(f"AUTH PLAIN {plain}").startswith("235 ")
    data = multipart()
    assert client.ask("MAIL FROM:<a@x.example> BODY=8BITMIME SMTPUTF8").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    assert client.ask("RCPT TO:<C\u00e4@y.example>").startswith("250 ")
    client.ask("DATA")
    client.send(data.replace(b"\r\n.", b"\r\n..") + b".\r\n")
    reply = client.reply()
    (found,) = objects(read(path))
    when = datetime.datetime.strptime(found.pop("time"), "%Y-%m-%dT%H:%M:%SZ")
    age = time.time() - when.replace(tzinfo=datetime.timezone.utc).timestamp()
    assert 0 <= age < DEADLINE
    headers = {name: value for name, value in found.pop("headers")}  # noqa: C416
    assert headers["From"] == "Jo <a@x.example>"
    assert headers["Subject"].startswith("Gr\u00fc\u00dfe")
    assert found == {
        "id": reply.split()[-1],
        "peer": "127.0.0.1",
        "helo": "client.example",
        "tls": "TLSv1.3",
        "user": "jo",
        "sender": "a@x.example",
        "recipients": ["b@y.example", "C\u00e4@y.example"],
        "sender_parameters": {"BODY": "8BITMIME", "SMTPUTF8": True},
        "size": len(data),
        "text": "the text, gr\u00fcn\r\n",
        "attachments": [
            {
                "name": "b\u00fcro.png",
                "type": "image/png",
                "size": 2560,
                "content": base64.b64encode(bytes(range(256)) * 10).decode(),
            },
            {
                "name": "table.csv",
                "type": "text/csv",
                "size": 5,
                "content": base64.b64encode(b"a,b\r\n").decode(),
            },
        ],
    }


NESTED = b"Content-Type: message/rfc822\r\n\r\n" * 1_500 + b"X: y\r\n\r\nhello\r\n"
BROKEN = {
    "no header": b"no header at all\r\n",
    "raw octets": b"Subject: \xff\xfe\x80\r\n\r\n\xff\xfe\x80\r\n",
    "lone surrogates": b"Content-Type: text/plain; charset=utf-7\r\n\r\na+2AA-b\r\n",
    "charset that is none": b"Content-Type: text/plain; charset=idna\r\n\r\n\xff..\r\n",
    "broken base64": b"Content-Transfer-Encoding: base64\r\n\r\n!!!\r\n",
    "line separators": "Subject: a\u2028b\u2029c\x85d\r\n\r\na\u2028b\x85\x0b\x0c\x1c\r\n".encode(),
    "NUL": b"Subject: a\0b\r\n\r\nc\0d\r\n",
    "broken fields": b"Content-Type: ;;;\r\nTo: <<<>>>,,\r\nDate: \xff\r\nMIME-Version: x\r\n\r\n",
    "nested": NESTED,  # deeper than the email package can go
    "empty": b"",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken_mail_is_one_line_of_json(path, data):
    store = JsonLines(path)
    store.deliver_envelope(envelope_of(data))
    store.deliver_envelope(envelope_of())
    octets = read(path)
    assert octets.count(b"\n") == 2
    assert octets.isascii()
    found, after = objects(octets)
    assert found["size"] == len(data)
    assert after["headers"] == [["Subject", "hi"]]
    json.dumps(found, ensure_ascii=False).encode()  # no lone surrogates


def test_message_that_is_nested_too_deep_is_read_no_deeper_than_its_fields(path):
    JsonLines(path).deliver_envelope(envelope_of(NESTED))
    (found,) = objects(read(path))
    (attachment,) = found["attachments"]
    fields, _, rest = NESTED.partition(b"\r\n\r\n")
    assert found["headers"] == [fields.decode().split(": ")]
    assert attachment["type"] == "message/rfc822"
    assert base64.b64decode(attachment["content"]) == rest


@pytest.mark.parametrize("tail", [b'{"id": "ha', b"{", b"junk\n", b"\n", b""], ids=ascii)
@pytest.mark.parametrize("whole", [0, 1])
def test_partial_line_does_not_spoil_the_next(path, tail, whole):
    store = JsonLines(path)
    for _ in range(whole):
        store.deliver_envelope(envelope_of())
    before = read(path)
    with open(path, "ab") as file:
        file.write(tail)
    store.deliver_envelope(envelope_of())
    octets = read(path)
    assert octets.startswith(before + tail)
    assert json.loads(octets.splitlines()[-1])["id"] == "id4711"
    assert octets.endswith(b"\n")
    if tail.endswith(b"\n") or not tail:
        assert not octets[len(before + tail) :].startswith(b"\n")


# -- what both share -------------------------------------------------------------------------


@stores
def test_many_clients_at_a_time(serve, path, kind):
    server = serve(deliver=kind(path), trace=False)
    tokens = flood(server.address, 6, 10)
    found = messages(kind, path)
    if kind is Mbox:
        assert {token_of(each): each for each in found} == {
            token: front() + body(token).replace(b"\r\n", b"\n") for token in tokens
        }
    else:
        assert sorted(dict(each["headers"])["Subject"] for each in found) == sorted(tokens)
    assert len(found) == len(tokens) == 60
    assert alone(path)


@stores
def test_two_stores_and_a_process_write_to_one_file(serve, path, kind, tmp_path):
    script = f"""
import sys
from smtpd_sync.mailbox import {kind.__name__}
from storing import body, envelope_of
store = {kind.__name__}(sys.argv[1])
for number in range(30):
    store.deliver_envelope(envelope_of(body(f"p-{{number}}")))
"""
    stores = [kind(path) for _ in range(2)]
    servers = [serve(deliver=store, trace=False) for store in stores]
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{os.path.dirname(here)}"}
    other = subprocess.Popen([sys.executable, "-c", script, str(path)], env=environment)
    try:
        tokens = []
        threads = [
            threading.Thread(
                target=lambda at=at: tokens.extend(
                    flood(servers[at].address, 2, 15, prefix=f"s{at}")
                )
            )
            for at in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert other.wait(DEADLINE) == 0
    finally:
        other.kill()
        other.wait()
    tokens += [f"p-{number}" for number in range(30)]
    assert len(tokens) == 90
    found = messages(kind, path)
    if kind is Mbox:
        assert sorted(map(token_of, found)) == sorted(tokens)
    else:
        assert sorted(dict(each["headers"])["Subject"] for each in found) == sorted(tokens)
    assert alone(path)


@stores
def test_file_is_its_owners_alone(path, kind):
    mask = os.umask(0)
    try:
        kind(path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@stores
@pytest.mark.parametrize(
    "path", ["", b"mail", None, 7, "a\0b", pathlib.Path(__file__) / "below"], ids=repr
)
def test_path_that_is_none_says_so(kind, path):
    with pytest.raises(ValueError, match=rf"^{kind.__name__}"):
        kind(path)


@stores
def test_path_that_is_no_plain_file_says_so(kind, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/null"):
        with pytest.raises(ValueError, match=rf"^{kind.__name__}: .*not a plain file"):
            kind(path)


@stores
@pytest.mark.skipif(sys.platform != "linux", reason="nobody can make a file in /proc")
def test_path_that_cannot_be_written_says_so(kind):
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: /proc/box cannot be written"):
        kind("/proc/box")


@stores
def test_file_that_was_removed_is_made_again(session, path, kind):
    client = session(kind(path))
    assert send(client).startswith("250 ")
    path.unlink()
    assert send(client).startswith("250 ")
    assert len(messages(kind, path)) == 1


@stores
def test_file_that_cannot_be_opened_is_451(session, path, kind):
    client = session(kind(path))
    path.unlink()
    path.mkdir()
    assert send(client).startswith("451 4.3.0 ")
    assert os.listdir(path) == []


# -- locks -----------------------------------------------------------------------------------


@pytest.fixture
def hasty(path):
    """Make a store that does not wait long: ``hasty(kind)``."""

    def make(kind):
        store = kind(path)
        store.lock_timeout = 0.2
        return store

    return make


LOCKER = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def locked(path):
    """Have another process lock the file; give a function that ends that."""
    running = []

    def lock():
        process = subprocess.Popen(
            [sys.executable, "-c", LOCKER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        running.append(process)
        assert process.stdout.readline() == b"locked\n"

        def release():
            process.communicate(timeout=DEADLINE)

        return release

    yield lock
    for process in running:
        process.kill()
        process.communicate()


@stores
def test_file_that_another_process_has_locked_is_waited_for(session, path, kind, locked):
    client = session(kind(path))
    release = locked()
    replies = []
    thread = threading.Thread(target=lambda: replies.append(send(client)))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    assert read(path) == b""
    release()
    thread.join(SOON)
    assert replies[0].startswith("250 ")
    assert len(messages(kind, path)) == 1


@stores
def test_file_that_stays_locked_is_451(session, path, kind, locked, hasty, caplog):
    client = session(hasty(kind))
    release = locked()
    assert send(client) == "451 4.2.0 Mailbox is locked, please try again later"
    assert read(path) == b""
    assert f"{path} is locked by others" in caplog.text
    release()
    assert send(client).startswith("250 ")
    assert alone(path)


@stores
def test_thread_that_stays_in_the_file_is_451_to_the_others(path, kind, hasty):
    store, other = hasty(kind), hasty(kind)
    inside, go_on = threading.Event(), threading.Event()

    def slow(last):
        inside.set()
        assert go_on.wait(DEADLINE)
        yield from ()

    thread = threading.Thread(target=store.append, args=(slow,))
    thread.start()
    try:
        assert inside.wait(DEADLINE)
        for blocked in (store, other):
            with pytest.raises(Reject) as caught:
                blocked.deliver_envelope(envelope_of())
            assert str(caught.value.reply).startswith("451 4.2.0 ")
    finally:
        go_on.set()
        thread.join()
    other.deliver_envelope(envelope_of())
    assert alone(path)


def lock_file(path, content=b""):
    lock = pathlib.Path(f"{path}.lock")
    lock.write_bytes(content)
    return lock


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


HOST = socket.gethostname()


@pytest.mark.parametrize(
    "content",
    [b"", b"0", b"junk \xff\n", f"{os.getppid()} {HOST}\n".encode(), b"999999 elsewhere.example\n"],
    ids=ascii,
)
def test_lock_file_of_another_program_is_respected(session, path, hasty, content):
    client = session(hasty(Mbox))
    lock = lock_file(path, content)
    assert send(client).startswith("451 4.2.0 ")
    assert lock.read_bytes() == content
    assert read(path) == b""
    # A reader who wants both locks must not be kept out while we wait for the other.
    with open(path, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.unlink()
    assert send(client).startswith("250 ")
    assert alone(path)


def test_store_holds_both_locks_while_it_writes(path):
    store, seen = Mbox(path), []

    class Looking:
        def seek(self, where):
            lock = pathlib.Path(f"{path}.lock").read_bytes()
            script = LOCKER.replace("LOCK_EX", "LOCK_EX | fcntl.LOCK_NB")
            done = subprocess.run(
                [sys.executable, "-c", script, str(path)], capture_output=True, timeout=DEADLINE
            )
            seen.append((lock, b"BlockingIOError" in done.stderr))

        def read(self, size):
            return b""

    envelope = envelope_of()
    envelope.sink = Looking()
    store.deliver_envelope(envelope)
    assert seen == [(f"{os.getpid()} {HOST}\n".encode(), True)]
    assert alone(path)


def test_lock_file_of_a_process_that_died_is_removed(session, path, hasty, caplog):
    client = session(hasty(Mbox))
    lock_file(path, f"{dead_process()} {HOST}\n".encode())
    assert send(client).startswith("250 ")
    assert "of a process that died" in caplog.text
    assert alone(path)


def test_lock_file_of_our_own_former_life_is_removed(session, path, hasty):
    # In a container each life has the same number.
    client = session(hasty(Mbox))
    lock_file(path, f"{os.getpid()} {HOST}\n".encode())
    assert send(client).startswith("250 ")
    assert alone(path)


def test_old_lock_file_is_removed_and_a_young_one_is_not(session, path, hasty):
    client = session(hasty(Mbox))
    lock = lock_file(path)
    os.utime(lock, (time.time() - STALE + 60,) * 2)
    assert send(client).startswith("451 4.2.0 ")
    os.utime(lock, (time.time() - STALE - 60,) * 2)
    assert send(client).startswith("250 ")
    assert alone(path)


def test_mailbox_that_the_library_holds_is_respected(session, path, hasty):
    client = session(hasty(Mbox))
    script = f"""
import mailbox, sys
box = mailbox.mbox({str(path)!r})
box.lock()
print("locked", flush=True)
sys.stdin.read()
box.add(b"Subject: theirs\\n\\nx\\n")
box.close()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline() == b"locked\n"
        assert send(client).startswith("451 4.2.0 ")
    finally:
        other.communicate(timeout=DEADLINE)
    assert send(client).startswith("250 ")
    found = mbox_messages(read(path))
    assert [re.search(rb"Subject: (\w+)", each)[1] for each in found] == [b"theirs", b"hi"]


@pytest.mark.parametrize("vanishes", [False, True])
def test_mail_goes_to_the_file_that_took_the_others_place(session, path, monkeypatch, vanishes):
    # A mail reader puts a new file in the place of the old one, or removes an empty one. Here it
    # does so when we have opened the old one, and have not locked it yet.
    client = session(Mbox(path))
    assert send(client, body("m-old")).startswith("250 ")
    old, real, calls = path.parent / "old", fcntl.lockf, []

    def lockf(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            path.rename(old)
            if not vanishes:
                path.write_bytes(b"")
        real(*arguments)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    assert send(client, body("m-new")).startswith("250 ")
    assert len(calls) == 2
    assert [token_of(each) for each in mbox_messages(read(old))] == ["m-old"]
    assert [token_of(each) for each in mbox_messages(read(path))] == ["m-new"]


def test_where_no_lock_file_can_be_made_the_other_lock_is_enough(session, path, monkeypatch):
    store = Mbox(path)
    client = session(store)
    real = os.open

    def denied(name, *arguments, **keywords):
        if ".lock" in str(name):
            raise PermissionError(errno.EACCES, "no")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(os, "open", denied)
    assert send(client).startswith("250 ")
    assert len(mbox_messages(read(path))) == 1
    lock = lock_file(path)  # but one that is there says what it says
    store.lock_timeout = 0.1
    assert send(client).startswith("451 4.2.0 ")
    lock.unlink()
    assert send(client).startswith("250 ")


@pytest.mark.parametrize("left", ["-new", "", "both"])
def test_lock_of_a_process_that_was_killed_while_it_made_it_is_no_hindrance(
    session, path, hasty, left
):
    client = session(hasty(Mbox))
    draft = pathlib.Path(f"{path}.lock-new")
    draft.write_bytes(f"{dead_process()} {HOST}\n".encode())
    if left == "both":
        os.link(draft, f"{path}.lock")
    elif not left:
        draft.rename(f"{path}.lock")
    assert send(client).startswith("250 ")
    assert alone(path)


def test_lock_file_says_whose_it_is_from_its_first_moment_on(session, path, monkeypatch):
    client = session(Mbox(path))
    real, seen = os.link, []

    def link(source, target):
        seen.append(read(source))
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    assert send(client).startswith("250 ")
    assert seen == [f"{os.getpid()} {HOST}\n".encode()]


def test_lock_file_is_enough_where_there_is_no_other(session, path, monkeypatch, hasty):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    client = session(hasty(Mbox))
    lock = lock_file(path)
    assert send(client).startswith("451 4.2.0 ")
    lock.unlink()
    assert send(client).startswith("250 ")
    assert len(mbox_messages(read(path))) == 1
    assert alone(path)


def test_fault_of_the_lock_itself_is_451(session, path, monkeypatch):
    client = session(Mbox(path))

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    assert send(client).startswith("451 4.3.0 ")
    assert read(path) == b""
    assert alone(path)


# -- faults ----------------------------------------------------------------------------------


@pytest.fixture
def faults(monkeypatch):
    return Faults(monkeypatch)


@stores
@kinds
def test_every_fault_is_45x_and_leaves_nothing(faults, session, path, kind, fault):
    client = session(kind(path))

    def look():
        assert alone(path)
        return messages(kind, path)

    # A lock file that cannot be removed again is none of the message.
    names = ("open", "fsync", "link", "write")
    failed = every_fault(faults, fault, client, look, names=names)
    assert failed.pop("write") >= (3 if kind is Mbox else 1)
    # That of the directory, and its fsync, are for the first message.
    assert failed == (
        {"open": 3, "fsync": 1, "link": 1} if kind is Mbox else {"open": 2, "fsync": 1}
    )


@stores
def test_first_message_needs_the_name_of_the_file_to_be_durable(faults, session, path, kind):
    client = session(kind(path))
    faults.arm("fsync", 2)
    assert send(client).startswith("451 4.3.0 ")
    faults.arm()
    assert read(path) == b""
    assert send(client).startswith("250 ")


@stores
def test_fault_is_logged_where_it_cannot_be_undone(path, kind, faults, monkeypatch, caplog):
    store = kind(path)
    store.deliver_envelope(envelope_of())

    def no(*_):
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "fsync", no)
    with pytest.raises(Reject):
        store.deliver_envelope(envelope_of())
    assert f"may be left in {path}" in caplog.text


def small_disk(tmp_path):
    return mounted(tmp_path / "disk", "size=1m")


@stores
def test_disk_that_fills_is_452_and_leaves_nothing(session, tmp_path, kind):
    with small_disk(tmp_path) as disk:
        client = session(kind(disk / "box"))
        assert send(client).startswith("250 ")
        before, room = files(disk), left(disk)
        assert send(client, LARGE * 8).startswith("452 4.3.1 ")
        assert files(disk) == before
        assert left(disk) == room
        assert send(client, LARGE).startswith("250 ")
        assert len(messages(kind, disk / "box")) == 2


@stores
def test_disk_that_is_full_is_452(session, tmp_path, kind):
    with small_disk(tmp_path) as disk:
        client = session(kind(disk / "box"))
        filler = disk / "filler"
        filler.write_bytes(bytes(left(disk)))
        assert send(client).startswith("452 4.3.1 ")
        assert sorted(files(disk)) == ["box", "filler"]
        assert read(disk / "box") == b""
        filler.unlink()
        assert send(client).startswith("250 ")


@stores
def test_disk_that_is_read_only_is_451_and_leaves_nothing(session, tmp_path, kind):
    with small_disk(tmp_path) as disk:
        client = session(kind(disk / "box"))
        assert send(client).startswith("250 ")
        before = files(disk)
        remount(disk, "ro")
        assert send(client).startswith("451 4.3.0 ")
        assert files(disk) == before
        remount(disk, "rw")
        assert send(client).startswith("250 ")
        assert len(messages(kind, disk / "box")) == 2


@stores
def test_stores_leak_no_descriptor(session, path, kind):
    client = session(kind(path))
    assert send(client).startswith("250 ")
    if sys.platform == "linux":
        links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        until(lambda: not any(os.path.realpath(link) == str(path) for link in links))
