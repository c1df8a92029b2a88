"""A user's order is kept: by several workers, by a handler of the reference's kind, and over a worker's death."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.live import BESTER, LAYOUTS, LiveServer, Process, RawClient, live_server, short_directory

COUNT = 150
CHAT = "bester.handlers.stock.chat:app"
OLD = '''
"""A handler as the reference's are: a frame in, a frame out. It takes longer over some messages than over others."""
import asyncio, json, sys

at_once = most = seen = 0

async def serve(reader, writer):
    global at_once, most, seen
    at_once += 1
    most, seen = max(most, at_once), seen + 1
    data = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "little"))
    await asyncio.sleep(0.004 * (seen % 4 == 1))
    at_once -= 1
    content = b'{"said":%b,"most":%d}' % (data, most)
    answer = b'{"header":{"status":"0","command":{"type":"sendClients","data":["bob"]}},"data":%b}' % content
    writer.write(len(answer).to_bytes(4, "little") + answer)
    writer.close()

async def main():
    async with await asyncio.start_unix_server(serve, sys.argv[1]) as server:
        print("listening", flush=True)
        await server.serve_forever()

asyncio.run(main())
'''


@asynccontextmanager
async def old_handler(directory: Path) -> AsyncIterator[Path]:
    """A handler of the reference's kind, and its socket."""
    (directory / "old.py").write_text(OLD)
    process = await Process.start(sys.executable, "old.py", "old.sock", cwd=directory)
    try:
        await process.says("listening")
        yield directory / "old.sock"
    finally:
        await process.end(signal.SIGKILL)


async def sends(server: LiveServer, user: str, type_: str, data: list[Any]) -> list[str]:
    """Send all of it at once; return the status of each report."""
    client = await RawClient.login(server, user)
    for number, each in enumerate(data):
        client.submit(type_, each, str(number))
    statuses: list[str] = []
    while len(statuses) < len(data):
        frame = await client.receive()
        statuses.append(frame["header"]["status"])
    await client.close()
    return statuses


async def reads(client: RawClient, count: int) -> list[Any]:
    return [(await client.receive())["payload"]["data"] for _ in range(count)]


def lines_of(texts: list[Any], user: str) -> list[Any]:
    return [each["text"] for each in texts if each["from"] == user]


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_the_stock_chat_keeps_each_users_order_with_several_workers(layout: str) -> None:
    toml = f'[handlers.chat]\napp = "{CHAT}"\nworkers = 3\n' if layout == "up" else ""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(live_server(toml, layout))
        if layout == "apart":
            workers = await Process.start(
                BESTER, "handler", CHAT, "--fabric", server.fabric, "--workers", "3",
                cwd=server.directory, env={"BESTER_NAME": "chat"},
            )  # fmt: skip
            stack.push_async_callback(workers.end)
        for index in range(3):
            await server.processes[-1].says(f"name='chat.{index}'")
        bob = await RawClient.login(server, "bob")
        users = ("alice", "carol")
        texts, *statuses = await asyncio.gather(
            reads(bob, len(users) * COUNT),
            *(sends(server, user, "chat", [{"to": "bob", "text": str(n)} for n in range(COUNT)]) for user in users),
        )
        assert statuses == [["good"] * COUNT] * len(users)
        for user in users:
            assert lines_of(texts, user) == [str(n) for n in range(COUNT)]
        await bob.close()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_handler_at_a_socket_keeps_each_users_order(layout: str, workers: int) -> None:
    async with short_directory() as directory, old_handler(directory) as path, AsyncExitStack() as stack:
        declared = f'[handlers.old]\nsocket = "{path}"\nworkers = {workers}\n'
        server = await stack.enter_async_context(live_server(declared if layout == "up" else "", layout))
        if layout == "apart":
            argv = ("--socket", str(path), "--types", "old", "--fabric", server.fabric, "--workers", str(workers))
            process = await Process.start(
                sys.executable, "-m", "bester.handlers", *argv, cwd=directory, env={"BESTER_NAME": "old"}
            )
            stack.push_async_callback(process.end)
        for index in range(workers):
            await server.processes[-1].says(f"name='old.{index}'" if workers > 1 else "['old']")
        bob = await RawClient.login(server, "bob")
        users = ("alice", "carol")
        texts, *statuses = await asyncio.gather(
            reads(bob, len(users) * COUNT),
            *(sends(server, user, "old", [{"from": user, "text": n} for n in range(COUNT)]) for user in users),
        )
        assert statuses == [["good"] * COUNT] * len(users)
        for user in users:
            assert lines_of([each["said"] for each in texts], user) == list(range(COUNT))
        assert texts[-1]["most"] <= len(users)  # each user's messages one at a time
        await bob.close()


async def test_handler_at_a_socket_without_order_has_concurrent_messages() -> None:
    async with (
        short_directory() as directory,
        old_handler(directory) as path,
        live_server(f'[handlers.old]\nsocket = "{path}"\norder = "none"\n') as server,
    ):
        await server.has_type("old")
        bob = await RawClient.login(server, "bob")
        texts, statuses = await asyncio.gather(
            reads(bob, COUNT), sends(server, "alice", "old", [{"from": "alice", "text": n} for n in range(COUNT)])
        )
        assert statuses == ["good"] * COUNT
        assert texts[-1]["most"] > 1
        assert sorted(lines_of([each["said"] for each in texts], "alice")) == list(range(COUNT))
        await bob.close()


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("kind", ["chat", "old"])
async def test_order_holds_over_the_death_of_a_worker(kind: str, victim: int) -> None:
    """Alice's messages are with either worker."""
    async with (
        short_directory() as directory,
        old_handler(directory) as path,
        live_server() as server,
        AsyncExitStack() as stack,
    ):
        what = (CHAT,) if kind == "chat" else ("--socket", str(path), "--types", "old")
        workers = []
        for name in ("one", "two"):
            argv = (sys.executable, "-m", "bester.handlers", *what, "--fabric", server.fabric, "--name", name)
            workers.append(await Process.start(*argv, cwd=directory))
            stack.push_async_callback(workers[-1].end)
            await server.processes[-1].says(f"name='{name}'")
        bob = await RawClient.login(server, "bob")
        sending = asyncio.create_task(
            sends(server, "alice", kind, [{"from": "alice", "to": "bob", "text": str(n)} for n in range(COUNT)])
        )
        firsts: list[int] = []
        marked: list[int] = []
        while len(firsts) < COUNT:
            frame = await bob.receive()
            data = frame["payload"]["data"]
            number = int((data if kind == "chat" else data["said"])["text"])
            if number in firsts:
                marked.append(number)
                assert frame["header"]["redelivered"] is True
                continue
            firsts.append(number)
            if number == COUNT // 3:
                workers[victim].send_signal(signal.SIGKILL)
        assert firsts == list(range(COUNT))
        assert marked == sorted(marked)
        assert await sending == ["good"] * COUNT
        await bob.close()


async def test_messages_from_servers_are_in_no_message_group() -> None:
    async with short_directory() as directory, old_handler(directory) as path:
        toml = f'[handlers.old]\nsocket = "{path}"\nworkers = 2\n[federation]\naccept = "open"\n'
        async with live_server(toml) as server:
            for index in range(2):
                await server.processes[-1].says(f"name='old.{index}'")
            bob = await RawClient.login(server, "bob")

            async def from_a_server(number: int) -> str:
                peer = await RawClient.connect(server)
                data = {"from": "s2", "text": number}
                peer.send({"header": {"scope": "server"}, "payload": {"type": "old", "data": data, "id": "1"}})
                report = await peer.receive()
                await peer.close()
                return str(report["header"]["status"])

            texts, statuses, reports = await asyncio.gather(
                reads(bob, 2 * 40),
                sends(server, "alice", "old", [{"from": "alice", "text": n} for n in range(40)]),
                asyncio.gather(*(from_a_server(number) for number in range(40))),
            )
            assert statuses == reports == ["good"] * 40
            messages = [each["said"] for each in texts]
            assert lines_of(messages, "alice") == list(range(40))
            assert sorted(lines_of(messages, "s2")) == list(range(40))
            await bob.close()
