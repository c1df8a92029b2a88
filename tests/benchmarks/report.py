"""The figures as a person reads them, and as JSON. No figure is judged: goals stand beside the figures."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import zmq
from msgspec.structs import asdict
from rich.console import Console
from rich.table import Table

from tests.benchmarks.figures import Job, Run, Spread, over_runs, ratio, spread

PEER = "nats"
PEERS = ("nats", "floor", "rabbitmq")
"""Sides that Bester is compared with; `floor` is the same libraries without bookkeeping."""
PIPED_WIDTH = 130  # columns where the output is no terminal and so has no width of its own
GENERATOR_IN_DOUBT = 0.8  # share of a core above which the load generator itself may limit the figures
GOALS = {  # (side, closed loop): the goal against the peer of the same run
    ("bester up", False): "≥ 0.65 × nats\n≥ 0.45 × floor\n≥ 15 × rabbitmq",
    ("bester up", True): "≤ 1.25 × floor",
    ("bester split", False): "≥ 0.5 × nats",
}
EXPLANATION = (
    "A round trip is client → TCP → server → one Python handler process → server → the same client. With Bester it is "
    "over when the echoed message and, behind it, its good report have come back; with NATS and RabbitMQ when the "
    "reply has; RabbitMQ gets a tenth of the messages. Every "
    "body is compared with what was sent. All sides ran in turn, on this machine, under the same load generator; "
    "medians of the runs, least–most below them. CPU is in per cent of one core, over the measured span. Pipelined "
    "jobs are compared by round trips a second (more is better), the closed loop by p50 (less is better)."
)

Results = Mapping[Job, Mapping[str, Sequence[Run]]]


def machine(**peers: str) -> dict[str, str]:
    """Return the machine and versions that the figures were taken on; `peers` are the versions of the other sides."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cores": f"{os.cpu_count()} × {models[0].partition(':')[2].strip() if models else platform.machine()}",
        "system": f"{platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        "bester": version("bester"),
        "pyzmq": f"{version('pyzmq')} (libzmq {zmq.zmq_version()})",
        "uvloop": version("uvloop"),
        **{name.replace("_", "-"): value for name, value in peers.items()},
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _with_range(found: Spread) -> str:
    return f"{_number(found.median)}\n[dim]{_number(found.least)}–{_number(found.most)}[/]"


def _busy(runs: Sequence[Run]) -> str:
    labels = sorted(runs[0].cpu_s, key=lambda label: label == "loadgen")  # stable: the load generator comes last
    shares = [(label, spread([run.busy(label) for run in runs]).median) for label in labels]
    return "\n".join(f"{label} {share:.0%}" for label, share in shares)


def _against(job: Job, side: str, sides: Mapping[str, Sequence[Run]]) -> str:
    lines = []
    for peer in PEERS:
        if side in PEERS and (peer, side) != (PEER, "floor"):
            continue
        if peer in sides:
            found = ratio(job, sides[side], sides[peer])
            lines.append(f"[bold]{found.median:.2f} × {peer}[/] [dim]{found.least:.2f}–{found.most:.2f}[/]")
    return "\n".join(lines)


def cpu_us(runs: Sequence[Run], label: str) -> float:
    """Return the median CPU of a process for one round trip, in µs."""
    return spread([run.cpu_s[label] / run.messages * 1e6 for run in runs]).median


def short_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder whose path is short enough for the sockets in it."""
    return tempfile.TemporaryDirectory(prefix="b-")


def _verdict_on_generator(results: Results) -> str:
    runs = [run for job, sides in results.items() if not job.closed_loop for side in sides.values() for run in side]
    most = max(run.busy("loadgen") for run in runs)
    doubt = ": it may have been the bottleneck" if most > GENERATOR_IN_DOUBT else ", so it was not the bottleneck"
    return f"The load generator used at most {most:.0%} of a core in the pipelined runs{doubt}."


def show(console: Console, results: Results, described: Mapping[str, str]) -> None:
    """Print one table for each size of body."""
    console.print(EXPLANATION)
    console.print(" · ".join(f"{name} {value}" for name, value in described.items()), style="dim", highlight=False)
    for body_bytes in dict.fromkeys(job.body_bytes for job in results):
        table = Table(title=f"bodies of {body_bytes:,} bytes of JSON", title_justify="left", show_lines=True)
        table.add_column("job", no_wrap=True)
        table.add_column("side", no_wrap=True)
        for heading in ("round trips/s", "p50 µs", "p99, max µs"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("CPU", no_wrap=True)
        table.add_column("rate or p50 against", justify="right", no_wrap=True)
        table.add_column("goal", no_wrap=True)
        for job, sides in results.items():
            if job.body_bytes != body_bytes:
                continue
            for side, runs in sides.items():
                table.add_row(
                    f"{job.title}\n[dim]{job.messages:,} messages[/]",
                    side.replace(" ", "\n", 1),
                    _with_range(over_runs(runs, lambda run: run.rate)),
                    _with_range(over_runs(runs, lambda run: run.p50_us)),
                    f"{_number(over_runs(runs, lambda run: run.p99_us).median)}\n"
                    f"[dim]{_number(over_runs(runs, lambda run: run.max_us).median)}[/]",
                    _busy(runs),
                    _against(job, side, sides),
                    GOALS.get((side, job.closed_loop), ""),
                )
        console.print(table)
    console.print(_verdict_on_generator(results))


def as_json(results: Results, described: Mapping[str, str]) -> dict[str, object]:
    """Return everything that was measured, each run by itself, as JSON values."""
    found = [
        {
            "job": job._asdict(),
            "side": side,
            "runs": [{"rate": run.rate, **asdict(run)} for run in runs],
            "median_rate": over_runs(runs, lambda run: run.rate).median,
            "median_p50_us": over_runs(runs, lambda run: run.p50_us).median,
            "median_p99_us": over_runs(runs, lambda run: run.p99_us).median,
            "against_nats": None if side == PEER else ratio(job, runs, sides[PEER])._asdict(),
            "goal": GOALS.get((side, job.closed_loop)),
        }
        for job, sides in results.items()
        for side, runs in sides.items()
    ]
    return {"machine": dict(described), "measured": EXPLANATION, "results": found}
