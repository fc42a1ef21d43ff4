"""What clients say: steps, each the octets of a command or of some that belong together.

Most steps are nearly right. All chance comes from the ``chance`` that is given, so that a seed
gives the same steps again.
"""

import base64
import hashlib
import hmac

from smtpd_sync.sasl import MECHANISMS

USER, PASSWORD, TOKEN = "tim", "s3cr3t-Pa55", "t0ken-of-t1m"
NONCE = "nonce"
"""What the server's nonces are while the fuzzer runs, for its clients to know the challenges."""
SALT, ITERATIONS = b"salt of tim", 4096
HOSTNAME = "mx.example"

NAMES = ("client.example", "[192.0.2.1]", "[IPv6:::1]", "x", "a..b", "", "ü.example", "x" * 300)
LOCALS = ("a", "a", "b", "a.b", '"a b"', '"a\\"b"', '"<a>"', "ü", "a..b", "", "<", "a" * 80)
DOMAINS = (
    *("x.example", "x.example", "X.EXAMPLE", "y.example.", "[192.0.2.1]", "[IPv6:::1]", "[x:y]"),
    *("bücher.example", "-x", "", "x" * 64 + ".example", "mx.example", "[IPv6:1::2::3]"),
)
MAIL_WORDS = (
    *("SIZE=10", "SIZE=30", "SIZE=99999999999", "SIZE=-1", "SIZE", "size=5", "SIZE=5 SIZE=6"),
    *("BODY=8BITMIME", "BODY=7BIT", "BODY=9BIT", "BODY=BINARYMIME", "body=binarymime", "BODY"),
    *("SMTPUTF8", "SMTPUTF8=1", "FUTURE=1", "RET=FULL", "RET=X", "ENVID=a+2Bb", "ENVID=+", "="),
    *("REQUIRETLS", "MT-PRIORITY=3", "BY=120;R", "BY=-1;R", "HOLDFOR=60", "AUTH=<>", "AUTH=a+3D"),
    *("HOLDUNTIL=2024-01-01T00:00:00Z", "X=" + "y" * 600, "é=1", ""),
)
RCPT_WORDS = (
    *("NOTIFY=NEVER", "NOTIFY=SUCCESS,FAILURE", "NOTIFY=NEVER,DELAY", "NOTIFY", "X=1", ""),
    *("ORCPT=rfc822;b@y.example", "ORCPT=b", "RRVS=2024-01-01T00:00:00Z", "RRVS=1"),
)
LINES = (
    *(b"RSET", b"NOOP", b"NOOP x", b"HELP", b"HELP MAIL", b"HELP XYZ", b"VRFY a", b"EXPN a"),
    *(b"DATA", b"STARTTLS", b"rset", b"Noop\t", b"VRFY b@y.example SMTPUTF8", b"RSET "),
)
ODD_LINES = (
    *(b"QUIT", b"DATA x", b"WIZ", b"TURN", b"SEND FROM:<a@x.example>", b"", b" ", b"VRFY"),
    *(b"RSET x", b"STARTTLS x", b"QUIT x", b"MAIL", b"RCPT", b"MAIL FROM", b"AUTH", b"\tNOOP"),
    *(b"GET / HTTP/1.1", b"POST / HTTP/1.1", b"CONNECT mx:25", b"PRI * HTTP/2.0", b"Host: x"),
    *(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\xff\xfe", b"NOOP \x80", b"NOOP \0"),
    *(b"NOOP " + b"x" * 600, b"MAIL FROM:<" + b"a" * 2000 + b"@x.example>", b"X" * 700, b"EHLO"),
)
ENDS = tuple(
    first + b"." + second
    for first in (b"\r\n", b"\n", b"\r", b"\r\n\0", b"\0\r\n")
    for second in (b"\r\n", b"\n", b"\r", b"\0\r\n", b"\r\0\n")
)
"""Every way to nearly end mail data, and the one that does."""
PROXIES = (
    *(b"XCLIENT ADDR=192.0.2.1 LOGIN=tim", b"XCLIENT ADDR=IPV6:::1 HELO=x", b"XCLIENT ADDR=a:b"),
    *(b"XCLIENT", b"XCLIENT NAME=[UNAVAILABLE] PORT=25", b"XCLIENT PORT=99999", b"XFORWARD X=x"),
    *(b"XFORWARD NAME=x SOURCE=LOCAL", b"XFORWARD ADDR=192.0.2.1 PORT=1", b"XFORWARD NAME=+zz"),
)

# -- commands ------------------------------------------------------------------------------------


def mailbox(chance):
    if chance.random() < 0.5:
        return f"<{chance.choice('abcd')}@x.example>"
    text = f"{chance.choice(LOCALS)}@{chance.choice(DOMAINS)}"
    form = chance.choice(("<%s>", "<%s>", "<%s>", "%s", "<@r.example:%s>", "<@r,@s.example:%s>"))
    return form % text


def words(chance, table):
    return "".join(f" {word}" for word in chance.choices(table, k=chance.choice((0, 0, 1, 2))))


def hello(chance, lmtp=False):
    verbs = ("LHLO", "LHLO", "EHLO") if lmtp else ("EHLO", "EHLO", "EHLO", "HELO", "LHLO")
    name = NAMES[0] if chance.random() < 0.6 else chance.choice(NAMES)
    return f"{chance.choice(verbs)} {name}\r\n".encode()


def mail(chance):
    path = chance.choice((mailbox(chance), mailbox(chance), "<>", " <a@x.example>"))
    return f"{chance.choice(('MAIL', 'mail'))} FROM:{path}{words(chance, MAIL_WORDS)}\r\n".encode()


def rcpt(chance):
    path = chance.choice((mailbox(chance), mailbox(chance), "<postmaster>", "<Postmaster@y>"))
    return f"RCPT TO:{path}{words(chance, RCPT_WORDS)}\r\n".encode()


def line(chance):
    return chance.choice(LINES if chance.random() < 0.7 else ODD_LINES) + b"\r\n"


def proxy(chance):
    return chance.choice(PROXIES) + b"\r\n"


def garbage(chance):
    octets = bytes(chance.choices(range(256), k=chance.randrange(40)))
    return octets + chance.choice((b"", b"\r\n", b"\n"))


def endless(chance):
    return b"NOOP " + b"x" * chance.choice((100, 600, 3000))


# -- mail data -----------------------------------------------------------------------------------


def body(chance):
    """Mail data, with its end."""
    pieces = []
    for _ in range(chance.randrange(8)):
        text = bytes(chance.choices(b"ab. \xe9\0", k=chance.randrange(6)))
        ending = chance.choice((b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r\n"))
        pieces.append(chance.choice((b"", b"", b".", b"..")) + text + ending)
        if chance.random() < 0.15:
            # What smugglers hide behind an end that one server sees and the other does not.
            pieces.append(chance.choice(ENDS) + b"MAIL FROM:<evil@x.example>\r\n")
    if chance.random() < 0.03:
        pieces.append(b"x" * chance.choice((1200, 5000)) + b"\r\n")
    text = b"".join(pieces)
    return text + (b"" if text.endswith(b"\r\n") or not text else b"\r\n") + b".\r\n"


def envelope(chance):
    reset = b"RSET\r\n" if chance.random() < 0.4 else b""
    sender = reset + b"MAIL FROM:<a@x.example>" + chance.choice((b"", b"", b" BODY=8BITMIME"))
    names = chance.choices(b"bcd", k=chance.choice((1, 1, 2, 3)))
    return sender + b"\r\n" + b"".join(b"RCPT TO:<%c@y.example>\r\n" % name for name in names)


def transaction(chance):
    return [envelope(chance), b"DATA\r\n", body(chance)]


SIZES = (b"0", b"-1", b"5x", b"", b"99999999999999999999", b"4096", b"+3", b"1" * 25)


def chunk(chance, last=False):
    """A chunk, whose size is mostly that of what follows."""
    octets = bytes(chance.choices(b"ab.\r\r\n\n\0\xe9", k=chance.choice((0, 1, 5, 30))))
    if chance.random() < 0.2:
        octets = chance.choice((b"RSET\r\n", b"\r\n.\r\n", b"QUIT\r\n")) + octets
    size = b"%d" % max(0, len(octets) + chance.choice((0, 0, 0, 0, 0, 0, 0, 0, -1, 3)))
    if chance.random() < 0.05:
        size = chance.choice(SIZES)
    word = b" LAST" if last else chance.choice((b"", b"", b"", b"", b" LAST", b" last", b" MORE"))
    return chance.choice((b"BDAT ", b"BDAT ", b"bdat ")) + size + word + b"\r\n" + octets


def chunked(chance):
    head = envelope(chance)
    if chance.random() < 0.3:
        head = head.replace(b" BODY=8BITMIME", b"").replace(b">\r", b"> BODY=BINARYMIME\r", 1)
    chunks = [chunk(chance) for _ in range(chance.randrange(4))]
    if chance.random() < 0.2:
        chunks.append(chance.choice((b"RSET\r\n", b"NOOP\r\n", b"DATA\r\n", b"MAIL FROM:<>\r\n")))
    return [head, *chunks, chunk(chance, last=True)]


# -- AUTH ----------------------------------------------------------------------------------------


def _keyed(key, *parts):
    return hmac.new(key, b"".join(parts), "sha256").digest()


_SALTED = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), SALT, ITERATIONS)


def scram(flag=b"n", binding=b""):
    """Both messages of a client that knows the password (RFC 5802 3)."""
    bare = b"n=tim,r=abc"
    first = b"r=abc%s,s=%s,i=%d" % (NONCE.encode(), base64.b64encode(SALT), ITERATIONS)
    header = flag + b",,"
    final = b"c=%s,r=abc%s" % (base64.b64encode(header + binding), NONCE.encode())
    client_key = _keyed(_SALTED, b"Client Key")
    signature = _keyed(hashlib.sha256(client_key).digest(), bare, b",", first, b",", final)
    proof = bytes(a ^ b for a, b in zip(client_key, signature))
    return [header + bare, final + b",p=" + base64.b64encode(proof), b""]


_CRAM = hmac.new(PASSWORD.encode(), f"<{NONCE}@{HOSTNAME}>".encode(), "md5").hexdigest()
GOOD_RESPONSES = {
    "PLAIN": [f"\0{USER}\0{PASSWORD}".encode()],
    "LOGIN": [USER.encode(), PASSWORD.encode()],
    "CRAM-MD5": [f"{USER} {_CRAM}".encode()],
    "XOAUTH2": [f"user={USER}\1auth=Bearer {TOKEN}\1\1".encode()],
    "OAUTHBEARER": [f"n,a={USER},\1auth=Bearer {TOKEN}\1\1".encode()],
    "EXTERNAL": [b""],
    "SCRAM-SHA-256": scram(),
    "SCRAM-SHA-256-PLUS": scram(b"p=tls-server-end-point", b"binding"),
}
BAD_RESPONSES = (
    b"*",
    b"=",
    b"!",
    b"YQ",
    b"",
    b"A" * 600,
    b"\xff",
    b"YQ==YQ==",
    b"AHRpbQB3cm9uZw==",
)


RESPONSE_NOISE = (
    *(b"\0", b"\1", b",", b"=", b"=2C", b"a=tim,", b" ", b"\xff", b"\r\n", b"x" * 300),
    *("ü".encode(), "\u00ad".encode(), "\u05d0".encode(), "\u2028".encode(), "\u3000".encode()),
)


def auth(chance):
    """An exchange, mostly right, with or without an initial response."""
    name = chance.choice(tuple(MECHANISMS))
    responses = list(GOOD_RESPONSES[name])
    if chance.random() < 0.3:
        which = chance.randrange(len(responses))
        at = chance.randrange(len(responses[which]) + 1)
        noise = chance.choice(RESPONSE_NOISE)
        responses[which] = responses[which][:at] + noise + responses[which][at:]
    encoded = [base64.b64encode(octets) for octets in responses]
    if chance.random() < 0.4:
        encoded[chance.randrange(len(encoded))] = chance.choice(BAD_RESPONSES)
    if chance.random() < 0.1:
        encoded.append(chance.choice(BAD_RESPONSES))
    first = b"AUTH " + name.encode()
    if name not in ("LOGIN", "CRAM-MD5") and chance.random() < 0.6:
        first += b" " + (encoded.pop(0) or b"=")
    if chance.random() < 0.05:
        first = chance.choice((b"AUTH", b"AUTH NONE", b"AUTH PLAIN a b", b"AUTH \xc4\xb1"))
    return [one + b"\r\n" for one in (first, *encoded)]


def auth_again(chance):
    """A good exchange, and what it opens."""
    name = chance.choice(("PLAIN", "LOGIN"))
    encoded = [base64.b64encode(octets) for octets in GOOD_RESPONSES[name]]
    return [b"AUTH " + name.encode() + b"\r\n", *(one + b"\r\n" for one in encoded)]


def guesses(chance):
    """Wrong passwords, one behind the other."""
    return [b"AUTH PLAIN AHRpbQB3cm9uZw==\r\n"] * chance.randrange(2, 6)


def starttls(chance):
    """STARTTLS, at times with something behind it that must not be heard."""
    behind = chance.choice((b"", b"", b"RSET\r\n", b"MAIL FROM:<evil@x.example>\r\n"))
    return [b"STARTTLS\r\n" + behind]


KINDS = (
    (hello, 2),
    (mail, 4),
    (rcpt, 5),
    (line, 6),
    (transaction, 6),
    (chunked, 4),
    (body, 1),
    (chunk, 1),
    (auth, 3),
    (auth_again, 1),
    (guesses, 1),
    (starttls, 1),
    (proxy, 1),
    (garbage, 1),
    (endless, 0.3),
)
MAKERS, WEIGHTS = zip(*KINDS)


def steps(chance, lmtp=False):
    """What one client says, step by step."""
    made = []
    if chance.random() < 0.9:
        made.append(b"LHLO client.example\r\n" if lmtp else b"EHLO client.example\r\n")
    for make in chance.choices(MAKERS, WEIGHTS, k=chance.choice((1, 2, 3, 4, 5, 6, 8, 12))):
        step = make(chance, lmtp) if make is hello else make(chance)
        made += step if isinstance(step, list) else [step]
    return made
