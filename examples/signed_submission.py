r"""A submission server: TLS from the first octet, AUTH, and each user sends in their own name only.

A certificate for tests, for localhost:

    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
        -addext keyUsage=digitalSignature,keyCertSign -keyout key.pem -out cert.pem

A user, who is asked for a password; the file keeps keys made of it (RFC 5802 3), which let nobody
log in, and no password:

    python3 examples/signed_submission.py add users.json ann ann@example.com '*@ann.example'

The server, at port 465 if it may (RFC 8314):

    python3 examples/signed_submission.py serve users.json [HOST] PORT --cert cert.pem --key key.pem

A user who is added is known at once. What comes is printed, a line each; put a ``Relay`` in the
place of ``print`` to send it on. A client:

    swaks --server localhost:8465 --tls-on-connect --auth-user ann --from ann@example.com \
        --to bob@example.net
"""

import argparse
import getpass
import hmac
import json
import os
import pathlib
import signal
import sys
from fnmatch import fnmatchcase

from smtpd_sync import Reject, ScramKeys, SMTPHandler, SMTPServer


class Users:
    """A file of users: name -> the keys of the password, and the senders that are theirs."""

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def read(self):
        """Give them all, as they are now."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def keys(self, name):
        """Give the ScramKeys of a user, or None."""
        user = self.read().get(name)
        if user is None:
            return None
        salt, stored_key, server_key = (bytes.fromhex(octets) for octets in user["keys"])
        return ScramKeys(salt, user["iterations"], stored_key, server_key)

    def senders(self, name):
        """Give the patterns of the senders that are a user's."""
        return self.read().get(name, {}).get("senders", [])

    def add(self, name, password, senders):
        """Add a user, or change one. Nobody ever reads half a file."""
        # As many iterations for all, or their number would tell a user from a stranger.
        salt, iterations, *keys = ScramKeys.of(password, os.urandom(16))
        keys = [octets.hex() for octets in (salt, *keys)]
        users = {**self.read(), name: {"iterations": iterations, "keys": keys, "senders": senders}}
        new = self.path.with_name(f"{self.path.name}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(users, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)


class Submission(SMTPHandler):
    """Lets users in, each as themselves."""

    book = None
    require_auth = True
    implicit_tls = True

    def secret(self, mechanism, username):
        """Give what SCRAM needs: the keys, which are not the password."""
        return self.book.keys(username)

    def authenticate(self, credentials):
        """Check a password, of a client that does not know SCRAM, by the same keys."""
        if credentials.password is None:
            return False
        keys = self.book.keys(credentials.username)
        # For a stranger, too, so that the time tells nobody who is a user.
        shown = ScramKeys.of(credentials.password, keys.salt if keys else b"nobody's salt")
        return keys is not None and hmac.compare_digest(shown.stored_key, keys.stored_key)

    def validate_sender(self, mailbox):
        """Take a sender that is the user's; the null one is nobody's."""
        patterns = self.book.senders(self.session.user)
        if not any(fnmatchcase(mailbox.lower(), pattern.lower()) for pattern in patterns):
            raise Reject(553, f"{self.session.user} may not send as <{mailbox}>", "5.7.1")

    def deliver(self, sender, recipients, data):
        """Print who sent what."""
        print(f"{self.session.user}: {sender} -> {', '.join(recipients)}", flush=True)


def serve(given):
    """Serve until Ctrl-C or SIGTERM."""
    Submission.book = Users(given.users)
    server = SMTPServer((given.host, given.port), Submission, tls=(given.cert, given.key))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    host = f"[{server.address[0]}]" if ":" in server.address[0] else server.address[0]
    print(f"listening on {host}:{server.port}", flush=True)
    server.serve_forever()


def add(given):
    """Add a user, whose password is typed, or read from standard input."""
    typed = sys.stdin.isatty()
    password = getpass.getpass() if typed else sys.stdin.readline().rstrip("\n")
    try:
        Users(given.users).add(given.name, password or "\0", given.senders)
    except Reject:
        sys.exit("that can be no password")


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(description="A submission server with AUTH inside TLS.")
    commands = parser.add_subparsers(required=True, dest="command")
    command = commands.add_parser("serve", help="serve until Ctrl-C")
    command.set_defaults(run=serve)
    command.add_argument("users")
    command.add_argument("host", nargs="?", default="127.0.0.1", help="default: %(default)s")
    command.add_argument("port", type=int)
    command.add_argument("--cert", default="cert.pem", help="default: %(default)s")
    command.add_argument("--key", default="key.pem", help="default: %(default)s")
    command = commands.add_parser("add", help="add a user, or change one")
    command.set_defaults(run=add)
    command.add_argument("users")
    command.add_argument("name")
    command.add_argument("senders", nargs="+", help="a mailbox, or a pattern of mailboxes")
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
