"""A handler of the live stage: the SDK's worker on a thread and loop of its own, so that the handler can be stopped
alone.

A freeze stops the loop alone and stands for a frozen process. The handler has no lease, because a look at its process
(the test's) would show a running one.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from threading import Event, Thread
from typing import TypeVar
from unittest.mock import patch

from bester.broker.fabric_socket import SharedSocket
from bester.broker.wire.messages import Command
from bester.handlers.app import App
from bester.handlers.runtime import Outcome
from bester.handlers.worker import Worker
from tests.live import DEADLINE_S
from tests.scenes.stage import Handler

T = TypeVar("T")
NO_LEASE_MS = 1_500
"""The longest silence, in ms, that the stage's brokers allow a link."""


class LiveHandler(Handler):
    def __init__(self, app: App, endpoint: str) -> None:
        self._app = app
        self._app.lease_ms = NO_LEASE_MS
        self._silence = patch.object(SharedSocket, "send_from_another_thread", lambda socket, frames: False)
        self._endpoint = endpoint
        self._awake = Event()
        self._awake.set()
        self._ready: Future[None] = Future()
        self._thread = Thread(target=self._run, name=f"handler {app.name}", daemon=True)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._enough = asyncio.Event()
        worker = Worker(self._app, self._endpoint, name=self._app.name)
        worker.start()
        await worker.wait_ready()
        self._ready.set_result(None)
        await self._enough.wait()
        await worker.stop()

    async def start(self) -> None:
        """Return when the broker knows the handler."""
        self._thread.start()
        await _within_deadline(self._ready)

    async def freezes(self) -> None:
        asleep: Future[None] = Future()
        self._awake.clear()
        self._silence.start()

        def sleep() -> None:
            asleep.set_result(None)
            self._awake.wait()

        self._loop.call_soon_threadsafe(sleep)
        await _within_deadline(asleep)

    async def thaws(self) -> None:
        if not self._awake.is_set():
            self._awake.set()
            self._silence.stop()

    async def leaves(self) -> None:
        await self.thaws()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._enough.set)
        await asyncio.to_thread(self._thread.join, DEADLINE_S)
        assert not self._thread.is_alive()

    async def emits(self, type_: str, *commands: Command) -> Outcome:
        emit = self._app.emit(type_, list(commands))
        return await _within_deadline(asyncio.run_coroutine_threadsafe(emit, self._loop))


async def _within_deadline(future: Future[T]) -> T:
    return await asyncio.wait_for(asyncio.wrap_future(future), DEADLINE_S)
