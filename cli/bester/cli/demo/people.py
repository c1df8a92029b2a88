"""People of a story: clients that send, and record every message received, with its time.

Times are milliseconds of the wall clock, as in the servers' traces.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from bester.broker.wire.codes import BesterError, is_temporary
from bester.client import Client, ClientError, ConnectFailed, Limits, Message, Report
from bester.client.window import DEFAULTS

PAUSE_S = 0.05
"""Seconds between two attempts while a server starts."""
RECEIVE_S = 10.0
"""Seconds until a message reported as delivered must be received; its bytes have left the server by then."""


class Arrival(NamedTuple):
    """A received message, and its time."""

    at_ms: float
    message: Message


class Sent(NamedTuple):
    """A sent message's times, and its report."""

    at_ms: float
    reported_ms: float
    report: Report

    @property
    def root(self) -> str:
        """The server's id of the message, which is the root of everything that results from it."""
        return self.report.message or ""


def now_ms() -> float:
    """Return the time as in servers' traces."""
    return time.time() * 1000


def root_of(id_: str | None) -> str:
    """Return the id of the message that a result's id stems from: results add `.c.t` to the last part."""
    edge, slash, counter = (id_ or "").rpartition("/")
    return edge + slash + counter.partition(".")[0]


class Person:
    """A client, and its received messages by the id of their root."""

    def __init__(self, name: str, address: str, password: str, at_once: int) -> None:
        limits = Limits(window=max(DEFAULTS.window, at_once), queue=max(DEFAULTS.queue, at_once))
        self.name = name
        self.received: dict[str, list[Arrival]] = {}
        self._make: Callable[[], Client] = lambda: Client(address, user=name, password=password, limits=limits)
        self._client: Client | None = None
        self._changed = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None

    async def connect(self, check: Callable[[], None]) -> None:
        """Connect as soon as the server listens; `check` raises where it never will. Cancel to give up."""
        while True:
            client = self._make()
            try:
                await client.start()
            except ConnectFailed:
                check()
                await asyncio.sleep(PAUSE_S)
                continue
            self._client = client
            self._listening = asyncio.create_task(self._listen(client))
            return

    async def _listen(self, client: Client) -> None:
        try:
            async for message in client:
                self.received.setdefault(root_of(message.id), []).append(Arrival(now_ms(), message))
                self._changed.set()
        except ClientError:
            pass  # raised in the tasks that send or wait, too

    async def close(self) -> None:
        """Hang up."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        if self._client is not None:
            await self._client.close(0)

    async def send(self, type_: str, data: Any) -> Sent:
        """Send a message and wait for its report."""
        assert self._client is not None
        await self._client.room()
        at_ms = now_ms()
        report = await self._client.submit(type_, data)
        return Sent(at_ms, now_ms(), report)

    async def rehearse(self, type_: str, data: Any, check: Callable[[], None]) -> Sent:
        """Send a message, and again while its path is not open yet. Raises BesterError where it never will be."""
        while True:
            sent = await self.send(type_, data)
            if sent.report.good:
                return sent
            reason = sent.report.reason or "handler-failed"
            if not is_temporary(reason):
                raise BesterError(reason, f"the rehearsal failed: {reason}, {sent.report.recipients}")
            check()
            await asyncio.sleep(PAUSE_S)

    async def has(self, roots: Collection[str]) -> None:
        """Wait until a result of each of these messages was received, at most RECEIVE_S."""
        try:
            async with asyncio.timeout(RECEIVE_S):
                while any(root not in self.received for root in roots):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass  # the caller checks for missing messages
