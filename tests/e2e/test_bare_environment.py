"""A Python handler in a fresh environment that has pyzmq and msgpack, and nothing else of what the server needs."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tests.live import LiveServer, Process, RawClient, live_server

ROOT = Path(__file__).parents[2]
HANDLER = """
import asyncio
from bester.handlers import App, HandlerError, Middleware


class Greeting:
    text = "hello"


class Count(Middleware):
    def before_message(self, message):
        print("before", message.id)


app = App(middleware=[Count()])


@app.on_start
def start():
    return Greeting()


@app.handler("greet", order="user", timeout_s=5, retries=1)
async def greet(message):
    if not message.data:
        raise HandlerError("a greeting needs a name")
    is_there = await app.ask.is_client(message.user)
    return message.reply({"text": f"{app.state(Greeting).text}, {message.data['name']}", "there": is_there})


@app.handler("wait")
def wait(message):
    return message.reply(raw=message.raw)
"""
TEST = """
import greet
from bester.handlers.testing import Sent, Tester

result = Tester(greet.app, clients=["t"]).run("greet", {"name": "é"}, user="t")
assert result.commands == [Sent("sendClients", ["t"], {"text": "hello, é", "there": True})], result
"""
MISSING = ("msgspec", "uvloop", "click", "rich", "argon2", "jsonschema_rs", "watchfiles", "pip")


def bare_python(directory: Path) -> Path:
    """Make an environment with pyzmq and msgpack, of the versions of this one, and Bester's source."""
    base = str(Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}"))
    subprocess.run([base, "-m", "venv", "--without-pip", str(directory)], check=True)
    python = directory / "bin" / "python"
    packages = [f"{name}=={version(name)}" for name in ("pyzmq", "msgpack")]
    install = [base, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "--quiet"]
    run = subprocess.run([*install, "--no-input", *packages], capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"pip cannot install {packages}: {run.stderr}"
    (site,) = directory.glob("lib/python3*/site-packages")
    (site / "bester.pth").write_text("".join(f"{ROOT / part}\n" for part in ("broker", "handlers")))
    return python


async def test_a_handler_needs_pyzmq_and_msgpack_alone(tmp_path: Path) -> None:
    python = str(bare_python(tmp_path / "env"))
    code = f"import importlib.util as u; print([name for name in {MISSING!r} if u.find_spec(name)])"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]", found
    (tmp_path / "greet.py").write_text(HANDLER)
    (tmp_path / "test_greet.py").write_text(TEST)
    tested = subprocess.run([python, "test_greet.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    async with live_server() as server:
        argv = (python, "-m", "bester.handlers", "greet:app", "--fabric", server.fabric)
        handler = await Process.start(*argv, cwd=tmp_path)
        await handler.says("serves greet, wait")
        await converse(server)
        assert await handler.end() == 0, handler.lines
        assert sum(line.startswith("before ") for line in handler.lines) == 3


async def converse(server: LiveServer) -> None:
    """Send the handler a good message, one that it refuses, and one that a thread answers."""
    client = await RawClient.login(server, "bob")
    client.submit("greet", {"name": "Ada"}, "1")
    report, (answer,) = await client.until_report("1")
    assert report["header"]["status"] == "good"
    assert answer["payload"]["data"] == {"text": "hello, Ada", "there": True}
    client.submit("greet", {}, "2")
    report, _ = await client.until_report("2")
    assert (report["payload"]["reason"], report["payload"]["note"]) == ("refused", "a greeting needs a name")
    client.submit("wait", [1, "x" * 100_000], "3")
    report, (answer,) = await client.until_report("3")
    assert answer["payload"]["data"] == [1, "x" * 100_000]
    await client.close()
