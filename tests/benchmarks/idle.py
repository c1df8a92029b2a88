"""The benchmark of idle clients: the memory of each, and an honest user beside them, with a flood and without."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from tests.benchmarks.overload import Generator, flood_command, honest_command, server, together
from tests.benchmarks.overload_plan import IN_FLIGHT, KINDS, ONE_USER, Flood, Honest, Plan, per_second
from tests.benchmarks.processes import memory_bytes
from tests.benchmarks.sides import Side

COUNTS = (0, 5_000, 10_000)
SHORT_COUNTS = (0, 200)
SPARE_DESCRIPTORS = 200
"""Descriptors of a server beside those of its clients: sockets, databases, logs, the flood and the honest user."""
FLOOD_LOAD = 10
SETTLE_S = 0.5
"""Time after the last login in which the server's memory comes to rest."""
HOLD_S = 3600
"""Longest time for which idle clients are held; the generator is ended long before."""


class IdleCell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """So many idle clients; `skipped` is the reason where the system does not allow so many, and the rest is empty.

    `client_bytes` is the memory of the server for each of them; `quiet` and `flooded` are the honest user's questions
    without and beside a flood.
    """

    clients: int
    skipped: str | None = None
    client_bytes: float | None = None
    quiet: Honest | None = None
    flooded: Honest | None = None
    served: float = 0.0


def too_few_descriptors(clients: int, hard_limit: int) -> str | None:
    """Return why so many clients are too many for one process of this system, or None."""
    needed = clients + SPARE_DESCRIPTORS
    if hard_limit == resource.RLIM_INFINITY or hard_limit >= needed:
        return None
    return (
        f"the system's hard limit is {hard_limit:,} descriptors a process, and {needed:,} are needed: "
        f"run `ulimit -Hn {needed}` as root before, or raise nofile in /etc/security/limits.conf"
    )


def _memory(side: Side) -> int:
    return sum(memory_bytes(process.pid) for process in side.processes.values())


def _measure_cell(programs: Path, folder: Path, number: int, plan: Plan, clients: int, rate: int) -> IdleCell:
    echo = KINDS[0].mix
    with server("up", folder, number) as side:
        honest = honest_command(programs, side.port, plan)
        together([honest], plan)  # memory that any traffic takes once is no idle client's
        before = _memory(side)
        hold = [str(programs / "flood"), *map(str, (side.port, clients, clients, 0, 0, 0, HOLD_S * 1000, 0)), echo]
        if clients:
            with Generator(hold) as idle:
                idle.wait_until_ready()
                time.sleep(SETTLE_S)
                each = (_memory(side) - before) / clients
                quiet, flooded, served = _beside(programs, side, plan, honest, rate)
        else:
            each = None
            quiet, flooded, served = _beside(programs, side, plan, honest, rate)
    return IdleCell(clients, None, each, quiet, flooded, served)


def _beside(programs: Path, side: Side, plan: Plan, honest: list[str], rate: int) -> tuple[Honest, Honest, float]:
    (quiet,) = together([honest], plan)
    window = 0 if rate else IN_FLIGHT // ONE_USER
    flood = flood_command(programs, side, plan, KINDS[0].mix, ONE_USER, 1, window, rate)
    flooded, counts = together([honest, flood], plan)
    decoded = msgspec.json.decode(counts, type=Flood)
    return (
        msgspec.json.decode(quiet, type=Honest),
        msgspec.json.decode(flooded, type=Honest),
        per_second(decoded.good, decoded.seconds),
    )


def measure(
    programs: Path, folder: Path, plan: Plan, counts: tuple[int, ...], told: Callable[[str], None]
) -> Iterator[IdleCell]:
    """Measure every number of idle clients; yield each when it is done. The flood is FLOOD_LOAD times the peak."""
    told("idle clients: the peak")
    peak = _measure_cell(programs, folder, 0, plan, 0, 0).served
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for number, clients in enumerate(counts, 1):
        why = too_few_descriptors(clients, hard_limit)
        if why is not None:
            told(f"{clients:,} idle clients: {why}")
            yield IdleCell(clients, skipped=why)
            continue
        told(f"{clients:,} idle clients")
        yield _measure_cell(programs, folder, number, plan, clients, max(round(peak * FLOOD_LOAD), 1))
