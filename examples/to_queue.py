"""Mail goes into a Redis stream, and other processes work on it: as many of each as you like.

    python3 examples/to_queue.py serve [HOST] PORT [--redis URL] [--stream NAME]
    python3 examples/to_queue.py consume [--redis URL] [--stream NAME] [--name NAME]
        [--idle SECONDS]

It needs Redis, 6.2 or newer, that syncs each write to its disk, and the package ``redis``:

    redis-server --appendonly yes --appendfsync always
    pip install redis

The server says 250 when Redis has written and synced the message, and 451 when it cannot. Redis
answers then, and not before, where ``appendfsync`` is ``always``; so a Redis that is set up another
way gets no mail.

Consumers share the work as one group. A message is removed when the work on it is done. What a
consumer leaves undone, because it was killed, say, another takes over after ``--idle`` seconds; so
that is to be longer than the work takes. Nothing is lost, and a message may come twice, under the
same id: when a consumer died after its work, or a client never heard its 250 (RFC 5321 4.5.5 wants
it to try again).
"""

import argparse
import email
import email.policy
import json
import logging
import os
import signal
import socket
import threading

from redis import Redis, RedisError, ResponseError
from redis.backoff import NoBackoff
from redis.retry import Retry

from smtpd_sync import Reject, SMTPHandler, SMTPServer

GROUP = "workers"
AWAY = (451, "The queue is away, try again later", "4.3.0")
BLOCK = 500  # milliseconds for which a consumer waits for mail, and does not see that it is to end

log = logging.getLogger("to_queue")


def connect(url):
    """Give a client of Redis, which any number of threads may use."""
    # What failed is not tried again here: an answer may be lost, and the write done.
    retry = Retry(NoBackoff(), 0)
    return Redis.from_url(url, protocol=2, socket_timeout=10, retry=retry)


# -- the server ------------------------------------------------------------------------------


class ToQueue(SMTPHandler):
    """Appends each message to a stream."""

    redis = None
    key = "mail"

    def deliver(self, sender, recipients, data):
        """Append a message; say 250 when it is on the disk."""
        fields = {
            "id": self.envelope.id,
            "sender": sender,
            "recipients": json.dumps(recipients),
            "data": data,
        }
        try:
            # Each time: Redis may have been started anew, with other settings.
            syncs = self.redis.config_get("append*")
            if (syncs["appendonly"], syncs["appendfsync"]) != ("yes", "always"):
                log.error("Redis needs appendonly yes, appendfsync always")
                raise Reject(*AWAY)
            entry = self.redis.xadd(self.key, fields)
        except RedisError as error:
            log.error("Redis: %s", error)
            raise Reject(*AWAY) from None
        return f"queued as {entry.decode()}"


def serve(given):
    """Serve until Ctrl-C or SIGTERM."""
    ToQueue.redis, ToQueue.key = connect(given.redis), given.stream
    server = SMTPServer((given.host, given.port), ToQueue)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    host = f"[{server.address[0]}]" if ":" in server.address[0] else server.address[0]
    print(f"listening on {host}:{server.port}", flush=True)
    server.serve_forever()
    ToQueue.redis.close()


# -- a consumer ------------------------------------------------------------------------------


class Consumer:
    """Takes messages from the stream, one by one, until it is told to stop."""

    def __init__(self, redis, stream, name, idle):
        self.redis, self.stream, self.name, self.idle = redis, stream, name, idle
        self.stopping = threading.Event()
        self._cursor = "0-0"  # how far it has looked for what others left

    def run(self):
        """Work."""
        while not self.stopping.is_set():
            try:
                self.join()
                while not self.stopping.is_set():
                    for entry, fields in self.left_by_others() or self.fresh():
                        self.take(entry, fields)
            except RedisError as error:  # it will come back
                log.error("Redis: %s", error)
                self.stopping.wait(1)

    def join(self):
        """Make the group, if it is the first to come."""
        try:
            self.redis.xgroup_create(self.stream, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def left_by_others(self):
        """Take over a message that somebody has had for too long."""
        self._cursor, entries, *_ = self.redis.xautoclaim(
            self.stream, GROUP, self.name, round(self.idle * 1000), self._cursor, count=1
        )
        return entries

    def fresh(self):
        """Take a message that nobody has had, or wait for one."""
        streams = self.redis.xreadgroup(GROUP, self.name, {self.stream: ">"}, 1, BLOCK)
        return [entry for _, entries in streams for entry in entries]

    def take(self, entry, fields):
        """Work on a message, and have it removed, but not if that fails."""
        try:
            work(fields)
        except Exception:
            log.exception("%s waits for another try", fields[b"id"].decode())
            return
        with self.redis.pipeline() as both:  # a transaction
            both.xack(self.stream, GROUP, entry).xdel(self.stream, entry)
            both.execute()


def work(fields):
    """Do what is to be done with a message: your code."""
    message = email.message_from_bytes(fields[b"data"], policy=email.policy.SMTPUTF8)
    sender, recipients = fields[b"sender"].decode(), json.loads(fields[b"recipients"])
    name = fields[b"id"].decode()
    print(f"{name}: {sender} -> {', '.join(recipients)}: {message['Subject']}", flush=True)


def consume(given):
    """Consume until Ctrl-C or SIGTERM."""
    redis = connect(given.redis)
    consumer = Consumer(redis, given.stream, given.name, given.idle)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: consumer.stopping.set())
    print(f"consuming as {given.name}", flush=True)
    consumer.run()
    redis.close()


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(description="An SMTP server in front of a Redis stream.")
    commands = parser.add_subparsers(required=True, dest="command")
    server = commands.add_parser("serve", help="take mail")
    server.add_argument("host", nargs="?", default="127.0.0.1", help="default: %(default)s")
    server.add_argument("port", type=int)
    server.set_defaults(run=serve)
    consumer = commands.add_parser("consume", help="work on what has come")
    own = f"{socket.gethostname()}-{os.getpid()}"
    consumer.add_argument("--name", default=own, help="no two consumers have the same")
    consumer.add_argument("--idle", metavar="SECONDS", type=float, default=60, help="default: 60")
    consumer.set_defaults(run=consume)
    for command in (server, consumer):
        command.add_argument("--redis", metavar="URL", default="redis://127.0.0.1:6379")
        command.add_argument("--stream", metavar="NAME", default="mail")
    given = parser.parse_args()
    logging.basicConfig(format="%(levelname)s %(message)s")
    given.run(given)


if __name__ == "__main__":
    main()
