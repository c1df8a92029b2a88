"""Waits before a process that ended is started again. Pure."""

from __future__ import annotations

FIRST_S = 0.1
"""Most ends are single ones: start again at once."""
LONGEST_S = 15.0
"""A program that cannot start costs one attempt in so many seconds, and is back soon after a repair."""
STEADY_S = 10.0
"""A life of this length had started well: its end counts as the first."""


class Backoff:
    """Waits between the lives of one process, doubling while the lives are short. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._wait_s = FIRST_S
        self._started: float | None = None

    def started(self, now: float) -> None:
        """Note that a life begins."""
        self._started = now

    def died(self, now: float) -> float:
        """Note that a life has ended, or could not begin; return the seconds to wait before the next."""
        if self._started is not None and now - self._started >= STEADY_S:
            self._wait_s = FIRST_S
        self._started = None
        wait_s, self._wait_s = self._wait_s, min(self._wait_s * 2, LONGEST_S)
        return wait_s
