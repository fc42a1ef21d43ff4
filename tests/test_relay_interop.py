"""The relay with real peers: Postfix on either side of it, and aiosmtpd as its next hop."""

import email
import smtplib
from email import policy

import peers
import pytest
from support import DEADLINE, until

from smtpd_sync import Reply, SMTPHandler
from smtpd_sync.relay import Relay

pytestmark = pytest.mark.interop

# Postfix adds what a header lacks.
HEADER = (
    b"From: a@x.example\r\nDate: Mon, 23 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@x.example>\r\n"
)
MESSAGE = HEADER + b"Subject: hi\r\nTo: b@y.example\r\n\r\n.dot\r\n..\r\n.\r\ngr\xc3\xbcn\r\n"


class Keeping(SMTPHandler):
    """Keeps envelopes, and refuses whose name says so."""

    def validate_recipient(self, mailbox):
        code = mailbox.local[:3]
        return Reply(int(code), "not that one", f"{code[0]}.7.9") if code.isdigit() else None

    def deliver_envelope(self, envelope):
        self.server.kept.append((envelope, envelope.content))


@pytest.fixture
def keeping(serve):
    """Serve the last hop; ``.kept`` are (envelope, content)."""

    def make(**options):
        server = serve(Keeping, hostname="last.example", **options)
        server.kept = []
        return server

    return make


@pytest.fixture
def postfix(tmp_path):
    """Start a private Postfix that sends all to a port, stopped after the test."""
    started = []

    def make(port, **options):
        transport = f"smtp:[127.0.0.1]:{port}"
        started.append(peers.start(peers.Postfix, tmp_path, transport, **options))
        return started[-1]

    yield make
    for peer in started:
        peer.stop()


def relaying(serve, port, afterwards=False, server=(), **options):
    """Serve a relay to a port: in step, or with each message when it has come."""
    relay = Relay("127.0.0.1", port, timeout=DEADLINE, **options)
    hook = {"deliver_envelope": relay.deliver_envelope} if afterwards else {"deliver": relay}
    return serve(hostname="relay.example", **hook, **dict(server))


def arrived(server, count=1):
    """Wait for messages at the last hop; give them."""
    until(lambda: len(server.kept) >= count, "the mail")
    return server.kept


@pytest.fixture
def client(no_leaks):
    """Connect with the standard library's client."""
    clients = []

    def make(server):
        made = smtplib.SMTP(*server.address, "client.example", timeout=DEADLINE)
        clients.append(made)
        made.ehlo()
        return made

    yield make
    for each in clients:
        each.close()


# -- Postfix relays through us ---------------------------------------------------------------


@pytest.mark.parametrize("afterwards", [False, True])
def test_postfix_relays_through_us(serve, keeping, postfix, afterwards):
    last = keeping(extensions=["DSN"])
    relay = relaying(serve, last.port, afterwards, {"extensions": ["DSN"]})
    sending = postfix(relay.port)
    sending.send(
        MESSAGE,
        ["b@y.example", "c@y.example"],
        ["BODY=8BITMIME", "RET=HDRS", "ENVID=QQ+2B1"],
        ["NOTIFY=FAILURE,DELAY", "ORCPT=rfc822;Jo+2Bx@y.example"],
    )
    ((envelope, content),) = arrived(last)
    assert sorted(envelope.recipients) == ["b@y.example", "c@y.example"]
    assert envelope.sender_parameters["BODY"] == "8BITMIME"
    assert envelope.sender_parameters["ENVID"] == "QQ+1"
    assert all(each["ORCPT"] == "rfc822;Jo+x@y.example" for each in envelope.recipient_parameters)
    assert content.endswith(MESSAGE)
    assert content.count(b"Received: ") == 3
    assert "status=sent" in sending.logged("relay=127.0.0.1")


def test_postfix_hears_the_refusal_of_the_next_hop(serve, keeping, postfix):
    last = keeping()
    sending = postfix(relaying(serve, last.port).port)
    sending.send(MESSAGE, ["b@y.example", "550@y.example", "450@y.example"])
    log = sending.logged("550 5.7.9 not that one")
    assert "dsn=5.7.9, status=bounced" in log
    assert "dsn=4.7.9, status=deferred" in sending.logged("450 4.7.9 not that one")
    # Its message, and then its bounce, which goes the same way.
    messages = arrived(last, 2)
    assert messages[0][0].recipients == ["b@y.example"]
    assert messages[1][0].recipients == ["a@x.example"]


def test_postfix_defers_while_the_next_hop_is_down(serve, postfix):
    sending = postfix(relaying(serve, peers.free_port()).port)
    sending.send(MESSAGE)
    assert "dsn=4.4.1, status=deferred" in sending.logged("451 4.4.1 The next hop cannot")


# -- we relay through Postfix ----------------------------------------------------------------


@pytest.mark.parametrize("afterwards", [False, True])
def test_we_relay_through_postfix(serve, keeping, postfix, client, afterwards):
    last = keeping(extensions=["DSN"])
    between = postfix(last.port)
    relay = relaying(serve, between.port, afterwards, {"extensions": ["DSN"]})
    smtp = client(relay)
    refused = smtp.sendmail(
        "a@x.example",
        ["b@y.example", "postmaster", "b@y.example"],
        MESSAGE,
        ["BODY=8BITMIME", "RET=FULL", "ENVID=QQ+2B1"],
        ["NOTIFY=FAILURE", "ORCPT=rfc822;Jo+2Bx@y.example"],
    )
    assert refused == {}
    messages = arrived(last)
    until(lambda: sum(len(envelope.recipients) for envelope, _ in messages) == 2, "both")
    envelope, content = messages[0]
    assert envelope.sender_parameters["ENVID"] == "QQ+1"
    assert envelope.recipient_parameters[0]["ORCPT"] == "rfc822;Jo+x@y.example"
    assert content.endswith(MESSAGE)
    connections = between.log().count("connect from unknown[127.0.0.1]")
    # Again, over the same connection of our client.
    smtp.sendmail("a@x.example", ["c@y.example"], MESSAGE)
    until(lambda: last.kept[-1][0].recipients == ["c@y.example"], "the second message")
    more = between.log().count("connect from unknown[127.0.0.1]") - connections
    assert bool(more) is afterwards


def test_refusals_of_postfix_are_heard(serve, postfix, client):
    between = postfix(
        peers.free_port(),
        smtpd_recipient_restrictions="check_recipient_access inline:{{bad@y.example = 550 5.7.30 "
        "we do not like it}}, permit_mynetworks, reject",
        smtpd_sender_restrictions="check_sender_access inline:{{bad@x.example = 471 4.7.31 later}}",
        message_size_limit="10000",
    )
    smtp = client(relaying(serve, between.port, server={"extensions": ["DSN"]}))
    assert smtp.mail("bad@x.example")[0] in (250, 471)
    heard = smtp.rcpt("b@y.example")
    assert heard == (471, b"4.7.31 <bad@x.example>: Sender address rejected: later")
    smtp.rset()
    assert smtp.mail("a@x.example", ["SIZE=20000"])[0] == 552
    assert smtp.mail("a@x.example")[0] == 250
    assert smtp.rcpt("bad@y.example") == (
        550,
        b"5.7.30 <bad@y.example>: Recipient address rejected: we do not like it",
    )
    assert smtp.rcpt("b@y.example")[0] == 250
    assert smtp.data(b"x" * 900 + b"\r\n")[0] == 250
    assert smtp.mail("a@x.example", ["BODY=BINARYMIME"])[0] == 554


def test_size_refused_at_the_end_by_postfix(serve, postfix, client):
    between = postfix(peers.free_port(), message_size_limit="10000")
    smtp = client(relaying(serve, between.port))
    smtp.mail("a@x.example")
    smtp.rcpt("b@y.example")
    code, text = smtp.data((b"x" * 98 + b"\r\n") * 200)
    assert (code, text[:5]) == (552, b"5.3.4")


def test_mixed_result_of_postfix_is_reported(serve, keeping, postfix, client):
    last = keeping()
    between = postfix(
        last.port,
        smtpd_recipient_restrictions="check_recipient_access inline:{{bad@y.example = 550 5.7.30 "
        "we do not like it}}, permit_mynetworks, reject",
    )
    smtp = client(relaying(serve, between.port, afterwards=True))
    smtp.sendmail("a@x.example", ["b@y.example", "bad@y.example"], MESSAGE)
    messages = {str(envelope.sender): content for envelope, content in arrived(last, 2)}
    assert messages["a@x.example"].endswith(MESSAGE)
    report = email.message_from_bytes(messages[""], policy=policy.SMTP)
    assert report.get_content_type() == "multipart/report"
    _, status, _ = report.get_payload()
    fields = status.get_payload(1)
    assert (fields["Action"], fields["Status"]) == ("failed", "5.7.30")
    assert fields["Final-Recipient"] == "rfc822; bad@y.example"


def test_postfix_over_tls(serve, keeping, postfix, client, certificate):
    last = keeping()
    between = postfix(
        last.port,
        smtpd_tls_security_level="encrypt",
        smtpd_tls_cert_file=certificate[0],
        smtpd_tls_key_file=certificate[1],
        smtpd_tls_received_header="yes",
    )
    smtp = client(relaying(serve, between.port))
    assert smtp.sendmail("a@x.example", ["b@y.example"], MESSAGE) == {}
    ((_, content),) = arrived(last)
    assert b"using TLSv1.3" in content


def test_smtputf8_through_postfix(serve, keeping, postfix, client):
    last = keeping()
    smtp = client(relaying(serve, postfix(last.port).port))
    text = HEADER + "Subject: gr\u00fcn\r\n\r\nhello\r\n".encode()
    options = ["SMTPUTF8", "BODY=8BITMIME"]
    smtp.sendmail("\u00e4@x.example", ["\u00f6@y.example"], text, options)
    ((envelope, content),) = arrived(last)
    assert (envelope.sender, envelope.recipients) == ("\u00e4@x.example", ["\u00f6@y.example"])
    assert content.endswith(text)


# -- aiosmtpd as the next hop ----------------------------------------------------------------


@pytest.fixture
def aiosmtpd_hop(no_leaks):
    """Start aiosmtpd; ``.kept`` are its envelopes."""
    controller = pytest.importorskip("aiosmtpd.controller")

    class Handler:
        def __init__(self):
            self.kept = []

        async def handle_RCPT(self, server, session, envelope, address, options):
            if address.startswith("no"):
                return "550 5.7.9 not that one"
            envelope.rcpt_tos.append(address)
            envelope.rcpt_options.extend(options)
            return "250 2.1.5 ok"

        async def handle_DATA(self, server, session, envelope):
            self.kept.append(envelope)
            return "250 2.0.0 taken by aiosmtpd"

    started = []

    def make(**options):
        handler = Handler()
        port = peers.free_port()
        made = controller.Controller(
            handler, hostname="127.0.0.1", port=port, server_hostname="aio.example", **options
        )
        made.start()
        started.append(made)
        return handler, port

    yield make
    for each in started:
        each.stop()


@pytest.mark.parametrize("afterwards", [False, True])
def test_aiosmtpd(aiosmtpd_hop, serve, client, afterwards):
    hop, port = aiosmtpd_hop(enable_SMTPUTF8=True)
    smtp = client(relaying(serve, port, afterwards))
    smtp.mail("a@x.example", ["BODY=8BITMIME", "SIZE=100"])
    for recipient in ("b@y.example", "c@y.example"):
        assert smtp.rcpt(recipient)[0] == 250
    assert smtp.data(MESSAGE) == (250, b"2.0.0 taken by aiosmtpd")
    (envelope,) = hop.kept
    assert envelope.mail_from == "a@x.example"
    assert envelope.rcpt_tos == ["b@y.example", "c@y.example"]
    assert envelope.content.endswith(MESSAGE)


def test_aiosmtpd_refuses(aiosmtpd_hop, serve, client):
    hop, port = aiosmtpd_hop(enable_SMTPUTF8=False)
    smtp = client(relaying(serve, port))
    smtp.mail("a@x.example")
    assert smtp.rcpt("no@y.example") == (550, b"5.7.9 not that one")
    assert smtp.rcpt("b@y.example")[0] == 250
    assert smtp.data(MESSAGE)[0] == 250
    assert hop.kept[0].rcpt_tos == ["b@y.example"]
    # Its SMTPUTF8 is off: mail that declares it cannot go there.
    assert smtp.mail("a@x.example", ["SMTPUTF8"])[0] == 550


def test_large_mail_through_aiosmtpd(aiosmtpd_hop, serve, client):
    hop, port = aiosmtpd_hop()
    smtp = client(relaying(serve, port))
    data = b"".join(b".%070d\r\n" % number for number in range(60_000))
    assert smtp.sendmail("a@x.example", ["b@y.example"], data) == {}
    assert hop.kept[0].content.endswith(data)
