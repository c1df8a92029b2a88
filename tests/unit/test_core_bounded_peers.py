"""Bounds on what another server can make this one keep, and the recipients of its outcomes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bester.broker.core.effects import Effects, Link
from bester.broker.core.remote_notes import RemoteNotes
from bester.broker.core.settings import Route, Settings
from bester.broker.store import Store
from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_requests import (
    Bounds,
    Disown,
    Entry,
    Fetch,
    FindOutcomes,
    ForgetRemote,
    RecordRemote,
    SaveHeld,
    mailbox,
)
from bester.broker.wire.messages import Ask, Deliver, Relay, Relayed, Reply, Report, Request
from tests.unit.core_stand import Stand, clients, servers
from tests.unit.store_stand import KINDS, made

S2, S3 = Link("server", b"s2"), Link("server", b"s3")
ROUTES = {name: Route(name, fabric=f"ipc:///{name}") for name in ("s2", "s3")}


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    found = made(request.param, tmp_path, request)
    found.open()
    yield found
    found.close()


def note(number: int, queue: str, sender: str = "ann") -> RecordRemote:
    entry = Entry(number, queue, f"s1/b/{number}.0.0", "s2", "chat", b"", sender, 1e9, {"left": 1})
    return RecordRemote(entry, "queued")


def test_oldest_notes_of_one_server_are_forgotten(store: Store) -> None:
    store.commit([note(number, f"lane/{('s2', 's20', 's2')[number % 3]}/t{number % 5}") for number in range(1, 31)])
    assert store.open().remote == {"s2": 20, "s20": 10}
    store.commit([ForgetRemote("s2", 7)])
    assert store.open().remote == {"s2": 7, "s20": 10}
    latest = [number for number in range(1, 31) if number % 3 != 1][-7:]
    kept = [number for number in range(1, 31) if store.read(FindOutcomes(f"s1/b/{number}", "ann"))]
    assert kept == sorted([*latest, *(number for number in range(1, 31) if number % 3 == 1)])


def test_held_servers_and_disowned_messages_survive(store: Store) -> None:
    store.commit([note(5, "lane/s2/t"), note(9, "lane/s2/t"), SaveHeld("s2", True), SaveHeld("s3", True)])
    store.commit([SaveHeld("s3", False), Disown("ann", 5, 12.5)])
    snapshot = store.open()
    assert (snapshot.held, dict(snapshot.disowned)) == (frozenset({"s2"}), {"ann": (5, 12.5)})
    assert store.read(FindOutcomes("s1/b/5", "ann")) == {}
    assert store.read(FindOutcomes("s1/b/9", "ann")) == {"s2": "queued"}


def test_notes_are_counted_and_forgotten_in_groups() -> None:
    out = Effects()
    notes = RemoteNotes(out, {"s2": 31}, 32)
    notes.add("s2")
    assert out.writes == []
    notes.add("s2")
    assert (out.writes, notes.counts, notes.forgotten) == ([ForgetRemote("s2", 30)], {"s2": 30}, 3)
    for _ in range(40):
        notes.remove("s2")
    assert notes.counts == {}


def test_server_that_answers_queued_for_ever_is_bounded() -> None:
    stand = Stand(Settings("s1", open_accounts=True, routes=ROUTES, bounds=Bounds(server_outcomes=32)))
    stand.take(stand.router.on_server_ready("s2", stand.now))
    bridge, worker = stand.bridge("ann"), stand.handler("chat")
    for _ in range(100):
        stand.submit(bridge, "chat")
        stand.say(worker, Reply(stand.one(worker, Request).token, 0, [servers("s2")]))
        stand.say(S2, Relayed(stand.one(S2, Relay).token, "queued"))
        assert stand.one(bridge, Report).recipients == {"s2": "queued"}
    assert stand.store.inspect().remote["s2"] <= 32
    assert stand.state.notes["s2"] <= 32


def test_listed_server_cannot_forge_an_id_of_a_third() -> None:
    """The forged id comes first; the third server's own message is no duplicate of it."""
    stand = Stand(Settings("s1", routes=ROUTES), accounts=frozenset({"bob"}))
    worker, two, three = stand.handler("chat"), stand.server("s2"), stand.server("s3")
    for link, body in ((two, b'"forged"'), (three, b'"real"')):
        stand.relay(link, "chat", id="s3/b-1/7", root="s3/b-1/7", lane=["e", 1, 0])
        stand.say(worker, Reply(stand.one(worker, Request).token, 0, [clients("bob", body=body)]))
        assert stand.one(link, Relayed).outcome == "queued"
    assert stand.mail("bob") == [b'"forged"', b'"real"']
    assert len({entry.id for entry in stand.kept(mailbox("bob"))}) == 2


class TestNewAccountOfAnOldName:
    def removed(self, stand: Stand) -> None:
        stand.take(stand.router.on_account_removed("ann", stand.now))

    def stand(self) -> Stand:
        return Stand(Settings("s1", routes=ROUTES), accounts=frozenset({"ann", "bob"}))

    def test_outcome_is_not_pushed(self) -> None:
        stand = self.stand()
        bridge, worker = stand.bridge("ann"), stand.handler("chat")
        stand.submit(bridge, "chat", outcome=True)
        stand.answer(worker, clients("bob"))
        assert stand.one(bridge, Report).recipients == {"bob": "queued"}
        self.removed(stand)
        stand.heard(bridge)
        later = stand.bridge("bob", "ann")
        assert stand.deliver(later).type == "chat"
        assert stand.heard_of(later, Deliver) == []
        assert stand.mail("ann") == []

    def test_outcome_cannot_be_asked_for(self) -> None:
        stand = self.stand()
        bridge, worker = stand.bridge("ann"), stand.handler("chat")
        stand.submit(bridge, "chat")
        stand.answer(worker, clients("bob"))
        message = stand.one(bridge, Report).message
        self.removed(stand)
        later = stand.bridge("ann")
        stand.submit(later, "chat")
        stand.answer(worker, clients("bob"))
        own = stand.one(later, Report).message
        assert stand.ask(later, "outcome", [1, message]).value is None
        assert stand.ask(later, "outcome", [1, own]).value == {"bob": "queued"}

    def test_message_that_a_handler_holds_meanwhile(self) -> None:
        stand = self.stand()
        bridge, worker = stand.bridge("ann"), stand.handler("chat", credit=1)
        for _ in range(3):
            stand.submit(bridge, "chat", outcome=True)
        self.removed(stand)
        for _ in range(3):
            stand.answer(worker, clients("bob"))
        assert {entry.sender for entry in stand.kept(mailbox("bob"))} == {None}

    def test_dedup_key_of_the_old_one_is_free(self) -> None:
        stand = self.stand()
        bridge, worker = stand.bridge("ann"), stand.handler("chat")
        stand.submit(bridge, "chat", dedup="1")
        stand.answer(worker)
        self.removed(stand)
        later = stand.bridge("ann")
        stand.submit(later, "chat", dedup="1")
        assert stand.request(worker)

    def test_dead_letter_is_replayed_for_nobody(self) -> None:
        stand = self.stand()
        bridge, worker = stand.bridge("ann"), stand.handler("chat")
        stand.submit(bridge, "chat", outcome=True)
        stand.wait(40.0)
        assert [letter.reason for letter in stand.dead()] == ["timeout"]
        self.removed(stand)
        stand.say(stand.join("operator", "o"), Ask(1, "deadReplay", {}))
        stand.heard(worker)
        again = stand.handler("chat", name="h2")
        stand.wait(1.0)
        for request in stand.heard_of(again, Request):
            stand.say(again, Reply(request.token, 0, [clients("bob")]))
        assert {entry.sender for entry in stand.kept(mailbox("bob"))} <= {None}


def test_damaged_message_is_set_aside_and_the_mailbox_goes_on(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = SqliteStore(tmp_path_factory.mktemp("s") / "store.db")
    stand = Stand(Settings("s1"), accounts=frozenset({"bob"}), store=store)  # type: ignore[arg-type]  # a store as well
    bridge, worker = stand.bridge("ann"), stand.handler("chat")
    for number in range(3):
        stand.submit(bridge, "chat")
        stand.answer(worker, clients("bob", body=b"%d" % number))
    second = stand.kept(mailbox("bob"))[1]
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("UPDATE entry SET meta = x'c1' WHERE number = ?", (second.number,))
    later = stand.bridge("bob")
    assert [deliver.body for deliver in stand.heard_of(later, Deliver)] == [b"0", b"2"]
    (letter,) = stand.dead()
    assert (letter.reason, letter.body, letter.type) == ("malformed", b"1", "chat")
    assert [notice.fields["number"] for notice in stand.notices if notice.event == "damaged"] == [second.number]
    assert store.read(Fetch(mailbox("bob"), 0, 10, 10**9))[0].number != second.number
    store.close()
