"""What is the same for every session of a server, worked out once.

Nothing that a session would look up for each command is looked up twice.
"""

from __future__ import annotations

import functools
from typing import Iterable, Mapping, NamedTuple, Tuple

from . import reply as replies
from .command import ATTRIBUTES, AUTH, BODY, SIZE, SMTPUTF8, VERBS, Extension, Grammar, grammar
from .limits import DEFAULT_LIMITS, Limits
from .reply import Reply
from .sasl import MECHANISMS
from .states import TRANSITIONS, WITH_AUTH, WITHOUT_TLS, State

__all__ = ["Rules", "default_rules", "offers", "rules"]


XCLIENT = Extension("XCLIENT", " ".join(ATTRIBUTES["XCLIENT"]))
XFORWARD = Extension("XFORWARD", " ".join(ATTRIBUTES["XFORWARD"]))


class Rules(NamedTuple):
    """What a session goes by. Made by `rules`, shared, never changed."""

    limits: Limits
    strict_pipelining: bool
    bare_newline: str
    require_tls: bool
    require_auth: bool
    auth_require_tls: bool
    mechanisms: Tuple[str, ...]
    """SASL mechanisms that may be offered, in the order of their worth."""
    salt_key: bytes
    hostname: str
    lmtp: bool
    grammar: Grammar
    extensions: Tuple[Extension, ...]
    """What EHLO offers, but for AUTH."""
    offers: Mapping[bool, Tuple[str, ...]]
    """Its lines of these, outside and inside TLS; none where one changes with the time."""
    refused: Mapping[str, Reply]
    """Verbs that are not served here, and what they are told."""
    line_lengths: Mapping[str, int]
    """Verb -> octets its command line may have."""
    longest_line: int
    """The most of them."""
    free: Mapping[str, Tuple[int, Mapping[State, State]]]
    """What may come whoever asks: verb -> octets of its line without CRLF, and the states it may
    come in. `checks.refusal` need not be asked of it, which knows the reasons."""


def rules(
    limits: Limits = DEFAULT_LIMITS,
    *,
    starttls: bool = False,
    require_tls: bool = False,
    mechanisms: Iterable[str] = (),
    require_auth: bool = False,
    auth_require_tls: bool = True,
    salt_key: bytes = b"",
    hostname: str = "localhost",
    lmtp: bool = False,
    xclient: bool = False,
    strict: bool = False,
    strict_pipelining: bool = True,
    bare_newline: str = "normalize",
    extensions: Iterable[Extension] = (),
    ignore_parameters: bool = False,
) -> Rules:
    """Work out, once, all that a session would have to look up for each command."""
    offered = (*_always(limits), *extensions, Extension("HELP", rfc="RFC 5321"))
    if starttls:
        offered = (*offered, Extension("STARTTLS", rfc="RFC 3207"))
    if xclient:
        offered = (*offered, XCLIENT, XFORWARD)
    sasl = tuple(name for name in MECHANISMS if name in set(mechanisms))
    auth = (Extension("AUTH", parameters=(AUTH,), rfc="RFC 4954"),) if sasl else ()
    known = grammar(strict, (*offered, *auth), ignore_parameters)
    refused = {"HELO": replies.UNRECOGNIZED, "EHLO": replies.UNRECOGNIZED}  # RFC 2033 4.1
    if not lmtp:
        refused = {"LHLO": replies.NOT_IMPLEMENTED}
    if not xclient:
        refused.update({"XCLIENT": replies.UNRECOGNIZED, "XFORWARD": replies.UNRECOGNIZED})
    if not starttls:
        refused["STARTTLS"] = replies.NOT_IMPLEMENTED
    if not sasl:
        refused["AUTH"] = replies.NOT_IMPLEMENTED
    changing = any(callable(extension.value) for extension in offered)
    lengths = {**dict.fromkeys(VERBS, limits.command_line), "AUTH": limits.auth_line}
    for row, _ in known.parameters.values():
        lengths[row.verb] += row.octets
    return Rules(
        limits,
        strict_pipelining,
        bare_newline,
        require_tls,
        require_auth,
        auth_require_tls,
        sasl,
        salt_key,
        hostname,
        lmtp,
        known,
        offered,
        {} if changing else {tls: offers(offered, tls) for tls in (False, True)},
        refused,
        lengths,
        max(lengths.values()),
        {
            verb: (lengths[verb] - 2, TRANSITIONS[verb])
            for verb in VERBS
            if verb not in refused and verb != "STARTTLS"
            if not require_tls or verb in WITHOUT_TLS
            if not require_auth or verb not in WITH_AUTH
        },
    )


def offers(extensions: Iterable[Extension], encrypted: bool) -> Tuple[str, ...]:
    """Give what EHLO says of ``extensions``, outside or inside TLS."""
    return tuple(
        extension.offer()
        for extension in extensions
        if encrypted or not extension.inside_tls
        if not encrypted or extension.keyword != "STARTTLS"  # RFC 3207 4.2
    )


def _always(limits: Limits) -> Tuple[Extension, ...]:
    return (
        # 0 is no fixed limit (RFC 1870 4).
        Extension("SIZE", str(limits.message_size or 0), (SIZE,), "RFC 1870"),
        Extension("8BITMIME", parameters=(BODY,), rfc="RFC 6152"),
        Extension("PIPELINING", rfc="RFC 2920"),
        Extension("CHUNKING", rfc="RFC 3030"),
        Extension("BINARYMIME", rfc="RFC 3030"),
        Extension("ENHANCEDSTATUSCODES", rfc="RFC 2034"),
        Extension("SMTPUTF8", parameters=(SMTPUTF8,), rfc="RFC 6531"),
        Extension("LIMITS", f"RCPTMAX={limits.recipients}", rfc="RFC 9422"),
    )


@functools.cache
def default_rules() -> Rules:
    """Give the rules of a server with all defaults. Made when asked for."""
    return rules()
