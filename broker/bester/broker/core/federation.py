"""Other servers: what target means which server, and what is on its way to them.

A relay goes over the fabric link this broker opened to the server; a forward goes by the native protocol through a
bridge. Both end with an outcome, by an answer or by a deadline.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping

from msgspec import Struct

from bester.broker.core.cases import Case
from bester.broker.core.values import Link, Route
from bester.broker.kept import Entry
from bester.broker.wire.address import HostPort, canonical, parse_host_port

MAX_LANE_BYTES = 64 * 1024 * 1024
"""Of the bodies of one lane that are on their way at once: they are held until they are answered."""


class Leg(Struct, eq=False):
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


class Legs:
    """Everything on its way to other servers, by token. A lane is the box in which its messages would wait."""

    def __init__(self, max_lane: int) -> None:
        self._legs: dict[int, Leg] = {}
        self._lanes: dict[str, OrderedDict[int, None]] = {}  # numbers on their way, in the order they were sent
        self._bytes: dict[str, int] = {}  # of their bodies, by lane
        self._ids: Counter[str] = Counter()
        self._patient: dict[int, None] = {}  # tokens of those whose deadline is not the common one, in its order
        self._max_lane = max_lane

    def full(self, lane: str) -> bool:
        """May no more of this lane be sent before some of it has been answered?"""
        return len(self._lanes.get(lane, ())) >= self._max_lane or self._bytes.get(lane, 0) >= MAX_LANE_BYTES

    def floor(self, lane: str) -> int:
        """Return a number below which nothing of this lane is on its way; one is. What is sent again comes out of a box
        and is looked at there."""
        return next(iter(self._lanes[lane]))

    def any(self, lane: str) -> bool:
        """Return whether anything of this lane is on its way."""
        return lane in self._lanes

    def add(self, token: int, leg: Leg) -> None:
        """A message is sent. Of those to named servers with a case, deadlines rise; and of the others."""
        self._legs[token] = leg
        self._ids[leg.entry.id] += 1
        lane = leg.entry.box
        self._lanes.setdefault(lane, OrderedDict())[leg.entry.number] = None
        self._bytes[lane] = self._bytes.get(lane, 0) + len(leg.entry.body)
        if leg.case is None or not leg.route.name:
            self._patient[token] = None

    def prolong(self, token: int, leg: Leg, deadline: float) -> None:
        """Its case waits for it no more; an answer still counts until then."""
        leg.deadline = deadline
        self.add(token, leg)

    def end(self, token: int, link: Link) -> Leg | None:
        """Return and forget the leg that an answer on this link ends; None where it is late, or comes twice."""
        leg = self._legs.get(token)
        if leg is None or leg.link != link:
            return None
        return self._remove(token)

    def _remove(self, token: int) -> Leg:
        leg = self._legs.pop(token)
        self._patient.pop(token, None)
        self._ids[leg.entry.id] -= 1
        if not self._ids[leg.entry.id]:
            del self._ids[leg.entry.id]
        lane = leg.entry.box
        numbers = self._lanes[lane]
        del numbers[leg.entry.number]
        self._bytes[lane] -= len(leg.entry.body)
        if not numbers:
            del self._lanes[lane], self._bytes[lane]
        return leg

    def drop(self, link: Link) -> list[Leg]:
        """The link is gone: return what was on its way over it."""
        return [self._remove(token) for token in [token for token, leg in self._legs.items() if leg.link == link]]

    def overdue(self, now: float) -> list[tuple[int, Leg]]:
        """Take out what was not answered in time, oldest first: only the fronts are looked at."""
        late: list[int] = []
        for token, leg in self._legs.items():
            if leg.case is not None and leg.route.name:
                if leg.deadline > now:
                    break
                late.append(token)
        for token in self._patient:
            if self._legs[token].deadline > now:
                break
            late.append(token)
        return [(token, self._remove(token)) for token in late]

    def under_way(self, id_: str) -> bool:
        """Is the message of this id on its way?"""
        return id_ in self._ids

    @property
    def count(self) -> int:
        """How many are on their way."""
        return len(self._legs)
