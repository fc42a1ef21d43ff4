"""The module's own server: configure, cget, start, stop and stopped."""

import os
import threading

import pytest
from support import SOON, Client, Program, until

import smtpd_sync
from smtpd_sync import service
from smtpd_sync.hooks import HOOKS
from smtpd_sync.options import OPTIONS


@pytest.fixture(autouse=True)
def fresh(no_leaks):
    """Give each test a service that was never configured."""
    assert smtpd_sync.stopped.is_set()
    service._settings.clear()
    yield
    smtpd_sync.stop(2)
    service._settings.clear()


def test_scripts_of_tcllib_work(inbox):
    hosts = []
    smtpd_sync.configure(deliver=inbox, validate_host=hosts.append, banner="my mail")
    assert smtpd_sync.cget("banner") == "my mail"
    server = smtpd_sync.start("127.0.0.1", 0)
    assert not smtpd_sync.stopped.is_set()
    with Client(server) as client:
        assert client.reply().endswith(" my mail")
        client.ask("EHLO c.example")
        for line in ("MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>", "DATA"):
            assert client.ask(line)[0] in "23"
        client.send(b"hello\r\n.\r\n")
        assert client.reply().startswith("250 ")
    assert len(inbox.wait()) == 1
    assert hosts == ["127.0.0.1"]
    smtpd_sync.stop()
    assert smtpd_sync.stopped.wait(SOON)
    with pytest.raises(ConnectionRefusedError):
        Client(server)


def test_stopped_is_set_before_the_first_start():
    assert smtpd_sync.stopped.is_set()
    assert isinstance(smtpd_sync.stopped, threading.Event)


def test_stopped_tells_a_waiting_thread():
    smtpd_sync.configure(deliver=smtpd_sync.discard)
    smtpd_sync.start("127.0.0.1", 0)
    waited = []
    thread = threading.Thread(target=lambda: waited.append(smtpd_sync.stopped.wait(SOON)))
    thread.start()
    smtpd_sync.stop()
    thread.join()
    assert waited == [True]


def test_stop_when_stopped_does_nothing():
    smtpd_sync.stop()
    smtpd_sync.stop()
    assert smtpd_sync.stopped.is_set()


def test_start_twice_is_a_runtime_error():
    smtpd_sync.configure(deliver=smtpd_sync.discard)
    server = smtpd_sync.start("127.0.0.1", 0)
    with pytest.raises(RuntimeError):
        smtpd_sync.start("127.0.0.1", 0)
    with Client(server) as client:
        assert client.hello()


def test_start_without_deliver_is_a_value_error():
    with pytest.raises(ValueError, match="deliver="):
        smtpd_sync.start("127.0.0.1", 0)
    assert smtpd_sync.stopped.is_set()


def test_start_that_fails_leaves_it_stopped(inbox):
    smtpd_sync.configure(deliver=inbox)
    server = smtpd_sync.start("127.0.0.1", 0)
    port = server.port
    smtpd_sync.stop()
    with smtpd_sync.SMTPServer(("127.0.0.1", port), deliver=inbox):
        with pytest.raises(OSError):  # noqa: PT011
            smtpd_sync.start("127.0.0.1", port)
        assert smtpd_sync.stopped.is_set()
    smtpd_sync.start("127.0.0.1", port)


def test_restart(inbox):
    smtpd_sync.configure(deliver=inbox, hostname="mx.example")
    for number in range(3):
        server = smtpd_sync.start("127.0.0.1", 0)
        with Client(server) as client:
            assert client.mail(b"%d\r\n" % number).startswith("250 ")
        smtpd_sync.stop()
        assert smtpd_sync.stopped.is_set()
    assert len(inbox.wait(3)) == 3


def test_configure_lists_everything():
    everything = smtpd_sync.configure()
    assert set(everything) == {*OPTIONS, *HOOKS}
    assert everything["banner"] == "ESMTP"
    assert everything["deliver"] is None
    assert smtpd_sync.configure(banner="mine")["banner"] == "mine"
    for name, value in smtpd_sync.configure().items():
        assert smtpd_sync.cget(name) == value


def test_alias_of_tcllib():
    messages = []
    smtpd_sync.configure(deliver_mime=lambda message, *_: messages.append(message["Subject"]))
    assert callable(smtpd_sync.cget("deliver_mime"))
    assert smtpd_sync.cget("deliver_mime") is smtpd_sync.cget("deliver_message")
    with Client(smtpd_sync.start("127.0.0.1", 0)) as client:
        assert client.mail(b"Subject: parsed\r\n\r\n").startswith("250 ")
    assert messages == ["parsed"]


def test_unknown_option_is_a_value_error_that_names_the_valid_ones():
    with pytest.raises(ValueError, match="deliverer") as caught:
        smtpd_sync.configure(deliverer=print)
    for name in (*OPTIONS, *HOOKS, "deliver_mime"):
        assert name in str(caught.value)
    with pytest.raises(ValueError, match="nothing"):
        smtpd_sync.cget("nothing")


@pytest.mark.parametrize(
    "wrong", [{"bare_newline": "ignore"}, {"validate_host": 42}, {"nonsense": 1}, {"tls": 42}]
)
def test_configure_that_fails_sets_nothing(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        smtpd_sync.configure(banner="new", **wrong)
    assert smtpd_sync.cget("banner") == "ESMTP"


def test_configure_while_running_applies_to_new_connections(inbox):
    smtpd_sync.configure(deliver=inbox, banner="old")
    server = smtpd_sync.start("127.0.0.1", 0)
    with Client(server) as old, Client(server) as new:
        assert old.reply().endswith(" old")
        new.reply()
        smtpd_sync.configure(banner="new", validate_sender=lambda mailbox: False)
        old.ask("EHLO c.example")
        assert old.ask("MAIL FROM:<a@x.example>").startswith("250 ")
    with Client(server) as client:
        assert client.hello().startswith("250-")
        assert client.ask("MAIL FROM:<a@x.example>").startswith("550 ")
    smtpd_sync.configure(validate_sender=None)
    with Client(server) as client:
        assert client.reply().endswith(" new")
        client.ask("EHLO c.example")
        assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")


def test_configure_that_fails_while_running_sets_nothing(inbox):
    smtpd_sync.configure(deliver=inbox, banner="old")
    server = smtpd_sync.start("127.0.0.1", 0)
    with pytest.raises(ValueError, match="deliver"):
        smtpd_sync.configure(banner="new", deliver=None)
    assert smtpd_sync.cget("banner") == "old"
    assert smtpd_sync.cget("deliver") is inbox
    with Client(server) as client:
        assert client.reply().endswith(" old")


def test_stop_in_a_hook_is_stopped_only_when_all_is_over():
    seen = []

    def deliver(sender, recipients, data):
        smtpd_sync.stop()
        seen.append(smtpd_sync.stopped.is_set())

    smtpd_sync.configure(deliver=deliver)
    with Client(smtpd_sync.start("127.0.0.1", 0)) as client:
        assert client.mail().startswith("250 ")
        assert client.reply().startswith("421 4.3.2 ")
    assert smtpd_sync.stopped.wait(SOON)
    assert seen == [False]


def test_end_of_an_old_server_does_not_tell_of_a_new_one():
    asked, release = threading.Event(), threading.Event()

    def deliver(sender, recipients, data):
        smtpd_sync.stop()
        asked.set()
        release.wait(SOON)

    smtpd_sync.configure(deliver=deliver)
    old = smtpd_sync.start("127.0.0.1", 0)
    try:
        with Client(old) as client:
            client.to_data()
            client.send(b"hello\r\n.\r\n")
            assert asked.wait(SOON)
            try:
                smtpd_sync.start("127.0.0.1", 0)
            except RuntimeError:
                return  # the old one still runs: that is an answer, too
            release.set()
            assert client.reply().startswith("250 ")
        old.stop()
        assert not smtpd_sync.stopped.wait(0.1)
    finally:
        release.set()
        old.stop()


def test_server_that_is_stopped_itself_can_be_started_again(inbox):
    smtpd_sync.configure(deliver=inbox)
    smtpd_sync.start("127.0.0.1", 0).stop()
    until(smtpd_sync.stopped.is_set, "stopped", SOON)
    smtpd_sync.start("127.0.0.1", 0)


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_stop_in_a_signal_handler_while_the_module_is_configured():
    code = """
import os, signal, ssl
import smtpd_sync

def context():
    os.kill(os.getpid(), signal.SIGTERM)
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

signal.signal(signal.SIGTERM, lambda number, frame: smtpd_sync.stop())
smtpd_sync.configure(deliver=smtpd_sync.discard)
smtpd_sync.start("127.0.0.1", 0)
smtpd_sync.configure(tls=context)
smtpd_sync.stopped.wait()
print("stopped", flush=True)
"""
    with Program("-c", code) as running:
        assert running.finish(SOON) == 0, running.errors
        assert running.line() == "stopped"
