#!/usr/bin/env python3
"""How fast and how lean the server is, beside its peers, over loopback.

All servers accept and discard. Those that share a load run at the same time and are driven in turn;
compare the ratios, inside one run only: the rest tells more of the machine. Ours runs as "default",
"adaptive" (cpu_affinity) and "workers" (two processes). Peers that are missing are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import platform
import resource
import signal
import sys
from typing import Any, Callable, List, NoReturn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from driving import LEFT_OUT, PLANS, certificate, generator, measure
from figures import BARE, TARGETS, Figures, check, plot, tables
from servers import SERVERS, Failure

EPILOGUE = """loads: {}
servers: {}
exit status: 0, or 1 where a target is missed or a server failed, or 2 where it cannot be run"""


def several(known: List[str]) -> Callable[[str], Any]:
    """Give a type for names with commas between them."""

    def names(text: str) -> List[str]:
        for name in text.split(","):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return [name for name in known if name in text.split(",")]

    return names


def positive(kind: type) -> Callable[[str], Any]:
    """Give a type for numbers above 0."""

    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    number.__name__ = f"number above 0 ({kind.__name__})"
    return number


def picture(text: str) -> pathlib.Path:
    """Read the name of a plot."""
    path = pathlib.Path(text)
    if path.suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end with .svg or .png")
    return path


def fail(status: int, message: object) -> NoReturn:
    """End with one line."""
    print(f"run.py: {message}", file=sys.stderr)
    sys.exit(status)


class Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        fail(2, f"{message} (see --help)")


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        description=__doc__,
        epilog=EPILOGUE.format(" ".join(PLANS), " ".join(SERVERS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", type=several(list(PLANS)), metavar="LOAD,...", help="loads (default: all)")
    add("--servers", type=several(list(SERVERS)), metavar="NAME,...", help="(default: all present)")
    add("--rounds", type=positive(int), default=5, metavar="N", help="(default: 5)")
    add("--seconds", type=positive(float), default=1.0, metavar="S", help="of one (default: 1)")
    add(
        "--check",
        action="store_true",
        help="compare with the targets; exit with 1 if one is missed",
    )
    add("--plot", type=picture, metavar="FILE", help="draw the throughput (.svg or .png)")
    add("--json", type=pathlib.Path, metavar="FILE", help="write the figures of all rounds")
    add("--list", action="store_true", help="list the servers, and how to install what is missing")
    return parser.parse_args()


def list_servers() -> None:
    """Print what is here, and how to get what is not."""
    for name, kind in SERVERS.items():
        print(f"{name:10} {'present' if kind.present() else f'missing: {kind.install}'}")


def choose_servers(options: argparse.Namespace) -> List[str]:
    """Give the servers that are here; those that must be, and are not, are an error."""
    names = options.servers or list(SERVERS)
    there = {None, BARE, *names}
    if options.check and not any(
        target.load in (options.only or PLANS) and there >= {target.server, target.other}
        for target in TARGETS
    ):
        raise Failure("--check: there is no target for these loads and servers")
    missing = [name for name in names if not SERVERS[name].present()]
    compared = {target.other for target in TARGETS} if options.check else set()
    for name in missing:
        if options.servers or name in compared:
            raise Failure(f"{name} is missing: {SERVERS[name].install}")
        print(f"{name} is missing: {SERVERS[name].install}", file=sys.stderr)
    return [name for name in names if name not in missing]


def choose_loads(options: argparse.Namespace) -> List[str]:
    """Give the loads that can be made here; those that must be, and cannot, are an error."""
    loads = options.only or list(PLANS)
    if set(loads) <= {"start", "import"}:
        return loads
    generator()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    troubles = {}
    for load in loads:
        plan = PLANS[load]
        if files < 2 * plan.hold + 200:
            troubles[load] = f"needs {2 * plan.hold + 200} open files: ulimit -Hn tells {files}"
        if (plan.hold or load == "growth") and not pathlib.Path("/proc/self/status").exists():
            troubles[load] = "needs /proc to read memory from"
        if plan.ability == "tls":
            try:
                generator(tls=True)
                certificate()
            except Failure as failure:
                troubles[load] = str(failure)
    for load, trouble in troubles.items():
        if options.only or options.check:
            raise Failure(f"{load}: {trouble}")
        print(f"{load} is left out: {trouble}", file=sys.stderr)
    return [load for load in loads if load not in troubles]


def tell(turn: int, rounds: int, load: str, name: str) -> None:
    """Show how far it is."""
    line = f"round {turn} of {rounds}: {load}, {name}"
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


def report(options: argparse.Namespace, figures: Figures) -> int:
    """Print what was measured; give the exit status."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    system = f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()}"
    caption = f"{system}; medians of {options.rounds} rounds"
    order = [*SERVERS, BARE]  # whoever was measured first
    ordered = {
        load: {name: cell[name] for name in order if name in cell} for load, cell in figures.items()
    }
    print(f"{caption}\nname/: how many times this server's figure that of `name` is\n")
    print(tables(ordered) + "\n")
    for (name, load), reason in LEFT_OUT.items():
        if load in (options.only or PLANS) and name in (options.servers or SERVERS):
            print(f"{name} is left out of {load}: {reason}")
    if options.json:
        settings = {"rounds": options.rounds, "seconds": options.seconds}
        text = json.dumps({"system": system, **settings, "figures": ordered}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    if options.plot:
        plot(ordered, options.plot, caption)
    if not options.check:
        return 0
    verdicts = check(figures)
    for verdict in verdicts:
        print(verdict)
    missed = sum(not verdict.met for verdict in verdicts)
    print(f"{missed} of {len(verdicts)} targets missed")
    return 1 if missed else 0


def interrupt(number: int, frame: object) -> NoReturn:
    """Be ended as by Ctrl-C, which stops the servers."""
    raise KeyboardInterrupt


def main() -> int:
    """Measure, and print; give the exit status."""
    options = read_options()
    if options.list:
        list_servers()
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    figures: Figures = {}

    def record(load: str, name: str, figure: float) -> None:
        figures.setdefault(load, {}).setdefault(name, []).append(figure)

    try:
        if options.plot and importlib.util.find_spec("matplotlib") is None:
            raise Failure(f"--plot: {sys.executable} -m pip install matplotlib")
        for path in filter(None, (options.plot, options.json)):
            if not path.absolute().parent.is_dir():
                raise Failure(f"{path}: there is no such directory")
        names, loads = choose_servers(options), choose_loads(options)
    except Failure as failure:
        fail(2, failure)
    try:
        measure(loads, names, options.rounds, options.seconds, record, tell)
        return report(options, figures)
    except Failure as failure:
        fail(1, failure)
    except OSError as error:
        fail(2, error)
    except KeyboardInterrupt:
        fail(2, "interrupted")


if __name__ == "__main__":
    sys.exit(main())
