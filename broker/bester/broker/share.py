"""A part's share of the loop's turns: some time in each, and no turn until one that took longer is made up for. Pure.

A step cannot be cut: the check of a large body, a reply to five thousand users. Who takes such steps one after the
other would make every turn as long. So a step of several shares is followed by as many turns without one, and the
others wait for one such step, and not for one in each of the turns that their messages take. Where nobody else has
anything to do these turns take no time. Where turns are long, a part of their time is made up for in each: a door on
which honest parties wait as well would be read too seldom else.
"""

from __future__ import annotations

PART = 4
"""Divisor: so much of the time of long turns is the share of a part that counts that time."""


class Share:
    """Time of one part in each turn of the loop: `turn_s`, and `most_s` as the most that is made up for."""

    __slots__ = ("_debt_s", "_most_s", "_turn_s")

    def __init__(self, turn_s: float, most_s: float) -> None:
        self._turn_s = turn_s
        self._most_s = most_s
        self._debt_s = 0.0

    def begin(self, passed_s: float = 0.0, turn_s: float | None = None) -> bool:
        """Return whether the part has this turn; call once a turn. `passed_s` is the time since the turn before,
        `turn_s` that of this turn, where it is not the usual one."""
        if self._debt_s <= 0.0:
            return True
        self._debt_s -= max(self._turn_s if turn_s is None else turn_s, passed_s / PART)
        return False

    def end(self, took_s: float, had_s: float = 0.0) -> None:
        """Count what a turn took; `had_s` is the time of the turn, where it is longer than usual."""
        over_s = took_s - max(self._turn_s, had_s)
        self._debt_s = max(self._debt_s, min(over_s, self._most_s) if over_s > self._turn_s else 0.0)
