"""Connections of other servers: cut without a report where the report comes too late, while the message goes on."""

from __future__ import annotations

import pytest

from bester.bridge.frames import frame
from bester.bridge.limits import Limits
from bester.broker.core.values import Limits as CoreLimits
from bester.broker.wire.messages import Report, Submit
from tests.unit.bridge_stand import Scene


@pytest.mark.parametrize("half_closed", [False, True])
@pytest.mark.parametrize("broker", ["away", "there"])
def test_message_of_a_server_goes_on_when_its_connection_is_cut_without_a_report(
    broker: str, half_closed: bool
) -> None:
    scene = Scene()
    connection = scene.connect()
    if broker == "away":
        scene.bridge.on_link_lost("gone")
    scene.bridge.on_bytes(
        connection,
        frame(b'{"header":{"scope":"server","lane":["e",5,5]},"payload":{"data":1,"type":"m","id":"x"}}'),
    )
    submitted = scene.said(Submit)
    if half_closed:
        scene.now += 1
        scene.bridge.on_peer_ended(connection)
    scene.now += scene.limits.drain_s if half_closed else scene.limits.server_s
    scene.now -= 0.5
    scene.bridge.tick()
    scene.turn()
    assert (connection.words(), connection.aborted, connection.session.is_unanswered) == ([], None, False)
    scene.now += 0.5
    scene.bridge.tick()
    scene.turn()
    assert (connection.words(), connection.session.is_unanswered) == ([], True)
    assert connection.aborted == "its message has no report yet, and goes on without it"
    scene.bridge.on_connection_gone(connection)
    scene.turn()
    if broker == "away":
        scene.now = scene.limits.hold_s - 1
        scene.bridge.tick()
        scene.bridge.on_link_ready()
        submitted = scene.said(Submit)
    (submit,) = submitted
    assert (submit.body, submit.meta["lane"], "attempt" in submit.meta) == (b"1", ["e", 5, 5], False)
    assert scene.bridge.inspect().submissions.departed == 1
    scene.broker(Report(submit.token, 0, None, "s/1", {}))
    left = scene.bridge.inspect().submissions
    assert (connection.words(), left.waiting, left.departed, left.unreported_bytes) == ([], 0, 0, 0)


def test_report_that_comes_between_the_cut_and_the_end_of_a_connection_goes_nowhere() -> None:
    scene = Scene()
    connection = scene.connect()
    scene.bridge.on_bytes(connection, frame(b'{"header":{"scope":"server"},"payload":{"data":1,"type":"m","id":"x"}}'))
    (submit,) = scene.said(Submit)
    scene.now += scene.limits.server_s
    scene.bridge.tick()
    scene.broker(Report(submit.token, 0, None, "s/1", {}))
    scene.bridge.on_connection_gone(connection)
    scene.turn()
    left = scene.bridge.inspect().submissions
    assert (connection.words(), left.waiting, left.departed, left.unreported_bytes) == ([], 0, 0, 0)


def test_server_that_waits_is_given_longer_than_one_of_besters_waits() -> None:
    bridge = Limits()
    assert bridge.server_s > CoreLimits().relay_s + bridge.connect_s
