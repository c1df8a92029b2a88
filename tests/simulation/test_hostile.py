"""Hostile parties in the simulation: the rules hold beside a thief of routing ids and a server that lies."""

from __future__ import annotations

from tests.simulation.hostile import Hostile
from tests.simulation.scenario import play

SEEDS = 20


def test_rules_hold_beside_a_thief_and_a_liar() -> None:
    lies = thefts = 0
    for seed in range(SEEDS):
        scenario = play(seed, Hostile)
        assert isinstance(scenario, Hostile)
        lies, thefts = lies + scenario.lies, thefts + scenario.thefts
    assert lies > 10 * SEEDS
    assert thefts > SEEDS // 4
