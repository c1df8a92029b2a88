"""The tables of a store, and the steps from an older version to this one.

A file that is no store, or that a newer Bester has written, is never touched.
"""

from __future__ import annotations

import secrets
import sqlite3

from bester.broker.wire.codes import ConfigError

APPLICATION = 0x62737472
"""Application id in the file's header: a store of Bester's ("bstr")."""

# `outcome` is null until the message has ended; then its body is deleted, and `size` is 0. `box` is the queue.
_WAITING = (
    "CREATE TABLE state (one INTEGER PRIMARY KEY CHECK (one = 1), epoch TEXT NOT NULL, life INTEGER NOT NULL)",
    """
    CREATE TABLE entry (
        number INTEGER PRIMARY KEY,
        box TEXT NOT NULL,
        id TEXT NOT NULL,
        target TEXT NOT NULL,
        type TEXT NOT NULL,
        sender TEXT,
        expires_s REAL NOT NULL,
        outcome TEXT,
        meta BLOB NOT NULL,
        size INTEGER NOT NULL,
        body BLOB NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX entry_id ON entry (id, box)",
    "CREATE INDEX entry_waiting ON entry (box, number, size) WHERE outcome IS NULL",
    "CREATE INDEX entry_expiring ON entry (expires_s) WHERE outcome IS NULL",
    "CREATE INDEX entry_ended ON entry (expires_s) WHERE outcome IS NOT NULL",
    "CREATE TABLE handed (box TEXT PRIMARY KEY, upto INTEGER NOT NULL) WITHOUT ROWID",
    """
    CREATE TABLE arrived (
        peer TEXT NOT NULL,
        type TEXT NOT NULL,
        epoch TEXT NOT NULL,
        floor INTEGER NOT NULL,
        outcomes BLOB NOT NULL,
        PRIMARY KEY (peer, type)
    ) WITHOUT ROWID
    """,
    "CREATE TABLE seen_type (serial INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
)
_DEAD_LETTERS = (
    """
    CREATE TABLE letter (
        serial INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        type TEXT NOT NULL,
        reason TEXT NOT NULL,
        at_s REAL NOT NULL,
        meta BLOB NOT NULL,
        body BLOB NOT NULL
    )
    """,
    "CREATE INDEX letter_type ON letter (type)",
)
# The oldest outcomes are forgotten first; those queued at another server do not count.
_REMEMBERED = ("CREATE INDEX entry_remembered ON entry (number) WHERE outcome IS NOT NULL AND outcome <> 'queued'",)

_SERVER = (
    """
    CREATE TABLE clock (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        stored_s REAL NOT NULL,
        skew_s REAL NOT NULL,
        boot TEXT NOT NULL,
        boot_s REAL NOT NULL
    )
    """,
    "CREATE TABLE server_name (serial INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "CREATE TABLE native_peer (address TEXT PRIMARY KEY, reports INTEGER NOT NULL) WITHOUT ROWID",
)

# A body of several entries is in `body`, and `shared` of each names it. The entries count the references: with the last
# one, the body is deleted.
_SHARED = (
    "CREATE TABLE body (serial INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    "ALTER TABLE entry ADD COLUMN shared INTEGER",
    "CREATE INDEX entry_shared ON entry (shared) WHERE shared IS NOT NULL",
    """
    CREATE TRIGGER entry_ended AFTER UPDATE OF shared ON entry WHEN OLD.shared IS NOT NULL AND NEW.shared IS NULL BEGIN
        DELETE FROM body WHERE serial = OLD.shared AND NOT EXISTS (SELECT 1 FROM entry WHERE shared = OLD.shared);
    END
    """,
    """
    CREATE TRIGGER entry_deleted AFTER DELETE ON entry WHEN OLD.shared IS NOT NULL BEGIN
        DELETE FROM body WHERE serial = OLD.shared AND NOT EXISTS (SELECT 1 FROM entry WHERE shared = OLD.shared);
    END
    """,
)
_FEDERATION = (
    "CREATE TABLE held_server (name TEXT PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE disowned (name TEXT PRIMARY KEY, upto INTEGER NOT NULL, at_s REAL NOT NULL) WITHOUT ROWID",
    "CREATE INDEX entry_remote ON entry (box, number) WHERE outcome = 'queued'",
)

# A lane has the outcomes of several epochs, which an older version cannot read.
_EPOCHS = ()

STEPS: tuple[tuple[str, ...], ...] = (_WAITING, _DEAD_LETTERS, _REMEMBERED, _SERVER, _SHARED, _FEDERATION, _EPOCHS)
"""Step n makes version n + 1 of version n. A released step is never changed: steps are only added."""


def check(db: sqlite3.Connection, where: str) -> None:
    """Raise ConfigError where the file is no store or too new, sqlite3.Error where it cannot be read."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION and (application or version or tables):
        raise ConfigError(f"{where}: a database, but not a store of Bester's; name another file as [store] url")
    if version > len(STEPS):
        raise ConfigError(
            f"{where}: written by a newer Bester (version {version} of the store, this one reads up to {len(STEPS)}); "
            "start that one, or name another file as [store] url"
        )


def migrate(db: sqlite3.Connection) -> None:
    """Bring a checked file to this version, all steps or none. Raises sqlite3.Error."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version == len(STEPS):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        for step in STEPS[version:]:
            for statement in step:
                db.execute(statement)
        if version == 0:
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute("INSERT INTO state VALUES (1, ?, 0)", (secrets.token_hex(8),))
        db.execute(f"PRAGMA user_version = {len(STEPS)}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def make_copy(db: sqlite3.Connection) -> None:
    """Make the file a copy of the store that it was. Its messages may be delivered by the original: they are marked as
    sent. Its epoch is left open: with each start from a copy of this file the store gets another one (see
    `count_life`). Under one epoch, other servers would take the messages of one such store for repeats of another's."""
    db.execute("INSERT INTO state VALUES (1, '', 0) ON CONFLICT (one) DO UPDATE SET epoch = excluded.epoch")
    db.execute(
        "INSERT OR REPLACE INTO handed (box, upto) "
        "SELECT box, max(number) FROM entry WHERE outcome IS NULL GROUP BY box"
    )


def count_life(db: sqlite3.Connection) -> None:
    """Count another life of the store, and give a copy its epoch."""
    db.execute(
        "UPDATE state SET life = life + 1, epoch = CASE epoch WHEN '' THEN ? ELSE epoch END", (secrets.token_hex(8),)
    )
