"""Deliveries end once each, whatever a bridge repeats, skips or makes up; users on several bridges share an outcome."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bester.broker.core.cases import Case, Kind
from bester.broker.core.deliveries import Deliveries, Delivery, Share
from bester.broker.core.values import Link

LINKS = [Link("ipc", b"1"), Link("ipc", b"2")]


def delivery(id_: str = "m.0") -> Delivery:
    return Delivery(Case(Kind.SUBMIT, LINKS[0], 1, "m", "m"), id_, [[0, 1]], ["alice"], None, reported=False)


class Books(RuleBasedStateMachine):
    """The model: per bridge, which serials are out."""

    def __init__(self) -> None:
        super().__init__()
        self.deliveries = Deliveries()
        self.model: dict[Link, dict[int, Delivery]] = {link: {} for link in LINKS}
        self.last = dict.fromkeys(LINKS, 0)

    @rule(link=st.sampled_from(LINKS))
    def add(self, link: Link) -> None:
        one = delivery()
        serial = self.deliveries.add(link, one)
        assert serial == self.last[link] + 1
        self.last[link] = serial
        self.model[link][serial] = one

    @rule(link=st.sampled_from(LINKS), upto=st.integers(-2, 30), done=st.lists(st.integers(-1, 30), max_size=6))
    def confirm(self, link: Link, upto: int, done: list[int]) -> None:
        out = self.model[link]
        expected = {serial: one for serial, one in out.items() if serial <= upto or serial in done}
        ended = self.deliveries.confirm(link, upto, done)
        assert len(ended) == len(dict(ended))
        assert dict(ended) == expected
        self.model[link] = {serial: one for serial, one in out.items() if serial not in expected}

    @rule(link=st.sampled_from(LINKS))
    def drop(self, link: Link) -> None:
        assert self.deliveries.drop(link) == list(self.model[link].values())
        self.model[link] = {}
        self.last[link] = 0

    @invariant()
    def counts_agree(self) -> None:
        assert self.deliveries.count == sum(len(out) for out in self.model.values())


TestBooks = Books.TestCase


def test_a_confirmation_far_ahead_costs_no_more_than_what_is_out() -> None:
    deliveries = Deliveries()
    deliveries.add(LINKS[0], delivery())
    assert len(deliveries.confirm(LINKS[0], 2**53, [])) == 1
    assert deliveries.add(LINKS[0], delivery()) == 2
    assert len(deliveries.confirm(LINKS[0], 2, [])) == 1


@pytest.mark.parametrize(
    ("reasons", "outcomes"),
    [
        ([None, None], [None, "delivered"]),
        (["not-connected", None], [None, "delivered"]),
        ([None, "overloaded"], [None, "delivered"]),
        (["not-connected", "overloaded"], [None, "failed:overloaded"]),
    ],
)
def test_a_user_on_two_bridges_is_reached_when_one_of_them_delivers(
    reasons: list[str | None], outcomes: list[str | None]
) -> None:
    share = Share(2)
    assert [share.end(reason) for reason in reasons] == outcomes
