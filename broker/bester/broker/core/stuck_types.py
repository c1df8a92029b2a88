"""Stuck types: many messages of the type wait, and none of them has moved for a while, or nobody serves it. Pure.

Bridges that know of a stuck type stop reading connections whose next message is of this type. Looked at a few times a
second: a type is judged by the first message of its queue, so that messages themselves cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bester.broker.core.settings import Limits

MAX_STUCK = 64
"""Stuck types that bridges are told: each costs a connection's frames a look."""

Front = tuple[object, ...]
"""The messages of a type that are next, at its queue and at each of its handlers: another tuple when one has moved."""


class StuckTypes:
    """The types that are stuck. A type is free again when half of its messages have gone, so that a slow one does not
    come and go."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._seen: dict[str, tuple[Front, float]] = {}  # types with much waiting: their front, and since when
        self._stuck: dict[str, int] = {}  # messages that waited when the type got stuck
        self.still: set[str] = set()
        """Types with much waiting of which nothing has moved between the last two looks."""

    def look(
        self, waiting: Mapping[str, tuple[int, int]], front: Callable[[str], Front], is_served: Callable[[str], bool],
        now: float,
    ) -> list[str]:  # fmt: skip
        """Return the stuck types. `waiting` are messages and bytes that wait, by type."""
        limits = self._limits
        for type_, before in list(self._stuck.items()):
            if waiting.get(type_, (0, 0))[0] <= before // 2:
                del self._stuck[type_]
        seen, self._seen = self._seen, {}
        self.still = set()
        for type_, (count, size_bytes) in waiting.items():
            if type_ in self._stuck or (count < limits.stuck_waiting and size_bytes < limits.stuck_waiting_bytes):
                continue
            first = front(type_)
            known = seen.get(type_)
            since = now if known is None or known[0] != first else known[1]
            if since < now:
                self.still.add(type_)
            if now - since < limits.stuck_waiting_s and is_served(type_):
                self._seen[type_] = first, since
            elif len(self._stuck) < MAX_STUCK:
                self._stuck[type_] = count
        return sorted(self._stuck)
