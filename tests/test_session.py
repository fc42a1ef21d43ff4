"""The session as its driver sees it: events, replies, what is due to be sent, the end."""

import pytest
from dialogue import Driver

from smtpd_sync import Limits, Peer, Reply
from smtpd_sync.command import Command
from smtpd_sync.data import ContentDecoder
from smtpd_sync.envelope import TLS
from smtpd_sync.inbox import Inbox
from smtpd_sync.maildata import MailData
from smtpd_sync.rules import rules
from smtpd_sync.session import END, NEED_DATA, Session
from smtpd_sync.states import State

EHLO = b"EHLO client.example\r\n"
MAIL = b"MAIL FROM:<a@x.example>\r\n"
RCPT = b"RCPT TO:<b@y.example>\r\n"
GROUP = MAIL + RCPT + b"DATA\r\n"
ENCRYPTED = TLS("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256)


def session_after(*groups, **options):
    """Give a session and its driver, once the client has sent these groups."""
    session = Session(rules(**options))
    driver = Driver(session)
    driver.pull()
    for group in groups:
        driver.feed(group)
    return session, driver


def ask(session, octets):
    """Give the event of what the client sends."""
    session.receive_data(octets)
    return session.next_event()


# -- the driver's side of the contract -----------------------------------------------------------


def test_event_waits_for_its_reply():
    session = Session()
    session.next_event()
    with pytest.raises(RuntimeError, match="connection"):
        session.next_event()


def test_reply_needs_an_event():
    session = Session()
    with pytest.raises(RuntimeError, match="no event"):
        session.reply(Reply(220))
    session.next_event()
    session.reply(Reply(220))
    with pytest.raises(RuntimeError, match="no event"):
        session.reply(Reply(220))


def test_content_has_no_reply():
    session, _ = session_after(EHLO, GROUP)
    assert ask(session, b"x\r\n").verb == "content"
    with pytest.raises(RuntimeError, match="no event"):
        session.reply(Reply(250))


def test_new_session_knows_nothing():
    session = Session(peer=Peer("192.0.2.1", 4000))
    assert session.peer == ("192.0.2.1", 4000)
    assert session.state is State.NEW
    assert (session.helo, session.esmtp, session.tls, session.user) == ("", False, None, None)
    assert session.envelope is None
    assert session.data_to_send() == b""
    assert Session().peer == ("", 0)


def test_need_data_comes_again_until_data_comes():
    session, _ = session_after()
    assert [session.next_event() for _ in range(3)] == [NEED_DATA] * 3
    assert ask(session, b"NO") is NEED_DATA
    assert ask(session, b"OP\r") is NEED_DATA
    assert ask(session, b"\n") == Command("NOOP")


def test_end_comes_again():
    session, _ = session_after(b"QUIT\r\n")
    assert [session.next_event() for _ in range(3)] == [END] * 3


# -- what the session knows ----------------------------------------------------------------------


def test_ehlo_is_known():
    session, driver = session_after(EHLO)
    assert (session.helo, session.esmtp) == ("client.example", True)
    driver.feed(b"HELO other.example\r\n")
    assert (session.helo, session.esmtp) == ("other.example", False)


def test_refused_ehlo_is_not_known():
    session, _ = session_after(EHLO)
    ask(session, b"HELO other.example\r\n")
    session.reply(Reply(550))
    assert (session.helo, session.esmtp) == ("client.example", True)


def test_envelope_is_there_when_mail_is_asked_for():
    session, _ = session_after(EHLO)
    event = ask(session, b"MAIL FROM:<A@x.example> SIZE=10 SMTPUTF8\r\n")
    assert event == Command("MAIL", "A@x.example", {"SIZE": "10", "SMTPUTF8": True})
    envelope = session.envelope
    assert envelope.sender == "A@x.example"
    assert envelope.sender_parameters == {"SIZE": "10", "SMTPUTF8": True}
    assert envelope.recipients == []
    session.reply(Reply(250))
    assert session.envelope is envelope


@pytest.mark.parametrize("code", [450, 550])
def test_refused_mail_leaves_no_envelope(code):
    session, _ = session_after(EHLO)
    ask(session, MAIL)
    session.reply(Reply(code))
    assert session.envelope is None


def test_recipient_is_kept_once_it_is_accepted():
    session, _ = session_after(EHLO, MAIL)
    for code, kept in ((550, 0), (250, 1), (450, 1), (251, 2)):
        ask(session, RCPT)
        session.reply(Reply(code))
        assert session.envelope.recipients == ["b@y.example"] * kept
        assert session.envelope.recipient_parameters == [{}] * kept


@pytest.mark.parametrize("line", [b"RSET\r\n", EHLO, b"HELO x\r\n"], ids=repr)
def test_reset_forgets_the_envelope(line):
    session, driver = session_after(EHLO, MAIL, RCPT)
    assert session.envelope
    driver.feed(line)
    assert session.envelope is None


@pytest.mark.parametrize("line", [b"NOOP\r\n", b"HELP\r\n", b"VRFY x\r\n", MAIL], ids=repr)
def test_others_keep_the_envelope(line):
    session, driver = session_after(EHLO, MAIL, RCPT)
    envelope = session.envelope
    driver.feed(line)
    assert session.envelope is envelope
    assert envelope.recipients == ["b@y.example"]


def test_transaction_is_from_mail_to_the_end_of_mail_data():
    session, driver = session_after()
    seen = [session.in_transaction]
    for group in (EHLO, MAIL, RCPT, b"DATA\r\n", b"x\r\n", b".\r\n"):
        driver.feed(group)
        seen.append(session.in_transaction)
    assert seen == [False, False, True, True, True, True, False]
    seen = []
    for group in (MAIL, RCPT, b"BDAT 3\r\n", b"abc", b"BDAT 0 LAST\r\n"):
        driver.feed(group)
        seen.append((session.in_transaction, session.receiving_mail))
    assert seen == [(True, False), (True, False), (True, True), (True, False), (False, False)]


# -- mail data -----------------------------------------------------------------------------------


def test_mail_data_comes_in_pieces():
    session, _ = session_after(EHLO, GROUP)
    assert ask(session, b"Subject: hello\r\n\r\nHel") == Command(
        "content", b"Subject: hello\r\n\r\nHel"
    )
    assert session.next_event() is NEED_DATA
    assert ask(session, b"lo.\r\n.") == Command("content", b"lo.")
    assert session.next_event() is NEED_DATA
    assert ask(session, b"\r\n") == Command("content", b"\r\n")
    assert session.next_event() == Command("message", None)


def test_empty_message_has_no_content():
    session, _ = session_after(EHLO, GROUP)
    assert ask(session, b".\r\n") == Command("message", None)


@pytest.mark.parametrize(
    ("options", "data", "code"),
    [
        ({"limits": Limits(message_size=10)}, b"x" * 9 + b"\r\n", 552),
        ({"limits": Limits(text_line=1000)}, b"x" * 999 + b"\r\n", 500),
        ({"bare_newline": "reject"}, b"x\ny\r\n", 550),
    ],
    ids=["size", "text line", "bare newline"],
)
def test_fault_of_the_mail_data_is_told_at_its_end(options, data, code):
    session, _ = session_after(EHLO, GROUP, **options)
    event = ask(session, data + b".\r\n")
    if event.verb == "content":
        event = session.next_event()
    assert event.verb == "message"
    assert event.argument.code == code


def test_message_that_is_too_big_is_dropped_and_read_on():
    session, _ = session_after(EHLO, GROUP, limits=Limits(message_size=10))
    assert ask(session, b"x" * 8) == Command("content", b"x" * 8)
    assert session.next_event() is NEED_DATA
    for _ in range(4):
        assert ask(session, b"x" * 8) is NEED_DATA
    assert session.data_to_send() == b""
    assert ask(session, b"x") is END
    assert session.data_to_send().startswith(b"421 4.3.4 ")


def test_message_that_is_too_big_in_one_piece_is_dropped():
    session, _ = session_after(EHLO, GROUP, limits=Limits(message_size=10))
    event = ask(session, b"x" * 20 + b"\r\n.\r\nRSET\r\n")
    assert event.verb == "message"
    assert event.argument.code == 552
    session.reply(event.argument)
    assert session.next_event() == Command("RSET")


def test_size_is_counted_for_each_message():
    _, driver = session_after(EHLO, limits=Limits(message_size=10))
    for _ in range(3):
        driver.feed(GROUP)
        assert driver.feed(b"12345678\r\n.\r\n").startswith(b"250 ")
    assert len(driver.deliveries) == 3


# -- what is due to be sent ----------------------------------------------------------------------


def test_replies_of_a_group_gather():
    # RFC 2920 3.2: one send for the group
    session, _ = session_after(EHLO)
    session.receive_data(GROUP)
    for code in (250, 250):
        session.next_event()
        session.reply(Reply(code))
        assert session.data_to_send() == b""
    session.next_event()
    session.reply(Reply(354))
    assert session.data_to_send().count(b"\r\n") == 3


def test_replies_are_sent_when_the_input_is_used_up():
    # RFC 2920 3.2: whenever the input buffer is emptied
    session, _ = session_after(EHLO)
    session.receive_data(MAIL)
    session.next_event()
    session.reply(Reply(250))
    assert session.data_to_send().startswith(b"250 ")


def test_replies_are_sent_before_more_input_is_waited_for():
    session, _ = session_after(EHLO)
    session.receive_data(MAIL + b"RCPT TO:")
    session.next_event()
    session.reply(Reply(250))
    assert session.data_to_send() == b""
    assert session.next_event() is NEED_DATA
    assert session.data_to_send().startswith(b"250 ")


@pytest.mark.parametrize("line", [b"WIZ\r\n", b"TURN\r\n", b"RCPT nonsense\r\n"], ids=repr)
def test_refusals_of_the_session_are_in_their_place(line):
    _, driver = session_after(EHLO)
    codes = [reply[:1] for reply in driver.feed(MAIL + line + RCPT).splitlines()]
    assert codes == [b"2", b"5", b"2"]


def test_421_in_a_group_is_sent():
    session, _ = session_after(EHLO)
    session.receive_data(MAIL + RCPT)
    session.next_event()
    session.reply(Reply(421))
    assert session.next_event() is END
    assert session.data_to_send().startswith(b"421 ")


def test_data_is_sent_once():
    session = Session()
    session.next_event()
    session.reply(Reply(220, "Hello"))
    assert session.data_to_send() == b"220 Hello\r\n"
    assert session.data_to_send() == b""


# -- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "groups",
    [(), (EHLO,), (EHLO, MAIL), (EHLO, GROUP), (EHLO, GROUP, b"half"), (EHLO, b"NO")],
    ids=["greeted", "ready", "mail", "data", "mail data", "half a line"],
)
def test_end_of_input_ends_without_a_word(groups):
    session, driver = session_after(*groups)
    assert driver.feed(b"") == b""
    assert session.state is State.CLOSED
    assert session.next_event() is END
    assert driver.deliveries == []


def test_what_came_before_the_end_of_input_is_answered():
    session, driver = session_after(EHLO, GROUP)
    session.receive_data(b"x\r\n.\r\nNO")
    session.receive_data(b"")
    assert driver.pull().startswith(b"250 ")
    assert [delivery.data for delivery in driver.deliveries] == [b"x\r\n"]


def test_who_is_gone_before_the_greeting_is_gone():
    session = Session()
    session.receive_data(b"")
    driver = Driver(session)
    driver.pull()
    assert session.state is State.CLOSED


@pytest.mark.parametrize(
    "groups",
    [(), (EHLO,), (EHLO, MAIL), (EHLO, GROUP), (EHLO, GROUP, b"half")],
    ids=["greeted", "ready", "mail", "data", "mail data"],
)
def test_close_says_its_reply(groups):
    session, _ = session_after(*groups)
    session.close(Reply(421, "Time", "4.4.2"))
    assert session.data_to_send() == b"421 4.4.2 Time\r\n"
    assert session.next_event() is END


def test_close_without_reply_says_nothing():
    session, _ = session_after(EHLO)
    session.close()
    assert session.data_to_send() == b""
    assert session.next_event() is END


def test_close_before_the_greeting_has_no_status():
    # RFC 2034 4: the first reply is the greeting
    session = Session()
    session.close(Reply(421, "Busy", "4.3.2"))
    assert session.data_to_send() == b"421 Busy\r\n"
    assert session.next_event() is END


def test_close_is_heard_once():
    session, _ = session_after(EHLO)
    session.close(Reply(421))
    session.close(Reply(421))
    assert session.data_to_send().count(b"\r\n") == 1


def test_close_says_nothing_in_place_of_a_handshake():
    session, _ = session_after(EHLO, starttls=True)
    ask(session, b"STARTTLS\r\n")
    session.reply(Reply(220))
    session.data_to_send()
    session.close(Reply(421))
    assert session.data_to_send() == b""
    assert session.next_event() is END


def test_close_drops_the_event_at_hand():
    session, _ = session_after(EHLO)
    ask(session, MAIL)
    session.close(Reply(421))
    assert session.next_event() is END
    with pytest.raises(RuntimeError, match="no event"):
        session.reply(Reply(250))


def test_close_sends_what_was_gathered():
    session, _ = session_after(EHLO)
    session.receive_data(MAIL + RCPT)
    session.next_event()
    session.reply(Reply(250))
    session.close(Reply(421))
    assert [line[:3] for line in session.data_to_send().splitlines()] == [b"250", b"421"]


# -- TLS -----------------------------------------------------------------------------------------


def test_handshake_forgets_all_but_the_peer():
    session, _ = session_after(EHLO, starttls=True)
    session.user = "somebody"
    ask(session, b"STARTTLS\r\nNOOP\r\nRSE")
    session.reply(Reply(220))
    assert session.state is State.TLS
    session.data_to_send()
    session.tls_started(ENCRYPTED)
    assert session.state is State.GREETED
    assert session.tls == ENCRYPTED
    assert (session.helo, session.esmtp, session.user) == ("", False, None)
    assert session.envelope is None
    assert session.next_event() is NEED_DATA
    assert ask(session, b"T\r\n") is NEED_DATA
    assert session.data_to_send().startswith(b"500 ")


def test_keywords_offer_starttls_until_it_is_used():
    session = Session(rules(starttls=True))
    assert "STARTTLS" in session.keywords
    session.tls = ENCRYPTED
    assert "STARTTLS" not in session.keywords


def test_keywords_have_their_parameters():
    assert "SIZE 33554432" in Session().keywords
    assert "8BITMIME" in Session().keywords
    assert "SIZE 0" in Session(rules(Limits(message_size=None))).keywords


def test_errors_before_the_handshake_count():
    _, driver = session_after(EHLO, starttls=True, limits=Limits(errors=2))
    driver.feed(b"WIZ\r\nWIZ\r\n")
    driver.feed(b"STARTTLS\r\n")
    assert driver.feed(b"WIZ\r\n").startswith(b"421 ")


# -- memory --------------------------------------------------------------------------------------


def kept(thing):
    """Count the octets that a session keeps, in itself and in what it is made of."""
    if isinstance(thing, bytes):
        return len(thing)
    if isinstance(thing, list):
        return sum(map(kept, thing))
    slots = [name for base in type(thing).__mro__ for name in getattr(base, "__slots__", ())]
    values = [*vars(thing).values()] if isinstance(thing, Session) else []
    values += [getattr(thing, name, None) for name in slots if isinstance(thing, KEEPERS)]
    return sum(map(kept, values))


KEEPERS = (Inbox, MailData, ContentDecoder)


def test_what_is_kept_is_counted():
    session, _ = session_after(EHLO, GROUP)
    session.receive_data(b"x" * 100)
    assert kept(session) >= 100


def test_line_without_end_is_not_kept():
    session, driver = session_after(EHLO)
    for _ in range(100):
        assert driver.feed(b"x" * 1000) == b""
        assert kept(session) <= session.rules.longest_line + 1
    assert driver.feed(b"\r\n").startswith(b"500 ")
    assert driver.feed(b"NOOP\r\n").startswith(b"250 ")


def test_mail_data_is_not_kept():
    session, driver = session_after(EHLO, GROUP, limits=Limits(message_size=100))
    for _ in range(3):
        driver.feed(b"x" * 100)
        assert kept(session) < 200
    assert driver.feed(b"\r\n.\r\n").startswith(b"552 ")


def test_chunks_are_not_kept():
    session, driver = session_after(EHLO, MAIL + RCPT, limits=Limits(message_size=10**6))
    driver.feed(b"BDAT 100000 LAST\r\n")
    for _ in range(99):
        driver.feed(b"x" * 1000)
        assert kept(session) < 1200  # the last piece
    session, driver = session_after(EHLO, limits=Limits(message_size=10**6))
    assert driver.feed(b"BDAT 100000 LAST\r\n") == b""
    for _ in range(99):
        assert driver.feed(b"x" * 1000) == b""
        assert kept(session) < 1200  # the last piece
    assert driver.feed(b"x" * 1000).startswith(b"503 ")


def test_responses_are_not_kept():
    session, driver = session_after(EHLO, mechanisms=["PLAIN"], auth_require_tls=False)
    driver.feed(b"AUTH PLAIN\r\n")
    for _ in range(100):
        assert driver.feed(b"A" * 1000) == b""
        assert kept(session) <= session.rules.longest_line + 1
    assert driver.feed(b"\r\n").startswith(b"500 5.5.6 ")


# -- replies of LMTP -----------------------------------------------------------------------------


def test_replies_are_as_many_as_the_recipients():
    # RFC 2033 4.2
    session, driver = session_after(lmtp=True)
    driver.feed(b"LHLO client.example\r\n")
    driver.feed(MAIL + RCPT + RCPT + b"DATA\r\n")
    assert ask(session, b".\r\n").verb == "message"
    with pytest.raises(ValueError, match="1 replies for 2 recipients"):
        session.reply([Reply(250)])


def test_one_reply_is_for_all_recipients():
    session, driver = session_after(lmtp=True)
    driver.feed(b"LHLO client.example\r\n")
    driver.feed(MAIL + RCPT + RCPT + b"DATA\r\n")
    assert ask(session, b".\r\n").verb == "message"
    session.reply(Reply(452))
    assert [line[:3] for line in session.data_to_send().splitlines()] == [b"452", b"452"]


# -- who a proxy speaks for ----------------------------------------------------------------------


def test_xclient_says_who_the_client_is():
    session, _ = session_after(EHLO, xclient=True)
    attributes = b"ADDR=IPV6:2001:db8::1 PORT=4000 HELO=real.example LOGIN=tim"
    assert ask(session, b"XCLIENT " + attributes + b"\r\n").verb == "connection"
    assert session.peer == ("2001:db8::1", 4000)
    assert (session.helo, session.esmtp, session.user) == ("real.example", False, "tim")
    session.reply(Reply(220))
    assert ask(session, b"XCLIENT ADDR=[UNAVAILABLE]\r\n").verb == "connection"
    assert session.peer == ("", 0)
    assert session.user is None


def test_xforward_is_recorded():
    session, driver = session_after(EHLO, xclient=True)
    driver.feed(b"XFORWARD ADDR=192.0.2.9 NAME=[UNAVAILABLE]\r\n")
    driver.feed(b"XFORWARD NAME=real.example\r\n")
    assert session.forwarded == {"ADDR": "192.0.2.9", "NAME": "real.example"}
    assert session.peer == ("", 0)


@pytest.mark.parametrize(
    ("groups", "kept"),
    [
        ([MAIL, RCPT, b"DATA\r\n"], True),
        ([MAIL, RCPT, b"BDAT 0\r\n"], True),
        ([MAIL, RCPT, b"DATA\r\n", b".\r\n"], False),
        ([MAIL, RCPT, b"BDAT 0 LAST\r\n"], False),
        ([b"RSET\r\n"], False),
        ([EHLO], False),
        ([b"STARTTLS\r\n"], False),
        ([b"NOOP\r\n", b"MAIL FROM:<a\r\n"], True),
    ],
)
def test_what_was_forwarded_is_of_one_transaction(groups, kept):
    # Postfix XFORWARD_README
    session, driver = session_after(EHLO, xclient=True, starttls=True)
    driver.feed(b"XFORWARD ADDR=192.0.2.9\r\n")
    for group in groups:
        driver.feed(group)
    assert session.forwarded == ({"ADDR": "192.0.2.9"} if kept else {})


def test_attributes_may_come_in_several_commands():
    # Postfix XCLIENT_README
    session, driver = session_after(EHLO, xclient=True)
    driver.feed(b"XCLIENT ADDR=192.0.2.1 PORT=4000\r\n")
    driver.feed(b"XCLIENT NAME=real.example\r\n")
    assert session.peer == ("192.0.2.1", 4000)
    driver.feed(b"XCLIENT ADDR=192.0.2.2\r\n")
    assert session.peer == ("192.0.2.2", 0)
