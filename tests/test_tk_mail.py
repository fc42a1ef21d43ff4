"""The example that raises dialogs: as a program, at a real X display; a mouse presses OK."""

import os
import re
import shutil
import signal
import smtplib
import subprocess
import sys

import pytest
from support import DEADLINE, ROOT, Client, Program, until

pytestmark = pytest.mark.interop

EXAMPLE = str(ROOT / "examples" / "tk_mail.py")
RUN = f"import runpy; runpy.run_path({EXAMPLE!r}, run_name='__main__')"
# As the program itself, but it tells what it shows.
TELLING = f"""
import tkinter
insert = tkinter.Text.insert
def telling(self, place, text):
    print(len(text), ascii(text[:200]), flush=True)
    insert(self, place, text)
tkinter.Text.insert = telling
{RUN}
"""
# The same, but the client may say where it comes from.
PROXIED = f"""
from smtpd_sync import SMTPServer
SMTPServer.proxy_protocol = ("127.0.0.0/8",)
{RUN}
"""
TWENTY = [f"r{number}@example.com" for number in range(20)]


def python_with_tk():
    """Give a Python that has tkinter, or ``None``."""
    for python in (sys.executable, shutil.which("python3"), "/usr/bin/python3"):
        command = [python, "-c", "import tkinter"]
        if python and not subprocess.run(command, capture_output=True).returncode:
            return python
    return None


@pytest.fixture(scope="module")
def display():
    """A display of our own: its name."""
    for tool in ("Xvfb", "xdotool"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    reading, writing = os.pipe()
    with subprocess.Popen(
        ["Xvfb", "-displayfd", str(writing), "-screen", "0", "800x600x24", "-nolisten", "tcp"],
        pass_fds=[writing],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        os.close(writing)
        with open(reading) as file:
            number = file.readline().strip()  # it says so when it is ready
        try:
            if not number:
                pytest.skip("Xvfb does not start here")
            yield f":{number}"
        finally:
            server.terminate()


@pytest.fixture
def start(no_leaks, display, monkeypatch):
    """Run it; ended in order after the test, whatever is open."""
    python = python_with_tk()
    if python is None:
        pytest.skip("no Python here has tkinter")
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.setenv("DISPLAY", display)
    programs = []

    def make(*arguments):
        programs.append(Program(*(arguments or [EXAMPLE]), "127.0.0.1", "0"))
        programs[-1].place = ("127.0.0.1", programs[-1].port())
        return programs[-1]

    yield make
    for program in programs:
        with program:
            program.signal(signal.SIGINT)
            assert program.finish() == 0, program.errors
            assert program.errors == ""
    assert dialogs() == {}


def xdotool(*arguments):
    done = subprocess.run(["xdotool", *arguments], capture_output=True, text=True, timeout=DEADLINE)
    return done.stdout


def dialogs():
    """What is on the display: {window: title}."""
    found = xdotool("search", "--onlyvisible", "--name", "^To: ").split()
    titles = {window: xdotool("getwindowname", window).rstrip("\n") for window in found}
    return {window: title for window, title in titles.items() if title}


def dialog(besides=()):
    """Wait for one; give its window and title."""
    shown = until(lambda: {w: t for w, t in dialogs().items() if w not in besides}, "a dialog")
    assert len(shown) == 1, shown
    ((window, title),) = shown.items()
    return window, title


def place_of(window):
    """Give its left, top, width and height."""
    told = xdotool("getwindowgeometry", "--shell", window)
    told = dict(re.findall("(X|Y|WIDTH|HEIGHT)=([0-9]+)", told))
    return [int(told.get(name, 0)) for name in ("X", "Y", "WIDTH", "HEIGHT")]


def press_ok(window):
    """Press the button in the middle of the lower edge with the mouse; wait for the end."""
    until(lambda: place_of(window)[3] > 100, "a window of its size")
    left, top, width, height = place_of(window)
    xdotool("mousemove", str(left + width // 2), str(top + height - 26), "click", "1")
    until(lambda: window not in dialogs(), "the end of the dialog")


def mail(place, recipients, data="Subject: hi\r\n\r\nHello\r\n", sender="ann@example.com"):
    with smtplib.SMTP(*place, timeout=DEADLINE) as client:
        client.sendmail(sender, recipients, data)


def test_each_recipient_has_a_dialog_and_ok_closes_it(start):
    place = start().place
    mail(place, ["bob@example.com", "carol@example.com", "bob@example.com"])
    bob, title = dialog()
    assert title == "To: bob@example.com"
    press_ok(bob)
    carol, title = dialog(besides=[bob])
    assert title == "To: carol@example.com"
    press_ok(carol)
    mail(place, ["dave@example.com"])  # none is left of the first message
    assert dialog(besides=[bob, carol])[1] == "To: dave@example.com"


def test_nobody_waits_for_the_user(start):
    place = start().place
    mail(place, ["first@example.com"])
    first, _ = dialog()
    with smtplib.SMTP(*place, timeout=DEADLINE) as client:
        for recipient in TWENTY:
            assert client.sendmail("ann@example.com", [recipient], "Subject: hi\r\n") == {}
    assert dialogs() == {first: "To: first@example.com"}
    seen = [first]
    for recipient in TWENTY[:3]:
        press_ok(seen[-1])
        window, title = dialog(besides=seen)
        assert title == f"To: {recipient}"
        seen.append(window)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_though_a_dialog_is_open(start, number):
    program = start()
    mail(program.place, ["bob@example.com", "carol@example.com"])
    dialog()
    with Client(program.place) as idle:
        idle.hello()
        program.signal(number)
        assert program.finish() == 0
        assert idle.reply().startswith("421 ")
    assert program.errors == ""


def test_root_window_is_not_shown(start):
    mail(start().place, ["bob@example.com"])
    window, _ = dialog()
    named = xdotool("search", "--onlyvisible", "--name", ".").split()
    assert named == [window]


HOSTILE = {
    "controls": b"\x1b[31m\a\b\0\x7f {$[exit]} \xc2\x85 end",
    "bidi": "\u202egnp.exe\u2066\u200f end".encode(),
    "bad utf-8": b"\xff\xfe\xed\xa0\x80 end",
    "beyond the BMP": "\N{GRINNING FACE}\u0301 end".encode(),
}
SHOWN = {
    "controls": "[31m {$[exit]}  end",
    "bidi": "gnp.exe end",
    "bad utf-8": " end",
    "beyond the BMP": "\N{GRINNING FACE}\u0301 end",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_is_shown_as_text(start, kind):
    program = start("-c", TELLING)
    with Client(program.place) as client:
        assert client.mail(b"\r\n" + HOSTILE[kind] + b"\r\n").startswith("250 ")
    text = program.line().partition(" ")[2]
    assert text.replace("\\ufffd", "") == ascii(f"\n{SHOWN[kind]}\n")
    window, title = dialog()
    assert title == "To: b@y.example"
    press_ok(window)


@pytest.mark.parametrize("line", [b"x" * 998, b"\0" * 998, b""], ids=["long", "zeros", "empty"])
def test_large_message_is_cut(start, line):
    program = start("-c", TELLING)
    size = 10_000_000 // (len(line) + 2)
    with Client(program.place) as client:
        assert client.mail(b"\r\n" + (line + b"\r\n") * size).startswith("250 ")
    assert int(program.line().partition(" ")[0]) < 5_000
    press_ok(dialog()[0])


def test_hostile_recipient_is_shown_as_text(start):
    program = start()
    with Client(program.place) as client:
        client.hello()
        assert client.ask("MAIL FROM:<> SMTPUTF8").startswith("250 ")
        assert client.ask("RCPT TO:<a\u202e{$[exit]}@y.example>").startswith("501 ")
        assert client.ask('RCPT TO:<"[exit]\u202e$x"@y.example>').startswith("250 ")
        client.ask("DATA")
        client.send(b"\r\nhi\r\n.\r\n")
        assert client.reply().startswith("250 ")
    window, title = dialog()
    assert title == 'To: "[exit]\ufffd$x"@y.example'
    press_ok(window)


def test_who_sends_too_much_is_told_to_try_again(start):
    with Client(start().place) as client:
        client.hello()
        message = b"MAIL FROM:<>\r\nRCPT TO:<b@y.example>\r\nBDAT 2 LAST\r\n\r\n"
        replies = []
        for _ in range(1_010):
            client.send(message)
            replies.append([client.reply() for _ in range(3)][-1])
    assert all(reply.startswith("250 ") for reply in replies[:1_000])
    assert replies[-1].startswith("452 4.3.1 ")


@pytest.mark.parametrize(
    ("lines", "reply"),
    [
        (["MAIL FROM:<denied@x.example>"], "550 5.7.1 mailbox denied denied"),
        (["MAIL FROM:<>", "RCPT TO:<>"], "501 5."),
        (["MAIL FROM:<>", "RCPT TO:<bogus-2@x.example>"], "550 5.1.1 mailbox bogus-2 denied"),
        (["MAIL FROM:<>", "RCPT TO:<no.bogus@x.example>"], "250 "),
    ],
)
def test_whom_it_refuses(start, lines, reply):
    with Client(start().place) as client:
        client.hello()
        for line in lines:
            answer = client.ask(line)
        assert answer.startswith(reply)


@pytest.mark.parametrize(
    ("host", "greeting"), [("192.168.1.7", "554 your"), ("192.168.10.7", "220 ")]
)
def test_host_that_it_refuses(start, host, greeting):
    with Client(start("-c", PROXIED).place) as client:
        client.send(f"PROXY TCP4 {host} 127.0.0.1 4711 25\r\n".encode())
        assert client.reply().startswith(greeting)


def test_without_a_display_it_is_one_line(start, monkeypatch):
    start()
    monkeypatch.delenv("DISPLAY")
    with Program(EXAMPLE, "127.0.0.1", "0") as program:
        assert program.finish() == 2
        assert re.search(r"\ntk_mail\.py: error: no display name [^\n]+\n\Z", program.errors)


def test_port_that_is_taken_is_one_line(start):
    with Program(EXAMPLE, "127.0.0.1", str(start().place[1])) as second:
        assert second.finish() == 2
        assert "cannot listen on 127.0.0.1, port " in second.errors
        assert "Traceback" not in second.errors
