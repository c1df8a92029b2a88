"""The cost of a commit in SQLite and in PostgreSQL, by the number of messages in it: time, and CPU here and there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

import msgspec

from bester.broker.store import Store
from bester.broker.store.postgres import PostgresStore
from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_requests import End, Enqueue
from tests.benchmarks.processes import children, cpu_s
from tests.benchmarks.store import entry
from tests.postgres_server import Cluster, binaries

GROUPS = {1: 300, 16: 100, 256: 20}
"""Messages of a commit: how many commits are measured."""


class Commit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cost of queueing messages and ending them again, two commits: the median ms of a commit that queues, and µs of
    CPU a message, of the broker's process and of the database's processes."""

    store: str
    messages: int
    ms: float
    broker_us: float
    database_us: float


@contextmanager
def _sqlite(folder: Path) -> Iterator[tuple[Store, int | None]]:
    with closing(SqliteStore(folder / "store.db")) as store:
        yield store, None


@contextmanager
def _postgresql(_: Path) -> Iterator[tuple[Store, int | None]]:
    cluster = Cluster("shared_buffers=64MB")  # fsync is on, unlike in tests
    try:
        with closing(PostgresStore(cluster.database(), "b1")) as store:
            yield store, cluster.process
    finally:
        cluster.close()


def measure(folder: Path, told: Callable[[str], None], groups: dict[int, int] = GROUPS) -> list[Commit]:
    """Measure both stores, PostgreSQL where it is installed."""
    makers = {"SQLite": _sqlite, **({"PostgreSQL": _postgresql} if binaries() is not None else {})}
    found = []
    for name, maker in makers.items():
        told(f"commits in {name}")
        with maker(folder) as (store, process):
            store.open()
            number = 0
            for group, commits in {0: 0, **groups}.items():  # the first is to warm up
                found += [_group(name, store, process, number, group or 16, commits or 10)][: 1 if group else 0]
                number += (group or 16) * (commits or 10)
    return found


def _group(name: str, store: Store, process: int | None, first: int, group: int, commits: int) -> Commit:
    """Queue so many groups in a store, from a number on, and end them again."""

    def database_s() -> float:
        return sum(cpu_s(pid) for pid in children(process)) if process is not None else 0.0

    numbers = range(first + 1, first + 1 + group * commits)
    keeps = [Enqueue(entry(number)) for number in numbers]
    ends = [End(number, "delivered") for number in numbers]
    times = []
    there, here = database_s(), time.process_time()
    for start in range(0, len(keeps), group):
        begun = time.perf_counter()
        assert store.commit(keeps[start : start + group]).ok
        times.append(time.perf_counter() - begun)
    for start in range(0, len(ends), group):
        assert store.commit(ends[start : start + group]).ok
    each = 1e6 / len(keeps)
    here, there = time.process_time() - here, database_s() - there
    return Commit(name, group, median(times) * 1000, here * each, there * each)
