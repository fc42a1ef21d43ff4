"""Against the old modules themselves, and what was written against them: Django's and CPython's.

The old modules are those of a Python from 3.9 to 3.11; CPython's tests are those of 3.11.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import legacy_runs
import pytest
from legacy_dialogues import DIALOGUES
from support import ROOT

pytestmark = pytest.mark.interop

OLD_PYTHONS = ("3.11", "3.10", "3.9")
TESTS = pathlib.Path(__file__).parent
DJANGO = "Django==3.2.8"  # the last whose tests use smtpd
NEEDS = ("asgiref", "sqlparse", "pytz")

# Runs a module of tests, or Django's runner, with our modules in the place of the old ones.
REPLACED = """
import sys
from smtpd_sync.compat import asynchat, asyncore, smtpd
sys.modules.update(asynchat=asynchat, asyncore=asyncore, smtpd=smtpd)
"""
DJANGO_RUNNER = """
import runpy, sys
sys.argv = ["runtests.py", "mail", "--parallel=1", "--verbosity=2"]
sys.path.insert(0, ".")
runpy.run_path("runtests.py", run_name="__main__")
"""
CPYTHON_RUNNER = """
import importlib.util, sys, unittest
name, path = sys.argv[1:]
spec = importlib.util.spec_from_file_location(name, path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
suite = unittest.defaultTestLoader.loadTestsFromModule(module)
result = unittest.TextTestRunner(verbosity=2).run(suite)
"""


SUPPORT = "import test.mock_socket, test.support.socket_helper"


def python_with(version, program):
    """Give the Python of a version that can run a program; ``None`` if there is none."""
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    found = [shutil.which(f"python{version}"), *pyenv.glob(f"versions/{version}.*/bin/python3")]
    for python in filter(None, found):
        done = subprocess.run(
            [python, "-W", "ignore", "-c", program], capture_output=True, check=False, timeout=60
        )
        if done.returncode == 0:
            return str(python)
    return None


@pytest.fixture(scope="module")
def old_python():
    """A Python that has the old modules."""
    for version in OLD_PYTHONS:
        python = python_with(version, "import asynchat, asyncore, smtpd, ssl, sqlite3")
        if python is not None:
            return python
    pytest.skip(f"no Python of {', '.join(OLD_PYTHONS)} is installed")


def run(python, *arguments, cwd=None, path=()):
    """Run a program; give what it prints and says."""
    done = subprocess.run(
        [python, "-W", "ignore", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path)))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout, done.stderr


# -- side by side ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(old_python):
    """What the old modules and ours make of the dialogues, in the same Python."""
    program = str(TESTS / "legacy_dialogues.py")
    found = []
    for which in ("old", "ours"):
        printed, errors = run(old_python, program, which)
        assert printed, errors
        found.append(json.loads(printed))
    return found


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogue_is_the_same(name, both):
    old, ours = (found[name] for found in both)
    assert ours == old
    assert len(ours[0]) == len(DIALOGUES[name])


@pytest.mark.parametrize("name", ["fake_server", "login", "legacy"])
def test_program_does_the_same(name, old_python, tmp_path):
    program = getattr(legacy_runs, name.upper())
    old, ours = (
        getattr(legacy_runs, f"run_{name}")(
            old_python, legacy_runs.written_for(which, program, tmp_path)
        )
        for which in ("old", "ours")
    )
    assert ours == old


# -- Django's tests --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def django(old_python, tmp_path_factory):
    """Django's source and a Python for it: (python, directory)."""
    directory = tmp_path_factory.mktemp("django")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    source = [*pip, "download", "--no-deps", "--no-binary=Django", DJANGO]
    installed = [*pip, "install", "--target", str(directory / "site"), *NEEDS]
    for command in (source, installed):
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode:
            pytest.skip(f"PyPI gave nothing: {done.stderr[-300:]}")
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(directory, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (unpacked,) = directory.glob("Django-*/")
    return old_python, unpacked, directory / "site"


def results(errors):
    """Read what each test came to: (its name or what it says of itself, how it ended)."""
    lines = [line.partition(" ... ") for line in errors.splitlines() if " ... " in line]
    return [(name.split(" (")[0], outcome) for name, _, outcome in lines]


def test_mail_tests_of_django_come_to_the_same(django):
    python, unpacked, site = django
    outcomes = []
    for prelude in ("", REPLACED):
        arguments = ("-c", prelude + DJANGO_RUNNER)
        _, errors = run(python, *arguments, cwd=unpacked / "tests", path=(unpacked, site))
        outcomes.append(results(errors))
        assert errors.endswith("OK\n"), errors
    assert len(outcomes[0]) > 150
    assert outcomes[0] == outcomes[1]


# -- CPython's tests -------------------------------------------------------------------------


def cpython_test(name):
    """Find one of the tests of CPython 3.11."""
    program = f"import importlib.util as u; print(u.find_spec('test.{name}').origin)"
    python = python_with("3.11", program)
    if python is None:
        pytest.skip("the tests of CPython 3.11 are not installed (libpython3.11-testsuite)")
    return run(python, "-c", program)[0].strip()


def cpython_results(name):
    if subprocess.run([sys.executable, "-c", SUPPORT], capture_output=True, check=False).returncode:
        pytest.skip("this Python has no package test.support")
    _, errors = run(sys.executable, "-c", REPLACED + CPYTHON_RUNNER, name, cpython_test(name))
    return results(errors), errors


def test_smtplib_tests_of_cpython_pass():
    found, errors = cpython_results("test_smtplib")
    assert len(found) > 75
    assert {outcome for _, outcome in found} == {"ok"}, errors


# What process_message raises is for handle_error, and the client gets 451.
MEANT = {"test_process_message_unimplemented"}


def test_smtpd_tests_of_cpython_pass():
    found, errors = cpython_results("test_smtpd")
    assert len(found) > 140
    failed = {name for name, outcome in found if outcome in ("FAIL", "ERROR")}
    assert failed == MEANT, errors
