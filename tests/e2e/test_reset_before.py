"""Connections that their peers have reset before the server accepts them: nobody knows any more whose they are."""

from __future__ import annotations

import json
import signal
import socket
import struct
from pathlib import Path
from typing import Any

from tests.e2e.test_tls import serving, tls_of
from tests.live import RawClient


def reset(host: str, port: int, data: bytes) -> None:
    """Send data on a connection, and reset the connection."""
    with socket.create_connection((host, port)) as peer:
        peer.sendall(data)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def framed(frame: Any) -> bytes:
    body = json.dumps(frame).encode()
    return struct.pack("<I", len(body)) + body


async def test_peer_without_an_address_is_none_of_this_machine(tmp_path: Path) -> None:
    """It counted as a peer on a Unix socket: its wrong passwords were theirs, and the log named it so."""
    first = {
        "header": {"scope": "client", "authentication": {"username": "alice", "password": "secret"}},
        "payload": {"type": "echo", "data": "of nobody", "id": "1"},
    }
    async with serving(tmp_path) as (server, _):
        alice = await RawClient.login(server, "alice")
        process, port = server.processes[0], int(tls_of(server).rpartition(":")[2])
        process.send_signal(signal.SIGSTOP)
        reset(server.host, server.port, framed(first))
        reset(server.host, port, b"\x16\x03\x01")
        later = socket.create_connection((server.host, port))
        process.send_signal(signal.SIGCONT)
        later.close()
        await process.says("the other side closed the connection during the TLS handshake")
        alice.submit("echo", "of alice", "2")
        _, before = await alice.until_report("2")
        assert [frame["payload"]["data"] for frame in before] == ["of alice"]
        assert not [line for line in process.lines if "unix" in line]
        await alice.close()
