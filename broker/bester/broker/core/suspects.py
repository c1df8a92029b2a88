"""Messages over which a worker may have died (suspects), which wait for workers that are isolated for them.

A worker that dies while holding a single message has died over that message. Of several held messages any may be the
reason, or none: each is a suspect from then on. A suspect is given to a worker that holds and gets nothing else, so
that a death proves something. The suspect over which such a worker dies is the reason, and the others of its group are
cleared (`isolation` chooses the workers).

    the worker held the message    counts as a death over it    then the message is
    alone                          yes                          a suspect by itself; those suspected with it are cleared
    with others                    no                           a suspect, in one group with all of them

A worker that serves several brokers holds a message alone if it was given under the worker's `grant` (see `grants`),
however many messages of this broker it holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bester.broker.core.message_groups import QueueItem
    from bester.broker.core.pools import Worker


class Suspicion:
    """State that a group of suspects shares. `deaths` counts the workers that died over its only member; `open`: its
    members are suspects."""

    __slots__ = ("deaths", "open")

    def __init__(self, deaths: int = 0) -> None:
        self.deaths = deaths
        self.open = True


class Suspects:
    """Suspects that wait, by type, first come first served."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[QueueItem]] = {}
        self._since: dict[str, float] = {}  # by type, a time before which none of them began to wait

    def __bool__(self) -> bool:
        return bool(self._queues)

    def types(self) -> list[str]:
        """Return the types with waiting suspects."""
        return list(self._queues)

    def count(self, type_: str) -> int:
        """Return how many items of a type wait."""
        return len(self._queues.get(type_, ()))

    def queues(self) -> list[deque[QueueItem]]:
        """Return the queues of suspects, of all types."""
        return list(self._queues.values())

    def put(self, type_: str, item: QueueItem, since: float, *, first: bool) -> None:
        """Queue an item at the end, or in front. The item must be suspected, a message group by its first message, and
        waits `since` then."""
        queue = self._queue(type_, since)
        if first:
            queue.appendleft(item)
        else:
            queue.append(item)

    def put_first(self, type_: str, items: Iterable[QueueItem], since: float) -> None:
        """Queue items in front, the last one first; the oldest of them waits `since` then."""
        self._queue(type_, since).extendleft(items)

    def _queue(self, type_: str, since: float) -> deque[QueueItem]:
        """Return the queue of a type that gets an item which waits `since` then."""
        queue = self._queues.get(type_)
        if queue is None:
            queue = self._queues[type_] = deque()
        self._since[type_] = min(since, self._since.get(type_, since))
        return queue

    def remove(self, type_: str, item: QueueItem) -> None:
        """Take out an item."""
        self._queues[type_].remove(item)
        self._tidy(type_)

    def _tidy(self, type_: str) -> None:
        """Forget the queue of a type, where the queue is empty."""
        if not self._queues[type_]:
            del self._queues[type_], self._since[type_]

    def take_all(self, type_: str) -> list[QueueItem]:
        """Take out all suspects of a type."""
        self._since.pop(type_, None)
        return list(self._queues.pop(type_, ()))

    def take_overdue(self, type_: str, waits_since: Callable[[QueueItem], float]) -> list[QueueItem]:
        """Take out all suspects of a type if one of them may have waited since `waits_since(item)` or longer, which is
        one time for all of a type; none else: a worker may leave thousands, and nobody looks through them in vain."""
        queue = self._queues.get(type_)
        return self.take_all(type_) if queue and self._since[type_] <= waits_since(queue[0]) else []

    def waits_for(self, worker: Worker) -> str | None:
        """Return the type of the next suspect for a worker, None where none of its types has one."""
        return next((type_ for type_ in self._queues if type_ in worker.pool.types), None)

    def next_for(self, worker: Worker) -> QueueItem | None:
        """Return the next suspect for a worker that holds nothing, None where none of its types has one."""
        type_ = self.waits_for(worker)
        if type_ is None:
            return None
        queue = self._queues[type_] = self._queues.pop(type_)  # types take turns
        item = queue.popleft()
        self._tidy(type_)
        return item

    def cleared(self) -> list[tuple[str, list[QueueItem]]]:
        """Take out items that are suspects no more, by type, in their order."""
        found: list[tuple[str, list[QueueItem]]] = []
        for type_, queue in list(self._queues.items()):
            free = [item for item in queue if not item.suspected]
            if free:
                found.append((type_, free))
                self._queues[type_] = deque(item for item in queue if item.suspected)
                self._tidy(type_)
        return found
