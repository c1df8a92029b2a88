"""Connections to the operator's HTTP side, and their bounds: how many, and for how long without a request.

The HTTP library bounds the size of a request, and the requests that are read ahead. Strangers connect before any token
is seen, and the descriptors are those of the whole server; connections that send nothing, or half a request, are
therefore ended here. What comes is passed on within a part of each turn of the loop, and a few requests begin in each:
the server's messages wait for no stranger.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import cast

from bester.broker.descriptors import is_among_last
from bester.broker.layer import Layer
from bester.broker.layer_turns import LayerTurns
from bester.broker.wire.address import network_of

MAX_CONNECTIONS = 128
"""Connections at once; above it the oldest one without a request in hand makes way. Twice the requests at once:
browsers and scrapers keep connections open between requests."""
DESCRIPTORS_KEPT = 32
"""Descriptors that this side leaves to handlers and servers: half of those that clients leave."""
IDLE_S = 30.0
"""Time of a connection without a request in hand: for a request's head, for the reading of an answer, and between two
requests. Longer than the usual time between two scrapes."""

PIECE_BYTES = 4096
"""Bytes that are passed on between two looks at the clock: some tenths of a millisecond, as chunks of one byte."""
MOST_BEGUN = 8
"""Requests that begin in one turn of the loop, about a millisecond of work with their answers; more wait."""


class RequestTurns:
    """Requests begin in the order in which they come, MOST_BEGUN in each turn of the loop."""

    def __init__(self) -> None:
        self._left = MOST_BEGUN
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_due = False

    async def wait(self) -> None:
        """Wait for the turn in which a request begins."""
        loop = asyncio.get_running_loop()
        if not self._is_due:
            self._is_due = True
            loop.call_soon(self._turn)
        if self._left > 0 and not self._waiting:
            self._left -= 1
            return
        waiter = loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def _turn(self) -> None:
        self._left, self._is_due = MOST_BEGUN, False
        while self._waiting and self._left:
            waiter = self._waiting.popleft()
            if not waiter.done():  # a request whose connection has ended waits no more
                waiter.set_result(None)
                self._left -= 1
        if self._left < MOST_BEGUN:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._turn)


class Connections:
    """All connections. Called without an argument, as the factory of a listener, it makes the next one."""

    def __init__(
        self, make: Callable[[], asyncio.Protocol], *, most: int = MAX_CONNECTIONS, idle_s: float = IDLE_S
    ) -> None:
        self._make = make
        self._most = most
        self.idle_s = idle_s
        """Time of a connection without a request in hand, in seconds."""
        self._open: dict[asyncio.BaseProtocol, Connection] = {}
        self._turns = LayerTurns(time.monotonic, lambda call: asyncio.get_running_loop().call_soon(call))
        self.requests = RequestTurns()

    def __call__(self) -> Connection:
        return Connection(self, self._make(), self._turns)

    def __len__(self) -> int:
        return len(self._open)

    @contextlib.contextmanager
    def in_hand(self, http: asyncio.BaseProtocol) -> Iterator[None]:
        """Stop the time of the connection with this HTTP protocol while a request of the connection is answered."""
        connection = self._open.get(http)
        if connection is None:  # closed by the peer meanwhile
            yield
            return
        connection.take()
        try:
            yield
        finally:
            connection.wait()

    def opened(self, connection: Connection) -> bool:
        """Add a connection; return False where there is no room, because each connection has a request in hand. Where
        the process has few descriptors left there is none either."""
        own = connection.get_extra_info("socket")
        if len(self._open) >= self._most or (own is not None and is_among_last(own.fileno(), DESCRIPTORS_KEPT)):
            oldest = next((each for each in self._open.values() if not each.busy), None)
            if oldest is None:
                return False
            oldest.end()
        self._open[connection.http] = connection
        return True

    def end_all(self) -> None:
        """End all connections: who is let in has changed."""
        for connection in list(self._open.values()):
            connection.end()

    def closed(self, connection: Connection) -> None:
        """Remove a connection, if it has not been removed."""
        self._open.pop(connection.http, None)


class Connection(Layer):
    """Connection of a browser or tool; the bytes go to the protocol `http`. `busy` while a request is in hand."""

    __slots__ = ("_above", "_all", "_came", "_timer", "_turns", "busy", "http")

    def __init__(self, all_: Connections, http: asyncio.Protocol, turns: LayerTurns) -> None:
        super().__init__()
        self._above = self.http = http
        self.busy = False
        self._all = all_
        self._turns = turns
        self._came = bytearray()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def sender(self) -> str:
        """Return the network of the other side: connections from one address, or IPv6 /64, have the turns of one."""
        return network_of(self.address)

    @property
    def address(self) -> str:
        """Address of the other side, for the log."""
        name = self.get_extra_info("peername")
        return str(name[0]) if name else "somebody"

    def take(self) -> None:
        """Begin a request, which has as much time as its handler takes."""
        self.busy = True
        self._stop_timer()

    def wait(self) -> None:
        """Wait for the next request, for a bounded time."""
        self.busy = False
        self._stop_timer()
        if self._below is not None:
            self._timer = asyncio.get_running_loop().call_later(self._all.idle_s, self.end)

    def end(self) -> None:
        """End the connection at once, whatever is still to be sent."""
        self._stop_timer()
        self._all.closed(self)
        self.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = cast("asyncio.Transport", transport)  # uvloop's transports are of no common class
        self.http.connection_made(self)
        if self._all.opened(self):
            self.wait()
        else:
            self.end()

    def data_received(self, data: bytes) -> None:
        self._came += data
        if self._turns.take_in(self):
            self._wait()

    def go_on(self, enough: float) -> bool:
        """Pass on what has come, up to the time `enough`; return whether there is more."""
        while self._came and not self.is_closing():
            piece = bytes(self._came[:PIECE_BYTES])
            del self._came[:PIECE_BYTES]
            self.http.data_received(piece)
            if self._came and self._turns.clock() >= enough:
                return True
        self._catch_up()
        return False

    def eof_received(self) -> bool | None:
        if self._waits:
            self._end_waits = True
            return True
        return self.http.eof_received()

    def pause_writing(self) -> None:
        self.http.pause_writing()

    def resume_writing(self) -> None:
        self.http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._all.closed(self)
        self._turns.forget(self)
        self._below = None
        self.http.connection_lost(exc)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._below is not None:
            self._below.write(data)

    def can_write_eof(self) -> bool:
        return self._below is not None and self._below.can_write_eof()

    def write_eof(self) -> None:
        if self._below is not None:
            self._below.write_eof()

    def close(self) -> None:
        """Close the connection behind everything that was written."""
        if self._below is not None:
            self._below.close()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._below is not None:
            self._below.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
