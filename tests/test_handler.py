"""The handler: the replies that are its own, and methods that a subclass may add to."""

import pytest
from support import until

from smtpd_sync import Limits, Reply, SMTPHandler, discard


def test_greeting_names_us(serve, connect):
    assert connect(serve(banner="hello there")).reply() == "220 mx.example hello there"


def test_greeting_without_a_banner(serve, connect):
    assert connect(serve(banner="")).reply() == "220 mx.example"


def test_ehlo_offers_what_is_served(serve, connect):
    first, *keywords = connect(serve()).hello().split("\n")
    assert first.startswith("250-mx.example")
    offered = {line[4:] for line in keywords}
    assert {"PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"} <= offered
    assert "SIZE 33554432" in offered
    assert not any(keyword.startswith("AUTH") for keyword in offered)


def test_helo_offers_nothing(serve, connect):
    client = connect(serve())
    client.reply()
    assert client.ask("HELO client.example") == "250 mx.example"


def test_help(serve, connect):
    client = connect(serve())
    client.hello()
    everything = client.ask("HELP")
    for verb in ("HELO", "EHLO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT", "VRFY", "HELP"):
        assert verb in everything
        assert client.ask(f"HELP {verb.lower()}").startswith("214 ")
    assert client.ask("HELP nonsense").startswith("504 ")


def test_quit_says_goodbye_and_closes(serve, connect):
    client = connect(serve())
    client.hello()
    assert client.ask("QUIT").startswith("221 2.0.0 ")
    assert client.ended()


def test_several_messages_in_one_session(serve, connect, inbox):
    client = connect(serve(trace=False))
    client.mail(b"first\r\n")
    for number in range(2, 5):
        client.ask(f"MAIL FROM:<a{number}@x.example>")
        client.ask("RCPT TO:<b@y.example>")
        client.ask("DATA")
        client.send(b"number %d\r\n.\r\n" % number)
        assert client.reply().startswith("250 ")
    assert [data for _, _, data in inbox.messages] == [
        b"first\r\n",
        b"number 2\r\n",
        b"number 3\r\n",
        b"number 4\r\n",
    ]
    assert [sender for sender, _, _ in inbox.messages][1:] == [
        f"a{number}@x.example" for number in range(2, 5)
    ]


def test_rset_forgets_the_recipients(serve, connect, inbox):
    client = connect(serve())
    client.hello()
    client.ask("MAIL FROM:<a@x.example>")
    client.ask("RCPT TO:<forgotten@y.example>")
    assert client.ask("RSET").startswith("250 ")
    client.ask("MAIL FROM:<a@x.example>")
    client.ask("RCPT TO:<b@y.example>")
    client.ask("DATA")
    client.send(b"x\r\n.\r\n")
    assert client.reply().startswith("250 ")
    assert inbox.wait()[0][1] == ["b@y.example"]


def test_message_too_big_is_drained_and_refused(serve, connect, inbox):
    client = connect(serve(limits=Limits(message_size=10_000)))
    assert client.mail(b"QUIT\r\n" * 5_000).startswith("552 5.3.4 ")
    assert client.ask("NOOP").startswith("250 ")
    assert inbox.messages == []


def test_declared_size_is_refused_at_once(serve, connect):
    client = connect(serve(limits=Limits(message_size=10_000)))
    client.hello()
    assert client.ask("MAIL FROM:<a@x.example> SIZE=10001").startswith("552 5.3.4 ")
    assert client.ask("MAIL FROM:<a@x.example> SIZE=10000").startswith("250 ")


def test_our_trace_does_not_count_for_the_size(serve, connect, inbox):
    client = connect(serve(limits=Limits(message_size=100)))
    assert client.mail(b"x" * 98 + b"\r\n").startswith("250 ")
    assert len(inbox.data) > 100


def test_bare_newline_never_ends_mail_data(serve, connect, inbox):
    # SMTP smuggling: CVE-2023-51764 and its kin.
    client = connect(serve(trace=False))
    client.to_data()
    client.send(b"one\n.\nMAIL FROM:<evil@x.example>\r.\r\n\n.\r\nend\r\n.\r\n")
    assert client.reply().startswith("250 ")
    assert client.ask("NOOP") == "250 2.0.0 OK"
    assert len(inbox.messages) == 1
    assert b"evil" in inbox.data


def test_bare_newline_is_refused_where_told_so(serve, connect, inbox):
    client = connect(serve(bare_newline="reject"))
    assert client.mail(b"one\ntwo\r\n").startswith("550 5.6.11 ")
    assert client.ask("NOOP").startswith("250 ")
    assert inbox.messages == []


@pytest.mark.parametrize(
    ("rule", "kept"), [("normalize", b"a\r\nb\r\nc\r\n"), ("keep", b"a\nb\rc\r\n")]
)
def test_bare_newline_rules(serve, connect, inbox, rule, kept):
    assert connect(serve(bare_newline=rule, trace=False)).mail(b"a\nb\rc\r\n").startswith("250 ")
    assert inbox.data == kept


def test_too_many_errors_close(serve, connect):
    client = connect(serve(limits=Limits(errors=2)))
    client.hello()
    assert client.ask("BOGUS").startswith("500 5.5.2 ")
    assert client.ask("BOGUS").startswith("500 5.5.2 ")
    assert client.ask("BOGUS").startswith("421 4.7.0 ")
    assert client.ended()


def test_subclass_may_answer_a_verb_itself(serve, connect):
    class Handler(SMTPHandler):
        deliver = staticmethod(discard)

        def do_NOOP(self, event):
            return Reply(250, f"noop {event.argument}")

    client = connect(serve(Handler))
    client.hello()
    assert client.ask("NOOP really") == "250 2.0.0 noop really"


def test_subclass_may_extend_setup_and_over(serve, connect):
    ended = []

    class Handler(SMTPHandler):
        deliver = staticmethod(discard)

        def setup(self):
            super().setup()
            self.greeted = []

        def validate_helo(self, name):
            self.greeted.append(name)

        def session_ended(self, reason):
            ended.append(self.greeted)

    client = connect(serve(Handler))
    client.hello()
    client.ask("QUIT")
    until(lambda: ended, "the end of the session")
    assert ended == [["client.example"]]


def test_peer_is_the_client(serve, connect):
    peers = []
    client = connect(serve(deliver_envelope=lambda envelope: peers.append(envelope.peer)))
    client.mail()
    assert peers == [client.socket.getsockname()]


def test_null_octets_and_controls_reach_no_log_line(serve, connect, caplog):
    caplog.set_level(0)
    client = connect(serve())
    client.reply()
    client.send(b"EHLO a\x1b[31m\x00b\r\n")
    assert client.reply().startswith("501 ")
    client.send(b"\x1b]0;title\x07\r\n")
    assert client.reply().startswith("500 ")
    assert "\x1b" not in caplog.text
    assert "\x00" not in caplog.text
