"""Late outcomes and duplicates where several servers, lives and full disks come together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bester.broker.core.effects import Link
from bester.broker.core.settings import Route, Settings
from bester.broker.store_requests import Bounds
from bester.broker.wire.messages import (
    Ask,
    Confirm,
    Deliver,
    Forward,
    Forwarded,
    Goodbye,
    Open,
    Relay,
    Relayed,
    Report,
    Submit,
)
from tests.unit.core_stand import Stand, clients, servers

S2 = Link("server", b"s2")
AWAY = "the database cannot be reached"


def town(bounds: Bounds | None = None) -> Stand:
    """Return a server with two accounts and two other servers: s2 over the fabric, n1 by the native protocol."""
    routes = {"s2": Route("s2", fabric="ipc:///s2"), "n1": Route("n1", native="10.0.0.9:2223")}
    settings = Settings("s1", routes=routes, hosts={"10.0.0.9": ("n1",)}, bounds=bounds or Bounds())
    return Stand(settings, accounts=frozenset({"alice", "bob"}))


def reach(stand: Stand) -> None:
    stand.take(stand.router.on_server_ready("s2", stand.now))


def outcome_of(stand: Stand, bridge: Link, message: str | None) -> dict[str, str] | None:
    value: dict[str, str] | None = stand.ask(bridge, "outcome", [1, message]).value
    return value


def queue_elsewhere(stand: Stand, bridge: Link, chat: Link, count: int) -> Report:
    """Let alice send a message that is queued at s2 for `count` recipients; return the report."""
    token = stand.submit(bridge, "chat")
    stand.answer(chat, servers("s2"))
    relay = stand.one(S2, Relay)
    stand.say(S2, Relayed(relay.token, "queued", {"queued": count}))
    return stand.report(bridge, token)


def late_outcome(stand: Stand, peer: Link, message: str, outcome: str, number: int, **meta: bool) -> int:
    body = json.dumps({"message": message, "outcome": outcome}).encode()
    return stand.relay(peer, "bester.outcome", body, lane=["d2", number, 1], **meta)


def test_message_through_the_own_server_keeps_its_sender() -> None:
    stand = town()
    bridge, chat, room = stand.bridge("alice"), stand.handler("chat"), stand.handler("room")
    token = stand.submit(bridge, "chat")
    stand.answer(chat, servers("s1", as_type="room"))
    stand.answer(room, clients("bob"))
    report = stand.report(bridge, token)
    assert report.recipients == {"bob": "queued"}
    assert outcome_of(stand, bridge, report.message) == {"bob": "queued"}


def test_message_of_a_server_through_the_own_server_has_its_outcome_there() -> None:
    stand = town()
    reach(stand)
    peer, chat, room = stand.server("s2"), stand.handler("chat"), stand.handler("room")
    stand.relay(peer, "chat", id="s2/x/1", lane=["d2", 1, 1])
    stand.answer(chat, servers("s1", as_type="room"))
    stand.answer(room, clients("bob"))
    assert stand.one(peer, Relayed).outcome == "queued"
    stand.deliver(stand.bridge("bob"))
    relay = stand.one(S2, Relay)
    assert relay.type == "bester.outcome"
    assert json.loads(relay.body) == {"message": "s2/x/1", "outcome": "delivered"}


def test_late_outcomes_of_one_turn_all_count() -> None:
    stand = town()
    reach(stand)
    bridge, chat, peer = stand.bridge("alice"), stand.handler("chat"), stand.server("s2")
    report = queue_elsewhere(stand, bridge, chat, 3)
    stand.commits = False
    for number in (1, 2, 3):
        late_outcome(stand, peer, f"{report.message}.0.0", "delivered", number)
    stand.commits = True
    stand.commit()
    assert [relayed.outcome for relayed in stand.heard_of(peer, Relayed)] == ["delivered"] * 3
    assert outcome_of(stand, bridge, report.message) == {"s2": "delivered"}


def test_late_outcomes_count_while_the_disk_is_full() -> None:
    stand = town()
    reach(stand)
    bridge, chat, peer = stand.bridge("alice"), stand.handler("chat"), stand.server("s2")
    report = queue_elsewhere(stand, bridge, chat, 2)
    stand.store.broken = True
    late_outcome(stand, peer, f"{report.message}.0.0", "failed:expired", 1)
    stand.store.broken = False
    late_outcome(stand, peer, f"{report.message}.0.0", "delivered", 2)
    assert outcome_of(stand, bridge, report.message) == {"s2": "failed:expired"}


def test_report_waits_for_the_note_while_the_store_is_away() -> None:
    stand = town()
    reach(stand)
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    token = stand.submit(bridge, "chat", outcome=True)
    stand.answer(chat, servers("s2"))
    stand.store.away = AWAY
    stand.say(S2, Relayed(stand.one(S2, Relay).token, "queued", {"queued": 1}))
    stand.wait(stand.settings.limits.record_s / 2)
    assert stand.heard_of(bridge, Report) == [], "the note would be lost with the process"
    stand.store.away = ""
    stand.tick()
    report = stand.report(bridge, token)
    assert report.recipients == {"s2": "queued"}
    stand.restart()
    peer, bridge = stand.server("s2"), stand.bridge("alice")
    late_outcome(stand, peer, f"{report.message}.0.0", "failed:expired", 1)
    pushed = stand.one(bridge, Deliver)
    assert json.loads(pushed.body) == {"message": report.message, "recipient": "s2", "outcome": "failed:expired"}


@pytest.mark.parametrize("count", [1, 3])
def test_report_does_not_wait_for_ever_for_a_store_that_stays_away(count: int) -> None:
    stand = town()
    reach(stand)
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    tokens = []
    for _ in range(count):
        tokens.append(stand.submit(bridge, "chat"))
        stand.answer(chat, servers("s2"))
    stand.store.away = AWAY
    for relay in stand.heard_of(S2, Relay):
        stand.say(S2, Relayed(relay.token, "queued", {"queued": 1}))
    stand.wait(stand.settings.limits.record_s + 1.0)
    reports = stand.heard_of(bridge, Report)
    assert [(each.token, each.recipients) for each in reports] == [(token, {"s2": "queued"}) for token in tokens]
    stand.store.away = ""
    stand.tick()
    assert stand.heard_of(bridge, Report) == []
    assert [outcome_of(stand, bridge, each.message) for each in reports] == [{"s2": "queued"}] * count


@pytest.mark.parametrize("room", ["full", "broken"])
def test_report_waits_for_no_note_where_there_is_no_room(room: str) -> None:
    stand = town()
    reach(stand)
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    setattr(stand.store, room, True)
    assert queue_elsewhere(stand, bridge, chat, 1).recipients == {"s2": "queued"}


@pytest.mark.parametrize("outcome", ["delivered", "failed:expired", "failed:handler-lost"])
def test_late_outcome_is_answered_once_it_is_written(outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand = town()
    reach(stand)
    bridge, chat, peer = stand.bridge("alice"), stand.handler("chat"), stand.server("s2")
    token = stand.submit(bridge, "chat", outcome=True)
    stand.answer(chat, servers("s2"))
    stand.say(S2, Relayed(stand.one(S2, Relay).token, "queued", {"queued": 1}))
    message = stand.report(bridge, token).message
    assert message is not None
    honest = stand.store.read

    def read(request: Any) -> Any:
        """Read, and lose the store behind it: before the commit that ends the note."""
        answer = honest(request)
        stand.store.away = AWAY
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(stand.store, "read", read)
        late_outcome(stand, peer, f"{message}.0.0", outcome, 1)
    stand.tick()
    assert stand.heard_of(peer, Relayed) == [], "the other server forgets the outcome with the answer"
    stand.store.forget()
    stand.store.away = ""
    stand.restart()
    peer, bridge = stand.server("s2"), stand.bridge("alice")
    late_outcome(stand, peer, f"{message}.0.0", outcome, 1, again=True)
    assert [each.outcome for each in stand.heard_of(peer, Relayed)] == ["delivered"]
    assert json.loads(stand.one(bridge, Deliver).body)["outcome"] == outcome


@pytest.mark.parametrize("room", ["full", "broken"])
def test_late_outcome_is_pushed_when_the_disk_takes_it_again(room: str) -> None:
    stand = town()
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    messages = []
    for _ in "12":
        token = stand.submit(bridge, "chat", outcome=True)
        stand.answer(chat, clients("bob"))
        messages.append(stand.report(bridge, token).message)
    setattr(stand.store, room, True)
    bob = stand.bridge("bob")
    for delivery in stand.heard_of(bob, Deliver):
        stand.say(bob, Confirm(delivery.serial))
    assert stand.heard_of(bridge, Deliver) == []
    setattr(stand.store, room, False)
    stand.wait(2.5)
    pushed = [json.loads(delivery.body) for delivery in stand.heard_of(bridge, Deliver)]
    assert pushed == [{"message": each, "recipient": "bob", "outcome": "delivered"} for each in messages]


def test_message_queued_elsewhere_has_its_outcome_though_the_disk_was_full_when_it_was_queued() -> None:
    stand = town()
    reach(stand)
    bridge, chat, peer = stand.bridge("alice"), stand.handler("chat"), stand.server("s2")
    stand.store.broken = True
    report = queue_elsewhere(stand, bridge, chat, 1)
    assert report.recipients == {"s2": "queued"}
    late_outcome(stand, peer, f"{report.message}.0.0", "delivered", 1)
    assert stand.one(peer, Relayed).outcome == "failed:overloaded", "it comes again"
    stand.store.broken = False
    stand.wait(2.5)
    late_outcome(stand, peer, f"{report.message}.0.0", "delivered", 1, again=True)
    assert outcome_of(stand, bridge, report.message) == {"s2": "delivered"}


def test_late_outcome_after_a_crash_counts_once() -> None:
    stand = town()
    reach(stand)
    bridge, chat, peer = stand.bridge("alice"), stand.handler("chat"), stand.server("s2")
    report = queue_elsewhere(stand, bridge, chat, 2)
    late_outcome(stand, peer, f"{report.message}.0.0", "delivered", 1)
    stand.restart()
    bridge, peer = stand.bridge("alice"), stand.server("s2")
    late_outcome(stand, peer, f"{report.message}.0.0", "delivered", 1, again=True)
    assert stand.one(peer, Relayed).outcome == "delivered"
    assert outcome_of(stand, bridge, report.message) == {"s2": "queued"}
    late_outcome(stand, peer, f"{report.message}.0.0", "failed:expired", 2)
    assert outcome_of(stand, bridge, report.message) == {"s2": "failed:expired"}


def test_repeated_message_whose_first_has_ended_is_not_reported_as_queued() -> None:
    stand = town()
    peer, chat = stand.server("s2"), stand.handler("chat")
    stand.relay(peer, "chat", id="s2/x/1", lane=["d2", 1, 1])
    stand.answer(chat, clients("bob"))
    assert stand.one(peer, Relayed).meta == {"queued": 1}
    stand.deliver(stand.bridge("bob", name="first"))
    stand.restart()
    peer, chat = stand.server("s2"), stand.handler("chat")
    stand.relay(peer, "chat", id="s2/x/1", lane=["d2", 2, 1], again=True)
    stand.answer(chat, clients("bob"))
    assert stand.one(peer, Relayed)[1:] == ("delivered", {})


def send_on(stand: Stand, number: int) -> tuple[Link, Relayed, str]:
    """Send a message from s2 on to s2, where it is queued; return the link, the answer, and the id that was sent."""
    reach(stand)
    peer, chat = stand.server("s2"), stand.handler("chat")
    stand.relay(peer, "chat", id="s2/x/1", lane=["d2", number, 1], again=True)
    stand.answer(chat, servers("s2"))
    sent = [relay for relay in stand.heard_of(S2, Relay) if relay.type == "chat"]
    stand.say(S2, Relayed(sent[0].token, "queued", {"queued": 1}))
    return peer, stand.one(peer, Relayed), sent[0].meta["id"]


def test_relayed_duplicate_whose_first_has_ended_is_not_reported_as_queued() -> None:
    stand = town()
    peer, first, id_ = send_on(stand, 1)
    assert first[1:] == ("queued", {"queued": 1})
    late_outcome(stand, peer, id_, "delivered", 1)
    stand.restart()
    _, second, _ = send_on(stand, 2)
    assert second[1:] == ("delivered", {})


def test_message_that_is_queued_elsewhere_anew_is_not_called_delivered_for_its_first_time() -> None:
    """The other server has handled it twice, and an outcome of the second time may have ended the note of the first."""
    stand = town()
    reach(stand)
    chat, peer = stand.handler("chat"), stand.server("s2")
    reports = []
    for attempt in (1, 2):
        bridge = stand.join("bridge", "b", {"epoch": "x"})
        stand.say(bridge, Open(1, "alice"), Submit(7, 1, "chat", b"1", {"attempt": attempt}))
        stand.answer(chat, servers("s2"))
        stand.say(S2, Relayed(stand.one(S2, Relay).token, "queued", {"queued": 1}))
        reports.append(stand.report(bridge, 7))
        if attempt == 1:
            late_outcome(stand, peer, f"{reports[0].message}.0.0", "delivered", 1)
            stand.restart()
            reach(stand)
            chat, peer = stand.handler("chat"), stand.server("s2")
    assert reports[0].message == reports[1].message
    assert [report.recipients for report in reports] == [{"s2": "queued"}] * 2
    assert outcome_of(stand, stand.bridge("alice"), reports[1].message) == {"s2": "delivered"}


def test_failure_of_many_in_flight_is_one_failure() -> None:
    stand = town()
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    stand.wait(2.0)
    for _ in range(20):
        stand.submit(bridge, "chat")
        stand.answer(chat, servers("n1"))
    for forward in stand.heard_of(bridge, Forward):
        stand.say(bridge, Forwarded(forward.token, "failed:unreachable"))
    assert stand.heard_of(bridge, Forward) == []
    stand.wait(1.0)
    assert len(stand.heard_of(bridge, Forward)) == 1  # after the first back-off, not after the twentieth


def test_message_that_failed_in_an_earlier_life_is_not_sent_again() -> None:
    stand = town()
    peer, chat = stand.server("s2"), stand.handler("chat")
    stand.relay(peer, "chat", lane=["d2", 1, 1], again=True)
    stand.answer(chat, servers("s2"), clients("nobody"))
    stand.restart()
    stand.commit()
    peer = stand.server("s2")
    stand.relay(peer, "chat", lane=["d2", 1, 1], again=True)
    assert stand.one(peer, Relayed)[1:] == ("failed:unknown-user", {"carried": True})


def test_repeat_that_has_led_to_anything_is_not_called_refused_in_this_life_or_the_next() -> None:
    stand = town(Bounds(user_messages=1))
    peer, chat = stand.server("s2"), stand.handler("chat")
    stand.emit(chat, "chat", clients("bob"))
    stand.relay(peer, "chat", lane=["d2", 1, 1], again=True)
    stand.answer(chat, clients("bob"))
    assert stand.one(peer, Relayed)[1:] == ("failed:unreachable", {"carried": True})
    stand.restart()
    peer = stand.server("s2")
    stand.relay(peer, "chat", lane=["d2", 1, 1], again=True)
    assert stand.one(peer, Relayed)[1:] == ("failed:unreachable", {"carried": True})


def test_native_servers_message_that_is_resubmitted_is_marked() -> None:
    stand = town()
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    stand.submit(bridge, "chat", session=None, scope="server", address="10.0.0.9", attempt=2)
    stand.answer(chat, clients("alice"))
    assert stand.one(bridge, Deliver).meta["redelivered"] is True


@pytest.mark.parametrize("scope", ["server", "client"])
@pytest.mark.parametrize("busy", [False, True], ids=["no handler", "busy handler"])
@pytest.mark.parametrize("attempt", [1, 2])
def test_resubmitted_message_that_waits_in_vain_is_not_called_refused(scope: str, busy: bool, attempt: int) -> None:
    """An earlier life of the broker may have processed it: by `unreachable` its sender knows to mark the next one."""
    stand = town()
    bridge, chat = stand.bridge("alice"), stand.handler("chat", credit=1)
    if busy:
        stand.submit(bridge, "chat")
    else:
        stand.say(chat, Goodbye(None))
    native = scope == "server"
    meta: dict[str, Any] = {"scope": "server", "address": "10.0.0.9"} if native else {}
    asked = stand.submit(bridge, "chat", session=None if native else 1, attempt=attempt, **meta)
    stand.wait(60.0)
    report = next(each for each in stand.heard_of(bridge, Report) if each.token == asked)
    refused = "overloaded" if busy else "no-handler"
    assert (report.reason, report.recipients) == (refused if attempt == 1 else "unreachable", {})


def test_outcome_that_is_looked_up_before_its_message_is_recorded_comes_again() -> None:
    """The other server's answer `queued` arrives between the outcome and the answer of the store."""
    stand = town()
    stand.wait(stand.settings.limits.restart_s + 1.0)  # before that, unknown messages may still come
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    reach(stand)
    token = stand.submit(bridge, "chat")
    stand.answer(chat, servers("s2"))
    relay = stand.one(S2, Relay)
    peer = stand.server("s2")
    stand.commits = False
    early = late_outcome(stand, peer, relay.meta["id"], "delivered", 1)
    reads, stand.reads = list(stand.reads), []
    stand.say(S2, Relayed(relay.token, "queued", {"queued": 1}))
    for read in reads:
        stand.take(stand.router.on_reads([(read, None)], stand.now))
    stand.commits = True
    stand.commit()
    assert {each.token: each.outcome for each in stand.heard_of(peer, Relayed)} == {early: "failed:overloaded"}
    message = stand.report(bridge, token).message
    again = late_outcome(stand, peer, relay.meta["id"], "delivered", 1)
    assert {each.token: each.outcome for each in stand.heard_of(peer, Relayed)} == {again: "delivered"}
    assert outcome_of(stand, bridge, message) == {"s2": "delivered"}


def test_expired_message_is_not_sent_before_the_next_tick() -> None:
    stand = town()
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    stand.submit(bridge, "chat", ttl_s=5.0)
    stand.answer(chat, servers("s2"))
    message = stand.report(bridge).message
    stand.now += 6.0
    reach(stand)
    assert stand.heard_of(S2, Relay) == []
    assert outcome_of(stand, bridge, message) == {"s2": "failed:expired"}


def test_outcome_of_another_users_message_cannot_be_asked_for() -> None:
    stand = town()
    bridge, chat = stand.bridge("alice", "bob"), stand.handler("chat")
    stand.submit(bridge, "chat")
    stand.answer(chat, servers("s2"))
    message = stand.report(bridge).message
    stand.say(bridge, Ask(99, "outcome", [2, message]))
    assert stand.heard(bridge)[-1][1:] == (1, None)


def test_late_outcome_of_an_earlier_life_counts_when_the_message_is_sent_again() -> None:
    """s2 has reported two queued results to an earlier life; one ends before this life has the message again."""
    stand = town()
    reach(stand)
    peer = stand.server("s2")
    token = late_outcome(stand, peer, "s9/x/1.0.0", "delivered", 1)
    assert stand.one(peer, Relayed) == Relayed(token, "failed:overloaded", {}), "to be sent again"
    stand.wait(stand.settings.limits.restart_s)
    token = late_outcome(stand, peer, "s9/x/1.0.0", "delivered", 1, again=True)
    assert stand.one(peer, Relayed) == Relayed(token, "delivered", {}), "nobody asks for it"


def test_late_outcome_of_an_earlier_life_delays_no_other() -> None:
    """The outcome is refused for now as long as the message may be sent again; others of the lane are not held up."""
    stand = town()
    reach(stand)
    bridge, chat, peer = stand.bridge("alice"), stand.handler("chat"), stand.server("s2")
    report = queue_elsewhere(stand, bridge, chat, 2)
    outcomes = []
    for number, message in enumerate(["s1/old/1.0.0", f"{report.message}.0.0", f"{report.message}.0.0"], 1):
        late_outcome(stand, peer, message, "delivered", number)
        outcomes.append(stand.one(peer, Relayed).outcome)
    assert outcomes == ["failed:overloaded", "delivered", "delivered"]
    assert outcome_of(stand, bridge, report.message) == {"s2": "delivered"}


def test_refused_late_outcome_delays_no_other_at_the_sender() -> None:
    stand = town()
    reach(stand)
    peer, chat = stand.server("s2"), stand.handler("chat")
    for number in range(1, 6):
        stand.relay(peer, "chat", id=f"s2/x/{number}", lane=["d2", number, 1])
        stand.answer(chat, clients("bob"))
    assert [relayed.outcome for relayed in stand.heard_of(peer, Relayed)] == ["queued"] * 5
    bob = stand.bridge("bob")
    first, *others = stand.heard_of(bob, Deliver)
    stand.say(bob, Confirm(first.serial))
    stand.say(S2, Relayed(stand.one(S2, Relay).token, "failed:overloaded"))
    for delivery in others:
        stand.say(bob, Confirm(delivery.serial))
    stand.wait(stand.settings.limits.first_retry_s + 1.0)
    heard = {json.loads(relay.body)["message"]: relay.token for relay in stand.heard_of(S2, Relay)}
    assert set(heard) == {f"s2/x/{number}" for number in range(1, 6)}
    for message, token in heard.items():
        stand.say(S2, Relayed(token, "failed:overloaded" if message == "s2/x/1" else "delivered"))
    stand.wait(stand.settings.limits.first_retry_s + 1.0)
    again = stand.one(S2, Relay)
    assert json.loads(again.body)["message"] == "s2/x/1"
    stand.say(S2, Relayed(again.token, "delivered"))
    assert stand.kept("lane/s2/bester.outcome") == []
