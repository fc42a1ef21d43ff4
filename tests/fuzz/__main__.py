"""Run the fuzzer: ``python3 tests/fuzz``."""

import pathlib
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from fuzz.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
