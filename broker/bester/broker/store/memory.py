"""A store in memory, for simulations and for servers whose operator wants nothing on a disk.

It does what the one on disk does, fault for fault, and must never be quicker to forgive.
"""

from __future__ import annotations

import re
import secrets
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import accumulate
from typing import Any, NamedTuple, Self

from bester.broker.store.commits import GROWING, Commits, UnwritableError
from bester.broker.store.rows import pack, summed_up, unpack
from bester.broker.store_requests import (
    LETTER_BYTES,
    NAMES,
    READ_BYTES,
    Bury,
    ClockState,
    DeadLetter,
    DeadLetterPage,
    End,
    Enqueue,
    Entry,
    Fetch,
    FindDeadLetters,
    FindEntry,
    FindExpired,
    FindOutcomes,
    MarkSent,
    PurgeOutcomes,
    Read,
    RecordRemote,
    RecordType,
    Rewrite,
    SaveClock,
    SaveLane,
    SaveName,
    SavePeer,
    Snapshot,
    StoredQueue,
    Unbury,
    Write,
    lane,
)
from bester.broker.wire.codes import BesterError
from bester.broker.wire.outcomes import QUEUED

MAX_NUMBER = 2**63
"""What a file could not hold is not held here either."""
FULL = "the store in memory is told to be full; make room in it"
STALE_PART = 2
"""When this part of what is to expire has ended, it is thrown out."""
STALE_LEAST = 1_000
_RESULT = re.compile(r"\.[0-9]")


def _message_of(id_: str) -> str:
    """Return the beginning of an id of a result that all results of a message have in common, and perhaps those of
    others: for all ids that are made here they are no others."""
    found = _RESULT.search(id_, id_.rfind("/") + 1)
    return id_ if found is None else id_[: found.start()]


class _Row(NamedTuple):
    """An entry whose meta is packed, and its outcome (None: it waits)."""

    entry: Entry
    meta: bytearray
    outcome: str | None

    def whole(self) -> Entry:
        return self.entry._replace(meta=unpack(self.meta))

    def bare(self) -> Entry:
        return self.entry._replace(meta=unpack(self.meta), body=b"")


class MemoryStore(Commits):
    """A store that ends with the process. `open` again is a restart of the broker; `copy` is what a crash leaves.

    While `full` is set nothing can be added; while `broken` is, nothing can be written at all.
    """

    def __init__(self, *, epoch: str | None = None, dead_letters: int = 10_000) -> None:
        super().__init__()
        self.full = False
        self.broken = False
        self._epoch = epoch or secrets.token_hex(8)
        self._name = self._epoch  # that it was made with
        self._nameless = 0  # lives that could not be counted at their start
        self._unwritten: tuple[str, int] | None = None  # the epoch and number of this life, until they can be written
        self._dead_letters = dead_letters
        self._life = 0
        self._rows: dict[int, _Row] = {}
        self._numbers: dict[tuple[str, str], int] = {}  # by id and box
        self._waiting: dict[str, list[int]] = {}  # by box, in order
        self._expiring: list[tuple[float, int]] = []  # a heap of what waits, and of some of what did
        self._ended: list[int] = []  # in order; what waits elsewhere is not among it
        self._results: dict[str, dict[int, None]] = {}  # by what their message is called
        self._handed: dict[str, int] = {}
        self._arrived: dict[tuple[str, str], SaveLane] = {}
        self._letters: dict[str, DeadLetter] = {}  # the latest last
        self._places: dict[str, int] = {}  # theirs
        self._place = 0
        self._types: dict[str, None] = {}
        self._clock: ClockState | None = None
        self._names: dict[str, None] = {}  # the latest last
        self._peers: dict[str, bool] = {}

    def copy(self) -> Self:
        """Return a store that holds what is committed here, and no more."""
        other = type(self)(epoch=self._epoch, dead_letters=self._dead_letters)
        other._name, other._nameless = self._name, self._nameless
        other._life = self._life
        other._rows = dict(self._rows)
        other._numbers = dict(self._numbers)
        other._waiting = {box: list(numbers) for box, numbers in self._waiting.items()}
        other._expiring = list(self._expiring)
        other._ended = list(self._ended)
        other._results = {message: dict(numbers) for message, numbers in self._results.items()}
        other._handed = dict(self._handed)
        other._arrived = dict(self._arrived)
        other._letters = dict(self._letters)
        other._places = dict(self._places)
        other._place = self._place
        other._types = dict(self._types)
        other._clock = self._clock
        other._names = dict(self._names)
        other._peers = dict(self._peers)
        return other

    def open(self) -> Snapshot:
        """Count this life and return what is there. While `broken` is set that is done with the first that can be
        written, and this life has a name of its own."""
        self._let_go(list(self._held_back))
        self._unwritten = None
        if self.broken:
            self._nameless += 1
            self._unwritten = f"{self._name}-{self._nameless}", self._life + 1
        else:
            self._life += 1
            for box in self._handed.keys() - self._waiting.keys():
                del self._handed[box]
        return self.inspect()

    def inspect(self) -> Snapshot:
        """Return what the store holds now: the snapshot that `open` gives, without counting a life."""
        epoch, life = self._unwritten or (self._epoch, self._life)
        return Snapshot(
            epoch=epoch,
            life=life,
            queues={box: self._state_of(box, numbers) for box, numbers in self._waiting.items()},
            types=tuple(self._types),
            lanes=tuple(each._replace(outcomes=dict(each.outcomes)) for each in self._arrived.values()),
            next_expiry_s=min(
                (row.entry.expires_s for row in self._rows.values() if row.outcome is None), default=None
            ),
            dead=len(self._letters),
            clock=self._clock,
            names=tuple(self._names),
            peers=dict(self._peers),
            full=FULL if self.broken else None,
        )

    def close(self) -> None:
        """Keep all of it: `open` may come again."""

    def _state_of(self, box: str, numbers: list[int]) -> StoredQueue:
        size_bytes = sum(len(self._rows[number].entry.body) for number in numbers)
        return StoredQueue(len(numbers), size_bytes, numbers[0], self._handed.get(box, 0))

    # --- writing ---

    def _write(self, writes: Sequence[Write]) -> dict[int, str | None]:
        if self.broken or (self.full and any(type(write) in GROWING for write in writes)):
            raise BesterError("storage-full", FULL)
        for write in writes:  # all of them are well, or none is written
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
            case MarkSent(box, upto):
                self._handed[box] = max(upto, self._handed.get(box, 0))
            case SaveLane(peer, type_):
                self._arrived[peer, type_] = write._replace(outcomes=dict(write.outcomes))
            case Bury(letter):
                self._letters.pop(letter.id, None)
                self._letters[letter.id] = letter._replace(meta=unpack(pack(letter.meta)))
                self._place += 1
                self._places[letter.id] = self._place
                while len(self._letters) > self._dead_letters:
                    self._unbury(next(iter(self._letters)))
            case Unbury(id_):
                self._unbury(id_)
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

    def _forget(self, before_s: float, most: int) -> None:
        rows = self._rows.items()
        for number in [number for number, row in rows if row.outcome is not None and row.entry.expires_s < before_s]:
            self._end(number, "", True)
        oldest = self._ended[: max(0, len(self._ended) - most)]
        del self._ended[: len(oldest)]
        for number in oldest:
            self._end(number, "", True)
        size = 0
        for id_, letter in reversed(list(self._letters.items())):
            size += len(letter.body)
            if size > LETTER_BYTES:
                self._unbury(id_)

    def _unbury(self, id_: str) -> None:
        self._letters.pop(id_, None)
        self._places.pop(id_, None)

    def _insert(self, entry: Entry, outcome: str | None, repeated: dict[int, str | None]) -> None:
        before = self._numbers.get((entry.id, entry.queue))
        if before is not None:
            row = self._rows[before]
            repeated[entry.number] = row.outcome
            if row.outcome is None and entry.meta.get("repeated"):
                self._rows[before] = row._replace(meta=pack(unpack(row.meta) | {"repeated": True}))
            return
        self._numbers[entry.id, entry.queue] = entry.number
        self._rows[entry.number] = _Row(entry._replace(meta={}), pack(entry.meta), outcome)
        self._results.setdefault(_message_of(entry.id), {})[entry.number] = None
        if outcome is None:
            insort(self._waiting.setdefault(entry.queue, []), entry.number)
            heappush(self._expiring, (entry.expires_s, entry.number))
        elif outcome != QUEUED:
            insort(self._ended, entry.number)

    def _end(self, number: int, outcome: str, forget: bool) -> None:
        row = self._rows.get(number)
        if row is None:
            return
        if row.outcome is None:
            waiting = self._waiting[row.entry.queue]
            _remove(waiting, number)
            if not waiting:
                del self._waiting[row.entry.queue]
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
        match read:
            case Fetch(box, after, limit, limit_bytes):
                numbers = self._waiting.get(box, [])
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
            case FindOutcomes(message, sender):
                begin = message + "."
                mine = [
                    row
                    for row in self._results_of(begin + "0")
                    if row.entry.sender == sender
                    and row.entry.id.startswith(begin)
                    and _RESULT.match(row.entry.id, len(message))
                ]
                return summed_up((row.entry.target, row.outcome) for row in mine)
            case FindDeadLetters():
                return self._pile(read) if read.oldest_first else self._dead(read, reversed(self._letters.values()))

    def _pile(self, read: FindDeadLetters) -> DeadLetterPage:
        upto = read.upto or self._place
        there = [letter for id_, letter in self._letters.items() if read.after < self._places[id_] <= upto]
        letters = self._dead(read, there)
        after = self._places[letters[-1].id] if letters else upto
        rest = (letter for letter in there if self._places[letter.id] > after)
        return DeadLetterPage(letters, sum(_is_meant(letter, read) for letter in rest), after, upto)

    def _dead(self, read: FindDeadLetters, letters: Iterable[DeadLetter]) -> list[DeadLetter]:
        found = [
            letter._replace(meta=unpack(pack(letter.meta)), body=letter.body if read.bodies else b"")
            for letter in letters
            if _is_meant(letter, read)
        ]
        sizes = accumulate(len(letter.body) for letter in found[: read.limit])
        return found[: max(1, sum(size <= READ_BYTES for size in sizes))]

    def _results_of(self, id_: str) -> list[_Row]:
        return [self._rows[number] for number in sorted(self._results.get(_message_of(id_), ()))]

    def _expired(self, read: FindExpired) -> tuple[list[Entry], float | None]:
        heap = self._expiring
        waiting = sum(map(len, self._waiting.values()))
        if len(heap) > STALE_LEAST + STALE_PART * waiting:
            heap[:] = [each for each in heap if self._waits(each)]
            heapify(heap)
        over: list[tuple[float, int]] = []
        while heap and len(over) < read.limit and heap[0][0] <= read.at_s:
            first = heappop(heap)
            if self._waits(first):
                over.append(first)
        found = self._bounded([self._rows[number] for _, number in over], read.limit_bytes)
        while heap and not self._waits(heap[0]):
            heappop(heap)
        next_s = over[len(found)][0] if len(found) < len(over) else heap[0][0] if heap else None
        for each in over:
            heappush(heap, each)
        return found, next_s

    def _waits(self, each: tuple[float, int]) -> bool:
        row = self._rows.get(each[1])
        return row is not None and row.outcome is None and row.entry.expires_s == each[0]

    def _bounded(self, rows: list[_Row], limit_bytes: int) -> list[Entry]:
        """Return the entries of the first rows, no more bytes than that, at least one."""
        found: list[Entry] = []
        for row in rows:
            limit_bytes -= len(row.entry.body)
            if found and limit_bytes < 0:
                break
            found.append(row.whole())
        return found


def _is_meant(letter: DeadLetter, read: FindDeadLetters) -> bool:
    return letter.id == read.id if read.id is not None else read.type in (None, letter.type)


def _remove(numbers: list[int], number: int) -> None:
    """Take a number out of numbers in order, where it is one of them."""
    place = bisect_left(numbers, number)
    if numbers[place : place + 1] == [number]:
        del numbers[place]


def _check(write: Write) -> None:
    """Raise UnwritableError for what a file could not hold."""
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
                pack(dict(write.outcomes))
                numbers = [write.floor]
            case End(number) | MarkSent(_, number):
                numbers = [number]
            case _:
                return
    except (AttributeError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UnwritableError("storage-full", f"it cannot hold what it was given; see the reason ({error!r})") from None
    if not all(-MAX_NUMBER <= number < MAX_NUMBER for number in numbers):
        raise UnwritableError("storage-full", f"it cannot hold what it was given; see the reason ({numbers} is large)")
