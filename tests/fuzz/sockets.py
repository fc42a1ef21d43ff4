"""Plays sessions over real sockets against a real server, with clients that behave and that do not.

A client that behaves waits for its replies and must get what the core gave. One that does not may
get anything, and must do no harm: no traceback, no dead thread, nothing left, and the next client
is served.
"""

import contextlib
import logging
import pathlib
import random
import shutil
import tempfile
import threading
import time

from support import descriptors, make_certificate

from smtpd_sync import Limits, Reject, SMTPHandler, SMTPServer

from .case import Owner
from .client import DEADLINE, Client
from .core import Finding
from .driver import KEYS, Delivery, may_enter, play
from .grammar import HOSTNAME, PASSWORD, USER
from .reference import parse_replies

RUDE_CLIENTS = 2
RUDE_END = 5.0
"""Seconds for the server to see that a client has gone, if it was there at all."""
TO_TLS = b"220 2.0.0 Ready to start TLS\r\n"


class FuzzHandler(SMTPHandler):
    """Asks the owner of the case at each hook."""

    arena = None
    owner = Owner(0, 0)

    @property
    def client_port(self):
        return self.client_address[1]

    def _verdict(self, *_):
        if self.client_port in self.arena.clean:
            return None
        verb = self.command.verb
        asked = "" if verb == "connection" else str(self.command.argument)
        return self.owner.verdict(verb, asked)

    validate_host = validate_helo = validate_sender = validate_recipient = _verdict
    validate_data = verify = expand = _verdict

    def authenticate(self, credentials):
        refusal = None
        if self.client_port not in self.arena.clean:
            refusal = self.owner.verdict("credentials", credentials.username)
        return refusal or may_enter(credentials)

    def secret(self, mechanism, username):
        fault = self.owner.verdict("secret", username)
        if fault is not None:
            raise Reject(*fault)
        if username != USER:
            return None
        return PASSWORD if mechanism == "CRAM-MD5" else KEYS

    def deliver(self, sender, recipients, data):
        owner = Owner(0, 0) if self.client_port in self.arena.clean else self.owner
        each = [owner.verdict("message", name) for name in recipients]
        taken = recipients
        if self.settings.lmtp:
            taken = [name for name, reply in zip(recipients, each) if not reply or reply.code < 400]
        elif each[0] is not None and each[0].code >= 400:
            taken = []
        if taken:
            names = tuple(name.original for name in taken)
            self.arena.delivered(self.client_port, Delivery(sender.original, names, data))
        return each if self.settings.lmtp else each[0]

    def session_ended(self, reason):
        self.arena.ended(self.client_port)


class Trouble(logging.Handler):
    """Keeps what the package logs as an error."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.records = []

    def emit(self, record):
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        self.records.append(text)


class Arena:
    """Holds what all sessions share: a certificate, the log, what was delivered to whom."""

    def __init__(self):
        self._change = threading.Condition()
        self._ended = set()
        self._deliveries = {}
        self.clean = set()
        self._trouble = Trouble()
        self._dead = []

    def __enter__(self):
        self._threads, self._descriptors = set(threading.enumerate()), descriptors()
        self._directory = tempfile.TemporaryDirectory()
        self.certificate = None
        if shutil.which("openssl"):
            self.certificate = make_certificate(pathlib.Path(self._directory.name))
        self._hook, threading.excepthook = threading.excepthook, self._died
        log = logging.getLogger("smtpd_sync")
        log.addHandler(self._trouble)
        self._propagate, log.propagate = log.propagate, False
        return self

    def __exit__(self, *_):
        threading.excepthook = self._hook
        log = logging.getLogger("smtpd_sync")
        log.removeHandler(self._trouble)
        log.propagate = self._propagate
        self._directory.cleanup()

    def leaks(self):
        """Say what is left of all the sessions, once they are over."""
        give_up = time.monotonic() + DEADLINE
        while True:
            threads = set(threading.enumerate()) - self._threads
            opened = descriptors() - self._descriptors
            if not threads and opened <= 0:
                return self._dead[0] if self._dead else ""
            if time.monotonic() > give_up:
                return f"{threads} and {opened} descriptors are left"
            time.sleep(0.01)

    # -- called by handlers ------------------------------------------------------------------

    def _died(self, args):
        self._dead.append(f"{args.thread}: {args.exc_type.__name__}: {args.exc_value}")

    def delivered(self, port, delivery):
        with self._change:
            self._deliveries.setdefault(port, []).append(delivery)

    def ended(self, port):
        with self._change:
            self._ended.add(port)
            self._change.notify_all()

    def wait_for(self, port, seconds=DEADLINE):
        """Wait for the end of a session; give what it delivered."""
        with self._change:
            if not self._change.wait_for(lambda: port in self._ended, seconds):
                raise TimeoutError("the session does not end")
            self._ended.discard(port)
            return self._deliveries.pop(port, [])

    # -- one case ----------------------------------------------------------------------------

    def check(self, case):
        """Play a session with clients that behave and that do not; give what does not hold."""
        case = adapted(case, self.certificate)
        kind = {"arena": self, "owner": case.owner}
        server = SMTPServer(
            ("127.0.0.1", 0), type("CaseHandler", (FuzzHandler,), kind), **self._options(case)
        )
        server.start()
        self._trouble.records.clear()
        try:
            what = self._check(server, case)
        finally:
            server.stop(2)
        if self._trouble.records:
            what = ("nothing_is_logged_as_an_error", self._trouble.records[0])
        if self._dead:
            what = ("no_thread_dies", self._dead.pop())
        return what and Finding(case.seed, *what, case, "sockets")

    def _options(self, case):
        # The core knows no room: that a declared SIZE finds none is the server's own rule.
        limits = Limits(**case.limits)._replace(spool=10**30)
        options = dict(case.options, limits=limits, hostname=HOSTNAME, trace=False)
        starttls = options.pop("starttls")
        options["tls"] = self.certificate if starttls or case.inside else None
        options["implicit_tls"] = bool(case.inside)
        options["xclient"] = ("127.0.0.0/8",) if options["xclient"] else ()
        return options

    def _check(self, server, case):
        chance = random.Random(case.seed)
        rude = [
            threading.Thread(target=self._misbehave, args=(server.port, case, number))
            for number in range(RUDE_CLIENTS)
        ]
        for thread in rude:
            thread.start()
        try:
            return self._behave(server.port, case, chance) or self._mail(server.port, case)
        except (OSError, EOFError) as error:
            return "server_answers", f"{type(error).__name__}: {error}"
        finally:
            for thread in rude:
                thread.join()

    def _behave(self, port, case, chance):
        strict = case.options["strict_pipelining"]
        run = play(case, "lines", random.Random(0))
        octets = b"".join(run.pieces[: run.closed_at])
        with Client(port, case.inside) as client:
            heard = run.heard[: run.closed_at + 1]
            client.expect(heard[0])
            if strict:
                client.catch_up()
            group = b""
            for piece, reply in zip(run.pieces, heard[1:]):
                group += piece
                # What comes before its turn is refused where the server is strict; else it is as
                # good as what comes when it should.
                if strict or TO_TLS in reply or chance.random() < 0.2:
                    client.send(group, chance)
                    group = b""
                client.expect(reply)
                if TO_TLS in reply:
                    client.catch_up()
                    client.start_tls()
                elif not group:
                    client.catch_up()
            client.send(group, chance)
            client.catch_up()
            more = client.finish()
            said = client.said
        found = self.wait_for(client.port)
        codes = [reply.code for reply in parse_replies(said)[0]]
        wanted = [reply.code for reply in parse_replies(run.said)[0]]
        if codes != wanted or more:
            return "replies_are_those_of_the_core", f"{codes} {more!r}, not {wanted} to {octets!r}"
        if found != run.deliveries:
            return "mail_is_that_of_the_core", f"{found}, not {run.deliveries}"
        return None

    def _mail(self, port, case):
        """See that a client that means well is served."""
        hello = b"LHLO x\r\n" if case.options["lmtp"] else b"EHLO x\r\n"
        with Client(port, case.inside, self.clean) as client:
            client.ask(b"")
            client.ask(hello)
            if case.options["starttls"] and client.ask(b"STARTTLS\r\n") == 220:
                client.start_tls()
                client.ask(hello)
            if case.options["mechanisms"] and client.ask(b"AUTH PLAIN\r\n") == 334:
                client.ask(b"AHRpbQBzM2NyM3QtUGE1NQ==\r\n")
            codes = [
                client.ask(line)
                for line in (b"MAIL FROM:<a@x.example>\r\n", b"RCPT TO:<b@y.example>\r\n")
            ]
            codes += [client.ask(b"DATA\r\n"), client.ask(b"hello\r\n.\r\n")]
            client.ask(b"QUIT\r\n")
        found = self.wait_for(client.port)
        self.clean.discard(client.port)
        if codes != [250, 250, 354, 250] or [mail.data for mail in found] != [b"hello\r\n"]:
            return "server_still_serves", f"{codes} {found} {client.said!r}"
        return None

    def _misbehave(self, port, case, number):
        chance = random.Random(f"{case.seed} {number}")
        ports = set()
        inside = case.inside and chance.random() < 0.7
        with contextlib.suppress(OSError, EOFError), Client(port, inside, ports) as client:
            client.misbehave(chance, case.octets)
        for port in ports:
            with contextlib.suppress(TimeoutError):
                self.wait_for(port, RUDE_END)


def adapted(case, certificate):
    """Give the case as a real server can play it, with a client that has no certificate."""
    options, limits = dict(case.options), dict(case.limits)
    inside = "tls" if case.inside and certificate else ""
    if inside or not certificate:
        options["starttls"] = options["require_tls"] = False
    if not (inside or options["starttls"]):
        options["auth_require_tls"] = False
    options["mechanisms"] = tuple(
        name for name in options["mechanisms"] if name not in ("EXTERNAL", "SCRAM-SHA-256-PLUS")
    )
    if limits["text_line"] is not None:
        limits["text_line"] = 1000  # a server takes no less
    limits["junk_commands"] = max(limits["junk_commands"], 3)  # EHLO, STARTTLS, EHLO
    return case._replace(options=options, limits=limits, inside=inside)
