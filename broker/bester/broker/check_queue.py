"""Queue of password checks: which check is next, and which login is turned away from a full queue. Pure.

The lowest rank goes first; in one rank users take turns, and each user's oldest login is first. A user with many
logins in the queue goes two ranks behind: a storm of one user's clients, with the right password, keeps nobody else
waiting. In a full queue a newcomer of a better rank replaces one login of the worst rank. Within one rank, the login
goes whose user, or whose address, has most logins in the queue: a flood of logins for one user, or from one address,
turns away its own.
"""

from __future__ import annotations

from collections import Counter
from typing import Generic, NamedTuple, TypeVar

MAX_WAITING = 128
"""Logins in the queue; the last has its answer within about 2 s, while its client still listens."""
MANY = 8
"""Logins of one user in the queue above which they go two ranks behind: more than a person has devices."""

T = TypeVar("T")


class Waiting(NamedTuple, Generic[T]):
    """Login in the queue; `item` is the caller's object."""

    rank: int
    user: str
    net: str
    item: T


class CheckQueue(Generic[T]):
    """Waiting logins, by their number in the order of arrival."""

    def __init__(self, most: int = MAX_WAITING) -> None:
        self._most = most
        self._logins: dict[int, Waiting[T]] = {}
        self._serial = 0
        self._users: Counter[str] = Counter()
        self._nets: Counter[str] = Counter()
        self._turns: dict[str, int] = {}  # when a user with logins in the queue had a turn last

    def __len__(self) -> int:
        return len(self._logins)

    def add(self, rank: int, user: str, net: str, item: T) -> T | None:
        """Add a login. Return the item that is turned away from a full queue, which may be the added one."""
        self._serial += 1
        self._logins[self._serial] = Waiting(rank, user, net, item)
        self._users[user] += 1
        self._nets[net] += 1
        if len(self) <= self._most:
            return None
        return self._remove(max(self._logins, key=self._weight)).item

    def _rank(self, waiting: Waiting[T]) -> int:
        return waiting.rank + 2 * (self._users[waiting.user] > MANY)

    def _weight(self, number: int) -> tuple[int, int, int, int]:
        """Order logins by who is turned away first: the worst rank, in it the user with most logins, then the address,
        then the newest."""
        waiting = self._logins[number]
        return self._rank(waiting), self._users[waiting.user], self._nets[waiting.net], number

    def _order(self, number: int) -> tuple[int, int, int]:
        waiting = self._logins[number]
        return self._rank(waiting), self._turns.get(waiting.user, 0), number

    def pop(self) -> Waiting[T] | None:
        """Remove and return the next login."""
        if not self._logins:
            return None
        number = min(self._logins, key=self._order)
        user = self._logins[number].user
        waiting = self._remove(number)
        if self._users[user]:
            self._serial += 1
            self._turns[user] = self._serial
        return waiting

    def discard(self, item: T) -> None:
        """Remove the logins of an item."""
        for number in [number for number, waiting in self._logins.items() if waiting.item is item]:
            self._remove(number)

    def _remove(self, number: int) -> Waiting[T]:
        waiting = self._logins.pop(number)
        for counter, key in ((self._users, waiting.user), (self._nets, waiting.net)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]
        if waiting.user not in self._users:
            self._turns.pop(waiting.user, None)
        return waiting
