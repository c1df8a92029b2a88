"""Bridges that come back on a new link: each submitted message is processed once, and each has one report."""

from __future__ import annotations

import pytest

from bester.broker.core.settings import Limits, Route, Settings
from bester.broker.hosts import Hosts
from bester.broker.store.memory_shared import SharedMemory
from bester.broker.store_requests import Bounds
from bester.broker.wire.messages import Confirm, Deliver, Goodbye, Hello, Message, Open, Reply, Request, Submit, Welcome
from tests.unit.core_resume_stand import Bridge, good, town
from tests.unit.core_stand import START, Stand, clients

SWEEP_AT = Limits().sweep_at


def test_pending_message_is_reported_on_the_new_link_and_not_processed_again() -> None:
    stand, bridge, chat = town()
    bridge.submits(7)
    request = stand.request(chat)
    bridge.relinks()
    bridge.submits(7, attempt=2)
    assert stand.heard_of(chat, Request) == []
    stand.reply(chat, request.token)
    assert bridge.reports() == [good(7)]


@pytest.mark.parametrize("is_shared", [True, False])
def test_results_are_marked_where_the_bridge_may_have_turned_to_another_broker(is_shared: bool) -> None:
    stand, bridge, chat = town(is_shared=is_shared)
    bridge.submits(7)
    request = stand.request(chat)
    bridge.relinks()
    stand.reply(chat, request.token, clients("alice", "carol"))
    delivery = stand.deliver(bridge.link)
    assert delivery.meta.get("redelivered", False) is is_shared
    assert delivery.token is None
    stand.say(bridge.link, Confirm(delivery.serial))
    stand.say(bridge.link, Open(3, "carol"))
    assert stand.deliver(bridge.link).meta.get("redelivered", False) is is_shared, "of the one that was queued"


@pytest.mark.parametrize(("attempt", "is_marked"), [(2, False), (3, True)])
def test_results_are_not_marked_where_the_bridge_has_turned_to_no_other_broker(attempt: int, is_marked: bool) -> None:
    stand, bridge, chat = town(is_shared=True)
    bridge.submits(7)
    request = stand.request(chat)
    bridge.relinks()
    bridge.submits(7, attempt=attempt)
    stand.reply(chat, request.token, clients("alice"))
    delivery = stand.deliver(bridge.link)
    assert delivery.meta.get("redelivered", False) is is_marked
    assert delivery.token == (None if is_marked else 7), "whether the bridge reports by itself"
    stand.say(bridge.link, Confirm(delivery.serial))
    assert bridge.reports() == ([good(7)] if is_marked else [])


@pytest.mark.parametrize("ends_before", [True, False])
@pytest.mark.parametrize(
    ("is_shared", "attempt", "reason"),
    [(True, 2, "no-handler"), (True, 3, "unreachable"), (False, 3, "no-handler")],
)
def test_message_that_another_broker_may_have_processed_is_never_reported_as_merely_refused(
    is_shared: bool, attempt: int, reason: str, ends_before: bool
) -> None:
    """Another server marks the message when it sends the message again, but not after a mere refusal."""
    stand, bridge, chat = town(is_shared=is_shared)
    stand.say(chat, Goodbye(None))
    bridge.submits(7)
    bridge.goes()
    if ends_before:
        stand.wait(10.0)
    bridge.comes()
    bridge.submits(7, attempt=attempt)
    stand.wait(10.0)
    assert [report.reason for report in bridge.reports()] == [reason]


def test_message_that_waited_for_a_lookup_is_marked_where_the_bridge_may_have_turned_to_another_broker() -> None:
    settings = Settings("s1", routes={"s2": Route("s2", native="s2.example:2223")}, unknown_hosts=frozenset({"s2"}))
    store = SharedMemory(lambda: 0.0).namespace("b1")
    stand = Stand(settings, accounts=frozenset({"alice", "bob"}), store=store)
    bridge, chat = Bridge(stand), stand.handler("chat")
    stand.say(bridge.link, Submit(7, None, "chat", b"7", {"scope": "server", "address": "10.0.0.2", "server": "s2"}))
    bridge.relinks()
    assert stand.heard_of(chat, Request) == []
    hosts = Hosts({"10.0.0.2": ("s2",)}, frozenset(), {"s2": START})
    stand.take(stand.router.on_hosts_changed(hosts, stand.now))
    stand.reply(chat, stand.request(chat).token, clients("alice"))
    assert stand.deliver(bridge.link).meta.get("redelivered") is True


def test_message_whose_lookup_ends_while_its_bridge_is_away_is_processed_once() -> None:
    settings = Settings("s1", routes={"s2": Route("s2", native="s2.example:2223")}, unknown_hosts=frozenset({"s2"}))
    stand = Stand(settings, accounts=frozenset({"alice", "bob"}))
    bridge, chat = Bridge(stand), stand.handler("chat")
    submit = Submit(7, None, "chat", b"7", {"scope": "server", "address": "10.0.0.2", "server": "s2"})
    stand.say(bridge.link, submit)
    bridge.goes()
    hosts = Hosts({"10.0.0.2": ("s2",)}, frozenset(), {"s2": START})
    stand.take(stand.router.on_hosts_changed(hosts, stand.now))
    stand.reply(chat, stand.request(chat).token)
    bridge.comes()
    stand.say(bridge.link, submit._replace(meta={**submit.meta, "attempt": 2}))
    assert stand.heard_of(chat, Request) == []
    assert [report.token for report in bridge.reports()] == [7]


def test_report_lost_with_the_link_is_sent_again() -> None:
    stand, bridge, chat = town()
    bridge.submits(7)
    stand.answer(chat, clients("carol"))
    bridge.relinks()
    bridge.submits(7, attempt=2)
    assert bridge.reports() == [good(7, carol="queued")]
    assert stand.heard_of(chat, Request) == []
    assert len(stand.mail("carol")) == 1


def test_report_lost_twice_is_sent_a_third_time() -> None:
    stand, bridge, chat = town()
    bridge.submits(7)
    stand.answer(chat)
    for attempt in (2, 3, 4):
        bridge.relinks()
        bridge.submits(7, attempt=attempt)
    assert bridge.reports() == [good(7)]
    assert stand.heard_of(chat, Request) == []


def test_draining_broker_refuses_new_messages_and_leaves_resubmitted_ones_to_the_next_life() -> None:
    stand, bridge, chat = town()
    stand.router.drain()
    bridge.submits(7)
    bridge.submits(8, attempt=2)  # an earlier life had this message, and may have given it to a handler
    assert [(report.token, report.status, report.reason) for report in bridge.reports()] == [(7, 1, "overloaded")]
    assert stand.heard_of(chat, Request) == []
    stand.restart()
    chat = stand.handler("chat")
    bridge.comes()
    bridge.submits(8, attempt=3)
    assert stand.request(chat).meta["attempt"] == 3


def test_draining_broker_leaves_new_messages_to_the_others() -> None:
    stand, bridge, chat = town(is_shared=True)
    bridge.submits(6)
    request = stand.request(chat)
    stand.router.drain()
    bridge.submits(7)
    stand.reply(chat, request.token)
    assert bridge.reports() == [good(6)]
    assert stand.heard_of(chat, Request) == []
    assert stand.router.idle


def test_second_hello_on_a_link_voids_the_reports_sent_on_it() -> None:
    stand, bridge, chat = town()
    bridge.submits(7)
    stand.answer(chat)
    bridge.submits(8)
    request = stand.request(chat)
    reply = Reply(request.token, 0, [])
    stand.heard(bridge.link)
    stand.say(bridge.link, Hello(1, "bridge", "b", {"epoch": "life"}))
    stand.reply(chat, reply.token)
    assert stand.one(bridge.link, Welcome)
    assert bridge.reports() == [good(8)]
    bridge.submits(7, attempt=2)
    assert bridge.reports() == [good(7)]
    assert stand.heard_of(chat, Request) == []


def test_report_of_the_turn_in_which_hello_voids_the_link_is_sent_again() -> None:
    stand, bridge, chat = town()
    bridge.submits(7)
    stand.answer(chat, clients("nobody", "alice"))
    delivery = stand.one(bridge.link, Deliver)
    batch: list[Message] = [Confirm(delivery.serial), Hello(1, "bridge", "b", {"epoch": "life"})]
    stand.say(bridge.link, *batch)
    assert [report.token for report in bridge.reports()] == [7]
    bridge.submits(7, attempt=2)
    assert [report.token for report in bridge.reports()] == [7]
    assert stand.heard_of(chat, Request) == []


def test_acknowledged_report_is_forgotten() -> None:
    stand, bridge, chat = town()
    for token in (7, 8, 9):
        bridge.submits(token)
        stand.answer(chat)
    bridge.confirms(2)
    bridge.relinks()
    bridge.submits(9, attempt=2)
    assert bridge.reports() == [good(9)]
    bridge.submits(7, attempt=2)  # no real bridge does so: the report was acknowledged
    assert stand.request(chat).meta["attempt"] == 2


def test_every_report_on_a_link_counts_as_acknowledged() -> None:
    """Each report on the link counts: otherwise the acknowledged number would stand for other reports."""
    stand, bridge, chat = town()
    bridge.submits(1, dedup="k")
    stand.answer(chat)
    bridge.submits(2, dedup="k")  # ended before: reported at once
    bridge.submits(3, dedup="l")
    bridge.submits(4, dedup="l")  # pending: reported with the first
    stand.answer(chat)
    stand.say(bridge.link, Submit(5, None, "chat", b"5", {"scope": "server", "address": "10.9.9.9"}))  # refused at once
    stand.say(bridge.link, Submit(6, 1, "bester.x", b"6"))
    bridge.submits(7)
    stand.answer(chat)
    assert sorted(report.token for report in bridge.reports()) == [1, 2, 3, 4, 5, 6, 7]
    bridge.confirms(6)
    bridge.relinks()
    bridge.submits(7, attempt=2)
    assert [report.token for report in bridge.reports()] == [7]
    assert stand.heard_of(chat, Request) == []
    bridge.submits(8)
    stand.answer(chat)
    bridge.confirms(1)
    (state,) = stand.state.resume.values()
    assert state.unacknowledged == 1
    bridge.relinks()
    bridge.submits(8, attempt=2)
    assert [report.token for report in bridge.reports()] == [8]
    assert stand.heard_of(chat, Request) == []


def test_messages_that_the_bridge_reports_by_itself_are_swept_out() -> None:
    stand, bridge, chat = town()
    for token in range(1, 3 * SWEEP_AT):
        bridge.submits(token)
        stand.answer(chat, clients("alice"))
        delivery = stand.deliver(bridge.link)
        assert delivery.token == token
        stand.say(bridge.link, Confirm(delivery.serial))
        (state,) = stand.state.resume.values()
        assert (state.cases <= SWEEP_AT, state.unacknowledged) == (True, 0)


def test_message_submitted_at_a_sweep_is_remembered() -> None:
    stand, bridge, chat = town()
    for token in range(1, SWEEP_AT + 1):
        bridge.submits(token)
        stand.answer(chat)
    bridge.submits(SWEEP_AT + 1)
    request = stand.request(chat)
    bridge.relinks()
    bridge.submits(SWEEP_AT + 1, attempt=2)
    assert stand.heard_of(chat, Request) == []
    stand.reply(chat, request.token)
    assert bridge.reports() == [good(SWEEP_AT + 1)]


def test_ended_case_keeps_no_long_list_of_recipients() -> None:
    stand, bridge, chat = town()
    bridge.submits(1)
    stand.answer(chat, clients(*(f"nobody-{number}" for number in range(10_000))))
    assert len(bridge.reports()[0].recipients) == 10_000
    (state,) = stand.state.resume.values()
    assert (state.cases, state.recipients) == (1, 0)


def test_pending_message_survives_sweeps_of_ended_ones() -> None:
    stand, bridge, chat = town()
    bridge.submits(1)
    slow = stand.request(chat)
    for token in range(2, 3 * SWEEP_AT):
        bridge.submits(token)
        stand.answer(chat)
    bridge.relinks()
    bridge.submits(1, attempt=2)
    assert stand.heard_of(chat, Request) == []
    stand.reply(chat, slow.token)
    assert bridge.reports() == [good(1)]


def test_message_that_ends_before_it_is_resubmitted_is_reported_then() -> None:
    stand, bridge, chat = town()
    bridge.submits(7)
    request = stand.request(chat)
    bridge.relinks()
    stand.reply(chat, request.token)
    assert bridge.reports() == []
    bridge.submits(8)
    stand.answer(chat)
    assert bridge.reports() == [good(8)]
    bridge.confirms(1)
    bridge.submits(7, attempt=2)
    assert bridge.reports() == [good(7)]
    assert stand.heard_of(chat, Request) == []


def test_message_that_ends_after_a_second_hello_on_the_link_is_reported_once() -> None:
    stand, bridge, chat = town()
    bridge.submits(7)
    request = stand.request(chat)
    stand.say(bridge.link, Hello(1, "bridge", "b", {"epoch": "life"}))
    stand.reply(chat, request.token)
    bridge.submits(7, attempt=2)
    assert bridge.reports() == [good(7)]
    assert stand.heard_of(chat, Request) == []


def test_message_that_ends_by_the_loss_of_the_link_is_reported_on_the_next() -> None:
    """The old link is void as soon as the bridge comes back on a new one."""
    stand, bridge, chat = town()
    bridge.submits(7)
    stand.answer(chat, clients("nobody", "alice"))
    stand.heard(bridge.link)
    bridge.comes()
    bridge.submits(7, attempt=2)
    report = stand.report(bridge.link)
    assert (report.reason, report.recipients) == ("unknown-user", {"nobody": "failed:unknown-user", "alice": "queued"})
    assert stand.heard_of(chat, Request) == []


def test_hello_of_another_bridge_on_a_link_leaves_the_first_to_come_back() -> None:
    stand, bridge, chat = town()
    bridge.submits(7)
    stand.answer(chat)
    bridge.reports()
    stand.say(bridge.link, Hello(1, "bridge", "b", {"epoch": "another"}))
    bridge.comes()
    bridge.submits(7, attempt=2)
    assert bridge.reports() == [good(7)]
    stand.wait(905.0, step_s=1.0)
    assert len(stand.state.resume) == 2


def test_delivery_lost_with_the_link_is_reported_by_the_broker() -> None:
    stand, bridge, chat = town()
    bridge.submits(7)
    stand.answer(chat, clients("alice"))
    assert stand.one(bridge.link, Deliver).token == 7
    bridge.relinks()
    bridge.submits(7, attempt=2)
    assert bridge.reports() == [good(7, alice="queued")]
    assert stand.one(bridge.link, Deliver).meta == {"origin": "s1", "redelivered": True}


def test_resubmitted_message_after_a_restart_is_processed_under_the_same_id_and_marked() -> None:
    stand, bridge, chat = town()
    bridge.submits(7)
    first = stand.request(chat)
    stand.restart()
    bridge, chat = Bridge(stand), stand.handler("chat")
    bridge.submits(7, attempt=2)
    again = stand.answer(chat, clients("bob", "carol"))
    assert (again.meta["id"], again.meta["attempt"]) == (first.meta["id"], 2)
    delivery = stand.deliver(bridge.link)
    assert (delivery.id, delivery.meta["redelivered"]) == (f"{first.meta['id']}.0", True)
    assert bridge.reports() == [good(7, bob="delivered", carol="queued")]
    assert stand.one(stand.bridge("carol"), Deliver).meta["redelivered"] is True


def test_result_that_is_queued_already_is_not_queued_twice_after_a_restart() -> None:
    stand, bridge, chat = town()
    bridge.submits(7)
    stand.answer(chat, clients("carol"))
    stand.restart()
    bridge, chat = Bridge(stand), stand.handler("chat")
    bridge.submits(7, attempt=2)
    stand.answer(chat, clients("carol"))
    assert bridge.reports() == [good(7, carol="queued")]
    assert len(stand.mail("carol")) == 1
    assert stand.state.queues.messages == 1


def test_result_that_finds_no_room_after_a_restart_may_be_queued_already() -> None:
    """The first copy fills the mailbox: a report that the message was refused would not be true."""
    stand, bridge, chat = town(bounds=Bounds(user_messages=1))
    bridge.submits(7)
    stand.answer(chat, clients("carol", body=b"7"))
    stand.restart()
    bridge, chat = Bridge(stand), stand.handler("chat")
    bridge.submits(7, attempt=2)
    stand.answer(chat, clients("carol", "nobody", body=b"7"))
    (report,) = bridge.reports()
    assert report.recipients == {"carol": "failed:unreachable", "nobody": "failed:unknown-user"}
    assert (report.reason, stand.mail("carol")) == ("unreachable", [b"7"])
    bridge.submits(8)
    stand.answer(chat, clients("carol", body=b"8"))
    assert bridge.reports()[0].recipients == {"carol": "failed:mailbox-full"}


def test_user_of_a_resubmitted_message_is_that_of_its_session() -> None:
    stand, bridge, chat = town()
    stand.say(bridge.link, Submit(7, 3, "chat", b"7", {"attempt": 2, "user": "alice"}))
    assert [report.reason for report in bridge.reports()] == ["not-allowed"]
    assert stand.heard_of(chat, Request) == []


def test_attempts_of_an_earlier_life_do_not_count_against_a_handler() -> None:
    stand, bridge, chat = town(Limits(attempts=2))
    bridge.submits(7, attempt=5)
    assert stand.request(chat).meta["attempt"] == 5
    second = stand.handler("chat")
    stand.say(chat, Goodbye(None))
    stand.take(stand.router.on_undeliverable(chat, Goodbye(None), stand.now))
    assert stand.answer(second).meta["attempt"] == 6
    assert bridge.reports() == [good(7)]


@pytest.mark.parametrize("attempt", [1, 0, -3, "2", None, 2.0, True, 2**70])
def test_unreadable_attempt_counts_as_the_first(attempt: object) -> None:
    stand, bridge, chat = town()
    bridge.submits(7, attempt=attempt)
    assert stand.answer(chat, clients("alice")).meta["attempt"] == (1_000_000 if attempt == 2**70 else 1)
    assert stand.one(bridge.link, Deliver).meta.get("redelivered", False) == (attempt == 2**70)


def test_lost_bridge_is_forgotten_after_15_minutes() -> None:
    stand, bridge, chat = town()
    bridge.submits(7)
    stand.answer(chat)
    bridge.goes()
    stand.wait(890.0, step_s=1.0)
    bridge.comes()
    bridge.submits(7, attempt=2)
    assert bridge.reports() == [good(7)]
    bridge.goes()
    assert stand.state.resume
    stand.wait(905.0, step_s=1.0)
    assert stand.state.resume == {}


def test_bridge_with_a_new_epoch_is_another_bridge() -> None:
    stand, bridge, chat = town()
    bridge.submits(7)
    stand.answer(chat)
    link = stand.join("bridge", "b", {"epoch": "next life"})
    stand.say(link, Open(1, "alice"))
    stand.say(link, Submit(7, 1, "chat", b"7", {"attempt": 2}))
    assert stand.answer(chat).meta["id"] == "s1/b-next life/7"
