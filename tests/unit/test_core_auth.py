"""Handlers that decide logins: who may, which answers count, and what becomes of a login that nobody decides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from bester.broker.core import policy
from bester.broker.core.effects import Link
from bester.broker.core.settings import Grant, Limits, Settings
from bester.broker.wire.messages import Command, Emit, Error, Goodbye, Hello, Malformed, Reply, Request, Welcome
from bester.broker.wire.type_names import AUTH_TYPE
from tests.unit.core_stand import Stand, clients

SECRET = "correct horse"
GOOD = b'{"login": true}'
SETTINGS = Settings("s1", auth_handlers=frozenset({"ldap"}))
KEYED = Settings("s1", grants={"K": Grant("handler", "ldap", frozenset({AUTH_TYPE}))})


def decider(stand: Stand, *, name: str = "ldap", **options: Any) -> Link:
    return stand.handler(AUTH_TYPE, name=name, **options)


def ask(stand: Stand, number: int = 1, user: str = "ann", password: str = SECRET, address: str = "192.0.2.1") -> None:
    stand.take(stand.router.ask_login(number, user, password, address, stand.now))


def undecided(stand: Stand) -> list[str]:
    """Return the reasons in the log why logins were not decided."""
    return [notice.fields["why"] for notice in stand.notices if notice.event == "login-undecided"]


def hello(stand: Stand, *types: str, name: str = "ldap", door: str = "ipc", party: str = "", **options: Any) -> Any:
    link = stand.link(door)._replace(party=party)
    stand.say(link, Hello(1, "handler", name, {"types": list(types), **options}))
    return stand.heard(link)[0]


def test_a_login_is_asked_about_and_decided() -> None:
    stand = Stand(SETTINGS)
    handler = decider(stand)
    for number, body, good in ((1, GOOD, True), (2, b'{"login":false}', False)):
        ask(stand, number)
        request = stand.answer(handler, clients("ann", body=body))
        assert (request.type, request.user) == (AUTH_TYPE, "ann")
        assert json.loads(request.body) == {"user": "ann", "password": SECRET, "address": "192.0.2.1"}
        assert request.meta["attempt"] == 1 and request.meta["deadline_ms"] <= 8000
        assert stand.decisions[number] is good
    ask(stand, 3)
    stand.reply(handler, stand.request(handler).token, status=2)
    assert stand.decisions[3] is False


@pytest.mark.parametrize(
    "commands",
    [
        [],
        [clients("bob", body=GOOD)],
        [clients("ann", "bob", body=GOOD)],
        [clients("ann", "ann", body=GOOD)],
        [clients(body=GOOD)],
        [clients("ann", body=GOOD), clients("ann", body=GOOD)],
        [Command("sendHandler", ["ann"], GOOD)],
        [Command("sendServers", ["ann"], GOOD)],
        [clients("ann", body=b"true")],
        [clients("ann", body=b"")],
        [clients("ann", body=b'{"login":1}')],
        [clients("ann", body=b'{"login":"true"}')],
        [clients("ann", body=b'{"login":null}')],
        [clients("ann", body=b'{"Login":true}')],
        [clients("ann", body=b'{"login":true,"user":"root"}')],
        [clients("ann", body=b'[{"login":true}]')],
        [clients("ann", body=b'{"login":true')],
        [clients("ann", body=b"[" * 1000)],
        [clients("ann", body=b'{"login":true' + b" " * 1100 + b"}")],
        [clients("ann", body=b'{"login":\xff}')],
    ],
)
def test_any_other_answer_decides_nothing(commands: Sequence[Command]) -> None:
    stand = Stand(SETTINGS)
    bridge, handler = stand.bridge("ann", "bob"), decider(stand)
    ask(stand)
    stand.reply(handler, stand.request(handler).token, *commands)
    assert stand.decisions == {1: None} and stand.heard(bridge) == []
    assert undecided(stand)[0].startswith("its answer is not one")


@pytest.mark.parametrize("status", [1, 3, -1])
@pytest.mark.parametrize("code", [None, "timeout", "bad-reply"])
def test_a_failure_is_no_wrong_password(status: int, code: str | None) -> None:
    stand = Stand(SETTINGS)
    handler = decider(stand)
    ask(stand)
    stand.say(handler, Reply(stand.request(handler).token, status, [clients("ann", body=GOOD)], SECRET, code))
    assert stand.decisions == {1: None} and undecided(stand) == ["it failed"]


def test_data_that_do_not_fit_the_handler_are_no_wrong_password() -> None:
    stand = Stand(SETTINGS)
    handler = decider(stand)
    ask(stand)
    stand.say(handler, Reply(stand.request(handler).token, 2, [], "data.user: expected int", "schema"))
    assert stand.decisions == {1: None}


def test_an_answer_counts_once_and_on_its_own_link() -> None:
    stand = Stand(SETTINGS)
    asked, other = decider(stand, credit=9), decider(stand, credit=1)
    ask(stand)
    token = stand.request(asked).token
    for liar in (other, stand.handler("chat")):
        stand.say(liar, Reply(token, 0, [clients("ann", body=GOOD)]))
        assert stand.one(liar, Error).code == "unknown-token" and stand.decisions == {}
    stand.reply(asked, token, clients("ann", body=b'{"login":false}'))
    stand.say(asked, Reply(token, 0, [clients("ann", body=GOOD)]), Reply(token + 1, 0, [clients("ann", body=GOOD)]))
    assert [error.code for error in stand.heard_of(asked, Error)] == ["unknown-token"] * 2
    assert stand.decisions == {1: False}


def test_a_malformed_answer_decides_nothing() -> None:
    stand = Stand(SETTINGS)
    handler = decider(stand)
    ask(stand)
    stand.say(handler, Malformed("malformed", "no array", 11, stand.request(handler).token))
    assert stand.decisions == {1: None}


def test_nobody_else_is_asked_when_a_handler_dies() -> None:
    stand = Stand(SETTINGS)
    first, second = decider(stand, credit=9), decider(stand, credit=1)
    ask(stand)
    stand.request(first)
    stand.take(stand.router.on_link_lost(first, "gone", stand.now))
    assert stand.decisions == {1: None} and stand.heard_of(second, Request) == []
    ask(stand, 2)
    stand.answer(second, clients("ann", body=GOOD))
    assert stand.decisions[2] is True


def test_a_request_that_cannot_be_sent_decides_nothing() -> None:
    stand = Stand(SETTINGS)
    handler = decider(stand)
    ask(stand)
    stand.take(stand.router.on_undeliverable(handler, stand.request(handler), stand.now))
    assert stand.decisions == {1: None}


def test_a_login_waits_for_a_handler_that_comes_back_and_no_longer() -> None:
    stand = Stand(SETTINGS)
    handler = decider(stand)
    stand.take(stand.router.on_link_lost(handler, "gone", stand.now))
    del stand.alive[handler]
    ask(stand, 1)
    stand.wait(2)
    assert stand.decisions == {}
    handler = decider(stand)
    stand.answer(handler, clients("ann", body=GOOD))
    assert stand.decisions == {1: True}

    stand.take(stand.router.on_link_lost(handler, "gone", stand.now))
    del stand.alive[handler]
    ask(stand, 2)
    stand.wait(Limits().handler_wait_s + 1)
    assert stand.decisions[2] is None and undecided(stand) == ["no handler of bester.auth is connected"]
    ask(stand, 3)  # at once, as nobody has come for so long
    assert stand.decisions[3] is None


def test_a_slow_handler_decides_too_late_and_its_credit_comes_back() -> None:
    stand = Stand(SETTINGS)
    handler = decider(stand, credit=1)
    ask(stand, 1)
    ask(stand, 2)
    late = stand.request(handler)
    stand.wait(Limits().login_s + 1)
    assert stand.decisions == {1: None, 2: None}
    assert sorted(undecided(stand)) == ["it gave no answer in 8 s", "its handlers were busy for too long"]
    stand.reply(handler, late.token, clients("ann", body=GOOD))
    assert stand.decisions == {1: None, 2: None} and stand.heard_of(handler, Error) == []
    ask(stand, 3)
    assert stand.request(handler).meta["deadline_ms"] == 8000


def test_a_handler_that_answers_nothing_is_started_again() -> None:
    stand = Stand(SETTINGS)
    decider(stand, credit=2)
    ask(stand, 1)
    ask(stand, 2)
    stand.wait(Limits().login_s + Limits().stuck_s + 2)
    assert [restart.name for restart in stand.restarts] == ["ldap"]
    assert [notice.fields["places"] for notice in stand.notices if notice.event == "handler-stuck"] == [2]


def test_a_leaving_handler_ends_its_logins_and_gets_no_more() -> None:
    stand = Stand(SETTINGS)
    handler = decider(stand)
    ask(stand, 1)
    request = stand.request(handler)
    stand.say(handler, Goodbye("done"))
    ask(stand, 2)
    assert stand.heard_of(handler, Request) == []
    stand.reply(handler, request.token, clients("ann", body=GOOD))
    assert stand.decisions == {1: True} and stand.state.peers.get("handler", 0) == 0


def test_a_login_with_a_leaving_handler_ends_in_time() -> None:
    stand = Stand(SETTINGS)
    handler = decider(stand)
    ask(stand, 1)
    stand.say(handler, Goodbye("done"))
    stand.wait(Limits().login_s + 1)
    assert stand.decisions == {1: None}


def test_logins_are_bounded_and_shared_by_credit() -> None:
    stand = Stand(SETTINGS)
    few, many = decider(stand, credit=2), decider(stand, credit=5)
    most = Limits().max_logins
    for number in range(most + 3):
        ask(stand, number)
    assert [len(stand.heard_of(link, Request)) for link in (few, many)] == [2, 5]
    assert stand.decisions == dict.fromkeys(range(most, most + 3)) and stand.state.bounds["auth_logins"] == (most, most)


def test_nothing_of_a_login_is_kept_or_shown() -> None:
    stand = Stand(SETTINGS)
    handler, operator = decider(stand), stand.join("operator", "op")
    for number, (status, note) in enumerate([(0, None), (1, SECRET), (2, SECRET), (7, SECRET)]):
        ask(stand, number)
        commands = [] if status else [clients("ann", body=json.dumps({"login": SECRET}).encode())]
        stand.say(handler, Reply(stand.request(handler).token, status, commands, note))
    ask(stand, 9)
    stand.take(stand.router.on_link_lost(handler, "gone", stand.now))
    shown = [stand.ask(operator, question).value for question in ("trace", "types", "status", "sessions", "deadList")]
    assert SECRET not in repr((stand.notices, shown, stand.dead()))
    assert stand.dead() == [] and len(stand.decisions) == 5


def test_handlers_that_may_decide_logins() -> None:
    stand = Stand(SETTINGS)
    assert isinstance(hello(stand, AUTH_TYPE), Welcome)
    for options in ({"name": "chat"}, {"door": "tcp"}, {"door": "curve", "party": "K"}, {"name": "ldap.0"}):
        assert hello(stand, AUTH_TYPE, **options).code in ("reserved", "not-allowed"), options
    assert hello(stand, AUTH_TYPE, "chat").code == "not-allowed"
    assert hello(stand, AUTH_TYPE, shadow=True).code == "not-allowed"
    assert hello(Stand(Settings("s1", open_accounts=True)), AUTH_TYPE).code == "reserved"

    keyed = Stand(KEYED)
    assert isinstance(hello(keyed, AUTH_TYPE, name="any", door="curve", party="K"), Welcome)
    assert hello(keyed, AUTH_TYPE, door="ipc").code == "reserved"  # the name of a party proves nothing


def test_a_key_that_is_removed_decides_no_more() -> None:
    stand = Stand(KEYED)
    assert stand.router.is_decided_by_handler
    link = stand.link("curve")._replace(party="K")
    stand.say(link, Hello(1, "handler", "ldap", {"types": [AUTH_TYPE], "credit": 3}))
    ask(stand)
    stand.heard(link)
    stand.take(stand.router.on_reloaded({}, {}, stand.now))
    assert stand.decisions == {1: None} and isinstance(stand.heard(link)[0], Goodbye)
    assert not stand.router.is_decided_by_handler


def test_a_link_that_becomes_a_handler_of_messages_decides_no_more() -> None:
    stand = Stand(SETTINGS)
    handler = decider(stand)
    ask(stand, 1)
    token = stand.request(handler).token
    stand.say(handler, Hello(1, "handler", "ldap", {"types": ["chat"], "credit": 3}))
    stand.say(handler, Reply(token, 0, [clients("ann", body=GOOD)]))
    assert stand.decisions == {1: None}
    bridge = stand.bridge("ann")
    stand.submit(bridge, "chat")
    assert stand.request(handler).type == "chat"


def test_nobody_sends_messages_of_this_type() -> None:
    stand = Stand(SETTINGS)
    bridge, handler = stand.bridge("ann"), decider(stand)
    chat = stand.handler("chat")
    token = stand.submit(bridge, AUTH_TYPE)
    assert stand.report(bridge, token).reason == "reserved"
    token = stand.submit(bridge, "chat")
    stand.answer(chat, Command("sendHandler", [AUTH_TYPE], b"1"))
    assert "reserved" in repr(stand.report(bridge, token))
    stand.say(handler, Emit(1, AUTH_TYPE, [clients("ann")]))
    assert stand.one(handler, Error).code == "not-allowed"
    assert stand.heard_of(handler, Request) == [] and not policy.may_keep(AUTH_TYPE)


def test_a_handler_shows_in_types_and_status() -> None:
    stand = Stand(SETTINGS)
    decider(stand, credit=7)
    operator = stand.join("operator", "op")
    ask(stand)
    (row,) = stand.ask(operator, "types").value["types"]
    assert [(each["name"], each["credit"], each["inflight"]) for each in row["workers"]] == [("ldap", 7, 1)]
    status = stand.ask(operator, "status").value
    assert status["handlers"][0]["types"] == [AUTH_TYPE] and status["types"][AUTH_TYPE]["received"] == 1
