"""Where threads run, and whom they let run: bound to one core while they are a crowd, then free."""

import os
import threading

import pytest
from support import until

from smtpd_sync import SMTPHandler, SMTPServer, discard
from smtpd_sync.crew import CROWDED
from smtpd_sync.place import wait_for_the_core

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="the platform cannot bind a thread to a core"
)

CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
ONE = {min(CORES)}


def here(thread=0):
    """Where a thread runs, and how."""
    return os.sched_getaffinity(thread), os.sched_getscheduler(thread)


class Telling(SMTPHandler):
    """Tells where its thread runs."""

    deliver = staticmethod(discard)

    def verify(self, text):
        cores, policy = here()
        return f"{sorted(cores)} {policy}"


def told(client):
    client.hello()
    return client.ask("VRFY me").partition(" 2.1.5 ")[2]


FREE, BOUND = f"{sorted(CORES)} {os.SCHED_OTHER}", f"{sorted(ONE)} {os.SCHED_BATCH}"


def test_threads_keep_to_one_core_while_they_are_a_crowd(serve, connect):
    server = serve(Telling, cpu_affinity="adaptive")
    clients = [connect(server) for _ in range(CROWDED)]
    assert [told(client) for client in clients] == [FREE] * (CROWDED - 1) + [BOUND]
    clients.append(connect(server))
    assert told(clients[-1]) == BOUND
    for client in clients[1:]:
        client.ask("QUIT")
        client.close()
    until(lambda: len(server.crew.busy) == 1)
    assert told(connect(server)) == FREE  # by a thread that was bound
    assert any(here(thread.native_id)[0] == ONE for thread in threading.enumerate())


def test_thread_that_accepts_keeps_with_the_crowd_and_is_free_at_the_end(serve, connect):
    before, found = [], []

    def work():
        before.append(here())
        server.serve_forever()
        found.append(here())

    with SMTPServer(("127.0.0.1", 0), Telling, cpu_affinity="adaptive") as server:
        thread = threading.Thread(target=work)
        thread.start()
        clients = [connect(server) for _ in range(CROWDED + 1)]
        for client in clients:
            client.hello()
        connect(server).hello()  # now it has seen the crowd
        until(lambda: here(thread.native_id) == (ONE, os.SCHED_BATCH))
        server.stop()
        thread.join()
    assert found == before


def test_nothing_is_bound_unless_it_is_asked_for(serve, connect):
    server = serve(Telling)
    clients = [connect(server) for _ in range(CROWDED + 1)]
    assert [told(client) for client in clients] == [FREE] * len(clients)


def test_crowd_is_free_where_it_is_asked_for_no_more(serve, connect):
    server = serve(Telling, cpu_affinity="adaptive")
    clients = [connect(server) for _ in range(CROWDED)]
    assert told(clients[-1]) == BOUND
    server.configure(cpu_affinity=None)
    assert told(connect(server)) == FREE
    server.configure(cpu_affinity="adaptive")
    assert told(connect(server)) == BOUND


def test_mail_is_served_where_the_cores_were_taken_away(serve, connect, monkeypatch):
    def taken(thread, cores):
        tried.append(cores)
        raise OSError("Invalid argument")

    tried = []
    monkeypatch.setattr(os, "sched_setaffinity", taken)
    server = serve(Telling, cpu_affinity="adaptive")
    for _ in range(CROWDED + 2):
        assert told(connect(server)) == FREE
    assert 1 <= len(tried) <= 2  # by a thread each, of those that accept and serve


def test_policy_that_somebody_chose_stays():
    found = []

    def work():
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        for waits in (True, False):
            wait_for_the_core(waits)
            found.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [os.SCHED_IDLE] * 2


@pytest.mark.parametrize("missing", ["SCHED_BATCH", "sched_setscheduler"])
def test_system_without_the_policy_does_without(monkeypatch, missing):
    monkeypatch.delattr(os, missing)
    wait_for_the_core()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
