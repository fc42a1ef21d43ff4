"""What has come and was not read: lines, counted octets, and bounded memory."""

import itertools

import pytest

from smtpd_sync.inbox import Inbox


def lines_of(pieces, longest=10):
    inbox, lines = Inbox(), []
    for piece in pieces:
        inbox.add(piece)
        while (line := inbox.line(longest)) is not None:
            lines.append(line)
    return lines


WIRE = (
    b"one\r\n\r\ntwo\nthree\r\n\rfour\r\r\n1234567890\r\n12345678901\r\n"
    + b"x" * 30
    + b"\r\nend\r\n"
)
LINES = [b"one", b"", b"two\nthree", b"\rfour\r", b"1234567890", b"12345678901", b"x" * 11, b"end"]


def test_only_crlf_ends_a_line():
    for first, second in itertools.combinations_with_replacement(range(len(WIRE) + 1), 2):
        assert lines_of([WIRE[:first], WIRE[first:second], WIRE[second:]]) == LINES, (first, second)
    assert lines_of([WIRE[at : at + 1] for at in range(len(WIRE))]) == LINES


def test_line_that_is_too_long_may_hold_a_cr():
    for ending in (b"\r", b"\r\r", b"\n", b"\n\r"):
        pieces = [b"x" * 12, b"x" + ending, b"y", b"\r\nz\r\n"]
        assert lines_of(pieces) == [b"x" * 11, b"z"]


def test_octets_are_taken_as_they_are():
    inbox = Inbox()
    assert not inbox.waiting
    inbox.add(b"abc\r\ndef")
    assert inbox.waiting
    assert inbox.line(10) == b"abc"
    assert inbox.take(2) == b"de"
    assert inbox.take(5) == b"f"
    assert not inbox.waiting
    assert inbox.take() == b""
    inbox.add(b"gh")
    assert inbox.take() == b"gh"


def test_what_was_put_back_is_read_again():
    inbox = Inbox()
    inbox.add(b"data.QUIT\r\n")
    assert inbox.take() == b"data.QUIT\r\n"
    inbox.put_back(b"QUIT\r\n")
    assert inbox.waiting
    assert inbox.line(10) == b"QUIT"
    assert not inbox.waiting


def test_clear_forgets_all():
    inbox = Inbox()
    inbox.add(b"x" * 20)
    assert inbox.line(10) is None
    inbox.add(b"yz")
    inbox.clear()
    assert not inbox.waiting
    inbox.add(b"a\r\n")
    assert inbox.line(10) == b"a"


@pytest.mark.parametrize(("longest", "starts"), [(10, True), (1, False)])
def test_line_begins_with(longest, starts):
    inbox = Inbox()
    inbox.add(b"\x16\x03\x01")
    assert inbox.line(longest) is None
    assert inbox.starts_with(b"\x16\x03") is starts, "of a line that is too long nothing is kept"
    assert not inbox.starts_with(b"\x16\x04")
