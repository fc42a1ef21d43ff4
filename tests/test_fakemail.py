"""The example of a dummy server that keeps files: as a program, with real clients."""

import os
import re
import shutil
import signal
import smtplib
import subprocess
import sys

import pytest
from storing import flood, mounted, send, token_of
from support import DEADLINE, ROOT, Client, Program, until

EXAMPLE = str(ROOT / "examples" / "fakemail.py")
MESSAGE = b"Subject: hi\r\n\r\nHello\r\n"
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="it goes to the background by fork")


@pytest.fixture
def start(no_leaks, tmp_path):
    """Run it in an empty directory; ended in order after the test."""
    programs = []

    def make(*arguments):
        programs.append(Program(EXAMPLE, "--port", "0", *arguments, cwd=tmp_path))
        programs[-1].place = ("127.0.0.1", programs[-1].port())
        return programs[-1]

    yield make
    for program in programs:
        with program:
            program.signal(signal.SIGINT)
            assert program.finish() == 0, program.errors
            assert program.errors == ""


def names(directory):
    return sorted(os.listdir(directory))


def mail(place, *recipients, data=MESSAGE, sender="ann@example.com"):
    with smtplib.SMTP(*place, timeout=DEADLINE) as client:
        client.sendmail(sender, recipients, data)


def test_each_recipient_has_a_file_and_they_count_up(start, tmp_path):
    place = start("--path", "mail").place
    mail(place, "bob@example.com", "carol@example.com")
    mail(place, "bob@example.com")
    kept = tmp_path / "mail"
    assert names(kept) == ["bob@example.com.1", "bob@example.com.2", "carol@example.com.1"]
    octets = (kept / "carol@example.com.1").read_bytes()
    fields = b"Return-Path: <ann@example.com>\r\nDelivered-To: carol@example.com\r\nReceived: "
    assert octets.startswith(fields)
    assert octets.endswith(b"\r\n" + MESSAGE)


def test_nothing_is_written_over_after_a_restart(start, tmp_path):
    mail(start().place, "bob@example.com")
    first = (tmp_path / "bob@example.com.1").read_bytes()
    mail(start().place, "bob@example.com")
    assert names(tmp_path) == ["bob@example.com.1", "bob@example.com.2"]
    assert (tmp_path / "bob@example.com.1").read_bytes() == first


@pytest.mark.parametrize(
    "recipient",
    [
        '"../outside/evil"@x.example',
        "/etc/evil@x.example",
        '"../../evil"@x.example',
        '".."@x.example',
        "nodir/x@x.example",
    ],
)
def test_no_name_leads_out_of_the_directory(start, tmp_path, recipient):
    (tmp_path / "outside").mkdir()
    place = start("--path", "mail").place
    mail(place, recipient)
    assert names(tmp_path) == ["mail", "outside"]
    assert names(tmp_path / "outside") == []
    (name,) = names(tmp_path / "mail")
    assert not name.startswith(".")
    assert (tmp_path / "mail" / name).read_bytes().endswith(MESSAGE)


def test_many_clients_at_a_time(start, tmp_path):
    place = start("--log", "log", "--path", "mail").place
    with Client(place) as silent, Client(place) as idle:
        idle.hello()
        tokens = flood(place, clients=8, each=5, recipients=["b@y.example", "c@y.example"])
        assert silent.reply().startswith("220 ")
    for recipient in ("b@y.example", "c@y.example"):
        kept = [tmp_path / "mail" / f"{recipient}.{n}" for n in range(1, 41)]
        assert sorted(token_of(path.read_bytes()) for path in kept) == sorted(tokens)
    log = (tmp_path / "log").read_text()
    assert log.count("received for ") == 80
    saved = re.findall(r"saved as '(.*)'\n", log)
    assert sorted(map(os.path.basename, saved)) == names(tmp_path / "mail")


def test_extended_hello_is_understood(start):
    with Client(start().place) as client:
        assert "250-SIZE " in client.hello()


def test_451_when_saving_fails_and_it_goes_on(start, tmp_path):
    program = start("--path", "mail", "--log", "log")
    with Client(program.place) as client:
        client.hello()
        kept = tmp_path / "mail"
        kept.rename(tmp_path / "elsewhere")
        for recipients in (["b@y.example"], ["b@y.example", "c@y.example"]):
            assert send(client, recipients=recipients).startswith("451 4.3.0 ")
        (tmp_path / "elsewhere").rename(kept)
        assert send(client).startswith("250 ")
    assert names(kept) == ["b@y.example.1"]
    log = (tmp_path / "log").read_text()
    assert log.count("saved as ") == 1
    assert "mail could not be stored" in log


def test_452_when_the_disk_is_full(start, tmp_path):
    small = tmp_path / "small"
    with mounted(small, "size=64k"):
        with Client(start("--path", str(small), "--log", "log").place) as client:
            client.hello()
            large = b"Subject: large\r\n\r\n" + b"0123456789\r\n" * 20_000
            for recipients in (["b@y.example"], ["b@y.example", "c@y.example"]):
                assert send(client, large, recipients=recipients).startswith("452 4.3.1 ")
            assert names(small) == []
            assert send(client).startswith("250 ")
        assert names(small) == ["b@y.example.1"]


def test_log_tells_what_came_and_where_it_is(start, tmp_path):
    program = start("--log", "log", "--path", "mail")
    mail(program.place, "bob@example.com", "carol@example.com", sender="")
    program.signal(signal.SIGTERM)
    assert program.finish() == 0
    lines = (tmp_path / "log").read_text().splitlines()
    stamp = r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2},[0-9]{3} "
    told = [re.fullmatch(stamp + "(.*)", line)[1] for line in lines]
    assert told == [
        f"fakemail started at 127.0.0.1:{program.place[1]}, process {program.process.pid}",
        "received for 'bob@example.com' from ''",
        "received for 'carol@example.com' from ''",
        f"saved as '{tmp_path}/mail/bob@example.com.1'",
        f"saved as '{tmp_path}/mail/carol@example.com.1'",
        "fakemail stopped",
    ]
    assert program.remaining() == b""


def test_log_is_appended_to_and_no_address_forges_a_line(start, tmp_path):
    (tmp_path / "log").write_text("before\n")
    place = start("--log", "log").place
    with Client(place) as client:
        client.hello()
        assert client.ask("MAIL FROM:<a\u202e@x.example> SMTPUTF8").startswith("250 ")
        assert client.ask("RCPT TO:<b\x85@x.example>")[0] in "25"
        client.ask("RCPT TO:<c@x.example>")
        client.ask("DATA")
        client.send(MESSAGE + b".\r\n")
        assert client.reply().startswith("250 ")
    log = (tmp_path / "log").read_text()
    assert log.startswith("before\n")
    assert "received for 'c@x.example' from 'a\\u202e@x.example'" in log
    assert "\u202e" not in log
    assert "\x85" not in log


def test_without_a_log_its_lines_are_printed(start):
    program = start()
    mail(program.place, "bob@example.com")
    assert " fakemail started at 127.0.0.1:" in program.line()
    assert program.line().endswith(" received for 'bob@example.com' from 'ann@example.com'")
    assert " saved as '" in program.line()


def test_onlylog_saves_nothing(start, tmp_path):
    place = start("--onlylog", "--log", "log", "--path", "mail").place
    mail(place, "bob@example.com", "carol@example.com")
    assert names(tmp_path) == ["log"]
    log = (tmp_path / "log").read_text()
    assert log.count("received for ") == 2
    assert "saved as" not in log


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"  # nobody may wait for it
    except FileNotFoundError:
        return False


@posix
def test_in_the_background_it_serves_and_only_its_number_is_on_standard_output(tmp_path):
    command = [sys.executable, EXAMPLE, "--port", "0", "--path", "mail", "--log", "log"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # Both pipes come to an end: it has let go of them.
    done = subprocess.run(
        [*command, "--background"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=DEADLINE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pid = int(done.stdout)
    try:
        port = int(re.fullmatch(r"listening on 127\.0\.0\.1:([0-9]+)\n", done.stderr)[1])
        assert os.getsid(pid) not in (pid, os.getsid(0))  # nor can it get a terminal
        mail(("127.0.0.1", port), "bob@example.com")
        assert names(tmp_path / "mail") == ["bob@example.com.1"]
        os.kill(pid, signal.SIGTERM)
        until(lambda: not alive(pid), "the end of the process")
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    assert (tmp_path / "log").read_text().endswith("fakemail stopped\n")
    with pytest.raises(ConnectionRefusedError):
        Client(("127.0.0.1", port))


def test_background_where_there_is_no_fork_is_one_line(tmp_path):
    code = (
        "import os, runpy, sys; del os.fork; sys.argv = ['fakemail.py', '--background']; "
        f"runpy.run_path({EXAMPLE!r}, run_name='__main__')"
    )
    with Program("-c", code, cwd=tmp_path) as program:
        assert program.finish() == 2
        assert program.errors.endswith("error: --background: this system cannot fork\n")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [["--log", "no/such/log"], ["--path", "file/mail"], ["--port", "0", "--host", "192.0.2.1"]],
)
def test_what_cannot_be_is_one_line_also_in_the_background(tmp_path, arguments):
    (tmp_path / "file").write_text("")
    with Program(EXAMPLE, "--background", "--port", "0", *arguments, cwd=tmp_path) as program:
        assert program.finish() == 2
        assert re.search(r"\nfakemail\.py: error: [^\n]+\n\Z", program.errors), program.errors
        assert program.remaining() == b""


@pytest.mark.interop
@pytest.mark.parametrize("tool", ["curl", "swaks"])
def test_real_clients(start, tmp_path, tool):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is missing")
    place = "{}:{}".format(*start("--path", "mail").place)
    (tmp_path / "message").write_bytes(MESSAGE)
    commands = {
        "curl": f"curl -sS smtp://{place}/client.example --mail-from ann@example.com"
        " --mail-rcpt bob@example.com --mail-rcpt carol@example.com --upload-file message",
        "swaks": f"swaks --server {place} --helo client.example --from ann@example.com"
        " --to bob@example.com,carol@example.com --data @message",
    }
    subprocess.run(
        commands[tool].split(), check=True, cwd=tmp_path, capture_output=True, timeout=DEADLINE
    )
    assert names(tmp_path / "mail") == ["bob@example.com.1", "carol@example.com.1"]
    assert b"Subject: hi\r\n" in (tmp_path / "mail" / "bob@example.com.1").read_bytes()
