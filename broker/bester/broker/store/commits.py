"""Commits that fail: writes that add to the store are given up, and the core learns so; writes that take away from the
store are held back and tried again.

Dead letters are held back as well, for their senders had a final report: a body and the End that deletes it are written
together. A write that is held back is never given up, and reads account for it: otherwise the end of a message would be
forgotten, and the message delivered again. Only a write that no disk could take, with any room, is dropped.
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
    Fault,
    Fetch,
    FindExpired,
    Held,
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
"""Writes that are given up with their group: the cases that wait for them have a failure."""
GROWING = GIVEN_UP | {Bury}
"""Writes that take room."""
LETTERS_HELD_BACK = 1_000
LETTERS_HELD_BACK_BYTES = 16 * 1024 * 1024
"""Bounds on dead letters that wait for room in memory, and on their bodies; above them the oldest is given up."""
LOOK_AGAIN_S = 1.0
"""Pause before expired messages are looked for again, where all that were found have ended in memory alone."""


class BusyError(BesterError):
    """Another process holds the lock that a write needs; nothing was written."""

    def __init__(self, text: str) -> None:
        super().__init__("storage-unavailable", text)


class UnwritableError(BesterError):
    """A write in the group is one that no store can hold, whatever its room or disk."""


class Commits(ABC):
    """Takes groups of writes, in order, each wholly or not at all.

    The writes that are held back are bounded by the contents: the latest one for each message, queue or dead letter.
    """

    is_remote = False
    """Whether commits and reads go over a network, and so belong beside the loop that asks for them."""

    def __init__(self) -> None:
        self.away = ""
        """Why nothing can be kept now, while a store that is remote cannot be reached."""
        self.size_bytes: int | None = None
        """Size of the store, where only the store itself knows that."""
        self.fenced = ""
        """Why this process may write nothing any more, where another one has taken the store."""
        self._held_back: dict[Hashable, Write] = {}
        self._buried: dict[Hashable, int] = {}  # dead letters among them, oldest first, with the sizes of their bodies
        self._buried_bytes = 0
        self._tied: dict[Hashable, Hashable] = {}  # an End, and the dead letter without which it is not written

    @property
    def held_back(self) -> int:
        """Count of the writes that wait for room, or for a sound disk."""
        return len(self._held_back)

    @property
    def is_due(self) -> bool:
        """Return whether the store needs a commit now, which may be empty."""
        return False

    def claim(self) -> Held | None:
        """Take the right to write before `open`; return who has it where another process has. Raises BesterError."""
        return None

    def commit(self, writes: Sequence[Write]) -> Committed:
        """Write a group in one transaction, after the writes that are held back. A group that finds the store locked is
        `busy`, and nothing is done with it."""
        try:
            repeated = self._write([*self._held_back.values(), *writes] if self._held_back else writes)
        except BusyError as error:
            return Committed(False, why=error.text, code="storage-unavailable", busy=True)
        except BesterError as error:
            if self._held_back and isinstance(error, UnwritableError):
                self._try_alone()
                if not self._held_back:  # the fault was among those: this group may be sound
                    return self.commit(writes)
            self.hold_back(writes)
            self._try_alone()
            code: Fault = "storage-unavailable" if error.code == "storage-unavailable" else "storage-full"
            return Committed(False, why=error.text, code=code)
        self._let_go(list(self._held_back))
        return Committed(True, repeated)

    def hold_back(self, writes: Sequence[Write]) -> None:
        """Give up the writes of a failed group that add to the store, and hold back the others."""
        letter = None  # the last of the group: those before it are given up no later
        for write in writes:
            if type(write) in GIVEN_UP:
                continue
            key = key_of(write)
            self._let_go([key])  # the latest comes last
            self._held_back[key] = write
            if isinstance(write, Bury):
                letter = key
                self._buried[key] = len(write.letter.body)
                self._buried_bytes += len(write.letter.body)
            elif isinstance(write, Unbury):
                self._let_go([(Bury, write.id)])
        if letter is not None:
            self._tied.update((key_of(write), letter) for write in writes if isinstance(write, End))
        while len(self._buried) > LETTERS_HELD_BACK or self._buried_bytes > LETTERS_HELD_BACK_BYTES:
            self._let_go([next(iter(self._buried))])

    def _let_go(self, keys: Iterable[Hashable]) -> None:
        for key in keys:
            self._held_back.pop(key, None)
            self._tied.pop(key, None)
            self._buried_bytes -= self._buried.pop(key, 0)

    def _try_alone(self) -> None:
        """Write what is held back without new writes: deleting needs little room. Where there is no room for dead
        letters, write the rest, except the Ends of the buried messages."""
        if not self._try(list(self._held_back)) and self._buried:
            self._try(
                [key for key in self._held_back if key not in self._buried and self._tied.get(key) not in self._buried]
            )

    def _try(self, keys: Sequence[Hashable]) -> bool:
        """Write these of the writes held back, and drop those that no store can hold. Returns False where they still
        wait."""
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
        """Return the answer to a read of `store_requests`. Raises BesterError where the store cannot be read."""
        self._try_alone()
        if self._held_back and isinstance(read, Fetch):
            return self._fetched(read)
        answer = self._answer(read)
        if self._held_back and isinstance(read, FindExpired):
            entries, next_s = answer
            if next_s is not None:
                next_s = max(next_s, read.at_s + LOOK_AGAIN_S)
            return [entry for entry in entries if not self._has_ended(entry)], next_s
        return answer

    def _fetched(self, fetch: Fetch) -> list[Entry]:
        while entries := self._answer(fetch):
            found = [entry for entry in entries if not self._has_ended(entry)]
            if found:
                return found
            fetch = fetch._replace(after=entries[-1].number)
        return []

    def _has_ended(self, entry: Entry) -> bool:
        return (End, entry.number) in self._held_back

    @abstractmethod
    def _answer(self, read: Read) -> Any:
        """Return the answer of the store itself, or raise BesterError."""

    @abstractmethod
    def _write(self, writes: Sequence[Write]) -> dict[int, str | None]:
        """Write all and return the duplicates, see `Committed`; or write none and raise BesterError: BusyError where
        another process holds the lock, UnwritableError where the fault is in a write itself."""


def key_of(write: Write) -> Hashable:
    """Return a key that is equal for writes of which only the latest counts."""
    if isinstance(write, Bury):
        return Bury, write.letter.id
    return type(write), None if isinstance(write, PurgeOutcomes | SaveClock) else write[0]
