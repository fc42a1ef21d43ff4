"""HTML mail that wants to run, to phone home and to leave its frame, in a real browser.

A canary listens on loopback. First it hears all of it, from pages without any fence: so what is not
heard afterwards was kept back. Then all fences stand, and then each alone.
"""

import contextlib
import smtplib

import pytest
from browser import COUNTING_FRAMES
from hostile_mail import (
    CLICKED,
    HOPES,
    LEAVES,
    LOADS,
    SCRIPTS,
    WITHOUT_SCRIPTS,
    Canary,
    attempts,
)
from support import until

from smtpd_sync import webelsewhere, webparts
from smtpd_sync.webhtml import harmless

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("no_leaks")]

WITHOUT_A_CLICK = {"loads": LOADS, "noscript": WITHOUT_SCRIPTS, "scripts": SCRIPTS, **LEAVES}
ALL = {**WITHOUT_A_CLICK, **CLICKED}


@pytest.fixture
def canary(no_leaks):
    with contextlib.closing(Canary()) as canary:
        yield canary


def raw_html(monkeypatch):
    """Take out the pass that leaves out what is dangerous."""
    monkeypatch.setattr(webparts, "harmless", lambda html, image: html)

    def here(self, job, *arguments):
        return webelsewhere.JOBS[job](*arguments)

    monkeypatch.setattr(webelsewhere.Elsewhere, "call", here)


def send(mail, html, subject="hi"):
    head = f"Subject: {subject}\r\nMIME-Version: 1.0\r\nContent-Type: text/html\r\n\r\n"
    with smtplib.SMTP(mail.host, mail.port) as client:
        client.sendmail("evil@x.example", ["b@y.example"], head + html)


def hears(canary, names):
    try:
        until(lambda: names <= set(canary.heard))
    finally:
        assert names - set(canary.heard) == set()


# -- without a fence -----------------------------------------------------------------------------


@pytest.mark.parametrize("html", [LOADS, SCRIPTS], ids=["loads", "scripts"])
def test_without_fences_the_canary_hears_what_html_does_by_itself(browser, canary, html):
    with browser.page() as page:
        page.call("Page.navigate", url=canary.serve(html))
        hears(canary, attempts(html) - HOPES)


def test_without_fences_the_canary_hears_what_counts_where_scripts_do_not(browser, canary):
    with browser.page() as page:
        page.call("Emulation.setScriptExecutionDisabled", value=True)
        page.call("Page.navigate", url=canary.serve(WITHOUT_SCRIPTS))
        hears(canary, attempts(WITHOUT_SCRIPTS))


def test_without_fences_the_canary_hears_of_all_that_leaves(browser, canary):
    with browser.page() as page:
        for name, html in LEAVES.items():
            page.call("Page.navigate", url=canary.serve(html))
            hears(canary, {name})


def test_without_fences_the_canary_hears_of_each_click(browser, canary):
    for name, html in CLICKED.items():
        with browser.page() as page:
            page.open(canary.serve(html))
            page.click(300, 300)
            hears(canary, {name})


# -- all fences, and each alone ------------------------------------------------------------------


@pytest.mark.parametrize("stripped", [True, False], ids=["stripped", "raw"])
def test_in_its_frame_mail_neither_runs_nor_phones_home_nor_leaves(
    browser, canary, web, monkeypatch, stripped
):
    if not stripped:
        raw_html(monkeypatch)
    for name, html in ALL.items():
        send(web.mail, canary.aimed(html), name)
    with browser.page() as page:
        page.before(COUNTING_FRAMES)
        page.open(web.url)
        page.until(f"document.querySelectorAll('#rows li').length === {len(ALL)}")
        windows = browser.windows()
        for shown, name in enumerate(reversed(list(ALL)), 1):
            page.click_on(f"#rows li:nth-child({shown})")
            page.until(f"document.querySelector('#subject').textContent === '{name}'")
            page.until(f"framesLoaded >= {shown}")
            page.click_into_frame((700, 600), (700, 400))
        browser.idle(0.5)
        assert page.run("location.href") == web.url
        assert page.run("document.title") == "Mail"
        assert browser.windows() == windows
        assert page.run("document.querySelectorAll('#rows li').length") == len(ALL)
    assert canary.heard == []
    asked = set(web.asked())
    assert f"web: GET /api/messages/{web.mail.messages[0].id}/html" in asked
    # The frame may go nowhere but to our own address, and there is nothing for it to see.
    near = {f"web: GET /api/hit/{name}" for name in attempts("".join(ALL.values()))}
    assert asked & near <= (set() if stripped else {"web: GET /api/hit/link-near"})
    if stripped:
        assert canary.connections == 0
        assert browser.named("Browser.downloadWillBegin") == []
    assert len(web.mail.messages) == len(ALL)


@pytest.mark.parametrize("stripped", [True, False], ids=["stripped", "raw"])
def test_at_its_own_address_mail_neither_runs_nor_phones_home(
    browser, canary, web, monkeypatch, stripped
):
    if not stripped:
        raw_html(monkeypatch)
    tried = ALL if stripped else WITHOUT_A_CLICK  # a page of its own may follow a link
    for html in tried.values():
        send(web.mail, canary.aimed(html))
    with browser.page() as page:
        windows = len(browser.windows())
        for mail in web.mail.messages:
            url = f"{web.url}api/messages/{mail.id}/html"
            page.open(url)
            page.click(300, 300)
            browser.idle(0.05)
            assert page.run("location.href") == url
        browser.idle(0.5)
        assert len(browser.windows()) == windows
    assert canary.heard == []
    assert not any("/api/hit" in each for each in web.asked())


def test_stripped_alone_mail_does_not_run(browser, canary):
    """Without the policy and the frame style sheets load; nothing else does, and nothing runs."""
    with browser.page() as page:
        for name, html in ALL.items():
            page.open(canary.serve(harmless(canary.aimed(html), lambda _: "")))
            page.click(300, 300)
            browser.idle(0.05)
            assert page.run("location.pathname").startswith("/page-"), name
        browser.idle(0.5)
    loads_css = {name for name in attempts(LOADS) if name.startswith(("css-", "style-"))}
    assert set(canary.heard) <= loads_css | {"favicon.ico"}


# -- other sites ---------------------------------------------------------------------------------

FOREIGN = """
<img src="WEBapi/messages"><script src="WEBapi/messages"></script><iframe src="WEB"></iframe>
<link rel="stylesheet" href="WEB"><script>
const api = "WEBapi/", got = [];
const note = promise => promise.then(answer => got.push(answer.status), () => got.push("nothing"));
note(fetch(api + "messages"));
note(fetch(api + "messages", { method: "DELETE" }));
note(fetch(api + "messages", { mode: "no-cors", credentials: "include" }));
const events = new EventSource(api + "events");
events.onopen = () => got.push("events");
events.onerror = () => got.push("nothing");
</script>
"""


@pytest.mark.parametrize("where", ["near", "far"])
def test_a_page_of_another_site_gets_403(browser, canary, web, where):
    send(web.mail, "secret")
    url = canary.serve(FOREIGN.replace("WEB", web.url))
    with browser.page() as page:
        page.call("Page.navigate", url=url.replace(canary.near, getattr(canary, where)))
        page.until("typeof got === 'object' && got.length === 4")
        assert set(page.run("got")) <= {"nothing", 0}  # 0: an answer that it may not look into
        asked = {
            each["requestId"]
            for each in browser.named("Network.requestWillBeSent")
            if each["request"]["url"].startswith(web.url)
        }
        answers = browser.named("Network.responseReceivedExtraInfo")
        statuses = [each["statusCode"] for each in answers if each["requestId"] in asked]
        assert len(statuses) >= 4
        assert set(statuses) == {403}
    assert len(web.mail.messages) == 1
