"""Replies that are sent without letting the GIL go: whole, whatever the kernel takes of them."""

import os
import socket
import sys

import pytest
from support import until

from smtpd_sync import SMTPHandler, SMTPServer, discard
from smtpd_sync.sending import FLAGS, send_at_once

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux alone")


@linux
def test_octets_are_sent():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert send_at_once()(ours.fileno(), b"250 OK\0\r\n", 9, FLAGS) == 9
        assert theirs.recv(100) == b"250 OK\0\r\n"


@linux
def test_nobody_waits_for_room():
    send = send_at_once()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        octets = bytes(1 << 20)
        sent = send(ours.fileno(), octets, len(octets), FLAGS)
        assert 0 < sent < len(octets)
        while sent > 0:
            sent = send(ours.fileno(), octets, len(octets), FLAGS)
        assert sent == -1


@linux
def test_lost_connection_is_no_signal():
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        assert send_at_once()(ours.fileno(), b"250 OK\r\n", 8, FLAGS) == -1


@pytest.mark.parametrize("taken", [-1, 0, 1, 7])
def test_rest_of_a_reply_follows(serve, connect, taken):
    server = serve()

    def send(descriptor, octets, count, flags):
        return os.write(descriptor, octets[:taken]) if taken > 0 else taken

    server.send_at_once = send
    client = connect(server)
    assert client.mail().startswith("250 2.0.0 OK ")
    assert client.ask("HELP").startswith("214-2.0.0 Commands: ")
    assert client.ask("QUIT") == "221 2.0.0 Bye"


def test_socket_that_a_hook_closed_is_not_taken_for_another(serve, connect):
    class Handler(SMTPHandler):
        deliver = staticmethod(discard)

        def verify(self, text):
            self.number = self.request.fileno()
            self.request.close()
            self.pair = socket.socketpair()  # which gets the lowest number that is free

        def session_ended(self, reason):
            ended.append(self)

    ended = []
    client = connect(serve(Handler))
    client.hello()
    client.send(b"VRFY b\r\n")
    (handler,) = until(lambda: ended)
    one, other = handler.pair
    assert handler.number == one.fileno()
    other.settimeout(0)
    with one, other, pytest.raises(BlockingIOError):
        other.recv(1)


def test_nothing_is_sent_in_the_clear_inside_tls(serve, connect, certificate):
    server = serve(tls=certificate)
    said = []

    def send(descriptor, octets, count, flags):
        said.append(octets)
        return -1

    server.send_at_once = send
    client = connect(server)
    client.hello()
    client.starttls(certificate)
    assert client.ask("EHLO client.example").startswith("250-")
    start = said.index(b"220 2.0.0 Ready to start TLS\r\n")
    records = said[start + 1 :]
    assert len(records) >= 2
    assert {octets[:2] for octets in records} <= {b"\x16\x03", b"\x17\x03"}  # RFC 8446 5.1


@linux
@pytest.mark.parametrize(("affinity", "there"), [(None, True), ("adaptive", False)])
def test_threads_on_one_core_do_without(affinity, there):
    with SMTPServer(("127.0.0.1", 0), deliver=discard, cpu_affinity=affinity) as server:
        assert (server.send_at_once is not None) is there
