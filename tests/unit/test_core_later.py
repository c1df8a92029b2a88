"""What becomes of a message after its sender was told `queued`, where several servers, lives and disks are in it."""

from __future__ import annotations

import json

from bester.broker.core.effects import Link
from bester.broker.core.settings import Route, Settings
from bester.broker.wire.messages import Ask, Confirm, Deliver, Forward, Forwarded, Relay, Relayed, Report
from tests.unit.core_stand import Stand, clients, servers

S2 = Link("server", b"s2")


def town() -> Stand:
    """A stand of a server with two accounts, that knows two others: s2 by the fabric, n1 by the native protocol."""
    routes = {"s2": Route("s2", fabric="ipc:///s2"), "n1": Route("n1", native="10.0.0.9:2223")}
    settings = Settings("s1", routes=routes, hosts={"10.0.0.9": ("n1",)})
    return Stand(settings, accounts=frozenset({"alice", "bob"}))


def reach(stand: Stand) -> None:
    stand.take(stand.router.on_server_ready("s2", stand.now))


def outcome_of(stand: Stand, bridge: Link, message: str | None) -> dict[str, str] | None:
    value: dict[str, str] | None = stand.ask(bridge, "outcome", [1, message]).value
    return value


def queue_elsewhere(stand: Stand, bridge: Link, chat: Link, count: int) -> Report:
    """Alice's message waits at s2 for so many; returns the report on it."""
    token = stand.submit(bridge, "chat")
    stand.answer(chat, servers("s2"))
    relay = stand.one(S2, Relay)
    stand.say(S2, Relayed(relay.token, "queued", {"queued": count}))
    return stand.report(bridge, token)


def news(stand: Stand, peer: Link, message: str, outcome: str, number: int, **meta: bool) -> int:
    body = json.dumps({"message": message, "outcome": outcome}).encode()
    return stand.relay(peer, "bester.outcome", body, lane=["d2", number, 1], **meta)


def test_what_went_by_our_own_server_is_still_its_senders() -> None:
    stand = town()
    bridge, chat, room = stand.bridge("alice"), stand.handler("chat"), stand.handler("room")
    token = stand.submit(bridge, "chat")
    stand.answer(chat, servers("s1", as_type="room"))
    stand.answer(room, clients("bob"))
    report = stand.report(bridge, token)
    assert report.recipients == {"bob": "queued"}
    assert outcome_of(stand, bridge, report.message) == {"bob": "queued"}


def test_what_came_from_a_server_and_went_by_our_own_is_told_to_that_server() -> None:
    stand = town()
    reach(stand)
    peer, chat, room = stand.server("s2"), stand.handler("chat"), stand.handler("room")
    stand.relay(peer, "chat", id="s2/x/1", lane=["d2", 1, 1])
    stand.answer(chat, servers("s1", as_type="room"))
    stand.answer(room, clients("bob"))
    assert stand.one(peer, Relayed).outcome == "queued"
    stand.deliver(stand.bridge("bob"))
    told = stand.one(S2, Relay)
    assert told.type == "bester.outcome"
    assert json.loads(told.body) == {"message": "s2/x/1", "outcome": "delivered"}


def test_news_that_come_in_one_turn_all_count() -> None:
    stand = town()
    reach(stand)
    bridge, chat, peer = stand.bridge("alice"), stand.handler("chat"), stand.server("s2")
    report = queue_elsewhere(stand, bridge, chat, 3)
    stand.commits = False
    for number in (1, 2, 3):
        news(stand, peer, f"{report.message}.0.0", "delivered", number)
    stand.commits = True
    stand.commit()
    assert [relayed.outcome for relayed in stand.heard_of(peer, Relayed)] == ["delivered"] * 3
    assert outcome_of(stand, bridge, report.message) == {"s2": "delivered"}


def test_news_that_come_while_the_disk_is_full_count_too() -> None:
    stand = town()
    reach(stand)
    bridge, chat, peer = stand.bridge("alice"), stand.handler("chat"), stand.server("s2")
    report = queue_elsewhere(stand, bridge, chat, 2)
    stand.store.broken = True
    news(stand, peer, f"{report.message}.0.0", "failed:expired", 1)
    stand.store.broken = False
    news(stand, peer, f"{report.message}.0.0", "delivered", 2)
    assert outcome_of(stand, bridge, report.message) == {"s2": "failed:expired"}


def test_news_that_come_again_after_a_crash_count_once() -> None:
    stand = town()
    reach(stand)
    bridge, chat, peer = stand.bridge("alice"), stand.handler("chat"), stand.server("s2")
    report = queue_elsewhere(stand, bridge, chat, 2)
    news(stand, peer, f"{report.message}.0.0", "delivered", 1)
    stand.restart()
    bridge, peer = stand.bridge("alice"), stand.server("s2")
    news(stand, peer, f"{report.message}.0.0", "delivered", 1, again=True)
    assert stand.one(peer, Relayed).outcome == "delivered"
    assert outcome_of(stand, bridge, report.message) == {"s2": "queued"}
    news(stand, peer, f"{report.message}.0.0", "failed:expired", 2)
    assert outcome_of(stand, bridge, report.message) == {"s2": "failed:expired"}


def test_what_is_done_again_and_is_over_already_is_not_called_queued() -> None:
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
    """Send a message of s2's on to s2, where it is queued; return s2's link, the answer, and the id that was sent."""
    reach(stand)
    peer, chat = stand.server("s2"), stand.handler("chat")
    stand.relay(peer, "chat", id="s2/x/1", lane=["d2", number, 1], again=True)
    stand.answer(chat, servers("s2"))
    sent = [relay for relay in stand.heard_of(S2, Relay) if relay.type == "chat"]
    stand.say(S2, Relayed(sent[0].token, "queued", {"queued": 1}))
    return peer, stand.one(peer, Relayed), sent[0].meta["id"]


def test_what_was_sent_on_again_and_is_over_already_is_not_called_queued_either() -> None:
    stand = town()
    peer, first, id_ = send_on(stand, 1)
    assert first[1:] == ("queued", {"queued": 1})
    news(stand, peer, id_, "delivered", 1)
    stand.restart()
    _, second, _ = send_on(stand, 2)
    assert second[1:] == ("delivered", {})


def test_many_that_were_on_their_way_in_one_trouble_are_one_trouble() -> None:
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
    assert len(stand.heard_of(bridge, Forward)) == 1  # after the first wait, not after the twentieth


def test_what_failed_for_good_in_an_earlier_life_is_not_to_be_sent_again() -> None:
    stand = town()
    peer, chat = stand.server("s2"), stand.handler("chat")
    stand.relay(peer, "chat", lane=["d2", 1, 1], again=True)
    stand.answer(chat, servers("s2"), clients("nobody"))
    stand.restart()
    stand.commit()
    peer = stand.server("s2")
    stand.relay(peer, "chat", lane=["d2", 1, 1], again=True)
    assert stand.one(peer, Relayed)[1:] == ("failed:unknown-user", {"carried": True})


def test_a_native_servers_message_that_its_bridge_submits_again_is_marked() -> None:
    stand = town()
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    stand.submit(bridge, "chat", session=None, scope="server", address="10.0.0.9", attempt=2)
    stand.answer(chat, clients("alice"))
    assert stand.one(bridge, Deliver).meta["redelivered"] is True


def test_what_is_over_is_not_sent_even_if_the_server_comes_before_the_next_tick() -> None:
    stand = town()
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    stand.submit(bridge, "chat", ttl_s=5.0)
    stand.answer(chat, servers("s2"))
    message = stand.report(bridge).message
    stand.now += 6.0
    reach(stand)
    assert stand.heard_of(S2, Relay) == []
    assert outcome_of(stand, bridge, message) == {"s2": "failed:expired"}


def test_nobody_is_told_of_a_message_that_is_not_theirs() -> None:
    stand = town()
    bridge, chat = stand.bridge("alice", "bob"), stand.handler("chat")
    stand.submit(bridge, "chat")
    stand.answer(chat, servers("s2"))
    message = stand.report(bridge).message
    stand.say(bridge, Ask(99, "outcome", [2, message]))
    assert stand.heard(bridge)[-1][1:] == (1, None)


def test_news_of_what_the_life_before_was_sent_counts_when_it_is_sent_again() -> None:
    """s2 has told the life before that two results wait; one ends before this life is sent the message again."""
    stand = town()
    reach(stand)
    peer = stand.server("s2")
    said = news(stand, peer, "s9/x/1.0.0", "delivered", 1)
    assert stand.one(peer, Relayed) == Relayed(said, "failed:overloaded", {}), "to be told again"
    stand.wait(stand.settings.limits.restart_s)
    said = news(stand, peer, "s9/x/1.0.0", "delivered", 1, again=True)
    assert stand.one(peer, Relayed) == Relayed(said, "delivered", {}), "nobody asks for it"


def test_news_of_what_a_life_before_was_sent_holds_up_no_other_news() -> None:
    """It is refused until nobody can send the message again; what waits behind it in the lane has no part in that."""
    stand = town()
    reach(stand)
    bridge, chat, peer = stand.bridge("alice"), stand.handler("chat"), stand.server("s2")
    report = queue_elsewhere(stand, bridge, chat, 2)
    outcomes = []
    for number, message in enumerate(["s1/old/1.0.0", f"{report.message}.0.0", f"{report.message}.0.0"], 1):
        news(stand, peer, message, "delivered", number)
        outcomes.append(stand.one(peer, Relayed).outcome)
    assert outcomes == ["failed:overloaded", "delivered", "delivered"]
    assert outcome_of(stand, bridge, report.message) == {"s2": "delivered"}


def test_news_that_are_refused_for_now_hold_up_no_other_news_here_either() -> None:
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
