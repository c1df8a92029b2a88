"""Turns of the bridge beside a user with many connections: nobody else waits for that user's copies or writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random

import pytest

from bester.bridge.confirmations import Confirmations
from bester.bridge.frames import frame
from bester.bridge.limits import KIB
from bester.bridge.outbound import LOOK_BYTES, WRITE_COST
from bester.broker.wire.messages import (
    Close,
    Confirm,
    Deliver,
    Goodbye,
    Heartbeat,
    Message,
    Report,
    Submit,
    Welcome,
)
from tests.unit.bridge_stand import ListConnection, Noted, Scene


class CostlyConnection(ListConnection):
    """Connection whose writes take time: a second a MiB, with `WRITE_COST` for the call."""

    scene: Scene

    def flush(self) -> bool:
        before = self.out.taken_bytes
        more = super().flush()
        if self.out.taken_bytes > before:
            self.scene.now += (self.out.taken_bytes - before + WRITE_COST) / (1024 * KIB)
        return more


class Costly(Scene):
    """Scene in which writes take time."""

    def connect(self, host: str = "127.0.0.1") -> ListConnection:
        connection = CostlyConnection(self.bridge)
        connection.scene = self
        connection.chunk_bytes = self.limits.write_chunk
        assert self.bridge.admit(connection, host)
        return connection


class NotedScene(Scene):
    """Scene whose reads are noted."""

    def __init__(self) -> None:
        self.reading = self.reads = Noted()
        super().__init__()


def to(serial: int, *users: list[ListConnection], size: int = 1, token: int | None = None) -> Deliver:
    """Return a delivery to users, each with all connections."""
    targets = [[number, *(each.session.number for each in user)] for number, user in enumerate(users)]
    body = json.dumps(f"{serial}".ljust(size, "x")).encode()
    return Deliver(serial, f"s/{serial}", "t", body, targets, token)


def serials(connection: ListConnection) -> list[int]:
    """Return the serials of the deliveries that were written."""
    return [int(frame["payload"]["data"].rstrip("x")) for frame in connection.frames() if "data" in frame["payload"]]


def test_flood_to_one_user_delays_no_other() -> None:
    scene = Scene(turn_frames=30)
    eve = [scene.log_in("eve") for _ in range(8)]
    bob = [scene.log_in("bob")]
    scene.bridge.receive([*(to(serial, eve) for serial in range(1, 101)), to(101, bob)])
    assert serials(bob[0]) == []
    for serial in range(102, 110):
        scene.bridge.receive([to(serial, bob)])
    for _ in range(12):
        scene.one_turn()
    assert serials(bob[0]) == [*range(101, 110)]
    assert len(serials(eve[0])) < 50
    confirm = scene.take(Confirm)[-1]
    assert confirm.upto == len(serials(eve[0])), "eve's others are not confirmed"
    scene.turn()
    assert all(serials(each) == [*range(1, 101)] for each in eve)
    assert scene.take(Confirm)[-1] == Confirm(109, [], [], 0)


@pytest.mark.parametrize("seed", range(6))
def test_each_user_has_deliveries_in_order_and_confirmations_hold(seed: int) -> None:
    random = Random(seed)
    scene = Scene(turn_frames=random.choice((1, 2, 5, 20)))
    users = [[scene.log_in(f"u{number}") for _ in range(random.choice((1, 1, 3, 12)))] for number in range(6)]
    meant: dict[int, list[int]] = {number: [] for number in range(len(users))}
    confirmed: set[int] = set()
    highest = 0

    def look() -> None:
        for confirm in scene.take(Confirm):
            assert confirm.failed == []
            confirmed.update(range(1, confirm.upto + 1), confirm.done)
        for number, due in meant.items():
            for each in users[number]:
                assert confirmed & {*due} <= {*serials(each)}, "confirmed and not written"

    for _ in range(20):
        run = []
        for _ in range(random.randrange(8)):
            highest += 1
            chosen = random.sample(range(len(users)), random.choice((1, 1, 2, 5)))
            for number in chosen:
                meant[number].append(highest)
            run.append(to(highest, *(users[number] for number in chosen)))
        scene.bridge.receive(run)
        if random.random() < 0.7:
            scene.one_turn()
            look()
    scene.turn()
    look()
    for number, user in enumerate(users):
        assert all(serials(each) == meant[number] for each in user)
    assert confirmed == {*range(1, highest + 1)}


def test_closure_comes_behind_the_deliveries_to_its_user() -> None:
    scene = Scene(turn_frames=2)
    eve, bob = [scene.log_in("eve") for _ in range(3)], [scene.log_in("bob")]
    scene.bridge.receive([to(1, eve), to(2, eve), to(3, bob), to(4, bob), Close(bob[0].session.number), to(5, eve)])
    scene.turn()
    assert serials(bob[0]) == [3, 4]
    assert not bob[0].session.is_target
    assert serials(eve[0]) == [1, 2, 5]


def test_delivery_to_a_session_that_has_ended_fails_in_its_turn() -> None:
    scene = Scene(turn_frames=2)
    eve, bob = [scene.log_in("eve") for _ in range(3)], [scene.log_in("bob")]
    scene.bridge.receive([to(1, eve), to(2, eve), to(3, bob)])
    scene.bridge.on_connection_lost(bob[0])
    scene.bridge.receive([to(4, bob)])
    scene.turn()
    confirms = scene.take(Confirm)
    assert [row for confirm in confirms for row in confirm.failed] == [[3, 0, "not-connected"], [4, 0, "not-connected"]]
    assert confirms[-1].upto == 4


def test_reports_and_heartbeats_pass_by() -> None:
    scene = Scene(turn_frames=2)
    eve, alice = [scene.log_in("eve") for _ in range(3)], scene.log_in("alice")
    token = scene.submit(alice)
    scene.bridge.receive([to(serial, eve) for serial in range(1, 50)])
    scene.bridge.receive([Heartbeat(), Report(token, 0, None, None, {})])
    scene.one_turn()
    assert alice.lines() == ["good i"]
    assert len(serials(eve[0])) < 10


def test_end_of_the_link_comes_behind_what_waits() -> None:
    scene = Scene(turn_frames=2)
    eve = [scene.log_in("eve") for _ in range(3)]
    scene.bridge.receive([to(1, eve), to(2, eve), to(3, eve), Goodbye(), Welcome(1, "s", {}), to(1, eve)])
    assert scene.bridge.is_ready
    scene.turn()
    assert scene.bridge.is_ready
    assert serials(eve[0]) == [1, 2, 3, 1]
    assert scene.take(Confirm)[-1].upto == 1, "of the new link"


def test_writes_of_a_turn_are_bounded_in_time() -> None:
    scene = Costly(turn_write_s=0.05, turn_bytes=1 << 30)
    eve, bob = [scene.log_in("eve") for _ in range(40)], [scene.log_in("bob")]
    scene.now = 0.0
    scene.bridge.receive([to(1, eve, size=30_000)])
    longest, count = 0.0, 1
    for serial in range(2, 12):
        scene.bridge.receive([to(serial, eve, size=30_000)])
        count += 1
        scene.bridge.receive([to(100 + serial, bob)])
        for _ in range(2):
            began = scene.now
            scene.one_turn()
            longest = max(longest, scene.now - began)
        assert serials(bob[0])[-1] == 100 + serial, "two turns at most"
    one_look = (LOOK_BYTES + scene.limits.write_chunk + 2 * WRITE_COST) / (1024 * KIB)
    assert longest <= (0.05 + one_look) * 2, "small ones, and large ones"
    scene.turn()
    assert all(serials(each) == [*range(1, count + 1)] for each in eve)


def test_large_message_does_not_wait_for_all_connections_of_another() -> None:
    scene = Costly(turn_write_s=0.05)
    eve, bob = [scene.log_in("eve") for _ in range(40)], [scene.log_in("bob")]
    scene.bridge.receive([to(1, eve, size=900_000), to(2, bob, size=900_000)])
    while len(bob[0].written) < 900_000:
        scene.one_turn()
    assert sum(len(each.written) for each in eve) <= 2 * 900_000
    scene.turn()
    assert all(serials(each) == [1] for each in eve)


def test_postponed_deliveries_hold_the_confirmation_back() -> None:
    ledger = Confirmations()
    for serial in (1, 2, 3, 4):
        ledger.postpone(serial)
    ledger.at_once((3,))
    assert ledger.confirm() == [Confirm(0, [3], [], 0)]
    second = ledger.begin(2, None, None)
    ledger.at_once((1,))
    assert ledger.confirm() == [Confirm(1, [], [], 0)]
    ledger.at_once((4,))
    second.release()
    ledger.end(second)
    assert ledger.confirm() == [Confirm(4, [], [], 0)]
    assert ledger.waiting == 0


def test_message_alone_is_sent_on_in_its_reading_and_others_at_the_end_of_the_turn() -> None:
    scene = NotedScene()
    alice, bob = scene.log_in("alice"), scene.log_in("bob")
    scene.reads.take()
    first = scene.submit(alice)
    assert scene.reads.take() == ["begin", "end"]
    second = scene.submit(bob)
    assert scene.reads.take() == [], "another message is under way: both wait for the end of the turn"
    scene.broker(Report(first, 0, None, "m", {}), Report(second, 0, None, "m", {}))
    scene.submit(bob)
    assert scene.reads.take() == ["begin", "end"]


def test_answer_of_the_bridge_itself_waits_for_the_end_of_the_turn() -> None:
    scene = NotedScene()
    alice = scene.log_in("alice")
    scene.reads.take()
    scene.bridge.on_bytes(alice, frame(b'{"payload":{"type":"dummy","data":null,"id":"p"}}'))
    assert scene.reads.take() == ["begin", "leave"]
    assert alice.lines() == []
    scene.turn()
    assert alice.lines() == ["0 p"]


def test_fault_in_a_reading_ends_it() -> None:
    class Faulty(NotedScene):
        """Scene whose broker raises for a submit."""

        def send_all(self, messages: Sequence[Message]) -> int:
            raise RuntimeError("a fault")

    scene = Faulty()
    alice = scene.log_in("alice")
    scene.reads.take()
    with pytest.raises(RuntimeError):
        scene.submit(alice)
    assert scene.reads.take() == ["begin", "end"], "what is asked for later would never be sent"


def test_confirmation_that_no_report_waits_for_leaves_with_what_is_read_beside() -> None:
    scene = Scene()
    alice = scene.log_in("alice")
    token = scene.submit(alice)
    scene.sent.clear()
    scene.bridge.receive([to(1, [alice], token=token)])
    scene.one_turn()
    assert len(alice.lines()) == 2, "the delivery, and the report by the bridge"
    assert scene.sent == []
    scene.bridge.on_bytes(alice, frame(b'{"payload":{"type":"t","data":2,"id":"i"}}'))
    scene.one_turn()
    assert [type(message) for message in scene.sent] == [Submit, Confirm]
    assert scene.take(Confirm) == [Confirm(1, [], [], 0)]
    scene.turn()
    assert scene.take(Confirm) == []


def test_confirmation_that_a_report_waits_for_leaves_at_once() -> None:
    scene = Scene()
    alice, bob = scene.log_in("alice"), scene.log_in("bob")
    scene.sent.clear()
    scene.bridge.receive([to(1, [bob])])
    scene.one_turn()
    assert scene.take(Confirm) == [Confirm(1, [], [], 0)]
    token = scene.submit(alice)
    scene.bridge.on_connection_lost(bob)
    scene.turn()
    scene.bridge.receive([to(2, [alice], [bob], token=token)])
    scene.one_turn()
    assert scene.take(Confirm) == [Confirm(2, [], [[2, 1, "not-connected"]], 0)]


def test_confirmation_that_was_left_goes_to_no_later_link() -> None:
    scene = Scene()
    alice = scene.log_in("alice")
    token = scene.submit(alice)
    scene.bridge.receive([to(1, [alice], token=token)])
    scene.one_turn()
    scene.bridge.on_link_lost("gone")
    scene.bridge.on_link_ready()
    scene.turn()
    assert scene.take(Confirm) == [], "its deliveries went with the link"
    token = scene.submit(alice)
    scene.broker(to(1, [alice], token=token))
    assert scene.take(Confirm) == [Confirm(1, [], [], 0)]
