#!/usr/bin/env python3
"""How fast large messages go through a whole server, over loopback, beside aiosmtpd.

Each server is a process of its own, with the defaults of its package and a hook that takes the
message as bytes and throws it away. A client on a plain socket sends one message at a time on an
open connection and waits for each reply; the clock runs from MAIL to the 250 behind the mail data.
The servers are driven in turn, round by round, and medians are compared inside the run only: the
megabytes a second say more of the machine than of the server. A bare loop of recv() that looks for
the end of mail data, and does nothing else, shows what the machine and the client can do.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import pathlib
import socket
import statistics
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, List

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

TARGET = 4.0
MIB = 1_048_576
END = b"\r\n.\r\n"
LINES = (b"x" * 74 + b"\r\n") * 49 + b"..a line that began with a dot" + b"x" * 44 + b"\r\n"


# -- the servers, each in its process ------------------------------------------------------------


def serve_smtpd_sync(limit: int) -> None:
    """Serve with this package."""
    from smtpd_sync import Limits, SMTPServer, discard

    server = SMTPServer(("127.0.0.1", 0), deliver=discard, limits=Limits(message_size=limit))
    print(server.port, flush=True)
    server.serve_forever()


def serve_aiosmtpd(limit: int) -> None:
    """Serve with aiosmtpd, as its Controller does."""
    from aiosmtpd.handlers import Sink
    from aiosmtpd.smtp import SMTP

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: SMTP(Sink(), data_size_limit=limit), "127.0.0.1", 0
        )
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(serve())


def serve_bare(limit: int) -> None:
    """Answer 250 to each line, 354 to DATA, and keep nothing of what follows but its tail."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _ = listener.accept()
            threading.Thread(target=answer_barely, args=(client,), daemon=True).start()


def answer_barely(client: socket.socket) -> None:
    """Serve one client of the bare server."""
    with client:
        client.sendall(b"220 bare\r\n")
        while line := client.recv(65_536):
            if line.startswith(b"DATA"):
                client.sendall(b"354 go on\r\n")
                tail = b""
                while not tail.endswith(END):
                    chunk = client.recv(262_144)
                    if not chunk:
                        return
                    tail = (tail + chunk)[-5:]
            client.sendall(b"250 OK\r\n")


SERVERS: Dict[str, Callable[[int], None]] = {
    "smtpd_sync": serve_smtpd_sync,
    "aiosmtpd": serve_aiosmtpd,
    "bare": serve_bare,
}


# -- the client ----------------------------------------------------------------------------------


class Client:
    """Drives one server."""

    def __init__(self, name: str, limit: int) -> None:
        command = [sys.executable, __file__, "--serve", name, "--limit", str(limit)]
        self.server = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            assert self.server.stdout is not None
            port = self.server.stdout.readline()
            if not port:
                sys.exit(f"{name} does not start")
            self.socket = socket.create_connection(("127.0.0.1", int(port)), 60)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.expect(b"220")
            self.ask(b"EHLO client.example\r\n", b"250")
        except BaseException:
            self.close()
            raise

    def expect(self, code: bytes) -> None:
        """Read a reply, which is all that comes."""
        reply = b""
        while not reply.endswith(b"\r\n") or reply.splitlines()[-1][3:4] == b"-":
            data = self.socket.recv(65_536)
            if not data:
                sys.exit(f"the server has gone after {reply!r}")
            reply += data
        if not reply.startswith(code):
            sys.exit(f"{code!r} was expected, not {reply!r}")

    def ask(self, command: bytes, code: bytes) -> None:
        """Send a command, and read its reply."""
        self.socket.sendall(command)
        self.expect(code)

    def send(self, data: bytes) -> float:
        """Send a message; give the seconds it took."""
        start = time.perf_counter()
        self.ask(b"MAIL FROM:<ann@example.com>\r\n", b"250")
        self.ask(b"RCPT TO:<bob@example.com>\r\n", b"250")
        self.ask(b"DATA\r\n", b"354")
        self.ask(data, b"250")
        return time.perf_counter() - start

    def close(self) -> None:
        """End the server."""
        if hasattr(self, "socket"):
            self.socket.close()
        self.server.kill()
        self.server.wait()
        if self.server.stdout is not None:
            self.server.stdout.close()


def size(text: str) -> int:
    """Read a number of MiB as octets."""
    return int(float(text) * MIB)


def measure(names: List[str], octets: int, rounds: int) -> Dict[str, List[float]]:
    """Give the seconds of each round, by server."""
    data = LINES * max(1, round(octets / len(LINES))) + b".\r\n"
    clients: Dict[str, Client] = {}
    seconds: Dict[str, List[float]] = {name: [] for name in names}
    try:
        for name in names:
            clients[name] = Client(name, max(octets * 2, MIB))
        for turn in range(rounds + 1):
            for name in names:
                took = clients[name].send(data)
                if turn:  # the first warms up
                    seconds[name].append(took)
    finally:
        for client in clients.values():
            client.close()
    return seconds


def options() -> Any:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=15, help="messages to each server (default: 15)")
    add("--size", type=size, default=10 * MIB, help="of a message, in MiB (default: 10)")
    add("--at-least", type=float, metavar="RATIO", help="exit with 1 if not so much faster")
    add("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    add("--limit", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, and print."""
    arguments = options()
    if arguments.serve:
        try:
            SERVERS[arguments.serve](arguments.limit)
        except KeyboardInterrupt:
            pass
        return
    names = list(SERVERS)
    if importlib.util.find_spec("aiosmtpd") is None:
        names.remove("aiosmtpd")
    seconds = measure(names, arguments.size, arguments.rounds)
    print(f"{arguments.rounds} messages of {arguments.size / MIB:g} MiB to each, medians:")
    ours = seconds["smtpd_sync"]
    for name in names:
        median = statistics.median(seconds[name])
        rate = arguments.size / 1e6 / median
        print(f"{name:11}{median * 1000:9.1f} ms {rate:7.0f} MB/s")
    for name in names[1:]:
        ratio = statistics.median(theirs / mine for theirs, mine in zip(seconds[name], ours))
        target = f" (target: at least {TARGET:g})" if name == "aiosmtpd" else ""
        print(f"ratio to {name}: {ratio:.2f}{target}")
        if name == "aiosmtpd" and arguments.at_least is not None and ratio < arguments.at_least:
            sys.exit(f"less than {arguments.at_least:g} times as fast as {name}")
    if "aiosmtpd" not in names:
        print(f"aiosmtpd is not installed; to compare: {sys.executable} -m pip install aiosmtpd")


if __name__ == "__main__":
    main()
