"""What was caught: one message looked at from all sides, and many waited for."""

import random
import re
import threading
import time
from datetime import datetime, timedelta, timezone
from email.message import EmailMessage

import pytest
from storing import envelope_of
from support import DEADLINE, until

from smtpd_sync.catch import Catch, NoMail
from smtpd_sync.caught import CaughtMail


def caught(data=b"Subject: hi\r\n\r\nhello\r\n", **envelope):
    return CaughtMail(envelope_of(data, **envelope))


def html_mail(text="see https://x.example/plain", html='<a href="https://x.example/html">x</a>'):
    message = EmailMessage()
    message["Subject"] = "Gr\u00fc\u00dfe"
    message["To"] = "Bob <bob@x.example>"
    message.set_content(text)
    message.add_alternative(html, subtype="html")
    return message


def octets(message):
    return message.as_bytes().replace(b"\n", b"\r\n")


# -- one message -----------------------------------------------------------------------------------


def test_message_has_its_whole_envelope():
    envelope = envelope_of(recipients=("b@y.example", "c@y.example"), SIZE="42", SMTPUTF8=True)
    envelope.session.user = "ann"
    mail = CaughtMail(envelope)
    assert (mail.sender, mail.recipients) == ("a@x.example", ["b@y.example", "c@y.example"])
    assert mail.sender.domain == "x.example"
    assert mail.sender_parameters == {"SIZE": "42", "SMTPUTF8": True}
    assert mail.recipient_parameters == [{}, {}]
    assert (mail.peer.address, mail.helo, mail.user, mail.tls, mail.id) == (
        *("192.0.2.1", "client.example", "ann", None),
        "id4711",
    )
    assert mail.session is envelope.session
    assert datetime.now(timezone.utc) - mail.received_at < timedelta(seconds=DEADLINE)


def test_message_keeps_what_its_session_forgets():
    envelope = envelope_of()
    mail = CaughtMail(envelope)
    envelope.recipients.clear()
    envelope.session.user, envelope.session.helo = "other", "other"
    assert (mail.recipients, mail.user, mail.helo) == (["b@y.example"], None, "client.example")


def test_raw_is_as_sent_and_message_is_parsed_once():
    data = b"subject:  a\r\n b\r\n\r\nbare\nlf, \xff\r\n"
    mail = caught(data)
    assert mail.raw == data
    assert isinstance(mail.message, EmailMessage)
    assert mail.message is mail.message


def test_bcc_is_who_no_field_names():
    data = b"To: B <B@y.example>, c@y.example\r\nCc: d@y.example\r\nBcc: e@y.example\r\n\r\n"
    names = [f"{each}@y.example" for each in "bcdef"]
    mail = caught(data, recipients=names)
    assert mail.bcc == ["e@y.example", "f@y.example"]
    assert mail.bcc[0].local == "e"


@pytest.mark.parametrize(
    ("field", "subject"),
    [
        (b"=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Gr\u00fc\u00dfe"),
        ("Gr\u00fc\u00dfe".encode(), "Gr\u00fc\u00dfe"),  # RFC 6532
        (b"folded\r\n here", "folded here"),
        (b"=?no-such-charset?q?x?=", "x"),
        (b"\xff", "\ufffd"),
    ],
)
def test_subject_is_decoded(field, subject):
    assert caught(b"Subject: " + field + b"\r\n\r\n").subject == subject


def test_mail_without_fields_has_an_empty_subject():
    assert caught(b"").subject == ""
    assert caught(b"\r\nhello\r\n").text == "hello\n"


def test_text_and_html_are_found_among_the_parts():
    message = html_mail()
    message.add_attachment("not the text", filename="notes.txt")
    message.add_attachment(b"\x00\xff", maintype="image", subtype="png", filename="b\u00fcro.png")
    mail = caught(octets(message))
    assert mail.text == "see https://x.example/plain\n"
    assert mail.html == '<a href="https://x.example/html">x</a>\n'
    assert [(each.name, each.type, each.content) for each in mail.attachments] == [
        ("notes.txt", "text/plain", b"not the text\r\n"),
        ("b\u00fcro.png", "image/png", b"\x00\xff"),
    ]


def test_text_is_joined_where_there_are_several():
    parts = b"".join(b"--b\r\n\r\n%s\r\n" % text for text in (b"body", b"list footer"))
    data = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + parts + b"--b--\r\n"
    assert caught(data).text == "body\nlist footer"


def test_html_alone_is_no_text():
    mail = caught(b"Content-Type: text/html; charset=latin-1\r\n\r\n<p>gr\xfcn\r\n")
    assert (mail.text, mail.html, mail.attachments) == ("", "<p>gr\u00fcn\n", [])


def test_text_marked_as_attachment_is_one_though_it_has_no_name():
    mail = caught(b"Content-Disposition: attachment\r\n\r\nx")
    assert (mail.text, mail.attachments) == ("", [("", "text/plain", b"x")])


def test_forwarded_message_is_an_attachment_as_it_was():
    inner = b"Subject: " + b"long " * 30 + b"\r\n\r\ninner\r\n"
    data = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nouter\r\n"
        b"--b\r\nContent-Type: message/rfc822\r\n\r\n" + inner + b"--b--\r\n"
    )
    mail = caught(data)
    assert mail.text == "outer"
    ((name, kind, content),) = mail.attachments
    assert (name, kind) == ("", "message/rfc822")
    assert content.rstrip() == inner.rstrip()


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("go to https://x.example/a?b=1&c=2.", ["https://x.example/a?b=1&c=2"]),
        ("(http://x.example/a)", ["http://x.example/a"]),
        ("http://x.example/a_(b), and", ["http://x.example/a_(b)"]),
        ("<https://x.example/t/aB-_>", ["https://x.example/t/aB-_"]),
        ("HTTPS://X.example twice HTTPS://X.example", ["HTTPS://X.example"]),
        ("https://x.example/=\r\nno", ["https://x.example/="]),
        ("ftp://x.example nor mailto:a@x.example", []),
        ("http://x" + ")" * 100_000, ["http://x"]),
        ("http://.... http://)", []),
    ],
    ids=range(9),
)
def test_links_of_the_text(text, links):
    assert caught(b"\r\n" + text.encode()).links() == links


def test_links_of_the_html_follow_those_of_the_text():
    html = (
        "<A HREF=\"https://x.example/?a=1&amp;b=2\">1</A> <a href='mailto:a@x.example'>2</a>"
        "<a class=x href=https://x.example/bare>3</a> https://x.example/no-link"
    )
    mail = caught(octets(html_mail("https://x.example/text", html)))
    assert mail.links() == [
        "https://x.example/text",
        "https://x.example/?a=1&b=2",
        "mailto:a@x.example",
        "https://x.example/bare",
    ]


def look_at_all_of(mail):
    """Read each property, and check that what comes can be written down."""
    texts = [mail.subject, mail.text, mail.html, repr(mail), *mail.links(), *mail.bcc]
    for name, kind, content in mail.attachments:
        texts += name, kind
        assert isinstance(content, bytes)
    for text in texts:
        text.encode()


B64 = b"Content-Transfer-Encoding: base64\r\n"
HOSTILE = [
    b"\x00\xff" * 50,
    b"\xff: \xff\r\n\xff",
    b": \r\n :\r\n\r\n",
    b"Content-Type: text/plain; charset=no-such\r\n\r\n\xff",
    b"Content-Type: text/plain; charset=idna\r\n\r\n\xff" + b"x" * 5_000,
    b"Content-Type: text/plain; charset=unicode_escape\r\n\r\n\\ud800",
    b"Content-Type: text/plain; charset=utf-7\r\n\r\n+2AA-",
    b'Content-Type: text/plain; charset="\xff"\r\n\r\nx',
    b"Content-Type: text/html; charset*=x'y'%FF\r\n\r\nx",
    b"Content-Type: text/plain; charset*0*=a; charset*2=b\r\n\r\nx",
    b"Content-Type: multipart/mixed\r\n\r\nno boundary",
    b'Content-Type: multipart/mixed; boundary=""\r\n\r\n--\r\n\r\nx',
    b"Content-Type: multipart/mixed; boundary=b\r\n" + B64 + b"\r\n--b\r\n\r\nx",
    b"Content-Type: \xe9/\xff; =\r\nContent-Disposition: \x00; filename*=\r\n\r\nx",
    b"Content-Disposition: attachment; filename*0=a; filename*0*=b''%zz\r\n\r\nx",
    b"Content-Disposition: attachment; filename*=no-such''%FF\r\n\r\nx",
    B64 + b"\r\n!!!=\r\n=",
    b"Content-Transfer-Encoding: x-uuencode\r\n\r\nbegin 666 x\r\n~~~",
    b"Content-Type: message/rfc822\r\n" + B64 + b"\r\nU3ViamVjdDogeA==",
    b"Content-Type: message/delivery-status\r\n\r\n\xff: \xff\r\n\r\n\r\n:",
    b"Content-Type: message/rfc822\r\n\r\n" * 2_000 + b"x",
    b"To: " + b"(" * 5_000 + b"\r\n\r\n",
    b"To: " + b"<" * 500 + b'"' * 501 + b"\xff@[\r\nCc: ;:,\r\n\r\n",
    b"Subject: =?utf-8?b?" + b"=" * 99 + b"?= =?\xff?q??=\r\n\r\n",
    b"Subject: =?unicode_escape?q?=5Cud800?=\r\n\r\n",
    b"Subject: " + b"=?utf-8?q?a?= " * 2_000 + b"\r\n\r\n",
]


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
def test_broken_mail_raises_nothing(data):
    look_at_all_of(caught(data))


def test_mail_that_was_mutilated_raises_nothing():
    message = html_mail()
    message.add_attachment(b"\x00\xff", maintype="image", subtype="png", filename="b\u00fcro.png")
    whole = octets(message)
    chance = random.Random(4711)
    for _ in range(150):
        broken = bytearray(whole)
        for _ in range(chance.randrange(1, 8)):
            at = chance.randrange(len(broken))
            broken[at : at + chance.randrange(4)] = chance.randbytes(chance.randrange(3))
        look_at_all_of(caught(bytes(broken)))


# -- many ------------------------------------------------------------------------------------------


@pytest.fixture
def catch():
    """Three messages."""
    made = Catch()
    made.keep(caught(b"Subject: one\r\n\r\nfirst text\r\n"))
    made.keep(caught(octets(html_mail()), recipients=("b@y.example", "Bob@Z.example")))
    made.keep(caught(b"Subject: three\r\n\r\nthird\r\n", sender=""))
    return made


@pytest.fixture
def later():
    """Do something in another thread, once a waiter had time to begin; joined after the test."""
    threads = []

    def start(what):
        threads.append(threading.Timer(0.05, what))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


FILTERS = [
    ({}, [0, 1, 2]),
    ({"to": "bob@"}, [1]),
    ({"to": "BOB@z.Example"}, [1]),
    ({"to": re.compile("^B@")}, []),
    ({"to": re.compile("^[bB]@")}, [0, 1, 2]),
    ({"sender": "a@x"}, [0, 1]),
    ({"sender": re.compile("^$")}, [2]),
    ({"subject": "e"}, [0, 1, 2]),
    ({"subject": "Three"}, []),
    ({"subject": re.compile("gr\u00fc", re.IGNORECASE)}, [1]),
    ({"text": "text"}, [0]),
    ({"text": "href="}, [1]),
    ({"text": re.compile(r"^third$", re.MULTILINE)}, [2]),
    ({"where": lambda mail: len(mail.recipients) == 2}, [1]),
    ({"subject": "e", "text": "third"}, [2]),
    ({"subject": "one", "text": "third"}, []),
]


@pytest.mark.parametrize(("filters", "found"), FILTERS)
def test_filters_choose(catch, filters, found):
    chosen = [catch.messages[number] for number in found]
    assert catch.find(**filters) == chosen
    assert catch.latest(**filters) is (chosen[-1] if chosen else None)
    assert catch.wait(len(chosen), timeout=0, **filters) == chosen
    assert catch.assert_sent(len(chosen), **filters) == chosen
    if chosen:
        assert catch.wait_one(timeout=0, **filters) is chosen[0]
        with pytest.raises(AssertionError):
            catch.assert_none(**filters)
    else:
        catch.assert_none(**filters)


@pytest.mark.parametrize(
    "filters", [{"from_": "x"}, {"to": 3}, {"to": b"x"}, {"where": "x"}, {"subject": None}]
)
def test_what_is_no_filter_is_a_type_error_and_nobody_waits(filters):
    (name,) = filters
    with pytest.raises(TypeError, match=name):
        Catch().wait(timeout=DEADLINE, **filters)


def test_mail_that_is_there_counts_and_is_not_waited_for(catch):
    start = time.monotonic()
    assert len(catch.wait(3, timeout=DEADLINE * 2)) == 3
    assert len(catch.wait(2, timeout=DEADLINE * 2)) == 3  # all that match
    assert Catch().wait(0, timeout=DEADLINE * 2) == []
    assert time.monotonic() - start < DEADLINE


def test_wait_ends_when_mail_comes(later):
    catch, mail = Catch(), caught(sender="late@x.example")
    later(lambda: catch.keep(mail))
    assert catch.wait_one(timeout=DEADLINE, sender="late") is mail


def test_wait_goes_on_while_other_mail_comes(later):
    catch, mail = Catch(), caught(sender="late@x.example")
    later(lambda: [catch.keep(each) for each in (caught(), caught(), mail)])
    assert catch.wait(1, timeout=DEADLINE, sender="late") == [mail]


def test_wait_outlives_a_clear(catch, later):
    mail = caught(sender="late@x.example")
    later(lambda: [catch.clear(), catch.keep(mail)])
    assert catch.wait_one(timeout=DEADLINE, sender="late") is mail


def test_each_message_is_judged_once_by_a_wait(later):
    catch, judged = Catch(), []
    catch.keep(caught())
    later(lambda: [catch.keep(caught()) for _ in range(9)])
    catch.wait(10, timeout=DEADLINE, where=lambda mail: judged.append(mail) or True)
    assert judged == catch.messages


def test_who_delivers_does_not_wait_for_a_filter():
    catch = Catch()
    catch.keep(caught())

    def deliver(_):
        thread = threading.Thread(target=lambda: catch.keep(caught()))
        thread.start()
        thread.join(DEADLINE)
        return not thread.is_alive()

    assert catch.wait_one(timeout=0, where=deliver)


def test_wait_that_fails_is_a_time_out_and_an_assertion_and_lists_what_came(catch):
    with pytest.raises(NoMail) as failed:
        catch.wait(2, timeout=0.01, to="bob@", subject=re.compile("x?"))
    assert isinstance(failed.value, TimeoutError)
    assert isinstance(failed.value, AssertionError)
    text = str(failed.value)
    assert text.startswith("waited 0.01 s for 2 messages to='bob@' subject=re.compile('x?')")
    assert "; 1 came; caught, oldest first:\n  a@x.example -> b@y.example 'one'\n" in text
    assert "a@x.example -> b@y.example, Bob@z.example 'Gr\u00fc\u00dfe'" in text
    assert "<> -> b@y.example 'three'" in text


def test_wait_that_fails_without_mail_says_whether_anybody_came():
    catch = Catch()
    with pytest.raises(NoMail, match="nothing was caught, in 0 sessions"):
        catch.wait_one(timeout=0)
    catch.began(envelope_of().session)
    with pytest.raises(NoMail, match=r"nothing was caught, in 1 session$"):
        catch.wait_one(timeout=0)


def test_wait_takes_its_time_and_no_more():
    start = time.monotonic()
    with pytest.raises(NoMail):
        Catch().wait(timeout=0.1)
    assert 0.1 <= time.monotonic() - start < DEADLINE


def test_no_list_is_longer_than_a_screen():
    catch = Catch()
    for number in range(30):
        catch.keep(caught(b"Subject: %d\r\n\r\n" % number))
    with pytest.raises(AssertionError) as failed:
        catch.assert_sent(1)
    assert str(failed.value).count("\n") == 20
    assert str(failed.value).endswith("'29'")


def test_assert_sent_wants_the_exact_number(catch):
    assert catch.assert_sent(to="bob@") == [catch.messages[1]]
    with pytest.raises(AssertionError, match="expected 1 message sender='a@x'; 2 came; caught"):
        catch.assert_sent(sender="a@x")
    with pytest.raises(AssertionError, match="expected 4 messages; 3 came"):
        catch.assert_sent(4)


def test_assert_sent_may_wait(later):
    catch = Catch()
    later(lambda: catch.keep(caught()))
    assert catch.assert_sent(within=DEADLINE) == catch.messages


def test_assert_none_may_wait_and_ends_at_the_first(later):
    catch = Catch()
    catch.assert_none(within=0.01)
    later(lambda: catch.keep(caught()))
    start = time.monotonic()
    with pytest.raises(AssertionError, match="expected no mail sender='a@x'; caught"):
        catch.assert_none(within=DEADLINE * 2, sender="a@x")
    assert time.monotonic() - start < DEADLINE


def test_messages_are_live_and_cleared_in_place(catch):
    messages, sessions = catch.messages, catch.sessions
    assert len(messages) == len(sessions) == 3
    assert messages[-1] is catch.latest()
    assert messages[1:] == list(messages)[1:]
    assert messages == catch.find()
    seen = iter(messages)
    catch.clear()
    assert list(messages) == list(sessions) == catch.find() == []
    assert len(list(seen)) == 3
    assert not messages
    catch.keep(caught())
    assert catch.messages is messages
    assert len(messages) == len(sessions) == 1


def test_what_was_cleared_has_not_come():
    catch = Catch()
    catch.keep(caught())
    catch.clear()
    catch.assert_none()
    catch.keep(caught(sender="new@x.example"))
    assert [mail.sender for mail in catch.wait(timeout=0)] == ["new@x.example"]


def test_oldest_go_when_there_are_too_many(later):
    catch = Catch(max_messages=2)
    later(lambda: [catch.keep(caught(b"Subject: %d\r\n\r\n" % n)) for n in range(5)])
    catch.wait(1, timeout=DEADLINE, subject="4")
    assert [mail.subject for mail in catch.messages] == ["3", "4"]
    assert len(catch.sessions) == 2


@pytest.mark.parametrize("number", [0, -1, 1.5, "3"])
def test_number_of_messages_that_cannot_be(number):
    with pytest.raises(ValueError, match="max_messages"):
        Catch(number)


def test_changes_can_be_waited_for(later):
    catch = Catch()
    for change in (
        lambda: catch.keep(caught()),
        lambda: catch.began(envelope_of().session),
        catch.clear,
    ):
        seen = catch.changes
        later(change)
        with catch.news:
            assert catch.news.wait_for(lambda seen=seen: catch.changes != seen, DEADLINE)


def test_threads_deliver_wait_and_clear_at_once():
    catch, rounds = Catch(max_messages=50), 40
    mails = [caught(b"Subject: %d\r\n\r\n" % number) for number in range(4)]
    faults = []

    def work(number):
        try:
            for _ in range(rounds):
                catch.keep(mails[number])
                catch.find(subject="1"), list(catch.messages), catch.messages[:1]
                catch.wait_one(timeout=DEADLINE, where=lambda mail: True)
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    until(lambda: not any(thread.is_alive() for thread in threads))
    assert faults == []
    assert len(catch.messages) == 50
