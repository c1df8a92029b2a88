"""The bridge's core on connections that are lists: deliveries, slow readers and confirmations."""

from __future__ import annotations

import json

import pytest

from bester.bridge.frames import frame
from bester.bridge.states import State
from bester.broker.wire.messages import (
    Close,
    Confirm,
    Deliver,
    Goodbye,
    LoggedIn,
    Report,
    Submit,
    Welcome,
)
from tests.unit.bridge_stand import Scene


class TestDeliveries:
    def test_delivery_to_the_sender_brings_the_report(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        first, second = scene.submit(connection, "a"), scene.submit(connection, "b")
        number = connection.session.number
        connection.writes = 0
        scene.broker(
            Deliver(1, "s/1.0", "t", b"10", [[0, number]], first, {"message": "s/1"}),
            Deliver(2, "s/2.0", "t", b"20", [[0, number]], second, {"message": "s/2"}),
        )
        assert connection.lines() == ["s/1.0.0=10", "good a", "s/2.0.0=20", "good b"]
        assert connection.writes == 1
        assert scene.take(Confirm) == [Confirm(2, [], [])]

    def test_delivery_to_a_sender_that_does_not_read(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        connection.blocked = True
        token = scene.submit(connection, "a")
        scene.broker(Deliver(1, "s/1.0", "t", b"10", [[0, connection.session.number]], token, {"message": "s/1"}))
        assert connection.lines() == ["s/1.0.0=10", "good a"]
        assert scene.take(Confirm) == [Confirm(1, [], [])]

    def test_report_under_a_dedup_waits_until_the_bytes_have_left(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        connection.blocked = True
        scene.bridge.on_bytes(connection, frame(b'{"payload":{"type":"t","data":1,"id":"a","dedup":"d"}}'))
        scene.turn()
        (submit,) = scene.take(Submit)
        scene.broker(
            Deliver(1, "s/1.0", "t", b"10", [[0, connection.session.number]], submit.token, {"message": "s/1"})
        )
        assert connection.lines() == ["s/1.0.0=10"]
        assert scene.take(Confirm) == []
        scene.bridge.on_connection_lost(connection)
        scene.turn()
        (confirm,) = scene.take(Confirm)
        assert confirm.failed == [[1, 0, "unconfirmed"]]

    def test_report_waits_until_the_bytes_to_another_user_have_left(self) -> None:
        scene = Scene()
        alice, bob = scene.log_in("alice"), scene.log_in("bob")
        token = scene.submit(alice, "a")
        bob.blocked = True
        targets = [[0, alice.session.number], [1, bob.session.number]]
        scene.broker(Deliver(1, "s/1.0", "t", b"1", targets, token, {"message": "s/1"}))
        assert alice.lines() == ["s/1.0.0=1"]
        assert scene.take(Confirm) == []
        bob.unblock()
        scene.turn()
        assert bob.lines() == ["s/1.0.1=1"]
        assert alice.frames()[0]["payload"] == {"id": "a", "message": "s/1"}
        assert scene.take(Confirm) == [Confirm(1, [], [])]

    def test_every_session_of_a_user_gets_a_frame_and_one_is_enough(self) -> None:
        scene = Scene()
        one, two = scene.log_in("bob"), scene.log_in("bob")
        one.blocked = True
        scene.broker(Deliver(1, "s/1.0", "t", b"1", [[0, one.session.number, two.session.number]]))
        assert two.lines() == ["s/1.0.0=1"]
        assert scene.take(Confirm) == [Confirm(1, [], [])]
        scene.bridge.on_connection_lost(one)
        scene.turn()
        assert scene.take(Confirm) == []

    def test_gone_target_is_confirmed_as_failed(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        token = scene.submit(connection, "a")
        scene.broker(
            Deliver(1, "s/1.0", "t", b"1", [[0, connection.session.number], [1, 99]], token, {"message": "s/1"})
        )
        assert connection.lines() == ["s/1.0.0=1"]
        assert scene.take(Confirm) == [Confirm(1, [], [[1, 1, "not-connected"]])]
        scene.broker(Report(token, 1, "not-connected", "s/1", {"b": "failed:not-connected"}))
        assert connection.lines() == ["bad a not-connected"]

    def test_connection_that_goes_before_the_bytes_have_left(self) -> None:
        scene = Scene()
        bob, carol = scene.log_in("bob"), scene.log_in("carol")
        bob.blocked = True
        scene.broker(
            Deliver(1, "s/1.0", "t", b"1", [[0, bob.session.number]]),
            Deliver(2, "s/2.0", "t", b"1", [[0, carol.session.number]]),
        )
        assert scene.take(Confirm) == [Confirm(0, [2], [])]
        scene.bridge.on_connection_lost(bob)
        scene.turn()
        assert scene.take(Confirm) == [Confirm(2, [], [[1, 0, "unconfirmed"]])]
        assert scene.take(Close) == [Close(bob.session.number)]

    def test_gone_submitter_blocks_nothing(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        token = scene.submit(connection)
        scene.bridge.on_connection_lost(connection)
        scene.broker(Deliver(1, "s/1.0", "t", b"1", [[0, connection.session.number]], token, {"message": "s/1"}))
        assert scene.take(Confirm) == [Confirm(1, [], [[1, 0, "not-connected"]])]
        scene.broker(Report(token, 1, "not-connected", "s/1", {}))

    def test_nothing_is_delivered_before_the_login(self) -> None:
        scene = Scene()
        connection = scene.start_login()
        scene.broker(Deliver(1, "s/1.0", "t", b"1", [[0, connection.session.number]]))
        assert connection.lines() == []
        scene.broker(
            LoggedIn(connection.session.number, 0), Deliver(2, "s/2.0", "t", b"1", [[0, connection.session.number]])
        )
        assert connection.lines() == ["good auth_special", "s/2.0.0=1"]

    def test_target_named_twice_gets_two_frames(self) -> None:
        scene = Scene()
        bob = scene.log_in("bob")
        scene.broker(Deliver(1, "s/1.0", "t", b"1", [[0, bob.session.number], [1, bob.session.number]]))
        assert bob.lines() == ["s/1.0.0=1", "s/1.0.1=1"]


class TestSlowReaders:
    def test_full_out_queue_fails_frames_and_cuts_no_connection(self) -> None:
        scene = Scene(out_queue=3000)
        bob = scene.log_in("bob")
        bob.blocked = True
        for serial in range(1, 5):
            body = json.dumps("x" * 900).encode()
            scene.broker(Deliver(serial, f"s/{serial}.0", "t", body, [[0, bob.session.number]]))
        (confirm,) = scene.take(Confirm)
        assert confirm.failed == [[4, 0, "overloaded"]]
        scene.now += scene.limits.stalled_s
        bob.unblock()
        assert [word[:7] for word in bob.lines()] == ["s/1.0.0", "s/2.0.0", "s/3.0.0"]
        scene.bridge.tick()
        assert bob.aborted is None

    def test_burst_to_a_reader_cuts_no_connection(self) -> None:
        scene = Scene(out_queue=3000)
        bob = scene.log_in("bob")
        body = json.dumps("x" * 900).encode()
        scene.broker(
            *(Deliver(serial, f"s/{serial}.0", "t", body, [[0, bob.session.number]]) for serial in range(1, 9))
        )
        assert len(bob.lines()) == 3
        assert bob.aborted is None
        (confirm,) = scene.take(Confirm)
        assert confirm == Confirm(8, [], [[serial, 0, "overloaded"] for serial in range(4, 9)])

    def test_reader_of_no_answers_is_cut(self) -> None:
        scene = Scene(out_answers=3000)
        connection = scene.log_in()
        connection.blocked = True
        for _ in range(50):
            scene.bridge.on_bytes(connection, frame(b'{"payload":{"type":"dummy","data":0,"id":"%b"}}' % (b"x" * 100)))
        assert connection.aborted is not None
        assert "does not read" in connection.aborted

    def test_backlog_of_all_readers_is_bounded(self) -> None:
        scene = Scene(out_total=5000, out_pause=1000)
        slow = [scene.log_in(f"slow{number}") for number in range(4)]
        for connection in slow:
            connection.blocked = True
        body = json.dumps("x" * 900).encode()
        for serial in range(1, 9):
            targets = [[number, connection.session.number] for number, connection in enumerate(slow)]
            scene.broker(Deliver(serial, f"s/{serial}.0", "t", body, targets))
        assert sum(connection.out.queued_bytes for connection in slow) < 5000 + 4 * 1000
        assert all(connection.out.queued_bytes >= 1000 for connection in slow)
        bob = scene.log_in("bob")
        scene.broker(Deliver(9, "s/9.0", "t", body, [[0, bob.session.number]]))
        assert len(bob.lines()) == 1

    def test_targets_share_a_large_message(self) -> None:
        scene = Scene()
        connections = [scene.log_in(f"u{number}") for number in range(3)]
        for connection in connections:
            connection.blocked = True
        body = json.dumps("x" * 100_000).encode()
        scene.broker(
            Deliver(1, "s/1.0", "t", body, [[n, connection.session.number] for n, connection in enumerate(connections)])
        )
        assert (
            len({id(connection.out.take(1 << 20)) if not connection.out.in_flight else 0 for connection in connections})
            == 1
        )
        for connection in connections:
            connection.unblock()
        assert [row["payload"]["data"] for connection in connections for row in connection.frames()] == [
            "x" * 100_000
        ] * 3

    def test_reader_that_never_keeps_up_is_cut_and_unsent_frames_fail(self) -> None:
        scene = Scene(out_queue=3000)
        bob = scene.log_in("bob")
        bob.blocked = True
        for serial in range(1, 5):
            body = json.dumps("x" * 900).encode()
            scene.broker(Deliver(serial, f"s/{serial}.0", "t", body, [[0, bob.session.number]]))
        assert bob.out.taken_bytes < bob.out.pushed_bytes
        scene.now += scene.limits.stalled_s + 1
        bob.stalled_bytes = 0  # the socket took a little
        scene.bridge.tick()
        assert bob.aborted is not None
        assert "more than it took" in bob.aborted
        scene.bridge.on_connection_lost(bob)
        scene.turn()
        failed = [row for confirm in scene.take(Confirm) for row in confirm.failed]
        assert sorted(failed) == [[1, 0, "unconfirmed"], *([serial, 0, "overloaded"] for serial in (2, 3, 4))]

    @pytest.mark.parametrize("acks", [False, True])
    def test_partly_sent_frame_may_have_arrived(self, acks: bool) -> None:
        scene = Scene()
        bob = scene.log_in("bob", acks=acks)
        bob.blocked = True
        bodies = [json.dumps("x" * size).encode() for size in (500, 5000, 100)]
        scene.broker(
            *(Deliver(n, f"s/{n}.0", "t", body, [[0, bob.session.number]]) for n, body in enumerate(bodies, 1))
        )
        assert len(bodies[0]) < bob.out.taken_bytes < len(bodies[1])
        assert b"s/2.0" in bob.written
        bob.abort_code = "overloaded"
        scene.bridge.on_connection_lost(bob)
        scene.turn()
        (confirm,) = scene.take(Confirm)
        assert confirm.failed == [[1, 0, "unconfirmed"], [2, 0, "overloaded"], [3, 0, "overloaded"]]

    def test_frame_above_the_bound_passes_alone(self) -> None:
        scene = Scene(out_queue=1000)
        bob = scene.log_in("bob")
        scene.broker(Deliver(1, "s/1.0", "t", json.dumps("x" * 5000).encode(), [[0, bob.session.number]]))
        assert bob.aborted is None
        assert len(bob.lines()) == 1

    def test_stalled_reader_is_cut(self) -> None:
        scene = Scene()
        bob = scene.log_in("bob")
        bob.blocked = True
        scene.broker(Deliver(1, "s/1.0", "t", b"1", [[0, bob.session.number]]))
        scene.now = scene.limits.stalled_s
        scene.bridge.tick()
        assert bob.aborted is None
        scene.now += 1
        scene.bridge.tick()
        assert bob.aborted is not None

    def test_last_frame_to_a_stalled_reader_blocks_no_other(self) -> None:
        scene = Scene()
        connection = scene.connect()
        connection.blocked = True
        scene.bridge.on_bytes(connection, frame(b"nonsense"))
        scene.turn()
        assert connection.session.state is State.CLOSING
        assert connection.out.in_flight
        assert scene.log_in("bob").aborted is None

    def test_slow_reader_is_not_cut(self) -> None:
        scene = Scene()
        bob = scene.log_in("bob")
        bob.blocked = True
        for serial in range(1, 6):
            scene.broker(Deliver(serial, "s/1.0", "t", b"1", [[0, bob.session.number]]))
            scene.now += 20
            scene.bridge.tick()
            bob.unblock()
            bob.blocked = True
        assert bob.aborted is None

    def test_stalled_reader_is_not_read_from(self) -> None:
        scene = Scene(out_pause=100)
        connection = scene.log_in()
        connection.blocked = True
        ping = frame(b'{"payload":{"type":"dummy","data":null,"id":"p"}}')
        scene.bridge.on_bytes(connection, ping * 3)
        scene.turn()
        assert not connection.reading
        connection.unblock()
        scene.turn()
        assert connection.reading


class TestConfirmations:
    def test_confirmations_wait_for_room_on_the_link(self) -> None:
        scene = Scene()
        one, two = scene.log_in("a"), scene.log_in("b")
        scene.full = True
        scene.bridge.on_connection_lost(one)
        scene.broker(Deliver(1, "s/1.0", "t", b"1", [[0, two.session.number]]))
        scene.full = False
        scene.bridge.tick()
        scene.bridge.flush()
        assert scene.take(Close) == [Close(one.session.number)]
        assert scene.take(Confirm) == [Confirm(1, [], [])]


def test_gone_connection_leaves_nothing() -> None:
    scene = Scene()
    empty: list[bool] = []
    scene.bridge.on_empty = lambda: empty.append(True)
    connection = scene.log_in()
    scene.submit(connection)
    connection.blocked = True
    scene.broker(Deliver(1, "s/1.0", "t", b"1", [[0, connection.session.number]]))
    there = scene.bridge.inspect()
    assert (there.connections, there.hosts, there.sessions, there.users, there.submissions.waiting) == (1, 1, 1, 1, 1)
    scene.bridge.on_connection_lost(connection)
    scene.turn()
    assert scene.bridge.connections == 0
    assert empty == [True]
    left = scene.bridge.inspect()
    assert (left.hosts, left.sessions, left.users, left.logins, left.timed, left.senders) == (0, 0, 0, 0, 0, 0)


def test_reports_are_counted_in_the_next_confirmation() -> None:
    scene = Scene()
    connection = scene.log_in()
    tokens = [scene.submit(connection, id_) for id_ in "abc"]
    scene.broker(*(Report(token, 0, None, "s/1", {}) for token in tokens[:2]))
    assert scene.take(Confirm) == [Confirm(0, [], [], 2)]
    scene.broker(Deliver(1, "s/3.0", "t", b"1", [[0, connection.session.number]], tokens[2], {"message": "s/3"}))
    assert scene.take(Confirm) == [Confirm(1, [], [], 2)]  # the bridge made that report itself
    scene.broker(Report(99, 0, None, "s/9", {}))
    assert scene.take(Confirm) == [Confirm(1, [], [], 3)]
    scene.broker(
        Report(tokens[2], 0, None, "s/3", {}), Goodbye("ends"), Welcome(1, "s"), Report(98, 0, None, "s/8", {})
    )
    assert scene.take(Confirm) == [Confirm(0, [], [], 1)]


def test_deadlines_are_met() -> None:
    scene = Scene()
    connection = scene.connect()
    scene.now = scene.limits.first_frame_s
    scene.bridge.tick()
    scene.turn()
    assert connection.lines() == ["bad auth_special timeout"]
    scene.bridge.on_all_sent(connection)
    scene.now += scene.limits.linger_s
    scene.bridge.tick()
    assert connection.aborted is not None


def test_shut_down_waits_for_reports() -> None:
    scene = Scene()
    connection, idle = scene.log_in(), scene.log_in()
    token = scene.submit(connection, "a")
    scene.bridge.shut_down()
    assert (connection.session.state, idle.session.state) == (State.DRAINING, State.CLOSING)
    scene.broker(Report(token, 0, None, "s/1", {}))
    assert connection.lines() == ["good a"]
    assert connection.session.state is State.CLOSING
