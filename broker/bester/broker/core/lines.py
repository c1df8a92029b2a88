"""A line is one user's messages of an ordered type: while a worker holds any of them all go to it, the rest wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from bester.broker.core.parcels import Parcel

if TYPE_CHECKING:
    from bester.broker.core.pools import Worker


class Line:
    """`key` is (type, user), `count` how many its `worker` holds, `waiting` what comes after them, in order.

    Without a worker it stands in the queue of its type, and something waits in it. With one, it is among the worker's
    own lines whenever something waits in it.
    """

    __slots__ = ("count", "key", "waiting", "worker")

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self.worker: Worker | None = None
        self.count = 0
        self.waiting: deque[Parcel] = deque()

    @property
    def suspected(self) -> bool:
        """Whether its first message is a suspect."""
        return self.waiting[0].suspected

    def add(self, parcel: Parcel, *, first: bool) -> None:
        """Put a parcel at the end, or `first`: before all others."""
        if first:
            self.waiting.appendleft(parcel)
        else:
            self.waiting.append(parcel)
        if self.worker is not None:
            self.worker.lines[self] = None

    def overdue(self, before: Callable[[Parcel], float]) -> list[Parcel]:
        """Take out what has waited since the time that `before` says of it, or longer, up to the first that has not."""
        gone: list[Parcel] = []
        while self.waiting and self.waiting[0].since <= before(self.waiting[0]):
            gone.append(self.waiting.popleft())
        return gone


Item = Parcel | Line
"""What stands in a queue."""


def oldest(item: Item) -> Parcel:
    """Return the parcel that is next of this item."""
    return item.waiting[0] if isinstance(item, Line) else item
