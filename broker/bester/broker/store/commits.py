"""What becomes of a group of writes that cannot be written: what adds to the store is given up and said to be, what
takes away from it is held back and tried again.

It must never give up a write of the second kind, or read as though there were none: that a message has ended would be
forgotten, and it would be delivered again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

from bester.broker.kept import (
    Arrived,
    Bury,
    Committed,
    End,
    Entry,
    Expired,
    Fetch,
    Forget,
    Keep,
    Note,
    Read,
    Write,
)
from bester.broker.wire.codes import BesterError

GROWING = frozenset({Keep, Note, Arrived, Bury})
"""Given up with their group: whoever has asked for them is told so."""
LOOK_AGAIN_S = 1.0
"""When what has ended in memory alone is in the way of what has expired, that is looked for again so much later."""


class Commits(ABC):
    """Takes groups of writes, in order, each wholly or not at all.

    What it holds back is bounded by what is kept: one write for each message, box or letter, the latest.
    """

    def __init__(self) -> None:
        self._held_back: dict[Hashable, Write] = {}

    def commit(self, writes: Sequence[Write]) -> Committed:
        """Write a group in one transaction, after what was held back before."""
        try:
            repeated = self._write([*self._held_back.values(), *writes] if self._held_back else writes)
        except BesterError as error:
            for write in writes:
                if type(write) not in GROWING:
                    self._hold_back(write)
            self._try_alone()
            return Committed(False, why=error.text)
        self._held_back.clear()
        return Committed(True, repeated)

    def _hold_back(self, write: Write) -> None:
        key = (type(write), None if type(write) is Forget else write[0])
        self._held_back.pop(key, None)  # the latest comes last
        self._held_back[key] = write

    def _try_alone(self) -> None:
        """To take away needs little room."""
        if not self._held_back:
            return
        try:
            self._write(list(self._held_back.values()))
        except BesterError:
            return
        self._held_back.clear()

    def read(self, read: Read) -> Any:
        """Return the answer, see `kept`. Raises BesterError where it cannot be read."""
        self._try_alone()
        if self._held_back and isinstance(read, Fetch):
            return self._fetched(read)
        answer = self._answer(read)
        if self._held_back and isinstance(read, Expired):
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
        """Write all of them and return the repetitions, see `Committed`, or raise BesterError and write none."""
