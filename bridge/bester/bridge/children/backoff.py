"""How long to wait before something that died is started again. Pure: the caller says what time it is."""

from __future__ import annotations

FIRST_S = 0.1
"""Most deaths are single ones: start again at once."""
LONGEST_S = 15.0
"""A program that cannot start costs one attempt in so many seconds, and is back soon after it is mended."""
STEADY_S = 10.0
"""What lived so long had started well: its death is counted as the first."""


class Backoff:
    """The waits between the lives of one process, doubling while they are short. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._wait_s = FIRST_S
        self._started: float | None = None

    def started(self, now: float) -> None:
        """Note that a life begins."""
        self._started = now

    def died(self, now: float) -> float:
        """Note that it ended, or could not begin; return how many seconds to wait before the next."""
        if self._started is not None and now - self._started >= STEADY_S:
            self._wait_s = FIRST_S
        self._started = None
        wait_s, self._wait_s = self._wait_s, min(self._wait_s * 2, LONGEST_S)
        return wait_s
