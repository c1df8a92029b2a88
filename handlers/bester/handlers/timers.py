"""Timers and tasks of a running app."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Sequence

from bester.broker.logs import facts
from bester.broker.wire.codes import BesterError
from bester.handlers import forks
from bester.handlers.app import Timer
from bester.handlers.threads import outcome_of

log = logging.getLogger("bester.handlers")

TURNS = 4
"""Turns of the loop before each call of a timer: where the calls take longer than their period, messages are read,
handled and answered in between."""


class Timers:
    """Runs timers from `start` to `stop`. An exception is logged, and the timer goes on."""

    def __init__(self, timers: Sequence[Timer]) -> None:
        self._timers = timers
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the timers, at the first call."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(_run(timer)) for timer in self._timers]

    async def stop(self) -> None:
        """Cancel the timers and wait for their ends."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _run(timer: Timer) -> None:
    if timer.period_s is None:
        await _call(timer)
        return
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due = max(due + timer.period_s, loop.time())
        await asyncio.sleep(due - loop.time())
        for _ in range(TURNS):
            await asyncio.sleep(0)
        await _call(timer)


async def _call(timer: Timer) -> None:
    name, origin = getattr(timer.function, "__qualname__", timer.function), forks.process
    try:
        if inspect.iscoroutinefunction(timer.function):
            await timer.function()
            forks.end_copy(origin)
        else:
            _, failure = await asyncio.to_thread(outcome_of, timer.function)
            if failure is not None:
                raise failure
    except BesterError as error:
        forks.end_copy(origin, error)
        log.warning("%s: %s", name, error, extra=facts("timer-failed", function=str(name), code=error.code))
    except BaseException as error:
        forks.end_copy(origin, error)
        task = asyncio.current_task()
        cancelled = issubclass(type(error), asyncio.CancelledError | GeneratorExit)  # `isinstance` may raise here
        if cancelled and (task is None or task.cancelling()):
            raise  # by `stop`
        log.exception(
            "%s failed", name, extra=facts("timer-failed", function=str(name))
        )  # also for SystemExit: other requests are in hand
