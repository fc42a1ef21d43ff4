"""What holds for any input, shown by seeded random sessions and against a slow reference."""

import base64
import random
import re

import pytest
from dialogue import Driver, split_anywhere

from smtpd_sync import Limits, Reply
from smtpd_sync.data import BARE_NEWLINE_RULES, DataDecoder
from smtpd_sync.extensions import EXTENSIONS, future_release
from smtpd_sync.rules import rules
from smtpd_sync.sasl import MECHANISMS
from smtpd_sync.session import Session
from smtpd_sync.states import State

REPLY_LINE = re.compile(rb"[2-5][0-9][0-9][ -][ -~]*\r\n")
SEEDS = range(40)
SESSIONS = 10

# -- random input, most of which is nearly right -------------------------------------------------

NAMES = ("client.example", "[192.0.2.1]", "[IPv6:::1]", "x", "a..b", "", "ü.example", "x" * 300)
LOCALS = ("a", "a.b", '"a b"', '"a\\"b"', "ü", "a..b", "", "<", "a" * 80, "postmaster")
DOMAINS = ("x.example", "X.EXAMPLE", "[192.0.2.1]", "[IPv6:::1]", "bücher.example", "-x", "")
PARAMETERS = (
    "SIZE=10",
    "SIZE=99999999",
    "SIZE",
    "BODY=8BITMIME",
    "BODY=7BIT",
    "BODY=9BIT",
    "SMTPUTF8",
    "SMTPUTF8=1",
    "FUTURE=1",
    "RET=FULL",
    "ENVID=a+2Bb",
    "REQUIRETLS",
    "MT-PRIORITY=3",
    "BY=120;R",
    "HOLDFOR=60",
    "HOLDUNTIL=2024-01-01T00:00:00Z",
    "AUTH=<>",
    "NOTIFY=NEVER",
    "BODY=BINARYMIME",
    "=",
    "",
)
NOISE = (
    b"\r",
    b"\n",
    b"\r\n",
    b"\0",
    b".",
    b"\r\n.",
    b"\r\n.\r\n",
    b"\n.\n",
    b"\n.\r\n",
    b"\r.\r",
    b" ",
    b"\t",
    b"\x80",
    b"\xff\xfe",
    b"\xc3\xa9",
    b"\x16\x03\x01",
    b":",
    b"<",
    b">",
    b"x" * 600,
    b"\x7f",
)


def mailbox(chance):
    text = f"{chance.choice(LOCALS)}@{chance.choice(DOMAINS)}"
    return chance.choice((f"<{text}>", f"<{text}>", f"<{text}>", text, f"<@r.example:{text}>"))


def greeting(chance):
    return f"{chance.choice(('EHLO', 'EHLO', 'HELO'))} {chance.choice(NAMES)}"


def mail(chance):
    words = chance.choices(PARAMETERS, k=chance.choice((0, 0, 1, 2)))
    return " ".join((f"MAIL FROM:{chance.choice((mailbox(chance), '<>'))}", *words))


def rcpt(chance):
    words = chance.choice(("", "", " NOTIFY=NEVER", " ORCPT=rfc822;b", " RRVS=1"))
    return f"RCPT TO:{chance.choice((mailbox(chance), '<b@y.example>', '<postmaster>'))}{words}"


def other(chance):
    lines = ("RSET", "NOOP", "NOOP x", "HELP", "HELP MAIL", "VRFY a", "EXPN a", "DATA", "STARTTLS")
    rare = ("QUIT", "DATA x", "WIZ", "TURN", "GET / HTTP/1.1", "Host: x", "", " ", "VRFY", "RSET x")
    return chance.choice(lines if chance.random() < 0.9 else rare)


RESPONSES = (
    b"\0tim\0secret",
    b"\0tim\0wrong",
    b"tim",
    b"secret",
    b"n,,n=tim,r=abc",
    b"c=biws,r=abcnonce,p=AAAA",
    b"tim 00112233445566778899aabbccddeeff",
    b"user=tim\1auth=Bearer t\1\1",
    b"n,a=tim,\1auth=Bearer t\1\1",
    b"",
)
PROXIES = (
    "XCLIENT ADDR=192.0.2.1 LOGIN=tim",
    "XCLIENT ADDR=IPV6:::1 HELO=x",
    "XCLIENT ADDR=a:b",
    "XCLIENT",
    "XFORWARD NAME=x SOURCE=LOCAL",
    "XFORWARD X=x",
)


def encoded(chance):
    octets = mutated(chance.choice(RESPONSES), chance)
    return base64.b64encode(octets) if chance.random() < 0.9 else chance.choice((b"*", b"="))


def auth(chance):
    """An exchange, with more or fewer responses than it takes."""
    first = b"AUTH " + chance.choice([*MECHANISMS, "NONE"]).encode()
    if chance.random() < 0.5:
        first += b" " + encoded(chance)
    return b"\r\n".join([first, *(encoded(chance) for _ in range(chance.randrange(4))), b""])


def chunk(chance):
    """A chunk, whose size is mostly that of what follows."""
    octets = bytes(chance.choices(b"ab.\r\n\0\xe9", k=chance.choice((0, 1, 5, 30))))
    size = len(octets) + chance.choice((0, 0, 0, 0, 0, 0, -1, 3))
    word = chance.choice((b"", b"", b" LAST", b" LAST", b" MORE"))
    return b"BDAT %d%s\r\n%s" % (max(size, 0), word, octets)


def chunked(chance):
    words = chance.choice((b"", b" BODY=BINARYMIME", b" BODY=8BITMIME"))
    chunks = b"".join(chunk(chance) for _ in range(chance.randrange(4)))
    return b"MAIL FROM:<a@x.example>" + words + b"\r\nRCPT TO:<b@y.example>\r\n" + chunks


def proxy(chance):
    return mutated(chance.choice(PROXIES).encode(), chance) + b"\r\n"


def line(chance):
    octets = chance.choice((greeting, mail, mail, rcpt, rcpt, other))(chance).encode()
    return mutated(octets, chance) + b"\r\n"


def body(chance):
    pieces = []
    for _ in range(chance.randrange(8)):
        text = bytes(chance.choices(b"ab. \xe9", k=chance.randrange(6)))
        ending = chance.choice((b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n"))
        pieces.append(chance.choice((b"", b"", b".", b"..")) + text + ending)
    return mutated(b"".join(pieces), chance) + b"\r\n.\r\n"


def transaction(chance):
    end = b"DATA\r\n" + body(chance)
    return b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n" + end


def mutated(octets, chance):
    """Put noise in, now and then."""
    while chance.random() < 0.15:
        at, gone = chance.randrange(len(octets) + 1), chance.choice((0, 0, 1, 3))
        octets = octets[:at] + chance.choice(NOISE) + octets[at + gone :]
    return octets


def garbage(chance):
    return bytes(chance.choices(range(256), k=chance.randrange(40)))


def conversation(chance):
    """What one client says."""
    parts = [b"EHLO client.example\r\n"] if chance.random() < 0.9 else []
    for _ in range(chance.randrange(1, 15)):
        kinds = (line, transaction, body, garbage, auth, chunk, chunked, proxy)
        make = chance.choices(kinds, (12, 5, 1, 1, 2, 2, 3, 1))[0]
        parts.append(make(chance))
    return b"".join(parts)


def greeted(octets, chance):
    """Let some speak LMTP."""
    return octets.replace(b"EHLO", b"LHLO") if chance.random() < 0.3 else octets


def random_rules(chance, **options):
    limits = Limits(
        message_size=chance.choice((None, 20, 1000)),
        text_line=chance.choice((None, 1000)),
        recipients=chance.choice((2, 1000)),
        errors=chance.choice((3, 20, 1000)),
        auth_failures=chance.choice((1, 1000)),
        auth_line=chance.choice((50, 12_288)),
        junk_commands=chance.choice((3, 100)),
    )
    options.setdefault("strict_pipelining", chance.random() < 0.5)
    options.setdefault("mechanisms", MECHANISMS if chance.random() < 0.8 else ())
    return rules(
        limits,
        starttls=chance.random() < 0.3,
        require_tls=chance.random() < 0.1,
        strict=chance.random() < 0.3,
        bare_newline=chance.choice(BARE_NEWLINE_RULES),
        auth_require_tls=chance.random() < 0.1,
        require_auth=chance.random() < 0.1,
        xclient=chance.random() < 0.5,
        lmtp=chance.random() < 0.3,
        ignore_parameters=chance.random() < 0.2,
        extensions=EVERY_EXTENSION if chance.random() < 0.8 else (),
        **options,
    )


# Without the time of day in the EHLO reply: it would not be the same twice.
EVERY_EXTENSION = (*EXTENSIONS.values(), future_release(3600)._replace(value="3600"))


@pytest.fixture(autouse=True)
def _same_nonce(monkeypatch):
    monkeypatch.setattr("smtpd_sync.authreading.new_nonce", lambda: "nonce")


class Moody(Driver):
    """Refuses at times: always the same where the session is asked the same."""

    chance = random.Random()

    def _answer(self, event):
        answer = super()._answer(event)
        mood = self.chance.random()
        if isinstance(event.argument, Reply) or mood > 0.2:
            return answer
        if event.verb == "credentials":
            self.session.user = None
        if mood < 0.005:
            return Reply(421)
        return Reply(450 if mood < 0.1 else 550, "No\r\n250 2.0.0 yes \x00\xe9" + "x" * 600)


def hold(seed, pieces, given, made=Moody):
    session = Session(given)
    driver = made(session, users={"tim": "secret"})
    driver.chance = random.Random(seed)
    said = [driver.pull()]
    said += [driver.feed(piece) for piece in pieces if piece]
    said.append(driver.feed(b""))
    return session, driver, b"".join(said)


@pytest.mark.parametrize("seed", SEEDS)
def test_session_never_raises_always_ends_and_speaks_in_lines(seed):
    chance = random.Random(seed)
    for number in range(SESSIONS):
        octets = greeted(conversation(chance), chance)
        pieces = split_anywhere(octets, chance)
        session, driver, said = hold(seed, pieces, random_rules(chance))
        where = f"seed {seed}, session {number}: {octets!r}"
        assert session.state is State.CLOSED, where
        lines = re.split(rb"(?<=\r\n)", said)
        assert lines.pop() == b"", where
        for reply_line in lines:
            assert REPLY_LINE.fullmatch(reply_line), where
            assert len(reply_line) <= 512, where
        assert driver.feed(b"NOOP\r\n") == b"", where


@pytest.mark.parametrize("seed", SEEDS)
def test_pieces_do_not_matter(seed):
    # Where input before its turn is forgiven: else it matters, and has to, when it comes. Nor is
    # STARTTLS there, which forgets the input that has come with it.
    chance = random.Random(1000 + seed)
    for number in range(SESSIONS):
        octets = conversation(chance).replace(b"STARTTLS", b"RSET")
        octets = greeted(octets, chance)
        given = random_rules(chance, strict_pipelining=False)
        _, driver, said = hold(seed, [octets], given)
        for pieces in (split_anywhere(octets, chance), [bytes([octet]) for octet in octets]):
            _, other_driver, other_said = hold(seed, pieces, given)
            where = f"seed {seed}, session {number}: {octets!r}"
            assert other_said == said, where
            assert other_driver.deliveries == driver.deliveries, where
            assert other_driver.events == driver.events, where


@pytest.mark.parametrize("seed", SEEDS)
def test_each_line_has_one_reply(seed):
    chance = random.Random(2000 + seed)
    given = rules(Limits(errors=1000), strict_pipelining=False)
    for number in range(SESSIONS):
        lines = [line(chance) for _ in range(chance.randrange(1, 15))]
        octets = b"".join(one for one in lines if b"DATA" not in one)
        _, _, said = hold(seed, [octets], given, Driver)
        replies = [one for one in said.split(b"\r\n") if one[3:4] == b" "]
        closed = replies[-1].startswith((b"221 ", b"554 5.5.0 "))
        where = f"seed {seed}, session {number}: {octets!r}"
        assert closed or len(replies) == 1 + octets.count(b"\r\n"), where


@pytest.mark.parametrize("seed", SEEDS)
def test_each_chunk_has_one_reply_and_is_no_command(seed):
    chance = random.Random(4000 + seed)
    given = rules(Limits(errors=1000), bare_newline="keep", strict_pipelining=False)
    for number in range(SESSIONS):
        sizes = chance.choices((0, 1, 7, 40), k=chance.randrange(1, 6))
        chunks = [bytes(chance.choices(b"RSET\r\n.\0", k=size)) for size in sizes]
        head = b"EHLO x\r\nMAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n"
        octets = head + b"".join(
            b"BDAT %d%s\r\n%s" % (len(one), b" LAST" * (at == len(chunks) - 1), one)
            for at, one in enumerate(chunks)
        )
        where = f"seed {seed}, session {number}: {octets!r}"
        _, driver, said = hold(seed, split_anywhere(octets, chance), given, Driver)
        replies = [one[:3] for one in said.split(b"\r\n") if one[3:4] == b" "]
        assert replies == [b"220"] + [b"250"] * (3 + len(chunks)), where
        assert [delivery.data for delivery in driver.deliveries] == [b"".join(chunks)], where


# -- mail data against a reference ---------------------------------------------------------------


def reference(wire, rule):
    """Decode mail data line by line, as RFC 5321 4.5.2 says it: content, rest, bare, longest."""
    lines, rest = [], wire
    while True:
        text, crlf, rest = rest.partition(b"\r\n")
        if not crlf:
            return None
        if text == b".":
            break
        lines.append(text[1:] if text[:1] == b"." else text)
    bare = any(octet in b"\r\n" for text in lines for octet in text)
    if rule == "normalize":
        lines = [part for text in lines for part in re.split(rb"\r|\n", text)]
    content = b"".join(text + b"\r\n" for text in lines)
    return content, rest, bare, max((len(text) + 2 for text in lines), default=0)


def decode(pieces, rule):
    decoder = DataDecoder(rule, measure_lines=True)
    content = b""
    for number, piece in enumerate(pieces, 1):
        decoded = decoder.feed(piece)
        content += decoded.content
        if decoded.rest is not None:
            rest = b"".join([decoded.rest, *pieces[number:]])
            return content, rest, decoder.bare_newlines, decoder.longest_line
    return content


@pytest.mark.parametrize("rule", BARE_NEWLINE_RULES)
@pytest.mark.parametrize("seed", SEEDS)
def test_decoder_does_what_the_reference_does(seed, rule):
    chance = random.Random(3000 + seed)
    for number in range(60):
        wire = bytes(chance.choices(b"\r\r\r\n\n\n..a", k=chance.randrange(30)))
        if chance.random() < 0.5:
            wire = wire.replace(b"\n", b"\r\n")
        where = f"seed {seed}, message {number}: {wire!r}"
        expected = reference(wire, rule)
        for _ in range(4):
            found = decode(split_anywhere(wire, chance), rule)
            if expected is None:
                # What has come is the head of what will have come.
                assert reference(wire + b"\r\n.\r\n", rule)[0].startswith(found), where
            else:
                assert found == expected, where
