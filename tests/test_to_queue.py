"""The example of a queue past one machine: servers, a real Redis, consumers, and some die."""

import contextlib
import queue
import signal
import smtplib
import threading

import peers
import pytest
from support import DEADLINE, ROOT, Program, until

pytestmark = pytest.mark.interop
client_package = pytest.importorskip("redis", reason="the package redis is not installed")

EXAMPLE = str(ROOT / "examples" / "to_queue.py")
SYNCED = ("--appendonly", "yes", "--appendfsync", "always")
AWAY = (451, b"4.3.0 The queue is away, try again later")


class Redis(peers.Peer):
    """A private Redis, with its files in a directory."""

    def __init__(self, directory, *arguments, port=None):
        self.port = port or peers.free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        place = ("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(directory))
        command = [peers.find("redis-server"), *place, "--save", "", *arguments]
        super().__init__(command, directory)
        self.wait_for(self.port)

    @contextlib.contextmanager
    def client(self):
        with client_package.Redis(port=self.port, protocol=2) as client:
            yield client

    def length(self):
        """How many messages are in the stream: in nobody's hands, or somebody's."""
        with self.client() as client:
            return client.xlen("mail")


@pytest.fixture
def redis(tmp_path):
    """A Redis that syncs what it is told."""
    made = peers.start(Redis, tmp_path, *SYNCED)
    yield made
    made.stop()


@pytest.fixture
def program(no_leaks):
    """Run a part of the example: ``program(redis, "serve", "0")``."""
    started = []

    def make(redis, *arguments):
        started.append(Program(EXAMPLE, *arguments, "--redis", redis.url))
        return started[-1]

    yield make
    for each in started:
        each.__exit__()


@pytest.fixture
def serving(program):
    def make(redis):
        made = program(redis, "serve", "0")
        made.listening_at = made.port()
        return made

    return make


@pytest.fixture
def consuming(program):
    def make(redis, name, idle="60"):
        made = program(redis, "consume", "--name", name, "--idle", idle)
        assert made.line() == f"consuming as {name}"
        return made

    return make


def end(program, number=signal.SIGTERM, errors=""):
    program.signal(number)
    assert program.finish() == 0, program.errors
    assert errors in program.errors if errors else program.errors == ""


def send(server, subject):
    """Send a message; give the reply to its end."""
    with smtplib.SMTP("127.0.0.1", server.listening_at, "client.example", DEADLINE) as client:
        client.ehlo()
        client.mail("a@x.example")
        client.rcpt("b@y.example")
        client.rcpt("c@y.example")
        return client.data(f"Subject: {subject}\r\n\r\nhello\r\n".encode())


def subject(line):
    return line.rpartition(": ")[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_mail_goes_through(redis, serving, consuming, number):
    server = serving(redis)
    code, text = send(server, "one")
    assert (code, text[:16]) == (250, b"2.0.0 queued as ")
    assert redis.length() == 1
    consumer = consuming(redis, "jo")
    name, _, rest = consumer.line().partition(": ")
    assert rest == "a@x.example -> b@y.example, c@y.example: one"
    assert send(server, "two")[0] == 250
    line = consumer.line()
    assert subject(line) == "two"
    assert not line.startswith(name)
    until(lambda: redis.length() == 0, "the removal of what is done")
    end(server, number)
    end(consumer, number)
    assert consumer.remaining() == b""


def test_each_message_goes_to_one_consumer(redis, serving, consuming):
    server = serving(redis)
    consumers = [consuming(redis, name) for name in ("jo", "ann")]
    wanted = [f"number {number}" for number in range(20)]
    for each in wanted:
        assert send(server, each)[0] == 250
    until(lambda: redis.length() == 0, "the end of the work")
    for each in consumers:
        end(each)
    lines = b"".join(each.remaining() for each in consumers).decode().splitlines()
    assert sorted(map(subject, lines)) == sorted(wanted)
    end(server)


def test_while_redis_is_away_it_is_451(redis, serving, consuming):
    server, consumer = serving(redis), consuming(redis, "jo")
    assert send(server, "one")[0] == 250
    assert subject(consumer.line()) == "one"
    redis.stop()
    assert send(server, "two") == AWAY
    again = Redis(redis.directory, *SYNCED, port=redis.port)
    try:
        until(lambda: send(server, "three")[0] == 250, "mail is taken again")
        assert subject(consumer.line()) == "three"
        end(consumer, errors="ERROR Redis: ")
    finally:
        again.stop()
    end(server, errors="ERROR Redis: ")


def test_what_was_answered_outlives_the_death_of_redis(redis, serving, consuming):
    server = serving(redis)
    for number in range(5):
        assert send(server, f"number {number}")[0] == 250
    redis.process.kill()
    redis.process.wait()
    again = Redis(redis.directory, *SYNCED, port=redis.port)
    try:
        consumer = consuming(redis, "jo")
        heard = [subject(consumer.line()) for _ in range(5)]
        assert heard == [f"number {number}" for number in range(5)]
        end(consumer)
    finally:
        again.stop()
    end(server)


@pytest.mark.parametrize(("setting", "value"), [("appendfsync", "everysec"), ("appendonly", "no")])
def test_a_redis_that_does_not_sync_gets_no_mail(redis, serving, setting, value):
    server = serving(redis)
    assert send(server, "one")[0] == 250
    with redis.client() as client:
        client.config_set(setting, value)
    assert send(server, "two") == AWAY
    assert redis.length() == 1
    end(server, errors="Redis needs appendonly yes, appendfsync always")


def test_a_redis_that_has_no_room_gets_no_mail(redis, serving):
    server = serving(redis)
    with redis.client() as client:
        client.config_set("maxmemory", "1")
    assert send(server, "one") == AWAY
    end(server, errors="ERROR Redis: ")


def test_what_a_dead_consumer_left_is_taken_over(redis, serving, consuming):
    server = serving(redis)
    wanted = [f"number {number}" for number in range(30)]
    for each in wanted:
        assert send(server, each)[0] == 250
    with redis.client() as dead:  # it takes 25, and is not heard of again
        dead.xgroup_create("mail", "workers", id="0")
        ((_, taken),) = dead.xreadgroup("workers", "dead", {"mail": ">"}, count=25)
        assert len(taken) == 25
    patient = consuming(redis, "patient", idle="3600")
    assert [subject(patient.line()) for _ in range(5)] == wanted[25:]
    until(lambda: redis.length() == 25, "what it may take is done")
    assert patient.lines.empty()
    end(patient)
    heir = consuming(redis, "heir", idle="0.1")
    assert [subject(heir.line()) for _ in range(25)] == wanted[:25]
    until(lambda: redis.length() == 0, "the end of the work")
    end(heir)
    assert heir.remaining() == b""
    end(server)


def test_work_that_fails_is_tried_again(redis, consuming):
    with redis.client() as client:
        client.xadd("mail", {"id": "bad", "sender": "", "recipients": "no list", "data": ""})
        consumer = consuming(redis, "jo", idle="0.1")

        def tries():
            with contextlib.suppress(client_package.ResponseError):  # no group yet
                waiting = client.xpending_range("mail", "workers", "-", "+", 10)
                return waiting and waiting[0]["times_delivered"] > 2
            return False

        until(tries, "a third try")
    end(consumer, errors="ERROR bad waits for another try")
    assert redis.length() == 1


def test_a_server_and_a_consumer_are_killed_and_nothing_is_lost(redis, serving, consuming):
    """Two servers, two consumers, four clients that try again, as a client does."""
    servers = [serving(redis), serving(redis)]
    consumers = [consuming(redis, "jo", "0.5"), consuming(redis, "ann", "0.5")]
    waiting, answered = queue.Queue(), queue.Queue()
    wanted = [f"number {number}" for number in range(80)]
    for number, each in enumerate(wanted):
        waiting.put((number % 2, each))

    def client():
        with contextlib.suppress(queue.Empty):
            while True:
                which, each = waiting.get_nowait()
                try:
                    assert send(servers[which], each)[0] == 250
                except (OSError, smtplib.SMTPException):  # the one that was killed
                    assert which == 0
                    assert send(servers[1], each)[0] == 250
                answered.put(each)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for each in clients:
        each.start()
    try:
        until(lambda: answered.qsize() >= 20, "some mail")
        servers[0].process.kill()
        until(lambda: answered.qsize() >= 40, "more mail")
        consumers[0].process.kill()
    finally:
        for each in clients:
            each.join(DEADLINE * 2)
    assert sorted(answered.queue) == sorted(wanted)
    until(lambda: redis.length() == 0, "the end of the work")
    end(consumers[1])
    consumers[0].finish()
    lines = b"".join(each.remaining() for each in consumers).decode().splitlines()
    assert {subject(line) for line in lines} == set(wanted)
    end(servers[1])


def test_help(no_leaks):
    with Program(EXAMPLE, "consume", "--help") as program:
        assert program.finish() == 0
        assert b"--idle" in program.remaining()
