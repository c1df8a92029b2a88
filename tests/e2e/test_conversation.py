"""The end of a connection to another server before its report: has the server taken in the message?"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import uvloop

from bester.bridge.conversation import is_reset
from bester.bridge.forward import Forwarder
from bester.bridge.limits import Limits
from bester.broker.wire.messages import Forward
from tests.e2e.test_forward import Outcomes, server, unread


async def test_large_message_that_is_partly_read_is_not_sent() -> None:
    outcomes = Outcomes()
    forwarder = Forwarder(Limits(), outcomes.done)
    async with server(unread) as address:
        forwarder.forward(Forward(3, address, "m", b'"%b"' % (b"x" * 8_000_000), {}))
        assert await outcomes.all(1) == {3: "failed:unreachable"}
    assert outcomes.meta == {3: {}}


async def test_message_to_a_server_that_closes_unread_is_not_sent() -> None:
    """The end of the stream comes before the message has gone through: a reset shows only
    a moment later."""
    outcomes = Outcomes()
    forwarder = Forwarder(Limits(), outcomes.done)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        port = listening.getsockname()[1]
        for token in range(20):
            forwarder.forward(Forward(token, f"127.0.0.1:{port}", "m", b'"%b"' % (b"x" * 5_000_000), {}))

        def turn_away() -> None:
            for _ in range(20):
                listening.accept()[0].close()

        async with asyncio.timeout(10):
            await asyncio.to_thread(turn_away)
        await outcomes.all(20)
    assert set(outcomes.of.values()) == {"failed:unreachable"}


@pytest.mark.parametrize("size", [1, 100, 100_000])
async def test_reset_behind_the_end_of_a_stream_is_found_at_once(size: int) -> None:
    """A connection closed before the message came refuses the message; no report is awaited until the deadline."""
    outcomes = Outcomes()
    forwarder = Forwarder(replace(Limits(), forward_s=3600), outcomes.done)

    async def turn_away(listening: socket.socket) -> None:
        while True:  # in this loop, mostly closed before the other end goes on
            (await asyncio.get_running_loop().sock_accept(listening))[0].close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        turning = asyncio.create_task(turn_away(listening))
        for token in range(20):
            address = f"127.0.0.1:{listening.getsockname()[1]}"
            forwarder.forward(Forward(token, address, "m", b'"%b"' % (b"x" * size), {}))
        await outcomes.all(20)
        turning.cancel()
    assert set(outcomes.of.values()) == {"failed:unreachable"}
    assert not any(outcomes.meta.values())


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_connection_closed_by_the_loop_counts_as_reset(runner: Callable[[Any], None]) -> None:
    """The loop may notice a reset before it reports the connection's end; the socket has no descriptor then."""

    async def try_it() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            transport, _ = await asyncio.get_running_loop().create_connection(
                asyncio.Protocol, *listening.getsockname()[:2]
            )
            assert not is_reset(transport)
            transport.abort()
            async with asyncio.timeout(10):
                while not is_reset(transport):
                    await asyncio.sleep(0)

    runner(try_it())
