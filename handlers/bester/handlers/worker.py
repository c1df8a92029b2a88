"""Runs an App on a link to a broker: requests come in batches, replies leave in batches, one a turn of the loop.

A reply goes out only in the life of the link that its request came in: a ZeroMQ socket would hand it to a restarted
broker, which knows nothing of it. Nothing here queues without a bound: the credit bounds what is in hand.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any

from bester.broker.fabric import FabricLink
from bester.broker.logs import facts
from bester.broker.wire.codes import BesterError, WireError
from bester.broker.wire.messages import (
    REFUSED,
    Ask,
    Command,
    Emit,
    Error,
    Heartbeat,
    Malformed,
    Meta,
    Reply,
    Request,
)
from bester.broker.wire.messages import Message as WireMessage
from bester.broker.wire.notes import describe
from bester.broker.wire.party import Party
from bester.handlers.app import App, Route, Runs
from bester.handlers.asking import Unanswered
from bester.handlers.crew import Crew, Job
from bester.handlers.message import Message
from bester.handlers.outlet import Outcome
from bester.handlers.reply import ReplyError, commands_of, verdict_on
from bester.handlers.threads import Threads
from bester.handlers.timers import Timers

log = logging.getLogger("bester.handlers")
_LOOP, _INLINE = Runs.LOOP, Runs.INLINE
_new = tuple.__new__  # makes a message in half the time of its class

DRAIN_S = 10.0
"""How long what is outstanding may take to finish when the worker is stopped; then the broker gives it to another."""
PARTING_S = 5.0
"""How long the broker may take to echo a GOODBYE."""
MAX_UNSURE = 4096
"""Emits with an id and no answer that are remembered, so that a repeat says it is one; the oldest is forgotten."""
AWAY_AGAIN_S = 30.0
"""At most so often is it logged that the broker is away."""


def hello_options(app: App, routes: Mapping[str, Route]) -> Meta:
    """Return what HELLO says of an app that serves these routes."""
    options: Meta = {
        "types": list(routes),
        "credit": app.credit,
        "software": f"bester.handlers (Python {platform.python_version()})",
    }
    if app.lease_ms is not None:
        options["lease_ms"] = app.lease_ms
    if app.version is not None:
        options["version"] = app.version
    schema = {type_: route.schema for type_, route in routes.items() if route.schema is not None}
    if schema:
        options["schema"] = schema
    order = {type_: "user" for type_, route in routes.items() if route.by_user}
    if order:
        options["order"] = order
    return options


class Worker:
    """One app on one link. `types` restricts or renames what it serves (see App.serving); `background` False leaves
    its timers and tasks to another process. Raises ValueError where the app does not serve a type."""

    def __init__(
        self,
        app: App,
        endpoint: str,
        *,
        name: str | None = None,
        types: Sequence[str] | None = None,
        background: bool = True,
    ) -> None:
        self.app = app
        self.endpoint = endpoint
        self._routes = app.serving(types)
        self.name = name or app.name or f"{next(iter(self._routes))}-{os.getpid()}"
        self._link = FabricLink(
            endpoint,
            Party("handler", self.name, hello_options(app, self._routes)),
            on_messages=self._received,
            on_ready=self._welcomed,
            on_lost=self._lost,
            on_unsendable=self._unsendable,
        )
        self._timers = Timers(app.timers if background else ())
        self._ready = asyncio.Event()
        self._quiet = asyncio.Event()
        self._unsure: OrderedDict[tuple[str, str], None] = OrderedDict()  # emits that may have been carried out
        self._life = 0
        self._outstanding = 0
        self._lanes: dict[tuple[str, str], deque[Job]] = {}
        self._logged_away_at = float("-inf")

    def start(self) -> None:
        """Connect, on the running loop, and serve once the broker answers. Raises zmq.ZMQError for a bad endpoint."""
        self.loop = asyncio.get_running_loop()
        self._crew = Crew(self._done, self._failed)
        self._threads = Threads(self.app.threads, self._is_wanted, self._done, self._failed)
        self._unanswered = Unanswered(self._link)
        self.app.attach(self)
        self._link.start()

    async def wait_ready(self) -> None:
        """Wait until the broker knows this worker."""
        await self._ready.wait()

    async def wait_over(self) -> None:
        """Wait until the link is over for good: stopped, or refused by the broker."""
        await self._link.over.wait()

    @property
    def refusal(self) -> Error | None:
        """Why the broker would not have this worker, if it would not."""
        return self._link.party.refusal

    async def stop(self, drain_s: float = DRAIN_S) -> None:
        """Take no new work, finish what is outstanding within `drain_s`, close."""
        deadline = self.loop.time() + drain_s
        await self._timers.stop()
        await self._link.leave(min(drain_s, PARTING_S))
        while self._outstanding and self.loop.time() < deadline:
            self._quiet.clear()
            try:
                async with asyncio.timeout(min(deadline - self.loop.time(), self._link.party.heartbeat_s)):
                    await self._quiet.wait()
            except TimeoutError:
                self._link.send(Heartbeat())  # still here, and still at it
        if self._outstanding:
            known = facts("drain-timeout", name=self.name, requests=self._outstanding, drain_s=drain_s)
            log.warning("%s: %d requests did not end in %g s and are left", self.name, self._outstanding, drain_s,
                        extra=known)  # fmt: skip
        self._void("the worker is stopping")
        await self._crew.close()
        self._threads.close()
        await self._link.close(0)
        self.app.detach()

    # --- the link ---

    def _welcomed(self) -> None:
        server = self._link.party.server or self.endpoint
        known = facts("handler-serves", name=self.name, types=list(self._routes), server=server)
        log.info("%s serves %s at %s", self.name, ", ".join(self._routes), server, extra=known)
        self._logged_away_at = float("-inf")
        self._unanswered.open()
        self._ready.set()
        self._timers.start()

    def _lost(self, why: str) -> None:
        self._ready.clear()
        self._void(why)
        if self.loop.time() >= self._logged_away_at + AWAY_AGAIN_S:
            self._logged_away_at = self.loop.time()
            known = facts("broker-away", name=self.name, broker=self.endpoint, why=why)
            log.warning("%s: the broker at %s is away (%s); trying again", self.name, self.endpoint, why, extra=known)

    def _void(self, why: str) -> None:
        """Nothing that came on the link, or was asked on it, will be answered any more."""
        self._life += 1
        self._outstanding = 0
        self._quiet.set()
        for lane in self._lanes.values():
            lane.clear()
        for job in self._crew.void():
            self._leave_lane(job)
        self._unanswered.void(why)

    def _received(self, messages: Sequence[WireMessage | Malformed]) -> None:
        routes, life, begin, add = self._routes, self._life, self._begin, self._crew.add
        for message in messages:
            if type(message) is not Request:
                self._heard(message)
                continue
            route = routes.get(message.type)
            if route is None:
                self._link.send(Reply(message.token, 1, [], f"this worker does not serve {message.type!r}"))
                continue
            self._outstanding += 1
            if route.by_user:
                self._enter_lane((message, route, life))
            elif route.runs is _LOOP:
                add((message, route, life))
            else:
                begin((message, route, life))
        self._crew.wake()

    def _unsendable(self, message: WireMessage, error: WireError) -> None:
        """The link has seen to it that whoever waits for the message is told."""
        what = "a reply" if isinstance(message, Reply) else type(message).__name__.upper()
        log.error("%s: %s cannot be sent: %s", self.name, what, error.text)

    def _heard(self, message: WireMessage | Malformed) -> None:
        if isinstance(message, Malformed):
            known = facts("unreadable", name=self.name, why=message.text)
            log.warning("%s: cannot read a message of the broker: %s", self.name, message.text, extra=known)
        elif not self._unanswered.settle(message) and isinstance(message, Error):
            code, text = message.code, message.text
            known = facts("refused", name=self.name, code=code, why=text)
            log.warning("%s: the broker refused a message: %s: %s", self.name, code, text, extra=known)

    # --- requests ---

    def _begin(self, job: Job) -> None:
        request, route, _ = job
        if route.runs is _INLINE:
            try:
                result = route.call(Message(request))
            except BaseException as error:  # noqa: BLE001 (whatever the user's function raises is its failure)
                self._failed(job, error)
            else:
                self._done(job, result)
        elif route.runs is _LOOP:
            self._crew.add(job)
        else:
            self._threads.add(job)

    def _enter_lane(self, job: Job) -> None:
        request = job[0]
        if request.user is None or job[1].runs is _INLINE:  # nobody's order to keep, or over before the next one begins
            self._begin(job)
            return
        lane = self._lanes.get((request.type, request.user))
        if lane is None:
            self._lanes[request.type, request.user] = deque()
            self._begin(job)
        else:
            lane.append(job)

    def _leave_lane(self, job: Job) -> None:
        request = job[0]
        if request.user is None or not job[1].by_user or job[1].runs is _INLINE:
            return
        lane = self._lanes[request.type, request.user]
        if lane:
            self._begin(lane.popleft())
            self._crew.wake()
        else:
            del self._lanes[request.type, request.user]

    def _is_wanted(self, job: Job) -> bool:
        return job[2] == self._life

    def _done(self, job: Job, result: Any) -> None:
        try:
            commands = commands_of(result)
        except ReplyError as error:
            self._failed(job, error)
            return
        self._answer(job, _new(Reply, (job[0].token, 0, commands, None, None)))

    def _failed(self, job: Job, error: BaseException) -> None:
        status, note, code, told = verdict_on(error)
        wanted = self._is_wanted(job)
        self._answer(job, Reply(job[0].token, status, [], note, code))
        if wanted:  # said last: nothing that goes wrong with a log line may keep the answer back
            self._log_failure(job, error, status, note if told else None)

    def _log_failure(self, job: Job, error: BaseException, status: int, note: str | None) -> None:
        request, route, _ = job
        id_, name = request.meta.get("id"), route.name
        known = facts("handler-failed", type=request.type, function=name, id=id_)
        if status == REFUSED:
            cause = f" ({describe(error.__cause__)})" if error.__cause__ is not None else ""
            known = facts("message-refused", type=request.type, id=id_, why=note)
            log.info("%s: message %s refused: %s%s", request.type, id_, note, cause, extra=known)
        elif note is not None:
            log.error("%s: %s failed on message %s: %s", request.type, name, id_, note, extra=known)
        else:
            log.error("%s: %s failed on message %s", request.type, name, id_, exc_info=error, extra=known)

    def _answer(self, job: Job, reply: Reply) -> None:
        if job[2] == self._life:
            self._link.send(reply)
            self._outstanding -= 1
            if not self._outstanding:
                self._quiet.set()
        if job[1].by_user:
            self._leave_lane(job)

    # --- of its own accord ---

    async def emit(self, type_: str, commands: list[Command], id_: str | None, timeout_s: float) -> Outcome:
        """As App.emit."""
        self._check(Emit(0, type_, commands, {"id": id_}))
        if type_ not in self._routes:
            raise ValueError(f"an app emits as one of its own types ({', '.join(self._routes)}), not as {type_!r}")
        if id_ is None:
            return await self._emit(type_, commands, {}, timeout_s)
        key = (type_, id_)
        meta: Meta = {"id": id_, "again": True} if key in self._unsure else {"id": id_}
        self._unsure[key] = None  # until there is an answer
        if len(self._unsure) > MAX_UNSURE:
            self._unsure.popitem(last=False)
        try:
            outcome = await self._emit(type_, commands, meta, timeout_s)
        except BesterError as error:
            if error.code not in ("timeout", "unreachable"):  # that is an answer, too
                self._unsure.pop(key, None)
            raise
        self._unsure.pop(key, None)
        return outcome

    def _check(self, message: Emit | Ask) -> None:
        wrong = self._link.fault(message)
        if wrong is not None:
            raise ValueError(wrong.text)

    async def _emit(self, type_: str, commands: list[Command], meta: Meta, timeout_s: float) -> Outcome:
        outcome: Outcome = await self._unanswered.ask(lambda token: Emit(token, type_, commands, meta), timeout_s)
        return outcome

    async def ask(self, question: str, argument: Any, timeout_s: float) -> Any:
        """Ask the broker. Raises BesterError where it does not answer, ValueError for what cannot be asked."""
        self._check(Ask(0, question, argument))
        return await self._unanswered.ask(lambda token: Ask(token, question, argument), timeout_s)
