"""Stores of every kind, and writes to them, for tests that hold for all."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bester.broker.postgres import connect
from bester.broker.store import Store
from bester.broker.store.memory import MemoryStore
from bester.broker.store.postgres import PostgresStore
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


KINDS = ("sqlite", "memory", "postgresql")
_brokers = count(1)


def made(kind: str, directory: Path, request: pytest.FixtureRequest) -> Store:
    """Return a new store of a kind, not opened yet; in PostgreSQL in a namespace of its own."""
    if kind == "memory":
        return MemoryStore(dead_letters=LETTERS)
    if kind == "sqlite":
        return SqliteStore(directory / "store.db", dead_letters=LETTERS)
    store = PostgresStore(request.getfixturevalue("postgres"), f"b{next(_brokers)}", dead_letters=LETTERS)
    with connect(store.database, "a test") as other:  # outcomes are found in every namespace, and ids are the same
        if other.execute("SELECT to_regclass('entry') IS NOT NULL").fetchone() == (True,):
            other.execute("DELETE FROM entry")
    return store


def asked(store: PostgresStore, statement: str) -> list[tuple[Any, ...]]:
    """Return the rows of a statement beside a store; `:ns` stands for its namespace, `:broker` for its
    broker's name."""
    with connect(store.database, "a test") as other:
        row = other.execute("SELECT ns FROM broker WHERE name = %s", (store.broker,)).fetchone()
        assert row is not None
        found = other.execute(statement.replace(":ns", str(row[0])).replace(":broker", f"'{store.broker}'").encode())
        return found.fetchall() if found.description else []


def refusing(store: PostgresStore, event: str, table: str, state: str) -> Callable[[], None]:
    """Make the database refuse the writes of a store to a table; return the function that mends that."""
    ((ns,),) = asked(store, "SELECT :ns")
    name = f"refuse_{table}_{ns}"
    asked(
        store,
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'the database refuses' USING ERRCODE = '{state}'; END $$",
    )
    asked(
        store,
        f"CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW WHEN (NEW.ns = {ns}) EXECUTE FUNCTION {name}()",
    )

    def mend() -> None:
        asked(store, f"DROP FUNCTION {name} CASCADE")

    return mend


def read_only(store: PostgresStore) -> Callable[[], None]:
    """Make every write of a store fail as on a standby; return the function that mends that."""
    return refusing(store, "UPDATE", "broker", "25006")


class Stand:
    """A store of any kind; `again` ends the process without a close and starts the next."""

    def __init__(self, kind: str, directory: Path, request: pytest.FixtureRequest) -> None:
        self._directory = directory
        self._old: list[Store] = []
        self.store: Any = made(kind, directory, request)
        self.first: Snapshot = self.store.open()

    def again(self) -> Snapshot:
        if isinstance(self.store, MemoryStore):
            self.store = self.store.copy()
        elif isinstance(self.store, PostgresStore):
            with connect(self.store.database, "a test") as other:  # as if the lease had run out
                other.execute("UPDATE broker SET until = 'epoch' WHERE name = %s", (self.store.broker,))
            self._old.append(self.store)
            self.store = PostgresStore(self.store.database, self.store.broker, dead_letters=LETTERS)
        else:
            self._old.append(self.store)  # still open: a killed process closes no file
            self.store = SqliteStore(self.store.path, dead_letters=LETTERS)
        snapshot: Snapshot = self.store.open()
        return snapshot

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
