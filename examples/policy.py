"""A policy of one's own, in plain blocking code: greylisting, with a database in a file.

    python3 examples/policy.py [HOST] PORT [--database FILE] [--delay SECONDS] [--keep DAYS]

Who has never written from this network, as this sender, to this recipient, hears 451 and may come
again after a pause. A mail server does that by itself; what sends spam in passing does not. Mail
that is taken is printed, a line each.

A hook may block, so it asks the database as any program would. A handler serves one connection, and
keeps on ``self`` what belongs to it: here, a connection to the database, which is made when it is
needed first, and how many recipients it put off.
"""

import argparse
import contextlib
import ipaddress
import signal
import sqlite3
import time

from smtpd_sync import Reject, SMTPHandler, SMTPServer

SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (
    network TEXT, sender TEXT, recipient TEXT, first REAL NOT NULL, last REAL NOT NULL,
    PRIMARY KEY (network, sender, recipient)
)
"""
# One statement: of two clients that come at the same time, one makes the row and both read it.
COME = """
INSERT INTO seen VALUES (:network, :sender, :recipient, :now, :now)
ON CONFLICT (network, sender, recipient) DO UPDATE SET last = :now
"""
FIRST = """
SELECT first FROM seen WHERE (network, sender, recipient) = (:network, :sender, :recipient)
"""


class Greylisting(SMTPHandler):
    """Puts off what it has not seen before."""

    database = "greylist.sqlite"
    delay = 300.0

    def validate_helo(self, name):
        """Begin to count."""
        self.put_off = 0

    def validate_recipient(self, mailbox):
        """Take mail that was put off once, and long enough ago."""
        now = time.time()
        first = self.first_seen(mailbox, now)
        if now - first < self.delay:
            self.put_off += 1
            left = round(self.delay - (now - first))
            raise Reject(451, f"Greylisted, try again in {left} s", "4.7.1")

    def first_seen(self, mailbox, now):
        """Write down who wants to write to whom, and give the time when that was seen first."""
        triplet = {
            "network": network_of(self.peer.address),
            "sender": self.envelope.sender.lower(),
            "recipient": mailbox.lower(),
            "now": now,
        }
        with self.connection() as database:  # a transaction: it is committed, or rolled back
            database.execute(COME, triplet)
            ((first,),) = database.execute(FIRST, triplet)
        return first

    def connection(self):
        """Give this connection's own connection to the database."""
        if not hasattr(self, "_connection"):
            self._connection = connect(self.database)
        return self._connection

    def deliver(self, sender, recipients, data):
        """Print what came."""
        line = f"from={sender} to={','.join(recipients)} octets={len(data)} put_off={self.put_off}"
        print(line, flush=True)

    def session_ended(self, reason):
        """Let go of the database."""
        if hasattr(self, "_connection"):
            self._connection.close()


def network_of(address):
    """Give the network of a client: a mail server may come again from a neighbour's address."""
    client = ipaddress.ip_address(address)
    client = getattr(client, "ipv4_mapped", None) or client
    return str(ipaddress.ip_network((client, 24 if client.version == 4 else 64), strict=False))


def connect(file):
    """Connect to the database; who finds it locked waits."""
    return sqlite3.connect(file, timeout=30)


def set_up(file, keep):
    """Make the table, and forget who has not come for long."""
    with contextlib.closing(connect(file)) as database, database:
        database.execute("PRAGMA journal_mode = WAL")  # who reads does not wait for who writes
        database.execute(SCHEMA)
        database.execute("DELETE FROM seen WHERE last < ?", (time.time() - keep * 86_400,))


def main():
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Take mail, but not at the first attempt.")
    parser.add_argument("host", nargs="?", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("port", type=int)
    parser.add_argument("--database", metavar="FILE", default=Greylisting.database)
    parser.add_argument("--delay", metavar="SECONDS", type=float, default=Greylisting.delay)
    parser.add_argument("--keep", metavar="DAYS", type=float, default=36, help="default: 36")
    given = parser.parse_args()
    Greylisting.database, Greylisting.delay = given.database, given.delay
    set_up(given.database, given.keep)
    server = SMTPServer((given.host, given.port), Greylisting)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    host = f"[{server.address[0]}]" if ":" in server.address[0] else server.address[0]
    print(f"listening on {host}:{server.port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
