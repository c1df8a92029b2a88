"""What takes too long on thousands of connections at once is ended over several turns of the loop."""

from __future__ import annotations

from typing import Any

import pytest

from bester.bridge.judging import JUDGE_S
from bester.bridge.session import Session
from bester.broker.wire.messages import Confirm, Deliver
from tests.unit.bridge_stand import ListConnection, Scene

MANY = 200
STEP_S = JUDGE_S / 10


class BusyScene(Scene):
    """A scene whose clock goes on with every look while it is `busy`."""

    busy = False

    @property
    def now(self) -> float:
        if self.busy:
            self._now += STEP_S
        return self._now

    @now.setter
    def now(self, now: float) -> None:
        self._now = now

    def judge(self) -> list[int]:
        """Let a tick judge; return how many connections were written to in each turn."""
        turns: list[int] = []
        self.busy = True
        self.bridge.tick()
        while self._soon:
            before = self.bridge.reached.total()
            self.one_turn()
            turns.append(self.bridge.reached.total() - before)
        self.busy = False
        return turns


def test_strangers_whose_time_is_up_together_are_ended_over_several_turns() -> None:
    scene = BusyScene()
    strangers = [scene.connect() for _ in range(MANY)]
    scene.now += scene.limits.first_frame_s
    turns = scene.judge()
    assert len(turns) > 10 and max(turns) < MANY / 4
    assert scene.bridge.reached["first_frame_s"] == MANY
    assert all(stranger.lines() == ["bad auth_special timeout"] for stranger in strangers)


def test_connection_that_has_ended_meanwhile_is_not_late() -> None:
    scene = BusyScene()
    strangers = [scene.connect() for _ in range(MANY)]
    scene.now += scene.limits.first_frame_s
    scene.busy = True
    scene.bridge.tick()
    late = scene.bridge.reached["first_frame_s"]
    assert late < MANY / 4
    for stranger in strangers[late:]:
        scene.bridge.on_connection_lost(stranger)
    scene.turn()
    assert scene.bridge.reached["first_frame_s"] == late


def test_frames_that_are_not_acknowledged_in_time_fail_over_several_turns() -> None:
    scene = BusyScene()
    client = scene.log_in(acks=True)
    scene.broker(*(_deliver(serial, client) for serial in range(1, MANY + 1)))
    scene.now += scene.limits.ack_s
    assert len(scene.judge()) > 5
    confirms = scene.take(Confirm)
    assert confirms[-1].upto == MANY
    failed: list[list[Any]] = [failure for confirm in confirms for failure in confirm.failed]
    assert sorted(failed) == [[serial, 0, "timeout"] for serial in range(1, MANY + 1)]


def test_frames_of_a_client_that_has_gone_meanwhile_fail_once() -> None:
    scene = BusyScene()
    client = scene.log_in(acks=True)
    scene.broker(*(_deliver(serial, client) for serial in range(1, MANY + 1)))
    scene.now += scene.limits.ack_s
    scene.busy = True
    scene.bridge.tick()
    scene.bridge.on_connection_lost(client)
    scene.turn()
    failed: list[list[Any]] = [failure for confirm in scene.take(Confirm) for failure in confirm.failed]
    assert sorted(serial for serial, *_ in failed) == list(range(1, MANY + 1))
    assert {why for *_, why in failed} == {"timeout", "unconfirmed"}


def test_nobody_is_late_before_what_came_meanwhile_has_been_read() -> None:
    scene = BusyScene()
    for _ in range(MANY):
        scene.connect()
    scene.now += scene.limits.first_frame_s
    scene.busy = True
    scene.bridge.tick()
    late = scene.bridge.reached["first_frame_s"]
    scene.bridge.tick(judge=False)
    scene.turn()
    assert scene.bridge.reached["first_frame_s"] == late < MANY


def test_judging_goes_on_after_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = BusyScene()
    first, second = scene.connect(), scene.connect()

    def fail(session: Session, now: float) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(Session, "tick", fail)
        scene.now += scene.limits.first_frame_s
        with pytest.raises(ZeroDivisionError):
            scene.bridge.tick()
    scene.judge()
    assert first.lines() == second.lines() == ["bad auth_special timeout"]


def _deliver(serial: int, connection: ListConnection) -> Deliver:
    return Deliver(
        serial, f"s/{serial}.0", "t", b"1", [[0, connection.session.number]], None, {"message": f"s/{serial}"}
    )
