"""A store in one SQLite file with a write-ahead log: a commit survives the end of the process at any point, and with
`synchronous` full a power cut as well.

Commits run on the caller's thread, whichever that is: the store driver commits on the loop's own as long as the disk is
quick, for a thread costs more than a small commit. No call waits for a lock of another process once the store is open.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from bester.broker import database
from bester.broker.store import file, schema
from bester.broker.store.commits import BusyError, Commits, UnwritableError, is_given_up
from bester.broker.store.reading import answer
from bester.broker.store.snapshot import snapshot
from bester.broker.store.writing import (
    CARRY_OUT,
    SharedBody,
    count_outcomes,
    drop_heavy_letters,
    drop_oldest_letters,
    forget_some,
    insert,
    oldest_beyond,
    weigh_letters,
)
from bester.broker.store_requests import (
    LETTER_BYTES,
    Bury,
    End,
    Enqueue,
    PurgeOutcomes,
    Read,
    RecordRemote,
    Snapshot,
    Write,
)
from bester.broker.wire.codes import BesterError, ConfigError

PAGE_BYTES = 4096
"""SQLite's default."""
LOG_PAGES = 2_000
LOG_PART = 4
"""Pages of the log before a checkpoint moves them into the file: the more at once, the fewer are moved twice. But no
more than 1/LOG_PART of the disk's reserve, which must have room for them where the rest of the disk is full."""
LOG_BYTES = 64 * 1024 * 1024
"""Length to which the log is cut after it was longer."""
CACHE_KIB = 16 * 1024
"""Part of the file in memory: the ends of the indexes, where almost all writes are."""
RESERVE_BYTES = 16 * 1024 * 1024
RESERVE_PART = 16
"""Room on the disk, or share of a small disk, that writes which take room leave alone: deletions, and the ends of
messages, can then still be written."""
LETTERS_PART = 2
"""Share of the reserve that dead letters may use: the Ends that make room come with them."""
FORGOTTEN_AT_ONCE = 1_000
"""Old outcomes deleted with one commit, a few milliseconds; the rest is left to the next commits."""
PLENTY = 64
"""Multiple of the reserve: with as much free, the size of a group is not computed."""
AGAIN_S = 1.0
"""Pause between two looks for room, where there was none at the start."""
ROW_BYTES = 1000
"""Room in the file for an entry beside its body, a generous estimate."""

_UNWRITABLE = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
_UNWRITABLE_WHY = "it cannot hold what it was given; see the reason"


def room_beside(path: Path) -> tuple[int, int]:
    """Return how many bytes are free on a file's disk, and how many the disk has."""
    try:
        disk = os.statvfs(path.parent)
    except OSError:  # then SQLite will report the fault
        return 1, 0
    return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize


def reserve_of(disk_bytes: int) -> int:
    """Return the reserve of a disk: the bytes left to writes that make room."""
    return min(RESERVE_BYTES, disk_bytes // RESERVE_PART)


class SqliteStore(Commits):
    """A store in the file `path`, mode 0600. `synchronous` is `full` or `normal`. Above `dead_letters` a new dead
    letter replaces the oldest."""

    def __init__(self, path: Path, synchronous: str = "full", *, dead_letters: int = 10_000) -> None:
        super().__init__()
        self.path = path
        self._synchronous = {"full": "FULL", "normal": "NORMAL"}[synchronous]
        self._dead_letters = dead_letters
        self._letters_dropped = 0  # dead letters above a bound, in this transaction
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._log: tuple[int, int] | None = None
        self._log_path = path
        self._looked_through: tuple[int, int] | None = None  # the file that was checked, which takes up to a second
        self._stands_in = False  # a database in memory is open: there is no room for the file
        self._alone = False  # the file is open without shared memory: there is no room for that
        self._no_room: str | None = None  # why there was no room at the start
        self._unwritten: tuple[str, int] | None = None  # the name and count of this life, until they can be written
        self._again_at = 0.0
        self._busy_s = file.BUSY_S  # patience with a lock of another process: none once the store is open
        self._to_forget: tuple[float, int] | None = None  # see `forget_some`
        self._outcomes: int | None = None  # no more outcomes are remembered than these; None: not counted yet
        self._letter_bytes: int | None = None  # the same of the bodies of dead letters
        self._shared: SharedBody | None = None  # the latest one of a group

    # --- opening ---

    def open(self) -> Snapshot:
        """Open the file; make it where it is missing, and bring an older one to this version.

        Raises ConfigError where the file is no store or a newer one, BesterError where it cannot be read or written,
        and then leaves the file unchanged."""
        self.close()
        self._alone, self._no_room, self._looked_through = False, None, None
        self._busy_s = file.BUSY_S
        self._stands_in = not file.claim(self.path) and not self._create()
        try:
            self._connect()
            snapshot = self._begin()
            self._busy_s = 0.0
            self._db.execute("PRAGMA busy_timeout = 0").close()
            return snapshot
        except (sqlite3.Error, TypeError, ValueError) as error:
            self.close()
            raise self._unopened(error) from None
        except BaseException:
            self.close()
            raise

    def _unopened(self, error: Exception) -> BesterError:
        """Return the error for a fault at opening, with the remedy."""
        if isinstance(error, BesterError):
            return error
        if isinstance(error, sqlite3.Error):
            return BesterError("storage-full", file.why(self.path, error))
        return BesterError("storage-full", f"{self.path}: damaged ({error}); {file.RESTORE}")

    def _create(self) -> bool:
        """Make the file. Returns False where its disk has no room."""
        try:
            database.create(self.path, schema.migrate)
        except (OSError, sqlite3.Error) as error:
            text = file.why(self.path, error)
            if database.is_no_room(error):
                self._no_room = text
                return False
            raise ConfigError(text) if isinstance(error, OSError) else BesterError("storage-full", text) from None
        return True

    def _connect(self) -> None:
        """Open the existing file, and bring it to this version. Where the disk has no room for SQLite's shared memory,
        open the file without that, until there is some. Where there was no room for the file itself, a database in
        memory stands in, to which nothing is written."""
        self._outcomes = self._letter_bytes = None
        if self._stands_in:
            self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            schema.migrate(self._connection)
            return
        try:
            self._connection = database.connect(self.path, self._busy_s)
            self._ready()
            self._alone = False
        except sqlite3.Error as error:
            if not database.is_no_room(error):
                raise
            self._no_room = file.why(self.path, error)
            self._alone = True
            self.close()
            self._connection = database.connect(self.path, self._busy_s, alone=True)
            self._ready()

    def _ready(self) -> None:
        """Check that the open file is a whole store, and bring it to this version."""
        schema.check(self._db, str(self.path))
        self._prepare()
        number = database.number_of(self.path)
        if number is None or number != self._looked_through:
            damage = database.damage(self._db, self.path)
            if damage is not None:
                raise ValueError(damage)
            self._looked_through = number
        schema.migrate(self._db)
        self._file = database.number_of(self.path)
        self._log_path = database.log_of(self.path)
        self._log = database.number_of(self._log_path)

    def close(self) -> None:
        """Close the file; every commit is in it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None and self._alone:  # the file could not be opened, with or without shared memory
            raise BesterError("storage-full", self._no_room or str(self.path))
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
            "secure_delete = FAST",  # a build that wipes would write each body that has ended to the disk once more
        ):
            self._db.execute(f"PRAGMA {setting}")

    def _begin(self) -> Snapshot:
        """Count this life, and return the contents of the file."""
        self._count_life()
        self._db.execute(f"PRAGMA synchronous = {self._synchronous}")
        epoch, life = self._name_life()
        return snapshot(self._db, epoch, life, self._no_room)

    def _count_life(self) -> None:
        """Count this life, on disk before anything else: numbers must never be given twice.

        Where there is no room for the count, this life has an epoch of its own, under which no number was given before,
        and epoch and count are written with the first commit that succeeds.
        """
        db = self._db
        self._unwritten = None
        try:
            db.execute("BEGIN IMMEDIATE")
            schema.count_life(db)
            db.execute(
                "DELETE FROM handed WHERE NOT EXISTS (SELECT 1 FROM entry WHERE box = handed.box AND outcome IS NULL)"
            )
            db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            if not database.is_no_room(error):
                raise
            self._no_room = file.why(self.path, error)
            self._unwritten = secrets.token_hex(8), 1

    def _name_life(self) -> tuple[str, int]:
        """Return the epoch and the count of this life. Raises ValueError where the file has lost them."""
        epoch, life = self._db.execute("SELECT epoch, life FROM state").fetchone() or (None, None)
        if type(epoch) is not str or type(life) is not int:
            raise ValueError("it has lost its name")
        if self._unwritten is not None:
            self._unwritten = self._unwritten[0], life + 1
            return self._unwritten
        if self._stands_in:
            self._unwritten = epoch, life
        return epoch, life

    @property
    def is_due(self) -> bool:
        """Return whether the log was removed: an empty commit begins another one."""
        if self._connection is None or self._alone or self._stands_in:
            return False
        return database.number_of(self._log_path) != self._log and database.number_of(self.path) == self._file

    # --- writing ---

    def _write(self, writes: Sequence[Write]) -> dict[int, str | None]:
        return self._write_unsynced(writes)()

    def _write_unsynced(self, writes: Sequence[Write]) -> Callable[[], dict[int, str | None]]:
        if self._alone or self._stands_in:
            self._open_as_usual()
        self._see_file()
        self._see_log()
        db = self._db
        repeated: dict[int, str | None] = {}
        self._letters_dropped = 0
        with self._whole():
            self._see_room(writes)
            db.execute("BEGIN IMMEDIATE")
            if self._unwritten is not None:
                db.execute("UPDATE state SET epoch = ?, life = ?", self._unwritten)
            for kind, run in groupby(writes, type):
                repeated |= self._carry_out(kind, list(run))
            expired, oldest = self._forget_some()
        return partial(self._sync, repeated, expired, oldest)

    def _sync(self, repeated: dict[int, str | None], expired: int, oldest: int) -> dict[int, str | None]:
        """End the transaction, and wait for the disk: in one call of SQLite, which needs no interpreter meanwhile."""
        with self._whole():
            started = time.perf_counter()
            self._db.execute("COMMIT")
            self._sync_s = time.perf_counter() - started
        self._unwritten = None
        if self._letters_dropped or oldest:
            self._forgotten += Counter(dead_letters=self._letters_dropped, outcomes=oldest)
        if expired + oldest < FORGOTTEN_AT_ONCE:
            self._to_forget = None
        return repeated

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Undo the transaction where a part of it fails. Raises BesterError for the fault."""
        try:
            yield
        except BaseException as error:
            self._roll_back()
            self._outcomes = self._letter_bytes = None  # they may have been counted without what is back now
            database.unwrite(self._db, error)
            if isinstance(error, _UNWRITABLE):
                raise UnwritableError("storage-full", f"{self.path}: {_UNWRITABLE_WHY} ({error!r})") from None
            if isinstance(error, sqlite3.Error):
                code, why = file.fault_of(self.path, error)
                if database.is_busy(error):
                    raise BusyError(why) from None
                if code == "storage-full":
                    self._move_log()
                raise BesterError(code, why) from None
            if isinstance(error, MemoryError):
                raise BesterError("storage-full", f"{self.path}: no memory to write it; see what takes it") from None
            if isinstance(error, BesterError) or not isinstance(error, Exception):
                raise
            raise UnwritableError("storage-full", f"{self.path}: {_UNWRITABLE_WHY} ({error!r})") from None

    def _open_as_usual(self) -> None:
        """Try to open the file as usual, at most once in AGAIN_S, where there was no room at the start. Raises
        BesterError where there is no file yet."""
        now = time.monotonic()
        if now >= self._again_at:
            self._again_at = now + AGAIN_S
            self._stands_in = self._stands_in and not self._create()
            if not self._stands_in:
                self._reopen()
        if self._stands_in:
            raise BesterError("storage-full", self._no_room or str(self.path))

    def _reopen(self) -> None:
        """Close the file, and open it as usual. Raises BesterError where it cannot be opened; it is tried again with a
        later write."""
        self._alone = True  # until the file is open as usual
        self.close()
        try:
            self._connect()
            self._db.execute(f"PRAGMA synchronous = {self._synchronous}")
        except (BesterError, ValueError, sqlite3.Error) as error:
            self.close()
            self._alone = True
            unopened = self._unopened(error)
            is_busy = isinstance(error, sqlite3.Error) and database.is_busy(error)
            raise (BusyError(unopened.text) if is_busy else unopened) from None

    def _see_file(self) -> None:
        """Raise BesterError where the file was removed or replaced: writes would be in no file."""
        if database.number_of(self.path) != self._file:
            fault = "the file was removed or replaced while it was open"
            raise BesterError("storage-unavailable", f"{self.path}: {fault}; restart the server")

    def _see_log(self) -> None:
        """Open the file anew where its log was removed: the next start would find no commit of the log that is still
        open. Raises BesterError where what that log holds cannot be moved into the file, or another log is there, which
        would be taken for the file's."""
        if database.number_of(self._log_path) == self._log:
            return
        try:  # not merely moved: the shared index of the log must be empty before another log is begun
            (is_read, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            code, why = file.fault_of(self.path, error)
            raise (BusyError(why) if database.is_busy(error) else BesterError(code, why)) from None
        if is_read:
            raise BusyError(f"{self.path}: its log was removed, and another process reads from that; end the process")
        if database.is_replaced(self._log_path):
            fault = "its log was replaced while it was open"
            raise BesterError("storage-unavailable", f"{self.path}: {fault}; restart the server")
        self._reopen()

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error:  # then SQLite has rolled back by itself
            pass

    def _move_log(self) -> None:
        """Move the log's pages into the file after a failure: there may be room for them, and then the log starts
        anew."""
        try:
            self._db.execute("PRAGMA wal_checkpoint").close()
        except sqlite3.Error:  # the pages stay in the log, where they are as safe
            pass

    def _carry_out(self, kind: type[Any], run: list[Any]) -> dict[int, str | None]:
        if kind is Enqueue or kind is RecordRemote:
            if kind is RecordRemote and self._outcomes is not None:
                self._outcomes += len(run)
            repeated, self._shared = insert(self._db, run, self._shared)
            return repeated
        if kind is PurgeOutcomes:
            self._purge(run[-1])
        else:
            CARRY_OUT[kind](self._db, run)
        if kind is End and self._outcomes is not None:
            self._outcomes += len(run)
        elif kind is Bury:
            if self._letter_bytes is not None:
                self._letter_bytes += sum(len(each.letter.body) for each in run)
            self._letters_dropped += drop_oldest_letters(self._db, self._dead_letters)
        return {}

    def _purge(self, purge: PurgeOutcomes) -> None:
        """Drop heavy dead letters, and note which outcomes are to be forgotten. To count either takes the longer the
        more there are, so they are counted where there may be too many alone, and a hundredth more is forgotten."""
        upto = -1 if self._to_forget is None else self._to_forget[1]
        if self._outcomes is None or self._outcomes > purge.most:
            self._outcomes = count_outcomes(self._db)
            if self._outcomes > purge.most:
                self._outcomes = purge.most - purge.most // 100
                upto = oldest_beyond(self._db, self._outcomes)
        self._to_forget = purge.before_s, upto
        if self._letter_bytes is None or self._letter_bytes > LETTER_BYTES:
            self._letters_dropped += drop_heavy_letters(self._db, LETTER_BYTES)
            self._letter_bytes = weigh_letters(self._db)

    def _forget_some(self) -> tuple[int, int]:
        """Forget some of the outcomes that are to be forgotten; the next commits forget the rest. Returns how many had
        expired, and how many were the oldest of too many."""
        if self._to_forget is None:
            return 0, 0
        return forget_some(self._db, *self._to_forget, FORGOTTEN_AT_ONCE)

    def _see_room(self, writes: Sequence[Write]) -> None:
        """Raise BesterError where these writes would take from the disk's reserve."""
        free_bytes, size_bytes = room_beside(self.path)
        reserve_bytes = reserve_of(size_bytes)
        if free_bytes > PLENTY * reserve_bytes:
            return
        added_bytes = 0
        if not any(map(is_given_up, writes)):
            reserve_bytes //= LETTERS_PART
        bodies: dict[bytes, None] = {}  # a body of several entries is written once
        for write in writes:
            if isinstance(write, Enqueue | RecordRemote):
                added_bytes += ROW_BYTES
                bodies[write.entry.body] = None
            elif isinstance(write, Bury):
                added_bytes += ROW_BYTES + len(write.letter.body)
        added_bytes += sum(map(len, bodies))
        if not added_bytes:
            return
        unused = self._db.execute("PRAGMA freelist_count").fetchone()[0]  # pages of messages that have ended
        # A page is written to the log first, and later moved into the file: twice the room.
        if free_bytes + PAGE_BYTES * unused < reserve_bytes + 2 * added_bytes:
            fault = f"only {free_bytes // 1024:,} KiB of its disk are free"
            raise BesterError("storage-full", f"{self.path}: {fault}; {file.MAKE_ROOM}")

    # --- reading ---

    def _answer(self, read: Read) -> Any:
        try:
            return answer(self._db, read)
        except sqlite3.Error as error:
            raise BesterError("storage-full", file.why(self.path, error)) from None
        except ValueError as error:
            raise BesterError("storage-full", f"{self.path}: damaged ({error}); {file.RESTORE}") from None
