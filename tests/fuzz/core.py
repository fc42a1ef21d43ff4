"""Plays sessions without sockets, under every feeding, and asks the oracles."""

import random
import time
import traceback
from typing import NamedTuple, Optional

from smtpd_sync.session import Session

from .case import Case, make_case
from .driver import play
from .feedings import FORGIVING, STRICT
from .oracle import ORACLES, Play, feeding_is_no_matter
from .reference import Story

SHRINKS = 600
"""Attempts at most to make a finding smaller ..."""
PATIENCE = 30.0
"""... and seconds."""


class Finding(NamedTuple):
    """A rule that does not hold."""

    seed: int
    rule: str
    what: str
    case: Case
    where: str = "core"

    def __str__(self):
        shown = self.what if len(self.what) < 1500 else f"{self.what[:1500]} ..."
        flag = "" if self.where == "core" else f"--{self.where} "
        set_options = {name: value for name, value in self.case.options.items() if value}
        set_options["extensions"] = bool(set_options.get("extensions"))
        return "\n".join(
            (
                f"finding: {self.rule} ({self.where})",
                f"  replay:  {flag}--replay {self.seed}",
                f"  what:    {shown}",
                f"  options: {set_options} inside={self.case.inside!r} {self.case.owner}",
                f"  limits:  {self.case.limits}",
                f"  bytes:   {self.case.octets!r}",
            )
        )


def check(case: Case, base=Session, also_rude=True) -> Optional[Finding]:
    """Play a session under every feeding; give the first rule that does not hold."""
    strict = case.options["strict_pipelining"]
    runs = []
    for feeding in STRICT if strict else FORGIVING:
        broken = _check_run(case, feeding, base, runs)
        if broken is not None:
            return broken
    what = feeding_is_no_matter(runs)
    if what is not None:
        return Finding(case.seed, "feeding_is_no_matter", what, case)
    if strict or b"STARTTLS" in case.octets:
        return _check_run(case, "rude", base, [])
    return None


def _check_run(case, feeding, base, runs):
    try:
        run = play(case, feeding, random.Random(case.seed), base)
    except Exception:
        return Finding(case.seed, "nothing_is_raised", traceback.format_exc(), case)
    # The reading from outside is slow, and what is equal reads the same.
    if not runs or run.said != runs[0].said or run.deliveries != runs[0].deliveries:
        this = Play(case, run, Story(case.rules(), run.pieces, run.said))
        rules = (*OF_EACH_RUN, *(name for name in ORACLES if name not in OF_EACH_RUN))
    else:
        this = Play(case, run, None)
        rules = OF_EACH_RUN
    runs.append(run)
    for name in rules:
        what = ORACLES[name](this)
        if what is not None:
            return Finding(case.seed, name, f"fed {feeding}: {what}", case)
    return None


OF_EACH_RUN = ("memory_is_bounded", "tls_forgets_the_clear", "moves_are_in_the_table")


def shrink(finding: Finding, check_case) -> Finding:
    """Drop steps, and then octets, while the same rule stays broken."""
    best, left = finding, SHRINKS
    give_up = time.monotonic() + PATIENCE
    for size in ("steps", 64, 16, 4, 1):
        at = 0
        while left > 0 and time.monotonic() < give_up:
            smaller = _without(best.case, size, at)
            if smaller is None:
                break
            left -= 1
            found = check_case(smaller)
            if found is not None and found.rule == finding.rule:
                best = found
            else:
                at += 1
    return best


def _without(case, size, at):
    if size == "steps":
        if at >= len(case.steps):
            return None
        return case._replace(steps=case.steps[:at] + case.steps[at + 1 :])
    octets, start = case.octets, at * size
    if start >= len(octets):
        return None
    return case._replace(steps=(octets[:start] + octets[start + size :],))


def fuzz(seed: int, base=Session) -> Optional[Finding]:
    """Play the session of a number."""
    return check(make_case(seed), base)


def show(case: Case) -> None:
    """Print what is said in a session, line by line."""
    print(Finding(case.seed, "replay", "a session", case))
    run = play(case, "lines", random.Random(case.seed))
    story = Story(case.rules(), run.pieces, run.said)
    for piece in run.pieces:
        print(f"C: {piece!r}")
    for answer in story.answers:
        print(f"S: {answer.verb or '?'}: {answer.reply.octets!r}")
    for delivery in run.deliveries:
        print(f"D: {delivery!r}")
    print(f"end: {run.end!r} {story.out_of_step}")
