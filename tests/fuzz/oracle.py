"""What must hold of every session: small named rules, each with its RFC section.

A rule gets a `Play`, the session under all its feedings, and gives what broke it, or ``None``.
"""

import base64
import re
from typing import Callable, Dict, List, NamedTuple, Optional

from smtpd_sync.states import ON_REFUSAL, TRANSITIONS, State

from .case import Case
from .driver import Run
from .grammar import PASSWORD, TOKEN
from .reference import BARE, JUNK, Story

STATUS = re.compile(r"[0-9]{3} ([245])\.[0-9]{1,3}\.[0-9]{1,3} ")
LINE = re.compile(rb"[2-5][0-9][0-9][ -][ -~]*")
SLACK = 64
"""Octets that a session may hold beyond a line: what could be the head of an end of mail data."""


class Play(NamedTuple):
    """One run of a session, and how it reads from outside."""

    case: Case
    run: Run
    story: Story


Rule = Callable[[Play], Optional[str]]
ORACLES: Dict[str, Rule] = {}


def oracle(rule: Rule) -> Rule:
    """Put a rule in the table."""
    ORACLES[rule.__name__] = rule
    return rule


# -- replies -------------------------------------------------------------------------------------


@oracle
def replies_are_well_formed(play):
    """RFC 5321 4.2 and 4.5.3.1.5: lines of 512 octets, ASCII, one code on each line."""
    if play.story.garbage:
        return f"no reply: {play.story.garbage!r}"
    for answer in play.story.answers:
        for line in answer.reply.octets.split(b"\r\n")[:-1]:
            if not LINE.fullmatch(line) or len(line) > 510:
                return f"no reply line: {line!r}"
            if int(line[:3]) != answer.reply.code:
                return f"two codes: {answer.reply.octets!r}"
    return None


@oracle
def statuses_fit_their_codes(play):
    """RFC 2034 4: the class of the code, on all but the greeting, HELO, EHLO, LHLO and 3yz."""
    for verb, reply, _ in play.story.answers:
        bare = verb in BARE or reply.code // 100 == 3
        if verb == "XCLIENT":
            continue  # its reply may be a greeting
        for line in reply.octets.decode("latin-1").replace("-", " ", 1).split("\r\n")[:-1]:
            match = STATUS.match(line[:3] + " " + line[4:])
            if (match is None) != bare or (match and int(match[1]) != reply.code // 100):
                return f"{verb or 'a line'}: {line!r}"
    return None


@oracle
def each_command_has_one_reply(play):
    """RFC 5321 4.2, RFC 2033 4.2 (LMTP: each recipient), RFC 3030 2 (each chunk)."""
    return play.story.out_of_step or None


@oracle
def nothing_follows_the_end(play):
    """RFC 5321 3.8 and 4.1.1.10: behind 221 and 421 there is nothing, and no input is heeded."""
    if play.run.afterwards:
        return f"said when it was over: {play.run.afterwards!r}"
    if play.run.end[0] is not State.CLOSED:
        return f"it ended in {play.run.end[0]!r}"
    answers = play.story.answers
    for number, (_, reply, last) in enumerate(answers[:-1]):
        follower = answers[number + 1]
        if reply.code in (221, 421) and (last or follower.verb != "message"):
            return f"{follower.reply.octets!r} behind {reply.octets!r}"
    return None


@oracle
def no_credential_is_shown(play):
    """RFC 4954 9: no password, in no form, goes back to anybody."""
    said = play.run.said
    for secret in SECRETS:
        if secret in said:
            return f"{secret!r} was said"
    for challenge in re.findall(rb"(?m)^334 ([A-Za-z0-9+/=]+)\r$", said):
        if PASSWORD.encode() in base64.b64decode(challenge):
            return f"{challenge!r} holds the password"
    return None


def _forms(text):
    octets = text.encode()
    yield octets
    # Base64 of it at each of three places in a group of octets, less what its neighbours change.
    yield from (
        base64.b64encode(b"x" * at + octets)[-(-at * 8 // 6) or None : -4] for at in (0, 1, 2)
    )


SECRETS = tuple(form for text in (PASSWORD, TOKEN) for form in _forms(text))

# -- mail ----------------------------------------------------------------------------------------


@oracle
def mail_goes_to_those_accepted(play):
    """RFC 5321 4.1.1.3: to each recipient that got a 2yz since MAIL, in order, and to no other."""
    for found, wanted in zip(play.run.deliveries, play.story.expected):
        sender = found.sender.encode()
        if (sender or b"<>") not in wanted.sender:
            return f"sender {sender!r} of {wanted.sender!r}"
        names = [name.encode() for name in found.recipients]
        if len(names) != len(wanted.recipients) or not names:
            return f"{names!r} for {wanted.recipients!r}"
        for name, line in zip(names, wanted.recipients):
            if name not in line:
                return f"recipient {name!r} of {line!r}"
    return None


@oracle
def mail_is_delivered_when_said(play):
    """RFC 5321 4.2.5 and 6.1: a 2yz at the end of mail data, and nothing else, is a delivery."""
    found, wanted = play.run.deliveries, play.story.expected
    if len(found) != len(wanted) and not play.story.out_of_step:
        return f"{len(found)} deliveries, the replies promise {len(wanted)}"
    return None


@oracle
def content_is_what_was_sent(play):
    """RFC 5321 4.5.2 and 2.3.8, RFC 3030: octet for octet as the reference decodes it."""
    for found, wanted in zip(play.run.deliveries, play.story.expected):
        if found.data != wanted.data:
            return f"{found.data!r}, not {wanted.data!r}"
    return None


FAULTS = re.compile(r"5[0-9][0-9] 5\.(?:3\.4|6\.11|6\.0) ")


@oracle
def faulty_mail_is_refused(play):
    """RFC 1870 6.3, RFC 5321 2.3.8 and 4.5.3.1.6: and none without a fault is."""
    for faulty, replies in play.story.verdicts:
        for reply in replies:
            if faulty and reply.code < 400:
                return f"faulty mail was told {reply.text!r}"
            if not faulty and FAULTS.match(reply.text):
                return f"mail without fault was told {reply.text!r}"
    return None


# -- bounds --------------------------------------------------------------------------------------


@oracle
def memory_is_bounded(play):
    """RFC 5321 4.5.3.1 bounds a line; beyond it and the last feed nothing is held."""
    bound = play.case.rules().longest_line + SLACK
    return f"{play.run.retained} octets held" if play.run.retained > bound else None


def _longest_row(play, counts):
    """Count the longest row of answers without a delivered message between them."""
    row = longest = 0
    delivered = False
    for answer in play.story.answers:
        delivered |= answer.verb == "message" and answer.reply.code < 400
        if answer.last and delivered:
            row, delivered = 0, False
        elif answer.last and not answer.reply.closes and counts(answer):
            row += 1
            longest = max(longest, row)
    return longest


@oracle
def errors_are_bounded(play):
    """RFC 5321 4.3.2 and 7.8: beyond `Limits.errors` refusals without a delivery it closes."""
    limit = play.case.limits["errors"]
    lines = _longest_row(play, lambda answer: answer.reply.code >= 500)
    closing_bdat = any(answer.verb == "BDAT" for answer in play.story.answers[-1:])
    return f"{lines} errors" if lines > limit + closing_bdat else None


@oracle
def junk_is_bounded(play):
    """RFC 5321 7.8: beyond `Limits.junk_commands` without a delivery it closes."""
    limit = play.case.limits["junk_commands"]
    lines = _longest_row(play, lambda answer: answer.verb in JUNK)
    return f"{lines} commands without mail" if lines > limit else None


@oracle
def guesses_are_bounded(play):
    """RFC 4954 9: beyond `Limits.auth_failures` failed exchanges it closes."""
    limit = play.case.limits["auth_failures"]
    count = sum(answer.reply.code == 535 for answer in play.story.answers)
    return f"{count} failures" if count > limit else None


# -- the state machine ---------------------------------------------------------------------------

SILENT = {
    *((before, State.AUTH) for before in TRANSITIONS["AUTH"]),
    *((before, State.NEW) for before in TRANSITIONS["XCLIENT"]),
    (State.RCPT, State.BDAT),
    (State.TLS, State.GREETED),
    (State.TLS, State.NEW),  # XCLIENT is the first that comes behind the handshake
}
"""Moves without a reply."""


@oracle
def moves_are_in_the_table(play):
    """RFC 5321 4.1.4: states change as TRANSITIONS and ON_REFUSAL say, and by nothing else."""
    here = State.NEW
    for move in play.run.moves:
        if move.before is not here and (here, move.before) not in SILENT:
            return f"from {here!r} to {move.before!r} without a reply"
        here = move.after
        wanted = move.before
        if move.event and move.code < 400:
            wanted = TRANSITIONS[move.verb].get(move.before)
        elif move.event:
            wanted = ON_REFUSAL.get(move.verb, move.before)
        if move.said in (221, 421):
            wanted = State.CLOSED
        if here is not wanted and not (move.verb == "message" and here is State.CLOSED):
            return f"{move!r}, the table says {wanted!r}"
    return None


@oracle
def tls_forgets_the_clear(play):
    """RFC 3207 4.2: nothing that came before the handshake is heeded behind it."""
    return "something is kept" if play.run.heard_in_clear else None


# -- feedings ------------------------------------------------------------------------------------


def feeding_is_no_matter(runs: List[Run]) -> Optional[str]:
    """RFC 5321 2.3.8 and 4.1.1: TCP has no messages; how octets come in pieces says nothing."""
    first = runs[0]
    for other in runs[1:]:
        for name in ("said", "deliveries", "moves", "end"):
            one, two = getattr(first, name), getattr(other, name)
            if one != two:
                return f"{name} {first.feeding}: {one!r}; {other.feeding}: {two!r}"
    return None
