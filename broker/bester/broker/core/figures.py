"""Figures of one broker from its start on: what came, what was answered, what failed and why, how long handlers took.

Plain integers, counted where things happen; `status` makes one value of them, which every display shows. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Any

from bester.broker.core.symptoms import RecentDead

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper ends of the histogram's buckets, in seconds; longer times are in one more."""
SHORTEST_S = BUCKETS_S[0]
MAX_TYPES = 2_000
"""Types with figures of their own. Those beyond share the figures of OTHERS: a peer may name any number of types."""
OTHERS = "(others)"


class TypeFigures:
    """Figures of one message type.

    `received` counts the messages that entered, `results` the commands in the replies of handlers. `failed` counts
    messages by the code of their failure; `again` the requests after the first of a message, `dead` the dead letters.
    `took` is the histogram of the handlers' times, with a count for each reply, `took_s` their sum.
    """

    __slots__ = ("again", "dead", "failed", "received", "results", "took", "took_s")

    def __init__(self) -> None:
        self.received = 0
        self.results = 0
        self.again = 0
        self.dead = 0
        self.failed: Counter[str] = Counter()
        self.took = [0] * (len(BUCKETS_S) + 1)
        self.took_s = 0.0

    def add_time(self, took_s: float) -> None:
        """Count the time of a reply."""
        self.took[bisect_left(BUCKETS_S, took_s)] += 1
        self.took_s += took_s

    def as_map(self) -> dict[str, Any]:
        """Return the figures as a map of plain values."""
        return {
            "received": self.received, "answered": sum(self.took), "results": self.results, "again": self.again,
            "dead": self.dead, "failed": dict(self.failed), "took": list(self.took), "took_s": round(self.took_s, 6),
        }  # fmt: skip


class StoreFigures:
    """Figures of the store: `commits`, of which there were `failures`, and the seconds that they took together. The
    shell says how large the files are, and how much room there is; None where there is no file."""

    __slots__ = ("commit_s", "commits", "failures", "room_bytes", "size_bytes")

    def __init__(self) -> None:
        self.commits = 0
        self.failures = 0
        self.commit_s = 0.0
        self.size_bytes: int | None = None
        self.room_bytes: int | None = None

    def as_map(self) -> dict[str, Any]:
        """Return the figures as a map of plain values."""
        return {
            "commits": self.commits, "failures": self.failures, "commit_s": round(self.commit_s, 6),
            "bytes": self.size_bytes, "room_bytes": self.room_bytes,
        }  # fmt: skip


class Figures:
    """Figures by type, of the `store`, and of logins: `logins` counts them by the code of the refusal, `good` where
    there is none."""

    def __init__(self) -> None:
        self.types: dict[str, TypeFigures] = {}
        self.logins: Counter[str] = Counter()
        self.store = StoreFigures()
        self.recent_dead = RecentDead()

    def of(self, type_: str) -> TypeFigures:
        """Return the figures of a type, for counting."""
        found = self.types.get(type_)
        if found is None:
            key = type_ if len(self.types) < MAX_TYPES else OTHERS
            found = self.types.setdefault(key, TypeFigures())
        return found

    def as_map(self) -> dict[str, dict[str, Any]]:
        """Return the figures of all types, by type."""
        return {type_: figures.as_map() for type_, figures in self.types.items()}
