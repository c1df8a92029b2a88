"""Bounds of connections to the operator's HTTP side, with real sockets: their number, and their time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import pytest
from aiohttp import web

from bester.broker import descriptors
from bester.broker.layer_turns import SLICE_S, TURN_S
from bester.broker.operator.connections import MOST_BEGUN, PIECE_BYTES, Connection, Connections, RequestTurns
from tests.unit.test_layer_turns import Loop

GET = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
HALF = b"GET / HTTP/1.1\r\nHost: 127"
LONG_S = 600.0
DEADLINE_S = 60.0


class Site(NamedTuple):
    """A small HTTP server behind bounded connections. Requests wait for `release`, with `taken` of them in hand."""

    connections: Connections
    port: int
    release: asyncio.Event
    taken: asyncio.Semaphore

    async def connect(self, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection that writes the data, and wait until the server has it."""
        before = len(self.connections)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        if before < 3:
            await until(lambda: len(self.connections) > before)
        return reader, writer


async def until(holds: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not holds():
            await asyncio.sleep(0.01)


async def end_of(reader: asyncio.StreamReader) -> bytes:
    """Return the bytes until the server has ended the connection."""
    got = b""
    async with asyncio.timeout(DEADLINE_S):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                got += data
    return got


@contextlib.asynccontextmanager
async def site(*, most: int = 100, idle_s: float = LONG_S) -> AsyncIterator[Site]:
    """Run a server."""
    release, taken = asyncio.Event(), asyncio.Semaphore(0)

    async def handler(request: web.Request) -> web.Response:
        with connections.in_hand(request.protocol):
            taken.release()
            await release.wait()
            return web.Response(text="good")

    app = web.Application()
    app.router.add_get("/", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    assert runner.server is not None
    connections = Connections(runner.server, most=most, idle_s=idle_s)
    listener = await asyncio.get_running_loop().create_server(connections, "127.0.0.1", 0)
    try:
        yield Site(connections, listener.sockets[0].getsockname()[1], release, taken)
    finally:
        listener.close()
        await runner.cleanup()


async def test_oldest_makes_way_where_descriptors_are_scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site() as server:
        first, leaving = await server.connect()
        monkeypatch.setattr(descriptors, "limit", lambda: 32)  # all that are not kept are in use
        second, writer = await asyncio.open_connection("127.0.0.1", server.port)
        assert await end_of(first) == b""
        assert len(server.connections) == 1 and not second.at_eof()
        leaving.close()
        writer.close()
        monkeypatch.undo()


@pytest.mark.parametrize("sent", [b"", HALF, b"G", b"\r\n", GET[:-2] + b"X-More: 1"])
async def test_connection_without_a_whole_request_ends(sent: bytes) -> None:
    async with site(idle_s=0.2) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        await end_of(reader)
        await until(lambda: not len(server.connections))
        writer.close()


async def test_dripping_bytes_do_not_prolong_a_connection() -> None:
    async with site(idle_s=0.3) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(HALF)
        ended = asyncio.create_task(end_of(reader))
        while not ended.done():
            with contextlib.suppress(ConnectionError):
                writer.write(b"0")
                await writer.drain()
            await asyncio.sleep(0.02)
        writer.close()


async def test_time_of_a_handler_does_not_count_and_idle_time_after_it_does() -> None:
    async with site(idle_s=0.2) as server:
        reader, writer = await server.connect(GET)
        await server.taken.acquire()
        _, idle = await asyncio.open_connection("127.0.0.1", server.port)
        await until(lambda: len(server.connections) == 2)
        await until(lambda: len(server.connections) == 1)  # the one that came later has gone, and the busy one is here
        server.release.set()
        assert (await end_of(reader)).endswith(b"good")
        writer.close()
        idle.close()


async def test_oldest_idle_connection_makes_way() -> None:
    async with site(most=3) as server:
        first = await server.connect(GET)
        await server.taken.acquire()
        second, third = await server.connect(HALF), await server.connect()
        fourth = await server.connect(GET)
        await end_of(second[0])
        await server.taken.acquire()
        assert len(server.connections) == 3
        server.release.set()
        for reader, _ in (first, fourth):
            async with asyncio.timeout(DEADLINE_S):
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        for _, writer in (first, second, third, fourth):
            writer.close()


async def test_newest_connection_ends_where_all_have_a_request_in_hand() -> None:
    async with site(most=2) as server:
        held = [await server.connect(GET) for _ in range(2)]
        for _ in held:
            await server.taken.acquire()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        assert await end_of(reader) == b""
        writer.close()
        server.release.set()
        for reader, writer in held:
            async with asyncio.timeout(DEADLINE_S):
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()


async def test_many_requests_of_one_connection_are_answered() -> None:
    async with site() as server:
        server.release.set()
        reader, writer = await server.connect()
        for _ in range(3):
            writer.write(GET[:-2] + b"X-Long: " + b"a" * 8000 + b"\r\n\r\n")
            async with asyncio.timeout(DEADLINE_S):
                assert (await reader.readuntil(b"good")).startswith(b"HTTP/1.1 200")
        writer.write(GET * 100)
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(100):
                await reader.readuntil(b"good")
        writer.close()


class Reading(asyncio.Transport):
    """Transport of a connection; `told` is what it was told about reading."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def pause_reading(self) -> None:
        self.told.append("pause")

    def resume_reading(self) -> None:
        self.told.append("resume")

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        """Nothing is left to be sent."""


class Costly(asyncio.Protocol):
    """HTTP protocol that takes a slice for each piece of bytes."""

    def __init__(self, loop: Loop) -> None:
        self.got = b""
        self._loop = loop

    def data_received(self, data: bytes) -> None:
        self.got += data
        self._loop.now += SLICE_S


async def test_bytes_of_a_connection_are_passed_on_in_parts_of_turns() -> None:
    loop, below = Loop(), Reading()
    http = Costly(loop)
    connection = Connection(Connections(lambda: http), http, loop.turns)
    connection.connection_made(below)
    sent = bytes(range(256)) * (PIECE_BYTES // 16)  # sixteen pieces
    connection.data_received(sent)
    assert len(http.got) < len(sent) and below.told == ["pause"]
    while loop.calls:
        assert loop.turn() <= 2 * TURN_S
    assert http.got == sent and below.told == ["pause", "resume"]
    connection.end()


async def test_some_requests_begin_in_each_turn_of_the_loop_in_their_order() -> None:
    turns, begun = RequestTurns(), list[int]()

    async def begin(number: int) -> None:
        await turns.wait()
        begun.append(number)

    tasks = [asyncio.create_task(begin(number)) for number in range(10 * MOST_BEGUN)]
    tasks[3 * MOST_BEGUN].cancel()  # its connection has ended
    before = 0
    while len(begun) < len(tasks) - 1:
        await asyncio.sleep(0)
        assert len(begun) - before <= MOST_BEGUN
        before = len(begun)
    assert begun == sorted(begun)
