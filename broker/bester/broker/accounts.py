"""Accounts of a server's users in SQLite, with passwords as argon2id hashes.

Several processes may use one database: a change by the command line holds on a running server from the next question
on. The name of a removed account stays recorded until the server has ended everything that existed under the name. A
password is never stored or logged, and an unknown name takes as long as a wrong password.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Collection
from pathlib import Path

import argon2

from bester.broker import database
from bester.broker.accounts_file import BUSY_S, AccountsFile, broken
from bester.broker.data_dir import prepare
from bester.broker.logs import facts
from bester.broker.users import (
    UNREADABLE,
    Account,
    change_password,
    check_name,
    hashed,
    name_fault,
    name_taken,
    no_account,
    password_fault,
)
from bester.broker.verifying import NO_PASSWORD, WRONG, Verdict, Verifying
from bester.broker.wire.codes import BesterError

FILE = "accounts.db"
_EXISTING = "SELECT name FROM json_each(?) CROSS JOIN account ON name = value"  # in this order: a look for each name
_DISABLED = "SELECT name FROM json_each(?) CROSS JOIN disabled ON name = value"
_ENABLED = "name NOT IN (SELECT name FROM disabled)"
_log = logging.getLogger(__name__)


class Accounts:
    """Accounts of one server. The synchronous methods belong to the thread that made the object."""

    def __init__(self, data_dir: Path, clock: Callable[[], float] = time.monotonic, *, serving: bool = False) -> None:
        """Open the database, or create the missing one. `serving`: a server checks logins with this object.

        Raises ConfigError for the directory or for a file that is no file of accounts, else BesterError.
        """
        prepare(data_dir)
        self.path = data_dir / FILE
        self._file = AccountsFile(self.path, serving=serving)
        self._serving = serving
        self._verifying = Verifying(self._hash_of, clock)
        self._version = 0

    @property
    def lockouts(self) -> int:
        """Times that a user at an address was made to wait after wrong passwords."""
        return self._verifying.lockouts

    @property
    def _db(self) -> sqlite3.Connection:
        return self._file.db

    def close(self) -> None:
        """Close the database, after waiting some hundredths of a second for running checks."""
        self._verifying.close()
        self._db.close()

    def add(self, name: str, password: str) -> None:
        """Create an account. Raises BesterError for a name that is taken, or an unusable name or password."""
        check_name(name)
        row = (name, hashed(password), time.time())  # the fraction tells two accounts of one name apart
        if not self._change("INSERT INTO account VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row):
            raise name_taken(name)

    def passwd(self, name: str, password: str) -> None:
        """Change a password. Raises BesterError for an unknown account or an unusable password."""
        if not self._change("UPDATE account SET hash = ? WHERE name = ?", (hashed(password), name)):
            raise no_account(name)

    def remove(self, name: str) -> None:
        """Remove an account and record the removal. Raises BesterError for an unknown account."""
        first, *others = (
            "DELETE FROM account WHERE name = ?",
            "INSERT OR IGNORE INTO removed VALUES (?)",
            "DELETE FROM disabled WHERE name = ?",
        )
        if not self._all((first, *others), name):
            raise no_account(name)

    def disable(self, name: str) -> None:
        """Let nobody log in to an account, and change nothing else. Raises BesterError for an unknown account."""
        known = "UPDATE account SET name = name WHERE name = ?"
        if not self._all((known, "INSERT OR IGNORE INTO disabled VALUES (?)"), name):
            raise no_account(name)

    def enable(self, name: str) -> None:
        """Let the user of an account log in again. Raises BesterError for an unknown account."""
        known = "UPDATE account SET name = name WHERE name = ?"
        if not self._all((known, "DELETE FROM disabled WHERE name = ?"), name):
            raise no_account(name)

    def list(self) -> list[Account]:
        """Return all accounts, ordered by name."""
        try:
            rows = self._db.execute(
                "SELECT name, created_s, name IN (SELECT name FROM disabled) FROM account ORDER BY name"
            )
            return [Account(name, int(created_s), bool(disabled)) for name, created_s, disabled in rows]
        except sqlite3.Error as error:
            raise self._broken(error) from None

    def exists(self, name: str) -> bool:
        """Return whether an account has this name, by one look-up of the key; True if the database cannot be read."""
        try:
            return self._db.execute("SELECT 1 FROM account WHERE name = ?", (name,)).fetchone() is not None
        except UnicodeEncodeError:
            return False
        except sqlite3.Error as error:
            self._log_broken(error)
            return True  # `unknown-user` would be permanent

    def existing(self, names: Collection[str]) -> set[str]:
        """Return those of these names that accounts have, in one question; all if the database cannot be read. Names
        that UTF-8 cannot write have no account."""
        if len(names) == 1:
            return {name for name in names if self.exists(name)}
        try:
            found = self._db.execute(_EXISTING, (json.dumps(list(names)),))
            return {name for (name,) in found}
        except sqlite3.Error as error:
            self._log_broken(error)
            return set(names)

    def token(self, name: str) -> str | None:
        """Return the time at which an account was made, in full; None for an unknown or disabled account. While the
        database cannot be read, return UNREADABLE."""
        try:
            row = self._db.execute(f"SELECT created_s FROM account WHERE name = ? AND {_ENABLED}", (name,)).fetchone()  # noqa: S608 (own words)
        except UnicodeEncodeError:
            return None
        except sqlite3.Error as error:
            self._log_broken(error)
            return UNREADABLE
        return None if row is None else repr(float(row[0]))

    def disabled(self, names: Collection[str]) -> set[str]:
        """Return those of these names whose accounts are disabled; an empty set while the database cannot be read."""
        try:
            if self._db.execute("SELECT 1 FROM disabled LIMIT 1").fetchone() is None:
                return set()
            return {str(name) for (name,) in self._db.execute(_DISABLED, (json.dumps(list(names)),))}
        except sqlite3.Error as error:
            self._log_broken(error)
            return set()

    async def learn(self, name: str) -> bool:
        """Make sure that a user has an account whose login another program has found good; a new one has no password.
        Return False if the account cannot be written now: a server's loop waits for no lock."""
        row = (name, NO_PASSWORD, time.time())
        try:
            if self._db.execute("SELECT 1 FROM account WHERE name = ?", (name,)).fetchone() is not None:
                return True
            self._db.execute("PRAGMA busy_timeout = 0")
            try:
                self._db.execute("INSERT INTO account VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row)
            finally:
                self._db.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000:.0f}")
        except sqlite3.Error as error:
            why = self._broken(error).text
            _log.error("user %r cannot be given an account now: %s", name, why, extra=facts("accounts-broken", why=why))
            return False
        return True

    async def change(self, user: str, old: str, new: str, address: str) -> Verdict:
        """Change a user's password, as `change_password` does."""
        return await change_password(
            user, old, new, address, hash_of=self._hash_of, verify=self.verify, replace=self._replace
        )

    async def _replace(self, user: str, stored: str, made: str) -> bool:
        statement = f"UPDATE account SET hash = ? WHERE name = ? AND hash = ? AND {_ENABLED}"  # noqa: S608 (own words)
        try:
            self._db.execute("PRAGMA busy_timeout = 0")
            try:
                return self._db.execute(statement, (made, user, stored)).rowcount > 0
            finally:
                self._db.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000:.0f}")
        except sqlite3.Error as error:
            raise self._broken(error) from None

    def changed(self) -> bool:
        """Return whether another process has written since the last call; cheap, as no table is read."""
        if self._serving:
            self._file.look()
        try:
            version = int(self._db.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error:
            return False
        before, self._version = self._version, version
        return before != version

    def removed(self) -> set[str]:
        """Return the names of removed accounts that are not struck off. If the database cannot be read, return an empty
        set, and let `changed` return True once more."""
        try:
            return {str(name) for (name,) in self._db.execute("SELECT name FROM removed")}
        except sqlite3.Error as error:
            self._log_broken(error)
            self._version = -1
            return set()

    def strike_off(self, names: Collection[str]) -> bool:
        """Record that nothing is left of these accounts, without waiting for a lock, as a server's loop calls this
        method. Return False if the call is to be repeated."""
        try:
            self._db.execute("PRAGMA busy_timeout = 0")
            try:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany("DELETE FROM removed WHERE name = ?", [(name,) for name in names])
                self._db.execute("COMMIT")
            finally:
                self._undo()
                if not self._serving:
                    self._db.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000:.0f}")
        except sqlite3.Error:
            return False
        return True

    async def verify(self, user: str, password: str, address: str) -> Verdict:
        """Check a password. An impossible name or password is refused and counts as no failure."""
        if name_fault(user) or password_fault(password):
            return WRONG
        return await self._verifying.verify(user, password, address)

    def _hash_of(self, user: str) -> str | None:
        try:
            row = self._db.execute(f"SELECT hash FROM account WHERE name = ? AND {_ENABLED}", (user,)).fetchone()  # noqa: S608 (own words)
        except sqlite3.Error as error:
            self._log_broken(error)
            raise self._broken(error) from None
        stored = None if row is None else str(row[0])
        if stored is not None and not _is_hash(stored):
            text = f"the password of user {user!r} cannot be read, it is damaged; `bester user passwd` mends that"
            _log.error("%s: %s", self.path, text, extra=facts("account-damaged", user=user))
            raise BesterError("storage-full", f"{self.path}: {text}")
        return stored

    def _change(self, statement: str, values: tuple[str | float, ...]) -> bool:
        try:
            return self._db.execute(statement, values).rowcount > 0
        except UnicodeEncodeError:
            raise BesterError("malformed", "a user name is text that UTF-8 can write") from None
        except sqlite3.Error as error:
            database.unwrite(self._db, error)
            raise self._broken(error) from None

    def _all(self, statements: tuple[str, ...], name: str) -> bool:
        """Carry out all statements or none; the others run only if the first changed a row. Return whether it did."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                found = self._change(statements[0], (name,))
                for statement in statements[1:] if found else ():
                    self._change(statement, (name,))
                self._db.execute("COMMIT")
            finally:
                self._undo()
        except sqlite3.Error as error:
            database.unwrite(self._db, error)
            raise self._broken(error) from None
        return found

    def _undo(self) -> None:
        """Roll back an open transaction, if any."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _log_broken(self, error: Exception) -> None:
        why = self._broken(error).text
        _log.error("%s", why, extra=facts("accounts-broken", why=why))

    def _broken(self, error: Exception) -> BesterError:
        if not self._serving and getattr(error, "sqlite_errorname", "") == "SQLITE_CORRUPT":
            try:
                database.damage(self._db, self.path)
            except sqlite3.Error as found:  # SQLite takes what the disk does not read for damaged
                error = found
        return broken(self.path, error)


def _is_hash(stored: str) -> bool:
    """Return whether a stored text is a hash that a password could match."""
    try:
        argon2.extract_parameters(stored)
    except argon2.exceptions.InvalidHashError:
        return False
    return True
