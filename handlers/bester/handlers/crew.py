"""Runs async handlers, a request at a time each, on tasks that are kept.

A task per request costs more than most handlers do. Here one task, the *leader*, takes request after request off the
queue and awaits the handler itself; a handler that never waits costs no task and no turn of the loop. Should it wait,
that is noticed as soon as anything else runs, for only one task runs at a time: another member of the crew that has
come back leads on, or `_look`, called at the end of the turn, calls some up; the more, the more of them waited before.
So every handler runs in a real task of its own for as long as it runs: asyncio.timeout, current_task and cancellation
are what they are everywhere else. A member whose handler changed a context variable, or that was cancelled, is not
used again: nothing passes from one message to the next.
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
SPARE_MEMBERS = 256
"""Members kept while there is nothing to do; more are made as handlers wait, at most one a request in hand."""
MAX_WAVE = 64
"""Members called up at once."""


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
        self._called = 0  # members that were called up and have not begun
        self._wave = 1  # how many to call up at once
        self._leader: asyncio.Task[None] | None = None  # who leads, and was not seen waiting
        self._closing = False

    def add(self, job: Job) -> None:
        """Queue a request; `wake` the crew after the last one."""
        self._queue.append(job)

    def wake(self) -> None:
        """See to it that somebody works off the queue."""
        if self._called or self._leader is not None or self._closing:
            return
        for _ in range(min(self._wave, len(self._queue))):
            self._called += 1
            self._call_up()

    def _call_up(self) -> None:
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
        while True:
            self._called -= 1
            if not self._queue:
                self._wave = max(1, self._wave // 2)  # called up in vain
            elif await self._work(me):
                return
            if len(self._idle) >= SPARE_MEMBERS:
                return
            call = self._loop.create_future()
            self._idle.append(call)
            try:
                await call
            except asyncio.CancelledError:  # by somebody who kept the task of a handler that has long ended
                if call.done() and not call.cancelled():
                    self._called -= 1
                    self.wake()
                raise

    async def _work(self, me: asyncio.Task[None]) -> bool:
        """Work off the queue, as its leader; say whether this member is not to be used again."""
        queue, snapshot, untouched = self._queue, contextvars.copy_context, self._context
        self._lead(me)
        spoilt = False
        while queue and not spoilt:
            job = queue.popleft()
            try:
                result = await job[1].call(Message(job[0]))
            except BaseException as error:
                if self._is_ours(error, me):
                    raise
                self._failed(job, error)  # whatever the user's function raises, SystemExit included, is its failure
            else:
                self._done(job, result)
            spoilt = snapshot() != untouched or bool(me.cancelling())
            if self._leader is not me:  # the handler waited
                self._waiting.discard(me)
                if spoilt or not queue:
                    self.wake()
                    return spoilt
                self._lead(me)
        self._leader = None
        self.wake()  # a leader that is not used again may leave something
        return spoilt

    def _is_ours(self, error: BaseException, me: asyncio.Task[None]) -> bool:
        """Does this end the member itself, rather than the handler that it was raised in?"""
        if isinstance(error, asyncio.CancelledError):
            return self._closing
        return isinstance(error, GeneratorExit) and asyncio.current_task(self._loop) is not me  # the loop was given up

    def _lead(self, me: asyncio.Task[None]) -> None:
        if self._leader is None:
            self._loop.call_soon(self._look)
        else:
            self._waiting.add(self._leader)  # it waits, or this would not run; its `_look` is still to come
        self._leader = me

    def _look(self) -> None:
        """Who began to lead has had its turn: if it leads still, its handler waits for something."""
        if self._leader is None:
            return
        self._waiting.add(self._leader)
        self._leader = None
        self._wave = min(self._wave * 2, MAX_WAVE)
        self.wake()
