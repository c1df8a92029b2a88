"""The benchmark of growth: the CPU of a message beside more of everything. A busy machine makes CPU little dearer.

Brokers and bridges are real processes, a handler linked to every broker among them; types, workers, users and targets
are counted in one process (`growth_rig`), idle clients as in the benchmark of theirs.
"""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec

from tests.benchmarks import commits, growth_rig, idle
from tests.benchmarks.commits import Commit
from tests.benchmarks.growth_rig import Point
from tests.benchmarks.idle import IdleCell
from tests.benchmarks.overload import Generator
from tests.benchmarks.overload_plan import FULL, SHORT, Plan
from tests.benchmarks.processes import Running, cpu_s, free_port, memory_bytes
from tests.benchmarks.programs import BenchmarkError, compiled, load_generator
from tests.benchmarks.sides import bester, echoes

CONNECTIONS, BODY_BYTES = 8, 100
DEADLINE_S = 120
HOLD_MS = 3_600_000
"""Longest time for which idle clients are held; the generator is ended long before."""
USERS = ("load", "more")
"""Users of the two generators, one at each bridge."""


class Load(NamedTuple):
    """So many brokers and as many bridges, with `connections` to each bridge, a user each, and `depth` messages in
    flight on each connection; `servers` of them beside each other, at work at the same time."""

    brokers: int
    connections: int
    depth: int
    servers: int = 1


LOADS = (
    Load(1, 8, 50), Load(2, 8, 50), Load(1, 8, 50, 2),
    Load(1, 8, 1), Load(2, 8, 1), Load(1, 8, 1, 2), Load(1, 4, 1), Load(2, 16, 1),
)  # fmt: skip
"""The users of a bridge are divided among the brokers, and so are the messages in flight: two brokers with 8 × 1 have
batches as one broker with 4 × 1, and one broker with 8 × 1 has batches as two with 16 × 1. Two servers of one broker
each have nothing to do with each other: what a message costs more there is what twice as many processes take of the
same cores and their caches."""


class GrowthPlan(msgspec.Struct, frozen=True):
    """Extent of a measurement."""

    loads: tuple[Load, ...] = LOADS
    messages: int = 40_000
    """Of one run at each bridge; a tenth where one is in flight."""
    runs: int = 5
    rig_messages: int = 2_000
    rig_repeats: int = 7
    sizes: tuple[int, ...] = (1, 10, 100, 1_000)
    most: int = 10_000
    """Users, targets and idle clients."""
    commits: dict[int, int] = msgspec.field(default_factory=lambda: dict(commits.GROUPS))
    idle: Plan = FULL


SHORT_GROWTH = GrowthPlan(LOADS[:2], 4_000, 2, 300, 2, (1, 100), 1_000, {16: 20}, SHORT)


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """So many brokers, and as many bridges: µs of CPU a message of each run, by kind of process."""

    brokers: int
    depth: int
    runs: list[dict[str, float]]
    connections: int = CONNECTIONS
    """Connections to each bridge, a user each."""
    servers: int = 1
    """So many of them beside each other."""

    @property
    def per_link(self) -> float:
        """Messages in flight on each link of a bridge to a broker: that many are in a batch at most."""
        return self.connections * self.depth / self.brokers

    def cpu_us(self, part: str | None = None) -> float:
        """Return the median µs of CPU a message of one kind of process, of all without it."""
        return median(run[part] if part is not None else sum(run.values()) for run in self.runs)


class Figures(NamedTuple):
    """Findings of one measurement: `series` by the thing that grows, `sessions` as `costs_of_sessions`, `idle_bytes` of
    an idle client by kind of process (empty where the system allows too few descriptors)."""

    layouts: list[Layout]
    series: dict[str, list[Point]]
    commits: list[Commit]
    sessions: dict[str, float]
    idle_bytes: dict[str, float]
    idle: list[IdleCell]


class _Cluster(NamedTuple):
    """A running server: the ports of its bridges, and its processes by kind."""

    ports: list[int]
    processes: dict[str, list[Running]]

    def cpu_s(self) -> dict[str, float]:
        return {kind: sum(cpu_s(each.pid) for each in found) for kind, found in self.processes.items()}


@contextmanager
def _cluster(folder: Path, count: int) -> Iterator[_Cluster]:
    """Run so many brokers and bridges, and a handler; bridges and handler are linked to every broker."""
    folder.mkdir()
    endpoints = [f"ipc://{folder}/f{number}" for number in range(count)]
    named = ", ".join(f'"{endpoint}"' for endpoint in endpoints)
    ports: list[int] = []
    processes: dict[str, list[Running]] = {"broker": [], "bridge": [], "handler": []}
    with ExitStack() as stack:

        def start(kind: str, *arguments: str) -> Running:
            number = len(processes[kind])
            running = stack.enter_context(Running(f"{kind} {number}", bester(kind, *arguments), folder))
            processes[kind].append(running)
            return running

        for number, endpoint in enumerate(endpoints):
            file = _written(folder, f"broker{number}", f'[fabric]\nlisten = ["{endpoint}"]\n')
            start("broker", "-c", file)
        handler = ["bester.handlers.stock.echo:app"]
        start("handler", *handler, *(word for endpoint in endpoints for word in ("--fabric", endpoint)))
        for number in range(count):
            ports.append(free_port())
            native = f'[native]\ntcp4 = "127.0.0.1:{ports[-1]}"\n[fabric]\nconnect = [{named}]\n'
            start("bridge", "-c", _written(folder, f"bridge{number}", native))
        for port, bridge in zip(ports, processes["bridge"], strict=True):
            bridge.wait_until(lambda port=port: echoes(port))  # type: ignore[misc]  # mypy knows no default of a lambda
        yield _Cluster(ports, processes)


def _written(folder: Path, name: str, lines: str) -> str:
    """Write a configuration, and return its path."""
    file = folder / f"{name}.toml"
    head = f'[server]\nname = "bench.example"\nbroker = "{name}"\ndata_dir = "{name}"\n[accounts]\nauth = "open"\n'
    file.write_text(head + lines)
    return str(file)


def _run(clusters: Sequence[_Cluster], programs: Sequence[Path], load: Layout, messages: int) -> dict[str, float]:
    """Let a generator at each bridge do a run at the same time; return µs of CPU a message by kind of process."""
    numbers = (load.connections, load.depth, messages, messages // 10, BODY_BYTES, DEADLINE_S)
    before = [cluster.cpu_s() for cluster in clusters]
    running = [
        subprocess.Popen(
            [str(program), "bester", str(port), *map(str, numbers)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for program, port in zip(programs, (port for cluster in clusters for port in cluster.ports), strict=False)
    ]
    try:
        for each in running:
            _, said = each.communicate(timeout=2 * DEADLINE_S)
            if each.returncode != 0:
                raise BenchmarkError(f"growth: {said.decode().strip()}")
    finally:
        for each in running:
            each.kill()
            each.wait()
    sent = len(running) * (messages + messages // 10)
    after = [cluster.cpu_s() for cluster in clusters]
    return {
        kind: sum(new[kind] - old[kind] for old, new in zip(before, after, strict=True)) / sent * 1e6
        for kind in before[0]
    }


def _layouts(folder: Path, plan: GrowthPlan, told: Callable[[str], None]) -> list[Layout]:
    programs = []
    for user in USERS:
        (folder / user).mkdir()
        programs.append(compiled(folder / user, "loadgen", (f'-DUSER="{user}"',)))
    with ExitStack() as stack:
        most = {
            load.brokers: max(each.servers for each in plan.loads if each.brokers == load.brokers)
            for load in plan.loads
        }
        clusters = {
            brokers: [
                stack.enter_context(_cluster(folder / f"c{brokers}{number}", brokers)) for number in range(servers)
            ]
            for brokers, servers in most.items()
        }
        found = [Layout(load.brokers, load.depth, [], load.connections, load.servers) for load in plan.loads]
        for number in range(plan.runs + 1):
            for layout in found:
                several = f"{layout.servers} × {layout.brokers} broker(s)"
                told(f"run {number} of {plan.runs}: {several}, {layout.connections} × {layout.depth}")
                messages = max(plan.messages if layout.depth > 1 else plan.messages // 10, 100)
                cost = _run(clusters[layout.brokers][: layout.servers], programs, layout, messages)
                if number:  # the first run is to warm up
                    layout.runs.append(cost)
        return found


def _bytes_of_idle(folder: Path, clients: int, told: Callable[[str], None]) -> dict[str, float]:
    """Return the bytes of each kind of process for each of so many idle clients."""
    told(f"{clients:,} idle clients: memory")
    with _cluster(folder / "idle", 1) as cluster:
        programs = {kind: found[0].pid for kind, found in cluster.processes.items()}
        before = {kind: memory_bytes(pid) for kind, pid in programs.items()}
        numbers = (cluster.ports[0], clients, clients, 0, 0, 0, HOLD_MS, 0)
        with Generator([str(folder / "flood"), *map(str, numbers), "echo:100*1"]) as held:
            held.wait_until_ready()
            time.sleep(idle.SETTLE_S)
            return {kind: (memory_bytes(pid) - before[kind]) / clients for kind, pid in programs.items()}


def measure(folder: Path, plan: GrowthPlan, told: Callable[[str], None]) -> Figures:
    """Measure all that grows."""
    layouts = _layouts(folder, plan, told)
    series: dict[str, list[Point]] = {}
    most = tuple(size for size in plan.sizes if size < plan.most)
    users = (*most, plan.most)
    for name, key, sizes, fixed in (
        ("types", "types", most, {}),
        ("workers", "workers", most, {}),
        ("users", "users", users, {}),
        ("targets of one sendClients", "targets", users, {"users": plan.most}),
    ):
        told(f"{name}: {', '.join(f'{size:,}' for size in sizes)}")
        series[name] = growth_rig.series(key, sizes, plan.rig_messages, plan.rig_repeats, **fixed)
    for program in ("flood", "honest"):
        load_generator(folder, program)
    costs = commits.measure(folder, told, plan.commits)
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    each = {}
    if idle.too_few_descriptors(plan.most, hard_limit) is None:
        each = _bytes_of_idle(folder, plan.most, told)
    cells = list(idle.measure(folder, folder, plan.idle, (0, plan.most), told))
    return Figures(layouts, series, costs, growth_rig.costs_of_sessions(), each, cells)
