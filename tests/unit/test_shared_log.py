"""A user with many connections: frames held once a turn reach each connection as if they had been queued one by one."""

from __future__ import annotations

import json
from collections.abc import Callable

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
