"""A short form of the fuzzers, for every run of the tests; `make fuzz MINUTES=10` is the long one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fuzz.census import census, grown
from tests.fuzz.fuzzers import FUZZERS
from tests.fuzz.play import Told, attempt, failure_of, must, shortened, steps_of

SHORT = [(name, seed) for name, fuzzer in FUZZERS.items() for seed in range(fuzzer.short)]


@pytest.mark.parametrize(("name", "seed"), SHORT)
def test_rules_hold_for_any_input(name: str, seed: int) -> None:
    fuzzer = FUZZERS[name]
    failure = failure_of(name, seed, fuzzer.play, steps_of(seed, fuzzer.length))
    assert failure is None, failure.text


@pytest.mark.parametrize("name", FUZZERS)
def test_a_story_is_the_same_each_time(name: str) -> None:
    first: list[str] = []
    second: list[str] = []
    for lines in (first, second):
        attempt(FUZZERS[name].play, steps_of(5, 40), lines.append)
    assert first
    assert first == second


def test_failing_story_is_told_in_its_shortest_form() -> None:
    def play(steps: Sequence[int], told: Told) -> int:
        told(f"{len(steps)} steps")
        must(not {3, 90} <= set(steps), "3 and 90 never meet")
        return len(steps)

    assert shortened(play, range(100)) == [3, 90]
    failure = failure_of("wire", 7, play, range(100))
    assert failure is not None
    assert failure.steps == [3, 90]
    assert "3 and 90 never meet" in failure.text
    assert "2 of 100 steps; again: python -m tests.fuzz --seed wire:7" in failure.text
    assert failure_of("wire", 7, play, range(50)) is None


def test_the_census_counts_what_can_be_reached() -> None:
    class Thing:
        __slots__ = ("inner",)

        def __init__(self) -> None:
            self.inner = {"a": [1, 2, 3], "b": [4]}

    class Root:
        def __init__(self) -> None:
            self.things = [Thing(), Thing()]
            self.self = self

    for kind in (Thing, Root):
        kind.__module__ = "tests.fuzz"
    root = Root()
    before = census(root)
    assert (before["things"], before["things[].inner"], before["things[].inner[]"]) == (2, 2, 3)
    root.things[1].inner["b"] += range(50)
    assert grown(before, census(root), 20) == {"things[].inner[]": 48}


def run(*argv: str, hash_seed: str = "random") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *argv], env={**os.environ, "PYTHONHASHSEED": hash_seed},
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_command_plays_for_a_while_and_prints_its_seeds() -> None:
    done = run("--minutes", "0.01", "--first", "1234", "--jobs", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--first 1234" in done.stderr
    assert "0 rules broken" in done.stdout


@pytest.mark.parametrize("argv", [["--minutes", "0"], ["--minutes", "x"], ["--seed", "wire"], ["--seed", "nobody:1"]])
def test_command_reports_an_error_in_one_line(argv: list[str]) -> None:
    done = run(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "make fuzz" in done.stderr


@pytest.mark.parametrize("name", FUZZERS)
def test_command_tells_the_same_story_in_every_process(name: str) -> None:
    first, second = (run("--seed", f"{name}:7", hash_seed=seed) for seed in ("1", "2"))
    assert first.returncode == 0, first.stdout + first.stderr
    assert len(first.stdout) > 1000
    assert first.stdout == second.stdout
