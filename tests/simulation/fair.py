"""Shares under load: of a bridge's input (`fair_bridge`), and of a handler behind several bridges (`fair_broker`).

`make simulate ARGS="--fair"` plays the long form, `python -m tests.simulation --fair --seed N` one seed.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.simulation.fair_bridge import Flood
from tests.simulation.fair_broker import Crowd
from tests.world.clock import BrokenRuleError


def play_fair(seeds: Iterable[int], *plays: type[Flood] | type[Crowd]) -> str:
    """Play seeds (of both plays, where none is given) up to the first that breaks a rule; return the failure's text, or
    nothing."""
    for seed in seeds:
        for play in plays or (Flood, Crowd):
            try:
                play(seed).play()
            except BrokenRuleError as error:
                again = f"python -m tests.simulation --fair --seed {seed}"
                return f"seed {seed}, {play.__name__.lower()}: {error}\nagain: {again}"
    return ""
