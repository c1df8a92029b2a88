"""A broker that is held up: peers that spoke meanwhile, and were not read, are not silent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest

from bester.broker.core.effects import Effects, Link
from bester.broker.core.router import Router
from bester.broker.core.settings import Limits, Settings
from bester.broker.server import Broker
from bester.broker.store.memory import MemoryStore
from bester.broker.users import OpenAccounts
from bester.broker.wire.messages import Ask, Malformed, Message
from tests.live import DEADLINE_S, Process, RawHandler, short_directory

FLOODERS = 16
ASKED = 3
BROKER = """
import asyncio, logging, sys
from bester.broker.users import OpenAccounts
from bester.broker.core.settings import Limits, Settings
from bester.broker.server import Broker
from bester.broker.store.memory import MemoryStore

async def main():
    settings = Settings("s1", open_accounts=True, limits=Limits(heartbeat_s=0.5))
    async with Broker(settings, (sys.argv[1],), OpenAccounts(), MemoryStore()):
        print("serves", flush=True)
        await asyncio.Event().wait()

logging.basicConfig(stream=sys.stdout, level=logging.INFO)
asyncio.run(main())
"""


async def test_peers_are_not_silent_while_the_messages_of_others_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker reads a message of each peer in turn, each is costly, and a round takes longer than the liveness."""
    honest = Router.receive_all
    answered = 0

    def costly(self: Router, link: Link, messages: Sequence[Message | Malformed], now: float) -> Effects:
        nonlocal answered
        if type(messages[0]) is Ask:
            answered += 1
            time.sleep(0.1)
        return honest(self, link, messages, now)

    monkeypatch.setattr(Router, "receive_all", costly)
    async with short_directory() as directory, AsyncExitStack() as stack:
        listen = f"ipc://{directory}/f.sock"
        settings = Settings("s1", open_accounts=True, limits=Limits(heartbeat_s=0.4))
        broker = await stack.enter_async_context(Broker(settings, (listen,), OpenAccounts(), MemoryStore()))
        peers = [RawHandler(listen, ["t"]) for _ in range(FLOODERS + 1)]
        for peer in peers:
            stack.callback(peer.close)
            await peer.hello()
        quiet, *flooders = peers
        for _ in range(20 * ASKED):
            await quiet.say([3])
        for flooder in flooders:
            for number in range(ASKED):
                await flooder.say([14, number, "serverInfo"])
        async with asyncio.timeout(DEADLINE_S):
            while answered < FLOODERS * ASKED:
                assert broker.router.inspect().peers == {"handler": FLOODERS + 1}, answered
                await asyncio.sleep(0.001)


async def test_peers_that_spoke_to_a_stopped_broker_are_known_when_it_goes_on() -> None:
    async with short_directory() as directory, AsyncExitStack() as stack:
        listen = f"ipc://{directory}/f.sock"
        process = await Process.start(sys.executable, "-c", BROKER, listen, cwd=directory)
        stack.push_async_callback(process.end, signal.SIGKILL)
        await process.says("serves")
        peers = [RawHandler(listen, ["t"]) for _ in range(4)]
        for peer in peers:
            stack.callback(peer.close)
            await peer.hello()
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.process.pid, os.WSTOPPED | os.WNOWAIT)
        for _ in range(25):  # longer than three heartbeats
            for peer in peers:
                await peer.say([3])
            await asyncio.sleep(0.1)
        for number, peer in enumerate(peers):
            await peer.say([14, number, "serverInfo"])
        process.send_signal(signal.SIGCONT)
        answers: list[list[Any]] = [await peer.hear(15, 5) for peer in peers]
        assert [answer[:3] for answer in answers] == [[15, number, 0] for number in range(4)]
        assert not [line for line in process.lines if "lost" in line or "silent" in line]
