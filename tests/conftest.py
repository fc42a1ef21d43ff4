"""Fixtures: servers and clients that are gone when a test is over, and a certificate."""

import logging
import shutil
import signal
import threading

import pytest
from support import LOOPBACK, Client, Inbox, Program, descriptors, make_certificate, until

from smtpd_sync import SMTPHandler, SMTPServer
from smtpd_sync.testing import MailCatcher
from smtpd_sync.web import Web

pytest_plugins = ["smtpd_sync.pytest_plugin", "pytester"]  # once, though it be installed, too

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in its background so, and our programs would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A throw-away certificate for localhost: (cert, key)."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is missing")
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def no_leaks():
    """Check that a test leaves no thread and no descriptor behind."""
    threads, opened = set(threading.enumerate()), descriptors()
    yield
    until(lambda: not set(threading.enumerate()) - threads, "the end of all threads")
    until(lambda: descriptors() <= opened, "the close of all descriptors")


@pytest.fixture
def inbox():
    """A deliver hook that keeps what it gets."""
    return Inbox()


@pytest.fixture
def serve(no_leaks, inbox):
    """Start a server on loopback, stopped after the test: ``serve(handler=..., **options)``."""
    servers = []

    def make(handler=SMTPHandler, address=LOOPBACK, server=SMTPServer, **options):
        options.setdefault("hostname", "mx.example")
        if handler.delivery is None and not any(name.startswith("deliver") for name in options):
            options["deliver"] = inbox
        made = server(address, handler, **options)
        servers.append(made)
        return made.start()

    yield make
    for server in servers:
        server.stop(2)


@pytest.fixture
def connect(no_leaks):
    """Connect a client, closed after the test: ``connect(server)``."""
    clients = []

    def make(server, **options):
        clients.append(Client(server, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def run(no_leaks):
    """Run the command line; ended after the test."""
    running = []

    def make(*arguments, cwd=None):
        running.append(Program("-m", "smtpd_sync", *arguments, cwd=cwd))
        return running[-1]

    yield make
    for program in running:
        program.__exit__()


@pytest.fixture
def serving(run):
    """Run it on a free port; give the program and its port."""

    def make(*arguments, cwd=None):
        program = run("127.0.0.1:0", *arguments, cwd=cwd)
        return program, program.port()

    return make


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A real browser; each test opens pages of its own in it."""
    browsing = pytest.importorskip("browser", reason="its pipes are those of POSIX")
    if browsing.find_chromium() is None:
        pytest.skip("chromium is missing")
    with browsing.Browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture
def web(no_leaks, caplog):
    """The page of a catcher: of the catcher ``.mail``, of what it was asked ``asked()``."""
    caplog.set_level(logging.DEBUG, "smtpd_sync")
    with MailCatcher() as catcher:
        web = Web(catcher).start()
        web.mail = catcher
        web.asked = lambda: [each.getMessage() for each in caplog.records]
        yield web
        web.stop()
