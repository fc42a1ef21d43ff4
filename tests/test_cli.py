"""The command line, as a subprocess."""

import json
import os
import signal
import smtplib
import socket
import ssl
import sys
import textwrap

import pytest
from support import LOOPBACK, Client, Program, have_ipv6

from smtpd_sync import __version__, cli, flags
from smtpd_sync.flags import REPEATABLE
from smtpd_sync.options import OPTIONS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")

MESSAGE = b"From: a@x.example\r\nTo: b@y.example\r\nSubject: hi there\r\n\r\nhello, world\r\n"


def send(port, data=MESSAGE, **envelope):
    with Client(("127.0.0.1", port)) as client:
        reply = client.mail(data, **envelope)
        client.ask("QUIT")
    return reply


def ended(program):
    """Stop it in order; give what it had still printed."""
    program.signal(signal.SIGTERM)
    assert program.finish() == 0, program.errors
    return program.remaining()


# -- printing --------------------------------------------------------------------------------


def test_prints_messages_for_people(serving):
    program, port = serving()
    recipients = ("b@y.example", "hidden@z.example")
    assert send(port, recipients=recipients).startswith("250 ")
    text = ended(program).decode()
    for piece in ("<a@x.example>", "<b@y.example>", "Subject: hi there", "hello, world"):
        assert piece in text
    (hidden,) = [line for line in text.split("\n") if "hidden@z.example" in line]
    assert "in no header field" in hidden
    assert program.errors == ""


def test_prints_each_message_before_its_250(serving):
    program, port = serving("--print", "json")
    with Client(("127.0.0.1", port)) as client:
        assert client.mail(MESSAGE).startswith("250 ")
        assert json.loads(program.line())["sender"] == "a@x.example"


def test_prints_raw(serving):
    program, port = serving("--print", "raw", "--no-trace")
    assert send(port).startswith("250 ")
    assert ended(program) == MESSAGE


def test_prints_json(serving):
    program, port = serving("--print", "json")
    data = (
        b"To: b@y.example\r\nSubject: =?utf-8?q?gr=C3=BCn?=\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\ntext\r\n--x\r\n"
        b"Content-Type: image/png\r\nContent-Disposition: attachment; filename=a.png\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\nAAAA\r\n--x--\r\n"
    )
    assert send(port, data, recipients=("b@y.example", "h@z.example")).startswith("250 ")
    assert send(port).startswith("250 ")
    first, second = map(json.loads, ended(program).splitlines())
    assert ["Subject", "gr\u00fcn"] in first["headers"]
    assert first["recipients"] == ["b@y.example", "h@z.example"]
    assert first["hidden_recipients"] == ["h@z.example"]
    assert first["attachments"] == [{"name": "a.png", "type": "image/png", "size": 3}]
    assert second["text"].strip() == "hello, world"


def test_neutralises_terminal_escapes(serving):
    program, port = serving()
    assert send(port, b"Subject: \x1b[31mred\x07\r\n\r\n\x1b]0;title\x07\x9b\r\n")[0] == "2"
    shown = ended(program)
    assert b"red" in shown
    assert not {"\x1b", "\x07", "\x9b"} & set(shown.decode())


@pytest.mark.parametrize("form", ["human", "raw", "json"])
def test_broken_mail_is_taken(serving, form):
    program, port = serving("--print", form)
    for data in (
        b"Subject: \xff\xfe\r\nTo: \xfc\r\n\r\n\xff\r\n",
        b"Content-Type: text/plain; charset=nonsense\r\n\r\n\xff\r\n",
        b"Content-Type: text/plain; charset=idna\r\n\r\n\xff\r\n",
        b"Content-Type: text/plain; charset=undefined\r\n\r\nx\r\n",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nContent-Type:\r\n\r\n",
        b"Content-Transfer-Encoding: base64\r\n\r\n!\xff\r\n",
        b"no header at all\r\n",
        b"",
    ):
        assert send(port, data).startswith("250 "), data
    ended(program)
    assert program.errors == ""


def test_quiet_prints_no_messages(serving):
    program, port = serving("-q")
    assert send(port).startswith("250 ")
    assert ended(program) == b""
    assert program.errors == ""


def test_verbose_logs_nothing_of_the_mail(serving):
    program, port = serving("-vv", "-q")
    assert send(port).startswith("250 ")
    ended(program)
    assert "hello, world" not in program.errors


# -- options ---------------------------------------------------------------------------------


def test_max_size_is_in_ehlo_and_enforced(serving):
    program, port = serving("--max-size", "10K")
    with Client(("127.0.0.1", port)) as client:
        assert "250-SIZE 10240\n" in client.hello()
    assert send(port, b"x" * 20_000 + b"\r\n").startswith("552 5.3.4 ")
    ended(program)


@pytest.mark.parametrize(
    ("size", "octets"), [("0", None), ("1234", 1234), ("2m", 2 << 20), ("1G", 1 << 30)]
)
def test_sizes(size, octets):
    assert cli.parser().parse_args(["--max-size", size]).max_size == octets


def test_names_and_flags(serving):
    program, port = serving(
        *("--hostname", "mail.example", "--banner", "hello", "--no-trace", "--print", "raw"),
        *("--strict", "--bare-newline", "reject", "--local-domain", "y.example"),
    )
    with Client(("127.0.0.1", port)) as client:
        assert client.hello(greeting="220 mail.example hello")
        assert client.ask("MAIL FROM: <a@x.example>").startswith("501 ")
    assert send(port, b"a\nb\r\n").startswith("550 5.6.11 ")
    assert send(port, b"plain\r\n").startswith("250 ")
    assert ended(program) == b"plain\r\n"


def test_tls(serving, certificate):
    program, port = serving("--tls-cert", certificate[0], "--tls-key", certificate[1])
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.starttls(context=ssl.create_default_context(cafile=certificate[0]))
        client.sendmail("a@x.example", ["b@y.example"], MESSAGE)
    assert b"ESMTPS" in ended(program)


def test_implicit_tls(serving, certificate):
    arguments = ("--tls-cert", certificate[0], "--tls-key", certificate[1], "--implicit-tls")
    program, port = serving(*arguments)
    context = ssl.create_default_context(cafile=certificate[0])
    with smtplib.SMTP_SSL("127.0.0.1", port, context=context) as client:
        client.sendmail("a@x.example", ["b@y.example"], MESSAGE)
    assert b"hello, world" in ended(program)


HANDLER = """
    from smtpd_sync import SMTPHandler

    class Mine(SMTPHandler):
        banner = "of the handler"
        def validate_recipient(self, mailbox):
            return mailbox.local != "nobody"
        def deliver(self, sender, recipients, data):
            print("delivered", sender, recipients, len(data), flush=True)

    class Checks(SMTPHandler):
        def validate_sender(self, mailbox):
            return mailbox.local == "a"

    class NoHandler:
        pass
"""


@pytest.fixture
def directory(tmp_path):
    """A directory with modules to import from."""
    (tmp_path / "mymodule.py").write_text(textwrap.dedent(HANDLER))
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "failing.py").write_text("raise RuntimeError('one\\ntwo')\n")
    (tmp_path / "asking.py").write_text("import nowhere_at_all\n")
    return tmp_path


def test_handler_of_the_current_directory(serving, directory):
    program, port = serving("--handler", "mymodule:Mine", "--no-trace", cwd=directory)
    with Client(("127.0.0.1", port)) as client:
        client.hello()
        client.ask("MAIL FROM:<a@x.example>")
        assert client.ask("RCPT TO:<nobody@y.example>").startswith("550 5.1.1 ")
    assert send(port).startswith("250 ")
    text = ended(program).decode()
    assert text == f"delivered a@x.example ['b@y.example'] {len(MESSAGE)}\n"


def test_handler_is_found_where_the_path_lacks_the_current_directory(directory, monkeypatch):
    monkeypatch.chdir(directory)  # as with the installed command
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    assert flags.handler_class("mymodule:Mine").banner == "of the handler"


def test_options_of_a_handler_are_kept(serving, directory):
    _, port = serving("--handler", "mymodule:Mine", cwd=directory)
    with Client(("127.0.0.1", port)) as client:
        assert client.reply().endswith(" of the handler")


def test_handler_without_delivery_prints(serving, directory):
    program, port = serving("--handler", "mymodule:Checks", cwd=directory)
    with Client(("127.0.0.1", port)) as client:
        client.hello()
        assert client.ask("MAIL FROM:<z@x.example>").startswith("550 ")
    assert send(port).startswith("250 ")
    assert b"hello, world" in ended(program)


# -- stopping --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_signals_stop_in_order(serving, number):
    program, port = serving()
    with Client(("127.0.0.1", port)) as idle, Client(("127.0.0.1", port)) as busy:
        idle.hello()
        busy.to_data()
        program.signal(number)
        assert idle.reply().startswith("421 4.3.2 ")
        busy.send(MESSAGE + b".\r\n")
        assert busy.reply().startswith("250 ")
    assert program.finish() == 0
    assert b"hello, world" in program.remaining()
    assert program.errors == ""


def test_second_signal_does_not_wait(serving):
    program, port = serving("-q")
    with Client(("127.0.0.1", port)) as busy, Client(("127.0.0.1", port)) as idle:
        busy.to_data()
        idle.hello()
        program.signal(signal.SIGINT)
        assert idle.reply().startswith("421 ")
        program.signal(signal.SIGINT)
        assert program.finish(8) == 0


def test_signal_as_soon_as_it_listens(no_leaks):
    # A supervisor may stop it the moment it has read the line.
    code = """
import builtins, os, signal
from smtpd_sync import cli

say = print
def print_and_be_stopped(*arguments, **keywords):
    say(*arguments, **keywords)
    os.kill(os.getpid(), signal.SIGTERM)

builtins.print = print_and_be_stopped
cli.main(["127.0.0.1:0"])
"""
    with Program("-c", code) as program:
        program.port()
        assert program.finish() == 0, program.errors
        assert program.errors == ""


# -- what is wrong ---------------------------------------------------------------------------


def complaint(program):
    """Give the one line that a program says before it exits with 2."""
    assert program.finish() == 2, program.errors
    assert program.remaining() == b""
    assert "Traceback" not in program.errors
    (line,) = program.errors.splitlines()
    assert line.startswith("smtpd-sync: ")
    return line


def test_port_in_use(run):
    with socket.create_server(LOOPBACK) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in complaint(run(f"127.0.0.1:{port}"))


WRONG = [
    ["--nonsense"],
    ["127.0.0.1:99999"],
    ["--tls-cert", "missing.pem"],
    ["--handler", "missing:Mine"],
    ["--handler", "failing:Mine"],
    ["127.0.0.1:smtp"],
    ["::1:8025"],
    ["[::1:8025"],
    ["192.0.2.1:0"],
    ["127.0.0.1:0", "extra"],
    ["--max-size", "lots"],
    ["--max-size", "-1"],
    ["--print", "xml"],
    ["--bare-newline", "ignore"],
    ["--hostname", "a b"],
    ["--banner", "two\nlines"],
    ["--local-domain", "a b"],
    ["--tls-key", "missing.pem"],
    ["--tls-cert", "mymodule.py", "--tls-key", "mymodule.py"],
    ["--require-tls"],
    ["--implicit-tls"],
    ["--handler", "mymodule"],
    ["--handler", "mymodule:"],
    ["--handler", ":Mine"],
    ["--handler", "mymodule:Missing"],
    ["--handler", "mymodule:NoHandler"],
    ["--handler", "asking:Mine"],
    ["--handler", "broken:Mine"],
]


@pytest.mark.parametrize("arguments", WRONG[:5], ids=" ".join)
def test_what_cannot_be_is_one_line_and_status_2(run, directory, arguments):
    complaint(run(*arguments, cwd=directory))


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_what_cannot_be_is_one_line(directory, monkeypatch, capsys, arguments):
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("smtpd-sync: ")


# -- help ------------------------------------------------------------------------------------


def test_help_fits_two_screens_and_shows_the_defaults(run):
    program = run("--help")
    assert program.finish() == 0
    text = program.remaining().decode()
    assert len(text.splitlines()) <= 100
    assert max(map(len, text.splitlines())) <= 100
    for piece in ("default: 127.0.0.1:8025", "default: human", "default: 32M", "default: ESMTP"):
        assert piece in text
    for name, option in OPTIONS.items():
        if name not in ("tls", "limits", "users"):
            flag = name.replace("_", "-").rstrip("s" if name in REPEATABLE else "")
            assert f"--{'no-' if option.default is True else ''}{flag}" in text
    assert "default: normalize" in text


def test_version(run):
    program = run("--version")
    assert program.finish() == 0
    assert __version__ in program.remaining().decode()


@pytest.mark.skipif(not have_ipv6(), reason="the machine has no IPv6")
def test_ipv6(run):
    program = run("[::1]:0")
    with Client(("::1", program.port())) as client:
        assert client.reply().startswith("220 ")
