"""Deliveries: the DELIVERs that bridges have not confirmed yet. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat, takewhile

from msgspec import Struct

from bester.broker.core.effects import Link
from bester.broker.core.jobs import Job
from bester.broker.store_requests import Entry
from bester.broker.wire.messages import Command

UNCONFIRMED = "unconfirmed"
"""Reason of a user who has gone, and may have had the message: it is queued, and marked."""
MAYBE = frozenset({UNCONFIRMED, "timeout"})
"""Reasons after which the message may have been delivered."""


class Share:
    """A target with sessions on several bridges: delivered when one bridge delivers. `pending` bridges have
    not answered."""

    __slots__ = ("delivered", "pending", "reason")

    def __init__(self, pending: int) -> None:
        self.pending = pending
        self.delivered = False
        self.reason = "not-connected"

    def end(self, reason: str | None) -> bool:
        """Count the answer of one bridge, a failure where it gives a `reason`; return whether it was the last."""
        self.pending -= 1
        if reason is None:
            self.delivered = True
        elif (
            self.reason == "not-connected" or reason in MAYBE
        ):  # a single session that may have had the message is enough
            self.reason = reason
        return self.pending == 0


class Delivery(Struct, eq=False, gc=False):  # a Struct, for most messages have one; it is in no cycle
    """An unconfirmed DELIVER of a command's results.

    `targets` is as in the DELIVER; `shares` are those of targets with sessions on other bridges as well. `number` is
    reserved for target 0, should it be queued, those after it for the others. `reported`: the bridge reports by itself
    where every target is delivered. `since` is when the DELIVER was made.
    """

    job: Job
    command: Command
    id: str
    targets: list[list[int]]
    shares: dict[int, Share] | None
    reported: bool
    number: int
    since: float


class MailDelivery(Struct, eq=False, gc=False):
    """An unconfirmed DELIVER of a queued message; the bridges with sessions of its user have the `share` in common.
    `again`: the message was sent before, and may have been delivered."""

    entry: Entry
    share: Share
    again: bool = False


AnyDelivery = Delivery | MailDelivery


class Outstanding:
    """The deliveries of one bridge: `out` by serial, the `last` serial given, and the last one `confirmed`."""

    __slots__ = ("_looked", "confirmed", "last", "out")

    def __init__(self) -> None:
        self.out: dict[int, AnyDelivery] = {}
        self.last = 0
        self.confirmed = 0
        self._looked = (0, 0)  # `last` at the look before the last one, and at the last one

    def add(self, delivery: AnyDelivery) -> int:
        """Add a delivery; return its serial, which rises by one on each link."""
        self.last = serial = self.last + 1
        self.out[serial] = delivery
        return serial

    def count_recent(self) -> int:
        """Return how many deliveries were sent since the count before the last one."""
        before, last = self._looked
        self._looked = last, self.last
        return len(self.out) - sum(1 for _ in takewhile(before.__ge__, self.out))


class Deliveries:
    """Unconfirmed deliveries by bridge and serial."""

    def __init__(self) -> None:
        self._by_link: dict[Link, Outstanding] = {}

    def of(self, link: Link) -> Outstanding:
        """Return the deliveries of a bridge."""
        found = self._by_link.get(link)
        return found if found is not None else self._by_link.setdefault(link, Outstanding())

    def confirm(self, link: Link, upto: int, done: list[int]) -> Iterable[tuple[int, AnyDelivery | None]]:
        """Take out the deliveries that a CONFIRM ends, each once, whatever serials the CONFIRM repeats or makes up;
        return them by serial, None for serials of none."""
        book = self._by_link.get(link)
        if book is None:
            return ()
        if upto == book.confirmed + 1 and upto <= book.last and not done:  # most often, of a quiet bridge
            book.confirmed = upto
            return ((upto, book.out.pop(upto, None)),)
        serials: Sequence[int] = range(book.confirmed + 1, min(upto, book.last) + 1)
        if serials:
            book.confirmed = serials[-1]
        if done:
            serials = [*serials, *done]
        return zip(serials, list(map(book.out.pop, serials, repeat(None))), strict=True)

    def drop_link(self, link: Link) -> list[AnyDelivery]:
        """Return and forget the unconfirmed deliveries of a lost link."""
        book = self._by_link.pop(link, None)
        return list(book.out.values()) if book is not None else []

    def count_recent(self) -> int:
        """Return how many deliveries were sent since the count before the last one, and are not confirmed: they are
        between broker and bridge, where the others wait for their readers. Call at a steady pace."""
        return sum(book.count_recent() for book in self._by_link.values())

    @property
    def count(self) -> int:
        """Count of unconfirmed deliveries."""
        return sum(len(book.out) for book in self._by_link.values())
