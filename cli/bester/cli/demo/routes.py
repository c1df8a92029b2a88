"""Paths of messages out of servers' traces: stations, commands and times. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple


class Step(NamedTuple):
    """A row of a broker's trace: message `id` was `what` (`handler`: given to one) at `where`, SERVER/TYPE."""

    at_ms: float
    id: str
    what: str
    where: str


class Stop(NamedTuple):
    """A station of a message; `how`: the command that sent it there; `at_ms`: milliseconds after the send."""

    where: str
    how: str
    at_ms: float


Route = tuple[Stop, ...]


class Way(NamedTuple):
    """Messages with the same stops: their number, and the medians of their times."""

    messages: int
    route: Route
    report_ms: float


def route_of(steps: Iterable[Step], sender: str, receiver: str, sent_ms: float, received_ms: float) -> Route:
    """Return the steps of one message, from all servers, as a route from its sender to its receiver.

    Each handler's result has a longer id than the handled message, so that the order does not depend on clocks.
    """
    handled = sorted(
        (step for step in steps if step.what == "handler"), key=lambda step: (step.id.count("."), step.at_ms)
    )
    stops = [Stop(sender, "", 0.0)]
    server = None
    for step in handled:
        here = step.where.partition("/")[0]
        how = "sends" if server is None else "sendHandler" if here == server else "sendServers"
        stops.append(Stop(step.where, how, _after(stops, step.at_ms - sent_ms)))
        server = here
    return (*stops, Stop(receiver, "sendClients", _after(stops, received_ms - sent_ms)))


def _after(stops: Sequence[Stop], at_ms: float) -> float:
    """Return a time that is not before the last stop: clocks of several processes differ, and some count whole ms."""
    return max(at_ms, stops[-1].at_ms)


def ways_of(routes: Sequence[Route], report_ms: Sequence[float]) -> list[Way]:
    """Group routes by their stops, the most frequent first."""
    groups: dict[tuple[tuple[str, str], ...], list[tuple[Route, float]]] = {}
    for route, report in zip(routes, report_ms, strict=True):
        groups.setdefault(tuple((stop.where, stop.how) for stop in route), []).append((route, report))
    ways = []
    for places, members in groups.items():
        times = [median(route[i].at_ms for route, _ in members) for i in range(len(places))]
        stops = tuple(Stop(where, how, at_ms) for (where, how), at_ms in zip(places, times, strict=True))
        ways.append(Way(len(members), stops, median(report for _, report in members)))
    return sorted(ways, key=lambda way: -way.messages)
