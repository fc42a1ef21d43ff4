"""What people send mail with, against the catcher: each with the real library."""

import asyncio
import os
import shutil
import subprocess
import sys

import pytest
from support import DEADLINE, ROOT

from smtpd_sync.testing import MailCatcher

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("no_leaks")]

SECURE = {"auth": {"ann": "secret"}, "require_auth": True}
WAYS = [
    pytest.param({}, id="plain"),
    pytest.param({**SECURE, "starttls": True, "require_tls": True}, id="starttls"),
    pytest.param({**SECURE, "tls": True}, id="tls"),
]


@pytest.fixture(params=WAYS)
def mail(request):
    with MailCatcher(**request.param) as catcher:
        yield catcher


def run(program, mail, *needs):
    """Run a program that sends mail as configured by its environment; skip without its library."""
    for name in needs:
        pytest.importorskip(name)
    trusted = {}
    if mail.server.tls:
        trusted = {"SSL_CERT_FILE": mail.server.tls[0], "CERT_FILE": mail.server.tls[0]}
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", program],
        env={**os.environ, **mail.env(), **trusted, "PYTHONPATH": str(ROOT), "WAY": way_of(mail)},
        capture_output=True,
        text=True,
        timeout=DEADLINE * 3,
    )
    assert done.returncode == 0, done.stderr


def way_of(mail):
    if mail.server.implicit_tls:
        return "tls"
    return "starttls" if mail.server.tls else "plain"


def check(mail):
    """What each of the programs below sends is there, whole."""
    (caught,) = mail.wait(timeout=DEADLINE, subject="Gr\u00fc\u00dfe")
    way = way_of(mail)
    assert bool(caught.tls) == (way != "plain")
    assert caught.user == (None if way == "plain" else "ann")
    assert caught.sender == "app@example.com"
    assert caught.recipients == ["bob@example.com", "carol@example.com", "hidden@example.com"]
    assert caught.bcc == ["hidden@example.com"]
    assert caught.text.strip() == "Hall\u00f6, Bob:\n\nhttps://example.com/login?token=42"
    assert "<b>Hall\u00f6</b>" in caught.html
    assert caught.links()[0] == "https://example.com/login?token=42"
    ((name, kind, content),) = caught.attachments
    assert (name, kind, content) == ("b\u00fcro.bin", "application/octet-stream", bytes(range(256)))


TEXT = "Hall\u00f6, Bob:\n\nhttps://example.com/login?token=42\n"
HTML = "<p><b>Hall\u00f6</b>, Bob</p>"
COMMON = f"""
import os
HOST, PORT, WAY = os.environ["SMTP_HOST"], int(os.environ["SMTP_PORT"]), os.environ["WAY"]
USER, PASSWORD = ("ann", "secret") if WAY != "plain" else (None, None)
SUBJECT, TEXT, HTML = "Gr\u00fc\u00dfe", {TEXT!r}, {HTML!r}
SENDER, TO = "app@example.com", "bob@example.com"
CC, BCC = "carol@example.com", "hidden@example.com"
FILE = "b\u00fcro.bin", bytes(range(256)), "application/octet-stream"
"""

DJANGO = """
import django
from django.conf import settings
settings.configure(
    EMAIL_BACKEND="django.core.mail.backends.smtp.EmailBackend",
    EMAIL_HOST=HOST, EMAIL_PORT=PORT, EMAIL_TIMEOUT=20,
    EMAIL_HOST_USER=USER or "", EMAIL_HOST_PASSWORD=PASSWORD or "",
    EMAIL_USE_TLS=WAY == "starttls", EMAIL_USE_SSL=WAY == "tls",
)
django.setup()
from django.core import mail
message = mail.EmailMultiAlternatives(SUBJECT, TEXT, SENDER, [TO], [BCC], cc=[CC])
message.attach_alternative(HTML, "text/html")
message.attach(*FILE)
assert message.send() == 1
"""


def test_django(mail):
    run(COMMON + DJANGO, mail, "django")
    check(mail)


FLASK = """
from flask import Flask
from flask_mailman import EmailMultiAlternatives, Mail
app = Flask("app")
app.config.update(
    MAIL_SERVER=HOST, MAIL_PORT=PORT, MAIL_USERNAME=USER, MAIL_PASSWORD=PASSWORD, MAIL_TIMEOUT=20,
    MAIL_USE_TLS=WAY == "starttls", MAIL_USE_SSL=WAY == "tls",
)
Mail(app)
with app.app_context():
    message = EmailMultiAlternatives(SUBJECT, TEXT, SENDER, [TO], [BCC], cc=[CC])
    message.attach_alternative(HTML, "text/html")
    message.attach(*FILE)
    assert message.send() == 1
"""


def test_flask_mailman(mail):
    run(COMMON + FLASK, mail, "flask", "flask_mailman")
    check(mail)


def message_of():
    """The same message, by the standard library."""
    from email.message import EmailMessage

    message = EmailMessage()
    message["Subject"] = "Gr\u00fc\u00dfe"
    message["From"] = "app@example.com"
    message["To"] = "bob@example.com"
    message["Cc"] = "carol@example.com"
    message.set_content(TEXT)
    message.add_alternative(HTML, subtype="html")
    message.add_attachment(
        bytes(range(256)), "application", "octet-stream", filename="b\u00fcro.bin"
    )
    return message


RECIPIENTS = ["bob@example.com", "carol@example.com", "hidden@example.com"]


def test_aiosmtplib(mail):
    aiosmtplib = pytest.importorskip("aiosmtplib")
    way = way_of(mail)
    sending = aiosmtplib.send(
        message_of(),
        sender="app@example.com",
        recipients=RECIPIENTS,
        hostname=mail.host,
        port=mail.port,
        timeout=DEADLINE,
        username=None if way == "plain" else "ann",
        password=None if way == "plain" else "secret",
        use_tls=way == "tls",
        start_tls=way == "starttls",
        tls_context=None if way == "plain" else mail.client_context(),
    )
    refused, _ = asyncio.run(sending)
    assert refused == {}
    check(mail)


def test_aiosmtplib_sends_many_at_once():
    aiosmtplib = pytest.importorskip("aiosmtplib")
    with MailCatcher() as mail:

        async def send():
            await asyncio.gather(
                *(
                    aiosmtplib.send(
                        f"Subject: {number}\r\n\r\nhello\r\n",
                        sender=f"{number}@example.com",
                        recipients=["bob@example.com"],
                        hostname=mail.host,
                        port=mail.port,
                        timeout=DEADLINE,
                    )
                    for number in range(40)
                )
            )

        asyncio.run(send())
        assert {caught.sender for caught in mail.messages} == {
            f"{number}@example.com" for number in range(40)
        }


SMTPLIB = """
import smtplib, ssl, sys
sys.path.insert(0, os.environ["TESTS"])
from test_catcher_interop import RECIPIENTS, message_of
context = WAY != "plain" and ssl.create_default_context(cafile=os.environ["CERT_FILE"])
implicit = WAY == "tls"
with smtplib.SMTP_SSL(HOST, PORT, context=context) if implicit else smtplib.SMTP(HOST, PORT) as c:
    if WAY == "starttls":
        c.starttls(context=context)
    if USER:
        c.login(USER, PASSWORD)
    assert c.send_message(message_of(), SENDER, RECIPIENTS) == {}
"""


def test_smtplib_in_another_process(mail, monkeypatch):
    monkeypatch.setenv("TESTS", str(ROOT / "tests"))
    run(COMMON + SMTPLIB, mail)
    check(mail)


def test_swaks_by_hand():
    if shutil.which("swaks") is None:
        pytest.skip("swaks is not installed")
    with MailCatcher(starttls=True, auth="any") as mail:
        command = ["swaks", "--server", f"{mail.host}:{mail.port}", "--tls", "--auth", "PLAIN"]
        command += ["--auth-user", "ann", "--auth-password", "x", "--from", "a@x.example"]
        command += ["--to", "b@y.example", "--body", "by hand"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE * 3)
        assert done.returncode == 0, done.stdout
        assert mail.wait_one(text="by hand").user == "ann"
