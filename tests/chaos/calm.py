"""A calm minute after the faults of a chaos run: the figures of both servers are compared with the ledger.

Counters begin anew with each start of a broker, so that over kills they are no sums: a message that is submitted again
after a kill is counted again, and what the dead broker had counted is gone. Compared is therefore the growth of the
figures over a time without faults, in which each sender lives once more:

- by type, for those types that enter from clients alone: messages that entered, and messages that were reported on;
- at each server: dead letters that were counted, and those that the store has now and did not have before.

No figure counts deliveries to users, nor the later outcomes of queued messages.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bester.broker.config_file import load
from bester.cli.operate import ask_all
from tests.chaos.entries import Entry
from tests.chaos.journal import now_s
from tests.chaos.servers import Server

CALM_S = 1.5
"""Time in which each sender sends some thirty messages."""
PATIENCE_S = 30.0
LOOK_S = 0.2
ENTERING = ("pipe", "far", "both", "line", "out")
"""Types that no handler and no other server sends."""
LETTERS = {"limit": 10_000}


class Counts(NamedTuple):
    """Counts of one server, over all its brokers: messages that entered, and that were reported on, by type, dead
    letters by the figures, and the ids of those in the store."""

    received: Counter[str]
    reported: Counter[str]
    dead: int
    letters: frozenset[str]


async def counts_of(configs: Iterable[Path]) -> Counts:
    """Return the counts of a running server; `configs` are the configurations of its brokers."""
    received: Counter[str] = Counter()
    reported: Counter[str] = Counter()
    dead, ids = 0, set()
    for path in configs:
        config = load(path)
        own = replace(config, fabric=replace(config.fabric, connect=()))  # the bridges' connect names all brokers
        status, letters = await ask_all(own, [("status", None), ("deadList", LETTERS)])
        types: dict[str, dict[str, Any]] = status.value["types"]
        for type_, row in types.items():
            received[type_] += row["received"]
            reported[type_] += row["reported"]
            dead += row["dead"]
        ids |= {row["id"] for row in letters.value}
    return Counts(received, reported, dead, frozenset(ids))


def differences(before: Counts, after: Counts, entries: Iterable[Entry]) -> list[str]:
    """Return the differences between the growth of a server's counts and the messages that were sent there."""
    entries = list(entries)
    sent = Counter(entry.sent.type for entry in entries)
    told = Counter(entry.sent.type for entry in entries if entry.told)
    found = []
    for what, growth, expected in (
        ("entered", after.received - before.received, sent),
        ("reported on", after.reported - before.reported, told),
    ):
        found += [
            f"{growth[type_]} messages of type {type_} are counted as {what}, and the ledger has {expected[type_]}"
            for type_ in ENTERING
            if growth[type_] != expected[type_]
        ]
    dead, buried = after.dead - before.dead, len(after.letters - before.letters)
    if dead != buried:
        found.append(f"{dead} dead letters are counted, and {buried} are in the store")
    return found


async def settled(server: Server, before: Counts, entries: Iterable[Entry]) -> list[str]:
    """Return the differences that stay: a dead letter is counted a moment before it is on disk."""
    entries = list(entries)
    end_s = now_s() + PATIENCE_S
    while True:
        found = differences(before, await counts_of(server.configs), entries)
        if not found or now_s() > end_s:
            return [f"at {server.name} {each}" for each in found]
        await asyncio.sleep(LOOK_S)
