"""A store in memory, for simulations and for servers whose operator wants nothing on a disk.

It does what the one on disk does, fault for fault, and must never be quicker to forgive.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Self

from bester.broker.kept import (
    LETTER_BYTES,
    READ_BYTES,
    Arrived,
    BoxState,
    Bury,
    Dead,
    End,
    Entry,
    Expired,
    Fetch,
    Forget,
    Handed,
    Keep,
    Learn,
    Letter,
    Note,
    Outcomes,
    Read,
    Rewrite,
    Snapshot,
    Sought,
    Unbury,
    Write,
    lane,
)
from bester.broker.store.commits import GROWING, Commits
from bester.broker.store.rows import pack, summed_up, unpack
from bester.broker.wire.codes import BesterError


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
        self._dead_letters = dead_letters
        self._life = 0
        self._rows: dict[int, _Row] = {}
        self._numbers: dict[tuple[str, str], int] = {}  # by id and box
        self._waiting: dict[str, dict[int, None]] = {}  # by box
        self._handed: dict[str, int] = {}
        self._arrived: dict[tuple[str, str], Arrived] = {}
        self._letters: dict[str, Letter] = {}  # the latest last
        self._types: dict[str, None] = {}

    def copy(self) -> Self:
        """Return a store that holds what is committed here, and no more."""
        other = type(self)(epoch=self._epoch, dead_letters=self._dead_letters)
        other._life = self._life
        other._rows = dict(self._rows)
        other._numbers = dict(self._numbers)
        other._waiting = {box: dict(numbers) for box, numbers in self._waiting.items()}
        other._handed = dict(self._handed)
        other._arrived = dict(self._arrived)
        other._letters = dict(self._letters)
        other._types = dict(self._types)
        return other

    def open(self) -> Snapshot:
        """Count this life and return what is there."""
        self._held_back.clear()
        self._life += 1
        for box in self._handed.keys() - self._waiting.keys():
            del self._handed[box]
        return Snapshot(
            epoch=self._epoch,
            life=self._life,
            boxes={box: self._state_of(box, numbers) for box, numbers in self._waiting.items()},
            types=tuple(self._types),
            arrived=tuple(each._replace(outcomes=dict(each.outcomes)) for each in self._arrived.values()),
            next_expiry_s=min(
                (row.entry.expires_s for row in self._rows.values() if row.outcome is None), default=None
            ),
            dead=len(self._letters),
        )

    def close(self) -> None:
        """Keep all of it: `open` may come again."""

    def _state_of(self, box: str, numbers: dict[int, None]) -> BoxState:
        size_bytes = sum(len(self._rows[number].entry.body) for number in numbers)
        return BoxState(len(numbers), size_bytes, min(numbers), self._handed.get(box, 0))

    # --- writing ---

    def _write(self, writes: Sequence[Write]) -> dict[int, str | None]:
        if self.broken or (self.full and any(type(write) in GROWING for write in writes)):
            raise BesterError("storage-full", "the store in memory is told to be full; make room in it")
        repeated: dict[int, str | None] = {}
        for write in writes:
            match write:
                case Keep(entry):
                    self._insert(entry, None, repeated)
                case Note(entry, outcome):
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
            case Handed(box, upto):
                self._handed[box] = max(upto, self._handed.get(box, 0))
            case Arrived(peer, type_):
                self._arrived[peer, type_] = write._replace(outcomes=dict(write.outcomes))
            case Bury(letter):
                self._letters.pop(letter.id, None)
                self._letters[letter.id] = letter._replace(meta=unpack(pack(letter.meta)))
                while len(self._letters) > self._dead_letters:
                    del self._letters[next(iter(self._letters))]
            case Unbury(id_):
                self._letters.pop(id_, None)
            case Learn(type_):
                self._types[type_] = None
            case Forget(before_s, most):
                self._forget(before_s, most)

    def _forget(self, before_s: float, most: int) -> None:
        ended = sorted((row.entry.expires_s, number) for number, row in self._rows.items() if row.outcome is not None)
        before_s = max(before_s, ended[-most][0]) if len(ended) > most else before_s
        for expires_s, number in ended:
            if expires_s < before_s:
                self._end(number, "", True)
        size = 0
        for id_, letter in reversed(list(self._letters.items())):
            size += len(letter.body)
            if size > LETTER_BYTES:
                del self._letters[id_]

    def _insert(self, entry: Entry, outcome: str | None, repeated: dict[int, str | None]) -> None:
        before = self._numbers.get((entry.id, entry.box))
        if before is not None:
            repeated[entry.number] = self._rows[before].outcome
            return
        self._numbers[entry.id, entry.box] = entry.number
        self._rows[entry.number] = _Row(entry._replace(meta={}), pack(entry.meta), outcome)
        if outcome is None:
            self._waiting.setdefault(entry.box, {})[entry.number] = None

    def _end(self, number: int, outcome: str, forget: bool) -> None:
        row = self._rows.get(number)
        if row is None:
            return
        waiting = self._waiting.get(row.entry.box)
        if waiting is not None:
            waiting.pop(number, None)
            if not waiting:
                del self._waiting[row.entry.box]
        if forget:
            del self._rows[number]
            del self._numbers[row.entry.id, row.entry.box]
        else:
            self._rows[number] = row._replace(entry=row.entry._replace(body=b""), outcome=outcome)

    # --- reading ---

    def _answer(self, read: Read) -> Any:
        match read:
            case Fetch(box, after, limit, limit_bytes):
                numbers = sorted(number for number in self._waiting.get(box, ()) if number > after)
                return self._bounded([self._rows[number] for number in numbers[:limit]], limit_bytes)
            case Expired(at_s, limit, limit_bytes):
                rows = [row for row in self._rows.values() if row.outcome is None]
                rows.sort(key=lambda row: (row.entry.expires_s, row.entry.number))
                over = [row for row in rows[:limit] if row.entry.expires_s <= at_s]
                found = self._bounded(over, limit_bytes)
                return found, rows[len(found)].entry.expires_s if len(found) < len(rows) else None
            case Sought(id_, server):
                for row in self._rows.values():
                    if row.entry.id == id_ and row.entry.box.startswith(lane(server, "")):
                        return row.bare(), row.outcome
                return None
            case Outcomes(message, sender):
                rows = [self._rows[number] for number in sorted(self._rows)]
                mine = [row for row in rows if row.entry.id.startswith(message + ".") and row.entry.sender == sender]
                return summed_up((row.entry.target, row.outcome) for row in mine)
            case Dead(id_, type_, limit):
                letters = [
                    letter._replace(meta=unpack(pack(letter.meta)), body=letter.body if read.bodies else b"")
                    for letter in reversed(self._letters.values())
                    if (letter.id == id_ if id_ is not None else type_ in (None, letter.type))
                ]
                sizes = accumulate(len(letter.body) for letter in letters[:limit])
                return letters[: max(1, sum(size <= READ_BYTES for size in sizes))]

    def _bounded(self, rows: list[_Row], limit_bytes: int) -> list[Entry]:
        """Return the entries of the first rows, no more bytes than that, at least one."""
        found: list[Entry] = []
        for row in rows:
            limit_bytes -= len(row.entry.body)
            if found and limit_bytes < 0:
                break
            found.append(row.whole())
        return found
