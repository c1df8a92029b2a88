"""The comparison of sides: every job on every side in turn, under one load generator."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from tests.benchmarks import rabbitmq, report, sides
from tests.benchmarks.figures import Job, Run, over_runs, parse_run, ratio
from tests.benchmarks.programs import BenchmarkError, load_generator
from tests.benchmarks.results import Compared, Comparison
from tests.benchmarks.sides import Side

SLOWEST_RATE = 500  # round trips a second below which a run is given up
LEAST_DEADLINE_S = 60  # for short runs on a machine that stutters

Measured = dict[Job, dict[str, list[Run]]]  # by job and name of the side
Maker = Callable[[Path], AbstractContextManager[Side]]


def jobs(messages: int, payloads: Sequence[int]) -> list[Job]:
    """Return the pipelined and the closed-loop job for each size; a tenth as many messages again warm up."""
    alone = max(messages // 10, 100)  # a closed loop takes about ten times as long
    return [
        Job(body_bytes, connections, depth, count, count // 10)
        for body_bytes in payloads
        for connections, depth, count in ((8, 50, messages), (1, 1, alone))
    ]


def measure(generator: Path, side: Side, job: Job) -> Run:
    """Let one side do one job; BenchmarkError when an answer was wrong, missing or late."""
    deadline_s = max(LEAST_DEADLINE_S, (job.messages + job.warm) // SLOWEST_RATE)
    messages, warm = max(job.messages // side.part, 1), job.warm // side.part
    numbers = (side.port, job.connections, job.depth, messages, warm, job.body_bytes, deadline_s)
    command = [str(generator), side.protocol, *map(str, numbers), *side.watched()]
    trusted = {**os.environ, "SSL_CERT_FILE": str(side.ca)} if side.ca else None
    try:  # the load generator bounds itself; this is for one that is broken
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=deadline_s + 60, check=False, env=trusted
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{side.name}, {job.title}: the load generator did not end by itself") from error
    if done.returncode != 0:
        raise BenchmarkError(f"{side.name}, {job.title}, {job.body_bytes} bytes: {done.stderr.strip()}")
    return parse_run(done.stdout)


def makers(*, rabbit: bool, split: bool) -> list[Maker]:
    """Return what starts each side: NATS, the floor and `bester up`; and, if wanted, RabbitMQ, and Bester in three
    processes."""
    peers = [sides.nats, *([rabbitmq.rabbitmq] if rabbit else []), sides.floor]
    return [*peers, sides.bester_up, *([sides.bester_split] if split else [])]


def compare(
    all_jobs: Sequence[Job], rounds: int, chosen: Sequence[Maker], told: Callable[[str], None], *, tls: bool = False
) -> Measured:
    """Run every job on every side in turn, `rounds` times; `tls`: some of them inside TLS."""
    with ExitStack() as stack:
        # Short, for the path of an ipc socket must fit into 107 bytes.
        folder = Path(stack.enter_context(report.short_folder()))
        told("compiling the load generator")
        generator = load_generator(folder, tls=tls)
        started = []
        for number, maker in enumerate(chosen):
            told(f"starting {maker.__name__.replace('_', ' ')}")
            own = folder / str(number)
            own.mkdir()
            started.append(stack.enter_context(maker(own)))
        results: Measured = {job: {side.name: [] for side in started} for job in all_jobs}
        for round_number in range(1, rounds + 1):
            for job in all_jobs:
                for side in started:
                    told(f"run {round_number} of {rounds}: {job.title}, {job.body_bytes} bytes, {side.name}")
                    results[job][side.name].append(measure(generator, side, job))
        return results


def peers_of(side: str) -> Sequence[str]:
    """Return the sides that a side of the comparison with NATS and the floor is compared with."""
    return [peer for peer in report.PEERS if peer != side] if side not in report.PEERS or side == "floor" else []


def result_of(
    results: Measured, machine: dict[str, str], peers: Callable[[str], Sequence[str]] = peers_of
) -> Comparison:
    """Return the figures of a comparison for its results file; `peers` names those that a side is compared with."""
    found = []
    for job, by_side in results.items():
        for side, runs in by_side.items():
            labels = sorted(runs[0].cpu_s)
            against = {peer: list(ratio(job, runs, by_side[peer])) for peer in peers(side) if peer in by_side}
            found.append(
                Compared(
                    job=job._asdict(),
                    side=side,
                    median_rate=over_runs(runs, lambda run: run.rate).median,
                    median_p50_us=over_runs(runs, lambda run: run.p50_us).median,
                    median_p99_us=over_runs(runs, lambda run: run.p99_us).median,
                    rates=[run.rate for run in runs],
                    p50s_us=[run.p50_us for run in runs],
                    cpu_us={label: report.cpu_us(runs, label) for label in labels},
                    against=against,
                )
            )
    return Comparison(machine, found)
