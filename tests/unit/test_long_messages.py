"""Bound on the frames that a party may send in long messages, and the time for which one with more is held off."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bester.broker.long_messages import (
    FRAMES_A_SECOND,
    HELD_OFF_S,
    MOST_FRAMES,
    MOST_PARTIES,
    SHORT_FRAMES,
    LongMessages,
)
from bester.broker.wire.messages import BATCH_BYTES, INLINE_BYTES, MAX_FRAMES

NOW = 1000.0


def test_longest_message_is_allowed_now_and_then_and_more_at_first() -> None:
    longs, pause_s = LongMessages(), MAX_FRAMES / FRAMES_A_SECOND
    at_once = MOST_FRAMES // MAX_FRAMES
    assert at_once >= 2 and all(longs.allow("a", MAX_FRAMES, NOW) for _ in range(at_once))
    assert all(longs.allow("a", MAX_FRAMES, NOW + pause_s * number) for number in range(1, 60))
    assert not longs.allow("a", MAX_FRAMES, NOW + pause_s * 59)


def test_party_above_its_allowance_is_held_off_and_no_other() -> None:
    longs = LongMessages()
    assert longs.allow("b", MOST_FRAMES, NOW)
    assert not longs.allow("a", MOST_FRAMES + 1, NOW)
    assert longs.is_held_off("a", NOW) and longs.is_held_off("a", NOW + HELD_OFF_S - 0.1)
    assert not longs.is_held_off("b", NOW)
    assert not longs.is_held_off("a", NOW + HELD_OFF_S)
    assert not longs.allow("a", 1, NOW + HELD_OFF_S - 0.1), "at another door"
    assert longs.allow("a", MAX_FRAMES, NOW + HELD_OFF_S)


def test_batches_of_this_program_are_not_counted() -> None:
    """A batch is closed at BATCH_BYTES of bodies, of which those above INLINE_BYTES have frames of their own."""
    assert 1 + BATCH_BYTES // INLINE_BYTES + 1 < SHORT_FRAMES


def test_parties_that_are_remembered_are_bounded_and_the_loudest_stay() -> None:
    longs = LongMessages()
    for number in range(MOST_PARTIES * 2):
        assert longs.allow(f"p{number}", 1, NOW)
        longs.allow("loud", FRAMES_A_SECOND // MOST_PARTIES, NOW)
    assert not longs.allow("loud", MOST_FRAMES - FRAMES_A_SECOND, NOW)
    assert longs.remembered <= MOST_PARTIES


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, MAX_FRAMES)), max_size=40))
def test_what_is_allowed_is_never_above_the_rate(moves: list[tuple[float, int]]) -> None:
    longs, now, allowed = LongMessages(), NOW, 0
    for pause_s, frames in moves:
        now += pause_s
        if not longs.allow("a", frames, now):
            assert longs.is_held_off("a", now)
            return
        allowed += frames
        assert allowed <= MOST_FRAMES + FRAMES_A_SECOND * (now - NOW) + 1
