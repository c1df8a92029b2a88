"""The dead letters of a store in memory: in order of their burial, by serials that rise, within a number and a size."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, islice

from bester.broker.store.rows import pack, unpack
from bester.broker.store_requests import (
    LETTER_BYTES,
    LETTER_PAGE_BYTES,
    READ_BYTES,
    DeadLetter,
    DeadLetterPage,
    FindDeadLetters,
)


class MemoryLetters:
    """Dead letters, `most` of them; `len` counts them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._letters: dict[str, DeadLetter] = {}  # the latest last
        self._serials: dict[str, int] = {}  # by id
        self._serial = 0

    def __len__(self) -> int:
        return len(self._letters)

    def copy(self) -> MemoryLetters:
        """Return dead letters of their own, with the same contents."""
        other = MemoryLetters(self._most)
        other._letters, other._serials, other._serial = dict(self._letters), dict(self._serials), self._serial
        return other

    def bury(self, letter: DeadLetter) -> int:
        """Add a letter, or replace the one of the same id; return how many of the oldest had to make room."""
        self._letters.pop(letter.id, None)
        self._append(letter._replace(meta=unpack(pack(letter.meta))))
        return self._drop(len(self._letters) - self._most)

    def adopt(self, other: MemoryLetters) -> int:
        """Move all letters of another store behind these, but for those whose ids are here; return how many there
        were."""
        count = len(other)
        for id_, letter in other._letters.items():
            if id_ not in self._letters:
                self._append(letter)
        self._drop(len(self._letters) - self._most)
        other._letters.clear()
        other._serials.clear()
        return count

    def unbury(self, id_: str) -> None:
        """Delete a letter, if it is there."""
        self._letters.pop(id_, None)
        self._serials.pop(id_, None)

    def drop_heavy(self) -> int:
        """Delete the oldest letters above LETTER_BYTES; return their number."""
        sizes = accumulate(len(letter.body) for letter in reversed(self._letters.values()))
        kept = sum(size <= LETTER_BYTES for size in sizes)
        return self._drop(len(self._letters) - kept)

    def _append(self, letter: DeadLetter) -> None:
        self._serial += 1
        self._letters[letter.id], self._serials[letter.id] = letter, self._serial

    def _drop(self, count: int) -> int:
        """Delete the oldest letters, so many of them if any; return their number."""
        count = max(0, count)
        for id_ in list(self._letters)[:count]:
            self.unbury(id_)
        return count

    def latest(self, read: FindDeadLetters) -> list[DeadLetter]:
        """Return the letters that a read asks for, latest first."""
        return _found(read, reversed(self._letters.values()))

    def page(self, read: FindDeadLetters) -> DeadLetterPage:
        """Return the page that a read asks for, oldest first."""
        upto = read.upto or self._serial
        there = [letter for id_, letter in self._letters.items() if read.after < self._serials[id_] <= upto]
        letters = _found(read, there)
        after = self._serials[letters[-1].id] if letters else upto
        rest = (letter for letter in there if self._serials[letter.id] > after)
        return DeadLetterPage(letters, sum(_is_meant(letter, read) for letter in rest), after, upto)


def _found(read: FindDeadLetters, letters: Iterable[DeadLetter]) -> list[DeadLetter]:
    """Return those of these letters that are meant, within the limits of the read."""
    found = list(islice((letter for letter in letters if _is_meant(letter, read)), read.limit))
    if read.bodies or read.oldest_first:
        most_bytes = LETTER_PAGE_BYTES if read.oldest_first else READ_BYTES
        sizes = accumulate(len(letter.body) for letter in found)
        found = found[: max(1, sum(size <= most_bytes for size in sizes))]
    return [
        letter._replace(meta=unpack(pack(letter.meta)), body=letter.body if read.bodies else b"") for letter in found
    ]


def _is_meant(letter: DeadLetter, read: FindDeadLetters) -> bool:
    return letter.id == read.id if read.id is not None else read.type in (None, letter.type)
