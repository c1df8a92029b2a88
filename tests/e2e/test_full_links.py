"""A handler that reads late, or whose messages ZeroMQ's thread sends late, is not given up over it; one that asks
without end is answered meanwhile, and no more waits for it than a bound."""

from __future__ import annotations

import asyncio

import pytest

from bester.broker import fabric_socket, leaving
from bester.broker.core.effects import Link
from bester.broker.core.settings import Settings
from bester.broker.leaving import MOST_BEHIND, split
from bester.broker.server import Broker
from bester.broker.store.memory import MemoryStore
from bester.broker.users import OpenAccounts
from bester.broker.wire.messages import Message
from tests.e2e.test_values import broker as keyed_broker
from tests.live import DEADLINE_S, RawHandler, raw_handler, short_directory

MOST = 200
BODY = b'"' + b"x" * 200_000 + b'"'
"""Fewer of them than MOST fill the kernel's buffers."""


def slow_reader(endpoint: str) -> RawHandler:
    """Return a handler that takes in one message ahead."""
    handler = RawHandler(endpoint, ["late"], credit=MOST)
    handler.socket.disconnect(endpoint)
    handler.socket.rcvhwm = 1
    handler.socket.connect(endpoint)
    return handler


async def test_handler_that_reads_late_has_each_request_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric_socket, "HIGH_WATER_MARK", 1)
    settings = Settings("s1", open_accounts=True)
    async with short_directory() as directory, asyncio.timeout(DEADLINE_S):
        endpoint = f"ipc://{directory}/f"
        async with (
            Broker(settings, (endpoint,), OpenAccounts(), MemoryStore()) as broker,
            raw_handler(endpoint, "source") as source,
        ):
            late = slow_reader(endpoint)
            try:
                await late.hello()
                count = 0
                while not broker.sending.full:
                    assert count < MOST
                    await source.say(
                        [12, count, "source", [["sendHandler", ["late"], BODY]], {}], [14, count, "serverInfo"]
                    )
                    await source.hear(15)  # so that each request leaves by itself
                    count += 1
                requests = [await late.hear(10, 5) for _ in range(count)]
                assert [request[0] for request in requests] == [10] * count, "no word that the link is not known"
                assert {request[5]["attempt"] for request in requests} == {1}
                assert len({request[1] for request in requests}) == count
                assert not broker.sending.full
            finally:
                late.close()


ASKED_AT_ONCE = 1000
BATCHES = 60


async def test_handler_that_asks_without_end_is_answered_and_little_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch takes several turns, and the next one always waits: answers leave between any two."""
    most_behind = 0

    def look(outgoing: dict[Link, list[Message]], most: int) -> dict[Link, list[Message]]:
        nonlocal most_behind
        most_behind = max(most_behind, *map(len, outgoing.values()), 0)
        return split(outgoing, most)

    monkeypatch.setattr(leaving, "split", look)
    async with keyed_broker() as here, asyncio.timeout(DEADLINE_S):
        asker = here.party("handler")
        await asker.hello(name="h")
        for _ in range(BATCHES):
            await asker.say(*[[14, number, "isClient", "x"] for number in range(ASKED_AT_ONCE)])
        for _ in range(BATCHES * ASKED_AT_ONCE):
            assert (await asker.hear(15, 5))[0] == 15
    assert ASKED_AT_ONCE <= most_behind <= MOST_BEHIND + 2 * ASKED_AT_ONCE
