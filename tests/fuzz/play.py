"""What all fuzzers have in common: a story is a list of numbers, each the seed of one step.

What a step does depends on its number and on what is there when it is played. So every part of a story is a story, and
one that breaks a rule is made shorter by leaving steps out.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

Told = Callable[[str], None]
Play = Callable[[Sequence[int], Told], int]
"""Plays a story, tells what it does, and returns how many messages or frames it tried. Raises what went wrong."""

SHRINKS = 400
"""Stories that are tried to make one shorter."""


class FoundError(AssertionError):
    """Something happened that never may."""


def must(true: bool, rule: str) -> None:
    """Raise FoundError, with the rule that is broken, unless it is true."""
    if not true:
        raise FoundError(rule)


class Failure(NamedTuple):
    """A story that breaks a rule: its `steps`, and all there is to say about it."""

    steps: list[int]
    text: str


def steps_of(seed: int, length: int) -> list[int]:
    """Return the story of a seed."""
    return [seed * 1_000_003 + number for number in range(length)]


def quiet(text: str) -> None:
    """Tell nobody."""


def attempt(play: Play, steps: Sequence[int], told: Told = quiet) -> tuple[int, str | None]:
    """Play a story; return how much it tried, and what went wrong, None where nothing did."""
    try:
        return play(steps, told), None
    except Exception as error:  # noqa: BLE001 (whatever it is, it is what was looked for)
        return 0, "".join(traceback.format_exception(error))


def shortened(play: Play, steps: Sequence[int]) -> list[int]:
    """Return a shorter story that goes wrong as well: parts of it are left out, ever smaller ones."""
    steps, tries, part = list(steps), 0, max(1, len(steps) // 2)
    while part and tries < SHRINKS:
        at = 0
        while at < len(steps) and tries < SHRINKS:
            rest = steps[:at] + steps[at + part :]
            tries += 1
            if rest and attempt(play, rest)[1] is not None:
                steps = rest
            else:
                at += part
        part //= 2
    return steps


def failure_of(name: str, seed: int, play: Play, steps: Sequence[int]) -> Failure | None:
    """Play a story; where it goes wrong, return it shortened, with what it did and how to play it again."""
    if attempt(play, steps)[1] is None:
        return None
    short = shortened(play, steps)
    lines: list[str] = []
    _, wrong = attempt(play, short, lines.append)
    again = f"again: python -m tests.fuzz --seed {name}:{seed}"
    told = "\n".join(lines[-60:])
    return Failure(short, f"{told}\n\n{wrong}\n{len(short)} of {len(steps)} steps; {again}")
