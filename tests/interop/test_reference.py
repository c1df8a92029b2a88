"""Programs written for the reference daemon work unchanged: handlers, informer, clients, configuration file."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.live import BESTER, DEADLINE_S, LiveServer, Process, RawClient, head, short_directory


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        (length,) = struct.unpack("<I", await reader.readexactly(4))
        return await reader.readexactly(length)


def frame(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


@asynccontextmanager
async def reference_handler(path: Path, answer: Callable[[bytes], bytes]) -> AsyncIterator[None]:
    """A handler in the reference's style: one connection a message, `data` in, a reply out."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await read_frame(reader)
        for byte in frame(answer(data)):
            writer.write(bytes([byte]))
        await writer.drain()
        assert await reader.read() == b""  # the server closes
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()


def reply(command: str, targets: Any, data: bytes, status: str = "0") -> bytes:
    head = json.dumps({"status": status, "command": {"type": command, "data": targets}}).encode()
    return b'{"header":' + head + b',"data":' + data + b"}"


@asynccontextmanager
async def besterd(directory: Path, **types: Path) -> AsyncIterator[Process]:
    """Our server on the reference's own configuration file."""
    conf = {
        "network": {
            "types": ["tcp4", "unix"],
            "tcp4": {"address": "127.0.0.1", "port": "0"},
            "unix": {"address": str(directory / "native.sock")},
        },
        "handlers": {
            "availableTypes": list(types),
            "typeMap": {
                name: {"handlerBinary": "/nonexistent/handler", "unixDomainSocketPath": str(path)}
                for name, path in types.items()
            },
        },
        "database": {"type": "redis", "redis": {"address": "127.0.0.1", "port": "6379"}},
        "admin": {"info": {"email": "admin@example"}},
    }
    (directory / "server.conf").write_text(json.dumps(conf))
    adding = await Process.start("sh", "-c", f"printf secret | {BESTER} user add --password-stdin bob", cwd=directory)
    await adding.process.wait()
    assert await adding.end() == 0, adding.lines
    process = await Process.start(BESTER, "up", "--besterd", "server.conf", cwd=directory)
    try:
        await process.says(" serves ")
        for name in types:
            await process.says(f"types=['{name}']")
        yield process
    finally:
        assert await process.end() == 0, process.lines


async def connect(path: Path) -> RawClient:
    return RawClient(*await asyncio.open_unix_connection(path))


@pytest.fixture
async def directory() -> AsyncIterator[Path]:
    async with short_directory() as path:
        yield path


async def test_handlers_of_the_reference(directory: Path) -> None:
    seen: list[bytes] = []

    def chat(data: bytes) -> bytes:
        seen.append(data)
        return reply("sendClients", ["bob", "bob"], b"[0.1, -0,1e400]")

    def broken(data: bytes) -> bytes:
        return str(json.loads(data)["say"]).encode()

    async with (
        reference_handler(directory / "chat.sock", chat),
        reference_handler(directory / "broken.sock", broken),
        besterd(directory, chat=directory / "chat.sock", broken=directory / "broken.sock"),
    ):
        bob = await connect(directory / "native.sock")
        bob.send(
            b'{"header":{"scope":"client","authentication":{"username":"bob","password":"secret"}},'
            b'"payload":{"data":null,"type":"dummy"}}'
        )
        assert await bob.receive_bytes() == (
            b'{"header":{"messageType":"statusReport","status":"good"},"payload":{"id":"auth_special","max_frame":1048576}}'
        )
        bob.send(b'{"header":null,"payload":{"data":{"a" :0.10},"id":"1","type":"chat"}}')
        for _ in range(2):  # named twice, delivered twice
            assert b'"data":[0.1, -0,1e400]' in await bob.receive_bytes()
        assert (await bob.receive())["header"]["status"] == "good"
        assert seen == [b'{"a" :0.10}']
        for number, (said, reason) in enumerate(
            [
                ('{"header":{"status":"1"}}', "handler-failed"),
                ("", None),
                ("[]", None),
                ('{"header":{"status":"0"},"data":1}', None),
                ('{"header":{"status":"0","command":{"type":"fly","data":["bob"]}},"data":1}', "unknown-command"),
                ('{"header":{"status":"0","command":{"type":"sendClients","data":[1]}},"data":1}', None),
            ]
        ):
            bob.submit("broken", {"say": said}, f"b{number}")
            report, before = await bob.until_report(f"b{number}")
            assert report["header"]["status"] == "bad" and not before, (said, report)
            assert report["payload"]["reason"] == reason or reason is None, (said, report)
        bob.submit("broken", {"say": reply("sendHandler", "chat", b'"on"').decode()}, "pipe")
        report, before = await bob.until_report("pipe")
        assert report["header"]["status"] == "good" and len(before) == 2 and seen[-1] == b'"on"'
        await bob.close()


async def test_the_informer(directory: Path) -> None:
    async with (
        reference_handler(directory / "chat.sock", lambda data: b""),
        besterd(directory, chat=directory / "chat.sock"),
    ):
        bob = await connect(directory / "native.sock")
        bob.send(
            {
                "header": {"scope": "client", "authentication": {"username": "bob", "password": "secret"}},
                "payload": {"data": None, "type": "dummy"},
            }
        )
        await bob.receive()
        asking = await connect(directory / "bInformer")
        for question, answer in (
            ({"command": {"type": "listClients"}}, {"data": ["bob"], "status": "0"}),
            ({"command": {"type": "isClient", "data": "bob"}}, {"data": True, "status": "0"}),
            ({"command": {"type": "isClient", "data": "eve"}}, {"data": False, "status": "0"}),
            ({"command": {"type": "dance"}}, {"data": None, "status": "1"}),
            ({}, {"status": "1"}),
            (b"", {"status": "1"}),
            (b"{", {"status": "1"}),
            ({"command": {"type": "listClients"}}, {"data": ["bob"], "status": "0"}),
        ):
            asking.send(question)
            assert await asking.receive() == answer, question
        asking.send({"command": {"type": "serverInfo"}})
        info = (await asking.receive())["data"]
        assert info["clientCount"] == "1" and info["adminInfo"] == {"email": "admin@example"}
        assert any(row["address"].startswith("tcp4://127.0.0.1:") for row in info["listeners"].values())
        asking.send({"command": {"type": "quit"}})
        assert await asking.receive() == {"data": None, "status": "0"}
        assert await asking.at_end()
        await asking.close()
        await bob.close()


def conf_of(port: int, *, binary: str = "", **more: Any) -> dict[str, Any]:
    """The file of a server with one handler, `chat`, on chat.sock."""
    return {
        "network": {"types": ["tcp4"], "tcp4": {"address": "127.0.0.1", "port": str(port)}},
        "handlers": {
            "availableTypes": ["chat"],
            "typeMap": {"chat": {"handlerBinary": binary, "unixDomainSocketPath": "chat.sock"}},
        },
        "admin": {"info": "x"},
        **more,
    }


@asynccontextmanager
async def on_file(directory: Path, conf: dict[str, Any]) -> AsyncIterator[LiveServer]:
    """Our server on a file of this kind."""
    (directory / "server.conf").write_text(json.dumps(conf))
    process = await Process.start(BESTER, "up", "--besterd", "server.conf", cwd=directory)
    try:
        line = await process.says(" serves ")
        await process.says("types=['chat']")
        yield LiveServer(directory, [process], line.partition(" serves ")[2].strip())
    finally:
        status = await process.end()
    assert status == 0, process.lines


async def said_by_server(to: LiveServer, type_: str, data: Any, **header: Any) -> dict[str, Any]:
    """Send one message as another server, with no id, and return the answer; then comes the end."""
    peer = await RawClient.connect(to)
    peer.send({"header": {"scope": "server", **header}, "payload": {"data": data, "type": type_}})
    answer: dict[str, Any] = await peer.receive()
    assert await peer.at_end()
    await peer.close()
    return answer


OPEN_ACCOUNTS = {"accounts": {"auth": "open"}}


async def test_two_servers_federate_on_the_references_own_file(directory: Path) -> None:
    """Outgoing to host:port and incoming from any server, as in the reference; the start logs the consequences."""
    reachable = {"federation": {"reachable": ["127.0.0.1"]}}
    async with short_directory() as there:
        target: list[str] = []
        async with (
            reference_handler(there / "chat.sock", lambda data: reply("sendClients", ["bob"], data)),
            reference_handler(directory / "chat.sock", lambda data: reply("sendServers", target, data)),
            on_file(there, conf_of(0, bester={"server": {"name": "far"}, **OPEN_ACCOUNTS})) as far,
            on_file(directory, conf_of(0, bester={"server": {"name": "near"}, **reachable, **OPEN_ACCOUNTS})) as near,
        ):
            target.append(f"127.0.0.1:{far.port}")
            bob = await RawClient.login(far, "bob")
            ann = await RawClient.login(near, "ann")
            ann.submit("chat", {"n": 1}, "m")
            report, _ = await ann.until_report("m")
            assert report["header"]["status"] == "good", report
            message = await bob.receive()
            assert (message["payload"]["type"], message["payload"]["data"]) == ("chat", {"n": 1})
            answer = await said_by_server(far, "chat", "from besterd")
            assert answer["header"] == {"messageType": "statusReport", "status": "good"}
            assert (await bob.receive())["payload"]["data"] == "from besterd"
            assert await said_by_server(far, "dummy", None) == {
                "header": {"status": "0"},
                "payload": {"data": None, "id": None, "type": "dummy"},
            }
            for client in (ann, bob):
                await client.close()
            await near.processes[0].says("any server may send messages here")


async def test_listed_servers_alone_may_send_and_receive(directory: Path) -> None:
    closed = {"federation": {"accept": "listed"}, "servers": {"far": {"native": "127.0.0.3:1"}}, **OPEN_ACCOUNTS}
    async with (
        reference_handler(directory / "chat.sock", lambda data: reply("sendServers", ["127.0.0.2:1"], data)),
        on_file(directory, conf_of(0, bester=closed)) as server,
    ):
        ann = await RawClient.login(server, "ann")
        ann.submit("chat", 1, "m")
        report, _ = await ann.until_report("m")
        assert report["payload"]["reason"] == "not-allowed"
        await ann.close()
        assert not any("any server may send" in line for line in server.processes[0].lines)


HANDLER = """#!{python}
import json, os, socket, struct, sys
path = sys.argv[1]
if os.path.exists(path):
    os.unlink(path)
listening = socket.socket(socket.AF_UNIX)
listening.bind(path)
listening.listen(1)
while True:
    connection, _ = listening.accept()
    data = connection.recv(65536)[4:]
    if not data:
        sys.exit("a connection without a message")
    who = json.dumps("{who}").encode()
    answer = b'{{"header":{{"status":"0","command":{{"type":"sendClients","data":["bob"]}}}},"data":' + who + b"}}"
    connection.sendall(struct.pack("<I", len(answer)) + answer)
    connection.close()
"""
"""A handler in the reference's style: a new process takes the path of the socket, and a connection without data
ends the process.
"""


def program(directory: Path, who: str) -> Path:
    """Write such a handler, which answers with its own name."""
    path = directory / who
    path.write_text(HANDLER.format(python=sys.executable, who=who))
    path.chmod(0o755)
    return path


async def answers(client: RawClient) -> str:
    """Return which handler answers."""
    client.submit("chat", 1, "m")
    report, before = await client.until_report("m")
    return str(before[0]["payload"]["data"]) if before else str(report["payload"].get("reason"))


async def test_handler_that_runs_already_is_not_started(directory: Path) -> None:
    ours, theirs = program(directory, "ours"), program(directory, "theirs")
    running = await Process.start(str(theirs), "chat.sock", cwd=directory)
    async with asyncio.timeout(DEADLINE_S):
        while not (directory / "chat.sock").exists():
            await asyncio.sleep(0.01)
    async with on_file(directory, conf_of(0, binary=str(ours), bester=OPEN_ACCOUNTS)) as server:
        line = await server.processes[0].says("is not started")
        assert str(directory / "chat.sock") in line
        bob = await RawClient.login(server, "bob")
        assert [await answers(bob) for _ in range(3)] == ["theirs"] * 3
        assert await running.end(9) == -9
        async with asyncio.timeout(DEADLINE_S):
            while await answers(bob) != "ours":
                await asyncio.sleep(0.05)
        await bob.close()


async def test_handler_that_does_not_run_is_started_despite_a_stale_socket(directory: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(directory / "chat.sock"))
    left.close()  # the file stays
    ours = program(directory, "ours")
    async with on_file(directory, conf_of(0, binary=str(ours), bester=OPEN_ACCOUNTS)) as server:
        bob = await RawClient.login(server, "bob")
        async with asyncio.timeout(DEADLINE_S):
            while await answers(bob) != "ours":
                await asyncio.sleep(0.05)
        await bob.close()
        assert not any("is not started" in line for line in server.processes[0].lines)


APART = head(native='unix = "native.sock"\n', auth="open") + '[informer]\nunix = "bInformer"\n'


async def test_handlers_of_the_reference_with_broker_bridge_and_handler_apart(directory: Path) -> None:
    async with reference_handler(
        directory / "chat.sock", lambda data: reply("sendClients", ["bob"], b"[1e400, " + data + b"]")
    ):
        server = await LiveServer.start(directory, APART, "apart")
        program = (sys.executable, "-m", "bester.handlers", "--socket", "chat.sock", "--types", "chat")
        handler = await Process.start(*program, "--fabric", server.fabric, cwd=directory)
        try:
            await server.has_type("chat")
            bob = await connect(directory / "native.sock")
            bob.send(
                {
                    "header": {"scope": "client", "authentication": {"username": "bob", "password": "x"}},
                    "payload": {"data": None, "type": "dummy"},
                }
            )
            await bob.receive()
            bob.send(b'{"header":null,"payload":{"data":-0.10,"id":"1","type":"chat"}}')
            assert b'"data":[1e400, -0.10]' in await bob.receive_bytes()
            assert (await bob.receive())["header"]["status"] == "good"
            asking = await connect(directory / "bInformer")
            asking.send({"command": {"type": "listClients"}})
            assert await asking.receive() == {"data": ["bob"], "status": "0"}
            await asking.close()
            await bob.close()
        finally:
            assert await handler.end() == 0, handler.lines
            assert await server.stop() == [0, 0]
