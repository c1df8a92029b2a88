"""Stores of either kind, and writes to them, for tests that hold for both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bester.broker.store.memory import MemoryStore
from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_requests import (
    DeadLetter,
    Enqueue,
    Entry,
    Fetch,
    FindDeadLetters,
    FindOutcomes,
    Read,
    Snapshot,
    Write,
    mailbox,
)

BOB = mailbox("bob")
NOW_S = 1_700_000_000.0
LOTS = 1_000_000
LETTERS = 3


class Stand:
    """A store of either kind; `again` ends the process without a close and starts the next."""

    def __init__(self, kind: str, directory: Path) -> None:
        self._path = directory / "store.db"
        self._old: list[SqliteStore] = []
        self.store: SqliteStore | MemoryStore
        if kind == "sqlite":
            self.store = SqliteStore(self._path, dead_letters=LETTERS)
        else:
            self.store = MemoryStore(dead_letters=LETTERS)
        self.first = self.store.open()

    def again(self) -> Snapshot:
        if isinstance(self.store, MemoryStore):
            self.store = self.store.copy()
        else:
            self._old.append(self.store)  # still open: a killed process closes no file
            self.store = SqliteStore(self._path, dead_letters=LETTERS)
        return self.store.open()

    def write(self, *writes: Write) -> frozenset[int]:
        result = self.store.commit(writes)
        assert result.ok, result.why
        return frozenset(result.repeated)

    def read(self, read: Read) -> Any:
        return self.store.read(read)

    def waiting(self, box: str = BOB) -> list[int]:
        return [entry.number for entry in self.read(Fetch(box, 0, LOTS, LOTS))]

    def close(self) -> None:
        for store in (*self._old, self.store):
            store.close()


def entry(number: int, box: str = BOB, body: bytes = b'"hi"', **fields: Any) -> Entry:
    there = Entry(
        number, box, f"s1/b/{number}.0.0", "bob", "chat", body, "alice", NOW_S + number, {"root": f"s1/b/{number}"}
    )
    return there._replace(**fields)


def keep(number: int, *args: Any, **fields: Any) -> Enqueue:
    return Enqueue(entry(number, *args, **fields))


def outcomes(message: str, sender: str = "alice") -> FindOutcomes:
    return FindOutcomes(message, sender)


def letter(id_: str, type_: str = "chat") -> DeadLetter:
    return DeadLetter(id_, type_, b"[1]", "handler-lost", NOW_S, {"root": id_, "attempts": 3, "bytes": 3})


def dead(id_: str | None = None, type_: str | None = None, limit: int = 10, *, bodies: bool = True) -> FindDeadLetters:
    return FindDeadLetters(id_, type_, limit, bodies)
