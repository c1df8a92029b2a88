"""What becomes of a group of writes that cannot be written: what adds to the store is given up and said to be, what
takes away from it is held back and tried again. So are dead letters, for their senders were told that nothing is left
to do: a body and the end that takes it away are written together.

It must never give up a write of the second kind, or read as though there were none: that a message has ended would be
forgotten, and it would be delivered again. Only what no disk could take, however much room there is, is thrown away.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from bester.broker.store_requests import (
    Bury,
    Committed,
    End,
    Enqueue,
    Entry,
    Fetch,
    FindExpired,
    PurgeOutcomes,
    Read,
    RecordRemote,
    SaveClock,
    SaveLane,
    Unbury,
    Write,
)
from bester.broker.wire.codes import BesterError

GIVEN_UP = frozenset({Enqueue, RecordRemote, SaveLane})
"""Given up with their group: whoever has asked for them is told so."""
GROWING = GIVEN_UP | {Bury}
"""What takes room."""
LETTERS_HELD_BACK = 1_000
LETTERS_HELD_BACK_BYTES = 16 * 1024 * 1024
"""Dead letters that wait for room, and their bodies: memory. Above it the oldest is given up."""
LOOK_AGAIN_S = 1.0
"""When what has ended in memory alone is in the way of what has expired, that is looked for again so much later."""


class UnwritableError(BesterError):
    """Something in the group is nothing a store can hold: more room, or a better disk, would not help."""


class Commits(ABC):
    """Takes groups of writes, in order, each wholly or not at all.

    What it holds back is bounded by what is kept: one write for each message, box or letter, the latest.
    """

    def __init__(self) -> None:
        self._held_back: dict[Hashable, Write] = {}
        self._buried: dict[Hashable, int] = {}  # those among them, oldest first, with the sizes of their bodies
        self._buried_bytes = 0
        self._tied: dict[Hashable, Hashable] = {}  # an end, and the letter without which it is not written

    @property
    def held_back(self) -> int:
        """How many writes wait for room, or for a disk that is well."""
        return len(self._held_back)

    def commit(self, writes: Sequence[Write]) -> Committed:
        """Write a group in one transaction, after what was held back before."""
        try:
            repeated = self._write([*self._held_back.values(), *writes] if self._held_back else writes)
        except BesterError as error:
            if self._held_back and isinstance(error, UnwritableError):
                self._try_alone()
                if not self._held_back:  # the fault was there: this group may be well
                    return self.commit(writes)
            self._hold_back(writes)
            self._try_alone()
            return Committed(False, why=error.text)
        self._let_go(list(self._held_back))
        return Committed(True, repeated)

    def _hold_back(self, writes: Sequence[Write]) -> None:
        letter = None  # the last of the group: those before it are given up no later
        for write in writes:
            if type(write) in GIVEN_UP:
                continue
            key = _key_of(write)
            self._let_go([key])  # the latest comes last
            self._held_back[key] = write
            if isinstance(write, Bury):
                letter = key
                self._buried[key] = len(write.letter.body)
                self._buried_bytes += len(write.letter.body)
            elif isinstance(write, Unbury):
                self._let_go([(Bury, write.id)])
        if letter is not None:
            self._tied.update((_key_of(write), letter) for write in writes if isinstance(write, End))
        while len(self._buried) > LETTERS_HELD_BACK or self._buried_bytes > LETTERS_HELD_BACK_BYTES:
            self._let_go([next(iter(self._buried))])

    def _let_go(self, keys: Iterable[Hashable]) -> None:
        for key in keys:
            self._held_back.pop(key, None)
            self._tied.pop(key, None)
            self._buried_bytes -= self._buried.pop(key, 0)

    def _try_alone(self) -> None:
        """To take away needs little room. Letters need more: where there is none for them, the rest goes without, but
        for the ends of what they hold."""
        if not self._try(list(self._held_back)) and self._buried:
            self._try(
                [key for key in self._held_back if key not in self._buried and self._tied.get(key) not in self._buried]
            )

    def _try(self, keys: Sequence[Hashable]) -> bool:
        """Write these of what is held back, and find and drop what cannot be written ever. False: they still wait."""
        if not keys:
            return True
        try:
            self._write([self._held_back[key] for key in keys])
        except UnwritableError:
            if len(keys) > 1:
                half = len(keys) // 2
                return all([self._try(keys[:half]), self._try(keys[half:])])
        except BesterError:
            return False
        self._let_go(keys)
        return True

    def read(self, read: Read) -> Any:
        """Return the answer, see `kept`. Raises BesterError where it cannot be read."""
        self._try_alone()
        if self._held_back and isinstance(read, Fetch):
            return self._fetched(read)
        answer = self._answer(read)
        if self._held_back and isinstance(read, FindExpired):
            entries, next_s = answer
            if next_s is not None:
                next_s = max(next_s, read.at_s + LOOK_AGAIN_S)
            return [entry for entry in entries if not self._is_over(entry)], next_s
        return answer

    def _fetched(self, fetch: Fetch) -> list[Entry]:
        while entries := self._answer(fetch):
            found = [entry for entry in entries if not self._is_over(entry)]
            if found:
                return found
            fetch = fetch._replace(after=entries[-1].number)
        return []

    def _is_over(self, entry: Entry) -> bool:
        return (End, entry.number) in self._held_back

    @abstractmethod
    def _answer(self, read: Read) -> Any:
        """Return what the store says to a question, or raise BesterError."""

    @abstractmethod
    def _write(self, writes: Sequence[Write]) -> dict[int, str | None]:
        """Write all of them and return the repetitions, see `Committed`, or raise BesterError and write none:
        UnwritableError where the fault is in what is written."""


def _key_of(write: Write) -> Hashable:
    """Return what is the same for writes of which only the latest counts."""
    if isinstance(write, Bury):
        return Bury, write.letter.id
    return type(write), None if isinstance(write, PurgeOutcomes | SaveClock) else write[0]
