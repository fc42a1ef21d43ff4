"""SASL mechanisms (RFC 4422) as generators, each the exchange it is.

A mechanism gets the initial response, or ``None`` where there was none, and yields in turn octets,
a challenge whose answer it is sent; a `SecretRequest`, which comes back filled in; and at last the
`Credentials` that it stands by. What breaks its rules is a `Reject`. Knows nothing of base64, of
sessions or of who may in.

Most servers have no AUTH: what costs time to import or to compile is so at the first use.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, Generator, NamedTuple, Optional, Union

from . import reply as replies
from .patterns import Pattern
from .reply import Reject
from .saslprep import prepared

__all__ = ["MECHANISMS", "Credentials", "Exchange", "Mechanism", "ScramKeys", "SecretRequest"]

ITERATIONS = 4_096  # RFC 7677 4: at least


class Credentials:
    """What a client shows to be who it says; given to the hook ``authenticate``.

    It holds secrets, and its ``repr`` shows none.
    """

    __slots__ = ("authzid", "certificate", "mechanism", "password", "token", "username", "verified")

    def __init__(
        self,
        mechanism: str,
        username: str,
        *,
        authzid: str = "",
        password: Optional[str] = None,
        token: Optional[str] = None,
        certificate: Optional[Dict[str, Any]] = None,
        verified: bool = False,
    ) -> None:
        self.mechanism = mechanism
        """Name of the mechanism, such as ``"PLAIN"``."""
        self.username = username
        """Who it is: the authentication identity."""
        self.authzid = authzid
        """Who it wants to act as, ``""`` for itself (RFC 4422 2)."""
        self.password = password
        """What it gave as password, with PLAIN and LOGIN."""
        self.token = token
        """What it gave as bearer token, with XOAUTH2 and OAUTHBEARER."""
        self.certificate = certificate
        """Its TLS certificate as ``ssl.SSLSocket.getpeercert`` has it, with EXTERNAL."""
        self.verified = verified
        """Whether the mechanism has proved it by the hook ``secret``."""

    def check(self, plaintext: Optional[str]) -> bool:
        """Tell whether the password is ``plaintext``, in constant time.

        ``None``, for a user that is not known, costs the same and is ``False``.
        """
        import hashlib
        import hmac

        try:
            given = prepared(self.password or "").encode()
            wanted = prepared(plaintext or "").encode()
        except Reject:
            return False
        # Digests are of one length: compare_digest() would tell lengths apart.
        same = hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(wanted).digest())
        return same and given != b""  # no password is a secret that is empty (RFC 4616 2)

    def __repr__(self) -> str:
        return f"Credentials({self.mechanism!r}, {self.username!r})"


class ScramKeys(NamedTuple):
    """What a server stores of a SCRAM-SHA-256 password (RFC 5802 3): no password."""

    salt: bytes
    iterations: int
    stored_key: bytes
    server_key: bytes

    @classmethod
    def of(cls, password: str, salt: bytes, iterations: int = ITERATIONS) -> ScramKeys:
        """Derive the keys of a password."""
        import hashlib
        import hmac

        salted = hashlib.pbkdf2_hmac("sha256", prepared(password).encode(), salt, iterations)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        return cls(
            salt,
            iterations,
            hashlib.sha256(client_key).digest(),
            hmac.digest(salted, b"Server Key", "sha256"),
        )

    def __repr__(self) -> str:
        return f"ScramKeys(iterations={self.iterations})"


Secret = Union[None, str, ScramKeys]


class SecretRequest:
    """Asks for the secret of a user; whoever drives the exchange sets ``secret`` or ``fault``."""

    __slots__ = ("fault", "mechanism", "secret", "username")

    def __init__(self, mechanism: str, username: str) -> None:
        self.mechanism = mechanism
        self.username = username
        self.secret: Secret = None
        self.fault: Optional[replies.Reply] = None
        """Why it could not be asked for: ends the exchange."""


Exchange = Generator[Union[bytes, SecretRequest, Credentials], Any, None]


class Context(NamedTuple):
    """What an exchange has to know of the session it is in."""

    certificate: Optional[Dict[str, Any]]
    """The client's certificate."""
    end_point: Optional[bytes]
    """The ``tls-server-end-point`` channel binding (RFC 5929 4), where there is one."""
    plus_offered: bool
    """Whether the client could have chosen a mechanism with channel binding."""
    salt_key: bytes
    """Makes the salt of each user, known or not: stable, and no client's guess."""
    hostname: str
    nonce: str
    """Printable, fresh for each exchange, without a comma."""


def new_nonce() -> str:
    """Make a nonce: 144 bits of chance, printable, without a comma."""
    import secrets  # not cheap, and needed by AUTH alone

    return secrets.token_urlsafe(18)


class Mechanism(NamedTuple):
    """A row of the table of mechanisms."""

    run: Callable[[Optional[bytes], Context], Exchange]
    needs: str
    """What must be there for it to be offered: ``"password"``, ``"token"`` or ``"certificate"``
    (a hook ``authenticate``, or users), ``"secret"`` (a hook ``secret``, or users)."""
    by_default: bool
    """Whether it is offered without being asked for by name."""
    failure: Optional[bytes] = None
    """A challenge that says why, before the refusal (RFC 7628 3.2.2)."""


_CONTROL = Pattern("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def text_of(octets: bytes) -> str:
    """Decode UTF-8 without control characters; anything else is a broken response."""
    try:
        text = octets.decode()
    except UnicodeDecodeError:
        raise Reject(*replies.BAD_RESPONSE) from None
    if _CONTROL.search(text):
        raise Reject(*replies.BAD_RESPONSE)
    return text


def plain(initial: Optional[bytes], context: Context) -> Exchange:
    """PLAIN (RFC 4616): authzid NUL authcid NUL password."""
    response = (yield b"") if initial is None else initial
    parts = response.split(b"\0")
    if len(parts) != 3 or not parts[1] or not parts[2]:
        raise Reject(*replies.BAD_RESPONSE)
    authzid, username, password = map(text_of, parts)
    yield Credentials("PLAIN", prepared(username), authzid=prepared(authzid), password=password)


def login(initial: Optional[bytes], context: Context) -> Exchange:
    """LOGIN (draft-murchison-sasl-login): the name, then the password."""
    username = (yield b"Username:") if initial is None else initial
    password = yield b"Password:"
    if not username or not password:
        raise Reject(*replies.BAD_RESPONSE)
    yield Credentials("LOGIN", prepared(text_of(username)), password=text_of(password))


def cram_md5(initial: Optional[bytes], context: Context) -> Exchange:
    """CRAM-MD5 (RFC 2195): a digest of our challenge. For old clients only."""
    import hmac

    if initial is not None:
        raise Reject(*replies.SERVER_FIRST)
    challenge = f"<{context.nonce}@{context.hostname}>".encode()
    response = yield challenge
    name, _, digest = response.rpartition(b" ")
    request = SecretRequest("CRAM-MD5", text_of(name))
    yield request
    # The empty secret is none: everybody has it.
    secret = (isinstance(request.secret, str) and request.secret) or None
    wanted = hmac.new((secret or context.nonce).encode(), challenge, "md5").hexdigest()
    if not hmac.compare_digest(digest, wanted.encode()) or secret is None:
        raise Reject(*replies.AUTH_FAILED)
    yield Credentials("CRAM-MD5", request.username, verified=True)


_CLIENT_FIRST = (
    r"(?P<header>(?:n|y|p=(?P<binding>[A-Za-z0-9.-]+)),(?:a=(?P<authzid>[^,]+))?,)"
    r"(?P<bare>n=(?P<name>[^,]+),r=(?P<nonce>[!-+\--~]+)(?:,[A-Za-z]=[^,]+)*)"
)
_CLIENT_FINAL = (
    r"(?P<without_proof>c=(?P<binding>[A-Za-z0-9+/=]+),r=(?P<nonce>[!-+\--~]+)"
    r"(?:,[A-Za-z]=[^,]+)*),p=(?P<proof>[A-Za-z0-9+/=]+)"
)
END_POINT = "tls-server-end-point"


def _saslname(name: str) -> str:
    if re.search("=(?!2C|3D)", name):
        raise Reject(*replies.BAD_RESPONSE)
    return name.replace("=2C", ",").replace("=3D", "=")


def scram(plus: bool) -> Callable[[Optional[bytes], Context], Exchange]:
    """Make SCRAM-SHA-256 (RFC 5802, RFC 7677), with channel binding if ``plus``."""
    mechanism = "SCRAM-SHA-256" + "-PLUS" * plus

    def run(initial: Optional[bytes], context: Context) -> Exchange:
        import hashlib
        import hmac
        from base64 import b64decode, b64encode

        first = re.fullmatch(_CLIENT_FIRST, text_of((yield b"") if initial is None else initial))
        if first is None:
            raise Reject(*replies.BAD_RESPONSE)
        flag, binding = first["header"][0], first["binding"]
        if plus != (flag == "p") or (plus and binding != END_POINT):
            raise Reject(*replies.BAD_RESPONSE)
        if flag == "y" and context.plus_offered:
            # It says that we offered no binding, and we did: somebody between us cut it out.
            raise Reject(*replies.AUTH_FAILED)
        request = SecretRequest(mechanism, prepared(_saslname(first["name"])))
        if not request.username:
            raise Reject(*replies.BAD_RESPONSE)
        yield request
        keys = request.secret or None  # the empty secret is none: everybody has it
        known = keys is not None
        if not isinstance(keys, ScramKeys):
            salt = hmac.digest(context.salt_key, request.username.encode(), "sha256")[:16]
            keys = ScramKeys.of(context.nonce if keys is None else keys, salt)
        nonce = first["nonce"] + context.nonce
        server_first = f"r={nonce},s={b64encode(keys.salt).decode()},i={keys.iterations}"
        final = re.fullmatch(_CLIENT_FINAL, text_of((yield server_first.encode())))
        if final is None:
            raise Reject(*replies.BAD_RESPONSE)
        bound = first["header"].encode() + ((context.end_point or b"") if plus else b"")
        proved = f"{first['bare']},{server_first},{final['without_proof']}".encode()
        signature = hmac.digest(keys.stored_key, proved, "sha256")
        try:
            proof = b64decode(final["proof"], validate=True)
        except ValueError:
            raise Reject(*replies.BAD_RESPONSE) from None
        client_key = bytes(a ^ b for a, b in zip(proof, signature))
        good = hmac.compare_digest(hashlib.sha256(client_key).digest(), keys.stored_key)
        good &= len(proof) == len(signature) and final["nonce"] == nonce
        good &= final["binding"] == b64encode(bound).decode() and known
        if not good:
            raise Reject(*replies.AUTH_FAILED)
        server_signature = hmac.digest(keys.server_key, proved, "sha256")
        yield b"v=" + b64encode(server_signature)
        authzid = _saslname(first["authzid"] or "")
        yield Credentials(mechanism, request.username, authzid=authzid, verified=True)

    return run


_XOAUTH2 = "user=([^\x01]+)\x01auth=Bearer ([!-~]+)\x01\x01"
_OAUTHBEARER = (
    "[ny],(?:a=([^,]+))?,\x01(?:[A-Za-z]+=[^\x01]*\x01)*?auth=Bearer ([!-~]+)\x01"
    "(?:[A-Za-z]+=[^\x01]*\x01)*\x01"
)


def bearer(mechanism: str, syntax: str) -> Callable[..., Exchange]:
    """Make a mechanism that shows a bearer token: XOAUTH2, OAUTHBEARER (RFC 7628)."""

    def run(initial: Optional[bytes], context: Context) -> Exchange:
        response = (yield b"") if initial is None else initial
        shown = response.decode("utf-8", "surrogateescape")
        match = re.fullmatch(syntax, shown, re.IGNORECASE | re.ASCII)
        if match is None:
            raise Reject(*replies.BAD_RESPONSE)
        username = text_of((match[1] or "").encode("utf-8", "surrogateescape"))
        if mechanism == "OAUTHBEARER":
            username = _saslname(username)
        yield Credentials(mechanism, username, token=match[2])

    return run


def external(initial: Optional[bytes], context: Context) -> Exchange:
    """EXTERNAL (RFC 4422 A): the client's certificate is its proof."""
    authzid = text_of((yield b"") if initial is None else initial)
    yield Credentials("EXTERNAL", authzid, authzid=authzid, certificate=context.certificate)


TOKEN_REFUSED = b'{"status":"invalid_token"}'

MECHANISMS: Dict[str, Mechanism] = {
    # In the order of their worth: a client takes the first it knows.
    "EXTERNAL": Mechanism(external, "certificate", True),
    "SCRAM-SHA-256-PLUS": Mechanism(scram(True), "secret", True),
    "SCRAM-SHA-256": Mechanism(scram(False), "secret", True),
    "OAUTHBEARER": Mechanism(bearer("OAUTHBEARER", _OAUTHBEARER), "token", False, TOKEN_REFUSED),
    "XOAUTH2": Mechanism(bearer("XOAUTH2", _XOAUTH2), "token", False, TOKEN_REFUSED),
    "PLAIN": Mechanism(plain, "password", True),
    "LOGIN": Mechanism(login, "password", True),
    "CRAM-MD5": Mechanism(cram_md5, "secret", False),
}
