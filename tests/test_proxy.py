"""The PROXY protocol (proxy-protocol.txt of HAProxy, versions 1 and 2), and a real HAProxy."""

import contextlib
import logging
import smtplib
import socket
import struct
import time

import peers
import pytest
from support import SOON, Client, Inbox, trusting, until

from smtpd_sync import Limits, Peer, SMTPHandler, SMTPServer, discard

SIGNATURE = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
TRUSTED = ["127.0.0.0/8"]


def version_2(kind, addresses, command=0x21, tlvs=b""):
    content = addresses + tlvs
    return SIGNATURE + struct.pack("!BBH", command, kind, len(content)) + content


def tcp4(source="192.0.2.1", port=56324, **more):
    packed = socket.inet_aton(source) + socket.inet_aton("198.51.100.1")
    return version_2(0x11, packed + struct.pack("!HH", port, 25), **more)


def tcp6(source="2001:db8::1", port=56324, **more):
    addresses = (socket.inet_pton(socket.AF_INET6, each) for each in (source, "2001:db8::2"))
    return version_2(0x21, b"".join(addresses) + struct.pack("!HH", port, 25), **more)


def tlv(kind, value):
    return struct.pack("!BH", kind, len(value)) + value


@pytest.fixture
def proxied(serve, connect):
    """Serve behind a proxy; give a client that has sent ``header``, and what the hooks saw."""

    def make(header, proxy_protocol=TRUSTED, **options):
        seen = []

        class Handler(SMTPHandler):
            def validate_host(self, address):
                seen.append(address)

            def deliver_envelope(self, envelope):
                seen.append((envelope.peer, envelope.content))

        client = connect(serve(Handler, proxy_protocol=proxy_protocol, **options))
        client.seen = seen
        client.send(header)
        return client

    return make


# -- who the client is -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "peer", "shown"),
    [
        (b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 25\r\n", ("192.0.2.1", 56324), "[192.0.2.1]"),
        (b"PROXY TCP4 255.255.255.255 0.0.0.0 0 65535\r\n", ("255.255.255.255", 0), "[255."),
        (
            b"PROXY TCP6 2001:db8::1 2001:db8::2 65535 25\r\n",
            ("2001:db8::1", 65535),
            "[IPv6:2001:db8::1]",
        ),
        (
            b"PROXY TCP6 2001:0DB8:0000:0000:0000:0000:0000:0001 ::1 1 25\r\n",
            ("2001:db8::1", 1),
            "[IPv6:2001:db8::1]",
        ),
        (tcp4(), ("192.0.2.1", 56324), "[192.0.2.1]"),
        (tcp6(), ("2001:db8::1", 56324), "[IPv6:2001:db8::1]"),
        (
            tcp4(tlvs=tlv(0x01, b"smtp") + tlv(0x04, bytes(9)) + tlv(0xE0, b"\xff" * 300)),
            ("192.0.2.1", 56324),
            "[192.0.2.1]",
        ),
        (tcp6(tlvs=tlv(0x03, bytes(4))), ("2001:db8::1", 56324), "[IPv6:2001:db8::1]"),
        # An IPv4 client at a dual-stack listener of the proxy is an IPv4 client.
        (
            b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.1 56324 25\r\n",
            ("192.0.2.1", 56324),
            "[192.0.2.1]",
        ),
        (tcp6("::ffff:192.0.2.1"), ("192.0.2.1", 56324), "[192.0.2.1]"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_client_is_who_the_proxy_says(proxied, caplog, header, peer, shown):
    caplog.set_level(logging.INFO)
    client = proxied(header)
    assert client.mail().startswith("250 ")
    client.ask("QUIT")
    assert client.ended()
    address, (envelope_peer, content) = client.seen
    assert address == peer[0]
    assert envelope_peer == Peer(*peer)
    assert f"from client.example ({shown}".encode() in content
    until(lambda: f"peer={peer[0]} " in caplog.text, "the log of the session")
    assert "127.0.0.1" not in caplog.text


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n",
        version_2(0x00, b"", command=0x20),  # LOCAL: the proxy's own health check
        tcp4(command=0x20),  # LOCAL: the addresses must be skipped, and not used
        version_2(0xFF, b"whatever", command=0x20),
        version_2(0x00, b""),  # AF_UNSPEC
        version_2(0x00, b"x" * 50),
        version_2(0x31, b"/socket".ljust(216, b"\0")),  # AF_UNIX
    ],
    ids=lambda value: repr(value)[:60],
)
def test_client_that_is_not_known_is_the_proxy(proxied, header):
    client = proxied(header)
    assert client.mail().startswith("250 ")
    address, (peer, _) = client.seen
    assert address == "127.0.0.1"
    assert peer == client.socket.getsockname()


def test_header_octet_by_octet(proxied):
    header = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 25\r\n"
    client = proxied(b"")
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for octet in header:
        client.send(bytes([octet]))
    assert client.hello().startswith("250-")
    assert client.seen == ["192.0.2.1"]


def test_version_2_octet_by_octet(proxied):
    client = proxied(b"")
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for octet in tcp6(tlvs=tlv(0xE0, b"x" * 20)):
        client.send(bytes([octet]))
    assert client.hello().startswith("250-")
    assert client.seen == ["2001:db8::1"]


def test_second_header_is_no_header(proxied):
    header = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 25\r\n"
    client = proxied(header)
    assert client.reply().startswith("220 ")
    assert client.ask(header.replace(b"192.0.2.1", b"192.0.2.9").decode().strip())[0] == "5"
    assert client.seen == ["192.0.2.1"]


def test_early_talker_behind_the_header(proxied):
    client = proxied(tcp4() + b"EHLO client.example\r\n")
    assert client.reply().startswith("554 ")
    assert client.ended()


def test_refused_host_behind_the_proxy(serve, connect):
    client = connect(
        serve(proxy_protocol=TRUSTED, validate_host=lambda address: address != "192.0.2.1")
    )
    client.send(tcp4())
    assert client.reply().startswith("554 ")


@pytest.mark.parametrize("header", [tcp4(), b"PROXY TCP4 192.0.2.1 198.51.100.1 1 25\r\n"])
def test_header_comes_before_implicit_tls(serve, connect, certificate, inbox, header):
    client = connect(serve(proxy_protocol=TRUSTED, tls=certificate, implicit_tls=True))
    client.send(header)
    client.secure(certificate)
    assert client.mail().startswith("250 ")
    assert b"from client.example ([192.0.2.1])" in inbox.data
    assert b"with ESMTPS " in inbox.data


def test_header_stays_over_starttls(serve, connect, certificate, inbox):
    client = connect(serve(proxy_protocol=TRUSTED, tls=certificate))
    client.send(tcp4())
    client.hello()
    client.starttls(certificate)
    client.ask("EHLO client.example")
    client.ask("MAIL FROM:<a@x.example>")
    client.ask("RCPT TO:<b@y.example>")
    client.ask("DATA")
    assert client.ask("x\r\n.").startswith("250 ")
    assert b"([192.0.2.1])" in inbox.data


def test_xclient_goes_by_the_client_and_not_by_the_proxy(serve, connect):
    server = serve(proxy_protocol=TRUSTED, xclient=["127.0.0.1", "192.0.2.7"])
    for address, offered in (("192.0.2.1", False), ("192.0.2.7", True)):
        client = connect(server)
        client.send(tcp4(address))
        assert ("XCLIENT" in client.hello()) is offered


# -- bad headers -----------------------------------------------------------------------------

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 25\r\n"
BAD = {
    "no header": b"EHLO client.example\r\nMAIL FROM:<a@x.example>\r\n",
    "lower case": V1.lower(),
    "lower case protocol": V1.replace(b"TCP4", b"tcp4"),
    "no CR": V1.replace(b"\r\n", b"\n"),
    "no LF": V1.replace(b"\r\n", b"\r") + b"x" * 100,
    "two spaces": V1.replace(b" 25", b"  25"),
    "space at the end": V1.replace(b"\r\n", b" \r\n"),
    "tab": V1.replace(b" 25", b"\t25"),
    "too long": b"PROXY UNKNOWN " + b"x" * 200 + b"\r\n",
    "one octet too long": b"PROXY UNKNOWN ".ljust(106, b"x") + b"\r\n",
    "IPv6 in TCP4": V1.replace(b"192.0.2.1", b"2001:db8::1"),
    "IPv4 in TCP6": V1.replace(b"TCP4", b"TCP6"),
    "leading zero": V1.replace(b"192.0.2.1", b"192.0.2.01"),
    "beyond 255": V1.replace(b"192.0.2.1", b"192.0.2.256"),
    "three parts": V1.replace(b"192.0.2.1", b"192.0.2"),
    "name": V1.replace(b"192.0.2.1", b"cafe"),
    "port 65536": V1.replace(b"56324", b"65536"),
    "port with zero": V1.replace(b"56324", b"056"),
    "negative port": V1.replace(b"56324", b"-1"),
    "no port": V1.replace(b" 25", b""),
    "port too much": V1.replace(b" 25", b" 25 25"),
    "UDP": V1.replace(b"TCP4", b"UDP4"),
    "unknown protocol": V1.replace(b"TCP4", b"TCP5"),
    "non-ASCII digits": V1.replace(b"56324", "\u0661".encode()),
    "wrong signature": SIGNATURE[:-1] + b"X" + tcp4()[12:],
    "version 1 in version 2": tcp4(command=0x11),
    "version 3": tcp4(command=0x31),
    "command 2": tcp4(command=0x22),
    "UDP over IPv4": version_2(0x12, bytes(12)),
    "UDP over IPv6": version_2(0x22, bytes(36)),
    "datagram of Unix": version_2(0x32, bytes(216)),
    "protocol without family": version_2(0x01, bytes(12)),
    "family without protocol": version_2(0x10, bytes(12)),
    "unknown family": version_2(0x41, bytes(12)),
    "addresses cut": version_2(0x11, bytes(11)),
    "IPv6 addresses cut": version_2(0x21, bytes(35)),
    "TLVs too long": tcp4(tlvs=bytes(5000)),
}


@pytest.mark.parametrize("header", BAD.values(), ids=BAD)
def test_bad_header_closes_without_a_word(proxied, caplog, header):
    client = proxied(header)
    assert client.gone() == b""
    assert client.seen == []
    until(lambda: "peer=127.0.0.1 proxy failed: " in caplog.text, "a warning", SOON)


@pytest.mark.parametrize("header", [V1, tcp4(), tcp6(tlvs=tlv(0xE0, b"x" * 20))], ids=repr)
def test_header_cut_short(proxied, header):
    for length in (1, 5, 11, 12, 13, 15, 16, 20, len(header) - 1):
        client = proxied(header[:length])
        client.socket.shutdown(socket.SHUT_WR)
        assert client.gone() == b""
        assert client.seen == []


def test_longest_version_1_header_is_taken(proxied):
    client = proxied(b"PROXY UNKNOWN ".ljust(105, b"x") + b"\r\n")
    assert client.reply().startswith("220 ")


def test_bad_header_before_implicit_tls(serve, connect, certificate):
    client = connect(serve(proxy_protocol=TRUSTED, tls=certificate, implicit_tls=True))
    client.send(V1.lower())
    assert client.gone() == b""


@pytest.mark.parametrize("start", [b"", b"PROXY TCP4 ", SIGNATURE, tcp4()[:-1]], ids=repr)
def test_slow_header_is_cut(proxied, start):
    limits = Limits(proxy_timeout=0.3, command_timeout=60)
    began = time.monotonic()
    client = proxied(start, limits=limits)
    assert client.gone() == b""
    assert time.monotonic() - began < SOON
    assert client.seen == []


def test_trickled_header_is_cut(proxied):
    # The deadline is of the whole header, not of an octet.
    client = proxied(b"PROXY UNKNOWN ", limits=Limits(proxy_timeout=0.3))
    began = time.monotonic()
    client.socket.settimeout(0.1)  # an octet in each: the whole would take 10 s
    said = None
    while said is None and time.monotonic() - began < SOON:
        try:
            client.send(b"x")
            said = client.socket.recv(100)
        except socket.timeout:
            pass
        except ConnectionError:
            said = b""
    assert said == b""
    assert client.seen == []


def test_header_in_time_leaves_the_command_its_own_time(proxied):
    client = proxied(b"PROXY UNKNOWN\r\n", limits=Limits(proxy_timeout=0.2))
    assert client.reply().startswith("220 ")
    for _ in range(2):  # a deadline that was left behind would be seen with those of these
        with Client(client.socket.getpeername()) as slow:
            assert slow.gone() == b""
    assert client.ask("EHLO client.example").startswith("250-")


# -- who is not trusted ----------------------------------------------------------------------


@pytest.mark.parametrize("header", [V1, tcp4()], ids=["1", "2"])
@pytest.mark.parametrize("networks", [["192.0.2.0/24"], []], ids=["others", "nobody"])
def test_header_of_a_stranger_is_not_believed(proxied, header, networks):
    client = proxied(header, proxy_protocol=networks)
    client.socket.shutdown(socket.SHUT_WR)
    said = client.gone()
    assert said[:3] in (b"554", b"220")  # it is an early talker, or just one that talks nonsense
    assert b"\r\n250" not in said
    assert set(client.seen) <= {"127.0.0.1"}


def test_stranger_needs_no_header(proxied):
    client = proxied(b"", proxy_protocol=["192.0.2.0/24"])
    assert client.mail().startswith("250 ")
    assert client.seen[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "networks", ["127.0.0.1", ["localhost"], ["127.0.0.1/8"], ["::1/200"], [""]], ids=repr
)
def test_networks_that_are_none(no_leaks, networks):
    with pytest.raises(ValueError, match=r"^proxy_protocol: "):
        SMTPServer(("127.0.0.1", 0), deliver=discard, proxy_protocol=networks)


# -- HAProxy ---------------------------------------------------------------------------------


@pytest.fixture
def behind_haproxy(tmp_path, serve):
    """Two servers behind HAProxy: (HAProxy, servers, their inboxes)."""
    started = []

    def make(send_proxy, **options):
        inboxes = Inbox(), Inbox()
        servers = [
            serve(deliver=inbox, hostname=f"{name}.example", proxy_protocol=TRUSTED, **options)
            for name, inbox in zip(("one", "two"), inboxes)
        ]
        started.append(peers.start(peers.HAProxy, tmp_path, *servers, send_proxy))
        return started[0], servers, inboxes

    yield make
    for peer in started:
        peer.stop()


def mail_from(address, port):
    """Send mail from a loopback address of its own; give the name of who took it."""
    with smtplib.SMTP(timeout=SOON, source_address=(address, 0)) as client:
        client.connect("127.0.0.1", port)
        client.ehlo("client.example")
        client.sendmail("a@x.example", ["b@y.example"], b"hello\r\n")
        return client.ehlo_resp.partition(b"\n")[0].decode()


@pytest.mark.interop
@pytest.mark.parametrize("send_proxy", ["send-proxy", "send-proxy-v2"])
def test_haproxy(behind_haproxy, caplog, send_proxy):
    caplog.set_level(logging.INFO)
    haproxy, servers, inboxes = behind_haproxy(send_proxy)
    took = set()
    until(lambda: took.add(mail_from("127.0.0.2", haproxy.port)) or len(took) == 2, "two servers")
    for inbox in inboxes:
        for _, _, data in inbox.wait():
            assert data.startswith(b"Received: from client.example ([127.0.0.2])\r\n")
    until(lambda: "helo=haproxy.example" in caplog.text, "a health check")
    assert "Traceback" not in caplog.text
    assert "WARNING" not in caplog.text  # health checks are nothing to warn of
    # One server goes; the mail does not stop.
    servers[0].stop(2)

    def only_two():
        with contextlib.suppress(smtplib.SMTPException, OSError):
            return mail_from("127.0.0.3", haproxy.port) == "two.example"

    until(only_two, "mail by the other server")
    for _ in range(4):
        assert mail_from("127.0.0.3", haproxy.port) == "two.example"
    assert b"([127.0.0.3])" in inboxes[1].messages[-1][2]


@pytest.mark.interop
def test_starttls_through_haproxy(behind_haproxy, certificate):
    haproxy, _, inboxes = behind_haproxy("send-proxy-v2", tls=certificate)
    with Client(("127.0.0.1", haproxy.port)) as client:
        client.hello()
        client.starttls(certificate, trusting(certificate))
        client.ask("EHLO client.example")
        client.ask("MAIL FROM:<a@x.example>")
        client.ask("RCPT TO:<b@y.example>")
        client.ask("DATA")
        assert client.ask("x\r\n.").startswith("250 ")
    (_, _, data) = (inboxes[0].messages + inboxes[1].messages)[0]
    assert b"with ESMTPS" in data
