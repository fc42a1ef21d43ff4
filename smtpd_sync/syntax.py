"""The grammar of RFC 5321 4.1.2 and 4.1.3, widened by RFC 6531 3.3, as regular expressions.

Each pattern has the name of its production. Knows text only: nothing of commands or sessions.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Optional

from .patterns import Pattern

__all__ = ["Mailbox"]

# The character classes say what is not in them: so they take in UTF8-non-ascii (RFC 6531 3.3), less
# the C1 controls, and compile at once. (A class that lists the ranges of Unicode takes 10 ms.)
LET_DIG = r"[^\x00-/:-@\[-`{-\x9f]"
LDH_STR = r"[^\x00-,./:-@\[-`{-\x9f]"
ATEXT = r'[^\x00-\x20"(),.:;<>@\[-\]\x7f-\x9f]'
ATOM = f"{ATEXT}+"
DOT_STRING = rf"{ATOM}(?:\.{ATOM})*"
QUOTED_STRING = r'"(?:[^\x00-\x1f"\\\x7f-\x9f]|\\[ -~])*"'
LOCAL_PART = f"(?:{DOT_STRING}|{QUOTED_STRING})"
SUB_DOMAIN = f"{LET_DIG}(?:{LDH_STR}{{0,61}}{LET_DIG})?"
DOMAIN = rf"{SUB_DOMAIN}(?:\.{SUB_DOMAIN})*"
SNUM = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
IPV4_ADDRESS = rf"{SNUM}(?:\.{SNUM}){{3}}"
ADDRESS_LITERAL = r"\[[!-Z^-~]+\]"
A_D_L = f"@{DOMAIN}(?:,@{DOMAIN})*:"  # a source route

# Nearly every domain: as DOMAIN, but no run of characters can be read in two ways, so it is twice
# as quick. Where the whole is no longer than a label may be, none of its labels is.
COMMON_LABEL = f"{LET_DIG}+(?:-+{LET_DIG}+)*"
COMMON_DOMAIN = rf"(?=[^>]{{1,63}}>){COMMON_LABEL}(?:\.{COMMON_LABEL})*"

DOMAIN_LENGTH = 255  # octets, RFC 5321 4.5.3.1.2

# What ends a line or means something else than itself to some reader of a header or a log.
CONTROL = Pattern("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")

_DOT_STRING = Pattern(DOT_STRING)
# Those that are seldom needed are compiled at their first use.
_QUOTED_PAIR = r"\\(.)"
_IPV4_LITERAL = rf"\[{IPV4_ADDRESS}\]"
_GENERAL_LITERAL = r"\[([A-Za-z0-9-]*[A-Za-z0-9]):([!-Z^-~]+)\]"
# Windows machines greet with an underscore in their name; every MTA lets them in.
_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_GREETING_DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*\.?"
_STRICT_DOMAIN = DOMAIN


class PathGrammar(NamedTuple):
    """The patterns of one verb's argument. Groups: ``local``, ``domain``, ``parameters``."""

    common: Pattern
    """Knows the paths that need no second look, and no others; has no other groups."""
    full: Pattern


def path_grammar(keyword: str, special: str, strict: bool) -> PathGrammar:
    """Make the patterns of ``FROM:`` or ``TO:``, a path and its parameters (RFC 5321 4.1.1.2, 3).

    ``special`` is the path without a mailbox that the verb knows: ``<>`` or ``<postmaster>``.
    Where not ``strict``, a space after the colon, missing angle brackets and a dot after the
    domain are forgiven, as every MTA does.
    """
    forgiven = "" if strict else "?"
    space, dot = ("", "") if strict else (" *", r"\.?")
    keyword, special = _any_case(keyword), _any_case(special)
    mailbox = rf"(?P<local>{LOCAL_PART})@(?P<domain>(?:{DOMAIN}{dot}|{ADDRESS_LITERAL}))"
    path = rf"(?P<open><){forgiven}(?:{A_D_L})?{mailbox}(?(open)>)"
    rest = r"(?: +(?P<parameters>.*))?\Z"
    common = rf"{keyword}:<(?P<local>{DOT_STRING})@(?P<domain>{COMMON_DOMAIN})>{rest}"
    return PathGrammar(
        Pattern(common),
        Pattern(rf"{keyword}:{space}(?:{special}|{path}){rest}"),
    )


def _any_case(word: str) -> str:
    # As re.IGNORECASE does, which takes its time over negated classes.
    return "".join(f"[{c}{c.lower()}]" if c.isalpha() else c for c in word.upper())


def is_domain(text: str, strict: bool = False) -> bool:
    """Tell whether ASCII ``text`` may stand in HELO and EHLO: a domain or an address literal."""
    if text.startswith("["):
        return literal(text) is not None
    pattern = _STRICT_DOMAIN if strict else _GREETING_DOMAIN
    return len(text) <= DOMAIN_LENGTH and re.fullmatch(pattern, text) is not None


def is_address(text: str) -> bool:
    """Tell whether ``text`` is an IP address, without brackets."""
    ipv4 = re.fullmatch(_IPV4_LITERAL, f"[{text}]") is not None
    return ipv4 or literal(f"[IPv6:{text}]") is not None


def literal(text: str) -> Optional[str]:
    """Give an address literal in its one spelling, or ``None`` if it is none (RFC 5321 4.1.3)."""
    if re.fullmatch(_IPV4_LITERAL, text):
        return text
    general = re.fullmatch(_GENERAL_LITERAL, text)
    if general is None:
        return None
    tag, content = general.groups()
    if tag.lower() != "ipv6":
        return f"[{tag.lower()}:{content}]"
    import ipaddress

    try:
        address = ipaddress.IPv6Address(content)
    except ValueError:
        return None
    return None if "%" in content else f"[IPv6:{address.compressed}]"


class Mailbox(str):
    """A mailbox as text: local part minimally quoted, domain in lower case without a last dot.

    ``.local`` and ``.domain`` are its parts, unquoted; ``.original`` is the text as it was sent.
    Two spellings of one mailbox compare equal. The null reverse-path is ``""``, ``<postmaster>``
    is ``"postmaster"`` with the domain ``""``.
    """

    __slots__ = ("domain", "local", "original")

    local: str
    domain: str
    original: str

    def __new__(cls, local: str = "", domain: str = "", original: Optional[str] = None) -> Mailbox:
        """Make a mailbox of an unquoted local part and a domain; neither is checked here."""
        if not domain.startswith("["):
            domain = domain.lower()
            if domain.endswith("."):
                domain = domain[:-1]
        text = local
        if domain:
            if not _DOT_STRING.fullmatch(local):
                quoted = local.replace("\\", "\\\\").replace('"', '\\"')
                text = f'"{quoted}"'
            text = f"{text}@{domain}"
        self = str.__new__(cls, text)
        self.local = local
        self.domain = domain
        self.original = text if original is None else original
        return self

    @classmethod
    def of_common(cls, local: str, domain: str) -> Mailbox:
        """Make the mailbox of a common path: nothing to quote, no literal, no last dot."""
        original = text = f"{local}@{domain}"
        if not domain.islower():
            domain = domain.lower()
            text = f"{local}@{domain}"
        self = str.__new__(cls, text)
        self.local = local
        self.domain = domain
        self.original = original
        return self

    @classmethod
    def parse(cls, text: str) -> Mailbox:
        """Read ``local@domain``; ``ValueError`` if RFC 5321 4.1.2 does not allow it."""
        match = None if CONTROL.search(text) else re.fullmatch(_MAILBOX, text)
        mailbox = match and mailbox_of(match)
        if not mailbox:
            raise ValueError(f"{text!r} is no mailbox (RFC 5321 4.1.2)")
        return mailbox


_MAILBOX = rf"(?P<local>{LOCAL_PART})@(?P<domain>(?:{DOMAIN}\.?|{ADDRESS_LITERAL}))"


def mailbox_of(match: re.Match[str]) -> Optional[Mailbox]:
    """Make the mailbox of the groups ``local`` and ``domain``; ``None`` if the domain cannot be."""
    local, domain = match["local"], match["domain"]
    original = f"{local}@{domain}"
    if local.startswith('"'):
        local = re.sub(_QUOTED_PAIR, r"\1", local[1:-1])
    if domain.startswith("["):
        spelled = literal(domain)
        if spelled is None:
            return None
        return Mailbox(local, spelled, original)
    # At most four octets a character: so long a domain is rare.
    if len(domain) * 4 > DOMAIN_LENGTH and len(domain.encode()) > DOMAIN_LENGTH:
        return None
    return Mailbox(local, domain, original)
