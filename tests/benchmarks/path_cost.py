"""The cost of a message's path in one process, by stage: CPU time, and instructions where valgrind is installed.

`python -m tests.benchmarks.path_cost SIDE BATCH ROUNDS WARM MARKS STAGE` is what valgrind is given: one run in which
the instructions of one stage alone are collected.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Literal, cast

import msgspec

from bester.broker.loop import spare_the_collector
from tests.benchmarks.floor_rig import FloorRig
from tests.benchmarks.path_rig import CONNECTIONS, STAGES, NoMeter, Rig
from tests.benchmarks.programs import ROOT, BenchmarkError, compiled

BODY_BYTES = 100
WARM_MESSAGES = 8_000
"""Messages before measuring, so that caches and the interpreter's specialized code are warm."""
WHOLE = "whole path"
EMPTY = "nothing"
"""Stage without work: the meter's own cost, subtracted from every other one's."""
CALLGRIND_HEADER = Path("/usr/include/valgrind/callgrind.h")
VALGRIND_S = 600.0
_COLLECTED = re.compile(r"Collected : (\d+)")


class PathPlan(msgspec.Struct, frozen=True):
    """Extent of a measurement."""

    batches: tuple[int, ...] = (50, 1)
    messages: int = 20_000
    """Of one repeat."""
    repeats: int = 7
    counted: int = 1_600
    """Messages of a run whose instructions are counted."""
    counted_warm: int = 800


SHORT_PATH = PathPlan(messages=2_000, repeats=3, counted=400, counted_warm=400)


Side = Literal["bester", "floor"]
RIGS: dict[Side, type[Rig] | type[FloorRig]] = {"bester": Rig, "floor": FloorRig}


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Figures at one size of batch, a message: `cpu_us` and `instructions` by stage, and of the whole path.

    `instructions` is empty where valgrind is missing.
    """

    batch: int
    messages: int
    cpu_us: dict[str, float]
    whole_us: float
    instructions: dict[str, int]
    whole_instructions: int


class StageClock:
    """Sums up the processor time of each stage without the stages inside it; `visits` counts entries."""

    def __init__(self) -> None:
        self.spent_ns: Counter[str] = Counter()
        self.visits: Counter[str] = Counter()
        self._stack: list[str] = []
        self._since = 0

    def enter(self, stage: str) -> None:
        """Begin a stage; the stage around it, if any, pauses."""
        now = time.thread_time_ns()
        if self._stack:
            self.spent_ns[self._stack[-1]] += now - self._since
        self._stack.append(stage)
        self.visits[stage] += 1
        self._since = time.thread_time_ns()

    def leave(self) -> None:
        """End the stage that was entered last; the one around it goes on."""
        now = time.thread_time_ns()
        self.spent_ns[self._stack.pop()] += now - self._since
        self._since = time.thread_time_ns()

    def clear(self) -> None:
        """Forget everything that was measured."""
        self.spent_ns.clear()
        self.visits.clear()


def _rounds(messages: int, batch: int) -> int:
    return max(messages // (batch * CONNECTIONS), 1)


def _clock_cost_ns() -> float:
    """Return the time that a stage without work seems to take."""
    clock = StageClock()
    for _ in range(20_000):
        clock.enter(EMPTY)
        clock.leave()
    return clock.spent_ns[EMPTY] / clock.visits[EMPTY]


def cpu_by_stage(batch: int, plan: PathPlan, side: Side = "bester") -> tuple[dict[str, float], float]:
    """Return µs of CPU a message by stage, and of the whole path without the clocks of the stages; least of repeats.

    The least, since other work of the machine only ever adds to it.
    """
    clock = StageClock()
    rig, whole = RIGS[side](batch, BODY_BYTES, clock), RIGS[side](batch, BODY_BYTES, NoMeter())
    rounds = _rounds(plan.messages, batch)
    messages = rounds * batch * CONNECTIONS
    for _ in range(_rounds(min(WARM_MESSAGES, plan.messages), batch)):
        rig.round()
        whole.round()
    gc.collect()
    spare_the_collector()  # as a server does
    cost_ns = median(_clock_cost_ns() for _ in range(5))
    by_stage: dict[str, list[float]] = {stage: [] for stage in STAGES}
    totals: list[float] = []
    answers = _answer_cost_ns(whole, rounds)
    for _ in range(plan.repeats):
        clock.clear()
        for _ in range(rounds):
            rig.round()
        for stage, found in by_stage.items():
            found.append((clock.spent_ns[stage] - clock.visits[stage] * cost_ns) / messages / 1000)
        begun = time.thread_time_ns()
        for _ in range(rounds):
            whole.round()
        totals.append((time.thread_time_ns() - begun - answers) / messages / 1000)
    _check(rig)
    _check(whole)
    return {stage: max(min(found), 0.0) for stage, found in by_stage.items()}, min(totals)


def _answer_cost_ns(rig: Rig | FloorRig, rounds: int) -> int:
    """Return the time that the rig's handler takes over so many rounds: no part of the path."""
    spent = 0
    inner = rig.answer

    def timed(frames: list[bytes]) -> list[bytes]:
        nonlocal spent
        begun = time.thread_time_ns()
        replies = inner(frames)
        spent += time.thread_time_ns() - begun
        return replies

    rig.answer = timed
    for _ in range(rounds):
        rig.round()
    rig.answer = inner
    return spent


def _check(rig: Rig | FloorRig) -> None:
    if rig.good != CONNECTIONS + rig.sent:
        raise BenchmarkError(f"{rig.sent} messages were sent, and {rig.good - CONNECTIONS} reported good")


# --- instructions ----------------------------------------------------------------------------------------------------


def valgrind() -> str | None:
    """Return the path of valgrind, or None where it or its header is missing."""
    found = shutil.which("valgrind")
    return found if found and CALLGRIND_HEADER.exists() else None


class StageMarks:
    """Lets valgrind collect instructions while one stage runs: `toggle` is a call of `path_marks.c`."""

    def __init__(self, toggle: Callable[[], object], stage: str) -> None:
        self._toggle = toggle
        self._stage = stage
        self._stack: list[str] = []
        self.visits = 0

    def enter(self, stage: str) -> None:
        """Begin a stage; the stage around it, if any, pauses."""
        if self._stack and self._stack[-1] == self._stage:
            self._toggle()
        self._stack.append(stage)
        if stage == self._stage:
            self.visits += 1
            self._toggle()

    def leave(self) -> None:
        """End the stage that was entered last; the one around it goes on."""
        if self._stack.pop() == self._stage:
            self._toggle()
        if self._stack and self._stack[-1] == self._stage:
            self.visits += 1
            self._toggle()


def counted_run(side: Side, batch: int, rounds: int, warm: int, marks: ctypes.CDLL, stage: str) -> int:
    """Run under valgrind, with the instructions of one stage collected; return how often the stage was entered."""
    meter = NoMeter() if stage in (WHOLE, EMPTY) else StageMarks(marks.toggle, stage)
    rig = RIGS[side](batch, BODY_BYTES, meter)
    for _ in range(warm):
        rig.round()
    gc.collect()
    spare_the_collector()  # as a server does
    marks.begin()
    if stage == EMPTY:
        empty = StageMarks(marks.toggle, EMPTY)
        for _ in range(rounds):
            empty.enter(EMPTY)
            empty.leave()
        return empty.visits
    if isinstance(meter, StageMarks):
        meter.visits = 0
        for _ in range(rounds):
            rig.round()
        _check(rig)
        return meter.visits
    inner = rig.answer

    def uncounted(frames: list[bytes]) -> list[bytes]:
        marks.toggle()
        replies = inner(frames)
        marks.toggle()
        return replies

    rig.answer = uncounted
    marks.toggle()
    for _ in range(rounds):
        rig.round()
    marks.toggle()
    _check(rig)
    return 0


def _under_valgrind(program: str, marks: Path, side: Side, batch: int, plan: PathPlan, stage: str) -> tuple[int, int]:
    """Return the instructions of one stage over a whole run, and how often the stage was entered."""
    rounds, warm = _rounds(plan.counted, batch), _rounds(plan.counted_warm, batch)
    command = [
        program, "--tool=callgrind", "--callgrind-out-file=/dev/null", "--instr-atstart=no", "--collect-atstart=no",
        sys.executable, "-m", "tests.benchmarks.path_cost", *map(str, (side, batch, rounds, warm, marks, stage)),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=VALGRIND_S, check=False, cwd=ROOT, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"valgrind did not finish within {VALGRIND_S:.0f} s") from error
    found = _COLLECTED.search(done.stderr)
    if done.returncode != 0 or found is None:
        last = (done.stderr.strip().splitlines() or ["(it wrote nothing)"])[-1]
        raise BenchmarkError(f"valgrind could not count {stage!r}: {last}")
    return int(found[1]), int(done.stdout.split()[-1])


def instructions_by_stage(
    program: str, folder: Path, batch: int, plan: PathPlan, told: Callable[[str], None], side: Side = "bester"
) -> tuple[dict[str, int], int]:
    """Return the instructions a message by stage, and of the whole path."""
    marks = compiled(folder, "path_marks", ("-shared", "-fPIC"))
    messages = _rounds(plan.counted, batch) * batch * CONNECTIONS
    told(f"counting instructions, {side}, batches of {batch}")
    wanted = [EMPTY, WHOLE, *STAGES]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # counts do not depend on what else is running
        pending = [pool.submit(_under_valgrind, program, marks, side, batch, plan, stage) for stage in wanted]
        try:
            runs = [each.result() for each in pending]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # those that have begun end by themselves
            raise
    counted, visits = runs[0]
    own = counted / visits
    by_stage = {
        stage: round((found - entered * own) / messages)
        for stage, (found, entered) in zip(wanted[2:], runs[2:], strict=True)
    }
    return by_stage, round(runs[1][0] / messages)


def measure(folder: Path, plan: PathPlan, told: Callable[[str], None], side: Side = "bester") -> list[Batch]:
    """Measure the path at every size of batch."""
    program = valgrind()
    found = []
    for batch in plan.batches:
        told(f"the path, {side}, batches of {batch}")
        cpu_us, whole_us = cpu_by_stage(batch, plan, side)
        instructions, whole = instructions_by_stage(program, folder, batch, plan, told, side) if program else ({}, 0)
        messages = _rounds(plan.messages, batch) * batch * CONNECTIONS * plan.repeats
        found.append(Batch(batch, messages, cpu_us, whole_us, instructions, whole))
    return found


def main(arguments: list[str]) -> None:
    """Run what valgrind is given, and print how often the stage was entered."""
    side = cast(Side, arguments[0])
    batch, rounds, warm = map(int, arguments[1:4])
    print(counted_run(side, batch, rounds, warm, ctypes.CDLL(arguments[4]), arguments[5]))


if __name__ == "__main__":
    main(sys.argv[1:])
