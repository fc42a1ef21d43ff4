"""The example that greylists: a program, with real clients, and a database that outlives it."""

import contextlib
import runpy
import signal
import smtplib
import sqlite3
import threading

import pytest
from support import DEADLINE, ROOT, Client, Program, until

EXAMPLE = str(ROOT / "examples" / "policy.py")
MESSAGE = b"Subject: hi\r\n\r\nhello\r\n"
LONG = "3600"


@pytest.fixture
def greylisting(no_leaks, tmp_path):
    """Start the example on a database of this test's own."""
    started = []

    def make(delay, *arguments):
        database = str(tmp_path / "greylist.sqlite")
        program = Program(EXAMPLE, "0", "--delay", delay, "--database", database, *arguments)
        started.append(program)
        program.listening_at = program.port()
        program.database = database
        return program

    yield make
    for program in started:
        program.__exit__()


def end(program, number=signal.SIGTERM):
    program.signal(number)
    assert program.finish() == 0, program.errors
    assert program.errors == ""


def connect(program):
    return smtplib.SMTP("127.0.0.1", program.listening_at, "client.example", timeout=DEADLINE)


def ask(program, recipient, sender="a@x.example"):
    """Give the reply to RCPT."""
    with connect(program) as client:
        client.ehlo()
        client.mail(sender)
        code, text = client.rcpt(recipient)
        return code, text.decode()


def age(program, seconds):
    """Have all rows seen longer ago, by what the clock would show later."""
    with contextlib.closing(sqlite3.connect(program.database, timeout=DEADLINE)) as rows, rows:
        rows.execute("UPDATE seen SET first = first - ?, last = last - ?", (seconds, seconds))


def rows_of(program):
    with contextlib.closing(sqlite3.connect(program.database, timeout=DEADLINE)) as rows:
        return rows.execute("SELECT network, sender, recipient FROM seen ORDER BY 3").fetchall()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_mail_is_put_off_first_and_taken_after_the_pause(greylisting, number):
    program = greylisting(LONG)
    with connect(program) as client:
        with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
            client.sendmail("a@x.example", ["b@y.example", "c@y.example"], MESSAGE)
        for code, text in refused.value.recipients.values():
            assert (code, text[:6]) == (451, b"4.7.1 ")
        age(program, 3599 / 2)
        assert client.mail("a@x.example")[0] == 250
        assert client.rcpt("b@y.example")[0] == 451
        client.rset()
        age(program, 3601 / 2)
        assert client.sendmail("a@x.example", ["b@y.example", "c@y.example"], MESSAGE) == {}
    line = program.line()
    assert line.startswith("from=a@x.example to=b@y.example,c@y.example octets=")
    assert line.endswith(" put_off=3")
    end(program, number)


def test_the_pause_passes_by_the_clock(greylisting):
    program = greylisting("0.2")
    until(lambda: ask(program, "b@y.example")[0] == 250, "the end of the pause")
    end(program)


def test_without_a_pause_nobody_is_put_off(greylisting):
    program = greylisting("0")
    assert ask(program, "b@y.example")[0] == 250
    end(program)


def test_a_stranger_in_one_of_the_three_is_put_off(greylisting):
    program = greylisting(LONG)
    assert ask(program, "b@y.example")[0] == 451
    age(program, 3601)
    assert ask(program, "B@Y.example", "A@x.example")[0] == 250
    assert ask(program, "c@y.example")[0] == 451
    assert ask(program, "b@y.example", "d@x.example")[0] == 451
    assert ask(program, "b@y.example", "")[0] == 451
    end(program)


def test_one_recipient_may_be_taken_and_another_not(greylisting):
    program = greylisting(LONG)
    assert ask(program, "b@y.example")[0] == 451
    age(program, 3601)
    with connect(program) as client:
        refused = client.sendmail("a@x.example", ["b@y.example", "c@y.example"], MESSAGE)
    assert list(refused) == ["c@y.example"]
    assert program.line().startswith("from=a@x.example to=b@y.example octets=")
    end(program)


def test_postmaster_is_not_put_off(greylisting):
    program = greylisting(LONG)
    assert ask(program, "postmaster")[0] == 250
    end(program)


def test_what_it_knows_outlives_it_until_nobody_comes_for_days(greylisting):
    program = greylisting(LONG)
    assert ask(program, "b@y.example")[0] == 451
    age(program, 2 * 86_400)
    end(program)
    program = greylisting(LONG, "--keep", "3")
    assert rows_of(program) == [("127.0.0.0/24", "a@x.example", "b@y.example")]
    assert ask(program, "b@y.example")[0] == 250
    age(program, 4 * 86_400)
    end(program)
    program = greylisting(LONG, "--keep", "3")
    assert rows_of(program) == []
    end(program)


def test_many_clients_at_once(greylisting):
    program = greylisting(LONG)
    recipients = [f"{number}@y.example" for number in range(10)]
    heard = []
    together = threading.Barrier(20)

    def client():
        with Client(("127.0.0.1", program.listening_at)) as client:
            client.hello()
            client.ask("MAIL FROM:<a@x.example>")
            together.wait(DEADLINE)
            heard.extend(client.ask(f"RCPT TO:<{each}>")[:9] for each in recipients)
            client.ask("QUIT")

    def crowd():
        threads = [threading.Thread(target=client) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE * 2)

    crowd()
    assert heard == ["451 4.7.1"] * 200
    assert [row[2] for row in rows_of(program)] == recipients
    age(program, 3601)
    heard.clear()
    crowd()
    assert heard == ["250 2.1.5"] * 200
    end(program)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ],
)
def test_neighbours_are_one_network(address, network):
    assert runpy.run_path(EXAMPLE)["network_of"](address) == network


def test_a_database_that_is_broken_costs_a_delay(greylisting):
    program = greylisting(LONG)
    with contextlib.closing(sqlite3.connect(program.database)) as rows, rows:
        rows.execute("DROP TABLE seen")
    assert ask(program, "b@y.example")[1].startswith("4.3.0 ")
    program.signal(signal.SIGTERM)
    assert program.finish() == 0
    assert "no such table" in program.errors


def test_help(no_leaks):
    with Program(EXAMPLE, "--help") as program:
        assert program.finish() == 0
        assert b"--delay" in program.remaining()
