"""Time that a handler may take over one message: configured for its type, or its lease, or the common limit."""

from __future__ import annotations

from bester.broker.core.pools import Worker
from bester.broker.core.settings import Settings


class Timeouts:
    """Timeouts of one broker's types, in seconds. `shortest_s` is the shortest that any message may have."""

    def __init__(self, settings: Settings) -> None:
        self._request_s = settings.limits.request_s
        self.configured: dict[str, float] = {
            type_: each.timeout_s for type_, each in settings.budgets.items() if each.timeout_s is not None
        }
        self.shortest_s = min([self._request_s, *self.configured.values()])

    def usual_s(self, lease_s: float) -> float:
        """Return how long a handler with this lease (0: none) may take, where nothing was configured."""
        return max(self._request_s, lease_s)

    def of(self, worker: Worker, type_: str) -> float:
        """Return how long a worker may take over a message of this type."""
        allowed_s = self.configured.get(type_)
        return self.usual_s(worker.lease_s) if allowed_s is None else allowed_s

    def deadline_ms(self, worker: Worker, type_: str, left_s: float | None) -> int | None:
        """Return the deadline for a REQUEST; None where the WELCOME has given the time for all types. `left_s` is the
        rest of the message's time to live, where its sender gave one."""
        if left_s is not None:
            return round(min(left_s, self.of(worker, type_)) * 1000)
        allowed_s = self.configured.get(type_)
        return None if allowed_s is None else round(allowed_s * 1000)
