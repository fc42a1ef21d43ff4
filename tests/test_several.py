"""Several batteries in one server: order, refusals, sinks of their own, start and stop."""

import io

import pytest
from support import until

import smtpd_sync
from smtpd_sync import Reject, Reply, SMTPServer

HELLO = b"hello\r\n"


class Shelf:
    """A battery that notes what comes; answers as it was told."""

    def __init__(self, answer=None):
        self.answer = answer
        self.kept = []
        self.calls = []

    def deliver_envelope(self, envelope):
        self.kept.append(envelope.open().read())
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def session_ended(self, reason):
        self.calls.append(("session_ended", reason))


class Filing(Shelf):
    """One with a sink of its own, and something in front of each message."""

    class File(io.BytesIO):
        pass

    def __init__(self, front, answer=None):
        super().__init__(answer)
        self.front = front

    def open_sink(self, envelope):
        file = self.File()
        file.write(self.front)
        return file


def taken(*members):
    return [list(member.kept) for member in members]


def test_each_gets_the_message_in_order(serve, connect):
    seen = []

    def deliver(sender, recipients, data):
        seen.append((sender, recipients, data))

    first, last = Shelf(), Shelf()
    server = serve(deliver=[first, deliver, last], trace=False)
    assert connect(server).mail(HELLO).startswith("250 2.0.0 OK ")
    assert taken(first, last) == [[HELLO], [HELLO]]
    assert seen == [("a@x.example", ["b@y.example"], HELLO)]


def test_each_reads_what_it_wrote_to(serve, connect):
    members = Filing(b"one: "), Shelf(), Filing(b"two: "), Shelf()
    server = serve(deliver=members, trace=False)
    assert connect(server).mail(HELLO).startswith("250 ")
    assert taken(*members) == [[b"one: " + HELLO], [HELLO], [b"two: " + HELLO], [HELLO]]


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (False, "554 5.0.0 "),
        (Reply(452, "full", "4.2.2"), "452 4.2.2 full"),
        (Reject(550, "no", "5.2.1"), "550 5.2.1 no"),
        (RuntimeError("secret"), "451 4.3.0 "),
    ],
    ids=["False", "Reply", "Reject", "exception"],
)
def test_first_refusal_wins_and_what_stood_before_keeps_the_message(serve, connect, answer, reply):
    members = Shelf(), Shelf(answer), Shelf()
    assert connect(serve(deliver=members, trace=False)).mail(HELLO).startswith(reply)
    assert taken(*members) == [[HELLO], [HELLO], []]


def test_text_of_the_250_is_that_of_the_last_that_has_one(serve, connect):
    members = Shelf("queued as 7"), Shelf(), Shelf(True)
    assert connect(serve(deliver=members)).mail(HELLO) == "250 2.0.0 queued as 7"


def test_in_lmtp_each_recipient_has_its_first_refusal(serve, connect):
    class Picky(Shelf):
        def deliver_envelope(self, envelope):
            super().deliver_envelope(envelope)
            return [self.answer.get(recipient.local) for recipient in envelope.recipients]

    members = (
        Picky({"b": Reply(550, "one", "5.1.1")}),
        Picky({"b": Reply(550, "two", "5.1.1"), "c": Reply(451, "two", "4.2.0")}),
        Shelf("kept"),
    )
    client = connect(serve(deliver=members, lmtp=True, trace=False))
    assert client.reply().startswith("220 ")
    client.ask("LHLO client.example")
    client.ask("MAIL FROM:<a@x.example>")
    for name in "bcd":
        client.ask(f"RCPT TO:<{name}@y.example>")
    client.ask("DATA")
    client.send(HELLO + b".\r\n")
    assert [client.reply() for _ in range(3)] == [
        "550 5.1.1 one",
        "451 4.2.0 two",
        "250 2.0.0 kept",
    ]
    assert taken(*members) == [[HELLO]] * 3


def test_in_lmtp_nobody_is_left_to_deliver_to_once_all_are_refused(serve, connect):
    members = Shelf(Reply(550, "no", "5.1.1")), Shelf()
    client = connect(serve(deliver=members, lmtp=True))
    assert client.reply().startswith("220 ")
    client.ask("LHLO client.example")
    client.ask("MAIL FROM:<a@x.example>")
    client.ask("RCPT TO:<b@y.example>")
    client.ask("DATA")
    client.send(HELLO + b".\r\n")
    assert client.reply() == "550 5.1.1 no"
    assert taken(*members)[1] == []


def test_each_is_asked_before_the_mail_until_one_refuses(serve, connect):
    asked = []

    class Asking(Shelf):
        def __init__(self, name, refused):
            super().__init__()
            self.name, self.refused = name, refused

        def validate_recipient(self, mailbox):
            asked.append((self.name, mailbox.local))
            if mailbox.local == "odd":
                return Reply(250, f"odd, says {self.name}", "2.1.5")
            return mailbox.local != self.refused

    client = connect(serve(deliver=[Shelf(), Asking("one", "b"), Asking("two", "c")]))
    client.hello()
    client.ask("MAIL FROM:<a@x.example>")
    codes = [client.ask(f"RCPT TO:<{name}@y.example>")[:3] for name in "bcd"]
    assert codes == ["550", "550", "250"]
    assert client.ask("RCPT TO:<odd@y.example>") == "250 2.1.5 odd, says one"
    assert asked[:5] == [("one", "b"), ("one", "c"), ("two", "c"), ("one", "d"), ("two", "d")]
    assert asked[5:] == [("one", "odd"), ("two", "odd")]


def test_full_sink_of_one_refuses_the_message_for_all(serve, connect):
    class Full(io.BytesIO):
        def write(self, octets):
            raise OSError(28, "No space left on device")

    class Filled(Filing):
        def open_sink(self, envelope):
            return Full()

    closed = []

    class Closing(Filing):
        class File:
            def __init__(self):
                self.octets = b""

            def write(self, octets):
                self.octets += octets

            def flush(self):
                pass

            def close(self):
                closed.append(self.octets)
                raise OSError("and it cannot be closed")

    members = Closing(b"front "), Filled(b"")
    client = connect(serve(deliver=members, trace=False))
    assert client.mail(HELLO).startswith("452 4.3.1 ")
    assert client.ask("NOOP").startswith("250 ")
    assert closed == [b"front " + HELLO]
    assert taken(*members) == [[], []]


def test_sinks_opened_before_one_that_cannot_be_are_closed(serve, connect):
    closed = []

    class File(io.RawIOBase):
        def write(self, octets):
            return len(octets)

        def close(self):
            if not self.closed:
                closed.append(self)
            super().close()

    class Opening(Shelf):
        def open_sink(self, envelope):
            return File()

    class Failing(Shelf):
        def open_sink(self, envelope):
            raise OSError("no")

    client = connect(serve(deliver=[Opening(), Failing()]))
    client.hello()
    client.ask("MAIL FROM:<a@x.example>")
    client.ask("RCPT TO:<b@y.example>")
    assert client.ask("DATA").startswith("452 4.3.1 ")
    assert len(closed) == 1


def test_room_in_memory_is_given_back(serve, connect):
    server = serve(deliver=[Shelf(), Filing(b""), Shelf()])
    client = connect(server)
    assert client.mail(b"x" * 1000 + b"\r\n").startswith("250 ")
    until(lambda: server.stats()["memory"] == 0, "the room")


class Attaching(Shelf):
    """One with an object for each connection."""

    hooks = ("deliver_envelope", "session_ended")

    def __init__(self, made):
        super().__init__()
        self.made = made

    def attach(self, handler):
        self.made.append(Shelf(f"from {handler.peer.address}"))
        return self.made[-1]


def test_each_is_attached_to_each_connection(serve, connect):
    made, plain = [], Shelf()
    server = serve(deliver=[Attaching(made), plain, Attaching(made)])
    clients = connect(server), connect(server)
    for client in clients:
        assert client.mail(HELLO).startswith("250 2.0.0 from 127.0.0.1")
    assert [len(each.kept) for each in made] == [1] * 4
    clients[0].ask("QUIT")
    until(lambda: plain.calls == [("session_ended", "quit")], "the end of the session")
    assert sum(len(each.calls) for each in made) == 2


def test_those_attached_are_told_when_a_later_one_cannot_be(serve, connect):
    class Broken(Shelf):
        def attach(self, handler):
            raise RuntimeError("no")

    made = []
    client = connect(serve(deliver=[Attaching(made), Broken()]))
    assert client.reply().startswith("421 ")
    assert made[0].calls == [("session_ended", "failed")]


def test_all_are_told_of_the_end_though_one_fails(serve, connect, caplog):
    class Failing(Shelf):
        def session_ended(self, reason):
            raise RuntimeError("it broke")

    last = Shelf()
    client = connect(serve(deliver=[Failing(), last]))
    client.mail(HELLO)
    client.ask("QUIT")
    until(lambda: last.calls == [("session_ended", "quit")], "the end of the session")
    until(lambda: "it broke" in caplog.text, "the log")


def test_hook_that_decides_who_comes_in_is_of_one_alone():
    class Guarding(Shelf):
        def authenticate(self, credentials):
            return True

    with pytest.raises(ValueError, match="only one of them may have the hook authenticate"):
        SMTPServer(("127.0.0.1", 0), deliver=[Guarding(), Guarding()], auth_require_tls=False)
    server = SMTPServer(("127.0.0.1", 0), deliver=[Shelf(), Guarding()], auth_require_tls=False)
    server.stop()


@pytest.mark.parametrize("members", [[], (), [object()], [smtpd_sync.discard, 42]], ids=repr)
def test_list_of_what_takes_no_mail_is_refused(members):
    with pytest.raises(ValueError, match="deliver="):
        SMTPServer(("127.0.0.1", 0), deliver=members)


# -- what a battery does beside the sessions -------------------------------------------------


class Running(Shelf):
    """A battery that works beside the sessions."""

    def start(self):
        self.calls.append("start")

    def stop(self, timeout):
        self.calls.append(("stop", 0 <= timeout <= 10))


@pytest.mark.parametrize("combined", [False, True])
def test_battery_starts_with_the_server_and_stops_behind_the_sessions(serve, connect, combined):
    battery = Running()
    server = serve(deliver=[Shelf(), battery] if combined else battery)
    client = connect(server)
    assert client.mail(HELLO).startswith("250 ")
    assert battery.calls == ["start"]
    server.stop(5)
    assert battery.calls[0] == "start"
    assert battery.calls[1][0] == "session_ended"
    assert battery.calls[2] == ("stop", True)
    assert len(battery.calls) == 3


def test_battery_given_while_it_serves_starts_at_once_and_once(serve):
    battery = Running()
    server = serve()
    for _ in range(2):
        server.configure(deliver=battery)
    assert battery.calls == ["start"]
    server.configure(deliver=smtpd_sync.discard)
    server.stop()
    assert battery.calls == ["start", ("stop", True)]


def test_battery_of_a_server_that_never_serves_does_not_start():
    battery = Running()
    SMTPServer(("127.0.0.1", 0), deliver=battery).stop()
    assert battery.calls == []


def test_server_ends_though_a_battery_cannot_stop(serve, caplog):
    class Stuck(Running):
        def stop(self, timeout):
            raise RuntimeError("it is stuck")

    last = Running()
    server = serve(deliver=Stuck())
    server.configure(deliver=last)
    server.stop()
    assert "it is stuck" in caplog.text
    assert last.calls == ["start", ("stop", True)]


@pytest.mark.parametrize("combined", [False, True])
def test_what_one_process_keeps_is_not_for_workers(combined):
    class Own(Shelf):
        one_process = True

    battery = [Shelf(), Own()] if combined else Own()
    with pytest.raises(ValueError, match="workers: what is delivered would be seen"):
        SMTPServer(("127.0.0.1", 0), deliver=battery, workers=2)
