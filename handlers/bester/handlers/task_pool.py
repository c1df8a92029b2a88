"""Runs async handlers, one request at a time each, on tasks that are kept.

A task per request costs more than most handlers do. Here one task, the *leader*, takes request after request off the
queue and awaits the handler itself; a handler that never waits costs no task and no turn of the loop. A handler that
waits is noticed as soon as any other task or callback runs, for only one runs at a time: another member of the pool
that has become free leads on, or `_look`, called at the end of the turn, wakes members; the more handlers waited
before, the more members. So every handler runs in a real task of its own while it runs: asyncio.timeout, current_task
and cancellation behave as everywhere else. A member whose handler changed a context variable, or was cancelled, is not
used again: nothing passes from one message to the next.

Handlers that compute for long hold the loop, and with the loop all requests that are not read yet. After SLICE_S the
loop runs before the next handler begins. Unless they were many quick ones, senders take turns from then on, until the
queue is empty: whose requests take long waits for them, and nobody else. Inline functions that are left over by then
are called here, too.

A handler that waits beyond its request's deadline is cancelled. A handler that holds the loop cannot be; but
`hold_back`, called from another thread, lets the loop run before the next handler begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from bester.handlers import forks
from bester.handlers.app import Runs
from bester.handlers.message import Message
from bester.handlers.stacks import waits_at
from bester.handlers.turns import LONG_S, Job, Turns, is_long

End = tuple[Job, Any]
"""A request whose handler has returned, and the result."""
SLICE_S = 0.01
"""Seconds for which handlers are begun in one turn of the loop: many times what a batch of quick ones takes."""
QUICK = 100
"""Requests in such a time that are quick ones: a batch of them is handled in the order in which it came, however many
the credit lets come."""
TURNS_S = 1.0
"""Seconds for which senders take turns at least: what each has had is remembered meanwhile."""
SPARE_MEMBERS = 256
"""Members kept while idle; more are made as handlers wait, at most one for each request in hand."""
MAX_WAVE = 64
"""Members woken at once."""
_INLINE = Runs.INLINE  # a member costs a call where it is looked up in its class
OVERDUE = "the deadline has passed"
"""Argument of the CancelledError in a handler that took too long."""
STUBBORN_S = 5.0
"""Seconds that a cancelled handler may take to end before it counts as stubborn."""
CLOSING_S = 1.0
"""Seconds that handlers may take to end when the pool closes; the process does not wait longer."""


class NotBegunError(Exception):
    """A request's deadline passed before it was begun."""


class TaskPool:
    """Tasks of one worker. `done(ends)` is called with handlers that have returned, `failed(job, error)` as one raises;
    both in the order of the ends, in the turn of the loop in which a handler ends or at the start of the next.
    `flush()` sends the answers that wait: the queue is worked off, or the next request may take long. The queue is
    bounded by the credit. `due(job)` returns the deadline of a request (monotonic seconds).
    """

    def __init__(
        self,
        done: Callable[[list[End]], None],
        failed: Callable[[Job, BaseException], None],
        due: Callable[[Job], float] = lambda _: math.inf,
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        self._done = done
        self._flush = flush
        self._failed = failed
        self._due = due
        self._loop = asyncio.get_running_loop()
        self._process = forks.process
        self._context = contextvars.copy_context()
        self._queue: deque[Job] | Turns = deque()  # turns after a slice that was used up, until the queue is empty
        self._turns_until = 0.0
        self.has_long = False
        """Whether requests with long bodies may be queued: answers leave before each."""
        self._until = 0.0  # when this turn's slice is used up; 0: nothing has begun
        self._begun = 0  # requests of this slice
        self._rests = False  # nothing begins until the loop has run
        self._members: set[asyncio.Task[None]] = set()
        self._waiting: dict[asyncio.Task[None], list[Any]] = {}  # the job, and its deadline once looked up
        self._cancelled: dict[asyncio.Task[None], tuple[Job, float]] = {}  # the job, and the time of cancellation
        self._idle: list[asyncio.Future[None]] = []
        self._woken = 0  # members that were woken and have not begun
        self._wave = 1  # members to wake at once
        self._leader: asyncio.Task[None] | None = None  # the leading member, until its handler waits
        self._job: Job | None = None  # the leader's request, or the last one
        self._ended: list[End] = []  # handlers of the leader that have returned without a wait
        self._closing = False
        self._hold_lock = threading.Lock()
        self._held_back: list[Job] = []  # until the loop has run

    def add(self, job: Job) -> None:
        """Queue a request; call `wake` after the last one."""
        self._queue.append(job)

    def add_all(self, jobs: Sequence[Job]) -> None:
        """Queue requests as `add` does."""
        self._queue.extend(jobs)

    @property
    def takes_turns(self) -> bool:
        """Return whether requests have taken long, and others wait behind them."""
        return type(self._queue) is Turns

    def rest(self, *, in_order: bool = False) -> None:
        """Let the loop run before the next handler begins, and senders take turns: a request has taken long. With
        `in_order` there were many, and each was quick."""
        if not in_order:
            self._turns_until = time.monotonic() + TURNS_S
            with self._hold_lock:
                if type(self._queue) is not Turns:
                    self._queue = Turns(self._queue)
        if not self._rests:
            self._rests = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._rests = False
        self._until = 0.0
        self.wake()

    def wake(self) -> None:
        """Wake members to work off the queue."""
        if not self._queue or self._woken or self._leader is not None or self._closing or self._rests:
            return
        for _ in range(min(self._wave, len(self._queue))):
            self._woken += 1
            self._wake_one()

    def _wake_one(self) -> None:
        while self._idle:
            call = self._idle.pop()
            if not call.done():
                call.set_result(None)
                return
        member = self._loop.create_task(self._member(), context=self._context.copy())
        self._members.add(member)
        member.add_done_callback(self._members.discard)

    def cancel_waiting(self, is_wanted: Callable[[Job], bool] = lambda job: False) -> list[Job]:
        """Cancel the waiting handlers of a lost link, those of wanted requests excepted; return the requests that were
        not begun."""
        self._look()  # a handler that began to wait in this very turn counts too
        for member, entry in self._waiting.items():
            if not is_wanted(entry[0]):
                member.cancel()
        return self.take_queued(lambda job: not is_wanted(job))

    def take_queued(self, is_taken: Callable[[Job], bool]) -> list[Job]:
        """Take out the requests that are not begun, those of other links excepted."""
        taken: list[Job] = []
        with self._hold_lock:
            for jobs in (self._held_back, self._queue):
                queued = list(jobs)
                jobs.clear()
                for job in queued:
                    (taken if is_taken(job) else jobs).append(job)
        return taken

    def running(self) -> list[Job]:
        """Return the requests whose handlers wait."""
        self._look()
        return [entry[0] for entry in self._waiting.values()]

    async def close(self) -> bool:
        """Cancel all members and wait for their ends; return whether all ended."""
        self._closing = True
        for member in self._members:
            member.cancel()
        if not self._members:
            return True
        _, running = await asyncio.wait(self._members, timeout=CLOSING_S)
        return not running

    # --- deadlines ---

    def cancel_overdue(self, now: float) -> list[tuple[Job, str]]:
        """Cancel the overdue handlers that wait; return their requests and the line at which each waits."""
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
        """Return the requests whose handlers go on STUBBORN_S after their cancellation."""
        return [job for job, cancelled in self._cancelled.values() if now - cancelled >= STUBBORN_S]

    @property
    def latest(self) -> Job | None:
        """The request that was begun last; None where that is long ago."""
        return self._job

    def forget_latest(self) -> None:
        """Release the last request, so that it is not kept alive."""
        if self._leader is None:
            self._job = None

    def hold_back(self) -> None:
        """Hold back the queued requests; called from another thread while a handler holds the loop."""
        with self._hold_lock:
            if self._held_back:
                return
            queue = self._queue
            if type(queue) is Turns:
                self._held_back += queue.take_all()
            else:
                with contextlib.suppress(IndexError):
                    while True:
                        self._held_back.append(queue.popleft())
            if self._held_back:
                self._loop.call_soon_threadsafe(self._resume)

    def _resume(self) -> None:
        """Requeue the requests held back, once the loop has run, before those that have come since; fail those that are
        overdue by now."""
        with self._hold_lock:
            held_back, self._held_back = self._held_back, []
            now = time.monotonic()
            overdue = [job for job in held_back if self._due(job) <= now]
            self._queue.extendleft(job for job in reversed(held_back) if self._due(job) > now)
        for job in overdue:
            self._failed(job, NotBegunError())
        self.wake()

    # --- members ---

    async def _member(self) -> None:
        me = asyncio.current_task()
        assert me is not None
        while True:
            self._woken -= 1
            if not self._queue:
                self._wave = max(1, self._wave // 2)  # woken in vain
            elif not (self._rests or self._held_back) and await self._work(me):
                return
            if len(self._idle) >= SPARE_MEMBERS:
                return
            call = self._loop.create_future()
            self._idle.append(call)
            try:
                await call
            except asyncio.CancelledError:  # by code that kept the task of a handler that ended long ago
                if call.done() and not call.cancelled():
                    self._woken -= 1
                    self.wake()
                raise

    async def _work(self, me: asyncio.Task[None]) -> bool:
        """Work off the queue as its leader; return whether this member must not be used again."""
        snapshot, untouched, now = contextvars.copy_context, self._context, time.monotonic
        origin = self._process
        self._lead(me)
        is_spent = False
        while (queue := self._queue) and not (is_spent or self._held_back or self._rests):
            began = now()
            if began > self._until:
                self.rest(in_order=self._begun >= QUICK)
                break
            self._begun += 1
            try:
                job = self._job = queue.popleft()
            except IndexError:  # `hold_back` was quicker
                break
            try:
                if self.has_long or type(queue) is Turns:
                    self._before(job, queue, began)
                result = job[1].call(Message(job[0]))
                if job[1].runs is not _INLINE:
                    result = await result
            except BaseException as error:
                forks.end_copy(origin, error)
                if self._ends_member(error, me):
                    raise
                self._end()
                self._failed(job, error)  # any exception of the user's function, SystemExit included, is its failure
            else:
                forks.end_copy(origin)
                self._ended.append((job, result))
                if job[1].by_user:
                    self._end()  # which queues the next request of its group
            if type(queue) is Turns and self._leader is me:  # one that waits leaves the loop to others
                self._after(job, queue, began)
            is_spent = snapshot() != untouched or bool(me.cancelling())
            if self._leader is not me:
                self._on_waited(me)
                if is_spent or not self._queue or self._rests:
                    self._queue_in_order()  # where all handlers wait, the queue is empty here alone
                    self.wake()
                    return is_spent
                self._lead(me)
        self._leader = None
        self._end()
        if self._queue:
            self.wake()  # a leader that is not used again may leave requests
        else:
            self._queue_in_order()
            self._flush()
        return is_spent

    def _before(self, job: Job, queue: deque[Job] | Turns, now: float) -> None:
        """Send the answers that are ready where a request may take long. Raises NotBegunError for one that is
        overdue."""
        if self._due(job) <= now:
            raise NotBegunError
        if self._ended and (is_long(job[0]) or (type(queue) is Turns and queue.is_slow(job))):
            self._end()
            self._flush()

    def _after(self, job: Job, queue: Turns, began: float) -> None:
        """Count the time of a request against its sender. Where it was long, the loop reads what has come meanwhile of
        senders that had less."""
        took_s = time.monotonic() - began
        queue.charge(job, took_s)
        if took_s > LONG_S:
            self.rest(in_order=True)

    def _on_waited(self, me: asyncio.Task[None]) -> None:
        """Report a handler that has waited, and others have led meanwhile."""
        self._end()
        self._waiting.pop(me, None)
        if self._cancelled:
            self._cancelled.pop(me, None)

    def _queue_in_order(self) -> None:
        """Queue requests as they come again, where the queue is empty, and none has taken long of late."""
        if self.has_long and not self._queue:
            self.has_long = False
        if type(self._queue) is Turns and not self._queue and time.monotonic() > self._turns_until:
            with self._hold_lock:
                if not self._held_back:
                    self._queue = deque()

    def _ends_member(self, error: BaseException, me: asyncio.Task[None]) -> bool:
        """Return whether the error ends the member itself, rather than the handler in which it was raised."""
        kind = type(error)  # `isinstance` asks the exception, which may raise
        if issubclass(kind, asyncio.CancelledError):
            return self._closing
        return issubclass(kind, GeneratorExit) and asyncio.current_task(self._loop) is not me  # the loop was dropped

    def _lead(self, me: asyncio.Task[None]) -> None:
        if not self._until:
            self._until, self._begun = time.monotonic() + SLICE_S, 0
        if self._leader is None:
            self._loop.call_soon(self._look)
        else:
            self._waiting[self._leader] = [self._job, None]  # the leader waits, for this runs; its `_look` is to come
        self._leader = me

    def _end(self) -> None:
        """Report the handlers that have returned."""
        if self._ended:
            ended, self._ended = self._ended, []
            self._done(ended)

    def _look(self) -> None:
        """Note that the leader's handler waits, where the member that began to lead in this turn still leads."""
        if not self._rests:
            self._until = 0.0
        if self._leader is None:
            return
        self._end()
        self._waiting[self._leader] = [self._job, None]
        self._leader = None
        self._wave = min(self._wave * 2, MAX_WAVE)
        self.wake()
