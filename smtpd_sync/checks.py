"""Why the client may not ask what it asks: rules of order, and those beyond a command's grammar.

Each rule is the condition and its reply; the session answers with the first that holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from . import reply as replies
from .command import Command
from .envelope import Envelope, Parameters
from .reply import Reject, Reply
from .states import GREETED, OUT_OF_TURN, REFUSED, TRANSITIONS, WITH_AUTH, WITHOUT_TLS

if TYPE_CHECKING:
    from .answering import Answering
    from .session import Session

__all__ = ["CHECKS", "refusal"]


def refusal(session: Answering, verb: str, length: int) -> Optional[Reply]:
    """Say why ``verb`` may not come now, or ``None``."""
    rules = session.rules
    if session.state is REFUSED and verb != "QUIT":
        return replies.BAD_SEQUENCE  # RFC 5321 3.1
    if length + 2 > rules.line_lengths[verb]:
        return replies.AUTH_LINE_TOO_LONG if verb == "AUTH" else replies.LINE_TOO_LONG
    if verb == "STARTTLS" and session.tls is not None:
        return replies.TLS_ACTIVE
    if verb in rules.refused:
        return rules.refused[verb]
    if rules.require_tls and session.tls is None and verb not in WITHOUT_TLS:
        return replies.TLS_NEEDED
    if session.state not in TRANSITIONS[verb]:
        by_default = replies.HELO_FIRST if session.state is GREETED else replies.BAD_SEQUENCE
        return OUT_OF_TURN.get((verb, session.state), by_default)
    if rules.require_auth and session.user is None and verb in WITH_AUTH:
        return replies.AUTH_NEEDED
    return None


def check_mail(session: Session, event: Command) -> None:
    _, sender, parameters = event
    if not sender.isascii() and "SMTPUTF8" not in parameters:
        raise Reject(*replies.UTF8_NEEDED)
    if parameters:
        parameters = _check_parameters(session, parameters)
    session.envelope = Envelope(session, sender, parameters)


def _check_parameters(session: Session, parameters: Parameters) -> Parameters:
    """Give the parameters of MAIL as the envelope is to have them."""
    if "REQUIRETLS" in parameters and session.tls is None:
        raise Reject(*replies.TLS_NEEDED)
    limit = session.rules.limits.message_size
    if limit is not None and int(parameters.get("SIZE", 0)) > limit:
        raise Reject(*replies.MESSAGE_TOO_BIG)
    if "AUTH" in parameters and session.user is None:
        # Nobody answers for what a stranger says of the submitter (RFC 4954 5).
        return {**parameters, "AUTH": "<>"}
    return parameters


def check_rcpt(session: Session, event: Command) -> None:
    envelope = session.envelope
    assert envelope is not None, "the table lets no recipient in without MAIL"
    if not event.argument.isascii() and not envelope.smtputf8:
        raise Reject(*replies.UTF8_NEEDED)
    if len(envelope.recipients) >= session.rules.limits.recipients:
        raise Reject(*replies.TOO_MANY_RECIPIENTS)


def check_data(session: Session, event: Command) -> None:
    assert session.envelope is not None, "the table lets no mail data in without MAIL"
    if session.envelope.binary:
        raise Reject(*replies.BINARY_DATA)


def check_auth(session: Session, event: Command) -> None:
    mechanism, _ = event.argument
    if session.user is not None:
        raise Reject(*replies.AUTH_DONE)
    if not session.esmtp:
        raise Reject(*replies.HELO_FIRST)
    if session.tls is None and session.rules.auth_require_tls:
        raise Reject(*replies.ENCRYPTION_NEEDED)
    if mechanism not in session.mechanisms:
        raise Reject(*replies.UNKNOWN_MECHANISM)


CHECKS = {"MAIL": check_mail, "RCPT": check_rcpt, "DATA": check_data, "AUTH": check_auth}
"""What is checked of a command that may come and was read."""
