"""The server: where it listens, who gets a thread, what one client cannot do to another."""

import os
import socket
import threading

import pytest
from support import LOOPBACK, SOON, Client, Inbox, have_ipv6, until

import smtpd_sync
from smtpd_sync import Limits, SMTPHandler, SMTPServer

needs_ipv6 = pytest.mark.skipif(not have_ipv6(), reason="the machine has no IPv6")
needs_dual_stack = pytest.mark.skipif(
    not (have_ipv6() and socket.has_dualstack_ipv6()), reason="the machine has no dual stack"
)


# -- where it listens ------------------------------------------------------------------------


def test_socket_listens_when_the_constructor_returns(no_leaks):
    server = SMTPServer(LOOPBACK, deliver=smtpd_sync.discard)
    try:
        assert server.address == ("127.0.0.1", server.port)
        assert server.port > 0
        with Client(server):  # waits in the backlog
            pass
    finally:
        server.stop()


def test_start_gives_the_server_back(no_leaks):
    server = SMTPServer(LOOPBACK, deliver=smtpd_sync.discard)
    try:
        assert server.start() is server
    finally:
        server.stop()


def test_localhost_is_found_by_an_ipv4_client(serve, connect):
    server = serve(address=("localhost", 0))
    assert connect(server, host="127.0.0.1").reply().startswith("220 ")


@needs_ipv6
def test_ipv6(serve, connect):
    addresses = []
    server = serve(address=("::1", 0), validate_host=addresses.append)
    assert server.address == ("::1", server.port)
    assert connect(server).mail().startswith("250 ")
    assert addresses == ["::1"]


@needs_dual_stack
@pytest.mark.parametrize("host", ["::", ""])
def test_dual_stack_shows_ipv4_clients_as_ipv4(serve, connect, inbox, host):
    addresses = []
    server = serve(address=(host, 0), validate_host=addresses.append)
    assert connect(server, host="127.0.0.1").mail().startswith("250 ")
    assert connect(server, host="::1").mail().startswith("250 ")
    assert addresses == ["127.0.0.1", "::1"]
    first, second = (data for _, _, data in inbox.wait(2))
    assert b"([127.0.0.1])" in first
    assert b"([IPv6:::1])" in second


def test_every_ipv4_address(serve, connect):
    assert connect(serve(address=("0.0.0.0", 0)), host="127.0.0.1").hello()


def test_port_in_use_is_an_os_error(serve, no_leaks):
    server = serve()
    with pytest.raises(OSError, match="in use"):
        SMTPServer(server.address, deliver=smtpd_sync.discard)


def test_address_that_is_not_ours_is_an_os_error(no_leaks):
    with pytest.raises(OSError):  # noqa: PT011
        SMTPServer(("192.0.2.1", 0), deliver=smtpd_sync.discard)


def test_port_is_free_again_after_stop(serve, connect):
    server = serve()
    connect(server).hello()
    server.stop()
    again = serve(address=server.address)
    assert again.port == server.port
    assert connect(again).hello()


def test_two_servers_in_one_process(serve, connect):
    inboxes = Inbox(), Inbox()
    servers = [serve(deliver=each, hostname=f"mx{n}.example") for n, each in enumerate(inboxes)]
    for number, server in enumerate(servers):
        client = connect(server)
        assert client.hello(greeting=f"220 mx{number}.example ")
    servers[0].stop()
    assert connect(servers[1]).mail(b"one\r\n").startswith("250 ")
    assert not inboxes[0].messages
    assert b"one" in inboxes[1].data


# -- one handler, one thread -----------------------------------------------------------------


def test_every_connection_has_its_own_handler_and_thread(serve, connect):
    seen = []

    class Handler(SMTPHandler):
        def validate_helo(self, name):
            seen.append((self, threading.current_thread(), self.session.id))

        deliver = staticmethod(smtpd_sync.discard)

    server = serve(Handler)
    for _ in range(3):
        connect(server).hello()
    handlers, threads, ids = zip(*seen)
    assert len(set(map(id, handlers))) == len(set(threads)) == len(set(ids)) == 3


def test_hook_that_blocks_holds_only_its_own_session(serve, connect):
    release, held = threading.Event(), threading.Event()

    def validate_sender(mailbox):
        if mailbox.local == "slow":
            held.set()
            release.wait()

    server = serve(validate_sender=validate_sender)
    slow, quick = connect(server), connect(server)
    try:
        slow.hello()
        slow.send(b"MAIL FROM:<slow@x.example>\r\n")
        assert held.wait(SOON)
        assert quick.mail().startswith("250 ")
        assert connect(server).mail().startswith("250 ")
    finally:
        release.set()
    assert slow.reply().startswith("250 ")


def test_many_clients_at_once(serve, inbox):
    server = serve()
    start = threading.Barrier(20)
    replies = []

    def send(number):
        with Client(server) as client:
            start.wait()
            replies.append(client.mail(b"%d\r\n" % number)[:4])

    threads = [threading.Thread(target=send, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == ["250 "] * 20
    bodies = sorted(int(data.rsplit(b"\r\n", 2)[1]) for _, _, data in inbox.wait(20))
    assert bodies == list(range(20))


# -- connection limit ------------------------------------------------------------------------


def smtpd_threads(server):
    return len(server.crowd.threads)


def test_connections_beyond_the_limit_get_421_and_no_thread(serve, connect):
    server = serve(limits=Limits(connections=2))
    first, second = connect(server), connect(server)
    first.hello()
    second.hello()
    threads = threading.active_count()
    for _ in range(5):
        third = connect(server)
        assert third.reply().startswith("421 ")
        assert third.ended()
    assert threading.active_count() == threads
    assert first.ask("NOOP").startswith("250 ")
    first.ask("QUIT")
    assert first.ended()
    first.close()
    until(lambda: smtpd_threads(server) < 2, "the end of a session")
    assert connect(server).mail().startswith("250 ")


def test_limit_is_cut_to_half_of_the_descriptors(serve, caplog):
    resource = pytest.importorskip("resource")
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        pytest.skip("descriptors are not limited here")
    server = serve(limits=Limits(connections=allowed))
    assert server.limits.connections == allowed // 2
    assert "RLIMIT_NOFILE" in caplog.text


def test_request_that_verify_request_refuses_is_closed(serve, connect):
    class Choosy(SMTPServer):
        def verify_request(self, request, client_address):
            return False

    assert connect(serve(server=Choosy)).gone() == b""


# -- life ------------------------------------------------------------------------------------


def test_serve_forever_twice_is_a_runtime_error(serve):
    server = serve()
    with pytest.raises(RuntimeError):
        server.serve_forever()
    with pytest.raises(RuntimeError):
        server.start()
    server.stop()
    with pytest.raises(RuntimeError):
        server.serve_forever()
    with pytest.raises(RuntimeError):
        server.start()


def test_names_of_socketserver_work(serve, connect):
    server = serve()
    client = connect(server)
    client.hello()
    server.shutdown()
    assert client.reply().startswith("421 ")
    server.server_close()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the system has no /proc")
def test_constructor_that_fails_leaves_no_descriptor(no_leaks):
    with pytest.raises(ValueError, match="deliver"):
        SMTPServer(LOOPBACK)
    with pytest.raises(OSError):  # noqa: PT011
        SMTPServer(("192.0.2.1", 0), deliver=smtpd_sync.discard)


# -- configure -------------------------------------------------------------------------------


def test_configure_while_running_applies_to_new_connections(serve, connect):
    server = serve(validate_sender=lambda mailbox: None)
    old = connect(server)
    old.hello()
    server.configure(
        banner="renewed", limits=Limits(message_size=1234), validate_sender=lambda mailbox: False
    )
    new = connect(server)
    assert new.reply() == "220 mx.example renewed"
    assert "250-SIZE 1234" in new.ask("EHLO client.example")
    assert new.ask("MAIL FROM:<a@x.example>").startswith("550 ")
    assert "SIZE 33554432" in old.ask("EHLO client.example")
    assert old.ask("MAIL FROM:<a@x.example>").startswith("250 ")


@pytest.mark.parametrize(
    ("option", "value"),
    [("hostname", "new.example"), ("trace", False), ("local_domains", ["y.example"])],
)
def test_configure_changes_nothing_for_a_session_in_course(serve, connect, inbox, option, value):
    server = serve(validate_recipient=lambda mailbox: mailbox.local != "postmaster")
    client = connect(server)
    client.hello()
    server.configure(**{option: value})
    assert client.ask("EHLO client.example").startswith("250-mx.example\n")
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask("RCPT TO:<postmaster@y.example>").startswith("550 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    assert client.ask("DATA").startswith("354 ")
    client.send(b"x\r\n.\r\n")
    assert client.reply().startswith("250 ")
    assert b"by mx.example with" in inbox.data


def test_configure_that_fails_changes_nothing(serve, connect):
    server = serve(banner="old")
    with pytest.raises(ValueError, match="bare_newline"):
        server.configure(banner="new", bare_newline="ignore")
    with pytest.raises(ValueError, match="nonsense"):
        server.configure(banner="new", nonsense=1)
    with pytest.raises(ValueError, match="deliver"):
        server.configure(banner="new", deliver=None)
    assert connect(server).reply() == "220 mx.example old"


def test_configure_keeps_what_it_is_not_told(serve, connect):
    server = serve(banner="old", local_domains=["y.example"])
    server.configure(trace=False)
    server.configure(validate_helo=lambda name: False)
    assert (server.banner, server.trace, server.local_domains) == ("old", False, ("y.example",))
    assert connect(server).hello().startswith("550 ")
