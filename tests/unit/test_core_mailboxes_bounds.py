"""Bounds of mailboxes: messages and bytes, time to live, a full disk, and removed accounts."""

from __future__ import annotations

import json

import pytest

from bester.broker.core.settings import Limits
from bester.broker.wire.messages import Close, Confirm, Deliver, Goodbye, Open
from tests.unit.core_post import BOB, Post, bodies_of, numbered, town
from tests.unit.core_stand import clients

# --- bounds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "code"),
    [
        ({"user_messages": 2, "sender_share": 1.0}, "mailbox-full"),
        ({"user_bytes": 9, "sender_share": 1.0}, "mailbox-full"),
        ({"sender_share": 0.0002}, "mailbox-full"),
        ({"messages": 4}, "storage-full"),
        ({"total_bytes": 12}, "storage-full"),
    ],
)
def test_full_mailbox_is_refused_until_a_message_has_ended(bounds: dict[str, int], code: str) -> None:
    stand = town(None, **bounds)
    post = Post(stand)
    post.queues(b'"1"', b'"2"')
    post.sends("bob", body=b'"345"')
    report = stand.report(post.bridge)
    assert (report.status, report.reason, report.recipients) == (1, code, {"bob": f"failed:{code}"})
    assert stand.state.reached == {next(iter(bounds)): 1}
    post.sends("carol", body=b'"345"')
    assert post.outcomes() == {"carol": "queued" if code == "mailbox-full" else "failed:storage-full"}
    bob = stand.bridge("bob")
    stand.say(bob, Confirm(1))
    stand.say(bob, Goodbye(None))
    post.sends("bob", body=b'"345"')
    assert post.outcomes() == {"bob": "queued"}
    assert stand.mail("bob") == [b'"2"', b'"345"']


# --- time -----------------------------------------------------------------------------------------------------------


def test_expired_message_has_its_outcome() -> None:
    stand = town(ttl_s=10.0)
    post = Post(stand)
    post.sends("bob", ttl_s=4)
    short = stand.report(post.bridge).message
    post.sends("bob")
    long = stand.report(post.bridge).message
    stand.wait(3.5)
    assert len(stand.kept(BOB)) == 2
    stand.wait(0.5)
    assert [entry.meta["message"] for entry in stand.kept(BOB)] == [long]
    assert stand.ask(post.bridge, "outcome", [1, short]).value == {"bob": "failed:expired"}
    assert stand.ask(post.bridge, "outcome", [1, long]).value == {"bob": "queued"}
    stand.wait(6.0)
    assert stand.kept(BOB) == []
    assert stand.queued == (0, 0)
    assert stand.ask(post.bridge, "outcome", [1, long]).value == {"bob": "failed:expired"}
    assert stand.heard_of(stand.bridge("bob"), Deliver) == []


def test_time_to_live_goes_on_while_the_server_is_down() -> None:
    stand = town(ttl_s=10.0)
    Post(stand).queues(b"1")
    stand.now += 11.0
    stand.restart()
    stand.wait(2.5)
    assert stand.mail("bob") == []
    assert stand.heard_of(stand.bridge("bob"), Deliver) == []


def test_message_in_flight_at_its_expiry_is_left_to_the_delivery() -> None:
    stand = town(ttl_s=10.0)
    Post(stand).queues(b"1", b"2")
    bob = stand.bridge("bob")
    stand.wait(12.0)
    assert stand.mail("bob") == [b"1", b"2"]
    stand.say(bob, Confirm(1))
    stand.say(bob, Close(1))
    stand.say(bob, Confirm(2, [], [[2, 0, "not-connected"]]))
    stand.wait(1.5)
    assert stand.mail("bob") == []
    assert stand.heard_of(stand.bridge("bob"), Deliver) == []
    assert stand.state.queues.table == {}


def test_many_expired_messages_are_ended_a_part_in_each_turn() -> None:
    stand = town(Limits(expiries=10), ttl_s=10.0)
    Post(stand).queues(*numbered(25))
    stand.wait(9.5)
    stand.wait(0.5)
    assert len(stand.mail("bob")) == 15
    stand.wait(0.5)
    assert len(stand.mail("bob")) == 5
    stand.wait(0.5)
    assert stand.mail("bob") == []


# --- a disk that is full --------------------------------------------------------------------------------------------


def test_failed_commit_is_reported_and_later_ones_go_on() -> None:
    stand = town(user_messages=1)
    post = Post(stand)
    stand.store.full = True
    post.sends("bob")
    report = stand.report(post.bridge)
    assert (report.status, report.reason, report.recipients) == (1, "storage-full", {"bob": "failed:storage-full"})
    assert [notice.event for notice in stand.notices if notice.event == "storage-full"] == ["storage-full"]
    queues = stand.state.queues
    assert (queues.messages, queues.size_bytes, queues.table) == (0, 0, {})
    stand.store.full = False
    post.sends("bob")
    assert post.outcomes() == {"bob": "failed:storage-full"}, "not tried again at once"
    assert stand.mail("bob") == []
    post.sends("alice")
    stand.deliver(post.bridge)
    stand.wait(1.0)
    post.queues(b"1")
    assert stand.mail("bob") == [b"1"]


def test_mailbox_is_delivered_while_the_disk_is_full() -> None:
    stand = town()
    post = Post(stand)
    post.queues(b"1")
    stand.store.full = True
    bob = stand.bridge("bob")
    assert stand.deliver(bob).body == b"1"
    assert stand.mail("bob") == []
    post.sends("bob", body=b"2")
    assert stand.deliver(bob).body == b"2"
    assert post.outcomes() == {}


def test_ended_message_is_not_delivered_again_on_a_broken_disk() -> None:
    stand = town()
    Post(stand).queues(*numbered(3))
    bob = stand.bridge("bob")
    stand.heard_of(bob, Deliver)
    stand.store.broken = True
    stand.say(bob, Confirm(0, [2, 3]))
    stand.say(bob, Close(1))
    stand.say(bob, Confirm(1, [], [[1, 0, "not-connected"]]))
    stand.say(bob, Open(2, "bob"))
    assert bodies_of(stand.heard_of(bob, Deliver)) == [b"0"]
    stand.store.broken = False
    stand.say(bob, Confirm(4))
    stand.wait(1.0)
    assert stand.mail("bob") == []
    assert stand.queued == (0, 0)


# --- removed accounts -----------------------------------------------------------------------------------------------


def test_removed_account_ends_its_mailbox() -> None:
    stand = town()
    post = Post(stand)
    post.sends("bob", "carol")
    message = stand.report(post.bridge).message
    bob = stand.bridge("bob")
    stand.one(bob, Deliver)
    stand.take(stand.router.on_account_removed("bob", stand.now))
    assert stand.one(bob, Close).session == 1
    assert stand.mail("bob") == [b'"hi"']  # in flight: the delivery may still succeed
    stand.say(bob, Confirm(1, [], [[1, 0, "not-connected"]]))
    assert stand.mail("bob") == []
    assert stand.mail("carol") == [b'"hi"']
    assert stand.ask(post.bridge, "outcome", [1, message]).value == {"bob": "failed:unknown-user", "carol": "queued"}
    stand.wait(1.0)
    assert stand.state.queues.messages == 1
    assert sorted(set(stand.router.users())) == ["alice", "bob", "carol"]


def test_sender_has_the_late_outcome_of_a_removed_account() -> None:
    stand = town(Limits(window=4))
    post = Post(stand)
    for _ in range(11):
        post.sends("bob", outcome=True)
        stand.report(post.bridge)
    stand.take(stand.router.on_account_removed("bob", stand.now))
    assert len(stand.mail("bob")) == 7  # a window at a time: other users come between
    stand.wait(2.0)
    assert stand.mail("bob") == []
    news = [json.loads(delivery.body) for delivery in stand.heard_of(post.bridge, Deliver)]
    assert len(news) == 4  # a window of them
    assert {(each["recipient"], each["outcome"]) for each in news} == {("bob", "failed:unknown-user")}


@pytest.mark.parametrize("full", [False, True])
def test_account_is_removed_during_a_write_to_its_mailbox(full: bool) -> None:
    stand = town()
    post = Post(stand)
    stand.submit(post.bridge, "chat")
    request = stand.request(post.chat)
    stand.store.full = full
    stand.commits = False
    stand.reply(post.chat, request.token, clients("bob"))
    stand.take(stand.router.on_account_removed("bob", stand.now))
    stand.commits = True
    stand.commit()
    assert post.outcomes() == {"bob": "failed:storage-full" if full else "queued"}
    assert stand.mail("bob") == []
    assert stand.queued == (0, 0)
