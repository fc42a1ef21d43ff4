"""Make the pictures of the page for the manual: ``python tests/screenshots.py [DIRECTORY]``."""

import pathlib
import struct
import sys
import tempfile
import zlib
from datetime import datetime, timedelta, timezone
from email.message import EmailMessage
from smtplib import SMTP

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script: the imports below need it first

from browser import Browser  # noqa: E402

from smtpd_sync.testing import MailCatcher  # noqa: E402
from smtpd_sync.web import Web  # noqa: E402

MOST_OCTETS = 150_000
NEWEST = datetime.now(timezone.utc).replace(hour=9, minute=41, second=20)

NEWSLETTER = """\
<html><body style="margin:0; background:#f3efe8; font-family:Georgia,serif; color:#33302b">
<table align="center" width="560" cellpadding="0" cellspacing="0"
 style="background:#fffdf9; margin:24px auto; border-radius:8px; overflow:hidden">
<tr><td><img src="cid:hills@garden.example" width="560" height="150" alt="Hills at dawn"></td></tr>
<tr><td style="padding:22px 36px 30px">
<h1 style="font-weight:normal; font-size:26px; margin:0 0 10px">What to sow in May</h1>
<p>Dear Maria,</p>
<p>The nights are warm enough at last. Beans and courgettes may go straight into the bed now;
tomatoes want one more week behind glass.</p>
<table width="100%" cellpadding="8" style="background:#eef3e6; border-radius:6px">
<tr><td><b>Runner beans</b></td><td align="right">5 cm deep, 15 cm apart</td></tr>
<tr><td><b>Courgettes</b></td><td align="right">one plant to the square metre</td></tr>
</table>
<p style="margin:22px 0 6px"><a href="https://garden.example/may"
 style="background:#5b7f3a; color:#fff; padding:10px 20px; border-radius:5px; text-decoration:none">
Read the whole calendar</a></p>
</td></tr></table>
</body></html>
"""


def picture(width, height):
    """Draw hills at dawn, as PNG."""

    def colour(x, y):
        near = 105 + 22 * abs(((x / 140) % 2) - 1)
        far = 70 + 30 * abs(((x / 210 + 0.6) % 2) - 1)
        if y > near:
            return 91, 127, 58
        if y > far:
            return 150, 176, 118
        if (x - 430) ** 2 + (y - 48) ** 2 < 26**2:
            return 255, 246, 214
        return 250, 200 + y // 4, 150 + y // 2

    lines = (b"\0" + b"".join(bytes(colour(x, y)) for x in range(width)) for y in range(height))
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(b"".join(lines), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def written(sender, to, subject, text, **fields):
    """Write a plain mail."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, to, subject
    for name, value in fields.items():
        message[name] = value
    message.set_content(text)
    return message


def mails():
    """Give (message, recipients that no field names), oldest first."""
    shop, garden = "Paper & Pen <orders@shop.example>", "The Kitchen Garden <hello@garden.example>"
    maria = "Maria Santos <maria@home.example>"
    yield written("ci@build.example", "team@build.example", "Build 1482 passed", "All green.\n"), ()
    yield (
        written("jo@home.example", maria, "Dinner on Friday?", "Seven at ours? Bring nothing.\n"),
        (),
    )
    yield (
        written(
            "Accounts <accounts@shop.example>",
            "no-reply@shop.example",
            "Reset your password",
            "Hello Maria,\n\nsomebody asked for a new password. If it was you, go to\n\n"
            "    https://shop.example/reset/4f1c9a\n\nwithin an hour. If not, do nothing.\n",
        ),
        ("maria@home.example",),
    )
    invoice = written(
        shop,
        maria,
        "Your invoice 2025-0417",
        "Thank you for your order. The invoice is attached.\n",
    )
    invoice.add_attachment(
        b"%PDF-1.4\n" + 48_211 * b"%",
        maintype="application",
        subtype="pdf",
        filename="invoice-2025-0417.pdf",
    )
    invoice.add_attachment("item,price\nfountain pen,38.00\n", "csv", filename="items.csv")
    yield invoice, ("archive@shop.example",)
    yield (
        written(
            "Zoë Müller <zoe@buero.example>",
            maria,
            "Grüße aus Köln, und ein Foto ☀",
            "Bis bald!\n",
        ),
        (),
    )
    newsletter = written(
        garden, maria, "What to sow in May", "What to sow in May: beans, courgettes, chard.\n"
    )
    newsletter.add_alternative(NEWSLETTER, subtype="html")
    newsletter.get_payload()[1].add_related(
        picture(560, 150), maintype="image", subtype="png", cid="<hills@garden.example>"
    )
    yield newsletter, ("list-archive@garden.example",)


def fill(catcher):
    """Send them all, minutes apart."""
    for message, hidden in mails():
        named = [each.addr_spec for each in message["To"].addresses]
        with SMTP(catcher.host, catcher.port, local_hostname="app.shop.example") as client:
            client.send_message(message, to_addrs=[*named, *hidden])
    caught = catcher.wait(len(list(mails())))
    for age, mail in enumerate(reversed(caught)):
        mail.received_at = NEWEST - timedelta(minutes=age * 17, seconds=age * 13)
    return caught


PICTURES = {
    "web-light.png": ((1180, 720), "light", "What to sow in May", "1"),
    "web-dark.png": ((1180, 720), "dark", "Your invoice 2025-0417", "6"),
    "web-narrow.png": ((400, 720), "light", "Reset your password", "2"),
}


def make(directory):
    with (
        tempfile.TemporaryDirectory() as profile,
        Browser(pathlib.Path(profile)) as browser,
        MailCatcher(hostname="mail.home.example") as catcher,
    ):
        fill(catcher)
        web = Web(catcher).start()
        try:
            for name, wanted in PICTURES.items():
                (directory / name).write_bytes(shot(browser, web.url, *wanted))
        finally:
            web.stop()


def shot(browser, url, size, scheme, subject, key):
    """Give a picture of the page with a message open, in the view of a key."""
    with browser.page(*size) as page:
        page.prefer(color_scheme=scheme)
        page.open(url)
        page.until("document.querySelectorAll('#rows li').length > 0")
        page.run(
            "[...document.querySelectorAll('#rows li')].find("
            f"each => each.textContent.includes({subject!r})).click()"
        )
        page.until(f"document.querySelector('#subject').textContent === {subject!r}")
        page.key(key)
        browser.idle(0.6)
        octets = page.picture()
    assert len(octets) < MOST_OCTETS, len(octets)
    return octets


if __name__ == "__main__":
    make(pathlib.Path(sys.argv[1]) if sys.argv[1:] else ROOT / "examples")
