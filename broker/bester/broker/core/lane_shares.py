"""Shares of lanes: how much of a lane to another server one sender has in transfer at once. Pure.

A lane is sent in order, and what one sender has in transfer is before all that others send later. So a sender has a
share of a lane to which another sends, too: what is above the share waits here, in order, and goes on as the sender's
own messages are answered. A sender alone has the whole lane.

A share that is right for a server nearby is little for one that is far away: it would be all that goes in the time of
an answer. So what waits has more of the lane answer by answer, as long as answers do not take longer for it.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Hashable, Iterator
from typing import NamedTuple

from bester.broker.core.jobs import Job
from bester.broker.core.settings import Route

SHARED_S = 10.0
"""Time for which a lane counts as shared after two senders have taken turns."""
AT_ONCE = 2
"""Messages that go on with one that comes, or is answered: what waits becomes less, a few at a time."""
FAR_S = 0.1
"""Time of an answer above which a share may be too little: below it thousands a second go within the share."""
LONGER = 2
"""Times the shortest time of an answer from which it has taken longer for what was before it."""


class Sharer(NamedTuple):
    """Sender of messages that have come so many steps, which have a share together. In a ring of servers a message
    leads to others here, and has no answer before these: they are more steps on, and so do not wait for it."""

    sender: Hashable
    steps: int


class Waiting(NamedTuple):
    """A result of a job, on its way to a server, that waits for a share of its lane since some time. The job's body is
    not kept."""

    job: Job
    route: Route
    target: str
    type: str
    body: bytes
    id: str
    since: float


class _Lane:
    """Messages of one lane by sender: counts of those in transfer, what a sender may have above the share, and those
    that wait."""

    __slots__ = ("count", "inflight", "least_s", "more", "sender", "shared_until", "size_bytes", "waiting")

    def __init__(self, sharer: Sharer) -> None:
        self.inflight: Counter[Sharer] = Counter()
        self.more: Counter[Sharer] = Counter()
        self.least_s = math.inf  # shortest time of an answer
        self.waiting: dict[Sharer, deque[Waiting]] = {}
        self.count = 0  # of those that wait
        self.size_bytes = 0  # of their bodies
        self.sender = sharer.sender  # the last one
        self.shared_until = 0.0


class LaneShares:
    """Shares of all lanes that have messages in transfer; `share` is that of a sender at least, in messages."""

    def __init__(self, share: int) -> None:
        self._share = share
        self._lanes: dict[str, _Lane] = {}

    def must_wait(self, lane: str, sharer: Sharer, now: float) -> bool:
        """Return whether the next message of a sender waits: behind others of the sender, or for its share."""
        found = self._lanes.get(lane)
        if found is None:
            return False
        if found.sender != sharer.sender:
            found.sender, found.shared_until = sharer.sender, now + SHARED_S
        return sharer in found.waiting or self._uses_share(found, sharer, now)

    def _uses_share(self, found: _Lane, sharer: Sharer, now: float) -> bool:
        return now < found.shared_until and found.inflight[sharer] >= self._share + found.more[sharer]

    def wait(self, lane: str, sharer: Sharer, message: Waiting) -> None:
        """Let a message wait that must."""
        found = self._lanes[lane]
        found.waiting.setdefault(sharer, deque()).append(message)
        found.count += 1
        found.size_bytes += len(message.body)

    def waits(self, lane: str) -> tuple[int, int]:
        """Return count and bytes of the messages of a lane that wait."""
        found = self._lanes.get(lane)
        return (0, 0) if found is None else (found.count, found.size_bytes)

    def inspect(self) -> dict[str, int]:
        """Return how many messages wait, by lane."""
        return {lane: found.count for lane, found in self._lanes.items() if found.count}

    def began(self, lane: str, sharer: Sharer) -> None:
        """Count a message of a sender in transfer."""
        found = self._lanes.get(lane)
        if found is None:
            found = self._lanes[lane] = _Lane(sharer)
        found.inflight[sharer] += 1

    def ended(self, lane: str, sharer: Sharer) -> None:
        """Count a message of a sender as in transfer no more."""
        found = self._lanes[lane]
        found.inflight[sharer] -= 1
        if not found.inflight[sharer]:
            del found.inflight[sharer]
            found.more.pop(sharer, None)
            self._forget(lane, found)

    def answered(self, lane: str, sharer: Sharer, took_s: float) -> None:
        """Take in how long the answer to a message took that is in transfer no more: whether the sender may have one
        more or one less."""
        found = self._lanes.get(lane)
        if found is None:
            return
        found.least_s = min(found.least_s, took_s)
        if sharer not in found.inflight:
            return
        if sharer in found.waiting and FAR_S < took_s <= LONGER * found.least_s:
            found.more[sharer] += 1
        elif found.more[sharer]:
            found.more[sharer] -= 1

    def take(self, lane: str, sharer: Sharer, now: float, *, most: int = AT_ONCE) -> Iterator[Waiting]:
        """Yield the messages of a sender that may go on, `most` at once; the caller sends each before the next."""
        for _ in range(most):
            found = self._lanes.get(lane)
            if found is None or sharer not in found.waiting:
                return
            if self._uses_share(found, sharer, now):
                return
            yield self._pop(lane, found, sharer)

    def take_first(self, lane: str, sharer: Sharer, most: int = AT_ONCE, before: float = math.inf) -> Iterator[Waiting]:
        """Yield the first messages of a sender that wait since a time `before` or longer, `most` at once, whatever its
        share."""
        for _ in range(most):
            found = self._lanes.get(lane)
            if found is None or sharer not in found.waiting or found.waiting[sharer][0].since > before:
                return
            yield self._pop(lane, found, sharer)

    def __iter__(self) -> Iterator[Waiting]:
        """Yield all messages that wait."""
        for found in self._lanes.values():
            for messages in found.waiting.values():
                yield from messages

    def waiting(self) -> list[tuple[str, Sharer]]:
        """Return the lanes and senders of which messages wait."""
        return [(lane, sharer) for lane, found in self._lanes.items() for sharer in found.waiting]

    def _pop(self, lane: str, found: _Lane, sharer: Sharer) -> Waiting:
        queue = found.waiting[sharer]
        message = queue.popleft()
        found.count -= 1
        found.size_bytes -= len(message.body)
        if not queue:
            del found.waiting[sharer]
            self._forget(lane, found)
        return message

    def _forget(self, lane: str, found: _Lane) -> None:
        if not found.inflight and not found.waiting:
            del self._lanes[lane]
