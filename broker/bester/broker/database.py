"""SQLite files of a server: created whole or not at all, checked before use, opened on a full disk.

A damaged state is never taken for a new one: a truncated file, or SQLite's own files beside a missing database, is
refused with the remedy and left unchanged. SQLite itself would begin a new database and discard the files beside.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
import stat
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from bester.broker.new_file import put
from bester.broker.wire.codes import BesterError, ConfigError

BESIDE = ("-wal", "-shm", "-journal")
"""Suffixes of SQLite's files beside a database that is open, or was open when its process was killed."""
CHECK_BYTES = 256 * 1024 * 1024
"""Largest file that is checked whole at the start, a second of a slow disk; in a larger one a fault shows on access."""
ABANDONED_S = 3600
"""Age of a half-made file that nobody makes any more: a slow disk takes seconds."""
RESTORE = "stop the server and put a backup in its place, without any -wal, -shm or -journal beside it"
MAKE_ROOM = "make room on its disk"
_REMEDIES = {
    "SQLITE_FULL": MAKE_ROOM,
    "SQLITE_IOERR": "see that its disk is well and has room",
    "SQLITE_CORRUPT": RESTORE,
    "SQLITE_NOTADB": RESTORE,
    "SQLITE_READONLY": "see that the file, its directory and its disk can be written by this user",
    "SQLITE_CANTOPEN": "see that file and directory are this user's, and that their disk has room and can be written",
    "SQLITE_BUSY": "end the other process that writes to it",
}
_NEW = ".new-"
_READ_CODE = re.compile(r"error code=(\d+)")
_NO_ROOM = ("SQLITE_FULL", "SQLITE_IOERR")
_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")


def remedy(error: sqlite3.Error) -> str:
    """Return the remedy for an error of SQLite."""
    name = getattr(error, "sqlite_errorname", "")  # absent where Python itself found the fault
    for beginning, help_ in _REMEDIES.items():
        if name.startswith(beginning):
            return help_
    return "see that the file is yours, and that its disk is well"


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether another process holds a lock that passes: nothing was done, and the same may succeed soon."""
    return getattr(error, "sqlite_errorname", "").startswith(_BUSY)


def is_no_room(error: sqlite3.Error | OSError) -> bool:
    """Return whether a write failed for lack of room, or for another reason that may pass."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "sqlite_errorname", "").startswith(_NO_ROOM)


def unwrite(db: sqlite3.Connection, error: BaseException) -> None:
    """Overwrite in the log of `db` what a transaction has written whose wait for the disk failed; the transaction is
    rolled back before.

    Such a transaction is whole in the log, and the next opening after a kill, or after the last connection, would take
    it for committed, although its failure was told.
    """
    if getattr(error, "sqlite_errorname", "") != "SQLITE_IOERR_FSYNC" or db.in_transaction:
        return
    with contextlib.suppress(sqlite3.Error):
        before = [(name, db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("synchronous", "wal_autocheckpoint")]
        try:
            for name, _ in before:  # no wait, which would fail; nothing is moved out of a log that is not on the disk
                db.execute(f"PRAGMA {name} = 0").close()
            db.execute("BEGIN IMMEDIATE")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            db.execute(f"PRAGMA user_version = {version}")
            db.execute("COMMIT")
        except sqlite3.Error:
            db.execute("ROLLBACK")  # which fails where SQLite has rolled back by itself
        finally:
            for name, value in before:
                db.execute(f"PRAGMA {name} = {value}").close()


def look(path: Path, elsewhere: str, own: str = "") -> bool:
    """Return whether a file exists that may be a database.

    `elsewhere` is the remedy that names another file; `own`, if given, the one for a file out of this user's reach.
    Raises ConfigError if the path is no regular file or cannot be reached; BesterError if its mode excludes this user,
    if the file was truncated, or if the file is missing and files beside remain.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        found = None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; {own or elsewhere}") from None
    if found is None:
        see_nothing_left(path)
        return False
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise ConfigError(f"{path}: is {kind}; {elsewhere}")
    see_access(path)
    see_not_empty(path, found.st_size)
    return True


def see_nothing_left(path: Path) -> None:
    """Raise BesterError if SQLite's files beside a missing database remain: they hold the last writes, and would spoil
    a new database."""
    left = [each.name for each in _beside(Path(os.path.realpath(path))) if os.path.lexists(each)]
    if left:
        text = f"the file is missing, and the last writes may be in {' and '.join(left)} beside it"
        raise BesterError(
            "storage-full", f"{path}: {text}; put the file back, or move these away to begin with nothing"
        )


def see_not_empty(path: Path, size_bytes: int) -> None:
    """Raise BesterError if a file was truncated to nothing: SQLite would discard the files beside."""
    if not size_bytes:
        raise BesterError(
            "storage-full",
            f"{path}: is empty (0 bytes), so the file was truncated; {RESTORE}; or, if the file held no data, "
            "move it away to begin with nothing",
        )


def _beside(real: Path) -> list[Path]:
    return [real.with_name(real.name + end) for end in BESIDE]


def see_access(path: Path) -> None:
    """Raise BesterError if a mode excludes this user from the file or from SQLite's files beside.

    SQLite would find the wrong mode only after creating files with the same mode, which then are in the way.
    """
    real = Path(os.path.realpath(path))
    for each in (real, *_beside(real)):
        if not each.exists() or os.access(each, os.R_OK | os.W_OK, effective_ids=True):
            continue
        found = each.stat()
        mode = stat.S_IMODE(found.st_mode)
        if found.st_uid != os.geteuid():
            fault = "another user's, and closed to this one; see that the right file is named, and that it is yours"
            raise BesterError("storage-full", f"{each}: {fault}")
        if mode & 0o600 != 0o600:
            raise BesterError("storage-full", f"{each}: its mode ({mode:04o}) keeps its owner from it; chmod 600 it")


def create(path: Path, fill: Callable[[sqlite3.Connection], None]) -> None:
    """Create a file with mode 0600 and the content that `fill` writes, whole or not at all.

    A process that is killed meanwhile leaves nothing that could be taken for a truncated file, and a later one removes
    what it left. A file that another process has created at the same time is kept. Raises OSError, sqlite3.Error.
    """
    real = Path(os.path.realpath(path))
    _remove_abandoned(real)
    new = real.with_name(f"{real.name}{_NEW}{os.getpid()}")
    new.unlink(missing_ok=True)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with closing(sqlite3.connect(new, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL").close()  # now, as this needs room
            fill(db)
            # `close` does so, too, and tells nobody of a full disk.
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
        with contextlib.suppress(FileExistsError):
            put(new, real)
    finally:
        for each in (new, *_beside(new)):
            each.unlink(missing_ok=True)


def _remove_abandoned(real: Path) -> None:
    """Remove what processes left that were killed while they created this file."""
    is_new = re.compile(rf"{re.escape(real.name + _NEW)}\d+(?:{'|'.join(BESIDE)})?")
    names: list[str] = []
    with contextlib.suppress(OSError):  # a directory that cannot be read
        names = [name for name in os.listdir(real.parent) if is_new.fullmatch(name)]
    for name in names:
        each = real.with_name(name)
        with contextlib.suppress(OSError):
            if time.time() - each.lstat().st_mtime > ABANDONED_S:
                each.unlink()


def connect(path: Path, timeout_s: float, *, alone: bool = False) -> sqlite3.Connection:
    """Open an existing file, for one thread at a time. `alone` excludes other processes; reading then needs no room on
    the disk."""
    uri = f"{Path(path).absolute().as_uri()}?mode=rw"
    db = sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False)
    if alone:
        db.execute("PRAGMA locking_mode = EXCLUSIVE").close()
    return db


def damage(db: sqlite3.Connection, path: Path, *, order: bool = False, most_bytes: float = CHECK_BYTES) -> str | None:
    """Check a file of at most `most_bytes`; return the fault, or None.

    `order` also checks indexes against their tables, which takes several times as long on large ones. Raises
    sqlite3.Error if the file cannot be read; the check itself names that as one more damage.
    """
    if path.stat().st_size > most_bytes:
        return None
    found = str(db.execute("PRAGMA integrity_check(1)" if order else "PRAGMA quick_check(1)").fetchone()[0])
    code = _READ_CODE.search(found)
    if code is not None and int(code[1]) & 0xFF == sqlite3.SQLITE_IOERR:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorname = "SQLITE_IOERR_READ"
        raise error
    return None if found == "ok" else "malformed: " + " ".join(found.replace("*** in database main ***", "").split())


def log_of(path: Path) -> Path:
    """Return the path of the log of an open database."""
    real = Path(os.path.realpath(path))
    return real.with_name(real.name + BESIDE[0])


def is_replaced(log: Path) -> bool:
    """Return whether another log is where that of an open database was removed. An empty one, which any process makes
    that opens the database meanwhile, is none."""
    try:
        return log.stat().st_size > 0
    except FileNotFoundError:
        return False


def number_of(path: Path) -> tuple[int, int] | None:
    """Return device and inode, which identify the file at a path; None if no file exists."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
