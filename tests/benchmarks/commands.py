#!/usr/bin/env python3
"""What a pipelined command costs in the core: octets in, events, replies out, without a socket.

Groups of MAIL, RCPT, RCPT and RSET go through ``Session``, a chunk of many groups at a time. In the
same run, in turn, a bare loop cuts the same octets into lines and words and looks each word up in a
dict: the least that a line-oriented parser can do. Compare the ratio between machines, not the
microseconds.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import time
from typing import List

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from smtpd_sync import Limits, Reply, Session
from smtpd_sync.command import VERBS
from smtpd_sync.rules import rules
from smtpd_sync.session import NEED_DATA

TARGET = 6.0
GROUP = (
    b"MAIL FROM:<ann.example@client.example> SIZE=1024\r\n"
    b"RCPT TO:<bob@example.com>\r\n"
    b"RCPT TO:<carol.example+tag@example.org>\r\n"
    b"RSET\r\n"
)
COMMANDS = GROUP.count(b"\r\n")
GROUPS = 250  # in a chunk: about what one recv() gives

OK = Reply(250, "OK")


def ready_session() -> Session:
    """Give a session that has been greeted."""
    session = Session(rules(Limits(junk_commands=10**9)))
    session.next_event()
    session.reply(Reply(220, "mx.example"))
    session.receive_data(b"EHLO client.example\r\n")
    session.next_event()
    session.reply(OK)
    session.data_to_send()
    return session


def through_session(session: Session, chunk: bytes) -> float:
    """Give the seconds that a chunk of commands takes."""
    start = time.perf_counter()
    session.receive_data(chunk)
    while session.next_event() is not NEED_DATA:
        session.reply(OK)
    replies = session.data_to_send()
    seconds = time.perf_counter() - start
    assert replies.count(b"250 2.0.0 OK\r\n") == chunk.count(b"\r\n"), "a command was refused"
    return seconds


def through_bare_loop(chunk: bytes) -> float:
    """Give the seconds that find, partition and a dict take for the same octets."""
    verbs = {verb.encode(): verb for verb in VERBS}
    found: List[object] = []
    start = time.perf_counter()
    position = 0
    while True:
        end = chunk.find(b"\r\n", position)
        if end < 0:
            break
        word, _, argument = chunk[position:end].partition(b" ")
        found.append((verbs.get(word), argument))
        position = end + 2
    seconds = time.perf_counter() - start
    assert len(found) == chunk.count(b"\r\n")
    return seconds


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200, help="chunks to time (default: 200)")
    parser.add_argument(
        "--groups", type=int, default=GROUPS, help=f"groups in a chunk (default: {GROUPS})"
    )
    parser.add_argument(
        "--at-most", type=float, metavar="MICROSECONDS", help="exit with 1 if a command takes more"
    )
    arguments = parser.parse_args()
    chunk = GROUP * arguments.groups
    commands = COMMANDS * arguments.groups
    session = ready_session()
    ours: List[float] = []
    bare: List[float] = []
    for _ in range(arguments.rounds):
        ours.append(through_session(session, chunk) / commands * 1e6)
        bare.append(through_bare_loop(chunk) / commands * 1e6)
    median, least = statistics.median(ours), statistics.median(bare)
    ratio = statistics.median(a / b for a, b in zip(ours, bare))
    print(f"{arguments.rounds} rounds of {commands} commands, medians:")
    print(f"Session    {median:7.2f} us a command (target: at most {TARGET:g})")
    print(f"bare loop  {least:7.2f} us a command")
    print(f"ratio      {ratio:7.1f}")
    if arguments.at_most is not None and median > arguments.at_most:
        sys.exit(f"more than {arguments.at_most:g} us a command")


if __name__ == "__main__":
    main()
