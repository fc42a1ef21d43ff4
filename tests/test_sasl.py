"""SASL mechanisms, driven by hand: the examples of the RFCs, and every way to fail."""

import base64
import hashlib
import hmac
import random

import pytest

from smtpd_sync import Reject
from smtpd_sync.sasl import (
    MECHANISMS,
    Context,
    Credentials,
    ScramKeys,
    SecretRequest,
    new_nonce,
    prepared,
)

NONCE = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"  # of the server, in RFC 7677 3
CLIENT_NONCE = "rOprNGfwEbeRWgbNEkqO"
SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
CONTEXT = Context(
    certificate=None,
    end_point=b"end point",
    plus_offered=False,
    salt_key=b"key",
    hostname="mx.example",
    nonce=NONCE,
)


class Talk:
    """One exchange, step by step."""

    def __init__(self, mechanism, initial=None, context=CONTEXT):
        self.exchange = MECHANISMS[mechanism].run(initial, context)
        self.step = next(self.exchange)

    def say(self, response):
        self.step = self.exchange.send(response)
        return self.step

    def tell(self, secret):
        """Answer the question for a secret."""
        assert isinstance(self.step, SecretRequest)
        self.step.secret = secret
        return self.say(self.step)


def hold(mechanism, initial, *responses, context=CONTEXT, secret=None):
    """Hold an exchange to the end of the responses."""
    talk = Talk(mechanism, initial, context)
    for response in responses:
        if isinstance(talk.step, SecretRequest):
            talk.tell(secret)
        talk.say(response)
    if isinstance(talk.step, SecretRequest):
        talk.tell(secret)


def code(*arguments, **keywords):
    """Give the code that an exchange is refused with."""
    with pytest.raises(Reject) as caught:
        hold(*arguments, **keywords)
    return caught.value.reply.code


# -- Credentials and secrets ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("password", "plaintext", "same"),
    [
        ("secret", "secret", True),
        ("secret", "Secret", False),
        ("secret", "secret ", False),
        ("secret", None, False),
        ("secret", "", False),
        ("", "", False),
        ("", None, False),
        (None, None, False),
        (None, "", False),
        (None, "secret", False),
        ("\u00ad", "", False),
        ("I\u00adX", "IX", True),
        ("\u2168", "IX", True),
        ("p\u00e4ss", "pa\u0308ss", True),
        ("\u0627\u0031", "\u0627\u0031", False),
        ("secret", "\u0627\u0031", False),
        ("secret", "a\x07", False),
    ],
    ids=ascii,
)
def test_check_compares_prepared_passwords(password, plaintext, same):
    assert Credentials("PLAIN", "tim", password=password).check(plaintext) is same


def test_no_secret_is_shown():
    credentials = Credentials("PLAIN", "tim", password="open sesame", token="a token")
    assert repr(credentials) == str(credentials) == "Credentials('PLAIN', 'tim')"
    request = SecretRequest("SCRAM-SHA-256", "tim")
    request.secret = "open sesame"
    assert "sesame" not in repr(request)
    keys = ScramKeys.of("open sesame", b"salt of it", 1)
    assert repr(keys) == "ScramKeys(iterations=1)"
    assert str(keys) == repr(keys)


def test_keys_are_those_of_rfc_5802():
    keys = ScramKeys.of("pencil", SALT, 4096)
    salted = hashlib.pbkdf2_hmac("sha256", b"pencil", SALT, 4096)
    client_key = hmac.new(salted, b"Client Key", "sha256").digest()
    server_key = hmac.new(salted, b"Server Key", "sha256").digest()
    assert keys == (SALT, 4096, hashlib.sha256(client_key).digest(), server_key)
    assert ScramKeys.of("pencil", SALT).iterations >= 4096  # RFC 7677 4


def test_nonces_differ_and_are_printable():
    nonces = {new_nonce() for _ in range(100)}
    assert len(nonces) == 100
    for nonce in nonces:
        assert nonce.isascii()
        assert nonce.isprintable()
        assert not set(nonce) & set(', "')
        assert len(nonce) >= 18


@pytest.mark.parametrize(
    ("text", "result"),
    [
        # RFC 4013 3
        ("I\u00adX", "IX"),
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("\x07", None),
        ("\u0627\u0031", None),
        # RFC 4013 2: spaces, and what is prohibited
        ("a\u00a0b", "a b"),
        ("a\u3000b", "a b"),
        ("a b", "a b"),
        ("\ue000", None),
        ("\ufdd0", None),
        ("\u200e", None),
        ("\x7f", None),
        ("\u0085", None),
        ("\ufffd", None),
        # RFC 3454 6
        ("\u0627\u0628", "\u0627\u0628"),
        ("\u06271\u0628", "\u06271\u0628"),
        ("\u0627a\u0628", None),
        ("a\u0627", None),
        ("\u0627 1", None),
    ],
    ids=ascii,
)
def test_saslprep(text, result):
    if result is None:
        with pytest.raises(Reject):
            prepared(text)
    else:
        assert prepared(text) == result


# -- PLAIN, LOGIN, EXTERNAL ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "authzid", "username", "password"),
    [
        (b"\0tim\0tanstaaftanstaaf", "", "tim", "tanstaaftanstaaf"),
        (b"Ursel\0Kurt\0xipj3plmq", "Ursel", "Kurt", "xipj3plmq"),
        ("\0jürgen\0pässword".encode(), "", "jürgen", "pässword"),
    ],
)
def test_plain(response, authzid, username, password):
    # RFC 4616 4
    by_itself, asked = Talk("PLAIN", response), Talk("PLAIN")
    assert asked.step == b""
    asked.say(response)
    for credentials in (by_itself.step, asked.step):
        assert credentials.mechanism == "PLAIN"
        assert (credentials.authzid, credentials.username) == (authzid, username)
        assert credentials.password == password
        assert not credentials.verified
        assert credentials.token is credentials.certificate is None


@pytest.mark.parametrize(
    "response",
    [
        *(b"", b"\0", b"\0\0", b"tim", b"tim\0secret", b"\0tim\0", b"\0\0secret"),
        *(b"\0tim\0secret\0", b"\0tim\0sec\0ret", b"\0\xff\0secret", b"\0tim\0\xff"),
        *(b"\xff\0tim\0secret", b"\0ti\nm\0secret", b"\0tim\0a\x7f", b"\r\0tim\0secret"),
    ],
)
def test_plain_that_is_none(response):
    assert code("PLAIN", response) == 501


def test_login():
    talk = Talk("LOGIN")
    assert talk.step == b"Username:"
    assert talk.say(b"tim") == b"Password:"
    credentials = talk.say(b"secret")
    assert (credentials.mechanism, credentials.username) == ("LOGIN", "tim")
    assert (credentials.password, credentials.authzid) == ("secret", "")
    talk = Talk("LOGIN", b"tim")
    assert talk.step == b"Password:"
    assert talk.say(b"secret").username == "tim"


@pytest.mark.parametrize(
    ("name", "password"), [(b"", b"x"), (b"\xff", b"x"), (b"tim", b"\xff"), (b"t\0m", b"x")]
)
def test_login_that_is_none(name, password):
    assert code("LOGIN", name, password) == 501


def test_external():
    certificate = {"subject": ((("commonName", "tim"),),)}
    context = CONTEXT._replace(certificate=certificate)
    assert Talk("EXTERNAL", b"", context).step.authzid == ""
    talk = Talk("EXTERNAL", context=context)
    assert talk.step == b""
    credentials = talk.say(b"tim@x.example")
    assert (credentials.authzid, credentials.certificate) == ("tim@x.example", certificate)
    assert not credentials.verified
    assert code("EXTERNAL", b"\xff", context=context) == 501


# -- CRAM-MD5 ------------------------------------------------------------------------------------

CRAM = CONTEXT._replace(nonce="1896.697170952", hostname="postoffice.reston.mci.net")
CRAM_DIGEST = b"tim b913a602c7eda7a495b4e6e7334d3890"


def test_cram_md5_example():
    # RFC 2195 2
    talk = Talk("CRAM-MD5", context=CRAM)
    assert talk.step == b"<1896.697170952@postoffice.reston.mci.net>"
    request = talk.say(CRAM_DIGEST)
    assert (request.mechanism, request.username) == ("CRAM-MD5", "tim")
    credentials = talk.tell("tanstaaftanstaaf")
    assert credentials.username == "tim"
    assert credentials.verified


def cram_proof(secret, context=CRAM):
    challenge = f"<{context.nonce}@{context.hostname}>".encode()
    return b"tim " + hmac.new(secret, challenge, "md5").hexdigest().encode()


@pytest.mark.parametrize(
    ("response", "secret"),
    [
        (CRAM_DIGEST, "tanstaaf"),
        (CRAM_DIGEST, None),
        (CRAM_DIGEST[:-1], "tanstaaftanstaaf"),
        (CRAM_DIGEST, ScramKeys.of("tanstaaftanstaaf", b"salt", 1)),
        (cram_proof(CRAM.nonce.encode()), None),
        (cram_proof(CRAM.nonce.encode()), ""),
        (cram_proof(b""), ""),
        (b"tim \xff", "tanstaaftanstaaf"),
    ],
    ids=repr,
)
def test_cram_md5_that_is_wrong(response, secret):
    assert code("CRAM-MD5", None, response, context=CRAM, secret=secret) == 535


def test_cram_md5_that_is_none():
    assert code("CRAM-MD5", b"") == 501  # RFC 4954 4: the server speaks first
    assert code("CRAM-MD5", None, b"\xff 00", context=CRAM) == 501


# -- SCRAM ---------------------------------------------------------------------------------------


class Client:
    """A client of SCRAM-SHA-256, to the letter of RFC 5802 3 where not told otherwise."""

    def __init__(self, name=b"user", password=b"pencil", header=b"n,,", bound=b""):
        self.password, self.header, self.bound = password, header, bound
        self.bare = b"n=" + name + b",r=" + CLIENT_NONCE.encode()

    @property
    def first(self):
        return self.header + self.bare

    def final(self, challenge, nonce=None, bound=None, extra=b"", flip=0):
        parts = dict(part.split(b"=", 1) for part in challenge.split(b","))
        salted = hashlib.pbkdf2_hmac(
            "sha256", self.password, base64.b64decode(parts[b"s"]), int(parts[b"i"])
        )
        client_key = hmac.new(salted, b"Client Key", "sha256").digest()
        binding = base64.b64encode(self.header + self.bound) if bound is None else bound
        without_proof = b"c=" + binding + b",r=" + (nonce or parts[b"r"]) + extra
        self.proved = b",".join((self.bare, challenge, without_proof))
        stored_key = hashlib.sha256(client_key).digest()
        signature = hmac.new(stored_key, self.proved, "sha256").digest()
        proof = bytearray(a ^ b for a, b in zip(client_key, signature))
        proof[0] ^= flip
        self.signature = hmac.new(
            hmac.new(salted, b"Server Key", "sha256").digest(), self.proved, "sha256"
        ).digest()
        return without_proof + b",p=" + base64.b64encode(proof)


def scram(client, secret="pencil", mechanism="SCRAM-SHA-256", context=CONTEXT, **final):
    """Hold an exchange; give its credentials."""
    talk = Talk(mechanism, client.first, context)
    challenge = talk.tell(secret)
    verifier = talk.say(client.final(challenge, **final))
    assert verifier == b"v=" + base64.b64encode(client.signature)
    return talk.say(b"")


def refused(*arguments, **keywords):
    with pytest.raises(Reject) as caught:
        scram(*arguments, **keywords)
    return caught.value.reply.code


@pytest.mark.parametrize("initial", [True, False], ids=["initial response", "asked"])
def test_scram_example(initial):
    # RFC 7677 3
    first = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
    talk = Talk("SCRAM-SHA-256", first if initial else None)
    if not initial:
        assert talk.step == b""
        talk.say(first)
    assert (talk.step.mechanism, talk.step.username) == ("SCRAM-SHA-256", "user")
    assert talk.tell(ScramKeys.of("pencil", SALT, 4096)) == (
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    final = talk.say(
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    assert final == b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    credentials = talk.say(b"")
    assert (credentials.username, credentials.verified) == ("user", True)
    assert credentials.check("pencil") is False, "there is no password to check"


@pytest.mark.parametrize(
    ("header", "authzid"),
    [(b"n,,", ""), (b"y,,", ""), (b"n,a=root,", "root"), (b"n,a=a=2Cb=3D,", "a,b=")],
)
def test_scram_takes_a_plain_secret(header, authzid):
    credentials = scram(Client(header=header))
    assert (credentials.username, credentials.authzid) == ("user", authzid)


def test_scram_prepares_name_and_password():
    client = Client("I\u00adX=2C=3D".encode(), b"IX")
    talk = Talk("SCRAM-SHA-256", client.first)
    assert talk.step.username == "IX,="
    assert scram(client, "\u2168").username == "IX,="


def test_scram_takes_extensions():
    client = Client()
    client.bare += b",x=future"
    assert scram(client, extra=b",y=future").verified


def test_scram_plus():
    # RFC 5802 6 and RFC 5929 4
    client = Client(header=b"p=tls-server-end-point,,", bound=b"end point")
    context = CONTEXT._replace(plus_offered=True)
    credentials = scram(client, mechanism="SCRAM-SHA-256-PLUS", context=context)
    assert (credentials.mechanism, credentials.verified) == ("SCRAM-SHA-256-PLUS", True)


@pytest.mark.parametrize("bound", [b"", b"another end point", b"end poin"])
def test_wrong_channel_binding_fails(bound):
    client = Client(header=b"p=tls-server-end-point,,", bound=bound)
    assert refused(client, mechanism="SCRAM-SHA-256-PLUS") == 535


def test_binding_of_another_header_fails():
    # RFC 5802 5.1: what was said at first is bound: "n,," made of "y,," is seen
    assert refused(Client(header=b"y,,"), bound=base64.b64encode(b"n,,")) == 535
    assert refused(Client(), bound=base64.b64encode(b"n,a=root,")) == 535


def test_client_that_was_told_of_no_binding_is_cut_off():
    # RFC 5802 6: "y" where the server offers -PLUS is a downgrade
    context = CONTEXT._replace(plus_offered=True)
    assert code("SCRAM-SHA-256", Client(header=b"y,,").first, context=context) == 535
    assert scram(Client(), context=context).verified


@pytest.mark.parametrize(
    ("mechanism", "header"),
    [
        ("SCRAM-SHA-256", b"p=tls-server-end-point,,"),
        ("SCRAM-SHA-256-PLUS", b"n,,"),
        ("SCRAM-SHA-256-PLUS", b"y,,"),
        ("SCRAM-SHA-256-PLUS", b"p=tls-unique,,"),
        ("SCRAM-SHA-256-PLUS", b"p=,,"),
    ],
)
def test_flag_that_the_mechanism_cannot_have(mechanism, header):
    assert code(mechanism, Client(header=header).first) == 501


@pytest.mark.parametrize(
    "secret", [None, "", "pencils", ScramKeys.of("pencils", SALT, 1)], ids=repr
)
def test_scram_of_another_secret_fails(secret):
    assert refused(Client(), secret) == 535


def test_empty_secret_lets_nobody_in():
    assert refused(Client(password=b""), "") == 535
    assert refused(Client(password=NONCE.encode()), "") == 535
    assert refused(Client(password=NONCE.encode()), None) == 535


def test_wrong_proof_fails():
    assert refused(Client(), flip=1) == 535


@pytest.mark.parametrize("nonce", [b"x", CLIENT_NONCE.encode(), NONCE.encode(), b"x" * 50])
def test_wrong_nonce_fails(nonce):
    assert refused(Client(), nonce=nonce) == 535


@pytest.mark.parametrize(
    "final",
    [
        *(b"", b"c=biws", b"c=biws,r=x", b"c=biws,r=x,p=", b"r=x,c=biws,p=AAAA", b"\xff"),
        *(b"c=biws,r=x,p=A", b"c=biws,r=x,p=AAAA,x=1", b"c=bi ws,r=x,p=AAAA", b"c=,r=x,p=AAAA"),
    ],
)
def test_scram_final_that_is_none(final):
    talk = Talk("SCRAM-SHA-256", Client().first)
    talk.tell("pencil")
    with pytest.raises(Reject) as caught:
        talk.say(final)
    assert caught.value.reply.code == 501


def test_proof_of_another_length_fails():
    talk = Talk("SCRAM-SHA-256", Client().first)
    final = Client().final(talk.tell("pencil"))
    with pytest.raises(Reject) as caught:
        talk.say(final.rpartition(b"p=")[0] + b"p=AAAA")
    assert caught.value.reply.code == 535


@pytest.mark.parametrize(
    "first",
    [
        *(b"", b"n,,", b"n,,n=user", b"n,,r=abc", b"n,,n=,r=abc", b"n,,n=user,r=", b"n,n=user,r=a"),
        *(b"x,,n=user,r=abc", b",,n=user,r=abc", b"n,,r=abc,n=user", b"n,,m=x,n=user,r=abc"),
        *(b"n,,n=us=er,r=abc", b"n,,n=user=2c,r=abc", b"n,,n=user,r=a b", b"n,a=,n=user,r=abc"),
        *(
            b"n,,n=us\0er,r=abc",
            b"n,,n=\xff,r=abc",
            b"n,,n=\xd8\xa71,r=abc",
            b"n,,n=\xc2\xad,r=abc",
        ),
        b"n,,n=user,r=abc,",
    ],
)
def test_scram_first_that_is_none(first):
    assert code("SCRAM-SHA-256", first) == 501


def test_authzid_that_is_none():
    client = Client(header=b"n,a=ro=ot,")
    assert refused(client) == 501


def test_unknown_user_cannot_be_told():
    def challenge(name, secret, key=b"key"):
        context = CONTEXT._replace(salt_key=key)
        return Talk("SCRAM-SHA-256", Client(name).first, context).tell(secret)

    unknown = challenge(b"tom", None)
    assert challenge(b"tom", None) == unknown, "the salt is the same each time"
    assert challenge(b"tom", "pencil") == unknown, "... and if there is such a user"
    assert challenge(b"tim", None) != unknown, "... and another for another"
    assert challenge(b"tom", None, b"other") != unknown, "... and for another server"
    parts = dict(part.split(b"=", 1) for part in unknown.split(b","))
    assert len(base64.b64decode(parts[b"s"])) >= 16
    assert int(parts[b"i"]) >= 4096


# -- XOAUTH2 and OAUTHBEARER ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mechanism", "response", "username", "token"),
    [
        ("XOAUTH2", b"user=tim@x.example\1auth=Bearer ya29.vF9\1\1", "tim@x.example", "ya29.vF9"),
        ("XOAUTH2", b"user=a=b@x.example\1auth=Bearer t\1\1", "a=b@x.example", "t"),
        # RFC 7628 4.1 and 4.2
        (
            "OAUTHBEARER",
            b"n,a=user@example.com,\1host=server.example.com\1port=143\1"
            b"auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\1\1",
            "user@example.com",
            "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==",
        ),
        ("OAUTHBEARER", b"n,,\1auth=Bearer t\1\1", "", "t"),
        ("OAUTHBEARER", b"y,,\1auth=Bearer t\1\1", "", "t"),
        ("OAUTHBEARER", b"n,a=a=2Cb=3D,\1auth=bearer t\1port=587\1\1", "a,b=", "t"),
    ],
)
def test_bearer(mechanism, response, username, token):
    talk = Talk(mechanism)
    assert talk.step == b""
    credentials = talk.say(response)
    assert (credentials.mechanism, credentials.username) == (mechanism, username)
    assert (credentials.token, credentials.password) == (token, None)
    assert not credentials.verified
    assert Talk(mechanism, response).step.token == token
    assert MECHANISMS[mechanism].failure


@pytest.mark.parametrize(
    "response",
    [
        *(b"", b"\1", b"user=tim\1auth=Bearer t\1", b"user=tim\1auth=Basic t\1\1"),
        *(b"user=tim\1auth=Bearer \1\1", b"user=\1auth=Bearer t\1\1", b"auth=Bearer t\1\1"),
        *(b"user=\xff\1auth=Bearer t\1\1", b"user=t\nm\1auth=Bearer t\1\1"),
        *(b"user=tim\1auth=Bearer \xc3\xa9\1\1", b"user=tim\1auth=Bearer a b\1\1"),
        *(b"n,,\1\1", b"n,\1auth=Bearer t\1\1", b"n,,auth=Bearer t\1\1", b"n,,\1auth=Bearer t\1"),
        *(
            b"p=x,,\1auth=Bearer t\1\1",
            b"n,a=,\1auth=Bearer t\1\1",
            b"n,a=\xff,\1auth=Bearer t\1\1",
        ),
        *(
            b"n,a=a=b,\1auth=Bearer t\1\1",
            b"n,,\1auth=Bearer t\1\1\1",
            b"n,,\0011=2\1auth=Bearer t\1\1",
        ),
    ],
)
@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_bearer_that_is_none(mechanism, response):
    assert code(mechanism, response) == 501


# -- any response --------------------------------------------------------------------------------

GOOD = {
    "PLAIN": [b"\0tim\0secret"],
    "LOGIN": [b"tim", b"secret"],
    "EXTERNAL": [b"tim"],
    "XOAUTH2": [b"user=tim\1auth=Bearer t\1\1"],
    "OAUTHBEARER": [b"n,a=tim,\1port=1\1auth=Bearer t\1\1"],
    "CRAM-MD5": [CRAM_DIGEST],
    "SCRAM-SHA-256": [b"n,a=x,n=user,r=abc", b"c=biws,r=abc" + NONCE.encode() + b",p=AAAA", b""],
    "SCRAM-SHA-256-PLUS": [b"p=tls-server-end-point,,n=user,r=abc", b"c=biws,r=abc,p=AAAA"],
}
NOISE = (b"\0", b"\1", b"=", b",", b"\xff", b"=2C", b"=", b"\xd8\xa7", b"\xc2\xad", b"\n", b"a=")


def mutated(octets, chance):
    while chance.random() < 0.5:
        at, gone = chance.randrange(len(octets) + 1), chance.choice((0, 0, 1, 3))
        octets = octets[:at] + chance.choice(NOISE) + octets[at + gone :]
    return octets if chance.random() < 0.95 else bytes(chance.choices(range(256), k=12))


def test_every_mechanism_is_tried():
    assert set(GOOD) == set(MECHANISMS)


@pytest.mark.parametrize("mechanism", GOOD)
def test_any_response_ends_or_is_refused(mechanism):
    chance = random.Random(mechanism)
    keys = ScramKeys.of("pencil", SALT, 1)
    for _ in range(500):
        responses = [mutated(response, chance) for response in GOOD[mechanism]]
        first = responses.pop(0) if chance.random() < 0.5 else None
        told = outcome(mechanism, first, responses, keys)
        assert told in (None, 501, 535), (mechanism, first, responses)
        if mechanism.startswith(("SCRAM", "CRAM")):
            assert told is not None, "nothing here proves anything"


def outcome(mechanism, first, responses, keys):
    """Give the code of a refusal, or ``None`` for credentials."""
    try:
        talk = Talk(mechanism, first)
        while not isinstance(talk.step, Credentials):
            if isinstance(talk.step, SecretRequest):
                talk.tell(keys)
            else:
                talk.say(responses.pop(0) if responses else b"")
    except Reject as reject:
        return reject.reply.code
    return None
