"""Shadows, and a handler's version swapped under load, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.live import BESTER, DEADLINE_S, LiveServer, Process, RawClient, head, short_directory

VERSION = """
import asyncio, os, signal, time
from bester.handlers import App

app = App(version="VERSION")


@app.handler("letter")
async def letter(message):
    ACT
    return message.reply({"n": message.data, "by": "VERSION"})
"""
HEAD = head(auth="open")


def version(name: str, act: str = "pass") -> str:
    return VERSION.replace("VERSION", name).replace("ACT", act)


@asynccontextmanager
async def serving(toml: str, **modules: str) -> AsyncIterator[LiveServer]:
    """Run a server with these modules in its directory."""
    async with short_directory() as directory:
        for name, text in modules.items():
            (directory / f"{name}.py").write_text(text)
        server = await LiveServer.start(directory, HEAD + toml)
        try:
            yield server
        finally:
            assert await server.stop() == [0], server.processes[0].lines


async def shadow_row(server: LiveServer) -> dict[str, Any]:
    """Return the only shadow that `bester types` shows."""
    run = await Process.start(BESTER, "types", "--json", cwd=server.directory)
    async with asyncio.timeout(60):
        assert await run.process.wait() == 0, run.lines
    await run.end()
    ((shadow,),) = [json.loads(line)["shadows"] for line in run.lines]
    return dict(shadow)


async def answered(client: RawClient, *numbers: int) -> list[Any]:
    """Send letters; return the answers, each of which must have come once, before its report."""
    found = []
    for number in numbers:
        client.submit("letter", number, str(number))
        report, before = await client.until_report(str(number))
        assert report["payload"].get("reason") is None, report
        found += [frame["payload"]["data"] for frame in before]
    return found


@pytest.mark.parametrize("act", ["pass", "time.sleep(60)", "os.kill(os.getpid(), signal.SIGKILL)", "raise ValueError"])
async def test_a_shadow_never_touches_the_real_path(act: str) -> None:
    toml = '[handlers.letter]\napp = "old:app"\n[handlers.newer]\napp = "new:app"\ntypes = ["letter"]\nshadow = true\n'
    async with serving(toml, old=version("1"), new=version("2", act)) as server:
        log = server.processes[0]
        await log.says("letter serves letter")
        await log.says("newer serves letter")
        client = await RawClient.login(server, "bob")
        numbers = range(20)
        assert await answered(client, *numbers) == [{"n": number, "by": "1"} for number in numbers]
        if act in ("pass", "raise ValueError"):
            where = "command 1 sendClients: body.by" if act == "pass" else "outcome"
            assert where in await log.says("shadow-differs")
            async with asyncio.timeout(DEADLINE_S):
                while (shadow := await shadow_row(server))["different"] < len(numbers):
                    pass
            assert (shadow["name"], shadow["same"], shadow["dropped"]) == ("newer", 0, 0)
        assert await answered(client, 99) == [{"n": 99, "by": "1"}]
        await client.close()


async def test_a_shadow_that_cannot_start_is_given_up_and_its_type_is_not() -> None:
    toml = (
        '[handlers.letter]\napp = "old:app"\n'
        '[handlers.newer]\ncommand = ["false"]\ntypes = ["letter", "other"]\nshadow = true\n'
    )
    async with serving(toml, old=version("1")) as server:
        await server.processes[0].says("letter serves letter")
        client = await RawClient.login(server, "bob")
        assert await answered(client, 1, 2) == [{"n": 1, "by": "1"}, {"n": 2, "by": "1"}]
        client.submit("other", 1, "x")
        report, _ = await client.until_report("x")
        assert report["payload"]["reason"] == "unknown-type"
        await client.close()


async def start_version(server: LiveServer, module: str, **env: str) -> Process:
    argv = ("handler", f"{module}:app", "--fabric", server.fabric)
    process = await Process.start(BESTER, *argv, cwd=server.directory, env=env)
    await process.says("serves letter")
    return process


async def test_a_shadow_started_by_hand_is_one_worker() -> None:
    async with serving("", old=version("1"), new=version("2")) as server:
        old = await start_version(server, "old")
        new = await start_version(server, "new", BESTER_SHADOW="1")
        client = await RawClient.login(server, "bob")
        assert await answered(client, 1) == [{"n": 1, "by": "1"}]
        async with asyncio.timeout(DEADLINE_S):
            while not (await shadow_row(server))["different"]:
                pass
        await client.close()
        assert await new.end() == 0 and await old.end() == 0
        env = {"BESTER_SHADOW": "1"}
        two = await Process.start(BESTER, "handler", "new:app", "--workers", "2", cwd=server.directory, env=env)
        async with asyncio.timeout(60):
            assert await two.process.wait() == 2
        await two.end()
        assert "a shadow is one worker" in two.lines[-1]


async def test_a_version_is_swapped_under_load_and_nothing_is_lost() -> None:
    """Drain the old version as the new one serves, there and back: each message has one answer and a good report."""
    slow = "await asyncio.sleep(0.02)"
    async with serving("", old=version("1", slow), new=version("2", slow)) as server:
        running = await start_version(server, "old")
        client = await RawClient.login(server, "bob")
        sent = 0
        answers: dict[int, str] = {}
        reports: dict[int, str | None] = {}
        enough, heard = asyncio.Event(), asyncio.Event()

        async def load() -> None:
            nonlocal sent
            while not enough.is_set() or len(reports) < sent:
                while not enough.is_set() and sent - len(reports) < 64:
                    client.submit("letter", sent, str(sent))
                    sent += 1
                frame = await client.receive()
                payload = frame["payload"]
                if frame["header"].get("messageType") == "statusReport":
                    assert int(payload["id"]) not in reports
                    reports[int(payload["id"])] = payload.get("reason")
                else:
                    assert payload["data"]["n"] not in answers, "answered twice"
                    answers[payload["data"]["n"]] = payload["data"]["by"]
                    heard.set()

        async def has_answers_of(name: str, more: int) -> None:
            before = sum(by == name for by in answers.values())
            async with asyncio.timeout(DEADLINE_S):
                while sum(by == name for by in answers.values()) < before + more:
                    heard.clear()
                    await heard.wait()

        loading = asyncio.create_task(load())
        await has_answers_of("1", 100)
        for module, name in (("new", "2"), ("old", "1"), ("new", "2")):
            newer = await start_version(server, module)
            running.send_signal(signal.SIGTERM)
            async with asyncio.timeout(DEADLINE_S):
                assert await running.process.wait() == 0, running.lines
            await running.end()
            running = newer
            await has_answers_of(name, 100)
        enough.set()
        async with asyncio.timeout(DEADLINE_S):
            await loading
        assert set(reports.values()) == {None} and len(reports) == sent
        assert sorted(answers) == list(range(sent)) and set(answers.values()) == {"1", "2"}
        assert answers[sent - 1] == "2"
        await client.close()
        assert await running.end() == 0


async def test_the_keys_of_a_shadow_are_checked() -> None:
    async with short_directory() as directory:
        for line in ("workers = 2", "timeout_s = 3", 'commands = ["sendClients"]', 'shadow = "yes"'):
            toml = f'[handlers.a]\napp = "a:app"\n{"" if "shadow" in line else "shadow = true"}\n{line}\n'
            (directory / "bester.toml").write_text(toml)
            run = await Process.start(BESTER, "types", cwd=directory, env={"HOME": os.fspath(directory)})
            async with asyncio.timeout(60):
                assert await run.process.wait() == 2
            await run.end()
            assert len(run.lines) == 1 and f"[handlers.a] {line.partition(' ')[0]}" in run.lines[0]
