"""The way of a message through the broker: enter → dispatch → assign → reply → (commands) → settle.

`commands` begins the results that a handler's reply asks for, and counts them on the message's case; here every ending
of a job settles one count, as `delivery_outcomes` and others do of their results; the last one sends the report. The
router checks roles, and `peers` who is alive; `worker_changes` requeues the jobs of a worker that is lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from bester.broker.core import policy
from bester.broker.core.cases import Case, Kind, Reports
from bester.broker.core.commands import Commands, fault
from bester.broker.core.contracts import Contracts
from bester.broker.core.dead_letters import DeadLetters
from bester.broker.core.effects import Effects, NoticeEvent
from bester.broker.core.figures import FOLD_AT, OTHERS, Figures, TypeFigures
from bester.broker.core.inspection import Bound
from bester.broker.core.jobs import Job
from bester.broker.core.known_types import KnownTypes
from bester.broker.core.observers import Observers
from bester.broker.core.overdue import Overdue
from bester.broker.core.pools import Worker
from bester.broker.core.settings import Settings
from bester.broker.core.timeouts import Timeouts
from bester.broker.core.trace import CONSUMED, EMITTED, HANDLER, Trace
from bester.broker.core.workers import Workers
from bester.broker.wire.messages import (
    DONE,
    HOP_LIMIT,
    REFUSED,
    Command,
    Heartbeat,
    Reply,
    reply_code,
)
from bester.broker.wire.notes import safe_note
from bester.broker.wire.outcomes import failed, reason_of

MAX_FED = 512
"""Waiting messages that a worker is assigned at once, some 10 ms: a worker may have credit for 65,536."""
_REPLAY = Kind.REPLAY  # a member costs a call where it is looked up in its class


class Dispatcher:
    """All messages that a broker holds for handlers. `first_token` is where this life's tokens begin."""

    def __init__(
        self, settings: Settings, out: Effects, *, figures: Figures, observers: Observers, workers: Workers,
        timeouts: Timeouts, overdue: Overdue, contracts: Contracts, known_types: KnownTypes, reports: Reports,
        trace: Trace, commands: Commands, dead_letters: DeadLetters, first_token: int,
    ) -> None:  # fmt: skip
        self._figures = figures
        self._types = figures.types
        self.ending = False
        """The broker ends: nothing enters any more, and nothing waits for an answer that will not come."""
        self._settings = settings
        self._limits = settings.limits
        self._out = out
        self._observers = observers
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
        self._commands = commands
        self._dead_letters = dead_letters
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

    def emit(self, case: Case, type_: str, commands: list[Command], now: float, *, repeated: bool) -> None:
        """Carry out the commands of a handler that acts on its own initiative, as if replying to a message of its
        own."""
        self._reports.begin(case)
        self._trace.add((now, case.root, case.id, EMITTED, type_, 0.0))
        wrong = fault(commands)
        job = Job(case, case.id, case.root, type_, b"", "handler", self._settings.name, repeated=repeated)
        if wrong is not None:
            self.end(job, failed(wrong[0]))
            return
        self._commands.carry_out(job, commands, now)

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
                self._trace.add((now, job.root, job.id, code, type_, 0.0))
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
        self._notice_failure(job, "schema", wrong)
        self._trace.add((now, job.root, job.id, "schema", job.type, 0.0))
        self.end(job, failed("schema"), wrong)

    def _assign_waiting(self, worker: Worker, jobs: list[Job], now: float) -> None:
        """Assign a run of jobs that have waited. Their case may have been answered meanwhile, and the contract of their
        type may be newer than the jobs."""
        if self._answered_waiting:
            for job in [job for job in jobs if job.is_settled]:
                jobs.remove(job)
                self._queues.release_group(job)
        if self._faults:
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

    def on_late_answer(self, worker: Worker) -> None:
        """Take in the answer to a settled message: the worker has credit again."""
        worker.overdue -= 1
        if worker.stuck:
            self._workers.resume(worker)
            self._known_types.on_served_again(worker.pool.types)

    # --- from a handler ---

    def on_replies(
        self, worker: Worker, replies: Sequence[Reply], now: float
    ) -> Iterator[tuple[Reply, tuple[str, str]]]:
        """Carry out a run of a handler's replies; the router calls `feed` after the last reply of a batch. Yield each
        reply that is wrong, with (code, text).

        The worker has credit again, and there is room for other jobs, at the end of the run, and before each reply that
        may look at workers or dispatch a job.
        """
        inflight, figures = worker.inflight, None
        limited, observers = worker.limited, self._observers
        type_ = ""
        size_bytes = 0
        run: list[tuple[Job, Command]] = []  # replies that are not carried out yet, of `size_bytes` together
        for reply in replies:
            job = inflight.pop(reply.token, None)
            if job is None:
                self._deliver_run(worker, run, size_bytes, now)
                run, size_bytes = [], 0
                yield reply, ("unknown-token", "no request with this token waits on this link")
                continue
            commands = reply.commands
            if figures is None or job.type != type_:
                type_ = job.type
                figures = self._types.get(type_) or self._figures.of(type_)
            figures.took.append(now - job.since)
            if len(figures.took) >= FOLD_AT:
                figures.fold()
            wrong = None
            if (
                len(commands) == 1 and (command := commands[0]).command == "sendClients" and reply.status == DONE
                and job.group is None and not job.is_settled and not observers
            ):  # fmt: skip
                # An answer with the message's own body and type to one user is sound.
                if command.body != job.body or command.type or len(command.targets) != 1 or limited:
                    wrong = self._fault(worker, job, commands)
                if wrong is None:
                    run.append((job, command))
                    size_bytes += len(job.body)
                    continue
            self._deliver_run(worker, run, size_bytes, now)
            run, size_bytes = [], 0
            figures.more_results += len(commands) - 1
            wrong = self._on_reply(worker, job, reply, wrong, now)
            if wrong is not None:
                yield reply, wrong
        self._deliver_run(worker, run, size_bytes, now)

    def _deliver_run(self, worker: Worker, run: Sequence[tuple[Job, Command]], size_bytes: int, now: float) -> None:
        """Deliver a run of replies, to jobs of `size_bytes` together: give their worker credit for other jobs, and stop
        counting them against what may be held."""
        if run:
            try:
                self._commands.deliver_run(run, now)
            finally:
                self._held -= len(run)
                self._held_bytes -= size_bytes
                self._workers.free(worker, len(run))

    def _on_reply(
        self, worker: Worker, job: Job, reply: Reply, wrong: tuple[str, str] | None, now: float
    ) -> tuple[str, str] | None:
        """Carry out a reply that may look at workers, that somebody observes, or that was found `wrong`: the worker has
        its credit again before. Returns (code, text) where the reply is wrong."""
        self._workers.free(worker, 1)
        self._queues.leave_group(job)
        if job.is_settled:
            self.on_late_answer(worker)
            return None
        self.let_go(job)
        for observe in self._observers.get(job.type, ()) if self._observers else ():
            observe(job, reply, now)
        if reply.status != DONE:
            self._on_failed(worker, job, reply, now)
            return None
        wrong = wrong or self._fault(worker, job, reply.commands)
        if wrong is not None:
            self._trace.add((now, job.root, job.id, wrong[0], job.type, 0.0))
            self.end(job, failed(wrong[0]))
            return wrong
        if not reply.commands:
            self._trace.add((now, job.root, job.id, CONSUMED, job.type, 0.0))
        self._commands.carry_out(job, reply.commands, now)
        return None

    def _fault(self, worker: Worker, job: Job, commands: list[Command]) -> tuple[str, str] | None:
        """Return (code, text) where the commands of a reply cannot be carried out, or its handler may not use them."""
        wrong = fault(commands, job.body)
        if worker.limited and wrong is None:
            wrong = self.may_not_command(worker, job.type, commands)
        return wrong

    def _on_failed(self, worker: Worker, job: Job, reply: Reply, now: float) -> None:
        """End a message whose handler has failed, or has refused the message."""
        late = self._too_late(worker, job, now)
        reason, note = late or reply_code(reply.status, reply.code), safe_note(reply.note or "")
        if late is None:
            self._notice_failure(job, reason, note)
        self._trace.add((now, job.root, job.id, reason, job.type, 0.0))
        self.end(job, failed(reason), note if late is None and reply.status == REFUSED and note else None)

    def may_not_command(self, worker: Worker, type_: str, commands: list[Command]) -> tuple[str, str] | None:
        """Return (code, text) where the policy refuses a handler these commands, None where the handler may use
        them."""
        refused = policy.may_command(self._settings, worker.commands, type_, commands)
        return None if refused is None else ("not-allowed", refused)

    def on_malformed_reply(self, worker: Worker, token: int, now: float) -> None:
        """End the message whose reply could not be decoded."""
        job = self._take_back(worker, token)
        if job is not None and not job.is_settled:
            self.end(job, failed("bad-reply"))
        self.feed(worker, now)

    def _take_back(self, worker: Worker, token: int) -> Job | None:
        job = self._workers.complete(worker, token)
        if job is None:
            return None
        if job.is_settled:
            self.on_late_answer(worker)
        else:
            self.let_go(job)
        return job

    def _too_late(self, worker: Worker, job: Job, now: float) -> str | None:
        """Return the code of a failure that comes after the message's time: a handler that knows its deadline gives up
        then, and its answer may arrive before this broker looks at its clock."""
        if now - job.since >= self._timeouts.of(worker, job.type):
            self._dead_letters.bury(job, "timeout", now)
            return "timeout"
        expires = job.case.expires
        return "expired" if expires is not None and now >= expires else None

    def let_go(self, job: Job) -> None:
        """Stop counting a message against what may be held."""
        self._held -= 1
        self._held_bytes -= len(job.body)

    def _notice_failure(self, job: Job, reason: str, note: str) -> None:
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
        is given them any more. Those that wait for a handler leave their queue when it is their turn, and what a
        handler answers to one of the others no longer counts."""
        for worker in workers:
            held = [job for job in worker.inflight.values() if job.case in answers and not job.is_settled]
            worker.overdue += len(held)
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
