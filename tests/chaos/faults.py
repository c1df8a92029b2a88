"""Faults of the processes in a chaos run: a seed chooses, real time and real processes answer.

Invariant: only processes of the run are touched, and none stays frozen.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from tests.chaos.happened import Happened
from tests.chaos.journal import now_s
from tests.chaos.machine import Machine
from tests.chaos.processes import Part, signal_one
from tests.chaos.silence import Silences

MEAN_PAUSE_S = 1.3
"""Between two faults, on average: a program has time to come back and to work before its next death, mostly."""
FROZEN_S = {(0.1, 1.0): 5, (1.0, 4.0): 3, (6.5, 9.0): 1}
"""Spans of a freeze in seconds, and their weights: a party silent for 6 s is taken for dead, and wakes up to that."""
CABLE_FROZEN_S = {(0.1, 1.0): 4, (1.0, 4.0): 3, (6.5, 9.0): 2, (10.5, 15.0): 1}
"""The same for a cable: a broker that does not reach its database for 10 s has lost its lease, and goes on."""
DEAD_S = {(0.0, 0.0): 4, (0.2, 2.0): 4, (3.0, 7.0): 1}
"""Spans in seconds until a killed part is started again: also longer than a message waits for a handler."""
KILLS, FREEZES = 3, 2
"""Weights of kills and of freezes."""


@dataclass(frozen=True)
class Target:
    """A target that can be hit: one part or several at once, and how to start them again. `weight`: how often.

    `where`: the servers whose handlers may be lost by a hit, or the native server that is hit. `workers`: hit one of
    the handler processes below the part instead, whose parent starts another. `machines`: the machines on which these
    parts are all that runs. `frozen_s`: spans of a freeze, as FROZEN_S.
    """

    name: str
    parts: Sequence[Part]
    start: Callable[[], None]
    weight: int
    where: Sequence[str] = ()
    workers: bool = False
    machines: Sequence[Machine] = ()
    frozen_s: Mapping[tuple[float, float], int] = field(default_factory=FROZEN_S.copy)


class Weather:
    """Weather that chooses and carries out faults until its end. `happened` records the faults."""

    def __init__(self, targets: Sequence[Target], happened: Happened, random: Random, silences: Silences) -> None:
        self._silences = silences
        self.kills = 0
        self.freezes = 0
        self.counts: Counter[str] = Counter()
        """Number of sleeps and boots of machines."""
        self.story: list[tuple[float, str]] = []
        self._targets = targets
        self._happened = happened
        self._random = random
        self._tasks: set[asyncio.Task[None]] = set()
        self._hit: set[str] = set()
        self._calm = asyncio.Event()

    async def rage(self, duration_s: float) -> None:
        """Let faults happen for so long; on return, everything has been thawed and started again."""
        end_s = now_s() + duration_s
        while (pause_s := self._random.expovariate(1 / MEAN_PAUSE_S)) < end_s - now_s():
            await asyncio.sleep(pause_s)
            self._strike()
        await asyncio.sleep(max(0.0, end_s - now_s()))
        self._calm.set()
        if self._tasks:
            await asyncio.gather(*self._tasks)

    def is_hit(self, name: str) -> bool:
        """Return whether a part is killed or frozen now."""
        return name in self._hit

    def _strike(self) -> None:
        """Begin one fault. The choices don't depend on the parts alive: the same seed chooses alike."""
        for each in self._targets:
            if each.machines:
                for part in each.parts:
                    part.look(now_s())
        target = self._random.choices(self._targets, [target.weight for target in self._targets])[0]
        kills = self._random.choices((True, False), (KILLS, FREEZES))[0]
        table = DEAD_S if kills else target.frozen_s
        for_s = self._random.uniform(*self._random.choices(list(table), list(table.values()))[0])
        which = self._random.random()
        if any(part.name in self._hit for part in target.parts):
            return  # the target is down already
        work = self._worker(target, kills, for_s, which) if target.workers else self._part(target, kills, for_s)
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _part(self, target: Target, kills: bool, for_s: float) -> None:
        names = {part.name for part in target.parts}
        self._hit |= names
        try:
            if not kills:
                with self._recorded(target, kills=False):
                    await self._freeze(target, for_s)
                return
            since_s = [part.serves_since for part in target.parts]
            booting = [machine for machine in target.machines if machine.may_boot(since_s)]
            with self._recorded(target, kills=True):
                self.tell(f"{target.name} killed, back in {for_s:.1f} s")
                for part in target.parts:
                    part.kill()
                    self.kills += 1
                await self._wait(for_s)
                for machine in booting:
                    self._count("boots", machine.boots())
                target.start()
        finally:
            self._hit -= names

    async def _freeze(self, target: Target, for_s: float) -> None:
        self.tell(f"{target.name} frozen for {for_s:.1f} s")
        for part in target.parts:
            if part.alive:
                part.freeze()
                self.freezes += 1
        await self._wait(for_s / 2)
        for machine in target.machines:
            self._count("sleeps", machine.sleeps())
        await self._wait(for_s / 2)
        for part in target.parts:
            part.thaw()

    @contextmanager
    def _recorded(self, target: Target, *, kills: bool) -> Iterator[None]:
        """Record a hit on a target, and its duration."""
        numbers = [self._happened.begins(where, kills=kills, at_s=now_s()) for where in target.where]
        try:
            yield
        finally:
            for number in numbers:
                self._happened.ends(number, now_s())

    async def _worker(self, target: Target, kills: bool, for_s: float, which: float) -> None:
        pids = target.parts[0].offspring()
        if not pids:
            return
        pid = pids[int(which * len(pids))]
        with self._recorded(target, kills=kills):
            if kills:
                self.tell(f"process {pid} of {target.name} killed")
                signal_one(pid, signal.SIGKILL)
                self.kills += 1
                return
            self.tell(f"process {pid} of {target.name} frozen for {for_s:.1f} s")
            signal_one(pid, signal.SIGSTOP)
            self._silences.stops(pid)
            self.freezes += 1
            try:
                await self._wait(for_s)
            finally:
                signal_one(pid, signal.SIGCONT)
                self._silences.goes_on(pid, now_s())

    def _count(self, what: str, story: str | None) -> None:
        if story is not None:
            self.tell(story)
            self.counts[what] += 1

    def tell(self, what: str) -> None:
        """Put a line into the story."""
        self.story.append((now_s(), what))

    async def _wait(self, seconds: float) -> None:
        """Wait so long, or until all faults end."""
        try:
            await asyncio.wait_for(self._calm.wait(), seconds)
        except TimeoutError:
            pass
