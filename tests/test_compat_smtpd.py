"""The removed smtpd, as ours has it: what it says, what it calls, and in which thread."""

import contextlib
import errno
import io
import smtplib
import socket
import ssl
import threading
import time

import pytest
from legacy_dialogues import DIALOGUES, HELLO, MAIL, MENDED, OK, Speaker, legacy_server, replay
from support import DEADLINE, until

from smtpd_sync import Limits
from smtpd_sync.compat import asynchat, asyncore, smtpd

GREETING = "220 mx.example Python SMTP proxy version 0.3"
LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture(autouse=True)
def named(monkeypatch):
    monkeypatch.setattr(socket, "getfqdn", lambda: "mx.example")


@pytest.fixture
def loop(no_leaks):
    """Serve in a thread what is in the map, until the end of the test: ``thread = loop()``."""
    threads = []

    def start(**options):
        def serve():
            while not over.is_set():
                asyncore.loop(timeout=0.01, count=1, **options)
                time.sleep(0 if asyncore.socket_map else 0.001)

        threads.append(threading.Thread(target=serve, name="loop"))
        threads[-1].start()
        return threads[-1]

    over = threading.Event()
    yield start
    over.set()
    for thread in threads:
        thread.join(DEADLINE)
    asyncore.close_all()
    assert not asyncore.socket_map


@pytest.fixture
def speak(no_leaks):
    """Connect a client to a server, greeted: ``speak(server)``."""
    with contextlib.ExitStack() as clients:

        def connect(server, greeting=GREETING):
            client = Speaker(server)
            clients.callback(client.close)
            assert client.reply() == greeting
            return client

        yield connect


Server = legacy_server(smtpd)


def make(server=Server, **options):
    return server(LOOPBACK, None, **options)


def send(client, text="hi\r\n.", answer="250 done"):
    """Send a message; the client has greeted."""
    for line, reply in (*MAIL[1:], (text, answer)):
        assert client.say(line) == reply


# -- dialogues -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DIALOGUES, *MENDED])
def test_replies_are_the_old_ones(name, no_leaks, capsys):
    options, *exchanges = {**DIALOGUES, **MENDED}[name]
    replies, _ = replay(smtpd, asyncore, options, *exchanges)
    assert replies == [GREETING, *(expected for _, expected in exchanges)]


def messages(name):
    options, *exchanges = DIALOGUES[name]
    return [tuple(message) for message in replay(smtpd, asyncore, options, *exchanges)[1]]


NO_OPTIONS = {"mail_options": [], "rcpt_options": []}


def test_message_has_lf_and_no_end_of_line(no_leaks):
    ((sender, recipients, kind, text, options),) = messages("a message")
    assert (sender, recipients, kind) == ("a@x.example", ["b@y.example"], "bytes")
    assert text == "Subject: hi\n\n.dot\n. .\nend"
    assert options == NO_OPTIONS


def test_message_as_text_comes_without_options(no_leaks):
    ((_, _, kind, text, options),) = messages("a message as text")
    assert (kind, text, options) == ("str", "Subject: hi\n\n.Grüße", {})


def test_bare_line_ends_stay(no_leaks):
    assert messages("bare line ends")[0][3] == "a\nb\rc\n.\nd\n"


def test_null_sender_is_a_pair_of_brackets_and_recipients_repeat(no_leaks):
    ((sender, recipients, *_),) = messages("addresses")
    assert sender == "<>"
    assert recipients == [
        *("John", "John", "a.b+c@y.example", '"Fred Blogs"@y.example', '"Fred Blogs"@y.example'),
        *("c@y.example", "c@[192.0.2.1]", "b@y.example", "b@y.example"),
    ]


def test_options_are_in_upper_case(no_leaks):
    ((sender, recipients, _, _, options),) = messages("parameters of UTF-8")
    assert (sender, recipients) == ("Jőhn", ["Sálly@exämple"])
    assert options == {"mail_options": ["SIZE=20", "BODY=8BITMIME", "SMTPUTF8"], "rcpt_options": []}


def test_recipients_of_one_message_are_no_list_of_the_next(no_leaks):
    first, second = messages("two messages")
    assert first[1] == second[1] == ["b@y.example"]
    assert first[1] is not second[1]


def test_character_may_come_in_two_pieces(loop, speak):
    server = make(decode_data=True)
    loop()
    client = speak(server)
    for line, reply in MAIL:
        assert client.say(line) == reply
    client.socket.sendall(b"x\xc3")
    until(lambda: next(iter(channels())).received_lines, "the first piece")
    assert client.say(b"\xbc\r\n.") == "250 done"
    assert server.messages[0][3] == "xü"


def channels():
    return [each for each in asyncore.socket_map.values() if isinstance(each, smtpd.SMTPChannel)]


# -- threads ---------------------------------------------------------------------------------


def test_methods_run_in_the_thread_of_the_loop(loop, speak):
    seen = {}

    class Channel(smtpd.SMTPChannel):
        def __init__(self, *arguments, **options):
            seen["channel"] = threading.current_thread()
            super().__init__(*arguments, **options)

        def collect_incoming_data(self, data):
            seen["data"] = threading.current_thread()
            super().collect_incoming_data(data)

        def smtp_MAIL(self, arg):
            seen["verb"] = threading.current_thread()
            super().smtp_MAIL(arg)

        def handle_close(self):
            seen["close"] = threading.current_thread()
            super().handle_close()

    class Threaded(Server):
        channel_class = Channel

        def handle_accepted(self, conn, addr):
            seen["accepted"] = threading.current_thread()
            super().handle_accepted(conn, addr)

        def process_message(self, *message, **options):
            seen["message"] = threading.current_thread()

    server = make(Threaded)
    thread = loop()
    client = speak(server)
    client.say(HELLO[0])
    send(client, answer=OK)
    assert client.say("QUIT") == "221 Bye"
    until(lambda: "close" in seen, "the close")
    assert set(seen) == {"channel", "data", "verb", "close", "accepted", "message"}
    assert set(seen.values()) == {thread}


@pytest.mark.parametrize("concurrent", [False, True])
def test_messages_come_one_by_one_unless_the_class_says_so(concurrent, loop, speak):
    both = threading.Barrier(2)
    met = []

    class Waiting(smtpd.SMTPServer):
        def process_message(self, *message, **options):
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(DEADLINE if self.concurrent else 0.1)
                met.append(threading.current_thread())

    Waiting.concurrent = concurrent
    server = make(Waiting)
    thread = loop()
    clients = [speak(server) for _ in range(2)]
    for client in clients:
        for line, _ in MAIL:
            client.say(line)
    for client in clients:
        client.socket.sendall(b"hi\r\n.\r\n")
    assert [client.reply() for client in clients] == [OK, OK]
    assert len(met) == (2 if concurrent else 0)
    assert thread not in met


def test_concurrent_channel_speaks_as_any_other(loop, speak, capsys):
    class Concurrent(Server):
        concurrent = True

    server = make(Concurrent, data_size_limit=1000)
    loop()
    client = speak(server)
    client.say(HELLO[0])
    send(client)
    send(client, "raise\r\n.", "451 Error: local error in processing")
    send(client, "x" * 5000 + "\r\n.", "552 Error: Too much mail data")
    send(client)
    assert client.say("QUIT") == "221 Bye"
    assert client.reply() is None


def test_exit_in_a_concurrent_channel_ends_the_loop(no_leaks):
    class Channel(smtpd.SMTPChannel):
        def smtp_QUIT(self, arg):
            super().smtp_QUIT(arg)
            raise asyncore.ExitNow

    class Concurrent(Server):
        concurrent = True
        channel_class = Channel

    check_exit(make(Concurrent))


def test_exit_in_a_channel_ends_the_loop_and_the_client_has_its_reply(no_leaks):
    class Channel(smtpd.SMTPChannel):
        def smtp_QUIT(self, arg):
            super().smtp_QUIT(arg)
            raise asyncore.ExitNow

    class Server(smtpd.SMTPServer):
        def handle_accept(self):  # as programs overrode it
            conn, addr = self.accept()
            Channel(self, conn, addr)

    check_exit(make(Server))


def check_exit(server):
    """Check that QUIT raises ExitNow out of a loop, and is answered."""
    ended = threading.Event()

    def serve():
        try:
            asyncore.loop()
        except asyncore.ExitNow:
            ended.set()

    thread = threading.Thread(target=serve)
    thread.start()
    client = Speaker(server)
    client.reply()
    assert client.say("QUIT") == "221 Bye"
    assert ended.wait(DEADLINE)
    thread.join(DEADLINE)
    client.close()
    asyncore.close_all()


def test_server_may_be_a_thread_as_well(no_leaks):
    class Threaded(Server, threading.Thread):
        def __init__(self):
            threading.Thread.__init__(self, name="mine", daemon=True)
            Server.__init__(self, LOOPBACK, None)

        def run(self):
            asyncore.loop(timeout=30)

        def stop(self):
            self.close()
            self.join(DEADLINE)

    server = Threaded()
    assert (server.name, server.daemon) == ("mine", True)
    server.start()
    client = Speaker(server)
    client.reply()
    client.say(HELLO[0])
    send(client)
    assert client.say("QUIT") == "221 Bye"
    assert client.reply() is None
    client.close()
    began = time.monotonic()
    server.stop()
    assert not server.is_alive()
    assert time.monotonic() - began < DEADLINE


def test_server_has_no_name_that_a_thread_has():
    server = make()
    ours = {*dir(smtpd.SMTPServer), *vars(server)}
    theirs = {*dir(threading.Thread), *vars(threading.Thread())}
    assert {name for name in ours & theirs if not name.startswith("__")} == set()
    server.close()


def test_server_has_no_thread_before_it_has_a_client():
    threads = threading.active_count()
    server = make()
    asyncore.loop(timeout=0.01, count=2)
    assert threading.active_count() == threads
    server.close()


# -- names -----------------------------------------------------------------------------------


def test_server_listens_from_its_construction_on(no_leaks):
    server = make()
    host, port = server.socket.getsockname()
    assert host == "127.0.0.1"
    assert port
    assert server.accepting
    assert server.addr == server._localaddr == LOOPBACK
    assert server._remoteaddr is None
    assert server._map is asyncore.socket_map
    assert asyncore.socket_map == {server.socket.fileno(): server}
    client = socket.create_connection((host, port), DEADLINE)  # nobody loops
    pair = until(server.accept, "a connection")
    pair[0].close()
    assert server.accept() is None
    server.addr = server.socket.getsockname()
    assert "listening" in repr(server)
    client.close()
    server.close()
    assert not asyncore.socket_map
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port), DEADLINE)


def test_methods_that_programs_override_are_called(no_leaks):
    class Overriding(Server):
        called = ()

        def set_reuse_addr(self):
            self.called += ("set_reuse_addr",)

        def add_channel(self, map=None):
            self.called += ("add_channel",)
            super().add_channel(map)

        def bind(self, addr):
            self.called += ("bind",)
            super().bind(addr)

        def listen(self, num):
            self.called += ("listen",)
            super().listen(num)

    server = make(Overriding)
    assert server.called == ("add_channel", "set_reuse_addr", "bind", "listen")
    assert server.accepting
    server.close()


def test_address_that_is_taken_is_an_error_and_leaves_nothing(no_leaks):
    with socket.create_server(LOOPBACK) as taken, pytest.raises(OSError, match="in use"):
        smtpd.SMTPServer(taken.getsockname(), None)
    assert not asyncore.socket_map


def test_what_is_raised_in_listen_is_raised_and_leaves_nothing(no_leaks):
    class Broken(Server):
        def listen(self, num):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        make(Broken)
    assert not asyncore.socket_map


@pytest.mark.parametrize("what", [smtpd.SMTPServer, smtpd.DebuggingServer])
def test_text_and_utf8_exclude_each_other(what):
    with pytest.raises(ValueError, match="cannot be set to True at the same time"):
        what(LOOPBACK, None, enable_SMTPUTF8=True, decode_data=True)


def test_map_of_its_own(no_leaks):
    sockets = {}

    class Mapped(Server):
        def __init__(self, *arguments):
            self._map = sockets
            super().__init__(*arguments, map=self._map)

    server = Mapped(LOOPBACK, None)
    assert not asyncore.socket_map
    client = Speaker(server)
    until(lambda: asyncore.loop(0.01, map=sockets, count=1) or len(sockets) == 2, "the channel")
    (channel,) = [each for each in sockets.values() if each is not server]
    assert channel._map is sockets
    client.close()
    asyncore.close_all(sockets)


def test_channel_has_the_names_that_programs_touch(loop, speak):
    server = make()
    loop()
    client = speak(server)
    client.say("EHLO client")
    client.say("MAIL FROM:<a@x.example> SIZE=10")
    client.say("RCPT TO:<b@y.example>")
    (channel,) = channels()
    assert channel.smtp_server is server
    assert channel.conn is channel.socket
    assert channel.peer == channel.addr == client.socket.getsockname()
    assert (channel.fqdn, channel.seen_greeting, channel.extended_smtp) == (
        *("mx.example", "client"),
        True,
    )
    assert (channel.mailfrom, channel.rcpttos) == ("a@x.example", ["b@y.example"])
    assert (channel.mail_options, channel.rcpt_options) == (["SIZE=10"], [])
    assert (channel.smtp_state, channel.received_lines, channel.received_data) == (0, [], "")
    assert (channel.COMMAND, channel.DATA) == (0, 1)
    assert channel.data_size_limit == smtpd.DATA_SIZE_DEFAULT == 33554432
    assert channel.command_size_limits["MAIL"] == channel.max_command_size_limit == 538
    assert (channel.command_size_limit, channel.num_bytes) == (512, 0)
    assert channel.get_terminator() == b"\r\n"
    assert (channel._emptystring, channel._linesep, channel._newline) == (b"", b"\r\n", b"\n")
    assert isinstance(channel, asynchat.async_chat)
    assert isinstance(server, asyncore.dispatcher)


def test_limits_of_one_channel_are_not_those_of_another(loop, speak):
    server = make()
    loop()
    first = speak(server)
    first.say("EHLO client")
    speak(server)
    line = f"MAIL FROM:<{'a' * 500}> SIZE=10"
    assert len(line) > 512
    assert first.say(line) == OK


OLD_NAMES = {
    "server": "smtp_server",
    "line": "received_lines",
    "state": "smtp_state",
    "greeting": "seen_greeting",
    "data": "received_data",
    **{name: name for name in ("mailfrom", "rcpttos", "fqdn", "peer", "conn", "addr")},
}


@pytest.mark.parametrize(("old", "new"), OLD_NAMES.items())
def test_old_names_still_work_and_tell_the_new(old, new):
    channel = object.__new__(smtpd.SMTPChannel)
    with pytest.warns(DeprecationWarning, match=f"'{new}'") as told:
        setattr(channel, f"_SMTPChannel__{old}", "value")
    assert told[0].filename == __file__
    assert getattr(channel, new) == "value"
    with pytest.warns(DeprecationWarning, match=f"'{new}'"):
        assert getattr(channel, f"_SMTPChannel__{old}") == "value"


def test_module_has_the_names_that_programs_touch():
    assert smtpd.__version__ == "Python SMTP proxy version 0.3"
    assert (smtpd.NEWLINE, smtpd.COMMASPACE) == ("\n", ", ")
    assert not hasattr(smtpd, "MailmanProxy")
    assert smtpd.asyncore is asyncore
    assert smtpd.asynchat is asynchat
    assert set(smtpd.__all__) == {"SMTPChannel", "SMTPServer", "DebuggingServer", "PureProxy"}


# -- what subclasses do ----------------------------------------------------------------------


class LoginChannel(smtpd.SMTPChannel):
    """Adds a verb and a state, and reads lines of its own in it, as CPython's tests do."""

    LOGIN = 99

    def smtp_AUTH(self, arg):
        self.smtp_state = self.LOGIN
        self.push("334 VXNlcm5hbWU6")

    def found_terminator(self):
        if self.smtp_state != self.LOGIN:
            super().found_terminator()
            return
        line, self.received_lines = self._emptystring.join(self.received_lines), []
        self.smtp_state = self.COMMAND
        self.push(f"235 {line.decode()}")


def with_channel(channel):
    return type("WithChannel", (Server,), {"channel_class": channel})


def test_verb_and_state_of_a_subclass(loop, speak):
    server = make(with_channel(LoginChannel))
    loop()
    client = speak(server)
    assert client.say("AUTH LOGIN") == "334 VXNlcm5hbWU6"
    assert client.say("x" * 100_000) == f"235 {'x' * 100_000}"
    assert client.say("NOOP") == OK


def test_state_that_nobody_knows(loop, speak):
    server = make()
    loop()
    client = speak(server)
    next(iter(channels())).smtp_state = "lost"
    assert client.say("NOOP") == "451 Internal confusion"


def test_numeric_terminator(loop, speak):
    class Channel(LoginChannel):
        def smtp_AUTH(self, arg):
            super().smtp_AUTH(arg)
            self.set_terminator(5)

        def found_terminator(self):
            super().found_terminator()
            if self.get_terminator() == 0:
                self.set_terminator(b"\r\n")

    server = make(with_channel(Channel))
    loop()
    client = speak(server)
    client.say("AUTH LOGIN")
    client.socket.sendall(b"ab")
    assert client.say(b"cdeNOOP", 2) == ["235 abcde", OK]


def test_channel_that_takes_over_its_socket(loop, speak):
    """As TLS was added: the socket is wrapped, and the channel made anew around it."""

    class Rot(socket.socket):
        def recv(self, *arguments):
            return super().recv(*arguments).swapcase()

    class Channel(smtpd.SMTPChannel):
        def smtp_STARTROT(self, arg):
            self.push("220 go")
            self.conn = Rot(self.conn.family, self.conn.type, 0, fileno=self.conn.detach())
            asynchat.async_chat.__init__(self, self.conn, map=self._map)

        def smtp_ECHO(self, arg):
            self.push(f"250 {arg}")

    server = make(with_channel(Channel))
    loop()
    client = speak(server)
    assert client.say("ECHO Hi") == "250 Hi"
    assert client.say("STARTROT") == "220 go"
    assert client.say("echo Hi") == "250 hI"
    assert client.say("quit") == "221 Bye"
    assert client.reply() is None


def test_push_and_send_are_overridden(loop, speak):
    class Channel(smtpd.SMTPChannel):
        def push(self, msg):
            super().push(msg.replace("mx.example", "hidden"))

        def send(self, data):
            sent.append(data)
            return super().send(data)

    sent = []
    server = make(with_channel(Channel))
    loop()
    speak(server, GREETING.replace("mx.example", "hidden"))
    assert sent == [GREETING.replace("mx.example", "hidden").encode() + b"\r\n"]


def test_push_comes_at_any_time(loop, speak):
    """Also when the client says nothing, and when it is more than the client takes at once."""
    server = make()
    loop()
    client = speak(server)
    (channel,) = channels()
    text = "x" * 8_000_000
    run_in_loop(lambda: channel.push(f"250 {text}"))
    assert client.reply() == f"250 {text}"
    assert client.say("NOOP") == OK


def run_in_loop(job):
    """Have the loop do something, by a dispatcher that is in its map."""

    class Job(asyncore.dispatcher):
        def handle_read(self):
            self.recv(1)
            job()
            self.close()

        def writable(self):
            return False

    ours, theirs = socket.socketpair()
    Job(ours)
    theirs.send(b"x")
    until(lambda: ours.fileno() == -1, "the job")
    theirs.close()


def test_channel_that_is_closed_hangs_up(loop, speak):
    server = make()
    loop()
    client = speak(server)
    (channel,) = channels()
    assert deadline(server)  # its thread waits
    run_in_loop(channel.close)
    assert client.reply() is None
    until(lambda: channel.socket.fileno() == -1, "the close of the socket")


def test_channel_that_is_closed_before_it_has_greeted_leaves_nothing(no_leaks, monkeypatch):
    server = make()

    def close():
        asyncore.close_all()  # as another thread may do just now
        return "mx.example"

    monkeypatch.setattr(socket, "getfqdn", close)
    client = Speaker(server)
    asyncore.loop(timeout=DEADLINE)
    assert client.reply() is None
    client.close()


def test_channel_that_is_closed_reads_no_more(loop, speak):
    class Channel(smtpd.SMTPChannel):
        def smtp_LEAVE(self, arg):
            self.push("421 enough")
            self.close()

        def smtp_MARK(self, arg):
            marked.append(self)

    marked = []
    server = make(with_channel(Channel))
    loop()
    client = speak(server)
    assert client.say("LEAVE\r\nMARK", 2) == ["421 enough", None]
    assert not marked


def test_lines_of_a_reply_do_not_wait_for_each_other(loop, speak):
    server = make()
    loop()
    speak(server)
    (channel,) = channels()
    assert channel.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_channels_outlive_their_server(loop, speak):
    server = make()
    loop()
    client = speak(server)
    server.close()
    assert client.say("NOOP") == OK
    assert asyncore.socket_map
    assert client.say("QUIT") == "221 Bye"
    until(lambda: not asyncore.socket_map, "the close of the channel")


def test_channel_without_a_server_of_ours(loop, speak):
    class Listener(asyncore.dispatcher):
        messages = ()

        def handle_accepted(self, conn, addr):
            smtpd.SMTPChannel(self, conn, addr)

        def process_message(self, *message, **options):
            self.messages += (message,)

    listener = Listener()
    listener.create_socket()
    listener.bind(LOOPBACK)
    listener.listen(5)
    loop()
    client = speak(listener)
    client.say(HELLO[0])
    send(client, answer=OK)
    assert [message[3] for message in listener.messages] == [b"hi"]


def test_client_that_has_gone_is_no_channel(no_leaks):
    server = make()
    mine, theirs = socket.socketpair()
    theirs.close()
    mine.close()
    gone = socket.socket()
    channel = smtpd.SMTPChannel(server, gone, ("127.0.0.1", 1))
    assert not hasattr(channel, "peer")
    assert gone.fileno() == -1
    server.close()


def test_channel_that_builds_itself_up(loop, no_leaks):
    """As old programs did that said no in their own words."""

    class Channel(smtpd.SMTPChannel):
        def __init__(self, server, conn, addr, *arguments):
            asynchat.async_chat.__init__(self, conn)
            self.set_terminator(b"\r\n")
            self.push("421 too many of you")
            self.close_when_done()

    server = make(with_channel(Channel))
    loop()
    client = Speaker(server)
    assert client.reply() == "421 too many of you"
    assert client.reply() is None
    client.close()


def test_client_that_goes_is_gone_whatever_handle_close_does(loop, speak):
    class Channel(smtpd.SMTPChannel):
        def handle_close(self):
            closed.append(self)

    closed = []
    server = make(with_channel(Channel))
    loop()
    client = speak(server)
    client.socket.shutdown(socket.SHUT_WR)
    assert client.reply() is None
    until(lambda: not channels(), "the close")
    assert len(closed) == 1


class TLSChannel(smtpd.SMTPChannel):
    """Puts TLS on its socket, as public programs do."""

    context = None

    def smtp_STARTTLS(self, arg):
        self.push("220 go")
        self.conn.settimeout(DEADLINE)
        self.conn = self.context.wrap_socket(self.conn, server_side=True)
        self.conn.settimeout(None)
        asynchat.async_chat.__init__(self, self.conn, map=self._map)
        self.seen_greeting, self.extended_smtp = "", False


class TLSFromTheStart(Server):
    """Puts it on before there is a channel."""

    def handle_accept(self):
        conn, addr = self.accept()
        conn.settimeout(DEADLINE)
        self.handle_accepted(TLSChannel.context.wrap_socket(conn, server_side=True), addr)


@pytest.mark.parametrize("from_the_start", [False, True])
def test_channel_puts_tls_on(from_the_start, loop, certificate, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    monkeypatch.setattr(TLSChannel, "context", context)
    server = make(TLSFromTheStart if from_the_start else with_channel(TLSChannel))
    place = server.socket.getsockname()
    loop()
    trust = ssl.create_default_context(cafile=certificate[0])
    trust.check_hostname = False
    library = smtplib.SMTP_SSL if from_the_start else smtplib.SMTP
    with library(
        *place, timeout=DEADLINE, **({"context": trust} if from_the_start else {})
    ) as client:
        if not from_the_start:
            client.ehlo()
            client.esmtp_features["starttls"] = ""
            client.starttls(context=trust)
        text = "x" * 70 + "\n"
        client.sendmail("a@x.example", ["b@y.example"], text * 20_000)
        assert client.noop() == (250, b"OK")
    assert server.messages[0][3] == (text * 20_000)[:-1]


# -- faults ----------------------------------------------------------------------------------


def faulty(handle_error=None):
    class Channel(smtpd.SMTPChannel):
        def smtp_FAIL(self, arg):
            if arg:
                self.push("250 said already")
            raise RuntimeError("a fault")

    if handle_error is not None:
        Channel.handle_error = handle_error
    return with_channel(Channel)


def test_fault_gets_451_and_the_session_goes_on(loop, speak, capsys):
    server = make(faulty())
    loop()
    client = speak(server)
    assert client.say("FAIL") == "451 Error: local error in processing"
    assert client.say("NOOP") == OK
    printed = capsys.readouterr().out
    assert printed.startswith("error: uncaptured python exception, answered 451 on channel <")
    assert "RuntimeError" in printed
    assert "smtp_FAIL" in printed


def test_fault_behind_a_reply_gets_no_second_one(loop, speak, capsys):
    server = make(faulty())
    loop()
    client = speak(server)
    assert client.say("FAIL late") == "250 said already"
    assert client.reply() is None
    assert "closing channel" in capsys.readouterr().out


def test_handle_error_gets_the_exception(loop, speak):
    import sys

    seen = []
    server = make(faulty(lambda channel: seen.append(sys.exc_info()[1])))
    loop()
    client = speak(server)
    assert client.say("FAIL") == "451 Error: local error in processing"
    assert client.say("FAIL late") == "250 said already"
    assert client.say("NOOP") == OK
    assert [str(each) for each in seen] == ["a fault", "a fault"]


def test_fault_of_the_constructor_of_a_channel_ends_no_server(loop, speak, capsys):
    class Channel(smtpd.SMTPChannel):
        def __init__(self, *arguments):
            if not failed:
                failed.append(arguments)
                arguments[1].close()
                raise RuntimeError("a fault")
            super().__init__(*arguments)

    failed = []
    server = make(with_channel(Channel))
    loop()
    lost = Speaker(server)
    assert lost.reply() is None
    lost.close()
    assert speak(server).say("NOOP") == OK
    assert "still listening" in capsys.readouterr().out


def test_server_that_cannot_accept_goes_on(capsys, no_leaks):
    class Full(Server):
        def create_socket(self, family, type):
            super().create_socket(family, type)
            self.socket = Refusing(self.socket)

    class Refusing:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def accept(self):
            raise OSError(errno.EMFILE, "too many open files")

    server = make(Full)
    client = socket.create_connection(server.socket.getsockname(), DEADLINE)
    asyncore.loop(DEADLINE, count=1)
    assert asyncore.socket_map
    assert capsys.readouterr().out == "error: accept: [Errno 24] too many open files\n"
    client.close()
    server.close()


def test_log_at_debug_changes_nothing(loop, speak, caplog):
    caplog.set_level("DEBUG", logger="smtpd_sync")
    server = make()
    loop()
    client = speak(server)
    client.say(HELLO[0])
    send(client)
    assert client.say("QUIT") == "221 Bye"
    assert client.reply() is None
    client.close()
    (record,) = until(lambda: caplog.records, "the line of the session")
    assert " helo=client " in record.getMessage()
    assert " messages=1 " in record.getMessage()


def test_server_that_overrides_nothing_refuses_mail(loop, speak, capsys):
    server = make(smtpd.SMTPServer)
    loop()
    client = speak(server)
    client.say(HELLO[0])
    send(client, answer="451 Error: local error in processing")
    assert client.say("NOOP") == OK
    assert "NotImplementedError" in capsys.readouterr().out


def test_reply_that_is_no_ascii_is_a_reply(loop, speak):
    class Server(smtpd.SMTPServer):
        def process_message(self, *message, **options):
            return "250 Grüße"

    server = make(Server)
    loop()
    client = speak(server)
    client.say(HELLO[0])
    send(client, answer="250 Gr??e")


# -- limits ----------------------------------------------------------------------------------


def limited(**limits):
    return type("Limited", (Server,), {"limits": Limits(**limits)})


def test_silent_client_is_told_and_closed(loop, speak):
    server = make(limited(command_timeout=0.2))
    loop()
    client = speak(server)
    assert client.reply().startswith("421 ")
    assert client.reply() is None
    until(lambda: not channels(), "the end of the channel")


def test_client_that_drips_has_no_more_time(loop, speak):
    server = make(limited(command_timeout=0.5))
    loop()
    client = speak(server)
    over = threading.Event()

    def drip():
        with contextlib.suppress(OSError):
            while not over.wait(0.05):
                client.socket.sendall(b"N")

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        assert client.reply().startswith("421 ")
    finally:
        over.set()
        dripping.join(DEADLINE)


def test_client_that_says_something_has_its_full_time_again(loop, speak):
    server = make()
    loop()
    client = speak(server)
    due = deadline(server)
    client.socket.sendall(b"NO")
    until(lambda: next(iter(channels())).num_bytes == 2, "half a command")
    assert deadline(server) == due
    assert client.say("OP") == OK
    assert deadline(server) > due


def deadline(server):
    """Give when the only client has to have said something."""
    (session,) = until(lambda: server._backstage.crowd.sessions, "the session")
    until(lambda: session._waiting, "the wait")
    return session._deadline


def test_client_that_takes_no_reply_is_cut_off(loop, speak):
    server = make(limited(command_timeout=0.3))
    loop()
    client = speak(server)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.socket.settimeout(0.5)
    with contextlib.suppress(OSError):
        while True:
            client.socket.sendall(b"HELP\r\n" * 10_000)
    until(lambda: not channels(), "the end of the channel")


def test_one_client_too_many_is_told_so(loop, speak):
    server = make(limited(connections=1))
    loop()
    first = speak(server)
    second = Speaker(server)
    assert second.reply().startswith("421 ")
    assert second.reply() is None
    second.close()
    assert first.say("NOOP") == OK
    first.say("QUIT")

    def served():
        third = Speaker(server)
        try:
            return third.reply() == GREETING
        finally:
            third.close()

    until(served, "a place")


def test_recipients_are_limited(loop, speak):
    server = make(limited(recipients=2))
    loop()
    client = speak(server)
    for line, _ in MAIL[:2]:
        client.say(line)
    replies = [client.say("RCPT TO:<b@y.example>") for _ in range(3)]
    assert replies == [OK, OK, "452 Error: too many recipients"]
    assert client.say("DATA").startswith("354")


@pytest.mark.parametrize("state", ["command", "data", "own"])
def test_what_is_too_long_is_not_kept(state, loop, speak):
    server = make(with_channel(LoginChannel), data_size_limit=1000)
    loop()
    client = speak(server)
    if state == "data":
        for line, _ in MAIL:
            client.say(line)
    elif state == "own":
        client.say("AUTH LOGIN")
    (channel,) = channels()
    sizes = []
    reply = []

    def talk():
        for _ in range(10):
            client.socket.sendall(b"x" * 1_000_000)
        client.socket.sendall(b"\r\n.\r\n")
        reply.append(client.reply())

    talker = threading.Thread(target=talk)
    talker.start()
    while talker.is_alive() or not sizes:
        sizes.append(sum(map(len, channel.received_lines)))
        time.sleep(0.001)
    talker.join(DEADLINE)
    assert reply[0][:3] == {"command": "500", "data": "552", "own": "235"}[state]
    assert len(reply[0]) < 600_000
    assert max(sizes) < 600_000


def test_message_that_takes_long_is_not_the_fault_of_its_client(loop, speak):
    class Slow(Server):
        def process_message(self, *message, **options):
            (session,) = self._backstage.crowd.sessions
            late.append(session.is_late(time.monotonic() + 1e9, stressed=False))

    late = []
    server = make(Slow)
    loop()
    client = speak(server)
    client.say(HELLO[0])
    send(client, answer=OK)
    assert late == [False]


def test_name_is_asked_for_once(loop, speak, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getfqdn", lambda: asked.append(1) or "mx.example")
    server = make()
    loop()
    for _ in range(3):
        speak(server)
    assert len(asked) == 1


# -- the other servers -----------------------------------------------------------------------


def test_debug_stream_says_what_goes_on(loop, speak, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(smtpd, "DEBUGSTREAM", stream)
    server = make()
    loop()
    client = speak(server)
    client.say(HELLO[0])
    send(client)
    lines = stream.getvalue().splitlines()
    address = client.socket.getsockname()
    assert lines[0].startswith("Server started at ")
    assert lines[1:] == [
        f"\tLocal addr: {LOOPBACK}",
        "\tRemote addr:None",
        f"Incoming connection from {address!r}",
        f"Peer: {address!r}",
        "Data: b'HELO client'",
        "Data: b'MAIL FROM:<a@x.example>'",
        "===> MAIL FROM:<a@x.example>",
        "sender: a@x.example",
        "Data: b'RCPT TO:<b@y.example>'",
        "===> RCPT TO:<b@y.example>",
        "recips: ['b@y.example']",
        "Data: b'DATA'",
        "Data: b'hi'",
    ]


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        ({}, ["b'From: a'", "b'X-Peer: 127.0.0.1'", "b''", "b'h\\xc3\\xa9llo'"]),
        ({"decode_data": True}, ["From: a", "X-Peer: 127.0.0.1", "", "héllo"]),
    ],
)
def test_debugging_server_prints(options, printed, loop, speak, capsys):
    server = make(smtpd.DebuggingServer, **options)
    loop()
    client = speak(server)
    client.say("EHLO client")
    client.say("MAIL FROM:<a@x.example> SIZE=10")
    client.say("RCPT TO:<b@y.example>")
    client.say("DATA")
    assert client.say("From: a\r\n\r\nhéllo\r\n.") == OK
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "---------- MESSAGE FOLLOWS ----------"
    if not options:
        assert lines.pop(0) == "mail options: ['SIZE=10']"
    assert lines == [*printed, "------------ END MESSAGE ------------"]


@pytest.fixture
def next_host(serve):
    """A host that a proxy passes mail on to: ``next_host(**hooks)``."""
    return serve


def proxied(loop, speak, address, recipients=("b@y.example",), **options):
    proxy = smtpd.PureProxy(LOOPBACK, address, **options)
    loop()
    client = speak(proxy)
    client.say(HELLO[0])
    client.say("MAIL FROM:<a@x.example>")
    for recipient in recipients:
        client.say(f"RCPT TO:<{recipient}>")
    client.say("DATA")
    return client.say("Subject: hi\r\n\r\n..hé\r\n.")


@pytest.mark.parametrize("options", [{}, {"decode_data": True}])
def test_proxy_passes_mail_on(options, next_host, loop, speak, inbox):
    host = next_host(trace=False)
    assert proxied(loop, speak, host.address, **options) == OK
    ((sender, recipients, data),) = inbox.wait()
    assert (sender, recipients) == ("a@x.example", ["b@y.example"])
    assert data == "Subject: hi\r\nX-Peer: 127.0.0.1\r\n\r\n.hé\r\n".encode()


def refusing(**codes):
    from smtpd_sync import Reject

    def validate_recipient(mailbox):
        if mailbox.local in codes:
            raise Reject(codes[mailbox.local], f"not {mailbox.local}")

    return validate_recipient


@pytest.mark.parametrize(
    ("codes", "reply"),
    [
        ({"b": 550}, "550 Error: b@y.example: 5.0.0 not b"),
        ({"b": 550, "c": 450}, "450 Error: b@y.example: 5.0.0 not b c@y.example: 4.0.0 not c"),
        ({"b": 550, "c": 554, "d": 550}, "550 Error: "),
    ],
)
def test_proxy_says_no_250_where_one_was_refused(codes, reply, next_host, loop, speak):
    host = next_host(validate_recipient=refusing(**codes))
    recipients = [f"{local}@y.example" for local in "bcd"]
    answer = proxied(loop, speak, host.address, recipients)
    assert answer.startswith(reply)


def test_proxy_says_no_250_where_the_message_was_refused(next_host, loop, speak):
    from smtpd_sync import Reject

    def deliver(*message):
        raise Reject(554, "no mail today")

    host = next_host(deliver=deliver)
    assert "no mail today" in (answer := proxied(loop, speak, host.address))
    assert answer.startswith("554 ")


def test_proxy_says_no_250_where_nobody_listens(loop, speak):
    with socket.create_server(LOOPBACK) as free:
        address = free.getsockname()
    assert proxied(loop, speak, address).startswith("451 ")


def test_proxy_has_no_utf8():
    with pytest.raises(ValueError, match="does not support SMTPUTF8"):
        smtpd.PureProxy(LOOPBACK, None, enable_SMTPUTF8=True)


def test_library_sends_through_it(loop):
    server = make()
    loop()
    with smtplib.SMTP(*server.socket.getsockname(), timeout=DEADLINE) as client:
        client.sendmail("a@x.example", ["b@y.example"], "Subject: hi\n\n.dot\n" + "x\n" * 100_000)
    assert server.messages[0][3] == "Subject: hi\n\n.dot" + "\nx" * 100_000
