"""Writes to a store in a file, for tests of files alone."""

from __future__ import annotations

from typing import Any

from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_requests import Enqueue, Entry, Fetch, mailbox

BOB = mailbox("bob")
LOTS = 1_000_000_000


def keep(number: int, body: bytes = b'"hi"', box: str = BOB, **fields: Any) -> Enqueue:
    return Enqueue(Entry(number, box, f"m{number}.0.0", "bob", "chat", body, "alice", number, {})._replace(**fields))


def waiting(store: SqliteStore) -> list[int]:
    return [entry.number for entry in store.read(Fetch(BOB, 0, LOTS, LOTS))]
