"""Process of a handler, from the start hooks to the end: the loop, the stop signals, and the last resort where a
function holds the process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import zmq

from bester.broker import descriptors, heap, logs
from bester.broker.wire.notes import describe
from bester.handlers.cluster import Cluster
from bester.handlers.slow_starts import slow_start_logged
from bester.handlers.supervising import stop_signals
from bester.handlers.worker import DRAIN_S, Worker

LAST_S = DRAIN_S + 5.0
"""Seconds from SIGTERM to the end of the process, even where a function holds the loop."""
EXIT_S = 2.0
"""Seconds that threads started by the user's code may delay the exit of a stopped worker."""

log = logging.getLogger("bester.handlers")


def fail(text: str, status: int = 2) -> int:
    """Say on standard error why the program ends; return the exit status."""
    logs.fail(text)
    return status


def on_loop(work: Callable[[], Any]) -> int:
    """Run the coroutine that `work` returns to its end; return the exit status, which is its result.

    SystemExit in a task or callback of a handler escapes from the loop itself, and counts as a SIGTERM: requests in
    hand are finished first. They are not where such code has stopped the loop or cancelled all tasks.
    """
    try:
        descriptors.require(descriptors.LEAST)
    except OSError as error:
        return fail(f"{error.strerror}; raise the limit of open files (ulimit -n)", 1)
    heap.keep_freed_memory()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        loop, status = runner.get_loop(), 0
        main = loop.create_task(work())
        while True:
            try:
                return loop.run_until_complete(main) or status
            except (asyncio.CancelledError, RuntimeError):
                if main.done() and not main.cancelled():
                    raise
                text = "code of a handler stopped the event loop, or cancelled the tasks of this program, which ends"
                log.exception(text, extra=logs.facts("ended-by-code"))
                return 1
            except (SystemExit, KeyboardInterrupt) as error:
                if main.done():
                    raise
                text = "a task or callback of a handler ends the program; requests in hand are finished first"
                log.exception(text, extra=logs.facts("ended-by-code"))
                code = getattr(error, "code", None)
                status = code if isinstance(code, int) else int(code is not None or type(error) is KeyboardInterrupt)
                loop.call_soon(os.kill, os.getpid(), signal.SIGTERM)  # deferred: uvloop handles signals while it runs


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class _LastResort:
    """Ends a process that cannot end by itself: a function holds its loop, or its threads hang."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._limit_s = math.inf
        self._status = 1
        self._wake_reader, self._wake_writer = os.pipe()  # a signal handler may write to a pipe at any point
        threading.Thread(target=self._wait, name="bester-last-resort", daemon=True).start()

    def end_within(self, seconds: float, status: int) -> None:
        """End the process within so many seconds; a later call replaces the time."""
        self._limit_s, self._status = seconds, status
        os.write(self._wake_writer, b"!")

    def _wait(self) -> None:
        limit_s: float | None = None
        while select.select([self._wake_reader], [], [], limit_s)[0]:
            os.read(self._wake_reader, 1)
            limit_s = self._limit_s
        text = "%s: a function or thread still holds this process, which ends without waiting any longer"
        log.warning(text, self._name, extra=logs.facts("ended-at-once", name=self._name))
        logs.finish()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(self._status)


def _end_hung(name: str) -> None:
    log.error("%s: this process ends, to be restarted", name, extra=logs.facts("ended-hung", name=name))
    logs.finish()
    os._exit(1)  # the loop is held: a gentler end would never run


async def serve(worker: Worker | Cluster, lifeline: int | None) -> int:
    """Serve until a stop signal, or until the worker is over; return the exit status. `lifeline` is a descriptor that
    the parent process holds open, None where this process has no parent that runs several."""
    last = _LastResort(worker.name)
    with stop_signals(lambda: last.end_within(LAST_S, 1)) as stop:
        if lifeline is not None:
            worker.on_hung(lambda: _end_hung(worker.name))
        try:
            if not await _prepared(worker, stop):
                return 0
        except Exception as error:
            log.exception("%s: a start hook failed", worker.name, extra=logs.facts("start-hook-failed"))
            return fail(f"a start hook failed: {describe(error)}", 1)
        try:
            worker.start()
        except zmq.ZMQError as error:
            return fail(f"cannot connect to {worker.endpoint}: {error.strerror}; give another --fabric")
        if lifeline is not None:
            await _watch(lifeline, stop)
        over, stopped = asyncio.ensure_future(worker.wait_over()), asyncio.ensure_future(stop.wait())
        await asyncio.wait((over, stopped), return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        stopped.cancel()
        await worker.stop()
    refusal = worker.refusal
    if refusal is not None:
        remedy = "; contract=False in @app.on keeps the schema here" if refusal.code == "schema" else ""
        fail(f"the server at {worker.endpoint} refuses this handler: {refusal.code}: {refusal.text}{remedy}")
    status = 0 if refusal is None and worker.failure is None else 1
    last.end_within(EXIT_S, status)
    return status


async def _prepared(worker: Worker | Cluster, stop: asyncio.Event) -> bool:
    """Run the start hooks; return whether they ended. A stop signal cancels the hook that waits."""
    task, stopping, is_over = asyncio.current_task(), asyncio.ensure_future(stop.wait()), False

    def cancel(_: object) -> None:
        if task is not None and not is_over:
            task.cancel()

    stopping.add_done_callback(cancel)
    try:
        with slow_start_logged(worker.name, task):
            await worker.prepare()
    except asyncio.CancelledError:
        if task is None or not stop.is_set():
            raise
        task.uncancel()
        text = "%s: ended while a start hook ran"
        log.info(text, worker.name, extra=logs.facts("ended-in-start-hook", name=worker.name))
        return False
    finally:
        is_over = True
        stopping.cancel()
    return True


class _Lifeline(asyncio.Protocol):
    """Standard input, held by the parent process: it ends with the parent, in any way that the parent ends."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop.set()


async def _watch(lifeline: int, stop: asyncio.Event) -> None:
    pipe = open(lifeline, "rb", buffering=0)  # noqa: SIM115, ASYNC230 (the transport closes it; nothing is read here)
    await asyncio.get_running_loop().connect_read_pipe(lambda: _Lifeline(stop), pipe)
