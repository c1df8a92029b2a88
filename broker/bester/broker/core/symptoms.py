"""Facts in a status that only the server knows and the doctor needs: who floods, the dead
letters and refusals of the last minutes. Pure; each list has a bound, and is made when somebody asks.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from bester.broker.core.refused import Refusal

SHOWN = 10
"""Rows of each list: a person reads no more, and counts tell how many there are."""
RECENT_S = 600.0
"""Time for which a dead letter, and a refused party, is news."""
MAX_RECENT = 1_000
"""Dead letters whose time is remembered: more of them in RECENT_S are as bad."""


class RecentDead:
    """The latest dead letters: time, type and reason."""

    def __init__(self) -> None:
        self._letters: deque[tuple[float, str, str]] = deque(maxlen=MAX_RECENT)

    def add(self, type_: str, reason: str, now: float) -> None:
        """Take in a dead letter."""
        self._letters.append((now, type_, reason))

    def as_map(self, now: float) -> dict[str, Any]:
        """Return how many there were by type and reason within `window_s` seconds, the most frequent first."""
        counts = Counter((type_, reason) for at, type_, reason in self._letters if now - at <= RECENT_S)
        rows = [{"type": type_, "reason": why, "count": count} for (type_, why), count in counts.most_common(SHOWN)]
        return {"window_s": RECENT_S, "count": counts.total(), "by": rows}


def busiest(waiting: Mapping[Hashable, int]) -> list[dict[str, Any]]:
    """Return the senders of most waiting messages: a user, or another server."""
    rows = []
    for sender, count in heapq.nlargest(SHOWN, waiting.items(), key=lambda each: each[1]):
        kind, name = ("user", sender) if isinstance(sender, str) else ("server", _server(sender))
        rows.append({"kind": kind, "sender": name, "waiting": count})
    return rows


def _server(sender: Hashable) -> str:
    return str(sender[1]) if isinstance(sender, tuple) else str(sender)


def refused_lately(refused: Iterable[Refusal], now: float) -> dict[str, Any]:
    """Return the `count` of parties that were refused within RECENT_S, and the `latest` of them, the last one first."""
    late = [each for each in refused if now - each.at <= RECENT_S]
    rows = [
        {
            "address": each.address,
            "key": each.key,
            "why": each.why,
            "times": each.times,
            "ago_s": round(now - each.at, 3),
        }
        for each in late[: -SHOWN - 1 : -1]
    ]
    return {"count": len(late), "latest": rows}
