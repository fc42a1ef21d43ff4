#!/usr/bin/env python3
"""What idle connections cost: resident memory of each, and the time of a new client beside them.

A server runs as a process of its own. Clients of this process connect, say EHLO and then nothing.
Its resident memory is read before and after; then new clients hold a whole session one after the
other (connect, greeting, EHLO, QUIT), while the others are held. Needs /proc.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
from typing import List, Optional

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT = 60.0
SPARE = 100  # descriptors for all that is no connection
WARM_UP = 50  # sessions before the first reading: they load what is loaded on demand

SERVER = """
import resource, signal, sys
from smtpd_sync import Limits, SMTPServer, discard

connections, descriptors = map(int, sys.argv[1:])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
server = SMTPServer(("127.0.0.1", 0), deliver=discard, limits=Limits(connections=connections))
signal.signal(signal.SIGTERM, lambda number, frame: server.stop())
print(server.port, server.limits.connections, flush=True)
server.serve_forever()
"""


class Client:
    """A client that has heard the greeting and the reply to its EHLO."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        try:
            self.expect(b"220")
            self.socket.sendall(b"EHLO client.example\r\n")
            self.expect(b"250")
        except BaseException:
            self.socket.close()
            raise

    def expect(self, code: bytes) -> None:
        """Read one reply."""
        data = b""
        while not re.search(rb"^[2-5][0-9][0-9] .*\r\n\Z", data, re.MULTILINE):
            more = self.socket.recv(4096)
            if not more:
                sys.exit(f"a client was left alone, behind {data!r}")
            data += more
        if not data.startswith(code):
            sys.exit(f"a client was told {data!r}")

    def leave(self) -> None:
        """QUIT, and close."""
        self.socket.sendall(b"QUIT\r\n")
        self.expect(b"221")
        self.socket.close()


def whole_session(port: int) -> float:
    """Give the seconds that a new client's session takes."""
    start = time.perf_counter()
    Client(port).leave()
    return time.perf_counter() - start


def resident(pid: int) -> int:
    """Give the resident memory of a process in KiB.

    VmRSS of /proc/PID/status is the same figure; but older kernels keep up to 64 pages of each
    thread out of it, which here is more than there is to measure.
    """
    try:
        text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = re.search(r"^Rss:\s+([0-9]+) kB", text, re.MULTILINE)
    except OSError:
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+([0-9]+) kB", text, re.MULTILINE)
    assert found, text
    return int(found[1])


def raise_descriptors(wanted: int) -> int:
    """Let this process open ``wanted`` descriptors; give how many it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return wanted if soft == resource.RLIM_INFINITY else soft


class Server:
    """The server's process."""

    def __init__(self, connections: int, descriptors: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(connections), str(descriptors)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdout is not None
        with self.process.stdout as output:
            line = output.readline()
        if not line:
            sys.exit(f"the server did not start; its status is {self.process.wait()}")
        self.port, self.connections = map(int, line.split())

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def main(argv: Optional[List[str]] = None) -> int:
    """Measure and print; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--connections", type=int, default=5000, metavar="N", help="idle connections")
    add("--sessions", type=int, default=300, metavar="N", help="new clients beside them")
    add("--at-most-kib", type=float, default=24.0, metavar="KIB", help="of each connection")
    add("--at-most-ms", type=float, default=10.0, metavar="MS", help="median of a new client")
    arguments = parser.parse_args(argv)
    if not os.path.exists("/proc/self/status"):
        sys.exit("there is no /proc to read the memory of a process from")

    connections = arguments.connections
    # The server takes half of what it may open for connections.
    wanted = 2 * (connections * 6 // 5 + SPARE)
    allowed = raise_descriptors(wanted)
    if connections > allowed // 2 - SPARE:
        connections = max(1, allowed // 2 - SPARE)
        print(f"only {connections} connections: RLIMIT_NOFILE is {allowed}", file=sys.stderr)
    clients: List[Client] = []
    with Server(connections * 6 // 5 + SPARE // 2, allowed) as server:
        try:
            for _ in range(WARM_UP):
                whole_session(server.port)
            before = resident(server.process.pid)
            start = time.perf_counter()
            clients = [Client(server.port) for _ in range(connections)]
            seconds = time.perf_counter() - start
            kib = (resident(server.process.pid) - before) / connections
            times = [1000 * whole_session(server.port) for _ in range(arguments.sessions)]
        finally:
            for client in clients:
                client.socket.close()
    median = statistics.median(times)
    print(f"python {sys.version.split()[0]}, {connections} idle connections in {seconds:.1f} s")
    print(f"resident memory of a connection, KiB: {kib:.1f} (at most {arguments.at_most_kib})")
    print(
        f"whole session of a new client, ms: median {median:.2f} (at most {arguments.at_most_ms}), "
        f"slowest {max(times):.2f}"
    )
    return int(kib > arguments.at_most_kib or median > arguments.at_most_ms)


if __name__ == "__main__":
    sys.exit(main())
