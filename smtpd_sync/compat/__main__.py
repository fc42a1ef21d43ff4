"""``python3 -m smtpd_sync.compat PATH ...``: change the imports of programs to ours.

Shows what would be changed as a diff, and changes it with ``--write``.
"""

from __future__ import annotations

import difflib
import io
import os
import shutil
import sys
import tokenize
from typing import Iterator, List, Optional, Sequence, Tuple

from ..durable import Draft
from ..flags import Parser
from .codemod import MODULES, Trouble, convert

__all__ = ["main"]

NO_NEWLINE = b"\n\\ No newline at end of file\n"


def parser() -> Parser:
    """Make the parser."""
    made = Parser(
        prog="python3 -m smtpd_sync.compat",
        description="Change the imports of smtpd, asyncore and asynchat, which left the standard "
        "library with Python 3.12, to those of smtpd_sync.compat. The change is shown as a diff.",
        epilog="What is not an import statement is not changed; what of it needs a change is told "
        "by file and line. Directories whose name begins with a dot, and virtual environments, "
        "are left alone. The status is 0 if nothing is to do or all is done, 1 if something is "
        "to change or could not be changed, 2 if the command cannot be.",
    )
    made.add_argument(
        "paths", nargs="+", metavar="PATH", help="a file, or a directory with its *.py files"
    )
    made.add_argument("--write", action="store_true", help="make the change, too")
    return made


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; give the status to exit with."""
    made = parser()
    arguments = made.parse_args(argv)
    for path in arguments.paths:
        if not os.path.isfile(path) and not os.path.isdir(path):
            made.error(f"{path}: there is no such file or directory")
    changed, left = 0, 0
    for path in sources(arguments.paths):
        troubles: List[Trouble] = []
        try:
            old, new, troubles = examine(path)
            if new != old:
                if arguments.write:
                    replace(path, new)
                changed += 1
                show(difference(path, old, new))
        except BrokenPipeError:
            # Who reads has seen enough; what is left must not be written at our end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            troubles = [Trouble(1, error.strerror or str(error))]
        left += len(troubles)
        for trouble in troubles:
            print(f"{path}:{trouble.line}: {trouble.text}", file=sys.stderr)
    if changed:
        what = "changed" if arguments.write else "to change, with --write"
        print(f"{changed} file{'s' * (changed > 1)} {what}", file=sys.stderr)
    return 1 if left or (changed and not arguments.write) else 0


def sources(paths: Sequence[str]) -> Iterator[str]:
    """Give the files that are meant, each once."""
    seen = set()
    for path in paths:
        for found in [path] if os.path.isfile(path) else programs(path):
            real = os.path.realpath(found)
            if real not in seen:
                seen.add(real)
                yield found


def programs(directory: str) -> Iterator[str]:
    """Give the programs of a directory that are its own."""
    for top, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if is_own(os.path.join(top, name)))
        yield from (os.path.join(top, name) for name in sorted(names) if name.endswith(".py"))


def is_own(directory: str) -> bool:
    """Tell a directory from one of a tool, such as ``.git``, and from a virtual environment."""
    hidden = os.path.basename(directory).startswith(".")
    return not hidden and not os.path.exists(os.path.join(directory, "pyvenv.cfg"))


def examine(path: str) -> Tuple[bytes, bytes, List[Trouble]]:
    """Give what stands in a file, what is to stand there, and what is left to a person."""
    with open(path, "rb") as file:
        old = file.read()
    if not any(module.encode() in old for module in MODULES):
        return old, old, []
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(old).readline)
        text = old.decode(encoding)
        if text.encode(encoding) != old:
            raise ValueError(f"it cannot be written as it was, in {encoding}")
        new, troubles = convert(text, beside(path))
    except (SyntaxError, ValueError) as error:
        text = f"cannot be read: {getattr(error, 'msg', error)}"
        return old, old, [Trouble(line_of(error, old), text)]
    return old, new.encode(encoding), troubles


def line_of(error: Exception, octets: bytes) -> int:
    """Give the line of a file that an error is about."""
    if isinstance(error, UnicodeDecodeError):
        return octets[: error.start].count(b"\n") + 1
    return getattr(error, "lineno", None) or 1


def beside(path: str) -> List[str]:
    """Name the modules that stand in the directory of a program."""
    directory = os.path.dirname(path)
    return [
        module
        for module in MODULES
        if os.path.exists(os.path.join(directory, f"{module}.py"))
        or os.path.exists(os.path.join(directory, module, "__init__.py"))
    ]


def difference(path: str, old: bytes, new: bytes) -> bytes:
    """Give a diff in the octets of the file, so that it can be applied to it."""
    name = os.fsencode(path)
    before, after = io.BytesIO(old).readlines(), io.BytesIO(new).readlines()
    lines = difflib.diff_bytes(difflib.unified_diff, before, after, name, name)
    return b"".join(line if line.endswith(b"\n") else line + NO_NEWLINE for line in lines)


def show(octets: bytes) -> None:
    """Print octets at once, before what is told on standard error."""
    sys.stdout.buffer.write(octets)
    sys.stdout.buffer.flush()


def replace(path: str, octets: bytes) -> None:
    """Put something else into a file; whatever happens, it is the old or the new, whole."""
    path = os.path.realpath(path)
    with Draft(f"{path}.{os.getpid()}.new") as draft:
        draft.write(octets)
        shutil.copymode(path, draft.path)
        draft.commit(path)


if __name__ == "__main__":
    sys.exit(main())
