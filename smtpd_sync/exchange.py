"""One AUTH exchange (RFC 4954 4): a SASL mechanism, with base64 around it.

What a mechanism yields becomes the next thing to do: a 334, a question to the application, or the
end. Knows nothing of sockets, and of the session only what it is given.
"""

from __future__ import annotations

import binascii
from typing import Any, Optional, Union

from . import reply as replies
from .command import decode_base64
from .reply import Reject, Reply
from .sasl import MECHANISMS, Context, Credentials, SecretRequest

__all__ = ["AuthExchange"]

Step = Union[Reply, SecretRequest, Credentials]


class AuthExchange:
    """Runs one mechanism.

    Each method gives the next step; a `Reply` of 334 waits for a response, any other is the end.
    """

    def __init__(self, mechanism: str, context: Context) -> None:
        row = MECHANISMS[mechanism]
        self._context = context
        self._run = row.run
        self._failure = row.failure
        self._refusal: Optional[Reply] = None

    def start(self, initial: Optional[bytes]) -> Step:
        """Begin, with the initial response if there was one."""
        self._generator = self._run(initial, self._context)
        return self._advance(None)

    def respond(self, line: bytes) -> Step:
        """Take a response of the client."""
        if self._refusal is not None:
            return self._refusal  # it has heard why, and says something without meaning
        if line == b"*":
            return replies.AUTH_CANCELLED
        try:
            return self._advance(decode_base64(line.decode("latin-1")))
        except Reject as reject:
            return reject.reply

    def answer(self, request: SecretRequest) -> Step:
        """Take the answer to a question."""
        return self._advance(request) if request.fault is None else request.fault

    def refuse(self, refusal: Reply) -> Reply:
        """Say how to begin to refuse: with the mechanism's own challenge, where it has one."""
        if self._failure is None or refusal.code != replies.AUTH_FAILED.code:
            return refusal
        self._refusal = refusal
        return challenge(self._failure)

    def _advance(self, answer: Any) -> Step:
        try:
            step = self._generator.send(answer)
        except Reject as reject:
            return reject.reply
        return challenge(step) if isinstance(step, bytes) else step


def challenge(octets: bytes) -> Reply:
    """Give the 334 of a challenge."""
    return Reply(334, binascii.b2a_base64(octets, newline=False).decode())
