"""Three bridges that flood one broker: clients wait, and nobody is refused."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bester.broker.core.settings import Limits, Settings
from bester.broker.server import Broker
from bester.broker.store.memory import MemoryStore
from bester.broker.users import OpenAccounts
from tests.live import BESTER, DEADLINE_S, LiveServer, Process, RawClient, head, short_directory

BRIDGES = 3
CONNECTIONS = 2
MESSAGES = 500
LIMITS = Limits(max_waiting=1_200, stuck_waiting=100)
"""Credit of 600 messages for all bridges, where 3,000 come."""
HANDLER = """
from bester.handlers import App
app = App("{type}")

@app.handler("{type}", inline=True)
def answer(message):
    return message.reply(message.data)
"""


@dataclass
class Flooded:
    """A broker in this process, with bridges and handlers in processes of their own."""

    broker: Broker
    bridges: list[LiveServer]
    handlers: dict[str, Process]


@asynccontextmanager
async def flooded() -> AsyncIterator[Flooded]:
    """Run a broker, three bridges, and handlers of the types `echo` and `slow`."""
    async with short_directory() as directory, AsyncExitStack() as stack:
        listen = f"ipc://{directory}/f.sock"
        settings = Settings("s1", open_accounts=True, limits=LIMITS)
        broker = await stack.enter_async_context(Broker(settings, (listen,), OpenAccounts(), MemoryStore()))
        handlers = {}
        for type_ in ("echo", "slow"):
            (directory / f"{type_}_app.py").write_text(HANDLER.format(type=type_))
            handlers[type_] = await started(stack, directory, "handler", f"{type_}_app:app", "--fabric", listen)
        bridges = []
        for number in range(BRIDGES):
            home = Path(directory, f"b{number}")
            home.mkdir()
            (home / "bester.toml").write_text(head(auth="open") + f'[fabric]\nconnect = ["{listen}"]\n')
            bridge = await started(stack, home, "bridge")
            line = await bridge.says(" serves ")
            bridges.append(LiveServer(home, [bridge], line.partition(" serves ")[2].split(",")[0].strip()))
        async with asyncio.timeout(DEADLINE_S):
            while broker.router.inspect().peers != {"handler": 2, "bridge": BRIDGES}:
                await asyncio.sleep(0.01)
        yield Flooded(broker, bridges, handlers)


async def started(stack: AsyncExitStack, directory: Path, *argv: str) -> Process:
    process = await Process.start(BESTER, *argv, cwd=directory)
    stack.push_async_callback(process.end, signal.SIGKILL)
    return process


async def ask(client: RawClient, type_: str, count: int) -> Counter[str]:
    """Send so many messages at once; return how many ended in which way."""
    for number in range(count):
        client.submit(type_, number, f"{type_}{number}")
    ends: Counter[str] = Counter()
    while ends.total() < count:
        frame = await client.receive()
        if frame["header"].get("messageType") == "statusReport":
            ends[frame["payload"].get("reason") or frame["header"]["status"]] += 1
    return ends


async def flood(server: Flooded, type_: str, stack: AsyncExitStack) -> list[asyncio.Task[Counter[str]]]:
    """Let one user flood all bridges with messages of a type."""
    clients = [await RawClient.login(bridge, "eve") for bridge in server.bridges for _ in range(CONNECTIONS)]
    for client in clients:
        stack.push_async_callback(client.close)
    return [asyncio.create_task(ask(client, type_, MESSAGES)) for client in clients]


async def test_flood_by_way_of_three_bridges_is_served_and_nobody_is_refused() -> None:
    async with flooded() as server, AsyncExitStack() as stack:
        honest = [await RawClient.login(bridge, f"bob{at}") for at, bridge in enumerate(server.bridges)]
        for client in honest:
            stack.push_async_callback(client.close)
        floods = await flood(server, "echo", stack)
        for _ in range(10):
            for client in honest:
                assert await ask(client, "echo", 1) == {"good": 1}
        for ended in await asyncio.gather(*floods):
            assert ended == {"good": MESSAGES}


async def test_stuck_type_beside_a_flowing_one() -> None:
    async with flooded() as server, AsyncExitStack() as stack:
        honest = [await RawClient.login(bridge, f"bob{at}") for at, bridge in enumerate(server.bridges)]
        for client in honest:
            stack.push_async_callback(client.close)
        stopped = server.handlers["slow"].process.pid
        os.kill(stopped, signal.SIGSTOP)
        floods = await flood(server, "slow", stack)
        async with asyncio.timeout(DEADLINE_S):
            while server.broker.router.inspect().workers.waiting.get("slow", 0) <= LIMITS.stuck_waiting:
                await asyncio.sleep(0.01)
        for _ in range(10):
            for client in honest:
                assert await ask(client, "echo", 1) == {"good": 1}
        state = server.broker.router.inspect()
        assert state.jobs <= LIMITS.max_waiting // 2, "no more than the credit"
        assert not any(task.done() for task in floods)
        os.kill(stopped, signal.SIGCONT)
        for ended in await asyncio.gather(*floods):
            assert ended == {"good": MESSAGES}
