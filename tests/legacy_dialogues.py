"""What clients say to the old ``smtpd``, and what it answers: tried on ours, and side by side.

    python3 tests/legacy_dialogues.py old|ours

prints, as JSON, what the old modules of this Python or ours make of each dialogue. A dialogue is
the options of the server, what the client sends, and the replies. Where what is sent does not end
with CRLF, nothing is read behind it.
"""

import contextlib
import json
import socket
import sys
import threading

OK = "250 OK"
SYNTAX = "501 Syntax: "
FROM, TO = "MAIL FROM: <address>", "RCPT TO: <address>"
MORE = " [SP <mail-parameters>]"
HELLO = ("HELO client", "250 mx.example")
GO = "354 End data with <CR><LF>.<CR><LF>"
MAIL = (HELLO, ("MAIL FROM:<a@x.example>", OK), ("RCPT TO:<b@y.example>", OK), ("DATA", GO))
SUPPORTED = "Supported commands: EHLO HELO MAIL RCPT DATA RSET NOOP QUIT VRFY"
TEXT, UTF8 = {"decode_data": True}, {"enable_SMTPUTF8": True}
UNKNOWN = "555 MAIL FROM parameters not recognized or not implemented"
VRFY = "252 Cannot VRFY user, but will accept message and attempt delivery"


def ehlo(*more):
    lines = ["250-mx.example", *(f"250-{each}" for each in more), "250 HELP"]
    return "EHLO client", "\n".join(lines)


EHLO = ehlo("SIZE 33554432", "8BITMIME")

# Name: (options, (sent, reply), ...). Both answer so.
DIALOGUES = {
    "no greeting": (
        {},
        ("MAIL FROM:<a@x.example>", "503 Error: send HELO first"),
        ("RCPT TO:<a@x.example>", "503 Error: send HELO first"),
        ("DATA", "503 Error: send HELO first"),
        ("NOOP", OK),
        ("RSET", OK),
        ("VRFY a@x.example", VRFY),
    ),
    "greetings": (
        {},
        ("HELO", SYNTAX + "HELO hostname"),
        ("EHLO", SYNTAX + "EHLO hostname"),
        EHLO,
        ("EHLO client", "503 Duplicate HELO/EHLO"),
        ("HELO client", "503 Duplicate HELO/EHLO"),
    ),
    "helo": ({}, HELLO, ("EHLO client", "503 Duplicate HELO/EHLO")),
    "offers of text": (TEXT, ehlo("SIZE 33554432")),
    "offers of UTF-8": (UTF8, ehlo("SIZE 33554432", "8BITMIME", "SMTPUTF8")),
    "offers without a size": ({"data_size_limit": None}, ehlo("8BITMIME")),
    "small commands": (
        {},
        ("NOOP", OK),
        ("noop", OK),
        ("NOOP hi", SYNTAX + "NOOP"),
        ("RSET hi", SYNTAX + "RSET"),
        ("VRFY", SYNTAX + "VRFY <address>"),
        ("EXPN", "502 EXPN not implemented"),
        ("EXPN list", "502 EXPN not implemented"),
        ("", "500 Error: bad syntax"),
        ("FOO bar", '500 Error: command "FOO" not recognized'),
        ("foo", '500 Error: command "FOO" not recognized'),
    ),
    "help": (
        {},
        ("HELP", f"250 {SUPPORTED}"),
        ("HELP SPAM", f"501 {SUPPORTED}"),
        ("HELP mail", f"250 Syntax: {FROM}"),
        ("HELP RCPT", f"250 Syntax: {TO}"),
        ("HELP VRFY", "250 Syntax: VRFY <address>"),
        ("HELP QUIT", "250 Syntax: QUIT"),
        EHLO,
        ("HELP MAIL", f"250 Syntax: {FROM}{MORE}"),
        ("HELP RCPT", f"250 Syntax: {TO}{MORE}"),
        ("HELP EHLO", "250 Syntax: EHLO hostname"),
    ),
    "quit": ({}, ("QUIT bye bye", "221 Bye"), ("", None)),
    "syntax after HELO": (
        {},
        HELLO,
        ("MAIL", SYNTAX + FROM),
        ("MAIL from a@x.example", SYNTAX + FROM),
        ("MAIL from:", SYNTAX + FROM),
        ("MAIL FROM:<a@x.example> SIZE=1", SYNTAX + FROM),
        ("MAIL from:   <a@x.example>", OK),
        ("RCPT to a@x.example", SYNTAX + TO),
        ("RCPT to: <a@x.example>", OK),
        ("RCPT TO:<a@x.example> A=b", SYNTAX + TO),
    ),
    "syntax after EHLO": (
        {},
        EHLO,
        ("MAIL", SYNTAX + FROM + MORE),
        ("MAIL from a@x.example", SYNTAX + FROM + MORE),
        ("MAIL FROM:<a@x.example> SIZE=no", SYNTAX + FROM + MORE),
        ("MAIL FROM:<a@x.example> A-B=c", SYNTAX + FROM + MORE),
        ("MAIL FROM:<a@x.example> A=", SYNTAX + FROM + MORE),
        ("MAIL FROM:<a@x.example> ham=green", UNKNOWN),
        ("MAIL FROM:<a@x.example> AUTH=<>", UNKNOWN),
        ("MAIL FROM:<a@x.example> SMTPUTF8", UNKNOWN),
        ("MAIL FROM:<a@x.example> BODY=x", "501 Error: BODY can only be one of 7BIT, 8BITMIME"),
        (
            "MAIL FROM:<a@x.example> SIZE=33554433",
            "552 Error: message size exceeds fixed maximum message size",
        ),
        ("MAIL FROM:<a@x.example> SIZE=10 body=8bitmime", OK),
        ("RCPT to a@x.example", SYNTAX + TO + MORE),
        (
            "RCPT TO:<b@y.example> NOTIFY=NEVER",
            "555 RCPT TO parameters not recognized or not implemented",
        ),
    ),
    "text has no BODY": (TEXT, ehlo("SIZE 33554432"), ("MAIL FROM:<a> BODY=8BITMIME", UNKNOWN)),
    "parameters of UTF-8": (
        UTF8,
        ehlo("SIZE 33554432", "8BITMIME", "SMTPUTF8"),
        ("MAIL FROM:<a@x.example> SMTPUTF8=1", "501 Error: SMTPUTF8 takes no arguments"),
        ("MAIL FROM:<Jőhn> size=20 body=8bitmime smtputf8", OK),
        ("RCPT TO:<Sálly@exämple>", OK),
        ("DATA", GO),
        ("Grüße\r\n.", "250 done"),
    ),
    "order": (
        {},
        HELLO,
        ("RCPT TO:<b@y.example>", "503 Error: need MAIL command"),
        ("DATA", "503 Error: need RCPT command"),
        ("MAIL FROM:<a@x.example>", OK),
        ("MAIL FROM:<a@x.example>", "503 Error: nested MAIL command"),
        ("DATA", "503 Error: need RCPT command"),
        ("RCPT TO:<b@y.example>", OK),
        ("DATA now", SYNTAX + "DATA"),
        ("RSET", OK),
        ("RCPT TO:<b@y.example>", "503 Error: need MAIL command"),
    ),
    "addresses": (
        {},
        EHLO,
        ("MAIL FROM:<>", OK),
        ("RCPT TO:John", OK),
        ("RCPT TO:<John>", OK),
        ("RCPT TO:a.b+c@y.example", OK),
        ('RCPT TO: <"Fred Blogs"@y.example>', OK),
        ('RCPT TO: "Fred Blogs"@y.example', OK),
        ("RCPT TO:<@one,@two:c@y.example>", OK),
        ("RCPT TO:<c@[192.0.2.1]>", OK),
        ("RCPT TO:<b@y.example>", OK),
        ("RCPT TO:<b@y.example>", OK),
        ("DATA", GO),
        ("hi\r\n.", "250 done"),
    ),
    "quoted sender with a parameter": (
        {},
        EHLO,
        ('MAIL FROM: "Fred Blogs"@x.example SIZE=1000', OK),
        ("RSET", OK),
        ('MAIL FROM: <"Fred Blogs"@x.example> SIZE=1000', OK),
    ),
    "long lines": (
        {},
        HELLO,
        (f"MAIL FROM:<{'a' * 501}>", "500 Error: line too long"),
        (f"MAIL FROM:<{'a' * 490}>", OK),
        ("x" * 100_000, "500 Error: line too long"),
        ("NOOP", OK),
    ),
    "long lines after EHLO": (
        {},
        EHLO,
        (f"MAIL FROM:<{'a' * 530}@x.example> SIZE=1234", "500 Error: line too long"),
        (f"MAIL FROM:<{'a' * 480}@x.example> SIZE=1234", OK),
        (f"RCPT TO:<{'a' * 511}>", "500 Error: line too long"),
    ),
    "a message": ({}, *MAIL, ("Subject: hi\r\n\r\n..dot\r\n.. .\r\nend\r\n.", "250 done")),
    "a message as text": (TEXT, *MAIL, ("Subject: hi\r\n\r\n..Grüße\r\n.", "250 done")),
    "bytes of any kind": ({}, *MAIL, (b"\xff\x00\r\n\xc3\r\n.", "250 done")),
    "bare line ends": ({}, *MAIL, ("a\nb\rc\n.\nd\r\n\r\n.", "250 done")),
    "two messages": ({}, *MAIL, ("one\r\n.", "250 done"), *MAIL[1:], ("two\r\n.", "250 done")),
    "replies of its own": (
        {},
        *MAIL,
        ("accept\r\n.", OK),
        *MAIL[1:],
        ("refuse\r\n.", "550 not this"),
        *MAIL[1:],
        ("accept\r\n.", OK),
    ),
    "a pipeline": (
        {},
        HELLO,
        (
            "MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\nhi\r\n.\r\nNOOP",
            [OK, OK, GO, "250 done", OK],
        ),
    ),
    "size of a message": (
        {"data_size_limit": 10},
        ehlo("SIZE 10", "8BITMIME"),
        *MAIL[1:],
        ("0123456\r\n.", "250 done"),
    ),
}

# Where the old one hung, or dropped the client.
MENDED = {
    "an empty message": ({}, *MAIL, (".", "250 done"), ("NOOP", OK)),
    "an empty message in a pipeline": (
        {},
        *MAIL[:3],
        ("DATA\r\n.\r\nNOOP", [GO, "250 done", OK]),
    ),
    "a message too large": (
        {"data_size_limit": 10},
        *MAIL,
        ("01234567890\r\n.", "552 Error: Too much mail data"),
        *MAIL[1:],
        ("ok\r\n.", "250 done"),
    ),
    "a message far too large": (
        {"data_size_limit": 10},
        *MAIL,
        ("0123456789\r\n" * 10_000 + ".", "552 Error: Too much mail data"),
        ("NOOP", OK),
    ),
    "a command that is not UTF-8": (
        {},
        (b"HELO \xff", "500 Error: bad syntax"),
        (b"\xff", "500 Error: bad syntax"),
        ("NOOP", OK),
    ),
    "a command that is not UTF-8, as text": (
        TEXT,
        (b"HELO \xff", "500 Error: bad syntax"),
        (b"HELO \xc3", "500 Error: bad syntax"),
        HELLO,
    ),
    "a message that is not UTF-8, as text": (
        TEXT,
        *MAIL,
        (b"\xff\r\n.", "554 Error: the message is not UTF-8"),
        *MAIL[1:],
        ("ok\r\n.", "250 done"),
    ),
    "a verb that is no ASCII": ({}, ("Ä", "500 Error: bad syntax")),
    "an argument that is no ASCII": ({}, ("VRFY <ä", "502 Could not VRFY <?"), ("NOOP", OK)),
    "addresses that cannot be": (
        {},
        HELLO,
        ("MAIL FROM:<a@x.example", SYNTAX + FROM),
        ("MAIL FROM:<a b@x.example>", SYNTAX + FROM),
        ("MAIL FROM:<a\0@x.example>", SYNTAX + FROM),
        ('MAIL FROM:<"a@x.example>', SYNTAX + FROM),
        ("MAIL FROM:>", SYNTAX + FROM),
    ),
    "SIZE without a value": ({}, EHLO, ("MAIL FROM:<a> SIZE", SYNTAX + FROM + MORE)),
    "SIZE in another script": ({}, EHLO, ("MAIL FROM:<a> SIZE=²", SYNTAX + FROM + MORE)),
    "a fault of ours": (
        {},
        *MAIL,
        ("raise\r\n.", "451 Error: local error in processing"),
        *MAIL[1:],
        ("ok\r\n.", "250 done"),
    ),
}


def legacy_server(smtpd):
    """Give a class on the ``smtpd`` given, that keeps what it is called with."""

    class Server(smtpd.SMTPServer):
        messages = ()

        def process_message(self, peer, mailfrom, rcpttos, data, **options):
            text = data if isinstance(data, str) else data.decode("latin-1")
            self.messages += ((mailfrom, rcpttos, type(data).__name__, text, options),)
            if text == "raise":
                raise RuntimeError("a fault")
            return {"accept": None, "refuse": "550 not this"}.get(text, "250 done")

    return Server


@contextlib.contextmanager
def served(smtpd, asyncore, options):
    """Serve in a thread; give the server."""
    real, socket.getfqdn = socket.getfqdn, lambda: "mx.example"
    sockets = {}
    server = legacy_server(smtpd)(("127.0.0.1", 0), None, map=sockets, **options)
    over = threading.Event()

    def serve():
        while not over.is_set():
            asyncore.loop(timeout=0.005, map=sockets, count=1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server
    finally:
        over.set()
        thread.join(20)
        asyncore.close_all(sockets)
        socket.getfqdn = real


class Speaker:
    """A client."""

    def __init__(self, server):
        self.connect(server.socket.getsockname())

    @classmethod
    def at(cls, place):
        """Connect to a server that is another process."""
        speaker = object.__new__(cls)
        speaker.connect(place)
        return speaker

    def connect(self, place):
        self.socket = socket.create_connection(place, 20)
        self.file = self.socket.makefile("rb")

    def reply(self):
        """Read a reply; ``None`` at the end."""
        lines = []
        while not lines or lines[-1][3:4] == "-":
            line = self.file.readline().decode()
            if not line:
                return None
            lines.append(line.rstrip("\r\n"))
        return "\n".join(lines)

    def say(self, octets, count=1):
        """Send a line, and read its replies."""
        if isinstance(octets, str):
            octets = octets.encode()
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(octets + b"\r\n")
        replies = [self.reply() for _ in range(count)]
        return replies if count > 1 else replies[0]

    def close(self):
        self.file.close()
        self.socket.close()


def replay(smtpd, asyncore, options, *exchanges):
    """Hold a dialogue; give the replies, and what process_message got."""
    with served(smtpd, asyncore, options) as server:
        speaker = Speaker(server)
        try:
            replies = [speaker.reply()]
            for sent, expected in exchanges:
                replies.append(speaker.say(sent, len(expected) if type(expected) is list else 1))
        finally:
            speaker.close()
        return replies, [list(message) for message in server.messages]


def modules(which):
    """Give (smtpd, asyncore): the ``old`` ones of this Python, or ours."""
    if which == "ours":
        from smtpd_sync.compat import asyncore, smtpd
    else:
        import asyncore
        import smtpd
    return smtpd, asyncore


if __name__ == "__main__":
    found = {name: replay(*modules(sys.argv[1]), *rows) for name, rows in DIALOGUES.items()}
    json.dump(found, sys.stdout)
