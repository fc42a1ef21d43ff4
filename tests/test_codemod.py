"""The codemod: imports of the removed modules become ours, and nothing else is touched."""

import ast
import codecs
import os
import shutil
import stat
import subprocess
import sys

import pytest
from support import DEADLINE, ROOT, Program

from smtpd_sync.compat import asynchat, asyncore, smtpd
from smtpd_sync.compat.__main__ import main
from smtpd_sync.compat.codemod import HOME, convert

CHANGES = {
    "import smtpd": "from smtpd_sync.compat import smtpd",
    "import smtpd, asyncore": "from smtpd_sync.compat import smtpd, asyncore",
    "import asyncore": "from smtpd_sync.compat import asyncore",
    "import asynchat": "from smtpd_sync.compat import asynchat",
    "import smtpd as x": "from smtpd_sync.compat import smtpd as x",
    "import  smtpd ,asyncore  as  core": "from smtpd_sync.compat import smtpd, asyncore as core",
    "import smtpd, \\\n    asyncore": "from smtpd_sync.compat import smtpd, asyncore",
    "import smtpd  # why": "from smtpd_sync.compat import smtpd  # why",
    "import os, smtpd, sys": "import os, sys\nfrom smtpd_sync.compat import smtpd",
    "import os.path as p, smtpd as s": (
        "import os.path as p\nfrom smtpd_sync.compat import smtpd as s"
    ),
    "import os, smtpd; smtpd": "import os\nfrom smtpd_sync.compat import smtpd; smtpd",
    "import smtpd; import asyncore": (
        "from smtpd_sync.compat import smtpd; from smtpd_sync.compat import asyncore"
    ),
    "import sys; import os, smtpd; smtpd": (
        "import sys; import os; from smtpd_sync.compat import smtpd; smtpd"
    ),
    "if 1: import os, smtpd": "if 1: import os; from smtpd_sync.compat import smtpd",
    "if 1: \\\n  import os, smtpd": "if 1: \\\n  import os; from smtpd_sync.compat import smtpd",
    "def f():\n\timport os, smtpd\n\treturn smtpd": (
        "def f():\n\timport os\n\tfrom smtpd_sync.compat import smtpd\n\treturn smtpd"
    ),
    "try:\n    import smtpd\nexcept ImportError:\n    smtpd = None": (
        "try:\n    from smtpd_sync.compat import smtpd\nexcept ImportError:\n    smtpd = None"
    ),
    "class C:\n    import asyncore\n    async def f(self):\n        import smtpd": (
        "class C:\n    from smtpd_sync.compat import asyncore\n"
        "    async def f(self):\n        from smtpd_sync.compat import smtpd"
    ),
    "from smtpd import SMTPServer, DebuggingServer": (
        "from smtpd_sync.compat.smtpd import SMTPServer, DebuggingServer"
    ),
    "from smtpd import SMTPServer as S": "from smtpd_sync.compat.smtpd import SMTPServer as S",
    "from smtpd import *": "from smtpd_sync.compat.smtpd import *",
    "from\tasyncore  import loop": "from\tsmtpd_sync.compat.asyncore  import loop",
    "from \\\n  asyncore import loop": "from \\\n  smtpd_sync.compat.asyncore import loop",
    "from asynchat import (  # one\n    async_chat,  # two\n)  # three": (
        "from smtpd_sync.compat.asynchat import (  # one\n    async_chat,  # two\n)  # three"
    ),
    "'é𝄞'; import smtpd, os  # é": ("'é𝄞'; import os; from smtpd_sync.compat import smtpd  # é"),
    "'\\d'; import smtpd": "'\\d'; from smtpd_sync.compat import smtpd",
    "x = '''\n\x0c\x85\u2028'''\nimport smtpd": (
        "x = '''\n\x0c\x85\u2028'''\nfrom smtpd_sync.compat import smtpd"
    ),
    "\x0cimport os, smtpd": "\x0cimport os\n\x0cfrom smtpd_sync.compat import smtpd",
}

LEFT = [
    "",
    "# import smtpd",
    "'import smtpd'",
    "def f():\n    '''Like\n    import smtpd\n    '''",
    "import smtplib, asyncio, aiosmtpd, my.smtpd, smtpd_ssl",
    "import my.smtpd as smtpd\nsmtpd.nothing_of_ours",
    "from . import smtpd, asyncore",
    "from .smtpd import SMTPServer",
    "from aiosmtpd import smtpd\nsmtpd.SMTP",
    "from smtpd_sync.compat import smtpd, handler\nsmtpd.SMTPServer",
    "from smtpd_sync.compat.asyncore import loop",
    "import smtpd_sync.compat.smtpd",
    "smtpd.nothing()",
    "log('smtpd'); patch('my.smtpd.X'); setattr(self, 'smtpd', 1)",
    "sys.modules['smtpd'] = mine",
    "run(['-m', 'smtpd_sync.compat.smtpd'])",
    "patch('smtpd and more'); patch('smtpd.x and more'); patch(); patch(1)",
]

TROUBLES = {
    "__import__('smtpd')": "__import__('smtpd'): the string is to be 'smtpd_sync.compat.smtpd'",
    "importlib.import_module('asyncore')": (
        "importlib.import_module('asyncore'): the string is to be 'smtpd_sync.compat.asyncore'"
    ),
    "@mock.patch('smtpd.SMTPServer')\ndef f(m): pass": (
        "mock.patch('smtpd.SMTPServer'): the string is to be 'smtpd_sync.compat.smtpd.SMTPServer'"
    ),
    "monkeypatch.setattr('asyncore.loop', f)": (
        "monkeypatch.setattr('asyncore.loop'): "
        "the string is to be 'smtpd_sync.compat.asyncore.loop'"
    ),
    "sys.modules['smtpd']": ("sys.modules['smtpd']: the string is to be 'smtpd_sync.compat.smtpd'"),
    "sys.modules.pop('smtpd', None)": (
        "sys.modules.pop('smtpd'): the string is to be 'smtpd_sync.compat.smtpd'"
    ),
    "Popen([sys.executable, '-m', 'smtpd', '-n'])": (
        "'-m', 'smtpd': the string is to be 'smtpd_sync.compat.smtpd'"
    ),
    "execlp('python', 'python', '-m', 'smtpd')": (
        "'-m', 'smtpd': the string is to be 'smtpd_sync.compat.smtpd'"
    ),
    "import smtpd.x": "import smtpd.x: there is no such module",
    "from asyncore.y import z": "from asyncore.y import: there is no such module",
    "from smtpd import SMTPServer, MailmanProxy": "smtpd_sync.compat.smtpd has no MailmanProxy",
    "from smtpd_sync.compat.smtpd import MailmanProxy": (
        "smtpd_sync.compat.smtpd has no MailmanProxy"
    ),
    "from smtpd_sync.compat import asynchat as c\nc.fifo": (
        "c.fifo: smtpd_sync.compat.asynchat has no fifo"
    ),
}


@pytest.mark.parametrize("old", CHANGES)
def test_import_is_changed(old):
    assert convert(old) == (CHANGES[old], [])


@pytest.mark.parametrize("old", CHANGES)
def test_change_is_idempotent(old):
    assert convert(CHANGES[old]) == (CHANGES[old], [])


@pytest.mark.parametrize("old", LEFT)
def test_what_is_no_such_import_is_left(old):
    assert convert(old) == (old, [])


@pytest.mark.parametrize("old", TROUBLES)
def test_what_cannot_be_changed_is_told(old):
    new, ((line, text),) = convert(f"\n\n{old}")
    assert (new, text) == (f"\n\n{old}", TROUBLES[old])
    assert line == 3 + (old.endswith(".fifo"))


def test_name_that_ours_lacks_is_told_where_it_is_used():
    old = "import smtpd as s, asyncore\ndef f():\n    s.MailmanProxy\n    asyncore.loop()\n"
    new, troubles = convert(old)
    assert new.startswith("from smtpd_sync.compat import smtpd as s, asyncore\n")
    assert troubles == [(3, "s.MailmanProxy: smtpd_sync.compat.smtpd has no MailmanProxy")]
    assert convert(new) == (new, troubles)


@pytest.mark.parametrize(
    "other",
    ["smtpd = Mine()", "def f(smtpd): pass", "from mine import smtpd", "import mine as smtpd"],
)
def test_names_of_something_else_are_not_told(other):
    assert convert(f"import smtpd\n{other}\nsmtpd.started")[1] == []


def test_name_may_be_set_that_ours_lacks():
    assert convert("import smtpd\nsmtpd.mine = 1")[1] == []


def test_every_public_name_of_the_old_modules_is_known():
    names = {
        smtpd: "SMTPServer SMTPChannel DebuggingServer PureProxy DEBUGSTREAM NEWLINE COMMASPACE",
        asyncore: "loop poll poll2 close_all socket_map ExitNow dispatcher dispatcher_with_send",
        asynchat: "async_chat simple_producer find_prefix_at_end",
    }
    for module, public in names.items():
        short = module.__name__.rpartition(".")[2]
        statement = f"from {short} import {', '.join(public.split())}"
        assert convert(statement) == (statement.replace(short, f"{HOME}.{short}", 1), [])


def test_module_beside_the_program_may_be_meant():
    old = "import smtpd, asyncore\nfrom smtpd import SMTPServer\n"
    new, troubles = convert(old, beside=["smtpd"])
    assert new == (
        "import smtpd\nfrom smtpd_sync.compat import asyncore\nfrom smtpd import SMTPServer\n"
    )
    text = "import of smtpd: may mean the smtpd beside this file"
    assert troubles == [(1, text), (2, text)]


def test_changed_program_does_what_it_did():
    old = (
        "import os, smtpd as mail, sys\nfrom asyncore import (loop as\n serve)\n"
        "def f():\n  import asynchat; return asynchat\n"
    )
    names = {}
    exec(convert(old)[0], names)
    assert names["mail"] is smtpd
    assert names["serve"] is asyncore.loop
    assert names["f"]() is asynchat
    assert names["os"] is os


@pytest.mark.parametrize("bad", ["import smtpd\nprint 'x'\n", "import smtpd\n\0", "smtpd(" * 9999])
def test_no_program_is_an_error(bad):
    with pytest.raises((SyntaxError, ValueError)):
        convert(bad)


@pytest.mark.parametrize(
    "deep",
    [
        f"import smtpd\nx = {'-' * 100_000}1",
        pytest.param(
            f"import smtpd\nsmtpd{'.x' * 100_000}",
            marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="this Python can do that"),
        ),
    ],
    ids=["unary", "attributes"],
)
def test_program_that_is_nested_too_deeply_is_an_error(deep):
    with pytest.raises(ValueError, match="nested too deeply"):
        convert(deep)


# -- files ---------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Make files: ``tree({"a.py": "import smtpd"})``; the working directory is theirs."""
    monkeypatch.chdir(tmp_path)

    def make(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path

    return make


@pytest.fixture
def codemod(capfdbinary):
    """Run it: gives the status, the diff and what it told."""

    def run(*arguments):
        status = main(arguments)
        out, err = capfdbinary.readouterr()
        return status, out.decode("utf-8", "surrogateescape"), err.decode()

    return run


DIFF = """\
--- a.py
+++ a.py
@@ -1,2 +1,2 @@
-import smtpd
+from smtpd_sync.compat import smtpd
 smtpd.SMTPServer
"""


def test_without_write_nothing_is_written(tree, codemod):
    path = tree({"a.py": "import smtpd\nsmtpd.SMTPServer\n"}) / "a.py"
    assert codemod("a.py") == (1, DIFF, "1 file to change, with --write\n")
    assert path.read_text() == "import smtpd\nsmtpd.SMTPServer\n"


def test_write_makes_the_change_that_is_shown(tree, codemod):
    path = tree({"a.py": "import smtpd\nsmtpd.SMTPServer\n"}) / "a.py"
    assert codemod("--write", "a.py") == (0, DIFF, "1 file changed\n")
    assert path.read_text() == "from smtpd_sync.compat import smtpd\nsmtpd.SMTPServer\n"
    assert os.listdir() == ["a.py"]
    assert codemod("--write", "a.py") == codemod("a.py") == (0, "", "")


def test_directories_are_searched(tree, codemod):
    old = "import asyncore\n"
    tree(dict.fromkeys(("d/b.py", "d/e/a.py", "d/a.txt", "d/.git/a.py", "d/v/a.py"), old))
    tree({"d/v/pyvenv.cfg": "", "c.txt": old})
    status, diff, told = codemod("d", "c.txt", "d/b.py", "./d")
    assert (status, told) == (1, "3 files to change, with --write\n")
    assert [line[4:] for line in diff.splitlines() if line.startswith("---")] == [
        *("d/b.py", "d/e/a.py", "c.txt")
    ]


@pytest.mark.parametrize("newline", ["\r\n", "\r", "\n"])
@pytest.mark.parametrize("end", [True, False])
def test_line_ends_are_kept(newline, end, tree, codemod):
    lines = ["# é", "x = 1", "import os, smtpd"]
    text = newline.join(lines) + newline * end
    path = tree({"a.py": text}) / "a.py"
    assert codemod("--write", "a.py")[0] == 0
    lines[2:] = ["import os", "from smtpd_sync.compat import smtpd"]
    last = newline.join(lines) + newline * end
    assert path.read_bytes() == last.encode()


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        (b"# -*- coding: latin-1 -*-\n", "latin-1"),
        (b"#!/usr/bin/python3\n# vim: set fileencoding=cp1252 :\n", "cp1252"),
        (b"# coding: shift_jis\n", "shift_jis"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF8 + b"# coding: utf-8\n", "utf-8"),
        (b"", "utf-8"),
    ],
)
def test_encoding_is_kept(head, encoding, tree, codemod):
    word = "'カナ'" if encoding == "shift_jis" else "'é'"
    old = head + f"{word}; import smtpd  # {word}\n".encode(encoding)
    path = tree({"a.py": old}) / "a.py"
    assert codemod("--write", "a.py")[0] == 0
    new = f"{word}; from smtpd_sync.compat import smtpd  # {word}\n".encode(encoding)
    assert path.read_bytes() == head + new


@pytest.mark.skipif(os.name != "posix", reason="modes are Unix's")
@pytest.mark.parametrize("mode", [0o755, 0o640])
def test_mode_is_kept(mode, tree, codemod):
    path = tree({"a.py": "import smtpd\n"}) / "a.py"
    path.chmod(mode)
    assert codemod("--write", "a.py")[0] == 0
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no symbolic links")
def test_symbolic_link_stays_one(tree, codemod):
    top = tree({"real/a.py": "import smtpd\n"})
    os.symlink("real/a.py", "link.py")
    assert codemod("--write", "link.py", "real")[0] == 0
    assert os.readlink("link.py") == "real/a.py"
    assert (top / "real" / "a.py").read_text() == "from smtpd_sync.compat import smtpd\n"


def test_what_cannot_be_done_is_told_by_file_and_line(tree, codemod):
    tree(
        {
            "a.py": "import smtpd\n\n__import__('smtpd')\n",
            "b.py": "import smtpd\nx = 1\nprint 'hello'\n",
            "c.py": b"# smtpd\n\nx = '\xff'\n",
            "d.py": b"# coding: nonsense\nimport smtpd\n",
            "e.py": b"# coding: iso-2022-jp\n# \x1b$B\x1b(B\x1b(B\nimport smtpd\n",
            "f/asyncore.py": "",
            "f/smtpd/__init__.py": "",
            "f/g.py": "import asyncore\nimport smtpd\n",
        }
    )
    status, diff, told = codemod("--write", ".")
    assert status == 1
    assert diff.startswith("--- ./a.py\n")
    places = [line.split(": ", 1)[0] for line in told.splitlines()]
    assert places == [
        *("./a.py:3", "./b.py:3", "./c.py:3", "./d.py:1", "./e.py:1"),
        *("./f/g.py:1", "./f/g.py:2", "1 file changed"),
    ]
    assert "cannot be read: " in told
    assert codemod(".")[0] == 1


def test_broken_programs_that_are_not_concerned_are_left_alone(tree, codemod):
    tree({"a.py": "print 'hello'\n", "b.py": b"x = '\xff'\n"})
    assert codemod(".") == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no symbolic links")
def test_file_that_cannot_be_read_is_told(tree, codemod):
    tree({"b.py": "import smtpd\n"})
    os.symlink("nowhere", "a.py")
    status, diff, told = codemod(".")
    assert status == 1
    assert "+++ ./b.py" in diff
    assert told.startswith("./a.py:1: ")


def test_file_that_cannot_be_written_is_told_and_whole(tree, codemod):
    long = "d/" + "n" * (os.pathconf("/", "PC_NAME_MAX") - 3) + ".py"  # no room for a draft's name
    top = tree({long: "import smtpd\n", "e.py": "import smtpd\n"})
    status, diff, told = codemod("--write", "d", "e.py")
    assert status == 1
    assert [line for line in diff.splitlines() if line.startswith("+++")] == ["+++ e.py"]
    assert told.startswith(f"{long}:1: ")
    assert told.endswith("\n1 file changed\n")
    assert (top / long).read_text() == "import smtpd\n"
    assert os.listdir("d") == [long[2:]]


@pytest.mark.parametrize(
    "arguments", [[], ["nowhere.py"], ["a.py", "nowhere"], ["--wrong", "a.py"], ["--write"]]
)
def test_wrong_command_line_is_one_line_and_status_2(arguments, tree, capsys):
    tree({"a.py": "import smtpd\n"})
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)


def test_help_fits_a_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_it_runs_as_a_program(tree):
    top = tree({"a.py": "import smtpd\nsmtpd.SMTPServer\n"})
    with Program("-W", "error", "-m", HOME, "a.py", cwd=top) as program:
        assert program.finish() == 1
        assert program.remaining().decode().replace("\r\n", "\n") == DIFF
        assert program.errors == "1 file to change, with --write\n"


def test_reader_of_the_diff_may_go_early(tree):
    tree({f"{number}.py": "import smtpd\n" * 100 for number in range(40)})
    program = subprocess.Popen(
        [sys.executable, "-m", HOME, "."],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with program:
        assert program.stdout.readline().rstrip() == b"--- ./0.py"
        program.stdout.close()
        assert program.stderr.read() == b""
        assert program.wait(DEADLINE) == 1


@pytest.mark.interop
def test_diff_can_be_applied(tree, codemod):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    files = {
        "a.py": b"import smtpd\r\nx = 1\r\n",
        "b.py": b"# coding: latin-1\n'\xe9'; import os, smtpd",
        "d/c.py": b"x = 1\n" * 20 + b"import asyncore\n" + b"x = 2\n" * 20 + b"import smtpd\n",
    }
    top = tree(files)
    _, diff, _ = codemod(".")
    diff = diff.encode("utf-8", "surrogateescape")
    apply = ["git", "apply", "-p1", "--whitespace=nowarn", "-"]
    subprocess.run(apply, input=diff, check=True, timeout=DEADLINE)
    patched = {name: (top / name).read_bytes() for name in files}
    tree(files)
    codemod("--write", ".")
    assert patched == {name: (top / name).read_bytes() for name in files}
    assert patched["a.py"] == b"from smtpd_sync.compat import smtpd\r\nx = 1\r\n"


def as_ours(tree):
    """Give the tree of a program, dumped, with its imports as ours by way of the tree alone."""

    class Ours(ast.NodeTransformer):
        def visit_Import(self, node):
            ours = [a for a in node.names if a.name in ("smtpd", "asyncore", "asynchat")]
            rest = [a for a in node.names if a not in ours]
            made = [ast.Import(rest)] if rest else []
            return [*made, ast.ImportFrom(HOME, ours, 0)] if ours else node

        def visit_ImportFrom(self, node):
            if node.module in ("smtpd", "asyncore", "asynchat"):
                node.module = f"{HOME}.{node.module}"
            return node

    return ast.dump(Ours().visit(tree))


@pytest.mark.interop
def test_programs_of_the_library_are_changed_in_their_imports_only():
    """All of the standard library, with an import of ours put into each of its programs."""
    top = os.path.dirname(os.__file__)
    count = 0
    for name in sorted(os.listdir(top))[::3]:
        if not name.endswith(".py"):
            continue
        with open(os.path.join(top, name), encoding="utf-8") as file:
            old = file.read() + "\nif 1:\n    import os, smtpd as s, asyncore\n"
        new, _ = convert(old)
        assert ast.dump(ast.parse(new)) == as_ours(ast.parse(old)), name
        count += 1
    assert count > 40
