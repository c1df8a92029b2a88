"""The connection of a broker to its namespace in PostgreSQL: held by a lease, lost, and connected anew.

Each transaction writes the number of its commit. So a new connection tells whether a group is committed whose answer
was lost with the old one, and whether the database is the one that was left. `away` says why nothing can be kept;
`fenced` is set for good where another process has taken the lease.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import psycopg

from bester.broker import postgres, postgres_schema
from bester.broker.logs import facts
from bester.broker.postgres import Database
from bester.broker.postgres_schema import new_epoch
from bester.broker.store import lease as leases
from bester.broker.store.lease import LEASE_S, RENEW_S, Lease
from bester.broker.store_requests import Held
from bester.broker.wire.codes import BesterError

if TYPE_CHECKING:
    from bester.broker.postgres import Connection

AGAIN_S = 0.5
"""Pause between two tries to connect: a database that is back is noticed within two seconds, and one that is away is
not stormed."""
CLOCK_S = 2.0
"""Time by which a lease may be renewed late, and clocks differ in their pace between two looks."""
NAP_S = 0.25
"""Pause between two looks for the fate of a group."""
_AS_SET = "current_setting('synchronous_commit')"
_SYNCHRONOUS = {"full": f"CASE {_AS_SET} WHEN 'off' THEN 'on' ELSE {_AS_SET} END", "normal": "'off'"}
TAKEN = "another process has taken the lease"
_OTHER_COMMITS = "the database was set back, or is a copy"
_log = logging.getLogger("bester.broker.store")


class Store(Protocol):
    """The store: its database, and what others read of why it cannot be used."""

    database: Database
    away: str
    fenced: str


class LeasedConnection:
    """The connection of `broker` to the database of `store`, which is told its trouble. `commits` counts those of the
    namespace, `life` its starts with this one, `renewed_at` is the time at which the latest commit began, by a `clock`
    that goes on while the machine sleeps: the lease lives from then on, however long the commit took."""

    def __init__(
        self, broker: str, synchronous: str, store: Store, clock: Callable[[], float], server: str | None
    ) -> None:
        self.broker = broker
        self._server = server
        self.clock = clock
        self.renewed_at = self._begun_at = 0.0
        self._returned_at = float("-inf")  # of the first commit after the lease had run out
        self._database_ahead_s = float("inf")  # of this process's clock
        self.commits = 0
        self.life = 0
        self._lease: Lease | None = None
        self._synchronous = _SYNCHRONOUS[synchronous]
        self._store = store
        self._closing = threading.Event()
        self.connection: Connection | None = None
        self._again_at = 0.0
        self._lost_at: float | None = None  # None while it is connected
        self._lost_why = ""

    @property
    def lease(self) -> Lease:
        """The lease, which is taken."""
        assert self._lease is not None, "the store is not open"
        return self._lease

    @property
    def is_claimed(self) -> bool:
        """Return whether the lease is taken."""
        return self._lease is not None

    def begin(self) -> tuple[int, int, int, float]:
        """Begin a transaction: return the arguments of the function `hold`, which the transaction calls first, and
        which checks and renews the lease."""
        self._begun_at = self.clock()
        return self.lease.ns, self.lease.epoch, self.commits + 1, LEASE_S

    @property
    def is_back(self) -> bool:
        """Return whether this broker could not renew its lease, or could not until a moment ago: whatever kept it from
        that may have kept the others, which have the time of a lease to come back as well."""
        now = self.clock()
        return now - self.renewed_at > LEASE_S or now - self._returned_at < LEASE_S

    def on_database_clock(self, database_s: float) -> None:
        """Take in the time of the database. Where its clock was set, or another machine's is ahead of that of the one
        that failed, the leases of all brokers seem to have run out."""
        ahead_s = database_s - self.clock()
        if ahead_s - self._database_ahead_s > LEASE_S - RENEW_S - CLOCK_S:
            self._returned_at = self.clock()
        self._database_ahead_s = ahead_s

    def on_committed(self) -> None:
        """Count a commit."""
        now = self.clock()
        if now - self.renewed_at > LEASE_S:
            self._returned_at = now
        self.commits += 1
        self.renewed_at = self._begun_at

    # --- the lease ---

    def claim(self) -> Held | None:
        """Take the lease, or return who holds it. Makes schema and namespace where these are missing. Raises
        psycopg.Error, ConfigError and BesterError."""
        self._closing.clear()
        if self.connection is None:
            self.connection = self._connect()
            postgres.see_session(self.connection, self._store.database)
            postgres_schema.migrate(self.connection, self._store.database)
        now = self.clock()
        taken = leases.take(self.connection, self.broker, self._server)
        if isinstance(taken, Held):
            return taken
        self._lease, self.commits, self.renewed_at = taken, taken.commits, now
        return None

    def forget(self) -> None:
        """Forget the lease, also where the connection is still at work."""
        self._lease = None

    def stop(self) -> None:
        """Let `settle` wait no longer."""
        self._closing.set()

    def _connect(self) -> Connection:
        connection = postgres.connect(self._store.database, f"bester broker {self.broker}"[:60])
        try:
            connection.execute(f"SELECT set_config('synchronous_commit', {self._synchronous}, false)".encode())
        except BaseException:
            connection.close()
            raise
        return connection

    def give_back(self) -> None:
        """End the lease, and close the connection."""
        connection, lease = self.connection, self._lease
        if connection is None:
            return
        if lease is not None and not connection.closed:
            try:
                connection.execute(
                    "UPDATE broker SET until = 'epoch' WHERE ns = %s AND lease = %s", (lease.ns, lease.epoch)
                )
            except psycopg.Error:  # the lease ends by itself
                pass
        connection.close()
        self.connection = None

    # --- the connection ---

    def connected(self) -> Connection:
        """Return the connection, a new one where the old one was lost. Raises BesterError at once where the database
        was away a moment ago."""
        if self._store.fenced:
            raise BesterError("storage-unavailable", self._store.fenced)
        connection = self.connection
        if connection is not None and _is_sound(connection):
            return connection
        assert self._lease is not None, "the store is not open"
        if connection is not None:
            self.lose("the connection was closed")
        now = time.monotonic()
        if now < self._again_at:
            self._tell_away(self._lost_why)
            raise BesterError("storage-unavailable", self._store.away)
        self._again_at = now + AGAIN_S
        try:
            connection = self._connect()
            commits = self.look(connection)
        except psycopg.Error as error:
            unavailable = postgres.unavailable(self._store.database, error)
            self._lost_why = unavailable.text
            self._tell_away(self._lost_why)
            raise unavailable from None
        if commits != self.commits:
            connection.close()
            self.fence(_OTHER_COMMITS)
            raise BesterError("storage-unavailable", self._store.fenced)
        self.connection = connection
        self._found()
        return connection

    def look(self, connection: Connection) -> int | None:
        """Return how many commits the namespace has had, once none is under way; None where the lease was taken, or the
        database has forgotten it. The connection is closed where that cannot be found out.

        Starts that the database has forgotten are counted anew, and with them numbers that other servers know: the
        namespace gets another epoch, or they would take the next messages for duplicates. The lease does not tell: in
        the forgotten time's place, another broker may have adopted this one there."""
        lease = self.lease
        try:
            with connection.transaction():
                row = connection.execute(
                    "SELECT lease, commits, life FROM broker WHERE ns = %s AND name = %s FOR UPDATE",
                    (lease.ns, self.broker),
                ).fetchone()
                is_set_back = row is None or row[2] < self.life
                if row is not None and is_set_back:
                    connection.execute("UPDATE broker SET epoch = %s WHERE ns = %s", (new_epoch(), lease.ns))
        except BaseException:
            connection.close()
            raise
        if row is None or is_set_back or row[0] != lease.epoch:
            connection.close()
            self.fence(_OTHER_COMMITS if is_set_back else TAKEN)
            return None
        return int(row[1])

    def lose(self, reason: str) -> None:
        """Close the connection. Nothing is refused yet: the database may be there, or have been back for long where
        this process, or its machine, stood still. Whoever needs a connection next connects again, or calls the database
        away."""
        if self.connection is not None:
            if not self.connection.closed and not self.connection.broken:
                self._again_at = 0.0  # the database is there
            self.connection.close()
            self.connection = None
        if self._lost_at is None:
            self._lost_at = time.monotonic()
        self._lost_why = f"{self._store.database.where}: {reason}"

    def _tell_away(self, reason: str) -> None:
        """Refuse messages to be kept from now on, with a line in the log where the database has been there."""
        why = f"{reason}; nothing can be kept until the broker is connected again"
        if not self._store.away:
            _log.warning("%s", why, extra=facts("store-away", why=why))
        self._store.away = why

    def _found(self) -> None:
        if self._lost_at is not None:
            away_s = time.monotonic() - self._lost_at
            self._store.away, self._lost_at = "", None
            extra = facts("store-back", away_s=round(away_s, 3))
            _log.info("%s: connected again after %.1f s", self._store.database.where, away_s, extra=extra)

    def fence(self, reason: str = TAKEN) -> None:
        """Tell the store that this process must end."""
        if not self._store.fenced:
            self._store.fenced = (
                f"{self._store.database.where}: broker {self.broker!r}: {reason}; this process must end"
            )
            self._store.away = self._store.fenced
            _log.error("%s", self._store.fenced, extra=facts("store-fenced", why=self._store.fenced))

    def on_refused(self, connection: Connection, reason: str = TAKEN) -> None:
        """Tell the store that this process must end, since the database says that its lease is another's; the reason
        may be another one."""
        with suppress(psycopg.Error):
            self.look(connection)
        self.fence(reason)

    def settle(self) -> tuple[Connection, bool]:
        """Connect again, at once and then however long that takes; return the connection, and whether the group that
        was under way when the old one broke is committed. Raises BesterError where the process ends before anybody
        knows."""
        nap_s = 0.0
        while not self._closing.wait(nap_s):
            nap_s = NAP_S
            try:
                connection = self._connect()
                commits = self.look(connection)
            except psycopg.Error as error:
                self._tell_away(self._lost_why)
                self._lost_why = postgres.why(self._store.database, error)
                continue
            if commits in (self.commits, self.commits + 1):
                self.connection = connection
                self._found()
                return connection, commits > self.commits
            if commits is not None:
                connection.close()
                self.fence(_OTHER_COMMITS)
            self._closing.wait()  # no report would be right: nobody can tell any more, and the process ends
        raise BesterError("storage-unavailable", self._store.away)


def is_stale(error: Exception) -> bool:
    """Return whether a new connection may do what this one has refused: the library takes a statement for prepared that
    is not, for good, where its sixth execution was behind a failed one, in one piece with it; or this server takes no
    writes any more, and another one of the address does."""
    return isinstance(error, psycopg.errors.InvalidSqlStatementName | psycopg.errors.ReadOnlySqlTransaction)


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
