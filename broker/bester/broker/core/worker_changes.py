"""Changes of workers: they join, pause, hand back, get stuck, leave and die. What becomes of their messages.

A message that a worker has not answered is requeued before all that wait; an attempt is used up only where the death of
the worker proves something (see `suspects`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bester.broker.core.dead_letters import DeadLetters
from bester.broker.core.dispatcher import Dispatcher
from bester.broker.core.effects import Effects
from bester.broker.core.jobs import Job
from bester.broker.core.known_types import KnownTypes
from bester.broker.core.pools import Worker
from bester.broker.core.settings import Budget, Settings
from bester.broker.core.suspects import Suspicion
from bester.broker.core.trace import Trace
from bester.broker.core.workers import Workers
from bester.broker.wire.messages import Heartbeat, Meta
from bester.broker.wire.outcomes import failed

MOST_HANDED_BACK = 64
"""Times that a message may be handed back by handlers that have not begun it, before it is `overloaded`: each time is
another search for a message that kills, or a handler that begins nothing."""


class WorkerChanges:
    """Takes in what becomes of workers, and gives their messages to others."""

    def __init__(
        self, settings: Settings, out: Effects, *, dispatcher: Dispatcher, workers: Workers, known_types: KnownTypes,
        dead_letters: DeadLetters, trace: Trace,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._budget = Budget(None, settings.limits.attempts)
        self._out = out
        self._dispatcher = dispatcher
        self._workers, self._queues, self._isolation = workers, workers.queues, workers.isolation
        self._known_types = known_types
        self._dead_letters = dead_letters
        self._trace = trace
        self._unsent: set[Job] = set()  # jobs of a worker that is about to be lost, whose REQUEST was not sent

    # --- joining ---

    def on_joined(self, worker: Worker, types: frozenset[str], now: float) -> None:
        """Take in a new worker: learn its types, and give it messages."""
        self._known_types.on_served(types)
        self._dispatcher.share_out(now)
        self._dispatcher.feed(worker, now)

    def on_rejoined(
        self, worker: Worker, types: frozenset[str], credit: int, ordered: frozenset[str], shared: str | None,
        now: float,
    ) -> None:  # fmt: skip
        """Take in a worker's new HELLO, with new types, credit, order, and name at its brokers."""
        before = worker.pool.types
        self._workers.rejoin(worker, types, credit, ordered, shared)
        self._known_types.on_left(before, now)
        self.on_joined(worker, types, now)

    # --- exclusive use of a handler of several brokers ---

    def on_signals(self, worker: Worker, options: Meta, now: float) -> None:
        """Take in the HEARTBEAT of a handler of several brokers: it grants its exclusive use to this one, or is in
        another one's use, or is again as before; messages that it has not begun are requeued. The router calls `feed`
        then."""
        granted, paused, unbegun = (options.get(key) for key in ("exclusive", "paused", "unbegun"))
        if worker.grant is None:
            return
        if type(granted) is int:
            self._isolation.grant(worker, granted)
        if type(unbegun) is list:
            self._take_back_unbegun(worker, unbegun, now)
        if type(paused) is int:
            if paused:
                self._isolation.pause(worker)
                self._out.send(worker.link, Heartbeat({"paused": paused}))
            else:
                self._isolation.unpause(worker)
            self._dispatcher.share_out(now)

    def _take_back_unbegun(self, worker: Worker, tokens: Iterable[Any], now: float) -> None:
        """Requeue messages that a handler has not begun, before all that wait: they have used up no attempt. End those
        that come back again and again."""
        again = []
        for token in tokens:
            job = worker.inflight.pop(token, None) if type(token) is int else None
            if job is None:
                continue
            self._workers.free(worker, 1)
            job.handed_back += 1
            if job.is_settled:
                self._queues.leave_group(job)
                self._dispatcher.on_late_answer(worker, job)
            elif job.handed_back > MOST_HANDED_BACK:
                self._queues.leave_group(job)
                code = "overloaded"
                if job.attempt - 1 > job.attempts_before:  # an earlier worker has begun it, and died
                    code = "handler-lost"
                    self._dead_letters.bury(job, code, now)
                else:
                    self._trace.add((now, job.root, job.id, code, job.type, 0.0))
                self._dispatcher.let_go(job)
                self._dispatcher.end(job, failed(code))
            else:
                again.append(job)
        for job in again:
            self._isolation.forget_suspect(worker, job)
            self._queues.leave_group(job, first=True)
            job.attempt -= 1
            job.since = now
        self._queues.enqueue_first(again)
        self._dispatcher.share_out(now)

    # --- leaving and dying ---

    def on_leaving(self, worker: Worker, now: float) -> None:
        """Give a leaving worker no new messages; those in flight stay its own."""
        types = worker.pool.types
        self._workers.leave(worker)
        self._known_types.on_left(types, now)
        self._dispatcher.share_out(now)

    def suspend(self, worker: Worker, now: float) -> None:
        """Pass over a worker that holds nothing but settled messages and answers none of them."""
        types = worker.pool.types
        self._workers.suspend(worker)
        self._known_types.on_left(types, now)
        self._dispatcher.share_out(now)

    def on_unsent(self, worker: Worker, token: int) -> None:
        """Note that a REQUEST could not be sent: its message was not begun when the worker is lost, as it is next."""
        job = worker.inflight.get(token)
        if job is not None and job not in self._unsent:
            job.attempt -= 1
            self._unsent.add(job)

    def pass_over(self, workers: Iterable[Worker], now: float) -> None:
        """Give nothing to workers that are all lost soon: a message of one would count a death at each of the
        others."""
        for worker in workers:
            self._workers.leave(worker)
            self._known_types.on_left(worker.pool.types, now)

    def on_lost(self, worker: Worker, now: float) -> None:
        """Requeue the messages of a dead worker, before all that wait. Only a message that the worker held alone has
        used up an attempt; of several, each is next given to a worker alone, until the one that kills is found. A
        worker of several brokers has held a message alone if it was given under a grant."""
        lost = self._workers.lose(worker)
        self._known_types.on_left(worker.pool.types, now)
        unsent = self._unsent
        begun = [job for job in lost if job not in unsent] if unsent else lost
        if len(begun) == 1 and (worker.grant is None or worker.grant.suspect is begun[0]):
            before = begun[0].suspicion
            suspects = self._died_over(begun[0], now)
            if before is not None and not before.deaths:  # others were suspected with it
                self._queues.clear()
        else:
            group = Suspicion()
            suspects = [job for job in begun if not job.is_settled]
            for job in suspects:
                if len(suspects) > 1 or not job.suspected:  # beside messages that are over it keeps its deaths
                    job.suspicion = group
        again = suspects
        if unsent:
            wanted = {*suspects, *(job for job in unsent if not job.is_settled)}
            again = [job for job in lost if job in wanted]  # in the order in which they were assigned
            unsent.clear()
        for job in again:
            job.since = now
        self._queues.enqueue_first(again)
        if len(suspects) > 1:
            self._out.notice("suspected", messages=len(suspects), types=sorted({job.type for job in suspects}))
        self._dispatcher.share_out(now)
        for worker in self._queues.bound_workers(again):
            self._dispatcher.feed(worker, now)

    def _died_over(self, job: Job, now: float) -> list[Job]:
        """Take in that a worker died while holding this message alone, and clear those suspected together with it.
        Returns the message, if another attempt is due."""
        deaths = 1
        if job.suspicion is not None:
            deaths += job.suspicion.deaths
            job.suspicion.open = False
        if job.is_settled:
            return []
        job.suspicion = Suspicion(deaths)
        if deaths < self._budget_of(job.type).attempts:
            return [job]
        self._dead_letters.bury(job, "handler-lost", now)
        self._dispatcher.let_go(job)
        self._dispatcher.end(job, failed("handler-lost"))
        return []

    def _budget_of(self, type_: str) -> Budget:
        return self._settings.budgets.get(type_, self._budget)
