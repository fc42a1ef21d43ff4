"""Forwards all mail of a few hosts and senders to a mail host, to each recipient once.

    python3 examples/unique_forwarder.py MAILHOST[:PORT] [--listen HOST:PORT]
        [--allow NETWORK ...] [--sender PATTERN ...] [--suppress LEVEL,...]
        [--language CODE] [--locale-dir DIRECTORY]

It stands between a program that names a recipient several times, such as a bug tracker, and the
mail host. The originator is kept. What the mail host refuses, the client hears, and the log tells.

``--allow`` names an address or a network of those who may send (127.0.0.1 and ::1 by default),
``--sender`` a pattern of senders, as for file names and in any case of letters (``*`` by default;
``''`` is the null sender of bounces). Both may be given several times.

The log goes to standard error, in the language that LANGUAGE, LC_ALL, LC_MESSAGES or LANG asks for,
or ``--language``. Catalogues for German and French are in ``locale``, to be compiled once:

    cd examples/locale/de/LC_MESSAGES && msgfmt unique_forwarder.po -o unique_forwarder.mo

Where there is none, it speaks English.
"""

import argparse
import gettext
import ipaddress
import logging
import pathlib
import signal
from fnmatch import fnmatchcase

from smtpd_sync import Reject, Relay, SMTPHandler, SMTPServer

HERE = pathlib.Path(__file__).resolve().parent
LEVELS = ("info", "warning", "error")

log = logging.getLogger("unique_forwarder")
catalogue = gettext.NullTranslations()


def _(text):
    return catalogue.gettext(text)


class Forwarder(SMTPHandler):
    """Asks the rules, then the mail host."""

    allowed = ()
    patterns = ()
    relay = None

    def validate_host(self, address):
        """Let allowed hosts in, and get ready to ask the mail host."""
        self.onward = self.relay.attach(self)
        client = ipaddress.ip_address(address)
        if any(client in network for network in self.allowed):
            return True
        log.warning(_("host %s is not allowed"), address)
        return False

    def validate_sender(self, mailbox):
        """Let a sender in that fits a pattern, if the mail host does."""
        if any(fnmatchcase(mailbox.lower(), pattern) for pattern in self.patterns):
            return self.ask(f"<{mailbox}>", self.onward.validate_sender, mailbox)
        log.warning(_("sender %s fits no pattern"), f"<{mailbox}>")
        return False

    def validate_recipient(self, mailbox):
        """Take whom the mail host takes."""
        return self.ask(f"<{mailbox}>", self.onward.validate_recipient, mailbox)

    def deliver_envelope(self, envelope):
        """Forward the message; the mail host's answer is ours."""
        answer = self.ask(envelope.id, self.onward.deliver_envelope, envelope)
        if isinstance(answer, str):  # the text of its 250
            count = len(set(envelope.recipients))
            text = catalogue.ngettext(
                "%(id)s from %(sender)s forwarded to %(count)d recipient",
                "%(id)s from %(sender)s forwarded to %(count)d recipients",
                count,
            )
            sender = f"<{envelope.sender}>"
            log.info(text, {"id": envelope.id, "sender": sender, "count": count})
        return answer

    def session_ended(self, reason):
        """Take leave of the mail host."""
        if hasattr(self, "onward"):
            self.onward.session_ended(reason)

    def ask(self, what, hook, argument):
        """Ask the mail host; log what it refuses."""
        try:
            answer, level = hook(argument), logging.WARNING
        except Reject as reject:  # it cannot be reached, say
            answer, level = reject.reply, logging.ERROR
        if getattr(answer, "code", 0) >= 400:
            text = _("mail host refuses %(what)s: %(reply)s")
            log.log(level, text, {"what": what, "reply": answer})
        return answer


class Translated(logging.Formatter):
    """Puts the name of the level, in the reader's language, before a line."""

    def format(self, record):
        """Write one line."""
        names = {"INFO": _("info"), "WARNING": _("warning"), "ERROR": _("error")}
        return f"{names.get(record.levelname, record.levelname)}: {super().format(record)}"


def place(text, port):
    """Read HOST:PORT or HOST; IPv6 addresses stand in brackets."""
    host, colon, given = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    return (host if colon else text).strip("[]"), int(given) if colon else port


def levels(text):
    """Read a list of levels."""
    names = [name.strip().lower() for name in text.split(",")]
    if not set(names) <= set(LEVELS):
        raise argparse.ArgumentTypeError(f"the levels are {', '.join(LEVELS)}")
    return names


def arguments():
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Forward mail, to each recipient once.")
    add = parser.add_argument
    add("mailhost", metavar="MAILHOST[:PORT]", type=lambda text: place(text, 25))
    add("--listen", metavar="HOST:PORT", default="127.0.0.1:8025", help="default: %(default)s")
    add("--allow", metavar="NETWORK", action="append", type=ipaddress.ip_network)
    add("--sender", metavar="PATTERN", action="append", help="default: *")
    add("--suppress", metavar="LEVEL,...", type=levels, default=[], help=", ".join(LEVELS))
    add("--language", metavar="CODE", help="such as de; default: as the environment says")
    add("--locale-dir", metavar="DIRECTORY", default=HERE / "locale", type=pathlib.Path)
    return parser.parse_args()


def set_up_log(given):
    """Have the log speak the reader's language, and leave out what nobody wants to read."""
    global catalogue
    language = [given.language] if given.language else None
    catalogue = gettext.translation("unique_forwarder", given.locale_dir, language, fallback=True)
    handler = logging.StreamHandler()
    handler.setFormatter(Translated())
    handler.addFilter(lambda record: record.levelname.lower() not in given.suppress)
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def main():
    """Serve until Ctrl-C or SIGTERM."""
    given = arguments()
    set_up_log(given)
    Forwarder.relay = Relay(*given.mailhost)
    Forwarder.allowed = given.allow or [ipaddress.ip_network(a) for a in ("127.0.0.1", "::1")]
    Forwarder.patterns = [pattern.lower() for pattern in given.sender or ["*"]]
    server = SMTPServer(place(given.listen, 8025), Forwarder)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    host = f"[{server.address[0]}]" if ":" in server.address[0] else server.address[0]
    print(f"listening on {host}:{server.port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
