"""Floods: what a client sends without end costs no memory that grows, and no time that explodes."""

import re
import time
import tracemalloc

import pytest
from dialogue import HOSTNAME, Driver, Hook

from smtpd_sync import Limits, Reply, extensions
from smtpd_sync.command import VERBS, decode_base64, parse_argument
from smtpd_sync.reply import Reject
from smtpd_sync.rules import rules
from smtpd_sync.sasl import MECHANISMS, Context, ScramKeys
from smtpd_sync.session import END, NEED_DATA, Session
from smtpd_sync.states import State
from smtpd_sync.syntax import Mailbox, is_address, is_domain, literal

MEBIBYTE = 1_048_576
PIECE = b"x" * 262_144
FLOODS = [
    pytest.param(PIECE, 100, id="100 MiB"),
    # Newlines that are none make much more work than text.
    pytest.param(b"\r" * len(PIECE), 10, id="10 MiB of CR"),
    pytest.param(b"\n" * len(PIECE), 10, id="10 MiB of LF"),
]
BOUND = 7 * MEBIBYTE
"""Octets of memory that a flood may take at a time: a few pieces, whatever was sent."""


def session_with(**options):
    options = {"mechanisms": ("PLAIN", "LOGIN"), "auth_require_tls": False, **options}
    limits = options.pop("limits", Limits())
    session = Session(rules(limits, hostname=HOSTNAME, **options))
    driver = Driver(session)
    driver.pull()
    assert driver.feed(b"EHLO client.example\r\n").startswith(b"250-")
    return session, driver


def peak_of(work):
    """Run ``work()``; give the most memory it took at a time, in octets."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def drop(session):
    """Pull all events, and keep nothing of mail data."""
    while True:
        event = session.next_event()
        if event is END or event is NEED_DATA:
            return session.data_to_send()
        assert event.verb == "content", event


@pytest.mark.parametrize(("piece", "mebibytes"), FLOODS)
@pytest.mark.parametrize(
    ("before", "said", "refusal"),
    [
        (b"x", b"", b"500 5.5.2 "),
        (b"NOOP ", b"", b"500 5.5.2 "),
        (b"AUTH PLAIN ", b"", b"500 5.5.6 "),
        (b"AUTH LOGIN\r\n", b"334 ", b"500 5.5.6 "),
    ],
    ids=["no verb", "a verb", "AUTH", "a response"],
)
def test_line_without_end_takes_no_memory(before, said, refusal, piece, mebibytes):
    _session, driver = session_with()
    assert driver.feed(before).startswith(said)

    def flood():
        for _ in range(mebibytes * MEBIBYTE // len(piece)):
            assert driver.feed(piece) == b""

    assert peak_of(flood) < BOUND
    assert driver.feed(b"\r\n").startswith(refusal)
    assert driver.feed(b"NOOP\r\n") == b"250 2.0.0 OK\r\n"


@pytest.mark.parametrize(("piece", "mebibytes"), FLOODS)
@pytest.mark.parametrize("size", [None, 1_000_000])
@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
def test_mail_data_without_a_newline_takes_no_memory(verb, size, piece, mebibytes):
    session, driver = session_with(limits=Limits(message_size=size, text_line=1000))
    driver.feed(b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n")
    driver.feed(b"DATA\r\n" if verb == "DATA" else b"BDAT 4000000 LAST\r\n")
    most = mebibytes * MEBIBYTE if verb == "DATA" else 3_900_000
    said = []

    def flood():
        for _ in range(most // len(piece)):
            session.receive_data(piece)
            said.append(drop(session))
            if session.state is State.CLOSED:
                return

    assert peak_of(flood) < BOUND
    closed = b"421 4.3.4 Message far beyond the size limit\r\n"
    normalized = len(piece.strip()) == 0  # each octet becomes two
    far = size is not None and most * (1 + normalized) > 4 * size
    assert b"".join(said) == (closed if far else b"")


def test_chunk_without_end_takes_no_memory():
    session, driver = session_with(limits=Limits(message_size=None))
    driver.feed(b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n")
    driver.feed(b"BDAT 10000000000 LAST\r\n")

    def flood():
        for _ in range(100 * MEBIBYTE // len(PIECE)):
            session.receive_data(PIECE)
            assert drop(session) == b""

    assert peak_of(flood) < BOUND


def test_twenty_megabytes_without_a_newline_over_a_socket(serve, connect):
    client = connect(serve())
    client.hello()

    def flood():
        for _ in range(80):
            client.send(PIECE)
        client.send(b"\r\n")
        assert client.reply().startswith("500 5.5.2 ")
        assert client.ask("NOOP").startswith("250 2.0.0 ")

    assert peak_of(flood) < BOUND


# -- recipients ----------------------------------------------------------------------------------

RCPTS = [b"RCPT TO:<u%d@y.example>\r\n" % number for number in range(10_000)]


def pipelined(driver, commands, each):
    """Send commands in groups of ``each``; give the first words of the replies."""
    said = [driver.feed(b"".join(commands[at : at + each])) for at in range(0, len(commands), each)]
    return [line.split(b" ")[:2] for line in b"".join(said).splitlines()]


@pytest.mark.parametrize("each", [100, 10_000])
def test_ten_thousand_recipients_of_one_message(each):
    _session, driver = session_with(limits=Limits(recipients=10_000))
    driver.feed(b"MAIL FROM:<a@x.example>\r\n")
    assert pipelined(driver, RCPTS, each) == [[b"250", b"2.1.5"]] * 10_000
    assert driver.feed(b"RCPT TO:<one@y.example>\r\n").startswith(b"452 4.5.3 ")
    assert driver.feed(b"DATA\r\n").startswith(b"354 ")
    assert driver.feed(b"hello\r\n.\r\n").startswith(b"250 ")
    ((sender, recipients, data),) = driver.deliveries
    assert recipients == [f"u{number}@y.example" for number in range(10_000)]
    assert (sender, data) == ("a@x.example", b"hello\r\n")


def test_recipients_beyond_the_limit_are_refused_and_not_kept():
    session, driver = session_with()
    driver.feed(b"MAIL FROM:<a@x.example>\r\n")
    wanted = [[b"250", b"2.1.5"]] * 1_000 + [[b"452", b"4.5.3"]] * 1_000
    assert pipelined(driver, RCPTS[:2_000], 1_000) == wanted
    assert len(session.envelope.recipients) == 1_000
    # As many again may be put off; who still goes on makes errors.
    said = pipelined(driver, RCPTS[2_000:], 1_000)
    assert said == [[b"452", b"4.5.3"]] * 20 + [[b"421", b"4.7.0"]]


def test_ten_thousand_refused_recipients_end_the_session():
    _session, driver = session_with()
    driver.hooks = [Hook("RCPT", None, Reply(550, "No such mailbox", "5.1.1"))]
    driver.feed(b"MAIL FROM:<a@x.example>\r\n")
    wanted = [[b"550", b"5.1.1"]] * 20 + [[b"421", b"4.7.0"]]
    assert pipelined(driver, RCPTS, 10_000) == wanted


# -- patterns that are slow ----------------------------------------------------------------------

TLS_RULES = rules(
    hostname=HOSTNAME,
    mechanisms=MECHANISMS,
    xclient=True,
    extensions=[*extensions.EXTENSIONS.values(), extensions.future_release(1000)],
)
STRICT = rules(strict=True, hostname=HOSTNAME)

# What a pattern with two ways to read a text would try in every combination: a head, what is
# repeated, and a tail that fits nothing.
ADDRESSES = [
    (head, again, tail)
    for again in (
        "a",
        "a.",
        ".a",
        "a-",
        "-",
        "a@",
        "@a,",
        ",@a",
        "\\",
        "\\\\",
        '\\"',
        '"',
        " ",
        "(",
    )
    for head in ("", "<", "<a", "<@", '<"', "<@a", "<a@", "<a@[", "<a@[IPv6:", "<a@[x-")
    for tail in ("", ">", "@", '"', ">!", '"@x.example>!', "@x.example", "]>!", ":a@x>!")
    if head or tail
]
WORDS = [" ", "SIZE=1", " a", " =", "+2", "+2B", "a=", "=", ",", "SUCCESS,", "1", "-", "9 "]
TEXTS = [
    ("x", " ", "y"),
    ("x", " SMTPUTF8", "y"),
    ("x", "  SMTPUTF8", " "),
    ("", "(", ""),
    ("", "((", "))"),
    ("", '"(', ""),
]
ARGUMENTS = {
    "MAIL": [(f"FROM:{head}", again, tail) for head, again, tail in ADDRESSES]
    + [(f"FROM:<a@x.example> {head}", again, "!\\")
       for again in WORDS for head in ("", "AUTH=", "ENVID=", "BY=", "HOLDUNTIL=", "SIZE=")],
    "RCPT": [(f"TO:{head}", again, tail) for head, again, tail in ADDRESSES]
    + [(f"TO:<b@y.example> {head}", again, "!\\")
       for again in WORDS for head in ("", "NOTIFY=", "ORCPT=", "ORCPT=a;", "RRVS=")],
    "EHLO": [("", again, "!") for again in ("a", "a.", "a-", "-", "_.", "[", "[IPv6:", ":")]
    + [("[IPv6:", "0:", "]"), ("[", "1.", "]"), ("[", "a-", ":!]")],
    "VRFY": TEXTS,
    "EXPN": TEXTS,
    "NOOP": TEXTS,
    "HELP": TEXTS,
    "BDAT": [("1", " ", "!"), ("", "1", ""), ("1 ", " L", "")],
    "AUTH": [("PLAIN ", "A", "!"), ("PLAIN ", "AAAA", "="), ("PLAIN ", "=", ""), ("", " ", "x")],
    "XCLIENT": [("", "A", "="), ("NAME=", "+2B", "!\\"), ("", "NAME=a ", "!"), ("", " ", "x")],
}  # fmt: skip
RESPONSES = [
    (head, again, tail)
    for head in (
        "",
        "n,,n=a,r=a",
        "n,a=",
        "p=",
        "y,,n=",
        "user=",
        "user=a\1auth=Bearer ",
        "n,a=a,\1",
    )
    for again in ("a", ",", "=", "=2C", ",a=b", "a=b,", "\1", "a=b\1", "auth=Bearer ", "n,,", " ")
    for tail in ("", "!", "\1", "\0")
]
SHORT, LONG = 1_500, 12_000
SLACK = 4.0
"""How far beyond linear the measure may be off, on a machine that has other things to do."""
NOTHING = 0.003
"""Seconds that are not worth a measure."""


def fill(pattern, length):
    head, again, tail = pattern
    return head + again * ((length - len(head) - len(tail)) // len(again)) + tail


def seconds(work, text):
    """How long ``work`` takes at best: noise only ever adds."""
    best = float("inf")
    for _ in range(3):
        start = time.thread_time()
        try:
            work(text)
        except (Reject, ValueError, StopIteration):
            pass
        best = min(best, time.thread_time() - start)
        if best < NOTHING:
            break
    return best


def slow_ones(work, patterns):
    """Give the patterns for which the time of ``work`` grows more than the text does."""
    for pattern in patterns:
        long = seconds(work, fill(pattern, LONG))
        if long > NOTHING and long > SLACK * LONG / SHORT * seconds(work, fill(pattern, SHORT)):
            yield pattern, long


@pytest.mark.parametrize("known", [TLS_RULES, STRICT], ids=["forgiving", "strict"])
@pytest.mark.parametrize("verb", ARGUMENTS)
def test_argument_takes_time_as_it_is_long(verb, known):
    assert set(VERBS) - set(ARGUMENTS) == {
        *("HELO", "LHLO"),  # as EHLO
        *("DATA", "RSET", "QUIT", "STARTTLS"),  # take none
        "XFORWARD",  # as XCLIENT
    }

    def parse(text):
        parse_argument(verb, text.encode(), known.grammar)

    assert list(slow_ones(parse, ARGUMENTS[verb])) == []


@pytest.mark.parametrize(
    "read", [Mailbox.parse, literal, is_address, is_domain, decode_base64], ids=lambda f: f.__name__
)
def test_address_takes_time_as_it_is_long(read):
    assert list(slow_ones(read, [*ADDRESSES, ("", "=", "!"), ("", "A", "=")])) == []


@pytest.mark.parametrize("name", MECHANISMS)
def test_response_takes_time_as_it_is_long(name):
    context = Context(None, b"", False, b"key", HOSTNAME, "nonce")

    def respond(text):
        exchange = MECHANISMS[name].run(text.encode(), context)
        next(exchange)
        exchange.send(b"n" + text.encode())

    assert list(slow_ones(respond, RESPONSES)) == []


@pytest.mark.parametrize("name", ["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"])
def test_last_response_of_scram_takes_time_as_it_is_long(name):
    context = Context(None, b"", True, b"key", HOSTNAME, "nonce")
    flag = b"p=tls-server-end-point" if name.endswith("PLUS") else b"n"
    keys = ScramKeys.of("secret", b"salt")
    heads = ("", "c=", "c=biws,r=", "c=biws,r=anonce", "c=biws,r=a,p=", "c=biws,r=a,e=")

    def respond(text):
        exchange = MECHANISMS[name].run(flag + b",,n=tim,r=a", context)
        next(exchange).secret = keys
        next(exchange)
        exchange.send(text.encode())

    patterns = [(head, again, tail) for head in heads for _, again, tail in RESPONSES]
    assert list(slow_ones(respond, patterns)) == []


def test_slow_pattern_would_be_seen():
    quadratic = re.compile(" +x")
    assert list(slow_ones(quadratic.search, [("a", " ", "y")]))
