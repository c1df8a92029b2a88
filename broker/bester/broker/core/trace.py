"""Trace of the last steps that messages took: bounded, the oldest forgotten first."""

from __future__ import annotations

from collections import deque
from typing import Any

from bester.broker.core.clock import Clock

StepTaken = tuple[float, str, str, str, str]
"""(at, root, id, what, where): at `at` seconds of the core's `now`, message `id` of `root` was `what` at `where` (a
type, a user, a server)."""


class Trace:
    """Ring of steps at `server`. It never holds bodies."""

    def __init__(self, size: int, clock: Clock, server: str) -> None:
        self._steps: deque[StepTaken] = deque(maxlen=size)
        self._clock = clock
        self._server = server
        self.add = self._steps.append

    def latest(self) -> str | None:
        """Return the root of the latest step, None where there is none."""
        return self._steps[-1][1] if self._steps else None

    def of(self, root: str) -> list[dict[str, Any]]:
        """Return the steps of one root in order, with times in milliseconds of the wall clock."""
        return [
            {
                "at_ms": round(self._clock.wall(at) * 1000, 3),
                "id": id_,
                "what": what,
                "where": f"{self._server}/{where}",
            }
            for at, step_root, id_, what, where in self._steps
            if step_root == root
        ]
