"""Runs plain functions, a bounded number at once, on threads that are kept; the loop collects ended ones in batches.

A thread cannot be stopped from outside. A thread whose function takes too long is *late*: it no longer counts as
usable, and counts again should the function return. The threads are daemons: a function that never returns must not
keep a program from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple

from bester.handlers import forks
from bester.handlers.message import Message
from bester.handlers.payload import QuietError
from bester.handlers.stacks import position_of
from bester.handlers.task_pool import NotBegunError
from bester.handlers.turns import Job, Turns

NO_THREAD = "the system has no thread for it: too many run, or memory is short"
"""Fault of a request for which no thread can be started."""
JUST_S = 1.0
"""Seconds for which an ended function may be the one that kept all other threads from running."""

End = tuple[Job, Any, BaseException | None]


def outcome_of(function: Callable[..., Any], *arguments: Any) -> tuple[Any, BaseException | None]:
    """Call a plain function; return its result, or its exception: not every exception escapes from a thread by itself
    (no future takes StopIteration, and its awaiter would wait for ever)."""
    origin = forks.process
    result: Any = None
    failure: BaseException | None = None
    try:
        result = function(*arguments)
    except BaseException as error:  # noqa: BLE001 (a thread has no caller to raise to)
        failure = error
    forks.end_copy(origin, failure)
    return result, failure


class Overdue(NamedTuple):
    """Overdue requests: those that no thread has begun, and the running ones, each with the line of its thread."""

    waiting: list[Job]
    running: list[tuple[Job, str]]


class Threads:
    """Threads of one worker. `done(job, result)` and `failed(job, error)` are called on the loop. The queue is bounded
    by the credit. `due(job)` returns the deadline of a request (monotonic seconds).
    """

    def __init__(
        self,
        size: int,
        is_wanted: Callable[[Job], bool],
        done: Callable[[Job, Any], None],
        failed: Callable[[Job, BaseException], None],
        due: Callable[[Job], float] = lambda _: math.inf,
    ) -> None:
        self.size = size
        self._is_wanted = is_wanted
        self._done = done
        self._failed = failed
        self._due = due
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._turns = Turns()
        self._calls: SimpleQueue[bool] = SimpleQueue()  # True for each request in `_turns`; False ends a thread
        self._waiting: dict[int, Job] = {}  # by id; a thread or `overdue` owns the job that it removes
        self._running: dict[int, Job] = {}  # by thread
        self._late: dict[int, Job] = {}  # by id: running and overdue
        self._latest = ("", -math.inf)  # the function that ended last, and when
        self._ended: deque[End] = deque()
        self._called = False  # True: the loop will collect `_ended`
        self._count = 0
        self._in_hand = 0

    @property
    def usable(self) -> int:
        """Number of threads, started or not, that no function holds for too long."""
        return self.size - len(self._late)

    def unanswerable(self) -> list[Job]:
        """Return the requests that no thread will answer as things stand: those of late threads, and the queued ones
        where no thread is usable."""
        return [*self._late.values(), *(() if self.usable else list(self._waiting.values()))]

    def add(self, job: Job) -> None:
        """Queue a request for the next free thread; without any thread the request fails at once."""
        self._in_hand += 1
        wanted = self._in_hand > self._count and self._count < self.size
        if wanted and not self._start() and self._count <= len(self._late):
            self._has_ended(job, None, QuietError(NO_THREAD))
            return
        self._waiting[id(job)] = job
        self._turns.append(job)
        self._calls.put(True)

    def _start(self) -> bool:
        """Start another thread. False: the system has none for us."""
        try:
            threading.Thread(target=self._work, name=f"bester-handler-{self._count + 1}", daemon=True).start()
        except RuntimeError:
            return False
        self._count += 1
        return True

    def overdue(self, now: float) -> Overdue:
        """Remove queued requests that are overdue; note which threads have become late.

        Where no thread is usable the queue is left alone: returned credit would be filled in vain.
        """
        waiting = []
        for key, job in list(self._waiting.items()) if self.usable else ():
            if self._due(job) > now:
                break  # later ones have later deadlines
            if self._waiting.pop(key, None) is not None:
                self._in_hand -= 1
                waiting.append(job)
        running = []
        for thread, job in list(self._running.items()):
            if id(job) not in self._late and self._due(job) <= now:
                position = position_of(thread)
                self._late[id(job)] = job
                running.append((job, position.line if position is not None else "its end"))
        return Overdue(waiting, running)

    def take_queued(self, is_taken: Callable[[Job], bool]) -> list[Job]:
        """Take out the requests that no thread has begun, those of other links excepted."""
        taken = []
        for key, job in list(self._waiting.items()):
            if is_taken(job) and self._waiting.pop(key, None) is not None:
                self._in_hand -= 1
                taken.append(job)
        return taken

    def running(self) -> list[Job]:
        """Return the requests that threads work on."""
        return list(self._running.values())

    def hanging(self, is_hanging: Callable[[Job], bool]) -> list[str] | None:
        """Return the position of each thread, where all of them hang; None: some do not."""
        running = list(self._running.items())
        if len(running) < self.size or not all(is_hanging(job) for _, job in running):
            return None
        return [str(position_of(thread)) for thread, _ in running]

    def positions(self) -> list[str]:
        """Return the positions of the threads at work, or else the function that ended just now."""
        name, ended = self._latest
        just_ended = [name] if time.monotonic() - ended < JUST_S else []
        return [str(position_of(thread)) for thread in list(self._running)] or just_ended

    def is_late(self, job: Job) -> bool:
        """Return whether a thread has been at this request for too long."""
        return id(job) in self._late

    def close(self) -> None:
        """Let each thread end after its present request."""
        for _ in range(self._count):
            self._calls.put(False)

    def _work(self) -> None:
        me = threading.get_ident()
        while self._calls.get():
            job = self._turns.popleft()
            if self._waiting.pop(id(job), None) is None:  # given up before it was begun
                continue
            result: Any = None
            failure: BaseException | None = None
            began = time.monotonic()
            if (self._late or "deadline_ms" in job[0].meta) and self._due(job) <= began:
                failure = NotBegunError()
            elif self._is_wanted(job):  # otherwise its link was lost while it was queued
                self._running[me] = job
                result, failure = outcome_of(self._context.copy().run, job[1].call, Message(job[0]))
                ended = time.monotonic()
                self._turns.charge(job, ended - began)
                self._latest = job[1].name, ended
                del self._running[me]
            self._has_ended(job, result, failure)

    def _has_ended(self, job: Job, result: Any, failure: BaseException | None) -> None:
        """Notify the loop of the end of a request; on any thread."""
        self._ended.append((job, result, failure))
        if not self._called:
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._called = False  # first: a function that ends from here on calls again
        while self._ended:
            job, result, failure = self._ended.popleft()
            self._in_hand -= 1
            if failure is None:
                self._done(job, result)
            else:
                self._failed(job, failure)
            self._late.pop(id(job), None)
