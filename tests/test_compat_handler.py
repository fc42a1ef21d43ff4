"""Handler objects as aiosmtpd has them, with plain functions as hooks, served by ours."""

import base64
import copy
import functools
import threading

import peers
import pytest
from support import DEADLINE, Client

from smtpd_sync import Disconnect, Reject, Reply, SMTPServer, compat
from smtpd_sync.compat import AuthResult, LoginPassword, handler
from smtpd_sync.compat.adapter import reply_of

HELLO = b"Subject: hi\r\n\r\n..hello\r\n.\r\n"


class Kept:
    """Takes mail, and keeps the envelopes."""

    def __init__(self):
        self.envelopes = []

    def handle_DATA(self, server, session, envelope):
        self.envelopes.append(envelope)
        return "250 OK"


def kept_with(**hooks):
    """Make an object that takes mail, with more hooks."""
    return type("Kept", (Kept,), {name: staticmethod(hook) for name, hook in hooks.items()})()


@pytest.fixture
def served(serve, connect):
    """Serve a handler object; give a client that has read the greeting."""

    def make(obj, authenticator=None, **options):
        client = connect(serve(handler(obj, authenticator=authenticator), **options))
        client.reply()
        return client

    return make


def send(client, *commands, data=HELLO):
    """Say commands, and a message; give the reply to its end."""
    for command in ("EHLO client.example", *commands, "DATA"):
        reply = client.ask(command)
        assert reply[0] in "23", reply
    client.send(data)
    return client.reply()


# -- what hooks get, and give --------------------------------------------------------------------


def test_hooks_get_what_they_are_documented_to_get(serve, connect):
    calls = []

    class Everything:
        def handle_EHLO(self, server, session, envelope, hostname, responses):
            session.host_name = hostname
            calls.append(("EHLO", hostname, session.extended_smtp))
            return responses

        def handle_MAIL(self, server, session, envelope, address, mail_options):
            calls.append(("MAIL", address, mail_options, envelope.mail_from, envelope.smtp_utf8))
            envelope.mail_from = address
            envelope.mail_options.extend(mail_options)
            return "250 OK"

        def handle_RCPT(self, server, session, envelope, address, rcpt_options):
            calls.append(("RCPT", address, rcpt_options))
            envelope.rcpt_tos.append(address)
            return "250 OK"

        def handle_DATA(self, server, session, envelope):
            calls.append(("DATA", envelope.mail_from, envelope.mail_options, envelope.rcpt_tos))
            calls.append((envelope.content, envelope.original_content))
            calls.append((server, session.peer, session.host_name, session.ssl))
            return "250 Message accepted for delivery"

        def handle_VRFY(self, server, session, envelope, address):
            calls.append(("VRFY", address))
            return "252 perhaps"

        def handle_NOOP(self, server, session, envelope, arg):
            calls.append(("NOOP", arg))
            return "250 nothing done"

        def handle_RSET(self, server, session, envelope):
            calls.append(("RSET", envelope.mail_from))
            return "250 forgotten"

        def handle_QUIT(self, server, session, envelope):
            calls.append(("QUIT",))
            return "221 See you"

    server = serve(handler(Everything()), extensions=["DSN"])
    client = connect(server)
    client.reply()
    mail = "MAIL FROM:<Ann@X.Example> BODY=8bitmime SIZE=20 SMTPUTF8 ENVID=aB"
    assert send(client, mail, "RCPT TO:<Bob@Y.Example> NOTIFY=NEVER") == (
        "250 2.0.0 Message accepted for delivery"
    )
    assert client.ask("VRFY <jo@x.example>") == "252 2.0.0 perhaps"
    assert client.ask("NOOP really") == "250 2.0.0 nothing done"
    assert client.ask("MAIL FROM:<>").startswith("250 ")
    assert client.ask("RSET") == "250 2.0.0 forgotten"
    assert client.ask("QUIT") == "221 2.0.0 See you"
    assert client.ended()
    options = ["BODY=8BITMIME", "SIZE=20", "SMTPUTF8", "ENVID=aB"]
    content = b"Subject: hi\r\n\r\n.hello\r\n"
    assert calls == [
        ("EHLO", "client.example", True),
        ("MAIL", "Ann@X.Example", options, None, True),
        ("RCPT", "Bob@Y.Example", ["NOTIFY=NEVER"]),
        ("DATA", "Ann@X.Example", options, ["Bob@Y.Example"]),
        (content, content),
        (server, client.socket.getsockname(), "client.example", None),
        ("VRFY", "jo@x.example"),
        ("NOOP", "really"),
        ("MAIL", "<>", [], None, False),
        ("RSET", None),
        ("QUIT",),
    ]


def test_library_keeps_the_books_of_hooks_that_do_not(served):
    obj = kept_with(
        handle_EHLO=lambda server, session, envelope, hostname, responses: responses,
        handle_MAIL=lambda server, session, envelope, address, options: "250 2.1.0 fine",
        handle_RCPT=lambda server, session, envelope, address, options: "250 OK",
        handle_NOOP=lambda server, session, envelope, arg: f"250 {session.host_name}",
    )
    client = served(obj)
    client.ask("EHLO client.example")
    assert client.ask("NOOP") == "250 2.0.0 client.example"
    assert client.ask("MAIL FROM:<a@x.example> SIZE=9") == "250 2.1.0 fine"
    assert client.ask("RCPT TO:<B@Y.example>") == "250 2.0.0 OK"
    assert client.ask("RCPT TO:<postmaster>").startswith("250 ")
    client.ask("DATA")
    client.send(HELLO)
    assert client.reply().startswith("250 ")
    (envelope,) = obj.envelopes
    assert (envelope.mail_from, envelope.mail_options) == ("a@x.example", ["SIZE=9"])
    assert envelope.rcpt_tos == ["B@Y.example", "postmaster"]


def test_hook_without_any_does_as_the_server_does(served):
    obj = Kept()
    client = served(obj)
    assert send(client, "MAIL FROM:<>", "RCPT TO:<b@y.example>") == "250 2.0.0 OK"
    assert client.ask("VRFY jo").startswith("252 ")
    assert client.ask("RSET").startswith("250 ")
    assert client.ask("HELO client.example") == "250 mx.example"
    assert client.ask("QUIT").startswith("221 ")
    (envelope,) = obj.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == ("<>", ["b@y.example"])


def test_what_a_hook_wrote_is_what_the_next_one_sees(served):
    def mail(server, session, envelope, address, mail_options):
        envelope.mail_from = f"from+{address}"
        envelope.mine = 1
        return "250 OK"

    def rcpt(server, session, envelope, address, rcpt_options):
        envelope.rcpt_tos = [*envelope.rcpt_tos, f"to+{address}", "and@z.example"]
        return "250 OK"

    obj = kept_with(handle_MAIL=mail, handle_RCPT=rcpt)
    send(served(obj), "MAIL FROM:<a@x.example> SIZE=9", "RCPT TO:<b@y.example>")
    (envelope,) = obj.envelopes
    assert envelope.mail_from == "from+a@x.example"
    assert envelope.mail_options == []  # who sets the sender sets its options
    assert envelope.rcpt_tos == ["to+b@y.example", "and@z.example"]
    assert envelope.mine == 1


def test_each_transaction_has_an_envelope_of_its_own(served):
    obj = Kept()
    client = served(obj)
    send(client, "MAIL FROM:<a1@x.example>", "RCPT TO:<b1@y.example>")
    send(client, "MAIL FROM:<a2@x.example>", "RCPT TO:<b2@y.example>", "RSET", *MAIL_3)
    send(client, "MAIL FROM:<a4@x.example>", "EHLO again.example", *MAIL_3)
    first, second, third = obj.envelopes
    assert (first.mail_from, first.rcpt_tos) == ("a1@x.example", ["b1@y.example"])
    for envelope in (second, third):
        assert (envelope.mail_from, envelope.rcpt_tos) == ("a3@x.example", ["b3@y.example"])


MAIL_3 = ("MAIL FROM:<a3@x.example>", "RCPT TO:<b3@y.example>")


def test_refused_recipient_is_not_in_the_envelope(served):
    def rcpt(server, session, envelope, address, rcpt_options):
        envelope.rcpt_tos.append(address)
        if address.startswith("raise"):
            raise Reject(551, "go elsewhere", "5.1.6")
        return "550 5.1.1 no such user" if address.startswith("no") else "250 OK"

    obj = kept_with(handle_RCPT=rcpt)
    client = served(obj)
    client.ask("EHLO client.example")
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask("RCPT TO:<no@y.example>") == "550 5.1.1 no such user"
    assert client.ask("RCPT TO:<raise@y.example>") == "551 5.1.6 go elsewhere"
    assert client.ask("DATA").startswith("503 ")
    client.ask("RCPT TO:<b@y.example>")
    client.ask("DATA")
    client.send(HELLO)
    client.reply()
    assert obj.envelopes[0].rcpt_tos == ["b@y.example"]


def test_refused_sender_opens_no_transaction(served):
    def mail(server, session, envelope, address, mail_options):
        assert envelope.mail_from is None
        envelope.mail_from = address
        return "550 not you" if address.startswith("no") else "250 OK"

    client = served(kept_with(handle_MAIL=mail))
    client.ask("EHLO client.example")
    assert client.ask("MAIL FROM:<no@x.example>") == "550 5.0.0 not you"
    assert client.ask("RCPT TO:<b@y.example>").startswith("503 ")
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")


def test_postmaster_is_not_asked_about(served):
    rcpt = kept_with(handle_RCPT=lambda server, session, envelope, address, options: "550 no")
    client = served(rcpt)
    client.ask("EHLO client.example")
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask("RCPT TO:<Postmaster@mx.example>").startswith("250 ")
    assert client.ask("RCPT TO:<postmaster@y.example>") == "550 5.0.0 no"
    client.ask("DATA")
    client.send(HELLO)
    assert client.reply().startswith("250 ")
    assert rcpt.envelopes[0].rcpt_tos == ["Postmaster@mx.example"]


def test_ehlo_hook_edits_the_responses(served):
    def ehlo(server, session, envelope, hostname, responses):
        responses = [line for line in responses if "CHUNKING" not in line]
        return [*responses[:1], "250-X-MINE yes", *responses[1:]]

    first, second, *others = served(kept_with(handle_EHLO=ehlo)).ask("EHLO c.example").split("\n")
    assert (first, second) == ("250-mx.example", "250-X-MINE yes")
    assert "250-PIPELINING" in others
    assert not any("CHUNKING" in line for line in others)
    assert others[-1].startswith("250 ")


@pytest.mark.parametrize("last", ["HELP", "X-MINE"])
def test_older_ehlo_hook_adds_a_line(last, served):
    obj = kept_with(handle_EHLO=lambda server, session, envelope, hostname: f"250 {last}")
    lines = [line[4:] for line in served(obj).ask("EHLO client.example").split("\n")]
    assert (lines[0], lines[-1]) == ("mx.example", last)
    assert len(set(lines)) == len(lines)
    assert "PIPELINING" in lines


@pytest.mark.parametrize("verb", ["HELO", "EHLO"])
@pytest.mark.parametrize("count", [4, 5])
def test_refused_greeting_leaves_all_as_it_was(verb, count, served):
    def hello(server, session, envelope, hostname, responses=None):
        session.host_name = hostname
        return "250 fine" if hostname.startswith("good") else "550 no"

    def older(server, session, envelope, hostname):
        return hello(server, session, envelope, hostname)

    noop = "{0.host_name} {0.extended_smtp}"
    obj = kept_with(
        handle_HELO=older,
        handle_EHLO=hello if count == 5 else older,
        handle_NOOP=lambda server, session, envelope, arg: f"250 {noop.format(session)}",
    )
    client = served(obj)
    assert client.ask(f"{verb} bad.example") == "550 no"
    assert client.ask("MAIL FROM:<a@x.example>").startswith("503 ")
    assert client.ask(f"{verb} good.example").endswith("fine")
    assert client.ask(f"{'EHLO' if verb == 'HELO' else 'HELO'} bad.example") == "550 no"
    assert client.ask("NOOP") == f"250 2.0.0 good.example {verb == 'EHLO'}"


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        ("250 OK", "250 2.0.0 OK"),
        ("250", "250 2.0.0 OK"),
        ("250 2.6.0 queued", "250 2.6.0 queued"),
        ("550 5.7.1", "550 5.7.1 Requested action not taken: mailbox unavailable"),
        ("451 2.0.0 odd", "451 4.0.0 2.0.0 odd"),
        ("250-one\r\n250 two", "250-2.0.0 one\n250 2.0.0 two"),
        ("250-2.1.0 one\n250 2.1.0 two", "250-2.1.0 one\n250 2.1.0 two"),
        (Reply(452, "full", "4.2.2"), "452 4.2.2 full"),
    ],
)
def test_status_becomes_a_reply(status, sent, served):
    client = served(kept_with(handle_NOOP=lambda server, session, envelope, arg: status))
    assert client.ask("NOOP") == sent


@pytest.mark.parametrize(
    "status",
    [
        *(None, True, b"250 OK", ["250 OK"], "", "OK", "250OK", "25 OK", "2500 OK", "354 go on"),
        *("250 a\r\n550 b", "250 OK\r\n", "250 a\r\nb", "\uff1250 OK"),
    ],
)
def test_malformed_status_is_451_and_logged(status, served, caplog):
    obj = kept_with(handle_RCPT=lambda server, session, envelope, address, options: status)
    client = served(obj)
    client.ask("EHLO client.example")
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask("RCPT TO:<b@y.example>").startswith("451 4.3.0 ")
    assert client.ask("DATA").startswith("503 ")
    assert "handle_RCPT must give a status" in caplog.text


def test_malformed_responses_to_ehlo_are_451(served, caplog):
    responses = iter([[], ["250-a", 3], ["250-a", "550 b"]])
    obj = kept_with(handle_EHLO=lambda server, session, envelope, name, lines: next(responses))
    client = served(obj)
    for _ in range(3):
        assert client.ask("EHLO client.example").startswith("451 ")
    assert client.ask("MAIL FROM:<a@x.example>").startswith("503 ")


def test_421_closes(served):
    obj = kept_with(handle_NOOP=lambda server, session, envelope, arg: "421 4.3.2 going down")
    client = served(obj)
    assert client.ask("NOOP") == "421 4.3.2 going down"
    assert client.ended()


@pytest.mark.parametrize("status", ["221 bye", "250 stay", "550 stay"])
def test_quit_closes_whatever_its_hook_says(status, served):
    client = served(kept_with(handle_QUIT=lambda server, session, envelope: status))
    code, text = status.split()
    assert client.ask("QUIT") == f"{code} {code[0]}.0.0 {text}"
    assert client.ended()


def test_exception_is_451_and_logged(served, caplog):
    def data(server, session, envelope):
        raise RuntimeError("the disk is on fire")

    client = served(kept_with(handle_DATA=data))
    reply = send(client, "MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>")
    assert reply.startswith("451 4.3.0 ")
    assert "fire" not in reply
    assert "the disk is on fire" in caplog.text
    assert client.ask("NOOP").startswith("250 ")


def test_exception_is_shown_to_its_hook(served, caplog):
    errors = []

    def data(server, session, envelope):
        raise RuntimeError("the disk is on fire")

    def explain(error):
        errors.append(str(error))
        return "454 4.3.5 call the fire brigade"

    client = served(kept_with(handle_DATA=data, handle_exception=explain))
    reply = send(client, "MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>")
    assert reply == "454 4.3.5 call the fire brigade"
    assert errors == ["the disk is on fire"]
    assert "handle_DATA failed" in caplog.text


@pytest.mark.parametrize("explanation", ["250 never mind", "nonsense", None])
def test_exception_is_never_turned_into_a_promise(explanation, served):
    def data(server, session, envelope):
        raise RuntimeError("lost")

    client = served(kept_with(handle_DATA=data, handle_exception=lambda error: explanation))
    reply = send(client, "MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>")
    assert reply.startswith("451 4.3.0 ")


def test_disconnect_and_reject_pass_the_exception_hook(served):
    def noop(server, session, envelope, arg):
        raise Reject(550, "no") if arg == "reject" else Disconnect(421, "out")

    client = served(kept_with(handle_NOOP=noop, handle_exception=lambda error: "500 caught"))
    assert client.ask("NOOP reject") == "550 5.0.0 no"
    assert client.ask("NOOP") == "421 4.7.0 out"
    assert client.ended()


def test_hooks_of_two_clients_run_at_the_same_time(serve, connect):
    both = threading.Barrier(2, timeout=DEADLINE)

    def noop(server, session, envelope, arg):
        both.wait()
        session.seen = arg
        return f"250 {session.seen}"

    server = serve(handler(kept_with(handle_NOOP=noop)))
    clients = [connect(server), connect(server)]
    for number, client in enumerate(clients):
        client.reply()
        client.send(b"NOOP %d\r\n" % number)
    assert [client.reply() for client in clients] == ["250 2.0.0 0", "250 2.0.0 1"]


def test_tls_begins_the_session_anew(served, certificate):
    sessions = []

    def noop(server, session, envelope, arg):
        sessions.append((session, session.host_name, session.extended_smtp, session.ssl))
        return "250 OK"

    client = served(kept_with(handle_NOOP=noop), tls=certificate)
    client.ask("EHLO client.example")
    client.ask("NOOP")
    client.starttls(certificate)
    client.ask("NOOP")
    (before, name, extended, plain), (after, new_name, new_extended, secured) = sessions
    assert before is not after
    assert (name, extended, plain) == ("client.example", True, None)
    assert (new_name, new_extended, secured["peercert"]) == (None, False, None)
    assert secured["cipher"][1].startswith("TLSv1.")


def test_trace_field_is_added_where_it_is_asked_for(served):
    obj = Kept()
    send(served(obj, trace=True), "MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>")
    assert obj.envelopes[0].content.startswith(b"Received: from client.example ")


def test_delivery_may_be_a_battery(served, inbox):
    class Policy:
        def handle_RCPT(self, server, session, envelope, address, rcpt_options):
            return "250 OK" if address.endswith("@y.example") else "550 not here"

    client = served(Policy(), deliver=inbox)
    send(client, "MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>")
    assert inbox.wait() == [("a@x.example", ["b@y.example"], b"Subject: hi\r\n\r\n.hello\r\n")]


def test_without_a_delivery_there_is_no_server():
    class Policy:
        def handle_RCPT(self, server, session, envelope, address, rcpt_options):
            return "250 OK"

    with pytest.raises(ValueError, match="nothing would take the mail: give deliver="):
        SMTPServer(("127.0.0.1", 0), handler(Policy()))


# -- what cannot be served -----------------------------------------------------------------------


async def coroutine(*_):
    return "250 OK"


async def generator(*_):
    yield "250 OK"


class Awaited:
    async def __call__(self, *_):
        return "250 OK"


@pytest.mark.parametrize("name", ["handle_DATA", "handle_EHLO", "handle_exception"])
@pytest.mark.parametrize(
    "hook", [coroutine, generator, functools.partial(coroutine, 1), Awaited()], ids=str
)
def test_asynchronous_hook_is_refused(name, hook):
    with pytest.raises(ValueError, match=f"^{name} is asynchronous; .* make it a plain def"):
        handler(kept_with(**{name: hook}))


def test_method_that_is_a_coroutine_is_refused():
    class Old:
        async def handle_DATA(self, server, session, envelope):
            return "250 OK"

    with pytest.raises(ValueError, match=r"^handle_DATA is asynchronous"):
        handler(Old())
    with pytest.raises(ValueError, match=r"^authenticator is asynchronous"):
        handler(Kept(), authenticator=coroutine)


def test_awaitable_that_shows_at_the_call_is_451_and_logged(served, caplog):
    obj = kept_with(handle_NOOP=lambda server, session, envelope, arg: coroutine())
    assert served(obj).ask("NOOP").startswith("451 4.3.0 ")
    assert "handle_NOOP gave an awaitable" in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("handle_CONNECT", "handle_CONNECT is no hook: the hooks are handle_HELO, "),
        ("handle_data", "handle_data is no hook: the hooks are "),
        ("handle_AUTH", "handle_AUTH is no hook: give authenticator="),
        ("handle_PROXY", "handle_PROXY is no hook: give proxy_protocol="),
        ("handle_STARTTLS", "handle_STARTTLS is no hook: give tls="),
        ("auth_PLAIN", "auth_PLAIN: give authenticator="),
    ],
)
def test_unknown_hook_is_refused_with_what_to_do(name, text):
    with pytest.raises(ValueError, match=f"^{text}"):
        handler(kept_with(**{name: lambda *_: "250 OK"}))


@pytest.mark.parametrize(
    ("name", "hook", "wanted"),
    [
        ("handle_RCPT", lambda server, session, envelope: "250 OK", "envelope, address, rcpt_"),
        ("handle_EHLO", lambda server, session, envelope: "250 OK", "hostname, responses"),
        ("handle_DATA", lambda envelope: "250 OK", "server, session, envelope"),
        ("handle_exception", lambda *, error: "500 no", "error"),
        ("handle_QUIT", "221 bye", "server, session, envelope"),
    ],
)
def test_other_arguments_are_refused(name, hook, wanted):
    with pytest.raises(ValueError, match=f"^{name} is to take the arguments .*{wanted}"):
        handler(type("Kept", (Kept,), {name: staticmethod(hook) if callable(hook) else hook})())


@pytest.mark.parametrize(("obj", "text"), [(Kept, "takes an object: Kept"), (3, "3 has no method")])
def test_what_is_no_handler_is_refused(obj, text):
    with pytest.raises(ValueError, match=text):
        handler(obj)


def test_hook_that_is_none_is_not_there(served):
    class Without(Kept):
        handle_NOOP = None
        auth_DATA = "not a method"

    assert served(Without()).ask("NOOP") == "250 2.0.0 OK"


def test_handler_class_is_named_and_documented_as_its_object():
    made = handler(Kept())
    assert (made.__name__, made.__doc__) == ("Kept", Kept.__doc__)
    assert compat.handler is handler


# -- AUTH ----------------------------------------------------------------------------------------


def login(server, session, envelope, mechanism, auth_data):
    assert isinstance(auth_data, LoginPassword)
    assert auth_data.password.decode() not in repr(auth_data)
    if auth_data.password == b"tired":
        return AuthResult(success=False, handled=False, message="454 4.7.0 not now")
    if auth_data.password == b"odd":
        return AuthResult(success=False, handled=False, message="235 come in")
    success = (mechanism, auth_data.login, auth_data.password) == ("PLAIN", b"ann", b"secret")
    return AuthResult(success=success, handled=False, auth_data=auth_data.login)


def plain(password, login="ann"):
    return base64.b64encode(f"\0{login}\0{password}".encode()).decode()


def test_authenticator_decides(served):
    seen = []

    def noop(server, session, envelope, arg):
        seen.append((session.authenticated, session.auth_data, session.login_data))
        return "250 OK"

    client = served(kept_with(handle_NOOP=noop), login, auth_require_tls=False, require_auth=True)
    assert "250-AUTH PLAIN LOGIN" in client.ask("EHLO c.example").replace("250 AUTH", "250-AUTH")
    client.ask("NOOP")
    assert client.ask("MAIL FROM:<a@x.example>").startswith("530 ")
    assert client.ask(f"AUTH PLAIN {plain('wrong')}").startswith("535 5.7.8 ")
    client.ask("NOOP")
    assert client.ask(f"AUTH PLAIN {plain('tired')}") == "454 4.7.0 not now"
    assert client.ask(f"AUTH PLAIN {plain('odd')}").startswith("454 4.7.0 Temporary")
    client.ask("NOOP")
    assert client.ask(f"AUTH PLAIN {plain('secret')}").startswith("235 ")
    client.ask("NOOP")
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
    assert seen == [(None, None, None), *[(False, None, None)] * 2, (True, b"ann", b"ann")]


@pytest.mark.parametrize("answer", [True, False, None, 1, "ann"])
def test_authenticator_lets_in_by_true_alone(answer, served):
    client = served(Kept(), lambda *_: answer, auth_require_tls=False)
    client.ask("EHLO client.example")
    code = "235" if answer is True else "535"
    assert client.ask(f"AUTH PLAIN {plain('any')}").startswith(f"{code} ")


def test_token_is_no_empty_password(served):
    options = {"auth_require_tls": False, "mechanisms": ["XOAUTH2"]}
    client = served(Kept(), lambda *_: AuthResult(success=True), **options)
    client.ask("EHLO client.example")
    token = base64.b64encode(b"user=ann\1auth=Bearer abc\1\1").decode()
    assert client.ask(f"AUTH XOAUTH2 {token}").startswith("334 ")
    assert client.ask("").startswith("535 ")


def test_no_authenticator_no_auth(served):
    assert "AUTH" not in served(Kept()).ask("EHLO client.example")


# -- side by side with aiosmtpd ------------------------------------------------------------------


class Judge:
    """Hooks of all kinds; those of aiosmtpd are made of them."""

    def __init__(self):
        self.seen = []

    def note(self, what, session, envelope, *more):
        names = ("mail_from", "mail_options", "rcpt_tos", "rcpt_options", "smtp_utf8", "content")
        about = (session.host_name, session.extended_smtp, session.authenticated)
        seen = [getattr(envelope, name) for name in names]
        self.seen.append((what, *about, *copy.deepcopy(seen), *more))

    def handle_HELO(self, server, session, envelope, hostname):
        self.note("HELO", session, envelope, hostname)
        session.host_name = hostname
        return "250 mx.example"

    def handle_EHLO(self, server, session, envelope, hostname, responses):
        if hostname == "bad.example":
            return ["550 go away"]
        session.host_name = f"[{hostname}]"
        return [responses[0], "250-X-MINE", "250 HELP"]

    def handle_MAIL(self, server, session, envelope, address, mail_options):
        self.note("MAIL", session, envelope, address, sorted(mail_options))
        if address.startswith("bad"):
            return "550 5.7.1 not you"
        envelope.mail_from = address.replace("ann", "anna")
        envelope.mail_options.extend(sorted(mail_options))
        return "250 2.1.0 Sender fine"

    def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        if address.startswith("bad"):
            return "550 5.1.1 no such user"
        if address.startswith("later"):
            return "450 4.2.1 later"
        envelope.rcpt_tos.append(address.upper())
        return "250 2.1.5 Recipient fine"

    def handle_DATA(self, server, session, envelope):
        self.note("DATA", session, envelope, envelope.original_content)
        if b"bad" in envelope.content:
            return "554 5.6.0 bad words"
        return f"250 2.6.0 {len(envelope.content)} octets"

    def handle_RSET(self, server, session, envelope):
        self.note("RSET", session, envelope)
        return "250 reset"

    def handle_NOOP(self, server, session, envelope, arg):
        return f"250 noop {arg}"

    def handle_VRFY(self, server, session, envelope, address):
        return f"252 who is {address}"

    def handle_QUIT(self, server, session, envelope):
        return "221 bye for now"

    def handle_exception(self, error):
        return f"451 {type(error).__name__}"


def asynchronous(cls):
    """Make of a class one whose hooks are coroutine functions."""

    def made(hook):
        async def call(self, *arguments):
            return hook(self, *arguments)

        return call

    def made_of_ehlo(hook):
        async def call(self, server, session, envelope, hostname, responses):
            return hook(self, server, session, envelope, hostname, responses)

        return call

    hooks = {name: hook for name, hook in vars(cls).items() if name.startswith("handle_")}
    members = {name: made(hook) for name, hook in hooks.items()}
    members["handle_EHLO"] = made_of_ehlo(cls.handle_EHLO)
    return type(cls.__name__, (cls,), members)


DIALOGUE = [
    "NOOP before",
    "EHLO bad.example",
    "HELO old.example",
    "MAIL FROM:<ann@x.example>",
    "RSET",
    "EHLO client.example",
    "VRFY jo@x.example",
    "RCPT TO:<b@y.example>",
    "MAIL FROM:<bad@x.example>",
    "MAIL FROM:<ann@x.example> BODY=8BITMIME SIZE=20 SMTPUTF8",
    "MAIL FROM:<ann@x.example>",
    "DATA",
    "RCPT TO:<bad@y.example>",
    "RCPT TO:<later@y.example>",
    "DATA",
    "RCPT TO:<bob@Y.Example>",
    'RCPT TO:<"a b"@y.example>',
    "RCPT TO:<bob@Y.Example>",
    "DATA",
    "Subject: hi\r\n\r\n..\r\n..dots\r\nh\u00e9llo\r\n.",
    "MAIL FROM:<> SIZE=3",
    "RCPT TO:<bob@y.example>",
    "NOOP between",
    "DATA",
    ".",
    "MAIL FROM:<ann@x.example>",
    "RCPT TO:<bob@y.example>",
    "RSET",
    "RCPT TO:<bob@y.example>",
    "MAIL FROM:<ann@x.example>",
    "RCPT TO:<bob@y.example>",
    "DATA",
    "bad\r\n.",
    "QUIT",
]


def talk(client):
    """Say the dialogue; give the replies to it, and the EHLO lines that are the hook's."""
    client.reply()
    return [client.ask(line) for line in DIALOGUE]


def same_reply(line, ours, theirs):
    """Whether two replies say the same; of the library's own ones only the code is compared."""
    by_hook = not theirs.startswith(("354", "503"))
    if by_hook and ours[:4] == theirs[:4] == "250-":
        return ours.split("\n")[1:] == theirs.split("\n")[1:]
    return reply_of(line, ours) == reply_of(line, theirs) if by_hook else ours[:3] == theirs[:3]


@pytest.mark.interop
def test_hooks_see_and_say_the_same_as_with_aiosmtpd(serve, connect):
    controller = pytest.importorskip("aiosmtpd.controller", reason="aiosmtpd is not installed")
    theirs, ours = asynchronous(Judge)(), Judge()
    running = controller.Controller(
        theirs, hostname="127.0.0.1", port=peers.free_port(), server_hostname="mx.example"
    )
    running.start()
    try:
        with Client((running.hostname, running.port)) as client:
            their_replies = talk(client)
    finally:
        running.stop()
    our_replies = talk(connect(serve(handler(ours))))
    for line, one, other in zip(DIALOGUE, our_replies, their_replies):
        assert same_reply(line, one, other), (line, one, other)
    assert len(ours.seen) == 12
    assert ours.seen == theirs.seen


@pytest.mark.interop
def test_session_and_envelope_have_the_attributes_of_aiosmtpd():
    smtp = pytest.importorskip("aiosmtpd.smtp", reason="aiosmtpd is not installed")
    from smtpd_sync.compat import adapter

    class Nobody:
        peer, session = ("", 0), type("Session", (), {"tls": None})

    assert set(vars(smtp.Envelope())) == set(vars(adapter.Envelope()))
    theirs = {name for name in dir(smtp.Session(None)) if not name.startswith("_")}
    assert theirs <= set(dir(adapter.Session(Nobody)))
    assert {field.name for field in smtp.AuthResult.__attrs_attrs__} == set(AuthResult._fields)
    assert smtp.LoginPassword._fields == LoginPassword._fields
