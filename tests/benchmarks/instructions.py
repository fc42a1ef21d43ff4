#!/usr/bin/env python3
"""What a message costs in executed bytecode instructions: a figure that knows no noise.

A fake socket hands the client's octets to the server's handler, in this thread: handler, core and
hook, without the kernel. Instructions are counted by tracing, for each minor version of Python, and
compared with baseline.json. What C code does (find, split, re) is one instruction, however long it
takes: the microseconds beside it, least of all rounds and not judged, tell of that.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import socket
import sys
import time
from types import FrameType
from typing import Any, Dict, Iterator, List, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from smtpd_sync import SMTPServer, discard

BASELINE = pathlib.Path(__file__).with_name("baseline.json")
TOLERANCE = 0.10
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
MANY = 20  # messages that a long session has more than a short one

EHLO, QUIT = b"EHLO client.example\r\n", b"QUIT\r\n"
MAIL, RCPT = b"MAIL FROM:<ann@client.example>\r\n", b"RCPT TO:<bob@mx.example>\r\n"
BODY = b"Subject: load\r\n\r\n" + (b"x" * 74 + b"\r\n") * 13 + b".\r\n"
LOCK_STEP = (MAIL, RCPT, b"DATA\r\n", BODY)
PIPELINED = (MAIL + RCPT + b"DATA\r\n", BODY)


class FakeSocket(socket.socket):
    """Has the octets of a whole session, and keeps what it is told; nothing is connected."""

    def __init__(self, messages: Sequence[bytes], count: int) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        # The first recv() is for a client that talks before the greeting, which this one does not.
        self._pieces: Iterator[bytes] = iter([b"", EHLO, *messages * count, QUIT])
        self.replies: List[bytes] = []

    def recv(self, size: int, flags: int = 0) -> bytes:
        return next(self._pieces, b"")

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.replies.append(data)

    def settimeout(self, value: object) -> None:
        pass

    shutdown = settimeout


def session(server: SMTPServer, messages: Sequence[bytes], count: int) -> FakeSocket:
    """Have a session; give the socket."""
    with FakeSocket(messages, count) as fake:
        server.finish_request(fake, ("127.0.0.1", 50_000))
    return fake


def expect(fake: FakeSocket, count: int) -> None:
    """See that every message was taken: an error would be cheap."""
    replies = b"".join(fake.replies)
    taken = replies.count(b"354 "), replies.count(b"\r\n250 2.0.0 "), replies.count(b"221 ")
    if taken != (count, count, 1):
        sys.exit(f"instructions.py: the session went wrong: {taken} in {replies!r}")


class Counter:
    """A trace function that counts instructions."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> Counter:
        if event == "call":
            frame.f_trace_lines = False
            frame.f_trace_opcodes = True
        elif event == "opcode":
            self.count += 1
        return self


def instructions(server: SMTPServer, messages: Sequence[bytes], count: int) -> int:
    """Count the instructions of a session; the least of some, since caches expire."""
    counts = []
    for turn in range(4):
        counter = Counter()
        before = sys.gettrace()
        sys.settrace(counter)
        try:
            fake = session(server, messages, count)
        finally:
            sys.settrace(before)
        expect(fake, count)
        if turn:  # in the first, Python 3.12 and later still miss some
            counts.append(counter.count)
    return min(counts)


def seconds(server: SMTPServer, messages: Sequence[bytes], count: int, rounds: int) -> float:
    """Give the seconds of a session, least of all rounds."""
    least = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        session(server, messages, count)
        least = min(least, time.perf_counter() - start)
    return least


def of_each(one: float, many: float) -> float:
    """Give what a message costs, from a session of one and a session of `MANY` more."""
    return (many - one) / MANY


def count_all(server: SMTPServer) -> Dict[str, int]:
    """Give the instructions of each case."""
    one = instructions(server, LOCK_STEP, 1)
    many = instructions(server, LOCK_STEP, 1 + MANY)
    group = instructions(server, PIPELINED, 1)
    groups = instructions(server, PIPELINED, 1 + MANY)
    return {
        "session of one message": one,
        "message of a long session": round(of_each(one, many)),
        "pipelined message": round(of_each(group, groups)),
    }


def time_all(server: SMTPServer, rounds: int) -> Dict[str, float]:
    """Give the microseconds of each case."""
    one = seconds(server, LOCK_STEP, 1, rounds)
    many = seconds(server, LOCK_STEP, 1 + MANY, rounds)
    group = seconds(server, PIPELINED, 1, rounds)
    groups = seconds(server, PIPELINED, 1 + MANY, rounds)
    return {
        "session of one message": one * 1e6,
        "message of a long session": of_each(one, many) * 1e6,
        "pipelined message": of_each(group, groups) * 1e6,
    }


def too_many(counts: Dict[str, int], baseline: Dict[str, int]) -> List[str]:
    """Give the cases that need over a tenth more than they did."""
    return [case for case in counts if counts[case] > baseline[case] * (1 + TOLERANCE)]


def main() -> int:
    """Count, and compare; give the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="exit status: 0, or 1 where a figure is over 10 % above its baseline",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--update", action="store_true", help=f"store the figures as those of Python {VERSION}")
    add("--rounds", type=int, default=200, help="sessions to time (default: 200)")
    add("--baseline", type=pathlib.Path, default=BASELINE, help="(default: that of the project)")
    options = parser.parse_args()
    server = SMTPServer(("127.0.0.1", 0), hostname="mx.example", deliver=discard)
    try:
        times = time_all(server, max(1, options.rounds))  # first: it warms up, too
        counts = count_all(server)
    finally:
        server.stop()
    every: Dict[str, Dict[str, int]] = {}
    if options.baseline.exists():
        every = json.loads(options.baseline.read_text(encoding="utf-8"))
    baseline = every.get(VERSION, {})
    print(f"Python {VERSION:22}instructions    baseline             us")
    for case, count in counts.items():
        compared = f"{baseline[case]:7} {count / baseline[case] - 1:+6.1%}" if baseline else "-"
        print(f"{case:30}{count:11}{compared:>16}{times[case]:11.1f}")
    if options.update:
        every[VERSION] = counts
        ordered = dict(sorted(every.items(), key=lambda item: int(item[0].split(".")[1])))
        options.baseline.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
        return 0
    if not baseline:
        print(f"no baseline for Python {VERSION}: --update stores one")
        return 0
    missed = too_many(counts, baseline)
    if missed:
        percent = round(TOLERANCE * 100)
        print(f"instructions.py: over {percent} % more: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
