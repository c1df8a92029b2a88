"""Connections that the fabric refused before their HELLO: logged, and kept for an operator's question. Pure."""

from __future__ import annotations

from typing import NamedTuple

from bester.broker.core.effects import Effects

LOG_AGAIN_S = 60.0
"""Least time between two log lines about the same trouble: a refused party tries again every few seconds, for days."""
MAX_REFUSED = 256
"""Refused parties remembered; the one refused longest ago is forgotten first, and may be logged again too soon."""


class Refusal(NamedTuple):
    """A party that was refused so many `times`, last at `at`; `key` is empty where the party showed none."""

    address: str
    key: str
    why: str
    times: int
    at: float


class Refused:
    """The refused parties, by address, key and reason."""

    def __init__(self, out: Effects) -> None:
        self._out = out
        # Count, time of the last, time of the log.
        self._seen: dict[tuple[str, str, str], tuple[int, float, float]] = {}

    def add(self, address: str, key: str, why: str, now: float) -> None:
        """Count a refusal, and log the first and then one in LOG_AGAIN_S."""
        count, _, logged_at = self._seen.pop((address, key, why), (0, now, float("-inf")))
        if now - logged_at >= LOG_AGAIN_S:
            logged_at = now
            fields = {"address": address} | ({"key": key} if key else {})
            self._out.notice("fabric-refused", **fields, why=why)
        while len(self._seen) >= MAX_REFUSED:
            del self._seen[next(iter(self._seen))]
        self._seen[address, key, why] = (count + 1, now, logged_at)

    def latest(self) -> list[Refusal]:
        """Return the refused parties, the latest last."""
        return [Refusal(*party, count, at) for party, (count, at, _) in self._seen.items()]
