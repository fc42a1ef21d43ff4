"""Commands: one line in, one value out, or the refusal that says what is wrong with it."""

import pytest

from smtpd_sync import Mailbox, Reject
from smtpd_sync.command import PARAMETERS, VERBS, Command, grammar, parse_argument

OFFERED = {"SIZE": "1000", "8BITMIME": "", "SMTPUTF8": ""}
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


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.keyword)
def test_parameter_is_known_where_its_extension_is_offered(parameter):
    known = {"SIZE": b"SIZE=1", "BODY": b"BODY=7BIT", "SMTPUTF8": b"SMTPUTF8"}
    octets = b"FROM:<a@x.example> " + known[parameter.keyword]
    only = grammar(False, {parameter.extension: ""})
    assert set(parse_argument(parameter.verb, octets, only).parameters) == {parameter.keyword}
    assert refusal(parameter.verb, octets, grammar(False, {})) == (555, "5.5.4")


def test_commands_share_no_parameters():
    first = parse_argument("MAIL", b"FROM:<a@x.example> SIZE=1", FORGIVING)
    second = parse_argument("MAIL", b"FROM:<a@x.example>", FORGIVING)
    assert first.parameters == {"SIZE": "1"}
    assert second.parameters == {}


@pytest.mark.parametrize("verb", ["HELO", "EHLO"])
@pytest.mark.parametrize(
    "octets", [b"client.example", b"x", b"[192.0.2.1]", b"[IPv6:::1]"], ids=ascii
)
def test_greeting_takes_a_domain_or_an_address_literal(verb, octets):
    assert parse_argument(verb, octets, FORGIVING) == Command(verb, octets.decode(), {})


@pytest.mark.parametrize("verb", ["HELO", "EHLO"])
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


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.keyword)
def test_parameter_cites_its_rfc_and_is_of_a_verb(parameter):
    assert parameter.rfc.startswith("RFC ")
    assert parameter.verb in VERBS
