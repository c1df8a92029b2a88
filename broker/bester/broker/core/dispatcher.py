"""The way of a message to its handler: enter → dispatch → assign, and its end: settle.

`replies` takes in what the handler answers; `commands` begins the results that the answer asks for, and counts them on
the message's case; here every ending of a job settles one count, as `delivery_outcomes` and others do of their results;
the last one sends the report. The router checks roles, and `peers` who is alive; `worker_changes` requeues the jobs of
a worker that is lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from bester.broker.core.cases import Case, Kind, Reports
from bester.broker.core.contracts import Contracts
from bester.broker.core.effects import Effects, NoticeEvent
from bester.broker.core.figures import OTHERS, Figures, TypeFigures
from bester.broker.core.inspection import Bound
from bester.broker.core.jobs import Job
from bester.broker.core.known_types import KnownTypes
from bester.broker.core.overdue import Overdue
from bester.broker.core.pools import Worker
from bester.broker.core.settings import Settings
from bester.broker.core.timeouts import Timeouts
from bester.broker.core.trace import HANDLER, Trace, shortened
from bester.broker.core.workers import Workers
from bester.broker.wire.messages import (
    HOP_LIMIT,
    Heartbeat,
)
from bester.broker.wire.outcomes import failed, reason_of

MAX_FED = 512
"""Waiting messages that a worker is assigned at once, some 10 ms: a worker may have credit for 65,536."""
_REPLAY = Kind.REPLAY  # a member costs a call where it is looked up in its class


class Dispatcher:
    """All messages that a broker holds for handlers. `first_token` is where this life's tokens begin."""

    def __init__(
        self, settings: Settings, out: Effects, *, figures: Figures, workers: Workers, timeouts: Timeouts,
        overdue: Overdue, contracts: Contracts, known_types: KnownTypes, reports: Reports, trace: Trace,
        first_token: int,
    ) -> None:  # fmt: skip
        self._figures = figures
        self._types = figures.types
        self.ending = False
        """The broker ends: nothing enters any more, and nothing waits for an answer that will not come."""
        self._limits = settings.limits
        self._out = out
        self._workers, self._queues, isolation = workers, workers.queues, workers.isolation
        self._requeued, self._freed, self._told = self._queues.requeued, isolation.freed, isolation.told
        self._timeouts = timeouts
        self._overdue = overdue
        self._contracts = contracts
        self._faults = contracts.by_type
        self._known_types = known_types
        self._timed = bool(timeouts.configured)
        self._reports = reports
        self._trace = trace
        self._hungry: dict[Worker, None] = {}  # with credit, perhaps, for more than they were assigned at once
        self._answered_waiting = False  # whether another broker has ever answered a message that waited here
        self._held = 0
        self._held_bytes = 0
        self._token = first_token

    def bounds(self) -> dict[str, Bound]:
        """Return how full the memory is that messages with handlers, or waiting for one, may take."""
        limits = self._limits
        return {
            "jobs": Bound(self._held, limits.max_held),
            "job_bytes": Bound(self._held_bytes, limits.max_held_bytes),
            "types": self._known_types.bound(),
        }

    # --- entry ---

    def enter(self, jobs: Sequence[Job], now: float) -> None:
        """Dispatch a run of messages of one type that came from outside: from clients, from a server, or as a replayed
        dead letter. Each is the one pending result of its case, which is open from now on."""
        self._reports.open += len(jobs)
        figures = jobs[0].case.figures
        if figures is None:
            figures = self.figures_of(jobs[0].type)
            for job in jobs:
                case = job.case
                case.figures, case.since = figures, now
        figures.received += len(jobs)
        if self._trace.one_of > 1 and jobs[0].case.kind is not _REPLAY and not self._trace.takes(len(jobs)):
            for job in jobs:
                job.case.traced = False
        self.dispatch(jobs, now)

    def figures_of(self, type_: str) -> TypeFigures:
        """Return the figures of a type; those of a type that nobody has served are with others'."""
        found = self._types.get(type_)
        return found if found is not None else self._figures.of(type_ if self._known_types.knows(type_) else OTHERS)

    # --- to a handler ---

    def dispatch(self, jobs: Sequence[Job], now: float) -> None:
        """Assign each job of a run of one type to a worker, queue it for one, or end it with the reason why it can do
        neither. A run for which there is room is assigned as a whole."""
        limits, type_ = self._limits, jobs[0].type
        check = self._faults.get(type_) if self._faults else None
        if check is None and self._assign_whole(jobs, now):
            return
        worker: Worker | None = None
        given: list[Job] = []  # jobs for this worker, which has `room` for more
        room = 0
        for job in jobs:
            size_bytes = len(job.body)
            code: str | None = None
            if job.path and len(job.path) >= HOP_LIMIT:
                code = "too-many-hops"
            elif self._held >= limits.max_held or self._held_bytes + size_bytes > limits.max_held_bytes:
                code = self._known_types.never_served(job, now) or "overloaded"
                if code == "overloaded":
                    self._out.reached["max_held" if self._held >= limits.max_held else "max_held_bytes"] += 1
            elif not room:
                if worker is not None and given:
                    self._assign(worker, given, now)
                    given = []
                worker = self._workers.choose(job)
                if worker is None:
                    code = self._may_not_wait(job, now)
                else:
                    room = 1 if len(jobs) == 1 else self._workers.room(worker, type_)
            if code is not None:
                self._trace.add((now, job.root, job.id, code, shortened(type_), 0.0))
                self.end(job, failed(code))
                continue
            if check is not None and (wrong := check(job.body)) is not None:
                self._refuse(job, wrong, now)
                continue
            self._held += 1
            self._held_bytes += size_bytes
            if worker is not None:
                room -= 1
                given.append(job)
            else:
                job.since = now
                self._queues.enqueue(job)
        if worker is not None and given:
            self._assign(worker, given, now)

    def _assign_whole(self, jobs: Sequence[Job], now: float) -> bool:
        """Assign a run of jobs of one type where a single worker gets all of them, all may be held, and none has come
        far. Returns whether they were assigned."""
        limits, count, first = self._limits, len(jobs), jobs[0]
        if count == 1:
            size_bytes, have_come_far = len(first.body), bool(first.path)
        else:
            size_bytes, have_come_far = sum([len(job.body) for job in jobs]), bool([job for job in jobs if job.path])
        if (
            have_come_far
            or self._held + count > limits.max_held or self._held_bytes + size_bytes > limits.max_held_bytes
        ):  # fmt: skip
            return False
        worker = self._workers.choose(first)
        if worker is None or (count > 1 and self._workers.room(worker, first.type) < count):
            return False
        self._held += count
        self._held_bytes += size_bytes
        self._assign(worker, jobs, now)
        return True

    def _refuse(self, job: Job, wrong: str, now: float) -> None:
        """End a job whose payload breaks the contract of its type; `wrong` is the sentence for the sender."""
        self.notice_failure(job, "schema", wrong)
        self._trace.add((now, job.root, job.id, "schema", job.type, 0.0))
        self.end(job, failed("schema"), wrong)

    def _assign_waiting(self, worker: Worker, jobs: list[Job], now: float) -> None:
        """Assign a run of jobs that have waited. Their case may have been answered meanwhile, and the contract of their
        type may be newer than the jobs."""
        if self._answered_waiting:
            for job in [job for job in jobs if job.is_settled]:
                jobs.remove(job)
                self._queues.release_group(job)
        if self._faults and jobs:
            changed = self._contracts.since.get(jobs[0].type, -math.inf)
            for job in [job for job in jobs if job.since <= changed]:
                wrong = self._faults[job.type](job.body)
                if wrong is not None:
                    jobs.remove(job)
                    self._queues.release_group(job)
                    self.let_go(job)
                    self._refuse(job, wrong, now)
        self._assign(worker, jobs, now)

    def _may_not_wait(self, job: Job, now: float) -> str | None:
        reached = self._queues.bound_reached(job, self._limits.max_waiting, self._limits.max_waiting_bytes)
        code = self._known_types.never_served(job, now)
        if code is None and reached is not None:
            self._out.reached[reached] += 1
            return "overloaded"
        if code is None and job.type in self._known_types.given_up and not self._workers.serves(job.type):
            return "no-handler"
        return code

    def _assign(self, worker: Worker, jobs: Sequence[Job], now: float) -> None:
        """Give a run of jobs of one type to a worker that has credit for them; end those that have expired."""
        inflight, trace, timed = worker.inflight, self._trace.add, self._timed
        first = self._token
        self._token = first + len(jobs)  # tokens rise; those of expired jobs are left out
        given, requests = jobs, []
        for token, job in enumerate(jobs, first + 1):
            case = job.case
            expires = case.expires
            if expires is not None and now >= expires:
                given = [each for each in given if each is not job]
                self._queues.release_group(job)
                self.let_go(job)
                trace((now, job.root, job.id, "expired", job.type, job.since))
                self.end(job, failed("expired"))
                continue
            inflight[token] = job
            job.attempt = attempt = job.attempt + 1
            if attempt > 1:
                self._figures.of(job.type).again += 1
            if case.traced:
                trace((now, job.root, job.id, HANDLER, job.type, job.since))
            job.since = now
            deadline_ms = None
            if timed or expires is not None:
                deadline_ms = self._timeouts.deadline_ms(worker, job.type, None if expires is None else expires - now)
            requests.append(job.request(token, deadline_ms))
        if requests:
            self._workers.assign(worker, given)
            self._out.messages_on(worker.link).extend(requests)

    def feed(self, worker: Worker, now: float) -> None:
        """Assign waiting messages to a worker up to its credit, and requeued messages to all free workers."""
        if worker.pool.queued_types or worker.groups or worker.is_apart:
            self._fill(worker, now)
        if self._requeued or self._freed or self._told:
            self.share_out(now)

    def _fill(self, worker: Worker, now: float) -> None:
        """Assign waiting messages to a worker up to its credit, MAX_FED at once; more with its next messages, or the
        next tick."""
        left = MAX_FED
        while left > 0:
            jobs = self._workers.next_run(worker, left)
            if not jobs:
                return
            self._assign_waiting(worker, jobs, now)
            left -= len(jobs)
        self._hungry[worker] = None

    def share_out(self, now: float) -> None:
        """Assign requeued messages to free workers, in turn."""
        workers, requeued, freed, told = self._workers, self._requeued, self._freed, self._told
        for isolated in workers.isolate(now):
            self._fill(isolated, now)
        while freed:
            self._fill(freed.popitem()[0], now)
        while requeued:
            type_, _ = requeued.popitem()
            while type_ in self._queues.by_type and (worker := workers.idle(type_)) is not None:
                while (job := workers.next_for(worker)) is not None:
                    self._assign_waiting(worker, [job], now)
                    if not worker.groups:  # a worker goes on with a message group bound to it, up to its credit
                        break
        while told:
            worker, _ = told.popitem()
            if worker.grant is not None:
                self._out.send(worker.link, Heartbeat({"exclusive": worker.grant.asked}))

    def on_late_answer(self, worker: Worker, job: Job) -> None:
        """Take in the answer to a settled message: the worker has credit again."""
        if job in worker.answered:
            worker.answered.remove(job)
            return
        worker.overdue -= 1
        if worker.stuck:
            self._workers.resume(worker)
            self._known_types.on_served_again(worker.pool.types)

    def let_go(self, job: Job) -> None:
        """Stop counting a message against what may be held."""
        self._held -= 1
        self._held_bytes -= len(job.body)

    def let_go_run(self, count: int, size_bytes: int) -> None:
        """Stop counting so many messages, of `size_bytes` together, against what may be held."""
        self._held -= count
        self._held_bytes -= size_bytes

    def notice_failure(self, job: Job, reason: str, note: str) -> None:
        """Tell the log of a message that its handler, or the contract of its type, has failed or refused."""
        failed_itself = reason in ("handler-failed", "bad-reply")
        event: NoticeEvent = "handler-failed" if failed_itself else "handler-refused"
        self._out.notice(event, id=job.id, type=job.type, code=reason, note=note)

    def on_account_removed(self, user: str, workers: list[Worker]) -> None:
        """Have nobody get the later outcomes of a removed user's messages that handlers hold or that wait for one."""
        for job in self._workers.jobs(workers):
            if job.case.sender == user:
                job.case.sender, job.case.push = None, False

    def on_answered(self, answers: Mapping[Case, str], workers: Iterable[Worker], now: float) -> None:
        """End the messages of cases whose message another broker of this server has answered, by its answer: no handler
        gets these messages. Messages that wait for a handler leave their queue when it is their turn, and what a
        handler answers to one of the others does not count."""
        for worker in workers:
            held = [job for job in worker.inflight.values() if job.case in answers and not job.is_settled]
            worker.answered.update(held)
            self._take_over(held, answers, now)
        waiting = [job for job in self._workers.waiting(workers) if job.case in answers and not job.is_settled]
        self._answered_waiting = self._answered_waiting or bool(waiting)
        self._take_over(waiting, answers, now)

    def _take_over(self, jobs: Iterable[Job], answers: Mapping[Case, str], now: float) -> None:
        for job in jobs:
            outcome = job.case.take_over(answers[job.case])
            self._trace.add((now, job.root, job.id, reason_of(outcome) or outcome, job.type, job.since))
            self.let_go(job)
            self.end(job, None)

    # --- endings ---

    def end(self, job: Job, outcome: str | None, note: str | None = None) -> None:
        """Settle a message that is no longer held; `outcome` is its failure, if any, and `note` the reason for its
        sender."""
        job.is_settled = True
        if outcome is not None:
            self.figures_of(job.type).failed[reason_of(outcome) or outcome] += 1
            job.case.record(job.target, outcome, note)
        self._reports.settle_one(job.case)

    # --- time ---

    def tick(self, workers: list[Worker], now: float) -> None:
        """End messages that have waited, or were worked on, for too long."""
        for job, code in self._overdue.take(workers, now, ending=self.ending):
            self.let_go(job)
            self.end(job, failed(code))
        self.share_out(now)
        if self._hungry:
            hungry, self._hungry = self._hungry, {}
            for worker in workers:
                if worker in hungry:
                    self._fill(worker, now)
