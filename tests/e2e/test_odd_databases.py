"""Databases that were truncated, damaged, removed or are foreign: refused in one line and left unchanged, or reported
in the log."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from bester.broker import accounts_file, database
from bester.broker.accounts import Accounts
from bester.broker.data_dir import prepare
from bester.broker.store.backup import backup
from bester.broker.store.sqlite import SqliteStore
from bester.broker.verifying import LET_IN, OVERLOADED
from bester.broker.wire.codes import BesterError, ConfigError
from tests.live import BESTER, DEADLINE_S, Process, head, short_directory

TOML = head()
USERS = 3000
"""Users enough for a table of many pages."""
FILES = ("accounts.db", "store.db")


@pytest.fixture
async def directory() -> AsyncIterator[Path]:
    async with short_directory() as directory:
        (directory / "bester.toml").write_text(TOML)
        prepare(directory / "data")
        yield directory


def fill_accounts(data: Path) -> None:
    with closing(Accounts(data)) as accounts:
        accounts.add("tim", "secret")
        with closing(sqlite3.connect(accounts.path)) as db, db:
            db.executemany(
                "INSERT INTO account VALUES (?, ?, 1)", ((f"user{number:05}", "$" * 97) for number in range(USERS))
            )


def fill_store(data: Path) -> None:
    with closing(SqliteStore(data / "store.db")) as store:
        store.open()
    with closing(sqlite3.connect(data / "store.db")) as db, db:
        for number in range(500):
            row = (number, f"user/{number}", f"m{number}", "bob", "chat", 9e9, b"\x80", 1000, b"x" * 1000)
            db.execute("INSERT INTO entry VALUES (?, ?, ?, ?, ?, NULL, ?, NULL, ?, ?, ?, NULL)", row)


def connect_without_cache(
    connect: Callable[..., sqlite3.Connection], path: Path, timeout_s: float, *, alone: bool = False
) -> sqlite3.Connection:
    """Connect so that every page is read from the file on access."""
    db = connect(path, timeout_s, alone=alone)
    db.execute("PRAGMA cache_size = 1").close()
    return db


OPEN: dict[str, Callable[[Path], object]] = {
    "accounts.db": lambda data: Accounts(data, serving=True),
    "store.db": lambda data: SqliteStore(data / "store.db").open(),
}
FILL = {"accounts.db": fill_accounts, "store.db": fill_store}


def found(data: Path) -> dict[str, bytes]:
    """Return the databases and the files beside them, without those that SQLite writes on reading."""
    return {
        each.name: each.read_bytes() if each.is_file() else b""
        for each in data.iterdir()
        if each.name.partition("-")[0] in FILES and not each.name.endswith("-shm")
    }


async def refused(directory: Path, *arguments: str) -> str:
    """Run a command that must fail; return its one line, and check that no file was changed."""
    before = found(directory / "data")
    process = await Process.start(BESTER, *arguments, cwd=directory)
    assert await asyncio.wait_for(process.process.wait(), DEADLINE_S) in (1, 2)
    await process.end()
    (line,) = process.lines
    assert found(directory / "data") == before
    assert not list((directory / "data").glob("*.sock"))
    return line


# --- ways to spoil a file ---------------------------------------------------------------------------------------


def cut_off(path: Path) -> None:
    path.write_bytes(b"")


def cut_off_after_a_kill(path: Path) -> None:
    """Remove a database and leave its last writes beside, which SQLite would discard."""
    leave_open(path)
    path.write_bytes(b"")


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwritten_in_the_middle(path: Path) -> None:
    """Damage pages behind the header and the first pages."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2 // 4096 * 4096)
        file.write(os.urandom(2 * 4096))


def zeroed_at_its_end(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - 4 * 4096)
        file.write(bytes(4 * 4096))


def one_page_twice(path: Path) -> None:
    """Copy a page to another position, as a faulty disk may."""
    whole = path.read_bytes()
    at = len(whole) // 2 // 4096 * 4096
    path.write_bytes(whole[:at] + whole[at - 4096 : at] + whole[at + 4096 :])


def something_else(path: Path) -> None:
    path.write_bytes(b"Dear diary, " * 1000)


def anothers_database(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE cat (name)")


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


def taken_away(path: Path) -> None:
    leave_open(path)
    path.unlink()


def only_its_journal(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}-journal"))


def directory_of_that_name(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe_of_that_name(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


LEAVE = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA wal_autocheckpoint = 0")
db.execute(f"INSERT INTO {sys.argv[2]}")
os._exit(0)
"""


def leave_open(path: Path) -> None:
    """Kill a process that has written: the writes are in the log beside the file, and nowhere else."""
    what = "removed VALUES ('ann')" if path.name == "accounts.db" else "seen_type VALUES (1, 'chat')"
    subprocess.run([sys.executable, "-c", LEAVE, str(path), what], check=True, timeout=DEADLINE_S)


SPOILT: list[tuple[Callable[[Path], None], str]] = [
    (cut_off, "is empty (0 bytes), so the file was truncated; stop the server and put a backup in its place"),
    (cut_off_after_a_kill, "is empty (0 bytes)"),
    (cut_in_half, "malformed"),
    (overwritten_in_the_middle, "malformed"),
    (zeroed_at_its_end, "malformed"),
    (one_page_twice, "malformed"),
    (something_else, "not a database"),
    (anothers_database, "a database, but not "),
    (newer, "written by a newer Bester"),
    (taken_away, "the file is missing, and the last writes may be in {name}-wal and {name}-shm beside it"),
    (
        only_its_journal,
        "the file is missing, and the last writes may be in {name}-journal beside it; put the file back",
    ),
    (directory_of_that_name, "is a directory; "),
    (pipe_of_that_name, "is no regular file; "),
]


class TestAtTheStart:
    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize(("spoil", "says"), SPOILT)
    def test_odd_database_is_not_taken_for_new_and_stays_unchanged(
        self, directory: Path, name: str, spoil: Callable[[Path], None], says: str
    ) -> None:
        data = directory / "data"
        FILL[name](data)
        spoil(data / name)
        before = found(data)
        with pytest.raises(BesterError) as caught:
            OPEN[name](data)
        text = caught.value.text
        assert text.startswith(f"{data / name}: ")
        assert says.replace("{name}", name) in text
        assert "; " in text and text.isprintable()
        assert found(data) == before

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("spoil", [cut_off, overwritten_in_the_middle, taken_away])
    async def test_server_does_not_start_and_names_the_remedy(
        self, directory: Path, name: str, spoil: Callable[[Path], None]
    ) -> None:
        for fill in FILL.values():
            fill(directory / "data")
        spoil(directory / "data" / name)
        line = await refused(directory, "up")
        assert f"data/{name}: " in line
        assert "put a backup in its place" in line or "put the file back" in line

    @pytest.mark.parametrize("spoil", [cut_off, taken_away])
    async def test_no_backup_and_no_user_is_made_of_an_odd_database(
        self, directory: Path, spoil: Callable[[Path], None]
    ) -> None:
        data = directory / "data"
        for fill in FILL.values():
            fill(data)
        spoil(data / "accounts.db")
        for arguments in (("backup", "copy"), ("user", "list"), ("user", "add", "--password-stdin", "ann")):
            assert "data/accounts.db: " in await refused(directory, *arguments)
        assert not (directory / "copy").exists()

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("spoil", [cut_in_half, overwritten_in_the_middle, zeroed_at_its_end, one_page_twice])
    def test_no_backup_is_made_of_damaged_pages(
        self, directory: Path, name: str, spoil: Callable[[Path], None]
    ) -> None:
        """SQLite copies them as they are, and no server starts from the copy."""
        data = directory / "data"
        for fill in FILL.values():
            fill(data)
        spoil(data / name)
        with pytest.raises(BesterError, match=f"{data / name}.*malformed"):
            backup(data, directory / "copy")
        assert not (directory / "copy").exists()

    @pytest.mark.parametrize(("spoil", "says"), [(newer, "written by a newer"), (anothers_database, "not a store")])
    def test_no_backup_is_made_of_what_is_no_store_of_this_version(
        self, directory: Path, spoil: Callable[[Path], None], says: str
    ) -> None:
        data = directory / "data"
        fill_store(data)
        spoil(data / "store.db")
        with pytest.raises(ConfigError, match=f"{data / 'store.db'}: .*{says}"):
            backup(data, directory / "copy")

    @pytest.mark.parametrize("name", FILES)
    def test_missing_databases_are_created(self, directory: Path, name: str) -> None:
        FILL[name](directory / "data")
        assert found(directory / "data").keys() == {name}

    @pytest.mark.parametrize("name", FILES)
    def test_empty_sqlite_database_is_used(self, directory: Path, name: str) -> None:
        with closing(sqlite3.connect(directory / "data" / name)) as db:
            db.execute("VACUUM")
        FILL[name](directory / "data")


class TestMaking:
    """Check that a file exists whole or not at all."""

    @pytest.mark.parametrize("name", FILES)
    def test_process_killed_during_creation_leaves_no_file(self, directory: Path, name: str) -> None:
        path = directory / "data" / name
        program = (
            "import os, sys\nfrom pathlib import Path\nfrom bester.broker import database\n"
            "def fill(db):\n    db.execute('CREATE TABLE account (name)')\n    os.kill(os.getpid(), 9)\n"
            "database.create(Path(sys.argv[1]), fill)\n"
        )
        ended = subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=DEADLINE_S)
        assert ended.returncode == -signal.SIGKILL
        assert not path.exists()
        left, long_ago = set(os.listdir(path.parent)), time.time() - database.ABANDONED_S - 1
        assert left
        FILL[name](directory / "data")
        assert path.stat().st_size
        assert left <= set(os.listdir(path.parent))  # perhaps of a process that makes the same file now
        path.unlink()
        other = path.with_name(f"{name}.new-before-upgrade")  # a file of the operator's
        other.touch()
        (path.parent / f"{name}.new-1").symlink_to("nowhere")
        for each in (*left, other.name):
            os.utime(path.parent / each, (long_ago, long_ago))
        FILL[name](directory / "data")
        assert path.stat().st_size and left.isdisjoint(os.listdir(path.parent))
        assert other.exists()

    def test_of_two_concurrent_creations_the_first_counts(self, directory: Path) -> None:
        path = directory / "data" / "accounts.db"

        def fill(db: sqlite3.Connection) -> None:
            db.execute("CREATE TABLE late (x)")
            with closing(Accounts(path.parent)) as first:
                first.add("tim", "secret")

        database.create(path, fill)
        with closing(Accounts(path.parent)) as accounts:
            assert [each.name for each in accounts.list()] == ["tim"]
        assert found(path.parent).keys() == {"accounts.db"}

    def test_database_that_cannot_be_filled_is_not_created(self, directory: Path) -> None:
        path = directory / "data" / "store.db"
        with pytest.raises(sqlite3.OperationalError):
            database.create(path, lambda db: db.execute("NONSENSE").close())
        assert list(path.parent.iterdir()) == []

    def test_database_is_created_on_a_file_system_without_links(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_links(*_: object) -> None:
            raise PermissionError("Operation not permitted")

        monkeypatch.setattr(os, "link", no_links)
        for name in FILES:
            FILL[name](directory / "data")
        assert found(directory / "data").keys() == set(FILES)


class TestWhileItServes:
    @pytest.fixture
    def accounts(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Accounts]:
        monkeypatch.setattr(accounts_file, "LOOK_S", 0.0)
        fill_accounts(directory / "data")
        monkeypatch.setattr(database, "connect", partial(connect_without_cache, database.connect))
        accounts = Accounts(directory / "data", serving=True)
        yield accounts
        accounts.close()

    @pytest.mark.parametrize("spoil", [overwritten_in_the_middle, zeroed_at_its_end, cut_off])
    async def test_damage_is_logged_and_no_password_is_called_wrong(
        self, accounts: Accounts, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
    ) -> None:
        spoil(accounts.path)
        answers = {(await accounts.verify(f"user{number:05}", "x", "")).reason for number in range(0, USERS, 97)}
        assert answers <= {"overloaded", "authentication-failed", "try-later"}
        assert "overloaded" in answers
        loud = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert any("put a backup in its place" in record.getMessage() for record in loud)
        assert all(str(accounts.path) in record.getMessage() for record in loud)

    async def test_damaged_password_is_not_called_wrong(
        self, accounts: Accounts, caplog: pytest.LogCaptureFixture
    ) -> None:
        for stored in ("", "$argon2id$v=19$m=19456", "x" * 97):
            with closing(sqlite3.connect(accounts.path)) as db, db:
                db.execute("UPDATE account SET hash = ? WHERE name = 'tim'", (stored,))
            caplog.clear()
            assert await accounts.verify("tim", "secret", "") == OVERLOADED
            assert "the password of user 'tim' cannot be read, it is damaged; `bester user passwd`" in caplog.text
        accounts.passwd("tim", "secret")
        assert await accounts.verify("tim", "secret", "") == LET_IN

    @pytest.mark.parametrize("replaced", [False, True])
    async def test_removed_file_is_logged_once_and_logins_go_on(
        self, accounts: Accounts, caplog: pytest.LogCaptureFixture, replaced: bool
    ) -> None:
        away = accounts.path.with_name("away")
        accounts.path.rename(away)
        if replaced:
            accounts.path.write_bytes(away.read_bytes())
        for _ in range(3):
            accounts.changed()
        assert caplog.text.count("was removed or replaced while it was open") == 1
        assert "restart the server" in caplog.text
        assert await accounts.verify("tim", "secret", "") == LET_IN
        away.replace(accounts.path)
        accounts.changed()
        assert caplog.text.count("was removed or replaced") == 1

    @pytest.mark.parametrize("ends", [("-wal",), ("-wal", "-shm")])
    @pytest.mark.parametrize("meanwhile", [False, True], ids=["at once", "after another process"])
    def test_log_that_was_removed_costs_no_account(
        self, accounts: Accounts, caplog: pytest.LogCaptureFixture, ends: tuple[str, ...], *, meanwhile: bool
    ) -> None:
        accounts.add("ann", "secret")
        for end in ends:
            accounts.path.with_name(accounts.path.name + end).unlink()
        if meanwhile:
            look = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT name FROM account')"
            subprocess.run(
                [sys.executable, "-c", look, accounts.path], check=False, capture_output=True, timeout=DEADLINE_S
            )
            assert database.log_of(accounts.path).stat().st_size == 0
        accounts.changed()
        with closing(Accounts(accounts.path.parent)) as command:  # another process, until now: disk I/O error
            command.add("bob", "secret")
        copied = accounts.path.with_name("copied.db")  # what a kill would leave
        for end in ("", "-wal"):
            shutil.copy(accounts.path.with_name(accounts.path.name + end), copied.with_name(copied.name + end))
        with closing(sqlite3.connect(copied)) as db:
            assert db.execute("SELECT name FROM account WHERE name IN ('ann', 'bob', 'tim')").fetchall() == [
                ("ann",), ("bob",), ("tim",),
            ]  # fmt: skip
        assert "removed or replaced" not in caplog.text

    def test_log_of_another_file_is_logged_once(self, accounts: Accounts, caplog: pytest.LogCaptureFixture) -> None:
        log = accounts.path.with_name(f"{accounts.path.name}-wal")
        log.unlink()
        log.write_bytes(b"another")
        for _ in range(2):
            accounts.changed()
        assert caplog.text.count(f"{log}: was removed or replaced while it was open") == 1

    async def test_running_server_logs_a_removed_file(self, directory: Path) -> None:
        fill_accounts(directory / "data")
        process = await Process.start(BESTER, "up", cwd=directory)
        await process.says(" serves ")
        (directory / "data" / "accounts.db").rename(directory / "away")
        assert " error " in await process.says("accounts.db: was removed or replaced while it was open")
        assert await process.end() == 0
