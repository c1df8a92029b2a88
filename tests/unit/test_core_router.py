"""The router: permissions by role, joining, silence and goodbye."""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped]  # no types shipped
import pytest

from bester.broker.core.effects import Link, Verify
from bester.broker.core.settings import Route, Settings
from bester.broker.store_requests import Committed, RecordType, Write
from bester.broker.wire.codec import decode
from bester.broker.wire.messages import (
    MAX_BODY_BYTES,
    Answer,
    Ask,
    Close,
    Confirm,
    Deliver,
    Emit,
    Error,
    Forwarded,
    Goodbye,
    Heartbeat,
    Hello,
    LoggedIn,
    Login,
    Malformed,
    Open,
    Relay,
    Reply,
    Report,
    Request,
    Submit,
    Welcome,
)
from tests.unit.core_stand import START, Stand, clients, limited

HANDLER = {"types": ["t"]}


def refused(role: str, name: str = "n", options: dict[str, Any] | None = None, *, version: int = 1) -> Error:
    """Return the ERROR that answers this HELLO on an ipc link."""
    stand = Stand()
    link = stand.link()
    stand.say(link, Hello(version, role, name, options or {}))
    error = stand.one(link, Error)
    assert error.op == 1
    effects = stand.router.receive_all(link, [Heartbeat()], stand.now)
    assert effects.messages == {link: [Error("hello-first", "this link is not known here; say HELLO")]}
    return error


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (msgpack.packb([1, 1, "handler", "n", HANDLER]), "a single message stands in an array, too: [[op, field, …]]"),
        (msgpack.packb(["HELLO", 1, "handler", "n", HANDLER]), "str where a message is meant"),
        (b'[[1, 1, "handler", "n", {"types": ["t"]}]]', "looks like JSON text; pack it as MessagePack"),
        (b'{"op": "HELLO"}', "looks like JSON text"),
        (b' "hello"', "looks like JSON text"),
        (b"", "a REQ socket puts an empty frame before its message"),
        (b"\xc1", "frame 0 is not MessagePack"),
        (msgpack.packb({"op": 1}), "frame 0 is a map where an array of 1 to 1024 messages is meant"),
        (msgpack.packb([]), "frame 0 is an array of 0"),
        (msgpack.packb([[b"1", 1]]), "an array [op, field, …] with an integer op"),
        (
            msgpack.packb([[1, 1, b"handler", "n", HANDLER]]),
            "role: of the wrong type: bin where str is meant; pack texts",
        ),
        (msgpack.packb([[1, 1, "handler", b"n", HANDLER]]), "name: of the wrong type: bin where str is meant"),
        (
            msgpack.packb([[1, 1, "handler", "n", {b"types": ["t"]}]]),
            "options: keys are strings: bin where str is meant",
        ),
        (msgpack.packb([[1, 1, "handler", "n", {"types": [b"t"]}]]), "a handler says which types it serves"),
        (
            msgpack.packb([[1, "1", "handler", "n", HANDLER]]),
            "version: of the wrong type: str where an integer is meant",
        ),
        (msgpack.packb([[1, 1, "handler", "n", []]]), "options: of the wrong type: an array where a map is meant"),
        (msgpack.packb([[1, 1, "handler"]]), "3 fields needed, 2 given"),
    ],
)
def test_malformed_hello_is_answered_with_its_fault(frame: bytes, why: str) -> None:
    stand = Stand()
    link = stand.link()
    for message in decode([frame]):
        stand.say(link, message)
    error = stand.one(link, Error)
    assert error.code == "malformed"
    assert why in error.text
    assert [notice.event for notice in stand.notices] == ["hello-refused"]
    assert why in stand.notices[0].fields["why"]


def test_undecodable_bytes_are_answered_rarely_and_hide_no_other_answer() -> None:
    stand = Stand()
    link = stand.link()
    (garbage,) = decode([b"\xc1"])
    for _ in range(5):
        stand.say(link, garbage)
    assert stand.one(link, Error).code == "malformed"
    for message in (Heartbeat(), garbage, Heartbeat(), garbage):
        stand.say(link, message)
    assert stand.one(link, Error).code == "hello-first", "a lost link is answered at once"
    stand.wait(stand.settings.limits.heartbeat_s)
    stand.say(link, garbage)
    assert stand.one(link, Error).code == "malformed"
    stand.say(link, Hello(1, "handler", "n", HANDLER))
    assert stand.one(link, Welcome).server == "s1"


# --- greeting ---------------------------------------------------------------------------------------------------------


def test_welcome_names_the_server_and_its_limits() -> None:
    stand = Stand()
    link = stand.link()
    stand.say(link, Hello(1, "handler", "h", HANDLER))
    options = {"heartbeat_ms": 2000, "max_body": MAX_BODY_BYTES, "life": "e"}
    assert stand.heard(link) == [Welcome(1, "s1", {**options, "request_ms": 30_000})]
    other = stand.link()
    stand.say(other, Hello(1, "bridge", "b", {}))
    assert stand.heard(other) == [Welcome(1, "s1", options)]


def test_welcome_of_a_bridge_names_one_of_several_brokers() -> None:
    stand = Stand(Settings("s1", open_accounts=True, broker="b1"))
    for role, hello in (("bridge", {}), ("handler", HANDLER)):
        link = stand.link()
        stand.say(link, Hello(1, role, "x", hello))
        assert stand.one(link, Welcome).options.get("broker") == ("b1" if role == "bridge" else None)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, "malformed"),
        ({"types": "t"}, "malformed"),
        ({"types": []}, "malformed"),
        ({"types": ["t", 5]}, "malformed"),
        ({"types": [""]}, "malformed"),
        ({"types": ["a,b"]}, "malformed"),
        ({"types": ["t", ","]}, "malformed"),
        ({"types": [" t"]}, "malformed"),
        ({"types": ["t\u200b"]}, "malformed"),
        ({"types": ["t" * 129]}, "malformed"),
        ({"types": ["bester.auth"]}, "reserved"),
        ({"types": ["t", "dummy"]}, "reserved"),
        ({"types": ["builtin"]}, "reserved"),
        ({**HANDLER, "credit": 0}, "malformed"),
        ({**HANDLER, "credit": True}, "malformed"),
        ({**HANDLER, "credit": 65_537}, "malformed"),
        ({**HANDLER, "credit": "9"}, "malformed"),
        ({**HANDLER, "lease_ms": -1}, "malformed"),
        ({**HANDLER, "lease_ms": 0.5}, "malformed"),
        ({**HANDLER, "order": ["t"]}, "malformed"),
        ({**HANDLER, "order": {"t": "type"}}, "malformed"),
        ({"types": [str(number) for number in range(20_001)]}, "malformed"),
    ],
)
def test_handler_with_invalid_options_is_refused(options: dict[str, Any], code: str) -> None:
    assert refused("handler", options=options).code == code


def test_type_with_commas_is_refused_with_its_fault() -> None:
    text = refused("handler", options={"types": ["t", "chat,news"]}).text
    assert text == "'chat,news': a type is 1 to 128 printable characters without commas or blanks at its ends"
    assert len(refused("handler", options={"types": ["," * 100_000]}).text) < 200
    stand = Stand()
    stand.handler("t" * 128, "é/ü ñ", "{}")


def test_other_refusals() -> None:
    assert refused("handler", options=HANDLER, version=2).code == "version"
    assert refused("king").code == "not-allowed"
    assert refused("server", "stranger").code == "not-allowed"
    for name in ("", "x" * 129, "a\nb"):
        assert refused("bridge", name).code == "malformed"


def test_full_table_of_peers_refuses_newcomers_and_keeps_its_peers() -> None:
    stand = Stand(limited(max_parties=2))
    first = stand.handler("t")
    stand.bridge()
    link = stand.link()
    stand.say(link, Hello(1, "handler", "h", HANDLER))
    assert stand.one(link, Error).code == "overloaded"
    stand.say(first, Hello(1, "handler", "h", HANDLER))
    stand.one(first, Welcome)


def test_unknown_options_are_ignored() -> None:
    stand = Stand()
    stand.handler("t", software="mine", schema={"t": {}}, version="7", colour="blue")


def test_second_hello_replaces_options_and_keeps_messages_in_flight() -> None:
    stand = Stand()
    bridge, one = stand.bridge("alice"), stand.handler("t", credit=1)
    first, second = stand.submit(bridge, "t"), stand.submit(bridge, "t")
    token = stand.request(one).token
    stand.say(one, Hello(1, "handler", "h", {"types": ["t", "u"], "credit": 2}))
    stand.one(one, Welcome)
    other = stand.request(one).token
    third = stand.submit(bridge, "u")
    assert stand.heard_of(one, Request) == []
    stand.reply(one, token)
    stand.reply(one, other)
    stand.answer(one)
    assert [report.token for report in stand.heard_of(bridge, Report)] == [first, second, third]


def test_second_hello_with_less_credit_and_another_type() -> None:
    stand = Stand()
    bridge, one = stand.bridge("alice"), stand.handler("t", credit=3)
    for _ in range(3):
        stand.submit(bridge, "t")
    requests = stand.heard_of(one, Request)
    stand.say(one, Hello(1, "handler", "h", {"types": ["u"], "credit": 1}))
    stand.submit(bridge, "u")
    for request in requests[:2]:
        stand.reply(one, request.token)
    assert stand.heard_of(one, Request) == []
    stand.reply(one, requests[2].token)
    stand.answer(one)
    assert len(stand.heard_of(bridge, Report)) == 4
    stand.submit(bridge, "t")
    stand.wait(5.5)
    assert stand.report(bridge).reason == "no-handler"


def test_party_back_in_another_role_is_a_new_party() -> None:
    stand = Stand()
    bridge, one = stand.bridge("alice"), stand.handler("t")
    stand.submit(bridge, "t")
    stand.request(one)
    stand.say(one, Hello(1, "bridge", "b2"))
    second = stand.handler("t")
    assert stand.answer(second).meta["attempt"] == 2
    stand.say(one, Reply(1, 0, []))
    assert stand.one(one, Error).code == "unknown-op"


def test_two_bridges_never_give_out_the_same_id() -> None:
    stand = Stand()
    chat = stand.handler("t")
    ids = set()
    for options in ({}, {}, {"epoch": "a"}, {"epoch": 5}):
        bridge = stand.join("bridge", "b", options)
        stand.say(bridge, Open(1, "alice"))
        stand.say(bridge, Submit(1, 1, "t", b"1"))
        ids.add(stand.request(chat).meta["id"])
        stand.say(bridge, Hello(1, "bridge", "b", options))
        stand.say(bridge, Submit(2, 1, "t", b"1"))
        ids.add(stand.request(chat).meta["id"])
    assert len(ids) == 8


# --- strangers --------------------------------------------------------------------------------------------------------


def test_unknown_link_gets_hello_first_once_a_heartbeat() -> None:
    stand = Stand()
    link = stand.link()
    for at in (0.0, 0.0, 1.9, 2.0, 3.9, 4.1):
        stand.now = START + at
        stand.say(link, Reply(1, 0, []))
    assert [error.code for error in stand.heard_of(link, Error)] == ["hello-first"] * 3


@pytest.mark.parametrize(
    "message",
    [
        Heartbeat(),
        Goodbye(None),
        Error("hello-first", ""),
        Malformed("malformed", "x"),
        Ask(1, "serverInfo"),
        Confirm(5),
    ],
)
def test_messages_before_hello_are_not_acted_on(message: Any) -> None:
    stand = Stand()
    link = stand.link()
    stand.say(link, message)
    assert [type(messages) for messages in stand.heard(link)] == [Error]


def test_strangers_are_remembered_up_to_a_bound() -> None:
    stand = Stand(limited(max_strangers=3))
    for _ in range(20):
        stand.say(stand.link(), Heartbeat())
    assert stand.state.strangers == 3


def test_hello_ends_being_a_stranger() -> None:
    stand = Stand()
    link = stand.link()
    stand.say(link, Heartbeat())
    stand.say(link, Hello(1, "handler", "h", HANDLER))
    assert stand.state.strangers == 0


# --- liveness ---------------------------------------------------------------------------------------------------------


def test_heartbeats_go_out_and_silence_is_noticed() -> None:
    stand = Stand()
    link = stand.handler("t")
    stand.wait(4.5, 0.1)
    assert len([m for m in stand.inbox[link] if isinstance(m, Heartbeat)]) == 2
    del stand.alive[link]
    stand.wait(6.0)
    assert [notice.event for notice in stand.notices if notice.event == "lost"] == []
    stand.wait(0.5)
    assert [notice.event for notice in stand.notices if notice.event == "lost"] == ["lost"]
    stand.say(link, Heartbeat())
    assert stand.one(link, Error).code == "hello-first"


def test_a_lease_counts_while_a_request_is_held() -> None:
    stand = Stand()
    bridge, slow = stand.bridge("alice"), stand.handler("t", lease_ms=20_000)
    stand.submit(bridge, "t")
    request = stand.request(slow)
    del stand.alive[slow]
    stand.wait(19.0)
    stand.reply(slow, request.token)
    stand.report(bridge)
    stand.wait(6.5)
    assert [notice.fields["why"] for notice in stand.notices if notice.event == "lost"] == ["fallen silent"]


def test_a_direct_bridge_is_this_process_and_never_silent() -> None:
    stand = Stand()
    bridge = stand.bridge("alice", door="direct")
    stand.alive.clear()
    stand.wait(60.0)
    assert stand.inbox.get(bridge, []) == []
    assert stand.ask(bridge, "isClient", "alice").value is True


def test_silence_after_a_pause_of_the_broker_proves_nothing() -> None:
    stand = Stand()
    bridge, one = stand.bridge("alice"), stand.handler("t")
    stand.submit(bridge, "t")
    request = stand.request(one)
    stand.now += 3600.0  # suspended, for example
    stand.tick()
    assert not [notice for notice in stand.notices if notice.event == "lost"]
    stand.reply(one, request.token, clients("alice"))
    assert stand.deliver(bridge).token is not None
    assert stand.heard_of(bridge, Report) == []


def test_overdue_messages_after_a_pause_are_given_up_when_the_others_had_time_to_speak() -> None:
    stand = Stand()
    bridge, one = stand.bridge("alice"), stand.handler("t")
    stand.submit(bridge, "t")
    stand.request(one)
    stand.now += 3600.0
    stand.tick()
    stand.wait(1.5)
    assert stand.heard_of(bridge, Report) == []
    stand.wait(1.0)
    assert stand.report(bridge).reason == "timeout"


def test_a_lost_bridge_takes_its_sessions_with_it_and_announces_them_again() -> None:
    stand = Stand()
    bridge, chat = stand.bridge("alice"), stand.handler("t")
    del stand.alive[bridge]
    stand.wait(6.5)
    assert stand.ask(chat, "listClients").value == []
    stand.say(bridge, Hello(1, "bridge", "b", {"epoch": "x"}))
    stand.say(bridge, Open(1, "alice"))
    assert stand.ask(chat, "listClients").value == ["alice"]


# --- leaving ----------------------------------------------------------------------------------------------------------


def test_goodbye_is_echoed_after_the_last_request_and_messages_in_flight_are_finished() -> None:
    stand = Stand()
    bridge, leaving = stand.bridge("alice"), stand.handler("t")
    stand.submit(bridge, "t")
    stand.say(leaving, Goodbye(None))
    stand.submit(bridge, "t")
    messages = stand.heard(leaving)
    assert [type(message) for message in messages] == [Request, Goodbye]
    stand.wait(3.0)
    assert isinstance(messages[0], Request)
    stand.reply(leaving, messages[0].token, clients("alice"))
    stand.deliver(bridge)
    stand.say(leaving, Heartbeat())
    assert stand.one(leaving, Error).code == "hello-first", "it is forgotten"
    assert stand.answer(stand.handler("t")).meta["attempt"] == 1


def test_a_leaving_handler_that_dies_leaves_its_requests_to_others() -> None:
    stand = Stand()
    bridge, leaving = stand.bridge("alice"), stand.handler("t")
    other = stand.handler("t", credit=1)
    stand.submit(bridge, "t")
    stand.request(leaving)
    stand.say(leaving, Goodbye(None))
    stand.say(leaving, Goodbye(None))
    del stand.alive[leaving]
    stand.wait(6.5)
    assert stand.answer(other).meta["attempt"] == 2
    stand.report(bridge)


def test_leaving_handler_whose_last_reply_is_malformed_is_forgotten() -> None:
    stand = Stand()
    bridge, leaving = stand.bridge("alice"), stand.handler("t")
    stand.submit(bridge, "t")
    request = stand.request(leaving)
    stand.say(leaving, Goodbye(None))
    stand.say(leaving, Malformed("malformed", "x", 11, request.token))
    assert stand.report(bridge).reason == "bad-reply"
    assert "handler" not in stand.state.peers


def test_an_idle_handler_is_forgotten_at_its_goodbye() -> None:
    stand = Stand()
    leaving = stand.handler("t")
    stand.say(leaving, Goodbye(None))
    assert stand.heard(leaving) == [Goodbye("goodbye")]
    assert "handler" not in stand.state.peers


def test_broker_sends_goodbye_to_every_peer() -> None:
    stand = Stand()
    links = [stand.bridge(), stand.handler("t")]
    stand.take(stand.router.dismiss("the end"))
    assert [stand.heard(link) for link in links] == [[Goodbye("the end")]] * 2


def test_broker_that_ends_welcomes_nobody_back() -> None:
    stand = Stand()
    stand.bridge()
    stand.take(stand.router.dismiss("the end"))
    for role in ("bridge", "handler", "server", "operator"):
        back = Link("ipc", f"back-{role}".encode())
        stand.say(back, Hello(1, role, role, {"types": ["t"]} if role == "handler" else {}))
        assert stand.heard(back) == [Goodbye("the end")], role


# --- roles ------------------------------------------------------------------------------------------------------------


MAY: dict[str, set[type[Any]]] = {
    "handler": {Reply, Emit, Ask},
    "bridge": {Login, Open, Close, Submit, Confirm, Forwarded, Ask},
    "server": {Relay},
    "operator": {Ask},
}
SAMPLES: dict[type[Any], Any] = {
    Reply: Reply(1, 0, []),
    Emit: Emit(1, "t", []),
    Ask: Ask(1, "listClients"),
    Login: Login(1, "u", "p", "a"),
    Open: Open(1, "u"),
    Close: Close(1),
    Submit: Submit(1, 1, "t", b"1"),
    Confirm: Confirm(1),
    Forwarded: Forwarded(1, "sent"),
    Relay: Relay(1, "t", b"1", {}),
    Request: Request(1, "t", b"1", None, {}),
    Welcome: Welcome(1, "s", {}),
    Report: Report(1, 0, None, None, {}),
    Deliver: Deliver(1, "m", "t", b"1", []),
    LoggedIn: LoggedIn(1, 0),
    Answer: Answer(1, 0),
}


@pytest.mark.parametrize("kind", SAMPLES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("role", MAY)
def test_each_role_sends_its_own_operations_alone(role: str, kind: type[Any]) -> None:
    stand = Stand(Settings("s1", open_accounts=True, routes={"n": Route("n")}))
    link = stand.join(role, "n", HANDLER)
    stand.say(link, SAMPLES[kind])
    errors = [error.code for error in stand.heard_of(link, Error)]
    if kind in MAY[role]:
        assert "unknown-op" not in errors
    else:
        assert errors == ["unknown-op"]


def test_an_error_is_never_answered_by_one() -> None:
    stand = Stand()
    link = stand.handler("t")
    stand.say(link, Error("malformed", "you"))
    assert stand.heard(link) == []


def test_undecodable_message_is_answered_and_the_link_stays() -> None:
    stand = Stand()
    link = stand.handler("t")
    stand.say(link, Malformed("unknown-op", "op 99", 99, None))
    assert stand.one(link, Error) == Error("unknown-op", "op 99", 99, None)
    assert stand.ask(link, "listClients").status == 0


# --- logins and sessions ----------------------------------------------------------------------------------------------


def test_a_session_is_a_target_before_its_bridge_is_told() -> None:
    stand = Stand()
    bridge, chat = stand.bridge(), stand.handler("t")
    stand.say(bridge, Login(7, "alice", "secret", "10.0.0.1"))
    assert stand.verifies == [Verify(bridge, 7, "alice", "secret", "10.0.0.1")]
    assert stand.ask(chat, "isClient", "alice").value is False
    stand.take(stand.router.on_verified(bridge, 7, "alice", None, stand.now))
    assert stand.heard(bridge) == [LoggedIn(7, 0, None)]
    assert stand.ask(chat, "isClient", "alice").value is True


def test_refused_password_opens_no_session() -> None:
    stand = Stand()
    bridge, chat = stand.bridge(), stand.handler("t")
    stand.say(bridge, Login(7, "alice", "wrong", "10.0.0.1"))
    stand.take(stand.router.on_verified(bridge, 7, "alice", "authentication-failed", stand.now))
    assert stand.heard(bridge) == [LoggedIn(7, 1, "authentication-failed")]
    stand.say(bridge, Login(8, "alice", "wrong", "10.0.0.1"))
    stand.take(stand.router.on_verified(bridge, 8, "alice", "try-later", stand.now, 1.0001))
    assert stand.heard(bridge) == [LoggedIn(8, 1, "try-later", 1001)]
    assert stand.ask(chat, "listClients").value == []


def test_a_session_that_closed_while_its_password_was_checked_is_no_target() -> None:
    stand = Stand()
    bridge, chat = stand.bridge(), stand.handler("t")
    stand.say(bridge, Login(7, "alice", "secret", "10.0.0.1"))
    stand.say(bridge, Close(7))
    stand.take(stand.router.on_verified(bridge, 7, "alice", None, stand.now))
    stand.take(stand.router.on_verified(Link("ipc", b"gone"), 7, "alice", None, stand.now))
    assert stand.heard(bridge) == []
    assert stand.ask(chat, "listClients").value == []


@pytest.mark.parametrize(("session", "type_", "code"), [(9, "t", "not-allowed"), (1, "bester.x", "reserved")])
def test_submit_without_a_session_is_refused(session: int, type_: str, code: str) -> None:
    stand = Stand()
    bridge = stand.bridge("alice")
    stand.handler("t")
    token = stand.submit(bridge, type_, session=session)
    assert stand.report(bridge, token).reason == code
    assert stand.router.idle


def test_session_of_another_bridge_is_unknown_on_this_one() -> None:
    stand = Stand()
    stand.bridge("alice", "bob")
    second = stand.bridge("carol")
    stand.submit(second, "t", session=2)
    assert stand.report(second).reason == "not-allowed"


# --- questions --------------------------------------------------------------------------------------------------------


def test_questions_are_answered() -> None:
    stand = Stand(Settings("s1", open_accounts=True, admin_info="call 112"))
    bridge, one = stand.bridge("bob", "alice", "alice"), stand.handler("t")
    assert stand.ask(one, "listClients").value == ["alice", "bob"]
    assert stand.ask(one, "isClient", "alice").value is True
    assert stand.ask(one, "isClient", "dave").value is False
    info = stand.ask(one, "serverInfo").value
    assert info == {"server": "s1", "adminInfo": "call 112", "clientCount": "2", "listeners": {}}
    for question, argument in (("isClient", None), ("isClient", ["a"]), ("whoAmI", None), ("trace", 5), ("trace", "m")):
        answer = stand.ask(one, question, argument)
        assert (answer.status, answer.value) == (1, None), question
    assert stand.ask(bridge, "trace", "m").value == []
    operator = stand.join("operator", "o")
    assert stand.ask(operator, "trace", "m").value == []


def test_group_of_nothing_that_fails_is_not_logged() -> None:
    stand = Stand()
    away = Committed(ok=False, code="storage-unavailable", why="the database is away")
    groups: tuple[tuple[list[Write], int], ...] = (([], 0), ([RecordType("t")], 1))
    for writes, told in groups:
        stand.take(stand.router.on_committed(writes, away, stand.now))
        assert len(stand.notices) == told
