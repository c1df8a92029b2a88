"""Who may log in: accounts in SQLite, passwords as argon2id.

Several processes may use one database: what the command line changes holds on a
running server with the next question. What was removed stays written down until a
server has ended all that there was under the name. A password is never stored, logged
or kept, and an unknown name costs as much time as a wrong password.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple, Protocol

import argon2

from bester.broker.accounts_file import BUSY_S, AccountsFile, broken
from bester.broker.config import Config
from bester.broker.data_dir import prepare
from bester.broker.verifying import HASHER, LET_IN, WRONG, Verdict, Verifying
from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import MAX_USER

FILE = "accounts.db"
PASSWORD_LIMIT_BYTES = 1024
"""Longer ones only make checking slow."""
_log = logging.getLogger(__name__)


class Account(NamedTuple):
    """`created_s` is seconds of the wall clock since 1970."""

    name: str
    created_s: int


class Logins(Protocol):
    """What a broker asks about users."""

    async def verify(self, user: str, password: str, address: str) -> Verdict:
        """Say whether a password is right; `address` is the client's, empty where it has none."""

    def exists(self, name: str) -> bool:
        """Say whether there is an account of this name."""

    def changed(self) -> bool:
        """Say whether accounts may have been added or removed by somebody else since this was last asked."""

    def removed(self) -> set[str]:
        """Return the names of accounts that were removed, and are not struck off yet; there may be a new account."""

    def strike_off(self, names: Collection[str]) -> bool:
        """Nothing is left of these removed accounts. False where that could not be written down: try again."""

    def close(self) -> None:
        """Let go of files and threads."""


def open_logins(config: Config) -> Logins:
    """Return what `[accounts] auth` asks for."""
    return OpenAccounts() if config.auth == "open" else Accounts(config.server.data_dir, serving=True)


def name_fault(name: str) -> str | None:
    """Say what is wrong with a user name, or None."""
    if not name:
        return "a user name has at least one character"
    if len(name) > MAX_USER:
        return f"a user name has {MAX_USER} characters at most"
    if not name.isprintable() or name != name.strip():
        return "a user name has printable characters only, and no blanks at its ends"
    return None


def password_fault(password: str) -> str | None:
    """Say what is wrong with a password as such, or None."""
    if not password:
        return "a password has at least one character"
    try:
        size = len(password.encode())
    except UnicodeEncodeError:
        return "a password is text that UTF-8 can write"
    return f"a password has {PASSWORD_LIMIT_BYTES} bytes at most" if size > PASSWORD_LIMIT_BYTES else None


class OpenAccounts:
    """`auth = "open"`: whoever gives a name and a password is let in, and nobody is known beforehand."""

    async def verify(self, user: str, password: str, address: str) -> Verdict:
        """Let in any usable name with a password."""
        return WRONG if name_fault(user) or password_fault(password) else LET_IN

    def exists(self, name: str) -> bool:
        """Say no: there are no accounts."""
        return False

    def changed(self) -> bool:
        """Say no: there are no accounts."""
        return False

    def removed(self) -> set[str]:
        """Return nobody: there are no accounts."""
        return set()

    def strike_off(self, names: Collection[str]) -> bool:
        """Do nothing: there are no accounts."""
        return True

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


class Accounts:
    """The accounts of one server. The synchronous methods belong to the thread that made it."""

    def __init__(self, data_dir: Path, clock: Callable[[], float] = time.monotonic, *, serving: bool = False) -> None:
        """Open the database, making it where there is none. `serving`: a server will log users in from it.

        Raises ConfigError for the directory, or where the file cannot be one of accounts, BesterError else.
        """
        prepare(data_dir)
        self.path = data_dir / FILE
        self._file = AccountsFile(self.path, serving=serving)
        self._serving = serving
        self._verifying = Verifying(self._hash_of, clock)
        self._version = 0

    @property
    def _db(self) -> sqlite3.Connection:
        return self._file.db

    def close(self) -> None:
        """Close the database; checks still running are waited for, a few hundredths of a second."""
        self._verifying.close()
        self._db.close()

    def add(self, name: str, password: str) -> None:
        """Make an account. Raises BesterError where the name is taken, or name or password cannot be used."""
        fault = name_fault(name) or password_fault(password)
        if fault:
            raise BesterError("malformed", fault)
        row = (name, HASHER.hash(password), int(time.time()))
        if not self._change("INSERT INTO account VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row):
            raise BesterError(
                "not-allowed", f"there is a user {name} already; `bester user passwd` changes the password"
            )

    def passwd(self, name: str, password: str) -> None:
        """Change a password. Raises BesterError where there is no such account or the password cannot be used."""
        fault = password_fault(password)
        if fault:
            raise BesterError("malformed", fault)
        if not self._change("UPDATE account SET hash = ? WHERE name = ?", (HASHER.hash(password), name)):
            raise BesterError("unknown-user", f"there is no user {name!r}; `bester user list` shows them")

    def remove(self, name: str) -> None:
        """Remove an account, and write down that it was. Raises BesterError where there is none."""
        if not self._both(("DELETE FROM account WHERE name = ?", "INSERT OR IGNORE INTO removed VALUES (?)"), name):
            raise BesterError("unknown-user", f"there is no user {name!r}; `bester user list` shows them")

    def list(self) -> list[Account]:
        """Return all accounts by name."""
        try:
            return [Account(*row) for row in self._db.execute("SELECT name, created_s FROM account ORDER BY name")]
        except sqlite3.Error as error:
            raise self._broken(error) from None

    def exists(self, name: str) -> bool:
        """Say whether there is an account of this name: one look-up by key. Yes where the database cannot tell."""
        try:
            return self._db.execute("SELECT 1 FROM account WHERE name = ?", (name,)).fetchone() is not None
        except UnicodeEncodeError:
            return False
        except sqlite3.Error as error:
            _log.error("%s", self._broken(error).text)
            return True  # `unknown-user` would be for ever

    def changed(self) -> bool:
        """Say whether another process has written since this was last asked; cheap, no table is read."""
        if self._serving:
            self._file.look()
        try:
            version = int(self._db.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error:
            return False
        before, self._version = self._version, version
        return before != version

    def removed(self) -> set[str]:
        """Return the names of removed accounts that are not struck off. Where the database cannot tell: nobody, and
        `changed` says yes once more."""
        try:
            return {str(name) for (name,) in self._db.execute("SELECT name FROM removed")}
        except sqlite3.Error as error:
            _log.error("%s", self._broken(error).text)
            self._version = -1
            return set()

    def strike_off(self, names: Collection[str]) -> bool:
        """Nothing is left of these. Waits for nobody, as it is called by a server's loop; False: to be tried again."""
        try:
            self._db.execute("PRAGMA busy_timeout = 0")
            try:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany("DELETE FROM removed WHERE name = ?", [(name,) for name in names])
                self._db.execute("COMMIT")
            finally:
                self._undo()
                self._db.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000:.0f}")
        except sqlite3.Error:
            return False
        return True

    async def verify(self, user: str, password: str, address: str) -> Verdict:
        """Check a password. What can be nobody's is refused, and counts for nothing."""
        if name_fault(user) or password_fault(password):
            return WRONG
        return await self._verifying.verify(user, password, address)

    def _hash_of(self, user: str) -> str | None:
        try:
            row = self._db.execute("SELECT hash FROM account WHERE name = ?", (user,)).fetchone()
        except sqlite3.Error as error:
            unreadable = self._broken(error)
            _log.error("%s", unreadable.text)
            raise unreadable from None
        stored = None if row is None else str(row[0])
        if stored is not None and not _is_hash(stored):
            text = f"the password of user {user!r} cannot be read, it is damaged; `bester user passwd` mends that"
            _log.error("%s: %s", self.path, text)
            raise BesterError("storage-full", f"{self.path}: {text}")
        return stored

    def _change(self, statement: str, values: tuple[str | int, ...]) -> bool:
        try:
            return self._db.execute(statement, values).rowcount > 0
        except UnicodeEncodeError:
            raise BesterError("malformed", "a user name is text that UTF-8 can write") from None
        except sqlite3.Error as error:
            raise self._broken(error) from None

    def _both(self, statements: tuple[str, str], name: str) -> bool:
        """Carry out both, or neither; the second only where the first has changed something, which is returned."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                found = self._change(statements[0], (name,))
                if found:
                    self._change(statements[1], (name,))
                self._db.execute("COMMIT")
            finally:
                self._undo()
        except sqlite3.Error as error:
            raise self._broken(error) from None
        return found

    def _undo(self) -> None:
        """Go back to before a transaction that was begun and not ended, if there is one."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _broken(self, error: Exception) -> BesterError:
        return broken(self.path, error)


def _is_hash(stored: str) -> bool:
    """Say whether a password could fit this at all."""
    try:
        argon2.extract_parameters(stored)
    except argon2.exceptions.InvalidHashError:
        return False
    return True
