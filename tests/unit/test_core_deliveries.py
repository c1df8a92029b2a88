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


def reply() -> tuple[Job, Command]:
    case = Case(Kind.SUBMIT, LINKS[0], 1, "m", "m")
    return Job(case, "m", "m", "t", b"1", "client", "s1", "alice"), Command("sendClients", ["alice"], b"1")


def delivery() -> Delivery:
    return Delivery(*reply(), "m.0", (0,), None, reported=False, number=1, since=0.0)


def mail() -> MailDelivery:
    return MailDelivery(Entry(1, "user/alice", "m.0.0", "alice", "t", b"1", "alice", 0.0, {}), Share(1))


def of(one: AnyDelivery) -> object:
    """Return the object that tells a delivery from others, whichever record it is in."""
    return one.job if isinstance(one, Delivery) else one


class Books(RuleBasedStateMachine):
    """Model of the deliveries: the unconfirmed serials of each bridge, each with its job, or its mail."""

    def __init__(self) -> None:
        super().__init__()
        self.deliveries = Deliveries()
        self.model: dict[Link, dict[int, object]] = {link: {} for link in LINKS}
        self.last = dict.fromkeys(LINKS, 0)

    @rule(link=st.sampled_from(LINKS), make=st.sampled_from([delivery, mail]))
    def add(self, link: Link, make: Callable[[], AnyDelivery]) -> None:
        one = make()
        serial = self.deliveries.of(link).add(one)
        assert serial == self.last[link] + 1
        self.last[link] = serial
        self.model[link][serial] = of(one)

    @rule(link=st.sampled_from(LINKS), count=st.integers(1, 5))
    def add_run(self, link: Link, count: int) -> None:
        replies = [reply() for _ in range(count)]
        self.deliveries.of(link).add_run(replies, 7, 0.0)
        for job, _ in replies:
            self.last[link] += 1
            self.model[link][self.last[link]] = job

    @rule(link=st.sampled_from(LINKS), upto=st.integers(-2, 60), done=st.lists(st.integers(-1, 60), max_size=6))
    def confirm(self, link: Link, upto: int, done: list[int]) -> None:
        out = self.model[link]
        expected = {serial: one for serial, one in out.items() if serial <= upto or serial in done}
        ended = [(serial, of(each)) for serial, each in self.deliveries.confirm(link, upto, done) if each is not None]
        assert len(ended) == len(dict(ended))
        assert dict(ended) == expected
        self.model[link] = {serial: one for serial, one in out.items() if serial not in expected}

    @rule(link=st.sampled_from(LINKS), upto=st.integers(-2, 60))
    def confirm_runs(self, link: Link, upto: int) -> None:
        out = self.model[link]
        ended = {serial: each.job for run in self.deliveries.confirm_runs(link, upto) for serial, each in run.each()}
        assert not ended or ended == {serial: one for serial, one in out.items() if serial <= upto}
        self.model[link] = {serial: one for serial, one in out.items() if serial not in ended}

    @rule(link=st.sampled_from(LINKS))
    def drop(self, link: Link) -> None:
        assert [of(each) for each in self.deliveries.drop_link(link)] == list(self.model[link].values())
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


def test_run_that_alone_is_confirmed_stays_whole() -> None:
    deliveries, replies = Deliveries(), [reply() for _ in range(5)]
    deliveries.of(LINKS[0]).add_run(replies, 10, 3.0)
    (begun,), (rest,) = deliveries.confirm_runs(LINKS[0], 2), deliveries.confirm_runs(LINKS[0], 9)
    assert begun.replies + rest.replies == replies
    assert [(serial, each.number, each.since) for serial, each in rest.each()] == [
        (3, 12, 3.0),
        (4, 13, 3.0),
        (5, 14, 3.0),
    ]


def test_deliveries_of_runs_count_as_recent_until_the_second_look() -> None:
    deliveries = Deliveries()
    of_link = deliveries.of(LINKS[0])
    of_link.add(delivery())
    of_link.add_run([reply() for _ in range(3)], 1, 0.0)
    assert deliveries.count_recent() == 4
    of_link.add_run([reply() for _ in range(2)], 4, 0.0)
    assert deliveries.count_recent() == 6
    assert deliveries.count_recent() == 2
    assert deliveries.count_recent() == 0


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
