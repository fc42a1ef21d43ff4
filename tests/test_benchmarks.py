"""The speed scripts run, and tell a ratio. What they measure is not judged here."""

import re
import subprocess
import sys

import pytest
from support import ROOT

SCRIPTS = {
    "commands.py": ("--rounds", "2", "--groups", "5"),
    "data.py": ("--rounds", "1", "--size", "0.1"),
}


def run(script, *arguments, cwd):
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / script), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_prints_a_ratio(script, tmp_path):
    done = run(script, *SCRIPTS[script], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (number, *_) = re.findall(r"^ratio.* ([0-9]+\.[0-9]+)", done.stdout, re.MULTILINE)
    assert float(number) > 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_has_help(script, tmp_path):
    done = run(script, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "--rounds" in done.stdout


@pytest.mark.parametrize(("script", "goal"), [("commands.py", "--at-most"), ("data.py", None)])
def test_script_fails_where_a_goal_is_missed(script, goal, tmp_path):
    if goal is None:
        goal = "--at-least"
        pytest.importorskip("aiosmtpd", reason="aiosmtpd is not installed")
    out_of_reach = {"--at-most": "0.000001", "--at-least": "1000000"}[goal]
    done = run(script, *SCRIPTS[script], goal, out_of_reach, cwd=tmp_path)
    assert done.returncode == 1
    assert "ratio" in done.stdout
