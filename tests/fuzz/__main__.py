"""`python -m tests.fuzz --minutes 10`: play stories for a time; `--seed NAME:N`: play and print one story."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from random import SystemRandom
from types import FrameType
from typing import NamedTuple, NoReturn

from tests.fuzz.fuzzers import FUZZERS
from tests.fuzz.play import FoundError, attempt, failure_of, steps_of

LONGEST_S = 120
"""A story takes a tenth of a second; one that takes so long never ends, or does work without a bound."""
TOLD_EVERY_S = 60.0
PORTION = 10
"""Stories that a process is given at once."""
SEEDS = 10**9


class Portion(NamedTuple):
    """Stories to play, one after the other."""

    name: str
    first: int


class Played(NamedTuple):
    """The result of a portion: the number of messages or frames tried, and the first story that broke a rule."""

    name: str
    tried: int
    failure: str


def too_long(_number: int, _frame: FrameType | None) -> NoReturn:
    """End a story that does not end."""
    raise FoundError(f"a story ends within {LONGEST_S} s")


def play(portion: Portion) -> Played:
    """Play a portion of stories, in a process of its own."""
    fuzzer = FUZZERS[portion.name]
    signal.signal(signal.SIGALRM, too_long)
    tried = 0
    for seed in range(portion.first, portion.first + PORTION):
        steps = steps_of(seed, fuzzer.length)
        signal.alarm(LONGEST_S)
        number, wrong = attempt(fuzzer.play, steps)
        signal.alarm(0)
        tried += number
        if wrong is not None:
            again = failure_of(portion.name, seed, fuzzer.play, steps) if LATE not in wrong else None
            return Played(portion.name, tried, again.text if again else f"{wrong}\nseed {portion.name}:{seed}")
    return Played(portion.name, tried, "")


LATE = f"within {LONGEST_S} s"


def portions(names: list[str], first: int, until: float) -> Iterator[Portion]:
    """Yield portions of each fuzzer in turn, until the time is over."""
    for number in count():
        for name in names:
            if time.monotonic() >= until:
                return
            yield Portion(name, first + number * PORTION)


def play_for(minutes: float, names: list[str], first: int, jobs: int) -> int:
    """Play stories for so long on several processes; return the exit status."""
    print(f"stories from seed {first}: the same again with --first {first}", file=sys.stderr, flush=True)
    started = told = time.monotonic()
    tried: Counter[str] = Counter()
    stories: Counter[str] = Counter()
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=50) as pool:
        source = portions(names, first, started + minutes * 60)
        waiting = [pool.apply_async(play, (portion,)) for portion in islice(source, 2 * jobs)]
        while waiting:
            played = waiting.pop(0).get()
            if played.failure:
                print(played.failure)
                return 1
            tried[played.name] += played.tried
            stories[played.name] += PORTION
            waiting += [pool.apply_async(play, (portion,)) for portion in islice(source, 1)]
            if time.monotonic() - told >= TOLD_EVERY_S:
                told = time.monotonic()
                print(f"{stories.total()} stories, no rule broken", file=sys.stderr, flush=True)
    each = ", ".join(f"{name} {stories[name]} ({tried[name]} messages)" for name in names)
    print(f"{stories.total()} stories in {time.monotonic() - started:.0f} s, 0 rules broken: {each}")
    return 0


def tell(name: str, seed: int) -> int:
    """Play one story and print its steps; where the story breaks a rule, its shortest form."""
    fuzzer = FUZZERS[name]
    steps = steps_of(seed, fuzzer.length)
    failure = failure_of(name, seed, fuzzer.play, steps)
    if failure is not None:
        print(failure.text)
        return 1
    attempt(fuzzer.play, steps, print)
    return 0


def one_story(text: str) -> tuple[str, int]:
    """Return the name and the number in NAME:N. Raises ArgumentTypeError for any other text."""
    name, _, number = text.partition(":")
    if name not in FUZZERS or not (number.isascii() and number.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no story: NAME:N, NAME one of {', '.join(FUZZERS)}")
    return name, int(number)


def how_long(text: str) -> float:
    """Return minutes. Raises ArgumentTypeError where that is no number of them."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes")
    return minutes


class Parser(argparse.ArgumentParser):
    """Parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}; say for instance `make fuzz MINUTES=10`, or `make fuzz SEED=wire:7`\n")


def main() -> int:
    parser = Parser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=how_long, default=1.0, help="how long to play")
    parser.add_argument("--first", type=int, help="the first seed (one by chance)")
    parser.add_argument("--only", choices=FUZZERS, action="append", help="play this one; may be said again")
    parser.add_argument("--seed", type=one_story, help="NAME:N: play this story alone, and tell it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that play (all cores)")
    options = parser.parse_args()
    if options.seed is not None:
        return tell(*options.seed)
    first = SystemRandom().randrange(SEEDS) if options.first is None else options.first
    return play_for(options.minutes, options.only or list(FUZZERS), first, max(1, options.jobs))


if __name__ == "__main__":
    sys.exit(main())
