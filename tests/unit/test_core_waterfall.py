"""The waterfall: steps become spans, over servers whose clocks differ."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core.waterfall import spans_of

Row = tuple[str, str, float, float | None, str | None]


def step(at_ms: float, id_: str, what: str, where: str, since_ms: float | None = None) -> dict[str, Any]:
    made = {"at_ms": at_ms, "id": id_, "what": what, "where": where}
    return made if since_ms is None else made | {"since_ms": since_ms}


def rows(*steps: dict[str, Any]) -> list[Row]:
    return [
        (span["kind"], f"{span['server']}/{span['where']}", span["from_ms"], span["to_ms"], span["outcome"])
        for span in spans_of(steps)
    ]


def test_wait_work_and_delivery() -> None:
    assert rows(
        step(15.0, "m", "handler", "s1/chat", 10.0),
        step(32.0, "m.0", "delivered", "s1/ann", 30.0),
        step(30.0, "m.1.0", "failed:not-connected", "s1/bob", 30.0),
    ) == [
        ("wait", "s1/chat", 10.0, 15.0, None),
        ("handler", "s1/chat", 15.0, 30.0, None),
        ("delivery", "s1/ann", 30.0, 32.0, "delivered"),
        ("delivery", "s1/bob", 30.0, 30.0, "failed:not-connected"),
    ]


@pytest.mark.parametrize(
    ("what", "outcome"),
    [("refused", "refused"), ("consumed", None), ("timeout", "timeout"), ("bad-reply", "bad-reply")],
)
def test_work_without_results_ends_by_its_own_step(what: str, outcome: str | None) -> None:
    found = rows(step(1.0, "m", "handler", "s1/chat"), step(4.0, "m", what, "s1/chat"))
    assert found == [("handler", "s1/chat", 1.0, 4.0, outcome)]


def test_message_given_twice_has_two_spans_of_work() -> None:
    assert rows(
        step(1.0, "m", "handler", "s1/chat"),
        step(9.0, "m", "handler", "s1/chat", 5.0),
        step(11.0, "m", "consumed", "s1/chat"),
    ) == [
        ("handler", "s1/chat", 1.0, 5.0, "handler-lost"),
        ("wait", "s1/chat", 5.0, 9.0, None),
        ("handler", "s1/chat", 9.0, 11.0, None),
    ]


def test_what_has_not_ended_is_open() -> None:
    assert rows(step(1.0, "m", "handler", "s1/chat")) == [("handler", "s1/chat", 1.0, None, None)]
    found = rows(step(1.0, "m", "handler", "s1/chat"), step(2.0, "m.0.0", "queued", "s1/bob"))
    assert found[1] == ("queued", "s1/bob", 2.0, None, None)
    found = rows(step(2.0, "m.0.0", "queued", "s1/bob"), step(50.0, "m.0.0", "delivered", "s1/bob"))
    assert found == [("queued", "s1/bob", 2.0, 50.0, "delivered")]
    tried = step(9.0, "m.0.0", "queued", "s1/bob", 2.0)
    found = rows(step(1.0, "m", "handler", "s1/chat"), tried, step(50.0, "m.0.0", "delivered", "s1/bob"))
    assert found == [
        ("handler", "s1/chat", 1.0, 2.0, None),
        ("delivery", "s1/bob", 2.0, 9.0, "queued"),
        ("queued", "s1/bob", 9.0, 50.0, "delivered"),
    ]
    assert rows() == []


def test_handler_of_a_result_is_a_span_of_its_own() -> None:
    assert [row[:3] for row in rows(
        step(1.0, "m", "handler", "s1/one"),
        step(3.0, "m.0.0", "handler", "s1/two"),
        step(7.0, "m.0.0.0", "delivered", "s1/ann", 6.0),
    )] == [("handler", "s1/one", 1.0), ("handler", "s1/two", 3.0), ("delivery", "s1/ann", 6.0)]  # fmt: skip


@pytest.mark.parametrize("skew_ms", [0.0, 5.0, -5.0, 3_600_000.0, -3_600_000.0])
def test_spans_of_another_server_lie_within_the_way_to_it(skew_ms: float) -> None:
    spans = spans_of([
        step(100.0, "m", "handler", "s1/out"),
        step(110.0, "m.0.0", "server", "s1/s2"),
        step(150.0, "m.0.0", "delivered", "s1/s2"),
        step(120.0 + skew_ms, "m.0.0", "entered", "s2/s1"),
        step(120.0 + skew_ms, "m.0.0", "handler", "s2/in"),
        step(140.0 + skew_ms, "m.0.0.0", "delivered", "s2/bob", 130.0 + skew_ms),
    ])  # fmt: skip
    (sent,) = [span for span in spans if span["kind"] == "server"]
    theirs = [span for span in spans if span["server"] == "s2"]
    assert [span["kind"] for span in theirs] == ["handler", "delivery"]
    assert all(sent["from_ms"] <= span["from_ms"] <= span["to_ms"] <= sent["to_ms"] for span in theirs)
    assert theirs[1]["to_ms"] - theirs[0]["from_ms"] == pytest.approx(20.0, abs=0.01)


def test_thousands_of_steps_with_odd_ids_and_places() -> None:
    odd = ["", ".", "a." * 400, "/", "s1", "s2//x", "\u202e"]
    kinds = ["handler", "server", "queued", "entered", "delivered", "emitted", "consumed", "x"]
    steps = [
        step(float(-n if n % 3 else n), odd[n % len(odd)], kinds[n % len(kinds)], odd[n % 5], float(n % 7))
        for n in range(4_000)
    ]
    spans = spans_of(steps)
    assert spans
    assert [span["from_ms"] for span in spans] == sorted(span["from_ms"] for span in spans)
