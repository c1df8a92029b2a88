"""Groups of writes: which of the writes of a turn are committed now, so that no commit takes long. Pure.

Large bodies would otherwise decide how long a turn takes, and everybody would wait for them. New messages above the
bound of a group wait for the next turn, and with them their cases. All other writes are committed in their own turn:
messages that are sent at its end may depend on them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from bester.broker.store_requests import (
    Adopt,
    Bury,
    End,
    Enqueue,
    Fetch,
    FindBrokers,
    FindDeadLetters,
    FindOutcomes,
    Read,
    RecordRemote,
    Rewrite,
    SaveLane,
    Write,
)
from bester.broker.wire.outcomes import OUTCOME_TYPE

GROUP_BYTES = 2 * 1024 * 1024
"""New messages committed in one turn, by their bodies and ENTRY_BYTES each: some 10 milliseconds of a common disk."""
GROUP_MESSAGES = 256
"""New messages committed in one turn: some milliseconds, however fast the disk is."""
REMOTE_GROUP_MESSAGES = 1024
"""The same for a remote store: beside the loop, where more commits take longer."""
WAITING_BYTES = 16 * 1024 * 1024
"""Bound on messages that wait for a later turn: more than that is committed at once, for memory must stay bounded."""
ENTRY_BYTES = 2048
"""Size of a message in a group beside its body, and of any other write: more than memory takes."""
OUTCOME_BYTES = 40
"""Size of an outcome of a lane."""


def size_of(write: Write) -> int:
    """Return about how many bytes a write takes in memory."""
    if isinstance(write, Enqueue):
        return ENTRY_BYTES + len(write.entry.body)
    if isinstance(write, Bury):
        return ENTRY_BYTES + len(write.letter.body)
    if isinstance(write, SaveLane):
        outcomes = len(write.outcomes) + sum(len(each.outcomes) for each in write.others.values())
        return ENTRY_BYTES + OUTCOME_BYTES * outcomes
    return ENTRY_BYTES


def size_of_all(writes: Iterable[Write]) -> int:
    """Return about how many bytes writes take in memory. The bodies of one command are one object, which counts once
    where its messages follow each other."""
    size, body = 0, b""
    for write in writes:
        size += size_of(write)
        if isinstance(write, Enqueue):
            if write.entry.body is body:
                size -= len(body)
            body = write.entry.body
    return size


class Groups:
    """Writes in groups. A message that waits is overtaken by no write that names it, and by no read that would find it.

    The arguments are the bounds, for a remote store or for tests other than the constants of their names.
    """

    def __init__(
        self,
        group_bytes: int = GROUP_BYTES,
        waiting_bytes: int = WAITING_BYTES,
        group_messages: int = GROUP_MESSAGES,
    ) -> None:
        self._group_bytes = self._room_bytes = group_bytes
        self._group_messages = self._room = group_messages
        self._most_waiting_bytes = waiting_bytes
        self._waiting: deque[tuple[Enqueue, int]] = deque()  # with their sizes
        self._waiting_bytes = 0
        self._named: set[int | str] = set()  # numbers and ids of those
        self._body: bytes | None = None  # body of the latest message: the next message of the same command adds no body

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_due(self) -> bool:
        """Return whether messages wait, and this turn has room for some."""
        return bool(self._waiting) and self._has_room

    @property
    def _has_room(self) -> bool:
        return self._room > 0 and self._room_bytes > 0

    def begin_turn(self) -> None:
        """Give a new turn its room."""
        self._room_bytes, self._room = self._group_bytes, self._group_messages

    def take(self, writes: Sequence[Write]) -> Sequence[Write]:
        """Return the group to commit now: messages that wait, and then these writes but for new messages above the
        bound."""
        if not self._waiting:
            sizes = [ENTRY_BYTES + len(write.entry.body) for write in writes if type(write) is Enqueue]
            size = sum(sizes)
            if size <= self._room_bytes and len(sizes) <= self._room:  # almost always
                self._room_bytes -= size
                self._room -= len(sizes)
                return writes
        group: list[Write] = []
        self._take_waiting(group)
        for write in writes:
            if type(write) is Enqueue:
                self._take_or_wait(write, group)
                continue
            if self._waiting and self._names(write):
                group += self.take_all()
            group.append(write)
        self._body = None
        if self._waiting_bytes > self._most_waiting_bytes:
            self._room_bytes, self._room = self._waiting_bytes - self._most_waiting_bytes, len(self._waiting)
            self._take_waiting(group)
        return group

    def take_all(self) -> list[Write]:
        """Return all messages that wait, for a group."""
        waiting: list[Write] = [write for write, _ in self._waiting]
        self._waiting.clear()
        self._waiting_bytes = 0
        self._named.clear()
        return waiting

    def concerns(self, read: Read) -> bool:
        """Return whether the answer to a read may depend on a message that waits."""
        if not self._waiting or isinstance(read, FindDeadLetters | FindBrokers | Adopt):
            return False
        entries = (write.entry for write, _ in self._waiting)
        if isinstance(read, Fetch):
            return any(entry.queue == read.queue for entry in entries)
        if isinstance(read, FindOutcomes):
            return any(entry.sender == read.sender for entry in entries)
        return True

    def _take_or_wait(self, write: Enqueue, group: list[Write]) -> None:
        entry = write.entry
        # The rest of a command adds no body. A late outcome comes with the end of its message: a crash must not come
        # between the two.
        is_rest, self._body = entry.body is self._body, entry.body
        size = ENTRY_BYTES if is_rest else ENTRY_BYTES + len(entry.body)
        if entry.type == OUTCOME_TYPE or (not self._waiting and self._has_room):
            self._room_bytes -= size
            self._room -= 1
            group.append(write)
        else:
            self._waiting.append((write, size))
            self._waiting_bytes += size
            self._named.update((entry.number, entry.id))

    def _take_waiting(self, group: list[Write]) -> None:
        """Move messages that wait into a group, oldest first, as far as the turn has room."""
        waiting = self._waiting
        while waiting and self._has_room:
            write, size = waiting.popleft()
            self._room_bytes -= size
            self._room -= 1
            self._waiting_bytes -= size
            self._named.difference_update((write.entry.number, write.entry.id))
            group.append(write)

    def _names(self, write: Write) -> bool:
        """Return whether a write names a message that waits."""
        if isinstance(write, RecordRemote):
            return write.entry.number in self._named or write.entry.id in self._named
        return isinstance(write, End | Rewrite) and write.number in self._named
