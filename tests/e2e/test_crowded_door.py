"""Strangers who open more connections to an encrypted door than the server has descriptors.

Where none is left libzmq ends the process at the next connection to an ipc:// door: of `bester status`, or a handler.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path

from tests.live import BESTER, DEADLINE_S, Process, head, short_directory

LIMIT = 1024
CONFIG = """[handlers.echo]
app = "bester.handlers.stock.echo:app"
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def is_open(port: int) -> bool:
    """Return whether somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), DEADLINE_S).close()
    except ConnectionRefusedError:
        return False
    return True


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
                for _ in range(2 * LIMIT):
                    with contextlib.suppress(ConnectionRefusedError):  # the door accepts nobody for a second
                        strangers.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE_S))
                    await asyncio.sleep(0)
                status = await Process.start(BESTER, "status", cwd=directory)
                assert await asyncio.wait_for(status.process.wait(), DEADLINE_S) == 0, status.lines
                used = len(os.listdir(Path("/proc", str(server.process.pid), "fd")))
                assert used < LIMIT - LIMIT // 16
                assert "too many connections are in the handshake at once" in "\n".join(server.lines)
                strangers.close()
                async with asyncio.timeout(DEADLINE_S):
                    while not is_open(port):
                        await asyncio.sleep(0.05)
                assert server.process.returncode is None
            finally:
                await server.end()
