"""Mail programs of the system against the extensions: swaks, curl, msmtp and Postfix.

None of them sends BDAT: Postfix takes CHUNKING as a server and does not speak it as a client
(BDAT_README), curl, swaks and msmtp do not know it.
"""

import os
import shutil
import smtplib
import ssl
import subprocess

import peers
import pytest
from support import DEADLINE, until

from smtpd_sync import Reply, ScramKeys, SMTPHandler
from smtpd_sync.tls import server_context

pytestmark = pytest.mark.interop

PASSWORD = "correct horse battery"
OPENSSL = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1"
MESSAGE = b"Subject: hi\nTo: b@y.example\n\n.dot\nhello\n"


def run(*command, status=0, data=b"", **options):
    """Run a mail program; give what it says. Skip where it is missing."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        command, input=data, capture_output=True, timeout=DEADLINE, check=False, **options
    )
    text = (done.stdout + done.stderr).decode(errors="replace")
    assert (done.returncode == 0) is (status == 0), text
    return text


class Keeping(SMTPHandler):
    """Takes who has the password, and keeps its envelopes."""

    keys = ScramKeys.of(PASSWORD, b"sixteen octets ..")

    def authenticate(self, credentials):
        self.server.mechanisms_used.append(credentials.mechanism)
        if credentials.certificate:
            return "by certificate"
        return credentials.check(PASSWORD) or credentials.token == "good.token"

    def secret(self, mechanism, username):
        self.server.mechanisms_used.append(mechanism)
        if username != "jo":
            return None
        return PASSWORD if mechanism == "CRAM-MD5" else self.keys

    def deliver_envelope(self, envelope):
        self.server.kept.append((envelope, envelope.content, envelope.user))


@pytest.fixture
def keeping(serve, certificate):
    def make(handler=Keeping, **options):
        options.setdefault("tls", certificate)
        server = serve(handler, **options)
        server.kept, server.mechanisms_used = [], []
        return server

    return make


MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256", "XOAUTH2", "OAUTHBEARER", "EXTERNAL")


@pytest.fixture(params=["starttls", "implicit", "clear"])
def secured(request, keeping):
    """Serve all mechanisms in each of three ways: (how, server)."""
    options = {
        "starttls": {"require_tls": True},
        "implicit": {"implicit_tls": True},
        "clear": {"auth_require_tls": False, "tls": None},
    }[request.param]
    return request.param, keeping(mechanisms=MECHANISMS[:-1], require_auth=True, **options)


def check(how, server, mechanism, user="jo"):
    """Check the one message that came, and how its sender was let in."""
    ((envelope, content, who),) = server.kept
    assert (envelope.sender, envelope.recipients) == ("a@x.example", ["b@y.example"])
    assert who == user
    assert set(server.mechanisms_used) == {mechanism}
    assert (b" with ESMTPA id " if how == "clear" else b" with ESMTPSA id ") in content


# -- swaks -----------------------------------------------------------------------------------


def swaks(how, server, mechanism, password=PASSWORD, status=0):
    flags = {"clear": [], "starttls": ["--tls"], "implicit": ["-tlsc"]}
    if how != "clear" and "TLS supported" not in run("swaks", "--support"):
        pytest.skip("swaks was installed without TLS")
    return run(
        *("swaks", "--server", "127.0.0.1", "--port", str(server.port), *flags[how]),
        *("--from", "a@x.example", "--to", "b@y.example", "--helo", "client.example"),
        *("--auth", mechanism, "--auth-user", "jo", "--auth-password", password),
        status=status,
    )


# It knows CRAM-SHA1, DIGEST-MD5 and NTLM, too, which nobody should offer.
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_swaks(secured, mechanism):
    how, server = secured
    assert "535 5.7.8" in swaks(how, server, mechanism, "wrong", status=1)
    assert server.kept == []
    assert "235 2.7.0" in swaks(how, server, mechanism)
    check(how, server, mechanism)


# -- curl ------------------------------------------------------------------------------------


def curl(how, server, certificate, tmp_path, *more, status=0):
    (tmp_path / "mail").write_bytes(MESSAGE)
    scheme = "smtps" if how == "implicit" else "smtp"
    return run(
        *("curl", "-v", f"{scheme}://localhost:{server.port}/client.example"),
        *(["--ssl-reqd"] if how == "starttls" else []),
        *("--cacert", certificate[0], "--mail-from", "a@x.example", "--mail-rcpt", "b@y.example"),
        *("-T", str(tmp_path / "mail"), *more),
        status=status,
    )


@pytest.mark.parametrize("sasl_ir", [[], ["--sasl-ir"]], ids=["", "SASL-IR"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_curl(secured, certificate, tmp_path, mechanism, sasl_ir):
    how, server = secured
    more = ("--login-options", f"AUTH={mechanism}", *sasl_ir)
    curl(how, server, certificate, tmp_path, "--user", "jo:wrong", *more, status=67)
    assert server.kept == []
    text = curl(how, server, certificate, tmp_path, "--user", f"jo:{PASSWORD}", *more)
    if sasl_ir and mechanism == "PLAIN":
        assert "334" not in text
    check(how, server, mechanism)


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
@pytest.mark.parametrize("how", ["starttls", "implicit"])
def test_curl_with_a_token(keeping, certificate, tmp_path, how, mechanism):
    # It takes OAUTHBEARER whatever --login-options says, where that is offered.
    server = keeping(mechanisms=[mechanism], implicit_tls=how == "implicit", require_auth=True)
    more = ("--user", "jo:", "--login-options", f"AUTH={mechanism}", "--sasl-ir")
    curl(how, server, certificate, tmp_path, "--oauth2-bearer", "bad.token", *more, status=67)
    assert server.kept == []
    curl(how, server, certificate, tmp_path, "--oauth2-bearer", "good.token", *more)
    check(how, server, mechanism)


@pytest.fixture
def client_certificate(tmp_path):
    paths = [str(tmp_path / name) for name in ("client.pem", "client.key")]
    made = ("-nodes", "-days", "2", "-subj", "/CN=client", "-out", paths[0], "-keyout", paths[1])
    subprocess.run([*OPENSSL.split(), *made], check=True, capture_output=True)
    return paths


@pytest.fixture
def asking(keeping, certificate, client_certificate):
    """Serve EXTERNAL to who has a certificate."""
    context = server_context(*certificate)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(client_certificate[0])
    return keeping(tls=context, mechanisms=["EXTERNAL"], require_auth=True)


def test_curl_with_a_certificate(asking, certificate, client_certificate, tmp_path):
    cert, key = client_certificate
    more = ("--cert", cert, "--key", key, "--user", "jo:", "--login-options", "AUTH=EXTERNAL")
    curl("starttls", asking, certificate, tmp_path, *more)
    check("starttls", asking, "EXTERNAL", "by certificate")


# -- msmtp, whose SCRAM is that of GNU SASL --------------------------------------------------


def msmtp(how, server, certificate, mechanism, password=PASSWORD, status=0, more=()):
    tls = {
        "clear": ["--tls=off"],
        "starttls": ["--tls=on", "--tls-starttls=on"],
        "implicit": ["--tls=on", "--tls-starttls=off"],
    }
    supported = run("msmtp", "--version").partition("authentication methods:")[2].split()
    if mechanism.lower() not in supported:
        pytest.skip(f"msmtp was built without {mechanism}")
    return run(
        *("msmtp", "--file=/dev/null", "--host=localhost", f"--port={server.port}"),
        *("--from=a@x.example", "--domain=client.example", *tls[how]),
        *([] if how == "clear" else [f"--tls-trust-file={certificate[0]}"]),
        *(f"--auth={mechanism.lower()}", "--user=jo", f"--passwordeval=echo '{password}'"),
        *(*more, "b@y.example"),
        data=MESSAGE,
        status=status,
    )


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"])
def test_msmtp(secured, certificate, mechanism):
    how, server = secured
    msmtp(how, server, certificate, mechanism, "wrong", status=77)
    assert server.kept == []
    msmtp(how, server, certificate, mechanism)
    check(how, server, mechanism)


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_msmtp_with_a_token(secured, certificate, mechanism):
    how, server = secured
    msmtp(how, server, certificate, mechanism, "bad.token", status=77)
    msmtp(how, server, certificate, mechanism, "good.token")
    check(how, server, mechanism)


def test_msmtp_with_a_certificate(asking, certificate, client_certificate):
    cert, key = client_certificate
    more = (f"--tls-cert-file={cert}", f"--tls-key-file={key}")
    msmtp("starttls", asking, certificate, "EXTERNAL", more=more)
    check("starttls", asking, "EXTERNAL", "by certificate")


def test_msmtp_asks_for_dsn(keeping, certificate):
    server = keeping(extensions=["DSN"])
    more = ("--dsn-notify=success,delay", "--dsn-return=headers")
    msmtp("starttls", server, certificate, "SCRAM-SHA-256", more=more)
    ((envelope, _, _),) = server.kept
    assert envelope.sender_parameters["RET"] == "HDRS"
    (parameters,) = envelope.recipient_parameters
    assert parameters["NOTIFY"].upper() == "SUCCESS,DELAY"


# -- Postfix ---------------------------------------------------------------------------------


@pytest.fixture
def postfix(tmp_path):
    """Start a private Postfix, stopped after the test: ``postfix(server, **options)``."""
    started = []

    def make(server, transport=None, **options):
        by_default = transport or f"smtp:[127.0.0.1]:{server.port}"
        started.append(peers.start(peers.Postfix, tmp_path, by_default, **options))
        return started[-1]

    yield make
    for peer in started:
        peer.stop()


def sent(relay, server, count=1):
    """Wait until Postfix has passed on what it took; give what we kept."""
    relay.logged("status=sent")
    until(lambda: len(server.kept) == count, "the mail")
    return server.kept[-1]


def test_postfix(keeping, postfix):
    server = keeping(tls=None, auth_require_tls=False, extensions=["DSN"])
    relay = postfix(server)
    relay.send(
        b"Subject: hi\r\n\r\n.dot\r\n\xc3\xb6\r\n",
        ["b@y.example", "c@y.example"],
        ["BODY=8BITMIME", "RET=HDRS", "ENVID=QQ+2B314159"],
        ["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;Jo+2Bx@y.example"],
    )
    envelope, content, _ = sent(relay, server)
    assert sorted(envelope.recipients) == ["b@y.example", "c@y.example"]
    assert content.endswith(b"\r\n\r\n.dot\r\n\xc3\xb6\r\n")
    # RFC 3461: they arrive as they were meant, xtext decoded.
    parameters = envelope.sender_parameters
    assert parameters["ENVID"] == "QQ+314159"
    assert parameters["RET"] == "HDRS"
    assert parameters["BODY"] == "8BITMIME"
    assert int(parameters["SIZE"]) > 0
    for each in envelope.recipient_parameters:
        assert set(each["NOTIFY"].split(",")) == {"SUCCESS", "FAILURE"}
        assert each["ORCPT"] == "rfc822;Jo+x@y.example"
    assert b" with ESMTP id " in content


def test_postfix_hears_each_refusal(keeping, postfix):
    server = keeping(
        tls=None,
        auth_require_tls=False,
        validate_recipient=lambda mailbox: (
            Reply(450, "Not now", "4.2.1") if mailbox.local == "c" else None
        ),
    )
    relay = postfix(server)
    relay.send(b"hello\r\n", ["b@y.example", "c@y.example"])
    envelope, _, _ = sent(relay, server)
    assert envelope.recipients == ["b@y.example"]
    log = relay.logged("450 4.2.1 Not now")
    assert "to=<c@y.example>" in log
    assert "dsn=4.2.1, status=deferred" in log


def test_postfix_sends_smtputf8(keeping, postfix):
    server = keeping(tls=None, auth_require_tls=False)
    relay = postfix(server)
    with smtplib.SMTP("127.0.0.1", relay.port, "client.example", timeout=DEADLINE) as client:
        text = "Subject: gr\u00fcn\r\n\r\nhello\r\n".encode()
        client.ehlo()
        client.sendmail(
            "\u00e4@x.example", ["\u00f6@y.example"], text, ["SMTPUTF8", "BODY=8BITMIME"]
        )
    envelope, content, _ = sent(relay, server)
    assert (envelope.sender, envelope.recipients) == ("\u00e4@x.example", ["\u00f6@y.example"])
    assert envelope.smtputf8
    assert b" with UTF8SMTP id " in content  # RFC 6531 4.3


@pytest.mark.parametrize("wrapper", [False, True], ids=["starttls", "implicit"])
def test_postfix_over_tls(keeping, postfix, certificate, wrapper):
    server = keeping(require_tls=not wrapper, implicit_tls=wrapper)
    relay = postfix(
        server,
        smtp_tls_security_level="secure",
        smtp_tls_wrappermode="yes" if wrapper else "no",
        smtp_tls_CAfile=certificate[0],
        smtp_tls_secure_cert_match="localhost",
    )
    relay.send(b"hello\r\n")
    envelope, content, _ = sent(relay, server)
    assert b" with ESMTPS id " in content
    assert envelope.tls.version == "TLSv1.3"
    assert "Verified TLS connection established" in relay.log()


# The SCRAM of Cyrus SASL: a third one.
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"])
def test_postfix_with_auth(keeping, postfix, certificate, mechanism):
    server = keeping(require_auth=True, require_tls=True, mechanisms=MECHANISMS)
    relay = postfix(
        server,
        smtp_tls_security_level="encrypt",
        smtp_sasl_auth_enable="yes",
        smtp_sasl_password_maps=f"static:{{jo:{PASSWORD}}}",
        smtp_sasl_security_options="",
        smtp_sasl_tls_security_options="",
        smtp_sasl_mechanism_filter=mechanism,
    )
    relay.send(b"hello\r\n")
    log = relay.logged("status=")
    if "no mechanism available" in log:
        pytest.skip(f"the SASL library of Postfix has no {mechanism}")
    _, content, user = sent(relay, server)
    assert user == "jo"
    assert server.mechanisms_used == [mechanism]
    assert b" with ESMTPSA id " in content


class PerRecipient(Keeping):
    def deliver_envelope(self, envelope):
        super().deliver_envelope(envelope)
        full = Reply(452, "Mailbox full", "4.2.2")
        return [full if each.local == "c" else None for each in envelope.recipients]


@pytest.mark.parametrize("where", ["inet", "unix"])
def test_postfix_over_lmtp(keeping, postfix, tmp_path, where):
    options = {"lmtp": True, "tls": None, "auth_require_tls": False, "extensions": ["DSN"]}
    if where == "unix":
        path = str(tmp_path / "lmtp")
        server = keeping(PerRecipient, address=path, **options)
        os.chmod(path, 0o666)  # Postfix comes as its own user
        transport = f"lmtp:unix:{path}"
    else:
        server = keeping(PerRecipient, **options)
        transport = f"lmtp:inet:127.0.0.1:{server.port}"
    relay = postfix(server, transport)
    relay.send(b"hello\r\n", ["b@y.example", "c@y.example", "d@y.example"])
    envelope, content, _ = sent(relay, server)
    assert len(envelope.recipients) == 3
    assert b" with LMTP id " in content
    until(lambda: relay.log().count("status=") == 3, "three verdicts")
    log = relay.log()
    lines = {line.split("to=<")[1][0]: line for line in log.split("\n") if "status=" in line}
    assert "status=sent (250 2.0.0 OK " in lines["b"]
    assert "452 4.2.2 Mailbox full" in lines["c"]
    assert "status=sent (250 2.0.0 OK " in lines["d"]


def test_postfix_sends_many_over_one_connection(keeping, postfix):
    server = keeping(tls=None, auth_require_tls=False)
    relay = postfix(server, smtp_connection_cache_on_demand="yes")
    for number in range(20):
        relay.send(b"%d\r\n" % number)
    until(lambda: len(server.kept) == 20, "all of the mail")
    assert sorted(int(content.split()[-1]) for _, content, _ in server.kept) == list(range(20))
