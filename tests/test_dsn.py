"""Reports of delivery: what readers of RFC 3464 make of them, and that nothing breaks out."""

import email
import io
import quopri
import random
import re
from email import policy

import pytest

from smtpd_sync import Mailbox, Reply
from smtpd_sync.dsn import ACTIONS, MOST_RETURNED, Outcome, report, wanted

ORIGINAL = b"Received: from x\r\n\tby y\r\nSubject: hello\r\nTo: b@y.example\r\n\r\nthe body\r\n"
REFUSED = Reply(550, "No such mailbox", "5.1.1")
FAILED = Outcome("b@y.example", "failed", REFUSED)


def made(*outcomes, original=ORIGINAL, sender="a@x.example", **facts):
    facts.setdefault("reporting_mta", "mx.example")
    facts.setdefault("now", 1_700_000_000.5)
    return report(list(outcomes) or [FAILED], sender=sender, original=io.BytesIO(original), **facts)


def read(octets):
    """Parse a report: (message, its three parts). It must be without defect and in CRLF lines."""
    assert octets.count(b"\r\n") == octets.count(b"\n") == octets.count(b"\r")
    assert max(map(len, octets.split(b"\r\n"))) <= 998
    message = email.message_from_bytes(octets, policy=policy.SMTPUTF8)
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    parts = message.get_payload()
    assert len(parts) == 3
    # What the original itself is worth is not ours to say.
    assert [part.defects for part in (message, *parts[0].walk(), *parts[1].walk())] == [[]] * (
        3 + len(parts[1].get_payload())
    )
    assert parts[2].defects == []
    assert parts[0].get_content_type() == "text/plain"
    assert parts[1].get_content_type() == "message/delivery-status"
    return message, parts


def groups(octets):
    """Give the groups of fields of the machine's part: that of the message, and of each one."""
    _, (_, status, _) = read(octets)
    return [dict(group.items()) for group in status.get_payload()]


def test_report_as_it_stands():
    outcome = Outcome("b@y.example", "failed", REFUSED, "rfc822;B@y.example", "mx.y.example")
    octets = made(outcome, envelope_id="QQ314159", arrival=1_600_000_000)
    mark = re.search(rb'boundary="(.*)"', octets)[1]
    text = octets.replace(mark, b"MARK").decode("ascii")
    text = re.sub(r"[+-][0-9]{4}\r\n", "+0000\r\n", text)
    text = re.sub(r": [A-Z][a-z]{2}, [0-9]+ [A-Z][a-z]{2} ([0-9]{4}) [0-9:]{8}", r": \1", text)
    assert text.split("\r\n") == [
        "From: Mail Delivery System <MAILER-DAEMON@mx.example>",
        "To: <a@x.example>",
        "Subject: Undelivered mail returned to sender",
        "Date: 2023 +0000",
        "Message-ID: <MARK@mx.example>",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        "Content-Type: multipart/report; report-type=delivery-status;",
        '\tboundary="MARK"',
        "",
        "--MARK",
        "Content-Description: Notification",
        "Content-Type: text/plain; charset=us-ascii",
        "",
        "This is the mail system at mx.example.",
        "",
        "Your message could not be delivered to:",
        "",
        "<b@y.example>",
        "    mx.y.example said: 550 5.1.1 No such mailbox",
        "",
        "--MARK",
        "Content-Description: Delivery report",
        "Content-Type: message/delivery-status",
        "",
        "Original-Envelope-Id: QQ314159",
        "Reporting-MTA: dns; mx.example",
        "Arrival-Date: 2020 +0000",
        "",
        "Original-Recipient: rfc822; B@y.example",
        "Final-Recipient: rfc822; b@y.example",
        "Action: failed",
        "Status: 5.1.1",
        "Remote-MTA: dns; mx.y.example",
        "Diagnostic-Code: smtp; 550 5.1.1 No such mailbox",
        "Last-Attempt-Date: 2023 +0000",
        "",
        "--MARK",
        "Content-Description: Header of the message",
        "Content-Type: text/rfc822-headers",
        "",
        "Received: from x",
        "\tby y",
        "Subject: hello",
        "To: b@y.example",
        "",
        "--MARK--",
        "",
    ]


def test_report_is_a_function_of_its_arguments():
    assert made() == made()
    assert made() != made(now=1_700_000_000.6)
    names = {read(made(now=number))[0]["Message-ID"] for number in range(50)}
    assert len(names) == 50


@pytest.mark.parametrize("action", ACTIONS)
def test_each_action_is_said_to_people_and_to_machines(action):
    octets = made(Outcome("b@y.example", action, Reply(250, "queued", "2.0.0")))
    message, (text, _, _) = read(octets)
    _, fields = groups(octets)
    assert fields["Action"] == action
    assert fields["Status"] == "2.0.0"
    assert "b@y.example" in text.get_content()
    assert ("Undelivered" in message["Subject"]) is (action == "failed")


def test_worst_action_is_the_subject_and_all_are_told():
    octets = made(
        Outcome("c@y.example", "relayed", Reply(250)),
        Outcome("d@y.example", "delayed", Reply(451, "later", "4.2.0"), will_retry_until=1.8e9),
        FAILED,
    )
    message, (text, _, _) = read(octets)
    assert message["Subject"] == "Undelivered mail returned to sender"
    text = text.get_content()
    assert text.index("could not") < text.index("<b@y.example>") < text.index("not been delivered")
    assert text.index("<d@y.example>") < text.index("2027") < text.index("passed on")
    _, *each = groups(octets)
    assert [fields["Action"] for fields in each] == ["relayed", "delayed", "failed"]


def test_time_of_giving_up_is_for_what_is_delayed():
    for action in ACTIONS:
        octets = made(Outcome("b@y.example", action, REFUSED, will_retry_until=1.8e9))
        assert ("Will-Retry-Until" in groups(octets)[1]) is (action == "delayed")
        assert (b"tried until" in octets) is (action == "delayed")


def test_optional_fields_are_left_out():
    message, recipient = groups(made())
    assert set(message) == {"Reporting-MTA"}
    assert set(recipient) == {
        *("Final-Recipient", "Action", "Status", "Diagnostic-Code", "Last-Attempt-Date")
    }


def test_status_without_an_enhanced_one():
    (_, fields) = groups(made(Outcome("b@y.example", "failed", Reply(550, "no"))))
    assert fields["Status"] == "5.0.0"
    (_, fields) = groups(made(Outcome("b@y.example", "failed", Reply(354))))
    assert fields["Status"] == "3.0.0"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("mx.example", "dns; mx.example"),
        ("192.0.2.1", "dns; [192.0.2.1]"),
        ("2001:db8::1", "dns; [IPv6:2001:db8::1]"),
        ("bad name\r\nX: y", "dns; bad?name??X:?y"),
    ],
)
def test_hosts(name, shown):
    octets = made(FAILED._replace(remote_mta=name), reporting_mta=name)
    message, recipient = groups(octets)
    assert message["Reporting-MTA"] == recipient["Remote-MTA"] == shown


def test_null_sender_is_told_nothing():
    with pytest.raises(ValueError, match="null reverse-path"):
        made(sender="")
    with pytest.raises(ValueError, match="null reverse-path"):
        made(sender=Mailbox())


@pytest.mark.parametrize("outcomes", [[], [FAILED, FAILED._replace(action="lost")]])
def test_outcomes_that_cannot_be(outcomes):
    with pytest.raises(ValueError, match="outcomes"):
        report(outcomes, sender="a@x.example", reporting_mta="mx.example", original=io.BytesIO())


# -- what is returned of the original --------------------------------------------------------


def returned(octets):
    _, (_, _, last) = read(octets)
    return last


def last_part(octets):
    """Give the octets of the last part, behind its own header."""
    mark = re.search(rb'boundary="(.*)"', octets)[1]
    return octets.split(b"\r\n--" + mark)[-2].partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    ("original", "header"),
    [
        (ORIGINAL, ORIGINAL[: ORIGINAL.index(b"\r\n\r\n") + 2]),
        (b"Subject: x\r\n\r\n", b"Subject: x\r\n"),
        (b"Subject: x\r\n", b"Subject: x\r\n"),
        (b"Subject: x", b"Subject: x\r\n"),
        (b"Subject: x\n\nbody\n", b"Subject: x\r\n"),
        (b"\r\nbody\r\n", b"\r\n"),
        (b"", b"\r\n"),
    ],
)
def test_header_is_returned(original, header):
    octets = made(original=original)
    assert last_part(octets) == header
    assert returned(octets).get_content_type() == "text/rfc822-headers"
    assert b"body" not in octets


def test_original_is_read_from_its_start():
    file = io.BytesIO(ORIGINAL)
    file.seek(0, 2)
    octets = report([FAILED], sender="a@x.example", reporting_mta="mx.example", original=file)
    assert b"Subject: hello" in octets


def test_full_message_is_returned_where_it_failed():
    octets = made(full=True)
    assert returned(octets).get_content_type() == "message/rfc822"
    assert last_part(octets) == ORIGINAL
    delayed = made(Outcome("b@y.example", "delayed", Reply(451)), full=True)
    assert returned(delayed).get_content_type() == "text/rfc822-headers"  # RFC 3461 4.3


def test_message_beyond_measure_is_not_returned_in_full():
    most = ORIGINAL + b"x" * (MOST_RETURNED - len(ORIGINAL) - 2) + b"\r\n"
    most = most.replace(b"x" * 500, b"y" * 498 + b"\r\n")
    assert len(most) == MOST_RETURNED
    assert returned(made(original=most, full=True)).get_content_type() == "message/rfc822"
    too_much = returned(made(original=most + b"z", full=True))
    assert too_much.get_content_type() == "text/rfc822-headers"


def test_header_beyond_measure_is_cut():
    octets = made(original=b"X-Long: y\r\n" * 100_000)
    assert len(octets) < 300_000
    read(octets)


@pytest.mark.parametrize("body", [b"a\0b\r\n", b"bare\nnewline", b"bare\rreturn"])
def test_binary_mail_is_not_returned_in_full(body):
    octets = made(original=ORIGINAL + body, full=True)
    assert returned(octets).get_content_type() == "text/rfc822-headers"


def test_message_of_8bit():
    octets = made(original=ORIGINAL + "gr\u00fcn\r\n".encode(), full=True)
    message, (_, _, last) = read(octets)
    assert message["Content-Transfer-Encoding"] == "8bit"  # RFC 2045 6.4
    assert last["Content-Transfer-Encoding"] == "8bit"
    assert last.get_content_type() == "message/rfc822"
    assert made(original=ORIGINAL + "gr\u00fcn\r\n".encode()).isascii()


def test_full_message_with_a_header_in_utf8():
    octets = made(original="Subject: gr\u00fcn\r\n\r\nbody\r\n".encode(), full=True)
    assert returned(octets).get_content_type() == "message/global"  # RFC 6533 4.2
    assert b"Content-Type: message/global\r\nContent-Transfer-Encoding: 8bit\r\n" in octets


def test_header_in_utf8_goes_as_ascii():
    header = "Subject: gr\u00fcn = x \r\nFrom: \u00e4@x.example\r\n".encode()
    octets = made(original=header + b"\r\nbody\r\n")
    assert octets.isascii()
    last = returned(octets)
    assert last.get_content_type() == "message/global-headers"
    assert last["Content-Transfer-Encoding"] == "quoted-printable"
    assert quopri.decodestring(last_part(octets)) == header


# -- addresses in UTF-8 (RFC 6533) -----------------------------------------------------------


def test_recipient_in_utf8():
    outcome = Outcome("\u00f6+\\\U0001f600@y.example", "failed", REFUSED)
    octets = made(outcome)
    assert octets.isascii()
    _, fields = groups(octets)
    assert fields["Final-Recipient"] == r"utf-8; \x{F6}\x{2B}\x{5C}\x{1F600}@y.example"
    _, (text, _, _) = read(octets)
    assert f"<{outcome.recipient}>" in text.get_content()


def test_control_characters_are_not_encoded_for_others_to_decode():
    octets = made(FAILED._replace(recipient="\u00f6\r\n\ud800@y.example"))
    assert groups(octets)[1]["Final-Recipient"] == r"utf-8; \x{F6}???@y.example"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("rfc822;Jo+x@y.example", "rfc822; Jo+x@y.example"),
        (r"utf-8;\x{E4}@y.example", r"utf-8; \x{E4}@y.example"),
        ("UTF-8;\u00e4@y.example", r"UTF-8; \x{E4}@y.example"),
        ("x400;/a=b/", "x400; /a=b/"),
        ("rfc822;\u00e4@y.example", "rfc822; ?@y.example"),
        ("no address", None),
        ("rfc822;", None),
        ("bad type;b@y.example", None),
    ],
)
def test_original_recipient(given, shown):
    octets = made(FAILED._replace(original_recipient=given))
    assert groups(octets)[1].get("Original-Recipient") == shown


def test_sender_in_utf8():
    octets = made(sender="\u00e4@x.example")
    message, _ = read(octets)
    assert message["To"] == "\u00e4@x.example"
    assert [line for line in octets.split(b"\r\n") if not line.isascii()] == [
        "To: <\u00e4@x.example>".encode()
    ]


# -- what is hostile -------------------------------------------------------------------------

HOSTILE = "\r\n\r\n--x\r\nX-Evil: yes\r\n\0\x1b[2J\u2028\ud800\nBcc: v@z.example\r\n.\r\n"


def test_nothing_hostile_breaks_out():
    octets = made(
        Outcome(
            f"b{HOSTILE}@y.example",
            "delayed",
            Reply(451, f"no{HOSTILE}" * 100),
            f"rfc822;{HOSTILE}",
            f"mx{HOSTILE}",
            will_retry_until=1.8e9,
        ),
        Outcome(f"c{HOSTILE}\u00f6", "failed", Reply(550, HOSTILE), f"utf-8;{HOSTILE}"),
        sender=f"a{HOSTILE}@x.example",
        reporting_mta=f"mx{HOSTILE}",
        envelope_id=HOSTILE,
        original=b"Subject: x\r\n" + HOSTILE.encode(errors="replace"),
        full=True,
    )
    message, parts = read(octets)
    assert set(message.keys()) == {
        *("From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version"),
        "Content-Type",
    }
    for part in parts[:2]:
        assert "X-Evil" not in part
    assert len(groups(octets)) == 3
    for fields in groups(octets):
        assert not {"X-Evil", "Bcc"} & set(fields)
    assert b"\r\nX-Evil" not in octets
    for octet in (b"\0", b"\x1b"):
        assert octet not in octets


def test_random_facts_never_break_the_structure():
    chance = random.Random(20261123)
    alphabet = 'ab@.;<>"\\ \t\r\n\0\x7f\x85\u00e4\u2029\ud800\U0001f600-=+{}:'

    def text(most=60):
        return "".join(chance.choice(alphabet) for _ in range(chance.randrange(1, most)))

    for _ in range(300):
        outcomes = [
            Outcome(
                text(),
                chance.choice(ACTIONS),
                Reply(chance.choice([250, 451, 550]), text(3_000)),
                chance.choice([None, text(), f"rfc822;{text()}", f"utf-8;{text()}"]),
                chance.choice([None, text()]),
            )
            for _ in range(chance.randrange(1, 4))
        ]
        original = text(300).encode(errors="replace")
        octets = made(
            *outcomes, original=original, sender=text(), envelope_id=text(), reporting_mta=text()
        )
        message, _ = read(octets)
        assert len(message.keys()) == 8
        found = groups(octets)
        assert len(found) == len(outcomes) + 1
        for outcome, fields in zip(outcomes, found[1:]):
            assert fields["Action"] == outcome.action
            assert fields["Status"] == outcome.reply.status
            assert "Diagnostic-Code" in fields


def test_long_words_are_cut_to_what_a_line_may_hold():
    long = "x" * 5_000
    octets = made(
        Outcome(f"{long}@y.example", "failed", Reply(550, long), f"rfc822;{long}", long),
        Outcome("\u00f6" * 500, "failed", Reply(550, f"{long} {long}")),
        sender=f"{long}@x.example",
        reporting_mta=long,
        envelope_id=long,
    )
    read(octets)


def test_diagnostic_keeps_its_words_over_folded_lines():
    words = " ".join(f"word{number}" for number in range(100))
    octets = made(Outcome("b@y.example", "failed", Reply(550, words.replace("word50", "a\nb"))))
    assert max(map(len, octets.split(b"\r\n"))) < 100
    _, fields = groups(octets)
    said = re.sub(r"\s+", " ", fields["Diagnostic-Code"])
    assert said == f"smtp; 550 5.0.0 {words}".replace("word50", "a b")


# -- who wants to know -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("notify", "actions"),
    [
        (None, {"failed", "delayed"}),
        ("NEVER", set()),
        ("FAILURE", {"failed"}),
        ("success,delay", {"delayed", "relayed", "delivered", "expanded"}),
        ("SUCCESS", {"relayed", "delivered", "expanded"}),
        ("FAILURE,DELAY,SUCCESS", set(ACTIONS)),
    ],
)
def test_who_wants_to_know(notify, actions):
    parameters = {} if notify is None else {"NOTIFY": notify}
    assert {action for action in ACTIONS if wanted(parameters, action)} == actions
