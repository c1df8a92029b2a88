"""Turns of WebSockets: what comes on them is handled within a budget of time in each turn of the loop. Pure.

A frame of a WebSocket may be six bytes, and costs as much as a message does before the session sees any of it: a single
read of 256 KiB would hold the loop for a third of a second, and a loop may read many times in one turn. So a connection
whose frames are not all handled waits, and is not read from. Connections that wait take turns: those that have had a
slice and have more, and those that come, have half of the time each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

TURN_S = 0.001
"""Seconds for frames of all WebSockets in one turn of the loop: a hundred short ones."""
SLICE_S = TURN_S / 4
"""The same of one connection, before the next one's turn where several wait."""


class Waiter(Protocol):
    """Connection with bytes that may hold frames."""

    def go_on(self, enough: float) -> bool:
        """Handle frames up to the time `enough` of the clock; return whether there are more."""


class WebTurns:
    """WebSockets of one listener. `soon` calls a function in the next turn of the loop."""

    def __init__(self, clock: Callable[[], float], soon: Callable[[Callable[[], None]], object]) -> None:
        self.clock = clock
        self._soon = soon
        self._come: dict[Waiter, None] = {}
        self._more: dict[Waiter, None] = {}  # those that have had a slice
        self._left_s = TURN_S  # of this turn
        self._is_due = False

    def take_in(self, waiter: Waiter) -> bool:
        """Handle what has come on a connection where nobody waits and this turn has time left; return whether some of
        it has to wait."""
        self._call_soon()
        if not self._come and not self._more and self._left_s > 0:
            self._handle(waiter)
        elif waiter not in self._more:
            self._come[waiter] = None
        return waiter in self._more or waiter in self._come

    def forget(self, waiter: Waiter) -> None:
        """Forget a connection that has ended."""
        self._come.pop(waiter, None)
        self._more.pop(waiter, None)

    def _call_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._soon(self._turn)

    def _turn(self) -> None:
        """Begin a turn: handle what waits, and leave the rest of the time to connections that come."""
        self._is_due = False
        self._left_s = TURN_S
        if self._more or self._come:
            self._call_soon()
        while self._more or self._come:
            for waiting in (self._more, self._come):
                if waiting:
                    self._serve(waiting)
                if self._left_s <= 0:
                    return

    def _serve(self, waiting: dict[Waiter, None]) -> None:
        waiter = next(iter(waiting))
        del waiting[waiter]
        self._handle(waiter)

    def _handle(self, waiter: Waiter) -> None:
        began = self.clock()
        try:
            if waiter.go_on(began + min(SLICE_S, self._left_s)):
                self._more[waiter] = None
        finally:
            self._left_s -= self.clock() - began
