"""A handler that reads late, or whose messages ZeroMQ's thread sends late, is not given up over it."""

from __future__ import annotations

import asyncio

import pytest

from bester.broker import fabric_socket
from bester.broker.accounts import OpenAccounts
from bester.broker.core.settings import Settings
from bester.broker.server import Broker
from bester.broker.store.memory import MemoryStore
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
