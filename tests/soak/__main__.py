"""`python -m tests.soak --minutes 10`: visitors come to two servers, and go; exit status 1 if anything grows.

Memory and descriptors of the servers and of their handlers are looked at all the time. The first half of a run is for
what fills; whatever still grows in the last quarter would grow for ever.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import sys

from tests.soak.breakages import set_leak
from tests.soak.growth import growth
from tests.soak.play import play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long visitors come; five at least, to tell")
    parser.add_argument("--seed", type=int, default=None, help="what chooses what they do (default: by chance)")
    parser.add_argument(
        "--break", dest="leaks", action="store_true", help="let the servers leak, to see that it is found"
    )
    options = parser.parse_args()
    if not options.minutes > 0:
        parser.error("a run takes a time")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with SIGINT ignored
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    if options.leaks:
        set_leak()
    try:
        result = asyncio.run(play(options.minutes * 60, seed, lambda text: print(text, file=sys.stderr, flush=True)))
    except KeyboardInterrupt:
        return 130
    for name, sampled in result.samples.items():
        now = f"{sampled.bytes[-1] / 2**20:.1f} MiB, {sampled.descriptors[-1]} descriptors"
        print(f"{name}: {now}; memory grew by {growth(sampled.bytes) / 2**20:.1f} MiB in a quarter of the run")
    wrongs = result.wrongs()
    did = ", ".join(f"{count} {what}" for what, count in sorted(result.counts.items()))
    print(*(f"WRONG: {wrong}" for wrong in wrongs), f"{did}; {len(wrongs)} wrongs, seed {seed}", sep="\n")
    return 1 if wrongs else 0


if __name__ == "__main__":
    sys.exit(main())
