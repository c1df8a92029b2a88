"""A queue in which senders take turns: who queues most waits longest for the last of it, and nobody else does. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items in the order in which they are taken: first those at the head, then one of each sender in turn.

    `sender_of` returns the sender of an item. Items at the head (requeued ones) come before the turns, in their own
    order; the items of one sender keep their order always.
    """

    __slots__ = ("_count", "_head", "_sender_of", "_turns")

    def __init__(self, sender_of: Callable[[T], Hashable]) -> None:
        self._sender_of = sender_of
        self._head: deque[T] = deque()
        self._turns: OrderedDict[Hashable, deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

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
        if items is None:
            self._turns[sender] = deque((item,))
        else:
            items.append(item)

    def appendleft(self, item: T) -> None:
        """Add an item at the head."""
        self._count += 1
        self._head.appendleft(item)

    def extendleft(self, items: Iterable[T]) -> None:
        """Add items at the head, the last one first, as a deque does."""
        for item in items:
            self.appendleft(item)

    def popleft(self) -> T:
        """Take the next item. Raises KeyError where there is none."""
        if self._head:
            item = self._head.popleft()
        else:
            sender, items = self._turns.popitem(last=False)
            item = items.popleft()
            if items:
                self._turns[sender] = items
        self._count -= 1
        return item

    def take(self, most: int) -> list[T]:
        """Take the next items, `most` of them or as many as there are."""
        return [self.popleft() for _ in range(min(most, self._count))]

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
                del self._turns[sender]
        self._count -= 1

    def sweep(self, stays: Callable[[T], bool]) -> None:
        """Take out items that do not stay: any at the head, and of each sender's those before the first that stays."""
        self._head = deque(item for item in self._head if stays(item))
        for sender, items in list(self._turns.items()):
            while items and not stays(items[0]):
                items.popleft()
            if not items:
                del self._turns[sender]
        self._count = len(self._head) + sum(map(len, self._turns.values()))
