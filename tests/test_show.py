"""How messages are shown: readable, complete, and harmless to a terminal."""

import email.policy
import io
import json
from email.message import EmailMessage

import pytest

from smtpd_sync import Envelope, Peer, Session
from smtpd_sync.envelope import TLS
from smtpd_sync.show import FORMATS
from smtpd_sync.syntax import Mailbox


@pytest.fixture
def envelope():
    """Make an envelope around octets."""

    def make(data, sender="a@x.example", recipients=("b@y.example",), tls=None):
        session = Session(peer=Peer("192.0.2.1", 4711))
        session.helo, session.esmtp, session.tls = "client.example", True, tls
        made = Envelope(session, Mailbox.parse(sender) if sender else Mailbox())
        made.id = "id4711"
        made.recipients = [Mailbox.parse(recipient) for recipient in recipients]
        made.recipient_parameters = [{} for _ in recipients]
        made.sink = io.BytesIO(data)
        return made

    return make


def multipart():
    message = EmailMessage(policy=email.policy.SMTP)
    message["From"] = "Jo <a@x.example>"
    message["To"] = "B <b@y.example>"
    message["Cc"] = "c@y.example"
    message["Subject"] = "Gr\u00fc\u00dfe"
    message.set_content("the text, gr\u00fcn\n")
    message.add_alternative("<p>the markup</p>\n", subtype="html")
    message.add_attachment(b"\0" * 1234, "image", "png", filename="b\u00fcro.png")
    message.add_attachment("a,b\n", "csv", filename="table.csv")
    return message.as_bytes()


def human(envelope):
    return FORMATS["human"](envelope).decode()


def as_json(envelope):
    octets = FORMATS["json"](envelope)
    assert octets.count(b"\n") == 1
    assert octets.endswith(b"\n")
    return json.loads(octets)


def test_human_shows_envelope_headers_text_and_attachments(envelope):
    recipients = ("b@y.example", "hidden@z.example")
    text = human(envelope(multipart(), recipients=recipients))
    for piece in (
        "id4711",
        "192.0.2.1",
        "client.example",
        "<a@x.example>",
        "<b@y.example>",
        "Subject: Gr\u00fc\u00dfe",
        "the text, gr\u00fcn",
        "b\u00fcro.png, image/png, 1234 octets",
        "table.csv, text/csv, ",
    ):
        assert piece in text, piece
    assert "<p>" not in text  # the plain alternative was shown


def test_human_marks_recipients_that_no_field_names(envelope):
    recipients = ("b@y.example", "C@Y.example", "hidden@z.example")
    lines = human(envelope(multipart(), recipients=recipients)).split("\n")
    marked = [line for line in lines if "in no header field" in line]
    assert len(marked) == 1
    assert "hidden@z.example" in marked[0]


def test_human_shows_the_null_sender(envelope):
    assert "<>" in human(envelope(b"Subject: bounce\r\n\r\n", sender=""))


def test_html_is_shown_where_there_is_no_other_text(envelope):
    text = human(envelope(b"Content-Type: text/html\r\n\r\n<p>only</p>\r\n"))
    assert "<p>only</p>" in text


def test_json_has_everything(envelope):
    data = multipart()
    shown = as_json(
        envelope(data, recipients=("b@y.example", "h@z.example"), tls=TLS("TLSv1.3", "X", 256))
    )
    assert shown["id"] == "id4711"
    assert shown["peer"] == "192.0.2.1"
    assert shown["helo"] == "client.example"
    assert shown["tls"] == "TLSv1.3"
    assert shown["sender"] == "a@x.example"
    assert shown["recipients"] == ["b@y.example", "h@z.example"]
    assert shown["hidden_recipients"] == ["h@z.example"]
    assert shown["size"] == len(data)
    assert ["Subject", "Gr\u00fc\u00dfe"] in shown["headers"]
    assert "the text, gr\u00fcn" in shown["text"]
    assert shown["attachments"][0] == {"name": "b\u00fcro.png", "type": "image/png", "size": 1234}
    assert shown["attachments"][1]["name"] == "table.csv"


def test_raw_is_the_message_as_it_is(envelope):
    data = b"Subject: \x1b[31m\r\n\r\n\xff\x00"
    assert FORMATS["raw"](envelope(data)) == data


ESCAPES = "\x1b[31mred\x1b]0;title\x07 \x9b31m \x00\x08\x7f \u202eevil\u2066 \u2028"


@pytest.mark.parametrize(
    "data",
    [
        f"Subject: {ESCAPES}\r\n\r\n{ESCAPES}\r\n".encode(),
        b"Subject: =?utf-8?b?" + b"G1szMW0=" + b"?=\r\n\r\n",
        b"Subject: =?utf-8?q?=1B[31m=0D=0A=9B?=\r\nFrom: =?utf-8?q?=1B[2J?= <a@x>\r\n\r\n",
        b"\x1b[31m: name\r\n\r\n\x1b[0m\x9b\r\n",
        b'Content-Type: image/png; name="\x1b[31m"\r\n\r\nAAAA',
        b"Content-Disposition: attachment; filename*=utf-8''%1B%5B31m%0A%9B\r\n\r\nx",
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        b"G1szMW3CmzMxbQ==\r\n",
        b"Content-Type: text/plain; charset=latin-1\r\n\r\n\x9b31m\r\n",
        b"Content-Type: text/plain; charset=utf-7\r\n\r\n+ABsAWwAzADEAbQ-\r\n",
    ],
)
def test_human_lets_no_control_character_through(envelope, data):
    shown = human(envelope(data, sender='"\u202e"@x.example'))
    assert not [c for c in shown if not (c.isprintable() or c in "\n\t")]


def test_human_header_cannot_forge_lines(envelope):
    data = b"Subject: =?utf-8?q?hi=0D=0Arecipient:  <forged@x.example>?=\r\n\r\n"
    lines = human(envelope(data)).split("\n")
    assert not [line for line in lines if line.startswith("recipient:  <forged")]


CHARSETS = [
    *("nonsense", "rot13", "hex", "base64", "zlib", "idna", "punycode", "undefined"),
    *("unicode_escape", "raw_unicode_escape", "utf-16", "utf-32", "utf-7", "utf-8-sig", "mbcs"),
    *("", "8bit", "us-ascii", "unknown-8bit", "iso-2022-jp", "x" * 500, "../../etc", "a b", "\xff"),
]
BROKEN = [
    *(
        b"Content-Type: text/plain; charset=%b\r\n\r\n\xff\xfegr\xc3\xbcn %%41 +- \\x =?\r\n"
        % charset.encode("latin-1")
        for charset in CHARSETS
    ),
    *(
        b'Content-Type: text/plain; charset="%b"\r\n\r\n\xff\xfe\\udead\r\n'
        % charset.encode("latin-1")
        for charset in CHARSETS
    ),
    b"",
    b"\r\n",
    b"no header at all",
    b": no name\r\n\r\n",
    b" folded from nothing\r\n\r\n",
    b"Subject\r\n\r\n",
    b"Subject: \xff\xfe\x80gr\xfcn\r\nFrom: \xe4\xf6 <\xfc@\xdf>\r\nTo: \xff\r\n\r\n\xff\r\n",
    b"To: (((((((\r\nCc: <<<<>>>>\r\n\r\n",
    b"To: =?utf-8?q?=FF?= <b@y.example>, =?x?b?!!!?=, =?utf-8?b?\r\n\r\n",
    b"To: undisclosed-recipients:;\r\nCc: group: a@x, b@x;\r\nCc: @,;:\r\n\r\n",
    b'To: "unfinished\r\n\r\n',
    b"To: " + b"a@x.example, " * 2000 + b"\r\n\r\n",
    b"To: " + b"(" * 2000 + b"\r\n\r\n",
    b"Date: never\r\nMIME-Version: x\r\nMessage-ID: <\r\nMessage-ID: >\r\n\r\n",
    b"Message-ID: <abc@[]>\r\nMessage-ID: []\r\nReferences: <<\r\n\r\n",
    b"Content-Type:\r\n\r\n",
    b"Content-Type: ;\r\n\r\n",
    b"Content-Type: /\r\n\r\n",
    b"Content-Type: text\r\n\r\n",
    b"Content-Type: text/\xff\r\n\r\n",
    b"Content-Type: text/plain; charset\r\n\r\n",
    b"Content-Type: text/plain; charset*=utf-8''%FF%\r\n\r\nx",
    b"Content-Type: text/plain; charset*0*=''; charset*2=x; charset*1=\r\n\r\nx",
    b"Content-Type: text/plain; charset*=nonsense''utf-8\r\n\r\nx",
    b"Content-Type: text/plain; name*=idna''%FF; name*0*=undefined'x'%FF\r\n\r\nx",
    b"Content-Disposition: attachment; filename*0*=undefined''%FF; filename*1*=x\r\n\r\nx",
    b"Content-Disposition: attachment; filename*=''\r\n\r\nx",
    b"Content-Disposition: attachment; filename*=idna''%FF%FF\r\n\r\nx",
    b"Content-Disposition: ;;;=\r\n\r\nx",
    b'Content-Disposition: attachment; filename="=?undefined?q?x?="\r\n\r\nx',
    b"Content-Transfer-Encoding: nonsense\r\n\r\nx",
    b"Content-Transfer-Encoding: base64\r\n\r\n!!!\xff===A",
    b"Content-Transfer-Encoding: quoted-printable\r\n\r\n=ZZ=\xff=",
    b"Content-Transfer-Encoding: uuencode\r\n\r\nbegin 644 x\r\n!!!!\r\n\xff\r\n",
    b"Content-Transfer-Encoding:\r\n\r\nx",
    b"Content-Transfer-Encoding: \xff\r\n\r\nx",
    b"Content-Type: multipart/mixed\r\n\r\nno boundary\r\n",
    b"Content-Type: multipart/mixed; boundary=x\r\n\r\nno part\r\n",
    b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n--x\r\n--x--\r\n--x\r\n",
    b'Content-Type: multipart/mixed; boundary=""\r\n\r\n--\r\n\r\nx\r\n----\r\n',
    b"Content-Type: multipart/mixed; boundary*=undefined''%FF\r\n\r\n--x\r\n",
    b"Content-Type: multipart/mixed; boundary=\xff\r\n\r\n--\xff\r\n\r\nx\r\n--\xff--\r\n",
    b"Content-Type: multipart/digest; boundary=x\r\n\r\n--x\r\n\r\nFrom: a\r\n\r\nx\r\n--x--\r\n",
    b"Content-Type: multipart/mixed; boundary=x\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    b"--x\r\n\r\nx\r\n--x--\r\n",
    b"Content-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\ninner text\r\n",
    b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\nU3ViamVjdDogeA0K",
    b"Content-Type: message/rfc822; name=x\r\nContent-Disposition: attachment\r\n\r\n",
    b"Content-Type: message/delivery-status\r\n\r\nStatus: 5.1.1\r\n\r\nX: y\r\n",
    b"Content-Type: message/external-body; access-type=x\r\n\r\nX: y\r\n",
    b"Content-Type: message/partial\r\n\r\n",
    b"Content-Type: message/rfc822\r\n\r\n" * 400,
    b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(400)
    ),
]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_broken_mail_is_shown_all_the_same(envelope, form, number):
    assert FORMATS[form](envelope(BROKEN[number])) or form == "raw"
