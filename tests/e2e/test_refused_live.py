"""The reason of a refusal reaches the sender: by programs, in both layouts, over two servers' native protocol."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bester.client import Client
from tests.live import BESTER, LAYOUTS, LiveServer, Process, head, short_directory

NEAR = """
from bester.handlers import App

app = App(credit=8)

@app.handler("near", inline=True)
def near(message):
    return message.send_servers(["s2"], message.data, as_type="far")

@app.handler("onward", inline=True)
def onward(message):
    return message.send_handler("near", message.data)
"""
FAR = """
import dataclasses
from bester.handlers import App, HandlerError

app = App()

@dataclasses.dataclass
class Letter:
    to: list[str]
    text: str = ""

@app.handler("far")
async def far(message, data: Letter):
    if data.text == "full":
        raise HandlerError("too many\\x1b[2J letters")
    if data.text == "secret":
        raise KeyError("the key is under the mat")
    if data.text == "half":
        return message.send_clients(["bob\\udcff"], 1)

@app.handler("direct")
def direct(message, data: Letter):
    raise HandlerError("nobody lives here: \\udcff")
"""
TOML = head("{0}", auth="open") + '[federation]\naccept = "open"\n{1}'


@asynccontextmanager
async def running(
    directory: Path, name: str, layout: str, types: tuple[str, str], code: str, more: str
) -> AsyncIterator[LiveServer]:
    home, module = directory / name, types[0]
    home.mkdir()
    (home / f"{module}.py").write_text(code)
    modules: tuple[str, ...] = (f"{module}:app",)
    if layout == "up":
        more += f'[handlers.{module}]\napp = "{module}:app"\ntypes = {json.dumps(types)}\n'
        modules = ()
    server = await LiveServer.start(home, TOML.format(name, more), layout, modules)
    try:
        await server.has_type(module)
        yield server
    finally:
        assert set(await server.stop()) == {0}


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_the_note_reaches_the_sender(layout: str) -> None:
    async with (
        short_directory() as directory,
        running(directory, "s2", layout, ("far", "direct"), FAR, "") as s2,
        running(directory, "s1", layout, ("near", "onward"), NEAR, f'[servers.s2]\nnative = "{s2.address}"\n') as s1,
    ):
        async with Client(s1.address, user="alice", password="x") as client:
            for type_ in ("near", "onward"):
                report = await client.send(type_, {"to": ["bob"], "text": "full"})
                assert (report.good, report.reason, report.note) == (False, "refused", "too many [2J letters")
                report = await client.send(type_, {"to": ["bob", None]})
                assert (report.reason, report.note) == ("schema", "data.to[1]: expected a string")
                report = await client.send(type_, {"to": [], "text": "secret"})
                assert (report.reason, report.note) == ("handler-failed", None)
                assert b"mat" not in report.frame
                report = await client.send(type_, {"to": [], "text": "half"})
                assert (report.reason, report.note) == ("bad-reply", None)
                assert (await client.send(type_, {"to": []})).good
        async with Client(s2.address, user="bob", password="x") as client:
            report = await client.send("direct", {"to": []})
            assert (report.reason, report.note) == ("refused", "nobody lives here: \ufffd")
        await s2.processes[-1].says("under the mat")  # in the log of the handler alone

        async def send(*more: str) -> tuple[int, list[str]]:
            argv = (BESTER, "send", "--to", s1.address, "--user", "alice", *more, "near", '{"to": [7]}')
            process = await Process.start(*argv, cwd=directory, env={"BESTER_PASSWORD": "x"})
            return await process.process.wait(), [line async for line in lines_of(process)]

        status, lines = await send()
        assert status == 1
        assert lines[0].startswith("bad: schema (data.to[0]: expected a string), s2 failed:schema")
        status, lines = await send("--json")
        assert json.loads(lines[0])["payload"]["note"] == "data.to[0]: expected a string"


async def lines_of(process: Process) -> AsyncIterator[str]:
    await process.end()
    for line in process.lines:
        yield line
