"""Deliberate breakages of the servers of a chaos run, to see that the run finds each of them: `--break NAME`.

    blame      all that a handler held when it died has used up an attempt, and is given on in company
    sent       a connection that was cut counts as closed in peace
    clock      what the wall clock shows is read once, at the start
    wall       what waits expires by the wall clock
    unmarked   what may have been delivered before comes again from a box without the mark
    names      a name is looked up once

Each is called in every server process before its program begins (`prelude` does that).
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any


def blame() -> None:
    from bester.broker.core.exchange import Exchange
    from bester.broker.core.pools import Worker

    def lost(self: Any, worker: Worker, now: float) -> None:
        held = self.workers.lose(worker)
        self._unserve(worker.pool.types, now)
        again = [parcel for each in held for parcel in self._died_over(each, now)]
        for parcel in reversed(again):
            parcel.since = now
            parcel.suspicion.open = False
            self.workers.wait(parcel, first=True)
        self._share_out(now)
        for keeper in [keeper for parcel in again if (keeper := self.workers.keeper(parcel)) is not None]:
            self.feed(keeper, now)

    broken: Any = Exchange
    broken.lost = lost


def sent() -> None:
    from bester.bridge import forward

    forward.CUT = forward.SENT


def clock() -> None:
    from bester.broker.core.clock import Clock

    broken: Any = Clock
    broken.read = lambda self, now, wall_s: None


def wall() -> None:
    from bester.broker.core.clock import Clock

    broken: Any = Clock
    broken.stored = Clock.wall


def unmarked() -> None:
    from bester.broker.core.boxes import Boxes

    hand = Boxes.hand

    def without_marks(self: Boxes, *given: Any) -> set[int]:
        hand(self, *given)
        return set()

    broken: Any = Boxes
    broken.hand = without_marks


def names() -> None:
    from bester.broker.lookups import Lookups

    def once(ended: Callable[..., Any]) -> Callable[..., Any]:
        def end(self: Any, host: str, *given: Any) -> Any:
            news = ended(self, host, *given)
            self._names[host].due = inf
            return news

        return end

    broken: Any = Lookups
    broken.found, broken.failed = once(Lookups.found), once(Lookups.failed)
    broken.hint = lambda self, host, now: None


BREAKAGES: dict[str, Callable[[], None]] = {each.__name__: each for each in (blame, sent, clock, wall, unmarked, names)}


def named(breakage: str) -> str:
    """Return how the prelude is told to call one."""
    return f"{__name__}:{breakage}"
