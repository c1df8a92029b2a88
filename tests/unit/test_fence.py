"""A fence in the work of a thread of ZeroMQ."""

from __future__ import annotations

import asyncio
import os

import zmq

from bester.broker.fence import Fence
from tests.live import DEADLINE_S


async def test_fence_is_passed_each_time_that_it_is_asked_and_leaves_nothing_open() -> None:
    passed: asyncio.Queue[None] = asyncio.Queue()
    with zmq.Context(2) as context:
        fence = Fence(context, 2, lambda: passed.put_nowait(None))
        before = len(os.listdir("/dev/fd"))
        for _ in range(300):
            fence.ask()
            await asyncio.wait_for(passed.get(), DEADLINE_S)
        assert len(os.listdir("/dev/fd")) <= before + 1  # the one whose end is under way
        assert passed.empty()
        fence.close()
