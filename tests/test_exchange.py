"""One AUTH exchange: what a mechanism yields as the next thing to do."""

import base64

import pytest
from dialogue import Driver
from test_sasl import Client

from smtpd_sync import Reply
from smtpd_sync.command import Command
from smtpd_sync.envelope import TLS
from smtpd_sync.exchange import AuthExchange, challenge
from smtpd_sync.reply import AUTH_CANCELLED, AUTH_ERROR, AUTH_FAILED
from smtpd_sync.rules import rules
from smtpd_sync.sasl import Context, Credentials, SecretRequest
from smtpd_sync.session import END, NEED_DATA, Session
from smtpd_sync.states import State

CONTEXT = Context(None, None, False, b"key", "mx.example", "nonce")


def begin(mechanism, initial=None):
    exchange = AuthExchange(mechanism, CONTEXT)
    return exchange, exchange.start(initial)


@pytest.mark.parametrize(
    ("octets", "line"), [(b"", b"334 \r\n"), (b"Username:", b"334 VXNlcm5hbWU6\r\n")]
)
def test_challenge_is_a_334(octets, line):
    assert challenge(octets).render() == line


def test_steps_lead_to_credentials():
    exchange, step = begin("LOGIN")
    assert step == Reply(334, "VXNlcm5hbWU6")
    assert exchange.respond(b"dGlt") == Reply(334, "UGFzc3dvcmQ6")
    step = exchange.respond(b"c2VjcmV0")
    assert isinstance(step, Credentials)
    assert (step.username, step.password) == ("tim", "secret")


def test_cancelled_at_any_step():
    exchange, _ = begin("LOGIN")
    assert exchange.respond(b"*") == AUTH_CANCELLED
    exchange, _ = begin("LOGIN", b"tim")
    assert exchange.respond(b"*") == AUTH_CANCELLED


@pytest.mark.parametrize("line", [b"=", b"**", b" *", b"A", b"\xff", b"dGlt ", b"dGlt\0"])
def test_what_is_no_base64_is_501(line):
    exchange, _ = begin("LOGIN")
    step = exchange.respond(line)
    assert (step.code, step.status) == (501, "5.5.2")


def test_initial_response_that_is_none_is_501():
    _, step = begin("PLAIN", b"tim")
    assert (step.code, step.status) == (501, "5.5.2")


def test_question_is_answered_or_ends_it():
    exchange, request = begin("SCRAM-SHA-256", b"n,,n=user,r=abc")
    assert isinstance(request, SecretRequest)
    request.secret = "pencil"
    assert exchange.answer(request).code == 334
    exchange, request = begin("SCRAM-SHA-256", b"n,,n=user,r=abc")
    request.fault = AUTH_ERROR
    assert exchange.answer(request) == AUTH_ERROR


@pytest.mark.parametrize("line", [b"", b"AQ==", b"*", b"no base64", b"\xff"])
def test_refused_bearer_hears_why_and_says_something(line):
    # RFC 7628 3.2.2
    exchange, step = begin("OAUTHBEARER", b"n,,\1auth=Bearer t\1\1")
    assert isinstance(step, Credentials)
    step = exchange.refuse(AUTH_FAILED)
    assert step.code == 334
    assert b'"status"' in base64.b64decode(step.text)
    assert exchange.respond(line) == AUTH_FAILED


@pytest.mark.parametrize(
    ("mechanism", "initial", "refusal"),
    [
        ("OAUTHBEARER", b"n,,\1auth=Bearer t\1\1", AUTH_ERROR),
        ("PLAIN", b"\0tim\0secret", AUTH_FAILED),
    ],
)
def test_other_refusals_are_said_at_once(mechanism, initial, refusal):
    exchange, _ = begin(mechanism, initial)
    assert exchange.refuse(refusal) == refusal


# -- in a session --------------------------------------------------------------------------------


def session_of(*mechanisms, **tls):
    session = Session(rules(mechanisms=mechanisms, auth_require_tls=False, salt_key=b"key"))
    if tls:
        session.tls_started(TLS("TLSv1.3", "", 256, **tls))
    driver = Driver(session, users={"user": "pencil"})
    driver.pull()
    driver.feed(b"EHLO client.example\r\n")
    return session, driver


def say(driver, octets):
    """Send a response; give the challenge."""
    said = driver.feed(base64.b64encode(octets) + b"\r\n")
    return base64.b64decode(said[4:]) if said.startswith(b"334 ") else said


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("plus", [True, False])
def test_scram_in_a_session(plus, known):
    mechanism = "SCRAM-SHA-256" + "-PLUS" * plus
    session, driver = session_of("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", end_point=b"end point")
    header = b"p=tls-server-end-point,," if plus else b"n,,"
    client = Client(b"user" if known else b"nobody", header=header, bound=b"end point" * plus)
    assert driver.feed(f"AUTH {mechanism}\r\n".encode()) == b"334 \r\n"
    final = client.final(say(driver, client.first))
    if not known:
        assert say(driver, final).startswith(b"535 5.7.8 ")
        assert session.user is None
        return
    assert say(driver, final) == b"v=" + base64.b64encode(client.signature)
    assert driver.feed(b"\r\n").startswith(b"235 2.7.0 ")
    assert session.user == "user"
    assert session.state is State.READY


def test_downgrade_is_seen():
    # RFC 5802 6
    _, driver = session_of("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", end_point=b"end point")
    driver.feed(b"AUTH SCRAM-SHA-256\r\n")
    assert say(driver, b"y,,n=user,r=abc").startswith(b"535 5.7.8 ")


def test_nonce_is_fresh():
    challenges = set()
    for _ in range(10):
        _, driver = session_of("CRAM-MD5")
        challenges.add(driver.feed(b"AUTH CRAM-MD5\r\n"))
    assert len(challenges) == 10


def test_certificate_is_given():
    session, _ = session_of("EXTERNAL", peer_certificate={"subject": ()})
    session.receive_data(b"AUTH EXTERNAL =\r\n")
    event = session.next_event()
    assert event.verb == "credentials"
    assert event.argument.certificate == {"subject": ()}


def test_secret_is_asked_without_a_reply():
    session, _ = session_of("SCRAM-SHA-256")
    session.receive_data(b"AUTH SCRAM-SHA-256 " + base64.b64encode(b"n,,n=user,r=abc") + b"\r\n")
    event = session.next_event()
    assert event.verb == "secret"
    with pytest.raises(RuntimeError, match="no event"):
        session.reply(Reply(250))
    assert session.next_event() is NEED_DATA
    assert session.data_to_send().startswith(b"334 ")


def test_end_of_input_in_an_exchange_ends_without_a_word():
    session, driver = session_of("PLAIN")
    driver.feed(b"AUTH PLAIN\r\n")
    assert driver.feed(b"") == b""
    assert session.next_event() is END
    assert session.user is None


def test_close_in_an_exchange_says_its_reply():
    session, driver = session_of("PLAIN")
    driver.feed(b"AUTH PLAIN\r\n")
    session.close(Reply(421, "Time", "4.4.2"))
    assert session.data_to_send() == b"421 4.4.2 Time\r\n"


def test_command_after_the_exchange_is_one():
    session, driver = session_of("PLAIN")
    driver.feed(b"AUTH PLAIN AHVzZXIAcGVuY2ls\r\n")
    session.receive_data(b"NOOP\r\n")
    assert session.next_event() == Command("NOOP")
