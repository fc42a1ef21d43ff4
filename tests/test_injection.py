"""Injection: hostile text in names, addresses, identities and hooks forges no reply, field or log.

A real server over a socket. NUL and control characters never reach a reply, a header or the message
of a log record (CWE-93, CWE-117).
"""

import base64
import logging
import re

import pytest
from support import until

from smtpd_sync import Disconnect, Limits, Reject, Reply, SMTPHandler

HOSTILE = {
    "CRLF": "a\r\n250 2.0.0 evil",
    "LF": "a\nX-Evil: yes",
    "CR": "a\rX-Evil: yes",
    "CRLF CRLF": "a\r\n\r\nbody",
    "NUL": "a\0b",
    "ESC": "\x1b[31m\x1b[2Jred",
    "BEL BS DEL": "\x07\x08\x7f",
    "VT FF": "a\x0b\x0cb",
    "NEL": "a\x85b",
    "CSI": "a\x9b2Jb",
    "LS PS": "a\u2028b\u2029c",
    "RLO": "a\u202egnp.exe",
    "format": "%s%n{0}%(x)s",
}
texts = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")
PATIENT = Limits(errors=1000, junk_commands=1000, auth_failures=100)
REPLY_LINE = re.compile(rb"[2-5][0-9][0-9][ -][ -~]*\Z")


@pytest.fixture(autouse=True)
def clean_log(caplog):
    """Check that no record of a test, of any level, has a control character in its message."""
    caplog.set_level(logging.DEBUG)
    yield
    found = [record.getMessage() for record in caplog.get_records("call")]
    assert found, "nothing was logged at all"
    assert [text for text in found if CONTROL.search(text)] == []


def converse(client, lines):
    """Send lines one by one, each with its reply; give the replies as octets, checked by line."""
    said = []
    for line in lines:
        client.send(line.encode("utf-8", "surrogateescape") + b"\r\n")
        said.append(client.reply())
        if not said[-1] or said[-1].startswith("421"):
            break
    for reply in said:
        for each in reply.split("\n") if reply else []:
            assert REPLY_LINE.match(each.encode()), each
    return said


def quit_politely(server, client):
    """End the session: the last record is of its end."""
    client.close()
    until(lambda: not server.crowd.sessions, "the end of the session")


def lines_of(text):
    """Each line that a client can make of the text, in its commands, one at a time."""
    text = text.replace("\r\n", "\r")  # else it would be two commands, which is no injection
    yield f"EHLO {text}"
    yield f"HELO [{text}]"
    yield "EHLO client.example"
    yield f"VRFY {text}"
    yield f"EXPN {text}"
    yield f"NOOP {text}"
    yield f"HELP {text}"
    yield f"x {text}"
    for address in (f"{text}@x.example", f'"{text}"@x.example', f"a@{text}.example"):
        yield f"MAIL FROM:<{address}> SMTPUTF8"
        yield "RSET"
    yield f"MAIL FROM:<a@x.example> ENVID={text}"
    yield "MAIL FROM:<a@x.example> SMTPUTF8"
    yield f'RCPT TO:<"{text}"@y.example>'
    yield f"RCPT TO:<{text}>"


class Curious(SMTPHandler):
    """Says all it hears back, and accepts it."""

    def verify(self, text):
        return f"you said: {text}"

    def expand(self, text):
        return Reply(250, text)

    def deliver(self, sender, recipients, data):
        return f"{sender} {recipients}"


@texts
def test_what_a_client_says_forges_neither_reply_nor_log(serve, connect, text):
    server = serve(Curious, limits=PATIENT)
    client = connect(server)
    client.reply()
    lines = list(lines_of(text))
    said = converse(client, lines)
    assert len(said) == len(lines), said
    assert client.ask("NOOP").startswith("250 2.0.0 OK"), "the replies are not in step"
    quit_politely(server, client)


@texts
def test_identity_forges_neither_reply_nor_log(serve, connect, text):
    seen = []

    def authenticate(credentials):
        seen.append((credentials.username, credentials.authzid))
        logging.getLogger("app").info("user %s as %s", credentials.username, credentials.authzid)
        return Reply(535, f"not you, {credentials.username}", "5.7.8")

    server = serve(
        authenticate=authenticate,
        auth_require_tls=False,
        mechanisms=["PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"],
        limits=PATIENT,
    )
    client = connect(server)
    client.hello()
    responses = {
        "PLAIN": [f"{text}\0{text}\0secret", f"\0{text}\0secret", f"{text}\0tim\0secret"],
        "LOGIN": [text],
        "XOAUTH2": [f"user={text}\1auth=Bearer abc\1\1"],
        "OAUTHBEARER": [f"n,a={text},\1auth=Bearer abc\1\1"],
    }
    for mechanism, each in responses.items():
        for response in each:
            encoded = base64.b64encode(response.encode()).decode()
            reply = converse(client, [f"AUTH {mechanism} {encoded}"])[0]
            while reply.startswith("334"):
                reply = converse(client, ["c2VjcmV0"])[0]
            assert reply[:3] in ("535", "501"), reply
            reply = converse(client, [f"AUTH {mechanism} {text!a}"])[0]
            assert reply.startswith("501"), reply
    assert client.ask("NOOP").startswith("250 2.0.0 OK"), "the replies are not in step"
    assert [pair for pair in seen if CONTROL.search("".join(pair))] == []
    quit_politely(server, client)


def reject(text):
    raise Reject(550, text, "5.7.1")


def disconnect(text):
    raise Disconnect(421, text)


def fail(text):
    raise RuntimeError(text)


REFUSALS = {
    "Reply": lambda text: Reply(550, text, "5.7.1"),
    "Reject": reject,
    "Disconnect": disconnect,
    "Exception": fail,
}
HOOKS = ["validate_helo", "validate_sender", "validate_recipient", "validate_data", "deliver"]
TALK = ["EHLO client.example", "MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>", "DATA"]
TALK += ["hello\r\n.", "NOOP"]


@texts
@pytest.mark.parametrize("how", REFUSALS)
@pytest.mark.parametrize("hook", HOOKS)
def test_text_of_a_refusal_splits_no_reply(serve, connect, hook, how, text):
    def refuse(*_):
        return REFUSALS[how](text)

    server = serve(**{hook: refuse})
    client = connect(server)
    client.reply()
    code, at = {"Disconnect": "421", "Exception": "451"}.get(how, "550"), HOOKS.index(hook)
    (said,) = converse(client, TALK[: at + 1])[at:]
    assert {line[:3] for line in said.split("\n")} == {code}, said
    assert all(line[3] == "-" for line in said.split("\n")[:-1])
    if how != "Disconnect":
        assert client.ask("NOOP").startswith("250 2.0.0 OK"), "the replies are not in step"
    quit_politely(server, client)


@texts
@pytest.mark.parametrize("hook", ["deliver", "verify", "expand"])
def test_text_of_a_250_splits_no_reply(serve, connect, hook, text):
    server = serve(**{hook: lambda *_: text})
    client = connect(server)
    client.reply()
    lines = {"deliver": TALK[:-1], "verify": [TALK[0], "VRFY b"], "expand": [TALK[0], "EXPN b"]}
    said = converse(client, lines[hook])[-1]
    assert {line[:3] for line in said.split("\n")} == {"250"}
    assert client.ask("NOOP").startswith("250 2.0.0 OK"), "the replies are not in step"
    quit_politely(server, client)


ADDRESSES = [
    '"a>; Fri, 1 Jan 1990 00:00:00 +0000 X-Evil: yes"@y.example',
    '"a(b"@y.example',
    '"a)b; by evil.example"@y.example',
    '"a\\"b\\\\"@y.example',
    '"a<b>c"@y.example',
    '" "@y.example',
    '""@y.example',
    "b@[IPv6:2001:db8::1]",
    "a+b=c?=?utf-8?q?=0D=0A?=@y.example",
    "\u202egnp.exe@y.example",
    "gr\u00fcezi@b\u00fccher.example",
    "a" * 400 + "@y.example",
]
FIELD = re.compile(
    r"Received: from client\.example \(\[127\.0\.0\.1\]\)\r\n"
    r"\tby mx\.example with (?:UTF8SMTP|ESMTP) id [0-9a-z]+\r\n"
    r"\tfor <([^\r\n]*)>;\r\n"
    r"\t[A-Z][a-z]{2}, [0-9]{1,2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} [+-][0-9]{4}\r\n"
    r"Subject: x\r\n\r\nhello\r\n\Z"
)


@pytest.mark.parametrize("address", ADDRESSES, ids=ascii)
def test_address_does_not_break_out_of_the_received_field(serve, connect, inbox, address):
    server = serve()
    client = connect(server)
    client.reply()
    lines = [*TALK[:1], "MAIL FROM:<a@x.example> SMTPUTF8", f"RCPT TO:<{address}>", "DATA"]
    said = converse(client, [*lines, "Subject: x\r\n\r\nhello\r\n."])
    assert said[-1].startswith("250 "), said
    match = FIELD.match(inbox.data.decode())
    assert match, inbox.data
    assert not CONTROL.search(match[1])
    quit_politely(server, client)


@texts
def test_name_that_a_proxy_passes_on_does_not_break_out_of_the_field(serve, connect, inbox, text):
    server = serve(xclient=["127.0.0.0/8"])
    client = connect(server)
    client.hello()
    encoded = "".join(f"+{ord(c):02X}" for c in text if c < "\u0100")
    converse(client, [f"XCLIENT HELO={encoded} NAME={encoded} LOGIN={encoded}"])
    converse(client, [*TALK[:4], "Subject: x\r\n\r\nhello\r\n."])
    field, _, rest = inbox.data.partition(b"Subject: ")
    assert rest == b"x\r\n\r\nhello\r\n"
    first, *folded = field.decode().split("\r\n")[:-1]
    assert first.startswith("Received: from ")
    assert all(line.startswith("\t") for line in folded)
    assert not CONTROL.search("".join([first, *(line[1:] for line in folded)]))
    quit_politely(server, client)


def test_header_of_a_proxy_that_is_hostile_is_logged_without_its_octets(serve, connect, caplog):
    server = serve(proxy_protocol=["127.0.0.0/8"])
    for header in (b"PROXY TCP4 1.1.1.1\r\nX\x1b[2J", b"\x1b[31mPROXY\r\n\0", b"PROXY \0\n" * 20):
        client = connect(server)
        client.send(header)
        client.gone()
        quit_politely(server, client)
    assert any("proxy" in record.getMessage().lower() for record in caplog.records)
