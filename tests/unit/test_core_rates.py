"""Rates of senders: estimated from the messages that handlers hold, and from how many have come."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pytest

from bester.broker.core.rates import HELD, LOOKS, SHOWN, Rates

S2 = ("server", "s2")


def rates(held: list[tuple[str, Hashable]], per_s: dict[str, int], looks: int = LOOKS) -> dict[str, Any]:
    """Return the rates after so many looks, one a second, at the same held messages."""
    there = Rates()
    for second in range(looks):
        there.look({type_: second * count for type_, count in per_s.items()}, held, 100.0 + second)
    return there.as_map()


def by_sender(found: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(row["kind"], row["sender"]): row["per_s"] for row in found["fastest"]}


def test_type_of_slow_handlers_does_not_weigh_more() -> None:
    held: list[tuple[str, Hashable]] = [("slow", "bob")] * 90 + [("quick", "alice")] * 2 + [("quick", S2)] * 2
    found = rates(held, {"slow": 10, "quick": 4000})
    assert by_sender(found) == {("user", "alice"): 2000.0, ("server", "s2"): 2000.0, ("user", "bob"): 10.0}
    assert (found["window_s"], found["per_s"]) == (10.0, 4010.0)


@pytest.mark.parametrize("looks", [0, 1, 2, LOOKS - 1])
def test_burst_has_no_rate(looks: int) -> None:
    assert rates([("t", "alice")], {"t": 9000}, looks) == {"window_s": 0.0, "per_s": 0.0, "fastest": []}


def test_flood_that_is_over_is_forgotten() -> None:
    there = Rates()
    for second in range(3 * LOOKS):
        there.look({"t": 9000 * min(second, LOOKS)}, [("t", "alice")] if second < LOOKS else [], 100.0 + second)
    assert there.as_map()["per_s"] == 0.0
    assert there.as_map()["fastest"] == []


def test_new_type_counts_from_nothing_and_lists_are_bounded() -> None:
    there = Rates()
    for second in range(LOOKS):
        came = {} if second < 5 else {"new": 600}
        there.look(came, (("new", f"u{each}") for each in range(10 * HELD)), float(second))
    found = there.as_map()
    assert found["per_s"] == 60.0
    assert len(found["fastest"]) == SHOWN


def test_type_that_nobody_holds_is_of_nobody() -> None:
    found = rates([("a", "alice")], {"a": 5, "b": 7})
    assert by_sender(found) == {("user", "alice"): 5.0}
    assert found["per_s"] == 12.0
