"""The mail data of one message: counted, dropped beyond the limit, judged at its end."""

import pytest

from smtpd_sync import Limits
from smtpd_sync.data import BARE_NEWLINE_RULES, ChunkDecoder, normalize
from smtpd_sync.maildata import MailData
from smtpd_sync.reply import BAD_CHUNK


def taken(mail, *pieces):
    """Give the content of octets that follow DATA."""
    return [mail.data(piece).content for piece in pieces]


def chunks(mail, *pieces):
    """Give the content of the octets of chunks."""
    last = len(pieces) - 1
    return b"".join(mail.chunk(piece, number == last) for number, piece in enumerate(pieces))


def test_data_ends_and_gives_the_rest():
    mail = MailData(Limits(), "normalize")
    assert mail.data(b"a\r\n..b\r") == (b"a\r\n.b", None)
    assert not mail.ended
    assert mail.data(b"\n.\r\nNOOP\r\n") == (b"\r\n", b"NOOP\r\n")
    assert mail.ended
    assert mail.size == 7
    assert mail.fault is None


@pytest.mark.parametrize("how", [taken, chunks])
def test_beyond_the_limit_content_is_dropped_and_counted(how):
    mail = MailData(Limits(message_size=10), "normalize")
    assert b"".join(how(mail, b"x" * 10)) == b"x" * 10 if how is taken else how(mail, b"x" * 10)
    assert not mail.too_big
    assert not b"".join(how(mail, b"y")) if how is taken else not how(mail, b"y")
    assert mail.too_big
    assert mail.fault.code == 552
    assert not mail.far_too_big
    how(mail, b"z" * 29)
    assert mail.size == 40
    assert not mail.far_too_big
    how(mail, b"z")
    assert mail.far_too_big


def test_no_limit_is_none():
    mail = MailData(Limits(message_size=None), "normalize")
    mail.chunk(b"x" * 10**6, True)
    assert not mail.too_big
    assert not mail.far_too_big


def test_refused_chunk_is_the_fault_before_all():
    mail = MailData(Limits(message_size=1), "reject")
    mail.chunk(b"a\nb", True)
    mail.refusal = BAD_CHUNK
    assert mail.fault == BAD_CHUNK
    assert mail.chunk(b"x", True) == b""


@pytest.mark.parametrize(("rule", "code"), [("normalize", None), ("keep", None), ("reject", 550)])
@pytest.mark.parametrize("how", [taken, chunks])
def test_bare_newline_is_a_fault_where_it_is_refused(how, rule, code):
    mail = MailData(Limits(), rule)
    how(mail, b"a\nb\r\n")
    assert (mail.fault and mail.fault.code) == code


@pytest.mark.parametrize("octets", [998, 999])
@pytest.mark.parametrize("how", [taken, chunks])
def test_text_line_is_measured_with_its_crlf(how, octets):
    mail = MailData(Limits(text_line=1000), "normalize")
    how(mail, b"x" * 500, b"x" * (octets - 500) + b"\r\nx\r\n")
    assert (mail.fault and mail.fault.code) == (500 if octets == 999 else None)
    mail = MailData(Limits(), "normalize")
    how(mail, b"x" * 5000 + b"\r\n")
    assert mail.fault is None


@pytest.mark.parametrize("rule", BARE_NEWLINE_RULES)
@pytest.mark.parametrize(
    "content", [b"", b"\r", b"\n", b"\r\n", b"\r\r\n\n", b"a\rb\nc\r\nd\n\re\r", b"a\r\n.\r\n..b"]
)
def test_chunks_may_be_cut_anywhere(content, rule):
    bare = b"\r" in content.replace(b"\r\n", b"") or b"\n" in content.replace(b"\r\n", b"")
    for cut in range(len(content) + 1):
        decoder = ChunkDecoder(rule)
        pieces = (content[:cut], b"", content[cut:])
        found = b"".join(decoder.feed(piece) for piece in pieces) + decoder.feed(b"", end=True)
        assert found == (normalize(content) if rule == "normalize" else content)
        assert decoder.bare_newlines == bare


@pytest.mark.parametrize("rule", BARE_NEWLINE_RULES)
def test_binary_content_is_left_as_it_came(rule):
    mail = MailData(Limits(text_line=1000), rule, binary=True)
    content = bytes(range(256)) * 10 + b"\r\n.\r\n\r"
    assert chunks(mail, content[:100], content[100:]) == content
    assert mail.fault is None
    assert mail.size == len(content)
