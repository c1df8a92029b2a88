"""Messages to servers that speak the native protocol: one connection, one message, one report.

Bounded in all and for each address, and in time: from the asking to the report everything together takes at most
`forward_s`. What the other server does with a message it has read and not reported on is unknown: that is `sent`.
Connections to one address are opened in the order the messages came.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import cast

from bester.bridge import native
from bester.bridge.frames import Splitter
from bester.bridge.limits import Limits
from bester.broker.wire.address import HostPort, parse_host_port
from bester.broker.wire.messages import Forward, Meta

Became = tuple[str, Meta]
"""What became of a message: an outcome, and the meta of a Forwarded."""
UNREACHABLE: Became = ("failed:unreachable", {})
OVERLOADED: Became = ("failed:overloaded", {})


class _Conversation(asyncio.Protocol):
    """Writes one frame, reads until a status report comes or the peer ends."""

    def __init__(self, frame: bytes, limit_bytes: int, done: asyncio.Future[Became]) -> None:
        self._frame = frame
        self._splitter = Splitter(limit_bytes)
        self._done = done
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        self._transport = transport
        transport.write(self._frame)

    def data_received(self, data: bytes) -> None:
        for body in self._splitter.feed(data):
            became = native.outcome(body)
            if became is not None:
                self._end(became)
                return
        if self._splitter.refused is not None:
            self._end(("failed:malformed", {}))

    def eof_received(self) -> bool:
        self._end(("sent", {}))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        # A reset: whether our bytes were read before it, nobody can say, so it is not called sent.
        self._end(UNREACHABLE)

    def _end(self, became: Became) -> None:
        if not self._done.done():
            self._done.set_result(became)
        if self._transport is not None:
            self._transport.close()


class Forwarder:
    """Carries Forwards out; `done(token, outcome, meta)` is called once for each, in the loop."""

    def __init__(self, limits: Limits, done: Callable[[int, str, Meta], None]) -> None:
        self._limits = limits
        self._done = done
        self._tasks: set[asyncio.Task[Became]] = set()
        self._running: dict[str, int] = {}  # by address
        self._waiting: dict[str, deque[tuple[Forward, float]]] = {}  # by address, with their deadlines
        self._queued = 0

    def forward(self, message: Forward) -> None:
        """Take a Forward."""
        loop = asyncio.get_running_loop()
        if self._queued >= self._limits.forwards_waiting:
            self._done(message.token, *OVERLOADED)
            return
        self._queued += 1
        queue = self._waiting.setdefault(message.address, deque())
        queue.append((message, loop.time() + self._limits.forward_s))
        self._start(message.address)

    def _start(self, address: str) -> None:
        """Start what the bounds allow for one address."""
        limits, queue = self._limits, self._waiting.get(address)
        while queue and len(self._tasks) < limits.forwards:
            running = self._running.get(address, 0)
            if running >= limits.forwards_per_address:
                return
            message, deadline = queue.popleft()
            self._queued -= 1
            self._running[address] = running + 1
            task = asyncio.get_running_loop().create_task(self._converse(message, deadline))
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, message))
        if queue is not None and not queue:
            del self._waiting[address]

    def _ended(self, message: Forward, task: asyncio.Task[Became]) -> None:
        """Also called for a task that was cancelled before it began."""
        self._tasks.discard(task)
        self._running[message.address] -= 1
        if not self._running[message.address]:
            del self._running[message.address]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            task.get_loop().call_exception_handler({"message": "a forward failed", "exception": error, "task": task})
        self._done(message.token, *(UNREACHABLE if task.cancelled() or error is not None else task.result()))
        for address in [message.address, *self._waiting]:
            self._start(address)
            if len(self._tasks) >= self._limits.forwards:
                break

    async def _converse(self, message: Forward, deadline: float) -> Became:
        loop = asyncio.get_running_loop()
        try:
            address: HostPort = parse_host_port(message.address)
        except ValueError:
            return UNREACHABLE
        frame = native.to_server(message.token, message.type, message.body, message.meta)
        done: asyncio.Future[Became] = loop.create_future()
        transport: asyncio.BaseTransport | None = None
        try:
            async with asyncio.timeout_at(deadline):
                transport, _ = await loop.create_connection(
                    lambda: _Conversation(frame, self._limits.forward_report, done), address.host, address.port
                )
                return await done
        except (OSError, TimeoutError, UnicodeError):
            return UNREACHABLE
        finally:
            if transport is not None:
                transport.close()

    async def close(self) -> None:
        """Give up what is still under way; it fails as unreachable."""
        waiting, self._waiting = self._waiting, {}
        for queue in waiting.values():
            for message, _ in queue:
                self._done(message.token, *UNREACHABLE)
        self._queued = 0
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
