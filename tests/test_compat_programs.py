"""Programs that were written against the old modules, with nothing but their imports changed."""

import os
import pwd
import signal
import smtplib
import socket
import sys

import pytest
from legacy_dialogues import Speaker
from legacy_runs import (
    FAKE_SERVER,
    LEGACY,
    LOGIN,
    run_fake_server,
    run_legacy,
    run_login,
    written_for,
)
from support import DEADLINE, ROOT, Program, until

from smtpd_sync.compat import smtpdcli

DEBUGGING = ("-m", "smtpd_sync.compat.smtpd", "-n", "-c", "DebuggingServer")


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


# -- the three programs ----------------------------------------------------------------------


def test_fake_server_of_a_test_suite(tmp_path, no_leaks):
    lines = run_fake_server(sys.executable, written_for("ours", FAKE_SERVER, tmp_path)).splitlines()
    assert lines[:4] == [
        "[('help', ''), ('size', '33554432')]",
        "{}",
        "(553, b'eve@example.com is not who wrote this')",
        "noop (250, b'OK')",
    ]
    sender, recipients = "ann@example.com", "['bob@example.com', 'carol@example.com']"
    fields = "[('From', 'Ann <ann@example.com>'), ('To', 'bob@example.com'), ('Subject', 'hi')]"
    assert lines[-2:] == [rf"{sender} {recipients} {fields} '.dot\n\nbye'", "False {}"]


def test_server_with_a_login(tmp_path, no_leaks):
    said, printed = run_login(sys.executable, written_for("ours", LOGIN, tmp_path))
    assert said[-1] == "221 Bye"
    assert printed.splitlines()[-4:] == ["| Subject: hi", "| ", "| hello", "end True"]


def test_example(no_leaks):
    said, printed = run_legacy(sys.executable, LEGACY)
    assert said == [
        *("{}", "(554, b'keep it')"),
        "{'nobody@example.com': (550, b'there is nobody here')}",
        "{}",
    ]
    assert printed.splitlines() == [
        "ann@example.com to bob@example.com: hi",
        "<> to bob@example.com, carol@example.com: Grüße",
        "bob@example.com: 2 messages, 92 octets",
        "carol@example.com: 1 messages, 52 octets",
    ]


def test_example_is_said_to_be_changed_in_its_imports_alone():
    text = (ROOT / "examples" / "legacy.py").read_text("utf-8")
    assert text.count("smtpd_sync") == 1


# -- the command line ------------------------------------------------------------------------


def listening(*arguments, port):
    """Run it; give the program and a client that is connected."""
    program = Program(*arguments)

    def connect():
        assert program.process.poll() is None, program.finish() or program.errors
        try:
            return smtplib.SMTP("127.0.0.1", port, timeout=DEADLINE)
        except ConnectionRefusedError:
            return None

    return program, until(connect, "a port that listens")


def test_one_liner_prints_mail(free_port, no_leaks):
    program, client = listening(*DEBUGGING, f"127.0.0.1:{free_port}", port=free_port)
    with program:
        with client:
            client.sendmail("a@x.example", ["b@y.example"], "Subject: hi\n\nhello\n")
        assert [program.line() for _ in range(7)] == [
            "---------- MESSAGE FOLLOWS ----------",
            "mail options: ['SIZE=22']",
            *("b'Subject: hi'", "b'X-Peer: 127.0.0.1'", "b''", "b'hello'"),
            "------------ END MESSAGE ------------",
        ]
        program.signal(signal.SIGINT)
        assert program.finish() == 0
        assert program.errors == ""


def test_flags_of_the_one_liner(free_port, no_leaks):
    place = f"127.0.0.1:{free_port}"
    program, client = listening(*DEBUGGING, "-d", "-u", "-s", "1000", place, port=free_port)
    with program:
        with client:
            client.ehlo("client.example")
            assert client.esmtp_features.pop("size") == "1000"
            assert set(client.esmtp_features) == {"8bitmime", "smtputf8", "help"}
        program.signal(signal.SIGINT)
        assert program.finish() == 0
    assert program.errors.startswith("DebuggingServer started at ")
    assert "\tRemote addr:('localhost', 25)\n" in program.errors
    assert "Data: b'ehlo client.example'" in program.errors


def test_class_by_its_dotted_name(tmp_path, free_port, no_leaks):
    (tmp_path / "mine.py").write_text(
        "from smtpd_sync.compat import smtpd\n"
        "class Mine(smtpd.DebuggingServer):\n"
        "    def process_message(self, *message, **options):\n"
        "        return '250 mine'\n"
    )
    arguments = ("-m", "smtpd_sync.compat.smtpd", "-n", "-d", "-c", "mine.Mine")
    program = Program(*arguments, f"127.0.0.1:{free_port}", cwd=tmp_path)
    with program:
        speaker = until(lambda: connected(free_port), "a port that listens")
        speaker.reply()
        for line in ("HELO x", "MAIL FROM:<a>", "RCPT TO:<b>", "DATA"):
            speaker.say(line)
        assert speaker.say(".") == "250 mine"
        speaker.close()
        program.signal(signal.SIGINT)
        assert program.finish() == 0
    assert "===> MAIL FROM:<a>" in program.errors  # -d reaches a class of another module


def connected(port):
    try:
        return Speaker.at(("127.0.0.1", port))
    except ConnectionRefusedError:
        return None


@pytest.mark.parametrize(
    ("arguments", "status", "printed", "errors"),
    [
        (["-V"], 0, "Python SMTP proxy version 0.3\n", ""),
        (["-h"], 0, "", "--nosetuid"),
        (["-x"], 1, "", "\noption -x not recognized\n"),
        (["-s", "large"], 1, "", "Invalid size: large\n"),
        (["nowhere"], 1, "", "\nBad local spec: nowhere\n"),
        (["here:port"], 1, "", "\nBad local port: here:port\n"),
        (["here:1", "nowhere"], 1, "", "\nBad remote spec: nowhere\n"),
        (["here:1", "there:port"], 1, "", "\nBad remote port: there:port\n"),
        (["a:1", "b:2", "c"], 1, "", "\nInvalid arguments: a:1, b:2, c\n"),
    ],
)
def test_command_line_that_ends_at_once(arguments, status, printed, errors, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["smtpd", *arguments])
    with pytest.raises(SystemExit) as ended:
        smtpdcli.main()
    assert ended.value.code == status
    output = capsys.readouterr()
    assert output.out == printed
    assert errors in output.err


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may be nobody")
def test_who_is_not_root_cannot_become_nobody(free_port, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["smtpd", f"127.0.0.1:{free_port}"])
    with pytest.raises(SystemExit):
        smtpdcli.main()
    assert "try running with -n" in capsys.readouterr().err


@pytest.mark.skipif(
    not os.path.isdir("/proc/self") or os.getuid() != 0, reason="only root can be nobody"
)
def test_root_is_nobody_once_it_listens(free_port, no_leaks):
    arguments = ("-m", "smtpd_sync.compat.smtpd", "-c", "DebuggingServer")
    program, client = listening(*arguments, f"127.0.0.1:{free_port}", port=free_port)
    with program, client:
        nobody = pwd.getpwnam("nobody").pw_uid
        process = f"/proc/{program.process.pid}"
        until(lambda: os.stat(process).st_uid == nobody, "the change of user")


def test_version_of_the_program():
    with Program("-m", "smtpd_sync.compat.smtpd", "--version") as program:
        assert program.finish() == 0
        assert program.remaining() == b"Python SMTP proxy version 0.3\n"
        assert program.errors == ""
