"""Path of one message through the floor in one process, without sockets: the same job as that of `path_rig`, and the
same meter. Stages that the floor does not have are never entered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgpack  # type: ignore[import-untyped]  # it ships no types

from tests.benchmarks.floor_server import Client, Floor
from tests.benchmarks.path_rig import (
    BRIDGE_IN,
    CONNECTIONS,
    DECODE,
    ENCODE,
    FLUSH,
    FRAMES,
    Meter,
    Reading,
    batches_of,
    echo,
    frame,
)


class _Written(Reading, asyncio.Transport):
    """Socket of a client, which takes everything at once."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes for the client."""
        self.written.append(data)


class FloorRig:
    """The floor's server; `round`, `sent` and `answer` are as those of `path_rig.Rig`."""

    def __init__(self, batch: int, body_bytes: int, meter: Meter) -> None:
        self.batch = batch
        self.sent = 0
        self.answer: Callable[[list[bytes]], list[bytes]] = self._answers
        self._meter = meter
        self._floor = Floor(lambda: None)
        self._sockets = [_Written() for _ in range(CONNECTIONS)]
        self._clients = [Client(self._floor) for _ in self._sockets]
        for client, socket in zip(self._clients, self._sockets, strict=True):
            client.connection_made(socket)
            client.data_received(frame({"header": {"scope": "client"}}))
        self._input = batches_of(batch, body_bytes)

    @property
    def good(self) -> int:
        """Number of good reports that clients have got, logins among them."""
        return sum(socket.good for socket in self._sockets)

    def round(self) -> None:
        """Let every client send a batch, and the handler answer all of it, until every report is written."""
        meter, floor = self._meter, self._floor
        for client, data in zip(self._clients, self._input, strict=True):
            meter.enter(BRIDGE_IN)
            client.data_received(data)
            meter.leave()
        self.sent += self.batch * CONNECTIONS
        meter.enter(ENCODE)
        requests = [floor.encode()]
        meter.leave()
        replies = self.answer(requests)
        meter.enter(DECODE)
        rows = msgpack.unpackb(replies[0])
        meter.leave()
        meter.enter(FRAMES)
        floor.answer(rows)
        meter.leave()
        meter.enter(FLUSH)
        floor.write()
        meter.leave()

    def _answers(self, frames: list[bytes]) -> list[bytes]:
        for socket in self._sockets:
            socket.read_all()
        return echo(frames)
