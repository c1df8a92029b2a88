"""Messages of ZeroMQ that wait of one party at an encrypted door (`slices`), in their order, by link. Pure.

A link that is cut is taken out without a look at the messages of others: a party may have thousands of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from bester.broker.core.effects import Link

SLICE = 16
"""Rows handled between two looks at the clock: a look costs a hundredth of them where they are cheap."""
FIRST = 4
"""Rows handled at once of a party of which nothing is known."""


class Batch(NamedTuple):
    """Message of ZeroMQ that waits since `since`; `frames` is None for the end of the link, and empty once the message
    has been read: its rows hold what they need."""

    link: Link
    frames: Sequence[bytes] | None
    size_bytes: int
    since: float


class _Backlog:
    """Messages that wait of one link, in order; none once the link has been cut."""

    __slots__ = ("batches", "link", "size_bytes")

    def __init__(self, link: Link) -> None:
        self.link = link
        self.batches: deque[Batch] = deque()
        self.size_bytes = 0


class Line:
    """Messages that wait of one party, by link; `count` of them. `_order` has the backlog of each message, in the order
    in which these came. `rows` are the rest of the first message, once it has been begun; `slice` is how many of them
    are handled at once: fewer where they have been costly, some more each time that they were not. `had_s` is the time
    that the party has had; `place` is the number of its entry in the order of parties."""

    __slots__ = ("_order", "backlogs", "count", "had_s", "place", "rows", "size_bytes", "slice")

    def __init__(self, had_s: float) -> None:
        self.backlogs: dict[Link, _Backlog] = {}
        self._order: deque[_Backlog] = deque()
        self.rows: Any = None
        self.size_bytes = self.count = 0
        self.slice = FIRST
        self.had_s = had_s
        self.place = 0

    def add(self, batch: Batch) -> None:
        """Add a message behind the others."""
        backlog = self.backlogs.get(batch.link)
        if backlog is None:
            backlog = self.backlogs[batch.link] = _Backlog(batch.link)
        backlog.batches.append(batch)
        backlog.size_bytes += batch.size_bytes
        self._order.append(backlog)
        self.size_bytes += batch.size_bytes
        self.count += 1

    @property
    def first(self) -> Batch:
        """First message that waits. Raises IndexError where none does."""
        return self._next_backlog().batches[0]

    def let_go_of_frames(self) -> None:
        """Let the frames of the first message go: it has been read."""
        batches = self._next_backlog().batches
        batches[0] = batches[0]._replace(frames=())

    def take(self) -> Batch:
        """Take the first message out."""
        backlog = self._next_backlog()
        self._order.popleft()
        batch = backlog.batches.popleft()
        backlog.size_bytes -= batch.size_bytes
        self.size_bytes -= batch.size_bytes
        self.count -= 1
        if not backlog.batches:
            del self.backlogs[batch.link]
        return batch

    def cut(self, link: Link) -> deque[Batch]:
        """Take all messages of a link out, without a look at those of other links."""
        if self.rows is not None and self.first.link == link:
            self.rows = None
        backlog = self.backlogs.pop(link)
        batches, backlog.batches = backlog.batches, deque()
        self.size_bytes -= backlog.size_bytes
        self.count -= len(batches)
        if len(self._order) > 2 * self.count + SLICE:  # mostly entries of links that were cut
            self._order = deque(each for each in self._order if each.batches)
        return batches

    def _next_backlog(self) -> _Backlog:
        """Return the backlog whose turn it is, past those of links that were cut."""
        order = self._order
        while not order[0].batches:
            order.popleft()
        return order[0]
