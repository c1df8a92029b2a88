"""SQLite files as a server finds them: made whole or not at all, looked at before they are used, opened on a full disk.

Nothing odd is taken for new: a file that was cut off, or what SQLite has left beside one that is missing, is refused
with the remedy, and stays as it is. SQLite itself would begin anew, and throw away what was beside it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from bester.broker.wire.codes import BesterError, ConfigError

BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a file that is open, or was when its process was killed."""
CHECK_BYTES = 256 * 1024 * 1024
"""A file up to this is looked through at the start, a second of a slow disk; of a larger one faults show when they are
met."""
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
_NO_ROOM = ("SQLITE_FULL", "SQLITE_IOERR")


def remedy(error: sqlite3.Error) -> str:
    """Return what helps against what SQLite complains of."""
    name = getattr(error, "sqlite_errorname", "")  # absent where Python itself has found the fault
    for beginning, help_ in _REMEDIES.items():
        if name.startswith(beginning):
            return help_
    return "see that the file is yours, and that its disk is well"


def is_no_room(error: sqlite3.Error | OSError) -> bool:
    """Say whether the disk is full, or does not take what is written for another reason: it may do so later."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "sqlite_errorname", "").startswith(_NO_ROOM)


def look(path: Path, elsewhere: str, own: str = "") -> bool:
    """Say whether there is a file that may be a database. `elsewhere` says how to name another, and `own`, where that
    is something else, how to name one that this user can reach.

    Raises ConfigError where it is no regular file, or cannot be reached; BesterError where a mode keeps this user from
    it, where it was cut off, or is missing while something of it is there.
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
        what = "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise ConfigError(f"{path}: is {what}; {elsewhere}")
    see_access(path)
    see_not_empty(path, found.st_size)
    return True


def see_nothing_left(path: Path) -> None:
    """Raise BesterError where a file is missing and something of it is there: what was written last is in that, and a
    new file would be spoiled by it."""
    left = [each.name for each in _beside(Path(os.path.realpath(path))) if os.path.lexists(each)]
    if left:
        text = f"it is missing, and what was written last may be in {' and '.join(left)} beside it"
        raise BesterError(
            "storage-full", f"{path}: {text}; put the file back, or move these away to begin with nothing"
        )


def see_not_empty(path: Path, size_bytes: int) -> None:
    """Raise BesterError where a file was cut off: what is beside it would be thrown away by SQLite."""
    if not size_bytes:
        raise BesterError(
            "storage-full",
            f"{path}: is empty (0 bytes), so something has cut it off; {RESTORE}; or, if nothing was kept in it, "
            "move it away to begin with nothing",
        )


def _beside(real: Path) -> list[Path]:
    return [real.with_name(real.name + end) for end in BESIDE]


def see_access(path: Path) -> None:
    """Raise BesterError where a mode keeps this user from the file, or from what is beside it.

    SQLite itself would find that out when it has made others with the same mode, which then are in the way.
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
    """Make a file with mode 0600 in which `fill` has put what belongs there; there is all of it or none.

    So a process that is killed meanwhile leaves nothing that could be taken for a file that was cut off. Where somebody
    else has made it at the same time, that is the file. Raises OSError, sqlite3.Error.
    """
    real = Path(os.path.realpath(path))
    new = real.with_name(f"{real.name}.new-{os.getpid()}")
    new.unlink(missing_ok=True)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with closing(sqlite3.connect(new, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL").close()  # now, for it takes room
            fill(db)
        with contextlib.suppress(FileExistsError):
            _put(new, real)
    finally:
        for each in (new, *_beside(new)):
            each.unlink(missing_ok=True)
    directory = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _put(new: Path, real: Path) -> None:
    """Give the new file its name, unless there is one of this name. Raises FileExistsError."""
    try:
        os.link(new, real)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if real.exists():
            raise FileExistsError from None
        new.rename(real)


def connect(path: Path, timeout_s: float, *, alone: bool = False) -> sqlite3.Connection:
    """Open a file that is there. `alone`: with no other process; then it needs no room on the disk to be read."""
    db = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=rw", uri=True, timeout=timeout_s, isolation_level=None)
    if alone:
        db.execute("PRAGMA locking_mode = EXCLUSIVE").close()
    return db


def damage(db: sqlite3.Connection, path: Path, *, order: bool = False) -> str | None:
    """Look through a file that is not too large for that; return what is wrong with it, None where nothing was found.

    `order`: see as well that indexes are in order and hold what their tables do, which takes several times as long
    where there are many. Raises sqlite3.Error where the file cannot be read at all.
    """
    if path.stat().st_size > CHECK_BYTES:
        return None
    found = str(db.execute("PRAGMA integrity_check(1)" if order else "PRAGMA quick_check(1)").fetchone()[0])
    return None if found == "ok" else "malformed: " + " ".join(found.replace("*** in database main ***", "").split())


def number_of(path: Path) -> tuple[int, int] | None:
    """Tell the file at a path from all others: its device and number; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
