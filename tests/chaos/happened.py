"""What the run itself has done to whom, and what the clocks of the servers showed. Pure: it is told, and answers.

The ledger asks it what a failure may come of: an innocent message may be given up once its handlers were killed, from
outside, as often as a message deserves, and a server's clock may be wrong only by as much as it was set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

SILENT_S = 4.0
"""A process that is frozen for less is taken for dead by nobody; for more it may be, on a slow machine."""


@dataclass(frozen=True)
class Hit:
    """Something was killed or frozen, from `at_s` until it was there again. `where`: a server whose handlers may have
    died of that, or a server of the native protocol."""

    where: str
    kills: bool
    at_s: float
    until_s: float


class Happened:
    """Of one run. Times are monotonic seconds. `epoch_s`: what the true clock showed when those began."""

    def __init__(self, epoch_s: float = 0.0) -> None:
        self.epoch_s = epoch_s
        self._hits: list[Hit] = []
        self._under_way: dict[int, tuple[str, bool, float]] = {}
        self._serial = 0
        self._clocks: dict[str, list[tuple[float, float]]] = defaultdict(lambda: [(-inf, 0.0)])
        self._boots: list[float] = []

    # --- told ---

    def begins(self, where: str, *, kills: bool, at_s: float) -> int:
        """Something is hit; returns what `ends` is told."""
        self._serial += 1
        self._under_way[self._serial] = where, kills, at_s
        return self._serial

    def ends(self, number: int, at_s: float) -> None:
        """What was hit is there again."""
        where, kills, since_s = self._under_way.pop(number)
        self._hits.append(Hit(where, kills, since_s, at_s))

    def clock_set(self, server: str, ahead_s: float, at_s: float) -> None:
        """A server's clock is so much ahead of the true one from now on."""
        self._clocks[server].append((at_s, ahead_s))

    def booted(self, at_s: float) -> None:
        """A server's machine has begun another run."""
        self._boots.append(at_s)

    # --- asked ---

    def deaths(self, where: str, since_s: float, until_s: float) -> int:
        """How many times handlers there, or that native server, may have been lost in this time: by what came from
        outside."""
        return sum(1 for hit in self._near(where, since_s, until_s) if hit.kills or hit.until_s - hit.at_s >= SILENT_S)

    def frozen_s(self, where: str, since_s: float, until_s: float) -> float:
        """For how long anything there was frozen or down, at most, in what overlaps this time."""
        return sum(hit.until_s - hit.at_s for hit in self._near(where, since_s, until_s))

    def settled(self, server: str, for_s: float, at_s: float) -> bool:
        """Has a server run for so long, without anything happening to it, since its clock was set?"""
        calm = self.frozen_s(server, at_s - for_s, at_s) == 0.0
        return calm and not self._under_way_at(server) and self._clocks[server][-1][0] < at_s - for_s

    def _under_way_at(self, where: str) -> bool:
        return any(name == where for name, _, _ in self._under_way.values())

    def _near(self, where: str, since_s: float, until_s: float) -> Iterator[Hit]:
        yield from (hit for hit in self._hits if hit.where == where and hit.at_s <= until_s and hit.until_s >= since_s)
        for name, kills, at_s in self._under_way.values():
            if name == where and at_s <= until_s:
                yield Hit(name, kills, at_s, until_s)

    def boots(self, since_s: float, until_s: float) -> int:
        """How many machines began another run in this time."""
        return sum(1 for at_s in self._boots if since_s <= at_s <= until_s)

    def shown(self, server: str, wall_s: float, slack_s: float) -> list[tuple[float, float]]:
        """Return when a server's clock showed this, from when to when, `slack_s` more on both sides; and as long again
        as the server was frozen when its clock was set, for it went on with the old time then."""
        times: list[tuple[float, float]] = []
        history = self._clocks[server]
        for number, (since_s, ahead_s) in enumerate(history):
            until_s = history[number + 1][0] if number + 1 < len(history) else inf
            late_s = self.frozen_s(server, until_s, until_s) if until_s < inf else 0.0
            at_s = wall_s - self.epoch_s - ahead_s
            if since_s - slack_s <= at_s <= until_s + slack_s + late_s:
                times.append((at_s - slack_s, at_s + slack_s))
        return times
