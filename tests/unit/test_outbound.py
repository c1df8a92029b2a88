"""Turns of the frames on their way out: a budget a turn, connections in turn, bodies that many connections share."""

from __future__ import annotations

import json

from bester.bridge.limits import KIB, MIB, Limits
from bester.bridge.outbound import REST_BYTES, WRITE_COST
from bester.bridge.outqueue import JOIN_BYTES, OutQueue
from bester.broker.wire.messages import Confirm, Deliver, Report
from tests.unit.bridge_stand import ListConnection, Scene


class Turns(Scene):
    """Scene in which the test runs each turn of the loop."""

    def turn_once(self) -> None:
        """Run the calls of one turn; calls made meanwhile belong to the next."""
        calls, self._soon[:] = list(self._soon), []
        for call in calls:
            call()

    @property
    def is_idle(self) -> bool:
        return not self._soon

    def crowd(self, user: str, size: int) -> list[ListConnection]:
        connections = [self.log_in(user) for _ in range(size)]
        for connection in connections:
            connection.chunk_bytes = self.limits.write_chunk
        return connections

    def deliver(self, serial: int, connections: list[ListConnection], size: int, token: int | None = None) -> None:
        """Hand over a delivery to one user without running a turn."""
        body = json.dumps("x" * size).encode()
        target = [0, *(connection.session.number for connection in connections)]
        self.bridge.receive([Deliver(serial, f"s/{serial}.0", "t", body, [target], token)])


def written(connections: list[ListConnection]) -> int:
    return sum(len(connection.written) for connection in connections)


def test_large_message_to_many_is_written_over_turns() -> None:
    scene = Turns(turn_bytes=MIB)
    many = scene.crowd("many", 30)
    scene.deliver(1, many, 700_000)
    turns = before = 0
    while not scene.is_idle:
        scene.turn_once()
        assert written(many) - before <= MIB + scene.limits.write_chunk
        before, turns = written(many), turns + 1
    assert turns >= 30 * 700_000 // (MIB + scene.limits.write_chunk)
    for connection in many:
        (row,) = [json.loads(connection.written[4:])]
        assert row["payload"]["data"] == "x" * 700_000


def test_connections_get_their_chunks_in_turn() -> None:
    scene = Turns(turn_bytes=MIB)
    many = scene.crowd("many", 12)
    scene.deliver(1, many, 900_000)
    while not scene.is_idle:
        scene.turn_once()
        sizes = sorted(len(connection.written) for connection in many)
        assert sizes[-1] - sizes[0] <= scene.limits.write_chunk + JOIN_BYTES


def test_small_frames_do_not_wait_for_large_ones() -> None:
    scene = Turns(turn_bytes=MIB)
    many = scene.crowd("many", 40)
    honest = scene.log_in("honest")
    scene.deliver(1, many, 900_000)
    scene.turn_once()
    for serial in range(2, 6):
        scene.deliver(serial, [honest], 10)
        scene.turn_once()
        assert honest.lines() == [f"s/{serial}.0.0=xxxxxxxxxx"]
    assert not scene.is_idle, "the large ones are still being written"


def test_many_small_frames_leave_a_part_of_the_turn_to_large_ones() -> None:
    scene = Turns(turn_bytes=4 * WRITE_COST)
    large = scene.crowd("large", 1)
    small = [scene.log_in(f"u{number}") for number in range(100)]
    scene.deliver(1, large, 600_000)
    serial = 1
    while len(large[0].written) < 600_000:
        before = len(large[0].written)
        for connection in small:
            serial += 1
            scene.deliver(serial, [connection], 10)
        scene.turn_once()
        assert len(large[0].written) > before


def test_short_frames_to_a_crowd_are_bounded_in_number() -> None:
    scene = Turns(turn_bytes=10 * WRITE_COST)
    many = scene.crowd("many", 100)
    scene.deliver(1, many, 10)
    scene.turn_once()
    assert sum(bool(connection.written) for connection in many) <= 10
    for _ in range(20):
        scene.turn_once()
    assert all(len(connection.lines()) == 1 for connection in many)


def test_no_report_before_the_last_byte_has_left() -> None:
    scene = Turns(turn_bytes=MIB)
    alice, (bob,) = scene.log_in("alice"), scene.crowd("bob", 1)
    token = scene.submit(alice)
    others = scene.crowd("others", 9)
    scene.deliver(1, others, 900_000)
    scene.deliver(2, [bob], 900_000, token)
    while len(bob.written) < 900_000:
        assert alice.lines() == []
        assert 2 not in [serial for confirm in scene.take(Confirm) for serial in (*confirm.done, confirm.upto)]
        scene.turn_once()
    while not scene.is_idle:
        scene.turn_once()
    assert alice.lines() == ["good i"]
    assert scene.take(Confirm)[-1].upto == 2


def test_connection_that_goes_in_the_middle_of_a_frame_has_not_got_it() -> None:
    scene = Turns(turn_bytes=256 * KIB)
    (bob,) = scene.crowd("bob", 1)
    others = scene.crowd("others", 3)
    scene.deliver(1, [bob, *others], 900_000)
    scene.turn_once()
    scene.turn_once()
    bob.abort_code = "overloaded"
    scene.bridge.on_connection_lost(bob)
    scene.deliver(2, others, 10)
    while not scene.is_idle:
        scene.turn_once()
    assert scene.take(Confirm)[-1] == Confirm(2, [], [])
    assert all(len(connection.frames()) == 2 for connection in others)


def test_blocked_crowd_shares_one_body() -> None:
    scene = Turns()
    many = scene.crowd("many", 50)
    for connection in many:
        connection.blocked = True
    body = json.dumps("x" * 100_000).encode()
    scene.bridge.receive([Deliver(1, "s/1.0", "t", body, [[0, *(each.session.number for each in many)]])])
    scene.turn()
    tails = {id(piece.obj if isinstance(piece, memoryview) else piece) for piece in map(rest, many)}
    assert len(tails) == 1


def rest(connection: ListConnection) -> bytes | memoryview:
    """Return the next bytes of a connection behind its first chunk."""
    connection.out.on_sent()
    return connection.out.take(Limits().write_chunk)


def test_chunks_of_a_shared_piece_are_views() -> None:
    piece = b"x" * (JOIN_BYTES + 1)
    queue: OutQueue[None] = OutQueue()
    queue.push(piece)
    assert queue.take(1 << 20) is piece
    queue.on_sent()
    queue.push(piece)
    part = queue.take(1000)
    assert isinstance(part, memoryview)
    assert (part.obj is piece, len(part), queue.queued_bytes) == (True, 1000, len(piece))


def test_deliveries_behind_a_crowd_come_in_order_over_turns() -> None:
    scene = Turns(turn_frames=20)
    many = scene.crowd("many", 15)
    alice = scene.log_in("alice")
    token = scene.submit(alice)
    target = [0, *(connection.session.number for connection in many)]
    rows = [Deliver(serial, f"s/{serial}.0", "t", b"%d" % serial, [target]) for serial in range(1, 10)]
    scene.bridge.receive([*rows, Report(token, 0, None, None, {})])
    scene.bridge.receive([Deliver(10, "s/10.0", "t", b"10", [target])])
    assert many[0].out.pushed_bytes < 9 * 60
    scene.turn()
    assert all(connection.lines() == [f"s/{n}.0.0={n}" for n in range(1, 11)] for connection in many)
    assert alice.lines() == ["good i"]
    assert scene.take(Confirm)[-1].upto == 10


def test_lost_link_takes_the_unhandled_deliveries_with_it() -> None:
    scene = Turns(turn_frames=2)
    many = scene.crowd("many", 3)
    target = [0, *(connection.session.number for connection in many)]
    scene.bridge.receive([Deliver(serial, f"s/{serial}.0", "t", b"1", [target]) for serial in (1, 2)])
    scene.bridge.on_link_lost("gone")
    scene.turn()
    assert [connection.lines() for connection in many] == [["s/1.0.0=1"]] * 3, "the broker sends the other one again"


def test_connections_of_one_user_take_turns_where_every_turn_has_frames_for_them() -> None:
    scene = Turns()
    many, honest = scene.crowd("many", 40), scene.log_in("honest")
    serial, writes, seen = 0, list[int](), dict.fromkeys(many, 0)
    for _ in range(12):
        serial += 2
        scene.deliver(serial - 1, many, 100)
        scene.deliver(serial, [honest], 10)
        scene.turn_once()
        assert honest.lines() == [f"s/{serial}.0.0=xxxxxxxxxx"], "nobody else waits"
        grown = [each for each in many if len(each.written) > seen[each]]
        seen |= {each: len(each.written) for each in grown}
        writes.append(len(grown))
    assert writes[0] == 40, "a lone message goes to all at once"
    assert max(writes[1:]) == 10
    assert sum(writes[4:8]) == sum(writes[8:12]) == 40, "each has its turn"
    scene.turn_once()
    assert scene.is_idle
    for each in many:
        assert each.lines() == [f"s/{number}.0.0=" + "x" * 100 for number in range(1, serial, 2)]
    confirms = scene.take(Confirm)
    assert confirms[-1].upto == serial


def test_connection_that_an_earlier_turn_has_left_does_not_rest() -> None:
    scene = Turns(turn_bytes=9 * WRITE_COST)
    many = scene.crowd("many", 64)
    for serial in range(1, 61):
        scene.deliver(serial, many, 100)
        scene.turn_once()
    turns = 0
    while not scene.is_idle:
        scene.turn_once()
        turns += 1
    assert turns <= 16, "each waits once, and a turn has eight writes"
    assert all(len(each.lines()) == 60 for each in many)


def test_connection_does_not_rest_with_much_queued_for_it() -> None:
    scene = Turns()
    many = scene.crowd("many", 40)
    for serial in range(1, 9):
        scene.deliver(serial, many, 30_000)
        scene.turn_once()
        assert all(each.out.queued_bytes < REST_BYTES for each in many)
    crowded = Turns(out_queue=64 * KIB, out_answers=64 * KIB)
    many = crowded.crowd("many", 40)
    for serial in range(1, 9):
        crowded.deliver(serial, many, 10_000)
        crowded.turn_once()
        assert all(each.out.queued_bytes < 16 * KIB for each in many)
    while not crowded.is_idle:
        crowded.turn_once()
    assert all(len(each.lines()) == 8 for each in many), "no bound is reached by those that rest"
