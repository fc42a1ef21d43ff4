"""The removed asyncore and asynchat: own dispatchers, next to compat servers or alone."""

import ast
import contextlib
import errno
import os
import select
import socket
import subprocess
import sys
import threading
import time

import pytest
from legacy_dialogues import DIALOGUES, legacy_server, replay
from support import DEADLINE, ROOT, until

from smtpd_sync.compat import asynchat, asyncore, smtpd
from smtpd_sync.compat.desk import open_desk

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture(autouse=True)
def clean(no_leaks):
    """Begin and end with an empty map."""
    yield
    asyncore.close_all(ignore_all=True)
    assert not asyncore.socket_map


@pytest.fixture
def pair():
    """Give two sockets that are connected."""
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


class Reader(asyncore.dispatcher):
    """Keeps what comes."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.octets = []
        self.closed = False

    def handle_read(self):
        data = self.recv(4096)
        if data:
            self.octets.append(data)

    def handle_close(self):
        self.closed = True
        self.close()

    def writable(self):
        return False


@pytest.mark.parametrize("serve", [asyncore.poll, asyncore.poll2, asyncore.poll3])
def test_one_round_serves_who_is_ready(serve, pair):
    ours, theirs = pair
    reader = Reader(ours)
    serve(0)
    assert reader.octets == []
    theirs.send(b"one")
    serve(DEADLINE, asyncore.socket_map)
    assert reader.octets == [b"one"]
    theirs.send(b"two")
    theirs.close()
    serve(DEADLINE)
    serve(DEADLINE)
    assert reader.octets == [b"one", b"two"]  # before the end is seen
    assert reader.closed
    assert not asyncore.socket_map
    serve(DEADLINE)  # there is nobody to wait for


def test_all_is_read_before_the_end_is_seen(pair):
    ours, theirs = pair
    reader = Reader(ours)
    theirs.send(b"x" * 10_000)  # more than it reads at a time
    theirs.close()
    asyncore.loop(DEADLINE)
    assert sum(map(len, reader.octets)) == 10_000
    assert reader.closed


def test_what_an_exit_keeps_from_being_done_is_done_the_next_time(pair):
    Reader(pair[0])
    done = []

    def leave():
        raise asyncore.ExitNow

    with open_desk(asyncore.socket_map) as desk:
        desk.leave(leave)
        desk.leave(lambda: done.append(1))
        with pytest.raises(asyncore.ExitNow):
            asyncore.loop()
        assert not done
        asyncore.loop(DEADLINE, count=1)
    assert done == [1]


@pytest.mark.parametrize("name", ["a message", "a pipeline"])
def test_platform_without_poll(name, monkeypatch):
    monkeypatch.delattr(select, "poll", raising=False)
    options, *exchanges = DIALOGUES[name]
    replies, messages = replay(smtpd, asyncore, options, *exchanges)
    assert replies[1:] == [expected for _, expected in exchanges]
    assert len(messages) == 1


def test_loop_ends_when_all_are_closed(pair):
    ours, theirs = pair
    reader = Reader(ours)
    theirs.send(b"one")
    theirs.close()
    asyncore.loop(use_poll=True)
    assert (reader.octets, reader.closed) == ([b"one"], True)


def test_loop_ends_after_a_count_of_rounds(pair):
    rounds = []

    class Counting(Reader):
        def readable(self):
            rounds.append(1)
            return True

    reader = Counting(pair[0])
    asyncore.loop(timeout=0, count=3)
    assert len(rounds) == 3
    asyncore.loop(timeout=0, count=0)
    assert len(rounds) == 3
    reader.close()


def test_round_ends_after_its_timeout(pair):
    Reader(pair[0])
    began = time.monotonic()
    asyncore.loop(timeout=0.05, count=1)
    asyncore.poll(0.05)
    assert time.monotonic() - began >= 0.1


def test_round_waits_where_nobody_wants_anything(pair):
    class Idle(Reader):
        def readable(self):
            return False

    Idle(pair[0])
    began = time.monotonic()
    asyncore.loop(timeout=0.05, count=1)
    assert time.monotonic() - began >= 0.05


def test_map_of_its_own(pair):
    sockets = {}
    reader = Reader(pair[0], map=sockets)
    assert not asyncore.socket_map
    assert sockets == {pair[0].fileno(): reader}
    pair[1].send(b"one")
    asyncore.loop(0, map=sockets, count=1)
    assert reader.octets == [b"one"]
    asyncore.close_all(map=sockets)
    assert not sockets


def test_loop_that_waits_sees_what_another_thread_adds_and_closes(pair):
    ours, theirs = pair
    idle = socket.socketpair()
    asked = []

    class Idle(Reader):
        def readable(self):
            asked.append(1)
            return True

    first = Idle(idle[0])
    thread = threading.Thread(target=asyncore.loop, kwargs={"timeout": 4 * DEADLINE})
    thread.start()
    until(lambda: asked, "the wait")
    second = Reader(ours)
    theirs.send(b"one")
    until(lambda: second.octets, "the octets of the second")
    second.close()
    first.close()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    for each in idle:
        each.close()


def test_fault_is_for_handle_error_and_closes_by_default(pair, capsys):
    class Faulty(Reader):
        def handle_read(self):
            raise ValueError("a fault")

    faulty = Faulty(pair[0])
    pair[1].send(b"one")
    asyncore.loop(0, count=1)
    assert faulty.closed
    printed = capsys.readouterr().out
    assert printed.startswith("error: uncaptured python exception, closing channel <")
    assert "(<class 'ValueError'>:a fault [" in printed
    assert "|handle_read|" in printed


@pytest.mark.parametrize("fatal", [asyncore.ExitNow, KeyboardInterrupt, SystemExit])
def test_exit_goes_through(fatal, pair):
    class Ending(Reader):
        def handle_read(self):
            raise fatal

    ending = Ending(pair[0])
    pair[1].send(b"one")
    with pytest.raises(fatal):
        asyncore.loop()
    assert not ending.closed
    ending.close()


def test_interrupt_ends_a_loop_that_waits():
    program = """
from smtpd_sync.compat import asyncore, smtpd
server = smtpd.DebuggingServer(("127.0.0.1", 0), None)
try:
    print("ready", flush=True)
    asyncore.loop()
except KeyboardInterrupt:
    print("interrupted")
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(2)
        assert process.stdout.read() == "interrupted\n"
        assert process.wait(DEADLINE) == 0


def test_close_all_raises_unless_it_forgives(pair):
    class Stubborn(Reader):
        def close(self):
            super().close()
            raise ValueError("no")

    Stubborn(pair[0])
    with pytest.raises(ValueError, match="no"):
        asyncore.close_all()
    asyncore.socket_map.clear()
    Stubborn(pair[1])
    asyncore.close_all(ignore_all=True)
    assert not asyncore.socket_map


def test_close_all_forgets_nobody_that_it_has_not_closed(pair):
    class Last(Reader):
        def close(self):
            super().close()
            added.append(Reader(pair[1]))  # as another thread may do just now

    added = []
    Last(pair[0])
    asyncore.close_all()
    assert list(asyncore.socket_map.values()) == added


def test_dispatchers_serve_and_connect(capsys):
    """A listener and its client, in one map."""
    said = []

    class Echo(asyncore.dispatcher_with_send):
        def handle_read(self):
            self.send(self.recv(4096))

        def handle_close(self):
            self.close()

    class Listener(asyncore.dispatcher):
        def handle_accepted(self, sock, addr):
            Echo(sock)
            self.close()

    class Client(asyncore.dispatcher):
        def handle_connect(self):
            said.append("connected")

        def handle_write(self):
            self.send(b"x" * 100)
            self.writable = lambda: False

        def handle_read(self):
            said.append(self.recv(4096))
            self.close()

    listener = Listener()
    listener.create_socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.set_reuse_addr()
    listener.bind(LOOPBACK)
    listener.listen(5)
    client = Client()
    client.create_socket()
    client.connect(listener.socket.getsockname())
    asyncore.loop(timeout=DEADLINE)
    assert said == ["connected", b"x" * 100]
    assert capsys.readouterr().out == ""


def test_connection_that_is_refused_is_a_fault():
    seen = []

    class Client(Reader):
        def handle_error(self):
            seen.append(sys.exc_info()[1].errno)
            self.close()

        def writable(self):
            return self.connecting

    with socket.create_server(LOOPBACK) as free:
        address = free.getsockname()
    client = Client()
    client.create_socket()
    with contextlib.suppress(ConnectionRefusedError):
        client.connect(address)
        asyncore.loop(timeout=DEADLINE)
    assert seen in ([errno.ECONNREFUSED], [])
    client.close()


@pytest.mark.parametrize("event", ["accepted", "read", "write", "connect", "close", "expt"])
def test_what_is_not_overridden_is_told_where_that_is_wanted(event, pair, capsys):
    class Telling(asyncore.dispatcher):
        ignore_log_types = frozenset()

    telling = Telling(pair[0])
    getattr(telling, f"handle_{event}")(*(pair[1], None)[: 2 * (event == "accepted")])
    assert capsys.readouterr().out.startswith("warning: unhandled ")
    asyncore.dispatcher.log(telling, "hi")
    assert capsys.readouterr().err == "log: hi\n"


@pytest.mark.skipif(os.name != "posix", reason="files are no sockets here")
def test_pipe_is_a_dispatcher():
    read, write = os.pipe()
    octets = []

    class Pipe(asyncore.file_dispatcher):
        def handle_read(self):
            octets.append(self.recv(64))

        def writable(self):
            return False

        def handle_close(self):
            self.close()

    Pipe(os.fdopen(read, "rb", closefd=False))
    os.write(write, b"one")
    asyncore.loop(DEADLINE, count=1)
    os.close(write)
    asyncore.loop()
    os.close(read)
    assert octets[0] == b"one"


def test_timer_beside_a_server():
    """A program that looks at other things between two rounds, and has a socket of its own."""
    server = legacy_server(smtpd)(LOOPBACK, None)
    ours, theirs = socket.socketpair()
    reader = Reader(ours)
    client = socket.create_connection(server.socket.getsockname(), DEADLINE)
    client.settimeout(0)
    theirs.send(b"tick")
    greeting = b""
    give_up = time.monotonic() + DEADLINE
    while not (greeting.endswith(b"\r\n") and reader.octets) and time.monotonic() < give_up:
        asyncore.loop(timeout=0.01, count=1)
        with contextlib.suppress(BlockingIOError):
            greeting += client.recv(4096)
    assert greeting.startswith(b"220 ")
    assert reader.octets == [b"tick"]
    client.close()
    theirs.close()


# -- asynchat --------------------------------------------------------------------------------


class Chat(asynchat.async_chat):
    """Keeps the lines that come."""

    def __init__(self, sock, terminator=b"\r\n"):
        super().__init__(sock)
        self.lines = []
        self.set_terminator(terminator)

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        self.lines.append(self._get_data())


def fed(pair, terminator, *pieces):
    chat = Chat(pair[0], terminator)
    for piece in pieces:
        pair[1].send(piece)
        asyncore.loop(DEADLINE, count=1)
    return chat


def test_lines_come_in_pieces(pair):
    assert fed(pair, b"\r\n", b"on", b"e\r", b"\ntwo\r\nthr", b"\r", b"ee\r\n").lines == [
        *(b"one", b"two", b"thr\ree"),
    ]


def test_terminator_may_be_a_number(pair):
    chat = fed(pair, 3, b"a", b"bcdef")
    assert chat.lines == [b"abc"]
    assert chat.get_terminator() == 0
    assert b"".join(chat.incoming) == b"def"
    with pytest.raises(ValueError, match="not negative"):
        chat.set_terminator(-1)


def test_without_a_terminator_all_is_collected(pair):
    assert fed(pair, None, b"a\r\n", b"b").incoming == [b"a\r\n", b"b"]


def test_output_waits_for_room_and_closes_when_done(pair):
    ours, theirs = pair
    chat = Chat(ours)
    data = os.urandom(3_000_000)
    chat.push(data)
    chat.push_with_producer(asynchat.simple_producer(b"the end", 2))
    chat.close_when_done()
    thread = threading.Thread(target=asyncore.loop)
    thread.start()
    got = b""
    while more := theirs.recv(65536):
        got += more
    thread.join(DEADLINE)
    assert got == data + b"the end"


def test_send_that_is_overridden_may_say_nothing(pair):
    class Silenced(Chat):
        silent = True

        def send(self, data):
            return None if self.silent else super().send(data)

    chat = Silenced(pair[0])
    chat.push(b"one")
    chat.silent = False
    asyncore.loop(DEADLINE, count=1)
    assert pair[1].recv(64) == b"one"


def test_only_octets_are_pushed(pair):
    chat = Chat(pair[0])
    with pytest.raises(TypeError):
        chat.push("text")
    chat.push(b"")
    chat.discard_buffers()
    assert not chat.writable()


def test_base_class_has_to_be_overridden(pair):
    chat = asynchat.async_chat(pair[0])
    with pytest.raises(NotImplementedError):
        chat.collect_incoming_data(b"")
    with pytest.raises(NotImplementedError):
        chat.found_terminator()


# -- the package -----------------------------------------------------------------------------


def test_nothing_is_imported_before_it_is_asked_for():
    program = """
import sys
import smtpd_sync.compat
assert not [name for name in sys.modules if name.startswith("smtpd_sync.compat.")]
from smtpd_sync.compat import asyncore
assert "smtpd_sync.compat.smtpd" not in sys.modules
from smtpd_sync.compat import smtpd, asynchat
assert smtpd.asyncore is asyncore
for name in ("email", "smtplib", "ssl", "getopt"):
    assert name not in sys.modules, name
try:
    smtpd_sync.compat.imaplib
except AttributeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "module 'smtpd_sync.compat' has no attribute 'imaplib'\n", done.stderr


# A module imports from those before it.
ORDER = (
    *("desk", "polling", "filewrapper", "asyncore", "asynchat"),
    *("backstage", "channel", "verbs", "smtpd", "smtpdcli"),
    *("adapter", "handlers", "codemod"),
)


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_one_way(name):
    tree = ast.parse((ROOT / "smtpd_sync" / "compat" / f"{name}.py").read_text("utf-8"))
    named = {
        imported
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for imported in ([node.module] if node.module else [each.name for each in node.names])
    }
    typing_only = {"channel"} if name == "backstage" else set()
    program = {"smtpdcli"} if name == "smtpd" else set()
    assert named - typing_only - program <= set(ORDER[: ORDER.index(name)])
