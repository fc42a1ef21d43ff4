"""Changes the imports of the removed modules to ours, in the text of a program.

Found by the syntax tree, replaced at its exact positions: all else stays as it was written. What
is beyond an import statement is not touched, and told as a `Trouble`. Knows no files.
"""

from __future__ import annotations

import ast
import re
import warnings
from importlib import import_module
from typing import Any, Callable, Collection, Dict, List, NamedTuple, Optional, Set, Tuple, Union

__all__ = ["MODULES", "Trouble", "convert"]

HOME = "smtpd_sync.compat"
MODULES = ("asynchat", "asyncore", "smtpd")

# Calls whose first argument names a module, or what is in one.
BY_NAME = {
    *("__import__", "import_module", "import_deprecated", "importorskip"),
    *("find_spec", "resolve_name", "run_module"),
    *("patch", "multiple", "setattr", "delattr"),
}

_FROM = re.compile(r"from(?:[ \t\f]|\\(?:\r\n|\r|\n))*")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")  # as Python splits them: not at a form feed
_DOTTED = re.compile(r"[\w.]+")


ENDS, LF = "\r\n", "\n"


class Trouble(NamedTuple):
    """What is left to a person."""

    line: int
    text: str


class Edit(NamedTuple):
    """A piece of the text, and what is to stand there instead."""

    start: int
    end: int
    text: str


def convert(text: str, beside: Collection[str] = ()) -> Tuple[str, List[Trouble]]:
    """Give the program with its imports changed, and what could not be done, by line.

    ``beside`` names the modules that stand in the directory of the program: such an import may
    mean them. ``SyntaxError`` or ``ValueError`` where ``text`` is no program of this Python.
    """
    finder = Finder(text, beside)
    for edit in sorted(finder.edits, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text, sorted(set(finder.troubles))


def parsed(text: str) -> ast.Module:
    """Parse a program. What Python warns of is none of our business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (RecursionError, MemoryError):
            raise ValueError("it is nested too deeply") from None


def is_ours(name: str) -> bool:
    """Tell whether a dotted name is one of the modules, or what is in it."""
    return name.partition(".")[0] in MODULES


def missing(module: str, name: str) -> bool:
    """Tell whether our module lacks a name."""
    return name != "*" and not hasattr(import_module(f"{HOME}.{module}"), name)


def string(node: Optional[ast.AST]) -> str:
    """Give the value of a literal string; ``""`` for anything else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def last_name(node: ast.AST) -> str:
    """Give ``c`` of ``a.b.c``, and of ``c``."""
    return getattr(node, "attr", "") or getattr(node, "id", "")


class Finder:
    """Finds what to change in a program, and what to tell."""

    def __init__(self, text: str, beside: Collection[str]) -> None:
        self.text = text
        self.beside = beside
        self.lines = _LINE.findall(text)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        self.edits: List[Edit] = []
        self.troubles: List[Trouble] = []
        self.known: Dict[str, str] = {}
        """What the program calls the modules: name -> module."""
        self.rebound: Set[str] = set()
        """Names that it also gives to something else."""
        nodes = list(ast.walk(parsed(text)))
        for kinds in (DECLARED, USED):
            for node in nodes:
                look = kinds.get(type(node))
                if look is not None:
                    look(self, node)

    def tell(self, node: ast.AST, text: str) -> None:
        """Leave something to a person."""
        self.troubles.append(Trouble(getattr(node, "lineno", 1), text))

    def position(self, line: int, column: int) -> int:
        """Give where in the text a position of the tree is; its columns count octets of UTF-8."""
        before = self.lines[line - 1].encode()[:column].decode()
        return self.starts[line - 1] + len(before)

    def span(self, node: ast.stmt) -> Tuple[int, int]:
        """Give where a statement begins and ends."""
        assert node.end_lineno is not None, "what was parsed has an end"
        assert node.end_col_offset is not None, "what was parsed has an end"
        start = self.position(node.lineno, node.col_offset)
        return start, self.position(node.end_lineno, node.end_col_offset)

    def is_another(self, node: ast.AST, module: str) -> bool:
        """Tell whether an import may mean a module that stands beside the program."""
        if module in self.beside:
            self.tell(node, f"import of {module}: may mean the {module} beside this file")
        return module in self.beside

    # -- imports -----------------------------------------------------------------------------

    def look_at_import(self, node: ast.Import) -> None:
        """``import smtpd``."""
        ours: List[str] = []
        others: List[str] = []
        for alias in node.names:
            found = alias.name in MODULES and not self.is_another(node, alias.name)
            if found:
                self.known[alias.asname or alias.name] = alias.name
            else:
                self.rebound.add(alias.asname or alias.name.partition(".")[0])
            if "." in alias.name and is_ours(alias.name):
                self.tell(node, f"import {alias.name}: there is no such module")
            written = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
            (ours if found else others).append(written)
        if not ours:
            return
        start, end = self.span(node)
        parts = [f"import {', '.join(others)}"] if others else []
        parts.append(f"from {HOME} import {', '.join(ours)}")
        self.edits.append(Edit(start, end, self.separator(node, start).join(parts)))

    def separator(self, node: ast.stmt, start: int) -> str:
        """Give what goes between two statements at the place of one."""
        before = self.text[self.starts[node.lineno - 1] : start]
        continued = node.lineno > 1 and self.lines[node.lineno - 2].rstrip(ENDS).endswith("\\")
        if before.strip() or continued:
            return "; "
        first = self.lines[0]
        return f"{first[len(first.rstrip(ENDS)) :] or LF}{before}"

    def look_at_import_from(self, node: ast.ImportFrom) -> None:
        """``from smtpd import SMTPServer``."""
        module = "." * node.level + (node.module or "")
        if module == HOME:
            self.known.update((alias.asname or alias.name, alias.name) for alias in node.names)
            return
        self.rebound.update(alias.asname or alias.name for alias in node.names)
        done = module.startswith(f"{HOME}.")
        old = module[len(HOME) + 1 :] if done else module
        if old not in MODULES:
            if is_ours(module):
                self.tell(node, f"from {module} import: there is no such module")
            return
        if not done and self.is_another(node, old):
            return
        lost = [alias.name for alias in node.names if missing(old, alias.name)]
        for name in lost:
            self.tell(node, f"{HOME}.{old} has no {name}")
        if done or lost:
            return
        start, _ = self.span(node)
        match = _FROM.match(self.text, start)
        assert match is not None, "such a statement begins with it"
        self.edits.append(Edit(match.end(), match.end() + len(old), f"{HOME}.{old}"))

    # -- what else may be bound to a name, so that what is asked of it is not told -----------

    def look_at_name(self, node: ast.Name) -> None:
        """``smtpd = Server()``."""
        if isinstance(node.ctx, ast.Store):
            self.rebound.add(node.id)

    def look_at_argument(self, node: ast.arg) -> None:
        """``def f(smtpd)``."""
        self.rebound.add(node.arg)

    # -- uses --------------------------------------------------------------------------------

    def look_at_attribute(self, node: ast.Attribute) -> None:
        """``asyncore.loop``."""
        if isinstance(node.value, ast.Name) and isinstance(node.ctx, ast.Load):
            name = node.value.id
            module = self.known.get(name) if name not in self.rebound else None
            if module in MODULES and missing(module, node.attr):
                self.tell(node, f"{name}.{node.attr}: {HOME}.{module} has no {node.attr}")

    def look_at_call(self, node: ast.Call) -> None:
        """``import_module("smtpd")``, ``sys.modules.get("smtpd")``."""
        self.look_at_command(node.args)
        called, name = node.func, string(node.args[0]) if node.args else ""
        of_modules = last_name(getattr(called, "value", called)) == "modules"
        if of_modules or last_name(called) in BY_NAME:
            self.tell_of_string(node, f"{ast.unparse(called)}({name!r})", name)

    def look_at_subscript(self, node: ast.Subscript) -> None:
        """``sys.modules["smtpd"]``."""
        name = string(node.slice)
        if last_name(node.value) == "modules" and not isinstance(node.ctx, ast.Store):
            self.tell_of_string(node, f"{ast.unparse(node.value)}[{name!r}]", name)

    def look_at_sequence(self, node: Union[ast.List, ast.Tuple]) -> None:
        """``[sys.executable, "-m", "smtpd"]``."""
        self.look_at_command(node.elts)

    def look_at_command(self, nodes: List[ast.expr]) -> None:
        """``"-m", "smtpd"``."""
        for flag, module in zip(nodes, nodes[1:]):
            if string(flag) == "-m":
                self.tell_of_string(module, f"'-m', {string(module)!r}", string(module))

    def tell_of_string(self, node: ast.AST, where: str, name: str) -> None:
        """Tell of a string that names one of the modules."""
        if is_ours(name) and _DOTTED.fullmatch(name):
            self.tell(node, f"{where}: the string is to be {f'{HOME}.{name}'!r}")


Look = Callable[[Finder, Any], None]

# First what the names mean, then how they are used.
DECLARED: Dict[type, Look] = {
    ast.Import: Finder.look_at_import,
    ast.ImportFrom: Finder.look_at_import_from,
    ast.Name: Finder.look_at_name,
    ast.arg: Finder.look_at_argument,
}
USED: Dict[type, Look] = {
    ast.Attribute: Finder.look_at_attribute,
    ast.Call: Finder.look_at_call,
    ast.Subscript: Finder.look_at_subscript,
    ast.List: Finder.look_at_sequence,
    ast.Tuple: Finder.look_at_sequence,
}
