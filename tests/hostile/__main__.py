"""`python -m tests.hostile --seconds 60`: a hostile user, handler and server, each at its worst beside honest traffic.

Prints how the honest fared alone and beside each, and ends with 1 where a letter was lost or misdelivered, or the
server's memory grew above its bound. Times are shown beside the goal (p99 at most doubled), and judge nothing. The
hostile programs run while nobody else needs their processor (SCHED_IDLE; `nice -n 19` where the system has none), for
real ones have processors of their own. Those of one machine are shared all the same: beside a program that connects to
nobody, and burns as much, the honest show what the machine alone costs. How long the server stood without a processor
says how much of the times is the machine's and not the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import secrets
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from tests.hostile.bounds import names_of
from tests.hostile.honest import WAYS
from tests.hostile.play import ALL, CONTROL, PARTIES, Beside, called, play

MIB = 1 << 20


class Parser(argparse.ArgumentParser):
    """Parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{message}; say for instance `make hostile SECONDS=60 ARGS="--party user"`\n')


def how_long(text: str) -> float:
    """Return how many seconds each party attacks. Raises ArgumentTypeError where that is no time."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 1 on")
    return seconds


def told(rows: Sequence[Beside]) -> list[str]:
    """Return the lines of a run."""
    lines = []
    alone: Beside | None = None
    for row in rows:
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(row.outcomes.items()))
        lines.append(f"{called(row.party)}: {len(row.phase.sent)} letters: {outcomes}")
        for way in WAYS:
            text = f"    {way.name}: p99 {row.phase.p99_ms(way.name):.1f} ms"
            if alone is not None and row.party:
                before = alone.phase.p99_ms(way.name)
                text += f", alone {before:.1f} ms: {row.phase.p99_ms(way.name) / before:.1f} × (goal: at most 2 ×)"
            lines.append(text)
        ran, stood = row.processor
        lines.append(f"    the server ran for {ran:.0%} of the time, and stood without a processor for {stood:.0%}")
        if row.party is None:
            alone = row
            continue
        lines.append(f"    {len(row.lost)} lost, {len(row.strays) + row.seen} misdelivered, {len(row.twice)} twice")
        lines.append(f"    it kept {row.burned:.2f} processors busy")
        if row.party == CONTROL:
            continue
        did = ", ".join(f"{count} {what}" for what, count in sorted(row.did.items()))
        grown, bound = row.grown_bytes / MIB, row.bound_bytes / MIB
        lines.append(f"    memory grew by {grown:.0f} MiB; bound {bound:.0f} MiB: {names_of(row.party)}")
        lines.append(f"    it did: {did}")
    return lines


def main() -> int:
    parser = Parser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--seconds", type=how_long, default=60.0, help="how long each party attacks")
    parser.add_argument(
        "--party",
        choices=(*PARTIES, ALL),
        action="append",
        help="this one alone, or all at once (default: one after the other)",
    )
    parser.add_argument("--manner", default=None, help="one of the party's manners alone, as `pings` of a user")
    parser.add_argument(
        "--control",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure beside a program that only spins, too, for as long as each party's",
    )
    parser.add_argument("--seed", type=int, default=None, help="what chooses their moves (default: by chance)")
    options = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with SIGINT ignored
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))

    def show(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    rows: list[Beside] = []
    try:
        for number, party in enumerate(options.party or PARTIES):
            played = play([party], options.seconds, seed + number, show, manner=options.manner, control=options.control)
            found = asyncio.run(played)
            print("\n".join(told(found)), flush=True)
            rows += found
    except KeyboardInterrupt:
        return 130
    except (AssertionError, OSError, RuntimeError) as error:
        print(f"hostile: {str(error) or type(error).__name__}")
        return 1
    wrongs = [wrong for row in rows for wrong in row.wrongs()]
    print(*(f"WRONG: {wrong}" for wrong in wrongs), f"{len(wrongs)} wrongs, seed {seed}", sep="\n")
    return 1 if wrongs else 0


if __name__ == "__main__":
    sys.exit(main())
