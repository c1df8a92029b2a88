"""Rates of users' messages, and counts of everything that the bridge refused at its door. Pure; time is an argument.

A user has a bucket of tokens: each message takes one, `per_second` come back each second, and the bucket holds as many
as come in BURST_S. Buckets that are full are not stored, so that users who send little cost nothing.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

BURST_S = 2.0
"""Seconds of messages that a user may send at once: programs send in bursts, and a limit is on the average."""
MAX_USERS = 100_000
"""Users with a bucket that is not full; above it the one that sent longest ago starts afresh."""


class Meter:
    """Buckets by user, and counts. `per_second` 0: no limit on messages.

    `reached` counts what was refused, dropped or cut at other bounds, by the bound's name.

    `messages` counts messages refused for their rate, `first_frames` first frames that were too large or unreadable,
    `connections` those for which there was no place, in all or for their address, `sessions` logins of users who had
    too many.
    """

    def __init__(self, per_second: float = 0.0) -> None:
        self.per_second = per_second
        self.most = max(1.0, per_second * BURST_S)
        self.reached: Counter[str] = Counter()
        self.messages = self.first_frames = self.connections = self.sessions = 0
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens left, and when

    @property
    def limits(self) -> bool:
        """Return whether messages are limited."""
        return self.per_second > 0

    @property
    def users(self) -> int:
        """Return the number of users whose bucket is not full, as far as is known."""
        return len(self._buckets)

    def take(self, user: str, now: float) -> bool:
        """Take a token for a message of a user; False where there is none."""
        left, at = self._buckets.pop(user, (self.most, now))
        left = min(self.most, left + max(0.0, now - at) * self.per_second)
        allowed = left >= 1.0
        self._buckets[user] = (left - 1.0 if allowed else left), now
        self.messages += not allowed
        if len(self._buckets) > MAX_USERS:
            self._buckets.popitem(last=False)
        return allowed

    def tick(self, now: float) -> None:
        """Forget buckets that are full again, oldest first."""
        while self._buckets:
            user, (left, at) = next(iter(self._buckets.items()))
            if left + (now - at) * self.per_second < self.most:
                return
            del self._buckets[user]
