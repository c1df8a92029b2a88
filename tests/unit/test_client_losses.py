"""A client and a server with dedup, over a connection cut anywhere: no loss and no duplicate.

The server models the promises of a real one: dedup by `dedup`, and marked redelivery of unacknowledged messages.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bester.bridge.frames import Splitter, frame
from bester.client.core import Core
from bester.client.events import Arrived, Event, Failed, Lost, Ready, Reported
from bester.client.states import State
from bester.client.window import SENDS

Json = dict[str, Any]


def framed(value: Json) -> bytes:
    return frame(json.dumps(value).encode())


class Server:
    """Server that outlives its connections. `out` holds written bytes until the link carries them."""

    def __init__(self) -> None:
        self.reports: dict[str, str] = {}  # message id by dedup key
        self.handled: list[Any] = []
        self.unacknowledged: dict[str, int] = {}  # number of deliveries by id
        self.acknowledged: list[str] = []
        self.out = b""
        self.begin()

    def begin(self) -> None:
        self.splitter = Splitter(1 << 20)
        self.logged_in = False
        self.out = b""

    def deliver(self, id_: str) -> None:
        self.unacknowledged.setdefault(id_, 0)
        if self.logged_in:
            again = {"redelivered": True} if self.unacknowledged[id_] else {}
            self.unacknowledged[id_] += 1
            header = {"messageType": "receivedMessage", "id": id_, **again}
            self.out += framed({"header": header, "payload": {"type": "chat", "data": id_}})

    def hear(self, data: bytes) -> None:
        for body in self.splitter.feed(data):
            payload = json.loads(body)["payload"]
            if not self.logged_in:
                assert json.loads(body)["header"]["ack"] is True
                self.logged_in = True
                self.report("auth_special")
                for id_ in self.unacknowledged:
                    self.deliver(id_)
            elif payload["type"] == "builtin":
                for id_ in payload["data"]["command"]["data"]:
                    assert self.unacknowledged.pop(id_, 0), "an ack is for a delivered message"
                    self.acknowledged.append(id_)
            else:
                self.submitted(payload)

    def submitted(self, payload: Json) -> None:
        if payload["dedup"] not in self.reports:
            self.reports[payload["dedup"]] = payload["id"]
            self.handled.append(payload["data"])
        else:
            assert payload["resent"] is True, "whoever sends again says so"
        self.report(payload["id"])

    def report(self, id_: str) -> None:
        self.out += framed({"header": {"messageType": "statusReport", "status": "good"}, "payload": {"id": id_}})


class World:
    """Client, its application, a server, and the link between them."""

    def __init__(self) -> None:
        self.core = Core(server="here:1", user="bob", password="secret", dedup_prefix="p", random=lambda: 0.0, ack=True)
        self.server = Server()
        self.now = 0.0
        self.submitted: list[str] = []
        self.reported: list[str] = []
        self.received: list[str] = []
        self.pushed = 0
        self.turn(0)
        self.turn(0)
        assert self.core.state is State.READY

    def note(self, events: list[Event]) -> None:
        for event in events:
            assert not isinstance(event, Failed), "a server that comes back leaves nothing in doubt"
            if isinstance(event, Reported):
                assert event.report.good
                self.reported.append(event.id)
            elif isinstance(event, Arrived):
                assert event.message.id is not None
                self.received.append(event.message.id)
            else:
                assert isinstance(event, Ready | Lost)

    def submit(self, _: int) -> None:
        self.submitted.append(self.core.submit("chat", str(len(self.submitted)).encode()))

    def push(self, _: int) -> None:
        self.pushed += 1
        self.server.deliver(f"s1/{self.pushed}")

    def done(self, number: int) -> None:
        if self.received:
            self.core.acknowledge(self.received[number % len(self.received)])

    def up(self) -> None:
        if self.core.state is State.DOWN:
            assert self.core.dial()
            self.core.on_connected(self.now)
            self.server.begin()

    def turn(self, _: int) -> None:
        """Carry all written bytes once each way."""
        self.up()
        self.server.hear(b"".join(self.core.take()))
        out, self.server.out = self.server.out, b""
        self.note(self.core.receive(out, self.now))

    def cut(self, number: int) -> None:
        """Carry a part of the written bytes each way, then break the connection."""
        self.up()
        out = b"".join(self.core.take())
        self.server.hear(out[: number % (len(out) + 1)])
        out = self.server.out
        self.note(self.core.receive(out[: number * 7 % (len(out) + 1)], self.now))
        self.note(self.core.on_disconnected("cut", self.now))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["submit", "push", "turn"]), st.just(0)),
        st.tuples(st.just("done"), st.integers(0, 9)),
        st.tuples(st.just("cut"), st.integers(0, 2000)),
    ),
    max_size=40,
).filter(lambda steps: sum(what == "cut" for what, _ in steps) < SENDS)


@given(STEPS)
def test_each_message_is_handled_once_and_in_order_over_any_cuts(steps: list[tuple[str, int]]) -> None:
    world = World()
    for what, number in steps:
        world.now += 1
        getattr(world, what)(number)
    for _ in range(4):  # the login, pending messages, acks, and the answers to them
        for id_ in world.received:
            world.core.acknowledge(id_)
        world.turn(0)
    assert world.server.handled == list(range(len(world.submitted)))
    assert sorted(world.reported, key=int) == world.submitted
    assert world.core.unreported == 0
    everything = [f"s1/{number + 1}" for number in range(world.pushed)]
    assert sorted(world.received) == sorted(everything), "each is passed on once"
    assert world.server.unacknowledged == {}
    assert sorted(world.server.acknowledged) == sorted(everything)
