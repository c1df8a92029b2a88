"""What was written for the reference daemon works unchanged: its handlers, its informer, its clients, its file."""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.live import BESTER, DEADLINE_S, LiveServer, Process, RawClient, short_directory


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        (length,) = struct.unpack("<I", await reader.readexactly(4))
        return await reader.readexactly(length)


def frame(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


@asynccontextmanager
async def reference_handler(path: Path, answer: Callable[[bytes], bytes]) -> AsyncIterator[None]:
    """A handler as the reference has them: one connection a message, `data` in, a reply out."""

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


async def test_the_reference_kind(directory: Path) -> None:
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


APART = """
[server]
name = "s1"
data_dir = "data"
[native]
unix = "native.sock"
tcp4 = "127.0.0.1:0"
[accounts]
auth = "open"
[informer]
unix = "bInformer"
"""


async def test_the_reference_kind_with_broker_bridge_and_handler_apart(directory: Path) -> None:
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
