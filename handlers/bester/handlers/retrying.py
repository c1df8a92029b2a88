"""Retries of a handler's function, with a back-off, inside the time that its message has."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

from bester.broker.wire.messages import REQUEST_MS
from bester.handlers.message import Message
from bester.handlers.payload import HandlerError

FIRST_DELAY_S = 0.1
LAST_DELAY_S = 5.0
"""Back-off between two calls: doubles between these two. The longest leaves room for several calls in 30 s."""
MAX_RETRIES = 100
"""More retries than any message has time for."""

OnRetry = Callable[[Message, BaseException, int, float], None]


def retried(
    call: Callable[[Message], Any], retries: int, timeout_s: float | None, on_retry: OnRetry, *, awaited: bool
) -> Callable[[Message], Any]:
    """Return `call` with up to `retries` further calls where it raises; `awaited`: its result is a coroutine.

    A HandlerError is an answer, and is not retried. Neither is a failure whose next call would begin after `timeout_s`
    seconds (30 by default) from the first. All calls get the same Message.
    """
    limit_s = REQUEST_MS / 1000 if timeout_s is None else timeout_s

    def delay_of(error: Exception, retry: int, begun: float) -> float | None:
        """Return the seconds to wait before a retry, None where the failure is final."""
        if retry > retries or issubclass(type(error), HandlerError):
            return None
        delay_s = min(FIRST_DELAY_S * 2 ** (retry - 1), LAST_DELAY_S) * random.uniform(0.5, 1.0)  # noqa: S311 (spreads calls)
        return None if time.monotonic() - begun + delay_s >= limit_s else delay_s

    async def call_async(message: Message) -> Any:
        """Await the handler's function until a call ends well, or a failure is final."""
        begun, retry = time.monotonic(), 0
        while True:
            try:
                return await call(message)
            except Exception as error:
                retry += 1
                delay_s = delay_of(error, retry, begun)
                if delay_s is None:
                    raise
                on_retry(message, error, retry, delay_s)
            await asyncio.sleep(delay_s)

    def call_plain(message: Message) -> Any:
        """Call the handler's function until a call ends well, or a failure is final; the thread sleeps in between."""
        begun, retry = time.monotonic(), 0
        while True:
            try:
                return call(message)
            except Exception as error:
                retry += 1
                delay_s = delay_of(error, retry, begun)
                if delay_s is None:
                    raise
                on_retry(message, error, retry, delay_s)
            time.sleep(delay_s)

    return call_async if awaited else call_plain
