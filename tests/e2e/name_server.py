"""Name server for tests, which knows given names and hangs for others."""

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
    is the largest number of concurrent lookups of one name."""

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
        """Answer the hanging lookups, and let none hang any more."""
        self.hangs.clear()
        self._released.set()

    @property
    def under_way(self) -> int:
        """Return the number of lookups that wait for an answer."""
        with self._lock:
            return sum(self._now.values())


class Clock:
    """Clock that advances by hand, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def name_server() -> Iterator[NameServer]:
    """Yield a name server that releases all waiting lookups at the end."""
    server = NameServer()
    try:
        yield server
    finally:
        server.release()


async def until(happened: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not happened():
            await asyncio.sleep(0.005)
