"""TLS: STARTTLS, implicit TLS, what it forgets, and what it keeps others from putting in."""

import socket
import ssl
import time
import warnings
from pathlib import Path

import pytest
from support import SOON, Client, trusting, until

from smtpd_sync import Limits, SMTPHandler, SMTPServer, discard
from smtpd_sync.tls import server_context

# -- STARTTLS --------------------------------------------------------------------------------


def test_mail_over_starttls(serve, connect, certificate, inbox):
    client = connect(serve(tls=certificate))
    assert "STARTTLS" in client.hello()
    client.starttls(certificate)
    assert client.ask("EHLO client.example").startswith("250-mx.example")
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    assert client.ask("DATA").startswith("354 ")
    client.send(b"Subject: hi\r\n\r\nhello\r\n.\r\n")
    assert client.reply().startswith("250 ")
    assert inbox.data.endswith(b"hello\r\n")
    assert client.ask("QUIT").startswith("221 ")
    assert client.ended()  # with close_notify: suppress_ragged_eofs is off


def test_starttls_is_not_offered_without_tls(serve, connect):
    client = connect(serve())
    assert "STARTTLS" not in client.hello()
    assert client.ask("STARTTLS").startswith("502 5.5.1 ")


def test_starttls_is_not_offered_inside_tls(serve, connect, certificate):
    client = connect(serve(tls=certificate))
    client.hello()
    client.starttls(certificate)
    assert "STARTTLS" not in client.ask("EHLO client.example")
    assert client.ask("STARTTLS").startswith("503 5.5.1 ")


def test_starttls_forgets_the_greeting(serve, connect, certificate):
    client = connect(serve(tls=certificate))
    client.hello()
    client.starttls(certificate)
    assert client.ask("MAIL FROM:<a@x.example>").startswith("503 5.5.1 ")  # EHLO is due again
    assert client.ask("EHLO client.example").startswith("250-")
    assert client.ask("RCPT TO:<b@y.example>").startswith("503 5.5.1 ")


def test_hook_sees_nothing_of_what_was_said_in_the_clear(serve, connect, certificate):
    # RFC 3207 4.2: the server must discard any knowledge obtained from the client.
    seen = []

    class Handler(SMTPHandler):
        def verify(self, text):
            seen.append((self.session.helo, self.session.esmtp, self.session.envelope))

        deliver = staticmethod(discard)

    client = connect(serve(Handler, tls=certificate))
    client.hello()
    client.ask("VRFY jo")
    client.starttls(certificate)
    client.ask("VRFY jo")
    assert seen == [("client.example", True, None), ("", False, None)]


def test_starttls_inside_a_transaction_is_bad_sequence(serve, connect, certificate):
    client = connect(serve(tls=certificate))
    client.hello()
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask("STARTTLS").startswith("503 5.5.1 ")


def test_what_was_injected_behind_starttls_never_runs(serve, connect, certificate, inbox):
    # The attack of CVE-2011-0411: commands in the clear that would run inside TLS.
    senders = []
    client = connect(serve(tls=certificate, validate_sender=senders.append))
    client.hello()
    client.send(b"STARTTLS\r\nEHLO evil.example\r\nMAIL FROM:<evil@x.example>\r\n")
    reply = client.reply()
    if reply.startswith("220 "):
        client.secure(certificate)
        assert client.ask("NOOP") == "250 2.0.0 OK"  # and no reply to what was injected
        assert client.ask("RCPT TO:<b@y.example>").startswith("503 ")
    else:
        assert client.ended()
    assert senders == []


def test_hook_sees_tls(serve, connect, certificate):
    seen = []

    class Handler(SMTPHandler):
        def validate_sender(self, mailbox):
            seen.append((self.session.tls, self.envelope.tls))

        deliver = staticmethod(discard)

    client = connect(serve(Handler, tls=certificate))
    client.hello()
    client.ask("MAIL FROM:<a@x.example>")
    client.ask("RSET")
    client.starttls(certificate)
    client.ask("EHLO client.example")
    client.ask("MAIL FROM:<a@x.example>")
    assert seen[0] == (None, None)
    session, envelope = seen[1]
    assert session == envelope
    name, version, bits = client.socket.cipher()
    assert session.version == client.socket.version() in ("TLSv1.2", "TLSv1.3")
    assert session.cipher == name
    assert session.bits == bits
    assert version


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_tls_versions(serve, connect, certificate, inbox, version):
    context = trusting(certificate)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    client = connect(serve(tls=certificate))
    client.hello()
    client.starttls(certificate, context)
    assert client.socket.version() == version.replace("_", ".")
    assert client.ask("EHLO client.example").startswith("250-")
    assert client.ask("QUIT").startswith("221 ")
    assert client.ended()


def test_tls_1_1_is_refused(serve, connect, certificate):
    context = trusting(certificate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    client = connect(serve(tls=certificate))
    client.hello()
    assert client.ask("STARTTLS").startswith("220 ")
    with pytest.raises(ssl.SSLError, match=r"(?i)version|alert"):
        client.secure(certificate, context)


def test_own_contexts_are_of_tls_1_2_at_least(certificate):
    context = server_context(*certificate)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_garbage_for_a_handshake_closes(serve, connect, certificate):
    reasons = []
    client = connect(serve(tls=certificate, session_ended=reasons.append))
    client.hello()
    assert client.ask("STARTTLS").startswith("220 ")
    client.send(b"EHLO plain.example\r\nMAIL FROM:<a@x.example>\r\n")
    assert b"250" not in client.gone()
    until(lambda: reasons, "the end of the session")
    assert len(reasons) == 1


def test_client_gone_in_the_handshake(serve, certificate):
    reasons = []
    server = serve(tls=certificate, session_ended=reasons.append)
    with Client(server) as client:
        client.hello()
        client.ask("STARTTLS")
    until(lambda: reasons, "the end of the session")


def test_client_that_does_not_trust_us_is_no_trouble(serve, connect, certificate):
    server = serve(tls=certificate)
    client = connect(server)
    client.hello()
    client.ask("STARTTLS")
    with pytest.raises(ssl.SSLError):
        client.secure(certificate, ssl.create_default_context())
    client.close()
    assert connect(server).hello()


def test_end_without_close_notify_delivers_nothing(serve, connect, certificate, inbox):
    reasons = []
    client = connect(serve(tls=certificate, session_ended=reasons.append))
    client.hello()
    client.starttls(certificate)
    client.ask("EHLO client.example")
    client.ask("MAIL FROM:<a@x.example>")
    client.ask("RCPT TO:<b@y.example>")
    client.ask("DATA")
    client.send(b"half a message\r\n")
    client.socket.shutdown(socket.SHUT_RDWR)
    until(lambda: reasons, "the end of the session")
    assert inbox.messages == []


def test_plain_octets_behind_close_notify_are_not_read(serve, connect, certificate, inbox):
    client = connect(serve(tls=certificate))
    client.hello()
    client.starttls(certificate)
    client.ask("EHLO client.example")
    plain = client.socket.unwrap()
    client.socket = plain
    try:
        plain.sendall(b"MAIL FROM:<evil@x.example>\r\n")
    except OSError:
        pass  # it is closed already, as it should be
    assert b"250" not in client.gone()


# -- implicit TLS ----------------------------------------------------------------------------


def test_implicit_tls(serve, connect, certificate, inbox):
    client = connect(serve(tls=certificate, implicit_tls=True))
    client.secure(certificate)
    reply = client.mail()
    assert reply.startswith("250 ")
    assert b"with ESMTPS id" in inbox.data
    assert "STARTTLS" not in client.ask("EHLO client.example")
    assert client.ask("STARTTLS")[:4] in ("502 ", "503 ")
    assert client.ask("QUIT").startswith("221 ")
    assert client.ended()


def test_implicit_tls_says_nothing_in_the_clear(serve, connect, certificate):
    client = connect(serve(tls=certificate, implicit_tls=True))
    client.send(b"EHLO client.example\r\n")
    assert b"220" not in client.gone()


def test_tls_on_the_plain_port_is_refused_in_the_clear(serve, connect, certificate):
    client = connect(serve(tls=certificate))
    client.reply()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        client.secure(certificate)


# -- require_tls -----------------------------------------------------------------------------


def test_require_tls(serve, connect, certificate, inbox):
    client = connect(serve(tls=certificate, require_tls=True))
    client.hello()
    # RFC 3207 4: all but NOOP, EHLO, STARTTLS and QUIT
    for line in ("MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>", "DATA", "RSET", "VRFY jo"):
        assert client.ask(line).startswith("530 5.7.0 "), line
    assert client.ask("HELO client.example").startswith("530 ")
    assert client.ask("NOOP").startswith("250 ")
    client.starttls(certificate)
    assert client.ask("EHLO client.example").startswith("250-")
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")


@pytest.mark.parametrize("option", ["require_tls", "implicit_tls"])
def test_tls_options_need_a_certificate(option):
    with pytest.raises(ValueError, match="tls"):
        SMTPServer(("127.0.0.1", 0), deliver=discard, **{option: True})


# -- mail ------------------------------------------------------------------------------------


def test_large_message_over_tls(serve, connect, certificate, inbox):
    data = b"".join(b"%060d\r\n" % number for number in range(50_000))
    client = connect(serve(tls=certificate, implicit_tls=True, trace=False))
    client.secure(certificate)
    assert client.mail(data).startswith("250 ")
    assert inbox.data == data


def test_pipelined_group_inside_tls(serve, connect, certificate):
    client = connect(serve(tls=certificate))
    client.hello()
    client.starttls(certificate)
    client.ask("EHLO client.example")
    client.send(b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n")
    assert client.socket.recv(65536).count(b"\r\n") == 3  # in one record, so in one piece


def test_many_records_read_at_once(serve, connect, certificate, inbox):
    client = connect(serve(tls=certificate, implicit_tls=True, trace=False))
    client.secure(certificate)
    client.to_data()
    for _ in range(500):
        client.send(b"x\r\n")
    client.send(b".\r\n")
    assert client.reply().startswith("250 ")
    assert inbox.data == b"x\r\n" * 500


# -- closing ---------------------------------------------------------------------------------


def test_stop_tells_an_idle_tls_client_inside_tls(serve, connect, certificate):
    server = serve(tls=certificate)
    client = connect(server)
    client.hello()
    client.starttls(certificate)
    start = time.monotonic()
    server.stop()
    assert time.monotonic() - start < SOON
    assert client.reply().startswith("421 4.3.2 ")
    assert client.ended()


def test_errors_inside_tls_close_with_close_notify(serve, connect, certificate):
    client = connect(serve(tls=certificate, limits=Limits(errors=1)))
    client.hello()
    client.starttls(certificate)
    client.ask("BOGUS")
    assert client.ask("BOGUS").startswith("421 4.7.0 ")
    assert client.ended()


# -- the option ------------------------------------------------------------------------------


def secured(client, certificate):
    client.hello()
    client.starttls(certificate)
    return client.ask("EHLO client.example").startswith("250-")


def test_tls_as_a_context(serve, connect, certificate):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    assert secured(connect(serve(tls=context)), certificate)


def test_tls_as_a_callable(serve, connect, certificate):
    assert secured(connect(serve(tls=lambda: server_context(*certificate))), certificate)


def test_tls_as_one_file(serve, connect, certificate, tmp_path):
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(Path(name).read_bytes() for name in reversed(certificate)))
    assert secured(connect(serve(tls=(str(both), None))), certificate)


def test_tls_as_paths(serve, connect, certificate):
    paths = tuple(Path(name) for name in certificate)
    assert secured(connect(serve(tls=paths)), certificate)


def test_missing_certificate_is_a_value_error_that_names_it(tmp_path):
    missing = str(tmp_path / "missing.pem")
    with pytest.raises(ValueError, match=r"tls: .*missing\.pem"):
        SMTPServer(("127.0.0.1", 0), deliver=discard, tls=(missing, None))


def test_file_that_is_no_certificate_is_a_value_error_that_names_it(tmp_path):
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("not a certificate")
    with pytest.raises(ValueError, match=r"tls: .*rubbish\.pem"):
        SMTPServer(("127.0.0.1", 0), deliver=discard, tls=(str(rubbish), str(rubbish)))


@pytest.mark.parametrize("setting", [42, "cert.pem", ("a", "b", "c"), lambda: "a context"])
def test_tls_that_is_none_is_a_value_error(setting):
    with pytest.raises(ValueError, match="tls"):
        SMTPServer(("127.0.0.1", 0), deliver=discard, tls=setting)


def test_configure_replaces_the_certificate(serve, connect, certificate, tmp_path):
    server = serve(tls=certificate)
    asked = []

    def renewed():
        asked.append(1)
        return server_context(*certificate)

    server.configure(tls=renewed)
    assert asked
    assert secured(connect(server), certificate)
    server.configure(tls=None)
    assert "STARTTLS" not in connect(server).hello()


def test_configure_without_tls_leaves_a_session_that_saw_it_offered(serve, connect, certificate):
    server = serve(tls=certificate)
    client = connect(server)
    client.hello()
    server.configure(tls=None)
    client.starttls(certificate)
    assert client.ask("EHLO client.example").startswith("250-")
