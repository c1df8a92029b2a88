"""A run gives the answers of its requests one by one."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
import zmq

from bester.broker.wire.batches import batches
from bester.broker.wire.codec import decode, encode
from bester.broker.wire.messages import INLINE_BYTES, Message, Reply, Request, Welcome
from bester.handlers import App, HandlerError
from bester.handlers import Message as Received
from bester.handlers.worker import Worker
from tests.live import short_directory

TYPES = ("inline", "async", "thread", "ordered", "nobody's")
BODIES = (b"1", b'"list"', b'"none"', b'"refuse"', b'"raise"', b'"odd"', b'"wait"', b'"big"', b"not JSON", b'"half"')
MESSAGES = 300
PATIENCE_S = 60.0


def answer(message: Received) -> Any:
    """Answer by the body of a message, in each of the ways in which a handler may end."""
    match message.data:
        case "list":
            return [message.reply(1), message.send_clients(["g", "h"], 2)]
        case "none":
            return None
        case "refuse":
            raise HandlerError("no")
        case "raise":
            raise SystemExit
        case "odd":
            return 5
        case "big":
            return message.reply(raw=b" " * (INLINE_BYTES + 1))
        case "half":
            return message.send_clients(["\ud800"], 1)
    return message.reply(message.data)


def an_app() -> App:
    app = App(credit=MESSAGES)
    app.handler("inline", inline=True)(answer)
    app.handler("thread")(answer)

    @app.handler("async")
    async def alone(message: Received) -> Any:
        if message.raw == b'"wait"':
            await asyncio.sleep(0.001)
        return answer(message)

    @app.handler("ordered", order="user")
    async def ordered(message: Received) -> Any:
        if message.raw == b'"wait"':
            await asyncio.sleep(0.001)
        return answer(message)

    return app


@pytest.mark.parametrize("seed", range(3))
async def test_run_is_answered_as_its_requests_one_by_one(seed: int) -> None:
    chance = random.Random(seed)
    sent: list[Message] = []
    while len(sent) < MESSAGES:
        type_ = chance.choice(TYPES)
        for _ in range(chance.choice((1, 1, 2, 20))):  # alternating types, and runs of one
            user = chance.choice(("u", "v", None))
            sent.append(Request(len(sent), type_, chance.choice(BODIES), user, {"id": f"s1/{len(sent)}"}))
    worker_app = an_app()
    async with short_directory() as directory:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as broker:
            broker.linger = 0
            broker.rcvtimeo = round(PATIENCE_S * 1000)
            broker.bind(f"ipc://{directory}/f")
            worker = Worker(worker_app, f"ipc://{directory}/f", types=TYPES[:-1])
            worker.start()
            peer, _ = await asyncio.to_thread(broker.recv_multipart)
            broker.send_multipart([peer, *encode([Welcome(1, "s1", {"heartbeat_ms": 60_000})])])

            async def answers() -> list[Reply]:
                found: list[Reply] = []
                while len(found) < len(sent):
                    _, *frames = await asyncio.to_thread(broker.recv_multipart)
                    found += [message for message in decode(frames) if type(message) is Reply]
                assert len({reply.token for reply in found}) == len(sent)
                return found

            for frames in batches(sent):
                broker.send_multipart([peer, *frames])
            together = await answers()
            for request in sent:
                broker.send_multipart([peer, *encode([request])])
            alone = await answers()
            await asyncio.to_thread(broker.close)
            await worker.stop(0)
    assert sorted(together) == sorted(alone)
    kinds = {request.token: request for request in sent if type(request) is Request}
    for type_, user in (("inline", "u"), ("inline", None), ("ordered", "u"), ("ordered", "v")):
        for found in (together, alone):
            tokens = [
                reply.token for reply in found if (kinds[reply.token].type, kinds[reply.token].user) == (type_, user)
            ]
            assert tokens == sorted(tokens)
