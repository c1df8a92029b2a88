"""Findings on a status: each fault is put into a broker's core, and is named with its remedy and an alert."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bester.broker.core.effects import Link
from bester.broker.core.settings import Budget, Limits, Route, Settings
from bester.broker.core.symptoms import busiest
from bester.broker.doctor.findings import CERTIFICATE_S, ROOM_BYTES
from bester.broker.doctor.live import BEHIND, CLOCK_WARNING_S, FLOOD, FLOOD_PER_S, LIVE, findings_of
from bester.broker.operator.metrics import pieces_of
from bester.broker.store.lease import LEASE_S
from bester.broker.store.memory_shared import SharedMemory
from bester.broker.store_requests import Bounds
from bester.broker.unread import UNSEEN
from bester.broker.wire.messages import Ask, Heartbeat, Meta, Request
from bester.broker.wire.trouble import Attempt
from tests.unit.core_stand import START, Stand, clients
from tests.world.clock import World

ALERTS = (Path(__file__).parents[2] / "deploy/alerts.yml").read_text()
DAY = 86400.0
KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"


def stand(**settings: Any) -> Stand:
    """A server with one other server, users alice and bob, and a bridge."""
    routes = {"s2": Route("s2", fabric="tcp://s2.example:2225", key=KEY)}
    scene = Stand(Settings("s1", routes=routes, **settings), accounts=frozenset({"alice", "bob"}))
    scene.take(scene.router.on_server_ready("s2", scene.now))
    return scene


def status(scene: Stand) -> dict[str, Any]:
    return scene.router.status(scene.now)


def handler_dead() -> dict[str, Any]:
    scene = stand(declared_types=frozenset({"chat"}))
    scene.bridge("alice")
    scene.wait(11.0)
    return status(scene)


def handler_dead_and_messages_wait() -> dict[str, Any]:
    scene = stand(declared_types=frozenset({"chat"}))
    scene.submit(scene.bridge("alice"), "chat")
    return status(scene)


def handler_given_up() -> dict[str, Any]:
    scene = stand(declared_types=frozenset({"chat"}))
    scene.bridge()
    scene.router.on_types_given_up(frozenset({"chat"}))
    return status(scene)


def handler_stuck() -> dict[str, Any]:
    scene = stand(budgets={"job": Budget(3.0, 3)})
    bridge = scene.bridge("alice")
    hanging = scene.handler("job", credit=2)
    for _ in range(2):
        scene.submit(bridge, "job")
    assert len(scene.heard_of(hanging, Request)) == 2
    scene.wait(10.0)
    return status(scene)


def handler_behind() -> dict[str, Any]:
    scene = stand()
    bridge = scene.bridge("alice", "bob")
    scene.handler("job", credit=1)
    for number in range(BEHIND + 2):
        scene.submit(bridge, "job", session=1 + number % 2)
    return status(scene)


def peer_away() -> dict[str, Any]:
    scene = stand()
    scene.bridge()
    scene.take(scene.router.on_server_lost("s2", "nothing listens at tcp://s2.example:2225", scene.now))
    return status(scene)


def trouble(*events: Any) -> str:
    attempt = Attempt("tcp://s2.example:2225", "s2", "OUR-KEY", KEY)
    for event in events:
        attempt.take(event)
    return attempt.why()


def wrong_key() -> dict[str, Any]:
    scene = stand()
    scene.bridge()
    scene.take(scene.router.on_server_lost("s2", trouble("connected", "cut", "cut", "curve"), scene.now))
    return status(scene)


def our_key_unknown() -> dict[str, Any]:
    scene = stand()
    scene.bridge()
    scene.take(scene.router.on_server_lost("s2", trouble("connected", "auth"), scene.now))
    return status(scene)


def party_refused() -> dict[str, Any]:
    scene = stand()
    scene.bridge()
    for _ in range(3):
        scene.take(scene.router.on_refused("192.0.2.7", KEY, "the key is not known here", scene.now))
    scene.wait(4.0)
    return status(scene)


def unseen_refused() -> dict[str, Any]:
    scene = stand()
    scene.bridge()
    scene.take(scene.router.on_refused(UNSEEN, "", "it does not encrypt", scene.now))
    return status(scene)


def certificate_ends() -> dict[str, Any]:
    scene = stand()
    end = int(status(scene)["at_s"] + 3 * DAY)
    scene.say(scene.bridge(), Ask(1, "figures", {"connections": 1, "certificate_end_seconds": end}))
    return status(scene)


def disk_full() -> dict[str, Any]:
    scene = stand()
    scene.bridge()
    scene.router.figures.store.room_bytes = 10 * 1024 * 1024
    scene.router.figures.store.size_bytes = 1
    return status(scene)


def store_log_grows() -> dict[str, Any]:
    scene = stand()
    scene.bridge()
    scene.router.figures.store.log_bytes = 300 * 1024 * 1024
    return status(scene)


def store_fails() -> dict[str, Any]:
    scene = stand()
    scene.bridge()
    scene.router.figures.store.failures = 1
    scene.router.figures.store.failing = "no room: HINT"
    return status(scene)


def mailbox_full() -> dict[str, Any]:
    scene = stand(bounds=Bounds(user_messages=3, sender_share=1.0))
    bridge, chat = scene.bridge("alice"), scene.handler("chat")
    for _ in range(3):
        scene.submit(bridge, "chat")
        scene.answer(chat, clients("bob"))
    return status(scene)


def clock_off() -> dict[str, Any]:
    scene = stand()
    scene.bridge()
    ahead_ms = round((status(scene)["at_s"] + 90.0) * 1000)
    scene.say(Link("server", b"s2"), Heartbeat({"clock_ms": ahead_ms}))
    return status(scene)


def flood() -> dict[str, Any]:
    scene = stand()
    bridge = scene.bridge("alice", "bob")
    scene.handler("job", credit=1)
    for _ in range(FLOOD + 2):
        scene.submit(bridge, "job")
    scene.submit(bridge, "job", session=2)
    return status(scene)


def flood_of_an_ordered_type() -> dict[str, Any]:
    scene = stand()
    bridge = scene.bridge("bob", "alice")
    scene.handler("job", credit=1, ordered=["job"])
    for _ in range(FLOOD + 2):
        scene.submit(bridge, "job", session=2)
    return status(scene)


def flood_that_never_waits() -> dict[str, Any]:
    scene = stand()
    bridge = scene.bridge("alice", "bob")
    scene.handler("job")
    for session in (1, 1, 1, 2):
        scene.submit(bridge, "job", session=session)
    for _ in range(12):
        scene.router.figures.of("job").received += 2 * round(FLOOD_PER_S)
        scene.wait(1.0)
    return status(scene)


def broker_dead() -> dict[str, Any]:
    world = World(start_s=START)
    shared = SharedMemory(lambda: world.now)
    shared.namespace("b1").open()
    scene = Stand(Settings("s1"), accounts=frozenset({"alice"}), world=world, store=shared.namespace("b2"))
    scene.bridge("alice")
    scene.wait(LEASE_S + 200.0)
    return status(scene)


def dead_letters() -> dict[str, Any]:
    scene = stand()
    bridge, chat = scene.bridge("alice"), scene.handler("chat")
    scene.submit(bridge, "chat")
    for _ in range(3):
        scene.request(chat)
        scene.take(scene.router.on_undeliverable(chat, Heartbeat(), scene.now))
        chat = scene.handler("chat")
    return status(scene)


class Fault(NamedTuple):
    """A fault: its scene, the check that finds it, words of cause and remedy, and the alert with its metric."""

    scene: Callable[[], dict[str, Any]]
    check: str
    cause: str
    remedy: str
    alert: str
    metric: str


FAULTS = [
    Fault(handler_dead, "handler dead", "no handler serves chat", "start it", "BesterHandlerDead", "type_declared"),
    Fault(
        handler_dead_and_messages_wait, "handler dead", "serves chat, and 1 message waits", "start it",
        "BesterNoHandler", "messages_waiting",
    ),
    Fault(handler_given_up, "handler dead", "serves chat", "was given up", "BesterHandlerDead", "type_declared"),
    Fault(handler_stuck, "handler stuck", "handler h is stuck", "where it hangs", "BesterHandlerStuck",
          "handlers_stuck"),
    Fault(handler_behind, "handler behind", f"{BEHIND + 1} messages of type job wait", "more workers",
          "BesterHandlerBehind", "messages_waiting"),
    Fault(peer_away, "server away", "server s2 is away: nothing listens", "peers retry s2", "BesterServerAway",
          "server_state"),
    Fault(wrong_key, "server key", "that is not the key of s2", "bester keys", "BesterServerKey", "server_key_wrong"),
    Fault(our_key_unknown, "server key", "does not know our key OUR-KEY", "ours there", "BesterServerKey",
          "server_key_wrong"),
    Fault(party_refused, "party refused", f"192.0.2.7 with key {KEY} was refused, 3 times, last 4 s ago",
          "list its key", "BesterPartyRefused", "parties_refused"),
    Fault(unseen_refused, "party refused", "a party that had left before it was seen was refused, 1 time",
          "list its key", "BesterPartyRefused", "parties_refused"),
    Fault(certificate_ends, "certificate", "expires in 3.0 days", "renew it", "BesterCertificateEnds",
          "bridge_certificate_end_seconds"),
    Fault(disk_full, "disk", "10.0 MiB left", "make room", "BesterDiskNearlyFull", "store_room_bytes"),
    Fault(store_log_grows, "store log", "the log of the store has 300.0 MiB", "end that process", "BesterStoreLogGrows",
          "store_log_bytes"),
    Fault(store_fails, "store", "the last commit of the store failed: no room: HINT", "make room", "BesterStoreFails",
          "store_failures_total"),
    Fault(mailbox_full, "mailbox full", "the mailbox of bob is full: 3 messages", "bob must connect",
          "BesterMailboxFull", "mailboxes_full"),
    Fault(clock_off, "clock", "s2 is 90 s ahead of this one's", "NTP", "BesterClockOff", "server_clock_ahead_seconds"),
    Fault(flood, "flood", f"user alice has {FLOOD + 1} of the {FLOOD + 2} messages", "messages_per_s", "BesterFlood",
          "waiting_of_one_sender"),
    Fault(flood_of_an_ordered_type, "flood", "user alice has", "messages_per_s", "BesterFlood",
          "waiting_of_one_sender"),
    Fault(flood_that_never_waits, "flood", "user alice sends 1500 of 2000 messages a second", "messages_per_s",
          "BesterFloodRate", "messages_per_second_of_one_sender"),
    Fault(broker_dead, "broker", "broker b1 has been dead for 3.3 min (", "start it again", "BesterBrokerDead",
          "broker_living"),
    Fault(dead_letters, "dead letters", "1 dead letter of type chat in 10.0 min: handler-lost", "bester dead replay",
          "BesterDeadLetters", "messages_dead_total"),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.scene.__name__)
def test_fault_is_named_with_its_remedy_and_an_alert(fault: Fault) -> None:
    seen = fault.scene()
    (finding,) = [each for each in findings_of(seen) if (each.check, fault.check) != ("dead letters", "handler stuck")]
    assert finding.check == fault.check
    assert fault.cause in finding.text
    assert fault.remedy in finding.remedy
    assert finding.level in ("warning", "error")
    rule = ALERTS.partition(f"- alert: {fault.alert}\n")[2].partition("- alert:")[0]
    assert f"bester_{fault.metric}" in rule, "the alert watches the metric of the fault"
    assert "summary:" in rule
    assert "remedy:" in rule
    values = [
        sample.value
        for family in text_string_to_metric_families(b"".join(pieces_of(seen)).decode())
        for sample in family.samples
        if sample.name == f"bester_{fault.metric}"
    ]
    assert any(values), "the metric has moved"


def test_server_without_faults_has_no_findings() -> None:
    scene = stand(declared_types=frozenset({"chat"}))
    bridge, chat = scene.bridge("alice", "bob"), scene.handler("chat")
    wall_ms = round(status(scene)["at_s"] * 1000)
    scene.say(Link("server", b"s2"), Heartbeat({"clock_ms": wall_ms - round(CLOCK_WARNING_S * 900)}))
    scene.say(bridge, Ask(1, "figures", {"certificate_end_seconds": wall_ms // 1000 + 90 * 86400}))
    scene.submit(bridge, "chat")
    scene.answer(chat, clients("bob"))
    scene.wait(11.0)
    assert findings_of(status(scene)) == []


def test_credit_that_is_given_out_whole_is_no_full_bound() -> None:
    scene = stand(limits=Limits(max_held_bytes=1024 * 1024))
    bridges = [
        scene.join("bridge", name, {"epoch": name, "credit": 10**6, "credit_bytes": 10**12})
        for name in map(str, range(10))
    ]
    known: dict[Link, Meta] = {}
    for _ in range(20):  # all of it is used
        scene.wait(0.5)
        for bridge in bridges:
            for beat in scene.heard_of(bridge, Heartbeat):
                known[bridge] = beat.options or known.get(bridge, {})
            if known.get(bridge):
                credit, credit_bytes = known[bridge]["credit"], known[bridge]["credit_bytes"]
                held = {"unreported": credit, "unreported_bytes": credit_bytes, "more": True}
                scene.say(bridge, Heartbeat({**held, "number": known[bridge]["number"]}))
    for name in map(str, range(10, 20)):  # these get what is spared for them
        scene.join("bridge", name, {"epoch": name, "credit": 10**6, "credit_bytes": 10**12})
    used, most = status(scene)["bounds"]["submit_bytes"]
    assert used > 0.9 * most
    assert findings_of(status(scene)) == []


def test_held_server_that_is_away_has_the_order_that_sends_its_messages() -> None:
    """Neither its return nor `bester peers retry` sends anything."""
    scene = stand()
    scene.bridge()
    scene.say(scene.join("operator", "o"), Ask(1, "peerHold", "s2"))
    scene.take(scene.router.on_server_lost("s2", "nothing listens at tcp://s2.example:2225", scene.now))
    (found,) = findings_of(status(scene))
    assert "held back until `bester peers release s2`" in found.remedy
    assert "retry" not in found.remedy


def test_wrong_key_is_not_hidden_by_an_attempt_that_is_cut_short() -> None:
    scene = stand()
    scene.bridge()
    first: list[tuple[str, ...]] = [("connected", "cut", "curve"), ("connected", "cut")]
    for events in first:
        scene.take(scene.router.on_server_lost("s2", trouble(*events), scene.now))
    assert [each.check for each in findings_of(status(scene))] == ["server key"]
    then: list[tuple[str, ...]] = [("refused",), ("connected", "cut")]
    for events in then:
        scene.take(scene.router.on_server_lost("s2", trouble(*events), scene.now))
    assert [each.check for each in findings_of(status(scene))] == ["server away"]


def test_declared_handler_has_time_to_start() -> None:
    scene = stand(declared_types=frozenset({"chat"}))
    scene.bridge()
    assert findings_of(status(scene)) == []


def test_server_without_a_bridge_has_no_way_in() -> None:
    (finding,) = findings_of(status(stand()))
    assert (finding.check, finding.level) == ("way in", "error")


def test_a_fault_that_is_over_is_found_no_more() -> None:
    scene = stand()
    scene.bridge()
    scene.take(scene.router.on_refused("192.0.2.7", "", "no key", scene.now))
    scene.take(scene.router.on_server_lost("s2", trouble("connected", "auth"), scene.now))
    assert {each.check for each in findings_of(status(scene))} == {"party refused", "server key"}
    scene.take(scene.router.on_server_ready("s2", scene.now))
    scene.now += 601.0
    assert findings_of(status(scene)) == []


@pytest.mark.parametrize("clock_ms", [None, "1", 1.5, -1, 10**300, True])
def test_odd_clock_of_a_server_is_no_clock(clock_ms: object) -> None:
    scene = stand()
    scene.say(Link("server", b"s2"), Heartbeat({"clock_ms": clock_ms}))
    assert status(scene)["servers"][0]["clock_off_s"] is None


def test_broker_tells_servers_its_clock_and_nobody_else() -> None:
    scene = stand()
    bridge, server = scene.bridge(), scene.server("s2")
    scene.wait(3.0)
    told = scene.heard_of(server, Heartbeat)[-1].options or {}
    assert abs(told["clock_ms"] - status(scene)["at_s"] * 1000) <= 3000
    assert all("clock_ms" not in (each.options or {}) for each in scene.heard_of(bridge, Heartbeat))


def test_text_of_strangers_is_spelled_out() -> None:
    scene = stand()
    scene.bridge()
    scene.take(scene.router.on_refused("\x1b[2J", "", "a\nb", scene.now))
    (finding,) = findings_of(status(scene))
    assert finding.text.isprintable()
    assert "\\x1b[2J" in finding.text


def test_flood_of_another_server_names_the_server() -> None:
    scene = stand()
    scene.bridge()
    seen = status(scene) | {"busiest": busiest({("server", "s2"): 200, "alice": 3})}
    seen["types"] = {"job": seen["types"].get("job", {}) | {"workers": 1, "waiting": 203, "received": 203}}
    (finding,) = findings_of(seen)
    assert "server s2 has 200 of the 203 messages" in finding.text
    assert "messages_per_s" not in finding.remedy, "which bounds users alone"


@pytest.mark.parametrize(
    ("users", "per_s", "of_all"), [(1, 5000.0, 5000.0), (2, FLOOD_PER_S, 1100.0), (2, 5000.0, 9000.0), (9, 0.0, 0.0)]
)
def test_busy_sender_is_no_flood(users: int, per_s: float, of_all: float) -> None:
    scene = stand()
    scene.bridge("alice")
    row = {"kind": "user", "sender": "alice", "per_s": per_s}
    rates = {"window_s": 10.0, "per_s": of_all, "fastest": [row]}
    assert findings_of(status(scene) | {"users": users, "rates": rates}) == []


def test_alerts_have_the_thresholds_of_the_checks() -> None:
    days = f"< {CERTIFICATE_S / 86400:g} * 86400"
    for threshold in (
        f"> {FLOOD} ",
        f"> {FLOOD_PER_S:g} ",
        f"> {BEHIND}\n",
        f"> {CLOCK_WARNING_S:g} ",
        f"< {ROOM_BYTES}\n",
        days,
    ):
        assert threshold in ALERTS


def test_every_alert_of_a_check_exists() -> None:
    rules = set(re.findall(r"- alert: (\w+)", ALERTS))
    assert {name for check in LIVE for name in check.alert.split(", ") if name} <= rules
