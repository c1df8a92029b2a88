"""Duplicates, by a client's own key or by the id of an emission: each is processed once and reported each time."""

from __future__ import annotations

import pytest

from bester.broker.core.settings import Limits
from bester.broker.wire.messages import Command, Confirm, Deliver, Goodbye, Outcome, Report, Request, Submit
from tests.unit.core_resume_stand import Bridge, good, town
from tests.unit.core_stand import Stand, clients


def test_duplicate_is_processed_once_and_reported_each_time() -> None:
    stand, bridge, chat = town()
    bridge.submits(7, dedup="k")
    bridge.submits(8, dedup="k")
    assert bridge.reports() == []
    stand.answer(chat, clients("carol"))
    assert bridge.reports() == [good(7, carol="queued"), good(8, 7, carol="queued")]
    other = stand.bridge("alice", name="other")
    stand.say(other, Submit(1, 1, "chat", b"1", {"dedup": "k"}))
    assert stand.report(other) == good(1, 7, carol="queued")
    assert stand.heard_of(chat, Request) == []
    assert len(stand.mail("carol")) == 1


def test_broker_reports_both_where_a_duplicate_came_before_the_delivery() -> None:
    stand, bridge, chat = town()
    bridge.submits(7, dedup="k")
    bridge.submits(8, dedup="k")
    stand.answer(chat, clients("alice"))
    delivery = stand.deliver(bridge.link)
    assert delivery.token is None
    assert bridge.reports() == [good(7), good(8, 7)]


def test_broker_reports_a_duplicate_that_comes_during_the_delivery() -> None:
    stand, bridge, chat = town()
    bridge.submits(7, dedup="k")
    stand.answer(chat, clients("alice"))
    delivery = stand.one(bridge.link, Deliver)
    assert delivery.token == 7
    bridge.submits(8, dedup="k")
    assert bridge.reports() == []
    stand.say(bridge.link, Confirm(delivery.serial))
    assert bridge.reports() == [good(8, 7)]


def test_duplicate_of_a_pending_message_on_another_connection_is_found() -> None:
    stand, bridge, chat = town()
    bridge.submits(7, dedup="k")
    request = stand.request(chat)
    stand.say(bridge.link, Goodbye(None))
    other = stand.bridge("alice", name="other")
    stand.say(other, Submit(1, 1, "chat", b"1", {"dedup": "k", "resent": True}))
    assert stand.heard_of(chat, Request) == []
    stand.reply(chat, request.token)
    assert stand.report(other) == good(1, 7)


@pytest.mark.parametrize(("resent", "reason"), [(True, "unreachable"), (False, "no-handler"), (None, "no-handler")])
def test_message_that_its_client_sends_again_is_never_called_merely_refused(resent: bool | None, reason: str) -> None:
    stand = Stand()
    bridge, gone = stand.bridge("alice"), stand.handler("chat")
    stand.say(gone, Goodbye(None))
    stand.say(bridge, Submit(1, 1, "chat", b"1", {"dedup": "k", "resent": resent}))
    stand.wait(10.0)
    assert stand.report(bridge).reason == reason


def test_equal_keys_of_two_users_are_two_keys() -> None:
    stand, bridge, chat = town()
    bridge.submits(7, session=1, dedup="k")
    bridge.submits(8, session=2, dedup="k")
    assert [request.user for request in stand.heard_of(chat, Request)] == ["alice", "bob"]


def test_key_is_remembered_for_15_minutes() -> None:
    stand, bridge, chat = town()
    bridge.submits(7, dedup="k")
    stand.answer(chat)
    stand.wait(899.0, step_s=1.0)
    bridge.submits(8, dedup="k")
    assert stand.heard_of(chat, Request) == []
    stand.wait(1.0)
    bridge.submits(9, dedup="k")
    stand.answer(chat)
    assert bridge.reports() == [good(7), good(8, 7), good(9)]


def test_oldest_key_is_forgotten_above_the_bound() -> None:
    stand, bridge, chat = town(Limits(max_remembered=2))
    for token, key in ((1, "a"), (2, "b"), (3, "c"), (4, "b"), (5, "a")):
        bridge.submits(token, dedup=key)
    assert [request.body for request in stand.heard_of(chat, Request)] == [b"1", b"2", b"3", b"5"]


def test_message_that_failed_before_its_commands_is_processed_again() -> None:
    stand, bridge, chat = town()
    stand.say(bridge.link, Submit(1, 1, "unknown", b"1", {"dedup": "k"}))
    bridge.submits(2, dedup="k")
    stand.answer(chat)
    assert [report.reason for report in bridge.reports()] == ["unknown-type", None]


def test_message_that_failed_in_part_is_not_processed_again() -> None:
    stand, bridge, chat = town()
    bridge.submits(1, dedup="k")
    stand.answer(chat, clients("carol", "nobody"))
    bridge.submits(2, dedup="k")
    first, second = bridge.reports()
    assert second == first._replace(token=2)
    assert (first.reason, len(stand.mail("carol"))) == ("unknown-user", 1)


@pytest.mark.parametrize("key", [None, 5, "", "x" * 65, ["k"], {"k": 1}])
def test_unreadable_key_is_ignored(key: object) -> None:
    stand, bridge, chat = town()
    bridge.submits(7, dedup=key)
    bridge.submits(8, dedup=key)
    assert len(stand.heard_of(chat, Request)) == 2


def test_the_longest_key_counts() -> None:
    stand, bridge, chat = town()
    bridge.submits(7, dedup="x" * 64)
    bridge.submits(8, dedup="x" * 64)
    assert len(stand.heard_of(chat, Request)) == 1


def test_every_duplicate_has_a_report() -> None:
    stand, bridge, chat = town()
    for token in range(1, 31):
        bridge.submits(token, dedup="k")
    assert bridge.reports() == [Report(token, 1, "unreachable", "s1/b-life/1", {}) for token in range(2, 15)]
    stand.answer(chat)
    assert bridge.reports() == [good(1), *[good(token, 1) for token in range(15, 31)]]


def test_emission_that_is_under_way_is_not_called_refused_to_one_of_many_that_repeat_it() -> None:
    stand, bridge, _ = town()
    clock = stand.handler("clock")
    tokens = [stand.emit(clock, "clock", clients("alice"), id="noon") for _ in range(18)]
    assert stand.heard_of(clock, Outcome) == [Outcome(tokens[1], 1, {}, "unreachable")]
    stand.deliver(bridge.link)
    assert stand.heard_of(clock, Outcome) == [Outcome(token, 0, {}, None) for token in [tokens[0], *tokens[2:]]]


def test_resent_message_that_is_not_remembered_is_marked() -> None:
    stand, bridge, chat = town()
    bridge.submits(7, dedup="k")
    stand.restart()
    bridge, chat = Bridge(stand), stand.handler("chat")
    bridge.submits(8, dedup="k", resent=True)
    stand.answer(chat, clients("alice", "carol"))
    assert stand.deliver(bridge.link).meta == {"origin": "s1", "redelivered": True}
    assert bridge.reports() == [good(8, alice="delivered", carol="queued")]
    assert stand.one(stand.bridge("carol"), Deliver).meta["redelivered"] is True


def test_resent_message_over_a_bridge_that_resubmits_is_reported_once_each() -> None:
    stand, bridge, chat = town()
    bridge.submits(7, dedup="k")
    bridge.submits(8, dedup="k", resent=True)
    request = stand.request(chat)
    bridge.relinks()
    bridge.submits(7, attempt=2, dedup="k")
    bridge.submits(8, attempt=2, dedup="k", resent=True)
    stand.reply(chat, request.token)
    assert bridge.reports() == [good(7), good(8, 7)]
    assert stand.heard_of(chat, Request) == []


def test_emission_is_deduplicated_by_id_within_its_type() -> None:
    stand, _, _ = town()
    clock = stand.handler("clock", "watch")
    commands: list[Command] = [clients("carol")]
    tokens = [stand.emit(clock, type_, *commands, id="noon") for type_ in ("clock", "watch", "clock")]
    assert stand.heard_of(clock, Outcome) == [Outcome(token, 0, {"carol": "queued"}, None) for token in tokens]
    assert len(stand.mail("carol")) == 2
