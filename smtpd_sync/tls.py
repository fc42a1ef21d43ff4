"""TLS (RFC 3207, RFC 8314) as an ``SSLObject`` over memory, on a socket that stays plain.

There is one socket to read, wake and close, encrypted or not; the octets that came in the clear are
plainly not among those that came encrypted.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import Callable, Optional, Tuple, Union

from .envelope import TLS

__all__ = ["TLSSetting", "TLSStream", "context_of", "server_context"]

TLSSetting = Union[
    ssl.SSLContext,
    Tuple[Union[str, "os.PathLike[str]"], Optional[str]],
    Callable[[], ssl.SSLContext],
]
"""A context, a pair (certfile, keyfile), or a callable that gives a context."""

RECORD = 65_536


def server_context(certfile: str, keyfile: Optional[str] = None) -> ssl.SSLContext:
    """Make a context for a server: TLS 1.2 at least (RFC 8996), no renegotiation.

    Both files are PEM; ``keyfile`` is ``None`` if ``certfile`` holds the key too. Raises
    ``OSError`` or ``ssl.SSLError`` for a file that cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(certfile, keyfile)
    return context


def context_of(setting: TLSSetting) -> ssl.SSLContext:
    """Give the context that an option ``tls=`` stands for; ``ValueError`` if it stands for none."""
    if isinstance(setting, tuple) and len(setting) == 2:
        certfile, keyfile = setting
        try:
            return server_context(os.fspath(certfile), keyfile)
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(f"tls: cannot load {certfile!r}, {keyfile!r}: {error}") from error
    context = setting() if callable(setting) else setting
    if not isinstance(context, ssl.SSLContext):
        raise ValueError(
            "tls: an SSLContext, a (certfile, keyfile) pair or a callable that gives a context, "
            f"not {context!r}"
        )
    return context


class TLSStream:
    """What the handler reads and writes instead of the socket, once TLS is on."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._socket = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def handshake(self) -> TLS:
        """Do the handshake; ``OSError`` (``ssl.SSLError`` is one) if it fails."""
        while True:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                if not self._fill():
                    raise
            except ssl.SSLError:
                self._flush()  # the alert that says why
                raise
            else:
                self._flush()
                break
        cipher = self._object.cipher() or ("", "", 0)
        return TLS(self._object.version() or "", cipher[0], cipher[2])

    def recv(self, size: int) -> bytes:
        """Give what has come, ``b""`` at the end of input; blocks as ``socket.recv``."""
        while True:
            try:
                return self._object.read(size)
            except ssl.SSLWantReadError:
                self._flush()
                if not self._fill():
                    return b""
            except ssl.SSLZeroReturnError:  # close_notify; nothing may follow in the clear
                return b""

    def sendall(self, data: bytes) -> None:
        """Send all of ``data``."""
        self._object.write(data)
        self._flush()

    def close_notify(self) -> None:
        """Tell the client that nothing more comes (RFC 8446 6.1), and do not wait for its word."""
        try:
            self._object.unwrap()
        except ssl.SSLError:
            pass  # wants to read the answer, or the client spoke no TLS to the end
        self._flush()

    def _fill(self) -> bool:
        data = self._socket.recv(RECORD)
        if data:
            self._incoming.write(data)
        return bool(data)

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self._socket.sendall(data)
