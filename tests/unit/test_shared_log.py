"""A user with many connections: frames held once a turn reach each connection as if they had been queued one by one."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.bridge.outbound import FEW, LOG_BYTES
from bester.broker.wire.messages import Confirm, Deliver
from tests.unit.bridge_stand import ListConnection, Scene

STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["say", "block", "unblock", "leave"]), st.integers(0, 99)),
        st.tuples(st.sampled_from(["join", "turn", "push", "other", "answer", "answer"]), st.just(0)),
    ),
    max_size=60,
)


class Crowd(Scene):
    """A scene in which many connections of one user hear everything that one of them says, or that others send.

    `expected` are the lines of each connection. `body_size` pads each message. With `one_list` the broker names the
    connections by one object until one of them comes or goes, as a broker in the same process does.
    """

    def __init__(self, size: int, body_size: int = 1, *, one_list: bool = False, **limits: int) -> None:
        super().__init__(**limits)
        self.one_list = one_list
        self.target: list[int] = []
        self.body = json.dumps("x" * body_size).encode()
        self.serial = 0
        self.members: list[ListConnection] = []
        self.expected: dict[int, list[str]] = {}
        self.other = self.log_in("other")
        self.saying: list[tuple[ListConnection, int, int]] = []
        self.asked = 0
        for _ in range(size):
            self.join()

    def join(self) -> None:
        member = self.log_in("many")
        member.chunk_bytes = 100_000
        self.members.append(member)
        self.expected[member.session.number] = []

    def leave(self, member: ListConnection) -> None:
        self.members.remove(member)
        self.bridge.on_connection_lost(member)

    def deliver(self, token: int | None = None) -> str:
        """Hand over a delivery to all connections of the user, without running a turn; return its line."""
        self.serial += 1
        target = [0, *(member.session.number for member in self.members)]
        if not self.one_list or target != self.target:
            self.target = target
        targets = [self.target]
        id_ = f"s/{self.serial}"
        line = f"{id_}.0={json.loads(self.body)}"
        for member in self.members:
            self.expected[member.session.number].append(line)
        self.bridge.receive([Deliver(self.serial, id_, "t", self.body, targets, token)])
        return line

    def say(self, member: ListConnection) -> None:
        """Let a connection send a message, which `answer` delivers."""
        self.asked += 1
        self.saying.append((member, self.submit(member, f"i{self.asked}"), self.asked))

    def answer(self) -> None:
        """Deliver a message to all, with the report behind it on its own connection."""
        if self.saying:
            member, token, number = self.saying.pop(0)
            self.deliver(token)
            self.expected[member.session.number].append(f"good i{number}")

    def push(self) -> None:
        """Let the server answer one connection by itself, between two deliveries."""
        member = self.members[self.serial % len(self.members)]
        pong = b'{"payload":{"type":"dummy","data":null,"id":"p"}}'
        self.bridge.on_bytes(member, len(pong).to_bytes(4, "little") + pong)
        self.expected[member.session.number].append("0 p")

    def check(self) -> None:
        for member in self.members:
            if member.out.in_flight:
                member.unblock()
            member.blocked = False
        self.turn()
        for member in self.members:
            assert member.lines() == self.expected[member.session.number]


@given(st.integers(FEW - 1, FEW + 6), st.sampled_from([1, 3000]), st.booleans(), STEPS)
def test_each_connection_gets_all_frames_in_order(
    size: int, body_size: int, one_list: bool, steps: list[tuple[str, int]]
) -> None:
    crowd = Crowd(size, body_size, one_list=one_list)
    acts: dict[str, Callable[[], object]] = {
        "join": crowd.join, "turn": crowd.one_turn, "push": crowd.push, "other": crowd.deliver, "answer": crowd.answer
    }  # fmt: skip
    for name, number in steps:
        member = crowd.members[number % len(crowd.members)]
        if name == "say" and not member.out.in_flight:
            crowd.say(member)
        elif name == "block":
            member.blocked = True
        elif name == "unblock" and member.out.in_flight:
            member.unblock()
        elif name == "leave" and len(crowd.members) > 2:
            crowd.leave(member)
        elif name in acts:
            acts[name]()
    crowd.check()
    confirms = crowd.take(Confirm)
    assert max((each.upto for each in confirms), default=0) == crowd.serial
    assert not any(each.failed for each in confirms)


def test_frame_for_many_is_written_once_to_each_and_joined_once_for_all() -> None:
    crowd = Crowd(30)
    first = crowd.members[0]
    tokens = [crowd.submit(first, f"i{number}") for number in range(5)]
    before = [member.writes for member in crowd.members]
    for token in tokens:
        crowd.deliver(token)
    crowd.turn()
    assert [member.writes for member in crowd.members] == [count + 1 for count in before]
    for member in crowd.members[1:]:
        assert member.lines() == crowd.expected[member.session.number]
    assert [line for line in first.lines() if line.startswith("good")] == [f"good i{number}" for number in range(5)]
    confirms = crowd.take(Confirm)
    assert confirms[-1].upto == 5


def test_log_is_bounded_and_what_comes_after_goes_into_another() -> None:
    crowd = Crowd(FEW + 2, body_size=30_000)
    first = crowd.members[0]
    tokens = [crowd.submit(first, f"i{number}") for number in range(2 * LOG_BYTES // 30_000)]
    for token in tokens:
        crowd.deliver(token)
    crowd.turn()
    for member in crowd.members[1:]:
        assert member.lines() == crowd.expected[member.session.number]


def test_slow_reader_among_many_is_bounded_by_itself_and_delays_nobody() -> None:
    crowd = Crowd(FEW + 2, body_size=1000, out_queue=20_000)
    first, slow, *others = crowd.members
    tokens = [crowd.submit(first, f"i{number}") for number in range(100)]
    slow.blocked = True
    crowd.deliver()
    crowd.turn()
    assert slow.out.in_flight
    for token in tokens:
        crowd.deliver(token)
        crowd.turn()
    assert slow.out.queued_bytes <= crowd.limits.out_queue
    for member in others:
        assert member.lines() == crowd.expected[member.session.number]


class Confirmed(Crowd):
    """A crowd to which another user sends: each delivery waits until one of the connections has its bytes."""

    def confirmed(self) -> tuple[int, list[list[object]]]:
        """Return the serial up to which all is confirmed, and the failures."""
        confirms = self.take(Confirm)
        return max((each.upto for each in confirms), default=0), [row for each in confirms for row in each.failed]


def test_delivery_of_another_user_waits_for_one_of_many() -> None:
    crowd = Confirmed(FEW + 5)
    for member in crowd.members:
        member.blocked = True
    for _ in range(3):
        crowd.deliver()
    crowd.turn()
    assert crowd.confirmed() == (0, [])
    crowd.members[4].unblock()
    crowd.turn()
    assert crowd.confirmed() == (3, [])
    crowd.check()
    assert crowd.confirmed() == (0, [])  # the others have nothing to add


@pytest.mark.parametrize("turns", [0, 1])
def test_delivery_to_many_that_all_go_has_failed(turns: int) -> None:
    crowd = Confirmed(FEW + 3)
    for member in crowd.members:
        member.blocked = True
    crowd.deliver()
    crowd.deliver()
    for _ in range(turns):
        crowd.turn()
    for member in list(crowd.members):
        crowd.leave(member)
        assert crowd.bridge.inspect().sessions == len(crowd.members) + 1
    crowd.turn()
    reason = "unconfirmed" if turns else "not-connected"
    upto, failed = crowd.confirmed()
    assert upto == 2
    if turns:  # the sockets had taken the frames
        assert failed == [[1, 0, reason], [2, 0, reason]]
    else:
        assert [row[:2] for row in failed] == [[1, 0], [2, 0]]


def test_run_of_which_a_part_has_left_may_have_arrived() -> None:
    crowd = Confirmed(FEW + 3, body_size=900)
    for member in crowd.members:
        member.blocked, member.chunk_bytes = True, 1000
    for _ in range(4):
        crowd.deliver()
    crowd.turn()
    for member in list(crowd.members):
        member.abort_code = "overloaded"
        crowd.leave(member)
    crowd.turn()
    upto, failed = crowd.confirmed()
    assert upto == 4
    assert failed == [[serial, 0, "unconfirmed"] for serial in (1, 2, 3, 4)]


def test_one_that_goes_in_the_middle_of_a_turn_is_not_waited_for() -> None:
    crowd = Confirmed(FEW + 3)
    crowd.deliver()
    gone = crowd.members[2]
    crowd.leave(gone)
    for member in crowd.members:
        member.blocked = True
    crowd.deliver()
    crowd.turn()
    for member in list(crowd.members):
        crowd.leave(member)
    crowd.turn()
    assert crowd.confirmed() == (2, [[1, 0, "unconfirmed"], [2, 0, "unconfirmed"]])


def test_acknowledging_connection_among_many_counts_when_it_acknowledges() -> None:
    crowd = Confirmed(FEW + 3)
    for member in crowd.members:
        member.blocked = True
    acking = crowd.log_in("many", acks=True)
    acking.chunk_bytes = 100_000
    crowd.members.append(acking)
    crowd.expected[acking.session.number] = []
    crowd.deliver()
    crowd.turn()
    assert len(acking.frames()) == 1
    assert crowd.confirmed() == (0, [])
    crowd.command(acking, "ack", ["s/1.0"])
    crowd.command(acking, "ack", ["s/1.0.0"])
    assert crowd.confirmed() == (1, [])


@pytest.mark.parametrize("orders", [(0, 1, 0), (0, 1, 2, 1, 0), (2, 2, 0, 0, 2)])
def test_older_list_of_the_same_connections_is_served_as_well(orders: tuple[int, ...]) -> None:
    """A delivery that waited for the disk names the connections as they stood before."""
    crowd = Confirmed(FEW + 5)
    numbers = [member.session.number for member in crowd.members]
    lists = [[0, *numbers], [0, *numbers[1:], numbers[0]], [0, *reversed(numbers)]]
    for serial, order in enumerate(orders, 1):
        crowd.bridge.receive([Deliver(serial, f"s/{serial}", "t", b'"x"', [lists[order]])])
    crowd.turn()
    assert crowd.confirmed() == (len(orders), [])
    for member in crowd.members:
        assert member.lines() == [f"s/{serial}.0=x" for serial in range(1, len(orders) + 1)]
