"""A short form of the simulation, for every run of the tests; `python -m tests.simulation` is the long one."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from bester.broker.core import commands, deliveries, exchange
from bester.broker.core.pools import Worker
from tests.simulation.parties import BrokenRuleError
from tests.simulation.scenario import Scenario, play, submissions_of

SEEDS = 48
GROUPS = 4


@pytest.mark.parametrize("group", range(GROUPS))
def test_the_rules_hold_whatever_happens(group: int) -> None:
    for seed in range(group, SEEDS, GROUPS):
        play(seed)


def test_three_servers_hold_to_them_too() -> None:
    for seed in range(8):
        Scenario(seed, servers=3).run()


def test_a_quiet_seed_and_a_wild_one_differ_but_both_end() -> None:
    reports = [one.reports[0] for seed in range(6) for one in submissions_of(play(seed))]
    assert {report.status for report in reports} == {0, 1}
    assert len({report.reason for report in reports}) > 4


def digest(seed: int) -> str:
    return hashlib.sha256(play(seed).world.told().encode()).hexdigest()


def test_the_same_seed_is_the_same_story_in_any_process() -> None:
    code = "from tests.simulation.test_simulation import digest; print(digest(3))"
    stories = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    ]  # fmt: skip
    assert stories == [digest(3)] * 2


# --- it can fail ----------------------------------------------------------------------------------------------------


def broken_seeds() -> str:
    """Play seeds until a rule breaks; returns what the failure says."""
    for seed in range(40):
        try:
            play(seed)
        except BrokenRuleError as error:
            return str(error)
    return ""


def test_a_failing_seed_tells_its_story_and_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (exchange, commands):
        monkeypatch.setattr(module, "HOP_LIMIT", 20)
    said = broken_seeds()
    assert "steps" in said
    assert "again: python -m tests.simulation --seed " in said
    assert "Submit(" in said


def test_credit_that_is_exceeded_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "takes", lambda self, type_: self.serves(type_))
    assert "credit" in broken_seeds()


def test_ids_that_repeat_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands.result_id("m", 1, 2) == "m.1.2"
    monkeypatch.setattr(commands, "result_id", lambda parent, command, target: f"{parent}.0.0")
    said = broken_seeds()
    assert "twice" in said or "were meant" in said


def test_good_without_a_delivery_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "failed", lambda code: "delivered")
    monkeypatch.setattr(exchange, "failed", lambda code: "delivered")
    said = broken_seeds()
    assert "was not" in said or "cannot be" in said
