"""Names of files made from what clients send: inside their directory, and apart from each other."""

import itertools
import os
import random
import re
import string
import unicodedata

import pytest
from storing import envelope_of, front, unquoted

from smtpd_sync.lineends import FromQuoting, Text
from smtpd_sync.naming import Numbers, Template, first_free, safe_name
from smtpd_sync.syntax import Mailbox

PLAIN = [
    "jo@y.example",
    "jo+list@y.example",
    "a_b=c@y.example",
    "1@2",
    "a..b",
]
HOSTILE = [
    "",
    ".",
    "..",
    ".hidden@x.example",
    "../../etc/passwd@x.example",
    "/etc/passwd@x.example",
    "a/b@x.example",
    "a\\b@x.example",
    "..\\..\\boot.ini",
    "C:\\x@y",
    "a:b@x.example",
    "a*b?c@x.example",
    'a"b<c>d|e@x.example',
    "a b@x.example",
    " a@x.example",
    "a\0b",
    "a\nb",
    "a\x1b[2Jb",
    "a\x7fb",
    "a\u2028b",
    "a\u202eb",
    "a\uff0fb@x.example",  # Windows may write it as /
    "a\u2215b@x.example",
    "-rf@x.example",
    "~root@x.example",
    "%2e%2e%2f@x.example",
    "$(reboot)@x.example",
    "`reboot`@x.example",
    "a;b@x.example",
    "a,b@x.example",
    "trailing.",
    "trailing ",
    "x" * 64 + "@" + "y" * 255,
    "\u00fc" * 64 + "@" + "\u00e4" * 120,
    "\ud800@x.example",
]
RESERVED = [
    "con",
    "CON",
    "Aux.x@y",
    "nul.txt",
    "prn",
    "com1.a@x.example",
    "lpt9",
    "com0",
    "con.x@y",
]
PAIRS = [
    ("A@x.example", "a@x.example"),
    ("jO@x.example", "Jo@x.example"),
    (unicodedata.normalize("NFC", "\u00fc@x"), unicodedata.normalize("NFD", "\u00fc@x")),
    ("\u00df@x", "ss@x"),
    ("stra\u00dfe@x", "STRASSE@x"),
    ("\u0130@x", "i\u0307@x"),
    ("\u212a@x", "k@x"),  # KELVIN SIGN
    ("\uff41@x", "a@x"),
    ("a/b@x", "a_b@x"),
    ("a b@x", "a/b@x"),
    (".a@x", "_a@x"),
    ("con", "_con"),
    ("con", "CON"),
    ("a.", "a"),
    ("a ", "a"),
    ("x" * 200, "x" * 201),
    ("x" * 200 + "A", "x" * 200 + "a"),
]


def collision_key(name):
    """What a file system that ignores all it can would compare."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).rstrip(
        ". "
    )


def check_safe(name, most=120):
    assert 0 < len(os.fsencode(name)) <= most
    assert re.fullmatch(r"[A-Za-z0-9@._+=,-]+", name)
    assert name[0] not in ".-"
    assert name[-1] != "."
    assert os.path.basename(name) == name
    assert not re.match(r"(?i)(con|prn|aux|nul|(com|lpt)[0-9])(\.|$)", name)


# -- safe_name -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_stays_as_it_is(text):
    assert safe_name(text) == text
    check_safe(text)


@pytest.mark.parametrize("text", [*HOSTILE, *RESERVED], ids=ascii)
@pytest.mark.parametrize("most", [40, 120])
def test_name_is_safe_whatever_the_text(text, most):
    name = safe_name(text, most)
    check_safe(name, most)
    assert name == safe_name(text, most)
    assert name != text


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=ascii)
def test_texts_that_a_file_system_takes_for_one_have_two_names(one, other):
    assert one != other
    assert collision_key(safe_name(one)) != collision_key(safe_name(other))


def test_all_hostile_texts_have_names_of_their_own():
    texts = {*PLAIN, *HOSTILE, *RESERVED, *itertools.chain(*PAIRS)}
    assert len({collision_key(safe_name(text)) for text in texts}) == len(texts)


def test_text_that_looks_like_a_name_with_a_hash_is_no_other_text():
    made = safe_name("A@x.example")
    assert made.startswith("A@x.example,")
    for forged in (made, made.lower(), made.replace(",", "_")):
        assert collision_key(safe_name(forged)) != collision_key(made)


def test_random_texts_are_safe_and_apart():
    chance = random.Random(5)
    letters = string.printable + "\u00e4\u00c4a\u0308\u2028\uff0f\u202e\U0001f600"
    names = {}
    for _ in range(20_000):
        text = "".join(chance.choices(letters, k=chance.randrange(4)))
        name = safe_name(text)
        check_safe(name)
        assert names.setdefault(collision_key(name), text) == text
    for _ in range(300):
        check_safe(safe_name("".join(chance.choices(letters, k=chance.randrange(400)))))


def test_readable_part_is_kept():
    assert safe_name("John.Smith@x.example").startswith("John.Smith@x.example,")
    assert safe_name("a/b@x.example").startswith("a_b@x.example,")


@pytest.mark.parametrize("most", [-1, 0, 39])
def test_so_short_a_name_cannot_be_safe(most):
    with pytest.raises(ValueError, match="40 octets"):
        safe_name("x", most)


# -- templates -------------------------------------------------------------------------------

VALUES = {
    "recipient": "b@y.example",
    "sender": "a@x.example",
    "id": "id4711w0",
    "time": "20240102T030405Z",
}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{recipient}.{n}", "b@y.example.7"),
        ("{n:03}-{sender}.eml", "007-a@x.example.eml"),
        ("{n:3}", "  7"),
        ("{time}-{id}", "20240102T030405Z-id4711w0"),
        ("{id}", "id4711w0"),
        ("{{{n}}}", "{7}"),
        ("m\u00fcll.{n}", "m\u00fcll.7"),
    ],
)
def test_template_is_filled(text, name):
    assert Template(text).filled(VALUES, 7) == name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "put {n} or {id}"),
        ("mail", "put {n} or {id}"),
        ("{recipient}", "put {n} or {id}"),
        ("{time}.{sender}", "put {n} or {id}"),
        ("{who}.{n}", "there is no {who}, but {recipient} {sender} {n} {id} {time}"),
        ("{}.{n}", "there is no {}"),
        ("{0}.{n}", "there is no {0}"),
        ("{n.real}", "there is no {n.real}"),
        ("{recipient[0]}.{n}", "there is no {recipient[0]}"),
        ("{recipient!r}.{n}", "there is no {recipient}"),
        ("{recipient:>99}.{n}", "{recipient:>99}"),
        ("{n:99}", "only {n:03}"),
        ("{n:{id}}", "only {n:03}"),
        ("{n", "expected '}'"),
        ("n}{id}", "Single '}'"),
        ("a/{n}", "no / "),
        ("../{n}", "no / "),
        ("a\\{n}", "no / "),
        ("a:{n}", "no / "),
        (".{n}", "no dot in front"),
        ("a\0{n}", "no / "),
        ("a\n{n}", "no / "),
        ("\ud800{n}", "no / "),
        ("x" * 200 + "{recipient}.{n}", "too long"),
        ("{recipient}" * 7 + "{n}", "too long"),
        (b"{n}", "text such as"),
        (None, "text such as"),
    ],
    ids=ascii,
)
def test_template_that_cannot_be_says_why(text, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        Template(text)


@pytest.mark.parametrize("text", ["{recipient}.{n}", "{sender}-{recipient}-{id}-{time}-{n}.eml"])
@pytest.mark.parametrize("address", HOSTILE, ids=ascii)
def test_filled_template_is_the_name_of_one_file(tmp_path, text, address):
    values = {**VALUES, "recipient": address, "sender": address}
    name = Template(text).filled(values, 10**19)
    assert len(os.fsencode(name)) <= 255
    assert not name.startswith(".")
    (tmp_path / name).touch()
    assert os.listdir(tmp_path) == [name]


# -- numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [1, 2, 50])
@pytest.mark.parametrize("there", [0, 1, 2, 3, 4, 7, 8, 9, 1_000, 123_456])
def test_first_free_is_the_next_of_a_series(start, there):
    asked = []

    def taken(number):
        asked.append(number)
        return number < start + there

    assert first_free(start, taken) == start + there
    assert len(asked) <= 2 * (there + 1).bit_length() + 1
    assert min(asked) >= start


def test_first_free_is_free_and_the_one_before_is_not():
    chance = random.Random(7)
    for _ in range(500):
        there = set(chance.sample(range(1, 200), chance.randrange(150)))
        start = chance.randrange(1, 100)
        found = first_free(start, there.__contains__)
        assert found not in there
        assert found == start or found - 1 in there


def test_numbers_are_remembered_and_files_not_asked_for_again():
    numbers, asked = Numbers(), []

    def taken(number):
        asked.append(number)
        return number <= 5

    assert [numbers.take("x", 0, taken) for _ in range(3)] == [6, 7, 8]
    assert len(asked) < 8
    asked.clear()
    assert [numbers.take("x", 0, taken) for _ in range(3)] == [9, 10, 11]
    assert asked == []
    assert numbers.take("y", 0, taken) == 6


def test_number_that_another_process_took_is_passed_over():
    numbers = Numbers()
    assert numbers.take("x", 0, lambda number: False) == 1
    assert numbers.take("x", 1, lambda number: number <= 40) == 41
    assert numbers.take("x", 0, lambda number: False) == 42


def test_numbers_of_many_series_cost_bounded_memory(monkeypatch):
    monkeypatch.setattr("smtpd_sync.naming.REMEMBERED", 10)
    numbers = Numbers()
    assert numbers.take("mine", 0, lambda number: False) == 1
    for count in range(100):
        numbers.take(f"other {count}", 0, lambda number: False)
        assert numbers.take("mine", 0, lambda number: False) == count + 2
    assert len(numbers._next) == 10


# -- the text of a message -------------------------------------------------------------------


def cut(octets, chance):
    """Cut octets into pieces, empty ones too."""
    at = sorted(chance.choices(range(len(octets) + 1), k=chance.randrange(8)))
    return [octets[begin:end] for begin, end in zip([0, *at], [*at, len(octets)])]


def each_byte(octets):
    return [octets[at : at + 1] for at in range(len(octets))]


def texted(parts, unix=True, **parameters):
    text = Text(envelope_of(**parameters), [Mailbox.parse("b@y.example")], unix)
    return b"".join([*(text.feed(part) for part in parts), text.end()])


def quoted(parts):
    quoting = FromQuoting()
    return b"".join([*(quoting.feed(part) for part in parts), quoting.end()])


@pytest.mark.parametrize("seed", range(5))
def test_line_ends_are_converted_however_the_message_is_cut(seed):
    chance = random.Random(seed)
    for _ in range(400):
        octets = b"".join(chance.choices([b"\r", b"\n", b"\r\n", b"x", b"\r\r\n"], k=12))
        octets = b"S" + octets  # a message that begins with a space is the next test's
        unix = front() + octets.replace(b"\r\n", b"\n")
        for parts in (cut(octets, chance), each_byte(octets), [octets]):
            assert texted(parts) == unix
            assert texted(parts, unix=False) == front(end="\r\n") + octets


@pytest.mark.parametrize("first", [b" folded?\r\n", b"\tfolded?\r\n"])
@pytest.mark.parametrize("unix", [True, False])
def test_first_line_cannot_fold_into_our_fields(first, unix):
    end = b"\n" if unix else b"\r\n"
    expected = front(end=end.decode()) + end + first.replace(b"\r\n", end)
    assert texted(each_byte(first), unix) == expected


def test_empty_message_has_its_fields():
    assert texted([]) == texted([b""]) == front()


def test_binary_message_is_never_converted():
    octets = b"X: y\r\n\r\n\r\n\0\r\r\n"
    assert texted([octets], BODY="BINARYMIME") == front(end="\r\n") + octets
    assert texted([octets], BODY="8BITMIME") == front() + octets.replace(b"\r\n", b"\n")


def quoted_by_lines(octets):
    """As `FromQuoting` should, the slow way."""
    lines = octets.split(b"\n")
    made = [b">" + line if re.match(b">*From ", line) else line for line in lines]
    whole = b"\n".join(made)
    return whole + (b"" if whole.endswith(b"\n") or not whole else b"\n") + b"\n"


@pytest.mark.parametrize("seed", range(5))
def test_from_lines_are_quoted_however_the_message_is_cut(seed):
    chance = random.Random(seed)
    words = [b">", b">>", b"F", b"Fr", b"From", b"From ", b" ", b"\n", b"\nFrom ", b"x", b"\r"]
    for _ in range(500):
        octets = b"".join(chance.choices(words, k=12))
        expected = quoted_by_lines(octets)
        for parts in (cut(octets, chance), each_byte(octets), [octets]):
            assert quoted(parts) == expected
        undone = unquoted(expected)[:-1]
        assert undone in (octets, octets + b"\n")


@pytest.mark.parametrize("long", [b">", b"x", b"F", b"From ", b">From "])
def test_long_line_is_not_held(long):
    quoting, given = FromQuoting(), 0
    for _ in range(100):
        given += len(quoting.feed(long * 1_000))
        assert len(quoting._held) <= 4
    assert given >= 100 * 1_000 * len(long) - 4
