r"""Dialogues as files that anyone can read, and a driver that holds them without a socket.

Dialogues of a file stand apart by blank lines. Each begins with comments, the first of which cites
its RFC and says what holds; then::

    C: EHLO client.example      the client sends this line and CRLF; several C: and R: lines in a
                                row are sent as one group (RFC 2920)
    R: \x16\x03\x01             the client sends these octets and nothing more
    S: 250 2.1.0                the server's next line is the last of its reply, and begins so
    S: 250-SIZE                 the server's next line is not the last of its reply, and begins so
    S: 250-                     all that is left of a reply of several lines
    S: (closed)                 the server closes; without it, the session is open at the end
    E: a@x.example -> b@y.example c@y.example
                                a message was delivered, with this envelope; <> is the null sender
    D: Subject: hello           ... and with this line of data and CRLF; (any) is any data

The server greets with 220 before the first line, unless that is an S: line. In C:, R: and D:
lines ``\r \n \t \\ \x00`` are octets, ``\{600*a}`` is 600 times an ``a``, and ``\{b64:a}`` is the
base64 of an ``a``, also in S: lines. A dialogue delivers what it shows and nothing else. Comments
that are directives::

    # option: bare_newline=keep     an option; with a|b the dialogue is held once with each value;
                                    mechanisms and extensions are lists: a,b
    # user: tim=secret              a user and the password
    # limit: recipients=2           one of the limits
    # hook: RCPT b@y.example 550 5.1.1 No such user
                                    what the server's owner answers to a verb, if the argument is
                                    this one, or to any argument where there is none; the verbs
                                    "connection" and "message" are the host and the delivery, in
                                    LMTP to the recipient of the argument; "credentials" and
                                    "secret" are what AUTH asks about the user of the argument
    # inside TLS: yes               TLS is there from the first octet; with the word "certificate"
                                    the client has one, with "binding" TLS has a channel binding
    # early: yes                    the first group comes before the greeting
    # feeding: whole                a group must come in one piece: the dialogue is about that
    # core only: why                not held over a socket
"""

import ast
import base64
import itertools
import pathlib
import random
import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from smtpd_sync import Limits, Peer, Reply, extensions
from smtpd_sync.envelope import TLS
from smtpd_sync.reply import AUTH_FAILED, AUTH_OK
from smtpd_sync.rules import rules
from smtpd_sync.session import END, NEED_DATA, Session
from smtpd_sync.states import State

DIRECTORY = pathlib.Path(__file__).parent / "dialogues"
HOSTNAME = "mx.example"
ANY = "(any)"

# -- reading -------------------------------------------------------------------------------------


class Hook(NamedTuple):
    """What the owner of the server answers to a verb."""

    verb: str
    argument: Optional[str]
    reply: Reply


class Exchange(NamedTuple):
    """What the client sends as one group, and what the server says to it."""

    group: bytes
    replies: List[str]
    closed: bool


class Delivery(NamedTuple):
    """A message that was delivered; ``None`` in a dialogue is anything."""

    sender: Optional[str]
    recipients: Optional[List[str]]
    data: Optional[bytes]


class Dialogue(NamedTuple):
    """One conversation and the server it is held with."""

    name: str
    title: str
    options: Dict[str, Any]
    limits: Dict[str, Any]
    users: Dict[str, str]
    hooks: List[Hook]
    directives: Dict[str, str]
    exchanges: List[Exchange]
    deliveries: List[Delivery]


_ESCAPE = re.compile(
    rb"\\(?:x([0-9a-fA-F]{2})|\{(\d+)\*([^}]*)\}|\{b64:((?:[^{}]|\{[^{}]*\})*)\}|([rnt\\]))"
)
_OCTETS = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"\\": b"\\"}
_HOOK = re.compile(r"(\w+)(?: (?!\d{3}(?: |$))(\S+))? (\d{3})(?: (\d\.\d+\.\d+))?(?: (.*))?")
_DIRECTIVE = re.compile(r"(option|limit|user|hook|inside TLS|early|feeding|core only): (.*)")
_CALL = re.compile(r"(\w+)\((\w*)\)")


def unescape(text):
    """Give the octets of a line's text."""

    def octets(match):
        code, times, again, encoded, letter = match.groups()
        if code:
            return bytes([int(code, 16)])
        if times:
            return int(times) * _ESCAPE.sub(octets, again)
        if encoded is not None:
            return base64.b64encode(_ESCAPE.sub(octets, encoded))
        return _OCTETS[letter]

    return _ESCAPE.sub(octets, text.encode())


def values(option, text):
    """Read ``value`` or ``value|value`` of an option."""
    for word in text.split("|"):
        if option == "mechanisms":
            yield tuple(word.split(","))
            continue
        if option == "extensions":
            yield extensions.check_extensions([extension(name) for name in word.split(",")])
            continue
        try:
            yield ast.literal_eval(word)
        except ValueError:
            yield word


def extension(text):
    """Give the extension of a name, or of a call such as ``future_release(3600)``."""
    call = _CALL.fullmatch(text)
    if call is None:
        return text
    make, value = getattr(extensions, call[1]), call[2]
    return make(int(value) if value.isdecimal() else value)


def read_dialogues(path):
    """Read the dialogues of a file, each as often as its options have values."""
    block, start = [], 1
    for number, line in enumerate([*path.read_text("utf-8").split("\n"), ""], 1):
        if line:
            if not block:
                start = number
            block.append(line)
        elif block:
            yield from read_dialogue(f"{path.stem}:{start}", block)
            block = []


def read_dialogue(name, lines):
    """Read one dialogue."""
    options, limits, users, hooks, directives = [], {}, {}, [], {}
    comments = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    for comment in comments[1:]:
        match = _DIRECTIVE.fullmatch(comment[2:])
        kind, text = match.groups() if match else ("", "")
        if kind == "option":
            option, _, value = text.partition("=")
            options.append(
                [(option, word, one) for word, one in zip(value.split("|"), values(option, value))]
            )
        elif kind == "limit":
            limit, _, value = text.partition("=")
            limits[limit] = ast.literal_eval(value)
        elif kind == "user":
            user, _, password = text.partition("=")
            users[user] = password
        elif kind == "hook":
            verb, argument, code, status, words = _HOOK.fullmatch(text).groups()
            hooks.append(Hook(verb, argument, Reply(int(code), words or "", status)))
        elif kind:
            directives[kind] = text
    exchanges, deliveries = read_exchanges(lines[len(comments) :], "early" in directives)
    for chosen in itertools.product(*options):
        label = "".join(f" {option}={word}" for option, word, _ in chosen)
        yield Dialogue(
            name + label,
            comments[0][2:],
            {option: value for option, _, value in chosen},
            limits,
            users,
            hooks,
            directives,
            exchanges,
            deliveries,
        )


def read_exchanges(lines, early) -> Tuple[List[Exchange], List[Delivery]]:
    exchanges: List[Exchange] = []
    deliveries: List[Delivery] = []
    previous = "S"
    if not lines[0].startswith("S:") and not early:
        exchanges.append(Exchange(b"", [f"220 {HOSTNAME}"], False))
    for line in lines:
        kind, text = line[:1], line[3:]
        assert line[1:3] in (": ", ":"), line
        if kind in "CR":
            if previous not in "CR" or not exchanges:
                exchanges.append(Exchange(b"", [], False))
            octets = unescape(text) + (b"\r\n" if kind == "C" else b"")
            exchanges[-1] = exchanges[-1]._replace(group=exchanges[-1].group + octets)
        elif kind == "S":
            if not exchanges:
                exchanges.append(Exchange(b"", [], False))
            if text == "(closed)":
                exchanges[-1] = exchanges[-1]._replace(closed=True)
            else:
                exchanges[-1].replies.append(unescape(text).decode())
        elif kind == "E":
            sender, _, recipients = text.partition(" -> ")
            sender = "" if sender == "<>" else sender
            deliveries.append(Delivery(sender, recipients.split(), b""))
        elif kind == "D":
            if previous not in "ED":
                deliveries.append(Delivery(None, None, b""))
            data = deliveries[-1].data
            more = None if text == ANY else data + unescape(text) + b"\r\n"
            deliveries[-1] = deliveries[-1]._replace(data=more)
        else:
            raise ValueError(line)
        previous = kind
    return exchanges, deliveries


def all_dialogues():
    """Give every dialogue of every file."""
    paths = sorted(DIRECTORY.glob("*.txt"))
    return [dialogue for path in paths for dialogue in read_dialogues(path)]


# -- holding -------------------------------------------------------------------------------------

ANSWERS = {
    "connection": Reply(220, f"{HOSTNAME} ESMTP"),
    "HELO": Reply(250, HOSTNAME),
    "AUTH": AUTH_OK,
    "STARTTLS": Reply(220, "Go ahead"),
    "MAIL": Reply(250, "Sender OK", "2.1.0"),
    "RCPT": Reply(250, "Recipient OK", "2.1.5"),
    "DATA": Reply(354),
    "BDAT": Reply(354),
    "message": Reply(250, "Taken"),
    "RSET": Reply(250),
    "NOOP": Reply(250),
    "QUIT": Reply(221),
    "VRFY": Reply(252),
    "EXPN": Reply(502, status="5.5.1"),
    "HELP": Reply(214, "Commands:\nHELP"),
}
"""What a server without hooks answers to what the session lets through."""


class Driver:
    """Answers the events of a session, as a handler does, and keeps what is delivered."""

    def __init__(self, session, hooks=(), users=None):
        self.session = session
        self.hooks = hooks
        self.users = users or {}
        self.events = []
        """The verbs that the session let through."""
        self.deliveries: List[Delivery] = []
        self._content: List[bytes] = []

    def feed(self, octets):
        """Let the session have octets; give what it says."""
        self.session.receive_data(octets)
        return self.pull()

    def pull(self):
        """Answer until the session needs input or is over; give what it says."""
        said = []
        while True:
            event = self.session.next_event()
            if event is END or event is NEED_DATA:
                return b"".join([*said, self.session.data_to_send()])
            if event.verb == "content":
                self._content.append(event.argument)
                continue
            self.events.append(event.verb)
            if event.verb in ("DATA", "BDAT"):
                self._content.clear()
            if event.verb == "secret":
                request = event.argument
                request.fault = self._scripted("secret", request.username)
                request.secret = self.users.get(request.username)
                continue
            self.session.reply(self._answer(event))
            said.append(self.session.data_to_send())
            if self.session.state is State.TLS:
                self.session.tls_started(TLS("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256))

    def _scripted(self, verb, argument):
        answer = None
        for hook in self.hooks:
            if hook.verb == verb and hook.argument in (None, argument):
                answer = hook.reply
        return answer

    def _answer(self, event):
        if event.verb == "message":
            return self._deliver(event.argument)
        if event.verb == "credentials":
            return self._authenticate(event.argument)
        asked = self.session.peer.address if event.verb == "connection" else event.argument
        answer = ANSWERS.get(event.verb)
        if event.verb in ("EHLO", "LHLO"):
            answer = Reply(250, "\n".join([HOSTNAME, *self.session.keywords]))
        return self._scripted(event.verb, asked) or answer

    def _authenticate(self, credentials):
        refusal = self._scripted("credentials", credentials.username)
        if refusal is not None:
            return refusal
        known = credentials.check(self.users.get(credentials.username))
        itself = credentials.authzid in ("", credentials.username)
        if not itself or not (known or credentials.verified):
            return AUTH_FAILED
        self.session.user = credentials.username
        return AUTH_OK

    def _deliver(self, fault):
        data = b"".join(self._content)
        self._content.clear()
        envelope = self.session.envelope
        if fault is not None:
            return fault
        each = [self._scripted("message", name) for name in envelope.recipients]
        each = [reply or ANSWERS["message"] for reply in each]
        taken = [name for name, reply in zip(envelope.recipients, each) if reply.code < 400]
        if taken:
            self.deliveries.append(Delivery(envelope.sender, taken, data))
        return each if self.session.rules.lmtp else each[0]


LOCALHOST = Peer("127.0.0.1", 40000)
WITH_USERS = ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN")  # as a server has them


def session_of(dialogue):
    """Give a session under the options of a dialogue."""
    options = dict(dialogue.options)
    if dialogue.users:
        options.setdefault("mechanisms", WITH_USERS)
    session = Session(rules(Limits(**dialogue.limits), hostname=HOSTNAME, **options), LOCALHOST)
    inside = dialogue.directives.get("inside TLS", "")
    if inside:
        session.tls_started(
            TLS(
                "TLSv1.3",
                "TLS_AES_256_GCM_SHA384",
                256,
                peer_certificate={"subject": ()} if "certificate" in inside else None,
                end_point=b"binding" if "binding" in inside else None,
            )
        )
    return session


def split_lines(octets, chance=None):
    return [line for line in re.split(rb"(?<=\n)", octets) if line]


def split_bytes(octets, chance):
    return [octets[at : at + 1] for at in range(len(octets))]


def split_anywhere(octets, chance):
    pieces, start = [], 0
    while start < len(octets):
        end = start + chance.choice((1, 1, 2, 3, 5, 8, 21, 80))
        pieces.append(octets[start:end])
        start = end
    return pieces


FEEDINGS = {
    "whole": lambda octets, chance: [octets],
    "lines": split_lines,
    "bytes": split_bytes,
    "random 1": split_anywhere,
    "random 2": split_anywhere,
    "random 3": split_anywhere,
}
"""How a group may come: name -> what cuts it into pieces."""


def hold(dialogue, feeding):
    """Hold a dialogue with a session, its groups cut in pieces; ``AssertionError`` if it differs.

    Gives what was said, octet for octet.
    """
    session = session_of(dialogue)
    driver = Driver(session, dialogue.hooks, dialogue.users)
    chance = random.Random(feeding)
    said = []
    for exchange in dialogue.exchanges:
        answer = b""
        if "early" in dialogue.directives and not said:
            session.receive_data(exchange.group)
            pieces = [b""]
        else:
            pieces = FEEDINGS[feeding](exchange.group, chance) or [b""]
        for piece in pieces:
            answer += driver.feed(piece) if piece else driver.pull()
        said.append(answer)
        lines = split_lines(answer)
        lines.reverse()
        expect(exchange.replies, lambda lines=lines: lines.pop() if lines else b"")
        assert not lines, f"the server says more than the dialogue: {lines}"
        assert (session.state is State.CLOSED) == exchange.closed, session.state
    assert driver.feed(b"") == b""
    assert session.state is State.CLOSED
    expect_deliveries(dialogue.deliveries, driver.deliveries)
    return b"".join(said)


def expect(replies, read_line):
    """Check what the server says, read line by line, against the S: lines of an exchange."""
    for expected in replies:
        line = read_line().decode("ascii")
        assert line.endswith("\r\n"), f"expected {expected!r}, not {line!r}"
        assert line.startswith(expected), f"expected {expected!r}, not {line!r}"
        if re.fullmatch(r"\d{3}-", expected):
            while line.startswith(expected):
                line = read_line().decode("ascii")
            assert line.startswith(expected[:3] + " "), line


def expect_deliveries(expected, found):
    """Check what was delivered against the E: and D: lines of a dialogue."""
    shown = [
        Delivery(*(have if want is not None else None for want, have in zip(delivery, actual)))
        for delivery, actual in zip(expected, found)
    ]
    assert [*shown, *found[len(shown) :]] == expected
