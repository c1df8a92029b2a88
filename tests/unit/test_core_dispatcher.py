"""A message's way: one report for each, with what became of every result, whichever way it ends."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core.values import Limits, Link, Route, Settings
from bester.broker.store_requests import NUMBERS_A_LIFE, lane
from bester.broker.wire.messages import (
    HOP_LIMIT,
    MAX_RESULTS,
    Command,
    Confirm,
    Deliver,
    Error,
    Forward,
    Forwarded,
    Goodbye,
    Heartbeat,
    Hello,
    Malformed,
    Outcome,
    Relay,
    Relayed,
    Reply,
    Report,
    Request,
)
from tests.unit.core_stand import Stand, clients, handler, limited, servers

S2 = Link("server", b"s2")


def federated(accept: str = "listed", **limits: float) -> Stand:
    """A stand with a fabric link up to s2 and a native server s3 at 10.0.0.3."""
    routes = {
        "s2": Route("s2", fabric="ipc:///s2", accept_types=frozenset({"chat"})),
        "s3": Route("s3", native="10.0.0.3:2223"),
    }
    stand = Stand(
        Settings(
            "s1", open_accounts=True, accept=accept, routes=routes, hosts={"10.0.0.3": ("s3",)},
            limits=Limits(**limits),  # type: ignore[arg-type]  # the names and kinds are those of the caller
        )
    )  # fmt: skip
    stand.take(stand.router.on_server_ready("s2", stand.now))
    return stand


def finished(stand: Stand) -> None:
    """Nothing is owed, nothing is held, nobody has anything left to say."""
    dispatcher = stand.router._dispatcher
    assert stand.router.idle
    assert (dispatcher._held, dispatcher._held_bytes, dispatcher.workers.waiting) == (0, 0, 0)
    assert dispatcher.deliveries.count == dispatcher.relays.transfers.count == 0
    for link, messages in stand.inbox.items():
        assert not [m for m in messages if isinstance(m, Report | Outcome | Relayed)], f"told again: {link}"


# --- to clients -----------------------------------------------------------------------------------------------------


def test_a_request_says_everything_about_its_message() -> None:
    stand = Stand()
    bridge, echo = stand.bridge("alice"), stand.handler("echo")
    stand.submit(bridge, "echo", b'{"a":1e400}')
    request = stand.request(echo)
    assert (request.type, request.body, request.user) == ("echo", b'{"a":1e400}', "alice")
    id_ = request.meta["id"]
    assert id_.startswith("s1/b-")
    assert request.meta == {
        "id": id_, "root": id_, "origin": "s1", "scope": "client", "attempt": 1, "path": [],
    }  # fmt: skip


def test_where_one_delivery_completes_the_message_the_bridge_reports() -> None:
    stand = Stand()
    bridge, echo = stand.bridge("alice"), stand.handler("echo")
    token = stand.submit(bridge, "echo")
    request = stand.answer(echo, clients("alice", body=b"-0"))
    delivery = stand.deliver(bridge)
    assert delivery == Deliver(
        1, f"{request.meta['id']}.0", "echo", b"-0", [[0, 1]], token, {"origin": "s1", "message": request.meta["id"]}
    )
    assert stand.heard(bridge) == []
    finished(stand)


def test_where_that_delivery_fails_the_broker_reports() -> None:
    stand = Stand()
    bridge, chat = stand.bridge("alice", "bob"), stand.handler("chat")
    token = stand.submit(bridge, "chat")
    request = stand.answer(chat, clients("alice", "bob"))
    stand.deliver(bridge, (1, "overloaded"))
    assert stand.report(bridge) == Report(
        token, 1, "overloaded", request.meta["id"], {"alice": "delivered", "bob": "failed:overloaded"}
    )
    finished(stand)


@pytest.mark.parametrize(
    "commands",
    [
        [clients("alice"), clients("bob")],  # two deliveries
        [clients("alice", "nobody")],  # the report names somebody
        [clients("alice", "carol")],  # another bridge delivers too
        [clients("carol")],  # another bridge delivers
        [],
    ],
)
def test_in_every_other_case_the_broker_reports(commands: list[Command]) -> None:
    stand = Stand()
    bridge, other, chat = stand.bridge("alice", "bob"), stand.bridge("carol"), stand.handler("chat")
    token = stand.submit(bridge, "chat")
    stand.answer(chat, *commands)
    for link in (bridge, other):
        for delivery in stand.heard_of(link, Deliver):
            assert delivery.token is None
            assert "message" not in delivery.meta
            stand.say(link, Confirm(delivery.serial))
    stand.report(bridge, token)
    finished(stand)


def test_a_server_that_answers_nothing_is_named_although_the_bridge_could_have_reported() -> None:
    stand = federated()
    bridge, first, second = stand.bridge("alice"), stand.handler("first"), stand.handler("second")
    token = stand.submit(bridge, "first")
    stand.answer(first, servers("s3"), handler("second"))
    forward = stand.one(bridge, Forward)
    stand.say(bridge, Forwarded(forward.token, "sent", {"reported": True}))
    stand.answer(second, clients("alice"))
    assert stand.deliver(bridge).token is None
    assert stand.report(bridge, token).recipients == {"s3": "sent", "alice": "delivered"}
    finished(stand)


def test_a_user_named_twice_gets_it_twice() -> None:
    stand = Stand()
    bridge, chat = stand.bridge("alice", "bob"), stand.handler("chat")
    stand.submit(bridge, "chat")
    stand.answer(chat, clients("bob", "alice", "bob"))
    assert stand.deliver(bridge).targets == [[0, 2], [1, 1], [2, 2]]
    finished(stand)


def test_every_session_of_a_user_is_a_target() -> None:
    stand = Stand()
    bridge, chat = stand.bridge("alice", "bob", "alice"), stand.handler("chat")
    stand.submit(bridge, "chat")
    stand.answer(chat, clients("alice"))
    assert stand.deliver(bridge).targets == [[0, 1, 3]]
    finished(stand)


@pytest.mark.parametrize(
    ("here", "there", "outcome"),
    [(True, True, "delivered"), (True, False, "delivered"), (False, False, "failed:not-connected")],
)
def test_a_user_on_two_bridges_is_reached_when_one_delivers(here: bool, there: bool, outcome: str) -> None:
    stand = Stand()
    first, second = stand.bridge("alice", "bob"), stand.bridge("bob")
    chat = stand.handler("chat")
    token = stand.submit(first, "chat")
    stand.answer(chat, clients("bob"))
    stand.deliver(first, *([] if here else [(0, "not-connected")]))
    assert stand.heard(first) == []
    stand.deliver(second, *([] if there else [(0, "not-connected")]))
    report = stand.report(first, token)
    assert report.recipients == ({} if outcome == "delivered" else {"bob": outcome})
    finished(stand)


def test_for_who_is_absent_it_waits_if_there_is_such_a_user() -> None:
    stand = Stand(Settings("s1", open_accounts=False), accounts=frozenset({"away"}))
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    token = stand.submit(bridge, "chat")
    stand.answer(chat, clients("away", "dave", "alice"))
    stand.deliver(bridge)
    report = stand.report(bridge, token)
    assert (report.status, report.reason) == (1, "unknown-user")
    assert report.recipients == {"away": "queued", "dave": "failed:unknown-user", "alice": "delivered"}
    assert stand.mail("away") == [b'"hi"']
    assert stand.mail("dave") == []
    finished(stand)


def test_where_accounts_are_open_nobody_is_unknown() -> None:
    stand = Stand()
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    stand.submit(bridge, "chat")
    stand.answer(chat, clients("dave"))
    assert stand.report(bridge).recipients == {"dave": "failed:not-connected"}


def test_a_bridge_that_goes_has_not_delivered() -> None:
    stand = Stand()
    first, second = stand.bridge("alice"), stand.bridge("bob")
    chat = stand.handler("chat")
    token = stand.submit(first, "chat")
    stand.answer(chat, clients("bob"))
    stand.say(second, Goodbye(None))
    assert stand.report(first, token).recipients == {"bob": "failed:not-connected"}
    finished(stand)


def test_a_sender_whose_bridge_goes_leaves_nothing_behind() -> None:
    stand = Stand()
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    stand.submit(bridge, "chat")
    stand.say(bridge, Goodbye(None))
    stand.answer(chat, clients("alice"))
    stand.heard(bridge)
    finished(stand)


def test_confirmations_that_repeat_or_run_ahead_change_nothing() -> None:
    stand = Stand()
    bridge, chat = stand.bridge("alice", "bob"), stand.handler("chat")
    tokens = [stand.submit(bridge, "chat") for _ in range(2)]
    for request in stand.heard_of(chat, Request):
        stand.reply(chat, request.token, clients("bob"), clients("alice"))
    stand.say(bridge, Confirm(0, [3, 4, 4], [[4, 0, "not-connected"], [99, 0, "timeout"]]))
    stand.say(bridge, Confirm(2**40, [1, 2, 3]))
    stand.say(bridge, Confirm(4, []))
    reports = stand.heard_of(bridge, Report)
    assert sorted(report.token for report in reports) == tokens
    assert sorted(report.status for report in reports) == [0, 1]
    finished(stand)


# --- handlers that fail ---------------------------------------------------------------------------------------------


def test_a_type_nobody_ever_served_is_unknown_at_once() -> None:
    stand = Stand()
    bridge = stand.bridge("alice")
    token = stand.submit(bridge, "nonsense")
    report = stand.report(bridge, token)
    assert (report.status, report.reason, report.recipients) == (1, "unknown-type", {})
    finished(stand)


@pytest.mark.parametrize(("after_s", "code"), [(1.0, "no-handler"), (61.0, "unknown-type")])
def test_after_a_start_servers_are_told_to_try_again(after_s: float, code: str) -> None:
    stand = federated(accept="open")
    peer = stand.server("s2")
    bridge = stand.bridge("alice")
    stand.wait(after_s)
    stand.relay(peer, "chat")
    assert stand.one(peer, Relayed).outcome == f"failed:{code}"
    stand.submit(bridge, "chat")
    assert stand.report(bridge).reason == "unknown-type"


def test_a_declared_type_waits_for_its_handler() -> None:
    stand = Stand(Settings("s1", open_accounts=True, declared_types=frozenset({"slow"})))
    bridge = stand.bridge("alice")
    stand.submit(bridge, "slow")
    stand.wait(4.0)
    assert stand.heard(bridge) == []
    late = stand.handler("slow")
    assert stand.answer(late).meta["attempt"] == 1
    stand.report(bridge)
    finished(stand)


def test_a_type_whose_handlers_do_not_come_is_given_up() -> None:
    stand = Stand()
    bridge, gone = stand.bridge("alice"), stand.handler("t")
    stand.say(gone, Goodbye(None))
    stand.submit(bridge, "t")
    stand.wait(4.9)
    assert stand.heard(bridge) == []
    stand.wait(0.6)
    assert stand.report(bridge).reason == "no-handler"
    finished(stand)


def test_a_declared_type_that_was_served_is_known_when_it_is_not_declared_any_more() -> None:
    stand = Stand(Settings("s1", open_accounts=True, declared_types=frozenset({"served", "never"})))
    stand.handler("served")
    assert list(stand.store.open().types) == ["served"]
    stand.settings = Settings("s1", open_accounts=True)
    stand.restart()
    bridge = stand.bridge("alice")
    stand.submit(bridge, "never")
    assert stand.report(bridge).reason == "unknown-type"
    stand.submit(bridge, "served")
    assert stand.heard(bridge) == [], "its handler may come back"
    stand.wait(5.5)
    assert stand.report(bridge).reason == "no-handler"
    finished(stand)


def test_a_message_for_handlers_that_are_not_started_any_more_does_not_wait() -> None:
    stand = Stand(Settings("s1", open_accounts=True, declared_types=frozenset({"t"})))
    bridge = stand.bridge("alice")
    stand.router.on_types_given_up(frozenset({"t"}))
    stand.submit(bridge, "t")
    assert stand.report(bridge).reason == "no-handler"
    busy = stand.handler("t", credit=1)  # somebody else has started one
    stand.submit(bridge, "t")
    stand.submit(bridge, "t")
    request = stand.request(busy)
    assert stand.heard_of(bridge, Report) == [], "it is busy, and there"
    stand.reply(busy, request.token)
    assert stand.report(bridge).status == 0
    stand.answer(busy)
    stand.report(bridge)
    stand.say(busy, Goodbye(None))
    stand.submit(bridge, "t")
    assert stand.report(bridge).reason == "no-handler"
    stand.router.on_types_given_up(frozenset())
    stand.submit(bridge, "t")
    stand.answer(stand.handler("t"))
    assert stand.report(bridge).status == 0, "it waited for that one"
    finished(stand)


def test_what_waited_for_a_busy_handler_waits_on_for_the_next_one_when_it_dies() -> None:
    stand = Stand(limited(attempts=1))
    bridge, busy = stand.bridge("alice"), stand.handler("t", credit=1)
    stand.submit(bridge, "t")
    stand.submit(bridge, "t")
    stand.wait(20.0)
    stand.take(stand.router.on_undeliverable(busy, Heartbeat(), stand.now))
    del stand.alive[busy]
    assert stand.report(bridge).reason == "handler-lost"
    stand.wait(4.0)
    assert stand.heard(bridge) == []
    stand.answer(stand.handler("t"))
    stand.report(bridge)
    finished(stand)


def test_a_handler_that_fails_says_so_to_the_sender_and_why_to_the_operator() -> None:
    stand = Stand()
    bridge, bad = stand.bridge("alice"), stand.handler("t")
    stand.submit(bridge, "t")
    stand.say(bad, Reply(stand.request(bad).token, 7, [], "no ink"))
    assert stand.report(bridge).reason == "handler-failed"
    assert [notice.fields["note"] for notice in stand.notices if notice.event == "handler-failed"] == ["no ink"]
    finished(stand)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (Command("sendClients", ["alice"], b"{"), "bad-reply"),
        (Command("sendHandler", [], b"1"), "bad-reply"),
        (Command("sendAll", ["alice"], b"1"), "unknown-command"),
    ],
)
def test_a_reply_that_cannot_be_carried_out_is_not_carried_out_at_all(command: Command, code: str) -> None:
    stand = Stand()
    bridge, bad = stand.bridge("alice"), stand.handler("t")
    stand.submit(bridge, "t")
    token = stand.request(bad).token
    stand.reply(bad, token, clients("alice"), command)
    assert stand.report(bridge).reason == code
    error = stand.one(bad, Error)
    assert (error.code, error.op, error.token) == (code, 11, token)
    assert not stand.heard_of(bridge, Deliver)
    finished(stand)


def test_a_reply_that_cannot_be_read_ends_its_request() -> None:
    stand = Stand()
    bridge, bad = stand.bridge("alice"), stand.handler("t", credit=1)
    first, second = stand.submit(bridge, "t"), stand.submit(bridge, "t")
    stand.say(bad, Malformed("malformed", "commands", 11, stand.request(bad).token))
    assert stand.report(bridge, first).reason == "bad-reply"
    assert stand.one(bad, Error).code == "malformed"
    stand.answer(bad)
    stand.report(bridge, second)
    finished(stand)


def test_replies_late_double_and_from_others_change_nothing() -> None:
    stand = Stand()
    bridge, mine = stand.bridge("alice"), stand.handler("t", credit=1)
    other = stand.handler("other")
    stand.submit(bridge, "t")
    token = stand.request(mine).token
    for wrong in (token, token + 1, 0, -5, 2**60):
        stand.reply(other, wrong, clients("alice"))
        assert stand.one(other, Error).code == "unknown-token"
    stand.reply(mine, token)
    stand.report(bridge)
    stand.reply(mine, token, clients("alice"))
    error = stand.one(mine, Error)
    assert (error.code, error.op, error.token) == ("unknown-token", 11, token)
    assert stand.heard(bridge) == []
    finished(stand)


def test_a_message_of_a_dead_handler_goes_to_another_before_all_that_waits() -> None:
    stand = Stand()
    bridge, first = stand.bridge("alice"), stand.handler("t", credit=1)
    stand.submit(bridge, "t", b"1")
    stand.submit(bridge, "t", b"2")
    dying = stand.request(first)
    stand.take(stand.router.on_undeliverable(first, Heartbeat(), stand.now))
    second = stand.handler("t", credit=1)
    again = stand.answer(second, clients("alice"))
    assert (again.meta["id"], again.meta["attempt"], again.body) == (dying.meta["id"], 2, b"1")
    assert again.token != dying.token
    assert stand.answer(second, clients("alice")).meta["attempt"] == 1
    stand.say(bridge, Confirm(2))
    finished(stand)


def test_a_handler_that_freezes_is_replaced_and_its_late_reply_ignored() -> None:
    stand = Stand()
    bridge, frozen = stand.bridge("alice"), stand.handler("t")
    healthy = stand.handler("t", credit=1, name="healthy")
    stand.submit(bridge, "t")
    request = stand.request(frozen)
    del stand.alive[frozen]
    stand.wait(5.9)
    assert stand.heard_of(healthy, Request) == []
    stand.wait(0.6)
    again = stand.answer(healthy)
    assert (again.meta["id"], again.meta["attempt"]) == (request.meta["id"], 2)
    stand.report(bridge)
    stand.heard(frozen)
    stand.reply(frozen, request.token, clients("alice"))
    assert stand.one(frozen, Error).code == "hello-first"
    stand.say(frozen, Hello(1, "handler", "h", {"types": ["t"]}))
    stand.reply(frozen, request.token, clients("alice"))
    assert stand.one(frozen, Error).code == "unknown-token"
    assert stand.heard(bridge) == []
    finished(stand)


def test_a_message_that_every_handler_dies_of_is_given_up() -> None:
    stand = Stand(limited(attempts=3))
    bridge = stand.bridge("alice")
    tokens = []
    for attempt in (1, 2, 3):
        victim = stand.handler("t")
        if attempt == 1:
            tokens.append(stand.submit(bridge, "t"))
        assert stand.request(victim).meta["attempt"] == attempt
        stand.take(stand.router.on_undeliverable(victim, Heartbeat(), stand.now))
    assert stand.report(bridge, tokens[0]).reason == "handler-lost"
    finished(stand)


def test_a_message_whose_handler_died_and_no_other_comes_is_handler_lost() -> None:
    stand = Stand()
    bridge, victim = stand.bridge("alice"), stand.handler("t")
    stand.submit(bridge, "t")
    stand.take(stand.router.on_undeliverable(victim, Heartbeat(), stand.now))
    del stand.alive[victim]
    stand.wait(19.5)
    assert stand.heard_of(bridge, Report) == []
    stand.wait(1.0)
    assert stand.report(bridge).reason == "handler-lost"
    finished(stand)


def test_a_request_that_takes_too_long_is_given_up_but_still_occupies_its_handler() -> None:
    stand = Stand(limited(request_s=10.0))
    bridge, slow = stand.bridge("alice"), stand.handler("t", credit=1)
    stand.submit(bridge, "t")
    request = stand.request(slow)
    stand.wait(10.5)
    assert stand.report(bridge).reason == "timeout"
    stand.submit(bridge, "t")
    stand.wait(2.0)
    assert stand.heard_of(slow, Request) == []
    stand.reply(slow, request.token, clients("alice"))
    assert not stand.heard(bridge), "a late answer is not carried out"
    stand.answer(slow)
    stand.report(bridge)
    finished(stand)


def test_what_waits_too_long_for_a_busy_handler_is_told_overloaded() -> None:
    stand = Stand(limited(request_s=10.0))
    bridge = stand.bridge("alice")
    stand.handler("t", credit=1)
    first, second = stand.submit(bridge, "t"), stand.submit(bridge, "t")
    stand.wait(10.5)
    reports = {report.token: report.reason for report in stand.heard_of(bridge, Report)}
    assert reports == {first: "timeout", second: "overloaded"}


def test_a_timed_out_request_of_a_handler_that_dies_is_not_tried_again() -> None:
    stand = Stand(limited(request_s=3.0))
    bridge, slow = stand.bridge("alice"), stand.handler("t")
    stand.submit(bridge, "t")
    stand.wait(3.5)
    stand.report(bridge)
    stand.take(stand.router.on_undeliverable(slow, Heartbeat(), stand.now))
    assert stand.heard_of(stand.handler("t"), Request) == []
    finished(stand)


# --- time to live ---------------------------------------------------------------------------------------------------


def test_what_waited_for_a_handler_longer_than_it_lives_is_not_given_to_one() -> None:
    stand = Stand()
    bridge, busy = stand.bridge("alice"), stand.handler("t", credit=1)
    stand.submit(bridge, "t", b"1", ttl_s=1)
    stand.submit(bridge, "t", b"2", ttl_s=2)
    stand.submit(bridge, "t", b"3", ttl_s=10)
    stand.wait(2.0)
    assert stand.answer(busy).body == b"1", "what a handler has is its own"
    reports = stand.heard_of(bridge, Report)
    assert [(report.status, report.reason) for report in reports] == [(0, None), (1, "expired")]
    assert stand.answer(busy).body == b"3"
    assert stand.report(bridge).status == 0
    finished(stand)


def test_what_no_handler_came_for_in_its_time_is_expired_and_not_without_one() -> None:
    stand = Stand(Settings("s1", open_accounts=True, declared_types=frozenset({"t"})))
    bridge = stand.bridge("alice")
    stand.wait(6.0)
    stand.submit(bridge, "t", ttl_s=2)
    patient = stand.submit(bridge, "t", ttl_s=20)
    stand.wait(5.0)
    reports = {report.token: report.reason for report in stand.heard_of(bridge, Report)}
    assert reports == {patient - 1: "expired", patient: "no-handler"}
    finished(stand)


def test_what_has_no_time_at_all_is_not_given_to_anybody() -> None:
    stand = Stand()
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    stand.submit(bridge, "chat", ttl_s=0)
    assert stand.report(bridge).reason == "expired"
    assert stand.heard(chat) == []
    finished(stand)


@pytest.mark.parametrize("ttl_s", ["5", None, -1, True, float("nan"), float("inf"), [5]])
def test_a_time_to_live_that_is_none_is_ignored(ttl_s: object) -> None:
    stand = Stand()
    bridge, busy = stand.bridge("alice"), stand.handler("t", credit=1)
    stand.submit(bridge, "t")
    stand.submit(bridge, "t", ttl_s=ttl_s)
    stand.wait(5.0)
    stand.answer(busy)
    stand.answer(busy)
    assert [report.status for report in stand.heard_of(bridge, Report)] == [0, 0]


def test_of_an_ordered_type_what_expired_is_passed_over() -> None:
    stand = Stand()
    bridge, first = stand.bridge("alice", "bob"), stand.handler("t", credit=1, order={"t": "user"})
    stand.submit(bridge, "t", b"1", session=1)
    for body, ttl_s in ((b"2", 1), (b"3", 10), (b"4", 1), (b"5", 10)):
        stand.submit(bridge, "t", body, session=2, ttl_s=ttl_s)
    stand.wait(1.0)
    assert [stand.answer(first).body for _ in range(3)] == [b"1", b"3", b"5"]
    assert [report.reason for report in stand.heard_of(bridge, Report)] == [None, "expired", None, "expired", None]
    assert stand.router._dispatcher.workers._groups == {}
    finished(stand)


def test_of_an_ordered_type_what_expired_binds_its_user_to_nobody() -> None:
    """Or what comes next would wait for a handler that has died since."""
    stand = Stand()
    bridge, first = stand.bridge("alice", "bob"), stand.handler("t", credit=1, order={"t": "user"})
    stand.submit(bridge, "t", b"1", session=1)
    stand.submit(bridge, "t", b"2", session=2, ttl_s=1)
    stand.wait(1.0)
    assert stand.answer(first).body == b"1"
    assert [report.reason for report in stand.heard_of(bridge, Report)] == [None, "expired"]
    stand.take(stand.router.on_undeliverable(first, Heartbeat(), stand.now))
    del stand.alive[first]
    second = stand.handler("t", credit=1, order={"t": "user"})
    stand.submit(bridge, "t", b"3", session=2)
    assert stand.answer(second).body == b"3"
    assert stand.report(bridge).status == 0
    assert stand.router._dispatcher.workers._groups == {}
    finished(stand)


# --- bounds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "bodies", "refused"),
    [
        ({"max_held": 2}, [b"1", b"1", b"1"], [2]),
        ({"max_held_bytes": 6}, [b"12345", b"12", b"1"], [1]),
        ({"max_waiting": 1}, [b"1", b"1", b"1"], [2]),
    ],
)
def test_above_a_bound_messages_are_refused(limits: dict[str, int], bodies: list[bytes], refused: list[int]) -> None:
    stand = Stand(limited(**limits))
    bridge, busy = stand.bridge("alice"), stand.handler("t", credit=1)
    tokens = [stand.submit(bridge, "t", body) for body in bodies]
    reports = stand.heard_of(bridge, Report)
    assert [tokens.index(report.token) for report in reports] == refused
    assert {report.reason for report in reports} == {"overloaded"}
    for _ in range(len(tokens) - len(refused)):
        stand.answer(busy)
    assert len(stand.heard_of(bridge, Report)) == len(tokens) - len(refused)
    stand.submit(bridge, "t")
    stand.answer(busy)
    stand.report(bridge)
    finished(stand)


def test_one_type_that_waits_does_not_take_the_place_of_others() -> None:
    stand = Stand(limited(max_waiting=1))
    bridge, other = stand.bridge("alice"), stand.handler("other")
    stand.handler("t", credit=1)
    for _ in range(3):
        stand.submit(bridge, "t")
    assert stand.report(bridge).reason == "overloaded"
    stand.submit(bridge, "other")
    stand.answer(other)
    stand.report(bridge)


# --- pipelines, hops and results ------------------------------------------------------------------------------------


def test_a_pipeline_keeps_the_sender_and_adds_a_step_each() -> None:
    stand = Stand()
    bridge, first, second = stand.bridge("alice"), stand.handler("one"), stand.handler("two")
    token = stand.submit(bridge, "one")
    start = stand.answer(first, handler("two", b"[2]"))
    request = stand.answer(second, clients("alice"))
    assert (request.type, request.body, request.user) == ("two", b"[2]", "alice")
    assert request.meta["id"] == f"{start.meta['id']}.0.0"
    assert request.meta["root"] == start.meta["id"]
    assert request.meta["path"] == ["s1/one"]
    delivery = stand.deliver(bridge)
    assert (delivery.type, delivery.token) == ("two", token)
    assert delivery.id == f"{start.meta['id']}.0.0.0"
    finished(stand)


def test_an_endless_pipeline_is_cut_at_the_hop_limit() -> None:
    stand = Stand()
    bridge, loop = stand.bridge("alice"), stand.handler("loop")
    stand.submit(bridge, "loop")
    hops = 0
    while stand.inbox.get(loop):
        hops += 1
        assert len(stand.answer(loop, handler("loop")).meta["path"]) == hops - 1
    assert hops == HOP_LIMIT
    report = stand.report(bridge)
    assert (report.reason, report.recipients) == ("too-many-hops", {"loop": "failed:too-many-hops"})
    finished(stand)


def test_a_tree_of_results_is_cut_at_a_thousand_of_one_root() -> None:
    stand = Stand()
    bridge, tree = stand.bridge("alice"), stand.handler("tree")
    stand.submit(bridge, "tree")
    handled = 0
    while requests := stand.heard_of(tree, Request):
        for request in requests:
            handled += 1
            stand.reply(tree, request.token, *[handler("tree")] * 3)
    assert handled == MAX_RESULTS + 1
    assert stand.report(bridge).reason == "too-many-results"
    finished(stand)


def test_a_root_that_another_server_has_named_counts_for_what_it_has_sent_alone() -> None:
    stand = Stand(Settings("s1", open_accounts=True, routes={"s2": Route("s2", fabric="ipc:///s2")}))
    peer, bridge, tree = stand.server("s2"), stand.bridge("alice"), stand.handler("tree")
    token = stand.submit(bridge, "tree")
    request = stand.request(tree)
    stand.relay(peer, "tree", root=request.meta["id"])
    while requests := stand.heard_of(tree, Request):
        for each in requests:
            assert each.meta["root"] == request.meta["id"]
            stand.reply(tree, each.token, *[handler("tree")] * 3)
    stand.reply(tree, request.token, handler("tree"))
    stand.answer(tree)
    assert stand.report(bridge, token).status == 0


def test_a_pipeline_into_nothing_or_into_a_reserved_type_says_so() -> None:
    stand = Stand()
    bridge, one = stand.bridge("alice"), stand.handler("one")
    for target, code in (("nothing", "unknown-type"), ("bester.auth", "reserved"), ("dummy", "reserved")):
        stand.submit(bridge, "one")
        stand.answer(one, handler(target))
        report = stand.report(bridge)
        assert (report.reason, report.recipients) == (code, {target: f"failed:{code}"})
    finished(stand)


def test_several_commands_are_all_carried_out_and_reported_once() -> None:
    stand = federated()
    bridge, one, two = stand.bridge("alice", "bob"), stand.handler("one"), stand.handler("two")
    token = stand.submit(bridge, "one")
    request = stand.answer(one, clients("bob"), servers("s2"), handler("two"), clients("bob", "nobody"))
    relay = stand.one(S2, Relay)
    assert relay.meta["id"] == f"{request.meta['id']}.1.0"
    assert [delivery.id for delivery in stand.inbox[bridge] if isinstance(delivery, Deliver)] == [
        f"{request.meta['id']}.0", f"{request.meta['id']}.3",
    ]  # fmt: skip
    stand.answer(two)
    stand.say(bridge, Confirm(2))
    assert stand.heard_of(bridge, Report) == []
    stand.relayed("s2", relay.token, "delivered")
    assert stand.report(bridge, token).recipients == {
        "nobody": "failed:not-connected", "bob": "delivered", "s2": "delivered",
    }  # fmt: skip
    finished(stand)


# --- to other servers -----------------------------------------------------------------------------------------------


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


def test_without_a_type_of_its_own_it_goes_as_the_handlers() -> None:
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


def test_another_address_is_tried_where_everybody_is_welcome() -> None:
    stand = federated("open")
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.submit(bridge, "one")
    stand.answer(one, servers("10.9.9.9:1"))
    forward = stand.one(bridge, Forward)
    stand.say(bridge, Forwarded(forward.token, "failed:unreachable"))
    assert stand.report(bridge).recipients == {"10.9.9.9:1": "failed:unreachable"}


def test_of_two_servers_one_is_away_and_the_other_served() -> None:
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


def test_its_own_name_is_this_server() -> None:
    stand = federated()
    bridge, one, two = stand.bridge("alice"), stand.handler("one"), stand.handler("two")
    stand.submit(bridge, "one")
    stand.answer(one, servers("s1", as_type="two"))
    request = stand.answer(two)
    assert (request.meta["path"], request.user) == (["s1/one"], None)
    assert (request.meta["scope"], request.meta["peer"]) == ("server", "s1")
    assert stand.report(bridge).status == 0
    finished(stand)


def test_what_is_on_a_link_that_is_lost_waits_and_an_answer_to_it_comes_too_late() -> None:
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


def test_a_relay_that_cannot_be_sent_waits() -> None:
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


def test_without_an_answer_in_time_it_waits_and_a_late_answer_ends_that() -> None:
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


def test_an_answer_on_another_link_is_no_answer() -> None:
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


def test_what_has_no_room_in_a_lane_waits_on_disk_and_holds_up_no_other() -> None:
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


def test_to_a_stranger_a_full_lane_is_overloaded() -> None:
    stand = federated("open", max_lane=1)
    bridge, one = stand.bridge("alice"), stand.handler("one")
    stand.submit(bridge, "one")
    stand.answer(one, servers("10.9.9.9:1", "10.9.9.9:1"))
    forward = stand.one(bridge, Forward)
    stand.say(bridge, Forwarded(forward.token, "delivered"))
    assert stand.report(bridge).recipients == {"10.9.9.9:1": "failed:overloaded"}
    finished(stand)


def test_a_forward_whose_bridge_goes_waits_for_another_and_to_a_stranger_it_is_given_up() -> None:
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


def test_a_stranger_that_does_not_answer_is_given_up() -> None:
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
    assert stand.router._dispatcher.queues.messages == 0
    finished(stand)


# --- from other servers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claimed", "known"),
    [("s2/b-1/7.0.0", "s2/b-1/7.0.0"), ("s9/b-1/7.0.0", "s9/b-1/7.0.0"), ("s1/b-x1/3", "s2/s1/b-x1/3")],
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
def test_a_path_that_cannot_be_read_is_as_good_as_too_long(path: object) -> None:
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


def test_over_keyless_tcp_nobody_is_who_he_says_he_is() -> None:
    stand = federated("open")
    peer, chat = stand.server("s2", door="tcp"), stand.handler("chat")
    stand.relay(peer, "chat", id="s2/b-1/7", root="s2/b-1/7", origin="s2", path=["a/b"])
    request = stand.answer(chat)
    assert request.meta["id"].startswith("s1/tcp-")
    assert (request.meta["origin"], request.meta["peer"]) == ("a server over tcp", "a server over tcp")


@pytest.mark.parametrize("body", [b"no JSON", b'"\xff"', b"[" * 65 + b"]" * 65, b""])
def test_what_another_server_relays_is_checked_where_it_enters(body: bytes) -> None:
    stand = federated()
    peer = stand.server("s2")
    stand.handler("chat")
    stand.relay(peer, "chat", body=body)
    assert stand.one(peer, Relayed).outcome == "failed:malformed"
    finished(stand)


def test_what_enters_while_the_broker_ends_is_refused_and_the_rest_goes_on() -> None:
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


def test_a_lease_is_how_long_it_may_take() -> None:
    stand = federated()
    bridge, slow = stand.bridge("alice"), stand.handler("slow", lease_ms=60_000)
    stand.submit(bridge, "slow")
    stand.wait(50)
    stand.answer(slow)
    assert stand.report(bridge).status == 0
    finished(stand)


def test_hello_after_goodbye_keeps_what_is_outstanding() -> None:
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


# --- of a handler's own initiative ----------------------------------------------------------------------------------


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


def test_an_emission_that_is_not_known_any_more_and_says_that_it_comes_again_is_marked() -> None:
    stand = Stand(Settings("s1"), accounts=frozenset({"alice", "bob"}))
    for epoch, again in (("e", {}), ("e2", {"again": True})):
        bridge, clock = stand.bridge("alice"), stand.handler("clock")
        stand.emit(clock, "clock", clients("alice"), id="noon", **again)
        assert stand.deliver(bridge).meta.get("redelivered", False) is bool(again)
        stand.restart(epoch)


@pytest.mark.parametrize("id_", [5, None, "x" * 513, ["a"]])
def test_an_id_that_is_none_makes_each_emission_its_own(id_: object) -> None:
    stand = Stand()
    bridge, clock = stand.bridge("alice"), stand.handler("clock")
    for _ in range(2):
        stand.emit(clock, "clock", clients("alice"), id=id_)
    assert len(stand.heard_of(bridge, Deliver)) == 2


def test_only_as_one_of_its_types_and_only_what_is_sound() -> None:
    stand = Stand()
    clock = stand.handler("clock")
    token = stand.emit(clock, "other", clients("alice"))
    error = stand.one(clock, Error)
    assert (error.code, error.op, error.token) == ("not-allowed", 12, token)
    token = stand.emit(clock, "clock", Command("sendAll", [], b"1"))
    assert stand.one(clock, Outcome) == Outcome(token, 1, {}, "unknown-command")
    finished(stand)


# --- the trace ------------------------------------------------------------------------------------------------------


def test_the_way_of_a_message_can_be_asked_for() -> None:
    stand = Stand()
    bridge, one, two = stand.bridge("alice"), stand.handler("one"), stand.handler("two")
    stand.submit(bridge, "one")
    root = stand.answer(one, handler("two")).meta["id"]
    stand.answer(two, clients("alice"))
    stand.deliver(bridge)
    steps = stand.ask(bridge, "trace", root).value
    assert [(step["what"], step["where"]) for step in steps] == [
        ("handler", "s1/one"), ("handler", "s1/two"), ("delivered", "s1/alice"),
    ]  # fmt: skip


# --- what a hostile handler may not do to others ---


def test_a_command_becomes_only_so_many_frames() -> None:
    stand = Stand(limited(max_frames=5))
    bridge = stand.bridge("bob", "bob", "alice", "alice", "alice")
    chat = stand.handler("chat")
    stand.submit(bridge, "chat")
    stand.answer(chat, clients("alice", "bob", "bob"))
    stand.deliver(bridge)
    report = stand.report(bridge)
    assert (report.status, report.reason) == (1, "too-many-results")
    assert report.recipients == {"alice": "delivered", "bob": "failed:too-many-results"}
    finished(stand)


def test_what_a_handler_sits_on_costs_others_nothing_once_its_time_is_up() -> None:
    stand = Stand(limited(max_held=2, request_s=5.0))
    bridge, deaf, chat = stand.bridge("alice"), stand.handler("deaf"), stand.handler("chat")
    for _ in range(2):
        stand.submit(bridge, "deaf")
    stand.submit(bridge, "chat")
    assert stand.report(bridge).reason == "overloaded"
    requests = stand.heard_of(deaf, Request)
    stand.wait(6)
    assert [report.reason for report in stand.heard_of(bridge, Report)] == ["timeout", "timeout"]
    stand.submit(bridge, "chat")
    stand.answer(chat)
    assert stand.report(bridge).status == 0
    for request in requests:  # late, and without effect
        stand.reply(deaf, request.token, clients("alice"))
    assert stand.heard(bridge) == []
    finished(stand)


def test_a_long_outcome_is_told_in_full_once_and_kept_in_short() -> None:
    stand = federated()
    clock = stand.handler("clock")
    names = [f"user-{number}" for number in range(100)]
    stand.emit(clock, "clock", clients(*names), id="noon")
    assert len(stand.one(clock, Outcome).recipients) == 100
    stand.emit(clock, "clock", clients(*names), id="noon")
    again = stand.one(clock, Outcome)
    assert (again.status, again.reason, again.recipients) == (1, "not-connected", {})


@pytest.mark.parametrize("name", ["x" * 200, "a\nb", "nul\0"])
def test_a_type_is_a_name(name: str) -> None:
    stand = federated()
    link = stand.link()
    stand.say(link, Hello(1, "handler", "h", {"types": [name]}))
    assert stand.one(link, Error).code == "malformed"
