"""Stopping: from anywhere, in order, in time, and with nothing left behind."""

import os
import signal
import socket
import textwrap
import threading
import time

import pytest
from support import LOOPBACK, SOON, Client, Program, until

from smtpd_sync import Limits, SMTPServer, discard

posix = pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")


def in_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    return thread


class Gate:
    """A delivery hook that waits until it may go on."""

    def __init__(self):
        self.entered, self.release = threading.Event(), threading.Event()
        self.delivered = []

    def __call__(self, sender, recipients, data):
        self.entered.set()
        assert self.release.wait(SOON * 4)
        self.delivered.append(data)


@pytest.fixture
def gate():
    made = Gate()
    yield made
    made.release.set()


# -- who is told what ------------------------------------------------------------------------


def test_idle_sessions_are_told_within_a_moment(serve, connect, certificate):
    server = serve(tls=certificate)
    greeted, ready, secure = connect(server), connect(server), connect(server)
    greeted.reply()
    ready.hello()
    secure.hello()
    secure.starttls(certificate)
    secure.ask("EHLO client.example")
    start = time.monotonic()
    server.stop()
    took = time.monotonic() - start
    for client in (greeted, ready, secure):
        assert client.reply().startswith("421 4.3.2 ")
        assert client.ended()
    assert took < 2  # milliseconds on an idle machine; far less than the time-out of 10 s


def test_stop_of_an_idle_server_takes_no_poll_interval(no_leaks):
    best = 1e9
    for _ in range(3):
        server = SMTPServer(LOOPBACK, deliver=discard).start()
        with Client(server) as client:
            client.hello()
            start = time.monotonic()
            server.stop()
            best = min(best, time.monotonic() - start)
    assert best < 0.25


def test_new_clients_are_refused(serve):
    server = serve()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        Client(server)


def test_new_clients_are_refused_while_a_delivery_finishes(serve, connect, gate):
    server = serve(deliver=gate)
    client = connect(server)
    client.to_data()
    client.send(b"hello\r\n.\r\n")
    assert gate.entered.wait(SOON)
    stopper = in_thread(server.stop)

    def refused():
        try:
            Client(server).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            pass  # it was in the backlog
        return False

    until(refused, "the close of the listener", SOON)
    assert stopper.is_alive()
    gate.release.set()
    assert client.reply().startswith("250 ")
    stopper.join(SOON)


def test_running_delivery_finishes_and_gets_its_250(serve, connect, gate):
    server = serve(deliver=gate)
    client = connect(server)
    client.to_data()
    client.send(b"hello\r\n.\r\n")
    assert gate.entered.wait(SOON)
    stopper = in_thread(server.stop)
    until(lambda: server.stopping, "stop")
    assert stopper.is_alive()
    gate.release.set()
    assert client.reply().startswith("250 ")
    assert client.reply().startswith("421 4.3.2 ")
    assert client.ended()
    stopper.join(SOON)
    assert not stopper.is_alive()
    assert len(gate.delivered) == 1


@pytest.mark.parametrize("step", range(1, 4))
def test_session_in_a_transaction_may_finish_it(serve, connect, inbox, step):
    server = serve()
    client = connect(server)
    lines = ["MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>", "DATA"]
    client.hello()
    for line in lines[:step]:
        client.ask(line)
    idle = connect(server)
    idle.hello()
    stopper = in_thread(server.stop)
    assert idle.reply().startswith("421 ")
    for line in lines[step:]:
        assert client.ask(line)[0] in "23"
    client.send(b"hello\r\n.\r\n")
    assert client.reply().startswith("250 ")
    assert client.reply().startswith("421 4.3.2 ")
    assert client.ended()
    stopper.join(SOON)
    assert not stopper.is_alive()
    assert len(inbox.messages) == 1


def test_session_that_resets_is_told(serve, connect):
    server = serve()
    client = connect(server)
    client.hello()
    client.ask("MAIL FROM:<a@x.example>")
    stopper = in_thread(server.stop)
    until(lambda: server.stopping, "stop")
    assert client.ask("RSET").startswith("250 ")
    assert client.reply().startswith("421 4.3.2 ")
    stopper.join(SOON)
    assert not stopper.is_alive()


def test_live_sessions_are_closed_at_the_deadline(serve, connect, inbox):
    server = serve()
    client = connect(server)
    client.to_data()
    client.send(b"half a mess")
    start = time.monotonic()
    server.stop(timeout=0.3)
    assert 0.25 < time.monotonic() - start < SOON
    client.gone()
    assert inbox.messages == []


def test_hook_that_never_returns_does_not_hold_stop(serve, connect, gate):
    server = serve(deliver=gate)
    client = connect(server)
    client.to_data()
    client.send(b"hello\r\n.\r\n")
    assert gate.entered.wait(SOON)
    start = time.monotonic()
    server.stop(timeout=0.1)
    assert time.monotonic() - start < SOON
    client.gone()


def test_second_stop_shortens_the_time(serve, connect):
    server = serve()
    client = connect(server)
    client.to_data()
    first = in_thread(server.stop, 300)
    until(lambda: server.stopping, "stop")
    start = time.monotonic()
    server.stop(0.1)
    assert time.monotonic() - start < SOON
    first.join(SOON)
    assert not first.is_alive()
    client.gone()


def test_second_stop_cannot_lengthen_the_time(serve, connect):
    server = serve()
    connect(server).to_data()
    first = in_thread(server.stop, 0.3)
    until(lambda: server.stopping, "stop")
    start = time.monotonic()
    server.stop(300)
    assert time.monotonic() - start < SOON
    first.join()


def test_stalled_handshake_does_not_hold_stop_beyond_its_time(serve, connect, certificate):
    server = serve(tls=certificate, implicit_tls=True)
    client = connect(server)
    until(lambda: server.crowd.sessions, "the session")
    start = time.monotonic()
    server.stop(timeout=0.3)
    assert time.monotonic() - start < SOON
    assert client.gone() == b""


def test_client_that_reads_no_replies_does_not_hold_stop_beyond_its_time(serve, connect):
    server = serve(limits=Limits(junk_commands=10_000_000), strict_pipelining=False)
    client = connect(server, receive_buffer=4096)
    client.hello()
    client.socket.settimeout(0.2)
    with pytest.raises(socket.timeout):
        client.send(b"HELP\r\n" * 10_000_000)
    start = time.monotonic()
    server.stop(timeout=0.3)
    assert time.monotonic() - start < SOON


def test_stop_while_clients_come_and_go(serve):
    server = serve()
    stop, wrong = threading.Event(), []

    def come_and_go():
        while not stop.is_set():
            try:
                with Client(server) as client:
                    greeting = client.reply()
                    if greeting and not greeting.startswith(("220 ", "421 ")):
                        wrong.append(greeting)
                    client.ask("EHLO c.example")
            except OSError:
                pass  # refused, or reset in the backlog

    threads = [in_thread(come_and_go) for _ in range(4)]
    until(lambda: server.crowd.sessions, "a session")
    start = time.monotonic()
    server.stop()
    assert time.monotonic() - start < SOON
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- where it is called ----------------------------------------------------------------------


def test_stop_in_a_hook(serve, connect):
    def deliver(sender, recipients, data):
        server.stop()  # asks for it, and does not wait for this very session
        return "the last one"

    server = serve(deliver=deliver)
    idle, client = connect(server), connect(server)
    idle.hello()
    assert client.mail() == "250 2.0.0 the last one"
    assert client.reply().startswith("421 4.3.2 ")
    assert idle.reply().startswith("421 4.3.2 ")
    server.stop()


def test_stop_in_session_ended(serve):
    server = serve(session_ended=lambda reason: server.stop())
    with Client(server) as client:
        client.hello()
        client.ask("QUIT")
    until(lambda: server._over.is_set(), "the end of the server")


def test_stop_in_the_thread_of_serve_forever(no_leaks):
    class Server(SMTPServer):
        def verify_request(self, request, client_address):
            self.stop()
            return True

    server = Server(LOOPBACK, deliver=discard)
    thread = in_thread(server.serve_forever)
    with Client(server) as client:
        assert client.gone().startswith((b"220 ", b"421 ", b""))
    thread.join(SOON)
    assert not thread.is_alive()


def test_serve_forever_drains_before_it_returns(no_leaks, gate):
    server = SMTPServer(LOOPBACK, deliver=gate)
    returned = []
    thread = in_thread(lambda: returned.append(server.serve_forever()))
    with Client(server) as client:
        client.to_data()
        client.send(b"hello\r\n.\r\n")
        assert gate.entered.wait(SOON)
        stopper = in_thread(server.stop)
        until(lambda: server.stopping, "stop")
        assert not returned
        gate.release.set()
        assert client.reply().startswith("250 ")
    thread.join(SOON)
    stopper.join(SOON)
    assert returned == [None]


def test_stop_before_serving(no_leaks):
    server = SMTPServer(LOOPBACK, deliver=discard)
    server.stop()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        Client(server)


def test_stop_twice(serve):
    server = serve()
    server.stop()
    server.stop()


def test_stop_from_many_threads(serve, connect):
    server = serve()
    connect(server).hello()
    threads = [in_thread(server.stop) for _ in range(8)]
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()


def test_with_block_stops(no_leaks):
    with SMTPServer(LOOPBACK, deliver=discard).start() as server, Client(server) as client:
        client.hello()
        server.stop()
        assert client.reply().startswith("421 ")
    with pytest.raises(ConnectionRefusedError):
        Client(server)


def test_with_block_that_never_served(no_leaks):
    with SMTPServer(LOOPBACK, deliver=discard) as server:
        pass
    with pytest.raises(ConnectionRefusedError):
        Client(server)


def test_with_block_keeps_the_exception(no_leaks):
    with pytest.raises(LookupError), SMTPServer(LOOPBACK, deliver=discard).start():
        raise LookupError


def test_all_is_over_when_stop_returns(no_leaks, certificate):
    for _ in range(20):
        before = set(threading.enumerate())
        server = SMTPServer(LOOPBACK, deliver=discard, tls=certificate).start()
        with Client(server) as client:
            client.hello()
            client.starttls(certificate)
            server.stop()
            assert client.reply().startswith("421 ")
        until(lambda before=before: set(threading.enumerate()) <= before, "the end of threads", 2)


# -- signals ---------------------------------------------------------------------------------

SERVE = """
    import os, signal, sys, threading, time
    from smtpd_sync import SMTPServer, discard

    def deliver(sender, recipients, data):
        print("delivering", flush=True)
        released.wait(20)
        print("delivered", flush=True)

    released = threading.Event()
    server = SMTPServer(("127.0.0.1", 0), deliver=deliver)
"""
REPORT = """
    import threading
    print("threads", threading.active_count(), flush=True)
"""


def program(*pieces):
    return Program("-c", "".join(textwrap.dedent(piece) for piece in pieces))


@posix
def test_stop_in_a_signal_handler(no_leaks):
    code = """
        def handle(number, frame):
            server.stop()
            released.set()

        signal.signal(signal.SIGTERM, handle)
        print(f"listening on 127.0.0.1:{server.port}", flush=True)
        server.serve_forever()
        print("returned", flush=True)
    """
    with program(SERVE, code) as running:
        port = running.port()
        with Client(("127.0.0.1", port)) as client, Client(("127.0.0.1", port)) as idle:
            idle.hello()
            client.to_data()
            client.send(b"hello\r\n.\r\n")
            assert running.line() == "delivering"
            running.signal(signal.SIGTERM)
            assert client.reply().startswith("250 ")
            assert idle.reply().startswith("421 4.3.2 ")
        assert running.line() == "delivered"
        assert running.line() == "returned"
        assert running.finish() == 0
        assert running.errors == ""


@posix
def test_stop_in_a_signal_handler_of_a_background_server(no_leaks):
    code = """
        ended = threading.Event()

        def handle(number, frame):
            server.stop()
            ended.set()

        signal.signal(signal.SIGTERM, handle)
        server.start()
        print(f"listening on 127.0.0.1:{server.port}", flush=True)
        while not ended.wait(0.05):
            pass
        print("returned", flush=True)
    """
    with program(SERVE, code) as running:
        with Client(("127.0.0.1", running.port())) as idle:
            idle.hello()
            running.signal(signal.SIGTERM)
            assert idle.reply().startswith("421 4.3.2 ")
        assert running.line() == "returned"
        assert running.finish() == 0
        assert running.errors == ""


@posix
def test_signal_that_another_thread_gets_stops_the_server(no_leaks):
    # So it is, too, for one that comes just as the thread begins to wait: the wait does not see it.
    code = """
        import _thread

        signal.signal(signal.SIGTERM, lambda number, frame: server.stop())
        _thread.start_new_thread(time.sleep, (60,))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        print(f"listening on 127.0.0.1:{server.port}", flush=True)
        server.serve_forever()
        print("returned", flush=True)
    """
    with program(SERVE, code) as running:
        with Client(("127.0.0.1", running.port())) as idle:
            idle.hello()
            running.signal(signal.SIGTERM)
            assert idle.reply().startswith("421 4.3.2 ")
        assert running.line() == "returned"
        assert running.finish() == 0
        assert running.errors == ""


@posix
def test_signals_that_are_not_of_the_server_leave_it_idle(no_leaks):
    # Each wakes it, and it goes to sleep again.
    code = """
        signal.signal(signal.SIGTERM, lambda number, frame: server.stop())
        # Not print(), in which a signal may come.
        tell = lambda number, frame: os.write(1, f"cpu {time.process_time()}\\n".encode())
        signal.signal(signal.SIGUSR1, tell)
        print(f"listening on 127.0.0.1:{server.port}", flush=True)
        server.serve_forever()
        print(signal.set_wakeup_fd(-1), flush=True)
    """

    def cpu(running):
        running.signal(signal.SIGUSR1)
        return float(running.line().split()[1])

    with program(SERVE, code) as running:
        running.port()
        cpu(running)
        before, start = cpu(running), time.monotonic()
        time.sleep(0.5)
        assert cpu(running) - before < (time.monotonic() - start) / 3
        running.signal(signal.SIGTERM)
        assert running.line() == "-1"
        assert running.finish() == 0


@posix
def test_signal_before_serve_forever_serves_nobody(no_leaks):
    # The signal may come between the constructor and serve_forever(): it must not be lost,
    # and it is no error.
    code = """
        signal.signal(signal.SIGTERM, lambda number, frame: server.stop())
        os.kill(os.getpid(), signal.SIGTERM)
        server.serve_forever()
        print("returned", flush=True)
    """
    with program(SERVE, code) as running:
        assert running.finish() == 0, running.errors
        assert running.line() == "returned"


@posix
def test_keyboard_interrupt_in_serve_forever_drains(no_leaks):
    code = """
        print(f"listening on 127.0.0.1:{server.port}", flush=True)
        try:
            with server:
                server.serve_forever()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    with program(SERVE.replace("released.wait(20)", "released.wait(0.3)"), code) as running:
        port = running.port()
        with Client(("127.0.0.1", port)) as client, Client(("127.0.0.1", port)) as idle:
            idle.hello()
            client.to_data()
            client.send(b"hello\r\n.\r\n")
            assert running.line() == "delivering"
            running.signal(signal.SIGINT)
            assert idle.reply().startswith("421 4.3.2 ")
            assert client.reply().startswith("250 ")
        assert running.line() == "delivered"
        assert running.line() == "interrupted"
        assert running.finish() == 0
        assert running.errors == ""


@posix
def test_program_that_forgets_to_stop_ends_all_the_same(no_leaks):
    code = """
        server.start()
        print(f"listening on 127.0.0.1:{server.port}", flush=True)
        sys.stdin.read()
    """
    with program(SERVE, code) as running:
        running.port()
        assert running.finish() == 0
