"""`python -m tests.simulation --seeds 500`: play that many seeds; `--seed N`: play one, and tell its story."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.parties import BrokenRuleError
from tests.simulation.scenario import play, submissions_of


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to play")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="play this one alone, and print its story")
    said = parser.parse_args()
    seeds = range(said.first, said.first + said.seeds) if said.seed is None else [said.seed]
    started, virtual_s, good, bad = time.monotonic(), 0.0, 0, 0
    for seed in seeds:
        try:
            scenario = play(seed)
        except BrokenRuleError as error:
            print(error)
            return 1
        if said.seed is not None:
            print(scenario.world.told())
        virtual_s += scenario.world.now
        reports = [one.reports[0] for one in submissions_of(scenario)]
        good += sum(report.status == 0 for report in reports)
        bad += sum(report.status != 0 for report in reports)
    took_s = time.monotonic() - started
    print(
        f"{len(seeds)} seeds, {good + bad} messages ({good} good, {bad} bad), 0 rules broken: "
        f"{virtual_s:.0f} s of theirs in {took_s:.1f} s of ours"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
