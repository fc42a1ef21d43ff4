"""Scripted faults from the command line, and that a plan is the same however it is written."""

import json
import os
import re
import signal
import textwrap

import pytest
from support import Client

from smtpd_sync import SMTPHandler, cli
from smtpd_sync.faultflags import READERS
from smtpd_sync.faults import Faults
from smtpd_sync.flags import from_environment, parser

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")


# -- one plan, written in several ways -----------------------------------------------------------

SEED = 5
FLAGS = [
    *("--fail", "RCPT=550 5.1.1 no such user@bad@*:2"),
    *("--fail", "MAIL=421@late@*"),
    *("--chance", "0.5:NOOP=450"),
    *("--delay", "RSET=0.01:1"),
    *("--drop", "EOM@lost@*"),
    *("--seed", str(SEED)),
]
DATA = [
    {"on": "RCPT", "fail": 550, "text": "5.1.1 no such user", "to": "bad@*", "times": 2},
    {"on": "MAIL", "fail": 421, "sender": "late@*"},
    {"on": "NOOP", "fail": 450, "chance": 0.5, "seed": SEED},
    {"on": "RSET", "delay": 0.01, "times": 1},
    {"on": "EOM", "drop": True, "to": "lost@*"},
]


def by_methods():
    plan = Faults()
    plan.fail("RCPT", 550, "5.1.1 no such user", to="bad@*", times=2)
    plan.fail("MAIL", 421, sender="late@*")
    plan.chance(0.5, "NOOP", 450, seed=SEED)
    plan.delay("RSET", 0.01, times=1)
    plan.drop("EOM", to="lost@*")
    return plan


HANDLER = """
    from smtpd_sync import SMTPHandler

    class Mine(SMTPHandler):
        def deliver(self, sender, recipients, data):
            return "taken"
"""


class Mine(SMTPHandler):
    def deliver(self, sender, recipients, data):
        return "taken"


SAID = [
    ["RCPT TO:<bad@y.example>", "RCPT TO:<b@y.example>", "DATA", "hi\r\n.", *["NOOP"] * 9, "RSET"],
    [*["RCPT TO:<Bad@y.example>"] * 2, "RCPT TO:<lost@y.example>", "DATA", "hi\r\n.", "NOOP"],
    [*["NOOP"] * 9, "RSET", "MAIL FROM:<late@x.example>", "NOOP"],
]


def dialogue(address):
    """Hold three conversations; give the octets of all replies."""
    heard = b""
    for lines in SAID:
        with Client(address) as client:
            for line in (None, "EHLO client.example", "MAIL FROM:<a@x.example>", *lines):
                if line is not None:
                    client.send(line.encode() + b"\r\n")
                reply = client.reply()
                if not reply:
                    break
                heard += reply.encode() + b"\n"
            heard += b"(end)\n"
    return heard


@pytest.fixture
def expected(serve):
    """What a server with the plan, made by methods, says."""
    return dialogue(serve(by_methods().handler(Mine)).address)


def test_dialogue_has_the_faults(expected):
    lines = expected.decode().split("\n")
    assert lines.count("550 5.1.1 no such user") == 2
    assert lines.count("250 2.0.0 taken") == 1
    assert 0 < sum(line.startswith("450 ") for line in lines) < 18
    # Dropped at the end of the second message, and closed by 421 in the third conversation.
    assert lines[-3:] == [
        "421 4.0.0 Service not available, closing transmission channel",
        "(end)",
        "",
    ]
    assert lines.count("(end)") == 3
    assert lines[lines.index("(end)", lines.index("(end)") + 1) - 1].startswith("354 ")


@pytest.mark.parametrize("form", [DATA, json.dumps(DATA)], ids=["data", "JSON"])
def test_dialogue_of_a_plan_as_data_is_the_same(serve, expected, form):
    assert dialogue(serve(Faults(form).handler(Mine)).address) == expected


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "mine.py").write_text(textwrap.dedent(HANDLER))
    (tmp_path / "faults.json").write_text(json.dumps(DATA))
    return tmp_path


@pytest.mark.parametrize("flags", [FLAGS, ["--faults", "faults.json"]], ids=["flags", "file"])
def test_dialogue_of_the_command_line_is_the_same(serving, directory, expected, flags):
    program, port = serving(
        *("--handler", "mine:Mine", "--hostname", "mx.example", *flags), cwd=directory
    )
    assert dialogue(("127.0.0.1", port)) == expected
    program.signal(signal.SIGTERM)
    assert (program.finish(), program.errors) == (0, "")


# -- how the flags are read ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "script", "entry"),
    [
        ("--fail", "RCPT=550", {"on": "RCPT", "fail": 550}),
        ("--fail", "rcpt=550:3", {"on": "RCPT", "fail": 550, "times": 3}),
        ("--fail", "RCPT=550@bad@*:1", {"on": "RCPT", "fail": 550, "to": "bad@*", "times": 1}),
        ("--fail", "MAIL=451@*@x", {"on": "MAIL", "fail": 451, "sender": "*@x"}),
        ("--fail", "EHLO=550@*.example", {"on": "EHLO", "fail": 550, "helo": "*.example"}),
        ("--fail", "AUTH=535@ann", {"on": "AUTH", "fail": 535, "user": "ann"}),
        ("--fail", "EOM=452 full", {"on": "EOM", "fail": 452, "text": "full"}),
        (
            "--fail",
            "EOM=452 4.2.2 it is full@b*:2",
            {"on": "EOM", "fail": 452, "text": "4.2.2 it is full", "to": "b*", "times": 2},
        ),
        ("--fail", "EOM=452 full:2", {"on": "EOM", "fail": 452, "text": "full", "times": 2}),
        (
            "--fail",
            "RCPT=550@*@[[]IPv6:2001:db8::1]",
            {"on": "RCPT", "fail": 550, "to": "*@[[]IPv6:2001:db8::1]"},
        ),
        (
            "--fail",
            "RCPT=550@*@[[]IPv6:2001:db8::1]:7",
            {"on": "RCPT", "fail": 550, "to": "*@[[]IPv6:2001:db8::1]", "times": 7},
        ),
        ("--delay", "RCPT=0.5", {"on": "RCPT", "delay": 0.5}),
        ("--delay", "DATA=2@b@*:1", {"on": "DATA", "delay": 2.0, "to": "b@*", "times": 1}),
        ("--drop", "EOM", {"on": "EOM", "drop": True}),
        ("--drop", "CONNECT:2", {"on": "CONNECT", "drop": True, "times": 2}),
        ("--drop", "MAIL@a@*", {"on": "MAIL", "drop": True, "sender": "a@*"}),
        ("--chance", "0.1:RCPT=451", {"on": "RCPT", "fail": 451, "chance": 0.1}),
        (
            "--chance",
            "1:RCPT=451 no@b@*:9",
            {"on": "RCPT", "fail": 451, "text": "no", "to": "b@*", "times": 9, "chance": 1.0},
        ),
    ],
)
def test_scripts(flag, script, entry):
    assert READERS[flag](script) == [entry]


def test_address_literal_is_matched(serve, connect):
    plan = Faults(READERS["--fail"]("RCPT=550@*@[[]IPv6:2001:db8::1]"))
    client = connect(serve(plan.handler(Mine)))
    client.hello()
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask("RCPT TO:<b@[IPv6:2001:db8::1]>").startswith("550 ")
    assert client.ask("RCPT TO:<b@[IPv6:2001:db8::2]>").startswith("250 ")


def test_flags_keep_their_order():
    arguments = ["--drop", "EOM", "--fail", "EOM=451", "--drop", "MAIL", "--delay", "MAIL=1"]
    said = parser().parse_args(arguments).faults
    assert [(entry["on"], *list(entry)[1:]) for (entry,) in said] == [
        ("EOM", "drop"),
        ("EOM", "fail"),
        ("MAIL", "drop"),
        ("MAIL", "delay"),
    ]


def test_environment_may_have_several():
    made = parser()
    words = from_environment(made, {"SMTPD_SYNC_FAIL": "RCPT=550@bad@*:1 'EOM=452 is full'"})
    said = made.parse_args(words).faults
    assert said == [READERS["--fail"](word) for word in ("RCPT=550@bad@*:1", "EOM=452 is full")]


WRONG = [
    ["--fail", "RCPT"],
    ["--fail", "RCPT="],
    ["--fail", "RCPT=250"],
    ["--fail", "RCPT=5.5"],
    ["--fail", "RCTP=550"],
    ["--fail", "RCPT=550:0"],
    ["--fail", "RCPT=550:x"],
    ["--fail", "RCPT=550@"],
    ["--fail", "RCPT=550 4.1.1 of another class"],
    ["--fail", "CONNECT=421@somebody"],
    ["--delay", "RCPT"],
    ["--delay", "RCPT=soon"],
    ["--delay", "RCPT=1.2.3"],
    ["--drop", "EOM=451"],
    ["--drop", ""],
    ["--chance", "RCPT=451"],
    ["--chance", "2:RCPT=451"],
    ["--chance", "often:RCPT=451"],
    ["--seed", "x"],
    ["--faults", "nowhere.json"],
    ["--faults", "empty.json"],
    ["--faults", "wrong.json"],
    ["--faults", "latin.json"],
]


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_what_cannot_be_is_one_line_and_status_2(directory, monkeypatch, capsys, arguments):
    (directory / "empty.json").write_text("")
    (directory / "wrong.json").write_text('[{"stall": 9}, {"on": "RCPT", "fail": 200}]')
    (directory / "latin.json").write_bytes(b'["\xfc"]')
    monkeypatch.chdir(directory)
    with pytest.raises(SystemExit) as caught:
        cli.main(["127.0.0.1:0", *arguments])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"smtpd-sync: argument {arguments[0]}: ")
    assert ("fault 2: fail: a reply code" in line) == (arguments[-1] == "wrong.json")


# -- what a shell test does with it --------------------------------------------------------------


def deliver_once(port):
    with Client(("127.0.0.1", port)) as client:
        return client.mail()[:3]


def test_port_file_and_status_tell_a_shell_test_that_mail_came_in_the_end(run, tmp_path):
    program = run(
        *("127.0.0.1:0", "--port-file", "port", "--fail", "EOM=451:1", "-q"),
        *("--auth", "any", "--no-auth-require-tls", "--exit-after", "1", "--duration", "60"),
        cwd=tmp_path,
    )
    program.line()
    port = int((tmp_path / "port").read_text())
    with Client(("127.0.0.1", port)) as client:
        client.hello()
        assert client.ask("AUTH PLAIN AGFubgB4").startswith("235 ")
    assert [deliver_once(port), deliver_once(port)] == ["451", "250"]
    assert program.finish() == 0
    assert not (tmp_path / "port").exists()


def test_help_shows_the_faults_in_a_group_of_their_own():
    text = parser().format_help()
    (group,) = re.findall(r"^faults, for tests.*?\n\n", text, re.MULTILINE | re.DOTALL)
    for flag in (*READERS, "--seed"):
        assert f"  {flag} " in group
