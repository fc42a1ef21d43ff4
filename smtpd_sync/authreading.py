"""AUTH in a session (RFC 4954): the exchange, response by response."""

from __future__ import annotations

from typing import List, Optional

from . import reply as replies
from .answering import Answering
from .command import Command
from .exchange import AuthExchange, Step
from .sasl import Context, Credentials, SecretRequest, new_nonce
from .states import TRANSITIONS

__all__ = ["AuthReading"]


class AuthReading(Answering):
    """The part of `Session` that reads an AUTH exchange."""

    @property
    def mechanisms(self) -> List[str]:
        """The SASL mechanisms that the client may use now."""
        rules, tls = self.rules, self.tls
        if tls is None and rules.auth_require_tls:
            return []
        missing = set()
        if tls is None or tls.peer_certificate is None:
            missing.add("EXTERNAL")
        if tls is None or tls.end_point is None:
            missing.add("SCRAM-SHA-256-PLUS")
        return [name for name in rules.mechanisms if name not in missing]

    @property
    def _open_exchange(self) -> AuthExchange:
        assert self._exchange is not None, "the table lets no response in without AUTH"
        return self._exchange

    def _begin_exchange(self, event: Command) -> Optional[Command]:
        mechanism, initial = event.argument
        tls = self.tls
        context = Context(
            certificate=tls and tls.peer_certificate,
            end_point=tls and tls.end_point,
            plus_offered="SCRAM-SHA-256-PLUS" in self.mechanisms,
            salt_key=self.rules.salt_key,
            hostname=self.rules.hostname,
            nonce=new_nonce(),
        )
        self.state = TRANSITIONS["AUTH"][self.state]
        self._exchange = AuthExchange(mechanism, context)
        return self._step(self._exchange.start(initial))

    def _read_response(self) -> Optional[Command]:
        """Read a response of the client, or the answer to what the mechanism asked for."""
        exchange = self._open_exchange
        if self._request is not None:
            request, self._request = self._request, None
            return self._step(exchange.answer(request))
        line = self._inbox.line(self.rules.longest_line)
        if line is None:
            self._starved = True
            return None
        if self.recorder is not None:
            self.recorder.response()
        if len(line) + 2 > self.rules.limits.auth_line:
            return self._step(replies.AUTH_LINE_TOO_LONG)
        if self._inbox.waiting and self.rules.strict_pipelining:
            return self._hang_up("AUTH", replies.OUT_OF_SYNC)
        return self._step(exchange.respond(line))

    def _step(self, step: Step) -> Optional[Command]:
        """Do what the exchange says is next."""
        if isinstance(step, SecretRequest):
            self._request = step
            return Command("secret", step)
        if isinstance(step, Credentials):
            self._pending = Command("credentials", step)
            return self._pending
        if step.code == 334:
            self.outbox.append(step.render())
            return None
        return self._answer("credentials", step, Command("credentials"))
