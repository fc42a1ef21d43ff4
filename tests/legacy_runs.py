"""Runs three programs in the old style: what they print, and what their clients hear."""

import os
import pathlib
import signal
import smtplib
import subprocess

from legacy_dialogues import Speaker
from support import DEADLINE, ROOT

PROGRAMS = pathlib.Path(__file__).parent / "legacy_programs"
FAKE_SERVER, LOGIN = PROGRAMS / "fake_server.py", PROGRAMS / "login.py"
LEGACY = ROOT / "examples" / "legacy.py"
OLD = ("import asyncore\n", "import smtpd\n")
OURS = "from smtpd_sync.compat import asyncore, smtpd\n"


def written_for(which, program, directory):
    """Copy a program, with the imports of the ``old`` modules or of ``ours``."""
    text = program.read_text("utf-8").replace(OURS, "".join(OLD))
    if which == "ours":
        text = text.replace(OLD[0], OURS).replace(OLD[1], "")
    copy = directory / f"{which}_{program.name}"
    copy.write_text(text, "utf-8")
    return copy


class Run:
    """A program with a port."""

    def __init__(self, python, program, *arguments):
        self.process = subprocess.Popen(
            [python, "-W", "ignore::DeprecationWarning", program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        )

    def __enter__(self):
        return self

    def port(self):
        """Read where it listens."""
        return int(self.process.stdout.readline().decode().rpartition(":")[2])

    def finish(self):
        """Wait for the end; give what it printed."""
        printed, errors = self.process.communicate(timeout=DEADLINE)
        assert (self.process.returncode, errors.decode()) == (0, "")
        return printed.decode()

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def run_fake_server(python, program):
    """Give what it prints."""
    with Run(python, program) as run:
        return run.finish()


def run_login(python, program):
    """Give what its client hears, and what it prints."""
    with Run(python, program, "0") as run:
        place = ("127.0.0.1", run.port())
        client = Speaker.at(place)
        client.reply()  # has the name of the machine
        said = []
        for line in (
            *("EHLO", "EHLO client", "MAIL FROM:<a@x>", "AUTH PLAIN"),
            *("AUTH LOGIN", "Ym9i", "bm8=", "AUTH LOGIN", "Ym9i", "c2VjcmV0"),
            *("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA", "Subject: hi\r\n\r\nhello\r\n."),
            "QUIT",
        ):
            said.append(client.say(line))
        client.close()
        return said, run.finish()


def run_legacy(python, program):
    """Give what its clients hear, and what it prints until Ctrl-C."""
    with Run(python, program, "0") as run:
        port = run.port()
        said = []
        with smtplib.SMTP("127.0.0.1", port, timeout=DEADLINE) as client:
            for sender, recipients, subject in (
                ("ann@example.com", ["bob@example.com"], "hi"),
                ("ann@example.com", ["bob@example.com"], "spam, spam"),
                ("ann@example.com", ["nobody@example.com"], "hi"),
                ("<>", ["bob@example.com", "carol@example.com"], "=?utf-8?q?Gr=C3=BC=C3=9Fe?="),
            ):
                text = f"From: {sender}\r\nSubject: {subject}\r\n\r\nhello\r\n"
                try:
                    said.append(str(client.sendmail(sender, recipients, text)))
                except smtplib.SMTPException as error:
                    said.append(str(error))
        run.process.send_signal(signal.SIGINT)
        return said, run.finish()
