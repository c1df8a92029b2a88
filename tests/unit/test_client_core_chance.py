"""The client's state machine under random schedules: each message ends once and nothing is raised."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bester.bridge.frames import frame
from bester.client import frames
from bester.client.errors import ClientClosed, MessageTooLarge, WindowFull
from bester.client.events import Answered, Arrived, Ended, Event, Failed, Lost, Reported
from bester.client.frames import Terms
from bester.client.states import State
from bester.client.window import SENDS, Limits
from tests.unit.client_core_stand import WELCOME, a_core, answer, arrival, connect, payloads, report


class TestDedup:
    def test_dedup_keys_are_unique_short_and_stable(self) -> None:
        core = a_core()
        for _ in range(3):
            core.submit("chat", b"1")
        core.submit("chat", b"1", Terms(dedup="my own"))
        connect(core)
        first = payloads(core.take())
        core.on_disconnected("gone", 0)
        connect(core)
        assert payloads(core.take()) == [{**payload, "resent": True} for payload in first]
        core.on_disconnected("gone", 0)
        connect(core)
        again = payloads(core.take())
        while len(again) < len(first):  # the third connection sends one at a time
            core.receive(report(again[-1]["id"]), 0)
            again += payloads(core.take())
        assert again == [{**payload, "resent": True} for payload in first]
        keys = [payload["dedup"] for payload in first]
        assert len(set(keys)) == 4
        assert keys[3] == "my own"
        assert all(len(key) <= 64 for key in keys)

    def test_only_a_resent_message_is_marked(self) -> None:
        core = a_core()
        connect(core)
        core.submit("chat", b"1")
        core.take()
        core.submit("chat", b"2")
        core.on_disconnected("gone", 0)
        core.submit("chat", b"3")
        connect(core)
        again = payloads(core.take())
        assert [(payload["data"], payload.get("resent")) for payload in again] == [(1, True), (2, None), (3, None)]

    def test_terms_are_in_the_frame_and_in_the_resent_frame(self) -> None:
        core = a_core()
        core.submit("chat", b"1", Terms(ttl_s=60, outcome=True))
        connect(core)
        (payload,) = payloads(core.take())
        assert payload == {"type": "chat", "data": 1, "id": "1", "dedup": "p" * 32 + "-1", "ttl_s": 60, "outcome": True}
        core.on_disconnected("gone", 0)
        connect(core)
        assert payloads(core.take()) == [{**payload, "resent": True}]

    def test_longest_message_can_be_resent(self) -> None:
        limit = 1000
        core = a_core(limits=Limits(send_limit_bytes=limit))
        connect(core)
        length = limit
        while True:
            try:
                core.submit("chat", b'"' + b"x" * length + b'"')
                break
            except MessageTooLarge:
                length -= 1
        core.take()
        core.on_disconnected("gone", 0)
        connect(core)
        (repeat,) = core.take()
        assert len(repeat) - 4 == limit

    def test_frames_without_resend_are_those_of_old_clients(self) -> None:
        core = a_core(resend=False)
        connect(core)
        core.submit("chat", b"1")
        assert payloads(core.take()) == [{"type": "chat", "data": 1, "id": "1"}]
        failed, lost = core.on_disconnected("gone", 0)
        assert isinstance(failed, Failed)
        assert isinstance(lost, Lost)
        connect(core)
        assert core.take() == []

    def test_received_ids_are_bounded(self) -> None:
        core = a_core(limits=Limits(remembered_ids=2))
        connect(core)
        came = []
        for id_ in "abacadab":
            came += [event.message.id for event in core.receive(arrival(id_), 0) if isinstance(event, Arrived)]
        assert "".join(str(id_) for id_ in came) == "abcadb", "what was forgotten is passed on again"

    def test_resending_is_bounded(self) -> None:
        core = a_core()
        id_ = core.submit("chat", b"1")
        sent = 0
        for _ in range(SENDS + 3):
            connect(core)
            sent += len(core.take())
            failed = [event.id for event in core.on_disconnected("gone", 0) if isinstance(event, Failed)]
            if failed:
                assert failed == [id_]
                break
        assert sent == SENDS


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 40)),
        st.tuples(st.sampled_from(["flush", "connect", "lose", "ping", "tick", "leave"]), st.just(0)),
        st.tuples(st.sampled_from(["report", "withdraw", "arrive", "done"]), st.integers(1, 30)),
        st.tuples(st.sampled_from(["ask", "answer"]), st.integers(1, 8)),
        st.tuples(st.just("split"), st.integers(1, 9)),
    ),
    max_size=60,
)


class World:
    """Plays one schedule against a core and records sent and ended messages."""

    def __init__(self, resend: bool) -> None:
        self.core = a_core(resend=resend, ack=True, limits=Limits(window=5, window_bytes=400), give_up_s=50)
        self.now = 0.0
        self.submitted: list[str] = []
        self.withdrawn: set[str] = set()
        self.ended: list[str] = []
        self.received: list[str] = []
        self.sent: list[str] = []
        self.here: list[str] = []  # sent on this connection
        self.dedups: dict[str, str | None] = {}
        self.done_with: set[str] = set()
        self.delivered_here: set[str] = set()
        self.questions: list[str] = []
        self.over = 0
        self.piece = 7

    def note(self, events: list[Event]) -> None:
        for event in events:
            assert not self.over, "nothing follows the end"
            if isinstance(event, Reported | Failed | Answered):
                self.ended.append(event.id)
            elif isinstance(event, Arrived):
                self.received.append(str(event.message.id))
            elif isinstance(event, Ended):
                self.over += 1

    def hear(self, data: bytes) -> None:
        for start in range(0, len(data), self.piece):
            self.note(self.core.receive(data[start : start + self.piece], self.now))

    def flush(self, _: int) -> None:
        for payload in payloads(self.core.take()):
            if payload["type"] == "chat":
                self.sends(payload)
            elif payload["id"] == "ack":
                acknowledged = payload["data"]["command"]["data"]
                assert set(acknowledged) <= self.done_with & self.delivered_here, "nobody's word is given for him"
                assert len(acknowledged) == len(set(acknowledged))
                self.delivered_here -= set(acknowledged)
        assert self.here == sorted(self.here, key=int), "order is kept, over any number of writes"

    def sends(self, payload: dict[str, Any]) -> None:
        id_, dedup = payload["id"], payload.get("dedup")
        assert payload.get("resent", False) == (id_ in self.sent), "a repeat says so, and nothing else does"
        assert self.dedups.setdefault(id_, dedup) == dedup
        assert id_ not in self.ended, "what has ended is over"
        assert id_ not in self.withdrawn, "what was withdrawn goes nowhere"
        assert id_ not in self.here, "no connection sees it twice"
        self.sent.append(id_)
        self.here.append(id_)

    def submit(self, length: int) -> None:
        room, takes = self.core.room, self.core.open
        try:
            self.submitted.append(self.core.submit("chat", b'"' + b"x" * length + b'"'))
        except WindowFull:
            assert takes
            assert not room
        except ClientClosed:
            assert not takes
        else:
            assert takes
            assert room

    def connect(self, _: int) -> None:
        if self.core.dial():
            self.core.on_connected(self.now)
            self.core.take()
            self.here = []
            self.delivered_here = set()
            self.hear(frame(WELCOME))

    def lose(self, _: int) -> None:
        self.note(self.core.on_disconnected("gone", self.now))

    def ping(self, _: int) -> None:
        if self.core.state is State.READY:
            self.core.ping()

    def tick(self, _: int) -> None:
        self.now = max(self.now, self.core.next_timer() or self.now)
        self.note(self.core.tick(self.now))

    def leave(self, _: int) -> None:
        self.note(self.core.leave(self.now, 5))

    def report(self, id_: int) -> None:
        self.hear(report(str(id_)))

    def withdraw(self, id_: int) -> None:
        if str(id_) in self.submitted:
            self.core.withdraw(str(id_))
            self.withdrawn.add(str(id_))

    def arrive(self, id_: int) -> None:
        if self.core.state in (State.GREETING, State.READY):
            self.delivered_here.add(str(id_))
        self.hear(arrival(str(id_)))

    def done(self, id_: int) -> None:
        if str(id_) in self.received:
            self.core.acknowledge(str(id_))
            self.done_with.add(str(id_))

    def ask(self, number: int) -> None:
        if self.core.state is State.READY:
            self.questions.append(self.core.outcome(f"m{number}"))

    def answer(self, number: int) -> None:
        id_ = self.questions[-number] if number <= len(self.questions) else "outcome-99"
        data: list[Any] = [{"message": "m", "recipients": {"bob": "queued"}}, None, {"recipients": 7}]
        self.hear(answer(id_, "1" if number % 2 else "0", data[number % 3]))

    def split(self, length: int) -> None:
        self.piece = length


@given(steps=STEPS, resend=st.booleans())
@settings(max_examples=400, deadline=None)
def test_each_message_ends_once_under_any_schedule(steps: list[tuple[str, int]], resend: bool) -> None:
    world = World(resend)
    for what, number in steps:
        world.now += 1
        getattr(world, what)(number)
        assert world.core.unreported <= 5
    world.note(world.core.leave(world.now, 0))
    assert len(world.ended) == len(set(world.ended)), "never two ends"
    assert set(world.questions) <= set(world.ended), "each question has an end"
    ended = {id_ for id_ in world.ended if id_.isdecimal()}
    assert set(world.submitted) - world.withdrawn <= ended <= set(world.submitted)
    assert world.over == 1
    assert world.core.next_timer() is None
    assert len(world.received) == len(set(world.received)), "no repeat is passed on"
    if not resend:
        assert len(world.sent) == len(set(world.sent)), "nothing goes out twice unasked"


@given(st.binary(max_size=200))
def test_no_frame_makes_parse_raise(body: bytes) -> None:
    frames.parse(body)


@pytest.mark.parametrize(
    ("fields", "note"),
    [('"too many"', "too many"), ('""', ""), ("null", None), ("7", None), ('["x"]', None), ('{"a":1}', None)],
)
def test_report_carries_the_servers_note(fields: str, note: str | None) -> None:
    head = '{"header":{"messageType":"statusReport","status":"bad"},"payload":{"id":"1","reason":"refused","note":'
    parsed = frames.parse(f"{head}{fields}}}}}".encode())
    assert isinstance(parsed, frames.Report)
    assert (parsed.reason, parsed.note) == ("refused", note)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PARTS = st.dictionaries(
    st.sampled_from(["messageType", "status", "id", "type", "data", "reason", "recipients", "redelivered", "note"]),
    JSON | st.sampled_from(["statusReport", "receivedMessage", "dummy", "good"]),
)


@given(header=PARTS | JSON, payload=PARTS | JSON)
def test_no_json_makes_the_core_raise(header: Any, payload: Any) -> None:
    core = a_core()
    connect(core)
    core.submit("chat", b"1")
    core.take()
    core.receive(frame(json.dumps({"header": header, "payload": payload}).encode()), 0)
    assert core.state is State.READY
