"""MailCatcher: a server that a test can hold in its hand."""

import base64
import contextlib
import logging
import logging.handlers
import re
import smtplib
import socket
import ssl
import time
import unittest

import pytest
from support import DEADLINE, LOOPBACK, Client, descriptors, have_ipv6, until

from smtpd_sync import Limits, Reject, SMTPHandler, SMTPServer
from smtpd_sync.catch import Catch, Catching
from smtpd_sync.hooks import DELIVERIES
from smtpd_sync.testing import MailCatcher, MailCatcherMixin

SENDER, RECIPIENT = "ann@example.com", "bob@example.com"
MESSAGE = "Subject: hi\r\nTo: bob@example.com\r\n\r\nhello\r\n"

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def mail():
    with MailCatcher() as catcher:
        yield catcher


def client_of(mail):
    return smtplib.SMTP(mail.host, mail.port, local_hostname="client.example", timeout=DEADLINE)


def send(mail, message=MESSAGE, sender=SENDER, recipients=(RECIPIENT,)):
    with client_of(mail) as client:
        client.sendmail(sender, list(recipients), message)


def port_of(mail):
    return (mail.host, mail.port)


# -- catching --------------------------------------------------------------------------------------


def test_mail_is_there_when_the_client_has_its_reply(mail):
    with client_of(mail) as client:
        client.ehlo()
        client.mail(SENDER, ["BODY=8BITMIME"])
        client.rcpt(RECIPIENT)
        client.rcpt("hidden@example.com")
        client.data(MESSAGE)
        (caught,) = mail.messages
    assert (caught.sender, caught.recipients) == (SENDER, [RECIPIENT, "hidden@example.com"])
    assert caught.raw == MESSAGE.encode()
    assert (caught.subject, caught.text, caught.bcc) == ("hi", "hello\n", ["hidden@example.com"])
    assert caught.sender_parameters == {"BODY": "8BITMIME"}
    assert (caught.peer.address, caught.helo) == ("127.0.0.1", "client.example")
    assert (caught.user, caught.tls) == (None, None)
    assert caught.session in mail.sessions


def test_mail_is_caught_as_sent(mail):
    data = b"\r\nbare\nlf and \rcr, \xff\x00, " + b"long" * 5_000 + b"\r\n..dots\r\n"
    with Client(port_of(mail)) as client:
        assert client.mail(data.replace(b"\r\n.", b"\r\n..")).startswith("250 ")
    assert mail.messages[0].raw == data


def test_mail_of_some_megabytes_is_caught_as_sent(mail):
    data = b"".join(b"%07d of many lines\r\n" % number for number in range(250_000))
    with Client(port_of(mail)) as client:  # too large for what a server holds of one in memory
        assert client.mail(data).startswith("250 ")
    assert mail.wait_one().raw == data


def test_sessions_have_their_dialogue(mail):
    with client_of(mail) as client:
        client.rcpt(RECIPIENT)
    (session,) = mail.sessions
    until(lambda: "S: 221 2.0.0 Bye" in session.transcript)
    assert [line.lower() for line in session.transcript[1:3]] == [
        "c: rcpt to:<bob@example.com>",
        "s: 503 5.5.1 say helo or ehlo first",
    ]


def test_client_that_errs_is_borne_with(mail):
    with Client(port_of(mail)) as client:
        client.send(b"EHLO c.example\r\n" + b"NONSENSE\r\n" * 200 + b"NOOP\r\n" * 200)
        assert client.reply().startswith("220 ")
        client.reply()
        codes = [client.reply()[:4] for _ in range(400)]
    assert codes == ["500 "] * 200 + ["250 "] * 200


def test_limits_can_be_asked_for():
    with MailCatcher(limits=Limits(errors=2, message_size=1_000)) as mail:
        with Client(port_of(mail)) as client:
            client.hello()
            assert [client.ask("NONSENSE")[:3] for _ in range(3)] == ["500", "500", "421"]
        with pytest.raises(smtplib.SMTPSenderRefused, match="552"):
            send(mail, "x" * 2_000)


def test_nothing_is_warned_of_by_a_catcher_that_is_used_and_left(caplog):
    with MailCatcher() as mail, Client(port_of(mail)) as idle:
        send(mail)
        idle.hello()
        mail.stop(2)
        assert idle.reply().startswith("421 ")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_clear_forgets_in_place_and_the_server_goes_on(mail):
    messages, sessions, port = mail.messages, mail.sessions, mail.port
    with client_of(mail) as client:
        client.sendmail(SENDER, RECIPIENT, MESSAGE)
        mail.clear()
        assert (len(messages), len(sessions)) == (0, 0)
        client.sendmail("second@example.com", RECIPIENT, MESSAGE)
        assert [caught.sender for caught in messages] == ["second@example.com"]
        assert len(sessions) == 1  # the client's, which is still the same
    assert (mail.messages, mail.sessions, mail.port) == (messages, sessions, port)


def test_oldest_mail_goes_and_none_is_refused():
    with MailCatcher(max_messages=2) as mail:
        for number in range(4):
            send(mail, sender=f"{number}@example.com")
        assert [caught.sender for caught in mail.messages] == ["2@example.com", "3@example.com"]


def test_several_catch_at_once():
    with MailCatcher() as one, MailCatcher() as two:
        send(one, sender="one@example.com")
        send(two, sender="two@example.com")
        assert one.port != two.port
        assert [caught.sender for caught in one.messages] == ["one@example.com"]
        assert [caught.sender for caught in two.messages] == ["two@example.com"]


def test_catch_is_for_a_server_of_ones_own():
    catch = Catch()
    server = SMTPServer(LOOPBACK, deliver=[Catching(catch)], transcript=True).start()
    with server, Client(server) as client:
        assert client.mail().startswith("250 ")
        assert catch.wait_one(to="b@y").raw.startswith(b"Received: ")
        assert catch.sessions[0].transcript[0].startswith("S: 220 ")


# -- where and when --------------------------------------------------------------------------------


def test_it_says_where_it_is(mail):
    assert mail.host == "127.0.0.1"
    assert mail.url == f"smtp://127.0.0.1:{mail.port}"
    assert mail.env() == {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(mail.port)}
    assert mail.env("EMAIL_") == {"EMAIL_HOST": "127.0.0.1", "EMAIL_PORT": str(mail.port)}
    assert repr(mail) == f"<MailCatcher {mail.url}, messages: 0>"


@pytest.mark.skipif(not have_ipv6(), reason="no IPv6 here")
def test_address_of_ipv6_stands_in_brackets():
    with MailCatcher(host="::1") as mail:
        assert mail.url == f"smtp://[::1]:{mail.port}"
        send(mail)


def test_it_listens_when_it_is_made_and_answers_when_it_is_entered():
    mail = MailCatcher()
    with Client(port_of(mail)) as client:
        with mail:
            assert client.reply().startswith("220 ")
            mail.stop(DEADLINE)  # to leave gives a session 3 ms: a busy machine may take longer
        assert client.reply().startswith("421 ")


def test_port_is_free_after_the_stop():
    with MailCatcher() as mail, Client(port_of(mail)) as client:
        client.hello()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(port_of(mail), DEADLINE)
    with MailCatcher(mail.port) as again:
        assert again.port == mail.port
        send(again)


def test_port_that_is_taken_is_an_error(mail):
    with pytest.raises(OSError, match="in use"):
        MailCatcher(mail.port)


def test_what_was_caught_can_be_looked_at_after_the_stop():
    with MailCatcher() as mail:
        send(mail)
    assert mail.wait_one().subject == "hi"
    assert mail.sessions[0].transcript
    assert mail.url
    mail.stop()


def test_stop_is_quick_and_closes_the_sessions_that_live():
    quickest = DEADLINE
    for _ in range(10):  # the machine may be busy, but not each time
        with MailCatcher() as mail, contextlib.ExitStack() as stack:
            idle, in_mail, in_data = (stack.enter_context(Client(port_of(mail))) for _ in range(3))
            idle.hello()
            in_mail.hello()
            assert in_mail.ask("MAIL FROM:<a@x.example>").startswith("250 ")
            in_data.to_data()
            start = time.perf_counter()
            mail.stop()
            quickest = min(quickest, time.perf_counter() - start)
            assert idle.gone()[:4] in (b"421 ", b"")
            assert in_mail.gone() == in_data.gone() == b""
        if quickest < 0.005:
            return
    raise AssertionError(f"the quickest of ten took {quickest * 1000:.1f} ms")


def test_stop_warns_of_no_client(caplog):
    with MailCatcher() as mail:
        client = Client(port_of(mail))
        client.to_data()
    client.close()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_catcher_that_never_started_can_be_stopped():
    before = descriptors()
    MailCatcher().stop()
    assert descriptors() == before


# -- AUTH ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auth", [True, "any"])
def test_anybody_is_let_in(auth):
    with MailCatcher(auth=auth) as mail:
        for mechanism in ("PLAIN", "LOGIN"):
            with client_of(mail) as client:
                client.user, client.password = f"{mechanism}-user", "whatever"
                client.ehlo()
                client.auth(mechanism, getattr(client, f"auth_{mechanism.lower()}"))
                client.sendmail(SENDER, RECIPIENT, MESSAGE)
        assert [caught.user for caught in mail.messages] == ["PLAIN-user", "LOGIN-user"]
        with Client(port_of(mail)) as client:
            client.hello()
            token = base64.b64encode(b"other\0ann\0secret").decode()
            assert client.ask(f"AUTH PLAIN {token}").startswith("235 ")
            assert mail.sessions[-1].user == "other"


def test_passwords_are_asked_for_where_they_are_given():
    with MailCatcher(auth={"ann": "secret"}, require_auth=True) as mail:
        with client_of(mail) as client, pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("ann", "wrong")
        with pytest.raises(smtplib.SMTPSenderRefused, match="530"):
            send(mail)
        with client_of(mail) as client:
            client.login("ann", "secret")
            client.sendmail(SENDER, RECIPIENT, MESSAGE)
    assert [caught.user for caught in mail.messages] == ["ann"]
    assert "secret" not in mail.report()
    assert base64.b64encode(b"\0ann\0secret").decode() not in mail.report()


def test_callable_decides_who_is_let_in():
    with MailCatcher(auth=lambda credentials: credentials.password == "good") as mail:
        with client_of(mail) as client:
            assert client.login("ann", "good")[0] == 235
        with client_of(mail) as client, pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("ann", "bad")


@pytest.mark.parametrize("auth", [None, False])
def test_no_auth_is_offered_unless_asked_for(auth):
    with MailCatcher(auth=auth) as mail, client_of(mail) as client:
        client.ehlo()
        assert not client.has_extn("auth")


# -- TLS -------------------------------------------------------------------------------------------


def test_starttls_with_a_certificate_that_the_context_trusts():
    with MailCatcher(starttls=True) as mail:
        for host in ("127.0.0.1", "localhost"):
            with smtplib.SMTP(host, mail.port, timeout=DEADLINE) as client:
                client.starttls(context=mail.client_context())
                client.sendmail(SENDER, RECIPIENT, MESSAGE)
        assert mail.url.startswith("smtp:")
        assert [caught.tls.version[:4] for caught in mail.messages] == ["TLSv", "TLSv"]


def test_tls_from_the_first_octet():
    with MailCatcher(tls=True, auth="any") as mail:
        context = mail.client_context()
        with smtplib.SMTP_SSL(mail.host, mail.port, context=context, timeout=DEADLINE) as client:
            client.login("ann", "secret")
            client.sendmail(SENDER, RECIPIENT, MESSAGE)
        assert mail.url.startswith("smtps:")
        assert mail.messages[0].tls


def test_context_trusts_no_other(certificate):
    with MailCatcher(starttls=certificate) as mail, MailCatcher(starttls=True) as other:
        with client_of(mail) as client:
            client.starttls(context=mail.client_context())
        with client_of(mail) as client, pytest.raises(ssl.SSLCertVerificationError):
            client.starttls(context=other.client_context())


def test_context_of_ones_own(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with MailCatcher(tls=context) as mail:
        trusting = ssl.create_default_context(cafile=certificate[0])
        with smtplib.SMTP_SSL(mail.host, mail.port, context=trusting, timeout=DEADLINE) as client:
            client.sendmail(SENDER, RECIPIENT, MESSAGE)
        with pytest.raises(ValueError, match="a pair of files"):
            mail.client_context()


def test_there_is_no_context_without_tls(mail):
    with pytest.raises(ValueError, match="starttls or tls"):
        mail.client_context()


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"auth": 3}, "auth: None, True"),
        ({"auth": "all"}, "auth: None, True"),
        ({"starttls": True, "tls": True}, "not both"),
        ({"starttls": "cert.pem"}, "tls: an SSLContext"),
        ({"tls": ("/nowhere/cert.pem", "/nowhere/key.pem")}, "cannot load"),
        ({"max_messages": 0}, "max_messages"),
        ({"workers": 2}, "workers"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"deliver": 3}, "deliver="),
        ({"faults": "nonsense"}, "not JSON"),
    ],
)
def test_what_cannot_be_is_a_value_error(options, said):
    before = descriptors()
    with pytest.raises(ValueError, match=said):
        MailCatcher(**options)
    assert descriptors() == before


def test_hooks_are_asked():
    def validate_recipient(mailbox):
        if mailbox.local == "eve":
            raise Reject(550, "no such user", "5.1.1")

    with MailCatcher(validate_recipient=validate_recipient, banner="caught you") as mail:
        with client_of(mail) as client:
            refused = client.sendmail(SENDER, [RECIPIENT, "eve@example.com"], MESSAGE)
        assert refused == {"eve@example.com": (550, b"5.1.1 no such user")}
        assert mail.messages[0].recipients == [RECIPIENT]
        assert mail.sessions[0].transcript[0].endswith(" caught you")


class Archive:
    """A battery."""

    def __init__(self):
        self.kept = []

    def deliver(self, sender, recipients, data):
        self.kept.append(data)


@pytest.mark.parametrize("name", [*DELIVERIES, "battery", "list"])
def test_delivery_hook_gets_the_mail_and_what_it_refuses_is_not_caught(name):
    archive, seen = Archive(), []

    def deliver(*arguments):
        seen.append(arguments)
        if len(seen) == 2:
            raise Reject(554, "not this one", "5.0.0")

    hook = {"battery": archive, "list": [archive, deliver]}.get(name, deliver)
    with MailCatcher(**{name if name.startswith("deliver") else "deliver": hook}) as mail:
        send(mail, sender="first@example.com")
        with contextlib.suppress(smtplib.SMTPDataError):
            send(mail, sender="second@example.com")
        caught = [each.sender.local for each in mail.messages]
    assert caught == (["first", "second"] if name == "battery" else ["first"])
    assert len(seen) == (0 if name == "battery" else 2)
    assert len(archive.kept) == (2 if name in ("battery", "list") else 0)


def test_handler_of_ones_own_hears_the_hooks():
    class Handler(SMTPHandler):
        banner = "mine"

        def validate_sender(self, mailbox):
            return mailbox.local != "eve"

    with MailCatcher(handler=Handler) as mail:
        send(mail)
        with pytest.raises(smtplib.SMTPSenderRefused):
            send(mail, sender="eve@example.com")
        assert len(mail.messages) == 1
        assert mail.sessions[0].transcript[0].endswith(" mine")


def test_options_can_change_while_it_serves(mail):
    mail.server.configure(validate_recipient=lambda mailbox: False)
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        send(mail)


# -- faults: what they do is tested with them ------------------------------------------------------


def test_faults_are_methods_of_the_catcher(mail):
    mail.fail("RCPT", 550, "5.1.1 no such user", to="bad@*", times=1)
    for _ in range(2):
        with client_of(mail) as client:
            client.sendmail(SENDER, [RECIPIENT, "bad@example.com"], MESSAGE)
    assert [caught.recipients for caught in mail.messages] == [
        [RECIPIENT],
        [RECIPIENT, "bad@example.com"],
    ]
    with mail.failing("EOM", 452), pytest.raises(smtplib.SMTPDataError, match="452"):
        send(mail)
    assert len(mail.messages) == 2  # what was refused is not caught
    mail.drop("MAIL")
    mail.no_faults()
    send(mail)


def test_faults_are_data_too_and_stand_before_the_hooks():
    asked = []
    plan = [{"on": "MAIL", "fail": 451, "times": 1}]
    with MailCatcher(faults=plan, validate_sender=asked.append) as mail:
        with pytest.raises(smtplib.SMTPSenderRefused, match="451"):
            send(mail)
        assert asked == []
        send(mail)
        assert asked == [SENDER]


def test_stop_does_not_wait_for_a_fault(mail):
    mail.delay("NOOP", 1_000)
    with Client(port_of(mail)) as client:
        client.hello()
        client.send(b"NOOP\r\n")
        until(lambda: any(line == "C: NOOP" for line in mail.sessions[0].transcript))
        start = time.monotonic()
        mail.stop()
        assert time.monotonic() - start < DEADLINE


# -- what is written down --------------------------------------------------------------------------


def test_report_has_the_dialogues_and_the_mail(mail):
    assert mail.report() == "-- no session"
    send(mail, "Subject: \x1b[31mhi\r\n\r\n" + "many lines\r\n" * 1_000)
    text = mail.report()
    assert "-- session 1, 127.0.0.1\nS: 220 " in text
    assert "\nS: 354 " in text
    assert "-- mail 1: ann@example.com -> bob@example.com " in text
    assert "\nmany lines\n" in text
    assert "\x1b" not in text
    assert len(text) < 10_000


# -- unittest --------------------------------------------------------------------------------------


def test_mixin_catches_mail_for_each_test():
    ports = []

    class Tests(MailCatcherMixin, unittest.TestCase):
        mail_options = {"auth": "any"}

        def test_one(self):
            with client_of(self.mail) as client:
                client.login("ann", "secret")
                client.sendmail(SENDER, RECIPIENT, MESSAGE)
            self.mail.assert_sent(to=RECIPIENT)
            ports.append(port_of(self.mail))

        test_two = test_one

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Tests).run(result)
    assert (result.testsRun, result.failures, result.errors) == (2, [], [])
    for where in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(where, DEADLINE)


# -- the standard library's clients ----------------------------------------------------------------


def test_mail_of_the_logging_handler_is_caught(mail):
    handler = logging.handlers.SMTPHandler(
        port_of(mail), SENDER, [RECIPIENT, "ops@example.com"], "it broke", timeout=DEADLINE
    )
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.error("disk %s is full", "sda")
    full = re.compile(r"disk \w+ is full")
    (caught,) = mail.assert_sent(to="ops@", subject="it broke", text=full)
    assert caught.bcc == []


def test_mail_of_the_logging_handler_is_caught_inside_tls_with_a_login():
    with MailCatcher(starttls=True, auth={"ann": "secret"}, require_tls=True) as mail:
        # The handler verifies nothing; its context is the default one of smtplib.
        handler = logging.handlers.SMTPHandler(
            *(port_of(mail), SENDER, [RECIPIENT], "it broke"),
            credentials=("ann", "secret"),
            secure=(),
            timeout=DEADLINE,
        )
        handler.emit(logging.makeLogRecord({"msg": "hello"}))
        assert mail.wait_one().user == "ann"
        assert mail.messages[0].tls
