"""More connections than the server has descriptors: of strangers to an encrypted door, and of handlers and clients.

Where none is left libzmq ends the process at the next connection to an ipc:// door: of `bester status`, or a handler.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from pathlib import Path

import msgpack  # type: ignore[import-untyped]  # msgpack ships no types
import pytest
import zmq

from bester.broker import curve
from tests.e2e.test_endless_message import PAIRS, door
from tests.keyed import KeyedParty
from tests.live import BESTER, DEADLINE_S, Process, head, short_directory

LIMIT = 1024
MOST = LIMIT * 5 // 8
"""Strangers that are there at once: more than have room."""
CONFIG = """[handlers.echo]
app = "bester.handlers.stock.echo:app"
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


async def end_of(connection: socket.socket) -> None:
    """Wait until the other end has closed a connection."""
    async with asyncio.timeout(DEADLINE_S):
        with contextlib.suppress(ConnectionResetError):
            while await asyncio.get_running_loop().sock_recv(connection, 4096):
                pass


async def test_server_outlives_more_connections_than_it_has_descriptors() -> None:
    port = free_port()
    async with short_directory() as directory:
        fabric = f'[fabric]\nlisten = ["ipc://DATA_DIR/fabric.sock", "tcp://127.0.0.1:{port}"]\ncurve = true\n'
        (directory / "bester.toml").write_text(head() + fabric + CONFIG)
        limited = f"ulimit -n {LIMIT}; exec {BESTER} up"
        server = await Process.start("sh", "-c", limited, cwd=directory)
        with contextlib.ExitStack() as strangers:
            try:
                await server.says("'echo'")
                come: list[socket.socket] = []
                for number in range(2 * LIMIT):
                    come.append(strangers.enter_context(socket.socket()))
                    come[-1].setblocking(False)
                    await asyncio.get_running_loop().sock_connect(come[-1], ("127.0.0.1", port))
                    if number >= MOST:  # on a busy machine a flood is faster than a server of so few descriptors
                        await end_of(come[number - MOST])
                status = await Process.start(BESTER, "status", cwd=directory)
                assert await asyncio.wait_for(status.process.wait(), DEADLINE_S) == 0, status.lines
                used = len(os.listdir(Path("/proc", str(server.process.pid), "fd")))
                assert used < LIMIT - LIMIT // 16
                assert "too many connections are in the handshake at once" in "\n".join(server.lines)
                strangers.close()
                async with asyncio.timeout(DEADLINE_S):
                    _, late = await asyncio.open_connection("127.0.0.1", port)
                late.close()
                assert server.process.returncode is None
            finally:
                await server.end()


async def test_clients_leave_descriptors_to_the_handlers_however_many_these_are() -> None:
    async with short_directory() as directory:
        (directory / "bester.toml").write_text(head(auth="open") + CONFIG)
        server = await Process.start("sh", "-c", f"ulimit -n 512; exec {BESTER} up", cwd=directory)
        with zmq.Context() as context, contextlib.ExitStack() as clients:
            try:
                line = await server.says(" serves ")
                port = int(line.rpartition(":")[2])
                await server.says("'echo'")
                for number in range(100):
                    handler = clients.enter_context(context.socket(zmq.DEALER))
                    handler.linger = 0
                    handler.connect(f"ipc://{directory}/data/fabric.sock")
                    hello = [1, 1, "handler", f"slow-{number}", {"types": ["slow"]}]
                    handler.send(msgpack.packb([hello]))
                    assert await asyncio.to_thread(handler.poll, int(DEADLINE_S * 1000)), "no WELCOME"
                refused = 0
                for number in range(420):
                    client = clients.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE_S))
                    login = {"scope": "client", "authentication": {"username": f"u{number}", "password": "x"}}
                    frame = json.dumps({"header": login}).encode()
                    client.sendall(len(frame).to_bytes(4, "little") + frame)
                    length = int.from_bytes(await asyncio.to_thread(client.recv, 4, socket.MSG_WAITALL), "little")
                    answer = json.loads(await asyncio.to_thread(client.recv, length, socket.MSG_WAITALL))
                    refused += answer["payload"].get("reason") == "overloaded"
                assert refused > 0
                status = await Process.start(BESTER, "status", cwd=directory)
                assert await asyncio.wait_for(status.process.wait(), DEADLINE_S) == 0, status.lines
                assert server.process.returncode is None
            finally:
                await server.end()


async def test_door_that_accepts_nobody_parts_from_nobody_who_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a listener is the end of all connections that came by it: of all handlers and servers of the door."""
    async with door() as opened:
        address = "127.0.0.1", opened.port
        handler = KeyedParty(f"tcp://{address[0]}:{address[1]}", PAIRS["honest"], PAIRS["server"].public)
        with contextlib.closing(handler):
            await handler.socket.send(b"one")
            await opened.until(lambda: opened.has_read(1))
            asked: list[int] = []
            monkeypatch.setattr(curve, "is_scarce", lambda descriptor, strangers: not asked.append(descriptor))  # type: ignore[func-returns-value]
            with socket.create_connection(address, DEADLINE_S):
                await opened.until(lambda: asked)
                monkeypatch.setattr(curve, "is_scarce", lambda descriptor, strangers: False)
                async with asyncio.timeout(DEADLINE_S):
                    _, late = await asyncio.open_connection(*address)
                late.close()
            await handler.socket.send(b"two")
            await opened.until(lambda: opened.has_read(2))
            assert (opened.gone, opened.read[0][0]) == ([], opened.read[1][0])
