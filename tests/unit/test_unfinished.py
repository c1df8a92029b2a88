"""Frames that have begun and not ended, on a whole bridge: the bound of their bytes, and their time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.bridge.frames import frame
from bester.bridge.limits import KIB, Limits
from bester.broker.wire.messages import LoggedIn, Report, Submit
from tests.unit.bridge_stand import ListConnection, Scene

LARGE = frame(b'{"payload":{"type":"t","data":"%b","id":"large"}}' % (b"x" * 900))


def write(scene: Scene, connection: ListConnection, data: bytes) -> None:
    scene.bridge.on_bytes(connection, data)
    scene.turn()


def pass_time(scene: Scene, seconds: float) -> None:
    """Let time pass as a running bridge does: with a look every half second."""
    for _ in range(int(seconds * 2)):
        scene.now += 0.5
        scene.bridge.tick()
        scene.turn()


def park(scene: Scene, user: str, size: int = 900, announced: int = 1000) -> ListConnection:
    connection = scene.log_in(user)
    write(scene, connection, announced.to_bytes(4, "little") + b"x" * (size - 4))
    return connection


def counts(scene: Scene) -> tuple[int, int, int, int]:
    state = scene.bridge.inspect()
    return state.unfinished, state.unfinished_bytes, state.frames_over, state.frames_late


def wants_input(connection: ListConnection) -> bool:
    return connection.reading


class TestBytes:
    def test_parts_are_counted_until_their_frame_ends(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        whole = frame(b'{"payload":{"type":"dummy","data":null,"id":"p"}}')
        write(scene, connection, whole)
        assert counts(scene) == (0, 0, 0, 0)
        write(scene, connection, whole + whole[:2])
        assert counts(scene) == (1, 2, 0, 0)
        write(scene, connection, whole[2:9])
        assert counts(scene) == (1, 9, 0, 0)
        write(scene, connection, whole[9:] + whole + whole[:5])
        assert counts(scene) == (1, 5, 0, 0)
        write(scene, connection, whole[5:])
        assert counts(scene) == (0, 0, 0, 0)

    def test_largest_part_held_for_longest_makes_way(self) -> None:
        scene = Scene(unfinished_bytes=2000)
        oldest = park(scene, "carol", 20)
        pass_time(scene, 0.5)
        parked = park(scene, "mallory")
        pass_time(scene, 5)
        small = park(scene, "bob", 20)
        honest = park(scene, "alice")
        assert counts(scene) == (4, 1840, 0, 0)
        write(scene, honest, b"x" * 50)
        write(scene, small, b"x" * 200)
        assert parked.lines() == ["bad None overloaded"]
        assert honest.lines() == small.lines() == oldest.lines() == []
        assert counts(scene) == (3, 1190, 1, 0)
        ((number, why),) = scene.ended
        assert number == parked.session.number
        assert why == "too many frames are unfinished, and it held most: 900 of 1004 bytes had come"

    def test_many_small_parts_of_one_user_do_not_push_out_a_large_one_of_another(self) -> None:
        scene = Scene(unfinished_bytes=8000)
        parked = [park(scene, "mallory", 100) for _ in range(60)]
        pass_time(scene, 2)
        honest = scene.log_in("alice")
        write(scene, honest, LARGE[:900])
        pass_time(scene, 1)
        more = [park(scene, "mallory", 100) for _ in range(60)]
        assert scene.bridge.inspect().unfinished_bytes <= 8000
        assert honest.lines() == []
        assert [each.lines() for each in parked[:10]] == [
            ["bad None overloaded"]
        ] * 10  # those that held it for longest
        assert more[-1].lines() == []
        write(scene, honest, LARGE[900:])
        (submit,) = scene.take(Submit)
        scene.broker(Report(submit.token, 0, None, "s/1", {}))
        assert honest.lines() == ["good large"]

    def test_many_small_parts_of_one_ipv6_network_do_not_push_out_a_large_one_of_another_party(self) -> None:
        """A host there has more addresses than there are connections."""
        scene = Scene(unfinished_bytes=8000)
        parked = [scene.connect(f"2001:db8:1:2::{number:x}") for number in range(1, 71)]
        for each in parked:
            write(scene, each, (1000).to_bytes(4, "little") + b"x" * 96)
        honest = scene.log_in("alice")
        write(scene, honest, LARGE[:900])
        pass_time(scene, 1)
        more = scene.connect("2001:db8:1:2::1:1")
        write(scene, more, (1000).to_bytes(4, "little") + b"x" * 296)
        assert scene.bridge.inspect().unfinished_bytes <= 8000
        assert scene.bridge.inspect().frames_over > 0
        assert honest.lines() == []

    def test_honest_frames_pass_beside_any_number_of_parked_ones(self) -> None:
        scene = Scene(unfinished_bytes=20_000)
        honest = scene.log_in("alice")
        for n in range(100):
            park(scene, f"mallory{n}")
            write(scene, honest, LARGE[:700])
            park(scene, f"mallory{n}")
            write(scene, honest, LARGE[700:])
            (submit,) = scene.take(Submit)
            scene.broker(Report(submit.token, 0, None, "s/1", {}))
            assert honest.lines() == ["good large"]
            assert scene.bridge.inspect().unfinished_bytes <= 20_000
            pass_time(scene, 0.5)
        assert scene.bridge.inspect().frames_over > 150

    def test_messages_before_the_frame_are_still_reported(self) -> None:
        scene = Scene(unfinished_bytes=1000)
        first = scene.log_in("mallory")
        token = scene.submit(first, "a")
        write(scene, first, LARGE[:900])
        park(scene, "bob", 200)
        assert first.lines() == ["bad None overloaded"]
        write(scene, first, LARGE[900:])  # of a stream that has ended
        assert scene.take(Submit) == []
        scene.broker(Report(token, 0, None, "s/1", {}))
        assert first.lines() == ["good a"]

    def test_connection_alone_above_the_bound_makes_way_itself(self) -> None:
        scene = Scene(unfinished_bytes=500)
        connection = park(scene, "mallory")
        assert connection.lines() == ["bad None overloaded"]
        assert counts(scene) == (0, 0, 1, 0)

    @pytest.mark.parametrize("how", ["goes", "ends", "is refused", "closes", "ends behind held frames"])
    def test_ended_stream_holds_nothing(self, how: str) -> None:
        scene = Scene()
        connection = park(scene, "alice") if how != "closes" else scene.log_in()
        if how == "goes":
            scene.bridge.on_connection_lost(connection)
        elif how == "ends":
            scene.submit(other := scene.log_in(), "a")  # a report outstanding keeps a connection
            write(scene, other, b"\x09\x00")
            scene.bridge.on_peer_ended(other)
            scene.bridge.on_peer_ended(connection)
        elif how == "ends behind held frames":
            scene.bridge.on_connection_lost(connection)
            scene = Scene(unreported=1)
            connection = scene.log_in()
            scene.submit(connection, "a")
            write(scene, connection, LARGE + LARGE[:500])
            assert counts(scene)[:2] == (1, 500)
            scene.bridge.on_peer_ended(connection)
        elif how == "is refused":
            scene.bridge.shut_down()
        else:
            command = b'{"payload":{"type":"builtin","data":{"command":{"type":"close"}},"id":"c"}}'
            write(scene, connection, frame(command) + b"\x09\x00\x00\x00part")
        assert counts(scene)[:2] == (0, 0)
        assert connection.session.splitter.waiting_bytes == 0

    def test_part_behind_the_message_of_a_server_is_dropped(self) -> None:
        scene = Scene()
        server = scene.connect()
        message: dict[str, Any] = {"header": {"scope": "server"}, "payload": {"type": "t", "data": 1, "id": "i"}}
        write(scene, server, frame(json.dumps(message).encode()) + b"\x09\x00\x00\x00part")
        assert counts(scene) == (0, 0, 0, 0)
        assert server.session.splitter.waiting_bytes == 0

    def test_strangers_are_charged_by_address_and_told_so(self) -> None:
        scene = Scene(unfinished_bytes=8000)
        parked = [scene.connect("192.0.2.1") for _ in range(20)]
        for connection in parked:
            write(scene, connection, LARGE[:300])
        scene.now = 1
        honest = scene.connect("192.0.2.2")
        write(scene, honest, LARGE[:900])
        scene.now = 1.5
        late = [scene.connect("192.0.2.3") for _ in range(20)]
        for connection in late:
            write(scene, connection, LARGE[:300])
        told = [connection.lines() for connection in parked]
        assert told == [["bad auth_special overloaded"]] * (n := len([line for line in told if line])) + [[]] * (20 - n)
        assert n >= (20 * 300 + 900 + 20 * 300 - 8000) // 300
        assert honest.lines() == []
        assert not any(connection.lines() for connection in late)

    def test_user_of_an_unchecked_login_is_not_charged(self) -> None:
        scene = Scene(unfinished_bytes=1000)
        honest, other = park(scene, "alice", 300), park(scene, "bob", 400)
        liar = scene.connect("192.0.2.9")
        login = {"header": {"scope": "client", "authentication": {"username": "alice", "password": "wrong"}}}
        write(scene, liar, frame(json.dumps(login).encode()) + LARGE[:200])
        scene.now += 1
        park(scene, "carol", 200)
        assert (honest.lines(), other.lines()) == ([], ["bad None overloaded"])
        scene.broker(LoggedIn(liar.session.number, 1, "authentication-failed"))
        assert liar.lines() == ["bad auth_special authentication-failed"]
        assert counts(scene)[:2] == (2, 500)

    def test_parties_take_turns_to_make_way(self) -> None:
        scene = Scene(unfinished_bytes=4000)
        first = [park(scene, "mallory", 300) for _ in range(7)]
        second = [park(scene, "trudy", 300) for _ in range(6)]
        scene.now += 1
        park(scene, "alice", 300)
        assert [each.lines() for each in first] == [["bad None overloaded"]] * 2 + [[]] * 5
        assert [each.lines() for each in second] == [["bad None overloaded"]] + [[]] * 5

    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 400), st.floats(0, 3)), max_size=60))
    def test_bound_holds_whatever_comes(self, story: list[tuple[int, int, float]]) -> None:
        scene = Scene(unfinished_bytes=1000)
        peers = [scene.log_in(f"user{n % 3}") for n in range(6)]
        stream = LARGE * 3
        at = [0] * 6
        for who, size, seconds in story:
            scene.now += seconds
            scene.bridge.tick()
            part = stream[at[who] % len(LARGE) :][:size]
            at[who] += len(part)
            write(scene, peers[who], part)
            state = scene.bridge.inspect()
            assert state.unfinished_bytes == sum(peer.session.splitter.waiting_bytes for peer in peers) <= 1000
        for peer in peers:
            scene.bridge.on_connection_lost(peer)
        assert counts(scene)[:2] == (0, 0)


class TestTime:
    def test_parked_frame_is_ended(self) -> None:
        scene = Scene()
        connection = park(scene, "mallory", 20_000, 80 * KIB)
        pass_time(scene, 39)
        assert connection.lines() == []
        pass_time(scene, 2)
        assert connection.lines() == ["bad None timeout"]
        assert counts(scene) == (0, 0, 0, 1)
        assert scene.ended[0][1] == f"its frame took too long: 20000 of {80 * KIB + 4} bytes had come"

    def test_byte_now_and_then_does_not_help(self) -> None:
        scene = Scene()
        connection = park(scene, "mallory", 10)
        for _ in range(32):
            write(scene, connection, b"x")
            pass_time(scene, 1)
        assert connection.lines() == ["bad None timeout"]

    @pytest.mark.parametrize("part", [b"\x05", b"\x05\x00\x00", b"\x05\x00\x00\x00"])
    def test_header_has_the_same_time(self, part: bytes) -> None:
        scene = Scene()
        connection = scene.log_in()
        write(scene, connection, part)
        pass_time(scene, 29)
        assert connection.lines() == []
        pass_time(scene, 3)
        assert connection.lines() == ["bad None timeout"]

    def test_slow_honest_link_has_time_for_its_frames(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        body = b'{"payload":{"type":"t","data":"%b","id":"i"}}' % (b"x" * (1000 * KIB))
        stream = frame(body) * 2
        step = Limits().frame_rate // 2
        for start in range(0, len(stream), step):
            write(scene, connection, stream[start : start + step])
            pass_time(scene, 0.5)
        assert connection.lines() == []
        assert len(scene.take(Submit)) == 2

    def test_time_without_being_read_from_does_not_count(self) -> None:
        scene = Scene(unreported=1)
        connection = scene.log_in()
        token = scene.submit(connection, "a")
        write(scene, connection, frame(b'{"payload":{"type":"t","data":1,"id":"b"}}') + LARGE[:500])
        assert wants_input(connection) is False
        pass_time(scene, 100)
        assert connection.lines() == []
        scene.broker(Report(token, 0, None, "s/1", {}))
        assert wants_input(connection) is True
        pass_time(scene, 25)
        assert connection.lines() == ["good a"]
        write(scene, connection, LARGE[500:])
        assert counts(scene) == (0, 0, 0, 0)

    def test_stall_of_the_bridge_does_not_count_in_full(self) -> None:
        scene = Scene()
        connection = park(scene, "alice")
        scene.now += 300
        scene.bridge.tick()
        scene.turn()
        assert connection.lines() == []

    def test_stranger_has_the_time_of_a_first_frame(self) -> None:
        scene = Scene()
        stranger = scene.connect()
        for _ in range(6):
            write(scene, stranger, b"\x50\x00\x00\x00"[:1] if not scene.now else b"\x00")
            pass_time(scene, 1)
        assert stranger.lines() == ["bad auth_special timeout"]
        assert counts(scene) == (0, 0, 0, 0)
