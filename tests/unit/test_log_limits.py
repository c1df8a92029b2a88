"""Bounds on the lines that one event may write."""

from __future__ import annotations

from bester.broker.log_limits import PER_SECOND, SELDOM_S, LogLimits


def test_storm_is_counted_not_written() -> None:
    notices = LogLimits()
    assert [notices.admit("refused", 5.0) for _ in range(PER_SECOND + 7)] == [0] * PER_SECOND + [None] * 7
    assert notices.admit("joined", 5.5) == 0
    assert notices.admit("refused", 6.0) == 7
    assert notices.admit("refused", 6.1) == 0


def test_lasting_event_is_written_seldom() -> None:
    notices = LogLimits()
    assert [notices.admit("storage-full", SELDOM_S + second) for second in range(SELDOM_S)] == [0] + [None] * 9
    assert notices.admit("storage-full", 2.0 * SELDOM_S) == 9
