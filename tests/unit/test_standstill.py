"""A process that has stood still: which messages may have been sent by another one meanwhile."""

from __future__ import annotations

import pytest

from bester.bridge.standstill import AFTER_S, GAP_S, Standstill

TICK_S = 0.5
START = 100.0


def ticked(*times: float) -> Standstill:
    """Return what knows of a process that began at START, and ticked at these times."""
    standstill = Standstill(START)
    for now in times:
        standstill.tick(now)
    return standstill


def test_process_that_runs_has_no_doubt() -> None:
    standstill = ticked(*(START + TICK_S * number for number in range(1, 9)))
    assert not standstill.is_in_doubt(START + 2.2, START + 4.4)


@pytest.mark.parametrize("late_s", [0.0, GAP_S - TICK_S])
def test_tick_may_be_late(late_s: float) -> None:
    before = START + TICK_S
    standstill = ticked(before, before + TICK_S + late_s)
    assert not standstill.is_in_doubt(before, before + TICK_S + late_s)
    assert not standstill.is_in_doubt(before, before + GAP_S)


def test_message_from_before_a_standstill_is_in_doubt_with_and_without_the_first_tick_after_it() -> None:
    thawed = START + 7.0
    assert ticked(START + TICK_S).is_in_doubt(START + 0.6, thawed)
    assert ticked(START + TICK_S, thawed).is_in_doubt(START + 0.6, thawed)
    assert ticked(START + TICK_S, thawed, thawed + TICK_S).is_in_doubt(START + 0.6, thawed + 30.0)


def test_message_read_shortly_after_a_standstill_is_in_doubt_and_a_later_one_is_not() -> None:
    thawed = START + 7.0
    standstill = ticked(START + TICK_S, thawed, thawed + TICK_S, thawed + 2 * TICK_S)
    assert standstill.is_in_doubt(thawed + AFTER_S - 0.1, thawed + AFTER_S)
    assert not standstill.is_in_doubt(thawed + AFTER_S, thawed + AFTER_S)


def test_nobody_is_judged_until_there_was_time_to_read() -> None:
    standstill, thawed = ticked(START + TICK_S), START + 7.0
    assert [standstill.tick(thawed + TICK_S * number) for number in range(4)] == [False, False, True, True]


def test_process_that_stands_still_at_every_turn_judges_in_between() -> None:
    standstill = ticked(START + TICK_S)
    judged = [standstill.tick(START + 3.0 * number) for number in range(1, 9)]
    assert judged == [False, True] * 4
