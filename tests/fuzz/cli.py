"""The command line of the fuzzer."""

import argparse
import ast
import os
import pathlib
import re
import sys
import time

from . import core
from .case import make_case
from .driver import known_nonce

STEP = 1 << 32
"""Sessions of a run have the numbers seed * STEP, seed * STEP + 1, ..."""
PERIOD = 3.0
"""Seconds between two lines of progress."""


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def positive(kind):
    def read(text):
        value = kind(text)
        if not value > 0:
            raise ValueError(text)
        return value

    read.__name__ = f"positive {kind.__name__}"
    return read


def number(text):
    value = int(text)
    if not 0 <= value < STEP:
        raise ValueError(text)
    return value


number.__name__ = "number from 0 to 2**32 - 1"


def parser():
    made = Parser(
        prog="fuzz",
        description="Plays random SMTP sessions and checks what must hold of each.",
        epilog="Exit status: 0 nothing found, 1 findings, 2 wrong use.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("--seconds", type=positive(float), default=60.0, help="how long")
    add("--sessions", type=positive(int), help="how many at most")
    add("--seed", type=number, help="of the run; from the system's chance if not given")
    add("--sockets", action="store_true", help="play over real sockets, too")
    add("--differential", action="store_true", help="compare with aiosmtpd, and nothing else")
    add(
        "--replay",
        metavar="FILE|SEED",
        help="play one session again: its number, or a file with a bytes literal of what is said",
    )
    return made


class Run:
    """Counts sessions and findings, and says how it goes."""

    def __init__(self, seed, seconds, sessions):
        self.seed, self.limit = seed, sessions
        self.findings = 0
        self.count = 0
        self.kinds = set()
        self.started = self._said = time.monotonic()
        self.end = self.started + seconds

    def seeds(self):
        """Give the numbers of sessions until it is time to stop."""
        while time.monotonic() < self.end and (self.limit is None or self.count < self.limit):
            yield self.seed * STEP + self.count
            self.count += 1
            if time.monotonic() - self._said > PERIOD:
                self._said = time.monotonic()
                print(self, file=sys.stderr, flush=True)

    def found(self, finding, again):
        """Show a finding; the first of each rule is made as small as can be."""
        self.findings += 1
        if finding.rule not in self.kinds:
            self.kinds.add(finding.rule)
            finding = core.shrink(finding, again)
        print(finding, flush=True)

    def __str__(self):
        rate = self.count / max(time.monotonic() - self.started, 1e-6)
        return f"{self.count} sessions, {rate:.0f}/s, {self.findings} findings"


def fuzz_core(run):
    for seed in run.seeds():
        finding = core.fuzz(seed)
        if finding is not None:
            run.found(finding, core.check)


def fuzz_sockets(run):
    from . import sockets

    with sockets.Arena() as arena:
        for seed in run.seeds():
            case = make_case(seed)
            finding = core.check(case) or arena.check(case)
            if finding is not None:
                run.found(finding, lambda case: core.check(case) or arena.check(case))
    leaks = arena.leaks()
    if leaks:
        run.findings += 1
        print(f"finding: nothing_is_left (sockets)\n  what:    {leaks}")


def fuzz_differential(run):
    from . import differential

    with differential.Pair() as pair:
        try:
            for seed in run.seeds():
                finding = pair.check(differential.make_case(seed))
                if finding is not None:
                    run.found(finding, pair.check)
        finally:
            print(pair.table(), flush=True)


def replay(what, args):
    """Play one session again, and show what is said; give the exit status."""
    if re.fullmatch("[0-9]+", what):
        seed, steps = int(what), None
    else:
        seed, steps = 0, ast.literal_eval(pathlib.Path(what).read_text("utf-8").strip())
        if not isinstance(steps, bytes):
            raise ValueError(f"{what} holds no bytes literal")
    if args.differential:
        from . import differential

        with differential.Pair(verbose=True) as pair:
            case = differential.make_case(seed)
            finding = pair.check(case if steps is None else case._replace(steps=(steps,)))
    else:
        case = make_case(seed)
        case = case if steps is None else case._replace(steps=(steps,))
        core.show(case)
        finding = core.check(case)
        if finding is None and args.sockets:
            from . import sockets

            with sockets.Arena() as arena:
                finding = arena.check(case)
    print(finding or "no finding")
    return int(finding is not None)


def missing(args):
    """Say what is not installed that is asked for."""
    if not args.differential:
        return ""
    try:
        import aiosmtpd.controller  # noqa: F401
    except ImportError:
        return "aiosmtpd is not installed: pip install aiosmtpd"
    return ""


def main(arguments=None):
    """Run; give the exit status."""
    made = parser()
    args = made.parse_args(arguments)
    why = missing(args)
    if why:
        made.error(why)
    with known_nonce():
        if args.replay is not None:
            try:
                return replay(args.replay, args)
            except (OSError, ValueError, SyntaxError) as error:
                made.error(f"--replay: {error}")
        seed = int.from_bytes(os.urandom(4), "big") if args.seed is None else args.seed
        run = Run(seed, args.seconds, args.sessions)
        play = fuzz_core
        if args.differential:
            play = fuzz_differential
        elif args.sockets:
            play = fuzz_sockets
        try:
            print(f"seed {seed}", flush=True)
            play(run)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
        print(run, flush=True)
    return int(run.findings > 0)
