"""Where mail data waits: budgets that add up, files without a name, and disks that fill."""

import errno
import hashlib
import io
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import textwrap
import threading

import pytest
from support import DEADLINE, SOON, Client, Program, descriptors, until

from smtpd_sync import Disconnect, Limits, Reject, SMTPHandler, SMTPServer, discard
from smtpd_sync.storage import Sink, Storage, file_of

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or mounts a tmpfs")

# -- a sink by itself ------------------------------------------------------------------------


@pytest.fixture
def storage():
    return Storage()


@pytest.fixture
def sink(storage, tmp_path):
    """Make a sink in ``storage``, closed after the test: ``sink(in_memory, **limits)``."""
    made = []

    def make(in_memory=1_000_000, directory=tmp_path, **limits):
        made.append(Sink(storage, Limits(**limits), in_memory, directory))
        return made[-1]

    yield make
    for each in made:
        each.close()


def books(storage):
    return storage.memory.used, storage.spool.used


def is_file(file):
    """Whether it is a file of the system; of that it must have no name."""
    if isinstance(file, io.BytesIO):
        return False
    assert os.name != "posix" or os.fstat(file.fileno()).st_nlink == 0
    return True


def content(sink):
    sink.flush()
    file = file_of(sink)
    file.seek(0)
    return file.read()


def test_sink_holds_in_memory_up_to_its_own_limit(storage, sink):
    one = sink(in_memory=10)
    assert one.write(b"12345") == 5
    assert one.write(b"67890") == 5
    assert not is_file(one.file)
    assert books(storage) == (10, 0)
    assert one.write(b"1") == 1
    assert is_file(one.file)
    assert books(storage) == (0, 11)
    assert one.write(b"") == 0
    assert content(one) == b"12345678901"
    one.close()
    assert books(storage) == (0, 0)


def test_first_write_may_be_beyond_memory(storage, sink):
    one = sink(in_memory=10)
    assert one.write(b"x" * 11) == 11
    assert is_file(one.file)
    assert books(storage) == (0, 11)
    assert content(one) == b"x" * 11


def test_sinks_share_the_memory_of_the_server(storage, sink):
    one, two, three = sink(memory=10), sink(memory=10), sink(memory=10)
    one.write(b"x" * 6)
    two.write(b"y" * 4)
    assert books(storage) == (10, 0)
    three.write(b"z")
    assert [is_file(each.file) for each in (one, two, three)] == [False, False, True]
    assert books(storage) == (10, 1)
    one.write(b"X")
    assert is_file(one.file)
    assert books(storage) == (4, 8)
    two.write(b"Y" * 6)  # the room that one left
    assert not is_file(two.file)
    assert books(storage) == (10, 8)
    assert [content(each) for each in (one, two, three)] == [b"xxxxxxX", b"yyyyYYYYYY", b"z"]


def test_file_does_not_become_memory_again(storage, sink):
    other, one = sink(memory=10), sink(memory=10)
    other.write(b"x" * 10)
    one.write(b"y")
    other.close()
    one.write(b"y")
    assert is_file(one.file)
    assert books(storage) == (0, 2)


@pytest.mark.parametrize("in_memory", [1, 1_000])
def test_full_spool_is_as_a_full_disk(storage, sink, in_memory):
    one = sink(in_memory=in_memory, memory=1_000, spool=100)
    one.write(b"x" * in_memory)
    with pytest.raises(OSError, match="full") as caught:
        one.write(b"y" * 101)
    assert caught.value.errno == errno.ENOSPC
    one.close()
    assert books(storage) == (0, 0)


def test_spool_may_be_filled_to_the_last_octet(storage, sink):
    one, two = sink(in_memory=1, spool=100), sink(in_memory=1, spool=100)
    one.write(b"x" * 60)
    two.write(b"y" * 40)
    assert books(storage) == (0, 100)
    with pytest.raises(OSError, match="full"):
        two.write(b"y")
    assert books(storage) == (0, 100)  # what was refused is not counted
    one.close()
    assert two.write(b"y") == 1


def test_what_cannot_move_stays_counted_until_it_is_closed(storage, sink):
    one = sink(in_memory=50, spool=40)
    one.write(b"x" * 50)
    with pytest.raises(OSError, match="full"):
        one.write(b"x")
    assert books(storage) == (50, 0)
    one.close()
    assert books(storage) == (0, 0)


@pytest.mark.parametrize("size", [0, 5, 50], ids=["empty", "memory", "file"])
def test_close_gives_back_once(storage, sink, size):
    other, one = sink(), sink(in_memory=10)
    other.write(b"x" * 7)
    one.write(b"x" * size)
    for _ in range(3):
        one.close()
        assert books(storage) == (7, 0)


def test_memory_outlives_the_close(sink):
    one = sink()
    one.write(b"kept")
    one.close()
    assert file_of(one).getvalue() == b"kept"


def test_temporary_file_is_closed_with_the_sink(sink):
    before = descriptors()
    one = sink(in_memory=1)
    one.write(b"xy")
    one.close()
    assert one.file.closed
    assert descriptors() == before


def test_no_name_leads_to_the_file(sink, tmp_path):
    one = sink(in_memory=1)
    one.write(b"x" * 100_000)
    one.flush()
    assert is_file(one.file)
    assert list(tmp_path.iterdir()) == []


@linux
def test_file_is_in_the_directory_that_was_asked_for(sink, tmp_path):
    one = sink(in_memory=1)
    one.write(b"xy")
    where = os.readlink(f"/proc/self/fd/{one.file.fileno()}")
    assert where.startswith(f"{os.path.realpath(tmp_path)}/")


@pytest.mark.parametrize("in_memory", [1, 10])
@pytest.mark.parametrize(
    "directory",
    ["gone", pytest.param("/proc", marks=linux)],  # nobody can write there, not even root
)
def test_file_that_cannot_be_made_leaves_the_books_right(
    storage, sink, tmp_path, directory, in_memory
):
    one = sink(in_memory, directory=tmp_path / directory)
    one.write(b"x" * (in_memory - 1))
    before = descriptors()
    with pytest.raises(OSError):  # noqa: PT011 - the system says which
        one.write(b"x" * 10)
    one.close()
    assert books(storage) == (0, 0)
    assert descriptors() == before
    one.close()
    assert books(storage) == (0, 0)


def test_has_room(storage, sink):
    limits = Limits(memory=100, spool=50)
    assert storage.has_room(100, limits)
    assert not storage.has_room(101, limits)
    assert storage.has_room(120, limits._replace(spool=120))
    sink(memory=100, spool=50).write(b"x" * 60)
    assert storage.has_room(50, limits)
    assert not storage.has_room(51, limits)
    one = sink(in_memory=1, memory=100, spool=50)
    one.write(b"x" * 50)
    assert storage.has_room(40, limits)
    assert not storage.has_room(41, limits)
    one.close()
    assert storage.has_room(50, limits)


def test_many_threads_keep_the_books(storage, tmp_path):
    limits, most = Limits(memory=20_000, spool=60_000), []
    failures, refusals = [], []

    def work(seed):
        chance = random.Random(seed)
        try:
            for _ in range(60):
                sink = Sink(storage, limits, 5_000, tmp_path)
                mine = bytes([seed]) * chance.randrange(1, 2_000)
                written = 0
                try:
                    for _ in range(chance.randrange(8)):
                        written += sink.write(mine)
                except OSError as error:
                    refusals.append(error.errno)
                else:
                    assert content(sink) == bytes([seed]) * written
                most.append(books(storage))
                sink.close()
        except BaseException as error:
            failures.append(error)
            raise

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
    finally:
        sys.setswitchinterval(interval)
    assert not failures
    assert set(refusals) <= {errno.ENOSPC}
    assert len(most) == 12 * 60
    assert max(memory for memory, _ in most) <= limits.memory
    assert max(spool for _, spool in most) <= limits.spool
    assert any(spool for _, spool in most), "nothing was ever in a file"
    assert books(storage) == (0, 0)


# -- over a server ---------------------------------------------------------------------------

LINES = b"".join(b"line %d of mail data, long enough to fill\r\n" % n for n in range(5_000))
SHORT = LINES[: LINES.index(b"line 200 ")]
COMMANDS = b"QUIT\r\nRSET\r\nMAIL FROM:<evil@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n"
OK = b"Subject: small\r\n\r\nhello\r\n"


def held(server):
    stats = server.stats()
    return stats["memory"], stats["spool"]


def begin(client, sender="a@x.example"):
    assert client.ask(f"MAIL FROM:<{sender}>").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")


def by_data(client, data, sender="a@x.example"):
    begin(client, sender)
    assert client.ask("DATA").startswith("354 ")
    client.send(data + b".\r\n")
    return client.reply()


def by_bdat(client, data, sender="a@x.example"):
    begin(client, sender)
    third = len(data) // 3
    for piece in (data[:third], data[third:-third]):
        client.send(b"BDAT %d\r\n" % len(piece) + piece)
        assert client.reply().startswith("250 ")
    client.send(b"BDAT %d LAST\r\n" % third + data[-third:])
    return client.reply()


BOTH = pytest.mark.parametrize("send", [by_data, by_bdat])


class Keeper:
    """A deliver_envelope hook that looks at the file it gets."""

    def __init__(self):
        self.files, self.contents, self.stats = [], [], []
        self.server = None

    def __call__(self, envelope):
        file = envelope.open()
        self.files.append(is_file(file))
        self.contents.append(file.read())
        self.stats.append(held(self.server))

    def attach(self, server):
        self.server = server
        return server


@BOTH
def test_large_message_is_a_file_to_deliver_envelope(serve, connect, tmp_path, send):
    keep = Keeper()
    limits = Limits(message_memory=len(SHORT))
    server = keep.attach(
        serve(deliver_envelope=keep, limits=limits, trace=False, spool_directory=tmp_path)
    )
    client = connect(server)
    client.hello()
    opened = descriptors()
    assert send(client, LINES).startswith("250 ")
    assert send(client, SHORT).startswith("250 ")
    assert keep.contents == [LINES, SHORT]
    assert keep.files == [True, False]
    assert keep.stats == [(0, len(LINES)), (len(SHORT), 0)]
    assert held(server) == (0, 0)
    assert descriptors() == opened
    assert list(tmp_path.iterdir()) == []


@BOTH
def test_content_of_a_file_is_bytes_when_asked_for(serve, connect, send):
    contents = []
    server = serve(
        deliver_envelope=lambda envelope: contents.append(envelope.content),
        limits=Limits(message_memory=1),
        trace=False,
    )
    client = connect(server)
    client.hello()
    assert send(client, LINES).startswith("250 ")
    assert contents == [LINES]


@BOTH
@pytest.mark.parametrize("memory", [1, 1_000, 100_000])
def test_deliver_gets_whole_bytes_whatever_memory_there_is(serve, connect, inbox, send, memory):
    limits = Limits(memory=memory, message_memory=1)
    client = connect(serve(limits=limits, trace=False))
    client.hello()
    assert send(client, LINES).startswith("250 ")
    assert send(client, OK * 3).startswith("250 ")
    assert [data for _, _, data in inbox.messages] == [LINES, OK * 3]
    assert all(type(data) is bytes for _, _, data in inbox.messages)


def test_message_memory_is_of_no_matter_to_deliver(serve, connect):
    # Its bytes are built in memory anyhow: a file would be one copy more.
    seen = []
    server = None

    def deliver(sender, recipients, data):
        seen.append((held(server), data))

    server = serve(deliver=deliver, limits=Limits(message_memory=1), trace=False)
    assert connect(server).mail(LINES).startswith("250 ")
    assert seen == [((len(LINES), 0), LINES)]


def test_trace_field_is_counted_too(serve, connect):
    keep = Keeper()
    server = keep.attach(serve(deliver_envelope=keep))
    assert connect(server).mail(OK).startswith("250 ")
    ((memory, spool),) = keep.stats
    assert (memory, spool) == (len(keep.contents[0]), 0)
    assert memory > len(OK)


def test_sessions_share_the_memory(serve, connect):
    keep = Keeper()
    limits = Limits(memory=150_000, message_memory=1_000_000)
    server = keep.attach(serve(deliver_envelope=keep, limits=limits, trace=False))
    first, second = connect(server), connect(server)
    first.to_data()
    first.send(LINES[:100_000])
    until(lambda: held(server)[0] > 90_000, "mail data in memory")
    assert second.mail(LINES[:100_000] + b"\r\n").startswith("250 ")
    first.send(b"\r\n.\r\n")
    assert first.reply().startswith("250 ")
    assert keep.files == [True, False]
    assert keep.contents == [LINES[:100_000] + b"\r\n"] * 2


@BOTH
def test_full_spool_is_452_and_the_session_lives(serve, connect, inbox, caplog, send, tmp_path):
    limits = Limits(memory=1_000, spool=100_000, errors=1)
    client = connect(serve(limits=limits, trace=False, spool_directory=tmp_path))
    client.hello()
    assert send(client, LINES + COMMANDS * 10 + LINES).startswith("452 4.3.1 ")
    assert client.ask("NOOP") == "250 2.0.0 OK"  # no command of the body was run
    assert send(client, OK * 3).startswith("250 ")
    assert [data for _, _, data in inbox.messages] == [OK * 3]
    assert "mail data could not be stored" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_full_spool_is_full_for_all_and_has_room_again(serve, connect, inbox):
    limits = Limits(memory=1, spool=100_000)
    server = serve(limits=limits, trace=False)
    first, second = connect(server), connect(server)
    first.to_data()
    first.send(LINES[:80_000])
    until(lambda: held(server)[1] > 70_000, "mail data in the spool")
    assert second.mail(LINES[:80_000] + b"\r\n").startswith("452 4.3.1 ")
    first.send(b"\r\n.\r\n")
    assert first.reply().startswith("250 ")
    assert by_data(second, LINES[:80_000] + b"\r\n").startswith("250 ")
    assert len(inbox.messages) == 2
    assert held(server) == (0, 0)


def test_declared_size_without_room_is_452_at_mail(serve, connect, inbox):
    limits = Limits(memory=1_000, spool=2_000)
    server = serve(limits=limits)
    client = connect(server)
    client.hello()
    assert client.ask("MAIL FROM:<a@x.example> SIZE=2001").startswith("452 4.3.1 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("503 ")  # no transaction is open
    assert client.ask("MAIL FROM:<a@x.example> SIZE=2000").startswith("250 ")
    assert client.ask("RSET").startswith("250 ")
    assert by_data(client, OK).startswith("250 ")
    assert len(inbox.messages) == 1


def test_declared_size_is_measured_by_what_is_left(serve, connect):
    server = serve(limits=Limits(memory=1, spool=100_000), trace=False)
    first, second = connect(server), connect(server)
    first.to_data()
    first.send(LINES[:60_000])
    until(lambda: held(server)[1] > 50_000, "mail data in the spool")
    second.hello()
    assert second.ask("MAIL FROM:<a@x.example> SIZE=90000").startswith("452 4.3.1 ")
    assert second.ask("MAIL FROM:<a@x.example> SIZE=30000").startswith("250 ")
    assert second.ask("RSET").startswith("250 ")
    first.send(b"\r\n.\r\n")
    assert first.reply().startswith("250 ")
    assert second.ask("MAIL FROM:<a@x.example> SIZE=90000").startswith("250 ")


def test_declared_size_is_not_ours_to_judge_with_a_sink_of_the_user(serve, connect, tmp_path):
    server = serve(
        open_sink=lambda envelope: open(tmp_path / "message", "w+b"),  # noqa: SIM115
        limits=Limits(memory=1, spool=1),
        trace=False,
    )
    client = connect(server)
    client.hello()
    assert client.ask("MAIL FROM:<a@x.example> SIZE=100000").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    assert client.ask("DATA").startswith("354 ")
    client.send(LINES + b".\r\n")
    assert client.reply().startswith("250 ")


# -- each way a message can end --------------------------------------------------------------


def half_data(client, server, sender="a@x.example"):
    begin(client, sender)
    assert client.ask("DATA").startswith("354 ")
    client.send(LINES)
    until(lambda: sum(held(server)) > len(LINES) // 2, "mail data that is held")


def half_bdat(client, server, sender="a@x.example"):
    begin(client, sender)
    client.send(b"BDAT %d\r\n" % len(LINES) + LINES)
    assert client.reply().startswith("250 ")
    assert sum(held(server)) == len(LINES)


def end_with_dot(sender, code):
    def end(client, server):
        half_data(client, server, sender)
        client.send(b".\r\n")
        assert client.reply().startswith(code)

    return end


def end_with_last(sender, code):
    def end(client, server):
        half_bdat(client, server, sender)
        assert client.ask("BDAT 0 LAST").startswith(code)

    return end


def end_with_command(line, code):
    def end(client, server):
        half_bdat(client, server)
        assert client.ask(line).startswith(code)

    return end


def end_far_too_big(client, server):
    half_data(client, server)
    client.send(LINES * 6)
    assert client.reply().startswith("421 4.3.4 ")
    client.close()  # else the server lingers, for us to read that


def end_too_big(client, server):
    half_data(client, server)
    client.send(LINES + b".\r\n")
    assert client.reply().startswith("552 5.3.4 ")


def end_bad_chunk(client, server):
    half_bdat(client, server)
    assert client.ask("BDAT x").startswith("501 ")
    assert client.ended()
    client.close()


def end_refused_recipient_within_bdat(client, server):
    half_bdat(client, server)
    assert client.ask("MAIL FROM:<a@x.example>").startswith("503 ")
    assert sum(held(server)) == len(LINES)
    assert client.ask("BDAT 0 LAST").startswith("250 ")


def end_close(client, server):
    half_data(client, server)
    client.close()


def end_reset(client, server):
    half_data(client, server)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def end_close_in_chunk(client, server):
    half_bdat(client, server)
    client.send(b"BDAT 1000\r\nhalf")
    client.close()


def end_eof(client, server):
    half_data(client, server)
    client.socket.shutdown(socket.SHUT_WR)


def end_stop(client, server):
    half_data(client, server)
    server.stop(0.1)


def end_timeout(client, server):
    server.configure(limits=server.limits._replace(command_timeout=0.3))
    with Client(server) as late:
        late.hello()
        half_data(late, server)
        assert late.reply().startswith("421 4.4.2 ")


def end_twice(client, server):
    half_bdat(client, server)
    assert client.ask("RSET").startswith("250 ")
    half_bdat(client, server)
    assert client.ask("EHLO client.example").startswith("250-")
    half_bdat(client, server)
    assert client.ask("BDAT 0 LAST").startswith("250 ")


ENDS = {
    "delivered after DATA": end_with_dot("a@x.example", "250 2.0.0 "),
    "delivered after BDAT": end_with_last("a@x.example", "250 2.0.0 "),
    "refused after DATA": end_with_dot("refused@x.example", "550 5.7.1 "),
    "refused after BDAT": end_with_last("refused@x.example", "550 5.7.1 "),
    "the hook raised after DATA": end_with_dot("raised@x.example", "451 4.3.0 "),
    "the hook raised after BDAT": end_with_last("raised@x.example", "451 4.3.0 "),
    "the hook hung up": end_with_dot("gone@x.example", "421 4.7.0 "),
    "RSET within BDAT": end_with_command("RSET", "250 "),
    "EHLO within BDAT": end_with_command("EHLO client.example", "250-"),
    "HELO within BDAT": end_with_command("HELO client.example", "250 "),
    "QUIT within BDAT": end_with_command("QUIT", "221 "),
    "refused command within BDAT": end_refused_recipient_within_bdat,
    "bad chunk": end_bad_chunk,
    "again and again": end_twice,
    "too big": end_too_big,
    "far too big": end_far_too_big,
    "client closed": end_close,
    "client reset": end_reset,
    "client closed within a chunk": end_close_in_chunk,
    "end of input": end_eof,
    "stop": end_stop,
    "time-out": end_timeout,
}


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_room_is_given_back_however_a_message_ends(serve, connect, end, where):
    def deliver_envelope(envelope):
        assert is_file(envelope.open()) == (where == "file")
        if envelope.sender.local == "refused":
            raise Reject(550, "No", "5.7.1")
        if envelope.sender.local == "gone":
            raise Disconnect
        if envelope.sender.local == "raised":
            raise KeyError

    limits = Limits(
        message_size=len(LINES) + len(LINES) // 2,
        message_memory=1_000_000 if where == "memory" else 1_000,
    )
    server = serve(deliver_envelope=deliver_envelope, limits=limits, trace=False)
    client = connect(server)
    client.hello()
    opened = descriptors()
    end(client, server)
    until(lambda: held(server) == (0, 0), "room that is given back", SOON)
    until(lambda: descriptors() <= opened, "the close of the file", SOON)


def test_transaction_goes_on_after_a_refused_ehlo_within_bdat(serve, connect, inbox):
    # A refused command changes nothing: what has come must not be dropped.
    server = serve(validate_helo=lambda name: name != "bad.example", trace=False)
    client = connect(server)
    client.hello()
    half_bdat(client, server)
    assert client.ask("EHLO bad.example").startswith("550 ")
    assert sum(held(server)) == len(LINES)
    assert client.ask("BDAT 0 LAST").startswith("250 ")
    assert inbox.data == LINES


@pytest.mark.parametrize("code", ["RSET", "EHLO client.example"])
def test_sink_of_the_user_is_closed_at_the_end_of_a_transaction(serve, connect, code):
    sinks = []

    def open_sink(envelope):
        sinks.append(io.BufferedRandom(io.FileIO(os.devnull, "r+")))
        return sinks[-1]

    client = connect(serve(open_sink=open_sink, trace=False))
    client.hello()
    begin(client)
    client.send(b"BDAT 5\r\nhello")
    assert client.reply().startswith("250 ")
    assert client.ask(code).startswith("250")
    assert [sink.closed for sink in sinks] == [True]


# -- where there is no room ------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["nowhere", "", __file__, b"nowhere", 5.0, -1, [], object(), "a\0b"], ids=repr
)
def test_spool_directory_that_is_none(no_leaks, value):
    with pytest.raises(ValueError, match=r"^spool_directory: "):
        SMTPServer(("127.0.0.1", 0), deliver=discard, spool_directory=value)


@pytest.mark.parametrize("kind", [str, os.fspath, lambda path: path], ids=["str", "text", "Path"])
def test_spool_directory_may_be_a_path(serve, connect, inbox, tmp_path, kind):
    limits = Limits(memory=1)
    client = connect(serve(limits=limits, spool_directory=kind(tmp_path), trace=False))
    assert client.mail(LINES).startswith("250 ")
    assert inbox.data == LINES


def test_spool_directory_may_be_set_in_the_class_and_configured(serve, connect, inbox, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()

    class Handler(SMTPHandler):
        spool_directory = gone

    server = serve(Handler, limits=Limits(memory=1), trace=False)
    gone.rmdir()
    assert connect(server).mail(LINES).startswith("452 4.3.1 ")
    server.configure(spool_directory=tmp_path)
    assert connect(server).mail(LINES).startswith("250 ")
    assert inbox.data == LINES


@pytest.mark.parametrize("where", ["gone", pytest.param("/proc", marks=linux)])
def test_spool_directory_that_cannot_be_used_is_452(serve, connect, inbox, tmp_path, where):
    directory = tmp_path / where
    directory.mkdir(exist_ok=True)
    limits = Limits(memory=1_000)
    server = serve(limits=limits, trace=False, spool_directory=directory)
    if where == "gone":
        directory.rmdir()
    client = connect(server)
    assert client.mail(LINES + COMMANDS).startswith("452 4.3.1 ")
    assert held(server) == (0, 0)
    assert by_data(client, OK).startswith("250 ")
    assert inbox.data == OK
    assert server.stats()["faults"] == 1


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a file system of one mebibyte."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


FITS = LINES[:200_000] + b"\r\n"


def left(disk):
    stat = os.statvfs(disk)
    return stat.f_bavail * stat.f_frsize


def fill_and_go_on(client, server, disk, inbox):
    """Send what does not fit, and what does; check that nothing is left."""
    room = left(disk)
    client.hello()
    assert by_data(client, (LINES + COMMANDS) * 8).startswith("452 4.3.1 ")
    assert client.ask("NOOP") == "250 2.0.0 OK"
    assert held(server) == (0, 0)
    until(lambda: left(disk) == room, "the room on the disk")
    assert by_data(client, FITS).startswith("250 ")
    assert inbox.data == FITS


def test_disk_that_fills_is_452_and_has_room_again(small_disk, serve, connect, inbox, caplog):
    limits = Limits(memory=1_000)
    server = serve(limits=limits, spool_directory=small_disk, trace=False)
    fill_and_go_on(connect(server), server, small_disk, inbox)
    assert list(small_disk.iterdir()) == []
    assert "No space left" in caplog.text
    assert server.stats()["faults"] == 1  # one message, one fault


def test_disk_that_fills_at_the_end_of_a_chunk(small_disk, serve, connect, inbox):
    limits = Limits(memory=1_000)
    client = connect(serve(limits=limits, spool_directory=small_disk, trace=False))
    client.hello()
    begin(client)
    codes = []
    for _ in range(8):
        client.send(b"BDAT %d\r\n" % len(LINES) + LINES)
        codes.append(client.reply()[:3])
    assert client.ask("BDAT 0 LAST").startswith("452 4.3.1 ")
    assert codes[0] == "250"
    assert by_bdat(client, FITS).startswith("250 ")
    assert inbox.data == FITS


def test_disk_that_is_full_at_the_last_flush(small_disk, serve, connect, inbox, caplog):
    # A message that is shorter than the buffer of its file is not on the disk before.
    limits = Limits(memory=1)
    server = serve(limits=limits, spool_directory=small_disk, trace=False)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(left(small_disk)))
    client = connect(server)
    client.hello()
    opened = descriptors()
    assert by_data(client, OK).startswith("452 4.3.1 ")
    assert client.ask("NOOP") == "250 2.0.0 OK"
    assert held(server) == (0, 0)
    assert descriptors() == opened
    assert server.stats()["faults"] == 1  # one message, one fault
    filler.unlink()
    assert by_data(client, OK).startswith("250 ")
    assert inbox.data == OK


def test_disk_that_fills_under_a_sink_of_the_user(small_disk, serve, connect, inbox):
    names = iter(range(100))

    class Handler(SMTPHandler):
        def open_sink(self, envelope):
            self.path = small_disk / str(next(names))
            return open(self.path, "w+b")

        def do_message(self, event):
            try:
                return super().do_message(event)
            finally:
                self.path.unlink()

    server = serve(Handler, trace=False)
    fill_and_go_on(connect(server), server, small_disk, inbox)
    assert list(small_disk.iterdir()) == []


# -- before a byte is read -------------------------------------------------------------------


def test_validate_data_refuses_before_a_byte_is_read(serve, connect, inbox):
    asked, opened = [], []

    def validate_data(sender, recipients):
        asked.append((sender, recipients))
        return sender != "no@x.example"

    def open_sink(envelope):
        opened.append(envelope.sender)
        return io.BytesIO()

    client = connect(serve(validate_data=validate_data, open_sink=open_sink, trace=False))
    client.hello()
    begin(client, "no@x.example")
    assert client.ask("DATA").startswith("554 5.7.1 ")  # and no 354
    assert client.ask("RSET").startswith("250 ")
    assert by_data(client, OK).startswith("250 ")
    assert asked == [("no@x.example", ["b@y.example"]), ("a@x.example", ["b@y.example"])]
    assert opened == ["a@x.example"]
    assert inbox.data == OK


def test_validate_data_refuses_a_chunk_of_which_nothing_is_kept(serve, connect, inbox):
    server = serve(validate_data=lambda sender, recipients: sender != "no@x.example", trace=False)
    client = connect(server)
    client.hello()
    begin(client, "no@x.example")
    client.send(b"BDAT %d LAST\r\n" % len(LINES) + LINES[:-10])
    client.send(LINES[-10:])
    assert client.reply().startswith("554 5.7.1 ")
    assert server.stats()["faults"] == 0
    assert held(server) == (0, 0)
    assert by_bdat(client, OK).startswith("250 ")
    assert inbox.data == OK


# -- a message larger than memory ------------------------------------------------------------

HUGE = 1_024 if os.environ.get("SMTPD_SYNC_LONG") == "1" else 256
"""Mebibytes."""

SERVER = """
    import hashlib, sys
    from smtpd_sync import Limits, SMTPHandler, SMTPServer

    def peak():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))

    class Handler(SMTPHandler):
        def deliver_envelope(self, envelope):
            digest, size, file = hashlib.sha256(), 0, self.envelope.open()
            while piece := file.read(65_536):
                digest.update(piece)
                size += len(piece)
            print(size, digest.hexdigest(), peak() - before, flush=True)

    server = SMTPServer(
        ("127.0.0.1", 0),
        Handler,
        limits=Limits(message_size=None),
        trace=False,
        spool_directory=sys.argv[1],
    )
    server.start()
    before = peak()
    print(f"listening on 127.0.0.1:{server.port}", flush=True)
    sys.stdin.read()
    server._over.wait()
"""


@linux
@pytest.mark.load
@pytest.mark.parametrize("how", ["BDAT", "DATA"])
def test_huge_message_costs_no_memory(no_leaks, tmp_path, how):
    if shutil.disk_usage(tmp_path).free < 2 * HUGE * 1_048_576:
        pytest.skip("no room for a huge file")
    lines = [random.Random(n).randbytes(35).hex().encode() for n in range(512)]
    lines[::7] = [b"." + line[1:] for line in lines[::7]]
    block = b"\r\n".join(lines * 28) + b"\r\n"
    times = HUGE * 1_048_576 // len(block) + 1
    digest = hashlib.sha256()
    with Program("-c", textwrap.dedent(SERVER), str(tmp_path)) as program:
        with Client(("127.0.0.1", program.port())) as client:
            client.hello()
            begin(client)
            if how == "DATA":
                assert client.ask("DATA").startswith("354 ")
                stuffed = b"." * block.startswith(b".") + block.replace(b"\r\n.", b"\r\n..")
            for _ in range(times):
                digest.update(block)
                if how == "DATA":
                    client.send(stuffed)
                else:
                    client.send(b"BDAT %d\r\n" % len(block) + block)
                    assert client.reply().startswith("250 ")
            assert client.ask("." if how == "DATA" else "BDAT 0 LAST").startswith("250 ")
        size, arrived, growth = program.line().split()
        assert int(size) == times * len(block) > HUGE * 1_048_576
        assert arrived == digest.hexdigest()
        assert int(growth) < 16 * 1_024  # kibibytes
    assert list(tmp_path.iterdir()) == []
