"""Recordings: what an operator fetches, its bounds, and its ends."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core.effects import Link
from bester.broker.core.recordings import MAX_BYTES, MAX_RECORDINGS, MAX_ROWS
from bester.broker.wire.messages import Goodbye
from tests.unit.core_stand import Stand, clients, servers


def staffed() -> tuple[Stand, Link, Link, Link]:
    """Return a stand with a bridge of the user t, a handler of the type job, and an operator."""
    stand = Stand()
    return stand, stand.bridge("t"), stand.handler("job"), stand.join("operator", "op")


def fetched(stand: Stand, operator: Link, type_: str = "job", **more: Any) -> dict[str, Any]:
    answer = stand.ask(operator, "record", {"type": type_, **more})
    assert answer.status == 0, answer
    value: dict[str, Any] = answer.value
    return value


def events(stand: Stand) -> list[str]:
    return [notice.event for notice in stand.notices if notice.event.startswith("recording")]


def test_a_message_and_its_commands_are_recorded_from_the_first_question_on() -> None:
    stand, bridge, real, operator = staffed()
    stand.submit(bridge, "job", b'"before"')
    stand.answer(real)
    assert fetched(stand, operator) == {"rows": [], "more": 0, "dropped": 0}
    stand.submit(bridge, "job", b'{"n": 1}')
    request = stand.answer(real, clients("t", body=b"1"), servers("s2", as_type="x"))
    (row,) = fetched(stand, operator)["rows"]
    assert row["request"] == {"type": "job", "user": "t", "body": '{"n": 1}', "meta": request.meta}
    assert row["reply"] == {
        "status": 0,
        "note": None,
        "code": None,
        "commands": [
            {"command": "sendClients", "targets": ["t"], "body": "1", "type": None},
            {"command": "sendServers", "targets": ["s2"], "body": '"hi"', "type": "x"},
        ],
    }
    assert fetched(stand, operator)["rows"] == []


def test_refusals_and_replies_that_cannot_be_carried_out_are_recorded_too() -> None:
    stand, bridge, real, operator = staffed()
    fetched(stand, operator)
    for body, status in ((b"1", 2), (b"\xff", 0)):
        stand.submit(bridge, "job")
        stand.reply(real, stand.request(real).token, clients("t", body=body), status=status)
    assert [row["reply"]["status"] for row in fetched(stand, operator)["rows"]] == [2, 0]


def test_other_types_and_late_answers_are_not_recorded() -> None:
    stand, bridge, real, operator = staffed()
    other = stand.handler("other")
    fetched(stand, operator)
    stand.submit(bridge, "other")
    stand.answer(other)
    stand.submit(bridge, "job")
    late = stand.request(real)
    stand.wait(31)
    stand.reply(real, late.token)
    assert fetched(stand, operator)["rows"] == []


@pytest.mark.parametrize(
    "argument", [None, "job", {}, {"type": 1}, {"type": ""}, {"type": "bester.auth"}, {"type": "dummy"}]
)
def test_a_recording_needs_a_type_that_may_be_recorded(argument: Any) -> None:
    stand, _, _, operator = staffed()
    answer = stand.ask(operator, "record", argument)
    assert answer.status == 1 and type(answer.value) is str and events(stand) == []


def test_only_operators_record() -> None:
    stand, bridge, real, _ = staffed()
    for link in (bridge, real):
        assert stand.ask(link, "record", {"type": "job"}).status == 1
    assert events(stand) == []


def test_rows_and_bytes_are_bounded_and_what_is_missing_is_counted() -> None:
    stand, bridge, real, operator = staffed()
    fetched(stand, operator)
    body = b'"' + b"x" * (MAX_BYTES // 3) + b'"'
    for _ in range(4):
        stand.submit(bridge, "job", body)
        stand.answer(real)
    first = fetched(stand, operator)
    assert (len(first["rows"]), first["more"], first["dropped"]) == (2, 0, 2)
    stand.submit(bridge, "job", body)
    stand.answer(real)
    assert fetched(stand, operator) | {"rows": 0} == {"rows": 0, "more": 0, "dropped": 0}
    assert MAX_ROWS * MAX_RECORDINGS < 10**6


def test_a_recording_ends_with_its_last_row_its_operator_or_by_silence() -> None:
    stand, bridge, real, operator = staffed()
    fetched(stand, operator)
    stand.submit(bridge, "job")
    stand.answer(real)
    assert len(fetched(stand, operator, end=True)["rows"]) == 1
    assert events(stand) == ["recording-began", "recording-ended"]
    fetched(stand, operator)
    stand.say(operator, Goodbye())
    assert events(stand)[2:] == ["recording-began", "recording-ended"]
    again = stand.join("operator", "op")
    fetched(stand, again)
    stand.wait(31)
    assert events(stand)[4:] == ["recording-began", "recording-ended"]
    stand.submit(bridge, "job")
    stand.answer(real)
    assert fetched(stand, again)["rows"] == []  # a new one


def test_recordings_are_apart_and_bounded_in_number() -> None:
    stand, bridge, real, operator = staffed()
    other = stand.join("operator", "op")
    fetched(stand, operator)
    fetched(stand, other)
    stand.submit(bridge, "job")
    stand.answer(real)
    assert len(fetched(stand, operator)["rows"]) == len(fetched(stand, other)["rows"]) == 1
    for number in range(MAX_RECORDINGS - 2):
        fetched(stand, operator, f"t{number}")
    assert stand.ask(operator, "record", {"type": "more"}).status == 1
    fetched(stand, other, end=True)
    fetched(stand, operator, "more")
