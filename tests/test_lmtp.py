"""LMTP (RFC 2033): a reply for each recipient."""

import smtplib

import pytest
from support import Client, trusting

from smtpd_sync import Limits, Reply, SMTPHandler, SMTPServer, discard

FULL = Reply(452, "Mailbox full", "4.2.2")
GONE = Reply(550, "No such mailbox", "5.1.1")
TO = ("b@y.example", "c@y.example", "d@y.example")


@pytest.fixture
def lmtp(serve, connect):
    """Serve LMTP; give a client behind LHLO."""

    def make(*arguments, **options):
        client = connect(serve(*arguments, lmtp=True, **options))
        assert client.reply().startswith("220 ")
        assert client.ask("LHLO client.example").startswith("250-mx.example")
        return client

    return make


def begin(client, recipients=TO):
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 2.1.0 ")
    for recipient in recipients:
        assert client.ask(f"RCPT TO:<{recipient}>").startswith("250 2.1.5 ")


def data(client, recipients=TO, message=b"Subject: hi\r\n\r\nhello\r\n"):
    """Send a message by DATA; give a reply for each recipient."""
    begin(client, recipients)
    assert client.ask("DATA").startswith("354 ")
    client.send(message + b".\r\n")
    return [client.reply() for _ in recipients]


def bdat(client, recipients=TO, message=b"Subject: hi\r\n\r\nhello\r\n"):
    """Send a message by BDAT, in two chunks; give a reply for each recipient."""
    begin(client, recipients)
    client.send(b"BDAT 5\r\n" + message[:5])
    assert client.reply().startswith("250 2.0.0 ")
    client.send(b"BDAT %d LAST\r\n" % len(message[5:]) + message[5:])
    return [client.reply() for _ in recipients]


BOTH = pytest.mark.parametrize("send", [data, bdat], ids=["DATA", "BDAT"])


def in_step(client):
    assert client.ask("NOOP") == "250 2.0.0 OK"


# -- a verdict for each recipient ------------------------------------------------------------


@BOTH
def test_verdict_for_each_recipient(lmtp, send):
    seen = []

    def deliver(sender, recipients, octets):
        seen.append((sender, list(recipients), octets))
        return [None, GONE, "queued as 17"]

    client = lmtp(deliver=deliver)
    first, second, third = send(client)
    assert first.startswith("250 2.0.0 OK ")
    assert second == "550 5.1.1 No such mailbox"
    assert third == "250 2.0.0 queued as 17"
    ((sender, recipients, octets),) = seen
    assert (sender, recipients) == ("a@x.example", list(TO))
    assert octets.endswith(b"hello\r\n")
    in_step(client)


@BOTH
def test_all_verdicts(lmtp, send):
    client = lmtp(deliver=lambda *_: [None, True, "yes", False, FULL])
    replies = send(client, ("1@y.example", "2@y.example", "3@y.example", *TO[:2]))
    assert [reply[:9] for reply in replies] == [
        *("250 2.0.0", "250 2.0.0", "250 2.0.0"),
        *("554 5.0.0", "452 4.2.2"),
    ]
    in_step(client)


@BOTH
@pytest.mark.parametrize(
    ("result", "reply"),
    [(None, "250 2.0.0 OK "), ("id 17", "250 2.0.0 id 17"), (False, "554 5.0.0 "), (FULL, "452 ")],
)
def test_one_verdict_is_for_all(lmtp, send, result, reply):
    client = lmtp(deliver=lambda *_: result)
    assert all(each.startswith(reply) for each in send(client))
    in_step(client)


@BOTH
@pytest.mark.parametrize(
    "result", [[], [None], [None] * 2, [None] * 4, [None, None, 17], (None,) * 3], ids=repr
)
def test_wrong_list_is_our_fault(lmtp, send, result):
    # Nobody knows which of them was meant: each is asked to come again.
    client = lmtp(deliver=lambda *_: result)
    assert [each[:10] for each in send(client)] == ["451 4.3.0 "] * 3
    in_step(client)


def test_exception_is_451_for_each(lmtp):
    def deliver(*_):
        raise RuntimeError("secret detail")

    replies = data(lmtp(deliver=deliver))
    assert [each[:10] for each in replies] == ["451 4.3.0 "] * 3
    assert "secret" not in "".join(replies)


@BOTH
def test_recipient_that_is_named_twice_gets_two_replies(lmtp, send):
    # RFC 2033 4.2: one reply for each RCPT that was accepted, in their order.
    seen = []

    def deliver(sender, recipients, octets):
        seen.extend(recipients)
        return [None, GONE]

    replies = send(lmtp(deliver=deliver), (TO[0], TO[0]))
    assert [each[:3] for each in replies] == ["250", "550"]
    assert seen == [TO[0], TO[0]]


def test_refused_recipients_get_no_reply_at_the_end(lmtp):
    client = lmtp(
        deliver=lambda *_: [None, FULL], validate_recipient=lambda mailbox: mailbox.local != "c"
    )
    client.ask("MAIL FROM:<a@x.example>")
    codes = [client.ask(f"RCPT TO:<{each}>")[:3] for each in TO]
    assert codes == ["250", "550", "250"]
    client.ask("DATA")
    client.send(b"x\r\n.\r\n")
    assert [client.reply()[:3] for _ in range(2)] == ["250", "452"]
    in_step(client)


@BOTH
def test_fault_of_the_message_is_told_to_each(lmtp, send):
    client = lmtp(limits=Limits(message_size=1000))
    message = b"x" * 998 + b"\r\n" + b"y\r\n"
    if send is bdat:
        begin(client)
        client.send(b"BDAT %d LAST\r\n" % len(message) + message)
        replies = [client.reply() for _ in TO]
    else:
        replies = send(client, message=message)
    assert [each[:10] for each in replies] == ["552 5.3.4 "] * 3
    in_step(client)


def test_without_recipients_data_is_refused(lmtp):
    # RFC 2033 4.2: DATA without a recipient is 503.
    client = lmtp()
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask("DATA").startswith("503 5.5.1 ")
    in_step(client)


def test_pipelined(lmtp):
    client = lmtp(deliver=lambda *_: [None, GONE])
    client.send(
        b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nRCPT TO:<c@y.example>\r\nDATA\r\n"
    )
    assert [client.reply()[:3] for _ in range(4)] == ["250", "250", "250", "354"]
    client.send(b"x\r\n.\r\nMAIL FROM:<a@x.example>\r\nRSET\r\n")
    assert [client.reply()[:3] for _ in range(4)] == ["250", "550", "250", "250"]


def test_lists_are_for_lmtp_alone(serve, connect):
    client = connect(serve(deliver=lambda *_: [None]))
    assert client.mail().startswith("451 4.3.0 ")


def test_trace_says_lmtp(lmtp, inbox):
    # RFC 3848
    data(lmtp())
    assert b" with LMTP id " in inbox.data


def test_trace_says_lmtpsa(serve, connect, certificate, inbox):
    client = connect(serve(lmtp=True, tls=certificate, users={"jo": "word"}))
    client.reply()
    client.ask("LHLO client.example")
    client.starttls(certificate, trusting(certificate))
    client.ask("LHLO client.example")
    assert client.ask("AUTH PLAIN AGpvAHdvcmQ=").startswith("235 ")
    data(client)
    assert b" with LMTPSA id " in inbox.data


# -- what LMTP is not ------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["HELO", "EHLO"])
def test_helo_is_not_known(serve, connect, verb):
    # RFC 2033 4.1: HELO and EHLO must be refused.
    client = connect(serve(lmtp=True))
    client.reply()
    assert client.ask(f"{verb} client.example").startswith("500 ")
    assert client.ask("MAIL FROM:<a@x.example>").startswith("503 ")


def test_lhlo_is_not_smtp(serve, connect):
    client = connect(serve())
    client.reply()
    assert client.ask("LHLO client.example")[:2] == "50"
    assert client.ask("MAIL FROM:<a@x.example>").startswith("503 ")


def test_port_25_is_refused(no_leaks):
    # RFC 2033 5: LMTP must not be served at the port of SMTP.
    try:
        with SMTPServer(("127.0.0.1", 25), deliver=discard):
            pass
    except OSError as error:
        pytest.skip(f"port 25 cannot be had: {error}")
    for address in (("127.0.0.1", 25), [("127.0.0.1", 0), ("127.0.0.1", 25)]):
        with pytest.raises(ValueError, match="25"):
            SMTPServer(address, deliver=discard, lmtp=True)
    with SMTPServer(("127.0.0.1", 25), deliver=discard):
        pass  # it was let go


# -- smtplib ---------------------------------------------------------------------------------


class ByName(SMTPHandler):
    def deliver_envelope(self, envelope):
        return [FULL if each.local == "c" else None for each in envelope.recipients]


def with_smtplib(host, port=0):
    # It reads one reply behind the data, so it can send to one recipient at a time.
    with smtplib.LMTP(host, port, timeout=20) as client:
        assert client.sendmail("a@x.example", [TO[0]], b"hello\r\n") == {}
        with pytest.raises(smtplib.SMTPDataError) as caught:
            client.sendmail("a@x.example", [TO[1]], b"hello\r\n")
        assert (caught.value.smtp_code, caught.value.smtp_error) == (452, b"4.2.2 Mailbox full")
        assert client.sendmail("a@x.example", [TO[2]], b"again\r\n") == {}


def test_smtplib(serve):
    with_smtplib("127.0.0.1", serve(ByName, lmtp=True).port)


def test_smtplib_over_a_unix_socket(serve, tmp_path):
    path = str(tmp_path / "lmtp")
    serve(ByName, address=path, lmtp=True)
    with_smtplib(path)


def test_trace_over_a_unix_socket(serve, tmp_path, inbox):
    path = str(tmp_path / "lmtp")
    serve(address=path, lmtp=True)
    with smtplib.LMTP(path, timeout=20) as client:
        client.ehlo("client.example")
        client.sendmail("a@x.example", [TO[0]], b"hello\r\n")
    assert inbox.data.startswith(b"Received: from client.example (local)\r\n")


def test_several_connections(serve):
    server = serve(ByName, lmtp=True)
    clients = [Client(server) for _ in range(5)]
    for client in clients:
        client.reply()
        client.ask("LHLO client.example")
    for client in clients:
        assert [each[:3] for each in data(client)] == ["250", "452", "250"]
        client.close()
