"""Results for other servers, messages from other servers, and emissions of handlers."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core.settings import Route, Settings
from bester.broker.store_requests import NUMBERS_A_LIFE, Bounds, lane
from bester.broker.wire.messages import (
    HOP_LIMIT,
    Command,
    Deliver,
    Error,
    Forward,
    Forwarded,
    Goodbye,
    Hello,
    Outcome,
    Relay,
    Relayed,
    Report,
)
from tests.unit.core_federated import S2, federated, finished
from tests.unit.core_stand import Stand, clients, handler, servers

# --- to other servers -------------------------------------------------------------------------------------------------


def test_a_relay_carries_what_the_next_server_must_know() -> None:
    stand = federated()
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.submit(bridge, "one")
    request = stand.answer(one, servers("s2", body=b"0.1", as_type="chat"))
    relay = stand.one(S2, Relay)
    id_ = request.meta["id"]
    number = relay.meta["lane"][1]
    assert relay[1:] == (
        "chat", b"0.1",
        {"id": f"{id_}.0.0", "root": id_, "origin": "s1", "path": ["s1/one"], "lane": ["store", number, number]},
    )  # fmt: skip
    assert number >= NUMBERS_A_LIFE
    stand.relayed("s2", relay.token, "delivered")
    assert stand.report(bridge).status == 0
    finished(stand)


def test_send_servers_without_a_type_uses_the_handlers() -> None:
    stand = federated()
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.submit(bridge, "one")
    stand.answer(one, servers("s2"))
    assert stand.one(S2, Relay).type == "one"


@pytest.mark.parametrize("target", ["s3", "10.0.0.3:2223"])
def test_a_native_server_is_reached_through_a_bridge_by_name_or_address(target: str) -> None:
    stand = federated()
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.submit(bridge, "one")
    stand.answer(one, servers(target))
    forward = stand.one(bridge, Forward)
    assert forward.address == "10.0.0.3:2223"
    stand.say(bridge, Forwarded(forward.token, "sent", {"reported": True}))
    report = stand.report(bridge)
    assert (report.status, report.recipients) == (0, {target: "sent"})
    finished(stand)


@pytest.mark.parametrize(
    ("target", "accept", "code"),
    [
        ("nowhere", "open", "unreachable"),
        ("10.9.9.9:1", "listed", "not-allowed"),
        ("10.9.9.9:1", "none", "not-allowed"),
    ],
)
def test_a_server_that_is_not_configured(target: str, accept: str, code: str) -> None:
    stand = federated(accept)
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.submit(bridge, "one")
    stand.answer(one, servers(target))
    assert stand.report(bridge).recipients == {target: f"failed:{code}"}
    finished(stand)


def test_unlisted_address_is_tried_where_accept_is_open() -> None:
    stand = federated("open")
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.submit(bridge, "one")
    stand.answer(one, servers("10.9.9.9:1"))
    forward = stand.one(bridge, Forward)
    stand.say(bridge, Forwarded(forward.token, "failed:unreachable"))
    assert stand.report(bridge).recipients == {"10.9.9.9:1": "failed:unreachable"}


def test_unreachable_server_does_not_affect_another() -> None:
    stand = federated()
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.take(stand.router.on_server_lost("s2", "nothing heard", stand.now))
    stand.submit(bridge, "one")
    stand.answer(one, servers("s2", "s3"))
    forward = stand.one(bridge, Forward)
    stand.say(bridge, Forwarded(forward.token, "delivered"))
    report = stand.report(bridge)
    assert (report.status, report.recipients) == (0, {"s2": "queued", "s3": "delivered"})
    assert [entry.target for entry in stand.kept(lane("s2", "one"))] == ["s2"]
    finished(stand)


def test_own_name_as_a_target_is_this_server() -> None:
    stand = federated()
    bridge, one, two = stand.bridge("alice"), stand.handler("one"), stand.handler("two")
    stand.submit(bridge, "one")
    stand.answer(one, servers("s1", as_type="two"))
    request = stand.answer(two)
    assert (request.meta["path"], request.user) == (["s1/one"], None)
    assert (request.meta["scope"], request.meta["peer"]) == ("server", "s1")
    assert stand.report(bridge).status == 0
    finished(stand)


def test_relay_on_a_lost_link_is_queued_and_its_answer_comes_too_late() -> None:
    stand = federated()
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.submit(bridge, "one")
    stand.answer(one, servers("s2"))
    relay = stand.one(S2, Relay)
    stand.take(stand.router.on_server_lost("s2", "nothing heard", stand.now))
    assert stand.report(bridge).recipients == {"s2": "queued"}
    stand.relayed("s2", relay.token, "delivered")
    assert [entry.id for entry in stand.kept(lane("s2", "one"))] == [relay.meta["id"]]
    finished(stand)


def test_unsendable_relay_is_queued() -> None:
    stand = federated()
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.submit(bridge, "one")
    stand.answer(one, servers("s2"))
    relay = stand.one(S2, Relay)
    stand.take(stand.router.on_undeliverable(S2, relay, stand.now))
    assert stand.report(bridge).recipients == {"s2": "queued"}
    assert [entry.number for entry in stand.kept(lane("s2", "one"))] == [relay.meta["lane"][1]]
    finished(stand)


def test_a_relay_that_is_refused_ends_with_the_code_of_the_refusal() -> None:
    stand = federated()
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.submit(bridge, "one")
    stand.answer(one, servers("s2"))
    relay = stand.one(S2, Relay)
    stand.say(S2, Error("malformed", "too long", 30, relay.token))
    assert stand.report(bridge).recipients == {"s2": "failed:malformed"}
    stand.say(S2, Error("malformed", "too long", 30, relay.token))
    stand.say(S2, Error("hello-first", "who are you", None, None))
    finished(stand)


def test_unanswered_relay_is_queued_and_a_late_answer_ends_it() -> None:
    stand = federated()
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.submit(bridge, "one")
    stand.answer(one, servers("s2"))
    relay = stand.one(S2, Relay)
    stand.wait(4.5)
    assert stand.heard_of(bridge, Report) == []
    assert stand.kept(lane("s2", "one")) == []
    stand.wait(0.5)
    assert stand.report(bridge).recipients == {"s2": "queued"}
    assert [entry.id for entry in stand.kept(lane("s2", "one"))] == [relay.meta["id"]]
    stand.relayed("s2", relay.token, "delivered")
    assert stand.kept(lane("s2", "one")) == []
    stand.wait(120.0)
    assert stand.heard_of(S2, Relay) == []
    finished(stand)


def test_answer_on_another_link_is_ignored() -> None:
    stand = federated()
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.submit(bridge, "one")
    stand.answer(one, servers("s2"))
    relay = stand.one(S2, Relay)
    stand.relayed("s9", relay.token, "delivered")
    stand.say(bridge, Forwarded(relay.token, "delivered"))
    assert stand.heard_of(bridge, Report) == []
    stand.relayed("s2", relay.token, "nonsense")
    assert stand.report(bridge).recipients == {"s2": "failed:bad-reply"}
    finished(stand)


def test_relay_without_room_in_its_lane_is_queued_and_delays_no_other() -> None:
    stand = federated(max_lane=1)
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.submit(bridge, "one")
    stand.answer(one, servers("s2", "s2"), servers("s2", as_type="other"))
    relays = stand.heard_of(S2, Relay)
    assert [relay.type for relay in relays] == ["one", "other", "one"]
    assert [relay.meta["id"][-4:] for relay in relays] == [".0.0", ".1.0", ".0.1"]
    for relay in relays:
        stand.relayed("s2", relay.token, "delivered")
    assert stand.report(bridge).recipients == {"s2": "queued"}
    finished(stand)


def test_full_lane_to_an_unlisted_server_is_overloaded() -> None:
    stand = federated("open", max_lane=1)
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.submit(bridge, "one")
    stand.answer(one, servers("10.9.9.9:1", "10.9.9.9:1"))
    forward = stand.one(bridge, Forward)
    stand.say(bridge, Forwarded(forward.token, "delivered"))
    assert stand.report(bridge).recipients == {"10.9.9.9:1": "failed:overloaded"}
    finished(stand)


def test_forward_of_a_lost_bridge_is_queued_unless_to_an_unlisted_server() -> None:
    stand = federated("open")
    first, second = stand.bridge(), stand.bridge("alice")
    one = stand.handler("one")
    stand.submit(second, "one")
    stand.answer(one, servers("s3", "10.9.9.9:1"))
    forwards = stand.heard_of(first, Forward)
    assert [forward.address for forward in forwards] == ["10.0.0.3:2223", "10.9.9.9:1"]
    stand.say(first, Goodbye(None))
    assert stand.report(second).recipients == {"s3": "queued", "10.9.9.9:1": "failed:unreachable"}
    stand.wait(1.0)
    again = stand.one(second, Forward)
    assert (again.address, again.meta["id"]) == ("10.0.0.3:2223", forwards[0].meta["id"])
    assert (again.meta["lane"], again.meta["again"]) == (forwards[0].meta["lane"], True)
    stand.say(second, Forwarded(again.token, "delivered"))
    finished(stand)


def test_unlisted_server_that_does_not_answer_is_given_up() -> None:
    stand = federated("open", relay_s=20.0)
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.submit(bridge, "one")
    stand.answer(one, servers("10.9.9.9:1"))
    forward = stand.one(bridge, Forward)
    assert "lane" not in forward.meta
    stand.wait(19.5)
    assert stand.heard_of(bridge, Report) == []
    stand.wait(0.5)
    assert stand.report(bridge).recipients == {"10.9.9.9:1": "failed:unreachable"}
    stand.say(bridge, Forwarded(forward.token, "delivered"))
    assert stand.queued == (0, 0)
    finished(stand)


# --- from other servers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claimed", "known"),
    [("s2/b-1/7.0.0", "s2/b-1/7.0.0"), ("s9/b-1/7.0.0", "s9/b-1/7.0.0~s2"), ("s1/b-x1/3", "s2/s1/b-x1/3")],
)
def test_a_listed_servers_ids_and_origin_are_taken_over_and_ours_cannot_be_forged(claimed: str, known: str) -> None:
    stand = federated()
    peer, chat = stand.server("s2"), stand.handler("chat")
    token = stand.relay(peer, "chat", id=claimed, root="s9/b-1/7", origin="s9", path=["s9/x", "s2/y"])
    request = stand.answer(chat)
    assert request.user is None
    assert request.meta == {
        "id": known, "root": "s9/b-1/7", "origin": "s9", "peer": "s2", "scope": "server", "attempt": 1,
        "path": ["s9/x", "s2/y"],
    }  # fmt: skip
    assert stand.one(peer, Relayed) == Relayed(token, "delivered")
    finished(stand)


@pytest.mark.parametrize(
    "meta", [{}, {"id": "", "root": 5, "origin": None, "path": []}, {"id": "x" * 513, "root": [], "origin": {}}]
)
def test_claims_that_cannot_be_read_are_replaced(meta: dict[str, Any]) -> None:
    stand = federated()
    peer, chat = stand.server("s2"), stand.handler("chat")
    stand.relay(peer, "chat", **meta)
    request = stand.answer(chat)
    assert request.meta["id"] == request.meta["root"] == "s1/s2-e/1"
    assert request.meta["origin"] == "s2"


@pytest.mark.parametrize("path", ["s2/a", 5, ["s2/a", 5], [""], ["x"] * 17, [["s"]], {"a": 1}])
def test_undecodable_path_counts_as_too_long(path: object) -> None:
    stand = federated()
    peer = stand.server("s2")
    stand.handler("chat")
    stand.relay(peer, "chat", path=path)
    assert stand.one(peer, Relayed).outcome == "failed:too-many-hops"
    finished(stand)


def test_a_path_of_the_whole_budget_is_too_long_and_one_less_is_not() -> None:
    stand = federated()
    peer, chat = stand.server("s2"), stand.handler("chat")
    stand.relay(peer, "chat", path=["s2/a"] * HOP_LIMIT)
    assert stand.one(peer, Relayed).outcome == "failed:too-many-hops"
    stand.relay(peer, "chat", path=["s2/a"] * (HOP_LIMIT - 1))
    stand.answer(chat, servers("s2"))
    assert stand.one(peer, Relayed).outcome == "failed:too-many-hops"


def test_an_unlisted_servers_claims_count_for_nothing_but_its_path() -> None:
    stand = federated("open")
    peer, chat = stand.server("stranger"), stand.handler("chat")
    stand.relay(peer, "chat", id="s2/b-1/7", root="s2/b-1/7", origin="s2", path=["a/b"])
    request = stand.answer(chat)
    assert request.meta["id"] == request.meta["root"]
    assert request.meta["id"].startswith("s1/")
    assert (request.meta["origin"], request.meta["peer"], request.meta["path"]) == ("stranger", "stranger", ["a/b"])


def test_names_over_keyless_tcp_are_not_believed() -> None:
    stand = federated("open")
    peer, chat = stand.server("s2", door="tcp"), stand.handler("chat")
    stand.relay(peer, "chat", id="s2/b-1/7", root="s2/b-1/7", origin="s2", path=["a/b"])
    request = stand.answer(chat)
    assert request.meta["id"].startswith("s1/tcp-")
    assert (request.meta["origin"], request.meta["peer"]) == ("a server over tcp", "a server over tcp")


@pytest.mark.parametrize("host", ["10.0.0.2", "10.0.0.1", "unix"])
def test_stranger_at_an_address_by_which_a_server_is_named_is_not_that_server(host: str) -> None:
    """A handler sees the peer's name alone, and takes it for verified."""
    routes = {name: Route(name, fabric=f"tcp://{name}:2225") for name in ("10.0.0.2", "unix")}
    stand = Stand(Settings("10.0.0.1", open_accounts=True, accept="open", routes=routes))
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    for address, shown in ((host, f"a server at {host}"), ("10.0.0.9", "10.0.0.9")):
        stand.submit(bridge, "chat", session=None, scope="server", address=address)
        request = stand.answer(chat)
        assert (request.meta["peer"], request.meta["origin"]) == (shown, shown)


@pytest.mark.parametrize("body", [b"no JSON", b'"\xff"', b"[" * 65 + b"]" * 65, b""])
def test_relayed_message_is_checked_at_its_entry(body: bytes) -> None:
    stand = federated()
    peer = stand.server("s2")
    stand.handler("chat")
    stand.relay(peer, "chat", body=body)
    assert stand.one(peer, Relayed).outcome == "failed:malformed"
    finished(stand)


def test_message_entering_while_the_broker_drains_is_refused() -> None:
    stand = federated()
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.submit(bridge, "one")
    stand.router.drain()
    stand.submit(bridge, "one")
    report = stand.report(bridge)
    assert (report.status, report.reason) == (1, "overloaded")
    stand.answer(one)
    assert stand.report(bridge).status == 0
    finished(stand)


def test_lease_is_the_time_for_one_message() -> None:
    stand = federated()
    bridge, slow = stand.bridge("alice"), stand.handler("slow", lease_ms=60_000)
    stand.submit(bridge, "slow")
    stand.wait(50)
    stand.answer(slow)
    assert stand.report(bridge).status == 0
    finished(stand)


def test_hello_after_goodbye_keeps_messages_in_flight() -> None:
    stand = federated()
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.submit(bridge, "one")
    stand.say(one, Goodbye("never mind"))
    stand.say(one, Hello(1, "handler", "h", {"types": ["one"], "credit": 5}))
    assert stand.answer(one).meta["attempt"] == 1
    assert stand.report(bridge).status == 0
    finished(stand)


def test_a_type_this_server_may_not_send_is_refused() -> None:
    stand = federated()
    peer = stand.server("s2")
    stand.handler("mail")
    stand.relay(peer, "mail")
    assert stand.one(peer, Relayed).outcome == "failed:not-allowed"
    assert [n.fields["type"] for n in stand.notices if n.event == "message-refused"] == ["mail"]
    finished(stand)


def test_a_native_servers_message_ends_in_a_report() -> None:
    stand = federated()
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    token = stand.submit(bridge, "chat", session=None, scope="server", address="10.0.0.3", id="s3/x/1", origin="s9")
    request = stand.answer(chat)
    assert (request.user, request.meta["peer"], request.meta["origin"]) == (None, "s3", "s9")
    assert stand.report(bridge, token) == Report(token, 0, None, "s3/x/1", {})
    stand.submit(bridge, "chat", session=None, scope="server", address="10.9.9.9", server="s3")
    assert stand.report(bridge).reason == "not-allowed"
    finished(stand)


# --- of a handler's own initiative ------------------------------------------------------------------------------------


def test_an_emission_is_carried_out_and_answered() -> None:
    stand = Stand()
    bridge, clock = stand.bridge("alice"), stand.handler("clock")
    token = stand.emit(clock, "clock", clients("alice", "bob"))
    assert stand.heard_of(clock, Outcome) == []
    delivery = stand.deliver(bridge)
    assert (delivery.type, delivery.token, delivery.meta) == ("clock", None, {"origin": "s1"})
    assert stand.one(clock, Outcome) == Outcome(
        token, 1, {"alice": "delivered", "bob": "failed:not-connected"}, "not-connected"
    )
    finished(stand)


def test_an_emission_into_a_handler_has_no_user_and_a_path() -> None:
    stand = Stand()
    clock, other = stand.handler("clock"), stand.handler("other")
    stand.emit(clock, "clock", handler("other"))
    request = stand.answer(other)
    assert (request.user, request.meta["scope"], request.meta["path"]) == (None, "handler", ["s1/clock"])
    assert stand.one(clock, Outcome).status == 0
    finished(stand)


def test_an_emission_sent_again_with_its_id_is_carried_out_once() -> None:
    stand = Stand()
    bridge, clock = stand.bridge("alice"), stand.handler("clock")
    first = stand.emit(clock, "clock", clients("alice"), id="noon")
    again = stand.emit(clock, "clock", clients("alice"), id="noon")
    assert stand.heard_of(clock, Outcome) == []
    stand.deliver(bridge)
    assert stand.heard_of(clock, Outcome) == [Outcome(first, 0, {}, None), Outcome(again, 0, {}, None)]
    reborn = stand.handler("clock")
    third = stand.emit(reborn, "clock", clients("alice"), id="noon")
    assert stand.one(reborn, Outcome) == Outcome(third, 0, {}, None)
    assert stand.heard_of(bridge, Deliver) == []
    stand.emit(reborn, "clock", clients("alice"), id="one o'clock")
    assert len(stand.heard_of(bridge, Deliver)) == 1


def test_forgotten_duplicate_emission_is_marked() -> None:
    stand = Stand(Settings("s1"), accounts=frozenset({"alice", "bob"}))
    for epoch, again in (("e", {}), ("e2", {"again": True})):
        bridge, clock = stand.bridge("alice"), stand.handler("clock")
        stand.emit(clock, "clock", clients("alice"), id="noon", **again)
        assert stand.deliver(bridge).meta.get("redelivered", False) is bool(again)
        stand.restart(epoch)


@pytest.mark.parametrize(("again", "outcome"), [({}, "mailbox-full"), ({"again": True}, "unreachable")])
def test_forgotten_duplicate_emission_is_not_called_refused(again: dict[str, bool], outcome: str) -> None:
    stand = Stand(Settings("s1", bounds=Bounds(user_messages=1)), accounts=frozenset({"bob"}))
    stand.emit(stand.handler("clock"), "clock", clients("bob"))
    stand.restart()
    clock = stand.handler("clock")
    token = stand.emit(clock, "clock", clients("bob"), id="noon", **again)
    assert stand.one(clock, Outcome) == Outcome(token, 1, {"bob": f"failed:{outcome}"}, outcome)


@pytest.mark.parametrize("id_", [5, None, "x" * 513, ["a"]])
def test_invalid_id_makes_each_emission_new(id_: object) -> None:
    stand = Stand()
    bridge, clock = stand.bridge("alice"), stand.handler("clock")
    for _ in range(2):
        stand.emit(clock, "clock", clients("alice"), id=id_)
    assert len(stand.heard_of(bridge, Deliver)) == 2


def test_handler_emits_its_own_types_and_sound_commands_alone() -> None:
    stand = Stand()
    clock = stand.handler("clock")
    token = stand.emit(clock, "other", clients("alice"))
    error = stand.one(clock, Error)
    assert (error.code, error.op, error.token) == ("not-allowed", 12, token)
    token = stand.emit(clock, "clock", Command("sendAll", [], b"1"))
    assert stand.one(clock, Outcome) == Outcome(token, 1, {}, "unknown-command")
    finished(stand)
