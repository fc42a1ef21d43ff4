"""Commands: one line in, one :class:`Command` out (RFC 5321 4.1.1, RFC 1869 parameters).

Knows the grammar of each verb and of each parameter, as tables; nothing of states, which are the
session's. A line that breaks its grammar is a :class:`~smtpd_sync.reply.Reject` with its code.
"""

from __future__ import annotations

import binascii
import re
from typing import Any, Callable, Dict, Iterable, Mapping, NamedTuple, Optional, Tuple, Union

from . import reply
from .envelope import NO_PARAMETERS, Parameters
from .patterns import Pattern
from .reply import Reject, Reply
from .syntax import CONTROL, Mailbox, PathGrammar, is_domain, mailbox_of, path_grammar

__all__ = ["VERBS", "Command", "Extension", "Parameter", "parse_argument"]


class Command(NamedTuple):
    """What the client asks, or what happens to it.

    ``verb`` is an SMTP verb, or in lower case a happening: ``connection``, ``content`` (with octets
    of mail data), ``message`` (mail data has ended), ``secret`` and ``credentials`` (AUTH asks).
    ``argument`` is a `Mailbox` for MAIL and RCPT, text for the other verbs.
    """

    verb: str
    argument: Any = ""
    parameters: Parameters = NO_PARAMETERS


new_command = tuple.__new__
"""``new_command(Command, (verb, argument, parameters))``: a third quicker than ``Command(...)``."""


class Parameter(NamedTuple):
    """A row of the table of ESMTP parameters (RFC 5321 4.1.1.11)."""

    verb: str
    """``"MAIL"`` or ``"RCPT"``."""
    keyword: str
    value: Optional[str]
    """A regular expression for the value, in any case; ``None``: it has no value."""
    octets: int
    """What it adds to the length of a command line (RFC 5321 4.5.3.1.4)."""
    decode: Optional[Callable[[str], Optional[str]]] = None
    """Gives the value as the envelope has it, or ``None`` for one that cannot be."""
    not_with: str = ""
    """A keyword that may not stand beside it."""


class Extension(NamedTuple):
    """A row of the table of extensions: an EHLO keyword, and the parameters it brings."""

    keyword: str
    value: Union[str, Callable[[], str]] = ""
    """What stands behind the keyword in the EHLO reply."""
    parameters: Tuple[Parameter, ...] = ()
    rfc: str = ""
    inside_tls: bool = False
    """Whether it is offered inside TLS only."""

    def offer(self) -> str:
        """Give its line of the EHLO reply."""
        value = self.value() if callable(self.value) else self.value
        return f"{self.keyword} {value}".rstrip()


def xtext(text: str) -> Optional[str]:
    """Decode xtext (RFC 3461 4); ``None`` if it is none."""
    if re.fullmatch(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*", text) is None:
        return None
    return re.sub(r"\+(..)", lambda match: chr(int(match[1], 16)), text)


def _auth_mailbox(text: str) -> Optional[str]:
    decoded = xtext(text)
    if decoded is None or decoded == "<>":
        return decoded
    try:
        return Mailbox.parse(decoded)
    except ValueError:
        return None


SIZE = Parameter("MAIL", "SIZE", "[0-9]{1,20}", 26)
BODY = Parameter("MAIL", "BODY", "7BIT|8BITMIME|BINARYMIME", 17)
SMTPUTF8 = Parameter("MAIL", "SMTPUTF8", None, 10)
AUTH = Parameter("MAIL", "AUTH", ".+", 500, _auth_mailbox)

ParameterTable = Mapping[Tuple[str, str], Tuple[Parameter, Optional[Pattern]]]


def parameter_table(extensions: Iterable[Extension]) -> ParameterTable:
    """Index the parameters of the extensions on offer."""
    return {
        (row.verb, row.keyword): (
            row,
            None if row.value is None else Pattern(row.value, re.IGNORECASE | re.ASCII),
        )
        for extension in extensions
        for row in extension.parameters
    }


_PARAMETER = Pattern(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([^\x00-\x20=\x7f-\x9f]+))?")


def parse_parameters(verb: str, text: str, grammar: Grammar) -> Parameters:
    """Read ``KEYWORD[=value] ...``: 501 for bad syntax or value, 555 for an unknown keyword."""
    parameters: Dict[str, Any] = {}
    for word in text.split(" "):
        if not word:
            continue
        match = _PARAMETER.fullmatch(word)
        if match is None:
            raise Reject(*reply.BAD_PARAMETER)
        keyword, value = match[1].upper(), match[2]
        if keyword in parameters:
            raise Reject(*reply.REPEATED_PARAMETER)
        row, pattern = grammar.parameters.get((verb, keyword), (None, None))
        if row is not None:
            if (value is None) != (pattern is None) or (pattern and not pattern.fullmatch(value)):
                raise Reject(*reply.BAD_PARAMETER_VALUE)
            if row.not_with in parameters:
                raise Reject(*reply.BAD_PARAMETER_VALUE)
            if row.decode is not None:
                value = row.decode(value)
                if value is None:
                    raise Reject(*reply.BAD_PARAMETER_VALUE)
        elif not grammar.ignore_parameters:
            raise Reject(*reply.UNKNOWN_PARAMETER)
        parameters[keyword] = True if value is None else value
    return parameters


class Grammar(NamedTuple):
    """How arguments are read in one session: the forgiving way or to the letter."""

    strict: bool
    reverse_path: PathGrammar
    forward_path: PathGrammar
    parameters: ParameterTable
    ignore_parameters: bool
    """Whether an unknown parameter is recorded and not refused."""


def grammar(
    strict: bool, extensions: Iterable[Extension], ignore_parameters: bool = False
) -> Grammar:
    """Put together the patterns and the table that a session needs."""
    return Grammar(
        strict,
        path_grammar("FROM", "<>", strict),
        path_grammar("TO", "<postmaster>", strict),
        parameter_table(extensions),
        ignore_parameters,
    )


def _path(verb: str, argument: str, patterns: PathGrammar, grammar: Grammar, bad: Reply) -> Command:
    match = patterns.common.match(argument)
    if match is not None:
        local, domain, words = match.groups()
        path = Mailbox.of_common(local, domain)
        parameters = parse_parameters(verb, words, grammar) if words else NO_PARAMETERS
        return new_command(Command, (verb, path, parameters))
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
    return Command(verb, mailbox, parse_parameters(verb, words, grammar))


def _mail(verb: str, argument: str, grammar: Grammar) -> Command:
    return _path(verb, argument, grammar.reverse_path, grammar, reply.BAD_SENDER)


def _rcpt(verb: str, argument: str, grammar: Grammar) -> Command:
    return _path(verb, argument, grammar.forward_path, grammar, reply.BAD_RECIPIENT)


def _domain(verb: str, argument: str, grammar: Grammar) -> Command:
    if not argument.isascii() or not is_domain(argument, grammar.strict):
        raise Reject(*reply.BAD_DOMAIN)
    return Command(verb, argument)


def _nothing(verb: str, argument: str, grammar: Grammar) -> Command:
    if argument:
        raise Reject(*reply.NO_ARGUMENT)
    return ALONE[verb]


def _anything(verb: str, argument: str, grammar: Grammar) -> Command:
    return Command(verb, argument)


_UTF8_WANTED = Pattern(r"(?<! ) +SMTPUTF8\Z", re.IGNORECASE | re.ASCII)


def _string(verb: str, argument: str, grammar: Grammar) -> Command:
    argument = _UTF8_WANTED.sub("", argument)  # RFC 6531 3.7.4.2
    if not argument:
        raise Reject(*reply.ARGUMENT_NEEDED)
    return Command(verb, argument)


_BASE64 = Pattern(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


def decode_base64(text: str) -> bytes:
    """Decode base64 to the letter (RFC 4648 4); 501 for what is none (RFC 4954 4)."""
    if _BASE64.fullmatch(text) is None:
        raise Reject(*reply.BAD_BASE64)
    return binascii.a2b_base64(text)


def _auth(verb: str, argument: str, grammar: Grammar) -> Command:
    mechanism, *initial = argument.split(" ")
    # upper() makes ASCII of some letters that are none.
    if not mechanism or not mechanism.isascii() or len(initial) > 1:
        raise Reject(*reply.BAD_AUTH)
    if not initial:
        return Command(verb, (mechanism.upper(), None))
    # "=" is the empty initial response, "" would be none (RFC 4954 4).
    octets = b"" if initial[0] == "=" else decode_base64(initial[0])
    return Command(verb, (mechanism.upper(), octets))


_CHUNK = Pattern("([0-9]{1,20})(?: +(.*))?")


def _bdat(verb: str, argument: str, grammar: Grammar) -> Command:
    match = _CHUNK.fullmatch(argument)
    if match is None:
        raise Reject(*reply.BAD_CHUNK)
    word = match[2] or ""
    return Command(verb, (int(match[1]), word.upper() if word.isascii() else word))


def _attributes(verb: str, argument: str, grammar: Grammar) -> Command:
    attributes: Dict[str, str] = {}
    for word in argument.split():
        name, _, encoded = word.partition("=")
        value = xtext(encoded)
        known = name.isascii() and name.upper() in ATTRIBUTES[verb]
        if not value or not value.isprintable() or not known:
            raise Reject(*reply.BAD_ATTRIBUTE)
        attributes[name.upper()] = "" if value in ("[UNAVAILABLE]", "[TEMPUNAVAIL]") else value
    if not attributes:
        raise Reject(*reply.BAD_ATTRIBUTE)
    return Command(verb, attributes)


# Attributes of a client, as a proxy in front of us passes them on (Postfix XCLIENT_README and
# XFORWARD_README).
ATTRIBUTES = {
    "XCLIENT": ("NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT"),
    "XFORWARD": ("NAME", "ADDR", "PORT", "PROTO", "HELO", "IDENT", "SOURCE"),
}


class Verb(NamedTuple):
    """A row of the table of verbs."""

    parse: Callable[[str, str, Grammar], Command]
    """Reads the argument."""
    usage: str
    """What HELP says."""


VERBS: Dict[str, Verb] = {
    "HELO": Verb(_domain, "HELO <domain>"),
    "EHLO": Verb(_domain, "EHLO <domain>"),
    "LHLO": Verb(_domain, "LHLO <domain>"),
    "MAIL": Verb(_mail, "MAIL FROM:<reverse-path> [parameters]"),
    "RCPT": Verb(_rcpt, "RCPT TO:<forward-path> [parameters]"),
    "DATA": Verb(_nothing, "DATA"),
    "BDAT": Verb(_bdat, "BDAT <size> [LAST]"),
    "RSET": Verb(_nothing, "RSET"),
    "NOOP": Verb(_anything, "NOOP [string]"),
    "QUIT": Verb(_nothing, "QUIT"),
    "HELP": Verb(_anything, "HELP [verb]"),
    "VRFY": Verb(_string, "VRFY <string>"),
    "EXPN": Verb(_string, "EXPN <string>"),
    "STARTTLS": Verb(_nothing, "STARTTLS"),
    "AUTH": Verb(_auth, "AUTH <mechanism> [initial-response]"),
    "XCLIENT": Verb(_attributes, "XCLIENT <name>=<xtext> ..."),
    "XFORWARD": Verb(_attributes, "XFORWARD <name>=<xtext> ..."),
}


# Commands without an argument are always the same.
ALONE = {verb: Command(verb) for verb in VERBS}


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
