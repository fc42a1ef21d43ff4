"""Hooks: what each is called with, what each of its answers becomes on the wire."""

import email.message
import io
import logging
import os

import pytest
from support import Client, until

import smtpd_sync
from smtpd_sync import Disconnect, Mailbox, Reject, Reply, SMTPHandler, SMTPServer

# Hook -> number of arguments (they never grow), code that accepts, reply that refuses by default.
VALIDATORS = {
    "validate_host": (1, "220 ", "554 "),
    "validate_helo": (1, "250-", "550 "),
    "validate_sender": (1, "250 2.1.0 ", "550 5.7.1 "),
    "validate_recipient": (1, "250 2.1.5 ", "550 5.1.1 "),
    "validate_data": (2, "354 ", "554 5.7.1 "),
}
DELIVERIES = {
    "deliver": (3, "250 2.0.0 ", "554 5.0.0 "),
    "deliver_message": (3, "250 2.0.0 ", "554 5.0.0 "),
    "deliver_envelope": (1, "250 2.0.0 ", "554 5.0.0 "),
}
DECIDERS = {**VALIDATORS, **DELIVERIES}
BARE = {"validate_host", "validate_helo"}  # replies without a status (RFC 2034 4)
SECRET = "database password is hunter2"

STEPS = (
    ("validate_helo", "EHLO client.example"),
    ("validate_sender", "MAIL FROM:<a@x.example>"),
    ("validate_recipient", "RCPT TO:<b@y.example>"),
    ("validate_data", "DATA"),
)


def reply_at(client, hook):
    """Go to the step that calls ``hook``; give its reply."""
    reply = client.reply()
    if hook == "validate_host":
        return reply
    assert reply.startswith("220 "), reply
    for name, line in STEPS:
        reply = client.ask(line)
        if name == hook:
            return reply
        assert reply[0] in "23", reply
    client.send(b"Subject: hi\r\n\r\nhello\r\n.\r\n")
    return client.reply()


def rejecting_from_depth(*arguments):
    def deep(levels):
        if not levels:
            raise Reject(450, "come back later", "4.2.0")
        deep(levels - 1)

    deep(5)


def raising(error):
    def hook(*arguments):
        raise error

    return hook


def giving(value):
    return lambda *arguments: value


@pytest.fixture(params=["callable", "override"])
def serve_hook(request, serve):
    """Serve with one hook, given as a callable or as an override."""

    def make(name, hook, **options):
        if request.param == "callable":
            return serve(**{name: hook}, **options)
        body = {name: lambda self, *arguments: hook(*arguments)}
        return serve(type("Handler", (SMTPHandler,), body), **options)

    return make


# -- verdicts --------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", DECIDERS)
@pytest.mark.parametrize("verdict", [None, True])
def test_none_and_true_accept(serve_hook, connect, hook, verdict):
    client = connect(serve_hook(hook, giving(verdict)))
    assert reply_at(client, hook).startswith(DECIDERS[hook][1])


@pytest.mark.parametrize("hook", DECIDERS)
def test_false_refuses_with_the_reply_of_the_hook(serve_hook, connect, hook):
    client = connect(serve_hook(hook, giving(False)))
    assert reply_at(client, hook).startswith(DECIDERS[hook][2])
    assert client.ask("QUIT").startswith("221 ")


@pytest.mark.parametrize("hook", DECIDERS)
def test_reply_is_sent_as_it_is(serve_hook, connect, hook):
    client = connect(serve_hook(hook, giving(Reply(451, "first\nsecond", "4.7.1"))))
    status = "" if hook in BARE else "4.7.1 "
    assert reply_at(client, hook) == f"451-{status}first\n451 {status}second"
    assert client.ask("QUIT").startswith("221 ")


@pytest.mark.parametrize("hook", DECIDERS)
def test_reject_is_raised_from_any_depth(serve_hook, connect, hook):
    client = connect(serve_hook(hook, rejecting_from_depth))
    status = "" if hook in BARE else "4.2.0 "
    assert reply_at(client, hook) == f"450 {status}come back later"
    assert client.ask("QUIT").startswith("221 ")


@pytest.mark.parametrize("hook", DECIDERS)
@pytest.mark.parametrize(
    "disconnect", [Disconnect(), Disconnect(550, "go away", "5.7.1")], ids=["421", "550"]
)
def test_disconnect_answers_and_closes(serve_hook, connect, hook, disconnect):
    client = connect(serve_hook(hook, raising(disconnect)))
    assert reply_at(client, hook).startswith(f"{disconnect.reply.code} ")
    assert client.ended()


@pytest.mark.parametrize("hook", DECIDERS)
@pytest.mark.parametrize("how", [giving(Reply(421, "full")), raising(Reject(421, "full"))])
def test_421_always_closes(serve_hook, connect, hook, how):
    client = connect(serve_hook(hook, how))
    status = "" if hook in BARE else "4.0.0 "
    assert reply_at(client, hook) == f"421 {status}full"
    assert client.ended()


@pytest.mark.parametrize("hook", VALIDATORS)
@pytest.mark.parametrize("rubbish", ["yes", 1, 0, b"no", [], Reply(354)], ids=repr)
def test_rubbish_is_a_type_error_and_accepts_nothing(serve, connect, caplog, hook, rubbish):
    client = connect(serve(**{hook: giving(rubbish)}))
    reply = reply_at(client, hook)
    assert reply[:4] in ("451 ", "421 "), reply
    assert "TypeError" in caplog.text
    assert hook in caplog.text


@pytest.mark.parametrize("hook", DELIVERIES)
@pytest.mark.parametrize("rubbish", [1, 0, b"queued", {}, Reply(354)], ids=repr)
def test_rubbish_from_delivery_is_451(serve, connect, caplog, hook, rubbish):
    client = connect(serve(**{hook: giving(rubbish)}))
    assert reply_at(client, hook).startswith("451 4.3.0 ")
    assert "TypeError" in caplog.text


# -- unexpected exceptions -------------------------------------------------------------------


@pytest.mark.parametrize("hook", [hook for hook in DECIDERS if hook != "validate_host"])
def test_unexpected_exception_is_451_with_a_fixed_text(serve_hook, connect, caplog, hook):
    client = connect(serve_hook(hook, raising(RuntimeError(SECRET))))
    reply = reply_at(client, hook)
    assert reply.startswith("451 ")
    assert hook in BARE or reply.startswith("451 4.3.0 ")
    assert "hunter2" not in reply
    assert client.ask("NOOP").startswith("250 ")
    client.send(b"QUIT\r\n")
    assert client.rest().startswith(b"221 ")
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert "Traceback" in caplog.text
    assert SECRET in caplog.text


def test_unexpected_exception_has_one_text_whatever_it_says(serve, connect):
    errors = [RuntimeError("one"), ValueError("two\r\n250 OK"), KeyError(b"\xff"), OSError(2, "x")]
    replies = set()
    for error in errors:
        client = connect(serve(validate_sender=raising(error)))
        replies.add(reply_at(client, "validate_sender"))
    assert len(replies) == 1


def test_unexpected_exception_at_the_connection_is_421(serve, connect, caplog):
    # RFC 5321 3.1 has 220 and 554 there, and 421 for a service that is not available.
    client = connect(serve(validate_host=raising(RuntimeError(SECRET))))
    reply = client.reply()
    assert reply.startswith("421 ")
    assert "hunter2" not in reply
    assert client.ended()
    assert SECRET in caplog.text


def test_exception_at_second_recipient_keeps_the_third_and_the_first(serve, connect, inbox):
    def validate_recipient(mailbox):
        if mailbox.local == "second":
            raise RuntimeError(SECRET)

    client = connect(serve(validate_recipient=validate_recipient))
    client.hello()
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
    codes = [client.ask(f"RCPT TO:<{n}@y.example>")[:3] for n in ("first", "second", "third")]
    assert codes == ["250", "451", "250"]
    assert client.ask("DATA").startswith("354 ")
    client.send(b"hello\r\n.\r\n")
    assert client.reply().startswith("250 ")
    assert inbox.wait()[0][1] == ["first@y.example", "third@y.example"]


def test_exception_at_sender_opens_no_transaction(serve, connect):
    client = connect(serve(validate_sender=raising(RuntimeError(SECRET))))
    assert reply_at(client, "validate_sender").startswith("451 4.3.0 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("503 5.5.1 ")


def test_exception_in_delivery_ends_the_transaction(serve, connect):
    client = connect(serve(deliver=raising(RuntimeError(SECRET))))
    assert reply_at(client, "deliver").startswith("451 4.3.0 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("503 5.5.1 ")
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")


def test_our_own_faults_are_not_errors_of_the_client(serve, connect):
    limits = smtpd_sync.Limits(errors=2)
    client = connect(serve(validate_sender=raising(RuntimeError("x")), limits=limits))
    client.hello()
    for _ in range(10):
        assert client.ask("MAIL FROM:<a@x.example>").startswith("451 4.3.0 ")
    assert client.ask("NOOP").startswith("250 ")


# -- what hooks are called with --------------------------------------------------------------


ARGUMENTS = {
    **{name: row[0] for name, row in DECIDERS.items()},
    "open_sink": 1,
    "verify": 1,
    "expand": 1,
    "session_ended": 1,
}


@pytest.mark.parametrize("hook", ARGUMENTS)
def test_callable_gets_exactly_the_arguments_of_the_table(serve, connect, hook):
    seen = []

    def record(*arguments, **keywords):
        assert not keywords
        seen.append(arguments)
        return io.BytesIO() if hook == "open_sink" else None

    client = connect(serve(**{hook: record}))
    assert client.mail().startswith("250 ")
    client.ask("VRFY somebody")
    client.ask("EXPN list")
    client.ask("QUIT")
    until(lambda: seen, "the call")
    assert [len(arguments) for arguments in seen] == [ARGUMENTS[hook]]


def test_every_hook_of_the_design_is_there():
    later = {"authenticate", "secret", "worker_started"}
    assert set(ARGUMENTS) == set(smtpd_sync.hooks.HOOKS) - later


def test_hooks_get_what_the_client_said(serve, connect):
    calls = []

    def record(name):
        return lambda *arguments: calls.append((name, *arguments))

    client = connect(
        serve(**{name: record(name) for name in (*VALIDATORS, "deliver")}, trace=False)
    )
    data = b"Subject: hi\r\n\r\n.dot\r\n"
    client.to_data(recipients=("b@y.example", "c@Z.example"))
    client.send(data.replace(b"\r\n.", b"\r\n..") + b".\r\n")
    assert client.reply().startswith("250 ")
    recipients = ["b@y.example", "c@z.example"]
    assert calls == [
        ("validate_host", "127.0.0.1"),
        ("validate_helo", "client.example"),
        ("validate_sender", "a@x.example"),
        ("validate_recipient", "b@y.example"),
        ("validate_recipient", "c@z.example"),
        ("validate_data", "a@x.example", recipients),
        ("deliver", "a@x.example", recipients, data),
    ]
    sender, recipients, data = calls[-1][1:]
    assert isinstance(sender, str)
    assert type(recipients) is list
    assert type(data) is bytes


def test_helo_name_is_given_at_helo_too(serve, connect):
    names = []
    client = connect(serve(validate_helo=names.append))
    client.reply()
    assert client.ask("HELO old.example").startswith("250 ")
    assert names == ["old.example"]


def test_null_sender_is_passed(serve, connect):
    senders = []
    client = connect(serve(validate_sender=senders.append))
    client.hello()
    assert client.ask("MAIL FROM:<>").startswith("250 ")
    assert senders == [""]
    assert isinstance(senders[0], Mailbox)


def test_null_sender_can_be_refused(serve, connect):
    client = connect(serve(validate_sender=bool))
    client.hello()
    assert client.ask("MAIL FROM:<>").startswith("550 5.7.1 ")
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")


def test_mailbox_has_parts_and_its_original_spelling(serve, connect):
    seen = []
    client = connect(serve(validate_sender=seen.append, validate_recipient=seen.append))
    client.hello()
    assert client.ask('MAIL FROM:<"Jo"@X.Example.>').startswith("250 ")
    assert client.ask('RCPT TO:<"Jo Doe"@Y.EXAMPLE>').startswith("250 ")
    sender, recipient = seen
    assert sender == "Jo@x.example"
    assert (sender.local, sender.domain, sender.original) == (
        "Jo",
        "x.example",
        '"Jo"@X.Example.',
    )
    assert recipient == '"Jo Doe"@y.example'
    assert (recipient.local, recipient.domain) == ("Jo Doe", "y.example")
    assert recipient.original == '"Jo Doe"@Y.EXAMPLE'


def test_what_a_hook_does_to_its_lists_changes_no_book(serve, connect, inbox):
    def validate_data(sender, recipients):
        recipients.clear()

    client = connect(serve(validate_data=validate_data))
    assert client.mail().startswith("250 ")
    assert inbox.wait()[0][1] == ["b@y.example"]


def test_self_has_context_in_hooks(serve, connect):
    seen = {}

    class Handler(SMTPHandler):
        def validate_recipient(self, mailbox):
            seen.update(
                sender=self.envelope.sender,
                helo=self.session.helo,
                peer=self.peer,
                command=self.command,
                server=self.server,
            )

        def deliver(self, sender, recipients, data):
            pass

    server = serve(Handler)
    client = connect(server)
    assert client.mail().startswith("250 ")
    assert seen["sender"] == "a@x.example"
    assert seen["helo"] == "client.example"
    assert seen["peer"] == client.socket.getsockname()
    assert seen["peer"].address == "127.0.0.1"
    assert (seen["command"].verb, seen["command"].argument) == ("RCPT", "b@y.example")
    assert seen["server"] is server


def test_envelope_outside_a_transaction_is_a_runtime_error(serve, connect, caplog):
    class Handler(SMTPHandler):
        def validate_helo(self, name):
            return self.envelope is None

        deliver = staticmethod(smtpd_sync.discard)

    client = connect(serve(Handler))
    client.reply()
    assert client.ask("EHLO client.example").startswith("451 ")
    assert "RuntimeError" in caplog.text


# -- each hook -------------------------------------------------------------------------------


def test_refused_host_may_only_quit(serve, connect):
    client = connect(serve(validate_host=giving(False)))
    assert client.reply().startswith("554 ")
    for line in ("EHLO c.example", "HELO c.example", "MAIL FROM:<a@x.example>", "NOOP", "RSET"):
        assert client.ask(line).startswith("503 "), line
    assert client.ask("QUIT").startswith("221 ")
    assert client.ended()


def test_deliver_gives_the_text_of_the_250(serve, connect):
    client = connect(serve(deliver=giving("queued as 4711")))
    assert client.mail() == "250 2.0.0 queued as 4711"


def test_text_of_a_hook_cannot_forge_a_reply(serve, connect):
    client = connect(serve(deliver=giving("queued\r\n421 bye\rnow\x00\xe9")))
    reply = client.mail()
    assert [line[:10] for line in reply.split("\n")] == ["250-2.0.0 ", "250 2.0.0 "]
    assert client.ask("NOOP").startswith("250 ")


def test_default_250_names_the_message(serve, connect):
    ids = []
    client = connect(serve(deliver_envelope=lambda envelope: ids.append(envelope.id)))
    reply = client.mail()
    assert ids[0]
    assert reply.startswith("250 2.0.0 ")
    assert ids[0] in reply


def test_reply_of_2yz_from_recipient_accepts(serve, connect, inbox):
    reply = Reply(251, "User not local; will forward", "2.1.5")
    client = connect(serve(validate_recipient=giving(reply)))
    assert reply_at(client, "validate_recipient").startswith("251 2.1.5 ")
    assert client.ask("DATA").startswith("354 ")
    client.send(b"x\r\n.\r\n")
    assert client.reply().startswith("250 ")
    assert inbox.wait()[0][1] == ["b@y.example"]


@pytest.mark.parametrize("accept", [Reply(250, "fine"), True, None])
def test_data_is_answered_354_however_it_was_accepted(serve, connect, accept):
    client = connect(serve(validate_data=giving(accept)))
    assert reply_at(client, "validate_data").startswith("354 ")


def test_refused_data_reads_no_mail_data(serve, connect, inbox):
    client = connect(serve(validate_data=giving(False)))
    assert reply_at(client, "validate_data").startswith("554 5.7.1 ")
    assert client.ask("NOOP").startswith("250 ")
    assert inbox.messages == []


def test_deliver_message_gets_an_email_message(serve, connect):
    got = []
    client = connect(serve(deliver_message=lambda *arguments: got.append(arguments)))
    data = b"Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\nTo: b@y.example\r\n\r\nhello\r\n"
    assert client.mail(data).startswith("250 ")
    ((message, sender, recipients),) = got
    assert isinstance(message, email.message.EmailMessage)
    assert message.policy.utf8
    assert message["Subject"] == "gr\u00fc\u00dfe"
    assert message.get_content() == "hello\r\n"
    assert message["Received"]
    assert (sender, recipients) == ("a@x.example", ["b@y.example"])


def test_deliver_envelope_gets_all_there_is(serve, connect):
    seen = {}

    def deliver_envelope(envelope):
        with_open = envelope.open()
        seen.update(
            read=with_open.read(),
            again=envelope.open().read(5),
            content=envelope.content,
            sender=envelope.sender,
            recipients=envelope.recipients,
            sender_parameters=dict(envelope.sender_parameters),
            recipient_parameters=[dict(each) for each in envelope.recipient_parameters],
            peer=envelope.peer,
            helo=envelope.helo,
            tls=envelope.tls,
            id=envelope.id,
            session=envelope.session,
        )

    client = connect(serve(deliver_envelope=deliver_envelope, trace=False))
    client.hello()
    assert client.ask("MAIL FROM:<a@x.example> SIZE=100 BODY=8BITMIME").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    assert client.ask("DATA").startswith("354 ")
    client.send(b"Subject: hi\r\n\r\nhello\r\n.\r\n")
    assert client.reply().startswith("250 ")
    assert seen["read"] == seen["content"] == b"Subject: hi\r\n\r\nhello\r\n"
    assert seen["again"] == b"Subje"
    assert seen["sender"] == "a@x.example"
    assert seen["recipients"] == ["b@y.example"]
    assert seen["sender_parameters"] == {"SIZE": "100", "BODY": "8BITMIME"}
    assert seen["recipient_parameters"] == [{}]
    assert seen["peer"] == client.socket.getsockname()
    assert seen["helo"] == "client.example"
    assert seen["tls"] is None
    assert isinstance(seen["id"], str)
    assert isinstance(seen["session"], smtpd_sync.Session)


def test_deliver_envelope_is_called_instead_of_both(serve, connect):
    called = []

    class Handler(SMTPHandler):
        def deliver(self, sender, recipients, data):
            called.append("deliver")

        def deliver_message(self, message, sender, recipients):
            called.append("deliver_message")

        def deliver_envelope(self, envelope):
            called.append("deliver_envelope")

    assert connect(serve(Handler)).mail().startswith("250 ")
    assert called == ["deliver_envelope"]


def test_keyword_delivery_replaces_that_of_the_class(serve, connect, inbox):
    class Handler(SMTPHandler):
        def deliver_envelope(self, envelope):
            return False

    assert connect(serve(Handler, deliver=inbox)).mail().startswith("250 ")
    assert len(inbox.wait()) == 1


def test_every_message_has_its_own_id(serve, connect):
    ids = []
    client = connect(serve(deliver_envelope=lambda envelope: ids.append(envelope.id)))
    client.mail()
    mail_again(client)
    mail_again(client)
    assert len(set(ids)) == 3


def mail_again(client):
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    assert client.ask("DATA").startswith("354 ")
    client.send(b"x\r\n.\r\n")
    return client.reply()


@pytest.mark.parametrize(
    ("verb", "hook", "default", "text"),
    [("VRFY", "verify", "252 ", "Jo <jo@y.example>"), ("EXPN", "expand", "502 ", "a@y\nb@y")],
)
def test_verify_and_expand(serve_hook, connect, verb, hook, default, text):
    asked = []
    answers = {"known": text, "none": None, "refused": Reply(550, "no", "5.1.1")}

    def answer(name):
        asked.append(name)
        if name == "broken":
            raise RuntimeError(SECRET)
        return answers[name]

    client = connect(serve_hook(hook, answer))
    client.hello()
    lines = client.ask(f"{verb} known").split("\n")
    assert [line[:10] for line in lines] == ["250-2.1.5 "] * (len(lines) - 1) + ["250 2.1.5 "]
    assert [line[10:] for line in lines] == text.split("\n")
    assert client.ask(f"{verb} none").startswith(default)
    assert client.ask(f"{verb} refused").startswith("550 5.1.1 ")
    assert client.ask(f"{verb} broken").startswith("451 4.3.0 ")
    assert asked == ["known", "none", "refused", "broken"]


def test_verify_and_expand_without_hooks(serve, connect):
    client = connect(serve())
    client.hello()
    assert client.ask("VRFY jo").startswith("252 ")
    assert client.ask("EXPN list").startswith("502 ")


# -- postmaster ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipient",
    ["postmaster", "PostMaster", "postmaster@mx.example", "POSTMASTER@MX.Example."],
)
def test_postmaster_here_skips_the_hook(serve, connect, recipient):
    client = connect(serve(validate_recipient=giving(False)))
    client.hello()
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask(f"RCPT TO:<{recipient}>").startswith("250 2.1.5 ")


def test_postmaster_of_a_local_domain_skips_the_hook(serve, connect):
    server = serve(validate_recipient=giving(False), local_domains=["y.example", "Z.Example."])
    client = connect(server)
    client.hello()
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask("RCPT TO:<Postmaster@y.example>").startswith("250 ")
    assert client.ask("RCPT TO:<postmaster@z.example>").startswith("250 ")
    assert client.ask("RCPT TO:<postmaster@other.example>").startswith("550 5.1.1 ")
    assert client.ask("RCPT TO:<webmaster@y.example>").startswith("550 5.1.1 ")


def test_postmaster_of_a_hostname_with_a_last_dot(serve, connect):
    client = connect(serve(validate_recipient=giving(False), hostname="mx.example."))
    client.hello()
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask("RCPT TO:<postmaster@mx.example>").startswith("250 ")


# -- sinks -----------------------------------------------------------------------------------


def test_open_sink_gives_the_file_that_mail_is_written_to(serve, connect, tmp_path):
    sinks, read = [], []

    def open_sink(envelope):
        assert envelope.recipients == ["b@y.example"]
        sinks.append((tmp_path / "mail").open("w+b"))
        return sinks[0]

    def deliver_envelope(envelope):
        assert envelope.open() is sinks[0]
        read.append(envelope.open().read())
        assert envelope.content == read[0]

    server = serve(open_sink=open_sink, deliver_envelope=deliver_envelope, trace=False)
    assert connect(server).mail(b"hello\r\n").startswith("250 ")
    assert read == [b"hello\r\n"]
    assert (tmp_path / "mail").read_bytes() == b"hello\r\n"
    assert sinks[0].closed


def test_open_sink_serves_every_delivery_hook(serve, connect, inbox, tmp_path):
    sinks = []

    def open_sink(envelope):
        sinks.append((tmp_path / "mail").open("w+b"))
        return sinks[-1]

    assert connect(serve(open_sink=open_sink, trace=False)).mail(b"hello\r\n").startswith("250 ")
    assert inbox.data == b"hello\r\n"
    until(lambda: sinks[0].closed, "the close of the sink")


def test_open_sink_without_room_is_452_before_the_data(serve, connect, caplog):
    client = connect(serve(open_sink=raising(OSError(28, "No space left"))))
    assert reply_at(client, "validate_data").startswith("452 4.3.1 ")
    assert client.ask("NOOP").startswith("250 ")
    assert "No space left" in caplog.text


def test_open_sink_that_fails_is_451_before_the_data(serve, connect, caplog):
    client = connect(serve(open_sink=raising(KeyError(SECRET))))
    assert reply_at(client, "validate_data").startswith("451 4.3.0 ")
    assert client.ask("NOOP").startswith("250 ")


def test_open_sink_that_gives_no_file_accepts_nothing(serve, connect, caplog):
    client = connect(serve(open_sink=giving(None), deliver_envelope=giving(None)))
    assert reply_at(client, "validate_data").startswith("451 4.3.0 ")
    assert client.ask("NOOP").startswith("250 ")


def test_open_sink_may_refuse(serve, connect):
    client = connect(serve(open_sink=raising(Reject(452, "quota", "4.2.2"))))
    assert reply_at(client, "validate_data").startswith("452 4.2.2 quota")


class Full(io.BytesIO):
    """Takes some octets, then says that there is no room, or something worse."""

    error = OSError(28, "No space left")

    def __init__(self, room):
        super().__init__()
        self.room = room
        self.writes_after_the_end = 0
        self.closes = 0

    def write(self, data):
        if self.tell() + len(data) > self.room:
            self.writes_after_the_end += 1
            raise self.error
        return super().write(data)

    def close(self):
        self.closes += 1
        super().close()


@pytest.mark.parametrize("room", [0, 1000, 100_000])
def test_sink_that_fills_drains_the_body_and_is_452(serve, connect, caplog, room):
    sinks = []

    def open_sink(envelope):
        sinks.append(Full(room if not sinks else 10_000_000))
        return sinks[-1]

    delivered = []
    server = serve(
        open_sink=open_sink,
        deliver_envelope=lambda e: delivered.append(len(e.content)),
        trace=False,
    )
    client = connect(server)
    body = b"QUIT\r\n" * 50_000
    assert client.mail(body).startswith("452 4.3.1 ")
    assert delivered == []
    assert sinks[0].writes_after_the_end == 1
    assert mail_again(client).startswith("250 ")
    assert delivered == [3]
    assert "No space left" in caplog.text


def test_sink_that_breaks_otherwise_is_451_and_the_session_lives(serve, connect, caplog):
    class Broken(Full):
        error = ValueError(SECRET)

    server = serve(open_sink=lambda envelope: Broken(0), trace=False)
    client = connect(server)
    reply = client.mail(b"QUIT\r\n" * 50_000)
    assert reply.startswith(("451 4.3.0 ", "452 4.3.1 "))
    assert "hunter2" not in reply
    assert client.ask("NOOP").startswith("250 ")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_sink_that_fails_late_is_no_250(serve, connect, size):
    # The octets may wait in the buffer of the file until it is closed: no 250 before (6.1).
    server = serve(
        open_sink=lambda envelope: io.BufferedWriter(io.FileIO("/dev/full", "w")),
        deliver_envelope=giving(None),
    )
    client = connect(server)
    assert client.mail(b"x" * size + b"\r\n").startswith("452 4.3.1 ")
    assert client.ask("NOOP").startswith("250 ")


def test_sink_that_writes_short_loses_nothing(serve, connect):
    class Short(io.BytesIO):
        """As an unbuffered file on a disk that is nearly full."""

        def write(self, data):
            return super().write(data[:7])

    content = []
    server = serve(
        open_sink=lambda envelope: Short(),
        deliver_envelope=lambda envelope: content.append(envelope.content),
        trace=False,
    )
    reply = connect(server).mail(b"hello, world\r\n")
    assert reply.startswith("452 4.3.1 ") or content == [b"hello, world\r\n"]


def test_sinks_are_closed_whatever_happens(serve, connect, tmp_path):
    sinks = []

    def open_sink(envelope):
        sinks.append(io.BufferedRandom(io.FileIO(tmp_path / str(len(sinks)), "w+")))
        return sinks[-1]

    def deliver_envelope(envelope):
        if len(sinks) == 2:
            raise RuntimeError("failed")
        return len(sinks) != 3

    limits = smtpd_sync.Limits(message_size=1000)
    server = serve(open_sink=open_sink, deliver_envelope=deliver_envelope, limits=limits)
    client = connect(server)
    assert client.mail().startswith("250 ")
    assert mail_again(client).startswith("451 ")
    assert mail_again(client).startswith("554 ")
    client.ask("MAIL FROM:<a@x.example>")
    client.ask("RCPT TO:<b@y.example>")
    client.ask("DATA")
    client.send(b"x" * 2000 + b"\r\n.\r\n")
    assert client.reply().startswith("552 ")
    client.ask("MAIL FROM:<a@x.example>")
    client.ask("RCPT TO:<b@y.example>")
    client.ask("DATA")
    client.send(b"half a mess")
    client.close()
    until(lambda: len(sinks) == 5 and all(sink.closed for sink in sinks), "the close of all sinks")


def test_sink_whose_close_fails_does_not_spoil_a_delivery(serve, connect):
    class Stubborn(io.RawIOBase):
        def __init__(self):
            self.octets = bytearray()

        def write(self, data):
            self.octets += data
            return len(data)

        def close(self):
            super().close()
            raise OSError("I will not")

    client = connect(
        serve(open_sink=lambda envelope: Stubborn(), deliver_envelope=giving("kept elsewhere"))
    )
    assert client.mail() == "250 2.0.0 kept elsewhere"
    assert client.ask("NOOP").startswith("250 ")


# -- session_ended ---------------------------------------------------------------------------


def quits(client):
    client.hello()
    assert client.ask("QUIT").startswith("221 ")


def hangs_up(client):
    client.hello()


def hangs_up_in_data(client):
    client.to_data()
    client.send(b"half")


def talks_http(client):
    client.reply()
    client.send(b"GET / HTTP/1.1\r\n\r\n")
    client.reply()


@pytest.mark.parametrize("leave", [quits, hangs_up, hangs_up_in_data, talks_http])
def test_session_ended_is_called_once_with_a_reason(serve_hook, leave):
    reasons = []
    server = serve_hook("session_ended", reasons.append)
    with Client(server) as client:
        leave(client)
    until(lambda: reasons, "the end of the session")
    server.stop()
    (reason,) = reasons
    assert isinstance(reason, str)
    assert reason


def test_session_ended_tells_a_quit_from_a_loss(serve):
    reasons = []
    server = serve(session_ended=reasons.append)
    for leave in (quits, hangs_up):
        with Client(server) as client:
            leave(client)
        count = leave is hangs_up
        until(lambda count=count: len(reasons) > count, "the end of the session")
    assert reasons[0] != reasons[1]


def test_session_ended_after_a_time_out(serve, connect):
    reasons = []
    limits = smtpd_sync.Limits(command_timeout=0.1)
    client = connect(serve(session_ended=reasons.append, limits=limits))
    client.reply()
    assert client.reply().startswith("421 4.4.2 ")
    client.close()
    until(lambda: reasons, "the end of the session")
    assert len(reasons) == 1


def test_session_ended_after_stop(serve, connect):
    reasons = []
    server = serve(session_ended=reasons.append)
    connect(server).hello()
    server.stop()
    assert len(reasons) == 1


def test_session_ended_after_a_refused_host(serve):
    reasons = []
    server = serve(validate_host=raising(Disconnect(554, "no")), session_ended=reasons.append)
    with Client(server) as client:
        assert client.reply() == "554 no"
    until(lambda: reasons, "the end of the session")
    server.stop()
    assert len(reasons) == 1


def test_session_ended_that_fails_is_logged_and_ends_nothing_else(serve, caplog):
    server = serve(session_ended=raising(RuntimeError(SECRET)))
    with Client(server) as client:
        quits(client)
        assert client.ended()
    with Client(server) as client:
        quits(client)
    server.stop()
    assert caplog.text.count("Traceback") == 2


def test_session_ended_sees_the_handler_of_its_session(serve):
    seen = []

    class Handler(SMTPHandler):
        count = 0

        def deliver(self, sender, recipients, data):
            self.count += 1

        def session_ended(self, reason):
            seen.append(self.count)

    server = serve(Handler)
    with Client(server) as client:
        client.mail()
        mail_again(client)
    with Client(server) as client:
        client.mail()
    until(lambda: len(seen) == 2, "the end of both sessions")
    assert sorted(seen) == [1, 2]


# -- batteries -------------------------------------------------------------------------------


class Store:
    """A battery with some of the hooks and no state per connection."""

    def __init__(self):
        self.kept = []

    def validate_recipient(self, mailbox):
        return mailbox.local != "full"

    def deliver_envelope(self, envelope):
        self.kept.append(envelope.content)
        return f"kept {len(self.kept)}"


def test_battery_serves_all_the_hooks_it_has(serve, connect):
    store = Store()
    client = connect(serve(deliver=store, trace=False))
    client.hello()
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask("RCPT TO:<full@y.example>").startswith("550 5.1.1 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    assert client.ask("DATA").startswith("354 ")
    client.send(b"hello\r\n.\r\n")
    assert client.reply() == "250 2.0.0 kept 1"
    assert store.kept == [b"hello\r\n"]


@pytest.mark.parametrize("hook", DELIVERIES)
def test_battery_may_have_any_delivery_hook(serve, connect, hook):
    battery = type("Battery", (), {hook: lambda self, *arguments: "taken"})()
    assert connect(serve(deliver=battery)).mail() == "250 2.0.0 taken"


class Relay:
    """A battery with state per connection."""

    def __init__(self, handler=None):
        self.handler = handler
        self.attached = []
        self.counts = []

    def attach(self, handler):
        made = type(self)(handler)
        self.attached.append(made)
        return made

    def deliver(self, sender, recipients, data):
        self.counts.append(self.handler.peer.port)
        return f"message {len(self.counts)} of this connection"

    def session_ended(self, reason):
        self.reason = reason


def test_battery_is_attached_to_each_connection(serve, connect):
    relay = Relay()
    server = serve(deliver=relay)
    first, second = connect(server), connect(server)
    assert first.mail().endswith(" message 1 of this connection")
    assert mail_again(first).endswith(" message 2 of this connection")
    assert second.mail().endswith(" message 1 of this connection")
    assert relay.counts == []
    ports = [client.socket.getsockname()[1] for client in (first, second)]
    attached = sorted(relay.attached, key=lambda each: ports.index(each.counts[0]))
    assert [each.counts for each in attached] == [[ports[0]] * 2, [ports[1]]]
    assert all(isinstance(each.handler, SMTPHandler) for each in attached)
    quit_reply = first.ask("QUIT")
    assert quit_reply.startswith("221 ")
    until(lambda: hasattr(attached[0], "reason"), "session_ended of the battery")
    assert not hasattr(attached[1], "reason")


def test_battery_whose_attach_fails_refuses_and_leaves_nothing(serve, connect, caplog):
    class Broken(Relay):
        def attach(self, handler):
            raise RuntimeError(SECRET)

    server = serve(deliver=Broken())
    client = connect(server)
    reply = client.reply()
    assert reply.startswith("421 ")
    assert "hunter2" not in reply
    assert client.ended()
    assert SECRET in caplog.text
    until(lambda: not server.crowd.sessions, "the end of the session")


def test_battery_whose_attach_fails_ends_the_session_in_the_books(serve, connect):
    class Broken(Relay):
        def attach(self, handler):
            raise RuntimeError(SECRET)

    server = serve(deliver=Broken())
    client = connect(server)
    client.gone()
    until(lambda: not server.crowd.threads, "the end of the thread")
    assert not server.crowd.sessions


@pytest.mark.parametrize("order", [1, -1])
def test_keyword_hook_wins_over_that_of_a_battery(serve, connect, order):
    hooks = {"deliver": Store(), "validate_recipient": giving(True)}
    client = connect(serve(**dict(list(hooks.items())[::order])))
    client.hello()
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask("RCPT TO:<full@y.example>").startswith("250 ")


@pytest.mark.parametrize("hook", [object(), "nowhere", 42], ids=repr)
def test_object_without_a_delivery_hook_is_no_battery(hook):
    with pytest.raises(ValueError, match="deliver"):
        SMTPServer(("127.0.0.1", 0), deliver=hook)


# -- no hook, no server ----------------------------------------------------------------------


def test_no_delivery_hook_is_a_value_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="deliver=") as caught:
        SMTPServer(("127.0.0.1", 0))
    assert "deliver=smtpd_sync.discard" in str(caught.value)


def test_handler_that_overrides_none_is_a_value_error(no_leaks):
    class Handler(SMTPHandler):
        def validate_helo(self, name):
            return True

    with pytest.raises(ValueError, match=r"deliver=smtpd_sync\.discard"):
        SMTPServer(("127.0.0.1", 0), Handler)


def test_discard_takes_the_mail(serve, connect):
    assert connect(serve(deliver=smtpd_sync.discard)).mail().startswith("250 ")


def test_inherited_delivery_counts(serve, connect):
    class Base(SMTPHandler):
        def deliver(self, sender, recipients, data):
            return "base"

    class Derived(Base):
        pass

    assert connect(serve(Derived)).mail() == "250 2.0.0 base"


@pytest.mark.parametrize("hook", sorted(set(ARGUMENTS) - {"deliver"}))
def test_hook_that_is_not_callable_is_a_value_error(hook):
    with pytest.raises(ValueError, match=hook):
        SMTPServer(("127.0.0.1", 0), **{"deliver": smtpd_sync.discard, hook: 42})


PLAIN_NAMES = """
stream began deadline hurry waiting negotiating closing last_words reason linger messages hanging_up
accepted sink traced room timeout socket data buffer limits count log state name domain user queue
lock store relay send receive forget account who fault
"""


@pytest.mark.parametrize("name", PLAIN_NAMES.split())
def test_state_of_a_subclass_may_have_any_plain_name(serve, connect, name):
    class Stateful(SMTPHandler):
        def validate_host(self, address):
            assert not hasattr(self, name), "it is ours, and would be overwritten"
            setattr(self, name, "mine")

        def deliver(self, sender, recipients, data):
            assert getattr(self, name) == "mine"

    client = connect(serve(Stateful))
    assert client.mail().startswith("250 2.0.0 ")
    assert client.ask("QUIT").startswith("221 ")
