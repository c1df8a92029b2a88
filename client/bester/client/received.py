"""Messages that were received and not asked for yet, on an asyncio loop: a bounded queue.

The bound is kept by whoever reads the socket (see `may_read`): it must never drop a message.
"""

from __future__ import annotations

import asyncio
from collections import deque

from bester.client.frames import Message
from bester.client.window import Limits


class Received:
    """The queue of one client."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._queue: deque[Message] = deque()
        self._bytes = 0
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, message: Message) -> None:
        """A message came."""
        self._queue.append(message)
        self._bytes += len(message.frame)
        self.wake()

    def pop(self) -> Message | None:
        """Return the message that waited longest, None where there is none."""
        if not self._queue:
            return None
        message = self._queue.popleft()
        self._bytes -= len(message.frame)
        return message

    def wake(self) -> None:
        """Let those who wait for news look again."""
        self._news.set()

    async def wait(self) -> None:
        """Wait until something has come, or `wake`."""
        self._news.clear()
        await self._news.wait()

    def may_read(self, reading: bool) -> bool:
        """Say whether to read on; after a stop only at half, so that not each message stops and starts it."""
        limits = self._limits
        if reading:
            return len(self._queue) < limits.queue and self._bytes < limits.queue_bytes
        return len(self._queue) <= limits.queue // 2 and self._bytes <= limits.queue_bytes // 2
