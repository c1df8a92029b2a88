"""Payloads as JSON text: encoded and decoded with msgspec and without it, refused where they are not JSON."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.client.frames import text_of as client_text_of
from bester.handlers import payload

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_json_round_trip_with_and_without_msgspec(value: Any) -> None:
    assert json.loads(payload.text_of(value)) == value
    assert json.loads(payload._stdlib_text(value)) == value
    assert payload.value_of(payload.text_of(value)) == value


def test_standard_library_encodes_dataclasses_and_refuses_other_objects() -> None:
    @dataclasses.dataclass
    class Point:
        x: int
        on: list[int]

    assert (
        payload._stdlib_text({"p": Point(1, [2])}) == payload.text_of({"p": Point(1, [2])}) == b'{"p":{"x":1,"on":[2]}}'
    )
    with pytest.raises(TypeError, match="a object is not JSON"):
        payload._stdlib_text(object())


@pytest.mark.parametrize("write", [payload.text_of, payload._stdlib_text, lambda value: client_text_of(value, None)])
def test_infinite_number_is_refused(write: Callable[[Any], bytes]) -> None:
    big = payload.value_of(b"1e999")
    for wrong in (big, -big, float("nan"), {"a": [None, {"b": big}]}, [1, (2, float("nan"))], {1: big}):
        with pytest.raises(ValueError, match="nan or an infinite number"):
            write(wrong)
    for right in (None, {"a": None, "b": [None, 1e308]}, "null"):
        assert json.loads(write(right)) == right


LONG = b"[" + b",".join([b"[]"] * 20_000) + b"]"


@pytest.fixture
def collections() -> Iterator[list[int]]:
    """Generations that the garbage collector has looked at."""
    found: list[int] = []

    def note(phase: str, facts: dict[str, int]) -> None:
        if phase == "start":
            found.append(facts["generation"])

    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)


async def test_garbage_collector_does_not_look_at_a_value_that_is_gone_by_the_next_turn_of_the_loop(
    collections: list[int],
) -> None:
    usual = gc.get_threshold()
    gc.collect()
    collections.clear()
    for _ in range(3):
        value = payload.value_of(LONG)
        some = [[each] for each in range(usual[0] // 5)]  # more than are kept for reuse
        assert payload.text_of([value, some])[: len(LONG) + 1] == b"[" + LONG
        del value
    assert collections == []
    await asyncio.sleep(0)
    assert gc.get_threshold() == usual


async def test_garbage_collector_looks_at_what_a_handler_makes_itself(collections: list[int]) -> None:
    value = payload.value_of(LONG)
    collections.clear()
    made = [[each] for each in range(2 * gc.get_threshold()[0])]
    assert collections
    assert value
    assert made
    await asyncio.sleep(0)


async def test_number_of_objects_that_a_handler_has_set_itself_stays() -> None:
    usual = gc.get_threshold()
    payload.value_of(LONG)
    gc.set_threshold(4321, 11, 12)
    try:
        await asyncio.sleep(0)
        assert gc.get_threshold() == (4321, 11, 12)
    finally:
        gc.set_threshold(*usual)


def test_without_a_loop_the_garbage_collector_is_left_alone() -> None:
    usual = gc.get_threshold()
    payload.value_of(LONG)
    assert gc.get_threshold() == usual
    assert gc.isenabled()
