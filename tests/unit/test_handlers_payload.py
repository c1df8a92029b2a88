"""Payloads as JSON text: encoded and decoded with msgspec and without it, refused where they are not JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
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
