"""SMTP smuggling (CVE-2023-51764 and its kin): every false end of mail data, by table.

**Only CRLF . CRLF ends mail data** (RFC 5321 4.1.1.4). What stands before and behind the dot is all
that can be made of a few octets; what should come of it is worked out octet by octet, by a reader
that shares nothing with the decoder.
"""

import itertools

import pytest
from dialogue import HOSTNAME, Driver

from smtpd_sync import Limits
from smtpd_sync.rules import rules
from smtpd_sync.session import Session

RULES = ("normalize", "reject", "keep")
FEEDINGS = {
    "whole": lambda wire: [wire],
    # The false end, which stands in the first octets, comes octet by octet.
    "bytes": lambda wire: [*(wire[at : at + 1] for at in range(40)), wire[40:]],
}
END = b"\r\n.\r\n"
SMUGGLED = b"MAIL FROM:<evil@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\ntwo\r\n"


def strings(alphabet, longest):
    """Give every string of up to ``longest`` octets of an alphabet."""
    for length in range(longest + 1):
        yield from map(b"".join, itertools.product(alphabet, repeat=length))


# Newlines in every order; and whatever some system takes for a newline, a blank or a dot. 0x85 is
# NEL; 0x8D, 0x8A and 0xAE are CR, LF and the dot with the eighth bit set; 0xC0 0xAE is overlong.
NEWLINES = list(strings((b"\r", b"\n"), 4))
OTHERS = [b"", b"\r\n", b"\r", b"\n", b"\0", b"\t", b"\v", b"\f", b" ", b".", b"\x85", b"\xc2\x85"]
OTHERS += [b"\x8d\x8a", b"\xae", b"\xc0\xae", b"\x08", b"\x1a", "\u2028".encode()]
PAIRS = [a + b for a, b in itertools.product(OTHERS, OTHERS) if a and b and b"\r\n" in (a, b)]
TABLES = ((NEWLINES, NEWLINES), (OTHERS, OTHERS + PAIRS), (PAIRS, OTHERS))
MIDDLES = sorted(
    {
        lead + before + b"." + behind
        for lead, tables in itertools.product((b"one", b""), TABLES)
        for before, behind in itertools.product(*tables)
    }
)


def true_end(wire):
    """Find where mail data ends, octet by octet; ``None`` where it does not."""
    seen = b"\r\n"  # mail data starts at the start of a line
    for at in range(len(wire)):
        seen = (seen + wire[at : at + 1])[-len(END) :]
        if seen == END:
            return at + 1
    return None


def content_of(wire):
    """Take the added dots away (RFC 5321 4.5.2), octet by octet."""
    content, at, starts = bytearray(), 0, True
    while at < len(wire):
        if starts and wire[at] == ord("."):
            at, starts = at + 1, False
            continue
        starts = wire[at : at + 2] == b"\r\n"
        content += wire[at : at + 2] if starts else wire[at : at + 1]
        at += 1 + starts
    return bytes(content)


def normalized(content):
    """Make CRLF of each bare CR and LF, octet by octet."""
    lines, at = bytearray(), 0
    while at < len(content):
        pair = content[at : at + 2] == b"\r\n"
        lines += b"\r\n" if content[at] in b"\r\n" else content[at : at + 1]
        at += 1 + pair
    return bytes(lines)


def expected(content, rule):
    """What is delivered of content, or ``None`` where it is refused."""
    left = content.replace(b"\r\n", b"")
    if rule == "normalize":
        return normalized(content)
    return None if rule == "reject" and (b"\r" in left or b"\n" in left) else content


class Talk:
    """A session that takes one message after another, and stays in step."""

    def __init__(self, rule, feeding):
        limits = Limits(errors=10**9, junk_commands=10**9)
        self.session = Session(rules(limits, hostname=HOSTNAME, bare_newline=rule))
        self.driver = Driver(self.session)
        self.cut = FEEDINGS[feeding]
        assert self.driver.pull().startswith(b"220 ")
        assert self.say(b"EHLO client.example\r\n").startswith(b"250-")

    def say(self, octets):
        return b"".join(self.driver.feed(piece) for piece in self.cut(octets) if piece)

    def open(self):
        said = self.say(b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n")
        assert [line[:4] for line in said.splitlines()] == [b"250 ", b"250 "], said
        self.driver.events.clear()

    def check(self, said, wanted, what):
        """Check that one reply was said, and one message or none delivered."""
        code = b"550 5.6.11 " if wanted is None else b"250 2.0.0 "
        assert said.startswith(code), (what, said)
        assert said.count(b"\r\n") == 1, (what, said)
        delivered, self.driver.deliveries = self.driver.deliveries, []
        assert [data for _, _, data in delivered] == [wanted] * (wanted is not None), what
        assert [sender for sender, _, _ in delivered] == ["a@x.example"] * len(delivered)


def test_tables_hold_what_is_known_of_false_ends():
    for known in (b"\r\n.\n", b"\n.\r\n", b"\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\r\n.\n\r"):
        assert b"one" + known in MIDDLES
    for known in (b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\r\n. \r\n", b"\r\r\n.\r\r\n", b"\r\n..\r\n"):
        assert b"one" + known in MIDDLES
    ends = [middle for middle in MIDDLES if true_end(middle)]
    assert b"one\r\n.\r\n" in ends
    assert len(MIDDLES) - len(ends) > 5 * len(ends)


@pytest.mark.parametrize("feeding", FEEDINGS)
@pytest.mark.parametrize("rule", RULES)
def test_only_crlf_dot_crlf_ends_mail_data(rule, feeding):
    talk = Talk(rule, feeding)
    for middle in MIDDLES:
        talk.open()
        assert talk.say(b"DATA\r\n").startswith(b"354 "), middle
        end = true_end(middle)
        if end is None:
            # What follows the false end is content: not a word is said before the true one.
            assert talk.say(middle + SMUGGLED) == b"", middle
            wire, said = middle + SMUGGLED, talk.say(b".\r\n")
        else:
            wire, said = middle[: end - 3], talk.say(middle[:end])
        talk.check(said, expected(content_of(wire), rule), middle)
        assert talk.driver.events == ["DATA", "message"], middle


@pytest.mark.parametrize("feeding", FEEDINGS)
@pytest.mark.parametrize("rule", RULES)
def test_nothing_but_its_size_ends_a_chunk(rule, feeding):
    talk = Talk(rule, feeding)
    for middle in MIDDLES:
        talk.open()
        chunk = middle + SMUGGLED
        said = talk.say(b"BDAT %d LAST\r\n%b" % (len(chunk), chunk))
        talk.check(said, expected(chunk, rule), middle)
        assert talk.driver.events == ["BDAT", "message"], middle
