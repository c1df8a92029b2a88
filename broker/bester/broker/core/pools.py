"""A pool is the workers of exactly the same types, shelved by free credit so that the freest one is found at once."""

from __future__ import annotations

from enum import Enum

from bester.broker.core.effects import Link
from bester.broker.core.grants import Grant
from bester.broker.core.jobs import Job
from bester.broker.core.message_groups import MessageGroup

CHUNK = 16
"""Messages that a worker is given before the next worker is chosen, where queues are deep: batches stay whole."""


class Availability(Enum):
    OPEN = "open"  # any message
    ISOLATED = "isolated"  # suspects alone, one at a time
    PAUSED = "paused"  # nothing: another broker has the exclusive use of the worker's process
    BOTH = "isolated and paused"  # nothing, and suspects alone afterwards


class Worker:
    """A handler process. `inflight` holds its messages by token, oldest first; `free` is its unused credit.

    `lease_s` is how long the worker may be silent while it holds messages (0: as long as others), and at least how long
    it may take. `groups` are the message groups bound to the worker in which messages wait; `groups_next`: their turn
    is next, not the queues'. While `leaving`, the worker gets no new messages. `availability` says which messages the
    worker may be given else (see `isolation`); while `is_apart`, its pool gives it none. `grant`: that which the
    worker's process gives to its brokers in turn, None where it serves this broker alone, or does not say so.

    `commands` are those that the worker's key grants, None for every one; a worker that is `limited` may not use every
    command on every type that it serves.

    `overdue` counts the messages in flight that took too long, and were settled without an answer. Since `full_since`
    such messages hold all credit; a `stuck` worker is passed over until it answers one. `answered` are those in flight
    that another broker has answered, as long as the worker may still take for them: it works, and is not stuck.
    """

    __slots__ = (
        "answered",
        "availability",
        "commands",
        "credit",
        "free",
        "full_since",
        "grant",
        "groups",
        "groups_next",
        "inflight",
        "is_apart",
        "lease_s",
        "leaving",
        "limited",
        "link",
        "overdue",
        "pool",
        "stuck",
    )  # fmt: skip

    pool: Pool

    def __init__(self, link: Link, credit: int) -> None:
        self.link = link
        self.credit = credit
        self.free = credit
        self.inflight: dict[int, Job] = {}
        self.lease_s = 0.0
        self.commands: frozenset[str] | None = None
        self.limited = False
        self.leaving = False
        self.availability = Availability.OPEN
        self.is_apart = False
        self.grant: Grant | None = None
        self.groups: dict[MessageGroup, None] = {}
        self.groups_next = False
        self.overdue = 0
        self.answered: set[Job] = set()
        self.full_since: float | None = None
        self.stuck = False

    @property
    def is_paused(self) -> bool:
        """Return whether another broker has the exclusive use of the worker's process."""
        return self.availability in (Availability.PAUSED, Availability.BOTH)

    @property
    def is_idle(self) -> bool:
        """Return whether the worker holds nothing but settled messages, which nobody waits for."""
        return self.overdue == len(self.inflight)

    @property
    def is_full_of_overdue(self) -> bool:
        """Return whether all credit is held by settled messages."""
        return self.overdue > 0 and self.free <= 0 and self.overdue == len(self.inflight)

    def serves(self, type_: str) -> bool:
        """Return whether the worker takes new messages of this type, now or when it has credit."""
        return not self.leaving and type_ in self.pool.types

    def takes(self, type_: str) -> bool:
        """Return whether the worker can be given a new message of this type now."""
        return self.free > 0 and not self.is_apart and self.serves(type_)


class Pool:
    """Workers of the same types; `inflight` counts their messages in flight, `queued_types` are its types with a queue,
    in turn.

    Only workers that take new messages are shelved. A single such worker has no shelf, since there is none to compare
    it with.
    """

    def __init__(self, types: frozenset[str]) -> None:
        self.types = types
        self.workers: dict[Worker, None] = {}
        self.queued_types: dict[str, None] = {}
        self.inflight = 0
        self._ready = 0  # number of its workers that take new messages
        self._only: Worker | None = None
        self._by_credit: dict[int, dict[Worker, None]] = {}
        self._top = 0
        self._current: Worker | None = None
        self._chunk_left = 0

    def add(self, worker: Worker) -> None:
        """Add a worker, which takes new messages unless it is paused."""
        worker.pool = self
        self.workers[worker] = None
        self.inflight += len(worker.inflight)
        worker.is_apart = worker.availability is not Availability.OPEN
        if not worker.is_apart:
            self._open(worker)

    def remove(self, worker: Worker) -> None:
        """Remove a worker; its messages in flight count no longer."""
        del self.workers[worker]
        self.inflight -= len(worker.inflight)
        if not worker.is_apart:
            self._shut(worker)

    def set_apart(self, worker: Worker) -> None:
        """Let a worker take no new messages for a while."""
        self._shut(worker)
        worker.is_apart = True

    def reinstate(self, worker: Worker) -> None:
        """Let a worker take new messages again."""
        worker.is_apart = False
        self._open(worker)

    def _open(self, worker: Worker) -> None:
        """Shelve a worker for new messages."""
        self._ready += 1
        if self._ready == 1:
            self._only = worker
            return
        if self._only is not None:
            self._insert(self._only)
            self._only = None
        self._insert(worker)

    def _shut(self, worker: Worker) -> None:
        """Take a worker off its shelf: no new messages."""
        self._ready -= 1
        if self._current is worker:
            self._current = None
        if self._only is not None:
            self._only = None
            return
        self._take_out(worker)
        if self._ready == 1:
            self._only = next(iter(next(iter(self._by_credit.values()))))
            self._by_credit.clear()
            self._top = 0

    def _insert(self, worker: Worker) -> None:
        free = worker.free
        shelf = self._by_credit.get(free)
        if shelf is None:
            self._by_credit[free] = {worker: None}
        else:
            shelf[worker] = None
        if free > self._top:
            self._top = free

    def _take_out(self, worker: Worker) -> None:
        shelf = self._by_credit[worker.free]
        del shelf[worker]
        if not shelf:
            del self._by_credit[worker.free]

    def change(self, worker: Worker, by: int) -> None:
        """Change a worker's free credit: below 0 for assigned messages, above for answered ones."""
        self.inflight -= by
        if self._only is not None or worker.is_apart:
            worker.free += by
            return
        shelves, free = self._by_credit, worker.free
        shelf = shelves[free]
        del shelf[worker]
        if not shelf:
            del shelves[free]
        worker.free = free = free + by
        target = shelves.get(free)
        if target is None:
            shelves[free] = {worker: None}
        else:
            target[worker] = None
        if free > self._top:
            self._top = free
        if by < 0 and worker is self._current:
            self._chunk_left += by

    def room(self, worker: Worker) -> int:
        """Return how many messages running `best` would give to this worker, which it has just returned."""
        if self._only is not None:
            return worker.free
        return min(self._chunk_left, worker.free) if worker is self._current else 1

    def best(self) -> Worker | None:
        """Return the worker for the next message: most free credit, in turn among equals; None: all are full."""
        only = self._only
        if only is not None:
            return only if only.free > 0 else None
        current = self._current
        if current is not None and self._chunk_left > 0 and current.free > 0:
            return current
        while self._top > 0 and self._top not in self._by_credit:
            self._top -= 1
        if self._top <= 0:
            return None
        worker = next(iter(self._by_credit[self._top]))
        if self.inflight >= CHUNK * len(self.workers):
            self._current, self._chunk_left = worker, CHUNK
        else:
            self._current = None
        return worker
