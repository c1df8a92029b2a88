"""Figures of one broker from its start on: what came, what was answered, what failed and why, how long handlers took.

Plain integers, counted where things happen; `status` makes one value of them, which every display shows. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Any, Protocol

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper ends of the histogram's buckets, in seconds; longer times are in one more."""
SHORTEST_S = BUCKETS_S[0]
SYNC_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
"""The same for the disk of the store, which is faster than a handler where it is well."""
MAX_TYPES = 2_000
"""Types with figures of their own. Those beyond share the figures of OTHERS: a peer may name any number of types."""
OTHERS = "(others)"


class Histogram:
    """Times by bucket: `counts` has one count for each bucket, and one for longer times; `sum_s` is their sum."""

    __slots__ = ("counts", "ends", "sum_s")

    def __init__(self, ends: tuple[float, ...] = BUCKETS_S) -> None:
        self.ends = ends
        self.counts = [0] * (len(ends) + 1)
        self.sum_s = 0.0

    def add(self, took_s: float, times: int = 1) -> None:
        """Count a time, so many times."""
        self.counts[bisect_left(self.ends, took_s)] += times
        self.sum_s += took_s * times


class TypeFigures:
    """Figures of one message type.

    `received` counts the messages that entered, `results` the commands in the replies of handlers. `failed` counts
    messages by the code of their failure; `again` the requests after the first of a message, `dead` the dead letters.
    `handler` are the times of handlers, one for each reply; `whole` the times from the entry of a message to its
    report, one for each message that entered and was reported on.
    """

    __slots__ = ("again", "dead", "failed", "handler", "received", "results", "whole")

    def __init__(self) -> None:
        self.received = 0
        self.results = 0
        self.again = 0
        self.dead = 0
        self.failed: Counter[str] = Counter()
        self.handler = Histogram()
        self.whole = Histogram()

    def as_map(self) -> dict[str, Any]:
        """Return the figures as a map of plain values."""
        handler, whole = self.handler, self.whole
        return {
            "received": self.received, "answered": sum(handler.counts), "results": self.results, "again": self.again,
            "dead": self.dead, "failed": dict(self.failed),
            "took": list(handler.counts), "took_s": round(handler.sum_s, 6),
            "reported": sum(whole.counts), "whole": list(whole.counts), "whole_s": round(whole.sum_s, 6),
        }  # fmt: skip


class Ended(Protocol):
    """A message that entered and was reported on: the figures of its type, and the time of its entry."""

    figures: TypeFigures | None
    since: float


def count_whole(ended: Iterable[Ended], now: float) -> None:
    """Count the whole times of messages whose reports are sent now. Messages that entered together have one object as
    the time of their entry, and are counted together."""
    figures: TypeFigures | None = None
    since = 0.0
    times = 0
    for each in ended:
        if each.since is since and each.figures is figures:
            times += 1
            continue
        if figures is not None:
            figures.whole.add(now - since, times)
        figures, since, times = each.figures, each.since, 1
    if figures is not None:
        figures.whole.add(now - since, times)


class StoreFigures:
    """Figures of the store: `commits`, of which there were `failures`, the seconds that they took together, and the
    times that they waited for the disk (`sync`). The shell says how large the files are, and how much room there is;
    None where there is no file."""

    __slots__ = ("commit_s", "commits", "failures", "room_bytes", "size_bytes", "sync")

    def __init__(self) -> None:
        self.commits = 0
        self.failures = 0
        self.commit_s = 0.0
        self.sync = Histogram(SYNC_BUCKETS_S)
        self.size_bytes: int | None = None
        self.room_bytes: int | None = None

    def as_map(self) -> dict[str, Any]:
        """Return the figures as a map of plain values."""
        return {
            "commits": self.commits, "failures": self.failures, "commit_s": round(self.commit_s, 6),
            "bytes": self.size_bytes, "room_bytes": self.room_bytes,
            "sync": list(self.sync.counts), "sync_s": round(self.sync.sum_s, 6), "sync_buckets_s": list(SYNC_BUCKETS_S),
        }  # fmt: skip


class Figures:
    """Figures by type, of the `store`, and of logins: `logins` counts them by the code of the refusal, `good` where
    there is none. `lockouts` counts the times that a user at an address was made to wait after wrong passwords."""

    def __init__(self) -> None:
        self.lockouts = 0
        self.types: dict[str, TypeFigures] = {}
        self.logins: Counter[str] = Counter()
        self.store = StoreFigures()

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
