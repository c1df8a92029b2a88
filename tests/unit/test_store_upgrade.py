"""A store of an earlier version is opened, upgraded, and goes on: no message in it is lost or sent unmarked.

`tests/vectors/store-3.db` is the store of a broker of commit 0633e54, stopped when its clock stood at 1010 s, with
messages in every state: see `tests/vectors/README.md`.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from bester.broker.core.effects import Link
from bester.broker.core.settings import Route, Settings
from bester.broker.store import schema
from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_requests import NUMBERS_A_LIFE, SaveLane, StoredQueue, lane, mailbox
from bester.broker.wire.messages import Confirm, Deliver, Forward, Forwarded, Relay, Relayed, Request
from tests.unit.core_stand import Stand, clients

FIXTURE = Path(__file__).parents[1] / "vectors" / "store-3.db"
STRANGE = "ü\ud800/x"
S2, S4 = Link("server", b"s2"), Link("server", b"s4")
ENDED_AT = 1010.0
FIRST = NUMBERS_A_LIFE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(FIXTURE, tmp_path / "store.db"))


@pytest.fixture
def stand(path: Path) -> Iterator[Stand]:
    """The server that the store belongs to, started by this version a while later."""
    routes = {
        "s2": Route("s2", fabric="ipc:///s2"),
        "s3": Route("s3", native="10.0.0.3:2223"),
        "s4": Route("s4", fabric="ipc:///s4"),
    }
    settings = Settings("s1", routes=routes, hosts={"10.0.0.3": ("s3",)})
    accounts = frozenset({"alice", "carol", "dave", STRANGE})
    with closing(SqliteStore(path)) as store:
        yield Stand(settings, accounts=accounts, now=ENDED_AT + 60.0, store=cast(Any, store))


def outcome_of(stand: Stand, bridge: Link, message: str) -> Any:
    return stand.ask(bridge, "outcome", [1, message]).value


def test_snapshot_has_everything_that_was_kept(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (3,)
        (epoch,) = db.execute("SELECT epoch FROM state").fetchone()
    with closing(SqliteStore(path)) as store:
        found = store.open()
    assert (found.epoch, found.life, found.dead, found.next_expiry_s) == (epoch, 3, 2, 260200.0)
    assert found.queues == {
        mailbox("carol"): StoredQueue(3, 12, FIRST + 1, FIRST + 2),
        mailbox("dave"): StoredQueue(1, 9, FIRST + 12, 0),
        mailbox(STRANGE): StoredQueue(1, 3002, FIRST + 4, 0),
        lane("s2", "one"): StoredQueue(3, 12, FIRST + 6, FIRST + 8),
        lane("s3", "two"): StoredQueue(1, 4, FIRST + 9, FIRST + 9),
    }
    assert found.shares == {
        lane("s2", "one"): {mailbox("alice"): (3, 12)},
        lane("s3", "two"): {mailbox("alice"): (1, 4)},
        mailbox("carol"): {mailbox("alice"): (3, 12)},
        mailbox("dave"): {"server/s4": (1, 9)},
        mailbox(STRANGE): {mailbox("alice"): (1, 3002)},
    }
    assert found.types == ("chat", "one", "three", "two", "t")
    assert found.lanes == (
        SaveLane("s4", "bester.outcome", "d4", 1, {1: "delivered"}),
        SaveLane("s4", "chat", "d4", 6, {7: "queued 1"}),
    )
    assert (found.clock, found.names, found.peers, found.full) == (None, (), {}, None)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(schema.STEPS),)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_mailboxes_are_delivered_in_order_and_marked_where_they_were_sent_before(stand: Stand) -> None:
    carol = stand.bridge("carol", name="c")
    deliveries = stand.heard_of(carol, Deliver)
    assert [(each.body, each.meta.get("redelivered", False)) for each in deliveries] == [
        (b'"c2"', True), (b'"c3"', True), (b'"c4"', False),
    ]  # fmt: skip
    stand.say(carol, Confirm(deliveries[-1].serial))
    assert stand.kept(mailbox("carol")) == []
    strange = stand.bridge(STRANGE, name="x")
    assert json.loads(stand.deliver(strange).body) == "x" * 3000
    alice = stand.bridge("alice", name="b")
    outcome = json.loads(stand.deliver(alice).body)  # the message was sent with `outcome`
    assert outcome == {"message": "s1/b-x0/2", "recipient": "carol", "outcome": "delivered"}


def test_lanes_go_on_under_the_same_epoch_and_numbers(stand: Stand) -> None:
    epoch = stand.state.queues.epoch
    stand.take(stand.router.on_server_ready("s2", stand.now))
    relays = stand.heard_of(S2, Relay)
    assert [(each.body, each.meta.get("again", False)) for each in relays] == [
        (b'"l1"', True), (b'"l2"', True), (b'"l3"', True),
    ]  # fmt: skip
    assert [each.meta["lane"] for each in relays] == [[epoch, FIRST + number, FIRST + 6] for number in (6, 7, 8)]
    stand.say(S2, *[Relayed(each.token, "delivered") for each in relays])
    bridge = stand.bridge("alice", name="b")
    stand.wait(3.0)
    forward = stand.one(bridge, Forward)
    assert (forward.address, forward.body, forward.meta["again"]) == ("10.0.0.3:2223", b'"n1"', True)
    stand.say(bridge, Forwarded(forward.token, "delivered", {"reported": True}))
    assert [outcome_of(stand, bridge, f"s1/b-x0/{token}") for token in (7, 8, 9, 10)] == [
        {"s2": "delivered"}, {"s2": "delivered"}, {"s2": "delivered"}, {"s3": "delivered"},
    ]  # fmt: skip
    assert set(stand.state.queues.table) == {mailbox("carol"), mailbox("dave"), mailbox(STRANGE)}


def test_outcomes_are_remembered_and_late_ones_still_count(stand: Stand) -> None:
    bridge, peer = stand.bridge("alice", name="b"), stand.server("s4")
    asked = {token: outcome_of(stand, bridge, f"s1/b-x0/{token}") for token in (1, 2, 6, 11, 12)}
    assert asked == {
        1: {"carol": "delivered"},
        2: {"carol": "queued"},
        6: {"dave": "failed:expired"},
        11: {"s2": "failed:not-allowed"},
        12: {"s4": "queued"},
    }
    body = json.dumps({"message": "s1/b-x0/12.0.0", "outcome": "failed:expired"}).encode()
    stand.relay(peer, "bester.outcome", body, lane=["d4", 2, 1])
    assert stand.one(peer, Relayed).outcome == "delivered"
    assert outcome_of(stand, bridge, "s1/b-x0/12") == {"s4": "failed:expired"}  # the second of two, and the worse
    assert json.loads(stand.deliver(bridge).body) == {
        "message": "s1/b-x0/12", "recipient": "s4", "outcome": "failed:expired",
    }  # fmt: skip


def test_message_that_another_server_sends_again_is_a_duplicate(stand: Stand) -> None:
    peer, chat = stand.server("s4"), stand.handler("chat")
    stand.relay(
        peer, "chat", b'"in"', lane=["d4", 7, 6], id="s4/b-x/9", root="s4/b-x/9", origin="s4", path=["s4"], again=True
    )
    assert stand.one(peer, Relayed)[1:] == ("queued", {"queued": 1})
    assert stand.heard_of(chat, Request) == []
    assert stand.deliver(stand.bridge("dave", name="d")).body == b'"from s4"'
    stand.take(stand.router.on_server_ready("s4", stand.now))
    outcome = stand.one(S4, Relay)
    assert (outcome.type, json.loads(outcome.body)) == (
        "bester.outcome",
        {"message": "s4/b-x/9", "outcome": "delivered"},
    )


def test_result_that_an_earlier_life_has_delivered_is_not_queued_again(stand: Stand) -> None:
    bridge, chat = stand.bridge("alice", name="b"), stand.handler("chat")  # a bridge of the same name and epoch
    stand.submit(bridge, "chat", attempt=2)
    assert stand.answer(chat, clients("carol", body=b'"c1"')).meta["id"] == "s1/b-x0/1"
    assert stand.report(bridge).recipients == {}  # delivered
    assert len(stand.kept(mailbox("carol"))) == 3


def test_dead_letters_are_listed_and_replayed(stand: Stand) -> None:
    operator, handler = stand.join("operator", "op"), stand.handler("t")
    listed = stand.ask(operator, "deadList").value
    assert [(line["type"], line["reason"], line["server"]) for line in listed] == [
        ("t", "handler-lost", None), ("two", "not-allowed", "s2"),
    ]  # fmt: skip
    assert stand.ask(operator, "deadReplay", {"type": "t"}).value == {"replayed": 1, "left": 0}
    assert stand.answer(handler).body == b'"deadly"'
    assert [letter.type for letter in stand.dead()] == ["two"]


def test_new_messages_come_behind_the_old_ones_and_survive_the_next_start(stand: Stand) -> None:
    bridge, chat = stand.bridge("alice", name="new"), stand.handler("chat")
    stand.submit(bridge, "chat")
    stand.answer(chat, clients("carol", body=b'"c5"'))
    assert stand.report(bridge).recipients == {"carol": "queued"}
    stand.restart()
    carol = stand.bridge("carol", name="c")
    deliveries = stand.heard_of(carol, Deliver)
    assert [each.body for each in deliveries] == [b'"c2"', b'"c3"', b'"c4"', b'"c5"']
    stand.say(carol, Confirm(deliveries[-1].serial))
    assert stand.kept(mailbox("carol")) == []
