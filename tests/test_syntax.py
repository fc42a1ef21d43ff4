"""The grammar of RFC 5321 4.1.2 and 4.1.3: mailboxes, domains, address literals."""

import copy
import pickle

import pytest

from smtpd_sync import Mailbox
from smtpd_sync.syntax import is_domain, literal, path_grammar

LABEL_63 = "a" * 63
DOMAIN_255 = ".".join(["a" * 7] * 31 + ["bbbbbbb"])


@pytest.mark.parametrize(
    ("text", "mailbox", "local", "domain"),
    [
        ("a@x.example", "a@x.example", "a", "x.example"),
        ("A.b@X.Example", "A.b@x.example", "A.b", "x.example"),
        ("a@x.example.", "a@x.example", "a", "x.example"),
        ('"a"@x.example', "a@x.example", "a", "x.example"),
        ('"a.b"@x.example', "a.b@x.example", "a.b", "x.example"),
        (r'"\a\b"@x.example', "ab@x.example", "ab", "x.example"),
        ('"a b"@x.example', '"a b"@x.example', "a b", "x.example"),
        (r'"a\ b"@x.example', '"a b"@x.example', "a b", "x.example"),
        (r'"a\"b"@x.example', r'"a\"b"@x.example', 'a"b', "x.example"),
        (r'"a\\b"@x.example', r'"a\\b"@x.example', "a\\b", "x.example"),
        ('"a@b"@x.example', '"a@b"@x.example', "a@b", "x.example"),
        ('".a"@x.example', '".a"@x.example', ".a", "x.example"),
        ('"a..b"@x.example', '"a..b"@x.example', "a..b", "x.example"),
        ('""@x.example', '""@x.example', "", "x.example"),
        ("!#$%&'*+-/=?^_`{|}~@x", "!#$%&'*+-/=?^_`{|}~@x", "!#$%&'*+-/=?^_`{|}~", "x"),
        ("a@[192.0.2.1]", "a@[192.0.2.1]", "a", "[192.0.2.1]"),
        ("a@[ipv6:2001:DB8:0:0::1]", "a@[IPv6:2001:db8::1]", "a", "[IPv6:2001:db8::1]"),
        ("jürgen@Bücher.example", "jürgen@bücher.example", "jürgen", "bücher.example"),
        ('"ä ö"@x.example', '"ä ö"@x.example', "ä ö", "x.example"),
        (f"a@{LABEL_63}.example", f"a@{LABEL_63}.example", "a", f"{LABEL_63}.example"),
        (f"a@{DOMAIN_255}", f"a@{DOMAIN_255}", "a", DOMAIN_255),
    ],
)
def test_mailbox_has_one_spelling(text, mailbox, local, domain):
    parsed = Mailbox.parse(text)
    assert parsed == mailbox
    assert (parsed.local, parsed.domain, parsed.original) == (local, domain, text)
    assert Mailbox.parse(parsed) == parsed, "which is a mailbox again"
    assert Mailbox(local, domain) == parsed
    assert Mailbox(local, domain).original == mailbox


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "@",
        "a@",
        "@x.example",
        "a@@x.example",
        "a@b@x.example",
        ".a@x.example",
        "a.@x.example",
        "a..b@x.example",
        "a b@x.example",
        " a@x.example",
        "a@x.example ",
        "a@x.example\n",
        "a@x.example\r\nRCPT",
        "<a@x.example>",
        "a@x..example",
        "a@.x.example",
        "a@x.example..",
        "a@-x.example",
        "a@x-.example",
        "a@x_y.example",
        "a@x.exa mple",
        f"a@{LABEL_63}a.example",
        f"a@{DOMAIN_255}b",
        f"a@{'ü' * 60}.{'ü' * 60}.{'ü' * 60}",
        "a@[192.0.2.256]",
        "a@[192.0.2]",
        "a@[]",
        "a@[IPv6:]",
        "a@[IPv6:::1%lo]",
        "a@[x-:y]",
        "a@[a b:c]",
        '"a@x.example',
        'a"@x.example',
        '"a"b@x.example',
        '"a"b"@x.example',
        '"a\\"@x.example',
        '"a\tb"@x.example',
        '"a\nb"@x.example',
        '"a\\\nb"@x.example',
        "a\x00@x.example",
        "a\x85@x.example",
        "a\u2028@x.example",
        '"\u2029"@x.example',
        "a(comment)@x.example",
        "a,b@x.example",
        "@y.example:a@x.example",
    ],
    ids=ascii,
)
def test_what_is_no_mailbox(text):
    with pytest.raises(ValueError, match=r"RFC 5321 4\.1\.2"):
        Mailbox.parse(text)


def test_spellings_of_one_mailbox_are_one_key():
    spellings = ["a.b@x.example", '"a.b"@X.EXAMPLE', r'"a\.b"@x.example.']
    assert len({Mailbox.parse(text) for text in spellings}) == 1


def test_local_parts_differ_by_case():
    assert Mailbox.parse("A@x.example") != Mailbox.parse("a@x.example")


def test_null_mailbox_is_empty():
    null = Mailbox()
    assert null == ""
    assert not null
    assert (null.local, null.domain, null.original) == ("", "", "")


def test_postmaster_needs_no_domain():
    postmaster = Mailbox("postmaster")
    assert postmaster == "postmaster"
    assert (postmaster.local, postmaster.domain) == ("postmaster", "")


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))],
    ids=["copy", "deepcopy", "pickle"],
)
@pytest.mark.parametrize(
    "text", ["a@x.example", '"a b"@X.example', '"a"@[IPv6:::1]', "jürgen@x.example"]
)
def test_mailbox_can_be_copied(text, duplicate):
    mailbox = Mailbox.parse(text)
    other = duplicate(mailbox)
    assert other == mailbox
    assert type(other) is Mailbox
    parts = (mailbox.local, mailbox.domain, mailbox.original)
    assert (other.local, other.domain, other.original) == parts


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[0.0.0.0]", "[0.0.0.0]"),
        ("[255.255.255.255]", "[255.255.255.255]"),
        ("[IPv6:::]", "[IPv6:::]"),
        ("[IPV6:2001:DB8::1]", "[IPv6:2001:db8::1]"),
        ("[IPv6:1:2:3:4:5:6:7:8]", "[IPv6:1:2:3:4:5:6:7:8]"),
        ("[Tag-1:Any!thing@all]", "[tag-1:Any!thing@all]"),
    ],
)
def test_address_literal_has_one_spelling(text, spelled):
    assert literal(text) == spelled
    assert literal(spelled) == spelled
    assert is_domain(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[]",
        "192.0.2.1",
        "[192.0.2.1",
        "[192.0.2.1]x",
        "[192.0.2.1]\n",
        "[192.0.2.256]",
        "[192.0.2.1000]",
        "[192.0.2]",
        "[192.0.2.1.1]",
        "[-1.0.2.1]",
        "[192.0.2.\u0661]",
        "[IPv6:1:2:3:4:5:6:7]",
        "[IPv6:1:2:3:4:5:6:7:8:9]",
        "[IPv6:1::2::3]",
        "[IPv6:12345::]",
        "[IPv6:g::]",
        "[IPv6:::1%eth0]",
        "[IPv6:::1/64]",
        "[IPv6:192.0.2.1]",
        "[:x]",
        "[x:]",
        "[x:a b]",
        "[x:a]b]",
        "[x:a[b]",
        "[x:a\\b]",
        "[x:é]",
    ],
    ids=ascii,
)
def test_what_is_no_address_literal(text):
    assert literal(text) is None
    if text.startswith("["):
        assert not is_domain(text)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "forgiving"])
@pytest.mark.parametrize(
    "text",
    [
        "x",
        "x.example",
        "X-Y.Example",
        "1.2.3",
        "xn--bcher-kva.example",
        "a--b.example",
        f"{LABEL_63}.example",
        DOMAIN_255,
        "[192.0.2.1]",
        "[IPv6:::1]",
    ],
)
def test_domain(text, strict):
    assert is_domain(text, strict)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "forgiving"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "x..y",
        ".x",
        "x..",
        "-x",
        "x-",
        "x.-y",
        "x y",
        "x\n",
        "x@y",
        "x/y",
        "(x)",
        "a" * 64,
        DOMAIN_255 + "b",
        "[x",
        "x]",
    ],
    ids=ascii,
)
def test_what_is_no_domain(text, strict):
    assert not is_domain(text, strict)


@pytest.mark.parametrize("text", ["x.example.", "my_desktop", "_x.example"])
def test_domain_that_is_forgiven(text):
    assert is_domain(text)
    assert not is_domain(text, strict=True)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "forgiving"])
def test_common_paths_are_paths(strict):
    """The quick pattern matches nothing that the full one does not match alike."""
    patterns = path_grammar("FROM", "<>", strict)
    for text in ("FROM:<a.b@x.example>", "from:<a@x>  SIZE=1", "FROM:<ü@x.example> SMTPUTF8"):
        common, full = patterns.common.match(text), patterns.full.match(text)
        assert common
        assert full
        for group in ("local", "domain", "parameters"):
            assert common[group] == full[group]


def test_pattern_takes_no_time_for_what_does_not_match():
    # An expression that tries all ways to cut a text would not come back from these.
    for text in ('"' + "\\a" * 5000, "a." * 5000, "a@" + "a." * 5000 + "-", "a@" + "a-" * 5000):
        with pytest.raises(ValueError, match="is no mailbox"):
            Mailbox.parse(text)
    patterns = path_grammar("TO", "<postmaster>", strict=False)
    for text in ("TO:" + " " * 5000 + "<", "TO:<" + "@a," * 5000, "TO:<a@b" + " " * 5000 + "\n"):
        assert patterns.full.match(text) is None
