"""The place of a store: whether its file may be one, and what the faults that SQLite finds there mean.

It must never change anything where a mistaken name leads, not so much as a mode, nor leave a file beside it.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

from bester.broker import database
from bester.broker.store import schema
from bester.broker.wire.codes import BesterError, ConfigError

BUSY_S = 2.0
"""How long another process may write, which it should not, before that is a fault: a broker stands still meanwhile."""
RESTORE = database.RESTORE
MAKE_ROOM = database.MAKE_ROOM
_NAME_YOUR_OWN = "name a file of your own as [store] url"


def why(path: Path, error: sqlite3.Error | OSError) -> str:
    """Return one line with a remedy."""
    if isinstance(error, OSError):
        return f"{path}: {error.strerror}; {MAKE_ROOM if database.is_no_room(error) else _NAME_YOUR_OWN}"
    other = "name another file as [store] url, or " if getattr(error, "sqlite_errorname", "") == "SQLITE_NOTADB" else ""
    return f"{path}: {error}; {other}{database.remedy(error)}"


def claim(path: Path) -> bool:
    """See that nobody else may read the file; say whether there is one. Raises as `examine` does; what is no store is
    left as it is."""
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
    """Say whether there is a file; it is a store. A server may be using it.

    Raises ConfigError where it cannot be one, BesterError where it cannot be read or written, was cut off, or is
    missing while something of it is there.
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
        # After a power cut it may be half written, and the journal makes it whole: that shows when it is opened. So it
        # does where a full disk has no room for what SQLite shares with others.
        if not _with_end(real, "-journal").exists() and not database.is_no_room(error):
            raise BesterError("storage-full", why(path, error)) from None


def _with_end(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)
