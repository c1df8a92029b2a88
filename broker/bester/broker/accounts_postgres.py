"""Accounts of a server in PostgreSQL, beside its store, for the command line and for a server.

A server asks about users in the middle of its loop, and waits for no network there: `ServedAccounts` holds all accounts
in memory, and a thread follows their changes, which PostgreSQL notifies. While the database is away logins go on with
what was last known, and nothing can be changed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from bester.broker import postgres
from bester.broker.logs import facts
from bester.broker.postgres import Database
from bester.broker.postgres_schema import ACCOUNTS_CHANGED, migrate
from bester.broker.store_requests import mailbox
from bester.broker.users import (
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

if TYPE_CHECKING:
    from bester.broker.postgres import Connection

LOOK_S = 0.25
"""Longest time between two looks at the accounts: a notification that was lost delays a change by no more."""
AGAIN_S = 0.5
"""Pause before the next try to connect."""
CHANNEL_CHARACTERS = 63
"""Bound of PostgreSQL on the name of a channel."""
WRITERS = 2
"""Connections for changes by users at once: many may come for the first time, or change their passwords, in one moment,
and connections are what a database has few of."""
CLOSE_S = 5.0
"""Patience with the thread at the end."""
_VERSION = "UPDATE account_version SET number = number + 1"
_log = logging.getLogger("bester.broker.accounts")


def _ask(connection: Connection, statement: str, *values: object) -> list[tuple[Any, ...]]:
    cursor = connection.execute(statement.encode(), values or None)
    return cursor.fetchall() if cursor.description is not None else []


def _channel(database: Database) -> str:
    """Return the channel of a schema's changes; one with a long name has a digest of that: no channel has more than
    CHANNEL_CHARACTERS."""
    channel = f"{ACCOUNTS_CHANGED}_{database.schema}"
    if len(channel) <= CHANNEL_CHARACTERS:
        return channel
    return f"{ACCOUNTS_CHANGED}_{blake2b(database.schema.encode(), digest_size=16).hexdigest()}"


def _change(connection: Connection, database: Database, statements: Sequence[str], *values: object) -> bool:
    """Carry out all statements or none; the others run only where the first has changed a row. Return whether it did.

    Each statement has its values by name: `%(name)s`, and `%(version)s` of the change."""
    with connection.transaction():
        ((version,),) = _ask(connection, f"{_VERSION} RETURNING number")
        named = {"version": version, **dict(zip(("name", "hash", "created_s", "before"), values, strict=False))}
        first, *others = statements
        if connection.execute(first.encode(), named).rowcount < 1:
            return False
        for statement in others:
            connection.execute(statement.encode(), named)
        _ask(connection, "SELECT pg_notify(%s, '')", _channel(database))
    return True


_ADD = (
    (
        "INSERT INTO account (name, hash, created_s, changed) VALUES (%(name)s, %(hash)s, %(created_s)s, %(version)s) "
        "ON CONFLICT DO NOTHING"
    ),
)
_PASSWD = ("UPDATE account SET hash = %(hash)s, changed = %(version)s WHERE name = %(name)s",)
_REPLACE = (
    (
        "UPDATE account SET hash = %(hash)s, changed = %(version)s "
        "WHERE name = %(name)s AND hash = %(before)s AND NOT disabled"
    ),
)
_REMOVE = (
    "DELETE FROM account WHERE name = %(name)s",
    (
        "INSERT INTO removed (name, changed) VALUES (%(name)s, %(version)s) "
        "ON CONFLICT (name) DO UPDATE SET changed = excluded.changed"
    ),
)
_DISABLE = ("UPDATE account SET disabled = TRUE, changed = %(version)s WHERE name = %(name)s",)
STRIKE_OFF = """
WITH asked AS (SELECT * FROM unnest(%s::text[], %s::bigint[], %s::text[]) AS t (name, changed, box)),
kept AS (
    SELECT r.name FROM asked JOIN removed r USING (name, changed) WHERE (
        SELECT count(*) FROM broker b WHERE (
            SELECT e.number FROM entry e WHERE e.ns = b.ns AND e.box = asked.box AND e.outcome IS NULL LIMIT 1
        ) IS NOT NULL
    ) > 0
),
gone AS (
    DELETE FROM removed r USING asked
    WHERE r.name = asked.name AND r.changed = asked.changed AND r.name NOT IN (SELECT name FROM kept)
)
SELECT name FROM kept
"""
_ENABLE = ("UPDATE account SET disabled = FALSE, changed = %(version)s WHERE name = %(name)s",)


class PostgresAccounts:
    """Accounts as the command line changes them; a running server sees each change at once."""

    def __init__(self, database: Database) -> None:
        """Connect, and make the tables where they are missing. Raises ConfigError or BesterError."""
        self._database = database
        try:
            self._connection = postgres.connect(database, "bester user")
            migrate(self._connection, database)
        except psycopg.Error as error:
            raise postgres.unavailable(database, error) from None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def add(self, name: str, password: str) -> None:
        """Create an account. Raises BesterError for a name that is taken, or an unusable name or password."""
        check_name(name)
        if not self._change(_ADD, name, hashed(password), time.time()):
            raise name_taken(name)

    def passwd(self, name: str, password: str) -> None:
        """Change a password. Raises BesterError for an unknown account or an unusable password."""
        self._known(self._change(_PASSWD, name, hashed(password)), name)

    def remove(self, name: str) -> None:
        """Remove an account and record the removal. Raises BesterError for an unknown account."""
        self._known(self._change(_REMOVE, name), name)

    def disable(self, name: str) -> None:
        """Let nobody log in to an account, and change nothing else. Raises BesterError for an unknown account."""
        self._known(self._change(_DISABLE, name), name)

    def enable(self, name: str) -> None:
        """Let the user of an account log in again. Raises BesterError for an unknown account."""
        self._known(self._change(_ENABLE, name), name)

    def list(self) -> list[Account]:
        """Return all accounts, ordered by name."""
        try:
            found = _ask(self._connection, "SELECT name, created_s, disabled FROM account ORDER BY name")
        except psycopg.Error as error:
            raise postgres.unavailable(self._database, error) from None
        return [Account(name, int(created_s), disabled) for name, created_s, disabled in found]

    def _change(self, statements: Sequence[str], *values: object) -> bool:
        try:
            return _change(self._connection, self._database, statements, *values)
        except (UnicodeEncodeError, psycopg.DataError):
            raise BesterError("malformed", "a user name is text that UTF-8 can write") from None
        except psycopg.Error as error:
            raise postgres.unavailable(self._database, error) from None

    @staticmethod
    def _known(changed: bool, name: str) -> None:
        if not changed:
            raise no_account(name)


class _Known(NamedTuple):
    """An account as it was last read."""

    hash: str
    created_s: float
    disabled: bool


class _Change(NamedTuple):
    """Accounts as they are at a version, and the records of removals; `accounts` counts those that are there. `names`
    are those that may have changed."""

    version: int
    known: dict[str, _Known]
    removed: dict[str, int]
    accounts: int
    names: set[str]


def _changed(connection: Connection, since: int, before: Mapping[str, _Known]) -> _Change:
    """Return what has become of accounts since a version, -1 for all that is there. Raises psycopg.Error."""
    with connection.transaction():
        _ask(connection, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")  # as of one moment
        ((version,),) = _ask(connection, "SELECT number FROM account_version")
        found = _ask(connection, "SELECT name, hash, created_s, disabled FROM account WHERE changed > %s", since)
        removed = dict(_ask(connection, "SELECT name, changed FROM removed"))
        known = {} if since < 0 else dict(before)
        names = {name for name, at in removed.items() if at > since}
        for name in names:
            known.pop(name, None)
        known.update((name, _Known(*rest)) for name, *rest in found)
        names.update(name for name, *_ in found)
        count = len(known)
        if since >= 0 and len(names) < version - since:  # a second change of an account, or a removal without a record
            ((count,),) = _ask(connection, "SELECT count(*) FROM account")
    return _Change(version, known, removed, count, names.union(before) if since < 0 else names)


class ServedAccounts:
    """Logins of a running server (see `accounts.Logins`), answered from memory.

    All methods belong to the loop's thread. The follower, a thread of its own, replaces tables as a whole, so that the
    loop reads them without a lock; `_reading` is for those who replace them.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        """Read all accounts. Raises ConfigError or BesterError."""
        self._database = database
        self._verifying = Verifying(self._hash_of, clock)
        self._reading = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._removed: dict[str, int] = {}
        self._missed: dict[str, int] = {}  # those of them whose record another broker has struck off
        self._struck_off: frozenset[str] = frozenset()  # removed accounts whose deletion is to be written
        self._version = -1
        self._readings = 0  # count of replaced tables; the loop has taken in those up to `_seen`
        self._seen = 0
        self._closing = threading.Event()
        self._writers = asyncio.Semaphore(WRITERS)
        try:
            connection = self._connect()
            try:
                migrate(connection, database)
                self._read(connection)
            except BaseException:
                connection.close()
                raise
        except psycopg.Error as error:
            raise postgres.unavailable(database, error) from None
        self._follower = threading.Thread(target=self._follow, args=(connection,), name="accounts", daemon=True)
        self._follower.start()

    def close(self) -> None:
        """Stop the threads and close the connection."""
        self._closing.set()
        self._verifying.close()
        self._follower.join(CLOSE_S)

    # --- answers ---

    @property
    def lockouts(self) -> int:
        """Times that a user at an address was made to wait after wrong passwords."""
        return self._verifying.lockouts

    def exists(self, name: str) -> bool:
        """Return whether an account has this name."""
        return name in self._known

    def existing(self, names: Collection[str]) -> set[str]:
        """Return those of these names that accounts have."""
        return {name for name in names if name in self._known}

    def token(self, name: str) -> str | None:
        """Return the time at which an account was made, in full; None for an unknown or disabled account."""
        known = self._known.get(name)
        return None if known is None or known.disabled else repr(known.created_s)

    def disabled(self, names: Collection[str]) -> set[str]:
        """Return those of these names whose accounts are disabled."""
        known = map(self._known.get, names)
        return {name for name, account in zip(names, known, strict=True) if account is not None and account.disabled}

    def changed(self) -> bool:
        """Return whether accounts may have changed since the last call."""
        before, self._seen = self._seen, self._readings
        return before != self._seen

    def removed(self) -> set[str]:
        """Return the names of removed accounts that are not struck off; a new account may have such a name."""
        return set(self._removed)

    def strike_off(self, names: Collection[str]) -> bool:
        """Have it written that nothing is left of these removed accounts. Return whether it is; else the call is to be
        repeated."""
        self._struck_off = frozenset(self._removed.keys() & names)
        return not self._struck_off

    async def verify(self, user: str, password: str, address: str) -> Verdict:
        """Check a password. An impossible name or password is refused and counts as no failure."""
        if name_fault(user) or password_fault(password):
            return WRONG
        return await self._verifying.verify(user, password, address)

    def _hash_of(self, user: str) -> str | None:
        known = self._known.get(user)
        return None if known is None or known.disabled else known.hash

    # --- changes ---

    async def learn(self, name: str) -> bool:
        """Make sure that a user has an account whose login another program has found good; a new one has no password.
        Return False if the account cannot be written now."""
        if name in self._known:
            return True
        try:
            async with self._writers:
                if name not in self._known:
                    await asyncio.to_thread(self._write, _ADD, name, NO_PASSWORD, time.time())
        except BesterError as error:
            extra = facts("accounts-broken", why=error.text)
            _log.error("user %r cannot be given an account now: %s", name, error.text, extra=extra)
            return False
        return True

    async def change(self, user: str, old: str, new: str, address: str) -> Verdict:
        """Change a user's password, as `change_password` does."""
        return await change_password(
            user, old, new, address, hash_of=self._hash_of, verify=self.verify, replace=self._replace
        )

    async def _replace(self, user: str, stored: str, made: str) -> bool:
        async with self._writers:
            return await asyncio.to_thread(self._write, _REPLACE, user, made, 0.0, stored)

    def _write(self, statements: Sequence[str], *values: object) -> bool:
        """Change accounts by a connection of its own, and take the change in. Raises BesterError."""
        try:
            connection = self._connect()
            try:
                changed = _change(connection, self._database, statements, *values)
                self._read(connection)
            finally:
                connection.close()
        except psycopg.Error as error:
            raise postgres.unavailable(self._database, error) from None
        return changed

    # --- the follower ---

    def _connect(self) -> Connection:
        return postgres.connect(self._database, "bester accounts")

    def _follow(self, connection: Connection | None) -> None:
        """Follow changes until the end; connect again where the connection is lost."""
        while not self._closing.is_set():
            try:
                if connection is None:
                    connection = self._connect()
                    self._version = -1  # the database may be another one now
                    self._read(connection)
                    _log.info("%s: accounts are followed again", self._database.where, extra=facts("accounts-back"))
                self._listen(connection)
            except (psycopg.Error, BesterError) as error:
                if connection is not None:
                    connection.close()
                    connection = None
                    if not self._closing.is_set():
                        why = f"{postgres.why(self._database, error)}; until then accounts stay as they are"
                        _log.warning("%s", why, extra=facts("accounts-away", why=why))
                self._closing.wait(AGAIN_S)
        if connection is not None:
            connection.close()

    def _listen(self, connection: Connection) -> None:
        _ask(connection, f'LISTEN "{_channel(self._database)}"')
        while not self._closing.is_set():
            self._strike_off(connection)
            self._read(connection)
            for _ in connection.notifies(timeout=LOOK_S, stop_after=1):
                pass

    def _strike_off(self, connection: Connection) -> None:
        """Strike off removed accounts of which nothing is left here, unless another broker has a mailbox of theirs: one
        that is away has yet to be adopted, or to come back."""
        removed, struck_off = self._removed, self._struck_off
        asked = {name: removed[name] for name in struck_off if name in removed}
        if not asked:
            return
        left = _ask(connection, STRIKE_OFF, list(asked), list(asked.values()), list(map(mailbox, asked)))
        gone = asked.keys() - {name for (name,) in left}
        with self._reading:
            self._removed = {name: at for name, at in self._removed.items() if name not in gone or asked[name] != at}
            self._missed = {name: at for name, at in self._missed.items() if name not in gone or asked[name] != at}

    def _read(self, connection: Connection) -> None:
        """Take in what has changed since the last version; all, where there was none, or where a removal was missed,
        which another broker has struck off already."""
        with self._reading:
            ((version,),) = _ask(connection, "SELECT number FROM account_version")
            if version == self._version:
                return
            change = _changed(connection, self._version if self._version < version else -1, self._known)
            if change.accounts != len(change.known):
                change = _changed(connection, -1, self._known)
            missed = {name: change.version for name in change.names if self._is_missed(name, change)}
            self._missed = {name: at for name, at in (self._missed | missed).items() if name not in change.removed}
            self._known, self._removed, self._version = change.known, self._missed | change.removed, change.version
            self._readings += 1

    def _is_missed(self, name: str, change: _Change) -> bool:
        """Return whether an account was removed, and perhaps made anew."""
        old, new = self._known.get(name), change.known.get(name)
        return old is not None and (new is None or new.created_s != old.created_s)
