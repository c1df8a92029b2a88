"""An account that is removed and made again: the new user gets no message of the old one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from bester.client import Client, ClientError
from tests.live import BESTER, DEADLINE_S, LiveServer, Process, head, short_directory
from tests.stores import accounts_of, removed_from

pytestmark = pytest.mark.stores

APP = """
from bester.handlers import App
app = App("post")

@app.handler("post", inline=True)
def post(message):
    return message.send_clients(["bob"], message.data)
"""
TOML = head()
MANY = 600
"""Several windows of the core, so that all messages must go, not only the first."""


@asynccontextmanager
async def scene() -> AsyncIterator[Path]:
    async with short_directory() as directory:
        (directory / "post.py").write_text(APP)
        with closing(accounts_of(directory)) as accounts:
            for user in ("ann", "bob"):
                accounts.add(user, "secret")
        yield directory


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[LiveServer]:
    server = await LiveServer.start(directory, TOML, handlers=("post:app",))
    try:
        yield server
    finally:
        assert await server.stop() == [0]


def client(server: LiveServer, user: str, password: str = "secret") -> Client:
    return Client(server.address, user=user, password=password)


async def bester(directory: Path, *arguments: str) -> None:
    process = await Process.start(BESTER, *arguments, cwd=directory)
    async with asyncio.timeout(DEADLINE_S):
        status = await process.process.wait()
    assert status == 0, process.lines


def make_anew(directory: Path) -> None:
    """Run `bester user remove bob; bester user add bob` within a tick of the server."""
    with closing(accounts_of(directory)) as accounts:
        accounts.remove("bob")
        accounts.add("bob", "other")


async def outcome(ann: Client, message: str | None) -> dict[str, str] | None:
    assert message is not None
    return dict(await ann.outcome(message) or {})


async def came(server: LiveServer) -> Client:
    """Log bob in with his new password, with retries while the old connection ends, and while a server that follows a
    database has the old account."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            bob = client(server, "bob", "other")
            try:
                await bob.start()
            except ClientError as error:
                refused = str(error)
            else:
                return bob
            assert "overloaded" in refused or "does not accept user" in refused


async def check_newcomer(server: LiveServer, ann: Client, messages: list[str | None]) -> None:
    """Check that bob gets later messages only, and that ann gets failures for the earlier ones."""
    bob = await came(server)
    try:
        new = await ann.send("post", "new")
        assert new.good and new.recipients == {}
        assert (await asyncio.wait_for(anext(bob), DEADLINE_S)).data == "new"
    finally:
        await bob.close()
    for message in (messages[0], messages[-1]):
        assert await outcome(ann, message) == {"bob": "failed:unknown-user"}


async def store_mail(ann: Client, count: int) -> list[str | None]:
    reports = await asyncio.gather(*(ann.send("post", f"old {number}") for number in range(count)))
    assert all(report.recipients == {"bob": "queued"} for report in reports)
    return [report.message for report in reports]


@pytest.mark.stores("sqlite", "postgresql")
async def test_queued_messages_do_not_reach_a_new_user_after_a_stop() -> None:
    async with scene() as directory:
        async with running(directory) as server, client(server, "ann") as ann:
            messages = await store_mail(ann, MANY)
        await bester(directory, "user", "remove", "bob")
        with closing(accounts_of(directory)) as accounts:
            accounts.add("bob", "other")
        async with running(directory) as server, client(server, "ann") as ann:
            await check_newcomer(server, ann, messages)
        assert removed_from(directory) == set()
        async with running(directory) as server, client(server, "ann") as ann:  # reported once, not at every start
            assert (await ann.send("post", "kept")).recipients == {"bob": "queued"}
        async with running(directory) as server, client(server, "bob", "other") as bob:
            assert (await asyncio.wait_for(anext(bob), DEADLINE_S)).data == "kept"


async def test_queued_messages_do_not_reach_a_new_user_of_a_running_server() -> None:
    async with scene() as directory, running(directory) as server, client(server, "ann") as ann:
        messages = await store_mail(ann, MANY)
        make_anew(directory)
        await check_newcomer(server, ann, messages)
