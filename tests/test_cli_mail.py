"""The command line: where mail goes, when the program ends, what it leaves, the environment."""

import json
import mailbox
import os
import signal
import socket
import subprocess
import sys

import pytest
from support import ROOT, Client, until

from smtpd_sync import flags

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")

MESSAGE = b"From: a@x.example\r\nTo: b@y.example\r\nSubject: hi there\r\n\r\nhello, world\r\n"


def send(port, data=MESSAGE, **envelope):
    with Client(("127.0.0.1", port)) as client:
        reply = client.mail(data, **envelope)
        client.ask("QUIT")
    return reply


def ended(program, status=0):
    """Stop it in order; give what it had still printed."""
    program.signal(signal.SIGTERM)
    assert program.finish() == status, program.errors
    return program.remaining()


def complaint(program):
    assert program.finish() == 2, program.errors
    (line,) = program.errors.splitlines()
    assert line.startswith("smtpd-sync: ")
    return line


# -- where mail goes -------------------------------------------------------------------------


def in_maildir(directory):
    return [message.get_payload() for message in mailbox.Maildir(directory / "out")]


def in_mbox(directory):
    with open(directory / "out", "rb") as file:
        return [part for part in [file.read().decode()] if part.startswith("From a@x.example ")]


def in_files(directory):
    (file,) = (directory / "out").iterdir()
    assert file.name == "b@y.example.1"
    return [file.read_bytes().partition(b"\r\n\r\n")[2].decode()]


def in_jsonl(directory):
    with open(directory / "out") as file:
        return [json.loads(line)["text"] for line in file]


KEPT = {"maildir": in_maildir, "mbox": in_mbox, "files": in_files, "jsonl": in_jsonl}


@pytest.mark.parametrize("flag", KEPT)
def test_mail_is_kept_and_not_printed(serving, tmp_path, flag):
    program, port = serving(f"--{flag}", str(tmp_path / "out"))
    assert send(port).startswith("250 ")
    (kept,) = KEPT[flag](tmp_path)
    assert "hello, world" in kept
    assert ended(program) == b""


def test_mail_goes_to_a_program(serving, tmp_path):
    script = tmp_path / "take.py"
    script.write_text("import sys; open(sys.argv[1], 'w').write(repr(sys.argv[2:]))")
    command = f"{sys.executable} {script} {tmp_path / 'seen'} {{sender}} {{recipients}}"
    _, port = serving("--pipe", command)
    assert send(port, recipients=("b@y.example", "c@y.example")).startswith("250 ")
    assert (tmp_path / "seen").read_text() == "['a@x.example', 'b@y.example', 'c@y.example']"


def test_mail_goes_on_to_another_server(serving, serve, inbox):
    next_hop = serve(validate_recipient=lambda mailbox: mailbox.local != "nobody")
    _, port = serving("--relay", f"127.0.0.1:{next_hop.port}")
    with Client(("127.0.0.1", port)) as client:
        client.hello()
        client.ask("MAIL FROM:<a@x.example>")
        assert client.ask("RCPT TO:<nobody@y.example>").startswith("550 5.1.1 ")
    assert send(port).startswith("250 ")
    ((sender, recipients, data),) = inbox.wait()
    assert (sender, recipients) == ("a@x.example", ["b@y.example"])
    assert data.endswith(MESSAGE)


def test_mail_to_anybody_goes_to_one_mailbox(serving, serve, inbox):
    next_hop = serve()
    _, port = serving("--relay", f"127.0.0.1:{next_hop.port}", "--rewrite-to", "me@z.example")
    assert send(port, recipients=("b@y.example", "c@y.example")).startswith("250 ")
    ((_, recipients, _),) = inbox.wait()
    assert recipients == ["me@z.example"]


def test_mail_that_is_discarded_is_not_printed(serving):
    program, port = serving("--discard")
    assert send(port).startswith("250 ")
    assert ended(program) == b""


def test_several_get_it_all_and_it_is_printed_if_that_is_said(serving, tmp_path):
    program, port = serving(
        *("--maildir", str(tmp_path / "one"), "--maildir", str(tmp_path / "two")),
        *("--jsonl", str(tmp_path / "three"), "--print", "raw", "--no-trace"),
    )
    assert send(port).startswith("250 ")
    for name in ("one", "two"):
        (message,) = mailbox.Maildir(tmp_path / name)
        assert message.get_payload() == "hello, world\n"
    assert json.loads((tmp_path / "three").read_text())["sender"] == "a@x.example"
    assert ended(program) == MESSAGE


def test_first_that_refuses_decides(serving, tmp_path):
    _, port = serving("--maildir", str(tmp_path / "kept"), "--pipe", "/bin/sh -c 'exit 67'")
    assert send(port).startswith("550 5.1.1 ")
    assert len(mailbox.Maildir(tmp_path / "kept")) == 1


def test_spool_hands_on_to_each_when_it_can(serving, serve, inbox, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port_of_next_hop = taken.getsockname()[1]
    program, port = serving(
        *("--spool", str(tmp_path / "queue"), "--relay", f"127.0.0.1:{port_of_next_hop}"),
        *("--maildir", str(tmp_path / "kept")),
    )
    assert send(port).startswith("250 ")  # though there is no next hop
    until(lambda: len(list(mailbox.Maildir(tmp_path / "kept"))) == 1, "the Maildir")
    ended(program)
    assert sorted(os.listdir(tmp_path / "queue")) == ["maildir-1", "relay-1"]
    serve(address=("127.0.0.1", port_of_next_hop))
    queue = (sys.executable, "-m", "smtpd_sync", "queue", str(tmp_path / "queue" / "relay-1"))
    listed = subprocess.run(queue, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "a@x.example" in listed.stdout
    subprocess.run((*queue, "retry"), cwd=ROOT, check=True, capture_output=True)
    serving(
        *("--spool", str(tmp_path / "queue"), "--relay", f"127.0.0.1:{port_of_next_hop}"),
        *("--maildir", str(tmp_path / "kept")),
    )
    ((sender, recipients, _),) = inbox.wait()
    assert (sender, recipients) == ("a@x.example", ["b@y.example"])
    assert len(list(mailbox.Maildir(tmp_path / "kept"))) == 1  # and not twice


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rewrite-to", "me@z.example"), "--rewrite-to needs --relay"),
        (("--spool", "queue"), "--spool needs another way"),
        (("--relay", "host:port"), "'host:port' is not HOST:PORT"),
        (("--maildir", "/dev/null/mail"), "Maildir: /dev/null cannot be made"),
        (("--mbox", "/dev/null/mbox"), "/dev/null"),
        (("--pipe", ""), "command"),
        (("--pipe", "cat {recipent}"), "recipent"),
        (("--exit-after", "0"), "--exit-after"),
        (("--exit-after", "1", "--workers", "2"), "for one process"),
        (("--duration", "soon"), "--duration"),
        (("--user", "nobody-of-that-name"), "there is no user 'nobody-of-that-name'"),
        (("--port-file", "/dev/null/port"), "/dev/null/port"),
        (("--pid-file", "/dev/null/pid"), "/dev/null/pid"),
        (("--log-file", "/dev/null/log"), "/dev/null/log"),
    ],
)
def test_what_cannot_be_is_one_line(run, arguments, words):
    assert words in complaint(run("127.0.0.1:0", *arguments))


def test_handler_that_delivers_is_not_passed_over(run, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from smtpd_sync import SMTPHandler\n"
        "class Mine(SMTPHandler):\n    def deliver(self, *arguments): pass\n"
    )
    program = run("127.0.0.1:0", "--handler", "mine:Mine", "--discard", cwd=tmp_path)
    assert "--discard: the handler delivers by itself" in complaint(program)


# -- when it ends ----------------------------------------------------------------------------


def test_ends_after_so_many_messages(serving):
    program, port = serving("--exit-after", "2", "--duration", "60", "--quiet")
    assert send(port).startswith("250 ")
    assert send(port, sender="c@x.example").startswith("250 ")
    assert program.finish() == 0


def test_refused_message_is_not_one_of_them(serving):
    program, port = serving("--exit-after", "1", "--pipe", "/bin/sh -c 'exit 75'")
    assert send(port).startswith("451 ")
    assert program.process.poll() is None
    ended(program, status=1)


def test_ends_after_so_many_seconds_with_too_few_messages(serving):
    program, port = serving("--exit-after", "2", "--duration", "0.5", "--quiet")
    assert send(port).startswith("250 ")
    assert program.finish() == 1


def test_ends_after_so_many_seconds(serving):
    program, _ = serving("--duration", "0.2")
    assert program.finish() == 0


# -- what it leaves --------------------------------------------------------------------------


def test_port_and_pid_are_told_in_files_while_it_serves(serving, tmp_path):
    program, port = serving(
        *("--port-file", str(tmp_path / "port"), "--pid-file", str(tmp_path / "pid"))
    )
    assert (tmp_path / "port").read_text() == f"{port}\n"
    assert (tmp_path / "pid").read_text() == f"{program.process.pid}\n"
    ended(program)
    assert os.listdir(tmp_path) == []


def test_log_goes_to_a_file_that_may_be_moved_away(serving, tmp_path):
    program, port = serving("-v", "--discard", "--log-file", str(tmp_path / "log"))
    send(port)
    until(lambda: "end=quit" in (tmp_path / "log").read_text(), "the log")
    (tmp_path / "log").rename(tmp_path / "old")
    send(port)
    until(lambda: (tmp_path / "log").exists(), "the new log")
    until(lambda: "end=quit" in (tmp_path / "log").read_text(), "the new log")
    ended(program)
    assert program.errors == ""


# -- whose process it is ---------------------------------------------------------------------

root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may become")


@root
@pytest.mark.skipif(
    not all(os.stat(path).st_mode & 0o001 for path in (ROOT, *ROOT.parents)),
    reason="others may not read the package here",
)
def test_root_is_given_up_once_it_listens(serving, tmp_path, certificate):
    os.chmod(tmp_path, 0o777)
    for path in tmp_path.parents:
        if not os.stat(path).st_mode & 0o001:
            os.chmod(path, os.stat(path).st_mode | 0o001)
    program, port = serving(
        *("--user", "nobody", "--maildir", str(tmp_path / "mail")),
        *("--tls-cert", certificate[0], "--tls-key", certificate[1]),
    )
    with open(f"/proc/{program.process.pid}/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    import pwd

    user = pwd.getpwnam("nobody")
    assert set(status["Uid"].split()) == {str(user.pw_uid)}
    assert set(status["Gid"].split()) == {str(user.pw_gid)}
    assert status["Groups"].split() == [str(user.pw_gid)]
    assert os.stat(tmp_path / "mail").st_uid == user.pw_uid
    with Client(("127.0.0.1", port)) as client:
        client.hello()
        client.starttls(certificate)
        client.ask("EHLO client.example")
        client.ask("MAIL FROM:<a@x.example>")
        client.ask("RCPT TO:<b@y.example>")
        client.ask("DATA")
        client.send(MESSAGE + b".\r\n")
        assert client.reply().startswith("250 ")
    (path,) = (tmp_path / "mail" / "new").iterdir()
    assert os.stat(path).st_uid == user.pw_uid


@root
def test_only_root_may_become_another():
    code = (
        "import grp, os, pwd; from smtpd_sync.process import become; os.setuid(65534)\n"
        "try:\n    become('root')\nexcept ValueError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "--user: only root may become 'root'\n", done.stderr


# -- the environment -------------------------------------------------------------------------


def read(environment, *arguments):
    made = flags.parser()
    words = flags.from_environment(made, environment)
    return made.parse_args([*words, *arguments])


def test_every_flag_has_its_variable():
    made = flags.parser()
    names = [action.option_strings[-1][2:] for action in made._actions if action.option_strings]
    assert len(names) > 40
    for name in set(names) - {"help", "version", "verbose"}:
        (action,) = [each for each in made._actions if f"--{name}" in each.option_strings]
        variable = f"SMTPD_SYNC_{name.replace('-', '_').upper()}"
        words = flags.from_environment(made, {variable: "1"})
        assert words == [f"--{name}" if action.nargs in (0, "?") else f"--{name}=1"]


def test_environment_sets_flags_and_the_command_line_wins():
    environment = {
        "SMTPD_SYNC_ADDRESS": "127.0.0.1:2525",
        "SMTPD_SYNC_BANNER": "of the environment",
        "SMTPD_SYNC_MAILDIR": "a b",
        "SMTPD_SYNC_LMTP": "yes",
        "SMTPD_SYNC_QUIET": "0",
        "SMTPD_SYNC_LOCAL_DOMAIN": "one.example two.example",
        "SMTPD_SYNC_LONG": "is no flag",
        "BANNER": "of somebody else",
    }
    arguments = read(environment)
    assert arguments.address == ("127.0.0.1", 2525)
    assert arguments.banner == "of the environment"
    assert arguments.deliveries == [("maildir", "a b")]
    assert (arguments.lmtp, arguments.quiet) == (True, False)
    assert arguments.local_domains == ["one.example", "two.example"]
    arguments = read(environment, "127.0.0.1:2626", "--banner", "mine", "--mbox", "m")
    assert arguments.address == ("127.0.0.1", 2626)
    assert arguments.banner == "mine"
    assert arguments.deliveries == [("maildir", "a b"), ("mbox", "m")]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("LMTP", "maybe", "SMTPD_SYNC_LMTP is 1 or 0, not 'maybe'"),
        ("MAX_SIZE", "big", "'big' is not a number of octets"),
        ("ADDRESS", "here", "cannot listen on here"),
        ("ADDRESS", "host:port", "'host:port' is not HOST:PORT"),
    ],
)
def test_bad_value_in_the_environment_is_one_line(run, monkeypatch, name, value, words):
    monkeypatch.setenv(f"SMTPD_SYNC_{name}", value)
    assert words in complaint(run())
