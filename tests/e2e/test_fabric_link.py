"""The connecting side of a link, on a real socket."""

from __future__ import annotations

import asyncio

import pytest
import zmq

from bester.broker import fabric
from bester.broker.fabric import FabricLink
from bester.broker.wire.codec import decode, encode
from bester.broker.wire.messages import Hello, Reply, Welcome
from bester.broker.wire.party import Party
from tests.live import short_directory

LIMIT = 100
ROUNDS = 100
NOTE = "x" * 15_000


async def test_what_a_broker_does_not_read_is_bounded_and_comes_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric, "MAX_OUTBOX", LIMIT)
    monkeypatch.setattr(fabric, "HIGH_WATER_MARK", 4)
    welcomed = asyncio.Event()
    party = Party("handler", "h", {})
    async with short_directory() as directory:
        endpoint = f"ipc://{directory}/f"
        with zmq.Context() as context, context.socket(zmq.ROUTER) as broker:
            broker.linger = 0
            broker.bind(endpoint)
            link = FabricLink(endpoint, party, on_messages=print, on_ready=welcomed.set, on_lost=pytest.fail)
            link.start()
            peer, hello = await asyncio.to_thread(broker.recv_multipart)
            assert type(decode([hello])[0]) is Hello
            broker.send_multipart([peer, *encode([Welcome(1, "s1", {"heartbeat_ms": 60_000})])])
            await welcomed.wait()
            taken = 0
            for _ in range(ROUNDS):
                while link.send(Reply(taken, 1, [], NOTE)):
                    taken += 1
                    await asyncio.sleep(0)  # a turn of the loop, and a batch, for each
                link._flush()  # as after each pause
            assert taken < ROUNDS * LIMIT / 2  # ZeroMQ's queues and the kernel's, once; and the link's own, once
            heard: list[object] = []
            while len(heard) < taken:
                _, *frames = await asyncio.to_thread(broker.recv_multipart)
                heard += [message.token for message in decode(frames) if isinstance(message, Reply)]
            assert heard == list(range(taken))
            broker.close()
            await link.close(0)
