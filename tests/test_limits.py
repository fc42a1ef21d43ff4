"""Limits: the defaults, and what can be no limit."""

import pytest

from smtpd_sync import Limits
from smtpd_sync.limits import DEFAULT_LIMITS

OPTIONAL = {"message_size", "text_line", "session_time", "connections_per_address"}


def test_defaults_are_what_the_rfc_asks_for_at_least():
    limits = Limits()
    assert limits.recipients >= 100  # RFC 5321 4.5.3.1.8
    assert limits.command_line >= 512  # 4.5.3.1.4
    assert limits.text_line is None or limits.text_line >= 1000  # 4.5.3.1.6
    assert limits.message_size is None or limits.message_size >= 65536  # 4.5.3.1.7
    assert limits.command_timeout >= 300  # 4.5.3.2.7
    assert limits.check() == limits == DEFAULT_LIMITS


def test_limits_are_those_of_the_manual():
    assert Limits() == Limits(
        message_size=33_554_432,
        recipients=1_000,
        command_line=512,
        text_line=None,
        command_timeout=300,
        handshake_timeout=60,
        data_rate=500,
        errors=20,
        junk_commands=100,
        connections=1_000,
    )


def test_check_gives_the_limits_back():
    limits = Limits(message_size=1_000_000, recipients=100, command_timeout=0.5)
    assert limits.check() is limits


@pytest.mark.parametrize("name", sorted(OPTIONAL))
def test_some_may_be_without_limit(name):
    assert Limits(**{name: None}).check()


@pytest.mark.parametrize("name", sorted({*Limits._fields} - OPTIONAL))
def test_others_need_one(name):
    with pytest.raises(ValueError, match=name):
        Limits(**{name: None}).check()


@pytest.mark.parametrize("value", [0, -1, "10", True, False, float("nan"), [1]], ids=repr)
@pytest.mark.parametrize("name", Limits._fields)
def test_limit_is_a_positive_number(name, value):
    with pytest.raises(ValueError, match=name):
        Limits(**{name: value}).check()


@pytest.mark.parametrize(
    ("name", "least"), [("command_line", 512), ("text_line", 1000)], ids=["command", "text"]
)
def test_line_is_as_long_as_the_rfc_asks_for(name, least):
    assert Limits(**{name: least}).check()
    with pytest.raises(ValueError, match=f"{name}.*{least}.*RFC 5321"):
        Limits(**{name: least - 1}).check()
