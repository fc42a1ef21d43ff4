"""TLS by name (SNI), certificates that change under way, and certificates of clients."""

import hashlib
import os
import shutil
import signal
import ssl
import subprocess

import pytest
from support import Client, Program, make_certificate, trusting, until

from smtpd_sync import SMTPHandler, SMTPServer, discard
from smtpd_sync.tls import server_context

LOOPBACK = ("127.0.0.1", 0)
OPENSSL = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory, certificate):
    """Four certificates, which only their keys tell apart: [(cert, key), ...]."""
    made = [make_certificate(tmp_path_factory.mktemp(f"tls{number}")) for number in range(3)]
    return [certificate, *made]


def der(certificate):
    with open(certificate[0], encoding="ascii") as file:
        return ssl.PEM_cert_to_DER_cert(file.read())


def shown(server, name=None, starttls=True):
    """Do a handshake that asks for ``name``; give the certificate that the server shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    port = server if isinstance(server, int) else server.port
    with Client(("127.0.0.1", port)) as client:
        if starttls:
            client.hello()
            assert client.ask("STARTTLS").startswith("220 ")
        with context.wrap_socket(client.socket, server_hostname=name) as client.socket:
            if not starttls:
                client.reply()
            assert client.ask("EHLO client.example").startswith("250-")
            return client.socket.getpeercert(binary_form=True)


# -- SNI -------------------------------------------------------------------------------------


@pytest.mark.parametrize("starttls", [True, False], ids=["starttls", "implicit"])
def test_name_picks_the_certificate(serve, certificates, starttls):
    first, second, third, fourth = certificates
    server = serve(
        tls=first,
        implicit_tls=not starttls,
        sni={
            "a.example": second,
            "B.Example": server_context(*third),
            "c.example": lambda: server_context(*fourth),
        },
    )
    for name, wanted in (
        ("a.example", second),
        ("A.EXAMPLE", second),
        ("b.example", third),
        ("c.example", fourth),
        ("d.example", first),
        ("x.a.example", first),
        (None, first),
    ):
        assert shown(server, name, starttls=starttls) == der(wanted), name


def test_name_is_told_to_hooks(serve, connect, certificates):
    names = []

    class Handler(SMTPHandler):
        def validate_helo(self, name):
            names.append(self.session.tls and self.session.tls.server_name)

        deliver = staticmethod(discard)

    for options in ({}, {"sni": {"a.example": certificates[1]}}):
        names.clear()
        server = serve(Handler, tls=certificates[0], **options)
        shown(server, "a.example")
        shown(server, "other.example")
        shown(server)
        assert names == [None, "a.example", None, "other.example", None, None]


def test_channel_binding_is_of_the_certificate_that_was_shown(serve, connect, certificates):
    bindings = []

    class Handler(SMTPHandler):
        def validate_sender(self, mailbox):
            bindings.append(self.session.tls.end_point)

        deliver = staticmethod(discard)

    server = serve(Handler, tls=certificates[0], sni={"localhost": certificates[1]})
    client = connect(server)
    client.hello()
    client.starttls(certificates[1], trusting(certificates[1]))
    client.ask("EHLO client.example")
    client.ask("MAIL FROM:<a@x.example>")
    assert bindings == [hashlib.sha256(der(certificates[1])).digest()]


@pytest.mark.parametrize(
    "sni",
    [
        {"a.example": ("missing.pem", None)},
        {"a.example": (__file__, None)},
        {"a.example": None},
        {"a.example": "cert.pem"},
        {"a b": ("missing.pem", None)},
        {"a.example": lambda: None},
        "a.example",
    ],
    ids=repr,
)
def test_bad_names(no_leaks, certificate, sni):
    with pytest.raises(ValueError, match=r"sni|tls"):
        SMTPServer(LOOPBACK, deliver=discard, tls=certificate, sni=sni)


def test_names_need_a_default(no_leaks, certificate):
    with pytest.raises(ValueError, match="sni"):
        SMTPServer(LOOPBACK, deliver=discard, sni={"a.example": certificate})


def test_starttls_inside_tls_is_bad_sequence(serve, connect, certificate):
    client = connect(serve(tls=certificate, implicit_tls=True))
    client.secure(certificate)
    assert "STARTTLS" not in client.hello()
    assert client.ask("STARTTLS").startswith("503 5.5.1 ")
    assert client.ask("NOOP") == "250 2.0.0 OK"


# -- new certificates on disk ----------------------------------------------------------------


@pytest.fixture
def on_disk(tmp_path, certificates):
    """A certificate on disk that can be replaced: (its files, a function that does it)."""
    files = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")

    def replace(certificate):
        for source, place in zip(certificate, files):
            shutil.copy(source, place + ".new")
            os.replace(place + ".new", place)

    replace(certificates[0])
    return files, replace


def test_reload(serve, connect, inbox, certificates, on_disk):
    files, replace = on_disk
    server = serve(tls=files)
    old = connect(server)
    old.hello()
    old.starttls(certificates[0])
    between = connect(server)
    between.hello()
    replace(certificates[1])
    assert shown(server) == der(certificates[0])  # nothing changes by itself
    server.reload_tls()
    assert shown(server) == der(certificates[1])
    # A connection that was there before sees the new one at its handshake, ...
    between.starttls(certificates[1])
    # ... and one whose handshake is done lives on, and delivers.
    assert old.ask("EHLO client.example").startswith("250-")
    old.ask("MAIL FROM:<a@x.example>")
    old.ask("RCPT TO:<b@y.example>")
    old.ask("DATA")
    assert old.ask("hello\r\n.").startswith("250 ")
    assert b"with ESMTPS " in inbox.data


def test_reload_of_names(serve, certificates, on_disk):
    files, replace = on_disk
    server = serve(tls=certificates[2], sni={"a.example": files})
    assert shown(server, "a.example") == der(certificates[0])
    replace(certificates[1])
    server.reload_tls()
    assert shown(server, "a.example") == der(certificates[1])
    assert shown(server) == der(certificates[2])


def test_reload_of_a_callable(serve, certificates):
    current = [certificates[0]]
    server = serve(tls=lambda: server_context(*current[0]))
    current[0] = certificates[1]
    assert shown(server) == der(certificates[0])
    server.reload_tls()
    assert shown(server) == der(certificates[1])


def test_reload_keeps_the_channel_binding_in_step(serve, connect, certificates, on_disk):
    files, replace = on_disk
    bindings = []

    class Handler(SMTPHandler):
        def validate_helo(self, name):
            bindings.append(self.session.tls and self.session.tls.end_point)

        deliver = staticmethod(discard)

    server = serve(Handler, tls=files)
    replace(certificates[1])
    server.reload_tls()
    shown(server)
    assert bindings[-1] == hashlib.sha256(der(certificates[1])).digest()


@pytest.mark.parametrize("fault", ["missing", "no certificate", "another key", "empty"])
def test_bad_file_keeps_the_old(serve, certificates, on_disk, fault):
    files, replace = on_disk
    server = serve(tls=files, users={"jo": "word"})
    if fault == "missing":
        os.unlink(files[0])
    elif fault == "another key":
        shutil.copy(certificates[1][1], files[1])
    else:
        with open(files[0], "w", encoding="ascii") as file:
            file.write("" if fault == "empty" else "no certificate")
    with pytest.raises(ValueError, match=r"^tls: .*cert\.pem"):
        server.reload_tls()
    assert shown(server) == der(certificates[0])
    replace(certificates[1])
    server.reload_tls()
    assert shown(server) == der(certificates[1])


def test_bare_context_cannot_be_reloaded(serve, certificates):
    server = serve(tls=server_context(*certificates[0]))
    with pytest.raises(ValueError, match="reload_tls"):
        server.reload_tls()
    assert shown(server) == der(certificates[0])


def test_server_without_tls_cannot_be_reloaded(serve):
    with pytest.raises(ValueError, match="reload_tls"):
        serve().reload_tls()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the platform has no SIGHUP")
def test_sighup_reloads(no_leaks, certificates, on_disk):
    files, replace = on_disk
    arguments = ("-m", "smtpd_sync", "127.0.0.1:0", "--tls-cert", files[0], "--tls-key", files[1])
    with Program(*arguments) as program:
        port = program.port()
        with Client(("127.0.0.1", port)) as old:
            old.hello()
            old.starttls(certificates[0])
            replace(certificates[1])
            program.signal(signal.SIGHUP)
            until(lambda: shown(port) == der(certificates[1]), "the new certificate")
            with open(files[0], "w", encoding="ascii") as file:
                file.write("no certificate")
            program.signal(signal.SIGHUP)
            assert shown(port) == der(certificates[1])
            assert old.ask("EHLO client.example").startswith("250-")
            assert old.ask("QUIT").startswith("221 ")
        program.signal(signal.SIGTERM)
        assert program.finish() == 0, program.errors
        (line,) = program.errors.splitlines()  # of the file that cannot be used
        assert "SIGHUP" in line
        assert "cert.pem" in line


# -- certificates of clients -----------------------------------------------------------------


@pytest.fixture
def client_certificate(tmp_path):
    paths = [str(tmp_path / name) for name in ("client.pem", "client.key")]
    subprocess.run(
        [
            *OPENSSL.split(),
            *("-nodes", "-days", "2", "-subj", "/CN=client.example"),
            *("-out", paths[0], "-keyout", paths[1]),
        ],
        check=True,
        capture_output=True,
    )
    return paths


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_certificate_of_the_client(serve, connect, certificates, client_certificate, version):
    asking = server_context(*certificates[0])
    asking.verify_mode = ssl.CERT_OPTIONAL
    asking.load_verify_locations(client_certificate[0])
    seen = []

    class Handler(SMTPHandler):
        def validate_sender(self, mailbox):
            seen.append(self.envelope.tls.peer_certificate)

        deliver = staticmethod(discard)

    server = serve(Handler, tls=asking)
    for mine in (client_certificate, None):
        context = trusting(certificates[0])
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
        if mine:
            context.load_cert_chain(*mine)
        client = connect(server)
        client.hello()
        client.starttls(certificates[0], context)
        client.ask("EHLO client.example")
        assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
    known, unknown = seen
    assert known["subject"] == ((("commonName", "client.example"),),)
    assert unknown is None


def test_certificate_of_a_stranger_is_refused(serve, connect, certificates, client_certificate):
    asking = server_context(*certificates[0])
    asking.verify_mode = ssl.CERT_OPTIONAL
    asking.load_verify_locations(certificates[1][0])
    context = trusting(certificates[0])
    context.load_cert_chain(*client_certificate)
    client = connect(serve(tls=asking))
    client.hello()
    # In TLS 1.3 the client hears of it only behind the handshake.
    with pytest.raises((ssl.SSLError, ConnectionError)):  # noqa: PT012
        client.starttls(certificates[0], context)
        client.ask("EHLO client.example")
