"""The store's file: modes, versions, and crashes."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bester.broker.store import file, open_store, reading, schema, sqlite
from bester.broker.store.memory import MemoryStore
from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_requests import (
    Bounds,
    Bury,
    DeadLetter,
    End,
    Entry,
    Fetch,
    FindDeadLetters,
    FindEntry,
    FindOldest,
    FindOutcomes,
    PurgeOutcomes,
    Read,
    SaveName,
)
from bester.broker.wire.codes import BesterError
from tests.plain_user import plain_user
from tests.unit.store_sqlite_stand import BOB, LOTS, keep, waiting

DEADLINE_S = 20.0


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


def found_at(path: Path) -> dict[str, tuple[int, bytes]]:
    """Return the modes and contents of a file and of the files beside it, without -shm, SQLite's own."""
    return {each.name: (each.stat().st_mode, content(each)) for each in path.parent.iterdir()}


def content(path: Path) -> bytes:
    readable = path.is_file() and not path.name.endswith("-shm") and os.access(path, os.R_OK, effective_ids=True)
    return path.read_bytes() if readable else b""


def refusal_of(path: Path) -> str:
    store = SqliteStore(path)
    with pytest.raises(BesterError) as caught:
        store.open()
    store.close()
    return caught.value.text


def refusal(path: Path) -> str:
    """Return why a file is not opened: one line with a remedy. The file must stay unchanged."""
    before = found_at(path)
    text = refusal_of(path)
    assert found_at(path) == before
    assert text.startswith(f"{path}: ")
    assert "; " in text and "\n" not in text
    return text


# --- the file -------------------------------------------------------------------------------------------------------


def test_files_are_readable_for_their_owner_alone(store: SqliteStore, path: Path) -> None:
    store.commit([keep(1)])
    names = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert names == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}


def test_file_that_others_could_read_is_closed_to_them(path: Path) -> None:
    with closing(SqliteStore(path)) as store:
        store.open()
    path.chmod(0o644)
    with closing(SqliteStore(path)) as store:
        store.open()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_closing_leaves_one_file(store: SqliteStore, path: Path) -> None:
    store.commit([keep(1)])
    store.close()
    assert [each.name for each in path.parent.iterdir()] == ["store.db"]


@pytest.mark.parametrize(("synchronous", "level"), [("full", 2), ("normal", 1)])
def test_synchronous_is_as_configured(synchronous: str, level: int, path: Path) -> None:
    with closing(SqliteStore(path, synchronous)) as store:
        store.open()
        assert store._db.execute("PRAGMA synchronous").fetchone() == (level,)
        assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_configured_store_is_opened(path: Path) -> None:
    there = open_store(path, "normal", Bounds(dead_letters=2))
    assert isinstance(there, SqliteStore)
    assert not path.exists()  # not before the store is opened
    there.open()
    there.commit([Bury(DeadLetter(id_, "t", b"", "timeout", 0, {})) for id_ in "abc"])
    assert len(there.read(FindDeadLetters(None, None, 9))) == 2
    there.close()
    assert isinstance(open_store(None, "full", Bounds()), MemoryStore)


# --- versions -------------------------------------------------------------------------------------------------------


VERSION_1 = """
CREATE TABLE state (one INTEGER PRIMARY KEY CHECK (one = 1), epoch TEXT NOT NULL, life INTEGER NOT NULL);
CREATE TABLE entry (number INTEGER PRIMARY KEY, box TEXT NOT NULL, id TEXT NOT NULL, target TEXT NOT NULL,
    type TEXT NOT NULL, sender TEXT, expires_s REAL NOT NULL, outcome TEXT, meta BLOB NOT NULL, size INTEGER NOT NULL,
    body BLOB NOT NULL);
CREATE UNIQUE INDEX entry_id ON entry (id, box);
CREATE INDEX entry_waiting ON entry (box, number, size) WHERE outcome IS NULL;
CREATE INDEX entry_expiring ON entry (expires_s) WHERE outcome IS NULL;
CREATE INDEX entry_ended ON entry (expires_s) WHERE outcome IS NOT NULL;
CREATE TABLE handed (box TEXT PRIMARY KEY, upto INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE arrived (peer TEXT NOT NULL, type TEXT NOT NULL, epoch TEXT NOT NULL, floor INTEGER NOT NULL,
    outcomes BLOB NOT NULL, PRIMARY KEY (peer, type)) WITHOUT ROWID;
CREATE TABLE seen_type (serial INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
INSERT INTO state VALUES (1, 'old', 6);
INSERT INTO entry VALUES (77, 'user/bob', 'm.0.0', 'bob', 'chat', 'alice', 5.5, NULL, x'80', 4, CAST('"hi"' AS BLOB));
INSERT INTO seen_type (name) VALUES ('chat');
PRAGMA application_id = 1651733618;
PRAGMA user_version = 1;
"""
"""Make a file of version 1, before there were dead letters."""


def make(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script)


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [*db.iterdump(), str(db.execute("PRAGMA user_version").fetchone())]


def test_older_file_is_brought_to_this_version_with_its_contents(path: Path) -> None:
    make(path, VERSION_1)
    with closing(SqliteStore(path)) as store:
        found = store.open()
        assert (found.epoch, found.life, found.types, found.dead) == ("old", 7, ("chat",), 0)
        assert store.read(Fetch(BOB, 0, 9, LOTS)) == [Entry(77, BOB, "m.0.0", "bob", "chat", b'"hi"', "alice", 5.5, {})]
        assert store.commit([Bury(DeadLetter("a", "chat", b"", "timeout", 0, {}))]).ok
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(schema.STEPS),)


def test_upgraded_file_has_the_tables_of_a_new_one(path: Path) -> None:
    make(path, VERSION_1)
    new = path.with_name("new.db")
    for each in (path, new):
        with closing(SqliteStore(each)) as store:
            store.open()

    def layout(file: Path) -> list[str]:
        with closing(sqlite3.connect(file)) as db:
            rows = db.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
            return [f"{name}: {''.join((sql or '').split())}" for name, sql in rows]

    assert layout(path) == layout(new)


def test_failed_step_leaves_the_older_file_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(path, VERSION_1)
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, ("CREATE TABLE more (x)", "DROP TABLE state", "NONSENSE")))
    before = dump(path)
    with pytest.raises(BesterError, match="syntax error"):
        SqliteStore(path).open()
    assert dump(path) == before
    monkeypatch.undo()
    with closing(SqliteStore(path)) as store:
        assert store.open().life == 7


def test_newer_file_is_refused(store: SqliteStore, path: Path) -> None:
    store.close()
    make(path, "PRAGMA user_version = 99")
    assert "newer Bester (version 99 of the store, this one reads up to 7)" in refusal(path)


@pytest.mark.parametrize("script", ["CREATE TABLE cat (name)", "PRAGMA application_id = 7", "PRAGMA user_version = 1"])
def test_database_of_another_program_is_refused(script: str, path: Path) -> None:
    make(path, script)
    assert "not a store of Bester's" in refusal(path)


def test_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"Dear diary, " * 1000)
    assert "not a database" in refusal(path)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM state",
        "UPDATE state SET epoch = x'00'",
        "INSERT INTO arrived VALUES ('s2', 'chat', 'e', 0, x'07')",
        "INSERT INTO arrived VALUES ('s2', 'chat', 'e', 0, x'c1')",
        "INSERT INTO arrived VALUES ('s2', 'chat', 'e', 0, x'81a17801')",
        "INSERT INTO arrived VALUES ('s2', 'chat', 'e', 0, x'81a178920081a161a162')",
        "INSERT INTO arrived VALUES ('s2', 'chat', 'e', 0, x'81a1789200810102')",
        "INSERT INTO arrived VALUES ('s2', 'chat', 'e', 0, x'81c3a162')",
    ],
)
def test_file_with_foreign_contents_is_refused(store: SqliteStore, path: Path, damage: str) -> None:
    store.open()
    store.close()
    with sqlite3.connect(path) as db:
        db.execute(damage)
    db.close()
    with pytest.raises(BesterError, match=r"damaged \(.*\); stop the server and put a backup in its place"):
        store.open()


def test_damaged_file_is_refused(store: SqliteStore, path: Path) -> None:
    store.commit([keep(number, b"x" * 2000) for number in range(1, 100)])
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * 8192 + whole[4096 + 8192 :])
    assert "malformed" in refusal(path)


LEAVE = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    db.execute(statement)
os._exit(0)
"""


def leave(path: Path, *statements: str) -> None:
    """Let a process end in the middle of a transaction."""
    subprocess.run([sys.executable, "-c", LEAVE, str(path), *statements], check=True, timeout=DEADLINE_S)


def test_open_database_of_another_program_is_refused(path: Path) -> None:
    leave(path, "PRAGMA journal_mode = WAL", "CREATE TABLE cat (name)")
    assert path.with_name("store.db-wal").stat().st_size  # the table is in the log alone
    path.chmod(0o644)
    assert "not a store of Bester's" in refusal(path)


def test_directory_is_refused(path: Path) -> None:
    path.mkdir(mode=0o755)
    assert refusal(path) == f"{path}: is a directory; name a file as [store] url"


def test_special_file_is_refused(path: Path) -> None:
    os.mkfifo(path, 0o644)
    assert refusal(path) == f"{path}: is no regular file; name a file as [store] url"


def test_missing_directory_is_named(path: Path) -> None:
    nowhere = path.with_name("nowhere")
    assert refusal_of(nowhere / "x.db") == f"{nowhere}: no such directory; make it, or name another [store] url"
    path.touch()
    assert refusal_of(path / "x.db") == f"{path}: is no directory; name another [store] url"
    path.with_name("loop").symlink_to("loop")
    assert "symbolic links; name a file of your own" in refusal_of(path.with_name("loop"))


def test_file_that_cannot_be_written_leaves_nothing_behind(store: SqliteStore, path: Path) -> None:
    store.commit([keep(1)])
    store.close()
    path.chmod(0o400)
    with plain_user(path.parent, path):
        assert refusal(path) == f"{path}: its mode (0400) keeps its owner from it; chmod 600 it"
        path.chmod(0o600)
        store.open()
        assert waiting(store) == [1]
        beside = path.with_name("store.db-shm")
        beside.chmod(0o400)
        other = SqliteStore(path)
        with pytest.raises(BesterError, match=r"store\.db-shm: its mode \(0400\) keeps its owner from it"):
            other.open()
        beside.chmod(0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_file_of_another_user_is_refused(path: Path) -> None:
    path.touch(0o600)
    with plain_user(path.parent):
        assert "another user's, and closed to this one; see that the right file" in refusal(path)


def test_file_in_use_can_be_examined(store: SqliteStore, path: Path) -> None:
    store._db.execute("BEGIN IMMEDIATE")
    locked = Path("/proc/locks").read_text().count(f" {os.getpid()} ")
    assert locked
    assert file.examine(path)
    assert Path("/proc/locks").read_text().count(f" {os.getpid()} ") == locked
    store._db.execute("ROLLBACK")


def test_file_that_its_journal_makes_whole_is_opened(store: SqliteStore, path: Path) -> None:
    store.commit([keep(1)])
    store.close()
    grow = "INSERT INTO entry SELECT 100, 'x', 'x', 'x', 'x', 'x', 1, NULL, x'', 1, zeroblob(1000000), NULL"
    leave(path, "PRAGMA journal_mode = DELETE", "PRAGMA cache_size = 1", "BEGIN", grow)
    assert path.with_name("store.db-journal").exists()
    with path.open("r+b") as file:  # the first page as a power cut may leave it
        file.write(bytes(16))
    store.open()
    assert waiting(store) == [1]


# --- crashes --------------------------------------------------------------------------------------------------------


WRITER = """
import sys
from pathlib import Path
from bester.broker.store_requests import End, Enqueue, Entry
from bester.broker.store.sqlite import RESERVE_BYTES, SqliteStore

store = SqliteStore(Path(sys.argv[1]))
number = store.open().life * 1_000_000
while True:
    first = number
    group = []
    for _ in range(50):
        number += 1
        group.append(Enqueue(Entry(number, "user/bob", f"m{number}", "bob", "chat", b"x" * 500, None, 9e9, {})))
    assert store.commit(group).ok
    print("kept", first + 1, number, flush=True)
    assert store.commit([End(first + 1, "", forget=True)]).ok
    print("ended", first + 1, flush=True)
"""


def test_committed_messages_survive_a_kill(path: Path) -> None:
    kept: set[int] = set()
    ended: set[int] = set()
    for lines in (1, 7, 40):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        try:
            said = [writer.stdout.readline() for _ in range(lines)]
        finally:
            writer.send_signal(signal.SIGKILL)
            with writer.stdout:  # `communicate` would not see what `readline` has read ahead
                said += writer.stdout.read().splitlines(keepends=True)
            writer.wait(DEADLINE_S)
        for line in said:
            if line.endswith("\n"):  # the last one may be cut off
                event, *numbers = line.split()
                first, last = int(numbers[0]), int(numbers[-1])
                (kept if event == "kept" else ended).update(range(first, last + 1))
    with closing(SqliteStore(path)) as store:
        assert store.open().life == 4
        there = set(waiting(store))
        assert kept - ended - there <= {
            first for first in kept if first % 50 == 1
        }  # ended, and killed before the line was printed
        assert not ended & there
        assert len(there - kept) in (0, 50, 100, 150)  # whole groups or none
        assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def after_a_kill(path: Path) -> list[int]:
    """Return the messages that the next start would find, were all processes killed now."""
    copied = path.with_name("copied.db")
    for end in ("", "-wal"):
        shutil.copy(path.with_name(path.name + end), copied.with_name(copied.name + end))
    with closing(SqliteStore(copied)) as left:
        left.open()
        return waiting(left)


def looked_into(path: Path) -> str:
    """Return the count of messages that another process finds, or what it fails with."""
    look = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM entry').fetchone())"
    run = subprocess.run(
        [sys.executable, "-c", look, path], check=False, capture_output=True, text=True, timeout=DEADLINE_S
    )
    return (run.stdout or run.stderr).strip()


@pytest.mark.parametrize("ends", [("-wal",), ("-wal", "-shm")])
def test_commits_beside_a_log_that_was_removed_outlive_a_kill(path: Path, ends: tuple[str, ...]) -> None:
    with closing(SqliteStore(path)) as store:
        store.open()
        assert store.commit([keep(1)]).ok
        for end in ends:
            path.with_name(path.name + end).unlink()
        assert store.commit([keep(2)]).ok
        assert store.commit([keep(3)]).ok
        assert after_a_kill(path) == [1, 2, 3]


def test_idle_store_is_due_for_a_commit_where_its_log_was_removed(path: Path) -> None:
    with closing(SqliteStore(path)) as store:
        store.open()
        assert store.commit([keep(1)]).ok
        was_due = [store.is_due]
        path.with_name(f"{path.name}-wal").unlink()
        was_due.append(store.is_due)
        assert store.commit([]).ok
        assert [*was_due, store.is_due] == [False, True, False]
        assert after_a_kill(path) == [1]


def test_reader_of_a_log_that_was_removed_is_waited_for(path: Path) -> None:
    with closing(SqliteStore(path)) as store:
        store.open()
        assert store.commit([keep(1)]).ok
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT count(*) FROM entry").fetchone()
            path.with_name(f"{path.name}-wal").unlink()
            result = store.commit([keep(2)])
            assert result.busy
            assert result.why.endswith("its log was removed, and another process reads from that; end the process")
            other.execute("COMMIT")
            assert store.commit([keep(2)]).ok
            assert store.commit([keep(3)]).ok
            assert after_a_kill(path) == [1, 2, 3]


@pytest.mark.parametrize("ends", [("-wal",), ("-wal", "-shm")])
def test_empty_log_of_a_process_that_opened_the_file_meanwhile_is_no_other_log(
    path: Path, ends: tuple[str, ...]
) -> None:
    with closing(SqliteStore(path)) as store:
        store.open()
        assert store.commit([keep(1)]).ok
        for end in ends:
            path.with_name(path.name + end).unlink()
        looked_into(path)
        assert path.with_name(f"{path.name}-wal").stat().st_size == 0
        assert store.commit([keep(2)]).ok
        assert store.commit([keep(3)]).ok
        assert not store.is_due
        assert after_a_kill(path) == [1, 2, 3]
        assert looked_into(path) == "3"


def test_log_of_another_file_is_not_taken_for_its_own(path: Path) -> None:
    with closing(SqliteStore(path)) as store:
        store.open()
        assert store.commit([keep(1)]).ok
        log = path.with_name(f"{path.name}-wal")
        log.unlink()
        log.write_bytes(b"another")
        result = store.commit([keep(2)])
        assert not result.ok
        assert result.why.endswith("its log was replaced while it was open; restart the server")
        log.unlink()
        assert store.commit([keep(3)]).ok
        assert waiting(store) == [1, 3]


def test_removed_or_replaced_file_takes_no_writes(path: Path) -> None:
    with closing(SqliteStore(path)) as store:
        store.open()
        assert store.commit([keep(1)]).ok
        path.rename(path.with_name("away"))
        result = store.commit([keep(2)])
        assert not result.ok
        assert result.why.endswith("removed or replaced while it was open; restart the server")
        path.write_bytes(b"")
        assert not store.commit([keep(3)]).ok
        path.with_name("away").rename(path)
        assert store.commit([keep(4)]).ok
        assert waiting(store) == [1, 4]


def test_end_of_a_message_does_not_write_its_body_again(store: SqliteStore, path: Path) -> None:
    assert store.commit([keep(1, os.urandom(500_000))]).ok
    log = path.with_name(f"{path.name}-wal")
    before_bytes = log.stat().st_size
    assert store.commit([End(1, "delivered", forget=True)]).ok
    assert log.stat().st_size - before_bytes < 100_000


@pytest.mark.parametrize(
    "read",
    [
        Fetch(BOB, 0, LOTS, LOTS),
        FindEntry("m1", "s2"),
        FindOldest(),
        FindOutcomes("m1", "alice"),
    ],
)  # fmt: skip
def test_read_goes_through_no_more_messages_than_it_names(store: SqliteStore, path: Path, read: Read) -> None:
    asked: list[str] = []
    with closing(sqlite3.connect(path)) as db:
        db.set_trace_callback(asked.append)
        reading.answer(db, read)
        steps = [step for each in list(asked) for *_, step in db.execute(f"EXPLAIN QUERY PLAN {each}").fetchall()]
    assert steps
    assert not [step for step in steps if step.startswith("SCAN entry") or "rowid>" in step]


def test_outcomes_are_counted_anew_where_there_may_be_too_many_alone(store: SqliteStore, path: Path) -> None:
    def end(first: int, count: int) -> None:
        numbers = range(first, first + count)
        assert store.commit([keep(number) for number in numbers]).ok
        assert store.commit([End(number, "delivered") for number in numbers]).ok

    def left() -> tuple[int, int]:
        """Let a minute pass: return the lowest number, and how many outcomes are remembered."""
        assert store.commit([PurgeOutcomes(0.0, 500)]).ok
        while store.commit([SaveName("s1")]).forgotten:
            pass
        with closing(sqlite3.connect(path)) as db:
            lowest, count = db.execute("SELECT min(number), count(*) FROM entry").fetchone()
            return lowest, count

    end(1, 400)
    assert left() == (1, 400)
    end(401, 100)
    assert left() == (1, 500)
    end(501, 1)
    assert left() == (7, 495)  # a hundredth more, for the next ones
    end(502, 5)
    assert left() == (7, 500)
    end(507, 300)
    assert left() == (312, 495)


def test_dead_letters_that_a_rollback_brings_back_are_weighed_again(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LETTER_BYTES", 100)
    letters = [Bury(DeadLetter(name, "t", bytes(60), "timeout", 0.0, {})) for name in ("a", "b")]
    assert store.commit([PurgeOutcomes(0.0, 500), *letters]).ok
    store._db.execute("CREATE TEMP TRIGGER full BEFORE INSERT ON entry BEGIN SELECT RAISE(ABORT, 'no room'); END")
    assert not store.commit([PurgeOutcomes(0.0, 500), keep(1)]).ok
    assert store.commit([PurgeOutcomes(0.0, 500)]).ok
    assert [each.id for each in store.read(FindDeadLetters(None, None, 9))] == ["b"]
