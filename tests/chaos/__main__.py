"""`python -m tests.chaos --minutes 10`: kill and freeze real processes for a time, then check that no message is lost.

Prints `0 of N lost, D redelivered and marked, K kills, seed S` and ends with 0; or tells the faults found, and ends
with 1. The seed chooses the messages and the faults; real time decides their course.
"""

from __future__ import annotations

import argparse
import math
import re
import secrets
import signal
import sys
from pathlib import Path
from typing import NoReturn

from tests.chaos.breakages import BREAKAGES
from tests.chaos.cluster import LAYOUTS
from tests.chaos.course import Result, StuckError, play

SHOWN = 20
"""Number of wrongs that are printed in full."""
BEFORE_S, AFTER_S = 5.0, 15.0
"""Faults from so long before a lost message was sent until so long after are part of its story; so are those around a
wrong."""
TIME = re.compile(r"^ +([0-9]+\.[0-9]+)  ", re.MULTILINE)
"""Beginning of a line of a message's story."""


class Parser(argparse.ArgumentParser):
    """Parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}; say for instance `make chaos MINUTES=10`\n")


def how_long(text: str) -> float:
    """Return how many minutes faults happen. Raises ArgumentTypeError where that is no time."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes")
    return minutes


def main() -> int:
    parser = Parser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=how_long, default=1.0, help="how long faults happen")
    parser.add_argument("--seed", type=int, default=None, help="what chooses them (default: by chance)")
    parser.add_argument(
        "--keep", type=Path, default=None, metavar="DIR", help="keep journals and logs in this directory"
    )
    parser.add_argument(
        "--break", dest="breakage", default="", choices=sorted(BREAKAGES), help="break this, to see that it is found"
    )
    parser.add_argument("--flood", action="store_true", help="let a user of each server flood it meanwhile")
    parser.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0], help="make one of the servers a cluster")
    options = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    if options.keep is not None:
        try:
            options.keep.mkdir(parents=True)
        except OSError as error:
            parser.error(f"argument --keep: {options.keep}: {error.strerror}; name a directory that is not there yet")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with SIGINT ignored
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        result = play(
            seed, options.minutes * 60, lambda text: print(text, flush=True), options.keep, options.breakage,
            flood=options.flood, layout=options.layout,
        )  # fmt: skip
    except StuckError as error:
        print(error)
        return 1
    except KeyboardInterrupt:
        return 130
    print("\n".join(told(result)))
    return 0 if result.verdict.clean else 1


def told(result: Result) -> list[str]:
    """Return the lines that a run ends with."""
    verdict = result.verdict
    bad = ", ".join(f"{count} {reason}" for reason, count in verdict.bad.most_common())
    others = ", ".join(f"{count} {what}" for what, count in sorted(result.counts.items()))
    lines = [
        f"{verdict.messages} messages: {verdict.good} reported good, {verdict.bad.total()} bad ({bad or 'none'})",
        f"{verdict.unclaimed} were not reported on: their sender was killed, or gave them up",
        f"{verdict.expired} expired; {verdict.poison} killed their handlers, {verdict.deaths} times in all",
        f"{result.silences.count} handlers taken for dead, {len(result.silences.wrong)} of them alive",
        f"{result.compared} more messages without faults: {len(result.differing)} differences to the servers' figures",
        f"{result.freezes} times frozen, {others or 'nothing else'}; drained in {result.drained_s:.1f} s",
    ]
    for number, user in verdict.lost[:SHOWN]:
        entry = result.ledger.entries[number]
        lines.append(f"LOST for {user}: {entry.story()}")
        lines += around(result, entry.sent.at_s, entry.sent.at_s)
    for what in verdict.wrong[:SHOWN]:
        lines.append(f"WRONG: {what}")
        times = [float(at_s) for at_s in TIME.findall(what)]
        lines += around(result, min(times), max(times)) if times else []
    if len(verdict.wrong) > SHOWN:
        lines.append(f"and {len(verdict.wrong) - SHOWN} more wrongs")
    return [*lines, result.line]


def around(result: Result, first_s: float, last_s: float) -> list[str]:
    """Return the lines on the faults of a time, and of some time before and after it."""
    first_s, last_s = first_s - BEFORE_S, last_s + AFTER_S
    return [f"    {at_s:12.3f}  ({what})" for at_s, what in result.story if first_s <= at_s <= last_s]


if __name__ == "__main__":
    sys.exit(main())
