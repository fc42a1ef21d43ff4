"""Patterns that are compiled at their first use: they do what re's own do."""

import re

import pytest

from smtpd_sync.patterns import METHODS, Pattern


@pytest.mark.parametrize("method", ["match", "fullmatch", "search"])
@pytest.mark.parametrize("text", ["abc", "xabc", "ABC", ""])
def test_methods_are_those_of_re(method, text):
    ours = getattr(Pattern("ab?c", re.IGNORECASE), method)(text)
    theirs = getattr(re.compile("ab?c", re.IGNORECASE), method)(text)
    assert (ours and ours.span()) == (theirs and theirs.span())


def test_substitutes():
    assert Pattern("[0-9]").sub("?", "a1b2") == "a?b?"


def test_is_compiled_once_and_not_before_its_use(monkeypatch):
    compiled = []
    compile_it = re.compile
    monkeypatch.setattr(re, "compile", lambda *said: compiled.append(said) or compile_it(*said))
    pattern = Pattern("a")
    assert compiled == []
    for name in METHODS:
        getattr(pattern, name)
    assert pattern.match("a")
    assert compiled == [("a", 0)]


def test_has_nothing_else():
    with pytest.raises(AttributeError):
        Pattern("a").findall  # noqa: B018
