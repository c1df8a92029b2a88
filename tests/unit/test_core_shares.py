"""Shares of queues: one sender cannot fill another's mailbox, or what is kept for a server, after a restart neither."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from bester.broker.core.effects import Link
from bester.broker.core.records import Record, State
from bester.broker.core.settings import Limits, Route, Settings
from bester.broker.core.shares import Shares
from bester.broker.store.memory import MemoryStore
from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_requests import HANDLERS, Bounds, Enqueue, Entry, lane, mailbox, sharer_of
from bester.broker.wire.messages import Close, Command, Confirm, Deliver, Goodbye, Outcome, Relay, Relayed, Report
from tests.unit.core_post import BOB
from tests.unit.core_stand import START, Stand, clients, servers
from tests.unit.store_stand import KINDS, made

ALICE, CAROL = mailbox("alice"), mailbox("carol")
FULL = {"bob": "failed:mailbox-full"}
QUEUED = {"bob": "queued"}


class Town:
    """A server with bob away, alice and carol at their bridges, the servers s2 and s3, and a handler for them all."""

    def __init__(self, store: Any = None, limits: Limits | None = None, **bounds: Any) -> None:
        routes = {name: Route(name, fabric=f"ipc:///{name}") for name in ("s2", "s3")}
        settings = Settings("s1", routes=routes, bounds=Bounds(**bounds), limits=limits or Limits())
        accounts = frozenset({"alice", "bob", "carol"})
        self.stand = Stand(settings, accounts=accounts, now=START - 5.0, store=cast(Any, store))
        self.stand.wait(5.0)
        self.opens()

    def opens(self) -> None:
        self.bridges = {user: self.stand.bridge(user, name=user) for user in ("alice", "carol")}
        self.chat = self.stand.handler("chat")
        self.peers = {name: self.stand.server(name) for name in ("s2", "s3")}

    def sends(self, user: str, to: str = "bob", body: bytes = b'"hi"', **meta: Any) -> dict[str, str]:
        """Let a user send; returns the outcomes of the report."""
        self.stand.submit(self.bridges[user], "chat", **meta)
        self.stand.answer(self.chat, clients(to, body=body))
        return self.stand.report(self.bridges[user]).recipients

    def emits(self, command: Command | None = None) -> str:
        """Let the handler emit to bob, or by another command; returns the outcome."""
        self.stand.emit(self.chat, "chat", command or clients("bob", body=b'"hi"'))
        (outcome,) = self.stand.heard_of(self.chat, Outcome)[-1].recipients.values()
        return outcome

    def sends_on(self, user: str, to: str = "s2") -> dict[str, str]:
        """Let a user send to another server, which is away; returns the outcomes of the report."""
        self.stand.submit(self.bridges[user], "chat")
        self.stand.answer(self.chat, servers(to, body=b'"hi"'))
        return self.stand.report(self.bridges[user]).recipients

    def relays(self, server: str, command: Command | None = None) -> str:
        """Let a user of another server send to bob, or by another command; returns the outcome."""
        self.stand.relay(self.peers[server], "chat", path=[server], origin=server)
        self.stand.answer(self.chat, command or clients("bob"))
        return self.stand.one(self.peers[server], Relayed).outcome

    @property
    def shares(self) -> Any:
        """Return the shares, which are those that a restart would find."""
        shares = self.stand.state.queues.shares
        if isinstance(self.stand.store, MemoryStore):
            assert self.stand.store.inspect().shares == shares
        return shares


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        yield None
        return
    with closing(made(request.param, tmp_path, request)) as found:
        yield found


@pytest.mark.parametrize("bounds", [{"user_messages": 30}, {"user_bytes": 125}])
def test_one_sender_has_a_tenth_of_a_mailbox_and_others_still_write(bounds: dict[str, Any]) -> None:
    town = Town(**bounds)
    assert [town.sends("alice") for _ in range(5)] == [QUEUED, QUEUED, QUEUED, FULL, FULL]
    assert town.sends("carol") == QUEUED
    assert town.shares == {BOB: {ALICE: (3, 12), CAROL: (1, 4)}}


def test_mailbox_of_many_senders_is_full_for_all() -> None:
    town = Town(user_messages=3, sender_share=0.5)
    assert [town.sends("alice"), town.sends("carol"), town.relays("s2")] == [QUEUED, QUEUED, "queued"]
    assert town.relays("s3") == "failed:mailbox-full"


@pytest.mark.parametrize("bounds", [{"messages": 6}, {"total_bytes": 24}])
def test_one_sender_has_no_more_of_all_mailboxes_than_is_left_by_all(bounds: dict[str, Any], store: Any) -> None:
    """A user with a list of a thousand names filled the store for everybody within minutes."""
    town = Town(store, sender_share=1.0, **bounds)
    no_more = {"bob": "failed:storage-full"}
    assert [town.sends("alice") for _ in range(4)] == [QUEUED, QUEUED, QUEUED, no_more]
    town.stand.restart()
    town.opens()
    town.stand.wait(0.5)
    assert [town.sends("alice"), town.sends("carol"), town.sends("carol")] == [no_more, QUEUED, QUEUED]
    assert [town.sends("carol"), town.relays("s2"), town.relays("s3")] == [no_more, "queued", "failed:storage-full"]
    stand = town.stand
    bob = stand.bridge("bob")
    stand.say(bob, Confirm(stand.heard_of(bob, Deliver)[-1].serial))
    stand.say(bob, Goodbye(None))
    assert town.shares == {}
    assert [town.sends("alice"), town.relays("s3")] == [QUEUED, "queued"]


@pytest.mark.parametrize("bounds", [{"server_messages": 6}, {"server_bytes": 24}])
def test_one_sender_has_no_more_at_a_server_that_is_away_than_is_left_by_all(
    bounds: dict[str, Any], store: Any
) -> None:
    town = Town(store, **bounds)
    away, no_more = {"s2": "queued"}, {"s2": "failed:overloaded"}
    assert [town.sends_on("alice") for _ in range(4)] == [away, away, away, no_more]
    town.stand.restart()
    town.opens()
    town.stand.wait(0.5)
    assert [town.sends_on("alice"), town.sends_on("carol"), town.sends_on("carol")] == [no_more, away, away]
    assert town.relays("s3", servers("s2")) == "queued"
    assert town.relays("s3", servers("s2")) == "failed:overloaded"
    assert town.sends_on("alice", "s3") == {"s3": "queued"}, "another server has a bound of its own"
    stand = town.stand
    stand.take(stand.router.on_server_ready("s2", stand.now))
    relays = stand.heard_of(Link("server", b"s2"), Relay)
    assert len(relays) == 6
    for relay in relays:
        stand.say(Link("server", b"s2"), Relayed(relay.token, "delivered", {}))
    stand.take(stand.router.on_server_lost("s2", "nothing heard", stand.now))
    assert town.shares == {lane("s3", "chat"): {ALICE: (1, 4)}}
    assert town.sends_on("alice") == away


@pytest.mark.parametrize("share", [0.001, 0.3, 1.0])
def test_first_message_of_a_sender_is_within_every_share(share: float) -> None:
    town = Town(user_messages=10, user_bytes=1000, sender_share=share)
    assert town.sends("alice", body=b'"%s"' % (b"x" * 500)) == QUEUED
    assert town.sends("carol", body=b'"%s"' % (b"x" * 400)) == QUEUED


@pytest.mark.parametrize(("share", "most"), [(0.29, 29), (0.07, 7), (0.1, 10), (0.999, 99)])
def test_share_is_counted_in_whole_messages(share: float, most: int) -> None:
    shares = Shares(Bounds(user_messages=100, sender_share=share), {BOB: {ALICE: (most - 1, 0)}})
    assert not shares.is_full(BOB, ALICE, 1)
    shares.count(BOB, ALICE, 1, 1)
    assert shares.is_full(BOB, ALICE, 1)


def test_share_is_free_again_when_messages_have_ended() -> None:
    town = Town(user_messages=20)
    stand = town.stand
    assert [town.sends("alice") for _ in range(3)] == [QUEUED, QUEUED, FULL]
    bob = stand.bridge("bob")
    deliveries = stand.heard_of(bob, Deliver)
    stand.say(bob, Confirm(deliveries[0].serial))
    stand.say(bob, Close(1))
    stand.say(bob, Confirm(deliveries[1].serial, [], [[deliveries[1].serial, 0, "not-connected"]]))
    stand.say(bob, Goodbye(None))
    assert town.shares == {BOB: {ALICE: (1, 4)}}, "a requeued message counts once"
    assert [town.sends("alice") for _ in range(2)] == [QUEUED, FULL]


def test_message_in_flight_counts_until_it_has_ended() -> None:
    town = Town(user_messages=20)
    stand = town.stand
    assert [town.sends("alice") for _ in range(2)] == [QUEUED, QUEUED]
    bob = stand.bridge("bob")
    deliveries = stand.heard_of(bob, Deliver)
    assert town.shares == {BOB: {ALICE: (2, 8)}}
    stand.say(bob, Confirm(deliveries[-1].serial))
    assert town.shares == {}


def test_expired_messages_free_the_share() -> None:
    town = Town(user_messages=20, ttl_s=10.0)
    assert [town.sends("alice", ttl_s=2), town.sends("alice"), town.sends("alice")] == [QUEUED, QUEUED, FULL]
    for _ in range(6):
        town.stand.wait(0.5)
        town.stand.beat()
    assert town.shares == {BOB: {ALICE: (1, 4)}}


def test_shares_hold_after_a_restart(store: Any) -> None:
    town = Town(store, user_messages=30)
    assert [town.sends("alice") for _ in range(2)] == [QUEUED, QUEUED]
    assert [town.relays("s2") for _ in range(3)] == ["queued"] * 3
    before = town.shares
    assert before == {BOB: {ALICE: (2, 8), "server/s2": (3, 12)}}
    town.stand.restart()
    assert town.shares == before
    town.opens()
    town.stand.wait(0.5)
    assert [town.sends("alice") for _ in range(2)] == [QUEUED, FULL]
    assert (town.relays("s2"), town.relays("s3")) == ("failed:mailbox-full", "queued")
    assert town.sends("carol") == QUEUED
    bob = town.stand.bridge("bob")
    for delivery in town.stand.heard_of(bob, Deliver):
        town.stand.say(bob, Confirm(delivery.serial))
    assert town.shares == {}


def test_server_is_one_sender_whatever_it_says_of_its_users() -> None:
    town = Town(user_messages=20)
    assert [town.relays("s2") for _ in range(3)] == ["queued", "queued", "failed:mailbox-full"]
    assert [town.relays("s3") for _ in range(3)] == ["queued", "queued", "failed:mailbox-full"]
    assert town.sends("alice") == QUEUED
    assert town.shares == {BOB: {"server/s2": (2, 8), "server/s3": (2, 8), ALICE: (1, 4)}}


def test_user_and_server_of_one_name_have_a_share_each() -> None:
    assert sharer_of(BOB, "s2", None) != sharer_of(BOB, None, "s2")
    assert sharer_of(mailbox("server/s2"), None, "s2") is not None
    assert sharer_of(mailbox("x/ü\ud800"), "x/ü\ud800", None) is None


def test_own_mailbox_has_no_shares() -> None:
    town = Town(user_messages=20)
    town.stand.say(town.bridges["carol"], Goodbye(None))
    assert [town.sends("alice", "carol")["carol"] for _ in range(3)] == ["queued", "queued", "failed:mailbox-full"]
    carol = town.stand.bridge("carol", name="again")
    deliveries = town.stand.heard_of(carol, Deliver)
    tokens = [town.stand.submit(carol, "chat") for _ in range(5)]
    requests = [request for request in town.stand.heard(town.chat) if hasattr(request, "token")]
    town.stand.say(carol, Close(1))
    for request in requests:
        town.stand.reply(town.chat, cast(Any, request).token, clients("carol"))
    reports = [each for each in town.stand.heard(carol) if isinstance(each, Report)]
    assert [report.recipients for report in reports] == [{"carol": "queued"}] * len(tokens)
    assert len(deliveries) == 2
    assert town.shares == {CAROL: {ALICE: (2, 8)}}


@pytest.mark.parametrize("bounds", [{"messages": 6}, {"total_bytes": 24}])
def test_handlers_emit_no_more_into_the_store_than_is_left_by_all(bounds: dict[str, Any], store: Any) -> None:
    """A handler with a key for one type filled the store for everybody."""
    town = Town(store, **bounds)
    assert [town.emits() for _ in range(4)] == ["queued", "queued", "queued", "failed:storage-full"]
    town.stand.restart()
    town.opens()
    town.stand.wait(0.5)
    assert town.shares == {BOB: {HANDLERS: (3, 12)}}
    assert [town.emits(), town.sends("alice")["bob"]] == ["failed:storage-full", "queued"]


@pytest.mark.parametrize("bounds", [{"server_messages": 6}, {"server_bytes": 24}])
def test_handlers_emit_no_more_to_a_server_that_is_away_than_is_left_by_all(bounds: dict[str, Any]) -> None:
    town = Town(**bounds)
    outcomes = [town.emits(servers("s2", body=b'"hi"')) for _ in range(4)]
    assert outcomes == ["queued", "queued", "queued", "failed:overloaded"]
    assert town.sends_on("alice") == {"s2": "queued"}


def test_emissions_have_no_share_of_a_mailbox_and_late_outcomes_none() -> None:
    town = Town(user_messages=20)
    assert [town.emits() for _ in range(5)] == ["queued"] * 5
    assert town.shares == {BOB: {HANDLERS: (5, 20)}}
    for _ in range(2):
        assert town.sends("alice", outcome=True) == QUEUED
    assert town.shares == {BOB: {HANDLERS: (5, 20), ALICE: (2, 8)}}
    town.stand.say(town.bridges["alice"], Goodbye(None))
    bob = town.stand.bridge("bob")
    town.stand.say(bob, Confirm(town.stand.heard_of(bob, Deliver)[-1].serial))
    assert len(town.stand.mail("alice")) == 2
    assert town.shares == {}


def test_message_that_could_not_be_written_takes_no_share() -> None:
    town = Town(user_messages=20)
    town.stand.store.full = True
    assert town.sends("alice") == {"bob": "failed:storage-full"}
    town.stand.store.full = False
    assert town.shares == {}
    town.stand.wait(1.0)
    assert [town.sends("alice") for _ in range(3)] == [QUEUED, QUEUED, FULL]


def test_removed_account_frees_its_shares() -> None:
    town = Town(user_messages=20)
    assert [town.sends("alice"), town.sends("carol")] == [QUEUED, QUEUED]
    town.stand.take(town.stand.router.on_account_removed("bob", town.stand.now))
    assert town.shares == {}


def test_lost_messages_free_the_share_and_those_in_flight_keep_it() -> None:
    shares = Shares(Bounds(user_messages=20), {BOB: {ALICE: (2, 8), CAROL: (1, 1)}})
    shares.recount(BOB, [
        Record(1, None, 4, State.INFLIGHT, sharer=ALICE),
        Record(2, None, 4, State.ENDED, sharer=CAROL),
        Record(3, None, 4, State.WRITING),
    ])  # fmt: skip
    assert shares.inspect() == {BOB: {ALICE: (1, 4)}}


def test_shares_of_a_store_with_a_damaged_meta_are_those_of_the_others(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    names = [("m1", None, {"peer": "s2"}), ("m2", None, {"peer": "s2"}), ("m3", "x/ü\ud800", {}), ("m4", None, {})]
    with closing(SqliteStore(path)) as store:
        store.open()
        entries = [
            Entry(number, BOB, id_, "bob", "chat", b"1", sender, 1e9, cast(Any, meta))
            for number, (id_, sender, meta) in enumerate(names, 1)
        ]
        assert store.commit([Enqueue(entry) for entry in entries]).ok
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE entry SET meta = x'c1' WHERE number = 2")
        db.commit()
    with closing(SqliteStore(path)) as store:
        assert store.open().shares == {BOB: {"server/s2": (1, 1), mailbox("x/ü\ud800"): (1, 1), HANDLERS: (2, 2)}}
