"""A store in PostgreSQL: a group of writes is one transaction, sent in one piece, and on the disk of the database when
it is answered.

The namespace of a broker is held by a lease (see `lease`); every transaction checks and renews it. Where the connection
breaks while a group is under way nobody knows whether the group was committed: `commit` then returns only once the
database has told, by the count of commits that each transaction writes. So `commit` and `read` belong beside the loop
(`is_remote`), and meanwhile `away` says why nothing can be kept.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import psycopg

from bester.broker import postgres, postgres_schema
from bester.broker.clocks import with_sleep
from bester.broker.logs import facts
from bester.broker.postgres import Database
from bester.broker.store import postgres_adoption, postgres_reading
from bester.broker.store.commits import BusyError, Commits, UnwritableError
from bester.broker.store.lease import RENEW_S
from bester.broker.store.leased import TAKEN, LeasedConnection, is_stale
from bester.broker.store.postgres_keys import key_of_entry
from bester.broker.store.postgres_reading import rows
from bester.broker.store.postgres_writing import Group, Statement
from bester.broker.store.reading import outcome_of
from bester.broker.store.writing import SharedBody
from bester.broker.store_brokers import Adopted
from bester.broker.store_requests import (
    Adopt,
    End,
    Enqueue,
    FindBrokers,
    FindEntry,
    Held,
    Read,
    RecordRemote,
    Snapshot,
    Write,
)
from bester.broker.wire.codes import BesterError

if TYPE_CHECKING:
    from bester.broker.postgres import Connection

MEASURE_S = 30.0
"""Time between two looks at the size of the store."""
CLOSE_S = 1.0
"""Patience of `close` with a commit that is under way."""
_BUSY = ("40001", "40P01", "55P03")
"""SQLSTATEs of what the same statements may do a moment later."""
_UNWRITABLE = ("22", "23", "54")
"""Classes of SQLSTATEs of a value that no try can write."""
_UNWRITABLE_WHY = "it cannot hold what it was given; see the reason"
_UNPACKABLE = (AttributeError, OverflowError, RecursionError, TypeError, ValueError)
_SIZE = """
SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %b AND c.relkind = 'r'
"""
_log = logging.getLogger("bester.broker.store")


class PostgresStore(Commits):
    """A store in the namespace of `broker`. With `synchronous` `full` a commit is on the database's disk, and on its
    standbys where PostgreSQL is set so; with `normal` a power cut may take the last moments. Above `dead_letters` a new
    dead letter replaces the oldest. `clock` measures the age of the lease, in seconds. With the name of its `server` a
    store is not opened where a broker of another one lives in the schema.

    `fenced` is set where another process has taken the lease: this one must end.
    """

    is_remote = True

    def __init__(
        self, database: Database, broker: str, synchronous: str = "full", *, dead_letters: int = 10_000,
        clock: Callable[[], float] = with_sleep, server: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._held = LeasedConnection(broker, synchronous, self, clock, server)
        self.database = database
        self.broker = broker
        self._dead_letters = dead_letters
        self._is_open = False
        self._serial = 0
        self._sharing = False
        self._shared: SharedBody | None = None
        self._to_forget: tuple[float, int] | None = None
        self._outcomes: int | None = None
        self._letter_bytes: int | None = None
        self._adopting: int | None = None  # first number of an adoption that may be committed, and was not answered
        self._measure_at = 0.0
        self._at_work = threading.Lock()

    @property
    def is_due(self) -> bool:
        """Return whether the lease is to be renewed, by a commit that may be empty."""
        return self._is_open and not self.fenced and self._held.clock() - self._held.renewed_at > RENEW_S

    # --- opening ---

    def claim(self) -> Held | None:
        """Take the lease of the namespace, or return who holds it. Makes schema and namespace where these are missing.

        Raises ConfigError, or BesterError with a remedy."""
        if self._held.is_claimed:
            return None
        try:
            other = self._held.claim()
        except psycopg.Error as error:
            self.close()
            raise postgres.unavailable(self.database, error) from None
        except BaseException:
            self.close()
            raise
        return None if other is None else other._replace(why=f"{self.database.where}: {other.why}")

    def open(self) -> Snapshot:
        """Take the lease if it is not taken yet, count this life and return the contents.

        Raises ConfigError, or BesterError where the database cannot be used or another process holds the lease."""
        if self._is_open:
            self.close()
        other = self.claim()
        if other is not None:
            self.close()
            raise BesterError("not-allowed", other.why)
        try:
            return self._begin()
        except psycopg.Error as error:
            self.close()
            raise postgres.unavailable(self.database, error) from None
        except (TypeError, ValueError) as error:
            self.close()
            text = f"{self.database.where}: damaged ({error}); restore a backup of the schema"
            raise BesterError("storage-unavailable", text) from None

    def _begin(self) -> Snapshot:
        connection, ns = self._held.connection, self._held.lease.ns
        assert connection is not None
        with connection.transaction():
            connection.execute("SELECT hold(%s, %s, %s, %s)", self._held.begin())
            row = connection.execute(
                "UPDATE broker SET life = life + 1 WHERE ns = %s RETURNING epoch, life", (ns,)
            ).fetchone()
            assert row is not None
            connection.execute(
                "DELETE FROM handed h WHERE ns = %s AND NOT EXISTS "
                "(SELECT 1 FROM entry e WHERE e.ns = h.ns AND e.box = h.box AND e.outcome IS NULL)",
                (ns,),
            )
            found = postgres_reading.snapshot(connection, ns, *row)
            ((last,),) = rows(connection, "SELECT max(serial) FROM body WHERE ns = %b", ns)
        self._held.on_committed()
        self._held.life = found.life
        self._serial, self._sharing, self._shared = (last or 0) + 1, last is not None, None
        self._to_forget = self._outcomes = self._letter_bytes = None
        self._is_open = True
        self._warn(connection)
        return found

    def _warn(self, connection: Connection) -> None:
        """Log what an operator may have overlooked."""
        (fsync,) = connection.execute("SHOW fsync").fetchone() or ("on",)
        if fsync == "off":
            text = f"{self.database.where}: fsync is off in PostgreSQL; a power cut may destroy what is kept there"
            _log.warning("%s", text, extra=facts("store-unsafe", why=text))

    def close(self) -> None:
        """Give the lease back and close the connection; a commit that is under way is waited for, for CLOSE_S."""
        self._held.stop()
        idle = self._at_work.acquire(timeout=CLOSE_S)
        if idle:
            try:
                self._held.give_back()
            finally:
                self._at_work.release()
        self._held.forget()
        self._is_open = False

    # --- writing ---

    def _write(self, writes: Sequence[Write]) -> dict[int, str | None]:
        with self._at_work:
            connection = self._held.connected()
            for is_last in (False, True):
                group = self._group_of(writes)
                try:
                    repeated = self._write_group(connection, group)
                except (*_UNPACKABLE, MemoryError, psycopg.Error) as error:
                    reason = " ".join(str(error).split())[: postgres.TEXT_LIMIT]
                    if not connection.closed and not connection.broken:
                        failed = self._failed(connection, error)
                        if is_last or not is_stale(error):
                            self._renew(connection)
                            raise failed from None
                        self._held.lose(reason)
                        connection = self._held.connected()
                        continue
                    self._held.lose(reason)
                    connection, was_committed = self._held.settle()
                    if was_committed:
                        self._outcomes = self._letter_bytes = None
                        repeated = self._duplicates_of(connection, writes)
                    elif is_last:
                        raise BesterError("storage-unavailable", f"{self.database.where}: {reason}") from None
                    else:
                        continue
                self._held.on_committed()
                return repeated
        raise AssertionError("the last try returns or raises")

    def _group_of(self, writes: Sequence[Write]) -> Group:
        """Return the statements of a group. Raises UnwritableError."""
        group = Group(
            self._held.lease.ns,
            serial=self._serial,
            sharing=self._sharing,
            shared=self._shared,
            dead_letters=self._dead_letters,
            to_forget=self._to_forget,
            outcomes=self._outcomes,
            letter_bytes=self._letter_bytes,
        )
        try:
            group.add(writes)
        except _UNPACKABLE as error:
            raise self._unwritable(error) from None
        return group

    def _write_group(self, connection: Connection, group: Group) -> dict[int, str | None]:
        """Write a group, and return its duplicates. Raises what a statement raises."""
        self._serial, self._sharing, self._shared = group.serial, group.sharing, group.shared
        now = time.monotonic()
        if now >= self._measure_at:
            self._measure_at = now + MEASURE_S
            group.statements.append(Statement(_SIZE, (self.database.schema,), self._take_size))
        started = time.perf_counter()
        cursors = self._transact(connection, group.statements)
        self._sync_s = time.perf_counter() - started  # one round trip, in which the COMMIT cannot be timed alone
        for statement, cursor in zip(group.statements, cursors, strict=True):
            if statement.take is not None:
                statement.take(cursor)
        self._to_forget, self._outcomes, self._letter_bytes = group.to_forget, group.outcomes, group.letter_bytes
        self._forgotten += group.forgotten
        return group.repeated

    def _take_size(self, cursor: psycopg.Cursor[tuple[Any, ...]]) -> None:
        ((size_bytes,),) = cursor.fetchall()
        self.size_bytes = size_bytes

    def _transact(
        self, connection: Connection, statements: Sequence[Statement]
    ) -> list[psycopg.Cursor[tuple[Any, ...]]]:
        """Send a transaction in one piece, and return the answers. Raises what the first failed statement raises."""
        with connection.pipeline():
            connection.execute("BEGIN")
            connection.execute("SELECT hold(%b, %b, %b, %b)", self._held.begin())
            cursors = [
                connection.execute(statement.text.encode(), statement.values, binary=True) for statement in statements
            ]
            connection.execute("COMMIT")
        return cursors

    def _renew(self, connection: Connection) -> None:
        """Renew the lease alone, where that is due, behind a refusal: a broker whose tables are locked lives, and
        others, which have nothing to write there, would adopt it. Raises BesterError where the process ends."""
        if not self.is_due:
            return
        try:
            self._transact(connection, ())
        except psycopg.Error as error:
            if not connection.closed and not connection.broken:
                self._failed(connection, error)
                return
            self._held.lose(" ".join(str(error).split())[: postgres.TEXT_LIMIT])
            _, was_committed = self._held.settle()
            if not was_committed:
                return
        self._held.on_committed()

    def _failed(self, connection: Connection, error: Exception) -> BesterError:
        """Return the error for a transaction that the database has refused, and end that."""
        try:
            if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                connection.execute("ROLLBACK")
        except psycopg.Error:  # a lost connection ends its transaction
            pass
        state = str(getattr(error, "sqlstate", None) or "")
        if state == postgres_schema.LEASE_LOST and isinstance(error, psycopg.Error):
            self._held.on_refused(connection, error.diag.message_primary or TAKEN)
            return BesterError("storage-unavailable", self.fenced)
        if isinstance(error, MemoryError):
            return BesterError("storage-full", f"{self.database.where}: no memory to write to it; see what takes it")
        if state.startswith(_UNWRITABLE) or (not state and not isinstance(error, psycopg.OperationalError)):
            return self._unwritable(error)
        if state in _BUSY:
            return BusyError(postgres.why(self.database, error))
        return postgres.unavailable(self.database, error)

    def _unwritable(self, error: Exception) -> UnwritableError:
        text = " ".join(repr(error).split())[: postgres.TEXT_LIMIT]
        return UnwritableError("storage-full", f"{self.database.where}: {_UNWRITABLE_WHY} ({text})")

    def _duplicates_of(self, connection: Connection, writes: Sequence[Write]) -> dict[int, str | None]:
        """Return the duplicates of a group whose commit was not answered. Nobody has written since."""
        ns = self._held.lease.ns
        gone = {write.number for write in writes if isinstance(write, End) and write.forget}
        entries = [write.entry for write in writes if isinstance(write, Enqueue | RecordRemote)]
        numbers = [entry.number for entry in entries if entry.number not in gone]
        keys = [key_of_entry(entry.id, entry.queue) for entry in entries]
        try:
            there = rows(
                connection, "SELECT number FROM entry WHERE ns = %b AND number = ANY(%b::bigint[])", ns, numbers
            )
            known = rows(
                connection, "SELECT key, outcome FROM entry WHERE ns = %b AND key = ANY(%b::bytea[])", ns, keys
            )
        except psycopg.Error as error:
            raise postgres.unavailable(self.database, error) from None
        outcomes = {key: outcome_of(outcome) for key, outcome in known}
        gone.update(number for (number,) in there)
        return {
            entry.number: outcomes.get(key)
            for entry, key in zip(entries, keys, strict=True)
            if entry.number not in gone
        }

    # --- reading ---

    def _answer(self, read: Read) -> Any:
        with self._at_work:
            for is_last in (False, True):
                connection = self._held.connected()
                try:
                    return self._read(connection, read)
                except psycopg.Error as error:
                    if connection.closed or connection.broken or (is_stale(error) and not is_last):
                        self._held.lose(" ".join(str(error).split())[: postgres.TEXT_LIMIT])
                        if not is_last:
                            continue
                    elif error.sqlstate == postgres_schema.LEASE_LOST:
                        self._held.on_refused(connection)
                    else:
                        self._renew(connection)
                    raise postgres.unavailable(self.database, error) from None
                except ValueError as error:
                    text = f"{self.database.where}: damaged ({error}); restore a backup of the schema"
                    raise BesterError("storage-unavailable", text) from None
        raise AssertionError("the last try returns or raises")

    def _read(self, connection: Connection, read: Read) -> Any:
        """Return the answer of the database. Raises psycopg.Error, ValueError and BesterError."""
        if isinstance(read, Adopt):
            return self._adopt(connection, read)
        lease = self._held.lease
        with connection.pipeline():
            connection.execute("SELECT held(%b, %b)", (lease.ns, lease.epoch))
            if isinstance(read, FindBrokers):
                found, database_s = postgres_adoption.find(connection, lease.ns)
                self._held.on_database_clock(database_s)
                return found._replace(abandoned="") if self._held.is_back else found
            if isinstance(read, FindEntry) and read.number:
                if self._outcomes is not None:
                    self._outcomes += 1  # it may be moved to this namespace
                return postgres_adoption.find_entry(connection, lease.ns, lease.epoch, read)
            return postgres_reading.answer(connection, lease.ns, read)

    def _adopt(self, connection: Connection, adopt: Adopt) -> Adopted:
        """Move what another broker has left into this namespace. Raises psycopg.Error, and BesterError.

        Where the connection breaks in the middle, the count of commits tells whether the move was done."""
        lease = self._held.lease
        if self._adopting == adopt.first:
            return self._adopted(postgres_adoption.told_again(connection, lease.ns, adopt))
        if self._held.is_back:
            return Adopted()
        move = postgres_adoption.Move(connection, lease.ns, self._serial, self._dead_letters)
        try:
            with connection.transaction():
                connection.execute("SELECT hold(%b, %b, %b, %b)", self._held.begin())
                adopted = move.carry_out(adopt)
                self._adopting = adopt.first
        except psycopg.Error as error:
            if not connection.closed and not connection.broken:
                self._adopting = None
                raise
            self._held.lose(" ".join(str(error).split())[: postgres.TEXT_LIMIT])
            connection, was_committed = self._held.settle()
            if not was_committed:
                self._adopting = None
                raise postgres.unavailable(self.database, error) from None
            self._count_move(move)
            adopted = postgres_adoption.told_again(connection, lease.ns, adopt)
        else:
            self._count_move(move)
        return self._adopted(adopted)

    def _count_move(self, move: postgres_adoption.Move) -> None:
        self._held.on_committed()
        self._outcomes = self._letter_bytes = None
        self._sharing = self._sharing or move.serial > self._serial
        self._serial = move.serial

    def _adopted(self, adopted: Adopted) -> Adopted:
        self._adopting = None
        return adopted
