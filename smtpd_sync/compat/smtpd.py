"""The removed ``smtpd``: servers whose ``process_message`` is overridden.

It is written anew. ``python3 -m smtpd_sync.compat.smtpd`` takes the old options; see `smtpdcli`.
Accepting, the methods of a channel and ``process_message`` run in the thread that is inside
``asyncore.loop()``, as they always did, unless the class says ``concurrent = True``.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import time
from typing import Any, Dict, List, Optional, Tuple, Type, Union
from warnings import warn

from ..limits import DEFAULT_LIMITS, Limits
from . import asynchat as asynchat
from . import asyncore
from .backstage import Backstage
from .channel import BOTH_FLAGS as _BOTH_FLAGS
from .channel import DATA_SIZE_DEFAULT
from .channel import VERSION as _VERSION
from .polling import Map
from .verbs import Verbs

__all__ = ["DebuggingServer", "PureProxy", "SMTPChannel", "SMTPServer"]

program = sys.argv[0] if sys.argv else ""
__version__ = _VERSION


class Devnull:
    """A stream that keeps nothing."""

    def write(self, msg: str) -> None:
        """Write nothing."""

    def flush(self) -> None:
        """Keep nothing back."""


DEBUGSTREAM: Any = Devnull()
NEWLINE = "\n"
COMMASPACE = ", "

_BACKLOG = 1_024
_PAUSE = 0.1  # after accept() failed for want of descriptors
_PATIENCE = 60.0  # of a proxy with the next host, while nobody else is served
Data = Union[bytes, str]


class SMTPChannel(Verbs):
    """A conversation with one client: ``smtp_VERB`` methods, to be overridden and added to."""

    def _find_fqdn(self) -> str:
        name: Optional[str] = getattr(self.smtp_server, "_fqdn", None)
        if name is None:
            name = socket.getfqdn()  # it may ask the DNS: once for a server is enough
            if isinstance(self.smtp_server, SMTPServer):
                self.smtp_server._fqdn = name
        return name

    def _print_debug(self, *words: object) -> None:
        print(*words, file=DEBUGSTREAM)


def _alias(old: str, new: str) -> property:
    """Give the name that an attribute once had; who uses it is told."""

    def tell() -> None:
        warn(f"__{old} of an SMTPChannel is {new!r} by now", DeprecationWarning, stacklevel=3)

    def get(channel: SMTPChannel) -> Any:
        tell()
        return getattr(channel, new)

    def put(channel: SMTPChannel, value: Any) -> None:
        tell()
        setattr(channel, new, value)

    return property(get, put)


_OLD_NAMES = {
    "server": "smtp_server",
    "line": "received_lines",
    "state": "smtp_state",
    "greeting": "seen_greeting",
    "mailfrom": "mailfrom",
    "rcpttos": "rcpttos",
    "data": "received_data",
    "fqdn": "fqdn",
    "peer": "peer",
    "conn": "conn",
    "addr": "addr",
}
for _old, _new in _OLD_NAMES.items():
    setattr(SMTPChannel, f"_SMTPChannel__{_old}", _alias(_old, _new))


class SMTPServer(asyncore.dispatcher):
    """Listens from its construction on; answers inside ``asyncore.loop()``."""

    channel_class: Type[SMTPChannel] = SMTPChannel
    concurrent = False
    """Whether each client has the channel and ``process_message`` called in a thread of its own."""
    limits: Limits = DEFAULT_LIMITS
    """What one client may take, and how many there may be; the size of a message is not here."""
    _fqdn: Optional[str] = None

    def __init__(
        self,
        localaddr: Any,
        remoteaddr: Any,
        data_size_limit: Optional[int] = DATA_SIZE_DEFAULT,
        map: Optional[Map] = None,
        enable_SMTPUTF8: bool = False,
        decode_data: bool = False,
    ) -> None:
        self._localaddr = localaddr
        self._remoteaddr = remoteaddr
        self.data_size_limit = data_size_limit
        self.enable_SMTPUTF8 = enable_SMTPUTF8
        self._decode_data = decode_data
        if enable_SMTPUTF8 and decode_data:
            raise ValueError(_BOTH_FLAGS)
        self._backstage = Backstage(type(self).limits)
        super().__init__(map=map)
        try:
            host, port = localaddr[:2]
            family, kind = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][:2]
            self.create_socket(family, kind)
            self.set_reuse_addr()
            self.bind(localaddr)
            self.listen(_BACKLOG)
        except BaseException:
            self.close()
            raise
        print(
            f"{type(self).__name__} started at {time.ctime()}\n\tLocal addr: {localaddr}\n"
            f"\tRemote addr:{remoteaddr}",
            file=DEBUGSTREAM,
        )

    def accept(self) -> Optional[Tuple[Any, Any]]:
        """Give a connection and its address; ``None`` if none can be had."""
        try:
            return super().accept()
        except OSError as error:  # such as for want of descriptors: that ends no server
            self.log_info(f"accept: {error}", "error")
            time.sleep(_PAUSE)
            return None

    def handle_accepted(self, conn: Any, addr: Any) -> None:
        """Make a channel for a connection."""
        print(f"Incoming connection from {addr!r}", file=DEBUGSTREAM)
        self.channel_class(
            self,
            conn,
            addr,
            self.data_size_limit,
            self._map,
            self.enable_SMTPUTF8,
            self._decode_data,
        )

    def handle_error(self) -> None:
        """Override this to learn of the exception at hand, ``sys.exc_info()``."""
        self.log_exception("still listening on channel")

    def close(self) -> None:
        """Listen no longer; channels that are open stay open."""
        super().close()
        self._backstage.retire()

    def process_message(
        self, peer: Any, mailfrom: str, rcpttos: List[str], data: Any, **kwargs: Any
    ) -> Optional[str]:
        r"""Override this to take a message. To return nothing accepts it; a str is the reply.

        ``data`` has LF line ends, and none at its end: ``bytes``, or ``str`` with ``decode_data``.
        Without that, ``mail_options`` and ``rcpt_options`` are lists of parameters, in upper case.
        The null sender is ``"<>"``.
        """
        raise NotImplementedError("override process_message")


class DebuggingServer(SMTPServer):
    """Prints what it gets."""

    def _print_message_content(self, peer: Any, data: Data) -> None:
        in_headers = True
        for line in data.splitlines():
            if in_headers and not line:
                header = f"X-Peer: {peer[0]}"
                print(header if isinstance(data, str) else repr(header.encode()))
                in_headers = False
            print(line if isinstance(line, str) else repr(line))

    def process_message(
        self, peer: Any, mailfrom: str, rcpttos: List[str], data: Any, **kwargs: Any
    ) -> Optional[str]:
        """Print a message."""
        print("---------- MESSAGE FOLLOWS ----------")
        if kwargs.get("mail_options"):
            print(f"mail options: {kwargs['mail_options']}")
        if kwargs.get("rcpt_options"):
            print(f"rcpt options: {kwargs['rcpt_options']}\n")
        self._print_message_content(peer, data)
        print("------------ END MESSAGE ------------", flush=True)
        return None


Refused = Dict[str, Tuple[int, Any]]


class PureProxy(SMTPServer):
    """Passes mail on to ``remoteaddr``, and says 250 only for what that took for everybody."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("enable_SMTPUTF8"):
            raise ValueError("PureProxy does not support SMTPUTF8.")
        super().__init__(*args, **kwargs)

    def process_message(
        self, peer: Any, mailfrom: str, rcpttos: List[str], data: Any, **kwargs: Any
    ) -> Optional[str]:
        """Pass a message on, with a field that tells from whom it came."""
        newline, header = (NEWLINE, f"X-Peer: {peer[0]}")
        lines = data.split(newline if isinstance(data, str) else newline.encode())
        end = next((number for number, line in enumerate(lines) if not line), len(lines))
        lines.insert(end, header if isinstance(data, str) else header.encode())
        refused = self._deliver(
            mailfrom,
            rcpttos,
            newline.join(lines) if isinstance(data, str) else newline.encode().join(lines),
        )
        print("we got some refusals:", refused, file=DEBUGSTREAM)
        return _refusal(refused) if refused else None

    def _deliver(self, mailfrom: str, rcpttos: List[str], data: Data) -> Refused:
        """Send a message; give who is refused, with code and text."""
        import smtplib  # only proxies need it

        octets = data.encode() if isinstance(data, str) else data
        lines = re.sub(rb"\r?\n", b"\r\n", octets)
        try:
            host, port = self._remoteaddr[:2]
            client = smtplib.SMTP(host, port, timeout=_PATIENCE)
            try:
                return client.sendmail(mailfrom, rcpttos, lines)
            finally:
                with contextlib.suppress(OSError, smtplib.SMTPException):
                    client.quit()  # what becomes of it, the message is sent or is not
        except smtplib.SMTPRecipientsRefused as error:
            print("got SMTPRecipientsRefused", file=DEBUGSTREAM)
            return dict(error.recipients)
        except (OSError, smtplib.SMTPException) as error:
            print("got", type(error), file=DEBUGSTREAM)
            code = getattr(error, "smtp_code", 451)
            text = getattr(error, "smtp_error", "the next host cannot be reached")
            return dict.fromkeys(rcpttos, (code, text))


def _refusal(refused: Refused) -> str:
    """Make one reply of several: it is tried again while one of them says to."""
    codes = {code if 400 <= code <= 599 else 451 for code, _ in refused.values()}
    texts = dict.fromkeys(
        f"{recipient}: {text.decode('ascii', 'replace') if isinstance(text, bytes) else text}"
        for recipient, (_, text) in refused.items()
    )
    return f"{min(codes)} Error: {' '.join(' '.join(texts).split())}"


if __name__ == "__main__":
    # Which imports this module once more: a class that is named by -c builds on that one.
    from . import smtpdcli

    smtpdcli.main()
