"""The way of a message: one report each, with the outcome of every result, at each possible end."""

from __future__ import annotations

import pytest

from bester.broker.core.settings import Route, Settings
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
    Relay,
    Relayed,
    Reply,
    Report,
    Request,
)
from tests.unit.core_federated import S2, federated, finished
from tests.unit.core_stand import Stand, clients, handler, limited, servers

# --- to clients -------------------------------------------------------------------------------------------------------


def test_request_carries_everything_about_its_message() -> None:
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


def test_bridge_reports_where_one_delivery_completes_the_message() -> None:
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


def test_broker_reports_where_that_delivery_fails() -> None:
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
def test_broker_reports_in_every_other_case(commands: list[Command]) -> None:
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


def test_unanswering_server_is_named_although_the_bridge_could_have_reported() -> None:
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


def test_user_named_twice_gets_the_message_twice() -> None:
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
def test_user_on_two_bridges_is_reached_when_one_delivers(here: bool, there: bool, outcome: str) -> None:
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


def test_message_for_an_absent_user_is_queued_if_the_user_is_known() -> None:
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


def test_no_user_is_unknown_where_accounts_are_open() -> None:
    stand = Stand()
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    stand.submit(bridge, "chat")
    stand.answer(chat, clients("dave"))
    assert stand.report(bridge).recipients == {"dave": "failed:not-connected"}


def test_lost_bridge_may_have_delivered() -> None:
    stand = Stand()
    first, second = stand.bridge("alice"), stand.bridge("bob")
    chat = stand.handler("chat")
    token = stand.submit(first, "chat")
    stand.answer(chat, clients("bob"))
    stand.say(second, Goodbye(None))
    assert stand.report(first, token).recipients == {"bob": "failed:unreachable"}
    finished(stand)


def test_sender_whose_bridge_is_lost_leaves_no_state() -> None:
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


# --- handlers that fail -----------------------------------------------------------------------------------------------


def test_type_without_any_handler_so_far_is_unknown_at_once() -> None:
    stand = Stand()
    bridge = stand.bridge("alice")
    token = stand.submit(bridge, "nonsense")
    report = stand.report(bridge, token)
    assert (report.status, report.reason, report.recipients) == (1, "unknown-type", {})
    finished(stand)


@pytest.mark.parametrize(("after_s", "code"), [(1.0, "no-handler"), (61.0, "unknown-type")])
def test_after_a_start_servers_must_retry(after_s: float, code: str) -> None:
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


def test_message_for_a_given_up_type_does_not_wait() -> None:
    stand = Stand(Settings("s1", open_accounts=True, declared_types=frozenset({"t"})))
    bridge = stand.bridge("alice")
    stand.router.on_types_given_up(frozenset({"t"}))
    stand.submit(bridge, "t")
    assert stand.report(bridge).reason == "no-handler"
    busy = stand.handler("t", credit=1)  # another program has started the handler
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


def test_message_waiting_for_a_busy_handler_waits_for_the_next_when_the_handler_dies() -> None:
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


def test_failing_handler_is_reported_to_the_sender_and_its_reason_to_the_operator() -> None:
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
    report = stand.report(bridge)
    assert report.reason == code
    error = stand.one(bad, Error)
    assert (error.code, error.op, error.token) == (code, 11, token)
    assert error.text.startswith(f"message {report.message}: "), "the id that the sender has"
    assert not stand.heard_of(bridge, Deliver)
    finished(stand)


def test_a_reply_that_cannot_be_read_ends_its_request() -> None:
    stand = Stand()
    bridge, bad = stand.bridge("alice"), stand.handler("t", credit=1)
    first, second = stand.submit(bridge, "t"), stand.submit(bridge, "t")
    stand.say(bad, Malformed("malformed", "commands", 11, stand.request(bad).token))
    reported = stand.report(bridge, first)
    assert reported.reason == "bad-reply"
    error = stand.one(bad, Error)
    assert (error.code, error.text) == ("malformed", f"message {reported.message}: commands")
    stand.answer(bad)
    stand.report(bridge, second)
    finished(stand)


def test_late_duplicate_and_foreign_replies_change_nothing() -> None:
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


def test_message_of_a_dead_handler_is_requeued_first() -> None:
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


def test_message_that_kills_every_handler_is_given_up() -> None:
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


def test_timed_out_request_still_occupies_its_handler() -> None:
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


def test_message_waiting_too_long_for_a_busy_handler_is_overloaded() -> None:
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


# --- pipelines, hops and results --------------------------------------------------------------------------------------


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


def test_root_named_by_another_server_counts_for_that_server_alone() -> None:
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


def test_pipeline_into_an_unknown_or_reserved_type_fails() -> None:
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


# --- the trace --------------------------------------------------------------------------------------------------------


def test_path_of_a_message_can_be_traced() -> None:
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
