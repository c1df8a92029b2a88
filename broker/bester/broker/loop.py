"""Event loop of a serving process, and its signals."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from bester.broker import descriptors, heap
from bester.broker.logs import facts
from bester.broker.systemd import service_manager
from bester.broker.terminals import hung_up, outlive_terminals

log = logging.getLogger("bester")

COLLECT_AT = 1_000
"""Objects that are kept between two runs of the garbage collector. Everybody waits for a run: with ten thousand new
objects, and thirty thousand in every third run, that was up to 9 and 17 ms. All runs together take as long."""
OLDER_AT = 2
"""Every third run looks at those again that the runs before have left."""
OLDEST_AT = 100
"""Runs of these after which all objects may be looked at, a tenth of a second where a server holds as much as it may:
as rare as with the interpreter's ten of runs that are ten times as long."""


def spare_the_collector() -> None:
    """Exempt all present objects from garbage collection and collect more seldom; call before serving."""
    gc.freeze()
    if sys.version_info < (3, 14):  # there the number says how much of the older ones is looked at each time
        gc.set_threshold(COLLECT_AT, OLDER_AT, OLDEST_AT)
    else:
        gc.set_threshold(COLLECT_AT)


def run(main: Callable[[asyncio.Event], Coroutine[Any, Any, int]]) -> int:
    """Run a server's `main` on a uvloop loop; SIGTERM and SIGINT set the event that `main` is given. Return its exit
    status.

    A second signal cancels `main`. SIGHUP ends nothing. The service manager, if any, is told of the end; `main` reports
    that it is ready. Raises OSError where the process may not open the descriptors that a server needs.
    """
    manager = service_manager()

    async def supervised() -> int:
        """Run `main` with the signals on its event."""
        stop = asyncio.Event()
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()

        def signalled(name: str) -> None:
            if stop.is_set():
                log.warning("%s again: stopping at once", name, extra=facts("stopping-at-once", signal=name))
                task.cancel()
            else:
                log.info("%s: finishing the messages under way", name, extra=facts("stopping", signal=name))
                manager.stopping()
                stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, signalled, number.name)
        loop.add_signal_handler(signal.SIGHUP, hung_up)
        try:
            return await main(stop)
        except asyncio.CancelledError:
            return 1

    spare_the_collector()
    heap.keep_freed_memory()
    try:
        descriptors.require(descriptors.LEAST)  # the loop would fail halfway, and `main` wherever it is
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(supervised())
    finally:
        manager.close()
        outlive_terminals()  # closing the loop restores the default handlers, which end the process
