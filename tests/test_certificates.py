"""The throw-away certificate: what it is good for, who made it, and that it goes."""

import os
import shutil
import ssl
import stat
import subprocess
import sys
import threading

import pytest
from support import ROOT

from smtpd_sync import certificates
from smtpd_sync.certificates import SHIPPED, Certificate, client_context, throwaway
from smtpd_sync.testing import MailCatcher

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is missing")


@pytest.fixture
def makers(tmp_path, monkeypatch):
    """Begin anew, in a directory of the test, with these ways to make one: ``makers(*ways)``."""
    monkeypatch.setattr(certificates, "_made", None)
    monkeypatch.setattr(certificates.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    monkeypatch.setattr(certificates.atexit, "register", lambda remove: None)
    return lambda *ways: monkeypatch.setattr(certificates, "WAYS", ways)


def shake_hands(certificate, name):
    """Do a whole handshake, with a client that trusts the certificate; give what it saw."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(*certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = client_context(certificate.certfile)
    client = context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for end in (client, server, client, server):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return client.getpeercert()


def holds(certificate):
    for name in ("localhost", "127.0.0.1", "::1"):
        assert shake_hands(certificate, name)["subject"] == ((("commonName", "localhost"),),)
    with pytest.raises(OSError, match="match"):
        shake_hands(certificate, "mx.example")


def test_shipped_certificate_holds_for_localhost_and_for_long():
    certificate = Certificate(SHIPPED, SHIPPED)
    holds(certificate)
    seen = shake_hands(certificate, "localhost")
    assert (seen["notBefore"][-8:], seen["notAfter"][-8:]) == ("2020 GMT", "2120 GMT")


@needs_openssl
def test_certificate_of_the_command_holds_and_is_new(makers):
    makers(certificates.by_openssl)
    made = throwaway()
    holds(made)
    assert SHIPPED not in made


@pytest.mark.interop
def test_certificate_of_the_package_holds_and_is_new(makers):
    pytest.importorskip("cryptography")
    makers(certificates.by_cryptography)
    made = throwaway()
    holds(made)
    assert SHIPPED not in made


@needs_openssl
def test_key_is_for_its_owner_alone(makers):
    makers(certificates.by_openssl)
    assert stat.S_IMODE(os.stat(throwaway().keyfile).st_mode) == 0o600


def test_first_that_can_makes_it(makers):
    asked = []

    def maker(name, can):
        def make(made):
            asked.append(name)
            if can:
                shutil.copy(SHIPPED, made.certfile)
                shutil.copy(SHIPPED, made.keyfile)
            return can

        return make

    makers(maker("first", False), maker("second", True), maker("third", True))
    made = throwaway()
    assert asked == ["first", "second"]
    holds(made)


@pytest.mark.parametrize("path", ["", "failing"])
def test_shipped_one_serves_where_nothing_makes_one(makers, path, tmp_path, monkeypatch):
    failing = tmp_path / "failing"
    failing.mkdir()
    (failing / "openssl").write_text("#!/bin/sh\nexit 1\n", encoding="ascii")
    (failing / "openssl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / path) if path else str(tmp_path))
    monkeypatch.setitem(sys.modules, "cryptography", None)
    makers(certificates.by_openssl, certificates.by_cryptography)
    assert throwaway() == (SHIPPED, SHIPPED)
    with MailCatcher(starttls=True) as mail:
        assert mail.client_context().get_ca_certs()


def test_it_is_made_once_whoever_asks(makers):
    made = []
    makers(lambda certificate: bool(made.append(certificate)))
    threads = [threading.Thread(target=throwaway) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_context_trusts_it_and_nothing_else():
    assert len(client_context(SHIPPED).get_ca_certs()) == 1


PROGRAM = """
import os, stat, sys
from smtpd_sync.certificates import throwaway
certfile, keyfile = throwaway()
directory = os.path.dirname(keyfile)
assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
if hasattr(os, "fork"):
    child = os.fork()
    if not child:
        sys.exit()  # runs what is to run at the exit
    os.waitpid(child, 0)
assert os.path.exists(certfile), "the child removed it"
print(directory)
"""


@needs_openssl
def test_it_goes_with_its_process_and_not_with_a_child():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not os.path.exists(done.stdout.strip())
