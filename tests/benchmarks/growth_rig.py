"""Send one message at a time through the real bridge and broker in one process, beside many types, workers or users.

One message at a time, so that the figures tell of tables and look-ups, not of batches: more workers mean smaller
batches for each, which is no growth of what a message costs by itself.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types
import msgspec

from bester.bridge.bridge import Bridge
from bester.bridge.limits import Limits
from bester.bridge.ports import Shell
from bester.broker.core.effects import Effects, Link, Verify
from bester.broker.core.router import Router
from bester.broker.core.settings import Settings
from bester.broker.store_requests import Committed
from bester.broker.verifying import HASHER
from bester.broker.wire.batches import batches
from bester.broker.wire.messages import OP_OF, VERSION, Hello, Message, Open, Reply, Request
from bester.broker.wire.runs import read, write_run
from tests.benchmarks.path_rig import RigConnection, frame
from tests.benchmarks.programs import BenchmarkError

BODY_BYTES = 100
CREDIT = 256
CHECKS = 10
"""Checks of a password, each of some tens of ms."""
OPENS = 500
"""Sessions that a bridge announces in one batch."""
WARM = 400
"""Messages before measuring, so that the interpreter's specialized code is warm."""
_BRIDGE = Link("direct", b"0")


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """µs of CPU a message at one size."""

    size: int
    cpu_us: float


class GrowthRig:
    """Bridge and broker with so many users logged in, and so many workers that all serve so many types; each message
    goes to `targets` users, by one sendClients. `good` counts the good reports."""

    def __init__(self, *, users: int = 1, types: int = 1, workers: int = 1, targets: int = 1) -> None:
        self._to_bridge: list[Message] = []
        self._to_workers: dict[Link, list[Any]] = {}
        self._soon: deque[Callable[[], None]] = deque()
        self._router = Router(Settings("s1.example", open_accounts=True), epoch="e", first_token=1000, now=_now())
        self._bridge = Bridge(Limits(), Shell(time.monotonic, self._soon.append))
        self._types = [f"type{number}" for number in range(types)]
        self._names = [f"user{number}" for number in range(users)]
        self._targets = self._names[:targets] if targets > 1 else None
        self._pack = msgpack.Packer(autoreset=True).pack
        self._sent = 0
        self._begin(workers)

    def _begin(self, workers: int) -> None:
        self._to_broker([Hello(VERSION, "bridge", "bench", {"epoch": "e"})], _BRIDGE)
        self._bridge.connect(self)
        for number in range(workers):
            hello = Hello(VERSION, "handler", f"w{number}", {"types": self._types, "credit": CREDIT})
            self._to_broker([hello], Link("ipc", b"h%d" % number))
        self._turn()
        if not self._bridge.is_ready:
            self._bridge.on_link_ready()
        self._connections = []
        for number, name in enumerate(self._names):
            connection = RigConnection(self._bridge)
            assert self._bridge.admit(connection, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
            login = {"scope": "client", "authentication": {"username": name, "password": "p"}}
            self._bridge.on_bytes(connection, frame({"header": login, "payload": {"data": None, "type": "dummy"}}))
            self._turn()
            self._connections.append(connection)
        self._to_workers.clear()
        if self.good != len(self._names):
            raise BenchmarkError(f"{len(self._names)} users logged in, and {self.good} were let in")
        data = {"text": "x" * (BODY_BYTES - len('{"text":""}'))}
        self._frames = [
            frame({"header": {}, "payload": {"type": type_, "data": data, "id": "1"}}) for type_ in self._types
        ]

    @property
    def good(self) -> int:
        """Number of good reports that clients have got, logins among them."""
        return sum(connection.good for connection in self._connections)

    def run(self, messages: int) -> float:
        """Send so many messages, one after another, of all users and types in turn; return µs of CPU a message, without
        the handler's."""
        before, spent_ns = self.good, 0
        for _ in range(messages):
            number, self._sent = self._sent, self._sent + 1
            connection = self._connections[number % len(self._connections)]
            data = self._frames[number % len(self._frames)]
            begun = time.thread_time_ns()
            self._bridge.on_bytes(connection, data)
            self._turn()
            spent_ns += time.thread_time_ns() - begun
            while self._to_workers:
                spent_ns += self._answer_all()
        if self.good - before != messages:
            raise BenchmarkError(f"{messages} messages were sent, and {self.good - before} reported good")
        return spent_ns / messages / 1000

    def _answer_all(self) -> int:
        """Let the workers answer; return the ns of CPU of the server's part."""
        waiting, self._to_workers = self._to_workers, {}
        spent_ns = 0
        for link, requests in waiting.items():
            begun = time.thread_time_ns()
            run = write_run(requests)
            encoded = list(batches(requests)) if run is None else [run]
            spent_ns += time.thread_time_ns() - begun
            for frames in encoded:
                replies = self._answers(frames)
                begun = time.thread_time_ns()
                self._to_broker(read(replies), link)
                self._turn()
                spent_ns += time.thread_time_ns() - begun
        return spent_ns

    def _answers(self, frames: list[bytes]) -> list[bytes]:
        rows = []
        for row in msgpack.unpackb(frames[0]):
            assert row[0] == OP_OF[Request], f"not a REQUEST: {row}"
            rows.append([OP_OF[Reply], row[1], 0, [["sendClients", self._targets or [row[4]], row[3]]]])
        return [self._pack(rows), *frames[1:]]

    # --- the bridge's way to the broker ---

    def send(self, message: Message) -> bool:
        """Take a message of the bridge."""
        self._to_broker([message], _BRIDGE)
        return True

    def send_all(self, messages: Sequence[Message]) -> int:
        """Take messages of the bridge."""
        self._to_broker(messages, _BRIDGE)
        return len(messages)

    def give_up(self) -> None:
        """Raise: there is always room."""
        raise AssertionError("the broker takes every message")

    def _to_broker(self, messages: Sequence[Any], link: Link) -> None:
        self._carry_out(self._router.receive_all(link, messages, _now()))

    def _carry_out(self, effects: Effects) -> None:
        for link, messages in effects.messages.items():
            to = self._to_bridge if link == _BRIDGE else self._to_workers.setdefault(link, [])
            to.extend(messages)
        if effects.writes:
            self._carry_out(self._router.on_committed(effects.writes, Committed(ok=True), _now()))
        for call in effects.calls:
            if isinstance(call, Verify):
                self._carry_out(self._router.on_verified(call.link, call.session, call.user, None, _now()))

    def _turn(self) -> None:
        while self._to_bridge or self._soon or self._router.has_fan_out:
            messages, self._to_bridge = self._to_bridge, []
            if messages:
                self._bridge.receive(messages)
            for _ in range(len(self._soon)):
                self._soon.popleft()()
            if self._router.has_fan_out:
                self._carry_out(self._router.fan_out(_now()))


def _now() -> float:
    return time.monotonic()


def series(key: str, sizes: Sequence[int], messages: int, repeats: int, **fixed: int) -> list[Point]:
    """Return the cost of a message at each size of one parameter of the rig; the least of the repeats, which the sizes
    take in turn: other work of the machine only ever adds."""
    rigs = {size: GrowthRig(**{**fixed, key: size}) for size in sizes}
    counts = {size: max(messages // size, 3) if key == "targets" else messages for size in sizes}
    for size, rig in rigs.items():
        rig.run(min(WARM, counts[size]))
    gc.collect()
    gc.freeze()
    found: dict[int, list[float]] = {size: [] for size in sizes}
    try:
        for _ in range(repeats):
            for size, rig in rigs.items():
                found[size].append(rig.run(counts[size]))
    finally:
        gc.unfreeze()
    return [Point(size, min(costs)) for size, costs in found.items()]


def costs_of_sessions(count: int = 10_000) -> dict[str, float]:
    """Return µs of CPU of a password's check, and of a session that a bridge announces to one more broker."""
    stored = HASHER.hash("secret")
    begun = time.process_time()
    for _ in range(CHECKS):
        HASHER.verify(stored, "secret")
    check = (time.process_time() - begun) / CHECKS
    link = Link("ipc", b"1")
    router = Router(Settings("s1.example", open_accounts=True), epoch="e", first_token=1, now=_now())
    router.receive_all(link, [Hello(VERSION, "bridge", "bench", {"epoch": "e"})], _now())
    opens = [Open(number, f"user{number}") for number in range(1, count + 1)]
    begun = time.process_time()
    for start in range(0, count, OPENS):
        router.receive_all(link, opens[start : start + OPENS], _now())
    return {"password": check * 1e6, "announced": (time.process_time() - begun) / count * 1e6}
