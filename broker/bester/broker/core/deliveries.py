"""What bridges have been asked to deliver and have not confirmed yet."""

from __future__ import annotations

from msgspec import Struct

from bester.broker.core.effects import Link
from bester.broker.core.jobs import Job
from bester.broker.store_requests import Entry
from bester.broker.wire.messages import Command

UNCONFIRMED = "unconfirmed"
"""The user is gone, and may have got it before: kept like one who is away, but marked."""
MAYBE = frozenset({UNCONFIRMED, "timeout"})
"""Reasons after which it may have arrived all the same."""


class Share:
    """A target whose sessions sit on several bridges: delivered when one of them delivers."""

    __slots__ = ("delivered", "owed", "reason")

    def __init__(self, owed: int) -> None:
        self.owed = owed
        self.delivered = False
        self.reason = "not-connected"

    def end(self, reason: str | None) -> bool:
        """One bridge has ended with it; says whether that was the last one."""
        self.owed -= 1
        if reason is None:
            self.delivered = True
        elif self.reason == "not-connected" or reason in MAYBE:  # one that may have got it is enough to mark it
            self.reason = reason
        return self.owed == 0


class Delivery(Struct, eq=False, gc=False):  # a Struct, for one is made for most messages; it is in no cycle
    """One DELIVER that is out: whose result it is, its `targets` as it lists them, and those `shares` had with other
    bridges. `number` is what target 0 would have were it kept. `reported`: the bridge reports by itself if all goes
    well.
    """

    job: Job
    command: Command
    id: str
    targets: list[list[int]]
    shares: dict[int, Share] | None
    reported: bool
    number: int


class MailDelivery(Struct, eq=False, gc=False):
    """The same of a message that was kept; several bridges that hold its user have the `share` in common. `again`: it
    may have arrived before."""

    entry: Entry
    share: Share
    again: bool = False


AnyDelivery = Delivery | MailDelivery


class _Outstanding:
    """What one bridge was asked to deliver: `out` by serial, the last serial given and the last confirmed."""

    __slots__ = ("confirmed", "last", "out")

    def __init__(self) -> None:
        self.out: dict[int, AnyDelivery] = {}
        self.last = 0
        self.confirmed = 0


class Deliveries:
    """Unconfirmed deliveries by bridge and serial."""

    def __init__(self) -> None:
        self._by_link: dict[Link, _Outstanding] = {}

    def add(self, link: Link, delivery: AnyDelivery) -> int:
        """Book a delivery; returns its serial, which rises by one on each link."""
        book = self._by_link.get(link)
        if book is None:
            book = self._by_link[link] = _Outstanding()
        book.last = serial = book.last + 1
        book.out[serial] = delivery
        return serial

    def confirm(self, link: Link, upto: int, done: list[int]) -> list[tuple[int, AnyDelivery]]:
        """Return the deliveries that a CONFIRM ends, each once, whatever it repeats or makes up."""
        book = self._by_link.get(link)
        if book is None:
            return []
        out = book.out
        ended: list[tuple[int, AnyDelivery]] = []
        first, last = book.confirmed + 1, min(upto, book.last)
        if last >= first:
            book.confirmed = last
            for serial in range(first, last + 1):
                delivery = out.pop(serial, None)
                if delivery is not None:
                    ended.append((serial, delivery))
        for serial in done:
            delivery = out.pop(serial, None)
            if delivery is not None:
                ended.append((serial, delivery))
        return ended

    def drop_link(self, link: Link) -> list[AnyDelivery]:
        """The bridge is gone: return what it had not confirmed."""
        book = self._by_link.pop(link, None)
        return list(book.out.values()) if book is not None else []

    @property
    def count(self) -> int:
        """How many are out."""
        return sum(len(book.out) for book in self._by_link.values())
