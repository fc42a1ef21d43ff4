"""Commands: one line in, one :class:`Command` out (RFC 5321 4.1.1, RFC 1869 parameters).

Knows the grammar of each verb and of each parameter, as tables; nothing of states, which are the
session's. A line that breaks its grammar is a :class:`~smtpd_sync.reply.Reject` with its code.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Tuple

from . import reply
from .envelope import NO_PARAMETERS, Parameters
from .reply import Reject, Reply
from .syntax import CONTROL, Mailbox, PathGrammar, is_domain, mailbox_of, path_grammar

__all__ = ["PARAMETERS", "VERBS", "Command", "Parameter", "parse_argument"]


class Command(NamedTuple):
    """What the client asks, or what happens to it.

    ``verb`` is an SMTP verb, or in lower case a happening: ``connection``, ``content`` (with octets
    of mail data), ``message`` (mail data has ended). ``argument`` is a `Mailbox` for MAIL and RCPT,
    text for the other verbs.
    """

    verb: str
    argument: Any = ""
    parameters: Parameters = NO_PARAMETERS


class Parameter(NamedTuple):
    """A row of the table of ESMTP parameters (RFC 5321 4.1.1.11)."""

    verb: str
    keyword: str
    value: Optional[re.Pattern[str]]
    """What the value must match; ``None``: the parameter has no value."""
    extension: str
    """The EHLO keyword that offers it."""
    octets: int
    """What it adds to the length of a command line (RFC 5321 4.5.3.1.4)."""
    rfc: str


def _value(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.ASCII)  # else a dotless i is an I


PARAMETERS: Tuple[Parameter, ...] = (
    Parameter("MAIL", "SIZE", _value("[0-9]{1,20}"), "SIZE", 26, "RFC 1870"),
    Parameter("MAIL", "BODY", _value("7BIT|8BITMIME"), "8BITMIME", 17, "RFC 6152"),
    Parameter("MAIL", "SMTPUTF8", None, "SMTPUTF8", 10, "RFC 6531"),
)

ParameterTable = Mapping[Tuple[str, str], Parameter]


def parameter_table(extensions: Mapping[str, str]) -> ParameterTable:
    """Index the rows that ``extensions``, the EHLO keywords on offer, make known."""
    rows = (row for row in PARAMETERS if row.extension in extensions)
    return {(row.verb, row.keyword): row for row in rows}


_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([^\x00-\x20=\x7f-\x9f]+))?")


def parse_parameters(verb: str, text: str, table: ParameterTable) -> Parameters:
    """Read ``KEYWORD[=value] ...``: 501 for bad syntax or value, 555 for an unknown keyword."""
    parameters: Dict[str, Any] = {}
    for word in text.split(" "):
        if not word:
            continue
        match = _PARAMETER.fullmatch(word)
        if match is None:
            raise Reject(*reply.BAD_PARAMETER)
        keyword, value = match[1].upper(), match[2]
        row = table.get((verb, keyword))
        if row is None:
            raise Reject(*reply.UNKNOWN_PARAMETER)
        if keyword in parameters:
            raise Reject(*reply.REPEATED_PARAMETER)
        if (value is None) != (row.value is None) or (row.value and not row.value.fullmatch(value)):
            raise Reject(*reply.BAD_PARAMETER_VALUE)
        parameters[keyword] = True if value is None else value
    return parameters


class Grammar(NamedTuple):
    """How arguments are read in one session: the forgiving way or to the letter."""

    strict: bool
    reverse_path: PathGrammar
    forward_path: PathGrammar
    parameters: ParameterTable


def grammar(strict: bool, extensions: Mapping[str, str]) -> Grammar:
    """Put together the patterns and the table that a session needs."""
    return Grammar(
        strict,
        path_grammar("FROM", "<>", strict),
        path_grammar("TO", "<postmaster>", strict),
        parameter_table(extensions),
    )


def _path(
    verb: str, argument: str, patterns: PathGrammar, known: ParameterTable, bad: Reply
) -> Command:
    match = patterns.common.match(argument)
    if match is None:
        match = patterns.full.match(argument)
        if match is None:
            raise Reject(*bad)
    if match["local"] is None:
        # The path without a mailbox: <> is the null one, <postmaster> has no domain.
        special = "" if verb == "MAIL" else "postmaster"
        spelled = argument.partition("<")[2][: len(special)]
        mailbox: Optional[Mailbox] = Mailbox(special, original=spelled)
    else:
        mailbox = mailbox_of(match)
        if mailbox is None:
            raise Reject(*bad)
    words = match["parameters"]
    if not words:
        return Command(verb, mailbox)
    return Command(verb, mailbox, parse_parameters(verb, words, known))


def _mail(verb: str, argument: str, grammar: Grammar) -> Command:
    return _path(verb, argument, grammar.reverse_path, grammar.parameters, reply.BAD_SENDER)


def _rcpt(verb: str, argument: str, grammar: Grammar) -> Command:
    return _path(verb, argument, grammar.forward_path, grammar.parameters, reply.BAD_RECIPIENT)


def _domain(verb: str, argument: str, grammar: Grammar) -> Command:
    if not argument.isascii() or not is_domain(argument, grammar.strict):
        raise Reject(*reply.BAD_DOMAIN)
    return Command(verb, argument)


def _nothing(verb: str, argument: str, grammar: Grammar) -> Command:
    if argument:
        raise Reject(*reply.NO_ARGUMENT)
    return Command(verb)


def _anything(verb: str, argument: str, grammar: Grammar) -> Command:
    return Command(verb, argument)


_UTF8_WANTED = re.compile(r" +SMTPUTF8\Z", re.IGNORECASE | re.ASCII)


def _string(verb: str, argument: str, grammar: Grammar) -> Command:
    argument = _UTF8_WANTED.sub("", argument)  # RFC 6531 3.7.4.2
    if not argument:
        raise Reject(*reply.ARGUMENT_NEEDED)
    return Command(verb, argument)


class Verb(NamedTuple):
    """A row of the table of verbs."""

    parse: Callable[[str, str, Grammar], Command]
    """Reads the argument."""
    usage: str
    """What HELP says."""


VERBS: Dict[str, Verb] = {
    "HELO": Verb(_domain, "HELO <domain>"),
    "EHLO": Verb(_domain, "EHLO <domain>"),
    "MAIL": Verb(_mail, "MAIL FROM:<reverse-path> [parameters]"),
    "RCPT": Verb(_rcpt, "RCPT TO:<forward-path> [parameters]"),
    "DATA": Verb(_nothing, "DATA"),
    "RSET": Verb(_nothing, "RSET"),
    "NOOP": Verb(_anything, "NOOP [string]"),
    "QUIT": Verb(_nothing, "QUIT"),
    "HELP": Verb(_anything, "HELP [verb]"),
    "VRFY": Verb(_string, "VRFY <string>"),
    "EXPN": Verb(_string, "EXPN <string>"),
    "STARTTLS": Verb(_nothing, "STARTTLS"),
}


def parse_argument(verb: str, octets: bytes, grammar: Grammar) -> Command:
    """Read the argument of ``verb``, the octets behind its space; ``Reject`` with 501 or 5xx."""
    try:
        argument = octets.decode()
    except UnicodeDecodeError:
        raise Reject(*reply.BAD_OCTETS) from None
    # isprintable() is quick, and sees every control character and more than those.
    if not argument.isprintable() and CONTROL.search(argument):
        raise Reject(*reply.BAD_OCTETS)
    return VERBS[verb].parse(verb, argument, grammar)
