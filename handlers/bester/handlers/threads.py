"""Runs plain functions, a bounded number at once, on threads that are kept; the loop hears of a batch of ends at once.

The threads are daemons: a function that never returns must not keep a program from ending that was told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from bester.handlers.crew import Job
from bester.handlers.message import Message

End = tuple[Job, Any, BaseException | None]


def outcome_of(function: Callable[..., Any], *arguments: Any) -> tuple[Any, BaseException | None]:
    """Call a plain function; return what it returns, or what it raises: not every exception finds its way out of a
    thread by itself (no future takes StopIteration, and whoever awaits it would wait for ever)."""
    try:
        return function(*arguments), None
    except BaseException as error:  # noqa: BLE001 (a thread has nobody above it to tell)
        return None, error


class Threads:
    """`done(job, result)` and `failed(job, error)` are called on the loop. The queue is bounded by the credit."""

    def __init__(
        self,
        size: int,
        is_wanted: Callable[[Job], bool],
        done: Callable[[Job, Any], None],
        failed: Callable[[Job, BaseException], None],
    ) -> None:
        self._size = size
        self._is_wanted = is_wanted
        self._done = done
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._ended: deque[End] = deque()
        self._called = False  # the loop will look at `_ended`
        self._count = 0
        self._in_hand = 0

    def add(self, job: Job) -> None:
        """Have a thread carry out a request as soon as one is free."""
        self._in_hand += 1
        if self._in_hand > self._count and self._count < self._size:
            self._count += 1
            threading.Thread(target=self._work, name=f"bester-handler-{self._count}", daemon=True).start()
        self._jobs.put(job)

    def close(self) -> None:
        """Let the threads end, each after what it is at."""
        for _ in range(self._count):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            result, failure = None, None
            if self._is_wanted(job):  # or else its link was lost while it waited here
                result, failure = outcome_of(self._context.copy().run, job[1].call, Message(job[0]))
            self._ended.append((job, result, failure))
            if not self._called:
                self._called = True
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._called = False  # first: what ends from here on calls again
        while self._ended:
            job, result, failure = self._ended.popleft()
            self._in_hand -= 1
            if failure is None:
                self._done(job, result)
            else:
                self._failed(job, failure)
