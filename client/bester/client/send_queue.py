"""Whose turn it is to send: those who wait until the window has room again, on an asyncio loop.

Who waited longest goes first. It must never let in more than there is room for.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable


class SendQueue:
    """Senders in line. `room` says how many may submit now, `open_` whether anybody ever may again."""

    def __init__(self, room: Callable[[], int], open_: Callable[[], bool]) -> None:
        self._room = room
        self._open = open_
        self._line: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._let_in = 0  # those who were told there is room, and have not run since

    async def come(self) -> None:
        """Wait for one's turn; it also comes when all is over."""
        loop = asyncio.get_running_loop()
        behind, waited = bool(self._line), False
        while self._open() and (behind or not self._room()):
            waiter: asyncio.Future[None] = loop.create_future()
            self._line[waiter] = None
            if waited:
                self._line.move_to_end(waiter, last=False)
            try:
                await waiter
            finally:
                if waiter in self._line:
                    del self._line[waiter]
                else:
                    self._let_in -= 1
                # Whoever was let in may yet submit nothing; then it is the next one's turn.
                loop.call_soon(self.look)
            behind, waited = False, True

    def look(self) -> None:
        """Let in who may go now: something has changed."""
        while self._line and (not self._open() or self._room() > self._let_in):
            waiter, _ = self._line.popitem(last=False)
            self._let_in += 1
            if not waiter.done():
                waiter.set_result(None)
