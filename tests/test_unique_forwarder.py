"""The example that forwards to a mail host: its rules, the next hop, the log in three languages."""

import re
import signal
import smtplib
import subprocess

import peers
import pytest
from support import DEADLINE, ROOT, Client, Program

EXAMPLE = ROOT / "examples" / "unique_forwarder.py"
LOCALE = ROOT / "examples" / "locale"
MESSAGE = (
    b"From: a@x.example\r\nTo: b@y.example\r\nDate: Mon, 23 Nov 2026 12:00:00 +0000\r\n"
    b"Message-ID: <1@x.example>\r\nSubject: hi\r\n\r\n.hello\r\n"
)


@pytest.fixture
def forwarder(no_leaks):
    """Start the example in front of a port, with a port of its own."""
    started = []

    def make(port, *arguments):
        program = Program(str(EXAMPLE), f"127.0.0.1:{port}", "--listen", "127.0.0.1:0", *arguments)
        started.append(program)
        program.listening_at = program.port()
        return program

    yield make
    for program in started:
        program.__exit__()


def ended(program, number=signal.SIGTERM):
    """End it in order; give the lines of its log, the ids of messages left out."""
    program.signal(number)
    assert program.finish() == 0, program.errors
    lines = program.errors.splitlines()
    return [re.sub(r"\b(?=[a-z]*[0-9])[a-z0-9]{10,}\b", "ID", line) for line in lines]


def connect(program):
    return smtplib.SMTP("127.0.0.1", program.listening_at, "client.example", timeout=DEADLINE)


def send(program, recipients, sender="a@x.example"):
    with connect(program) as client:
        return client.sendmail(sender, recipients, MESSAGE)


# -- rules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_each_recipient_gets_one_copy_and_the_originator_is_kept(serve, inbox, forwarder, number):
    program = forwarder(serve().port)
    assert send(program, ["b@y.example", "c@y.example", "b@Y.example"]) == {}
    ((sender, recipients, data),) = inbox.wait()
    assert (sender, recipients) == ("a@x.example", ["b@y.example", "c@y.example"])
    assert data.endswith(MESSAGE)
    assert ended(program, number) == ["info: ID from <a@x.example> forwarded to 2 recipients"]


@pytest.mark.parametrize(
    ("allow", "code"),
    [
        ("127.0.0.1", 220),
        ("127.0.0.0/8", 220),
        ("::1", 554),
        ("127.0.0.2", 554),
        ("10.0.0.0/8", 554),
    ],
)
def test_hosts_of_the_list_are_allowed(forwarder, allow, code):
    program = forwarder(peers.free_port(), "--allow", allow)
    with Client(("127.0.0.1", program.listening_at)) as client:
        assert client.reply().startswith(str(code))
    refused = ["warning: host 127.0.0.1 is not allowed"]
    assert ended(program) == (refused if code == 554 else [])


@pytest.mark.parametrize(
    ("patterns", "sender", "code"),
    [
        (["*@x.example"], "a@x.example", 250),
        (["*@X.Example"], "A@x.EXAMPLE", 250),
        (["cq-*@*.example", "root@*"], "cq-1@x.example", 250),
        (["cq-*@*.example", "root@*"], "root@x.example", 250),
        (["cq-*@*.example", "Root@*"], "ROOT@x.example", 250),
        (["cq-*@*.example", "root@*"], "cq@x.example", 550),
        (["*@x.example"], "a@x.example.net", 550),
        (["*@x.example"], "", 550),
        (["*@x.example", ""], "", 250),
    ],
)
def test_senders_are_allowed_by_patterns(serve, forwarder, patterns, sender, code):
    program = forwarder(serve().port, *(f"--sender={pattern}" for pattern in patterns))
    with connect(program) as client:
        client.ehlo()
        assert client.mail(sender)[0] == code
    refused = [f"warning: sender <{sender}> fits no pattern"]
    assert ended(program) == (refused if code == 550 else [])


def test_an_unreachable_mail_host_is_an_error_and_the_client_keeps_the_mail(forwarder):
    program = forwarder(peers.free_port())
    with connect(program) as client:
        client.ehlo()
        assert client.mail("a@x.example")[0] == 451
    (line,) = (line for line in ended(program) if line.startswith("error: "))
    assert line == (
        "error: mail host refuses <a@x.example>: 451 4.4.1 The next hop cannot be reached"
    )


@pytest.mark.parametrize(
    ("suppressed", "heard"),
    [
        ("info", ["warning"]),
        ("warning", ["info"]),
        ("Info, Warning", []),
        ("error", ["warning", "info"]),
    ],
)
def test_levels_can_be_suppressed(serve, forwarder, suppressed, heard):
    program = forwarder(serve().port, "--sender=*@x.example", "--suppress", suppressed)
    with pytest.raises(smtplib.SMTPSenderRefused):
        send(program, ["b@y.example"], "a@elsewhere.example")
    assert send(program, ["b@y.example"]) == {}
    assert [line.partition(":")[0] for line in ended(program)] == heard


def test_a_level_that_is_none_is_refused(no_leaks):
    with Program(str(EXAMPLE), "mail.example", "--suppress", "info,noise") as program:
        assert program.finish() == 2
        assert "the levels are info, warning, error" in program.errors


def test_help(no_leaks):
    with Program(str(EXAMPLE), "--help") as program:
        assert program.finish() == 0
        assert b"--locale-dir" in program.remaining()


# -- the mail host is Postfix, and the log speaks --------------------------------------------

IN_ENGLISH = [
    "warning: sender <eve@z.example> fits no pattern",
    "warning: mail host refuses <bad@y.example>: "
    "550 5.7.30 <bad@y.example>: Recipient address rejected: not that one",
    "info: ID from <a@x.example> forwarded to 1 recipient",
    "info: ID from <a@x.example> forwarded to 2 recipients",
    "warning: mail host refuses ID: 552 5.3.4 Error: message file too big",
]
IN_GERMAN = [
    "Warnung: Absender <eve@z.example> passt auf kein Muster",
    "Warnung: Mailserver lehnt <bad@y.example> ab: "
    "550 5.7.30 <bad@y.example>: Recipient address rejected: not that one",
    "Hinweis: ID von <a@x.example> an 1 Empfänger weitergeleitet",
    "Hinweis: ID von <a@x.example> an 2 Empfänger weitergeleitet",
    "Warnung: Mailserver lehnt ID ab: 552 5.3.4 Error: message file too big",
]
IN_FRENCH = [
    "avertissement: l'expéditeur <eve@z.example> ne correspond à aucun motif",
    "avertissement: le serveur de messagerie refuse <bad@y.example> : "
    "550 5.7.30 <bad@y.example>: Recipient address rejected: not that one",
    "information: ID de <a@x.example> transmis à 1 destinataire",
    "information: ID de <a@x.example> transmis à 2 destinataires",
    "avertissement: le serveur de messagerie refuse ID : 552 5.3.4 Error: message file too big",
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compile the catalogues; a directory as --locale-dir wants it."""
    msgfmt, place = peers.find("msgfmt"), tmp_path_factory.mktemp("locale")
    for source in LOCALE.glob("*/LC_MESSAGES/*.po"):
        target = (place / source.relative_to(LOCALE)).with_suffix(".mo")
        target.parent.mkdir(parents=True)
        subprocess.run([msgfmt, "--check", "-o", target, source], check=True)
    return place


@pytest.mark.interop
@pytest.mark.parametrize(
    ("language", "lines"), [("de", IN_GERMAN), ("fr", IN_FRENCH), ("eo", IN_ENGLISH)]
)
def test_postfix_is_the_mail_host(serve, inbox, forwarder, compiled, tmp_path, language, lines):
    last = serve()
    postfix = peers.start(
        peers.Postfix,
        tmp_path,
        f"smtp:[127.0.0.1]:{last.port}",
        message_size_limit="10000",
        smtpd_recipient_restrictions="check_recipient_access inline:"
        "{{bad@y.example = 550 5.7.30 not that one}}, permit_mynetworks, reject",
    )
    try:
        program = forwarder(
            postfix.port,
            *("--sender", "*@x.example", "--language", language, "--locale-dir", str(compiled)),
        )
        with connect(program) as client:
            client.ehlo()
            assert client.mail("eve@z.example")[0] == 550
            refused = client.sendmail("a@x.example", ["b@y.example", "bad@y.example"], MESSAGE)
            assert list(refused) == ["bad@y.example"]
            inbox.wait(1)
            twice = ["c@y.example", "d@y.example", "c@y.example", "d@Y.EXAMPLE"]
            assert client.sendmail("a@x.example", twice, MESSAGE) == {}
            client.mail("a@x.example")
            client.rcpt("b@y.example")
            assert client.data((b"x" * 98 + b"\r\n") * 200)[0] == 552
        inbox.wait(2)
    finally:
        postfix.stop()
    assert all(sender == "a@x.example" for sender, _, _ in inbox.messages)
    assert all(data.endswith(MESSAGE) for _, _, data in inbox.messages)
    got = sorted(mailbox for _, recipients, _ in inbox.messages for mailbox in recipients)
    assert got == ["b@y.example", "c@y.example", "d@y.example"]
    assert ended(program) == lines


@pytest.mark.interop
@pytest.mark.parametrize("language", ["de", "fr"])
def test_a_catalogue_has_all_that_is_said(tmp_path, language):
    template = tmp_path / "template.pot"
    command = [peers.find("xgettext"), "--from-code=UTF-8", "-o", template, EXAMPLE]
    subprocess.run(command, check=True)
    catalogue = LOCALE / language / "LC_MESSAGES" / "unique_forwarder.po"
    subprocess.run([peers.find("msgcmp"), catalogue, template], check=True)
