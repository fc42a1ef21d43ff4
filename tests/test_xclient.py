"""XCLIENT and XFORWARD (Postfix's XCLIENT_README, XFORWARD_README), and Postfix as their client."""

import shutil
import smtplib
import subprocess

import peers
import pytest
from support import DEADLINE, until

from smtpd_sync import Peer, Reply, SMTPHandler, SMTPServer, discard

TRUSTED = ["127.0.0.0/8"]


class Recording(SMTPHandler):
    """Notes who the client is, at each step."""

    def validate_host(self, address):
        self.server.seen.append(address)
        return address != "192.0.2.66"

    def deliver_envelope(self, envelope):
        forwarded = dict(envelope.session.forwarded)
        self.server.seen.append((envelope.peer, envelope.user, forwarded, envelope.content))


@pytest.fixture
def trusting_server(serve):
    def make(**options):
        options.setdefault("xclient", TRUSTED)
        server = serve(Recording, **options)
        server.seen = []
        return server

    return make


@pytest.fixture
def trusted(trusting_server, connect):
    """A client behind EHLO that may use XCLIENT."""

    def make(**options):
        server = trusting_server(**options)
        client = connect(server)
        client.offered = client.hello()
        client.seen = server.seen
        return client

    return make


def transaction(client):
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    assert client.ask("DATA").startswith("354 ")
    assert client.ask("x\r\n.").startswith("250 ")
    return client.seen[-1]


# -- XCLIENT ---------------------------------------------------------------------------------


def test_offered_to_the_trusted_alone(trusting_server, connect):
    offered = connect(trusting_server()).hello()
    words = {line[4:].split()[0]: line[4:].split()[1:] for line in offered.split("\n")}
    assert {"NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN"} <= set(words["XCLIENT"])
    assert {"NAME", "ADDR", "PORT", "PROTO", "HELO", "IDENT", "SOURCE"} <= set(words["XFORWARD"])
    client = connect(trusting_server(xclient=["192.0.2.0/24"]))
    assert "XCLIENT" not in client.hello()
    for command in ("XCLIENT ADDR=192.0.2.1", "XFORWARD ADDR=192.0.2.1"):
        assert client.ask(command)[0] == "5"


def test_stranger_stays_who_it_is(trusting_server, connect):
    server = trusting_server(xclient=["192.0.2.0/24"])
    client = connect(server)
    client.hello()
    client.seen = server.seen
    client.ask("XCLIENT ADDR=192.0.2.1 LOGIN=jo")
    client.ask("XFORWARD ADDR=192.0.2.1")
    peer, user, forwarded, _ = transaction(client)
    assert (peer, user, forwarded) == (client.socket.getsockname(), None, {})


@pytest.mark.parametrize(
    ("address", "peer", "shown"),
    [
        ("192.0.2.1", "192.0.2.1", b"[192.0.2.1]"),
        ("IPV6:2001:db8::1", "2001:db8::1", b"[IPv6:2001:db8::1]"),
        ("ipv6:2001:db8::1", "2001:db8::1", b"[IPv6:2001:db8::1]"),
    ],
)
def test_client_is_who_the_proxy_says(trusted, address, peer, shown):
    client = trusted()
    # The answer is a greeting: it begins anew.
    assert client.ask(f"xclient Name=far.example addr={address} PORT=4321").startswith(
        "220 mx.example"
    )
    assert client.ask("MAIL FROM:<a@x.example>").startswith("503 ")
    assert client.ask("EHLO far.example").startswith("250-")
    found, user, _, content = transaction(client)
    assert (found, user) == (Peer(peer, 4321), None)
    assert client.seen[:2] == ["127.0.0.1", peer]
    assert content.startswith(b"Received: from far.example (" + shown + b")\r\n")


def test_refused_client(trusted):
    client = trusted()
    assert client.ask("XCLIENT ADDR=192.0.2.66").startswith("554 ")
    assert client.ask("EHLO client.example").startswith("503 ")
    assert client.ask("QUIT").startswith("221 ")


def test_login(trusted):
    client = trusted()
    assert client.ask("XCLIENT ADDR=192.0.2.1 LOGIN=jo+40y.example").startswith("220 ")  # xtext
    client.ask("EHLO client.example")
    _, user, _, content = transaction(client)
    assert user == "jo@y.example"
    assert b" with ESMTPA id " in content


def test_login_of_the_proxy_is_not_the_clients(trusted):
    client = trusted(users={"proxy": "word"}, auth_require_tls=False, require_auth=True)
    assert client.ask("AUTH PLAIN AHByb3h5AHdvcmQ=").startswith("235 ")
    assert client.ask("XCLIENT ADDR=192.0.2.1").startswith("220 ")
    client.ask("EHLO client.example")
    assert client.ask("MAIL FROM:<a@x.example>").startswith("530 ")


def test_attributes_in_several_commands(trusted):
    # XCLIENT_README: "send NAME and ADDR first, then HELO".
    client = trusted()
    assert client.ask("XCLIENT NAME=far.example ADDR=192.0.2.1 PORT=4321").startswith("220 ")
    client.ask("EHLO proxy.example")
    assert client.ask("XCLIENT HELO=far.example PROTO=ESMTP").startswith("220 ")
    client.ask("EHLO far.example")
    peer, *_ = transaction(client)
    assert peer == Peer("192.0.2.1", 4321)


def test_address_that_is_not_known(trusted):
    client = trusted()
    assert client.ask("XCLIENT NAME=[TEMPUNAVAIL] ADDR=[UNAVAILABLE]").startswith("220 ")
    client.ask("EHLO client.example")
    peer, _, _, content = transaction(client)
    assert peer.address != "127.0.0.1"
    assert b"127.0.0.1" not in content


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "ADDR",
        "ADDR=",
        "=192.0.2.1",
        "ADDR=192.0.2.256",
        "ADDR=far.example",
        "ADDR=IPV6:192",
        "ADDR=192.0.2.1]+0D+0AX:",
        "FOO=bar",
        "ADDR=192.0.2.1 FOO=bar",
        "NAME=a+0D+0Ab",
        "NAME=a+0",
        "NAME=a=b",
    ],
)
def test_bad_attributes(trusted, attributes):
    client = trusted()
    assert client.ask(f"XCLIENT {attributes}").startswith("501 ")
    peer, *_ = transaction(client)
    assert peer == client.socket.getsockname()


@pytest.mark.parametrize("command", ["XCLIENT ADDR=192.0.2.1", "XFORWARD ADDR=192.0.2.1"])
def test_not_inside_a_transaction(trusted, command):
    client = trusted()
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask(command).startswith("503 5.5.1 ")


def test_tls_stays(trusted, certificate):
    client = trusted(tls=certificate)
    client.starttls(certificate)
    client.ask("EHLO client.example")
    assert client.ask("XCLIENT ADDR=192.0.2.1").startswith("220 ")
    assert "STARTTLS" not in client.ask("EHLO client.example")
    _, _, _, content = transaction(client)
    assert b" with ESMTPS id " in content


def test_bad_networks(no_leaks):
    with pytest.raises(ValueError, match=r"^xclient: "):
        SMTPServer(("127.0.0.1", 0), deliver=discard, xclient=["everybody"])


# -- XFORWARD --------------------------------------------------------------------------------


def test_forwarded(trusted):
    client = trusted()
    assert client.ask("XFORWARD NAME=far.example ADDR=192.0.2.1 PORT=4321").startswith("250 ")
    assert client.ask("XFORWARD PROTO=ESMTP HELO=a+2Bb IDENT=17 SOURCE=REMOTE").startswith("250 ")
    peer, user, forwarded, content = transaction(client)
    # It is for the log: nothing is decided by it.
    assert peer == client.socket.getsockname()
    assert user is None
    assert b"192.0.2.1" not in content
    assert forwarded == {
        "NAME": "far.example",
        "ADDR": "192.0.2.1",
        "PORT": "4321",
        "PROTO": "ESMTP",
        "HELO": "a+b",
        "IDENT": "17",
        "SOURCE": "REMOTE",
    }


@pytest.mark.parametrize("end", ["message", "refused message", "RSET", "EHLO", "STARTTLS"])
def test_forwarded_is_of_one_transaction(trusting_server, connect, certificate, end):
    # "At the end of each MAIL FROM transaction (i.e. RSET or DOT), the server resets all XFORWARD
    # attributes"; the next message is of somebody else.
    refuse = [end == "refused message"]
    server = trusting_server(
        tls=certificate, validate_data=lambda *_: Reply(451, "Later") if refuse[0] else None
    )
    client = connect(server)
    client.hello()
    client.seen = server.seen
    assert client.ask("XFORWARD ADDR=192.0.2.1").startswith("250 ")
    if end == "message":
        transaction(client)
    elif end == "refused message":
        client.ask("MAIL FROM:<a@x.example>")
        client.ask("RCPT TO:<b@y.example>")
        client.send(b"BDAT 1 LAST\r\nx")
        assert client.reply().startswith("451 ")
        refuse[0] = False
    elif end == "STARTTLS":
        client.starttls(certificate)
        client.ask("EHLO client.example")
    else:
        client.ask("EHLO client.example" if end == "EHLO" else "RSET")
    _, _, forwarded, _ = transaction(client)
    assert forwarded == {}


def test_forwarded_is_not_known(trusted):
    client = trusted()
    assert client.ask("XFORWARD NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE]").startswith("250 ")
    _, _, forwarded, _ = transaction(client)
    assert not any(forwarded.values())


def test_pipelined(trusted):
    # "The command may be pipelined when the server supports ESMTP command pipelining."
    client = trusted()
    client.send(
        b"XFORWARD NAME=far.example ADDR=192.0.2.1\r\nXFORWARD PROTO=ESMTP\r\n"
        b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n"
    )
    assert [client.reply()[:3] for _ in range(5)] == ["250"] * 4 + ["354"]
    assert client.ask("x\r\n.").startswith("250 ")
    assert client.seen[-1][2]["ADDR"] == "192.0.2.1"


# -- real peers ------------------------------------------------------------------------------


@pytest.fixture
def postfix(tmp_path):
    """Start a private Postfix, stopped after the test: ``postfix(transport, **options)``."""
    started = []

    def make(transport, **options):
        started.append(peers.start(peers.Postfix, tmp_path, transport, **options))
        return started[-1]

    yield make
    for peer in started:
        peer.stop()


@pytest.mark.interop
def test_postfix_forwards(trusting_server, postfix):
    server = trusting_server()
    relay = postfix(f"smtp:[127.0.0.1]:{server.port}", smtp_send_xforward_command="yes")
    for address in ("127.0.0.2", "127.0.0.3"):
        with smtplib.SMTP(timeout=DEADLINE, source_address=(address, 0)) as client:
            client.connect("127.0.0.1", relay.port)
            client.ehlo(f"client{address[-1]}.example")
            client.sendmail("a@x.example", ["b@y.example"], b"hello\r\n")
        log = relay.logged("status=")
        assert "status=sent (250 2.0.0 OK " in log, log
    until(lambda: sum(isinstance(each, tuple) for each in server.seen) == 2, "two messages")
    messages = [each for each in server.seen if isinstance(each, tuple)]
    for (peer, _, forwarded, _), number in zip(messages, "23"):
        assert peer.address == "127.0.0.1"
        assert forwarded["ADDR"] == f"127.0.0.{number}"
        assert forwarded["HELO"] == f"client{number}.example"
        assert forwarded["PROTO"] == "ESMTP"


@pytest.mark.interop
def test_postfix_with_us_before_its_queue(trusting_server, postfix):
    # smtpd_proxy_filter: the client waits for our word, and Postfix tells us who it is.
    server = trusting_server(validate_recipient=lambda mailbox: mailbox.local != "c")
    relay = postfix(
        f"smtp:[127.0.0.1]:{server.port}", smtpd_proxy_filter=f"127.0.0.1:{server.port}"
    )
    with smtplib.SMTP("127.0.0.1", relay.port, "client.example", timeout=DEADLINE) as client:
        refused = client.sendmail("a@x.example", ["b@y.example", "c@y.example"], b"hello\r\n")
    assert refused == {"c@y.example": (550, b"5.1.1 No such mailbox")}
    _, _, forwarded, content = server.seen[-1]
    assert forwarded["ADDR"] == "127.0.0.1"
    assert forwarded["HELO"] == "client.example"
    assert content.endswith(b"\r\nhello\r\n")


@pytest.mark.interop
def test_swaks_xclient(trusting_server):
    if shutil.which("swaks") is None:
        pytest.skip("swaks is not installed")
    server = trusting_server()
    done = subprocess.run(
        [
            *("swaks", "--server", "127.0.0.1", "--port", str(server.port)),
            *("--from", "a@x.example", "--to", "b@y.example", "--helo", "client.example"),
            *("--xclient-addr", "192.0.2.1", "--xclient-name", "far.example"),
            *("--xclient-login", "jo", "--xclient-port", "4321"),
        ],
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode()
    peer, user, _, _ = server.seen[-1]
    assert (peer, user) == (Peer("192.0.2.1", 4321), "jo")
