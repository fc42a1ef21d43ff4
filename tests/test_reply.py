"""Replies as values and as octets, and the exceptions that carry them."""

import re

import pytest

from smtpd_sync import Disconnect, Reject, Reply, reply

LINE = re.compile(rb"[2-5][0-9][0-9][ -][ -~]*\r\n")


@pytest.mark.parametrize(
    ("made", "octets"),
    [
        (Reply(250, "Fine"), b"250 2.0.0 Fine\r\n"),
        (Reply(250, "Fine", "2.1.5"), b"250 2.1.5 Fine\r\n"),
        (Reply(451, "Later"), b"451 4.0.0 Later\r\n"),
        (Reply(550, "No", "5.123.999"), b"550 5.123.999 No\r\n"),
        (Reply(354, "Go"), b"354 Go\r\n"),
        (Reply(250, "a\nb\nc"), b"250-2.0.0 a\r\n250-2.0.0 b\r\n250 2.0.0 c\r\n"),
        (Reply(250, "a\r\nb"), b"250-2.0.0 a\r\n250 2.0.0 b\r\n"),
        (Reply(250, "a\n"), b"250-2.0.0 a\r\n250 2.0.0 \r\n"),
    ],
    ids=repr,
)
def test_status_is_on_every_line(made, octets):
    assert made.render() == octets
    assert made.render() == octets, "and the second time"


@pytest.mark.parametrize(
    ("made", "octets"),
    [
        (Reply(250, "Fine", "2.1.5"), b"250 Fine\r\n"),
        (Reply(250, "a\nb"), b"250-a\r\n250 b\r\n"),
        (Reply(354, "Go"), b"354 Go\r\n"),
    ],
    ids=repr,
)
def test_status_may_be_left_out(made, octets):
    assert made.render(extended=False) == octets
    assert made.render(extended=False) == octets, "and the second time"


@pytest.mark.parametrize(
    "text",
    ["a\rb", "a\tb", "a\x00b", "a\x1b[2Jb", "a\x7fb", "aéb", "a\x85b", "a\u2028b", "a\x0bb\x0c"],
    ids=ascii,
)
def test_what_is_not_printable_ascii_reaches_no_client(text):
    octets = Reply(550, text).render()
    assert LINE.fullmatch(octets)
    assert b"?" in octets


def test_no_text_of_a_hook_starts_a_reply_of_its_own():
    said = Reply(550, "No\r\n250 2.0.0 Yes\n\n220 hello").render().splitlines(keepends=True)
    assert all(line.startswith((b"550-5.0.0 ", b"550 5.0.0 ")) for line in said)
    assert [line[3:4] for line in said] == [b"-", b"-", b"-", b" "]


@pytest.mark.parametrize("extended", [True, False], ids=["extended", "bare"])
@pytest.mark.parametrize("length", [0, 1, 500, 501, 502, 505, 506, 507, 511, 512, 1100, 5000])
@pytest.mark.parametrize("unit", ["x", "word ", "   ", "é", "lo ng"], ids=ascii)
def test_long_line_becomes_several(unit, length, extended):
    text = (unit * length)[:length]
    lines = Reply(550, text).render(extended).splitlines(keepends=True)
    assert all(len(line) <= 512 for line in lines)  # RFC 5321 4.5.3.1.5
    assert all(LINE.fullmatch(line) for line in lines)
    assert {line[3:4] for line in lines[:-1]} <= {b"-"}
    assert lines[-1][3:4] == b" "
    start = 10 if extended else 4
    words = b"".join(line[start:-2] for line in lines)
    if text:
        squeezed = re.sub("[^ -~]", "?", text).replace(" ", "")
        assert words.replace(b" ", b"").decode() == squeezed


@pytest.mark.parametrize(("extended", "room"), [(True, 500), (False, 506)])
def test_line_of_just_512_octets_stays_one(extended, room):
    assert len(Reply(250, "x" * room).render(extended)) == 512
    assert Reply(250, "x" * (room + 1)).render(extended).count(b"\r\n") == 2


def test_long_line_is_cut_between_words():
    first, second = Reply(250, "a" * 300 + " " + "b" * 300).render().splitlines()
    assert first == b"250-2.0.0 " + b"a" * 300
    assert second == b"250 2.0.0 " + b"b" * 300


def test_no_line_is_empty_because_of_a_space():
    assert b"\r\n250-2.0.0 \r\n" not in b"\r\n" + Reply(250, " " + "x" * 600).render()


@pytest.mark.parametrize("code", [199, 600, 0, -250, 1000, "250", None, 250.0, True], ids=repr)
def test_code_is_a_number_from_200_to_599(code):
    with pytest.raises(ValueError, match="reply code"):
        Reply(code)


@pytest.mark.parametrize("text", [b"octets", None, 1], ids=repr)
def test_text_is_a_str(text):
    with pytest.raises(ValueError, match="str"):
        Reply(250, text)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (250, "5.0.0"),
        (550, "2.0.0"),
        (550, "4.7.1"),
        (451, "5.7.1"),
        (354, "3.0.0"),
        (354, "2.0.0"),
        (550, "5.1"),
        (550, "5.1.1.1"),
        (550, "5.1000.1"),
        (550, "5.1.1000"),
        (550, "5.01.1"),
        (550, "5.1.1 "),
        (550, "5.1.1\n"),
        (550, "5.1.x"),
        (550, "5.\u0661.1"),
        (550, ""),
    ],
)
def test_status_is_of_rfc_3463_and_of_the_class_of_the_code(code, status):
    with pytest.raises(ValueError, match="RFC 2034"):
        Reply(code, "No", status)


@pytest.mark.parametrize(
    ("made", "text", "status"),
    [
        (Reply(250), "OK", "2.0.0"),
        (Reply(221), "Bye", "2.0.0"),
        (Reply(299), "OK", "2.0.0"),
        (Reply(354), "Start mail input; end with <CRLF>.<CRLF>", ""),
        (Reply(334), "", ""),
        (Reply(499), "Refused", "4.0.0"),
        (Reply(599), "Refused", "5.0.0"),
        (Reply(550, "", "5.1.1"), "Requested action not taken: mailbox unavailable", "5.1.1"),
    ],
    ids=lambda value: str(getattr(value, "code", "")),
)
def test_text_and_status_have_defaults(made, text, status):
    assert (made.text, made.status) == (text, status)


def test_replies_compare_by_value():
    assert Reply(250, "a") == Reply(250, "a", "2.0.0")
    assert hash(Reply(250, "a")) == hash(Reply(250, "a", "2.0.0"))
    assert Reply(250, "a") != Reply(251, "a")
    assert Reply(250, "a") != Reply(250, "b")
    assert Reply(250, "a") != Reply(250, "a", "2.1.0")
    assert Reply(250, "a") != 250
    assert Reply(250, "a").__eq__("250 a") is NotImplemented


def test_reply_shows_itself():
    assert repr(Reply(550, "No", "5.1.1")) == "Reply(550, 'No', '5.1.1')"


def test_reply_is_taken_apart_as_it_is_made():
    assert tuple(Reply(550, "No", "5.1.1")) == (550, "No", "5.1.1")
    assert tuple(Reply(354, "Go")) == (354, "Go", None)
    for one in (Reply(550, "No", "5.1.1"), Reply(354)):
        assert Reply(*one) == one


def test_reject_carries_a_reply():
    assert Reject(550, "No", "5.1.1").reply == Reply(550, "No", "5.1.1")
    assert Reject(451).reply == Reply(451)
    assert str(Reject(550, "No", "5.1.1")) == "(550, 'No', '5.1.1')"


@pytest.mark.parametrize("code", [220, 250, 354])
def test_reject_refuses(code):
    with pytest.raises(ValueError, match="4yz or 5yz"):
        Reject(code)


def test_disconnect_is_421_4_7_0():
    assert Disconnect().reply.code == 421
    assert Disconnect().reply.status == "4.7.0"


def test_disconnect_carries_a_reply():
    assert Disconnect(554, "Go", "5.7.1").reply == Reply(554, "Go", "5.7.1")
    assert Disconnect(421, "Stop", "4.3.2").reply == Reply(421, "Stop", "4.3.2")
    assert Disconnect(554, "Go").reply == Reply(554, "Go", "5.0.0")


STANDARD = {name: value for name, value in vars(reply).items() if isinstance(value, Reply)}


@pytest.mark.parametrize("name", STANDARD)
def test_standard_reply_is_one_line(name):
    octets = STANDARD[name].render()
    assert LINE.fullmatch(octets)
    assert len(octets) <= 80


# Codes of RFC 5321 4.2, RFC 3207 4 and RFC 1870 6; status codes of RFC 3463 and its registry.
@pytest.mark.parametrize(
    ("name", "code", "status"),
    [
        ("BYE", 221, "2.0.0"),
        ("SENDER_OK", 250, "2.1.0"),
        ("RECIPIENT_OK", 250, "2.1.5"),
        ("HOST_REFUSED", 554, "5.7.1"),
        ("NAME_REFUSED", 550, "5.7.1"),
        ("SENDER_REFUSED", 550, "5.7.1"),
        ("RECIPIENT_REFUSED", 550, "5.1.1"),
        ("DATA_REFUSED", 554, "5.7.1"),
        ("MESSAGE_REFUSED", 554, "5.0.0"),
        ("LOCAL_ERROR", 451, "4.3.0"),
        ("NO_STORAGE", 452, "4.3.1"),
        ("UNRECOGNIZED", 500, "5.5.2"),
        ("LINE_TOO_LONG", 500, "5.5.2"),
        ("BAD_SENDER", 501, "5.1.7"),
        ("BAD_RECIPIENT", 501, "5.1.3"),
        ("UNKNOWN_PARAMETER", 555, "5.5.4"),
        ("UTF8_NEEDED", 553, "5.6.7"),
        ("NOT_IMPLEMENTED", 502, "5.5.1"),
        ("BAD_SEQUENCE", 503, "5.5.1"),
        ("TLS_NEEDED", 530, "5.7.0"),
        ("OUT_OF_SYNC", 554, "5.5.0"),
        ("NOT_SMTP", 554, "5.5.0"),
        ("TOO_MANY_RECIPIENTS", 452, "4.5.3"),
        ("MESSAGE_TOO_BIG", 552, "5.3.4"),
        ("BARE_NEWLINE", 550, "5.6.11"),
        ("TEXT_LINE_TOO_LONG", 500, "5.6.0"),
        ("TOO_MANY_ERRORS", 421, "4.7.0"),
        ("TOO_MANY_COMMANDS", 421, "4.7.0"),
        ("TIMED_OUT", 421, "4.4.2"),
        ("SHUTTING_DOWN", 421, "4.3.2"),
    ],
)
def test_standard_reply_has_the_code_of_its_source(name, code, status):
    assert (STANDARD[name].code, STANDARD[name].status) == (code, status)
