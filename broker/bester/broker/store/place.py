"""The place of a store: whether its file may be one, and what the faults that SQLite finds there mean.

It must never change anything where a mistaken name leads, not so much as a mode, nor leave a file beside it.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

from bester.broker.store import schema
from bester.broker.wire.codes import BesterError, ConfigError

BUSY_S = 2.0
"""How long another process may write, which it should not, before that is a fault: a broker stands still meanwhile."""
BESIDE = ("-wal", "-shm")
"""What SQLite keeps beside a file that is open, or was when its process was killed."""
RESTORE = "stop the server and put a backup in its place, without any -wal and -shm beside it"
MAKE_ROOM = "make room on its disk"
_REMEDIES = {
    "SQLITE_FULL": MAKE_ROOM,
    "SQLITE_IOERR": "see that its disk is well and has room",
    "SQLITE_CORRUPT": RESTORE,
    "SQLITE_NOTADB": f"name another file as [store] url, or {RESTORE}",
    "SQLITE_READONLY": "see that the file, its directory and its disk can be written by this user",
    "SQLITE_CANTOPEN": "see that the file and its directory are this user's",
    "SQLITE_BUSY": "end the other process that writes to it",
}
_NAME_YOUR_OWN = "name a file of your own as [store] url"


def why(path: Path, error: sqlite3.Error) -> str:
    """Return one line with a remedy."""
    name = getattr(error, "sqlite_errorname", "")  # absent where Python itself has found the fault
    remedy = "see that the file is yours, and that its disk is well"
    for beginning, better in _REMEDIES.items():
        if name.startswith(beginning):
            remedy = better
    return f"{path}: {error}; {remedy}"


def claim(path: Path) -> None:
    """Make the file with mode 0600, or see that nobody else may read it. SQLite gives its others the same mode.

    Raises as `examine` does; what is no store is left as it is.
    """
    there = examine(path)
    try:
        if there:
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                path.chmod(mode & 0o700)
        else:
            os.close(os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; {_NAME_YOUR_OWN}") from None


def examine(path: Path) -> bool:
    """Say whether there is a file; it is a store, or nothing yet. A server may be using it.

    Raises ConfigError where it cannot be one, BesterError where it cannot be read or written.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        _see_directory(Path(os.path.realpath(path)).parent)
        return False
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; {_NAME_YOUR_OWN}") from None
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        raise ConfigError(f"{path}: is {what}; name a file as [store] url")
    see_access(path)
    _see_content(path)
    return True


def _see_directory(path: Path) -> None:
    """Raise ConfigError where a new file has no directory to be in."""
    if not path.exists():
        raise ConfigError(f"{path}: no such directory; make it, or name another [store] url")
    if not path.is_dir():
        raise ConfigError(f"{path}: is no directory; name another [store] url")


def see_access(path: Path) -> None:
    """Raise BesterError where a mode keeps this user from the file, or from what is beside it.

    SQLite itself would find that out when it has made others with the same mode, which then are in the way.
    """
    real = Path(os.path.realpath(path))
    for each in (real, *(_with_end(real, end) for end in BESIDE)):
        if not each.exists() or os.access(each, os.R_OK | os.W_OK, effective_ids=True):
            continue
        found = each.stat()
        mode = stat.S_IMODE(found.st_mode)
        if found.st_uid != os.geteuid():
            fault = "another user's, and closed to this one; see that the right file is named, and that it is yours"
            raise BesterError("storage-full", f"{each}: {fault}")
        if mode & 0o600 != 0o600:
            raise BesterError("storage-full", f"{each}: its mode ({mode:04o}) keeps its owner from it; chmod 600 it")


def _see_content(path: Path) -> None:
    """Raise where the file is not a store's. Without a log beside it, it is read as if it could not change: SQLite then
    makes none.

    The file is not opened without SQLite: closing it again would take SQLite's locks from whoever has it open here.
    """
    real = Path(os.path.realpath(path))
    how = "mode=ro" if _with_end(real, "-wal").exists() else "mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"{real.as_uri()}?{how}", uri=True, timeout=BUSY_S)) as db:
            schema.check(db, str(path))
    except sqlite3.Error as error:
        # After a power cut it may be half written, and the journal makes it whole: that shows when it is opened.
        if not _with_end(real, "-journal").exists():
            raise BesterError("storage-full", why(path, error)) from None


def _with_end(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)
