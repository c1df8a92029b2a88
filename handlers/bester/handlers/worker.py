"""Runs an App on a link to a broker: requests come in batches, and are handled as runs of one type.

A reply is sent only on the link that delivered its request: a ZeroMQ socket would carry the reply to a restarted
broker, which does not know the request. Every queue has a bound: the credit bounds the requests in hand. Requests that
take too long are ended by `overtime`; a held loop is noticed by `watch`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from bester.broker.fabric import FabricLink
from bester.broker.keys import LinkKeys
from bester.broker.logs import facts
from bester.broker.wire.codes import WireError
from bester.broker.wire.link_client import LinkClient
from bester.broker.wire.messages import (
    DONE,
    FAILED,
    Command,
    Error,
    Heartbeat,
    Malformed,
    Meta,
    Reply,
    Request,
)
from bester.broker.wire.messages import Message as WireMessage
from bester.broker.wire.notes import class_name, describe, safe_note
from bester.broker.wire.runs import Received, read_requests, write_replies
from bester.handlers.app import App, Route, Runs
from bester.handlers.calls import PendingCalls
from bester.handlers.emits import Emits, Unsure
from bester.handlers.exclusive import Exclusive
from bester.handlers.executor import Ends, Executor
from bester.handlers.failures import log_failure
from bester.handlers.hello import hello_options
from bester.handlers.message import Message
from bester.handlers.overtime import was_cancelled
from bester.handlers.reply import ReplyError, commands_of, verdict_on
from bester.handlers.runtime import Outcome
from bester.handlers.task_pool import End, Job, NotBegunError
from bester.handlers.timers import Timers

log = logging.getLogger("bester.handlers")
_LOOP, _INLINE = Runs.LOOP, Runs.INLINE
_new = tuple.__new__  # makes a message in half the time of its class

DRAIN_S = 10.0
"""Seconds that outstanding requests may take when the worker is stopped; then they go to another worker."""
PARTING_S = 5.0
"""Seconds that the broker may take to echo a GOODBYE."""
AWAY_AGAIN_S = 30.0
"""Least seconds between two log lines about a broker that is away, for the same reason."""
NOT_BEGUN = "the deadline passed before a handler began"
TOO_LONG = "the handler was cancelled at the deadline"


class Share(NamedTuple):
    """Place of a worker among those of its app, each linked to another broker: number `number` of `of`, from 0 on. The
    workers have the timers in common, and `unsure`, the emits that perhaps were carried out. `name` is that of the
    process at all brokers."""

    number: int
    of: int
    timers: Timers
    unsure: Unsure
    name: str | None = None


class Worker:
    """Runs one app on one link. `types` restricts or renames the served types (see App.serving); `background` False
    leaves the app's timers and tasks to another process; `keys` encrypt the link; a `shadow` gets copies of messages,
    and its commands are never carried out. With `share` the worker is one of several of the app (see `cluster`).
    Raises ValueError where the app does not serve a type."""

    def __init__(
        self,
        app: App,
        endpoint: str,
        *,
        name: str | None = None,
        types: Sequence[str] | None = None,
        background: bool = True,
        keys: LinkKeys | None = None,
        shadow: bool = False,
        share: Share | None = None,
    ) -> None:
        self.app = app
        self.endpoint = endpoint
        self._routes = app.serving(types)
        self.name = name or app.name or f"{next(iter(self._routes))}-{os.getpid()}"
        options = hello_options(app, self._routes, endpoint, None if share is None else share.name)
        if shadow:
            options["shadow"] = True
        self._link = FabricLink(
            endpoint,
            LinkClient("handler", self.name, options),
            on_messages=self._on_messages,
            on_ready=self._on_welcome,
            on_lost=self._on_link_lost,
            on_unsendable=self._on_unsendable,
            shared=True,
            keys=keys,
            on_frames=self._on_frames,
            pack=write_replies,
        )
        self.failure: str | None = None
        """Why this worker has become useless; None while it is not."""
        self.ends = Ends(
            self._is_wanted, self._done_all, self._done, self._failed, self._not_begun, self._begin_next,
            self._on_useless, self._link.vouch, self._link.flush,
        )  # fmt: skip
        self._on_hung: Callable[[], None] = lambda: None
        self._over = asyncio.Event()
        self._broker_life: Any = None
        share = share or Share(0, 1, Timers(app.timers if background else ()), OrderedDict())
        self._timers = share.timers
        self._ready = asyncio.Event()
        self._drained = asyncio.Event()
        self._unsure = share.unsure
        self._life = share.number
        self._lives = share.of  # a life's remainder by this count is the worker's number
        self._outstanding = 0
        self._exclusive: Exclusive | None = None
        self._is_barred = False  # nothing of this broker may begin
        self._unbegun: list[Received] = []  # held while barred
        self._logged_away_at = float("-inf")
        self._logged_why = ""

    async def prepare(self) -> None:
        """Run the app's start hooks; to be awaited before `start`. An exception of a hook passes through."""
        await self.app.start()

    def start(self) -> None:
        """Connect on the running loop, and serve once the broker answers. Raises zmq.ZMQError for a bad endpoint."""
        executor = Executor(self.app, self._routes, self.name, self.ends)
        executor.overtime.on_hung = self._on_hung
        self.app.attach(self)
        self.connect(executor)
        executor.watch.start()

    def connect(self, executor: Executor) -> None:
        """Connect as `start` does, with an executor that belongs to the caller, as the app does."""
        self.loop = asyncio.get_running_loop()
        self._executor = executor
        self._pool, self._threads, self._groups = executor.pool, executor.threads, executor.groups
        self._overtime, self._watch = executor.overtime, executor.watch
        self._calls = PendingCalls(self._link)
        self.emits = Emits(self._link, self._calls, self._routes, self._unsure)
        self._link.start()

    def take_turns(self, exclusive: Exclusive) -> None:
        """Set the state of the process that tells which of its brokers has its exclusive use."""
        self._exclusive = exclusive

    async def wait_ready(self) -> None:
        """Wait until the broker has welcomed this worker."""
        await self._ready.wait()

    @property
    def is_ready(self) -> bool:
        """Whether the broker has welcomed this worker, and the link is there."""
        return self._ready.is_set()

    async def wait_over(self) -> None:
        """Wait for the worker's end: stopped, refused by the broker, or useless (`failure`)."""
        ends = [asyncio.ensure_future(event.wait()) for event in (self._link.over, self._over)]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()

    @property
    def refusal(self) -> Error | None:
        """The broker's refusal of this worker, or None."""
        return self._link.link_client.refusal

    def on_hung(self, call: Callable[[], None]) -> None:
        """Set a callback for a loop that hangs; called on a thread of its own."""
        self._on_hung = call

    async def stop(self, drain_s: float = DRAIN_S) -> None:
        """Take no new requests, finish outstanding ones within `drain_s`, close. Hanging requests are not waited
        for."""
        await self.drain(drain_s)
        await self._executor.close()
        await self.close()
        await end_app(self.app, self.name)

    async def drain(self, drain_s: float) -> None:
        """Take no new requests, and finish outstanding ones within `drain_s`."""
        deadline = self.loop.time() + drain_s
        await self._timers.stop()
        await self._link.leave(min(drain_s, PARTING_S))
        while self._outstanding > self._overtime.hung(self._is_wanted) and self.loop.time() < deadline:
            self._drained.clear()
            try:
                async with asyncio.timeout(min(deadline - self.loop.time(), self._link.link_client.heartbeat_s)):
                    await self._drained.wait()
            except TimeoutError:
                self._link.send(Heartbeat())  # the broker must know that the requests are still worked on
        if self._outstanding:
            hung = self._outstanding <= self._overtime.hung(self._is_wanted)
            why = "they hang, or wait for a thread that hangs" if hung else f"they did not end in {drain_s:g} s"
            fields = facts("drain-timeout", name=self.name, requests=self._outstanding, drain_s=drain_s)
            log.warning("%s: %d requests are outstanding: %s", self.name, self._outstanding, why, extra=fields)
        self._abandon("the worker is stopping")

    async def close(self) -> None:
        """Close the link."""
        await self._link.close(0)

    # --- the link ---

    def _on_welcome(self) -> None:
        client, before = self._link.link_client, self._broker_life
        self._overtime.set_limits(client.options)
        self._watch.heartbeat_s = client.heartbeat_s
        self._broker_life = client.options.get("life")
        again = ""
        if before is not None:
            restarted = before != self._broker_life
            again = " again: " + ("the broker has restarted" if restarted else "the link between them was given up")
        server = client.server or self.endpoint
        fields = facts("handler-serves", name=self.name, types=list(self._routes), server=server)
        log.info("%s serves %s at %s%s", self.name, ", ".join(self._routes), server, again, extra=fields)
        self._logged_away_at = float("-inf")
        self._calls.set_ready()
        self._ready.set()
        self._timers.start()
        if self._exclusive is not None:
            self._exclusive.on_linked(self)

    def _on_link_lost(self, why: str) -> None:
        self._ready.clear()
        self._abandon(why)
        if self._exclusive is not None:
            self._exclusive.on_lost(self)
        if self.loop.time() >= self._logged_away_at + AWAY_AGAIN_S or why != self._logged_why:
            self._logged_away_at, self._logged_why = self.loop.time(), why
            fields = facts("broker-away", name=self.name, broker=self.endpoint, why=why)
            log.warning(
                "%s: no link to the broker at %s (%s); trying again", self.name, self.endpoint, why, extra=fields
            )

    def _abandon(self, why: str) -> None:
        """Drop all requests and calls of the present link: none will be answered."""
        self._life += self._lives
        self._unbegun = []
        self._outstanding = 0
        self._drained.set()
        self._groups.drop(self._executor.ends.is_wanted)
        for job in self._pool.cancel_waiting(self._executor.ends.is_wanted):
            if job[1].by_user:
                self._begin_next(job)
        self._calls.fail_all(why)

    def _on_frames(self, frames: list[bytes]) -> bool:
        """Take in a ZeroMQ message that holds requests alone; return False for any other."""
        requests = read_requests(frames)
        if requests is None:
            return False
        self._on_run(requests)
        return True

    def _on_messages(self, messages: Sequence[WireMessage | Malformed]) -> None:
        run: list[Request] = []
        life = self._life
        for message in messages:
            if type(message) is Request:
                run.append(message)
                continue
            if run:
                self._on_run(run)
                run = []
            try:
                self._on_other(message)
            except Exception as error:  # noqa: BLE001 (a fault over one message must not cost the rest of the batch)
                self._on_fault(class_name(message), None, life, error)
        if run:
            self._on_run(run)

    def _on_run(self, requests: Sequence[Received]) -> None:
        """Begin requests that came together, in their order, as runs of one type."""
        if self._is_barred:
            self._unbegun += requests
            return
        start, count = 0, len(requests)
        if count == 1:
            self._begin_run(requests[0].type, requests)
            start = 1
        while start < count:
            type_ = requests[start].type
            end = start + 1
            while end < count and requests[end].type == type_:
                end += 1
            self._begin_run(type_, requests if end - start == count else requests[start:end])
            start = end
        self._pool.wake()

    def _begin_run(self, type_: str, requests: Sequence[Received]) -> None:
        """Begin requests of one type."""
        route, life, now = self._routes.get(type_), self._life, time.monotonic()
        if route is None:
            why = f"this worker does not serve {type_!r}"
            self._link.answer(*[Reply(request.token, FAILED, [], why) for request in requests])
            return
        if route.runs is _INLINE:
            self._call_inline(route, requests, life, now)
            return
        self._outstanding += len(requests)
        jobs: list[Job] = [(request, route, life, now) for request in requests]
        if route.by_user:
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
                self._on_fault("Request", job[0], job[2], error)

    def _call_inline(self, route: Route, requests: Sequence[Received], life: int, now: float) -> None:
        """Call a function of microseconds for each request, and queue the replies together. No request is outstanding
        meanwhile: nothing else runs."""
        call = route.call
        replies: list[WireMessage] = []
        for request in requests:
            try:
                result = call(Message(request))
            except BaseException as error:  # noqa: BLE001 (any exception of the user's function is its failure)
                self._send_all(replies)
                self._outstanding += 1
                self._each(partial(self._failed, error=error), [(request, route, life, now)])
            else:
                if type(result) is Command:  # the usual result, which needs no look
                    replies.append(_new(Reply, (request.token, DONE, [result], None, None)))
                else:
                    self._send_all(replies)
                    self._outstanding += 1
                    self._each(partial(self._done, result=result), [(request, route, life, now)])
        self._send_all(replies)

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
                self._drained.set()
                if self._is_barred:
                    self._on_clear()
            self._send_all(replies)

    def _on_fault(self, name: str, request: Received | None, life: int, error: Exception) -> None:
        """End a message (NAME in the log) over which the worker itself has failed, and answer a request."""
        why = f"the worker failed over it: {describe(error)}"
        fields = facts("worker-failed", name=self.name, message=name, why=why)
        log.error("%s: %s: %s", self.name, name.upper(), why, extra=fields)
        if request is not None and request.type in self._routes and life == self._life:
            self._link.answer(Reply(request.token, FAILED, [], safe_note(why)))
            self._count_down()

    def _on_unsendable(self, message: WireMessage, error: WireError) -> None:
        """Log a message that cannot be encoded; the link has answered its waiter."""
        kind = "a reply" if isinstance(message, Reply) else type(message).__name__.upper()
        fields = facts("unsendable", name=self.name, message=type(message).__name__, why=error.text)
        log.error("%s: %s cannot be sent: %s", self.name, kind, error.text, extra=fields)

    def _on_other(self, message: WireMessage | Malformed) -> None:
        if isinstance(message, Heartbeat):
            if message.options and self._exclusive is not None:
                self._exclusive.on_signals(self, message.options)
        elif isinstance(message, Malformed):
            fields = facts("unreadable", name=self.name, why=message.text)
            log.warning("%s: cannot read a message of the broker: %s", self.name, message.text, extra=fields)
        elif not self._calls.settle(message) and isinstance(message, Error):
            code, text = message.code, message.text
            fields = facts("refused", name=self.name, code=code, why=text)
            log.warning("%s: the broker refused a message: %s: %s", self.name, code, text, extra=fields)

    # --- exclusive use of the process ---

    @property
    def is_linked(self) -> bool:
        """Whether the broker has welcomed this worker, and the link is there."""
        return self.is_ready

    @property
    def can_pause(self) -> bool:
        """Whether the broker knows of exclusive use."""
        return self._link.link_client.options.get("exclusive") is True

    @property
    def is_clear(self) -> bool:
        """Whether no request of this broker is worked on, but for those that hang."""
        return not self._outstanding or self._outstanding <= self._overtime.hung(self._is_wanted)

    @property
    def works_on_earlier(self) -> bool:
        """Whether a handler still works on a request that came by an earlier link, one that hangs excepted."""
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
            self._drained.set()
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
            self._on_run(unbegun)

    def tell(self, options: Meta) -> None:
        """Send a HEARTBEAT with options."""
        self._link.answer(Heartbeat(options))

    def _on_clear(self) -> None:
        """Have another broker told that no request of this one is outstanding."""
        if self._exclusive is not None:
            self._exclusive.check()

    # --- requests ---

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
            self._drained.set()
            if self._is_barred:
                self._on_clear()

    def _on_useless(self, why: str) -> None:
        fields = facts("worker-useless", name=self.name, why=why)
        log.error("%s: %s; this worker cannot serve any more and ends", self.name, why, extra=fields)
        self.failure = why
        self._over.set()

    def _answer(self, job: Job, reply: Reply) -> None:
        if job[2] == self._life:
            self._link.answer(reply)
            self._outstanding -= 1  # as in `_count_down`, without a call for every message
            if not self._outstanding:
                self._drained.set()
                if self._is_barred:
                    self._on_clear()
        if job[1].by_user and not self._overtime.is_passed_over(job):
            self._begin_next(job)

    # --- emits and questions ---

    async def emit(self, type_: str, commands: list[Command], id_: str | None, timeout_s: float) -> Outcome:
        """Emit as App.emit does."""
        return await self.emits.emit(type_, commands, id_, timeout_s)

    async def ask(self, question: str, argument: Any, timeout_s: float) -> Any:
        """Ask the broker. Raises BesterError where no answer comes, ValueError for an invalid question."""
        return await self.emits.ask(question, argument, timeout_s)


async def end_app(app: App, name: str) -> None:
    """Detach an app, and run its stop hooks; an exception of a hook is logged."""
    app.detach()
    try:
        await app.stop()
    except Exception:
        log.exception("%s: a stop hook failed", name, extra=facts("stop-hook-failed", name=name))
