"""Writes of a group as statements of PostgreSQL: one statement for all writes of a kind that follow each other.

A group is sent to the database in one piece, so no statement depends on the answer to an earlier one. A value that no
database can hold raises here, before anything is sent, or fails its statement there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from bester.broker.store.postgres_keys import ALL_BROKERS, beginning, key_of_entry, key_of_letter, written
from bester.broker.store.rows import pack, pack_lane
from bester.broker.store.writing import REMEMBERED, SharedBody, latest_of, shared_bodies
from bester.broker.store_requests import (
    LETTER_BYTES,
    NAMES,
    Bury,
    DeadLetter,
    Disown,
    End,
    Enqueue,
    ForgetRemote,
    MarkSent,
    PurgeOutcomes,
    RecordRemote,
    RecordType,
    Rewrite,
    SaveClock,
    SaveHeld,
    SaveLane,
    SaveName,
    SavePeer,
    Unbury,
    Write,
    lane,
)

if TYPE_CHECKING:
    import psycopg

    Cursor = psycopg.Cursor[tuple[Any, ...]]

_INSERT = """
WITH new AS (
    SELECT * FROM unnest(%b::bigint[], %b::bytea[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[],
        %b::float8[], %b::text[], %b::bytea[], %b::bigint[], %b::bytea[], %b::bigint[]) WITH ORDINALITY
        AS new (number, key, box, id, target, type, sender, expires_s, outcome, meta, size, body, shared, at)
), added AS (
    INSERT INTO entry (ns, number, key, box, id, target, type, sender, expires_s, outcome, meta, size, body, shared)
    SELECT %b, number, key, box, id, target, type, sender, expires_s, outcome, meta, size, body, shared
    FROM new ORDER BY at ON CONFLICT (ns, key) DO NOTHING RETURNING number
)
SELECT new.number, e.outcome, e.number IS NULL FROM new LEFT JOIN entry e ON e.ns = %b AND e.key = new.key
WHERE new.number NOT IN (SELECT number FROM added)
"""
# A message that is submitted again comes to another broker where the first one has ended, and may be back. Rows that
# another broker has locked are left: nobody waits for a process that may stand still.
_REPEATED = f"""
UPDATE entry e SET repeated = TRUE FROM (
    SELECT o.ns, o.number FROM unnest(%b::bigint[], %b::bytea[]) AS new (number, key), unnest({ALL_BROKERS}) AS b (ns),
        LATERAL (
            SELECT ns, number FROM entry
            WHERE ns = b.ns AND key = new.key AND outcome IS NULL AND NOT repeated FOR UPDATE SKIP LOCKED
        ) AS o
    WHERE WHICH
) AS found WHERE e.ns = found.ns AND e.number = found.number
"""  # noqa: S608 (own words)
_REPEATED_HERE = _REPEATED.replace("WHICH", "b.ns = %b AND o.number <> new.number")
REPEATED_ELSEWHERE = _REPEATED.replace("WHICH", "b.ns <> %b")
# A late outcome is taken back where another broker has told it, or will: its copy is locked, so that it cannot end in
# between. One that is locked already may just end, and then both tell: nobody waits for a process that may stand still.
_TOLD_ELSEWHERE = """
WITH told AS (
    SELECT late.number FROM unnest(%b::bigint[], %b::bytea[], %b::boolean[]) AS late (number, key, failed), broker b,
        LATERAL (SELECT o.outcome FROM entry o WHERE o.ns = b.ns AND o.key = late.key FOR UPDATE SKIP LOCKED) AS copy
    WHERE b.ns <> %b AND (copy.outcome IN ('delivered', 'sent') OR (late.failed AND copy.outcome IS NULL))
)
DELETE FROM entry e WHERE e.ns = %b AND e.number = ANY(ARRAY(SELECT told.number FROM told)) RETURNING e.number
"""
_BODIES = (
    "INSERT INTO body (ns, serial, body) SELECT %b, t.* FROM unnest(%b::bigint[], %b::bytea[]) AS t "
    "ON CONFLICT DO NOTHING"
)
_DROP_UNUSED = """
DELETE FROM body b WHERE b.ns = %b AND b.serial = ANY(%b::bigint[])
AND NOT EXISTS (SELECT 1 FROM entry e WHERE e.ns = b.ns AND e.shared = b.serial AND e.outcome IS NULL)
"""
_END = """
UPDATE entry e SET outcome = t.outcome, body = '', size = 0 FROM unnest(%b::bigint[], %b::text[]) AS t (number, outcome)
WHERE e.ns = %b AND e.number = t.number
"""
_DROP_ENDED = """
DELETE FROM body b WHERE b.ns = %b AND b.serial IN
(SELECT shared FROM entry WHERE ns = %b AND number = ANY(%b::bigint[]) AND shared IS NOT NULL)
AND NOT EXISTS (SELECT 1 FROM entry e WHERE e.ns = b.ns AND e.shared = b.serial AND e.outcome IS NULL)
"""
_REWRITE = """
UPDATE entry e SET meta = t.meta, repeated = FALSE FROM unnest(%b::bigint[], %b::bytea[]) AS t (number, meta)
WHERE e.ns = %b AND e.number = t.number
"""
_SENT = """
INSERT INTO handed (ns, box, upto) SELECT %b, t.* FROM unnest(%b::text[], %b::bigint[]) AS t
ON CONFLICT (ns, box) DO UPDATE SET upto = greatest(handed.upto, excluded.upto)
"""
_LANES = """
INSERT INTO arrived (ns, peer, type, epoch, floor, outcomes)
SELECT %b, t.* FROM unnest(%b::text[], %b::text[], %b::text[], %b::bigint[], %b::bytea[]) AS t
ON CONFLICT (ns, peer, type) DO UPDATE SET epoch = excluded.epoch, floor = excluded.floor, outcomes = excluded.outcomes
"""
_UNBURY = "DELETE FROM letter WHERE ns = %b AND key = ANY(%b::bytea[])"
_BURY = """
INSERT INTO letter (ns, key, id, type, reason, at_s, meta, body)
SELECT %b, key, id, type, reason, at_s, meta, body FROM unnest(%b::bytea[], %b::text[], %b::text[], %b::text[],
    %b::float8[], %b::bytea[], %b::bytea[]) WITH ORDINALITY AS t (key, id, type, reason, at_s, meta, body, at)
ORDER BY at
"""
_DROP_OLDEST = """
DELETE FROM letter WHERE ns = %b AND serial <=
(SELECT serial FROM letter WHERE ns = %b ORDER BY serial DESC LIMIT 1 OFFSET %b)
"""
_DROP_HEAVY = """
DELETE FROM letter WHERE ns = %b AND serial IN (SELECT serial FROM
(SELECT serial, sum(length(body)) OVER (ORDER BY serial DESC) AS size FROM letter WHERE ns = %b) AS sizes
WHERE size > %b)
"""
_TYPES = """
INSERT INTO seen_type (ns, name) SELECT %b, name FROM unnest(%b::text[]) WITH ORDINALITY AS t (name, at) ORDER BY at
ON CONFLICT (ns, name) DO NOTHING
"""
_CLOCK = """
INSERT INTO clock (ns, stored_s, skew_s, boot, boot_s, saved_at)
VALUES (%b, %b::float8, %b::float8, %b, %b::float8, clock_timestamp())
ON CONFLICT (ns) DO UPDATE SET stored_s = excluded.stored_s, skew_s = excluded.skew_s, boot = excluded.boot,
boot_s = excluded.boot_s, saved_at = excluded.saved_at
"""
_DROP_NAMES = "DELETE FROM server_name WHERE ns = %b AND name = ANY(%b::text[])"
_NAMES = """
INSERT INTO server_name (ns, name)
SELECT %b, name FROM unnest(%b::text[]) WITH ORDINALITY AS t (name, at) ORDER BY at
"""
_DROP_OLD_NAMES = """
DELETE FROM server_name WHERE ns = %b AND serial <=
(SELECT serial FROM server_name WHERE ns = %b ORDER BY serial DESC LIMIT 1 OFFSET %b)
"""
_PEERS = """
INSERT INTO native_peer (ns, address, reports) SELECT %b, t.* FROM unnest(%b::text[], %b::bool[]) AS t
ON CONFLICT (ns, address) DO UPDATE SET reports = excluded.reports
"""
_FORGET_REMOTE = """
DELETE FROM entry WHERE ns = %b AND number IN (SELECT number FROM entry
WHERE ns = %b AND outcome = 'queued' AND box >= %b AND box < %b ORDER BY number DESC OFFSET %b)
"""
_DISOWN = """
INSERT INTO disowned (ns, name, upto, at_s) SELECT %b, t.* FROM unnest(%b::text[], %b::bigint[], %b::float8[]) AS t
ON CONFLICT (ns, name) DO UPDATE SET upto = excluded.upto, at_s = excluded.at_s
"""
_FORGET_DISOWNED = """
DELETE FROM disowned WHERE ns = %b AND upto < (SELECT min(number) FROM entry WHERE ns = %b)
AND at_s < (SELECT min(at_s) FROM letter WHERE ns = %b)
"""
_FORGET_OVER = """
DELETE FROM entry WHERE ns = %b AND number IN
(SELECT number FROM entry WHERE ns = %b AND outcome IS NOT NULL AND expires_s < %b::float8 ORDER BY expires_s LIMIT %b)
"""
_TOO_MANY = f"""
(SELECT number FROM entry WHERE ns = %b AND {REMEMBERED} ORDER BY number DESC LIMIT 1 OFFSET
(SELECT CASE WHEN count(*) > %b THEN %b ELSE %b END FROM entry WHERE ns = %b AND {REMEMBERED}))
"""  # noqa: S608 (own words)
_WEIGHT = "SELECT coalesce(sum(length(body)), 0)::bigint FROM letter WHERE ns = %b"
_REMEMBERED = f"SELECT count(*) FROM entry WHERE ns = %b AND {REMEMBERED}"  # noqa: S608 (own words)
_FORGET_OLDEST = f"""
DELETE FROM entry WHERE ns = %b AND number IN
(SELECT number FROM entry WHERE ns = %b AND {REMEMBERED} AND number <= UPTO ORDER BY number LIMIT %b)
"""  # noqa: S608 (own words)
FORGOTTEN_AT_ONCE = 1_000
"""Old outcomes of either kind deleted with one commit; the rest is left to the next commits."""

Take = Callable[["Cursor"], None]


class Statement(NamedTuple):
    """A statement with its values; `take` gets the answer, where somebody wants that."""

    text: str
    values: tuple[Any, ...]
    take: Take | None = None


class Group:
    """Statements of one group of writes in the namespace `ns`.

    `repeated` has the numbers of the duplicates once all answers are taken. `serial` is the next one of a shared body,
    `shared` the latest of these bodies; with `sharing` there may be some, and Ends look for them. `to_forget` is what
    is left of a purge: outcomes that expired before a time, or have a number up to this one. No more than `outcomes`
    are remembered (None: not counted yet), and no more than `letter_bytes` are in dead letters. `forgotten` counts what
    the group forgets at bounds, once all answers are taken.
    """

    def __init__(
        self, ns: int, *, serial: int, sharing: bool, dead_letters: int, to_forget: tuple[float, int] | None,
        shared: SharedBody | None = None, outcomes: int | None = None, letter_bytes: int | None = None,
    ) -> None:  # fmt: skip
        self.statements: list[Statement] = []
        self._last: list[Statement] = []
        self.repeated: dict[int, str | None] = {}
        self.serial = serial
        self.sharing = sharing
        self.shared = shared
        self.to_forget = to_forget
        self.outcomes = outcomes
        self.letter_bytes = letter_bytes
        self.forgotten: Counter[str] = Counter()  # by the name of a bound
        self._ns = ns
        self._dead_letters = dead_letters
        self._weighs = False

    def add(self, writes: Sequence[Write]) -> None:
        """Add writes, in order. Raises what packing raises for a value that cannot be packed."""
        purge: PurgeOutcomes | None = None
        for kind, run in groupby(writes, type):
            same = list(run)
            if isinstance(same[-1], PurgeOutcomes):
                purge = same[-1]
            _ADD[kind](self, same)
        if self._weighs:  # once all are there: an answer counts for more than what was added before it came
            self._say(_WEIGHT, self._ns, take=self._take_weight)
        if purge is not None or self.to_forget is not None:
            self._forget_some(purge)
        self.statements += self._last
        self._last = []

    def _say(self, text_: str, *values: Any, take: Take | None = None) -> None:
        self.statements.append(Statement(text_, values, take))

    def _say_last(self, text_: str, *values: Any, take: Take | None = None) -> None:
        """Add a statement that locks rows of other brokers. Behind all others: whoever has those locks waits for no row
        any more, for two brokers that waited for each other would stand still until PostgreSQL finds that out."""
        self._last.append(Statement(text_, values, take))

    def _insert(self, run: Sequence[Enqueue | RecordRemote]) -> None:
        if self.outcomes is not None and isinstance(run[0], RecordRemote):
            self.outcomes += len(run)
        serials: dict[bytes, int] = {}
        for body in shared_bodies(run, self.shared):
            if self.shared is not None and body == self.shared[0]:
                serials[body] = self.shared[1]  # written again: it may have ended, or its group have failed
                continue
            serials[body] = self.serial
            self.serial += 1
        if serials:
            self.sharing = True
            self.shared = latest_of(run, serials)
            self._say(_BODIES, self._ns, list(serials.values()), list(serials))
        rows = [_row_of(write, serials) for write in run]
        columns = [list(column) for column in zip(*rows, strict=True)]
        self._say(_INSERT, *columns, self._ns, self._ns, take=lambda cursor: self._take_repeated(run, rows, cursor))
        marked = [row[:2] for row, write in zip(rows, run, strict=True) if write.entry.meta.get("repeated")]
        if marked:
            values = [number for number, _ in marked], [key for _, key in marked], self._ns
            self._say(_REPEATED_HERE, *values)
            self._say_last(REPEATED_ELSEWHERE, *values)
        late = [(write.entry.number, write.about) for write in run if isinstance(write, Enqueue) and write.about]
        if late:
            numbers, abouts = [number for number, _ in late], [about for _, about in late]
            keys = [key_of_entry(about.id, about.queue) for about in abouts]
            failed = [about.failed for about in abouts]
            self._say_last(_TOLD_ELSEWHERE, numbers, keys, failed, self._ns, self._ns, take=self._take_told)
        if serials:  # all entries of a body may have been duplicates
            (self._say_last if late else self._say)(_DROP_UNUSED, self._ns, list(serials.values()))

    def _take_told(self, cursor: Cursor) -> None:
        """Take in the late outcomes that another broker tells."""
        self.repeated.update((number, None) for (number,) in cursor.fetchall())

    def _take_repeated(self, run: Sequence[Any], rows: Sequence[Any], cursor: Cursor) -> None:
        """Take in the duplicates; the first one of some is in the same statement, which does not see its own rows."""
        found = cursor.fetchall()
        if not found:
            return
        first: dict[bytes, str | None] = {}
        keys: dict[int, bytes] = {}
        for row, write in zip(rows, run, strict=True):
            keys[row[0]] = row[1]
            first.setdefault(row[1], write.outcome if isinstance(write, RecordRemote) else None)
        for number, outcome, is_here in found:
            self.repeated[number] = first[keys[number]] if is_here else outcome

    def _end(self, run: list[End]) -> None:
        if self.outcomes is not None:
            self.outcomes += len(run)
        outcomes = {each.number: written(each.outcome) for each in run}
        forgotten = [each.number for each in run if each.forget]
        numbers = list(outcomes)
        if self.sharing or len(forgotten) < len(numbers):
            self._say(_END, numbers, list(outcomes.values()), self._ns)
        if self.sharing:
            self._say(_DROP_ENDED, self._ns, self._ns, numbers)
        if forgotten:
            self._say("DELETE FROM entry WHERE ns = %b AND number = ANY(%b::bigint[])", self._ns, forgotten)

    def _rewrite(self, run: list[Rewrite]) -> None:
        latest = {each.number: bytes(pack(each.meta)) for each in run}
        self._say(_REWRITE, list(latest), list(latest.values()), self._ns)

    def _mark_sent(self, run: list[MarkSent]) -> None:
        upto: dict[str, int] = {}
        for queue, number in run:
            upto[queue] = max(number, upto.get(queue, 0))
        self._say(_SENT, self._ns, [written(queue) for queue in upto], list(upto.values()))

    def _save_lane(self, run: list[SaveLane]) -> None:
        latest = {(each.peer, each.type): each for each in run}.values()
        rows = [
            (written(peer), written(type_), written(epoch), floor, bytes(pack_lane(outcomes, others)))
            for peer, type_, epoch, floor, outcomes, others in latest
        ]
        self._say(_LANES, self._ns, *_columns(rows))

    def _bury(self, run: list[Bury]) -> None:
        latest: dict[str, DeadLetter] = {}
        for (letter,) in run:
            latest.pop(letter.id, None)
            latest[letter.id] = letter
        rows = [
            (
                key_of_letter(id_), written(id_), written(type_), written(reason), float(at_s), bytes(pack(meta)), body,
            )
            for id_, type_, body, reason, at_s, meta in latest.values()
        ]  # fmt: skip
        if self.letter_bytes is not None:
            self.letter_bytes += sum(len(letter.body) for letter in latest.values())
        self._say(_UNBURY, self._ns, [row[0] for row in rows])
        self._say(_BURY, self._ns, *_columns(rows))
        self._say(_DROP_OLDEST, self._ns, self._ns, self._dead_letters, take=self._take_dropped)

    def _unbury(self, run: list[Unbury]) -> None:
        self._say(_UNBURY, self._ns, [key_of_letter(each.id) for each in run])

    def _record_type(self, run: list[RecordType]) -> None:
        self._say(_TYPES, self._ns, [written(each.type) for each in run])

    def _save_clock(self, run: list[SaveClock]) -> None:
        stored_s, skew_s, boot, boot_s = run[-1].state
        self._say(_CLOCK, self._ns, float(stored_s), float(skew_s), written(boot), float(boot_s))

    def _save_name(self, run: list[SaveName]) -> None:
        names = list(dict.fromkeys(written(each.name) for each in reversed(run)))[::-1]
        self._say(_DROP_NAMES, self._ns, names)
        self._say(_NAMES, self._ns, names)
        self._say(_DROP_OLD_NAMES, self._ns, self._ns, NAMES)

    def _save_peer(self, run: list[SavePeer]) -> None:
        latest = {written(each.address): each.reports for each in run}
        self._say(_PEERS, self._ns, list(latest), list(latest.values()))

    def _save_held(self, run: list[SaveHeld]) -> None:
        for server, held in run:
            statement = "DELETE FROM held_server WHERE ns = %b AND name = %b"
            if held:
                statement = "INSERT INTO held_server (ns, name) VALUES (%b, %b) ON CONFLICT DO NOTHING"
            self._say(statement, self._ns, written(server))

    def _purge(self, run: list[PurgeOutcomes]) -> None:
        if self.letter_bytes is None or self.letter_bytes > LETTER_BYTES:
            self._say(_DROP_HEAVY, self._ns, self._ns, LETTER_BYTES, take=self._take_dropped)
            self._weighs = True

    def _take_dropped(self, cursor: Cursor) -> None:
        self.forgotten["dead_letters"] += cursor.rowcount

    def _take_weight(self, cursor: Cursor) -> None:
        ((self.letter_bytes,),) = cursor.fetchall()

    def _forget_some(self, purge: PurgeOutcomes | None) -> None:
        """Forget some of the outcomes that are to be forgotten; the next groups forget the rest. To count the outcomes
        takes the longer the more there are, so they are counted where there may be too many alone."""
        counts: list[int] = []
        before_s, upto = self.to_forget or (0.0, -1)
        oldest = _FORGET_OLDEST.replace("UPTO", "%b")
        bound: tuple[int, ...] = (upto,)
        if purge is not None:
            before_s = purge.before_s
            self.to_forget = before_s, upto
            if self.outcomes is None or self.outcomes > purge.most:
                most = purge.most
                kept = most - most // 100
                beyond = self._ns, most, kept, most, self._ns
                self._say(_REMEMBERED, self._ns, take=lambda cursor: self._take_count(most, cursor))
                self._say(f"SELECT {_TOO_MANY}", *beyond, take=lambda cursor: self._take_upto(before_s, cursor))
                oldest, bound = _FORGET_OLDEST.replace("UPTO", _TOO_MANY), beyond
        self._say(
            _FORGET_OVER, self._ns, self._ns, before_s, FORGOTTEN_AT_ONCE, take=lambda c: counts.append(c.rowcount)
        )

        def take(cursor: Cursor) -> None:
            self.forgotten["outcomes"] += cursor.rowcount
            if max(*counts, cursor.rowcount) < FORGOTTEN_AT_ONCE:
                self.to_forget = None

        self._say(oldest, self._ns, self._ns, *bound, FORGOTTEN_AT_ONCE, take=take)

    def _take_count(self, most: int, cursor: Cursor) -> None:
        """Take in how many outcomes there are, without those that are forgotten from now on."""
        ((count,),) = cursor.fetchall()
        self.outcomes = count if count <= most else most - most // 100

    def _take_upto(self, before_s: float, cursor: Cursor) -> None:
        ((upto,),) = cursor.fetchall()
        self.to_forget = before_s, -1 if upto is None else upto

    def _forget_remote(self, run: list[ForgetRemote]) -> None:
        for server, keep in run:
            self._say(_FORGET_REMOTE, self._ns, self._ns, *beginning(lane(server, "")), keep)

    def _disown(self, run: list[Disown]) -> None:
        latest = {written(user): (written(user), upto, float(at_s)) for user, upto, at_s in run}
        self._say(_DISOWN, self._ns, *_columns(latest.values()))
        self._say(_FORGET_DISOWNED, self._ns, self._ns, self._ns)


_ADD: dict[type[Any], Callable[[Group, list[Any]], None]] = {
    Enqueue: Group._insert,
    RecordRemote: Group._insert,
    End: Group._end,
    Rewrite: Group._rewrite,
    MarkSent: Group._mark_sent,
    SaveLane: Group._save_lane,
    Bury: Group._bury,
    Unbury: Group._unbury,
    RecordType: Group._record_type,
    SaveClock: Group._save_clock,
    SaveName: Group._save_name,
    SavePeer: Group._save_peer,
    SaveHeld: Group._save_held,
    PurgeOutcomes: Group._purge,
    ForgetRemote: Group._forget_remote,
    Disown: Group._disown,
}
"""The method for each kind of write."""


def _columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _row_of(write: Enqueue | RecordRemote, serials: dict[bytes, int]) -> tuple[Any, ...]:
    number, queue, id_, target, type_, body, sender, expires_s, meta = write.entry
    outcome: str | None = None
    if isinstance(write, RecordRemote):
        outcome, body = written(write.outcome), b""
    serial = serials.get(body)
    return (
        number, key_of_entry(id_, queue), written(queue), written(id_), written(target), written(type_),
        None if sender is None else written(sender), float(expires_s), outcome, bytes(pack(meta)), len(body),
        b"" if serial is not None else body, serial,
    )  # fmt: skip
