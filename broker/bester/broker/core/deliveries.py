"""Deliveries: the DELIVERs that bridges have not confirmed yet. Pure."""

from __future__ import annotations

from collections import deque
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
        elif self.reason == "not-connected" or reason in MAYBE:
            self.reason = reason  # a single session that may have had the message is enough
        return self.pending == 0


class Delivery(Struct, eq=False, gc=False):  # a Struct, for many messages have one; it is in no cycle
    """An unconfirmed DELIVER of a command's results.

    `targets` are the numbers of those in the DELIVER; `shares` are those of targets with sessions on other bridges as
    well. `number` is reserved for target 0, should it be queued, those after it for the others. `reported`: the bridge
    reports by itself where every target is delivered. `since` is when the DELIVER was made.
    """

    job: Job
    command: Command
    id: str
    targets: Sequence[int]
    shares: dict[int, Share] | None
    reported: bool
    number: int
    since: float


class DeliveryRun(Struct, eq=False, gc=False):
    """Unconfirmed DELIVERs of the usual kind that were made together: each has the one result of a reply, to one user,
    and its bridge reports by itself.

    Serials, and the numbers reserved for what should be queued, rise by one from `first` and `number`.
    """

    first: int
    replies: list[tuple[Job, Command]]
    number: int
    since: float

    @property
    def last(self) -> int:
        """Serial of the last delivery."""
        return self.first + len(self.replies) - 1

    def cut(self, upto: int) -> DeliveryRun:
        """Take out the deliveries up to a serial, as a run of their own."""
        count = upto - self.first + 1
        taken = DeliveryRun(self.first, self.replies[:count], self.number, self.since)
        self.first, self.replies, self.number = self.first + count, self.replies[count:], self.number + count
        return taken

    def each(self) -> Iterable[tuple[int, Delivery]]:
        """Return the deliveries one by one, with their serials."""
        for at, (job, command) in enumerate(self.replies):
            delivery = Delivery(
                job, command, f"{job.id}.0", (0,), None, reported=True, number=self.number + at, since=self.since
            )
            yield self.first + at, delivery


class MailDelivery(Struct, eq=False, gc=False):
    """An unconfirmed DELIVER of a queued message; the bridges with sessions of its user have the `share` in common.
    `again`: the message was sent before, and may have been delivered."""

    entry: Entry
    share: Share
    again: bool = False


AnyDelivery = Delivery | MailDelivery


class Outstanding:
    """The deliveries of one bridge: `out` by serial, and behind them `runs` of the usual ones; the `last` serial given,
    and the last one `confirmed`.

    Runs stay whole where they alone are confirmed, which is usual. Anything else breaks them up.
    """

    __slots__ = ("_looked", "confirmed", "last", "out", "runs")

    def __init__(self) -> None:
        self.out: dict[int, AnyDelivery] = {}
        self.runs: deque[DeliveryRun] = deque()
        self.last = 0
        self.confirmed = 0
        self._looked = (0, 0)  # `last` at the look before the last one, and at the last one

    def __len__(self) -> int:
        return len(self.out) + sum(len(run.replies) for run in self.runs)

    def add(self, delivery: AnyDelivery) -> int:
        """Add a delivery; return its serial, which rises by one on each link."""
        if self.runs:
            self.break_up()
        self.last = serial = self.last + 1
        self.out[serial] = delivery
        return serial

    def add_run(self, replies: list[tuple[Job, Command]], number: int, now: float) -> None:
        """Add deliveries of the usual kind, with the next serials."""
        self.runs.append(DeliveryRun(self.last + 1, replies, number, now))
        self.last += len(replies)

    def break_up(self) -> None:
        """Let the deliveries of all runs be `out` by serial."""
        for run in self.runs:
            self.out.update(run.each())
        self.runs.clear()

    def take_runs(self, upto: int) -> list[DeliveryRun]:
        """Take out the deliveries up to a serial, where all of them are in runs; none otherwise."""
        runs, upto = self.runs, min(upto, self.last)
        taken: list[DeliveryRun] = []
        if self.out:
            return taken
        while runs and runs[0].first <= upto:
            taken.append(runs.popleft() if runs[0].last <= upto else runs[0].cut(upto))
        if taken:
            self.confirmed = upto
        return taken

    def take(self, upto: int, done: Sequence[int]) -> Iterable[tuple[int, AnyDelivery | None]]:
        """Take out the deliveries up to a serial, and those of more serials; return them by serial, None for serials of
        none."""
        if self.runs and (done or self.runs[0].first <= upto):
            self.break_up()
        if upto == self.confirmed + 1 and upto <= self.last and not done:  # most often, of a quiet bridge
            self.confirmed = upto
            return ((upto, self.out.pop(upto, None)),)
        serials: Sequence[int] = range(self.confirmed + 1, min(upto, self.last) + 1)
        if serials:
            self.confirmed = serials[-1]
        if done:
            serials = [*serials, *done]
        return zip(serials, list(map(self.out.pop, serials, repeat(None))), strict=True)

    def count_recent(self) -> int:
        """Return how many deliveries were sent since the count before the last one."""
        before, last = self._looked
        self._looked = last, self.last
        recent = len(self.out) - sum(1 for _ in takewhile(before.__ge__, self.out))
        return recent + sum(run.last - max(run.first - 1, before) for run in self.runs if run.last > before)


class Deliveries:
    """Unconfirmed deliveries by bridge and serial."""

    def __init__(self) -> None:
        self._by_link: dict[Link, Outstanding] = {}

    def of(self, link: Link) -> Outstanding:
        """Return the deliveries of a bridge."""
        found = self._by_link.get(link)
        return found if found is not None else self._by_link.setdefault(link, Outstanding())

    def confirm_runs(self, link: Link, upto: int) -> list[DeliveryRun]:
        """Take out the deliveries that a CONFIRM of good ones up to a serial ends, where all of them are in runs; none
        otherwise."""
        book = self._by_link.get(link)
        return [] if book is None else book.take_runs(upto)

    def confirm(self, link: Link, upto: int, done: Sequence[int]) -> Iterable[tuple[int, AnyDelivery | None]]:
        """Take out the deliveries that a CONFIRM ends, each once, whatever serials the CONFIRM repeats or makes up;
        return them by serial, None for serials of none."""
        book = self._by_link.get(link)
        return () if book is None else book.take(upto, done)

    def drop_link(self, link: Link) -> list[AnyDelivery]:
        """Return and forget the unconfirmed deliveries of a lost link."""
        book = self._by_link.pop(link, None)
        if book is None:
            return []
        book.break_up()
        return list(book.out.values())

    def count_recent(self) -> int:
        """Return how many deliveries were sent since the count before the last one, and are not confirmed: they are
        between broker and bridge, where the others wait for their readers. Call at a steady pace."""
        return sum(book.count_recent() for book in self._by_link.values())

    @property
    def count(self) -> int:
        """Count of unconfirmed deliveries."""
        return sum(map(len, self._by_link.values()))
