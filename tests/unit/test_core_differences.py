"""Differences between two answers: what counts, what does not, and ids and times that handlers make anew."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bester.broker.core.differences import MAX_DIFFERENCES, Answered, compare
from bester.broker.wire.messages import FAILED, REFUSED, Command, Reply

BEFORE_S, AFTER_S = 1_700_000_000.0, 1_800_000_000.0


def answer(*commands: Command, status: int = 0, note: str | None = None, code: str | None = None) -> Reply:
    return Reply(1, status, list(commands), note, code)


def clients(data: Any, *names: str, raw: bytes | None = None, kind: str = "sendClients") -> Command:
    return Command(kind, list(names or ("t",)), json.dumps(data).encode() if raw is None else raw)


def found(before: Reply, after: Reply, *ignored: str, strict: bool = False) -> list[str]:
    comparison = compare(Answered(before, BEFORE_S), Answered(after, AFTER_S), ignored=ignored, strict=strict)
    return [str(each) for each in comparison.differences]


def bodies(before: Any, after: Any, *ignored: str, strict: bool = False) -> list[str]:
    return found(answer(clients(before)), answer(clients(after)), *ignored, strict=strict)


def test_values_are_compared_by_their_place() -> None:
    before = {"text": "hello", "list": [1, {"a": 2}], "gone": None, "two words": 1}
    after = {"text": "HELLO", "list": [1, {"a": 3}, 4], "new": True, "two words": 2}
    assert bodies(before, after) == [
        'command 1 sendClients: body.text: "hello" became "HELLO"',
        "command 1 sendClients: body.list[1].a: 2 became 3",
        "command 1 sendClients: body.list[2]: 4 is new",
        "command 1 sendClients: body.gone: null is missing",
        'command 1 sendClients: body["two words"]: 1 became 2',
        "command 1 sendClients: body.new: true is new",
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"a":1,"b":2}', b'{ "b": 2, "a": 1 }'),
        (b"1", b"1.0"),
        (b'"\\u00e9"', '"é"'.encode()),
        (b"1" * 5000, b" " + b"1" * 5000),
    ],
)
def test_the_same_value_in_other_words_is_no_difference(before: bytes, after: bytes) -> None:
    assert found(answer(clients(0, raw=before)), answer(clients(0, raw=after))) == []


@pytest.mark.parametrize(("before", "after"), [(True, 1), (False, 0), (None, False), ("1", 1), ([], {}), (1, 1.5)])
def test_values_of_other_kinds_differ(before: Any, after: Any) -> None:
    assert len(bodies(before, after)) == 1


def test_integers_of_thousands_of_digits_are_compared_in_full() -> None:
    before, after = b"1" * 5000, b"1" * 4999 + b"2"
    assert len(found(answer(clients(0, raw=before)), answer(clients(0, raw=after)))) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("0b4cf0a2-6d5b-4f0e-9d3b-1f6f7f8f9f00", "7b4cf0a2-1111-4f0e-9d3b-1f6f7f8f9fff"),
        ("order 2026-11-28T05:51:29Z", "order 2027-01-01T00:00:00Z"),
        ("9f86d081884c7d65", "0a86d081884c7d66"),
        ("cDDrV3x0Qm2aPz5eTn8W_A", "aBBrV3x0Qm2aPz5eTn8W-B"),
        (BEFORE_S + 1, AFTER_S - 2),
        (round(BEFORE_S * 1000), round(AFTER_S * 1000) + 5),
        (round(BEFORE_S * 1e9), round(AFTER_S * 1e9)),
    ],
)
def test_ids_and_times_are_passed_over_and_counted(before: Any, after: Any) -> None:
    one, other = answer(clients({"x": before})), answer(clients({"x": after}))
    comparison = compare(Answered(one, BEFORE_S), Answered(other, AFTER_S))
    assert comparison.differences == [] and comparison.passed_over == 1
    assert len(bodies({"x": before}, {"x": after}, strict=True)) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("9f86d081884c7d65", "0a86d081884c7d"),  # of another length
        ("order 2026-11-28T05:51:29Z", "bill 2027-01-01T00:00:00Z"),
        (BEFORE_S, BEFORE_S + 1),  # not the time of its answer
        (round(BEFORE_S * 1000), AFTER_S),  # of another unit
        ("cheap", "dear"),
        (10**400, 10**400 + 1),
        (5.0, 6.0),
    ],
)
def test_other_values_are_neither_ids_nor_times(before: Any, after: Any) -> None:
    assert len(bodies(before, after)) == 1


def test_places_can_be_left_out() -> None:
    assert bodies({"a": {"b": 1}, "c": 1}, {"a": {"b": 2}, "c": 1}, "body.a") == []
    assert len(bodies({"a": {"b": 1}, "c": 1}, {"a": {"b": 2}, "c": 2}, "body.a.b")) == 1


def test_order_of_targets_counts_for_nothing_and_order_of_commands_does() -> None:
    assert found(answer(clients(1, "a", "b")), answer(clients(1, "b", "a"))) == []
    assert found(answer(clients(1, "a", "b")), answer(clients(1, "b", "c"))) == [
        'command 1 sendClients: targets: ["a", "b"] became ["b", "c"]'
    ]
    assert len(found(answer(clients(1, "a"), clients(2, "b")), answer(clients(2, "b"), clients(1, "a")))) == 4


def test_a_command_more_is_one_difference() -> None:
    one, two = clients({"n": 1}, "a"), clients({"n": 2}, "b")
    assert found(answer(two), answer(one, two)) == [
        'command 1 sendClients: sendClients to a with {"n": 1} is new',
    ]
    assert found(answer(one, two), answer(one)) == [
        'command 2 sendClients: sendClients to b with {"n": 2} is missing',
    ]
    (other,) = found(answer(one), answer(clients({"n": 1}, "x", kind="sendHandler")))
    assert other.startswith("command 1: sendClients to a") and "became sendHandler to x" in other


def test_outcomes_are_compared_with_the_note_for_the_sender() -> None:
    done, refused = answer(clients(1)), answer(status=REFUSED, note="too many")
    assert found(done, refused)[0] == "outcome: done became refused: too many"
    assert found(refused, answer(status=REFUSED, note="too few")) == [
        "outcome: refused: too many became refused: too few"
    ]
    assert found(answer(status=FAILED, note="a"), answer(status=FAILED, note="b")) == []
    assert found(answer(status=FAILED), answer(status=FAILED, code="timeout")) == [
        "outcome: handler-failed became timeout"
    ]


@pytest.mark.parametrize("body", [b"{", b"[" * 70 + b"]" * 70, b"\xff", b"NaN", b'"\\ud800"'])
def test_an_unsound_reply_is_a_refused_one(body: bytes) -> None:
    before, after = answer(clients(1)), answer(clients(0, raw=body))
    assert [each.partition(":")[0] for each in found(before, after)] == ["outcome", "command 1 sendClients"]
    assert found(after, answer(clients(0, raw=body), status=0)) == []


def test_differences_are_bounded_and_each_is_a_line() -> None:
    before = {str(number): number for number in range(500)}
    assert len(bodies(before, dict.fromkeys(before, -1))) == MAX_DIFFERENCES
    (line,) = bodies({"a\nb": 1}, {"a\nb": "\x1b[31m" + "x" * 5000})
    assert "\n" not in line and "\x1b" not in line and len(line) < 400
