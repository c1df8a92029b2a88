"""The trace: steps of one root in order, on the wall clock; bounded."""

from __future__ import annotations

import pytest

from bester.broker.core import trace as trace_module
from bester.broker.core.clock import Clock
from bester.broker.core.settings import Settings
from bester.broker.core.trace import Trace
from bester.broker.wire.messages import REFUSED
from tests.unit.core_post import Post, town
from tests.unit.core_stand import Stand, clients


def test_steps_of_one_root_with_wall_clock_times() -> None:
    trace = Trace(10, Clock(0.0, 100.0, "", None), "s1")
    trace.add((1.0, "m", "m", "handler", "t", 0.0))
    trace.add((1.5, "other", "other", "handler", "t", 0.0))
    trace.add((2.0, "m", "m.0.0", "delivered", "alice", 1.25))
    assert trace.of("m") == [
        {"at_ms": 101000.0, "id": "m", "what": "handler", "where": "s1/t"},
        {"at_ms": 102000.0, "since_ms": 101250.0, "id": "m.0.0", "what": "delivered", "where": "s1/alice"},
    ]
    assert trace.of("nothing") == []


def test_the_oldest_steps_are_forgotten() -> None:
    trace = Trace(2, Clock(0.0, 0.0, "", None), "s1")
    for number in range(3):
        trace.add((float(number), "m", "m", "handler", str(number), 0.0))
    assert [step["where"] for step in trace.of("m")] == ["s1/1", "s1/2"]


@pytest.mark.parametrize(
    ("per_s", "one_of"), [(0.0, 1), (1999.9, 1), (2000.0, 2), (3999.0, 2), (4000.0, 4), (30_000.0, 16)]
)
@pytest.mark.parametrize("run", [1, 50, 64, 128, 400])
def test_sample_shrinks_as_the_rate_grows(per_s: float, one_of: int, run: int) -> None:
    trace = Trace(10, Clock(0.0, 0.0, "", None), "s1")
    trace.sample(30_000.0)
    trace.sample(per_s)
    assert trace.one_of == one_of
    share = sum(trace.takes(run) for _ in range(8192 * one_of // run)) * run / (8192 * one_of)
    assert share == pytest.approx(1 / one_of, rel=0.1)


def test_types_in_turn_all_have_a_part_in_the_sample() -> None:
    trace = Trace(10, Clock(0.0, 0.0, "", None), "s1")
    trace.sample(2000.0)
    taken = [number % 2 for number in range(1024) if trace.takes(1)]
    assert taken.count(0) == taken.count(1) == 256


@pytest.mark.parametrize("spans", [False, True], ids=["", "spans"])
def test_only_messages_without_trouble_are_left_out_and_only_under_load(
    spans: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_module, "ALL_BELOW", 10)
    stand = Stand(Settings("s1", spans=spans))
    bridge, one = stand.bridge("alice"), stand.handler("one")

    def play(count: int, status: int = 0) -> list[int]:
        """Let messages be handled and delivered; return how many steps of each are remembered."""
        found = []
        for _ in range(count):
            stand.submit(bridge, "one")
            if status:
                request = stand.request(one)
                stand.reply(one, request.token, status=status)
            else:
                request = stand.answer(one, clients("alice"))
                stand.deliver(bridge)
            found.append(len(stand.ask(bridge, "trace", request.meta["id"]).value))
        return found

    assert play(40) == [2] * 40, "a burst is no load"
    stand.wait(1.0)
    play(40)
    stand.wait(1.0, step_s=1.0)
    found = play(256)  # with two tokens each
    left_out = found.count(0)
    assert found == [2] * 256 if spans else (found.count(2), left_out) == (32, 224), found
    assert min(play(8, REFUSED)) >= 1
    stand.wait(3.0)
    assert play(8) == [2] * 8


def test_a_delivery_that_was_not_made_is_told_with_its_begin() -> None:
    """Else the work of the handler seems to last until the client's time for its acknowledgement is over."""
    post = Post(town())
    stand, bob = post.stand, post.stand.bridge("bob", name="b")
    post.sends("bob")
    stand.wait(30.0)
    stand.deliver(bob, (0, "timeout"))
    assert post.outcomes() == {"bob": "queued"}
    given, queued = stand.ask(bob, "trace").value[:2]
    assert (given["what"], queued["what"]) == ("handler", "queued")
    assert queued["since_ms"] == given["at_ms"]
    assert queued["at_ms"] >= given["at_ms"] + 30_000
