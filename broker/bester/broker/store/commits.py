"""Commits that fail: new messages are given up, and the core learns so; writes that take away from the store are held
back and tried again.

Dead letters, late outcomes and notes of messages that are queued at other servers are held back as well, for their
senders had a report, and nobody would repeat them: each is written together with the Ends of its group. A write that is
held back is given up above a bound alone, and reads account for it: otherwise the end of a message would be forgotten,
and the message delivered again. A write that no disk could take, with any room, is dropped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeGuard

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
    Promise,
    PurgeOutcomes,
    Read,
    RecordRemote,
    SaveClock,
    SaveLane,
    Unbury,
    Write,
)
from bester.broker.wire.codes import BesterError
from bester.broker.wire.outcomes import OUTCOME_TYPE

GROWING = frozenset({Enqueue, RecordRemote, SaveLane, Bury})
"""Writes that take room."""
GROWING_HELD_BACK = 10_000
GROWING_HELD_BACK_BYTES = 16 * 1024 * 1024
"""Bounds on dead letters, late outcomes and notes that wait for room in memory, and on their bodies; above them the
oldest is given up."""
LOOK_AGAIN_S = 1.0
"""Pause before expired messages are looked for again, where all that were found have ended in memory alone."""


def is_given_up(write: Write) -> bool:
    """Return whether a write is given up with its group: the case that waits for the write has a failure."""
    return type(write) is SaveLane or (type(write) is Enqueue and write.entry.type != OUTCOME_TYPE)


def is_promise(write: Write) -> TypeGuard[Promise]:
    """Return whether a write is a late outcome, or the note of a message that is queued at another server."""
    return type(write) is RecordRemote or (type(write) is Enqueue and write.entry.type == OUTCOME_TYPE)


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
    """True where commits and reads go over a network, and so belong beside the loop that asks for them."""

    def __init__(self) -> None:
        self._sync_s: float | None = None  # time that the last transaction waited for the disk
        self._forgotten: Counter[str] = Counter()  # by the name of a bound, since the last result
        self.away = ""
        """Why nothing can be kept now, while a store that is remote cannot be reached."""
        self.size_bytes: int | None = None
        """Size of the store, where only the store itself knows that."""
        self.fenced = ""
        """Why this process may write nothing any more, where another one has taken the store."""
        self._held_back: dict[Hashable, Write] = {}
        self._growing: dict[Hashable, int] = {}  # writes that take room, oldest first, with the sizes of their bodies
        self._growing_bytes = 0
        self._promised: set[Hashable] = set()  # the promises among those
        self._tied: dict[Hashable, Hashable] = {}  # an End, and the growing write without which it is not written
        self._late: list[Promise] = []  # promises held back that are written now; the next result tells of them
        self._dropped: list[Promise] = []  # promises held back that are given up
        self._repeated: dict[int, str | None] = {}  # duplicates among those in `_late`

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
        return self.begin(writes)()

    def begin(self, writes: Sequence[Write]) -> Callable[[], Committed]:
        """Write a group as `commit` does, up to the wait for the disk: the returned call waits, on any thread, and
        nothing is asked of the store meanwhile."""
        self._sync_s = None
        try:
            end = self._write_unsynced([*self._held_back.values(), *writes] if self._held_back else writes)
        except BesterError as error:
            return partial(self._not_written, writes, error)
        return partial(self._conclude, writes, end)

    def _conclude(self, writes: Sequence[Write], end: Callable[[], dict[int, str | None]]) -> Committed:
        try:
            repeated = end()
        except BesterError as error:
            return self._not_written(writes, error)
        self._written(list(self._held_back), {})
        return self._result(Committed(True, repeated, sync_s=self._sync_s))

    def _not_written(self, writes: Sequence[Write], error: BesterError) -> Committed:
        if isinstance(error, BusyError):
            return Committed(False, why=error.text, code="storage-unavailable", busy=True)
        if self._held_back and isinstance(error, UnwritableError):
            self._try_alone()
            if not self._held_back:  # the fault was among those: this group may be sound
                return self.commit(writes)
        kept = self.hold_back(writes)
        self._try_alone()
        code: Fault = "storage-unavailable" if error.code == "storage-unavailable" else "storage-full"
        return self._result(Committed(False, why=error.text, code=code, kept=kept))

    def _result(self, result: Committed) -> Committed:
        """Add to a result what became of earlier promises since the last one."""
        if self._late or self._dropped:
            repeated = {**self._repeated, **result.repeated}
            result = result._replace(repeated=repeated, late=tuple(self._late), dropped=tuple(self._dropped))
            self._late, self._dropped, self._repeated = [], [], {}
        if self._forgotten:
            result = result._replace(forgotten=dict(self._forgotten))
            self._forgotten.clear()
        return result

    def hold_back(self, writes: Sequence[Write]) -> frozenset[int]:
        """Give up the new messages of a failed group, and hold back the other writes. Returns the numbers of the
        promises among those."""
        growing = None  # the last of the group: those before it are given up no later
        kept: set[int] = set()
        for given in writes:
            if is_given_up(given):
                continue
            write = given
            if is_promise(given):
                kept.add(given.entry.number)
                if type(given) is RecordRemote:  # the note alone is written
                    write = given._replace(entry=given.entry._replace(body=b""))
            key = key_of(write)
            self._let_go([key])  # the latest comes last
            self._held_back[key] = write
            if type(write) in GROWING:
                growing = key
                self._growing[key] = size = _size_of(write)
                self._growing_bytes += size
                if is_promise(write):
                    self._promised.add(key)
            elif isinstance(write, Unbury):
                self._let_go([(Bury, write.id)])
        if growing is not None:
            self._tied.update((key_of(write), growing) for write in writes if isinstance(write, End))
        while len(self._growing) > GROWING_HELD_BACK or self._growing_bytes > GROWING_HELD_BACK_BYTES:
            self._drop(next(iter(self._growing)))
        return frozenset(kept)

    def forget(self) -> None:
        """Forget what is held back, as a process that ends does."""
        self._let_go(list(self._held_back))
        self._late, self._dropped, self._repeated = [], [], {}

    def _let_go(self, keys: Iterable[Hashable]) -> None:
        for key in keys:
            self._held_back.pop(key, None)
            self._tied.pop(key, None)
            self._growing_bytes -= self._growing.pop(key, 0)
            self._promised.discard(key)

    def _drop(self, key: Hashable) -> None:
        write = self._held_back[key]
        if is_promise(write):
            self._dropped.append(write)
        self._let_go([key])

    def _written(self, keys: Sequence[Hashable], repeated: Mapping[int, str | None]) -> None:
        """Let go of writes that the store has taken."""
        self._late += filter(is_promise, map(self._held_back.__getitem__, keys))
        self._repeated.update(repeated)
        self._let_go(keys)

    def _try_alone(self) -> None:
        """Write what is held back without new writes: deleting needs little room. Where there is no room for what
        grows, write the rest, except the Ends that belong to it."""
        if not self._try(list(self._held_back)) and self._growing:
            self._try_ends()

    def _try_ends(self) -> None:
        growing = self._growing
        self._try([key for key in self._held_back if key not in growing and self._tied.get(key) not in growing])

    def _try(self, keys: Sequence[Hashable]) -> bool:
        """Write these of the writes held back, and drop those that no store can hold. Returns False where they still
        wait."""
        if not keys:
            return True
        try:
            repeated = self._write([self._held_back[key] for key in keys])
        except UnwritableError:
            if len(keys) > 1:
                half = len(keys) // 2
                return all([self._try(keys[:half]), self._try(keys[half:])])
            self._drop(keys[0])
        except BesterError:
            return False
        else:
            self._written(keys, repeated)
        return True

    def read(self, read: Read) -> Any:
        """Return the answer to a read of `store_requests`. Raises BesterError where the store cannot be read."""
        if self._promised:  # a read must find none of them before a result has told of it
            self._try_ends()
        else:
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

    def _write_unsynced(self, writes: Sequence[Write]) -> Callable[[], dict[int, str | None]]:
        """Do the part of `_write` that is no wait; return a call that does the rest. Either may raise as `_write` does:
        nothing is written then."""
        return partial(self._write, writes)

    @abstractmethod
    def _write(self, writes: Sequence[Write]) -> dict[int, str | None]:
        """Write all and return the duplicates, see `Committed`; or write none and raise BesterError: BusyError where
        another process holds the lock, UnwritableError where the fault is in a write itself."""


def key_of(write: Write) -> Hashable:
    """Return a key that is equal for writes of which only the latest counts."""
    if isinstance(write, Bury):
        return Bury, write.letter.id
    if isinstance(write, Enqueue | RecordRemote):
        return type(write), write.entry.number
    return type(write), None if isinstance(write, PurgeOutcomes | SaveClock) else write[0]


def _size_of(write: Write) -> int:
    """Return the bytes of the body of a growing write."""
    return len(write.letter.body) if isinstance(write, Bury) else len(write.entry.body) if is_promise(write) else 0
