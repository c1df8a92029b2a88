"""What bridges have been asked to deliver and have not confirmed yet."""

from __future__ import annotations

from bester.broker.core.cases import DELIVERED, Case, failed
from bester.broker.core.values import Link


class Share:
    """A target whose sessions sit on several bridges: delivered when one of them delivers."""

    __slots__ = ("delivered", "owed", "reason")

    def __init__(self, owed: int) -> None:
        self.owed = owed
        self.delivered = False
        self.reason = "not-connected"

    def end(self, reason: str | None) -> str | None:
        """One bridge has ended with it; returns the outcome when that was the last one, else None."""
        self.owed -= 1
        if reason is None:
            self.delivered = True
        else:
            self.reason = reason
        if self.owed:
            return None
        return DELIVERED if self.delivered else failed(self.reason)


class Delivery:
    """One DELIVER that is out: its case, the names of its targets by number, and those shared with other bridges."""

    __slots__ = ("case", "id", "reported", "shares", "targets")

    def __init__(
        self, case: Case, id_: str, targets: dict[int, str], shares: dict[int, Share] | None, reported: bool
    ) -> None:
        self.case = case
        self.id = id_
        self.targets = targets
        self.shares = shares
        self.reported = reported
        """The bridge reports by itself if all went well."""


class Deliveries:
    """Unconfirmed deliveries by bridge and serial."""

    def __init__(self) -> None:
        self._out: dict[Link, dict[int, Delivery]] = {}
        self._serials: dict[Link, int] = {}
        self._confirmed: dict[Link, int] = {}

    def add(self, link: Link, delivery: Delivery) -> int:
        """Book a delivery; returns its serial, which rises by one on each link."""
        serial = self._serials.get(link, 0) + 1
        self._serials[link] = serial
        self._out.setdefault(link, {})[serial] = delivery
        return serial

    def confirm(self, link: Link, upto: int, done: list[int]) -> list[tuple[int, Delivery]]:
        """Return the deliveries that a CONFIRM ends, each once, whatever it repeats or makes up."""
        out = self._out.get(link)
        if not out:
            return []
        ended: list[tuple[int, Delivery]] = []
        first = self._confirmed.get(link, 0) + 1
        last = min(upto, self._serials[link])
        for serial in range(first, last + 1):
            delivery = out.pop(serial, None)
            if delivery is not None:
                ended.append((serial, delivery))
        if last >= first:
            self._confirmed[link] = last
        for serial in done:
            delivery = out.pop(serial, None)
            if delivery is not None:
                ended.append((serial, delivery))
        return ended

    def drop(self, link: Link) -> list[Delivery]:
        """The bridge is gone: return what it had not confirmed."""
        self._serials.pop(link, None)
        self._confirmed.pop(link, None)
        return list(self._out.pop(link, {}).values())

    @property
    def count(self) -> int:
        """How many are out."""
        return sum(len(out) for out in self._out.values())
