"""Ways of PostgreSQL to what is asked of the store: by the index that is meant, though nothing is known of the rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from bester.broker import accounts_postgres
from bester.broker.store import postgres_reading, postgres_writing
from bester.broker.store.postgres import PostgresStore
from bester.broker.store.postgres_keys import ID_PART, key_of_entry
from bester.broker.store_requests import lane, mailbox
from tests.postgres_server import Cluster
from tests.unit.store_stand import LOTS, keep

BOXES = [*(mailbox(f"user-{number}") for number in range(990)), *(lane(f"s{number}", "t") for number in range(10))]


@pytest.fixture(scope="module")
def store(cluster: Cluster) -> Iterator[PostgresStore]:
    """Return a store with 40,000 messages in 1,000 queues, of which PostgreSQL has no statistics."""
    with closing(PostgresStore(cluster.database(), "b1")) as found:
        found.open()
        assert found.commit([keep(at * 1_000 + turn, box) for turn in range(40) for at, box in enumerate(BOXES, 1)]).ok
        yield found


def nodes_of(store: PostgresStore, query: str, *values: Any) -> list[dict[str, Any]]:
    """Carry a query out, and return what PostgreSQL has done for it."""
    connection = store._held.connection
    assert connection is not None
    ((found,),) = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}".encode(), values)
    nodes = [each["Plan"] for each in found]
    for node in nodes:
        nodes += node.get("Plans", ())
    return nodes


def passed_over(store: PostgresStore, query: str, *values: Any) -> int:
    """Return how many rows a query reads and leaves out."""
    return sum(node.get("Rows Removed by Filter", 0) * node["Actual Loops"] for node in nodes_of(store, query, *values))


def read_pages(store: PostgresStore, query: str, *values: Any) -> int:
    """Return how many pages a query reads, from wherever."""
    plan = nodes_of(store, query, *values)[0]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def test_messages_of_one_queue_are_found_without_those_of_others(store: PostgresStore) -> None:
    ns = store._held.lease.ns
    for box in (BOXES[7], BOXES[-1]):
        query = postgres_reading.fetch_query(LOTS)
        assert passed_over(store, query, ns, ns, box, box, 0, 64) == 0
        assert passed_over(store, query, ns, ns, box, box, 2**40, 64) == 0


def test_oldest_messages_of_lanes_are_found_without_mailboxes(store: PostgresStore) -> None:
    ns = store._held.lease.ns
    assert passed_over(store, postgres_reading.OLDEST, ns, ns, ns, ns) < 100


def test_outcomes_of_a_message_are_found_without_those_of_others(store: PostgresStore) -> None:
    low, high, sender = "s1/b/7005.0", "s1/b/7005.:", "alice"
    values = ID_PART, low, ID_PART, ID_PART, high, ID_PART, low, high, sender, sender
    assert read_pages(store, postgres_reading.OUTCOMES, *values) < 30
    where = "s1/b/7005.0.0", ID_PART, "s1/b/7005.0.0", ID_PART, "lane/", "lane0"
    assert read_pages(store, postgres_reading.ANYWHERE, *where) < 30


def test_repeated_messages_of_other_brokers_are_found_without_all_others(store: PostgresStore) -> None:
    key = key_of_entry("s1/b/7005.0.0", BOXES[6])
    ns = store._held.lease.ns
    assert read_pages(store, postgres_writing.REPEATED_ELSEWHERE, [1], [key], ns) < 30


def test_mailboxes_of_removed_accounts_are_found_without_those_of_others(store: PostgresStore) -> None:
    connection = store._held.connection
    assert connection is not None
    connection.execute(
        "INSERT INTO removed SELECT 'user-' || n, n FROM generate_series(1, 20) AS n ON CONFLICT DO NOTHING"
    )
    names = [f"user-{number}" for number in range(1, 21)]
    values = names, list(range(1, 21)), [mailbox(name) for name in names]
    assert passed_over(store, accounts_postgres.STRIKE_OFF, *values) < 100
    assert read_pages(store, accounts_postgres.STRIKE_OFF, *values) < 300
