"""The kit's cost: its echo handler beside a hand-written loop over the wire codec, and contracts on beside off.

The handlers are given messages by a script in place of a broker, with batches that are encoded in advance, so that the
handler is the bottleneck. Contracts are checked by the broker, so they are measured with a server and the load
generator. All sides run in turn.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgpack  # type: ignore[import-untyped]  # it ships no types
import msgspec
import zmq

from bester.broker.wire.codec import decode, encode
from bester.broker.wire.messages import OP_OF, Heartbeat, Hello, Message, Reply, Request, Welcome
from tests.benchmarks import sides
from tests.benchmarks.comparison import measure as measure_side
from tests.benchmarks.figures import Job, Part
from tests.benchmarks.kit_handlers import CREDIT
from tests.benchmarks.processes import Running, cpu_s, free_port
from tests.benchmarks.programs import BenchmarkError, load_generator

BATCH = 64
"""Messages of a batch; CREDIT of them are in flight."""
PATIENCE_MS = 30_000
HEARTBEAT_S = 2.0
SCRIPT = str(Path(__file__).with_name("kit_handlers.py"))
HANDLERS: dict[str, Callable[[str], list[str]]] = {
    "loop": lambda endpoint: [sys.executable, SCRIPT, endpoint],
    "kit": lambda endpoint: [
        sys.executable, "-m", "bester.handlers", "bester.handlers.stock.echo:app", "--fabric", endpoint,
    ],
}  # fmt: skip
CONTRACTS = {"off": "kit_handlers:off", "on": "kit_handlers:on"}


class KitPlan(msgspec.Struct, frozen=True):
    """Extent of a measurement: messages of a run, and runs of each side."""

    messages: int = 200_000
    server_messages: int = 50_000
    runs: int = 5


SHORT_KIT = KitPlan(messages=40_000, server_messages=10_000, runs=3)


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Figures of the kit: handlers alone, and contracts on a server."""

    handlers: list[Part]
    contracts: list[Part]


class Script:
    """Plays the broker for one handler: one link, messages of the type echo, every answer checked."""

    def __init__(self, folder: Path, name: str) -> None:
        endpoint = f"ipc://{folder}/{name}.sock"
        self._name = name
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(endpoint)
        self._identity = b""
        self._beat = 0.0
        self.command = HANDLERS[name](endpoint)

    def greet(self) -> None:
        """Welcome the handler."""
        while True:
            self._identity, *frames = self._receive()
            if any(type(message) is Hello for message in decode(frames)):
                break
        self._send(encode([Welcome(1, "bench", {"heartbeat_ms": round(HEARTBEAT_S * 1000)})]))

    def run(self, messages: int, body: bytes) -> float:
        """Send so many messages and take their answers; return the seconds."""
        batches = [self._batch(first, body) for first in range(0, messages, BATCH)]
        reply, left, answered = OP_OF[Reply], messages - messages % BATCH, 0
        batches = batches[: left // BATCH]
        self._send(encode([Heartbeat()]))
        begun = time.perf_counter()
        sent = 0
        while answered < left:
            while sent < len(batches) and sent * BATCH - answered <= CREDIT - BATCH:
                self._send(batches[sent])
                sent += 1
            rows = msgpack.unpackb(self._receive()[1])
            answers = [row for row in rows if row[0] == reply]
            if any(row[2] != 0 or row[3][0][2] != body for row in answers):
                raise BenchmarkError(f"{self._name} has answered something else")
            answered += len(answers)
            now = time.perf_counter()
            if now - self._beat > HEARTBEAT_S:
                self._beat = now
                self._send(encode([Heartbeat()]))
        return time.perf_counter() - begun

    @staticmethod
    def _batch(first: int, body: bytes) -> list[bytes]:
        requests: list[Message] = []
        for number in range(first, first + BATCH):
            id_ = f"bench/b-1/{number}"
            meta = {"id": id_, "root": id_, "origin": "bench", "scope": "client", "attempt": 1, "path": []}
            requests.append(Request(number + 1, "echo", body, "load", meta))
        return encode(requests)

    def _send(self, frames: list[bytes]) -> None:
        self._socket.send_multipart([self._identity, *frames])

    def _receive(self) -> list[bytes]:
        if not self._socket.poll(PATIENCE_MS):
            raise BenchmarkError(f"{self._name} did not answer within {PATIENCE_MS // 1000} s")
        return self._socket.recv_multipart()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        self._context.term()


def handlers(folder: Path, plan: KitPlan, told: Callable[[str], None]) -> list[Part]:
    """Measure the handlers in turn."""
    body = b'{"n":"' + b"0" * 16 + b'","text":"' + b"x" * 64 + b'"}'
    found: dict[str, Part] = {name: Part(name, [], []) for name in HANDLERS}
    with ExitStack() as stack:
        scripts: dict[str, tuple[Script, Running]] = {}
        for name in HANDLERS:
            script = Script(folder, name)
            stack.callback(script.close)
            handler = stack.enter_context(Running(f"handler {name}", script.command, folder))
            script.greet()
            script.run(plan.messages // 10, body)
            scripts[name] = (script, handler)
        for number in range(plan.runs):
            for name, (script, handler) in scripts.items():
                told(f"run {number + 1} of {plan.runs}: handler {name}")
                before = cpu_s(handler.pid)
                seconds = script.run(plan.messages, body)
                found[name].rates.append(plan.messages / seconds)
                found[name].cpu_us.append((cpu_s(handler.pid) - before) / plan.messages * 1e6)
    return list(found.values())


@contextmanager
def _serving(folder: Path, name: str, app: str) -> Iterator[sides.Side]:
    """Run `bester up` with one of the apps, whose module is copied beside its configuration."""
    shutil.copy(SCRIPT, folder)
    port = free_port()
    file = sides.configuration(folder, port, f'[handlers.echo]\napp = "{app}"\n')
    with Running("bester up", sides.bester("up", "-c", file), folder) as server:
        server.wait_until(lambda: sides.takes(port, {"n": "0", "text": ""}))
        yield sides.Side(f"contract {name}", "bester", port, {"server": server})


def contracts(folder: Path, plan: KitPlan, told: Callable[[str], None]) -> list[Part]:
    """Measure a server without and with a contract, in turn."""
    generator = load_generator(folder)
    job = Job(100, 8, 50, plan.server_messages, plan.server_messages // 10)
    found: dict[str, Part] = {name: Part(name, [], []) for name in CONTRACTS}
    with ExitStack() as stack:
        serving: dict[str, sides.Side] = {}
        for name, app in CONTRACTS.items():
            own = folder / name
            own.mkdir()
            serving[name] = stack.enter_context(_serving(own, name, app))
        for number in range(plan.runs):
            for name, side in serving.items():
                told(f"run {number + 1} of {plan.runs}: contract {name}")
                run = measure_side(generator, side, job)
                used = sum(seconds for label, seconds in run.cpu_s.items() if label != "loadgen")
                found[name].rates.append(run.rate)
                found[name].cpu_us.append(used / run.messages * 1e6)
    return list(found.values())


def measure(folder: Path, plan: KitPlan, told: Callable[[str], None]) -> Figures:
    """Measure handlers and contracts."""
    return Figures(handlers(folder, plan, told), contracts(folder, plan, told))
