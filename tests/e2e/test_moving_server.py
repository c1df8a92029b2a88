"""A server of the fabric that comes back at another address under its name: the messages queued for it go there."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from bester.broker import fabric_dialer
from bester.broker.core.settings import Limits, Route, Settings
from bester.broker.names import find
from bester.broker.server import Broker
from bester.broker.store.memory import MemoryStore
from bester.broker.users import OpenAccounts
from tests.e2e.name_server import name_server, until
from tests.live import RawHandler, raw_handler, short_directory

DEADLINE_S = 60.0


def free_port(*hosts: str) -> int:
    """Return a port that is free at all of these addresses."""
    while True:
        with socket.socket() as first:
            first.bind((hosts[0], 0))
            port = int(first.getsockname()[1])
            try:
                for host in hosts[1:]:
                    with socket.socket() as other:
                        other.bind((host, port))
            except OSError:
                continue
        return port


@asynccontextmanager
async def alive(handler: RawHandler) -> AsyncIterator[None]:
    """Send heartbeats of a handler meanwhile."""

    async def beat() -> None:
        while True:
            await handler.say([3])
            await asyncio.sleep(1.0)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def next_body(handler: RawHandler) -> bytes:
    """Answer the next REQUEST, and return its body."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                request = await handler.hear(10)
            except TimeoutError:
                continue
            await handler.say([11, request[1], 0, [], None])
            return bytes(request[3])


@asynccontextmanager
async def other_server(directory: Path, address: str) -> AsyncIterator[RawHandler]:
    """Run s2 at an address, with a handler of its messages."""
    listen = f"ipc://{directory}/s2.sock"
    settings = Settings("s2", open_accounts=True, accept="open")
    async with (
        Broker(settings, (listen, f"tcp://{address}"), OpenAccounts(), MemoryStore()),
        raw_handler(listen, "note") as handler,
        alive(handler),
    ):
        handler.welcome = False  # its server may end first
        yield handler


async def test_outbox_goes_to_the_new_address(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port("127.0.0.2", "127.0.0.3")
    async with short_directory() as directory:
        with name_server() as names:
            monkeypatch.setattr(fabric_dialer, "find", partial(find, threads=names.lookers))
            routes = {"s2": Route("s2", fabric=f"tcp://s2.example:{port}")}
            settings = Settings("s1", open_accounts=True, routes=routes, limits=Limits(last_retry_s=1.0))
            listen = f"ipc://{directory}/s1.sock"
            async with (
                Broker(settings, (listen,), OpenAccounts(), MemoryStore()) as broker,
                raw_handler(listen, "onward") as onward,
                alive(onward),
            ):

                async def send(number: int) -> list[object]:
                    await onward.say([12, number, "onward", [["sendServers", ["s2"], b"%d" % number, "note"]], {}])
                    return list(await onward.hear(13))

                assert (await send(1))[2:4] == [0, {"s2": "queued"}]  # the name is not known yet
                await until(lambda: names.asked["s2.example"] >= 2)
                names.knows["s2.example"] = ("127.0.0.2",)
                async with other_server(directory, f"127.0.0.2:{port}") as there:
                    assert await next_body(there) == b"1"
                    await until(lambda: broker.router.inspect().queues.messages == 0)
                assert (await asyncio.wait_for(send(2), DEADLINE_S))[2:4] == [0, {"s2": "queued"}]
                names.knows["s2.example"] = ("127.0.0.3",)
                async with other_server(directory, f"127.0.0.3:{port}") as there:
                    assert await next_body(there) == b"2"
                    await until(lambda: broker.router.inspect().queues.messages == 0)
