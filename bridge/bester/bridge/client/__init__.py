"""A client of a Bester server, for asyncio: send messages and await their reports, receive what others send.

    async with Client("127.0.0.1:2223", user="bob", password="...") as client:
        report = await client.send("chat", {"to": "alice", "text": "hello"})
        async for message in client:
            print(message.type, message.data)

It reconnects by itself, waiting longer each time, and passes on once what arrives twice under one id. A message is
given to the server once: one that was sent when the connection went and is not reported on fails with
ConnectionLost, for only the application knows whether a second delivery does harm. What had not been sent yet goes out
on the next connection. With `resend=True` the former goes out again as well, under the same `payload.dedup`; servers
that know that field deliver it once, others perhaps twice.

Messages that are not asked for wait in a bounded queue. When it is full the socket is not read, so that a fast server
cannot fill the memory of a slow application; reports come on the same socket, so who is sent to must also receive.
A client that closes waits for the reports on what it sent, and drops what still arrives.

It must never decide anything that the core can (see `client.core`), nor block the loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import msgspec

from bester.bridge.client.core import Arrived, Core, Ended, Event, Failed, Lost, Ponged, Ready, Reported, State
from bester.bridge.client.errors import (
    AuthenticationFailed,
    ClientClosed,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    MessageTooLarge,
    ServerRefused,
    WindowFull,
)
from bester.bridge.client.frames import Message, Report
from bester.bridge.client.link import Link
from bester.bridge.client.window import DEFAULTS, Limits
from bester.broker.wire import json_text

__all__ = [
    "AuthenticationFailed",
    "Client",
    "ClientClosed",
    "ClientError",
    "ConnectFailed",
    "ConnectionLost",
    "Limits",
    "Message",
    "MessageTooLarge",
    "Report",
    "ServerRefused",
    "WindowFull",
]

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode

CLOSE_S = 5.0
"""How long `close` waits for reports and for the server's goodbye."""


def _json(data: Any, raw: bytes | str | None) -> bytes:
    if raw is None:
        return _encode(data)
    if data is not None:
        raise TypeError("give either data or raw, not both")
    text = raw.encode() if isinstance(raw, str) else raw
    fault = json_text.fault(text)
    if fault is not None:
        raise ValueError(f"raw is not JSON text that can be sent: {fault}")
    return text


class Client:
    """One user's connection to one server, made anew when it is lost.

    `address`: `HOST:PORT`, `[V6]:PORT` or `unix:PATH` (ValueError otherwise). `resend`: send again after a loss what
    was not reported on. `give_up_s`: end with ConnectionLost after so long without a connection; None: never, a
    listener outlives its server's repairs. `on_link(connected, why)` is called when a connection is made, and when one
    is lost that will be made anew; what ends the client is raised instead, where it is awaited.
    `random` (0 to 1) and `clock` (seconds, monotonic) are there to be replaced in tests.
    """

    def __init__(
        self,
        address: str,
        *,
        user: str,
        password: str,
        resend: bool = False,
        give_up_s: float | None = None,
        limits: Limits = DEFAULTS,
        on_link: Callable[[bool, str], None] | None = None,
        random: Callable[[], float] = random.random,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.address = address
        self._limits = limits
        self._on_link = on_link
        self._core = Core(
            server=address,
            user=user,
            password=password,
            dedup_prefix=secrets.token_hex(8),
            random=random,
            resend=resend,
            give_up_s=give_up_s,
            limits=limits,
        )
        self._link = Link(address, self._core, self._handle, clock)
        self._first: asyncio.Future[None] | None = None
        self._error: ClientError | None = None
        self._unreadable = 0
        self._reports: dict[str, asyncio.Future[Report]] = {}
        self._pongs: dict[str, asyncio.Future[float]] = {}
        self._queue: deque[tuple[Message, int]] = deque()
        self._queue_bytes = 0
        self._arrived = asyncio.Event()
        self._senders: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._let_in = 0  # senders that were told there is room, and have not run since

    # Beginning and end.

    async def __aenter__(self) -> Client:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.close(CLOSE_S if kind is None else 0)

    async def start(self) -> None:
        """Connect and log in; `async with` does it. Raises ConnectFailed, AuthenticationFailed, ServerRefused."""
        if self._link.started or not self._core.open:
            raise RuntimeError("a client is started once; make a new one")
        self._first = asyncio.get_running_loop().create_future()
        self._link.start()
        try:
            await self._first
        except BaseException:
            await self.close(0)
            raise

    async def close(self, timeout_s: float = CLOSE_S) -> None:
        """Wait for what is unreported, at most so long (0: not at all), and hang up. Closing twice does nothing."""
        self._link.act(self._core.leave(self._link.now(), timeout_s))
        self._link.set_reading(True)
        self._link.wake()
        self._let_senders_in()
        try:
            await self._link.finished()
        finally:
            self._link.act(self._core.leave(self._link.now(), 0))

    # Sending.

    @property
    def connected(self) -> bool:
        """Whether the server knows us now; what is submitted otherwise waits for the next connection."""
        return self._core.state is State.READY

    @property
    def unreported(self) -> int:
        """How many messages were submitted and not reported on."""
        return self._core.unreported

    def submit(
        self, type_: str, data: Any = None, *, raw: bytes | str | None = None, dedup: str | None = None
    ) -> asyncio.Future[Report]:
        """Send a message at the end of this tick and return its report to be awaited; many may be under way.

        `data`: what msgspec can write as JSON; or `raw`: JSON text, sent untouched. `dedup`: the sender's own key
        (64 characters) by which a server may know a message it had before. The future fails with ConnectionLost when
        the report cannot come any more; cancelling it takes back what was not sent yet.
        Raises WindowFull (`await room()`), ClientClosed, MessageTooLarge, TypeError, ValueError.
        """
        id_ = self._core.submit(type_, _json(data, raw), dedup)
        future: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._reports[id_] = future
        future.add_done_callback(lambda done: self._withdraw(id_) if done.cancelled() else None)
        self._link.wake()
        return future

    async def send(
        self, type_: str, data: Any = None, *, raw: bytes | str | None = None, dedup: str | None = None
    ) -> Report:
        """Wait for room, send a message and wait for its report. Arguments and errors as with `submit`."""
        await self.room()
        return await self.submit(type_, data, raw=raw, dedup=dedup)

    async def room(self) -> None:
        """Wait until a message may be submitted. Who waited longest goes first."""
        loop = asyncio.get_running_loop()
        behind, waited = bool(self._senders), False
        while self._core.open and (behind or not self._core.room):
            waiter: asyncio.Future[None] = loop.create_future()
            self._senders[waiter] = None
            if waited:
                self._senders.move_to_end(waiter, last=False)
            try:
                await waiter
            finally:
                if waiter in self._senders:
                    del self._senders[waiter]
                else:
                    self._let_in -= 1
                # Whoever was let in may yet submit nothing; then it is the next one's turn.
                loop.call_soon(self._let_senders_in)
            behind, waited = False, True

    async def ping(self) -> float:
        """Return the seconds that the server took to answer. Raises ConnectionLost, also where there is none."""
        id_ = self._core.ping()
        self._pongs[id_] = asyncio.get_running_loop().create_future()
        self._link.wake()
        began = self._link.now()
        try:
            return await self._pongs[id_] - began
        finally:
            self._pongs.pop(id_, None)

    # Receiving.

    @property
    def waiting(self) -> int:
        """How many messages were received and not yet asked for."""
        return len(self._queue)

    async def receive(self) -> Message:
        """Return the next message, in the order they came. Raises what ended the client, once none is left."""
        while not self._queue:
            if self._core.state is State.OVER:
                raise self._error or ClientClosed("not-connected", "the client is closed")
            self._arrived.clear()
            await self._arrived.wait()
        message, size = self._queue.popleft()
        self._queue_bytes -= size
        self._mind_the_queue()
        return message

    def __aiter__(self) -> Client:
        """Iterate over messages as they come, until the client is closed. Raises what else ended it."""
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.receive()
        except ClientClosed:
            raise StopAsyncIteration from None

    # What the link found.

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Reported):
                report = self._reports.pop(event.id, None)
                if report is not None and not report.done():
                    report.set_result(event.report)
            elif isinstance(event, Arrived):
                size = len(event.message.frame)
                self._queue.append((event.message, size))
                self._queue_bytes += size
                self._arrived.set()
            elif isinstance(event, Failed):
                waiting = self._reports.pop(event.id, None) or self._pongs.get(event.id)
                if waiting is not None and not waiting.done():
                    waiting.set_exception(event.error)
            elif isinstance(event, Ponged):
                pong = self._pongs.get(event.id)
                if pong is not None and not pong.done():
                    pong.set_result(self._link.now())
            else:
                self._linked(event)
        self._let_senders_in()
        self._mind_the_queue()

    def _linked(self, event: Ready | Lost | Ended) -> None:
        first = self._first
        error = None if isinstance(event, Ready) else event.error
        if isinstance(event, Ended):
            self._error = error
            self._arrived.set()
        if first is not None and not first.done():
            if isinstance(event, Ready):
                first.set_result(None)
            elif isinstance(event, Ended):
                first.set_exception(error or ClientClosed("not-connected", "the client was closed"))
        if self._core.unreadable > self._unreadable:
            _log.warning("%s sent %d frames that cannot be read", self.address, self._core.unreadable)
            self._unreadable = self._core.unreadable
        if self._on_link is not None and not isinstance(event, Ended):
            asyncio.get_running_loop().call_soon(self._on_link, error is None, str(error or ""))

    def _mind_the_queue(self) -> None:
        """Read no more than the application takes; read on at half, so that not each message stops and starts it."""
        limits, waiting = self._limits, len(self._queue)
        if not self._core.open:
            return  # closing reads on, and drops what comes
        if self._link.reading:
            self._link.set_reading(waiting < limits.queue and self._queue_bytes < limits.queue_bytes)
        elif waiting <= limits.queue // 2 and self._queue_bytes <= limits.queue_bytes // 2:
            self._link.set_reading(True)

    def _withdraw(self, id_: str) -> None:
        self._reports.pop(id_, None)
        self._core.withdraw(id_)
        self._link.wake()
        self._let_senders_in()

    def _let_senders_in(self) -> None:
        while self._senders and (not self._core.open or self._core.room > self._let_in):
            waiter, _ = self._senders.popitem(last=False)
            self._let_in += 1
            if not waiter.done():
                waiter.set_result(None)
