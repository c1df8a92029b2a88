"""Figures of one broker from its start on: what came, what was answered, what failed and why, how long handlers took.

Plain integers, counted where things happen; `status` makes one value of them, which every display shows. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from typing import Any

from bester.broker.core.symptoms import RecentDead

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper ends of the histogram's buckets, in seconds; longer times are in one more."""
SYNC_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
"""Ends of the buckets for the disk of the store: a disk that is well is faster than a handler."""
MAX_TYPES = 2_000
"""Types with figures of their own. Types beyond these share the figures of OTHERS: a peer may name any number of
types."""
OTHERS = "(others)"
FOLD_AT = 128
"""Times of one kind that are counted together, in some microseconds: all of a busy second take 15 ms, for which
everybody would wait."""


class Histogram:
    """Times by bucket: `counts` has one count for each bucket, and one for longer times; `sum_s` is their sum."""

    __slots__ = ("counts", "ends", "sum_s")

    def __init__(self, ends: tuple[float, ...] = BUCKETS_S) -> None:
        self.ends = ends
        self.counts = [0] * (len(ends) + 1)
        self.sum_s = 0.0

    def add(self, took_s: float) -> None:
        """Count a time."""
        self.counts[bisect_left(self.ends, took_s)] += 1
        self.sum_s += took_s

    def take(self, times_s: list[float]) -> None:
        """Count all of these times, and empty the list. For many, this is much quicker than one by one."""
        times_s.sort()
        begin = 0
        for at, end_s in enumerate(self.ends):
            upto = bisect_right(times_s, end_s, begin)
            self.counts[at] += upto - begin
            begin = upto
        self.counts[-1] += len(times_s) - begin
        self.sum_s += sum(times_s)
        times_s.clear()


class TypeFigures:
    """Figures of one message type.

    `received` counts the messages that entered, `more_results` the commands in the replies of handlers beyond one for
    each reply (it may be negative). `failed` counts messages by the code of their failure; `again` the requests after
    the first of a message, `dead` the dead letters. `handler` are the times of handlers, one for each reply; `whole`
    the times from the entry of a message to its report, one for each message that entered and was reported on.

    Nothing but a list grows for each message: `took` and `lasted` are times of both kinds that the next `fold` counts.
    Whoever adds to them folds where there are `FOLD_AT` and more.
    """

    __slots__ = ("again", "dead", "failed", "handler", "lasted", "more_results", "received", "took", "whole")

    def __init__(self) -> None:
        self.received = 0
        self.more_results = 0
        self.again = 0
        self.dead = 0
        self.failed: Counter[str] = Counter()
        self.handler = Histogram()
        self.whole = Histogram()
        self.took: list[float] = []
        self.lasted: list[float] = []

    def fold(self) -> None:
        """Count the times that have come since the last call."""
        if self.took:
            self.handler.take(self.took)
        if self.lasted:
            self.whole.take(self.lasted)

    def as_map(self) -> dict[str, Any]:
        """Return the figures as a map of plain values."""
        self.fold()
        handler, whole = self.handler, self.whole
        answered = sum(handler.counts)
        return {
            "received": self.received, "answered": answered, "results": answered + self.more_results,
            "again": self.again, "dead": self.dead, "failed": dict(self.failed),
            "took": list(handler.counts), "took_s": round(handler.sum_s, 6),
            "reported": sum(whole.counts), "whole": list(whole.counts), "whole_s": round(whole.sum_s, 6),
        }  # fmt: skip


class StoreFigures:
    """Figures of the store: `commits`, of which there were `failures`, the seconds that they took together, and the
    times that they waited for the disk (`sync`). `failing` is why the last commit failed, None where it did not.
    `adopted` counts the messages taken over from other brokers of this server. The shell says how large the files are,
    the log of SQLite among them, and how much room there is; None where there is no file."""

    __slots__ = (
        "adopted", "commit_s", "commits", "failing", "failures", "log_bytes", "room_bytes", "size_bytes", "sync",
    )  # fmt: skip

    def __init__(self) -> None:
        self.adopted = 0
        self.commits = 0
        self.failures = 0
        self.failing: str | None = None
        self.commit_s = 0.0
        self.sync = Histogram(SYNC_BUCKETS_S)
        self.size_bytes: int | None = None
        self.log_bytes: int | None = None
        self.room_bytes: int | None = None

    def as_map(self) -> dict[str, Any]:
        """Return the figures as a map of plain values."""
        return {
            "commits": self.commits, "failures": self.failures, "commit_s": round(self.commit_s, 6),
            "failing": self.failing, "adopted": self.adopted,
            "bytes": self.size_bytes, "log_bytes": self.log_bytes, "room_bytes": self.room_bytes,
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
        self.recent_dead = RecentDead()

    def of(self, type_: str) -> TypeFigures:
        """Return the figures of a type, for counting."""
        found = self.types.get(type_)
        if found is None:
            key = type_ if len(self.types) < MAX_TYPES else OTHERS
            found = self.types.setdefault(key, TypeFigures())
        return found

    def count_dead(self, type_: str, reason: str, now: float) -> None:
        """Count a dead letter, with its reason."""
        self.of(type_).dead += 1
        self.recent_dead.add(type_, reason, now)

    def received(self) -> dict[str, int]:
        """Return how many messages of each type have entered."""
        return {type_: figures.received for type_, figures in self.types.items()}

    def fold(self) -> None:
        """Count the times that have come since the last call; to be called about once a second, for memory."""
        for figures in self.types.values():
            figures.fold()

    def as_map(self) -> dict[str, dict[str, Any]]:
        """Return the figures of all types, by type."""
        return {type_: figures.as_map() for type_, figures in self.types.items()}
