"""How many lines one kind of event may write into the log: a hostile party must not fill a disk. Pure."""

from __future__ import annotations

PER_SECOND = 20
"""Lines of one event a second; a storm is as well described by its count."""
SELDOM_S = 10
SELDOM = frozenset({"storage-full", "store-unreadable"})
"""What goes on until somebody mends it is said once in so many seconds: the log may be on the disk that is full."""


WARNINGS = frozenset(
    {
        "clock-jumped",
        "dead-letter",
        "handler-stuck",
        "hello-refused",
        "login-slowed",
        "renamed",
        "reports-nothing",
        "server-lost",
        "storage-full",
        "store-unreadable",
    }
)
"""What somebody should look at."""


class LogLimits:
    """Says which notices are written, and how many of their kind were passed over before."""

    def __init__(self) -> None:
        self._spans: dict[str, tuple[float, int, int]] = {}  # event: (span of time, written in it, passed over since)

    def admit(self, event: str, now: float) -> int | None:
        """Return how many were passed over since the last one written, None where this one is passed over too."""
        lines, span_s = (1, SELDOM_S) if event in SELDOM else (PER_SECOND, 1)
        span, written, passed = self._spans.get(event, (-1, 0, 0))
        if span != now // span_s:
            span, written = now // span_s, 0
        if written >= lines:
            self._spans[event] = (span, written, passed + 1)
            return None
        self._spans[event] = (span, written + 1, 0)
        return passed
