"""Path of one message through `bester up` in one process: the real bridge and the real broker, without sockets.

Frames of clients go in, REQUESTs come out; a handler's REPLYs go in, frames for the clients come out. A meter is told
where each stage begins and ends: a stage inside another one is counted as itself alone.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgpack  # type: ignore[import-untyped]  # it ships no types

from bester.bridge.bridge import Bridge
from bester.bridge.limits import Limits
from bester.bridge.ports import ClientConnection, Shell
from bester.broker.core.effects import Effects, Link, Verify
from bester.broker.core.router import Router
from bester.broker.core.settings import Settings
from bester.broker.store_requests import Committed
from bester.broker.wire.batches import batches
from bester.broker.wire.messages import OP_OF, VERSION, Confirm, Hello, Message, Reply, Submit
from bester.broker.wire.runs import READ_AS, read, write_run
from tests.stand_in import StandIn

CONNECTIONS = 8
"""Connections of as many users, as in the pipelined job."""
CHUNK_BYTES = 256 * 1024
CREDIT = 1024
TYPE = "echo"
GOOD = b'"status":"good"'

BRIDGE_IN = "bridge in"
BROKER_IN = "broker in"
ENCODE = "encode REQUEST"
DECODE = "decode REPLY"
REPLY = "REPLY to DELIVER"
FRAMES = "DELIVER to frames"
CONFIRM = "confirm"
FLUSH = "flush"
OTHER = "the rig"
STAGES = (BRIDGE_IN, BROKER_IN, ENCODE, DECODE, REPLY, FRAMES, CONFIRM, FLUSH)
_BROKER_STAGES: dict[type[Any], str] = {Submit: BROKER_IN, Reply: REPLY, READ_AS[Reply]: REPLY, Confirm: CONFIRM}


class Meter(Protocol):
    """A measure of stages."""

    def enter(self, stage: str) -> None:
        """Begin a stage; the stage around it, if any, pauses."""

    def leave(self) -> None:
        """End the stage that was entered last; the one around it goes on."""


class NoMeter:
    """Measures nothing, and costs next to nothing."""

    def enter(self, stage: str) -> None:
        """Begin nothing."""

    def leave(self) -> None:
        """End nothing."""


class Reading:
    """Client that reads what its server has `written`, and counts the good reports."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes | bytearray | memoryview] = []
        self._good = 0

    @property
    def good(self) -> int:
        """Number of good reports that the client has got."""
        self.read_all()
        return self._good

    def read_all(self) -> None:
        """Read what was written, as the client does."""
        self._good += b"".join(self.written).count(GOOD)
        self.written.clear()


class RigConnection(Reading, StandIn):
    """Client connection whose socket takes everything at once."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self._bridge = bridge

    def flush(self) -> bool:
        """Take every frame; return False: nothing is left."""
        while chunk := self.out.take(CHUNK_BYTES):
            self.written.append(chunk)
            self._bridge.on_bytes_sent(self, self.out.on_sent())
        return False

    def abort(self, why: str) -> None:
        """Fail: no connection of this rig is ever cut."""
        raise AssertionError(f"the bridge cut a connection: {why}")


class _MeteredBridge(Bridge):
    """Bridge whose frames that waited for their sender's turn are counted where they are handled."""

    meter: Meter = NoMeter()

    def _handle_waiting(self, connection: ClientConnection, ration: int) -> int:
        self.meter.enter(BRIDGE_IN)
        used = super()._handle_waiting(connection, ration)
        self.meter.leave()
        return used


def frame(content: object) -> bytes:
    """Return a frame of the native protocol."""
    body = json.dumps(content, separators=(",", ":")).encode()
    return len(body).to_bytes(4, "little") + body


def batches_of(batch: int, body_bytes: int) -> list[bytes]:
    """Return what each client sends in a round: so many frames, with a body of so many bytes in each."""
    data = {"text": "x" * (body_bytes - len('{"text":""}'))}
    return [
        b"".join(
            frame({"header": {}, "payload": {"type": TYPE, "data": data, "id": f"{place}-{number}"}})
            for number in range(batch)
        )
        for place in range(CONNECTIONS)
    ]


def echo(frames: list[bytes]) -> list[bytes]:
    """Answer REQUESTs as an echo handler in any language does; attached bodies go back as they came."""
    rows = []
    for row in msgpack.unpackb(frames[0]):
        assert row[0] == _REQUEST, f"not a REQUEST: {row}"
        rows.append([_REPLY, row[1], 0, [["sendClients", [row[4]], row[3]]]])
    return [_pack(rows), *frames[1:]]


class Rig:
    """Bridge and broker in one process; each `round` sends `batch` messages on each connection, and answers them.

    `sent` counts the messages; `answer` stands for handler and clients, which are no part of the path: it makes the
    frames of REPLYs from those of REQUESTs, and may be wrapped.
    """

    def __init__(self, batch: int, body_bytes: int, meter: Meter) -> None:
        self.batch = batch
        self.sent = 0
        self.answer: Callable[[list[bytes]], list[bytes]] = self._answers
        self._meter: Meter = NoMeter()
        self._to_bridge: list[Message] = []
        self._to_handler: list[Message] = []
        self._soon: deque[Callable[[], None]] = deque()
        self._bridge_link, self._handler_link = Link("direct", b"0"), Link("ipc", b"0:handler")
        self._router = Router(Settings("s1.example", open_accounts=True), epoch="e", first_token=1000, now=_now())
        self._bridge = _MeteredBridge(Limits(), Shell(time.monotonic, self._soon.append))
        self._connections = [RigConnection(self._bridge) for _ in range(CONNECTIONS)]
        self._begin()
        self._input = batches_of(batch, body_bytes)
        self._bridge.meter = self._meter = meter

    def _begin(self) -> None:
        """Introduce bridge, handler and users to the broker."""
        self._to_broker([Hello(VERSION, "bridge", "bench", {"epoch": "e"})], self._bridge_link)
        self._bridge.connect(self)
        hello = Hello(VERSION, "handler", "bench", {"types": [TYPE], "credit": CREDIT})
        self._to_broker([hello], self._handler_link)
        self._turn()
        if not self._bridge.is_ready:
            self._bridge.on_link_ready()
        for place, connection in enumerate(self._connections):
            assert self._bridge.admit(connection, "127.0.0.1")
            login = {"scope": "client", "authentication": {"username": f"user{place}", "password": "p"}}
            self._bridge.on_bytes(connection, frame({"header": login, "payload": {"data": None, "type": "dummy"}}))
            self._turn()
        self._to_handler.clear()
        assert self.good == CONNECTIONS, "not every login was accepted"

    @property
    def good(self) -> int:
        """Number of good reports that clients have got, logins among them."""
        return sum(connection.good for connection in self._connections)

    def round(self) -> None:
        """Let every connection send a batch, and the handler answer all of it, until every report is written."""
        meter, on_bytes = self._meter, self._bridge.on_bytes
        for connection, data in zip(self._connections, self._input, strict=True):
            meter.enter(BRIDGE_IN)
            on_bytes(connection, data)
            meter.leave()
        self.sent += self.batch * CONNECTIONS
        self._turn()
        while self._to_handler:
            requests, self._to_handler = self._to_handler, []
            meter.enter(ENCODE)
            run = write_run(requests)
            encoded = list(batches(requests)) if run is None else [run]
            meter.leave()
            for frames in encoded:
                replies = self.answer(frames)
                meter.enter(DECODE)
                decoded = read(replies)
                meter.leave()
                self._to_broker(decoded, self._handler_link)
                self._turn()

    def _answers(self, frames: list[bytes]) -> list[bytes]:
        for connection in self._connections:
            connection.read_all()
        return echo(frames)

    # --- the bridge's way to the broker ---

    def send(self, message: Message) -> bool:
        """Take a message of the bridge."""
        self._to_broker([message], self._bridge_link)
        return True

    def send_all(self, messages: Sequence[Message]) -> int:
        """Take messages of the bridge."""
        self._to_broker(messages, self._bridge_link)
        return len(messages)

    def give_up(self) -> None:
        """Raise: there is always room."""
        raise AssertionError("the broker takes every message")

    def _to_broker(self, messages: Sequence[Any], link: Link) -> None:
        meter = self._meter
        meter.enter(_BROKER_STAGES.get(type(messages[0]), OTHER))
        effects = self._router.receive_all(link, messages, _now())
        meter.leave()
        self._carry_out(effects)

    def _carry_out(self, effects: Effects) -> None:
        for link, messages in effects.messages.items():
            (self._to_bridge if link == self._bridge_link else self._to_handler).extend(messages)
        if effects.writes:
            self._carry_out(self._router.on_committed(effects.writes, Committed(ok=True), _now()))
        for call in effects.calls:
            if isinstance(call, Verify):
                self._carry_out(self._router.on_verified(call.link, call.session, call.user, None, _now()))

    def _turn(self) -> None:
        """Run turns of the loop until nothing is left to do in this process."""
        meter = self._meter
        while self._to_bridge or self._soon:
            messages, self._to_bridge = self._to_bridge, []
            if messages:
                meter.enter(FRAMES)
                self._bridge.receive(messages)
                meter.leave()
            for _ in range(len(self._soon)):
                call = self._soon.popleft()
                meter.enter(FLUSH)
                call()
                meter.leave()


def _now() -> float:
    return time.monotonic()


def _op(kind: str) -> int:
    return next(op for message, op in OP_OF.items() if message.__name__ == kind)


_REQUEST, _REPLY = _op("Request"), _op("Reply")
_pack = msgpack.Packer(autoreset=True).pack
