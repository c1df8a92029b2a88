"""The cost of storing: the store on disk, by how far each commit goes and how many writes each has.

    python -m tests.benchmarks.store [DIRECTORY]

DIRECTORY is on the disk to be measured, the system's temporary one if not given. Bodies have 100 bytes; the rounds are
interleaved, the figures medians. One thread of one process that does nothing else is measured.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from bester.broker.loop import spare_the_collector
from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_requests import End, Enqueue, Entry, mailbox

ROUNDS = 5
GROUPS = {1: 1_000, 16: 500, 256: 150}
"""Writes in a commit: how many commits are measured."""
USERS = 100
BODY = b'"' + b"x" * 98 + b'"'


class Figures(NamedTuple):
    """Entries stored and ended, per second; the median commit and the slowest but one in a hundred, in ms."""

    kept: float
    ended: float
    median_ms: float
    slow_ms: float


def entry(number: int) -> Entry:
    user, message = f"user{number % USERS}", f"s1.example/b-1a2b3c4d/{number}"
    meta = {"origin": "s1.example", "root": message, "path": ["s1.example/chat"], "message": message}
    return Entry(number, mailbox(user), f"{message}.0.0", user, "chat", BODY, "alice", time.time() + 3600, meta)


def measure(directory: Path, synchronous: str, group: int, commits: int) -> Figures:
    """Keep so many groups in a new store, and end them again."""
    numbers = range(1, 1 + group * commits)
    keeps = [Enqueue(entry(number)) for number in numbers]
    ends = [End(number, "delivered") for number in numbers]
    with (
        TemporaryDirectory(prefix="b-", dir=directory) as name,
        closing(SqliteStore(Path(name) / "store.db", synchronous)) as store,
    ):
        store.open()
        times = []
        for start in range(0, len(keeps), group):
            begun = time.perf_counter()
            assert store.commit(keeps[start : start + group]).ok
            times.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        for start in range(0, len(ends), group):
            assert store.commit(ends[start : start + group]).ok
        took_s = time.perf_counter() - begun
    slow_ms = sorted(times)[len(times) * 99 // 100] * 1000
    return Figures(len(keeps) / sum(times), len(ends) / took_s, statistics.median(times) * 1000, slow_ms)


def main(directory: Path | None) -> None:
    spare_the_collector()
    cases = [(group, synchronous) for group in GROUPS for synchronous in ("full", "normal")]
    found: dict[tuple[int, str], list[Figures]] = {case: [] for case in cases}
    with TemporaryDirectory(prefix="b-", dir=directory) as name:
        for _ in range(ROUNDS):
            for group, synchronous in cases:
                found[group, synchronous].append(measure(Path(name), synchronous, group, GROUPS[group]))
    print("| in a commit | synchronous | kept a second | ended a second | median commit | 99 in 100 within |")
    print("|---|---|---|---|---|---|")
    for (group, synchronous), rounds in found.items():
        kept, ended, median_ms, slow_ms = (statistics.median(values) for values in zip(*rounds, strict=True))
        print(f"| {group} | {synchronous} | {kept:,.0f} | {ended:,.0f} | {median_ms:.2f} ms | {slow_ms:.1f} ms |")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
