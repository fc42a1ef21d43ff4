"""The threads of a server: each serves one client after another, and knows nothing of the last."""

import contextvars
import os
import threading
import weakref

import pytest
from support import SOON, Client, descriptors, until

from smtpd_sync import Limits, SMTPHandler
from smtpd_sync.crew import PARKED, Crew
from smtpd_sync.logs import current_session

VARIABLE = contextvars.ContextVar("variable", default="fresh")


def parked(crew):
    """The threads that wait for a job."""
    return list(crew._parked)


def visit(server, hello=True):
    """Be a client that comes and goes, and is gone for the server too."""
    before = len(parked(server.crew))
    with Client(server) as client:
        if hello:
            client.hello()
            assert client.ask("QUIT").startswith("221 ")
            assert client.ended()
    until(lambda: len(parked(server.crew)) >= max(1, before), "the thread to park")
    until(lambda: not server.crew.busy, "the end of the session")


@pytest.fixture
def make_crew(no_leaks):
    """Make a crew, closed after the test: ``make_crew(serve)``."""
    crews = []

    def make(serve, **options):
        crews.append(Crew(serve, **options))
        return crews[-1]

    yield make
    for crew in crews:
        crew.close()


class Jobs:
    """Jobs that wait until they may end."""

    def __init__(self):
        self.threads, self.gate = [], threading.Event()

    def __call__(self, *arguments):
        self.threads.append(threading.current_thread())
        assert self.gate.wait(SOON * 4)


class Noting(SMTPHandler):
    """Notes the thread of each session."""

    def setup(self):
        super().setup()
        self.server.noted.append(threading.current_thread())

    def deliver(self, sender, recipients, data):
        pass


# -- one after another -----------------------------------------------------------------------


def test_thread_serves_one_client_after_another(serve):
    server = serve(Noting)
    server.noted = []
    for _ in range(3):
        visit(server)
    # Objects and not idents: the system gives an ident anew.
    assert len(server.noted) == 3
    assert len(set(server.noted)) == 1


def test_client_keeps_its_thread_while_others_come_and_go(serve, connect):
    threads = {}

    def validate_helo(name):
        threads.setdefault(name, set()).add(threading.current_thread())

    server = serve(validate_helo=validate_helo)
    first = connect(server)
    first.reply()
    for n in range(3):
        first.ask("EHLO first.example")
        with Client(server) as other:
            other.reply()
            other.ask(f"EHLO other{n}.example")
    first.ask("EHLO first.example")
    assert len(threads["first.example"]) == 1
    others = set().union(*(found for name, found in threads.items() if name != "first.example"))
    assert not threads["first.example"] & others


def test_clients_at_once_have_a_thread_each(serve, connect):
    server = serve(Noting)
    server.noted = []
    for client in [connect(server) for _ in range(5)]:
        client.reply()
    assert len(set(server.noted)) == 5
    assert server.crew.busy == set(server.noted)


def test_at_most_so_many_threads_are_kept(make_crew):
    jobs = Jobs()
    crew = make_crew(jobs)
    for _ in range(PARKED + 3):
        crew.hand_over()
    until(lambda: len(jobs.threads) == PARKED + 3)
    jobs.gate.set()
    until(lambda: sum(thread.is_alive() for thread in jobs.threads) == PARKED, "the end of three")
    until(lambda: not crew.busy and len(parked(crew)) == PARKED)
    assert set(parked(crew)) == {thread for thread in jobs.threads if thread.is_alive()}


def test_busy_are_those_at_work(make_crew):
    jobs = Jobs()
    crew = make_crew(jobs)
    crew.hand_over()
    assert len(crew.busy) == 1
    crew.hand_over()
    assert len(crew.busy) == 2
    jobs.gate.set()
    until(lambda: not crew.busy)


def test_job_gets_what_was_handed_over(make_crew):
    done = []
    crew = make_crew(lambda *job: done.append(job))
    for n in range(3):
        crew.hand_over("job", n)
        until(lambda: len(parked(crew)) == 1)
    assert done == [("job", 0), ("job", 1), ("job", 2)]


def test_parked_threads_do_not_count_as_connections(serve, connect):
    server = serve(limits=Limits(connections=1))
    for _ in range(3):
        visit(server)
    assert connect(server).reply().startswith("220 ")


# -- nothing of the last client --------------------------------------------------------------


def test_context_variables_of_a_client_are_not_seen_by_the_next(serve):
    seen, threads = [], set()

    def validate_helo(name):
        seen.append(VARIABLE.get())
        VARIABLE.set("of the client before")
        threads.add(threading.current_thread())

    server = serve(validate_helo=validate_helo)
    for _ in range(3):
        visit(server)
    assert len(threads) == 1
    assert seen == ["fresh"] * 3


def test_context_variables_last_as_long_as_the_connection(serve, connect):
    seen = []

    def validate_helo(name):
        seen.append(VARIABLE.get())
        VARIABLE.set(name)

    client = connect(serve(validate_helo=validate_helo))
    client.hello()
    client.ask("EHLO again.example")
    assert seen == ["fresh", "client.example"]


def test_session_of_the_log_ends_with_the_connection(make_crew):
    seen = []

    def job(name):
        seen.append(current_session.get())
        current_session.set(name)

    crew = make_crew(job)
    for name in ("one", "two"):
        crew.hand_over(name)
        until(lambda: len(parked(crew)) == 1)
    assert seen == ["-", "-"]


def test_parked_thread_holds_nothing_of_its_job(make_crew):
    class Request:
        pass

    crew = make_crew(lambda request: None)
    request = Request()
    gone = weakref.ref(request)
    crew.hand_over(request)
    del request
    until(lambda: len(parked(crew)) == 1)
    until(lambda: gone() is None, "the end of the request")


def test_handler_of_a_client_that_has_gone_is_not_held(serve):
    handlers = []

    class Handler(Noting):
        def setup(self):
            SMTPHandler.setup(self)
            handlers.append(weakref.ref(self))

    server = serve(Handler)
    visit(server)
    until(lambda: handlers[0]() is None, "the end of the handler")
    until(lambda: parked(server.crew), "the thread to park")


@pytest.mark.skipif(not descriptors(), reason="the system does not tell what is open")
def test_socket_of_a_client_that_has_gone_is_not_held(serve):
    server = serve()
    visit(server)
    before = descriptors()
    for hello in (True, False):
        visit(server, hello)
        until(lambda: descriptors() <= before, "the close of the socket")
    until(lambda: parked(server.crew), "the thread to park")


# -- jobs that fail --------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch):
    """The types of the exceptions that ended threads."""
    types = []
    monkeypatch.setattr(threading, "excepthook", lambda said: types.append(said.exc_type))
    return types


def test_exit_in_a_job_ends_no_more_than_its_thread(make_crew, told):
    threads = []

    def job(status):
        threads.append(threading.current_thread())
        if status:
            raise SystemExit(status)

    crew = make_crew(job)
    crew.hand_over(3)
    until(lambda: threads and not threads[0].is_alive())
    assert not crew.busy
    assert not parked(crew)
    crew.hand_over(0)
    until(lambda: len(parked(crew)) == 1)
    assert threads[1] is not threads[0]
    assert told == [SystemExit]


def test_exception_in_a_job_is_told_and_ends_its_thread(make_crew, told):
    threads = []

    def job():
        threads.append(threading.current_thread())
        raise KeyError("job")

    crew = make_crew(job)
    for n in range(2):
        crew.hand_over()
        until(lambda n=n: len(threads) > n and not threads[n].is_alive())
        assert not crew.busy
        assert not parked(crew)
    assert told == [KeyError] * 2


def test_exit_in_the_last_hook_gives_the_place_back(serve, connect, told):
    def session_ended(reason):
        raise SystemExit(1)

    server = serve(session_ended=session_ended, limits=Limits(connections=1))
    for _ in range(3):
        client = connect(server)
        client.hello()
        client.ask("QUIT")
        assert client.ended()
        until(lambda: not server.crew.busy)


def test_thread_that_cannot_start_is_not_at_work(make_crew, monkeypatch):
    done = []
    crew = make_crew(lambda: done.append(threading.current_thread()))

    def start(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            crew.hand_over()
    assert not crew.busy
    crew.hand_over()
    until(lambda: done)


def test_client_without_a_thread_is_told_so_and_parked_threads_serve_on(
    serve, connect, monkeypatch
):
    server = serve()
    visit(server)

    def start(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        served, turned_away = connect(server), connect(server)
        assert served.reply().startswith("220 ")
        assert turned_away.reply().startswith("421 ")
        assert turned_away.ended()
        assert len(server.crew.busy) == 1
    assert connect(server).reply().startswith("220 ")
    assert server.stats()["failed_accepts"] == 1
    until(lambda: server.stats()["connections"] == 3, "the count of them")


# -- the end ---------------------------------------------------------------------------------


def test_stop_lets_parked_threads_go_before_it_returns(serve, connect):
    server = serve(Noting)
    server.noted = []
    clients = [connect(server) for _ in range(4)]
    for client in clients:
        client.reply()
    for client in clients:
        client.close()
    until(lambda: len(parked(server.crew)) == 4)
    server.stop()
    assert not any(thread.is_alive() for thread in server.noted)


def test_thread_at_work_while_the_crew_closes_ends_with_its_job(make_crew):
    jobs = Jobs()
    crew = make_crew(jobs)
    crew.hand_over()
    until(lambda: jobs.threads)
    crew.close()
    assert jobs.threads[0].is_alive()  # it is waited for by those who know deadlines
    jobs.gate.set()
    jobs.threads[0].join(SOON)
    assert not jobs.threads[0].is_alive()
    assert not parked(crew)


def test_job_for_a_closed_crew_is_done_and_its_thread_ends(make_crew):
    jobs = Jobs()
    jobs.gate.set()
    crew = make_crew(jobs)
    crew.close()
    crew.hand_over()
    until(lambda: jobs.threads and not jobs.threads[0].is_alive())
    assert not parked(crew)


def test_no_thread_is_left_however_jobs_end_and_the_crew_closes():
    for n in range(60):
        jobs = Jobs()
        crew = Crew(jobs)
        for _ in range(6):
            crew.hand_over()
        until(lambda jobs=jobs: len(jobs.threads) == 6)
        closing = threading.Thread(target=crew.close)
        in_order = [closing.start, jobs.gate.set]
        for step in in_order if n % 2 else reversed(in_order):
            step()
        closing.join(SOON)
        assert not closing.is_alive()
        for thread in jobs.threads:
            thread.join(SOON)
            assert not thread.is_alive()
        assert not parked(crew)


# -- cores -----------------------------------------------------------------------------------

CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
affinity = pytest.mark.skipif(not CORES, reason="the platform cannot bind threads to a core")
cores = pytest.mark.skipif(len(CORES) < 2, reason="there is one core, or no telling")


@pytest.fixture
def seen():
    """What the hook `note_cores` saw, by the name of the client."""
    return {}


@pytest.fixture
def note_cores(seen):
    def validate_helo(name):
        seen[name] = os.sched_getaffinity(0)  # of this thread

    return validate_helo


def arrive(server, connect, name):
    client = connect(server)
    client.reply()
    client.ask(f"EHLO {name}")
    return client


def leave(server, client):
    before = len(parked(server.crew))
    client.ask("QUIT")
    client.close()
    until(lambda: len(parked(server.crew)) > before)


@cores
def test_third_client_at_once_is_served_on_one_core(serve, connect, seen, note_cores):
    server = serve(cpu_affinity="adaptive", validate_helo=note_cores)
    for name in ("one", "two", "three", "four"):
        arrive(server, connect, name)
    assert seen == {"one": CORES, "two": CORES, "three": {min(CORES)}, "four": {min(CORES)}}
    assert os.sched_getaffinity(0) == CORES


@cores
def test_client_alone_is_served_on_all_cores_again(serve, connect, seen, note_cores):
    server = serve(Noting, cpu_affinity="adaptive", validate_helo=note_cores)
    server.noted = []
    for client in [arrive(server, connect, name) for name in ("one", "two", "three")]:
        leave(server, client)
    assert seen["three"] == {min(CORES)}
    arrive(server, connect, "alone")
    assert server.noted[3] is server.noted[2]  # it had one core before
    assert seen["alone"] == CORES


@cores
def test_thread_of_a_client_alone_is_bound_when_it_serves_in_a_crowd(
    serve, connect, seen, note_cores
):
    server = serve(Noting, cpu_affinity="adaptive", validate_helo=note_cores)
    server.noted = []
    leave(server, arrive(server, connect, "alone"))
    parked_thread = server.noted[0]
    crew = server.crew
    with crew._lock:
        held = crew._parked.pop()  # so that the next two get threads of their own
    arrive(server, connect, "one")
    arrive(server, connect, "two")
    with crew._lock:
        crew._parked.append(held)
    arrive(server, connect, "three")
    assert server.noted[3] is parked_thread
    assert seen == {"alone": CORES, "one": CORES, "two": CORES, "three": {min(CORES)}}


@cores
def test_threads_are_bound_to_no_core_by_default(serve, connect, seen, note_cores):
    server = serve(validate_helo=note_cores)
    assert server.cpu_affinity is None
    names = ("one", "two", "three", "four")
    for name in names:
        arrive(server, connect, name)
    assert seen == dict.fromkeys(names, CORES)


@cores
def test_affinity_can_be_set_and_taken_back_while_it_serves(serve, connect, seen, note_cores):
    server = serve(validate_helo=note_cores)
    parties = {"free": None, "bound": "adaptive", "free again": None}
    for number, wish in enumerate(parties.values()):
        server.configure(cpu_affinity=wish)
        clients = [arrive(server, connect, f"{number}-{each}") for each in range(3)]
        for client in clients:
            leave(server, client)
    assert [seen[f"{number}-2"] for number in range(3)] == [CORES, {min(CORES)}, CORES]


@affinity
def test_clients_are_served_where_threads_cannot_be_bound_any_more(
    serve, connect, monkeypatch, caplog
):
    def refuse(pid, cores):
        raise OSError(22, "Invalid argument")  # the cores were taken from the process

    server = serve(cpu_affinity="adaptive")
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    for client in [connect(server) for _ in range(4)]:
        assert client.mail().startswith("250 ")


def test_affinity_is_checked(serve):
    with pytest.raises(ValueError, match="cpu_affinity: None or 'adaptive', not 'all'"):
        serve(cpu_affinity="all")


def test_platform_that_cannot_bind_threads_says_so(serve, monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with pytest.raises(ValueError, match="cpu_affinity: this platform cannot bind threads"):
        serve(cpu_affinity="adaptive")
    assert serve().cpu_affinity is None
