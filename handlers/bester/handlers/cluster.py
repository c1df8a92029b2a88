"""Runs one App on several links, one to each broker of a server.

Each broker gives requests of its own, up to the app's credit each; one executor runs them all, so that threads are
bounded once and a user's messages keep their order whichever broker has them. Emits and questions go to one broker, the
first that is there. A broker may have the exclusive use of the process for a message (see `exclusive`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from bester.broker.keys import LinkKeys
from bester.broker.logs import facts
from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import Command, Error
from bester.handlers.app import App
from bester.handlers.emits import Unsure
from bester.handlers.exclusive import Exclusive
from bester.handlers.executor import Executor, joined
from bester.handlers.runtime import Outcome
from bester.handlers.timers import Timers
from bester.handlers.worker import DRAIN_S, Share, Worker, end_app

log = logging.getLogger("bester.handlers")

MAX_BROKERS = 64
"""Brokers that one handler may be linked to; each costs a socket and heartbeats, and a server has a few."""

T = TypeVar("T")


class Cluster:
    """Worker of an app for the brokers at `links`, each an endpoint with the keys of an encrypted link: `workers` has
    one for each broker. The other parameters, the methods and their errors are those of Worker."""

    def __init__(
        self,
        app: App,
        links: Sequence[tuple[str, LinkKeys | None]],
        *,
        name: str | None = None,
        types: Sequence[str] | None = None,
        background: bool = True,
        shadow: bool = False,
    ) -> None:
        if not 1 <= len(links) <= MAX_BROKERS:
            raise ValueError(f"a handler is linked to 1 to {MAX_BROKERS} brokers, not {len(links)}")
        self.app = app
        self._timers = Timers(app.timers if background else ())
        unsure = Unsure()
        # A shadow's brokers count no deaths, and it has no name at them.
        shared = secrets.token_hex(8) if len(links) > 1 and not shadow else None
        shares = [Share(number, len(links), self._timers, unsure, shared) for number in range(len(links))]
        self.workers = [
            Worker(app, endpoint, name=name, types=types, keys=keys, shadow=shadow, share=share)
            for (endpoint, keys), share in zip(links, shares, strict=True)
        ]
        self._exclusive = Exclusive([worker.requests for worker in self.workers])
        if shared is not None:
            for worker in self.workers:
                worker.take_turns(self._exclusive)
        self.name = self.workers[0].name
        self._routes = app.serving(types)
        self._on_hung: Callable[[], None] = lambda: None

    @property
    def endpoint(self) -> str:
        """The brokers' endpoints, for people."""
        return ", ".join(worker.endpoint for worker in self.workers)

    async def prepare(self) -> None:
        """Run the app's start hooks, as Worker.prepare does."""
        await self.app.start()

    def start(self) -> None:
        """Connect to all brokers on the running loop, and serve each once it answers."""
        self.loop = asyncio.get_running_loop()
        ends = [worker.requests.ends for worker in self.workers]
        self._executor = Executor(self.app, self._routes, self.name, joined(ends))
        self._executor.overtime.on_hung = self._on_hung
        self._executor.overtime.on_looked = self._exclusive.check
        self.app.attach(self)
        for worker in self.workers:
            worker.connect(self._executor)
        self._executor.watch.start()

    async def wait_ready(self) -> None:
        """Wait until any broker has welcomed this worker."""
        await _first(worker.wait_ready() for worker in self.workers)

    async def wait_over(self) -> None:
        """Wait for the end: stopped, useless (`failure`), or refused by every broker. The refusal of one broker is
        logged, and the others are served."""
        ends = {asyncio.ensure_future(worker.wait_over()): worker for worker in self.workers}
        try:
            while ends and self.failure is None:
                done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for end in done:
                    worker = ends.pop(end)
                    if worker.refusal is not None and ends:
                        self._log_refusal(worker.endpoint, worker.refusal)
        finally:
            for end in ends:
                end.cancel()

    def _log_refusal(self, endpoint: str, refusal: Error) -> None:
        text = "%s: the broker at %s refuses this handler, which serves the others alone: %s: %s"
        code, why = refusal.code, refusal.text
        fields = facts("broker-refuses", name=self.name, broker=endpoint, code=code, why=why)
        log.error(text, self.name, endpoint, code, why, extra=fields)

    @property
    def failure(self) -> str | None:
        """Why this worker has become useless; None while it is not."""
        return next((worker.failure for worker in self.workers if worker.failure is not None), None)

    @property
    def refusal(self) -> Error | None:
        """A broker's refusal, where every broker refuses this worker; else None."""
        refusals = [worker.refusal for worker in self.workers]
        return None if None in refusals else refusals[0]

    def on_hung(self, call: Callable[[], None]) -> None:
        """Set a callback for a loop that hangs; called on a thread of its own."""
        self._on_hung = call

    async def stop(self, drain_s: float = DRAIN_S) -> None:
        """Take no new requests of any broker, finish outstanding ones within `drain_s`, close."""
        await asyncio.gather(*(worker.drain(drain_s) for worker in self.workers))
        await self._executor.close()
        await asyncio.gather(*(worker.close() for worker in self.workers))
        await end_app(self.app, self.name)

    # --- emits and questions ---

    async def emit(self, type_: str, commands: list[Command], id_: str | None, timeout_s: float) -> Outcome:
        """Emit as App.emit does, to one broker. An emit with an id goes to another one where the first is lost before
        its answer, and is marked: the first broker may have carried it out."""
        self.workers[0].emits.check(type_, commands, id_)
        return await self._by_one(
            lambda worker, left_s: worker.emit(type_, commands, id_, left_s), timeout_s, is_repeatable=id_ is not None
        )

    async def ask(self, question: str, argument: Any, timeout_s: float) -> Any:
        """Ask one broker, another one where the first is lost before its answer."""
        self.workers[0].emits.check_ask(question, argument)
        return await self._by_one(
            lambda worker, left_s: worker.ask(question, argument, left_s), timeout_s, is_repeatable=True
        )

    async def _by_one(self, call: Callable[[Worker, float], Awaitable[T]], timeout_s: float, is_repeatable: bool) -> T:
        """Return the answer of the first broker that is there. Each broker is asked once at most."""
        deadline = self.loop.time() + timeout_s
        if not any(worker.is_ready for worker in self.workers):
            try:
                async with asyncio.timeout(timeout_s):
                    await self.wait_ready()
            except TimeoutError:
                raise BesterError("timeout", f"no broker at {self.endpoint} answered in {timeout_s:g} s") from None
        asked: set[Worker] = set()
        worker = self._first_ready(asked) or self.workers[0]
        while True:
            try:
                return await call(worker, max(0.0, deadline - self.loop.time()))
            except BesterError as error:
                asked.add(worker)
                other = self._first_ready(asked)
                if error.code != "unreachable" or not is_repeatable or other is None:
                    raise
                worker = other

    def _first_ready(self, asked: set[Worker]) -> Worker | None:
        return next((worker for worker in self.workers if worker.is_ready and worker not in asked), None)


async def _first(waits: Any) -> None:
    """Wait for the first of these to end, and cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
