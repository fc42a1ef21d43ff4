"""Work on mail of strangers, in a process of its own.

Threads of one interpreter run one at a time: a large message that one of them takes apart slows
every session down meanwhile, and its memory is the server's. Here it is neither. What goes to and
fro is a line of JSON, and octets as they are.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
import subprocess
import sys
import threading
from typing import IO, Any, Dict, List, Optional, Sequence

from .webparts import Job, Shown, searched, show

__all__ = ["Elsewhere", "Gone"]

JOBS: Dict[str, Job] = {"searched": searched, "show": show}
SECONDS = 30
"""After which the process is ended, whatever it does."""
MEMORY = 1 << 30
"""Octets that it may take."""
LARGE = 1 << 20
"""Octets of mail data after which it makes room for a new one, so that its memory is free again."""


class Gone(Exception):
    """The process ended before its work was done: it took too long, or too much."""


class Elsewhere:
    """One process, for one piece of work at a time; it begins with the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._closed = False

    def call(self, job: str, octets: bytes, *arguments: Any) -> Shown:
        """Have a job of `JOBS` done on a message; raises `Gone`."""
        with self._lock:
            try:
                if self._process is not None and self._process.poll() is not None:
                    self._end()  # while it had nothing to do
                process = self._process = self._process or self._begun()
                assert process.stdin, "it is a pipe"
                assert process.stdout, "it is a pipe"
                send(process.stdin, [job, arguments], [octets])
                shown = Shown(*receive(process.stdout))
            except (OSError, EOFError) as error:
                self._end()
                raise Gone from error
            if len(octets) > LARGE:
                self._end()
            return shown

    def close(self) -> None:
        """End the process, and what it does."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._end()

    def _begun(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise EOFError
        path = [*sys.path, str(pathlib.Path(__file__).resolve().parents[1])]
        code = f"import sys; sys.path[:] = {path!r}; from {__name__} import serve; serve()"
        return subprocess.Popen(  # noqa: S603 - our own code
            [sys.executable or "", "-I", "-S", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(OSError), process:
                pass  # closes the pipes, and waits


def send(stream: IO[bytes], value: Any, blobs: Sequence[bytes]) -> None:
    """Write a value and octets that belong to it."""
    stream.write(json.dumps([value, [len(blob) for blob in blobs]]).encode() + b"\n")
    for blob in blobs:
        stream.write(blob)
    stream.flush()


def receive(stream: IO[bytes]) -> List[Any]:
    """Read what `send` wrote, ``[value, blobs]``; ``EOFError`` where it ends."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    value, sizes = json.loads(line)
    blobs = [stream.read(size) for size in sizes]
    if [len(blob) for blob in blobs] != sizes:
        raise EOFError
    return [value, blobs]


def serve() -> None:
    """Do what is asked, one thing after the other, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends us
    _bound_memory()
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    with contextlib.suppress(EOFError):
        while True:
            (job, arguments), (octets,) = receive(sys.stdin.buffer)
            _end_after(SECONDS)
            send(answers, *JOBS[job](octets, *arguments))
            _end_after(0)


def _end_after(seconds: int) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def _bound_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
