"""File of the accounts: created, checked, opened, and watched while a server uses the file.

A truncated or damaged file is refused, as half a file does not tell who may log in. On a full disk the file is opened
without the memory that SQLite shares with other processes, so that users with an account can log in; as soon as the
disk has room the file is opened as usual, and other processes can change accounts again.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

from bester.broker import database
from bester.broker.logs import facts
from bester.broker.wire.codes import BesterError, ConfigError

BUSY_S = 5.0
"""Seconds that the command line waits for another process's write. A server, which alone serves others meanwhile, waits
for no lock once the file is open."""
AGAIN_BUSY_S = 0.1
"""Seconds that a server waits when reopening the file after a full disk, as nothing else is served meanwhile."""
LOOK_S = 1.0
"""Interval at which a server checks that the file exists and, after a full disk, that the disk has room."""
_TABLES = {
    "account": "name TEXT PRIMARY KEY, hash TEXT NOT NULL, created_s INTEGER NOT NULL",
    "removed": "name TEXT PRIMARY KEY",
    "disabled": "name TEXT PRIMARY KEY",
}
"""Tables and their columns. A file of an earlier version lacks the later ones: they are made when it is opened."""
_ELSEWHERE = "move it away, or name another [server] data_dir"
_DAMAGED = f"see that the file is yours and Bester's; {database.RESTORE}, or move it away and add the users again"
_BUSY = "try again; a server that was started on a full disk keeps it to itself until there is room"
_log = logging.getLogger("bester.broker.accounts")


def is_there(path: Path) -> bool:
    """Return whether a file of accounts exists, without creating one. Raises as opening does."""
    try:
        return database.look(path, _ELSEWHERE)
    except OSError as error:
        raise broken(path, error) from None


def broken(path: Path, error: Exception) -> BesterError:
    """Return the error, with its remedy, for a complaint of the system, of SQLite or of a check of the file."""
    if isinstance(error, OSError):
        room = database.is_no_room(error)
        return BesterError(
            "storage-full", f"{path}: {error.strerror}; {database.MAKE_ROOM if room else 'see that the file is yours'}"
        )
    if getattr(error, "sqlite_errorname", "") == "SQLITE_BUSY":
        return BesterError("storage-full", f"{path}: {error}; {_BUSY}")
    remedy = database.remedy(error) if isinstance(error, sqlite3.Error) else database.RESTORE
    return BesterError("storage-full", f"{path}: {error}; {_DAMAGED if remedy == database.RESTORE else remedy}")


class AccountsFile:
    """Open file of accounts, with the connection `db`; belongs to one thread.

    With `serving`, a server checks logins with the file, so the whole file is checked first.
    """

    db: sqlite3.Connection

    def __init__(self, path: Path, *, serving: bool) -> None:
        """Open the file, or create the missing one. Raises ConfigError, BesterError."""
        self.path = path
        self._serving = serving
        self._look_at = 0.0
        self._limited = False
        self._gone = False
        self._busy_s = BUSY_S
        self._looked_through: tuple[int, int] | None = None  # the file that was; it takes up to a second
        try:
            self._stands_in = not is_there(path) and not self._create()
            self._open()
        except (OSError, ValueError, sqlite3.Error) as error:
            raise broken(path, error) from None
        self._busy_s = AGAIN_BUSY_S

    def _create(self) -> bool:
        """Create the file. Return False if the disk has no room and a server can serve without accounts."""
        try:
            database.create(self.path, _fill)
        except (OSError, sqlite3.Error) as error:
            if not self._serving or not database.is_no_room(error):
                raise
            text = "%s; there are no accounts until then"
            _log.warning(text, broken(self.path, error).text, extra=facts("accounts-no-room", file=str(self.path)))
            return False
        return True

    def _open(self) -> None:
        self._number = database.number_of(self.path)
        if self._stands_in:
            self.db = sqlite3.connect(":memory:", isolation_level=None)
            _fill(self.db)
            return
        try:
            self._connect(alone=False)
            self._limited = False
        except sqlite3.Error as error:
            if not self._serving or not database.is_no_room(error):
                raise
            self._connect(alone=True)
            if not self._limited:
                text = "%s; until then no user can be added or removed"
                _log.warning(text, broken(self.path, error).text, extra=facts("accounts-no-room", file=str(self.path)))
            self._limited = True

    def _connect(self, *, alone: bool) -> None:
        db = database.connect(self.path, self._busy_s, alone=alone)
        try:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version or (tables and "account" not in tables):
                problem = (
                    "written by a newer Bester" if "account" in tables else "a database, but not Bester's accounts"
                )
                raise ConfigError(f"{self.path}: {problem}; {_ELSEWHERE}")
            db.execute("PRAGMA journal_mode = WAL").close()
            if self._serving and (self._number is None or self._number != self._looked_through):
                damage = database.damage(db, self.path, order=True)
                if damage is not None:
                    raise ValueError(damage)
                self._looked_through = self._number
            if not tables >= _TABLES.keys():
                _fill(db)
            db.execute(f"PRAGMA busy_timeout = {0 if self._serving else BUSY_S * 1000:.0f}").close()
        except BaseException:
            db.close()
            raise
        self.db = db
        self._log = database.number_of(database.log_of(self.path))

    def look(self) -> None:
        """Check the file if a check is due; a server calls this method a few times a second."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        if self._limited or self._stands_in:
            self._open_as_usual()
            return
        path, gone = self.path, database.number_of(self.path) != self._number
        if not gone:
            path = database.log_of(self.path)
            if database.number_of(path) != self._log:
                gone = database.is_replaced(path)
                if not gone:
                    self._begin_log()
        if gone and not self._gone:
            _log.error(
                "%s: was removed or replaced while it was open: logins are still checked by the old one, and changes "
                "do not count; put it back, or restart the server",
                path,
                extra=facts("accounts-gone", file=str(path)),
            )
        self._gone = gone

    def _begin_log(self) -> None:
        """Open the file anew where its log was removed, once what that log holds is in the file: others cannot use the
        file until then, and a kill would lose all that the log holds."""
        try:
            (is_read, _, _) = self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            self._log_unusable(broken(self.path, error).text)
            return
        if not is_read:  # else the next look will do it
            self._open_as_usual()

    def _open_as_usual(self) -> None:
        """Reopen the file: after a full disk, if the disk has room now."""
        was_limited = self._limited or self._stands_in
        try:
            if self._stands_in:
                database.create(self.path, _fill)
                self._stands_in, self._limited = False, True
            self.db.close()
            self._open()
        except (OSError, sqlite3.Error) as error:
            if not database.is_no_room(error):  # already logged
                self._log_unusable(broken(self.path, error).text)
        except (BesterError, ValueError) as error:
            self._log_unusable(error.text if isinstance(error, BesterError) else broken(self.path, error).text)
        else:
            if was_limited and not self._limited:
                text = "%s: there is room again, and users can be added and removed"
                _log.info(text, self.path, extra=facts("accounts-room", file=str(self.path)))

    def _log_unusable(self, why: str) -> None:
        _log.error("%s", why, extra=facts("accounts-broken", why=why))


def _fill(db: sqlite3.Connection) -> None:
    for table, columns in _TABLES.items():
        db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns}) WITHOUT ROWID")
