"""The control of a hostile run: `python -m tests.hostile.spinner SPEC SEED`. It connects to nobody, and burns time.

The machine has few processors, and a hostile program takes its part of them whatever it sends. `shares` of the spec has
the shares of a processor that the threads of a hostile program had; a thread for each runs for as long.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Awaitable, Callable

from tests.hostile.program import Program, main

BLOCK = bytes(64 * 1024)
"""Digested at once, some tenths of a millisecond, in which other threads run, too."""
PERIOD_S = 0.005
"""Between two looks at how long a thread has run: a hostile program sleeps no longer when it waits for the server."""


class Spinner(Program):
    """Threads that compute, each for its share of the time."""

    deed = "blocks"

    def manners(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        """Return the one manner, with its name."""
        return [("spins", self._spins)]

    async def _spins(self) -> None:
        for share in self.spec["shares"]:
            threading.Thread(target=self._spin, args=(share,), daemon=True).start()
        await asyncio.Event().wait()

    def _spin(self, share: float) -> None:
        """Run for a share of the time from now on, and catch up after a time without a processor."""
        began, ran_before = time.monotonic(), time.thread_time()
        while True:
            due_s = share * (time.monotonic() - began)
            while time.thread_time() - ran_before < due_s:
                hashlib.sha256(BLOCK).digest()
                self.counts["blocks"] += 1
            time.sleep(PERIOD_S)


if __name__ == "__main__":
    main(Spinner)
