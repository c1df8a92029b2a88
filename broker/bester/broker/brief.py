"""Brief turns: while somebody who says little is served, the others have a part of their time in each turn. Pure.

A message takes four or five turns of the loop, in each of which it waits for what the others may have. Short turns cost
work: each has looks and calls of its own. So turns are brief for a moment after a message of somebody who says little,
and only while few do: the messages of many are the load itself, and longer turns serve them sooner.
"""

from __future__ import annotations

from collections.abc import Hashable

PART = 4
"""Divisor of the others' time in a brief turn."""
BRIEF_S = 0.05
"""Least time of brief turns after a message, and at most twice as long: a person who writes is not alone in a busy
server, and a program asks again within this time."""
FEW = 16
"""Parties that say little for which turns are brief."""
LITTLE = 4
"""Messages that come together, times the copies that each becomes, of a party that says little."""


class Brief:
    """State of one loop. A party is anything that can be compared: a user, or a key of the fabric. A party counts as
    one that says little as long as nothing of it was left waiting.

    `asked_until` is the time until which notes are of use: some part of the server has asked for its time lately. The
    parts with little to do need not ask.
    """

    __slots__ = ("_before", "_ends", "_little", "_much", "asked_until")

    def __init__(self) -> None:
        self.asked_until = 0.0
        self._little: set[Hashable] = set()
        self._before: set[Hashable] = set()  # those of the span before
        self._much: set[Hashable] = set()  # parties of which something was left waiting, in both spans
        self._ends = 0.0

    def on_little(self, party: Hashable, now: float) -> None:
        """Note a short message of a party of which nothing waits."""
        if now >= self._ends:
            self._begin(now)
        if len(self._little) <= FEW:
            self._little.add(party)

    def on_much(self, party: Hashable, now: float) -> None:
        """Note that more of a party waits than was handled in a turn."""
        if now >= self._ends:
            self._begin(now)
        if len(self._much) < FEW:
            self._much.add(party)

    def part(self, turn_s: float, now: float) -> float:
        """Return how much of its time of a turn a part of the server has now."""
        self.asked_until = now + 2 * BRIEF_S
        if now >= self._ends:
            self._begin(now)
        if not self._little and not self._before:
            return turn_s
        little = self._little | self._before
        return turn_s / PART if len(little - self._much) > 0 and len(little) <= FEW else turn_s

    def _begin(self, now: float) -> None:
        """Begin a span."""
        if now < self._ends + BRIEF_S:
            self._before, self._little = self._little, set()
            self._much &= self._before
        else:
            self._before, self._little, self._much = set(), set(), set()
        self._ends = now + BRIEF_S
