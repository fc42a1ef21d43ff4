"""What is quick gives what is slow: each short cut of the hot path beside the long way."""

import random
import re

import pytest

from smtpd_sync import TLS, Envelope, Peer, Reject, Reply
from smtpd_sync.checks import refusal
from smtpd_sync.command import VERBS, Extension, grammar, parse_argument
from smtpd_sync.data import DataDecoder, has_bare_newline
from smtpd_sync.reply import LINE_LENGTH, shared
from smtpd_sync.rules import rules
from smtpd_sync.session import Session
from smtpd_sync.states import State
from smtpd_sync.syntax import Mailbox
from smtpd_sync.trace import received

LOCALS = [
    *("a", "a.b", "A.b+c", "o'brien", "a..b", ".a", "a.", "", "a b", '"a b"', '"a"', '"a\\"b"'),
    *("ü", "a\u0301", "a@b", "x" * 64, "a\tb", "a\x7f", "a\\b", "a(b)", "-", "{|}~!#$%&*/=?^_`"),
]
LABELS = [
    *("x", "X", "x-y", "x--y", "-x", "x-", "1", "a1", "", "_", "ü", "ß", "İ", "x" * 63, "x" * 64),
    *("y" * 31, "x_y", "xn--bcher-kva", "ﬀ", "日本"),
]
ENDS = ["", " ", "  ", " SIZE=1", "  size=1 BODY=7BIT", " SIZE", " FOO", "x", ">", " SIZE=1 SIZE=1"]
FORMS = ["{}<{}>{}", "{} <{}>{}", "{}{}{}", "{}<@r.example:{}>{}", "{}<{}.>{}", "{}<>{}{}"]
NEVER = re.compile(r"(?!)")


def paths(count):
    """Give (verb, argument): sound and broken ones, put together by chance."""
    chance = random.Random(5321)
    for _ in range(count):
        verb = chance.choice(["MAIL", "RCPT"])
        keyword = chance.choice(["FROM:", "from:", "FrOm:"] if verb == "MAIL" else ["TO:", "to:"])
        domain = ".".join(chance.choice(LABELS) for _ in range(chance.randint(1, 4)))
        mailbox = f"{chance.choice(LOCALS)}@{domain}"
        form = chance.choice(FORMS[:1] * 8 + FORMS)
        yield verb, form.format(keyword, mailbox, chance.choice(ENDS))


def outcome(verb, argument, known):
    try:
        event = parse_argument(verb, argument.encode(), known)
    except Reject as reject:
        return reject.reply
    mailbox = event.argument
    parts = mailbox.local, mailbox.domain, mailbox.original
    return type(event), event, type(mailbox), parts, event.parameters


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "forgiving"])
def test_quick_path_reads_what_the_full_one_reads(strict):
    known = rules(strict=strict).grammar
    slow = known._replace(
        reverse_path=known.reverse_path._replace(common=NEVER),
        forward_path=known.forward_path._replace(common=NEVER),
    )
    quick = 0
    for verb, argument in paths(20_000):
        patterns = known.reverse_path if verb == "MAIL" else known.forward_path
        quick += patterns.common.match(argument) is not None
        assert outcome(verb, argument, known) == outcome(verb, argument, slow), ascii(argument)
    assert 1_000 < quick < 18_000, "both ways were gone"


def test_every_path_that_looks_common_is_read_quickly():
    known = grammar(False, (Extension("X"),))
    for path in ("a@x.example", "A.b+c@X.Example", "o'brien@xn--x.example", "1@2.3.4"):
        assert known.reverse_path.common.match(f"FROM:<{path}>")
        assert known.forward_path.common.match(f"to:<{path}> SIZE=1")


def test_bare_newline_is_seen_as_counting_sees_it():
    chance = random.Random(5322)
    pieces = [b"\r", b"\n", b"\r\n", b"\r\n", b"\r\n", b"x", b"\xff", b"\x85", b"\x0b\x0c\x1c", b""]
    bare = 0
    for _ in range(20_000):
        content = b"".join(chance.choices(pieces, k=chance.randint(0, 6)))
        crlf = content.count(b"\r\n")
        alone = content.count(b"\r") != crlf or content.count(b"\n") != crlf
        bare += alone
        assert has_bare_newline(content) is alone, content
    assert 2_000 < bare < 18_000


@pytest.mark.parametrize("count", [1, 2, 3, 50])
@pytest.mark.parametrize("between", [b"", b"x", b"NOOP\r\nx", b"\r\n"], ids=ascii)
def test_first_end_of_mail_data_is_the_end(count, between):
    chunk = b"x" + (b"\r\n.\r\n" + between) * count
    assert DataDecoder().feed(chunk) == (b"x\r\n", chunk[len(b"x\r\n.\r\n") :])


def test_first_end_of_mail_data_is_the_end_where_two_share_a_crlf():
    assert DataDecoder().feed(b"x\r\n.\r\n.\r\n") == (b"x\r\n", b".\r\n")


OPTIONS = {
    "default": {},
    "starttls": {"starttls": True},
    "require_tls": {"starttls": True, "require_tls": True},
    "auth": {"mechanisms": ["PLAIN"]},
    "require_auth": {"mechanisms": ["PLAIN"], "require_auth": True},
    "lmtp": {"lmtp": True},
    "xclient": {"xclient": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("state", State)
def test_what_is_free_has_no_reason_to_be_refused(options, state):
    made = rules(**options)
    for tls in (None, ("TLSv1.3", "", 0)):
        for user in (None, "tim"):
            session = Session(made)
            session.state, session.tls, session.user = state, tls, user
            for verb, (longest, states) in made.free.items():
                reason = refusal(session, verb, longest)
                assert (reason is None) is (state in states)
                assert refusal(session, verb, longest + 1) is not None


def test_what_is_free_is_what_nobody_need_prove():
    assert set(VERBS) - set(rules().free) == {"LHLO", "STARTTLS", "AUTH", "XCLIENT", "XFORWARD"}
    required = rules(starttls=True, require_tls=True, mechanisms=["PLAIN"], require_auth=True)
    assert set(required.free) == {"EHLO", "NOOP", "QUIT"}


def test_verbs_are_known_in_every_case():
    for spelling in (b"NOOP", b"noop", b"NoOp"):
        session = Session()
        session.state = State.READY
        session.receive_data(spelling + b"\r\n")
        assert session.next_event().verb == "NOOP"


@pytest.mark.parametrize(
    "text",
    ["OK", "x" * 500, "x" * 501, "x" * 502, "x" * 503, "", "ü", "a\tb", "a\x7f", "~ "],
)
@pytest.mark.parametrize("extended", [True, False])
def test_plain_reply_is_written_as_any_other(text, extended):
    plain = Reply(250, text).render(extended)
    among_others = Reply(250, f"first\n{text}" if text else "first\nOK").render(extended)
    first, _, rest = among_others.partition(b"\r\n")
    assert first == (b"250-2.0.0 first" if extended else b"250-first")
    assert rest == plain
    assert all(len(line) <= LINE_LENGTH for line in plain.splitlines(keepends=True))


def test_what_many_sessions_hear_is_made_once_and_is_what_each_is_due(serve, connect):
    for hostname in ("one.example", "two.example"):
        server = serve(hostname=hostname, banner="hello")
        for _ in range(2):
            client = connect(server)
            assert client.reply() == f"220 {hostname} hello"
            assert client.ask("EHLO client.example").startswith(f"250-{hostname}\n")
            assert client.ask("HELO client.example") == f"250 {hostname}"
    assert shared(250, "x") is shared(250, "x")
    assert shared(250, "x") == Reply(250, "x")
    assert shared(220, "x") != shared(250, "x")


def envelope(lmtp=False, **differences):
    """Make an envelope of a session that differs from the usual one."""
    session = Session(rules(lmtp=lmtp), Peer("192.0.2.1", 25))
    session.helo, session.esmtp = "client.example", True
    for name, value in differences.items():
        setattr(session, name, value)
    made = Envelope(session, Mailbox("a", "x.example"))
    made.id = "1"
    return made


DIFFERENCES = [
    {},
    {"helo": "other.example"},
    {"peer": Peer("192.0.2.2", 25)},
    {"peer": Peer("2001:db8::1", 25)},
    {"peer": Peer("", 0)},
    {"esmtp": False},
    {"lmtp": True},
    {"tls": TLS("TLSv1.3", "X", 256)},
    {"tls": TLS("TLSv1.3", "Y", 256)},
    {"user": "tim"},
]


def test_head_of_the_trace_field_is_not_that_of_another_session():
    for _ in range(2):  # the second time from the cache
        heads = {received(envelope(**each), "mx.example") for each in DIFFERENCES}
        assert len(heads) == len(DIFFERENCES)
    assert received(envelope(), "mx2.example") not in heads
