"""The Received field: what it says, and what nobody can make it say (RFC 5321 4.4)."""

import email
import email.policy
import email.utils
import time

import pytest
from support import have_ipv6

from smtpd_sync import Envelope, Peer, Session
from smtpd_sync.syntax import Mailbox
from smtpd_sync.trace import date, received


def field_of(data):
    """Give the Received field as the email package reads it."""
    message = email.message_from_bytes(data, policy=email.policy.SMTPUTF8)
    assert not message.defects
    (field,) = message.get_all("Received")
    return " ".join(str(field).split())


def test_received_is_parsed_by_the_email_package(serve, connect, inbox):
    client = connect(serve())
    before = int(time.time())
    reply = client.mail()
    words, _, when = field_of(inbox.data).rpartition(";")
    words = words.split()
    assert words[:3] == ["from", "client.example", "([127.0.0.1])"]
    assert words[3:7] == ["by", "mx.example", "with", "ESMTP"]
    assert words[7] == "id"
    assert words[8] in reply
    assert words[9:] == ["for", "<b@y.example>"]
    stamp = email.utils.parsedate_to_datetime(when.strip())
    assert stamp.tzinfo is not None
    assert before - 1 <= stamp.timestamp() <= time.time() + 1


def test_received_comes_first_and_once(serve, connect, inbox):
    connect(serve()).mail(b"Received: from elsewhere\r\nSubject: hi\r\n\r\nhello\r\n")
    assert inbox.data.startswith(b"Received: from client.example ")
    assert inbox.data.endswith(b"Received: from elsewhere\r\nSubject: hi\r\n\r\nhello\r\n")
    assert inbox.data.count(b"Received:") == 2


def test_helo_is_smtp_and_ehlo_is_esmtp(serve, connect, inbox):
    client = connect(serve())
    client.reply()
    client.ask("HELO old.example")
    for line in ("MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>", "DATA"):
        client.ask(line)
    client.send(b"x\r\n.\r\n")
    assert client.reply().startswith("250 ")
    assert b"from old.example (" in inbox.data
    assert b" with SMTP id " in inbox.data


@pytest.mark.parametrize("parameter", ["", " SMTPUTF8"])
@pytest.mark.parametrize("secure", [False, True])
def test_with_says_what_was_spoken(serve, connect, inbox, certificate, parameter, secure):
    client = connect(serve(tls=certificate))
    client.hello()
    if secure:
        client.starttls(certificate)
        client.ask("EHLO client.example")
    assert client.ask(f"MAIL FROM:<a@x.example>{parameter}").startswith("250 ")
    client.ask("RCPT TO:<b@y.example>")
    client.ask("DATA")
    client.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
    assert client.reply().startswith("250 ")
    name = ("UTF8SMTP" if parameter else "ESMTP") + ("S" if secure else "")
    field = field_of(inbox.data)
    assert f" with {name} id " in field
    assert ("TLSv1.3" in field) is secure
    if secure:
        assert client.socket.cipher()[0] in field


def test_for_is_there_only_for_a_lone_recipient(serve, connect, inbox):
    # With several, each would see the others (RFC 5321 7.2).
    connect(serve()).mail(recipients=("b@y.example", "hidden@y.example"))
    field = field_of(inbox.data)
    assert " for " not in field
    assert "hidden" not in field
    assert "y.example" not in field


@pytest.mark.skipif(not have_ipv6(), reason="the machine has no IPv6")
def test_ipv6_client_is_tagged(serve, connect, inbox):
    connect(serve(address=("::1", 0))).mail()
    assert "from client.example ([IPv6:::1]) by" in field_of(inbox.data)


@pytest.mark.parametrize(
    "helo", ["[127.0.0.1]", "[IPv6:2001:db8::1]", "under_score.example", "x" * 63 + ".example"]
)
def test_names_that_are_legal_stand_as_they_are(serve, connect, inbox, helo):
    client = connect(serve())
    client.reply()
    assert client.ask(f"EHLO {helo}").startswith("250-")
    for line in ("MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>", "DATA"):
        client.ask(line)
    client.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
    assert client.reply().startswith("250 ")
    assert field_of(inbox.data).startswith(f"from {helo} ([127.0.0.1]) by mx.example ")


HOSTILE = [
    "a\r\nX-Evil: yes",
    "a)\r\n\r\nbody",
    "a (by evil.example",
    "a) by evil.example with ESMTP (",
    "a; Mon, 1 Jan 1990 00:00:00 +0000",
    'a"b\\',
    "a\x00b\x1b[31m",
    "a\u2028b\u0085c",
    "\udcff\udc80",
    " ",
    "",
]


@pytest.mark.parametrize("helo", HOSTILE)
def test_hostile_name_cannot_break_out_of_the_field(helo):
    session = Session(peer=Peer("192.0.2.1", 25))
    session.helo, session.esmtp = helo, True
    envelope = Envelope(session, Mailbox("a", "x.example"))
    envelope.id = "id1"
    octets = received(envelope, "mx.example")
    lines = octets.decode().split("\r\n")
    assert lines[0].startswith("Received: from ")
    assert all(line.startswith("\t") for line in lines[1:-1])
    assert lines[-1] == ""
    assert octets.count(b"(") == octets.count(b")") == 1
    assert not any(c < " " and c not in "\r\n\t" for c in octets.decode())
    assert " by mx.example with ESMTP id id1;" in field_of(octets + b"\r\n")
    assert "\\" not in octets.decode()
    assert field_of(octets + b"\r\n").split()[1] not in ("", "by", "([192.0.2.1])")


@pytest.mark.parametrize(
    "line", ["EHLO a)b", "EHLO a\tby evil.example", "EHLO a(b", 'EHLO "a b"', "EHLO a;b"]
)
def test_hostile_names_do_not_even_greet(serve, connect, line):
    client = connect(serve())
    client.reply()
    assert client.ask(line).startswith("501 ")


@pytest.mark.parametrize("first", [b" ", b"\t"])
def test_data_that_begins_with_white_space_does_not_fold_into_our_field(
    serve, connect, inbox, first
):
    connect(serve()).mail(first + b"for <evil@x.example>\r\n\r\nhello\r\n")
    assert "evil" not in field_of(inbox.data)
    assert first + b"for <evil@x.example>\r\n\r\nhello\r\n" in inbox.data


def test_data_that_begins_with_white_space_octet_by_octet(serve, connect, inbox):
    client = connect(serve())
    client.to_data()
    for octet in b" evil\r\n\r\nhello\r\n.\r\n":
        client.send(bytes([octet]))
    assert client.reply().startswith("250 ")
    assert "evil" not in field_of(inbox.data)


def test_empty_message_has_a_trace_too(serve, connect, inbox):
    connect(serve()).mail(b"")
    assert field_of(inbox.data)


@pytest.mark.parametrize("data", [b"", b" folded\r\n", b"Subject: hi\r\n\r\nhello\r\n"])
def test_without_trace_data_is_as_it_was_sent(serve, connect, inbox, data):
    assert connect(serve(trace=False)).mail(data).startswith("250 ")
    assert inbox.data == data


def test_utf8_addresses_stand_in_utf8(serve, connect, inbox):
    client = connect(serve())
    client.hello()
    assert client.ask("MAIL FROM:<a@x.example> SMTPUTF8").startswith("250 ")
    assert client.ask("RCPT TO:<j\u00f6rg@y.example>").startswith("250 ")
    assert client.ask("DATA").startswith("354 ")
    client.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
    assert client.reply().startswith("250 ")
    assert "for <j\u00f6rg@y.example>;" in inbox.data.decode()
    assert " with UTF8SMTP id " in inbox.data.decode()


@pytest.mark.parametrize("seconds", [0, 1_000_000_000, 1_720_000_000])
def test_date_is_that_of_the_email_package(seconds):
    assert email.utils.parsedate_to_datetime(date(seconds)).timestamp() == seconds


def test_lines_of_the_field_are_short(serve, connect, inbox, certificate):
    client = connect(serve(tls=certificate, implicit_tls=True))
    client.secure(certificate)
    client.mail()
    assert max(map(len, inbox.data.split(b"\r\n"))) <= 78
