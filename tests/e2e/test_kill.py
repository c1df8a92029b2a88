"""Servers, brokers and handlers that die by SIGKILL: each message with a good report arrives all the same."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from bester.client import Client
from tests.live import BESTER, DEADLINE_S, LAYOUTS, LiveServer, Process, RawClient, head, short_directory
from tests.stores import accounts_of

pytestmark = pytest.mark.stores

APP = """
import asyncio, os, signal
from bester.handlers import App
app = App("post")

@app.handler("post", inline=True)
def post(message):
    return message.send_clients(message.data["to"], message.data["number"])

@app.handler("far", inline=True)
def far(message):
    return message.send_servers(["s2"], message.data, as_type="take")

@app.handler("take", inline=True)
def take(message):
    with open("taken", "a") as file:
        file.write(f"{message.data} {message.id}\\n")

@app.handler("hold")
async def hold(message):
    if message.attempt == 1:
        print("holding", os.getpid(), flush=True)
        await asyncio.Event().wait()
    return message.reply({"attempt": message.attempt, "id": message.id})

@app.handler("poison", inline=True)
def poison(message):
    os.kill(os.getpid(), signal.SIGKILL)
"""
TYPES = ("post", "far", "take", "hold", "poison")
ATTEMPTS = 2
"""Few, since each death is noticed only after three heartbeats."""


class Killed(LiveServer):
    """A server with accounts for ann and bob that comes back on the same data."""

    layout = "up"

    @classmethod
    async def begin(cls, directory: Path, name: str, layout: str = "up", peer: Path | None = None) -> Killed:
        directory.mkdir()
        (directory / "post.py").write_text(APP)
        with closing(accounts_of(directory)) as accounts:
            for user in ("ann", "bob"):
                accounts.add(user, "secret")
        return await cls.again(directory, layout, _toml(name, peer))

    @classmethod
    async def again(cls, directory: Path, layout: str, toml: str) -> Killed:
        """Start on the files in the directory."""
        server = await cls.start(directory, toml, layout, ("post:app",) if layout == "apart" else ())
        server.layout = layout
        for type_ in TYPES:
            await server.has_type(type_)
        return server

    async def dies(self) -> None:
        """Kill all of the server's processes."""
        for process in self.processes:
            await process.end(signal.SIGKILL)

    async def returns(self) -> Killed:
        """Start the server again on the same data."""
        toml = (self.directory / "bester.toml").read_text()
        return await self.again(self.directory, self.layout, toml)


def _toml(name: str, peer: Path | None) -> str:
    types = ", ".join(f'"{type_}"' for type_ in TYPES)
    return (
        head(name)
        + f'[handlers.post]\napp = "post:app"\ntypes = [{types}]\nattempts = {ATTEMPTS}\n'
        + (f'[servers.{peer.name}]\nfabric = "ipc://{peer}/data/fabric.sock"\naccept_types = ["*"]\n' if peer else "")
    )


class Servers:
    """The servers of a test, all of which have ended at its end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lives: list[Killed] = []

    async def begin(self, name: str, layout: str = "up", peer: str | None = None) -> Killed:
        directory = self.directory / name
        server = await Killed.begin(directory, name, layout, self.directory / peer if peer else None)
        self.lives.append(server)
        return server

    async def returns(self, server: Killed) -> Killed:
        """Start a server that has died."""
        life = await server.returns()
        self.lives.append(life)
        return life


@asynccontextmanager
async def _servers() -> AsyncIterator[Servers]:
    async with short_directory() as directory:
        servers = Servers(directory)
        try:
            yield servers
        finally:
            for server in servers.lives:
                await server.dies()


async def submit_all(client: RawClient, type_: str, datas: list[Any]) -> list[Any]:
    """Send all data and return their reports, in the order sent; each message has one report."""
    for number, data in enumerate(datas):
        client.submit(type_, data, str(number))
    reports: dict[str, Any] = {}
    while len(reports) < len(datas):
        frame = await client.receive()
        id_ = frame["payload"]["id"]
        assert frame["header"]["messageType"] == "statusReport" and id_ not in reports, frame
        reports[id_] = frame
    return [reports[str(number)] for number in range(len(datas))]


async def all_that_waits(client: RawClient) -> list[Any]:
    """Return the messages that came before the answer to a ping sent now."""
    client.submit("dummy", None, "ping")
    frames = []
    while (frame := await client.receive())["payload"].get("id") != "ping":
        frames.append(frame)
    return frames


# --- the server dies --------------------------------------------------------------------------------------------------


@pytest.mark.stores("sqlite", "postgresql")
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_mailbox_of_a_killed_server_is_delivered_once_and_in_order(layout: str) -> None:
    count = 500
    async with _servers() as servers:
        server = await servers.begin("s1", layout)
        bob = await RawClient.login(server, "bob")
        reports = await submit_all(bob, "post", [{"to": ["ann"], "number": number} for number in range(count)])
        await server.dies()
        assert {json.dumps(report["payload"].get("recipients")) for report in reports} == {'{"ann": "queued"}'}
        assert {report["header"]["status"] for report in reports} == {"good"}
        await bob.close()

        server = await servers.returns(server)
        ann = await RawClient.login(server, "ann")
        came = [await ann.receive() for _ in range(count)]
        assert [frame["payload"]["data"] for frame in came] == list(range(count))
        assert len({frame["header"]["id"] for frame in came}) == count
        assert not any("redelivered" in frame["header"] for frame in came)
        assert await all_that_waits(ann) == []
        await ann.close()

        ann = await RawClient.login(server, "ann")
        assert await all_that_waits(ann) == []
        await ann.close()


@pytest.mark.stores("memory")
async def test_mailbox_in_memory_is_lost_with_its_server_as_the_start_warns() -> None:
    async with _servers() as servers:
        server = await servers.begin("s1")
        await server.processes[0].says("memory")
        bob = await RawClient.login(server, "bob")
        (report,) = await submit_all(bob, "post", [{"to": ["ann"], "number": 1}])
        assert report["payload"]["recipients"] == {"ann": "queued"}
        await bob.close()
        await server.dies()
        server = await servers.returns(server)
        bob, ann = await RawClient.login(server, "bob"), await RawClient.login(server, "ann")
        assert (await submit_all(bob, "post", [{"to": ["ann"], "number": 2}]))[0]["header"]["status"] == "good"
        assert [frame["payload"]["data"] for frame in await all_that_waits(ann)] == [2]
        await ann.close()
        await bob.close()


@pytest.mark.stores("sqlite", "postgresql")
async def test_lane_to_a_dead_server_is_delivered_though_ours_dies_too() -> None:
    count = 200
    async with _servers() as servers:
        there = await servers.begin("s2", peer="s1")
        here = await servers.begin("s1", peer="s2")
        await here.processes[0].says("server-reached server='s2'")
        await there.dies()
        bob = await RawClient.login(here, "bob")
        reports = await submit_all(bob, "far", list(range(count)))
        await here.dies()
        assert {json.dumps(report["payload"].get("recipients")) for report in reports} == {'{"s2": "queued"}'}
        await bob.close()

        there = await servers.returns(there)
        await servers.returns(here)
        async with asyncio.timeout(DEADLINE_S * 2):
            while len(taken := _taken(there)) < count:
                await asyncio.sleep(0.05)  # the growth of a file gives no event
        assert sorted(int(line.split()[0]) for line in taken) == list(range(count))
        assert len({line.split()[1] for line in taken}) == count
        assert [int(line.split()[0]) for line in taken] == list(range(count))


def _taken(server: LiveServer) -> list[str]:
    try:
        return (server.directory / "taken").read_text().splitlines()
    except FileNotFoundError:
        return []


# --- the broker alone dies --------------------------------------------------------------------------------------------


async def test_a_broker_that_dies_under_load_means_late_reports_and_none_lost() -> None:
    count, before = 400, 100
    async with _servers() as servers:
        server = await servers.begin("s1", "apart")
        links: list[bool] = []
        came: dict[int, list[Any]] = {}
        async with (
            Client(server.address, user="ann", password="secret") as ann,
            Client(server.address, user="bob", password="secret", on_link=lambda up, _: links.append(up)) as bob,
        ):
            listening = asyncio.create_task(_listen(ann, came))
            reports = [bob.submit("post", {"to": ["ann"], "number": number}) for number in range(before)]
            await reports[0]
            reports += [bob.submit("post", {"to": ["ann"], "number": number}) for number in range(before, count)]
            await server.processes[1].end(signal.SIGKILL)
            assert not all(report.done() for report in reports)
            server.processes[1] = await Process.start(BESTER, "broker", cwd=server.directory)
            async with asyncio.timeout(DEADLINE_S * 2):
                answers = await asyncio.gather(*reports)
                assert [report for report in answers if not report.good] == []
                while len(came) < count:
                    await asyncio.sleep(0.05)
            assert links == [True]
        await listening
        assert sorted(came) == list(range(count))
        again = [messages[1:] for messages in came.values() if len(messages) > 1]
        assert all(message.redelivered for messages in again for message in messages)


async def _listen(client: Client, came: dict[int, list[Any]]) -> None:
    async for message in client:
        came.setdefault(message.data, []).append(message)


# --- a handler dies ---------------------------------------------------------------------------------------------------


@pytest.mark.stores(always=True)
async def test_message_of_a_killed_handler_goes_to_the_next() -> None:
    async with _servers() as servers:
        server = await servers.begin("s1")
        bob = await RawClient.login(server, "bob")
        bob.submit("hold", {}, "1")
        held = await server.processes[0].says("holding ")
        os.kill(int(held.split()[-1]), signal.SIGKILL)
        report, (answer,) = await bob.until_report("1")
        assert report["header"]["status"] == "good"
        assert answer["payload"]["data"] == {"attempt": 2, "id": report["payload"]["message"]}
        await bob.close()


@pytest.mark.stores("sqlite", "postgresql")
async def test_message_that_kills_every_handler_is_a_dead_letter_with_commands() -> None:
    async with _servers() as servers:
        server = await servers.begin("s1")
        bob = await RawClient.login(server, "bob")
        body = {"to": ["bob"], "number": 7}
        reports = await submit_all(bob, "poison", [body, body])  # both die with each handler
        assert {(report["header"]["status"], report["payload"]["reason"]) for report in reports} == {
            ("bad", "handler-lost")
        }
        first, second = (report["payload"]["message"] for report in reports)
        await bob.close()
        await server.dies()  # a dead letter is on disk before its report
        server = await servers.returns(server)
        bob = await RawClient.login(server, "bob")

        letters = [json.loads(line) for line in await _bester(server, "dead", "list", "--json")]
        assert {letter["id"] for letter in letters} == {first, second}
        assert {(letter["type"], letter["reason"]) for letter in letters} == {("poison", "handler-lost")}
        # Each killed alone as often as allowed, and before that perhaps both at once, which counts against neither.
        assert {letter["attempts"] for letter in letters} <= {ATTEMPTS, ATTEMPTS + 1}
        (shown,) = [json.loads(line) for line in await _bester(server, "dead", "show", first, "--json")]
        assert json.loads(shown["body"]) == body
        assert (shown["user"], shown["origin"], shown["scope"]) == ("bob", "s1", "client")

        await _bester(server, "dead", "replay", first, "--as", "post")
        came = await bob.receive()
        assert came["payload"]["data"] == 7
        async with asyncio.timeout(DEADLINE_S):
            while len(letters := await _bester(server, "dead", "list", "--json")) > 1:
                pass  # the letter goes when its replay has ended
        assert json.loads(letters[0])["id"] == second
        await _bester(server, "dead", "drop", second)
        assert await _bester(server, "dead", "list", "--json") == []
        await bob.close()


async def _bester(server: LiveServer, *arguments: str) -> list[str]:
    """Run a command in the server's directory, which must succeed; return its lines."""
    process = await asyncio.create_subprocess_exec(
        BESTER,
        *arguments,
        cwd=server.directory,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()
