"""Reads the contents of a store's file that a broker needs at its start. Nothing here writes."""

from __future__ import annotations

import sqlite3
from itertools import chain

from bester.broker.store.rows import counts_by_server, read_text, summed_shares, unpack_lane
from bester.broker.store_requests import ClockState, SaveLane, Snapshot, StoredQueue
from bester.broker.wire.outcomes import OUTCOME_TYPE

_WAITING = "FROM entry WHERE outcome IS NULL AND sender IS"
_SHARES = (
    f"SELECT box, sender, NULL, count(*), sum(size) {_WAITING} NOT NULL GROUP BY box, sender",
    f"SELECT box, NULL, meta, 1, size {_WAITING} NULL AND type <> '{OUTCOME_TYPE}'",
)
"""Reads of what each sender has in each queue; the server that sent a message is in the meta alone."""


def snapshot(db: sqlite3.Connection, epoch: str, life: int, full: str | None) -> Snapshot:
    """Return the contents of a file, for the life of a broker; `full` says why nothing can be written now, if so.

    Raises sqlite3.Error, and ValueError for contents that no store has written."""
    handed = dict(db.execute("SELECT box, upto FROM handed"))
    clock = db.execute("SELECT stored_s, skew_s, boot, boot_s FROM clock").fetchone()
    boxes = db.execute("SELECT box, count(*), sum(size), min(number) FROM entry WHERE outcome IS NULL GROUP BY box")
    return Snapshot(
        epoch=epoch,
        life=life,
        queues={
            read_text(box): StoredQueue(messages, size_bytes, lowest, handed.get(box, 0))
            for box, messages, size_bytes, lowest in boxes
        },
        shares=summed_shares(
            (read_text(box), None if sender is None else read_text(sender), meta, messages, size_bytes)
            for box, sender, meta, messages, size_bytes in chain(*map(db.execute, _SHARES))
        ),
        types=tuple(read_text(name) for (name,) in db.execute("SELECT name FROM seen_type ORDER BY serial")),
        lanes=tuple(
            SaveLane(read_text(peer), read_text(type_), read_text(their_epoch), floor, *unpack_lane(outcomes))
            for peer, type_, their_epoch, floor, outcomes in db.execute(
                "SELECT peer, type, epoch, floor, outcomes FROM arrived"
            )
        ),
        next_expiry_s=db.execute("SELECT min(expires_s) FROM entry WHERE outcome IS NULL").fetchone()[0],
        dead=db.execute("SELECT count(*) FROM letter").fetchone()[0],
        clock=None if clock is None else ClockState(clock[0], clock[1], read_text(clock[2]), clock[3]),
        names=tuple(read_text(name) for (name,) in db.execute("SELECT name FROM server_name ORDER BY serial")),
        peers={
            read_text(address): bool(reports)
            for address, reports in db.execute("SELECT address, reports FROM native_peer")
        },
        held=frozenset(read_text(name) for (name,) in db.execute("SELECT name FROM held_server")),
        remote=counts_by_server(db.execute("SELECT box, count(*) FROM entry WHERE outcome = 'queued' GROUP BY box")),
        disowned={
            read_text(name): (upto, at_s) for name, upto, at_s in db.execute("SELECT name, upto, at_s FROM disowned")
        },
        full=full,
    )
