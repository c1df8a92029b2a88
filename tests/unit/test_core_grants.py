"""A handler that serves several brokers: a death proves something over a message that was given under a grant alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import pytest

from bester.broker.core import isolation
from bester.broker.core.effects import Link
from bester.broker.core.grants import PATIENCE_S, TRANSITIONS, Event, Grant, State
from bester.broker.core.isolation import DRAIN_S
from bester.broker.core.pools import Availability
from bester.broker.core.settings import Budget, Settings
from bester.broker.core.worker_changes import MOST_HANDED_BACK
from bester.broker.core.workers import Workers
from bester.broker.wire.messages import Goodbye, Heartbeat, Hello, Report, Request, Welcome
from tests.unit.core_stand import Stand

OPPOSITE: dict[isolation.Event, isolation.Event] = {
    "isolated": "released", "released": "isolated", "paused": "unpaused", "unpaused": "paused",
}  # fmt: skip


class Ward:
    """A stand with handlers of several brokers, named by their number."""

    def __init__(self, workers: int = 1, **options: Any) -> None:
        settings = Settings("s1", open_accounts=True, budgets={"t": Budget(None, 2)})
        self.stand = Stand(settings)
        self.stand.wait(3.0)
        self.bridge = self.stand.bridge("alice", "bob")
        self.links = [self.stand.handler("t", credit=8, shared=f"p{number}", **options) for number in range(workers)]

    def submit(self, *bodies: bytes) -> None:
        for body in bodies:
            self.stand.submit(self.bridge, "t", body)

    def asked(self, link: Link) -> list[int]:
        """Return the numbers under which the broker has asked for the exclusive use, 0 for its end."""
        beats = self.stand.heard_of(link, Heartbeat)
        return [beat.options["exclusive"] for beat in beats if beat.options and "exclusive" in beat.options]

    def given(self, link: Link) -> list[Request]:
        return self.stand.heard_of(link, Request)

    def kill(self, number: int = 0) -> Link:
        """End a handler; return the link of one that takes its place."""
        self.lose(self.links[number])
        self.links[number] = self.stand.handler("t", credit=8, shared=f"p{number}'")
        return self.links[number]

    def lose(self, link: Link) -> None:
        """End a handler."""
        del self.stand.alive[link]
        self.stand.take(self.stand.router.on_undeliverable(link, Heartbeat(), self.stand.now))

    def granted(self, links: Sequence[Link]) -> dict[bytes, tuple[Link, Request]]:
        """Grant what handlers are asked for; return what they are given, by body."""
        given: dict[bytes, tuple[Link, Request]] = {}
        for link in links:
            if asked := self.asked(link):
                self.stand.say(link, Heartbeat({"exclusive": asked[-1]}))
                given |= {request.body: (link, request) for request in self.given(link)}
        return given

    def reasons(self) -> list[str | None]:
        return [report.reason for report in self.stand.heard_of(self.bridge, Report)]


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", get_args(Event))
def test_every_state_and_event_follows_the_table(state: State, event: Event) -> None:
    grant = Grant("p")
    grant.state = state
    has_changed = grant.go(event)
    assert has_changed is ((state, event) in TRANSITIONS)
    assert grant.state is TRANSITIONS.get((state, event), state)
    assert grant.number == int(has_changed and event == "wanted")
    assert grant.asked == (grant.number if grant.state is State.ASKED else 0)


def test_the_table_of_availability_leads_to_every_state_and_back() -> None:
    assert {event for _, event in isolation.TRANSITIONS} == set(get_args(isolation.Event))
    assert {start for start, _ in isolation.TRANSITIONS} == set(Availability) == set(isolation.TRANSITIONS.values())
    for (start, event), end in isolation.TRANSITIONS.items():
        assert isolation.TRANSITIONS[end, OPPOSITE[event]] is start


def test_broker_tells_a_handler_of_several_brokers_that_it_knows_of_exclusive_use() -> None:
    stand = Stand()
    options: dict[str, Any]
    for options in ({}, {"shared": "p"}):
        link = stand.link()
        stand.say(link, Hello(1, "handler", "h", {"types": ["t"], **options}))
        [welcome] = stand.heard_of(link, Welcome)
        assert welcome.options.get("exclusive") == (True if options else None)


@pytest.mark.parametrize("name", [1, "", "x" * 65])
def test_name_that_is_none_is_refused(name: Any) -> None:
    stand = Stand()
    link = stand.link()
    stand.say(link, Hello(1, "handler", "h", {"types": ["t"], "shared": name}))
    assert not stand.heard_of(link, Welcome)


def test_death_over_the_only_message_of_this_broker_is_counted_under_a_grant_alone() -> None:
    ward = Ward()
    ward.submit(b"1")
    [first] = ward.given(ward.links[0])
    link = ward.kill()  # perhaps over another broker's message
    assert ward.asked(link) == [1]
    assert not ward.given(link)
    for attempt in (2, 3):  # two are counted
        ward.stand.say(link, Heartbeat({"exclusive": 1}))
        [again] = ward.given(link)
        assert (again.body, again.meta["attempt"], again.meta["id"]) == (b"1", attempt, first.meta["id"])
        assert not ward.reasons()
        link = ward.kill()
    assert ward.reasons() == ["handler-lost"]
    assert ward.asked(link) == []


def test_worker_takes_new_messages_once_the_suspect_is_done() -> None:
    ward = Ward()
    ward.submit(b"1")
    ward.given(ward.links[0])
    link = ward.kill()
    ward.submit(b"2")
    ward.stand.say(link, Heartbeat({"exclusive": 1}))
    [suspect] = ward.given(link)
    assert suspect.body == b"1"
    ward.asked(link)
    ward.stand.reply(link, suspect.token)
    assert ward.asked(link) == [0]
    assert [request.body for request in ward.given(link)] == [b"2"]


def test_each_grant_is_for_one_suspect() -> None:
    ward = Ward()
    ward.submit(b"1", b"2")
    ward.given(ward.links[0])
    link = ward.kill()
    for number, body in ((1, b"1"), (2, b"2")):
        assert ward.asked(link) == [number]
        ward.stand.say(link, Heartbeat({"exclusive": number}))
        [suspect] = ward.given(link)
        assert suspect.body == body
        ward.stand.say(link, Heartbeat({"exclusive": number}))  # nobody asks now
        assert not ward.given(link)
        ward.stand.reply(link, suspect.token)
    assert ward.asked(link) == [0]


@pytest.mark.parametrize("number", [0, 2, -1, True, "1", None])
def test_grant_that_was_not_asked_for_is_ignored(number: Any) -> None:
    ward = Ward()
    ward.submit(b"1")
    ward.given(ward.links[0])
    link = ward.kill()
    ward.stand.say(link, Heartbeat({"exclusive": number}))
    assert not ward.given(link)


def test_all_brokers_would_ask_the_same_handlers() -> None:
    ward = Ward(5)
    ward.submit(*(b"%d" % number for number in range(10)))
    for link in ward.links:
        for request in ward.given(link):
            if link is not ward.links[4]:
                ward.stand.reply(link, request.token)
    ward.stand.take(ward.stand.router.on_undeliverable(ward.links[4], Heartbeat(), ward.stand.now))
    assert [ward.asked(link) for link in ward.links[:4]] == [[1], [1], [], []]


def test_handler_that_is_in_another_brokers_use_is_asked_first() -> None:
    ward = Ward(3)
    ward.submit(b"1", b"2", b"3")
    for link in ward.links[:2]:
        [request] = ward.given(link)
        ward.stand.reply(link, request.token)
    ward.stand.say(ward.links[1], Heartbeat({"paused": 7}))
    ward.stand.take(ward.stand.router.on_undeliverable(ward.links[2], Heartbeat(), ward.stand.now))
    assert [ward.asked(link) for link in ward.links[:2]] == [[], [1]]


def test_last_worker_that_does_not_grant_takes_new_messages_in_between() -> None:
    ward = Ward()
    ward.submit(b"1")
    ward.given(ward.links[0])
    link = ward.kill()
    ward.submit(b"2")
    assert ward.asked(link) == [1]
    ward.stand.wait(DRAIN_S + 1.0)
    assert ward.asked(link) == [0]
    assert [request.body for request in ward.given(link)] == [b"2"]


# --- pauses ---


def test_paused_worker_gets_nothing_and_the_broker_answers() -> None:
    ward = Ward(2)
    first, second = ward.links
    ward.stand.say(first, Heartbeat({"paused": 3}))
    assert [beat.options for beat in ward.stand.heard_of(first, Heartbeat)] == [{"paused": 3}]
    ward.submit(*(b"%d" % number for number in range(9)))
    assert not ward.given(first)
    assert len(ward.given(second)) == 8
    ward.stand.say(first, Heartbeat({"paused": 0}))
    assert [request.body for request in ward.given(first)] == [b"8"]
    assert not [beat for beat in ward.stand.heard_of(first, Heartbeat) if beat.options]


def test_messages_that_were_not_begun_go_to_others_before_all_that_wait_and_use_up_no_attempt() -> None:
    ward = Ward()
    ward.submit(*(b"%d" % number for number in range(10)))
    held = ward.given(ward.links[0])
    ward.stand.say(ward.links[0], Heartbeat({"paused": 1}))
    unbegun = [request.token for request in held[2:]]
    ward.stand.say(ward.links[0], Heartbeat({"unbegun": [*unbegun, 4, "x", unbegun[0]]}))
    other = ward.stand.handler("t", credit=16, shared="q")
    assert [(each.body, each.meta["attempt"]) for each in ward.given(other)] == [
        (b"%d" % number, 1) for number in range(2, 10)
    ]
    assert ward.stand.state.jobs == 10


def test_message_group_of_a_paused_worker_keeps_its_order() -> None:
    ward = Ward(order={"t": "user"})
    link = ward.links[0]
    ward.submit(*(b"%d" % number for number in range(4)))
    held = ward.given(link)
    ward.stand.say(link, Heartbeat({"paused": 1}))
    ward.stand.say(link, Heartbeat({"unbegun": [request.token for request in held[1:]]}))
    other = ward.stand.handler("t", credit=16, shared="q", order={"t": "user"})
    assert not ward.given(other), "one is in work"
    ward.stand.reply(link, held[0].token)
    assert [request.body for request in ward.given(other)] == [b"1", b"2", b"3"]


def test_message_group_that_waits_for_a_paused_worker_goes_on_when_it_is_back() -> None:
    ward = Ward(order={"t": "user"})
    link = ward.links[0]
    ward.submit(b"1", b"2")
    first, second = ward.given(link)
    ward.stand.say(link, Heartbeat({"paused": 1}))
    ward.stand.say(link, Heartbeat({"unbegun": [second.token]}))
    ward.stand.say(link, Heartbeat({"paused": 0}))
    assert [request.body for request in ward.given(link)] == [b"2"]
    ward.stand.reply(link, first.token)


def test_paused_worker_may_be_granted_to_this_broker() -> None:
    ward = Ward()
    ward.submit(b"1")
    ward.given(ward.links[0])
    link = ward.kill()
    ward.stand.say(link, Heartbeat({"paused": 1}))
    assert not ward.given(link)
    ward.stand.say(link, Heartbeat({"exclusive": 1}))
    [suspect] = ward.given(link)
    ward.submit(b"2")
    ward.stand.reply(link, suspect.token)
    assert [request.body for request in ward.given(link)] == [b"2"]


def test_leaving_handler_hands_back_and_is_forgotten() -> None:
    ward = Ward()
    ward.submit(b"1")
    [held] = ward.given(ward.links[0])
    ward.stand.say(ward.links[0], Heartbeat({"paused": 1}), Goodbye("ends"))
    ward.stand.say(ward.links[0], Heartbeat({"unbegun": [held.token]}))
    assert [notice.event for notice in ward.stand.notices][-1] == "left"
    other = ward.stand.handler("t", shared="q")
    assert [(each.body, each.meta["attempt"]) for each in ward.given(other)] == [(b"1", 1)]


def test_message_that_is_handed_back_again_and_again_ends() -> None:
    ward = Ward(order={"t": "user"})
    link = ward.links[0]
    ward.submit(b"1", b"2")
    for _ in range(MOST_HANDED_BACK + 1):
        assert not ward.reasons()
        tokens = [request.token for request in ward.given(link)]
        ward.stand.say(link, Heartbeat({"paused": 1}))
        ward.stand.say(link, Heartbeat({"unbegun": tokens}))
        ward.stand.say(link, Heartbeat({"paused": 0}))
    assert ward.reasons() == ["overloaded"] * 2
    assert (ward.stand.state.jobs, ward.stand.router.idle) == (0, True)
    ward.submit(b"3")
    assert [request.body for request in ward.given(link)] == [b"3"]


def test_message_that_was_begun_once_and_is_handed_back_again_and_again_is_not_called_refused() -> None:
    ward = Ward()
    ward.submit(b"1")
    ward.given(ward.links[0])
    link = ward.kill()
    ward.stand.say(link, Heartbeat({"exclusive": ward.asked(link)[-1]}))
    for _ in range(MOST_HANDED_BACK + 1):
        assert not ward.reasons()
        [request] = ward.given(link)
        ward.stand.say(link, Heartbeat({"unbegun": [request.token]}))
        if asked := ward.asked(link):
            ward.stand.say(link, Heartbeat({"exclusive": asked[-1]}))
    assert ward.reasons() == ["handler-lost"]
    assert [letter.reason for letter in ward.stand.dead()] == ["handler-lost"]


def test_late_message_that_was_not_begun_returns_its_credit() -> None:
    ward = Ward()
    ward.submit(*(b"%d" % number for number in range(9)))
    held = ward.given(ward.links[0])
    ward.stand.wait(31.0)
    assert sorted(map(str, ward.reasons())) == ["overloaded"] + ["timeout"] * 8
    ward.submit(b"new")
    assert not ward.given(ward.links[0])
    ward.stand.say(ward.links[0], Heartbeat({"unbegun": [request.token for request in held]}))
    assert [request.body for request in ward.given(ward.links[0])] == [b"new"]


def test_signals_of_a_handler_of_one_broker_mean_nothing() -> None:
    stand = Stand()
    bridge, link = stand.bridge("alice"), stand.handler("t", credit=2)
    stand.submit(bridge, "t", b"1")
    [held] = stand.heard_of(link, Request)
    stand.say(link, Heartbeat({"paused": 1, "unbegun": [held.token], "exclusive": 1}))
    assert not stand.heard_of(link, Heartbeat)
    stand.submit(bridge, "t", b"2")
    assert [request.body for request in stand.heard_of(link, Request)] == [b"2"]


def lone_suspect(ward: Ward, *bodies: bytes) -> list[Link]:
    """End a handler with these messages; return the links of four others that join before."""
    ward.submit(*bodies)
    links = [ward.stand.handler("t", credit=8, shared=f"q{number}") for number in range(4)]
    ward.lose(ward.links[0])
    return links


def test_grant_that_comes_too_late_ends_a_pause() -> None:
    """The handler counts on that: it has told the broker that is granted nothing else."""
    ward = Ward()
    link = ward.links[0]
    ward.stand.say(link, Heartbeat({"paused": 3}))
    ward.submit(b"1")
    assert not ward.given(link)
    ward.stand.say(link, Heartbeat({"exclusive": 7}))
    assert [request.body for request in ward.given(link)] == [b"1"]


def test_handler_that_does_not_grant_is_asked_no_more_where_others_do() -> None:
    ward = Ward()
    first, *others = lone_suspect(ward, b"1")
    assert ward.asked(first) == [1]
    ward.stand.wait(PATIENCE_S + 2.0)
    assert ward.asked(first)[-1:] == [0]
    [(link, number)] = [(link, asked[-1]) for link in others if (asked := ward.asked(link))]
    ward.stand.say(link, Heartbeat({"exclusive": number}))
    assert [request.body for request in ward.given(link)] == [b"1"]


def test_death_after_the_end_of_a_grant_proves_nothing() -> None:
    """Of two suspects one kills; the other is cleared, and its handler works on other brokers' messages again."""
    ward = Ward()
    links = lone_suspect(ward, b"1", b"2")
    given = ward.granted(links)
    ward.lose(given[b"1"][0])  # it has killed alone
    ward.stand.wait(2.0)
    assert ward.asked(given[b"2"][0]) == [0]
    ward.lose(given[b"2"][0])  # perhaps over another broker's message
    rest = [link for link in links if link in ward.stand.alive]
    while b"2" not in given or given[b"2"][0] not in rest:
        ward.stand.wait(0.5)
        given = ward.granted(rest)
        if b"1" in given:
            ward.stand.reply(given[b"1"][0], given[b"1"][1].token)
    ward.lose(given[b"2"][0])  # once alone, of two times
    assert "handler-lost" not in ward.reasons()


@pytest.mark.parametrize("paused_first", [True, False])
def test_pause_goes_on_while_the_handler_holds_nothing_but_what_is_over(paused_first: bool) -> None:
    workers = Workers(1)
    worker = workers.join(Link("", b"h"), frozenset({"t"}), 8, frozenset(), "p")
    if paused_first:
        workers.isolation.pause(worker)
        workers.suspend(worker)
    else:
        workers.suspend(worker)
        workers.isolation.pause(worker)
    workers.resume(worker)
    assert workers.idle("t") is None
    workers.isolation.unpause(worker)
    assert workers.idle("t") is worker


def test_hello_of_a_stuck_worker_ends_a_pause_and_the_next_pause_counts() -> None:
    workers = Workers(1)
    types = frozenset({"t"})
    worker = workers.join(Link("", b"h"), types, 8, frozenset(), "p")
    workers.isolation.pause(worker)
    workers.suspend(worker)
    workers.rejoin(worker, types, 8, frozenset(), "p")
    assert workers.idle("t") is worker
    workers.isolation.pause(worker)
    assert workers.idle("t") is None
