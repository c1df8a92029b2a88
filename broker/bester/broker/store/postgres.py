"""A store in PostgreSQL: a group of writes is one transaction, sent in one piece, and on the disk of the database when
it is answered.

The namespace of a broker is held by a lease (see `lease`); every transaction checks and renews it. Where the connection
breaks while a group is under way nobody knows whether the group was committed: `commit` then returns only once the
database has told, by the count of commits that each transaction writes. So `commit` and `read` belong beside the loop
(`is_remote`), and meanwhile `away` says why nothing can be kept.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psycopg

from bester.broker import postgres, postgres_schema
from bester.broker.logs import facts
from bester.broker.postgres import Database
from bester.broker.store import lease as leases
from bester.broker.store import postgres_adoption, postgres_reading
from bester.broker.store.commits import BusyError, Commits, UnwritableError
from bester.broker.store.lease import LEASE_S, RENEW_S, Lease
from bester.broker.store.postgres_reading import rows
from bester.broker.store.postgres_writing import Group, Statement, key_of_entry
from bester.broker.store.reading import outcome_of
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

AGAIN_S = 0.5
"""Pause between two tries to connect: a database that is back is noticed within two seconds, and one that is away is
not stormed."""
NAP_S = 0.25
"""Pause between two looks for the fate of a group."""
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
_AS_SET = "current_setting('synchronous_commit')"
_SYNCHRONOUS = {"full": f"CASE {_AS_SET} WHEN 'off' THEN 'on' ELSE {_AS_SET} END", "normal": "'off'"}
_SIZE = """
SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %b AND c.relkind = 'r'
"""
_OTHER_COMMITS = "the database was set back, or is a copy"
_log = logging.getLogger("bester.broker.store")


class PostgresStore(Commits):
    """A store in the namespace of `broker`. With `synchronous` `full` a commit is on the database's disk, and on its
    standbys where PostgreSQL is set so; with `normal` a power cut may take the last moments. Above `dead_letters` a new
    dead letter replaces the oldest.

    `fenced` is set where another process has taken the lease: this one must end.
    """

    is_remote = True

    def __init__(
        self, database: Database, broker: str, synchronous: str = "full", *, dead_letters: int = 10_000
    ) -> None:
        super().__init__()
        self.database = database
        self.broker = broker
        self._synchronous = _SYNCHRONOUS[synchronous]
        self._dead_letters = dead_letters
        self._connection: Connection | None = None
        self._lease: Lease | None = None
        self._is_open = False
        self._commits = 0
        self._serial = 0
        self._sharing = False
        self._to_forget: tuple[float, int] | None = None
        self._adopting: int | None = None  # first number of an adoption that may be committed, and was not answered
        self._renewed_at = 0.0
        self._measure_at = 0.0
        self._again_at = 0.0
        self._lost_at: float | None = None  # None while it is connected
        self._lost_why = ""
        self._closing = threading.Event()
        self._at_work = threading.Lock()

    @property
    def is_due(self) -> bool:
        """Return whether the lease is to be renewed, by a commit that may be empty."""
        return self._is_open and not self.fenced and time.monotonic() - self._renewed_at > RENEW_S

    # --- opening ---

    def claim(self) -> Held | None:
        """Take the lease of the namespace, or return who holds it. Makes schema and namespace where these are missing.

        Raises ConfigError, or BesterError with a remedy."""
        if self._lease is not None:
            return None
        try:
            if self._connection is None:
                self._connection = self._connect()
                postgres_schema.migrate(self._connection, self.database)
            taken = leases.take(self._connection, self.broker)
        except psycopg.Error as error:
            self.close()
            raise postgres.unavailable(self.database, error) from None
        except BaseException:
            self.close()
            raise
        if isinstance(taken, Held):
            return taken._replace(why=f"{self.database.where}: {taken.why}")
        self._lease, self._commits, self._renewed_at = taken, taken.commits, time.monotonic()
        return None

    def open(self) -> Snapshot:
        """Take the lease if it is not taken yet, count this life and return the contents.

        Raises ConfigError, or BesterError where the database cannot be used or another process holds the lease."""
        if self._is_open:
            self.close()
        self._closing.clear()
        held = self.claim()
        if held is not None:
            self.close()
            raise BesterError("not-allowed", held.why)
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
        connection, lease = self._connection, self._lease
        assert connection is not None
        assert lease is not None
        ns = lease.ns
        with connection.transaction():
            connection.execute("SELECT hold(%s, %s, %s, %s)", (ns, lease.epoch, self._commits + 1, LEASE_S))
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
        self._commits += 1
        self._serial, self._sharing = (last or 0) + 1, last is not None
        self._to_forget = None
        self._is_open = True
        self._warn(connection)
        return found

    def _warn(self, connection: Connection) -> None:
        """Log what an operator may have overlooked."""
        (fsync,) = connection.execute("SHOW fsync").fetchone() or ("on",)
        if fsync == "off":
            text = f"{self.database.where}: fsync is off in PostgreSQL; a power cut may destroy what is kept there"
            _log.warning("%s", text, extra=facts("store-unsafe", why=text))

    def _connect(self) -> Connection:
        connection = postgres.connect(self.database, f"bester broker {self.broker}"[:60])
        try:
            connection.execute(f"SELECT set_config('synchronous_commit', {self._synchronous}, false)".encode())
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Give the lease back and close the connection; a commit that is under way is waited for, for CLOSE_S."""
        self._closing.set()
        idle = self._at_work.acquire(timeout=CLOSE_S)
        try:
            connection, lease = self._connection, self._lease
            if connection is not None and idle:
                if lease is not None and not connection.closed:
                    self._give_back(connection, lease)
                connection.close()
                self._connection = None
        finally:
            if idle:
                self._at_work.release()
        self._lease, self._is_open = None, False

    def _give_back(self, connection: Connection, lease: Lease) -> None:
        try:
            connection.execute(
                "UPDATE broker SET until = 'epoch' WHERE ns = %s AND lease = %s", (lease.ns, lease.epoch)
            )
        except psycopg.Error:  # the lease ends by itself
            pass

    # --- connections ---

    def _connected(self) -> Connection:
        """Return the connection, a new one where the old one was lost. Raises BesterError at once where the database
        was away a moment ago."""
        if self.fenced:
            raise BesterError("storage-unavailable", self.fenced)
        connection = self._connection
        if connection is not None and _is_sound(connection):
            return connection
        assert self._lease is not None, "the store is not open"
        if connection is not None:
            self._lose("the connection was closed")
        now = time.monotonic()
        if now < self._again_at:
            self._tell_away(self._lost_why)
            raise BesterError("storage-unavailable", self.away)
        self._again_at = now + AGAIN_S
        try:
            connection = self._connect()
            commits = self._look(connection)
        except psycopg.Error as error:
            unavailable = postgres.unavailable(self.database, error)
            self._tell_away(unavailable.text)
            raise unavailable from None
        if commits != self._commits:
            connection.close()
            self._fence(_OTHER_COMMITS)
            raise BesterError("storage-unavailable", self.fenced)
        self._connection = connection
        self._found()
        return connection

    def _look(self, connection: Connection) -> int | None:
        """Return how many commits the namespace has had, once none is under way; None where the lease was taken. The
        connection is closed where that cannot be found out."""
        assert self._lease is not None
        try:
            with connection.transaction():
                row = connection.execute(
                    "SELECT lease, commits FROM broker WHERE ns = %s FOR UPDATE", (self._lease.ns,)
                ).fetchone()
        except BaseException:
            connection.close()
            raise
        if row is None or row[0] != self._lease.epoch:
            connection.close()
            self._fence("another process has taken the lease")
            return None
        return int(row[1])

    def _lose(self, reason: str) -> None:
        """Close the connection. Nothing is refused yet: the database may be there, or have been back for long where
        this process, or its machine, stood still. Whoever needs a connection next connects again, or calls the database
        away."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lost_at is None:
            self._lost_at = time.monotonic()
        self._lost_why = f"{self.database.where}: {reason}"

    def _tell_away(self, reason: str) -> None:
        """Refuse messages to be kept from now on, with a line in the log where the database has been there."""
        why = f"{reason}; nothing can be kept until the broker is connected again"
        if not self.away:
            _log.warning("%s", why, extra=facts("store-away", why=why))
        self.away = why

    def _found(self) -> None:
        if self._lost_at is not None:
            away_s = time.monotonic() - self._lost_at
            self.away, self._lost_at = "", None
            extra = facts("store-back", away_s=round(away_s, 3))
            _log.info("%s: connected again after %.1f s", self.database.where, away_s, extra=extra)

    def _fence(self, reason: str) -> None:
        if not self.fenced:
            self.fenced = f"{self.database.where}: broker {self.broker!r}: {reason}; this process must end"
            self.away = self.fenced
            _log.error("%s", self.fenced, extra=facts("store-fenced", why=self.fenced))

    # --- writing ---

    def _write(self, writes: Sequence[Write]) -> dict[int, str | None]:
        with self._at_work:
            connection = self._connected()
            for is_last in (False, True):
                group = self._group_of(writes)
                try:
                    repeated = self._write_group(connection, group)
                except (*_UNPACKABLE, MemoryError, psycopg.Error) as error:
                    if not connection.closed and not connection.broken:
                        raise self._failed(connection, error) from None
                    reason = " ".join(str(error).split())[: postgres.TEXT_LIMIT]
                    self._lose(reason)
                    connection, was_committed = self._settle()
                    if was_committed:
                        repeated = self._duplicates_of(connection, writes)
                    elif is_last:
                        raise BesterError("storage-unavailable", f"{self.database.where}: {reason}") from None
                    else:
                        continue
                self._commits += 1
                self._renewed_at = time.monotonic()
                return repeated
        raise AssertionError("the last try returns or raises")

    def _group_of(self, writes: Sequence[Write]) -> Group:
        """Return the statements of a group. Raises UnwritableError."""
        assert self._lease is not None
        group = Group(
            self._lease.ns,
            serial=self._serial,
            sharing=self._sharing,
            dead_letters=self._dead_letters,
            to_forget=self._to_forget,
        )
        try:
            group.add(writes)
        except _UNPACKABLE as error:
            raise self._unwritable(error) from None
        return group

    def _write_group(self, connection: Connection, group: Group) -> dict[int, str | None]:
        """Write a group, and return its duplicates. Raises what a statement raises."""
        assert self._lease is not None
        self._serial, self._sharing = group.serial, group.sharing
        now = time.monotonic()
        if now >= self._measure_at:
            self._measure_at = now + MEASURE_S
            group.statements.append(Statement(_SIZE, (self.database.schema,), self._take_size))
        started = time.perf_counter()
        cursors = self._transact(connection, self._lease, group.statements)
        self._sync_s = time.perf_counter() - started  # one round trip, in which the COMMIT cannot be timed alone
        for statement, cursor in zip(group.statements, cursors, strict=True):
            if statement.take is not None:
                statement.take(cursor)
        self._to_forget = group.to_forget
        self._forgotten += group.forgotten
        return group.repeated

    def _take_size(self, cursor: psycopg.Cursor[tuple[Any, ...]]) -> None:
        ((size_bytes,),) = cursor.fetchall()
        self.size_bytes = size_bytes

    def _transact(
        self, connection: Connection, lease: Lease, statements: Sequence[Statement]
    ) -> list[psycopg.Cursor[tuple[Any, ...]]]:
        """Send a transaction in one piece, and return the answers. Raises what the first failed statement raises."""
        with connection.pipeline():
            connection.execute("BEGIN")
            connection.execute("SELECT hold(%b, %b, %b, %b)", (lease.ns, lease.epoch, self._commits + 1, LEASE_S))
            cursors = [
                connection.execute(statement.text.encode(), statement.values, binary=True) for statement in statements
            ]
            connection.execute("COMMIT")
        return cursors

    def _failed(self, connection: Connection, error: Exception) -> BesterError:
        """Return the error for a transaction that the database has refused, and end that."""
        try:
            if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                connection.execute("ROLLBACK")
        except psycopg.Error:  # a lost connection ends its transaction
            pass
        state = str(getattr(error, "sqlstate", None) or "")
        if state == postgres_schema.LEASE_LOST and isinstance(error, psycopg.Error):
            self._fence(error.diag.message_primary or "another process has taken the lease")
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

    def _settle(self) -> tuple[Connection, bool]:
        """Connect again, at once and then however long that takes; return the connection, and whether the group that
        was under way when the old one broke is committed. Raises BesterError where the process ends before anybody
        knows."""
        nap_s = 0.0
        while not self._closing.wait(nap_s):
            nap_s = NAP_S
            try:
                connection = self._connect()
                commits = self._look(connection)
            except psycopg.Error:
                self._tell_away(self._lost_why)
                continue
            if commits in (self._commits, self._commits + 1):
                self._connection = connection
                self._found()
                return connection, commits > self._commits
            if commits is not None:
                connection.close()
                self._fence(_OTHER_COMMITS)
            self._closing.wait()  # no report would be right: nobody can tell any more, and the process ends
        raise BesterError("storage-unavailable", self.away)

    def _duplicates_of(self, connection: Connection, writes: Sequence[Write]) -> dict[int, str | None]:
        """Return the duplicates of a group whose commit was not answered. Nobody has written since."""
        lease = self._lease
        assert lease is not None
        gone = {write.number for write in writes if isinstance(write, End) and write.forget}
        entries = [write.entry for write in writes if isinstance(write, Enqueue | RecordRemote)]
        numbers = [entry.number for entry in entries if entry.number not in gone]
        keys = [key_of_entry(entry.id, entry.queue) for entry in entries]
        try:
            there = rows(
                connection, "SELECT number FROM entry WHERE ns = %b AND number = ANY(%b::bigint[])", lease.ns, numbers
            )
            known = rows(
                connection, "SELECT key, outcome FROM entry WHERE ns = %b AND key = ANY(%b::bytea[])", lease.ns, keys
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
                connection = self._connected()
                try:
                    return self._read(connection, read)
                except psycopg.Error as error:
                    if connection.closed or connection.broken:
                        self._lose(" ".join(str(error).split())[: postgres.TEXT_LIMIT])
                        if not is_last:
                            continue
                    elif error.sqlstate == postgres_schema.LEASE_LOST:
                        self._fence("another process has taken the lease")
                    raise postgres.unavailable(self.database, error) from None
                except ValueError as error:
                    text = f"{self.database.where}: damaged ({error}); restore a backup of the schema"
                    raise BesterError("storage-unavailable", text) from None
        raise AssertionError("the last try returns or raises")

    def _read(self, connection: Connection, read: Read) -> Any:
        """Return the answer of the database. Raises psycopg.Error, ValueError and BesterError."""
        assert self._lease is not None
        if isinstance(read, Adopt):
            return self._adopt(connection, read)
        with connection.pipeline():
            connection.execute("SELECT held(%b, %b)", (self._lease.ns, self._lease.epoch))
            if isinstance(read, FindBrokers):
                return postgres_adoption.find(connection, self._lease.ns)
            if isinstance(read, FindEntry) and read.number:
                return postgres_adoption.find_entry(connection, self._lease.ns, self._lease.epoch, read)
            return postgres_reading.answer(connection, self._lease.ns, read)

    def _adopt(self, connection: Connection, adopt: Adopt) -> Adopted:
        """Move what another broker has left into this namespace. Raises psycopg.Error, and BesterError.

        Where the connection breaks in the middle, the count of commits tells whether the move was done."""
        lease = self._lease
        assert lease is not None
        if self._adopting == adopt.first:
            return self._adopted(postgres_adoption.told_again(connection, lease.ns, adopt))
        move = postgres_adoption.Move(connection, lease.ns, self._serial, self._dead_letters)
        try:
            with connection.transaction():
                connection.execute("SELECT hold(%b, %b, %b, %b)", (lease.ns, lease.epoch, self._commits + 1, LEASE_S))
                adopted = move.carry_out(adopt)
                self._adopting = adopt.first
        except psycopg.Error as error:
            if not connection.closed and not connection.broken:
                self._adopting = None
                raise
            self._lose(" ".join(str(error).split())[: postgres.TEXT_LIMIT])
            connection, was_committed = self._settle()
            if not was_committed:
                self._adopting = None
                raise postgres.unavailable(self.database, error) from None
            self._count_move(move)
            adopted = postgres_adoption.told_again(connection, lease.ns, adopt)
        else:
            self._count_move(move)
        return self._adopted(adopted)

    def _count_move(self, move: postgres_adoption.Move) -> None:
        self._commits += 1
        self._renewed_at = time.monotonic()
        self._sharing = self._sharing or move.serial > self._serial
        self._serial = move.serial

    def _adopted(self, adopted: Adopted) -> Adopted:
        self._adopting = None
        return adopted


def _is_sound(connection: Connection) -> bool:
    """Return whether a connection is open, as far as can be seen without waiting: a server that has closed the
    connection has said so, and then nothing was sent that might have been carried out."""
    link = connection.pgconn
    try:
        # Each reading takes what is there: first the last words of the server, then the end of the connection.
        while link.status == psycopg.pq.ConnStatus.OK and select.select([link.socket], [], [], 0)[0]:
            link.consume_input()
    except (OSError, ValueError, psycopg.Error):
        return False
    return link.status == psycopg.pq.ConnStatus.OK
