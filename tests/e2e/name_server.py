"""A name server for tests: it knows what it is told, and hangs for names that it is told to hang for."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bester.broker.names import Found, LookupThreads

DEADLINE_S = 20.0


class NameServer:
    """`knows` maps names to addresses; lookups of names in `hangs` take until `release`. `asked` counts lookups, `most`
    is how many of one name were under way at once."""

    def __init__(self) -> None:
        self.knows: dict[str, tuple[str, ...]] = {}
        self.hangs: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._now: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._released = threading.Event()
        self.lookers = LookupThreads(self._look_up)

    def _look_up(self, host: str) -> Found:
        with self._lock:
            self.asked[host] += 1
            self._now[host] += 1
            self.most[host] = max(self.most[host], self._now[host])
        if host in self.hangs:
            self._released.wait(DEADLINE_S)
        with self._lock:
            self._now[host] -= 1
        return self.knows.get(host) or OSError(-2, "Name or service not known")

    def release(self) -> None:
        """Answer what hangs, and let nothing hang any more."""
        self.hangs.clear()
        self._released.set()

    @property
    def under_way(self) -> int:
        """How many lookups wait for an answer."""
        with self._lock:
            return sum(self._now.values())


class Clock:
    """Seconds that pass by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def name_server() -> Iterator[NameServer]:
    """A name server that lets go of whoever waits in the end."""
    server = NameServer()
    try:
        yield server
    finally:
        server.release()


async def until(happened: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(DEADLINE_S):
        while not happened():
            await asyncio.sleep(0.005)
