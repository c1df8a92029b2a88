"""Messages that wait for a worker: one queue a type, in which senders take turns.

Of an ordered type each user's messages form a message group, which stands in the queue as one item, and is bound to a
worker while that worker holds any of them. Messages over which a worker may have died (suspects) wait apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

from bester.broker.core.fair_queue import FairQueue
from bester.broker.core.jobs import Job
from bester.broker.core.message_groups import MessageGroup, QueueItem, oldest, sender_of
from bester.broker.core.pools import Pool, Worker
from bester.broker.core.stuck_types import Front
from bester.broker.core.suspects import Suspects

MOST_EMPTY = 64
"""Empty queues that are kept, for they know who has had more than others. Where messages come in batches, a queue is
empty and full again in a moment."""
MOST_REMEMBERED = 1024
"""Senders that a queue may remember to be kept. Memory."""
MAX_LOOKS = 16
"""Ordered types that are looked at to find one to forget: many messages of one batch may ask for that."""


class TypeQueues:
    """All messages that wait for one of the workers in `serving`, the pools of each type. At most `max_ordered` types
    may be `ordered`.

    `by_type` are the queues that have items, `groups` the message groups by (type, user). `requeued` names the types
    with requeued messages that a free worker may take: the caller assigns them.
    """

    def __init__(self, serving: Mapping[str, Sequence[Pool]], max_ordered: int) -> None:
        self._serving = serving
        self._max_ordered = max_ordered
        self.by_type: dict[str, FairQueue[QueueItem]] = {}
        self.groups: dict[tuple[str, str], MessageGroup] = {}
        self.ordered: dict[str, None] = {}  # types, the one looked at last at the end
        self.suspects = Suspects()
        self.requeued: dict[str, None] = {}
        self._empty: dict[str, FairQueue[QueueItem]] = {}  # queues without items, the latest at the end
        self._waits: dict[str, int] = {}
        self._wait_bytes: dict[str, int] = {}

    # --- in ---

    def enqueue(self, job: Job, *, first: bool = False) -> None:
        """Queue a job; `first`: before all others of its type (it had its turn, and its worker died)."""
        type_ = job.type
        self._waits[type_] = self._waits.get(type_, 0) + 1
        self._wait_bytes[type_] = self._wait_bytes.get(type_, 0) + len(job.body)
        if first:
            self.requeued[type_] = None
        item: QueueItem = job
        if type_ in self.ordered and job.user is not None:
            group = self.groups.get((type_, job.user))
            if group is not None:
                stands_as = group.suspected if group.worker is None else job.suspected
                group.enqueue(job, first=first)
                if group.worker is None and group.suspected != stands_as:
                    self._move(group)
                return
            item = self.groups[type_, job.user] = MessageGroup((type_, job.user))
            item.waiting.append(job)
        self._put(type_, item, first=first)

    def enqueue_first(self, jobs: Sequence[Job]) -> None:
        """Queue jobs in their order, before all others of their types: they had their turn, and their worker died. Jobs
        of types without an order are queued together: one worker may leave tens of thousands."""
        latest_first: dict[str, list[Job]] = {}
        for job in reversed(jobs):
            if job.type in self.ordered:
                self.enqueue(job, first=True)
            else:
                latest_first.setdefault(job.type, []).append(job)
        for type_, of_type in latest_first.items():
            self._waits[type_] = self._waits.get(type_, 0) + len(of_type)
            self._wait_bytes[type_] = self._wait_bytes.get(type_, 0) + sum([len(job.body) for job in of_type])
            self.requeued[type_] = None
            suspects: list[QueueItem] = [job for job in of_type if job.suspected]
            others: list[QueueItem] = (
                [job for job in of_type if not job.suspected] if len(suspects) < len(of_type) else []
            )
            if suspects:
                self.suspects.put_first(type_, suspects, min([oldest(each).since for each in suspects]))
            if others:
                self._queue(type_).extendleft(others)

    def _put(self, type_: str, item: QueueItem, *, first: bool) -> None:
        """Put an item into the queue of its type or of its suspects, at the end or in front."""
        if item.suspected:
            self.suspects.put(type_, item, oldest(item).since, first=first)
            return
        queue = self._queue(type_)
        if first:
            queue.appendleft(item)
        else:
            queue.append(item)

    def _move(self, group: MessageGroup) -> None:
        """Move a message group, which has got another first message, between the queue and the suspects; the group
        stands at the head of the wrong one."""
        type_ = group.key[0]
        if group.suspected:
            self.by_type[type_].remove(group)
            if not self.by_type[type_]:
                self._drop_queue(type_)
        else:
            self.suspects.remove(type_, group)
        self._put(type_, group, first=True)

    def clear(self) -> None:
        """Requeue jobs that are cleared of suspicion, at the head."""
        for type_, items in self.suspects.cleared():
            self._queue(type_).extendleft(reversed(items))
            self.requeued[type_] = None

    def _queue(self, type_: str) -> FairQueue[QueueItem]:
        queue = self.by_type.get(type_)
        if queue is None:
            kept = self._empty.pop(type_, None)
            queue = self.by_type[type_] = FairQueue(sender_of) if kept is None else kept
            for pool in self._serving.get(type_, ()):
                pool.queued_types[type_] = None
        return queue

    def _drop_queue(self, type_: str) -> None:
        queue = self.by_type.pop(type_)
        for pool in self._serving.get(type_, ()):
            del pool.queued_types[type_]
        if not queue and queue.remembered <= MOST_REMEMBERED:
            self._empty[type_] = queue
            if len(self._empty) > MOST_EMPTY:
                del self._empty[next(iter(self._empty))]

    # --- out ---

    def next_in_turn(self, worker: Worker) -> Job | None:
        """Take out the next job for a worker that takes new messages, None where no job waits for the worker. Message
        groups bound to the worker and the queues take turns, and so do the groups and the queues among themselves, so
        that none starves the others."""
        types = worker.pool.queued_types
        groups = worker.groups
        group = _next_group(worker) if groups else None
        if group is not None and (worker.groups_next or not types):
            worker.groups_next = False
            del groups[group]
            job = group.waiting.popleft()
            if group.waiting:
                groups[group] = None
        elif types:
            worker.groups_next = True
            job = self._pop(next(iter(types)), worker)
        else:
            return None
        self._count_out(job.type, 1, len(job.body))
        return job

    def more_like(self, job: Job, worker: Worker, most: int) -> list[Job]:
        """Take out more jobs for a worker that was just given this one, of its type, at most `most`; none where queues
        take turns, or a job changes which is next."""
        queue = self.by_type.get(job.type)
        if (
            queue is None or most <= 0 or worker.groups or worker.is_apart or job.type in self.ordered
            or len(worker.pool.queued_types) > 1
        ):  # fmt: skip
            return []
        more: list[Job] = []
        for item in queue.take(most):
            assert type(item) is Job  # there are message groups of ordered types alone
            more.append(item)
        if not queue:
            self._drop_queue(job.type)
        self._count_out(job.type, len(more), sum([len(each.body) for each in more]))
        return more

    def next_suspect(self, worker: Worker) -> Job | None:
        """Take out the next suspect for a worker that holds nothing, None where none of its types has one."""
        item = self.suspects.next_for(worker)
        if item is None:
            return None
        job = _bind(item, worker)
        self._count_out(job.type, 1, len(job.body))
        return job

    def _pop(self, type_: str, worker: Worker) -> Job:
        queue = self.by_type[type_]
        item = queue.popleft()
        if queue:  # the type goes behind the other types
            types = worker.pool.queued_types
            types[type_] = types.pop(type_)
        else:
            self._drop_queue(type_)
        return _bind(item, worker)

    def _count_out(self, type_: str, number: int, size_bytes: int) -> None:
        if not number:
            return
        left = self._waits[type_] - number
        if left:
            self._waits[type_] = left
            self._wait_bytes[type_] -= size_bytes
        else:
            del self._waits[type_], self._wait_bytes[type_]

    # --- message groups ---

    def join_group(self, worker: Worker, job: Job) -> None:
        """Count a job of an ordered type in its message group, which is bound to the worker."""
        if job.user is None:
            return
        key = (job.type, job.user)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = MessageGroup(key)
        group.worker = worker
        group.inflight += 1
        job.group = group

    def leave_group(self, job: Job, *, first: bool = False) -> None:
        """Count a job out of its message group, if it has one; with the last one in flight the group is free again, and
        takes its turn in the queue, or is the `first` one."""
        group, job.group = job.group, None
        if group is None:
            return
        group.inflight -= 1
        if not group.inflight:
            self._unbind(group, first=first)

    def release_group(self, job: Job) -> None:
        """Free the message group of a job that its worker was to be given and will not be."""
        group = self.groups.get((job.type, job.user)) if job.user is not None else None
        if group is not None and group.worker is not None and not group.inflight:
            self._unbind(group, first=True)

    def _unbind(self, group: MessageGroup, *, first: bool) -> None:
        assert group.worker is not None
        group.worker.groups.pop(group, None)
        group.worker = None
        if not group.waiting:
            del self.groups[group.key]
            return
        self._put(group.key[0], group, first=first)
        self.requeued[group.key[0]] = None

    def bound_workers(self, jobs: Iterable[Job]) -> list[Worker]:
        """Return the workers to which the message groups of waiting jobs are bound: for each job its own, if any."""
        bound: list[Worker] = []
        for job in jobs if self.groups else ():
            group = self.groups.get((job.type, job.user)) if job.user is not None else None
            if group is not None and group.worker is not None:
                bound.append(group.worker)
        return bound

    def put_in_order(self, type_: str, served: frozenset[str]) -> None:
        """Make a type ordered from now on, and form message groups of its waiting jobs; `served` are types about to be
        served."""
        if type_ in self.ordered or (len(self.ordered) >= self._max_ordered and not self._forget_ordered(served)):
            return
        self.ordered[type_] = None
        if type_ not in self._waits:
            return
        suspects = self.suspects.take_all(type_)
        others = list(self.by_type.get(type_, ()))
        if others:
            self._drop_queue(type_)
        del self._waits[type_], self._wait_bytes[type_]  # `enqueue` counts them again
        for item in (*suspects, *others):  # no message groups yet
            assert type(item) is Job
            self.enqueue(item)

    def _forget_ordered(self, served: frozenset[str]) -> bool:
        """Forget the order of a type that nobody serves and of which nothing waits: a handler that names ever new types
        must not take the room of types that others serve. Returns whether such a type was found."""
        for _ in range(MAX_LOOKS):
            type_ = next(iter(self.ordered))
            del self.ordered[type_]
            if not (type_ in self._serving or type_ in served or type_ in self._waits):
                return True
            self.ordered[type_] = None
        return False

    # --- counts ---

    def count(self, type_: str) -> int:
        """Return how many messages of a type wait."""
        return self._waits.get(type_, 0)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return messages that wait, and their bytes, by type."""
        return {type_: (count, self._wait_bytes[type_]) for type_, count in self._waits.items()}

    @property
    def total(self) -> int:
        """Number of messages that wait."""
        return sum(self._waits.values())

    def by_sender(self) -> Counter[Hashable]:
        """Return how many messages of each sender wait, but for those that were requeued and for suspects. Counted at
        the call."""
        waiting: Counter[Hashable] = Counter()
        for (_, user), group in self.groups.items():
            waiting[user] += len(group.waiting)
        for type_, queue in self.by_type.items():
            ordered = type_ in self.ordered
            for sender, count in queue.counts():
                if not (ordered and isinstance(sender, str)):  # a user's messages of an ordered type are in a group
                    waiting[sender] += count
        return waiting

    def bound_reached(self, job: Job, most: int, most_bytes: int) -> str | None:
        """Return the name of the bound at which a job may not wait, None where it may: of `most` messages of its type
        its sender has as many as are left by all, so that one sender alone gets half of them, and no sender all; or all
        have `most_bytes` of the type."""
        waiting = self._waits.get(job.type, 0)
        if waiting and self._wait_bytes[job.type] + len(job.body) > most_bytes:
            return "max_waiting_bytes"
        return "max_waiting" if 2 * waiting >= most and waiting + self._waiting_like(job) >= most else None

    def _waiting_like(self, job: Job) -> int:
        """Return how many messages of a job's type and sender wait."""
        if job.type in self.ordered and job.user is not None:
            group = self.groups.get((job.type, job.user))
            return len(group.waiting) if group is not None else 0
        queue = self.by_type.get(job.type)
        return queue.count_of(sender_of(job)) if queue is not None else 0

    def front(self, type_: str) -> Front:
        """Return the messages of a type that are next: in its queue, and in the first message group of the type at each
        worker. Any of them that moves makes another tuple."""
        queue = self.by_type.get(type_)
        first: list[object] = [] if queue is None else [next(iter(queue))]
        if type_ in self.ordered:
            for pool in self._serving.get(type_, ()):
                for worker in pool.workers:
                    group = next((group for group in worker.groups if group.key[0] == type_), None)
                    if group is not None:
                        first.append(group.waiting[0])
        return tuple(first)

    def jobs(self) -> Iterator[Job]:
        """Yield the jobs in the queues; those of groups bound to workers are not in one."""
        queues: list[Iterable[QueueItem]] = [*self.by_type.values(), *self.suspects.queues()]
        for queue in queues:
            for item in queue:
                if isinstance(item, MessageGroup):
                    yield from item.waiting
                else:
                    yield item

    # --- overdue messages ---

    def types(self) -> list[str]:
        """Return the types with messages in a queue."""
        return [*self.by_type, *[type_ for type_ in self.suspects.types() if type_ not in self.by_type]]

    def overdue(self, type_: str, waits_since: Callable[[Job], float]) -> list[Job]:
        """Take out the jobs of a type that have waited since `waits_since(job)` or longer."""
        overdue: list[Job] = []
        queue = self.by_type.get(type_)
        if queue is not None:
            queue.sweep(lambda item: bool(self._overdue_of(item, waits_since, overdue)))
            if not queue:
                self._drop_queue(type_)
        for item in self.suspects.take_overdue(type_, lambda item: waits_since(oldest(item))):
            for rest in self._overdue_of(item, waits_since, overdue):
                self._put(type_, rest, first=False)
        self._count_out(type_, len(overdue), sum(len(job.body) for job in overdue))
        return overdue

    def _overdue_of(
        self, item: QueueItem, waits_since: Callable[[Job], float], overdue: list[Job]
    ) -> tuple[QueueItem, ...]:
        """Move an item's overdue jobs into `overdue`. Returns the rest of the item: the item itself, or nothing."""
        if type(item) is Job:
            if item.since > waits_since(item):
                return (item,)
            overdue.append(item)
            return ()
        assert isinstance(item, MessageGroup)
        overdue += item.overdue(waits_since)
        if item.waiting:
            return (item,)
        del self.groups[item.key]
        return ()

    def overdue_for(self, worker: Worker, waits_since: Callable[[Job], float]) -> list[Job]:
        """Take out the jobs of groups bound to a worker that have waited since `waits_since(job)` or longer."""
        overdue: list[Job] = []
        for group in list(worker.groups):
            late = group.overdue(waits_since)
            self._count_out(group.key[0], len(late), sum(len(job.body) for job in late))
            overdue += late
            if not group.waiting:
                del worker.groups[group]
        return overdue


def _bind(item: QueueItem, worker: Worker) -> Job:
    """Take the first job of an item that has left its queue; a message group is bound to the worker from now on."""
    if type(item) is Job:
        return item
    assert isinstance(item, MessageGroup)
    item.worker = worker
    job = item.waiting.popleft()
    if item.waiting:
        worker.groups[item] = None
    return job


def _next_group(worker: Worker) -> MessageGroup | None:
    """Return the next message group bound to a worker. A group that begins with a suspect waits until the worker holds
    none of the group's messages, and is free then."""
    types = worker.pool.types
    return next((group for group in worker.groups if group.key[0] in types and not group.suspected), None)
