"""Rates of users' messages: a bucket for each user, and bounds of their number."""

from __future__ import annotations

import pytest

from bester.bridge.frames import frame
from bester.bridge.limits import Limits
from bester.bridge.meter import BURST_S, MAX_USERS, Meter
from bester.broker.wire.messages import LoggedIn, Submit
from tests.unit.bridge_stand import ListConnection, Scene


@pytest.mark.parametrize("per_second", [0.25, 1.0, 7.0, 1000.0])
def test_average_is_the_rate_and_a_burst_is_twice_as_much(per_second: float) -> None:
    meter, now, taken = Meter(per_second), 100.0, 0
    for _ in range(20_000):
        taken += meter.take("ann", now)
        now += 0.01 / per_second
    burst = max(1.0, per_second * BURST_S)
    assert abs(taken - (200 + burst)) <= 2
    assert meter.messages == 20_000 - taken


def test_users_do_not_share_a_bucket_and_a_clock_that_goes_back_fills_none() -> None:
    meter = Meter(1.0)
    assert [meter.take("ann", 10.0) for _ in range(3)] == [True, True, False]
    assert meter.take("bob", 10.0)
    assert not meter.take("ann", 5.0)
    assert not meter.take("ann", 5.5)
    assert meter.take("ann", 6.6)


def test_full_buckets_are_forgotten_and_their_number_is_bounded() -> None:
    meter = Meter(1.0)
    for number in range(MAX_USERS + 10):
        meter.take(f"u{number}", 0.0)
    assert meter.users == MAX_USERS
    meter.tick(0.5)
    assert meter.users == MAX_USERS
    meter.tick(1.0)
    assert meter.users == 0


def test_no_limit_is_the_default() -> None:
    assert not Meter(Limits().messages_per_s).limits


def test_message_above_the_rate_is_refused_and_the_connection_stays() -> None:
    scene = Scene(messages_per_s=1.0)
    one, two = scene.log_in(), scene.log_in()
    other = scene.log_in("bob")
    tokens = [scene.submit(connection, "m") for connection in (one, two)]
    assert len(tokens) == 2
    for connection in (one, two):
        payload = b'{"payload":{"type":"t","data":1,"id":"late"}}'
        scene.bridge.on_bytes(connection, frame(payload))
        scene.turn()
        assert connection.lines() == ["bad late overloaded"]
        assert scene.take(Submit) == []
    scene.submit(other, "m")
    scene.now += 1.0
    scene.submit(one, "again")
    assert scene.bridge.inspect().refused.messages == 2


def test_refusals_at_the_door_are_counted() -> None:
    scene = Scene(max_connections=2, max_connections_per_user=1)
    scene.log_in()
    second = scene.start_login()
    scene.broker(LoggedIn(second.session.number, 0))
    assert second.lines() == ["bad auth_special overloaded"]
    third = ListConnection(scene.bridge)
    assert not scene.bridge.admit(third, "127.0.0.1")
    scene.bridge.on_connection_lost(second)
    stranger = scene.connect()
    scene.bridge.on_bytes(stranger, b"\xff\xff\xff\x7f")
    scene.turn()
    assert stranger.lines() == ["bad None frame-too-large"]
    assert scene.bridge.inspect().refused == (1, 1, 1, 0)
