"""Stopping under load: many sessions in every state, by stop() and by SIGTERM.

The script tests/load/stop.py holds the rounds and says what must be.
"""

import argparse
import os
import random
import subprocess
import sys

import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "tests" / "load"))
import stop as stop_load

pytestmark = pytest.mark.load

LONG = os.environ.get("SMTPD_SYNC_LONG") == "1"
ROUNDS, SESSIONS = (20, 200) if LONG else (1, 200)


@pytest.fixture
def hold(certificate, no_leaks):
    """Hold rounds; check that all that must hold did: ``hold(mode, kind)``."""

    def run(mode, kind):
        seed = random.SystemRandom().getrandbits(32)
        options = argparse.Namespace(
            mode=mode,
            kind=kind,
            rounds=ROUNDS,
            sessions=SESSIONS,
            timeout=stop_load.TIMEOUT,
            seed=seed,
            certificate=certificate,
        )
        report = stop_load.load(options)
        print(report.table())
        # Shown by pytest where the test fails.
        print(f"seed {seed}", *report.problems, sep="\n")
        assert report.problems == []
        return report

    return run


modes = pytest.mark.parametrize(
    "mode",
    [
        "stop",
        pytest.param(
            "sigterm",
            marks=pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX"),
        ),
    ],
)


@modes
def test_stop_cuts_off_at_its_deadline_who_does_not_end(hold, mode):
    report = hold(mode, "held")
    assert {name for name, row in report.rows.items() if row["cut"]} >= {
        name for name, state in stop_load.STATES.items() if state.holds
    }


@modes
def test_stop_is_over_long_before_its_deadline_where_all_go_on(hold, mode):
    report = hold(mode, "quick")
    assert set(report.rows) == {n for n, state in stop_load.STATES.items() if not state.holds}


def test_script_prints_a_table(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "load" / "stop.py")]
    options = ["--rounds", "1", "--sessions", "8", "--timeout", "1", "--seed", "1"]
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("seed 1\nstate ")
    assert done.stdout.endswith("0 problems\n")
    assert done.stderr.startswith("round 1 of 1 (stop, held): ")


def test_script_has_help(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "load" / "stop.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    for default in ("(default: 20)", "(default: 200)"):
        assert default in done.stdout
