#!/usr/bin/env python3
"""Stop a server under load, again and again, and count what became of each session and message.

Each round starts a server, brings many sessions to every state that a session can be in, in the
clear and inside TLS, and stops it: by ``stop()`` in this process, or by SIGTERM to the command
line. What must hold is checked from the client's side:

- the stop is over within its time, and where nobody holds it up, long before;
- who waits for nothing reads 421 4.3.2, encrypted where TLS is on;
- a message answered 250 was delivered, once; one answered 4yz or 5yz was not. Where the connection
  was lost behind the dot, either may be (RFC 1047): those are counted;
- who goes on with a transaction can end it; who does not is cut off, at the deadline;
- no thread, descriptor or temporary file is left; the process ends with status 0 and says nothing.

Rounds take turns: in a "held" round there are clients and deliveries that do not end by
themselves, in a "quick" round there are none.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import logging
import os
import pathlib
import random
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Dict, List, NamedTuple, Tuple

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

from support import (  # noqa: E402
    DEADLINE,
    LOOPBACK,
    Client,
    descriptors,
    make_certificate,
    trusting,
    until,
)

from smtpd_sync import Limits, SMTPHandler, SMTPServer  # noqa: E402
from smtpd_sync.server import FAREWELL  # noqa: E402

DIRECTORY = "SMTPD_SYNC_LOAD_DIRECTORY"
MODES = ("stop", "sigterm")
TIMEOUT = 4.0
SLACK = 3.0
"""Seconds that a busy machine may take for what should take none."""
FULL = 4096  # octets of a socket's buffer: a client that does not read is felt soon
STUCK = 1.0
"""Seconds in which nothing can be sent to a server that waits for us to read."""
SEGMENT = 65_536
ENOUGH = 400
"""Messages whose replies find no room in the buffers, about."""
TIMES = 4  # messages of a pipelined group
INSIDE = 1_000  # octets of the messages, about

# -- the server ------------------------------------------------------------------------------


class Handler(SMTPHandler):
    """Writes down what it delivers. How long that takes is told by the sender's name."""

    hostname = "mx.example"
    users = {"tim": "secret"}
    auth_require_tls = False
    limits = Limits(junk_commands=10**9)

    directory = pathlib.Path(os.environ.get(DIRECTORY, "."))
    release = threading.Event()
    """Ends the deliveries that never end."""
    timeout = float(os.environ.get("SMTPD_SYNC_LOAD_TIMEOUT", TIMEOUT))

    def setup(self) -> None:
        """Let a client that does not read be felt soon."""
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, FULL)
        # Not less than a segment of loopback: TCP itself would wait, and not the server.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SEGMENT)
        super().setup()

    def open_sink(self, envelope: Any) -> Any:
        """Keep mail data in a file, so that one left behind is seen."""
        if envelope.sender.local == "never":
            return super().open_sink(envelope)  # it outlives the server, as its delivery does
        return tempfile.NamedTemporaryFile(dir=self.directory / "spool")

    def deliver(self, sender: Any, recipients: Any, data: bytes) -> None:
        """Write the message's token down: when it comes, and when it is delivered."""
        token = data[data.index(b"Token: ") :].split()[1]
        self.note(b"entered", token)
        if sender.local in ("slow", "late", "never"):
            until(lambda: self.server.stopping, "stop")
        if sender.local == "slow":
            time.sleep(self.timeout / 8)
        elif sender.local == "late":  # behind the deadline, and before the end
            time.sleep(self.timeout + FAREWELL / 2)
        elif sender.local == "never":
            self.release.wait(DEADLINE)
        self.note(b"delivered", token)

    def note(self, what: bytes, token: bytes) -> None:
        """Append a line to the notes; one write, so that lines of threads do not mix."""
        with open(self.directory / "notes", "ab", buffering=0) as file:
            file.write(b"%s %s\n" % (what, token))


def noted(directory: pathlib.Path, what: str) -> Dict[str, int]:
    """Count the tokens that were noted."""
    lines = (directory / "notes").read_text().splitlines()
    return collections.Counter(token for word, token in map(str.split, lines) if word == what)


# -- the states ------------------------------------------------------------------------------


class State(NamedTuple):
    """What a client does before the stop, and what must become of it."""

    script: str
    """What it says; see `SCRIPTS`."""
    done: int
    """How many steps of it were done when the server is stopped."""
    tls: bool = False
    goes_on: bool = True
    """Whether it does the rest then."""
    sender: str = "quick"
    ends: str = "421"
    """What it must read at last: "421", or "cut" where the server has to cut it off."""
    holds: bool = False
    """Whether it is in held rounds only."""


IDLE = "idle"
MESSAGE = "message"
CHUNKS = "chunks"
LOGIN = "login"

STATES: Dict[str, State] = {
    "connected": State(IDLE, 0),
    "EHLO": State(IDLE, 1),
    "EHLO, TLS": State(IDLE, 1, tls=True),
    "AUTH": State(LOGIN, 2, goes_on=False),
    "AUTH, TLS": State(LOGIN, 2, tls=True, goes_on=False),
    "MAIL": State(MESSAGE, 2),
    "RCPT": State(MESSAGE, 3),
    "RCPT, TLS": State(MESSAGE, 3, tls=True),
    "in DATA": State(MESSAGE, 5),
    "in DATA, TLS": State(MESSAGE, 5, tls=True),
    "between chunks": State(CHUNKS, 4),
    "in a chunk": State(CHUNKS, 5),
    "in a chunk, TLS": State(CHUNKS, 5, tls=True),
    "MAIL, stays": State(MESSAGE, 2, goes_on=False, ends="cut", holds=True),
    "RCPT, stays": State(MESSAGE, 3, goes_on=False, ends="cut", holds=True),
    "in DATA, stays": State(MESSAGE, 5, goes_on=False, ends="cut", holds=True),
    "in DATA, TLS, stays": State(MESSAGE, 5, tls=True, goes_on=False, ends="cut", holds=True),
    "between chunks, stays": State(CHUNKS, 4, goes_on=False, ends="cut", holds=True),
    "in a chunk, stays": State(CHUNKS, 5, goes_on=False, ends="cut", holds=True),
    "delivery": State(MESSAGE, 6, sender="slow"),
    "delivery, TLS": State(MESSAGE, 6, tls=True, sender="slow"),
    "delivery, chunks": State(CHUNKS, 6, sender="slow"),
    "delivery, late": State(MESSAGE, 6, sender="late", ends="cut", holds=True),
    "delivery, never ends": State(MESSAGE, 6, sender="never", ends="cut", holds=True),
    "handshake": State("handshake", 0, tls=True),
    "handshake, stays": State("handshake", 0, tls=True, goes_on=False, ends="cut"),
    "active, DATA": State("active_data", 0),
    "active, BDAT": State("active_bdat", 0),
    "active, DATA, TLS": State("active_data", 0, tls=True),
    "active, BDAT, TLS": State("active_bdat", 0, tls=True),
    "reads again": State("deaf", 0),
    "never reads": State("deaf", 0, goes_on=False, ends="cut", holds=True),
}


def body(token: str, rng: random.Random) -> bytes:
    """Make a message, with dots at the start of lines."""
    lines = [b".dot" + b"x" * rng.randrange(70) for _ in range(rng.randrange(1, INSIDE // 20))]
    return b"\r\n".join([b"Token: %s" % token.encode(), b"", *lines, b""])


def stuffed(content: bytes) -> bytes:
    """Add what DATA needs (RFC 5321 4.5.2)."""
    return b"\r\n".join(content.split(b"\r\n")).replace(b"\r\n.", b"\r\n..") + b".\r\n"


EHLO = (b"EHLO client.example\r\n", "250")

Step = Tuple[bytes, str]
"""What to send, and how its reply begins; "" where there is none."""


def idle(token: str, sender: str, rng: random.Random) -> List[Step]:
    """EHLO, and no more."""
    return [EHLO]


def login(token: str, sender: str, rng: random.Random) -> List[Step]:
    """Begin an AUTH exchange, and do not end it."""
    return [EHLO, (b"AUTH LOGIN\r\n", "334"), (base64.b64encode(b"tim") + b"\r\n", "334")]


def envelope(sender: str) -> List[Step]:
    """EHLO, MAIL, RCPT."""
    return [
        EHLO,
        (b"MAIL FROM:<%s@x.example>\r\n" % sender.encode(), "250"),
        (b"RCPT TO:<b@y.example>\r\n", "250"),
    ]


def message(token: str, sender: str, rng: random.Random) -> List[Step]:
    """Send a message by DATA, in two pieces; steps 5 and 6 are its head and its end."""
    octets = stuffed(body(token, rng))
    cut = rng.randrange(1, len(octets) - 1)
    return [
        *envelope(sender),
        (b"DATA\r\n", "354"),
        (octets[:cut], ""),
        (octets[cut:], "250"),
    ]


def chunks(token: str, sender: str, rng: random.Random) -> List[Step]:
    """Send a message by two chunks (RFC 3030), the second in two pieces."""
    octets = body(token, rng)
    cut, again = sorted(rng.sample(range(1, len(octets)), 2))
    return [
        *envelope(sender),
        (b"BDAT %d\r\n" % cut + octets[:cut], "250"),
        (b"BDAT %d LAST\r\n" % (len(octets) - cut) + octets[cut:again], ""),
        (octets[again:], "250"),
    ]


SCRIPTS = {IDLE: idle, MESSAGE: message, CHUNKS: chunks, LOGIN: login}


# -- the clients -----------------------------------------------------------------------------


class Guest(threading.Thread):
    """One client. Afterwards ``verdicts`` and ``ending`` tell what it was told."""

    def __init__(self, round_: Round, number: int, state: str, seed: int) -> None:
        super().__init__(name=f"guest {number}: {state}", daemon=True)
        self.round, self.number, self.state_name = round_, number, state
        self.state = STATES[state]
        self.rng = random.Random(seed)
        self.tokens = 0
        self.verdicts: Dict[str, str] = {}
        """Of each message whose end was sent: the first digit of its reply, or "lost"."""
        self.ending = ""
        """How the connection ended: "421", or "cut" without it."""
        self.ended_at = 0.0
        self.error = ""
        self.client: Any = None

    def run(self) -> None:
        """Come to the state, wait for the stop, and do what is left."""
        try:
            self._run()
        except BaseException as error:
            self.error = f"{type(error).__name__}: {error}"
        finally:
            self.round.arrived(self)
            if self.client is not None:
                self.client.close()

    def _run(self) -> None:
        small = FULL if self.state.script == "deaf" else None
        self.client = Client(self.round.address, receive_buffer=small)
        special = getattr(self, self.state.script, None)
        if self.state.done == 0 and special is None:
            until(self._greeted, "the greeting")
            self.round.arrived(self)
            assert self.client.reply().startswith("220 ")
        else:
            assert self.client.reply().startswith("220 ")
            if self.state.tls and self.state.script != "handshake":
                self._ask(*EHLO)
                self.client.starttls(None, self.round.context)
            if special is not None:
                special()
            else:
                self._tell_script()
        self._hear_the_end()

    def _greeted(self) -> bool:
        return bool(self.client.socket.recv(1, socket.MSG_PEEK))

    def _token(self) -> str:
        self.tokens += 1
        return f"t{self.round.number}.{self.number}.{self.tokens}"

    def _ask(self, octets: bytes, code: str) -> None:
        self.client.send(octets)
        if code:
            reply = self.client.reply()
            assert reply.startswith(code), f"{octets[:20]!r} was answered {reply!r}"

    def _tell_script(self) -> None:
        token = self._token()
        steps = SCRIPTS[self.state.script](token, self.state.sender, self.rng)
        done, last = self.state.done, len(steps) - 1
        mail = self.state.script in (MESSAGE, CHUNKS)
        for octets, code in steps[: min(done, last) if mail else done]:
            self._ask(octets, code)
        if mail and done > last:  # all was said, and the reply to the last step is to come
            octets, code = steps[last]
            self.client.send(octets)
            self.verdicts[token] = "lost"
            self.round.arrived(self)
            self._hear_verdict(token)
            return
        self.round.arrived(self)
        if mail and self.state.goes_on:
            self.round.wait_for_stop()
            time.sleep(self.rng.uniform(0, self.round.timeout / 4))
            for octets, code in steps[done:last]:
                self._ask(octets, code)
            self.verdicts[token] = "lost"
            self.client.send(steps[last][0])
            self._hear_verdict(token)

    def _hear_verdict(self, token: str) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            reply = self.client.reply()
            if reply:
                self.verdicts[token] = reply[0]
                if reply.startswith("421 "):
                    self._ended("421", reply)

    def _hear_the_end(self) -> None:
        """Read to the end of the connection, which must be 421 and no more, or a cut."""
        if self.ending:
            return
        try:
            reply = self.client.reply()
        except (ConnectionError, ssl.SSLError):
            reply = ""
        self._ended("421" if reply else "cut", reply)
        if reply:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                rest = self.client.rest()
                assert rest == b"", f"{rest!r} came behind 421"

    def _ended(self, ending: str, reply: str) -> None:
        self.ending, self.ended_at = ending, time.monotonic()
        if reply:
            assert reply.startswith("421 4.3.2 "), f"not 421 4.3.2 but {reply!r}"
            self.round.stop_seen.set()

    # -- states that are no script ---------------------------------------------------------

    def handshake(self) -> None:
        """Send a part of the ClientHello, and the rest of the handshake behind the stop."""
        self._ask(*EHLO)
        self._ask(b"STARTTLS\r\n", "220")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self.round.context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read()
        cut = self.rng.randrange(1, len(hello))
        self.client.send(hello[:cut])
        self.round.arrived(self)
        if not self.state.goes_on:
            return
        self.round.wait_for_stop()
        self.client.send(hello[cut:])
        text = b""
        with contextlib.suppress(ConnectionError):
            self._pump(tls.do_handshake, incoming, outgoing)
            while True:
                more = self._pump(lambda: tls.read(4096), incoming, outgoing)
                if not more:
                    break
                text += more
        self._ended("421" if text else "cut", text.decode())

    def _pump(self, call: Any, incoming: Any, outgoing: Any) -> Any:
        while True:
            try:
                result = call()
            except ssl.SSLWantReadError:
                self.client.send(outgoing.read())
                data = self.client.socket.recv(65536)
                if not data:
                    raise ConnectionError("cut") from None
                incoming.write(data)
            else:
                self.client.send(outgoing.read())
                return result

    def active_data(self) -> None:
        """Send messages for ever, each behind the other without waiting for its 250."""
        self.round.wait_for_others()
        head = b"MAIL FROM:<quick@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n"
        self._ask(*EHLO)
        self.client.send(head)
        self._replies(["250", "250", "354"])
        while True:
            token = self._token()
            self.verdicts[token] = "lost"
            if not self._group(stuffed(body(token, self.rng)) + head, [token, "", "", "354"]):
                return
            self.round.arrived(self)

    def active_bdat(self) -> None:
        """Send messages for ever, several in a group (RFC 2920)."""
        self.round.wait_for_others()
        self._ask(*EHLO)
        while True:
            tokens = [self._token() for _ in range(TIMES)]
            self.verdicts.update(dict.fromkeys(tokens, "lost"))
            octets = b"".join(map(self._by_bdat, tokens))
            if not self._group(octets, [each for token in tokens for each in ("", "", token)]):
                return
            self.round.arrived(self)

    def _by_bdat(self, token: str) -> bytes:
        content = body(token, self.rng)
        if self.state.script == "deaf":  # what the buffers hold is to have many replies
            content = content.partition(b"\r\n")[0] + b"\r\n"
        return b"MAIL FROM:<quick@x.example>\r\nRCPT TO:<b@y.example>\r\nBDAT %d LAST\r\n%s" % (
            len(content),
            content,
        )

    def _group(self, octets: bytes, expected: List[str]) -> bool:
        """Send a group and read its replies; ``False`` where the connection has ended."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            self.client.send(octets)
        try:
            return self._replies(expected)
        except (ConnectionError, ssl.SSLError):
            self._ended("cut", "")
            return False

    def _replies(self, expected: List[str]) -> bool:
        """Read replies; each is expected to be a code, "250", or the verdict on a token."""
        for at, each in enumerate(expected):
            reply = self.client.reply()
            if not reply:
                self._ended("cut", "")
                return False
            if reply.startswith("421 "):
                # It is the reply to all that has none yet: the client would send that again.
                for left in expected[at:]:
                    if left in self.verdicts:
                        self.verdicts[left] = "4"
                self._ended("421", reply)
                return False
            if each in self.verdicts:
                self.verdicts[each] = reply[0]
            else:
                assert reply.startswith(each or "250"), f"{each or 250} was due, not {reply!r}"
        return True

    def deaf(self) -> None:
        """Send messages and read no reply, until no more can be sent."""
        self._ask(*EHLO)
        sock = self.client.socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, FULL)
        sock.setblocking(False)
        expected: List[str] = []
        unsent = b""
        while True:
            if not unsent:
                tokens = [self._token() for _ in range(TIMES)]
                unsent = b"".join(map(self._by_bdat, tokens))
                self.verdicts.update(dict.fromkeys(tokens, "lost"))
                expected += [each for token in tokens for each in ("", "", token)]
            # With little sent it may be that the server is slow.
            patience = STUCK if self.tokens > ENOUGH else 4 * STUCK
            if not select.select([], [sock], [], patience)[1]:
                break
            unsent = unsent[sock.send(unsent) :]
        self.round.arrived(self)
        if self.state.goes_on:
            self.round.wait_for_stop()
        else:
            self.round.over.wait(DEADLINE)
        # With less room than a segment of loopback TCP would dawdle from here on.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * SEGMENT)
        sock.settimeout(DEADLINE)
        sender = None
        if self.state.goes_on:
            sender = threading.Thread(target=self._send_rest, args=(unsent,))
            sender.start()
        try:
            if self._replies(expected):
                return
        except (ConnectionError, AssertionError) as error:
            # A reply may be cut in the middle where the connection is.
            if isinstance(error, AssertionError) and "cut in the middle" not in str(error):
                raise
            self._ended("cut", "")
        finally:
            if sender is not None:
                sender.join()

    def _send_rest(self, octets: bytes) -> None:
        with contextlib.suppress(OSError):
            self.client.send(octets)


# -- the rounds ------------------------------------------------------------------------------


class Round:
    """One server, its sessions, and its end."""

    def __init__(self, number: int, options: Any, seed: int, held: bool, directory: Any) -> None:
        self.number, self.held, self.timeout = number, held, options.timeout
        # In a quick round the deadline is not to be seen.
        self.patience = self.timeout if held else self.timeout + 2 * SLACK
        self.mode, self.certificate = options.mode, options.certificate
        self.context = options.context
        self.directory = pathlib.Path(directory)
        self.stop_seen = threading.Event()
        self.over = threading.Event()
        self.calmed = threading.Event()
        self.problems: List[str] = []
        self.took = 0.0
        self._arrivals: Dict[Guest, bool] = {}
        rng = random.Random(seed)
        self._moment = rng.uniform(0, 0.3)
        names = [name for name, state in STATES.items() if held or not state.holds]
        chosen = [names[at % len(names)] for at in range(options.sessions)]
        rng.shuffle(chosen)
        self.guests = [Guest(self, *each, rng.getrandbits(32)) for each in enumerate(chosen)]
        self.calm = sum(not guest.state.script.startswith("active") for guest in self.guests)
        if not self.calm:
            self.calmed.set()

    def arrived(self, guest: Guest) -> None:
        """Note that a client is where it was sent."""
        self._arrivals[guest] = True
        if len(self._arrivals) >= self.calm:
            self.calmed.set()

    def wait_for_others(self) -> None:
        """Wait until all are where they were sent but those who keep the server busy."""
        assert self.calmed.wait(4 * DEADLINE), "the calm clients did not come so far"

    def wait_for_stop(self) -> None:
        """Wait until a client was told that the server stops."""
        assert self.stop_seen.wait(DEADLINE), "nobody was told 421"

    def problem(self, text: str) -> None:
        """Note what does not hold."""
        self.problems.append(f"round {self.number}: {text}")

    def run(self) -> Round:
        """Hold the round."""
        (self.directory / "spool").mkdir()
        (self.directory / "notes").touch()
        running = RUN[self.mode](self)
        try:
            self.address = running.address
            for guest in self.guests:
                guest.start()
            until(lambda: len(self._arrivals) == len(self.guests), "all clients", 4 * DEADLINE)
            busy = sum(guest.state.done == 6 for guest in self.guests)
            until(lambda: self._busy() == busy, "all deliveries")
            time.sleep(self._moment)  # so that it strikes anywhere
            self.began = time.monotonic()
            running.stop(self.patience)
            self.took = time.monotonic() - self.began
            self.over.set()
            for guest in self.guests:
                guest.join(DEADLINE)
        finally:
            self.over.set()
            self.stop_seen.set()
            running.end()
        self._judge()
        return self

    def _busy(self) -> int:
        entered = noted(self.directory, "entered")
        return sum(
            any(token in entered for token in guest.verdicts)
            for guest in self.guests
            if guest.state.done == 6
        )

    def _judge(self) -> None:
        allowed = self.timeout + FAREWELL + SLACK if self.held else self.patience
        if self.took > allowed:
            self.problem(f"the stop took {self.took:.2f} s, of {allowed} allowed")
        delivered = noted(self.directory, "delivered")
        known = {token for guest in self.guests for token in guest.verdicts}
        for token in set(delivered) - known:
            self.problem(f"{token} was delivered, and its end was never sent")
        for guest in self.guests:
            self._judge_guest(guest, delivered)
        left = os.listdir(self.directory / "spool")
        if left:
            self.problem(f"{len(left)} temporary files are left")

    def _judge_guest(self, guest: Guest, delivered: Dict[str, int]) -> None:
        if guest.error or guest.is_alive():
            self.problem(f"{guest.name}: {guest.error or 'it hangs'}")
            return
        state = guest.state
        if guest.ending != state.ends:
            self.problem(f"{guest.name}: {guest.ending or 'nothing'} and not {state.ends}")
        if state.holds and state.script != "deaf":
            after = guest.ended_at - self.began
            if after < self.timeout * 0.9:
                self.problem(f"{guest.name}: cut off {after:.2f} s after the stop")
        if state.script in (MESSAGE, CHUNKS):
            verdicts = list(guest.verdicts.values())
            due = ["2"] if state.ends == "421" else ["lost"] if state.done == 6 else []
            if verdicts != due:
                self.problem(f"{guest.name}: its verdicts are {verdicts} and not {due}")
        for token, verdict in guest.verdicts.items():
            times = delivered.get(token, 0)
            if times > 1:
                self.problem(f"{guest.name}: {token} was delivered {times} times")
            if verdict == "2" and times != 1:
                self.problem(f"{guest.name}: {token} was answered 250, and is not there")
            if verdict in "45" and times:
                self.problem(f"{guest.name}: {token} was answered {verdict}yz, and is there")

    def row_of(self, guest: Guest) -> Dict[str, int]:
        """Count what became of a client and its messages."""
        delivered = noted(self.directory, "delivered")
        row: Dict[str, int] = collections.Counter(sessions=1, messages=len(guest.verdicts))
        row[guest.ending] += 1
        for token, verdict in guest.verdicts.items():
            if verdict == "lost":
                verdict = "lost+" if token in delivered else "lost-"
            row[verdict] += 1
        return row


class Stop:
    """A server of this process, ended by ``stop()``."""

    def __init__(self, round_: Round) -> None:
        self.round = round_
        self.threads = set(threading.enumerate())
        self.opened = descriptors()
        self.release = threading.Event()
        settings = {
            "directory": round_.directory,
            "release": self.release,
            "timeout": round_.timeout,
        }
        handler = type("Handler", (Handler,), settings)
        self.server = SMTPServer(LOOPBACK, handler, tls=round_.certificate).start()
        self.address = self.server.address

    def stop(self, timeout: float) -> None:
        """Stop it."""
        self.server.stop(timeout)

    def end(self) -> None:
        """Check that nothing is left."""
        self.server.stop(0)
        self.release.set()
        try:
            until(lambda: not set(threading.enumerate()) - self.threads, "the end of all threads")
            until(lambda: descriptors() <= self.opened, "the close of all descriptors")
        except AssertionError as error:
            self.round.problem(str(error))


class Sigterm:
    """The command line, ended by SIGTERM; by a second one where its 10 s are too long."""

    PATIENCE = 10.0

    def __init__(self, round_: Round) -> None:
        self.round = round_
        certificate, key = round_.certificate
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "smtpd_sync", "127.0.0.1:0", "-q"),
                *("--handler", "stop:Handler", "--tls-cert", certificate, "--tls-key", key),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=HERE,
            env={
                **os.environ,
                "PYTHONPATH": str(HERE.parents[1]),
                DIRECTORY: str(round_.directory),
                "SMTPD_SYNC_LOAD_TIMEOUT": str(round_.timeout),
            },
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line.startswith("listening on "), line or self._errors()
        self.address = ("127.0.0.1", int(line.rpartition(":")[2]))

    def stop(self, timeout: float) -> None:
        """Stop it."""
        self.process.send_signal(signal.SIGTERM)
        if timeout < self.PATIENCE:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout)
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(self.PATIENCE + DEADLINE)

    def end(self) -> None:
        """Check how it ended."""
        if self.process.poll() is None:
            self.process.kill()
        status = self.process.wait()
        assert self.process.stdout is not None
        with self.process.stdout as output:
            said = output.read()
        for name, found, due in (
            ("status", status, 0),
            ("output", said, b""),
            ("stderr", self._errors(), ""),
        ):
            if found != due:
                self.round.problem(f"{name} is {found!r}")
        self.errors.close()

    def _errors(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")


RUN = {"stop": Stop, "sigterm": Sigterm}
KINDS = {"held": (True,), "quick": (False,), "both": (True, False)}

# -- the whole ---------------------------------------------------------------------------------

COLUMNS = {
    "sessions": "sessions",
    "421": "421",
    "cut": "cut",
    "messages": "messages",
    "2": "250",
    "4": "4yz",
    "5": "5yz",
    "lost+": "lost, there",
    "lost-": "lost, not",
}


class Report(NamedTuple):
    """What all rounds came to."""

    problems: List[str]
    rows: Dict[str, Dict[str, int]]
    took: Dict[bool, List[float]]
    slowest: float

    def table(self) -> str:
        """Write the counts, a line for each state."""
        lines = [f"{'state':<24}" + "".join(f"{name:>12}" for name in COLUMNS.values())]
        total: Dict[str, int] = collections.Counter()
        for name in STATES:
            row = self.rows.get(name)
            if row:
                total.update(row)
                lines.append(f"{name:<24}" + "".join(f"{row[key]:>12}" for key in COLUMNS))
        lines.append(f"{'all':<24}" + "".join(f"{total[key]:>12}" for key in COLUMNS))
        for held, times in self.took.items():
            if times:
                kind = "held" if held else "quick"
                lines.append(
                    f"{len(times)} {kind} rounds: the stop took {min(times):.2f} to "
                    f"{max(times):.2f} s"
                )
        lines.append(f"slowest 421 to an idle session: {self.slowest:.2f} s")
        return "\n".join(lines)


def load(options: Any, progress: Any = None) -> Report:
    """Hold all rounds. ``options`` are those of the command line, and ``certificate``."""
    options.context = trusting(options.certificate)
    rng = random.Random(options.seed)
    report = Report([], collections.defaultdict(collections.Counter), {True: [], False: []}, 0.0)
    kinds = KINDS[options.kind]
    for number in range(1, options.rounds + 1):
        held = kinds[(number - 1) % len(kinds)]
        with tempfile.TemporaryDirectory(prefix="smtpd_sync-") as directory:
            done = Round(number, options, rng.getrandbits(32), held, directory).run()
            for guest in done.guests:
                report.rows[guest.state_name].update(done.row_of(guest))
        idlers = [g.ended_at - done.began for g in done.guests if g.state.script == IDLE]
        report = report._replace(slowest=max([report.slowest, *idlers]))
        report.problems.extend(done.problems)
        report.took[held].append(done.took)
        if progress is not None:
            kind = "held" if held else "quick"
            print(
                f"round {number} of {options.rounds} ({options.mode}, {kind}): "
                f"{done.took:.2f} s, {len(done.problems)} problems",
                file=progress,
                flush=True,
            )
    return report


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    made = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = made.add_argument
    add("--mode", choices=MODES, default="stop", help="stop() here, or SIGTERM to a process")
    add("--rounds", type=int, default=20, metavar="N", help="servers to stop")
    add("--sessions", type=int, default=200, metavar="N", help="of each")
    add("--kind", choices=KINDS, default="both", help="which rounds: both in turns")
    add("--timeout", type=float, default=TIMEOUT, metavar="S", help="seconds a stop may take")
    add("--seed", type=int, default=None, help="of the random numbers; by default another one")
    return made


def main() -> int:
    """Hold all rounds, print the table; 1 if something does not hold."""
    options = parser().parse_args()
    logging.getLogger("smtpd_sync").setLevel(logging.ERROR)  # sessions are cut off, as they must
    if options.seed is None:
        options.seed = random.SystemRandom().getrandbits(32)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="smtpd_sync-") as directory:
        options.certificate = make_certificate(pathlib.Path(directory))
        report = load(options, sys.stderr)
    print(report.table())
    for problem in report.problems:
        print(problem)
    print(f"{len(report.problems)} problems")
    return int(bool(report.problems))


if __name__ == "__main__":
    sys.exit(main())
