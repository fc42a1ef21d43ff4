"""What the page makes of mail: HTML without what could harm, messages taken apart within bounds."""

import base64
import contextlib
import io
import os
import random
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from hostile_mail import CLICKED, LEAVES, LOADS, SCRIPTS, WITHOUT_SCRIPTS
from support import ROOT, SOON, Client, until
from webclient import ask, get, send

from smtpd_sync import webelsewhere, webhtml, webparts, webview
from smtpd_sync.testing import MailCatcher
from smtpd_sync.webhtml import harmless
from smtpd_sync.webparts import take_apart
from smtpd_sync.webview import file_name_of

pytestmark = pytest.mark.usefixtures("no_leaks")

MULTIPART = b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYPhfDwAChAGA60e6kgAAAABJRU5ErkJggg=="
)


@pytest.fixture
def elsewhere(no_leaks):
    made = webelsewhere.Elsewhere()
    yield made
    made.close()


@pytest.fixture
def mail():
    with MailCatcher(web=True) as catcher:
        yield catcher


# -- HTML ------------------------------------------------------------------------------------------


def stripped(html, image=lambda content_id: ""):
    """Give what is left of HTML, without what the document begins with."""
    document = harmless(html, image)
    assert document.startswith(webhtml.START)
    return document[len(webhtml.START) :]


class Reader(HTMLParser):
    """Reads what came out, and holds it to what may be in it."""

    def handle_starttag(self, tag, attributes):
        assert tag in webhtml.ELEMENTS | {"style"}, tag
        for name, value in attributes:
            assert name in webhtml.ATTRIBUTES or (tag, name) == ("img", "src"), (tag, name)
            if name == "src":
                assert value == "data:," or webhtml.IMAGE.match(value), value
            if name == "style":
                self.check_style(value)

    def handle_data(self, data):
        if self.lasttag == "style" and self.cdata_elem:
            self.check_style(data)

    def check_style(self, style):
        assert "\\" not in style
        assert not re.search(r"@import|image-set\(|src\(|</", style, re.IGNORECASE), style
        for source in re.findall(r"url\((.*?)\)", style, re.IGNORECASE | re.DOTALL):
            assert re.fullmatch(r'"data:[^"]*"', source, re.IGNORECASE), source

    def handle_decl(self, declaration):
        raise AssertionError(declaration)

    handle_comment = unknown_decl = handle_pi = handle_decl


def check(html):
    reader = Reader()
    reader.feed(stripped(html))
    reader.close()


CORPUS = [
    *(LOADS, WITHOUT_SCRIPTS, SCRIPTS, *LEAVES.values(), *CLICKED.values()),
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img onerror=a()&gt;'>",
    "<svg></p><style><a id='</style><img src=x onerror=a()>'>",
    "<noscript><p title='</noscript><img src=x onerror=a()>'>",
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=a()>",
    "<![CDATA[<img src=x onerror=a()>]]>",
    "<!--><img src=x onerror=a()>-->",
    "<!--!><img src=x onerror=a()>--!><b>",
    "<? <img src=x onerror=a()> ?>",
    "<!doctype html [<!ENTITY x '<script>a()</script>'>]>&x;",
    "<img/src=x/onerror=a()//>",
    "<img src='x'onerror='a()'>",
    '<img src="x` `<script>a()</script>"` `>',
    "<a/href='javascript:a()'>x</a><a href='&#x6a;avascript:a()'>y</a><a href='data:text/html,x'>",
    "<style>@im\\port 'http://x'; b{background:u\\rl(http://x)}</style>",
    "<style>b{background:url(http://x</style><i>)}",
    "<p style='background:URL( \"http://x\" )'>",
    "<p style=\"background:url('data:image/png,&quot;);background:url(http://x')\">",
    '<p style="background:url(data:image/png;base64,a\'b)c">',
    "<img src='data:image/svg+xml,<svg onload=a()>'><img src='data:text/html,x'>",
    "<img src='\tdata:,x'>",
    "<img src=' DATA:image/png,x'>",
    "<isindex action=javascript:a()>",
    "<plaintext><script>a()</script>",
    "<scr\0ipt>a()</scr\0ipt><\0script>a()</script>",
    "<a title='\"><script>a()</script>'>",
    "<xmp><p title='</xmp><script>a()</script>'>",
    "<b class='\u2028\ud800\x00'>",
    "<details ontoggle=a() open><summary onclick=a()>x",
    "<template><script>a()</script></template><slot><portal src=x>",
    "<table background=http://x><td background=http://x lowsrc=x dynsrc=x>",
    "<a ping=http://x href=http://x download target=_top rel=opener>x</a>",
    "</script></style></title></textarea><script",
    "<style",
    "<style>x",
    "<p title=",
    "<p title='",
    "<",
]


@pytest.mark.parametrize("html", CORPUS, ids=range(len(CORPUS)))
def test_only_what_is_known_is_left_of_hostile_html(html):
    check(html)
    check(html.upper())
    for end in range(0, len(html), 1 + len(html) // 100):
        check(html[:end])


def test_only_what_is_known_is_left_of_html_at_random():
    chance = random.Random(8026)
    tokens = re.findall(r"[a-z]+|\s+|.", "".join(CORPUS[5:]), re.IGNORECASE | re.DOTALL)
    tokens += ["<script", "</script>", "<style>", "</style>", "<!--", "-->", "url(", "&#60;", "\0"]
    for _ in range(1_500):
        check("".join(chance.choices(tokens, k=chance.randrange(1, 60))))


def test_a_reader_that_finds_fault_is_heard():
    """The check above has to fail for what it is there for."""
    for html in (
        *("<script>", "<b onclick=a>", "<img src=http://x>", "<!-- -->", "<?x?>", "<![CDATA[x]]>"),
        *("<b style='background:url(http://x)'>", "<style>@import 'x'</style>", "<a href=x>"),
    ):
        with pytest.raises(AssertionError):
            Reader().feed(html + "<p>")


@pytest.mark.parametrize(
    ("html", "left"),
    [
        ("a &lt; b &amp; c > d", "a &lt; b &amp; c &gt; d"),
        ("1 < 2 <3", "1 &lt; 2 &lt;3"),
        ("<P ALIGN=center>x</P>", '<p align="center">x</p>'),
        ("<p align=left align=right>", '<p align="left">'),
        ("<b><i>x</b></i>", "<b><i>x</b></i>"),
        ("<custom-element>kept</custom-element>", "kept"),
        ("x<script>a</script>y<!-- b -->z", "xyz"),
        ("<style>b{color:red}</style>", "<style>b{color:red}</style>"),
        ("<img src=http://x alt=dog>", '<img alt="dog" src="data:,">'),
        ("<img src=cid:one>", '<img src="data:image/png;base64,AAAA">'),
        ("<img src=cid:two>", '<img src="data:,">'),
        ("<p style='background:url(cid:one)'>", None),
        (
            "<a href=' https://x.example/?a=1&amp;b '>x</a>",
            '<a title="https://x.example/?a=1&amp;b"'
            ' style="color:#0645ad;text-decoration:underline;">x</a>',
        ),
    ],
    ids=range(13),
)
def test_what_is_harmless_stays(html, left):
    def image(content_id):
        return "data:image/png;base64,AAAA" if content_id == "one" else ""

    found = stripped(html, image)
    if left is None:
        left = '<p style="background:url(&quot;data:image/png;base64,AAAA&quot;)">'
    assert found == left


@pytest.mark.parametrize(
    "piece",
    [
        *("<", "<a ", "<!--", "&", "<a b='", "<a b=", "</", "<style>", "<script>", "url(", " "),
        *("<p ", "&#60;", "<style>url(", "<a b c ", "<a\n/", '<b title="&quot;', "@import", "a "),
        *("<title>", "<style></style>", "<p style='url(", "<!", "<?", "cid:", "<img src=cid:"),
        *("=", "\\"),
    ],
)
def test_hostile_html_takes_time_in_proportion(piece):
    html = piece * (webparts.TEXT_SHOWN // len(piece))
    start = time.thread_time()
    harmless(html, lambda _: "")
    assert time.thread_time() - start < 5


# -- messages --------------------------------------------------------------------------------------


def notes_of(octets):
    return " ".join(take_apart(octets).notes)


def test_message_of_5000_parts_is_shown_as_far_as_it_is_said(mail):
    octets = MULTIPART + b"".join(
        b'--b\r\nContent-Disposition: attachment; filename="%d"\r\n\r\nx\r\n' % n
        for n in range(5_000)
    )
    caught = send(mail, octets + b"--b--\r\n")
    value = get(mail.web_url, f"/api/messages/{caught.id}")
    assert [each["name"] for each in value["attachments"]] == [str(n) for n in range(500)]
    assert "The first 500 of 5,000 attachments are shown." in value["notes"]
    for number, status in ((0, 200), (499, 200), (500, 404), (4_999, 404)):
        assert ask(mail.web_url, f"/api/messages/{caught.id}/attachments/{number}").status == status
    assert ask(mail.web_url, f"/api/messages/{caught.id}/raw").body == caught.raw


def test_message_of_30_mib_is_shown_while_smtp_goes_on(mail):
    line = b"0123456789" * 7 + b"\r\n"
    text = line * (30 * 2**20 // len(line))
    caught = send(mail, b"Subject: huge\r\n\r\n" + text)
    start = time.process_time()
    take_apart(caught.raw)
    here = time.process_time() - start
    with Client((mail.host, mail.port)) as client, ThreadPoolExecutor() as pool:
        client.hello()
        start = time.process_time()
        opened = pool.submit(get, mail.web_url, f"/api/messages/{caught.id}")
        while not opened.done():
            asked = time.perf_counter()
            assert client.ask("RSET").startswith("250 ")
            assert time.perf_counter() - asked < SOON
            time.sleep(0.02)
        assert time.process_time() - start < here / 2  # so elsewhere, and SMTP keeps its pace
    value = opened.result()
    assert value["text"] == text.replace(b"\r\n", b"\n").decode()[: webparts.TEXT_SHOWN]
    assert value["size"] == len(caught.raw)
    assert any("characters of the text are shown" in note for note in value["notes"])
    most = ask(mail.web_url, f"/api/messages/{caught.id}/raw?most=100").body
    assert most == caught.raw[:100]


def test_what_was_taken_apart_is_not_kept_for_long(elsewhere):
    catch = webview.Catch()
    viewer = webview.Viewer(webview.Rows(elsewhere), elsewhere)
    attached = b"--b\r\nContent-Type: application/x-any\r\n\r\n" + b"x" * 2**24 + b"\r\n"
    made = [mail_of(MULTIPART + attached + b"--b--\r\n", n) for n in range(8)]
    for mail in made:
        catch.keep(mail)
        viewer.view(mail)
    # Eight of 16 MiB each: the last few are there, and no more octets of them than is said.
    kept = list(viewer._kept)
    assert kept == made[-len(kept) :]
    assert 1 < len(kept) <= webview.KEPT
    assert sum(viewer.view(mail).octets for mail in kept) <= webview.KEPT_OCTETS
    del mail, kept
    made.clear()
    catch.clear()
    assert len(viewer._kept) == 0


def mail_of(octets, number=0):
    """Make what the page needs of a caught message."""

    class Mail(SimpleNamespace):
        __hash__ = object.__hash__

    return Mail(
        id=str(number), raw=octets, sender="a@x.example", recipients=["b@y.example"],
        recipient_parameters=[{}], sender_parameters={}, helo="client", user=None, tls=None,
        peer=SimpleNamespace(address="127.0.0.1", port=1), received_at=datetime.now(timezone.utc),
        session=SimpleNamespace(transcript=[]),
    )  # fmt: skip


def nested(depth):
    return b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n)
        for n in range(depth)
    )


@pytest.mark.parametrize(
    ("octets", "note"),
    [
        (b"Subject: deep\r\n" + nested(1_000) + b"\r\nhi\r\n", "Broken"),
        (b"Content-Type: message/rfc822\r\n\r\n" * 500, "A message within it cannot be read"),
        (b"Content-Type: message/rfc822\r\n\r\n" * 2_000, "too deep in one another"),
        (b"x\r\n" * webparts.LINES_READ + b"more\r\n", "too many lines or parts"),
        (MULTIPART + b"--b\r\n\r\n" * 20_000, "too many lines or parts"),
        (b"".join(b"X-%d: y\r\n" % n for n in range(5_000)) + b"\r\n", "The first 500 of 5,000"),
        (b"Subject: " + b"x" * 100_000 + b"\r\n\r\n", "Of a long header field"),
        (b"To: " + b"(" * 50_000 + b"\r\n\r\n", "Of a long header field"),
        (b"To: " + b"a@b," * 400_000 + b"\r\n\r\n", "too long to tell which recipients"),
        (MULTIPART + b"--b\r\n\r\nfirst", "Broken"),
        (MULTIPART, "Broken"),
        (b"Content-Type: text/plain; charset=no-such\r\n\r\nhi\r\n", "charset"),
        (b"Content-Type: text/plain; charset=utf-8\r\n\r\n\xff\xfe\r\n", "\ufffd"),
        (b"Content-Transfer-Encoding: base64\r\n\r\n***=a\r\n", ""),
        (b"no header at all\r\n\r\nhi\r\n", "Broken"),
        (b"\x00\xff: \x00\r\n\r\n\x00\r\n", ""),
        (b"Content-Type: text/plain; charset*=''%00\r\n\r\nx\r\n", ""),
        (b"Content-Type: text/html; charset=idna\r\n\r\n\xff\r\n", ""),
        (b"Content-Type: text/html; charset=punycode\r\n\r\n-\xff\r\n", ""),
        (b"Content-Type: multipart/mixed\r\n\r\nx\r\n", "Broken"),
        (b"Content-Type: ;;;==\r\nContent-Disposition: \xff; filename*=x'y\r\n\r\nx\r\n", ""),
        (b"Subject: =?utf-7?q?+2AA-?=\r\nFrom: =?x?=\r\n\r\nx\r\n", ""),
        (b"", ""),
        (b"\r\n", ""),
        (b"\n", ""),
    ],
    ids=range(25),
)
def test_of_broken_mail_what_can_be_shown_is_shown(octets, note):
    start = time.thread_time()
    apart = take_apart(octets, ["b@y.example"])
    assert time.thread_time() - start < 2 * webparts.SECONDS
    assert note in " ".join(apart.notes)
    for text in (apart.text, apart.html, *apart.notes):
        text.encode()


def test_what_takes_too_long_is_cut_and_said():
    octets = MULTIPART + b"--b\r\n\r\nx\r\n" * 9_000 + b"--b--\r\n"
    assert "taken apart" in " ".join(take_apart(octets, seconds=0).notes)
    start = time.thread_time()
    apart = take_apart(octets, seconds=0.2)
    assert time.thread_time() - start < 1
    assert any("takes too long" in note or "taken apart" in note for note in apart.notes)


def test_parts_that_take_too_long_to_read_are_left_out(monkeypatch):
    def slow(part, text_of=webparts.text_of):
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        return text_of(part)

    monkeypatch.setattr(webparts, "text_of", slow)
    octets = MULTIPART + b"--b\r\n\r\nx\r\n" * 200 + b"--b--\r\n"
    apart = take_apart(octets, seconds=0.4)
    assert 5 <= apart.text.count("x") <= 10
    assert "It takes too long to read: not all of its parts are shown." in apart.notes


def test_broken_mail_is_shown_through_the_page(mail):
    send(
        mail,
        b"Subject: =?no-such?q?x?=\r\nContent-Type: text/html; charset=none\r\n\r\n\xff<b>hi\r\n",
        b"\xff\xfe\r\n\r\n\x00\x1b[31m\r\n",
        b"Subject: =?utf-8?q?=00=0D=0A=1B[31m=E2=80=AE?=\r\n\r\n\r\n",
    )
    rows = get(mail.web_url, "/api/messages")["messages"]
    assert len(rows) == 3
    for row in rows:
        one = f"/api/messages/{row['id']}"
        assert get(mail.web_url, one)["id"] == row["id"]
        assert ask(mail.web_url, f"{one}/html").status == 200
        assert ask(mail.web_url, f"{one}/raw").status == 200


def test_images_of_the_message_are_in_the_document(mail):
    def part(content_id, kind, octets):
        coded = base64.b64encode(octets)
        return (
            b"--b\r\nContent-Type: %s\r\nContent-ID: <%s>\r\n"
            b"Content-Transfer-Encoding: base64\r\n\r\n%s\r\n" % (kind, content_id, coded)
        )

    html = b'<img src="cid:one@x"><img src="cid:t%77o"><img src="cid:svg"><img src="cid:none">'
    caught = send(
        mail,
        MULTIPART.replace(b"mixed", b"related")
        + b"--b\r\nContent-Type: text/html\r\n\r\n" + html + b"\r\n"
        + part(b"one@x", b"image/png", PNG)
        + part(b"two", b"image/gif", b"GIF89a")
        + part(b"svg", b"image/svg+xml", b"<svg onload=a()>")
        + b"--b--\r\n",
    )  # fmt: skip
    document = ask(mail.web_url, f"/api/messages/{caught.id}/html").body.decode()
    assert re.findall(r'<img src="([^"]*)">', document) == [
        "data:image/png;base64," + base64.b64encode(PNG).decode(),
        "data:image/gif;base64," + base64.b64encode(b"GIF89a").decode(),
        *("data:,", "data:,"),  # what is not plain pixels, and what is not there
    ]


def test_no_more_images_than_is_said_are_in_the_document():
    octets = b"x" * (webparts.IMAGES_INLINE // 3)
    image = (
        b"--b\r\nContent-Type: image/png\r\nContent-ID: <i>\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.b64encode(octets) + b"\r\n"
    )
    html = b"--b\r\nContent-Type: text/html\r\n\r\n" + b"<img src=cid:i>" * 1_000 + b"\r\n"
    document = webparts.show(MULTIPART + html + image + b"--b--\r\n").blobs[0]
    assert document.count(b"data:image/png") == 3
    assert document.count(b'"data:,"') == 997
    assert len(document) < 2 * webparts.IMAGES_INLINE


# -- attachments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("a.txt", "a.txt"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("/", "otherwise"),
        ("..", "otherwise"),
        ("", "otherwise"),
        (" . ", "otherwise"),
        (".htaccess", "htaccess"),
        ("a\r\nSet-Cookie: x", "aSet-Cookie: x"),
        ("a\x00b\x1b[31m\x7f\x9b.txt", "ab[31m.txt"),
        ("a\u202etxt.exe", "atxt.exe"),
        ('a"b;c.txt', 'a"b;c.txt'),
        ("Grüße ☃.pdf", "Grüße ☃.pdf"),
        ("x" * 10_000, "x" * 100),
        ("C:evil.exe", "C:evil.exe"),
        ("%2e%2e%2fx", "%2e%2e%2fx"),
    ],
    ids=range(16),
)
def test_attachment_has_a_name_that_leads_nowhere(name, saved):
    written = file_name_of(name, "otherwise")
    plain, coded = re.fullmatch(
        r"filename=\"([A-Za-z0-9._ -]+)\"; filename\*=UTF-8''([A-Za-z0-9._~%-]+)", written
    ).groups()
    assert unquote(coded) == saved
    assert len(plain) == len(saved)


def test_attachment_is_nothing_that_a_browser_shows(mail):
    octets = b"<script>a()</script>"
    caught = send(
        mail,
        MULTIPART
        + b"--b\r\nContent-Type: text/html\r\n"
        + b'Content-Disposition: attachment; filename="../x\x01.html"\r\n\r\n'
        + octets
        + b"\r\n--b--\r\n",
    )
    (attachment,) = get(mail.web_url, f"/api/messages/{caught.id}")["attachments"]
    assert (attachment["type"], attachment["size"]) == ("text/html", len(octets))
    answer = ask(mail.web_url, f"/api/messages/{caught.id}/attachments/0")
    assert answer.body == octets
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="x')
    assert "sandbox" in answer.headers["Content-Security-Policy"]


def test_search_takes_no_longer_than_is_said(elsewhere, monkeypatch):
    monkeypatch.setattr(webview, "SEARCH_SECONDS", 0.05)
    catch = webview.Catch()
    for number in range(50):
        catch.keep(mail_of(MULTIPART + b"--b\r\n\r\nx\r\n" * 2_000 + b"--b--\r\n", number))
    rows = webview.Rows(elsewhere)
    start = time.monotonic()
    page = rows.page(catch, "needle")
    assert time.monotonic() - start < SOON
    assert (page["messages"], page["complete"]) == ([], False)


def test_memory_for_many_messages_is_their_own(elsewhere):
    """What the list keeps of each message is small, however large the message."""
    catch = webview.Catch()
    for number in range(50):
        catch.keep(mail_of(b"Subject: x\r\n\r\n" + b"word " * 20_000 + b"\r\n", number))
    rows = webview.Rows(elsewhere)
    tracemalloc.start()
    try:
        rows.page(catch, "needle")
        assert tracemalloc.get_traced_memory()[0] < 50 * 8_192
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "head",
    [b"Subject:" + b" a" * 16_000, b"a:\r\n" * 8_000, b"Subject: " + b"=?utf-8?b?YQ==?=" * 999],
)
def test_row_of_a_hostile_message_takes_a_moment(head):
    mail = mail_of(head + b"\r\n\r\nx\r\n")
    took = []
    for _ in range(5):
        start = time.thread_time()
        webview.row_of(mail)
        took.append(time.thread_time() - start)
    assert min(took) < 0.03, took


# -- the process in which it is done ---------------------------------------------------------------


def test_process_is_there_when_it_is_needed_and_goes_with_the_page(mail):
    send(mail, b"Subject: small\r\n\r\nhi\r\n")
    elsewhere = mail._web.elsewhere
    assert elsewhere._process is None
    first = get(mail.web_url, "/api/messages?q=hi")["messages"][0]["id"]
    process = elsewhere._process
    assert get(mail.web_url, f"/api/messages/{first}")["text"] == "hi\n"
    assert elsewhere._process is process
    mail.stop()
    assert process.poll() is not None


def test_process_finds_the_package_where_the_path_does_not_lead_to_it(elsewhere, monkeypatch):
    others = [each for each in sys.path if os.path.realpath(each) != str(ROOT)]
    monkeypatch.setattr(sys, "path", others)
    assert elsewhere.call("searched", b"\r\none").value["text"] == "one\n"


@pytest.mark.parametrize("python", [None, "", "/nowhere/python"])
def test_where_no_process_can_begin_the_source_is_left(elsewhere, monkeypatch, python):
    monkeypatch.setattr(sys, "executable", python)
    (note,) = webview.shown_of(mail_of(b"Subject: x\r\n\r\nhi\r\n"), elsewhere).value["notes"]
    assert "only the source has it" in note


def test_process_that_is_gone_is_made_anew(elsewhere):
    assert elsewhere.call("searched", b"\r\none").value["text"] == "one\n"
    elsewhere._process.kill()
    elsewhere._process.wait()
    assert elsewhere.call("searched", b"\r\ntwo").value["text"] == "two\n"


def test_process_lets_go_of_what_a_large_message_took(elsewhere):
    assert len(elsewhere.call("show", b"\r\n" + b"x" * 2**21, []).value["text"]) == 2**19
    assert elsewhere._process is None
    assert elsewhere.call("searched", b"\r\nsmall").value["text"] == "small\n"


def test_what_a_process_does_not_survive_is_said(elsewhere, monkeypatch):
    mail = mail_of(b"Subject: x\r\n\r\nhi\r\n")
    elsewhere.call("searched", b"")
    process = elsewhere._process
    # It dies just before it is asked.
    monkeypatch.setattr(process, "poll", lambda: os.kill(process.pid, signal.SIGTERM))
    shown = webview.shown_of(mail, elsewhere)
    assert shown.value["notes"] == [
        "It takes too long or too much to read: only the source has it."
    ]
    viewed = webview.Viewed(mail, webview.row_of(mail), shown)
    assert (viewed.value()["subject"], viewed.value()["text"], viewed.contents) == ("x", "", [])
    assert webview.shown_of(mail, elsewhere).value["text"] == "hi\n"  # by the next one


def test_process_that_takes_too_long_or_too_much_is_ended():
    code = (
        "from smtpd_sync import webelsewhere\n"
        "def slow(octets):\n    while True: pass\n"
        "def large(octets):\n    return len(bytearray(1 << 31)), []\n"
        "webelsewhere.SECONDS = {seconds}\n"
        "webelsewhere.JOBS.update(slow=slow, large=large)\n"
        "webelsewhere.serve()\n"
    )
    for job, seconds in (("slow", 1), ("large", 60)):
        with subprocess.Popen(
            [sys.executable, "-c", code.format(seconds=seconds)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            webelsewhere.send(process.stdin, [job, []], [b""])
            with pytest.raises(EOFError):
                webelsewhere.receive(process.stdout)
            assert process.wait(SOON) != 0


@pytest.mark.parametrize("octets", [b"", b"[", b"[1, [5]]\nabcd", b"[1, []]"])
def test_answer_that_is_cut_off_is_none(octets):
    with pytest.raises(EOFError):
        webelsewhere.receive(io.BytesIO(octets))


def test_close_ends_what_is_under_way(elsewhere):
    octets = MULTIPART + b"--b\r\n\r\nx\r\n" * 9_000 + b"--b--\r\n"
    with ThreadPoolExecutor() as pool:
        work = [pool.submit(elsewhere.call, "show", octets, []) for _ in range(4)]
        until(lambda: elsewhere._process is not None)
        start = time.monotonic()
        elsewhere.close()
        for each in work:
            with contextlib.suppress(webelsewhere.Gone):
                each.result()
        assert time.monotonic() - start < SOON
    with pytest.raises(webelsewhere.Gone):
        elsewhere.call("searched", b"")
