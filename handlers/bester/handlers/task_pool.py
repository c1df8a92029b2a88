"""Runs async handlers, a request at a time each, on tasks that are kept.

A task per request costs more than most handlers do. Here one task, the *leader*, takes request after request off the
queue and awaits the handler itself; a handler that never waits costs no task and no turn of the loop. Should it wait,
that is noticed as soon as anything else runs, for only one task runs at a time: another member of the crew that has
come back leads on, or `_look`, called at the end of the turn, calls some up; the more, the more of them waited before.
So every handler runs in a real task of its own for as long as it runs: asyncio.timeout, current_task and cancellation
are what they are everywhere else. A member whose handler changed a context variable, or that was cancelled, is not
used again: nothing passes from one message to the next.

A handler that waits beyond its request's time is cancelled. One that holds the loop cannot be; but `breathe`, called
from another thread, sees to it that the loop has a turn before the next one begins.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from bester.broker.wire.messages import Request
from bester.handlers.app import Route
from bester.handlers.message import Message
from bester.handlers.stacks import waits_at

Job = tuple[Request, Route, int, float]
"""A request, what is done with it, the life of the link it came on, and when it came (monotonic seconds)."""
SPARE_MEMBERS = 256
"""Members kept while there is nothing to do; more are made as handlers wait, at most one a request in hand."""
MAX_WAVE = 64
"""Members called up at once."""
OVERDUE = "its time is over"
"""What the CancelledError of a handler says that took too long."""
STUBBORN_S = 5.0
"""How long a cancelled handler may take to end before it counts as one that will not."""
CLOSING_S = 1.0
"""How long handlers may take to end when everything is cancelled; a process does not wait longer for its end."""


class NotBegunError(Exception):
    """A request's time was over before anything could begin it."""


class TaskPool:
    """`done(job, result)` and `failed(job, error)` are called as handlers end. The queue is bounded by the credit.

    `due(job)` is when the time of a request is over (monotonic seconds).
    """

    def __init__(
        self,
        done: Callable[[Job, Any], None],
        failed: Callable[[Job, BaseException], None],
        due: Callable[[Job], float] = lambda _: math.inf,
    ) -> None:
        self._done = done
        self._failed = failed
        self._due = due
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._queue: deque[Job] = deque()
        self._members: set[asyncio.Task[None]] = set()
        self._waiting: dict[asyncio.Task[None], list[Any]] = {}  # the job, and when its time is over, once looked up
        self._cancelled: dict[asyncio.Task[None], tuple[Job, float]] = {}  # the job, and when it was cancelled
        self._idle: list[asyncio.Future[None]] = []
        self._called = 0  # members that were called up and have not begun
        self._wave = 1  # how many to call up at once
        self._leader: asyncio.Task[None] | None = None  # who leads, and was not seen waiting
        self._job: Job | None = None  # what the leader is at; the last one where there is none
        self._closing = False
        self._breath = threading.Lock()
        self._held_back: list[Job] = []  # until the loop has had its turn

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
        with self._breath:
            left = [*self._held_back, *self._queue]
            self._held_back.clear()
            self._queue.clear()
        return left

    async def close(self) -> bool:
        """Cancel everything and wait for it to end; says whether all did."""
        self._closing = True
        for member in self._members:
            member.cancel()
        if not self._members:
            return True
        _, left = await asyncio.wait(self._members, timeout=CLOSING_S)
        return not left

    # --- what takes too long ---

    def cancel_overdue(self, now: float) -> list[tuple[Job, str]]:
        """Cancel the handlers that wait and whose time is over; return their requests and the line each waits at."""
        found, late = [], []
        for member, entry in self._waiting.items():
            if entry[1] is None:
                entry[1] = self._due(entry[0])
            if entry[1] <= now:
                entry[1] = math.inf
                late.append((member, entry[0]))
        for member, job in late:
            found.append((job, waits_at(member)))
            self._cancelled[member] = (job, now)
            member.cancel(OVERDUE)
        return found

    def stubborn(self, now: float) -> list[Job]:
        """Return the requests whose handlers were cancelled for the time they took, and go on all the same."""
        return [job for job, cancelled in self._cancelled.values() if now - cancelled >= STUBBORN_S]

    @property
    def latest(self) -> Job | None:
        """The request that was begun last, if not long ago."""
        return self._job

    def forget_latest(self) -> None:
        """Keep no request alive that has ended long ago."""
        if self._leader is None:
            self._job = None

    def breathe(self) -> None:
        """From another thread, while a handler holds the loop: hold back what is queued behind it."""
        with self._breath:
            if self._held_back:
                return
            try:
                while True:
                    self._held_back.append(self._queue.popleft())
            except IndexError:
                pass
            if self._held_back:
                self._loop.call_soon_threadsafe(self._go_on)

    def _go_on(self) -> None:
        """The loop has had its turn: work off what was held back, but for what is overdue by now."""
        with self._breath:
            held_back, self._held_back = self._held_back, []
        now = time.monotonic()
        for job in held_back:
            if self._due(job) > now:
                self._queue.append(job)
            else:
                self._failed(job, NotBegunError())
        self.wake()

    # --- members ---

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
            try:
                job = self._job = queue.popleft()
            except IndexError:  # `breathe` was quicker
                break
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
                self._waiting.pop(me, None)
                if self._cancelled:
                    self._cancelled.pop(me, None)
                if spoilt or not queue:
                    self.wake()
                    return spoilt
                self._lead(me)
        self._leader = None
        self.wake()  # a leader that is not used again may leave something
        return spoilt

    def _is_ours(self, error: BaseException, me: asyncio.Task[None]) -> bool:
        """Does this end the member itself, rather than the handler that it was raised in?"""
        kind = type(error)  # `isinstance` would ask the exception, which may raise
        if issubclass(kind, asyncio.CancelledError):
            return self._closing
        return issubclass(kind, GeneratorExit) and asyncio.current_task(self._loop) is not me  # the loop was given up

    def _lead(self, me: asyncio.Task[None]) -> None:
        if self._leader is None:
            self._loop.call_soon(self._look)
        else:
            self._waiting[self._leader] = [self._job, None]  # or this would not run; its `_look` is still to come
        self._leader = me

    def _look(self) -> None:
        """Who began to lead has had its turn: if it leads still, its handler waits for something."""
        if self._leader is None:
            return
        self._waiting[self._leader] = [self._job, None]
        self._leader = None
        self._wave = min(self._wave * 2, MAX_WAVE)
        self.wake()
