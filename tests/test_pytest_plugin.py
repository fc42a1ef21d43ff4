"""The plugin for pytest, in runs of pytest of its own."""

import configparser
import os

import pytest
from support import ROOT

from smtpd_sync.testing import MailCatcher

PLUGIN = "smtpd_sync.pytest_plugin"

TESTS = """
import pytest, smtplib, threading
from smtpd_sync.testing import MailCatcher

ports = []

def send(mail, sender="ann@example.com", text="hello"):
    with smtplib.SMTP(mail.host, mail.port, local_hostname="c.example") as client:
        if client.ehlo() and client.has_extn("auth"):
            client.login("ann", "secret")
        client.sendmail(sender, "bob@example.com", f"Subject: hi\\n\\n{text}\\n")

def test_first(mail_catcher):
    assert isinstance(mail_catcher, MailCatcher)
    ports.append(mail_catcher.port)
    send(mail_catcher)
    mail_catcher.fail("MAIL", 451)
    mail_catcher.assert_sent()

def test_second_has_the_same_server_without_mail_and_faults(mail_catcher, mail_catcher_server):
    assert mail_catcher is mail_catcher_server
    assert mail_catcher.port == ports[0]
    assert not mail_catcher.messages and not mail_catcher.sessions
    send(mail_catcher)
    mail_catcher.assert_sent()

@pytest.mark.mail_catcher(auth="any", banner="marked")
class TestMarked:
    def test_class(self, mail_catcher):
        assert mail_catcher.port != ports[0]
        send(mail_catcher)
        assert mail_catcher.messages[0].user == "ann"
        assert mail_catcher.sessions[0].transcript[0].endswith(" marked")

    @pytest.mark.mail_catcher(banner="nearer")
    def test_nearest_wins(self, mail_catcher):
        send(mail_catcher)
        assert mail_catcher.messages[0].user == "ann"
        assert mail_catcher.sessions[0].transcript[0].endswith(" nearer")
        ports.append(mail_catcher.port)

def test_made(make_mail_catcher, mail_catcher):
    one, two = make_mail_catcher(starttls=True), make_mail_catcher()
    assert len({one.port, two.port, mail_catcher.port}) == 3
    with pytest.raises(ConnectionRefusedError):
        smtplib.SMTP("127.0.0.1", ports[-1])
    send(two)
    assert [len(each.messages) for each in (one, two, mail_catcher)] == [0, 1, 0]

@pytest.mark.mail_catcher("positional")
def test_marked_wrongly(mail_catcher):
    pass

def test_that_fails(mail_catcher, make_mail_catcher):
    send(mail_catcher, sender="failing@example.com", text="the text")
    send(make_mail_catcher(), sender="other@example.com")
    mail_catcher.wait_one(timeout=0.01, subject="nothing like this")

def test_that_passes(mail_catcher):
    send(mail_catcher, sender="passing@example.com")

def test_without_the_fixture():
    assert False
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest on these tests in a process of its own, with the plugin once: ``run(code)``."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def make(code, *arguments, plugins=(PLUGIN,)):
        pytester.makeini("[pytest]")  # nothing above this directory is looked at
        pytester.makepyfile(test_it=code)
        named = [argument for name in plugins for argument in ("-p", name)]
        return pytester.runpytest_subprocess(
            *("-W", "error", "-p", "no:cacheprovider", "--strict-markers", *named, *arguments)
        )

    return make


def test_fixtures_catch_for_each_test_and_failures_show_the_dialogue(run):
    result = run(TESTS, "-rA")
    outcomes = result.parseoutcomes()
    assert outcomes == {"passed": 6, "failed": 2, "errors": 1}, outcomes
    text = result.stdout.str()
    assert "takes keywords, as MailCatcher does" in text
    shown = text[text.index("_ test_that_fails _") : text.index("_ test_without_the_fixture _")]
    assert shown.count("- Mail catcher smtp://127.0.0.1:") == 2
    assert "-- session 1, 127.0.0.1" in shown
    assert "from:<failing@example.com>" in shown.lower()
    assert "S: 250 2.0.0 OK " in shown
    assert "-- mail 1: failing@example.com -> bob@example.com 'hi'" in shown
    assert "the text" in shown
    assert "-- mail 1: other@example.com" in shown
    # The line of the test, not one of ours, and what did come.
    assert '>       mail_catcher.wait_one(timeout=0.01, subject="nothing like this")\nE  ' in shown
    assert "caught, oldest first:" in shown
    assert "def wait_one" not in shown
    assert "Mail catcher" not in text[text.index("_ test_without_the_fixture _") :]
    assert "passing@example.com" not in text


def test_run_that_uses_no_fixture_imports_nothing_of_the_package(run):
    code = """
        import sys

        def test_nothing():
            ours = [name for name in sys.modules if name.startswith("smtpd_sync")]
            assert ours == ["smtpd_sync", "smtpd_sync.pytest_plugin"]
        """
    assert run(code).parseoutcomes() == {"passed": 1}


def test_plugin_may_be_named_though_it_is_installed(run, pytester, monkeypatch):
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    (point,) = config["options.entry_points"]["pytest11"].strip().splitlines()
    name, module = point.split(" = ")
    assert name == module == PLUGIN  # or it would be registered under two names
    # What an installed package looks like to pytest.
    info = pytester.path / "smtpd_sync-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: smtpd-sync\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[pytest11]\n{point}\n")
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    code = "def test_it(mail_catcher): pass"
    assert run(code, plugins=()).parseoutcomes() == {"passed": 1}
    pytester.makeconftest(f"pytest_plugins = [{PLUGIN!r}]")
    assert run(code).parseoutcomes() == {"passed": 1}


def test_fixtures_are_here_too(mail_catcher, make_mail_catcher):
    assert isinstance(mail_catcher, MailCatcher)
    assert make_mail_catcher(max_messages=1).messages == []


@pytest.mark.interop
def test_each_worker_of_xdist_has_its_own_server(run, tmp_path):
    pytest.importorskip("xdist")
    result = run(
        f"""
        import pathlib, smtplib, time, pytest

        @pytest.mark.parametrize("number", range(40))
        def test_it(number, mail_catcher, worker_id):
            with smtplib.SMTP(mail_catcher.host, mail_catcher.port) as client:
                client.sendmail(f"{{number}}@example.com", "bob@example.com", "hi")
            time.sleep(0.01)  # so that the others have sent theirs
            assert [mail.sender for mail in mail_catcher.messages] == [f"{{number}}@example.com"]
            pathlib.Path({str(tmp_path)!r}, f"{{worker_id}}-{{mail_catcher.port}}").touch()

        def test_that_fails(mail_catcher):
            with smtplib.SMTP(mail_catcher.host, mail_catcher.port) as client:
                client.sendmail("failing@example.com", "bob@example.com", "hi")
            assert False
        """,
        *("-n", "4"),
        plugins=(PLUGIN, "xdist"),
    )
    assert result.parseoutcomes() == {"passed": 40, "failed": 1}
    assert "-- mail 1: failing@example.com" in result.stdout.str()
    servers = sorted(os.listdir(tmp_path))
    assert [name[:4] for name in servers] == ["gw0-", "gw1-", "gw2-", "gw3-"]
