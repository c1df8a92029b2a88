"""Mailboxes: messages for a user who is away are delivered after the login, in order and once."""

from __future__ import annotations

import pytest

from bester.broker.core.settings import Limits
from bester.broker.store_requests import NUMBERS_A_LIFE, Enqueue, Entry, mailbox
from bester.broker.wire.messages import Close, Confirm, Deliver, Goodbye, Login, Open, Reply, Report, Submit
from tests.unit.core_post import BOB, Post, bodies_of, numbered, town
from tests.unit.core_stand import START, Stand, clients

# --- queueing -------------------------------------------------------------------------------------------------------


def test_report_of_queued_comes_after_the_commit() -> None:
    stand = town()
    post = Post(stand)
    token = stand.submit(post.bridge, "chat")
    request = stand.request(post.chat)
    first = stand.router.receive_all(post.chat, [Reply(request.token, 0, [clients("bob")])], stand.now)
    assert [type(write) for write in first.writes] == [Enqueue]
    assert not first.messages
    then = stand.router.on_committed(first.writes, stand.store.commit(first.writes), stand.now)
    report = Report(token, 0, None, request.meta["id"], {"bob": "queued"})
    assert then.messages == {post.bridge: [report]}


def test_entry_has_everything_about_the_message() -> None:
    stand = town(ttl_s=100.0)
    post = Post(stand)
    post.sends("carol", "bob", body=b"[1e400]")
    message = stand.report(post.bridge).message
    entry = stand.kept(BOB)[0]
    assert entry == Entry(
        entry.number, BOB, f"{message}.0.1", "bob", "chat", b"[1e400]", "alice", START + 100.0,
        {"origin": "s1", "root": message, "message": message, "path": ["s1/chat"]},
    )  # fmt: skip
    assert entry.number >= NUMBERS_A_LIFE


def test_each_recipient_has_an_outcome() -> None:
    stand = town()
    post = Post(stand)
    token = post.sends("bob", "nobody", "alice")
    stand.deliver(post.bridge)
    report = stand.report(post.bridge, token)
    assert (report.status, report.reason) == (1, "unknown-user")
    assert report.recipients == {"bob": "queued", "nobody": "failed:unknown-user", "alice": "delivered"}
    assert stand.kept(mailbox("nobody")) == []


def test_user_named_twice_has_two_messages_in_the_mailbox() -> None:
    stand = town()
    post = Post(stand)
    post.sends("bob", "bob")
    assert post.outcomes() == {"bob": "queued"}
    assert [entry.id[-4:] for entry in stand.kept(BOB)] == [".0.0", ".0.1"]


def test_nothing_is_queued_with_open_accounts() -> None:
    stand = Stand()
    post = Post(stand)
    post.sends("bob")
    assert post.outcomes() == {"bob": "failed:not-connected"}
    assert stand.mail("bob") == []


# --- delivery at a login --------------------------------------------------------------------------------------------


def test_mailbox_is_delivered_in_order_and_ended_by_the_confirm() -> None:
    stand = town()
    post = Post(stand)
    post.queues(*numbered(3))
    entries = stand.kept(BOB)
    bob = stand.bridge("bob")
    deliveries = stand.heard_of(bob, Deliver)
    assert deliveries == [
        Deliver(n + 1, entry.id.rpartition(".")[0], "chat", b"%d" % n, [[0, 1]], None, {"origin": "s1"})
        for n, entry in enumerate(entries)
    ]
    assert len(stand.kept(BOB)) == 3
    stand.say(bob, Confirm(2))
    assert stand.mail("bob") == [b"2"]
    stand.say(bob, Confirm(3))
    assert stand.mail("bob") == []
    assert stand.queued == (0, 0)
    assert stand.heard(post.bridge) == stand.heard(bob) == []


def test_login_is_answered_before_the_mailbox_is_delivered() -> None:
    stand = town()
    Post(stand).queues(b"1")
    bob = stand.bridge()
    stand.say(bob, Login(7, "bob", "secret", "10.0.0.1"))
    assert stand.heard_of(bob, Deliver) == []
    stand.take(stand.router.on_verified(bob, 7, "bob", None, stand.now))
    assert [type(message).__name__ for message in stand.heard(bob)] == ["LoggedIn", "Deliver"]


def test_long_mailbox_is_delivered_a_window_at_a_time() -> None:
    stand = town()
    post = Post(stand)
    post.queues(*numbered(150))
    bob = stand.bridge("bob")
    got = stand.heard_of(bob, Deliver)
    assert bodies_of(got) == numbered(64)
    stand.say(bob, Confirm(31))
    assert stand.heard_of(bob, Deliver) == []
    stand.say(bob, Confirm(32))
    more = stand.heard_of(bob, Deliver)
    assert bodies_of(more) == numbered(32, 64)
    got += more
    while more:
        stand.say(bob, Confirm(got[-1].serial))
        more = stand.heard_of(bob, Deliver)
        got += more
    assert bodies_of(got) == numbered(150)
    assert not any("redelivered" in delivery.meta for delivery in got)
    assert stand.mail("bob") == []


def test_large_messages_are_delivered_one_at_a_time() -> None:
    stand = town(Limits(window_bytes=10))
    Post(stand).queues(b'"123456"', b'"1234567890123"', b'"1"', b'"2"')
    bob = stand.bridge("bob")
    assert stand.deliver(bob).body == b'"123456"'
    assert stand.deliver(bob).body == b'"1234567890123"'
    assert bodies_of(stand.heard_of(bob, Deliver)) == [b'"1"', b'"2"']


def test_new_message_goes_behind_ready_ones() -> None:
    stand = town()
    post = Post(stand)
    post.queues(*numbered(65))
    bob = stand.bridge("bob")
    first = stand.heard_of(bob, Deliver)
    assert len(first) == 64
    post.queues(b"65")
    assert stand.heard_of(bob, Deliver) == []
    stand.say(bob, Confirm(64))
    assert bodies_of(stand.heard_of(bob, Deliver)) == [b"64", b"65"]


def test_new_message_is_delivered_at_once_when_all_others_are_in_flight() -> None:
    stand = town()
    post = Post(stand)
    post.queues(*numbered(2))
    bob = stand.bridge("bob")
    token = post.sends("bob", body=b"2")
    deliveries = stand.heard_of(bob, Deliver)
    assert bodies_of(deliveries) == numbered(3)
    assert len(stand.kept(BOB)) == 2
    stand.say(bob, Confirm(3))
    assert post.outcomes(token) == {}
    assert stand.mail("bob") == []


def test_message_reaches_all_connections_and_one_bridge_suffices() -> None:
    stand = town()
    Post(stand).queues(*numbered(65))
    here = stand.bridge("bob", "bob")
    first = stand.heard_of(here, Deliver)
    assert {tuple(delivery.targets[0]) for delivery in first} == {(0, 1)}
    stand.say(here, Confirm(64))
    last = stand.one(here, Deliver)
    assert last.targets == [[0, 1, 2]]
    stand.say(here, Confirm(last.serial, [], [[last.serial, 0, "not-connected"]]))
    stand.say(here, Close(2))
    there = stand.bridge("bob", name="there")
    again = stand.heard_of(here, Deliver)
    assert stand.heard_of(there, Deliver) == []
    stand.say(here, Confirm(again[-1].serial, [], [[again[-1].serial, 0, "not-connected"]]))
    mine, theirs = stand.one(here, Deliver), stand.one(there, Deliver)
    assert mine.id == theirs.id == last.id
    stand.say(there, Confirm(theirs.serial))
    assert stand.mail("bob") == [b"64"]
    stand.say(here, Confirm(mine.serial, [], [[mine.serial, 0, "not-connected"]]))
    assert stand.mail("bob") == []
    assert stand.heard_of(here, Deliver) == stand.heard_of(there, Deliver) == []


# --- failed deliveries ----------------------------------------------------------------------------------------------


def test_undelivered_message_is_queued_under_its_own_number() -> None:
    stand = town()
    post = Post(stand)
    bob = stand.bridge("bob")
    early = post.sends("bob", body=b"1")
    delivery = stand.one(bob, Deliver)
    stand.say(bob, Close(1))
    late = post.sends("bob", body=b"2")
    assert post.outcomes(late) == {"bob": "queued"}
    stand.say(bob, Confirm(delivery.serial, [], [[delivery.serial, 0, "not-connected"]]))
    assert post.outcomes(early) == {"bob": "queued"}
    assert stand.mail("bob") == [b"1", b"2"]
    stand.say(bob, Open(2, "bob"))
    again = stand.heard_of(bob, Deliver)
    assert bodies_of(again) == [b"1", b"2"]
    assert [each.meta for each in again] == [{"origin": "s1"}] * 2
    assert f"{again[0].id}.{again[0].targets[0][0]}" == f"{delivery.id}.0"


def test_undelivered_message_comes_before_later_ones_in_flight() -> None:
    stand = town()
    post = Post(stand)
    bob = stand.bridge("bob")
    early = post.sends("bob", body=b"1")
    delivery = stand.one(bob, Deliver)
    stand.say(bob, Close(1))
    post.queues(b"2", b"3")
    stand.say(bob, Open(2, "bob"))
    assert bodies_of(stand.heard_of(bob, Deliver)) == [b"2", b"3"]
    stand.say(bob, Confirm(delivery.serial, [], [[delivery.serial, 0, "not-connected"]]))
    assert post.outcomes(early) == {"bob": "queued"}
    assert stand.one(bob, Deliver).body == b"1"


@pytest.mark.parametrize(
    ("reason", "outcome", "marked"),
    [
        ("not-connected", "queued", False),
        ("timeout", "queued", True),
        ("overloaded", "failed:overloaded", None),
        ("not-allowed", "failed:not-allowed", None),
        ("nonsense", "queued", False),
    ],
)
def test_reason_of_a_failed_delivery_decides_whether_to_queue(reason: str, outcome: str, marked: bool | None) -> None:
    stand = town()
    post = Post(stand)
    bob = stand.bridge("bob")
    post.sends("bob", "alice")
    stand.deliver(post.bridge)
    stand.deliver(bob, (0, reason))
    assert post.outcomes() == {"bob": outcome, "alice": "delivered"}
    again = stand.heard_of(bob, Deliver)
    assert [each.meta.get("redelivered", False) for each in again] == ([] if marked is None else [marked])


def test_unconfirmed_delivery_of_a_lost_bridge_is_marked() -> None:
    stand = town()
    post = Post(stand)
    bob = stand.bridge("bob")
    token = post.sends("bob")
    first = stand.one(bob, Deliver)
    stand.say(bob, Goodbye(None))
    assert post.outcomes(token) == {"bob": "queued"}
    again = stand.one(stand.bridge("bob"), Deliver)
    assert (again.id, again.body, again.meta) == (first.id, first.body, {"origin": "s1", "redelivered": True})


@pytest.mark.parametrize("bounds", [{}, {"messages": 2}])
def test_unconfirmed_delivery_that_cannot_be_kept_may_have_arrived(bounds: dict[str, int]) -> None:
    """A sender who is told that there was no room sends it again, under another id, and nothing marks that."""
    stand = town(None, **bounds)
    post = Post(stand)
    if bounds:  # half of it is all that alice may have
        assert post.outcomes(post.sends("carol")) == {"carol": "queued"}
    for left, outcome in (
        ([Close(1), Confirm(1, [], [[1, 0, "not-connected"]])], "failed:storage-full"),
        ([Goodbye(None)], "failed:unreachable"),
    ):
        bob = stand.bridge("bob")
        token = post.sends("bob")
        assert stand.one(bob, Deliver).body == b'"hi"'
        stand.store.full = not bounds
        stand.say(bob, *left)
        assert post.outcomes(token) == {"bob": outcome}
        stand.store.full = False
        stand.wait(1.0)


def test_broker_reports_queued_where_the_bridge_would_have_reported() -> None:
    stand = town()
    post = Post(stand)
    token = post.sends("alice")
    delivery = stand.one(post.bridge, Deliver)
    assert delivery.token == token
    stand.say(post.bridge, Close(1))
    stand.say(post.bridge, Confirm(1, [], [[1, 0, "not-connected"]]))
    assert post.outcomes(token) == {"alice": "queued"}
    assert stand.mail("alice") == [b'"hi"']


def test_user_who_comes_back_has_the_rest_unmarked_where_it_was_not_sent() -> None:
    stand = town()
    Post(stand).queues(*numbered(4))
    bob = stand.bridge("bob")
    assert bodies_of(stand.heard_of(bob, Deliver)) == numbered(4)
    stand.say(bob, Confirm(1))
    stand.say(bob, Close(1))
    stand.say(bob, Open(2, "bob"))
    assert stand.heard_of(bob, Deliver) == []
    stand.say(bob, Confirm(2, [], [[2, 0, "not-connected"]]))
    again = stand.one(bob, Deliver)
    assert (again.body, again.targets, again.meta) == (b"1", [[0, 2]], {"origin": "s1"})
    stand.say(bob, Confirm(4, [], [[3, 0, "not-connected"], [4, 0, "not-connected"]]))
    rest = stand.heard_of(bob, Deliver)
    assert (bodies_of(rest), [each.meta for each in rest]) == ([b"2", b"3"], [{"origin": "s1"}] * 2)
    stand.say(bob, Confirm(rest[-1].serial))
    assert stand.mail("bob") == []


def test_lost_bridge_leaves_the_rest_of_a_mailbox_in_order() -> None:
    stand = town()
    post = Post(stand)
    post.queues(*numbered(3))
    bob = stand.bridge("bob")
    stand.heard_of(bob, Deliver)
    stand.say(bob, Confirm(1))
    stand.say(bob, Goodbye(None))
    post.queues(b"3")
    again = stand.heard_of(stand.bridge("bob"), Deliver)
    assert bodies_of(again) == numbered(3, 1)
    assert ["redelivered" in each.meta for each in again] == [True, True, False]


def test_mark_stays_after_a_second_try_that_surely_failed() -> None:
    stand = town()
    Post(stand).queues(b"1")
    bob = stand.bridge("bob")
    stand.one(bob, Deliver)
    stand.say(bob, Goodbye(None))
    bob = stand.bridge("bob")
    assert stand.deliver(bob, (0, "not-connected")).meta["redelivered"] is True
    assert stand.deliver(bob).meta["redelivered"] is True


def test_lost_one_of_two_bridges_may_have_delivered() -> None:
    stand = town()
    Post(stand).queues(b"1")
    here, there = stand.bridge(name="here"), stand.bridge(name="there")
    stand.commits = False
    stand.say(here, Open(1, "bob"))
    stand.say(there, Open(1, "bob"))
    stand.commits = True
    stand.commit()
    stand.one(here, Deliver)
    stand.say(here, Goodbye(None))
    stand.deliver(there, (0, "not-connected"))
    assert stand.deliver(there).meta["redelivered"] is True


@pytest.mark.parametrize(("reason", "mark"), [("overloaded", {}), ("timeout", {"redelivered": True})])
def test_connection_that_does_not_read_is_tried_again_later(reason: str, mark: dict[str, bool]) -> None:
    stand = town()
    Post(stand).queues(b"1")
    bob = stand.bridge("bob")
    first = stand.deliver(bob, (0, reason))
    assert stand.heard_of(bob, Deliver) == []
    stand.wait(0.5)
    assert stand.heard_of(bob, Deliver) == []
    stand.wait(0.5)
    again = stand.deliver(bob)
    assert (again.id, again.meta) == (first.id, {"origin": "s1"} | mark)
    assert stand.mail("bob") == []


# --- restarts -------------------------------------------------------------------------------------------------------


def test_mailbox_survives_a_restart_and_unsent_messages_are_not_marked() -> None:
    stand = town()
    Post(stand).queues(*numbered(3))
    stand.restart()
    post = Post(stand)
    assert sorted(set(stand.router.users())) == ["alice", "bob"]
    post.queues(b"3")
    got = stand.heard_of(stand.bridge("bob"), Deliver)
    assert bodies_of(got) == numbered(4)
    assert not any("redelivered" in each.meta for each in got)


def test_sent_messages_alone_are_marked_after_a_restart() -> None:
    stand = town()
    Post(stand).queues(*numbered(70))
    bob = stand.bridge("bob")
    assert len(stand.heard_of(bob, Deliver)) == 64
    stand.say(bob, Confirm(10))
    stand.restart()
    bob = stand.bridge("bob")
    got = stand.heard_of(bob, Deliver)
    stand.say(bob, Confirm(60))
    got += stand.heard_of(bob, Deliver)
    assert bodies_of(got) == numbered(60, 10)
    assert ["redelivered" in each.meta for each in got] == [True] * 54 + [False] * 6


def test_end_lost_in_a_crash_leads_to_a_marked_duplicate() -> None:
    stand = town()
    Post(stand).queues(b"1")
    bob = stand.bridge("bob")
    stand.commits = False
    stand.deliver(bob)
    stand.restart()
    stand.commits = True
    again = stand.deliver(stand.bridge("bob"))
    assert (again.body, again.meta["redelivered"]) == (b"1", True)
    assert stand.mail("bob") == []


def test_repeated_message_goes_behind_the_first_in_flight_and_both_are_one() -> None:
    """A repeat that is delivered past the first would be followed by the first, without a mark."""
    stand = town()
    bridge, chat = stand.join("bridge", "b", {"epoch": "life"}), stand.handler("chat")
    stand.say(bridge, Open(1, "alice"))
    stand.say(bridge, Submit(1, 1, "chat", b"1", {}))
    stand.answer(chat, clients("bob"))
    stand.restart()  # before the bridge has the report `queued`
    bridge, chat = stand.join("bridge", "b", {"epoch": "life"}), stand.handler("chat")
    for session, user in enumerate(("alice", "bob", "bob"), 1):
        stand.say(bridge, Open(session, user))
    first = stand.one(bridge, Deliver)
    stand.say(bridge, Submit(1, 1, "chat", b"1", {"attempt": 2}))
    stand.answer(chat, clients("bob"))
    assert stand.report(bridge).recipients == {"bob": "queued"}
    assert stand.heard_of(bridge, Deliver) == []
    stand.say(bridge, Confirm(first.serial, [], [[first.serial, 0, "not-connected"]]))
    again = stand.deliver(bridge)
    assert (again.id, again.meta.get("redelivered")) == (first.id, True)
    assert stand.mail("bob") == []


def test_numbers_of_a_later_life_are_higher() -> None:
    stand = town()
    Post(stand).queues(b"1")
    stand.restart()
    Post(stand).queues(b"2")
    lives = [entry.number // NUMBERS_A_LIFE for entry in stand.kept(BOB)]
    assert lives == [1, 2]
