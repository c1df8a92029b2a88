"""Ways of PostgreSQL to what is asked of the store: by the index that is meant, though nothing is known of the rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from bester.broker.store import postgres_reading
from bester.broker.store.postgres import PostgresStore
from bester.broker.store_requests import lane, mailbox
from tests.postgres_server import Cluster
from tests.unit.store_stand import LOTS, keep

BOXES = [*(mailbox(f"user-{number}") for number in range(990)), *(lane(f"s{number}", "t") for number in range(10))]


@pytest.fixture
def store(cluster: Cluster) -> Iterator[PostgresStore]:
    """Return a store with 40,000 messages in 1,000 queues, of which PostgreSQL has no statistics."""
    with closing(PostgresStore(cluster.database(), "b1")) as found:
        found.open()
        assert found.commit([keep(at * 1_000 + turn, box) for turn in range(40) for at, box in enumerate(BOXES, 1)]).ok
        yield found


def passed_over(store: PostgresStore, query: str, *values: Any) -> int:
    """Return how many rows a query reads and leaves out."""
    connection = store._held.connection
    assert connection is not None
    ((found,),) = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}".encode(), values)
    total, nodes = 0, [each["Plan"] for each in found]
    while nodes:
        node = nodes.pop()
        total += node.get("Rows Removed by Filter", 0) * node["Actual Loops"]
        nodes += node.get("Plans", ())
    return total


def test_messages_of_one_queue_are_found_without_those_of_others(store: PostgresStore) -> None:
    ns = store._held.lease.ns
    for box in (BOXES[7], BOXES[-1]):
        query = postgres_reading.fetch_query(LOTS)
        assert passed_over(store, query, ns, ns, box, box, 0, 64) == 0
        assert passed_over(store, query, ns, ns, box, box, 2**40, 64) == 0


def test_oldest_messages_of_lanes_are_found_without_mailboxes(store: PostgresStore) -> None:
    ns = store._held.lease.ns
    assert passed_over(store, postgres_reading.OLDEST, ns, ns, ns, ns) < 100
