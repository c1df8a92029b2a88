"""`python -m tests.benchmarks`: measure Bester on this machine, and write the results to files and to the page.

Without a choice: Bester beside NATS, RabbitMQ and the floor, in turn. Everything that is started listens on
loopback and is ended by its process id. The exit status says whether measuring worked, never how the figures look.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import click
import msgspec
from rich.console import Console

from tests.benchmarks import encrypted, growth, idle, kit, overload, page, path_cost, report, results
from tests.benchmarks.comparison import compare, jobs, makers, result_of
from tests.benchmarks.overload_plan import FULL, SHORT, Cell, Honest
from tests.benchmarks.programs import BenchmarkError, load_generator, nats_server, rabbitmq_server, require_clients

Told = Callable[[str], None]


def raise_descriptors() -> None:
    """Take as many descriptors as the system allows: the programs started here inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def measure_overload(*, short: bool, layouts: Sequence[str], told: Told) -> results.Overload:
    """Measure a server under more than it can do."""
    plan = SHORT if short else FULL
    described = report.machine()
    with report.short_folder() as name:
        folder = Path(name)
        for program in ("flood", "honest"):
            load_generator(folder, program)
        quiet: dict[str, Honest] = {}
        cells: list[Cell] = []
        for layout in layouts:
            own = folder / layout
            own.mkdir()
            told(f"{layout}: the honest user alone")
            quiet[layout] = overload.quiet(folder, layout, own, plan)
            cells += overload.measure(folder, layout, own, plan, told)
    return results.Overload(described, plan.lead_s, plan.measured_s, quiet, cells)


def measure_idle(*, short: bool, told: Told) -> results.Idle:
    """Measure idle clients."""
    plan, counts = (SHORT, idle.SHORT_COUNTS) if short else (FULL, idle.COUNTS)
    described = report.machine()
    with report.short_folder() as name:
        folder = Path(name)
        for program in ("flood", "honest"):
            load_generator(folder, program)
        cells = list(idle.measure(folder, folder, plan, counts, told))
    return results.Idle(described, plan.measured_s, idle.FLOOD_LOAD, cells)


def measure_path(*, short: bool, told: Told) -> results.PathCost:
    """Measure the stages of a message's path."""
    plan = path_cost.SHORT_PATH if short else path_cost.PathPlan()
    described = report.machine()
    with report.short_folder() as name:
        found = path_cost.measure(Path(name), plan, told)
        floor = path_cost.measure(Path(name), msgspec.structs.replace(plan, batches=plan.batches[:1]), told, "floor")
        return results.PathCost(described, found, floor)


def measure_kit(*, short: bool, told: Told) -> results.Kit:
    """Measure the kit's echo handler and contracts."""
    described = report.machine()
    with report.short_folder() as name:
        figures = kit.measure(Path(name), kit.SHORT_KIT if short else kit.KitPlan(), told)
        return results.Kit(described, figures.handlers, figures.contracts)


def measure_growth(*, short: bool, told: Told) -> results.Growth:
    """Measure the cost of a message beside more of everything."""
    described = report.machine()
    with report.short_folder() as name:
        found = growth.measure(Path(name), growth.SHORT_GROWTH if short else growth.GrowthPlan(), told)
        return results.Growth(described, *found)


def measure_encrypted(*, short: bool, told: Told) -> results.Comparison:
    """Measure TLS and CURVE beside plain."""
    described = report.machine()
    all_jobs, rounds = (jobs(10_000, [100]), 3) if short else (jobs(50_000, [100, 1024]), 5)
    found = compare(all_jobs, rounds, encrypted.makers(), told, tls=True)
    return result_of(found, described, encrypted.peers_of)


def finish(name: str, result: msgspec.Struct, folder: Path) -> None:
    """Print the tables of a result, and write the result to its file."""
    click.echo(page.text_of(name, result))
    click.echo(f"results: {results.write(folder, name, result)}", err=True)


@click.command()
@click.option("--compare", "comparing", is_flag=True, help="Compare with NATS, RabbitMQ and the floor (default).")
@click.option("--overload", "overloading", is_flag=True, help="Ask for more than the server can do.")
@click.option("--cluster", "losing", is_flag=True, help="Ask two brokers for more, and kill one in the middle.")
@click.option("--idle", "idling", is_flag=True, help="Hold 5,000 and 10,000 idle clients.")
@click.option("--path", "tracing", is_flag=True, help="Measure a message's path by stage.")
@click.option("--kit", "kitting", is_flag=True, help="Measure the kit beside a loop, and contracts.")
@click.option("--encrypted", "encrypting", is_flag=True, help="Measure TLS and CURVE beside plain.")
@click.option("--growth", "growing", is_flag=True, help="Measure a message beside more brokers, users, types, workers.")
@click.option("--page", "publishing", is_flag=True, help="Rewrite the pages and plots in docs/benchmarks.")
@click.option("--apart", is_flag=True, help="--overload: measure broker, bridge and handler apart, too.")
@click.option("--short", is_flag=True, help="All but --compare: a first look.")
@click.option("--results", "folder", type=click.Path(path_type=Path), default=results.MEASURED, help="Results' folder.")
@click.option("--messages", type=click.IntRange(1000, 10_000_000), help="Messages of a pipelined run (100,000).")
@click.option("--runs", type=click.IntRange(1, 100), help="Runs of each job on each side (5).")
@click.option("--payload", type=click.Choice(["100", "1024"]), multiple=True, help="Bytes of a body (both).")
@click.option("--quick", is_flag=True, help="A first look: 20,000 messages, 3 runs, 100 bytes.")
@click.option("--split", is_flag=True, help="Compare broker, bridge and handler in three processes, too.")
@click.option("--json", "json_wanted", is_flag=True, help="Print every run as JSON instead of a table.")
def main(
    comparing: bool, overloading: bool, losing: bool, idling: bool, tracing: bool, kitting: bool, encrypting: bool,
    growing: bool, publishing: bool, apart: bool, short: bool, folder: Path, messages: int | None, runs: int | None,
    payload: tuple[str, ...], quick: bool, split: bool, json_wanted: bool,
) -> None:  # fmt: skip
    """Measure Bester: beside its peers, under overload, with idle clients, along a path, the kit, or encrypted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that everything started is ended
    progress = Console(stderr=True)
    raise_descriptors()
    try:
        with progress.status("measuring") as status:
            if overloading:
                layouts = ("up", "apart") if apart else ("up",)
                finish("overload", measure_overload(short=short, layouts=layouts, told=status.update), folder)
            if losing:
                finish("cluster", measure_overload(short=short, layouts=("cluster",), told=status.update), folder)
            if idling:
                finish("idle", measure_idle(short=short, told=status.update), folder)
            if tracing:
                finish("path", measure_path(short=short, told=status.update), folder)
            if kitting:
                finish("kit", measure_kit(short=short, told=status.update), folder)
            if encrypting:
                finish("encrypted", measure_encrypted(short=short, told=status.update), folder)
            if growing:
                finish("growth", measure_growth(short=short, told=status.update), folder)
            chosen = (overloading, losing, idling, tracing, kitting, encrypting, growing, publishing)
            if comparing or not any(chosen):
                measure_sides(messages, runs, payload, folder, status.update, quick=quick, split=split, raw=json_wanted)
        if publishing:
            click.echo(f"docs/benchmarks: {', '.join(page.rewrite(folder))}", err=True)
    except BenchmarkError as error:
        progress.print(f"bench: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def measure_sides(
    messages: int | None, runs: int | None, payload: tuple[str, ...], folder: Path, told: Told, *,
    quick: bool, split: bool, raw: bool,
) -> None:  # fmt: skip
    """Compare the sides; print a table, or every run as JSON."""
    told("looking for nats-server, rabbitmq-server, nats-py and aio-pika")
    require_clients()
    answer = subprocess.run([nats_server(), "--version"], capture_output=True, text=True, timeout=10, check=False)
    peers = {"nats_server": answer.stdout.rpartition(" v")[2].strip(), "nats_py": version("nats-py")}
    rabbit = True
    try:
        rabbitmq_server()
    except BenchmarkError as error:
        click.echo(f"bench: without RabbitMQ: {error}", err=True)
        rabbit = False
    else:
        peers["aio_pika"] = version("aio-pika")
    described = report.machine(**peers)
    payloads = [int(size) for size in payload or (("100",) if quick else ("100", "1024"))]
    all_jobs = jobs(messages or (20_000 if quick else 100_000), payloads)
    found = compare(all_jobs, runs or (3 if quick else 5), makers(rabbit=rabbit, split=split), told)
    written = results.write(folder, "compare", result_of(found, described))
    click.echo(f"results: {written}", err=True)
    if raw:
        click.echo(json.dumps(report.as_json(found, described), indent=2))
    else:
        console = Console()
        wide = console if console.is_terminal else Console(width=report.PIPED_WIDTH)
        report.show(wide, found, described)


if __name__ == "__main__":
    main()
