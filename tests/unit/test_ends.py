"""Ends of connections that come together are handled over several turns, and make room when it is needed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bester.bridge.connection import Connection
from bester.bridge.ends import MOST_AT_ONCE, Ends
from bester.broker.layer_turns import TURN_S
from tests.e2e.test_websocket import Below
from tests.unit.bridge_stand import Scene
from tests.unit.test_layer_turns import Loop

LOOK_S = TURN_S / 40
"""Of the clock: the only thing here that takes time."""


class Transport(Below):
    """A transport of a peer at an address."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address

    def get_extra_info(self, name: str, default: object = None) -> object:
        return (self._address, 1) if name == "peername" else default

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Door:
    """A bridge, and connections that come to it."""

    def __init__(self, **limits: int) -> None:
        self.scene = Scene(**limits)
        self.loop = Loop(LOOK_S)
        self._ends = Ends(self.loop.turns)

    def come(self, address: str = "192.0.2.1") -> tuple[Connection, Transport]:
        """Return a new connection with its transport."""
        connection, transport = (
            Connection(self.scene.bridge, asyncio.get_running_loop(), self._ends),
            Transport(address),
        )
        connection.connection_made(transport)  # type: ignore[arg-type]  # a stand-in
        return connection, transport

    def has_refused(self, transport: Transport) -> bool:
        """Return whether there was no room for a connection."""
        return b"overloaded" in transport.written

    @property
    def number(self) -> int:
        """Number of connections that the bridge knows."""
        return self.scene.bridge.connections


@pytest.mark.parametrize("is_lost", [True, False])
async def test_crowd_that_leaves_at_once_is_handled_over_several_turns(is_lost: bool) -> None:
    door = Door()
    crowd = [door.come() for _ in range(500)]
    for connection, _ in crowd:
        if is_lost:
            connection.connection_lost(None)
        else:
            assert connection.eof_received()
    turns = 0
    while door.loop.calls:
        assert door.loop.turn() <= 3 * TURN_S
        turns += 1
    assert turns >= 5
    door.scene.turn()
    assert not is_lost or door.number == 0
    assert is_lost or all(transport.closed for _, transport in crowd)


async def test_one_that_leaves_is_handled_at_once() -> None:
    door = Door()
    connection, _ = door.come()
    connection.connection_lost(None)
    assert door.number == 0


async def test_end_of_a_stream_is_handled_before_the_loss_of_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door()
    crowd = [door.come() for _ in range(100)]
    told: dict[Any, list[str]] = {}

    def watch(name: str) -> None:
        handle = getattr(door.scene.bridge, name)

        def tell(connection: Any) -> None:
            told.setdefault(connection, []).append(name)
            handle(connection)

        monkeypatch.setattr(door.scene.bridge, name, tell)

    watch("on_peer_ended")
    watch("on_connection_lost")
    for connection, _ in crowd:
        connection.eof_received()
    for connection, _ in crowd:
        connection.connection_lost(None)
    while door.loop.calls:
        door.loop.turn()
    assert door.number == 0
    assert list(told.values()) == [["on_peer_ended", "on_connection_lost"]] * 100


async def test_ends_that_wait_make_room_for_a_connection_that_comes() -> None:
    door = Door(max_connections=50)
    crowd = [door.come() for _ in range(50)]
    for connection, _ in crowd:
        connection.connection_lost(None)
    assert door.number > 0
    newcomers = [door.come()[1] for _ in range(50)]
    assert not any(map(door.has_refused, newcomers))
    assert door.number == 50


async def test_ends_that_make_no_room_are_few_for_each_connection_that_comes() -> None:
    """Those of other addresses make no room where one address is full."""
    door = Door(max_connections_per_address=20)
    full = [door.come() for _ in range(20)]
    assert full
    crowd = [door.come(f"192.0.2.{2 + n // 20}") for n in range(400)]
    for connection, _ in crowd:
        connection.connection_lost(None)
    before = door.number
    door.come()
    assert 0 < before - door.number <= MOST_AT_ONCE
