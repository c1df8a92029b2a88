"""Workers: choose the handler process that gets a message, by credit, load and order, and queue messages until one is
free.

A worker is one handler process; workers that serve exactly the same types form a pool, so that a choice costs the same
with one type or a thousand, one worker or a thousand. Messages wait in one queue a type, in which senders take turns;
of an ordered type each user's messages form a message group. Messages over which a worker may have died (suspects)
wait apart, for isolated workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Sequence
from itertools import islice

from bester.broker.core.effects import Link
from bester.broker.core.fair_queue import FairQueue
from bester.broker.core.grants import Grant, State
from bester.broker.core.inspection import WorkersState
from bester.broker.core.jobs import Job
from bester.broker.core.message_groups import MessageGroup, QueueItem, oldest, sender_of
from bester.broker.core.pools import Pool, Worker
from bester.broker.core.stuck_types import Front
from bester.broker.core.suspects import Suspects, holds_suspect

HELD_OF_ONE = 64
"""Messages of one worker that `held` yields: of others, too, whatever the first one holds."""
MOST_EMPTY = 64
"""Empty queues that are kept, for they know who has had more than others. Where messages come in batches, a queue is
empty and full again in a moment."""
MOST_REMEMBERED = 1024
"""Senders that a queue may remember to be kept. Memory."""
MAX_LOOKS = 16
"""Ordered types that are looked at to find one to forget: many messages of one batch may ask for that."""


class Workers:
    """All workers of a broker, and all messages that wait for one. At most `max_ordered` types may be ordered.

    `requeued` names the types with requeued messages that a free worker may take: the caller assigns them. `freed` are
    workers that may go on with message groups bound to them, and are to be fed. `told` are workers whose grant has
    changed: the caller tells their handlers (`Grant.asked`).
    """

    def __init__(self, max_ordered: int) -> None:
        self._max_ordered = max_ordered
        self._pools: dict[frozenset[str], Pool] = {}
        self._serving: dict[str, list[Pool]] = {}
        self._queues: dict[str, FairQueue[QueueItem]] = {}
        self._empty: dict[str, FairQueue[QueueItem]] = {}  # queues without items, the latest at the end
        self._waits: dict[str, int] = {}
        self._wait_bytes: dict[str, int] = {}
        self._ordered: dict[str, None] = {}  # types, the one looked at last at the end
        self._groups: dict[tuple[str, str], MessageGroup] = {}
        self._suspects = Suspects()
        self.requeued: dict[str, None] = {}
        self.freed: dict[Worker, None] = {}
        self.told: dict[Worker, None] = {}

    # --- joining and leaving ---

    def join(
        self, link: Link, types: frozenset[str], credit: int, ordered: frozenset[str], shared: str | None = None
    ) -> Worker:
        """Add the worker of a handler that has sent HELLO. `shared` is its name at all its brokers, where it has
        several."""
        worker = Worker(link, credit)
        worker.grant = None if shared is None else Grant(shared)
        self._enlist(worker, types, ordered)
        return worker

    def rejoin(
        self, worker: Worker, types: frozenset[str], credit: int, ordered: frozenset[str], shared: str | None = None
    ) -> None:
        """Replace the options of a worker whose handler has sent HELLO again; messages in flight stay with the
        worker."""
        alone = worker in self._suspects.isolated and bool(worker.inflight)
        self.leave(worker)
        self._forget_suspect(worker)
        worker.leaving = False
        worker.credit, worker.free = credit, credit - len(worker.inflight)
        if worker.grant is None or worker.grant.name != shared:
            worker.grant = None if shared is None else Grant(shared)
        self._enlist(worker, types, ordered)
        if alone:
            self._isolate(worker)

    def _enlist(self, worker: Worker, types: frozenset[str], ordered: frozenset[str]) -> None:
        for type_ in ordered & types:
            self._put_in_order(type_, types)
        pool = self._pools.get(types)
        if pool is None:
            pool = self._pools[types] = Pool(types)
            pool.queued_types = {type_: None for type_ in self._queues if type_ in types}
            for type_ in types:
                self._serving.setdefault(type_, []).append(pool)
        pool.add(worker)

    def leave(self, worker: Worker) -> None:
        """Give a worker no new messages; those in flight stay its own."""
        if worker.leaving:
            worker.stuck = False  # a leaving worker does not resume
            return
        worker.leaving = True
        pool = worker.pool
        pool.remove(worker)
        worker.is_isolated = worker.is_paused = False
        self._end_grant(worker)
        self._suspects.isolated.pop(worker, None)
        self._suspects.drained_since.pop(worker, None)
        self.freed.pop(worker, None)
        if not pool.workers:
            del self._pools[pool.types]
            for type_ in pool.types:
                self._serving[type_].remove(pool)
                if not self._serving[type_]:
                    del self._serving[type_]

    def suspend(self, worker: Worker) -> None:
        """Pass over a worker that holds nothing but settled messages; message groups bound to the worker are free
        again. A pause goes on."""
        is_paused = worker.is_paused
        self.leave(worker)
        self._forget_suspect(worker)
        worker.stuck, worker.is_paused = True, is_paused
        for job in worker.inflight.values():
            self._leave_group(job, first=True)

    def resume(self, worker: Worker) -> None:
        """Count on a suspended worker again."""
        worker.stuck = worker.leaving = False
        self._enlist(worker, worker.pool.types, frozenset())
        if worker.is_paused:
            worker.pool.isolate(worker)

    def lose(self, worker: Worker) -> list[Job]:
        """Remove a dead worker: return its messages in flight, oldest first; message groups bound to the worker are
        free again."""
        self.leave(worker)
        self.told.pop(worker, None)
        lost = list(worker.inflight.values())
        worker.inflight.clear()
        for job in lost:
            self._leave_group(job, first=True)
        return lost

    def serves(self, type_: str) -> bool:
        """Return whether any worker serves the type."""
        return type_ in self._serving

    # --- assigning and completing ---

    def choose(self, job: Job) -> Worker | None:
        """Return the worker for a new job; None: the job must wait."""
        type_ = job.type
        if type_ in self._ordered and job.user is not None:
            group = self._groups.get((type_, job.user))
            if group is not None:
                worker = group.worker
                return worker if worker is not None and not group.waiting and worker.takes(type_) else None
        if type_ in self._queues:
            return None
        return self.idle(type_)

    def room(self, worker: Worker, type_: str) -> int:
        """Return how many jobs of a type running, from the one for which the worker was just chosen on, are for the
        same worker."""
        if type_ in self._ordered or len(self._serving[type_]) > 1:
            return 1
        return worker.pool.room(worker)

    def idle(self, type_: str) -> Worker | None:
        """Return the worker of the type with most free credit; None: there is none, or all are full."""
        pools = self._serving.get(type_)
        if pools is None:
            return None
        if len(pools) == 1:
            return pools[0].best()
        candidates = [worker for pool in pools if (worker := pool.best()) is not None]
        return max(candidates, key=lambda worker: worker.free, default=None)

    def assign(self, worker: Worker, jobs: Sequence[Job]) -> None:
        """Take the credit for a run of jobs of one type that are in flight at a worker now."""
        worker.pool.change(worker, -len(jobs))
        if self._ordered and jobs[0].type in self._ordered:
            for job in jobs:
                self._join_group(worker, job)

    def _join_group(self, worker: Worker, job: Job) -> None:
        """Count a job of an ordered type in its message group, which is bound to the worker."""
        if job.user is None:
            return
        key = (job.type, job.user)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = MessageGroup(key)
        group.worker = worker
        group.inflight += 1
        job.group = group

    def free(self, worker: Worker, answered: int) -> None:
        """Give a worker credit for jobs that it has answered, and that are in flight no more."""
        if worker.leaving:
            worker.free += answered
        else:
            worker.pool.change(worker, answered)

    def complete(self, worker: Worker, token: int) -> Job | None:
        """Count a job as done; None: the worker was never given that token."""
        job = worker.inflight.pop(token, None)
        if job is None:
            return None
        self.free(worker, 1)
        self.leave_group(job)
        return job

    def leave_group(self, job: Job) -> None:
        """Count a job that is done out of its message group, if it has one."""
        if job.group is not None:
            self._leave_group(job, first=False)

    def release_group(self, job: Job) -> None:
        """Free the message group of a job that its worker was to be given and will not be."""
        group = self._groups.get((job.type, job.user)) if job.user is not None else None
        if group is not None and group.worker is not None and not group.inflight:
            self._unbind(group, first=True)

    def _leave_group(self, job: Job, *, first: bool) -> None:
        """Count a job out of its message group; with the last one in flight the group is free again, and takes its turn
        in the queue."""
        group, job.group = job.group, None
        if group is None:
            return
        group.inflight -= 1
        if not group.inflight:
            self._unbind(group, first=first)

    def _unbind(self, group: MessageGroup, *, first: bool) -> None:
        assert group.worker is not None
        group.worker.groups.pop(group, None)
        group.worker = None
        if not group.waiting:
            del self._groups[group.key]
            return
        self._put(group.key[0], group, first=first)
        self.requeued[group.key[0]] = None

    def _put(self, type_: str, item: QueueItem, *, first: bool) -> None:
        """Put an item into the queue of its type or of its suspects, at the end or in front."""
        if item.suspected:
            self._suspects.put(type_, item, oldest(item).since, first=first)
            return
        queue = self._queue(type_)
        if first:
            queue.appendleft(item)
        else:
            queue.append(item)

    # --- waiting ---

    def enqueue(self, job: Job, *, first: bool = False) -> None:
        """Queue a job; `first`: before all others of its type (it had its turn, and its worker died)."""
        type_ = job.type
        self._waits[type_] = self._waits.get(type_, 0) + 1
        self._wait_bytes[type_] = self._wait_bytes.get(type_, 0) + len(job.body)
        if first:
            self.requeued[type_] = None
        item: QueueItem = job
        if type_ in self._ordered and job.user is not None:
            group = self._groups.get((type_, job.user))
            if group is not None:
                stands_as = group.suspected if group.worker is None else job.suspected
                group.enqueue(job, first=first)
                if group.worker is None and group.suspected != stands_as:
                    self._move(group)
                return
            item = self._groups[type_, job.user] = MessageGroup((type_, job.user))
            item.waiting.append(job)
        self._put(type_, item, first=first)

    def _move(self, group: MessageGroup) -> None:
        """Move a message group, which has got another first message, between the queue and the suspects; the group
        stands at the head of the wrong one."""
        type_ = group.key[0]
        if group.suspected:
            self._queues[type_].remove(group)
            if not self._queues[type_]:
                self._drop_queue(type_)
        else:
            self._suspects.remove(type_, group)
        self._put(type_, group, first=True)

    # --- suspects ---

    def isolate(self, now: float) -> list[Worker]:
        """Isolate workers for the suspects that wait, and release those not needed any more. Returns the isolated
        workers; each first finishes its messages in flight."""
        suspects = self._suspects
        if suspects:
            wanted = {
                worker: None
                for type_ in suspects.types()
                for worker in suspects.wanted(type_, self._serving.get(type_, ()), now)
            }
            for worker in wanted:
                if worker not in suspects.isolated:
                    self._isolate(worker)
            self._release(wanted)
        else:
            suspects.drained_since.clear()
            if suspects.isolated:
                self._release()
        return list(suspects.isolated)

    def clear(self) -> None:
        """Requeue jobs that are cleared of suspicion, at the head."""
        for type_, items in self._suspects.cleared():
            self._queue(type_).extendleft(reversed(items))
            self.requeued[type_] = None

    def _isolate(self, worker: Worker) -> None:
        if not worker.is_isolated:
            worker.pool.isolate(worker)
        self._suspects.isolated[worker] = None

    def _release(self, wanted: Container[Worker] = ()) -> None:
        """Release the isolated workers that neither hold a suspect nor are `wanted` for one."""
        for worker in [
            worker for worker in self._suspects.isolated if worker not in wanted and not holds_suspect(worker)
        ]:
            del self._suspects.isolated[worker]
            self._end_grant(worker)
            self._forget_suspect(worker)
            if not worker.is_paused:
                self._reinstate(worker)

    def _reinstate(self, worker: Worker) -> None:
        """Let a worker take new messages again, and those of its message groups."""
        worker.pool.reinstate(worker)
        self.requeued.update(worker.pool.queued_types)
        if worker.groups:
            self.freed[worker] = None

    def _next_suspect(self, worker: Worker) -> Job | None:
        """Return the next suspect for an isolated worker, None where the worker has messages to finish first, here or
        for another broker."""
        grant = worker.grant
        if not worker.is_idle or (grant is not None and not self._is_granted(worker, grant)):
            return None
        item = self._suspects.next_for(worker)
        if item is None:
            return None
        job = self._bind(item, worker)
        self._count_out(job.type, 1, len(job.body))
        if grant is not None:
            grant.go("given")
            grant.suspect = job
        return job

    # --- workers of several brokers ---

    def _is_granted(self, worker: Worker, grant: Grant) -> bool:
        """Return whether an idle worker may be given a suspect; ask its handler, where one waits."""
        if grant.state is State.GRANTED:
            return True
        if self._suspects.waits_for(worker) is not None and grant.go("wanted"):
            grant.suspect = None
            self.told[worker] = None
        return False

    def _awaits_grant(self, worker: Worker) -> bool:
        """Return whether a suspect waits for the worker's grant."""
        return worker.grant is not None and worker.grant.is_asked and self._suspects.waits_for(worker) is not None

    def _end_grant(self, worker: Worker) -> None:
        if worker.grant is not None and worker.grant.go("released"):
            self.told[worker] = None

    def grant(self, worker: Worker, number: int) -> None:
        """Take in that a handler grants its exclusive use, under the number of the question. A grant ends a pause, also
        one that comes too late: the handler counts on that."""
        self.unpause(worker)
        if worker.grant is not None and worker.grant.asked == number:
            worker.grant.go("granted")

    def pause(self, worker: Worker) -> None:
        """Give nothing to a worker that is in another broker's exclusive use."""
        if worker.is_paused or (worker.leaving and not worker.stuck):
            return
        worker.is_paused = True
        if not worker.leaving and not worker.is_isolated:
            worker.pool.isolate(worker)

    def unpause(self, worker: Worker) -> None:
        """Count on a paused worker again."""
        if worker.is_paused:
            worker.is_paused = False
            if not worker.leaving and worker not in self._suspects.isolated:
                self._reinstate(worker)

    def _forget_suspect(self, worker: Worker) -> None:
        """Let a death of the worker prove nothing any more: its handler may work on other brokers' messages."""
        if worker.grant is not None:
            worker.grant.suspect = None

    def take_back(self, worker: Worker, job: Job) -> None:
        """Count a job that its worker has not begun out of its message group; the caller requeues the job."""
        if worker.grant is not None and worker.grant.suspect is job:
            worker.grant.suspect = None
        self._leave_group(job, first=True)

    def _bind(self, item: QueueItem, worker: Worker) -> Job:
        """Take the first job of an item that has left its queue; a message group is bound to the worker from now on."""
        if type(item) is Job:
            return item
        assert isinstance(item, MessageGroup)
        item.worker = worker
        job = item.waiting.popleft()
        if item.waiting:
            worker.groups[item] = None
        return job

    # --- next messages ---

    def bound_worker(self, job: Job) -> Worker | None:
        """Return the worker to which the message group of a waiting job is bound, if any."""
        group = self._groups.get((job.type, job.user)) if job.user is not None else None
        return group.worker if group is not None else None

    def _queue(self, type_: str) -> FairQueue[QueueItem]:
        queue = self._queues.get(type_)
        if queue is None:
            kept = self._empty.pop(type_, None)
            queue = self._queues[type_] = FairQueue(sender_of) if kept is None else kept
            for pool in self._serving.get(type_, ()):
                pool.queued_types[type_] = None
        return queue

    def _drop_queue(self, type_: str) -> None:
        queue = self._queues.pop(type_)
        for pool in self._serving.get(type_, ()):
            del pool.queued_types[type_]
        if not queue and queue.remembered <= MOST_REMEMBERED:
            self._empty[type_] = queue
            if len(self._empty) > MOST_EMPTY:
                del self._empty[next(iter(self._empty))]

    def _put_in_order(self, type_: str, served: frozenset[str]) -> None:
        """Make a type ordered from now on, and form message groups of its waiting jobs."""
        if type_ in self._ordered or (len(self._ordered) >= self._max_ordered and not self._forget_ordered(served)):
            return
        self._ordered[type_] = None
        if type_ not in self._waits:
            return
        suspects = self._suspects.take_all(type_)
        others = list(self._queues.get(type_, ()))
        if others:
            self._drop_queue(type_)
        del self._waits[type_]
        for item in (*suspects, *others):  # no message groups yet
            assert type(item) is Job
            self.enqueue(item)

    def _forget_ordered(self, served: frozenset[str]) -> bool:
        """Forget the order of a type that nobody serves and of which nothing waits: a handler that names ever new types
        must not take the room of types that others serve. `served` are types about to be served. Returns whether such a
        type was found."""
        for _ in range(MAX_LOOKS):
            type_ = next(iter(self._ordered))
            del self._ordered[type_]
            if not (type_ in self._serving or type_ in served or type_ in self._waits):
                return True
            self._ordered[type_] = None
        return False

    def queued_count(self, type_: str) -> int:
        """Return how many messages of a type wait."""
        return self._waits.get(type_, 0)

    def count_inflight(self) -> int:
        """Return how many messages are at workers."""
        return sum(len(worker.inflight) for pool in self._pools.values() for worker in pool.workers)

    def waiting_by_type(self) -> dict[str, tuple[int, int]]:
        """Return messages that wait, and their bytes, by type."""
        return {type_: (count, self._wait_bytes[type_]) for type_, count in self._waits.items()}

    def waiting_by_sender(self) -> Counter[Hashable]:
        """Return how many messages of each sender wait, but for those that were requeued and for suspects. Counted at
        the call."""
        waiting: Counter[Hashable] = Counter()
        for (_, user), group in self._groups.items():
            waiting[user] += len(group.waiting)
        for type_, queue in self._queues.items():
            ordered = type_ in self._ordered
            for sender, count in queue.counts():
                if not (ordered and isinstance(sender, str)):  # a user's messages of an ordered type are in a group
                    waiting[sender] += count
        return waiting

    def held(self) -> Iterator[tuple[str, Hashable]]:
        """Yield type and sender of some messages that each worker holds."""
        for pool in self._pools.values():
            for worker in pool.workers:
                for job in islice(worker.inflight.values(), HELD_OF_ONE):
                    yield job.type, sender_of(job)

    def front(self, type_: str) -> Front:
        """Return the messages of a type that are next: in its queue, and in the first message group of the type at each
        worker. Any of them that moves makes another tuple."""
        queue = self._queues.get(type_)
        first: list[object] = [] if queue is None else [next(iter(queue))]
        if type_ in self._ordered:
            for pool in self._serving.get(type_, ()):
                for worker in pool.workers:
                    group = next((group for group in worker.groups if group.key[0] == type_), None)
                    if group is not None:
                        first.append(group.waiting[0])
        return tuple(first)

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
        if job.type in self._ordered and job.user is not None:
            group = self._groups.get((job.type, job.user))
            return len(group.waiting) if group is not None else 0
        queue = self._queues.get(job.type)
        return queue.count_of(sender_of(job)) if queue is not None else 0

    def has_queue(self, type_: str) -> bool:
        """Return whether messages of the type wait for any free worker."""
        return type_ in self._queues

    @property
    def waiting(self) -> int:
        """Number of messages that wait."""
        return sum(self._waits.values())

    def inspect(self, workers: Iterable[Worker]) -> WorkersState:
        """Return counts of waiting messages, and of those in flight at these workers: the workers that have joined and
        are not lost."""
        held = (job for worker in workers for job in worker.inflight.values())
        return WorkersState(
            waiting=dict(self._waits),
            inflight=dict(Counter(job.type for job in held if not job.is_settled)),
            queues=len(self._queues),
            groups=len(self._groups),
            suspects=len(self._suspects.types()),
            isolated=len(self._suspects.isolated),
            unshared=len(self.requeued),
        )

    def jobs(self, workers: Iterable[Worker]) -> Iterator[Job]:
        """Yield the jobs in flight at these workers, and those that wait."""
        for worker in workers:
            yield from worker.inflight.values()
            for bound in worker.groups:
                yield from bound.waiting
        queues: list[Iterable[QueueItem]] = [*self._queues.values(), *self._suspects.queues()]
        for queue in queues:
            for item in queue:
                if isinstance(item, MessageGroup):
                    yield from item.waiting
                else:
                    yield item

    def next_for(self, worker: Worker) -> Job | None:
        """Return the next waiting job for this worker, None where the worker is full or no job waits for it.

        Message groups bound to the worker and the queues take turns, and so do the groups and the queues among
        themselves, so that none starves the others.
        """
        if worker.free <= 0 or worker.leaving:
            return None
        if worker.is_isolated:
            if worker in self._suspects.isolated:
                suspect = self._next_suspect(worker)
                if suspect is not None or not worker.is_idle or self._awaits_grant(worker):
                    return suspect
                self._release([each for each in self._suspects.isolated if self._awaits_grant(each)])
            if worker.is_isolated:
                return None
        types = worker.pool.queued_types
        groups = worker.groups
        group = self._next_group(worker) if groups else None
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

    def next_run(self, worker: Worker, most: int) -> list[Job]:
        """Return the next waiting jobs for this worker, of one type, as many as there is credit for, and at most
        `most`; none where the worker is full or no job waits for it. A single job where queues take turns, or a job
        changes which is next."""
        job = self.next_for(worker)
        if job is None:
            return []
        queue, room = self._queues.get(job.type), min(worker.free, most) - 1
        if (
            queue is None or not room or worker.groups or worker.is_isolated or job.type in self._ordered
            or len(worker.pool.queued_types) > 1
        ):  # fmt: skip
            return [job]
        run = [job]
        for item in queue.take(room):
            assert type(item) is Job  # there are message groups of ordered types alone
            run.append(item)
        if not queue:
            self._drop_queue(job.type)
        self._count_out(job.type, len(run) - 1, sum([len(each.body) for each in run]) - len(job.body))
        return run

    def _next_group(self, worker: Worker) -> MessageGroup | None:
        """Return the next message group bound to a worker. A group that begins with a suspect waits until the worker
        holds none of the group's messages, and is free then."""
        types = worker.pool.types
        return next((group for group in worker.groups if group.key[0] in types and not group.suspected), None)

    def _pop(self, type_: str, worker: Worker) -> Job:
        queue = self._queues[type_]
        item = queue.popleft()
        if queue:  # the type goes behind the other types
            types = worker.pool.queued_types
            types[type_] = types.pop(type_)
        else:
            self._drop_queue(type_)
        return self._bind(item, worker)

    def _count_out(self, type_: str, number: int, size_bytes: int) -> None:
        left = self._waits[type_] - number
        if left:
            self._waits[type_] = left
            self._wait_bytes[type_] -= size_bytes
        else:
            del self._waits[type_], self._wait_bytes[type_]

    # --- overdue messages ---

    def waiting_types(self) -> list[str]:
        """Return the types with waiting messages."""
        return [*self._queues, *[type_ for type_ in self._suspects.types() if type_ not in self._queues]]

    def overdue(self, type_: str, waits_since: Callable[[Job], float]) -> list[Job]:
        """Take out the jobs of a type that have waited since `waits_since(job)` or longer."""
        overdue: list[Job] = []
        queue = self._queues.get(type_)
        if queue is not None:
            queue.sweep(lambda item: bool(self._overdue_of(item, waits_since, overdue)))
            if not queue:
                self._drop_queue(type_)
        for item in self._suspects.take_overdue(type_, lambda item: waits_since(oldest(item))):
            for rest in self._overdue_of(item, waits_since, overdue):
                self._put(type_, rest, first=False)
        if overdue:
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
        del self._groups[item.key]
        return ()

    def overdue_for(self, worker: Worker, waits_since: Callable[[Job], float]) -> list[Job]:
        """Take out the jobs of groups bound to a worker that have waited since `waits_since(job)` or longer."""
        overdue: list[Job] = []
        for group in list(worker.groups):
            late = group.overdue(waits_since)
            if late:
                self._count_out(group.key[0], len(late), sum(len(job.body) for job in late))
                overdue += late
            if not group.waiting:
                del worker.groups[group]
        return overdue
