"""A process that dies at once is started ever more slowly; one that lived well is started at once."""

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


def test_a_long_life_is_forgiven() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.started(0.0)
        backoff.died(0.0)
    backoff.started(100.0)
    assert backoff.died(100.0 + STEADY_S) == FIRST_S


def test_what_could_not_start_counts_as_a_death() -> None:
    backoff = Backoff()
    assert backoff.died(0.0) == FIRST_S
    assert backoff.died(1000.0) == 2 * FIRST_S
