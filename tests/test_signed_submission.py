"""The example of a submission server: as a program, with real clients, by PLAIN and by SCRAM."""

import hashlib
import json
import os
import pathlib
import signal
import smtplib
import ssl
import subprocess
import sys

import peers
import pytest
from support import DEADLINE, ROOT, Client, Program, trusting
from test_auth import PASSWORD, login, plain, scram

EXAMPLE = str(ROOT / "examples" / "signed_submission.py")
MESSAGE = b"Subject: hi\r\n\r\nhello\r\n"


def add(users, name, password, *senders):
    """Add a user, as one does at a shell; give the status, and what it complains of."""
    command = [sys.executable, EXAMPLE, "add", users, name, *senders]
    done = subprocess.run(
        command,
        input=f"{password}\n".encode(),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=DEADLINE,
    )
    return done.returncode, done.stderr.decode()


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    """A file of two users."""
    path = tmp_path_factory.mktemp("users") / "users.json"
    assert add(path, "jo", PASSWORD, "jo@x.example", "*@Jo.example") == (0, "")
    assert add(path, "ann", "sesame", "ann@x.example") == (0, "")
    return path


@pytest.fixture
def submission(no_leaks, users, certificate):
    """Start the example; end it in order."""
    files = ("--cert", certificate[0], "--key", certificate[1])
    with Program(EXAMPLE, "serve", str(users), "0", *files) as program:
        program.listening_at = program.port()
        program.number = signal.SIGTERM
        yield program
        program.signal(program.number)
        assert program.finish() == 0, program.errors
        assert program.errors == ""


@pytest.fixture
def client(submission, certificate):
    """A client in TLS, before the greeting."""
    with Client(("127.0.0.1", submission.listening_at)) as made:
        made.secure(certificate)
        yield made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_smtplib_sends_over_tls(submission, certificate, number):
    submission.number = number
    with smtplib.SMTP_SSL(
        "localhost", submission.listening_at, timeout=DEADLINE, context=trusting(certificate)
    ) as client:
        client.ehlo("client.example")
        assert "starttls" not in client.esmtp_features
        client.user, client.password = "jo", PASSWORD
        assert client.auth("PLAIN", client.auth_plain)[0] == 235
        client.sendmail("jo@x.example", ["b@y.example", "c@y.example"], MESSAGE)
    assert submission.line() == "jo: jo@x.example -> b@y.example, c@y.example"


def test_scram_by_stored_keys(client, submission):
    assert "SCRAM-SHA-256-PLUS SCRAM-SHA-256" in client.hello()
    assert scram(client).startswith("235 ")
    assert client.ask("MAIL FROM:<jo@x.example>").startswith("250 ")


def test_scram_bound_to_the_channel(client, certificate):
    client.hello()
    der = ssl.PEM_cert_to_DER_cert(pathlib.Path(certificate[0]).read_text())
    assert scram(client, binding=hashlib.sha256(der).digest()).startswith("235 ")


def test_scram_with_another_password_or_nobody(client):
    client.hello()
    assert scram(client, "wrong").startswith("535 5.7.8 ")
    assert scram(client, username="nobody").startswith("535 5.7.8 ")
    assert scram(client).startswith("235 ")


def by_plain(client, user, password):
    return client.ask(plain(user, password))


@pytest.mark.parametrize("how", [by_plain, login])
@pytest.mark.parametrize(
    ("user", "password"), [("jo", "sesame"), ("jo", ""), ("nobody", PASSWORD), ("nobody", "")]
)
def test_a_wrong_password_lets_nobody_in(client, how, user, password):
    client.hello()
    refusal = "535 5.7.8 " if password else "501 5.5.2 "  # none is empty (RFC 4616 2)
    assert how(client, user, password).startswith(refusal)
    assert client.ask("MAIL FROM:<jo@x.example>").startswith("530 ")
    assert how(client, "jo", PASSWORD).startswith("235 ")


def test_what_is_stored_is_no_password(client, users):
    """Who has read the file cannot log in by what stands there."""
    client.hello()
    keys = json.loads(users.read_text())["jo"]["keys"]
    assert all(client.ask(plain(password=key)).startswith("535 ") for key in keys)
    assert PASSWORD not in users.read_text()
    assert users.stat().st_mode & 0o077 == 0


def test_without_auth_there_is_no_mail(client):
    client.hello()
    assert client.ask("MAIL FROM:<jo@x.example>").startswith("530 5.7.0 ")


@pytest.mark.parametrize(
    ("sender", "code"),
    [
        ("jo@x.example", 250),
        ("Jo@X.example", 250),
        ("anything@jo.example", 250),
        ("ann@x.example", 553),
        ("jo@x.example.net", 553),
        ("", 553),
    ],
)
def test_a_sender_belongs_to_the_user(client, sender, code):
    client.hello()
    assert client.ask(plain()).startswith("235 ")
    assert client.ask(f"MAIL FROM:<{sender}>").startswith(str(code))


def test_in_the_clear_there_is_no_service(submission):
    with Client(("127.0.0.1", submission.listening_at)) as client:
        client.send(b"EHLO client.example\r\n")
        assert b"250" not in client.gone()


def test_who_is_added_is_known_at_once(client, users):
    client.hello()
    assert client.ask(plain("new", "very new")).startswith("535 ")
    assert add(users, "new", "very new", "new@x.example") == (0, "")
    assert scram(client, "very new", "new").startswith("235 ")
    assert client.ask("MAIL FROM:<new@x.example>").startswith("250 ")


@pytest.mark.parametrize("password", ["", "\a"])
def test_what_can_be_no_password_is_refused(tmp_path, password):
    path = tmp_path / "users.json"
    assert add(path, "jo", password, "*") == (1, "that can be no password\n")
    assert not path.exists()


@pytest.mark.interop
def test_swaks(submission):
    swaks = [peers.find("swaks"), "--server", f"localhost:{submission.listening_at}"]
    words = "--tls-on-connect --from jo@x.example --to b@y.example --auth PLAIN --auth-user jo"
    command = [*swaks, *words.split(), "--auth-password", PASSWORD]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stdout
    assert submission.line() == "jo: jo@x.example -> b@y.example"


def test_help(no_leaks):
    with Program(EXAMPLE, "--help") as program:
        assert program.finish() == 0
        assert b"add a user" in program.remaining()
