"""Queues by themselves: counts and numbers, and a disk with other contents than were counted."""

from __future__ import annotations

import pytest

from bester.broker.core.queues import FORGET_EVERY_S
from bester.broker.core.settings import Settings
from bester.broker.store_requests import (
    NUMBERS_A_LIFE,
    OUTCOME_KEPT_S,
    End,
    Fetch,
    PurgeOutcomes,
    StoredQueue,
    is_mailbox,
    lane,
    mailbox,
    owner_of,
)
from bester.broker.wire.messages import Confirm, Deliver, Open
from tests.unit.core_stand import START, Stand, clients


@pytest.mark.parametrize("user", ["bob", "lane/s2/t", "a/b", "", "ü\ud800"])
def test_queue_key_has_its_owner(user: str) -> None:
    assert (owner_of(mailbox(user)), is_mailbox(mailbox(user))) == (user, True)
    assert (owner_of(lane("s2", user)), is_mailbox(lane("s2", user))) == ("s2", False)


def town() -> Stand:
    stand = Stand(Settings("s1"), accounts=frozenset({"alice", "bob"}), now=START - 5.0)
    stand.wait(5.0)
    return stand


def queue(stand: Stand, *bodies: bytes) -> None:
    bridge, chat = stand.bridge("alice", name="a"), stand.handler("chat")
    for body in bodies:
        stand.submit(bridge, "chat")
        stand.answer(chat, clients("bob", body=body))
        assert stand.report(bridge).recipients == {"bob": "queued"}


def test_counts_are_those_of_the_snapshot() -> None:
    stand = town()
    queue(stand, b"1", b"22", b"333")
    snapshot = stand.store.copy().open()
    assert snapshot.queues == {mailbox("bob"): StoredQueue(3, 6, stand.kept(mailbox("bob"))[0].number, 0)}
    stand.restart()
    queues = stand.state.queues
    assert (queues.messages, queues.size_bytes, list(queues.table)) == (3, 6, [mailbox("bob")])
    assert queues.next_number == 2 * NUMBERS_A_LIFE
    assert queues.epoch == snapshot.epoch == "store"


def test_numbers_begin_at_one_without_a_store() -> None:
    stand = Stand()
    stand.router = type(stand.router)(stand.settings, epoch="e", first_token=1, now=START, wall_s=START)
    assert stand.state.queues.next_number == 1


def test_old_outcomes_are_purged_every_minute() -> None:
    stand = town()
    stand.commits = False
    stand.wait(3 * FORGET_EVERY_S, step_s=1.0)
    forgets = [write for write in stand.writes if isinstance(write, PurgeOutcomes)]
    assert len(forgets) == 3
    first = forgets[0].before_s
    assert START <= first + OUTCOME_KEPT_S <= START + FORGET_EVERY_S
    assert [write.before_s - first for write in forgets] == [0.0, FORGET_EVERY_S, 2 * FORGET_EVERY_S]


def test_lost_messages_are_uncounted_by_an_empty_read() -> None:
    stand = town()
    queue(stand, b"1", b"22", b"333")
    last = stand.kept(mailbox("bob"))[-1]
    bob = stand.bridge()
    stand.store.commit([End(last.number, "delivered")])  # behind the broker's back
    stand.say(bob, Open(1, "bob"))
    assert [delivery.body for delivery in stand.heard_of(bob, Deliver)] == [b"1", b"22"]
    stand.say(bob, Confirm(2))
    queues = stand.state.queues
    assert (queues.messages, queues.size_bytes, queues.table) == (0, 0, {})
    assert stand.reads == []
    queue(stand)


def test_lost_messages_are_uncounted_while_others_are_in_flight() -> None:
    stand = town()
    queue(stand, b"1", b"22", b"333")
    for entry in stand.kept(mailbox("bob"))[1:]:
        stand.store.commit([End(entry.number, "delivered")])
    bob = stand.bridge("bob")
    stand.one(bob, Deliver)
    assert stand.queued == (3, 6)
    stand.wait(1.0)
    stand.say(bob, Open(2, "bob"))
    assert stand.queued == (1, 1)
    stand.say(bob, Confirm(1))
    assert stand.queued == (0, 0)


def test_queue_is_fetched_once_at_a_time() -> None:
    stand = town()
    queue(stand, b"1")
    bob = stand.bridge()
    stand.commits = False
    for session in (1, 2, 3):
        stand.say(bob, Open(session, "bob"))
    assert [read.request for read in stand.reads] == [Fetch(mailbox("bob"), 0, 64, 4096)]
