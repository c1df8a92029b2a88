"""Messages that have waited, or were worked on, for too long: which they are, and why each one ends."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial

from bester.broker.core.dead_letters import DeadLetters
from bester.broker.core.jobs import Job
from bester.broker.core.known_types import KnownTypes
from bester.broker.core.pools import Worker
from bester.broker.core.settings import Settings
from bester.broker.core.timeouts import Timeouts
from bester.broker.core.trace import Trace
from bester.broker.core.workers import Workers


class Overdue:
    """The clock of all messages that a broker holds for handlers."""

    def __init__(
        self, settings: Settings, workers: Workers, timeouts: Timeouts, known_types: KnownTypes,
        dead_letters: DeadLetters, trace: Trace,
    ) -> None:  # fmt: skip
        self._limits = settings.limits
        self._workers, self._queues = workers, workers.queues
        self._timeouts = timeouts
        self._known_types = known_types
        self._dead_letters = dead_letters
        self._trace = trace

    def take(self, workers: Sequence[Worker], now: float, *, ending: bool) -> Iterator[tuple[Job, str]]:
        """Take out the messages whose time is over; yield each with its code. The caller ends the message before it
        asks for the next one. `ending`: the broker ends, and nobody will serve the types of stuck workers any more."""
        hopeless = {type_ for each in workers if each.stuck for type_ in each.pool.types} if ending else ()
        waits_since = partial(self._waits_since, now, hopeless)
        for type_ in self._queues.types():
            yield from self._waited(self._queues.overdue(type_, waits_since), now)
        for worker in workers:
            if worker.groups:
                yield from self._waited(self._queues.overdue_for(worker, waits_since), now)
            yield from self._late(worker, now)

    def _waits_since(self, now: float, hopeless: Collection[str], job: Job) -> float:
        """Return the time since which a message must have waited to be given up now."""
        limits, type_ = self._limits, job.type
        # A handler died over a job that was begun: wait longer, until a worker is restarted.
        begun = job.attempt > job.attempts_before
        if not self._workers.serves(type_):
            without_s = limits.handler_again_s if begun else limits.handler_wait_s
            if type_ in hopeless:
                without_s = 0.0
            if self._known_types.unserved_since(type_) <= now - without_s:
                return now - without_s
        return now - (limits.suspect_s if begun else limits.request_s)

    def _waited(self, jobs: Iterable[Job], now: float) -> Iterator[tuple[Job, str]]:
        """Yield messages that have waited too long."""
        for job in jobs:
            if job.is_settled:  # another broker has answered it
                continue
            code = self._why_waited(job, now)
            if code == "handler-lost":
                self._dead_letters.bury(job, code, now)
            else:
                self._trace.add((now, job.root, job.id, code, job.type, job.since))
            yield job, code

    def _why_waited(self, job: Job, now: float) -> str:
        if job.case.expires is not None and now >= job.case.expires:
            return "expired"
        if job.attempt > job.attempts_before:
            return "handler-lost"
        return "overloaded" if self._workers.serves(job.type) else "no-handler"

    def _late(self, worker: Worker, now: float) -> Iterator[tuple[Job, str]]:
        """Yield messages that a worker was given too long ago, but for those that another broker has answered. All of
        them occupy its credit until they are answered, but no memory."""
        timeouts = self._timeouts
        usual_s, configured, shortest_s = timeouts.usual_s(worker.lease_s), timeouts.configured, timeouts.shortest_s
        for job in worker.inflight.values():
            if job.since > now - shortest_s:
                break
            is_answered = job.is_settled and job in worker.answered
            if (job.is_settled and not is_answered) or job.since > now - configured.get(job.type, usual_s):
                continue
            if is_answered:
                worker.answered.remove(job)
            else:
                self._dead_letters.bury(job, "timeout", now)
                yield job, "timeout"
            job.body = b""
            worker.overdue += 1
