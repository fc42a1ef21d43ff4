"""What is the same for every session of a server, worked out once.

Nothing that a session would look up for each command is looked up twice.
"""

from __future__ import annotations

from typing import Mapping, NamedTuple

from .command import VERBS, Grammar, grammar
from .limits import DEFAULT_LIMITS, Limits

__all__ = ["DEFAULT_RULES", "Rules", "rules"]


class Rules(NamedTuple):
    """What is the same for every session of a server. Made by `rules`, shared, never changed."""

    limits: Limits
    strict_pipelining: bool
    bare_newline: str
    require_tls: bool
    grammar: Grammar
    keywords: Mapping[str, str]
    """EHLO keyword -> its parameter, of what a session in the clear offers."""
    line_lengths: Mapping[str, int]
    """Verb -> octets its command line may have."""
    longest_line: int
    """The most of them."""


def rules(
    limits: Limits = DEFAULT_LIMITS,
    *,
    starttls: bool = False,
    require_tls: bool = False,
    strict: bool = False,
    strict_pipelining: bool = True,
    bare_newline: str = "normalize",
) -> Rules:
    """Work out, once, all that a session would have to look up for each command."""
    keywords = {
        "SIZE": str(limits.message_size or 0),  # 0: no fixed limit (RFC 1870 4)
        "8BITMIME": "",
        "PIPELINING": "",
        "ENHANCEDSTATUSCODES": "",
        "SMTPUTF8": "",
        **({"STARTTLS": ""} if starttls else {}),
        "HELP": "",
    }
    known = grammar(strict, keywords)
    lengths = dict.fromkeys(VERBS, limits.command_line)
    for row in known.parameters.values():
        lengths[row.verb] += row.octets
    return Rules(
        limits,
        strict_pipelining,
        bare_newline,
        require_tls,
        known,
        keywords,
        lengths,
        max(lengths.values()),
    )


DEFAULT_RULES = rules()
