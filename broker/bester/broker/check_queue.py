"""Which password is checked next, and who is turned away when too many wait. Pure.

The lowest rank goes first, then whoever came first. When all places are taken, a newcomer of a better rank takes the
place of one of the worst; of the same rank, that of a user, or an address, of which more wait than of the newcomer's: a
flood of logins for one user, or from one address, turns away its own.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Generic, NamedTuple, TypeVar

PLACES = 128
"""Logins that wait; the last has its answer within about 2 s, while its client still listens."""
RANKS = 4

T = TypeVar("T")


class Waiting(NamedTuple, Generic[T]):
    """Somebody's login; `what` is the caller's."""

    rank: int
    user: str
    net: str
    what: T


class CheckQueue(Generic[T]):
    """The logins that wait, by rank."""

    def __init__(self, places: int = PLACES) -> None:
        self._places = places
        self._rows: list[OrderedDict[int, Waiting[T]]] = [OrderedDict() for _ in range(RANKS)]
        self._serial = 0
        self._users: Counter[str] = Counter()
        self._nets: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self._rows))

    def add(self, rank: int, user: str, net: str, what: T) -> T | None:
        """Have a login wait; returns the one that is turned away for it, which may be itself."""
        self._serial += 1
        self._rows[rank][self._serial] = Waiting(rank, user, net, what)
        self._users[user] += 1
        self._nets[net] += 1
        if len(self) <= self._places:
            return None
        worst = max(row for row in range(RANKS) if self._rows[row])
        number = max(self._rows[worst], key=lambda each: self._weight(worst, each))
        return self._remove(worst, number).what

    def _weight(self, rank: int, number: int) -> tuple[int, int, int]:
        """Order those of one rank: of whom most others wait, and who came last, is turned away first."""
        waiting = self._rows[rank][number]
        return self._users[waiting.user], self._nets[waiting.net], number

    def pop(self) -> Waiting[T] | None:
        """Return and forget the login whose turn it is."""
        for rank, row in enumerate(self._rows):
            if row:
                return self._remove(rank, next(iter(row)))
        return None

    def discard(self, what: T) -> None:
        """Whoever waited is gone."""
        for rank, row in enumerate(self._rows):
            for number in [number for number, waiting in row.items() if waiting.what is what]:
                self._remove(rank, number)

    def _remove(self, rank: int, number: int) -> Waiting[T]:
        waiting = self._rows[rank].pop(number)
        for counter, key in ((self._users, waiting.user), (self._nets, waiting.net)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]
        return waiting
