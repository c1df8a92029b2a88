"""`python -m tests.simulation --seeds 500`: play that many seeds; `--seed N`: play one, and tell its story.

`--fair` plays shares under load instead of faults.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn, cast

from tests.simulation.cluster import Cluster
from tests.simulation.fair import play_fair
from tests.simulation.hostile import Hostile
from tests.simulation.scenario import Scenario, play, submissions_of
from tests.simulation.shared import Shared
from tests.world.clock import BrokenRuleError

PORTION = 20
"""Seeds that a process is given at once."""
TOLD_EVERY = 1000
"""Seeds between two lines of progress."""
COLLECTED_EVERY = 10
"""Seeds between two garbage collections: collecting while a seed is played costs more."""


CLUSTER = cast("type[Scenario]", Cluster)
SHARED = cast("type[Scenario]", Shared)
"""Scenarios in all that is played and counted here."""


@dataclass
class Tally:
    """Counts over the seeds played; `broken` is the story of the first seed that broke a rule."""

    seeds: int = 0
    good: int = 0
    bad: int = 0
    unreported: int = 0
    queued: int = 0
    repeated: int = 0
    crashes: int = 0
    virtual_s: float = 0.0
    broken: str = ""

    def add(self, other: Tally) -> None:
        """Count another's too."""
        for name in ("seeds", "good", "bad", "unreported", "queued", "repeated", "crashes", "virtual_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.broken = self.broken or other.broken

    def count(self, scenario: Scenario) -> None:
        """Add the counts of one seed."""
        self.seeds += 1
        self.virtual_s += scenario.world.now
        self.crashes += sum(server.crashes for server in scenario.servers)
        self.crashes += sum(bridge.crashes for bridge in scenario.bridges if not bridge.direct)
        for submission in submissions_of(scenario):
            if not submission.reports:
                self.unreported += 1
            elif submission.reports[0].good:
                self.good += 1
            else:
                self.bad += 1
            self.queued += sum("queued" in report.recipients.values() for report in submission.reports)
        self.repeated += sum(arrival.marked for client in scenario.clients for arrival in client.arrivals)


def tally(seeds: Iterable[int], *, collect: bool = True, kind: type[Scenario] = Scenario) -> Tally:
    """Play seeds, up to the first that breaks a rule. Without `collect` finished scenarios stay in memory."""
    counted = Tally()
    gc.freeze()
    gc.disable()  # a scenario is thrown away as a whole
    try:
        for seed in seeds:
            counted.count(play(seed, kind))
            if collect and counted.seeds % COLLECTED_EVERY == 0:
                gc.collect()
    except BrokenRuleError as error:
        counted.broken = str(error)
    finally:
        gc.enable()
        gc.unfreeze()
    return counted


class Parser(argparse.ArgumentParser):
    """Parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}; say for instance `make simulate SEEDS=500`\n")


def how_many(text: str) -> int:
    """Return how many seeds to play. Raises ArgumentTypeError where that is no number of them."""
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seeds")
    return int(text)


def main() -> int:
    parser = Parser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=how_many, default=100, help="how many seeds to play")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="play this one alone, and print its story")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that play (all cores)")
    parser.add_argument("--fair", action="store_true", help="play shares under load instead of faults")
    parser.add_argument("--hostile", action="store_true", help="beside a thief of routing ids and a server that lies")
    parser.add_argument("--brokers", type=int, choices=(1, 2), default=1, help="brokers of a server, on one store")
    parser.add_argument("--shared", action="store_true", help="handlers that serve both brokers, and many that die")
    options = parser.parse_args()
    if options.shared and options.brokers != 2:
        parser.error("--shared goes with --brokers 2")
    if options.fair:
        seeds = range(options.first, options.first + options.seeds)
        return share(seeds if options.seed is None else range(options.seed, options.seed + 1), options.jobs)
    kind = SHARED if options.shared else CLUSTER if options.brokers == 2 else Hostile if options.hostile else Scenario
    if options.seed is not None:
        return tell(options.seed, kind)
    started = time.monotonic()
    counted = play_all(range(options.first, options.first + options.seeds), options.jobs, kind)
    took_s = time.monotonic() - started
    if counted.broken:
        print(counted.broken)
        return 1
    print(
        f"{counted.seeds} seeds, {counted.good + counted.bad} messages ({counted.good} good, {counted.queued} of them "
        f"queued, {counted.bad} bad; {counted.unreported} without a report, their senders dead), {counted.crashes} "
        f"crashes, {counted.repeated} marked repetitions, 0 rules broken: {counted.virtual_s:.0f} s of theirs in "
        f"{took_s:.1f} s of ours"
    )
    return 0


def share(seeds: range, jobs: int) -> int:
    """Play shares under load, on several processes; end at the first broken rule."""
    with multiprocessing.get_context("fork").Pool(max(jobs, 1)) as pool:
        for broken in pool.imap(play_fair, [[seed] for seed in seeds]):
            if broken:
                print(broken)
                return 1
    print(f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}: shares held, 0 rules broken")
    return 0


def tell(seed: int, kind: type[Scenario]) -> int:
    """Play one seed and print its story."""
    scenario = kind(seed)
    try:
        scenario.run()
    except BrokenRuleError as error:
        print(f"{scenario.world.told()}\n\nseed {seed}: {error}")
        return 1
    print(scenario.world.told())
    return 0


def play_all(seeds: range, jobs: int, kind: type[Scenario] = Scenario) -> Tally:
    """Play seeds on several processes; end at the first broken rule."""
    if jobs <= 1:
        return tally(seeds, kind=kind)
    counted = Tally()
    portions = [seeds[start : start + PORTION] for start in range(0, len(seeds), PORTION)]
    # Each portion has a process of its own: the process's end frees the memory of its scenarios at no cost.
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        for part in pool.imap(partial(tally, collect=False, kind=kind), portions):
            counted.add(part)
            if counted.broken:
                break
            if counted.seeds % TOLD_EVERY == 0 and counted.seeds < len(seeds):
                print(f"{counted.seeds} of {len(seeds)} seeds, no rule broken", file=sys.stderr, flush=True)
    return counted


if __name__ == "__main__":
    sys.exit(main())
