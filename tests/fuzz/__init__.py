"""A fuzzer of SMTP sessions: ``python3 tests/fuzz --help``.

A session is one number: `case.make_case` makes it, `core`, `sockets` and `differential` play it.
"""

import pathlib
import sys

ROOT = str(pathlib.Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)  # it runs in a plain clone, where nothing is installed
