"""What is wrong with a MAIL or RCPT line, by a reading of RFC 5321 4.1.2 that is nobody's own.

So neither of two servers that differ is asked about itself.
"""

import ipaddress
import re
from typing import Any, Dict, FrozenSet, NamedTuple, Optional


class Difference(NamedTuple):
    """What both said to one line, or to the end of mail data."""

    verb: str
    line: bytes
    ours: Optional[int]
    """``None``: it has gone."""
    theirs: Optional[int]
    mail: Any = None
    """What each took, where that differs."""
    more: bytes = b""
    """What either said beyond its reply."""
    extended: bool = False
    """Whether EHLO was said."""
    mailing: bool = False
    """Whether MAIL was accepted."""
    unknown: int = 0
    """How many lines were 500 to them, with this one."""

    @classmethod
    def of(cls, line, ours, theirs):
        return cls(line.partition(b" ")[0].upper().decode("latin-1"), line, ours, theirs)

    @property
    def is_command(self):
        return self.verb not in ("message", "connection")

    @property
    def codes(self):
        return self.ours, self.theirs

    @property
    def argument(self):
        return self.line.partition(b" ")[2].strip(b" \t")


# -- what is wrong with a line -------------------------------------------------------------------

_ALNUM = r"A-Za-z0-9\x80-\U0010ffff"
_LABEL = rf"(?:[{_ALNUM}](?:[{_ALNUM}-]{{0,61}}[{_ALNUM}])?)"
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]+"
_LITERAL = r"\[(?:\d{1,3}(?:\.\d{1,3}){3}|IPv6:[0-9A-Fa-f:.]+|[A-Za-z0-9-]+:[!-Z^-~]+)\]"
_LOCAL = rf'(?:{_ATOM}(?:\.{_ATOM})*|"(?:[ !#-\[\]-~\x80-\U0010ffff]|\\[ -~])*")'
_MAILBOX = rf"{_LOCAL}@(?:{_DOMAIN}|{_LITERAL})"
_ROUTE = rf"@{_DOMAIN}(?:,@{_DOMAIN})*:"
PATH = re.compile(
    rf"(?:FROM|TO): *(?P<path><>|<postmaster>|<(?:{_ROUTE})?{_MAILBOX}>|{_MAILBOX})"
    r"(?P<rest>(?: .*)?)",
    re.IGNORECASE,
)
NAME = re.compile(rf"{_DOMAIN}|\[(?:\d+(?:\.\d+){{3}}|IPv6:[0-9a-fA-F:.]+)\]")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*(?:=[!-<>-~\x80-\U0010ffff]+)?")
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_VALUES = {
    "SIZE": re.compile("SIZE=[0-9]{1,20}"),
    "BODY": re.compile("BODY=(?:7BIT|8BITMIME|BINARYMIME)"),
    "SMTPUTF8": re.compile("SMTPUTF8"),
}
LARGEST = 33_554_432
SYNTAX = frozenset({501, 553})

Faults = Dict[str, FrozenSet[int]]


def faults(found: Difference) -> Faults:
    """Name what is wrong with a MAIL or RCPT line, each with the codes that say so."""
    if found.verb not in ("MAIL", "RCPT"):
        return {}
    wrong: Faults = {}
    text = found.argument.decode("utf-8", "surrogateescape")
    if not is_printable(found.argument):
        wrong["octets"] = frozenset({500, 501, 553})
    if (found.verb == "MAIL") is found.mailing:
        wrong["order"] = frozenset({503})
    match = PATH.fullmatch(text)
    if match is None or (match["path"] == "<>" and found.verb == "RCPT"):
        wrong["path"] = SYNTAX
    path = match["path"] if match else text
    if "ipv6:" in path.lower() and not is_ipv6(path):
        wrong["path"] = SYNTAX
    words = match["rest"].split() if match else re.findall(r" ([^ <>@=]+(?:=[^ ]*)?)(?= |$)", text)
    keywords = [word.partition("=")[0].upper() for word in words]
    if not all(map(_WORD.fullmatch, words)) or not all(word.isascii() for word in keywords):
        wrong["word"] = frozenset({501})
    if len(set(keywords)) < len(keywords):
        wrong["repeated"] = frozenset({501})
    known = _VALUES if found.verb == "MAIL" else {}
    for word, keyword in zip(words, keywords):
        if keyword not in known:
            wrong["unknown"] = frozenset({555})
        elif not known[keyword].fullmatch(word.upper()):
            wrong["value"] = frozenset({501})
        elif keyword == "SIZE" and int(word[5:]) > LARGEST:
            wrong["size"] = frozenset({552})
    if not path.isascii() and "SMTPUTF8" not in keywords:
        wrong["ascii"] = frozenset({553})
    if len(found.line) > 510:
        wrong["length"] = frozenset({500})
    return wrong


def is_ipv6(path):
    try:
        ipaddress.IPv6Address(re.search(r"(?i)ipv6:([^\]]*)", path)[1])
    except ValueError:
        return False
    return True


def codes_of(wrong):
    return frozenset().union(*wrong.values())


def is_printable(octets):
    try:
        return _CONTROL.search(octets.decode()) is None
    except UnicodeDecodeError:
        return False
