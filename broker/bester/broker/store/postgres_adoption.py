"""Adoption in PostgreSQL: what an abandoned namespace holds is moved into one's own, in one transaction under both
leases.

The row of the other broker is locked from the choice to the commit, and its lease gets a new epoch: a process that held
it can write and read nothing there any more. A broker that starts under the other name takes the lease anew, and finds
what is left: the namespace keeps its name, its epoch and its clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bester.broker.store import postgres_reading
from bester.broker.store.lease import LEASE_S, MOVED
from bester.broker.store.postgres_brokers import brokers_of
from bester.broker.store.postgres_keys import written
from bester.broker.store.postgres_reading import rows
from bester.broker.store.postgres_writing import Group
from bester.broker.store.rows import pack, read_text, united_notes, unpack, unpack_lane
from bester.broker.store_brokers import (
    GONE_S,
    MOST_ADOPTIONS,
    Adopted,
    AdoptionSeen,
    Brokers,
    united,
)
from bester.broker.store_requests import Adopt, Entry, FindEntry, SaveLane, SaveName
from bester.broker.wire.outcomes import QUEUED

if TYPE_CHECKING:
    from bester.broker.postgres import Connection

# Parts of one mailbox at two adopters would be delivered in no order.
_IS_ANOTHERS = f"""
EXISTS (SELECT 1 {MOVED} AND a.adopter <> (SELECT mine.name FROM broker mine WHERE mine.ns = %b))
"""  # noqa: S608 (own words)
_ABANDONED = f"""
SELECT b.ns, b.name FROM broker b WHERE b.ns <> %b AND b.until < clock_timestamp() AND NOT {_IS_ANOTHERS} AND (
    EXISTS (SELECT 1 FROM entry e WHERE e.ns = b.ns) OR EXISTS (SELECT 1 FROM arrived a WHERE a.ns = b.ns)
    OR EXISTS (SELECT 1 FROM letter l WHERE l.ns = b.ns)
) ORDER BY b.ns LIMIT 1
"""  # noqa: S608 (own words)
# Once the row is locked: another broker may have moved a part since the choice.
_IS_ANOTHERS_NOW = f"SELECT {_IS_ANOTHERS} FROM broker b WHERE b.ns = %b"  # noqa: S608 (own words)
# The end of the lease stays: it tells since when the broker is dead.
_FENCE = "UPDATE broker SET lease = lease + 1 WHERE ns = %b"
_RENEW = "UPDATE broker SET until = clock_timestamp() + %b::float8 * INTERVAL '1 second' WHERE ns = %b"
_LATER_BY = """
SELECT coalesce(%b::float8 - (stored_s + extract(epoch FROM clock_timestamp() - saved_at)::float8), 0.0)
FROM clock WHERE ns = %b
"""
# What waits comes first, for its users may be here, and a broker that is started again waits for that.
_NEXT = (
    "SELECT number, shared FROM entry WHERE ns = %b AND outcome IS NULL ORDER BY number LIMIT %b",
    "SELECT number, NULL FROM entry WHERE ns = %b AND outcome IS NOT NULL ORDER BY number LIMIT %b",
)
# A message that both have is one that was submitted again here. The one that is here stays: the other may have ended.
_DUPLICATES = """
WITH gone AS (
    DELETE FROM entry e USING entry mine WHERE e.ns = %b AND e.number = ANY(%b::bigint[])
    AND mine.ns = %b AND mine.key = e.key RETURNING mine.number AS number
)
UPDATE entry mine SET repeated = TRUE FROM gone WHERE mine.ns = %b AND mine.number = gone.number
AND mine.outcome IS NULL
"""
_NOTES = """
SELECT mine.ns, mine.number, mine.outcome, mine.box, mine.meta, e.ns, e.number, e.outcome, e.box, e.meta
FROM entry e JOIN entry mine ON mine.ns = %b AND mine.key = e.key
WHERE e.ns = %b AND e.number = ANY(%b::bigint[]) AND mine.outcome = 'queued' AND e.outcome IS NOT NULL
"""
_BODIES = """
INSERT INTO body (ns, serial, body) SELECT %b, t.new, b.body
FROM unnest(%b::bigint[], %b::bigint[]) AS t (old, new) JOIN body b ON b.ns = %b AND b.serial = t.old
"""
# A sender whose account was removed stays disowned, also where the other broker was away at the removal.
_SENDER = """
CASE
    WHEN e.number <= (SELECT d.upto FROM disowned d WHERE d.ns = e.ns AND d.name = e.sender) THEN NULL
    WHEN EXISTS (SELECT 1 FROM disowned d WHERE d.ns = %b AND d.name = e.sender)
        AND NOT EXISTS (SELECT 1 FROM disowned d WHERE d.ns = e.ns AND d.name = e.sender) THEN NULL
    ELSE e.sender END
"""
_MOVE_ENDED = f"""
UPDATE entry e SET ns = %b, number = %b, sender = {_SENDER}, expires_s = e.expires_s + coalesce(
    (SELECT stored_s - extract(epoch FROM saved_at)::float8 FROM clock WHERE ns = %b) -
    (SELECT stored_s - extract(epoch FROM saved_at)::float8 FROM clock WHERE ns = %b), 0.0)
WHERE e.ns = %b AND e.number = %b AND e.outcome IS NOT NULL
"""  # noqa: S608 (own words)
_MOVE = f"""
UPDATE entry e SET ns = %b, number = t.new, shared = t.shared, expires_s = e.expires_s + %b::float8,
    repeated = e.repeated OR (e.outcome IS NULL AND e.number <= coalesce(
        (SELECT h.upto FROM handed h WHERE h.ns = e.ns AND h.box = e.box), 0)),
    sender = {_SENDER}
FROM unnest(%b::bigint[], %b::bigint[], %b::bigint[]) AS t (old, new, shared) WHERE e.ns = %b AND e.number = t.old
"""  # noqa: S608 (own words)
_UNUSED_BODIES = """
DELETE FROM body b WHERE b.ns = %b AND NOT EXISTS
(SELECT 1 FROM entry e WHERE e.ns = b.ns AND e.shared = b.serial AND e.outcome IS NULL)
"""
_LETTERS = (
    "DELETE FROM letter l USING letter mine WHERE l.ns = %b AND mine.ns = %b AND mine.key = l.key",
    "UPDATE letter SET ns = %b WHERE ns = %b",
)
_DROP_OLDEST = """
DELETE FROM letter WHERE ns = %b AND serial <=
(SELECT serial FROM letter WHERE ns = %b ORDER BY serial DESC LIMIT 1 OFFSET %b)
"""
_COPY = (
    "INSERT INTO seen_type (ns, name) SELECT %b, name FROM seen_type WHERE ns = %b ORDER BY serial",
    "INSERT INTO native_peer (ns, address, reports) SELECT %b, address, reports FROM native_peer WHERE ns = %b",
    "INSERT INTO held_server (ns, name) SELECT %b, name FROM held_server WHERE ns = %b",
    "INSERT INTO disowned (ns, name, upto, at_s) SELECT %b, name, 0, at_s FROM disowned WHERE ns = %b",
)
_RECORD_PART = """
UPDATE adoption SET at = clock_timestamp(), messages = messages + %b, outcomes = outcomes + %b, letters = letters + %b
WHERE serial = (SELECT serial FROM adoption ORDER BY serial DESC LIMIT 1) AND broker = %b
AND adopter = (SELECT name FROM broker WHERE ns = %b) AND at > clock_timestamp() - %b::float8 * INTERVAL '1 second'
"""
_RECORD = """
INSERT INTO adoption (messages, outcomes, letters, broker, adopter)
SELECT %b, %b, %b, %b, name FROM broker WHERE ns = %b
"""
_FORGET_RECORDS = "DELETE FROM adoption WHERE serial <= (SELECT max(serial) FROM adoption) - %b"
_RECORDS = """
SELECT broker, adopter, extract(epoch FROM clock_timestamp() - at)::float8, messages, outcomes, letters FROM adoption
WHERE at > clock_timestamp() - %b::float8 * INTERVAL '1 second' ORDER BY serial DESC LIMIT %b
"""
KEPT_RECORDS = 1_000
"""Adoptions that the view remembers: one a day for years."""
_ARRIVED = "SELECT peer, type, epoch, floor, outcomes FROM arrived WHERE ns = %b"


class _Note(NamedTuple):
    """A row of an entry, as far as notes of a message that was submitted at two brokers differ."""

    ns: int
    number: int
    outcome: str | None
    box: str
    meta: bytes


def find(connection: Connection, ns: int) -> tuple[Brokers, float]:
    """Return the brokers of the server, and the time of the database's clock, in seconds. Raises psycopg.Error."""
    ((database_s,),) = rows(connection, "SELECT extract(epoch FROM clock_timestamp())::float8")
    found = rows(connection, _ABANDONED, ns, ns)
    brokers = [each._replace(name=read_text(each.name)) for each in brokers_of(connection)]
    adoptions = [
        AdoptionSeen(read_text(broker), read_text(adopter), max(ago_s, 0.0), *counts)
        for broker, adopter, ago_s, *counts in rows(connection, _RECORDS, GONE_S, MOST_ADOPTIONS)
    ]
    return Brokers(read_text(found[0][1]) if found else "", tuple(brokers), tuple(adoptions)), database_s


def find_entry(connection: Connection, ns: int, lease: int, read: FindEntry) -> tuple[Entry, str | None] | None:
    """Return the entry that a later outcome is about, wherever it is; an ended one of another broker is moved here, or
    united with the one that is here.

    Raises psycopg.Error."""
    found: tuple[Entry, str | None] | None = postgres_reading.answer(connection, ns, read)
    if found is not None and found[1] != QUEUED:
        return found
    if all(row[0] == ns for row in rows(connection, postgres_reading.ANYWHERE, *postgres_reading.in_lane(read))):
        return found
    with connection.transaction():
        rows(connection, "SELECT held(%b, %b) FROM broker WHERE ns = %b FOR SHARE", ns, lease, ns)
        # Two brokers that unite the notes of one message take the locks in one order.
        query = f"{postgres_reading.ANYWHERE} ORDER BY ns, number FOR UPDATE"
        there = rows(connection, query, *postgres_reading.in_lane(read))
        mine = next((_Note(*row) for row in there if row[0] == ns), None)
        waiting: int | None = None
        for theirs in (_Note(*row) for row in there if row[0] != ns):
            if theirs.outcome is None:
                waiting = theirs.ns
            elif mine is None:
                values = ns, read.number, ns, ns, theirs.ns, theirs.ns, theirs.number
                connection.execute(_MOVE_ENDED.encode(), values, binary=True)
                mine = theirs._replace(ns=ns, number=read.number)
            elif mine.outcome is not None and mine.box == theirs.box:
                statement = "DELETE FROM entry WHERE ns = %b AND number = %b"
                connection.execute(statement.encode(), (theirs.ns, theirs.number), binary=True)
                mine = _unite(connection, mine, theirs)
        found = postgres_reading.answer(connection, ns, read)
        if found is None and waiting is not None:
            found = postgres_reading.answer(connection, waiting, read)
    return found


def _unite(connection: Connection, mine: _Note, theirs: _Note) -> _Note:
    """Take another namespace's note of a message into mine, and return mine as it is then. A damaged one is left."""
    if mine.outcome != QUEUED or theirs.outcome is None:
        return mine
    try:
        outcome, meta = united_notes(
            (mine.outcome, unpack(mine.meta)), (read_text(theirs.outcome), unpack(theirs.meta))
        )
    except ValueError:
        return mine
    united = mine._replace(outcome=written(outcome), meta=bytes(pack(meta)))
    values = united.outcome, united.meta, mine.ns, mine.number
    connection.execute(b"UPDATE entry SET outcome = %b, meta = %b WHERE ns = %b AND number = %b", values, binary=True)
    return united


class Move:
    """A move into the namespace `ns`, in a transaction that has begun with `hold`. `serial` is the next one of a shared
    body there."""

    def __init__(self, connection: Connection, ns: int, serial: int, dead_letters: int) -> None:
        self.serial = serial
        self._connection = connection
        self._ns = ns
        self._dead_letters = dead_letters

    def carry_out(self, adopt: Adopt) -> Adopted:
        """Move the next part of an abandoned namespace. Raises what a statement raises."""
        found = rows(self._connection, f"{_ABANDONED} FOR UPDATE SKIP LOCKED", self._ns, self._ns)
        if not found:
            return Adopted()
        other, name = found[0]
        if rows(self._connection, _IS_ANOTHERS_NOW, self._ns, other)[0][0]:
            return Adopted()
        self._do(_FENCE, other)
        letters = self._letters(other)
        self._lanes(other)
        moved, is_more = self._entries(other, adopt)
        for statement in _COPY:
            self._do(f"{statement} ON CONFLICT DO NOTHING", self._ns, other)
        self._names(other)
        if not is_more:
            for table in ("handed", "body", "disowned"):
                self._do(f"DELETE FROM {table} WHERE ns = %b", other)  # noqa: S608 (own words)
        self._do(_RENEW, LEASE_S, self._ns)
        adopted = told(self._connection, self._ns, adopt, read_text(name), moved, is_more=is_more)
        self._record(name, moved - adopted.outcomes, adopted.outcomes, letters)
        return adopted._replace(dead_letters=letters)

    def _record(self, broker: str, *counts: int) -> None:
        """Note the adoption for whoever asks later; the parts of one are one."""
        if not self._do(_RECORD_PART, *counts, broker, self._ns, LEASE_S):
            self._do(_RECORD, *counts, broker, self._ns)
            self._do(_FORGET_RECORDS, KEPT_RECORDS)

    def _do(self, statement: str, *values: object) -> int:
        return self._connection.execute(statement.encode(), values, binary=True).rowcount

    def _entries(self, other: int, adopt: Adopt) -> tuple[int, bool]:
        """Move messages and outcomes; return how many, and whether more are left."""
        connection = self._connection
        waiting, ended = _NEXT
        found = rows(connection, waiting, other, adopt.limit + 1)
        if len(found) <= adopt.limit:
            found += rows(connection, ended, other, adopt.limit + 1 - len(found))
        is_more, found = len(found) > adopt.limit, found[: adopt.limit]
        if not found:
            return 0, False
        later = rows(connection, _LATER_BY, adopt.stored_s, other)
        old = [number for number, _ in found]
        serials: dict[int, int] = {}
        for _, shared in found:
            if shared is not None and shared not in serials:
                serials[shared] = self.serial
                self.serial += 1
        for row in rows(connection, _NOTES, self._ns, other, old):
            _unite(connection, _Note(*row[:5]), _Note(*row[5:]))
        self._do(_DUPLICATES, other, old, self._ns, self._ns)
        self._do(_BODIES, self._ns, list(serials), list(serials.values()), other)
        new = list(range(adopt.first, adopt.first + len(old)))
        shared_anew = [serials.get(shared) for _, shared in found]
        moved = self._do(
            _MOVE, self._ns, later[0][0] if later else 0.0, self._ns, old, new, shared_anew, other
        )  # fmt: skip
        if is_more and serials:
            self._do(_UNUSED_BODIES, other)
        return moved, is_more

    def _letters(self, other: int) -> int:
        """Move the dead letters; return how many."""
        duplicates, move = _LETTERS
        self._do(duplicates, other, self._ns)
        moved = self._do(move, self._ns, other)
        if moved:
            self._do(_DROP_OLDEST, self._ns, self._ns, self._dead_letters)
        return moved

    def _lanes(self, other: int) -> None:
        theirs = self._lanes_of(other)
        if theirs:
            mine = {(each.peer, each.type): each for each in self._lanes_of(self._ns)}
            self._write(*(united(mine.get((each.peer, each.type)), each) for each in theirs))
            self._do("DELETE FROM arrived WHERE ns = %b", other)

    def _lanes_of(self, ns: int) -> list[SaveLane]:
        return [
            SaveLane(read_text(peer), read_text(type_), read_text(epoch), floor, *unpack_lane(outcomes))
            for peer, type_, epoch, floor, outcomes in rows(self._connection, _ARRIVED, ns)
        ]

    def _names(self, other: int) -> None:
        """Add the names that the server had at the other broker, behind which one's own stay the latest."""
        query = "SELECT name FROM server_name WHERE ns = %b ORDER BY serial"
        mine, theirs = ([read_text(name) for (name,) in rows(self._connection, query, ns)] for ns in (self._ns, other))
        if set(theirs) - set(mine):
            self._write(*map(SaveName, dict.fromkeys([*(name for name in theirs if name not in mine), *mine])))

    def _write(self, *writes: SaveLane | SaveName) -> None:
        group = Group(self._ns, serial=self.serial, sharing=False, dead_letters=self._dead_letters, to_forget=None)
        group.add(writes)
        for text, values, _ in group.statements:
            self._do(text, *values)


def told(connection: Connection, ns: int, adopt: Adopt, broker: str, moved: int, *, is_more: bool) -> Adopted:
    """Return the answer for messages and outcomes that have been moved to the numbers of an adoption."""
    numbers = adopt.first, adopt.first + adopt.limit
    snapshot = postgres_reading.snapshot(connection, ns, "", 0, numbers)
    waiting = sum(queue.messages for queue in snapshot.queues.values())
    return Adopted(broker, snapshot, moved - waiting, is_more)


def told_again(connection: Connection, ns: int, adopt: Adopt) -> Adopted:
    """Return the answer for an adoption whose fate was open; the next one moves what may be left."""
    query = "SELECT count(*) FROM entry WHERE ns = %b AND number >= %b AND number < %b"
    ((moved,),) = rows(connection, query, ns, adopt.first, adopt.first + adopt.limit)
    return told(connection, ns, adopt, "another broker", moved, is_more=True)
