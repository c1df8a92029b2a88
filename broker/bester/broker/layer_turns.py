"""Turns of layers: what comes by TLS and WebSocket is taken apart within a part of each turn of the loop. Pure.

A frame of a WebSocket may be six bytes, a record of TLS twenty-three, and each costs its share of a message before the
session sees any of it: a single read of 256 KiB would hold the loop for a third of a second, and a loop may read many
times in one turn. A handshake of TLS costs as much as a hundred frames. So a connection whose bytes are not all taken
apart waits, and is not read from. Connections that wait take turns, by sender, and so do the connections of one sender
among themselves: a user with a hundred connections has the turns of one. Connections that have had a slice and have
more have half of the time, and those that come the other half. The time of the protocols above does not count: they
have budgets of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

TURN_S = 0.001
"""Seconds for all connections of a listener in one turn of the loop: a hundred short frames, or a handshake."""
SLICE_S = TURN_S / 4
"""The same of one connection, before the next one's turn where several wait."""


class Waiter(Protocol):
    """Connection with bytes that are not taken apart yet. `sender` is the party to which the connection belongs, as far
    as it is known now."""

    @property
    def sender(self) -> Hashable: ...

    def go_on(self, enough: float) -> bool:
        """Take bytes apart up to the time `enough` of the clock; return whether there are more."""


class _Row:
    """Connections that wait, by sender in turn."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, dict[Waiter, None]] = {}  # connections of each sender
        self._sender_of: dict[Waiter, Hashable] = {}  # as of their coming: a login may have ended since

    def __bool__(self) -> bool:
        return bool(self._sender_of)

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter in self._sender_of

    def add(self, waiter: Waiter) -> None:
        """Put a connection behind the others of its sender, unless it waits already."""
        if waiter not in self._sender_of:
            sender = self._sender_of[waiter] = waiter.sender
            self._lines.setdefault(sender, {})[waiter] = None

    def remove(self, waiter: Waiter) -> None:
        """Take a connection out, where it waits."""
        if waiter in self._sender_of:
            sender = self._sender_of.pop(waiter)
            line = self._lines[sender]
            del line[waiter]
            if not line:
                del self._lines[sender]

    def take(self) -> Waiter:
        """Take out the next connection; the turn of its sender is over."""
        sender, line = next(iter(self._lines.items()))
        waiter = next(iter(line))
        self.remove(waiter)
        if line:
            self._lines[sender] = self._lines.pop(sender)
        return waiter


class LayerTurns:
    """Connections of one listener. `soon` calls a function in the next turn of the loop."""

    def __init__(self, clock: Callable[[], float], soon: Callable[[Callable[[], None]], object]) -> None:
        self.clock = clock
        self._soon = soon
        self._come = _Row()
        self._more = _Row()  # those that have had a slice
        self._left_s = TURN_S  # of this turn
        self._is_due = False

    def take_in(self, waiter: Waiter) -> bool:
        """Take apart what has come on a connection, where nobody waits and this turn has time left; return whether some
        of it has to wait."""
        self._call_soon()
        if not self._come and not self._more and self._left_s > 0:
            self._handle(waiter)
        elif waiter not in self._more:
            self._come.add(waiter)
        return waiter in self._more or waiter in self._come

    def hurry(self) -> bool:
        """Let one of the connections that wait go on now, whatever time is left; return False where none waits."""
        for waiting in (self._more, self._come):
            if waiting:
                self._handle(waiting.take())
                return True
        return False

    def leave_out(self, began: float) -> float:
        """Leave the time from `began` to now, which was that of a protocol above, out of the count; return the
        seconds."""
        took_s = self.clock() - began
        self._left_s += took_s
        return took_s

    def forget(self, waiter: Waiter) -> None:
        """Forget a connection that has ended."""
        self._come.remove(waiter)
        self._more.remove(waiter)

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
                    self._handle(waiting.take())
                if self._left_s <= 0:
                    return

    def _handle(self, waiter: Waiter) -> None:
        began = self.clock()
        try:
            if waiter.go_on(began + min(SLICE_S, self._left_s)):
                self._more.add(waiter)
        finally:
            self._left_s -= self.clock() - began
