"""Idle connections: what they cost. The script tests/load/idle.py measures, and judges."""

import os
import re
import subprocess
import sys

import pytest
from support import ROOT

pytestmark = [
    pytest.mark.load,
    pytest.mark.skipif(
        not os.path.exists("/proc/self/status"), reason="the system has no /proc to measure by"
    ),
]

CONNECTIONS = 500


def run(*arguments, cwd):
    command = [sys.executable, str(ROOT / "tests" / "load" / "idle.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_idle_connections_cost_little(tmp_path):
    # Bounds for a gross miss only: Python 3.9 needs more than its successors, and a busy
    # machine more time.
    goals = ("--at-most-kib", "48", "--at-most-ms", "200")
    done = run("--connections", str(CONNECTIONS), "--sessions", "50", *goals, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    held, kib, milliseconds = re.fullmatch(
        r"python .*, ([0-9]+) idle connections in .*\n"
        r"resident memory .* KiB: ([0-9.]+) .*\n"
        r"whole session .* median ([0-9.]+) .*\n",
        done.stdout,
    ).groups()
    assert int(held) == CONNECTIONS
    assert float(kib) > 4  # a thread without a page of its own there is not
    assert float(milliseconds) > 0


@pytest.mark.parametrize("goal", ["--at-most-kib", "--at-most-ms"])
def test_script_fails_where_a_goal_is_missed(goal, tmp_path):
    done = run("--connections", "50", "--sessions", "10", goal, "0.001", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "(at most 0.001)" in done.stdout


def test_few_descriptors_hold_fewer_connections(tmp_path):
    resource = pytest.importorskip("resource")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 400:
        pytest.skip("descriptors are fewer still")
    script = str(ROOT / "tests" / "load" / "idle.py")
    code = f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
sys.argv = [{script!r}, "--connections", "500", "--sessions", "5", "--at-most-kib", "99"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "only 100 connections: RLIMIT_NOFILE is 400\n"
    assert " 100 idle connections " in done.stdout


def test_script_has_help(tmp_path):
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    for default in ("(default: 5000)", "(default: 24.0)", "(default: 10.0)"):
        assert default in done.stdout
