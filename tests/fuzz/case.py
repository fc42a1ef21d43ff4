"""A session to play: one number gives its server's options, its owner's moods and its steps."""

import random
import zlib
from typing import Any, Dict, NamedTuple, Optional, Tuple

from smtpd_sync import Limits, Reply
from smtpd_sync.data import BARE_NEWLINE_RULES
from smtpd_sync.extensions import EXTENSIONS, future_release
from smtpd_sync.rules import Rules, rules
from smtpd_sync.sasl import MECHANISMS

from . import grammar

# Without the time of day in the EHLO reply: it would not be the same twice.
EVERY_EXTENSION = (*EXTENSIONS.values(), future_release(3600)._replace(value="3600"))

NOISE = (
    *(b"\r", b"\n", b"\r\n", b"\0", b".", b"\r\n.", b"\r\n.\r\n", b"\n.\n", b"\n.\r\n", b"\r.\r"),
    *(b" ", b"\t", b"\x80", b"\xff\xfe", b"\xc3\xa9", b"\x16\x03\x01", b":", b"<", b">", b"\x7f"),
    *(b"DATA\r\n", b"RSET\r\n", b"BDAT 3\r\n", b"\r\nQUIT\r\n", b"x" * 600, b"\xe2\x80\xa8"),
)


class Owner(NamedTuple):
    """Decides what hooks would: always the same where it is asked the same."""

    seed: int
    mood: int
    """How often it refuses, of 100."""

    def verdict(self, verb: str, text: str) -> Optional[Reply]:
        """Give a reply, or ``None`` for the one by default."""
        number = zlib.crc32(f"{self.seed} {verb} {text}".encode("utf-8", "surrogateescape"))
        if number % 100 >= self.mood:
            return None
        choices = REFUSALS if verb not in ACCEPTS else REFUSALS + ACCEPTS[verb]
        return choices[number // 100 % len(choices)]


REFUSALS = (
    Reply(450, "Later"),
    Reply(451),
    Reply(550, "No\r\n250 2.0.0 yes \x00\xe9" + "x" * 600),
    Reply(550, "No such thing", "5.1.1"),
    Reply(554),
    Reply(452, "Full", "4.3.1"),
    Reply(552, "two\nlines", "5.2.2"),
    Reply(421, "Enough"),
)
ACCEPTS = {
    "MAIL": (Reply(250, "Gladly"),) * 4,
    "RCPT": (Reply(251, "Forwarded", "2.1.5"),) * 4,
    "message": (Reply(250, "as\nyou\nwish"),) * 4,
}


class Case(NamedTuple):
    """One session to play."""

    seed: int
    limits: Dict[str, Any]
    options: Dict[str, Any]
    inside: str
    """``"tls"`` from the first octet, with a client's ``"certificate"``; or ``""``."""
    owner: Owner
    steps: Tuple[bytes, ...]

    @property
    def octets(self) -> bytes:
        """All that the client says."""
        return b"".join(self.steps)

    def rules(self) -> Rules:
        """Give the rules that the session goes by."""
        salt = b"salt key"
        return rules(
            Limits(**self.limits), hostname=grammar.HOSTNAME, salt_key=salt, **self.options
        )


def make_options(chance):
    """Give (limits, options) of a server."""
    likely = chance.random
    limits = {
        "message_size": chance.choice((None, 20, 200, 1000)),
        "text_line": chance.choice((None, None, None, 40, 1000)),
        "recipients": chance.choice((1, 2, 1000)),
        "errors": chance.choice((1, 3, 20, 1000, 1000)),
        "auth_failures": chance.choice((1, 2, 1000)),
        "auth_line": chance.choice((50, 12_288)),
        "junk_commands": chance.choice((1, 3, 100)),
    }
    options = {
        "starttls": likely() < 0.4,
        "strict": likely() < 0.3,
        "strict_pipelining": likely() < 0.35,
        "bare_newline": chance.choice(BARE_NEWLINE_RULES),
        "mechanisms": tuple(MECHANISMS) if likely() < 0.7 else (),
        "auth_require_tls": likely() < 0.2,
        "xclient": likely() < 0.3,
        "lmtp": likely() < 0.25,
        "ignore_parameters": likely() < 0.2,
        "extensions": EVERY_EXTENSION if likely() < 0.6 else (),
    }
    options["require_tls"] = options["starttls"] and likely() < 0.2
    options["require_auth"] = bool(options["mechanisms"]) and likely() < 0.15
    return limits, options


def make_case(seed):
    """Give the session of a number."""
    chance = random.Random(seed)
    limits, options = make_options(chance)
    inside = chance.choice(("", "", "", "tls", "certificate"))
    owner = Owner(chance.randrange(1 << 20), chance.choice((0, 0, 2, 10, 40)))
    made = grammar.steps(chance, options["lmtp"])
    if chance.random() < 0.6:
        made = mutated(made, chance)
    return Case(seed, limits, options, inside, owner, tuple(made))


# -- mutation ------------------------------------------------------------------------------------


def flip(octets, chance, steps):
    at = chance.randrange(len(octets))
    return octets[:at] + bytes([octets[at] ^ 1 << chance.randrange(8)]) + octets[at + 1 :]


def cut(octets, chance, steps):
    at = chance.randrange(len(octets))
    return octets[:at] + octets[at + chance.choice((1, 1, 2, 8, 1000)) :]


def duplicate(octets, chance, steps):
    start = chance.randrange(len(octets))
    end = start + chance.randrange(1, 20)
    return octets[:end] + octets[start:end] + octets[end:]


def splice(octets, chance, steps):
    other = chance.choice(steps)
    return octets[: chance.randrange(len(octets))] + other[chance.randrange(len(other) + 1) :]


def insert(octets, chance, steps):
    at = chance.randrange(len(octets))
    return octets[:at] + chance.choice(NOISE) + octets[at:]


MUTATIONS = (flip, cut, duplicate, splice, insert, insert, insert)


def mutated(steps, chance):
    """Change some octets of some steps, and now and then their order."""
    steps = list(steps)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(steps))
        if steps[at]:
            steps[at] = chance.choice(MUTATIONS)(steps[at], chance, steps)
    if chance.random() < 0.2:
        one, two = chance.randrange(len(steps)), chance.randrange(len(steps))
        steps[one], steps[two] = steps[two], steps[one]
    if chance.random() < 0.1:
        steps.insert(chance.randrange(len(steps)), chance.choice(steps))
    return steps
