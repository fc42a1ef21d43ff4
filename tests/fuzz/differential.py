"""The same sessions to aiosmtpd and to us, line by line, each line behind the reply to the last.

Where the replies or what is delivered differ, one of the named `explanations` must say who is right
by the RFC; a difference that none explains is a finding.
"""

import collections
import logging
import random
import re
import socket
from typing import List, NamedTuple

from smtpd_sync import Limits, SMTPServer

from . import case as cases
from . import grammar
from .client import DEADLINE
from .core import Finding
from .explanations import EXPLANATIONS
from .faults import Difference
from .reference import decode_lines

LIMITS = Limits(errors=100_000, junk_commands=100_000, text_line=1001)
"""As aiosmtpd has them, or none where it has none."""
MAKERS = (
    *((grammar.hello, 2), (grammar.mail, 4), (grammar.rcpt, 5), (grammar.line, 6)),
    (grammar.transaction, 6),
)
_LEFT_OUT = re.compile(rb"(?i)\s*(?:STARTTLS|AUTH|BDAT|XCLIENT|XFORWARD|LHLO)\b")
_LAST_LINE = re.compile(rb"(?:\A|\n)[0-9]{3} [^\n]*\r\n\Z")
ENDING = frozenset({"HELO", "EHLO", "MAIL", "RCPT", "DATA", "RSET", "QUIT", "message"})
"""Where one accepts and the other does not, they are out of step: nothing more is compared."""


def make_case(seed):
    """Give the session of a number, of what both servers can do."""
    chance = random.Random(seed)
    made = [b"EHLO client.example\r\n"] if chance.random() < 0.9 else []
    makers, weights = zip(*MAKERS)
    for make in chance.choices(makers, weights, k=chance.randrange(2, 10)):
        step = make(chance)
        made += step if isinstance(step, list) else [step]
    if chance.random() < 0.4:
        made = cases.mutated(made, chance)
    return cases.Case(seed, {}, {}, "", cases.Owner(0, 0), tuple(made))


class Mail(NamedTuple):
    """A message as a server took it."""

    sender: str
    recipients: List[str]
    data: bytes


class Theirs:
    """The handler of aiosmtpd."""

    def __init__(self):
        self.mail = {}

    async def handle_DATA(self, server, session, envelope):
        sender = "" if envelope.mail_from == "<>" else envelope.mail_from
        taken = Mail(sender, list(envelope.rcpt_tos), envelope.original_content)
        self.mail.setdefault(session.peer[1], []).append(taken)
        return "250 OK"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Pair:
    """Both servers."""

    def __init__(self, verbose=False):
        self._verbose = verbose
        self.counts = collections.Counter()
        self.compared = 0

    def __enter__(self):
        from aiosmtpd.controller import Controller

        self._log = logging.getLogger("mail.log")
        self._level = self._log.level
        self._log.setLevel(logging.CRITICAL + 1)
        self._theirs = Theirs()
        self._controller = Controller(
            self._theirs, "127.0.0.1", free_port(), server_hostname=grammar.HOSTNAME
        )
        self._controller.start()
        self._mail = []
        self._server = SMTPServer(
            ("127.0.0.1", 0),
            deliver=self._deliver,
            limits=LIMITS,
            strict_pipelining=False,
            bare_newline="keep",
            trace=False,
            hostname=grammar.HOSTNAME,
        ).start()
        return self

    def __exit__(self, *_):
        self._server.stop(2)
        self._controller.stop()
        self._log.setLevel(self._level)

    def _deliver(self, sender, recipients, data):
        names = [name.original for name in recipients]
        self._mail.append(Mail(sender.original, names, data))

    def check(self, case):
        """Compare one session; give the first difference that nothing explains."""
        self._mail.clear()
        self._theirs.mail.clear()
        with Talker(self._server.port) as ours, Talker(self._controller.port) as theirs:
            for found in self._differences(case, ours, theirs):
                self.compared += 1
                if found.ours != found.theirs or found.mail or found.more:
                    name = next((row.name for row in EXPLANATIONS if row.holds(found)), None)
                    if self._verbose:
                        print(f"S: {found.ours} {found.theirs}: {name}")
                    if name is None:
                        what = str(found)
                        return Finding(case.seed, "we_agree", what, case, "differential")
                    self.counts[name] += 1
                if out_of_step(found):
                    return None
        return None

    def _differences(self, case, ours, theirs):
        """Send line by line; give what each says."""
        extended = mailing = False
        unknown = 0
        yield Difference("connection", b"", ours.ask(b""), theirs.ask(b""))
        steps = list(case.steps)
        while steps:
            step = steps.pop(0)
            for line in step.split(b"\r\n")[: -1 if step.endswith(b"\r\n") else None]:
                if _LEFT_OUT.match(line):
                    continue
                if self._verbose:
                    print(f"C: {line!r}")
                found = Difference.of(line, ours.ask(line + b"\r\n"), theirs.ask(line + b"\r\n"))
                unknown += found.theirs == 500
                found = found._replace(
                    more=ours.more() + theirs.more(),
                    extended=extended,
                    mailing=mailing,
                    unknown=unknown,
                )
                yield found
                if found.ours == 354 == found.theirs:
                    yield self._data(steps.pop(0) if steps else b"", ours, theirs)
                    mailing = False
                    break
                if found.ours is not None and found.ours < 300:
                    extended = found.verb == "EHLO" or (extended and found.verb != "HELO")
                    if found.verb in ("EHLO", "HELO", "RSET", "MAIL"):
                        mailing = found.verb == "MAIL"

    def _data(self, octets, ours, theirs):
        decoded = decode_lines(octets)
        if decoded is None:
            octets += b"\r\n.\r\n"
            decoded = decode_lines(octets)
        octets = octets[: decoded[1]]
        found = Difference("message", octets, ours.ask(octets), theirs.ask(octets))
        mail, their_mail = list(self._mail), self._theirs.mail.pop(theirs.port, [])
        self._mail.clear()
        if mail != their_mail:
            found = found._replace(mail=(mail, their_mail))
        return found._replace(more=ours.more() + theirs.more())

    def table(self):
        """Show which explanations were needed, how often, and who is right."""
        rows = [f"{self.compared} replies compared", f"{'count':>7}  {'right':<6}  explanation"]
        for row in EXPLANATIONS:
            if self.counts[row.name]:
                text = f"{row.name}: {row.why}"
                rows.append(f"{self.counts[row.name]:>7}  {row.right:<6}  {text}")
        return "\n".join(rows)


def out_of_step(found):
    """Tell whether there is nothing more to compare."""
    if None in found.codes or found.more or found.ours in (221, 554):
        return True
    if b"\n" in found.line and found.is_command:
        return True  # to them it is two lines
    return found.verb.strip() in ENDING and (found.ours < 400) != (found.theirs < 400)


class Talker:
    """A client that reads replies as they come, well formed or not."""

    def __init__(self, port):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        self.port = self._socket.getsockname()[1]
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()

    def ask(self, octets):
        """Send and give the code of the reply, ``None`` if the server has gone."""
        said = b""
        try:
            self._socket.sendall(octets)
            while not _LAST_LINE.search(said):
                more = self._socket.recv(65536)
                if not more:
                    return None
                said += more
        except OSError:
            return None
        return int(said[:3])

    def more(self):
        """Give what a server says beyond its reply, as far as it has come."""
        self._socket.settimeout(0)
        try:
            return self._socket.recv(65536)
        except OSError:
            return b""
        finally:
            self._socket.settimeout(DEADLINE)
