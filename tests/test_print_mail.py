"""The example that prints mail: as a program, with what tcllib's client scripts try."""

import signal
import smtplib

import pytest
from support import ROOT, Client, Program

EXAMPLE = str(ROOT / "examples" / "print_mail.py")
# As the program itself, but the client may say where it comes from.
PROXIED = f"""
import runpy, sys
from smtpd_sync import SMTPServer
SMTPServer.proxy_protocol = ("127.0.0.0/8",)
sys.argv = ["print_mail.py", "127.0.0.1", "0"]
runpy.run_path({EXAMPLE!r}, run_name="__main__")
"""


@pytest.fixture
def start(no_leaks):
    """Run it; ended in order after the test."""
    programs = []

    def make(*arguments):
        programs.append(Program(*arguments))
        programs[-1].place = ("127.0.0.1", programs[-1].port())
        return programs[-1]

    yield make
    for program in programs:
        with program:
            program.signal(signal.SIGINT)
            assert program.finish() == 0, program.errors
            assert program.errors == ""


@pytest.fixture
def example(start):
    return start(EXAMPLE, "127.0.0.1", "0")


def printed(program):
    """Read a message that it prints: its lines."""
    lines = []
    while not lines or lines[-1]:
        lines.append(program.line())
    while lines.count("") < 2:  # one before the body, one behind the message
        lines.append(program.line())
    return lines


def test_normal_message_is_printed_once_for_each_recipient(example):
    with smtplib.SMTP(*example.place, timeout=20) as client:
        refused = client.sendmail(
            "ann@example.com",
            ["bob@example.com", "carol@example.com", "bob@EXAMPLE.com"],
            "Subject: hi\r\n\r\n.dot\r\nHello\r\n",
        )
    assert refused == {}
    for recipient in ("bob", "carol"):
        lines = printed(example)
        assert lines[0] == f"To: {recipient}@example.com"
        assert lines[1].startswith("From ann@example.com ")
        assert lines[2].startswith("Received: ")
        assert lines[-5:] == ["Subject: hi", "", ".dot", "Hello", ""]
    example.signal(signal.SIGTERM)
    assert example.finish() == 0
    assert example.remaining() == b""  # none for the recipient that was named twice


@pytest.mark.parametrize("recipient", ["RCPT TO:<>", "RCPT TO: <>", "RCPT TO:", "RCPT TO"])
def test_empty_recipient_is_refused(example, recipient):
    with Client(example.place) as client:
        client.hello()
        assert client.ask("MAIL FROM:<ann@example.com>").startswith("250 ")
        assert client.ask(recipient).startswith("501 5.")
        assert client.ask("DATA").startswith(("503 ", "554 "))  # RFC 5321 3.3
        assert client.ask("RCPT TO:<bob@example.com>").startswith("250 ")


def test_null_recipient_is_refused_by_a_library_too(example):
    refused = pytest.raises(smtplib.SMTPRecipientsRefused)
    with smtplib.SMTP(*example.place, timeout=20) as client, refused as refusal:
        client.sendmail("ann@example.com", [""], "Subject: hi\r\n\r\nHello\r\n")
    assert refusal.value.recipients[""][0] == 501


def test_null_sender_is_accepted(example):
    with smtplib.SMTP(*example.place, timeout=20) as client:
        client.sendmail("", ["bob@example.com"], "Subject: bounce\r\n\r\nHello\r\n")
    lines = printed(example)
    assert lines[0] == "To: bob@example.com"
    assert lines[1].startswith("From <> ")


@pytest.mark.parametrize(
    ("lines", "reply"),
    [
        (["MAIL FROM:<denied@x.example>"], "550 5.7.1 mailbox denied denied"),
        (["MAIL FROM:<denied@y.example>"], "550 5.7.1 mailbox denied denied"),
        (["MAIL FROM:<denied2@x.example>"], "250 "),
        (["MAIL FROM:<>", "RCPT TO:<bogus@x.example>"], "550 5.1.1 mailbox bogus denied"),
        (["MAIL FROM:<>", "RCPT TO:<bogus-2@x.example>"], "550 5.1.1 mailbox bogus-2 denied"),
        (["MAIL FROM:<>", "RCPT TO:<no.bogus@x.example>"], "250 "),
    ],
)
def test_whom_it_refuses(example, lines, reply):
    with Client(example.place) as client:
        client.hello()
        for line in lines:
            answer = client.ask(line)
        assert answer.startswith(reply)


@pytest.mark.parametrize(
    ("host", "greeting"),
    [
        ("192.168.1.7", "554 your domain is not allowed to post, spammers!"),
        ("192.168.10.7", "220 "),
        ("192.168.2.1", "220 "),
    ],
)
def test_host_that_it_refuses(start, host, greeting):
    example = start("-c", PROXIED)
    with Client(example.place) as client:
        client.send(f"PROXY TCP4 {host} 127.0.0.1 4711 25\r\n".encode())
        assert client.reply().startswith(greeting)


def test_nothing_in_a_message_plays_tricks_on_the_terminal(example):
    octets = "Subject: hi\r\n\r\n\x1b[2J\0\a \u202egnp.exe \x9b31m \N{SNOWMAN}\tend".encode()
    with Client(example.place) as client:
        assert client.mail(octets + b" \xff\r\n").startswith("250 ")
    fffd = "\ufffd"
    assert printed(example)[-2] == (
        f"{fffd}[2J{fffd}{fffd} {fffd}gnp.exe {fffd}31m \N{SNOWMAN}\tend {fffd}"
    )


def test_port_that_is_taken_is_one_line(example):
    with Program(EXAMPLE, "127.0.0.1", str(example.place[1])) as second:
        assert second.finish() == 2
        assert "cannot listen on 127.0.0.1, port " in second.errors
        assert "Traceback" not in second.errors


def test_help_tells_of_its_arguments():
    with Program(EXAMPLE, "--help") as program:
        assert program.finish() == 0
        assert b"[host] [port]" in program.remaining()
