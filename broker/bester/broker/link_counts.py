"""Open links of each key of the fabric that have spoken, over all doors of a server: a bound on their number. Pure.

ZeroMQ gives one message of each link in turn, so that a party has as large a part of the reading as it has links.
"""

from __future__ import annotations

from collections import Counter

MOST_LINKS = 64
"""Open links of one key that have spoken: as many handlers of a busy machine, or all messages of others wait for a row
of that many."""
WHY = f"its key has {MOST_LINKS} links open"
"""Reason for the log."""


class LinkCounts:
    """Links that have spoken and whose connections are open, by key."""

    def __init__(self) -> None:
        self._counts: Counter[bytes] = Counter()

    def has_room(self, key: bytes) -> bool:
        """Return whether a key may have another link."""
        return self._counts[key] < MOST_LINKS

    def begin(self, key: bytes) -> None:
        """Count a link."""
        self._counts[key] += 1

    def end(self, key: bytes) -> None:
        """Count a link out."""
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]
