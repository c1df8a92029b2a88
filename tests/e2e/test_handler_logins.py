"""A handler that decides logins, in real processes: the example of docs/logins.md, faults, keys, and no secret left."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.keyed import KeyedParty, free_port, new_pair, server_key
from tests.live import BESTER, LAYOUTS, LiveServer, Process, RawClient, head, raw_handler, short_directory

PAGE = (Path(__file__).parents[2] / "docs" / "logins.md").read_text(encoding="utf-8")
DEADLINE_S = 60.0
TOML = head()
CHAT = '\n[handlers.chat]\napp = "bester.handlers.stock.chat:app"\n'
SECRET = "xyzzy-and-a-horse"
GOOD = json.dumps({"login": True}).encode()
FAULTS = f"""
import os, time
from bester.handlers import App, HandlerError
app = App(credit=4)

@app.handler("bester.auth")
def decide(message):
    password = message.data["password"]
    what = password.partition(" ")[0]
    if what == "die":
        os._exit(3)
    if what == "raise":
        raise ValueError(password)
    if what == "refuse":
        raise HandlerError(password)
    if what == "nothing":
        return None
    if what == "other":
        return message.send_clients(["root"], {{"login": True}})
    if what == "several":
        return [message.reply({{"login": True}})] * 2
    if what == "slow":
        time.sleep(9)
    return message.reply({{"login": password.endswith("{SECRET}")}})
"""


def block(language: str, number: int = 0) -> str:
    """Return a block of code of the page."""
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return found[number]


@contextmanager
def web_application(passwords: dict[str, str]) -> Iterator[str]:
    """Run a web application that knows these users; yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            good = passwords.get(asked["user"]) == asked["password"] and asked["address"] == "127.0.0.1"
            self.send_response(500 if asked["user"] == "broken" else 204 if good else 401)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/login"
        finally:
            server.shutdown()
            thread.join(DEADLINE_S)


@asynccontextmanager
async def running(toml: str, layout: str = "up", **files: str) -> AsyncIterator[LiveServer]:
    """Run a server with these Python files in its directory."""
    async with short_directory() as directory:
        for name, text in files.items():
            (directory / f"{name}.py").write_text(text)
        server = await LiveServer.start(directory, TOML + toml, layout)
        try:
            yield server
        finally:
            await server.stop()


async def login(server: LiveServer, user: str, password: str = SECRET) -> str | None:
    """Return the reason why a login is refused, None where it is good."""
    client = await RawClient.connect(server)
    client.send({"header": {"scope": "client", "authentication": {"username": user, "password": password}}})
    async with asyncio.timeout(DEADLINE_S):
        answer = await client.receive()
    await client.close()
    reason: str | None = answer["payload"].get("reason")
    return reason


async def bester(directory: Path, *arguments: str, status: int = 0) -> list[str]:
    process = await Process.start(BESTER, *arguments, cwd=directory)
    assert await asyncio.wait_for(process.process.wait(), DEADLINE_S) == status, process.lines
    await process.end()
    return process.lines


def commands_below(parent: int) -> list[bytes]:
    """Return the command lines and environments of a process and of those that it has started."""
    found, children = [], [parent]
    while children:
        process = Path(f"/proc/{children.pop()}")
        found += [(process / part).read_bytes() for part in ("cmdline", "environ")]
        for task in (process / "task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return found


async def test_the_example_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    with web_application({"ann": SECRET, "bob": SECRET}) as address:
        monkeypatch.setenv("PEOPLE_URL", address)
        async with running(block("toml") + CHAT, people=block("python")) as server:
            await server.has_type("bester.auth")
            await server.has_type("chat")
            assert [await login(server, user) for user in ("ann", "eve", "broken")] == [
                None, "authentication-failed", "unreachable",
            ]  # fmt: skip
            assert await login(server, "ann", f"not {SECRET}") == "authentication-failed"

            bob = await RawClient.login(server, "bob", SECRET)
            bob.submit("chat", {"to": ["ann", "eve"], "text": "hello"}, "m1")  # ann was here, and eve never
            report, _ = await bob.until_report("m1")
            assert sorted(report["payload"]["recipients"].values()) == ["failed:unknown-user", "queued"], report
            ann = await RawClient.login(server, "ann", SECRET)
            assert (await ann.receive())["payload"]["data"]["text"] == "hello"
            bob.submit("builtin", {"command": {"type": "passwd", "data": {"old": SECRET, "new": "other"}}}, "p")
            frame = await bob.receive()
            assert frame["payload"]["reason"] == "not-allowed", frame

            assert [line.split()[0] for line in await bester(server.directory, "user", "list")][-2:] == ["ann", "bob"]
            await bester(server.directory, "user", "disable", "ann")
            assert await ann.at_end()
            assert await login(server, "ann") == "authentication-failed"
            await bester(server.directory, "user", "enable", "ann")
            assert await login(server, "ann") is None
            assert any("bester.auth" in line and "people" in line for line in await bester(server.directory, "types"))
            document = "\n".join(await bester(server.directory, "types", "--asyncapi"))
            assert '"chat"' in document and "bester.auth" not in document
            await bob.close()
            await ann.close()


async def test_faults_let_nobody_in_and_leave_no_secret() -> None:
    toml = '[handlers.people]\napp = "people:app"\nauth = true\n' + CHAT
    async with running(toml, people=FAULTS) as server:
        await server.has_type("bester.auth")
        log = server.processes[0]
        for what in ("raise", "nothing", "other", "several", "slow"):
            assert await login(server, f"u-{what}", f"{what} {SECRET}") == "unreachable", what
            assert "login-undecided" in await log.says(f"u-{what}")
        assert await login(server, "ann", f"refuse {SECRET}") == "authentication-failed"
        assert await login(server, "ann", f"die {SECRET}") == "unreachable"
        async with asyncio.timeout(DEADLINE_S):  # until its process is started again
            while (reason := await login(server, "ann")) is not None:
                assert reason == "unreachable"
        for number in range(5):
            assert await login(server, "bob", f"guess {number}") == "authentication-failed"
        assert await login(server, "bob") == "try-later"

        assert all(SECRET.encode() not in text for text in commands_below(log.process.pid))
        directory = server.directory
        for arguments in (["dead", "list"], ["status", "--json"], ["types", "--json"]):
            assert SECRET not in "\n".join(await bester(directory, *arguments)), arguments
        (line,) = await bester(directory, "trace", "--last", status=1)
        assert "no message has come" in line  # logins are none
    assert SECRET not in "\n".join(log.lines)


async def test_no_file_has_a_secret() -> None:
    async with short_directory() as directory:
        (directory / "people.py").write_text(FAULTS)
        toml = TOML + '[handlers.people]\napp = "people:app"\nauth = true\n'
        server = await LiveServer.start(directory, toml)
        try:
            await server.has_type("bester.auth")
            assert await login(server, "ann", f"good {SECRET}") is None
            assert await login(server, "bob", f"raise {SECRET}") == "unreachable"
            assert await login(server, "eve", f"die {SECRET}") == "unreachable"
        finally:
            await server.stop()
        files = [path for path in directory.rglob("*") if path.is_file() and path.name != "people.py"]
        files = [path for path in files if path.suffix != ".pyc"]
        assert any(path.name == "accounts.db" for path in files)
        assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


async def test_a_handler_started_by_hand_is_known_by_its_name() -> None:
    toml = '[handlers.people]\napp = "people:app"\nauth = true\n'
    async with running(toml, LAYOUTS[1], people=FAULTS) as server:
        assert await login(server, "ann") == "unreachable"
        fabric = f"ipc://{server.directory}/data/fabric.sock"
        by_hand = [BESTER, "handler", "people:app", "--fabric", fabric]
        stranger = await Process.start(*by_hand, cwd=server.directory, env={"BESTER_NAME": "chat"})
        await stranger.says("auth = true")
        assert await stranger.end() != 0
        process = await Process.start(*by_hand, cwd=server.directory, env={"BESTER_NAME": "people"})
        try:
            await process.says("serves bester.auth")
            assert await login(server, "ann") is None
            client = await RawClient.login(server, "ann", SECRET)
            client.submit("bester.auth", {"user": "ann"}, "m")
            report, _ = await client.until_report("m")
            assert report["payload"]["reason"] == "reserved"
            await client.close()
        finally:
            await process.end()


async def test_a_key_that_grants_the_type_decides_until_it_is_removed() -> None:
    pair, other, port = new_pair(), new_pair(), free_port()
    listen = f'[fabric]\nlisten = ["ipc://DATA_DIR/fabric.sock", "tcp://127.0.0.1:{port}"]\ncurve = true\n'
    parties = block("toml", 1).replace("PUBLIC", pair.public) + (
        f'[fabric.parties.chat]\nkey = "{other.public}"\nrole = "handler"\ntypes = ["chat"]\n'
    )
    async with running(listen + parties) as server:
        key, fabric = server_key(server.directory), f"tcp://127.0.0.1:{port}"
        chat = KeyedParty(fabric, other, key, ["bester.auth"])
        people = KeyedParty(fabric, pair, key, ["bester.auth"])
        try:
            assert (await chat.hello())[1] == "reserved"
            async with raw_handler(f"ipc://{server.directory}/data/fabric.sock", "chat") as plain:
                plain.options["types"] = ["bester.auth"]
                assert (await plain.hello(name="people"))[1] == "reserved"
            assert (await people.hello())[0] == 2

            async def decide(answer: bytes) -> str | None:
                """Return what becomes of a login when the handler gives this answer."""
                attempt = asyncio.create_task(login(server, "ann"))
                request = await people.hear(10)
                assert request[2:3] == ["bester.auth"] and request[4] == "ann"
                await people.say([11, request[1], 0, [["sendClients", ["ann"], answer]]])
                return await attempt

            assert await decide(GOOD) is None
            assert await decide(b'"yes"') == "unreachable"

            pending = asyncio.create_task(login(server, "ann"))
            await people.hear(10)
            (server.directory / "bester.toml").write_text(
                (server.directory / "bester.toml").read_text().replace(pair.public, new_pair().public)
            )
            server.processes[0].send_signal(signal.SIGHUP)
            assert await pending == "unreachable"
            assert (await people.hello())[0] == 5

            text = (server.directory / "bester.toml").read_text()
            (server.directory / "bester.toml").write_text(text.replace('"bester.auth"', '"other"'))
            server.processes[0].send_signal(signal.SIGHUP)
            async with asyncio.timeout(DEADLINE_S):  # until the accounts' passwords count again
                while await login(server, "ann") == "unreachable":
                    pass
            assert await login(server, "ann") in ("authentication-failed", "try-later")
        finally:
            people.close()
            chat.close()
