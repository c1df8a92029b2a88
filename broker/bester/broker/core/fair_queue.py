"""A queue in which senders take turns: who queues most waits longest for the last of it, and nobody else does. Pure.

The sender of whom fewest items were taken is next, and a quantum of its items is taken in a row, so that what they lead
to can be handled together. A sender that comes counts as one of whom a quantum less was taken than of those who always
wait: a sender that says less than its share waits for no round of the others, and those who always wait have equal
shares, also where they have nothing here for a moment. (This is start-time fair queueing: what was taken of those who
always wait is what had been taken of the sender in turn. That grows by a small part of the items of senders that have
come, too, so that an endless row of newcomers is not always first.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")

QUANTUM = 32
"""Items of one sender in a row where others wait: as many as bridges send in a row."""
NEWCOMERS = 128
"""Divisor: a turn of those who always wait comes after so many quanta of newcomers at the latest. More than the senders
that wait at once in most servers, so that their items keep ahead of those of a sender that says little."""
RESTING = 64
"""Least number of senders without items to be looked through for those that need not be remembered."""


class FairQueue(Generic[T]):
    """Items in the order in which they are taken: first those at the head, then some of each sender in turn.

    `sender_of` returns the sender of an item, `quantum` of whose items are taken in a row. Items at the head (requeued
    ones) come before the turns, in their own order; the items of one sender keep their order always.
    """

    __slots__ = (
        "_count", "_has_come", "_head", "_left", "_number", "_order", "_quantum", "_resting", "_resting_most",
        "_sender", "_sender_of", "_taken", "_turn", "_turns", "_virtual",
    )  # fmt: skip

    def __init__(self, sender_of: Callable[[T], Hashable], quantum: int = QUANTUM) -> None:
        self._sender_of = sender_of
        self._quantum = quantum
        self._head: deque[T] = deque()
        self._turns: dict[Hashable, deque[T]] = {}
        # A heap: items taken, number, whether the sender has come, sender.
        self._order: list[tuple[float, int, bool, Hashable]] = []
        self._number = count()
        self._virtual = 0.0  # items taken of a sender that always waits
        self._taken = 0.0  # items taken of the sender in turn
        self._has_come = False  # the sender in turn has this turn for having come
        self._sender: Hashable = None
        self._turn: deque[T] | None = None  # items of the sender in turn
        self._left = 0
        self._resting: dict[Hashable, float] = {}  # items taken of senders without any left
        self._resting_most = RESTING
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def remembered(self) -> int:
        """Number of senders without items whose share is remembered."""
        return len(self._resting)

    def __iter__(self) -> Iterator[T]:
        """Yield the items sender by sender: each sender's own in their order."""
        yield from self._head
        for items in self._turns.values():
            yield from items

    def count_of(self, sender: Hashable) -> int:
        """Return how many items of a sender wait their turn."""
        items = self._turns.get(sender)
        return 0 if items is None else len(items)

    def counts(self) -> Iterator[tuple[Hashable, int]]:
        """Yield the senders, and how many items of each wait their turn."""
        for sender, items in self._turns.items():
            yield sender, len(items)

    def append(self, item: T) -> None:
        """Add an item behind those of its sender."""
        self._count += 1
        sender = self._sender_of(item)
        items = self._turns.get(sender)
        if items is not None:
            items.append(item)
            return
        self._turns[sender] = deque((item,))
        least = self._virtual - self._quantum
        taken = self._resting.pop(sender, least)
        heappush(self._order, (max(taken, least), next(self._number), taken <= least, sender))

    def appendleft(self, item: T) -> None:
        """Add an item at the head."""
        self._count += 1
        self._head.appendleft(item)

    def extendleft(self, items: Iterable[T]) -> None:
        """Add items at the head, the last one first, as a deque does."""
        before = len(self._head)
        self._head.extendleft(items)
        self._count += len(self._head) - before

    def popleft(self) -> T:
        """Take the next item. Raises IndexError where there is none."""
        if self._head:
            self._count -= 1
            return self._head.popleft()
        return self._take_in_turn(1)[0]

    def take(self, most: int) -> list[T]:
        """Take the next items, `most` of them or as many as there are."""
        most = min(most, self._count)
        taken = [self.popleft() for _ in range(min(most, len(self._head)))]
        while len(taken) < most:
            taken += self._take_in_turn(most - len(taken))
        return taken

    def _take_in_turn(self, most: int) -> list[T]:
        """Take the next items of one sender, at most as many as are left of the turn."""
        items = self._turn
        if items is None:
            self._taken, _, self._has_come, self._sender = heappop(self._order)
            if not self._has_come:
                self._virtual = max(self._virtual, self._taken)
            self._turn = items = self._turns[self._sender]
            self._left = self._quantum
        number = min(most, self._left, len(items))
        self._left -= number
        self._count -= number
        if self._has_come:
            self._virtual += number / NEWCOMERS
        self._taken += number
        taken = [items.popleft() for _ in range(number)]
        if not items or not self._left:
            self._end_turn()
        return taken

    def _end_turn(self) -> None:
        """Let the sender in turn rest where it has no items left, and take its place among the others otherwise."""
        sender = self._sender
        if self._turn:
            heappush(self._order, (self._taken, next(self._number), False, sender))
        else:
            del self._turns[sender]
            self._resting[sender] = self._taken
            if len(self._resting) > self._resting_most:
                least = self._virtual - self._quantum
                self._resting = {each: taken for each, taken in self._resting.items() if taken > least}
                self._resting_most = max(2 * len(self._resting), RESTING)
        self._turn = None

    def remove(self, item: T) -> None:
        """Take an item out. Raises ValueError where it is not in the queue."""
        if item in self._head:
            self._head.remove(item)
        else:
            sender = self._sender_of(item)
            items = self._turns.get(sender)
            if items is None:
                raise ValueError(item)
            items.remove(item)
            if not items:
                self._drop_empty()
        self._count -= 1

    def sweep(self, stays: Callable[[T], bool]) -> None:
        """Take out items that do not stay: any at the head, and of each sender's those before the first that stays."""
        self._head = deque(item for item in self._head if stays(item))
        for items in self._turns.values():
            while items and not stays(items[0]):
                items.popleft()
        self._drop_empty()
        self._count = len(self._head) + sum(map(len, self._turns.values()))

    def _drop_empty(self) -> None:
        """Forget senders whose last items were taken out of their turn."""
        if self._turn is not None and not self._turn:
            self._end_turn()
        self._turns = {sender: items for sender, items in self._turns.items() if items}
        self._order = [entry for entry in self._order if entry[3] in self._turns]
        heapify(self._order)
