"""Emits of a stock handler that survive its death: on disk with the change that caused them, sent in order, settled.

An emit has one id for life, so that the broker carries it out once while it lives. A broker that died as well may
deliver it twice: every notice names itself in its data.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from typing import Any

from bester.broker.logs import facts
from bester.broker.wire.codes import BesterError
from bester.handlers import App, HandlerError, Outcome
from bester.handlers.stock.store import Store, Waiting

AT_ONCE = 64
"""Emits without an outcome at once: a server that is silent for its 5 s delays few others."""
PERIOD_S = 0.5
"""Seconds between two looks at the table, for emits that another worker has added."""
PAUSE_S = 1.0
"""Seconds before an emit without an outcome is tried again."""
AGAIN = ("overloaded", "unreachable", "storage-full", "no-handler")
"""Reasons for which an emit that nobody has got is tried again."""

log = logging.getLogger("bester.handlers.stock")


class Outbox:
    """Sends a store's emits. `on_outcome(db, about, outcome)` runs in the transaction that removes the emit."""

    def __init__(self, store: Store, on_outcome: Callable[[sqlite3.Connection, dict[str, Any], Outcome], None]) -> None:
        self._store = store
        self._on_outcome = on_outcome
        self._news: asyncio.Event | None = None
        self._sending: dict[int, asyncio.Task[None]] = {}
        self._ended: list[tuple[Waiting, Outcome]] = []
        self._settling: asyncio.Task[bool] | None = None

    def wake(self) -> None:
        """Look at the table soon; called on the loop after a change."""
        if self._news is not None:
            self._news.set()

    def settle(self, *ended: tuple[Waiting, Outcome]) -> None:
        """Remove emits whose outcomes are known, in one transaction: each takes as long as the disk."""
        with self._store.turn() as db:
            for emit, outcome in ended:
                if self._store.end_emit(db, emit.number):
                    self._on_outcome(db, emit.about, outcome)

    async def run(self, app: App) -> None:
        """Send emits until the app ends."""
        self._news = asyncio.Event()
        try:
            while True:
                self._news.clear()
                try:
                    for emit in self._store.waiting(AT_ONCE):
                        if emit.number not in self._sending:
                            self._sending[emit.number] = asyncio.create_task(self._send(app, emit))
                except HandlerError:  # logged by the store
                    await asyncio.sleep(PAUSE_S)
                try:
                    async with asyncio.timeout(PERIOD_S):
                        await self._news.wait()
                except TimeoutError:
                    pass
        finally:
            for task in self._sending.values():
                task.cancel()
            settling = [] if self._settling is None else [self._settling]
            await asyncio.gather(*self._sending.values(), *settling, return_exceptions=True)

    async def _send(self, app: App, emit: Waiting) -> None:
        try:
            outcome = await self._outcome_of(app, emit)
            if outcome is None or not await self._settled(emit, outcome):
                await asyncio.sleep(PAUSE_S)
        finally:
            self._sending.pop(emit.number, None)
            self.wake()

    async def _settled(self, emit: Waiting, outcome: Outcome) -> bool:
        """Settle an emit together with those that end in this turn of the loop; return whether the file took it."""
        self._ended.append((emit, outcome))
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle_ended())
        return await asyncio.shield(self._settling)

    async def _settle_ended(self) -> bool:
        await asyncio.sleep(0)
        ended, self._ended, self._settling = self._ended, [], None
        try:
            self.settle(*ended)
        except HandlerError:  # logged by the store
            return False
        return True

    async def _outcome_of(self, app: App, emit: Waiting) -> Outcome | None:
        """Return an emit's outcome, None where it must be tried again."""
        try:
            outcome = await app.emit(emit.type, emit.commands, id=f"{self._store.epoch}/{emit.number}")
        except BesterError as error:
            fields = facts("emit-delayed", number=emit.number, code=error.code)
            log.debug("emit %d is tried again: %s", emit.number, error, extra=fields)
            return None
        except ValueError as error:  # such as a type that is not served any more
            fields = facts("emit-dropped", number=emit.number, why=str(error))
            log.error("emit %d cannot be sent and is dropped: %s", emit.number, error, extra=fields)
            return Outcome(False, {}, "bad-reply")
        return None if not outcome.recipients and outcome.reason in AGAIN else outcome
