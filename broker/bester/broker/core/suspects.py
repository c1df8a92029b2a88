"""Messages over which a worker may have died (suspects), and the workers isolated for them.

A worker that dies while holding a single message has died over that message. Of several held messages any may be the
reason, or none: each is a suspect from then on. A suspect is given to a worker that holds and gets nothing else, so
that a death proves something. The suspect over which such a worker dies is the reason, and the others of its group are
cleared.

    the worker held the message    counts as a death over it    then the message is
    alone                          yes                          a suspect by itself; those suspected with it are cleared
    with others                    no                           a suspect, in one group with all of them

A worker that serves several brokers holds a message alone if it was given under the worker's `grant` (see `grants`),
however many messages of this broker it holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from heapq import nsmallest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bester.broker.core.message_groups import QueueItem
    from bester.broker.core.pools import Pool, Worker

ISOLATED_PART = 2
"""Part of a type's workers, one in so many but at least one, that is isolated at most: the others go on with new
messages."""
LONG_S = 1.0
"""Time that a message has been with a worker after which the worker may not be free soon, either."""
DRAIN_S = 10.0
"""Time for which the last worker of a type gets no new messages so that the worker becomes idle for a suspect, and then
gets new ones before the next try: new messages wait for less than their timeout, however long the worker is busy."""


class Suspicion:
    """State that a group of suspects shares. `deaths` counts the workers that died over its only member; `open`: its
    members are suspects."""

    __slots__ = ("deaths", "open")

    def __init__(self, deaths: int = 0) -> None:
        self.deaths = deaths
        self.open = True


class Suspects:
    """Suspects that wait, by type, first come first served; and the `isolated` workers, which take nothing else."""

    def __init__(self) -> None:
        self.isolated: dict[Worker, None] = {}
        self.drained_since: dict[Worker, float] = {}  # last workers of a type, while suspects wait for them
        self._queues: dict[str, deque[QueueItem]] = {}
        self._since: dict[str, float] = {}  # by type, a time before which none of them began to wait

    def __bool__(self) -> bool:
        return bool(self._queues)

    def types(self) -> list[str]:
        """Return the types with waiting suspects."""
        return list(self._queues)

    def queues(self) -> list[deque[QueueItem]]:
        """Return the queues of suspects, of all types."""
        return list(self._queues.values())

    def put(self, type_: str, item: QueueItem, since: float, *, first: bool) -> None:
        """Queue an item at the end, or in front. The item must be suspected, a message group by its first message, and
        waits `since` then."""
        queue = self._queues.get(type_)
        if queue is None:
            queue = self._queues[type_] = deque()
        self._since[type_] = min(since, self._since.get(type_, since))
        if first:
            queue.appendleft(item)
        else:
            queue.append(item)

    def remove(self, type_: str, item: QueueItem) -> None:
        """Take out an item."""
        self._queues[type_].remove(item)
        self._tidy(type_)

    def _tidy(self, type_: str) -> None:
        """Forget the queue of a type, where the queue is empty."""
        if not self._queues[type_]:
            del self._queues[type_], self._since[type_]

    def take_all(self, type_: str) -> list[QueueItem]:
        """Take out all suspects of a type."""
        self._since.pop(type_, None)
        return list(self._queues.pop(type_, ()))

    def take_overdue(self, type_: str, waits_since: Callable[[QueueItem], float]) -> list[QueueItem]:
        """Take out all suspects of a type if one of them may have waited since `waits_since(item)` or longer, which is
        one time for all of a type; none else: a worker may leave thousands, and nobody looks through them in vain."""
        queue = self._queues.get(type_)
        return self.take_all(type_) if queue and self._since[type_] <= waits_since(queue[0]) else []

    def waits_for(self, worker: Worker) -> str | None:
        """Return the type of the next suspect for a worker, None where none of its types has one."""
        return next((type_ for type_ in self._queues if type_ in worker.pool.types), None)

    def next_for(self, worker: Worker) -> QueueItem | None:
        """Return the next suspect for a worker that holds nothing, None where none of its types has one."""
        type_ = self.waits_for(worker)
        if type_ is None:
            return None
        queue = self._queues[type_] = self._queues.pop(type_)  # types take turns
        item = queue.popleft()
        self._tidy(type_)
        return item

    def cleared(self) -> list[tuple[str, list[QueueItem]]]:
        """Take out items that are suspects no more, by type, in their order."""
        found: list[tuple[str, list[QueueItem]]] = []
        for type_, queue in list(self._queues.items()):
            free = [item for item in queue if not item.suspected]
            if free:
                found.append((type_, free))
                self._queues[type_] = deque(item for item in queue if item.suspected)
                self._tidy(type_)
        return found

    # --- workers ---

    def wanted(self, type_: str, pools: Iterable[Pool], now: float) -> list[Worker]:
        """Return the workers to isolate for the suspects of a type: those that hold one already, or nothing; only where
        these are too few, workers with the least to finish first; of workers that serve several brokers the same ones
        at each broker, so that the others go on with new messages. The last worker of a type that has something to
        finish, here or for another broker, is isolated for `DRAIN_S` at a time."""
        workers = [worker for pool in pools for worker in pool.workers]
        count = min(len(self._queues.get(type_, ())), max(1, len(workers) // ISOLATED_PART))
        ready = [worker for worker in workers if worker in self.isolated and _is_ready(worker, now)]
        chosen = ready
        if len(ready) < count:
            taken = set(ready)
            others = (worker for worker in workers if worker not in taken)
            chosen = ready + nsmallest(count - len(ready), others, key=lambda each: _rank(each, now))
        return [worker for worker in chosen if len(workers) > 1 or self._may_drain(worker, now)]

    def _may_drain(self, worker: Worker, now: float) -> bool:
        """Return whether the last worker of a type is to take nothing new now, so that a suspect is alone with it."""
        if holds_suspect(worker) or (worker.is_idle if worker.grant is None else worker.grant.is_given):
            return True
        return (now - self.drained_since.setdefault(worker, now)) % (2 * DRAIN_S) < DRAIN_S


def holds_suspect(worker: Worker) -> bool:
    """Return whether a worker holds a suspect that is not settled."""
    return not worker.is_idle and any(job.suspected and not job.is_settled for job in worker.inflight.values())


def _is_ready(worker: Worker, now: float) -> bool:
    """Return whether an isolated worker holds a suspect, or is soon free for one."""
    return holds_suspect(worker) or (worker.is_idle and (worker.grant is None or not worker.grant.is_slow(now)))


def _rank(worker: Worker, now: float) -> tuple[bool, bool, bool, str, int]:
    """Order workers by how much they have to finish; last come those that are stuck, with settled messages alone, and
    those that were asked long ago and have not granted their exclusive use. Workers of several brokers come in an order
    that is the same at each of them, those first that another one uses, but for those that have held a message for
    long."""
    held, grant = len(worker.inflight), worker.grant
    stuck = held > 0 and worker.is_idle
    if grant is None:
        return stuck, True, True, "", held
    stuck = stuck or grant.is_slow(now)
    is_long = held > 0 and next(iter(worker.inflight.values())).since < now - LONG_S
    return stuck, not worker.is_paused, is_long, grant.name, held
