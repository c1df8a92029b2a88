"""A pool is the workers of exactly the same types, shelved so that the one with most free credit is found at once."""

from __future__ import annotations

from bester.broker.core.effects import Link
from bester.broker.core.jobs import Job
from bester.broker.core.message_groups import MessageGroup

CHUNK = 16
"""With deep queues a worker is given this many messages before the next one is chosen: batches stay whole."""


class Worker:
    """One handler: `busy` holds what it was given, by token, oldest first; `free` is its unused credit.

    `lease_s` is how long it may be silent while it holds anything (0: as long as others), and at least how long it may
    take. `lines` are those bound to it in which something waits. After `leaving` it takes nothing new. While it is
    `aside` it takes suspects alone, one at a time.

    `over` counts the messages among `busy` that have ended without its answer (they took too long). All places are held
    by such since `full_since`; `stuck`: so long that it is passed over until it answers one.
    """

    __slots__ = (
        "credit",
        "free",
        "full_since",
        "groups",
        "inflight",
        "is_isolated",
        "lease_s",
        "leaving",
        "lines_next",
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
        self.leaving = False
        self.is_isolated = False
        self.groups: dict[MessageGroup, None] = {}
        self.lines_next = False
        self.overdue = 0
        self.full_since: float | None = None
        self.stuck = False

    @property
    def full_of_the_past(self) -> bool:
        """Are all its places held by messages that are over?"""
        return self.overdue > 0 and self.free <= 0 and self.overdue == len(self.inflight)

    def serves(self, type_: str) -> bool:
        """Will it take new messages of this type, now or when it has credit?"""
        return not self.leaving and type_ in self.pool.types

    def takes(self, type_: str) -> bool:
        """Can it be given a new message of this type now?"""
        return self.free > 0 and not self.is_isolated and self.serves(type_)


class Pool:
    """`busy` is what its workers hold together; `waiting` the types of it that have a queue, in turn.

    Only workers that take what is new stand on a shelf; of a single one no shelf is kept: there is nobody to compare it
    with.
    """

    def __init__(self, types: frozenset[str]) -> None:
        self.types = types
        self.workers: dict[Worker, None] = {}
        self.queued_types: dict[str, None] = {}
        self.inflight = 0
        self._ready = 0  # of its workers, those that take what is new
        self._only: Worker | None = None
        self._by_credit: dict[int, dict[Worker, None]] = {}
        self._top = 0
        self._current: Worker | None = None
        self._chunk_left = 0

    def add(self, worker: Worker) -> None:
        """Take a worker in."""
        worker.pool = self
        self.workers[worker] = None
        self.inflight += len(worker.inflight)
        self._open(worker)

    def remove(self, worker: Worker) -> None:
        """Strike a worker out; what it holds counts no longer."""
        del self.workers[worker]
        self.inflight -= len(worker.inflight)
        if not worker.is_isolated:
            self._shut(worker)

    def isolate(self, worker: Worker) -> None:
        """Let a worker take nothing new for a while."""
        self._shut(worker)
        worker.is_isolated = True

    def reinstate(self, worker: Worker) -> None:
        """Let a worker that was set aside take what is new again."""
        worker.is_isolated = False
        self._open(worker)

    def _open(self, worker: Worker) -> None:
        """A worker takes what is new."""
        self._ready += 1
        if self._ready == 1:
            self._only = worker
            return
        if self._only is not None:
            self._insert(self._only)
            self._only = None
        self._insert(worker)

    def _shut(self, worker: Worker) -> None:
        """A worker takes nothing new."""
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
        """Change a worker's free credit by one: -1 it was given a message, 1 it has answered one."""
        self.inflight -= by
        if self._only is not None or worker.is_isolated:
            worker.free += by
            return
        shelves, free = self._by_credit, worker.free
        shelf = shelves[free]
        del shelf[worker]
        if not shelf:
            del shelves[free]
        worker.free = free = free + by
        there = shelves.get(free)
        if there is None:
            shelves[free] = {worker: None}
        else:
            there[worker] = None
        if free > self._top:
            self._top = free
        if by < 0 and worker is self._current:
            self._chunk_left -= 1

    def best(self) -> Worker | None:
        """Return the worker to give the next message to: most free credit, in turn among equals; None: all full."""
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
