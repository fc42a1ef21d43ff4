"""Stores and the programs of Unix: what the kernel is asked for, and who reads what we wrote."""

import mailbox
import os
import re
import shutil
import signal
import subprocess
import threading

import pytest
from storing import (
    UNIX,
    body,
    files,
    flood,
    front,
    mbox_messages,
    read,
    send,
    token_of,
)
from support import DEADLINE, Program
from test_stores_load import SERVER

from smtpd_sync.mailbox import Mbox
from smtpd_sync.pipe import Pipe

pytestmark = pytest.mark.interop


def need(name):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")


# -- what the kernel is asked for ------------------------------------------------------------

CALLS = "openat,open,write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,link,linkat"
LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)")


class Strace:
    """Looks at a process and its threads from outside."""

    def __init__(self, pid, log):
        need("strace")
        calls = f"trace={CALLS},unlink,unlinkat,sendto,sendmsg,ftruncate"
        self.log = log
        self.process = subprocess.Popen(
            ["strace", "-f", "-y", "-s", "64", "-e", calls, "-o", log, "-p", str(pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        line = self.process.stderr.readline()
        if "attached" not in line:
            self.process.wait(DEADLINE)
            self.process.stderr.close()
            pytest.skip(f"strace cannot look here: {line.strip()}")

    def stop(self):
        """Give what each thread did: {thread: [(call, its arguments and result)]}."""
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=DEADLINE)
        did, open_calls = {}, {}
        with open(self.log, errors="replace") as file:
            for line in file:
                match = LINE.match(line)
                if match is None:
                    continue
                thread, resumed, call, rest = match.groups()
                if resumed:
                    rest = open_calls.pop(thread, "") + rest
                elif rest.endswith("<unfinished ...>"):
                    open_calls[thread] = rest[: -len("<unfinished ...>")]
                    continue
                did.setdefault(thread, []).append((resumed or call, rest))
        return did


def steps(calls, store, directory):
    """Name what was done for the messages of one thread, in order; what is not ours is left out."""
    found = []
    for call, rest in calls:
        failed = re.search(r"= -1 E", rest)
        # That a name is taken, or free to be used, is no failure.
        expected = "EEXIST" in rest or (call == "unlink" and "ENOENT" in rest)
        assert expected or not (failed and str(store) in rest), (call, rest)
        if call in ("write", "pwrite64", "writev"):
            where = re.match(r"\d+<([^>]*)>", rest)[1]
            if where.startswith(str(store)):
                found.append(("write", os.path.basename(where)))
        elif call in ("fsync", "fdatasync"):
            where = re.match(r"\d+<([^>]*)>", rest)[1]
            kind = "fsync directory" if where == str(directory) else "fsync"
            found.append((kind, os.path.basename(where)))
        elif call.startswith(("rename", "link")) and not failed:
            names = re.findall(r'"([^"]*)"', rest)
            found.append(("name", os.path.basename(names[0])))
        elif call in ("sendto", "sendmsg") and '"250 2.0.0 OK' in rest:
            found.append(("250", ""))
    return found


@pytest.mark.parametrize("name", ["Maildir", "Files"])
def test_each_250_comes_after_write_fsync_rename_and_fsync(no_leaks, tmp_path, name):
    store = tmp_path / "store"
    log = tmp_path / "log"
    with Program("-c", SERVER, name, str(store), "1") as program:
        port = program.port()
        strace = Strace(program.process.pid, log)
        try:
            tokens = flood(("127.0.0.1", port), 3, 10)
        finally:
            did = strace.stop()
    directory = store / "new" if name == "Maildir" else store
    told = 0
    for calls in did.values():
        found = steps(calls, store, directory)
        while ("250", "") in found:
            at = found.index(("250", ""))
            message, found = found[:at], found[at + 1 :]
            file = message[0][1]
            kinds = [kind for kind, _ in message]
            writes = kinds.count("write")
            assert writes > 0
            assert kinds[:writes] == ["write"] * writes, kinds
            # A name that another thread took first costs an fsync of what is synced already.
            rest = [
                kind for at, kind in enumerate(kinds[writes:]) if kind != kinds[writes:][at - 1]
            ]
            assert rest == ["fsync", "name", "fsync directory"], kinds
            assert {where for _, where in message[:-1]} == {file}
            told += 1
        assert not [kind for kind, _ in found if kind != "250"], found
    assert told == len(tokens) == 30


@pytest.mark.parametrize("name", ["Mbox", "JsonLines"])
def test_each_250_comes_after_write_and_fsync(no_leaks, tmp_path, name):
    store = tmp_path / "store"
    with Program("-c", SERVER, name, str(store), "1") as program:
        port = program.port()
        strace = Strace(program.process.pid, tmp_path / "log")
        try:
            tokens = flood(("127.0.0.1", port), 3, 10)
        finally:
            did = strace.stop()
    told = 0
    for calls in did.values():
        found = steps(calls, store / "box", store)
        while ("250", "") in found:
            at = found.index(("250", ""))
            kinds = [kind for kind, where in found[:at] if ".lock" not in where]
            found = found[at + 1 :]
            if kinds[-1] == "fsync directory":  # the first of all
                kinds.pop()
            assert kinds[-1] == "fsync"
            writes = kinds[:-1]
            assert writes == ["write"] * len(writes)
            assert writes
            told += 1
    assert told == len(tokens) == 30


# -- procmail --------------------------------------------------------------------------------


@pytest.fixture
def session(serve, connect):
    def make(deliver):
        client = connect(serve(deliver=deliver, trace=False))
        client.hello()
        return client

    return make


PROCMAIL = """
SHELL=/bin/sh
LOGFILE={path}/log
DEFAULT={path}/default
LOCKSLEEP=1
SUSPEND=1
"""


def procmail(tmp_path, recipe):
    """Deliver by procmail with a recipe."""
    need("procmail")
    rc = tmp_path / "procmailrc"
    rc.write_text(PROCMAIL.format(path=tmp_path) + recipe + "\n")
    rc.chmod(0o600)
    # -f has it write a From line of its own, which an mbox needs.
    return Pipe(["procmail", "-f", "{sender}", "-m", "to={recipient}", "by={sender}", str(rc)])


def test_procmail_delivers_to_an_mbox(session, tmp_path):
    client = session(procmail(tmp_path, f":0:\n{tmp_path}/box"))
    assert send(client).startswith("250 ")
    assert send(client, body("m-1")).startswith("250 ")
    box = mailbox.mbox(tmp_path / "box", create=False)
    first, second = (box.get_bytes(key) for key in box.keys())  # noqa: SIM118
    box.close()
    # It quotes lines that begin with From, and no others: so that cannot be undone.
    assert first == front() + UNIX.replace(b"\nFrom ", b"\n>From ")
    assert second == front() + body("m-1").replace(b"\r\n", b"\n")


def test_procmail_delivers_to_a_maildir(session, tmp_path):
    client = session(procmail(tmp_path, f":0\n{tmp_path}/mail/"))
    assert send(client).startswith("250 ")
    (octets,) = files(tmp_path / "mail").values()
    assert octets == front() + UNIX


def test_procmail_gets_sender_and_recipient(session, tmp_path):
    recipe = f':0 c\n* ? test "$to" = b@y.example\n{tmp_path}/$by/\n\n:0\n/dev/null'
    client = session(procmail(tmp_path, recipe))
    assert send(client, recipients=["b@y.example", "c@y.example"]).startswith("250 ")
    (octets,) = files(tmp_path / "a@x.example").values()
    assert octets == front() + UNIX


@pytest.mark.parametrize(
    ("code", "told"), [(67, "550 5.1.1 "), (75, "451 4.3.0 "), (77, "550 5.7.0 "), (1, "451 ")]
)
def test_procmail_refuses(session, tmp_path, code, told):
    client = session(procmail(tmp_path, f"EXITCODE={code}\n:0\n/dev/null"))
    assert send(client).startswith(told)


def test_procmail_that_cannot_write_is_451(serve, connect, tmp_path):
    (tmp_path / "file").touch()
    recipe = f"DEFAULT={tmp_path}/file/below\nORGMAIL={tmp_path}/file/below\n:0\n{tmp_path}/file/x"
    server = serve(deliver=procmail(tmp_path, recipe), trace=False)
    client = connect(server, timeout=4 * DEADLINE)
    client.hello()
    assert send(client).startswith("451 4.3.0 ")


def test_procmail_and_store_write_to_one_mbox(serve, tmp_path):
    box = tmp_path / "box"
    theirs = serve(deliver=procmail(tmp_path, f":0:\n{box}"), trace=False)
    ours = serve(deliver=Mbox(box), trace=False)
    tokens = []
    threads = [
        threading.Thread(
            target=lambda server=server, at=at: tokens.extend(
                flood(server.address, 2, 10, prefix=f"s{at}")
            )
        )
        for at, server in enumerate((theirs, ours))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 40
    # procmail puts no blank line behind one that is there: of what it wrote that is not compared.
    found = {token_of(octets): octets.rstrip(b"\n") for octets in mbox_messages(read(box))}
    sent = {token: front() + body(token).replace(b"\r\n", b"\n") for token in tokens}
    assert found == {token: octets.rstrip(b"\n") for token, octets in sent.items()}


# -- maildrop --------------------------------------------------------------------------------


def maildrop(tmp_path, rules, *arguments):
    need("maildrop")
    filter = tmp_path / "mailfilter"
    filter.write_text(f'logfile "{tmp_path}/log"\n{rules}\n')
    filter.chmod(0o600)
    return Pipe(["maildrop", *arguments, str(filter), "{sender}", "{recipient}"])


def test_maildrop_delivers_to_a_maildir(session, tmp_path):
    need("maildirmake")
    subprocess.run(["maildirmake", str(tmp_path / "mail")], check=True, timeout=DEADLINE)
    client = session(maildrop(tmp_path, f'to "{tmp_path}/mail/"'))
    assert send(client).startswith("250 ")
    (octets,) = files(tmp_path / "mail" / "new").values()
    assert octets == front() + UNIX


def test_maildrop_delivers_to_an_mbox(session, tmp_path):
    client = session(maildrop(tmp_path, f'to "{tmp_path}/box"'))
    assert send(client).startswith("250 ")
    assert send(client, body("m-1")).startswith("250 ")
    first, second = mbox_messages(read(tmp_path / "box"))
    assert first == front() + UNIX
    assert token_of(second) == "m-1"


def test_maildrop_gets_sender_and_recipient(session, tmp_path):
    rules = f'if ($1 eq "a@x.example" && $2 eq "b@y.example")\n{{\n to "{tmp_path}/box"\n}}\nexit'
    client = session(maildrop(tmp_path, rules))
    assert send(client, recipients=["b@y.example", "c@y.example"]).startswith("250 ")
    assert len(mbox_messages(read(tmp_path / "box"))) == 1


@pytest.mark.parametrize(("code", "told"), [(67, "550 5.1.1 "), (75, "451 4.3.0 "), (77, "550 ")])
def test_maildrop_refuses(session, tmp_path, code, told):
    client = session(maildrop(tmp_path, f"EXITCODE={code}\nexit"))
    assert send(client).startswith(told)


def test_maildrop_that_cannot_write_is_451(session, tmp_path):
    (tmp_path / "file").touch()
    client = session(maildrop(tmp_path, f'to "{tmp_path}/file/below"'))
    assert send(client).startswith("451 4.3.0 ")
