"""More than one core: worker processes that share the listening sockets of one server.

The process that calls `serve_forever` becomes the supervisor. It forks before there is a thread,
serves nobody itself, replaces a worker that dies, and ends them all. It and a worker know of each
other by a socket pair: what is said there is a command, its end is the end of who held it.
"""

from __future__ import annotations

import mmap
import os
import selectors
import signal
import socket
import sys
import threading
import time
from time import monotonic
from typing import TYPE_CHECKING, Callable, Dict, List, NamedTuple

from .limits import Limits
from .logs import log
from .place import wait_for_the_core
from .stats import GAUGES, NAMES
from .trace import tell_apart

if TYPE_CHECKING:
    from .server import SMTPServer

__all__ = ["Supervisor", "share"]

YOUNG = 5.0
"""A worker that dies sooner, in seconds, died of what would kill the next one, too."""
DEATHS = 3
"""So many of them, for each worker, in a row are a crash loop."""
KILL_AFTER = 2.0
STOP, RELOAD = b"s", b"r\n"
PATIENCE = 0.02


class Worker(NamedTuple):
    """A worker process, as its supervisor knows it."""

    pid: int
    control: socket.socket
    born: float


def share(limits: Limits, count: int) -> Limits:
    """Give what one of ``count`` workers may take of what is for the whole server."""
    parts: Dict[str, int] = {}
    for name in ("connections", "connections_per_address", "memory", "spool"):
        whole = getattr(limits, name)
        if whole is not None:
            parts[name] = -(-whole // count)
    return limits._replace(**parts)


class Supervisor:
    """Forks the workers of a server and looks after them."""

    def __init__(self, server: SMTPServer, count: int) -> None:
        if threading.active_count() > 1:
            raise RuntimeError(
                "workers: there are threads, which would be missing in the forked processes; "
                "start them in the hook worker_started"
            )
        self._server = server
        self._count = count
        self._workers: Dict[int, Worker] = {}
        self._deaths = 0
        self.reloading = False
        """Whether the workers are to read their certificates again."""
        self._cores: List[int] = sorted(os.sched_getaffinity(0)) if PINS else []
        width = 8 * len(NAMES)
        self._shared = mmap.mmap(-1, count * width)
        self._slots = [
            memoryview(self._shared)[n * width : (n + 1) * width].cast("q") for n in range(count)
        ]

    def run(self) -> None:
        """Serve until the server is told to stop, or the workers cannot live."""
        for index in range(self._count):
            self._fork(index)
        waker = self._server.waker
        with selectors.DefaultSelector() as selector, waker.woken_by_signals():
            selector.register(waker, selectors.EVENT_READ, None)
            while not self._server.stopping:
                for worker in self._workers.values():
                    selector.register(worker.control, selectors.EVENT_READ, None)
                for key, _ in selector.select():
                    if key.fileobj is waker:
                        waker.rest()
                for worker in self._workers.values():
                    selector.unregister(worker.control)
                if self._server.stopping:
                    break
                self._replace_dead()
                if self.reloading:
                    self.reloading = False
                    self._tell(RELOAD)

    def counts(self) -> Dict[str, int]:
        """Add up what the workers count."""
        return {name: sum(slot[n] for slot in self._slots) for n, name in enumerate(NAMES)}

    def end(self, deadline: Callable[[], float]) -> None:
        """Have the workers drain until the deadline, which may be shortened; then they die."""
        told = float("inf")
        while self._workers:
            now = monotonic()
            if deadline() < told:
                told = deadline()
                self._tell(STOP + f"{max(0.0, told - now):.3f}\n".encode())
            for index, worker in list(self._workers.items()):
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
                if pid:
                    self._bury(index, worker, status)
                elif now > told + KILL_AFTER:
                    log.error("worker %d does not end: it is killed", worker.pid)
                    os.kill(worker.pid, signal.SIGKILL)
            time.sleep(PATIENCE)

    def _tell(self, message: bytes) -> None:
        for worker in self._workers.values():
            try:
                worker.control.send(message)
            except OSError:
                pass  # it has gone, which is seen next

    def _replace_dead(self) -> None:
        for index, worker in list(self._workers.items()):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if not pid:
                continue
            code = self._bury(index, worker, status)
            log.error("worker %d has ended with %d: another takes its place", pid, code)
            young = monotonic() - worker.born < YOUNG
            self._deaths = self._deaths + 1 if young else 0
            if self._deaths >= DEATHS * self._count:
                raise RuntimeError(f"workers: they die as they are born, the last with {code}")
            self._fork(index)

    def _bury(self, index: int, worker: Worker, status: int) -> int:
        worker.control.close()
        del self._workers[index]
        for name in GAUGES:
            self._slots[index][NAMES.index(name)] = 0
        return os.waitstatus_to_exitcode(status)

    def _fork(self, index: int) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        flush()  # what waits there would be written by both
        pid = os.fork()
        if pid:
            theirs.close()
            self._workers[index] = Worker(pid, ours, monotonic())
            return
        status = 1
        try:
            ours.close()
            for other in self._workers.values():
                other.control.close()
            self._work(index, theirs)
            status = 0
        except BaseException:
            log.exception("a worker failed")
        finally:
            flush()
            os._exit(status)

    def _work(self, index: int, control: socket.socket) -> None:
        """Be a worker."""
        server = self._server
        signal.set_wakeup_fd(-1)  # it wakes the supervisor
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the supervisor hears it, too
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: server.stop())
        if self._cores:
            try:
                os.sched_setaffinity(0, {self._cores[index % len(self._cores)]})
            except OSError as error:  # it was taken from the process meanwhile
                log.warning("worker %d is bound to no core: %s", os.getpid(), error)
            wait_for_the_core()
        tell_apart(index)
        server.counters.use(self._slots[index])
        server.become_worker(index, share(server.limits, self._count), control)


PINS = hasattr(os, "sched_setaffinity")


def flush() -> None:
    """Write what was printed; a stream may be missing, closed, or without a reader."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass


def obey(server: SMTPServer, control: socket.socket) -> None:
    """Do what the supervisor says; its end is the order to stop."""
    try:
        messages = control.recv(1024).decode().split("\n")
    except BlockingIOError:
        return
    except OSError:
        messages = ["s10"]
    for message in messages[:-1] or ["s10"]:
        if message[0] == "r":
            try:
                server.reload_tls()
            except (OSError, ValueError) as error:
                log.error("reload_tls: %s", error)
        else:
            server.stop(float(message[1:]))
