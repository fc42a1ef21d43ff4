"""Every number of the server in one place.

A limit bounds what a client may ask of us; what happens beyond it is the reply beside it. Sources:
RFC 5321 4.5.3 (sizes and time-outs), and the defaults of Postfix where the RFC names none.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

__all__ = ["DEFAULT_LIMITS", "Limits"]


class Limits(NamedTuple):
    """What one client may take. Octets, seconds or counts; ``None`` is "no limit" where allowed.

    Change some and keep the rest: ``Limits(message_size=1_000_000, recipients=100)``.
    """

    message_size: Optional[int] = 33_554_432
    """Octets of mail data (RFC 1870). Beyond it 552 5.3.4; at four times this, 421 and close."""
    recipients: int = 1_000
    """Recipients of one message (RFC 5321 4.5.3.1.8 asks for 100). Beyond it 452 4.5.3. As many
    commands may be put off with 4yz since the last delivered message; then each is an error."""
    command_line: int = 512
    """Octets of a command line with its CRLF, to which each extension adds (4.5.3.1.4).
    500 5.5.2."""
    auth_line: int = 12_288
    """Octets of a line of an AUTH exchange with its CRLF (RFC 4954 4). 500 5.5.6."""
    text_line: Optional[int] = None
    """Octets of a line of mail data with its CRLF (4.5.3.1.6 asks for 1,000). 500 5.6.0 if set."""
    command_timeout: float = 300.0
    """Seconds for the client to send a whole command (4.5.3.2.7). 421 4.4.2 and close."""
    handshake_timeout: float = 60.0
    """Seconds for a whole TLS handshake. Close without a word."""
    proxy_timeout: float = 5.0
    """Seconds for a proxy to send its PROXY header. Close without a word."""
    session_time: Optional[float] = None
    """Seconds of a whole session. Beyond it 421 4.4.2, once no transaction is open."""
    stress_timeout: float = 10.0
    """Seconds that take the place of longer time-outs while four fifths of ``connections`` are in
    use."""
    data_rate: int = 500
    """Octets a second that win mail data more time; ``command_timeout`` is the most it can win."""
    errors: int = 20
    """Commands refused with 5yz since the last delivered message. 421 4.7.0 and close."""
    junk_commands: int = 100
    """Commands that bring no mail (NOOP, RSET, EHLO, VRFY ...) since the last delivered message.
    421 4.7.0 and close."""
    auth_failures: int = 3
    """Failed AUTH exchanges of a session. 421 4.7.0 and close."""
    connections: int = 1_000
    """Sessions at a time, at most half of what RLIMIT_NOFILE allows. 421 4.3.2 without a thread."""
    connections_per_address: Optional[int] = 50
    """Of those, sessions of one IPv4 address or one IPv6 /64; loopback has no limit. 421 4.7.0."""
    memory: int = 268_435_456
    """Octets of mail data that the server holds in memory. Beyond it temporary files."""
    message_memory: int = 4_194_304
    """Of those, octets of one message, where the delivery hook can read a file: for
    `deliver_envelope`. Beyond it a temporary file."""
    spool: int = 4_294_967_296
    """Octets of mail data that the server holds in temporary files. Beyond it 452 4.3.1."""
    transcript: int = 1_000
    """Lines of ``session.transcript``, where the option is on; those before are forgotten."""

    def check(self) -> Limits:
        """Give these limits back, or raise ``ValueError`` for a number that cannot be one."""
        optional = {"message_size", "text_line", "session_time", "connections_per_address"}
        for name, value in self._asdict().items():
            if value is None and name in optional:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"limits: {name} must be a positive number, not {value!r}")
        if self.command_line < 512:
            raise ValueError(
                "limits: command_line must be at least 512 octets (RFC 5321 4.5.3.1.4)"
            )
        if self.text_line is not None and self.text_line < 1000:
            raise ValueError("limits: text_line must be at least 1000 octets (RFC 5321 4.5.3.1.6)")
        return self


DEFAULT_LIMITS = Limits()
