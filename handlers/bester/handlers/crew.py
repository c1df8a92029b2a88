"""Runs async handlers, a request at a time each, on tasks that are kept.

A task per request costs more than most handlers do. Here one task, the *leader*, takes request after request off the
queue and awaits the handler itself; a handler that never waits costs no task and no turn of the loop. Should it wait,
the leader is seen to be still at it when its turn ends (`_look`, called once a turn), and another member of the crew
leads on. So every handler runs in a real task of its own for as long as it runs: asyncio.timeout, current_task and
cancellation are what they are everywhere else. A member whose handler changed a context variable, or that was
cancelled, is not used again: nothing passes from one message to the next.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any

from bester.broker.wire.messages import Request
from bester.handlers.app import Route
from bester.handlers.message import Message

Job = tuple[Request, Route, int]
"""A request, what is done with it, and the life of the link it came on."""
SPARE_MEMBERS = 64
"""Members kept while there is nothing to do; more are made as handlers wait, at most one a request in hand."""


class Crew:
    """`done(job, result)` and `failed(job, error)` are called as handlers end. The queue is bounded by the credit."""

    def __init__(self, done: Callable[[Job, Any], None], failed: Callable[[Job, BaseException], None]) -> None:
        self._done = done
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._queue: deque[Job] = deque()
        self._members: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._led = False  # somebody leads, or was called to
        self._leader: asyncio.Task[None] | None = None  # who leads and has not been seen waiting
        self._closing = False

    def add(self, job: Job) -> None:
        """Queue a request; `wake` the crew after the last one."""
        self._queue.append(job)

    def wake(self) -> None:
        """See to it that somebody works off the queue."""
        if self._led or not self._queue or self._closing:
            return
        self._led = True
        while self._idle:
            call = self._idle.pop()
            if not call.done():
                call.set_result(None)
                return
        member = self._loop.create_task(self._member(), context=self._context.copy())
        self._members.add(member)
        member.add_done_callback(self._members.discard)

    def void(self) -> list[Job]:
        """The link was lost: cancel the handlers that wait; return the requests that were not begun."""
        self._look()  # who began to wait in this very turn counts too
        for member in self._waiting:
            member.cancel()
        left = list(self._queue)
        self._queue.clear()
        return left

    async def close(self) -> None:
        """Cancel everything and wait for it to end."""
        self._closing = True
        members = list(self._members)
        for member in members:
            member.cancel()
        await asyncio.gather(*members, return_exceptions=True)

    async def _member(self) -> None:
        me = asyncio.current_task()
        assert me is not None
        while self._lead(me) and not await self._work(me):
            call = self._loop.create_future()
            self._idle.append(call)
            try:
                await call
            except asyncio.CancelledError:  # by somebody who kept the task of a handler that has long ended
                if call.done() and not call.cancelled():
                    self._led = False
                    self.wake()
                raise

    def _lead(self, me: asyncio.Task[None]) -> bool:
        self._leader = me
        self._loop.call_soon(self._look)
        return True

    async def _work(self, me: asyncio.Task[None]) -> bool:
        """Work off the queue, as its leader; say whether to leave the crew now."""
        queue, snapshot, untouched = self._queue, contextvars.copy_context, self._context
        spoilt = False
        while queue and not spoilt:
            job = queue.popleft()
            try:
                result = await job[1].call(Message(job[0]))
            except asyncio.CancelledError as error:
                if self._closing:
                    raise
                self._failed(job, error)
            except Exception as error:  # noqa: BLE001 (whatever the user's function raises is its failure)
                self._failed(job, error)
            else:
                self._done(job, result)
            waited = self._leader is not me
            spoilt = snapshot() != untouched or bool(me.cancelling())
            if waited:
                self._waiting.discard(me)
                if spoilt or self._led or not queue:
                    return spoilt or len(self._idle) >= SPARE_MEMBERS
                self._led = self._lead(me)
        self._leader = None
        self._led = False
        self.wake()  # a leader that is not used again may leave something
        return spoilt or len(self._idle) >= SPARE_MEMBERS

    def _look(self) -> None:
        """The leader's turn of the loop is over: if it still leads, its handler waits for something."""
        if self._leader is None:
            return
        self._waiting.add(self._leader)
        self._leader = None
        self._led = False
        self.wake()
