"""A part that took several shares of a turn makes up for them."""

from __future__ import annotations

import pytest

from bester.broker.share import PART, Share

TURN_S = 0.25
MOST_S = 2.0


@pytest.mark.parametrize(
    ("took_s", "turns"), [(0.0, 0), (TURN_S, 0), (2 * TURN_S, 0), (3 * TURN_S, 2), (5 * TURN_S, 4), (100.0, 8)]
)
def test_costly_turn_is_followed_by_turns_without_one(took_s: float, turns: int) -> None:
    share = Share(TURN_S, MOST_S)
    assert share.begin()
    share.end(took_s)
    assert [share.begin() for _ in range(turns)] == [False] * turns
    assert share.begin()


def test_brief_turns_make_up_for_their_own_time() -> None:
    share = Share(TURN_S, MOST_S)
    share.end(3 * TURN_S)
    assert [share.begin(turn_s=TURN_S / 4) for _ in range(9)] == [False] * 8 + [True]


def test_made_up_turn_leaves_no_debt() -> None:
    share = Share(TURN_S, MOST_S)
    share.end(3 * TURN_S)
    while not share.begin():
        pass
    share.end(0.0)
    assert share.begin()


def test_turn_that_was_longer_by_right_leaves_what_is_over_it() -> None:
    share = Share(TURN_S, MOST_S)
    share.end(3 * TURN_S, 3 * TURN_S)
    assert share.begin()
    share.end(5 * TURN_S, 3 * TURN_S)
    assert [share.begin() for _ in range(3)] == [False, False, True]


def test_long_turns_make_up_for_more() -> None:
    share = Share(TURN_S, MOST_S)
    share.end(5 * TURN_S)
    assert not share.begin(PART * 2 * TURN_S)
    assert not share.begin(PART * 2 * TURN_S)
    assert share.begin(0.0)
