"""Commands: one line in, one value out, or the refusal that says what is wrong with it."""

import pytest

from smtpd_sync import Mailbox, Reject
from smtpd_sync.command import (
    AUTH,
    BODY,
    SIZE,
    SMTPUTF8,
    VERBS,
    Command,
    Extension,
    Parameter,
    grammar,
    parse_argument,
    xtext,
)

OFFERED = (
    Extension("SIZE", "1000", (SIZE,)),
    Extension("8BITMIME", parameters=(BODY,)),
    Extension("SMTPUTF8", parameters=(SMTPUTF8,)),
)
FORGIVING = grammar(False, OFFERED)
STRICT = grammar(True, OFFERED)
BOTH = pytest.mark.parametrize("rules", [FORGIVING, STRICT], ids=["forgiving", "strict"])


def refusal(verb, octets, rules=FORGIVING):
    with pytest.raises(Reject) as caught:
        parse_argument(verb, octets, rules)
    return caught.value.reply.code, caught.value.reply.status


@BOTH
@pytest.mark.parametrize(
    ("octets", "sender", "parameters"),
    [
        (b"FROM:<a@x.example>", "a@x.example", {}),
        (b"from:<A@X.Example>", "A@x.example", {}),
        (b"FROM:<>", "", {}),
        (b"FROM:<> SIZE=10", "", {"SIZE": "10"}),
        (b"FROM:<a@x.example> size=010", "a@x.example", {"SIZE": "010"}),
        (b"FROM:<a@x.example> BODY=8bitmime", "a@x.example", {"BODY": "8bitmime"}),
        (b"FROM:<a@x.example> body=7BIT", "a@x.example", {"BODY": "7BIT"}),
        (b"FROM:<a@x.example> SmtpUtf8", "a@x.example", {"SMTPUTF8": True}),
        (
            b"FROM:<a@x.example> SMTPUTF8 SIZE=99999999999999999999 BODY=8BITMIME",
            "a@x.example",
            {"SMTPUTF8": True, "SIZE": "99999999999999999999", "BODY": "8BITMIME"},
        ),
        (b"FROM:<@r.example,@s.example:a@x.example>", "a@x.example", {}),
        (b'FROM:<"a b>"@x.example> SIZE=1', '"a b>"@x.example', {"SIZE": "1"}),
        ("FROM:<ü@x.example> SMTPUTF8".encode(), "ü@x.example", {"SMTPUTF8": True}),
    ],
)
def test_mail(octets, sender, parameters, rules):
    command = parse_argument("MAIL", octets, rules)
    assert command == Command("MAIL", sender, parameters)
    assert isinstance(command.argument, Mailbox)


@BOTH
@pytest.mark.parametrize(
    ("octets", "recipient", "original"),
    [
        (b"TO:<b@y.example>", "b@y.example", "b@y.example"),
        (b'to:<"b"@Y.Example>', "b@y.example", '"b"@Y.Example'),
        (b"TO:<postmaster>", "postmaster", "postmaster"),
        (b"TO:<PostMaster>", "postmaster", "PostMaster"),
        (b"TO:<postmaster@y.example>", "postmaster@y.example", "postmaster@y.example"),
        (b"TO:<@r.example:b@y.example>", "b@y.example", "b@y.example"),
        (b"TO:<b@[IPv6:0::1]>", "b@[IPv6:::1]", "b@[IPv6:0::1]"),
    ],
)
def test_rcpt(octets, recipient, original, rules):
    command = parse_argument("RCPT", octets, rules)
    assert command == Command("RCPT", recipient, {})
    assert command.argument.original == original


@pytest.mark.parametrize(
    ("verb", "octets", "mailbox", "original"),
    [
        ("MAIL", b"FROM: <a@x.example>", "a@x.example", "a@x.example"),
        ("MAIL", b"FROM:a@x.example SIZE=1", "a@x.example", "a@x.example"),
        ("MAIL", b"FROM: a@x.example", "a@x.example", "a@x.example"),
        ("MAIL", b"FROM:<a@x.example.>", "a@x.example", "a@x.example."),
        ("MAIL", b"FROM:  <>", "", ""),
        ("RCPT", b"TO: b@y.example", "b@y.example", "b@y.example"),
        ("RCPT", b"TO: <Postmaster>", "postmaster", "Postmaster"),
        ("RCPT", b"TO:   <POSTMASTER>", "postmaster", "POSTMASTER"),
    ],
)
def test_path_that_is_forgiven(verb, octets, mailbox, original):
    command = parse_argument(verb, octets, FORGIVING)
    assert command.argument == mailbox
    assert command.argument.original == original
    assert refusal(verb, octets, STRICT)[0] == 501


@BOTH
@pytest.mark.parametrize(
    ("octets", "code", "status"),
    [
        (b"", 501, "5.1.7"),
        (b"FROM", 501, "5.1.7"),
        (b"FROM:", 501, "5.1.7"),
        (b"FROM:<a@x.example", 501, "5.1.7"),
        (b"FROM:a@x.example>", 501, "5.1.7"),
        (b"TO:<a@x.example>", 501, "5.1.7"),
        (b"FROM:<a@x.example>x", 501, "5.1.7"),
        (b"FROM:<a@[300.0.0.1]>", 501, "5.1.7"),
        (b"FROM:<a@" + b"a." * 127 + b"aa>", 501, "5.1.7"),
        (b"FROM:<postmaster>", 501, "5.1.7"),
        (b"FROM:<\xff@x.example>", 501, "5.5.2"),
        (b"FROM:<a\x00@x.example>", 501, "5.5.2"),
        (b"FROM:<a@x.example> =", 501, "5.5.4"),
        (b"FROM:<a@x.example> SIZE=", 501, "5.5.4"),
        (b"FROM:<a@x.example> SIZE=1,SIZE=2", 501, "5.5.4"),
        (b"FROM:<a@x.example> SIZE=x", 501, "5.5.4"),
        (b"FROM:<a@x.example> SIZE", 501, "5.5.4"),
        (b"FROM:<a@x.example> SMTPUTF8=1", 501, "5.5.4"),
        (b"FROM:<a@x.example> BODY=6BIT", 501, "5.5.4"),
        (b"FROM:<a@x.example> BODY=7BITS", 501, "5.5.4"),
        ("FROM:<a@x.example> BODY=7B\u0131T".encode(), 501, "5.5.4"),
        ("FROM:<a@x.example> BODY=8B\u0130TMIME".encode(), 501, "5.5.4"),
        (b"FROM:<a@x.example> SIZE=1 size=1", 501, "5.5.4"),
        (b"FROM:<a@x.example> RET=FULL", 555, "5.5.4"),
        ("FROM:<a@x.example> FUTURE=ü".encode(), 555, "5.5.4"),
    ],
    ids=ascii,
)
def test_mail_that_is_none(octets, code, status, rules):
    assert refusal("MAIL", octets, rules) == (code, status)


@BOTH
@pytest.mark.parametrize(
    ("octets", "code", "status"),
    [
        (b"TO:<>", 501, "5.1.3"),
        (b"TO:<b>", 501, "5.1.3"),
        (b"TO:postmaster", 501, "5.1.3"),
        (b"TO:<postmasters>", 501, "5.1.3"),
        ("TO:<po\u017ftma\u017fter>".encode(), 501, "5.1.3"),
        (b"FROM:<b@y.example>", 501, "5.1.3"),
        (b"TO:<b@[IPv6:x]>", 501, "5.1.3"),
        (b"TO:<b@y.example> SIZE=1", 555, "5.5.4"),
        (b"TO:<b@y.example> NOTIFY=NEVER", 555, "5.5.4"),
    ],
    ids=ascii,
)
def test_rcpt_that_is_none(octets, code, status, rules):
    assert refusal("RCPT", octets, rules) == (code, status)


def test_spaces_between_parameters_are_forgiven():
    command = parse_argument("MAIL", b"FROM:<a@x.example>   SIZE=1   BODY=7BIT", FORGIVING)
    assert command.parameters == {"SIZE": "1", "BODY": "7BIT"}


@pytest.mark.parametrize("parameter", [SIZE, BODY, SMTPUTF8], ids=lambda row: row.keyword)
def test_parameter_is_known_where_its_extension_is_offered(parameter):
    known = {"SIZE": b"SIZE=1", "BODY": b"BODY=7BIT", "SMTPUTF8": b"SMTPUTF8"}
    octets = b"FROM:<a@x.example> " + known[parameter.keyword]
    only = grammar(False, [Extension("ONLY", parameters=(parameter,))])
    assert set(parse_argument(parameter.verb, octets, only).parameters) == {parameter.keyword}
    assert refusal(parameter.verb, octets, grammar(False, [])) == (555, "5.5.4")


COLOR = Parameter("RCPT", "COLOR", "red|blue", 11, not_with="COLOUR")
COLOUR = Parameter("RCPT", "COLOUR", "[a-z]+", 11, lambda text: text[:3] if "d" in text else None)
COLORS = grammar(False, [Extension("COLOR", parameters=(COLOR, COLOUR))])


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        (b"COLOR=red", {"COLOR": "red"}),
        (b"color=BLUE", {"COLOR": "BLUE"}),
        (b"colour=Reddish", {"COLOUR": "Red"}),
    ],
)
def test_parameter_of_ones_own(words, parameters):
    command = parse_argument("RCPT", b"TO:<b@y.example> " + words, COLORS)
    assert command.parameters == parameters


@pytest.mark.parametrize(
    "words",
    [b"COLOR", b"COLOR=green", b"COLOR=redd", b"COLOUR=blue", b"COLOUR=red COLOR=red"],
)
def test_parameter_of_ones_own_that_is_none(words):
    assert refusal("RCPT", b"TO:<b@y.example> " + words, COLORS) == (501, "5.5.4")


def test_unknown_parameters_may_be_recorded():
    lenient = grammar(False, OFFERED, ignore_parameters=True)
    octets = b"FROM:<a@x.example> FUTURE=Value X-1 SIZE=1"
    command = parse_argument("MAIL", octets, lenient)
    assert command.parameters == {"FUTURE": "Value", "X-1": True, "SIZE": "1"}
    assert refusal("MAIL", octets + b" SIZE=x", lenient) == (501, "5.5.4")
    assert refusal("MAIL", octets + b" future=2", lenient) == (501, "5.5.4")
    assert refusal("MAIL", b"FROM:<a@x.example> SIZE=x", lenient) == (501, "5.5.4")


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("", ""),
        ("abc", "abc"),
        ("e+3Dmc2@example.com", "e=mc2@example.com"),
        ("a+2Bb+20c", "a+b c"),
        ("!*,<>~", "!*,<>~"),
        ("a=b", None),
        ("a+b", None),
        ("a+2b", None),
        ("a+2", None),
        ("a b", None),
        ("a\x7f", None),
        ("\u00e9", None),
        ("+\u0663\u0663", None),
    ],
)
def test_xtext(text, decoded):
    # RFC 3461 4: ! to ~ but for + and =, and + with two upper-case hexadecimal digits
    assert xtext(text) == decoded


@pytest.mark.parametrize(
    ("value", "kept"),
    [(b"<>", "<>"), (b"e+3Dmc2@X.example", "e=mc2@x.example"), (b"+22a+20b+22@x.example", None)],
)
def test_auth_of_mail_is_a_mailbox(value, kept):
    # RFC 4954 5
    made = grammar(False, [Extension("AUTH", parameters=(AUTH,))])
    command = parse_argument("MAIL", b"FROM:<a@x.example> AUTH=" + value, made)
    assert command.parameters == {"AUTH": kept or '"a b"@x.example'}


@pytest.mark.parametrize(
    ("octets", "argument"),
    [
        (b"PLAIN", ("PLAIN", None)),
        (b"plain =", ("PLAIN", b"")),
        (b"scram-sha-256 bixhLA==", ("SCRAM-SHA-256", b"n,a,")),
        (b"X AHRpbQBzZWNyZXQ=", ("X", b"\0tim\0secret")),
    ],
)
def test_auth(octets, argument):
    assert parse_argument("AUTH", octets, FORGIVING) == Command("AUTH", argument)


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (b"", "5.5.4"),
        (b"PLAIN AAAA AAAA", "5.5.4"),
        (b"PLAIN  AAAA", "5.5.4"),
        ("PLA\u0131N".encode(), "5.5.4"),
        (b"PLAIN A", "5.5.2"),
        (b"PLAIN AAA", "5.5.2"),
        (b"PLAIN AA=A", "5.5.2"),
        (b"PLAIN ====", "5.5.2"),
        (b"PLAIN AAAA=", "5.5.2"),
        (b"PLAIN AA-_", "5.5.2"),
        ("PLAIN AAA\u0131".encode(), "5.5.2"),
    ],
)
def test_auth_that_is_none(octets, status):
    assert refusal("AUTH", octets) == (501, status)


@pytest.mark.parametrize(
    ("octets", "argument"),
    [
        (b"0", (0, "")),
        (b"007 LAST", (7, "LAST")),
        (b"99999999999999999999 last", (99999999999999999999, "LAST")),
        (b"5 FIRST", (5, "FIRST")),
        ("5 la\u017ft".encode(), (5, "la\u017ft")),
    ],
)
def test_bdat(octets, argument):
    assert parse_argument("BDAT", octets, FORGIVING) == Command("BDAT", argument)


@pytest.mark.parametrize(
    "octets", [b"", b"LAST", b"-1", b"+1", b"1.0", b"0x10", b"1LAST", b"1" * 21, "\u0663".encode()]
)
def test_bdat_without_a_size(octets):
    assert refusal("BDAT", octets) == (501, "5.5.4")


@pytest.mark.parametrize(
    ("octets", "attributes"),
    [
        (b"ADDR=192.0.2.1", {"ADDR": "192.0.2.1"}),
        (b"addr=192.0.2.1  Port=25", {"ADDR": "192.0.2.1", "PORT": "25"}),
        (b"NAME=[UNAVAILABLE] HELO=[TEMPUNAVAIL]", {"NAME": "", "HELO": ""}),
        (b"HELO=a+2Bb+20c", {"HELO": "a+b c"}),
    ],
)
@pytest.mark.parametrize("verb", ["XCLIENT", "XFORWARD"])
def test_attributes(verb, octets, attributes):
    assert parse_argument(verb, octets, FORGIVING) == Command(verb, attributes)


@pytest.mark.parametrize(
    "octets",
    [b"", b"ADDR", b"ADDR=", b"=x", b"COLOR=red", b"HELO=a+0Ab", b"HELO=a+0", b"ADDR=1 COLOR=red"],
)
@pytest.mark.parametrize("verb", ["XCLIENT", "XFORWARD"])
def test_attributes_that_are_none(verb, octets):
    assert refusal(verb, octets) == (501, "5.5.4")


@pytest.mark.parametrize(
    ("verb", "octets"),
    [
        ("XCLIENT", b"IDENT=x"),
        ("XCLIENT", b"SOURCE=LOCAL"),
        ("XFORWARD", b"LOGIN=tim"),
        ("XFORWARD", b"DESTADDR=192.0.2.1"),
        ("XFORWARD", "\u0131DENT=x".encode()),
    ],
)
def test_attributes_of_the_other_verb(verb, octets):
    assert refusal(verb, octets) == (501, "5.5.4")


def test_commands_share_no_parameters():
    first = parse_argument("MAIL", b"FROM:<a@x.example> SIZE=1", FORGIVING)
    second = parse_argument("MAIL", b"FROM:<a@x.example>", FORGIVING)
    assert first.parameters == {"SIZE": "1"}
    assert second.parameters == {}


@pytest.mark.parametrize("verb", ["HELO", "EHLO", "LHLO"])
@pytest.mark.parametrize(
    "octets", [b"client.example", b"x", b"[192.0.2.1]", b"[IPv6:::1]"], ids=ascii
)
def test_greeting_takes_a_domain_or_an_address_literal(verb, octets):
    assert parse_argument(verb, octets, FORGIVING) == Command(verb, octets.decode(), {})


@pytest.mark.parametrize("verb", ["HELO", "EHLO", "LHLO"])
@pytest.mark.parametrize(
    "octets",
    [b"", b"a b", b"a..b", b"[x]", b"a@b", "ü.example".encode(), b"\xff", b"a\x00"],
    ids=ascii,
)
def test_greeting_without_a_name_is_501(verb, octets):
    assert refusal(verb, octets)[0] == 501


@pytest.mark.parametrize("verb", ["DATA", "RSET", "QUIT", "STARTTLS"])
def test_verb_without_argument(verb):
    assert parse_argument(verb, b"", FORGIVING) == Command(verb, "", {})
    assert refusal(verb, b"x") == (501, "5.5.4")


@pytest.mark.parametrize("verb", ["NOOP", "HELP"])
@pytest.mark.parametrize("text", ["", "x", "two words", "a\tb", "ü", "<>"])
def test_verb_with_any_argument(verb, text):
    assert parse_argument(verb, text.encode(), FORGIVING) == Command(verb, text, {})


@pytest.mark.parametrize("verb", ["VRFY", "EXPN"])
@pytest.mark.parametrize(
    ("text", "argument"),
    [
        ("jane", "jane"),
        ("Jane User <jane@y.example>", "Jane User <jane@y.example>"),
        ("jürgen SMTPUTF8", "jürgen"),
        ("jürgen  smtputf8", "jürgen"),
        ("SMTPUTF8", "SMTPUTF8"),
        ("xSMTPUTF8", "xSMTPUTF8"),
        ("jane \u017fMTPUTF8", "jane \u017fMTPUTF8"),
    ],
)
def test_inquiry_takes_a_string(verb, text, argument):
    assert parse_argument(verb, text.encode(), FORGIVING) == Command(verb, argument, {})


@pytest.mark.parametrize("verb", ["VRFY", "EXPN"])
def test_inquiry_needs_a_string(verb):
    assert refusal(verb, b"") == (501, "5.5.4")


@pytest.mark.parametrize("octet", [*range(9), *range(10, 32), 127])
def test_control_character_is_in_no_argument(octet):
    for verb in ("NOOP", "HELP", "VRFY", "MAIL"):
        assert refusal(verb, b"a" + bytes([octet])) == (501, "5.5.2")


@pytest.mark.parametrize("octets", [b"\x80", b"\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80"])
def test_what_is_no_utf8_is_in_no_argument(octets):
    assert refusal("NOOP", octets) == (501, "5.5.2")


@pytest.mark.parametrize("verb", VERBS)
def test_usage_begins_with_the_verb(verb):
    assert VERBS[verb].usage.split()[0] == verb
    assert VERBS[verb].usage.isascii()
