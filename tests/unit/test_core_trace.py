"""The trace: steps of one root in order, on the wall clock; bounded."""

from __future__ import annotations

from bester.broker.core.clock import Clock
from bester.broker.core.trace import Trace


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
