"""Refused connections: one line a minute for each, and a bound on those remembered."""

from __future__ import annotations

from bester.broker.core.effects import Effects, Notice
from bester.broker.core.refused import LOG_AGAIN_S, MAX_REFUSED, Refused


def logged(out: Effects) -> list[dict[str, str]]:
    return [call.fields for call in out.take().calls if isinstance(call, Notice)]


def test_one_line_a_minute_for_one_party_and_reason() -> None:
    out = Effects()
    refused = Refused(out)
    for tenth in range(round(LOG_AGAIN_S * 20)):
        refused.add("10.0.0.1", "K", "unknown", tenth / 10)
    assert logged(out) == [{"address": "10.0.0.1", "key": "K", "why": "unknown"}] * 2
    assert [(each.times, each.at) for each in refused.latest()] == [(1200, 119.9)]


def test_another_address_key_or_reason_is_another_line() -> None:
    out = Effects()
    refused = Refused(out)
    for party in (("a", "", "x"), ("b", "", "x"), ("a", "K", "x"), ("a", "", "y"), ("a", "", "x")):
        refused.add(*party, 0.0)
    assert len(logged(out)) == 4
    assert [each.address for each in refused.latest()] == ["b", "a", "a", "a"]


def test_a_flood_of_addresses_is_bounded() -> None:
    refused = Refused(Effects())
    for number in range(3 * MAX_REFUSED):
        refused.add(str(number), "", "x", 0.0)
    assert [each.address for each in refused.latest()] == [str(n) for n in range(2 * MAX_REFUSED, 3 * MAX_REFUSED)]
