"""Values and damage that the tests of runs draw."""

from __future__ import annotations

import msgpack  # type: ignore[import-untyped]  # it ships no types
from hypothesis import strategies as st

keys = st.text(max_size=4) | st.integers(-9, 9) | st.binary(max_size=3) | st.booleans() | st.none()
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
    | st.binary(max_size=8) | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8))
    | st.builds(msgpack.Timestamp, st.integers(0, 2**32), st.integers(0, 10**9 - 1)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
tokens = st.integers(-(2**53) + 1, 2**53 - 1)


@st.composite
def damaged(draw: st.DrawFn, frame: bytes) -> bytes:
    """Draw a frame with one to three short pieces replaced or removed."""
    whole = bytearray(frame)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(whole) - 1))
        whole[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
        if not whole:
            break
    return bytes(whole)
