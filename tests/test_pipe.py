"""Mail handed to a command: what it gets, what its exit means, and that it cannot hurt us."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest
from storing import (
    LARGE,
    MAIL,
    UNIX,
    body,
    envelope_of,
    files,
    flood,
    front,
    left,
    mounted,
    read,
    send,
    token_of,
)
from support import DEADLINE, SOON, until

from smtpd_sync.pipe import EXITS, SHOWN, Pipe, _read

if os.name != "posix":
    pytest.skip("Pipe is for POSIX", allow_module_level=True)

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def shell(script, *arguments):
    """A command that runs a script of the shell, with arguments $1 and so on."""
    return ["sh", "-c", script, "sh", *map(str, arguments)]


@pytest.fixture
def session(serve, connect):
    """Open a session with a server of a command: ``session(command, ...)``."""

    def make(command, lmtp=False, **options):
        client = connect(serve(deliver=Pipe(command, **options), trace=False, lmtp=lmtp))
        assert client.reply().startswith("220 ")
        assert client.ask("LHLO client.example" if lmtp else "EHLO client.example")[:4] == "250-"
        return client

    return make


def children():
    """The processes that are ours, zombies too; empty where the system does not tell."""
    found = []
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        try:
            with open(f"/proc/{int(name)}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(name))
        except (ValueError, OSError):
            pass
    return found


@pytest.fixture(autouse=True)
def no_zombies():
    """Check that a test leaves no process behind."""
    before = set(children())
    yield
    assert set(children()) <= before


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# -- what it gets ----------------------------------------------------------------------------


def test_command_gets_the_message_on_its_input(session, tmp_path):
    client = session(shell('cat > "$1"', tmp_path / "mail"))
    recipients = ["b@y.example", "c@y.example", "b@y.example"]
    assert send(client, recipients=recipients).startswith("250 2.0.0 OK ")
    assert read(tmp_path / "mail") == front(recipients=recipients[:2]) + UNIX


def test_large_message_is_whole(session, tmp_path):
    client = session(shell('cat > "$1"', tmp_path / "mail"))
    assert send(client, LARGE * 20).startswith("250 ")
    assert read(tmp_path / "mail") == front() + (LARGE * 20).replace(b"\r\n", b"\n")


def test_binary_message_is_not_converted(tmp_path):
    octets = b"X: y\r\n\r\n\0\r\n"
    command = Pipe(shell('cat > "$1"', tmp_path / "mail"))
    assert command.deliver_envelope(envelope_of(octets, BODY="BINARYMIME")) is None
    assert read(tmp_path / "mail") == front(end="\r\n") + octets


def test_input_is_a_file_that_can_be_read_again(session, tmp_path):
    script = "import os, sys; size = len(sys.stdin.buffer.read()); os.lseek(0, 0, 0);"
    script += " assert size and len(sys.stdin.buffer.read()) == size"
    client = session([sys.executable, "-c", script])
    assert send(client).startswith("250 ")


ARGUMENTS = 'for each in "$@"; do printf "%s\\n" "$each"; done > '


def lines(path):
    return read(path).decode().splitlines()


def test_fields_are_filled_in(session, tmp_path):
    out = tmp_path / "out"
    fields = ["{sender}", "{recipients}", "id={id}", "{helo}", "<{peer}>", "u{user}", "{{x}}", "$x"]
    client = session(shell(f"{ARGUMENTS} {out}", *fields))
    reply = send(client, recipients=["b@y.example", "c@y.example", "b@y.example"])
    assert lines(out) == [
        *("a@x.example", "b@y.example", "c@y.example", f"id={reply.split()[-1]}"),
        *("client.example", "<127.0.0.1>", "u", "{x}", "$x"),
    ]


@pytest.mark.parametrize(("given", "shown"), [(None, "MAILER-DAEMON"), ("", ""), ("<>", "<>")])
def test_null_sender_has_a_name(session, tmp_path, given, shown):
    out = tmp_path / "out"
    options = {} if given is None else {"null_sender": given}
    client = session(shell(f'printf %s "$1" > {out}; cat > {out}.mail', "{sender}"), **options)
    assert send(client, sender="").startswith("250 ")
    assert read(out).decode() == shown
    assert read(f"{out}.mail") == front("") + UNIX


HOSTILE = [
    '"$(id)"@x.example',
    "`id`@x.example",
    '";id;"@x.example',
    '"a b"@x.example',
    '"a\\"b"@x.example',
    "{recipients}@x.example",
    "{id}@x.example",
    "%s@x.example",
    "*@x.example",
    "~root@x.example",
]


@pytest.mark.parametrize("address", HOSTILE)
def test_address_is_one_argument_whatever_is_in_it(session, tmp_path, address):
    out = tmp_path / "out"
    client = session(shell(f"{ARGUMENTS} {out}", "{sender}", "{recipients}", "--to={sender}"))
    assert send(client, sender=address, recipients=[address]).startswith("250 ")
    assert lines(out) == [address, address, f"--to={address}"]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_address_in_utf8_is_octets_whatever_the_locale(tmp_path, locale):
    script = f"""
import sys
from smtpd_sync.pipe import Pipe
from storing import envelope_of
envelope = envelope_of(sender="j\\u00fc@x.example")
command = Pipe(["sh", "-c", 'printf %s "$1" > {tmp_path}/out', "sh", "{{sender}}"])
assert command.deliver_envelope(envelope) is None
"""
    here = os.path.dirname(__file__)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{here}{os.pathsep}{os.path.dirname(here)}",
        "LC_ALL": locale,
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
    }
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=DEADLINE)
    assert read(tmp_path / "out") == "j\u00fc@x.example".encode()


OPTION = "553 5.1.3 Address begins with a hyphen"


@pytest.mark.parametrize(
    ("argument", "sender", "recipient", "refused"),
    [
        ("{sender}", "-f@x.example", "b@y.example", True),
        ("{sender}", "--@x.example", "b@y.example", True),
        ("{sender}x", "-f@x.example", "b@y.example", True),
        ("{user}{sender}", "-f@x.example", "b@y.example", True),
        ("{recipient}", "a@x.example", "-oQ@y.example", True),
        ("{recipients}", "a@x.example", "-oQ@y.example", True),
        ("--from={sender}", "-f@x.example", "b@y.example", False),
        ("-f{sender}", "-f@x.example", "b@y.example", False),
        ("{recipient}", "-f@x.example", "b@y.example", False),
        ("{sender}", "f-@x.example", "-b@y.example", False),
        ("{sender}", '"-f x"@x.example', "b@y.example", False),
    ],
)
def test_address_cannot_become_an_option(session, tmp_path, argument, sender, recipient, refused):
    client = session(shell(f"touch {tmp_path}/ran", argument))
    reply = send(client, sender=sender, recipients=[recipient])
    assert reply == OPTION if refused else reply.startswith("250 ")
    assert (tmp_path / "ran").exists() is not refused


def test_one_bad_address_of_many_refuses_all_of_one_command(session, tmp_path):
    client = session(shell(f"touch {tmp_path}/ran", "{recipients}"))
    assert send(client, recipients=["b@y.example", "-c@y.example"]) == OPTION
    assert not (tmp_path / "ran").exists()


# -- the command as it is given --------------------------------------------------------------


def test_text_is_split_as_the_shell_does(session, tmp_path):
    out = tmp_path / "out"
    assert Pipe("a 'b c' d\\ e").command == ["a", "b c", "d e"]
    client = session(f"sh -c 'cat > \"$1\"' sh '{out}'")
    assert send(client).startswith("250 ")
    assert read(out) == front() + UNIX


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("", "needs a command"),
        ([], "needs a command"),
        (None, "needs a command"),
        (b"cat", "needs a command"),
        (["cat", 5], "needs a command"),
        (["cat", "a\0b"], "needs a command"),
        (["", "x"], "names no program"),
        ("cat 'x", "cannot be split"),
        (["{sender}"], "no client may choose the program"),
        (["/bin/{helo}"], "no client may choose the program"),
        (["cat", "{who}"], "the fields are {helo} {id} {peer}"),
        (["cat", "{}"], "the fields are"),
        (["awk", "{print}"], "a brace is written twice"),
        (["cat", "{sender!r}"], "the fields are"),
        (["cat", "{sender:>99}"], "the fields are"),
        (["cat", "{sender.local}"], "the fields are"),
        (["cat", "{sender"], "a brace is written twice"),
        (["cat", "--to={recipients}"], "{recipients} is an argument of its own"),
        (["cat", "{recipient}", "{recipients}"], "not for one command"),
    ],
    ids=str,
)
def test_command_that_cannot_be_says_why(command, why):
    with pytest.raises(ValueError, match=f"^Pipe.*{re.escape(why)}"):
        Pipe(command)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": None}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"null_sender": None}, "null_sender"),
        ({"null_sender": "a\0b"}, "null_sender"),
        ({"null_sender": "-f"}, "null_sender"),
    ],
    ids=str,
)
def test_option_that_cannot_be_says_why(options, why):
    with pytest.raises(ValueError, match=f"^Pipe: {why}"):
        Pipe("cat", **options)


# -- what its exit means ---------------------------------------------------------------------

MEANINGS = {
    64: "554 5.3.0 ",
    65: "554 5.6.0 ",
    66: "554 5.3.0 ",
    67: "550 5.1.1 ",
    68: "550 5.1.2 ",
    69: "554 5.3.0 ",
    70: "554 5.3.0 ",
    71: "451 4.3.0 ",
    72: "451 4.3.0 ",
    73: "451 4.3.0 ",
    74: "451 4.3.0 ",
    75: "451 4.3.0 ",
    76: "554 5.5.0 ",
    77: "550 5.7.0 ",
    78: "451 4.3.5 ",
    **dict.fromkeys((1, 2, 63, 79, 99, 100, 111, 126, 127, 128, 137, 255), "451 4.3.0 "),
}


@pytest.mark.parametrize("code", MEANINGS)
def test_exit_is_the_reply(session, code):
    client = session(shell(f"exit {code}"))
    assert send(client).startswith(MEANINGS[code])
    assert client.ask("NOOP").startswith("250 ")


def test_every_code_of_sysexits_has_a_meaning():
    assert sorted(EXITS) == list(range(64, 79))
    names = [name for name in dir(os) if name.startswith("EX_") and name != "EX_OK"]
    assert {getattr(os, name) for name in names} <= set(EXITS)


@pytest.mark.parametrize("number", ["KILL", "SEGV", "TERM", "PIPE"])
def test_death_by_a_signal_is_451(session, caplog, number):
    client = session(shell(f"kill -{number} $$; sleep 60"))
    assert send(client).startswith("451 4.3.0 ")
    assert f"status=-{getattr(signal, f'SIG{number}').value}" in caplog.text


@pytest.mark.parametrize("command", ["/nowhere/command", "no-such-command-anywhere", "/", __file__])
def test_command_that_cannot_be_run_is_451(session, caplog, command):
    client = session([command])
    assert send(client).startswith("451 4.3.0 ")
    assert "mail could not be stored" in caplog.text
    assert send(client).startswith("451 4.3.0 ")


def test_command_that_does_not_read_is_a_success(session):
    client = session(["true"])
    assert send(client, LARGE * 50).startswith("250 ")


def test_command_that_reads_a_part_is_a_success(session):
    client = session(["head", "-c", "10"])
    assert send(client, LARGE * 50).startswith("250 ")


# -- what it prints --------------------------------------------------------------------------


def test_output_is_logged_and_not_told(session, caplog):
    caplog.set_level(logging.INFO, "smtpd_sync")
    client = session(shell("echo to the log; echo and this >&2; printf 'a\\033[2Jb'; exit 75"))
    assert send(client) == "451 4.3.0 Temporary failure"
    (record,) = [one for one in caplog.records if one.message.startswith("pipe ")]
    assert record.levelno == logging.WARNING
    assert "command=sh status=75 " in record.message
    assert "to the log" in record.message
    assert "and this" in record.message
    assert record.message.isprintable()


def test_output_of_a_success_is_information(session, caplog):
    caplog.set_level(logging.INFO, "smtpd_sync")
    client = session(shell("echo delivered; exit 0"))
    assert send(client).startswith("250 ")
    (record,) = [one for one in caplog.records if one.message.startswith("pipe ")]
    assert record.levelno == logging.INFO
    assert "output=delivered" in record.message


def test_much_output_is_read_and_little_is_kept(session, caplog):
    client = session(shell("head -c 3000000 /dev/zero | tr '\\0' x; exit 67"))
    assert send(client).startswith("550 5.1.1 ")
    (record,) = [one for one in caplog.records if one.message.startswith("pipe ")]
    assert record.message.count("x") == SHOWN


# -- time, processes and descriptors ---------------------------------------------------------


@linux
def test_command_that_takes_too_long_is_killed_with_all_it_started(session, tmp_path, caplog):
    script = "sleep 300 & echo $! > $1.part; mv $1.part $1; echo slow; sleep 300"
    client = session(shell(script, tmp_path / "pid"), timeout=0.5)
    begin = time.monotonic()
    assert send(client).startswith("451 4.3.0 ")
    assert 0.5 <= time.monotonic() - begin < SOON
    grandchild = int(read(tmp_path / "pid"))
    until(lambda: not alive(grandchild), "the end of what it started")
    assert "status=killed" in caplog.text
    assert "output=slow" in caplog.text


def test_command_that_closes_its_output_is_waited_for(session, tmp_path):
    script = f"exec >&- 2>&-; cat > /dev/null; sleep 0.2; touch {tmp_path}/done; exit 67"
    assert send(session(shell(script))).startswith("550 5.1.1 ")
    assert (tmp_path / "done").exists()


def test_command_that_closes_its_output_is_killed_in_time(session):
    client = session(shell("exec >&- 2>&-; sleep 300"), timeout=0.3)
    begin = time.monotonic()
    assert send(client).startswith("451 4.3.0 ")
    assert time.monotonic() - begin < SOON


@pytest.mark.parametrize(
    "script", ["sleep 300", "while sleep 0.01; do echo x; done", "yes & yes & yes & yes"]
)
def test_what_it_leaves_behind_is_not_waited_for(session, tmp_path, script):
    client = session(shell(f"({script}) & echo $! > {tmp_path}/pid; exit 0"))
    begin = time.monotonic()
    try:
        assert send(client).startswith("250 ")
        assert time.monotonic() - begin < SOON
    finally:
        os.killpg(os.getpgid(int(read(tmp_path / "pid"))), signal.SIGKILL)


def test_what_it_leaves_behind_may_print_for_ever():
    process = subprocess.Popen(["true"])
    process.wait()
    theirs, ours = socket.socketpair()
    with theirs, ours, ours.makefile("rb", buffering=0) as pipe:
        theirs.sendall(b"x" * 100_000)
        assert _read(process, pipe, time.monotonic() + DEADLINE) == b"x" * SHOWN
        assert len(ours.recv(100_000)) == 100_000 - 65_536  # the rest is not waited for


@linux
def test_descriptors_and_signals_of_ours_do_not_leak_into_it(session, tmp_path):
    out = tmp_path / "out"
    opened = [open(__file__) for _ in range(20)]  # noqa: SIM115
    try:
        script = f"ls -l /proc/self/fd > {out}; grep -E 'SigIgn|SigBlk' /proc/self/status >> {out}"
        assert send(session(shell(script))).startswith("250 ")
    finally:
        for file in opened:
            file.close()
    text = read(out).decode()
    found = re.findall(r" ([0-9]+) -> (\S+)", text)
    assert [number for number, _ in found] == ["0", "1", "2", "3"]  # 3 is that of ls
    assert found[3][1].startswith("/proc/")
    assert "socket:" not in text
    ignored = int(re.search(r"SigIgn:\s*([0-9a-f]+)", text)[1], 16)
    assert not ignored & 1 << (signal.SIGPIPE - 1)


@linux
def test_many_commands_at_a_time(serve, tmp_path):
    server = serve(deliver=Pipe(["dd", "status=none", f"of={tmp_path}/{{id}}"]), trace=False)
    tokens = flood(server.address, 6, 10)
    found = files(tmp_path).values()
    assert len(found) == 60
    assert {token_of(octets): octets for octets in found} == {
        token: front() + body(token).replace(b"\r\n", b"\n") for token in tokens
    }


def test_where_exits_are_not_told_nothing_is_run(session, tmp_path, caplog):
    # With SIGCHLD ignored the system forgets how a process ended: a 250 might be a lie.
    client = session(shell(f"touch {tmp_path}/ran; exit 67"))
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert send(client).startswith("451 4.3.0 ")
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert not (tmp_path / "ran").exists()
    assert "SIGCHLD is ignored" in caplog.text


# -- recipient by recipient ------------------------------------------------------------------

BY_RECIPIENT = """
cat > "$1/$2"
case $2 in
    no*) exit 67;;
    later*) exit 75;;
esac
"""
FOUR = ["b@y.example", "later@y.example", "no@y.example", "c@y.example"]


def test_command_is_run_for_each_recipient(session, tmp_path):
    client = session(shell(BY_RECIPIENT, tmp_path, "{recipient}"))
    recipients = ["b@y.example", "c@y.example", "b@y.example"]
    assert send(client, recipients=recipients).startswith("250 2.0.0 OK ")
    assert files(tmp_path) == {each: front(recipients=[each]) + UNIX for each in recipients[:2]}


@pytest.mark.parametrize(
    ("recipients", "told"),
    [
        (FOUR, "451 4.3.0 Temporary failure"),
        (FOUR[::-1], "550 5.1.1 User unknown"),
        (["b@y.example", "-c@y.example", "d@y.example"], OPTION),
    ],
    ids=["451 first", "550 first", "hyphen"],
)
def test_first_failure_wins_and_the_others_have_the_message(
    session, tmp_path, caplog, recipients, told
):
    client = session(shell(BY_RECIPIENT, tmp_path, "{recipient}"))
    assert send(client, recipients=recipients) == told
    ran = [each for each in recipients if each[0] != "-"]
    assert sorted(files(tmp_path)) == sorted(ran)
    assert "was not delivered to all" in caplog.text
    assert "'<b@y.example>': 250" in caplog.text


def test_recipients_of_lmtp_have_a_reply_each(session, tmp_path):
    client = session(shell(BY_RECIPIENT, tmp_path, "{recipient}"), lmtp=True)
    recipients = [*FOUR, "b@y.example", "-d@y.example"]
    replies = [send(client, recipients=recipients), *(client.reply() for _ in recipients[1:])]
    expected = ["250 2.0.0 ", "451 4.3.0 ", "550 5.1.1 ", "250 2.0.0 ", "250 2.0.0 ", "553 5.1.3 "]
    for reply, start in zip(replies, expected):
        assert reply.startswith(start)


def test_recipients_of_lmtp_share_the_fate_of_one_command(session):
    client = session(shell("exit 75", "{recipients}"), lmtp=True)
    assert send(client, recipients=FOUR).startswith("451 4.3.0 ")
    assert [client.reply()[:9] for _ in FOUR[1:]] == ["451 4.3.0"] * 3


def test_fault_for_one_recipient_of_lmtp_is_his_alone(tmp_path, monkeypatch):
    real, made = tempfile.TemporaryFile, []

    def second_fails(*arguments, **keywords):
        made.append(1)
        if len(made) == 2:
            raise OSError(28, "full")
        return real(*arguments, **keywords)

    monkeypatch.setattr(tempfile, "TemporaryFile", second_fails)
    command = Pipe(["true", "{recipient}"])
    envelope = envelope_of(recipients=["b@y.example", "c@y.example", "d@y.example"], lmtp=True)
    found = command.deliver_envelope(envelope)
    assert [reply and reply.code for reply in found] == [None, 452, None]


# -- faults ----------------------------------------------------------------------------------


def test_where_no_temporary_file_can_be_made_is_451(session, tmp_path, monkeypatch):
    client = session(shell(f"touch {tmp_path}/ran"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert send(client).startswith("451 4.3.0 ")
    assert not (tmp_path / "ran").exists()


def test_disk_that_fills_is_452_and_leaves_nothing(session, tmp_path, monkeypatch):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        client = session(shell(f"touch {tmp_path}/ran"))
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        room = left(disk)
        assert send(client, LARGE * 8).startswith("452 4.3.1 ")
        filler = disk / "filler"
        filler.write_bytes(bytes(left(disk)))
        assert send(client).startswith("452 4.3.1 ")
        assert not (tmp_path / "ran").exists()
        filler.unlink()
        until(lambda: left(disk) == room, "the room on the disk")
        assert send(client).startswith("250 ")


def test_stop_waits_for_a_command(serve, connect, tmp_path):
    server = serve(deliver=Pipe(shell(f"touch {tmp_path}/on; sleep 0.3; touch {tmp_path}/end")))
    client = connect(server)
    client.to_data()
    client.send(MAIL.replace(b"\r\n.", b"\r\n..") + b".\r\n")
    until(lambda: (tmp_path / "on").exists(), "the command")
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    assert client.reply().startswith("250 ")
    stopping.join(DEADLINE)
    assert (tmp_path / "end").exists()
