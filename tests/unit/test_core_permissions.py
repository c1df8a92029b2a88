"""Policy on every path of the core: users, commands of handlers, types to and from servers; each refusal is told and
logged."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core.effects import Link
from bester.broker.core.settings import Route, Settings
from bester.broker.store_requests import lane
from bester.broker.wire.messages import Ask, Command, Emit, Error, Outcome, Relay, Relayed, Reply, Report, Request
from tests.unit.core_stand import Stand, clients, handler, servers

SETTINGS = Settings(
    "s1",
    open_accounts=True,
    type_users={"chat": frozenset({"ann"})},
    type_commands={"chat": frozenset({"sendClients"})},
    routes={
        "s2": Route("s2", fabric="ipc:///s2", accept_types=frozenset({"chat"}), send_types=frozenset({"chat"})),
        "s3": Route("s3", fabric="ipc:///s3", accept_types=frozenset()),
    },
)
S2 = Link("server", b"s2")


@pytest.fixture
def stand() -> Stand:
    return Stand(SETTINGS)


def logged(stand: Stand, event: str) -> list[dict[str, object]]:
    return [notice.fields for notice in stand.notices if notice.event == event]


@pytest.mark.parametrize(("user", "reason"), [(1, None), (2, "not-allowed")])
@pytest.mark.parametrize("options", [{}, {"ttl_s": 5.0}, {"attempt": 2}])
def test_user_sends_the_types_that_are_open_to_them(
    stand: Stand, user: int, reason: str | None, options: dict[str, Any]
) -> None:
    bridge, worker = stand.bridge("ann", "bob"), stand.handler("chat", "mail")
    for type_ in ("chat", "mail"):
        stand.submit(bridge, type_, session=user, **options)
        told = reason if type_ == "chat" else None
        if told is None:
            request = stand.one(worker, Request)
            stand.say(worker, Reply(request.token, 0, []))
        assert stand.heard_of(worker, Request) == []
        assert stand.one(bridge, Report).reason == told
    assert logged(stand, "message-refused") == [
        {"user": "bob", "type": "chat", "code": "not-allowed"} for _ in range(reason is not None)
    ]


def test_user_never_reaches_a_reserved_type(stand: Stand) -> None:
    bridge = stand.bridge("ann")
    stand.submit(bridge, "bester.auth")
    assert stand.one(bridge, Report).reason == "reserved"


@pytest.mark.parametrize("commands", [[handler("mail")], [clients("ann"), servers("s2")]])
def test_refused_commands_are_not_carried_out(stand: Stand, commands: list[Command]) -> None:
    bridge, worker = stand.bridge("ann"), stand.handler("chat")
    stand.submit(bridge, "chat")
    stand.say(worker, Reply(stand.one(worker, Request).token, 0, commands))
    assert stand.one(bridge, Report).reason == "not-allowed"
    error = stand.one(worker, Error)
    assert (error.code, error.op) == ("not-allowed", 11)
    assert [fields["code"] for fields in logged(stand, "refused")] == ["not-allowed"]
    stand.say(worker, Emit(7, "chat", commands))
    assert (stand.one(worker, Error).code, stand.heard_of(worker, Outcome)) == ("not-allowed", [])


def test_type_that_may_not_be_sent_to_a_server(stand: Stand) -> None:
    stand.take(stand.router.on_server_ready("s2", stand.now))
    bridge, worker = stand.bridge("ann"), stand.handler("mail")
    stand.submit(bridge, "mail")
    stand.say(worker, Reply(stand.one(worker, Request).token, 0, [servers("s2"), servers("s2", as_type="chat")]))
    relay = stand.one(S2, Relay)
    assert relay.type == "chat"
    stand.say(S2, Relayed(relay.token, "delivered"))
    report = stand.one(bridge, Report)
    assert (report.reason, report.recipients) == ("not-allowed", {"s2": "failed:not-allowed"})
    assert logged(stand, "send-refused") == [{"server": "s2", "type": "mail", "code": "not-allowed", "handler": "mail"}]


def test_queued_message_of_a_type_that_is_no_longer_sent_becomes_a_dead_letter() -> None:
    routes = {"s2": Route("s2", fabric="ipc:///s2")}
    stand = Stand(Settings("s1", open_accounts=True, routes=routes))
    bridge, worker = stand.bridge("ann"), stand.handler("mail")
    for _ in range(3):
        stand.submit(bridge, "mail")
        stand.say(worker, Reply(stand.one(worker, Request).token, 0, [servers("s2")]))
    assert len(stand.kept(lane("s2", "mail"))) == 3
    stand.settings = SETTINGS
    stand.restart()
    stand.take(stand.router.on_server_ready("s2", stand.now))
    assert stand.heard_of(S2, Relay) == []
    assert stand.kept(lane("s2", "mail")) == []
    letters = stand.dead()
    assert [letter.reason for letter in letters] == ["not-allowed"] * 3
    operator = stand.join("operator", "o")
    stand.say(operator, Ask(1, "deadReplay", {}))
    assert stand.kept(lane("s2", "mail")) == []
    assert len(stand.dead()) == 3


@pytest.mark.parametrize(
    ("name", "type_", "outcome"),
    [("s2", "chat", None), ("s2", "mail", "not-allowed"), ("s3", "chat", "not-allowed"), ("s2", "dummy", "reserved")],
)
def test_server_sends_nothing_that_is_not_listed(stand: Stand, name: str, type_: str, outcome: str | None) -> None:
    worker, link = stand.handler("chat", "mail"), stand.server(name)
    stand.say(link, Relay(1, type_, b"1", {"id": f"{name}/1", "path": []}))
    if outcome is None:
        assert stand.one(worker, Request).meta["peer"] == name
    else:
        assert stand.one(link, Relayed).outcome == f"failed:{outcome}"
        assert logged(stand, "message-refused") == [{"server": name, "type": type_, "code": outcome}]


def test_path_that_names_this_server_counts(stand: Stand) -> None:
    worker, link = stand.handler("chat"), stand.server("s2")
    stand.say(link, Relay(1, "chat", b"1", {"path": ["s1/chat", "s2/chat"] * 8}))
    assert stand.one(link, Relayed).outcome == "failed:too-many-hops"
    stand.say(link, Relay(2, "chat", b"1", {"path": ["s1/chat"] * 15}))
    assert stand.one(worker, Request).meta["path"] == ["s1/chat"] * 15
