"""A store in one SQLite file, written ahead to a log: what is committed survives the end of the process at any point,
and with `synchronous` full the end of the power too.

Committing happens on the caller's thread: with the commits of a turn of the loop in one, that has been found faster
than a thread of its own.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bester.broker import database
from bester.broker.store import file, schema
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
from bester.broker.store_requests import (
    LETTER_BYTES,
    Bury,
    ClockState,
    Enqueue,
    PurgeOutcomes,
    Read,
    RecordRemote,
    SaveLane,
    Snapshot,
    StoredQueue,
    Write,
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
AGAIN_S = 1.0
"""Where there was no room at the start, it is looked for with a commit at most so often."""
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
        self._looked_through: tuple[int, int] | None = None  # the file that was; it takes up to a second
        self._stands_in = False  # a database in memory is open, since there is no room for the file
        self._alone = False  # the file is open without what SQLite shares with others, for which there is no room
        self._no_room: str | None = None  # why there was no room at the start
        self._unwritten: tuple[str, int] | None = None  # the name and count of this life, until they can be written
        self._again_at = 0.0
        self._to_forget: tuple[float, int] | None = None  # see `forget_from`

    # --- opening ---

    def open(self) -> Snapshot:
        """Open the file, making it where there is none and bringing it to this version where it is older.

        Raises ConfigError where it is no store or a newer one's, BesterError where it cannot be read or written. What
        is there is then left as it is.
        """
        self.close()
        self._alone, self._no_room, self._looked_through = False, None, None
        self._stands_in = not file.claim(self.path) and not self._create()
        try:
            self._connect()
            return self._begin()
        except (sqlite3.Error, TypeError, ValueError) as error:
            self.close()
            raise self._unopened(error) from None
        except BaseException:
            self.close()
            raise

    def _unopened(self, error: Exception) -> BesterError:
        """Return the error for what was found at opening, with the remedy."""
        if isinstance(error, BesterError):
            return error
        if isinstance(error, sqlite3.Error):
            return BesterError("storage-full", file.why(self.path, error))
        return BesterError("storage-full", f"{self.path}: damaged ({error}); {file.RESTORE}")

    def _create(self) -> bool:
        """Make the file. False: its disk has no room for it."""
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
        """Open the file that is there, and bring it to this version. Where its disk has no room for what SQLite shares
        with other processes, open it without, until there is some; where there was no room for the file itself, a
        database in memory stands in for it, to which nothing is written."""
        if self._stands_in:
            self._connection = sqlite3.connect(":memory:", isolation_level=None)
            schema.migrate(self._connection)
            return
        try:
            self._connection = database.connect(self.path, file.BUSY_S)
            self._ready()
            self._alone = False
        except sqlite3.Error as error:
            if not database.is_no_room(error):
                raise
            self._no_room = file.why(self.path, error)
            self._alone = True
            self.close()
            self._connection = database.connect(self.path, file.BUSY_S, alone=True)
            self._ready()

    def _ready(self) -> None:
        """See that what was opened is a whole store of this version."""
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

    def close(self) -> None:
        """Close the file; all that was committed is in it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None and self._alone:  # it could not be opened as usual, nor then without
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
        ):
            self._db.execute(f"PRAGMA {setting}")

    def _begin(self) -> Snapshot:
        """Count this life. That reaches the disk before anything else does: numbers must never be given twice.

        Where there is no room for it now, this life has a name of its own, under which no number was given before, and
        name and count go to the disk with the first that can be written.
        """
        db = self._db
        self._unwritten = None
        try:
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE state SET life = life + 1")
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
        db.execute(f"PRAGMA synchronous = {self._synchronous}")
        epoch, life = db.execute("SELECT epoch, life FROM state").fetchone() or (None, None)
        if type(epoch) is not str or type(life) is not int:
            raise ValueError("it has lost its name")
        if self._unwritten is not None:
            epoch, life = self._unwritten = self._unwritten[0], life + 1
        elif self._stands_in:
            self._unwritten = epoch, life
        handed = dict(db.execute("SELECT box, upto FROM handed"))
        clock = db.execute("SELECT stored_s, skew_s, boot, boot_s FROM clock").fetchone()
        boxes = db.execute("SELECT box, count(*), sum(size), min(number) FROM entry WHERE outcome IS NULL GROUP BY box")
        return Snapshot(
            epoch=epoch,
            life=life,
            queues={
                read_text(box): StoredQueue(messages, size_bytes, lowest, handed.get(box, 0))
                for box, messages, size_bytes, lowest in boxes
            },
            types=tuple(read_text(name) for (name,) in db.execute("SELECT name FROM seen_type ORDER BY serial")),
            lanes=tuple(
                SaveLane(read_text(peer), read_text(type_), read_text(their_epoch), floor, _outcomes_of(outcomes))
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
            full=self._no_room,
        )

    # --- writing ---

    def _write(self, writes: Sequence[Write]) -> dict[int, str | None]:
        if self._alone or self._stands_in:
            self._open_as_usual()
        db = self._db
        repeated: dict[int, str | None] = {}
        try:
            self._see_file()
            self._see_room(writes)
            db.execute("BEGIN IMMEDIATE")
            if self._unwritten is not None:
                db.execute("UPDATE state SET epoch = ?, life = ?", self._unwritten)
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
                raise BesterError("storage-full", file.why(self.path, error)) from None
            if isinstance(error, MemoryError):
                raise BesterError("storage-full", f"{self.path}: no memory to write it; see what takes it") from None
            if isinstance(error, BesterError) or not isinstance(error, Exception):
                raise
            raise UnwritableError("storage-full", f"{self.path}: {_UNWRITABLE_WHY} ({error!r})") from None
        self._unwritten = None
        if forgotten < FORGOTTEN_AT_ONCE:
            self._to_forget = None
        return repeated

    def _open_as_usual(self) -> None:
        """There was no room at the start: see whether there is now, at most once in AGAIN_S. Raises BesterError where
        there is no file yet."""
        now = time.monotonic()
        if now >= self._again_at:
            self._again_at = now + AGAIN_S
            self._stands_in = self._stands_in and not self._create()
            if not self._stands_in:
                self._alone = True  # until it is open as usual
                self.close()
                try:
                    self._connect()
                    self._db.execute(f"PRAGMA synchronous = {self._synchronous}")
                except (BesterError, ValueError, sqlite3.Error) as error:
                    self.close()
                    self._alone = True
                    raise self._unopened(error) from None
        if self._stands_in:
            raise BesterError("storage-full", self._no_room or str(self.path))

    def _see_file(self) -> None:
        """Raise BesterError where the file is not the one that was opened: what is written would be in no file."""
        if database.number_of(self.path) != self._file:
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
        if kind is Enqueue or kind is RecordRemote:
            return insert(self._db, run)
        if kind is PurgeOutcomes:
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
            if isinstance(write, Enqueue | RecordRemote):
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
            raise BesterError("storage-full", f"{self.path}: {fault}; {file.MAKE_ROOM}")

    # --- reading ---

    def _answer(self, read: Read) -> Any:
        try:
            return answer(self._db, read)
        except sqlite3.Error as error:
            raise BesterError("storage-full", file.why(self.path, error)) from None
        except ValueError as error:
            raise BesterError("storage-full", f"{self.path}: damaged ({error}); {file.RESTORE}") from None


def _outcomes_of(raw: bytes) -> dict[int, str]:
    """Return what was written of a lane. Raises ValueError for what no store has written."""
    outcomes = unpack(raw)
    if not all(type(number) is int and type(outcome) is str for number, outcome in outcomes.items()):
        raise ValueError("no outcomes by number")
    return outcomes
