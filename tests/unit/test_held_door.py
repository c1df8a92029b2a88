"""A listening socket that accepts nobody for a while."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from bester.broker import held_door
from tests.live import DEADLINE_S

ESTABLISHED, SYN_SENT = 1, 2
"""States of a connection, as TCP_INFO has them first."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a door")


def state_of(connection: socket.socket) -> int:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def begun(listener: socket.socket) -> socket.socket:
    connection = socket.socket()
    connection.setblocking(False)
    connection.connect_ex(listener.getsockname())
    return connection


async def test_held_door_lets_in_nobody_until_it_is_open_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held_door.prepare(listener.fileno())
        with begun(listener) as before:
            assert state_of(before) == ESTABLISHED
            inside = listener.accept()[0]
            with inside, begun(listener) as waiting:
                assert held_door.hold(listener.fileno())
                loop = asyncio.get_running_loop()
                assert await asyncio.wait_for(loop.sock_recv(waiting, 1), DEADLINE_S) == b""
                with begun(listener) as late:
                    assert state_of(late) == SYN_SENT
                    inside.send(b"x")
                    assert await asyncio.wait_for(loop.sock_recv(before, 1), DEADLINE_S) == b"x"
                    before.send(b"y")
                    inside.setblocking(False)
                    assert await asyncio.wait_for(loop.sock_recv(inside, 1), DEADLINE_S) == b"y"
                    held_door.let_in(listener.fileno())
                    accepted, who = await asyncio.wait_for(loop.sock_accept(listener), DEADLINE_S)
                    accepted.close()
                    assert who == late.getsockname()
