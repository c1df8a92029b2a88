"""Writes to a store's file: one function for each write of `store_requests`, many of a kind at once.

Nothing here begins or ends a transaction: `sqlite` makes groups of writes whole.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from bester.broker.store.rows import blob, pack, pack_lane, text, unpack
from bester.broker.store_requests import (
    NAMES,
    Bury,
    Disown,
    End,
    Enqueue,
    ForgetRemote,
    MarkSent,
    RecordRemote,
    RecordType,
    Rewrite,
    SaveClock,
    SaveHeld,
    SaveLane,
    SaveName,
    SavePeer,
    Unbury,
    lane,
)

NAMED_AT_ONCE = 500
"""Numbers in one query; older versions of SQLite allow 999."""
SHARED_LEAST_BYTES = 1024
"""Least length of a body that is held once for all entries of a group: below it, a row of its own costs more than the
copies."""

REMEMBERED = "outcome IS NOT NULL AND outcome <> 'queued'"
"""Condition of the entries that are kept for their outcome alone, in the words of an index of both kinds of store."""

_INSERT = (
    "INSERT INTO entry (number, box, id, target, type, sender, expires_s, outcome, meta, size, body) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id, box) DO NOTHING"
)
_INSERT_SHARED = _INSERT.replace("body)", "body, shared)").replace("?, ?)", "?, x'', ?)")
_DROP_UNUSED = "DELETE FROM body WHERE serial = ? AND NOT EXISTS (SELECT 1 FROM entry WHERE shared = body.serial)"
_END = "UPDATE entry SET outcome = ?, body = x'', size = 0"
_UNSHARE = ", shared = NULL"
_DROP_OLDEST = (
    "DELETE FROM letter WHERE serial IN "
    "(SELECT serial FROM letter ORDER BY serial LIMIT max(0, (SELECT count(*) FROM letter) - ?))"
)
_DROP_HEAVY = (
    "DELETE FROM letter WHERE serial IN (SELECT serial FROM "
    "(SELECT serial, sum(length(body)) OVER (ORDER BY serial DESC) AS size FROM letter) WHERE size > ?)"
)
_REMEMBERED = f"SELECT count(*) FROM entry WHERE {REMEMBERED}"  # noqa: S608 (own words)
_TOO_MANY = f"SELECT number FROM entry WHERE {REMEMBERED} ORDER BY number DESC LIMIT 1 OFFSET ?"  # noqa: S608 (own words)
_FORGET_OVER = (
    "DELETE FROM entry WHERE number IN "
    "(SELECT number FROM entry WHERE outcome IS NOT NULL AND expires_s < ? ORDER BY expires_s LIMIT ?)"
)
_FORGET_OLDEST = (
    "DELETE FROM entry WHERE number IN "  # noqa: S608 (own words)
    f"(SELECT number FROM entry WHERE {REMEMBERED} AND number <= ? ORDER BY number LIMIT ?)"
)
_FORGET_REMOTE = (
    "DELETE FROM entry WHERE number IN (SELECT number FROM entry "
    "WHERE outcome = 'queued' AND box >= ? AND box < ? ORDER BY number DESC LIMIT -1 OFFSET ?)"
)
_FORGET_DISOWNED = (
    "DELETE FROM disowned WHERE upto < (SELECT min(number) FROM entry) AND at_s < (SELECT min(at_s) FROM letter)"
)

_Row = tuple[Any, ...]
SharedBody = tuple[bytes, int]
"""A body that several entries have, and its serial."""


def insert(
    db: sqlite3.Connection, run: list[Enqueue] | list[RecordRemote], latest: SharedBody | None = None
) -> tuple[dict[int, str | None], SharedBody | None]:
    """Insert entries, but for duplicates, whose ids their queues have had. Returns the numbers of those, with the
    outcomes of the first ones (None: not ended). A ready message takes over the mark `repeated` of its duplicate.

    `latest` is the latest shared body of earlier groups, for the rest of its command; returned is that of this one."""
    shared = shared_bodies(run, latest)
    if shared:
        inserted, latest = _insert_sharing(db, run, shared, latest)
    else:  # the rows are made one by one: copies of all bodies would be as large as these
        inserted = db.executemany(_INSERT, map(_row_of, run)).rowcount
    return {} if inserted == len(run) else _repeated(db, run), latest


def _repeated(db: sqlite3.Connection, run: list[Enqueue] | list[RecordRemote]) -> dict[int, str | None]:
    """Return the duplicates among entries as `insert` does, and mark the first ones."""
    numbers = [write.entry.number for write in run]
    there: set[int] = set()
    for start in range(0, len(numbers), NAMED_AT_ONCE):
        some = numbers[start : start + NAMED_AT_ONCE]
        question = f"SELECT number FROM entry WHERE number IN ({', '.join('?' * len(some))})"  # noqa: S608 (marks alone)
        there.update(number for (number,) in db.execute(question, some))
    repeated: dict[int, str | None] = {}
    for number, entry in zip(numbers, (write.entry for write in run), strict=True):
        if number not in there:
            select = "SELECT number, outcome, meta FROM entry WHERE id = ? AND box = ?"
            before, outcome, meta = db.execute(select, (text(entry.id), text(entry.queue))).fetchone()
            repeated[number] = outcome
            if outcome is None and entry.meta.get("repeated"):
                _rewrite(db, [Rewrite(before, unpack(meta) | {"repeated": True})])
    return repeated


def shared_bodies(run: Sequence[Any], latest: SharedBody | None) -> set[bytes]:
    """Return the bodies that several of a run of Enqueues have, or one and the `latest` shared body, and that are large
    enough to be held once."""
    large = [write.entry.body for write in run if len(write.entry.body) >= SHARED_LEAST_BYTES]
    if not large or type(run[0]) is not Enqueue:
        return set()
    seen = set() if latest is None else {latest[0]}
    shared: set[bytes] = set()
    for body in large:
        (shared if body in seen else seen).add(body)  # the bodies of one command are one object, which keeps its hash
    return shared


def _insert_sharing(
    db: sqlite3.Connection, run: Sequence[Any], shared: set[bytes], latest: SharedBody | None
) -> tuple[int, SharedBody]:
    """Insert entries, and each shared body once, the latest one where it is gone. Returns how many entries were new,
    and the shared body of the last one."""
    inserted = 0
    serials: dict[bytes, int] = {}
    if latest is not None and latest[0] in shared and _has_body(db, latest):
        serials[latest[0]] = latest[1]
    for write in run:
        body = write.entry.body
        if body not in shared:
            inserted += db.execute(_INSERT, _row_of(write)).rowcount
            continue
        serial = serials.get(body)
        if serial is None:
            added = db.execute("INSERT INTO body (body) VALUES (?)", (blob(body),)).lastrowid
            assert added is not None
            serial = serials[body] = added
        bare = Enqueue(write.entry._replace(body=b""))
        inserted += db.execute(_INSERT_SHARED, (*_row_of(bare)[:-2], len(body), serial)).rowcount
    if inserted < len(run):  # all entries of a body may have been duplicates
        db.executemany(_DROP_UNUSED, [(serial,) for serial in serials.values()])
    return inserted, latest_of(run, serials)


def latest_of(run: Sequence[Any], serials: dict[bytes, int]) -> SharedBody:
    """Return the last shared body of a run: messages of its command may be in the next group."""
    return next((body, serials[body]) for write in reversed(run) if (body := write.entry.body) in serials)


def _has_body(db: sqlite3.Connection, shared: SharedBody) -> bool:
    """Return whether the file has this body. Where it has ended, or its transaction failed, another body may have its
    serial."""
    body, serial = shared
    return db.execute("SELECT 1 FROM body WHERE serial = ? AND body = ?", (serial, blob(body))).fetchone() is not None


def _row_of(write: Enqueue | RecordRemote) -> _Row:
    number, box, id_, target, type_, body, sender, expires_s, meta = write.entry
    outcome: str | None = None
    if isinstance(write, RecordRemote):
        outcome, body = text(write.outcome), b""
    return (
        number, text(box), text(id_), text(target), text(type_), None if sender is None else text(sender), expires_s,
        outcome, pack(meta), len(body), blob(body),
    )  # fmt: skip


def _end(db: sqlite3.Connection, run: list[End]) -> None:
    is_sharing = db.execute("SELECT 1 FROM body LIMIT 1").fetchone() is not None
    end = f"{_END}{_UNSHARE if is_sharing else ''} WHERE number = ?"  # setting `shared` takes half as long again
    db.executemany(end, [(text(each.outcome), each.number) for each in run if not each.forget])
    db.executemany("DELETE FROM entry WHERE number = ?", [(each.number,) for each in run if each.forget])


def _rewrite(db: sqlite3.Connection, run: list[Rewrite]) -> None:
    db.executemany("UPDATE entry SET meta = ? WHERE number = ?", [(pack(each.meta), each.number) for each in run])


def _mark_sent(db: sqlite3.Connection, run: list[MarkSent]) -> None:
    db.executemany(
        "INSERT INTO handed (box, upto) VALUES (?, ?) ON CONFLICT (box) DO UPDATE SET upto = max(upto, excluded.upto)",
        [(text(each.queue), each.upto) for each in run],
    )


def _save_lane(db: sqlite3.Connection, run: list[SaveLane]) -> None:
    db.executemany(
        "INSERT OR REPLACE INTO arrived (peer, type, epoch, floor, outcomes) VALUES (?, ?, ?, ?, ?)",
        [
            (text(peer), text(type_), text(epoch), floor, pack_lane(outcomes, others))
            for peer, type_, epoch, floor, outcomes, others in run
        ],
    )


def _bury(db: sqlite3.Connection, run: list[Bury]) -> None:
    db.executemany(
        "INSERT OR REPLACE INTO letter (id, type, reason, at_s, meta, body) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (text(id_), text(type_), text(reason), at_s, pack(meta), blob(body))
            for ((id_, type_, body, reason, at_s, meta),) in run
        ],
    )


def _unbury(db: sqlite3.Connection, run: list[Unbury]) -> None:
    db.executemany("DELETE FROM letter WHERE id = ?", [(text(each.id),) for each in run])


def _record_type(db: sqlite3.Connection, run: list[RecordType]) -> None:
    names = [(text(each.type),) for each in run]
    db.executemany("INSERT INTO seen_type (name) VALUES (?) ON CONFLICT (name) DO NOTHING", names)


def _save_clock(db: sqlite3.Connection, run: list[SaveClock]) -> None:
    stored_s, skew_s, boot, boot_s = run[-1].state
    db.execute(
        "INSERT OR REPLACE INTO clock (one, stored_s, skew_s, boot, boot_s) VALUES (1, ?, ?, ?, ?)",
        (stored_s, skew_s, text(boot), boot_s),
    )


def _save_name(db: sqlite3.Connection, run: list[SaveName]) -> None:
    names = [(text(each.name),) for each in run]
    # The latest name has the highest serial.
    db.executemany("INSERT OR REPLACE INTO server_name (name) VALUES (?)", names)
    last = "SELECT serial FROM server_name ORDER BY serial DESC LIMIT 1 OFFSET ?"
    db.execute(f"DELETE FROM server_name WHERE serial <= ({last})", (NAMES,))  # noqa: S608 (own words)


def _save_peer(db: sqlite3.Connection, run: list[SavePeer]) -> None:
    rows = [(text(each.address), each.reports) for each in run]
    db.executemany("INSERT OR REPLACE INTO native_peer (address, reports) VALUES (?, ?)", rows)


def _save_held(db: sqlite3.Connection, run: list[SaveHeld]) -> None:
    for server, held in run:
        db.execute(
            "INSERT OR IGNORE INTO held_server VALUES (?)" if held else "DELETE FROM held_server WHERE name = ?",
            (text(server),),
        )


def _forget_remote(db: sqlite3.Connection, run: list[ForgetRemote]) -> None:
    for server, keep in run:
        begin = text(lane(server, ""))
        db.execute(_FORGET_REMOTE, (begin, begin[:-1] + chr(ord(begin[-1]) + 1), keep))


def _disown(db: sqlite3.Connection, run: list[Disown]) -> None:
    rows = [(text(user), upto, at_s) for user, upto, at_s in run]
    db.executemany("INSERT OR REPLACE INTO disowned (name, upto, at_s) VALUES (?, ?, ?)", rows)
    db.execute(_FORGET_DISOWNED)


CARRY_OUT: dict[type[Any], Callable[[sqlite3.Connection, list[Any]], None]] = {
    End: _end,
    Rewrite: _rewrite,
    MarkSent: _mark_sent,
    SaveLane: _save_lane,
    Bury: _bury,
    Unbury: _unbury,
    RecordType: _record_type,
    SaveClock: _save_clock,
    SaveName: _save_name,
    SavePeer: _save_peer,
    SaveHeld: _save_held,
    ForgetRemote: _forget_remote,
    Disown: _disown,
}
"""The function for each kind of write without an answer."""


def drop_oldest_letters(db: sqlite3.Connection, limit: int) -> int:
    """Drop the oldest dead letters above `limit`; return how many were dropped."""
    return db.execute(_DROP_OLDEST, (limit,)).rowcount


def drop_heavy_letters(db: sqlite3.Connection, limit_bytes: int) -> int:
    """Drop the oldest dead letters, so that the bodies of the others have `limit_bytes` at most; return how many were
    dropped."""
    return db.execute(_DROP_HEAVY, (limit_bytes,)).rowcount


def count_outcomes(db: sqlite3.Connection) -> int:
    """Return how many messages are kept for their outcome alone. SQLite counts a million for 50 ms."""
    count: int = db.execute(_REMEMBERED).fetchone()[0]
    return count


def weigh_letters(db: sqlite3.Connection) -> int:
    """Return the bytes of the bodies of all dead letters."""
    size: int = db.execute("SELECT coalesce(sum(length(body)), 0) FROM letter").fetchone()[0]
    return size


def oldest_beyond(db: sqlite3.Connection, most: int) -> int:
    """Return the number up to which outcomes are to be forgotten, so that `most` are left."""
    row = db.execute(_TOO_MANY, (most,)).fetchone()
    return -1 if row is None else row[0]


def forget_some(db: sqlite3.Connection, before_s: float, upto: int, limit: int) -> tuple[int, int]:
    """Forget at most `limit` of these outcomes; return how many had expired, and how many others were forgotten. The
    outcome of a message queued at another server is forgotten only when the message has expired, for its end is still
    to come."""
    expired = db.execute(_FORGET_OVER, (before_s, limit)).rowcount
    if upto < 0 or expired >= limit:
        return expired, 0
    return expired, db.execute(_FORGET_OLDEST, (upto, limit - expired)).rowcount
