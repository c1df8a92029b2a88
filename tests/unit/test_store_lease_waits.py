"""Start of a broker that waits for the leases of others."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, closing

import pytest

from bester.broker.service import until_free
from bester.broker.store.postgres import PostgresStore
from bester.broker.store_requests import Held
from bester.broker.wire.codes import BesterError
from tests.postgres_server import Cluster
from tests.unit.store_stand import asked


def test_start_waits_for_one_lease_after_another_and_for_none_that_is_renewed(cluster: Cluster) -> None:
    """As of a server that was killed on all hosts, and has a new name: the lease of another broker, then its own."""
    database = cluster.database()
    with ExitStack() as stack:
        own, other = (
            stack.enter_context(closing(PostgresStore(database, name, server="new.example"))) for name in ("b1", "b2")
        )
        for store in (own, other):
            store.open()
            store.close()
        asked(other, "INSERT INTO server_name (ns, name) VALUES (:ns, 'old.example')")
        killed = "UPDATE broker SET holder = '{}', until = clock_timestamp() + INTERVAL '%s' WHERE name = '%s'"
        asked(other, killed % ("0.5 s", "b2"))
        asked(own, killed % ("1.5 s", "b1"))
        asyncio.run(until_free(own))
        own.close()
        asked(other, killed % ("9 s", "b2"))
        claims = iter([own.claim(), None])
        asked(other, killed % ("10 s", "b2"))

        def claim() -> Held | None:
            return next(claims) or PostgresStore.claim(own)

        own.claim = claim  # type: ignore[method-assign]  # the first look was before the renewal
        with pytest.raises(BesterError, match=r"server 'old\.example'"):
            asyncio.run(until_free(own))
