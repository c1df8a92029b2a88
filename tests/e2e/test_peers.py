"""`bester peers` at real servers: what is queued, held, released, dropped, and the last error in words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.live import BESTER, LiveServer, Process, RawClient, head, short_directory

pytestmark = pytest.mark.stores

DEADLINE_S = 60.0
ONWARD = """
from bester.handlers import App
app = App("onward")

@app.handler("onward", inline=True)
def onward(message):
    return message.send_servers(["s2"], message.data, as_type="note")
"""
NOTE = """
from bester.handlers import App
app = App("note")

@app.handler("note", inline=True)
def note(message):
    return message.send_clients(["bob"], message.data)
"""
HEAD = (
    head("{name}", auth="open")
    + """[servers.{other}]
fabric = "ipc://{there}/data/fabric.sock"
accept_types = ["*"]
trace = true
"""
)


@asynccontextmanager
async def server(here: Path, there: Path, name: str, other: str, module: str) -> AsyncIterator[LiveServer]:
    (here / f"{module}.py").write_text({"onward": ONWARD, "note": NOTE}[module])
    toml = HEAD.format(name=name, other=other, there=there)
    running = await LiveServer.start(here, toml, handlers=(f"{module}:app",))
    try:
        yield running
    finally:
        assert await running.stop() == [0]


async def bester(directory: Path, *arguments: str) -> tuple[int, list[str]]:
    process = await Process.start(BESTER, *arguments, cwd=directory)
    status = await asyncio.wait_for(process.process.wait(), DEADLINE_S)
    await process.end()
    return status, process.lines


async def peer(directory: Path) -> dict[str, Any]:
    status, lines = await bester(directory, "peers", "--json")
    assert status == 0, lines
    (row,) = [json.loads(line) for line in lines if line.startswith("{")]
    return dict(row)


async def test_the_outbox_of_a_server_that_is_away_held_and_released() -> None:
    async with short_directory() as here, short_directory() as there:
        async with server(here, there, "s1", "s2", "onward") as s1:
            alice = await RawClient.login(s1, "alice")
            for number in range(3):
                alice.submit("onward", number, f"{number}")
                report, _ = await alice.until_report(f"{number}")
                assert report["payload"]["recipients"] == {"s2": "queued"}
            row = await peer(here)
            assert (row["state"], row["address"]) == ("down", f"ipc://{there}/data/fabric.sock")
            assert [(each["type"], each["messages"]) for each in row["outbox"]] == [("note", 3)]
            assert row["outbox"][0]["oldest_s"] >= 0
            assert await bester(here, "peers", "hold", "s2") == (
                0, ["holding messages to s2, now 3; `bester peers release` sends them"],
            )  # fmt: skip
            async with server(there, here, "s2", "s1", "note") as s2:
                bob = await RawClient.login(s2, "bob")
                await s1.processes[0].says("server-reached")
                status, lines = await bester(here, "peers", "retry", "s2")
                assert (status, lines) == (
                    0, ["trying 3 messages for s2 now; it is held, and `bester peers release` sends them"],
                )  # fmt: skip
                row = await peer(here)
                assert (row["state"], row["reachable"], row["outbox"][0]["messages"]) == ("held", "up", 3)
                assert await bester(here, "peers", "release", "s2") == (0, ["released 3 messages for s2"])
                assert [(await bob.receive())["payload"]["data"] for _ in range(3)] == [0, 1, 2]
                status, lines = await bester(here, "peers")
                assert status == 0
                assert lines[1].split()[:2] == ["s2", "up"]
                await bob.close()
            await s1.processes[0].says("server-lost")
            alice.submit("onward", 9, "9")
            await alice.until_report("9")
            assert (await bester(here, "peers", "drop", "s2"))[0] == 2  # no terminal, and no --yes
            for confirmed in ((), ("--yes",)):
                assert await bester(here, "peers", "drop", *confirmed, "s3") == (
                    1, ["bester: no server s3; `bester peers` shows those there are"],
                )  # fmt: skip
            status, lines = await bester(here, "peers", "drop", "--yes", "s2")
            assert (status, lines) == (0, ["dropping 1 message for s2; `bester dead list` shows them"])
            async with asyncio.timeout(DEADLINE_S):
                while (await peer(here))["outbox"]:
                    pass
            status, lines = await bester(here, "dead", "list", "--json")
            (letter,) = [json.loads(line) for line in lines if line.startswith("{")]
            assert (letter["type"], letter["server"], letter["reason"]) == ("note", "s2", "unreachable")
            assert (await peer(here))["state"] == "down"
            assert (await bester(here, "peers", "hold", "s9"))[0] == 1
            await alice.close()
        status, lines = await bester(here, "peers")
        assert status == 1
        assert "no server runs" in lines[0]


async def test_trace_follows_a_message_to_another_server_and_back() -> None:
    async with (
        short_directory() as here,
        short_directory() as there,
        server(here, there, "s1", "s2", "onward") as s1,
        server(there, here, "s2", "s1", "note") as s2,
    ):
        bob, alice = await RawClient.login(s2, "bob"), await RawClient.login(s1, "alice")
        async with asyncio.timeout(DEADLINE_S):
            while (await peer(here))["state"] != "up":
                await asyncio.sleep(0.05)
        status, lines = await bester(here, "trace", "--last")
        assert (status, len(lines)) == (1, 1) and "no message has come since the server's start" in lines[0]
        alice.submit("onward", "hello", "1")
        report, _ = await alice.until_report("1")
        assert (await bob.receive())["payload"]["data"] == "hello"
        status, lines = await bester(here, "trace", "s1/no\x1bsuch")
        assert (status, len(lines)) == (1, 1), lines
        assert "no step of message s1/no\\u001bsuch is remembered" in lines[0]
        status, lines = await bester(here, "trace", "s1/none", "--json")
        assert (status, json.loads(lines[0])["spans"]) == (1, [])
        status, lines = await bester(here, "trace", report["payload"]["message"], "--json")
        assert status == 0, lines
        found = json.loads(lines[0])
        assert found["servers"] == {}
        steps = [(step["what"], step["where"]) for step in found["steps"]]
        assert steps[:2] == [("handler", "s1/onward"), ("server", "s1/s2")]
        assert {("entered", "s2/s1"), ("handler", "s2/note"), ("delivered", "s2/bob")} <= set(steps)
        kinds = [(span["server"], span["kind"]) for span in found["spans"]]
        assert kinds[:3] == [("s1", "handler"), ("s1", "server"), ("s2", "handler")]
        status, lines = await bester(there, "trace", "--last")
        assert status == 0
        assert "s2/bob" in lines[-1], lines
        for client in (alice, bob):
            await client.close()
