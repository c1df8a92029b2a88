"""Runs an App on a link to a broker: the link's beginnings and ends, and what comes by it.

What becomes of requests is in `requests`. Requests that take too long are ended by `overtime`; a held loop is noticed
by `watch`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bester.broker.fabric import FabricLink
from bester.broker.keys import LinkKeys
from bester.broker.logs import facts
from bester.broker.wire.codes import WireError
from bester.broker.wire.link_client import LinkClient
from bester.broker.wire.messages import (
    Command,
    Error,
    Heartbeat,
    Malformed,
    Reply,
    Request,
)
from bester.broker.wire.messages import Message as WireMessage
from bester.broker.wire.notes import class_name
from bester.broker.wire.runs import read_requests, write_replies
from bester.broker.wire.trouble import Told
from bester.handlers.app import App
from bester.handlers.calls import PendingCalls
from bester.handlers.emits import Emits, Unsure
from bester.handlers.exclusive import Exclusive
from bester.handlers.executor import Executor
from bester.handlers.hello import hello_options
from bester.handlers.requests import Requests
from bester.handlers.runtime import Outcome
from bester.handlers.timers import Timers

log = logging.getLogger("bester.handlers")

DRAIN_S = 10.0
"""Seconds that outstanding requests may take when the worker is stopped; then they go to another worker."""
PARTING_S = 5.0
"""Seconds that the broker may take to echo a GOODBYE."""
AWAY_AGAIN_S = 30.0
"""Least seconds between two log lines about a broker that is away, for the same reason."""


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
        self._on_hung: Callable[[], None] = lambda: None
        self._over = asyncio.Event()
        self._broker_life: Any = None
        share = share or Share(0, 1, Timers(app.timers if background else ()), OrderedDict())
        self._timers = share.timers
        self._ready = asyncio.Event()
        self._unsure = share.unsure
        self.requests = Requests(self._link, self._routes, self.name, share.number, share.of, self._on_useless)
        """Requests of this worker's broker."""
        self._exclusive: Exclusive | None = None
        self._told = Told(AWAY_AGAIN_S)

    async def prepare(self) -> None:
        """Run the app's start hooks; to be awaited before `start`. An exception of a hook passes through."""
        await self.app.start()

    def start(self) -> None:
        """Connect on the running loop, and serve once the broker answers. Raises zmq.ZMQError for a bad endpoint."""
        executor = Executor(self.app, self._routes, self.name, self.requests.ends)
        executor.overtime.on_hung = self._on_hung
        self.app.attach(self)
        self.connect(executor)
        executor.watch.start()

    def connect(self, executor: Executor) -> None:
        """Connect as `start` does, with an executor that belongs to the caller, as the app does."""
        self.loop = asyncio.get_running_loop()
        self._executor = executor
        self.requests.run_by(executor)
        self._calls = PendingCalls(self._link)
        self.emits = Emits(self._link, self._calls, self._routes, self._unsure)
        self._link.start()

    def take_turns(self, exclusive: Exclusive) -> None:
        """Set the state of the process that tells which of its brokers has its exclusive use."""
        self._exclusive = exclusive
        self.requests.take_turns(exclusive)

    async def wait_ready(self) -> None:
        """Wait until the broker has welcomed this worker."""
        await self._ready.wait()

    @property
    def is_ready(self) -> bool:
        """Return whether the broker has welcomed this worker, and the link is there."""
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
        requests = self.requests
        while requests.outstanding > requests.hung and self.loop.time() < deadline:
            requests.drained.clear()
            try:
                async with asyncio.timeout(min(deadline - self.loop.time(), self._link.link_client.heartbeat_s)):
                    await requests.drained.wait()
            except TimeoutError:
                self._link.send(Heartbeat())  # the broker must know that the requests are still worked on
        if requests.outstanding:
            hung = requests.outstanding <= requests.hung
            why = "they hang, or wait for a thread that hangs" if hung else f"they did not end in {drain_s:g} s"
            fields = facts("drain-timeout", name=self.name, requests=requests.outstanding, drain_s=drain_s)
            log.warning("%s: %d requests are outstanding: %s", self.name, requests.outstanding, why, extra=fields)
        self._abandon("the worker is stopping")

    async def close(self) -> None:
        """Close the link."""
        await self._link.close(0)

    # --- the link ---

    def _on_welcome(self) -> None:
        client, before = self._link.link_client, self._broker_life
        self._executor.overtime.set_limits(client.options)
        self._executor.watch.heartbeat_s = client.heartbeat_s
        self._broker_life = client.options.get("life")
        again = ""
        if before is not None:
            restarted = before != self._broker_life
            again = " again: " + ("the broker has restarted" if restarted else "the link between them was given up")
        server = client.server or self.endpoint
        fields = facts("handler-serves", name=self.name, types=list(self._routes), server=server)
        log.info("%s serves %s at %s%s", self.name, ", ".join(self._routes), server, again, extra=fields)
        self._told.clear()
        self._calls.set_ready()
        self._ready.set()
        self.requests.is_linked = True
        self._timers.start()
        if self._exclusive is not None:
            self._exclusive.on_linked(self.requests)

    def _on_link_lost(self, why: str) -> None:
        self._ready.clear()
        self.requests.is_linked = False
        self._abandon(why)
        if self._exclusive is not None:
            self._exclusive.on_lost(self.requests)
        if self._told.is_due(why, self.loop.time()):
            fields = facts("broker-away", name=self.name, broker=self.endpoint, why=why)
            log.warning(
                "%s: no link to the broker at %s (%s); trying again", self.name, self.endpoint, why, extra=fields
            )

    def _abandon(self, why: str) -> None:
        """Drop all requests and calls of the present link: none will be answered."""
        self.requests.drop()
        self._calls.fail_all(why)

    def _on_frames(self, frames: list[bytes]) -> bool:
        """Take in a ZeroMQ message that holds requests alone; return False for any other."""
        requests = read_requests(frames)
        if requests is None:
            return False
        if len(frames) > 1:  # a long body has a frame of its own
            self.requests.begin_apart(requests)
        else:
            self.requests.begin(requests)
        return True

    def _on_messages(self, messages: Sequence[WireMessage | Malformed]) -> None:
        run: list[Request] = []
        for message in messages:
            if type(message) is Request:
                run.append(message)
                continue
            if run:
                self.requests.begin_apart(run)
                run = []
            try:
                self._on_other(message)
            except Exception as error:  # noqa: BLE001 (a fault over one message must not cost the rest of the batch)
                self.requests.on_fault(class_name(message), None, error)
        if run:
            self.requests.begin_apart(run)

    def _on_unsendable(self, message: WireMessage, error: WireError) -> None:
        """Log a message that cannot be encoded; the link has answered its waiter."""
        kind = "a reply" if isinstance(message, Reply) else type(message).__name__.upper()
        fields = facts("unsendable", name=self.name, message=type(message).__name__, why=error.text)
        log.error("%s: %s cannot be sent: %s", self.name, kind, error.text, extra=fields)

    def _on_other(self, message: WireMessage | Malformed) -> None:
        if isinstance(message, Heartbeat):
            if message.options and self._exclusive is not None:
                self._exclusive.on_signals(self.requests, message.options)
        elif isinstance(message, Malformed):
            fields = facts("unreadable", name=self.name, why=message.text)
            log.warning("%s: cannot read a message of the broker: %s", self.name, message.text, extra=fields)
        elif not self._calls.settle(message) and isinstance(message, Error):
            code, text = message.code, message.text
            fields = facts("refused", name=self.name, code=code, why=text)
            log.warning("%s: the broker refused a message: %s: %s", self.name, code, text, extra=fields)

    def _on_useless(self, why: str) -> None:
        fields = facts("worker-useless", name=self.name, why=why)
        log.error("%s: %s; this worker cannot serve any more and ends", self.name, why, extra=fields)
        self.failure = why
        self._over.set()

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
