"""The splitter: every split of a stream gives the same frames."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.bridge.frames import HEADER_BYTES, Splitter, frame

BODIES = st.lists(st.binary(min_size=1, max_size=300), max_size=12)


def feed_in_pieces(splitter: Splitter, stream: bytes, cuts: list[int]) -> list[bytes]:
    bodies: list[bytes] = []
    edges = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    for start, end in pairwise(edges):
        bodies += splitter.feed(stream[start:end])
    return bodies


@given(BODIES, st.lists(st.integers(0, 4000), max_size=30))
def test_any_split_gives_the_same_frames(bodies: list[bytes], cuts: list[int]) -> None:
    splitter = Splitter(300)
    assert feed_in_pieces(splitter, b"".join(map(frame, bodies)), cuts) == bodies
    assert splitter.waiting_bytes == 0
    assert splitter.refused is None


@given(BODIES, st.sampled_from([0, 301, 2**31, 2**32 - 1]), st.lists(st.integers(0, 4000), max_size=30), st.binary())
def test_frames_before_a_refused_header_are_returned(
    bodies: list[bytes], length: int, cuts: list[int], rest: bytes
) -> None:
    splitter = Splitter(300)
    stream = b"".join(map(frame, bodies)) + length.to_bytes(HEADER_BYTES, "little")
    assert feed_in_pieces(splitter, stream, cuts) == bodies
    assert splitter.refused == length
    assert splitter.feed(rest + frame(b"later")) == []
    assert splitter.waiting_bytes == 0


@given(st.lists(st.binary(max_size=300), max_size=12), st.lists(st.integers(0, 4000), max_size=30))
def test_any_split_gives_empty_frames_where_allowed(bodies: list[bytes], cuts: list[int]) -> None:
    splitter = Splitter(300, empty=True)
    assert feed_in_pieces(splitter, b"".join(map(frame, bodies)), cuts) == bodies
    assert splitter.waiting_bytes == 0
    assert splitter.refused is None
    splitter.feed((301).to_bytes(HEADER_BYTES, "little"))
    assert splitter.refused == 301


@given(st.binary(min_size=1, max_size=300), st.integers(0, 299))
def test_unfinished_frame_is_held(body: bytes, sent: int) -> None:
    splitter = Splitter(300)
    part = frame(body)[: min(sent, len(body) + HEADER_BYTES - 1)]
    assert splitter.feed(part) == []
    assert splitter.waiting_bytes == len(part)


@pytest.mark.parametrize("step", [1, 3, 4096])
def test_first_frame_has_a_limit_of_its_own(step: int) -> None:
    splitter = Splitter(1000, first_limit_bytes=10)
    stream = frame(b"x" * 10) + frame(b"y" * 1000)
    bodies = [body for at in range(0, len(stream), step) for body in splitter.feed(stream[at : at + step])]
    assert bodies == [b"x" * 10, b"y" * 1000]
    assert splitter.feed(frame(b"z" * 1001)) == []
    assert splitter.refused == 1001


@pytest.mark.parametrize("step", [1, 4096])
def test_first_frame_over_its_limit_is_refused_from_four_bytes(step: int) -> None:
    splitter = Splitter(1000, first_limit_bytes=10)
    header = (11).to_bytes(HEADER_BYTES, "little")
    for at in range(0, len(header), step):
        assert splitter.feed(header[at : at + step]) == []
    assert splitter.refused == 11
