"""``queue DIR``: what an operator sees of a spool, and does to it, with and without a server."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from support import ROOT, SOON, Inbox, until

from smtpd_sync import Reply
from smtpd_sync.envelope import Envelope, Peer
from smtpd_sync.queuecli import main
from smtpd_sync.spool import Spool
from smtpd_sync.spooled import Message, Origin
from smtpd_sync.spoolfiles import Directory
from smtpd_sync.syntax import Mailbox

MAIL = b"Subject: hi\r\n\r\nhello\r\n"


@pytest.fixture
def path(tmp_path):
    """Where the spool is."""
    (tmp_path / "spool").mkdir(mode=0o700)
    return tmp_path / "spool"


@pytest.fixture
def put(path):
    """Put a message into it; give its name: ``put(name, recipient=reply, **changes)``."""

    def make(name, *recipients, sender="a@x.example", helo="client.example", **changes):
        directory = Directory(path)
        mailbox = Mailbox.parse(sender) if sender else Mailbox()
        envelope = Envelope(Origin(Peer("192.0.2.1", 1234), helo), mailbox)
        envelope.id = name
        with contextlib.closing(directory.new(name, lambda name: None)) as file:
            assert file.message == name
            file.write(MAIL)
            message = Message.of(envelope, name)
            for recipient, reply in recipients or (("b@y.example", ""),):
                envelope.recipients, envelope.recipient_parameters = [recipient], [{}]
                (row,) = Message.of(envelope, name).recipients
                local, _, domain = recipient.partition("@")
                mailbox = Mailbox(local, domain)
                message.recipients.append(row._replace(mailbox=mailbox, reply=reply))
            for field, value in changes.items():
                setattr(message, field, value)
            directory.commit(file, message)
        return name

    return make


@pytest.fixture
def queue(path, capsys):
    """Run the command on the spool; give status, output and errors."""

    def run(*arguments):
        try:
            status = main([str(path), *arguments])
        except SystemExit as end:
            status = end.code
        return (status, *capsys.readouterr())

    return run


ONE, TWO = "0123456789a1", "0123456789a2"


def test_list_shows_each_message(queue, put):
    now = time.time()
    put(
        ONE,
        ("b@y.example", "450 4.2.1 busy\nvery"),
        ("c@y.example", ""),
        arrived=now - 3 * 3_600,
        next=now + 600,
        attempts=2,
    )
    put(TWO, sender="", attempts=1, arrived=now - 90)
    status, shown, errors = queue()
    assert (status, errors) == (0, "")
    assert shown.replace("in 9m", "in 10m") == (
        f"{ONE}  3h old  22 octets  2 attempts  next in 10m  from <a@x.example>\n"
        "    <b@y.example>\n"
        "        450 4.2.1 busy very\n"
        "    <c@y.example>\n"
        f"{TWO}  90s old  22 octets  1 attempt  next now  from <>\n"
        "    <b@y.example>\n"
        "2 messages\n"
    )
    assert queue("list", TWO)[1].endswith("1 message\n")


def test_empty_queue_has_no_messages(queue):
    assert queue() == (0, "0 messages\n", "")
    assert queue("--json") == (0, "", "")
    assert queue("retry") == (0, "", "")
    assert queue("remove", "--all") == (0, "", "")


def test_list_for_programs(queue, put):
    put(ONE, ("b@y.example", "450 busy"), ("c@y.example", ""), next=5.5, attempts=1, arrived=4.5)
    put(TWO)
    status, shown, errors = queue("--json")
    assert (status, errors) == (0, "")
    first, second = map(json.loads, shown.splitlines())
    assert first == {
        "id": ONE,
        "message": ONE,
        "arrived": 4.5,
        "size": len(MAIL),
        "attempts": 1,
        "next": 5.5,
        "sender": "a@x.example",
        "recipients": [
            {"mailbox": "b@y.example", "reply": "450 busy"},
            {"mailbox": "c@y.example", "reply": None},
        ],
        "peer": "192.0.2.1",
        "helo": "client.example",
        "user": None,
    }
    assert second["id"] == TWO
    assert json.loads(queue("list", TWO, "--json")[1])["id"] == TWO


EVIL = "\x1b]0;owned\x07\x9b2J\r\u202e\x00\x7f\u2028\ud800"


@pytest.mark.parametrize("how", [(), ("--json",)])
def test_nothing_of_the_network_reaches_the_terminal(queue, put, how):
    put(ONE, (f"{EVIL}@y.example", f"450 {EVIL}\n{ONE}  forged"), sender="", helo=EVIL)
    status, shown, errors = queue(*how)
    assert (status, errors) == (0, "")
    lines = shown.splitlines(keepends=True)
    assert all(line.endswith("\n") and line[:-1].isprintable() for line in lines)
    assert len([line for line in lines if line.startswith(ONE)]) == (not how)


def test_what_the_terminal_cannot_show_is_no_error(path, put):
    put(ONE, ("j\u00f6\u4e2d@y.example", "450 \u00fc"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    program = "import sys; from smtpd_sync.queuecli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "<j??@y.example>" in done.stdout


def test_reader_that_has_gone_is_no_traceback(path, put):
    put(ONE)
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = "import sys; from smtpd_sync.queuecli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(
        command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


# -- changes ---------------------------------------------------------------------------------


def due(path, name):
    return json.loads((path / f"{name}.json").read_bytes())["next"]


@pytest.mark.parametrize(("wanted", "changed"), [((), {ONE, TWO}), ((TWO,), {TWO})])
def test_retry_is_now(queue, put, path, wanted, changed):
    later = time.time() + 3_000
    put(ONE, ("b@y.example", "450 busy"), next=later, attempts=3)
    put(TWO, next=later, attempts=3)
    assert queue("retry", *wanted) == (0, "", "")
    for name in (ONE, TWO):
        assert (due(path, name) <= time.time()) == (name in changed)
    kept = json.loads((path / f"{ONE}.json").read_bytes())
    assert kept["recipients"][0]["reply"] == "450 busy"
    assert kept["attempts"] == 3
    assert (path / f"{ONE}.eml").read_bytes() == MAIL


@pytest.mark.parametrize(("wanted", "left"), [(("--all",), []), ((ONE,), [TWO])])
def test_remove_drops_messages(queue, put, path, wanted, left):
    put(ONE)
    put(TWO)
    assert queue("remove", *wanted) == (0, "", "")
    expected = [f"{name}.{kind}" for name in left for kind in ("eml", "json")]
    assert sorted(os.listdir(path)) == expected


def test_running_server_obeys(queue, put, path, no_leaks):
    inbox = Inbox()
    verdicts = {"b@y.example": [Reply(450, "busy")]}

    def deliver(sender, recipients, data):
        inbox(sender, list(recipients), data)
        rest = verdicts.get(recipients[0])
        return rest.pop() if rest else None

    spool = Spool(path, deliver, first_pause=3_000)
    put(ONE)
    spool.start()
    try:
        inbox.wait()
        until(lambda: due(path, ONE) > time.time() + 1_000)
        put(TWO, ("c@y.example", ""), next=time.time() + 1_000)
        assert queue("remove", TWO) == (0, "", "")
        assert queue("retry", ONE) == (0, "", "")
        inbox.wait(2)
        until(lambda: os.listdir(path) == [])
    finally:
        spool.stop(SOON)
    assert [recipients for _, recipients, _ in inbox.messages] == [["b@y.example"]] * 2


@pytest.mark.parametrize("command", ["retry", "remove"])
def test_message_that_is_being_delivered_is_left_alone(queue, put, path, monkeypatch, command):
    monkeypatch.setattr("smtpd_sync.queuecli.PATIENCE", 0.1)
    put(ONE)
    put(TWO)
    with contextlib.closing(Directory(path).claim(ONE)):
        status, shown, errors = queue(command, ONE, TWO)
    assert (status, shown) == (1, "")
    assert errors == f"smtpd-sync queue: {ONE}: it is being delivered now\n"
    assert f"{ONE}.json" in os.listdir(path)
    assert (f"{TWO}.json" in os.listdir(path)) == (command == "retry")


def test_message_that_is_let_go_soon_is_waited_for(queue, put, path):
    put(ONE)
    claim = Directory(path).claim(ONE)
    timer = threading.Timer(0.1, claim.close)
    timer.start()
    assert queue("remove", ONE) == (0, "", "")
    timer.join()
    assert os.listdir(path) == []


# -- what is wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["list", "retry", "remove"])
def test_unknown_message_is_status_1(queue, put, command):
    put(ONE)
    status, _, errors = queue(command, "0123456789ff")
    assert (status, errors) == (
        1,
        "smtpd-sync queue: 0123456789ff: there is no such message\n",
    )


def test_bad_file_is_one_line(queue, put, path):
    put(ONE)
    put(TWO)
    (path / f"{ONE}.json").write_bytes(b'{"version":\n\x1b[2J')
    (path / "foreign").write_text("mine")
    status, shown, errors = queue()
    assert status == 1
    assert shown.startswith(TWO)
    assert shown.endswith("1 message\n")
    assert errors.startswith(f"smtpd-sync queue: {ONE}: ")
    assert errors.count("\n") == 1
    assert errors[:-1].isprintable()
    assert queue("retry")[0] == 1
    assert queue("remove", "--all")[0] == 1
    assert sorted(os.listdir(path)) == [f"{ONE}.eml", f"{ONE}.json", "foreign"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("frobnicate",), "frobnicate"),
        (("remove",), "--all"),
        (("remove", "--all", ONE), "--all"),
        (("list", "--all"), "--all is for remove"),
        (("retry", "--json"), "--json is for list"),
        (("--never",), "--never"),
    ],
)
def test_what_cannot_be_is_status_2_and_one_line(queue, put, arguments, said):
    put(ONE)
    status, shown, errors = queue(*arguments)
    assert (status, shown) == (2, "")
    assert errors.startswith("smtpd-sync queue: ")
    assert errors.count("\n") == 1
    assert said in errors


def test_directory_that_is_none_is_status_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "gone\x1b")])
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.endswith("gone\ufffd is no directory\n")
    assert not (tmp_path / "gone\x1b").exists()


def test_directory_that_cannot_be_listed_is_status_1(queue, monkeypatch):
    def failing(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", failing)
    status, shown, errors = queue()
    assert (status, shown) == (1, "")
    assert errors.endswith(": Permission denied\n")


def test_help_fits_a_screen(queue):
    status, shown, errors = queue("--help")
    assert (status, errors) == (0, "")
    assert len(shown.splitlines()) <= 24
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("list", "retry", "remove", "--all", "--json"):
        assert word in shown


def test_options_may_stand_anywhere(queue, put):
    put(ONE)
    shown = queue("list", ONE, "--json")[1]
    assert shown == queue("--json", "list", ONE)[1] == queue("list", "--json", ONE)[1] != ""
