"""Ends of native connections, handled within a part of each turn of the loop. Pure.

Ten thousand clients may leave at once: a host that goes down, a network that breaks. Each end costs as much as a
message, and all that come in one turn would hold the loop for a quarter of a second. So ends that come together wait,
by sender in turn, as what comes by TLS does. What is sent to a connection meanwhile fails at its end. A connection that
comes and finds no room waits for none of this: ends make room for it at once.
"""

from __future__ import annotations

from collections.abc import Callable

from bester.broker.layer_turns import LayerTurns, Waiter

MOST_AT_ONCE = 64
"""Ends that are handled for one connection that comes, a millisecond or two. Its address may have none among them."""


class Ends:
    """Ends of the connections of one bridge, which have these turns for themselves."""

    def __init__(self, turns: LayerTurns) -> None:
        self._turns = turns

    def take_in(self, connection: Waiter) -> None:
        """Handle the end of a connection in its turn: now, where no other end waits, and this turn has time left."""
        self._turns.take_in(connection)

    def make_room(self, has_room: Callable[[], bool]) -> None:
        """Handle ends until there is room for a new connection, or there are none, or too many for one turn."""
        for _ in range(MOST_AT_ONCE):
            if has_room() or not self._turns.hurry():
                return
