"""Transfers: the messages that were sent to other servers and are not answered yet. Pure.

A message goes to a server over the fabric link that this broker has opened (RELAY), or through a bridge by the native
protocol (FORWARD). Either ends with an outcome, by an answer or by a deadline.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from msgspec import Struct

from bester.broker.core.cases import Case
from bester.broker.core.effects import Link
from bester.broker.core.lane_shares import LaneShares, Sharer
from bester.broker.core.settings import Route
from bester.broker.store_requests import Entry

MAX_LANE_BYTES = 64 * 1024 * 1024
"""Bodies of one lane in flight at once: they stay in memory until they are answered."""


class Transfer(Struct, eq=False):
    """A message on its way to a server.

    `case` is settled by the answer; None where the message is kept, for its case is settled at the commit. An answer
    counts until `deadline`, in seconds of `now`. `again`: the message was sent before, and may have been delivered.
    `sharer` is the one in whose share of the lane it counts, None where it counts in none.
    """

    entry: Entry
    target: str
    link: Link
    route: Route
    deadline: float
    case: Case | None
    again: bool = False
    sharer: Sharer | None = None


class Transfers:
    """All transfers by token, at most `max_lane` of each lane, and the `shares` of their senders. A lane is named by
    the key of the queue that its messages would be in."""

    def __init__(self, max_lane: int, shares: LaneShares) -> None:
        self.shares = shares
        self._transfers: dict[int, Transfer] = {}
        self._lanes: dict[str, OrderedDict[int, None]] = {}  # numbers of the messages, in the order they were sent
        self._bytes: dict[str, int] = {}  # bytes of the bodies in flight, by lane
        self._ids: Counter[str] = Counter()
        self._patient: dict[int, None] = {}  # tokens of those with another deadline than the common one, in its order
        self._max_lane = max_lane

    def is_full(self, lane: str) -> bool:
        """Return whether no more of this lane may be sent, or wait for a share of it, before some of its messages are
        answered."""
        count, size_bytes = self.shares.waits(lane)
        return (
            len(self._lanes.get(lane, ())) + count >= self._max_lane
            or self._bytes.get(lane, 0) + size_bytes >= MAX_LANE_BYTES
        )

    def floor(self, lane: str) -> int:
        """Return the number of the lane's first transfer; the lane has one. Messages that are sent again come out of a
        queue, and the queue's own floor accounts for them."""
        return next(iter(self._lanes[lane]))

    def has_any(self, lane: str) -> bool:
        """Return whether this lane has a transfer."""
        return lane in self._lanes

    def add(self, token: int, transfer: Transfer) -> None:
        """Add a transfer. Deadlines rise among those to named servers with a case, and among the others."""
        self._transfers[token] = transfer
        self._ids[transfer.entry.id] += 1
        lane = transfer.entry.queue
        self._lanes.setdefault(lane, OrderedDict())[transfer.entry.number] = None
        self._bytes[lane] = self._bytes.get(lane, 0) + len(transfer.entry.body)
        if transfer.case is None or not transfer.route.name:
            self._patient[token] = None
        if transfer.sharer is not None:
            self.shares.began(lane, transfer.sharer)

    def extend(self, token: int, transfer: Transfer, deadline: float) -> None:
        """Add a transfer that was overdue once more: it has no case now, and an answer counts until `deadline`."""
        transfer.deadline, transfer.sharer = deadline, None
        self.add(token, transfer)

    def end(self, token: int, link: Link) -> Transfer | None:
        """Return and forget the transfer that an answer on this link ends; None where the answer is late or a
        duplicate."""
        transfer = self._transfers.get(token)
        if transfer is None or transfer.link != link:
            return None
        return self._remove(token)

    def _remove(self, token: int) -> Transfer:
        transfer = self._transfers.pop(token)
        self._patient.pop(token, None)
        self._ids[transfer.entry.id] -= 1
        if not self._ids[transfer.entry.id]:
            del self._ids[transfer.entry.id]
        lane = transfer.entry.queue
        numbers = self._lanes[lane]
        del numbers[transfer.entry.number]
        self._bytes[lane] -= len(transfer.entry.body)
        if not numbers:
            del self._lanes[lane], self._bytes[lane]
        if transfer.sharer is not None:
            self.shares.ended(lane, transfer.sharer)
        return transfer

    def drop_link(self, link: Link) -> list[Transfer]:
        """Return and forget the transfers over a link that is lost."""
        return [
            self._remove(token)
            for token in [token for token, transfer in self._transfers.items() if transfer.link == link]
        ]

    def overdue(self, now: float) -> list[tuple[int, Transfer]]:
        """Return and forget the transfers whose deadline has passed, oldest first. Only the fronts are looked at."""
        late: list[int] = []
        for token, transfer in self._transfers.items():
            if transfer.case is not None and transfer.route.name:
                if transfer.deadline > now:
                    break
                late.append(token)
        for token in self._patient:
            if self._transfers[token].deadline > now:
                break
            late.append(token)
        return [(token, self._remove(token)) for token in late]

    def is_inflight(self, id_: str) -> bool:
        """Return whether the message of this id has a transfer."""
        return id_ in self._ids

    @property
    def count(self) -> int:
        """Count of all transfers."""
        return len(self._transfers)

    def inspect(self) -> dict[str, int]:
        """Return how many transfers there are, by lane, and messages that wait for a share of it."""
        return Counter({lane: len(numbers) for lane, numbers in self._lanes.items()}) + Counter(self.shares.inspect())
