"""Deliveries end once each, whatever a CONFIRM repeats, skips or makes up; a user on several bridges has one
outcome."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bester.broker.core.cases import Case, Kind
from bester.broker.core.deliveries import AnyDelivery, Deliveries, Delivery, MailDelivery, Share
from bester.broker.core.effects import Link
from bester.broker.core.jobs import Job
from bester.broker.store_requests import Entry
from bester.broker.wire.messages import Command

LINKS = [Link("ipc", b"1"), Link("ipc", b"2")]


def delivery() -> Delivery:
    case = Case(Kind.SUBMIT, LINKS[0], 1, "m", "m")
    job = Job(case, "m", "m", "t", b"1", "client", "s1", "alice")
    command = Command("sendClients", ["alice"], b"1")
    return Delivery(job, command, "m.0", [[0, 1]], None, reported=False, number=1, since=0.0)


def mail() -> MailDelivery:
    return MailDelivery(Entry(1, "user/alice", "m.0.0", "alice", "t", b"1", "alice", 0.0, {}), Share(1))


class Books(RuleBasedStateMachine):
    """Model of the deliveries: the unconfirmed serials of each bridge."""

    def __init__(self) -> None:
        super().__init__()
        self.deliveries = Deliveries()
        self.model: dict[Link, dict[int, AnyDelivery]] = {link: {} for link in LINKS}
        self.last = dict.fromkeys(LINKS, 0)

    @rule(link=st.sampled_from(LINKS), make=st.sampled_from([delivery, mail]))
    def add(self, link: Link, make: Callable[[], AnyDelivery]) -> None:
        one = make()
        serial = self.deliveries.of(link).add(one)
        assert serial == self.last[link] + 1
        self.last[link] = serial
        self.model[link][serial] = one

    @rule(link=st.sampled_from(LINKS), upto=st.integers(-2, 30), done=st.lists(st.integers(-1, 30), max_size=6))
    def confirm(self, link: Link, upto: int, done: list[int]) -> None:
        out = self.model[link]
        expected = {serial: one for serial, one in out.items() if serial <= upto or serial in done}
        ended = [(serial, each) for serial, each in self.deliveries.confirm(link, upto, done) if each is not None]
        assert len(ended) == len(dict(ended))
        assert dict(ended) == expected
        self.model[link] = {serial: one for serial, one in out.items() if serial not in expected}

    @rule(link=st.sampled_from(LINKS))
    def drop(self, link: Link) -> None:
        assert self.deliveries.drop_link(link) == list(self.model[link].values())
        self.model[link] = {}
        self.last[link] = 0

    @invariant()
    def counts_agree(self) -> None:
        assert self.deliveries.count == sum(len(out) for out in self.model.values())


TestBooks = Books.TestCase


def test_confirm_far_ahead_costs_no_more_than_the_unconfirmed_deliveries() -> None:
    deliveries = Deliveries()
    deliveries.of(LINKS[0]).add(delivery())
    assert len(list(deliveries.confirm(LINKS[0], 2**53, []))) == 1
    assert deliveries.of(LINKS[0]).add(delivery()) == 2
    assert len(list(deliveries.confirm(LINKS[0], 2, []))) == 1


@pytest.mark.parametrize(
    ("reasons", "delivered", "reason"),
    [
        ([None, None], True, None),
        (["not-connected", None], True, None),
        ([None, "overloaded"], True, None),
        (["not-connected", "overloaded"], False, "overloaded"),
    ],
)
def test_user_on_two_bridges_is_reached_by_one_delivery(
    reasons: list[str | None], delivered: bool, reason: str | None
) -> None:
    share = Share(2)
    assert [share.end(each) for each in reasons] == [False, True]
    assert share.delivered == delivered
    assert delivered or share.reason == reason
