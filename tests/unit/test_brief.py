"""Turns are brief for a moment after a message of somebody who says little, and while few do."""

from __future__ import annotations

import pytest

from bester.broker.brief import BRIEF_S, FEW, PART, Brief

TURN_S = 0.002


def test_turn_is_whole_where_nobody_says_little() -> None:
    brief = Brief()
    assert brief.part(TURN_S, 5.0) == TURN_S
    brief.on_much("eve", 5.0)
    assert brief.part(TURN_S, 5.0) == TURN_S


@pytest.mark.parametrize("after_s", [0.0, BRIEF_S / 2, 0.99 * BRIEF_S])
@pytest.mark.parametrize("offset_s", [0.0, BRIEF_S / 3, 0.9 * BRIEF_S])
def test_turns_are_brief_for_a_while_after_a_message_and_then_whole(offset_s: float, after_s: float) -> None:
    brief = Brief()
    assert brief.part(TURN_S, 7.0) == TURN_S  # a span begins
    came_at = 7.0 + offset_s
    brief.on_little("alice", came_at)
    assert brief.part(TURN_S, came_at + after_s) == TURN_S / PART
    assert brief.part(TURN_S, came_at + 2 * BRIEF_S) == TURN_S


def test_turns_stay_brief_while_messages_come() -> None:
    brief = Brief()
    for number in range(20):
        now = number * 0.9 * BRIEF_S
        brief.on_little("alice", now)
        assert brief.part(TURN_S, now) == brief.part(TURN_S, now + 0.8 * BRIEF_S) == TURN_S / PART


@pytest.mark.parametrize(("parties", "is_brief"), [(FEW, True), (FEW + 1, False), (1000, False)])
def test_messages_of_many_are_the_load_itself(parties: int, is_brief: bool) -> None:
    brief = Brief()
    for party in range(parties):
        brief.on_little(party, 1.0)
    assert (brief.part(TURN_S, 1.0) < TURN_S) == is_brief
    assert (brief.part(TURN_S, 1.0 + BRIEF_S) < TURN_S) == is_brief, "also in the next span"


def test_party_of_which_more_waits_says_much() -> None:
    brief = Brief()
    for party in range(FEW):
        brief.on_little(party, 1.0)
        brief.on_much(party, 1.0)
    assert brief.part(TURN_S, 1.0) == brief.part(TURN_S, 1.0 + BRIEF_S) == TURN_S
    brief.on_little("alice", 1.0 + 2.5 * BRIEF_S)
    assert brief.part(TURN_S, 1.0 + 2.5 * BRIEF_S) == TURN_S / PART
