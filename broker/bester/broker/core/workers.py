"""Workers: choose the handler process that gets a message, by credit, load and order.

A worker is one handler process; workers that serve exactly the same types form a pool, so that a choice costs the same
with one type or a thousand, one worker or a thousand. Messages for which no worker is free wait in `queues`; workers
that take no new messages for a while are those of `isolation`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import islice

from bester.broker.core.effects import Link
from bester.broker.core.grants import Grant
from bester.broker.core.inspection import WorkersState
from bester.broker.core.isolation import Isolation
from bester.broker.core.jobs import Job
from bester.broker.core.message_groups import sender_of
from bester.broker.core.pools import Pool, Worker
from bester.broker.core.type_queues import TypeQueues

HELD_OF_ONE = 64
"""Messages of one worker that `held` yields: of others, too, whatever the first one holds."""


class Workers:
    """All workers of a broker, and all messages that wait for one. At most `max_ordered` types may be ordered."""

    def __init__(self, max_ordered: int) -> None:
        self._pools: dict[frozenset[str], Pool] = {}
        self._serving: dict[str, list[Pool]] = {}
        self.queues = TypeQueues(self._serving, max_ordered)
        self.isolation = Isolation(self.queues)
        self._by_type, self._ordered, self._groups = self.queues.by_type, self.queues.ordered, self.queues.groups

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
        self, worker: Worker, types: frozenset[str], credit: int, ordered: frozenset[str], shared: str | None
    ) -> None:
        """Replace the options of a worker whose handler has sent HELLO again; messages in flight stay with the
        worker."""
        alone = worker in self.isolation.isolated and bool(worker.inflight)
        self.leave(worker)
        self.isolation.forget_suspect(worker)
        worker.leaving = False
        worker.credit, worker.free = credit, credit - len(worker.inflight)
        if worker.grant is None or worker.grant.name != shared:
            worker.grant = None if shared is None else Grant(shared)
        self._enlist(worker, types, ordered)
        if alone:
            self.isolation.isolate(worker)

    def _enlist(self, worker: Worker, types: frozenset[str], ordered: frozenset[str]) -> None:
        for type_ in ordered & types:
            self.queues.put_in_order(type_, types)
        pool = self._pools.get(types)
        if pool is None:
            pool = self._pools[types] = Pool(types)
            pool.queued_types = {type_: None for type_ in self._by_type if type_ in types}
            for type_ in types:
                self._serving.setdefault(type_, []).append(pool)
        pool.add(worker)

    def leave(self, worker: Worker) -> None:
        """Give a worker no new messages; those in flight stay its own."""
        if not worker.leaving:
            self._leave_pool(worker)
        worker.stuck = False  # a leaving worker does not resume
        self.isolation.on_left(worker)

    def _leave_pool(self, worker: Worker) -> None:
        worker.leaving = True
        pool = worker.pool
        pool.remove(worker)
        if not pool.workers:
            del self._pools[pool.types]
            for type_ in pool.types:
                self._serving[type_].remove(pool)
                if not self._serving[type_]:
                    del self._serving[type_]

    def suspend(self, worker: Worker) -> None:
        """Pass over a worker that holds nothing but settled messages; message groups bound to the worker are free
        again. A pause goes on."""
        if not worker.leaving:
            self._leave_pool(worker)
        worker.stuck = True
        self.isolation.on_left(worker)
        self.isolation.forget_suspect(worker)
        for job in worker.inflight.values():
            self.queues.leave_group(job, first=True)

    def resume(self, worker: Worker) -> None:
        """Count on a suspended worker again."""
        worker.stuck = worker.leaving = False
        self._enlist(worker, worker.pool.types, frozenset())

    def lose(self, worker: Worker) -> list[Job]:
        """Remove a dead worker: return its messages in flight, oldest first; message groups bound to the worker are
        free again."""
        self.leave(worker)
        self.isolation.told.pop(worker, None)
        lost = list(worker.inflight.values())
        worker.inflight.clear()
        for job in lost:
            if job.group is not None:
                self.queues.leave_group(job, first=True)
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
        if type_ in self._by_type:
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
                self.queues.join_group(worker, job)

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
        self.queues.leave_group(job)
        return job

    # --- next messages ---

    def isolate(self, now: float) -> list[Worker]:
        """Isolate workers for the suspects that wait, and release those not needed any more. Returns the isolated
        workers; each first finishes its messages in flight."""
        return self.isolation.look(self._serving, now)

    def next_for(self, worker: Worker) -> Job | None:
        """Return the next waiting job for this worker, None where the worker is full or no job waits for it."""
        if worker.free <= 0 or worker.leaving:
            return None
        if worker.is_apart:
            suspect = self.isolation.next_for(worker)
            if suspect is not None or worker.is_apart:
                return suspect
        return self.queues.next_in_turn(worker)

    def next_run(self, worker: Worker, most: int) -> list[Job]:
        """Return the next waiting jobs for this worker, of one type, as many as there is credit for, and at most
        `most`; none where the worker is full or no job waits for it. A single job where queues take turns, or a job
        changes which is next."""
        job = self.next_for(worker)
        if job is None:
            return []
        return [job, *self.queues.more_like(job, worker, min(worker.free, most) - 1)]

    # --- looks ---

    def count_inflight(self) -> int:
        """Return how many messages are at workers."""
        return sum(len(worker.inflight) for pool in self._pools.values() for worker in pool.workers)

    def held(self) -> Iterator[tuple[str, Hashable]]:
        """Yield type and sender of some messages that each worker holds."""
        for pool in self._pools.values():
            for worker in pool.workers:
                for job in islice(worker.inflight.values(), HELD_OF_ONE):
                    yield job.type, sender_of(job)

    def jobs(self, workers: Iterable[Worker]) -> Iterator[Job]:
        """Yield the jobs in flight at these workers, and those that wait."""
        for worker in workers:
            yield from worker.inflight.values()
        yield from self.waiting(workers)

    def waiting(self, workers: Iterable[Worker]) -> Iterator[Job]:
        """Yield the jobs that wait, also in the groups bound to these workers."""
        for worker in workers:
            for bound in worker.groups:
                yield from bound.waiting
        yield from self.queues.jobs()

    def by_type(self, workers: Iterable[Worker]) -> tuple[dict[str, int], dict[str, int]]:
        """Return the messages that wait, and those in flight at these workers which are not over, by type."""
        held = (job for worker in workers for job in worker.inflight.values())
        waiting = {type_: count for type_, (count, _) in self.queues.counts().items()}
        return waiting, dict(Counter(job.type for job in held if not job.is_settled))

    def inspect(self, workers: Iterable[Worker]) -> WorkersState:
        """Return counts of waiting messages, and of those in flight at these workers: the workers that have joined and
        are not lost."""
        waiting, inflight = self.by_type(workers)
        return WorkersState(
            waiting=waiting,
            inflight=inflight,
            queues=len(self._by_type),
            groups=len(self._groups),
            suspects=len(self.queues.suspects.types()),
            isolated=len(self.isolation.isolated),
            unshared=len(self.queues.requeued),
        )
