"""Steps of the loop that take long and cannot be cut, as reading a report of 16 MiB: one in a turn at most. Pure.

Several servers may end such reports in one turn, and one may send them one after the other. So parties take turns, and
a step is made up for by turns without one. Where nobody else has anything to do these turns take no time.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from bester.broker.share import Share

TURN_S = 0.001
"""Time of such steps in a turn of the loop."""
MADE_UP_S = 1.0
"""The most that is made up for."""

Step = Callable[[], None]


class LongSteps:
    """Steps that wait, by party. `soon` calls a function in the next turn of the loop."""

    def __init__(self, clock: Callable[[], float], soon: Callable[[Callable[[], None]], object]) -> None:
        self._clock = clock
        self._soon = soon
        self._waiting: OrderedDict[str, deque[Step]] = OrderedDict()
        self._share = Share(TURN_S, MADE_UP_S)
        self._asked = False
        self._ended_at = 0.0  # of the turn before

    def add(self, party: str, step: Step) -> None:
        """Take a step in one of the next turns, behind those of its party."""
        self._waiting.setdefault(party, deque()).append(step)
        self._ask()

    def _ask(self) -> None:
        if self._waiting and not self._asked:
            self._asked = True
            self._soon(self._turn)

    def _turn(self) -> None:
        self._asked = False
        began = self._clock()
        has_turn = self._share.begin(began - self._ended_at)
        try:
            if has_turn:
                self._take()
        finally:
            self._ended_at = self._clock()
            if has_turn:
                self._share.end(self._ended_at - began)
            self._ask()

    def _take(self) -> None:
        party, steps = self._waiting.popitem(last=False)
        step = steps.popleft()
        if steps:
            self._waiting[party] = steps
        step()
