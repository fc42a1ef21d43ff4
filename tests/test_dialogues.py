"""The dialogues of ``dialogues/``: without a socket under every feeding, and over a real one."""

import re
import socket

import pytest
from dialogue import (
    FEEDINGS,
    HOSTNAME,
    Delivery,
    all_dialogues,
    expect,
    expect_deliveries,
    hold,
    read_dialogue,
)

from smtpd_sync import Limits, Reject, SMTPHandler, SMTPServer

DIALOGUES = all_dialogues()
DEADLINE = 20.0
MOMENT = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z")  # of FUTURERELEASE: it moves on

# The options that are a server's; what offers STARTTLS needs a handshake.
OVER_SOCKETS = [
    dialogue
    for dialogue in DIALOGUES
    if not {"core only", "inside TLS"} & set(dialogue.directives)
    and "starttls" not in dialogue.options
]

FED = [
    pytest.param(dialogue, feeding, id=f"{dialogue.name}-{feeding}")
    for dialogue in DIALOGUES
    for feeding in FEEDINGS
    if feeding == dialogue.directives.get("feeding", feeding)
]


@pytest.mark.parametrize(("dialogue", "feeding"), FED)
def test_dialogue_is_held(dialogue, feeding, monkeypatch):
    monkeypatch.setattr("smtpd_sync.authreading.new_nonce", lambda: "nonce")  # else none is alike
    pieces, whole = (MOMENT.sub(b"", hold(dialogue, each)) for each in (feeding, "whole"))
    assert pieces == whole, "the pieces change what is said"


class Scripted(SMTPHandler):
    """Answers what the hooks of a dialogue say, and keeps what is delivered."""

    def scripted(self, verb, argument):
        answer = None
        for hook in self.server.script:
            if hook.verb == verb and hook.argument in (None, argument):
                answer = hook.reply
        return answer

    def validate_host(self, address):
        return self.scripted("connection", address)

    def validate_helo(self, name):
        return self.scripted(self.command.verb, name)

    def validate_sender(self, mailbox):
        return self.scripted("MAIL", mailbox)

    def validate_recipient(self, mailbox):
        return self.scripted("RCPT", mailbox)

    def validate_data(self, sender, recipients):
        return self.scripted(self.command.verb, "")

    def verify(self, text):
        return self.scripted("VRFY", text)

    def expand(self, text):
        return self.scripted("EXPN", text)

    def deliver(self, sender, recipients, data):
        each = [self.scripted("message", recipient) for recipient in recipients]
        taken = [
            recipient
            for recipient, reply in zip(recipients, each)
            if reply is None or reply.code < 400
        ]
        if taken:
            self.server.deliveries.append(Delivery(sender, taken, data))
        return each if self.session.rules.lmtp else each[0]


class Authenticating(Scripted):
    """Lets in the users of a dialogue, and refuses those that its hooks name."""

    def authenticate(self, credentials):
        refusal = self.scripted("credentials", credentials.username)
        return super().authenticate(credentials) if refusal is None else refusal

    def secret(self, mechanism, username):
        refusal = self.scripted("secret", username)
        if refusal is not None:
            raise Reject(*refusal)
        return super().secret(mechanism, username)


@pytest.mark.parametrize("dialogue", OVER_SOCKETS, ids=lambda dialogue: dialogue.name)
def test_dialogue_is_held_over_a_socket(dialogue):
    options = {**dialogue.options, "limits": Limits(**dialogue.limits), "users": dialogue.users}
    if options.get("xclient") is True:
        options["xclient"] = ["127.0.0.0/8"]
    handler = Authenticating if dialogue.users else Scripted
    server = SMTPServer(("127.0.0.1", 0), handler, hostname=HOSTNAME, trace=False, **options)
    server.script, server.deliveries = dialogue.hooks, []
    with server:
        server.start()
        with socket.create_connection(server.address, DEADLINE) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with client.makefile("rb") as replies:
                for exchange in dialogue.exchanges:
                    if exchange.group:
                        client.sendall(exchange.group)
                    expect(exchange.replies, replies.readline)
                if not dialogue.exchanges[-1].closed:
                    client.shutdown(socket.SHUT_WR)
                assert replies.read() == b"", "the server says more than the dialogue"
    expect_deliveries(dialogue.deliveries, server.deliveries)


@pytest.mark.parametrize("dialogue", DIALOGUES, ids=lambda dialogue: dialogue.name)
def test_dialogue_cites_its_source(dialogue):
    assert re.match(
        r"(RFC \d{4} \d|RFC \d{4} [A-Z]|Design \d|Postfix \w+_README)", dialogue.title
    ), dialogue.title
    assert any(exchange.replies for exchange in dialogue.exchanges)


WRONG = {
    "another reply": "C: NOOP\nS: 251 2.",
    "a reply less": "C: NOOP",
    "a reply more": "C: NOOP\nS: 250 2.\nS: 250 2.",
    "one line for several": "C: EHLO client.example\nS: 250 ",
    "several lines for one": "C: HELO client.example\nS: 250-",
    "open, not closed": "C: QUIT\nS: 221 2.",
    "closed, not open": "C: NOOP\nS: 250 2.\nS: (closed)",
    "a delivery that was none": "C: NOOP\nS: 250 2.\nD: hello",
    "another greeting": "S: 554\nC: NOOP\nS: 250 2.",
}


@pytest.mark.parametrize("name", WRONG)
def test_dialogue_that_is_wrong_fails(name):
    (dialogue,) = read_dialogue(name, ["# RFC 5321 4.1: wrong", *WRONG[name].split("\n")])
    with pytest.raises(AssertionError):
        hold(dialogue, "whole")


MESSAGE = ["C: EHLO x", "S: 250-", "C: MAIL FROM:<a@x.example>", "C: RCPT TO:<b@y.example>"]
MESSAGE += ["C: DATA", "S: 250 2.", "S: 250 2.", "S: 354", "C: hello", "C: .", "S: 250 2."]


@pytest.mark.parametrize(
    ("shown", "right"),
    [
        ([], False),
        (["D: hello"], True),
        (["D: (any)"], True),
        (["D: hullo"], False),
        (["D: hello", "D:"], False),
        (["E: a@x.example -> b@y.example", "D: hello"], True),
        (["E: <> -> b@y.example", "D: hello"], False),
        (["E: a@x.example -> b@y.example c@y.example", "D: hello"], False),
        (["E: a@x.example -> b@y.example"], False),
        (["D: hello", "E: <> -> b@y.example"], False),
    ],
    ids=repr,
)
def test_dialogue_shows_what_is_delivered(shown, right):
    (dialogue,) = read_dialogue("message", ["# RFC 5321 3.3: a message", *MESSAGE, *shown])
    if right:
        hold(dialogue, "bytes")
        return
    with pytest.raises(AssertionError):
        hold(dialogue, "bytes")
