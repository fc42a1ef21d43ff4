"""A slow reading of a session from outside: what the client said against what it was told.

It knows the RFCs and the octets of both sides, nothing of the package's states and parsers. Lines
are read one by one, mail data is decoded octet by octet as RFC 5321 4.5.2 says it.
"""

import re
from typing import List, NamedTuple, Optional, Tuple

JUNK = frozenset({"HELO", "EHLO", "LHLO", "RSET", "NOOP", "HELP", "VRFY", "EXPN"})
BARE = frozenset({"connection", "HELO", "EHLO", "LHLO"})
TLS_RECORD = b"\x16\x03"
FAR_BEYOND = 4

REPLY = re.compile(rb"((?:\d{3}-[^\r\n]*\r\n)*)(\d{3}) ([^\r\n]*)\r\n")
GOODBYE = re.compile(
    r"(?:221|421)[ -]|554 (?:5\.5\.0 )?(?:Input arrived before its turn|This is an SMTP server)"
)
_BDAT = re.compile("([0-9]{1,20})(?: +(.*))?")
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_QUOTED = re.compile(rb'"[^"]*"')
_BINARY = re.compile(rb" BODY=BINARYMIME(?:[ \t]|$)", re.IGNORECASE)


class Reply(NamedTuple):
    """One reply as it came."""

    code: int
    text: str
    """Of its last line, with the code."""
    octets: bytes

    @property
    def closes(self):
        return GOODBYE.match(self.text) is not None


def parse_replies(said):
    """Give the replies, and what is left that is none."""
    found, at = [], 0
    while True:
        match = REPLY.match(said, at)
        if match is None:
            return found, said[at:]
        text = f"{match[2].decode()} {match[3].decode('latin-1')}"
        found.append(Reply(int(match[2]), text, match[0]))
        at = match.end()


def split_newlines(octets, rule):
    """Apply the rule for a bare CR or LF, octet by octet; give (content, whether there was one)."""
    out, bare, at = bytearray(), False, 0
    while at < len(octets):
        one = octets[at : at + 1]
        if octets[at : at + 2] == b"\r\n":
            out += b"\r\n"
            at += 2
            continue
        if one in (b"\r", b"\n"):
            bare = True
            one = b"\r\n" if rule == "normalize" else one
        out += one
        at += 1
    return bytes(out), bare


def decode_lines(octets):
    """Decode what follows DATA (RFC 5321 4.5.2): (content, octets read), or ``None`` if endless."""
    lines, at = [], 0
    while True:
        end = octets.find(b"\r\n", at)
        if end < 0:
            return None
        text, at = octets[at:end], end + 2
        if text == b".":
            return b"".join(line + b"\r\n" for line in lines), at
        lines.append(text[1:] if text.startswith(b".") else text)


class Expected(NamedTuple):
    """A delivery that the replies promise: the lines of its envelope, and its data."""

    sender: bytes
    recipients: Tuple[bytes, ...]
    data: bytes


class Answer(NamedTuple):
    """A reply and what it answers: a verb, ``""`` for no verb, or in lower case a happening."""

    verb: str
    reply: Reply
    last: bool
    """Whether it is the last to what it answers."""


class OutOfStepError(Exception):
    """What was said cannot be the answer to what came."""


class Story:
    """One session, read from outside."""

    def __init__(self, rules, pieces, said):
        self.rules = rules
        self.octets = b"".join(pieces)
        self._ends = []
        for piece in pieces:
            self._ends.append((self._ends or [0])[-1] + len(piece))
        self._replies, self.garbage = parse_replies(said)
        self._replies.reverse()
        self._at = 0
        self.answers: List[Answer] = []
        self.expected: List[Expected] = []
        self.verdicts: List[Tuple[bool, List[Reply]]] = []
        """Of each message that came to its end: whether it was faulty, and what was said."""
        self.out_of_step = ""
        """Why the reading ended early."""
        self._closed = False
        self._forget()
        try:
            self._read()
        except OutOfStepError as error:
            self.out_of_step = str(error)

    # -- reading -----------------------------------------------------------------------------

    def _read(self):
        self._take("connection")
        while not self._closed:
            line = self._line()
            if line is None:
                if self.octets.startswith(TLS_RECORD, self._at) and self._replies:
                    self._take("")
                break
            self._command(line)
        if self._replies:
            raise OutOfStepError(f"nobody asked for {self._replies[-1].octets!r}")

    def _line(self) -> Optional[bytes]:
        end = self.octets.find(b"\r\n", self._at)
        if end < 0:
            return None
        line, self._at = self.octets[self._at : end], end + 2
        return line

    def _take(self, verb, last=True) -> Reply:
        if not self._replies:
            raise OutOfStepError(f"no reply to {verb or 'a line'} before octet {self._at}")
        reply = self._replies.pop()
        self.answers.append(Answer(verb, reply, last))
        self._closed |= reply.closes
        return reply

    def _forget(self):
        self._sender: Optional[bytes] = None
        self._recipients: List[bytes] = []
        self._chunks: Optional[List[bytes]] = None
        self._lost = False

    # -- commands ----------------------------------------------------------------------------

    def _command(self, line):
        verb, _, argument = line.partition(b" ")
        verb = verb.upper().rstrip(b"\t").decode("latin-1")
        if verb == "BDAT":
            self._bdat(line, argument.rstrip(b" \t"))
            return
        reply = self._take(verb)
        if verb == "AUTH" and reply.code == 334:
            while reply.code == 334:
                if self._line() is None:
                    self._at = len(self.octets)
                    return
                reply = self._take("credentials")
        elif reply.code == 354:
            if verb != "DATA":
                raise OutOfStepError(f"354 to {line!r}")
            self._data()
        elif reply.code < 300 and verb in EFFECTS:
            EFFECTS[verb](self, line)
        elif verb == "XCLIENT" and reply.code == 220:
            self._forget()

    def _mail(self, line):
        if self._sender is not None:
            raise OutOfStepError(f"a second MAIL was accepted: {line!r}")
        self._sender = line

    def _rcpt(self, line):
        if self._sender is None:
            raise OutOfStepError(f"RCPT without MAIL was accepted: {line!r}")
        self._recipients.append(line)

    def _reset(self, line):
        self._forget()

    def _start_tls(self, line):
        # What came with it in one piece is forgotten (RFC 3207 4.2).
        self._at = next(end for end in self._ends if end >= self._at)
        self._forget()

    # -- mail data ---------------------------------------------------------------------------

    def _data(self):
        if not self._recipients:
            raise OutOfStepError("354 without a recipient")
        decoded = decode_lines(self.octets[self._at :])
        if decoded is None:
            self._at = len(self.octets)
            if self._replies:
                self._too_far()
            return
        content, read = decoded
        self._at += read
        self._end(*split_newlines(content, self.rules.bare_newline), binary=False)

    def _too_far(self):
        if self._take("message").code != 421:
            raise OutOfStepError("a reply before the end of mail data")

    def _end(self, content, bare, binary):
        """Read what is said to the end of mail data: once, in LMTP to each recipient."""
        fault = self._lost or self._fault(content, bare, binary)
        count = len(self._recipients) if self.rules.lmtp else 1
        limit = self.rules.limits.message_size
        far = limit is not None and len(content) > FAR_BEYOND * limit
        if far and self._replies and "far beyond" in self._replies[-1].text:
            count = 1  # the session was given up before the end was read
        replies = [self._take("message", last=left == 1) for left in range(count, 0, -1)]
        self.verdicts.append((bool(fault), replies))
        taken = self._recipients
        if self.rules.lmtp:
            taken = [name for name, reply in zip(taken, replies) if reply.code < 300]
        elif replies[0].code >= 300:
            taken = []
        if taken:
            self.expected.append(Expected(self._sender, tuple(taken), content))
        self._forget()

    def _fault(self, content, bare, binary):
        limits = self.rules.limits
        if limits.message_size is not None and len(content) > limits.message_size:
            return True
        if binary:
            return False
        *lines, rest = content.split(b"\r\n")
        longest = max([len(rest), *(len(line) + 2 for line in lines)])
        too_long = limits.text_line is not None and longest > limits.text_line
        return too_long or (bare and self.rules.bare_newline == "reject")

    def _bdat(self, line, argument):
        try:
            text = argument.decode()
        except UnicodeDecodeError:
            text = "?"
        match = _BDAT.fullmatch(text)
        limit = self.rules.limits.message_size
        far = limit is not None and match and int(match[1]) > FAR_BEYOND * limit
        if match is None or _CONTROL.search(text) or far:
            reply = self._take("BDAT")
            self._closed = True  # nobody knows what follows
            if reply.code < 400:
                raise OutOfStepError(f"{line!r} was accepted")
            return
        size, last = int(match[1]), (match[2] or "").upper() == "LAST"
        octets = self.octets[self._at : self._at + size]
        self._at += len(octets)
        if len(octets) < size:
            if self._replies:
                self._too_far()
        elif last and self._recipients:
            self._last_chunk(octets)
        else:
            self._chunk(octets)

    def _last_chunk(self, octets):
        content, bare = b"".join([*(self._chunks or []), octets]), False
        binary = _BINARY.search(_QUOTED.sub(b"", self._sender)) is not None
        if not binary:
            content, bare = split_newlines(content, self.rules.bare_newline)
        self._end(content, bare, binary)

    def _chunk(self, octets):
        reply = self._take("BDAT")
        if reply.code < 300:
            if not self._recipients:
                raise OutOfStepError("BDAT without a recipient was accepted")
            self._chunks = [*(self._chunks or []), octets]
        elif self._chunks is not None or " 5.3.4 " in reply.text:
            self._lost = True  # and all chunks that follow, until RSET
            self._chunks = [*(self._chunks or []), octets]
        elif self._recipients:
            self._forget()  # the transaction ends with its first chunk


EFFECTS = {
    "MAIL": Story._mail,
    "RCPT": Story._rcpt,
    "RSET": Story._reset,
    "HELO": Story._reset,
    "EHLO": Story._reset,
    "LHLO": Story._reset,
    "STARTTLS": Story._start_tls,
}
"""What a positive reply does."""
