"""The arithmetic of docs/scale.md: processes, memory and database for so many users and messages, from measured costs.

    python -m tests.benchmarks.scale [--users N] [--rate N] [--away SHARE]    # prints the tables
    python -m tests.benchmarks.scale --page                                   # rewrites the section of docs/scale.md

The costs are those of docs/benchmarks/growth.json, which `make bench ARGS="--growth --page"` writes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from tests.benchmarks import growth as measured
from tests.benchmarks.page import machine_line, replaced, table
from tests.benchmarks.programs import ROOT, BenchmarkError
from tests.benchmarks.results import PUBLISHED, Growth, read

PAGE = ROOT / "docs" / "scale.md"
BUSY = 0.6
"""Share of a core that is planned for: the rest is for bursts, and for the work of a broker that has gone."""
CONNECTIONS = 50_000
"""Connections planned for a bridge: five times as many as were measured."""
CHECKED_AT_ONCE = 2
"""Passwords that a broker checks at once."""
GROUP = 256
"""Messages of a commit of a loaded broker: the most that were measured."""
GIB = 2**30


class Demand(NamedTuple):
    """Users who are connected, messages a second, and the share of these for users who are away."""

    users: int
    rate: int
    away: float


DEMANDS = (Demand(100_000, 20_000, 0.1), Demand(1_000_000, 100_000, 0.1), Demand(1_000_000, 1_000_000, 0.1))


class Costs(NamedTuple):
    """µs of CPU a message of each kind of process."""

    broker: float
    bridge: float
    handler: float


class Need(NamedTuple):
    """Needs of a demand: processes, cores that are busy, GiB, and seconds."""

    brokers: int
    bridges: int
    handlers: int
    busy_cores: float
    bridges_gib: float
    brokers_gib: float
    stored: float
    database_cores: float
    logins_s: float
    announced_s: float

    @property
    def links(self) -> int:
        """Number of links: every bridge and handler is linked to every broker."""
        return self.brokers * (self.bridges + self.handlers)


def costs_of(growth: Growth, *, in_batches: bool) -> Costs:
    """Return the costs with two brokers, of loaded links or of single messages. Raises BenchmarkError."""
    several = [each for each in growth.layouts if each.brokers > 1 and each.connections == measured.CONNECTIONS]
    if not several:
        raise BenchmarkError("the results have no layout of several brokers: measure again with --growth")
    layout = (max if in_batches else min)(several, key=lambda each: each.depth)
    return Costs(*(layout.cpu_us(kind) for kind in Costs._fields))


def need(growth: Growth, demand: Demand, costs: Costs) -> Need:
    """Return what a demand takes at these costs. A broker also writes the messages for users who are away."""
    users, rate, away = demand
    commit = next((each for each in growth.commits if each.store == "PostgreSQL" and each.messages == GROUP), None)
    if commit is None:
        raise BenchmarkError("the results have no commits of PostgreSQL: install it, and measure again with --growth")
    stored = rate * away

    def processes(cores: float) -> int:
        return max(math.ceil(cores / BUSY), 1)

    broker_cores = (rate * costs.broker + stored * commit.broker_us) / 1e6
    bridge_cores, handler_cores = rate * costs.bridge / 1e6, rate * costs.handler / 1e6
    brokers = processes(broker_cores)
    bridges = max(processes(bridge_cores), math.ceil(users / CONNECTIONS))
    check_s, announced_s = growth.sessions["password"] / 1e6, growth.sessions["announced"] / 1e6
    of_bridge, of_broker = growth.idle_bytes["bridge"] / GIB, growth.idle_bytes["broker"] / GIB
    return Need(
        brokers, bridges, processes(handler_cores), broker_cores + bridge_cores + handler_cores,
        users * of_bridge, users * of_broker * brokers, stored, stored * commit.database_us / 1e6,
        users * check_s / CHECKED_AT_ONCE / brokers, users * announced_s,
    )  # fmt: skip


ROWS = (
    ("brokers", lambda found: f"{found.brokers:,}"),
    ("bridges", lambda found: f"{found.bridges:,}"),
    ("handler processes (echo)", lambda found: f"{found.handlers:,}"),
    ("links between them", lambda found: f"{found.links:,}"),
    ("cores at work", lambda found: f"{found.busy_cores:,.1f}"),
    ("memory for sessions, all bridges", lambda found: f"{found.bridges_gib:,.1f} GiB"),
    ("memory for sessions, all brokers", lambda found: f"{found.brokers_gib:,.1f} GiB"),
    ("messages stored and ended a second", lambda found: f"{found.stored:,.0f}"),
    ("cores at work in PostgreSQL", lambda found: f"{found.database_cores:,.1f}"),
    ("everybody's password, once", lambda found: f"{found.logins_s / 60:,.1f} min"),
    ("everybody announced to a broker that is new", lambda found: f"{found.announced_s:,.1f} s"),
)


def section(growth: Growth, demands: Sequence[Demand] = DEMANDS) -> str:
    """Return the tables: the costs, and what each demand takes in large batches and without any."""
    ways = {"in batches": costs_of(growth, in_batches=True), "one by one": costs_of(growth, in_batches=False)}
    costs = [[way, *(f"{each:.1f} µs" for each in found), f"{sum(found):.1f} µs"] for way, found in ways.items()]
    parts = [table(("CPU a message", *Costs._fields, "together"), costs)]
    needs = [need(growth, demand, ways[way]) for demand in demands for way in ways]
    heads = [f"{demand.users:,} users, {demand.rate:,}/s, {way}" for demand in demands for way in ways]
    parts.append(table(("", *heads), [[name, *map(shown, needs)] for name, shown in ROWS]))
    commit = next(each for each in growth.commits if each.store == "PostgreSQL" and each.messages == GROUP)
    alone = {way: BUSY * 1e6 / found.broker for way, found in ways.items()}
    logins = CHECKED_AT_ONCE * 1e6 / growth.sessions["password"]
    parts += [
        f"One broker alone, at {BUSY:.0%} of a core: "
        + ", ".join(f"{rate:,.0f} messages a second {way}" for way, rate in alone.items())
        + f". One core of PostgreSQL at {BUSY:.0%}: {BUSY * 1e6 / commit.database_us:,.0f} messages stored and ended a "
        f"second. The {CHECKED_AT_ONCE} checks at once of one broker: {logins:,.0f} logins a second."
    ]
    return "\n\n".join([*parts, machine_line(growth.machine)])


def published() -> Growth:
    """Return the published results. Raises BenchmarkError."""
    growth = read(PUBLISHED / "growth.json", Growth)
    if growth is None:
        raise BenchmarkError('docs/benchmarks/growth.json is missing: make bench ARGS="--growth --page"')
    return growth


def rewritten(page: str, growth: Growth) -> str:
    """Return docs/scale.md with the section of these results."""
    return replaced(page, "scale", section(growth), PAGE.name)


@click.command()
@click.option("--users", type=click.IntRange(1), help="Users who are connected.")
@click.option("--rate", type=click.IntRange(1), help="Messages a second.")
@click.option("--away", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Share for users away.")
@click.option("--page", "publishing", is_flag=True, help="Rewrite the section of docs/scale.md.")
@click.option("--results", type=click.Path(path_type=Path), help="Another results file of --growth.")
def main(users: int | None, rate: int | None, away: float, publishing: bool, results: Path | None) -> None:
    """Compute what so many users and messages take."""
    try:
        growth = published() if results is None else read(results, Growth)
        if growth is None:
            raise BenchmarkError(f"{results}: there is no such file")
        if publishing:
            PAGE.write_text(rewritten(PAGE.read_text(), growth))
            return
        one = Demand(users or DEMANDS[-1].users, rate or DEMANDS[-1].rate, away)
        click.echo(section(growth, DEMANDS if users is None and rate is None and away == 0.1 else (one,)))
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
