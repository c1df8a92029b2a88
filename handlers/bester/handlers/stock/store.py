"""State of a stock handler: a SQLite file in the handler's data directory, written before any reply.

`once` runs a message's work in one transaction, and keeps the reply beside the change: a message that comes again (its
first worker died before the reply left) gets the same reply, and changes nothing. Handlers use the store on the loop,
so messages take effect in the order in which they were read; a commit takes about a millisecond.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bester.broker import database
from bester.broker.logs import facts
from bester.broker.wire.messages import Command
from bester.handlers import HandlerError, Message

REPLIES = 4096
"""Replies kept for repeats: what 16 workers hold at once, and a death repeats no more."""
EMITS = 10_000
"""Emits that wait. Above that a change that would emit is refused: the broker has been away, or is too slow."""
EMITS_OF_LOOK = 1_000
"""Emits that one look at who is there adds at most, some 50 µs each; what is left over is for the next look."""
BUSY_S = 5.0
"""Seconds to wait for the transaction of another worker; each takes milliseconds."""
DIRECTORY = "BESTER_DATA"
"""Variable that names the handler's data directory."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (number INTEGER PRIMARY KEY, message TEXT UNIQUE, commands TEXT);
CREATE TABLE IF NOT EXISTS emits (number INTEGER PRIMARY KEY AUTOINCREMENT, type TEXT, commands TEXT, about TEXT);
CREATE TABLE IF NOT EXISTS epoch (value TEXT);
"""

log = logging.getLogger("bester.handlers.stock")


class Waiting(NamedTuple):
    """An emit that waits for its outcome. `about` is what the protocol wants to know then."""

    number: int
    type: str
    commands: list[Command]
    about: dict[str, Any]


class Store:
    """State of the protocol `name`, in `NAME.db`; `schema` creates its tables. Opened at the first use.

    `directory` defaults to the variable BESTER_DATA, else to bester-data/handlers/NAME of the working directory.
    """

    def __init__(self, name: str, schema: str, directory: Path | None = None) -> None:
        self.name = name
        self._schema = schema
        self._directory = directory
        self._open: sqlite3.Connection | None = None
        self._room: int | None = None  # places for emits, once this transaction has counted them

    @property
    def path(self) -> Path:
        """File of the state."""
        given = self._directory or os.environ.get(DIRECTORY) or Path("bester-data/handlers", self.name)
        return Path(given, f"{self.name}.db")

    @property
    def epoch(self) -> str:
        """Random name of this file: numbers of a lost file and of its successor are told apart by it."""
        return str(self._db().execute("SELECT value FROM epoch").fetchone()[0])

    @contextlib.contextmanager
    def turn(self) -> Iterator[sqlite3.Connection]:
        """Run a transaction: all of its changes are on disk at the end, or none.

        Raises HandlerError where the state cannot be read or written (a full disk, a damaged file); the file is opened
        anew next time.
        """
        try:
            db = self._db()
            db.execute("BEGIN IMMEDIATE")
            self._room = None
            try:
                yield db
                db.execute("COMMIT")
            except BaseException as error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                database.unwrite(db, error)
                raise
        except (sqlite3.Error, OSError) as error:
            self.close()
            fields = facts("state-failed", handler=self.name, file=str(self.path), why=str(error))
            log.error("%s: the state in %s cannot be used: %s", self.name, self.path, error, extra=fields)
            raise HandlerError(f"{self.name}: the server cannot keep this now, nothing was done; try again") from None

    def once(self, message: Message, work: Callable[[sqlite3.Connection], list[Command]]) -> list[Command]:
        """Return the commands of `work`, run in a transaction; a message whose work has changed the state runs once,
        and gets the same commands again. Raises what `work` raises, and then changes nothing."""
        key = f"{message.peer or ''} {message.id}"  # a peer's ids are its own claims
        with self.turn() as db:
            row = db.execute("SELECT commands FROM replies WHERE message = ?", (key,)).fetchone()
            if row is not None:
                return commands_from(row[0])
            before = db.total_changes
            commands = work(db)
            if db.total_changes != before:
                db.execute("INSERT INTO replies (message, commands) VALUES (?, ?)", (key, text_from(commands)))
                db.execute("DELETE FROM replies WHERE number <= (SELECT MAX(number) FROM replies) - ?", (REPLIES,))
            return commands

    def emit_later(self, db: sqlite3.Connection, type_: str, command: Command, about: dict[str, Any]) -> None:
        """Add an emit to the transaction. Raises HandlerError where too many wait."""
        room = self.room(db)
        if room <= 0:
            raise HandlerError(f"{self.name}: too many notices wait to be sent; try again later")
        self._room = room - 1
        row = (type_, text_from([command]), json.dumps(about))
        db.execute("INSERT INTO emits (type, commands, about) VALUES (?, ?, ?)", row)

    def end_emit(self, db: sqlite3.Connection, number: int) -> bool:
        """Remove an emit, and make room for another; return False where it was removed before."""
        room = self.room(db)
        is_there = db.execute("DELETE FROM emits WHERE number = ?", (number,)).rowcount > 0
        self._room = room + is_there
        return is_there

    def room(self, db: sqlite3.Connection) -> int:
        """Return how many emits the transaction may still add."""
        if self._room is None:
            self._room = EMITS - int(db.execute("SELECT COUNT(*) FROM emits").fetchone()[0])
        return self._room

    def least_room(self, db: sqlite3.Connection) -> int:
        """Return the room at which a look leaves off: half of all places are for what messages cause."""
        return max(self.room(db) - EMITS_OF_LOOK, EMITS // 2)

    def waiting(self, limit: int) -> list[Waiting]:
        """Return the oldest emits that wait."""
        with self.turn() as db:
            rows = db.execute("SELECT number, type, commands, about FROM emits ORDER BY number LIMIT ?", (limit,))
            return [
                Waiting(number, type_, commands_from(text), json.loads(about)) for number, type_, text, about in rows
            ]

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._open is not None:
            with contextlib.suppress(sqlite3.Error):
                self._open.close()
            self._open = None

    def _db(self) -> sqlite3.Connection:
        if self._open is None:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.executescript(SCHEMA + self._schema)
                db.execute("INSERT INTO epoch SELECT ? WHERE NOT EXISTS (SELECT 1 FROM epoch)", (secrets.token_hex(8),))
            except BaseException:
                db.close()
                raise
            self._open = db
        return self._open


def text_from(commands: list[Command]) -> str:
    """Return commands as JSON text."""
    return json.dumps([[each.command, each.targets, each.body.decode(), each.type] for each in commands])


def commands_from(text: str) -> list[Command]:
    """Return the commands in a JSON text of `text_from`."""
    return [Command(command, targets, body.encode(), type_) for command, targets, body, type_ in json.loads(text)]
