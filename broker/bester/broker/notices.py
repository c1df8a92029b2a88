"""How many lines one kind of event may write into the log: a hostile party must not fill a disk. Pure."""

from __future__ import annotations

PER_SECOND = 20
"""Lines of one event a second; a storm is as well described by its count."""


class Notices:
    """Says which notices are written, and how many of their kind were passed over before."""

    def __init__(self) -> None:
        self._seconds: dict[str, tuple[int, int, int]] = {}  # event: (second, written in it, passed over since)

    def admit(self, event: str, now: float) -> int | None:
        """Return how many were passed over since the last one written, None where this one is passed over too."""
        second, written, passed = self._seconds.get(event, (-1, 0, 0))
        if second != int(now):
            second, written = int(now), 0
        if written >= PER_SECOND:
            self._seconds[event] = (second, written, passed + 1)
            return None
        self._seconds[event] = (second, written + 1, 0)
        return passed
