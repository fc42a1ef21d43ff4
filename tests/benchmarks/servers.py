"""The servers of the benchmark: how each is started, what it can do, how it is installed.

Each is a process group of its own on a free port of loopback, and is killed as a group.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional

HERE = pathlib.Path(__file__).resolve().parent
PEERS = HERE / "peers"
PATIENCE = 20.0
SINK_PLACES = ("/usr/sbin", "/usr/libexec/postfix", "/usr/lib/postfix/sbin")

Options = Dict[str, str]


def cache() -> pathlib.Path:
    """Give the directory for what is made once: the generator, a certificate, npm's packages."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    directory = pathlib.Path(base) / "smtpd-sync-benchmark"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def environment() -> Dict[str, str]:
    """Give the environment of a server; ``npm install --prefix`` puts modules into our cache."""
    paths = [str(cache() / "node_modules"), os.environ.get("NODE_PATH", "")]
    variables = {**os.environ, "NODE_PATH": os.pathsep.join(filter(None, paths))}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)  # it would have each start compile our modules
    return variables


def _works(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=PATIENCE)
    return done.returncode == 0


def _have_aiosmtpd() -> bool:
    return importlib.util.find_spec("aiosmtpd") is not None


@functools.cache
def _old_python() -> Optional[str]:
    """Find a Python that has smtpd: this one or another of the system."""
    for name in (sys.executable, "python3.11", "python3.10", "python3.9"):
        if _works(name, "-W", "ignore", "-c", "import smtpd"):
            return name
    return None


@functools.cache
def _sink() -> Optional[str]:
    return shutil.which("smtp-sink", path=os.pathsep.join((os.environ["PATH"], *SINK_PLACES)))


def _have_tcllib() -> bool:
    return _works("tclsh", str(PEERS / "tcllib.tcl"), "probe")


def _have_nodemailer() -> bool:
    return _works("node", str(PEERS / "nodemailer.js"), "probe")


def _run_sink(port: int) -> List[str]:
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    return [str(_sink()), *user, "-m", "10000", f"127.0.0.1:{port}", "4096"]


def _run_python(script: str) -> Callable[[int], List[str]]:
    return lambda port: [sys.executable, str(PEERS / script), str(port)]


class Kind(NamedTuple):
    """A server as such."""

    command: Callable[[int], List[str]]
    present: Callable[[], object]
    install: str
    abilities: frozenset[str] = frozenset()
    """Of ``tls`` and ``slow``."""
    options: Options = {}


def _ours(**options: str) -> Kind:
    return Kind(_run_python("ours.py"), lambda: True, "", frozenset({"tls", "slow"}), options)


SERVERS: Dict[str, Kind] = {
    "default": _ours(),
    "adaptive": _ours(cpu_affinity="adaptive"),
    "workers": _ours(workers="2"),
    "aiosmtpd": Kind(
        _run_python("aiosmtpd_peer.py"),
        _have_aiosmtpd,
        f"{sys.executable} -m pip install aiosmtpd",
        frozenset({"tls", "slow"}),
    ),
    "smtpd": Kind(
        lambda port: [
            *(str(_old_python()), "-W", "ignore"),
            *(str(PEERS / "smtpd_peer.py"), str(port)),
        ],
        _old_python,
        "uv python install 3.11 (the last Python that has it)",
        frozenset({"slow"}),
    ),
    "tcllib": Kind(
        lambda port: ["tclsh", str(PEERS / "tcllib.tcl"), str(port)],
        _have_tcllib,
        "apt-get install tcl tcllib",
    ),
    "nodemailer": Kind(
        lambda port: ["node", str(PEERS / "nodemailer.js"), str(port)],
        _have_nodemailer,
        f"npm install --prefix {shlex.quote(str(cache()))} smtp-server",
        frozenset({"tls"}),
    ),
    "smtp-sink": Kind(_run_sink, _sink, "apt-get install postfix"),
}


class Failure(Exception):
    """A measurement that cannot be had: one line."""


def free_port() -> int:
    """Give a port of loopback that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Server:
    """A server that runs."""

    def __init__(self, name: str, options: Options) -> None:
        self.name = name
        for _ in range(3):  # the port may have been taken meanwhile
            self.port = free_port()
            if self._start(options):
                return
        raise Failure(f"{name} does not start: {self._last_words() or 'it says nothing'}")

    def _start(self, options: Options) -> bool:
        kind = SERVERS[self.name]
        words = [f"{key}={value}" for key, value in {**kind.options, **options}.items()]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._greeted = began = time.perf_counter()
        self.process = subprocess.Popen(
            kind.command(self.port) + words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env=environment(),
            start_new_session=True,
        )
        try:
            up = self._greets(began + PATIENCE)
            self.seconds_to_banner = self._greeted - began
        except BaseException:
            self.stop()
            raise
        if not up:
            self.stop()
        return up

    def _greets(self, give_up: float) -> bool:
        while self.process.poll() is None and time.perf_counter() < give_up:
            try:
                with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as client:
                    if client.recv(512).startswith(b"220"):
                        self._greeted = time.perf_counter()
                        client.sendall(b"QUIT\r\n")
                        client.recv(512)
                        return True
            except OSError:
                pass
            time.sleep(0.001)
        return False

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def memory(self, field: str) -> int:
        """Add up a field of /proc/*/status of all its processes, in KiB."""
        total = 0
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if os.getpgid(int(entry.name)) != self.process.pid:
                    continue
                for line in (entry / "status").read_text().splitlines():
                    if line.startswith(field + ":"):
                        total += int(line.split()[1])
        return total

    def stop(self) -> None:
        """End it, and all processes of its group."""
        with quiet_signals():
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(2)


@contextlib.contextmanager
def quiet_signals() -> Iterator[None]:
    """Be deaf to Ctrl-C and the like while something is cleaned up."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


@contextlib.contextmanager
def running(names: List[str], options: Options) -> Iterator[Dict[str, Server]]:
    """Start some servers; none of them is left behind."""
    started: Dict[str, Server] = {}
    try:
        for name in names:
            started[name] = Server(name, options)
        yield started
    finally:
        with quiet_signals():
            for server in started.values():
                server.stop()
