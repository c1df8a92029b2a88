"""Clients that acknowledge: when a frame counts as delivered, and the outcome of unacknowledged ones; and clients that
ask for outcomes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bester.bridge.frames import frame
from bester.broker.wire.messages import Answer, Ask, Confirm, Deliver, Report, Submit
from tests.unit.bridge_stand import ListConnection, Scene


def deliver(serial: int, *connections: ListConnection, token: int | None = None) -> Deliver:
    """Return a delivery to one target, a user with these connections."""
    targets = [[0, *(connection.session.number for connection in connections)]]
    return Deliver(serial, f"s/{serial}.0", "t", b"1", targets, token, {"message": f"s/{serial}"})


class TestAcks:
    def test_frame_is_delivered_when_acknowledged(self) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        scene.broker(deliver(1, connection), deliver(2, connection))
        assert connection.lines() == ["s/1.0.0=1", "s/2.0.0=1"]
        assert scene.take(Confirm) == []
        scene.command(connection, "ack", ["s/2.0.0"])
        assert scene.take(Confirm) == [Confirm(0, [2], [])]
        scene.command(connection, "ack", ["s/1.0.0"])
        assert scene.take(Confirm) == [Confirm(2, [], [])]
        assert connection.lines() == []

    def test_acknowledgement_before_the_bytes_are_known_to_have_left(self) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        connection.blocked = True
        scene.broker(deliver(1, connection), deliver(2, connection))
        scene.command(connection, "ack", ["s/1.0.0"])
        assert scene.take(Confirm) == [Confirm(1, [], [])]
        connection.unblock()
        scene.now += scene.limits.ack_s
        scene.bridge.tick()
        scene.turn()
        assert scene.take(Confirm) == [Confirm(2, [], [[2, 0, "timeout"]])]

    def test_report_to_the_sender_waits_for_the_acknowledgement(self) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        token = scene.submit(connection, "a")
        scene.broker(deliver(1, connection, token=token))
        assert connection.lines() == ["s/1.0.0=1"]
        scene.command(connection, "ack", ["s/1.0.0"])
        assert connection.lines() == ["good a"]
        assert scene.take(Confirm) == [Confirm(1, [], [])]

    def test_report_waits_for_the_acknowledgement_of_another_user(self) -> None:
        scene = Scene()
        alice, bob = scene.log_in("alice", acks=True), scene.log_in("bob")
        token = scene.submit(alice, "a")
        targets = [[0, alice.session.number], [1, bob.session.number]]
        scene.broker(Deliver(1, "s/1.0", "t", b"1", targets, token, {"message": "s/1"}))
        assert (alice.lines(), bob.lines()) == (["s/1.0.0=1"], ["s/1.0.1=1"])
        scene.command(alice, "ack", ["s/1.0.0"])
        assert alice.lines() == ["good a"]

    @pytest.mark.parametrize("first", ["ack", "bytes"])
    def test_first_acknowledging_connection_decides(self, first: str) -> None:
        scene = Scene()
        acking, other = scene.log_in("bob", acks=True), scene.log_in("bob")
        other.blocked = True
        scene.broker(deliver(1, acking, other))
        assert scene.take(Confirm) == []
        if first == "ack":
            scene.command(acking, "ack", ["s/1.0.0"])
        else:
            other.unblock()
            scene.turn()
        assert scene.take(Confirm) == [Confirm(1, [], [])]
        other.unblock()
        scene.command(acking, "ack", ["s/1.0.0"])
        scene.now += scene.limits.ack_s
        scene.bridge.tick()
        scene.turn()
        assert scene.take(Confirm) == []

    def test_missing_acknowledgement_times_out(self) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        scene.broker(deliver(1, connection))
        scene.now += 10
        scene.broker(deliver(2, connection))
        scene.now += scene.limits.ack_s - 10.5
        scene.bridge.tick()
        assert scene.take(Confirm) == []
        scene.now += 0.5
        scene.bridge.tick()
        scene.turn()
        assert scene.take(Confirm) == [Confirm(1, [], [[1, 0, "timeout"]])]
        assert scene.bridge.reached == {"ack_s": 1}
        scene.command(connection, "ack", ["s/1.0.0", "s/2.0.0"])
        assert scene.take(Confirm) == [Confirm(2, [], [])]

    def test_time_begins_when_the_bytes_have_left(self) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        connection.blocked = True
        scene.broker(deliver(1, connection))
        scene.now += 20
        connection.unblock()
        scene.now += 20
        scene.bridge.tick()
        scene.command(connection, "ack", ["s/1.0.0"])
        assert scene.take(Confirm) == [Confirm(1, [], [])]

    def test_time_stands_still_while_the_client_is_not_read_from(self) -> None:
        scene = Scene(unreported=1, ahead_bytes=0)
        connection = scene.log_in(acks=True)
        scene.broker(deliver(1, connection))
        token = scene.submit(connection, "a")
        scene.bridge.on_bytes(connection, frame(b'{"payload":{"type":"t","data":1,"id":"b"}}'))
        reading = [connection.reading]
        for _ in range(3):
            scene.now += scene.limits.ack_unread_s / 2
            scene.bridge.tick()
        scene.broker(Report(token, 0, None, "s/9", {}), Report(token + 1, 0, None, "s/9", {}))
        reading.append(connection.reading)
        assert reading == [False, True]
        scene.now += 1
        scene.bridge.tick()
        scene.command(connection, "ack", ["s/1.0.0"])
        assert scene.take(Confirm)[-1] == Confirm(1, [], [], 2)

    def test_time_stands_still_only_for_ack_unread_s(self) -> None:
        scene = Scene(unreported=2, ahead_bytes=0)
        connection, carol = scene.log_in(acks=True), scene.log_in("carol")
        scene.bridge.on_bytes(connection, frame(b'{"payload":{"type":"t","data":1,"id":"i"}}') * 3)
        tokens = [submit.token for submit in scene.take(Submit)]
        scene.broker(*(deliver(token, connection, token=token) for token in [*tokens, scene.submit(carol)]))
        assert not connection.reading  # the acknowledgements behind the third message are not read either
        scene.now += scene.limits.ack_unread_s + scene.limits.ack_s - 1
        scene.bridge.tick()
        scene.turn()
        assert scene.take(Confirm) == []
        scene.now += 1
        scene.bridge.tick()
        scene.turn()
        failed = [[serial, 0, "timeout"] for serial in (1, 2, 3)]
        assert scene.take(Confirm) == [Confirm(3, [], failed)]
        scene.broker(*(Report(token, 0, None, "s/9", {}) for token in tokens))
        assert connection.reading

    def test_gone_client_leaves_frames_unconfirmed(self) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        scene.broker(deliver(1, connection), deliver(2, connection))
        scene.command(connection, "ack", ["s/1.0.0"])
        connection.blocked = True
        scene.broker(deliver(3, connection))
        scene.take(Confirm)
        scene.bridge.on_connection_lost(connection)
        scene.turn()
        assert scene.take(Confirm) == [Confirm(3, [], [[2, 0, "unconfirmed"], [3, 0, "unconfirmed"]])]

    def test_cut_client_may_have_frames_that_had_left_or_were_leaving(self) -> None:
        scene = Scene(ack_s=60.0)
        connection = scene.log_in(acks=True)
        scene.broker(deliver(1, connection), deliver(2, connection))
        connection.blocked = True
        scene.broker(deliver(3, connection), deliver(4, connection))
        scene.broker(deliver(5, connection))
        scene.command(connection, "ack", ["s/2.0.0", "s/3.0.0"])
        assert scene.take(Confirm) == [Confirm(0, [2, 3], [])]
        scene.now += scene.limits.stalled_s + 1
        scene.bridge.tick()
        assert connection.abort_code == "overloaded"
        scene.bridge.on_connection_lost(connection)
        scene.turn()
        failed = [row for confirm in scene.take(Confirm) for row in confirm.failed]
        assert failed == [[1, 0, "unconfirmed"], [4, 0, "unconfirmed"], [5, 0, "overloaded"]]

    @pytest.mark.parametrize("abort_code", ["overloaded", None])
    @pytest.mark.parametrize("became", ["timeout", "unconfirmed"])
    def test_one_connection_that_may_have_the_frame_is_enough(self, became: str, abort_code: str | None) -> None:
        scene = Scene()
        one, slow = scene.log_in("bob", acks=True), scene.log_in("bob", acks=True)
        slow.blocked = True
        scene.broker(deliver(1, slow))  # the socket takes this frame, and nothing more
        scene.broker(deliver(2, one, slow))
        if became == "timeout":
            scene.now = scene.limits.ack_s
            scene.bridge.tick()
        else:
            scene.bridge.on_connection_lost(one)
        slow.abort_code = abort_code
        scene.bridge.on_connection_lost(slow)
        scene.turn()
        assert scene.take(Confirm) == [Confirm(2, [], [[1, 0, "unconfirmed"], [2, 0, became]])]

    def test_each_target_has_its_own_reason(self) -> None:
        scene = Scene()
        late, slow, cut = (scene.log_in(user, acks=True) for user in ("bob", "bob", "carol"))
        slow.blocked = cut.blocked = True
        scene.broker(deliver(1, slow, cut))  # the socket has these frames, and takes nothing more
        sessions = [connection.session.number for connection in (late, slow, cut)]
        scene.broker(Deliver(2, "s/2.0", "t", b"1", [[0, *sessions[:2]], [1, sessions[2]]], None, {"message": "s/2"}))
        scene.now = scene.limits.ack_s
        scene.bridge.tick()
        for connection in (cut, slow):
            connection.abort_code = "overloaded"
            scene.bridge.on_connection_lost(connection)
        scene.turn()
        (confirm,) = scene.take(Confirm)
        assert confirm.failed == [[1, 0, "unconfirmed"], [2, 1, "overloaded"], [2, 0, "timeout"]]

    def test_unknown_id_changes_nothing(self) -> None:
        scene = Scene()
        connection, bob = scene.log_in(acks=True), scene.log_in("bob", acks=True)
        scene.broker(deliver(1, bob))
        for ids in ([], ["s/1.0.0", "s/1.0.0"], ["", "x" * 10_000]):
            scene.command(connection, "ack", ids)
        scene.command(scene.log_in("carol"), "ack", ["s/1.0.0"])
        assert scene.take(Confirm) == []
        assert connection.lines() == []

    @pytest.mark.parametrize("data", ["s/1.0.0", None, [1], {"s/1.0.0": 1}, [["s/1.0.0"]]])
    def test_acknowledgement_without_a_list_is_malformed(self, data: Any) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        scene.broker(deliver(1, connection))
        connection.lines()
        scene.command(connection, "ack", data)
        assert connection.lines() == ["bad c malformed"]
        assert scene.take(Confirm) == []

    @pytest.mark.parametrize("limits", [{"unacked": 2}, {"unacked_bytes": 150}])
    def test_unacknowledged_frames_are_bounded(self, limits: dict[str, int]) -> None:
        scene = Scene(**limits)
        connection = scene.log_in(acks=True)
        scene.broker(*(deliver(serial, connection) for serial in (1, 2, 3)))
        assert scene.take(Confirm) == [Confirm(0, [3], [[3, 0, "overloaded"]])]
        assert scene.bridge.reached == dict.fromkeys(limits, 1)
        scene.command(connection, "ack", ["s/1.0.0"])
        scene.broker(deliver(4, connection))
        scene.command(connection, "ack", ["s/2.0.0", "s/4.0.0"])
        assert scene.take(Confirm)[-1] == Confirm(4, [], [])

    def test_one_acknowledgement_covers_a_repetition(self) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        scene.broker(deliver(1, connection))
        scene.bridge.on_link_lost("gone")
        scene.bridge.on_link_ready()
        scene.broker(deliver(1, connection))
        assert scene.take(Confirm) == []
        scene.command(connection, "ack", ["s/1.0.0"])
        assert scene.take(Confirm) == [Confirm(1, [], [])]
        scene.now += scene.limits.ack_s
        scene.bridge.tick()
        scene.turn()
        assert scene.take(Confirm) == []

    def test_timeout_of_a_lost_link_is_not_confirmed_on_the_next(self) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        scene.broker(deliver(1, connection))
        scene.bridge.on_link_ready()
        scene.now += scene.limits.ack_s
        scene.bridge.tick()
        scene.turn()
        assert scene.take(Confirm) == []


class TestOutcomes:
    def test_client_asks_for_an_outcome(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.command(connection, "outcome", "s/1", "q")
        (ask,) = scene.take(Ask)
        assert (ask.question, ask.argument) == ("outcome", [connection.session.number, "s/1"])
        scene.broker(Answer(ask.token, 0, {"bob": "queued", "carol": "delivered"}))
        data = {"message": "s/1", "recipients": {"bob": "queued", "carol": "delivered"}}
        assert connection.frames() == [
            {"header": {"status": "0"}, "payload": {"data": data, "id": "q", "type": "builtin"}}
        ]

    @pytest.mark.parametrize("answer", [(1, None), (1, {"bob": "queued"}), (0, None), (0, [])])
    def test_unknown_message_has_no_outcome(self, answer: tuple[int, Any]) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.command(connection, "outcome", "s/1", "q")
        (ask,) = scene.take(Ask)
        scene.broker(Answer(ask.token, *answer))
        assert connection.frames() == [
            {"header": {"status": "1"}, "payload": {"data": None, "id": "q", "type": "builtin"}}
        ]

    @pytest.mark.parametrize("data", [None, 5, ["s/1"]])
    def test_question_without_a_message_is_malformed(self, data: Any) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.command(connection, "outcome", data)
        assert connection.lines() == ["bad c malformed"]
        assert scene.take(Ask) == []

    def test_question_without_a_broker_is_unreachable(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.command(connection, "outcome", "s/1", "a")
        scene.bridge.on_link_lost("gone")
        scene.turn()
        assert connection.lines() == ["bad a unreachable"]
        scene.command(connection, "outcome", "s/1", "b")
        assert connection.lines() == ["bad b unreachable"]

    def test_many_questions_without_a_broker(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.bridge.on_link_lost("gone")
        command = {"command": {"type": "outcome", "data": "s/1"}}
        body = frame(json.dumps({"payload": {"type": "builtin", "id": "q", "data": command}}).encode())
        scene.bridge.on_bytes(connection, body * 5000)
        scene.turn()
        assert connection.lines() == ["bad q unreachable"] * 5000

    def test_questions_count_in_the_window(self) -> None:
        scene = Scene(unreported=2)
        connection = scene.log_in()
        for id_ in "abc":
            scene.command(connection, "outcome", "s/1", id_)
        first, second = scene.take(Ask)
        assert not connection.reading
        scene.broker(Answer(second.token, 1), Answer(first.token, 1))
        assert connection.lines() == ["1 b", "1 a"]
        assert len(scene.take(Ask)) == 1
        assert connection.reading

    def test_answer_to_a_gone_client_is_discarded(self) -> None:
        scene = Scene()
        connection, waiting = scene.log_in(), scene.log_in("bob")
        scene.command(connection, "outcome", "s/1")
        scene.command(waiting, "outcome", "s/1")
        first, second = scene.take(Ask)
        scene.bridge.on_connection_lost(connection)
        scene.bridge.on_peer_ended(waiting)
        scene.now += scene.limits.drain_s
        scene.bridge.tick()
        scene.turn()
        assert waiting.lines() == ["bad c timeout"]
        scene.broker(Answer(first.token, 1), Answer(second.token, 1))
        assert (connection.lines(), waiting.lines()) == ([], [])
