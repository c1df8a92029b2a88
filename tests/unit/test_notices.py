"""How many lines one kind of event may write."""

from __future__ import annotations

from bester.broker.notices import PER_SECOND, Notices


def test_a_storm_is_counted_not_written() -> None:
    notices = Notices()
    assert [notices.admit("refused", 5.0) for _ in range(PER_SECOND + 7)] == [0] * PER_SECOND + [None] * 7
    assert notices.admit("joined", 5.5) == 0
    assert notices.admit("refused", 6.0) == 7
    assert notices.admit("refused", 6.1) == 0
