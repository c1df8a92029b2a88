"""Isolation: workers that take no new messages for a while, since a suspect is to be alone with its handler.

A worker is isolated for a suspect of this broker, and paused while another broker has the exclusive use of the worker's
process. A worker that serves several brokers is asked for its exclusive use, and gets a suspect under its grant alone
(see `grants`).

    HEARTBEAT of    option           the grant is then    the worker is then
    broker          exclusive: N     asked                isolated, as before
    handler         exclusive: N     granted              not paused
    broker          exclusive: 0     none                 released
    handler         paused: N        as before            paused
    handler         paused: 0        as before            not paused
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from heapq import nsmallest
from typing import Literal

from bester.broker.core.grants import Grant, State
from bester.broker.core.jobs import Job
from bester.broker.core.pools import Availability, Pool, Worker
from bester.broker.core.type_queues import TypeQueues

ISOLATED_PART = 2
"""Part of a type's workers, one in so many but at least one, that is isolated at most: the others go on with new
messages."""
LONG_S = 1.0
"""Time that a message has been with a worker after which the worker may not be free soon, either."""
DRAIN_S = 10.0
"""Time for which the last worker of a type gets no new messages so that the worker becomes idle for a suspect, and then
gets new ones before the next try: new messages wait for less than their timeout, however long the worker is busy."""

Event = Literal["isolated", "released", "paused", "unpaused"]

# Transitions of a worker's availability. An event that is not listed for a state changes nothing. A worker that leaves
# is released, and a pause of it ends; that of a stuck worker goes on.
#
#   event      isolated   a suspect waits for the worker
#              released   no suspect waits for the worker, and the worker holds none
#              paused     the handler is in another broker's exclusive use
#              unpaused   the handler may be given messages again, or grants its exclusive use to this broker
TRANSITIONS: dict[tuple[Availability, Event], Availability] = {
    (Availability.OPEN, "isolated"): Availability.ISOLATED,
    (Availability.OPEN, "paused"): Availability.PAUSED,
    (Availability.ISOLATED, "released"): Availability.OPEN,
    (Availability.ISOLATED, "paused"): Availability.BOTH,
    (Availability.PAUSED, "isolated"): Availability.BOTH,
    (Availability.PAUSED, "unpaused"): Availability.OPEN,
    (Availability.BOTH, "released"): Availability.PAUSED,
    (Availability.BOTH, "unpaused"): Availability.ISOLATED,
}


class Isolation:
    """The `isolated` workers, and the pauses of others.

    `freed` are workers that may go on with message groups bound to them: the caller feeds them. `told` are workers
    whose grant has changed: the caller tells their handlers (`Grant.asked`).
    """

    def __init__(self, queues: TypeQueues) -> None:
        self._queues = queues
        self._suspects = queues.suspects
        self.isolated: dict[Worker, None] = {}
        self.freed: dict[Worker, None] = {}
        self.told: dict[Worker, None] = {}
        self._drained_since: dict[Worker, float] = {}  # last workers of a type, while suspects wait for them

    def _go(self, worker: Worker, event: Event) -> None:
        """Take in an event; a worker in its pool is shelved or taken off its shelf."""
        before = worker.availability
        after = TRANSITIONS.get((before, event))
        if after is None:
            return
        worker.availability = after
        if worker.leaving:
            return
        if before is Availability.OPEN:
            worker.pool.set_apart(worker)
        elif after is Availability.OPEN:
            worker.pool.reinstate(worker)
            self._queues.requeued.update(worker.pool.queued_types)
            if worker.groups:
                self.freed[worker] = None

    # --- for suspects ---

    def look(self, serving: Mapping[str, Sequence[Pool]], now: float) -> list[Worker]:
        """Isolate workers for the suspects that wait, and release those not needed any more; `serving` are the pools of
        each type. Returns the isolated workers; each first finishes its messages in flight."""
        if self._suspects:
            wanted = {
                worker: None
                for type_ in self._suspects.types()
                for worker in self._wanted(type_, serving.get(type_, ()), now)
            }
            for worker in wanted:
                self.isolate(worker)
            self._release(wanted)
        else:
            self._drained_since.clear()
            if self.isolated:
                self._release()
        return list(self.isolated)

    def isolate(self, worker: Worker) -> None:
        """Give a worker suspects alone, one at a time, once the worker holds nothing else."""
        self.isolated[worker] = None
        self._go(worker, "isolated")

    def _release(self, wanted: Container[Worker] = ()) -> None:
        """Release the isolated workers that neither hold a suspect nor are `wanted` for one."""
        for worker in [worker for worker in self.isolated if worker not in wanted and not holds_suspect(worker)]:
            del self.isolated[worker]
            self._end_grant(worker)
            self.forget_suspect(worker)
            self._go(worker, "released")

    def _wanted(self, type_: str, pools: Iterable[Pool], now: float) -> list[Worker]:
        """Return the workers to isolate for the suspects of a type: those that hold one already, or nothing; only where
        these are too few, workers with the least to finish first; of workers that serve several brokers the same ones
        at each broker, so that the others go on with new messages. The last worker of a type that has something to
        finish, here or for another broker, is isolated for `DRAIN_S` at a time."""
        workers = [worker for pool in pools for worker in pool.workers]
        count = min(self._suspects.count(type_), max(1, len(workers) // ISOLATED_PART))
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
        return (now - self._drained_since.setdefault(worker, now)) % (2 * DRAIN_S) < DRAIN_S

    def next_for(self, worker: Worker) -> Job | None:
        """Return the next suspect for a worker that takes no new messages, None where there is none for it now. A
        worker that is needed for no suspect is released, and so are those whose handlers have not granted their
        exclusive use: one of them is enough."""
        if worker not in self.isolated:
            return None
        suspect = self._next_suspect(worker)
        if suspect is None and worker.is_idle and not self._awaits_grant(worker):
            self._release([each for each in self.isolated if self._awaits_grant(each)])
        return suspect

    def _next_suspect(self, worker: Worker) -> Job | None:
        """Return the next suspect for an isolated worker, None where the worker has messages to finish first, here or
        for another broker."""
        grant = worker.grant
        if not worker.is_idle or (grant is not None and not self._is_granted(worker, grant)):
            return None
        job = self._queues.next_suspect(worker)
        if job is not None and grant is not None:
            grant.go("given")
            grant.suspect = job
        return job

    # --- exclusive use of a worker of several brokers ---

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
        if not worker.leaving or worker.stuck:
            self._go(worker, "paused")

    def unpause(self, worker: Worker) -> None:
        """Count on a paused worker again."""
        self._go(worker, "unpaused")

    def forget_suspect(self, worker: Worker, job: Job | None = None) -> None:
        """Let a death of the worker prove nothing any more, where `job` is given: over this job. Its handler may work
        on other brokers' messages, or has not begun the job."""
        if worker.grant is not None and (job is None or worker.grant.suspect is job):
            worker.grant.suspect = None

    # --- leaving ---

    def on_left(self, worker: Worker) -> None:
        """Take in that a worker has left its pool; the pause of a stuck one goes on."""
        self.freed.pop(worker, None)
        self.isolated.pop(worker, None)
        self._drained_since.pop(worker, None)
        self._end_grant(worker)
        self._go(worker, "released")
        if not worker.stuck:
            self._go(worker, "unpaused")


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
