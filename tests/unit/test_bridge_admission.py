"""Admission: places for connections, strangers that make way, and the bounds of users and addresses."""

from __future__ import annotations

import json
from dataclasses import replace

from bester.bridge.frames import frame
from bester.bridge.limits import Limits
from bester.broker.wire.messages import (
    Close,
    LoggedIn,
    Report,
    Submit,
)
from tests.unit.bridge_stand import ListConnection, Scene


class TestAdmission:
    def test_connections_are_bounded(self) -> None:
        scene = Scene(max_connections=2)
        connections = [scene.log_in("a"), scene.log_in("b")]
        assert not scene.bridge.admit(ListConnection(scene.bridge), "127.0.0.1")
        scene.bridge.on_connection_lost(connections[0])
        assert scene.bridge.admit(ListConnection(scene.bridge), "127.0.0.1")

    def test_oldest_stranger_makes_way_where_all_places_are_taken(self) -> None:
        scene = Scene(max_connections=3)
        alice, first, second = scene.log_in(), scene.connect(), scene.connect("unix")
        scene.connect()
        assert first.lines() == ["bad auth_special overloaded"]
        assert first.aborted
        assert (alice.aborted, second.aborted) == (None, None)
        there = scene.bridge.inspect()
        assert (there.connections, there.strangers, there.made_way) == (3, 2, 1)
        scene.bridge.on_connection_lost(first)
        assert scene.bridge.inspect() == there

    def test_stranger_makes_way_where_descriptors_are_scarce_and_a_user_does_not(self) -> None:
        scene = Scene(max_connections=9)
        alice, stranger = scene.log_in(), scene.connect()
        assert scene.bridge.admit(ListConnection(scene.bridge), "unix", is_scarce=True)
        assert stranger.lines() == ["bad auth_special overloaded"]
        assert scene.bridge.admit(ListConnection(scene.bridge), "unix", is_scarce=True)  # the one before makes way
        other = Scene(max_connections=9)
        other.log_in()
        assert not other.bridge.admit(ListConnection(other.bridge), "unix", is_scarce=True)
        assert alice.aborted is None

    def test_cut_stranger_leaves_the_share_of_all_strangers_once(self) -> None:
        scene = Scene(max_connections=2)
        first, second = scene.connect(), scene.connect()
        third = scene.connect()
        for each in (first, second):  # the first one was cut before
            scene.bridge.on_connection_lost(each)
        assert scene.bridge.inspect().senders == 1
        assert scene.connect().session.window.sender is third.session.window.sender

    def test_strangers_have_places_of_their_own(self) -> None:
        scene = Scene(max_strangers=10)
        strangers = []
        for n in range(1000):
            strangers.append(scene.connect(f"192.0.2.{n}"))
            scene.now += 0.2
        assert [stranger.aborted is not None for stranger in strangers] == [True] * 990 + [False] * 10
        alice = scene.log_in()  # by a place that the oldest stranger left
        scene.now += 1
        more = []
        for _ in range(1000):
            more.append(scene.connect())
            scene.now += 0.2
        assert alice.aborted is None
        for each in strangers + more:
            scene.bridge.on_connection_lost(each)
        left = scene.bridge.inspect()
        assert (left.connections, left.strangers, left.hosts, left.made_way) == (1, 0, 1, 1990)
        scene.submit(alice)

    def test_clients_that_come_at_once_are_all_let_in(self) -> None:
        scene = Scene(max_strangers=10)
        clients = [scene.connect() for _ in range(300)]
        scene.now += 0.75
        clients += [scene.connect() for _ in range(300)]
        assert not any(client.aborted for client in clients)
        scene.now += 0.25
        clients += [scene.connect() for _ in range(50)]
        assert [client.aborted is not None for client in clients] == [True] * 100 + [False] * 550  # two for each
        scene.now += 1
        for _ in range(600):
            scene.connect()
        assert all(client.aborted for client in clients)
        scene.now += 1
        for _ in range(600):
            scene.connect()
            scene.now += 1
        assert scene.bridge.inspect().strangers == 10

    def test_small_server_has_places_for_some_strangers(self) -> None:
        assert replace(Limits(), max_connections=10).stranger_places == 64
        assert replace(Limits(), max_connections=1000).stranger_places == 250
        assert Limits().stranger_places == 5000

    def test_logins_under_way_leave_places_for_sessions(self) -> None:
        scene = Scene(max_connections=200)
        asking = [scene.start_login(f"user{n}") for n in range(101)]
        assert [each.lines() for each in asking] == [[]] * 100 + [["bad auth_special overloaded"]]
        scene.broker(*(LoggedIn(each.session.number, 0) for each in asking[:100]))
        scene.start_login("more")
        assert scene.bridge.inspect().logins == 1

    def test_login_under_way_keeps_its_place(self) -> None:
        scene = Scene(max_connections=2)
        asking = [scene.start_login("a"), scene.start_login("b")]
        assert not scene.bridge.admit(ListConnection(scene.bridge), "127.0.0.1")
        scene.broker(*(LoggedIn(each.session.number, 0) for each in asking))
        assert [each.lines() for each in asking] == [["good auth_special"]] * 2

    def test_message_of_another_server_keeps_its_place(self) -> None:
        scene = Scene(max_connections=1)
        server = scene.connect()
        payload = {"type": "t", "data": 1, "id": "i"}
        scene.bridge.on_bytes(server, frame(json.dumps({"header": {"scope": "server"}, "payload": payload}).encode()))
        assert not scene.bridge.admit(ListConnection(scene.bridge), "127.0.0.1")
        (submit,) = scene.take(Submit)
        scene.broker(Report(submit.token, 0, None, "s/1", {}))
        assert server.lines() == ["good i"]

    def test_stranger_with_a_part_of_a_login_makes_way_with_it(self) -> None:
        scene = Scene(max_connections=1)
        stranger = scene.connect()
        scene.bridge.on_bytes(stranger, b"\x50\x00\x00\x00{")
        assert scene.bridge.inspect().unfinished_bytes == 5
        scene.connect()
        assert (scene.bridge.inspect().unfinished, scene.bridge.inspect().unfinished_bytes) == (0, 0)
        scene.bridge.on_bytes(stranger, b'"x":1}' * 100)  # read before the cut was noticed
        scene.turn()
        assert stranger.lines() == ["bad auth_special overloaded"]
        assert scene.bridge.inspect().unfinished == 0

    def test_connections_of_an_address_are_bounded_but_not_of_loopback(self) -> None:
        scene = Scene(max_connections_per_address=1)
        connection = scene.log_in(host="192.0.2.1")
        assert not scene.bridge.admit(ListConnection(scene.bridge), "192.0.2.1")
        oldest, other = scene.connect("192.0.2.3"), scene.connect("192.0.2.2")
        assert scene.bridge.admit(ListConnection(scene.bridge), "192.0.2.2")
        assert other.aborted  # it was the stranger of that address
        assert oldest.aborted is None
        for host in ("127.0.0.1", "::1", "unix"):
            scene.connect(host)
            scene.connect(host)
        scene.bridge.on_connection_lost(connection)
        assert scene.bridge.admit(ListConnection(scene.bridge), "192.0.2.1")

    def test_addresses_of_one_ipv6_network_are_bounded_together(self) -> None:
        """Each host there has more addresses than all the room has places."""
        scene = Scene(max_connections_per_address=2)
        first, stranger = scene.log_in(host="2001:db8:1:2::1"), scene.connect("2001:db8:1:2::2")
        elsewhere = scene.connect("2001:db8:1:3::1")
        last = scene.log_in("bob", host="2001:db8:1:2:ffff::3")
        assert (stranger.aborted is None, elsewhere.aborted) == (False, None)
        assert not scene.bridge.admit(ListConnection(scene.bridge), "2001:db8:1:2::4")
        assert scene.bridge.inspect().hosts == 2
        for connection in (first, last, elsewhere):
            scene.bridge.on_connection_lost(connection)
        assert scene.bridge.inspect().hosts == 0
        scene.log_in(host="192.0.2.1")
        scene.log_in("bob", host="::ffff:192.0.2.1")  # the same address, at a listener for both
        assert not scene.bridge.admit(ListConnection(scene.bridge), "192.0.2.1")

    def test_connections_of_a_user_are_bounded(self) -> None:
        scene = Scene(max_connections_per_user=1)
        first = scene.log_in("bob")
        second = scene.start_login("bob")
        scene.broker(LoggedIn(second.session.number, 0))
        assert second.lines() == ["bad auth_special overloaded"]
        assert scene.take(Close) == [Close(second.session.number)]
        scene.log_in("alice")
        scene.bridge.on_connection_lost(first)
        scene.log_in("bob")

    def test_pending_logins_are_bounded(self) -> None:
        scene = Scene(logins_in_flight=1)
        first = scene.start_login("a")
        assert scene.start_login("b").lines() == ["bad auth_special overloaded"]
        scene.broker(LoggedIn(first.session.number, 1, "authentication-failed"))
        scene.log_in("c")
