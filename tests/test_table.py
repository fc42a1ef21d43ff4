"""The table of the protocol: every state and every event, by a session driven into the state."""

import itertools

import pytest
from dialogue import Driver

from smtpd_sync import Reply
from smtpd_sync.command import VERBS
from smtpd_sync.envelope import TLS
from smtpd_sync.rules import rules
from smtpd_sync.session import END, NEED_DATA, Session
from smtpd_sync.states import (
    BARE,
    GATHER,
    JUNK,
    LAST,
    ON_REFUSAL,
    OUT_OF_TURN,
    TRANSITIONS,
    UNSERVED,
    WITH_AUTH,
    WITHOUT_TLS,
    State,
)

OFFERS_TLS = rules(
    starttls=True,
    mechanisms=["PLAIN"],
    auth_require_tls=False,
    xclient=True,
    strict_pipelining=False,
)

EHLO = b"EHLO client.example\r\n"
MAIL = b"MAIL FROM:<a@x.example>\r\n"
RCPT = b"RCPT TO:<b@y.example>\r\n"
DATA = b"DATA\r\n"
BDAT = b"BDAT 0\r\n"
AUTH = b"AUTH PLAIN\r\n"

# What leads there, and what the client may say there.
INTO = {
    State.NEW: None,
    State.REFUSED: b"",
    State.GREETED: b"",
    State.READY: EHLO,
    State.TLS: EHLO + b"STARTTLS\r\n",
    State.MAIL: EHLO + MAIL,
    State.RCPT: EHLO + MAIL + RCPT,
    State.DATA: EHLO + MAIL + RCPT + DATA,
    State.BDAT: EHLO + MAIL + RCPT + BDAT,
    State.AUTH: EHLO + AUTH,
    State.CLOSED: b"QUIT\r\n",
}
COMMAND = {
    "HELO": b"HELO client.example\r\n",
    "EHLO": EHLO,
    "STARTTLS": b"STARTTLS\r\n",
    "MAIL": MAIL,
    "RCPT": RCPT,
    "DATA": DATA,
    "RSET": b"RSET\r\n",
    "NOOP": b"NOOP\r\n",
    "HELP": b"HELP\r\n",
    "VRFY": b"VRFY b\r\n",
    "EXPN": b"EXPN b\r\n",
    "QUIT": b"QUIT\r\n",
}
# Those that the session begins by itself, or that begin more than a reply ends.
BEGINNING = {
    "AUTH": AUTH,
    "BDAT": BDAT,
    "XCLIENT": b"XCLIENT ADDR=192.0.2.1\r\n",
    "XFORWARD": b"XFORWARD ADDR=192.0.2.1\r\n",
}
# The states in which a line from the client is a command.
LISTENING = (
    State.REFUSED,
    State.GREETED,
    State.READY,
    State.MAIL,
    State.RCPT,
    State.BDAT,
)
POSITIVE = {
    "connection": Reply(220),
    "DATA": Reply(354),
    "STARTTLS": Reply(220),
    "VRFY": Reply(252),
}
ACCEPT = Reply(250, "Yes")
REFUSE = Reply(550, "No")
DEFER = Reply(450, "Later")

# State after a positive reply, in the order of LISTENING (RFC 5321 3.1 and 4.1.4, RFC 3207 4,
# RFC 3030 2, RFC 4954 4, Postfix's XCLIENT_README).
BY_THE_BOOK = {
    "HELO": (None, *(State.READY,) * 5),
    "EHLO": (None, *(State.READY,) * 5),
    "LHLO": (None, *(State.READY,) * 5),
    "STARTTLS": (None, None, State.TLS, None, None, None),
    "AUTH": (None, None, State.AUTH, None, None, None),
    "XCLIENT": (None, State.NEW, State.NEW, None, None, None),
    "XFORWARD": (None, None, State.READY, None, None, None),
    "MAIL": (None, None, State.MAIL, None, None, None),
    "RCPT": (None, None, None, State.RCPT, State.RCPT, None),
    "DATA": (None, None, None, None, State.DATA, None),
    "BDAT": (None, None, None, None, State.BDAT, State.BDAT),
    "RSET": (None, State.GREETED, *(State.READY,) * 4),
    "NOOP": (None, *LISTENING[1:]),
    "HELP": (None, *LISTENING[1:]),
    "VRFY": (None, *LISTENING[1:]),
    "EXPN": (None, *LISTENING[1:]),
    "QUIT": (State.CLOSED,) * 6,
}
ALL_ROWS = [
    (verb, state, after)
    for verb, row in BY_THE_BOOK.items()
    for state, after in zip(LISTENING, row)
]
ROWS = [row for row in ALL_ROWS if row[0] in COMMAND]


def cells(rows):
    return [pytest.param(*row, id=f"{row[0]}-{row[1].name}") for row in rows]


CELLS = cells(ROWS)
OUT_OF_TURN_CELLS = cells(row for row in ALL_ROWS if row[0] in BEGINNING and row[2] is None)


def driven(state):
    """Give a session in ``state``, by what a client says and a server answers."""
    session = Session(OFFERS_TLS)
    if state is State.NEW:
        return session
    assert session.next_event().verb == "connection"
    session.reply(REFUSE if state is State.REFUSED else Reply(220))
    for line in INTO[state].splitlines(keepends=True):
        session.receive_data(line)
        event = session.next_event()
        if event is not NEED_DATA:  # as it is when AUTH waits for a response
            session.reply(POSITIVE.get(event.verb, ACCEPT))
    if state is State.BDAT:
        assert session.next_event() is NEED_DATA
    assert session.state is state
    session.data_to_send()
    return session


def test_walk_covers_every_state_and_event():
    assert set(INTO) == set(State)
    happenings = {"connection", "tls", "secret", "credentials", "content", "message"}
    assert set(TRANSITIONS) == {*COMMAND, *BEGINNING, "LHLO", *happenings}
    assert {*BY_THE_BOOK, *happenings} == set(TRANSITIONS)


@pytest.mark.parametrize(("verb", "state", "after"), cells(ALL_ROWS))
def test_table_says_what_the_rfc_says(verb, state, after):
    assert TRANSITIONS[verb].get(state) is after


@pytest.mark.parametrize(("verb", "state", "after"), CELLS)
def test_verb_in_state(verb, state, after):
    session = driven(state)
    session.receive_data(COMMAND[verb])
    event = session.next_event()
    if after is None:
        assert event is NEED_DATA
        assert session.data_to_send().startswith(b"503 ")
        assert session.state is state
        return
    assert event.verb == verb
    assert session.state is state, "nothing moves before the reply"
    session.reply(POSITIVE.get(verb, ACCEPT))
    assert session.state is after


@pytest.mark.parametrize(("verb", "state", "after"), OUT_OF_TURN_CELLS)
def test_beginning_out_of_turn_is_503(verb, state, after):
    session = driven(state)
    session.receive_data(BEGINNING[verb])
    assert session.next_event() is NEED_DATA
    assert session.data_to_send().startswith(b"503 ")
    assert session.state is state


def test_auth_begins_an_exchange():
    session = driven(State.READY)
    session.receive_data(AUTH)
    assert session.next_event() is NEED_DATA
    assert session.state is State.AUTH
    assert session.data_to_send() == b"334 \r\n"


@pytest.mark.parametrize("reply", [ACCEPT, REFUSE, DEFER, Reply(421)], ids=repr)
def test_credentials_end_the_exchange(reply):
    session = driven(State.AUTH)
    session.receive_data(b"AHRpbQBzZWNyZXQ=\r\n")
    event = session.next_event()
    assert event.verb == "credentials"
    assert session.state is State.AUTH
    session.reply(reply)
    assert session.state is (State.CLOSED if reply.code == 421 else State.READY)


@pytest.mark.parametrize("verb", [*COMMAND, *BEGINNING])
def test_command_in_an_exchange_is_a_response(verb):
    session = driven(State.AUTH)
    session.receive_data({**COMMAND, **BEGINNING}[verb])
    assert session.next_event() is NEED_DATA
    assert session.data_to_send().startswith(b"501 5.5.2 ")
    assert session.state is State.READY


@pytest.mark.parametrize("state", [State.GREETED, State.READY], ids=lambda state: state.name)
def test_xclient_begins_again(state):
    session = driven(state)
    session.receive_data(BEGINNING["XCLIENT"])
    assert session.next_event().verb == "connection"
    assert session.state is State.NEW
    assert session.peer == ("192.0.2.1", 0)
    session.reply(Reply(220))
    assert session.state is State.GREETED
    assert (session.helo, session.esmtp, session.user) == ("", False, None)


def test_xforward_stays():
    session = driven(State.READY)
    session.receive_data(BEGINNING["XFORWARD"])
    assert session.next_event() is NEED_DATA
    assert session.data_to_send().startswith(b"250 ")
    assert session.state is State.READY
    assert session.forwarded == {"ADDR": "192.0.2.1"}


@pytest.mark.parametrize(
    ("reply", "after"),
    [
        (Reply(354), State.BDAT),
        (REFUSE, State.READY),
        (DEFER, State.READY),
        (Reply(421), State.CLOSED),
    ],
    ids=repr,
)
def test_first_chunk_is_asked_for(reply, after):
    session = driven(State.RCPT)
    session.receive_data(BDAT)
    assert session.next_event().verb == "BDAT"
    assert session.state is State.RCPT
    session.reply(reply)
    session.next_event()
    assert session.state is after
    if after is State.READY:
        assert session.envelope is None


def test_next_chunk_is_not():
    session = driven(State.BDAT)
    session.receive_data(BDAT)
    assert session.next_event() is NEED_DATA
    assert session.data_to_send().startswith(b"250 ")
    assert session.state is State.BDAT


@pytest.mark.parametrize("state", LISTENING[1:], ids=lambda state: state.name)
@pytest.mark.parametrize("line", [b"XCLIENT ADDR=192.0.2.1", b"XFORWARD ADDR=192.0.2.1"])
def test_who_is_not_trusted_speaks_for_nobody(state, line):
    session = driven(state)
    session.rules = rules()
    session.receive_data(line + b"\r\n")
    assert session.next_event() is NEED_DATA
    assert session.data_to_send().startswith(b"500 5.5.2 ")
    assert session.state is state


@pytest.mark.parametrize("refusal", [REFUSE, DEFER], ids=["5yz", "4yz"])
@pytest.mark.parametrize(("verb", "state", "after"), CELLS)
def test_refused_verb_leaves_the_state(verb, state, after, refusal):
    session = driven(state)
    session.receive_data(COMMAND[verb])
    if after is None:
        assert session.next_event() is NEED_DATA
    else:
        session.next_event()
        session.reply(refusal)
    assert session.state is state
    assert verb not in ON_REFUSAL


@pytest.mark.parametrize(
    ("verb", "state"), [(verb, state) for verb, state, after in ROWS if after is not None]
)
def test_421_closes(verb, state):
    session = driven(state)
    session.receive_data(COMMAND[verb])
    session.next_event()
    session.reply(Reply(421))
    assert session.state is State.CLOSED
    assert session.data_to_send().startswith(b"421 ")
    assert session.next_event() is END


@pytest.mark.parametrize("state", LISTENING, ids=lambda state: state.name)
@pytest.mark.parametrize("line", [b"WIZ", b"", b"EHLOX client.example", b"XCLIENTS"])
def test_unknown_verb_is_500(state, line):
    session = driven(state)
    session.receive_data(line + b"\r\n")
    assert session.next_event() is NEED_DATA
    assert session.data_to_send().startswith(b"500 5.5.2 ")
    assert session.state is state


@pytest.mark.parametrize("state", LISTENING, ids=lambda state: state.name)
@pytest.mark.parametrize("verb", sorted(UNSERVED))
def test_verb_that_the_rfcs_know_is_502(state, verb):
    session = driven(state)
    session.receive_data(f"{verb.lower()} x\r\n".encode())
    assert session.next_event() is NEED_DATA
    assert session.data_to_send().startswith(b"502 5.5.1 ")
    assert session.state is state


@pytest.mark.parametrize(
    ("verb", "state", "text"),
    [
        ("MAIL", State.GREETED, b"HELO"),
        ("RCPT", State.GREETED, b"HELO"),
        ("MAIL", State.MAIL, b"transaction"),
        ("MAIL", State.RCPT, b"transaction"),
        ("RCPT", State.READY, b"MAIL"),
        ("DATA", State.READY, b"MAIL"),
        ("DATA", State.MAIL, b"recipient"),
        ("BDAT", State.GREETED, b"HELO"),
        ("BDAT", State.READY, b"MAIL"),
        ("BDAT", State.MAIL, b"recipient"),
        ("AUTH", State.GREETED, b"HELO"),
    ],
    ids=str,
)
def test_503_says_what_is_missing(verb, state, text):
    session = driven(state)
    session.receive_data({**COMMAND, **BEGINNING}[verb])
    session.next_event()
    assert text in session.data_to_send()


def test_out_of_turn_is_said_where_the_table_lets_nothing_in():
    for (verb, state), reply in OUT_OF_TURN.items():
        assert reply.code == 503
        assert state not in TRANSITIONS[verb]


# -- what happens, beside the verbs --------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "after"),
    [
        (Reply(220), State.GREETED),
        (REFUSE, State.REFUSED),
        (DEFER, State.REFUSED),
        (Reply(421), State.CLOSED),
    ],
    ids=repr,
)
def test_connection_leads_on(reply, after):
    session = driven(State.NEW)
    assert session.next_event().verb == "connection"
    session.reply(reply)
    assert session.state is after


@pytest.mark.parametrize(
    ("reply", "after"),
    [
        (ACCEPT, State.READY),
        (REFUSE, State.READY),
        (DEFER, State.READY),
        (Reply(421), State.CLOSED),
    ],
    ids=repr,
)
def test_message_ends_the_transaction(reply, after):
    session = driven(State.DATA)
    session.receive_data(b"x\r\n.\r\n")
    assert session.next_event() == ("content", b"x\r\n", {})
    assert session.state is State.DATA
    event = session.next_event()
    assert event == ("message", None, {})
    assert session.envelope is not None
    session.reply(reply)
    assert session.state is after
    assert session.envelope is None


@pytest.mark.parametrize("verb", COMMAND)
def test_command_in_mail_data_is_content(verb):
    session = driven(State.DATA)
    session.receive_data(COMMAND[verb] + b"x")
    assert session.next_event() == ("content", COMMAND[verb] + b"x", {})
    assert session.next_event() is NEED_DATA
    assert session.state is State.DATA


@pytest.mark.parametrize("verb", COMMAND)
def test_nothing_is_read_when_closed(verb):
    session = driven(State.CLOSED)
    session.receive_data(COMMAND[verb])
    assert session.next_event() is END
    assert session.data_to_send() == b""


@pytest.mark.parametrize("verb", COMMAND)
def test_what_came_before_the_handshake_is_forgotten(verb):
    session = driven(State.TLS)
    session.receive_data(COMMAND[verb])
    session.tls_started(TLS("TLSv1.3", "", 0))
    assert session.state is State.GREETED
    assert session.next_event() is NEED_DATA
    assert session.data_to_send() == b""


def test_nothing_is_read_before_the_handshake():
    session = driven(State.TLS)
    with pytest.raises(RuntimeError, match="tls_started"):
        session.next_event()


def test_handshake_may_come_before_all():
    # RFC 8314 3: TLS from the first octet
    session = driven(State.NEW)
    session.tls_started(TLS("TLSv1.3", "", 0))
    assert session.state is State.NEW
    assert session.tls is not None


@pytest.mark.parametrize("state", [s for s in State if s not in (State.TLS, State.NEW)])
def test_handshake_comes_after_starttls_alone(state):
    session = driven(state)
    with pytest.raises(KeyError):
        session.tls_started(TLS("TLSv1.3", "", 0))
    assert session.state is state
    assert session.tls is None


# -- the sets beside the table -------------------------------------------------------------------


def test_every_verb_has_a_row():
    assert set(VERBS) == {event for event in TRANSITIONS if event.isupper()}


def test_no_verb_is_served_and_unserved():
    assert not UNSERVED & set(VERBS)


def test_events_on_refusal_are_events():
    assert ON_REFUSAL["connection"] is State.REFUSED
    assert ON_REFUSAL["message"] is State.READY
    assert ON_REFUSAL["BDAT"] is State.READY
    assert ON_REFUSAL["credentials"] is State.READY
    assert set(ON_REFUSAL) <= set(TRANSITIONS)


def test_gathered_are_the_commands_that_may_stand_anywhere_in_a_group():
    # RFC 2920 3.1, less the verbs that are not served; RFC 3030 4.2; Postfix's XFORWARD_README
    assert set(GATHER) == {"MAIL", "RCPT", "RSET", "BDAT", "XFORWARD"}


def test_last_are_the_commands_that_end_a_group():
    # RFC 2920 3.1; QUIT ends it by itself
    assert {"EHLO", "DATA", "VRFY", "EXPN", "NOOP", "AUTH", "XCLIENT"} <= LAST
    assert not LAST & GATHER


def test_without_tls_are_the_commands_of_rfc_3207():
    assert {"NOOP", "EHLO", "STARTTLS", "QUIT"} <= WITHOUT_TLS
    assert not {"MAIL", "RCPT", "DATA", "BDAT", "AUTH", "VRFY", "EXPN"} & WITHOUT_TLS


def test_with_auth_is_what_costs_or_tells_something():
    # RFC 4954 6: all but AUTH, EHLO, HELO, NOOP, RSET and QUIT may be refused; RCPT needs MAIL
    assert {"MAIL", "VRFY", "EXPN"} == WITH_AUTH


def test_bare_are_the_replies_of_rfc_2034():
    assert set(BARE) >= {"connection", "HELO", "EHLO"}
    assert not BARE & {"MAIL", "RCPT", "DATA", "message"}


def test_junk_brings_no_mail():
    assert {"HELO", "EHLO", "RSET", "NOOP", "HELP", "VRFY", "EXPN"} <= JUNK
    assert not JUNK & {"MAIL", "RCPT", "DATA", "BDAT", "QUIT", "STARTTLS"}


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.product([*COMMAND, "AUTH", "BDAT"], repeat=2)), ids="-".join
)
def test_two_commands_have_two_replies(first, second):
    driver = Driver(Session(OFFERS_TLS))
    driver.pull()
    commands = {**COMMAND, **BEGINNING}
    said = driver.feed(commands[first] + commands[second])
    codes = [line[:3] for line in said.splitlines() if line[3:4] == b" "]
    assert len(codes) == (1 if first == "QUIT" else 2)
