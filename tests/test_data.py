"""Mail data: only CRLF . CRLF ends it, however it is cut."""

import itertools

import pytest

from smtpd_sync.data import BARE_NEWLINE_RULES, DataDecoder, normalize

RULES = pytest.mark.parametrize("rule", BARE_NEWLINE_RULES)


def decode(pieces, rule="normalize", measure_lines=False):
    """Give the content, the rest, and the decoder, once all pieces were fed."""
    decoder = DataDecoder(rule, measure_lines)
    content, pieces = [], list(pieces)
    for number, piece in enumerate(pieces, 1):
        decoded = decoder.feed(piece)
        content.append(decoded.content)
        if decoded.rest is not None:
            rest = b"".join([decoded.rest, *pieces[number:]])
            return b"".join(content), rest, decoder
    return b"".join(content), None, decoder


def cuts(octets):
    """Give every way to cut octets in three, and the one in single octets."""
    for first, second in itertools.combinations_with_replacement(range(len(octets) + 1), 2):
        yield octets[:first], octets[first:second], octets[second:]
    yield [octets[at : at + 1] for at in range(len(octets))]


MESSAGES = [
    (b".\r\n", b""),
    (b"\r\n.\r\n", b"\r\n"),
    (b"..\r\n.\r\n", b".\r\n"),
    (b"...\r\n.\r\n", b"..\r\n"),
    (b".a\r\n.\r\n", b"a\r\n"),
    (b"a\r\n.\r\n", b"a\r\n"),
    (b"a\r\n\r\n.\r\n", b"a\r\n\r\n"),
    (b"a\r\n..\r\n.\r\n", b"a\r\n.\r\n"),
    (b"a\r\n..\r\n..\r\n..b\r\n.\r\n", b"a\r\n.\r\n.\r\n.b\r\n"),
    (b"a.\r\n.b\r\n.\r\n", b"a.\r\nb\r\n"),
    (b". \r\n.\r\n", b" \r\n"),
    (b"a\r\n.\x00\r\n.\r\n", b"a\r\n\x00\r\n"),
    (b"\x80\xff\x00\r\n.\r\n", b"\x80\xff\x00\r\n"),
    (b"..\r\n\r\n..\r\n.\r\n", b".\r\n\r\n.\r\n"),
]


@RULES
@pytest.mark.parametrize(("wire", "content"), MESSAGES, ids=ascii)
def test_dots_are_transparent(wire, content, rule):
    for pieces in cuts(wire):
        found, rest, decoder = decode(pieces, rule)
        assert (found, rest) == (content, b""), pieces
        assert not decoder.bare_newlines


@RULES
def test_what_follows_is_the_rest(rule):
    wire = b"a\r\n.\r\nQUIT\r\n.\r\n"
    for pieces in cuts(wire):
        assert decode(pieces, rule)[:2] == (b"a\r\n", b"QUIT\r\n.\r\n"), pieces


# Every end but the right one, behind a line and with more of the message behind it.
FALSE_ENDS = [
    before + b"." + after
    for before in (b"\n", b"\r", b"\r\n", b"\n\r", b"\r\r\n", b"\r\n\r", b"\n\n", b"\r\n ", b"\0")
    for after in (b"\n", b"\r", b"\r\n", b"\n\r", b"\r\r\n", b" \r\n", b"\0\r\n", b"\0\n")
    if not (before.endswith(b"\r\n") and after.startswith(b"\r\n"))
]


@RULES
@pytest.mark.parametrize("false_end", FALSE_ENDS, ids=ascii)
def test_nothing_else_ends_mail_data(false_end, rule):
    wire = b"a" + false_end + b"b\r\n.\r\nRSET\r\n"
    whole = decode([wire], rule)[0]
    for pieces in cuts(wire):
        content, rest, decoder = decode(pieces, rule)
        assert (content, rest) == (whole, b"RSET\r\n"), pieces
        left = false_end.replace(b"\r\n", b"")
        assert decoder.bare_newlines == (b"\r" in left or b"\n" in left)


@pytest.mark.parametrize("false_end", FALSE_ENDS, ids=ascii)
def test_to_keep_takes_the_added_dots_alone(false_end):
    wire = b"a" + false_end + b"b\r\n.\r\n"
    kept = wire[:-3].replace(b"\r\n.", b"\r\n")
    assert decode([wire], "keep")[0] == kept
    assert decode([wire], "normalize")[0] == normalize(kept)


@pytest.mark.parametrize(
    ("wire", "content"),
    [
        (b"a\nb", b"a\r\nb"),
        (b"a\rb", b"a\r\nb"),
        (b"a\r\nb", b"a\r\nb"),
        (b"a\n\rb", b"a\r\n\r\nb"),
        (b"a\r\r\nb", b"a\r\n\r\nb"),
        (b"a\r\n\nb", b"a\r\n\r\nb"),
        (b"\r\r\n\n", b"\r\n\r\n\r\n"),
        (b"\n", b"\r\n"),
        (b"\r", b"\r\n"),
        (b"", b""),
    ],
    ids=ascii,
)
def test_normalize_makes_each_bare_newline_a_crlf(wire, content):
    assert normalize(wire) == content
    assert normalize(content) == content


def test_dot_behind_a_bare_newline_is_content():
    wire = b"a\n..b\r..c\r\n..d\r\n.\r\n"
    for pieces in cuts(wire):
        assert decode(pieces, "normalize")[0] == b"a\r\n..b\r\n..c\r\n.d\r\n", pieces


@pytest.mark.parametrize("tail", [b"\r", b"\r\n", b"\r\n.", b"\r\n.\r"], ids=ascii)
def test_no_crlf_is_ever_split(tail):
    decoder = DataDecoder()
    assert decoder.feed(b"a" + tail) == (b"a", None)
    assert decoder.feed(b"") == (b"", None)
    assert not decoder.bare_newlines


def test_mail_data_without_end_comes_as_it_goes():
    decoder = DataDecoder()
    assert [decoder.feed(b"x" * 10).content for _ in range(3)] == [b"x" * 10] * 3


@pytest.mark.parametrize(
    ("wire", "longest"),
    [
        (b".\r\n", 0),
        (b"\r\n.\r\n", 2),
        (b"abc\r\n.\r\n", 5),
        (b"abc\r\na\r\n.\r\n", 5),
        (b"a\r\nabc\r\n.\r\n", 5),
        (b"a\r\nabc\r\na\r\n.\r\n", 5),
        (b"..bc\r\n.\r\n", 5),
        (b"a\r\n..bc\r\n.\r\n", 5),
    ],
    ids=ascii,
)
def test_longest_line_counts_crlf_and_no_added_dot(wire, longest):
    for pieces in cuts(wire):
        assert decode(pieces, measure_lines=True)[2].longest_line == longest, pieces
        assert decode(pieces)[2].longest_line == 0, "it is not measured unasked"


@pytest.mark.parametrize(
    ("rule", "longest"), [("normalize", 4), ("keep", 7), ("reject", 7)], ids=str
)
def test_line_ends_where_the_content_says(rule, longest):
    for pieces in cuts(b"ab\ncd\r\n.\r\n"):
        assert decode(pieces, rule, measure_lines=True)[2].longest_line == longest, pieces
