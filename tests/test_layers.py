"""How the house is built: imports go one way, the core is pure, and importing costs little."""

import ast
import pathlib
import subprocess
import sys

import pytest

import smtpd_sync

PACKAGE = pathlib.Path(smtpd_sync.__file__).parent
MODULES = {
    path.stem: ast.parse(path.read_text("utf-8"))
    for path in sorted(PACKAGE.glob("*.py"))
    if path.stem not in ("__init__", "__main__")
}

# From the bottom to the top; a module imports from its own layer and from those below it.
LAYERS = (
    (
        *("limits", "patterns", "reply", "syntax", "command", "extensions"),
        *("data", "inbox", "maildata"),
        *("envelope", "saslprep", "sasl", "exchange", "states", "rules", "checks"),
        *("transcript", "answering", "mailreading", "authreading", "session"),
    ),
    ("hooks", "several", "trace", "proxy", "options", "logs", "stats", "storage"),
    (
        *(
            "connection",
            "negotiating",
            "overrides",
            "mailtaking",
            "handler",
            "settings",
            "crew",
            "crowd",
        ),
        "place",
        *("accepting", "configured", "workers", "server"),
        *("listening", "sending", "tls"),
        *("durable", "waker"),
    ),
    (
        *("naming", "lineends", "reading", "store", "mailbox", "pipe"),
        *("dsn", "nexthop", "passing", "relaying", "relay"),
        *("spoolfiles", "spooled", "attempts", "spool"),
    ),
    (
        *("service", "show", "process", "queuecli", "cli"),
        *("faultkinds", "faultplan", "faults", "faultflags", "flagvalues", "flags"),
        *("caught", "catch", "certificates", "testing", "pytest_plugin"),
        *(
            "webhtml",
            "webparts",
            "webelsewhere",
            "webguard",
            "webview",
            "webwatch",
            "webvisit",
            "web",
        ),
    ),
)
CORE = LAYERS[0]
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer}
FOREIGN = {"pytest_plugin": {"pytest"}, "certificates": {"cryptography"}}
"""What is used where it is there: pytest loads its plugin, and a certificate has other makers."""
IMPURE = {"socket", "ssl", "threading", "time", "os", "logging", "selectors", "socketserver"}


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(tree, lazy):
    """Give (module, names) of each import; those inside functions if ``lazy``."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            yield "." * node.level + (node.module or ""), names
        elif lazy or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from imports(node, lazy)


def own_imports(name, lazy):
    """Name the modules of the package that a module imports."""
    for module, names in imports(MODULES[name], lazy):
        if module == ".":
            yield from (imported for imported in names if imported in MODULES)
        elif module.startswith("."):
            yield module[1:]
        else:
            assert module.split(".")[0] != "smtpd_sync", "imports inside the package are relative"


def foreign_imports(name, lazy):
    """Name the packages outside that a module imports."""
    return {module.split(".")[0] for module, _ in imports(MODULES[name], lazy) if module[0] != "."}


def test_reader_of_imports_sees_them_all():
    tree = ast.parse(
        "import a.b\n"
        "from . import c\n"
        "if TYPE_CHECKING:\n    import no\n"
        "def f():\n    from .d import e\n"
        "class C:\n    import g\n"
        "try:\n    import h\nexcept ImportError:\n    h = None\n"
    )
    assert [module for module, _ in imports(tree, lazy=False)] == ["a.b", ".", "g", "h"]
    assert [module for module, _ in imports(tree, lazy=True)] == ["a.b", ".", ".d", "g", "h"]


@pytest.mark.parametrize("name", MODULES)
def test_module_has_its_layer(name):
    assert name in LAYER_OF, "say in LAYERS where it stands"


@pytest.mark.parametrize("name", CORE)
def test_core_is_pure(name):
    assert not foreign_imports(name, lazy=True) & IMPURE


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name):
    above = [other for other in own_imports(name, lazy=True) if LAYER_OF[other] > LAYER_OF[name]]
    assert not above


def test_no_module_imports_itself_by_way_of_others():
    below = {name: set(own_imports(name, lazy=False)) for name in MODULES}
    while below:
        free = [name for name, needs in below.items() if not needs & set(below)]
        assert free, f"a cycle among {sorted(below)}"
        for name in free:
            del below[name]


@pytest.mark.skipif(sys.version_info < (3, 10), reason="Python 3.9 does not list its library")
def test_nothing_but_the_standard_library_is_imported():
    for name in MODULES:
        foreign = foreign_imports(name, lazy=True) - sys.stdlib_module_names
        assert foreign == FOREIGN.get(name, set()), name


def run(program):
    """Run a program in a fresh interpreter; give what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# What costs milliseconds at start, or belongs to what a server may never do.
COSTLY = ("email", "json", "dataclasses", "asyncio", "typing_extensions", "argparse", "ssl")


def test_import_of_a_server_costs_little():
    loaded = run("import sys; from smtpd_sync import SMTPServer; print(*sys.modules)").split()
    assert "smtpd_sync.server" in loaded
    assert not set(COSTLY) & set(loaded)


def test_import_of_the_package_alone_loads_nothing_else_of_it():
    loaded = run("import sys, smtpd_sync; print(*sys.modules)").split()
    assert [name for name in loaded if name.startswith("smtpd_sync")] == ["smtpd_sync"]


def test_public_names_come_from_where_type_checkers_see_them():
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    (block,) = (node for node in tree.body if is_type_checking(node))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == smtpd_sync.HOMES
    assert {*seen, "__version__"} == set(smtpd_sync.__all__)


def test_no_public_name_is_that_of_a_module():
    assert not set(smtpd_sync.__all__) & set(MODULES)  # which, once imported, would hide it


def test_public_names_are_listed_before_they_are_imported():
    program = """
import smtpd_sync
before = set(dir(smtpd_sync))
assert {*smtpd_sync.__all__, "__doc__"} <= before, before
assert "SMTPServer" not in vars(smtpd_sync)
from smtpd_sync import *
assert smtpd_sync.stop is stop and smtpd_sync.SMTPServer is SMTPServer
assert set(smtpd_sync.__all__) - {"__version__"} <= set(vars())
print(getattr(smtpd_sync, "nothing", "none"))
"""
    assert run(program) == "none\n"


def test_core_stands_alone():
    """The core can be loaded without the rest of the package, and loads no socket."""
    program = f"""
import importlib, sys, types
package = types.ModuleType("smtpd_sync")
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["smtpd_sync"] = package
for name in {CORE!r}:
    importlib.import_module("smtpd_sync." + name)
print(*sys.modules)
"""
    loaded = set(run(program).split())
    assert not loaded & {"socket", "ssl", "logging", "selectors", "socketserver"}
    assert {name for name in loaded if name.startswith("smtpd_sync.")} == {
        f"smtpd_sync.{name}" for name in CORE
    }


def test_package_imports_where_there_is_no_unix():
    program = """
import os, signal, socket, sys
for module, names in (
    (os, ["fork", "forkpty", "register_at_fork", "getuid", "setuid", "fchmod", "O_DIRECTORY"]),
    (signal, ["SIGHUP", "SIGCHLD", "SIGUSR1", "SIGQUIT", "alarm", "pthread_sigmask"]),
    (socket, ["AF_UNIX"]),
):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
import smtpd_sync, smtpd_sync.cli, smtpd_sync.show, smtpd_sync.tls
"""
    assert run(program) == ""
