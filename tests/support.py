"""What the tests of the blocking side share: a line client, an inbox, a program under test."""

import contextlib
import os
import pathlib
import queue
import re
import socket
import ssl
import subprocess
import sys
import threading
import time

from smtpd_sync import SMTPServer

DEADLINE = 20.0
"""Seconds after which a wait has failed. No test takes that long unless something is broken."""
SOON = 5.0
"""Seconds within which something that should be quick has happened, on a slow machine too."""
ROOT = pathlib.Path(__file__).resolve().parent.parent
LOOPBACK = ("127.0.0.1", 0)


def until(condition, what="condition", seconds=DEADLINE):
    """Wait for ``condition()`` to be true; give what it gives."""
    give_up = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < give_up, f"{what} did not come true in {seconds} s"
        time.sleep(0.002)


def have_ipv6():
    if not socket.has_ipv6:
        return False
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def descriptors():
    """What the process has open; empty where the system does not tell."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


class Inbox:
    """A deliver hook that keeps what it gets."""

    def __init__(self):
        self.messages = []
        self._news = threading.Condition()

    def __call__(self, sender, recipients, data):
        with self._news:
            self.messages.append((sender, recipients, data))
            self._news.notify_all()

    def wait(self, count=1):
        with self._news:
            assert self._news.wait_for(lambda: len(self.messages) >= count, DEADLINE), (
                f"{len(self.messages)} of {count} messages arrived"
            )
        return self.messages

    @property
    def data(self):
        """Octets of the only message."""
        ((_, _, data),) = self.wait()
        return data


class Client:
    """Speaks lines over a raw socket, and says nothing by itself."""

    def __init__(self, server, host=None, timeout=DEADLINE, receive_buffer=None):
        if isinstance(server, SMTPServer):
            server = (host or server.address[0], server.port)
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(server)
        except OSError:
            self.socket.close()
            raise
        self._buffer = b""

    def send(self, data):
        self.socket.sendall(data)

    def reply(self):
        """Read one reply; its lines, split by LF. ``""`` at the end of the connection."""
        lines = []
        while True:
            line = self.line()
            if not line:
                return ""
            lines.append(line)
            assert re.match(r"[2-5][0-9][0-9][ -]", line), line
            if line[3] == " ":
                return "\n".join(lines)

    def line(self):
        while b"\r\n" not in self._buffer:
            data = self.socket.recv(65536)
            if not data:
                assert not self._buffer, f"cut in the middle of a line: {self._buffer!r}"
                return ""
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line.decode("ascii")

    def ask(self, line):
        """Send a command and read its reply."""
        self.send(line.encode() + b"\r\n")
        return self.reply()

    def hello(self, greeting="220"):
        """Read the greeting, and say EHLO; give the reply."""
        assert self.reply().startswith(greeting)
        return self.ask("EHLO client.example")

    def to_data(self, sender="a@x.example", recipients=("b@y.example",)):
        """Go up to the 354."""
        self.hello()
        assert self.ask(f"MAIL FROM:<{sender}>").startswith("250 2.1.0 ")
        for recipient in recipients:
            assert self.ask(f"RCPT TO:<{recipient}>").startswith("250 2.1.5 ")
        assert self.ask("DATA").startswith("354 ")

    def mail(self, data=b"Subject: hi\r\n\r\nhello\r\n", **envelope):
        """Send a whole message; give the reply to its end."""
        self.to_data(**envelope)
        self.send(data + b".\r\n")
        return self.reply()

    def starttls(self, certificate, context=None):
        assert self.ask("STARTTLS").startswith("220 2.0.0 ")
        self.secure(certificate, context)

    def secure(self, certificate, context=None):
        context = context or trusting(certificate)
        self.socket = context.wrap_socket(
            self.socket, server_hostname="localhost", suppress_ragged_eofs=False
        )

    def rest(self):
        """Read to the orderly end of the connection; give the octets."""
        data, self._buffer = self._buffer, b""
        while True:
            more = self.socket.recv(65536)
            if not more:
                return data
            data += more

    def ended(self):
        """Whether the server has closed and said nothing more."""
        return self.rest() == b""

    def gone(self):
        """Wait until the connection is over, by a reset too; give what was still to read."""
        data = b""
        try:
            while True:
                more = self.socket.recv(65536)
                if not more:
                    return data
                data += more
        except (ConnectionError, ssl.SSLError):
            return data

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def trusting(certificate):
    """Make a client's context that trusts ``certificate`` and nothing else."""
    return ssl.create_default_context(cafile=certificate[0])


class Program:
    """A Python program as a subprocess, with its output as it comes."""

    def __init__(self, *arguments, cwd=None):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop("PYTHONUNBUFFERED", None)  # it would hide a missing flush
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment,
        )
        self.lines = queue.Queue()
        self._read = []
        self._errors = []
        self._readers = [
            threading.Thread(target=self._read_lines, name="reader"),
            threading.Thread(target=self._read_errors, name="reader"),
        ]
        for reader in self._readers:
            reader.start()

    def _read_lines(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def _read_errors(self):
        self._errors.append(self.process.stderr.read())

    def line(self):
        """Give the next line that it prints, without its end; ``None`` when it prints no more."""
        line = self.lines.get(timeout=DEADLINE)
        if line is None:
            self.lines.put(None)
            return None
        self._read.append(line)
        return line.decode().rstrip("\r\n")

    def port(self):
        """Read the line that says where it listens; give the port."""
        line = self.line()
        if line is None:
            self.finish()
            raise AssertionError(f"it never listened: {self.errors}")
        match = re.fullmatch(r"listening on (?:127\.0\.0\.1|\[::1\]):([0-9]+)", line)
        assert match, line
        return int(match[1])

    def signal(self, number):
        self.process.send_signal(number)

    def finish(self, seconds=DEADLINE):
        """Wait for the end; give the status."""
        status = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(DEADLINE)
        return status

    @property
    def errors(self):
        """What it wrote on stderr; read after `finish`."""
        return b"".join(self._errors).decode(errors="replace")

    def remaining(self):
        """Give the octets it printed since the last `line`; read after `finish`."""
        lines = []
        while True:
            line = self.lines.get(timeout=DEADLINE)
            if line is None:
                return b"".join(lines)
            lines.append(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join(DEADLINE)
        self.process.stdout.close()
        self.process.stderr.close()


def make_certificate(directory):
    """Make a throw-away certificate for localhost with the openssl command: (cert, key)."""
    cert, key = str(directory / "cert.pem"), str(directory / "key.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    subprocess.run(
        [
            *command.split(),
            *("-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:0:0:0:0:0:0:0:1"),
            *("-keyout", key, "-out", cert),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key
