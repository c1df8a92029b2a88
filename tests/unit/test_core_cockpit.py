"""The operator's view of other servers, and the orders retry, hold, release and drop."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core.effects import Link
from bester.broker.core.settings import Route, Settings
from bester.broker.store_requests import lane
from bester.broker.wire.messages import Forward, Forwarded, Relay, Relayed, Reply, Report, Request
from tests.unit.core_stand import Stand, servers

S2 = Link("server", b"s2")
SETTINGS = Settings(
    "s1",
    open_accounts=True,
    routes={"s2": Route("s2", fabric="tcp://s2.example:2225"), "s3": Route("s3", native="10.0.0.3:2223")},
)
ORDERS = ("peerRetry", "peerHold", "peerRelease", "peerDrop")


class Office:
    """A stand with an operator, a bridge, and a handler that sends on to servers."""

    def __init__(self, stand: Stand | None = None) -> None:
        self.stand = stand or Stand(SETTINGS)
        self.begin()

    def begin(self) -> None:
        self.operator = self.stand.join("operator", "o")
        self.bridge = self.stand.bridge("ann")
        self.worker = self.stand.handler("chat", "mail")

    def send(self, *targets: str, type_: str = "chat") -> None:
        self.stand.submit(self.bridge, type_)
        self.stand.say(self.worker, Reply(self.stand.one(self.worker, Request).token, 0, [servers(*targets)]))

    def rows(self) -> dict[str, dict[str, Any]]:
        answer = self.stand.ask(self.operator, "peers")
        assert answer.status == 0
        return {row["name"]: row for row in answer.value}

    def order(self, question: str, name: str) -> Any:
        return self.stand.ask(self.operator, question, name)

    def up(self) -> None:
        self.stand.take(self.stand.router.on_server_ready("s2", self.stand.now))


@pytest.fixture
def office() -> Office:
    return Office()


def test_servers_before_anything_is_known(office: Office) -> None:
    row = office.rows()["s2"]
    assert (row["state"], row["protocol"], row["address"]) == ("down", "fabric", "tcp://s2.example:2225")
    assert (row["outbox"], row["error"], row["next_attempt_ms"], row["linked_here"]) == ([], None, None, False)
    assert office.rows()["s3"]["state"] == "unknown"


def test_reasons_of_a_lost_server_that_take_turns_are_logged_once_a_minute(office: Office) -> None:
    """As of a name server that hangs: a lookup fails, or has no answer yet."""
    stand = office.stand
    for number in range(8):
        why = "the name server did not answer" if number % 2 else "failure in name resolution"
        stand.take(stand.router.on_server_lost("s2", why, stand.now))
        assert office.rows()["s2"]["error"] == why
        stand.wait(10.0)
    assert [each.event for each in stand.notices].count("server-lost") == 4


def test_state_and_last_error_of_a_fabric_server(office: Office) -> None:
    stand = office.stand
    stand.take(stand.router.on_server_lost("s2", "the name s2.example cannot be looked up", stand.now))
    row = office.rows()["s2"]
    assert (row["state"], row["error"]) == ("down", "the name s2.example cannot be looked up")
    stand.wait(5.0)
    office.up()
    after = office.rows()["s2"]
    assert (after["state"], after["since_ms"] - row["since_ms"]) == ("up", 5000)
    office.send("s2")
    stand.say(S2, Relayed(stand.one(S2, Relay).token, "failed:overloaded"))
    row = office.rows()["s2"]
    assert row["error"] == "overloaded: a queue is full; send less, or later"
    assert row["next_attempt_ms"] > after["error_ms"]
    assert [each["messages"] for each in row["outbox"]] == [1]
    office.order("peerHold", "s2")
    assert office.rows()["s2"]["next_attempt_ms"] is None  # nothing is tried while its operator holds messages back
    (told,) = [each for each in stand.router.status(stand.now)["servers"] if each["name"] == "s2"]
    assert (told["held"], told["queued"], told["next_try_s"]) == (True, 1, None), "the status says the same"


def test_state_of_a_native_server(office: Office) -> None:
    stand = office.stand
    for outcome, meta, state, error in (
        ("failed:unreachable", {"unsent": True}, "down", "nobody answers at 10.0.0.3:2223"),
        ("failed:unreachable", {}, "down", "no report came from 10.0.0.3:2223"),
        ("delivered", {"reported": True}, "up", "no report came from 10.0.0.3:2223"),
    ):
        office.send("s3", type_="chat") if state != "up" else office.order("peerRetry", "s3")
        for forward in stand.heard_of(office.bridge, Forward):
            stand.say(office.bridge, Forwarded(forward.token, outcome, meta))
        stand.wait(3.0)
        for forward in stand.heard_of(office.bridge, Forward):
            stand.say(office.bridge, Forwarded(forward.token, outcome, meta))
        row = office.rows()["s3"]
        assert (row["state"], row["error"]) == (state, error)


def test_outbox_by_type_with_depth_and_age(office: Office) -> None:
    office.send("s2")
    office.stand.wait(10.0)
    for _ in range(3):
        office.send("s2", type_="mail")
    office.stand.wait(5.0)
    outbox = office.rows()["s2"]["outbox"]
    assert [(each["type"], each["messages"], each["bytes"]) for each in outbox] == [("mail", 3, 12), ("chat", 1, 4)]
    assert [round(each["oldest_s"]) for each in outbox] == [5, 15]


@pytest.mark.parametrize("name", ["s9", "", 5, None, ["s2"], "s2/chat"])
@pytest.mark.parametrize("question", ORDERS)
def test_orders_for_no_server_are_refused(office: Office, question: str, name: Any) -> None:
    assert office.order(question, name).status == 1


@pytest.mark.parametrize("question", ["peers", *ORDERS])
def test_nobody_but_an_operator_may_ask(office: Office, question: str) -> None:
    assert office.stand.ask(office.worker, question, "s2").status == 1
    assert office.stand.ask(office.bridge, question, "s2").status == 1


def test_held_server_gets_nothing_until_it_is_released_over_a_restart(office: Office) -> None:
    stand = office.stand
    office.up()
    assert office.order("peerHold", "s2").value == {"messages": 0, "held": True}
    office.send("s2")
    assert stand.report(office.bridge).recipients == {"s2": "queued"}
    assert stand.heard_of(S2, Relay) == []
    assert (office.rows()["s2"]["state"], office.rows()["s2"]["reachable"]) == ("held", "up")
    stand.restart()
    office.begin()
    office.up()
    stand.wait(30.0)
    office.order("peerRetry", "s2")
    assert stand.heard_of(S2, Relay) == []
    assert office.rows()["s2"]["state"] == "held"
    assert office.order("peerRelease", "s2").value == {"messages": 1, "held": False}
    assert len(stand.heard_of(S2, Relay)) == 1
    stand.restart("e3")
    office.begin()
    assert office.rows()["s2"]["state"] == "down"


def test_retry_ends_the_back_off(office: Office) -> None:
    stand = office.stand
    office.up()
    office.send("s2")
    for _ in range(6):
        for relay in stand.heard_of(S2, Relay):
            stand.say(S2, Relayed(relay.token, "failed:no-handler"))
        stand.wait(20.0)
    stand.heard_of(S2, Relay)
    row = office.rows()["s2"]
    office.order("peerRetry", "s2")
    relays = stand.heard_of(S2, Relay)
    assert row["outbox"][0]["in_flight"] == 1 or len(relays) == 1
    assert stand.reconnects == ["s2"]


def test_dropped_messages_become_dead_letters(office: Office) -> None:
    stand = office.stand
    for _ in range(150):
        office.send("s2")
        office.send("s2", "s3", type_="mail")
    stand.heard(office.bridge)
    assert office.order("peerDrop", "s2").value["messages"] == 300
    office.send("s2")  # a later message stays
    stand.wait(2.0)
    assert len(stand.kept(lane("s2", "chat"))) == 1
    assert stand.kept(lane("s2", "mail")) == []
    letters = stand.dead()
    assert len(letters) == 300
    assert {(letter.reason, letter.meta["server"]) for letter in letters} == {("unreachable", "s2")}
    office.up()
    assert len(stand.heard_of(S2, Relay)) == 1


def test_message_in_flight_is_dropped_when_it_would_be_sent_again(office: Office) -> None:
    stand = office.stand
    office.up()
    office.send("s2")
    stand.wait(6.0)  # queued, and a late answer would still count
    assert stand.one(office.bridge, Report).recipients == {"s2": "queued"}
    relay = stand.one(S2, Relay)
    office.order("peerDrop", "s2")
    stand.wait(1.0)
    assert stand.dead() == []
    stand.say(S2, Relayed(relay.token, "failed:overloaded"))
    stand.wait(1.0)
    assert [letter.reason for letter in stand.dead()] == ["unreachable"]
    assert stand.heard_of(S2, Relay) == []


def test_server_that_is_configured_no_more_can_be_emptied() -> None:
    office = Office()
    office.send("s2")
    office.stand.settings = Settings("s1", open_accounts=True)
    office.stand.restart()
    office.begin()
    row = office.rows()["s2"]
    assert (row["address"], row["protocol"], row["outbox"][0]["messages"]) == (None, None, 1)
    assert office.order("peerDrop", "s2").status == 0
    office.stand.wait(1.0)
    assert office.rows() == {}
    assert len(office.stand.dead()) == 1
