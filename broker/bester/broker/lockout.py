"""Who must wait before trying a password again. Pure: the caller tells it what happened and what time it is.

An account and an address are *keys* here, each with its own history. It never
sleeps, never checks a password, and never grows beyond `KEY_LIMIT` keys.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

FAILURES = 5
WINDOW_S = 30.0
"""So many wrong passwords within so many seconds, and the key has to wait."""
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 64.0
"""The wait doubles up to this: one guess a minute is no attack, and nobody is locked out of their account for long."""
FORGET_S = 600.0
"""A key without a failure for so long starts afresh."""
KEY_LIMIT = 20_000
"""Keys remembered, a few MiB at most; beyond it the one that failed longest ago is forgotten."""


@dataclass(slots=True)
class _History:
    failures: list[float] = field(default_factory=list)  # times, the last FAILURES at most
    level: int = 0  # how often the key had to wait
    free_at: float = 0.0  # until then it waits


class Lockout:
    """Histories of wrong passwords. Times are seconds of one monotonic clock."""

    def __init__(self, key_limit: int = KEY_LIMIT) -> None:
        self._key_limit = key_limit
        self._histories: OrderedDict[str, _History] = OrderedDict()  # the latest failure last

    def __len__(self) -> int:
        return len(self._histories)

    def wait_s(self, keys: Iterable[str], now: float) -> float:
        """Return how many seconds an attempt under these keys must still wait; 0.0 means it may be made."""
        histories = (self._histories.get(key) for key in keys)
        return max((history.free_at - now for history in histories if history and history.free_at > now), default=0.0)

    def failed(self, keys: Iterable[str], now: float) -> None:
        """Note a wrong password under each of the keys."""
        for key in keys:
            history = self._histories.pop(key, None)
            if history is None or now - history.failures[-1] > FORGET_S:
                history = _History()
            self._histories[key] = history
            history.failures = [*[at for at in history.failures if now - at <= WINDOW_S][1 - FAILURES :], now]
            # Who has waited once gets no five fresh guesses: each further one doubles the wait.
            if history.level or len(history.failures) >= FAILURES:
                history.free_at = now + min(FIRST_WAIT_S * 2.0 ** min(history.level, 32), LONGEST_WAIT_S)
                history.level += 1
        while len(self._histories) > self._key_limit:
            self._histories.popitem(last=False)

    def succeeded(self, key: str) -> None:
        """Forget a key's history: whoever uses it knew the password."""
        self._histories.pop(key, None)
