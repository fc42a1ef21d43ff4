"""The log, the transcript and the counts: one line each, whose it is, and no secret in any."""

import ast
import base64
import logging
import os
import pathlib
import re
import shlex
import signal
import smtplib
import subprocess
import sys
import threading
import time

import pytest
from support import DEADLINE, ROOT, SOON, Client, trusting, until

from smtpd_sync import Disconnect, Limits, Reject, Reply, SMTPHandler
from smtpd_sync.logs import RecordFactory, current_session, name_sessions, pairs
from smtpd_sync.stats import COUNTERS

# -- key=value -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("ann@example.com,bob@example.com", "ann@example.com,bob@example.com"),
        ("<>", "<>"),
        ("!#$%&()*+,-./:;<>?@[]^_`{|}~", "!#$%&()*+,-./:;<>?@[]^_`{|}~"),
        (None, "-"),
        (0, "0"),
        (1532, "1532"),
        (True, "True"),
        (0.0, "0.000"),
        (1.23456, "1.235"),
        ("", "''"),
        (" ", "' '"),
        ("250 2.0.0 OK", "'250 2.0.0 OK'"),
        ("a=b", "'a=b'"),
        ("it's", '"it\'s"'),
        ('a"b', "'a\"b'"),
        ("'", '"\'"'),
        ("a\\b", r"'a\\b'"),
        ("a\nforged=1", r"'a\nforged=1'"),
        ("a\r\n\t\0\x1b\x7f", r"'a\r\n\t\x00\x1b\x7f'"),
        ("b\u00fccher", r"'b\xfccher'"),
        ("\u202etxt.exe", r"'\u202etxt.exe'"),
        ("\u2028\u2029\x85", r"'\u2028\u2029\x85'"),
        ("\U0001f4e7", r"'\U0001f4e7'"),
        ("\ud800", r"'\ud800'"),
        ("plain\n", r"'plain\n'"),
    ],
    ids=repr,
)
def test_value_is_plain_or_quoted(value, written):
    line = pairs(key=value, next=1)
    assert line == f"key={written} next=1"
    assert line.isascii()
    assert line.isprintable()
    if written[0] in "'\"":
        assert ast.literal_eval(written) == value


def test_pairs_keep_their_order():
    assert pairs(b=1, a="x y", c=None) == "b=1 a='x y' c=-"
    assert pairs() == ""


PAIR = re.compile(r"([a-z_]+)=((?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^ '\"=\\]+))(?: |\Z)")


def read(line):
    """Read ``key=value`` pairs; ``AssertionError`` if the line is anything else."""
    found, position = {}, 0
    while position < len(line):
        match = PAIR.match(line, position)
        assert match, line[position:]
        key, value = match.groups()
        assert key not in found, line
        found[key] = ast.literal_eval(value) if value[0] in "'\"" else value
        position = match.end()
    return found


# -- the lines of sessions and messages --------------------------------------------------------


@pytest.fixture
def lines(caplog):
    """Give what the logger of the package was told since the test began, of INFO and above."""
    caplog.set_level(logging.INFO, "smtpd_sync")

    def found(start=""):
        return [
            read(record.getMessage())
            for record in caplog.records
            if record.name == "smtpd_sync" and record.getMessage().startswith(start)
        ]

    def wait(start, count=1):
        until(lambda: len(found(start)) >= count, f"{count} lines {start}")
        assert len(found(start)) == count
        return found(start)

    found.wait = wait
    return found


def test_accepted_message_and_its_session(serve, connect, lines):
    server = serve(trace=False)
    client = connect(server)
    reply = client.mail(b"hello\r\n", recipients=["b@y.example", "c@y.example"])
    client.ask("QUIT")
    (message,) = lines.wait("message=")
    (session,) = lines.wait("session=")
    assert list(message) == [
        *("message", "session", "peer", "helo", "user", "tls"),
        *("sender", "recipients", "size", "verdict", "seconds"),
    ]
    assert message["verdict"] == reply == f"250 2.0.0 OK {message['message']}"
    assert message["sender"] == "<a@x.example>"
    assert message["recipients"] == "b@y.example,c@y.example"
    assert message["size"] == "7"
    assert 0 <= float(message["seconds"]) < DEADLINE
    assert list(session) == [
        *("session", "peer", "helo", "user", "tls", "messages", "end", "seconds")
    ]
    for line in (message, session):
        assert (line["peer"], line["helo"]) == ("127.0.0.1", "client.example")
        assert (line["user"], line["tls"]) == ("-", "-")
    assert (session["messages"], session["end"]) == ("1", "quit")
    assert session["session"] == message["session"]
    assert float(session["seconds"]) >= float(message["seconds"])


def test_null_sender_and_who_the_client_is(serve, connect, lines, certificate):
    client = connect(serve(tls=certificate, users={"tim": "secret"}))
    client.hello()
    client.starttls(certificate)
    client.ask("EHLO inside.example")
    assert client.ask(f"AUTH PLAIN {b64(chr(0) + 'tim' + chr(0) + 'secret')}").startswith("235 ")
    assert client.ask("MAIL FROM:<>").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    assert client.ask("DATA").startswith("354 ")
    assert client.ask(".").startswith("250 ")
    (message,) = lines.wait("message=")
    assert message["sender"] == "<>"
    assert message["size"] == "0"
    assert (message["user"], message["helo"]) == ("tim", "inside.example")
    assert message["tls"].startswith("TLSv1.")


@pytest.mark.parametrize(
    ("outcome", "verdict", "messages"),
    [
        (None, "250 2.0.0 OK ", "1"),
        ("kept as 17", "250 2.0.0 kept as 17", "1"),
        (False, "554 5.0.0 Message refused", "0"),
        (Reject(550, 'No "spam" = here\nsecond line', "5.7.1"), "550 5.7.1 No ", "0"),
        (Disconnect(), "421 4.7.0", "0"),
        (KeyError("secret of ours"), "451 4.3.0 Local error, please try again later", "0"),
    ],
    ids=repr,
)
def test_verdict_is_what_the_client_was_told(
    serve, connect, lines, caplog, outcome, verdict, messages
):
    def deliver(sender, recipients, data):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    client = connect(serve(deliver=deliver))
    reply = client.mail()
    client.close()
    (message,) = lines.wait("message=")
    assert message["verdict"].startswith(verdict)
    assert message["verdict"][:3] == reply[:3]
    (session,) = until(lambda: sessions_of(caplog), "the end of the session")
    assert session["messages"] == messages


def sessions_of(caplog):
    """Give the lines of sessions; tracebacks and the like are none."""
    messages = [record.getMessage() for record in caplog.records]
    return [read(line) for line in messages if line.startswith("session=") and " end=" in line]


def test_message_that_is_too_big_is_logged_as_refused(serve, connect, lines):
    client = connect(serve(limits=Limits(message_size=100)))
    assert client.mail(b"x" * 150 + b"\r\n").startswith("552 ")
    (message,) = lines.wait("message=")
    assert message["verdict"].startswith("552 5.3.4 ")
    assert message["size"] == "152"


def test_lmtp_shows_the_code_of_each_recipient(serve, connect, lines):
    def deliver(sender, recipients, data):
        return [None, Reply(452, "Quota", "4.2.2"), Reply(550, "No", "5.1.1")]

    client = connect(serve(deliver=deliver, lmtp=True))
    assert client.reply().startswith("220 ")
    client.ask("LHLO client.example")
    client.ask("MAIL FROM:<a@x.example>")
    for name in "bcd":
        client.ask(f"RCPT TO:<{name}@y.example>")
    client.ask("DATA")
    assert client.ask(".").startswith("250 ")
    (message,) = lines.wait("message=")
    assert message["verdict"] == "250,452,550"
    assert message["recipients"] == "b@y.example,c@y.example,d@y.example"


@pytest.mark.parametrize(("count", "more"), [(20, ""), (21, ",+1"), (25, ",+5")])
def test_many_recipients_are_counted_and_not_all_shown(serve, connect, lines, count, more):
    recipients = [f"r{n}@y.example" for n in range(count)]
    assert connect(serve()).mail(recipients=recipients).startswith("250 ")
    (message,) = lines.wait("message=")
    assert message["recipients"] == ",".join(recipients[:20]) + more


@pytest.mark.parametrize(
    "name",
    [
        "x y=z",
        "client.example user=root",
        "a\x1b[2Jb",
        "\u202eevil",
        "it's",
        'a"b',
        "a\\nb",
        "x" * 400,
        "[192.0.2.1]",
    ],
    ids=lambda name: repr(name)[:30],
)
def test_hostile_helo_forges_nothing(serve, connect, lines, name):
    client = connect(serve())
    assert client.reply().startswith("220 ")
    client.send(b"EHLO " + name.encode() + b"\r\n")
    taken = client.reply().startswith("250")
    client.ask("QUIT")
    (session,) = lines.wait("session=")
    assert session["helo"] == (name if taken else "-")
    assert (session["user"], session["end"]) == ("-", "quit")
    assert len(session) == 8


@pytest.mark.parametrize(
    ("recipient", "sender"),
    [
        ('"a b"@y.example', '"x y"@x.example'),
        ('"a=1 verdict=250"@y.example', '"> user=root <"@x.example'),
        ('"a\\"b"@y.example', "it's@x.example"),
        ('"a,b"@y.example', '"\\\\"@x.example'),
    ],
)
def test_hostile_addresses_forge_nothing(serve, connect, lines, recipient, sender):
    client = connect(serve())
    assert client.mail(recipients=[recipient], sender=sender).startswith("250 ")
    (message,) = lines.wait("message=")
    assert message["recipients"] == recipient
    assert message["sender"] == f"<{sender}>"
    assert message["user"] == "-"


def test_addresses_that_are_not_ascii(serve, connect, lines, caplog):
    client = connect(serve())
    client.hello()
    client.send("MAIL FROM:<\u00fc@x.example> SMTPUTF8\r\n".encode())
    assert client.reply().startswith("250 ")
    client.send("RCPT TO:<\u7528\u6237@y.example>\r\n".encode())
    assert client.reply().startswith("250 ")
    assert client.ask("DATA").startswith("354 ")
    assert client.ask(".").startswith("250 ")
    (message,) = lines.wait("message=")
    assert message["sender"] == "<\u00fc@x.example>"
    assert message["recipients"] == "\u7528\u6237@y.example"
    assert all(record.getMessage().isascii() for record in caplog.records)


@pytest.mark.parametrize(
    ("leave", "end"),
    [
        (lambda client: client.ask("QUIT"), "quit"),
        (lambda client: client.close(), "lost"),
        (lambda client: client.ask("GET / HTTP/1.0"), "closed"),
    ],
    ids=["quit", "lost", "closed"],
)
def test_session_line_says_how_it_ended(serve, connect, lines, leave, end):
    client = connect(serve())
    client.hello()
    leave(client)
    (session,) = lines.wait("session=")
    assert (session["end"], session["messages"]) == (end, "0")


def test_log_is_silent_below_its_level(serve, connect, caplog):
    caplog.set_level(logging.WARNING, "smtpd_sync")
    server = serve()
    client = connect(server)
    assert client.mail().startswith("250 ")
    client.ask("QUIT")
    until(lambda: not server.crowd.threads, "the end of the session")
    assert caplog.records == []


# -- whose line is it ------------------------------------------------------------------------


@pytest.fixture
def factory():
    """Restore the record factory that was there before."""
    before = logging.getLogRecordFactory()
    yield before
    logging.setLogRecordFactory(before)


def test_records_of_hooks_and_their_libraries_name_the_session(serve, connect, caplog):
    library = logging.getLogger("mymail.library")
    ids = []

    class Handler(SMTPHandler):
        def validate_host(self, address):
            library.warning("host")

        def validate_recipient(self, mailbox):
            library.warning("recipient")

        def deliver(self, sender, recipients, data):
            ids.append(self.session.id)
            library.warning("deliver")

        def session_ended(self, reason):
            library.warning("ended")

    client = connect(serve(Handler))
    client.mail()
    client.ask("QUIT")
    until(lambda: "ended" in caplog.text, "the end of the session")
    records = [record for record in caplog.records if record.name == "mymail.library"]
    assert [record.getMessage() for record in records] == ["host", "recipient", "deliver", "ended"]
    assert {record.smtp_session for record in records} == set(ids)


def test_records_of_other_threads_name_no_session(serve, connect, caplog):
    def deliver(sender, recipients, data):
        thread = threading.Thread(target=logging.warning, args=["elsewhere"])
        thread.start()
        thread.join()

    connect(serve(deliver=deliver)).mail()
    logging.warning("here")
    found = {record.getMessage(): record.smtp_session for record in caplog.records}
    assert found["here"] == "-"
    if not getattr(sys.flags, "thread_inherit_context", 0):
        assert found["elsewhere"] == "-"


def test_sessions_that_run_at_once_do_not_mix(serve, caplog):
    together = threading.Barrier(10)
    log = logging.getLogger("mymail")

    class Handler(SMTPHandler):
        def validate_sender(self, mailbox):
            together.wait(DEADLINE)
            log.warning("%s", self.session.id)

        def deliver(self, sender, recipients, data):
            together.wait(DEADLINE)
            log.warning("%s", self.session.id)

    server = serve(Handler)

    def work():
        with Client(server) as client:
            client.mail()

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    records = [record for record in caplog.records if record.name == "mymail"]
    assert len(records) == 20
    assert all(record.smtp_session == record.getMessage() for record in records)
    assert len({record.smtp_session for record in records}) == 10


def test_factory_of_somebody_else_stays_in_the_chain(factory, serve, connect, caplog):
    class Theirs(logging.LogRecord):
        theirs = "yes"

    logging.setLogRecordFactory(Theirs)
    server = serve(deliver=lambda sender, recipients, data: logging.warning("in a hook"))
    connect(server).mail()
    (record,) = [each for each in caplog.records if each.getMessage() == "in a hook"]
    assert record.theirs == "yes"
    assert record.smtp_session != "-"


def test_factory_that_somebody_puts_around_ours(factory, serve, connect, caplog):
    serve()
    inner = logging.getLogRecordFactory()

    def theirs(*arguments, **keywords):
        record = inner(*arguments, **keywords)
        record.theirs = "yes"
        return record

    logging.setLogRecordFactory(theirs)
    server = serve(deliver=lambda sender, recipients, data: logging.warning("in a hook"))
    connect(server).mail()
    (record,) = [each for each in caplog.records if each.getMessage() == "in a hook"]
    assert record.theirs == "yes"
    assert record.smtp_session != "-"


def test_many_servers_make_one_factory(factory):
    logging.setLogRecordFactory(logging.LogRecord)
    for _ in range(5):
        name_sessions()
    made = logging.getLogRecordFactory()
    assert isinstance(made, RecordFactory)
    assert made._inner is logging.LogRecord


def test_extra_of_the_user_still_works(serve, connect, caplog):
    def deliver(sender, recipients, data):
        logging.warning("in a hook", extra={"session": "mine", "peer": "yours", "message_id": 5})

    connect(serve(deliver=deliver)).mail()
    (record,) = [each for each in caplog.records if each.getMessage() == "in a hook"]
    assert (record.session, record.peer, record.message_id) == ("mine", "yours", 5)
    assert record.smtp_session not in ("-", "mine")


def test_format_may_name_the_session_everywhere(serve, caplog):
    serve()
    logging.warning("here")
    text = logging.Formatter("%(smtp_session)s %(message)s").format(caplog.records[-1])
    assert text == "- here"
    assert current_session.get() == "-"


# -- the dialogue ----------------------------------------------------------------------------


class Recording(SMTPHandler):
    """Keeps the transcript of its last session."""

    said = None

    def deliver(self, sender, recipients, data):
        pass

    def session_ended(self, reason):
        self.server.said = self.session.transcript


def dialogue(caplog):
    """Give what DEBUG shows of the only session."""
    pattern = re.compile(r"session=(\w+) ([CS]: .*)")
    found = [
        pattern.fullmatch(record.getMessage())
        for record in caplog.records
        if record.name == "smtpd_sync" and record.levelno == logging.DEBUG
    ]
    assert None not in found
    assert len({match[1] for match in found}) <= 1
    return [match[2] for match in found]


def test_debug_shows_all_that_was_said_and_no_mail_data(serve, connect, caplog):
    caplog.set_level(logging.DEBUG, "smtpd_sync")
    server = serve(Recording, transcript=True)
    server.said = None
    client = connect(server)
    client.to_data()
    client.send(b"Subject: secret\r\n\r\nsecret\r\n.\r\n")
    assert client.reply().startswith("250 ")
    client.send(b"RSET\r\nMAIL FROM:<>\r\nRCPT TO:<b@y.example>\r\nBDAT 8 LAST\r\nsecret\r\n")
    for _ in range(4):
        assert client.reply().startswith("250 ")
    client.ask("WIZ")
    client.ask("QUIT")
    said = until(lambda: server.said, "the end of the session")
    assert dialogue(caplog) == said
    assert said[0].startswith("S: 220 mx.example")
    assert said[1] == "C: EHLO client.example"
    commands = [line for line in said if line.startswith("C: ")]
    assert commands[1:] == [
        *("C: MAIL FROM:<a@x.example>", "C: RCPT TO:<b@y.example>", "C: DATA"),
        *("C: (27 octets of mail data)", "C: RSET", "C: MAIL FROM:<>"),
        *("C: RCPT TO:<b@y.example>", "C: BDAT 8 LAST", "C: (8 octets of mail data)"),
        *("C: WIZ", "C: QUIT"),
    ]
    assert said[-1].startswith("S: 221 ")
    assert "secret" not in caplog.text
    for command, reply in zip(said, said[1:]):
        if command in ("C: WIZ", "C: QUIT", "C: DATA"):
            assert reply.startswith("S: ")


def test_debug_shows_the_last_words_of_the_server(serve, connect, caplog):
    caplog.set_level(logging.DEBUG, "smtpd_sync")
    server = serve(limits=Limits(command_timeout=0.2))
    client = connect(server)
    client.hello()
    assert client.reply().startswith("421 ")
    client.close()
    until(lambda: not server.crowd.threads, "the end of the session")
    assert dialogue(caplog)[-1].startswith("S: 421 4.4.2 ")


def test_debug_may_be_turned_on_for_the_sessions_to_come(serve, connect, caplog):
    server = serve()
    first = connect(server)
    first.hello()
    caplog.set_level(logging.DEBUG, "smtpd_sync")
    second = connect(server)
    second.hello()
    until(lambda: len(dialogue(caplog)) > 4, "the dialogue")
    assert first.ask("NOOP").startswith("250 ")
    assert second.ask("QUIT").startswith("221 ")
    until(lambda: "S: 221 2.0.0 Bye" in dialogue(caplog), "the end of the dialogue")
    assert "C: NOOP" not in dialogue(caplog)


def test_transcript_is_off_by_default_and_bounded(serve, connect):
    for options, count in (
        ({}, 0),
        ({"transcript": True, "limits": Limits(transcript=5)}, 5),
        ({"transcript": True, "limits": Limits(transcript=5_000)}, 45),
    ):
        server = serve(Recording, **options)
        server.said = None
        client = connect(server)
        client.reply()
        client.ask("HELO client.example")
        for _ in range(20):
            client.ask("NOOP")
        client.ask("QUIT")
        said = until(lambda server=server: server.said is not None and [server.said], "the end")[0]
        assert len(said) == count
        if count:
            assert said[-2:] == ["C: QUIT", "S: 221 2.0.0 Bye"]


def test_debug_alone_keeps_no_transcript(serve, connect, caplog):
    caplog.set_level(logging.DEBUG, "smtpd_sync")
    server = serve(Recording)
    server.said = None
    connect(server).ask("QUIT")
    assert until(lambda: server.said is not None and [server.said], "the end")[0] == []


def test_transcript_can_be_read_in_a_hook(serve, connect):
    seen = []

    class Handler(Recording):
        transcript = True

        def validate_recipient(self, mailbox):
            seen.append(self.session.transcript[-1])

    client = connect(serve(Handler))
    client.hello()
    client.ask("MAIL FROM:<>")
    client.ask("RCPT TO:<b@y.example>")
    assert seen == ["C: RCPT TO:<b@y.example>"]


# -- no secret in any ------------------------------------------------------------------------

PASSWORD = "correct-horse-battery"
TOKEN = "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29t"


def b64(text):
    return base64.b64encode(text.encode()).decode()


PLAIN = b64(f"\0tim\0{PASSWORD}")
WRONG = b64("\0tim\0not-the-password-but-nearly")
BEARER = b64(f"n,,\1auth=Bearer {TOKEN}\1\1")
MECHANISMS = ("SCRAM-SHA-256", "PLAIN", "LOGIN", "CRAM-MD5", "OAUTHBEARER", "XOAUTH2")

CONVERSATIONS = {
    "PLAIN at once": [f"AUTH PLAIN {PLAIN}"],
    "PLAIN": ["AUTH PLAIN", PLAIN],
    "PLAIN wrong": [f"AUTH PLAIN {WRONG}", "AUTH PLAIN", WRONG],
    "PLAIN as another": [f"AUTH PLAIN {b64(f'root{chr(0)}tim{chr(0)}{PASSWORD}')}"],
    "LOGIN": ["AUTH LOGIN", b64("tim"), b64(PASSWORD)],
    "LOGIN at once": ["AUTH LOGIN " + b64("tim"), b64(PASSWORD)],
    "LOGIN wrong": ["AUTH LOGIN", b64("tim"), b64("not-the-password-but-nearly")],
    "LOGIN cancelled": ["AUTH LOGIN", b64("tim"), "*"],
    "LOGIN, not in base64": ["AUTH LOGIN", b64("tim"), PASSWORD],
    "CRAM-MD5": ["AUTH CRAM-MD5", b64("tim 9d5f1c2a7e0b4d3c8a6f5e4d3c2b1a09")],
    "SCRAM": [
        "AUTH SCRAM-SHA-256 " + b64("n,,n=tim,r=clientnonce"),
        b64("c=biws,r=x,p=proofproof"),
    ],
    "SCRAM without an initial response": ["AUTH SCRAM-SHA-256", b64("n,,n=tim,r=clientnonce"), "*"],
    "OAUTHBEARER": [f"AUTH OAUTHBEARER {BEARER}", b64("\1")],
    "XOAUTH2": [f"AUTH XOAUTH2 {b64(f'user=tim{chr(1)}auth=Bearer {TOKEN}{chr(1)}{chr(1)}')}", "*"],
    "no mechanism of ours": [f"AUTH GSSAPI {PLAIN}", PLAIN],
    "equals sign": [f"AUTH=PLAIN {PLAIN}"],
    "in one word": [f"authplain {PLAIN}"],
    "space before": [f" AUTH PLAIN {PLAIN}"],
    "tab before": [f"\tAUTH PLAIN {PLAIN}"],
    "two spaces": [f"AUTH  PLAIN {PLAIN}"],
    "tab": [f"AUTH\tPLAIN {PLAIN}"],
    "colon": [f"AUTH: PLAIN {PLAIN}"],
    "small letters": [f"auth plain {PLAIN}"],
    "too many words": [f"AUTH PLAIN {PLAIN} {PLAIN}"],
    "in clear": [f"AUTH PLAIN tim {PASSWORD}"],
    "in a transaction": ["MAIL FROM:<>", f"AUTH PLAIN {PLAIN}"],
    "behind a refused AUTH": ["MAIL FROM:<>", "AUTH LOGIN", b64("tim"), b64(PASSWORD)],
    "a line too long": ["AUTH PLAIN " + PLAIN * 1_000],
    "a response too long": ["AUTH PLAIN", PLAIN * 1_000],
    "pipelined": ["AUTH PLAIN\r\n" + PLAIN],
    "pipelined at once": [f"AUTH PLAIN {PLAIN}\r\nMAIL FROM:<>"],
}


@pytest.mark.parametrize("options", ["served", "behind TLS", "refused", "forgiven", "faulty"])
@pytest.mark.parametrize("said", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_no_secret_is_in_any_record_nor_transcript(serve, connect, caplog, said, options):
    caplog.set_level(logging.DEBUG)

    class Handler(Recording):
        transcript = True
        mechanisms = MECHANISMS
        users = {"tim": PASSWORD}

        def authenticate(self, credentials):
            if options == "faulty":
                raise KeyError("no database")
            return super().authenticate(credentials)

        def secret(self, mechanism, username):
            if options == "faulty":
                raise KeyError("no database")
            return super().secret(mechanism, username)

    server = serve(
        Handler,
        auth_require_tls=options in NEED_TLS,
        strict_pipelining=options != "forgiven",
        limits=Limits(auth_failures=10),
        **({"tls": CERTIFICATE[0]} if options in NEED_TLS else {}),
    )
    server.said = None
    client = connect(server)
    client.hello()
    if options == "behind TLS":
        client.starttls(CERTIFICATE[0])
        client.ask("EHLO client.example")
    for line in said:
        try:
            client.send(line.encode() + b"\r\n")
            if not client.reply():
                break
        except ConnectionError:
            break
    client.gone() if "pipelined" in said[0] else client.close()
    client.close()
    transcript = "\n".join(until(lambda: server.said, "the end of the session"))
    assert "C: AUTH" in transcript or "C: auth" in transcript
    records = "\n".join(
        logging.Formatter("%(message)s").format(record) for record in caplog.records
    )
    assert "C: EHLO client.example" in records
    for secret in (PASSWORD, TOKEN, "not-the-password", *secrets_of(said)):
        assert secret not in records
        assert secret not in transcript


def secrets_of(said):
    """Give what may not be seen: words of AUTH that are long enough to be no mechanism."""
    known = {*MECHANISMS, "FROM:<>"}
    for line in said:
        for word in line.split():
            if word.upper() not in known and len(word) > 15:
                yield word[:40]


@pytest.fixture(autouse=True)
def _certificate(request):
    """Make the certificate only where a test serves TLS."""
    names = getattr(request.node, "callspec", None)
    if names is not None and names.params.get("options") in NEED_TLS:
        CERTIFICATE[:] = [request.getfixturevalue("certificate")]


CERTIFICATE = []
NEED_TLS = ("behind TLS", "refused")


# -- counts ----------------------------------------------------------------------------------


def test_counts_begin_at_nothing(serve):
    stats = serve().stats()
    assert set(stats) == {*COUNTERS, "sessions", "memory", "spool"}
    assert set(stats.values()) == {0}


def moved(before, after):
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


def with_client(action):
    def act(server, certificate):
        with Client(server) as client:
            action(client, certificate)

    return act


def deliver_two(client, certificate):
    assert client.mail(b"hello\r\n", recipients=["b@y.example", "c@y.example"])[0] == "2"


def refuse(client, certificate):
    assert client.mail(b"hello\r\n", sender="refused@x.example")[0] == "5"


def raise_in_hook(client, certificate):
    assert client.mail(b"hello\r\n", sender="raised@x.example")[0] == "4"


def start_tls(client, certificate):
    client.hello()
    client.starttls(certificate)
    assert client.ask("EHLO client.example").startswith("250-")


def fail_tls(client, certificate):
    client.hello()
    client.ask("STARTTLS")
    client.send(b"not TLS at all\r\n")
    client.gone()


def log_in(client, certificate):
    client.hello()
    assert client.ask(f"AUTH PLAIN {PLAIN}").startswith("235 ")


def fail_to_log_in(client, certificate):
    client.hello()
    assert client.ask(f"AUTH PLAIN {WRONG}").startswith("535 ")
    assert client.ask("AUTH PLAIN").startswith("334 ")
    assert client.ask("*").startswith("501 ")  # it is the client that broke off
    assert client.ask(f"AUTH PLAIN {WRONG}").startswith("535 ")


def be_late(client, certificate):
    client.hello()
    assert client.reply().startswith("421 4.4.2 ")


MOVES = {
    "nothing": (with_client(lambda client, certificate: client.hello()), {}),
    "a message": (
        with_client(deliver_two),
        {"messages": 1, "recipients": 2, "octets": 7},
    ),
    "a refused message": (with_client(refuse), {"refused_messages": 1}),
    "a fault": (with_client(raise_in_hook), {"refused_messages": 1, "faults": 1}),
    "TLS": (with_client(start_tls), {"tls": 1}),
    "failed TLS": (with_client(fail_tls), {"failed_tls": 1}),
    "AUTH": (with_client(log_in), {"auth": 1}),
    "failed AUTH": (with_client(fail_to_log_in), {"failed_auth": 2}),
}


def outcome_of_sender(sender, recipients, data):
    if sender.local == "refused":
        return False
    if sender.local == "raised":
        raise KeyError
    return None


@pytest.mark.parametrize("name", MOVES)
def test_each_counter_counts(serve, certificate, name):
    server = serve(
        deliver=outcome_of_sender,
        tls=certificate,
        users={"tim": PASSWORD},
        auth_require_tls=False,
    )
    action, change = MOVES[name]
    for n in range(1, 3):
        action(server, certificate)
        until(lambda: not server.crowd.threads, "the end of the session")
        wanted = {"connections": n, **{key: count * n for key, count in change.items()}}
        assert moved(dict.fromkeys(server.stats(), 0), server.stats()) == wanted


def test_sessions_and_mail_data_of_now_are_counted(serve, connect):
    server = serve(trace=False)
    client, idle = connect(server), connect(server)
    idle.hello()
    client.to_data()
    client.send(b"x" * 5_000)
    until(lambda: server.stats()["memory"] > 4_900, "mail data")
    assert server.stats()["sessions"] == 2
    assert server.stats()["spool"] == 0
    client.send(b"\r\n.\r\n")
    assert client.reply().startswith("250 ")
    client.close()
    idle.close()
    until(lambda: server.stats()["sessions"] == 0, "the end of the sessions")
    assert server.stats()["memory"] == 0
    assert server.stats()["octets"] == 5_002


def test_counts_of_what_comes_and_is_late(serve, connect):
    server = serve(limits=Limits(command_timeout=0.2, connections=1))
    client = connect(server)
    client.hello()
    assert connect(server).gone().startswith(b"421 ")
    be_late_reply = client.reply()
    assert be_late_reply.startswith("421 4.4.2 ")
    client.close()
    until(lambda: not server.crowd.threads, "the end of the session")
    assert moved(dict.fromkeys(server.stats(), 0), server.stats()) == {
        "connections": 1,
        "turned_away": 1,
        "timeouts": 1,
    }


def test_counts_of_many_sessions_add_up(serve, certificate):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    server = serve(
        deliver=outcome_of_sender,
        tls=certificate,
        users={"tim": PASSWORD},
        auth_require_tls=False,
        trace=False,
    )
    failures = []

    def work(number):
        try:
            with Client(server) as client:
                if number % 2:
                    client.hello()
                    client.starttls(certificate, CONTEXT)
                    client.ask("EHLO client.example")
                    assert client.ask(f"AUTH PLAIN {PLAIN}").startswith("235 ")
                    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
                    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
                    assert client.ask("DATA").startswith("354 ")
                    assert client.ask("hello\r\n.").startswith("250 ")
                else:
                    assert client.mail(b"hello\r\n", sender="refused@x.example")[0] == "5"
                client.ask("QUIT")
        except BaseException as error:
            failures.append(error)
            raise

    CONTEXT = trusting(certificate)
    try:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
    finally:
        sys.setswitchinterval(interval)
    assert not failures
    until(lambda: not server.crowd.threads, "the end of the sessions")
    assert moved(dict.fromkeys(server.stats(), 0), server.stats()) == {
        "connections": 50,
        "messages": 25,
        "recipients": 25,
        "octets": 25 * 7,
        "refused_messages": 25,
        "tls": 25,
        "auth": 25,
    }


def test_many_clients_that_had_to_go_make_few_lines(serve, connect, caplog):
    server = serve(limits=Limits(connections=1))
    assert connect(server).hello()
    start = time.monotonic()
    for _ in range(200):
        with Client(server) as client:
            assert client.gone().startswith(b"421 ")
    took = time.monotonic() - start
    warning = "clients had to go: "

    def told():
        texts = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
        return [read(text[len(warning) :]) for text in texts if text.startswith(warning)]

    until(lambda: sum(int(each["turned_away"]) for each in told()) == 200, "the log", SOON)
    assert len(told()) <= 2 + took / 0.5
    assert all(each["turned_away_by_address"] == "0" for each in told())
    server.stop()
    assert sum(int(each["turned_away"]) for each in told()) == 200


def test_clients_that_had_to_go_at_last_are_told_of_at_the_stop(serve, connect, caplog):
    server = serve(limits=Limits(connections=1))
    assert connect(server).hello()
    with Client(server) as client:
        assert client.gone().startswith(b"421 ")
    server.stop()
    until(lambda: caplog.text.count("clients had to go: turned_away=1 ") == 1, "the log")


# -- the command line ------------------------------------------------------------------------


@pytest.fixture
def counting(tmp_path, no_leaks):
    """Run the command line with ``--stats``: give the process, its port and its lines on stderr."""
    errors = tmp_path / "errors"
    started = []

    def make(*arguments):
        with errors.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "smtpd_sync", "127.0.0.1:0", "-q", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        started.append(process)
        port = int(process.stdout.readline().rpartition(b":")[2])
        return process, port, lambda: errors.read_text("utf-8").splitlines()

    yield make
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def send(port):
    with smtplib.SMTP("127.0.0.1", port, timeout=DEADLINE) as client:
        client.sendmail("a@x.example", ["b@y.example", "c@y.example"], b"hello\r\n")


needs_signals = pytest.mark.skipif(
    not hasattr(signal, "SIGUSR1"), reason="the platform has no SIGUSR1"
)


@needs_signals
def test_stats_are_printed_at_the_signal_and_at_the_end(counting):
    process, port, errors = counting("--stats")
    send(port)
    process.send_signal(signal.SIGUSR1)
    (first,) = until(errors, "the counts")
    send(port)  # it still serves
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE) == 0
    assert len(errors()) == 2
    shown = [read(line) for line in (first, errors()[1])]
    for number, stats in enumerate(shown, 1):
        assert list(stats) == [*COUNTERS, "sessions", "memory", "spool"]
        assert all(value.isdecimal() for value in stats.values())
        assert (stats["messages"], stats["recipients"]) == (str(number), str(2 * number))
    assert shlex.split(first) == first.split(" ")


@needs_signals
def test_stats_under_load_and_many_signals(counting):
    process, port, errors = counting("--stats")
    for _ in range(20):
        process.send_signal(signal.SIGUSR1)
        send(port)
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE) == 0
    shown = [read(line) for line in errors()]
    assert [int(each["messages"]) for each in shown] == sorted(
        int(each["messages"]) for each in shown
    )
    assert shown[-1]["messages"] == "20"
    assert 2 <= len(shown) <= 21


def test_no_stats_where_nobody_asked(counting):
    process, port, errors = counting()
    send(port)
    process.send_signal(signal.SIGTERM)
    process.wait(DEADLINE)
    assert errors() == []


def test_readme_names_each_count():
    text = (pathlib.Path(ROOT) / "README.rst").read_text("utf-8")
    assert all(f"``{name}``" in text for name in COUNTERS)
