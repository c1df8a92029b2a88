"""The core while a commit is pending: what depends on the commit waits, and all else goes on."""

from __future__ import annotations

import pytest

from bester.broker.core.cases import MAX_ASKERS, Case, Kind, Reports
from bester.broker.core.effects import Effects, Link
from bester.broker.core.pending_answers import PendingAnswers
from bester.broker.core.queues import FULL_TURN_S
from bester.broker.core.settings import Limits
from bester.broker.store_requests import Bury, Committed, DeadLetter
from bester.broker.wire.messages import Close, Confirm, Deliver, Hello, Open, Relayed, Reply, Report, Request
from tests.unit import core_resume_stand
from tests.unit.core_office import Office
from tests.unit.core_office import bodies_of as relayed
from tests.unit.core_post import Post, bodies_of, numbered, town
from tests.unit.core_resume_stand import Bridge
from tests.unit.core_stand import Stand, clients, handler


def unlock(stand: Stand) -> None:
    stand.store.locked = False
    stand.commit()


def hasty_town() -> tuple[Stand, Bridge, Link]:
    """Return a server that gives a message up after a second, its bridge, and a handler of type `chat`."""
    return core_resume_stand.town(Limits(attempts=1, request_s=1.0))


def sent_to_slow_and(user: str) -> tuple[Stand, Bridge]:
    """Return such a server with a locked store, and its bridge, after message 1 of alice: it went to the user, and to
    a handler of type `slow` that never answers."""
    stand, bridge, chat = hasty_town()
    slow = stand.handler("slow", name="slow")
    stand.store.locked = True
    bridge.submits(1)
    stand.answer(chat, handler("slow"), clients(user))
    stand.request(slow)
    return stand, bridge


# --- mailboxes ---


def test_mailbox_waits_for_its_mark_and_nothing_overtakes_it() -> None:
    stand = town()
    post = Post(stand)
    post.queues(b"1", b"2")
    stand.store.locked = True
    bob = stand.bridge("bob", name="b")
    kept = post.sends("bob", body=b"3")
    for _ in range(3):
        post.sends("alice")
        stand.deliver(post.bridge)
    assert stand.heard_of(bob, Deliver) == []
    unlock(stand)
    assert bodies_of(stand.heard_of(bob, Deliver)) == [b"1", b"2", b"3"]
    assert post.outcomes(kept) == {"bob": "queued"}
    stand.say(bob, Confirm(3, []))
    assert stand.mail("bob") == []


@pytest.mark.parametrize("known", [False, True])
def test_user_who_leaves_while_the_mark_is_written_has_the_message_later(known: bool) -> None:
    stand = town()
    post = Post(stand)
    post.queues(b"1")
    if known:  # a first delivery of which nobody knows the end
        first = stand.bridge("bob", name="x")
        assert len(stand.heard_of(first, Deliver)) == 1
        stand.say(first, Close(1))
        stand.say(first, Confirm(1, [], [[1, 0, "unconfirmed"]]))
        post.queues(b"2")
    stand.store.locked = True
    bob = stand.bridge("bob", name="b")
    stand.say(bob, Close(1))
    unlock(stand)
    assert stand.heard_of(bob, Deliver) == []
    stand.say(bob, Open(2, "bob"))
    got = stand.heard_of(bob, Deliver)
    assert [(each.body, each.meta.get("redelivered")) for each in got] == (
        [(b"1", True), (b"2", None)] if known else [(b"1", None)]
    )


def test_user_who_comes_back_while_the_mark_is_written_has_the_message_once() -> None:
    stand = town()
    Post(stand).queues(*numbered(3))
    stand.store.locked = True
    bob = stand.bridge("bob", name="b")
    stand.say(bob, Close(1))
    stand.say(bob, Open(2, "bob"))
    stand.say(bob, Open(3, "bob"))
    unlock(stand)
    got = stand.heard_of(bob, Deliver)
    assert bodies_of(got) == numbered(3)
    assert sorted(got[0].targets[0][1:]) == [2, 3]


def test_account_that_is_removed_while_the_mark_is_written_has_no_messages() -> None:
    stand = town()
    post = Post(stand)
    post.queues(b"1")
    stand.store.locked = True
    bob = stand.bridge("bob", name="b")
    stand.take(stand.router.on_account_removed("bob", stand.now))
    unlock(stand)
    stand.tick()
    assert stand.heard_of(bob, Deliver) == []
    assert stand.state.queues.messages == 0


# --- other servers ---


def test_lane_waits_for_its_mark_and_keeps_its_order() -> None:
    office = Office()
    office.queues(b"1", b"2")
    office.stand.store.locked = True
    assert office.up() == []
    kept = office.sends("s2", body=b"3")
    assert office.relays() == []
    unlock(office.stand)
    assert relayed(office.relays()) == [b"1", b"2", b"3"]
    assert office.outcomes(kept) == {"s2": "queued"}


def test_link_that_is_lost_while_the_mark_is_written_leaves_the_messages_unmarked() -> None:
    office = Office()
    office.queues(b"1")
    office.stand.store.locked = True
    office.up()
    office.down()
    unlock(office.stand)
    assert office.relays() == []
    (relay,) = office.up()
    assert (relay.body, relay.meta.get("again")) == (b"1", None)


# --- answers ---


def test_report_on_a_dead_letter_waits_and_another_report_does_not() -> None:
    stand, bridge, chat = hasty_town()
    stand.store.locked = True
    bridge.submits(1)
    stand.request(chat)
    stand.wait(2.0)
    assert stand.state.answers == 1
    bridge.submits(2)
    stand.answer(chat)
    assert [report.token for report in bridge.reports()] == [2]
    unlock(stand)
    assert [report.token for report in bridge.reports()] == [1]
    assert stand.state.answers == 0
    assert len(stand.dead()) == 1


def test_report_on_a_dead_letter_waits_for_a_store_that_is_away() -> None:
    """The letter is in memory alone meanwhile: were this broker killed, the next one must get the message again."""
    stand, bridge, chat = hasty_town()
    stand.store.locked = True
    bridge.submits(1)
    stand.request(chat)
    stand.wait(12.0)
    assert stand.state.answers == 1
    assert bridge.reports() == []
    bridge.submits(2)
    stand.answer(chat)
    assert [report.token for report in bridge.reports()] == [2]
    stand.store.locked = False
    stand.wait(2.0)
    assert [(report.token, report.reason) for report in bridge.reports()] == [(1, "timeout")]
    assert (stand.state.answers, len(stand.dead())) == (0, 1)


def test_report_on_a_message_that_waited_in_vain_waits_for_no_dead_letter_of_another() -> None:
    """Were it to wait, a broker that is killed meanwhile would get the message again, behind later ones of its user."""
    stand, bridge, chat = hasty_town()
    stand.say(chat, Hello(1, "handler", "h", {"types": ["chat"], "credit": 1}))
    stand.store.locked = True
    bridge.submits(1)
    bridge.submits(2)
    stand.wait(2.0)
    assert [(report.token, report.reason) for report in bridge.reports()] == [(2, "overloaded")]
    unlock(stand)
    assert [(report.token, report.reason) for report in bridge.reports()] == [(1, "timeout")]


def test_report_waits_for_a_dead_letter_that_was_held_back_before_the_last_result_ended() -> None:
    stand, bridge = sent_to_slow_and("bob")
    stand.wait(12.0)
    assert stand.state.answers == 0
    stand.deliver(bridge.link)
    assert stand.state.answers == 1
    assert bridge.reports() == []
    stand.store.locked = False
    stand.wait(2.0)
    assert [(report.token, report.reason) for report in bridge.reports()] == [(1, "timeout")]
    assert (stand.state.answers, len(stand.dead())) == (0, 1)


def test_report_waits_for_a_dead_letter_whose_commit_is_pending_when_the_last_result_ends() -> None:
    stand, bridge = sent_to_slow_and("bob")
    stand.wait(2.0)
    stand.deliver(bridge.link)
    assert (bridge.reports(), stand.state.answers) == ([], 1)
    unlock(stand)
    assert [(report.token, report.reason) for report in bridge.reports()] == [(1, "timeout")]
    assert (stand.state.answers, len(stand.dead())) == (0, 1)


def test_report_waits_for_a_dead_letter_where_the_last_result_fails_because_the_store_is_away() -> None:
    stand, bridge = sent_to_slow_and("carol")
    stand.wait(12.0)
    assert (bridge.reports(), stand.state.answers, stand.state.cases) == ([], 1, 0)
    stand.store.locked = False
    stand.wait(2.0)
    (report,) = bridge.reports()
    assert report.recipients == {"carol": "failed:storage-unavailable", "slow": "failed:timeout"}
    assert (stand.state.answers, len(stand.dead())) == (0, 1)


@pytest.mark.parametrize("result", [Committed(True), Committed(False)], ids=["written", "no room"])
def test_report_waits_for_the_group_of_its_own_dead_letter(result: Committed) -> None:
    out, link = Effects(), Link("ipc", b"b")
    reports = Reports(out)
    answers = PendingAnswers(out, reports)
    writes = [Bury(DeadLetter(f"m{number}", "chat", b"1", "timeout", 0.0, {})) for number in range(2)]
    for number, write in enumerate(writes):
        case = Case(Kind.SUBMIT, link, number, f"m{number}", f"m{number}", pending=1)
        case.letter = reports.letters.add(write)
        out.writes.append(write)
        reports.settle(case, None, "failed:timeout")
        answers.hold()
        out.take()
    answers.on_committed(writes[:1], Committed(False, code="storage-unavailable"))
    assert (out.take().messages, answers.count) == ({}, 2)
    answers.on_committed([], Committed(True))
    assert [message.token for message in out.take().messages[link] if isinstance(message, Report)] == [0]
    answers.on_committed(writes[1:], result)
    assert [message.token for message in out.take().messages[link] if isinstance(message, Report)] == [1]
    assert answers.count == 0


def test_repeats_that_wait_for_a_dead_letter_are_bounded() -> None:
    stand, bridge, chat = hasty_town()
    slow = stand.handler("slow", name="slow")
    server = stand.server("s2")
    stand.store.locked = True
    stand.relay(server, "chat", id="s2/1", lane=["e", 1, 1])
    stand.answer(chat, handler("slow"), clients("bob"))
    stand.request(slow)
    stand.deliver(bridge.link)
    stand.wait(12.0)
    for _ in range(MAX_ASKERS + 3):
        stand.relay(server, "chat", id="s2/1")
    assert stand.state.answers == 1 + MAX_ASKERS
    assert [answer.outcome for answer in stand.heard_of(server, Relayed)] == ["failed:overloaded"] * 3
    stand.store.locked = False
    stand.wait(2.0)
    assert [answer.outcome for answer in stand.heard_of(server, Relayed)] == ["failed:timeout"] * (1 + MAX_ASKERS)
    stand.relay(server, "chat", id="s2/1")
    assert [answer.outcome for answer in stand.heard_of(server, Relayed)] == ["failed:timeout"]
    assert stand.state.answers == 0


def test_report_to_a_client_waits_for_no_lane_of_another_server() -> None:
    stand, bridge, chat = core_resume_stand.town()
    server = stand.server("s2")
    stand.store.locked = True
    stand.relay(server, "chat", id="s2/1", lane=["e", 1, 1], again=True)
    bridge.submits(1)
    requests = stand.heard_of(chat, Request)
    stand.say(chat, *(Reply(request.token, 0, []) for request in requests))
    assert [report.token for report in bridge.reports()] == [1]
    assert stand.heard_of(server, Relayed) == []
    unlock(stand)
    assert [answer.outcome for answer in stand.heard_of(server, Relayed)] == ["delivered"]


def test_report_that_waits_is_not_lost_with_its_link() -> None:
    stand, bridge, chat = hasty_town()
    stand.store.locked = True
    bridge.submits(1)
    stand.request(chat)
    stand.wait(2.0)
    bridge.relinks()
    bridge.submits(1, attempt=2)
    assert (bridge.reports(), stand.state.answers) == ([], 1)
    bridge.relinks()
    unlock(stand)
    assert (bridge.reports(), stand.state.answers) == ([], 0)
    bridge.submits(1, attempt=3)
    assert [(report.token, report.reason) for report in bridge.reports()] == [(1, "timeout")]
    assert stand.heard(chat) == [], "processed once"
    assert len(stand.dead()) == 1


# --- refusals ---


def test_store_that_is_away_is_the_reason_until_it_can_be_written() -> None:
    stand = town()
    post = Post(stand)
    stand.store.locked = True
    first = post.sends("bob")
    stand.wait(6.0)
    assert post.outcomes(first) == {"bob": "failed:storage-unavailable"}
    assert post.outcomes(post.sends("bob")) == {"bob": "failed:storage-unavailable"}
    stand.wait(2.0)
    assert post.outcomes(post.sends("bob")) == {"bob": "failed:storage-unavailable"}, "at once, without a wait"
    post.sends("alice")
    stand.deliver(post.bridge)
    stand.store.locked = False
    stand.wait(2.0)
    post.queues(b"9")
    assert stand.mail("bob") == [b"9"]
    assert stand.state.queues.messages == 1


def test_store_that_is_back_takes_messages_at_once() -> None:
    stand = town()
    post = Post(stand)
    stand.store.locked = True
    first = post.sends("bob")
    stand.wait(6.0)
    assert post.outcomes(first) == {"bob": "failed:storage-unavailable"}
    assert post.outcomes(post.sends("bob")) == {"bob": "failed:storage-unavailable"}
    stand.store.locked = False
    stand.wait(FULL_TURN_S / 4)
    post.queues(b"9")
    assert stand.mail("bob") == [b"9"]
