"""The file of a store: checks that a file may be a store, and explains the faults that SQLite finds.

A mistaken name must do no harm: no other file is changed, not even its mode, and no file is left beside it.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

from bester.broker import database
from bester.broker.store import schema
from bester.broker.store_requests import Fault
from bester.broker.wire.codes import BesterError, ConfigError

BUSY_S = 2.0
"""Patience at the start with another process that writes to the file. A running broker waits for no lock: the store
driver tries again."""
RESTORE = database.RESTORE
MAKE_ROOM = database.MAKE_ROOM
_NAME_YOUR_OWN = "name a file of your own as [store] url"


def why(path: Path, error: sqlite3.Error | OSError) -> str:
    """Return the text of an error: one line with a remedy."""
    if isinstance(error, OSError):
        return f"{path}: {error.strerror}; {MAKE_ROOM if database.is_no_room(error) else _NAME_YOUR_OWN}"
    other = "name another file as [store] url, or " if getattr(error, "sqlite_errorname", "") == "SQLITE_NOTADB" else ""
    return f"{path}: {error}; {other}{database.remedy(error)}"


def fault_of(path: Path, error: sqlite3.Error) -> tuple[Fault, str]:
    """Return the code and the text for a write that failed. A disk that was mounted read-only has room."""
    if not database.is_no_room(error):
        return "storage-unavailable", why(path, error)
    if _is_read_only(path.parent):
        return "storage-unavailable", f"{path}: {error}; its disk is mounted read-only, mount it for writing"
    return "storage-full", why(path, error)


def _is_read_only(directory: Path) -> bool:
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def claim(path: Path) -> bool:
    """Make the file readable for its user alone; return whether the file exists. Raises as `examine` does, and then
    leaves the file as found."""
    if not examine(path):
        return False
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            path.chmod(mode & 0o700)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; {_NAME_YOUR_OWN}") from None
    return True


def examine(path: Path) -> bool:
    """Return whether the file exists; then it is a store, which a server may be using.

    Raises ConfigError where the file is no store, BesterError where it cannot be read or written, was cut off, or is
    missing while its log is there.
    """
    if not database.look(path, "name a file as [store] url", _NAME_YOUR_OWN):
        _see_directory(Path(os.path.realpath(path)).parent)
        return False
    _see_content(path)
    return True


def _see_directory(path: Path) -> None:
    """Raise ConfigError where a new file has no directory to be in."""
    if not path.exists():
        raise ConfigError(f"{path}: no such directory; make it, or name another [store] url")
    if not path.is_dir():
        raise ConfigError(f"{path}: is no directory; name another [store] url")


def _see_content(path: Path) -> None:
    """Raise where the file is not a store. A file without a log beside it is read as one that cannot change: SQLite
    then makes no log.

    SQLite alone opens the file: closing another descriptor would take away the locks of a store that is open here.
    """
    real = Path(os.path.realpath(path))
    how = "mode=ro" if _with_end(real, "-wal").exists() else "mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"{real.as_uri()}?{how}", uri=True, timeout=BUSY_S)) as db:
            schema.check(db, str(path))
    except sqlite3.Error as error:
        # A file may be half written after a power cut, and whole with its journal: opening the store shows that, as it
        # shows a full disk without room for the memory that SQLite shares with other processes.
        if not _with_end(real, "-journal").exists() and not database.is_no_room(error):
            raise BesterError("storage-full", why(path, error)) from None


def _with_end(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)
