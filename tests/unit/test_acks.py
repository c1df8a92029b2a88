"""Clients that acknowledge: what counts as delivered, and what becomes of frames that nobody acknowledges; and clients
that ask what became of their messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bester.bridge.frames import frame
from bester.broker.wire.messages import Answer, Ask, Confirm, Deliver, Report, Submit
from tests.unit.bridge_stand import ListWire, Scene


def deliver(serial: int, *connections: ListWire, token: int | None = None) -> Deliver:
    """Return a delivery to one target, a user with these connections."""
    targets = [[0, *(connection.session.number for connection in connections)]]
    return Deliver(serial, f"s/{serial}.0", "t", b"1", targets, token, {"message": f"s/{serial}"})


class TestAcknowledging:
    def test_a_frame_counts_when_the_client_says_so(self) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        scene.broker(deliver(1, connection), deliver(2, connection))
        assert connection.words() == ["s/1.0.0=1", "s/2.0.0=1"]
        assert scene.said(Confirm) == []
        scene.command(connection, "ack", ["s/2.0.0"])
        assert scene.said(Confirm) == [Confirm(0, [2], [])]
        scene.command(connection, "ack", ["s/1.0.0"])
        assert scene.said(Confirm) == [Confirm(2, [], [])]
        assert connection.words() == []

    def test_it_may_say_so_before_the_socket_has_said_that_all_has_left(self) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        connection.blocked = True
        scene.broker(deliver(1, connection), deliver(2, connection))
        scene.command(connection, "ack", ["s/1.0.0"])
        assert scene.said(Confirm) == [Confirm(1, [], [])]
        connection.unblock()
        scene.now += scene.limits.ack_s
        scene.bridge.tick()
        scene.turn()
        assert scene.said(Confirm) == [Confirm(2, [], [[2, 0, "timeout"]])]

    def test_to_the_sender_himself_too_the_report_waits_for_it(self) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        token = scene.submit(connection, "a")
        scene.broker(deliver(1, connection, token=token))
        assert connection.words() == ["s/1.0.0=1"]
        scene.command(connection, "ack", ["s/1.0.0"])
        assert connection.words() == ["good a"]
        assert scene.said(Confirm) == [Confirm(1, [], [])]

    def test_to_the_sender_and_another(self) -> None:
        scene = Scene()
        alice, bob = scene.log_in("alice", acks=True), scene.log_in("bob")
        token = scene.submit(alice, "a")
        targets = [[0, alice.session.number], [1, bob.session.number]]
        scene.broker(Deliver(1, "s/1.0", "t", b"1", targets, token, {"message": "s/1"}))
        assert (alice.words(), bob.words()) == (["s/1.0.0=1"], ["s/1.0.1=1"])
        scene.command(alice, "ack", ["s/1.0.0"])
        assert alice.words() == ["good a"]

    @pytest.mark.parametrize("first", ["ack", "bytes"])
    def test_of_several_connections_the_first_that_counts_decides(self, first: str) -> None:
        scene = Scene()
        acking, other = scene.log_in("bob", acks=True), scene.log_in("bob")
        other.blocked = True
        scene.broker(deliver(1, acking, other))
        assert scene.said(Confirm) == []
        if first == "ack":
            scene.command(acking, "ack", ["s/1.0.0"])
        else:
            other.unblock()
            scene.turn()
        assert scene.said(Confirm) == [Confirm(1, [], [])]
        other.unblock()
        scene.command(acking, "ack", ["s/1.0.0"])
        scene.now += scene.limits.ack_s
        scene.bridge.tick()
        scene.turn()
        assert scene.said(Confirm) == []

    def test_who_says_nothing_has_not_got_it(self) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        scene.broker(deliver(1, connection))
        scene.now += 10
        scene.broker(deliver(2, connection))
        scene.now += scene.limits.ack_s - 10.5
        scene.bridge.tick()
        assert scene.said(Confirm) == []
        scene.now += 0.5
        scene.bridge.tick()
        scene.turn()
        assert scene.said(Confirm) == [Confirm(1, [], [[1, 0, "timeout"]])]
        scene.command(connection, "ack", ["s/1.0.0", "s/2.0.0"])
        assert scene.said(Confirm) == [Confirm(2, [], [])]

    def test_the_time_begins_when_it_has_left(self) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        connection.blocked = True
        scene.broker(deliver(1, connection))
        scene.now += 20
        connection.unblock()
        scene.now += 20
        scene.bridge.tick()
        scene.command(connection, "ack", ["s/1.0.0"])
        assert scene.said(Confirm) == [Confirm(1, [], [])]

    def test_and_stands_still_while_the_client_is_not_read_from(self) -> None:
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
        assert scene.said(Confirm)[-1] == Confirm(1, [], [], 2)

    def test_but_not_for_ever_for_it_may_wait_for_itself(self) -> None:
        scene = Scene(unreported=2, ahead_bytes=0)
        connection, carol = scene.log_in(acks=True), scene.log_in("carol")
        scene.bridge.on_bytes(connection, frame(b'{"payload":{"type":"t","data":1,"id":"i"}}') * 3)
        tokens = [submit.token for submit in scene.said(Submit)]
        scene.broker(*(deliver(token, connection, token=token) for token in [*tokens, scene.submit(carol)]))
        assert not connection.reading  # nor will its acknowledgements be, which stand behind the third message
        scene.now += scene.limits.ack_unread_s + scene.limits.ack_s - 1
        scene.bridge.tick()
        scene.turn()
        assert scene.said(Confirm) == []
        scene.now += 1
        scene.bridge.tick()
        scene.turn()
        failed = [[serial, 0, "timeout"] for serial in (1, 2, 3)]
        assert scene.said(Confirm) == [Confirm(3, [], failed)]
        scene.broker(*(Report(token, 0, None, "s/9", {}) for token in tokens))
        assert connection.reading

    def test_one_who_goes_without_saying_so(self) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        scene.broker(deliver(1, connection), deliver(2, connection))
        scene.command(connection, "ack", ["s/1.0.0"])
        connection.blocked = True
        scene.broker(deliver(3, connection))
        scene.said(Confirm)
        scene.bridge.on_connection_gone(connection)
        scene.turn()
        assert scene.said(Confirm) == [Confirm(3, [], [[2, 0, "unconfirmed"], [3, 0, "unconfirmed"]])]

    def test_one_who_is_cut_may_have_got_what_had_left_and_what_was_leaving(self) -> None:
        scene = Scene(ack_s=60.0)
        connection = scene.log_in(acks=True)
        scene.broker(deliver(1, connection), deliver(2, connection))
        connection.blocked = True
        scene.broker(deliver(3, connection), deliver(4, connection))
        scene.broker(deliver(5, connection))
        scene.command(connection, "ack", ["s/2.0.0", "s/3.0.0"])
        assert scene.said(Confirm) == [Confirm(0, [2, 3], [])]
        scene.now += scene.limits.stalled_s + 1
        scene.bridge.tick()
        assert connection.abort_code == "overloaded"
        scene.bridge.on_connection_gone(connection)
        scene.turn()
        failed = [row for confirm in scene.said(Confirm) for row in confirm.failed]
        assert failed == [[1, 0, "unconfirmed"], [4, 0, "unconfirmed"], [5, 0, "overloaded"]]

    @pytest.mark.parametrize("abort_code", ["overloaded", None])
    @pytest.mark.parametrize("became", ["timeout", "unconfirmed"])
    def test_one_connection_that_may_have_got_it_is_enough_whatever_becomes_of_the_other(
        self, became: str, abort_code: str | None
    ) -> None:
        scene = Scene()
        one, slow = scene.log_in("bob", acks=True), scene.log_in("bob", acks=True)
        slow.blocked = True
        scene.broker(deliver(1, slow))  # its socket takes this, and nothing more
        scene.broker(deliver(2, one, slow))
        if became == "timeout":
            scene.now = scene.limits.ack_s
            scene.bridge.tick()
        else:
            scene.bridge.on_connection_gone(one)
        slow.abort_code = abort_code
        scene.bridge.on_connection_gone(slow)
        scene.turn()
        assert scene.said(Confirm) == [Confirm(2, [], [[1, 0, "unconfirmed"], [2, 0, became]])]

    def test_and_to_another_user_it_may_not_have(self) -> None:
        scene = Scene()
        late, slow, cut = (scene.log_in(user, acks=True) for user in ("bob", "bob", "carol"))
        slow.blocked = cut.blocked = True
        scene.broker(deliver(1, slow, cut))  # the socket has these, and takes nothing more
        sessions = [connection.session.number for connection in (late, slow, cut)]
        scene.broker(Deliver(2, "s/2.0", "t", b"1", [[0, *sessions[:2]], [1, sessions[2]]], None, {"message": "s/2"}))
        scene.now = scene.limits.ack_s
        scene.bridge.tick()
        for connection in (cut, slow):
            connection.abort_code = "overloaded"
            scene.bridge.on_connection_gone(connection)
        scene.turn()
        (confirm,) = scene.said(Confirm)
        assert confirm.failed == [[1, 0, "unconfirmed"], [2, 1, "overloaded"], [2, 0, "timeout"]]

    def test_an_id_nobody_waits_for_changes_nothing(self) -> None:
        scene = Scene()
        connection, bob = scene.log_in(acks=True), scene.log_in("bob", acks=True)
        scene.broker(deliver(1, bob))
        for ids in ([], ["s/1.0.0", "s/1.0.0"], ["", "x" * 10_000]):
            scene.command(connection, "ack", ids)
        scene.command(scene.log_in("carol"), "ack", ["s/1.0.0"])
        assert scene.said(Confirm) == []
        assert connection.words() == []

    @pytest.mark.parametrize("data", ["s/1.0.0", None, [1], {"s/1.0.0": 1}, [["s/1.0.0"]]])
    def test_what_is_no_list_of_ids(self, data: Any) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        scene.broker(deliver(1, connection))
        connection.words()
        scene.command(connection, "ack", data)
        assert connection.words() == ["bad c malformed"]
        assert scene.said(Confirm) == []

    @pytest.mark.parametrize("limits", [{"unacked": 2}, {"unacked_bytes": 150}])
    def test_what_finds_too_many_unacknowledged_has_failed(self, limits: dict[str, int]) -> None:
        scene = Scene(**limits)
        connection = scene.log_in(acks=True)
        scene.broker(*(deliver(serial, connection) for serial in (1, 2, 3)))
        assert scene.said(Confirm) == [Confirm(0, [3], [[3, 0, "overloaded"]])]
        scene.command(connection, "ack", ["s/1.0.0"])
        scene.broker(deliver(4, connection))
        scene.command(connection, "ack", ["s/2.0.0", "s/4.0.0"])
        assert scene.said(Confirm)[-1] == Confirm(4, [], [])

    def test_a_repetition_is_acknowledged_with_what_it_repeats(self) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        scene.broker(deliver(1, connection))
        scene.bridge.on_link_lost("gone")
        scene.bridge.on_link_ready()
        scene.broker(deliver(1, connection))
        assert scene.said(Confirm) == []
        scene.command(connection, "ack", ["s/1.0.0"])
        assert scene.said(Confirm) == [Confirm(1, [], [])]
        scene.now += scene.limits.ack_s
        scene.bridge.tick()
        scene.turn()
        assert scene.said(Confirm) == []

    def test_what_was_given_up_of_an_earlier_link_is_not_confirmed_on_the_next(self) -> None:
        scene = Scene()
        connection = scene.log_in(acks=True)
        scene.broker(deliver(1, connection))
        scene.bridge.on_link_ready()
        scene.now += scene.limits.ack_s
        scene.bridge.tick()
        scene.turn()
        assert scene.said(Confirm) == []


class TestOutcomes:
    def test_a_client_asks_what_became_of_its_message(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.command(connection, "outcome", "s/1", "q")
        (ask,) = scene.said(Ask)
        assert (ask.question, ask.argument) == ("outcome", [connection.session.number, "s/1"])
        scene.broker(Answer(ask.token, 0, {"bob": "queued", "carol": "delivered"}))
        data = {"message": "s/1", "recipients": {"bob": "queued", "carol": "delivered"}}
        assert connection.seen() == [
            {"header": {"status": "0"}, "payload": {"data": data, "id": "q", "type": "builtin"}}
        ]

    @pytest.mark.parametrize("answer", [(1, None), (1, {"bob": "queued"}), (0, None), (0, [])])
    def test_there_is_no_such_message_of_this_client(self, answer: tuple[int, Any]) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.command(connection, "outcome", "s/1", "q")
        (ask,) = scene.said(Ask)
        scene.broker(Answer(ask.token, *answer))
        assert connection.seen() == [
            {"header": {"status": "1"}, "payload": {"data": None, "id": "q", "type": "builtin"}}
        ]

    @pytest.mark.parametrize("data", [None, 5, ["s/1"]])
    def test_a_question_without_a_message(self, data: Any) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.command(connection, "outcome", data)
        assert connection.words() == ["bad c malformed"]
        assert scene.said(Ask) == []

    def test_without_a_broker_nobody_knows(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.command(connection, "outcome", "s/1", "a")
        scene.bridge.on_link_lost("gone")
        scene.turn()
        assert connection.words() == ["bad a unreachable"]
        scene.command(connection, "outcome", "s/1", "b")
        assert connection.words() == ["bad b unreachable"]

    def test_a_great_many_at_once_without_a_broker(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.bridge.on_link_lost("gone")
        command = {"command": {"type": "outcome", "data": "s/1"}}
        body = frame(json.dumps({"payload": {"type": "builtin", "id": "q", "data": command}}).encode())
        scene.bridge.on_bytes(connection, body * 5000)
        scene.turn()
        assert connection.words() == ["bad q unreachable"] * 5000

    def test_questions_count_in_the_window(self) -> None:
        scene = Scene(unreported=2)
        connection = scene.log_in()
        for id_ in "abc":
            scene.command(connection, "outcome", "s/1", id_)
        first, second = scene.said(Ask)
        assert not connection.reading
        scene.broker(Answer(second.token, 1), Answer(first.token, 1))
        assert connection.words() == ["1 b", "1 a"]
        assert len(scene.said(Ask)) == 1
        assert connection.reading

    def test_one_who_has_gone_is_told_nothing(self) -> None:
        scene = Scene()
        connection, waiting = scene.log_in(), scene.log_in("bob")
        scene.command(connection, "outcome", "s/1")
        scene.command(waiting, "outcome", "s/1")
        first, second = scene.said(Ask)
        scene.bridge.on_connection_gone(connection)
        scene.bridge.on_peer_ended(waiting)
        scene.now += scene.limits.drain_s
        scene.bridge.tick()
        scene.turn()
        assert waiting.words() == ["bad c timeout"]
        scene.broker(Answer(first.token, 1), Answer(second.token, 1))
        assert (connection.words(), waiting.words()) == ([], [])
