"""A scripted fault as data: what goes wrong, at which command, for whom, and how often.

Knows nothing of connections. An entry is a mapping that JSON can hold, such as
``{"on": "RCPT", "fail": 550, "text": "5.1.1 no such user", "to": "bad@*", "times": 1}``.
"""

from __future__ import annotations

import random
import re
from types import TracebackType
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Type, Union

from .faultkinds import COMMANDS, CONDITIONS, IN_SESSION, KINDS, Facts, as_data, text
from .reply import Reply

__all__ = ["Fault", "entries_of", "faults_of"]

KEYS = ("on", *KINDS, "text", *CONDITIONS)


class Fault:
    """One scripted fault: its entry of data, and how often it has fired.

    ``seed`` is that of its luck where the entry names none. As a context manager it is removed at
    the end of the block.
    """

    def __init__(self, entry: Mapping[str, Any], seed: int = 0) -> None:
        said = _said(entry)
        if "chance" in said:
            said.setdefault("seed", seed)
        self.kind = _kind(said)
        """Its key in `KINDS`."""
        self.slot = KINDS[self.kind].slot
        self.on = _place(self.kind, said)
        """Where it strikes; ``None`` is at every command."""
        self.value = _checked(self.kind, KINDS[self.kind].check, said)
        when = {name: _checked(name, check, said) for name, check in CONDITIONS.items()}
        known = COMMANDS[self.on] if self.on else IN_SESSION
        for name in IN_SESSION:
            if name in said and name not in known:
                can = f"; there is {', '.join(known)}" if known else ""
                raise ValueError(f"{self.on}: {name} is not known then{can}")
        self._patterns = [(name, when[name]) for name in IN_SESSION if name in said]
        self._times, self._skip = when["times"], when["skip"] or 0
        self._chance: Optional[float] = when["chance"]
        # Of two faults with one seed, each has its own luck.
        self._luck = random.Random(f"{when['seed']} {self.on} {self.kind}")  # noqa: S311
        self.reply = _reply(self.kind, self.value, _checked("text", text, said) or "")
        """What is said instead, where it fails."""
        self._entry = {**said, "on": self.on} if self.on else said
        self._matched = 0
        self.fired = 0
        """How often it has fired."""
        self.removed = False
        """Whether it fires no more."""

    def is_due(self, command: str, facts: Facts) -> bool:
        """Tell whether it strikes now, and count. One thread at a time may ask."""
        if self.removed or (command != self.on and (self.on or command == "TLS")):
            return False
        if self._times is not None and self.fired >= self._times:
            return False
        for name, pattern in self._patterns:
            if not any(pattern.search(value) for value in facts[name]):
                return False
        self._matched += 1
        if self._matched <= self._skip:
            return False
        if self._chance is not None and self._luck.random() >= self._chance:
            return False
        self.fired += 1
        return True

    def remove(self) -> None:
        """Let it fire no more."""
        self.removed = True

    def __enter__(self) -> Fault:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.remove()

    def to_data(self) -> Dict[str, Any]:
        """Give the entry, as JSON can hold it; ``ValueError`` for a TLS context."""
        return {name: as_data(self._entry[name]) for name in KEYS if name in self._entry}

    def __repr__(self) -> str:
        return f"<Fault {self._entry} fired {self.fired} times>"


def _said(entry: Any) -> Dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise ValueError(f"a fault is a mapping like {{'on': 'RCPT', 'fail': 550}}, not {entry!r}")
    for name in entry:
        if name not in KEYS:
            raise ValueError(f"unknown key {name!r}; the keys are: {', '.join(KEYS)}")
    return {name: value for name, value in entry.items() if value is not None}


def _kind(said: Mapping[str, Any]) -> str:
    kinds = [name for name in KINDS if name in said]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none"
        raise ValueError(f"a fault has one of {', '.join(KINDS)}; here is {found}")
    return kinds[0]


def _place(kind: str, said: Mapping[str, Any]) -> Optional[str]:
    commands = KINDS[kind].commands
    name = said.get("on")
    if name is None:
        if KINDS[kind].anywhere:
            return None
        if len(commands) == 1:
            return commands[0]
        raise ValueError(f"{kind} needs on, one of {', '.join(commands)}")
    place = name.upper() if isinstance(name, str) else name
    if place not in commands:
        raise ValueError(f"{kind} strikes at {', '.join(commands)}, not at {name!r}")
    return str(place)


def _checked(name: str, check: Callable[[Any], Any], said: Mapping[str, Any]) -> Any:
    """Give the value of a key as it is used, ``None`` where it is not there."""
    if name not in said:
        return None
    try:
        return check(said[name])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _reply(kind: str, code: Any, text: str) -> Reply:
    """Make the reply of a fault; the text may begin with an enhanced status code."""
    if kind != "fail":
        if text:
            raise ValueError(f"{kind} has no text: only fail has")
        return Reply(421)
    status = re.match(r"([245]\.[0-9]+\.[0-9]+)(?: |\Z)", text)
    if status is None:
        return Reply(code, text)
    return Reply(code, text[status.end() :], status[1])


def entries_of(data: Union[str, Iterable[Mapping[str, Any]]]) -> List[Mapping[str, Any]]:
    """Give the entries of a plan, which may be JSON text."""
    if isinstance(data, str):
        import json

        try:
            data = json.loads(data)
        except ValueError as error:
            raise ValueError(f"not JSON: {error}") from None
    if isinstance(data, (str, Mapping)) or not isinstance(data, Iterable):
        raise ValueError(f"a fault plan is a list of faults, not {data!r}")
    return list(data)


def faults_of(entries: Iterable[Mapping[str, Any]], seed: int = 0) -> List[Fault]:
    """Make the faults of a plan; ``ValueError`` tells which of them cannot be."""
    made = []
    for number, entry in enumerate(entries, 1):
        try:
            made.append(Fault(entry, seed))
        except ValueError as error:
            raise ValueError(f"fault {number}: {error}") from None
    return made
