"""Why aiosmtpd and we may differ: a table of narrow predicates, each with who is right."""

import re
from typing import Any, Callable, NamedTuple

from .faults import NAME, PATH, Difference, codes_of, faults, is_ipv6, is_printable


def they_accept(name):
    """Make: the only fault is this one, we refuse for it and they do not."""

    def holds(found):
        wrong = faults(found)
        return name in wrong and found.ours in codes_of(wrong) and found.theirs == 250

    return holds


def either_code(found):
    wrong = faults(found)
    return bool(wrong) and None not in found.codes and set(found.codes) <= codes_of(wrong)


def _glued(our, their):
    names = zip([our.sender, *our.recipients], [their.sender, *their.recipients])
    return all(two == one or (two.startswith(one) and "=" in two[len(one) :]) for one, two in names)


def bad_name(found):
    if found.verb not in ("HELO", "EHLO") or found.codes != (501, 250):
        return False
    name = found.argument.decode("latin-1")
    if name.lower().startswith("[ipv6:") and name.endswith("]"):
        return not is_ipv6(name) or "]" in name[:-1]
    return not (name.isascii() and NAME.fullmatch(name) and len(name) <= 255)


def dot_behind_domain(found):
    return (
        found.verb in ("MAIL", "RCPT")
        and found.ours != 553
        and found.theirs == 553
        and re.search(rb"[A-Za-z0-9]\.(?:>|$| )", found.line) is not None
    )


def parameters_behind_helo(found):
    match = PATH.fullmatch(found.argument.decode("latin-1"))
    return bool(
        found.verb in ("MAIL", "RCPT")
        and not found.extended
        and found.theirs == 501
        and match
        and match["rest"].strip()
    )


# -- the table -----------------------------------------------------------------------------------

OTHER_PROTOCOLS = re.compile("GET|POST|PUT|HEAD|OPTIONS|CONNECT|DELETE|PATCH|TRACE|PRI|.*:")
UNSERVED = re.compile("SEND|SOML|SAML|TURN|ETRN|ATRN|BURL")
TAB_BEHIND = re.compile("(?:HELO|EHLO|MAIL|RCPT|DATA|RSET|NOOP|QUIT|HELP|VRFY|EXPN)\t+")


class Explanation(NamedTuple):
    """A row."""

    name: str
    right: str
    """``"we"``, ``"they"``, or ``"both"`` where the RFC leaves it open."""
    why: str
    holds: Callable[[Difference], Any]


EXPLANATIONS = (
    Explanation(
        "bare LF in a command",
        "we",
        "only CRLF ends a line (RFC 5321 2.3.8); they end it at LF",
        lambda d: d.is_command and b"\n" in d.line,
    ),
    Explanation(
        "CR at the end of a command",
        "we",
        "a CR is part of no line end but CRLF (RFC 5321 2.3.8); they take any number away",
        lambda d: d.is_command and d.line.endswith(b"\r"),
    ),
    Explanation(
        "five unknown commands",
        "both",
        "they close after five; when to give up is local policy (RFC 5321 7.8)",
        lambda d: d.theirs in (502, None) and d.unknown >= 4,
    ),
    Explanation(
        "another protocol",
        "both",
        "we close at HTTP and TLS, they say 500; RFC 5321 says nothing of either",
        lambda d: (
            d.codes == (554, 500)
            and (OTHER_PROTOCOLS.fullmatch(d.verb) or d.line.startswith(b"\x16\x03"))
        ),
    ),
    Explanation(
        "code of HELP",
        "we",
        "HELP is answered 211 or 214 (RFC 5321 4.3.2), not 250",
        lambda d: d.verb == "HELP" and d.codes == (214, 250),
    ),
    Explanation(
        "unknown topic of HELP",
        "we",
        "a parameter that is not implemented is 504 (RFC 5321 4.2.4 and 4.3.2), not 501",
        lambda d: d.verb == "HELP" and d.codes == (504, 501) and bool(d.argument),
    ),
    Explanation(
        "known and not served",
        "we",
        "502 for a command that an RFC has and we do not (RFC 5321 4.2.4), 500 for others",
        lambda d: UNSERVED.fullmatch(d.verb) and d.codes == (502, 500),
    ),
    Explanation(
        "tab behind the verb",
        "we",
        "white space before CRLF is to be tolerated (RFC 5321 4.1.1)",
        lambda d: TAB_BEHIND.fullmatch(d.verb) and d.ours != 500 == d.theirs and not d.argument,
    ),
    Explanation(
        "tab between verb and argument",
        "they",
        "a space stands there (RFC 5321 4.1.1); we forgive a tab before it",
        lambda d: TAB_BEHIND.fullmatch(d.verb) and d.ours != 500 == d.theirs and d.argument,
    ),
    Explanation(
        "tab among parameters",
        "we",
        "parameters are split by spaces (RFC 5321 4.1.1.11): a tab is 501; they say 555",
        lambda d: d.codes == (501, 555) and d.verb in ("MAIL", "RCPT") and b"\t" in d.argument,
    ),
    Explanation(
        "no name in HELO",
        "we",
        "the argument is a domain or an address literal (RFC 5321 4.1.1.1), else 501",
        bad_name,
    ),
    Explanation(
        "octets that no command has",
        "we",
        "control characters and broken UTF-8 are in no argument (RFC 5321 4.1.2, RFC 6531 3.3)",
        lambda d: (
            d.is_command
            and d.ours == 501
            and d.theirs in (250, 252, 502)
            and not is_printable(d.argument)
        ),
    ),
    Explanation(
        "no mailbox",
        "we",
        "what is no path by RFC 5321 4.1.2 is 501; they read it as a header field",
        they_accept("path"),
    ),
    Explanation(
        "their parser fails",
        "we",
        "a syntax error is 501 (RFC 5321 4.2.3); they say 500 and the name of an exception",
        lambda d: d.ours in (501, 503) and d.theirs == 500 and "path" in faults(d),
    ),
    Explanation(
        "text behind the path",
        "we",
        "parameters stand behind a space (RFC 5321 4.1.1.2), else it is 501; they read them",
        lambda d: (
            d.ours == 501
            and d.theirs in (250, 552, 555)
            and d.verb in ("MAIL", "RCPT")
            and re.search(rb">[^ ]", d.line) is not None
        ),
    ),
    Explanation(
        "parameter taken for a part of the address",
        "we",
        "MAIL FROM:a@b. X=Y has a parameter (RFC 5321 4.1.1.2); they glue it to the address",
        lambda d: (
            d.mail is not None
            and len(d.mail[0]) == len(d.mail[1]) == 1
            and d.mail[0][0].data == d.mail[1][0].data
            and _glued(d.mail[0][0], d.mail[1][0])
        ),
    ),
    Explanation(
        "white space before the argument",
        "we",
        "one space stands behind the verb (RFC 5321 4.1.1), to the letter; they take any",
        lambda d: (
            d.codes in ((501, 250), (504, 250))
            and re.match(rb"[A-Za-z]{4} [ \t]", d.line) is not None
        ),
    ),
    Explanation(
        "VRFY of what they cannot parse",
        "we",
        "who does not verify says 252 (RFC 5321 3.5.3); 502 says there is no VRFY",
        lambda d: d.verb == "VRFY" and d.codes == (252, 502),
    ),
    Explanation(
        "EXPN without an argument",
        "both",
        "it is bad syntax and not served: 501 or 502 (RFC 5321 4.3.2)",
        lambda d: d.verb == "EXPN" and d.codes == (501, 502) and not d.argument,
    ),
    Explanation(
        "UTF-8 without SMTPUTF8",
        "we",
        "an address beyond ASCII needs the parameter, else 553 (RFC 6531 3.5)",
        they_accept("ascii"),
    ),
    Explanation(
        "parameter given twice",
        "we",
        "a keyword stands once (RFC 5321 4.1.1.11); they take the last",
        they_accept("repeated"),
    ),
    Explanation(
        "value of a parameter",
        "we",
        "SIZE needs digits (RFC 1870 5) and SMTPUTF8 has no value (RFC 6531 3.4)",
        they_accept("value"),
    ),
    Explanation(
        "BINARYMIME",
        "both",
        "we offer it and they do not (RFC 3030 3)",
        lambda d: (
            d.verb == "MAIL" and d.codes == (250, 501) and b"BODY=BINARYMIME" in d.line.upper()
        ),
    ),
    Explanation(
        "hyphen in a keyword",
        "we",
        "a keyword may have one (RFC 5321 4.1.2), so an unknown one is 555; they say 501",
        lambda d: (
            d.codes == (555, 501) and re.search(rb" [A-Za-z0-9]+-[A-Za-z0-9-]+", d.line) is not None
        ),
    ),
    Explanation(
        "BINARYMIME beside another fault",
        "both",
        "they refuse it first; which of two faults is told is open (RFC 5321 4.2.4)",
        lambda d: (
            d.verb == "MAIL"
            and d.theirs == 501
            and b"BODY=BINARYMIME" in d.line.upper()
            and d.ours in codes_of(faults(d))
        ),
    ),
    Explanation(
        "parameters behind HELO",
        "both",
        "they need EHLO (RFC 5321 2.2.1); we forgive",
        parameters_behind_helo,
    ),
    Explanation(
        "dot behind the domain",
        "they",
        "a Domain ends without one (RFC 5321 4.1.2); we forgive it unless strict",
        dot_behind_domain,
    ),
    Explanation(
        "one of several codes",
        "both",
        "both refuse, by codes that fit the line: 501 or 553 for syntax, any fault of several",
        either_code,
    ),
)
