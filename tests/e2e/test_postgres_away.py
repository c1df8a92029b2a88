"""A server whose database is away for long, or fails over to a synchronous standby. In `make test-stores` alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bester.broker.store.postgres import PostgresStore
from tests.e2e.test_postgres import UNAVAILABLE, kept_again, outcome, posted, received, servers_on
from tests.live import DEADLINE_S, LiveServer, RawClient
from tests.postgres_server import Cluster, Standby, binaries, either
from tests.unit.store_stand import keep

pytestmark = pytest.mark.stores("postgresql")

AWAY_S = 30.0
AT_ONCE_S = 1.0
"""Longest time to a report that means `at once`, on a busy machine."""
BACK_S = 2.0
"""From the return of the database to the first message that is kept."""
GROWTH_BYTES = 8 * 1024 * 1024
"""Growth of the server's memory by what is bounded anyhow: traces, ids, the allocator."""
BODY = "x" * 4000
"""Body of a message: thousands of them are refused in the time, and would be far above that growth."""


def memory(server: LiveServer) -> int:
    """Return the resident bytes of a server's process."""
    status = Path(f"/proc/{server.processes[0].process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


async def timed(client: RawClient, to: str, number: int) -> tuple[str, float]:
    """Post to a user; return the outcome, and the seconds to the report."""
    begun = time.monotonic()
    client.submit("post", {"to": [to], "number": number, "ballast": BODY}, str(number))
    report, _ = await client.until_report(str(number))
    return outcome(report, to), time.monotonic() - begun


async def test_database_away_for_30_s_refuses_at_once_and_comes_back_by_itself(cluster: Cluster) -> None:
    async with servers_on(cluster) as servers:
        server = await servers.start()
        ann = await RawClient.login(server, "ann")
        assert await posted(ann, "bob", 1) == "queued"
        for number in range(1000, 1300):  # what any traffic takes once is no growth, and so with logins
            await timed(ann, "ann", number)
        for other in await asyncio.gather(*(RawClient.login(server, "ann") for _ in range(4))):
            await other.close()
        cluster.stop("fast")
        try:
            refused = [await timed(ann, "bob", 2)]
            before, end, number = memory(server), time.monotonic() + AWAY_S, 2000
            others = []
            while time.monotonic() < end:
                number += 1
                refused.append(await timed(ann, "bob", number))
                others.append(await timed(ann, "ann", number))
                if number % 200 == 0:
                    await (await RawClient.login(server, "bob")).close()
            grown = memory(server) - before
        finally:
            cluster.start()
        back = time.monotonic()
        last = await kept_again(ann, 100_000)
        back = time.monotonic() - back
        figures = {
            "refused": len(refused), "slowest_s": max(each[1] for each in refused),
            "others_slowest_s": max(each[1] for each in others), "grown_bytes": grown, "back_s": back,
        }  # fmt: skip
        print(figures)
        assert {each[0] for each in refused} == {UNAVAILABLE}
        assert {each[0] for each in others} == {"good"}
        assert figures["slowest_s"] < AT_ONCE_S, figures
        assert figures["others_slowest_s"] < AT_ONCE_S, figures
        assert grown < GROWTH_BYTES, figures
        assert back < BACK_S, figures
        assert await received(server, "bob", 2) == [1, last]
        await ann.close()


@pytest.fixture
def pair() -> Iterator[tuple[Cluster, Standby]]:
    """A server whose commits are on two disks, and its standby."""
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    primary = Cluster("wal_level=replica", "max_wal_senders=4", "shared_buffers=16MB")
    try:
        standby = Standby(primary)
        try:
            yield primary, standby
        finally:
            standby.close()
    finally:
        primary.close()


def test_primary_that_takes_no_writes_any_more_is_left_for_the_promoted_standby(pair: tuple[Cluster, Standby]) -> None:
    primary, standby = pair
    with closing(PostgresStore(either(*pair), "b1")) as store:
        store.open()
        numbers = count(1)
        primary.refuse_writes()
        while store.commit([keep(next(numbers))]).ok:  # its process has yet to hear of it
            pass
        standby.promote()
        deadline = time.monotonic() + DEADLINE_S
        while not store.commit([keep(next(numbers))]).ok:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert not store.away


async def test_failover_to_a_synchronous_standby_loses_nothing(pair: tuple[Cluster, Standby]) -> None:
    primary, standby = pair
    async with servers_on(either(*pair)) as servers:
        server = await servers.start()
        ann = await RawClient.login(server, "ann")
        outcomes: dict[int, str] = {}
        stop = asyncio.Event()

        async def post_on() -> None:
            """Post, 5 messages at a time, until told to stop: fewer than a sender's share of a mailbox."""
            number = 0
            while not stop.is_set():
                await asyncio.sleep(0.02)
                for _ in range(5):
                    ann.submit("post", {"to": ["bob"], "number": number}, str(number))
                    number += 1
                while len(outcomes) < number:
                    report: Any = await ann.receive()
                    outcomes[int(report["payload"]["id"])] = outcome(report, "bob")

        posting = asyncio.create_task(post_on())
        async with asyncio.timeout(DEADLINE_S):
            while len(outcomes) < 100:
                await asyncio.sleep(0.01)
        await asyncio.to_thread(primary.stop, "immediate")
        await asyncio.to_thread(standby.promote)
        stop.set()
        await asyncio.wait_for(posting, DEADLINE_S * 2)
        last = await kept_again(ann, len(outcomes))
        assert set(outcomes.values()) <= {"queued", UNAVAILABLE}
        kept = [number for number in sorted(outcomes) if outcomes[number] == "queued"]
        assert len(kept) >= 100
        assert await received(server, "bob", len(kept) + 1) == [*kept, last]
        await ann.close()
