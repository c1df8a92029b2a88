"""The store of a broker: one protocol, with SQLite, PostgreSQL or memory behind it.

A store carries out the core's writes in order, and each group wholly; the core alone decides what is kept, and for how
long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from bester.broker.postgres import Database, require
from bester.broker.store_requests import Bounds, Committed, Held, Read, Snapshot, Write


class Store(Protocol):
    """The store of one broker. Calls come from any thread, and one at a time.

    `is_remote`: commits and reads go over a network, so that they belong beside the loop. `away` says why nothing can
    be kept now, empty where something can. `fenced` says why this process may write nothing any more, for ever. Another
    thread than the caller's may set both. `size_bytes` is the size of a store that is no file, where it is known."""

    is_remote: bool
    away: str
    fenced: str
    size_bytes: int | None

    def claim(self) -> Held | None:
        """Take the right to write before `open`; return who has it where another process has. Raises BesterError."""

    @property
    def held_back(self) -> int:
        """Return the count of the writes that wait for room, or for a sound disk."""

    @property
    def is_due(self) -> bool:
        """Return whether the store needs a commit now, which may be empty."""

    def open(self) -> Snapshot:
        """Count this life and return the contents. Raises BesterError with a remedy."""

    def commit(self, writes: Sequence[Write]) -> Committed:
        """Write a group in one transaction, in order: the writes are on disk when this returns. Never raises.

        Where the commit fails, nothing of the group is written. Each new message and SaveLane is given up; the other
        writes are held back, and come before those of the next commit, which may have none. A Bury or a late outcome is
        held back with the Ends of its group, for one of them may be that of its message; of very many the oldest is
        given up. A group that finds the store locked by another process is returned as `busy` at once, and is still the
        caller's."""

    def begin(self, writes: Sequence[Write]) -> Callable[[], Committed]:
        """Write a group as `commit` does, up to the wait for the disk: the returned call waits, on any thread, and
        nothing is asked of the store meanwhile."""

    def hold_back(self, writes: Sequence[Write]) -> frozenset[int]:
        """Take a group that was `busy` for too long as one whose commit has failed. Returns `Committed.kept`."""

    def read(self, read: Read) -> Any:
        """Return the answer to a read of `store_requests`. Raises BesterError where the file cannot be read."""

    def close(self) -> None:
        """Close the store."""


def open_store(
    path: Path | None, synchronous: str, bounds: Bounds, *, database: Database | None = None, broker: str = "b1",
    server: str | None = None,
) -> Store:  # fmt: skip
    """Return the configured store, not opened yet: in a `database` in the namespace of a `broker` of a `server`, or in
    the file `path`, or in memory. Raises ConfigError where a library is missing."""
    if database is not None:
        require(database)
        from bester.broker.store.postgres import PostgresStore

        return PostgresStore(database, broker, synchronous, dead_letters=bounds.dead_letters, server=server)
    if path is None:
        from bester.broker.store.memory import MemoryStore

        return MemoryStore(dead_letters=bounds.dead_letters)
    from bester.broker.store.sqlite import SqliteStore

    return SqliteStore(path, synchronous, dead_letters=bounds.dead_letters)
