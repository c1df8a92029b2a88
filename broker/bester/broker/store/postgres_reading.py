"""Reads from a store in PostgreSQL: one function for each read of `store_requests`, and the snapshot of a start.

Nothing here writes. All rows are of the namespace `ns` of one broker.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from bester.broker.store.postgres_keys import ALL_BROKERS, ID_PART, beginning, key_of_letter, written
from bester.broker.store.reading import Row, entry_of, letters_of, outcome_of
from bester.broker.store.rows import counts_by_server, of_all_brokers, read_text, summed_shares, unpack, unpack_lane
from bester.broker.store_requests import (
    LETTER_PAGE_BYTES,
    READ_BYTES,
    ClockState,
    DeadLetter,
    DeadLetterPage,
    Entry,
    Fetch,
    FindDeadLetters,
    FindEntry,
    FindExpired,
    FindOldest,
    FindOutcomes,
    Read,
    SaveLane,
    Snapshot,
    StoredQueue,
    lane,
)
from bester.broker.wire.outcomes import OUTCOME_TYPE

if TYPE_CHECKING:
    from bester.broker.postgres import Connection

_BARE = "number, box, id, target, type, ''::bytea, sender, expires_s, meta, repeated"
_BODY = (
    "CASE WHEN shared IS NULL THEN body ELSE (SELECT b.body FROM body b WHERE b.ns = e.ns AND b.serial = shared) END"
)
_EXPIRING = "outcome IS NULL AND expires_s < 'infinity'"
"""As the index of the messages that expire says it."""
_COLUMNS = _BARE.replace("''::bytea", _BODY)
_IN_LANE = "id = %b AND left(id, %b) = left(%b, %b) AND box >= %b AND box < %b"


FIND_ENTRY = f"SELECT {_BARE}, outcome FROM entry e WHERE ns = %b AND {_IN_LANE} LIMIT 1"  # noqa: S608 (own words)
OUTCOMES = f"""
SELECT box, id, target, outcome FROM entry e
WHERE ns = ANY ({ALL_BROKERS}) AND left(id, %b) >= left(%b, %b) AND left(id, %b) <= left(%b, %b)
AND id >= %b AND id < %b AND sender = %b
AND number > coalesce((SELECT upto FROM disowned d WHERE d.ns = e.ns AND name = %b), 0) ORDER BY number
"""  # noqa: S608 (own words)
ANYWHERE = f"SELECT ns, number, outcome, box, meta FROM entry e WHERE ns = ANY ({ALL_BROKERS}) AND {_IN_LANE}"  # noqa: S608 (own words)
OLDEST = """
WITH RECURSIVE lane (box) AS (
    SELECT min(box) FROM entry WHERE ns = %b AND outcome IS NULL AND box >= 'lane/' AND box < 'lane0' UNION ALL
    SELECT (
        SELECT min(e.box) FROM entry e WHERE ns = %b AND outcome IS NULL AND e.box > lane.box AND e.box < 'lane0'
    ) FROM lane WHERE box IS NOT NULL
), first (number) AS (
    SELECT (SELECT min(number) FROM entry e WHERE ns = %b AND outcome IS NULL AND e.box = lane.box)
    FROM lane WHERE box IS NOT NULL
)
SELECT box, meta FROM entry WHERE ns = %b AND number IN (SELECT number FROM first)
"""
"""The oldest message of each lane, found from lane to lane: there may be a million messages."""


def in_lane(read: FindEntry) -> tuple[str | int, ...]:
    """Return the values of a query for an entry in the lanes to a server, behind that of the namespace."""
    id_ = written(read.id)
    return id_, ID_PART, id_, ID_PART, *beginning(lane(read.server, ""))


def answer(connection: Connection, ns: int, read: Read) -> Any:
    """Return the answer to a read. Raises psycopg.Error, and ValueError for contents that no store has written."""
    match read:
        case Fetch():
            return _fetched(connection, ns, read)
        case FindExpired():
            return _expired(connection, ns, read)
        case FindEntry():
            return _find_entry(connection, ns, read)
        case FindOutcomes():
            return _outcomes(connection, read)
        case FindDeadLetters():
            return _find_dead_letters(connection, ns, read)
        case FindOldest():
            return _oldest(connection, ns)


def rows(connection: Connection, statement: str, *values: Any) -> list[Row]:
    """Return the rows of a statement."""
    return connection.execute(statement.encode(), values, binary=True).fetchall()


def _entry(row: Row) -> Entry:
    """Return the entry of a row, whose last column says that a duplicate may have been delivered before."""
    entry = entry_of(row[:-1])
    return entry._replace(meta={**entry.meta, "repeated": True}) if row[-1] else entry


def _sized(limit_bytes: int, where: str, order: str) -> str:
    """Return a query of the numbers of entries, no more than `limit_bytes` of bodies, but at least one."""
    return (
        f"SELECT number FROM (SELECT number, sum(size) OVER (ORDER BY {order}) AS upto, "  # noqa: S608 (own words)
        f"row_number() OVER (ORDER BY {order}) AS at FROM (SELECT number, expires_s, size FROM entry WHERE {where} "
        f"ORDER BY {order} LIMIT %b) AS first) AS sized WHERE at = 1 OR upto <= {int(limit_bytes)}"
    )


def fetch_query(limit_bytes: int) -> str:
    """Return the query of the next messages of a queue. The pair keeps PostgreSQL from an index of numbers alone."""
    where = "ns = %b AND box = %b AND (box, number) > (%b, %b) AND outcome IS NULL"
    numbers = _sized(limit_bytes, where, "number")
    return f"SELECT {_COLUMNS} FROM entry e WHERE ns = %b AND number IN ({numbers}) ORDER BY number"  # noqa: S608 (own words)


def _fetched(connection: Connection, ns: int, read: Fetch) -> list[Entry]:
    box = written(read.queue)
    found = rows(connection, fetch_query(read.limit_bytes), ns, ns, box, box, read.after, read.limit)
    return [_entry(row) for row in found]


def _expired(connection: Connection, ns: int, read: FindExpired) -> tuple[list[Entry], float | None]:
    order = "expires_s, number"
    numbers = _sized(read.limit_bytes, f"ns = %b AND {_EXPIRING} AND expires_s <= %b::float8", order)
    query = f"SELECT {_COLUMNS} FROM entry e WHERE ns = %b AND number IN ({numbers}) ORDER BY {order}"  # noqa: S608 (own words)
    found = [_entry(row) for row in rows(connection, query, ns, ns, read.at_s, read.limit)]
    last = (found[-1].expires_s, found[-1].number) if found else (float("-inf"), -(2**63))
    later = f"ns = %b AND {_EXPIRING} AND (expires_s, number) > (%b::float8, %b) ORDER BY {order} LIMIT 1"
    query = f"SELECT min(expires_s) FROM (SELECT expires_s FROM entry WHERE {later}) AS next"  # noqa: S608 (own words)
    ((next_s,),) = rows(connection, query, ns, *last)
    return found, next_s


def _find_entry(connection: Connection, ns: int, read: FindEntry) -> tuple[Entry, str | None] | None:
    found = rows(connection, FIND_ENTRY, ns, *in_lane(read))
    return (_entry(found[0][:-1]), outcome_of(found[0][-1])) if found else None


def _outcomes(connection: Connection, read: FindOutcomes) -> dict[str, str]:
    """Return the outcomes of a message, of all brokers of the server: the message may have been sent through another
    one, or some of its outcomes adopted by one."""
    low, high, sender = written(read.message + ".0"), written(read.message + ".:"), written(read.sender)  # a number
    found = rows(
        connection, OUTCOMES, ID_PART, low, ID_PART, ID_PART, high, ID_PART, low, high, sender, sender
    )  # fmt: skip
    return of_all_brokers((box + id_, read_text(target), outcome_of(outcome)) for box, id_, target, outcome in found)


def _oldest(connection: Connection, ns: int) -> dict[str, dict[Any, Any]]:
    found: dict[str, dict[Any, Any]] = {}
    for box, meta in rows(connection, OLDEST, ns, ns, ns, ns):
        try:
            found[read_text(box)] = unpack(meta)
        except ValueError:
            found[read_text(box)] = {}
    return found


def _find_dead_letters(connection: Connection, ns: int, read: FindDeadLetters) -> list[DeadLetter] | DeadLetterPage:
    where = "ns = %b"
    values: tuple[Any, ...] = (ns,)
    if read.id is not None:
        where, values = f"{where} AND key = %b", (*values, key_of_letter(read.id))
    elif read.type is not None:
        where, values = f"{where} AND type = %b", (*values, written(read.type))
    if not read.oldest_first:
        return letters_of(_letters(connection, read, where, values, "serial DESC"), READ_BYTES)[0]
    upto = read.upto or rows(connection, "SELECT coalesce(max(serial), 0) FROM letter WHERE ns = %b", ns)[0][0]
    where = f"{where} AND serial > %b AND serial <= %b"
    letters, after = letters_of(
        _letters(connection, read, where, (*values, read.after, upto), "serial"), LETTER_PAGE_BYTES
    )
    left = f"SELECT count(*) FROM letter WHERE {where}"  # noqa: S608 (own words)
    return DeadLetterPage(letters, rows(connection, left, *values, after or upto, upto)[0][0], after or upto, upto)


def _letters(
    connection: Connection, read: FindDeadLetters, where: str, values: tuple[Any, ...], order: str
) -> list[Row]:
    """Return the rows of dead letters in an order, as many as may be read at once, but at least one."""
    body = "body" if read.bodies else "''::bytea"
    size = "length(body)" if read.bodies or read.oldest_first else "0"
    sized = (
        f"SELECT serial, id, type, {body} AS body, {size} AS size, reason, at_s, meta, "  # noqa: S608 (own words)
        f"sum({size}) OVER (ORDER BY {order}) AS upto, "
        f"row_number() OVER (ORDER BY {order}) AS at FROM (SELECT * FROM letter WHERE {where} "
        f"ORDER BY {order} LIMIT %b) AS first"
    )
    columns = "serial, id, type, body, size, reason, at_s, meta"
    query = f"SELECT {columns} FROM ({sized}) AS sized WHERE at = 1 OR upto <= %b ORDER BY {order}"  # noqa: S608 (own words)
    return rows(connection, query, *values, read.limit, LETTER_PAGE_BYTES if read.oldest_first else READ_BYTES)


def snapshot(
    connection: Connection, ns: int, epoch: str, life: int, numbers: tuple[int, int] | None = None
) -> Snapshot:
    """Return the contents of a namespace; with `numbers` the messages from the first to below the second alone.

    Raises psycopg.Error, and ValueError for contents that no store has written."""
    among = "" if numbers is None else f" AND number >= {int(numbers[0])} AND number < {int(numbers[1])}"

    def all_of(statement: str) -> list[Row]:
        return rows(connection, statement, ns)

    handed: dict[str, int] = dict(all_of("SELECT box, upto FROM handed WHERE ns = %b"))
    clock = all_of("SELECT stored_s, skew_s, boot, boot_s FROM clock WHERE ns = %b")
    waiting = f"FROM entry WHERE ns = %b AND outcome IS NULL{among}"
    of_users = f"SELECT box, sender, NULL, count(*), sum(size)::bigint {waiting} AND sender IS NOT NULL GROUP BY 1, 2"
    return Snapshot(
        epoch=epoch,
        life=life,
        queues={
            read_text(box): StoredQueue(messages, int(size_bytes), lowest, handed.get(box, 0))
            for box, messages, size_bytes, lowest in all_of(
                f"SELECT box, count(*), sum(size)::bigint, min(number) {waiting} GROUP BY box"
            )
        },
        shares=summed_shares(
            (read_text(box), None if sender is None else read_text(sender), meta, messages, size_bytes)
            for box, sender, meta, messages, size_bytes in [
                *all_of(of_users),
                *all_of(f"SELECT box, NULL, meta, 1, size {waiting} AND sender IS NULL AND type <> '{OUTCOME_TYPE}'"),
            ]
        ),
        types=_names(all_of("SELECT name FROM seen_type WHERE ns = %b ORDER BY serial")),
        lanes=tuple(
            SaveLane(read_text(peer), read_text(type_), read_text(their_epoch), floor, *unpack_lane(outcomes))
            for peer, type_, their_epoch, floor, outcomes in all_of(
                "SELECT peer, type, epoch, floor, outcomes FROM arrived WHERE ns = %b"
            )
        ),
        next_expiry_s=all_of(f"SELECT min(expires_s) {waiting}")[0][0],
        dead=all_of("SELECT count(*) FROM letter WHERE ns = %b")[0][0],
        clock=ClockState(clock[0][0], clock[0][1], read_text(clock[0][2]), clock[0][3]) if clock else None,
        names=_names(all_of("SELECT name FROM server_name WHERE ns = %b ORDER BY serial")),
        peers={
            read_text(address): reports
            for address, reports in all_of("SELECT address, reports FROM native_peer WHERE ns = %b")
        },
        held=frozenset(_names(all_of("SELECT name FROM held_server WHERE ns = %b"))),
        remote=counts_by_server(
            all_of(f"SELECT box, count(*) FROM entry WHERE ns = %b AND outcome = 'queued'{among} GROUP BY box")  # noqa: S608 (numbers)
        ),
        disowned={
            read_text(name): (upto, at_s)
            for name, upto, at_s in all_of("SELECT name, upto, at_s FROM disowned WHERE ns = %b")
        },
        is_shared=True,
    )


def _names(found: Iterable[Row]) -> tuple[str, ...]:
    return tuple(read_text(name) for (name,) in found)
