"""A message group is one user's messages of an ordered type: while a worker holds any of them all go to this worker;
the rest wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from bester.broker.core.jobs import Job

if TYPE_CHECKING:
    from bester.broker.core.pools import Worker


class MessageGroup:
    """`key` is (type, user), `inflight` counts messages at its `worker`, `waiting` are those after them, in order.

    A group without a worker stands in the queue of its type, and has waiting messages. A group with a worker is among
    the worker's `groups` whenever messages wait in it.
    """

    __slots__ = ("inflight", "key", "waiting", "worker")

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self.worker: Worker | None = None
        self.inflight = 0
        self.waiting: deque[Job] = deque()

    @property
    def suspected(self) -> bool:
        """Return whether the first waiting message is a suspect."""
        return self.waiting[0].suspected

    def enqueue(self, job: Job, *, first: bool) -> None:
        """Queue a job at the end, or `first`: before all others."""
        if first:
            self.waiting.appendleft(job)
        else:
            self.waiting.append(job)
        if self.worker is not None:
            self.worker.groups[self] = None

    def overdue(self, waits_since: Callable[[Job], float]) -> list[Job]:
        """Take out the jobs that have waited since `waits_since(job)` or longer, up to the first that has not."""
        late: list[Job] = []
        while self.waiting and self.waiting[0].since <= waits_since(self.waiting[0]):
            late.append(self.waiting.popleft())
        return late


QueueItem = Job | MessageGroup
"""An item of a queue."""


def oldest(item: QueueItem) -> Job:
    """Return the next job of an item."""
    return item.waiting[0] if isinstance(item, MessageGroup) else item


def sender_of(item: QueueItem) -> Hashable:
    """Return the sender with whom the others of a queue take turns: the user, or the server that has sent the message
    here. The origin is that server's claim: with a new one for each message it would be first always."""
    job = oldest(item)
    return job.user if job.user is not None else ("server", job.peer or job.origin)
