"""Turns of layers: what comes by TLS and WebSocket is taken apart within a part of each turn of the loop. Pure.

A frame of a WebSocket may be six bytes, a record of TLS twenty-three, and each costs its share of a message before the
session sees any of it: a single read of 256 KiB would hold the loop for a third of a second, and a loop may read many
times in one turn. A handshake of TLS costs as much as a hundred frames. So a connection whose bytes are not all taken
apart waits, and is not read from. Connections that wait take turns: those that have had a slice and have more have
half of the time, and those that come the other half. The time of the protocols above does not count: they have budgets
of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

TURN_S = 0.001
"""Seconds for all connections of a listener in one turn of the loop: a hundred short frames, or a handshake."""
SLICE_S = TURN_S / 4
"""The same of one connection, before the next one's turn where several wait."""


class Waiter(Protocol):
    """Connection with bytes that are not taken apart yet."""

    def go_on(self, enough: float) -> bool:
        """Take bytes apart up to the time `enough` of the clock; return whether there are more."""


class LayerTurns:
    """Connections of one listener. `soon` calls a function in the next turn of the loop."""

    def __init__(self, clock: Callable[[], float], soon: Callable[[Callable[[], None]], object]) -> None:
        self.clock = clock
        self._soon = soon
        self._come: dict[Waiter, None] = {}
        self._more: dict[Waiter, None] = {}  # those that have had a slice
        self._left_s = TURN_S  # of this turn
        self._is_due = False

    def take_in(self, waiter: Waiter) -> bool:
        """Take apart what has come on a connection, where nobody waits and this turn has time left; return whether some
        of it has to wait."""
        self._call_soon()
        if not self._come and not self._more and self._left_s > 0:
            self._handle(waiter)
        elif waiter not in self._more:
            self._come[waiter] = None
        return waiter in self._more or waiter in self._come

    def leave_out(self, began: float) -> float:
        """Leave the time from `began` to now, which was that of a protocol above, out of the count; return the
        seconds."""
        took_s = self.clock() - began
        self._left_s += took_s
        return took_s

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
