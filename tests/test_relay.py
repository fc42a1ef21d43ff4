"""A relay, with our own server as the next hop, and with next hops that misbehave."""

import contextlib
import io
import logging
import os
import random
import re
import socket
import subprocess
import sys
import textwrap
import threading

import pytest
from support import DEADLINE, ROOT, Client, until

from smtpd_sync import (
    Envelope,
    Limits,
    Mailbox,
    Reject,
    Reply,
    Session,
    SMTPHandler,
    future_release,
)
from smtpd_sync import nexthop as nexthop_module
from smtpd_sync.data import DataDecoder
from smtpd_sync.nexthop import connect as connect_to
from smtpd_sync.nexthop import stuffed
from smtpd_sync.relay import Relay
from smtpd_sync.relaying import hops
from smtpd_sync.rules import rules
from smtpd_sync.tls import server_context

SHORT = 0.3  # seconds that a relay waits for a next hop that will say nothing
EIGHT_BIT = "gr\u00fcn\r\n".encode()

# -- next hops -------------------------------------------------------------------------------

CLOSE, SILENT = object(), object()


class ScriptedHop:
    """A next hop that says what it was told to, whatever it hears.

    ``answers``: verb -> its reply, a list of replies for one time after the other, octets to send
    as they are, `CLOSE` or `SILENT`; ``connect`` is the greeting, ``end`` the end of mail data.
    """

    ANSWERS = {
        "connect": "220 hop.example",
        "EHLO": "250 hop.example",
        "MAIL": "250 2.1.0 ok",
        "RCPT": "250 2.1.5 ok",
        "DATA": "354 go on",
        "end": "250 2.0.0 queued as 7",
        "RSET": "250 ok",
        "QUIT": "221 bye",
    }

    def __init__(self, **answers):
        self.answers = {**self.ANSWERS, **answers}
        self.lines = []
        """What it heard, of all connections."""
        self.bodies = []
        """Mail data, as it stood on the wire."""
        self.connections = 0
        self._sockets = []
        self._threads = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)

    def _start(self, target, *arguments):
        thread = threading.Thread(target=target, args=arguments, name="hop")
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections += 1
                self._sockets.append(sock)
                self._start(self._serve, sock)

    def _serve(self, sock):
        file = sock.makefile("rb")
        with contextlib.suppress(OSError), sock, file:
            on = self._answer(sock, "connect")
            while on:
                line = file.readline()
                if not line:
                    break
                self.lines.append(line.decode("utf-8", "replace").rstrip("\r\n"))
                verb = self.lines[-1].partition(" ")[0].upper()
                on = self._answer(sock, verb)
                if verb == "DATA" and on == "354":
                    body = b""
                    while not (b"\r\n" + body).endswith(b"\r\n.\r\n"):
                        more = file.readline()
                        if not more:
                            return
                        body += more
                    self.bodies.append(body)
                    on = self._answer(sock, "end")

    def _answer(self, sock, event):
        """Answer; give what was said of it, or nothing where the connection is to be closed."""
        answer = self.answers.get(event, "500 what?")
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if answer is CLOSE:
            return ""
        if answer is SILENT:
            return "silent"
        octets = answer if isinstance(answer, bytes) else f"{answer}\r\n".encode()
        sock.sendall(octets)
        return "" if octets.startswith(b"421") else octets[:3].decode("latin-1")

    def heard(self, verb):
        """Give the lines that began with a verb."""
        return [line for line in self.lines if line.upper().startswith(verb)]

    def stop(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()


@pytest.fixture
def scripted(no_leaks):
    """Start a scripted next hop: ``scripted(RCPT="550 no")``."""
    hops = []

    def make(**answers):
        hops.append(ScriptedHop(**answers))
        return hops[-1]

    yield make
    for hop in hops:
        hop.stop()


class Hop(SMTPHandler):
    """A next hop of our own, which keeps envelopes and refuses whose name says so."""

    def setup(self):
        super().setup()
        self.server.seen.append(self)

    def validate_sender(self, mailbox):
        if mailbox.local == "no":
            raise Reject(553, "not from you", "5.1.8")

    def validate_recipient(self, mailbox):
        code, _, status = mailbox.local.partition("-")
        if code.isdigit():
            raise Reject(int(code), f"no {mailbox.local}", status or None)

    def deliver_envelope(self, envelope):
        if self.server.verdict is not None:
            return self.server.verdict
        self.server.kept.append((envelope, envelope.content))
        return f"queued as {len(self.server.kept)}"


@pytest.fixture
def our_hop(serve):
    """Start our own server as a next hop; ``.kept`` are (envelope, content), ``.seen`` handlers."""

    def make(**options):
        options.setdefault("hostname", "hop.example")
        server = serve(Hop, trace=False, **options)
        server.kept, server.seen, server.verdict = [], [], None
        return server

    return make


@pytest.fixture
def front(serve):
    """Serve a relay as a battery: ``front(hop, tls="require", server={"lmtp": True})``."""

    def make(hop, server=(), **options):
        options.setdefault("timeout", DEADLINE)
        relay = Relay(options.pop("host", "127.0.0.1"), hop.port, **options)
        return serve(deliver=relay, **{"hostname": "front.example", "trace": False, **dict(server)})

    return make


@pytest.fixture
def after(serve):
    """Serve a relay as a delivery hook only."""

    def make(hop, server=(), **options):
        options.setdefault("timeout", DEADLINE)
        relay = Relay("127.0.0.1", hop.port, **options)
        made = {"hostname": "front.example", "trace": False, **dict(server)}
        return serve(deliver_envelope=relay.deliver_envelope, **made)

    return make


MESSAGE = b"Subject: hi\r\n\r\n.hello\r\n..\r\n"


def send(client, *recipients, sender="a@x.example", data=MESSAGE, mail="", rcpt=""):
    """Send a message, greeted already; give all the replies."""
    said = [client.ask(f"MAIL FROM:<{sender}>{mail}")]
    said += [client.ask(f"RCPT TO:<{recipient}>{rcpt}") for recipient in recipients]
    said.append(client.ask("DATA"))
    if said[-1].startswith("354"):
        client.send(data.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        said.append(client.reply())
    return said


def ready(connect, server):
    client = connect(server)
    client.hello()
    return client


# -- in step with the client -----------------------------------------------------------------


def test_mail_goes_through(our_hop, front, connect):
    hop = our_hop()
    client = ready(connect, front(hop))
    said = send(client, "b@y.example", '"c d"@y.example')
    assert said[1:3] == ["250 2.1.5 Recipient OK"] * 2
    assert said[-1] == "250 2.0.0 queued as 1"
    ((envelope, content),) = hop.kept
    assert (envelope.sender, envelope.recipients) == (
        "a@x.example",
        ["b@y.example", '"c d"@y.example'],
    )
    assert content == MESSAGE
    assert envelope.helo == "front.example"


def test_our_name_can_be_given(our_hop, front, connect):
    hop = our_hop()
    send(ready(connect, front(hop, hostname="out.example")), "b@y.example")
    assert hop.kept[0][0].helo == "out.example"


def test_null_sender_goes_through(our_hop, front, connect):
    hop = our_hop()
    send(ready(connect, front(hop)), "b@y.example", sender="")
    assert hop.kept[0][0].sender == ""


def test_refusal_of_a_recipient_is_heard_before_the_body(our_hop, front, connect):
    hop = our_hop()
    client = ready(connect, front(hop))
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    assert client.ask("RCPT TO:<550-5.7.27@y.example>") == "550 5.7.27 no 550-5.7.27"
    assert client.ask("RCPT TO:<452-4.5.3@y.example>") == "452 4.5.3 no 452-4.5.3"
    assert client.ask("RCPT TO:<c@y.example>").startswith("250 ")
    assert hop.kept == []
    assert client.ask("DATA").startswith("354 ")
    client.send(b"hi\r\n.\r\n")
    assert client.reply().startswith("250 ")
    assert hop.kept[0][0].recipients == ["b@y.example", "c@y.example"]


def test_refusal_of_the_sender_is_heard(our_hop, front, connect):
    hop = our_hop()
    client = ready(connect, front(hop))
    assert client.ask("MAIL FROM:<no@x.example>") == "553 5.1.8 not from you"
    assert send(client, "b@y.example")[-1].startswith("250 ")
    assert len(hop.seen) == 1


def test_no_recipient_is_left(our_hop, front, connect):
    client = ready(connect, front(our_hop()))
    assert send(client, "550@y.example", "551@y.example")[1:] == [
        "550 5.0.0 no 550",
        "551 5.0.0 no 551",
        "503 5.5.1 Need a valid recipient first",
    ]


@pytest.mark.parametrize("code", [450, 451, 452, 552, 554, 571])
def test_refusal_of_the_message_is_heard(our_hop, front, connect, code):
    hop = our_hop()
    client = ready(connect, front(hop))
    hop.verdict = Reply(code, "I do not want it", f"{code // 100}.7.1")
    assert send(client, "b@y.example")[-1] == f"{code} {code // 100}.7.1 I do not want it"
    hop.verdict = None
    assert send(client, "b@y.example")[-1].startswith("250 ")
    assert len(hop.seen) == 1


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("550 no", "550 5.0.0 no"),
        ("550 5.1.1 no", "550 5.1.1 no"),
        ("550 5.1.1", "550 5.1.1 Requested action not taken: mailbox unavailable"),
        ("550", "550 5.0.0 Requested action not taken: mailbox unavailable"),
        ("550 4.1.1 no", "550 5.0.0 4.1.1 no"),
        ("550 5.01.1 no", "550 5.0.0 no"),
        ("550-5.1.1 one\r\n550-5.1.1 two\r\n550 5.1.1 three", "550-5.1.1 one\n550-5.1.1 two\n"
         "550 5.1.1 three"),
        ("550-one\r\n550 5.1.1 two", "550-5.1.1 one\n550 5.1.1 two"),
        (b"550 a\0b\x1b[2J \xff\xc3\xa4\r\n", "550 5.0.0 a?b?[2J ??"),
        (b"550 bare\rreturn\n", "550 5.0.0 bare?return"),
    ],
)  # fmt: skip
def test_refusal_as_the_client_hears_it(scripted, front, connect, said, heard):
    client = ready(connect, front(scripted(RCPT=said)))
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask("RCPT TO:<b@y.example>") == heard


def test_long_refusal_is_cut(scripted, front, connect):
    text = "\r\n".join([*(f"550-{'x' * 400}" for _ in range(100)), "550 end"])
    client = ready(connect, front(scripted(RCPT=text)))
    client.ask("MAIL FROM:<a@x.example>")
    assert len(client.ask("RCPT TO:<b@y.example>")) < 3_000


def test_one_connection_for_many_transactions(our_hop, front, connect):
    hop = our_hop()
    client = ready(connect, front(hop))
    for number in range(5):
        assert send(client, f"b{number}@y.example")[-1].startswith("250 ")
    assert [envelope.recipients for envelope, _ in hop.kept] == [
        [f"b{number}@y.example"] for number in range(5)
    ]
    assert len(hop.seen) == 1


def test_nobody_is_asked_before_mail(scripted, front, connect):
    hop = scripted()
    client = ready(connect, front(hop))
    client.ask("NOOP")
    client.ask("QUIT")
    assert client.ended()
    assert hop.connections == 0


@pytest.mark.parametrize("how", ["RSET", "EHLO client.example", "HELO client.example"])
def test_abandoned_transaction_is_abandoned_there(our_hop, scripted, front, connect, how):
    hop, listener = our_hop(), scripted()
    for next_hop in (hop, listener):
        client = ready(connect, front(next_hop))
        client.ask("MAIL FROM:<a@x.example>")
        client.ask("RCPT TO:<gone@y.example>")
        client.ask(how)
        assert send(client, "b@y.example", sender="c@x.example")[-1].startswith("250 ")
    ((envelope, _),) = hop.kept
    assert (envelope.sender, envelope.recipients) == ("c@x.example", ["b@y.example"])
    assert len(hop.seen) == listener.connections == 1
    assert [line.split()[0].upper() for line in listener.lines] == [
        *("EHLO", "MAIL", "RCPT", "RSET", "MAIL", "RCPT", "DATA")
    ]


@pytest.mark.parametrize("politely", [True, False])
def test_end_of_the_session_is_quit(scripted, front, connect, politely):
    hop = scripted()
    client = ready(connect, front(hop))
    send(client, "b@y.example")
    if politely:
        client.ask("QUIT")
    client.close()
    until(lambda: hop.heard("QUIT"), "QUIT")


def test_next_hop_that_will_not_part_holds_nobody_up(scripted, front, connect):
    hop = scripted(QUIT=SILENT)
    server = front(hop)
    client = ready(connect, server)
    send(client, "b@y.example")
    client.close()
    until(lambda: hop.heard("QUIT"), "QUIT")
    until(lambda: not server.crowd.sessions, "the end of the session", 10)


@pytest.mark.parametrize("last_words", [CLOSE, "421 too long idle", b"421 4.4.2 idle\r\n"])
def test_connection_that_died_idle_is_opened_again(scripted, front, connect, last_words):
    # To RSET it answers no more; without a transaction left open, to MAIL.
    for left_open in (True, False):
        answers = {"RSET": last_words} if left_open else {"MAIL": ["250 ok", last_words, "250 ok"]}
        hop = scripted(**answers)
        client = ready(connect, front(hop))
        if left_open:
            client.ask("MAIL FROM:<a@x.example>")
            client.ask("RSET")
        else:
            send(client, "b@y.example")
        assert send(client, "c@y.example")[-1] == "250 2.0.0 queued as 7"
        assert hop.connections == 2


def test_connection_closed_while_idle_is_opened_again(our_hop, front, connect, caplog):
    hop = our_hop()
    client = ready(connect, front(hop))
    assert send(client, "b@y.example")[-1].startswith("250 ")
    hop.seen[0].abort()
    until(lambda: not hop.crowd.sessions, "the end of that connection")
    assert send(client, "c@y.example")[-1].startswith("250 ")
    assert len(hop.kept) == len(hop.seen) == 2
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_connection_is_opened_again_once_only(scripted, front, connect, caplog):
    hop = scripted(MAIL=["250 ok", CLOSE])
    client = ready(connect, front(hop))
    send(client, "b@y.example")
    assert client.ask("MAIL FROM:<a@x.example>").startswith("451 4.4.2 ")
    assert hop.connections == 2
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage().startswith("next_hop=127.0.0.1:")


def test_postmaster_is_asked_for_when_the_message_has_come(our_hop, front, connect):
    hop = our_hop()
    client = ready(connect, front(hop))
    assert send(client, "b@y.example", "Postmaster", "postmaster@front.example")[-1].startswith(
        "250 "
    )
    assert hop.kept[0][0].recipients == ["b@y.example", "postmaster", "postmaster@front.example"]


def test_postmaster_refused_there_is_reported(scripted, front, connect):
    hop = scripted(RCPT=["250 ok", "550 5.1.1 nobody here", "250 ok"])
    client = ready(connect, front(hop))
    assert send(client, "b@y.example", "postmaster")[-1] == "250 2.0.0 queued as 7"
    until(lambda: len(hop.bodies) == 2, "the report")
    assert b"Final-Recipient: rfc822; postmaster\r\nAction: failed" in hop.bodies[1]
    assert hop.heard("RCPT")[-1] == "RCPT TO:<a@x.example>"


def test_postmaster_alone_refused_there(scripted, front, connect):
    hop = scripted(RCPT="550 5.1.1 nobody here")
    assert send(ready(connect, front(hop)), "postmaster")[-1] == "550 5.1.1 nobody here"
    assert hop.bodies == []


def test_who_is_refused_by_another_battery_gets_nothing(our_hop, connect, serve):
    class Picky:
        def validate_recipient(self, mailbox):
            return mailbox.local != "bad"

        def deliver(self, sender, recipients, data):
            pass

    hop = our_hop()
    server = serve(deliver=[Relay("127.0.0.1", hop.port), Picky()])
    client = ready(connect, server)
    said = send(client, "b@y.example", "bad@y.example", "c@y.example")
    assert [reply[:3] for reply in said] == ["250", "250", "550", "250", "354", "250"]
    ((envelope, _),) = hop.kept
    assert envelope.recipients == ["b@y.example", "c@y.example"]


def test_transaction_that_cannot_be_done_again(scripted, connect, serve):
    class Picky:
        def validate_recipient(self, mailbox):
            return mailbox.local != "bad"

        def deliver(self, sender, recipients, data):
            raise AssertionError("nothing is to be delivered")

    hop = scripted(MAIL=["250 ok", "450 4.1.0 not twice"])
    server = serve(deliver=[Relay("127.0.0.1", hop.port), Picky()])
    said = send(ready(connect, server), "b@y.example", "bad@y.example")
    assert said[-1] == "450 4.1.0 not twice"
    assert hop.bodies == []


@pytest.mark.parametrize("hook", ["validate_sender", "validate_recipient"])
def test_hook_of_the_user_takes_the_place_of_ours(our_hop, connect, serve, hook):
    hop = our_hop()
    server = serve(deliver=Relay("127.0.0.1", hop.port), **{hook: lambda mailbox: None})
    assert send(ready(connect, server), "b@y.example")[-1].startswith("250 ")
    assert hop.kept[0][0].recipients == ["b@y.example"]
    said = send(ready(connect, server), "550@y.example")
    assert "550 5.0.0 no 550" in said


def test_open_transaction_of_another_message_is_not_taken_for_ours(our_hop, connect, serve):
    hop = our_hop()
    relay = Relay("127.0.0.1", hop.port, rewrite_to="box@y.example")
    server = serve(deliver=relay, validate_sender=lambda mailbox: None)
    client = ready(connect, server)
    client.ask("MAIL FROM:<gone@x.example>")
    client.ask("RCPT TO:<gone@y.example>")
    client.ask("RSET")
    assert send(client, "postmaster")[-1].startswith("250 ")
    ((envelope, _),) = hop.kept
    assert (envelope.sender, envelope.recipients) == ("a@x.example", ["box@y.example"])


# -- a next hop that is not there ------------------------------------------------------------


def still_there(client):
    return client.ask("NOOP") == "250 2.0.0 OK"


def test_next_hop_down(our_hop, front, connect):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    hop = type("Down", (), {"port": port})
    client = ready(connect, front(hop))
    for _ in range(2):
        assert client.ask("MAIL FROM:<a@x.example>") == "451 4.4.1 The next hop cannot be reached"
        assert still_there(client)


def test_name_that_is_none(our_hop, front, connect):
    for host in ("host.invalid", "x" * 80):
        client = ready(connect, front(type("Hop", (), {"port": 25}), host=host))
        assert client.ask("MAIL FROM:<a@x.example>").startswith("451 4.4.1 ")


def test_next_hop_that_comes_back(scripted, front, connect):
    hop = scripted(connect=["421 busy", "554 no service", "220 hop.example"])
    client = ready(connect, front(hop))
    for _ in range(2):
        assert client.ask("MAIL FROM:<a@x.example>").startswith("451 4.4.")
    assert send(client, "b@y.example")[-1].startswith("250 ")


MISBEHAVIOUR = {
    "421": ("421 4.3.2 going down", "4.4."),
    "closes": (CLOSE, "4.4."),
    "silent": (SILENT, "4.4.2"),
    "garbage": (b"\x16\x03\x01 what is this\r\n", "4.5.0"),
    "no line": (b"2", "4.4.2"),
    "bad code": ("999 hello", "4.5.0"),
    "1yz": ("150 hello", "4.5.0"),
    "other code": ("250-ok\r\n550 no", "4.5.0"),
    "no code": ("ok", "4.5.0"),
    "endless line": (b"250 " + b"x" * 200_000, "4.5.0"),
    "endless lines": (b"250-x\r\n" * 30_000, "4.5.0"),
}
STAGES = {"connect": 0, "EHLO": 0, "MAIL": 0, "RCPT": 1, "DATA": -1, "end": -1}


@pytest.mark.parametrize("way", ["in step", "after"])
@pytest.mark.parametrize("what", MISBEHAVIOUR)
@pytest.mark.parametrize("stage", STAGES)
def test_misbehaviour_is_451(scripted, front, after, connect, monkeypatch, stage, what, way):
    monkeypatch.setattr(nexthop_module, "PATIENCE_AT_END", 1)
    answer, status = MISBEHAVIOUR[what]
    hop = scripted(**{stage: answer})
    timeout = SHORT if what in ("silent", "no line") else DEADLINE
    client = ready(connect, (front if way == "in step" else after)(hop, timeout=timeout))
    said = send(client, "b@y.example")
    # Where the machine is slow, a short time-out may come before its time.
    exact = timeout == DEADLINE and way == "in step"
    refused = [reply for reply in said if reply.startswith("451")][0 if not exact else -1]
    assert re.match(rf"451 {re.escape(status)}", refused), said
    if exact:
        assert refused == said[STAGES[stage]]
    assert said[-1][:3] in ("451", "503")
    assert still_there(client)
    assert client.ask("QUIT") == "221 2.0.0 Bye"


@pytest.mark.parametrize(
    ("stage", "answer"),
    [
        ("MAIL", "354 go"),
        ("RCPT", "354 go"),
        ("DATA", "250 ok"),
        ("DATA", "334 x"),
        ("end", "354 go"),
    ],
)
def test_reply_that_does_not_fit_is_no_promise(scripted, front, connect, stage, answer):
    client = ready(connect, front(scripted(**{stage: answer})))
    said = send(client, "b@y.example")
    assert any(reply.startswith("451 4.5.0") for reply in said)
    assert not said[-1].startswith("250")


def test_slow_reply_has_one_deadline(scripted, front, connect):
    # A line now and then would feed a time-out for each read for ever.
    hop = scripted(MAIL=b"250-")
    ended = threading.Event()

    def drip():
        until(lambda: hop.heard("MAIL"))
        with contextlib.suppress(OSError):
            while not ended.wait(0.1):
                hop._sockets[0].sendall(b"x\r\n250-")

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        client = ready(connect, front(hop, timeout=1))
        assert client.ask("MAIL FROM:<a@x.example>").startswith("451 4.4.2 ")
    finally:
        ended.set()
        dripping.join()


def test_end_of_mail_data_is_given_more_time(scripted, front, connect):
    hop = scripted(end=SILENT)
    client = ready(connect, front(hop, timeout=1))
    thread = threading.Timer(1.5, lambda: hop._sockets[0].sendall(b"250 2.0.0 at last\r\n"))
    thread.start()
    try:
        assert send(client, "b@y.example")[-1] == "250 2.0.0 at last"
    finally:
        thread.join()


def test_lost_transaction_is_lost_to_its_end(scripted, front, connect):
    hop = scripted(RCPT=["250 ok", CLOSE, "250 ok"])
    client = ready(connect, front(hop))
    said = send(client, "b@y.example", "c@y.example", "d@y.example")
    assert [reply[:9] for reply in said] == [
        *("250 2.1.0", "250 2.1.5", "451 4.4.2", "451 4.4.2"),
        *("354 Start", "451 4.4.2"),
    ]
    assert hop.connections == 1
    assert hop.bodies == []
    assert send(client, "b@y.example")[-1] == "250 2.0.0 queued as 7"
    assert hop.connections == 2


def test_connection_lost_in_a_transaction_is_a_warning(scripted, front, connect, caplog):
    hop = scripted(RCPT=["250 ok", CLOSE])
    client = ready(connect, front(hop))
    send(client, "b@y.example")
    assert caplog.records == []
    send(client, "c@y.example")
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "it closed the connection" in record.getMessage()


def test_next_hop_that_refuses_to_forget(scripted, front, connect):
    hop = scripted(RSET="451 no")
    client = ready(connect, front(hop))
    for number in range(3):
        client.ask("MAIL FROM:<gone@x.example>")
        client.ask("RSET")
        assert send(client, "b@y.example")[-1].startswith("250 ")
        assert hop.connections == 2 + number


def test_next_hop_that_ends_in_the_middle_of_mail_data(our_hop, front, connect):
    hop = our_hop(limits=Limits(message_size=1_000_000))
    client = ready(connect, front(hop))
    # Far beyond its limit it closes, and hears no more.
    said = send(client, "b@y.example", data=(b"x" * 998 + b"\r\n") * 20_000)
    assert said[-1] in (
        "451 4.4.2 The connection to the next hop was lost",
        "552 5.3.4 Message size exceeds the limit",
    )
    assert hop.kept == []
    assert send(client, "b@y.example")[-1].startswith("250 ")


def test_commands_are_not_held_back(scripted):
    hop = connect_to(Relay("127.0.0.1", scripted().port), "front.example")
    try:
        assert hop.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    finally:
        hop.part()


@pytest.mark.parametrize("where", ["RCPT", "MAIL"])
def test_reply_that_nobody_asked_for_is_no_promise(scripted, front, connect, where):
    # Else each reply would be taken for that to the next command, and the last for a promise.
    hop = scripted(**{where: b"250 ok\r\n250 ok\r\n"}, DATA="554 no")
    client = ready(connect, front(hop))
    said = send(client, "b@y.example", "c@y.example")
    assert "451 4.4.2 The connection to the next hop was lost" in said
    assert not said[-1].startswith("250")


def test_late_reply_that_nobody_asked_for_is_no_promise(scripted, front, connect):
    hop = scripted(RCPT=["250 ok", "550 no"])
    client = ready(connect, front(hop))
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    hop._sockets[0].sendall(b"250 ok\r\n")
    # Loopback: what was sent before is there before.
    assert client.ask("RCPT TO:<c@y.example>").startswith("451 4.4.2 ")


def test_reply_and_farewell_at_once_are_a_reply(scripted, front, connect):
    hop = scripted(end=[b"250 2.0.0 kept\r\n421 4.3.2 bye\r\n", "250 2.0.0 again"])
    client = ready(connect, front(hop))
    assert send(client, "b@y.example")[-1] == "250 2.0.0 kept"
    assert send(client, "b@y.example")[-1] == "250 2.0.0 again"
    assert hop.connections == 2


def test_next_hop_without_ehlo(scripted, front, connect):
    hop = scripted(EHLO="502 what?", HELO="250 hop.example")
    client = ready(connect, front(hop))
    assert send(client, "b@y.example", mail=" SIZE=100 BODY=7BIT")[-1].startswith("250 ")
    assert hop.lines[:3] == [
        *("ehlo front.example", "helo front.example", "MAIL FROM:<a@x.example>"),
    ]


def test_next_hop_that_refuses_our_name(scripted, front, connect):
    hop = scripted(EHLO="550 not you", HELO="550 not you")
    client = ready(connect, front(hop))
    assert client.ask("MAIL FROM:<a@x.example>").startswith("451 4.4.1 ")


# -- mail data -------------------------------------------------------------------------------


def reference(content):
    """Say what DATA is followed by, in the simplest way."""
    content = re.sub(rb"\r\n|\r|\n", b"\r\n", content)
    if not content.endswith(b"\r\n") and content:
        content += b"\r\n"
    return re.sub(rb"(\A|\r\n)\.", rb"\1..", content) + b".\r\n"


class Pieces(io.BytesIO):
    """A file that gives as little as it likes."""

    def __init__(self, content, sizes):
        super().__init__(content)
        self.sizes = sizes

    def read(self, size=-1):
        return super().read(min(size, next(self.sizes)))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\r\n", b".", b".\r\n", b"..", b"a", b"a\r\n.", b"a\r\n.\r\nb", b"a\r\n.\r\n", b"\r",
        b"\n.\n", b"\r.\r", b"a\n.\r\nb", b"a\r\n\r\n..\r\n.b\r\n", b"\r\n.\r\n.\r\n.", b"a\r",
        b"a\r\r\n.\r\n", b".\r\n.\r\n.\r\n",
    ],
)  # fmt: skip
def test_dots_are_doubled_wherever_it_is_cut(content):
    for size in (1, 2, 3, 4, 100):
        octets = b"".join(stuffed(Pieces(content, iter([size] * 200))))
        assert octets == reference(content)


def test_dots_in_random_content():
    chance = random.Random(5321)
    for _ in range(3_000):
        words = [b"\r\n", b".", b"\r", b"\n", b"a", b"\r\n.", b"\r\n.\r\n", b"\n.\n"]
        content = b"".join(chance.choice(words) for _ in range(chance.randrange(12)))
        sizes = (chance.randrange(1, 6) for _ in range(1_000))
        octets = b"".join(stuffed(Pieces(content, sizes)))
        assert octets == reference(content)
        decoded, rest = DataDecoder().feed(octets)
        assert rest == b""
        assert re.sub(rb"\r\n|\r|\n", b"\r\n", content).rstrip(b"\r\n") == decoded.rstrip(b"\r\n")


def test_large_mail_is_the_same_there(our_hop, front, connect):
    chance = random.Random(1)
    lines = [b"." * chance.randrange(4) + b"x" * chance.randrange(200) for _ in range(20_000)]
    data = b"\r\n".join(lines) + b"\r\n"
    hop = our_hop()
    client = ready(connect, front(hop))
    client.ask("MAIL FROM:<a@x.example>")
    client.ask("RCPT TO:<b@y.example>")
    client.ask("DATA")
    client.send(b"".join(stuffed(io.BytesIO(data))))
    assert client.reply().startswith("250 ")
    assert hop.kept[0][1] == data


@pytest.mark.parametrize("bare", [b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\n", b"\r.\r\n"])
def test_nothing_is_smuggled(our_hop, front, connect, bare):
    """Even where our own side keeps bare newlines, and the next hop took them for an end."""
    hop = our_hop(bare_newline="keep")
    client = ready(connect, front(hop, server={"bare_newline": "keep"}))
    evil = b"hi" + bare + b"MAIL FROM:<evil@x.example>\r\n"
    client.ask("MAIL FROM:<a@x.example>")
    client.ask("RCPT TO:<b@y.example>")
    client.ask("DATA")
    client.send(evil + b".\r\n")
    assert client.reply().startswith("250 ")
    ((_, content),) = hop.kept
    assert content.count(b"\r\n") == content.count(b"\n") == content.count(b"\r") == 3
    assert b"\r\nMAIL FROM:<evil@x.example>\r\n" in content


class Breaking(io.BytesIO):
    """A file on a disk that fails in the middle."""

    def read(self, size=-1):
        if self.tell() > 0:
            raise OSError(5, "the disk is broken")
        return super().read(10)


def envelope_of(content, *recipients, lmtp=False, sender="a@x.example", mail=None):
    envelope = Envelope(
        Session(rules(lmtp=lmtp, hostname="front.example")), Mailbox.parse(sender), mail or {}
    )
    envelope.recipients = [Mailbox.parse(recipient) for recipient in recipients]
    envelope.recipient_parameters = [{} for _ in recipients]
    envelope.sink = content if hasattr(content, "read") else io.BytesIO(content)
    return envelope


def test_message_that_cannot_be_read_has_no_end_there(scripted, monkeypatch):
    hop = scripted(EHLO="250-hop.example\r\n250 8BITMIME")
    monkeypatch.setattr("smtpd_sync.relaying.hops", lambda content: 0)
    envelope = envelope_of(Breaking(b"Subject: x\r\n\r\nhello\r\n"), "b@y.example")
    with pytest.raises(OSError, match="broken"):
        Relay("127.0.0.1", hop.port).deliver_envelope(envelope)
    until(lambda: hop.heard("DATA"))
    hop.stop()
    assert hop.bodies == []


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
def test_memory_stays_flat(no_leaks, tmp_path):
    """A message of 100 MiB takes less than 16 MiB."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        received = []

        def swallow():
            sock, _ = listener.accept()
            with sock, sock.makefile("rb") as file:
                sock.sendall(b"220 hop\r\n")
                for reply in (b"250-hop\r\n250 8BITMIME\r\n", b"250\r\n", b"250\r\n", b"354\r\n"):
                    file.readline()
                    sock.sendall(reply)
                count, tail = 0, b""
                while not tail.endswith(b"\r\n.\r\n"):
                    data = file.read1(262_144)
                    if not data:
                        return
                    count, tail = count + len(data), (tail + data)[-5:]
                received.append(count)
                sock.sendall(b"250 taken\r\n")
                file.readline()
                sock.sendall(b"221\r\n")

        thread = threading.Thread(target=swallow)
        thread.start()
        program = f"""
            import io, sys
            from smtpd_sync import Envelope, Mailbox, Session
            from smtpd_sync.relay import Relay

            def most():
                with open("/proc/self/status") as file:
                    return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

            def relay(size):
                envelope = Envelope(Session(), Mailbox.parse("a@x.example"))
                envelope.recipients = [Mailbox.parse("b@y.example")]
                with open({str(tmp_path / "mail")!r}, "w+b") as file:
                    file.write(b"Subject: x\\r\\n\\r\\n")
                    for _ in range(size // 65_520):
                        file.write((b"." * 76 + b"\\r\\n") * 840)
                    envelope.sink = file
                    relay = Relay("127.0.0.1", {listener.getsockname()[1]})
                    return relay.deliver_envelope(envelope)

            import smtpd_sync.relaying, smtpd_sync.nexthop, encodings.idna
            before = most()
            print(relay(100 * 1_048_576), most() - before)
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            capture_output=True,
            text=True,
            timeout=6 * DEADLINE,
            cwd=ROOT,
        )
        thread.join(DEADLINE)
    assert done.returncode == 0, done.stderr
    said, grown = done.stdout.split()
    assert said == "taken"
    assert received[0] > 100 * 1_048_576
    assert int(grown) < 16 * 1024


# -- parameters ------------------------------------------------------------------------------

ALL = (
    *("DSN", "RRVS", "MT-PRIORITY", "DELIVERBY", "REQUIRETLS"),
    future_release(max_interval=1_000_000),
)
OFFERS = (
    "250-hop.example\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n250-RRVS\r\n"
    "250-MT-PRIORITY\r\n250-FUTURERELEASE 1000000 x\r\n250-DELIVERBY\r\n250-BINARYMIME\r\n"
    "250 REQUIRETLS"
)
PARAMETERS = [
    # said to us; what goes where all is offered; and where nothing is: the same, or a refusal
    ("MAIL", "SIZE=123", "SIZE=123", ""),
    ("MAIL", "BODY=8BITMIME", "BODY=8BITMIME", ""),
    ("MAIL", "body=7bit", "BODY=7bit", ""),
    ("MAIL", "BODY=BINARYMIME", "554 5.6.1", "554 5.6.1"),  # CHUNKING is not offered
    ("MAIL", "SMTPUTF8", "SMTPUTF8", "550 5.6.7"),
    ("MAIL", "RET=HDRS ENVID=QQ+2B1+20x", "RET=HDRS ENVID=QQ+2B1+20x", ""),
    ("MAIL", "MT-PRIORITY=-3", "MT-PRIORITY=-3", ""),
    ("MAIL", "HOLDFOR=60", "HOLDFOR=60", "555 5.5.4"),
    ("MAIL", "BY=100;N", "555 5.5.4", "555 5.5.4"),
    ("RCPT", "NOTIFY=SUCCESS,DELAY", "NOTIFY=SUCCESS,DELAY", ""),
    ("RCPT", "ORCPT=rfc822;Jo+2Bx@y.example", "ORCPT=rfc822;Jo+2Bx@y.example", ""),
    ("RCPT", r"ORCPT=utf-8;\x{E4}@y.example", r"ORCPT=utf-8;\x{E4}@y.example", ""),
    ("RCPT", "RRVS=2026-01-01T00:00:00Z", "RRVS=2026-01-01T00:00:00Z", ""),
]


@pytest.mark.parametrize("offered", [True, False])
@pytest.mark.parametrize("row", PARAMETERS, ids=lambda row: row[1])
def test_parameters(scripted, front, connect, row, offered):
    verb, said, where_offered, where_not = row
    expected = where_offered if offered else where_not
    hop = scripted(EHLO=OFFERS) if offered else scripted()
    client = ready(connect, front(hop, server={"extensions": ALL}))
    mail, rcpt = (f" {said}", "") if verb == "MAIL" else ("", f" {said}")
    replies = send(client, "b@y.example", mail=mail, rcpt=rcpt)
    if expected[:1].isdigit():
        assert replies[0].startswith(expected)
        assert hop.heard("MAIL") == []
        return
    line = hop.heard(verb)[0]
    assert line.partition("> ")[2] == expected
    if "BINARY" not in said:
        assert replies[-1].startswith("250 ")


def test_requiretls_needs_verified_tls_all_the_way(our_hop, front, connect, certificate):
    server = {"extensions": ALL, "tls": certificate}
    plain, secure = our_hop(), our_hop(tls=certificate, extensions=["REQUIRETLS"])
    for hop, trust, expected in (
        (plain, None, "550 5.7.30"),
        (secure, None, "550 5.7.30"),  # encrypted, but with whom nobody knows
        (secure, trusting_context(certificate), "250 2.1.0"),
    ):
        client = connect(front(hop, server, tls=trust))
        client.hello()
        client.starttls(certificate)
        client.ask("EHLO client.example")
        assert client.ask("MAIL FROM:<a@x.example> REQUIRETLS").startswith(expected)
    assert "REQUIRETLS" in secure.seen[-1].session.envelope.sender_parameters


def test_parameters_arrive_as_they_were_meant(our_hop, front, connect):
    hop = our_hop(extensions=ALL)
    client = ready(connect, front(hop, {"extensions": ALL}))
    mail = " BODY=8BITMIME SMTPUTF8 RET=FULL ENVID=a+2Bb MT-PRIORITY=4 HOLDFOR=9"
    rcpt = " NOTIFY=FAILURE ORCPT=rfc822;B+2B@y.example"
    sender, recipient = "\u00e4@x.example", "\u00f6@\u00fc.example"
    said = send(client, recipient, sender=sender, mail=mail, rcpt=rcpt, data=EIGHT_BIT)
    assert said[-1].startswith("250 ")
    ((envelope, content),) = hop.kept
    assert (envelope.sender, envelope.recipients) == (sender, [recipient])
    assert dict(envelope.sender_parameters) == {
        "BODY": "8BITMIME",
        "SMTPUTF8": True,
        "RET": "FULL",
        "ENVID": "a+b",
        "MT-PRIORITY": "4",
        "HOLDFOR": "9",
    }
    assert [dict(each) for each in envelope.recipient_parameters] == [
        {"NOTIFY": "FAILURE", "ORCPT": "rfc822;B+@y.example"}
    ]
    assert content == EIGHT_BIT


@pytest.mark.parametrize("utf8", [True, False])
def test_original_recipient_in_utf8(our_hop, front, connect, utf8):
    hop = our_hop(extensions=["DSN"])
    client = ready(connect, front(hop, {"extensions": ["DSN"]}))
    original = "utf-8;\u00f6+x@y.example"
    rcpt, mail = f" ORCPT={original} NOTIFY=NEVER", " SMTPUTF8" * utf8
    assert send(client, "b@y.example", mail=mail, rcpt=rcpt)[-1].startswith("250 ")
    (parameters,) = hop.kept[0][0].recipient_parameters
    # Without SMTPUTF8 it may not stand in a command (RFC 6533 3).
    assert parameters == {"NOTIFY": "NEVER", **({"ORCPT": original} if utf8 else {})}


def test_size_is_that_of_the_message_once_it_has_come(our_hop, after, connect):
    hop = our_hop()
    send(ready(connect, after(hop)), "b@y.example", mail=" SIZE=7")
    assert hop.kept[0][0].sender_parameters["SIZE"] == str(len(MESSAGE))


def test_8bit_mail_to_a_next_hop_of_7bit(scripted, front, connect):
    hop = scripted()
    client = ready(connect, front(hop))
    for mail in ("", " BODY=8BITMIME"):
        said = send(client, "b@y.example", mail=mail, data=b"x" * 300_000 + EIGHT_BIT)
        assert said[-1] == "554 5.6.3 The next hop takes 7bit mail only"
    assert hop.heard("DATA") == []
    assert send(client, "b@y.example", mail=" BODY=8BITMIME")[-1].startswith("250 ")


def test_binary_mail(our_hop, front, connect):
    content = bytes(range(256)) * 10 + b"\n.\r\n.\r"
    hop = our_hop()
    client = ready(connect, front(hop))
    client.ask("MAIL FROM:<a@x.example> BODY=BINARYMIME")
    client.ask("RCPT TO:<b@y.example>")
    client.send(b"BDAT %d LAST\r\n" % len(content) + content)
    assert client.reply() == "250 2.0.0 queued as 1"
    ((envelope, kept),) = hop.kept
    assert kept == content
    assert envelope.binary
    hop.verdict = Reply(554, "no", "5.7.1")
    client.ask("MAIL FROM:<a@x.example> BODY=BINARYMIME")
    client.ask("RCPT TO:<b@y.example>")
    client.send(b"BDAT 1 LAST\r\nx")
    assert client.reply() == "554 5.7.1 no"
    hop.verdict = None
    assert send(client, "b@y.example")[-1] == "250 2.0.0 queued as 2"


# -- recipients that are one -----------------------------------------------------------------


@pytest.mark.parametrize("way", ["in step", "after"])
@pytest.mark.parametrize("unique", [True, False])
def test_duplicate_recipients(our_hop, front, after, connect, unique, way):
    hop = our_hop()
    client = ready(connect, (front if way == "in step" else after)(hop, unique=unique))
    said = send(client, "b@y.example", "B@y.example", "b@Y.Example", '"b"@y.example')
    assert [reply[:3] for reply in said] == ["250"] * 5 + ["354", "250"]
    expected = ["b@y.example", "B@y.example"]
    assert hop.kept[0][0].recipients == (expected if unique else [*expected, *["b@y.example"] * 2])


@pytest.mark.parametrize("way", ["in step", "after"])
@pytest.mark.parametrize("unique", [True, False])
def test_every_recipient_becomes_one(our_hop, front, after, connect, unique, way):
    hop = our_hop()
    make = front if way == "in step" else after
    server = make(hop, unique=unique, rewrite_to="Box@Trap.example")
    said = send(ready(connect, server), "b@y.example", "550@y.example", "postmaster")
    assert [reply[:3] for reply in said] == ["250"] * 4 + ["354", "250"]
    assert hop.kept[0][0].recipients == ["Box@trap.example"] * (1 if unique else 3)


def test_what_is_known_of_a_recipient_is_not_said_of_another(our_hop, front, connect):
    hop = our_hop(extensions=ALL)
    server = front(hop, {"extensions": ALL}, rewrite_to="box@trap.example")
    rcpt = " RRVS=2026-01-01T00:00:00Z NOTIFY=NEVER"
    assert send(ready(connect, server), "b@y.example", rcpt=rcpt)[-1].startswith("250 ")
    assert hop.kept[0][0].recipient_parameters == [{"NOTIFY": "NEVER"}]


# -- loops -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (b"", 0),
        (b"Received: x\r\n\tReceived: y\r\nReceived: z\r\n\r\nReceived: body\r\n", 2),
        (b"RECEIVED : x\r\nX-Received: y\r\nreceived:z\r\n", 2),
        (b"\r\nReceived: x\r\n", 0),
        (b"Received: x\n\nReceived: y\n", 1),
        (b"Subject: x\r\n" + b"Received: x\r\n" * 150 + b"\r\n", 150),
    ],
)
def test_hops_are_counted_in_the_header(content, count):
    assert hops(io.BytesIO(content)) == count


@pytest.mark.parametrize("way", ["in step", "after"])
def test_mail_in_a_loop_is_refused(our_hop, front, after, connect, way):
    hop = our_hop()
    client = ready(connect, (front if way == "in step" else after)(hop))
    field = b"Received: from x\r\n\tby y; now\r\n"
    assert send(client, "b@y.example", data=field * 99 + b"\r\n" + field)[-1].startswith("250 ")
    said = send(client, "b@y.example", data=field * 100 + b"\r\n")
    assert said[-1] == "554 5.4.6 Too many hops: the message is in a loop"
    assert len(hop.kept) == 1
    assert send(client, "b@y.example")[-1].startswith("250 ")


# -- as a delivery hook only -----------------------------------------------------------------


def report_in(hop):
    """Give the content of the report that came behind the message."""
    (_, (envelope, content)) = hop.kept
    assert envelope.sender == ""
    return content, envelope


def test_mixed_result_is_accepted_and_reported(our_hop, after, connect, caplog):
    hop = our_hop(extensions=["DSN"])
    client = ready(connect, after(hop, {"extensions": ["DSN"]}))
    said = send(
        *(client, "b@y.example", "550-5.1.1@y.example", "c@y.example"),
        mail=" RET=HDRS ENVID=QQ1",
        rcpt=" ORCPT=rfc822;Old@z.example",
    )
    assert [reply[:3] for reply in said] == ["250"] * 4 + ["354", "250"]
    assert hop.kept[0][0].recipients == ["b@y.example", "c@y.example"]
    assert hop.kept[0][1] == MESSAGE
    content, envelope = report_in(hop)
    assert envelope.recipients == ["a@x.example"]
    assert content.count(b"\r\nAction: ") == 1
    for line in (
        *(b"From: Mail Delivery System <MAILER-DAEMON@front.example>", b"To: <a@x.example>"),
        *(b"Original-Envelope-Id: QQ1", b"Reporting-MTA: dns; front.example"),
        *(b"Original-Recipient: rfc822; Old@z.example", b"Action: failed", b"Status: 5.1.1"),
        b"Final-Recipient: rfc822; 550-5.1.1@y.example",
        b"Diagnostic-Code: smtp; 550 5.1.1 no 550-5.1.1",
        *(b"Remote-MTA: dns; [127.0.0.1]", b"Subject: hi"),
    ):
        assert b"\r\n" + line + b"\r\n" in b"\r\n" + content
    assert b"hello" not in content
    (record,) = [record for record in caplog.records if "refused=" in record.getMessage()]
    assert "refused=<550-5.1.1@y.example>" in record.getMessage()


def test_report_may_return_it_all(our_hop, after, connect):
    hop = our_hop()
    client = ready(connect, after(hop, {"extensions": ["DSN"]}))
    send(client, "b@y.example", "550@y.example", mail=" RET=FULL", data=b"\r\n" + EIGHT_BIT)
    content, envelope = report_in(hop)
    assert EIGHT_BIT in content
    assert envelope.sender_parameters["BODY"] == "8BITMIME"


def test_report_to_a_sender_in_utf8(our_hop, after, connect):
    hop = our_hop()
    client = ready(connect, after(hop))
    send(client, "b@y.example", "550@y.example", sender="\u00e4@x.example", mail=" SMTPUTF8")
    _, envelope = report_in(hop)
    assert envelope.recipients == ["\u00e4@x.example"]
    assert envelope.smtputf8


@pytest.mark.parametrize(
    ("sender", "rcpt", "reported"),
    [
        ("a@x.example", "", True),
        ("", "", False),
        ("a@x.example", " NOTIFY=NEVER", False),
        ("a@x.example", " NOTIFY=DELAY", False),
        ("a@x.example", " NOTIFY=DELAY,FAILURE", True),
    ],
)
def test_who_gets_a_report(our_hop, after, connect, sender, rcpt, reported):
    hop = our_hop(extensions=["DSN"])
    client = ready(connect, after(hop, {"extensions": ["DSN"]}))
    said = send(client, "b@y.example", "550@y.example", sender=sender, rcpt=rcpt)
    assert said[-1].startswith("250 ")
    assert len(hop.kept) == 1 + reported


def test_refusal_for_now_holds_all_back(our_hop, after, connect):
    """So that who was accepted does not get it twice, and who was not gets it at last."""
    hop = our_hop()
    client = ready(connect, after(hop))
    said = send(client, "b@y.example", "550@y.example", "450-4.2.2@y.example", "451@y.example")
    assert said[-1] == "450 4.2.2 no 450-4.2.2"
    assert hop.kept == []
    assert send(client, "b@y.example")[-1].startswith("250 ")


@pytest.mark.parametrize(
    ("recipients", "expected"),
    [
        (("551-5.1.6@y.example", "550@y.example"), "551 5.1.6 no 551-5.1.6"),
        (("550@y.example", "452-4.5.3@y.example", "450@y.example"), "452 4.5.3 no 452-4.5.3"),
    ],
)
def test_all_refused(our_hop, after, connect, recipients, expected):
    hop = our_hop()
    assert send(ready(connect, after(hop)), *recipients)[-1] == expected
    assert hop.kept == []


def test_sender_refused_afterwards(our_hop, after, connect):
    client = ready(connect, after(our_hop()))
    assert send(client, "b@y.example", sender="no@x.example")[-1] == "553 5.1.8 not from you"


@pytest.mark.parametrize(
    ("sender", "expected"),
    [
        ("554@x.example", "550 5.0.0 no 550"),
        ("450@x.example", "451 4.4.0 The sender cannot be told what was refused, try again later"),
    ],
)
def test_report_that_would_not_be_taken_holds_the_mail_back(
    our_hop, after, connect, sender, expected
):
    # Else nobody would ever hear of who was refused.
    hop = our_hop()
    said = send(ready(connect, after(hop)), "b@y.example", "550@y.example", sender=sender)
    assert said[-1] == expected
    assert hop.kept == []


def test_message_refused_is_not_reported(scripted, after, connect):
    hop = scripted(RCPT=["250 ok", "550 no", "250 ok"], end=["554 5.7.1 spam", "250 ok"])
    said = send(ready(connect, after(hop)), "b@y.example", "c@y.example")
    assert said[-1] == "554 5.7.1 spam"
    until(lambda: len(hop.heard("QUIT")) == 2, "the end of both connections")
    assert len(hop.bodies) == 1


def test_report_lost_behind_the_message_is_logged(scripted, after, connect, caplog):
    hop = scripted(RCPT=["250 ok", "550 no", "250 ok"], end=["250 2.0.0 kept", "451 no"])
    said = send(ready(connect, after(hop)), "b@y.example", "c@y.example")
    assert said[-1] == "250 2.0.0 kept"
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "report_to=<a@x.example> verdict=" in record.getMessage()


def test_report_survives_a_long_message(scripted, after, connect, caplog):
    """Its own connection waits meanwhile, and may end."""
    hop = scripted(
        RCPT=["250 ok", "550 no", "250 ok"],
        DATA=["354 go", CLOSE, "354 go"],
        end=["250 2.0.0 kept", "250 2.0.0 told"],
    )
    said = send(ready(connect, after(hop)), "b@y.example", "c@y.example")
    assert said[-1] == "250 2.0.0 kept"
    assert len(hop.bodies) == 2
    assert b"Action: failed" in hop.bodies[1]
    assert hop.connections == 3
    assert not [record for record in caplog.records if record.levelno == logging.ERROR]


def test_report_goes_where_all_mail_goes(scripted, after, connect):
    hop = scripted(RCPT=["250 ok", "550 no", "250 ok"])
    server = after(hop, rewrite_to="box@trap.example", unique=False)
    assert send(ready(connect, server), "b@y.example", "c@y.example")[-1].startswith("250 ")
    assert set(hop.heard("RCPT")) == {"RCPT TO:<box@trap.example>"}
    assert len(hop.bodies) == 2


@pytest.mark.parametrize("way", ["in step", "after"])
@pytest.mark.parametrize(("dsn", "reported"), [(True, 0), (False, 1)])
def test_success_is_reported_where_the_next_hop_does_not(
    our_hop, front, after, connect, dsn, reported, way
):
    hop = our_hop(extensions=["DSN"] if dsn else [])
    client = ready(connect, (front if way == "in step" else after)(hop, {"extensions": ["DSN"]}))
    said = send(client, "b@y.example", rcpt=" NOTIFY=SUCCESS,FAILURE")
    assert said[-1] == "250 2.0.0 queued as 1"
    assert len(hop.kept) == 1 + reported
    if reported:
        content, _ = report_in(hop)
        assert b"\r\nAction: relayed\r\nStatus: 2.0.0\r\n" in content
        assert b"queued as 1" in content
    assert send(client, "b@y.example", rcpt=" NOTIFY=FAILURE")[-1].startswith("250 ")
    assert len(hop.kept) == 2 + reported


@pytest.mark.parametrize("answers", [{"MAIL": ["250 ok", "550 no"]}, {"connect": ["220 x", "554"]}])
def test_success_that_cannot_be_reported_is_success(scripted, front, connect, caplog, answers):
    client = ready(connect, front(scripted(**answers), {"extensions": ["DSN"]}))
    said = send(client, "b@y.example", rcpt=" NOTIFY=SUCCESS")
    assert said[-1] == "250 2.0.0 queued as 7"
    assert any("report_refused=" in record.getMessage() for record in caplog.records)


def lmtp(client, *recipients):
    client.reply()
    client.ask("LHLO client.example")
    said = send(client, *recipients)
    return [said[-1], *(client.reply() for _ in recipients[1:])]


def test_each_recipient_has_its_verdict_in_lmtp(our_hop, after, connect):
    hop = our_hop()
    client = connect(after(hop, {"lmtp": True}))
    said = lmtp(client, "b@y.example", "550-5.1.1@y.example", "450@y.example", "b@y.example")
    assert said == [
        *("250 2.0.0 queued as 1", "550 5.1.1 no 550-5.1.1", "450 4.0.0 no 450"),
        "250 2.0.0 queued as 1",
    ]
    assert [envelope.recipients for envelope, _ in hop.kept] == [["b@y.example"]]


def test_all_refused_in_lmtp(our_hop, after, connect):
    said = lmtp(connect(after(our_hop(), {"lmtp": True})), "550@y.example", "450@y.example")
    assert said == ["550 5.0.0 no 550", "450 4.0.0 no 450"]


def test_message_refused_in_lmtp(our_hop, after, connect):
    hop = our_hop()
    hop.verdict = Reply(554, "spam", "5.7.1")
    said = lmtp(connect(after(hop, {"lmtp": True})), "b@y.example", "550@y.example")
    assert said == ["554 5.7.1 spam", "550 5.0.0 no 550"]


def test_next_hop_down_in_lmtp(scripted, after, connect):
    said = lmtp(connect(after(scripted(MAIL=CLOSE), {"lmtp": True})), "b@y.example", "c@y.example")
    assert [reply[:9] for reply in said] == ["451 4.4.2"] * 2


def test_in_step_in_lmtp(our_hop, front, connect):
    hop = our_hop()
    client = connect(front(hop, {"lmtp": True}))
    said = lmtp(client, "b@y.example", "c@y.example")
    assert said == ["250 2.0.0 queued as 1"] * 2


def test_envelope_by_hand(our_hop):
    """As a spool calls it: from its own thread, with receipts for each recipient."""
    hop = our_hop()
    relay = Relay("127.0.0.1", hop.port)
    envelope = envelope_of(b"hi", "b@y.example", "550@y.example", lmtp=True)
    assert relay.deliver_envelope(envelope) == ["queued as 1", Reply(550, "no 550")]
    assert hop.kept[0][1] == b"hi\r\n"
    until(lambda: not hop.crowd.sessions, "the end of the connection")


def test_envelope_that_cannot_be(our_hop):
    relay = Relay("127.0.0.1", our_hop().port)
    with pytest.raises(Reject) as caught:  # it declares no SMTPUTF8
        relay.deliver_envelope(envelope_of(b"hi", "\u00e4@y.example"))
    assert caught.value.reply == Reply(553, "Non-ASCII address without SMTPUTF8", "5.6.7")
    evil = envelope_of(b"hi", "b@y.example")
    evil.recipients = [Mailbox("b", "y.example>\r\nRSET")]
    with pytest.raises(ValueError, match="newline"):
        relay.deliver_envelope(evil)


# -- TLS and AUTH ----------------------------------------------------------------------------


def trusting_context(certificate):
    import ssl

    return ssl.create_default_context(cafile=certificate[0])


NOT_SECURE = "451 4.7.5 There is no trusted TLS to the next hop"


def test_starttls_where_it_is_offered(our_hop, front, connect, certificate):
    hop = our_hop(tls=certificate)
    assert send(ready(connect, front(hop)), "b@y.example")[-1].startswith("250 ")
    assert hop.kept[0][0].tls is not None  # though nobody vouches for the certificate


def test_no_starttls_where_it_is_unwanted(our_hop, front, connect, certificate):
    hop = our_hop(tls=certificate)
    assert send(ready(connect, front(hop, tls=False)), "b@y.example")[-1].startswith("250 ")
    assert hop.kept[0][0].tls is None


def test_required_tls(our_hop, front, connect, certificate):
    hop = our_hop(tls=certificate)
    client = ready(connect, front(hop, tls=trusting_context(certificate)))
    assert send(client, "b@y.example")[-1].startswith("250 ")
    assert hop.kept[0][0].tls is not None


@pytest.mark.parametrize("how", ["not trusted", "other name", "not offered"])
def test_required_tls_that_cannot_be(our_hop, front, connect, certificate, how):
    hop = our_hop(tls=None if how == "not offered" else certificate)
    tls = "require" if how == "not trusted" else trusting_context(certificate)
    options = {"host": "127.0.0.2"} if how == "other name" else {}
    if how == "other name" and sys.platform != "linux":
        pytest.skip("needs 127.0.0.2")
    if how == "other name":
        hop = our_hop(address=("127.0.0.2", 0), tls=certificate)
    client = ready(connect, front(hop, tls=tls, **options))
    assert client.ask("MAIL FROM:<a@x.example>") == NOT_SECURE
    assert still_there(client)
    assert all(handler.session.envelope is None for handler in hop.seen)


def test_implicit_tls(our_hop, front, connect, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
    hop = our_hop(tls=certificate, implicit_tls=True)
    client = ready(connect, front(hop, tls="implicit"))
    assert send(client, "b@y.example")[-1].startswith("250 ")
    assert hop.kept[0][0].tls is not None
    monkeypatch.delenv("SSL_CERT_FILE")
    client = ready(connect, front(hop, tls="implicit"))
    assert client.ask("MAIL FROM:<a@x.example>") == NOT_SECURE


STARTTLS = "250-hop.example\r\n250 STARTTLS"


@pytest.mark.parametrize("answer", ["454 not now", b"220 go\r\n", CLOSE])
def test_tls_that_fails_where_it_is_not_required(scripted, front, connect, answer):
    hop = scripted(EHLO=STARTTLS, STARTTLS=answer)
    client = ready(connect, front(hop))
    said = send(client, "b@y.example")
    if answer is CLOSE:
        assert said[0].startswith("451 4.4.2")  # it is the connection that is bad
        return
    # Behind its 220 it speaks no TLS: the next connection goes without (RFC 7435).
    assert said[-1] == "250 2.0.0 queued as 7"
    assert hop.connections == (1 if answer == "454 not now" else 2)


@pytest.mark.parametrize("answer", ["454 not now", b"220 go\r\n", "502 what?"])
def test_tls_that_fails_where_it_is_required(scripted, front, connect, answer):
    hop = scripted(EHLO=STARTTLS, STARTTLS=answer)
    client = ready(connect, front(hop, tls="require"))
    assert client.ask("MAIL FROM:<a@x.example>") == NOT_SECURE
    assert hop.heard("MAIL") == []


def test_words_in_the_clear_behind_starttls_are_not_heard(scripted, front, connect):
    hop = scripted(EHLO=STARTTLS, STARTTLS=b"220 go\r\n250 hop.example\r\n")
    for tls in (None, "require"):
        client = ready(connect, front(hop, tls=tls))
        assert client.ask("MAIL FROM:<a@x.example>").startswith("451 4.5.0 ")
        assert hop.heard("MAIL") == []


def test_kept_connection_over_tls(our_hop, front, connect, certificate):
    hop = our_hop(tls=certificate)
    client = ready(connect, front(hop, tls=trusting_context(certificate)))
    for _ in range(3):
        assert send(client, "b@y.example")[-1].startswith("250 ")
    assert len(hop.seen) == 1
    hop.seen[0].abort()
    until(lambda: not hop.crowd.sessions, "the end of that connection")
    assert send(client, "b@y.example")[-1].startswith("250 ")


USERS = {"jo": "correct horse"}


def test_auth_over_tls(our_hop, front, connect, certificate):
    hop = our_hop(tls=certificate, users=USERS, require_auth=True)
    auth = ("jo", "correct horse")
    client = ready(connect, front(hop, tls=trusting_context(certificate), auth=auth))
    assert send(client, "b@y.example")[-1].startswith("250 ")
    assert hop.kept[0][0].user == "jo"


def test_auth_in_the_clear_where_it_may(our_hop, front, connect):
    hop = our_hop(users=USERS, auth_require_tls=False)
    client = ready(connect, front(hop, tls=False, auth=("jo", "correct horse")))
    assert send(client, "b@y.example")[-1].startswith("250 ")
    assert hop.kept[0][0].user == "jo"


@pytest.mark.parametrize("offered", [True, False])
def test_auth_that_is_refused(our_hop, front, connect, caplog, offered):
    hop = our_hop(users=USERS, auth_require_tls=False) if offered else our_hop()
    caplog.set_level(logging.DEBUG)
    client = ready(connect, front(hop, tls=False, auth=("jo", "my secret")))
    said = client.ask("MAIL FROM:<a@x.example>")
    assert said == "451 4.7.0 The next hop does not let us in"
    assert still_there(client)
    assert "secret" not in caplog.text
    assert any(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.parametrize(
    ("user", "given", "passed"),
    [("jo", "<>", "<>"), ("jo", "e+3Dmc2@x.example", "e=mc2@x.example"), (None, "<>", None)],
)
def test_submitter_is_told_where_we_are_known(our_hop, front, connect, user, given, passed):
    hop = our_hop(users=USERS, auth_require_tls=False)
    auth = ("jo", "correct horse") if user else None
    ours = {"users": {"me": "mine"}, "auth_require_tls": False}
    client = ready(connect, front(hop, ours, tls=False, auth=auth))
    assert client.ask("AUTH PLAIN AG1lAG1pbmU=").startswith("235 ")
    send(client, "b@y.example", mail=f" AUTH={given}")
    assert hop.kept[0][0].sender_parameters.get("AUTH") == passed


# -- many at once ----------------------------------------------------------------------------


def test_one_relay_serves_many(our_hop, front):
    hop = our_hop()
    server = front(hop)
    failures = []

    def work(number):
        try:
            with Client(server) as client:
                client.hello()
                for turn in range(8):
                    data = b"%d.%d\r\n" % (number, turn)
                    said = send(client, "b@y.example", "550@y.example", data=data)
                    assert said[-1].startswith("250 "), said
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * DEADLINE)
    assert failures == []
    assert sorted(content for _, content in hop.kept) == sorted(
        b"%d.%d\r\n" % (number, turn) for number in range(12) for turn in range(8)
    )
    assert len(hop.seen) == 12


# -- what cannot be --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("",), {}, "host"),
        ((None,), {}, "host"),
        (("a b",), {}, "host"),
        (("a\nb",), {}, "host"),
        (("mx.example", 0), {}, "port"),
        (("mx.example", 65_536), {}, "port"),
        (("mx.example", "25"), {}, "port"),
        (("mx.example", True), {}, "port"),
        (("mx.example",), {"tls": True}, "tls"),
        (("mx.example",), {"tls": "required"}, "tls"),
        (("mx.example",), {"tls": 0}, "tls"),
        (("mx.example",), {"timeout": 0}, "timeout"),
        (("mx.example",), {"timeout": None}, "timeout"),
        (("mx.example",), {"rewrite_to": "nobody"}, "no mailbox"),
        (("mx.example",), {"rewrite_to": "\u00e4@x.example"}, "ASCII"),
        (("mx.example",), {"hostname": "no name"}, "hostname"),
        (("mx.example",), {"hostname": "\u00e4.example"}, "hostname"),
        (("mx.example",), {"auth": ("jo", "pw")}, "auth needs tls"),
        (("mx.example",), {"auth": ("jo",), "tls": False}, "user, password"),
        (("mx.example",), {"auth": "jo:pw", "tls": False}, "user, password"),
        (("mx.example",), {"auth": ("jo", ""), "tls": False}, "user, password"),
        (("mx.example",), {"auth": ("jo", "p\u00e4"), "tls": False}, "user, password"),
    ],
)
def test_what_cannot_be(arguments, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        Relay(*arguments, **options)
    assert "pw" not in str(caught.value)


def test_context_of_a_server_cannot_be(certificate):
    with pytest.raises(ValueError, match="server"):
        Relay("mx.example", tls=server_context(*certificate))


def test_password_is_not_shown():
    relay = Relay("mx.example", tls="require", auth=("jo", "secret"))
    assert repr(relay) == "Relay('mx.example', 25)"


def test_smtplib_is_not_imported_before_it_is_needed():
    program = "import sys, smtpd_sync.relay; sys.exit('smtplib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode == 0
