"""One connection: octets in time, replies in one piece, deadlines that hold."""

import random
import socket
import struct
import threading
import time

import pytest
from support import DEADLINE, SOON, Client, until

from smtpd_sync import Limits, SMTPHandler, SMTPServer, discard

# Quick enough for a test, slow enough for a busy machine.
QUICK = 0.25


def late_by(start, allowed):
    """Check that a deadline was kept: not before its time, and within reason after it."""
    took = time.monotonic() - start
    assert allowed * 0.9 <= took <= allowed + SOON, took


def drip(client, octets, pause, stop):
    """Send ``octets`` one by one, and for ever, until the connection ends."""
    while True:
        for octet in octets:
            if stop.wait(pause):
                return
            try:
                client.send(bytes([octet]))
            except OSError:
                return


@pytest.fixture
def dripping():
    """Let a thread drip octets until the test is over."""
    stop, threads = threading.Event(), []

    def start(client, octets, pause=0.02):
        thread = threading.Thread(target=drip, args=(client, octets, pause, stop))
        threads.append(thread)
        thread.start()

    yield start
    stop.set()
    for thread in threads:
        thread.join()


# -- deadlines -------------------------------------------------------------------------------


def test_silent_client_gets_421_and_is_let_go(serve, connect):
    client = connect(serve(limits=Limits(command_timeout=QUICK)))
    start = time.monotonic()
    client.hello()
    assert client.reply().startswith("421 4.4.2 ")
    assert client.ended()
    late_by(start, QUICK)


def test_every_command_gets_the_full_time(serve, connect):
    client = connect(serve(limits=Limits(command_timeout=0.5)))
    client.hello()
    end = time.monotonic() + 1
    while time.monotonic() < end:
        assert client.ask("NOOP").startswith("250 ")
        threading.Event().wait(0.05)
    assert client.reply().startswith("421 4.4.2 ")


def test_dripped_command_has_an_absolute_deadline(serve, connect, dripping):
    client = connect(serve(limits=Limits(command_timeout=QUICK)))
    client.hello()
    start = time.monotonic()
    dripping(client, b"NOOP ")
    client.gone()
    late_by(start, QUICK)


def test_dripped_command_is_told_why(serve, connect, dripping):
    client = connect(serve(limits=Limits(command_timeout=QUICK)))
    client.hello()
    dripping(client, b"NOOP ", pause=0.05)
    assert client.reply().startswith("421 4.4.2 ")


def test_dripped_overlong_line_has_an_absolute_deadline(serve, connect, dripping):
    client = connect(serve(limits=Limits(command_timeout=QUICK)))
    client.hello()
    client.send(b"x" * 10_000)
    start = time.monotonic()
    dripping(client, b"x")
    client.gone()
    late_by(start, QUICK)


def test_dripped_mail_data_below_the_rate_is_let_go(serve, connect, inbox, dripping):
    client = connect(serve(limits=Limits(command_timeout=QUICK, data_rate=5_000)))
    client.to_data()
    start = time.monotonic()
    dripping(client, b"x\r\n")
    assert client.reply().startswith("421 4.4.2 ")
    late_by(start, QUICK)
    client.gone()
    assert inbox.messages == []


def test_mail_data_above_the_rate_wins_time(serve, connect, inbox):
    client = connect(serve(limits=Limits(command_timeout=0.4, data_rate=100), trace=False))
    client.to_data()
    start, sent = time.monotonic(), 0
    while time.monotonic() < start + 1:
        client.send(b"x" * 98 + b"\r\n")
        sent += 100
        threading.Event().wait(0.01)
    client.send(b".\r\n")
    assert client.reply().startswith("250 ")
    assert len(inbox.data) == sent


def test_mail_data_cannot_save_up_time(serve, connect):
    client = connect(serve(limits=Limits(command_timeout=QUICK, data_rate=1)))
    client.to_data()
    client.send(b"x" * 100_000)  # a day's worth, at an octet a second
    start = time.monotonic()
    assert client.reply().startswith("421 4.4.2 ")
    assert time.monotonic() - start < SOON


def test_client_that_reads_no_replies_is_cut(serve, connect):
    limits = Limits(command_timeout=QUICK, junk_commands=10_000_000, errors=10_000_000)
    reasons = []
    server = serve(limits=limits, strict_pipelining=False, session_ended=reasons.append)
    client = connect(server, receive_buffer=4096)
    client.hello()
    client.socket.settimeout(0.05)
    cut = time.monotonic() + DEADLINE
    while not reasons:
        assert time.monotonic() < cut, "the client was never cut"
        try:
            client.send(b"HELP\r\n" * 10_000)
        except socket.timeout:
            pass  # the server reads no more: it waits for us
        except OSError:
            break
    until(lambda: reasons, "the end of the session")


def test_slow_hook_is_not_killed(serve, connect):
    done = []

    def slow(*arguments):
        threading.Event().wait(3 * QUICK)
        done.append(arguments)
        return "in the end"

    client = connect(serve(deliver=slow, limits=Limits(command_timeout=QUICK)))
    assert client.mail() == "250 2.0.0 in the end"
    assert len(done) == 1


def test_slow_validator_is_not_killed(serve, connect):
    def slow(mailbox):
        threading.Event().wait(3 * QUICK)

    client = connect(serve(validate_sender=slow, limits=Limits(command_timeout=QUICK)))
    client.hello()
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")


def test_stalled_handshake_is_closed_without_a_word(serve, connect, certificate):
    server = serve(tls=certificate, limits=Limits(handshake_timeout=QUICK))
    client = connect(server)
    client.hello()
    assert client.ask("STARTTLS").startswith("220 ")
    start = time.monotonic()
    assert client.gone() == b""
    late_by(start, QUICK)


def test_dripped_handshake_is_closed_without_a_word(serve, connect, certificate, dripping):
    limits = Limits(handshake_timeout=QUICK)
    client = connect(serve(tls=certificate, implicit_tls=True, limits=limits))
    start = time.monotonic()
    dripping(client, b"\x16\x03\x01\x3f\xff\x01" + b"\0" * 10_000)
    assert client.gone() == b""
    late_by(start, QUICK)


def test_silent_tls_client_gets_421_inside_tls(serve, connect, certificate):
    client = connect(serve(tls=certificate, limits=Limits(command_timeout=2 * QUICK)))
    client.hello()
    client.starttls(certificate)
    assert client.reply().startswith("421 4.4.2 ")
    assert client.ended()


def test_late_client_after_the_limits_were_configured(serve, connect):
    server = serve()
    server.configure(limits=Limits(command_timeout=QUICK))
    client = connect(server)
    client.hello()
    assert client.reply().startswith("421 4.4.2 ")


# -- octets ----------------------------------------------------------------------------------


def test_early_talker_is_554_and_closed(no_leaks):
    server = SMTPServer(("127.0.0.1", 0), deliver=discard)
    try:
        with Client(server) as client:
            client.send(b"EHLO early.example\r\n")  # before anybody could greet
            server.start()
            assert client.reply().startswith("554 ")
            assert client.ended()
    finally:
        server.stop()


def test_early_talker_is_forgiven_where_told_so(no_leaks):
    server = SMTPServer(("127.0.0.1", 0), deliver=discard, strict_pipelining=False)
    try:
        with Client(server) as client:
            client.send(b"HELO early.example\r\nQUIT\r\n")
            server.start()
            assert [client.reply()[:4] for _ in range(3)] == ["220 ", "250 ", "221 "]
    finally:
        server.stop()


def test_whole_session_in_one_piece_where_told_so(serve, connect, inbox):
    client = connect(serve(strict_pipelining=False, trace=False))
    client.send(
        b"EHLO c.example\r\nMAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n"
        b"hello\r\n.\r\nQUIT\r\n"
    )
    codes = [client.reply()[:3] for _ in range(7)]
    assert codes == ["220", "250", "250", "250", "354", "250", "221"]
    assert inbox.data == b"hello\r\n"


def count_segments(client, replies):
    """Read ``replies`` whole replies; give the number of pieces they came in."""
    segments, data = 0, b""
    while data.count(b"\r\n") < replies:
        data += client.socket.recv(65536)
        segments += 1
    return segments, data


def test_replies_of_a_group_leave_in_one_piece(serve, connect):
    client = connect(serve())
    client.hello()
    recipients = b"".join(b"RCPT TO:<r%d@y.example>\r\n" % n for n in range(20))
    client.send(b"MAIL FROM:<a@x.example>\r\n" + recipients + b"DATA\r\n")
    segments, data = count_segments(client, 22)
    assert data.count(b"250 ") == 21
    assert segments == 1


def test_ehlo_reply_leaves_in_one_piece(serve, connect):
    client = connect(serve())
    client.reply()
    client.send(b"EHLO client.example\r\n")
    lines = 1 + client.socket.recv(65536).count(b"\r\n250-")
    assert lines > 4


def test_group_cut_anywhere_gets_all_its_replies(serve, connect):
    # The last command comes in two pieces: what is due must not wait for the rest.
    client = connect(serve())
    client.hello()
    client.send(b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.ex")
    assert client.reply().startswith("250 2.1.0 ")
    client.send(b"ample>\r\n")
    assert client.reply().startswith("250 2.1.5 ")


def test_small_replies_do_not_stall(serve, connect):
    # Nagle and delayed acknowledgement together hold each second small piece for 40 ms.
    server = serve()
    best = 1e9
    for _ in range(3):
        client = connect(server)
        client.hello()
        start = time.monotonic()
        for _ in range(50):
            client.send(b"RSET\r\nMAIL FROM:<a@x.example>\r\n")
            client.reply()
            client.reply()
        best = min(best, time.monotonic() - start)
    assert best < 50 * 0.04 / 2


def test_nagle_is_off(serve, connect):
    seen = []

    class Handler(SMTPHandler):
        def validate_host(self, address):
            seen.append(self.request.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        def deliver(self, sender, recipients, data):
            pass

    connect(serve(Handler)).hello()
    assert seen[0] != 0


def test_octet_by_octet(serve, connect, inbox):
    client = connect(serve(trace=False))
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.reply()
    for lines in (
        b"EHLO c.example\r\n",
        b"MAIL FROM:<a@x.example>\r\n",
        b"RCPT TO:<b@y.example>\r\n",
        b"DATA\r\n",
        b"..\r\n.\rx\r\n\r\n.\r\n",
    ):
        for octet in lines:
            client.send(bytes([octet]))
        assert client.reply()[0] in "23"
    assert inbox.data == b".\r\n\r\nx\r\n\r\n"


def test_ten_mebibytes_arrive_equal(serve, connect, inbox):
    body = random.Random(42).randbytes(7 * 1024 * 1024).hex().encode()[: 10 * 1024 * 1024]
    lines = [body[at : at + 76] for at in range(0, len(body), 76)]
    lines[1::50] = [b"." + line[1:] for line in lines[1::50]]
    data = b"\r\n".join(lines) + b"\r\n"
    client = connect(serve(trace=False))
    assert client.mail(data.replace(b"\r\n.", b"\r\n..")).startswith("250 ")
    assert inbox.data == data


def test_every_octet_value_arrives_equal(serve, connect, inbox):
    octets = bytes(octet for octet in range(256) if octet not in b"\r\n")
    data = octets * 10 + b"\r\n" + octets + b"\r\n"
    client = connect(serve(trace=False))
    assert client.mail(data).startswith("250 ")
    assert inbox.data == data


# -- the end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
def test_client_gone_in_mail_data_delivers_nothing(serve, inbox, how):
    reasons = []
    server = serve(session_ended=reasons.append)
    with Client(server) as client:
        client.to_data()
        client.send(b"half a message\r\n")
        if how == "reset":
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: reasons, "the end of the session")
    until(lambda: not server.crowd.threads, "the end of the thread")
    assert inbox.messages == []


def test_end_of_input_never_ends_mail_data(serve, connect, inbox):
    reasons = []
    client = connect(serve(session_ended=reasons.append))
    client.to_data()
    client.send(b"hello\r\n.")
    client.socket.shutdown(socket.SHUT_WR)
    assert b"250" not in client.gone()
    until(lambda: reasons, "the end of the session")
    assert inbox.messages == []


def test_half_closed_client_still_gets_its_replies(serve, connect, inbox):
    client = connect(serve())
    client.to_data()
    client.send(b"hello\r\n.\r\nQUIT\r\n")
    client.socket.shutdown(socket.SHUT_WR)
    assert client.reply().startswith("250 ")
    assert client.reply().startswith("221 ")
    assert len(inbox.wait()) == 1


def test_client_gone_while_a_hook_runs(serve):
    entered, release, reasons = threading.Event(), threading.Event(), []

    def deliver(sender, recipients, data):
        entered.set()
        release.wait()

    server = serve(deliver=deliver, session_ended=reasons.append)
    with Client(server) as client:
        client.to_data()
        client.send(b"hello\r\n.\r\n")
        assert entered.wait(SOON)
    release.set()
    until(lambda: reasons, "the end of the session")


def test_client_that_keeps_sending_still_reads_the_closing_reply(serve, connect):
    client = connect(serve())
    client.reply()
    client.send(b"GET / HTTP/1.1\r\n" + b"x" * 200_000)
    assert client.reply().startswith("554 5.5.0 ")
    client.send(b"x" * 200_000)  # a reset here would show
    assert client.ended()


def test_message_far_too_big_still_reads_the_closing_reply(serve, connect, inbox):
    client = connect(serve(limits=Limits(message_size=1000)))
    client.to_data()
    client.send(b"x" * 300_000)
    assert client.reply().startswith("421 ")
    client.send(b"x" * 100_000)
    assert client.ended()
    assert inbox.messages == []


def test_lingering_ends_with_a_client_that_sends_for_ever(serve, connect, dripping):
    reasons = []
    client = connect(serve(session_ended=reasons.append))
    client.reply()
    client.send(b"GET / HTTP/1.1\r\n")
    dripping(client, b"x" * 10_000)
    client.gone()
    start = time.monotonic()
    until(lambda: reasons, "the end of the session")
    assert time.monotonic() - start < SOON


def test_lingering_ends_with_a_client_that_floods(serve, connect):
    reasons = []
    client = connect(serve(session_ended=reasons.append))
    client.reply()
    client.send(b"GET / HTTP/1.1\r\n")
    give_up = time.monotonic() + SOON
    flooding, sent = True, 0
    while flooding:
        assert time.monotonic() < give_up
        try:
            client.send(b"x" * 100_000)
            sent += 100_000
        except OSError:
            flooding = False
    assert sent < 32 * 1024 * 1024  # 1 MiB, and what the system holds
    until(lambda: reasons, "the end of the session")


def test_quit_closes_without_delay(serve, connect):
    client = connect(serve())
    client.hello()
    start = time.monotonic()
    assert client.ask("QUIT").startswith("221 ")
    assert client.ended()
    assert time.monotonic() - start < 0.5
