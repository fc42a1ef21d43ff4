"""Broken and hostile mail, taken apart: nothing raises."""

import pytest

from smtpd_sync.reading import headers, hidden, leaves, parsed, parts

NESTED = b"Subject: deep\r\nContent-Type: message/rfc822\r\n\r\n"


@pytest.mark.parametrize("depth", [10, 400, 1_500, 20_000])
def test_messages_in_one_another_give_their_fields(depth):
    message = parsed(NESTED * depth + b"Subject: inmost\r\n\r\nhello\r\n")
    assert dict(headers(message))["Subject"] == "deep"
    assert len(list(leaves(message))) == 1
    texts, attachments = parts(message)
    assert len(texts) + len(attachments) == 1


def test_leaves_come_in_order():
    octets = b"".join(
        b"--b\r\nContent-Type: text/plain\r\n\r\n%d\r\n" % number for number in range(4)
    )
    message = parsed(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + octets + b"--b--\r\n")
    assert [part.get_payload() for part in leaves(message)] == ["0", "1", "2", "3"]


def test_hidden_recipients_are_those_in_no_field():
    message = parsed(b"To: Bob <B@x.example>\r\nCc: c@x.example\r\nBcc: d@x.example\r\n\r\n")
    recipients = ["b@x.example", "c@x.example", "d@x.example", "e@x.example"]
    assert hidden(recipients, message) == ["d@x.example", "e@x.example"]
