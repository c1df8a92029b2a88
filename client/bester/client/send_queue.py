"""Queue of tasks that wait for room in the window, on an asyncio loop.

The longest waiting task goes first. The queue never lets in more tasks than there is room for.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable


class SendQueue:
    """Tasks in line. `room`: number of messages that may be submitted now; `open_`: whether any ever may be again."""

    def __init__(self, room: Callable[[], int], open_: Callable[[], bool]) -> None:
        self._room = room
        self._open = open_
        self._line: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._woken = 0  # tasks woken for the room there is, which have not run since

    async def wait_turn(self) -> None:
        """Wait for the caller's turn; the wait also ends when the client has ended."""
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
                    self._woken -= 1
                # A woken task may submit nothing after all; then the next one has its turn.
                loop.call_soon(self.wake)
            behind, waited = False, True

    def wake(self) -> None:
        """Wake as many tasks as there is room for."""
        while self._line and (not self._open() or self._room() > self._woken):
            waiter, _ = self._line.popitem(last=False)
            self._woken += 1
            if not waiter.done():
                waiter.set_result(None)
