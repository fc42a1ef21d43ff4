"""What is worked out once for every session: keywords, line lengths, the grammar."""

import pytest

from smtpd_sync import Limits, Reject
from smtpd_sync.command import parse_argument
from smtpd_sync.rules import DEFAULT_RULES, rules


def test_defaults_are_safe():
    assert DEFAULT_RULES.limits == Limits()
    assert DEFAULT_RULES.strict_pipelining
    assert DEFAULT_RULES.bare_newline == "normalize"
    assert not DEFAULT_RULES.require_tls
    assert not DEFAULT_RULES.grammar.strict


def test_keywords_are_those_of_the_extensions():
    assert DEFAULT_RULES.keywords["SIZE"] == "33554432"
    assert {"8BITMIME", "PIPELINING", "ENHANCEDSTATUSCODES", "SMTPUTF8", "HELP"} < set(
        DEFAULT_RULES.keywords
    )


def test_starttls_is_offered_where_there_is_tls():
    assert "STARTTLS" not in DEFAULT_RULES.keywords
    assert "STARTTLS" in rules(starttls=True).keywords


@pytest.mark.parametrize(("limit", "shown"), [(None, "0"), (1, "1"), (10**12, "1000000000000")])
def test_size_tells_the_limit(limit, shown):
    # RFC 1870 4: 0 is "no fixed maximum"
    assert rules(Limits(message_size=limit)).keywords["SIZE"] == shown


@pytest.mark.parametrize("command_line", [512, 2000])
def test_extensions_make_mail_longer(command_line):
    made = rules(Limits(command_line=command_line))
    # 26 by RFC 1870 3, 17 by RFC 6152 2, 10 by RFC 6531 3.1
    assert made.line_lengths["MAIL"] == command_line + 26 + 17 + 10
    assert made.line_lengths["RCPT"] == command_line
    assert made.line_lengths["VRFY"] == command_line
    assert made.longest_line == max(made.line_lengths.values())


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
