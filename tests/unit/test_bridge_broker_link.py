"""The link to a broker that does not read: what must arrive waits for room, and is never dropped from a link that goes
on."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from bester.bridge.broker_link import BrokerLink
from bester.bridge.limits import Limits
from bester.broker.wire.messages import Close, Message
from tests.unit.bridge_stand import Scene

LIMITS = replace(Limits(), link_backlog=1, max_connections=2)


def test_what_must_arrive_waits_for_room_in_order() -> None:
    notices: list[str] = []
    scene, link = Scene(), BrokerLink(LIMITS, count(1), notices.append)
    link.port, link.is_ready, scene.full = scene, True, True
    messages: list[Message] = [Close(number) for number in range(LIMITS.link_room - 1)]
    for message in messages:
        link.send(message)
    assert not link.has_room
    assert not link.flush()
    scene.full, scene.sent = False, []
    assert link.flush()
    assert (scene.sent, scene.given_up) == (messages, 0)


def test_link_with_more_waiting_than_there_is_room_for_is_given_up_once() -> None:
    notices: list[str] = []
    scene, link = Scene(), BrokerLink(LIMITS, count(1), notices.append)
    link.port, link.is_ready, scene.full = scene, True, True
    for number in range(3 * LIMITS.link_room):
        assert scene.given_up == (number >= LIMITS.link_room)
        link.send(Close(number))
    assert len(notices) == 1
    link.on_link_lost("the broker does not read")
    scene.full, scene.sent = False, []
    link.on_link_ready()
    assert link.flush()
    assert scene.sent == [], "all of it was of the link that is lost"


def test_there_is_room_for_all_sessions_of_a_large_bridge() -> None:
    limits = replace(Limits(), max_connections=200_000)
    assert limits.link_room >= 2 * limits.max_connections
