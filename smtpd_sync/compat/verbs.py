"""The commands of the removed ``smtpd``, with its replies."""

from __future__ import annotations

import re
from typing import Dict, List, Optional, Tuple, Union

from .channel import END_OF_DATA, Channel

__all__ = ["Verbs"]

SYNTAX = {
    "EHLO": "EHLO hostname",
    "HELO": "HELO hostname",
    "MAIL": "MAIL FROM: <address>",
    "RCPT": "RCPT TO: <address>",
    "DATA": "DATA",
    "RSET": "RSET",
    "NOOP": "NOOP",
    "QUIT": "QUIT",
    "VRFY": "VRFY <address>",
}
PARAMETERS = " [SP <mail-parameters>]"
SUPPORTED = "Supported commands: EHLO HELO MAIL RCPT DATA RSET NOOP QUIT VRFY"

_PIECE = r'(?:"(?:[^"\\\x00-\x1f\x7f]|\\[ -~])*"|[^"<>\s\x00-\x1f\x7f])'
PATH = re.compile(
    # A source route is read and ignored (RFC 5321 4.1.1.3).
    rf"<(?:@[^<>:\s]*:)?(?P<angled>{_PIECE}*)>(?P<behind>.*)\Z"
    rf"|(?P<bare>{_PIECE}+)(?P<rest>(?:\s.*)?)\Z"
)

Parameters = Dict[str, Union[str, bool]]


class Verbs(Channel):
    """The part of `SMTPChannel` that has a method for each verb; subclasses have more."""

    # -- arguments ---------------------------------------------------------------------------

    def _strip_command_keyword(self, keyword: str, arg: str) -> str:
        """Give what is behind ``FROM:`` or ``TO:``."""
        found = arg[: len(keyword)].upper() == keyword
        return arg[len(keyword) :].strip() if found else ""

    def _getaddr(self, arg: str) -> Tuple[str, str]:
        """Take an address and what is behind it apart; no address where there is none."""
        match = PATH.match(arg.strip())
        if match is None:
            return "", ""
        if match["bare"]:
            return match["bare"], match["rest"].strip()
        return match["angled"] or "<>", match["behind"].strip()

    def _getparams(self, params: List[str]) -> Optional[Parameters]:
        """Take parameters apart; ``None`` if one of them cannot be (RFC 5321 4.1.2)."""
        result: Parameters = {}
        for param in params:
            name, equals, value = param.partition("=")
            if not name.isalnum() or (equals and not value):
                return None
            result[name] = value if equals else True
        return result

    def _syntax_of(self, verb: str) -> str:
        extended = self.extended_smtp and verb in ("MAIL", "RCPT")
        return f"Syntax: {SYNTAX[verb]}{PARAMETERS if extended else ''}"

    def _read_path(self, verb: str, keyword: str, arg: Optional[str]) -> Tuple[str, str]:
        """Read the argument of MAIL or RCPT: an address and its parameters, or a reply is given."""
        address, params = self._getaddr(self._strip_command_keyword(keyword, arg or ""))
        if not address or (params and not self.extended_smtp):
            self.push(f"501 {self._syntax_of(verb)}")
            return "", ""
        return address, params

    # -- commands ----------------------------------------------------------------------------

    def smtp_HELO(self, arg: Optional[str]) -> None:
        """Greet."""
        if self._take_greeting("HELO", arg):
            self.push(f"250 {self.fqdn}")

    def smtp_EHLO(self, arg: Optional[str]) -> None:
        """Greet, and say what is offered."""
        if not self._take_greeting("EHLO", arg):
            return
        self.extended_smtp = True
        offers = [self.fqdn]
        if self.data_size_limit:
            offers.append(f"SIZE {self.data_size_limit}")
            self.command_size_limits["MAIL"] += 26
        if not self._decode_data:
            offers.append("8BITMIME")
        if self.enable_SMTPUTF8:
            offers.append("SMTPUTF8")
            self.command_size_limits["MAIL"] += 10
        for offer in offers:
            self.push(f"250-{offer}")
        self.push("250 HELP")

    def _take_greeting(self, verb: str, arg: Optional[str]) -> bool:
        if not arg:
            self.push(f"501 {self._syntax_of(verb)}")
        elif self.seen_greeting:
            self.push("503 Duplicate HELO/EHLO")
        else:
            self._set_rset_state()
            self.seen_greeting = arg
            return True
        return False

    def _has_greeting(self) -> bool:
        if not self.seen_greeting:
            self.push("503 Error: send HELO first")
        return bool(self.seen_greeting)

    def smtp_NOOP(self, arg: Optional[str]) -> None:
        """Do nothing."""
        self.push("501 Syntax: NOOP" if arg else "250 OK")

    def smtp_QUIT(self, arg: Optional[str]) -> None:
        """Say goodbye."""
        self.push("221 Bye")
        self.close_when_done()

    def smtp_HELP(self, arg: Optional[str]) -> None:
        """List the commands, or show one."""
        topic = (arg or "").upper()
        if topic in SYNTAX:
            self.push(f"250 {self._syntax_of(topic)}")
        else:
            self.push(f"{501 if topic else 250} {SUPPORTED}")

    def smtp_VRFY(self, arg: Optional[str]) -> None:
        """Take an address for good."""
        if not arg:
            self.push(f"501 {self._syntax_of('VRFY')}")
        elif self._getaddr(arg)[0]:
            self.push("252 Cannot VRFY user, but will accept message and attempt delivery")
        else:
            self.push(f"502 Could not VRFY {arg if arg.isprintable() else ascii(arg)}")

    def smtp_EXPN(self, arg: Optional[str]) -> None:
        """Expand no list."""
        self.push("502 EXPN not implemented")

    def smtp_MAIL(self, arg: Optional[str]) -> None:
        """Open a transaction."""
        if not self._has_greeting():
            return
        self._print_debug("===> MAIL", arg)
        address, params = self._read_path("MAIL", "FROM:", arg)
        if not address:
            return
        if self.mailfrom:
            self.push("503 Error: nested MAIL command")
            return
        self.mail_options = params.upper().split()
        refused = self._check_mail(self._getparams(self.mail_options))
        if refused:
            self.push(refused)
            return
        self.mailfrom = address
        self._print_debug("sender:", self.mailfrom)
        self.push("250 OK")

    def _check_mail(self, params: Optional[Parameters]) -> str:
        """Look at the parameters of MAIL; give the reply, if it is not 250."""
        if params is None:
            return f"501 {self._syntax_of('MAIL')}"
        if not self._decode_data and params.pop("BODY", "7BIT") not in ("7BIT", "8BITMIME"):
            return "501 Error: BODY can only be one of 7BIT, 8BITMIME"
        if self.enable_SMTPUTF8:
            self.require_SMTPUTF8 = params.pop("SMTPUTF8", False) is not False
            if self.require_SMTPUTF8 and "SMTPUTF8" not in self.mail_options:
                return "501 Error: SMTPUTF8 takes no arguments"
        size = str(params.pop("SIZE", 0))
        if not (size.isascii() and size.isdecimal()):
            return f"501 {self._syntax_of('MAIL')}"
        if self.data_size_limit and int(size) > self.data_size_limit:
            return "552 Error: message size exceeds fixed maximum message size"
        if params:
            return "555 MAIL FROM parameters not recognized or not implemented"
        return ""

    def smtp_RCPT(self, arg: Optional[str]) -> None:
        """Take a recipient."""
        if not self._has_greeting():
            return
        self._print_debug("===> RCPT", arg)
        if not self.mailfrom:
            self.push("503 Error: need MAIL command")
            return
        address, params = self._read_path("RCPT", "TO:", arg)
        if not address:
            return
        self.rcpt_options = params.upper().split()
        found = self._getparams(self.rcpt_options)
        if found is None:
            self.push(f"501 {self._syntax_of('RCPT')}")
        elif found:
            self.push("555 RCPT TO parameters not recognized or not implemented")
        elif len(self.rcpttos) >= self._progress.most_recipients:
            self.push("452 Error: too many recipients")
        else:
            self.rcpttos.append(address)
            self._print_debug("recips:", self.rcpttos)
            self.push("250 OK")

    def smtp_RSET(self, arg: Optional[str]) -> None:
        """Forget the transaction."""
        if arg:
            self.push("501 Syntax: RSET")
            return
        self._set_rset_state()
        self.push("250 OK")

    def smtp_DATA(self, arg: Optional[str]) -> None:
        """Take a message."""
        if not self._has_greeting():
            return
        if not self.rcpttos:
            self.push("503 Error: need RCPT command")
            return
        if arg:
            self.push("501 Syntax: DATA")
            return
        self.smtp_state = self.DATA
        self.set_terminator(END_OF_DATA)
        self.push("354 End data with <CR><LF>.<CR><LF>")
