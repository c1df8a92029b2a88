"""Several workers under load: each user's messages stay in order and none is lost, where one is killed or replaced."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from tests.benchmarks.processes import children
from tests.live import BESTER, LiveServer, Process, RawClient, live_server

USERS, MESSAGES = 100, 200
APP = """
from bester.handlers import App

app = App(version="{version}", credit=32)

@app.on("note", order="user")
async def note(message):
    return message.reply({{"n": message.data, "by": "{version}"}})
"""


async def play(
    server: LiveServer, user: str, begun: asyncio.Event, go_on: asyncio.Event
) -> tuple[list[int], set[str], int]:
    """Send half of a user's messages, and after `go_on` the others; return the numbers that came back, who answered,
    and the number of good reports. `begun` is set with the first answers."""
    client = await RawClient.login(server, user)

    def submit(numbers: range) -> None:
        for number in numbers:
            client.submit("note", number, str(number))

    async def submit_others() -> None:
        await go_on.wait()
        submit(range(MESSAGES // 2, MESSAGES))

    submit(range(MESSAGES // 2))
    others = asyncio.create_task(submit_others())
    reports = good = 0
    numbers: list[int] = []
    answered: set[str] = set()
    while reports < MESSAGES:
        frame = await client.receive()
        if frame["header"].get("messageType") == "statusReport":
            reports += 1
            good += frame["header"]["status"] == "good"
            continue
        if not frame["header"].get("redelivered") or frame["payload"]["data"]["n"] not in numbers:
            numbers.append(frame["payload"]["data"]["n"])
        answered.add(frame["payload"]["data"]["by"])
        if len(numbers) == MESSAGES // 10:
            begun.set()
    await others
    await client.close()
    return numbers, answered, good


async def start(server: LiveServer, directory: Path, version: str, workers: int) -> Process:
    """Start the app in so many workers."""
    (directory / f"notes_{version}.py").write_text(APP.format(version=version))
    command = (BESTER, "handler", f"notes_{version}:app", "--workers", str(workers), "--fabric", server.fabric)
    handler = await Process.start(*command, cwd=directory)
    for _ in range(workers):
        await handler.says(f"note-{handler.process.pid}.{_} serves note")
    return handler


@pytest.mark.parametrize("event", ["killed", "replaced"])
async def test_each_users_messages_in_order_and_none_missing(event: str, tmp_path: Path) -> None:
    async with live_server() as server:
        first = await start(server, tmp_path, "one", 4)
        second: Process | None = None
        try:
            begun, go_on = asyncio.Event(), asyncio.Event()
            playing = [asyncio.create_task(play(server, f"u{number}", begun, go_on)) for number in range(USERS)]
            async with asyncio.timeout(60):
                await begun.wait()
            if event == "killed":
                go_on.set()
                os.kill(random.choice(children(first.process.pid)), signal.SIGKILL)
            else:
                second = await start(server, tmp_path, "two", 2)
                go_on.set()
                assert await first.end() == 0  # drained
            results = await asyncio.gather(*playing)
        finally:
            await first.end()
            if second is not None:
                await second.end()
        for numbers, _, good in results:
            assert numbers == list(range(MESSAGES)) and good == MESSAGES
        versions = {version for _, answered, _ in results for version in answered}
        assert versions == ({"one"} if event == "killed" else {"one", "two"})
