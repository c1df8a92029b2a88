"""A user whose requests take long waits for them; another user's request waits for the one that runs."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import zmq

from bester.broker.wire.batches import batches
from bester.broker.wire.codec import decode
from bester.broker.wire.messages import Message, Reply, Request, Welcome
from bester.handlers import App
from bester.handlers import Message as Received
from bester.handlers.task_pool import SLICE_S
from bester.handlers.worker import Worker
from tests.live import short_directory

PATIENCE_S = 60.0
SLOW = 40
"""Requests of eve, each of which takes longer than a slice."""
QUICK = 10


@pytest.mark.parametrize("runs", ["inline", "async", "thread"])
@pytest.mark.parametrize("together", [True, False], ids=["one batch", "a batch each"])
async def test_requests_that_take_long_keep_those_of_others_waiting_once(runs: str, together: bool) -> None:
    app = App(credit=SLOW + QUICK, threads=1)
    loop = asyncio.get_running_loop()
    send: list[Any] = []
    asked: list[str] = []

    def answer(message: Received) -> Any:
        assert message.user is not None
        if not asked:
            others = [Request(SLOW + number, "x", b"1", "alice", {}) for number in range(QUICK)]
            if runs == "thread":
                loop.call_soon_threadsafe(send[0], others)
            else:
                send[0](others)
        asked.append(message.user)
        if message.user == "eve":
            time.sleep(1.5 * SLICE_S)
        return message.reply(1)

    async def answer_soon(message: Received) -> Any:
        return answer(message)

    app.handler("x", inline=runs == "inline")(answer_soon if runs == "async" else answer)
    async with short_directory() as directory:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as broker:
            broker.linger = 0
            broker.bind(f"ipc://{directory}/f")
            worker = Worker(app, f"ipc://{directory}/f")
            try:
                await worker.prepare()
                worker.start()

                async def receive() -> list[bytes]:
                    """Receive on the loop, on which handlers send."""
                    async with asyncio.timeout(PATIENCE_S):
                        while not broker.poll(0):
                            await asyncio.sleep(0.002)
                    return broker.recv_multipart()

                routing_id = (await receive())[0]

                def send_all(messages: list[Message]) -> None:
                    for frames in batches(messages):
                        broker.send_multipart([routing_id, *frames])

                send.append(send_all)
                send_all([Welcome(1, "s1", {"heartbeat_ms": 60_000})])
                await asyncio.wait_for(worker.wait_ready(), PATIENCE_S)
                slow: list[Message] = [Request(number, "x", b"1", "eve", {}) for number in range(SLOW)]
                for messages in [slow] if together else [[each] for each in slow]:
                    send_all(messages)
                replies: list[Reply] = []
                while len(replies) < SLOW + QUICK:
                    [_, *frames] = await receive()
                    replies += [each for each in decode(frames) if isinstance(each, Reply)]
            finally:
                await worker.stop(0)
    assert sorted(reply.token for reply in replies) == list(range(SLOW + QUICK))
    assert [reply.token for reply in replies if reply.token < SLOW] == list(range(SLOW))
    last = max(number for number, user in enumerate(asked) if user == "alice")
    before = asked[:last].count("eve")
    assert before < SLOW / 2, f"the last of alice's requests came after {before} of eve's"
