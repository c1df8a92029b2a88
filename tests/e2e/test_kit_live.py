"""The Python kit in real processes: retries and hooks, several workers, --reload, and the pytest plugin."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.live import BESTER, DEADLINE_S, Process, RawClient, live_server

APP = """
import asyncio, os
from pathlib import Path
from bester.handlers import App

class Files:
    def __init__(self):
        self.here = Path(__file__).parent

app = App(version="{version}")

@app.on_start
async def start() -> Files:
    return Files()

@app.on_stop
def stop(files: Files):
    (files.here / "stopped-{version}").touch()

@app.on("ask", retries=3)
async def ask(message):
    flag = app.state(Files).here / f"failed-{{message.data}}"
    if not flag.exists():
        flag.touch()
        raise OSError("the first call fails")
    return message.reply("{version}")

@app.on("slow", timeout_s=0.2)
async def slow(message):
    await asyncio.Event().wait()

@app.on("held", timeout_s=20)
async def held(message):
    here = app.state(Files).here
    (here / "held").touch()
    while not (here / "release").exists():
        await asyncio.sleep(0.01)
    return message.reply("{version}")
"""


async def until(path: Path) -> None:
    """Wait for a file."""
    async with asyncio.timeout(DEADLINE_S):
        while not path.exists():
            await asyncio.sleep(0.01)


async def test_retries_limits_and_hooks_of_several_workers(tmp_path: Path) -> None:
    (tmp_path / "kit.py").write_text(APP.format(version="one"))
    async with live_server() as server:
        command = (BESTER, "handler", "kit:app", "--workers", "2", "--fabric", server.fabric)
        handler = await Process.start(*command, cwd=tmp_path)
        try:
            for _ in range(2):
                await server.processes[0].says("joined role='handler' name='ask")
            bob = await RawClient.login(server, "bob")
            for number in range(6):
                bob.submit("ask", number, "m")
                report, before = await bob.until_report("m")
                assert report["header"]["status"] == "good" and before[0]["payload"]["data"] == "one"
            bob.submit("slow", 1, "m")
            report, _ = await bob.until_report("m")
            assert report["payload"]["reason"] == "timeout"
            await bob.close()
        finally:
            status = await handler.end()
        assert status == 0, handler.lines
        assert (tmp_path / "stopped-one").exists()


async def test_a_changed_file_starts_the_handler_anew_and_loses_nothing(tmp_path: Path) -> None:
    module = tmp_path / "kit.py"
    module.write_text(APP.format(version="one"))
    for number in range(3):
        (tmp_path / f"failed-{number}").touch()
    async with live_server() as server:
        command = (BESTER, "handler", "kit:app", "--reload", "--fabric", server.fabric)
        handler = await Process.start(*command, cwd=tmp_path)
        try:
            await server.has_type("held")
            bob = await RawClient.login(server, "bob")
            bob.submit("held", 0, "held")
            await until(tmp_path / "held")
            module.write_text("app = (\n")  # a slip: the handler comes back with the next change
            await handler.says("kit.py changed")
            (tmp_path / "release").touch()
            report, before = await bob.until_report("held")
            assert report["header"]["status"] == "good" and before[0]["payload"]["data"] == "one"
            await handler.says("kit.py, line 1")
            module.write_text(APP.format(version="two"))
            bob.submit("ask", 1, "m")
            report, before = await bob.until_report("m")
            assert report["header"]["status"] == "good" and before[0]["payload"]["data"] == "two"
            await bob.close()
        finally:
            status = await handler.end()
        assert status == 0, handler.lines


async def test_a_start_hook_that_fails_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "kit.py").write_text(
        "from bester.handlers import App\napp = App()\n@app.on_start\ndef start():\n    raise OSError('no database')\n"
        "@app.on('x')\ndef x(message): pass\n"
    )
    handler = await Process.start(BESTER, "handler", "kit:app", "--fabric", "ipc://nobody.sock", cwd=tmp_path)
    async with asyncio.timeout(DEADLINE_S):
        assert await handler.process.wait() == 1
    assert "bester: a start hook failed: OSError: no database" in await handler.says("bester: ")
    await handler.end()


ODD_TYPE = 'it\'s "so" \\ é☃'
TESTS = f"""
from letters import app

def test_without_sockets(tester):
    assert tester.run("english", {{"text": "hi"}}, user="t").commands[0].data == {{"text": "HI"}}

def test_with_a_server(server):
    for type_ in ("english", {ODD_TYPE!r}):
        exchange = server.send(type_, {{"text": "hi"}}, user="t")
        assert exchange.report.good and exchange.received == [{{"text": "HI"}}]
    refused = server.send("english", {{}}, user="t")
    assert (refused.report.reason, refused.report.note) == ("refused", "a text, please")
"""


@pytest.mark.parametrize("named", ["option", "ini"])
async def test_the_pytest_plugin_runs_a_test_with_and_without_a_server(named: str, tmp_path: Path) -> None:
    (tmp_path / "letters.py").write_text(
        "from bester.handlers import App, HandlerError\napp = App()\n"
        f"@app.on('english', {ODD_TYPE!r})\ndef english(message):\n"
        "    if 'text' not in message.data:\n        raise HandlerError('a text, please')\n"
        "    return message.reply({'text': message.data['text'].upper()})\n"
    )
    (tmp_path / "test_letters.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n" + ("bester_app = letters:app\n" if named == "ini" else ""))
    option = ("--bester-app", "letters:app") if named == "option" else ()
    run = await Process.start(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *option, cwd=tmp_path,
        env={"PYTEST_ADDOPTS": ""},
    )  # fmt: skip
    async with asyncio.timeout(90):
        status = await run.process.wait()
    await run.end()
    assert status == 0 and any("2 passed" in line for line in run.lines), run.lines
