"""The measurements: each drives servers and gives one figure of each for a round."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

from figures import BARE
from servers import HERE, SERVERS, Failure, Options, Server, cache, environment, running

MIB = 1_048_576
BIG = 50 * MIB
HANGS_AFTER = 60.0  # seconds beyond those of the measurement; a peer of 100 clients may be slow


class Plan(NamedTuple):
    """How a load is measured."""

    arguments: str = ""
    """Of the generator."""
    ability: str = ""
    """What a server must be able to do: ``tls`` or ``slow``."""
    hold: int = 0
    """Idle connections."""
    rounds: float = 1
    """Times the rounds that were asked for."""


PLANS: Dict[str, Plan] = {
    "c1": Plan("-c 1"),
    "c20": Plan("-c 20"),
    "c100": Plan("-c 100"),
    "many": Plan("-c 20 -m 50"),
    "pipelined": Plan("-c 20 -m 50 -g"),
    "100k": Plan("-c 20 -m 10 -s 102400"),
    "10m": Plan("-c 1 -m 4 -s 10485760"),
    "10m2": Plan("-c 2 -m 4 -s 10485760"),
    "tls": Plan("-c 8 -e", ability="tls"),
    "slow": Plan("-c 100 -m 20", ability="slow"),
    "idle1000": Plan(hold=1000, rounds=0.5),
    "idle5000": Plan(hold=5000, rounds=0.5),
    "growth": Plan(rounds=0.5),
    "start": Plan(rounds=4),
    "import": Plan(rounds=4),
}
SLOW_LINES = "it takes minutes for one message"
LEFT_OUT = {("tcllib", load): SLOW_LINES for load in ("10m", "10m2", "growth")}
LEFT_OUT["tcllib", "idle5000"] = "Tcl waits with select(), for at most 1,024 descriptors"


# -- the generator -------------------------------------------------------------------------------


def compiler() -> str:
    """Give the C compiler, which has to be there."""
    if not sys.platform.startswith("linux"):
        raise Failure("the load generator needs Linux (epoll)")
    found = shutil.which("cc")
    if found is None:
        raise Failure("the load generator needs a C compiler, cc: apt-get install gcc libc6-dev")
    return found


@functools.cache
def generator(tls: bool = False) -> str:
    """Compile the load generator, once for each of its versions; give its path."""
    source = HERE / "load.c"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    program = cache() / f"load{'-tls' if tls else ''}-{digest}"
    if not program.exists():
        made = program.with_suffix(f".{os.getpid()}")
        command = [compiler(), "-O2", "-o", str(made), str(source)]
        if tls:
            command += ["-DTLS", "-lssl", "-lcrypto"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            first = (done.stderr.strip().splitlines() or ["it does not say why"])[0]
            hint = "apt-get install libssl-dev" if tls else "apt-get install libc6-dev"
            raise Failure(f"cc cannot compile {source.name} ({first}); try: {hint}")
        made.replace(program)  # whole, or not at all
    return str(program)


def _judged(name: str, what: str, output: str) -> Dict[str, Any]:
    """Read what the generator tells; a reply that is wrong is the end of it all."""
    lines = output.strip().splitlines()
    told: Dict[str, Any] = json.loads(lines[-1]) if lines else {}
    if told.get("errors") != 0:
        why = told.get("first_error", "the generator failed")
        raise Failure(f"{name}, {what}: {told.get('errors', 1)} errors, the first: {why}")
    return told


def drive(server: Server, arguments: str, tls: bool = False) -> Dict[str, Any]:
    """Run the generator against a server; give what it tells."""
    words = ["-p", str(server.port), "-w", str(HANGS_AFTER), *arguments.split()]
    done = subprocess.run([generator(tls), *words], stdout=subprocess.PIPE, text=True)
    return _judged(server.name, arguments, done.stdout)


@contextlib.contextmanager
def holding(server: Server, count: int) -> Iterator[None]:
    """Hold idle connections."""
    words = ["-p", str(server.port), "-w", str(HANGS_AFTER), "-i", str(count)]
    process = subprocess.Popen(
        [generator(), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        if first.strip() != "ready":
            _judged(server.name, f"{count} idle connections", first)
        yield
        process.stdin.close()
        _judged(server.name, f"{count} idle connections", process.stdout.read())
    finally:
        process.kill()
        process.wait()


# -- the figures of a round ----------------------------------------------------------------------


def certificate() -> Options:
    """Make a certificate for localhost, once."""
    cert, key = cache() / "cert.pem", cache() / "key.pem"
    if not cert.exists():
        if shutil.which("openssl") is None:
            raise Failure("STARTTLS needs a certificate: apt-get install openssl")
        command = "openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=localhost"
        made = cert.with_suffix(f".{os.getpid()}")
        files = ["-keyout", str(key), "-out", str(made)]
        subprocess.run([*command.split(), *files], check=True, capture_output=True)
        made.replace(cert)
    return {"cert": str(cert), "key": str(key)}


def options_of(ability: str) -> Options:
    """Give the options of servers that are to do something special."""
    if ability == "tls":
        return certificate()
    return {"slow": "1"} if ability == "slow" else {}


def idle(name: str, count: int, seconds: float) -> Dict[str, float]:
    """Measure a server with idle connections: KiB of one, and ms of a new client's session."""
    with running([name], {}) as started:
        server = started[name]
        drive(server, "-c 20 -n 40")
        before = server.memory("VmRSS")
        with holding(server, count):
            kib = (server.memory("VmRSS") - before) / count
            told = drive(server, f"-c 1 -t {seconds}")
    return {"": kib, "-new": told["p50"]}


def growth(name: str) -> float:
    """Give how many times the size of a message its server grows."""
    with running([name], {}) as started:
        server = started[name]
        drive(server, "-c 1 -n 5")
        before = server.memory("VmHWM")
        drive(server, f"-c 1 -n 1 -s {BIG}")
        return (server.memory("VmHWM") - before) * 1024 / BIG


def start(name: str) -> float:
    """Give the ms from the start of a server, or of Python alone, to the banner or the end."""
    if name == BARE:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], env=environment(), check=True)
        return (time.perf_counter() - began) * 1e3
    with running([name], {}) as started:
        return started[name].seconds_to_banner * 1e3


IMPORTS = {
    "default": "from smtpd_sync import SMTPServer",  # the package alone imports nothing
    "aiosmtpd": "import aiosmtpd.controller",
    BARE: "import socketserver, ssl",
}


def import_time(name: str) -> float:
    """Give the ms that an import takes in a new process."""
    program = (
        "import time; began = time.perf_counter();"
        f"{IMPORTS[name]}; print((time.perf_counter() - began) * 1e3)"
    )
    root = pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment(), "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return float(done.stdout)


# -- rounds --------------------------------------------------------------------------------------

Record = Callable[[str, str, float], None]
Tell = Callable[[int, int, str, str], None]


def takes_part(name: str, load: str) -> bool:
    """Tell whether a server can be measured under a load."""
    plan = PLANS[load]
    if load == "import":
        return name in IMPORTS
    if (name, load) in LEFT_OUT:
        return False
    return not plan.ability or plan.ability in SERVERS[name].abilities


def rounds_of(load: str, rounds: int) -> int:
    """Give the rounds of a load, of which some take long and others next to nothing."""
    return max(1, round(PLANS[load].rounds * rounds))


def _in_turn(names: List[str], turn: int) -> List[str]:
    """Begin from the other end each time: a machine that gets slower favours nobody."""
    return names[::-1] if turn % 2 else names


def measure(
    loads: List[str], names: List[str], rounds: int, seconds: float, record: Record, tell: Tell
) -> None:
    """Measure servers under loads, in turn, round by round."""
    for ability in ("", "tls", "slow"):
        together = [load for load in loads if PLANS[load].arguments]
        together = [load for load in together if PLANS[load].ability == ability]
        able = [name for name in names if any(takes_part(name, load) for load in together)]
        if able:
            _together(together, able, ability, rounds, seconds, record, tell)
    for load in [load for load in loads if not PLANS[load].arguments]:
        _alone(load, names, rounds, seconds, record, tell)


def _together(
    loads: List[str],
    names: List[str],
    ability: str,
    rounds: int,
    seconds: float,
    record: Record,
    tell: Tell,
) -> None:
    """Measure servers that run all the time, and are idle but for one."""
    tls = ability == "tls"
    with running(names, options_of(ability)) as servers:
        for name in names:
            drive(servers[name], f"-c 5 -t {min(seconds, 0.3)}" + " -e" * tls, tls)  # warms up
        for turn in range(rounds):
            for load in loads:
                for name in _in_turn([n for n in names if takes_part(n, load)], turn):
                    tell(turn + 1, rounds, load, name)
                    told = drive(servers[name], f"{PLANS[load].arguments} -t {seconds}", tls)
                    record(load, name, told["rate"])


def _alone(
    load: str, names: List[str], rounds: int, seconds: float, record: Record, tell: Tell
) -> None:
    """Measure servers that are started for it, one after the other."""
    able = [name for name in names if takes_part(name, load)]
    alone: Optional[Callable[[str], float]]
    alone = {"growth": growth, "start": start, "import": import_time}.get(load)
    if load in ("start", "import"):
        able.append(BARE)
    count = rounds_of(load, rounds)
    for name in able:
        if load in ("start", "import"):
            alone(name)  # the first one compiles, and fills the page cache
    for turn in range(count):
        for name in _in_turn(able, turn):
            tell(turn + 1, count, load, name)
            if alone is not None:
                record(load, name, alone(name))
                continue
            for ending, figure in idle(name, PLANS[load].hold, seconds).items():
                record(load + ending, name, figure)
