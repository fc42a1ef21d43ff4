"""Many clients: how many may come, who waits for how long, and who is never cut."""

import contextlib
import itertools
import logging
import queue
import socket
import threading
import time

import pytest
from support import DEADLINE, SOON, Client, descriptors, trusting, until

from smtpd_sync import Limits, SMTPHandler
from smtpd_sync.crowd import Census, network_of, reaper_period
from smtpd_sync.listening import peer_of

QUICK = 0.25
LONG = 60.0
TOO_MANY = "421 Too many connections from your address"  # no status in a greeting (RFC 2034 4)
TOO_BUSY = "421 Too many connections, try again later"


def own_address():
    """Give an address of this machine that is not loopback; ``None`` if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            address = probe.getsockname()[0]
        except OSError:
            return None
    return None if address.startswith("127.") or address == "0.0.0.0" else address


@pytest.fixture(scope="module")
def own():
    address = own_address()
    if address is None:
        pytest.skip("the machine has no address but loopback, which has no cap")
    return address


def proxied(address):
    family = "TCP6" if ":" in address else "TCP4"
    there = "::1" if ":" in address else "198.51.100.1"
    return f"PROXY {family} {address} {there} 40000 25\r\n".encode()


# -- one client, and its count ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::2"),
        ("2001:db8::1", "2001:db8:0:0:ffff:ffff:ffff:ffff"),
        ("2001:db8:0:1::1", "2001:db8:0:1:2::"),
        ("fe80::1%eth0", "fe80::2%eth1"),
        ("fe80::1%1", "fe80::1"),
    ],
)
def test_addresses_of_one_client(one, other):
    assert network_of(one) == network_of(other) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("192.0.2.1", "192.0.2.2"),
        ("2001:db8::1", "2001:db8:0:1::1"),
        ("2001:db8:ffff::", "2001:db8:fffe::"),
        ("192.0.2.1", "2001:db8::1"),
        ("128.0.0.1", "1.127.0.1"),
        ("::2", "::1:0:0:0:1"),
    ],
)
def test_addresses_of_two_clients(one, other):
    assert network_of(one) != network_of(other)
    assert None not in (network_of(one), network_of(other))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.255.0.9", "::1", ""])
def test_own_machine_and_unix_sockets_are_not_counted(address):
    assert network_of(address) is None
    census = Census()
    assert all(census.enter(address, 1) for _ in range(5))
    census.leave(address)
    census.leave(address)
    assert census._counts == {}


@pytest.mark.parametrize(
    ("client_address", "network"),
    [
        (("::ffff:192.0.2.1", 5, 0, 0), network_of("192.0.2.1")),
        (("::ffff:127.0.0.1", 5, 0, 0), None),
        (("fe80::1%eth0", 5, 0, 2), network_of("fe80::1")),
        ("/run/socket", None),
        ("", None),
        (b"", None),
    ],
)
def test_client_at_any_listener(client_address, network):
    assert network_of(peer_of(client_address).address) == network


def test_census_counts_in_and_out():
    census = Census()
    assert [census.enter("192.0.2.1", 2) for _ in range(4)] == [True, True, False, False]
    assert census.enter("192.0.2.2", 2)
    census.leave("192.0.2.1")
    assert census.enter("192.0.2.1", 2)
    assert not census.enter("192.0.2.1", 2)
    for _ in range(2):
        census.leave("192.0.2.1")
    census.leave("192.0.2.2")
    assert census._counts == {}  # who has gone costs nothing


def test_census_without_a_cap_counts_all_the_same():
    census = Census()
    assert all(census.enter("192.0.2.1", None) for _ in range(100))
    assert not census.enter("192.0.2.1", 100)


def test_census_of_many_threads():
    census, got_in = Census(), []

    def work():
        for n in range(300):
            address = f"2001:db8:0:{n % 3}::{n}"
            if census.enter(address, 4):
                got_in.append(max(census._counts.values()))
                census.leave(address)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert 1 <= max(got_in) <= 4
    assert census._counts == {}


def test_reaper_looks_often_enough():
    assert reaper_period(Limits()) == 0.5
    for name in ("command_timeout", "handshake_timeout", "stress_timeout", "session_time"):
        assert reaper_period(Limits(**{name: 0.4})) == pytest.approx(0.1)


# -- caps ------------------------------------------------------------------------------------


def gets_in(client):
    return client.reply().startswith("220 ")


def is_turned_away(client, words):
    assert client.line() == words
    return client.gone() == b""


def test_client_with_too_many_connections_gets_421_and_no_thread(serve, connect, own):
    seen = []
    server = serve(
        address=(own, 0),
        limits=Limits(connections_per_address=2),
        validate_host=seen.append,
    )
    for _ in range(2):
        assert gets_in(connect(server))
    threads, opened = set(threading.enumerate()), descriptors()
    for n in range(3):
        assert is_turned_away(connect(server), TOO_MANY)
        assert set(threading.enumerate()) == threads
        assert server.stats()["turned_away_by_address"] == n + 1
    assert seen == [own] * 2
    assert server.stats()["connections"] == 2
    assert server.stats()["turned_away"] == 0
    until(lambda: descriptors() <= opened + 3, "the close of their sockets")  # our ends stay


def test_count_goes_down_when_a_client_leaves(serve, own):
    server = serve(address=(own, 0), limits=Limits(connections_per_address=1))
    for n in range(5):
        with Client(server) as client:
            assert gets_in(client)
            with Client(server) as other:
                assert is_turned_away(other, TOO_MANY)
            if n % 2:
                client.ask("QUIT")
        until(lambda: not server.crowd.threads, "the end of the session")
    assert server.crowd.census._counts == {}


def test_loopback_has_no_cap(serve, connect):
    server = serve(limits=Limits(connections_per_address=1))
    clients = [connect(server) for _ in range(5)]
    assert all(gets_in(client) for client in clients)
    assert server.stats()["turned_away_by_address"] == 0


def test_no_cap_where_there_is_none(serve, connect, own):
    server = serve(address=(own, 0), limits=Limits(connections_per_address=None))
    clients = [connect(server) for _ in range(5)]
    assert all(gets_in(client) for client in clients)


def test_cap_of_a_crowd_that_comes_at_once(serve, own):
    server = serve(address=(own, 0), limits=Limits(connections_per_address=5))
    results, leave = queue.Queue(), threading.Event()

    def come():
        with Client(server) as client:
            results.put(client.reply())
            leave.wait(DEADLINE)

    threads = [threading.Thread(target=come) for _ in range(20)]
    for thread in threads:
        thread.start()
    replies = [results.get(timeout=DEADLINE) for _ in threads]
    leave.set()
    for thread in threads:
        thread.join(DEADLINE)
    assert sum(reply.startswith("220 ") for reply in replies) == 5
    assert replies.count(TOO_MANY) == 15


def test_cap_may_be_configured_while_it_serves(serve, connect, own):
    server = serve(address=(own, 0), limits=Limits(connections_per_address=1))
    first = connect(server)
    assert gets_in(first)
    assert is_turned_away(connect(server), TOO_MANY)
    server.configure(limits=Limits(connections_per_address=2))
    second = connect(server)
    assert gets_in(second)
    server.configure(limits=Limits(connections_per_address=1))
    assert is_turned_away(connect(server), TOO_MANY)
    for client in (first, second):  # who is in stays in
        assert client.ask("EHLO client.example").startswith("250-")
        assert client.ask("QUIT").startswith("221 ")
    until(lambda: not server.crowd.threads, "the end of the sessions")
    assert server.crowd.census._counts == {}


def test_full_server_gives_421_and_no_thread(serve, connect):
    server = serve(limits=Limits(connections=2))
    clients = [connect(server) for _ in range(2)]
    assert all(gets_in(client) for client in clients)
    threads = set(threading.enumerate())
    for n in range(3):
        assert is_turned_away(connect(server), TOO_BUSY)
        assert set(threading.enumerate()) == threads
        assert server.stats()["turned_away"] == n + 1
    assert server.stats()["connections"] == 2
    clients[0].close()
    until(lambda: len(server.crowd.threads) == 1, "the end of a session")
    assert gets_in(connect(server))


def test_connections_may_be_configured_while_it_serves(serve, connect):
    server = serve(limits=Limits(connections=1))
    first = connect(server)
    assert gets_in(first)
    assert is_turned_away(connect(server), TOO_BUSY)
    server.configure(limits=Limits(connections=2))
    assert gets_in(connect(server))
    server.configure(limits=Limits(connections=1))
    assert is_turned_away(connect(server), TOO_BUSY)
    assert first.ask("EHLO client.example").startswith("250-")


def test_client_for_whom_no_thread_can_be_had_is_counted_out(serve, connect, own, monkeypatch):
    server = serve(address=(own, 0), limits=Limits(connections_per_address=1))
    with monkeypatch.context() as patch:

        def start(thread):
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", start)  # as the system does it when it is full
        assert is_turned_away(connect(server), TOO_BUSY)
    stats = server.stats()
    assert (stats["failed_accepts"], stats["connections"]) == (1, 0)
    assert gets_in(connect(server))
    assert len(server.crowd.threads) == 1


# -- behind proxies --------------------------------------------------------------------------

PROXIES = ["127.0.0.0/8"]


def comes_from(connect, server, address):
    client = connect(server)
    client.send(proxied(address))
    return client


@pytest.mark.parametrize(
    ("same", "different"),
    [("192.0.2.1", "192.0.2.2"), ("2001:db8::2", "2001:db8:0:1::1")],
    ids=["IPv4", "IPv6 by /64"],
)
def test_clients_behind_a_proxy_are_capped(serve, connect, same, different):
    seen = []
    server = serve(
        proxy_protocol=PROXIES,
        limits=Limits(connections_per_address=2),
        validate_host=seen.append,
    )
    start = "2001:db8::1" if ":" in same else same
    first, second = (comes_from(connect, server, start) for _ in range(2))
    assert gets_in(first)
    assert gets_in(second)
    third = comes_from(connect, server, same)
    assert is_turned_away(third, TOO_MANY)
    third.close()
    assert gets_in(comes_from(connect, server, different))
    assert server.stats()["turned_away_by_address"] == 1
    assert seen == [start, start, different]
    first.close()
    until(lambda: len(server.crowd.threads) == 2, "the end of a session")
    assert gets_in(comes_from(connect, server, same))


def test_client_of_loopback_behind_a_proxy_is_not_capped(serve, connect):
    server = serve(proxy_protocol=PROXIES, limits=Limits(connections_per_address=1))
    clients = [comes_from(connect, server, "127.0.0.1") for _ in range(3)]
    assert all(gets_in(client) for client in clients)


def test_counts_of_a_proxy_all_end(serve, connect):
    server = serve(proxy_protocol=PROXIES, limits=Limits(connections_per_address=2))
    for header in (proxied("192.0.2.1"), b"PROXY UNKNOWN\r\n", b"PROXY nonsense\r\n", b"PRO"):
        for leave in ("QUIT", None):
            with Client(server) as client:
                client.send(header)
                if b"TCP" in header or b"UNKNOWN" in header:
                    assert gets_in(client)
                    if leave:
                        client.ask(leave)
    until(lambda: not server.crowd.threads, "the end of the sessions")
    assert server.crowd.census._counts == {}


def test_proxies_themselves_have_no_cap(serve, connect, own):
    server = serve(
        address=(own, 0),
        proxy_protocol=[f"{own}/32"],
        limits=Limits(connections_per_address=1),
    )
    clients = [comes_from(connect, server, f"192.0.2.{n}") for n in range(101, 105)]
    assert all(gets_in(client) for client in clients)
    assert is_turned_away(comes_from(connect, server, "192.0.2.101"), TOO_MANY)
    health_check = connect(server)
    health_check.send(b"PROXY UNKNOWN\r\n")
    assert gets_in(health_check)


def test_proxies_that_speak_xclient_have_no_cap(serve, connect, own):
    server = serve(
        address=(own, 0), xclient=[f"{own}/32"], limits=Limits(connections_per_address=1)
    )
    clients = [connect(server) for _ in range(3)]
    assert all(gets_in(client) for client in clients)


def test_proxy_that_is_trusted_no_more_is_capped(serve, connect, own):
    server = serve(
        address=(own, 0), xclient=[f"{own}/32"], limits=Limits(connections_per_address=1)
    )
    clients = [connect(server) for _ in range(3)]
    assert all(gets_in(client) for client in clients)
    server.configure(xclient=())
    assert is_turned_away(connect(server), TOO_MANY)
    for client in clients:
        client.close()
    until(lambda: not server.crowd.threads, "the end of the sessions")
    assert server.crowd.census._counts == {}


def test_client_with_too_many_connections_behind_a_proxy_before_tls(
    serve, connect, certificate, caplog
):
    limits = Limits(connections_per_address=1)
    server = serve(proxy_protocol=PROXIES, tls=certificate, implicit_tls=True, limits=limits)
    first = comes_from(connect, server, "192.0.2.1")
    first.secure(certificate)
    assert gets_in(first)
    second = comes_from(connect, server, "192.0.2.1")
    # As from the accept loop, it is in the clear: nobody is worth a handshake to be sent away.
    assert is_turned_away(second, TOO_MANY)
    second.close()
    until(lambda: len(server.crowd.threads) == 1, "the end of the session")
    assert "Traceback" not in caplog.text
    assert server.stats()["tls"] == 1
    assert server.stats()["failed_tls"] == 0


# -- the patience of a server that is nearly full ---------------------------------------------

STRESSED = Limits(
    connections=10,
    command_timeout=LONG,
    handshake_timeout=2 * LONG,  # each is cut to the same, whatever it was
    proxy_timeout=3 * LONG,
    stress_timeout=QUICK,
)


@pytest.fixture
def busy():
    """Keep hooks busy until the test is over: clients that say ``EHLO busy.example``."""

    class Busy:
        release = threading.Event()
        entered = 0

        def __call__(self, name):
            if name == "busy.example":
                self.entered += 1
                self.release.wait(DEADLINE)

        def fill(self, connect, server, number):
            """Have ``number`` more clients whose hooks run."""
            clients, before = [], self.entered
            for _ in range(number):
                client = connect(server)
                if server.proxy_protocol:
                    client.send(b"PROXY UNKNOWN\r\n")
                if server.implicit_tls:
                    client.secure(None, self.context)
                assert gets_in(client)
                client.send(b"EHLO busy.example\r\n")
                clients.append(client)
            until(lambda: self.entered == before + number, "the hooks")
            return clients

    made = Busy()
    yield made
    made.release.set()


def says_nothing(client):
    pass


def in_command(client):
    client.hello()
    client.send(b"NOO")


def in_data(client):
    client.to_data()
    client.send(b"half a message\r\n")


def in_chunk(client):
    client.hello()
    client.ask("MAIL FROM:<a@x.example>")
    client.ask("RCPT TO:<b@y.example>")
    client.send(b"BDAT 1000\r\nhalf")


def between_chunks(client):
    in_chunk(client)
    client.send(b"x" * 996)
    assert client.reply().startswith("250 ")


def in_auth(client):
    client.hello()
    assert client.ask("AUTH LOGIN").startswith("334 ")
    client.send(b"dGl")


def in_handshake(client):
    client.hello()
    assert client.ask("STARTTLS").startswith("220 ")
    client.send(b"\x16\x03\x01\x3f\xff\x01")


def in_header(client):
    client.send(b"PROXY TCP4 ")


GREETED = {
    "greeted": (lambda client: gets_in(client), "421 4.4.2 "),
    "idle": (lambda client: client.hello(), "421 4.4.2 "),
    "command": (in_command, "421 4.4.2 "),
    "DATA": (in_data, "421 4.4.2 "),
    "chunk": (in_chunk, "421 4.4.2 "),
    "between chunks": (between_chunks, "421 4.4.2 "),
    "AUTH": (in_auth, "421 4.4.2 "),
    "handshake": (in_handshake, ""),
}
"""Where a client can stop, and what it is told then: ``""`` is a close without a word."""
WAITS = {**GREETED, "PROXY header": (in_header, "")}


def options_of(name, certificate):
    if name == "PROXY header":
        return {"proxy_protocol": PROXIES}
    users = {"users": {"tim": "secret"}, "auth_require_tls": False}
    return {"tls": certificate, **users} if name == "handshake" else users


def is_quiet(client, seconds):
    """Whether the server says nothing, and does not close, for a while."""
    client.socket.settimeout(seconds)
    try:
        client.socket.recv(1)
    except socket.timeout:
        return True
    finally:
        client.socket.settimeout(DEADLINE)
    return False


@pytest.mark.parametrize("name", WAITS)
def test_nearly_full_server_has_less_patience(serve, connect, busy, certificate, name):
    server = serve(limits=STRESSED, validate_helo=busy, **options_of(name, certificate))
    wait, told = WAITS[name]
    fillers = busy.fill(connect, server, 6)
    client = connect(server)
    wait(client)
    # Seven of ten: all have their time.
    assert is_quiet(client, 2 * QUICK)
    assert server.stats()["timeouts"] == 0
    start = time.monotonic()
    fillers += busy.fill(connect, server, 1)
    # Eight of ten: who waits must go.
    if told:
        assert client.reply().startswith(told)
    client.gone()
    client.close()
    assert time.monotonic() - start < SOON
    until(lambda: len(server.crowd.threads) == 7, "the end of the session")
    assert server.stats()["timeouts"] == 1
    # Those whose hooks run are not the client's fault, and they are many: never cut.
    busy.release.set()
    for filler in fillers:
        assert filler.reply().startswith("250-")


def test_client_in_time_is_not_hurried(serve, connect, busy):
    server = serve(limits=STRESSED._replace(stress_timeout=0.7), validate_helo=busy)
    busy.fill(connect, server, 7)
    client = connect(server)
    client.hello()
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert client.ask("NOOP").startswith("250 ")
        threading.Event().wait(0.1)
    assert client.ask("QUIT").startswith("221 ")
    assert server.stats()["timeouts"] == 0


def test_stress_makes_no_time_longer(serve, connect, busy):
    limits = STRESSED._replace(stress_timeout=LONG, command_timeout=QUICK)
    server = serve(limits=limits, validate_helo=busy)
    busy.fill(connect, server, 7)
    client = connect(server)
    client.hello()
    start = time.monotonic()
    assert client.reply().startswith("421 4.4.2 ")
    assert time.monotonic() - start < SOON


def test_session_time_is_not_hurried_away_under_stress(serve, connect, busy):
    # The session may last for a minute, a command for four seconds under stress: nothing is late.
    limits = STRESSED._replace(stress_timeout=4.0, command_timeout=300.0, session_time=LONG)
    server = serve(limits=limits, validate_helo=busy)
    busy.fill(connect, server, 7)
    client = connect(server)
    client.hello()
    assert is_quiet(client, 0.8)
    assert client.ask("NOOP").startswith("250 ")
    assert server.stats()["timeouts"] == 0


def test_last_reply_may_be_read_under_stress(serve, connect, busy):
    # The lingering close is our own wait, and has its own time.
    server = serve(limits=STRESSED, validate_helo=busy)
    busy.fill(connect, server, 7)
    client = connect(server)
    client.hello()
    client.send(b"GET / HTTP/1.1\r\n")
    closing = until(lambda: [each for each in server.crowd.sessions if each._closing], "the close")
    now = time.monotonic()
    assert not closing[0].is_late(now, stressed=True)
    assert client.reply().startswith("554 5.5.0 ")


def test_stress_ends(serve, connect, busy):
    server = serve(limits=STRESSED, validate_helo=busy)
    fillers = busy.fill(connect, server, 8)
    fillers[0].close()
    fillers[1].close()
    busy.release.set()
    until(lambda: len(server.crowd.threads) == 6, "the end of two sessions")
    client = connect(server)
    client.hello()
    assert is_quiet(client, 2 * QUICK)


# -- a whole session -------------------------------------------------------------------------

TOO_LONG = "421 4.4.2 The session has lasted too long"
BOUNDED = Limits(session_time=0.4, junk_commands=10**9, errors=10**9)


def past(server, client):
    """Wait until the time of the only session is over."""
    (session,) = server.crowd.sessions
    until(lambda: time.monotonic() > session._began + server.limits.session_time, "the time")


@pytest.mark.parametrize(
    "wait", [gets_in, Client.hello, in_command, in_auth], ids=["greeted", "idle", "command", "AUTH"]
)
def test_session_is_over_between_transactions(serve, connect, wait):
    server = serve(limits=BOUNDED, users={"tim": "secret"}, auth_require_tls=False)
    client = connect(server)
    start = time.monotonic()
    wait(client)
    assert client.reply() == TOO_LONG
    assert client.ended()
    assert 0.35 <= time.monotonic() - start < SOON
    client.close()
    until(lambda: not server.crowd.threads, "the end of the session")
    assert server.stats()["timeouts"] == 1


def test_session_has_its_whole_time(serve, connect):
    client = connect(serve(limits=BOUNDED._replace(session_time=LONG)))
    client.hello()
    assert is_quiet(client, 2 * QUICK)
    assert client.ask("NOOP").startswith("250 ")


def test_session_without_a_limit_goes_on(serve, connect):
    client = connect(serve())
    client.hello()
    assert is_quiet(client, 2 * QUICK)
    assert client.ask("NOOP").startswith("250 ")


def test_message_on_its_way_is_finished_first(serve, connect, inbox):
    server = serve(limits=BOUNDED, trace=False)
    client = connect(server)
    client.to_data()
    past(server, client)
    client.send(b"hello\r\n")
    assert is_quiet(client, 2 * QUICK)
    client.send(b".\r\n")
    assert client.reply().startswith("250 ")
    assert inbox.data == b"hello\r\n"
    assert client.reply() == TOO_LONG
    assert client.ended()


def test_transaction_before_its_data_is_finished_first(serve, connect, inbox):
    server = serve(limits=BOUNDED, trace=False)
    client = connect(server)
    client.hello()
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
    past(server, client)
    assert is_quiet(client, 2 * QUICK)
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    client.send(b"BDAT 7\r\nhello\r\n")
    assert client.reply().startswith("250 ")
    assert client.ask("BDAT 0 LAST").startswith("250 ")
    assert inbox.data == b"hello\r\n"
    assert client.reply() == TOO_LONG


def test_client_that_never_pauses_is_ended_too(serve, connect):
    client = connect(serve(limits=BOUNDED))
    client.hello()
    start, reply = time.monotonic(), "250 "
    while reply.startswith("250 "):
        assert time.monotonic() - start < SOON
        reply = client.ask("NOOP")
    assert reply == TOO_LONG
    assert client.gone() == b""


def test_client_that_sends_one_message_after_the_other_is_ended_too(serve, connect, inbox):
    client = connect(serve(limits=BOUNDED, trace=False))
    client.hello()
    start, codes, expected = time.monotonic(), [], []
    steps = {
        b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n": ["250", "250", "354"],
        b"hello\r\n.\r\n": ["250"],
    }
    for octets, replies in itertools.cycle(steps.items()):
        assert time.monotonic() - start < SOON
        with contextlib.suppress(OSError):  # the 421 is on its way, or here
            client.send(octets)
        expected += replies
        for _ in replies:
            reply = client.reply()
            if reply == TOO_LONG:
                break
            codes.append(reply[:3])
        if reply == TOO_LONG:
            break
    assert codes == expected[: len(codes)]
    assert len(inbox.messages) == len(codes) // 4 > 0  # whatever the 421 came instead of


def test_session_is_over_inside_tls(serve, connect, certificate):
    server = serve(limits=BOUNDED._replace(session_time=1.0), tls=certificate)
    client = connect(server)
    client.hello()
    client.starttls(certificate)
    assert client.reply() == TOO_LONG
    assert client.ended()


def test_hook_is_not_cut_by_session_time(serve, connect):
    def slow(mailbox):
        threading.Event().wait(0.6)

    client = connect(serve(limits=BOUNDED, validate_sender=slow))
    client.hello()
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")


# -- slow clients, each counted once ---------------------------------------------------------


def drip(client, octets, pause, stop):
    while not stop.wait(pause):
        try:
            client.send(octets[:1])
        except OSError:
            return
        octets = octets[1:] + octets[:1]


@pytest.fixture
def dripping():
    """Let a thread drip octets until the test is over."""
    stop, threads = threading.Event(), []

    def start(client, octets, pause=0.03):
        thread = threading.Thread(target=drip, args=(client, octets, pause, stop))
        threads.append(thread)
        thread.start()

    yield start
    stop.set()
    for thread in threads:
        thread.join()


SLOW = Limits(command_timeout=QUICK, handshake_timeout=QUICK, proxy_timeout=QUICK, data_rate=10_000)
DRIPS = {
    "greeted": b"EHLO ",
    "idle": b"NOOP ",
    "command": b"P xxx",
    "DATA": b"x\r\n",
    "chunk": b"x",
    "between chunks": b"BDAT ",
    "AUTH": b"b",
    "handshake": b"\0",
    "PROXY header": b"1",
}


@pytest.mark.parametrize("drips", [False, True], ids=["silent", "drips"])
@pytest.mark.parametrize("name", WAITS)
def test_slow_client_is_let_go_and_counted_once(
    serve, connect, certificate, dripping, inbox, name, drips
):
    server = serve(limits=SLOW, **options_of(name, certificate))
    client = connect(server)
    wait, told = WAITS[name]
    wait(client)
    start = time.monotonic()
    if drips:
        dripping(client, DRIPS[name])
    if told:
        assert client.reply().startswith(told)
    client.gone()
    client.close()
    assert time.monotonic() - start < SOON
    until(lambda: not server.crowd.threads, "the end of the session")
    assert server.stats()["timeouts"] == 1
    assert server.stats()["failed_tls"] == (name == "handshake")
    assert inbox.messages == []


def test_slow_chunk_above_the_rate_wins_time(serve, connect, inbox):
    server = serve(limits=SLOW._replace(data_rate=100), trace=False)
    client = connect(server)
    in_chunk(client)
    start, sent = time.monotonic(), 4
    while time.monotonic() < start + 3 * QUICK and sent < 900:
        client.send(b"x" * 10)
        sent += 10
        threading.Event().wait(0.02)
    client.send(b"x" * (1000 - sent))
    assert client.reply().startswith("250 ")
    assert server.stats()["timeouts"] == 0


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_client_that_reads_no_replies_is_cut_and_counted_once(serve, connect, certificate, secure):
    limits = SLOW._replace(handshake_timeout=LONG, junk_commands=10**9, errors=10**9)
    reasons = []
    server = serve(
        limits=limits,
        strict_pipelining=False,
        session_ended=reasons.append,
        **({"tls": certificate, "implicit_tls": True} if secure else {}),
    )
    client = connect(server, receive_buffer=4096)
    if secure:
        client.secure(certificate)
    client.hello()
    client.socket.settimeout(0.05)
    give_up = time.monotonic() + DEADLINE
    while not reasons:
        assert time.monotonic() < give_up, "the client was never cut"
        try:
            client.send(b"HELP\r\n" * 5_000)
        except socket.timeout:
            pass  # the server reads no more: it waits for us
        except OSError:
            break
    until(lambda: reasons == ["lost"], "the end of the session")
    until(lambda: not server.crowd.threads, "the end of the thread")
    assert server.stats()["timeouts"] == 1


@pytest.mark.parametrize("wait", [Client.hello, in_data], ids=["idle", "DATA"])
def test_client_that_vanished_without_a_word_is_let_go(serve, connect, wait):
    # Its machine is off: no FIN and no RST ever come.
    repair = 19  # TCP_REPAIR, which has no name in the socket module
    server = serve(limits=SLOW._replace(command_timeout=0.7, data_rate=500))
    client = connect(server)
    wait(client)
    assert is_quiet(client, 0.2)  # all is acknowledged: no octet is on its way to nobody
    try:
        client.socket.setsockopt(socket.IPPROTO_TCP, repair, 1)
    except OSError as error:
        pytest.skip(f"only root on Linux may leave a connection half open: {error}")
    client.close()
    until(lambda: not server.crowd.threads, "the end of the session", SOON)
    assert server.stats()["timeouts"] == 1


def test_client_that_only_half_closed_is_no_time_out(serve, connect):
    server = serve(limits=SLOW)
    client = connect(server)
    client.hello()
    client.socket.shutdown(socket.SHUT_WR)
    assert client.ended()
    until(lambda: not server.crowd.threads, "the end of the session")
    assert server.stats()["timeouts"] == 0


def test_slow_handshake_over_implicit_tls_under_stress(serve, connect, busy, certificate):
    busy.context = trusting(certificate)
    server = serve(limits=STRESSED, validate_helo=busy, tls=certificate, implicit_tls=True)
    busy.fill(connect, server, 7)
    client = connect(server)
    start = time.monotonic()
    assert client.gone() == b""
    assert time.monotonic() - start < SOON
    until(lambda: server.stats()["timeouts"] == 1, "the count")


def test_hooks_see_the_reason_of_a_late_session(serve, connect, caplog):
    caplog.set_level(logging.INFO, "smtpd_sync")
    reasons = []

    class Handler(SMTPHandler):
        def deliver(self, sender, recipients, data):
            pass

        def session_ended(self, reason):
            reasons.append(reason)

    server = serve(Handler, limits=BOUNDED)
    connect(server).hello()
    until(lambda: reasons, "the end of the session")
    assert reasons == ["The session has lasted too long"]
    assert "end='The session has lasted too long'" in caplog.text
