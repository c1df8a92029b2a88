"""Changes around the servers of a chaos run, whose processes go on: their clocks are set, and names come and go.

Invariant: at the end every name is known and at its right address.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from tests.chaos.journal import now_s
from tests.chaos.machine import Machine
from tests.chaos.names import NameServer
from tests.chaos.natives import NativeServer

MEAN_PAUSE_S = 3.0
"""Between two changes, on average."""
AWAY_S = (1.0, 8.0)
"""Seconds for which a name is missing, or gets no answer. A failed lookup is repeated after as long at the latest."""


class Surroundings:
    """`names` is None where the servers are known by their addresses. `tell` puts a line into the story."""

    def __init__(
        self, machines: Sequence[Machine], natives: Sequence[NativeServer], names: NameServer | None, random: Random,
        tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.counts: Counter[str] = Counter()
        self._machines = machines
        self._natives = natives
        self._names = names
        self._random = random
        self._tell = tell
        self._calm = asyncio.Event()

    async def change(self, duration_s: float) -> None:
        """Let things change for so long; on return, all names are right again."""
        end_s = now_s() + duration_s
        async with asyncio.TaskGroup() as group:
            while (pause_s := self._random.expovariate(1 / MEAN_PAUSE_S)) < end_s - now_s():
                await asyncio.sleep(pause_s)
                if self._names is None or self._random.random() < 0.5:
                    self._tell(self._random.choice(self._machines).jumps())
                    self.counts["jumps"] += 1
                else:
                    native = self._random.choice(self._natives)
                    silent, away_s = self._random.random() < 0.5, self._random.uniform(*AWAY_S)
                    group.create_task(self._name_goes(self._names, native, silent, away_s))
            await asyncio.sleep(max(0.0, end_s - now_s()))
            self._calm.set()

    async def _name_goes(self, names: NameServer, native: NativeServer, silent: bool, away_s: float) -> None:
        """Let a name be missing, or unanswered; then restore the name, at the present address of its server."""
        if native.host in names.silent or native.host not in names.knows:
            return
        what = "gets no answer" if silent else "is missing"
        self._tell(f"name {native.host} {what} for {away_s:.1f} s")
        self.counts["names"] += 1
        if silent:
            names.silent.add(native.host)
        else:
            del names.knows[native.host]
        try:
            await asyncio.wait_for(self._calm.wait(), away_s)
        except TimeoutError:
            pass
        native.says(names)
