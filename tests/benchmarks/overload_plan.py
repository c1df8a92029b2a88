"""The plan of the overload and idle benchmarks: kinds of messages, loads, times. Pure values, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

HONEST_EVERY_MS = 20
"""Interval of the honest user's questions: often enough for a p99, and no load."""
IN_FLIGHT = 400
"""Unanswered messages over all connections at 1 ×: the 8 × 50 of the pipelined job."""
ONE_USER = 8
"""Connections of the one user, at every load: what is echoed goes to each of them, so that more connections would be
more work a message."""
SETTLE_S = 15.0
"""Time without any answer after which messages without one are lost, where a broker was killed."""
SETTLED_S = 900.0
"""Time of all messages that were written to be reported: the sockets of a hundred connections hold some millions that
the server has not read at the end of a run."""
CLOCK_S = 0.05
"""Least time of a rate to be believed."""


class Flood(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Counts of one run of the flood, as the load generator prints them. Processor seconds by process. `lost` are
    messages without an answer when none has come for SETTLE_S, where a broker was killed."""

    seconds: float
    sent: int
    good: int
    bad: int
    overloaded: int
    unknown: int
    pongs: int
    delivered: int
    closed: int
    cpu_s: dict[str, float]
    lost: int = 0


class Honest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Questions of the honest user in one run; times in µs over all of them, answered or not."""

    asked: int
    good: int
    bad: int
    overloaded: int
    unanswered: int
    p50_us: float
    p99_us: float
    worst_us: float

    @property
    def share_good(self) -> float:
        """Share of the questions that were answered, and well."""
        return self.good / self.asked if self.asked else 0.0


class Kind(NamedTuple):
    """Kind of flood: the mix of its messages, and the count of what the server is there for (None: nothing is)."""

    name: str
    mix: str
    served: Callable[[Flood], int] | None


KINDS = (
    Kind("echo", "echo:100*1", lambda flood: flood.good),
    Kind("unknown type", "nobody:100*1", lambda flood: flood.unknown),
    Kind("stuck type", "stuck:100*1", None),
    Kind("large bodies", "echo:100000*1", lambda flood: flood.good),
    Kind("pings", "dummy:0*1", lambda flood: flood.pongs),
    Kind(
        "mixed",
        "echo:100*11,nobody:100*4,dummy:0*4,echo:100000*1",
        lambda flood: flood.good + flood.unknown + flood.pongs,
    ),
)
"""`mixed` without the stuck type: its messages would fill the windows at 1 ×, and there would be no peak."""
STUCK = "stuck"


class Plan(NamedTuple):
    """Extent of a measurement; times in seconds of one cell."""

    loads: tuple[int, ...]
    users: tuple[int, ...]
    lead_s: float
    measured_s: float


FULL = Plan((1, 2, 10, 50), (1, 100), lead_s=0.8, measured_s=3.5)
SHORT = Plan((1, 10), (1,), lead_s=0.3, measured_s=1.0)


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measured load: `load` times the peak of `kind` by `users`, with what came of it."""

    layout: str
    kind: str
    users: int
    connections: int
    load: int
    offered: int
    """Messages a second that were due; 0 for the closed loop at 1 ×."""
    flood: Flood
    honest: Honest
    served: float | None
    """Answers a second that the server is there for."""
    kept: float | None
    """`served` as a share of that at 1 ×."""
    refused: float
    """Other refusals a second."""
    memory_bytes: int
    """Most memory of the server's processes, without handlers."""


def connections_of(users: int) -> int:
    """Return the number of connections by which so many users flood."""
    return max(users, ONE_USER)


def per_second(count: int, seconds: float) -> float:
    """Return a rate; 0 for a span that is too short for one."""
    return count / seconds if seconds > CLOCK_S else 0.0


def served_rate(kind: Kind, flood: Flood) -> float | None:
    """Return the answers a second that the server is there for."""
    return None if kind.served is None else per_second(kind.served(flood), flood.seconds)


def refused_rate(kind: Kind, flood: Flood) -> float:
    """Return the refusals a second that are no service."""
    refused = flood.bad - (flood.unknown if kind.served is not None else 0)
    return per_second(refused, flood.seconds)
