"""The bridge's core on wires that are lists: deliveries, confirmations, bounds, and a broker that comes and goes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bester.bridge.broker_link import UNANSWERED
from bester.bridge.frames import frame
from bester.bridge.states import State
from bester.broker.wire.messages import (
    Answer,
    Ask,
    Close,
    Confirm,
    Deliver,
    Error,
    Forward,
    Forwarded,
    Goodbye,
    LoggedIn,
    Login,
    Open,
    Report,
    Submit,
    Welcome,
)
from tests.unit.bridge_stand import ListWire, Scene


class TestDelivering:
    def test_to_the_sender_himself_the_delivery_brings_the_report(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        first, second = scene.submit(connection, "a"), scene.submit(connection, "b")
        number = connection.session.number
        connection.writes = 0
        scene.broker(
            Deliver(1, "s/1.0", "t", b"10", [[0, number]], first, {"message": "s/1"}),
            Deliver(2, "s/2.0", "t", b"20", [[0, number]], second, {"message": "s/2"}),
        )
        assert connection.words() == ["s/1.0.0=10", "good a", "s/2.0.0=20", "good b"]
        assert connection.writes == 1
        assert scene.said(Confirm) == [Confirm(2, [], [])]

    def test_even_where_the_sender_does_not_read(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        connection.blocked = True
        token = scene.submit(connection, "a")
        scene.broker(Deliver(1, "s/1.0", "t", b"10", [[0, connection.session.number]], token, {"message": "s/1"}))
        assert connection.words() == ["s/1.0.0=10", "good a"]
        assert scene.said(Confirm) == [Confirm(1, [], [])]

    def test_a_report_that_may_be_asked_for_on_another_connection_waits_until_it_has_left(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        connection.blocked = True
        scene.bridge.on_bytes(connection, frame(b'{"payload":{"type":"t","data":1,"id":"a","dedup":"d"}}'))
        scene.turn()
        (submit,) = scene.said(Submit)
        scene.broker(
            Deliver(1, "s/1.0", "t", b"10", [[0, connection.session.number]], submit.token, {"message": "s/1"})
        )
        assert connection.words() == ["s/1.0.0=10"]
        assert scene.said(Confirm) == []
        scene.bridge.on_connection_gone(connection)
        scene.turn()
        (confirm,) = scene.said(Confirm)
        assert confirm.failed == [[1, 0, "unconfirmed"]]

    def test_to_another_the_report_waits_until_it_has_left(self) -> None:
        scene = Scene()
        alice, bob = scene.log_in("alice"), scene.log_in("bob")
        token = scene.submit(alice, "a")
        bob.blocked = True
        targets = [[0, alice.session.number], [1, bob.session.number]]
        scene.broker(Deliver(1, "s/1.0", "t", b"1", targets, token, {"message": "s/1"}))
        assert alice.words() == ["s/1.0.0=1"]
        assert scene.said(Confirm) == []
        bob.unblock()
        scene.turn()
        assert bob.words() == ["s/1.0.1=1"]
        assert alice.seen()[0]["payload"] == {"id": "a", "message": "s/1"}
        assert scene.said(Confirm) == [Confirm(1, [], [])]

    def test_every_session_of_a_user_gets_it_and_one_is_enough(self) -> None:
        scene = Scene()
        one, two = scene.log_in("bob"), scene.log_in("bob")
        one.blocked = True
        scene.broker(Deliver(1, "s/1.0", "t", b"1", [[0, one.session.number, two.session.number]]))
        assert two.words() == ["s/1.0.0=1"]
        assert scene.said(Confirm) == [Confirm(1, [], [])]
        scene.bridge.on_connection_gone(one)
        scene.turn()
        assert scene.said(Confirm) == []

    def test_a_target_that_is_gone_is_confirmed_as_failed_and_the_broker_reports(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        token = scene.submit(connection, "a")
        scene.broker(
            Deliver(1, "s/1.0", "t", b"1", [[0, connection.session.number], [1, 99]], token, {"message": "s/1"})
        )
        assert connection.words() == ["s/1.0.0=1"]
        assert scene.said(Confirm) == [Confirm(1, [], [[1, 1, "not-connected"]])]
        scene.broker(Report(token, 1, "not-connected", "s/1", {"b": "failed:not-connected"}))
        assert connection.words() == ["bad a not-connected"]

    def test_one_who_goes_before_it_has_left(self) -> None:
        scene = Scene()
        bob, carol = scene.log_in("bob"), scene.log_in("carol")
        bob.blocked = True
        scene.broker(
            Deliver(1, "s/1.0", "t", b"1", [[0, bob.session.number]]),
            Deliver(2, "s/2.0", "t", b"1", [[0, carol.session.number]]),
        )
        assert scene.said(Confirm) == [Confirm(0, [2], [])]
        scene.bridge.on_connection_gone(bob)
        scene.turn()
        assert scene.said(Confirm) == [Confirm(2, [], [[1, 0, "unconfirmed"]])]
        assert scene.said(Close) == [Close(bob.session.number)]

    def test_a_submitter_who_is_gone_holds_nothing_up(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        token = scene.submit(connection)
        scene.bridge.on_connection_gone(connection)
        scene.broker(Deliver(1, "s/1.0", "t", b"1", [[0, connection.session.number]], token, {"message": "s/1"}))
        assert scene.said(Confirm) == [Confirm(1, [], [[1, 0, "not-connected"]])]
        scene.broker(Report(token, 1, "not-connected", "s/1", {}))

    def test_nothing_is_delivered_to_one_who_is_not_logged_in(self) -> None:
        scene = Scene()
        connection = scene.ask_in()
        scene.broker(Deliver(1, "s/1.0", "t", b"1", [[0, connection.session.number]]))
        assert connection.words() == []
        scene.broker(
            LoggedIn(connection.session.number, 0), Deliver(2, "s/2.0", "t", b"1", [[0, connection.session.number]])
        )
        assert connection.words() == ["good auth_special", "s/2.0.0=1"]

    def test_a_target_named_twice_gets_it_twice(self) -> None:
        scene = Scene()
        bob = scene.log_in("bob")
        scene.broker(Deliver(1, "s/1.0", "t", b"1", [[0, bob.session.number], [1, bob.session.number]]))
        assert bob.words() == ["s/1.0.0=1", "s/1.0.1=1"]


class TestSlowReaders:
    def test_what_finds_too_much_waiting_has_failed_and_who_is_only_slow_is_not_cut(self) -> None:
        scene = Scene(out_queue=3000)
        bob = scene.log_in("bob")
        bob.blocked = True
        for serial in range(1, 5):
            body = json.dumps("x" * 900).encode()
            scene.broker(Deliver(serial, f"s/{serial}.0", "t", body, [[0, bob.session.number]]))
        (confirm,) = scene.said(Confirm)
        assert confirm.failed == [[4, 0, "overloaded"]]
        scene.now += scene.limits.stalled_s
        bob.unblock()
        assert [word[:7] for word in bob.words()] == ["s/1.0.0", "s/2.0.0", "s/3.0.0"]
        scene.bridge.tick()
        assert bob.aborted is None

    def test_a_burst_to_one_who_reads_does_not_cut_him(self) -> None:
        scene = Scene(out_queue=3000)
        bob = scene.log_in("bob")
        body = json.dumps("x" * 900).encode()
        scene.broker(
            *(Deliver(serial, f"s/{serial}.0", "t", body, [[0, bob.session.number]]) for serial in range(1, 9))
        )
        assert len(bob.words()) == 3
        assert bob.aborted is None
        (confirm,) = scene.said(Confirm)
        assert confirm == Confirm(8, [], [[serial, 0, "overloaded"] for serial in range(4, 9)])

    def test_one_who_does_not_read_even_the_answers_is_cut(self) -> None:
        scene = Scene(out_answers=3000)
        connection = scene.log_in()
        connection.blocked = True
        for _ in range(50):
            scene.bridge.on_bytes(connection, frame(b'{"payload":{"type":"dummy","data":0,"id":"%b"}}' % (b"x" * 100)))
        assert connection.aborted is not None
        assert "does not read" in connection.aborted

    def test_what_waits_for_all_of_them_is_bounded_and_the_large_shares_are_cut_first(self) -> None:
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
        assert len(bob.words()) == 1

    def test_the_targets_of_a_large_message_share_it(self) -> None:
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
        assert [row["payload"]["data"] for connection in connections for row in connection.seen()] == [
            "x" * 100_000
        ] * 3

    def test_one_who_never_keeps_up_is_cut_and_what_his_socket_had_no_part_of_is_said_to_have_failed(self) -> None:
        scene = Scene(out_queue=3000)
        bob = scene.log_in("bob")
        bob.blocked = True
        for serial in range(1, 5):
            body = json.dumps("x" * 900).encode()
            scene.broker(Deliver(serial, f"s/{serial}.0", "t", body, [[0, bob.session.number]]))
        assert bob.out.taken_bytes < bob.out.pushed_bytes
        scene.now += scene.limits.stalled_s + 1
        bob.stalled_bytes = 0  # it took a little
        scene.bridge.tick()
        assert bob.aborted is not None
        assert "more than it took" in bob.aborted
        scene.bridge.on_connection_gone(bob)
        scene.turn()
        failed = [row for confirm in scene.said(Confirm) for row in confirm.failed]
        assert sorted(failed) == [[1, 0, "unconfirmed"], *([serial, 0, "overloaded"] for serial in (2, 3, 4))]

    @pytest.mark.parametrize("acks", [False, True])
    def test_a_frame_of_which_the_socket_had_a_part_alone_has_not_arrived(self, acks: bool) -> None:
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
        scene.bridge.on_connection_gone(bob)
        scene.turn()
        (confirm,) = scene.said(Confirm)
        assert confirm.failed == [[1, 0, "unconfirmed"], [2, 0, "overloaded"], [3, 0, "overloaded"]]

    def test_one_frame_larger_than_the_bound_passes(self) -> None:
        scene = Scene(out_queue=1000)
        bob = scene.log_in("bob")
        scene.broker(Deliver(1, "s/1.0", "t", json.dumps("x" * 5000).encode(), [[0, bob.session.number]]))
        assert bob.aborted is None
        assert len(bob.words()) == 1

    def test_one_who_takes_nothing_for_long_is_cut(self) -> None:
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

    def test_the_last_word_to_one_who_does_not_read_holds_nobody_up(self) -> None:
        scene = Scene()
        connection = scene.connect()
        connection.blocked = True
        scene.bridge.on_bytes(connection, frame(b"nonsense"))
        scene.turn()
        assert connection.session.state is State.CLOSING
        assert connection.out.in_flight
        assert scene.log_in("bob").aborted is None

    def test_one_who_takes_a_little_is_not(self) -> None:
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

    def test_one_who_does_not_read_is_not_read_from(self) -> None:
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


class TestBounds:
    def test_connections_in_all(self) -> None:
        scene = Scene(max_connections=2)
        connections = [scene.connect(), scene.connect()]
        assert not scene.bridge.admit(ListWire(scene.bridge), "127.0.0.1")
        scene.bridge.on_connection_gone(connections[0])
        assert scene.bridge.admit(ListWire(scene.bridge), "127.0.0.1")

    def test_connections_of_an_address_but_not_of_loopback(self) -> None:
        scene = Scene(max_connections_per_address=1)
        connection = scene.connect("192.0.2.1")
        assert not scene.bridge.admit(ListWire(scene.bridge), "192.0.2.1")
        assert scene.bridge.admit(ListWire(scene.bridge), "192.0.2.2")
        for host in ("127.0.0.1", "::1", "unix"):
            scene.connect(host)
            scene.connect(host)
        scene.bridge.on_connection_gone(connection)
        assert scene.bridge.admit(ListWire(scene.bridge), "192.0.2.1")

    def test_connections_of_a_user(self) -> None:
        scene = Scene(max_connections_per_user=1)
        first = scene.log_in("bob")
        second = scene.ask_in("bob")
        scene.broker(LoggedIn(second.session.number, 0))
        assert second.words() == ["bad auth_special overloaded"]
        assert scene.said(Close) == [Close(second.session.number)]
        scene.log_in("alice")
        scene.bridge.on_connection_gone(first)
        scene.log_in("bob")

    def test_logins_in_flight(self) -> None:
        scene = Scene(logins_in_flight=1)
        first = scene.ask_in("a")
        assert scene.ask_in("b").words() == ["bad auth_special overloaded"]
        scene.broker(LoggedIn(first.session.number, 1, "authentication-failed"))
        scene.log_in("c")

    def test_what_the_broker_must_hear_waits_for_room(self) -> None:
        scene = Scene()
        one, two = scene.log_in("a"), scene.log_in("b")
        scene.full = True
        scene.bridge.on_connection_gone(one)
        scene.broker(Deliver(1, "s/1.0", "t", b"1", [[0, two.session.number]]))
        scene.full = False
        scene.bridge.tick()
        scene.bridge.flush()
        assert scene.said(Close) == [Close(one.session.number)]
        assert scene.said(Confirm) == [Confirm(1, [], [])]


class TestTheBrokerComesAndGoes:
    def test_clients_stay_and_who_is_about_to_log_in_may_try_again(self) -> None:
        scene = Scene()
        connection, asking = scene.log_in(), scene.ask_in("bob")
        scene.submit(connection, "a")
        scene.bridge.on_link_lost("gone")
        scene.turn()
        assert connection.words() == []
        assert asking.words() == ["bad auth_special unreachable"]
        assert connection.session.state is State.OPEN
        assert scene.ask_in("carol").words() == ["bad auth_special unreachable"]

    @pytest.mark.parametrize("lost_first", [True, False])
    def test_sessions_are_announced_to_the_next_one(self, lost_first: bool) -> None:
        scene = Scene()
        connection, _ = scene.log_in("alice"), scene.connect()
        token = scene.submit(connection, "a")
        scene.sent.clear()
        if lost_first:
            scene.bridge.on_link_lost("gone")
        scene.bridge.on_link_ready()
        again = Submit(token, connection.session.number, "t", b"1", {"attempt": 2})
        assert scene.sent == [Open(connection.session.number, "alice"), again]
        scene.broker(Report(token, 0, None, "s/1", {}))
        assert connection.words() == ["good a"]

    def test_a_delivery_of_an_earlier_link_is_not_confirmed_on_the_next(self) -> None:
        scene = Scene()
        bob = scene.log_in("bob")
        bob.blocked = True
        scene.broker(Deliver(5, "s/1.0", "t", b"1", [[0, bob.session.number]]))
        scene.bridge.on_link_lost("gone")
        scene.bridge.on_link_ready()
        bob.unblock()
        scene.turn()
        assert scene.said(Confirm) == []
        scene.broker(Deliver(1, "s/2.0", "t", b"1", [[0, bob.session.number]]))
        assert scene.said(Confirm) == [Confirm(1, [], [])]

    def test_a_direct_link_greets_and_parts_by_messages(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.broker(Goodbye("ends"))
        assert not scene.bridge.is_ready
        scene.broker(Welcome(1, "s"))
        assert scene.said(Open) == [Open(connection.session.number, "alice")]

    def test_a_client_who_left_while_asked_about(self) -> None:
        scene = Scene()
        connection = scene.ask_in()
        scene.bridge.on_connection_gone(connection)
        assert scene.said(Close) == [Close(connection.session.number)]
        scene.broker(LoggedIn(connection.session.number, 0))
        assert scene.said(Close) == [Close(connection.session.number)]

    def test_what_the_broker_cannot_take(self) -> None:
        scene = Scene()
        connection, asking = scene.log_in(), scene.ask_in("bob")
        token = scene.submit(connection, "a")
        (login,) = [login for login in scene.said(Login) if login.user == "bob"]
        scene.broker(
            Error("malformed", "x", 24, token), Error("malformed", "x", 20, login.session), Error("version", "x")
        )
        assert connection.words() == ["bad a malformed"]
        assert asking.words() == ["bad auth_special malformed"]
        assert any("version" in notice for notice in scene.notices)

    def test_questions(self) -> None:
        scene = Scene()
        answers: list[Any] = []
        scene.bridge.ask("isClient", "bob", lambda *answer: answers.append(answer))
        (ask,) = scene.said(Ask)
        scene.broker(Answer(ask.token, 0, True))
        scene.bridge.ask("listClients", None, lambda *answer: answers.append(answer))
        scene.bridge.on_link_lost("gone")
        scene.bridge.ask("listClients", None, lambda *answer: answers.append(answer))
        assert answers == [(0, True), (UNANSWERED, None), (UNANSWERED, None)]

    def test_a_forward_without_a_forwarder(self) -> None:
        scene = Scene()
        scene.broker(Forward(3, "h:1", "t", b"1", {}))
        assert scene.said(Forwarded) == [Forwarded(3, "failed:unreachable", {"unsent": True})]


def test_nothing_is_left_of_one_who_is_gone() -> None:
    scene = Scene()
    empty: list[bool] = []
    scene.bridge.on_empty = lambda: empty.append(True)
    connection = scene.log_in()
    scene.submit(connection)
    connection.blocked = True
    scene.broker(Deliver(1, "s/1.0", "t", b"1", [[0, connection.session.number]]))
    there = scene.bridge.inspect()
    assert (there.connections, there.hosts, there.sessions, there.users, there.submissions.waiting) == (1, 1, 1, 1, 1)
    scene.bridge.on_connection_gone(connection)
    scene.turn()
    assert scene.bridge.connections == 0
    assert empty == [True]
    left = scene.bridge.inspect()
    assert (left.hosts, left.sessions, left.users, left.logins, left.timed, left.paused) == (0, 0, 0, 0, 0, 0)


def test_reports_that_came_are_counted_in_the_next_confirmation() -> None:
    scene = Scene()
    connection = scene.log_in()
    tokens = [scene.submit(connection, id_) for id_ in "abc"]
    scene.broker(*(Report(token, 0, None, "s/1", {}) for token in tokens[:2]))
    assert scene.said(Confirm) == [Confirm(0, [], [], 2)]
    scene.broker(Deliver(1, "s/3.0", "t", b"1", [[0, connection.session.number]], tokens[2], {"message": "s/3"}))
    assert scene.said(Confirm) == [Confirm(1, [], [], 2)]  # that report was no message of the broker's
    scene.broker(Report(99, 0, None, "s/9", {}))
    assert scene.said(Confirm) == [Confirm(1, [], [], 3)]
    scene.broker(
        Report(tokens[2], 0, None, "s/3", {}), Goodbye("ends"), Welcome(1, "s"), Report(98, 0, None, "s/8", {})
    )
    assert scene.said(Confirm) == [Confirm(0, [], [], 1)]


def test_deadlines_are_kept() -> None:
    scene = Scene()
    connection = scene.connect()
    scene.now = scene.limits.first_frame_s
    scene.bridge.tick()
    scene.turn()
    assert connection.words() == ["bad auth_special timeout"]
    scene.bridge.on_all_sent(connection)
    scene.now += scene.limits.linger_s
    scene.bridge.tick()
    assert connection.aborted is not None


def test_shutting_down_waits_for_reports() -> None:
    scene = Scene()
    connection, idle = scene.log_in(), scene.log_in()
    token = scene.submit(connection, "a")
    scene.bridge.shut_down()
    assert (connection.session.state, idle.session.state) == (State.DRAINING, State.CLOSING)
    scene.broker(Report(token, 0, None, "s/1", {}))
    assert connection.words() == ["good a"]
    assert connection.session.state is State.CLOSING
