"""The common parts of all fuzzers: a story is a list of numbers, each the seed of one step.

A step depends on its number and on the state when the step is played. So every part of a story is a story, and one that
breaks a rule is made shorter by leaving steps out.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

Told = Callable[[str], None]
Play = Callable[[Sequence[int], Told], int]
"""Plays a story, tells each step, and returns the number of messages or frames tried. Raises any failure."""

SHRINKS = 400
"""Stories that are tried to make one shorter."""


class FoundError(AssertionError):
    """Something happened that never may."""


def must(true: bool, rule: str) -> None:
    """Raise FoundError, with the broken rule, where `true` is false."""
    if not true:
        raise FoundError(rule)


class Failure(NamedTuple):
    """A story that breaks a rule: its `steps`, and the text about the failure."""

    steps: list[int]
    text: str


def steps_of(seed: int, length: int) -> list[int]:
    """Return the story of a seed."""
    return [seed * 1_000_003 + number for number in range(length)]


def quiet(text: str) -> None:
    """Tell nothing: the listener of a story that nobody reads."""


def attempt(play: Play, steps: Sequence[int], told: Told = quiet) -> tuple[int, str | None]:
    """Play a story; return the number of tries, and the failure's text, None where the story kept all rules."""
    try:
        return play(steps, told), None
    except Exception as error:  # noqa: BLE001 (whatever it is, it is what was looked for)
        return 0, "".join(traceback.format_exception(error))


def shortened(play: Play, steps: Sequence[int]) -> list[int]:
    """Return a shorter story that fails as well: parts of the story are left out, ever smaller ones."""
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
    """Play a story; where the story fails, return its shortened form, with the steps told and the command to repeat
    it."""
    if attempt(play, steps)[1] is None:
        return None
    short = shortened(play, steps)
    lines: list[str] = []
    _, wrong = attempt(play, short, lines.append)
    again = f"again: python -m tests.fuzz --seed {name}:{seed}"
    told = "\n".join(lines[-60:])
    return Failure(short, f"{told}\n\n{wrong}\n{len(short)} of {len(steps)} steps; {again}")
