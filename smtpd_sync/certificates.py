"""A throw-away certificate for localhost, for tests: made once in a process, gone at its end."""

from __future__ import annotations

import atexit
import os
import shutil
import ssl
import tempfile
import threading
from datetime import datetime, timedelta, timezone
from typing import Callable, NamedTuple, Optional, Tuple, Union

__all__ = ["Certificate", "client_context", "throwaway"]

DAYS = 30
REQUEST = """\
[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = localhost
[extensions]
subjectAltName = DNS:localhost, IP:127.0.0.1, IP:0:0:0:0:0:0:0:1
basicConstraints = critical, CA:TRUE
keyUsage = critical, digitalSignature, keyCertSign
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
"""
"""What ``openssl req`` is asked for: what Python 3.13 wants of one that vouches for itself."""

# The last resort: `by_cryptography` made it, of the year 2020 and valid for a hundred years.
# Everybody has its key, so it must never stand for more than a test on one machine.
SHIPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "localhost.pem")


class Certificate(NamedTuple):
    """Two PEM files, as the option ``tls`` takes them."""

    certfile: str
    keyfile: str


_lock = threading.Lock()
_made: Optional[Certificate] = None


def throwaway() -> Certificate:
    """Give the certificate of this process, for localhost, 127.0.0.1 and ::1.

    It is made by the command ``openssl`` or the package ``cryptography``. Where there is neither,
    one that comes with this package serves.
    """
    global _made
    with _lock:
        if _made is None:
            _made = _make()
        return _made


def client_context(certfile: Union[str, os.PathLike[str]]) -> ssl.SSLContext:
    """Make a context for a client that trusts this certificate and no other."""
    return ssl.create_default_context(cafile=certfile)


def _make() -> Certificate:
    directory = tempfile.mkdtemp(prefix="smtpd_sync-")  # nobody else may look into it
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in a fork, which ends earlier
            shutil.rmtree(directory, ignore_errors=True)

    atexit.register(remove)
    made = Certificate(*(os.path.join(directory, name) for name in ("cert.pem", "key.pem")))
    for way in WAYS:
        if way(made):
            os.chmod(made.keyfile, 0o600)
            return made
    return Certificate(SHIPPED, SHIPPED)


def by_openssl(made: Certificate) -> bool:
    """Make it with the command; ``False`` if that cannot be."""
    import subprocess

    request = os.path.join(os.path.dirname(made.certfile), "request.cnf")
    with open(request, "w", encoding="ascii") as file:
        file.write(REQUEST)
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    files = ("-config", request, "-keyout", made.keyfile, "-out", made.certfile)
    command = ("openssl", "req", "-x509", *curve, "-days", str(DAYS), *files)
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def by_cryptography(made: Certificate) -> bool:
    """Make it with the package; ``False`` if that is not installed."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError:
        return False
    from ipaddress import ip_address

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    addresses = (x509.IPAddress(ip_address(each)) for each in ("127.0.0.1", "::1"))
    usage = dict.fromkeys(USAGE, False)
    now = datetime.now(timezone.utc)
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=DAYS))
    )
    for extension, critical in (
        (x509.SubjectAlternativeName([x509.DNSName("localhost"), *addresses]), False),
        (x509.BasicConstraints(ca=True, path_length=None), True),
        (x509.KeyUsage(**{**usage, "digital_signature": True, "key_cert_sign": True}), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical)
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    _write(made.keyfile, key.private_bytes(pem, *form))
    _write(made.certfile, builder.sign(key, hashes.SHA256()).public_bytes(pem))
    return True


USAGE = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)
WAYS: Tuple[Callable[[Certificate], bool], ...] = (by_openssl, by_cryptography)


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
