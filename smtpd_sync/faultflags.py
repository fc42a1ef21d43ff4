"""The fault flags of the command line: how each becomes entries of a fault plan.

``COMMAND=CODE[ TEXT][@PATTERN][:TIMES]``. The text goes up to the first ``@``. What ends in a colon
and a number is how often; a colon in a pattern, as in an address literal, does not end one.
"""

from __future__ import annotations

import argparse
import re
from typing import Any, Callable, Dict, List

from .faultkinds import COMMANDS
from .faultplan import entries_of, faults_of

__all__ = ["READERS", "Entries"]

Entries = List[Dict[str, Any]]

SCRIPT = re.compile(
    r"(?P<on>[A-Za-z]+)(?:=(?P<value>[0-9.]+)(?: (?P<text>[^@]*?))?)?"
    r"(?:@(?P<pattern>.+?))?(?::(?P<times>[0-9]+))?",
    re.DOTALL,
)


VALUES: Dict[str, Callable[[str], Any]] = {"fail": int, "delay": float, "drop": lambda _: True}


def entry_of(kind: str, script: str) -> Dict[str, Any]:
    """Read one; ``ValueError`` for what is none."""
    match = SCRIPT.fullmatch(script)
    if match is None or (match["value"] is None) != (kind == "drop"):
        raise ValueError("the form is not that of --help")
    on = match["on"].upper()
    entry: Dict[str, Any] = {"on": on, kind: VALUES[kind](match["value"])}
    if match["text"]:
        entry["text"] = match["text"]
    if match["pattern"]:
        known = COMMANDS.get(on, ())
        if not known:
            raise ValueError(f"{on}: there is nothing to match with a pattern")
        entry[known[-1]] = match["pattern"]  # what the command itself brings
    if match["times"]:
        entry["times"] = int(match["times"])
    return entry


def chance_of(script: str) -> Dict[str, Any]:
    """Read ``P:`` and what fails then."""
    probability, _, rest = script.partition(":")
    return {**entry_of("fail", rest), "chance": float(probability)}


def reader(read: Callable[[str], Any]) -> Callable[[str], Entries]:
    """Make what reads a flag: entries that were checked."""

    def checked(script: str) -> Entries:
        try:
            entries = entries_of(read(script))
            faults_of(entries)
        except (OSError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"{script!r}: {error}") from None
        return [dict(entry) for entry in entries]

    return checked


def file_of_faults(path: str) -> str:
    """Give what a file holds."""
    with open(path, encoding="utf-8") as file:
        return file.read()


READERS: Dict[str, Callable[[str], Entries]] = {
    "--fail": reader(lambda script: [entry_of("fail", script)]),
    "--delay": reader(lambda script: [entry_of("delay", script)]),
    "--drop": reader(lambda script: [entry_of("drop", script)]),
    "--chance": reader(lambda script: [chance_of(script)]),
    "--faults": reader(file_of_faults),
}
