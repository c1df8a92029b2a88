"""Dead letters of a running server, from the command line: list, replay and drop."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bester.broker.core.dead_letters import MOST
from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_requests import Bury, DeadLetter
from tests.live import BESTER, LiveServer, Process, head, short_directory
from tests.stores import accounts_of

pytestmark = pytest.mark.stores

DEADLINE_S = 60.0
FRAGILE = """
import os
from pathlib import Path
from bester.handlers import App

app = App()

@app.handler("fragile", inline=True)
def fragile(message):
    if message.data["n"] < 10 and not Path("mended").exists():
        os._exit(3)
    return message.reply(message.data)

@app.handler("slow")
async def slow(message):
    import asyncio
    await asyncio.sleep(3600)
"""
SERVER = (
    head("here")
    + """[handlers.fragile]
app = "handler:app"
attempts = 2
[handlers.slow]
app = "handler:app"
timeout_s = 0.5
[handlers.echo]
app = "bester.handlers.stock.echo:app"
"""
)


class Scene:
    """A server with a handler that some messages kill, and a shell."""

    def __init__(self, directory: Path, server: LiveServer) -> None:
        self.directory = directory
        self.server = server

    async def bester(self, *arguments: str) -> tuple[int, list[str]]:
        """Run a command; return its status and lines."""
        process = await Process.start(BESTER, *arguments, cwd=self.directory, env={"BESTER_PASSWORD": "secret"})
        status = await asyncio.wait_for(process.process.wait(), DEADLINE_S)
        await process.end()
        return status, process.lines

    async def send(self, type_: str, data: object) -> tuple[int, list[str]]:
        """Send a message as tim."""
        return await self.bester("send", "--to", self.server.address, "--user", "tim", type_, json.dumps(data))

    async def letters(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the rows of `bester dead list`."""
        status, lines = await self.bester("dead", "list", "--json", *arguments)
        assert status == 0, lines
        return [json.loads(line) for line in lines if line.startswith("{")]

    async def listen(self, count: int) -> list[dict[str, Any]]:
        """Return tim's next messages."""
        arguments = ("listen", "--to", self.server.address, "--user", "tim", "--json", "--count", str(count))
        status, lines = await self.bester(*arguments)
        assert status == 0, lines
        return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with short_directory() as directory:
        (directory / "handler.py").write_text(FRAGILE)
        accounts = accounts_of(directory)
        accounts.add("tim", "secret")
        accounts.close()
        scene = Scene(directory, await LiveServer.start(directory, SERVER))
        try:
            await scene.server.has_type("fragile")
            yield scene
        finally:
            await scene.server.stop()


async def test_message_that_kills_its_handlers_is_a_dead_letter_and_is_replayed(scene: Scene) -> None:
    status, lines = await scene.send("fragile", {"n": 1})
    assert status == 1
    assert "handler-lost" in "\n".join(lines)
    (letter,) = await scene.letters()
    assert (letter["type"], letter["reason"], letter["attempts"], letter["bytes"]) == ("fragile", "handler-lost", 2, 8)
    status, lines = await scene.bester("dead", "show", letter["id"])
    assert status == 0
    assert {"reason      handler-lost: every handler that was given the message died with it"} <= set(lines)
    assert {"from        user tim", "attempts    2"} <= set(lines)
    assert json.loads(lines[-1]) == {"n": 1}
    (scene.directory / "mended").touch()
    status, lines = await scene.bester("dead", "replay", letter["id"])
    assert (status, lines) == (0, ["replayed 1 dead letter", "a letter that fails again will be in `bester dead list`"])
    (message,) = await scene.listen(1)
    assert message["payload"] == {"data": {"n": 1}, "type": "fragile"}
    assert message["header"]["redelivered"] is True
    assert message["header"]["id"].startswith(letter["id"])
    assert await scene.letters() == []


async def test_dead_letter_is_replayed_as_another_type_or_dropped(scene: Scene) -> None:
    for number in range(2):
        assert (await scene.send("fragile", {"n": number}))[0] == 1
    assert (await scene.send("slow", {}))[0] == 1
    letters = await scene.letters()
    assert [letter["reason"] for letter in letters] == ["timeout", "handler-lost", "handler-lost"]
    status, lines = await scene.bester("dead", "replay", letters[1]["id"], "--as", "ecko")
    assert (status, len(lines)) == (1, 1)
    assert "no handler of type 'ecko'" in lines[0]
    assert await scene.letters() == letters
    assert await scene.letters("--type", "fragile", "--limit", "1") == [letters[1]]
    status, lines = await scene.bester("dead", "replay", letters[1]["id"], "--as", "echo")
    assert (status, lines[0]) == (0, "replayed 1 dead letter")
    (message,) = await scene.listen(1)
    assert message["payload"] == {"data": {"n": 1}, "type": "echo"}
    assert await scene.letters() == [letters[0], *letters[2:]]
    assert await scene.bester("dead", "drop", letters[0]["id"]) == (0, ["dropped 1 dead letter"])
    assert await scene.bester("dead", "drop", "--type", "fragile", "--yes") == (0, ["dropped 1 dead letter"])
    status, lines = await scene.bester("dead", "show", letters[0]["id"])
    assert (status, len(lines)) == (1, 1)


async def test_dead_letter_that_fails_again_stays(scene: Scene) -> None:
    assert (await scene.send("fragile", {"n": 1}))[0] == 1
    (before,) = await scene.letters()
    assert (await scene.bester("dead", "replay", "--all"))[0] == 0
    async with asyncio.timeout(DEADLINE_S):
        while (after := await scene.letters()) == [before]:
            pass  # each command takes a while
    assert [letter["id"] for letter in after] == [before["id"]]
    assert after[0]["at_ms"] > before["at_ms"]


@pytest.mark.stores("sqlite")
async def test_more_dead_letters_than_fit_one_question_are_replayed_oldest_first(scene: Scene) -> None:
    count = MOST["deadReplay"] + 3
    await scene.server.stop()
    store = SqliteStore(scene.directory / "data" / "store.db")
    store.open()
    letters = [DeadLetter(f"here/x/{n}", "echo", b"%d" % n, "timeout", 1e9, {"user": "tim"}) for n in range(count)]
    assert store.commit([Bury(letter) for letter in letters]).ok
    store.close()
    scene.server = await LiveServer.start(scene.directory, SERVER)
    await scene.server.has_type("echo")
    status, lines = await scene.bester("dead", "replay", "--type", "echo")
    assert (status, lines[0]) == (0, f"replayed {count} dead letters")
    messages = await scene.listen(count)
    assert [message["payload"]["data"] for message in messages] == list(range(count))
    assert await scene.letters() == []


@pytest.mark.stores("sqlite", "postgresql")
async def test_dead_letters_survive_a_restart(scene: Scene) -> None:
    assert (await scene.send("fragile", {"n": 1}))[0] == 1
    letters = await scene.letters()
    await scene.server.stop()
    status, lines = await scene.bester("dead", "list")
    assert (status, len(lines)) == (1, 1)
    assert "no server runs" in lines[0]
    scene.server = await LiveServer.start(scene.directory, SERVER)
    assert await scene.letters() == letters
