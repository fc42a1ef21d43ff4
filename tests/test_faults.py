"""Scripted faults: each at each command over a real socket; whom they hit, how often; as data."""

import json
import re
import smtplib
import socket
import ssl
import threading
import time

import pytest
from support import DEADLINE, SOON, make_certificate, trusting, until

from smtpd_sync import SMTPHandler
from smtpd_sync.faultkinds import COMMANDS, KINDS
from smtpd_sync.faults import Faults

EHLO, MAIL, RCPT = "EHLO client.example", "MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>"
# What a client says, up to each command.
WAY = {
    "CONNECT": [],
    "HELO": ["HELO client.example"],
    "EHLO": [EHLO],
    "STARTTLS": [EHLO, "STARTTLS"],
    "AUTH": [EHLO, "AUTH PLAIN AGFubgBzZXNhbWU="],
    "MAIL": [EHLO, MAIL],
    "RCPT": [EHLO, MAIL, RCPT],
    "DATA": [EHLO, MAIL, RCPT, "DATA"],
    "BDAT": [EHLO, MAIL, RCPT, "BDAT 7 LAST\r\nhello"],
    "EOM": [EHLO, MAIL, RCPT, "DATA", "hello\r\n."],
    "RSET": [EHLO, MAIL, RCPT, "RSET"],
    "NOOP": [EHLO, "NOOP"],
    "QUIT": [EHLO, "QUIT"],
}
EVERY = pytest.mark.parametrize("command", WAY)


def test_way_to_every_command_is_known():
    assert set(WAY) == set(COMMANDS) - {"TLS"}


@pytest.fixture
def plan():
    return Faults()


@pytest.fixture
def serve_faults(serve, certificate):
    """Start a server with a plan that also offers STARTTLS and AUTH."""

    def make(plan, handler=SMTPHandler, **options):
        options.setdefault("tls", certificate)
        return serve(
            plan.handler(handler), users={"ann": "sesame"}, auth_require_tls=False, **options
        )

    return make


def lead(client, command):
    """Go up to a command and say it; its reply is still to read."""
    said = WAY[command]
    if said:
        assert client.reply().startswith("220 ")
    for line in said[:-1]:
        assert client.ask(line)[0] in "23"
    for line in said[-1:]:
        client.send(line.encode() + b"\r\n")


def reply_to(client, command):
    lead(client, command)
    return client.reply()


# -- fail ----------------------------------------------------------------------------------------


@EVERY
def test_fail_refuses(plan, serve_faults, connect, inbox, command):
    fault = plan.fail(command, 499, "4.9.9 on purpose", times=1)
    client = connect(serve_faults(plan))
    bare = command in ("CONNECT", "HELO", "EHLO")
    assert reply_to(client, command) == f"499 {'' if bare else '4.9.9 '}on purpose"
    assert fault.fired == 1
    assert inbox.messages == []
    if command == "CONNECT":
        assert client.ask(EHLO).startswith("503 ")  # RFC 5321 3.1
        assert client.ask("QUIT").startswith("221 ")
        return
    # The session goes on as after any refusal, and its next message arrives.
    for line in (EHLO, MAIL, RCPT, "DATA", "again\r\n."):
        assert client.ask(line)[0] in "23"
    assert [data[-7:] for *_, data in inbox.messages] == [b"again\r\n"]
    assert client.ask("QUIT").startswith("221 ")


@EVERY
def test_fail_with_421_closes(plan, serve_faults, connect, inbox, command):
    plan.fail(command, 421, "busy")
    client = connect(serve_faults(plan))
    assert re.fullmatch(r"421 (4\.0\.0 )?busy", reply_to(client, command))
    assert client.ended()
    assert inbox.messages == []


def test_fail_has_a_text_of_its_own_or_that_of_the_code(plan, serve_faults, connect):
    client = connect(serve_faults(plan))
    client.hello()
    for arguments, reply in (
        ((), "451 4.0.0 Requested action aborted: local error in processing"),
        ((550, "no"), "550 5.0.0 no"),
        ((550, "5.7.1"), "550 5.7.1 Requested action not taken: mailbox unavailable"),
        ((552, "5.2.2 one\ntwo"), "552-5.2.2 one\n552 5.2.2 two"),
    ):
        with plan.failing("NOOP", *arguments):
            assert client.ask("NOOP") == reply


def test_refused_message_is_not_kept(plan, serve_faults, connect, inbox):
    server = serve_faults(plan)
    client = connect(server)
    with plan.fail("EOM", 452):
        assert client.mail(b"x" * 100_000 + b"\r\n").startswith("452 ")
        assert server.stats()["memory"] == 0
        assert server.stats()["refused_messages"] == 1
    assert inbox.messages == []


def test_refused_recipient_is_not_of_the_message(plan, serve_faults, connect, inbox):
    plan.fail("RCPT", 550, to="bad@*")
    client = connect(serve_faults(plan))
    client.hello()
    replies = [client.ask(line)[:3] for line in (MAIL, "RCPT TO:<bad@y.example>", RCPT, "DATA")]
    assert replies == ["250", "550", "250", "354"]
    assert client.ask("hello\r\n.").startswith("250 ")
    assert [recipients for _, recipients, _ in inbox.messages] == [["b@y.example"]]


def test_postmaster_fails_too(plan, serve_faults, connect):
    plan.fail("RCPT", 550, to="postmaster")
    client = connect(serve_faults(plan))
    client.hello()
    client.ask(MAIL)
    assert client.ask("RCPT TO:<postmaster>").startswith("550 ")


def test_what_is_refused_anyway_comes_to_no_plan(plan, serve_faults, connect):
    fault = plan.fail("RCPT", 450)
    client = connect(serve_faults(plan))
    client.hello()
    assert client.ask(RCPT).startswith("503 ")
    client.ask(MAIL)
    assert client.ask("RCPT TO:<>").startswith("501 ")
    assert fault.fired == 0
    assert client.ask(RCPT).startswith("450 ")


def test_lmtp_fails_for_each_recipient(plan, serve, connect, inbox):
    plan.fail("EHLO", 450, times=1)  # LHLO is its EHLO
    plan.fail("EOM", 451, "later", times=1)
    plan.truncate_reply("EOM", 24)
    client = connect(serve(plan.handler(), lmtp=True))
    client.reply()
    assert client.ask("LHLO client.example").startswith("450 ")
    client.ask("LHLO client.example")
    for line in (MAIL, RCPT, RCPT, "DATA"):
        client.ask(line)
    client.send(b"hello\r\n.\r\n")
    assert client.rest() == b"451 4.0.0 later\r\n451 4.0"
    assert inbox.messages == []


# -- drop, truncate_reply ------------------------------------------------------------------------


@EVERY
def test_drop_closes_without_a_word(plan, serve_faults, connect, inbox, command):
    fault = plan.drop(command, times=1)
    server = serve_faults(plan)
    client = connect(server)
    lead(client, command)
    assert client.rest() == b""
    assert fault.fired == 1
    assert inbox.messages == []
    assert connect(server).hello().startswith("250")


@pytest.mark.parametrize("command", [command for command in WAY if command != "BDAT"])
def test_truncate_reply_sends_a_part_and_closes(plan, serve_faults, connect, command):
    server = serve_faults(plan, deliver=lambda *message: "taken")
    whole = reply_to(connect(server), command).replace("\n", "\r\n").encode() + b"\r\n"
    for octets, part in (
        (0, b""),
        (3, whole[:3]),
        (1_000_000, whole),
        (None, whole[: len(whole) // 2]),
    ):
        with plan.truncate_reply(command, octets):
            client = connect(server)
            lead(client, command)
            assert client.rest() == part


@pytest.mark.parametrize(("octets", "heard"), [(0, b""), (3, b"250")])
def test_message_whose_reply_is_lost_was_delivered(
    plan, serve_faults, connect, inbox, octets, heard
):
    plan.truncate_reply("EOM", octets)
    client = connect(serve_faults(plan))
    lead(client, "EOM")
    assert client.rest() == heard
    assert len(inbox.messages) == 1


def test_reply_of_a_fault_can_be_truncated(plan, serve_faults, connect):
    plan.truncate_reply("RCPT", 8)
    plan.fail("RCPT", 550, "5.1.1 no")
    client = connect(serve_faults(plan))
    lead(client, "RCPT")
    assert client.rest() == b"550 5.1."


@pytest.mark.parametrize("strike", ["drop", "truncate_reply"])
def test_what_is_cut_does_not_depend_on_pipelining(plan, serve_faults, connect, inbox, strike):
    getattr(plan, strike)("RCPT", to="bad@*")
    server = serve_faults(plan)
    lines = [MAIL, RCPT, "RCPT TO:<bad@y.example>"]
    one_by_one, at_once = connect(server), connect(server)
    for client in (one_by_one, at_once):
        client.hello()
    told = b""
    for line in lines[:-1]:
        told += one_by_one.ask(line).encode() + b"\r\n"
    one_by_one.send(lines[-1].encode() + b"\r\n")
    told += one_by_one.rest()
    at_once.send("".join(f"{line}\r\n" for line in [*lines, "DATA"]).encode())
    assert at_once.rest() == told
    assert told.startswith(b"250 2.1.0 Sender OK\r\n250 2.1.5 Recipient OK\r\n")
    assert (told.count(b"\r\n"), told[-1:] == b"\n") == (2, strike == "drop")


def test_tls_breaks_off_without_goodbye(plan, serve_faults, connect, certificate):
    plan.drop("NOOP")
    client = connect(serve_faults(plan))
    client.hello()
    client.starttls(certificate)
    client.ask(EHLO)
    client.send(b"NOOP\r\n")
    # An orderly end would be one more record, with a close_notify (RFC 8446 6.1).
    client.socket = socket.socket(fileno=client.socket.detach())
    client.socket.settimeout(DEADLINE)
    assert client.rest() == b""


def test_transcript_shows_what_was_sent(plan, serve_faults, connect):
    said = []

    class Handler(SMTPHandler):
        def session_ended(self, reason):
            said.append((reason, self.session.transcript))

    plan.truncate_reply("NOOP", 5)
    client = connect(serve_faults(plan, Handler, transcript=True))
    lead(client, "NOOP")
    client.rest()
    client.close()
    ((reason, transcript),) = until(lambda: said)
    assert transcript[-2:] == ["C: NOOP", "S: 250 2"]
    assert reason == "broken off by a fault"


# -- delay, stall --------------------------------------------------------------------------------


@EVERY
def test_delay_waits(plan, serve_faults, connect, command):
    plan.delay(command, 0.05)
    client = connect(serve_faults(plan))
    began = time.monotonic()
    assert reply_to(client, command)[0] in "23"
    assert time.monotonic() - began >= 0.05


def test_delay_holds_nobody_else_and_ends_with_the_server(plan, serve_faults, connect, inbox):
    slow = plan.delay("EOM", 100_000, sender="a@*")
    server = serve_faults(plan)
    held = connect(server)
    lead(held, "EOM")
    until(lambda: slow.fired)
    assert connect(server).mail(sender="z@x.example").startswith("250 ")
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < SOON
    assert held.reply().startswith("250 ")  # its transaction may end
    assert len(inbox.messages) == 2


def test_no_delay_begins_while_the_server_stops(plan, serve_faults, connect):
    hold, begun, go_on = threading.Event(), threading.Event(), threading.Event()

    class Late(SMTPHandler):
        def setup(self):
            if hold.is_set():
                begun.set()
                go_on.wait(DEADLINE)
            super().setup()

    server = serve_faults(plan, Late)
    idle = connect(server)
    idle.hello()
    hold.set()
    late = connect(server)
    held = plan.delay("CONNECT", 100_000)
    assert begun.wait(DEADLINE)
    stopping = threading.Thread(target=server.stop)
    began = time.monotonic()
    stopping.start()
    assert idle.reply().startswith("421 ")  # all that were there have been told
    go_on.set()
    assert late.reply().startswith("220 ")
    stopping.join()
    assert time.monotonic() - began < SOON
    assert held.fired == 1


def test_stalled_replies_drip(plan, serve_faults, connect):
    server = serve_faults(plan)
    whole = connect(server).hello()
    plan.stall(1_000, "EHLO")
    client = connect(server)
    client.reply()
    began = time.monotonic()
    assert client.ask(EHLO) == whole
    assert time.monotonic() - began >= (len(whole) - 50) / 1_000  # the first 50 come at once
    assert client.ask("NOOP").startswith("250 ")


def test_everything_stalls_where_no_command_is_named(plan, serve_faults, connect):
    fault = plan.stall(100_000)
    client = connect(serve_faults(plan))
    client.hello()
    client.ask("VRFY someone")
    assert fault.fired == 3
    facts = dict.fromkeys(("helo", "user", "sender", "to"), ())
    assert fault.is_due("NOOP", facts)
    assert not fault.is_due("TLS", facts)  # there is no reply in a handshake


def test_only_the_reply_to_the_command_stalls(plan, serve_faults, connect):
    plan.stall(20, "HELO")
    plan.fail("HELO", 450, "x")
    client = connect(serve_faults(plan))
    assert reply_to(client, "HELO") == "450 x"
    began = time.monotonic()
    assert len(client.ask(EHLO)) > 10 * 20
    assert time.monotonic() - began < SOON


def test_stall_ends_when_the_client_leaves(plan, serve_faults, connect):
    plan.stall(5, "EHLO")  # for half a minute
    server = serve_faults(plan)
    client = connect(server)
    lead(client, "EHLO")
    client.socket.recv(1)
    client.close()
    until(lambda: server.stats()["sessions"] == 0, seconds=SOON)


# -- EHLO ----------------------------------------------------------------------------------------


def test_hidden_extensions_are_not_offered(plan, serve_faults, connect):
    server = serve_faults(plan)
    offered = connect(server).hello().split("\n")
    with plan.hide("STARTTLS", "size", "AUTH", "LIMITS"):
        less = connect(server).hello().split("\n")
    gone = {line[4:].split()[0] for line in offered} - {line[4:].split()[0] for line in less}
    assert gone == {"STARTTLS", "SIZE", "AUTH", "LIMITS"}
    assert [line[3] for line in less] == ["-"] * (len(less) - 1) + [" "]
    assert connect(server).hello().split("\n") == offered


def test_helo_only(plan, serve_faults, connect):
    plan.helo_only()
    server = serve_faults(plan)
    with smtplib.SMTP(*server.address) as client:
        client.ehlo_or_helo_if_needed()
        assert client.ehlo_resp is None or not client.does_esmtp
        assert client.sendmail("a@x.example", ["b@y.example"], "hello") == {}


# -- TLS -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("implicit", [False, True], ids=["STARTTLS", "implicit"])
def test_bad_certificate_fails_the_handshake(
    plan, serve_faults, connect, certificate, tmp_path, implicit
):
    server = serve_faults(plan, implicit_tls=implicit)

    def secure():
        client = connect(server)
        if implicit:
            client.secure(certificate)
        else:
            client.hello()
            client.starttls(certificate)
        return client.socket.getpeercert()

    with plan.bad_certificate(), pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        secure()
    other = make_certificate(tmp_path)
    with plan.bad_certificate(other), pytest.raises(ssl.SSLCertVerificationError):
        secure()
    with plan.drop("TLS") as dropped, pytest.raises((ssl.SSLError, OSError)):
        secure()
    assert dropped.fired == 1
    with plan.delay("TLS", 0.01) as delayed:
        assert secure()
    assert delayed.fired == 1


def test_bad_certificate_may_be_a_context(plan, serve_faults, connect, certificate, tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    other = make_certificate(tmp_path)
    context.load_cert_chain(*other)
    plan.bad_certificate(context, helo="client.*")
    client = connect(serve_faults(plan))
    client.hello()
    client.starttls(certificate, trusting(other))
    assert client.ask(EHLO).startswith("250")
    with pytest.raises(ValueError, match=r"certfile, keyfile"):
        plan.to_data()


# -- when ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "strikes"),
    [
        ({"to": "bad@*"}, True),
        ({"to": "BAD@Y.example"}, True),
        ({"to": re.compile("^bad@")}, True),
        ({"to": re.compile("y.exam")}, True),
        ({"to": {"re": "^BAD", "flags": "i"}}, True),
        ({"to": "ad@*"}, False),
        ({"to": "bad"}, False),
        ({"to": re.compile("^BAD")}, False),
        ({"sender": "a@x.example"}, True),
        ({"sender": ""}, False),
        ({"helo": "client.*", "sender": "a@*", "to": "*"}, True),
        ({"helo": "client.*", "sender": "b@*", "to": "*"}, False),
        ({"user": "ann"}, True),
        ({"user": "a"}, False),
    ],
)
@pytest.mark.parametrize("command", ["RCPT", "EOM"])
def test_patterns_say_whom_it_hits(plan, serve_faults, connect, command, when, strikes):
    fault = plan.fail(command, 450, **when)
    client = connect(serve_faults(plan))
    client.hello()
    assert client.ask(WAY["AUTH"][-1]).startswith("235 ")
    for line in (MAIL, RCPT, "RCPT TO:<bad@y.example>", "DATA", "hello\r\n."):
        client.ask(line)
    assert bool(fault.fired) == strikes


def test_null_sender_is_an_empty_pattern(plan, serve_faults, connect):
    plan.fail("MAIL", 550, sender="")
    client = connect(serve_faults(plan))
    client.hello()
    assert client.ask("MAIL FROM:<>").startswith("550 ")
    assert client.ask(MAIL).startswith("250 ")


def test_who_has_no_user_or_transaction_matches_no_pattern(plan, serve_faults, connect):
    plan.fail("NOOP", 450, user="*")
    plan.fail("NOOP", 451, sender="*")
    plan.fail("NOOP", 452, to="*")
    client = connect(serve_faults(plan))
    client.hello()
    assert client.ask("NOOP").startswith("250 ")
    client.ask(MAIL)
    assert client.ask("NOOP").startswith("451 ")


@pytest.mark.parametrize(
    ("command", "when"),
    [("HELO", {"helo": "client.*"}), ("EHLO", {"helo": "client.*"}), ("AUTH", {"user": "ANN"})],
)
def test_what_the_command_brings_can_be_matched(plan, serve_faults, connect, command, when):
    plan.fail(command, 450, **when)
    assert reply_to(connect(serve_faults(plan)), command).startswith("450 ")


def noops(client, count):
    """Say NOOP so often; give the codes."""
    return [client.ask("NOOP")[:3] for _ in range(count)]


def test_skip_and_times_count(plan, serve_faults, connect):
    plan.fail("NOOP", 450, skip=1, times=2)
    client = connect(serve_faults(plan))
    client.hello()
    assert noops(client, 5) == ["250", "450", "450", "250", "250"]


def test_first_that_is_due_decides_and_the_others_are_not_asked(plan, serve_faults, connect):
    plan.fail("NOOP", 450, times=1)
    plan.fail("NOOP", 451, times=1)
    waits = plan.delay("NOOP", 0)
    client = connect(serve_faults(plan))
    client.hello()
    assert noops(client, 3) == ["450", "451", "250"]
    assert waits.fired == 3


def test_counts_are_those_of_all_sessions(plan, serve_faults, connect):
    server = serve_faults(plan)
    clients = [connect(server) for _ in range(4)]
    for client in clients:
        client.hello()
    plan.fail("NOOP", 450, skip=10, times=30)
    codes = []
    threads = [
        threading.Thread(target=lambda client=client: codes.extend(noops(client, 20)))
        for client in clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == ["250"] * 50 + ["450"] * 30


def test_two_servers_may_share_a_plan(plan, serve_faults, connect):
    plan.fail("NOOP", 450, times=1)
    one, other = (connect(serve_faults(plan)) for _ in range(2))
    for client in (one, other):
        client.hello()
    assert [*noops(one, 1), *noops(other, 1)] == ["450", "250"]


def chances(seed, serve_faults, connect, probability=0.5):
    plan = Faults(seed=seed)
    plan.chance(probability, "NOOP", 450)
    client = connect(serve_faults(plan))
    client.hello()
    return noops(client, 40)


def test_chance_with_a_seed_is_the_same_each_time(serve_faults, connect):
    first, again, other = (chances(seed, serve_faults, connect) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    # Of any version of Python.
    assert "".join("x" if code == "450" else "." for code in first) == (
        "x........x.xxx...x....x.x.x.xxxxxxx.xx.."
    )


def test_chance_has_its_ends(serve_faults, connect):
    assert set(chances(1, serve_faults, connect, 0)) == {"250"}
    assert set(chances(1, serve_faults, connect, 1)) == {"450"}


def test_faults_of_one_seed_have_their_own_luck():
    plan = Faults(seed=7)
    one, other = plan.chance(0.5, "MAIL"), plan.chance(0.5, "RCPT")
    facts = dict.fromkeys(("helo", "user", "sender", "to"), ())
    luck = [[fault.is_due(fault.on, facts) for _ in range(50)] for fault in (one, other)]
    assert luck[0] != luck[1]


def test_faults_go_when_they_are_removed(plan, serve_faults, connect):
    client = connect(serve_faults(plan))
    client.hello()
    with plan.failing("NOOP", 450) as fault:
        assert noops(client, 2) == ["450", "450"]
    assert noops(client, 1) == ["250"]
    assert fault.fired == 2
    kept = plan.fail("NOOP", 451)
    plan.fail("RSET", 452)
    assert [entry["on"] for entry in plan.to_data()] == ["NOOP", "RSET"]
    kept.remove()
    assert [entry["on"] for entry in plan.to_data()] == ["RSET"]
    gone = plan.fail("NOOP")
    plan.no_faults()
    assert gone.removed
    assert plan.to_data() == []
    assert client.ask("RSET").startswith("250 ")


def test_fault_goes_with_its_block_whatever_happens(plan):
    with pytest.raises(KeyError), plan.drop("EOM"):
        raise KeyError
    assert plan.to_data() == []


# -- handlers ------------------------------------------------------------------------------------


def test_handler_keeps_its_hooks(plan, serve_faults, connect):
    seen = []

    class Mine(SMTPHandler):
        """Mine."""

        banner = "of mine"

        def validate_recipient(self, mailbox):
            return mailbox.local != "nobody"

        def deliver(self, sender, recipients, data):
            seen.append(recipients)
            return "taken"

    made = plan.handler(Mine)
    assert (made.__name__, made.__doc__, made.delivery) == ("Mine", "Mine.", "deliver")
    plan.fail("RCPT", 450, to="bad@*")
    client = connect(serve_faults(plan, Mine))
    assert "of mine" in client.reply()
    codes = [client.ask(line)[:3] for line in (EHLO, MAIL)]
    codes += [client.ask(f"RCPT TO:<{who}@y.example>")[:3] for who in ("nobody", "bad", "b")]
    assert codes == ["250", "250", "550", "450", "250"]
    client.ask("DATA")
    assert client.ask("hello\r\n.") == "250 2.0.0 taken"
    assert seen == [["b@y.example"]]


def test_replies_of_a_handler_to_each_recipient_are_cut_as_one(plan, serve, connect):
    class Mine(SMTPHandler):
        def deliver(self, sender, recipients, data):
            return ["one", "two"]

    plan.truncate_reply("EOM", 19)
    client = connect(serve(plan.handler(Mine), lmtp=True))
    client.reply()
    for line in ("LHLO client.example", MAIL, RCPT, RCPT, "DATA"):
        client.ask(line)
    client.send(b"hello\r\n.\r\n")
    assert client.rest() == b"250 2.0.0 one\r\n250 "


def test_hooks_see_what_was_refused(plan, serve_faults, connect):
    seen = []

    class Mine(SMTPHandler):
        def session_ended(self, reason):
            seen.append(self.command.verb)

    plan.fail("NOOP", 421)
    client = connect(serve_faults(plan, Mine))
    reply_to(client, "NOOP")
    client.close()
    assert until(lambda: seen) == ["NOOP"]


def test_other_servers_of_the_handler_have_no_faults(plan, serve, connect):
    plan.fail("NOOP", 450)
    plan.handler(SMTPHandler)
    client = connect(serve())
    client.hello()
    assert client.ask("NOOP").startswith("250 ")


# -- as data -------------------------------------------------------------------------------------

DATA = [
    {"on": "RCPT", "fail": 550, "text": "5.1.1 no such user", "to": "bad@*", "times": 1},
    {"on": "MAIL", "fail": 451, "sender": {"re": "^a", "flags": "i"}, "skip": 2},
    {"on": "NOOP", "fail": 450, "chance": 0.25, "seed": 3},
    {"on": "EOM", "drop": True, "user": "ann"},
    {"on": "DATA", "delay": 0.5, "helo": "*.example"},
    {"stall": 10},
    {"on": "QUIT", "stall": 0.5},
    {"on": "EOM", "truncate_reply": True},
    {"on": "EOM", "truncate_reply": 0},
    {"on": "TLS", "bad_certificate": True},
    {"on": "EHLO", "hide": ["STARTTLS", "SIZE"]},
]


def by_methods():
    plan = Faults()
    plan.fail("rcpt", 550, "5.1.1 no such user", to="bad@*", times=1, skip=None)
    plan.fail("MAIL", sender=re.compile("^a", re.IGNORECASE), skip=2)
    plan.chance(0.25, "NOOP", 450, seed=3)
    plan.drop("EOM", user="ann")
    plan.delay("DATA", 0.5, helo="*.example")
    plan.stall(10)
    plan.stall(0.5, "QUIT")
    plan.truncate_reply("EOM")
    plan.truncate_reply("EOM", octets=0)
    plan.bad_certificate()
    plan.hide("STARTTLS", "SIZE")
    return plan


def test_every_kind_is_in_the_data():
    assert {name for entry in DATA for name in entry} >= set(KINDS)


def test_methods_data_and_json_are_one():
    assert by_methods().to_data() == Faults(DATA).to_data() == DATA
    assert Faults(json.dumps(DATA)).to_data() == DATA
    assert json.loads(json.dumps(by_methods().to_data())) == DATA


def test_seed_of_the_plan_is_in_its_data():
    (entry,) = Faults([{"on": "NOOP", "fail": 450, "chance": 0.5}], seed=9).to_data()
    assert entry["seed"] == 9


def test_data_may_name_a_certificate(certificate):
    plan = Faults([{"bad_certificate": list(certificate)}])
    assert json.loads(json.dumps(plan.to_data())) == [
        {"on": "TLS", "bad_certificate": list(certificate)}
    ]


WRONG = [
    ("nonsense", "not JSON"),
    ('{"on": "RCPT", "fail": 550}', "a list of faults"),
    ({"on": "RCPT", "fail": 550}, "a list of faults"),
    (7, "a list of faults"),
    (["RCPT"], "fault 1: a fault is a mapping"),
    ([{"stall": 1}, {"on": "RCPT"}], "fault 2: a fault has one of fail, drop"),
    ([{"on": "RCPT", "fail": 550, "drop": True}], "fail and drop"),
    ([{"on": "RCPT", "fail": 550, "until": 1}], "unknown key 'until'; the keys are: on, fail"),
    ([{"on": "RCTP", "fail": 550}], "CONNECT, HELO, EHLO, .* QUIT, not at 'RCTP'"),
    ([{"on": 7, "fail": 550}], "not at 7"),
    ([{"fail": 550}], "fail needs on, one of CONNECT"),
    ([{"on": "TLS", "fail": 550}], "not at 'TLS'"),
    ([{"on": "BDAT", "truncate_reply": 1}], "not at 'BDAT'"),
    ([{"on": "HELO", "hide": ["SIZE"]}], "hide strikes at EHLO"),
    ([{"on": "RCPT", "fail": 250}], "from 400 to 599, not 250"),
    ([{"on": "RCPT", "fail": "550"}], "from 400 to 599"),
    ([{"on": "RCPT", "fail": 600}], "from 400 to 599"),
    ([{"on": "RCPT", "fail": 550, "text": 5}], "text: a str"),
    ([{"on": "RCPT", "fail": 550, "text": "4.1.1 x"}], "no enhanced status code of a 550"),
    ([{"on": "RCPT", "drop": True, "text": "x"}], "drop has no text"),
    ([{"on": "RCPT", "drop": 1}], "drop: True, not 1"),
    ([{"on": "RCPT", "delay": -1}], "delay: seconds"),
    ([{"on": "RCPT", "delay": "1"}], "delay: seconds"),
    ([{"on": "RCPT", "delay": True}], "delay: seconds"),
    ('[{"stall": Infinity}]', "stall: octets per second"),
    ('[{"on": "RCPT", "delay": Infinity}]', "delay: seconds"),
    ('[{"on": "RCPT", "delay": NaN}]', "delay: seconds"),
    ([{"on": "RCPT", "stall": 0}], "stall: octets per second"),
    ([{"on": "RCPT", "truncate_reply": -1}], "truncate_reply: how many"),
    ([{"hide": "SIZE"}], "hide: a list of EHLO keywords"),
    ([{"hide": []}], "hide: a list of EHLO keywords"),
    ([{"hide": ["A B"]}], "hide: a list of EHLO keywords"),
    ([{"bad_certificate": ["nowhere.pem", None]}], "bad_certificate: tls: cannot load"),
    ([{"bad_certificate": "expired"}], "bad_certificate: tls: an SSLContext"),
    ([{"on": "CONNECT", "drop": True, "helo": "x"}], "CONNECT: helo is not known then"),
    (
        [{"on": "MAIL", "drop": True, "to": "x"}],
        "to is not known then; there is helo, user, sender",
    ),
    ([{"on": "RCPT", "drop": True, "to": 7}], "to: a pattern"),
    ([{"on": "RCPT", "drop": True, "to": {"re": "("}}], "to: .* is no regular expression"),
    ([{"on": "RCPT", "drop": True, "to": {"re": "x", "flags": "Q"}}], "to: a pattern"),
    ([{"on": "RCPT", "drop": True, "to": re.compile(b"x")}], "to: a pattern"),
    ([{"on": "RCPT", "drop": True, "times": 0}], "times: a number from 1 on"),
    ([{"on": "RCPT", "drop": True, "times": True}], "times: a number from 1 on"),
    ([{"on": "RCPT", "drop": True, "skip": -1}], "skip: a number from 0 on"),
    ([{"on": "RCPT", "drop": True, "chance": 1.5}], "chance: a probability"),
    ([{"on": "RCPT", "drop": True, "chance": 0.5, "seed": "x"}], "seed: a whole number"),
]


@pytest.mark.parametrize(("data", "complaint"), WRONG, ids=[str(data) for data, _ in WRONG])
def test_bad_data_says_what_is_wrong_with_which_fault(data, complaint):
    with pytest.raises(ValueError, match=complaint):
        Faults(data)


def test_bad_arguments_of_a_method_say_the_same(plan):
    with pytest.raises(ValueError, match="CONNECT, HELO, EHLO, STARTTLS, AUTH, MAIL, RCPT"):
        plan.fail("VRFY", 550)
    with pytest.raises(ValueError, match="unknown key 'from_'"):
        plan.drop("EOM", from_="x")
    assert plan.to_data() == []
