"""Queue of password checks: which check is next, and which login is turned away from a full queue. Pure.

The lowest rank goes first, and in one rank the oldest. In a full queue a newcomer of a better rank replaces one login
of the worst rank. Within one rank, the login goes whose user, or whose address, has most logins in the queue: a flood
of logins for one user, or from one address, turns away its own.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Generic, NamedTuple, TypeVar

MAX_WAITING = 128
"""Logins in the queue; the last has its answer within about 2 s, while its client still listens."""
RANKS = 4

T = TypeVar("T")


class Waiting(NamedTuple, Generic[T]):
    """Login in the queue; `item` is the caller's object."""

    rank: int
    user: str
    net: str
    item: T


class CheckQueue(Generic[T]):
    """Waiting logins by rank."""

    def __init__(self, most: int = MAX_WAITING) -> None:
        self._most = most
        self._rows: list[OrderedDict[int, Waiting[T]]] = [OrderedDict() for _ in range(RANKS)]
        self._serial = 0
        self._users: Counter[str] = Counter()
        self._nets: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self._rows))

    def add(self, rank: int, user: str, net: str, item: T) -> T | None:
        """Add a login. Return the item that is turned away from a full queue, which may be the added one."""
        self._serial += 1
        self._rows[rank][self._serial] = Waiting(rank, user, net, item)
        self._users[user] += 1
        self._nets[net] += 1
        if len(self) <= self._most:
            return None
        worst = max(row for row in range(RANKS) if self._rows[row])
        number = max(self._rows[worst], key=lambda each: self._weight(worst, each))
        return self._remove(worst, number).item

    def _weight(self, rank: int, number: int) -> tuple[int, int, int]:
        """Order logins of one rank: the user with most logins, then the address, then the newest is turned away
        first."""
        waiting = self._rows[rank][number]
        return self._users[waiting.user], self._nets[waiting.net], number

    def pop(self) -> Waiting[T] | None:
        """Remove and return the next login."""
        for rank, row in enumerate(self._rows):
            if row:
                return self._remove(rank, next(iter(row)))
        return None

    def discard(self, item: T) -> None:
        """Remove the logins of an item."""
        for rank, row in enumerate(self._rows):
            for number in [number for number, waiting in row.items() if waiting.item is item]:
                self._remove(rank, number)

    def _remove(self, rank: int, number: int) -> Waiting[T]:
        waiting = self._rows[rank].pop(number)
        for counter, key in ((self._users, waiting.user), (self._nets, waiting.net)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]
        return waiting
