"""The spool: what a 250 promises, who is asked again and when, and what its sender is told."""

import contextlib
import errno
import io
import json
import os
import shutil
import smtplib
import socket
import subprocess
import sys
import textwrap
import threading
import time
from email import message_from_bytes, policy

import pytest
from support import DEADLINE, SOON, Inbox, Program, descriptors, until

from smtpd_sync import Disconnect, Limits, Reject, Reply, SMTPServer, spoolfiles
from smtpd_sync.attempts import Attempts
from smtpd_sync.envelope import TLS, Envelope, Peer
from smtpd_sync.spool import Spool
from smtpd_sync.spooled import Message, Origin, Unreadable
from smtpd_sync.spoolfiles import Directory, Held
from smtpd_sync.syntax import Mailbox

posix = pytest.mark.skipif(os.name != "posix", reason="modes and locks are those of POSIX")
BUSY = Reply(450, "busy", "4.2.1")
GONE = Reply(550, "gone", "5.1.1")
MAIL = b"Subject: hi\r\n\r\nhello\r\n"
QUICK = {"first_pause": 0.02, "longest_pause": 0.1}
SLOW = {"first_pause": 1_000, "longest_pause": 1_000}


@pytest.fixture
def path(tmp_path):
    """Where the spool is."""
    return tmp_path / "spool"


@pytest.fixture
def spool(path, inbox, no_leaks):
    """Make a spool, stopped after the test: ``spool(deliver, **options)``."""
    made = []

    def make(deliver=inbox, started=False, **options):
        options = {"hostname": "mx.example", **QUICK, **options}
        made.append(Spool(path, deliver, **options))
        if started:
            made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.stop(SOON)


class Recorder(Inbox):
    """A hook that answers as it is told: a verdict for each local part, once or for ever."""

    def __init__(self, **verdicts):
        super().__init__()
        self.verdicts = verdicts

    def __call__(self, sender, recipients, data):
        super().__call__(sender, list(recipients), data)
        return [self.verdict(recipient.local) for recipient in recipients]

    def verdict(self, local):
        found = self.verdicts.get(local)
        return (found.pop(0) if found else None) if isinstance(found, list) else found

    def asked(self):
        """Who was asked for, each time, but for reports."""
        return [recipients for sender, recipients, _ in self.messages if sender]

    def reports(self):
        return [data for sender, _, data in self.messages if sender == ""]


def put(path, *recipients, sender="a@x.example", data=MAIL, parameters=None, arrived=None):
    """Put a message into a spool that nobody serves; give its name."""
    directory = Directory(path)
    directory.make()
    session = Origin(Peer("192.0.2.1", 1234), "client.example")
    envelope = Envelope(session, mailbox(sender), {})
    envelope.id = f"{time.time_ns():x}"
    for recipient in recipients or ("b@y.example",):
        envelope.recipients.append(mailbox(recipient))
        envelope.recipient_parameters.append((parameters or {}).get(recipient, {}))
    with contextlib.closing(directory.new(envelope.id, lambda name: None)) as file:
        file.write(data)
        message = Message.of(envelope, file.message)
        if arrived is not None:
            message.arrived = message.next = arrived
        directory.commit(file, message)
    return file.message


def mailbox(text):
    return Mailbox.parse(text) if text else Mailbox()


def names(path):
    return sorted(os.listdir(path))


def metadata(path):
    """The metadata of the only message."""
    (file,) = path.glob("*.json")
    return json.loads(file.read_bytes())


def empty(path):
    until(lambda: names(path) == [], f"an empty spool instead of {names(path)}")


def parse(report):
    return message_from_bytes(report, policy=policy.default)


def fields(report):
    """The fields of each recipient of a report."""
    _, status, _ = parse(report).iter_parts()
    assert status.get_content_type() == "message/delivery-status"
    return list(status.iter_parts())[1:]


# -- accepting -------------------------------------------------------------------------------


def test_accepted_message_is_in_the_directory_whole_and_private(serve, connect, spool, path):
    # The server starts the spool; a hook that is asked has not struck off anybody yet.
    seen = []

    def deliver(sender, recipients, data):
        seen.append((sender, recipients, data, names(path), metadata(path)))

    server = serve(deliver=spool(deliver), trace=False)
    reply = connect(server).mail(MAIL)
    assert reply.startswith("250 2.0.0 OK ")
    name = reply.split()[-1]
    until(lambda: seen)
    ((sender, recipients, data, files, kept),) = seen
    assert (sender, recipients, data) == ("a@x.example", ["b@y.example"], MAIL)
    assert files == [f"{name}.eml", f"{name}.json"]
    assert kept["size"] == len(MAIL)
    assert kept["attempts"] == 0
    empty(path)


@posix
def test_nobody_else_may_read_it(spool, connect, path, no_leaks):
    old = os.umask(0)
    try:
        with SMTPServer(("127.0.0.1", 0), deliver=stalled(spool(BusyAlways(), **SLOW))) as server:
            server.start()
            with contextlib.closing(connect(server)) as client:
                assert client.mail().startswith("250 ")
            assert os.stat(path).st_mode & 0o777 == 0o700
            assert [os.stat(path / name).st_mode & 0o777 for name in names(path)] == [0o600] * 2
    finally:
        os.umask(old)


class BusyAlways(Recorder):
    def verdict(self, local):
        return BUSY


class stalled:
    """A battery that only accepts: what a server has whose threads never come to deliver."""

    def __init__(self, spool):
        self.open_sink = spool.open_sink
        self.deliver_envelope = spool.deliver_envelope


def test_mail_data_is_kept_to_the_octet(serve, connect, spool, inbox, path):
    octets = b"\r\n.\r\n\n\r\0" + bytes(range(256)) * 300 + b" no end of line"
    client = connect(serve(deliver=spool(), trace=False, bare_newline="keep"))
    client.hello()
    assert client.ask("MAIL FROM:<a@x.example> BODY=BINARYMIME").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    client.send(b"BDAT %d LAST\r\n" % len(octets) + octets)
    assert client.reply().startswith("250 ")
    assert inbox.data == octets
    empty(path)


def test_trace_field_is_written_once(serve, connect, spool, inbox):
    reply = connect(serve(deliver=spool())).mail(MAIL)
    assert inbox.data.startswith(b"Received: from client.example ")
    assert inbox.data.count(b"Received:") == 1
    assert reply.split()[-1].encode() in inbox.data
    assert inbox.data.endswith(MAIL)


def test_what_is_not_accepted_leaves_nothing(serve, connect, spool, path, inbox):
    limits = Limits(message_size=1_000)
    server = serve(deliver=stalled(spool()), limits=limits)
    client = connect(server)
    assert client.mail(b"x" * 900 + b"\r\n" + b"y" * 200 + b"\r\n").startswith("552 ")
    assert names(path) == []
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    client.send(b"BDAT 5\r\nhello")
    assert client.reply().startswith("250 ")
    assert len(names(path)) == 1
    assert client.ask("RSET").startswith("250 ")
    assert names(path) == []
    gone = connect(server)
    gone.to_data()
    gone.send(b"Subject: half of\r\n")
    until(lambda: names(path))
    gone.close()
    empty(path)
    assert inbox.messages == []


def test_second_battery_may_refuse_what_the_spool_keeps(serve, connect, spool, inbox):
    def refuse(sender, recipients, data):
        raise Reject(550, "no")

    assert connect(serve(deliver=[spool(), refuse])).mail().startswith("550 ")
    assert inbox.wait()  # at least once: the client will try again


def test_message_that_has_no_sink_of_ours_is_copied(spool, inbox, path):
    envelope = Envelope(Origin(Peer("", 0), "x.example"), mailbox("a@x.example"))
    envelope.id = "../../not a name"
    envelope.recipients, envelope.recipient_parameters = [mailbox("b@y.example")], [{}]
    envelope.sink = io.BytesIO(MAIL)
    made = spool()
    made.deliver_envelope(envelope)
    assert len(names(path)) == 2
    made.start()
    assert inbox.data == MAIL
    empty(path)


def test_parameters_that_are_no_text_are_kept_as_text(path):
    parameters = {"b@y.example": {"X-NUMBER": 7, "X-FLAG": True, "X-TEXT": "a=\u00f6"}}
    (row,) = Directory(path).read(put(path, parameters=parameters)).recipients
    assert row.parameters == {"X-NUMBER": "7", "X-FLAG": True, "X-TEXT": "a=\u00f6"}


def test_two_messages_of_one_id_are_two(spool, inbox):
    envelope = Envelope(Origin(Peer("", 0), "x.example"), mailbox("a@x.example"))
    envelope.id = "0123456789abc"
    envelope.recipients, envelope.recipient_parameters = [mailbox("b@y.example")], [{}]
    made = spool()
    for octets in (b"one\r\n", b"two\r\n"):
        envelope.sink = made.open_sink(envelope)
        envelope.sink.write(octets)
        made.deliver_envelope(envelope)
        envelope.sink.close()
    made.start()
    assert sorted(data for _, _, data in inbox.wait(2)) == [b"one\r\n", b"two\r\n"]


# -- faults while it accepts -----------------------------------------------------------------


class Faults:
    """Lets the ``n``-th write, fsync, rename or open of a file fail, as if the disk were bad."""

    def __init__(self, monkeypatch, at=0, error=errno.EIO):
        self.at, self.error, self.count = at, error, 0
        faults = self

        class File(io.FileIO):
            def write(self, octets):
                faults.step("write")
                return super().write(octets)

        monkeypatch.setattr(io, "FileIO", File)
        for name in ("fsync", "replace", "open"):
            monkeypatch.setattr(os, name, self.counted(name, getattr(os, name)))

    def counted(self, name, function):
        def call(*arguments, **keywords):
            self.step(name)
            return function(*arguments, **keywords)

        return call

    def step(self, name):
        self.count += 1
        if self.count == self.at:
            raise OSError(self.error, f"{name} fails")


# Steps of an accepted message: open, write (behind its buffer), fsync, and again for the metadata;
# replace, open and fsync of the directory.
STEPS = 9


@pytest.mark.parametrize(("error", "code"), [(errno.EIO, "451 4.3.0"), (errno.ENOSPC, "452 4.3.1")])
@pytest.mark.parametrize("at", range(1, STEPS + 2))
def test_fault_at_each_step_is_a_refusal_that_leaves_nothing(
    serve, connect, spool, path, monkeypatch, caplog, at, error, code
):
    server = serve(deliver=stalled(spool()))
    client = connect(server)
    client.hello()
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    with monkeypatch.context() as patch:
        faults = Faults(patch, at, error)
        client.send(b"BDAT %d LAST\r\n" % len(MAIL) + MAIL)
        reply = client.reply()
    assert faults.count == min(at, STEPS), "the number of steps has changed"
    if at > STEPS:
        assert reply.startswith("250 ")
        assert len(names(path)) == 2
        return
    # A sink that cannot be written is 452 whatever the reason: the handler says so.
    assert reply.startswith((code, "452 4.3.1 ") if at == 2 else code)
    assert names(path) == []
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    client.send(b"BDAT %d LAST\r\n" % len(MAIL) + MAIL)
    assert client.reply().startswith("250 ")
    assert len(names(path)) == 2


class Steps:
    """Writes down, in order, what is synced, renamed and removed."""

    def __init__(self, monkeypatch):
        self.seen = []
        for name in ("fsync", "replace", "unlink"):
            monkeypatch.setattr(os, name, self.noted(name, getattr(os, name)))

    def noted(self, name, function):
        def call(what, *rest):
            known = os.readlink(f"/proc/self/fd/{what}") if name == "fsync" else os.fspath(what)
            self.seen.append((name, os.path.basename(known).rpartition(".")[2]))
            return function(what, *rest)

        return call


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="reads /proc")
def test_each_step_is_on_the_disk_before_the_next(path, monkeypatch):
    accept = [("fsync", "eml"), ("fsync", "tmp"), ("replace", "tmp"), ("fsync", "spool")]
    steps = Steps(monkeypatch)
    name = put(path)
    assert steps.seen == [("fsync", path.parent.name), *accept]  # the directory is new
    with contextlib.closing(Directory(path).claim(name)) as claim:
        steps.seen.clear()
        claim.save()
        assert [step for step in steps.seen if step[0] != "unlink"] == accept[1:]
        steps.seen.clear()
        claim.remove()
        assert steps.seen == [("unlink", "json"), ("fsync", "spool"), ("unlink", "eml")]
    assert names(path) == []


SAVING = 6  # open, write, fsync, replace, open and fsync of the directory


@pytest.mark.parametrize("at", range(1, SAVING + 2))
def test_metadata_are_the_old_or_the_new_whatever_fails(path, monkeypatch, at):
    name = put(path)
    with contextlib.closing(Directory(path).claim(name)) as claim:
        claim.message.attempts = 7
        with monkeypatch.context() as patch, contextlib.suppress(OSError):
            faults = Faults(patch, at)
            claim.save()
    assert faults.count == min(at, SAVING), "the number of steps has changed"
    assert names(path) == [f"{name}.eml", f"{name}.json"]
    assert Directory(path).read(name).attempts == (7 if at > 4 else 0)


def test_draft_of_a_crash_is_in_nobodys_way(path):
    name = put(path)
    (path / f"{name}.tmp").write_bytes(b"{half of")
    with contextlib.closing(Directory(path).claim(name)) as claim:
        claim.message.attempts = 7
        claim.save()
    assert names(path) == [f"{name}.eml", f"{name}.json"]
    assert metadata(path)["attempts"] == 7


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a file system of one mebibyte."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def left(disk):
    stat = os.statvfs(disk)
    return stat.f_bavail * stat.f_frsize


def test_full_disk_is_452_and_leaves_nothing(small_disk, serve, connect, inbox, caplog):
    path = small_disk / "spool"
    client = connect(serve(deliver=stalled(Spool(path, inbox, **QUICK))))
    assert client.mail(b"x" * 70 + b"\r\n" + (b"y" * 70 + b"\r\n") * 30_000).startswith("452 4.3.1")
    assert names(path) == []
    # Room for mail data, which is short, and none for what follows it.
    filler = small_disk / "filler"
    filler.write_bytes(bytes(left(small_disk) - os.statvfs(small_disk).f_frsize))
    client.ask("MAIL FROM:<a@x.example>")
    client.ask("RCPT TO:<b@y.example>")
    client.send(b"BDAT %d LAST\r\n" % len(MAIL) + MAIL)
    assert client.reply().startswith("452 4.3.1 ")
    assert names(path) == []
    filler.unlink()
    client.ask("MAIL FROM:<a@x.example>")
    client.ask("RCPT TO:<b@y.example>")
    client.send(b"BDAT %d LAST\r\n" % len(MAIL) + MAIL)
    assert client.reply().startswith("250 ")
    assert len(names(path)) == 2


def test_directory_that_has_gone_is_451(serve, connect, spool, path, caplog):
    client = connect(serve(deliver=stalled(spool())))
    os.rmdir(path)
    client.hello()
    client.ask("MAIL FROM:<a@x.example>")
    client.ask("RCPT TO:<b@y.example>")
    assert client.ask("DATA").startswith("451 4.3.0 ")


# -- what a hook is given --------------------------------------------------------------------


def test_envelope_is_as_it_was(serve, connect, spool, path, certificate):
    def told(envelope):
        return (
            envelope.id,
            envelope.sender,
            envelope.sender.original,
            envelope.recipients,
            [each.original for each in envelope.recipients],
            envelope.sender_parameters,
            envelope.recipient_parameters,
            envelope.peer,
            envelope.helo,
            envelope.tls and envelope.tls[:3],
            envelope.user,
            envelope.smtputf8,
            envelope.session.esmtp,
            envelope.content,
        )

    seen = []

    class Battery:
        def deliver_envelope(self, envelope):
            seen.append(told(envelope))
            assert envelope.session.rules.lmtp
            assert isinstance(envelope.peer, Peer)
            assert isinstance(envelope.tls, TLS)
            assert envelope.open().read() == envelope.content

    class Both:
        def __init__(self, spool):
            self.open_sink, self.start, self.stop = spool.open_sink, spool.start, spool.stop
            self.spool = spool

        def deliver_envelope(self, envelope):
            seen.append(told(envelope))
            return self.spool.deliver_envelope(envelope)

    server = serve(
        deliver=Both(spool(Battery())),
        tls=certificate,
        users={"tim": "secret"},
        extensions=["DSN"],
    )
    client = connect(server)
    client.hello()
    client.starttls(certificate)
    client.ask("EHLO client.example")
    assert client.ask("AUTH PLAIN AHRpbQBzZWNyZXQ=").startswith("235 ")
    sent = 'MAIL FROM:<"j\\oe"@X.Example> SMTPUTF8 BODY=8BITMIME RET=HDRS ENVID=a+2Bb'
    assert client.ask(sent).startswith("250 ")
    assert client.ask("RCPT TO:<J\u00f6@Y.example> NOTIFY=NEVER").startswith("250 ")
    assert client.ask("RCPT TO:<postmaster>").startswith("250 ")
    assert client.ask('RCPT TO:<"a b"@[IPv6:2001:DB8::0]>').startswith("250 ")
    client.ask("DATA")
    client.send(MAIL + b".\r\n")
    assert client.reply().startswith("250 ")
    until(lambda: len(seen) == 2)
    assert seen[0] == seen[1]
    assert seen[1][4] == ["J\u00f6@Y.example", "postmaster", '"a b"@[IPv6:2001:DB8::0]']
    empty(path)


def test_hook_may_take_a_message_object(spool, path):
    seen = []

    class Battery:
        def deliver_message(self, message, sender, recipients):
            seen.append((message["Subject"], sender, recipients))

    put(path)
    spool(Battery(), started=True)
    until(lambda: seen == [("hi", "a@x.example", ["b@y.example"])])
    empty(path)


def test_battery_with_a_file_of_its_own_finds_the_mail_in_it(spool, path, tmp_path):
    seen = []

    class Battery:
        closed = 0

        def attach(self, handler):
            raise AssertionError("there is no connection to attach to")

        def open_sink(self, envelope):
            battery = self

            class File(io.BufferedRandom):
                def write(self, octets):
                    return super().write(bytes(octets)[:7])  # a disk that fills

                def close(self):
                    battery.closed += 1
                    super().close()

            sink = File(io.FileIO(tmp_path / "own", "w+b"))
            sink.write(b"front: ")
            self.sink = sink
            return sink

        def deliver_envelope(self, envelope):
            assert envelope.sink is self.sink
            seen.append(envelope.content)

    put(path)
    battery = Battery()
    spool(battery, started=True)
    until(lambda: seen == [b"front: " + MAIL])
    empty(path)
    assert Battery.closed == 0 < battery.closed


def test_hook_that_closes_its_file_does_not_lose_the_lock(spool, path):
    tried = []

    class Battery:
        def deliver_envelope(self, envelope):
            envelope.sink.close()
            (name,) = {name[:-4] for name in names(path) if name.endswith(".eml")}
            with pytest.raises(Held):
                Directory(path).claim(name)
            tried.append(name)

    put(path)
    spool(Battery(), started=True)
    until(lambda: tried)
    empty(path)


def test_battery_is_started_and_stopped_with_the_spool(spool):
    calls = []

    class Battery:
        def deliver(self, sender, recipients, data):
            pass

        def start(self):
            calls.append("start")

        def stop(self, timeout):
            calls.append("stop")
            assert 0 <= timeout <= SOON

    made = spool(Battery(), started=True)
    made.start()  # it has begun
    made.stop(SOON)
    made.stop(SOON)
    assert calls == ["start", "stop"]
    made.start()
    made.stop(SOON)
    assert calls == ["start", "stop"] * 2


# -- verdicts --------------------------------------------------------------------------------


@pytest.mark.parametrize("receipt", [None, True, "kept as 7", Reply(250, "fine"), [None], ["7"]])
def test_success_is_the_end(spool, path, inbox, receipt):
    calls = []

    def deliver(sender, recipients, data):
        calls.append(sender)
        return receipt

    put(path)
    spool(deliver, started=True)
    empty(path)
    assert calls == ["a@x.example"]


def broken(error):
    def deliver(sender, recipients, data):
        raise error

    return deliver


LATER = {
    "Reply": (lambda *_: BUSY, "450 4.2.1 busy", None),
    "Reject": (broken(Reject(451, "not now", "4.7.1")), "451 4.7.1 not now", None),
    "Disconnect": (broken(Disconnect(421, "closing")), "421 4.7.0 closing", None),
    "exception": (broken(RuntimeError("boom")), "451 4.3.0 Local error, ", "RuntimeError: boom"),
    "exit": (broken(SystemExit(3)), "451 4.3.0 Local error, ", "SystemExit: 3"),
    "too many": (lambda *_: [None, None], "451 4.3.0 Local error, ", "gave 2 receipts for 1"),
    "a number": (lambda *_: 7, "451 4.3.0 Local error, ", "must give None"),
}


@pytest.mark.parametrize(("deliver", "reply", "logged"), LATER.values(), ids=LATER)
def test_what_may_pass_is_tried_again(spool, path, caplog, deliver, reply, logged):
    put(path)
    calls = []

    def counting(*arguments):
        calls.append(arguments)
        return deliver(*arguments)

    spool(counting, started=True)
    until(lambda: len(calls) >= 3)
    until(lambda: metadata(path)["attempts"] >= 2)
    (row,) = metadata(path)["recipients"]
    assert row["reply"].startswith(reply)
    assert logged is None or logged in caplog.text


def test_false_is_a_refusal_for_good(spool, path):
    deliver = Recorder(b=False)
    put(path)
    spool(deliver, started=True)
    empty(path)
    assert deliver.asked() == [["b@y.example"]]
    ((_, _, report),) = [row for row in deliver.messages if row[0] == ""]
    assert fields(report)[0]["Status"] == "5.0.0"


def test_each_recipient_has_its_own_fate(spool, path):
    deliver = Recorder(c=[BUSY, BUSY], d=GONE, e=[BUSY, GONE])
    put(path, *(f"{name}@y.example" for name in "bcde"))
    spool(deliver, started=True)
    empty(path)
    assert deliver.asked() == [
        ["b@y.example", "c@y.example", "d@y.example", "e@y.example"],
        ["c@y.example", "e@y.example"],
        ["c@y.example"],
    ]
    finals = [fields(report)[0]["Final-Recipient"] for report in deliver.reports()]
    assert finals == ["rfc822; d@y.example", "rfc822; e@y.example"]


def test_who_is_served_is_struck_off_before_the_next_attempt(spool, path):
    on_disk = []

    class Reader(Recorder):
        def __call__(self, sender, recipients, data):
            on_disk.append([row["local"] for row in metadata(path)["recipients"]])
            return super().__call__(sender, recipients, data)

    put(path, "b@y.example", "c@y.example")
    spool(Reader(c=[BUSY]), started=True)
    empty(path)
    assert on_disk == [["b", "c"], ["c"]]


def test_wrong_receipt_of_one_is_its_own(spool, path, caplog):
    deliver = Recorder(c=[3.14])
    put(path, "b@y.example", "c@y.example")
    spool(deliver, started=True)
    empty(path)
    assert deliver.asked() == [["b@y.example", "c@y.example"], ["c@y.example"]]


# -- pauses and the end ----------------------------------------------------------------------


def attempts(deliver, first=60, longest=3_600, give_up=10**8):
    return Attempts(deliver, first, longest, give_up, "mx.example")


def test_pauses_double_up_to_the_longest(path):
    tries = attempts(lambda *_: BUSY)
    name = put(path)
    pauses = []
    for _ in range(9):
        with contextlib.closing(Directory(path).claim(name)) as claim:
            before = time.time()
            tries.make(claim)
            tries.settle(claim, None)
            pauses.append((before, claim.message.next, time.time()))
    for whole, (before, due, after) in zip(
        (60, 120, 240, 480, 960, 1_920, 3_600, 3_600, 3_600), pauses
    ):
        assert before + 0.8 * whole <= due <= after + whole


def test_pauses_are_not_all_the_same(path):
    tries = attempts(lambda *_: BUSY)
    found = set()
    for _ in range(8):
        with contextlib.closing(Directory(path).claim(put(path))) as claim:
            before = time.time()
            tries.make(claim)
            found.add(round(claim.message.next - before))
    assert len(found) > 1


def test_message_is_tried_a_last_time_when_its_time_is_up(path):
    tries = attempts(lambda *_: BUSY, give_up=100)
    now = time.time()
    with contextlib.closing(Directory(path).claim(put(path, arrived=now - 99))) as claim:
        tries.make(claim)
        assert claim.message.next == claim.message.arrived + 100
        assert claim.message.failed == []
    sent = []
    with contextlib.closing(Directory(path).claim(put(path, arrived=now - 101))) as claim:
        tries.make(claim)
        assert claim.message.recipients == []
        tries.settle(claim, lambda envelope, octets: sent.append((envelope, octets)))
    ((envelope, octets),) = sent
    assert (envelope.sender, envelope.recipients) == ("", ["a@x.example"])
    assert fields(octets)[0]["Diagnostic-Code"] == "smtp; 450 4.2.1 busy"


def test_attempts_without_end_do_not_overflow(path):
    tries = attempts(lambda *_: BUSY)
    with contextlib.closing(Directory(path).claim(put(path))) as claim:
        claim.message.attempts = 10**6
        tries.make(claim)
        claim.save()
    assert metadata(path)["attempts"] == 10**6 + 1


def test_time_to_give_up_ends_in_a_report(spool, path):
    deliver = Recorder(b=BUSY)
    put(path, "b@y.example", "c@y.example")
    began = time.time()
    spool(deliver, started=True, give_up=0.3)
    empty(path)
    assert time.time() - began > 0.2
    assert len(deliver.asked()) > 2
    (report,) = deliver.reports()
    (row,) = fields(report)
    assert (row["Final-Recipient"], row["Action"]) == ("rfc822; b@y.example", "failed")


def test_clock_that_was_wrong_holds_nothing_up(spool, path, inbox):
    name = put(path)
    with contextlib.closing(Directory(path).claim(name)) as claim:
        claim.message.next = time.time() + 10**9
        claim.save()
    spool(started=True)
    assert inbox.wait()
    empty(path)


def test_what_is_not_due_waits(spool, path, inbox):
    name = put(path)
    with contextlib.closing(Directory(path).claim(name)) as claim:
        claim.message.next = time.time() + 500
        claim.save()
    made = spool(started=True, **SLOW)
    other = put(path, sender="late@x.example")
    until(lambda: f"{other}.json" not in names(path))
    made.stop(SOON)
    assert [sender for sender, _, _ in inbox.messages] == ["late@x.example"]
    assert f"{name}.json" in names(path)


def test_what_has_not_changed_is_not_read_again(spool, path, monkeypatch, caplog):
    monkeypatch.setattr("smtpd_sync.spool.WATCH", 0.01)
    name, bad = put(path), put(path)
    with contextlib.closing(Directory(path).claim(name)) as claim:
        claim.message.next = time.time() + 500
        claim.save()
    (path / f"{bad}.json").write_bytes(b"{")
    opened, scans, open_file, scandir = [], [], os.open, os.scandir

    def counting_open(file, *rest):
        opened.append(os.path.basename(os.fspath(file)))
        return open_file(file, *rest)

    def counting_scan(where):
        scans.append(where)
        return scandir(where)

    monkeypatch.setattr(os, "open", counting_open)
    monkeypatch.setattr(os, "scandir", counting_scan)
    spool(started=True, **SLOW)
    until(lambda: len(scans) > 10)
    assert (opened.count(f"{name}.json"), opened.count(f"{bad}.json")) == (1, 1)


def test_file_and_no_hint_says_what_is_due(spool, path, inbox):
    # As where another process has tried a message, and put it off, since we saw it.
    name = put(path)
    with contextlib.closing(Directory(path).claim(name)) as claim:
        claim.message.next = time.time() + 500
        claim.save()
    made = spool(started=True, threads=1, **SLOW)
    made._try_now(name)
    other = put(path, sender="late@x.example")
    made._try_now(other)
    until(lambda: f"{other}.json" not in names(path))
    assert [sender for sender, _, _ in inbox.messages] == ["late@x.example"]


# -- reports ---------------------------------------------------------------------------------


def test_report_goes_to_the_sender_from_nobody(spool, path):
    deliver = Recorder(b=GONE)
    put(path)
    spool(deliver, started=True)
    empty(path)
    sender, recipients, data = deliver.messages[-1]
    assert (sender, recipients) == ("", ["a@x.example"])
    report = parse(data)
    assert report["To"] == "a@x.example"
    assert "MAILER-DAEMON@mx.example" in report["From"]
    assert fields(data)[0]["Diagnostic-Code"] == "smtp; 550 5.1.1 gone"
    assert b"Subject: hi" in data


def test_no_report_to_the_null_sender(spool, path, caplog):
    deliver = Recorder(b=GONE)
    put(path, sender="")
    spool(deliver, started=True)
    empty(path)
    assert len(deliver.messages) == 1
    assert "dropped" in caplog.text
    assert "<b@y.example>: 550 5.1.1 gone" in caplog.text


def test_report_that_is_refused_is_dropped(spool, path, caplog):
    deliver = Recorder(b=GONE, a=GONE)
    put(path)
    spool(deliver, started=True)
    empty(path)
    assert [(sender, recipients) for sender, recipients, _ in deliver.messages] == [
        ("a@x.example", ["b@y.example"]),
        ("", ["a@x.example"]),
    ]
    assert "dropped" in caplog.text


def test_report_that_is_deferred_comes_later(spool, path):
    deliver = Recorder(b=GONE, a=[BUSY, BUSY])
    put(path)
    spool(deliver, started=True)
    empty(path)
    assert len(deliver.reports()) == 3


@pytest.mark.parametrize(
    ("notify", "told"),
    [
        (None, True),
        ("NEVER", False),
        ("never", False),
        ("SUCCESS,DELAY", False),
        ("failure", True),
        ("SUCCESS,FAILURE", True),
    ],
)
def test_sender_says_whether_it_is_told(spool, path, notify, told):
    # RFC 3461 4.1
    deliver = Recorder(b=GONE)
    put(path, parameters={"b@y.example": {"NOTIFY": notify} if notify else {}})
    spool(deliver, started=True)
    empty(path)
    assert len(deliver.reports()) == told


def test_report_has_only_those_of_whom_the_sender_is_told(spool, path):
    deliver = Recorder(b=GONE, c=GONE)
    put(path, "b@y.example", "c@y.example", parameters={"b@y.example": {"NOTIFY": "NEVER"}})
    spool(deliver, started=True)
    empty(path)
    (report,) = deliver.reports()
    assert [row["Final-Recipient"] for row in fields(report)] == ["rfc822; c@y.example"]


@pytest.mark.parametrize(("ret", "whole"), [("RET=FULL ", True), ("RET=hdrs ", False), ("", False)])
def test_parameters_of_rfc_3461_reach_the_report(serve, connect, spool, ret, whole):
    deliver = Recorder(b=GONE)
    client = connect(serve(deliver=spool(deliver), extensions=["DSN"]))
    client.hello()
    assert client.ask(f"MAIL FROM:<a@x.example> {ret}ENVID=q+2Bq").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example> ORCPT=rfc822;old+2B@y.example").startswith("250 ")
    client.ask("DATA")
    client.send(MAIL + b".\r\n")
    assert client.reply().startswith("250 ")
    (report,) = until(deliver.reports)
    assert (b"\r\nhello\r\n" in report) == whole
    assert b"Original-Envelope-Id: q+q\r\n" in report
    assert fields(report)[0]["Original-Recipient"] == "rfc822; old+@y.example"


@pytest.mark.parametrize(
    ("sender", "data", "parameters"),
    [
        ("j\u00f6@x.example", MAIL, {"SMTPUTF8", "BODY"}),
        ("a@x.example", MAIL + b"\xc3\xb6\r\n", {"BODY"}),
        ("a@x.example", MAIL, set()),
    ],
)
def test_report_asks_for_the_extensions_it_needs(path, sender, data, parameters):
    name = put(path, sender=sender, data=data)
    sent = []
    with contextlib.closing(Directory(path).claim(name)) as claim:
        claim.message.parameters = {"RET": "FULL"}
        tries = attempts(lambda *_: GONE)
        tries.make(claim)
        tries.settle(claim, lambda envelope, octets: sent.append(envelope))
    (envelope,) = sent
    assert set(envelope.sender_parameters) == parameters
    assert envelope.recipients == [sender]


def test_report_is_sent_once_though_what_follows_fails(path, monkeypatch):
    name = put(path, "b@y.example", "c@y.example")
    sent = []
    tries = attempts(Recorder(b=GONE, c=BUSY))
    with contextlib.closing(Directory(path).claim(name)) as claim:
        tries.make(claim)
        with monkeypatch.context() as patch:
            Faults(patch, SAVING + 1)  # the report opens the mail data
            with pytest.raises(OSError, match="fsync fails"):
                tries.settle(claim, lambda envelope, octets: sent.append(envelope))
        tries.settle(claim, lambda envelope, octets: sent.append(envelope))
    assert len(sent) == 1
    assert [row["local"] for row in metadata(path)["recipients"]] == ["c"]


# -- what cannot be written down -------------------------------------------------------------


def test_disk_that_fails_after_the_attempt_does_not_make_it_twice(
    spool, path, monkeypatch, caplog, inbox
):
    deliver = Recorder(c=[BUSY], d=GONE)
    put(path, "b@y.example", "c@y.example", "d@y.example")
    bad, failures = threading.Event(), []
    bad.set()
    fsync = os.fsync

    def failing(descriptor):
        if bad.is_set():
            failures.append(descriptor)
            raise OSError(errno.EIO, "the disk is bad")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    made = spool(deliver, started=True)
    until(lambda: len(failures) > 5)
    assert deliver.asked() == [["b@y.example", "c@y.example", "d@y.example"]]
    (name,) = {name[:-5] for name in names(path) if name.endswith(".json")}
    with pytest.raises(Held):
        Directory(path).claim(name)
    bad.clear()
    empty(path)
    assert deliver.asked()[1:] == [["c@y.example"]]
    assert len(deliver.reports()) == 1
    made.stop(SOON)


@pytest.mark.parametrize("at", range(1, 30))
def test_fault_at_each_step_of_a_delivery_loses_nothing(path, monkeypatch, caplog, at):
    # A step is an fsync, a rename, a write or an open; then the process goes on, or is another.
    deliver = Recorder(c=[BUSY], d=GONE)
    put(path, "b@y.example", "c@y.example", "d@y.example")
    made = Spool(path, deliver, hostname="mx.example", **QUICK)
    with monkeypatch.context() as patch:
        faults = Faults(patch, at)
        for _ in range(20):
            for name in {name.partition(".")[0] for name in names(path)}:
                with contextlib.suppress(OSError):
                    made._serve(name)
            if not names(path):
                break
            threading.Event().wait(0.01)
    made.stop(SOON)
    assert faults.count >= min(at, 22), "the delivery has fewer steps than that"
    second = Spool(path, deliver, hostname="mx.example", **QUICK)
    second.start()
    try:
        empty(path)
    finally:
        second.stop(SOON)
    asked = deliver.asked()
    assert [recipients for recipients in asked if "b@y.example" in recipients] == asked[:1]
    assert {each for recipients in asked[1:] for each in recipients} == {"c@y.example"}
    assert len(deliver.reports()) >= 1


def test_stop_writes_down_what_could_not_be(spool, path, monkeypatch, caplog):
    put(path)
    tried = threading.Event()
    unlink = os.unlink

    def failing(file):
        if os.fspath(file).endswith(".json"):
            tried.set()
            raise OSError(errno.EROFS, "read-only")
        unlink(file)

    made = spool(**SLOW)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", failing)
        made.start()
        assert tried.wait(DEADLINE)
        until(lambda: made._unsettled)
    made.stop(SOON)
    assert names(path) == []


# -- starting, stopping, and others in the same directory ------------------------------------


def test_mail_of_the_last_time_is_delivered_at_start(spool, path, inbox):
    for n in range(20):
        put(path, data=b"%d\r\n" % n)
    spool(started=True)
    assert {data for _, _, data in inbox.wait(20)} == {b"%d\r\n" % n for n in range(20)}
    empty(path)


def test_new_mail_is_tried_at_once(serve, connect, spool, inbox, monkeypatch):
    # Nobody looks at the directory: the thread is woken.
    monkeypatch.setattr("smtpd_sync.spool.WATCH", 10**6)
    client = connect(serve(deliver=spool()))
    client.hello()
    for n in range(1, 6):
        client.ask("MAIL FROM:<a@x.example>")
        client.ask("RCPT TO:<b@y.example>")
        client.ask("DATA")
        client.send(MAIL + b".\r\n")
        assert client.reply().startswith("250 ")
        inbox.wait(n)


def test_next_one_is_tried_while_another_takes_long(serve, connect, spool, monkeypatch):
    monkeypatch.setattr("smtpd_sync.spool.WATCH", 10**6)
    go, calls = threading.Event(), []

    def deliver(sender, recipients, data):
        calls.append(sender)
        if sender == "slow@x.example":
            assert go.wait(DEADLINE)
        if calls.count(sender) < 3:
            return BUSY
        return None

    server = serve(deliver=spool(deliver))
    assert connect(server).mail(sender="slow@x.example").startswith("250 ")
    until(lambda: calls)
    assert connect(server).mail(sender="quick@x.example").startswith("250 ")
    until(lambda: calls.count("quick@x.example") == 3)
    go.set()


def test_mail_of_another_process_is_found(spool, path, inbox):
    spool(started=True)
    put(path)
    assert inbox.wait()
    empty(path)


def test_one_message_is_delivered_by_one_at_a_time(path, no_leaks):
    inside, worst, calls = {}, [0], []
    guard = threading.Lock()

    def deliver(sender, recipients, data):
        with guard:
            inside[data] = inside.get(data, 0) + 1
            worst[0] = max(worst[0], inside[data])
            calls.append(data)
        threading.Event().wait(0.001)
        with guard:
            inside[data] -= 1
        return BUSY if calls.count(data) < 2 else None

    for n in range(40):
        put(path, data=b"%d\r\n" % n)
    spools = [Spool(path, deliver, threads=2, **QUICK) for _ in range(4)]
    for each in spools:
        each.start()
    empty(path)
    for each in spools:
        each.stop(SOON)
    assert worst == [1]
    assert sorted(calls) == sorted(2 * [b"%d\r\n" % n for n in range(40)])


def test_stop_lets_a_delivery_end(spool, path):
    began, go, done = threading.Event(), threading.Event(), []

    def deliver(sender, recipients, data):
        began.set()
        assert go.wait(DEADLINE)
        done.append(sender)

    put(path)
    made = spool(deliver, started=True)
    assert began.wait(DEADLINE)
    stopper = threading.Thread(target=made.stop, args=(DEADLINE,))
    stopper.start()
    go.set()
    stopper.join(DEADLINE)
    assert done == ["a@x.example"]
    assert names(path) == []


def test_stop_does_not_wait_for_ever(spool, path, inbox, caplog):
    began, go = threading.Event(), threading.Event()

    def deliver(sender, recipients, data):
        began.set()
        assert go.wait(DEADLINE)
        return BUSY

    put(path)
    made = spool(deliver, started=True)
    assert began.wait(DEADLINE)
    before = time.monotonic()
    made.stop(0.05)
    assert time.monotonic() - before < SOON
    assert "do not end" in caplog.text
    assert len(names(path)) == 2
    go.set()  # what it says at last is written down
    until(lambda: metadata(path)["attempts"] == 1)
    spool(started=True)
    assert inbox.wait()


def test_hook_may_stop_the_server(serve, connect, spool, path):
    made = []

    def deliver(sender, recipients, data):
        made[0].stop(0.2)  # which waits for the hook, so long

    made.append(serve(deliver=spool(deliver)))
    assert connect(made[0]).mail().startswith("250 ")
    empty(path)
    until(lambda: made[0].stopping)


def test_next_hop_that_is_away_gets_it_when_it_is_back(serve, connect, spool, inbox, caplog):
    with contextlib.closing(socket.socket()) as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = reserved.getsockname()

    def deliver(sender, recipients, data):
        with smtplib.SMTP(*address, timeout=DEADLINE) as client:
            client.sendmail(sender, recipients, data)

    server = serve(deliver=spool(deliver), trace=False)
    assert connect(server).mail(MAIL).startswith("250 ")
    until(lambda: "ConnectionRefusedError" in caplog.text)
    serve(address=address, deliver=inbox, trace=False)
    assert inbox.data == MAIL


# -- what is found in the directory ----------------------------------------------------------


def test_rest_of_a_crash_is_removed(spool, path, inbox):
    name = put(path)
    (path / "0123456789ab.eml").write_bytes(b"half of a mess")
    (path / "0123456789ac.eml").write_bytes(b"a whole message\r\n")
    (path / "0123456789ac.tmp").write_bytes(b"{half of")
    (path / f"{name}.tmp").write_bytes(b"{half of")
    spool(started=True)
    assert inbox.wait()
    empty(path)
    assert len(inbox.messages) == 1


def test_mail_data_that_comes_now_is_no_rest(spool, path, inbox):
    envelope = Envelope(Origin(Peer("", 0), "x.example"), mailbox("a@x.example"))
    envelope.id = "0123456789ab"
    envelope.recipients, envelope.recipient_parameters = [mailbox("b@y.example")], [{}]
    first = spool()
    sink = envelope.sink = first.open_sink(envelope)
    sink.write(MAIL)
    put(path, sender="other@x.example")
    spool(started=True)  # another process
    inbox.wait()  # it has looked through the directory
    first.deliver_envelope(envelope)
    sink.close()
    assert inbox.wait(2)[1] == ("a@x.example", ["b@y.example"], MAIL)


def test_name_that_is_being_cleaned_away_is_not_used(path, spool):
    # The file is made, cleaned by another process before it is locked, and its name is not ours.
    made, cleaned = spool(), []
    hold = spoolfiles.Data.hold

    class Slow(spoolfiles.Data):
        def hold(self):
            if not cleaned:
                cleaned.extend(Directory(path).clean())
            return hold(self)

    envelope = Envelope(Origin(Peer("", 0), "x.example"), mailbox("a@x.example"))
    envelope.id = "0123456789ab"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spoolfiles, "Data", Slow)
        sink = made.open_sink(envelope)
    assert cleaned == ["0123456789ab"]
    assert names(path) == [f"{sink.message}.eml"]
    assert sink.message != "0123456789ab"
    sink.close()
    assert names(path) == []


def good(path):
    return json.loads((path / f"{put(path)}.json").read_bytes())


BAD = {
    "empty": b"",
    "truncated": b'{"version": 1, "id": "x", "sen',
    "no object": b"[1, 2]",
    "a number": b"7",
    "not UTF-8": b"\xff\xfe{}",
    "deep": b"[" * 100_000,
}
WRONG = {
    "version": 2,
    "id": 7,
    "sender": "a@x.example",
    "recipients": [],
    "peer": ["192.0.2.1"],
    "size": 1,
    "next": float("nan"),
    "arrived": "1e9",
    "attempts": -1,
    "sender_parameters": {"SIZE": 1},
    "tls": ["TLSv1.3"],
    "user": 0,
}


@pytest.mark.parametrize("what", [*BAD, *WRONG])
def test_bad_file_is_logged_once_and_left_alone(spool, path, inbox, caplog, monkeypatch, what):
    monkeypatch.setattr("smtpd_sync.spool.WATCH", 0.01)
    name = put(path)
    file = path / f"{name}.json"
    changed = {**json.loads(file.read_bytes()), what: WRONG.get(what)}
    file.write_bytes(BAD[what] if what in BAD else json.dumps(changed).encode())
    kept = file.read_bytes()
    spool(started=True)
    other = put(path, sender="good@x.example")
    until(lambda: f"{other}.json" not in names(path))
    until(lambda: f"'{name}' is left alone" in caplog.text)
    for n in range(2, 5):  # scans go on
        put(path, sender="good@x.example")
        inbox.wait(n)
    assert caplog.text.count("is left alone") == 1
    assert file.read_bytes() == kept
    assert {sender for sender, _, _ in inbox.messages} == {"good@x.example"}


@posix
def test_foreign_files_are_logged_once_and_left_alone(spool, path, inbox, caplog, monkeypatch):
    monkeypatch.setattr("smtpd_sync.spool.WATCH", 0.01)
    gone = put(path)
    (path / f"{gone}.eml").unlink()
    linked = put(path)
    (path / f"{linked}.json").rename(path / "elsewhere")
    os.symlink(path / "elsewhere", path / f"{linked}.json")
    directory = put(path)
    (path / f"{directory}.eml").unlink()
    (path / f"{directory}.eml").mkdir()
    (path / "README").write_text("mine")
    (path / "holiday.eml").write_text("mine")
    (path / "bad\nname.json").write_text("{}")
    os.mkfifo(path / "0123456789ab.json")
    left = names(path)
    spool(started=True)
    for n in range(1, 4):
        put(path, sender="good@x.example")
        inbox.wait(n)
    until(lambda: names(path) == left)
    assert caplog.text.count("is left alone") == 8
    assert "bad\\nname.json" in caplog.text
    assert {sender for sender, _, _ in inbox.messages} == {"good@x.example"}


@posix
@pytest.mark.parametrize("kind", ["eml", "json"])
def test_pipe_is_no_file(path, kind):
    name = put(path, data=b"")
    (path / f"{name}.{kind}").unlink()
    os.mkfifo(path / f"{name}.{kind}")
    with pytest.raises(Unreadable, match="it is no file"):
        Directory(path).claim(name)
    assert Directory(path).clean() == []


def test_file_that_was_mended_is_delivered(spool, path, inbox, caplog, monkeypatch):
    monkeypatch.setattr("smtpd_sync.spool.WATCH", 0.01)
    file = path / f"{put(path)}.json"
    octets = file.read_bytes()
    file.write_bytes(octets[:50])
    spool(started=True)
    until(lambda: "is left alone" in caplog.text)
    file.write_bytes(octets)
    assert inbox.data == MAIL


def test_directory_that_cannot_be_read_is_logged_once(spool, path, inbox, caplog, monkeypatch):
    monkeypatch.setattr("smtpd_sync.spool.WATCH", 0.01)
    scans, scandir = [], os.scandir

    def failing(where):
        scans.append(where)
        if len(scans) < 5:
            raise OSError(errno.EIO, "the disk is bad")
        return scandir(where)

    put(path)
    monkeypatch.setattr(os, "scandir", failing)
    spool(started=True)
    assert inbox.wait()
    assert caplog.text.count("cannot be read") == 1


@posix
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root")
def test_root_leaves_a_message_to_its_owner(path):
    name = put(path)
    for file in names(path):
        os.chown(path / file, 12_345, 12_345)
    with contextlib.closing(Directory(path).claim(name)) as claim:
        claim.save()
    assert {os.stat(path / file).st_uid for file in names(path)} == {12_345}


def test_killed_process_holds_nothing(path, spool, inbox, no_leaks):
    program = """
        import sys, time
        from smtpd_sync.spool import Spool

        def deliver(sender, recipients, data):
            print("taken", flush=True)
            time.sleep(600)

        Spool(sys.argv[1], deliver).start()
        time.sleep(600)
    """
    name = put(path)
    with Program("-c", textwrap.dedent(program), str(path)) as other:
        assert other.line() == "taken"
        with pytest.raises(Held):
            Directory(path).claim(name)
        made = spool(started=True)
        assert inbox.messages == []
        other.process.kill()
        assert inbox.wait()
        empty(path)
        made.stop(SOON)


# -- no locks of the kernel ------------------------------------------------------------------


def test_one_process_needs_no_locks_of_the_kernel(monkeypatch, spool, path, serve, connect):
    monkeypatch.setattr(spoolfiles, "fcntl", None)
    deliver = Recorder(b=[BUSY, BUSY])
    made = spool(deliver)
    client = connect(serve(deliver=made))
    assert client.mail().startswith("250 ")
    empty(path)
    assert deliver.asked() == [["b@y.example"]] * 3
    client.ask("MAIL FROM:<a@x.example>")
    client.ask("RCPT TO:<b@y.example>")
    client.send(b"BDAT 5\r\nhello")
    client.reply()
    assert client.ask("RSET").startswith("250 ")
    assert names(path) == []
    until(lambda: spoolfiles._held == set())
    name = put(path)
    made.stop(SOON)
    if f"{name}.json" in names(path):
        with contextlib.closing(Directory(path).claim(name)), pytest.raises(Held):
            Directory(path).claim(name)


def test_without_them_there_is_but_one_process(path, inbox, monkeypatch):
    monkeypatch.setattr(Spool, "one_process", True)
    with pytest.raises(ValueError, match="workers"):
        SMTPServer(("127.0.0.1", 0), deliver=Spool(path, inbox), workers=2)


# -- what cannot be --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"first_pause": 0}, "first_pause"),
        ({"first_pause": 60, "longest_pause": 1}, "longest_pause"),
        ({"longest_pause": float("inf")}, "longest_pause"),
        ({"give_up": -1}, "give_up"),
        ({"give_up": float("nan")}, "give_up"),
        ({"threads": 0}, "threads"),
        ({"threads": 1.5}, "threads"),
        ({"hostname": "not a name"}, "hostname"),
        ({"deliver": None}, "deliver"),
        ({"deliver": object()}, "deliver"),
        ({"deliver": [print]}, "a spool for each"),
    ],
)
def test_what_cannot_be_is_said_at_once(tmp_path, inbox, options, said):
    options = {"deliver": inbox, **options}
    with pytest.raises(ValueError, match=said):
        Spool(tmp_path / "spool", **options)
    assert not (tmp_path / "spool").exists()


def test_directory_that_cannot_be_made_is_said_at_once(tmp_path, inbox):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="spool: "):
        Spool(tmp_path / "file", inbox)
    with pytest.raises(ValueError, match="spool: "):
        Spool(tmp_path / "file" / "spool", inbox)


@posix
def test_directory_of_everybody_is_refused(tmp_path, inbox):
    os.chmod(tmp_path, 0o777)
    with pytest.raises(ValueError, match="chmod"):
        Spool(tmp_path, inbox)


def test_battery_that_delivers_for_connections_only_is_refused(tmp_path):
    class Battery:
        hooks = ("deliver_envelope",)

        def attach(self, handler):
            return handler

    with pytest.raises(ValueError, match="connection"):
        Spool(tmp_path / "spool", Battery())


def test_spool_leaves_no_descriptor_open(spool, path, inbox):
    opened = descriptors()
    for n in range(10):
        put(path, data=b"%d\r\n" % n)
    spool(started=True)
    inbox.wait(10)
    empty(path)
    until(lambda: descriptors() <= opened)
