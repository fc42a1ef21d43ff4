"""The fuzzer of ``tests/fuzz``: a short run with fixed seeds, and that each rule can be broken."""

import pathlib
import signal
import subprocess
import sys

import pytest
from fuzz import cli, core, sockets
from fuzz.case import make_case
from fuzz.driver import known_nonce
from fuzz.oracle import ORACLES
from support import DEADLINE, Program

from smtpd_sync import Reply, data, inbox, maildata
from smtpd_sync.session import Session
from smtpd_sync.states import State

FUZZ = pathlib.Path(__file__).parent / "fuzz"
SESSIONS = 200
SEARCHED = 1500
"""Sessions in which a planted bug must show."""


@pytest.fixture(autouse=True)
def _known_nonce():
    with known_nonce():
        yield


# -- what holds ----------------------------------------------------------------------------------


def test_core_breaks_no_rule():
    for seed in range(SESSIONS):
        finding = core.fuzz(seed)
        assert finding is None, str(finding)


def test_sockets_break_no_rule(no_leaks):
    with sockets.Arena() as arena:
        for seed in range(20):
            finding = arena.check(make_case(seed))
            assert finding is None, str(finding)
    assert arena.leaks() == ""


def differential():
    pytest.importorskip("aiosmtpd", reason="aiosmtpd is not installed")
    from fuzz import differential

    return differential


def test_differences_to_aiosmtpd_are_explained(no_leaks):
    module = differential()
    with module.Pair() as pair:
        for seed in range(30):
            finding = pair.check(module.make_case(seed))
            assert finding is None, str(finding)
    assert pair.compared > 100
    assert " replies compared" in pair.table()
    assert sum(pair.counts.values()) > 0


def test_a_session_is_its_number():
    assert make_case(5) == make_case(5)
    assert make_case(5) != make_case(6)


# -- planted bugs --------------------------------------------------------------------------------


class Raises(Session):
    def reply(self, reply):
        if self._pending.verb == "VRFY":
            raise KeyError("planted")
        super().reply(reply)


class SplitsReplies(Session):
    def data_to_send(self):
        return super().data_to_send().replace(b"Sender OK", b"Sender\nOK")


class MixesClasses(Session):
    def data_to_send(self):
        return super().data_to_send().replace(b"250 2.1.0", b"250 5.1.0")


class IgnoresUnknown(Session):
    def _unknown(self, word, length):
        return None


class SpeaksAfterwards(Session):
    def receive_data(self, octets):
        if self.state is State.CLOSED and octets:
            self.outbox.append(b"250 2.0.0 OK\r\n")
        super().receive_data(octets)


class TellsPasswords(Session):
    def reply(self, reply):
        event = self._pending
        if event.verb == "credentials" and event.argument.password and reply.code >= 400:
            reply = Reply(535, f"Not {event.argument.password}")
        super().reply(reply)


class TakesRecipientsTwice(Session):
    def _answer(self, verb, reply, event=None):
        if verb == "RCPT" and event is not None and reply.code < 400:
            self.envelope.recipients.append(event.argument)
        return super()._answer(verb, reply, event)


class SaysTaken(Session):
    def _answer_message(self, event, reply):
        super()._answer_message(event, Reply(250))


class ForgetsErrors(Session):
    def _answer(self, verb, reply, event=None):
        self._errors = 0
        return super()._answer(verb, reply, event)


class ForgetsJunk(Session):
    def _answer(self, verb, reply, event=None):
        self._junk = 0
        return super()._answer(verb, reply, event)


class ForgetsFailures(Session):
    def _answer(self, verb, reply, event=None):
        self.failures = 0
        return super()._answer(verb, reply, event)


class EndsTransactions(Session):
    def _answer(self, verb, reply, event=None):
        super()._answer(verb, reply, event)
        if verb == "RCPT" and reply.code >= 400 and self.state is State.RCPT:
            self.state = State.MAIL


class KeepsTheClear(Session):
    def tls_started(self, tls):
        kept = self._inbox.take()
        super().tls_started(tls)
        self._inbox.add(kept)


class HearsPieces(Session):
    def _answer(self, verb, reply, event=None):
        if verb == "NOOP" and reply.code == 250 and self._inbox.waiting:
            reply = Reply(250, "And what else?")
        return super()._answer(verb, reply, event)


class TakesDots(data.DataDecoder):
    def feed(self, chunk):
        return super().feed(chunk.replace(b"\n..", b"\n."))


class EndsAtBareNewline(data.DataDecoder):
    def feed(self, chunk):
        return super().feed(chunk.replace(b"\n.\n", b"\n\r\n.\r\n"))


class KeepsLongLines(inbox.Inbox):
    def line(self, longest):
        return super().line(1 << 30)


DECODER = "smtpd_sync.maildata.DataDecoder"
INBOX = "smtpd_sync.answering.Inbox"
SESSION_BUGS = (
    (Raises, "nothing_is_raised"),
    (SplitsReplies, "replies_are_well_formed"),
    (MixesClasses, "statuses_fit_their_codes"),
    (IgnoresUnknown, "each_command_has_one_reply"),
    (SpeaksAfterwards, "nothing_follows_the_end"),
    (TellsPasswords, "no_credential_is_shown"),
    (TakesRecipientsTwice, "mail_goes_to_those_accepted"),
    (SaysTaken, "mail_is_delivered_when_said"),
    (ForgetsErrors, "errors_are_bounded"),
    (ForgetsJunk, "junk_is_bounded"),
    (ForgetsFailures, "guesses_are_bounded"),
    (EndsTransactions, "moves_are_in_the_table"),
    (KeepsTheClear, "tls_forgets_the_clear"),
    (HearsPieces, "feeding_is_no_matter"),
)
PART_BUGS = (
    (DECODER, TakesDots, "content_is_what_was_sent"),
    (DECODER, EndsAtBareNewline, "each_command_has_one_reply"),
    (INBOX, KeepsLongLines, "memory_is_bounded"),
    ("smtpd_sync.maildata.MailData.fault", property(lambda self: None), "faulty_mail_is_refused"),
)


def search(rule, base=Session):
    """Give the first finding of a rule."""
    for seed in range(SEARCHED):
        finding = core.fuzz(seed, base)
        if finding is not None and finding.rule == rule:
            return finding
    pytest.fail(f"{rule} was never broken in {SEARCHED} sessions")


@pytest.mark.parametrize(("bug", "rule"), SESSION_BUGS, ids=[rule for _, rule in SESSION_BUGS])
def test_a_bug_of_the_session_is_found(bug, rule):
    assert search(rule, bug).rule == rule


@pytest.mark.parametrize(("part", "bug", "rule"), PART_BUGS, ids=[row[2] for row in PART_BUGS])
def test_a_bug_of_a_part_is_found(monkeypatch, part, bug, rule):
    monkeypatch.setattr(part, bug)
    assert search(rule).rule == rule


def test_each_rule_has_a_planted_bug():
    planted = {rule for *_, rule in (*SESSION_BUGS, *PART_BUGS)}
    assert planted == {*ORACLES, "nothing_is_raised", "feeding_is_no_matter"}


def test_a_finding_is_made_smaller_and_stays_one():
    finding = search("each_command_has_one_reply", IgnoresUnknown)
    smaller = core.shrink(finding, lambda case: core.check(case, IgnoresUnknown))
    assert smaller.rule == finding.rule
    assert len(smaller.case.octets) <= 4
    assert str(finding.seed) in str(smaller)
    assert repr(smaller.case.octets) in str(smaller)


def first_of_arena(sessions=10):
    with sockets.Arena() as arena:
        found = (arena.check(make_case(seed)) for seed in range(sessions))
        return next((finding.rule for finding in found if finding is not None), None)


def test_a_traceback_in_the_log_is_found(monkeypatch, no_leaks):
    def fails(self, reason):
        self.arena.ended(self.client_port)
        raise RuntimeError("planted")

    monkeypatch.setattr(sockets.FuzzHandler, "session_ended", fails)
    assert first_of_arena() == "nothing_is_logged_as_an_error"


def test_a_thread_that_dies_is_found(monkeypatch, no_leaks):
    def dies(self, reason):
        self.arena.ended(self.client_port)
        raise KeyboardInterrupt("planted")

    monkeypatch.setattr(sockets.FuzzHandler, "session_ended", dies)
    assert first_of_arena() == "no_thread_dies"


def test_mail_that_is_not_that_of_the_core_is_found(monkeypatch, no_leaks):
    monkeypatch.setattr(sockets.Arena, "delivered", lambda self, port, delivery: None)
    assert first_of_arena() in ("mail_is_that_of_the_core", "server_still_serves")


def test_a_reply_that_is_not_that_of_the_core_is_found(monkeypatch, no_leaks):
    monkeypatch.setattr(sockets.FuzzHandler, "do_NOOP", lambda self, event: Reply(252))
    assert first_of_arena(40) == "replies_are_those_of_the_core"


def test_what_is_left_is_found(monkeypatch):
    with sockets.Arena() as arena:
        pass
    monkeypatch.setattr(sockets, "DEADLINE", 0.01)
    with open(__file__, "rb"):
        assert "descriptors" in arena.leaks() or sockets.descriptors() == 0


def test_a_difference_without_explanation_is_found(monkeypatch):
    module = differential()
    monkeypatch.setattr(module, "EXPLANATIONS", ())
    with module.Pair() as pair:
        found = [pair.check(module.make_case(seed)) for seed in range(10)]
    assert "we_agree" in [finding.rule for finding in found if finding is not None]


# -- the command line ----------------------------------------------------------------------------


def run_main(capsys, *arguments):
    status = cli.main(list(arguments))
    return status, capsys.readouterr().out


def test_nothing_found_is_status_0(capsys):
    status, out = run_main(capsys, "--seed", "1", "--sessions", "5")
    assert status == 0
    assert out.startswith("seed 1\n")
    assert "5 sessions" in out


def test_a_finding_is_status_1_and_can_be_replayed(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(maildata, "DataDecoder", TakesDots)
    status, out = run_main(capsys, "--seed", "1", "--sessions", "200")
    assert status == 1
    assert "finding: content_is_what_was_sent (core)" in out
    seed = out.partition("--replay ")[2].split()[0]
    status, out = run_main(capsys, "--replay", seed)
    assert status == 1
    assert "C: " in out
    monkeypatch.undo()
    assert run_main(capsys, "--replay", seed)[0] == 0


def test_a_file_can_be_replayed(capsys, tmp_path):
    path = tmp_path / "said"
    path.write_text("b'NOOP\\r\\nQUIT\\r\\n'\n")
    status, out = run_main(capsys, "--replay", str(path))
    assert status == 0
    assert "S: NOOP: " in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--seconds", "0"),
        ("--sessions", "x"),
        ("--seed", "-1"),
        ("--wrong",),
        ("--replay", "/no/such/file"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_aiosmtpd_it_says_so_in_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiosmtpd", None)
    monkeypatch.setitem(sys.modules, "aiosmtpd.controller", None)
    with pytest.raises(SystemExit) as caught:
        cli.main(["--differential"])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert "pip install aiosmtpd" in err
    assert err.count("\n") == 1


def test_help_fits_a_screen_and_shows_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.count("\n") <= 24
    assert "(default: 60.0)" in out


def test_it_runs_in_a_plain_clone(tmp_path):
    command = [sys.executable, str(FUZZ), "--seed", "1", "--sessions", "3"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, timeout=DEADLINE, env={"PATH": ""}, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"3 sessions" in done.stdout


def test_an_interrupt_ends_with_a_summary():
    with Program(str(FUZZ), "--seed", "1", "--seconds", "600") as program:
        assert program.line() == "seed 1"
        program.signal(signal.SIGINT)
        assert program.finish() == 0
        assert b" sessions, " in program.remaining()
        assert program.errors.count("Traceback") == 0
