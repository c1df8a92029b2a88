"""A line is one user's messages of an ordered type: while a worker holds any of them all go to it, the rest wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from bester.broker.core.jobs import Job

if TYPE_CHECKING:
    from bester.broker.core.pools import Worker


class MessageGroup:
    """`key` is (type, user), `count` how many its `worker` holds, `waiting` what comes after them, in order.

    Without a worker it stands in the queue of its type, and something waits in it. With one, it is among the worker's
    own lines whenever something waits in it.
    """

    __slots__ = ("inflight", "key", "waiting", "worker")

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self.worker: Worker | None = None
        self.inflight = 0
        self.waiting: deque[Job] = deque()

    @property
    def suspected(self) -> bool:
        """Whether its first message is a suspect."""
        return self.waiting[0].suspected

    def enqueue(self, job: Job, *, first: bool) -> None:
        """Put a parcel at the end, or `first`: before all others."""
        if first:
            self.waiting.appendleft(job)
        else:
            self.waiting.append(job)
        if self.worker is not None:
            self.worker.groups[self] = None

    def overdue(self, before: Callable[[Job], float]) -> list[Job]:
        """Take out what has waited since the time that `before` says of it, or longer, up to the first that has not."""
        gone: list[Job] = []
        while self.waiting and self.waiting[0].since <= before(self.waiting[0]):
            gone.append(self.waiting.popleft())
        return gone


QueueItem = Job | MessageGroup
"""What stands in a queue."""


def oldest(item: QueueItem) -> Job:
    """Return the parcel that is next of this item."""
    return item.waiting[0] if isinstance(item, MessageGroup) else item
