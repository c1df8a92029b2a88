"""Connections to the operator's HTTP side, and their bounds: how many, and for how long without a request.

The HTTP library bounds the size of a request, and the requests that are read ahead. Strangers connect before any token
is seen, and the descriptors are those of the whole server; connections that send nothing, or half a request, are
therefore ended here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import cast

MAX_CONNECTIONS = 128
"""Connections at once; above it the oldest one without a request in hand makes way. Twice the requests at once:
browsers and scrapers keep connections open between requests."""
IDLE_S = 30.0
"""Time of a connection without a request in hand: for a request's head, for the reading of an answer, and between two
requests. Longer than the usual time between two scrapes."""


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

    def __call__(self) -> Connection:
        return Connection(self, self._make())

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
        """Add a connection; return False where there is no room, because each connection has a request in hand."""
        if len(self._open) >= self._most:
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


class Connection(asyncio.Protocol):
    """Connection of a browser or tool; the bytes go to the protocol `http`. `busy` while a request is in hand."""

    def __init__(self, all_: Connections, http: asyncio.Protocol) -> None:
        self.http = http
        self.busy = False
        self._all = all_
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        """Address of the other side, for the log."""
        name = None if self._transport is None else self._transport.get_extra_info("peername")
        return str(name[0]) if name else "somebody"

    def take(self) -> None:
        """Begin a request, which has as much time as its handler takes."""
        self.busy = True
        self._stop_timer()

    def wait(self) -> None:
        """Wait for the next request, for a bounded time."""
        self.busy = False
        self._stop_timer()
        if self._transport is not None:
            self._timer = asyncio.get_running_loop().call_later(self._all.idle_s, self.end)

    def end(self) -> None:
        """End the connection at once, whatever is still to be sent."""
        self._stop_timer()
        self._all.closed(self)
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are of no common class
        self.http.connection_made(transport)
        if self._all.opened(self):
            self.wait()
        else:
            self.end()

    def data_received(self, data: bytes) -> None:
        self.http.data_received(data)

    def eof_received(self) -> bool | None:
        return self.http.eof_received()

    def pause_writing(self) -> None:
        self.http.pause_writing()

    def resume_writing(self) -> None:
        self.http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._all.closed(self)
        self._transport = None
        self.http.connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
