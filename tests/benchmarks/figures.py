"""What is made of the figures that were measured: medians, ratios, tables, targets and the plot.

Figures are ``{load: {server: [one of each round]}}``. A ratio of two servers is the median of the
ratios of the rounds, since neighbours in time had the same machine. Knows no server and no socket.
"""

from __future__ import annotations

import pathlib
import statistics
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

Figures = Dict[str, Dict[str, List[float]]]

OURS = ("default", "adaptive", "workers")
BARE = "bare"  # what Python alone takes, where that is what to compare with
RATE = "messages/s"

TITLES: Dict[str, Tuple[str, str]] = {
    "c1": ("a connection for each message, 1 client", RATE),
    "c20": ("a connection for each message, 20 clients", RATE),
    "c100": ("a connection for each message, 100 clients", RATE),
    "many": ("50 messages of a connection, 20 clients", RATE),
    "pipelined": ("50 messages of a connection, pipelined, 20 clients", RATE),
    "100k": ("10 messages of 100 KiB of a connection, 20 clients", RATE),
    "10m": ("4 messages of 10 MiB of a connection, 1 client", RATE),
    "10m2": ("4 messages of 10 MiB of a connection, 2 clients", RATE),
    "tls": ("a STARTTLS session for each message, 8 clients", RATE),
    "slow": ("a hook that blocks 20 ms, 20 messages of a connection, 100 clients", RATE),
    "idle1000": ("1,000 idle connections", "KiB RSS of a connection"),
    "idle1000-new": ("1,000 idle connections: a new client", "ms of its session"),
    "idle5000": ("5,000 idle connections", "KiB RSS of a connection"),
    "idle5000-new": ("5,000 idle connections: a new client", "ms of its session"),
    "growth": ("a message of 50 MiB", "times its size that the process grew"),
    "start": (f"start to banner ({BARE}: python -c pass)", "ms"),
    "import": (f"import ({BARE}: import socketserver, ssl)", "ms"),
}
THROUGHPUT = [name for name, (_, unit) in TITLES.items() if unit == RATE]


class Target(NamedTuple):
    """What ``--check`` asks of a cell: a figure of ours, or its ratio to that of ``other``."""

    load: str
    server: str
    other: Optional[str]
    bound: float
    at_most: bool = False


def _at_least(other: str, server: str, **bounds: float) -> List[Target]:
    return [Target(load.lstrip("_"), server, other, bound) for load, bound in bounds.items()]


TARGETS: List[Target] = [
    *_at_least("aiosmtpd", "default", c1=4, c20=1.3, c100=1.2, many=1.4, pipelined=2.2),
    *_at_least("aiosmtpd", "default", _100k=4, _10m=9, tls=1.5, slow=50),
    *_at_least("aiosmtpd", "adaptive", c1=4, c20=2.2, c100=2.2, many=3, pipelined=4.3),
    *_at_least("aiosmtpd", "adaptive", _100k=6, _10m=9, tls=1.7, slow=70),
    *_at_least("aiosmtpd", "workers", c1=3, c20=4, c100=3.5, many=5.5, pipelined=8.5),
    *_at_least("aiosmtpd", "workers", _100k=11, _10m2=15, tls=2.1),
    *_at_least("smtp-sink", "workers", c20=0.7, c100=0.6, many=0.75, pipelined=0.8),
    *_at_least("smtp-sink", "workers", _100k=1.4, _10m=1.05),
    Target("idle5000", "default", None, 22, at_most=True),
    Target("growth", "default", None, 1.1, at_most=True),
    Target("start", "default", BARE, 2.5, at_most=True),
    Target("import", "default", BARE, 1.6, at_most=True),
]


class Verdict(NamedTuple):
    """A target, what was measured, and whether that is good enough."""

    target: Target
    figure: float
    met: bool

    def __str__(self) -> str:
        load, server, other, bound, at_most = self.target
        what = f"{server} / {other}" if other else server
        side = "at most" if at_most else "at least"
        mark = "ok    " if self.met else "MISSED"
        return f"{mark} {load:10} {what:22} {self.figure:8.2f} (target: {side} {bound:g})"


def ratio(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """Give the median of the ratios of the rounds."""
    return statistics.median(m / t if t else float("inf") for m, t in zip(mine, theirs))


def check(figures: Figures) -> List[Verdict]:
    """Compare with the targets; those of which nothing was measured are left out."""
    verdicts = []
    for target in TARGETS:
        cell = figures.get(target.load, {})
        mine, theirs = cell.get(target.server), cell.get(target.other or target.server)
        if not mine or not theirs:
            continue
        figure = ratio(mine, theirs) if target.other else statistics.median(mine)
        met = figure <= target.bound if target.at_most else figure >= target.bound
        verdicts.append(Verdict(target, figure, met))
    return verdicts


def _number(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _table(load: str, cell: Dict[str, List[float]]) -> List[str]:
    ours = [name for name in OURS if name in cell]
    title, unit = TITLES[load]
    heads = "".join(f"{name + '/':>11}" for name in ours)
    lines = [f"{load}: {title}", f"{unit:<38}median{'range':>18}{heads}"]
    for name, values in cell.items():
        span = f"{_number(min(values))}-{_number(max(values))}"
        ratios = "".join(f"{ratio(cell[mine], values):11.2f}" for mine in ours)
        lines.append(f"  {name:<30}{_number(statistics.median(values)):>12}{span:>18}{ratios}")
    return lines


def tables(figures: Figures) -> str:
    """Give a table for each load: medians, ranges, and our ratios to each server."""
    blocks = [_table(load, figures[load]) for load in TITLES if figures.get(load)]
    return "\n\n".join("\n".join(lines) for lines in blocks)


def plot(figures: Figures, path: pathlib.Path, caption: str) -> None:
    """Draw the throughput of all, relative to aiosmtpd's (or to the first server's)."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "smtpd_sync"  # the same figures are the same file
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    loads = [load for load in THROUGHPUT if figures.get(load)]
    names = list(dict.fromkeys(name for load in loads for name in figures[load]))
    base = "aiosmtpd" if "aiosmtpd" in names else names[0]
    width = 0.84 / len(names)
    drawing, axes = pyplot.subplots(figsize=(11, 4.6))
    for index, name in enumerate(names):
        if name == base:
            continue  # it is the line at 1
        here = [n for n, load in enumerate(loads) if {name, base} <= set(figures[load])]
        heights = [ratio(figures[loads[n]][name], figures[loads[n]][base]) for n in here]
        places = [n + (index - (len(names) - 1) / 2) * width for n in here]
        label = f"smtpd_sync, {name}" if name in OURS else name
        axes.bar(places, [height - 1 for height in heights], width, bottom=1, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.set_xticks(range(len(loads)), loads)
    axes.set_ylabel(f"messages/s, relative to {base}")
    axes.set_title(caption, fontsize=9)
    axes.legend(fontsize=8, ncol=2)
    drawing.tight_layout()
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    drawing.savefig(path, dpi=110, metadata=metadata)
    pyplot.close(drawing)
