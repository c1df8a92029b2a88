"""Late outcomes of a message that a server processed twice, over its restart: a failure that comes last counts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bester.broker.core.effects import Link
from bester.broker.core.settings import Route, Settings
from bester.broker.wire.messages import Deliver, Open, Relay, Relayed, Submit
from tests.unit.core_stand import Stand, clients, servers

S2 = Link("server", b"s2")


@pytest.mark.parametrize(
    ("news", "known", "told"),
    [
        (["delivered", "failed:handler-failed"], "failed:handler-failed", ["delivered", "failed:handler-failed"]),
        (["delivered", "delivered"], "delivered", ["delivered"]),
        (["failed:expired", "delivered"], "failed:expired", ["failed:expired"]),
    ],
)
def test_outcome_beyond_those_expected_counts_only_where_it_is_worse(
    news: list[str], known: str, told: list[str]
) -> None:
    stand = Stand(Settings("s1", routes={"s2": Route("s2", fabric="ipc:///s2")}), accounts=frozenset({"alice"}))
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    stand.take(stand.router.on_server_ready("s2", stand.now))
    peer = stand.server("s2")
    stand.submit(bridge, "chat", outcome=True)
    stand.answer(chat, servers("s2"))
    relay = stand.one(S2, Relay)
    stand.say(S2, Relayed(relay.token, "queued", {"queued": 1}))
    message = stand.report(bridge).message
    for number, outcome in enumerate(news, 1):
        body = json.dumps({"message": relay.meta["id"], "outcome": outcome}).encode()
        stand.relay(peer, "bester.outcome", body, lane=["d2", number, number])
        assert stand.one(peer, Relayed).outcome == "delivered"
    assert stand.ask(bridge, "outcome", [1, message]).value == {"s2": known}
    assert [json.loads(each.body)["outcome"] for each in stand.heard_of(bridge, Deliver)] == told


def test_ready_message_takes_over_the_mark_of_its_duplicate() -> None:
    stand = Stand(Settings("s1"), accounts=frozenset({"alice", "bob"}))

    def submits(**meta: Any) -> None:
        bridge, chat = stand.join("bridge", "a", {"epoch": "x"}), stand.handler("chat")
        stand.say(bridge, Open(1, "alice"))
        stand.say(bridge, Submit(1, 1, "chat", b"1", meta))
        stand.answer(chat, clients("bob"))

    submits()  # ready, and never sent
    stand.restart()
    assert [each.meta.get("repeated") for each in stand.kept("user/bob")] == [None]
    submits(attempt=2)  # a bridge without a report on the message submits it again
    bob = stand.bridge("bob")
    assert stand.one(bob, Deliver).meta.get("redelivered") is True
