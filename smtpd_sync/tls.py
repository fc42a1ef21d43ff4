"""TLS (RFC 3207, RFC 8314) as an ``SSLObject`` over memory, on a socket that stays plain.

There is one socket to read, wake and close, encrypted or not; the octets that came in the clear are
plainly not among those that came encrypted.
"""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
from typing import Any, Callable, Dict, Mapping, Optional, Tuple, Union

from .envelope import TLS
from .sending import SendAtOnce, sendall

__all__ = ["TLSSetting", "TLSStream", "context_of", "server_context"]

Path = Union[str, "os.PathLike[str]"]
TLSSetting = Union[ssl.SSLContext, Tuple[Path, Optional[Path]], Callable[[], ssl.SSLContext]]
"""A context, a pair (certfile, keyfile), or a callable that gives a context."""

RECORD = 65_536


class ServerContext(ssl.SSLContext):
    """A context of our own making, which knows its certificate."""

    end_point: Optional[bytes] = None
    """The ``tls-server-end-point`` channel binding (RFC 5929 4)."""


def server_context(certfile: Path, keyfile: Optional[Path] = None) -> ServerContext:
    """Make a context for a server: TLS 1.2 at least (RFC 8996), no renegotiation.

    Both files are PEM; ``keyfile`` is ``None`` if ``certfile`` holds the key too. Raises
    ``OSError`` or ``ssl.SSLError`` for a file that cannot be read.
    """
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(certfile, keyfile)
    with open(certfile, encoding="ascii", errors="replace") as file:
        context.end_point = end_point(ssl.PEM_cert_to_DER_cert(_first_certificate(file.read())))
    return context


def context_of(
    setting: TLSSetting, names: Optional[Mapping[str, TLSSetting]] = None
) -> ssl.SSLContext:
    """Give the context that an option ``tls=`` stands for; ``ValueError`` if it stands for none.

    ``names``: settings for the server names that a client may ask for (SNI, RFC 6066 3).
    """
    if isinstance(setting, tuple):
        certfile, keyfile = setting
        try:
            context: Any = server_context(certfile, keyfile)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ValueError(f"tls: cannot load {certfile!r}, {keyfile!r}: {error}") from error
    else:
        context = setting() if callable(setting) else setting
    if not isinstance(context, ssl.SSLContext):
        raise ValueError(
            "tls: an SSLContext, a (certfile, keyfile) pair or a callable that gives a context, "
            f"not {context!r}"
        )
    if names or isinstance(context, ServerContext):
        others = {name.lower(): context_of(each) for name, each in (names or {}).items()}
        context.sni_callback = _choose(others)
    return context


def _choose(contexts: Dict[str, ssl.SSLContext]) -> Callable[..., None]:
    def choose(tls: Any, name: Optional[str], context: ssl.SSLContext) -> None:
        tls.asked_name = name
        other = contexts.get((name or "").lower())
        if other is not None:
            tls.context = other

    return choose


# -- channel binding ---------------------------------------------------------------------------

# The hash of a certificate's signature algorithm, by the DER of its OID; MD5 and SHA-1 are
# replaced by SHA-256 (RFC 5929 4.1). Algorithms without one hash, as Ed25519, have no binding.
_HASHES = {
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04": "sha256",  # md5WithRSAEncryption
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05": "sha256",  # sha1WithRSAEncryption
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b": "sha256",  # sha256WithRSAEncryption
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c": "sha384",
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d": "sha512",
    b"\x2a\x86\x48\xce\x3d\x04\x01": "sha256",  # ecdsa-with-SHA1
    b"\x2a\x86\x48\xce\x3d\x04\x03\x02": "sha256",  # ecdsa-with-SHA256
    b"\x2a\x86\x48\xce\x3d\x04\x03\x03": "sha384",
    b"\x2a\x86\x48\xce\x3d\x04\x03\x04": "sha512",
}


def _first_certificate(pem: str) -> str:
    start = pem.index("-----BEGIN CERTIFICATE-----")
    end = "-----END CERTIFICATE-----"
    return pem[start : pem.index(end, start) + len(end)]


def _der(octets: bytes, at: int) -> Tuple[int, int]:
    """Give where the content of the DER element at ``at`` begins and ends."""
    length, start = octets[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length, start = int.from_bytes(octets[start : start + count], "big"), start + count
    return start, start + length


def end_point(certificate: bytes) -> Optional[bytes]:
    """Give the ``tls-server-end-point`` binding of a DER certificate, or ``None``."""
    inside, _ = _der(certificate, 0)  # Certificate
    _, signed_end = _der(certificate, inside)  # tbsCertificate
    algorithm, _ = _der(certificate, signed_end)  # signatureAlgorithm
    oid, oid_end = _der(certificate, algorithm)
    name = _HASHES.get(certificate[oid:oid_end])
    return hashlib.new(name, certificate).digest() if name else None


# -- the stream --------------------------------------------------------------------------------


class TLSStream:
    """What the handler reads and writes instead of the socket, once TLS is on.

    Each call of the TLS object lets the GIL go, so none is made that can have nothing to do.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, at_once: Optional[SendAtOnce] = None
    ) -> None:
        self._socket = sock
        self._at_once = at_once
        self._starved = True
        """Whether all that has come was given: only the client can help."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object: Any = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def handshake(self) -> TLS:
        """Do the handshake; ``OSError`` (``ssl.SSLError`` is one) if it fails."""
        while True:  # the client begins
            if not self._fill():
                raise ConnectionResetError("the client has gone")
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
            except ssl.SSLError:
                self._flush()  # the alert that says why
                raise
            else:
                self._flush()
                break
        self._starved = not self._incoming.pending
        tls = self._object
        cipher = tls.cipher() or ("", "", 0)
        return TLS(
            tls.version() or "",
            cipher[0],
            cipher[2],
            tls.getpeercert() or None,
            getattr(tls, "asked_name", None),
            getattr(tls.context, "end_point", None),
        )

    def recv(self, size: int) -> bytes:
        """Give what has come, ``b""`` at the end of input; blocks as ``socket.recv``."""
        while True:
            if self._starved and not self._fill():
                return b""
            try:
                data: bytes = self._object.read(size)
            except ssl.SSLWantReadError:  # a part of a record, or one without data
                self._starved = True
                self._flush()
            except ssl.SSLZeroReturnError:  # close_notify; nothing may follow in the clear
                return b""
            else:
                # What did not fill the room was the last of its record.
                self._starved = len(data) < size and not self._incoming.pending
                return data

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
            sendall(self._socket, data, self._at_once)
