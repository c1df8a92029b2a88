"""Other servers: what target means which server, and what is on its way to them.

A relay goes over the fabric link this broker opened to the server; a forward goes by the native protocol through a
bridge. Both end with an outcome, by an answer or by a deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bester.broker.core.cases import Case
from bester.broker.core.values import Link, Route
from bester.broker.wire.address import HostPort, canonical, parse_host_port


class Leg(NamedTuple):
    """A message on its way to a server: what to tell its case, and until when an answer counts."""

    case: Case
    target: str
    link: Link
    lane: tuple[str, str]
    deadline: float


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
    """Everything on its way to other servers, by token."""

    def __init__(self, max_lane: int) -> None:
        self._legs: dict[int, Leg] = {}
        self._lanes: dict[tuple[str, str], int] = {}
        self._max_lane = max_lane

    def full(self, lane: tuple[str, str]) -> bool:
        """May no more of this (server, type) be sent before some of it has been answered?"""
        return self._lanes.get(lane, 0) >= self._max_lane

    def add(self, token: int, leg: Leg) -> None:
        self._legs[token] = leg
        self._lanes[leg.lane] = self._lanes.get(leg.lane, 0) + 1

    def end(self, token: int, link: Link) -> Leg | None:
        """Return and forget the leg that an answer on this link ends; None where it is late, or comes twice."""
        leg = self._legs.get(token)
        if leg is None or leg.link != link:
            return None
        return self._remove(token)

    def _remove(self, token: int) -> Leg:
        leg = self._legs.pop(token)
        left = self._lanes[leg.lane] - 1
        if left:
            self._lanes[leg.lane] = left
        else:
            del self._lanes[leg.lane]
        return leg

    def drop(self, link: Link) -> list[Leg]:
        """The link is gone: return what was on its way over it."""
        return [self._remove(token) for token in [token for token, leg in self._legs.items() if leg.link == link]]

    def overdue(self, now: float) -> list[Leg]:
        """Return what was not answered in time. Deadlines rise in the order of sending: only the front is looked at."""
        late: list[int] = []
        for token, leg in self._legs.items():
            if leg.deadline > now:
                break
            late.append(token)
        return [self._remove(token) for token in late]

    @property
    def count(self) -> int:
        """How many are on their way."""
        return len(self._legs)
