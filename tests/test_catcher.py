"""Catching mail: what a test sees of it, waiting for it, and the server behind it."""

import base64
import contextlib
import re
import smtplib
import threading
import time
import unittest
from email.message import EmailMessage

import pytest
from support import DEADLINE, Client, until

from smtpd_sync import Limits, Reject
from smtpd_sync.testing import MailCatcher, MailCatcherMixin, NoMessage

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def mail():
    with MailCatcher() as catcher:
        yield catcher


def send(catcher, data=b"Subject: hi\r\n\r\nhello\r\n", sender="a@x.example", to=("b@y.example",)):
    with smtplib.SMTP(catcher.host, catcher.port, "client.example", timeout=DEADLINE) as client:
        client.sendmail(sender, to, data)


def later(function, *arguments, **keywords):
    thread = threading.Thread(target=function, args=arguments, kwargs=keywords)
    thread.start()
    return thread


# -- messages --------------------------------------------------------------------------------


def test_envelope_and_content_are_as_they_were_sent(mail):
    data = b"Subject: hi\r\nTo: b@y.example\r\n\r\n.dot\nbare\rbare\r\n"
    send(mail, data, to=["b@y.example", "hidden@z.example"])
    (message,) = mail.messages
    assert message.sender == "a@x.example"
    assert message.recipients == ["b@y.example", "hidden@z.example"]
    assert message.recipients[1].domain == "z.example"
    assert message.bcc == ["hidden@z.example"]
    assert message.helo == "client.example"
    assert message.peer.address == "127.0.0.1"
    assert (message.user, message.tls) == (None, None)
    assert message.sender_parameters == {"SIZE": str(len(data))}
    assert message.recipient_parameters == [{}, {}]
    assert message.raw == data
    assert abs(message.received_at.timestamp() - time.time()) < DEADLINE
    assert str(message) == "<a@x.example> -> <b@y.example>, <hidden@z.example>: 'hi'"


def test_bare_newlines_are_kept(mail):
    with Client((mail.host, mail.port)) as client:
        client.mail(b"Subject: x\r\n\r\na\nb\rc\r\n")
    assert mail.messages[0].raw == b"Subject: x\r\n\r\na\nb\rc\r\n"


def composed():
    message = EmailMessage()
    message["Subject"] = "Grüße"
    message["From"] = "a@x.example"
    message["To"] = "b@y.example"
    message.set_content("See https://x.example/a?b=1, and (http://y.example).\n")
    message.add_alternative(
        '<p><a href="https://x.example/a?b=1">a</a><a href="mailto:c@z.example">ä</a></p>', "html"
    )
    message.add_attachment(b"\0\1", "application", "zip", filename="ä.zip")
    message.add_attachment("notes\n", filename="notes.txt")
    return message


def test_message_is_decoded(mail):
    with smtplib.SMTP(mail.host, mail.port, timeout=DEADLINE) as client:
        client.send_message(composed())
    message = mail.wait_one()
    assert message.subject == "Grüße"
    assert message.headers["from"] == "a@x.example"
    assert message.text == "See https://x.example/a?b=1, and (http://y.example).\n"
    assert message.html.endswith('<a href="mailto:c@z.example">ä</a></p>\n')
    assert [(each.name, each.type, each.content) for each in message.attachments] == [
        ("ä.zip", "application/zip", b"\0\1"),
        ("notes.txt", "text/plain", b"notes\r\n"),
    ]
    assert message.links() == [
        "https://x.example/a?b=1",
        "http://y.example",
        "mailto:c@z.example",
    ]
    assert message.message is message.message
    assert message.message["To"] == "b@y.example"
    assert message.bcc == []


BROKEN = {
    "empty": b"",
    "no fields": b"\r\nhello\r\n",
    "unknown charset": b"Content-Type: text/plain; charset=nonsense\r\n\r\n\xff\r\n",
    "broken type": b"Content-Type: ;;;\r\nSubject: =?utf-8?b?!!!?=\r\n\r\nx\r\n",
    "broken base64": b"Content-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!\r\n",
    "broken disposition": b"Content-Disposition: =?x?=;*0*=\r\n\r\nx\r\n",
    "raw octets": b"Subject: \xff\xfe\r\nTo: \xff <\xff@x>\r\n\r\n\xff\r\n",
    "nested": b"Content-Type: message/rfc822\r\n\r\n" * 1_500 + b"\r\nx\r\n",
    "broken html": b"Content-Type: text/html\r\n\r\n<a href=<!--<![if ]<a href='x\r\n",
    "no boundary": b"Content-Type: multipart/mixed\r\n\r\n--x\r\n\r\nx\r\n",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_nothing_that_was_sent_raises(mail, data):
    send(mail, data)
    (message,) = mail.messages
    shown = (message.subject, message.text, message.html, message.links(), message.bcc)
    assert all(isinstance(each, (str, list)) for each in shown)
    assert message.attachments == list(message.attachments)
    assert str(message).isprintable()
    assert message.message is not None
    assert message.raw.rstrip(b"\r\n") == data.rstrip(b"\r\n")


# -- which are meant -------------------------------------------------------------------------


def test_filters_find_what_is_meant(mail):
    send(mail, b"Subject: One\r\n\r\nfirst\r\n", "ann@x.example", ["bob@y.example"])
    send(
        mail, b"Subject: Two\r\n\r\nsecond\r\n", "ann@x.example", ["eve@y.example", "bo@z.example"]
    )
    one, two = mail.messages
    assert mail.find() == [one, two]
    assert mail.find(to="BOB@") == [one]
    assert mail.find(to=re.compile(r"^bo")) == [one, two]
    assert mail.find(to="bo@", subject="Two") == [two]
    assert mail.find(sender="ann@X.example") == [one, two]
    assert mail.find(subject="two") == []
    assert mail.find(subject=re.compile("two", re.I)) == [two]
    assert mail.find(text="second") == [two]
    assert mail.find(where=lambda message: len(message.recipients) == 2) == [two]
    assert mail.find(to=None, where=None) == [one, two]
    assert mail.latest() is two
    assert mail.latest(to="bob") is one
    assert mail.latest(to="nobody") is None
    assert mail.assert_sent(subject="One") == [one]
    assert mail.assert_sent(2) == [one, two]
    assert mail.assert_sent(0, to="nobody") == []


def test_text_is_found_in_html_alone(mail):
    send(mail, b"Content-Type: text/html\r\n\r\n<b>code 42</b>\r\n")
    assert len(mail.find(text="code 42")) == 1


# -- waiting ---------------------------------------------------------------------------------


def test_mail_that_is_there_counts(mail):
    send(mail)
    assert mail.wait(timeout=0) == list(mail.messages)
    assert mail.wait_one(timeout=0).subject == "hi"


def test_mail_to_come_is_waited_for(mail):
    def send_all():
        for number in range(3):
            send(mail, b"Subject: %d\r\n\r\n" % number, to=[f"u{number}@y.example"])

    thread = later(send_all)
    assert mail.wait_one(to="u2@", timeout=DEADLINE).subject == "2"
    assert [message.subject for message in mail.wait(3, timeout=DEADLINE)] == ["0", "1", "2"]
    thread.join(DEADLINE)


@pytest.mark.parametrize("kind", [TimeoutError, AssertionError, NoMessage])
def test_mail_that_does_not_come_is_told_with_what_did(mail, kind):
    send(mail)
    with pytest.raises(kind) as told:
        mail.wait(2, timeout=0.05, to="b@", subject=re.compile("h."))
    assert str(told.value) == (
        "waited 0.05 s for 2 messages with to 'b@', subject 'h.', of which 1 came; "
        "caught:\n  <a@x.example> -> <b@y.example>: 'hi'"
    )


def test_nothing_caught_is_told(mail):
    with pytest.raises(NoMessage, match="waited 0 s for 1 message, of which 0 came; nothing was"):
        mail.wait_one(timeout=0)


def test_list_of_what_was_caught_is_bounded(mail):
    with Client((mail.host, mail.port)) as client:
        client.hello()
        for _ in range(25):
            client.send(b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n")
            client.send(b"Subject: x\r\n\r\n.\r\n")
        mail.wait(25, timeout=DEADLINE)
    with pytest.raises(AssertionError) as told:
        mail.assert_sent(to="nobody")
    assert str(told.value).count("\n") == 21
    assert str(told.value).endswith("and 5 before")


def test_wait_for_no_message_at_all_is_an_error(mail):
    with pytest.raises(ValueError, match="assert_none"):
        mail.wait(0)


def test_assert_sent_says_what_is_missing(mail):
    with pytest.raises(AssertionError, match="wanted a message with to 'b', found 0; nothing was"):
        mail.assert_sent(to="b")
    with pytest.raises(AssertionError, match="wanted 2 messages, found 0"):
        mail.assert_sent(2)
    send(mail)
    with pytest.raises(AssertionError, match="wanted 0 messages, found 1; caught:"):
        mail.assert_sent(0)


def test_assert_none_watches(mail):
    mail.assert_none()
    start = time.monotonic()
    mail.assert_none(within=0.1)
    assert time.monotonic() - start >= 0.1
    thread = later(send, mail)
    with pytest.raises(AssertionError, match="wanted no message; caught:"):
        mail.assert_none(within=DEADLINE)
    thread.join(DEADLINE)
    mail.assert_none(to="nobody")


def test_where_may_look_at_the_other_mail(mail):
    send(mail)
    assert mail.wait_one(timeout=0, where=lambda message: mail.find() == [message])


# -- the list --------------------------------------------------------------------------------


def test_messages_are_a_live_sequence_that_is_cleared_in_place(mail):
    messages = mail.messages
    assert messages == []
    assert not messages
    send(mail)
    assert len(messages) == 1
    assert messages[-1].subject == "hi"
    assert [message.subject for message in messages] == ["hi"]
    assert messages == mail.messages == list(messages)
    assert repr(messages) == "[<CaughtMessage <a@x.example> -> <b@y.example>: 'hi'>]"
    with Client((mail.host, mail.port)) as client:
        client.hello()
        mail.clear()
        assert len(messages) == len(mail.sessions) == 0
        assert client.ask("NOOP").startswith("250 ")


def test_oldest_goes_beyond_the_most():
    with MailCatcher(max_messages=2) as mail:
        for number in range(4):
            send(mail, b"Subject: %d\r\n\r\n" % number)
        assert [message.subject for message in mail.messages] == ["2", "3"]


def test_changes_are_counted_for_who_watches(mail):
    seen = mail.changes
    assert not mail.wait_for_change(seen, 0)
    thread = later(send, mail)
    assert mail.wait_for_change(seen, DEADLINE)
    thread.join(DEADLINE)
    seen = mail.changes
    mail.clear()
    assert mail.wait_for_change(seen, 0)


# -- the server ------------------------------------------------------------------------------


def test_sessions_are_written_down(mail):
    with Client((mail.host, mail.port)) as client:
        client.hello()
        assert client.ask("VRFY b").startswith("252 ")
        until(lambda: mail.sessions[0][-1].startswith("S: 252"))
        send(mail)
    first, second = mail.sessions
    assert "C: VRFY b" in first
    assert "C: QUIT" in second
    assert mail.messages[0].session[: len(second)] == second[: len(mail.messages[0].session)]


def test_refused_host_is_a_session_too():
    def nobody(address):
        return False

    with MailCatcher(validate_host=nobody) as mail, Client((mail.host, mail.port)) as client:
        assert client.reply().startswith("554 ")
        assert mail.sessions[0][0].startswith("S: 554 ")


def test_several_in_one_process():
    with MailCatcher() as one, MailCatcher() as two:
        assert one.port != two.port
        send(two)
        assert (len(one.messages), len(two.messages)) == (0, 1)


def test_address_is_told_in_each_way():
    with MailCatcher() as mail:
        assert mail.host == "127.0.0.1"
        assert mail.url == f"smtp://127.0.0.1:{mail.port}"
        assert mail.env("MAIL_") == {
            "MAIL_HOST": "127.0.0.1",
            "MAIL_PORT": str(mail.port),
            "MAIL_URL": mail.url,
        }
        assert set(mail.env()) == {"SMTP_HOST", "SMTP_PORT", "SMTP_URL"}


def test_stop_is_quick_and_frees_the_port_and_closes_what_is_open():
    times = []
    for number in range(20):
        mail = MailCatcher().start()
        port = mail.port
        with Client((mail.host, port)) as idle, Client((mail.host, port)) as sending:
            idle.hello()
            if number % 2:
                sending.to_data()
            start = time.monotonic()
            mail.stop()
            times.append(time.monotonic() - start)
            for client in (idle, sending):
                with contextlib.suppress(ConnectionResetError):
                    client.rest()  # to the end, or a time-out fails the test
        mail.stop()
        with pytest.raises(ConnectionRefusedError):
            Client(("127.0.0.1", port))
    assert min(times[::2]) < 0.005, "the machine is slow sometimes, not always"


def test_stop_says_nothing(caplog):
    with MailCatcher() as mail:
        client = Client((mail.host, mail.port))
        client.to_data()
    client.close()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_messages_stay_after_the_stop_and_the_address_goes():
    mail = MailCatcher()
    with pytest.raises(RuntimeError, match="start"):
        _ = mail.port
    with mail:
        send(mail)
    assert len(mail.messages) == 1
    with pytest.raises(RuntimeError, match="start"):
        _ = mail.port
    with mail, pytest.raises(RuntimeError, match="started already"):
        mail.start()


def test_many_errors_and_much_pipelining_are_forgiven(mail):
    with Client((mail.host, mail.port)) as client:
        client.send(b"EHLO c.example\r\n" + b"NOOP\r\n" * 300 + b"BOGUS\r\n" * 100 + b"QUIT\r\n")
        assert client.rest().endswith(b"221 2.0.0 Bye\r\n")


def test_options_and_hooks_of_a_server_are_taken():
    def validate_recipient(mailbox):
        raise Reject(550, "no such user", "5.1.1")

    limits = Limits(message_size=1_000)
    options = {"hostname": "mx.example", "limits": limits, "validate_recipient": validate_recipient}
    with MailCatcher(**options) as mail, Client((mail.host, mail.port)) as client:
        assert "250-SIZE 1000" in client.hello()
        assert client.ask("MAIL FROM:<>").startswith("250 ")
        assert client.ask("RCPT TO:<b@y.example>") == "550 5.1.1 no such user"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auth": "all"}, "auth: 'any'"),
        ({"max_messages": 0}, "max_messages: a number from 1"),
        ({"deliver": print}, "deliver: a MailCatcher keeps"),
        ({"workers": 2}, "workers: a MailCatcher keeps"),
        ({"tls": True, "starttls": True}, "one of them"),
    ],
)
def test_misuse_is_told_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        MailCatcher(**options)


# -- AUTH and TLS ----------------------------------------------------------------------------


@pytest.mark.parametrize("auth", ["any", True])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_any_password_is_let_in_without_tls(auth, mechanism):
    with MailCatcher(auth=auth) as mail:
        with smtplib.SMTP(mail.host, mail.port, timeout=DEADLINE) as client:
            client.ehlo()
            client.user, client.password = "ann", "whatever"
            client.auth(mechanism, getattr(client, f"auth_{mechanism.lower()}"))
            client.sendmail("a@x.example", ["b@y.example"], "hello")
        assert mail.wait_one().user == "ann"
        assert not any("whatever" in line for lines in mail.sessions for line in lines)


def test_only_those_users_are_let_in():
    with MailCatcher(auth={"ann": "secret"}, require_auth=True) as mail:
        with smtplib.SMTP(mail.host, mail.port, timeout=DEADLINE) as client:
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("ann", "wrong")
            client.login("ann", "secret")
            client.sendmail("a@x.example", ["b@y.example"], "hello")
        assert mail.wait_one().user == "ann"


def test_callable_decides():
    with MailCatcher(auth=lambda credentials: credentials.username == "bob") as mail:
        for user, reply in {"bob": "235 ", "eve": "535 "}.items():
            with Client((mail.host, mail.port)) as client:
                client.hello()
                initial = base64.b64encode(f"\0{user}\0x".encode()).decode()
                assert client.ask(f"AUTH PLAIN {initial}").startswith(reply)


def test_certificate_may_be_given(certificate):
    with MailCatcher(starttls=certificate) as mail, Client((mail.host, mail.port)) as client:
        client.hello()
        client.starttls(certificate, mail.client_context())
        assert client.ask("EHLO c.example").startswith("250-")


def test_context_for_clients_needs_a_certificate(mail):
    with pytest.raises(ValueError, match="starttls=True"):
        mail.client_context()


# -- unittest --------------------------------------------------------------------------------


def test_mixin_gives_each_test_a_catcher_of_its_own():
    seen = []

    class Tests(MailCatcherMixin, unittest.TestCase):
        mail_options = {"hostname": "mx.example"}

        def test_one(self):
            send(self.mail)
            seen.append(self.mail)

        test_two = test_one

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Tests).run(result)
    assert (result.testsRun, result.failures, result.errors) == (2, [], [])
    assert [len(mail.messages) for mail in seen] == [1, 1]
    assert seen[0] is not seen[1]
    with pytest.raises(RuntimeError):
        _ = seen[0].port
