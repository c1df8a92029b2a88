"""Log lines about a start that takes long: where the import of the app, or a start hook, stands."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from bester.broker import logs
from bester.handlers.stacks import line_of, waits_at

SLOW_START_S = 5.0
"""Seconds after which a running import, or start hook, is logged: nothing is served before its end."""

log = logging.getLogger("bester.handlers")


@contextlib.contextmanager
def slow_import_logged(spec: str | None) -> Iterator[None]:
    """Log once where a slow import stands."""
    thread = threading.get_ident()

    def warn() -> None:
        text = "importing %s has taken %g s so far, and is at %s; nothing is served before its end"
        line = line_of(thread)
        log.warning(text, spec, SLOW_START_S, line, extra=logs.facts("slow-import", app=spec, line=line))

    with _called_after(SLOW_START_S, warn):
        yield


@contextlib.contextmanager
def slow_start_logged(name: str, task: asyncio.Task[Any] | None) -> Iterator[None]:
    """Log once where the start hooks of `task` stand, if they take long; they may hold the loop."""
    thread, loop = threading.get_ident(), asyncio.get_running_loop()

    def warn() -> None:
        running = asyncio.current_task(loop)
        line = waits_at(task) if task is not None and running is None else line_of(thread)
        text = "%s: the start hooks have taken %g s so far, and are at %s; nothing is served before their end"
        log.warning(text, name, SLOW_START_S, line, extra=logs.facts("slow-start-hook", name=name, line=line))

    with _called_after(SLOW_START_S, warn):
        yield


@contextlib.contextmanager
def _called_after(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Have `call` made on a thread of its own, unless what is done here is over by then."""
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
