"""Backups: a whole copy of a server's data, taken while the server serves or not.

A backup never overwrites a file. The copied store has no epoch until a start gives it one: under a shared epoch, other
servers would take its messages for duplicates of those of the original, or of another start from the same copy. A copy
has its name once all of them are complete: a program that is killed meanwhile leaves nothing that could be taken for a
copy.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from math import inf
from pathlib import Path

from bester.broker import database, new_file
from bester.broker.config import STORE_FILE
from bester.broker.database import see_access, see_not_empty, see_nothing_left
from bester.broker.store import schema
from bester.broker.wire.codes import BesterError, ConfigError

ACCOUNTS = "accounts.db"
BUSY_S = 10.0
"""Patience with another process that holds a file, such as a broker that starts."""
_NAMED = "; name a directory that is empty, or not there yet"


def backup(data_dir: Path, target: Path, *, store: Path | None = None) -> list[Path]:
    """Copy accounts and store into a directory, which is made with mode 0700 or is empty; the copies have mode 0600.

    `store` is the store's file where that is not in the data directory; a missing file is passed over. Returns the
    copies; each is whole as of one moment, and was looked through. Raises ConfigError or BesterError with the remedy,
    also where the original is damaged, and leaves no copies then."""
    pairs = [(data_dir / ACCOUNTS, ACCOUNTS), (store or data_dir / STORE_FILE, STORE_FILE)]
    sources = [(source, target / name) for source, name in pairs if _is_there(source)]
    if not sources:
        raise ConfigError(f"{data_dir}: nothing is kept there; name the file of the server with -c")
    was_there = target.is_dir()
    _prepare(target)
    named: list[Path] = []
    try:
        with _workshop(target) as workshop:
            for source, copy in sources:
                _copy(source, workshop / copy.name)
            for _, copy in sources:
                new_file.put(workshop / copy.name, copy)
                named.append(copy)
    except BaseException as error:
        for copy in named:
            copy.unlink(missing_ok=True)
        if not was_there:
            with suppress(OSError):
                target.rmdir()
        if isinstance(error, OSError):
            raise _failed(str(target), error.strerror) from None  # the error's own text names a file that is gone
        raise
    return named


@contextmanager
def _workshop(target: Path) -> Iterator[Path]:
    """Yield a hidden directory for copies that are not complete, and remove it with all that is left in it."""
    workshop = tempfile.mkdtemp(prefix=".unfinished-", dir=target)
    try:
        yield Path(workshop)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _failed(what: str, fault: object) -> BesterError:
    remedy = "see that both are yours, the disk of the copy has room, and the original is whole"
    return BesterError("storage-full", f"{what}: {fault}; {remedy}")


def _is_there(source: Path) -> bool:
    """Return whether the file exists. Raises ConfigError or BesterError where this user cannot copy the file, or where
    it was cut off or removed while its log is left: the copy would not be whole."""
    try:
        found = source.stat()
    except (FileNotFoundError, NotADirectoryError):
        see_nothing_left(source)
        return False
    except OSError as error:
        remedy = "run this as the user whose server it is"
        raise ConfigError(f"{source.parent}: {error.strerror}; {remedy}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{source}: is no file; see what [server] data_dir and [store] url name")
    see_not_empty(source, found.st_size)
    see_access(source)
    return True


def _prepare(target: Path) -> None:
    """Make the directory, or check that the directory is empty. Raises ConfigError."""
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{target}: is no directory{_NAMED}") from None
    except OSError as error:
        raise ConfigError(_unmade(target, error)) from None
    try:
        occupied = any(target.iterdir())
    except OSError as error:
        raise ConfigError(f"{target}: {error.strerror}; name a directory of your own") from None
    if occupied:
        raise ConfigError(f"{target}: there is something in it{_NAMED}")


def _unmade(target: Path, error: OSError) -> str:
    """Return the error text for a directory that could not be made."""
    there = next(parent for parent in target.absolute().parents if os.path.lexists(parent))
    if not os.path.isdir(there):
        return f"{there}: is no directory; name another place for the copies"
    cause = "" if error.errno == errno.ENOENT else f" ({error.strerror})"  # in /proc, where no directory can be made
    return f"{there}: no directory can be made there{cause}; name another place for the copies"


def _copy(source: Path, copy: Path) -> None:
    """Copy a database. Raises OSError or BesterError."""
    try:
        os.close(os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_S)) as original,
            closing(sqlite3.connect(copy, isolation_level=None)) as db,
        ):
            original.backup(db)  # within one read: a server that writes meanwhile neither waits nor shows in the copy
            db.execute("PRAGMA journal_mode = DELETE")  # then the copy is one file, which can be moved
            _see_whole(db, source, copy)
            if db.execute("PRAGMA application_id").fetchone()[0] == schema.APPLICATION:
                schema.make_copy(db)
    except sqlite3.Error as error:
        raise _failed(f"{source} to {copy.parent.parent}", error) from None


def _see_whole(db: sqlite3.Connection, source: Path, copy: Path) -> None:
    """Raise BesterError, or ConfigError, where no server would start from the copy: SQLite copies damaged pages, too.
    Nobody would know before the copy is needed, and good ones may be gone by then."""
    is_store = copy.name == STORE_FILE
    if is_store:
        schema.check(db, str(source))
    damage = database.damage(db, copy, order=not is_store, most_bytes=inf)
    if damage is not None:
        raise BesterError("storage-full", f"{source}: {damage}; {database.RESTORE}")
