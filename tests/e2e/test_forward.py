"""Messages to other servers: one connection, one message, one report; and what becomes of them otherwise."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from bester.bridge.forward import Forwarder
from bester.bridge.limits import Limits
from bester.bridge.native import report
from bester.broker.wire.messages import Forward
from tests.e2e.bridge_scene import OPEN_TO_SERVERS, Raw, scene

Answer = Callable[[Raw], Awaitable[None]]


class Outcomes:
    """What the forwarder said, by token."""

    def __init__(self) -> None:
        self.of: dict[int, str] = {}
        self.meta: dict[int, dict[str, Any]] = {}
        self._news = asyncio.Event()

    def done(self, token: int, outcome: str, meta: dict[str, Any]) -> None:
        assert token not in self.of
        self.of[token] = outcome
        self.meta[token] = meta
        self._news.set()

    async def all(self, count: int) -> dict[int, str]:
        async with asyncio.timeout(10):
            while len(self.of) < count:
                self._news.clear()
                await self._news.wait()
        return self.of


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """Another server, which treats each connection as the test says; yields its address."""
    tasks: set[asyncio.Task[None]] = set()

    async def treat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer = Raw(reader, writer)
        try:
            await answer(peer)
        finally:
            await peer.close()
            tasks.discard(task)

    listening = await asyncio.start_server(treat, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        if tasks:
            await asyncio.wait(tasks)


async def good(peer: Raw) -> None:
    frame = await peer.read()
    peer.writer.write(report(json.dumps(frame["payload"]["id"]).encode(), 0))


async def bad(peer: Raw) -> None:
    await peer.read()
    peer.writer.write(report(b"null", 1, "not-allowed"))


async def partly(peer: Raw) -> None:
    await peer.read()
    peer.writer.write(report(b"null", 1, "expired", "s2/1", {"bob": "delivered", "carol": "failed:expired"}))


async def for_later(peer: Raw) -> None:
    await peer.read()
    peer.writer.write(report(b"null", 0, None, "s2/1", {"bob": "queued", "carol": "delivered", "dave": "queued"}))


async def wordy(peer: Raw) -> None:
    await peer.read()
    peer.writer.write(report(b"null", 0, None, "s2/1", {f"{number:0100}": "queued" for number in range(20_000)}))


async def chatty(peer: Raw) -> None:
    await peer.read()
    peer.write(b'{"header":{"messageType":"receivedMessage"},"payload":{}}')
    peer.writer.write(report(b"null", 0))


async def silent(peer: Raw) -> None:
    await peer.read()


async def reset(peer: Raw) -> None:
    await peer.read()
    peer.reset()


async def too_large(peer: Raw) -> None:
    await peer.read()
    peer.writer.write(b"\xff\xff\xff\xff")
    await peer.reader.read()


async def never(peer: Raw) -> None:
    await peer.reader.read()
    await peer.reader.read()


@pytest.mark.parametrize(
    ("answer", "outcome", "meta"),
    [
        (good, "delivered", {}),
        (bad, "failed:not-allowed", {}),
        (partly, "failed:expired", {"carried": True}),
        (for_later, "queued", {"queued": 2}),
        (wordy, "queued", {"queued": 20_000}),
        (chatty, "delivered", {}),
        (silent, "sent", {}),
        (reset, "failed:unreachable", {}),
        (too_large, "failed:malformed", {}),
        (never, "failed:unreachable", {}),
    ],
)
async def test_what_becomes_of_it(answer: Answer, outcome: str, meta: dict[str, Any]) -> None:
    outcomes = Outcomes()
    forwarder = Forwarder(replace(Limits(), forward_s=0.3 if answer is never else 5.0), outcomes.done)
    async with server(answer) as address:
        forwarder.forward(Forward(3, address, "m", b"1", {}))
        assert await outcomes.all(1) == {3: outcome}
        assert outcomes.meta == {3: meta}


async def test_the_other_server_gets_it_byte_for_byte() -> None:
    seen: list[bytes] = []

    async def keep(peer: Raw) -> None:
        seen.append(await peer.body())

    outcomes = Outcomes()
    forwarder = Forwarder(Limits(), outcomes.done)
    async with server(keep) as address:
        forwarder.forward(Forward(3, address, "m", b"-0", {"id": "s1/e/1.0.0", "path": ["s1/m"]}))
        await outcomes.all(1)
    header = b'{"scope":"server","id":"s1/e/1.0.0","path":["s1/m"]}'
    assert seen == [b'{"header":%b,"payload":{"data":-0,"type":"m","id":"s1/e/1.0.0"}}' % header]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "nonesuch.invalid:1", "127.0.0.1:0", "a..b:1"])
async def test_nobody_there(address: str) -> None:
    outcomes = Outcomes()
    Forwarder(Limits(), outcomes.done).forward(Forward(3, address, "m", b"1", {}))
    assert await outcomes.all(1) == {3: "failed:unreachable"}


async def test_bounds_for_each_address_and_in_all() -> None:
    now: dict[str, int] = {"a": 0, "b": 0}
    most: dict[str, int] = {"a": 0, "b": 0, "all": 0}

    def counted(name: str) -> Answer:
        async def count(peer: Raw) -> None:
            now[name] += 1
            most[name] = max(most[name], now[name])
            most["all"] = max(most["all"], sum(now.values()))
            await good(peer)
            await peer.reader.read()
            now[name] -= 1

        return count

    outcomes = Outcomes()
    forwarder = Forwarder(replace(Limits(), forwards_per_address=3, forwards=4), outcomes.done)
    async with server(counted("a")) as a, server(counted("b")) as b:
        for token in range(60):
            forwarder.forward(Forward(token, a if token % 2 else b, "m", b"1", {}))
        assert set((await outcomes.all(60)).values()) == {"delivered"}
    assert max(most["a"], most["b"]) <= 3 + 1  # the next one may arrive before the last one's end is noticed
    assert most["all"] <= 4 + 2


async def test_too_many_waiting_are_told_so() -> None:
    outcomes = Outcomes()
    forwarder = Forwarder(replace(Limits(), forwards=1, forwards_waiting=2, forward_s=0.3), outcomes.done)
    async with server(never) as address:
        for token in range(4):
            forwarder.forward(Forward(token, address, "m", b"1", {}))
        assert outcomes.of == {3: "failed:overloaded"}
        await outcomes.all(4)
    assert sorted(outcomes.of.values()) == ["failed:overloaded"] + ["failed:unreachable"] * 3


async def test_what_is_given_up_is_said_so() -> None:
    outcomes = Outcomes()
    forwarder = Forwarder(replace(Limits(), forwards=1), outcomes.done)
    async with server(never) as address:
        forwarder.forward(Forward(1, address, "m", b"1", {}))
        forwarder.forward(Forward(2, address, "m", b"1", {}))
        await forwarder.close()
    assert outcomes.of == {1: "failed:unreachable", 2: "failed:unreachable"}


async def test_from_one_bridge_to_another() -> None:
    async with scene() as here, scene(**OPEN_TO_SERVERS) as there:
        for token in range(1, 201):
            here.service.bridge.receive([Forward(token, str(there.tcp4), "server", b"0.10", {"id": f"s1/e/{token}"})])
        here.service.bridge.receive([Forward(201, str(there.tcp4), "refuse", b"1", {})])
        await here.broker.until(lambda: len(here.broker.forwarded()) == 201)
        outcomes = here.broker.forwarded()
        assert outcomes.pop(201) == "failed:not-allowed"
        assert set(outcomes.values()) == {"delivered"}
