"""The rules of order: which of several reasons is the one that is told."""

import pytest
from dialogue import Driver

from smtpd_sync import Limits, Reject
from smtpd_sync.checks import CHECKS, refusal
from smtpd_sync.command import VERBS, Command
from smtpd_sync.envelope import TLS, Envelope
from smtpd_sync.extensions import check_extensions
from smtpd_sync.rules import rules
from smtpd_sync.session import Session
from smtpd_sync.states import State
from smtpd_sync.syntax import Mailbox

EVERYTHING = {
    "starttls": True,
    "require_tls": True,
    "mechanisms": ["PLAIN"],
    "require_auth": True,
    "xclient": True,
}
ENCRYPTED = TLS("TLSv1.3", "", 256)


def session_in(state, tls=None, **options):
    session = Session(rules(**options))
    session.state, session.tls = state, tls
    return session


def code(session, verb, length=4):
    reply = refusal(session, verb, length)
    return reply and (reply.code, reply.status)


@pytest.mark.parametrize("verb", VERBS)
def test_refused_host_hears_503_before_all(verb):
    session = session_in(State.REFUSED, **EVERYTHING)
    assert code(session, verb, 99999) == ((500, "5.5.2") if verb == "QUIT" else (503, "5.5.1"))


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "AUTH"])
def test_line_that_is_too_long_is_told_before_the_order(verb):
    session = session_in(State.GREETED)
    assert code(session, verb, session.rules.line_lengths[verb] - 1) == (500, "5.5.2")


def test_line_of_auth_that_is_too_long_has_its_own_status():
    # RFC 4954 6
    session = session_in(State.READY, ENCRYPTED, **EVERYTHING)
    assert code(session, "AUTH", Limits().auth_line - 2) is None
    assert code(session, "AUTH", Limits().auth_line - 1) == (500, "5.5.6")


def test_tls_is_told_before_the_order():
    session = session_in(State.READY, **EVERYTHING)
    needs = {verb for verb in VERBS if code(session, verb) == (530, "5.7.0")}
    assert {"MAIL", "RCPT", "DATA", "BDAT", "AUTH", "HELO", "VRFY", "EXPN", "RSET"} <= needs
    assert not {"EHLO", "NOOP", "QUIT", "STARTTLS"} & needs


def test_order_is_told_before_auth():
    session = session_in(State.GREETED, ENCRYPTED, **EVERYTHING)
    assert code(session, "MAIL") == (503, "5.5.1")
    session.state = State.READY
    assert code(session, "MAIL") == (530, "5.7.0")
    session.user = "tim"
    assert code(session, "MAIL") is None


def test_starttls_inside_tls_is_503():
    for state in (State.GREETED, State.READY, State.MAIL):
        assert code(session_in(state, ENCRYPTED, **EVERYTHING), "STARTTLS") == (503, "5.5.1")


@pytest.mark.parametrize(
    ("user", "esmtp", "tls", "mechanism", "told"),
    [
        ("tim", False, None, "NONE", 503),
        (None, False, None, "NONE", 503),
        (None, True, None, "NONE", 538),
        (None, True, ENCRYPTED, "NONE", 504),
        (None, True, ENCRYPTED, "PLAIN", None),
    ],
)
def test_auth_is_checked_in_order(user, esmtp, tls, mechanism, told):
    session = session_in(State.READY, tls, mechanisms=["PLAIN"])
    session.user, session.esmtp = user, esmtp
    event = Command("AUTH", (mechanism, None))
    if told is None:
        CHECKS["AUTH"](session, event)
        return
    with pytest.raises(Reject) as caught:
        CHECKS["AUTH"](session, event)
    assert caught.value.reply.code == told


@pytest.mark.parametrize(("tls", "taken"), [(None, False), (ENCRYPTED, True)])
def test_requiretls_is_taken_inside_tls(tls, taken):
    # RFC 8689 3
    session = session_in(State.READY, tls, extensions=check_extensions(["REQUIRETLS"]))
    assert ("REQUIRETLS" in session.keywords) is taken
    driver = Driver(session)
    said = driver.feed(b"MAIL FROM:<a@x.example> REQUIRETLS\r\n")
    assert said.startswith(b"250 ") is taken
    assert (session.envelope is not None) is taken


def test_binary_message_needs_bdat():
    session = session_in(State.RCPT)
    session.envelope = Envelope(session, Mailbox(), {"BODY": "binarymime"})
    with pytest.raises(Reject) as caught:
        CHECKS["DATA"](session, Command("DATA"))
    assert caught.value.reply.code == 503
