"""Accounts that change while their users are connected: another password, disabled, removed behind a broker's back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from tests.live import BESTER, LAYOUTS, LiveServer, Process, RawClient, head, short_directory
from tests.stores import accounts_of

pytestmark = pytest.mark.stores("sqlite", "postgresql")

DEADLINE_S = 60.0
TOML = head()
ECHO = "bester.handlers.stock.echo:app"


@asynccontextmanager
async def running(layout: str) -> AsyncIterator[LiveServer]:
    async with short_directory() as directory:
        with closing(accounts_of(directory)) as accounts:
            for user in ("ann", "bob"):
                accounts.add(user, "secret")
        server = await LiveServer.start(directory, TOML, layout, (ECHO,))
        try:
            yield server
        finally:
            await server.stop()


async def bester(directory: Path, *arguments: str, status: int = 0) -> list[str]:
    process = await Process.start(BESTER, *arguments, cwd=directory)
    assert await asyncio.wait_for(process.process.wait(), DEADLINE_S) == status, process.lines
    await process.end()
    return process.lines


async def login(server: LiveServer, user: str, password: str) -> Any:
    """Return the answer to a login."""
    client = await RawClient.connect(server)
    client.send({"header": {"scope": "client", "authentication": {"username": user, "password": password}}})
    answer = await client.receive()
    await client.close()
    return answer["payload"].get("reason")


async def change(client: RawClient, data: Any) -> Any:
    """Return the reason of a refusal, None for a change."""
    client.submit("builtin", {"command": {"type": "passwd", "data": data}}, "p")
    answer = await client.receive()
    while answer["payload"].get("id") != "p":  # a message of the user's other connection
        answer = await client.receive()
    if answer["header"].get("status") == "0":
        assert answer["payload"] == {"data": None, "id": "p", "type": "builtin"}
        return None
    return answer["payload"]["reason"]


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_client_changes_its_own_password(layout: str) -> None:
    async with running(layout) as server:
        ann, second = await RawClient.login(server, "ann"), await RawClient.login(server, "ann")
        for wrong in (
            {"old": "secret", "new": ""},
            {"old": "secret", "new": "x" * 1025},
            {"old": "secret"},
            "new",
            None,
        ):
            assert await change(ann, wrong) == "malformed"
        assert await change(ann, {"old": "Secret", "new": "n3w"}) == "authentication-failed"
        assert await change(ann, {"old": "secret", "new": "n3w-passw0rd"}) is None
        assert await login(server, "ann", "secret") == "authentication-failed"
        assert await login(server, "ann", "n3w-passw0rd") is None
        assert await login(server, "bob", "secret") is None
        second.submit("echo", 1, "m")
        report, _ = await second.until_report("m")
        assert report["header"]["status"] == "good"
        refused = None
        for number in range(6):
            refused = await change(ann, {"old": f"guess {number}", "new": "other"})
        assert refused == "try-later"
        assert await change(ann, {"old": "n3w-passw0rd", "new": "other"}) == "try-later"
        await ann.close()
        await second.close()
        text = "\n".join(line for process in server.processes for line in process.lines)
        assert "password-changed" in text
        for secret in ("n3w-passw0rd", "guess 1", "Secret"):
            assert secret not in text


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_disabled_user_is_out_at_once_and_comes_back(layout: str) -> None:
    async with running(layout) as server:
        here = server.directory
        ann, bob = await RawClient.login(server, "ann"), await RawClient.login(server, "bob")
        assert await bester(here, "user", "disable", "ann") == ["user ann disabled"]
        assert await ann.at_end()
        assert await login(server, "ann", "secret") == "authentication-failed"
        assert (await bester(here, "user", "list"))[0].split("\t")[2:] == ["disabled"]
        await bester(here, "user", "disable", "nobody", status=1)
        bob.submit("echo", 1, "m")
        assert (await bob.until_report("m"))[0]["header"]["status"] == "good"
        assert await bester(here, "user", "enable", "ann") == ["user ann enabled"]
        assert await login(server, "ann", "secret") is None
        await bester(here, "user", "disable", "ann")
        await bester(here, "user", "remove", "ann")
        await bester(here, "user", "enable", "ann", status=1)
        for client in (ann, bob):
            await client.close()


async def test_bridge_that_outlives_its_broker_drops_removed_users() -> None:
    """Removed, removed and made again, and disabled while no broker ran."""
    async with running("apart") as server:
        bridge, broker, handler = server.processes
        names = ("gone", "anew", "off", "stays")
        with closing(accounts_of(server.directory)) as accounts:
            for name in names:
                accounts.add(name, "secret")
        clients = {name: await RawClient.login(server, name) for name in names}
        await broker.end(9)
        with closing(accounts_of(server.directory)) as accounts:
            accounts.remove("gone")
            accounts.remove("anew")
            accounts.add("anew", "other")
            accounts.disable("off")
        server.processes[1] = again = await Process.start(BESTER, "broker", cwd=server.directory)
        await again.says("'echo'")
        for name in ("gone", "anew", "off"):
            assert await clients[name].at_end(), name
        clients["stays"].submit("echo", 1, "m")
        assert (await clients["stays"].until_report("m"))[0]["header"]["status"] == "good"
        for client in clients.values():
            await client.close()
        del bridge, handler
