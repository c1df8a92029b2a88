"""Other servers: what target means which server, and what is on its way to them.

A relay goes over the fabric link this broker opened to the server; a forward goes by the native protocol through a
bridge. Both end with an outcome, by an answer or by a deadline.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping

from msgspec import Struct

from bester.broker.core.cases import Case
from bester.broker.core.effects import Link
from bester.broker.core.settings import Route
from bester.broker.store_requests import Entry
from bester.broker.wire.address import HostPort, canonical, parse_host_port

MAX_LANE_BYTES = 64 * 1024 * 1024
"""Of the bodies of one lane that are on their way at once: they are held until they are answered."""


class Transfer(Struct, eq=False):
    """A message on its way to a server. `case` waits for it, until it is kept and its sender was told so; `deadline` is
    until when an answer is waited for. `again`: it was on its way before, and may have arrived."""

    entry: Entry
    target: str
    link: Link
    route: Route
    deadline: float
    case: Case | None
    again: bool = False


class Routes:
    """Configured servers by name and by address."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._named = dict(routes)
        self._addressed: dict[HostPort, Route] = {}
        for route in self._named.values():
            if route.native is not None:
                self._addressed[canonical(parse_host_port(route.native))] = route
            if route.fabric is not None and route.fabric.startswith("tcp://"):
                self._addressed[canonical(parse_host_port(route.fabric[6:]))] = route

    def find(self, target: str) -> Route | None:
        """Return the configured server of this name or address; of another `host:port` an unnamed native route."""
        route = self._named.get(target)
        if route is not None:
            return route
        try:
            address = parse_host_port(target)
        except ValueError:
            return None
        return self._addressed.get(canonical(address)) or Route("", native=str(address))


class Transfers:
    """Everything on its way to other servers, by token. A lane is the box in which its messages would wait."""

    def __init__(self, max_lane: int) -> None:
        self._transfers: dict[int, Transfer] = {}
        self._lanes: dict[str, OrderedDict[int, None]] = {}  # numbers on their way, in the order they were sent
        self._bytes: dict[str, int] = {}  # of their bodies, by lane
        self._ids: Counter[str] = Counter()
        self._patient: dict[int, None] = {}  # tokens of those whose deadline is not the common one, in its order
        self._max_lane = max_lane

    def is_full(self, lane: str) -> bool:
        """May no more of this lane be sent before some of it has been answered?"""
        return len(self._lanes.get(lane, ())) >= self._max_lane or self._bytes.get(lane, 0) >= MAX_LANE_BYTES

    def floor(self, lane: str) -> int:
        """Return a number below which nothing of this lane is on its way; one is. What is sent again comes out of a box
        and is looked at there."""
        return next(iter(self._lanes[lane]))

    def has_any(self, lane: str) -> bool:
        """Return whether anything of this lane is on its way."""
        return lane in self._lanes

    def add(self, token: int, transfer: Transfer) -> None:
        """A message is sent. Of those to named servers with a case, deadlines rise; and of the others."""
        self._transfers[token] = transfer
        self._ids[transfer.entry.id] += 1
        lane = transfer.entry.queue
        self._lanes.setdefault(lane, OrderedDict())[transfer.entry.number] = None
        self._bytes[lane] = self._bytes.get(lane, 0) + len(transfer.entry.body)
        if transfer.case is None or not transfer.route.name:
            self._patient[token] = None

    def extend(self, token: int, transfer: Transfer, deadline: float) -> None:
        """Its case waits for it no more; an answer still counts until then."""
        transfer.deadline = deadline
        self.add(token, transfer)

    def end(self, token: int, link: Link) -> Transfer | None:
        """Return and forget the leg that an answer on this link ends; None where it is late, or comes twice."""
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
        return transfer

    def drop_link(self, link: Link) -> list[Transfer]:
        """The link is gone: return what was on its way over it."""
        return [
            self._remove(token)
            for token in [token for token, transfer in self._transfers.items() if transfer.link == link]
        ]

    def overdue(self, now: float) -> list[tuple[int, Transfer]]:
        """Take out what was not answered in time, oldest first: only the fronts are looked at."""
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
        """Is the message of this id on its way?"""
        return id_ in self._ids

    @property
    def count(self) -> int:
        """How many are on their way."""
        return len(self._transfers)

    def inspect(self) -> dict[str, int]:
        """Return how many are on their way, by lane."""
        return {lane: len(numbers) for lane, numbers in self._lanes.items()}
