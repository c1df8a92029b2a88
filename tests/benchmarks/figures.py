"""The figures of a run, and the spread over several runs. Pure.

No figure is judged: a goal is shown beside a figure, nothing passes or fails by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import msgspec


class Job(NamedTuple):
    """A job of the load generator: `depth` messages in flight on each of `connections`."""

    body_bytes: int
    connections: int
    depth: int
    messages: int
    warm: int  # round trips made before measuring begins

    @property
    def closed_loop(self) -> bool:
        """True where each message waits for the one before it, so that latency alone is measured."""
        return self.connections * self.depth == 1

    @property
    def title(self) -> str:
        """A few words for a table."""
        return f"{'closed loop' if self.closed_loop else 'pipelined'} {self.connections} × {self.depth}"


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run, as the load generator prints it. Processor seconds are those of the measured span, by process."""

    protocol: str
    connections: int
    depth: int
    body_bytes: int
    messages: int
    seconds: float
    p50_us: float
    p99_us: float
    max_us: float
    cpu_s: dict[str, float]

    @property
    def rate(self) -> float:
        """Round trips a second."""
        return self.messages / self.seconds

    def busy(self, process: str) -> float:
        """Return the share of one core that a process used; above 1 for a process with several threads."""
        return self.cpu_s[process] / self.seconds


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A side: messages a second in each run, and µs of CPU a message (of the handler; with a server, of it as well)."""

    side: str
    rates: list[float]
    cpu_us: list[float]


class Spread(NamedTuple):
    """The middle of several runs, and how far they lie apart."""

    median: float
    least: float
    most: float


def parse_run(line: str | bytes) -> Run:
    """Return the run in a line of the load generator; raise ValueError for any other line."""
    try:
        run = msgspec.json.decode(line, type=Run)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a result of the load generator: {error}") from error
    if run.seconds <= 0 or run.messages <= 0:
        raise ValueError("a run that measured nothing")
    return run


def spread(values: Sequence[float]) -> Spread:
    """Return median and range of at least one value."""
    return Spread(median(values), min(values), max(values))


def over_runs(runs: Sequence[Run], figure: Callable[[Run], float]) -> Spread:
    """Return the spread of one figure over runs."""
    return spread([figure(run) for run in runs])


def compared_figure(job: Job) -> Callable[[Run], float]:
    """Return the figure that compares two sides: the rate, or in a closed loop the median latency."""
    return (lambda run: run.p50_us) if job.closed_loop else (lambda run: run.rate)


def ratio(job: Job, ours: Sequence[Run], theirs: Sequence[Run]) -> Spread:
    """Return ours as a multiple of theirs: of the medians, and the range over the pairs of neighbouring runs."""
    figure = compared_figure(job)
    pairs = [figure(our) / figure(their) for our, their in zip(ours, theirs, strict=True)]
    return Spread(over_runs(ours, figure).median / over_runs(theirs, figure).median, min(pairs), max(pairs))


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return ours as a multiple of theirs: of the medians, and the range over the pairs of neighbouring runs."""
    pairs = [our / their for our, their in zip(ours, theirs, strict=True)]
    return Spread(spread(ours).median / spread(theirs).median, min(pairs), max(pairs))
