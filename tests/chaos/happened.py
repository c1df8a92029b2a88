"""The faults of the run itself, by target, and the times that the servers' clocks showed. Pure.

The ledger asks for the possible causes of a failure: an innocent message may be given up once its handlers were killed,
from outside, as often as a message deserves, and a server's clock may be wrong only by as much as it was set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

SILENT_S = 4.0
"""Seconds of a freeze below which no process is taken for dead; above, a process may be, on a slow machine."""


DATABASE = "database"
"""Place of a hit on the database of a cluster: meanwhile nothing can be kept."""
CLUSTER_BROKERS = "brokers of a cluster"
"""Place of a hit on a broker of a cluster: users of the server move to another broker, and back."""


@dataclass(frozen=True)
class Hit:
    """A kill or freeze, from `at_s` until the process was there again. `where`: a server whose handlers may have died
    of the hit, or a server of the native protocol."""

    where: str
    kills: bool
    at_s: float
    until_s: float


class Happened:
    """The faults of one run. Times are monotonic seconds. `epoch_s`: the true clock's time when the run began."""

    def __init__(self, epoch_s: float = 0.0) -> None:
        self.epoch_s = epoch_s
        self._hits: list[Hit] = []
        self._under_way: dict[int, tuple[str, bool, float]] = {}
        self._serial = 0
        self._clocks: dict[str, list[tuple[float, float]]] = defaultdict(lambda: [(-inf, 0.0)])
        self._boots: list[float] = []

    # --- recording ---

    def begins(self, where: str, *, kills: bool, at_s: float) -> int:
        """Record the start of a hit; return the number for `ends`."""
        self._serial += 1
        self._under_way[self._serial] = where, kills, at_s
        return self._serial

    def ends(self, number: int, at_s: float) -> None:
        """Record that the target of a hit is there again."""
        where, kills, since_s = self._under_way.pop(number)
        self._hits.append(Hit(where, kills, since_s, at_s))

    def clock_set(self, server: str, ahead_s: float, at_s: float) -> None:
        """A server's clock is so much ahead of the true one from now on."""
        self._clocks[server].append((at_s, ahead_s))

    def booted(self, at_s: float) -> None:
        """A server's machine has begun another run."""
        self._boots.append(at_s)

    # --- asked ---

    def deaths(self, where: str, since_s: float, until_s: float, *, silent_s: float = SILENT_S) -> int:
        """Count the times in this span at which handlers there, or that native server, may have been lost to a hit from
        outside: a kill, or a freeze of `silent_s` or more."""
        return sum(1 for hit in self._near(where, since_s, until_s) if hit.kills or hit.until_s - hit.at_s >= silent_s)

    def stood_still(self, where: str, since_s: float, until_s: float) -> bool:
        """Return whether anything there may have been taken for dead in this span, and went on with what it had."""
        near = self._near(where, since_s, until_s)
        return any(not hit.kills and hit.until_s - hit.at_s >= SILENT_S for hit in near)

    def frozen_s(self, where: str, since_s: float, until_s: float) -> float:
        """Return the seconds for which anything there was frozen or down, at most, in hits that overlap this span."""
        return sum(hit.until_s - hit.at_s for hit in self._near(where, since_s, until_s))

    def settled(self, server: str, for_s: float, at_s: float) -> bool:
        """Return whether a server has run for so long since its clock was set, without a hit."""
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
        """Return the number of boots in this span."""
        return sum(1 for at_s in self._boots if since_s <= at_s <= until_s)

    def shown(self, server: str, wall_s: float, slack_s: float) -> list[tuple[float, float]]:
        """Return the spans in which a server's clock showed this time, `slack_s` wider on both sides; and wider by as
        long as the server was frozen when its clock was set, for it went on with the old time then."""
        times: list[tuple[float, float]] = []
        history = self._clocks[server]
        for number, (since_s, ahead_s) in enumerate(history):
            until_s = history[number + 1][0] if number + 1 < len(history) else inf
            late_s = self.frozen_s(server, until_s, until_s) if until_s < inf else 0.0
            at_s = wall_s - self.epoch_s - ahead_s
            if since_s - slack_s <= at_s <= until_s + slack_s + late_s:
                times.append((at_s - slack_s, at_s + slack_s))
        return times
