"""Worker processes: who serves, what they share, and how they live and end.

The servers are programs of their own, for they fork; what is seen of them is what /proc shows.
"""

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from support import DEADLINE, LOOPBACK, SOON, Client, Program, make_certificate, until

from smtpd_sync import Limits, SMTPServer, discard, service
from smtpd_sync.workers import share

CHILDREN = "/proc/{0}/task/{0}/children"
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
shown = pytest.mark.skipif(
    not os.path.exists(CHILDREN.format(os.getpid())), reason="/proc does not show the workers"
)
pinned = pytest.mark.skipif(not CORES, reason="the platform cannot bind a process to a core")


PRELUDE = """
import os, signal, sys, threading, time
from smtpd_sync import Limits, SMTPHandler, SMTPServer, discard

signal.signal(signal.SIGINT, signal.default_int_handler)

def tell_pid(sender, recipients, data):
    return f"pid={os.getpid()}"

def serve(address=("127.0.0.1", 0), handler=SMTPHandler, patience=(10, 0), **options):
    patience = list(patience)
    options = {"hostname": "mx.example", "workers": 2, **options}
    if handler is SMTPHandler and "deliver" not in options:
        options.setdefault("deliver_envelope", lambda envelope: f"pid={os.getpid()}")
    server = SMTPServer(address, handler, **options)
    signal.signal(signal.SIGTERM, lambda number, frame: server.stop(patience.pop(0)))
    signal.signal(signal.SIGHUP, lambda number, frame: server.reload_tls())
    if len(server.address) > 1:
        print(f"listening on 127.0.0.1:{server.port}", flush=True)
    server.serve_forever()
    return server
"""


def state(pid):
    """The state of a process, as proc(5) has it; ``""`` of one that is no more."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def alive(pid):
    return state(pid) not in ("", "Z", "X")


class Served:
    """A server with workers, as a program."""

    def __init__(self, program):
        self.program = program
        self.pid = program.process.pid
        self.seen = set()
        """The workers that were ever seen."""
        self.place = ("127.0.0.1", program.port())

    def workers(self, count=2):
        """Wait until there are ``count`` workers that serve; give their process ids."""

        def find():
            with open(CHILDREN.format(self.pid)) as file:
                found = {int(pid) for pid in file.read().split()}
            self.seen |= found
            # One that serves has a thread beside that which accepts.
            serving = [
                pid for pid in found if alive(pid) and len(os.listdir(f"/proc/{pid}/task")) > 1
            ]
            return sorted(serving) if len(serving) == count else None

        def look():
            try:
                return find()
            except FileNotFoundError:  # one ended while we looked
                return None

        return until(look, f"{count} workers")

    @contextlib.contextmanager
    def asleep(self, *pids):
        """Have processes stand still."""
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            for pid in pids:
                until(lambda pid=pid: state(pid) == "T", "a process that stands still")
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def client_of(self, pid, greeting="220"):
        """Connect a client that is served by the worker ``pid``."""
        with self.asleep(*(other for other in self.workers() if other != pid)):
            client = Client(self.place)
            try:
                assert client.reply().startswith(greeting)
            except BaseException:
                client.close()
                raise
        return client

    def end(self, number=signal.SIGTERM):
        """Have it stop; give its status."""
        self.program.signal(number)
        return self.program.finish()

    def clean(self):
        """End what still runs."""
        if self.program.process.poll() is None:
            with contextlib.suppress(AssertionError):
                os.kill(self.pid, signal.SIGSTOP)  # it would replace them
                until(lambda: state(self.pid) in ("T", "Z"))
                with open(CHILDREN.format(self.pid)) as file:
                    self.seen |= {int(pid) for pid in file.read().split()}
            self.program.process.kill()
        for pid in self.seen:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def run_program(tmp_path, no_leaks):
    """Run a script, with the prelude before it and no warning allowed."""
    with contextlib.ExitStack() as stack:

        def make(script, *arguments):
            path = tmp_path / "served.py"
            path.write_text(PRELUDE + textwrap.dedent(script))
            return stack.enter_context(Program("-W", "error", str(path), *map(str, arguments)))

        yield make


@pytest.fixture
def start(run_program):
    """Start a server with workers: ``start(script)``."""
    with contextlib.ExitStack() as stack:

        def make(script="serve()", *arguments):
            served = Served(run_program(script, *arguments))
            stack.callback(served.clean)
            return served

        yield make


@pytest.fixture
def closing():
    """Close each client after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda client: stack.enter_context(contextlib.closing(client))


def send_mail(client, data=b"Subject: hi\r\n\r\nhello\r\n"):
    """Send a message in a session that is open; give the reply."""
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    assert client.ask("DATA").startswith("354 ")
    client.send(data + b".\r\n")
    return client.reply()


def greeted_by(served, closing):
    """A client of each worker, behind EHLO: {worker: client}."""
    clients = {pid: closing(served.client_of(pid)) for pid in served.workers()}
    for client in clients.values():
        assert client.ask("EHLO client.example").startswith("250-")
    return clients


# -- what cannot be --------------------------------------------------------------------------


@forks
def test_start_with_workers_is_refused():
    server = SMTPServer(LOOPBACK, deliver=discard, workers=2)
    with server, pytest.raises(ValueError, match=r"workers: .*serve_forever\(\)"):
        server.start()


@forks
def test_service_with_workers_is_refused_and_holds_nothing(no_leaks):
    service.configure(deliver=discard, workers=2)
    try:
        with pytest.raises(ValueError, match=r"workers: .*serve_forever\(\)"):
            service.start(port=0)
        assert service.stopped.is_set()
        service.configure(workers=1)
        assert service.start(port=0).port
    finally:
        service.stop()
        service.configure(deliver=None, workers=1)


def test_platform_that_cannot_fork_says_so_at_once(monkeypatch, no_leaks):
    monkeypatch.delattr(os, "fork", raising=False)
    with pytest.raises(ValueError, match="workers: this platform cannot fork"):
        SMTPServer(LOOPBACK, deliver=discard, workers=2)
    SMTPServer(LOOPBACK, deliver=discard, workers=1).stop()


@pytest.mark.parametrize("value", [0, -1, True, "2", 1.5, None])
def test_number_of_workers_is_checked(value):
    with pytest.raises(ValueError, match="workers: a number of processes from 1 on"):
        SMTPServer(LOOPBACK, deliver=discard, workers=value)


@forks
def test_threads_before_the_fork_are_refused(no_leaks):
    wait = threading.Event()
    thread = threading.Thread(target=wait.wait)
    thread.start()
    server = SMTPServer(LOOPBACK, deliver=discard, workers=2)
    try:
        with pytest.raises(RuntimeError, match=r"workers: there are threads.*worker_started"):
            server.serve_forever()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(server.address, SOON)
    finally:
        wait.set()
        thread.join()


def test_one_worker_is_the_process_itself(serve, connect):
    started, pids = [], []
    server = serve(
        worker_started=lambda: started.append(1),
        deliver=lambda sender, recipients, data: pids.append(os.getpid()),
    )
    assert connect(server).mail().startswith("250 ")
    assert pids == [os.getpid()]
    assert started == []


# -- who serves ------------------------------------------------------------------------------


def test_workers_are_not_for_a_server_that_serves(serve):
    server = serve()
    with pytest.raises(RuntimeError, match="workers: configure them before the server serves"):
        server.configure(workers=2)
    assert server.workers == 1


@shown
def test_each_worker_serves_and_the_supervisor_does_not(start, closing):
    served = start()
    for pid, client in greeted_by(served, closing).items():
        assert f"pid={pid}" in send_mail(client)
        assert pid != served.pid
    assert len(os.listdir(f"/proc/{served.pid}/task")) == 1
    assert served.end() == 0
    assert served.program.errors == ""


@shown
def test_clients_are_served_while_a_worker_stands_still(start, closing):
    served = start()
    stuck, other = served.workers()
    with served.asleep(stuck):
        for _ in range(5):
            with Client(served.place) as client:
                assert f"pid={other}" in client.mail()


@shown
@pinned
@pytest.mark.parametrize("affinity", [None, "adaptive"])
def test_each_worker_keeps_its_threads_on_a_core_of_its_own(start, closing, affinity):
    served = start(f"serve(cpu_affinity={affinity!r})")
    workers = served.workers()
    clients = [closing(served.client_of(pid)) for pid in workers for _ in range(4)]
    for client in clients:
        client.ask("NOOP")
    cores = []
    for pid in workers:
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
        assert len(threads) >= 6  # four clients, the reaper, and who accepts
        found = {core for thread in threads for core in os.sched_getaffinity(thread)}
        assert len(found) == 1
        cores.append(found.pop())
        assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_BATCH}
    assert len(set(cores)) == min(2, len(CORES))
    assert set(cores) <= CORES
    assert os.sched_getaffinity(served.pid) == CORES
    assert os.sched_getscheduler(served.pid) == os.SCHED_OTHER


@pytest.mark.parametrize(("among_others", "taken"), [(True, [1, 2, 3]), (False, [3, 3, 3])])
def test_worker_takes_one_client_at_a_time_and_leaves_others_theirs(closing, among_others, taken):
    with SMTPServer(("127.0.0.1", 0), deliver=discard) as server:
        server._control = server.waker if among_others else None
        (listener,) = server._listeners
        listener.socket.setblocking(False)
        for _ in range(3):
            closing(socket.create_connection(server.server_address))
        for count in taken:
            server._accept_waiting(listener.socket)
            assert len(server.crew.busy) == count


STARTED = {
    "keyword": """
        def worker_started():
            print("started", os.getpid(), True, flush=True)
        serve(worker_started=worker_started)
        """,
    "method": """
        class Handler(SMTPHandler):
            def worker_started(self):
                print("started", os.getpid(), self.server.workers == 1, flush=True)
            def deliver(self, sender, recipients, data):
                return f"pid={os.getpid()}"
        serve(handler=Handler)
        """,
    "battery": """
        class Battery:
            started = False
            def worker_started(self):
                self.started = True
                print("started", os.getpid(), True, flush=True)
            def deliver(self, sender, recipients, data):
                assert self.started
                return f"pid={os.getpid()}"
        serve(deliver=Battery())
        """,
    "battery that attaches": """
        class Part:
            def __init__(self, whole):
                self.whole = whole
            def deliver(self, sender, recipients, data):
                assert self.whole.started
                return f"pid={os.getpid()}"
        class Battery:
            started = False
            def attach(self, handler):
                return Part(self)
            def worker_started(self):
                self.started = True
                print("started", os.getpid(), True, flush=True)
            def deliver(self, sender, recipients, data):
                raise AssertionError("the attached part delivers")
        serve(deliver=Battery())
        """,
}


@shown
@pytest.mark.parametrize("form", STARTED)
def test_worker_started_is_called_once_in_each(start, closing, form):
    served = start(STARTED[form])
    said = sorted(served.program.line() for _ in range(2))
    assert said == sorted(f"started {pid} True" for pid in served.workers())
    for pid, client in greeted_by(served, closing).items():
        assert f"pid={pid}" in send_mail(client)
    assert served.end() == 0
    assert served.program.remaining() == b""
    assert served.program.errors == ""


@shown
def test_worker_may_have_threads_of_its_own(start, closing):
    served = start(
        """
        def worker_started():
            threading.Thread(target=threading.Event().wait, name="own").start()
        serve(worker_started=worker_started)
        """
    )
    for client in greeted_by(served, closing).values():
        assert send_mail(client).startswith("250 ")
    assert served.end() == 0
    assert served.program.errors == ""


@shown
def test_what_was_printed_before_the_fork_is_printed_once(start):
    served = start(
        """
        print("listening on 127.0.0.1:1", flush=True)
        sys.stdout.write("waits in the buffer\\n")
        serve()
        """
    )
    assert served.program.line() == "waits in the buffer"
    served.program.port()
    served.workers()
    assert served.end() == 0
    assert served.program.remaining() == b""


@shown
def test_workers_serve_where_there_is_no_standard_output(start, tmp_path, closing):
    served = start(
        """
        class Listening(SMTPServer):
            def serve_forever(self):
                print(f"listening on 127.0.0.1:{self.port}", flush=True)
                sys.stdout = None
                super().serve_forever()
        server = Listening(("127.0.0.1", 0), deliver=tell_pid, workers=2)
        signal.signal(signal.SIGTERM, lambda number, frame: server.stop())
        server.serve_forever()
        """
    )
    for pid, client in greeted_by(served, closing).items():
        assert f"pid={pid}" in send_mail(client)
    assert served.end() == 0
    assert served.program.errors == ""


@shown
def test_ids_of_messages_are_unique_over_workers(start, closing):
    served = start("serve(deliver_envelope=lambda envelope: f'id={envelope.id}')")
    ids = []
    for client in greeted_by(served, closing).values():
        ids += [re.search(r"id=(\S+)", send_mail(client))[1] for _ in range(100)]
    assert len(set(ids)) == len(ids) == 200
    assert {found.rpartition("w")[2] for found in ids} == {"0", "1"}


@shown
def test_configure_while_workers_run_is_refused(start):
    served = start(
        """
        def configure(number, frame):
            try:
                server.configure(banner="new")
            except RuntimeError as error:
                os.write(1, f"{error}\\n".encode())  # print() cannot be entered twice
        server = SMTPServer(("127.0.0.1", 0), deliver=tell_pid, workers=2)
        signal.signal(signal.SIGUSR1, configure)
        signal.signal(signal.SIGTERM, lambda number, frame: server.stop())
        print(f"listening on 127.0.0.1:{server.port}", flush=True)
        server.configure(banner="before")
        server.serve_forever()
        """
    )
    for pid in served.workers():
        with contextlib.closing(served.client_of(pid, "220 ")):
            pass
    served.program.signal(signal.SIGUSR1)
    assert "configure" in served.program.line()
    with Client(served.place) as client:
        assert client.reply().endswith(" before")
    assert served.end() == 0


# -- what is divided, and what is added up ---------------------------------------------------


def test_each_worker_gets_its_part_rounded_up():
    whole = Limits(connections=5, connections_per_address=3, memory=7, spool=9, recipients=100)
    part = share(whole, 2)
    assert (part.connections, part.connections_per_address) == (3, 2)
    assert (part.memory, part.spool) == (4, 5)
    assert part.recipients == 100  # of a session, not of the server
    assert share(whole, 1) == whole
    assert share(whole, 10)._replace(**whole._asdict()) == whole
    assert share(whole, 10).connections == 1
    assert share(whole._replace(connections_per_address=None), 2).connections_per_address is None


@shown
@pytest.mark.parametrize("whole", [3, 4])
def test_connections_are_divided(start, closing, whole):
    served = start(f"serve(limits=Limits(connections={whole}))")
    for pid in served.workers():
        for _ in range(2):
            closing(served.client_of(pid))
        turned_away = closing(served.client_of(pid, "421 Too many connections"))
        assert turned_away.ended()
    assert served.end() == 0


@shown
def test_stats_are_added_up(start, closing):
    served = start(
        """
        def tell(number, frame):
            os.write(1, f"{server.stats()}\\n".encode())  # print() cannot be entered twice
        signal.signal(signal.SIGUSR1, tell)
        server = SMTPServer(("127.0.0.1", 0), deliver=tell_pid, workers=2)
        signal.signal(signal.SIGTERM, lambda number, frame: server.stop())
        print(f"listening on 127.0.0.1:{server.port}", flush=True)
        server.serve_forever()
        print(server.stats())
        """
    )

    def stats():
        served.program.signal(signal.SIGUSR1)
        return eval(served.program.line(), {})

    clients = greeted_by(served, closing)
    for count, client in enumerate(clients.values(), 1):
        for _ in range(count):
            send_mail(client)
    found = stats()
    assert found["connections"] == 2
    assert found["messages"] == found["recipients"] == 3
    until(lambda: stats()["sessions"] == 2, "the sessions of both workers")
    # What a worker has counted outlives it; what it held does not.
    os.kill(min(clients), signal.SIGKILL)
    until(lambda: stats()["sessions"] == 1, "the end of a session")
    served.workers()
    assert stats()["messages"] == 3
    with contextlib.closing(served.client_of(max(served.workers()))) as client:
        client.ask("EHLO client.example")
        send_mail(client)
    assert stats()["messages"] == 4
    assert served.end() == 0
    total = eval(served.program.remaining(), {})
    assert (total["messages"], total["connections"], total["sessions"]) == (4, 3, 0)


@shown
def test_command_line_prints_the_stats_of_all(no_leaks, closing):
    arguments = ("127.0.0.1:0", "--workers", "2", "--stats", "-q")
    with Program("-W", "error", "-m", "smtpd_sync", *arguments) as program:
        served = Served(program)
        try:
            for client in greeted_by(served, closing).values():
                assert send_mail(client).startswith("250 ")
            program.signal(signal.SIGUSR1)
            assert served.end() == 0
        finally:
            served.clean()
    now, at_end = program.errors.splitlines()
    for line in (now, at_end):
        assert "connections=2 " in line
        assert " messages=2 recipients=2 " in line
    assert at_end.endswith("sessions=0 memory=0 spool=0")


def test_command_line_wants_a_number_of_workers():
    command = [sys.executable, "-m", "smtpd_sync", "--workers", "some"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 2
    assert "--workers" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@shown
def test_bound_workers_say_nothing_late(start, closing):
    """A worker that takes the place of a dead one tells only of its own troubles."""
    served = start("serve(limits=Limits(connections=2))")
    first, _ = served.workers()
    closing(served.client_of(first))
    closing(served.client_of(first, "421 ")).close()
    os.kill(first, signal.SIGKILL)
    until(lambda: first not in served.workers())
    assert served.end() == 0
    assert served.program.errors.count("turned_away=1") <= 1


# -- death -----------------------------------------------------------------------------------


@shown
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, -9), (signal.SIGSEGV, -11), (signal.SIGTERM, 0)]
)
def test_worker_that_ends_is_replaced(start, closing, number, status):
    served = start()
    dead, other = served.workers()
    os.kill(dead, number)
    until(lambda: not alive(dead))
    new = until(lambda: {*served.workers()} - {dead, other}).pop()
    for pid in (new, other):
        with contextlib.closing(served.client_of(pid)) as client:
            client.ask("EHLO client.example")
            assert f"pid={pid}" in send_mail(client)
    if CORES:  # it has the place of the dead one
        assert os.sched_getaffinity(new).isdisjoint(os.sched_getaffinity(other)) == (len(CORES) > 1)
    assert served.end() == 0
    (line,) = served.program.errors.splitlines()
    assert line.startswith(f"worker {dead} has ended with {status}: another takes its place")


@shown
def test_crash_loop_ends_the_server(run_program):
    program = run_program(
        """
        def worker_started():
            print("started", flush=True)
            raise KeyError("broken")
        try:
            serve(worker_started=worker_started)
        except RuntimeError as error:
            print("over:", error, flush=True)
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            print("no child is left", flush=True)
        """
    )
    place = ("127.0.0.1", program.port())
    assert program.finish() == 0
    *started, over, alone = program.remaining().decode().splitlines()
    assert over == "over: workers: they die as they are born, the last with 1"
    assert alone == "no child is left"
    assert 6 <= started.count("started") <= 7
    assert program.errors.count("KeyError: 'broken'") == started.count("started")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place, SOON)


@shown
def test_one_worker_that_cannot_live_ends_the_others_in_order(start, closing, tmp_path):
    served = start(
        """
        def worker_started():
            if os.path.exists(sys.argv[1]):
                os._exit(3)
        try:
            serve(worker_started=worker_started)
        except RuntimeError as error:
            print("over:", error, flush=True)
        """,
        tmp_path / "broken",
    )
    (doomed, _), (_, client) = greeted_by(served, closing).items()
    (tmp_path / "broken").touch()
    os.kill(doomed, signal.SIGKILL)
    assert client.reply().startswith("421 4.3.2 ")
    assert served.program.finish() == 0
    assert served.program.line() == "over: workers: they die as they are born, the last with 3"


@shown
def test_deaths_of_old_workers_are_no_crash_loop(start):
    served = start(
        """
        from smtpd_sync import workers
        workers.YOUNG = 0.0
        serve()
        """
    )
    for _ in range(8):
        dead = served.workers()[0]
        os.kill(dead, signal.SIGKILL)
        until(lambda dead=dead: dead not in served.workers())
    assert served.end() == 0


@shown
def test_death_of_a_worker_under_load_loses_no_message_and_no_other_client(
    start, closing, tmp_path
):
    mailbox = tmp_path / "mailbox"
    served = start(
        """
        box = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        def deliver(sender, recipients, data):
            os.write(box, data.splitlines()[-1] + b"\\n")
        serve(deliver=deliver)
        """,
        mailbox,
    )
    doomed, other = served.workers()
    clients = [(pid, closing(served.client_of(pid))) for pid in (doomed, other) * 2]
    accepted, lost, dead = [[] for _ in clients], [], threading.Event()

    def load(number):
        pid, client = clients[number]
        client.ask("EHLO client.example")
        after = 0
        try:
            while after < 10:
                name = f"message {number} {len(accepted[number])}"
                reply = send_mail(client, f"Subject: hi\r\n\r\n{name}\r\n".encode())
                if not reply:
                    raise ConnectionError("closed")
                assert reply.startswith("250 ")
                accepted[number].append(name)
                after += dead.is_set()
        except (ConnectionError, AssertionError):  # it ends between two replies, or within one
            lost.append(pid)

    threads = [threading.Thread(target=load, args=(n,)) for n in range(len(clients))]
    for thread in threads:
        thread.start()
    try:
        until(lambda: all(len(names) >= 5 for names in accepted), "messages of each client")
        os.kill(doomed, signal.SIGKILL)
        until(lambda: not alive(doomed))
    finally:
        dead.set()
        for thread in threads:
            thread.join(DEADLINE)
    assert lost == [doomed] * 2
    stored = mailbox.read_text().splitlines()
    assert {name for names in accepted for name in names} <= set(stored)
    assert len(set(stored)) == len(stored)
    with contextlib.closing(Client(served.place)) as client:
        assert client.mail().startswith("250 ")
    assert served.end() == 0


# -- the end ---------------------------------------------------------------------------------

HELD = """
def deliver(sender, recipients, data):
    print("entered", os.getpid(), flush=True)
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    return f"pid={os.getpid()}"
"""


def hold(served, client):
    """Have a client's message held in its delivery."""
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    assert client.ask("DATA").startswith("354 ")
    client.send(b"Subject: hi\r\n\r\nhello\r\n.\r\n")
    assert served.program.line().startswith("entered ")


@shown
def test_stop_tells_the_idle_clients_of_all_workers(start, closing):
    served = start()
    clients = greeted_by(served, closing)
    begin = time.monotonic()
    assert served.end() == 0
    assert time.monotonic() - begin < SOON
    for pid, client in clients.items():
        assert client.reply().startswith("421 4.3.2 ")
        assert client.ended()
        assert not alive(pid)
    with pytest.raises(ConnectionRefusedError):
        Client(served.place)
    assert served.program.errors == ""


@shown
def test_signal_that_another_thread_gets_stops_all(start, closing):
    served = start(
        """
        import _thread

        _thread.start_new_thread(time.sleep, (60,))  # as a C library may
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        serve()
        """
    )
    clients = greeted_by(served, closing)
    assert served.end() == 0
    for client in clients.values():
        assert client.reply().startswith("421 4.3.2 ")


@shown
def test_stop_lets_the_delivery_of_a_worker_end(start, closing, tmp_path):
    served = start(HELD + "serve(deliver=deliver)", tmp_path / "release")
    (pid, client), (_, idle) = greeted_by(served, closing).items()
    hold(served, client)
    served.program.signal(signal.SIGTERM)
    assert idle.reply().startswith("421 4.3.2 ")
    assert alive(pid)
    assert served.program.process.poll() is None
    (tmp_path / "release").touch()
    reply = client.reply()
    assert reply.startswith("250 ")
    assert f"pid={pid}" in reply
    assert client.reply().startswith("421 4.3.2 ")
    assert served.program.finish() == 0
    assert served.program.errors == ""


@shown
def test_second_sigterm_shortens(start, closing, tmp_path):
    served = start(HELD + "serve(deliver=deliver, patience=(600, 0))", tmp_path / "release")
    (_, client), (_, idle) = greeted_by(served, closing).items()
    hold(served, client)
    served.program.signal(signal.SIGTERM)
    assert idle.reply().startswith("421 4.3.2 ")
    begin = time.monotonic()
    assert served.end() == 0
    assert time.monotonic() - begin < SOON
    assert client.gone() == b""
    # It has heard the order itself, and need not be killed.
    assert served.program.errors.splitlines() == ["stop: 1 sessions are cut off"]


@shown
def test_interrupt_of_the_terminal_drains(start, closing):
    served = start(
        """
        os.setpgid(0, 0)  # as a shell does
        try:
            serve()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    )
    clients = greeted_by(served, closing)
    assert os.getpgid(served.pid) == served.pid
    os.killpg(served.pid, signal.SIGINT)
    for pid, client in clients.items():
        assert client.reply().startswith("421 4.3.2 ")
        until(lambda pid=pid: not alive(pid))
    assert served.program.finish() == 0
    assert served.program.line() == "interrupted"
    assert served.program.errors == ""


@shown
def test_command_line_ends_with_0_at_an_interrupt_of_the_terminal(no_leaks, closing, tmp_path):
    arguments = ("127.0.0.1:0", "--workers", "2", "-q")
    with Program("-W", "error", "-m", "smtpd_sync", *arguments) as program:
        served = Served(program)
        try:
            clients = greeted_by(served, closing)
            for pid in (served.pid, *clients):
                os.kill(pid, signal.SIGINT)
            assert program.finish() == 0
        finally:
            served.clean()
    for client in clients.values():
        assert client.reply().startswith("421 4.3.2 ")
    assert program.errors == ""


@shown
def test_hung_hook_is_cut_off_at_the_deadline(start, closing, tmp_path):
    served = start(HELD + "serve(deliver=deliver, patience=(0.3,))", tmp_path / "never")
    (_, client), _ = greeted_by(served, closing).items()
    hold(served, client)
    begin = time.monotonic()
    assert served.end() == 0
    assert 0.3 <= time.monotonic() - begin < SOON
    assert client.gone() == b""
    assert not any(alive(pid) for pid in served.seen)
    assert "killed" not in served.program.errors


@shown
def test_worker_that_does_not_end_is_killed(start, closing):
    served = start("serve(patience=(0.3,))")
    stuck, other = served.workers()
    client = closing(served.client_of(other))
    os.kill(stuck, signal.SIGSTOP)
    until(lambda: state(stuck) == "T")
    begin = time.monotonic()
    assert served.end() == 0
    assert 2.3 <= time.monotonic() - begin < 2.3 + SOON
    assert client.reply().startswith("421 4.3.2 ")
    assert not alive(stuck)
    lines = served.program.errors.splitlines()
    assert set(lines) == {f"worker {stuck} does not end: it is killed"}


@shown
def test_workers_drain_when_their_supervisor_is_killed(start, closing, tmp_path):
    served = start(HELD + "serve(deliver=deliver)", tmp_path / "release")
    (busy, client), (other, idle) = greeted_by(served, closing).items()
    hold(served, client)
    os.kill(served.pid, signal.SIGKILL)
    assert idle.reply().startswith("421 4.3.2 ")
    until(lambda: not alive(other), "the end of the idle worker")
    assert alive(busy)
    (tmp_path / "release").touch()
    assert client.reply().startswith("250 ")
    until(lambda: not alive(busy), "the end of the busy worker")
    with pytest.raises(ConnectionRefusedError):
        Client(served.place)


@shown
def test_file_of_a_unix_socket_is_removed_by_the_supervisor_alone(run_program, tmp_path):
    path = tmp_path / "socket"
    program = run_program(
        """
        print("listening on 127.0.0.1:1", flush=True)
        serve(sys.argv[1])
        """,
        path,
    )
    served = Served(program)
    try:
        for number in (signal.SIGKILL, signal.SIGTERM):
            gone = served.workers()[0]
            os.kill(gone, number)
            until(lambda gone=gone: gone not in served.workers())
            assert path.exists()
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.settimeout(DEADLINE)
                client.connect(str(path))
                assert client.recv(1024).startswith(b"220 ")
        assert served.end() == 0
        assert not path.exists()
    finally:
        served.clean()


# -- certificates ----------------------------------------------------------------------------


def shown_by(served, pid):
    """The certificate that a worker shows, as octets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.closing(served.client_of(pid)) as client:
        client.ask("EHLO client.example")
        assert client.ask("STARTTLS").startswith("220 ")
        client.secure(None, context)
        return client.socket.getpeercert(True)


def der(certificate):
    with open(certificate[0]) as file:
        return ssl.PEM_cert_to_DER_cert(file.read())


@shown
def test_sighup_reloads_the_certificates_of_all_workers(start, closing, certificate, tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old, new = (make_certificate(tmp_path / name) for name in ("old", "new"))
    was, will_be = der(old), der(new)
    served = start("serve(tls=(sys.argv[1], sys.argv[2]))", *old)
    clients = greeted_by(served, closing)
    assert [shown_by(served, pid) for pid in clients] == [was] * 2
    for source, target in zip(new, old):
        os.replace(source, target)
    assert [shown_by(served, pid) for pid in clients] == [was] * 2  # not before it is told to
    served.program.signal(signal.SIGHUP)
    for pid in clients:
        until(lambda pid=pid: shown_by(served, pid) == will_be, "the new certificate")
    for client in clients.values():  # their sessions live on
        assert send_mail(client).startswith("250 ")
    # One that is born later has it, too.
    os.kill(min(clients), signal.SIGKILL)
    until(lambda: min(clients) not in served.workers())
    assert [shown_by(served, pid) for pid in served.workers()] == [will_be] * 2
    assert served.end() == 0


@shown
def test_worker_lives_on_with_what_it_has_where_it_cannot_reload(start, closing, certificate):
    served = start(
        """
        from smtpd_sync.tls import context_of
        main = os.getpid()
        def tls():
            if os.getpid() != main:  # as one that gave up the privilege to read its key
                raise ValueError("no permission")
            return context_of((sys.argv[1], sys.argv[2]), {})
        serve(tls=tls)
        """,
        *certificate,
    )
    clients = greeted_by(served, closing)
    served.program.signal(signal.SIGHUP)
    for pid in clients:
        assert shown_by(served, pid) == der(certificate)
    assert served.workers() == sorted(clients)
    assert served.end() == 0
    assert set(served.program.errors.splitlines()) == {"reload_tls: no permission"}
    assert len(served.program.errors.splitlines()) == 2
