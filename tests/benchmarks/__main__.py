"""`python -m tests.benchmarks`: Bester beside nats-server and nats-py, in turn, on this machine.

The benchmark installs and compiles missing programs, starts every side once, gives each the same jobs in turn (A B A B
…), prints a table and ends everything that was started. The exit status says whether measuring worked, never how the
figures look.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import click
from rich.console import Console

from tests.benchmarks import report, sides
from tests.benchmarks.figures import Job, Run, parse_run
from tests.benchmarks.programs import BenchmarkError, load_generator, nats_server, require_nats_py
from tests.benchmarks.sides import Side

SLOWEST_RATE = 500  # round trips a second below which a run is given up
LEAST_DEADLINE_S = 60  # for short runs on a machine that stutters

Measured = dict[Job, dict[str, list[Run]]]  # by job and name of the side


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
    numbers = (side.port, job.connections, job.depth, job.messages, job.warm, job.body_bytes, deadline_s)
    command = [str(generator), side.protocol, *map(str, numbers), *side.watched()]
    try:  # the load generator bounds itself; this is for one that is broken
        done = subprocess.run(command, capture_output=True, text=True, timeout=deadline_s + 60, check=False)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{side.name}, {job.title}: the load generator did not end by itself") from error
    if done.returncode != 0:
        raise BenchmarkError(f"{side.name}, {job.title}, {job.body_bytes} bytes: {done.stderr.strip()}")
    return parse_run(done.stdout)


def compare(all_jobs: Sequence[Job], rounds: int, with_split: bool, console: Console) -> Measured:
    """Run every job on every side in turn, `rounds` times."""
    makers: list[Callable[[Path], AbstractContextManager[Side]]] = [sides.nats, sides.bester_up]
    if with_split:
        makers.append(sides.bester_split)
    with ExitStack() as stack:
        # Short, for the path of an ipc socket must fit into 107 bytes.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="b-")))
        status = stack.enter_context(console.status("compiling the load generator"))
        generator = load_generator(folder)
        started = []
        for number, maker in enumerate(makers):
            status.update(f"starting {maker.__name__.replace('_', ' ')}")
            own = folder / str(number)
            own.mkdir()
            started.append(stack.enter_context(maker(own)))
        results: Measured = {job: {side.name: [] for side in started} for job in all_jobs}
        for round_number in range(1, rounds + 1):
            for job in all_jobs:
                for side in started:
                    status.update(f"run {round_number} of {rounds}: {job.title}, {job.body_bytes} bytes, {side.name}")
                    results[job][side.name].append(measure(generator, side, job))
        return results


@click.command()
@click.option("--messages", type=click.IntRange(1000, 10_000_000), help="Messages of a pipelined run (100,000).")
@click.option("--runs", type=click.IntRange(1, 100), help="Runs of each job on each side (5).")
@click.option("--payload", type=click.Choice(["100", "1024"]), multiple=True, help="Bytes of a body (both).")
@click.option("--quick", is_flag=True, help="A first look: 20,000 messages, 3 runs, 100 bytes.")
@click.option("--split", is_flag=True, help="Measure broker, bridge and handler in three processes, too.")
@click.option("--json", "json_wanted", is_flag=True, help="Print every run as JSON instead of a table.")
def main(
    messages: int | None, runs: int | None, payload: tuple[str, ...], quick: bool, split: bool, json_wanted: bool
) -> None:
    """Measure Bester beside nats-server + nats-py in the same run."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that everything started is ended
    progress = Console(stderr=True)
    payloads = [int(size) for size in payload or (("100",) if quick else ("100", "1024"))]
    try:
        with progress.status("looking for nats-server and nats-py"):
            require_nats_py()
            version = [nats_server(), "--version"]
            answer = subprocess.run(version, capture_output=True, text=True, timeout=10, check=False)
            described = report.machine(answer.stdout.rpartition(" v")[2].strip())
        all_jobs = jobs(messages or (20_000 if quick else 100_000), payloads)
        results = compare(all_jobs, runs or (3 if quick else 5), split, progress)
    except BenchmarkError as error:
        progress.print(f"bench: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    if json_wanted:
        click.echo(json.dumps(report.as_json(results, described), indent=2))
    else:
        console = Console()
        wide = console if console.is_terminal else Console(width=report.PIPED_WIDTH)
        report.show(wide, results, described)


if __name__ == "__main__":
    main()
