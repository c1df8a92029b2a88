"""A store in memory, for simulations and for servers whose operator wants nothing on a disk.

The store in memory behaves as the one on disk, fault for fault, and accepts nothing that the disk would refuse.
"""

from __future__ import annotations

import re
import secrets
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple, Self

from bester.broker.store.commits import GROWING, BusyError, Commits, UnwritableError
from bester.broker.store.memory_letters import MemoryLetters
from bester.broker.store.rows import pack, pack_lane, summed_shares, summed_up, unpack
from bester.broker.store_brokers import Adopted, Brokers
from bester.broker.store_requests import (
    NAMES,
    Adopt,
    Bury,
    ClockState,
    Disown,
    End,
    Enqueue,
    Entry,
    Fetch,
    FindBrokers,
    FindDeadLetters,
    FindEntry,
    FindExpired,
    FindOldest,
    FindOutcomes,
    ForgetRemote,
    MarkSent,
    PurgeOutcomes,
    Read,
    RecordRemote,
    RecordType,
    Rewrite,
    SaveClock,
    SaveHeld,
    SaveLane,
    SaveName,
    SavePeer,
    Snapshot,
    StoredQueue,
    Unbury,
    Write,
    lane,
    owner_of,
)
from bester.broker.wire.codes import BesterError
from bester.broker.wire.outcomes import OUTCOME_TYPE, QUEUED

MAX_NUMBER = 2**63
"""Bound on numbers: a file could not hold a higher one."""
LOCKED = "the store in memory is told to be locked; end what writes to it"
FULL = "the store in memory is told to be full; make room in it"
STALE_PART = 2
"""Share of the heap of expiries that may be of ended messages before they are thrown out."""
STALE_LEAST = 1_000
"""Length of the heap below which nothing is thrown out."""
_RESULT = re.compile(r"\.[0-9]")


def _message_of(id_: str) -> str:
    """Return the beginning that the ids of all results of a message have in common. No other message's results share
    it, as far as ids are made here."""
    found = _RESULT.search(id_, id_.rfind("/") + 1)
    return id_ if found is None else id_[: found.start()]


class _Row(NamedTuple):
    """An entry whose meta is packed, and its outcome (None: not ended)."""

    entry: Entry
    meta: bytearray
    outcome: str | None

    def whole(self) -> Entry:
        return self.entry._replace(meta=unpack(self.meta))

    def bare(self) -> Entry:
        return self.entry._replace(meta=unpack(self.meta), body=b"")


class MemoryStore(Commits):
    """A store that ends with the process. To `open` it again is a restart of the broker; `copy` returns what a crash
    leaves.

    While `full` is set nothing can be added; while `broken` is set nothing can be written at all; while `locked` is
    set another process seems to hold the lock for writing; while `away` says why, nothing can be written or read, as
    with a database that cannot be reached.
    """

    def __init__(self, *, epoch: str | None = None, dead_letters: int = 10_000) -> None:
        super().__init__()
        self.full = False
        self.broken = False
        self.locked = False
        self._epoch = epoch or secrets.token_hex(8)
        self._name = self._epoch  # the epoch that the store was made with
        self._nameless = 0  # lives that could not be counted at their start
        self._unwritten: tuple[str, int] | None = None  # the epoch and number of this life, until they can be written
        self._life = 0
        self._rows: dict[int, _Row] = {}
        self._numbers: dict[tuple[str, str], int] = {}  # by id and queue
        self._ready: dict[str, list[int]] = {}  # by queue, in order
        self._expiring: list[tuple[float, int]] = []  # a heap: ready messages, and some that have ended
        self._ended: list[int] = []  # in order, without those queued at another server
        self._results: dict[str, dict[int, None]] = {}  # by the id of their message
        self._sent_upto: dict[str, int] = {}
        self._lanes: dict[tuple[str, str], SaveLane] = {}
        self._letters = MemoryLetters(dead_letters)
        self._types: dict[str, None] = {}
        self._clock: ClockState | None = None
        self._names: dict[str, None] = {}  # the latest last
        self._peers: dict[str, bool] = {}
        self._held: set[str] = set()
        self._disowned: dict[str, tuple[int, float]] = {}

    def copy(self) -> Self:
        """Return a store with everything that is committed here, and nothing else."""
        other = type(self)(epoch=self._epoch)
        other._name, other._nameless = self._name, self._nameless
        other._life = self._life
        other._rows = dict(self._rows)
        other._numbers = dict(self._numbers)
        other._ready = {key: list(numbers) for key, numbers in self._ready.items()}
        other._expiring = list(self._expiring)
        other._ended = list(self._ended)
        other._results = {message: dict(numbers) for message, numbers in self._results.items()}
        other._sent_upto = dict(self._sent_upto)
        other._lanes = dict(self._lanes)
        other._letters = self._letters.copy()
        other._types = dict(self._types)
        other._clock = self._clock
        other._names = dict(self._names)
        other._peers = dict(self._peers)
        other._held = set(self._held)
        other._disowned = dict(self._disowned)
        return other

    def open(self) -> Snapshot:
        """Count this life and return the contents. While `broken` is set the count waits for the first commit, and this
        life has an epoch of its own."""
        self.forget()
        self._unwritten = None
        if self.broken:
            self._nameless += 1
            self._unwritten = f"{self._name}-{self._nameless}", self._life + 1
        else:
            self._life += 1
            for key in self._sent_upto.keys() - self._ready.keys():
                del self._sent_upto[key]
        return self.inspect()

    def inspect(self) -> Snapshot:
        """Return the contents as `open` does, without counting a life."""
        epoch, life = self._unwritten or (self._epoch, self._life)
        return Snapshot(
            epoch=epoch,
            life=life,
            queues={key: self._state_of(key, numbers) for key, numbers in self._ready.items()},
            shares=summed_shares(
                (key, row.entry.sender, row.meta, 1, len(row.entry.body))
                for key, numbers in self._ready.items()
                for row in map(self._rows.__getitem__, numbers)
                if row.entry.type != OUTCOME_TYPE
            ),
            types=tuple(self._types),
            lanes=tuple(map(_copied, self._lanes.values())),
            next_expiry_s=min(
                (row.entry.expires_s for row in self._rows.values() if row.outcome is None), default=None
            ),
            dead=len(self._letters),
            clock=self._clock,
            names=tuple(self._names),
            peers=dict(self._peers),
            held=frozenset(self._held),
            remote=dict(Counter(owner_of(row.entry.queue) for row in self._rows.values() if row.outcome == QUEUED)),
            disowned=dict(self._disowned),
            full=FULL if self.broken else None,
        )

    def close(self) -> None:
        """Keep everything: the store may be opened again."""

    def _state_of(self, key: str, numbers: list[int]) -> StoredQueue:
        size_bytes = sum(len(self._rows[number].entry.body) for number in numbers)
        return StoredQueue(len(numbers), size_bytes, numbers[0], self._sent_upto.get(key, 0))

    def _reach(self) -> None:
        """Raise BesterError where the store cannot be reached."""
        if self.away:
            raise BesterError("storage-unavailable", self.away)

    # --- writing ---

    def _write(self, writes: Sequence[Write]) -> dict[int, str | None]:
        self._reach()
        if self.locked:
            raise BusyError(LOCKED)
        if self.broken or (self.full and any(type(write) in GROWING for write in writes)):
            raise BesterError("storage-full", FULL)
        for write in writes:  # all of them are sound, or none is written
            _check(write)
        if self._unwritten is not None:
            (self._epoch, self._life), self._unwritten = self._unwritten, None
        repeated: dict[int, str | None] = {}
        for write in writes:
            match write:
                case Enqueue(entry):
                    self._insert(entry, None, repeated)
                case RecordRemote(entry, outcome):
                    self._insert(entry._replace(body=b""), outcome, repeated)
                case End(number, outcome, forget):
                    self._end(number, outcome, forget)
                case Rewrite(number, meta):
                    if number in self._rows:
                        self._rows[number] = self._rows[number]._replace(meta=pack(meta))
                case _:
                    self._write_other(write)
        return repeated

    def _write_other(self, write: Write) -> None:
        match write:
            case MarkSent(queue, upto):
                self._sent_upto[queue] = max(upto, self._sent_upto.get(queue, 0))
            case SaveLane(peer, type_):
                self._lanes[peer, type_] = _copied(write)
            case Bury(letter):
                self._forget_letters(self._letters.bury(letter))
            case Unbury(id_):
                self._letters.unbury(id_)
            case RecordType(type_):
                self._types[type_] = None
            case SaveClock(state):
                self._clock = state
            case SaveName(name):
                self._names.pop(name, None)
                self._names[name] = None
                while len(self._names) > NAMES:
                    del self._names[next(iter(self._names))]
            case SavePeer(address, reports):
                self._peers[address] = reports
            case PurgeOutcomes(before_s, most):
                self._forget(before_s, most)
            case SaveHeld() | ForgetRemote() | Disown():
                self._write_of_federation(write)

    def _write_of_federation(self, write: SaveHeld | ForgetRemote | Disown) -> None:
        match write:
            case SaveHeld(server, held):
                (self._held.add if held else self._held.discard)(server)
            case ForgetRemote(server, keep):
                rows, begin = self._rows.items(), lane(server, "")
                notes = sorted(
                    number for number, row in rows if row.outcome == QUEUED and row.entry.queue.startswith(begin)
                )
                for number in notes[: max(0, len(notes) - keep)]:
                    self._end(number, "", True)
            case Disown(user, upto, at_s):
                self._disowned[user] = upto, at_s

    def _forget(self, before_s: float, most: int) -> None:
        rows = self._rows.items()
        for number in [number for number, row in rows if row.outcome is not None and row.entry.expires_s < before_s]:
            self._end(number, "", True)
        oldest = self._ended[: max(0, len(self._ended) - most)]
        del self._ended[: len(oldest)]
        if oldest:
            self._forgotten["outcomes"] += len(oldest)
        for number in oldest:
            self._end(number, "", True)
        self._forget_letters(self._letters.drop_heavy())

    def _forget_letters(self, count: int) -> None:
        if count:
            self._forgotten["dead_letters"] += count

    def mark_repeated(self, entry: Entry) -> None:
        """Mark the message that waits here under the id and queue of an entry, if there is one."""
        number = self._numbers.get((entry.id, entry.queue))
        row = None if number is None else self._rows[number]
        if number is not None and row is not None and row.outcome is None:
            self._rows[number] = row._replace(meta=pack(unpack(row.meta) | {"repeated": True}))

    def _insert(self, entry: Entry, outcome: str | None, repeated: dict[int, str | None]) -> None:
        before = self._numbers.get((entry.id, entry.queue))
        if before is not None:
            repeated[entry.number] = self._rows[before].outcome
            if entry.meta.get("repeated"):
                self.mark_repeated(entry)
            return
        self._numbers[entry.id, entry.queue] = entry.number
        self._rows[entry.number] = _Row(entry._replace(meta={}), pack(entry.meta), outcome)
        self._results.setdefault(_message_of(entry.id), {})[entry.number] = None
        if outcome is None:
            insort(self._ready.setdefault(entry.queue, []), entry.number)
            heappush(self._expiring, (entry.expires_s, entry.number))
        elif outcome != QUEUED:
            insort(self._ended, entry.number)

    def _end(self, number: int, outcome: str, forget: bool) -> None:
        row = self._rows.get(number)
        if row is None:
            return
        if row.outcome is None:
            ready = self._ready[row.entry.queue]
            _remove(ready, number)
            if not ready:
                del self._ready[row.entry.queue]
        elif row.outcome != QUEUED:
            _remove(self._ended, number)
        if forget:
            del self._rows[number]
            del self._numbers[row.entry.id, row.entry.queue]
            message = _message_of(row.entry.id)
            del self._results[message][number]
            if not self._results[message]:
                del self._results[message]
        else:
            self._rows[number] = row._replace(entry=row.entry._replace(body=b""), outcome=outcome)
            if outcome != QUEUED:
                insort(self._ended, number)

    # --- reading ---

    def _answer(self, read: Read) -> Any:
        self._reach()
        match read:
            case Fetch(queue, after, limit, limit_bytes):
                numbers = self._ready.get(queue, [])
                start = bisect_right(numbers, after)
                return self._bounded([self._rows[number] for number in numbers[start : start + limit]], limit_bytes)
            case FindExpired():
                return self._expired(read)
            case FindEntry(id_, server):
                begin = lane(server, "")
                for row in self._results_of(id_):
                    if row.entry.id == id_ and row.entry.queue.startswith(begin):
                        return row.bare(), row.outcome
                return None
            case FindOutcomes():
                return summed_up((target, outcome) for _, target, outcome in self.outcomes_of(read))
            case FindOldest():
                return {
                    key: self._rows[numbers[0]].whole().meta
                    for key, numbers in self._ready.items()
                    if key.startswith("lane/")
                }
            case FindBrokers() | Adopt():  # there is one namespace
                return Brokers() if isinstance(read, FindBrokers) else Adopted()
            case FindDeadLetters():
                return self._letters.page(read) if read.oldest_first else self._letters.latest(read)

    def outcomes_of(self, read: FindOutcomes) -> list[tuple[str, str, str | None]]:
        """Return key, target and outcome of each result of a user's message."""
        message, sender = read
        begin = message + "."
        return [
            (row.entry.queue + row.entry.id, row.entry.target, row.outcome)
            for row in self._results_of(begin + "0")
            if row.entry.sender == sender
            and row.entry.number > self._disowned.get(sender, (0, 0.0))[0]
            and row.entry.id.startswith(begin)
            and _RESULT.match(row.entry.id, len(message))
        ]

    def _results_of(self, id_: str) -> list[_Row]:
        return [self._rows[number] for number in sorted(self._results.get(_message_of(id_), ()))]

    def _expired(self, read: FindExpired) -> tuple[list[Entry], float | None]:
        heap = self._expiring
        ready = sum(map(len, self._ready.values()))
        if len(heap) > STALE_LEAST + STALE_PART * ready:
            heap[:] = [each for each in heap if self._is_ready(each)]
            heapify(heap)
        over: list[tuple[float, int]] = []
        while heap and len(over) < read.limit and heap[0][0] <= read.at_s:
            first = heappop(heap)
            if self._is_ready(first):
                over.append(first)
        found = self._bounded([self._rows[number] for _, number in over], read.limit_bytes)
        while heap and not self._is_ready(heap[0]):
            heappop(heap)
        next_s = over[len(found)][0] if len(found) < len(over) else heap[0][0] if heap else None
        for each in over:
            heappush(heap, each)
        return found, next_s

    def _is_ready(self, each: tuple[float, int]) -> bool:
        row = self._rows.get(each[1])
        return row is not None and row.outcome is None and row.entry.expires_s == each[0]

    def _bounded(self, rows: list[_Row], limit_bytes: int) -> list[Entry]:
        """Return the entries of the first rows, with no more than `limit_bytes` of bodies, at least one."""
        found: list[Entry] = []
        for row in rows:
            limit_bytes -= len(row.entry.body)
            if found and limit_bytes < 0:
                break
            found.append(row.whole())
        return found


def _remove(numbers: list[int], number: int) -> None:
    """Remove a number from a sorted list, where the list has it."""
    index = bisect_left(numbers, number)
    if numbers[index : index + 1] == [number]:
        del numbers[index]


def _check(write: Write) -> None:
    """Raise UnwritableError for a write that a file could not hold."""
    try:
        match write:
            case Enqueue(entry) | RecordRemote(entry):
                pack(entry.meta)
                numbers = [entry.number]
            case Rewrite(number, meta):
                pack(meta)
                numbers = [number]
            case Bury(letter):
                pack(letter.meta)
                numbers = []
            case SaveLane():
                pack_lane(write.outcomes, write.others)
                numbers = [write.floor]
            case End(number) | MarkSent(_, number):
                numbers = [number]
            case _:
                return
    except (AttributeError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UnwritableError("storage-full", f"it cannot hold what it was given; see the reason ({error!r})") from None
    if not all(-MAX_NUMBER <= number < MAX_NUMBER for number in numbers):
        raise UnwritableError("storage-full", f"it cannot hold what it was given; see the reason ({numbers} is large)")


def _copied(lane: SaveLane) -> SaveLane:
    """Return a lane of its own, as one that is read back from a disk."""
    return lane._replace(outcomes=dict(lane.outcomes), others=dict(lane.others))
