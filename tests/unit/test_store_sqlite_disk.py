"""The store's file on a full or damaged disk, and the cost of its reads."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from bester.broker import database
from bester.broker.store import file, sqlite, writing
from bester.broker.store.sqlite import RESERVE_BYTES, SqliteStore
from bester.broker.store_requests import (
    DAMAGED,
    Bury,
    DeadLetter,
    End,
    Enqueue,
    Fetch,
    FindDeadLetters,
    FindEntry,
    FindExpired,
    FindOutcomes,
    MarkSent,
    PurgeOutcomes,
    lane,
)
from bester.broker.wire.codes import BesterError
from tests.full_directory import FullDirectory
from tests.unit.store_sqlite_stand import BOB, LOTS, keep, waiting


@pytest.fixture
def path() -> Iterator[Path]:
    with TemporaryDirectory(prefix="b-") as directory:
        yield Path(directory) / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path)
    store.open()
    yield store
    store.close()


# --- full and damaged disks -----------------------------------------------------------------------------------------


def test_full_disk_refuses_additions_and_takes_deletions(store: SqliteStore) -> None:
    first, second, third = (letter * 10_000 for letter in (b"x", b"y", b"z"))
    store.commit([keep(number, first) for number in range(1, 41)])
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}").close()  # SQLite's own "database or disk is full"
    result = store.commit([keep(number, second) for number in range(41, 81)] + [End(1, "delivered")])
    assert not result.ok
    assert "full; make room on its disk" in result.why
    assert waiting(store) == list(range(2, 41))  # the End was not lost with its group
    assert not store.commit([keep(number, third) for number in range(81, 121)]).ok
    assert store.commit([keep(2000)]).ok  # room enough again
    store._db.execute("PRAGMA max_page_count = 1000000").close()
    assert store.commit([keep(number, second) for number in range(121, 161)]).ok
    assert waiting(store) == [*range(2, 41), *range(121, 161), 2000]
    assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_reserve_of_a_disk_is_left_to_deletions(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.commit([keep(number, b"x" * 100_000) for number in (1, 2, 3)])
    monkeypatch.setattr(sqlite, "room_beside", lambda path: (RESERVE_BYTES - 1, 2**40))
    result = store.commit([keep(4), End(1, "delivered")])
    assert not result.ok
    assert "KiB of its disk are free; make room" in result.why
    assert store.commit([MarkSent(BOB, 2), End(2, "delivered", forget=True)]).ok
    assert waiting(store) == [3]
    monkeypatch.undo()
    assert store.commit([keep(5)]).ok


def test_file_is_opened_without_shared_memory_until_there_is_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(SqliteStore(path)) as store:
        store.open()
        assert store.commit([keep(1)]).ok
    room = {"shared": False, "alone": True}
    connect = database.connect

    def without_room(path: Path, timeout_s: float, *, alone: bool = False) -> sqlite3.Connection:
        if not room["alone" if alone else "shared"]:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorname = "SQLITE_IOERR_SHMSIZE"
            raise error
        return connect(path, timeout_s, alone=alone)

    monkeypatch.setattr(database, "connect", without_room)
    monkeypatch.setattr(sqlite, "AGAIN_S", 0.0)
    with closing(SqliteStore(path)) as store:
        snapshot = store.open()
        assert snapshot.full is not None
        assert "see that its disk is well and has room" in snapshot.full
        assert waiting(store) == [1]
        assert store.commit([keep(2)]).ok, "it is the sharing for which there is no room"
        room["alone"] = False
        for _ in range(2):
            assert not store.commit([keep(3), End(1, "delivered")]).ok
            with pytest.raises(BesterError, match="see that its disk is well"):
                waiting(store)
        room["alone"] = room["shared"] = True
        assert store.commit([keep(4)]).ok
        assert waiting(store) == [2, 4], "the end was held back, and is not forgotten"
        with closing(connect(path, 0.0)) as other:
            other.execute("BEGIN IMMEDIATE")
    assert [each.name for each in path.parent.iterdir()] == ["store.db"]


def test_file_is_looked_through_once_however_often_it_is_opened_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking holds the loop for up to a second; without room the file is opened again every second."""
    with closing(SqliteStore(path)) as store:
        store.open()
    full = FullDirectory(monkeypatch)
    monkeypatch.setattr(sqlite, "AGAIN_S", 0.0)
    with closing(SqliteStore(path)) as store:
        store.open()
        for number in range(1, 4):
            assert store.commit([keep(number)]).ok
        assert full.looks == 1
        path.with_name("other").write_bytes(path.read_bytes())
        path.with_name("other").replace(path)  # a file of another inode at the same path
        assert store.commit([keep(4)]).ok
        assert full.looks == 2
        full.has_room = True
        assert store.commit([keep(5)]).ok
        assert full.looks == 2
        store.open()
        assert full.looks == 3


def test_free_pages_of_the_file_are_room(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.commit([keep(number, b"%d" % number * 50_000) for number in range(1, 101)])
    monkeypatch.setattr(sqlite, "room_beside", lambda path: (RESERVE_BYTES - 1_000_000, 2**40))
    assert not store.commit([keep(200)]).ok
    assert store.commit([End(number, "delivered") for number in range(1, 101)]).ok
    assert store.commit([keep(201)]).ok
    assert not store.commit([keep(202, b"x" * 20_000_000)]).ok


def test_reserve_of_a_small_disk_is_small(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "room_beside", lambda path: (2_000_000, 16_000_000))
    assert store.commit([keep(1)]).ok
    assert not store.commit([keep(2, b"x" * 600_000)]).ok


def test_log_on_a_small_disk_is_small(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "room_beside", lambda path: (8_000_000, 16_000_000))
    with closing(SqliteStore(path)) as store:
        store.open()
        for number in range(1, 201):
            assert store.commit([keep(number, b"x" * 10_000)]).ok
        assert path.with_name("store.db-wal").stat().st_size < 16_000_000 / sqlite.RESERVE_PART / 2


def test_damage_of_an_open_file_is_reported(store: SqliteStore, path: Path) -> None:
    store.commit([keep(number, b"x" * 3000) for number in range(1, 2000)])
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
    store._db.execute("PRAGMA cache_size = 1").close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with pytest.raises(BesterError, match=r"malformed; .* backup"):
        store.read(Fetch(BOB, 0, LOTS, LOTS))
    result = store.commit([keep(3000), End(5, "delivered")])
    assert not result.ok
    assert "malformed; " in result.why


@pytest.mark.parametrize(
    "damage",
    [
        "meta = x'c1'",
        "meta = x''",
        "meta = 'text'",
        "meta = x'9101'",
        "id = x'ff00'",
        "id = CAST(x'ff00' AS TEXT)",
        "type = CAST(x'c328' AS TEXT)",
        "target = 5, sender = x'00'",
        "body = 'text'",
        "body = 7",
        "expires_s = 'soon'",
    ],
)
def test_damaged_row_stops_its_own_message_alone(store: SqliteStore, damage: str) -> None:
    store.commit([keep(1), keep(2), keep(3)])
    whole = store.read(Fetch(BOB, 0, 10, LOTS))
    store._db.execute(f"UPDATE entry SET {damage} WHERE number = 2").close()  # noqa: S608 (own words)
    for entries in (store.read(Fetch(BOB, 0, 10, LOTS)), store.read(FindExpired(1e12, 10, LOTS))[0]):
        found = {entry.number: entry for entry in entries}
        assert (found[1], found[3]) == (whole[0], whole[2])
        if damage != "target = 5, sender = x'00'":  # SQLite makes text of a number
            assert found[2].meta.keys() == {DAMAGED}
        assert (found[2].number, found[2].queue) == (2, BOB)
    assert store.commit([End(2, "failed:malformed")]).ok


def test_damaged_dead_letter_is_shown_beside_the_others(store: SqliteStore) -> None:
    store.commit([Bury(DeadLetter(f"s1/b/{number}", "chat", b"1", "timeout", 1.0, {})) for number in range(3)])
    store._db.execute("UPDATE letter SET meta = x'c1' WHERE id = 's1/b/1'").close()
    letters = store.read(FindDeadLetters(None, None, 10))
    assert [letter.id for letter in letters] == ["s1/b/2", "s1/b/1", "s1/b/0"]
    assert letters[1].meta.keys() == {DAMAGED}


@pytest.mark.parametrize("how", ["IMMEDIATE", "EXCLUSIVE"])
def test_commit_waits_for_no_other_writer_and_does_nothing(store: SqliteStore, path: Path, how: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"BEGIN {how}")
        result = store.commit([keep(1), End(2, "delivered")])
        assert (result.ok, result.busy, result.code) == (False, True, "storage-unavailable")
        assert "database is locked; end the other process that writes to it" in result.why
        assert store.held_back == 0
        assert store.read(Fetch(BOB, 0, 9, LOTS)) == []
        store.hold_back([keep(3), End(2, "delivered")])
        assert store.held_back == 1
        assert store.commit(()).busy
        other.execute("ROLLBACK")
    assert store.commit([keep(1)]).ok
    assert store.held_back == 0
    assert [entry.number for entry in store.read(Fetch(BOB, 0, 9, LOTS))] == [1]


def test_file_that_may_only_be_read_is_no_full_disk(store: SqliteStore) -> None:
    store.commit([keep(1)])
    store._db.execute("PRAGMA query_only = ON").close()  # SQLite's error is that of a file without write permission
    result = store.commit([keep(2)])
    assert (result.ok, result.busy, result.code) == (False, False, "storage-unavailable")
    store._db.execute("PRAGMA query_only = OFF").close()
    assert store.commit([keep(3)]).ok


@pytest.mark.parametrize(
    ("name", "read_only", "code"),
    [
        ("SQLITE_FULL", False, "storage-full"),
        ("SQLITE_IOERR_WRITE", False, "storage-full"),
        ("SQLITE_IOERR_WRITE", True, "storage-unavailable"),
        ("SQLITE_READONLY_DBMOVED", False, "storage-unavailable"),
        ("SQLITE_BUSY_RECOVERY", False, "storage-unavailable"),
        ("SQLITE_CORRUPT", False, "storage-unavailable"),
    ],
)
def test_reason_of_a_failed_write(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str, read_only: bool, code: str
) -> None:
    error = sqlite3.OperationalError("said SQLite")
    error.sqlite_errorname = name
    if read_only:
        real = os.statvfs(path.parent)

        class Mounted:
            f_flag = real.f_flag | os.ST_RDONLY

        monkeypatch.setattr(os, "statvfs", lambda where: Mounted)
    assert file.fault_of(path, error)[0] == code
    assert ("mounted read-only" in file.fault_of(path, error)[1]) == read_only


# --- the cost of reads ----------------------------------------------------------------------------------------------


def test_no_read_looks_at_more_rows_than_it_answers(store: SqliteStore) -> None:
    asked: list[str] = []
    store._db.set_trace_callback(asked.append)
    store.commit([keep(1), keep(2, box=lane("s2", "t")), End(1, "x"), End(3, "x", forget=True)])
    store.commit([Bury(DeadLetter("a", "t", b"", "timeout", 0, {})), PurgeOutcomes(5.0, 1000)])
    for read in (
        Fetch(BOB, 0, 9, LOTS),
        FindExpired(5.0, 9, LOTS),
        FindEntry("a", "s2"),
        FindOutcomes("m", "alice"),
        FindDeadLetters(None, None, 9),
        FindDeadLetters("a", None, 9),
        FindDeadLetters(None, "t", 9),
        FindDeadLetters(None, "t", 9, oldest_first=True),
        FindDeadLetters(None, None, 9, oldest_first=True),
    ):
        store.read(read)
    store._db.set_trace_callback(None)
    statements = [text for text in asked if text.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE")]
    assert len(statements) >= 14
    for statement in statements:
        plan = [row[3] for row in store._db.execute(f"EXPLAIN QUERY PLAN {statement}")]
        assert not [step for step in plan if step.startswith("SCAN entry") and "USING" not in step], (statement, plan)
        if "id >=" not in statement:  # the few results of one message are put in order
            assert not [step for step in plan if "TEMP B-TREE" in step], (statement, plan)


def test_old_outcomes_are_purged_a_part_with_each_commit(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "FORGOTTEN_AT_ONCE", 10)
    store.commit([keep(number) for number in range(1, 26)])
    store.commit([End(number, "delivered") for number in range(1, 26)])

    def remembered() -> int:
        return int(store._db.execute("SELECT count(*) FROM entry").fetchone()[0])

    store.commit([PurgeOutcomes(24.0, 1000)])
    assert remembered() == 15
    store.commit([])
    assert remembered() == 5
    store.commit([])
    assert remembered() == 2
    store.commit([])
    assert remembered() == 2


def test_outcomes_above_the_bound_are_purged_a_part_with_each_commit(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "FORGOTTEN_AT_ONCE", 10)
    store.commit([keep(number, expires_s=100.0 - number) for number in range(1, 26)])
    store.commit([End(number, "delivered") for number in range(1, 26)])

    def remembered() -> list[int]:
        return [number for (number,) in store._db.execute("SELECT number FROM entry ORDER BY number")]

    store.commit([PurgeOutcomes(0.0, 3)])
    assert remembered() == list(range(11, 26))
    store.commit([])
    assert remembered() == list(range(21, 26))
    store.commit([])
    assert remembered() == [23, 24, 25]
    store.commit([])
    assert remembered() == [23, 24, 25]


def test_dead_letters_may_use_a_part_of_the_reserve(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.commit([keep(1)])
    letter = Bury(DeadLetter("a", "t", b"1", "expired", 0, {}))
    monkeypatch.setattr(sqlite, "room_beside", lambda path: (RESERVE_BYTES * 3 // 4, 2**40))
    assert not store.commit([keep(2), letter, End(1, "failed:expired")]).ok
    assert (waiting(store), len(store.read(FindDeadLetters(None, None, 9)))) == ([], 1)
    monkeypatch.setattr(sqlite, "room_beside", lambda path: (RESERVE_BYTES // 3, 2**40))
    assert not store.commit([letter]).ok


def test_value_that_sqlite_refuses_is_dropped(store: SqliteStore) -> None:
    store.commit([keep(1), keep(2)])
    nothing: Any = None
    assert not store.commit([MarkSent(nothing, 1), MarkSent(BOB, nothing), End(1, "delivered")]).ok
    assert waiting(store) == [2]
    assert store.commit([keep(3)]).ok


def test_every_kind_of_write_has_a_function() -> None:
    from bester.broker.store_requests import RecordRemote, Write

    assert {*writing.CARRY_OUT, Enqueue, RecordRemote, PurgeOutcomes} == set(Write.__args__)
