"""Reads from a store's file: one function for each read of `store_requests`. Nothing here writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any

from bester.broker.store.rows import read_text, summed_up, text, unpack
from bester.broker.store_brokers import Adopted, Brokers
from bester.broker.store_requests import (
    DAMAGED,
    LETTER_PAGE_BYTES,
    READ_BYTES,
    Adopt,
    DeadLetter,
    DeadLetterPage,
    Entry,
    Fetch,
    FindBrokers,
    FindDeadLetters,
    FindEntry,
    FindExpired,
    FindOldest,
    FindOutcomes,
    Read,
    lane,
)

_BARE = "number, box, id, target, type, x'', sender, expires_s, meta"
_BODY = "CASE WHEN shared IS NULL THEN body ELSE (SELECT body FROM body WHERE serial = shared) END"
_COLUMNS = _BARE.replace("x''", _BODY)
_AS_BYTES = (
    "number, CAST(box AS BLOB), CAST(id AS BLOB), CAST(target AS BLOB), CAST(type AS BLOB), "
    f"{_BODY}, CAST(sender AS BLOB), expires_s, meta"
)
_TEXT_PLACES = (1, 2, 3, 4, 6)
_OLDEST = """
WITH RECURSIVE lane (box) AS (
    SELECT min(box) FROM entry WHERE outcome IS NULL AND box >= 'lane/' AND box < 'lane0' UNION ALL
    SELECT (SELECT min(e.box) FROM entry e WHERE outcome IS NULL AND e.box > lane.box AND e.box < 'lane0')
    FROM lane WHERE box IS NOT NULL
), first (number) AS (
    SELECT (SELECT min(number) FROM entry e WHERE outcome IS NULL AND e.box = lane.box) FROM lane WHERE box IS NOT NULL
)
SELECT box, meta FROM entry WHERE number IN (SELECT number FROM first)
"""
"""The oldest message of each lane, found from lane to lane: there may be a million messages."""
_DECODE = (ValueError, TypeError, AttributeError)  # raised by a column that is no text, or no packed map

Row = tuple[Any, ...]


def answer(db: sqlite3.Connection, read: Read) -> Any:
    """Return the answer to a read. Raises sqlite3.Error, and ValueError for contents that no store has written."""
    match read:
        case Fetch():
            return _fetched(db, read)
        case FindExpired():
            return _expired(db, read)
        case FindEntry():
            return _find_entry(db, read)
        case FindOutcomes():
            return _outcomes(db, read)
        case FindDeadLetters():
            return _find_dead_letters(db, read)
        case FindOldest():
            return _oldest(db)
        case FindBrokers():  # a file has one namespace
            return Brokers()
        case Adopt():
            return Adopted()


def _fetched(db: sqlite3.Connection, read: Fetch) -> list[Entry]:
    where = "FROM entry WHERE box = ? AND outcome IS NULL AND number > ? ORDER BY number LIMIT ?"
    rows = _whole_rows(db, where, (text(read.queue), read.after, read.limit))
    found: list[Entry] = []
    left_bytes = read.limit_bytes
    for row in rows:
        entry = entry_of(row)
        left_bytes -= len(entry.body)
        if found and left_bytes < 0:
            break
        found.append(entry)
    return found


def _whole_rows(db: sqlite3.Connection, where: str, values: tuple[Any, ...]) -> Iterator[Row]:
    """Yield the rows of entries; each is read by itself where SQLite cannot read all of them, since a text that is not
    UTF-8 must stop its own entry alone."""
    seen: set[int] = set()
    rows = db.execute(f"SELECT {_COLUMNS} {where}", values)
    try:
        for row in rows:
            seen.add(row[0])
            yield row
        return
    except sqlite3.OperationalError as error:
        if "decode" not in str(error).lower():
            raise
    finally:
        rows.close()
    for (number,) in db.execute(f"SELECT number {where}", values).fetchall():
        if number not in seen:
            select = f"SELECT {_AS_BYTES} FROM entry WHERE number = ?"  # noqa: S608 (columns alone)
            yield tuple(_texts(db.execute(select, (number,)).fetchone()))


def _texts(row: Row) -> Iterator[Any]:
    """Yield the columns of a row whose texts were read as bytes; a text that is not UTF-8 stays as bytes."""
    for place, value in enumerate(row):
        if place in _TEXT_PLACES and type(value) is bytes:
            try:
                yield value.decode()
            except UnicodeDecodeError:
                yield value
        else:
            yield value


def _expired(db: sqlite3.Connection, read: FindExpired) -> tuple[list[Entry], float | None]:
    rows = _whole_rows(db, "FROM entry WHERE outcome IS NULL ORDER BY expires_s, number LIMIT ?", (read.limit + 1,))
    found: list[Entry] = []
    next_s: float | None = None
    left_bytes = read.limit_bytes
    for row in rows:
        entry = entry_of(row)
        left_bytes -= len(entry.body)
        if entry.expires_s > read.at_s or len(found) == read.limit or (found and left_bytes < 0):
            next_s = entry.expires_s
            break
        found.append(entry)
    return found, next_s


def _find_entry(db: sqlite3.Connection, read: FindEntry) -> tuple[Entry, str | None] | None:
    begin = text(lane(read.server, ""))
    row = db.execute(
        f"SELECT {_BARE}, outcome FROM entry WHERE id = ? AND box >= ? AND box < ? LIMIT 1",  # noqa: S608 (columns alone)
        (text(read.id), begin, _after(begin)),
    ).fetchone()
    return None if row is None else (entry_of(row[:-1]), outcome_of(row[-1]))


def _outcomes(db: sqlite3.Connection, read: FindOutcomes) -> dict[str, str]:
    # The + keeps SQLite from going by number, through all messages that there are.
    rows = db.execute(
        "SELECT target, outcome FROM entry WHERE id >= ? AND id < ? AND sender = ?3 "
        "AND +number > coalesce((SELECT upto FROM disowned WHERE name = ?3), 0) ORDER BY number",
        (text(read.message + ".0"), text(read.message + ".:"), text(read.sender)),  # a number comes next
    )
    return summed_up((read_text(target), outcome_of(outcome)) for target, outcome in rows)


def _oldest(db: sqlite3.Connection) -> dict[str, dict[Any, Any]]:
    found: dict[str, dict[Any, Any]] = {}
    for box, meta in db.execute(_OLDEST):
        try:
            found[read_text(box)] = unpack(meta)
        except _DECODE:
            found[str(box)] = {}
    return found


def _find_dead_letters(db: sqlite3.Connection, read: FindDeadLetters) -> list[DeadLetter] | DeadLetterPage:
    column, value = ("id", read.id) if read.id is not None else ("type", read.type)
    where, values = ("TRUE", ()) if value is None else (f"{column} = ?", (text(value),))
    body, size = ("body", "length(body)") if read.bodies else ("x''", "length(body)" if read.oldest_first else "0")
    select = f"SELECT serial, id, type, {body}, {size}, reason, at_s, meta FROM letter WHERE {where}"  # noqa: S608 (names alone)
    if not read.oldest_first:
        latest = db.execute(f"{select} ORDER BY serial DESC LIMIT ?", (*values, read.limit))
        return letters_of(latest, READ_BYTES)[0]
    upto = read.upto or db.execute("SELECT coalesce(max(serial), 0) FROM letter").fetchone()[0]
    between = "serial > ? AND serial <= ?"
    letters, after = letters_of(
        db.execute(f"{select} AND {between} ORDER BY serial LIMIT ?", (*values, read.after, upto, read.limit)),
        LETTER_PAGE_BYTES,
    )
    left = f"SELECT count(*) FROM letter WHERE {where} AND {between}"  # noqa: S608 (names alone)
    return DeadLetterPage(letters, db.execute(left, (*values, after or upto, upto)).fetchone()[0], after or upto, upto)


def letters_of(rows: Iterable[Row], most_bytes: int) -> tuple[list[DeadLetter], int]:
    """Return as many dead letters as have `most_bytes`, at least one, and the serial of the last one."""
    letters: list[DeadLetter] = []
    last, room_bytes = 0, most_bytes
    for serial, id_, type_, text_, size, reason, at_s, meta in rows:
        room_bytes -= size
        if letters and room_bytes < 0:
            break
        last = serial
        try:
            letter = DeadLetter(read_text(id_), read_text(type_), text_, read_text(reason), at_s, unpack(meta))
        except _DECODE as error:
            letter = DeadLetter(str(id_), str(type_), text_, str(reason), at_s, {DAMAGED: str(error)})
        letters.append(letter)
    if isinstance(rows, sqlite3.Cursor):
        rows.close()
    return letters, last


def entry_of(row: Row) -> Entry:
    """Return the entry of a row of number, queue, id, target, type, body, sender, expiry and packed meta."""
    number, box, id_, target, type_, body, sender, expires_s, meta = row
    try:
        if body is None:
            raise ValueError("a body is missing")
        if type(body) is not bytes or not all(type(each) is str for each in (box, id_, target, type_, sender or "")):
            raise ValueError("a column of the wrong kind")
        return Entry(
            number, read_text(box), read_text(id_), read_text(target), read_text(type_), body,
            None if sender is None else read_text(sender), float(expires_s), unpack(meta),
        )  # fmt: skip
    except _DECODE as error:
        return _damaged(row, str(error) or type(error).__name__)


def _damaged(row: Row, why: str) -> Entry:
    """Return as much of an entry as can be read. Its queue must be known: it stands in an index."""
    number, box, id_, target, type_, body, sender, expires_s, _ = row
    id_, target, type_ = (each if type(each) is str else f"damaged/{number}" for each in (id_, target, type_))
    return Entry(
        number, read_text(box), id_, target, type_, body if type(body) is bytes else b"",
        sender if type(sender) is str else None, expires_s if type(expires_s) is float else 0.0, {DAMAGED: why},
    )  # fmt: skip


def outcome_of(raw: str | None) -> str | None:
    """Return the outcome of a column, None for a message that has not ended."""
    return None if raw is None else read_text(raw)


def _after(beginning: str) -> str:
    """Return the text that sorts behind all with this beginning, whose last character is a '.' or a '/'."""
    return beginning[:-1] + chr(ord(beginning[-1]) + 1)
