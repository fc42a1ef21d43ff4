"""The extensions that are switched on: each row of the table, good and malformed."""

import datetime

import pytest

from smtpd_sync import Reject
from smtpd_sync.command import Extension, grammar, parse_argument
from smtpd_sync.extensions import (
    EXTENSIONS,
    check_extensions,
    date_time,
    deliver_by,
    future_release,
    mt_priority,
)

UTC = datetime.timezone.utc
ALL = [*EXTENSIONS.values(), future_release(3600)]
GRAMMAR = grammar(False, ALL)
PATHS = {"MAIL": "FROM:<a@x.example>", "RCPT": "TO:<b@y.example>"}


def parse(verb, words, made=GRAMMAR):
    return parse_argument(verb, f"{PATHS[verb]} {words}".encode(), made).parameters


@pytest.mark.parametrize(
    ("verb", "words", "keyword", "kept"),
    [
        ("MAIL", "RET=Full", "RET", "Full"),
        ("MAIL", "ret=HDRS", "RET", "HDRS"),
        ("MAIL", "ENVID=QQ+2B314159+20x", "ENVID", "QQ+314159 x"),
        ("RCPT", "NOTIFY=never", "NOTIFY", "never"),
        ("RCPT", "NOTIFY=Success,FAILURE,delay", "NOTIFY", "Success,FAILURE,delay"),
        ("RCPT", "ORCPT=RFC822;Bob+2Bx@Y.example", "ORCPT", "RFC822;Bob+x@Y.example"),
        ("RCPT", "ORCPT=utf-8;b+2Bx@y.example", "ORCPT", "utf-8;b+2Bx@y.example"),
        ("MAIL", "REQUIRETLS", "REQUIRETLS", True),
        ("MAIL", "MT-PRIORITY=-3", "MT-PRIORITY", "-3"),
        ("MAIL", "BY=120;r", "BY", "120;r"),
        ("MAIL", "BY=-5;Nt", "BY", "-5;Nt"),
        ("MAIL", "HOLDFOR=60", "HOLDFOR", "60"),
        ("MAIL", "HOLDUNTIL=2024-01-01t00:00:00z", "HOLDUNTIL", "2024-01-01t00:00:00z"),
        ("RCPT", "RRVS=2014-04-03T23:01:00Z;c", "RRVS", "2014-04-03T23:01:00Z;c"),
    ],
)
def test_value_is_kept_as_it_was_sent(verb, words, keyword, kept):
    assert parse(verb, words) == {keyword: kept}
    for code, made, other in (
        (555, grammar(False, []), verb),
        (555, GRAMMAR, "RCPT" if verb == "MAIL" else "MAIL"),
    ):
        with pytest.raises(Reject) as caught:
            parse(other, words, made)
        assert caught.value.reply.code == code
    with pytest.raises(Reject) as caught:
        parse(verb, f"{words} {words}")
    assert caught.value.reply.code == 501


@pytest.mark.parametrize("extension", ALL, ids=lambda extension: extension.keyword)
def test_parameters_have_their_octets(extension):
    for row in extension.parameters:
        assert row.verb in PATHS
        assert row.octets >= len(f" {row.keyword}")
        if row.value is not None:
            for words in (row.keyword, f"{row.keyword}=\u0663"):
                with pytest.raises(Reject) as caught:
                    parse(row.verb, words)
                assert caught.value.reply.code == 501
    assert extension.rfc.startswith("RFC ")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        # RFC 3339 5.8
        ("1985-04-12T23:20:50.52Z", datetime.datetime(1985, 4, 12, 23, 20, 50, tzinfo=UTC)),
        ("1996-12-19T16:39:57-08:00", datetime.datetime(1996, 12, 20, 0, 39, 57, tzinfo=UTC)),
        ("1937-01-01t12:00:27.87+00:20", datetime.datetime(1937, 1, 1, 11, 40, 27, tzinfo=UTC)),
        ("2024-02-29T00:00:00Z", datetime.datetime(2024, 2, 29, tzinfo=UTC)),
        ("2023-02-29T00:00:00Z", None),
        ("2024-13-01T00:00:00Z", None),
        ("2024-01-01T24:00:00Z", None),
        ("2024-01-01T00:00:00", None),
        ("2024-01-01 00:00:00Z", None),
        ("2024-01-01T00:00:00+0100", None),
        ("2024-01-01T00:00:00+24:00", None),
        ("2024-01-01T00:00:00.Z", None),
        ("0000-01-01T00:00:00Z", None),
        ("\u0662024-01-01T00:00:00Z", None),
        ("", None),
    ],
)
def test_date_time(text, moment):
    assert date_time(text) == moment


def test_offers():
    assert EXTENSIONS["DSN"].offer() == "DSN"
    assert EXTENSIONS["REQUIRETLS"].inside_tls
    assert mt_priority().offer() == "MT-PRIORITY"
    assert mt_priority("NSEP").offer() == "MT-PRIORITY NSEP"
    assert deliver_by().offer() == "DELIVERBY"
    assert deliver_by(240).offer() == "DELIVERBY 240"


def test_future_release_offers_how_long_and_until_when():
    # RFC 4865 4
    keyword, seconds, until = future_release(3600).offer().split(" ")
    assert (keyword, seconds) == ("FUTURERELEASE", "3600")
    left = date_time(until) - datetime.datetime.now(UTC)
    assert 3500 < left.total_seconds() <= 3600


@pytest.mark.parametrize("seconds", [-60, 3000, 4000])
def test_hold_until_is_no_later_than_offered(seconds):
    until = datetime.datetime.now(UTC) + datetime.timedelta(seconds=seconds)
    words = f"HOLDUNTIL={until:%Y-%m-%dT%H:%M:%SZ}"
    if seconds <= 3600:
        assert parse("MAIL", words)
    else:
        with pytest.raises(Reject):
            parse("MAIL", words)


@pytest.mark.parametrize("seconds", [0, -1, 1_000_000_000])
def test_future_release_that_cannot_be(seconds):
    with pytest.raises(ValueError, match="max_interval"):
        future_release(seconds)


def test_extensions_are_named_in_any_case():
    own = Extension("X-OWN")
    assert check_extensions(["dsn", "Mt-Priority", own]) == (
        EXTENSIONS["DSN"],
        EXTENSIONS["MT-PRIORITY"],
        own,
    )
    assert check_extensions([]) == ()


@pytest.mark.parametrize("value", ["DSN", Extension("DSN"), ["NONE"], ["FUTURERELEASE"], [None]])
def test_extensions_that_are_none(value):
    with pytest.raises(ValueError, match=r"Extension"):
        check_extensions(value)
