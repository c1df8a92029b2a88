"""Shell of a client's core: one connection after another on an asyncio loop.

The link connects when the core asks for a connection, writes the core's frames as one piece a tick, feeds the core the
bytes received and the time, and passes the core's events on. A link never parses a frame and never keeps a message.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import cast

from bester.broker.names import connect, find
from bester.broker.tls_faults import TlsError
from bester.broker.tls_files import client_context
from bester.broker.tls_stream import connect_tls
from bester.broker.wire.address import PATH_BYTES, parse_host_port
from bester.broker.wire.codes import ConfigError
from bester.client.core import Core
from bester.client.events import Ended, Event, Lost
from bester.client.states import State

TLS = "tls://"
"""Beginning of the address of a server that speaks TLS."""
LOOKUP_SHARE = 0.8
"""Share of the time to connect that the lookup of the server's name may use up."""
NO_LOOP = "no event loop runs in this thread: call the client in a coroutine, or use bester.client.blocking"
NOT_STARTED = "the client is not started: use it inside `async with`, or await its start() first"
OTHER_LOOP = (
    "the client belongs to the event loop that started it, and a different one runs here: make a client in each loop, "
    "or use bester.client.blocking, which several threads may share"
)


class _Connection(asyncio.Protocol):
    """A connection that passes every event to its link, until the link has dropped the connection."""

    def __init__(self, link: Link) -> None:
        self.link: Link | None = link
        self.transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.writable = True
        self.reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.link is not None:
            self.link.on_socket_data(data)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self.link is not None:
            self.link.wake()

    def connection_lost(self, error: Exception | None) -> None:
        if self.link is not None:
            why = "the server closed it" if error is None else reason(error)
            self.link.on_socket_closed(why, is_there=isinstance(error, TlsError))
        if not self.closed.done():
            self.closed.set_result(None)


def reason(error: BaseException) -> str:
    """Return a system error in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, TlsError):
        return str(error)
    if isinstance(error, OSError):
        if error.errno is not None and error.errno > 0:
            return os.strerror(error.errno).lower()
        return (error.strerror or str(error)).lower()
    return str(error) or type(error).__name__


def _context(ca: Path | None) -> ssl.SSLContext:
    try:
        return client_context("ca", ca)
    except ConfigError as error:
        raise ValueError(str(error)) from None


class Link:
    """Sockets and timers of one client.

    `address`: `HOST:PORT`, `[V6]:PORT`, `tls://HOST:PORT` or `unix:PATH`; raises ValueError. `on_events` is called with
    the core's events. `clock` returns monotonic seconds; None: the loop's own time. `ca` is a file of the authorities
    that are trusted with TLS, None: those of the system.
    """

    def __init__(
        self,
        address: str,
        core: Core,
        on_events: Callable[[list[Event]], None],
        clock: Callable[[], float] | None,
        ca: Path | None = None,
    ) -> None:
        self._unix = address.removeprefix("unix:") if address.startswith("unix:") else None
        other = address.removeprefix(TLS)
        is_url = self._unix is None and "://" in other  # of another protocol, as ws
        self._tcp = None if self._unix is not None or is_url else parse_host_port(other)
        if is_url or self._unix == "" or (self._tcp is not None and not self._tcp.port):
            raise ValueError(f"{address!r} is not HOST:PORT, [V6]:PORT, tls://HOST:PORT or unix:PATH")
        if self._unix is not None and len(os.fsencode(self._unix)) > PATH_BYTES:
            raise ValueError(f"{address!r}: a Unix socket's path has {PATH_BYTES} bytes at most; name a shorter one")
        if ca is not None and not address.startswith(TLS):
            raise ValueError(f"a ca is for TLS, and {address!r} is plain text: write {TLS}HOST:PORT")
        self._tls = _context(ca) if address.startswith(TLS) else None
        self._name = address
        self._core = core
        self._on_events = on_events
        self._clock = clock
        self._connection: _Connection | None = None
        self._runner: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._flushing = False

    @property
    def started(self) -> bool:
        return self._runner is not None

    def now(self) -> float:
        """Return the time that is passed to the core."""
        return self._clock() if self._clock is not None else asyncio.get_running_loop().time()

    def start(self) -> None:
        """Begin to connect."""
        self._loop = asyncio.get_running_loop()
        self._runner = self._loop.create_task(self._run(), name=f"bester client of {self._name}")

    def own_loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop. Raises RuntimeError where none runs, or one that did not start this link, whose
        sockets and futures would wait there for ever. A link that is over needs no loop of its own."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(NO_LOOP) from None
        if loop is not self._loop and self._core.state is not State.OVER:
            raise RuntimeError(NOT_STARTED if self._loop is None else OTHER_LOOP)
        return loop

    async def finished(self) -> None:
        """Wait until the core is over and the last socket closed."""
        if self._runner is not None and not self._runner.done():  # its loop may have ended, too
            await asyncio.wait([self._runner])

    def wake(self) -> None:
        """Write the core's frames at the end of this tick, and set the timer."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    @property
    def reading(self) -> bool:
        """State of the socket: read, or paused; True without a socket."""
        return self._connection is None or self._connection.reading

    def set_reading(self, reading: bool) -> None:
        """Read the socket, or leave received bytes to the system's buffers and then to the server."""
        connection = self._connection
        if connection is None or connection.transport is None or connection.reading is reading:
            return
        connection.reading = reading
        if reading:
            connection.transport.resume_reading()
            self._core.resume(self.now())
        else:
            connection.transport.pause_reading()
            self._core.pause()
        self.wake()

    def act(self, events: list[Event]) -> None:
        """Flush and drop the connection as the events ask, then pass the events on."""
        for event in events:
            if isinstance(event, Ended):
                self._flush()
            if isinstance(event, Ended | Lost):
                self._drop()
        if events:
            self._on_events(events)
            self.wake()

    def on_socket_data(self, data: bytes) -> None:
        self.act(self._core.receive(data, self.now()))
        self.wake()  # a duplicate makes no event, but its ack is due

    def on_socket_closed(self, why: str, *, is_there: bool) -> None:
        self.act(self._core.on_disconnected(why, self.now(), is_there=is_there))

    async def _run(self) -> None:
        while self._core.state is not State.OVER:
            await asyncio.sleep(max(0.0, self._core.retry_at - self.now()))
            if not self._core.dial():
                return
            try:
                connection = await self._connect()
            except (OSError, TimeoutError) as error:
                self.on_socket_closed(reason(error), is_there=isinstance(error, TlsError))
                continue
            self._connection = connection
            self._core.on_connected(self.now())
            self._flush()
            await connection.closed

    async def _connect(self) -> _Connection:
        connect_s = self._core.limits.connect_s
        async with asyncio.timeout(connect_s):
            if self._tcp is not None:
                addresses = await find(self._tcp.host, connect_s * LOOKUP_SHARE)
                if self._tls is not None:
                    host, port = self._tcp
                    return await connect_tls(lambda: _Connection(self), addresses, port, connect_s, self._tls, host)
                return await connect(lambda: _Connection(self), addresses, self._tcp.port, connect_s)
            loop = asyncio.get_running_loop()
            return (await loop.create_unix_connection(lambda: _Connection(self), self._unix))[1]

    def _flush(self) -> None:
        self._flushing = False
        connection = self._connection
        if connection is not None and connection.transport is not None and connection.writable:
            frames = self._core.take()
            if frames:
                connection.transport.write(frames[0] if len(frames) == 1 else b"".join(frames))
        self._set_timer()

    def _set_timer(self) -> None:
        # A timer that fires early costs one look; a new timer for every message would cost more.
        due = self._core.next_timer()
        if self._timer is not None and (due is None or due < self._timer_due):
            self._timer.cancel()
            self._timer = None
        if due is not None and self._timer is None:
            self._timer_due = due
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - self.now()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.act(self._core.tick(self.now()))
        self._flush()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and connection.transport is not None:
            connection.link = None
            connection.transport.abort()
        elif self._core.state is State.OVER and self._runner not in (None, asyncio.current_task()):
            assert self._runner is not None
            self._runner.cancel()  # an attempt to connect, or the wait before one, is not needed any more
