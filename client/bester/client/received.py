"""Bounded queue of received messages that the application has not asked for yet, on an asyncio loop.

The reader of the socket keeps the bound (see `may_read`): the queue never drops a message.
"""

from __future__ import annotations

import asyncio
from collections import deque

from bester.client.frames import Message
from bester.client.window import Limits


class Received:
    """Queue of one client."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._queue: deque[Message] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, message: Message) -> None:
        """Append a message and wake the receivers."""
        self._queue.append(message)
        self._bytes += len(message.frame)
        self.wake()

    def pop(self) -> Message | None:
        """Return the oldest message, or None."""
        if not self._queue:
            return None
        message = self._queue.popleft()
        self._bytes -= len(message.frame)
        return message

    def wake(self) -> None:
        """Let waiting receivers look again."""
        self._changed.set()

    async def wait(self) -> None:
        """Wait for the next message, or for `wake`."""
        self._changed.clear()
        await self._changed.wait()

    def may_read(self, reading: bool) -> bool:
        """Return whether to read on; after a stop only from half the bound, so that reading does not flap."""
        limits = self._limits
        if reading:
            return len(self._queue) < limits.queue and self._bytes < limits.queue_bytes
        return len(self._queue) <= limits.queue // 2 and self._bytes <= limits.queue_bytes // 2
