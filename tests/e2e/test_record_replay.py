"""`bester record` and `bester replay`, with a real server and handlers in files of their own."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.live import BESTER, LiveServer, Process, RawClient, head, short_directory

HANDLER = """
import os, secrets, time
from bester.handlers import App, HandlerError

app = App()


@app.handler("letter", order="user")
async def letter(message):
    if message.data is None:
        raise HandlerError("a letter needs a text")
    is_there = await app.ask.is_client("bob")
    answer = {"text": message.data, "id": secrets.token_hex(12), "at": time.time(), "bob": is_there}
    return [message.reply(answer), message.send_clients({"bob", "carol", "dan"}, message.id)]
"""


@asynccontextmanager
async def letters() -> AsyncIterator[LiveServer]:
    """Run a server whose handler of letters is in its directory."""
    async with short_directory() as directory:
        (directory / "letters.py").write_text(HANDLER)
        toml = head(auth="open") + '[handlers.letter]\napp = "letters:app"\n'
        server = await LiveServer.start(directory, toml)
        try:
            yield server
        finally:
            assert await server.stop() == [0], server.processes[0].lines


async def run(*argv: str, cwd: Path) -> tuple[int, list[str]]:
    """Run a command to its end; return its exit status and its lines."""
    process = await Process.start(BESTER, *argv, cwd=cwd)
    async with asyncio.timeout(60):
        await process.process.wait()
    return await process.end(), process.lines


async def send(server: LiveServer, user: str, *texts: object) -> None:
    """Send letters, and wait for their reports."""
    client = await RawClient.login(server, user)
    for number, text in enumerate(texts):
        client.submit("letter", text, str(number))
        await client.until_report(str(number))
    await client.close()


async def test_a_recording_is_replayed_through_a_new_version() -> None:
    async with letters() as server:
        await server.processes[0].says("letter serves letter")
        file = server.directory / "letters.rec"
        recorder = await Process.start(BESTER, "record", "--type", "letter", file.name, cwd=server.directory)
        await recorder.says("recording messages")
        await send(server, "bob", "hello", None, "é\u2028\x1b")
        await send(server, "bob", *range(20))
        recorder.send_signal(signal.SIGINT)
        assert await recorder.end(signal.SIGINT) == 0
        assert recorder.lines[-1] == "recorded 23 messages of type letter in letters.rec"
        await server.processes[0].says("recording-ended")
        assert file.stat().st_mode & 0o777 == 0o600
        head, *rows = map(json.loads, file.read_text().removesuffix("\n").split("\n"))
        assert (head["server"], head["type"], len(rows)) == ("s1", "letter", 23)
        assert "secret" not in file.read_text()  # the users' password

        status, lines = await run("record", "--type", "letter", file.name, cwd=server.directory)
        assert (status, len(lines)) == (2, 1) and "name another file" in lines[0]
        status, lines = await run("replay", file.name, "letters:app", cwd=server.directory)
        assert status == 0 and lines[0] == "23 messages: 23 answered as recorded, 0 differently", lines
        assert lines[1].startswith("bester: 44 values that look like ids or times were passed over")
        status, lines = await run("replay", "--strict", file.name, "letters:app", cwd=server.directory)
        assert status == 1 and lines[-1] == "23 messages: 1 answered as recorded, 22 differently"

        other = HANDLER.replace('"text": message.data,', '"text": str(message.data).upper(),').replace("needs", "has")
        (server.directory / "newer.py").write_text(other)
        status, lines = await run("replay", file.name, "newer:app", cwd=server.directory)
        assert status == 1 and lines[-2].startswith("23 messages: 0 answered as recorded, 23 differently")
        assert '  command 1 sendClients: body.text: "hello" became "HELLO"' in lines
        assert "  outcome: refused: a letter needs a text became refused: a letter has a text" in lines
        assert not any("\x1b" in line or "\u2028" in line for line in lines)
        ignored = ("--ignore", "body.text", "--json")
        status, lines = await run("replay", *ignored, file.name, "newer:app", cwd=server.directory)
        objects = [json.loads(line) for line in lines]
        assert status == 1 and [row["same"] for row in objects] == [True, False, *[True] * 21]


async def test_a_bound_ends_a_recording_and_a_secret_type_has_none() -> None:
    async with letters() as server:
        await server.processes[0].says("letter serves letter")
        argv = ("record", "--type", "letter", "--count", "2", "a.rec")
        recorder = await Process.start(BESTER, *argv, cwd=server.directory)
        await recorder.says("recording messages")
        await send(server, "bob", 1, 2, 3)
        assert await recorder.end(0) == 0
        assert recorder.lines[-1] == "recorded 2 messages of type letter in a.rec"
        assert len((server.directory / "a.rec").read_text().splitlines()) == 3
        status, lines = await run("record", "--type", "letter", "--seconds", "0.1", "b.rec", cwd=server.directory)
        assert (status, lines[-1]) == (0, "recorded 0 messages of type letter in b.rec")
        status, lines = await run("record", "--type", "bester.auth", "c.rec", cwd=server.directory)
        assert status == 1 and len(lines) == 1 and not (server.directory / "c.rec").exists()

        recorder = await Process.start(BESTER, "record", "--type", "letter", "d.rec", cwd=server.directory)
        await recorder.says("recording messages")
        recorder.send_signal(signal.SIGKILL)
        await recorder.end(signal.SIGKILL)
        last = await Process.start(BESTER, "record", "--type", "letter", "e.rec", cwd=server.directory)
        await last.says("recording messages")
        await send(server, "bob", 1)
        directory = server.directory
        kept = (directory / "a.rec").read_text()
        (directory / "cut.rec").write_text(kept[:-20])  # as a recorder that is killed leaves it
        status, lines = await run("replay", "cut.rec", "letters:app", cwd=directory)
        assert status == 0 and lines[0].startswith("1 message: 1 answered"), lines
        server.processes[0].send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await last.process.wait() == 1
        await last.end(0)
        assert "went away" in last.lines[-1]


@pytest.mark.parametrize(
    ("file", "app", "says"),
    [
        ("none.rec", "letters:app", "No such file"),
        ("empty.rec", "letters:app", "is empty"),
        ("odd.rec", "letters:app", "line 1: is no line of a recording"),
        ("middle.rec", "letters:app", "line 2: is no line of a recording"),
        ("future.rec", "letters:app", "this program reads 1"),
        ("good.rec", "none:app", "there is no module 'none'"),
        ("good.rec", "letters:nobody", "has no 'nobody'"),
        ("good.rec", "two:app", "the app has no handler of 'letter'"),
        ("good.rec", "hook:app", "a start hook failed"),
        ("good.rec", "letters", "is not MODULE:APP"),
    ],
)
async def test_a_mistake_is_one_line(tmp_path: Path, file: str, app: str, says: str) -> None:
    head = '{"recording": 1, "server": "s1", "type": "letter", "at_ms": 1}\n'
    (tmp_path / "letters.py").write_text(HANDLER)
    (tmp_path / "two.py").write_text(
        "from bester.handlers import App\napp = App()\n"
        "app.handler('a')(lambda message: None)\napp.handler('b')(lambda message: None)\n"
    )
    (tmp_path / "hook.py").write_text(HANDLER + "\n@app.on_start\ndef start():\n    return 1 / 0\n")
    (tmp_path / "empty.rec").write_text("")
    (tmp_path / "odd.rec").write_bytes(b"\xff\x00\n")
    (tmp_path / "middle.rec").write_text(head + "[1]\n" + "[2]\n")
    (tmp_path / "future.rec").write_text('{"recording": 2}\n')
    row = {
        "at_ms": 1,
        "request": {"type": "letter", "user": "t", "body": "1", "meta": {"id": "s1/x/1"}},
        "reply": {"status": 0, "note": None, "code": None, "commands": []},
    }
    (tmp_path / "good.rec").write_text(head + json.dumps(row) + "\n")
    status, lines = await run("replay", file, app, cwd=tmp_path)
    assert status == 2 and len(lines) == 1 and says in lines[0], lines


async def test_a_replay_works_on_a_copy_of_the_state(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "count").write_text("41")
    (tmp_path / "counting.py").write_text(
        "import os, pathlib\nprint('imported')\nfrom bester.handlers import App\napp = App()\n"
        "\n\n@app.handler('count')\n"
        "def count(message):\n    file = pathlib.Path(os.environ['BESTER_DATA'], 'count')\n"
        "    file.parent.mkdir(exist_ok=True)\n    number = int(file.read_text()) + 1 if file.exists() else 1\n"
        "    file.write_text(str(number))\n    return message.reply(number)\n"
    )
    rows = ['{"recording": 1, "server": "s1", "type": "count", "at_ms": 1}']
    for number in (42, 43):
        command = {"command": "sendClients", "targets": ["t"], "body": str(number), "type": None}
        row = {
            "at_ms": number,
            "request": {"type": "count", "user": "t", "body": "1", "meta": {"id": f"s1/x/{number}"}},
            "reply": {"status": 0, "note": None, "code": None, "commands": [command]},
        }
        rows.append(json.dumps(row))
    (tmp_path / "count.rec").write_text("\n".join(rows) + "\n")
    status, lines = await run("replay", "--data", "state", "count.rec", "counting:app", cwd=tmp_path)
    assert status == 0, lines
    assert (state / "count").read_text() == "41"
    status, lines = await run("replay", "count.rec", "counting:app", cwd=tmp_path)
    assert status == 1 and "  command 1 sendClients: body: 42 became 1" in lines
    argv = (BESTER, "replay", "--json", "count.rec", "counting:app")
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert [json.loads(line)["same"] for line in done.stdout.splitlines()] == [False, False]
    assert "imported" in done.stderr  # what a handler prints is no part of the result
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "count.rec", "counting.py", "state",
    ]  # fmt: skip
