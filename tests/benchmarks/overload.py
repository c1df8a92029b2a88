"""The overload benchmark: a real server, asked for more than it can do, and an honest user beside the flood.

Each cell has a server of its own, which is gone afterwards: no cell pays for the backlog of the one before, and the
peak of its memory is the cell's own.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import msgspec
import zmq

from bester.broker.wire.codec import decode, encode
from bester.broker.wire.messages import VERSION, Goodbye, Hello, Welcome
from tests.benchmarks import sides
from tests.benchmarks.overload_plan import (
    HONEST_EVERY_MS,
    IN_FLIGHT,
    KINDS,
    SETTLE_S,
    SETTLED_S,
    STUCK,
    Cell,
    Flood,
    Honest,
    Kind,
    Plan,
    connections_of,
    refused_rate,
    served_rate,
)
from tests.benchmarks.processes import children, peak_memory_bytes
from tests.benchmarks.programs import BenchmarkError
from tests.benchmarks.sides import Side

LAYOUTS: dict[str, Callable[[Path], AbstractContextManager[Side]]] = {
    "up": sides.bester_up,
    "apart": sides.bester_split,
    "cluster": sides.bester_cluster,
}
STOP_S = 2.0
"""Time of a flooded server to end: nothing that it still holds is of interest."""
ANSWER_S = 30.0
"""Time of a generator, after its measured span, to print its line."""
HELLO_MS = 15_000

Told = Callable[[str], None]


class Generator:
    """A running load generator: logged in when made, started by `go`, its line read by `result`."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    def wait_until_ready(self) -> None:
        """Wait for the logins; raise BenchmarkError where one fails."""
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise self._failed()

    def go(self) -> None:
        """Let the generator begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self, within_s: float) -> str:
        """Return the generator's line; raise BenchmarkError where there is none."""
        try:
            printed, _ = self._process.communicate(timeout=within_s)
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError("a load generator did not end by itself") from error
        if self._process.returncode != 0:
            raise self._failed()
        return printed

    def _failed(self) -> BenchmarkError:
        self._process.kill()
        _, said = self._process.communicate()
        return BenchmarkError((said or "a load generator ended without a word").strip())


@contextmanager
def server(layout: str, folder: Path, number: int) -> Iterator[Side]:
    """Run a server of its own in a folder below `folder`."""
    own = folder / str(number)
    own.mkdir()
    with LAYOUTS[layout](own) as side:
        for process in side.processes.values():
            process.stop_timeout_s = STOP_S
        yield side


def serve_and_leave(fabric: str, type_: str) -> None:
    """Serve a type for a moment: its messages then wait for a handler that does not come back."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 1000
        socket.connect(fabric)
        socket.send_multipart(encode([Hello(VERSION, "handler", "leaves", {"types": [type_], "credit": 1})]))
        if not socket.poll(HELLO_MS):
            raise BenchmarkError(f"the broker did not welcome a handler of {type_!r}")
        answers = decode(socket.recv_multipart())
        if not any(isinstance(answer, Welcome) for answer in answers):
            raise BenchmarkError(f"the broker refused a handler of {type_!r}: {answers}")
        socket.send_multipart(encode([Goodbye("the benchmark wants a type without a handler")]))


def honest_command(programs: Path, port: int, plan: Plan) -> list[str]:
    """Return the command of the honest user."""
    times = (HONEST_EVERY_MS, round(plan.lead_s * 1000), round(plan.measured_s * 1000))
    return [str(programs / "honest"), *map(str, (port, *times))]


def flood_command(
    programs: Path, side: Side, plan: Plan, mix: str, connections: int, users: int, window: int, rate: int,
    settle_s: float = 0.0,
) -> list[str]:  # fmt: skip
    """Return the command of a flood."""
    times = (round(plan.lead_s * 1000), round(plan.measured_s * 1000), round(settle_s * 1000))
    numbers = (side.port, connections, users, window, rate, *times)
    return [str(programs / "flood"), *map(str, numbers), mix, *side.watched()]


def together(commands: list[list[str]], plan: Plan, strike: Callable[[], None] | None = None) -> list[str]:
    """Run generators at the same time, the logins one after the other; return their lines. `strike` is called in the
    middle of the measured time."""
    with ExitStack() as stack:
        generators = []
        for command in commands:
            generators.append(stack.enter_context(Generator(command)))
            generators[-1].wait_until_ready()
        for generator in generators:
            generator.go()
        latest = time.monotonic() + plan.lead_s + plan.measured_s + ANSWER_S
        if strike is not None:
            latest += SETTLED_S
            time.sleep(plan.lead_s + plan.measured_s / 2)
            strike()
        return [generator.result(max(latest - time.monotonic(), 1.0)) for generator in generators]


def quiet(programs: Path, layout: str, folder: Path, plan: Plan) -> Honest:
    """Measure the honest user alone."""
    with server(layout, folder, 0) as side:
        (line,) = together([honest_command(programs, side.port, plan)], plan)
    return msgspec.json.decode(line, type=Honest)


def memory_of(side: Side) -> int:
    """Return the most memory of a server's processes, without handlers: children are these where none is apart."""
    pids = [process.pid for label, process in side.processes.items() if label != "handler"]
    if "handler" in side.processes:
        pids += [child for pid in pids for child in children(pid)]
    return sum(map(peak_memory_bytes, pids))


def measure_cell(
    programs: Path, layout: str, folder: Path, number: int, plan: Plan, kind: Kind, users: int, load: int, peak: float
) -> Cell:
    """Measure one load on a server of its own; `peak` is the rate of the first load. Above that load the victim of a
    layout, if there is one, is killed in the middle."""
    connections = connections_of(users)
    window, rate = (max(IN_FLIGHT // connections, 1), 0) if load == 1 else (0, max(round(peak * load), 1))
    with server(layout, folder, number) as side:
        if kind.name.startswith(STUCK):
            for fabric in side.fabric.split(","):
                serve_and_leave(fabric, STUCK)
        victim = side.processes[side.victim] if side.victim and load > 1 else None
        settle_s = SETTLE_S if victim is not None and kind.served is not None else 0.0
        kept_bytes = 0

        def strike() -> None:
            nonlocal kept_bytes
            assert victim is not None
            kept_bytes = peak_memory_bytes(victim.pid)
            victim.kill()

        honest, flood = together(
            [
                honest_command(programs, side.port, plan),
                flood_command(programs, side, plan, kind.mix, connections, users, window, rate, settle_s),
            ],
            plan,
            strike if victim is not None else None,
        )
        memory = kept_bytes + memory_of(side)
    counts = msgspec.json.decode(flood, type=Flood)
    return Cell(
        layout=layout, kind=kind.name, users=users, connections=connections, load=load, offered=rate, flood=counts,
        honest=msgspec.json.decode(honest, type=Honest), served=served_rate(kind, counts), kept=None,
        refused=refused_rate(kind, counts), memory_bytes=memory,
    )  # fmt: skip


def measure(programs: Path, layout: str, folder: Path, plan: Plan, told: Told) -> Iterator[Cell]:
    """Measure every cell of a plan; yield each when it is done.

    A stuck type has no peak of its own: it is offered at multiples of the peak of echo.
    """
    number, echo_peak = 0, dict[int, float]()
    for kind in KINDS:
        for users in plan.users:
            peak = echo_peak.get(users, 0.0)
            first: Cell | None = None
            for load in plan.loads:
                number += 1
                told(f"{layout}: {kind.name}, {users} user{'s' if users > 1 else ''}, {load} ×")
                cell = measure_cell(programs, layout, folder, number, plan, kind, users, load, peak)
                if first is None:
                    first = cell
                    peak = cell.served if cell.served is not None else peak
                    if kind is KINDS[0]:
                        echo_peak[users] = peak
                kept = cell.served / first.served if cell.served is not None and first.served else None
                yield msgspec.structs.replace(cell, kept=kept)
