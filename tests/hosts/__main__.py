"""`python -m tests.hosts`: many messages over a bad link between two hosts; exit status 1 if any is lost or doubled."""

from __future__ import annotations

import argparse
import asyncio
import sys

from tests.hosts.bad_link_run import EMPTY_S, Plan, run
from tests.hosts.link import no_cable
from tests.hosts.stand import missing

PLAN = Plan()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hosts", description=__doc__)
    parser.add_argument("--messages", type=int, default=PLAN.messages, help="messages to send")
    parser.add_argument("--loss", type=float, default=PLAN.loss, help="share of the frames lost, as in 0.3")
    parser.add_argument("--alone", type=float, default=PLAN.alone_s, help="seconds of loss alone, before and after")
    parser.add_argument("--one-way", type=float, default=PLAN.one_way_s, help="seconds in which one side hears nothing")
    parser.add_argument("--cut", type=float, default=PLAN.cut_s, help="seconds in the middle with the link cut")
    parser.add_argument("--deaf", type=int, choices=(1, 2), default=PLAN.deaf + 1, help="the side that hears nothing")
    parser.add_argument("--seed", type=int, default=PLAN.seed, help="seed of the frames lost")
    options = parser.parse_args()
    if not 0 < options.cut < options.one_way or options.messages < 1:
        parser.error("the cut is shorter than the time in which one side hears nothing, and there is a message")
    why = missing() or no_cable()
    if why is not None:
        print(why, file=sys.stderr)
        return 2
    deaf = options.deaf - 1
    plan = Plan(options.messages, options.loss, options.alone, options.one_way, options.cut, deaf, options.seed)
    result = asyncio.run(run(plan, lambda text: print(text, file=sys.stderr, flush=True)))
    when = f"{result.empty_s:.1f} s" if result.empty_s is not None else f"not within {EMPTY_S:g} s"
    print(
        f"{result.sent} messages over {plan.faults_s:g} s of faults: {len(result.lost)} lost, {len(result.twice)} twice"
        f" at the handler, {result.bad.total()} reported bad {dict(result.bad)}; outcomes {dict(result.outcomes)}; "
        f"{result.frames} frames carried, {result.frames_lost} lost; outbox empty after the faults: {when}"
    )
    return 0 if result.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
