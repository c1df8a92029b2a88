"""A real server whose wall clock is set while it runs, while it is stopped, and while it is down."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from bester.broker.accounts import Accounts
from bester.client import Client, Report
from tests.live import BESTER, DEADLINE_S, Process, head, short_directory
from tests.wall_clock import WallClock

DAY_S = 24 * 3600.0
LONG_S, SHORT_S = 3600.0, 1.0
"""Far less than each change of the clock, and short enough for a test to wait for."""
APART_S = 2.0
"""Longest time from a death to its dead letter, or between two reads of the clock: in practice milliseconds."""
HANDLERS = """
import os
from bester.handlers import App
deadly, app = App(), App()
@deadly.handler("die")
async def die(message):
    os._exit(1)
@app.handler("note", inline=True)
def note(message):
    return message.send_clients(["bob"], message.data)
"""
CONFIG = (
    head()
    + """[handlers.note]
app = "h:app"
[handlers.die]
app = "h:deadly"
attempts = 1
"""
)


class Town:
    """The server, over its lives, and alice's messages there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = WallClock(directory / "clock")
        self._died: dict[str, tuple[float, float]] = {}  # by message: the clock before and after the death
        (directory / "h.py").write_text(HANDLERS)
        (directory / "bester.toml").write_text(CONFIG)
        with closing(Accounts(directory / "data")) as accounts:
            for user in ("alice", "bob"):
                accounts.add(user, "secret")

    async def start(self) -> None:
        self.server = await Process.start(BESTER, "up", cwd=self.directory, env=self.clock.env)
        line = await self.server.says(" serves ")
        self.address = line.partition(" serves ")[2].split(",")[0].strip()
        await self.server.says("'note'")

    def client(self, user: str) -> Client:
        return Client(self.address, user=user, password="secret")

    async def queue(self, text: str, ttl_s: float) -> str:
        """Queue a message for bob; return the server's id of the message."""
        async with self.client("alice") as alice:
            report = await alice.send("note", text, ttl_s=ttl_s)
        assert report.recipients == {"bob": "queued"}
        assert report.message is not None
        return report.message

    async def became(self, message: str) -> str:
        async with self.client("alice") as alice:
            recipients = await alice.outcome(message)
        assert recipients is not None
        return recipients["bob"]

    async def expires(self, message: str) -> None:
        await until(self.became, message, "failed:expired")

    async def die(self) -> None:
        """Let a handler die over a message, which becomes a dead letter."""
        async with self.client("alice") as alice:
            before_s = self.clock.now_s()
            report: Report = await alice.send("die", 1)
            after_s = self.clock.now_s()
        assert report.reason == "handler-lost"
        assert report.message is not None
        self._died[report.message] = before_s, after_s

    async def letters_are_dated(self) -> None:
        """Check that the dead letters have the dates that the clock showed when their handlers died."""
        listing = await Process.start(BESTER, "dead", "list", "--json", cwd=self.directory)
        await asyncio.wait_for(listing.process.wait(), DEADLINE_S)
        await listing.end()
        dates_s = {row["id"]: row["at_ms"] / 1000 for row in map(json.loads, listing.lines)}
        assert dates_s.keys() == self._died.keys()
        for message, (before_s, after_s) in self._died.items():
            assert before_s - APART_S <= dates_s[message] <= after_s + APART_S


async def until(ask: Callable[[str], Awaitable[str]], of: str, answer: str) -> None:
    """Ask until the answer is `answer`."""
    async with asyncio.timeout(DEADLINE_S):
        while await ask(of) != answer:
            await asyncio.sleep(0.1)


@asynccontextmanager
async def town() -> AsyncIterator[Town]:
    async with short_directory() as directory:
        there = Town(directory)
        await there.start()
        try:
            yield there
        finally:
            status = await there.server.end()
        assert status == 0, there.server.lines


@pytest.mark.parametrize("ahead_s", [30 * DAY_S, -30 * DAY_S], ids=["forwards", "back"])
async def test_queued_messages_keep_their_time_to_live_and_dead_letters_have_true_dates(ahead_s: float) -> None:
    async with town() as there:
        kept, over = await there.queue("kept", LONG_S), await there.queue("over", SHORT_S)

        there.clock.set(ahead_s)
        await there.server.says("clock-jumped")
        await there.die()
        await there.expires(over)
        assert await there.became(kept) == "queued"

        over = await there.queue("over", SHORT_S)
        there.server.send_signal(signal.SIGSTOP)
        there.clock.set(2 * ahead_s)  # as for a machine that slept
        there.server.send_signal(signal.SIGCONT)
        await there.die()
        await there.expires(over)
        assert await there.became(kept) == "queued"

        over = await there.queue("over", SHORT_S)
        await there.server.end(signal.SIGKILL)
        there.clock.set(-ahead_s)
        await there.start()
        await there.die()
        await there.expires(over)
        assert await there.became(kept) == "queued"

        await there.letters_are_dated()
        await there.queue("last", LONG_S)
        async with there.client("bob") as bob:
            assert [(await bob.receive()).data for _ in range(2)] == ["kept", "last"]
        await until(there.became, kept, "delivered")
