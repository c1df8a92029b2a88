"""What a broker keeps on disk: one interface, SQLite behind it, or memory alone.

A store carries out what the core says, in order and wholly; it must never decide what is kept, or for how long.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from bester.broker.store_requests import Bounds, Committed, Read, Snapshot, Write


class Store(Protocol):
    """Kept values of one broker. All of it belongs to one thread."""

    def open(self) -> Snapshot:
        """Count this life and return what is there. Raises BesterError with a remedy."""

    def commit(self, writes: Sequence[Write]) -> Committed:
        """Write all in one transaction, in order: they are on disk when this returns. Never raises.

        Where that fails nothing of it is written. Keep, Note and Arrived are then given up; the other writes are held
        back, and tried before those of the next commit, which may be of none. A Bury is held back with the ends of its
        group, for one of them may be of the message whose body it has; of very many the oldest is given up.
        """

    def read(self, read: Read) -> Any:
        """Return the answer, see `kept`. Raises BesterError where the file cannot be read."""

    def close(self) -> None:
        """Let go of it."""


def open_store(path: Path | None, synchronous: str, bounds: Bounds) -> Store:
    """Return the store that is configured, not opened yet; `path` None: in memory."""
    if path is None:
        from bester.broker.store.memory import MemoryStore

        return MemoryStore(dead_letters=bounds.dead_letters)
    from bester.broker.store.sqlite import SqliteStore

    return SqliteStore(path, synchronous, dead_letters=bounds.dead_letters)
