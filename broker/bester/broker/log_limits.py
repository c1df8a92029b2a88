"""Bounds on how many lines the log takes, so that no client, handler or network can fill a disk. Pure.

`LogLimits` bounds the lines of one event; `LogRateLimit` applies such a bound to each line of code that logs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PER_SECOND = 20
"""Lines of one event a second; a count describes a storm as well."""
SELDOM_S = 10
SELDOM = frozenset(
    {"shadow-drops", "storage-full", "storage-unavailable", "store-unreadable", "store-waits", "store-writable"}
)
"""Events that go on until an operator acts, and their end: a line in SELDOM_S seconds, as the log may be on the full
disk."""
WARNINGS = frozenset(
    {
        "clock-jumped",
        "contracts-differ",
        "damaged",
        "dead-letter",
        "fabric-refused",
        "handler-stuck",
        "hello-refused",
        "login-slowed",
        "login-undecided",
        "renamed",
        "reports-nothing",
        "server-lost",
        "shadow-differs",
        "shadow-drops",
        "storage-full",
        "storage-unavailable",
        "store-unreadable",
        "store-waits",
    }
)
"""Events that an operator should look at."""
PACED = {"paced": True}
"""The `extra` of a record that no rate limit drops: its sender has a bound, or carries the log of a child."""


class LogLimits:
    """Count the lines of each event, and refuse those above its limit."""

    def __init__(self) -> None:
        self._spans: dict[str, tuple[float, int, int]] = {}  # event: (span of time, lines in it, refused since)

    def admit(self, event: str, now: float) -> int | None:
        """Return how many lines of the event were refused since the last admitted one; None refuses this one."""
        lines, span_s = (1, SELDOM_S) if event in SELDOM else (PER_SECOND, 1)
        span, written, refused = self._spans.get(event, (-1, 0, 0))
        if span != now // span_s:
            span, written = now // span_s, 0
        if written >= lines:
            self._spans[event] = (span, written, refused + 1)
            return None
        self._spans[event] = (span, written + 1, 0)
        return refused


class LogRateLimit:
    """Filter of a log handler: PER_SECOND records a second of each line of Bester's code that logs.

    The next record admitted carries the number of refused ones as `passed_over`. Records of loggers outside
    `bester`, and those marked PACED, are always admitted.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` returns monotonic seconds."""
        self._clock = clock
        self._limits = LogLimits()

    def __call__(self, record: Any) -> bool:
        """Return whether the record (a `logging.LogRecord`) is written."""
        ours = record.name == "bester" or record.name.startswith("bester.")
        if not ours or getattr(record, "paced", False):
            return True
        refused = self._limits.admit(f"{record.pathname}:{record.lineno}", self._clock())
        if refused:
            record.passed_over = refused
        return refused is not None
