"""A client over a real socket, that behaves or does not."""

import socket
import ssl
import struct
import time

from .reference import parse_replies

DEADLINE = 20.0
"""Seconds after which a wait has failed."""
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close() sends RST
FLOOD = 200_000


def context():
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    return made


CONTEXT = context()


class Client:
    """Counts the replies that it is to get, and waits for them."""

    def __init__(self, port, inside, register=None):
        self.socket = socket.socket()
        self.socket.settimeout(DEADLINE)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        if register is not None:
            register.add(self.port)
        self.said = b""
        self._wanted = 0
        try:
            self.socket.connect(("127.0.0.1", port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if inside:
                self.start_tls()
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def start_tls(self):
        self.socket = CONTEXT.wrap_socket(self.socket)

    def expect(self, replies):
        """Count replies that are to come."""
        self._wanted += len(parse_replies(replies)[0])

    def catch_up(self):
        """Wait for all replies that are to come."""
        while len(parse_replies(self.said)[0]) < self._wanted:
            octets = self.socket.recv(65536)
            if not octets:
                raise EOFError(f"closed after {self.said!r}")
            self.said += octets

    def send(self, octets, chance):
        """Send in pieces."""
        start = 0
        while start < len(octets):
            end = start + chance.choice((1, 3, 8, 80, 1000))
            self.socket.sendall(octets[start:end])
            start = end

    def ask(self, line):
        """Send a line and wait for its reply; give the code."""
        self.socket.sendall(line)
        self._wanted += 1
        self.catch_up()
        return parse_replies(self.said)[0][-1].code

    def finish(self):
        """End the connection in order; give what else is said."""
        if isinstance(self.socket, ssl.SSLSocket):
            return b""
        more = b""
        try:
            self.socket.shutdown(socket.SHUT_WR)
            while True:
                octets = self.socket.recv(65536)
                if not octets:
                    return more
                more += octets
        except OSError:
            return more  # it was over

    # -- how not to behave -------------------------------------------------------------------

    def misbehave(self, chance, octets):
        """Say a part, in some bad manner, and go."""
        part = octets[: chance.randrange(len(octets) + 1)]
        chance.choice(MANNERS)(self, chance, part)
        chance.choice(ENDS)(self, chance)

    def _talk(self, chance, octets):
        self.send(octets, chance)

    def _trickle(self, chance, octets):
        for at in range(min(len(octets), 40)):
            self.socket.sendall(octets[at : at + 1])
            time.sleep(0.0005)

    def _flood(self, chance, octets):
        """Never read, and ask as long as the server listens."""
        self.socket.settimeout(0.05)
        sent = 0
        while sent < FLOOD:
            self.socket.sendall(b"EHLO x\r\nHELP\r\n" * 100)
            sent += 1400

    def _garble(self, chance, octets):
        """Break TLS: a record that is none, or an alert out of nowhere."""
        plain = self.socket
        if isinstance(plain, ssl.SSLSocket):
            plain = socket.socket(fileno=plain.detach())
            self.socket = plain
        plain.sendall(
            chance.choice((b"\x16\x03\x01\x00\x05hello", b"\x15\x03\x03\x00\x02\x02\x00"))
        )
        plain.sendall(octets)

    def _close(self, chance):
        self.socket.close()

    def _half_close(self, chance):
        self.socket.shutdown(socket.SHUT_WR)
        while self.socket.recv(65536):
            pass

    def _half_close_and_go(self, chance):
        self.socket.shutdown(socket.SHUT_RDWR)

    def _reset(self, chance):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.socket.close()


MANNERS = (Client._talk, Client._talk, Client._trickle, Client._flood, Client._garble)
ENDS = (Client._close, Client._half_close, Client._half_close_and_go, Client._reset)
