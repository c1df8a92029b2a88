"""Waits between the lives of a process: longer after each short life, short again after a long one."""

from itertools import pairwise

from bester.bridge.children.backoff import FIRST_S, LONGEST_S, STEADY_S, Backoff


def test_short_lives_double_the_wait_up_to_the_longest() -> None:
    backoff = Backoff()
    waits = []
    now = 0.0
    for _ in range(12):
        backoff.started(now)
        waits.append(backoff.died(now))
        now += waits[-1]
    assert waits[0] == FIRST_S
    assert waits[-1] == LONGEST_S
    assert all(after == min(before * 2, LONGEST_S) for before, after in pairwise(waits))


def test_long_life_resets_the_wait() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.started(0.0)
        backoff.died(0.0)
    backoff.started(100.0)
    assert backoff.died(100.0 + STEADY_S) == FIRST_S


def test_failed_start_counts_as_an_end() -> None:
    backoff = Backoff()
    assert backoff.died(0.0) == FIRST_S
    assert backoff.died(1000.0) == 2 * FIRST_S
