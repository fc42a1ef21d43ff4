"""A mail log, as one wrote it for years: one method, one loop, and a database of one thread.

    python3 examples/legacy.py [PORT [FILE]]

It was written against the ``smtpd`` and ``asyncore`` of Python 3.11 and before: ``import asyncore,
smtpd`` is all that was changed. It listens on 127.0.0.1, port 8025 unless told otherwise, keeps a
row for each message in an SQLite database, and says no to the recipient ``nobody``. Ctrl-C ends it,
and shows who got how much.
"""

import email
import email.policy
import sqlite3
import sys

from smtpd_sync.compat import asyncore, smtpd

TABLE = "CREATE TABLE IF NOT EXISTS mail (sender, recipient, subject, octets)"
SUMS = "SELECT recipient, count(*), sum(octets) FROM mail GROUP BY recipient ORDER BY recipient"


class Channel(smtpd.SMTPChannel):
    """A conversation."""

    def smtp_RCPT(self, arg):
        """Take a recipient, but one."""
        if arg and "<nobody@" in arg.lower():
            self.push("550 there is nobody here")
        else:
            smtpd.SMTPChannel.smtp_RCPT(self, arg)


class MailLog(smtpd.SMTPServer):
    """Keeps a row for each recipient of each message."""

    channel_class = Channel

    def __init__(self, localaddr, database):
        smtpd.SMTPServer.__init__(self, localaddr, None)
        self.database = sqlite3.connect(database)  # for this thread and no other
        self.database.execute(TABLE)

    def process_message(self, peer, mailfrom, rcpttos, data, **kwargs):
        """Take a message; what is returned is the reply, and nothing is 250."""
        message = email.message_from_bytes(data, policy=email.policy.default)
        subject = str(message["Subject"] or "")
        if "spam" in subject.lower():
            return "554 keep it"
        rows = [(mailfrom, recipient, subject, len(data)) for recipient in rcpttos]
        with self.database:
            self.database.executemany("INSERT INTO mail VALUES (?, ?, ?, ?)", rows)
        print(f"{mailfrom} to {', '.join(rcpttos)}: {subject}", flush=True)
        return None


def main():
    """Serve until Ctrl-C."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8025
    server = MailLog(("127.0.0.1", port), sys.argv[2] if len(sys.argv) > 2 else ":memory:")
    host, port = server.socket.getsockname()
    print(f"listening on {host}:{port}", flush=True)
    try:
        asyncore.loop()
    except KeyboardInterrupt:
        for recipient, count, octets in server.database.execute(SUMS):
            print(f"{recipient}: {count} messages, {octets} octets")
    finally:
        asyncore.close_all()
        server.database.close()


if __name__ == "__main__":
    main()
