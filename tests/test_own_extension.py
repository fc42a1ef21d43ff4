"""The example of an extension of one's own, as a program, with a real client."""

import signal
import smtplib

import pytest
from support import ROOT, Client, Program


@pytest.fixture
def example(no_leaks):
    with Program(str(ROOT / "examples" / "own_extension.py"), "0") as program:
        program.listening_at = program.port()
        yield program
        program.signal(signal.SIGINT)
        assert program.finish() == 0, program.errors
        assert program.errors == ""


def test_it_is_offered_and_its_parameter_arrives(example):
    with smtplib.SMTP("127.0.0.1", example.listening_at, timeout=20) as client:
        client.ehlo("client.example")
        assert client.esmtp_features["x-priority"].split() == ["1", "9"]
        client.sendmail("a@x.example", ["b@y.example", "c@y.example"], b"x\r\n", ["X-PRIORITY=3"])
        client.sendmail("a@x.example", ["b@y.example"], b"x\r\n", ["x-priority=9"])
        client.sendmail("a@x.example", ["b@y.example"], b"x\r\n")
    assert example.line() == "priority 3: a@x.example -> b@y.example, c@y.example"
    assert example.line() == "priority 9: a@x.example -> b@y.example"
    assert example.line() == "priority 5: a@x.example -> b@y.example"


@pytest.mark.parametrize(
    ("parameter", "reply"),
    [
        ("X-PRIORITY=0", "501 5.5.4 "),
        ("X-PRIORITY=10", "501 5.5.4 "),
        ("X-PRIORITY=high", "501 5.5.4 "),
        ("X-PRIORITY", "501 5.5.4 "),
        ("X-PRIORITY=3 X-PRIORITY=3", "501 5.5.4 "),
        ("X-URGENCY=3", "555 5.5.4 "),
    ],
)
def test_what_it_refuses(example, parameter, reply):
    with Client(("127.0.0.1", example.listening_at)) as client:
        client.hello()
        assert client.ask(f"MAIL FROM:<a@x.example> {parameter}").startswith(reply)
        assert client.ask("MAIL FROM:<a@x.example> X-PRIORITY=1").startswith("250 ")
        assert client.ask("RCPT TO:<b@y.example> X-PRIORITY=1").startswith("555 5.5.4 ")
