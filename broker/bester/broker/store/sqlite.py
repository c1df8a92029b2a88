"""A store in one SQLite file, written ahead to a log: what is committed survives the end of the process at any point,
and with `synchronous` full the end of the power too.

Committing happens on the caller's thread: with the commits of a turn of the loop in one, that has been found faster
than a thread of its own.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bester.broker.kept import (
    LETTER_BYTES,
    Arrived,
    BoxState,
    Bury,
    ClockState,
    Forget,
    Keep,
    Note,
    Read,
    Snapshot,
    Write,
)
from bester.broker.store import place, schema
from bester.broker.store.commits import GIVEN_UP, Commits, UnwritableError
from bester.broker.store.reading import answer
from bester.broker.store.rows import read_text, unpack
from bester.broker.store.writing import (
    CARRY_OUT,
    drop_heavy_letters,
    drop_oldest_letters,
    forget_from,
    forget_some,
    insert,
)
from bester.broker.wire.codes import BesterError, ConfigError

PAGE_BYTES = 4096
"""SQLite's own choice."""
LOG_PAGES = 2_000
LOG_PART = 4
"""Pages (4 KiB each) in the log before they are moved to their places: more at once means fewer of them twice. But no
more than this part of the disk's reserve, in which they must find their places where there is no other room."""
LOG_BYTES = 64 * 1024 * 1024
"""To this the log is cut after it had to be longer."""
CACHE_KIB = 16 * 1024
"""Of the file in memory: the ends of its indexes, where almost all is written."""
RESERVE_BYTES = 16 * 1024 * 1024
RESERVE_PART = 16
"""So much of the disk, or this part of a small one, is left alone by what would fill it: what makes room again, and
what says that a message was delivered, can then still be written."""
LETTERS_PART = 2
"""Dead letters may use this part of it: the ends that make room come with them."""
FORGOTTEN_AT_ONCE = 1_000
"""Old outcomes deleted with one commit, a few milliseconds; the rest goes with the next ones."""
PLENTY = 64
"""Times the reserve: with so much free, nobody counts what a group adds."""
ROW_BYTES = 1000
"""What an entry takes in the file beside its body, generously."""

_UNWRITABLE = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
_UNWRITABLE_WHY = "it cannot hold what it was given; see the reason"


def room_beside(path: Path) -> tuple[int, int]:
    """Return how many bytes are free on a file's disk, and how many it has."""
    try:
        disk = os.statvfs(path.parent)
    except OSError:  # then SQLite will say what is the matter
        return 1, 0
    return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize


def reserve_of(disk_bytes: int) -> int:
    """Return how many bytes of a disk are left to what makes room."""
    return min(RESERVE_BYTES, disk_bytes // RESERVE_PART)


class SqliteStore(Commits):
    """A store in the file `path`, mode 0600. `synchronous` is `full` or `normal`.

    Above `dead_letters` of them a new one takes the place of the oldest.
    """

    def __init__(self, path: Path, synchronous: str = "full", *, dead_letters: int = 10_000) -> None:
        super().__init__()
        self.path = path
        self._synchronous = {"full": "FULL", "normal": "NORMAL"}[synchronous]
        self._dead_letters = dead_letters
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._to_forget: tuple[float, int] | None = None  # see `forget_from`

    # --- opening ---

    def open(self) -> Snapshot:
        """Open the file, making it where there is none and bringing it to this version where it is older.

        Raises ConfigError where it is no store or a newer one's, BesterError where it cannot be read or written. What
        is there is then left as it is.
        """
        self.close()
        place.claim(self.path)
        try:
            self._connection = sqlite3.connect(self.path, timeout=place.BUSY_S, isolation_level=None)
            schema.check(self._db, str(self.path))
            self._prepare()
            schema.migrate(self._db)
            self._file = _file_at(self.path)
            return self._begin()
        except sqlite3.Error as error:
            self.close()
            raise BesterError("storage-full", place.why(self.path, error)) from None
        except (TypeError, ValueError) as error:
            self.close()
            raise BesterError("storage-full", f"{self.path}: damaged ({error}); {place.RESTORE}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; all that was committed is in it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def _db(self) -> sqlite3.Connection:
        assert self._connection is not None, "the store is not open"
        return self._connection

    def _prepare(self) -> None:
        (mode,) = self._db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise ConfigError(f"{self.path}: this file system has no shared memory; put [store] url on a local disk")
        log_pages = max(1, min(LOG_PAGES, reserve_of(room_beside(self.path)[1]) // LOG_PART // PAGE_BYTES))
        for setting in (
            "synchronous = FULL",
            f"wal_autocheckpoint = {log_pages}",
            f"journal_size_limit = {LOG_BYTES}",
            f"cache_size = -{CACHE_KIB}",
            "temp_store = MEMORY",
        ):
            self._db.execute(f"PRAGMA {setting}")

    def _begin(self) -> Snapshot:
        """Count this life. That reaches the disk in any case: numbers must never be given twice."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE state SET life = life + 1")
        db.execute(
            "DELETE FROM handed WHERE NOT EXISTS (SELECT 1 FROM entry WHERE box = handed.box AND outcome IS NULL)"
        )
        db.execute("COMMIT")
        db.execute(f"PRAGMA synchronous = {self._synchronous}")
        epoch, life = db.execute("SELECT epoch, life FROM state").fetchone() or (None, None)
        if type(epoch) is not str or type(life) is not int:
            raise ValueError("it has lost its name")
        handed = dict(db.execute("SELECT box, upto FROM handed"))
        clock = db.execute("SELECT stored_s, skew_s, boot, boot_s FROM clock").fetchone()
        boxes = db.execute("SELECT box, count(*), sum(size), min(number) FROM entry WHERE outcome IS NULL GROUP BY box")
        return Snapshot(
            epoch=epoch,
            life=life,
            boxes={
                read_text(box): BoxState(messages, size_bytes, lowest, handed.get(box, 0))
                for box, messages, size_bytes, lowest in boxes
            },
            types=tuple(read_text(name) for (name,) in db.execute("SELECT name FROM seen_type ORDER BY serial")),
            arrived=tuple(
                Arrived(read_text(peer), read_text(type_), read_text(their_epoch), floor, _outcomes_of(outcomes))
                for peer, type_, their_epoch, floor, outcomes in db.execute(
                    "SELECT peer, type, epoch, floor, outcomes FROM arrived"
                )
            ),
            next_expiry_s=db.execute("SELECT min(expires_s) FROM entry WHERE outcome IS NULL").fetchone()[0],
            dead=db.execute("SELECT count(*) FROM letter").fetchone()[0],
            clock=None if clock is None else ClockState(clock[0], clock[1], read_text(clock[2]), clock[3]),
            names=tuple(read_text(name) for (name,) in db.execute("SELECT name FROM server_name ORDER BY serial")),
            peers={
                read_text(address): bool(reports)
                for address, reports in db.execute("SELECT address, reports FROM native_peer")
            },
        )

    # --- writing ---

    def _write(self, writes: Sequence[Write]) -> dict[int, str | None]:
        db = self._db
        repeated: dict[int, str | None] = {}
        try:
            self._see_file()
            self._see_room(writes)
            db.execute("BEGIN IMMEDIATE")
            for kind, run in groupby(writes, type):
                repeated |= self._carry_out(kind, list(run))
            forgotten = self._forget_some()
            db.execute("COMMIT")
        except BaseException as error:
            self._roll_back()
            if isinstance(error, _UNWRITABLE):
                raise UnwritableError("storage-full", f"{self.path}: {_UNWRITABLE_WHY} ({error!r})") from None
            if isinstance(error, sqlite3.Error):
                self._move_log()
                raise BesterError("storage-full", place.why(self.path, error)) from None
            if isinstance(error, MemoryError):
                raise BesterError("storage-full", f"{self.path}: no memory to write it; see what takes it") from None
            if isinstance(error, BesterError) or not isinstance(error, Exception):
                raise
            raise UnwritableError("storage-full", f"{self.path}: {_UNWRITABLE_WHY} ({error!r})") from None
        if forgotten < FORGOTTEN_AT_ONCE:
            self._to_forget = None
        return repeated

    def _see_file(self) -> None:
        """Raise BesterError where the file is not the one that was opened: what is written would be in no file."""
        if _file_at(self.path) != self._file:
            fault = "the file was removed or replaced while it was open"
            raise BesterError("storage-full", f"{self.path}: {fault}; restart the server")

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error:  # then SQLite has done it
            pass

    def _move_log(self) -> None:
        """After a failure: what the log holds may still find its place, and then the log can be begun anew."""
        try:
            self._db.execute("PRAGMA wal_checkpoint").close()
        except sqlite3.Error:  # it stays in the log, where it is as good
            pass

    def _carry_out(self, kind: type[Any], run: list[Any]) -> dict[int, str | None]:
        if kind is Keep or kind is Note:
            return insert(self._db, run)
        if kind is Forget:
            self._to_forget = forget_from(self._db, run[-1])
            drop_heavy_letters(self._db, LETTER_BYTES)
        else:
            CARRY_OUT[kind](self._db, run)
        if kind is Bury:
            drop_oldest_letters(self._db, self._dead_letters)
        return {}

    def _forget_some(self) -> int:
        """Forget a part; the rest goes with the commits that come."""
        if self._to_forget is None:
            return 0
        return forget_some(self._db, *self._to_forget, FORGOTTEN_AT_ONCE)

    def _see_room(self, writes: Sequence[Write]) -> None:
        """Raise BesterError where what these add would go to the disk's reserve."""
        free_bytes, size_bytes = room_beside(self.path)
        reserve_bytes = reserve_of(size_bytes)
        if free_bytes > PLENTY * reserve_bytes:
            return
        added_bytes = 0
        if not any(type(write) in GIVEN_UP for write in writes):
            reserve_bytes //= LETTERS_PART
        for write in writes:
            if isinstance(write, Keep | Note):
                added_bytes += ROW_BYTES + len(write.entry.body)
            elif isinstance(write, Bury):
                added_bytes += ROW_BYTES + len(write.letter.body)
        if not added_bytes:
            return
        unused = self._db.execute("PRAGMA freelist_count").fetchone()[0]  # what has ended has left its room in the file
        if (
            free_bytes + PAGE_BYTES * unused < reserve_bytes + 2 * added_bytes
        ):  # to the log, and from there to its place
            fault = f"only {free_bytes // 1024:,} KiB of its disk are free"
            raise BesterError("storage-full", f"{self.path}: {fault}; {place.MAKE_ROOM}")

    # --- reading ---

    def _answer(self, read: Read) -> Any:
        try:
            return answer(self._db, read)
        except sqlite3.Error as error:
            raise BesterError("storage-full", place.why(self.path, error)) from None
        except ValueError as error:
            raise BesterError("storage-full", f"{self.path}: damaged ({error}); {place.RESTORE}") from None


def _file_at(path: Path) -> tuple[int, int] | None:
    """Say which file is at a path: its device and number."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _outcomes_of(raw: bytes) -> dict[int, str]:
    """Return what was written of a lane. Raises ValueError for what no store has written."""
    outcomes = unpack(raw)
    if not all(type(number) is int and type(outcome) is str for number, outcome in outcomes.items()):
        raise ValueError("no outcomes by number")
    return outcomes
