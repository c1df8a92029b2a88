"""State that a party can make grow is bounded: above a bound the oldest is forgotten, or the party refused."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core.directory import Directory
from bester.broker.core.effects import Link
from bester.broker.core.settings import Limits, Route, Settings
from bester.broker.store.memory import MemoryStore
from bester.broker.wire.messages import (
    MAX_TYPE,
    MAX_USER,
    Close,
    Command,
    Confirm,
    Goodbye,
    Hello,
    LoggedIn,
    Login,
    Open,
    Relayed,
    Report,
    Request,
    Submit,
)
from tests.fuzz.census import LENGTH, census
from tests.unit.core_stand import Stand, clients, handler, servers
from tests.world.disks import Disk

HERE = Link("ipc", b"h")


def town(limits: Limits, users: frozenset[str] = frozenset({"alice", "bob"})) -> Stand:
    return Stand(Settings("s1", limits=limits), accounts=users)


# --- sessions of a bridge ---


def test_sessions_of_a_bridge_are_bounded() -> None:
    directory = Directory(max_sessions=2)
    assert [directory.open(HERE, number, "alice") for number in (1, 2, 3, 2, 1)] == [True, True, False, True, True]
    assert directory.places("alice") == {HERE: {1: None, 2: None}}
    assert directory.open(HERE, 2, "bob")  # a session that changes hands takes no other place
    directory.close(HERE, 1)
    assert directory.open(HERE, 3, "carol")
    assert directory.open(Link("ipc", b"other"), 1, "carol")


@pytest.mark.parametrize(("length", "taken"), [(MAX_USER, True), (MAX_USER + 1, False), (100_000, False)])
def test_no_user_has_a_longer_name_than_an_account_may_have(length: int, taken: bool) -> None:
    stand = town(Limits())
    bridge = stand.bridge("alice")
    stand.say(bridge, Open(2, "x" * length))
    assert stand.heard_of(bridge, Close) == ([] if taken else [Close(2)])
    assert (stand.ask(bridge, "isClient", "x" * length).value is True) is taken


def test_a_session_above_the_bound_is_closed_and_a_login_refused() -> None:
    stand = town(Limits(max_sessions=2))
    bridge = stand.bridge("alice", "bob")
    stand.say(bridge, Open(3, "carol"))
    assert stand.one(bridge, Close) == Close(3)
    stand.say(bridge, Login(4, "bob", "p", "10.0.0.9"))
    (verify,) = stand.verifies
    stand.take(stand.router.on_verified(verify.link, verify.session, verify.user, None, stand.now, 1.0))
    answer = stand.one(bridge, LoggedIn)
    assert (answer.session, answer.status, answer.reason) == (4, 1, "overloaded")
    assert stand.state.reached == {"max_sessions": 1}
    assert stand.ask(bridge, "listClients").value == ["alice", "bob"]
    stand.say(bridge, Close(1))
    stand.say(bridge, Open(5, "carol"))
    assert stand.heard_of(bridge, Close) == []


# --- lives of bridges ---


@pytest.mark.parametrize("epoch", ["x" * 65, "x" * 100_000, "a\nb", "\x00", "\x1b[31m", "\ud800", "", 7, None, ["x"]])
def test_invalid_epoch_is_replaced_by_one_of_the_brokers_own(epoch: object) -> None:
    stand = town(Limits())
    bridge = stand.join("bridge", "b", {"epoch": epoch})
    stand.say(bridge, Open(1, "alice"))
    handler = stand.handler("chat")
    stand.submit(bridge, "chat")
    request = stand.request(handler)
    assert request.meta["id"].startswith("s1/b-e.1/")


class Life:
    """A bridge in one life, with alice's session; it may come back on another link."""

    def __init__(self, stand: Stand, epoch: str) -> None:
        self.stand, self.epoch = stand, epoch

    def comes(self) -> None:
        self.link = self.stand.join("bridge", "b", {"epoch": self.epoch})
        self.stand.say(self.link, Open(1, "alice"))

    def goes(self) -> None:
        self.stand.say(self.link, Goodbye(None))
        del self.stand.alive[self.link]
        self.stand.heard(self.link)

    def submits(self, token: int, **meta: Any) -> None:
        self.stand.say(self.link, Submit(token, 1, "chat", b"1", meta))


def test_bridge_that_has_been_gone_longest_is_forgotten() -> None:
    stand = town(Limits(max_resumes=2))
    chat = stand.handler("chat")
    lives = [Life(stand, epoch) for epoch in "abc"]
    for life in lives:
        life.comes()
        life.submits(1)
        stand.answer(chat)
        life.goes()
    assert stand.state.reached == {"max_resumes": 1}
    for life in (lives[1], lives[2]):  # unacknowledged reports of these lives are sent again
        life.comes()
        life.submits(1, attempt=2)
        assert stand.one(life.link, Report).token == 1
        assert stand.heard_of(chat, Request) == []
    lives[0].comes()  # the first life is forgotten: its message is processed again, marked
    lives[0].submits(1, attempt=2)
    assert stand.answer(chat).meta["attempt"] == 2


def test_linked_bridges_are_never_forgotten() -> None:
    stand = town(Limits(max_resumes=1))
    chat = stand.handler("chat")
    lives = [Life(stand, f"x{number}") for number in range(5)]
    for life in lives:
        life.comes()
        life.submits(1)
        stand.answer(chat)
    for attempt in (2, 3):
        for life in lives:
            life.goes()
            life.comes()
            life.submits(1, attempt=attempt)
    assert stand.heard_of(chat, Request) == []


@pytest.mark.parametrize("relinks", [False, True])
def test_a_bridge_that_counts_no_reports_has_the_oldest_forgotten(relinks: bool) -> None:
    stand = town(Limits(max_unacked=3))
    chat = stand.handler("chat")
    life = Life(stand, "x")
    life.comes()
    for token in range(1, 7):
        life.submits(token)
        stand.answer(chat)
        if relinks:
            life.goes()
            life.comes()
    kept = {
        way: size for way, size in census(stand.router, (Settings, MemoryStore, Disk)).items() if way.endswith("._sent")
    }
    assert set(kept.values()) == {0 if relinks else 3}
    assert stand.state.reached == {"max_unacked": 3}
    life.goes()
    life.comes()
    for token in range(1, 7):
        life.submits(token, attempt=2)
    assert [report.token for report in stand.heard_of(life.link, Report)] == [4, 5, 6]
    assert len(stand.heard_of(chat, Request)) == 3


def test_a_bridge_that_counts_its_reports_loses_none_however_many_there_are() -> None:
    stand = town(Limits(max_unacked=3))
    chat = stand.handler("chat")
    life = Life(stand, "x")
    life.comes()
    for token in range(1, 10):
        life.submits(token)
        stand.answer(chat)
        if token % 2:
            stand.say(life.link, Confirm(0, reports=token))
    life.submits(10)
    stand.answer(chat)
    life.goes()
    life.comes()
    life.submits(10, attempt=2)
    assert [report.token for report in stand.heard_of(life.link, Report)] == [10]
    assert stand.heard_of(chat, Request) == []


# --- types ---


def test_ordered_types_without_a_handler_make_room_for_served_ones() -> None:
    stand = town(Limits(max_types=3))
    bridge = stand.bridge("alice")
    fickle = stand.handler("t0", order={"t0": "user"})
    for number in range(1, 40):
        stand.say(fickle, Hello(1, "handler", "h", {"types": [f"t{number}"], "order": {f"t{number}": "user"}}))
    stand.heard(fickle)
    crew = [stand.handler("kept", credit=1, order={"kept": "user"}) for _ in range(2)]
    for _ in range(2):
        stand.submit(bridge, "kept")
    assert sorted(len(stand.heard_of(worker, Request)) for worker in crew) == [0, 1]  # the second waits for the first


def test_an_order_that_is_served_or_waited_for_is_not_forgotten() -> None:
    stand = town(Limits(max_types=2))
    bridge = stand.bridge("alice")
    crew = [stand.handler("kept", credit=1, order={"kept": "user"}) for _ in range(2)]
    fickle = stand.handler("t0", order={"t0": "user"})
    for number in range(1, 40):
        stand.say(fickle, Hello(1, "handler", "h", {"types": [f"t{number}"], "order": {f"t{number}": "user"}}))
    for _ in range(2):
        stand.submit(bridge, "kept")
    assert sorted(len(stand.heard_of(worker, Request)) for worker in crew) == [0, 1]


def test_handler_that_keeps_changing_its_types_leaves_no_state() -> None:
    stand = town(Limits(max_types=3))
    bridge = stand.bridge("alice")
    fickle = stand.handler("t0")
    for number in range(1, 200):
        stand.say(fickle, Hello(1, "handler", "h", {"types": [f"t{number}"]}))
    sizes = census(stand.router, (Settings, MemoryStore, Disk))
    assert [way for way, size in sizes.items() if size >= 100 and not way.endswith(LENGTH)] == []
    stand.heard(fickle)
    stand.submit(bridge, "t199")  # and the type served now is served
    assert stand.request(fickle).type == "t199"


@pytest.mark.parametrize("length", [MAX_TYPE + 1, 5_000, 100_000])
def test_a_type_that_no_handler_can_have_is_not_remembered(length: int) -> None:
    stand = Stand(Settings("s1", routes={"s2": Route("s2", fabric="ipc:///s2")}))
    server = stand.server("s2")
    token = stand.relay(server, "x" * length, id="s2/e-1/1", path=["y" * length])
    assert stand.one(server, Relayed) == Relayed(token, "failed:unknown-type")
    sizes = census(stand.router, (Settings, MemoryStore, Disk))
    assert [way for way, size in sizes.items() if size >= length] == []
    stand.handler("x" * MAX_TYPE)
    stand.relay(server, "x" * MAX_TYPE, id="s2/e-1/2")
    assert stand.heard_of(server, Relayed) == []


LONG = "x" * 100_000


@pytest.mark.parametrize("open_accounts", [True, False])
@pytest.mark.parametrize(
    "command",
    [
        clients(LONG),
        clients("bob", LONG),
        servers(LONG),
        servers(f"{LONG}:2223"),
        servers("s2", as_type=LONG),
        handler(LONG),
    ],
)
def test_a_name_that_a_reply_makes_up_is_not_remembered(command: Command, open_accounts: bool) -> None:
    """Whoever may choose a recipient may choose a megabyte: the trace has room for thousands of steps."""
    settings = Settings(
        "s1", routes={"s2": Route("s2", fabric="ipc:///s2")}, open_accounts=open_accounts, accept="open"
    )
    stand = Stand(settings, accounts=frozenset({"alice", "bob"}))
    bridge, worker = stand.bridge("alice"), stand.handler("echo")
    stand.server("s2")
    stand.submit(bridge, "echo")
    stand.answer(worker, command)
    stand.emit(worker, "echo", command)
    stand.wait(1.0)
    stand.inbox.clear()
    stand.notices.clear()
    sizes = census(stand.router, (Settings, MemoryStore, Disk))
    reports = "_peers.resumes[]._sent"  # until the bridge has counted them
    assert [way for way, size in sizes.items() if size >= len(LONG) and not way.startswith(reports)] == []
