"""Connections to one address: one at first, more as they get through, fewer when they do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.bridge.openings import FIRST_PATIENCE_S, LEAST_PATIENCE_S, PATIENCE, TRY_EVERY, Openings


def open_all(openings: Openings) -> int:
    opened = 0
    while openings.may_open():
        openings.begin()
        opened += 1
    return opened


def one_through(openings: Openings, took_s: float = 0.001) -> None:
    openings.begin()
    openings.through(took_s)
    openings.end()


def test_one_connection_at_first_and_one_more_each_round() -> None:
    openings = Openings(100)
    rounds = []
    for _ in range(5):
        opened = open_all(openings)
        rounds.append(opened)
        for _ in range(opened):
            openings.through(0.001)
            openings.end()
    assert rounds == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("trouble", ["failed", "late"])
def test_half_as_many_after_a_failed_or_late_connection(trouble: str) -> None:
    openings = Openings(100)
    while not (opened := open_all(openings)) >= 8:
        for _ in range(opened):
            openings.through(0.001)
            openings.end()
    if trouble == "failed":
        openings.failed()
    else:
        openings.through(1.0)
    for _ in range(7):
        openings.end()
        openings.opening -= 1
    openings.end()
    assert open_all(openings) == 4
    for _ in range(4):
        openings.failed()
        openings.end()
    sizes = []
    for _ in range(TRY_EVERY * 2):
        one_through(openings)
        size = open_all(openings)
        sizes.append(size)
        openings.opening -= size
        openings.open -= size
    assert sizes[0] <= 2
    assert sizes[TRY_EVERY - 5] <= 2 < sizes[-1] <= 4


def test_patience_follows_the_usual_time_and_doubles_after_a_failure() -> None:
    openings = Openings(100)
    assert openings.patience_s == FIRST_PATIENCE_S
    one_through(openings, 0.001)
    assert openings.patience_s == LEAST_PATIENCE_S
    for number in range(1, 6):
        openings.begin()
        openings.failed()
        openings.end()
        assert openings.patience_s == LEAST_PATIENCE_S * 2**number, "it may have moved far away"
    for _ in range(50):
        one_through(openings, 0.5)
    assert openings.patience_s == pytest.approx(PATIENCE * 0.5, rel=0.01)


def test_opening_connections_are_at_least_one_and_bounded() -> None:
    openings = Openings(3)
    for _ in range(10):
        openings.begin()
        openings.failed()
        openings.end()
    assert open_all(openings) == 1
    for _ in range(3 * TRY_EVERY):
        openings.through(0.001)
        openings.end()
        openings.begin()
    assert open_all(openings) == 2, "three in all"
    openings.through(0.001)
    assert open_all(openings) == 0, "the one that is through counts against the bound"
    openings.end()
    assert open_all(openings) == 1


@given(st.lists(st.sampled_from(["open", "through", "late", "failed", "end"]), max_size=200), st.integers(1, 8))
def test_no_order_of_events_blocks_an_address(what: list[str], most: int) -> None:
    openings = Openings(most)
    opening = through = 0
    for each in what:
        if each == "open" and openings.may_open():
            openings.begin()
            opening += 1
        elif each in ("through", "late", "failed") and opening:
            opening -= 1
            if each == "failed":
                openings.failed()
                openings.end()
            else:
                openings.through(0.0 if each == "through" else 2 * openings.patience_s)
                through += 1
        elif each == "end" and through:
            openings.end()
            through -= 1
        assert (openings.opening, openings.open) == (opening, opening + through)
        assert openings.open <= most
        if not opening and through < most:
            assert openings.may_open()
