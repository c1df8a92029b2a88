"""The store of a broker: one protocol, with SQLite or memory behind it.

A store carries out the core's writes in order, and each group wholly; the core alone decides what is kept, and for how
long.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from bester.broker.store_requests import Bounds, Committed, Read, Snapshot, Write


class Store(Protocol):
    """The store of one broker. Calls come from any thread, and one at a time."""

    def open(self) -> Snapshot:
        """Count this life and return the contents. Raises BesterError with a remedy."""

    def commit(self, writes: Sequence[Write]) -> Committed:
        """Write a group in one transaction, in order: the writes are on disk when this returns. Never raises.

        Where the commit fails, nothing of the group is written. Each new message and SaveLane is given up; the other
        writes are held back, and come before those of the next commit, which may have none. A Bury or a late outcome is
        held back with the Ends of its group, for one of them may be that of its message; of very many the oldest is
        given up. A group that finds the store locked by another process is returned as `busy` at once, and is still the
        caller's."""

    def hold_back(self, writes: Sequence[Write]) -> frozenset[int]:
        """Take a group that was `busy` for too long as one whose commit has failed. Returns `Committed.kept`."""

    def read(self, read: Read) -> Any:
        """Return the answer to a read of `store_requests`. Raises BesterError where the file cannot be read."""

    def close(self) -> None:
        """Close the store."""


def open_store(path: Path | None, synchronous: str, bounds: Bounds) -> Store:
    """Return the configured store, not opened yet; one in memory where `path` is None."""
    if path is None:
        from bester.broker.store.memory import MemoryStore

        return MemoryStore(dead_letters=bounds.dead_letters)
    from bester.broker.store.sqlite import SqliteStore

    return SqliteStore(path, synchronous, dead_letters=bounds.dead_letters)
