"""What runs out, breaks or hangs ends one session at most: the server serves on, and leaks nothing.

Descriptors, threads, memory; hooks that hang, exit and close what is not theirs; clients that reset
the connection anywhere; a listener that somebody closed.
"""

import base64
import os
import signal
import socket
import ssl
import struct
import sys
import textwrap
import threading
import time

import pytest
from support import SOON, Client, Program, descriptors, trusting, until

from smtpd_sync import SMTPHandler

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as Linux has it")
# What leaves a hook of a thread is told to threading.excepthook; pytest warns of it.
thread_may_fail = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def program(code):
    """Run a server in a process of its own; SIGUSR1 asks for the CPU time that it has used."""
    head = """
        import os, resource, signal, sys, threading, time
        from smtpd_sync import Limits, SMTPServer, discard

        def tell(number, frame):
            # Not print(), in which a signal may come.
            os.write(1, f"cpu {time.process_time():.3f}\\n".encode())

        def listening():
            print(f"listening on 127.0.0.1:{server.port}", flush=True)

        server = SMTPServer(("127.0.0.1", 0), deliver=discard)
        signal.signal(signal.SIGTERM, lambda number, frame: server.stop(1))
        signal.signal(signal.SIGUSR1, tell)
    """
    return Program("-c", textwrap.dedent(head) + textwrap.dedent(code))


def cpu(running):
    """Ask a `program` for its CPU time, in seconds."""
    running.signal(signal.SIGUSR1)
    word, seconds = running.line().split()
    assert word == "cpu"
    return float(seconds)


def greeted(client, seconds):
    """Whether something comes within ``seconds``."""
    client.socket.settimeout(seconds)
    try:
        return bool(client.socket.recv(1, socket.MSG_PEEK))
    except socket.timeout:
        return False
    finally:
        client.socket.settimeout(SOON)


def is_served(server):
    """Whether a new client is served a message."""
    with Client(server) as client:
        return client.mail().startswith("250 ")


# -- descriptors -----------------------------------------------------------------------------

FEW = 12


@linux
def test_server_without_descriptors_waits_and_serves_again(no_leaks):
    code = f"""
        # Behind the constructor, which cuts the connections to what the limit was.
        used = len(os.listdir("/proc/self/fd"))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        listening()
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + {FEW}, hard))
        server.serve_forever()
    """
    clients = []
    with program(code) as running:
        try:
            server = ("127.0.0.1", running.port())
            while not clients or greeted(clients[-1], 0.5):
                clients.append(Client(server, timeout=SOON))
                assert len(clients) <= FEW + 1, "its descriptors never ran out"
            waiting = clients.pop()
            clients.insert(0, waiting)
            # It neither spins nor ends: and those it has are served.
            before, start = cpu(running), time.monotonic()
            while time.monotonic() - start < 1:
                assert clients[-1].ask("NOOP")[:3] in ("220", "250")
                assert not greeted(waiting, 0.05)
            share = (cpu(running) - before) / (time.monotonic() - start)
            assert share < 0.4
            # Who waited is served as soon as somebody leaves, and so is the next.
            clients.pop().close()
            assert greeted(waiting, SOON)
            assert waiting.mail().startswith("250 ")
            clients.pop().close()
            assert is_served(server)
        finally:
            for client in clients:
                client.close()
        running.signal(signal.SIGTERM)
        assert running.finish() == 0, running.errors
        said = running.errors.splitlines()
        assert said
        assert {line.split(":")[0] for line in said} == {"clients had to go"}
        assert len(said) < 200  # at ten a second that is a slow machine indeed


@linux
def test_server_without_descriptors_stops(no_leaks):
    code = f"""
        used = len(os.listdir("/proc/self/fd"))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        listening()
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + {FEW}, hard))
        server.serve_forever()
    """
    with program(code) as running:
        server = ("127.0.0.1", running.port())
        clients = [Client(server) for _ in range(FEW + 2)]
        try:
            clients[0].hello()
            until(lambda: not greeted(clients[-1], 0.1), "the end of the descriptors")
            running.signal(signal.SIGTERM)
            assert clients[0].reply().startswith("421 4.3.2 ")
            assert running.finish(SOON) == 0
        finally:
            for client in clients:
                client.close()


# -- threads ---------------------------------------------------------------------------------


@linux
def test_client_for_whom_there_is_no_room_for_a_thread_gets_421(no_leaks, monkeypatch):
    # Threads with large stacks in a small address space: the third or so cannot be.
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    code = """
        pages = int(open("/proc/self/statm").read().split()[0])
        stack = 256 * 2 ** 20
        threading.stack_size(stack)
        room = pages * resource.getpagesize() + 4 * stack + stack // 2
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        listening()
        server.serve_forever()
    """
    clients = []
    with program(code) as running:
        try:
            server = ("127.0.0.1", running.port())
            while not clients or clients[-1].reply().startswith("220 "):
                clients.append(Client(server))
                assert len(clients) < 10, "its threads never ran out"
            assert len(clients) > 2
            for _ in range(20):
                with Client(server) as refused:
                    assert refused.reply().startswith("421 ")
                    assert refused.ended()
            assert clients[0].ask("EHLO client.example").startswith("250-")
            clients.pop(0).close()
            clients.pop().close()

            def served():
                with Client(server) as client:
                    return client.reply().startswith("220 ")

            until(served, "a thread for the next client", SOON)
        finally:
            for client in clients:
                client.close()
        running.signal(signal.SIGTERM)
        assert running.finish() == 0, running.errors
        assert "can't start new thread" in running.errors


def test_thread_that_cannot_start_leaves_nothing(serve, connect, monkeypatch, caplog):
    server = serve()
    connect(server).hello()
    opened, begin = descriptors(), threading.Thread.start

    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    for _ in range(10):
        with Client(server) as refused:
            assert refused.reply().startswith("421 ")
            assert refused.ended()
    monkeypatch.setattr(threading.Thread, "start", begin)
    assert server.stats()["failed_accepts"] == 10
    until(lambda: "can't start new thread" in caplog.text, "a line in the log")
    until(lambda: descriptors() <= opened, "the close of what was accepted")
    assert len(server.crowd.threads) == len(server.crowd.sessions) == 1
    assert is_served(server)


# -- hooks -----------------------------------------------------------------------------------

LOGIN = base64.b64encode(b"\0tim\0secret").decode()
MESSAGE = (
    "EHLO client.example",
    f"AUTH PLAIN {LOGIN}",
    "MAIL FROM:<a@x.example>",
    "RCPT TO:<b@y.example>",
    "DATA",
    "Subject: hi\r\n\r\nhello\r\n.",
    "QUIT",
)
HOOKS = {
    "validate_host": 0,
    "validate_helo": 1,
    "authenticate": 2,
    "validate_sender": 3,
    "validate_recipient": 4,
    "validate_data": 5,
    "open_sink": 5,
    "deliver": 6,
    "session_ended": 7,
}
"""The hook, and how many lines of `MESSAGE` are said until it is called."""

every_hook = pytest.mark.parametrize("hook", HOOKS)


def say(client, lines):
    """Say lines of `MESSAGE` but the last, with their replies; send the last alone."""
    for line in lines[:-1]:
        if client.ask(line)[:1] not in "23":
            break
    client.send(lines[-1].encode() + b"\r\n")


def reach(client, hook):
    """Say what is said until a hook is called; its reply is to be read."""
    if hook != "validate_host":
        assert client.reply().startswith("220 ")
        say(client, MESSAGE[: HOOKS[hook]])


class Once:
    """What a hook does to the first client; the others are served.

    The hook is a method, so that what it does can reach for the handler.
    """

    def __init__(self, hook, act):
        first, ended = [], self.ended = [], []

        class Handler(SMTPHandler):
            auth_require_tls = False
            users = {"tim": "secret"}
            deliver = staticmethod(lambda sender, recipients, data: None)

        def method(handler, *arguments):
            if not first:
                first.append(handler)
                act(handler)
            return getattr(SMTPHandler, hook)(handler, *arguments) if hook != "deliver" else None

        def session_ended(handler, reason):
            ended.append(reason)
            if hook == "session_ended":
                method(handler, reason)

        hooks = {hook: method, "session_ended": session_ended}
        self.handler = type("Handler", (Handler,), hooks)


@every_hook
def test_hook_that_hangs_holds_its_own_session_alone(serve, connect, hook):
    entered, release = threading.Event(), threading.Event()

    def hang(handler):
        entered.set()
        assert release.wait(4 * SOON)

    server = serve(Once(hook, hang).handler)
    held = connect(server)
    try:
        reach(held, hook)
        assert entered.wait(SOON)
        for _ in range(3):
            assert is_served(server)
        others = [connect(server) for _ in range(5)]
        for client in others:
            client.hello()
            assert client.ask("QUIT").startswith("221 ")
        assert len(server.crowd.threads) >= 1
    finally:
        release.set()
    if hook != "session_ended":
        assert held.reply()[:3] in ("220", "250", "235", "354")


def recurse(handler):
    recurse(handler)


def ask_for_too_much(handler):
    bytearray(2**62)


FAULTS = {"validate_host": "421 ", "authenticate": "454 4.7.0 ", "session_ended": "221 "}
"""What the client hears where it is not 451."""


@every_hook
@pytest.mark.parametrize(
    ("act", "error"), [(recurse, "RecursionError"), (ask_for_too_much, "MemoryError")]
)
def test_hook_out_of_stack_or_memory_fails_that_command_alone(
    serve, connect, caplog, hook, act, error
):
    once = Once(hook, act)
    server = serve(once.handler)
    client = connect(server)
    reach(client, hook)
    assert client.reply().startswith(FAULTS.get(hook, "451 "))
    if hook in ("validate_host", "session_ended"):
        assert client.ended()
    else:
        assert client.ask("NOOP").startswith("250 ")
        client.ask("QUIT")
    assert is_served(server)
    until(lambda: len(once.ended) == 2, "the end of both sessions")
    until(lambda: not server.crowd.threads and not server.crowd.sessions, "the end of the threads")
    assert error in caplog.text


def leave(handler):
    sys.exit("a hook that wants to end the program")


def interrupt(handler):
    raise KeyboardInterrupt


@thread_may_fail
@every_hook
@pytest.mark.parametrize("act", [leave, interrupt])
def test_hook_that_exits_ends_its_own_session_alone(serve, connect, hook, act):
    once = Once(hook, act)
    server = serve(once.handler)
    bystander = connect(server)
    if hook != "validate_host":
        bystander.reply()  # greeted, so that it is not the first
    client = connect(server)
    if hook == "validate_host":
        for each in (bystander, client):
            until(lambda each=each: greeted(each, 0.1) or not each.socket.recv(1, socket.MSG_PEEK))
    else:
        reach(client, hook)
        # No promise, above all no 250 for a message; 421 where it may be said (RFC 5321 3.8).
        said = client.gone()
        client.close()
        if hook == "session_ended":
            assert not said or said.startswith(b"221 ")
        else:
            assert said.startswith(b"421 ") if act is leave else not said
    until(lambda: len(once.ended) == 1, "the end of the session")
    until(
        lambda: len(server.crowd.threads) == len(server.crowd.sessions) == 1,
        "the end of its thread",
    )
    assert is_served(server)
    if hook != "validate_host":
        assert bystander.ask("NOOP").startswith("250 ")


def close(handler):
    handler.request.close()


def shut(handler):
    handler.request.shutdown(socket.SHUT_RDWR)


def detach(handler):
    os.close(handler.request.detach())


@every_hook
@pytest.mark.parametrize("act", [close, shut, detach])
def test_hook_that_closes_the_socket_ends_its_own_session_alone(serve, connect, caplog, hook, act):
    once = Once(hook, act)
    server = serve(once.handler)
    client = connect(server)
    reach(client, hook)
    said = client.gone()
    assert said == b"" or (hook == "session_ended" and said.startswith(b"221 "))
    until(lambda: len(once.ended) == 1, "the end of the session")
    until(lambda: not server.crowd.threads and not server.crowd.sessions, "the end of its thread")
    assert is_served(server)
    assert "Traceback" not in caplog.text


# -- clients ---------------------------------------------------------------------------------


def reset(client):
    """Close with a reset, which no FIN comes before."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def connected(client, certificate):
    pass


def hello(client, certificate):
    client.hello()


def secured(client, certificate):
    hello(client, certificate)
    client.starttls(certificate)
    client.ask("EHLO client.example")


def half_a_handshake(client, certificate):
    hello(client, certificate)
    client.ask("STARTTLS")
    outgoing = ssl.MemoryBIO()
    tls = trusting(certificate).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    client.send(outgoing.read()[:-20])


def said(*lines, inside=hello):
    """Say lines; the last has no reply yet."""

    def come(client, certificate):
        inside(client, certificate)
        for line in lines[:-1]:
            assert client.ask(line)[0] in "23"
        client.send(lines[-1].encode())

    return come


ENVELOPE = ("MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>")
PHASES = {
    "connected": connected,
    "half a command": said("EHL", inside=lambda client, certificate: client.reply()),
    "ready": hello,
    "command without reply": said("NOOP\r\n"),
    "in MAIL": said(ENVELOPE[0], ""),
    "in RCPT": said(*ENVELOPE, ""),
    "at DATA": said(*ENVELOPE, "DATA\r\n"),
    "in DATA": said(*ENVELOPE, "DATA", "half a mess"),
    "in DATA, half of the end": said(*ENVELOPE, "DATA", "x\r\n.\r"),
    "in a chunk": said(*ENVELOPE, "BDAT 100\r\nhalf"),
    "between chunks": said(*ENVELOPE, "BDAT 2\r\nha", ""),
    "in AUTH": said("AUTH LOGIN", ""),
    "at STARTTLS": said("STARTTLS\r\n"),
    "in the handshake": half_a_handshake,
    "ready, TLS": secured,
    "in DATA, TLS": said(*ENVELOPE, "DATA", "half a mess", inside=secured),
}


@pytest.mark.parametrize("phase", PHASES)
def test_reset_by_the_client_ends_its_own_session_alone(
    serve, connect, certificate, caplog, inbox, phase
):
    reasons = []
    server = serve(
        tls=certificate,
        users={"tim": "secret"},
        auth_require_tls=False,
        session_ended=reasons.append,
    )
    bystander = connect(server)
    bystander.hello()
    for _ in range(3):
        client = Client(server)
        PHASES[phase](client, certificate)
        reset(client)
    until(lambda: len(reasons) == 3, "the end of the sessions")
    until(
        lambda: len(server.crowd.threads) == len(server.crowd.sessions) == 1,
        "the end of the threads",
    )
    assert set(reasons) <= {"lost", "TLS handshake failed"}
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert inbox.messages == []
    assert bystander.ask("NOOP").startswith("250 ")
    assert is_served(server)


def test_reset_while_a_delivery_runs_leaves_the_message_and_nothing_else(serve):
    entered, release, delivered, reasons = threading.Event(), threading.Event(), [], []

    def deliver(sender, recipients, data):
        if not delivered:
            entered.set()
            assert release.wait(4 * SOON)
        delivered.append(data)

    server = serve(deliver=deliver, session_ended=reasons.append)
    client = Client(server)
    client.to_data()
    client.send(b"hello\r\n.\r\n")
    assert entered.wait(SOON)
    reset(client)
    release.set()
    until(lambda: reasons == ["lost"], "the end of the session")
    assert len(delivered) == 1
    until(lambda: not server.crowd.threads, "the end of its thread")
    assert is_served(server)


def test_reset_in_the_backlog_harms_nobody(serve, connect):
    server = serve()
    for _ in range(200):
        reset(Client(server))
    assert is_served(server)
    until(lambda: not server.crowd.threads and not server.crowd.sessions, "the end of the threads")


# -- listeners -------------------------------------------------------------------------------


def test_listener_closed_from_outside_leaves_the_sessions_and_the_stop(serve, connect):
    server = serve()
    client = connect(server)
    client.hello()
    server.socket.close()
    with pytest.raises(ConnectionRefusedError):
        Client(server)
    assert client.ask("NOOP").startswith("250 ")
    start = time.monotonic()
    server.stop()
    assert time.monotonic() - start < SOON
    assert client.reply().startswith("421 4.3.2 ")


@linux
def test_listener_shut_from_outside_leaves_the_sessions_and_the_stop(no_leaks):
    # Then accept() fails for ever, and each time at once.
    code = """
        import socket
        signal.signal(signal.SIGUSR2, lambda *_: server.socket.shutdown(socket.SHUT_RDWR))
        listening()
        server.serve_forever()
    """
    with program(code) as running:
        server = ("127.0.0.1", running.port())
        with Client(server) as client:
            client.hello()
            running.signal(signal.SIGUSR2)

            def refused():
                try:
                    Client(server).close()
                except ConnectionRefusedError:
                    return True
                except ConnectionResetError:
                    pass  # the listener went as we came
                return False

            until(refused, "the end of the listener", SOON)
            before, start = cpu(running), time.monotonic()
            while time.monotonic() - start < 1:
                assert client.ask("NOOP").startswith("250 ")
                time.sleep(0.05)
            share = (cpu(running) - before) / (time.monotonic() - start)
            assert share < 0.4
            running.signal(signal.SIGTERM)
            assert client.reply().startswith("421 4.3.2 ")
        assert running.finish() == 0
