"""Replies of handlers: whether a reply is sound and its handler may say so, and what becomes of its message.

`commands` carries out what a reply asks for. A run of replies that only deliver to one user each, which most are, is
carried out together. What a handler says on its own initiative is carried out as a reply is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bester.broker.core import policy
from bester.broker.core.cases import Case, Reports
from bester.broker.core.commands import Commands, fault
from bester.broker.core.dead_letters import DeadLetters
from bester.broker.core.dispatcher import Dispatcher
from bester.broker.core.figures import FOLD_AT, Figures
from bester.broker.core.jobs import Job
from bester.broker.core.observers import Observers
from bester.broker.core.pools import Worker
from bester.broker.core.settings import Settings
from bester.broker.core.timeouts import Timeouts
from bester.broker.core.trace import CONSUMED, EMITTED, Trace
from bester.broker.core.workers import Workers
from bester.broker.wire.messages import DONE, REFUSED, Command, Reply, reply_code
from bester.broker.wire.notes import safe_note
from bester.broker.wire.outcomes import failed


class Replies:
    """Takes in the replies of handlers, and ends their messages or carries out their commands."""

    def __init__(
        self, settings: Settings, *, dispatcher: Dispatcher, commands: Commands, workers: Workers, timeouts: Timeouts,
        observers: Observers, dead_letters: DeadLetters, figures: Figures, reports: Reports, trace: Trace,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._dispatcher = dispatcher
        self._commands = commands
        self._workers, self._queues = workers, workers.queues
        self._timeouts = timeouts
        self._observers = observers
        self._dead_letters = dead_letters
        self._figures, self._types = figures, figures.types
        self._reports = reports
        self._trace = trace

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
                self._dispatcher.let_go_run(len(run), size_bytes)
                self._workers.free(worker, len(run))

    def _on_reply(
        self, worker: Worker, job: Job, reply: Reply, wrong: tuple[str, str] | None, now: float
    ) -> tuple[str, str] | None:
        """Carry out a reply that may look at workers, that somebody observes, or that was found `wrong`: the worker has
        its credit again before. Returns (code, text) where the reply is wrong."""
        self._workers.free(worker, 1)
        self._queues.leave_group(job)
        if job.is_settled:
            self._dispatcher.on_late_answer(worker, job)
            return None
        self._dispatcher.let_go(job)
        for observe in self._observers.get(job.type, ()) if self._observers else ():
            observe(job, reply, now)
        if reply.status != DONE:
            self._on_failed(worker, job, reply, now)
            return None
        wrong = wrong or self._fault(worker, job, reply.commands)
        if wrong is not None:
            self._trace.add((now, job.root, job.id, wrong[0], job.type, 0.0))
            self._dispatcher.end(job, failed(wrong[0]))
            return wrong[0], about(job, wrong[1])
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
            self._dispatcher.notice_failure(job, reason, note)
        self._trace.add((now, job.root, job.id, reason, job.type, 0.0))
        self._dispatcher.end(job, failed(reason), note if late is None and reply.status == REFUSED and note else None)

    def may_not_command(self, worker: Worker, type_: str, commands: list[Command]) -> tuple[str, str] | None:
        """Return (code, text) where the policy refuses a handler these commands, None where the handler may use
        them."""
        refused = policy.may_command(self._settings, worker.commands, type_, commands)
        return None if refused is None else ("not-allowed", refused)

    def on_malformed_reply(self, worker: Worker, token: int, text: str, now: float) -> str:
        """End the message whose reply could not be decoded; return the text for its handler."""
        job = self._take_back(worker, token)
        if job is not None and not job.is_settled:
            self._dispatcher.end(job, failed("bad-reply"))
        self._dispatcher.feed(worker, now)
        return text if job is None else about(job, text)

    def _take_back(self, worker: Worker, token: int) -> Job | None:
        job = self._workers.complete(worker, token)
        if job is None:
            return None
        if job.is_settled:
            self._dispatcher.on_late_answer(worker, job)
        else:
            self._dispatcher.let_go(job)
        return job

    def _too_late(self, worker: Worker, job: Job, now: float) -> str | None:
        """Return the code of a failure that comes after the message's time: a handler that knows its deadline gives up
        then, and its answer may arrive before this broker looks at its clock."""
        if now - job.since >= self._timeouts.of(worker, job.type):
            self._dead_letters.bury(job, "timeout", now)
            return "timeout"
        expires = job.case.expires
        return "expired" if expires is not None and now >= expires else None

    def emit(self, case: Case, type_: str, commands: list[Command], now: float, *, repeated: bool) -> None:
        """Carry out the commands of a handler that acts on its own initiative, as if replying to a message of its
        own."""
        self._reports.begin(case)
        self._trace.add((now, case.root, case.id, EMITTED, type_, 0.0))
        wrong = fault(commands)
        job = Job(case, case.id, case.root, type_, b"", "handler", self._settings.name, repeated=repeated)
        if wrong is not None:
            self._dispatcher.end(job, failed(wrong[0]))
            return
        self._commands.carry_out(job, commands, now)


def about(job: Job, text: str) -> str:
    """Return the text about a wrong reply, with the id by which the sender's report and the trace name the message."""
    return f"message {job.id}: {text}"
