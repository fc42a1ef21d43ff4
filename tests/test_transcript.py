"""What is written down of a session: all that was said, and nothing that is a secret."""

import base64

import pytest
from dialogue import Driver

from smtpd_sync import Limits
from smtpd_sync.rules import rules
from smtpd_sync.session import Session
from smtpd_sync.transcript import Transcript

SECRET = "c2VjcmV0IG9mIHRpbQ=="


def lines(transcript):
    return list(transcript.lines)


# -- by itself -------------------------------------------------------------------------------


def test_lines_of_both_sides():
    made = Transcript(10)
    made.command(b"EHLO client.example", True)
    made.replies(b"250-mx.example\r\n250 SIZE\r\n")
    made.mail_data(1532)
    made.replies(b"")
    made.replies(b"250 OK\r\n")
    assert lines(made) == [
        "C: EHLO client.example",
        "S: 250-mx.example",
        "S: 250 SIZE",
        "C: (1532 octets of mail data)",
        "S: 250 OK",
    ]


@pytest.mark.parametrize("longest", [0, 1, 3])
def test_only_the_last_lines_are_kept(longest):
    made = Transcript(longest)
    for n in range(10):
        made.command(b"NOOP %d" % n, True)
    assert lines(made) == [f"C: NOOP {n}" for n in range(10 - longest, 10)]


def test_one_who_follows_hears_each_line_once_whatever_is_kept():
    made = Transcript(0, followed=True)
    made.command(b"NOOP", True)
    made.replies(b"250 OK\r\n")
    assert made.news() == ["C: NOOP", "S: 250 OK"]
    assert made.news() == []
    made.command(b"QUIT", True)
    assert made.news() == ["C: QUIT"]
    assert lines(made) == []


def test_nothing_gathers_where_nobody_follows():
    made = Transcript(2)
    for _ in range(100):
        made.command(b"NOOP", True)
    assert made.news() == []
    assert made._news == []


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"NOOP a\\b", r"NOOP a\\b"),
        (b"NOOP \x00\x1b[2J\x7f", r"NOOP \x00\x1b[2J\x7f"),
        (b"NOOP \r \n \t", r"NOOP \r \n \t"),
        ("NOOP \u00fc\u202e".encode(), r"NOOP \xc3\xbc\xe2\x80\xae"),
        (b"NOOP \xff\x85", r"NOOP \xff\x85"),
        (b"x" * 1024, "x" * 1024),
        (b"x" * 1025, "x" * 1024 + "..."),
        (b"", ""),
    ],
)
def test_line_is_printable_ascii_and_not_too_long(octets, text):
    made = Transcript(2)
    made.command(octets, True)
    made.replies(octets.replace(b"\r", b"").replace(b"\n", b"") + b"\r\n")
    assert lines(made)[0] == f"C: {text}"
    assert all(line.isascii() and line.isprintable() for line in lines(made))


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (f"AUTH PLAIN {SECRET}", "AUTH PLAIN (not shown)"),
        (f"auth plain {SECRET}", "auth plain (not shown)"),
        ("AUTH LOGIN", "AUTH LOGIN"),
        ("AUTH SCRAM-SHA-256-PLUS", "AUTH SCRAM-SHA-256-PLUS"),
        (f"AUTH XOAUTH2 {SECRET}", "AUTH XOAUTH2 (not shown)"),
        (f"AUTH PLAIN {SECRET} {SECRET}", "AUTH PLAIN (not shown)"),
        (f"AUTH PLAINER {SECRET}", "AUTH (not shown)"),
        (f"AUTH {SECRET}", "AUTH (not shown)"),
        ("AUTH", "AUTH (not shown)"),
        (f"AUTH=PLAIN {SECRET}", "AUTH (not shown)"),
        (f"AUTH:PLAIN {SECRET}", "AUTH (not shown)"),
        (f"AUTH  PLAIN {SECRET}", "AUTH (not shown)"),
        (f"AUTH\tPLAIN {SECRET}", "AUTH (not shown)"),
        (f"authplain {SECRET}", "AUTH (not shown)"),
        (f" AUTH PLAIN {SECRET}", "AUTH (not shown)"),
        (f"\tAUTH PLAIN {SECRET}", "AUTH (not shown)"),
        (f" \t \x00AUTH PLAIN {SECRET}", "AUTH (not shown)"),
        (f"\xef\xbb\xbfAUTH PLAIN {SECRET}", "AUTH (not shown)"),
    ],
)
def test_auth_shows_its_mechanism_and_no_more(line, shown):
    made = Transcript(2)
    made.command(line.encode("latin-1"), line.startswith("AUTH "))
    assert lines(made) == [f"C: {shown}"]


def test_what_follows_auth_and_is_no_command_is_not_shown():
    made = Transcript(10)
    made.command(SECRET.encode(), False)
    made.command(b"AUTH LOGIN", True)
    made.replies(b"538 5.7.11 Encryption required for authentication\r\n")
    made.command(SECRET.encode(), False)
    made.command(b"NOOP", True)
    made.response()
    assert lines(made) == [
        f"C: {SECRET}",
        "C: AUTH LOGIN",
        "S: 538 5.7.11 Encryption required for authentication",
        "C: (not shown)",
        "C: NOOP",
        "C: (not shown)",
    ]


# -- of a session, without a socket ------------------------------------------------------------


def conversation(*pieces, longest=1_000, limits=None, hooks=(), **options):
    """Feed ``pieces`` to a session, each once the last was answered; give what is written down."""
    made = rules(limits or Limits(), hostname="mx.example", **options)
    session = Session(made)
    session.recorder = Transcript(longest)
    driver = Driver(session, hooks, {"tim": "secret"})
    driver.pull()
    for piece in pieces:
        driver.feed(piece)
    return session.transcript


HELLO = b"EHLO client.example\r\n"
ENVELOPE = b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n"


def test_nothing_is_written_down_where_nobody_asked():
    session = Session(rules(Limits(), hostname="mx.example"))
    driver = Driver(session)
    driver.pull()
    driver.feed(HELLO)
    assert session.transcript == []


def test_session_by_data():
    said = conversation(
        HELLO, ENVELOPE + b"DATA\r\n", b"Subject: hi\r\n\r\n", b"..hello\r\n.\r\n", b"QUIT\r\n"
    )
    assert said[:2] == ["S: 220 mx.example ESMTP", "C: EHLO client.example"]
    assert said[2] == "S: 250-mx.example"
    first = said.index("C: MAIL FROM:<a@x.example>")
    assert said[first:] == [
        "C: MAIL FROM:<a@x.example>",
        "C: RCPT TO:<b@y.example>",
        "C: DATA",
        "S: 250 2.1.0 Sender OK",
        "S: 250 2.1.5 Recipient OK",
        said[first + 5],
        "C: (23 octets of mail data)",
        "S: 250 2.0.0 Taken",
        "C: QUIT",
        said[-1],
    ]
    assert said[first + 5].startswith("S: 354")
    assert said[-1].startswith("S: 221 2.0.0")


def test_session_by_bdat():
    said = conversation(HELLO, ENVELOPE, b"BDAT 5\r\nhello", b"BDAT 6 LAST\r\n world")
    first = said.index("C: BDAT 5")
    assert said[first:] == [
        "C: BDAT 5",
        "S: 250 2.0.0 5 octets received",
        "C: BDAT 6 LAST",
        "C: (11 octets of mail data)",
        "S: 250 2.0.0 Taken",
    ]


def test_octet_by_octet_is_as_line_by_line():
    pieces = [HELLO, *ENVELOPE.splitlines(True), b"DATA\r\n", b"hello\r\n.\r\n", b"NOOP\r\n"]
    octets = [bytes([octet]) for piece in pieces for octet in piece]
    assert conversation(*octets) == conversation(*pieces)


def test_mail_data_is_never_written_down():
    body = b"".join(b"secret %d\r\n" % n for n in range(1_000))
    for limits in (Limits(), Limits(message_size=1_000, errors=100)):
        said = conversation(
            HELLO,
            ENVELOPE + b"DATA\r\n",
            body + b"RSET\r\n.\r\n",
            ENVELOPE,
            b"BDAT %d LAST\r\n" % len(body) + body,
            b"BDAT %d LAST\r\n" % len(body) + body,  # without a transaction: 503
            limits=limits,
        )
        assert "secret" not in "\n".join(said)
        assert "C: RSET" not in said


def test_lines_that_were_refused_are_written_down():
    said = conversation(
        HELLO, b"WIZ \xff\r\n", b"RCPT TO:<b@y.example>\r\n", b"x" * 2_000 + b"\r\n"
    )
    assert said[-6:-2] == [
        r"C: WIZ \xff",
        "S: 500 5.5.2 Command unrecognized",
        "C: RCPT TO:<b@y.example>",
        "S: 503 5.5.1 Need MAIL first",
    ]
    assert said[-2].startswith("C: xxx")
    assert len(said[-2]) < 1_100
    assert said[-1] == "S: 500 5.5.2 Line too long"


def test_transcript_of_a_session_is_bounded():
    said = conversation(HELLO, *[b"NOOP\r\n"] * 40, longest=10)
    assert len(said) == 10
    assert said[::2] == ["C: NOOP"] * 5


def test_transcript_is_a_list_of_its_own():
    session = Session(rules(Limits(), hostname="mx.example"))
    session.recorder = Transcript(10)
    Driver(session).pull()
    session.transcript.clear()
    assert len(session.transcript) == 1


def test_last_words_are_written_down():
    session = Session(rules(Limits(), hostname="mx.example"))
    session.recorder = Transcript(10)
    driver = Driver(session)
    driver.pull()
    driver.feed(b"GET / HTTP/1.1\r\nHost: secret\r\n")
    assert session.transcript[-2:] == ["C: GET / HTTP/1.1", "S: 554 5.5.0 This is an SMTP server"]


def b64(text):
    return base64.b64encode(text.encode())


PLAIN = b64("\0tim\0secret")


@pytest.mark.parametrize(
    "pieces",
    [
        [b"AUTH PLAIN " + PLAIN],
        [b"AUTH PLAIN", PLAIN],
        [b"AUTH LOGIN", b64("tim"), b64("secret")],
        [b"AUTH LOGIN " + b64("tim"), b64("wrong")],
        [b"AUTH LOGIN", b64("tim"), b"*"],
        [b"AUTH PLAIN", b"not base64 at all!"],
        [b"AUTH PLAIN", PLAIN * 2_000],
        [b"AUTH PLAIN " + PLAIN * 2_000],
        [b"AUTH LOGIN", PLAIN * 2_000],
        [b"AUTH NONE", PLAIN],
        [b"MAIL FROM:<>", b"AUTH PLAIN " + PLAIN],
        [b"MAIL FROM:<>", b"AUTH PLAIN", PLAIN],
    ],
    ids=lambda pieces: repr(b"|".join(pieces))[:50],
)
@pytest.mark.parametrize("clear", [True, False], ids=["served", "refused"])
def test_auth_is_not_written_down(pieces, clear):
    said = conversation(
        HELLO,
        *(piece + b"\r\n" for piece in pieces),
        b"NOOP\r\n",
        mechanisms=("PLAIN", "LOGIN"),
        auth_require_tls=not clear,
    )
    text = "\n".join(said)
    assert "C: AUTH" in text
    assert "(not shown)" in text
    assert "C: NOOP" in said
    for piece in pieces:
        secret = piece.split()[-1].decode()
        if secret not in ("*", "LOGIN", "PLAIN", "NONE", "FROM:<>"):
            assert secret[:20] not in text


# -- who is put off --------------------------------------------------------------------------


def test_fifty_recipients_too_many_are_no_reason_to_part():
    # RFC 5321 4.5.3.1.10: the client sends the rest later; what it has sent must arrive.
    session = Session(rules(Limits(), hostname="mx.example"))
    driver = Driver(session)
    driver.pull()
    driver.feed(HELLO)
    group = b"".join(b"RCPT TO:<b%d@y.example>\r\n" % n for n in range(1_050))
    said = driver.feed(b"MAIL FROM:<a@x.example>\r\n" + group + b"DATA\r\n")
    assert said.count(b"250 2.1.5 ") == 1_000
    assert said.count(b"452 4.5.3 ") == 50
    assert b"421" not in said
    assert driver.feed(b"hello\r\n.\r\n").startswith(b"250 ")
    ((sender, recipients, data),) = driver.deliveries
    assert (sender, data) == ("a@x.example", b"hello\r\n")
    assert recipients == [f"b{n}@y.example" for n in range(1_000)]


def test_recipients_beyond_the_limit_end_at_last():
    session = Session(rules(Limits(), hostname="mx.example"))
    driver = Driver(session)
    driver.pull()
    driver.feed(HELLO)
    group = b"".join(b"RCPT TO:<b%d@y.example>\r\n" % n for n in range(3_000))
    said = driver.feed(b"MAIL FROM:<a@x.example>\r\n" + group)
    assert said.count(b"452 4.5.3 ") == 1_000 + Limits().errors
    assert said.endswith(b"421 4.7.0 Too many errors\r\n")
