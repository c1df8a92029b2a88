"""Users away: what is for them waits, arrives in its order when they come, and is over when it was written to them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bester.broker.core.values import Limits, Link, Notice, Send, Settings
from bester.broker.store_requests import NUMBERS_A_LIFE, Bounds, Enqueue, Entry, mailbox
from bester.broker.wire.messages import Close, Confirm, Deliver, Goodbye, Login, Open, Reply, Report, Request, Submit
from tests.unit.core_stand import START, Stand, clients

BOB = mailbox("bob")


def town(limits: Limits | None = None, **bounds: Any) -> Stand:
    """A stand of a server with three accounts, a while after its start."""
    settings = Settings("s1", bounds=Bounds(**bounds), limits=limits or Limits())
    stand = Stand(settings, accounts=frozenset({"alice", "bob", "carol"}), now=START - 5.0)
    stand.wait(5.0)
    return stand


class Post:
    """Alice at her bridge, and a handler that sends what she says to whom she says."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.bridge = stand.bridge("alice", name="a")
        self.chat = stand.handler("chat")

    def sends(self, *users: str, body: bytes = b'"hi"', **meta: Any) -> int:
        token = self.stand.submit(self.bridge, "chat", **meta)
        self.stand.answer(self.chat, clients(*users, body=body))
        return token

    def told(self, token: int | None = None) -> dict[str, str]:
        """Return the outcomes of the only report there is."""
        return self.stand.report(self.bridge, token).recipients

    def queues(self, *bodies: bytes, **meta: Any) -> None:
        """Send these to bob, who is away."""
        for body in bodies:
            self.sends("bob", body=body, **meta)
            assert self.told() == {"bob": "queued"}


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


def bodies_of(deliveries: list[Deliver]) -> list[bytes]:
    return [delivery.body for delivery in deliveries]


# --- waiting --------------------------------------------------------------------------------------------------------


def test_the_core_says_queued_when_it_was_told_that_it_is_on_disk_and_not_before() -> None:
    stand = town()
    post = Post(stand)
    token = stand.submit(post.bridge, "chat")
    request = stand.request(post.chat)
    first = stand.router.receive(post.chat, Reply(request.token, 0, [clients("bob")]), stand.now)
    writes = [action for action in first if isinstance(action, Enqueue)]
    assert len(writes) == 1
    assert not [action for action in first if isinstance(action, Send)]
    then = stand.router.on_committed(writes, stand.store.commit(writes), stand.now)
    report = Report(token, 0, None, request.meta["id"], {"bob": "queued"})
    assert [action.message for action in then if isinstance(action, Send)] == [report]


def test_what_is_kept_says_everything_about_the_message() -> None:
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


def test_of_several_each_has_its_own_outcome() -> None:
    stand = town()
    post = Post(stand)
    token = post.sends("bob", "nobody", "alice")
    stand.deliver(post.bridge)
    report = stand.report(post.bridge, token)
    assert (report.status, report.reason) == (1, "unknown-user")
    assert report.recipients == {"bob": "queued", "nobody": "failed:unknown-user", "alice": "delivered"}
    assert stand.kept(mailbox("nobody")) == []


def test_a_user_named_twice_has_it_twice_in_the_mailbox() -> None:
    stand = town()
    post = Post(stand)
    post.sends("bob", "bob")
    assert post.told() == {"bob": "queued"}
    assert [entry.id[-4:] for entry in stand.kept(BOB)] == [".0.0", ".0.1"]


def test_where_accounts_are_open_nobody_is_known_and_nothing_waits() -> None:
    stand = Stand()
    post = Post(stand)
    post.sends("bob")
    assert post.told() == {"bob": "failed:not-connected"}
    assert stand.mail("bob") == []


# --- coming back ----------------------------------------------------------------------------------------------------


def test_it_arrives_in_order_and_is_over_when_it_was_written() -> None:
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
    assert stand.router._dispatcher.queues.messages == 0
    assert stand.heard(post.bridge) == stand.heard(bob) == []


def test_a_password_that_was_good_is_answered_before_what_waited_comes() -> None:
    stand = town()
    Post(stand).queues(b"1")
    bob = stand.bridge()
    stand.say(bob, Login(7, "bob", "secret", "10.0.0.1"))
    assert stand.heard_of(bob, Deliver) == []
    stand.take(stand.router.on_verified(bob, 7, "bob", None, stand.now))
    assert [type(message).__name__ for message in stand.heard(bob)] == ["LoggedIn", "Deliver"]


def test_much_comes_a_window_at_a_time() -> None:
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


def test_large_ones_come_one_at_a_time() -> None:
    stand = town(Limits(window_bytes=10))
    Post(stand).queues(b'"123456"', b'"1234567890123"', b'"1"', b'"2"')
    bob = stand.bridge("bob")
    assert stand.deliver(bob).body == b'"123456"'
    assert stand.deliver(bob).body == b'"1234567890123"'
    assert bodies_of(stand.heard_of(bob, Deliver)) == [b'"1"', b'"2"']


def test_what_is_new_goes_behind_what_waits() -> None:
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


def test_when_nothing_waits_any_more_what_is_new_goes_straight_on_behind_what_is_on_its_way() -> None:
    stand = town()
    post = Post(stand)
    post.queues(*numbered(2))
    bob = stand.bridge("bob")
    token = post.sends("bob", body=b"2")
    deliveries = stand.heard_of(bob, Deliver)
    assert bodies_of(deliveries) == numbered(3)
    assert len(stand.kept(BOB)) == 2
    stand.say(bob, Confirm(3))
    assert post.told(token) == {}
    assert stand.mail("bob") == []


def test_of_two_devices_at_one_bridge_both_get_it_and_of_two_bridges_one_suffices() -> None:
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


# --- what fails on its way ------------------------------------------------------------------------------------------


def test_what_could_not_be_written_waits_in_its_own_place() -> None:
    stand = town()
    post = Post(stand)
    bob = stand.bridge("bob")
    early = post.sends("bob", body=b"1")
    delivery = stand.one(bob, Deliver)
    stand.say(bob, Close(1))
    late = post.sends("bob", body=b"2")
    assert post.told(late) == {"bob": "queued"}
    stand.say(bob, Confirm(delivery.serial, [], [[delivery.serial, 0, "not-connected"]]))
    assert post.told(early) == {"bob": "queued"}
    assert stand.mail("bob") == [b"1", b"2"]
    stand.say(bob, Open(2, "bob"))
    again = stand.heard_of(bob, Deliver)
    assert bodies_of(again) == [b"1", b"2"]
    assert [each.meta for each in again] == [{"origin": "s1"}] * 2
    assert f"{again[0].id}.{again[0].targets[0][0]}" == f"{delivery.id}.0"


def test_what_could_not_be_written_has_its_place_though_what_came_later_is_on_its_way() -> None:
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
    assert post.told(early) == {"bob": "queued"}
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
def test_why_it_could_not_be_written_decides(reason: str, outcome: str, marked: bool | None) -> None:
    stand = town()
    post = Post(stand)
    bob = stand.bridge("bob")
    post.sends("bob", "alice")
    stand.deliver(post.bridge)
    stand.deliver(bob, (0, reason))
    assert post.told() == {"bob": outcome, "alice": "delivered"}
    again = stand.heard_of(bob, Deliver)
    assert [each.meta.get("redelivered", False) for each in again] == ([] if marked is None else [marked])


def test_what_a_bridge_had_not_confirmed_when_it_went_may_have_arrived() -> None:
    stand = town()
    post = Post(stand)
    bob = stand.bridge("bob")
    token = post.sends("bob")
    first = stand.one(bob, Deliver)
    stand.say(bob, Goodbye(None))
    assert post.told(token) == {"bob": "queued"}
    again = stand.one(stand.bridge("bob"), Deliver)
    assert (again.id, again.body, again.meta) == (first.id, first.body, {"origin": "s1", "redelivered": True})


def test_the_bridge_that_would_have_reported_by_itself_is_told_that_it_waits() -> None:
    stand = town()
    post = Post(stand)
    token = post.sends("alice")
    delivery = stand.one(post.bridge, Deliver)
    assert delivery.token == token
    stand.say(post.bridge, Close(1))
    stand.say(post.bridge, Confirm(1, [], [[1, 0, "not-connected"]]))
    assert post.told(token) == {"alice": "queued"}
    assert stand.mail("alice") == [b'"hi"']


def test_who_comes_back_while_the_mailbox_is_emptied_gets_the_rest_and_what_was_never_written_is_not_marked() -> None:
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


def test_a_bridge_that_goes_while_it_empties_a_mailbox_leaves_the_rest_where_it_was() -> None:
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


def test_what_may_have_arrived_once_stays_marked_though_it_did_not_the_second_time() -> None:
    stand = town()
    Post(stand).queues(b"1")
    bob = stand.bridge("bob")
    stand.one(bob, Deliver)
    stand.say(bob, Goodbye(None))
    bob = stand.bridge("bob")
    assert stand.deliver(bob, (0, "not-connected")).meta["redelivered"] is True
    assert stand.deliver(bob).meta["redelivered"] is True


def test_of_two_bridges_one_that_went_may_have_delivered_it() -> None:
    stand = town()
    Post(stand).queues(b"1")
    here, there = stand.bridge(name="here"), stand.bridge(name="there")
    stand.disk = False
    stand.say(here, Open(1, "bob"))
    stand.say(there, Open(1, "bob"))
    stand.disk = True
    stand.commit()
    stand.one(here, Deliver)
    stand.say(here, Goodbye(None))
    stand.deliver(there, (0, "not-connected"))
    assert stand.deliver(there).meta["redelivered"] is True


@pytest.mark.parametrize(("reason", "mark"), [("overloaded", {}), ("timeout", {"redelivered": True})])
def test_a_connection_that_does_not_read_is_tried_again_after_a_while(reason: str, mark: dict[str, bool]) -> None:
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


def test_it_waits_over_a_restart_and_what_was_never_handed_out_is_not_marked() -> None:
    stand = town()
    Post(stand).queues(*numbered(3))
    stand.restart()
    post = Post(stand)
    assert stand.router.users() == ["alice", "bob"]
    post.queues(b"3")
    got = stand.heard_of(stand.bridge("bob"), Deliver)
    assert bodies_of(got) == numbered(4)
    assert not any("redelivered" in each.meta for each in got)


def test_after_a_restart_exactly_what_had_been_handed_out_is_marked() -> None:
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


def test_an_end_that_was_not_written_before_a_crash_means_a_marked_repetition() -> None:
    stand = town()
    Post(stand).queues(b"1")
    bob = stand.bridge("bob")
    stand.disk = False
    stand.deliver(bob)
    stand.restart()
    stand.disk = True
    again = stand.deliver(stand.bridge("bob"))
    assert (again.body, again.meta["redelivered"]) == (b"1", True)
    assert stand.mail("bob") == []


def test_a_repeat_goes_behind_the_first_though_that_is_on_its_way_and_both_are_one() -> None:
    """Delivered past it, the first would come behind, and no mark would say that it came before."""
    stand = town()
    bridge, chat = stand.join("bridge", "b", {"epoch": "life"}), stand.handler("chat")
    stand.say(bridge, Open(1, "alice"))
    stand.say(bridge, Submit(1, 1, "chat", b"1", {}))
    stand.answer(chat, clients("bob"))
    stand.restart()  # before the bridge has heard that it waits
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


def test_numbers_of_a_later_life_come_behind_those_of_an_earlier_one() -> None:
    stand = town()
    Post(stand).queues(b"1")
    stand.restart()
    Post(stand).queues(b"2")
    lives = [entry.number // NUMBERS_A_LIFE for entry in stand.kept(BOB)]
    assert lives == [1, 2]


# --- bounds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "code"),
    [
        ({"user_messages": 2}, "mailbox-full"),
        ({"user_bytes": 9}, "mailbox-full"),
        ({"messages": 2}, "storage-full"),
        ({"total_bytes": 9}, "storage-full"),
    ],
)
def test_above_a_bound_the_sender_is_told_and_there_is_room_again_when_something_has_gone(
    bounds: dict[str, int], code: str
) -> None:
    stand = town(None, **bounds)
    post = Post(stand)
    post.queues(b'"1"', b'"2"')
    post.sends("bob", body=b'"345"')
    report = stand.report(post.bridge)
    assert (report.status, report.reason, report.recipients) == (1, code, {"bob": f"failed:{code}"})
    post.sends("carol", body=b'"345"')
    assert post.told() == {"carol": "queued" if code == "mailbox-full" else "failed:storage-full"}
    bob = stand.bridge("bob")
    stand.say(bob, Confirm(1))
    stand.say(bob, Goodbye(None))
    post.sends("bob", body=b'"345"')
    assert post.told() == {"bob": "queued"}
    assert stand.mail("bob") == [b'"2"', b'"345"']


# --- time -----------------------------------------------------------------------------------------------------------


def test_what_has_waited_too_long_is_over_and_its_sender_can_learn_it() -> None:
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
    assert stand.router._dispatcher.queues.messages == 0
    assert stand.ask(post.bridge, "outcome", [1, long]).value == {"bob": "failed:expired"}
    assert stand.heard_of(stand.bridge("bob"), Deliver) == []


def test_time_goes_on_while_the_server_is_down() -> None:
    stand = town(ttl_s=10.0)
    Post(stand).queues(b"1")
    stand.now += 11.0
    stand.restart()
    stand.wait(2.5)
    assert stand.mail("bob") == []
    assert stand.heard_of(stand.bridge("bob"), Deliver) == []


def test_what_is_on_its_way_when_its_time_is_over_is_left_to_it() -> None:
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
    assert stand.router._dispatcher.queues.owners() == []


def test_of_very_much_that_is_over_some_is_ended_in_each_turn() -> None:
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


def test_what_cannot_be_written_is_told_and_once_there_is_room_it_goes_on() -> None:
    stand = town(user_messages=1)
    post = Post(stand)
    stand.store.full = True
    post.sends("bob")
    report = stand.report(post.bridge)
    assert (report.status, report.reason, report.recipients) == (1, "storage-full", {"bob": "failed:storage-full"})
    assert [notice.event for notice in stand.notices if notice.event == "storage-full"] == ["storage-full"]
    dispatcher = stand.router._dispatcher
    assert (dispatcher.queues.messages, dispatcher.queues._size, dispatcher.queues.get(BOB)) == (0, 0, None)
    stand.store.full = False
    post.sends("bob")
    assert post.told() == {"bob": "failed:storage-full"}, "not tried again at once"
    assert stand.mail("bob") == []
    post.sends("alice")
    stand.deliver(post.bridge)
    stand.wait(1.0)
    post.queues(b"1")
    assert stand.mail("bob") == [b"1"]


def test_a_disk_that_is_full_keeps_nobody_from_getting_what_is_on_it() -> None:
    stand = town()
    post = Post(stand)
    post.queues(b"1")
    stand.store.full = True
    bob = stand.bridge("bob")
    assert stand.deliver(bob).body == b"1"
    assert stand.mail("bob") == []
    post.sends("bob", body=b"2")
    assert stand.deliver(bob).body == b"2"
    assert post.told() == {}


def test_what_was_over_when_the_disk_broke_is_not_delivered_again() -> None:
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
    queues = stand.router._dispatcher.queues
    assert (queues.messages, queues._size) == (0, 0)


# --- races ----------------------------------------------------------------------------------------------------------


def test_who_comes_between_writing_and_its_end_gets_it_behind_what_waited() -> None:
    stand = town()
    post = Post(stand)
    post.queues(b"1")
    bob = stand.bridge()
    stand.submit(post.bridge, "chat")
    request = stand.request(post.chat)
    stand.disk = False
    stand.reply(post.chat, request.token, clients("bob", body=b"2"))
    stand.say(bob, Open(1, "bob"))
    stand.disk = True
    stand.commit()
    assert post.told() == {"bob": "queued"}
    assert bodies_of(stand.heard_of(bob, Deliver)) == [b"1", b"2"]


def test_who_comes_to_an_empty_mailbox_while_the_first_is_written_gets_it() -> None:
    stand = town()
    post = Post(stand)
    bob = stand.bridge()
    stand.submit(post.bridge, "chat")
    request = stand.request(post.chat)
    stand.disk = False
    stand.reply(post.chat, request.token, clients("bob"))
    writes, stand.writes = stand.writes, []
    result = stand.store.commit(writes)  # it is on the disk, and the core does not know yet
    stand.say(bob, Open(1, "bob"))
    stand.take(stand.router.on_committed(writes, result, stand.now))
    stand.disk = True
    stand.commit()
    assert post.told() == {"bob": "queued"}
    stand.deliver(bob)
    assert stand.mail("bob") == []


def test_who_goes_while_it_is_read_finds_it_when_he_comes_again_and_it_is_not_marked() -> None:
    stand = town()
    Post(stand).queues(b"1", b"2")
    bob = stand.bridge()
    stand.disk = False
    stand.say(bob, Open(1, "bob"))
    assert len(stand.reads) == 1
    stand.say(bob, Close(1))
    stand.disk = True
    stand.commit()
    assert stand.heard_of(bob, Deliver) == []
    stand.say(bob, Open(2, "bob"))
    got = stand.heard_of(bob, Deliver)
    assert bodies_of(got) == [b"1", b"2"]
    assert not any("redelivered" in each.meta for each in got)


def test_what_is_put_back_while_the_next_are_read_comes_before_them() -> None:
    stand = town(Limits(window=2))
    Post(stand).queues(*numbered(4))
    bob = stand.bridge("bob")
    assert bodies_of(stand.heard_of(bob, Deliver)) == numbered(2)
    stand.disk = False
    stand.say(bob, Confirm(0, [2]))
    assert stand.reads
    stand.say(bob, Confirm(1, [], [[1, 0, "not-connected"]]))
    stand.disk = True
    stand.commit()
    assert bodies_of(stand.heard_of(bob, Deliver)) == [b"0", b"2"]


def test_what_is_over_is_not_read_again_in_the_same_turn() -> None:
    """Its time is over, and in the same turn somebody comes and what is new is written for him."""
    stand = town(ttl_s=10.0)
    post = Post(stand)
    post.sends("bob", body=b"1", ttl_s=1)
    post.told()
    bob = stand.bridge()
    stand.submit(post.bridge, "chat")
    request = stand.request(post.chat)
    stand.wait(0.5)
    stand.disk = False
    stand.reply(post.chat, request.token, clients("bob", body=b"2"))
    stand.now += 1.0
    stand.tick()
    stand.say(bob, Open(1, "bob"))
    stand.disk = True
    stand.commit()
    assert bodies_of(stand.heard_of(bob, Deliver)) == [b"2"]
    stand.say(bob, Confirm(1))
    assert stand.mail("bob") == []
    queues = stand.router._dispatcher.queues
    assert (queues.messages, queues._size) == (0, 0)


# --- accounts that go -----------------------------------------------------------------------------------------------


def test_with_an_account_goes_what_waited_for_it() -> None:
    stand = town()
    post = Post(stand)
    post.sends("bob", "carol")
    message = stand.report(post.bridge).message
    bob = stand.bridge("bob")
    stand.one(bob, Deliver)
    stand.take(stand.router.on_account_removed("bob", stand.now))
    assert stand.one(bob, Close).session == 1
    assert stand.mail("bob") == [b'"hi"']  # on its way: it may arrive yet
    stand.say(bob, Confirm(1, [], [[1, 0, "not-connected"]]))
    assert stand.mail("bob") == []
    assert stand.mail("carol") == [b'"hi"']
    assert stand.ask(post.bridge, "outcome", [1, message]).value == {"bob": "failed:unknown-user", "carol": "queued"}
    stand.wait(1.0)
    assert stand.router._dispatcher.queues.messages == 1
    assert stand.router.users() == ["alice", "bob", "carol"]


def test_a_sender_who_wants_to_hear_of_it_hears_that_the_account_has_gone() -> None:
    stand = town(Limits(window=4))
    post = Post(stand)
    for _ in range(11):
        post.sends("bob", outcome=True)
        stand.report(post.bridge)
    stand.take(stand.router.on_account_removed("bob", stand.now))
    assert len(stand.mail("bob")) == 7  # a window at a time: others have their turn
    stand.wait(2.0)
    assert stand.mail("bob") == []
    news = [json.loads(delivery.body) for delivery in stand.heard_of(post.bridge, Deliver)]
    assert len(news) == 4  # a window of them
    assert {(each["recipient"], each["outcome"]) for each in news} == {("bob", "failed:unknown-user")}


@pytest.mark.parametrize("full", [False, True])
def test_an_account_may_go_while_something_is_written_for_it(full: bool) -> None:
    stand = town()
    post = Post(stand)
    stand.submit(post.bridge, "chat")
    request = stand.request(post.chat)
    stand.store.full = full
    stand.disk = False
    stand.reply(post.chat, request.token, clients("bob"))
    stand.take(stand.router.on_account_removed("bob", stand.now))
    stand.disk = True
    stand.commit()
    assert post.told() == {"bob": "failed:storage-full" if full else "queued"}
    assert stand.mail("bob") == []
    assert (stand.router._dispatcher.queues.messages, stand.router._dispatcher.queues._size) == (0, 0)


# --- all of it ------------------------------------------------------------------------------------------------------


class Mail(RuleBasedStateMachine):
    """Alice sends numbers to bob, who comes and goes; bridges are lost, the broker is killed at any moment.

    The model: what bob's connections wrote, in order, each with its mark.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stand = town(Limits(window=4, window_bytes=3))
        self.post = Post(self.stand)
        self.bob: Link | None = None
        self.online = False
        self.sessions = 0
        self.sent = 0
        self.promised: set[int] = set()
        self.tokens: dict[int, int] = {}
        self.out: list[Deliver] = []
        self.seen: list[tuple[int, bool]] = []
        self.unsure: set[int] = set()

    def hear(self) -> None:
        if self.bob is not None:
            self.out += self.stand.heard_of(self.bob, Deliver)
        for report in self.stand.heard_of(self.post.bridge, Report):
            number = self.tokens.pop(report.token)
            assert report.status == 0, report
            self.promised.add(number)

    @rule()
    def send(self) -> None:
        token = self.post.sends("bob", body=b"%d" % self.sent)
        self.tokens[token] = self.sent
        self.sent += 1
        self.hear()

    @precondition(lambda self: not self.online)
    @rule()
    def come(self) -> None:
        self.online, self.sessions = True, self.sessions + 1
        if self.bob is None:
            self.bob = self.stand.bridge(name="bob")
        self.stand.say(self.bob, Open(self.sessions, "bob"))
        self.hear()

    @precondition(lambda self: bool(self.out) and self.online)
    @rule(some=st.integers(1, 4))
    def read(self, some: int) -> None:
        """Bob's connection writes what is next, and the bridge says so."""
        assert self.bob is not None
        written, self.out = self.out[:some], self.out[some:]
        self.seen += [(int(each.body), "redelivered" in each.meta) for each in written]
        self.stand.say(self.bob, Confirm(written[-1].serial))
        self.hear()

    @precondition(lambda self: self.online)
    @rule()
    def go(self) -> None:
        """His connection is closed; the bridge says what it had not written."""
        assert self.bob is not None
        self.online = False
        self.stand.say(self.bob, Close(self.sessions))
        out, self.out = self.out, []
        if out:
            self.stand.say(self.bob, Confirm(out[-1].serial, [], [[each.serial, 0, "not-connected"] for each in out]))
        self.hear()

    @precondition(lambda self: self.bob is not None)
    @rule(written=st.integers(0, 3))
    def lose(self, written: int) -> None:
        """The bridge dies; some of what it had was written, and nobody knows."""
        assert self.bob is not None
        self.seen += [(int(each.body), "redelivered" in each.meta) for each in self.out[:written]]
        self.stand.say(self.bob, Goodbye(None))
        self.bob, self.online, self.out = None, False, []
        self.hear()

    @rule(written=st.integers(0, 3))
    def crash(self, written: int) -> None:
        """The broker dies; alice submits again what she has no report on."""
        self.seen += [(int(each.body), "redelivered" in each.meta) for each in self.out[:written]]
        self.unsure |= set(self.tokens.values())
        self.tokens.clear()
        self.stand.restart(f"e{self.stand.store._life}")
        self.post = Post(self.stand)
        self.bob, self.online, self.out = None, False, []

    @rule(seconds=st.sampled_from([0.5, 1.5]))
    def wait(self, seconds: float) -> None:
        self.stand.wait(seconds)
        self.hear()

    @invariant()
    def nothing_comes_twice_unmarked(self) -> None:
        known: set[int] = set()
        for number, marked in self.seen:
            assert marked or number not in known, self.seen
            known.add(number)

    @invariant()
    def what_is_new_comes_in_order(self) -> None:
        firsts = list(dict.fromkeys(number for number, _ in self.seen))
        assert firsts == sorted(firsts), self.seen

    @invariant()
    def counts_agree(self) -> None:
        queues = self.stand.router._dispatcher.queues
        entries = self.stand.kept(BOB)
        assert queues.messages == len(entries)
        assert queues._size == sum(len(entry.body) for entry in entries)

    def teardown(self) -> None:
        """Bob comes and reads until there is no more: all that was promised is there."""
        if not self.online:
            self.come()
        while self.out:
            self.read(4)
        missing = self.promised - {number for number, _ in self.seen}
        assert not missing, missing
        assert not self.tokens
        assert self.stand.mail("bob") == []


Mail.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=40)
TestMail = Mail.TestCase


def test_a_notice_names_why_nothing_can_be_kept() -> None:
    stand = town()
    post = Post(stand)
    stand.store.full = True
    post.sends("bob")
    said = [notice for notice in stand.notices if notice.event == "storage-full"]
    assert said == [Notice("storage-full", {"why": "the store in memory is told to be full; make room in it"})]


def test_requests_and_mail_of_one_user_do_not_mix() -> None:
    """What alice is sent while she is away waits for her alone, though she sends it herself."""
    stand = town()
    post = Post(stand)
    stand.submit(post.bridge, "chat")
    request = stand.one(post.chat, Request)
    stand.say(post.bridge, Close(1))
    stand.reply(post.chat, request.token, clients("alice", "bob"))
    assert post.told() == {"alice": "queued", "bob": "queued"}
    assert [entry.sender for entry in stand.kept(mailbox("alice")) + stand.kept(BOB)] == ["alice", "alice"]
