"""The command line: AUTH, LMTP, proxies, Unix sockets, extensions, certificates by name."""

import os
import signal
import smtplib
import socket
import ssl
import sys
import textwrap
from pathlib import Path

import pytest
from support import SOON, Client, make_certificate, trusting

from smtpd_sync import cli

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")

MESSAGE = b"Subject: hi there\r\n\r\nhello, world\r\n"
CLEAR = "--no-auth-require-tls"


def ended(program):
    program.signal(signal.SIGTERM)
    assert program.finish() == 0, program.errors
    return program.remaining().decode()


def logs_in(port, username, password, context=None):
    with smtplib.SMTP("localhost", port, timeout=20) as client:
        if context:
            client.starttls(context=context)
        try:
            client.login(username, password)
        except smtplib.SMTPAuthenticationError as error:
            return error.smtp_code != 535
        client.sendmail("a@x.example", ["b@y.example"], MESSAGE)
        return True


# -- AUTH ------------------------------------------------------------------------------------


def test_auth_any(serving):
    program, port = serving("--auth", "any", CLEAR)
    assert logs_in(port, "whoever", "whatever")
    assert "whatever" not in ended(program)


def test_auth_user(serving, certificate):
    tls = ("--tls-cert", certificate[0], "--tls-key", certificate[1])
    program, port = serving("--auth", "jo:pass:word", "--auth", "al:other", "-vv", *tls)
    context = trusting(certificate)
    assert logs_in(port, "jo", "pass:word", context)
    assert logs_in(port, "al", "other", context)
    assert not logs_in(port, "jo", "other", context)
    assert not logs_in(port, "al", "pass:word", context)
    assert "ESMTPSA" in ended(program)
    assert "pass:word" not in program.errors


def test_auth_file(serving, tmp_path):
    (tmp_path / "users").write_text("jo:pass:word\nal:spaces at the end \n")
    program, port = serving("--auth", str(tmp_path / "users"), "--require-auth", CLEAR)
    with Client(("127.0.0.1", port)) as client:
        client.hello()
        assert client.ask("MAIL FROM:<a@x.example>").startswith("530 5.7.0 ")
    assert logs_in(port, "jo", "pass:word")
    assert logs_in(port, "al", "spaces at the end ")
    assert not logs_in(port, "jo", "word")
    ended(program)


@pytest.mark.parametrize("content", ["", "\n", "no colon\n"])
def test_file_without_users_lets_nobody_in(run, tmp_path, content):
    # It must not be taken for "any".
    (tmp_path / "users").write_text(content)
    assert "users" in complaint(run("127.0.0.1:0", "--auth", str(tmp_path / "users"), CLEAR))


def test_mechanisms(serving):
    arguments = ("--mechanism", "CRAM-MD5", "--mechanism", "plain")
    program, port = serving("--auth", "jo:word", CLEAR, *arguments)
    with Client(("127.0.0.1", port)) as client:
        assert "250-AUTH PLAIN CRAM-MD5" in client.hello().replace("250 AUTH", "250-AUTH")
    ended(program)


HANDLER = """
    from smtpd_sync import SMTPHandler

    class Mine(SMTPHandler):
        users = {"jo": "word"}
        auth_require_tls = False
        require_auth = True
"""


def test_users_of_a_handler_are_kept(serving, tmp_path):
    (tmp_path / "mine.py").write_text(textwrap.dedent(HANDLER))
    program, port = serving("--handler", "mine:Mine", cwd=tmp_path)
    assert logs_in(port, "jo", "word")
    assert not logs_in(port, "jo", "other")
    ended(program)


# -- other protocols -------------------------------------------------------------------------


def test_lmtp(serving):
    program, port = serving("--lmtp")
    with smtplib.LMTP("127.0.0.1", port, timeout=20) as client:
        assert client.sendmail("a@x.example", ["b@y.example"], MESSAGE) == {}
    shown = ended(program)
    assert "hello, world" in shown
    assert "with LMTP id" in shown


def test_proxy_protocol(serving):
    networks = ("--proxy-protocol", "192.0.2.0/24", "--proxy-protocol", "127.0.0.1")
    program, port = serving(*networks, "--print", "raw")
    with Client(("127.0.0.1", port)) as client:
        client.send(b"PROXY TCP4 198.51.100.7 127.0.0.1 4321 25\r\n")
        assert client.mail(MESSAGE).startswith("250 ")
    assert "([198.51.100.7])" in ended(program)


def test_xclient(serving):
    program, port = serving("--xclient", "127.0.0.0/8", "--print", "raw")
    with Client(("127.0.0.1", port)) as client:
        assert "XCLIENT" in client.hello()
        assert client.ask("XCLIENT ADDR=198.51.100.7 NAME=far.example").startswith("220 ")
        client.ask("EHLO client.example")
        client.ask("MAIL FROM:<a@x.example>")
        client.ask("RCPT TO:<b@y.example>")
        client.ask("DATA")
        assert client.ask("x\r\n.").startswith("250 ")
    assert "([198.51.100.7])" in ended(program)


def test_extensions(serving):
    program, port = serving("--extension", "dsn", "--extension", "MT-PRIORITY")
    with Client(("127.0.0.1", port)) as client:
        reply = client.hello().replace(" ", "-")
        assert "250-DSN" in reply
        assert "250-MT-PRIORITY" in reply
        assert client.ask("MAIL FROM:<a@x.example> RET=HDRS ENVID=QQ314159").startswith("250 ")
        assert client.ask("RCPT TO:<b@y.example> NOTIFY=NEVER").startswith("250 ")
    ended(program)


# -- where it listens ------------------------------------------------------------------------


def mail_at(path):
    with smtplib.LMTP(path, timeout=20) as client:  # it can speak to a path
        client.ehlo_msg = "ehlo"  # of SMTP
        client.sendmail("a@x.example", ["b@y.example"], MESSAGE)


def test_unix(run, tmp_path):
    paths = [str(tmp_path / name) for name in ("one", "two")]
    program = run("--unix", paths[0], "--unix", paths[1])
    assert [program.line(), program.line()] == [f"listening on {path}" for path in paths]
    for path in paths:
        mail_at(path)
    assert ended(program).count("hello, world") == 2
    assert not [path for path in paths if os.path.exists(path)]


def test_unix_beside_a_port(run, tmp_path):
    path = str(tmp_path / "one")
    program = run("127.0.0.1:0", "--unix", path)
    assert program.line() == f"listening on {path}"
    with Client(("127.0.0.1", program.port())) as client:
        assert client.mail().startswith("250 ")
    mail_at(path)
    ended(program)


# -- TLS -------------------------------------------------------------------------------------


def test_sni(serving, certificate, tmp_path):
    other = make_certificate(tmp_path)
    joined = tmp_path / "both.pem"
    joined.write_text("".join(Path(each).read_text() for each in other))
    program, port = serving(
        *("--tls-cert", certificate[0], "--tls-key", certificate[1], "--implicit-tls"),
        *("--sni", f"a.example={','.join(other)}", "--sni", f"b.example={joined}"),
    )
    for name, wanted in (
        ("a.example", other),
        ("b.example", other),
        ("localhost", certificate),
        ("c.example", certificate),
    ):
        context = trusting(wanted)
        context.check_hostname = False
        with Client(("127.0.0.1", port)) as client:
            client.socket = context.wrap_socket(client.socket, server_hostname=name)
            assert client.reply().startswith("220 ")
    ended(program)


# -- what is wrong ---------------------------------------------------------------------------


def complaint(program):
    """Give the one line that a program says before it exits with 2."""
    assert program.finish(SOON) == 2, program.errors
    assert program.remaining() == b""
    assert "Traceback" not in program.errors
    (line,) = program.errors.splitlines()
    assert line.startswith("smtpd-sync: ")
    return line


WRONG = [
    ["--auth", "any"],  # and no TLS
    ["--auth", "jo:word"],
    ["--auth", "missing", CLEAR],
    ["--auth", "jo:", CLEAR],
    ["--auth", ":word", CLEAR],
    ["--auth", ".", CLEAR],
    ["--auth", "binary", CLEAR],
    ["--auth"],
    ["--require-auth", CLEAR],
    ["--mechanism", "NTLM", "--auth", "any", CLEAR],
    ["--mechanism", "PLAIN", CLEAR],
    ["--mechanism", "SCRAM-SHA-256", "--auth", "any", CLEAR],
    ["--proxy-protocol", "localhost"],
    ["--proxy-protocol", "127.0.0.1/8"],
    ["--xclient", "everybody"],
    ["--extension", "nonsense"],
    ["--sni", "a.example"],
    ["--sni", "a.example="],
    ["--sni", "=cert.pem"],
    ["--sni", "a.example=missing.pem"],
    ["--sni", "a b=missing.pem"],
    ["--unix", "missing/smtp"],
    ["--unix", "regular"],
    ["--systemd"],
]


@pytest.fixture
def directory(tmp_path, monkeypatch):
    (tmp_path / "regular").write_text("precious")
    (tmp_path / "binary").write_bytes(b"jo:\xff\xfe\n")
    for name in ("LISTEN_FDS", "LISTEN_PID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize("arguments", [["--auth", "any"], ["--systemd"]], ids=" ".join)
def test_what_cannot_be_is_one_line_and_status_2(run, directory, arguments):
    complaint(run("127.0.0.1:0", *arguments, cwd=directory))


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_what_cannot_be_is_one_line(no_leaks, directory, monkeypatch, capsys, arguments):
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as caught:
        cli.main(["127.0.0.1:0", *arguments])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("smtpd-sync: ")
    assert "word" not in line.replace("password", "")
    assert (directory / "regular").read_text() == "precious"


def test_unix_socket_that_cannot_be_is_named(run, tmp_path):
    line = complaint(run("--unix", str(tmp_path / "missing" / "smtp")))
    assert str(tmp_path / "missing" / "smtp") in line
    assert "8025" not in line


def test_port_in_use_is_named(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = "{}:{}".format(*taken.getsockname())
        assert where in complaint(run(where, "--unix", str(tmp_path / "one")))
    assert not (tmp_path / "one").exists()


def test_lmtp_at_port_25(run):
    try:
        socket.create_server(("127.0.0.1", 25)).close()
    except OSError as error:
        pytest.skip(f"port 25 cannot be had: {error}")
    assert "25" in complaint(run("127.0.0.1:25", "--lmtp"))


def test_help_fits_two_screens(run):
    program = run("--help")
    assert program.finish() == 0
    text = program.remaining().decode()
    assert len(text.splitlines()) <= 100
    assert max(map(len, text.splitlines())) <= 100
    flags = "auth lmtp proxy-protocol xclient unix extension sni mechanism systemd require-auth"
    for flag in (*flags.split(), "no-auth-require-tls", "ignore-parameters"):
        assert f"--{flag}" in text


def test_clients_of_python_see_no_difference(serving, certificate):
    # All at once, as an operator would have it.
    program, port = serving(
        *("--tls-cert", certificate[0], "--tls-key", certificate[1], "--auth", "jo:word"),
        *("--require-auth", "--require-tls", "--extension", "DSN", "--xclient", "192.0.2.0/24"),
    )
    with smtplib.SMTP("localhost", port, timeout=20) as client:
        client.starttls(context=ssl.create_default_context(cafile=certificate[0]))
        client.login("jo", "word")
        client.sendmail("a@x.example", ["b@y.example"], MESSAGE, ["RET=HDRS"], ["NOTIFY=NEVER"])
    assert "hello, world" in ended(program)
