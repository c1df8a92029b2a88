"""Ends what has taken too long: connections, frames, readers, acknowledgements and messages, a few in a turn. Pure.

Thousands of connections may come in one moment, and say nothing; their time is up in one moment then. To end them all
in that turn would hold everybody up for a tenth of a second and more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from bester.bridge.ports import Shell

JUDGE_S = 0.001
"""Seconds in one turn of the loop."""

Judge = Callable[[float], Iterator[None]]
"""Called with the time; ends, cuts or reports something that has taken too long before each step of the iterator, if it
still has then: turns of the loop lie between two steps."""


class Judging:
    """Judges of one bridge, in their order."""

    def __init__(self, judges: Sequence[Judge], shell: Shell) -> None:
        self._judges = judges
        self._clock, self._soon = shell.clock, shell.soon
        self._rest: Iterator[None] | None = None

    def judge(self, now: float) -> None:
        """Judge what has taken too long until now, in this turn and the next ones, unless this still goes on."""
        if self._rest is None:
            self._rest = chain.from_iterable(judge(now) for judge in self._judges)
            self._go_on()

    def adjourn(self) -> None:
        """Leave the rest to the next time: nobody is late before what came meanwhile has been read."""
        self._rest = None

    def _go_on(self) -> None:
        rest, self._rest = self._rest, None  # where a judge fails, the next look begins anew
        if rest is None:
            return
        enough = self._clock() + JUDGE_S
        for _ in rest:
            if self._clock() >= enough:
                self._rest = rest
                self._soon(self._go_on)
                return
