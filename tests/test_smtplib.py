"""The standard library's client, as most programs use it."""

import email.message
import smtplib
import socket
import ssl

import pytest
from support import SOON, trusting

from smtpd_sync import Limits, Reject, SMTPHandler


@pytest.fixture
def client(no_leaks):
    """Connect with smtplib, closed after the test."""
    clients = []

    def make(server, kind=smtplib.SMTP, **options):
        clients.append(kind(*server.address, timeout=4 * SOON, **options))
        return clients[-1]

    yield make
    for each in clients:
        each.close()


def test_sendmail(serve, client, inbox):
    smtp = client(serve(trace=False))
    assert smtp.sendmail("a@x.example", ["b@y.example", "c@y.example"], "Subject: x\n\n.dot") == {}
    assert smtp.quit()[0] == 221
    assert inbox.messages == [
        ("a@x.example", ["b@y.example", "c@y.example"], b"Subject: x\r\n\r\n.dot\r\n")
    ]


def test_send_message(serve, client):
    got = []
    smtp = client(serve(deliver_message=lambda *arguments: got.append(arguments)))
    message = email.message.EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@x.example", "b@y.example", "gr\u00fcn"
    message.set_content("viele Gr\u00fc\u00dfe\n")
    smtp.send_message(message)
    ((received, sender, recipients),) = got
    assert received["Subject"] == "gr\u00fcn"
    assert received.get_content().splitlines() == ["viele Gr\u00fc\u00dfe"]
    assert (sender, recipients) == ("a@x.example", ["b@y.example"])


def test_internationalized_message(serve, client, inbox):
    smtp = client(serve())
    message = email.message.EmailMessage()
    message["From"], message["To"] = "j\u00f6rg@x.example", "\u7528\u6237@y.example"
    message["Subject"] = "gr\u00fcn"
    message.set_content("x")
    smtp.send_message(message)
    ((sender, recipients, data),) = inbox.wait()
    assert (sender, recipients) == ("j\u00f6rg@x.example", ["\u7528\u6237@y.example"])
    assert "Subject: gr\u00fcn".encode() in data


def test_starttls(serve, client, certificate, inbox):
    smtp = client(serve(tls=certificate))
    smtp.ehlo()
    assert smtp.has_extn("starttls")
    smtp.starttls(context=trusting(certificate))
    smtp.ehlo()
    assert not smtp.has_extn("starttls")
    smtp.sendmail("a@x.example", "b@y.example", "x")
    assert smtp.quit()[0] == 221
    assert b" with ESMTPS id " in inbox.data


def test_smtps(serve, client, certificate, inbox):
    server = serve(tls=certificate, implicit_tls=True)
    smtp = client(server, smtplib.SMTP_SSL, context=trusting(certificate))
    smtp.sendmail("a@x.example", "b@y.example", "x")
    assert smtp.quit()[0] == 221
    assert len(inbox.wait()) == 1


def test_starttls_with_an_unknown_certificate_fails_at_the_client(serve, client, certificate):
    smtp = client(serve(tls=certificate))
    with pytest.raises(ssl.SSLError):
        smtp.starttls(context=ssl.create_default_context())


def test_refused_recipients_are_told_one_by_one(serve, client, inbox):
    def validate_recipient(mailbox):
        if mailbox.local.startswith("bogus"):
            raise Reject(550, "no such mailbox", "5.1.1")

    smtp = client(serve(validate_recipient=validate_recipient))
    refused = smtp.sendmail("a@x.example", ["b@y.example", "bogus@y.example"], "x")
    assert refused == {"bogus@y.example": (550, b"5.1.1 no such mailbox")}
    assert inbox.wait()[0][1] == ["b@y.example"]
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        smtp.sendmail("a@x.example", ["bogus@y.example"], "x")
    assert smtp.sendmail("a@x.example", ["b@y.example"], "x") == {}


def test_refusals_are_the_exceptions_of_smtplib(serve, client):
    class Handler(SMTPHandler):
        def validate_sender(self, mailbox):
            return mailbox != "bad@x.example"

        def deliver(self, sender, recipients, data):
            return b"evil" not in data

    smtp = client(serve(Handler))
    with pytest.raises(smtplib.SMTPSenderRefused) as caught:
        smtp.sendmail("bad@x.example", "b@y.example", "x")
    assert caught.value.smtp_code == 550
    with pytest.raises(smtplib.SMTPDataError) as caught_data:
        smtp.sendmail("a@x.example", "b@y.example", "evil")
    assert caught_data.value.smtp_code == 554
    assert smtp.sendmail("a@x.example", "b@y.example", "good") == {}


def test_size_is_declared_and_refused(serve, client):
    smtp = client(serve(limits=Limits(message_size=1000)))
    with pytest.raises(smtplib.SMTPSenderRefused) as caught:
        smtp.sendmail("a@x.example", "b@y.example", "x" * 2000)
    assert caught.value.smtp_code == 552


def test_refused_host(serve, client):
    server = serve(validate_host=lambda address: False)
    with pytest.raises(smtplib.SMTPConnectError) as caught:
        client(server)
    assert caught.value.smtp_code == 554


def test_many_messages_in_one_session(serve, client, inbox):
    smtp = client(serve())
    for number in range(50):
        smtp.sendmail(f"a{number}@x.example", ["b@y.example"], f"message {number}")
    assert len(inbox.wait(50)) == 50


def test_verify_help_noop_and_rset(serve, client):
    smtp = client(serve(verify=lambda text: f"<{text}@y.example>"))
    smtp.ehlo()
    assert smtp.verify("jo")[0] == 250
    assert smtp.noop()[0] == smtp.rset()[0] == 250
    assert b"MAIL" in smtp.help()
    assert smtp.expn("list")[0] == 502


def test_helo_client(serve, client, inbox):
    smtp = client(serve())
    assert smtp.helo("old.example")[0] == 250
    smtp.sendmail("a@x.example", ["b@y.example"], "x")
    assert b" with SMTP id " in inbox.data


def test_stop_is_a_clean_end(serve, client):
    server = serve()
    smtp = client(server)
    smtp.ehlo()
    server.stop()
    assert smtp.docmd("NOOP")[0] == 421


def test_command_after_the_close_is_a_disconnect(serve, client):
    smtp = client(serve())
    smtp.quit()
    with pytest.raises((smtplib.SMTPServerDisconnected, socket.error)):
        smtp.noop()
