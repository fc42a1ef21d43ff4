"""AUTH over sockets (RFC 4954): who gets in, who does not, and what nobody ever hears of it."""

import base64
import hashlib
import hmac
import logging
import os
import smtplib
import ssl
import subprocess

import pytest
from support import trusting

from smtpd_sync import (
    Credentials,
    Disconnect,
    Limits,
    Reject,
    Reply,
    ScramKeys,
    SMTPHandler,
    SMTPServer,
    discard,
)
from smtpd_sync.tls import server_context

PASSWORD = "correct horse battery"
USERS = {"jo": PASSWORD, "other": "something else"}
LOOPBACK = ("127.0.0.1", 0)
OPENSSL = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1"


def b64(octets):
    return base64.b64encode(octets.encode() if isinstance(octets, str) else octets).decode()


def plain(username="jo", password=PASSWORD, authzid=""):
    return f"AUTH PLAIN {b64(f'{authzid}{chr(0)}{username}{chr(0)}{password}')}"


def login(client, username="jo", password=PASSWORD):
    assert client.ask("AUTH LOGIN") == "334 " + b64("Username:")
    assert client.ask(b64(username)) == "334 " + b64("Password:")
    return client.ask(b64(password))


def challenge(reply):
    assert reply.startswith("334 "), reply
    return base64.b64decode(reply[4:], validate=True)


def offered(reply):
    """Give the mechanisms of an EHLO reply."""
    lines = [line[4:].split() for line in reply.split("\n")]
    return next((words[1:] for words in lines if words[0] == "AUTH"), [])


@pytest.fixture
def secured(serve, connect, certificate):
    """Serve with STARTTLS; give a client behind EHLO inside it, and what was offered there."""

    def make(*arguments, **options):
        server = serve(*arguments, tls=certificate, **options)
        return again(connect, server, certificate)

    return make


def again(connect, server, certificate, context=None):
    client = connect(server)
    client.hello()
    client.starttls(certificate, context)
    client.offered = offered(client.ask("EHLO client.example"))
    client.server = server
    return client


@pytest.fixture
def clear(serve, connect):
    """Serve AUTH without TLS; give a client behind EHLO."""

    def make(*arguments, **options):
        client = connect(serve(*arguments, auth_require_tls=False, **options))
        client.offered = offered(client.hello())
        return client

    return make


def scram(client, password=PASSWORD, username="jo", binding=None, authzid="", **lies):
    """Be a SCRAM-SHA-256 client (RFC 5802 3, RFC 7677); give the last reply.

    ``binding``: the channel binding, which makes it the -PLUS. What the server says of itself is
    checked, too. ``lies`` replaces a part of what is said.
    """
    mechanism = "SCRAM-SHA-256" if binding is None else "SCRAM-SHA-256-PLUS"
    who = f"a={authzid}" if authzid else ""
    by_default = "n" if binding is None else "p=tls-server-end-point"
    header = f"{lies.get('flag', by_default)},{who},"
    bare = f"n={username},r={b64(os.urandom(18))}"
    reply = client.ask(f"AUTH {mechanism} {b64(header + bare)}")
    if not reply.startswith("334 "):
        return reply
    server_first = challenge(reply).decode()
    values = dict(item.split("=", 1) for item in server_first.split(","))
    assert values["r"].startswith(bare.partition(",r=")[2])
    assert values["r"] != bare.partition(",r=")[2]
    assert int(values["i"]) >= 4096  # RFC 7677 4
    salt = base64.b64decode(values["s"], validate=True)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, int(values["i"]))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    bound = b64(lies.get("bound_header", header).encode() + (binding or b""))
    final = f"c={bound},r={lies.get('nonce', values['r'])}"
    proved = f"{bare},{server_first},{final}".encode()
    signature = hmac.digest(stored_key, proved, "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature))
    reply = client.ask(b64(f"{final},p={b64(lies.get('proof', proof))}"))
    if not reply.startswith("334 "):
        return reply
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    wanted = f"v={b64(hmac.digest(server_key, proved, 'sha256'))}"
    assert challenge(reply).decode() == wanted, "the server does not know the password"
    return client.ask("")


# -- mechanisms ------------------------------------------------------------------------------


def test_what_is_offered_with_users(secured):
    client = secured(users=USERS)
    # In the order of their worth; the unsafe and the foreign ones only when asked for.
    assert client.offered == ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN"]


def test_what_is_offered_with_authenticate(secured):
    assert secured(authenticate=lambda credentials: True).offered == ["PLAIN", "LOGIN"]


def test_what_is_offered_with_secret(secured):
    client = secured(secret=lambda mechanism, username: None)
    assert client.offered == ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]
    assert client.ask(plain()).startswith("504 5.5.4 ")


def test_nothing_is_offered_without_hooks(serve, connect, certificate):
    client = connect(serve(tls=certificate))
    client.hello()
    client.starttls(certificate)
    assert "AUTH" not in client.ask("EHLO client.example")
    assert client.ask(plain()).startswith("502 5.5.1 ")


def test_mechanisms_are_chosen(secured):
    client = secured(users=USERS, mechanisms=("cram-md5", "plain"))
    assert client.offered == ["PLAIN", "CRAM-MD5"]
    assert client.ask("AUTH LOGIN").startswith("504 5.5.4 ")


@pytest.mark.parametrize("how", ["starttls", "implicit", "clear"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
@pytest.mark.parametrize("password", [PASSWORD, "wrong"], ids=["right", "wrong"])
def test_smtplib(serve, inbox, certificate, how, mechanism, password):
    options = {
        "starttls": {"tls": certificate},
        "implicit": {"tls": certificate, "implicit_tls": True},
        "clear": {"auth_require_tls": False},
    }[how]
    server = serve(users=USERS, mechanisms=("PLAIN", "LOGIN", "CRAM-MD5"), **options)
    context = trusting(certificate)
    if how == "implicit":
        client = smtplib.SMTP_SSL("localhost", server.port, timeout=20, context=context)
    else:
        client = smtplib.SMTP("localhost", server.port, timeout=20)
    with client:
        if how == "starttls":
            client.starttls(context=context)
        client.ehlo("client.example")
        client.user, client.password = "jo", password
        method = getattr(client, "auth_" + mechanism.lower().replace("-", "_"))
        if password != PASSWORD:
            with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
                client.auth(mechanism, method)
            assert caught.value.smtp_code == 535
            assert caught.value.smtp_error.startswith(b"5.7.8 ")
            return
        code, text = client.auth(mechanism, method)
        assert (code, text[:6]) == (235, b"2.7.0 ")
        client.sendmail("a@x.example", ["b@y.example"], b"hello\r\n")
    # RFC 3848: A is for AUTH, S is for TLS.
    assert (b" with ESMTPA id " if how == "clear" else b" with ESMTPSA id ") in inbox.data


@pytest.mark.parametrize("initial_response_ok", [True, False])
def test_smtplib_login(serve, certificate, initial_response_ok):
    server = serve(users=USERS, tls=certificate)
    with smtplib.SMTP("localhost", server.port, timeout=20) as client:
        client.starttls(context=trusting(certificate))
        code, _ = client.login("jo", PASSWORD, initial_response_ok=initial_response_ok)
        assert code == 235


def test_unicode_names_and_passwords(clear):
    client = clear(users={"j\u00f6": "\u00df p\u00e4ss"})
    assert client.ask(plain("j\u00f6", "\u00df p\u00e4ss")).startswith("235 ")


def test_saslprep_makes_two_spellings_one(clear):
    # RFC 4013: a soft hyphen is mapped to nothing, a ligature to its letters.
    client = clear(users={"jo": "of\ufb01ce"})
    assert client.ask(plain(password="o\u00adffice".replace("ffi", "f\ufb01"))).startswith("235 ")


# -- where it is not allowed -----------------------------------------------------------------


@pytest.mark.parametrize("command", [plain(), "AUTH LOGIN", "AUTH CRAM-MD5", "AUTH SCRAM-SHA-256"])
def test_without_tls_it_is_neither_offered_nor_taken(serve, connect, certificate, command):
    seen = []
    client = connect(
        serve(tls=certificate, authenticate=seen.append, secret=lambda *_: seen.append(_))
    )
    assert offered(client.hello()) == []
    assert client.ask(command).startswith("538 5.7.11 ")  # RFC 4954 6
    assert client.ask("NOOP") == "250 2.0.0 OK"
    assert seen == []


def test_before_ehlo_it_is_bad_sequence(serve, connect):
    client = connect(serve(users=USERS, auth_require_tls=False))
    client.reply()
    assert client.ask(plain()).startswith("503 ")
    assert client.ask("HELO client.example").startswith("250 ")
    assert client.ask(plain()).startswith("503 ")


def test_twice_is_bad_sequence(clear):
    client = clear(users=USERS)
    assert client.ask(plain()).startswith("235 ")
    assert client.ask(plain("other", USERS["other"])).startswith("503 5.5.1 ")  # RFC 4954 4


def test_inside_a_transaction_it_is_bad_sequence(clear):
    client = clear(users=USERS)
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask(plain()).startswith("503 5.5.1 ")


def test_require_auth(clear, inbox):
    client = clear(users=USERS, require_auth=True)
    assert client.ask("MAIL FROM:<a@x.example>").startswith("530 5.7.0 ")
    assert client.ask(plain()).startswith("235 2.7.0 ")
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")


def test_starttls_forgets_who_it_is(serve, connect, certificate):
    # RFC 3207 4.2, RFC 4954 4: what was said in the clear is void.
    server = serve(users=USERS, tls=certificate, auth_require_tls=False, require_auth=True)
    client = connect(server)
    client.hello()
    assert client.ask(plain()).startswith("235 ")
    client.starttls(certificate)
    client.ask("EHLO client.example")
    assert client.ask("MAIL FROM:<a@x.example>").startswith("530 ")
    assert client.ask(plain()).startswith("235 ")


def test_who_it_is_outlives_a_message_and_another_ehlo(clear):
    client = clear(users=USERS, require_auth=True)
    client.ask(plain())
    for _ in range(2):
        assert client.ask("EHLO client.example").startswith("250-")
        assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
        assert client.ask("RSET").startswith("250 ")


# -- the exchange ----------------------------------------------------------------------------


def test_cancelled(clear):
    client = clear(users=USERS)
    client.ask("AUTH LOGIN")
    assert client.ask("*").startswith("501 5.7.0 ")
    assert client.ask(plain()).startswith("235 ")


@pytest.mark.parametrize("response", ["!", "ab=c", "YWI", "YWI=YWI=", " YWI="])
def test_bad_base64(clear, response):
    client = clear(users=USERS)
    client.ask("AUTH LOGIN")
    assert client.ask(response).startswith("501 5.5.2 ")
    assert client.ask("NOOP") == "250 2.0.0 OK"


def test_too_long_a_response_keeps_in_step(clear):
    client = clear(users=USERS)
    client.ask("AUTH PLAIN")
    assert client.ask("A" * 12_400).startswith("500 5.5.6 ")
    assert client.ask("NOOP") == "250 2.0.0 OK"


def test_a_long_token_fits(clear):
    token = "x" * 8_000
    tokens = []

    def authenticate(credentials):
        tokens.append(credentials.token)
        return True

    client = clear(authenticate=authenticate, mechanisms=["XOAUTH2"])
    response = b64(f"user=jo\1auth=Bearer {token}\1\1")
    assert client.ask(f"AUTH XOAUTH2 {response}").startswith("235 ")
    assert tokens == [token]


@pytest.mark.parametrize(
    "response", [f"\0jo\0{PASSWORD}\0", "jo", f"jo\0{PASSWORD}", "\0\0x", "\0jo\0", "\0j\no\0x"]
)
def test_malformed_plain(clear, response):
    seen = []
    client = clear(authenticate=seen.append)
    assert client.ask(f"AUTH PLAIN {b64(response)}").startswith("501 ")
    assert seen == []


# -- the hook authenticate -------------------------------------------------------------------


def raiser(error):
    def hook(*_):
        raise error

    return hook


LOCKED = Reply(535, "Account locked", "5.7.8")
LATER = Reply(454, "Ask again", "4.7.0")


@pytest.mark.parametrize(
    ("result", "reply", "user"),
    [
        (True, "235 2.7.0 ", "jo"),
        ("Jo@y.example", "235 2.7.0 ", "Jo@y.example"),
        (False, "535 5.7.8 ", None),
        (None, "535 5.7.8 ", None),
        (LOCKED, "535 5.7.8 Account locked", None),
        (LATER, "454 4.7.0 Ask again", None),
        (Reject(550, "Not today", "5.7.1"), "550 5.7.1 Not today", None),
        (RuntimeError(f"no database for {PASSWORD}"), "454 4.7.0 ", None),
        (OSError("down"), "454 4.7.0 ", None),
        # What means nothing lets nobody in.
        (1, "454 4.7.0 ", None),
        (b"jo", "454 4.7.0 ", None),
        (["jo"], "454 4.7.0 ", None),
        (object(), "454 4.7.0 ", None),
        (Reply(250, "Welcome"), "454 4.7.0 ", None),
        (Reply(235, "Welcome"), "454 4.7.0 ", None),
    ],
    ids=repr,
)
def test_what_authenticate_gives(clear, connect, result, reply, user):
    users = []

    class Handler(SMTPHandler):
        def authenticate(self, credentials):
            if isinstance(result, Exception):
                raise result
            return result

        def verify(self, text):
            users.append(self.session.user)

        deliver = staticmethod(discard)

    client = clear(Handler)
    answer = client.ask(plain())
    assert answer.startswith(reply)
    assert PASSWORD not in answer
    client.ask("VRFY x")
    assert users == [user]
    # Nothing is lost by a refusal: it may try again.
    if user is None:
        assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")


def test_empty_identity_is_nobody(clear):
    # As from ``names.get(token, "")``: a str that names nobody lets nobody in.
    client = clear(authenticate=lambda credentials: "", require_auth=True)
    assert client.ask(plain())[0] in "45"
    assert client.ask("MAIL FROM:<a@x.example>").startswith("530 ")


def test_what_authenticate_gets(clear):
    seen = []

    def authenticate(credentials):
        seen.append(credentials)
        return "jo" if credentials.check(PASSWORD) else None

    client = clear(authenticate=authenticate)
    assert login(client, "jo", "wrong").startswith("535 ")
    assert client.ask(plain(authzid="boss")).startswith("235 ")
    first, second = seen
    assert (first.mechanism, first.username, first.authzid) == ("LOGIN", "jo", "")
    assert (first.password, first.token, first.certificate) == ("wrong", None, None)
    assert (second.mechanism, second.username, second.authzid) == ("PLAIN", "jo", "boss")
    assert second.password == PASSWORD
    assert not first.check(PASSWORD)
    assert not first.check(None)
    assert second.check(PASSWORD)


@pytest.mark.parametrize("password", [PASSWORD, "wrong"])
def test_nobody_acts_as_another_by_users(clear, password):
    # RFC 4616 2: to ask for another identity needs a policy; users= has none.
    client = clear(users=USERS)
    assert client.ask(plain(authzid="other", password=password)).startswith("535 5.7.8 ")
    assert client.ask(plain(authzid="jo")).startswith("235 2.7.0 ")


def test_empty_password_is_no_password(clear):
    client = clear(authenticate=lambda credentials: credentials.check(""))
    assert client.ask("AUTH LOGIN " + b64("jo")).startswith("334 ")
    assert client.ask("")[0] in "45"


def test_bearer_tokens(clear):
    def authenticate(credentials):
        assert credentials.password is None
        return credentials.username if credentials.token == "good.token" else False

    client = clear(authenticate=authenticate, mechanisms=["XOAUTH2", "OAUTHBEARER"])
    assert client.offered == ["OAUTHBEARER", "XOAUTH2"]
    for mechanism, response in (
        ("XOAUTH2", "user=jo\1auth=Bearer {}\1\1"),
        ("OAUTHBEARER", "n,a=jo,\1host=mx.example\1port=25\1auth=Bearer {}\1\1"),
    ):
        bad, good = (b64(response.format(token)) for token in ("bad.token", "good.token"))
        # RFC 7628 3.2.3: the failure is a challenge; the client answers it, and then is refused.
        why = challenge(client.ask(f"AUTH {mechanism} {bad}"))
        assert b'"status"' in why
        assert client.ask(b64("\1")).startswith("535 5.7.8 ")
    assert client.ask(f"AUTH {mechanism} {good}").startswith("235 2.7.0 ")


# -- the hook secret -------------------------------------------------------------------------


def cram_md5(client, username="jo", password=PASSWORD):
    asked = challenge(client.ask("AUTH CRAM-MD5"))
    assert asked.startswith(b"<")
    assert asked.endswith(b"@mx.example>")
    digest = hmac.new(password.encode(), asked, "md5").hexdigest()  # RFC 2195 2
    return client.ask(b64(f"{username} {digest}"))


@pytest.mark.parametrize(
    ("secret", "reply"),
    [
        (PASSWORD, "235 2.7.0 "),
        ("another", "535 5.7.8 "),
        (None, "535 5.7.8 "),
        (1, "454 4.7.0 "),
        (PASSWORD.encode(), "454 4.7.0 "),
        (True, "454 4.7.0 "),
        (Reject(454, "Ask again", "4.7.0"), "454 4.7.0 Ask again"),
        (RuntimeError(PASSWORD), "454 4.7.0 "),
    ],
    ids=repr,
)
@pytest.mark.parametrize("exchange", [cram_md5, scram], ids=["CRAM-MD5", "SCRAM"])
def test_what_secret_gives(clear, exchange, secret, reply):
    asked = []

    def hook(mechanism, username):
        asked.append((mechanism, username))
        if isinstance(secret, Exception):
            raise secret
        return secret

    client = clear(secret=hook, mechanisms=["CRAM-MD5", "SCRAM-SHA-256"])
    assert exchange(client).startswith(reply)
    name = "CRAM-MD5" if exchange is cram_md5 else "SCRAM-SHA-256"
    assert asked == [(name, "jo")]
    assert client.ask("NOOP") == "250 2.0.0 OK"


def test_scram_keys_stand_for_a_password(clear):
    keys = ScramKeys.of(PASSWORD, b"sixteen octets ..", 10_000)
    client = clear(secret=lambda mechanism, username: keys)
    assert scram(client, "wrong").startswith("535 ")
    assert scram(client).startswith("235 ")


def test_cram_md5_cannot_go_by_scram_keys(clear):
    keys = ScramKeys.of(PASSWORD, b"sixteen octets ..")
    client = clear(secret=lambda mechanism, username: keys, mechanisms=["CRAM-MD5"])
    assert cram_md5(client)[:3] in ("454", "535")


def test_secret_may_disconnect(clear):
    client = clear(secret=raiser(Disconnect(text="Go away")))
    assert scram(client) == "421 4.7.0 Go away"
    assert client.ended()


def test_what_a_secret_proved_needs_no_authenticate(clear):
    asked = []
    client = clear(authenticate=asked.append, secret=lambda mechanism, username: PASSWORD)
    assert scram(client).startswith("235 ")
    assert asked == []


# -- SCRAM -----------------------------------------------------------------------------------


def test_scram(secured):
    assert scram(secured(users=USERS)).startswith("235 2.7.0 ")


@pytest.mark.parametrize("name", ["j=2Co", "j=3Do"])
def test_scram_names_with_comma_and_equals(clear, name):
    username = name.replace("=2C", ",").replace("=3D", "=")
    client = clear(users={username: PASSWORD})
    assert scram(client, username=name).startswith("235 ")


@pytest.mark.parametrize("name", ["j=2co", "j=o", "j="])
def test_scram_bad_names(clear, name):
    assert scram(clear(users=USERS), username=name).startswith("501 ")


@pytest.mark.parametrize(
    "lies",
    [
        {"proof": bytes(32)},
        {"proof": bytes(31)},
        {"proof": bytes(64)},
        {"nonce": "another"},
        {"bound_header": "y,,"},
    ],
    ids=lambda lies: str(*lies),
)
def test_scram_lies(clear, lies):
    assert scram(clear(users=USERS), **lies).startswith("535 5.7.8 ")


def test_scram_does_not_act_as_another(clear):
    assert scram(clear(users=USERS), authzid="other").startswith("535 5.7.8 ")
    assert scram(clear(users=USERS), authzid="jo").startswith("235 ")


def test_scram_salt_of_an_unknown_user_is_stable(clear, connect):
    def salt(client, username):
        first = challenge(client.ask(f"AUTH SCRAM-SHA-256 {b64(f'n,,n={username},r=abc')}"))
        assert client.ask("*").startswith("501 ")
        return dict(item.split(b"=", 1) for item in first.split(b","))

    client = clear(users=USERS)
    unknown, same, other, known = (salt(client, name) for name in ("no", "no", "nor", "jo"))
    assert unknown[b"s"] == same[b"s"]
    assert len({unknown[b"s"], other[b"s"], known[b"s"]}) == 3
    assert len({len(each[b"s"]) for each in (unknown, other, known)}) == 1
    assert unknown[b"i"] == known[b"i"]
    assert unknown[b"r"] != same[b"r"]


@pytest.mark.parametrize(
    "client_first",
    [
        "n,,n=jo",
        "n,,r=abc",
        "n,,n=,r=abc",
        "n=jo,r=abc",
        "x,,n=jo,r=abc",
        "n,,m=ext,n=jo,r=abc",  # RFC 5802 5.1: an extension that must be understood
        "p=tls-unique,,n=jo,r=abc",
        "p=tls-server-end-point,,n=jo,r=abc",
        "",
    ],
)
def test_scram_bad_first_message(clear, client_first):
    client = clear(users=USERS)
    assert client.ask(f"AUTH SCRAM-SHA-256 {b64(client_first) or '='}").startswith("501 ")


# -- channel binding -------------------------------------------------------------------------


def end_point(client):
    """Give the channel binding of a connection: its certificate has an ECDSA/SHA-256 signature."""
    return hashlib.sha256(client.socket.getpeercert(binary_form=True)).digest()


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
def test_scram_plus(serve, connect, certificate, version, implicit):
    context = trusting(certificate)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    server = serve(users=USERS, tls=certificate, implicit_tls=implicit)
    client = connect(server)
    if implicit:
        client.secure(certificate, context)
        client.hello()
    else:
        client.hello()
        client.starttls(certificate, context)
        client.ask("EHLO client.example")
    assert scram(client, "wrong", binding=end_point(client)).startswith("535 ")
    assert scram(client, binding=end_point(client)).startswith("235 2.7.0 ")


def test_scram_plus_with_another_binding(secured):
    # Somebody with another certificate stands between: RFC 5802 6.
    client = secured(users=USERS)
    assert scram(client, binding=hashlib.sha256(b"another").digest()).startswith("535 5.7.8 ")
    assert scram(client, binding=b"").startswith("535 5.7.8 ")
    assert scram(client, binding=end_point(client)).startswith("235 ")


def test_scram_plus_without_binding(secured):
    client = secured(users=USERS)
    assert scram(client, binding=end_point(client), flag="n")[0] == "5"
    assert scram(client, binding=end_point(client), flag="p=tls-unique")[0] == "5"


def test_scram_downgrade_is_seen(secured):
    # "y": the client thinks that we offered no binding. We did (RFC 5802 6).
    assert scram(secured(users=USERS), flag="y").startswith("535 5.7.8 ")


def test_scram_y_where_no_binding_is_offered(clear):
    client = clear(users=USERS)
    assert client.offered == ["SCRAM-SHA-256", "PLAIN", "LOGIN"]
    assert scram(client, flag="y").startswith("235 ")


def test_no_binding_where_the_certificate_is_not_known(serve, connect, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    client = again(connect, serve(users=USERS, tls=context), certificate)
    assert client.offered == ["SCRAM-SHA-256", "PLAIN", "LOGIN"]
    assert scram(client, flag="y").startswith("235 ")


@pytest.mark.parametrize(
    ("key", "digest"),
    [
        ("rsa:2048 -sha384", "sha384"),
        ("rsa:2048 -sha512", "sha512"),
        ("rsa:2048 -sha1", "sha256"),  # RFC 5929 4.1: SHA-1 is replaced by SHA-256
        ("ec -pkeyopt ec_paramgen_curve:P-384 -sha384", "sha384"),
        ("ed25519", None),  # has no hash of its own
    ],
)
def test_binding_goes_by_the_hash_of_the_signature(serve, connect, tmp_path, key, digest):
    cert = [str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")]
    subprocess.run(
        [
            *f"openssl req -x509 -newkey {key} -nodes -days 2 -subj /CN=localhost".split(),
            *("-addext", "subjectAltName=DNS:localhost", "-out", cert[0], "-keyout", cert[1]),
        ],
        check=True,
        capture_output=True,
    )
    context = trusting(cert)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    client = again(connect, serve(users=USERS, tls=tuple(cert)), cert, context)
    if digest is None:
        assert "SCRAM-SHA-256-PLUS" not in client.offered
        return
    der = client.socket.getpeercert(binary_form=True)
    assert scram(client, binding=hashlib.new(digest, der).digest()).startswith("235 ")


# -- SCRAM against scramp --------------------------------------------------------------------


def with_scramp(client, mechanism, password, binding=None):
    scramp = pytest.importorskip("scramp", reason="scramp is not installed")
    other = scramp.ScramClient([mechanism], "jo", password, channel_binding=binding)
    assert other.mechanism_name == mechanism
    server_first = challenge(client.ask(f"AUTH {mechanism} {b64(other.get_client_first())}"))
    other.set_server_first(server_first.decode())
    reply = client.ask(b64(other.get_client_final()))
    if not reply.startswith("334 "):
        return reply
    other.set_server_final(challenge(reply).decode())
    return client.ask("")


@pytest.mark.parametrize("password", [PASSWORD, "pa\u00df w\u00f6rd"])
def test_scramp(secured, password):
    client = secured(users={"jo": password})
    assert with_scramp(client, "SCRAM-SHA-256", "wrong").startswith("535 ")
    # A client that could bind and thinks that we cannot would say "y"; this one says "n".
    assert with_scramp(client, "SCRAM-SHA-256", password).startswith("235 ")


def test_scramp_plus(secured):
    scramp = pytest.importorskip("scramp", reason="scramp is not installed")
    client = secured(users=USERS)
    # It hashes the certificate by itself; the newer ones do it in ScramClient.
    make = getattr(scramp, "make_channel_binding", lambda *pair: pair)
    binding = make("tls-server-end-point", client.socket)
    name = "SCRAM-SHA-256-PLUS"
    assert with_scramp(client, name, "wrong", binding).startswith("535 ")
    assert with_scramp(client, name, PASSWORD, binding).startswith("235 ")


# -- EXTERNAL --------------------------------------------------------------------------------


@pytest.fixture
def client_certificate(tmp_path):
    paths = [str(tmp_path / name) for name in ("client.pem", "client.key")]
    subprocess.run(
        [
            *[
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ],
            *("-nodes", "-days", "2", "-subj", "/CN=jo.client.example"),
            *("-out", paths[0], "-keyout", paths[1]),
        ],
        check=True,
        capture_output=True,
    )
    return paths


@pytest.fixture
def asking(certificate, client_certificate):
    """A context of a server that asks for a client's certificate, and does without."""
    context = server_context(*certificate)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(client_certificate[0])
    return context


def by_certificate(credentials):
    assert credentials.mechanism == "EXTERNAL"
    assert credentials.password is None
    subject = {name: value for ((name, value),) in credentials.certificate["subject"]}
    return subject["commonName"] if credentials.authzid in ("", "jo") else False


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
def test_external(serve, certificate, asking, client_certificate, implicit):
    users = []

    class Handler(SMTPHandler):
        authenticate = staticmethod(by_certificate)

        def deliver_envelope(self, envelope):
            users.append((envelope.user, self.session.user, envelope.tls.peer_certificate))

    server = serve(Handler, tls=asking, implicit_tls=implicit)
    context = trusting(certificate)
    context.load_cert_chain(*client_certificate)
    if implicit:
        client = smtplib.SMTP_SSL("localhost", server.port, context=context, timeout=20)
    else:
        client = smtplib.SMTP("localhost", server.port, timeout=20)
    with client:
        if not implicit:
            client.starttls(context=context)
        client.ehlo("client.example")
        assert "EXTERNAL" in client.esmtp_features["auth"].split()
        code, _ = client.docmd("AUTH", f"EXTERNAL {b64('somebody else')}")
        assert code == 535
        code, text = client.auth("EXTERNAL", lambda challenge=None: "jo")
        assert code == 235, text
        client.sendmail("a@x.example", ["b@y.example"], b"hello\r\n")
    ((user, same, peer_certificate),) = users
    assert user == same == "jo.client.example"
    assert (("commonName", "jo.client.example"),) in peer_certificate["subject"]


def test_external_with_an_empty_response(serve, connect, certificate, asking, client_certificate):
    context = trusting(certificate)
    context.load_cert_chain(*client_certificate)
    server = serve(tls=asking, authenticate=by_certificate, mechanisms=["EXTERNAL"])
    assert again(connect, server, certificate, context).ask("AUTH EXTERNAL =").startswith("235 ")
    client = again(connect, server, certificate, context)
    assert client.ask("AUTH EXTERNAL") == "334 "
    assert client.ask("").startswith("235 ")


def test_external_needs_a_certificate(serve, connect, certificate, asking):
    server = serve(tls=asking, authenticate=lambda credentials: True)
    client = again(connect, server, certificate)
    assert client.offered == ["PLAIN", "LOGIN"]
    assert client.ask("AUTH EXTERNAL =").startswith("504 5.5.4 ")


# -- what cannot be is said at once ----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"users": USERS}, "auth_require_tls"),
        ({"authenticate": lambda credentials: True}, "auth_require_tls"),
        ({"secret": lambda mechanism, username: None}, "auth_require_tls"),
        ({"require_auth": True}, "require_auth"),
        ({"require_auth": True, "auth_require_tls": False}, "require_auth"),
        ({"mechanisms": ["PLAIN"], "auth_require_tls": False}, "authenticate"),
        ({"mechanisms": ["SCRAM-SHA-256"], "auth_require_tls": False}, "secret"),
        (
            {
                "mechanisms": ["CRAM-MD5"],
                "authenticate": lambda credentials: True,
                "auth_require_tls": False,
            },
            "secret",
        ),
        ({"mechanisms": ["EXTERNAL"], "users": USERS, "auth_require_tls": False}, "authenticate"),
        ({"mechanisms": ["XOAUTH2"], "users": USERS, "auth_require_tls": False}, "authenticate"),
        ({"mechanisms": ["NTLM"], "users": USERS, "auth_require_tls": False}, "NTLM"),
        ({"mechanisms": "PLAIN", "users": USERS, "auth_require_tls": False}, "mechanisms"),
        ({"users": {"jo": ""}, "auth_require_tls": False}, "users"),
        ({"users": {"": "x"}, "auth_require_tls": False}, "users"),
        ({"users": {"jo": PASSWORD.encode()}, "auth_require_tls": False}, "users"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be(no_leaks, options, names):
    with pytest.raises(ValueError, match=names) as caught:
        SMTPServer(LOOPBACK, deliver=discard, **options)
    assert PASSWORD not in str(caught.value)


# -- what an attacker learns -----------------------------------------------------------------


@pytest.mark.parametrize("exchange", [login, cram_md5, scram], ids=lambda one: one.__name__)
def test_unknown_user_and_wrong_password_sound_alike(clear, exchange):
    client = clear(users=USERS, mechanisms=["LOGIN", "CRAM-MD5", "SCRAM-SHA-256"])
    wrong = exchange(client, username="jo", password="wrong")
    unknown = exchange(client, username="nobody", password="wrong")
    assert wrong == unknown
    assert wrong.startswith("535 5.7.8 ")


def test_unknown_user_and_wrong_password_sound_alike_with_plain(clear):
    client = clear(users=USERS)
    wrong, unknown = client.ask(plain(password="wrong")), client.ask(plain("nobody"))
    assert wrong == unknown
    assert wrong.startswith("535 5.7.8 ")


@pytest.mark.parametrize("failures", [1, 3])
def test_beyond_the_failures_it_is_over(clear, failures):
    client = clear(users=USERS, limits=Limits(auth_failures=failures))
    for _ in range(failures):
        assert client.ask(plain(password="wrong")).startswith("535 ")
    assert client.ask(plain(password="wrong")).startswith("421 4.7.0 ")
    assert client.ended()


def test_failures_of_all_mechanisms_count(secured):
    client = secured(users=USERS, mechanisms=["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"])
    assert client.ask(plain(password="wrong")).startswith("535 ")
    assert cram_md5(client, password="wrong").startswith("535 ")
    assert scram(client, "wrong").startswith("535 ")
    assert login(client, password="wrong").startswith("421 4.7.0 ")


def test_what_a_hook_refuses_in_its_own_words_counts(clear):
    refusal = Reply(550, "Go away", "5.7.1")
    client = clear(authenticate=lambda credentials: refusal, limits=Limits(auth_failures=2))
    for _ in range(2):
        assert client.ask(plain()).startswith("550 ")
    assert client.ask(plain()).startswith("421 4.7.0 ")


def test_our_own_faults_do_not_count(clear):
    client = clear(authenticate=raiser(RuntimeError("down")), limits=Limits(auth_failures=1))
    for _ in range(4):
        assert client.ask(plain()).startswith("454 4.7.0 ")


def test_no_secret_reaches_the_log(clear, secured, caplog):
    caplog.set_level(logging.DEBUG)
    keys = ScramKeys.of(PASSWORD, b"sixteen octets ..")
    said = []

    class Handler(SMTPHandler):
        def authenticate(self, credentials):
            said.append(repr(credentials))
            said.append(repr(self.command))
            if credentials.username == "broken":
                raise RuntimeError("no database")
            return credentials.check(PASSWORD) or credentials.token == "good.token"

        def secret(self, mechanism, username):
            said.append(repr(keys))
            if username == "broken":
                raise RuntimeError("no database")
            return PASSWORD if mechanism == "CRAM-MD5" else keys

        deliver = staticmethod(discard)

    mechanisms = ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256", "XOAUTH2"]
    for make in (clear, secured):
        client = make(Handler, mechanisms=mechanisms, limits=Limits(auth_failures=100))
        for username in ("broken", "jo"):
            for password in ("nearly " + PASSWORD, PASSWORD):
                last = [client.ask(plain(username, password))]
                last.append(client.ask("RSET"))
                if last[0].startswith("235"):
                    client = make(Handler, mechanisms=mechanisms)
        assert login(client, password="nearly " + PASSWORD).startswith("535 ")
        assert scram(client, "nearly " + PASSWORD).startswith("535 ")
        assert cram_md5(client, "broken").startswith("454 ")
        client.ask("AUTH PLAIN")
        assert client.ask(f"!{PASSWORD}").startswith("501 ")
        response = b64("user=jo\1auth=Bearer good.token\1\1")
        assert client.ask(f"AUTH XOAUTH2 {response}").startswith("235 ")
        assert client.ask(f"AUTH PLAIN {b64(PASSWORD)}").startswith("503 ")
        client.ask("QUIT")
        assert client.ended()
    assert "no database" in caplog.text  # it does log
    logged = [caplog.text, *(repr(vars(record)) for record in caplog.records), *said]
    for secret in (PASSWORD, "good.token", "battery"):
        for form in (secret, b64(secret)[:-3], b64("x" + secret)[3:-3], b64("xx" + secret)[4:-3]):
            assert not [text for text in logged if form in text]
    for octets in (keys.stored_key, keys.server_key):
        assert not [text for text in logged if repr(octets) in text or b64(octets) in text]


def test_repr_shows_no_secret(no_leaks):
    credentials = Credentials("PLAIN", "jo", password=PASSWORD, token="a.token")
    assert repr(credentials) == str(credentials) == "Credentials('PLAIN', 'jo')"
    keys = ScramKeys.of(PASSWORD, b"sixteen octets ..")
    for secret in keys[2:]:
        assert repr(secret) not in repr(keys)
        assert repr(secret) not in str(keys)
    server = SMTPServer(LOOPBACK, deliver=discard, users=USERS, auth_require_tls=False)
    with server:
        assert PASSWORD not in repr(server)
