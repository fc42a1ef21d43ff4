"""Print each message, once for each of its recipients, and turn some mail away.

    python3 examples/print_mail.py [HOST [PORT]]

It listens on 127.0.0.1, port 8025, unless told otherwise. It refuses hosts ``192.168.1.*`` with
554, the sender ``denied`` of any domain, and recipients whose local part begins with ``bogus``.
Ctrl-C ends it.
"""

import argparse
import signal
import sys
import threading
import time

from smtpd_sync import Reject, SMTPServer

printing = threading.Lock()


def validate_host(address):
    """Accept everyone except those spammers on 192.168.1.*."""
    if address.startswith("192.168.1."):
        raise Reject(554, "your domain is not allowed to post, spammers!", "5.7.1")


def validate_sender(mailbox):
    """Accept mail from anyone except the user 'denied'; the null sender has no local part."""
    if mailbox.local == "denied":
        raise Reject(550, f"mailbox {mailbox.local} denied", "5.7.1")


def validate_recipient(mailbox):
    """Refuse recipients that begin with 'bogus'."""
    if mailbox.local.startswith("bogus"):
        raise Reject(550, f"mailbox {mailbox.local} denied", "5.1.1")


def printable(text):
    """Show what could play tricks on a terminal as U+FFFD."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def deliver(sender, recipients, data):
    """Print a message for each recipient; 250 is said when it is printed."""
    text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    mail = printable(f"From {sender or '<>'} {time.ctime()}\n{text}")
    with printing:  # messages of several clients come at the same time
        for recipient in dict.fromkeys(recipients):
            print(printable(f"To: {recipient}"), mail, sep="\n", flush=True)


def main():
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="An SMTP server that prints what it gets.")
    parser.add_argument("host", nargs="?", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument("port", nargs="?", default=8025, type=int, help="default: 8025")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(errors="replace")  # a terminal may know fewer characters than mail
    try:
        server = SMTPServer(
            (arguments.host, arguments.port),
            validate_host=validate_host,
            validate_sender=validate_sender,
            validate_recipient=validate_recipient,
            deliver=deliver,
        )
    except (OSError, OverflowError) as error:
        parser.error(f"cannot listen on {arguments.host}, port {arguments.port}: {error}")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    host, port = server.address
    print(f"listening on {f'[{host}]' if ':' in host else host}:{port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
