"""Requests of one broker: each is begun when it comes, and answered once, in runs of one type.

A reply is sent only on the link that delivered its request: a ZeroMQ socket would carry the reply to a restarted
broker, which does not know the request. The credit bounds the requests in hand.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

from bester.broker.fabric import FabricLink
from bester.broker.logs import facts
from bester.broker.wire.messages import DONE, FAILED, Command, Heartbeat, Meta, Reply
from bester.broker.wire.messages import Message as WireMessage
from bester.broker.wire.notes import describe, safe_note
from bester.broker.wire.runs import Received
from bester.handlers import forks
from bester.handlers.app import Route, Runs
from bester.handlers.exclusive import Exclusive
from bester.handlers.executor import Ends, Executor
from bester.handlers.failures import log_failure
from bester.handlers.message import Message
from bester.handlers.overtime import was_cancelled
from bester.handlers.reply import ReplyError, commands_of, verdict_on
from bester.handlers.task_pool import QUICK, SLICE_S, End, NotBegunError
from bester.handlers.turns import Job, is_long, sender_of

log = logging.getLogger("bester.handlers")
_LOOP, _INLINE = Runs.LOOP, Runs.INLINE
_new = tuple.__new__  # makes a message in half the time of its class
NOT_BEGUN = "the deadline passed before a handler began"
TOO_LONG = "the handler was cancelled at the deadline"


class Requests:
    """Requests that came by the links to one broker, number `number` of the `of` brokers of the process, from 0 on. The
    worker called `name` serves `routes`; `link` is the present link, and `on_useless(why)` is told that the executor
    hangs.

    `is_linked`: whether the broker has welcomed the worker, and the link is there. `ends` are the callbacks of the
    executor. `drained` is set when no request is in hand.
    """

    def __init__(
        self, link: FabricLink, routes: Mapping[str, Route], name: str, number: int, of: int,
        on_useless: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._link = link
        self._routes = routes
        self._name = name
        self.is_linked = False
        self.ends = Ends(
            self._is_wanted, self._done_all, self._done, self._failed, self._not_begun, self._begin_next,
            on_useless, link.vouch, link.flush,
        )  # fmt: skip
        self.drained = asyncio.Event()
        self._life = number
        self._lives = of  # a life's remainder by this count is the broker's number
        self._outstanding = 0
        self._exclusive: Exclusive | None = None
        self._is_barred = False  # nothing of this broker may begin
        self._unbegun: list[Received] = []  # held while barred

    def run_by(self, executor: Executor) -> None:
        """Set what runs the requests, in this process."""
        self._process = forks.process  # not the one of a program that has made the worker and forked then
        self._executor = executor
        self._pool, self._threads, self._groups = executor.pool, executor.threads, executor.groups
        self._overtime = executor.overtime

    @property
    def outstanding(self) -> int:
        """Number of requests in hand."""
        return self._outstanding

    @property
    def hung(self) -> int:
        """Number of requests in hand that hang, at least."""
        return self._overtime.hung(self._is_wanted)

    def drop(self) -> None:
        """Drop all requests of the present link: none will be answered."""
        self._life += self._lives
        self._unbegun = []
        self._outstanding = 0
        self.drained.set()
        self._groups.drop(self._executor.ends.is_wanted)
        for job in self._pool.cancel_waiting(self._executor.ends.is_wanted):
            if job[1].by_user:
                self._begin_next(job)

    # --- beginning ---

    def begin(self, requests: Sequence[Received]) -> None:
        """Begin requests that came together, in their order, as runs of one type."""
        if self._is_barred:
            self._unbegun += requests
            return
        start, count, now = 0, len(requests), time.monotonic()
        if count == 1:
            self._begin_run(requests[0].type, requests, now)
            start = 1
        while start < count:
            type_ = requests[start].type
            end = start + 1
            while end < count and requests[end].type == type_:
                end += 1
            self._begin_run(type_, requests if end - start == count else requests[start:end], now)
            start = end
        self._pool.wake()

    def begin_apart(self, requests: Sequence[Received]) -> None:
        """Begin requests that came together, some with long bodies, which may take long: first the others, whose
        answers leave, and those to what was read before. Requests of one sender keep their order."""
        first: list[Received] = []
        last: list[Received] = []
        senders = set[Hashable]()  # of long bodies
        for request in requests:
            sender = sender_of(request)
            if is_long(request):
                senders.add(sender)
            (last if sender in senders else first).append(request)
        if first:
            self.begin(first)
        if last:
            self._link.flush()
            self._pool.has_long = True
            self.begin(last)

    def _begin_run(self, type_: str, requests: Sequence[Received], now: float) -> None:
        """Begin requests of one type that came at a time."""
        route, life = self._routes.get(type_), self._life
        if route is None:
            why = f"this worker does not serve {type_!r}"
            self._link.answer(*[Reply(request.token, FAILED, [], why) for request in requests])
            return
        if route.runs is _INLINE:
            requests = self._call_inline(route, requests, life, now)
            if not requests:
                return
        self._outstanding += len(requests)
        jobs: list[Job] = [(request, route, life, now) for request in requests]
        if route.runs is _INLINE:
            self._pool.add_all(jobs)
        elif route.by_user:
            self._each(self._enter_group, jobs)
        elif route.runs is _LOOP:
            self._pool.add_all(jobs)
        else:
            self._each(self._threads.add, jobs)

    def _each(self, begin: Callable[[Job], None], jobs: Sequence[Job]) -> None:
        for job in jobs:
            try:
                begin(job)
            except Exception as error:  # noqa: BLE001 (as in `_on_messages`)
                self.on_fault("Request", job, error)

    def _call_inline(self, route: Route, requests: Sequence[Received], life: int, now: float) -> Sequence[Received]:
        """Call a function of microseconds for each request, and queue the replies together. No request is outstanding
        meanwhile: nothing else runs. Return the requests that are left where the function takes longer, or others
        have."""
        if self._pool.takes_turns:
            return requests
        call, until, monotonic = route.call, now + SLICE_S, time.monotonic
        origin = self._process
        replies: list[WireMessage] = []
        left: Sequence[Received] = ()
        enough = QUICK
        for number, request in enumerate(requests):
            try:
                result = call(Message(request))
            except BaseException as error:  # noqa: BLE001 (any exception of the user's function is its failure)
                forks.end_copy(origin, error)
                self._send_all(replies)
                self._outstanding += 1
                self._each(partial(self._failed, error=error), [(request, route, life, now)])
            else:
                forks.end_copy(origin)
                if type(result) is Command:  # the usual result, which needs no look
                    replies.append(_new(Reply, (request.token, DONE, [result], None, None)))
                else:
                    self._send_all(replies)
                    self._outstanding += 1
                    self._each(partial(self._done, result=result), [(request, route, life, now)])
            if monotonic() > until:
                if number < enough:
                    self._pool.rest()
                    left = requests[number + 1 :]
                    break
                until, enough = monotonic() + SLICE_S, number + QUICK
        self._send_all(replies)
        return left

    def _send_all(self, replies: list[WireMessage]) -> None:
        """Queue replies, and clear the list."""
        if replies:
            self._link.answer(*replies)
            replies.clear()

    def _answer_all(self, replies: list[WireMessage]) -> None:
        """Answer outstanding requests of the present link, and clear the list."""
        if replies:
            self._outstanding -= len(replies)
            if not self._outstanding:
                self.drained.set()
                if self._is_barred:
                    self._on_clear()
            self._send_all(replies)

    def _begin(self, job: Job) -> None:
        """Begin one request, whose handler is not inline."""
        if job[1].runs is _LOOP:
            self._pool.add(job)
        else:
            self._threads.add(job)

    def _enter_group(self, job: Job) -> None:
        if self._groups.enter(job):
            self._begin(job)

    def _begin_next(self, job: Job) -> None:
        """Begin the next request of a group; overdue ones are answered unbegun."""
        waiting = self._groups.leave(job)
        while waiting is not None and self._overtime.due(waiting) <= time.monotonic():
            self._executor.ends.not_begun(waiting)
            waiting = self._groups.leave(waiting)
        if waiting is not None:
            self._begin(waiting)
            self._pool.wake()

    # --- ending ---

    def _is_wanted(self, job: Job) -> bool:
        return job[2] == self._life

    def _is_earlier(self, job: Job) -> bool:
        return job[2] != self._life and job[2] % self._lives == self._life % self._lives

    def _done_all(self, ends: list[End]) -> None:
        """Answer requests whose handlers have returned, those with a usual result together."""
        life = self._life
        replies: list[WireMessage] = []
        for job, result in ends:
            if type(result) is Command and job[2] == life and not job[1].by_user:
                replies.append(_new(Reply, (job[0].token, DONE, [result], None, None)))
            else:
                self._answer_all(replies)
                self._done(job, result)
        self._answer_all(replies)

    def _done(self, job: Job, result: Any) -> None:
        try:
            commands = commands_of(result)
        except ReplyError as error:
            self._failed(job, error)
            return
        self._answer(job, _new(Reply, (job[0].token, 0, commands, None, None)))

    def _failed(self, job: Job, error: BaseException) -> None:
        if issubclass(type(error), NotBegunError):  # `isinstance` would ask the exception, which may raise
            self._not_begun(job)
            if job[1].by_user:
                self._begin_next(job)
            return
        if was_cancelled(error):
            self._answer(job, Reply(job[0].token, FAILED, [], TOO_LONG, "timeout"))
            return
        status, note, code, is_expected = verdict_on(error)
        wanted = self._is_wanted(job)
        self._answer(job, Reply(job[0].token, status, [], note, code))
        if wanted:  # logged last: a failing log line must not keep the answer back
            try:
                log_failure(job, error, status, note if is_expected else None)
            except BaseException:  # noqa: BLE001 (the exception's own methods raise as well)
                log_failure(job, None, FAILED, note)

    def _not_begun(self, job: Job) -> None:
        """Answer a request whose deadline passed before it was begun, which returns its credit."""
        if job[2] == self._life:
            request, id_ = job[0], job[0].meta.get("id")
            fields = facts("message-not-begun", type=request.type, id=id_)
            text = "%s: message %s: %s; the worker was busy with others"
            log.warning(text, request.type, id_, NOT_BEGUN, extra=fields)
            self._link.answer(Reply(request.token, FAILED, [], NOT_BEGUN))
            self._count_down()

    def _count_down(self) -> None:
        self._outstanding -= 1
        if not self._outstanding:
            self.drained.set()
            if self._is_barred:
                self._on_clear()

    def _answer(self, job: Job, reply: Reply) -> None:
        if job[2] == self._life:
            self._link.answer(reply)
            self._outstanding -= 1  # as in `_count_down`, without a call for every message
            if not self._outstanding:
                self.drained.set()
                if self._is_barred:
                    self._on_clear()
        if job[1].by_user and not self._overtime.is_passed_over(job):
            self._begin_next(job)

    def on_fault(self, name: str, job: Job | None, error: Exception) -> None:
        """End a message (NAME in the log) over which the worker itself has failed, and answer a request."""
        why = f"the worker failed over it: {describe(error)}"
        fields = facts("worker-failed", name=self._name, message=name, why=why)
        log.error("%s: %s: %s", self._name, name.upper(), why, extra=fields)
        if job is not None and job[2] == self._life:
            self._link.answer(Reply(job[0].token, FAILED, [], safe_note(why)))
            self._count_down()

    # --- exclusive use of the process ---

    def take_turns(self, exclusive: Exclusive) -> None:
        """Set the state of the process that tells which of its brokers has its exclusive use."""
        self._exclusive = exclusive

    @property
    def can_pause(self) -> bool:
        """Return whether the broker knows of exclusive use."""
        return self._link.link_client.options.get("exclusive") is True

    @property
    def is_clear(self) -> bool:
        """Return whether no request of this broker is worked on, but for those that hang."""
        return not self._outstanding or self._outstanding <= self._overtime.hung(self._is_wanted)

    @property
    def works_on_earlier(self) -> bool:
        """Return whether a handler still works on a request that came by an earlier link, one that hangs excepted."""
        return self._executor.is_running(self._is_earlier)

    def bar(self, number: int) -> None:
        """Tell the broker to pause, and begin no request of it."""
        self._is_barred = True
        in_groups = self._groups.take_queued(self._is_wanted)
        queued = self._pool.take_queued(self._is_wanted) + self._threads.take_queued(self._is_wanted)
        for job in queued:
            if job[1].by_user:
                self._begin_next(job)
        unbegun = sorted((job[0] for job in (*queued, *in_groups)), key=lambda request: request.token)
        self._outstanding -= len(unbegun)
        self._unbegun += unbegun  # behind what is held already, where the link has been welcomed again
        if not self._outstanding:
            self.drained.set()
        self.tell({"paused": number})

    def hand_back(self) -> None:
        """Hand back the requests that have not begun."""
        if self._unbegun:
            self.tell({"unbegun": [request.token for request in self._unbegun]})
            self._unbegun = []

    def unbar(self) -> None:
        """Begin requests of this broker again, first those that are held."""
        self._is_barred = False
        if self._unbegun:
            unbegun, self._unbegun = self._unbegun, []
            self.begin(unbegun)

    def tell(self, options: Meta) -> None:
        """Send a HEARTBEAT with options."""
        self._link.answer(Heartbeat(options))

    def _on_clear(self) -> None:
        """Have another broker told that no request of this one is outstanding."""
        if self._exclusive is not None:
            self._exclusive.check()
