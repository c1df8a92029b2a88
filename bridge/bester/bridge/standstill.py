"""Times at which this process stood still: stopped (SIGSTOP, a debugger), suspended with its machine, or without CPU.
Pure; the times are those of `clocks.with_sleep`.

What others sent meanwhile was not read: nobody is late for that, until there was time to read it.

Meanwhile a broker may have died or given up its link, and sent the same messages by another bridge, marked. What had
come by the link before, and is read or carried on after the standstill, is perhaps the second copy for its recipient,
and nothing on the link tells of it.
"""

from __future__ import annotations

GAP_S = 1.0
"""Longest time between two ticks, twice their period, of a process that has not stood still."""
AFTER_S = 1.0
"""Time in which everything is read that had come during a standstill: some hundred messages, as a link has credit."""


class Standstill:
    """Knows when the process stood still last."""

    def __init__(self, now: float) -> None:
        self._ticked_at = now
        self._ended_at = float("-inf")
        self._excused_until = now
        self._may_excuse = True  # others were judged since they were excused last

    def tick(self, now: float) -> bool:
        """Take in that the process runs; call twice a second. Return whether others may be judged by the time: not
        where what they sent may still be unread. A process that stands still at every turn judges them in between."""
        if now - self._ticked_at > GAP_S:
            self._ended_at = now
            if self._may_excuse:
                self._excused_until, self._may_excuse = now + AFTER_S, False
        self._ticked_at = now
        if now < self._excused_until:
            return False
        self._may_excuse = True
        return True

    def is_in_doubt(self, taken_at: float, now: float) -> bool:
        """Return whether the process stood still after a message was read, or shortly before. A standstill that has
        just ended shows before the first tick."""
        return taken_at < self._ended_at + AFTER_S or now - self._ticked_at > GAP_S
