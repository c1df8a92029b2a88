"""Several worker processes of one app: started, restarted when they die or when their files change, and ended.

On a stop signal and on a change each process gets SIGTERM: it takes no new requests, and finishes those in hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bester.broker import descriptors, logs
from bester.broker.terminals import hung_up

FIRST_RESTART_S = 0.5
LAST_RESTART_S = 10.0
STEADY_S = 10.0
"""A worker process that lived so long is restarted soon; others after a delay that doubles between the two bounds. The
longest is far below the 20 s for which a broker keeps the messages of dead workers: a message that kills all workers a
few times must not cost the others their turn."""
DEBOUNCE_MS = 200
"""Time in which changes count as one: an editor writes several files, and one file in several steps."""
SHOWN = 5
"""Changed files that are named in the log."""

log = logging.getLogger("bester.handlers")


@contextlib.contextmanager
def stop_signals(at_once: Callable[[], None] = lambda: None) -> Iterator[asyncio.Event]:
    """Yield an event that SIGTERM and SIGINT set. `at_once` is called in the signal handler itself, even while a
    function holds the loop: `at_once` must take no lock."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def on_signal(number: int, frame: object) -> None:
        at_once()
        loop.call_soon_threadsafe(stop.set)

    before: dict[int, Any] = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda number, frame: loop.call_soon_threadsafe(hung_up))
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


async def supervise(command: Sequence[str], name: str, workers: int, watched: Sequence[str] | None) -> int:
    """Run `workers` processes of a command until a stop signal; return the exit status.

    `watched` are directories: when a Python file in them changes, each process is drained and started anew.
    """
    with stop_signals() as stop:
        changes = _Changes()
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(changes.follow(watched, stop)) if watched else None
            children = [
                group.create_task(_keep_running(command, name, index, stop, changes)) for index in range(workers)
            ]
            await asyncio.wait(children)
            if watching is not None:
                stop.set()
    return max(child.result() for child in children)


class _Changes:
    """Changes of the watched files: `count` rises with each, and waiters are woken."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = asyncio.Event()

    async def follow(self, places: Sequence[str], stop: asyncio.Event) -> None:
        """Follow the Python files in these directories until `stop` is set."""
        from watchfiles import PythonFilter, awatch

        async for changes in awatch(*places, watch_filter=PythonFilter(), stop_event=stop, debounce=DEBOUNCE_MS):
            names = sorted({os.path.basename(path) for _, path in changes})
            shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
            log.info("%s changed; starting anew", shown, extra=logs.facts("reload", files=names[:SHOWN]))
            self.count += 1
            self._changed.set()
            self._changed = asyncio.Event()

    async def after(self, count: int) -> None:
        """Wait for a change beyond the one with this number."""
        while self.count == count:
            await self._changed.wait()


async def _keep_running(command: Sequence[str], name: str, index: int, stop: asyncio.Event, changes: _Changes) -> int:
    """Run one worker process, restarted when it dies or its files change, until the stop signal; return its exit
    status, 0 or 1."""
    loop = asyncio.get_running_loop()
    delay_s = FIRST_RESTART_S
    while True:
        arguments = [*command, "--name", f"{name}.{index}", "--child", str(index)]
        try:
            descriptors.require(descriptors.OF_A_CHILD)
            process = await asyncio.create_subprocess_exec(*arguments, stdin=asyncio.subprocess.PIPE)
        except (OSError, RuntimeError) as error:  # no process, descriptor or thread just now: the others go on
            delay_s = min(delay_s * 2, LAST_RESTART_S)
            why = getattr(error, "strerror", None) or str(error)
            fields = logs.facts("worker-not-started", worker=f"{name}.{index}", why=why, again_in_s=delay_s)
            log.error("%s.%d cannot be started: %s; trying again in %g s", name, index, why, delay_s, extra=fields)
            if await _is_set_within(stop, delay_s):
                return 0
            continue
        begun, version = loop.time(), changes.count
        ended = asyncio.ensure_future(process.wait())
        stopped, changed = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(changes.after(version))
        await asyncio.wait((ended, stopped, changed), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        changed.cancel()
        if not ended.done():  # on SIGTERM the process finishes the requests in hand
            process.terminate()
        status = await ended
        if stop.is_set():
            return 1 if status else 0
        if changes.count != version:
            delay_s = FIRST_RESTART_S
            continue
        delay_s = FIRST_RESTART_S if loop.time() - begun >= STEADY_S else min(delay_s * 2, LAST_RESTART_S)
        fields = logs.facts("worker-ended", worker=f"{name}.{index}", status=status, again_in_s=delay_s)
        log.error("%s.%d ended with status %d; restarting it in %g s", name, index, status, delay_s, extra=fields)
        if await _pause(stop, changes, version, delay_s):
            return 0


async def _pause(stop: asyncio.Event, changes: _Changes, version: int, seconds: float) -> bool:
    """Wait so long, or until a file changes; return whether the supervisor stops."""
    waits = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(changes.after(version))]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for each in waits:
        each.cancel()
    return stop.is_set()


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
