"""The envelope: one transaction as a value, with its mail data in a file."""

import io

import pytest

from smtpd_sync import Envelope, Mailbox, Peer
from smtpd_sync.envelope import TLS
from smtpd_sync.session import Session


@pytest.fixture
def session():
    return Session(peer=Peer("192.0.2.1", 40000))


def test_envelope_begins_without_recipients(session):
    envelope = Envelope(session, Mailbox.parse("a@x.example"))
    assert envelope.sender == "a@x.example"
    assert envelope.recipients == []
    assert envelope.sender_parameters == {}
    assert envelope.recipient_parameters == []
    assert envelope.id == ""
    assert envelope.sink is None


def test_envelope_tells_of_its_session(session):
    envelope = Envelope(session, Mailbox())
    assert envelope.session is session
    assert envelope.peer == ("192.0.2.1", 40000)
    assert (envelope.helo, envelope.tls) == ("", None)
    session.helo, session.tls = "client.example", TLS("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256)
    assert (envelope.helo, envelope.tls) == ("client.example", session.tls)


@pytest.mark.parametrize(
    ("parameters", "smtputf8"), [({}, False), ({"SIZE": "1"}, False), ({"SMTPUTF8": True}, True)]
)
def test_envelope_knows_whether_it_is_internationalized(session, parameters, smtputf8):
    assert Envelope(session, Mailbox(), parameters).smtputf8 is smtputf8


@pytest.mark.parametrize(
    ("parameters", "binary"),
    [
        ({}, False),
        ({"BODY": "8BITMIME"}, False),
        ({"BODY": "BINARYMIME"}, True),
        ({"BODY": "binarymime"}, True),
    ],
)
def test_envelope_knows_whether_it_is_binary(session, parameters, binary):
    assert Envelope(session, Mailbox(), parameters).binary is binary


def test_envelope_knows_who_sends_it(session):
    envelope = Envelope(session, Mailbox())
    assert envelope.user is None
    session.user = "tim"
    assert envelope.user == "tim"


def test_mail_data_that_has_not_come_is_an_error(session):
    envelope = Envelope(session, Mailbox())
    with pytest.raises(ValueError, match="not come"):
        envelope.open()
    with pytest.raises(ValueError, match="not come"):
        _ = envelope.content


def test_mail_data_in_memory(session):
    envelope = Envelope(session, Mailbox())
    envelope.sink = io.BytesIO()
    envelope.sink.write(b"one\r\ntwo\r\n")
    assert envelope.content == b"one\r\ntwo\r\n"
    assert envelope.open().read() == b"one\r\ntwo\r\n"
    assert envelope.open().readline() == b"one\r\n"
    assert envelope.content == b"one\r\ntwo\r\n"


def test_mail_data_in_a_file(session, tmp_path):
    envelope = Envelope(session, Mailbox())
    with open(tmp_path / "mail", "w+b") as envelope.sink:
        envelope.sink.write(b"one\r\ntwo\r\n")
        assert envelope.content == b"one\r\ntwo\r\n"
        assert envelope.open().readline() == b"one\r\n"
        assert envelope.open().readline() == b"one\r\n"
        assert envelope.content == b"one\r\ntwo\r\n"
