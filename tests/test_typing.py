"""The types of the public face are what a user's ``mypy --strict`` needs."""

import importlib.util
import subprocess
import sys

import pytest
from support import ROOT


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_public_face_passes_mypy_strict(tmp_path):
    command = ["-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "tests/typing_api.py"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
