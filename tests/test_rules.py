"""What is worked out once for every session: keywords, line lengths, the grammar."""

import pytest

from smtpd_sync import Limits, Reject
from smtpd_sync.command import parse_argument
from smtpd_sync.extensions import EXTENSIONS, check_extensions
from smtpd_sync.rules import default_rules, rules
from smtpd_sync.sasl import MECHANISMS


def test_defaults_are_safe():
    assert default_rules().limits == Limits()
    assert default_rules().strict_pipelining
    assert default_rules().bare_newline == "normalize"
    assert not default_rules().require_tls
    assert default_rules().auth_require_tls
    assert not default_rules().grammar.ignore_parameters
    assert not default_rules().grammar.strict


def offered(made):
    """Give the EHLO keywords with their values."""
    return {extension.keyword: extension.offer() for extension in made.extensions}


def test_keywords_are_those_of_the_extensions():
    assert list(offered(default_rules()).values()) == [
        "SIZE 33554432",
        "8BITMIME",
        "PIPELINING",
        "CHUNKING",
        "BINARYMIME",
        "ENHANCEDSTATUSCODES",
        "SMTPUTF8",
        "LIMITS RCPTMAX=1000",
        "HELP",
    ]


def test_extensions_are_offered_where_they_were_asked_for():
    made = rules(extensions=check_extensions(["DSN", "RRVS"]))
    assert {"DSN", "RRVS"} == set(offered(made)) - set(offered(default_rules()))


def test_every_extension_cites_its_rfc():
    # but for those of Postfix, which have none
    for extension in rules(starttls=True, extensions=EXTENSIONS.values()).extensions:
        assert extension.rfc.startswith("RFC "), extension


def test_limits_tells_the_recipients():
    # RFC 9422 4
    assert offered(rules(Limits(recipients=7)))["LIMITS"] == "LIMITS RCPTMAX=7"


def test_starttls_is_offered_where_there_is_tls():
    assert "STARTTLS" not in offered(default_rules())
    assert "STARTTLS" in offered(rules(starttls=True))


def test_proxies_are_offered_xclient():
    assert not {"XCLIENT", "XFORWARD"} & set(offered(default_rules()))
    assert {"XCLIENT", "XFORWARD"} <= set(offered(rules(xclient=True)))


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({}, {"LHLO": 502, "XCLIENT": 500, "XFORWARD": 500, "STARTTLS": 502, "AUTH": 502}),
        (
            {"lmtp": True, "xclient": True, "starttls": True},
            {"HELO": 500, "EHLO": 500, "AUTH": 502},
        ),
        ({"mechanisms": ["PLAIN"], "xclient": True}, {"LHLO": 502, "STARTTLS": 502}),
    ],
    ids=repr,
)
def test_verbs_that_are_not_served_are_refused(options, refused):
    assert {verb: reply.code for verb, reply in rules(**options).refused.items()} == refused


def test_mechanisms_are_in_the_order_of_their_worth():
    asked = ["LOGIN", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "EXTERNAL"]
    assert rules(mechanisms=asked).mechanisms == tuple(name for name in MECHANISMS if name in asked)
    assert rules(mechanisms=asked).mechanisms.index("SCRAM-SHA-256") < 3
    assert rules().mechanisms == ()


@pytest.mark.parametrize(("limit", "shown"), [(None, "0"), (1, "1"), (10**12, "1000000000000")])
def test_size_tells_the_limit(limit, shown):
    # RFC 1870 4: 0 is "no fixed maximum"
    assert offered(rules(Limits(message_size=limit)))["SIZE"] == f"SIZE {shown}"


@pytest.mark.parametrize("command_line", [512, 2000])
def test_extensions_make_mail_longer(command_line):
    made = rules(Limits(command_line=command_line))
    # 26 by RFC 1870 3, 17 by RFC 6152 2, 10 by RFC 6531 3.1
    assert made.line_lengths["MAIL"] == command_line + 26 + 17 + 10
    assert made.line_lengths["RCPT"] == command_line
    assert made.line_lengths["VRFY"] == command_line
    assert made.line_lengths["AUTH"] == made.limits.auth_line
    assert made.longest_line == max(made.line_lengths.values())


def test_extensions_asked_for_make_lines_longer():
    # RFC 3461 4: 9 for RET, 107 for ENVID, 29 for NOTIFY, 507 for ORCPT; 500 by RFC 4954 3
    made = rules(extensions=check_extensions(["DSN"]), mechanisms=["PLAIN"])
    assert made.line_lengths["MAIL"] == 512 + 53 + 9 + 107 + 500
    assert made.line_lengths["RCPT"] == 512 + 29 + 507


@pytest.mark.parametrize("strict", [True, False])
def test_grammar_is_strict_or_not(strict):
    made = rules(strict=strict)
    assert made.grammar.strict is strict
    if strict:
        with pytest.raises(Reject):
            parse_argument("MAIL", b"FROM: a@x.example", made.grammar)
    else:
        assert parse_argument("MAIL", b"FROM: a@x.example", made.grammar)


def test_options_are_kept():
    made = rules(require_tls=True, strict_pipelining=False, bare_newline="reject")
    assert (made.require_tls, made.strict_pipelining, made.bare_newline) == (True, False, "reject")
